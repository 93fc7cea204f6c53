"""Tiling: every byte accounted for, every error named, nothing left behind."""

import csv
import errno
import json
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.transform import from_origin
from rasterio.windows import Window
from rasterio.windows import transform as window_transform

from ganlab.config import TilingConfig
from ganlab.data import tiling
from ganlab.data.store import TileStore
from ganlab.data.tiling import tile
from ganlab.errors import InputError

NORTH_UP = from_origin(500_000, 5_000_000, 2, 2)
RNG = np.random.default_rng(11)
IMAGE = RNG.integers(1, 255, (3, 50, 70), np.uint8)
LABEL = RNG.integers(0, 3, (1, 50, 70), np.uint8)


def write(path, array, crs="EPSG:32633", transform=NORTH_UP, **options):
    array = np.asarray(array)
    count, height, width = array.shape
    profile = {"driver": "GTiff", "width": width, "height": height, "count": count}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(
            path, "w", **profile, dtype=array.dtype, crs=crs, transform=transform, **options
        ) as file:
            file.write(array)
    return str(path)


@pytest.fixture
def pair(tmp_path):
    return {
        "images": (write(tmp_path / "a.tif", IMAGE),),
        "labels": (write(tmp_path / "a-label.tif", LABEL),),
        "to": tmp_path / "store",
        "size": 16,
    }


def nothing_left(folder):
    return not [p for p in Path(folder).iterdir() if "store" in p.name]


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


# --- what is in a store --------------------------------------------------------------------


@pytest.mark.parametrize("edges", ["shift", "pad", "drop"])
@pytest.mark.parametrize("stride", [None, 11])
def test_tiles_reassemble_to_the_scene(pair, edges, stride):
    store = tile(TilingConfig(**pair, edges=edges, stride=stride, minimum_valid=0))
    store.verify()
    image, label, valid = (store.read(s, range(len(store))) for s in ("image", "label", "valid"))
    assert (image.shape[1:], image.dtype) == ((3, 16, 16), np.uint8)
    back = np.zeros((4, 50 + 16, 70 + 16), np.uint8)
    seen = np.zeros(back.shape[1:], np.uint8)
    for t in store.tiles:
        at = (slice(t.row, t.row + t.height), slice(t.column, t.column + t.width))
        back[(slice(0, 3), *at)] = image[t.tile]
        back[(slice(3, 4), *at)] = label[t.tile]
        seen[at] = np.maximum(seen[at], valid[t.tile, 0])
        window = Window(t.column, t.row, t.width, t.height)
        assert t.transform == pytest.approx(tuple(window_transform(window, NORTH_UP))[:6])
        assert t.valid_fraction == valid[t.tile].mean()
    height, width = (50, 70) if edges != "drop" else ((48, 64) if stride is None else (49, 60))
    np.testing.assert_array_equal(back[:3, :height, :width], IMAGE[:, :height, :width])
    np.testing.assert_array_equal(back[3:, :height, :width], LABEL[:, :height, :width])
    assert seen[:height, :width].all()
    assert seen.sum() == height * width


def test_the_head_of_a_store(pair):
    store = tile(TilingConfig(**pair, groups=("Ulm",)))
    assert store.size == 16
    assert store.sources["image"].bands == ("red", "green", "blue")
    assert store.sources["label"].classes == (0, 1, 2)
    assert {t.group for t in store.tiles} == {"Ulm"}
    scene = store.scenes["a"]
    assert (scene.crs, scene.width, scene.height, scene.group) == ("EPSG:32633", 70, 50, "Ulm")
    assert scene.transform == tuple(NORTH_UP)[:6]
    text = (store.path / "store.json").read_text()
    assert str(store.path.parent) not in text
    assert json.loads(text)["tiling"]["edges"] == "shift"
    with open(store.path / "index.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == len(store)


@settings(max_examples=25)
@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(1, 12), st.integers(1, 14),
    st.sampled_from(["shift", "pad", "drop"]), st.sampled_from(["uint8", "uint16", "float32"]),
)  # fmt: skip
def test_any_geometry(tmp_path_factory, width, height, size, stride, edges, dtype):
    folder = tmp_path_factory.mktemp("any")
    array = np.arange(width * height).reshape(1, height, width).astype(dtype)
    config = TilingConfig(
        images=(write(folder / "a.tif", array),), to=folder / "store", size=size, stride=stride,
        edges=edges, minimum_valid=0.0,
    )  # fmt: skip
    if edges != "pad" and min(width, height) < size:
        with pytest.raises(InputError, match=r"a.tif: .* are less than a tile of"):
            tile(config)
        return
    store = tile(config)
    padded = np.pad(array, ((0, 0), (0, size), (0, size)))
    for t in store.tiles:
        expected = padded[:, t.row : t.row + size, t.column : t.column + size]
        np.testing.assert_array_equal(store.read("image", [t.tile])[0], expected)


