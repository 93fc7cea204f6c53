"""Every repair line that a message prints is carried out on what it is printed for."""

import re
import shlex
import warnings

import numpy as np
import pytest
import rasterio
from affine import Affine
from gdal_lines import WAYS, carry_out
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.rpc import RPC
from rasterio.transform import from_origin
from rasterio.warp import transform
from rasterio.windows import Window

from ganlab.config import TilingConfig
from ganlab.data.repairs import common_type, crs_difference, same_crs
from ganlab.data.scenes import check_same_grid, open_labels, open_scene
from ganlab.data.tiling import tile
from ganlab.errors import InputError

UTM = "EPSG:32633"
NORTH_UP = from_origin(500_000, 5_000_000, 2, 2)
RNG = np.random.default_rng(3)
IMAGE = RNG.integers(1, 200, (3, 20, 30), np.uint8)


def write(path, array, crs=UTM, transform=NORTH_UP, alpha=None, **options):
    array = np.asarray(array)
    if alpha is not None:
        array = np.concatenate([array, alpha[None].astype(array.dtype)])
    count, height, width = array.shape
    profile = {"driver": "GTiff", "width": width, "height": height, "count": count}
    profile |= {"dtype": array.dtype, "crs": crs, "transform": transform}
    profile["photometric"] = "minisblack"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path, "w", **profile | options) as file:
            if alpha is not None:
                plain = [ColorInterp.gray, *[ColorInterp.undefined] * (count - 2)]
                file.colorinterp = [*plain, ColorInterp.alpha]
            file.write(array)
    return str(path)


def everything(scene):
    return scene.read(Window(0, 0, scene.grid.width, scene.grid.height))


def refusal(call, *values, **options):
    with pytest.raises(InputError) as error:
        call(*values, **options)
    message = str(error.value)
    assert "\n" not in message
    return message


# --- Grids ----------------------------------------------------------------------------------


REFERENCES = {
    "north-up": NORTH_UP,
    "south-up": Affine(2, 0, 500_000, 0, 2, 4_999_960),
    "turned": NORTH_UP * Affine.rotation(20),
    "mirrored": Affine(-2, 0, 500_060, 0, -2, 5_000_000),
}
OTHERS = {
    "shifted": (UTM, NORTH_UP * Affine.translation(0.5, 0.5), (40, 60)),
    "only a part": (UTM, NORTH_UP * Affine.translation(15, 3), (40, 60)),
    "finer": (UTM, from_origin(499_990, 5_000_010, 1, 1), (80, 120)),
    "turned": (UTM, NORTH_UP * Affine.rotation(-30), (40, 60)),
    "another system": ("EPSG:4326", from_origin(14.9999, 45.1535, 3e-5, 2e-5), (40, 60)),
}
DECLARED = ("nothing", "nodata", "alpha")


def other_raster(path, name, declared, bands=1):
    crs, place, size = OTHERS[name]
    array, options = RNG.integers(1, 5, (bands, *size), np.uint8), {}
    if declared == "nodata":
        array[:, 5:12] = 9
        options["nodata"] = 9
    if declared == "alpha":
        options["alpha"] = np.full(size, 255, np.uint8)
        options["alpha"][5:12] = 0
    return write(path, array, crs, place, **options)


def nearest(reference, other):
    """What each pixel of the reference should hold, point by point: (values, valid)."""
    columns, rows = np.meshgrid(np.arange(30) + 0.5, np.arange(20) + 0.5)
    xs, ys = reference.grid.transform * (columns.ravel(), rows.ravel())
    xs, ys = transform(reference.grid.crs, other.grid.crs, xs, ys)
    columns, rows = ~other.grid.transform * (np.array(xs), np.array(ys))
    columns, rows = np.floor(columns).astype(int), np.floor(rows).astype(int)
    width, height = other.grid.width, other.grid.height
    inside = (columns >= 0) & (rows >= 0) & (columns < width) & (rows < height)
    at = (rows.clip(0, height - 1), columns.clip(0, width - 1))
    values, valid = everything(other)
    return values[0][at].reshape(20, 30), (inside & valid[at]).reshape(20, 30)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("declared", DECLARED)
