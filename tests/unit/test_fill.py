"""Undeclared fill is said, with the option that mends it; natural extremes are not."""

import re
import warnings

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from ganlab.config import ScalingConfig, TilingConfig, ToytownConfig
from ganlab.data.batches import describe
from ganlab.data.fill import suspected_fill
from ganlab.data.tiling import tile
from ganlab.data.toytown import write as write_town
from ganlab.errors import InputError

FLOAT_MIN = float(np.finfo("float32").min)
SHAPE = (4, 64, 64)
SEEN = np.ones(SHAPE, bool)


def ground(dtype, low, high, seed=0):
    """Smooth ground with noise, which has most values between two."""
    rng = np.random.default_rng(seed)
    smooth = rng.normal(size=SHAPE)
    for axis in (1, 2):
        smooth = sum(np.roll(smooth, shift, axis) for shift in range(12)) / 12**0.5
    smooth = smooth + rng.normal(size=SHAPE) * 0.3
    return (low + (high - low) / (1 + np.exp(-smooth))).astype(dtype)


FILLS = [
    ("float32", 100, 300, -9999.0),
    ("float32", 100, 300, FLOAT_MIN),
    ("float32", 100, 300, 9.969209968386869e36),
    ("float32", -2, 40, -99.0),
    ("float64", 100, 300, 1e20),
    ("int16", 100, 3000, -32768.0),
    ("uint16", 500, 4000, 65535.0),
    ("uint16", 500, 4000, 0.0),
    ("uint8", 30, 220, 0.0),
    ("uint8", 1, 250, 0.0),
    ("uint8", 1, 250, 255.0),
]


@pytest.mark.parametrize(("dtype", "low", "high", "fill"), FILLS)
@pytest.mark.parametrize("how", ["a strip", "a corner"])
def test_fill_is_found_with_its_fraction(dtype, low, high, fill, how):
    values = ground(dtype, low, high)
    rows, columns = np.mgrid[:64, :64]
    missing = np.broadcast_to(columns < 9 if how == "a strip" else rows + columns < 40, SHAPE)
    values = np.where(missing, np.asarray(fill, dtype), values)
    found = suspected_fill(values, SEEN)
    assert list(found) == [fill]
    assert found[fill] == pytest.approx((values == fill).mean())
    assert suspected_fill(values, ~missing) == {}


def test_both_ends_can_be_fill():
    values = ground("float32", 0, 1)
    values[0], values[1, :20] = FLOAT_MIN, 1e35
    assert set(suspected_fill(values, SEEN)) == {FLOAT_MIN, float(np.float32(1e35))}


def test_less_than_half_a_percent_is_not_said():
    values = ground("float32", 100, 300)
    values[0, :5, :10] = -9999
    assert suspected_fill(values, SEEN) == {}
    values[0, :8, :12] = -9999
    assert list(suspected_fill(values, SEEN)) == [-9999]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_saturation_is_no_fill(dtype):
    """Clouds that are too bright, water that is too dark: the way there is gradual."""
    values = ground("float64", -100, 355).clip(0, 255).astype(dtype)
    assert (values == 0).mean() > 0.02
    assert (values == 255).mean() > 0.02
    assert suspected_fill(values, SEEN) == {}


def test_maps_of_few_classes_are_no_fill():
    classes = np.random.default_rng(0).choice(np.uint8([0, 7, 255]), (4, 8, 8)).repeat(8, 1)
    assert suspected_fill(classes.repeat(8, 2), SEEN) == {}
    assert suspected_fill(np.zeros(SHAPE, np.uint8), SEEN) == {}


def test_blocks_of_one_value_are_no_fill():
    blocks = np.random.default_rng(0).integers(20, 230, (4, 8, 8), np.uint8)
    assert suspected_fill(blocks.repeat(8, 1).repeat(8, 2), SEEN) == {}


def test_a_sea_at_0_is_no_fill():
    heights = ground("float32", -30, 60).clip(0)
    assert (heights == 0).mean() > 0.2
    assert suspected_fill(heights, SEEN) == {}
    columns = np.arange(64) + np.random.default_rng(0).random(SHAPE)
    beach = (columns - 20).clip(0).astype("float32")  # solid, but the ground rises from it
    assert (beach == 0).mean() > 0.2
    assert suspected_fill(beach, SEEN) == {}