def test_several_scenes_and_names(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "y").mkdir()
    images = (write(tmp_path / "x/a.tif", IMAGE), write(tmp_path / "y/a.tif", IMAGE[:, 2:]))
    store = tile(TilingConfig(images=images, to=tmp_path / "store", size=16, edges="drop"))
    assert list(store.scenes) == ["x-a", "y-a"]
    assert [t.scene for t in store.tiles].count("y-a") == 12
    second = next(t for t in store.tiles if t.scene == "y-a")
    np.testing.assert_array_equal(store.read("image", [second.tile])[0], IMAGE[:, 2:18, :16])
    with pytest.raises(InputError, match="several scenes are called x-a"):
        tile(TilingConfig(images=(images[0], images[0]), to=tmp_path / "other", size=16))


def test_tiles_with_few_valid_pixels_are_left_out(pair, tmp_path):
    array = IMAGE.copy()
    array[:, :, :24] = 0
    pair["images"] = (write(tmp_path / "b.tif", array, nodata=0),)
    half = tile(TilingConfig(**pair, edges="drop", minimum_valid=0.5))
    assert {(t.column, t.valid_fraction) for t in half.tiles} == {(16, 0.5), (32, 1.0), (48, 1.0)}
    more = tile(
        TilingConfig(**pair | {"to": tmp_path / "store2"}, edges="drop", minimum_valid=0.51)
    )
    assert {t.column for t in more.tiles} == {32, 48}
    assert more.sources["image"].nodata == 0
    pair["to"] = tmp_path / "store3"
    assert 0 not in {t.column for t in tile(TilingConfig(**pair, minimum_valid=0)).tiles}


def test_every_source_must_be_valid(tmp_path, pair):
    image, label = IMAGE.copy(), LABEL.copy()
    image[:, 0, 0], label[0, 0, 1] = 0, 255
    pair["images"] = (write(tmp_path / "b.tif", image, nodata=0),)
    pair["labels"] = (write(tmp_path / "c.tif", label, nodata=255),)
    store = tile(TilingConfig(**pair))
    assert np.argwhere(store.read("valid", [0])[0, 0] == 0).tolist() == [[0, 0], [0, 1]]
    assert store.sources["label"].classes == (0, 1, 2)  # 255 is no class: it is never valid
    assert store.read("label", [0])[0, 0, 0, 1] == 255


def test_vector_labels_become_tiles(tmp_path, pair):
    square = [
        [500_010, 4_999_990],
        [500_050, 4_999_990],
        [500_050, 4_999_940],
        [500_010, 4_999_940],
    ]
    feature = {"type": "Feature", "properties": {"kind": 2}}
    feature["geometry"] = {"type": "Polygon", "coordinates": [[*square, square[0]]]}
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32633"}}
    (tmp_path / "a.geojson").write_text(
        json.dumps({"type": "FeatureCollection", "crs": crs, "features": [feature]})
    )
    pair["labels"] = (str(tmp_path / "a.geojson"),)
    store = tile(TilingConfig(**pair, attribute="kind", edges="pad", minimum_valid=0))
    assert store.sources["label"].classes == (0, 2)
    expected = np.zeros((80, 80), np.uint8)
    expected[5:30, 5:25] = 2
    for t in store.tiles:
        part = expected[t.row : t.row + 16, t.column : t.column + 16]
        np.testing.assert_array_equal(store.read("label", [t.tile])[0, 0], part)


