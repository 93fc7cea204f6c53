"""Scenes against rasterio, on small rasters and vector files that are written here."""

import json
import os
import pickle
import re
import shlex
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from rasterio.enums import ColorInterp
from rasterio.features import rasterize
from rasterio.transform import from_bounds, from_origin
from rasterio.warp import transform_geom
from rasterio.windows import Window
from rasterio.windows import transform as window_transform

from ganlab.data.bands import reordered
from ganlab.data.scenes import (
    Grid,
    check_same_grid,
    open_labels,
    open_scene,
    windows,
)
from ganlab.errors import InputError

UTM = rasterio.crs.CRS.from_epsg(32633)
NORTH_UP = from_origin(500_000, 5_000_000, 2, 2)


def write(path, array, crs=UTM, transform=NORTH_UP, colours=None, names=None, mask=None, **options):
    """A GeoTIFF from a ``(C, h, w)`` array."""
    array = np.asarray(array)
    count, height, width = array.shape
    profile = {"driver": "GTiff", "width": width, "height": height, "count": count}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with (
            rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
            rasterio.open(
                path, "w", **profile, dtype=array.dtype, crs=crs, transform=transform, **options
            ) as file,
        ):
            if colours:
                file.colorinterp = colours
            file.write(array)
            for number, name in enumerate(names or (), start=1):
                file.set_band_description(number, name)
            if mask is not None:
                file.write_mask(mask)
    return str(path)


def everything(scene):
    return scene.read(Window(0, 0, scene.grid.width, scene.grid.height))


RGB = np.random.default_rng(1).integers(1, 255, (3, 20, 30), np.uint8)


# --- windows -------------------------------------------------------------------------------


def corners(found):
    return [(w.row_off, w.col_off) for w in found]


def test_windows_by_hand():
    assert corners(windows(10, 4, 4, 4, "shift")) == [(0, 0), (0, 4), (0, 6)]
    assert corners(windows(10, 4, 4, 4, "pad")) == [(0, 0), (0, 4), (0, 8)]
    assert corners(windows(10, 4, 4, 4, "drop")) == [(0, 0), (0, 4)]
    assert corners(windows(8, 5, 4, 4, "shift")) == [(0, 0), (0, 4), (1, 0), (1, 4)]
    assert corners(windows(10, 4, 4, 3, "shift")) == [(0, 0), (0, 3), (0, 6)]
    assert corners(windows(11, 4, 4, 3, "pad")) == [(0, 0), (0, 3), (0, 6), (0, 9)]
    assert corners(windows(3, 9, 4, 4, "pad")) == [(0, 0), (4, 0), (8, 0)]


@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(1, 12), st.integers(1, 15),
    st.sampled_from(["shift", "pad", "drop"]),
)  # fmt: skip
def test_windows_cover_the_scene(width, height, size, stride, edges):
    if edges != "pad" and min(width, height) < size:
        with pytest.raises(InputError, match="--edges pad or a smaller --size"):
            windows(width, height, size, stride, edges)
        return
    found = windows(width, height, size, stride, edges)
    assert len(set(corners(found))) == len(found)
    assert {(w.height, w.width) for w in found} == {(size, size)}
    seen = np.zeros((height + size, width + size), int)
    for w in found:
        assert 0 <= w.row_off < height
        assert 0 <= w.col_off < width
        seen[w.row_off : w.row_off + size, w.col_off : w.col_off + size] += 1
    if edges != "pad":
        assert not seen[height:].any()
        assert not seen[:, width:].any()
    if edges != "drop" and stride <= size:
        assert seen[:height, :width].all()


@pytest.mark.parametrize(("size", "stride"), [(0, 1), (4, 0), (-1, 4)])
def test_windows_need_a_size(size, stride):
    with pytest.raises(InputError, match=f"size {size} and stride {stride}"):
        windows(10, 10, size, stride, "pad")


# --- grids ---------------------------------------------------------------------------------


