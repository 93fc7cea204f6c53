"""Labels that are colours, floats, or hold classes that mean unknown."""

import re

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin
from rasterio.windows import Window

from ganlab.data.coding import read_colours
from ganlab.data.scenes import open_labels, open_scene
from ganlab.errors import InputError

PLACE = from_origin(500_000, 5_000_000, 2, 2)
CLASSES = np.random.default_rng(2).integers(0, 4, (10, 12))
COLOURS = np.array([[0, 255, 255], [255, 255, 0], [255, 0, 255], [0, 0, 0]], np.uint8)
TEXT = """# red green blue class
0 255 255  0  urban land
255,255,0,1
255\t0\t255\t7

0 0 0 300
"""


def write(path, array, **options):
    array = np.asarray(array)
    count, height, width = array.shape
    profile = {"count": count, "height": height, "width": width, "dtype": array.dtype}
    profile |= {"crs": "EPSG:32633", "transform": PLACE}
    with rasterio.open(path, "w", "GTiff", **profile | options) as file:
        file.write(array)
    return str(path)


def everything(scene):
    return scene.read(Window(0, 0, scene.grid.width, scene.grid.height))


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "colours.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def mask(tmp_path):
    return write(tmp_path / "mask.tif", COLOURS[CLASSES].transpose(2, 0, 1))


def test_a_table_of_colours(table):
    assert read_colours(table) == (
        ((0, 255, 255), 0), ((255, 255, 0), 1), ((255, 0, 255), 7), ((0, 0, 0), 300)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "has no colour: expected lines R G B CLASS"),
        ("red 1\n", r"line 1: 'red 1' is no colour with its class: expected R G B CLASS"),
        ("0 0 0 1\n0 0 0 2\n", "line 2: colour 0 0 0 has class 1"),
        ("0 0 0 1\n5 2\n", "line 2: not as many numbers as in the lines before"),
        ("0 0 0 1.5\n0 1 2 3 4 5", "line 2: not as many numbers"),
        (f"1 {2**40}\n", "line 1: .* in whole numbers"),
    ],
)
def test_texts_that_are_no_table(tmp_path, text, match):
    path = tmp_path / "colours.txt"
    path.write_text(text)
    with pytest.raises(InputError, match=match):
        read_colours(path)
    with pytest.raises(InputError, match=r"gone\.txt cannot be read"):
        read_colours(tmp_path / "gone.txt")


def test_colours_become_classes(table, mask):
    labels = open_labels(mask, open_scene(mask).grid, colours=table)
    assert (labels.dtype, labels.bands) == ("int32", ("class",))
    values, valid = everything(labels)
    np.testing.assert_array_equal(values[0], np.array([0, 1, 7, 300])[CLASSES])
    assert valid.all()
    part, _ = labels.read(Window(3, 2, 4, 5))
    np.testing.assert_array_equal(part[0], values[0, 2:7, 3:7])


def test_without_a_table_colours_are_refused_with_the_option(mask):
    match = r"mask\.tif has 3 bands of uint8; .* recode colours to numbers with --colours FILE"
    with pytest.raises(InputError, match=match):
        open_labels(mask, open_scene(mask).grid)


def test_a_colour_without_a_class_is_named_with_its_place(tmp_path, table):
    array = COLOURS[CLASSES].transpose(2, 0, 1).copy()
    array[:, 6, 9] = 1, 2, 3
    path = write(tmp_path / "mask.tif", array)
    labels = open_labels(path, open_scene(path).grid, colours=table)
    everything_but = labels.read(Window(0, 0, 12, 6))
    assert everything_but[1].all()
    with pytest.raises(InputError, match=r"colour 1 2 3 at row 6, column 9, .*colours\.txt has no"):
        labels.read(Window(5, 5, 6, 4))


def test_missing_pixels_need_no_class(tmp_path, table):
    array = COLOURS[CLASSES].transpose(2, 0, 1).copy()
    array[:, 6, 9] = 9
    array[0, 1, 1] = 255  # one band of nodata is a colour: 255, 255, 0 or 255, 0, 255
    path = write(tmp_path / "mask.tif", array, nodata=9)
    labels = open_labels(path, open_scene(path).grid, colours=table)
    array[:, 1, 1] = 0, 0, 0
    write(tmp_path / "mask.tif", array, nodata=9)
    values, valid = everything(labels)
    assert np.argwhere(~valid).tolist() == [[6, 9]]
    assert values[0, 1, 1] == 300
    assert labels.nodata is None  # 9 is no class