# --- scaling -------------------------------------------------------------------------------


def test_half_size_is_the_mean_of_four_valid_pixels(tmp_path):
    array = np.array(
        [[10, 20, 0, 8], [30, 41, 0, 0], [0, 7, 1, 1], [0, 9, 1, 2]], np.uint8
    )[None]  # fmt: skip
    label = np.array([[1, 1, 2, 3], [2, 1, 3, 2], [0, 5, 4, 4], [5, 0, 4, 4]], np.uint8)[None]
    config = TilingConfig(
        images=(write(tmp_path / "a.tif", array, nodata=0),),
        labels=(write(tmp_path / "b.tif", label),),
        to=tmp_path / "store", size=2, scale=0.5, minimum_valid=0,
    )  # fmt: skip
    store = tile(config)
    # (10+20+30+41)/4 = 25.25; one of four valid is too little, two are enough.
    assert store.read("image", [0])[0, 0].tolist() == [[25, 8], [8, 1]]
    assert store.read("valid", [0])[0, 0].tolist() == [[1, 0], [1, 1]]
    # Three of four say 1; two against two: the smaller class.
    assert store.read("label", [0])[0, 0].tolist() == [[1, 2], [0, 4]]
    assert store.tiles[0].transform == pytest.approx((4, 0, 500_000, 0, -4, 5_000_000))
    assert (store.scenes["a"].width, store.scenes["a"].height) == (2, 2)


def test_area_weights_of_a_crooked_scale(tmp_path):
    array = RNG.normal(size=(2, 30, 40)).astype(np.float32)
    config = TilingConfig(
        images=(write(tmp_path / "a.tif", array),), to=tmp_path / "store", size=5, stride=2,
        scale=0.375,
    )  # fmt: skip
    store = tile(config)
    # 3/8: repeat every pixel three times, then average blocks of eight.
    fine = array.repeat(3, 1).repeat(3, 2).astype(np.float64)[:, :88]
    expected = fine.reshape(2, 11, 8, 15, 8).mean(axis=(2, 4))
    for t in store.tiles:
        found = store.read("image", [t.tile])[0]
        part = expected[:, t.row : t.row + 5, t.column : t.column + 5]
        np.testing.assert_allclose(found, part, rtol=0, atol=2e-7)
    assert len(store) == 4 * 6
    assert store.read("valid", range(len(store))).all()


def test_overlapping_scaled_tiles_agree_bit_for_bit(tmp_path):
    array = RNG.normal(size=(1, 60, 60)).astype(np.float32)
    array[0, RNG.random((60, 60)) < 0.3] = np.nan
    config = TilingConfig(
        images=(write(tmp_path / "a.tif", array),), to=tmp_path / "store", size=9, stride=4,
        scale=0.37, minimum_valid=0,
    )  # fmt: skip
    store = tile(config)
    whole = np.full((22, 22), np.nan, np.float32)
    for t in store.tiles:
        found = store.read("image", [t.tile])[0, 0]
        assert np.isfinite(found).all()
        at = whole[t.row : t.row + 9, t.column : t.column + 9]
        known = ~np.isnan(at)
        np.testing.assert_array_equal(at[known], found[known])
        at[:] = found


def test_enlarging_repeats_labels(tmp_path, pair):
    store = tile(TilingConfig(**pair, scale=2.0))
    expected = LABEL.repeat(2, 1).repeat(2, 2)
    last = store.tiles[-1]
    assert (last.row, last.column) == (84, 124)
    np.testing.assert_array_equal(store.read("label", [last.tile])[0], expected[:, 84:100, 124:140])


# --- nested sources ------------------------------------------------------------------------