@pytest.mark.parametrize("transform", [NORTH_UP, NORTH_UP * Affine.rotation(30)])
def test_grids_agree_with_rasterio(tmp_path, transform):
    path = write(tmp_path / "a.tif", RGB, transform=transform)
    grid = open_scene(path).grid
    window = Window(7, 3, 5, 4)
    assert grid.at(window).almost_equals(window_transform(window, transform), 1e-6)
    assert grid.crs_name == "EPSG:32633"
    if transform is NORTH_UP:
        with rasterio.open(path) as file:
            assert grid.bounds() == tuple(file.bounds)
    half = grid.scaled(0.5)
    assert (half.width, half.height) == (15, 10)
    assert half.transform * (3, 4) == pytest.approx(transform * (6, 8))
    assert grid.scaled(1) == grid
    assert grid.scaled(0.3).width == 9
    assert grid.scaled(2).height == 40
    assert grid.scaled(0.52).width == 15  # of 15.6


# --- reading -------------------------------------------------------------------------------


def test_windows_may_reach_outside(tmp_path):
    scene = open_scene(write(tmp_path / "a.tif", RGB, nodata=0))
    padded = np.pad(RGB, ((0, 0), (10, 10), (10, 10)))
    inside = np.pad(np.ones((20, 30), bool), 10)
    for row, column, height, width in [
        (0, 0, 20, 30),
        (-4, 25, 9, 8),
        (15, -3, 9, 6),
        (-9, -9, 5, 5),
    ]:
        values, valid = scene.read(Window(column, row, width, height))
        rows, columns = slice(row + 10, row + 10 + height), slice(column + 10, column + 10 + width)
        np.testing.assert_array_equal(values, padded[:, rows, columns])
        np.testing.assert_array_equal(valid, inside[rows, columns])
    assert values.dtype == np.uint8
    assert not scene.read(Window(100, 100, 3, 3))[1].any()


@pytest.mark.parametrize(
    "dtype", ["uint8", "uint16", "int16", "uint32", "int32", "float32", "float64"]
)
def test_every_dtype_comes_back(tmp_path, dtype):
    array = (RGB.astype("float64") * 100 % 250).astype(dtype)
    scene = open_scene(write(tmp_path / "a.tif", array))
    values, valid = everything(scene)
    assert scene.dtype == dtype == values.dtype.name
    np.testing.assert_array_equal(values, array)
    assert valid.all()


def test_uint8_is_missing_where_all_bands_are_nodata(tmp_path):
    array = RGB.copy()
    array[:, 3, 4] = 0
    array[0, 5, 6] = 0
    path = write(tmp_path / "a.tif", array, nodata=0)
    expected = np.ones((20, 30), bool)
    expected[3, 4] = False
    np.testing.assert_array_equal(everything(open_scene(path))[1], expected)
    with rasterio.open(path) as file:
        np.testing.assert_array_equal(file.dataset_mask() > 0, expected)


@pytest.mark.parametrize(("dtype", "nodata"), [("uint16", 0), ("int16", -9999), ("float32", -9999)])
def test_other_types_are_missing_where_one_band_is_nodata(tmp_path, dtype, nodata):
    array = RGB.astype(dtype)
    array[:, 3, 4] = nodata
    array[0, 5, 6] = nodata
    scene = open_scene(write(tmp_path / "a.tif", array, nodata=nodata))
    assert scene.nodata == nodata
    assert np.argwhere(~everything(scene)[1]).tolist() == [[3, 4], [5, 6]]


def test_given_nodata_serves_files_that_declare_none(tmp_path):
    array = RGB.copy()
    array[:, 3, 4] = 7
    array[:, 5, 6] = 9
    silent = open_scene(write(tmp_path / "a.tif", array), nodata=7)
    assert silent.nodata == 7
    assert np.argwhere(~everything(silent)[1]).tolist() == [[3, 4]]


@pytest.mark.parametrize("nodata", [None, float("nan"), -1.0])
def test_nan_is_never_valid(tmp_path, nodata):
    array = RGB.astype("float32")
    array[1, 3, 4], array[2, 5, 6] = np.nan, np.inf
    scene = open_scene(write(tmp_path / "a.tif", array, nodata=nodata))
    assert np.argwhere(~everything(scene)[1]).tolist() == [[3, 4], [5, 6]]