def scene_file(path, array, **options):
    count, height, width = array.shape
    profile = {"count": count, "height": height, "width": width, "dtype": array.dtype}
    profile |= {"crs": "EPSG:32633", "transform": from_origin(500_000, 5_000_000, 1, 1)}
    with rasterio.open(path, "w", "GTiff", **profile | options) as file:
        file.write(array)
    return str(path)


def said(caught):
    return [str(warning.message) for warning in caught if "fill value" in str(warning.message)]


@pytest.mark.parametrize("fill", [-9999.0, 9.96921e36])
def test_tile_and_training_say_it_once_each_and_the_option_mends_it(tmp_path, fill):
    array = ground("float32", 100, 300)[:2].reshape(1, 128, 64).repeat(2, 0)
    array[:, :, :10] = fill
    path = scene_file(tmp_path / "dem.tif", array)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        store = tile(TilingConfig(images=(path,), to=tmp_path / "store", size=32))
    (message,) = said(caught)
    value = f"{float(np.float32(fill)):.17g}"
    assert f"the value {value} makes up 15.6% of the pixels of 'image' in bands 1, 2" in message
    assert f"tile again with --nodata {value}" in message
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        spec = describe(store, np.arange(len(store)), ScalingConfig())
    assert len(said(caught)) == 1
    assert not [w for w in caught if w.category is RuntimeWarning]
    scaling = spec.scalings["image"]
    assert np.isfinite([*scaling.low, *scaling.high, *scaling.fill, *scaling.gain]).all()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        config = TilingConfig(images=(path,), to=tmp_path / "again", size=32, nodata=float(value))
        store = tile(config)
        scaling = describe(store, np.arange(len(store)), ScalingConfig()).scalings["image"]
    assert not said(caught)
    assert 90 < scaling.low[0] < scaling.high[0] < 310
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        store = tile(TilingConfig(images=(path,), to=tmp_path / "none", size=32, nodata="none"))
        describe(store, np.arange(len(store)), ScalingConfig())
    assert not said(caught)  # it was said that all is measured, also to the training


@pytest.mark.parametrize("fill", [FLOAT_MIN, -3.4e38])
@pytest.mark.parametrize("pixels", [10, 1])
def test_training_refuses_the_ends_of_float32_and_names_the_option(tmp_path, fill, pixels):
    array = ground("float32", 100, 300)[:2].reshape(1, 128, 64)
    array[:, :pixels, :pixels] = fill
    path = scene_file(tmp_path / "dem.tif", array)
    value = f"{float(np.float32(fill)):.17g}"
    with pytest.warns(UserWarning, match=re.escape(f"tile again with --nodata {value}")):
        store = tile(TilingConfig(images=(path,), to=tmp_path / "store", size=32))
    with pytest.raises(InputError, match="1 of 'image' holds -3.*, which is no measurement") as e:
        describe(store, np.arange(len(store)), ScalingConfig())
    assert str(e.value).endswith(f"no file declares: tile again with --nodata {value}")
    config = TilingConfig(images=(path,), to=tmp_path / "again", size=32, nodata=float(value))
    spec = describe(tile(config), np.arange(len(store)), ScalingConfig())
    assert spec.scalings["image"].low[0] > 90


def test_fill_of_finer_images_has_its_own_option(tmp_path):
    coarse = scene_file(tmp_path / "a.tif", ground("uint16", 500, 4000)[:1, :32, :32])
    fine = ground("uint16", 500, 4000)[:1]
    fine[:, :20] = 0
    path = scene_file(tmp_path / "f.tif", fine, transform=from_origin(500_000, 5_000_000, 0.5, 0.5))
    config = {"images": (coarse,), "fine": (path,), "size": 16}
    with pytest.warns(UserWarning, match=r"'fine' .* tile again with --fine-nodata 0;"):
        tile(TilingConfig(**config, to=tmp_path / "store"))
    store = tile(TilingConfig(**config, to=tmp_path / "again", fine_nodata=0, minimum_valid=0))
    assert store.read("fine", [0])[store.read("valid", [0]).repeat(2, 2).repeat(2, 3) > 0].min() > 0


def test_toytown_has_no_fill(tmp_path):
    files = write_town(ToytownConfig(to=tmp_path, scenes=2, size=512))
    images = tuple(str(image) for image, _ in files)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        store = tile(TilingConfig(images=images, to=tmp_path / "store", size=64))
        describe(store, np.arange(len(store)), ScalingConfig())
    assert not said(caught)
