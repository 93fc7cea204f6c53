"""Tiling with labels: what was left out and why, classes, unknown ones, nodata 0, mixed masks."""

import warnings

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from ganlab.cli import main
from ganlab.config import TilingConfig
from ganlab.data.store import TileStore
from ganlab.data.summary import reason
from ganlab.data.tiling import tile, tile_and_summarize
from ganlab.errors import InputError

PLACE = from_origin(500_000, 5_000_000, 1, 1)
RNG = np.random.default_rng(4)
IMAGE = RNG.integers(1, 255, (3, 64, 96), np.uint8)
MASK = np.zeros((1, 64, 96), np.uint8)
MASK[0, 10:30, 20:50] = 1
MASK[0, :32, :32] = 1


def write(path, array, **options):
    count, height, width = array.shape
    profile = {"count": count, "height": height, "width": width, "dtype": array.dtype}
    with rasterio.open(
        path, "w", "GTiff", crs="EPSG:32633", transform=PLACE, **profile | options
    ) as file:
        file.write(array)
    return str(path)


def moved(path, array, by, **options):
    """The same beside the first scene, so that no ground is seen twice."""
    place = PLACE * rasterio.Affine.translation(by * 200, 0)
    count, height, width = array.shape
    profile = {"count": count, "height": height, "width": width, "dtype": array.dtype}
    with rasterio.open(
        path, "w", "GTiff", crs="EPSG:32633", transform=place, **profile | options
    ) as file:
        file.write(array)
    return str(path)


@pytest.fixture
def given(tmp_path):
    return {"images": (write(tmp_path / "a.tif", IMAGE),), "to": tmp_path / "store", "size": 32}


def quiet(config):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return tile_and_summarize(config)


# --- What was left out, and what was met ----------------------------------------------------


def test_windows_that_are_left_out_are_counted_by_what_they_lack(tmp_path, given):
    image, label = IMAGE.copy(), np.ones((1, 64, 96), np.uint8)
    image[:, :32, :32] = 0  # one window without an image
    label[0, :, 64:] = 9  # two without labels
    image[:, 32:, 32:48], label[0, 32:, 44:64] = 0, 9  # one that lacks some of both
    given["images"] = (write(tmp_path / "b.tif", image, nodata=0),)
    given["labels"] = (write(tmp_path / "l.tif", label, nodata=9),)
    store, summary = quiet(TilingConfig(**given, minimum_valid=0.35))
    assert len(store) == 2
    assert summary.windows == 6
    assert summary.left_out == {"image": 1, "label": 2, "no source by itself": 1}


def test_reasons():
    assert reason({"image": 1.0, "label": 0.2}, 0.5) == "label"
    assert reason({"image": 0.0, "label": 0.0}, 0) == "image and label"
    assert reason({"image": 0.6, "label": 0.6}, 0.5) == "no source by itself"


def test_the_fractions_of_classes_are_those_of_the_tiles(given, tmp_path):
    given["labels"] = (write(tmp_path / "l.tif", MASK),)
    store, summary = quiet(TilingConfig(**given))
    labels = store.read("label", range(len(store)))
    assert summary.classes["label"] == {0: (labels == 0).mean(), 1: (labels == 1).mean()}
    assert summary.left_out == {}


def test_the_command_says_what_it_left_out_and_met(tmp_path, given, capsys):
    label = np.full((1, 64, 96), 3, np.uint8)
    label[0, :32, :32] = 9
    label[0, 40:48, :32] = 4
    path = write(tmp_path / "l.tif", label, nodata=9)
    words = ["tile", "--images", *given["images"], "--labels", path, "--to", str(given["to"])]
    main([*words, "--size", "32"])
    said = capsys.readouterr().out
    assert "left out: 1 of 6 windows, which lack valid pixels of label (1)" in said
    assert "classes of label: 3: 95.0%, 4: 5.00%" in said