def nested(tmp_path):
    finer = from_origin(500_000, 5_000_000, 1, 1)
    fine = RNG.integers(1, 60000, (2, 100, 140), np.uint16)
    fine[:, 3, 4] = 0
    pair = {"images": (write(tmp_path / "a.tif", IMAGE),), "to": tmp_path / "store", "size": 16}
    return pair, fine, write(tmp_path / "fine.tif", fine, transform=finer, nodata=0)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_finer_sources_lie_over_the_same_ground(tmp_path, scale):
    pair, fine, path = nested(tmp_path)
    config = TilingConfig(**pair, stride=9, scale=scale)
    store = tile(config, more={"fine": ((path,), "image")})
    assert store.sources["fine"].factor == 2
    assert store.read("fine", [0]).shape == (1, 2, 32, 32)
    if scale == 1:
        for t in store.tiles:
            at = (slice(2 * t.row, 2 * t.row + 32), slice(2 * t.column, 2 * t.column + 32))
            np.testing.assert_array_equal(store.read("fine", [t.tile])[0], fine[(slice(None), *at)])
        assert np.argwhere(store.read("valid", [0])[0, 0] == 0).tolist() == [[1, 2]]
    else:
        mean = fine[:, :64, :64].reshape(2, 32, 2, 32, 2).astype(float).mean(axis=(2, 4))
        found = store.read("fine", [0])[0]
        assert (np.abs(found - mean) <= 0.5).sum() == found.size - 2  # but for the missing pixel
        assert store.read("valid", [0]).all()
    store.verify()


def test_finer_rasters_are_a_source_of_the_configuration(tmp_path):
    pair, fine, path = nested(tmp_path)
    store = tile(TilingConfig(**pair, fine=(path,)))
    assert (store.sources["fine"].kind, store.sources["fine"].factor) == ("image", 2)
    last = store.tiles[-1]
    at = (slice(2 * last.row, 2 * last.row + 32), slice(2 * last.column, 2 * last.column + 32))
    np.testing.assert_array_equal(store.read("fine", [last.tile])[0], fine[(slice(None), *at)])
    assert np.argwhere(store.read("valid", [0])[0, 0] == 0).tolist() == [[1, 2]]
    other = tile(
        TilingConfig(**pair | {"to": tmp_path / "more"}), more={"fine": ((path,), "image")}
    )
    assert contents(store.path) == contents(other.path)  # nor does a path of this machine stay
    for wrong, match in (
        ((path, path), "1 images, 2 fines, 1 groups: give one of each"),
        ((str(tmp_path / "gone.tif"),), "gone.tif cannot be opened"),
    ):
        with pytest.raises(InputError, match=match):
            tile(TilingConfig(**pair | {"to": tmp_path / "wrong"}, fine=wrong))
        assert not (tmp_path / "wrong").exists()


def test_single_paths_from_python(tmp_path, pair):
    """A text, or a Path, is one file; its letters are none."""
    _, fine, path = nested(tmp_path)
    image, label = pair["images"][0], Path(pair["labels"][0])
    config = TilingConfig(image, str(pair["to"]), label, size=16, groups="Ulm", bands=2)
    store = tile(config, more={"pan": (path, "image"), "later": (Path(image), "image")})
    assert list(store.sources) == ["image", "label", "pan", "later"]
    np.testing.assert_array_equal(store.read("image", [0])[0], IMAGE[1:2, :16, :16])
    np.testing.assert_array_equal(store.read("pan", [0])[0], fine[:, :32, :32])
    assert store.tiles[0].group == "Ulm"
    for wrong in (path, (path,), ((path,), "photo"), ((path,), "image", 2)):
        with pytest.raises(InputError, match="source 'pan' is .* expected its files, one for each"):
            tile(replace(config, to=tmp_path / "other"), more={"pan": wrong})


