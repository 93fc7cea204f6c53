"""Real scenes with all their oddities, tiled and compared with what rasterio itself reads."""

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window
from rasterio.windows import transform as window_transform

from ganlab.config import SplitConfig, TilingConfig
from ganlab.data.store import TileStore
from ganlab.data.tiling import tile
from ganlab.errors import InputError

DATA = Path(os.environ.get("GANLAB_REAL_DATA", "nowhere"))
LANDSAT = DATA / "geotiff/landsat8_cloudy_utm16"
BANEPA = DATA / "buildings/banepa_nepal_train"

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif("GANLAB_REAL_DATA" not in os.environ, reason="GANLAB_REAL_DATA is not set"),
]

SINGLE = {
    "landsat7_bahamas_rgb_byte_utm18.tif": (3, "uint8", 0),
    "naip_nd_2009_4band_utm14.tif": (4, "uint8", 0),
    "naip_nd_2017_4band_utm14.tif": (4, "uint8", 0),
    "neon_osbs_10cm_utm17_nodata255.tif": (3, "uint8", 255),
    "sentinel2_coast_10m_utm18_cog.tif": (4, "uint16", None),
    "usgs_hro_colorado_15cm_alpha.tif": (3, "uint8", None),
    "usgs_hro_colorado_15cm_mask.tif": (3, "uint8", None),
    "usgs_hro_colorado_15cm_nodata.tif": (3, "uint8", 0),
}


def compare(store: TileStore, name: str, path: Path, bands: int, source: str = "image") -> int:
    """Check all tiles of one scene against rasterio; returns the number of invalid pixels."""
    missing = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        file = rasterio.open(path)
    with file:
        scene = store.scenes[name]
        assert (scene.width, scene.height) == (file.width, file.height)
        assert scene.transform == tuple(file.transform)[:6]
        assert (scene.crs is None) == (file.crs is None)
        if file.crs is not None:
            assert rasterio.crs.CRS.from_string(scene.crs) == file.crs
        for t in (t for t in store.tiles if t.scene == name):
            window = Window(t.column, t.row, t.width, t.height)
            expected = file.read(list(range(1, bands + 1)), window=window)
            mask = file.dataset_mask(window=window) > 0
            height, width = mask.shape  # rasterio cuts windows at the border of the file
            pixels, valid = store.read(source, [t.tile])[0], store.read("valid", [t.tile])[0, 0]
            np.testing.assert_array_equal(pixels[:, :height, :width], expected)
            np.testing.assert_array_equal(valid[:height, :width], mask)
            assert valid.sum() == mask.sum()
            assert t.valid_fraction == valid.mean()
            assert t.transform == pytest.approx(
                tuple(window_transform(window, file.transform))[:6], rel=1e-12
            )
            missing += int((~mask).sum())
    return missing


def test_no_single_file_is_forgotten():
    assert sorted(path.name for path in (DATA / "geotiff").glob("*.tif")) == sorted(SINGLE)


@pytest.mark.parametrize("edges", ["shift", "pad"])
@pytest.mark.parametrize("name", SINGLE)
def test_geotiff(tmp_path, name, edges):
    bands, dtype, nodata = SINGLE[name]
    path = DATA / "geotiff" / name
    config = TilingConfig(
        images=(str(path),), to=tmp_path / "store", size=128, edges=edges, minimum_valid=0
    )
    store = tile(config)
    source = store.sources["image"]
    assert (len(source.bands), source.dtype, source.nodata) == (bands, dtype, nodata)
    missing = compare(store, path.stem, path, bands)
    odd = ("bahamas", "colorado", "neon")
    assert (missing > 0) == any(word in name for word in odd)
    store.verify()


