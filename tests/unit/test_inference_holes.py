"""Whole scenes with holes: only holes are filled, and the files say where."""

import os
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.transform import from_origin
from torch import nn

from ganlab import inference
from ganlab.config import ApplyConfig, Pix2PixConfig
from ganlab.data.scenes import Grid, Scene
from ganlab.errors import InputError
from ganlab.inference import apply, generate_scene
from ganlab.tasks.pix2pix import Pix2Pix

CRS = rasterio.crs.CRS.from_epsg(32633)
PLACE = from_origin(500_000, 5_000_000, 10, 10)
SHAPE = 60, 76
HIGH = {"uint8": 255, "uint16": 9000, "int16": 4000, "float32": 1}


class Paint(nn.Module):
    """A network that paints one value for each band everywhere, and counts its windows."""

    def __init__(self, *levels):
        super().__init__()
        self.levels = nn.Parameter(torch.tensor(levels).view(1, -1, 1, 1))
        self.seen = []

    def forward(self, image, hole, noise=None):
        self.seen += [(tuple(image.shape[2:]), float(h.mean())) for h in hole]
        return self.levels.expand(len(image), image.shape[1], *image.shape[2:]).clone()


def painter(hole_task, *args, levels=(0.5,), **options):
    task = hole_task(*args, **options)
    task.generator = Paint(*levels)
    return task.eval()


def painted(task, dtype=None):
    """What ``Paint`` puts into a hole, in stored units: ``(C, 1, 1)``."""
    scaling = task.image.scaling
    levels = task.generator.levels.expand(1, task.image.channels, 1, 1)
    return scaling.decode(levels, dtype or task.image.source.dtype)[0]


def raster(path, array, crs=CRS, transform=PLACE, valid=None, alpha=None, **options):
    array = np.asarray(array)
    array = array[None] if array.ndim == 2 else array
    if alpha is not None:
        array = np.concatenate([array, alpha[None].astype(array.dtype) * 255])
    count, height, width = array.shape
    profile = {"driver": "GTiff", "width": width, "height": height, "count": count}
    profile |= {"dtype": array.dtype, "crs": crs, "transform": transform}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with (
            rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
            rasterio.open(path, "w", photometric="minisblack", **profile | options) as file,
        ):
            if alpha is not None:
                plain = [ColorInterp.undefined] * (count - 1)
                file.colorinterp = [*plain, ColorInterp.alpha]
            file.write(array)
            if valid is not None:
                file.write_mask(valid)
    return str(path)


def noise(bands=3, dtype="uint8", shape=SHAPE, seed=0):
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.uniform(-0.25, 1.5, (bands, *shape)).astype(dtype)
    return rng.integers(1, HIGH[dtype], (bands, *shape)).astype(dtype)


def gap(shape=SHAPE):
    """A hole at a corner, one within, and a lonely pixel."""
    hole = np.zeros(shape, bool)
    hole[:17, 50:] = hole[30:44, 5:30] = hole[-1, 0] = True
    return hole


@pytest.fixture
def run_of(monkeypatch):
    """Let ``apply`` find a given task in place of a trained one."""

    def use(task):
        monkeypatch.setattr(inference, "load_task", lambda *_, **__: task.eval())
        return task

    return use