def test_finer_sources_must_nest(tmp_path):
    pair, fine, path = nested(tmp_path)
    shifted = from_origin(500_000.5, 5_000_000, 1, 1)
    moved = write(tmp_path / "moved.tif", fine, transform=shifted)
    with pytest.raises(InputError, match=r"moved.tif is not on the grid .*-ts 140 100 "):
        tile(TilingConfig(**pair), more={"fine": ((moved,), "image")})
    with pytest.raises(InputError, match="1 images, 2 fines, 1 groups: give one of each"):
        tile(TilingConfig(**pair), more={"fine": ((path, path), "image")})
    with pytest.raises(InputError, match="a source cannot be called valid"):
        tile(TilingConfig(**pair), more={"valid": ((path,), "image")})
    with pytest.raises(InputError, match="a source cannot be called key"):
        tile(TilingConfig(**pair), more={"key": ((path,), "image")})


# --- who does the work ---------------------------------------------------------------------


def test_the_bytes_do_not_depend_on_executor_and_workers(pair, tmp_path, monkeypatch):
    array = IMAGE.copy()
    array[:, :, :36] = 0  # so that some shards stay empty
    pair |= {"images": (write(tmp_path / "b.tif", array, nodata=0),), "scale": 0.5, "size": 8}
    monkeypatch.setattr(tiling, "SHARD_BYTES", 2 * 5 * 64)
    alone = tile(TilingConfig(**pair))
    assert len(alone.shards) > 3
    assert max(alone.shards) <= 2
    assert min(alone.shards) >= 1
    with ThreadPoolExecutor(3) as threads:
        tile(TilingConfig(**pair | {"to": tmp_path / "store2"}), executor=threads)
    tile(TilingConfig(**pair | {"to": tmp_path / "store3"}, workers=2))
    monkeypatch.undo()
    assert contents(tmp_path / "store") == contents(tmp_path / "store2")
    assert contents(tmp_path / "store") == contents(tmp_path / "store3")
    whole = tile(TilingConfig(**pair | {"to": tmp_path / "store4"}))
    assert len(whole.shards) == 1
    assert [t.checksum for t in whole.tiles] == [t.checksum for t in alone.tiles]
    np.testing.assert_array_equal(
        whole.read("image", range(len(whole))), alone.read("image", range(len(alone)))
    )


def test_progress_counts_windows(pair, monkeypatch):
    monkeypatch.setattr(tiling, "SHARD_BYTES", 4 * 5 * 256)
    seen = []
    tile(TilingConfig(**pair), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(4, 20), (8, 20), (12, 20), (16, 20), (20, 20)]


# --- errors at the door --------------------------------------------------------------------


def test_no_crs(tmp_path):
    images = (write(tmp_path / "scene.tif", IMAGE, crs=None, transform=None),)
    config = TilingConfig(images=images, to=tmp_path / "store", size=16)
    message = r"scene.tif has no CRS; give --ungeoreferenced to tile it by pixel"
    with pytest.raises(InputError, match=message):
        tile(config)
    asked = TilingConfig(images=images, to=tmp_path / "store", size=16, ungeoreferenced=True)
    store = tile(asked)
    assert store.scenes["scene"].crs is None
    assert store.tiles[1].transform == (1, 0, 16, 0, 1, 0)


def test_pairs_must_match(pair, tmp_path):
    pair["labels"] = (write(tmp_path / "l.tif", LABEL, transform=from_origin(0, 0, 2, 2)),)
    with pytest.raises(InputError, match=r"l.tif is not on the grid of .*a.tif: .* -r near "):
        tile(TilingConfig(**pair))
    assert nothing_left(tmp_path)