def test_alpha_is_a_mask_and_no_band(tmp_path):
    alpha = np.full((1, 20, 30), 255, np.uint8)
    alpha[0, :5] = 0
    colours = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)
    scene = open_scene(write(tmp_path / "a.tif", np.concatenate([RGB, alpha]), colours=colours))
    assert scene.bands == ("red", "green", "blue")
    values, valid = scene.read(Window(2, 3, 6, 7))
    np.testing.assert_array_equal(values, RGB[:, 3:10, 2:8])
    np.testing.assert_array_equal(valid, alpha[0, 3:10, 2:8] > 0)
    asked = open_scene(tmp_path / "a.tif", bands=("4", "red"))
    values, valid = everything(asked)
    np.testing.assert_array_equal(values, [alpha[0], RGB[0]])
    assert valid.all()
    both = np.concatenate([RGB[:1], alpha])
    label = open_labels(write(tmp_path / "l.tif", both, colours=colours[2:]), asked.grid)
    assert label.bands == ("blue",)
    np.testing.assert_array_equal(everything(label)[1], alpha[0] > 0)
    only = write(tmp_path / "o.tif", alpha, colours=colours[3:])
    with pytest.raises(InputError, match=r"o.tif has nothing but an alpha band"):
        open_scene(only)


def test_internal_mask_is_used(tmp_path):
    mask = np.full((20, 30), 255, np.uint8)
    mask[4:9, 11:] = 0
    scene = open_scene(write(tmp_path / "a.tif", RGB, mask=mask))
    np.testing.assert_array_equal(everything(scene)[1], mask > 0)


def test_bands_by_number_and_name(tmp_path):
    path = write(tmp_path / "a.tif", RGB.astype("uint16"), names=("B2", "B3", "B4"))
    scene = open_scene(path, bands=("B4", "1"))
    assert scene.bands == ("B4", "B2")
    np.testing.assert_array_equal(everything(scene)[0], RGB[[2, 0]])
    for wanted in ("4", "0", "B8"):
        with pytest.raises(InputError, match=r"a.tif has no single band '.*'; it has 1 \(B2\), 2 "):
            open_scene(path, bands=(wanted,))


def test_band_names_without_descriptions(tmp_path):
    assert open_scene(write(tmp_path / "rgb.tif", RGB, photometric="rgb")).bands[0] == "red"
    five = np.concatenate([RGB, RGB[:2]]).astype("uint16")
    assert open_scene(write(tmp_path / "five.tif", five)).bands == ("1", "2", "3", "4", "5")


def test_band_files_are_stacked(tmp_path):
    paths = [
        write(tmp_path / name, RGB[i : i + 1].astype("uint16"), nodata=0)
        for i, name in enumerate(["l8_B4.tif", "T33_B8A_10m.tif", "thermal.tif"])
    ]
    for given_as in (",".join(paths), paths):
        scene = open_scene(given_as)
        assert scene.name == "l8_B4"
        assert scene.bands == ("B4", "B8A", "thermal")
        np.testing.assert_array_equal(everything(scene)[0], RGB)
    chosen = open_scene(paths, bands=("3", "B4"))
    np.testing.assert_array_equal(everything(chosen)[0], RGB[[2, 0]])
    named = write(tmp_path / "named.tif", RGB[:1].astype("uint16"), nodata=0, names=("nir",))
    assert open_scene([paths[0], named]).bands == ("B4", "nir")


def test_band_files_must_agree(tmp_path):
    first = write(tmp_path / "a.tif", RGB[:1])
    other = write(tmp_path / "b.tif", RGB[:1].astype("uint16"))
    moved = write(tmp_path / "c.tif", RGB[:1], transform=from_origin(0, 0, 2, 2))
    with pytest.raises(InputError, match=r"b.tif is uint16 .*a.tif is uint8"):
        open_scene([first, other])
    with pytest.raises(InputError, match=r"c.tif is not on the grid of .*a.tif: transform"):
        open_scene(f"{first},{moved}")


def test_missing_pixels_of_stacked_files_add_up(tmp_path):
    masks = np.full((2, 20, 30), 255, np.uint8)
    masks[0, :2], masks[1, :, :3] = 0, 0
    paths = [write(tmp_path / f"{i}.tif", RGB[:1], mask=masks[i]) for i in (0, 1)]
    np.testing.assert_array_equal(everything(open_scene(paths))[1], masks.all(axis=0))