# --- Nodata 0 in labels ---------------------------------------------------------------------


def test_a_background_that_counts_as_missing_is_said(tmp_path, given):
    """The default of QGIS's Rasterize."""
    given["labels"] = (write(tmp_path / "l.tif", MASK, nodata=0),)
    match = r"the only class is 1\. .*l\.tif declares nodata 0, so .* --label-nodata none"
    with pytest.warns(UserWarning, match=match):
        store = tile(TilingConfig(**given))
    assert store.sources["label"].classes == (1,)
    given["to"] = tmp_path / "again"
    store, summary = quiet(TilingConfig(**given, label_nodata="none"))
    assert store.sources["label"].classes == (0, 1)
    assert store.read("valid", range(len(store))).all()
    assert summary.left_out == {}


def test_nodata_0_beside_several_classes_is_nothing_to_say(tmp_path, given):
    given["labels"] = (write(tmp_path / "l.tif", MASK + RNG.integers(0, 3, MASK.shape, np.uint8)),)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tile(TilingConfig(**given, label_nodata=0))
    assert not [w for w in caught if "only class" in str(w.message)]


def test_declared_classes_do_not_hide_that_one_is_left(tmp_path, given):
    given["labels"] = (write(tmp_path / "l.tif", MASK, nodata=0),)
    with pytest.warns(UserWarning, match=r"the only class is 1\. .* --label-nodata none"):
        tile(TilingConfig(**given, classes=(0, 1)))


@pytest.mark.parametrize("classes", [(), (0, 1)])
def test_a_mask_of_0_and_255_whose_255_is_ignored_is_said(tmp_path, given, classes):
    given["labels"] = (write(tmp_path / "l.tif", MASK * 255),)
    with pytest.warns(UserWarning, match=r"the only class is 0\. --ignore 255 makes all others"):
        tile(TilingConfig(**given, classes=classes, ignore=(255,)))
    (tmp_path / "c.txt").write_text("0 0\n255 1\n")
    given["to"] = tmp_path / "again"
    store, _ = quiet(TilingConfig(**given, colours=tmp_path / "c.txt"))
    assert store.sources["label"].classes == (0, 1)


@pytest.mark.parametrize(("minimum", "match"), [(0.5, "no window has 50%"), (0, "no valid pixel")])
def test_also_where_no_tile_is_left(tmp_path, given, minimum, match):
    label = MASK * 0
    if minimum:
        label[0, 5, 5] = 1
    given["labels"] = (write(tmp_path / "l.tif", label, nodata=0),)
    with pytest.raises(InputError, match=rf"{match}.*l\.tif declares nodata 0.*label-nodata none"):
        tile(TilingConfig(**given, minimum_valid=minimum))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"label_nodata": 0}, "--label-nodata is for labels, and none are given"),
        ({"ignore": 255}, "--ignore is for labels"),
        ({"colours": "c.txt"}, "--colours is for labels"),
        ({"classes": (0, 1)}, "--classes is for labels"),
        ({"fine_nodata": "none"}, "--fine-nodata is for --fine, and no finer"),
    ],
)
def test_options_for_what_is_not_given_are_refused(given, options, match):
    with pytest.raises(InputError, match=match):
        tile(TilingConfig(**given, **options))
    assert not given["to"].exists()


# --- Unknown classes ------------------------------------------------------------------------


def test_ignored_classes_are_no_classes_and_not_valid(tmp_path, given):
    label = MASK.copy()
    label[0, 40:50, 40:60] = 255
    given["labels"] = (write(tmp_path / "l.tif", label),)
    store, summary = quiet(TilingConfig(**given, ignore=(255,)))
    assert store.sources["label"].classes == (0, 1)
    assert store.sources["label"].ignore == (255,)
    labels, valid = (store.read(name, range(len(store))) for name in ("label", "valid"))
    np.testing.assert_array_equal(valid == 0, labels == 255)
    assert set(summary.classes["label"]) == {0, 1}
    assert TileStore.open(given["to"]).sources["label"].ignore == (255,)
    given["to"] = tmp_path / "again"
    with pytest.raises(InputError, match="holds class 255; expected 0, 1: .* or --ignore"):
        tile(TilingConfig(**given, classes=(0, 1)))
    quiet(TilingConfig(**given, classes=(0, 1, 255), ignore=(255,)))