def applied(folder, scene, **options):
    """What ``apply`` wrote, read by rasterio alone: (pixels, valid, invented, profile)."""
    options = {"window": 32, "overlap": 8} | options
    config = ApplyConfig(Path("run"), str(scene), Path(folder) / "out" / "made.tif", **options)
    paths = apply(config)
    assert [path.name for path in paths] == ["made.tif", "made-invented.tif"]
    assert sorted(p.name for p in paths[0].parent.iterdir()) == ["made-invented.tif", "made.tif"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(paths[0]) as made, rasterio.open(paths[1]) as invented:
            assert (invented.count, invented.dtypes) == (1, ("uint8",))
            assert invented.descriptions == ("invented",)
            assert invented.nodata is None
            assert (invented.crs, invented.transform) == (made.crs, made.transform)
            assert invented.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
            flags = invented.read(1)
            assert set(np.unique(flags)) <= {0, 1}
            return made.read(), made.dataset_mask() > 0, flags == 1, made.profile


def same_bits(one, other):
    return one.dtype == other.dtype and one.tobytes() == other.tobytes()


# Where a scene itself says that pixels are missing


def missing_ground(path, how, array, hole):
    """A scene whose holes are told in one of the ways that GeoTIFFs know."""
    kind = array.dtype.kind
    if how == "alpha":
        return raster(path, array, alpha=~hole)
    if how == "mask":
        return raster(path, array, valid=~hole)
    value = {"nodata": -7 if kind in "if" else 7, "nan": np.nan, "largest": 255}[how]
    return raster(path, np.where(hole, np.asarray(value, array.dtype), array), nodata=value)


WAYS = [("nodata", d) for d in ("uint8", "uint16", "int16", "float32")]
WAYS += [("alpha", "uint8"), ("mask", "uint8"), ("mask", "float32"), ("nan", "float32")]


ALL = [(*way, bands) for way in WAYS for bands in (1, 3, 4, 13)]
# GDAL knows alpha in files of two and four bands only.
ALL = [(how, dtype, bands) for how, dtype, bands in ALL if how != "alpha" or bands < 4]


@pytest.mark.parametrize(("how", "dtype", "bands"), ALL)
def test_missing_ground_is_filled(tmp_path, run_of, hole_task, how, dtype, bands):
    task = run_of(painter(hole_task, bands=bands, dtype=dtype))
    array, hole = noise(bands, dtype), gap()
    array[array == 7] = 8  # only holes hold the nodata value
    scene = missing_ground(tmp_path / "in.tif", how, array, hole)
    got, valid, invented, profile = applied(tmp_path, scene)
    assert valid.all()
    assert np.array_equal(invented, hole)
    assert same_bits(got[:, ~hole], array[:, ~hole])
    assert np.array_equal(got[:, hole], np.broadcast_to(painted(task)[..., 0], (bands, hole.sum())))
    with rasterio.open(scene) as file:
        assert repr(profile["nodata"]) == repr(file.nodata)
        assert (profile["crs"], profile["transform"]) == (file.crs, file.transform)
        assert profile["dtype"] == file.dtypes[0]


@pytest.mark.parametrize("kind", ["inpainting", "two_stage"])
@pytest.mark.parametrize("window", [16, 32, 10**4])
def test_networks_fill_what_is_missing(tmp_path, run_of, hole_task, kind, window):
    run_of(hole_task(kind, 4, "uint16"))
    array, hole = noise(4, "uint16"), gap()
    array[array == 7] = 8
    scene = missing_ground(tmp_path / "in.tif", "nodata", array, hole)
    got, valid, invented, _ = applied(tmp_path, scene, window=window)
    assert valid.all()
    assert np.array_equal(invented, hole)
    assert same_bits(got[:, ~hole], array[:, ~hole])
    assert got[:, hole].std() > 1
    assert (got[:, hole] != 7).all()


def test_what_stands_in_the_holes_is_never_seen(tmp_path, run_of, hole_task):
    """Clouds, nodata values, NaN: the filled scene is the same."""
    run_of(hole_task("two_stage", 3, "float32"))
    array, hole = noise(3, "float32"), gap()
    mask, found = raster(tmp_path / "mask.tif", hole.astype(np.uint8)), []
    for value in (0.3, 1e30, np.nan):
        seen = np.where(hole, np.float32(value), array)
        scene = raster(tmp_path / "in.tif", seen)
        with warnings.catch_warnings():
            warnings.simplefilter(
                "error", UserWarning
            )  # clouds are unlike the training, and no matter
            found.append(applied(tmp_path, scene, mask=mask, overwrite=True)[0])
    assert same_bits(found[0], found[1])
    assert same_bits(found[0], found[2])


ODD = np.array([-0.0, 0.0, 1e-44, 1e30, -1.5, 16777217, np.pi], "f4")


def test_floats_keep_every_bit(tmp_path, run_of, hole_task):
    run_of(painter(hole_task, bands=1, dtype="float32"))
    array, hole = noise(1, "float32"), gap()
    array[0, 20, : len(ODD)] = ODD
    scene = raster(tmp_path / "in.tif", np.where(hole, np.float32(np.nan), array))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got, valid, _, profile = applied(tmp_path, scene)
    assert same_bits(got[:, ~hole], array[:, ~hole])
    assert valid.all()
    assert profile["nodata"] is None


@pytest.mark.parametrize(
    ("trained", "stored"),
    [("uint8", "uint16"), ("uint16", "uint8"), ("int16", "int32"), ("uint16", "uint32"),
     ("float32", "float64")],
)  # fmt: skip
def test_a_scene_of_another_type_keeps_its_own(tmp_path, run_of, hole_task, trained, stored):
    task = run_of(painter(hole_task, bands=3, dtype=trained, levels=(0.9,)))
    rng = np.random.default_rng(0)
    array, hole = rng.integers(1, 250, (3, *SHAPE)).astype(stored), gap()
    if stored == "float64":
        array = array + rng.random(array.shape)
    elif stored != "uint8":
        array[:, 0, :2] = np.iinfo(stored).max, np.iinfo(stored).max - 1
    scene = raster(tmp_path / "in.tif", array, valid=~hole)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got, valid, _, profile = applied(tmp_path, scene)
    assert profile["dtype"] == stored
    assert same_bits(got[:, ~hole], array[:, ~hole])
    expected = painted(task, stored)
    if (trained, stored) == ("uint16", "uint8"):
        assert (expected == 255).all()  # saturated, not wrapped around
    assert np.array_equal(got[:, hole], np.broadcast_to(expected[..., 0], (3, hole.sum())))
    assert valid.all()


@pytest.mark.parametrize("declared", [None, 0.0, 255.0])
@pytest.mark.parametrize("trained", [None, 0.0, 255.0, -9999.0])
def test_nodata_is_the_scenes_own(tmp_path, run_of, hole_task, declared, trained):
    """What the scenes of the training declared is never applied to another scene."""
    task = run_of(painter(hole_task, nodata=trained))
    array, hole = noise(), gap()
    value = 0 if declared is None else declared
    if declared is None and trained is not None:
        value = np.clip(trained, 0, 255)
    array[:, hole] = value
    array[0, 25, :5] = value  # one dark band is no hole
    scene = raster(tmp_path / "in.tif", array, nodata=declared)
    expected = hole if declared is not None else np.zeros_like(hole)
    with warnings.catch_warnings():
        warnings.simplefilter("error" if expected.any() else "ignore", UserWarning)
        got, valid, invented, profile = applied(tmp_path, scene)
    assert valid.all()
    assert np.array_equal(invented, expected)
    assert same_bits(got[:, ~expected], array[:, ~expected])
    assert (got[:, expected] == painted(task)[..., 0]).all()
    assert profile["nodata"] == declared


@pytest.mark.parametrize(("level", "nodata", "moved"), [(-1.0, 0, 1), (1.0, 255, 254)])
def test_made_pixels_never_read_as_missing(tmp_path, run_of, hole_task, level, nodata, moved):
    """They move by one step; known pixels of which one band is nodata do not."""
    run_of(painter(hole_task, levels=(level,)))
    array, hole = noise(), gap()
    array[:, hole] = nodata
    array[1, 20:28, 40:] = nodata
    scene = raster(tmp_path / "in.tif", array, nodata=nodata)
    got, valid, _, _ = applied(tmp_path, scene)
    assert valid.all()
    assert same_bits(got[:, ~hole], array[:, ~hole])
    assert (got[:, hole] == moved).all()


def test_a_scene_without_a_hole_stays_as_it_is(tmp_path, run_of, hole_task):
    task = run_of(painter(hole_task))
    array = noise()
    scene = raster(tmp_path / "in.tif", array, nodata=0)
    empty = raster(tmp_path / "mask.tif", np.zeros(SHAPE, np.uint8))
    for mask in (None, empty):
        with pytest.warns(UserWarning, match=r"in\.tif has no hole to fill") as said:
            got, valid, invented, profile = applied(tmp_path, scene, mask=mask, overwrite=True)
        assert len([w for w in said if w.category is UserWarning]) == 1
        assert same_bits(got, array)
        assert valid.all()
        assert not invented.any()
        assert profile["nodata"] == 0
    assert task.generator.seen == []


# Where a mask says so


MEANINGS = {
    "zero or one": (np.uint8(1), np.uint8(0), {}, {}),
    "zero or 255": (np.uint8(255), np.uint8(0), {}, {}),
    "float": (np.float32(1), np.float32(0), {}, {}),
    "floats beside NaN": (np.float32(1), np.float32(np.nan), {}, {}),
    "nodata is no hole": (np.uint8(1), np.uint8(9), {"nodata": 9}, {}),
    "classes": (np.uint8(192), np.uint8(128), {}, {"classes": (192, 255)}),
    "zero is a class": (np.int16(0), np.int16(3), {}, {"classes": (0,)}),
    "landsat_pre": (np.uint16(0b11 << 14), np.uint16(0b0111_1100_0000_0100), {}, {}),
    "landsat_c1": (np.uint16(1 << 4), np.uint16(0b0001_1010_1010_1110), {}, {}),
    "shadow in landsat_c1": (np.uint16(3 << 7), np.uint16(0), {}, {"read_as": "landsat_c1"}),
    "landsat_c2": (np.uint16(1 << 3), np.uint16(0b1110_0001_1110_0010), {}, {}),
    "shadow in landsat_c2": (np.uint16(1 << 4), np.uint16(0), {}, {"read_as": "landsat_c2"}),
}


@pytest.mark.parametrize("how", MEANINGS)
def test_masks_of_all_meanings(tmp_path, run_of, hole_task, how):
    value, other, written, asked = MEANINGS[how]
    asked = asked or ({"read_as": how} if how.startswith("landsat") else {})
    task = run_of(painter(hole_task))
    array, hole = noise(), gap()
    mask = raster(tmp_path / "mask.tif", np.where(hole, value, other), **written)
    scene = raster(tmp_path / "in.tif", array)
    got, valid, invented, _ = applied(tmp_path, scene, mask=mask, **asked)
    assert np.array_equal(invented, hole)
    assert valid.all()
    assert same_bits(got[:, ~hole], array[:, ~hole])
    assert (got[:, hole] == painted(task)[..., 0]).all()


@pytest.mark.parametrize("how", ["nodata", "alpha", "mask"])
def test_missing_ground_that_is_not_asked_for_stays_missing(tmp_path, run_of, hole_task, how):
    task = run_of(painter(hole_task))
    array, lost = noise(), gap()
    asked = np.zeros(SHAPE, bool)
    asked[10:36, 20:60] = True  # of missing ground and of measured
    array[array == 7] = 8
    scene = missing_ground(tmp_path / "in.tif", how, array, lost)
    mask = raster(tmp_path / "mask.tif", asked.astype(np.uint8))
    assert (asked & lost).any()
    assert (lost & ~asked).any()
    got, valid, invented, profile = applied(tmp_path, scene, mask=mask)
    assert np.array_equal(invented, asked)
    assert np.array_equal(valid, asked | ~lost)
    known = ~asked & ~lost
    assert same_bits(got[:, known], array[:, known])
    assert (got[:, asked] == painted(task)[..., 0]).all()
    if how == "nodata":
        assert (got[:, lost & ~asked] == 7).all()
    assert profile["nodata"] == (7 if how == "nodata" else None)


def test_without_coordinates(tmp_path, run_of, hole_task):
    run_of(painter(hole_task))
    array, hole = noise(), gap()
    nowhere = {"crs": None, "transform": rasterio.Affine.identity()}
    scene = raster(tmp_path / "in.tif", array, **nowhere)
    mask = raster(tmp_path / "mask.tif", hole.astype(np.uint8), **nowhere)
    with pytest.raises(InputError, match=r"in\.tif has no CRS"):
        applied(tmp_path, scene, mask=mask)
    _, _, invented, _ = applied(tmp_path, scene, mask=mask, ungeoreferenced=True)
    assert np.array_equal(invented, hole)
    other = raster(tmp_path / "other.tif", hole[1:].astype(np.uint8), **nowhere)
    with pytest.raises(InputError, match=r"other\.tif has 76 x 59 pixels, not 76 x 60"):
        applied(tmp_path, scene, mask=other, ungeoreferenced=True, overwrite=True)


WRONG = {
    "shifted": ({"transform": from_origin(500_003, 5_000_000, 10, 10)},
                r"mask\.tif is not on the grid of .*in\.tif: transform .* Repair: gdalwarp .*"
                r"-r near .*mask\.tif .*mask-warped\.tif"),
    "coarse": ({"array": np.zeros((30, 38), np.uint8), "transform": from_origin(5e5, 5e6, 20, 20)},
               r"38 x 30 pixels, not 76 x 60.*gdalwarp"),
    "other CRS": ({"crs": "EPSG:32634"}, r"CRS EPSG:32634, not EPSG:32633.*gdalwarp"),
    "two bands": ({"array": np.zeros((2, *SHAPE), np.uint8)},
                  r"mask\.tif has 2 bands; a mask has one"),
    "classes": ({"array": np.uint8(64 * (1 + gap())) + np.uint8(np.arange(76) > 70)},
                r"mask\.tif: .*nonzero holds [45] values, .*expected 0 and one other.*--classes"),
    "no zero": ({"array": np.where(gap(), np.uint8(255), np.uint8(128))},
                r"mask\.tif: .*nonzero holds 3 values, \[0, 128, 255\]"),
    "no bits": ({"array": gap().astype(np.float32), "read_as": "landsat_c2"},
                r"mask\.tif: .*landsat_c2 holds float32"),
    "too many bits": ({"array": gap().astype(np.int32) << 20, "read_as": "landsat_pre"},
                      r"mask\.tif: .*landsat_pre holds int32"),
    "no file": ({"array": None}, r"mask\.tif cannot be opened"),
}  # fmt: skip


def left(folder):
    return sorted(path.name for path in Path(folder).rglob("*") if path.is_file())


@pytest.mark.parametrize("how", WRONG)
def test_masks_that_do_not_fit(tmp_path, run_of, hole_task, how):
    options, match = WRONG[how]
    options = {"array": gap().astype(np.uint8)} | options
    array, reading = options.pop("array"), options.pop("read_as", "nonzero")
    run_of(painter(hole_task))
    scene, mask = raster(tmp_path / "in.tif", noise()), tmp_path / "mask.tif"
    if array is not None:
        raster(mask, array, **options)
    before = left(tmp_path)
    with pytest.raises(InputError, match=match) as caught:
        applied(tmp_path, scene, mask=str(mask), read_as=reading)
    assert "\n" not in str(caught.value)
    assert left(tmp_path) == before


def test_values_that_differ_far_apart_are_found_before_anything_is_made(
    tmp_path, run_of, hole_task, monkeypatch
):
    """No window meets three values; the whole mask does."""
    monkeypatch.setattr(inference, "STRIP", 16)
    task = run_of(painter(hole_task))
    values = np.zeros(SHAPE, np.uint8)
    values[2, 2], values[-2, -2] = 1, 2
    scene, mask = raster(tmp_path / "in.tif", noise()), raster(tmp_path / "mask.tif", values)
    with pytest.raises(InputError, match=r"nonzero holds 3 values, \[0, 1, 2\]"):
        applied(tmp_path, scene, mask=mask, window=16, overlap=0)
    assert task.generator.seen == []
    assert left(tmp_path) == ["in.tif", "mask.tif"]


def test_options_that_need_others(tmp_path, run_of, hole_task):
    run_of(painter(hole_task))
    scene, mask = raster(tmp_path / "in.tif", noise()), raster(tmp_path / "m.tif", np.uint8(gap()))
    for options in ({"read_as": "landsat_c1"}, {"classes": (3,)}):
        with pytest.raises(InputError, match="--read-as and --classes say what .*--mask"):
            applied(tmp_path, scene, **options)
    task = hole_task()
    run_of(Pix2Pix(Pix2PixConfig("image", "image"), task.spec))
    with pytest.raises(InputError, match=r"--mask .*m\.tif: this model fills no holes"):
        applied(tmp_path, scene, mask=mask)
    assert left(tmp_path) == ["in.tif", "m.tif"]


def test_nothing_that_is_read_is_written_over(tmp_path, run_of, hole_task):
    run_of(painter(hole_task))
    bands = [raster(tmp_path / f"in_B{i}.tif", noise(1, seed=i)) for i in (1, 2, 3)]
    mask = raster(tmp_path / "made-invented.tif", np.uint8(gap()))
    config = ApplyConfig(Path("run"), ",".join(bands), tmp_path / "x.tif", mask=mask)
    config = replace(config, overwrite=True)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for name in ("in_B1.tif", "in_B3.tif", "made-invented.tif", "made.tif"):
        with pytest.raises(InputError, match="is a folder or the scene itself, or its mask"):
            apply(replace(config, to=tmp_path / name))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    (made, _) = apply(config)
    with rasterio.open(made) as file:
        assert file.descriptions == ("B1", "B2", "B3") or file.count == 3


# Windows


def test_windows_without_a_hole_are_not_run(tmp_path, run_of, hole_task):
    task = run_of(painter(hole_task))
    hole, done = np.zeros(SHAPE, bool), []
    hole[3, 3] = hole[40, 70] = True
    scene = raster(tmp_path / "in.tif", noise(), valid=~hole)
    config = ApplyConfig(Path("run"), scene, tmp_path / "m.tif", window=20, overlap=4)
    apply(config, progress=lambda *at: done.append(at))
    assert done[-1][0] == done[-1][1] >= 16
    assert len(task.generator.seen) == 2
    for (height, width), share in task.generator.seen:
        assert share == pytest.approx(1 / (height * width))


def test_holes_wider_than_a_window_are_filled(tmp_path, run_of, hole_task):
    task = run_of(painter(hole_task))
    hole = np.zeros(SHAPE, bool)
    hole[4:58, 6:70] = True
    array = noise()
    scene = raster(tmp_path / "in.tif", array, valid=~hole)
    got, valid, invented, _ = applied(tmp_path, scene, window=16, overlap=4)
    assert valid.all()
    assert np.array_equal(invented, hole)
    assert (got[:, hole] == painted(task)[..., 0]).all()
    assert same_bits(got[:, ~hole], array[:, ~hole])
    assert 1.0 in {share for _, share in task.generator.seen}


@pytest.mark.parametrize("kind", ["inpainting", "two_stage"])
@pytest.mark.parametrize("fill", ["constant", "mean", "harmonic"])
def test_a_scene_that_is_nothing_but_hole(tmp_path, run_of, hole_task, kind, fill):
    run_of(hole_task(kind, fill=fill))
    scene = raster(tmp_path / "in.tif", np.zeros((3, *SHAPE), np.uint8), nodata=0)
    got, valid, invented, _ = applied(tmp_path, scene)
    assert valid.all()
    assert invented.all()
    assert np.isfinite(got).all()


class Held(Scene):
    """A scene in memory."""

    def __init__(self, array, valid):
        grid = Grid(CRS, PLACE, array.shape[2], array.shape[1])
        bands = tuple(map(str, range(len(array))))
        super().__init__("held", "held", grid, array.dtype.name, bands, None)
        object.__setattr__(self, "pixels", (array, valid))

    def read(self, window):
        rows, columns = window.toslices()
        return self.pixels[0][:, rows, columns].copy(), self.pixels[1][rows, columns].copy()


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    window=st.integers(1, 40),
    overlap=st.integers(0, 24),
    batch_size=st.integers(1, 4),
    swath=st.sampled_from([1, 30, 10**6]),
    masked=st.booleans(),
    share=st.sampled_from([0.0, 0.003, 0.3, 1.0]),
    seed=st.integers(0, 99),
)
def test_no_window_leaves_a_trace(
    hole_task, shape, window, overlap, batch_size, swath, masked, share, seed
):
    rng = np.random.default_rng(seed)
    array = noise(3, shape=shape, seed=seed)
    valid, mask = (rng.random(shape) >= share for _ in range(2))
    task = painter(hole_task, levels=(-0.5, 0.0, 0.7))
    options = {"window": window, "overlap": overlap, "batch_size": batch_size}
    if masked:
        options["holes"] = lambda at, _: ~mask[at.toslices()]
    hole = ~mask if masked else ~valid
    made, seen = np.zeros_like(array), np.zeros(shape, int)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("error" if hole.any() else "ignore", UserWarning)
        patch.setattr(inference, "SWATH", swath)
        for block, filled, stored in generate_scene(task, Held(array, valid), **options):
            at = block.toslices()
            made[:, *at] = stored["image"]
            seen[at] += 1
            assert np.array_equal(filled, (valid | hole)[at])
            assert np.array_equal(stored["invented"][0] > 0, hole[at])
    assert (seen == 1).all()
    assert np.array_equal(made[:, ~hole], array[:, ~hole])
    assert np.array_equal(made[:, hole], np.broadcast_to(painted(task)[..., 0], (3, hole.sum())))