@pytest.mark.parametrize("bands", [1, 3])
def test_a_class_whose_colour_is_declared_missing_is_said(tmp_path, bands):
    path = write(tmp_path / "l.tif", np.repeat(CLASSES[None] * 9, bands, 0).astype("u1"), nodata=0)
    table = tmp_path / "t.txt"
    table.write_text("".join(f"{f'{9 * i} ' * bands}{i}\n" for i in range(4)))
    like = open_scene(path).grid
    with pytest.warns(UserWarning, match=r"l\.tif declares nodata 0, .*t\.txt gives class 0 to 0"):
        _, valid = everything(open_labels(path, like, colours=table))
    assert np.array_equal(valid, CLASSES != 0)
    with pytest.warns(UserWarning, match="none takes its place") as said:
        values, valid = everything(open_labels(path, like, colours=table, nodata="none"))
    assert valid.all()
    assert np.array_equal(values[0], CLASSES)
    assert not [w for w in said if "gives class" in str(w.message)]


def test_masks_of_255_become_masks_of_1(tmp_path):
    table = tmp_path / "values.txt"
    table.write_text("0 0\n255 1\n1 1\n")
    array = np.uint8(CLASSES > 1)[None] * np.uint8(255)
    path = write(tmp_path / "mask.tif", array)
    labels = open_labels(path, open_scene(path).grid, colours=table)
    assert labels.dtype == "uint8"
    np.testing.assert_array_equal(everything(labels)[0][0], CLASSES > 1)


def test_a_table_must_fit_the_bands(tmp_path, table):
    path = write(tmp_path / "l.tif", CLASSES[None].astype("uint8"))
    with pytest.raises(InputError, match=r"colours of 3 bands, .*l\.tif has 1"):
        open_labels(path, open_scene(path).grid, colours=table)


def test_palettes_are_classes_or_colours(tmp_path, table):
    path = write(tmp_path / "l.tif", CLASSES[None].astype("uint8"), photometric="palette")
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {i: (*map(int, colour), 255) for i, colour in enumerate(COLOURS)})
    like = open_scene(path, palette="keep").grid
    np.testing.assert_array_equal(everything(open_labels(path, like))[0][0], CLASSES)
    values, _ = everything(open_labels(path, like, colours=table))
    np.testing.assert_array_equal(values[0], np.array([0, 1, 7, 300])[CLASSES])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_floats_that_are_whole_are_classes(tmp_path, dtype):
    array = CLASSES[None].astype(dtype) * 1000
    array[0, 3, 4], array[0, 5, 6] = np.nan, -9999
    path = write(tmp_path / "l.tif", array, nodata=-9999)
    labels = open_labels(path, open_scene(path).grid)
    values, valid = everything(labels)
    assert labels.dtype == values.dtype.name == "int32"
    assert np.argwhere(~valid).tolist() == [[3, 4], [5, 6]]
    np.testing.assert_array_equal(values[0][valid], (CLASSES * 1000)[valid])


@pytest.mark.parametrize("value", [1.5, 1e12, -0.25])
def test_fractions_are_no_classes(tmp_path, value):
    array = CLASSES[None].astype("float64")
    array[0, 3, 4] = value
    path = write(tmp_path / "l.tif", array)
    found = re.escape(f"{value:.9g}")
    with pytest.raises(InputError, match=rf"l\.tif holds {found} at row 3, column 4: classes"):
        everything(open_labels(path, open_scene(path).grid))


def test_ignored_classes_are_missing(tmp_path):
    path = write(tmp_path / "l.tif", CLASSES[None].astype("uint8"), nodata=0)
    values, valid = everything(open_labels(path, open_scene(path).grid, ignore=(2, 99)))
    np.testing.assert_array_equal(values[0], CLASSES)
    np.testing.assert_array_equal(valid, (CLASSES != 2) & (CLASSES != 0))