def test_ignored_classes_have_no_vote_when_scaled(tmp_path, given):
    label = np.array([[1, 255, 2, 2], [255, 255, 255, 1]], np.uint8)[None]
    given |= {"images": (write(tmp_path / "b.tif", IMAGE[:, :2, :4]),), "size": 1, "scale": 0.5}
    given["labels"] = (write(tmp_path / "l.tif", label),)
    store, _ = quiet(TilingConfig(**given, ignore=(255,)))
    assert store.read("label", range(len(store))).ravel().tolist() == [2]  # 3 of 4 are unknown


# --- Mixed encodings ------------------------------------------------------------------------


def two_scenes(tmp_path, one, other):
    images = (write(tmp_path / "a.tif", IMAGE), moved(tmp_path / "b.tif", IMAGE, 1))
    labels = (write(tmp_path / "la.tif", one), moved(tmp_path / "lb.tif", other, 1))
    return {"images": images, "labels": labels, "to": tmp_path / "store", "size": 32}


@pytest.mark.parametrize(("high", "dtype"), [(255, "uint8"), (65535, "uint16")])
def test_masks_of_two_encodings_are_refused(tmp_path, high, dtype):
    pair = two_scenes(tmp_path, MASK.astype(dtype), MASK.astype(dtype) * np.asarray(high, dtype))
    match = rf"la\.tif is a mask of 0 and 1, .*lb\.tif one of 0 and {high}: .*--colours.*--ignore"
    with pytest.raises(InputError, match=match):
        tile(TilingConfig(**pair))
    assert not pair["to"].exists()
    table = tmp_path / "values.txt"
    table.write_text(f"0 0\n1 1\n{high} 1\n")  # as the message says
    store, summary = quiet(TilingConfig(**pair, colours=table))
    assert store.sources["label"].classes == (0, 1)
    assert summary.classes["label"][1] == pytest.approx(MASK.mean())
    pair["to"] = tmp_path / "ignoring"
    assert quiet(TilingConfig(**pair, ignore=(high,)))[0].sources["label"].classes == (0, 1)
    pair["to"] = tmp_path / "three"
    store, _ = quiet(TilingConfig(**pair, classes=(0, 1, high)))
    assert store.sources["label"].classes == (0, 1, high)


def test_scenes_of_other_classes_are_no_mixed_masks(tmp_path):
    pair = two_scenes(tmp_path, MASK, MASK * np.uint8(2))
    assert quiet(TilingConfig(**pair))[0].sources["label"].classes == (0, 1, 2)


def test_a_path_of_colours_stays_out_of_the_store(tmp_path, given):
    table = tmp_path / "values.txt"
    table.write_text("0 0\n1 1\n")
    given["labels"] = (write(tmp_path / "l.tif", MASK),)
    store, _ = quiet(TilingConfig(**given, colours=table))
    assert "values.txt" not in (store.path / "store.json").read_text()


# --- Scenes that declare different values ---------------------------------------------------


def test_a_source_keeps_a_nodata_value_that_all_scenes_declare(tmp_path):
    for name, values, expected in (
        ("same", (7, 7), 7),
        ("two", (7, 9), None),
        ("one", (7, None), None),
    ):
        folder = tmp_path / name
        folder.mkdir()
        images = tuple(
            moved(folder / f"{i}.tif", IMAGE, i, nodata=value) for i, value in enumerate(values)
        )
        store, _ = quiet(TilingConfig(images=images, to=folder / "store", size=32))
        assert store.sources["image"].nodata == expected