@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("grid", REFERENCES)
def test_labels_are_brought_onto_any_grid(tmp_path, grid, name, declared, way):
    """The result lies on the grid, holds the right classes, and is missing where they are."""
    reference = open_scene(write(tmp_path / "a.tif", IMAGE, transform=REFERENCES[grid]))
    path = other_raster(tmp_path / "my b.tif", name, declared)
    other = open_labels(path, reference.grid)
    message = refusal(check_same_grid, reference, other, "label")
    carry_out(message.split("Repair: ")[1], way)
    warped = open_labels(tmp_path / "my b-warped.tif", reference.grid)
    check_same_grid(reference, warped, "label")
    values, valid = everything(warped)
    expected, known = nearest(reference, other)
    assert 0.1 < known.mean() <= 1
    assert (valid != known).mean() < 0.01  # of two pixels just as near either may be taken
    assert (values[0] != expected)[valid & known].mean() < 0.01


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("grid", REFERENCES)
def test_images_of_several_bands_are_brought_onto_any_grid(tmp_path, grid, way):
    reference = open_scene(write(tmp_path / "a.tif", IMAGE, transform=REFERENCES[grid]))
    other = open_scene(other_raster(tmp_path / "b.tif", "only a part", "nothing", bands=4))
    carry_out(refusal(check_same_grid, reference, other).split("Repair: ")[1], way)
    warped = open_scene(tmp_path / "b-warped.tif")
    check_same_grid(reference, warped)
    values, valid = everything(warped)
    assert len(values) == 4
    _, known = nearest(reference, other)
    assert (valid != known).mean() < 0.05
    assert values[:, valid].min() >= 1  # no black border was blended in


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("grid", ["north-up", "turned"])
def test_finer_images_are_brought_onto_a_nested_grid(tmp_path, grid, way):
    reference = open_scene(write(tmp_path / "a.tif", IMAGE, transform=REFERENCES[grid]))
    other = open_scene(other_raster(tmp_path / "b.tif", "finer", "nothing"))
    carry_out(refusal(check_same_grid, reference, other, factor=3).split("Repair: ")[1], way)
    check_same_grid(reference, open_scene(tmp_path / "b-warped.tif"), factor=3)


def test_rasters_without_ground_in_common_are_said_to_have_none(tmp_path):
    reference = open_scene(write(tmp_path / "a.tif", IMAGE))
    away = open_scene(write(tmp_path / "b.tif", IMAGE, transform=from_origin(0, 0, 2, 2)))
    assert "They have no ground in common" in refusal(check_same_grid, reference, away)


# --- Systems --------------------------------------------------------------------------------


WKT = CRS.from_epsg(32633).to_wkt()
SPHEROID = 'SPHEROID["WGS 84",6378137,298.257223563,AUTHORITY["EPSG","7030"]]'
AXES = 'AXIS["Easting",EAST],AXIS["Northing",NORTH]'
SAME = {
    "of the second version": CRS.from_epsg(32633).to_wkt(version="WKT2_2019"),
    "by parameters": CRS.from_epsg(32633).to_proj4(),
    "with heights": "EPSG:32633+5773",
    "with a shift": WKT.replace(SPHEROID, f"{SPHEROID},TOWGS84[0,0,0,0,0,0,0]"),
    "under another name": WKT.replace("WGS 84 / UTM zone 33N", "ours"),
    "without its code": WKT.replace(',AUTHORITY["EPSG","32633"]', ""),
    "with the axes in another order": WKT.replace(
        AXES, 'AXIS["Northing",NORTH],AXIS["Easting",EAST]'
    ),
}
OTHER = {
    "EPSG:32634": "CRS EPSG:32634, not EPSG:32633",
    "EPSG:25833": "CRS EPSG:25833, not EPSG:32633",
    "EPSG:32634+5773": 'CRS "WGS 84 / UTM zone 34N + EGM96 height", not "WGS 84 / UTM zone 33N"',
    WKT.replace('"central_meridian",15', '"central_meridian",15.5'): "15.5], not PARAMETER",
    WKT.replace('UNIT["metre",1,AUTHORITY["EPSG","9001"]]', 'UNIT["foot",0.3048]'): "foot",
}