def test_turned_valid_area_leaves_out_the_corners(tmp_path):
    path = DATA / "geotiff/landsat7_bahamas_rgb_byte_utm18.tif"
    config = TilingConfig(images=(str(path),), to=tmp_path / "store", size=64, edges="drop")
    store = tile(config)
    with rasterio.open(path) as file:
        mask = file.dataset_mask() > 0
    blocks = mask[: 11 * 64, : 12 * 64].reshape(11, 64, 12, 64).mean(axis=(1, 3))
    kept = {(t.row // 64, t.column // 64) for t in store.tiles}
    assert kept == {(int(row), int(column)) for row, column in np.argwhere(blocks >= 0.5)}
    assert 0 < len(kept) < 11 * 12


def test_bands_of_the_coast_by_name(tmp_path):
    path = DATA / "geotiff/sentinel2_coast_10m_utm18_cog.tif"
    config = TilingConfig(
        images=(str(path),), to=tmp_path / "store", bands=("B04", "B03", "B02"), scale=0.5
    )
    store = tile(config)
    with rasterio.open(path) as file:
        full = file.read([3, 2, 1]).astype(float)
    mean = full.reshape(3, 384, 2, 384, 2).mean(axis=(2, 4))
    for t in store.tiles:
        part = mean[:, t.row : t.row + 256, t.column : t.column + 256]
        np.testing.assert_array_equal(store.read("image", [t.tile])[0], np.rint(part))
    assert store.tiles[0].transform == (20, 0, 438730, 0, -20, 4174460)


def test_landsat_bands_are_stacked_with_their_quality_as_label(tmp_path):
    files = [LANDSAT / f"l8_{band}.tif" for band in ("B4", "B3", "B2")]
    config = TilingConfig(
        images=(",".join(map(str, files)),), labels=(str(LANDSAT / "l8_BQA.tif"),),
        to=tmp_path / "store", edges="pad", minimum_valid=0,
    )  # fmt: skip
    store = tile(config)
    assert store.sources["image"].bands == ("B4", "B3", "B2")
    for i, path in enumerate(files):
        with rasterio.open(path) as file:
            band = np.pad(file.read(1), ((0, 768 - 603), (0, 768 - 627)))
        for t in store.tiles:
            part = band[t.row : t.row + 256, t.column : t.column + 256]
            np.testing.assert_array_equal(store.read("image", [t.tile])[0, i], part)
    with rasterio.open(LANDSAT / "l8_BQA.tif") as file:
        classes = np.unique(file.read(1)).tolist()
    assert store.sources["label"].classes == tuple(classes)
    cloudy = (np.array(classes) >> 14) == 3
    assert 0 < cloudy.sum() < len(classes)


def test_the_pan_band_does_not_nest_and_the_repair_does(tmp_path):
    # Landsat's 15 m grid begins a quarter of a 30 m pixel further up and left.
    config = TilingConfig(images=(str(LANDSAT / "l8_B4.tif"),), to=tmp_path / "store", size=128)
    with pytest.raises(InputError, match=r"l8_B8.tif is not on the grid .*Repair: gdalwarp") as e:
        tile(config, more={"pan": ((str(LANDSAT / "l8_B8.tif"),), "image")})
    line = str(e.value).split()
    left, bottom, right, top = (float(n) for n in line[line.index("-te") + 1 :][:4])
    width, height = (int(n) for n in line[line.index("-ts") + 1 :][:2])
    transform = rasterio.transform.from_bounds(left, bottom, right, top, width, height)
    with rasterio.open(LANDSAT / "l8_B8.tif") as file:
        options = {"transform": transform, "width": width, "height": height}
        profile = file.profile | options
        with WarpedVRT(file, crs=file.crs, resampling=Resampling.bilinear, **options) as vrt:
            warped = vrt.read()
    with rasterio.open(tmp_path / "pan.tif", "w", **profile) as file:
        file.write(warped)
    store = tile(config, more={"pan": ((str(tmp_path / "pan.tif"),), "image")})
    assert store.sources["pan"].factor == 2
    for t in store.tiles:
        at = (slice(2 * t.row, 2 * t.row + 256), slice(2 * t.column, 2 * t.column + 256))
        np.testing.assert_array_equal(store.read("pan", [t.tile])[0], warped[(slice(None), *at)])
    # Red resembles pan; less on clouds, which the two see from slightly different angles.
    pan = store.read("pan", range(len(store))).astype(float)
    coarse = pan.reshape(-1, 128, 2, 128, 2).mean(axis=(2, 4))
    red = store.read("image", range(len(store)))[:, 0].astype(float)
    assert np.corrcoef(coarse.ravel(), red.ravel())[0, 1] > 0.9


def test_two_years_of_one_place_are_two_metres_apart(tmp_path):
    years = [str(DATA / f"geotiff/naip_nd_{year}_4band_utm14.tif") for year in (2009, 2017)]
    config = TilingConfig(images=(years[0],), to=tmp_path / "store")
    with pytest.raises(InputError, match=r"485902.0, .* not .*485900.0.*-r bilinear"):
        tile(config, more={"later": ((years[1],), "image")})


@pytest.fixture(scope="module")
def towns(tmp_path_factory):
    """The town with raster and with vector labels."""
    folder = tmp_path_factory.mktemp("banepa")
    image = str(BANEPA / "scene_rgb.tif")
    labels = {"raster": "scene_buildings.tif", "vector": "footprints.geojson"}
    return {
        name: tile(TilingConfig(images=(image,), labels=(str(BANEPA / file),), to=folder / name))
        for name, file in labels.items()
    }


def test_the_town(towns):
    store = towns["raster"]
    assert len(store) == 10 * 16
    assert compare(store, "scene_rgb", BANEPA / "scene_rgb.tif", 3) == 0
    assert compare(store, "scene_rgb", BANEPA / "scene_buildings.tif", 1, "label") == 0
    assert store.sources["label"].classes == (0, 1)
    store.verify()
    split = store.split(SplitConfig())
    assert min(len(split.train), len(split.validation), len(split.test)) >= 16
    assert split.dropped == 0


def test_footprints_as_vectors_agree_with_their_raster(towns):
    raster, vector = (towns[name].read("label", range(160)) for name in ("raster", "vector"))
    differ = int((raster != vector).sum())
    union = int((raster | vector).sum())
    print(f"{differ} of {raster.size} pixels differ; intersection over union {1 - differ / union}")
    assert raster.mean() == pytest.approx(0.454, abs=0.001)
    assert differ <= 1e-5 * raster.size


def test_the_chips_have_no_coordinates(tmp_path):
    images = tuple(map(str, sorted((BANEPA / "images").glob("*.tif"))))
    labels = tuple(map(str, sorted((BANEPA / "masks").glob("*.png"))))
    config = TilingConfig(images=images, labels=labels, to=tmp_path / "store", size=256)
    with pytest.raises(InputError, match=r"OAM-386690-220241-19.tif has no CRS"):
        tile(config)
    asked = TilingConfig(**{**vars(config), "ungeoreferenced": True})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        store = tile(asked)
    assert not [w for w in caught if w.category is rasterio.errors.NotGeoreferencedWarning]
    assert (len(store), len(store.scenes)) == (160, 40)
    assert store.sources["label"].classes == (0, 255)
    assert {scene.crs for scene in store.scenes.values()} == {None}
    for image, label in list(zip(images, labels, strict=True))[::7]:
        assert compare(store, Path(image).stem, Path(image), 3) == 0
        assert compare(store, Path(image).stem, Path(label), 1, "label") == 0