# What goes wrong on the way


def test_a_mask_that_is_cut_short(tmp_path, run_of, hole_task):
    run_of(painter(hole_task))
    scene = raster(tmp_path / "in.tif", noise(3, shape=(600, 600)))
    rng = np.random.default_rng(0)
    mask = raster(tmp_path / "mask.tif", rng.integers(0, 2, (600, 600), np.uint8), tiled=True)
    data = Path(mask).read_bytes()
    Path(mask).write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"mask\.tif cannot be (read|opened)"):
        applied(tmp_path, scene, mask=mask, window=128)
    assert left(tmp_path) == ["in.tif", "mask.tif"]


def test_values_that_are_not_finite(tmp_path, run_of, hole_task):
    run_of(painter(hole_task, levels=(float("nan"),)))
    scene = raster(tmp_path / "in.tif", noise(), valid=~gap())
    with pytest.raises(InputError, match="not finite"):
        applied(tmp_path, scene)
    assert left(tmp_path) == ["in.tif"]


@pytest.mark.parametrize("when", ["write", "replace"])
def test_a_full_disk_leaves_what_stood_there(tmp_path, run_of, hole_task, monkeypatch, when):
    run_of(painter(hole_task))
    scene = raster(tmp_path / "in.tif", noise(), valid=~gap())
    applied(tmp_path, scene)
    out = tmp_path / "out"
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    calls = []

    def full(*arguments, **_):
        calls.append(arguments)
        raise OSError(28, "No space left on device")

    place = (inference.Output, "write") if when == "write" else (os, "replace")
    monkeypatch.setattr(*place, full)
    with pytest.raises(InputError, match=r"made\.tif cannot be written"):
        applied(tmp_path, scene, overwrite=True)
    assert calls
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_clouds_are_no_reason_to_warn(tmp_path, run_of, hole_task):
    """A third of the scene is far brighter than the training, and is to be filled."""
    run_of(painter(hole_task, bands=1, dtype="int16"))
    array, bright = noise(1, "int16"), np.zeros(SHAPE, bool)
    bright[:, :25] = True
    array[:, bright] = 30000
    scene = raster(tmp_path / "in.tif", array)
    mask = raster(tmp_path / "mask.tif", bright.astype(np.uint8))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        applied(tmp_path, scene, mask=mask)
    other = raster(tmp_path / "other.tif", np.roll(bright, 40, 1).astype(np.uint8))
    with pytest.warns(UserWarning, match="far outside"):
        applied(tmp_path, scene, mask=other, overwrite=True)