@pytest.mark.parametrize("how", SAME)
def test_a_system_written_in_another_way_is_the_same(tmp_path, how):
    crs = CRS.from_user_input(SAME[how])
    assert same_crs(crs, CRS.from_epsg(32633))
    assert same_crs(CRS.from_epsg(32633), crs)
    reference = open_scene(write(tmp_path / "a.tif", IMAGE))
    check_same_grid(reference, open_scene(write(tmp_path / "b.tif", IMAGE, crs=crs)))


@pytest.mark.parametrize("text", OTHER)
def test_what_differs_between_two_systems_is_named(text):
    crs = CRS.from_user_input(text)
    assert not same_crs(crs, CRS.from_epsg(32633))
    said = crs_difference(crs, CRS.from_epsg(32633))
    assert OTHER[text] in said
    one, other = re.fullmatch(r"CRS (.*), not (.*)", said).groups()
    assert one != other


def test_systems_of_one_ellipsoid_but_two_datums_are_two():
    assert not same_crs(CRS.from_epsg(28355), CRS.from_epsg(7855))  # 1.8 m apart in Australia
    assert same_crs(CRS.from_string("OGC:CRS84"), CRS.from_epsg(4326))


# --- Types ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [("uint8", "uint16", "uint16"), ("int16", "uint16", "int32"), ("uint32", "int32", "float64"),
     ("uint8", "float32", "float32"), ("int32", "float32", "float64")],
)  # fmt: skip
def test_a_common_type_holds_the_values_of_both(one, other, expected):
    assert common_type(one, other) == common_type(other, one) == expected


@pytest.mark.parametrize("way", WAYS)
def test_band_files_of_two_types_are_brought_to_one(tmp_path, way):
    one = write(tmp_path / "b 1.tif", IMAGE[:1])
    two = write(tmp_path / "b2.tif", IMAGE[:1].astype("uint16") * 300, nodata=0)
    message = refusal(open_scene, [one, two])
    carry_out(message.split("Repair: ")[1], way)
    scene = open_scene([str(tmp_path / "b 1-uint16.tif"), two])
    assert scene.dtype == "uint16"
    np.testing.assert_array_equal(everything(scene)[0], [IMAGE[0], IMAGE[0].astype("uint16") * 300])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["image", "label"])
def test_scenes_of_two_types_are_brought_to_one(tmp_path, kind, way):
    images = [write(tmp_path / f"{i}.tif", IMAGE) for i in "ab"]
    codes = IMAGE[:1].astype("int16") * 100
    others = [write(tmp_path / "c.tif", IMAGE[:1]), write(tmp_path / "d.tif", codes)]
    given = {"images": tuple(images), "labels": tuple(others)}
    if kind == "image":
        given = {"images": tuple(others)}
    config = {"to": tmp_path / "store", "size": 8, "edges": "drop"}
    carry_out(refusal(tile, TilingConfig(**given, **config)).split("to one type: ")[1], way)
    given[f"{kind}s"] = (str(tmp_path / "c-int16.tif"), others[1])
    store = tile(TilingConfig(**given, **config))
    assert store.sources[kind].dtype == "int16"
    first = next(tile for tile in store.tiles if tile.scene == store.tiles[-1].scene)
    np.testing.assert_array_equal(store.read(kind, first.tile)[0], codes[:, :8, :8])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("values", "expected"),
    [([0, 3], "uint8"), ([0, 300], "int16"), ([0, 60_000], "uint16"), ([-5, 70_000], "int32"),
     ([0, 4_000_000_000], "uint32"), ([-5, 4_000_000_000], "float64")],
)  # fmt: skip
def test_classes_of_64_bits_take_the_smallest_type_that_holds_them(tmp_path, values, expected, way):
    """Never one that changes a code."""
    codes = RNG.choice(np.array(values, np.int64), (1, 20, 30))
    path = write(tmp_path / "codes.tif", codes)
    message = refusal(open_scene, path)
    assert "bands of type int64" in message
    if way == "gdal":  # the oldest GDAL in use knows int64 since 3.5
        carry_out(message.split("Repair: ")[1], way)
        path = tmp_path / f"codes-{expected}.tif"
        np.testing.assert_array_equal(everything(open_scene(path))[0], codes)
    carry_out(message.split("Repair: ")[1])
    with rasterio.open(tmp_path / f"codes-{expected}.tif") as file:
        assert file.dtypes == (expected,)
        np.testing.assert_array_equal(file.read(), codes)