def test_complex_pixels_are_refused(tmp_path):
    path = write(tmp_path / "radar.tif", RGB.astype("complex64"))
    with pytest.raises(InputError, match=r"radar.tif has bands of type complex64; expected one of"):
        open_scene(path)


def test_no_crs(tmp_path):
    path = write(tmp_path / "scene.tif", RGB, crs=None, transform=None)
    with pytest.raises(
        InputError, match=r"scene.tif has no CRS; give --ungeoreferenced to tile it by pixel"
    ):
        open_scene(path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scene = open_scene(path, ungeoreferenced=True)
        np.testing.assert_array_equal(everything(scene)[0], RGB)
    assert not [w for w in caught if w.category is rasterio.errors.NotGeoreferencedWarning]
    assert scene.grid.crs is scene.grid.crs_name is None


def test_a_jpeg_may_be_called_tif(tmp_path):
    smooth = np.broadcast_to(np.arange(100, 130, dtype=np.uint8), (3, 20, 30))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(
            tmp_path / "a.tif", "w", driver="JPEG", width=30, height=20, count=3, dtype="uint8"
        ) as file:
            file.write(smooth)
    scene = open_scene(tmp_path / "a.tif", ungeoreferenced=True)
    assert np.abs(everything(scene)[0].astype(int) - smooth).max() < 5


def test_a_truncated_file_is_named(tmp_path):
    write(tmp_path / "whole.tif", np.tile(RGB, (1, 10, 10)))
    data = (tmp_path / "whole.tif").read_bytes()
    (tmp_path / "cut.tif").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"cut.tif cannot be read .*damaged or cut short"):
        everything(open_scene(tmp_path / "cut.tif"))
    (tmp_path / "stub.tif").write_bytes(data[:6])
    (tmp_path / "text.tif").write_text("not an image")
    for name in ("stub", "text", "nowhere"):
        with pytest.raises(InputError, match=rf"{name}.tif cannot be opened as a raster"):
            open_scene(tmp_path / f"{name}.tif")


def test_scenes_travel_and_serve_threads(tmp_path):
    array = np.random.default_rng(2).integers(0, 255, (3, 200, 200), np.uint8)
    path = write(
        tmp_path / "a.tif", array, tiled=True, blockxsize=16, blockysize=16, compress="lzw"
    )
    scene = pickle.loads(pickle.dumps(open_scene(path)))
    cut = windows(200, 200, 50, 10, "shift")
    with ThreadPoolExecutor(8) as threads:
        for window, (values, _) in zip(cut, threads.map(scene.read, cut), strict=True):
            np.testing.assert_array_equal(values, array[(slice(None), *window.toslices())])


def test_a_rewritten_file_is_read_again(tmp_path):
    scene = open_scene(write(tmp_path / "a.tif", RGB))
    everything(scene)
    write(tmp_path / "a.tif", 255 - RGB)
    os.utime(tmp_path / "a.tif", ns=(1, 1))
    np.testing.assert_array_equal(everything(scene)[0], 255 - RGB)


def test_files_stay_open_but_a_fork_opens_its_own(tmp_path, monkeypatch):
    # A forked process that read through its parent's file would move the parent's position.
    scene = open_scene(write(tmp_path / "a.tif", RGB))
    opened, original = [], rasterio.open
    monkeypatch.setattr(rasterio, "open", lambda path: opened.append(path) or original(path))
    everything(scene)
    everything(scene)
    assert len(opened) == 1
    monkeypatch.setattr(os, "getpid", lambda: -1)
    everything(scene)
    assert len(opened) == 2


# --- pairs ---------------------------------------------------------------------------------


def repaired(message):
    """The grid that the gdalwarp line in a message asks for, and its resampling."""
    line = shlex.split(message[message.index("gdalwarp") :])
    at = {name: line.index(name) + 1 for name in ("-t_srs", "-te", "-ts", "-r")}
    bounds = [float(number) for number in line[at["-te"] : at["-te"] + 4]]
    width, height = (int(number) for number in line[at["-ts"] : at["-ts"] + 2])
    crs = rasterio.crs.CRS.from_string(line[at["-t_srs"]])
    return Grid(crs, from_bounds(*bounds, width, height), width, height), line[at["-r"]], line[-2]