class PaintNoise(Paint):
    """A network that paints the noise that it is given."""

    def forward(self, image, hole, noise=None):
        return noise


def test_noise_belongs_to_its_place_whatever_the_windows(hole_task):
    """Each of the two makes what the whole scene in one window makes."""
    task = painter(hole_task)
    task.noise, task.generator = True, PaintNoise(0.0)
    array, valid = np.zeros((3, 50, 70), np.float32), np.zeros((50, 70), bool)

    def made(**options):
        image = np.zeros_like(array)
        for block, _, stored in generate_scene(task, Held(array, valid), **options):
            image[:, *block.toslices()] = stored["image"]
        return image

    whole = made(window=128, seed=5)
    assert whole.std() > 0.5
    for window, overlap in ((16, 8), (32, 4)):
        np.testing.assert_allclose(
            made(window=window, overlap=overlap, seed=5), whole, rtol=1e-4, atol=1e-3
        )
    assert np.abs(made(window=128, seed=6) - whole).mean() > 0.5


def test_noise_differs_from_hole_to_hole_and_follows_the_seed(tmp_path, run_of, hole_task):
    run_of(hole_task(noise=True, bands=1, dtype="float32"))
    hole = np.zeros((64, 128), bool)
    hole[24:40, 24:40] = hole[24:40, 88:104] = True
    scene = raster(tmp_path / "in.tif", np.full((1, 64, 128), 0.5, "f4"), valid=~hole)

    def made(seed):
        options = {"window": 64, "overlap": 0, "overwrite": True}
        return applied(tmp_path, scene, seed=seed, **options)[0]

    one = made(1)
    assert same_bits(made(1), one)
    assert (made(2) != one)[:, hole].mean() > 0.5
    assert (one[:, :, :64] != one[:, :, 64:])[:, hole[:, :64]].mean() > 0.5


def test_the_mask_flags_of_a_filled_scene(tmp_path, run_of, hole_task):
    """Nothing is left to hide, so the file hides nothing."""
    run_of(painter(hole_task))
    scene = raster(tmp_path / "in.tif", noise(), valid=~gap())
    (made, _) = apply(ApplyConfig(Path("run"), scene, tmp_path / "made.tif"))
    with rasterio.open(made) as file:
        assert file.mask_flag_enums == ([MaskFlags.all_valid],) * 3
        assert file.descriptions == ("red", "green", "blue")