def test_codes_that_no_type_holds_get_no_line(tmp_path):
    path = write(tmp_path / "codes.tif", np.full((1, 4, 4), 2**60, np.int64))
    assert "None of them holds its values exactly" in refusal(open_scene, path)


def test_radar_is_brought_to_its_amplitude(tmp_path):
    array = (IMAGE[:1] * np.exp(1j * IMAGE[1:2])).astype("complex64")
    path = write(tmp_path / "radar.tif", array)
    line = refusal(open_scene, path).split("Take the amplitude: ")[1]
    *_, source, target = shlex.split(line)
    with rasterio.open(source) as file:
        np.testing.assert_allclose(file.read(), IMAGE[:1], rtol=1e-5)
    if "gdal" in WAYS:
        carry_out(line, "gdal")
        np.testing.assert_allclose(everything(open_scene(target))[0], IMAGE[:1], rtol=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_labels_of_two_bands_name_the_bands_and_keep_one(tmp_path, way):
    array = np.stack([IMAGE[0] % 3, IMAGE[1]])
    path = write(tmp_path / "l.tif", array)
    with rasterio.open(path, "r+") as file:
        file.descriptions = ("kind", "confidence")
    like = open_scene(write(tmp_path / "a.tif", IMAGE)).grid
    message = refusal(open_labels, path, like)
    assert "l.tif has 2 bands of uint8; labels are one band of classes" in message
    assert "1 (kind), 2 (confidence)" in message
    assert "--fine" in message
    carry_out(re.search(r"gdal_translate -b .*\.tif", message)[0], way)
    labels = open_labels(tmp_path / "l-band1.tif", like)
    np.testing.assert_array_equal(everything(labels)[0], array[:1])


def test_bands_in_another_order_are_brought_into_one(tmp_path):
    """Images by the option, finer rasters, for which there is none, by a line."""
    names = [("red", "green", "blue"), ("blue", "red", "green")]
    images, fine = [], []
    for i, order in enumerate(names):
        east = Affine.translation(100 * i, 0)
        finer = np.stack([IMAGE[names[0].index(name)] for name in order])
        images.append(write(tmp_path / f"{i}.tif", finer, transform=NORTH_UP * east))
        place = NORTH_UP * east * Affine.scale(0.5)
        fine.append(write(tmp_path / f"f{i}.tif", finer.repeat(2, 1).repeat(2, 2), transform=place))
        for path in (images[-1], fine[-1]):
            with rasterio.open(path, "r+") as file:
                file.descriptions = order
    config = {"images": tuple(images), "to": tmp_path / "store", "size": 8, "edges": "drop"}
    message = refusal(tile, TilingConfig(**config))
    bands = tuple(message.split("--bands ")[1].split())
    config["bands"] = bands
    message = refusal(tile, TilingConfig(**config, fine=tuple(fine)))
    carry_out(message.split("Repair: ")[1])
    fine[1] = str(tmp_path / "f1-ordered.tif")
    store = tile(TilingConfig(**config, fine=tuple(fine)))
    half = len(store) // 2
    for name, factor in (("image", 1), ("fine", 2)):
        pixels = store.read(name, range(len(store)))
        np.testing.assert_array_equal(pixels[:half], pixels[half:])
        expected = IMAGE[:, :8, :8].repeat(factor, 1).repeat(factor, 2)
        np.testing.assert_array_equal(pixels[0], expected)


# --- Rasters without a grid -------------------------------------------------------------------


def points_of(place, crs):
    """Control points that lie where a grid in UTM has its corners."""
    found = []
    for row, column in ((0, 0), (0, 60), (40, 0), (40, 60), (20, 30)):
        x, y = place * (column, row)
        (x,), (y,) = transform(UTM, crs, [x], [y])
        found.append(GroundControlPoint(row, column, x, y))
    return found


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("crs", [UTM, "EPSG:4326", None])
def test_control_points_are_warped_into_a_grid(tmp_path, crs, way):
    place = NORTH_UP * Affine.rotation(10)
    points = points_of(place, crs or "EPSG:4326")
    array = RNG.integers(100, 200, (1, 40, 60), np.uint8)
    array[0, 10:14, 20:24] = 255
    path = write(tmp_path / "in.tif", array, crs=None, transform=Affine.identity())
    with rasterio.open(path, "r+") as file:
        file.gcps = (points, CRS.from_user_input(crs) if crs else CRS())
    message = refusal(open_scene, path)
    assert "ground control points" in message
    assert "--ungeoreferenced would lose the place" in message
    line = re.search(r"gdalwarp .*-warped\.tif", message)[0]
    assert f"-t_srs {UTM}" in line
    carry_out(line, way)
    scene = open_scene(tmp_path / "in-warped.tif")
    values, valid = everything(scene)
    assert not valid.all()  # the corners, which nobody saw
    assert values[0][valid].min() >= 100
    row, column = np.argwhere((values[0] == 255) & valid).mean(axis=0) + 0.5
    x, y = scene.grid.transform * (column, row)
    expected = place * (22, 12)
    assert np.hypot(x - expected[0], y - expected[1]) < 4  # two pixels


def test_control_points_without_a_known_system_ask_for_it(tmp_path):
    path = write(tmp_path / "in.tif", IMAGE, crs=None, transform=Affine.identity())
    with rasterio.open(path, "r+") as file:
        file.gcps = (points_of(NORTH_UP, UTM), CRS())
    assert "-s_srs SYSTEM -t_srs SYSTEM" in refusal(open_scene, path)


@pytest.mark.parametrize("way", WAYS)
def test_rational_polynomials_are_warped_into_a_grid(tmp_path, way):
    """Ten metres a pixel around 45 degrees north, 15 degrees east."""
    one = [1.0] + [0.0] * 19
    along = [0.0, 1.0] + [0.0] * 18  # of longitude
    down = [0.0, 0.0, -1.0] + [0.0] * 17  # against latitude
    rpc = RPC(
        err_bias=0, err_rand=0, height_off=0, height_scale=500, lat_off=45.0, lat_scale=0.002,
        long_off=15.0, long_scale=0.004, line_off=20, line_scale=20, samp_off=30, samp_scale=30,
        line_num_coeff=down, line_den_coeff=one, samp_num_coeff=along, samp_den_coeff=one,
    )  # fmt: skip
    array = RNG.integers(100, 200, (1, 40, 60), np.uint8)
    array[0, 18:22, 28:32] = 255
    path = write(tmp_path / "in.tif", array, crs=None, transform=Affine.identity(), rpcs=rpc)
    message = refusal(open_scene, path)
    assert "rational polynomials (RPC)" in message
    line = re.search(r"gdalwarp .*-warped\.tif", message)[0]
    assert f"-rpc -t_srs {UTM}" in line
    carry_out(line, way)
    scene = open_scene(tmp_path / "in-warped.tif")
    values, valid = everything(scene)
    row, column = np.argwhere((values[0] == 255) & valid).mean(axis=0) + 0.5
    x, y = scene.grid.transform * (column, row)
    (longitude,), (latitude,) = transform(scene.grid.crs, "EPSG:4326", [x], [y])
    assert abs(longitude - 15) < 3e-4
    assert abs(latitude - 45) < 3e-4