@pytest.mark.parametrize(
    ("change", "kind", "says", "method"),
    [
        ({"transform": from_origin(500_003, 5_000_000, 2, 2)}, "image", "500003", "bilinear"),
        ({"transform": from_origin(500_000, 5_000_000, 2.01, 2)}, "label", "2.01", "near"),
        ({"crs": "EPSG:32634"}, "mask", "CRS EPSG:32634, not EPSG:32633", "near"),
        ({"size": (40, 60), "transform": from_origin(500_000, 5_000_000, 1, 1)}, "image",
         "60 x 40 pixels, not 30 x 20", "average"),
        ({"size": (40, 60), "transform": from_origin(500_000, 5_000_000, 1, 1)}, "label",
         "60 x 40 pixels, not 30 x 20", "near"),
        ({"crs": "EPSG:4326", "transform": from_origin(15, 45.14, 2e-5, 2e-5)}, "image",
         "EPSG:4326", "bilinear"),
    ],
)  # fmt: skip
def test_different_grids_are_refused_with_the_repair(tmp_path, change, kind, says, method):
    height, width = change.pop("size", (20, 30))
    a = open_scene(write(tmp_path / "a.tif", RGB))
    b = open_scene(write(tmp_path / "my b.tif", np.ones((1, height, width), np.uint8), **change))
    with pytest.raises(InputError) as error:
        check_same_grid(a, b, kind)
    message = str(error.value)
    assert re.search(r"my b.tif is not on the grid of .*a.tif: .*" + re.escape(says), message)
    grid, resampling, source = repaired(message)
    assert (grid.crs, grid.width, grid.height) == (UTM, 30, 20)
    assert grid.transform.almost_equals(a.grid.transform, 1e-9)
    assert resampling == method
    assert source == str(tmp_path / "my b.tif")
    assert "\n" not in message


def test_same_grids_pass_with_rounding_noise(tmp_path):
    a = open_scene(write(tmp_path / "a.tif", RGB))
    noisy = from_origin(500_000.0001, 5_000_000, 2 + 1e-7, 2)
    check_same_grid(a, open_scene(write(tmp_path / "b.tif", RGB, transform=noisy)))
    wide = from_origin(500_000, 5_000_000, 2.002, 2)  # 30 pixels on, a third of a pixel too far
    with pytest.raises(InputError, match="transform"):
        check_same_grid(a, open_scene(write(tmp_path / "c.tif", RGB, transform=wide)))


def test_finer_pixels_on_the_same_ground(tmp_path):
    a = open_scene(write(tmp_path / "a.tif", RGB))
    finer = from_origin(500_000, 5_000_000, 1, 1)
    b = open_scene(write(tmp_path / "b.tif", RGB.repeat(2, 1).repeat(2, 2), transform=finer))
    check_same_grid(a, b, factor=2)
    with pytest.raises(InputError, match="60 x 40 pixels, not 90 x 60"):
        check_same_grid(a, b, factor=3)


def test_without_coordinates_the_sizes_decide(tmp_path):
    a = open_scene(write(tmp_path / "a.tif", RGB))
    b = open_scene(write(tmp_path / "b.tif", RGB, crs=None, transform=None), ungeoreferenced=True)
    c = write(tmp_path / "c.tif", RGB[:, 1:], crs=None, transform=None)
    check_same_grid(a, b)
    check_same_grid(b, a)
    with pytest.raises(InputError, match=r"c.tif has 30 x 19 pixels, not 30 x 20 as .*a.tif has"):
        check_same_grid(a, open_scene(c, ungeoreferenced=True))


# --- labels --------------------------------------------------------------------------------


def test_label_rasters(tmp_path):
    like = open_scene(write(tmp_path / "a.tif", RGB)).grid
    classes = RGB[:1] % 3
    labels = open_labels(write(tmp_path / "l.tif", classes, nodata=2), like)
    values, valid = everything(labels)
    np.testing.assert_array_equal(values, classes)
    np.testing.assert_array_equal(valid, classes[0] != 2)
    with pytest.raises(InputError, match=r"rgb.tif has 3 bands of uint8; labels are one band"):
        open_labels(write(tmp_path / "rgb.tif", RGB), like)
    with pytest.raises(InputError, match=r"n.tif has no CRS"):
        open_labels(write(tmp_path / "n.tif", classes, crs=None, transform=None), like)