@pytest.mark.parametrize("compress", ["none", "deflate"])
def test_a_truncated_scene(pair, tmp_path, compress):
    data = Path(write(tmp_path / "whole.tif", IMAGE, compress=compress)).read_bytes()
    (tmp_path / "cut.tif").write_bytes(data[: len(data) * 2 // 3])
    pair["images"] = (str(tmp_path / "cut.tif"),)
    with pytest.raises(InputError, match=r"cut.tif cannot be read"):
        tile(TilingConfig(**pair))
    assert nothing_left(tmp_path)


def test_a_scene_without_any_valid_pixel(pair, tmp_path):
    empty = write(tmp_path / "empty.tif", IMAGE * 0, nodata=0)
    config = TilingConfig(images=(*pair["images"], empty), to=pair["to"], size=16)
    with pytest.raises(InputError, match=r"empty.tif has no valid pixel: check its nodata value"):
        tile(config)
    assert nothing_left(tmp_path)


def test_no_window_with_enough_valid_pixels(pair, tmp_path):
    array = IMAGE * np.uint8(0)
    array[:, ::3] = 5
    pair["images"] = (write(tmp_path / "sparse.tif", array, nodata=0),)
    with pytest.raises(InputError, match=r"no window has 50% valid pixels: lower --minimum-valid"):
        tile(TilingConfig(**pair))


@pytest.mark.parametrize("edges", ["shift", "drop"])
def test_a_scene_smaller_than_a_tile(pair, edges):
    pair["size"] = 64
    with pytest.raises(
        InputError, match=r"a.tif: 70 x 50 pixels are less than a tile of 64: give --edges pad or"
    ):
        tile(TilingConfig(**pair, edges=edges))
    store = tile(TilingConfig(**pair, edges="pad", minimum_valid=0))
    assert store.tiles[0].valid_fraction == 50 / 64


def test_an_unknown_class(pair, tmp_path):
    label = LABEL.copy()
    label[0, 40, 60] = 9
    pair["labels"] = (write(tmp_path / "l.tif", label),)
    with pytest.raises(InputError, match=r"l.tif holds class 9; expected 0, 1, 2: correct"):
        tile(TilingConfig(**pair, classes=(2, 1, 0)))
    assert nothing_left(tmp_path)
    store = tile(TilingConfig(**pair, classes=(9, 2, 1, 0, 4)))
    assert store.sources["label"].classes == (0, 1, 2, 4, 9)


def test_scenes_must_agree(pair, tmp_path):
    four = write(tmp_path / "four.tif", np.concatenate([IMAGE, IMAGE[:1]]), alpha="unspecified")
    sixteen = write(tmp_path / "sixteen.tif", IMAGE.astype("uint16"))
    for path, message in [(four, "four.tif has 4 bands of uint8"), (sixteen, "3 bands of uint16")]:
        config = TilingConfig(images=(*pair["images"], path), to=pair["to"], size=16)
        with pytest.raises(InputError, match=message + r".*, the scenes before it 3 of uint8"):
            tile(config)
    chosen = TilingConfig(images=(*pair["images"], four), to=pair["to"], size=16, bands=("3", "1"))
    np.testing.assert_array_equal(tile(chosen).read("image", [0])[0], IMAGE[[2, 0], :16, :16])


def test_bands_must_stand_in_one_order(tmp_path):
    """Blue is not red: a store of mixed bands would train, and nobody would see why it is bad."""
    array, scenes = np.ones((3, 8, 8), np.uint16), []
    for name, bands in (("a", ("red", "green", "blue")), ("b", ("blue", "green", "red"))):
        scenes.append(str(write(tmp_path / f"{name}.tif", array)))
        with rasterio.open(scenes[-1], "r+") as file:
            file.descriptions = bands
    config = TilingConfig(images=tuple(scenes), to=tmp_path / "tiles", size=8)
    with pytest.raises(
        InputError, match=r"b\.tif has the bands \['blue'.* before it \['red'.*order"
    ):
        tile(config)
    assert nothing_left(tmp_path)
    chosen = TilingConfig(**vars(config) | {"bands": ("red", "green", "blue")})
    assert tile(chosen).sources["image"].bands == ("red", "green", "blue")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ("a", "b")}, "1 images, 2 labels, 1 groups: give one of each"),
        ({"groups": ("x", "y")}, "1 images, 1 labels, 2 groups"),
        ({"images": (), "labels": ()}, "0 images"),
        ({"scale": 0.0}, "scale 0.0 must be above 0"),
        ({"minimum_valid": 1.5}, "minimum_valid 1.5 between 0 and 1"),
        ({"size": 0}, "size 0 and stride 0 must be at least 1"),
        ({"bands": ("7",)}, "no single band '7'"),
    ],
)
def test_impossible_options(pair, change, message):
    with pytest.raises(InputError, match=message):
        tile(TilingConfig(**pair | change))
    assert nothing_left(pair["to"].parent)