GRID = Grid(UTM, NORTH_UP, 30, 20)
TURNED = Grid(UTM, NORTH_UP * Affine.rotation(25), 30, 20)


def polygons(seed=0, count=12):
    """Triangles over the ground of GRID, in UTM."""
    rng = np.random.default_rng(seed)
    centres = [500_000, 4_999_960] + rng.uniform(0, 1, (count, 1, 2)) * [60, 40]
    return [shapely.Polygon(p) for p in centres + rng.uniform(-20, 20, (count, 3, 2))]


def write_vector(path, shapes, crs="EPSG:4326", driver=None, layer=None, append=False, **columns):
    """A vector file in another CRS than GRID."""
    moved = [
        shapely.geometry.shape(transform_geom(UTM, crs or UTM, shapely.geometry.mapping(shape)))
        for shape in shapes
    ]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="'crs' was not provided")
        pyogrio.raw.write(
            path, shapely.to_wkb(np.array(moved)), list(map(np.asarray, columns.values())),
            list(columns), geometry_type="Polygon", crs=crs, driver=driver, layer=layer,
            append=append,
        )  # fmt: skip
    return str(path)


@pytest.mark.parametrize("grid", [GRID, TURNED])
@pytest.mark.parametrize(("name", "crs"), [("f.geojson", "EPSG:4326"), ("f.gpkg", "EPSG:32634")])
def test_vectors_are_reprojected_and_burned(tmp_path, name, crs, grid):
    shapes = polygons()
    path = write_vector(tmp_path / name, shapes, crs, number=np.arange(12))
    by_hand = rasterize(shapes, out_shape=(20, 30), transform=grid.transform)
    assert 0.1 < by_hand.mean() < 0.9
    labels = open_labels(path, grid)
    values, valid = everything(labels)
    assert values.dtype == labels.dtype == "uint8"
    assert valid.all()
    # GeoJSON keeps seven decimals, one centimetre: at most a pixel centre or two can flip.
    assert (values[0] != by_hand).sum() <= 2
    for window in windows(30, 20, 7, 5, "pad"):
        part, inside = labels.read(window)
        rows, columns = window.toslices()
        height, width = values[0][rows, columns].shape
        np.testing.assert_array_equal(part[0, :height, :width], values[0][rows, columns])
        assert inside[:height, :width].all()
        assert inside.sum() == height * width


@pytest.mark.parametrize("name", ["f.geojson", "f.gpkg"])
def test_later_features_lie_over_earlier_ones(tmp_path, name):
    rng = np.random.default_rng(7)
    boxes = [
        shapely.box(500_000 + x, 4_999_960 + y, 500_020 + x, 4_999_975 + y)
        for x, y in rng.uniform(0, 40, (60, 2)).round(1)
    ]
    classes = np.arange(60, dtype=np.int32) % 250 + 1
    path = write_vector(tmp_path / name, boxes, "EPSG:32634", kind=classes)
    expected = rasterize(
        zip(boxes, classes.tolist(), strict=True), out_shape=(20, 30), transform=NORTH_UP
    )
    found = everything(open_labels(path, GRID, "kind"))[0][0]
    assert (found != expected).mean() < 0.02
    assert len(np.unique(expected)) > 5


def test_large_classes_take_a_larger_type(tmp_path):
    shapes = polygons(count=2)
    path = write_vector(tmp_path / "f.gpkg", shapes, kind=np.array([300, -5]))
    values, _ = everything(open_labels(path, GRID, "kind"))
    assert values.dtype == np.int32
    assert set(np.unique(values)) <= {-5, 0, 300}
    assert 300 in values


def test_no_feature_is_class_0(tmp_path):
    path = tmp_path / "f.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": []}))
    values, valid = everything(open_labels(path, GRID))
    assert not values.any()
    assert valid.all()


def test_features_without_geometry_are_nothing(tmp_path):
    path = write_vector(tmp_path / "f.geojson", polygons())
    whole = json.loads((tmp_path / "f.geojson").read_text())
    before = everything(open_labels(path, GRID))[0]
    none = {"type": "Feature", "properties": {}, "geometry": None}
    empty = none | {"geometry": {"type": "Polygon", "coordinates": []}}
    whole["features"] = [none, *whole["features"], empty]
    other = tmp_path / "g.geojson"
    other.write_text(json.dumps(whole))
    np.testing.assert_array_equal(everything(open_labels(other, GRID))[0], before)


def test_changed_vectors_are_read_again(tmp_path):
    path = write_vector(tmp_path / "f.geojson", polygons(1))
    before = everything(open_labels(path, GRID))[0]
    write_vector(tmp_path / "f.geojson", polygons(2))
    os.utime(path, ns=(1, 1))
    assert (everything(open_labels(path, GRID))[0] != before).any()


def test_attributes_must_be_integers_everywhere(tmp_path):
    path = write_vector(
        tmp_path / "f.gpkg", polygons(count=1) * 2, text=["a", "b"], share=np.array([1.0, np.nan])
    )
    with pytest.raises(InputError, match="attribute 'text' is text, 'a' for instance"):
        open_labels(path, GRID, "text")
    with pytest.raises(InputError, match="attribute 'share' is empty in feature 2;"):
        open_labels(path, GRID, "share")
    with pytest.raises(InputError, match=r"f.gpkg: attribute 'kind' is missing"):
        open_labels(path, GRID, "kind")


def test_vector_files_that_cannot_serve(tmp_path):
    with pytest.raises(InputError, match=r"no.gpkg has no CRS"):
        everything(open_labels(write_vector(tmp_path / "no.gpkg", polygons(), None), GRID))
    two = write_vector(tmp_path / "two.gpkg", polygons(), layer="roads")
    write_vector(two, polygons(), layer="houses", append=True)
    with pytest.raises(InputError, match=r"two.gpkg has layers roads, houses; expected one"):
        everything(open_labels(two, GRID))
    (tmp_path / "bad.geojson").write_text("{")
    with pytest.raises(InputError, match=r"bad.geojson cannot be read as a vector file"):
        everything(open_labels(tmp_path / "bad.geojson", GRID))
    with pytest.raises(InputError, match="needs an image with a CRS"):
        open_labels(tmp_path / "f.geojson", Grid(None, NORTH_UP, 30, 20))


def test_features_of_another_place_are_refused(tmp_path):
    path = write_vector(tmp_path / "f.gpkg", polygons())
    elsewhere = Grid(UTM, from_origin(700_000, 5_000_000, 2, 2), 30, 20)
    with pytest.raises(InputError, match=r"f.gpkg lies nowhere near the scene"):
        open_labels(path, elsewhere)


def test_a_missing_vector_library_is_named(tmp_path, monkeypatch):
    path = write_vector(tmp_path / "f.geojson", polygons())
    monkeypatch.setitem(sys.modules, "pyogrio", None)
    with pytest.raises(InputError, match=r"pip install 'ganlab\[vector\]'"):
        open_labels(path, GRID)


@pytest.mark.parametrize(
    ("bands", "others", "expected"),
    [
        ("red green blue", "red green blue", False),
        ("red green blue", "blue green red", True),
        ("red green blue", "nir red green", True),
        ("red green blue", "B04 B03 B02", False),
        ("red green blue", "red green swir", False),  # nobody knows what else these are called
        ("4 3 2", "2 3 4", True),
        ("4 3 2", "1 2 3", False),  # a file of three bands, cut out of one of thirteen
        ("red green blue", "1 2 3", False),
    ],
)
def test_bands_in_another_order(bands, others, expected):
    pair = tuple(bands.split()), tuple(others.split())
    assert reordered(*pair) is reordered(*reversed(pair)) is expected


def test_a_pipe_is_no_scene(tmp_path):
    os.mkfifo(tmp_path / "a.tif")
    with pytest.raises(InputError, match=r"a\.tif cannot be opened as a raster: it is a pipe"):
        open_scene(tmp_path / "a.tif")