def test_an_existing_folder_is_not_touched(pair):
    pair["to"].mkdir()
    (pair["to"] / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"store exists already: delete it or give another"):
        tile(TilingConfig(**pair))
    assert (pair["to"] / "thesis.txt").read_text() == "years of work"


def test_an_unwritable_folder(pair, tmp_path):
    (tmp_path / "file").write_text("")
    pair["to"] = tmp_path / "file" / "store"
    with pytest.raises(InputError, match=r"store cannot be written .*a folder that can be written"):
        tile(TilingConfig(**pair))


@pytest.mark.parametrize("executor", [None, ThreadPoolExecutor(2)])
def test_a_full_disk_leaves_nothing(pair, monkeypatch, executor):
    monkeypatch.setattr(tiling, "SHARD_BYTES", 4 * 5 * 256)
    save = tiling._save

    def full(path, array):
        save(path, array)
        if path.name == "label-00002.npy":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(tiling, "_save", full)
    with pytest.raises(InputError, match=r"No space left on device.* 0 MB of free disk are needed"):
        tile(TilingConfig(**pair), executor=executor)
    assert nothing_left(pair["to"].parent)


def test_nothing_runs_on_after_an_error(pair, monkeypatch):
    monkeypatch.setattr(tiling, "SHARD_BYTES", 5 * 256)
    started, save = [], tiling._save

    def slow(path, array):
        time.sleep(0.02)
        save(path, array)

    class Threads(ThreadPoolExecutor):
        def submit(self, *work):
            started.append(super().submit(*work))
            return started[-1]

    def stop(done, total):
        raise KeyboardInterrupt

    monkeypatch.setattr(tiling, "_save", slow)
    with Threads(2) as threads:
        with pytest.raises(KeyboardInterrupt):
            tile(TilingConfig(**pair), executor=threads, progress=stop)
        assert len(started) == 20
        assert all(future.done() for future in started)
        assert sum(future.cancelled() for future in started) > 10


@pytest.mark.parametrize("executor", [None, ThreadPoolExecutor(2)])
def test_an_interruption_leaves_nothing(pair, monkeypatch, executor):
    monkeypatch.setattr(tiling, "SHARD_BYTES", 4 * 5 * 256)

    def interrupt(done, total):
        if done >= 8:
            (partial,) = pair["to"].parent.glob(".store.*.ganlab-tmp")
            assert len(list(partial.iterdir())) >= 6  # it is there, and half done
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tile(TilingConfig(**pair), executor=executor, progress=interrupt)
    assert nothing_left(pair["to"].parent)


def test_leftovers_of_a_killed_process_are_swept(pair):
    partial = pair["to"].with_name(".store.abcdefgh.ganlab-tmp")
    partial.mkdir()
    (partial / "image-00077.npy").write_text("half")
    store = tile(TilingConfig(**pair))
    assert not partial.exists()
    assert sorted(contents(store.path)) == [
        "image-00000.npy", "index.csv", "label-00000.npy", "store.json", "valid-00000.npy",
    ]  # fmt: skip


def test_a_failing_worker_process_leaves_nothing(pair, tmp_path):
    label = LABEL.copy()
    label[0, 40, 60] = 9
    pair["labels"] = (write(tmp_path / "l.tif", label),)
    with pytest.raises(InputError, match=r"l.tif holds class 9"):
        tile(TilingConfig(**pair, classes=(0, 1, 2), workers=2))
    assert nothing_left(tmp_path)


def test_the_returned_store_is_the_one_on_disk(pair):
    store = tile(TilingConfig(**pair))
    assert TileStore.open(store.path).tiles == store.tiles
