"""Nodata: each band by its own value, what was asked for before what files declare."""

import warnings

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin
from rasterio.windows import Window

from ganlab.config import TilingConfig
from ganlab.data.missing import asked_nodata, beside_nodata, can_hold, common_nodata, equals_nodata
from ganlab.data.scenes import open_labels, open_scene
from ganlab.errors import InputError

PLACE = from_origin(500_000, 5_000_000, 2, 2)
RNG = np.random.default_rng(8)
FLOAT_MAX = float(np.finfo("float32").max)


def write(path, array, declared=None, mask=None, alpha=None, **options):
    """A GeoTIFF; ``declared`` goes into a file beside it, which takes any number."""
    array = np.asarray(array)
    if alpha is not None:
        array = np.concatenate([array, alpha[None].astype(array.dtype)])
    count, height, width = array.shape
    profile = {"count": count, "height": height, "width": width, "dtype": array.dtype}
    profile |= {"crs": "EPSG:32633", "transform": PLACE, "photometric": "minisblack"}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", "GTiff", **profile | options) as file,
    ):
        if alpha is not None:
            file.colorinterp = [ColorInterp.undefined] * (count - 1) + [ColorInterp.alpha]
        file.write(array)
        if mask is not None:
            file.write_mask(mask)
    if declared is not None:
        bands = "".join(
            f'<PAMRasterBand band="{i}"><NoDataValue>{declared!r}</NoDataValue></PAMRasterBand>'
            for i in range(1, count + 1)
        )
        path.with_name(path.name + ".aux.xml").write_text(f"<PAMDataset>{bands}</PAMDataset>")
    return str(path)


def vrt(path, files, nodata):
    """Band files as bands of one VRT, each with its own nodata value."""
    with rasterio.open(files[0]) as file:
        width, height = file.width, file.height
        kind = {"uint8": "Byte", "uint16": "UInt16", "float32": "Float32"}[file.dtypes[0]]
    bands = ""
    for i, (name, value) in enumerate(zip(files, nodata, strict=True), start=1):
        declared = "" if value is None else f"<NoDataValue>{value}</NoDataValue>"
        bands += (
            f'<VRTRasterBand dataType="{kind}" band="{i}">{declared}<SimpleSource><SourceFilename>'
            f"{name}</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>"
        )
    path.write_text(
        f'<VRTDataset rasterXSize="{width}" rasterYSize="{height}"><SRS>EPSG:32633</SRS>'
        f"<GeoTransform>500000, 2, 0, 5000000, 0, -2</GeoTransform>{bands}</VRTDataset>"
    )
    return str(path)


def everything(scene):
    return scene.read(Window(0, 0, scene.grid.width, scene.grid.height))


def missing(scene):
    return np.argwhere(~everything(scene)[1]).tolist()


def silently(call, *values, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", PendingDeprecationWarning)  # rasterio's way to multiply
        return call(*values, **options)


# --- Bands with values of their own ---------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("how", ["vrt", "files"])
def test_each_band_is_compared_with_its_own_value(tmp_path, dtype, how):
    one, two = RNG.integers(50, 90, (2, 1, 12, 15)).astype(dtype)
    one[0, 0, :3], two[0, 1, :3] = 255, 0  # missing
    one[0, 2, :3], two[0, 3, :3] = 0, 255  # measured: the other band's value
    files = [
        write(tmp_path / "a.tif", one, nodata=255),
        write(tmp_path / "b.tif", two, nodata=0),
    ]
    paths = files if how == "files" else vrt(tmp_path / "ab.vrt", files, (255, 0))
    scene = silently(open_scene, paths)
    assert missing(scene) == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert scene.nodata is None
    np.testing.assert_array_equal(everything(scene)[0], np.concatenate([one, two]))
    only = open_scene(paths, bands=("2",))
    assert only.nodata == 0
    assert missing(only) == [[1, 0], [1, 1], [1, 2]]


def test_a_band_that_declares_nothing_is_measured_everywhere(tmp_path):
    array = np.full((1, 4, 5), 9, np.uint8)
    array[0, 1, 1] = 0
    files = [write(tmp_path / "a.tif", array), write(tmp_path / "b.tif", array + 1)]
    scene = open_scene(vrt(tmp_path / "ab.vrt", files, (None, 1)))
    assert missing(scene) == [[1, 1]]
    assert missing(open_scene(vrt(tmp_path / "ba.vrt", files, (None, 0)))) == []


@pytest.mark.parametrize("how", ["mask", "alpha"])
def test_masks_and_alpha_count_beside_a_nodata_value(tmp_path, how):
    """GDAL forgets the alpha band of a file that has a nodata value."""
    array = RNG.integers(50, 90, (3, 6, 7), np.uint8)
    array[:, 0, 0] = 7
    seen = np.full((6, 7), 255, np.uint8)
    seen[4, 5] = 0
    scene = open_scene(write(tmp_path / "a.tif", array, nodata=7, **{how: seen}))
    assert missing(scene) == [[0, 0], [4, 5]]
    assert len(scene.bands) == 3


# --- Values and types -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "value", "expected"),
    [("uint8", 255, True), ("uint8", 256, False), ("uint8", -9999, False), ("uint8", 0.5, False),
     ("int16", -9999.0, True), ("uint16", float("nan"), False), ("float32", float("nan"), True),
     ("float32", FLOAT_MAX, True), ("float32", 1.7e308, False), ("float64", 1.7e308, True)],
)  # fmt: skip
def test_values_that_a_type_can_hold(dtype, value, expected):
    assert can_hold(dtype, value) is expected
    if not expected:
        pixels = np.array([0, 1, 255]).astype(dtype)
        assert not equals_nodata(pixels, value).any()


@pytest.mark.parametrize("declared", [-FLOAT_MAX, FLOAT_MAX, 9.96921e36, -9999.0, 0.1, 1e20, 0.0])
def test_a_float_equals_its_text(declared):
    """The double that a file's header says, and the float32 that its pixels hold."""
    pixels = np.array([declared, np.float32(declared), 5, -5, np.nan], "float32")
    expected = [True, True, False, False, False]
    assert silently(equals_nodata, pixels, declared).tolist() == expected
    assert silently(equals_nodata, pixels, float(f"{declared:.7g}")).tolist() == expected


def test_rounding_is_allowed_as_gdal_does(tmp_path):
    steps = np.float32(7) + np.arange(-12, 13) * np.spacing(np.float32(7))
    path = write(tmp_path / "a.tif", steps.astype("float32")[None, None], nodata=7)
    with rasterio.open(path) as file:
        by_gdal = file.dataset_mask()[0] == 0
    found = equals_nodata(steps.astype("float32"), 7.0)
    assert found[12]
    assert (found != by_gdal).sum() <= 2  # the outermost, where "less" and "at most" differ


@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [("uint8", 0), ("uint8", 255), ("uint16", 65535), ("int16", -32768), ("float32", 0.0),
     ("float32", -9999.0), ("float32", FLOAT_MAX), ("float32", -FLOAT_MAX), ("float64", 5.0)],
)  # fmt: skip
def test_the_value_beside_nodata_is_measured(dtype, nodata):
    beside = silently(beside_nodata, dtype, nodata)
    assert beside.dtype == dtype
    assert np.isfinite(beside)
    assert not equals_nodata(np.array([beside]), nodata).any()
    assert abs(float(beside) - nodata) <= max(1, 3e-5 * abs(nodata))


@pytest.mark.parametrize("declared", [-9999, 300, -1.7976931348623157e308, float("nan")])
def test_a_declared_value_that_bytes_never_have_matches_nothing(tmp_path, declared):
    scene = silently(open_scene, write(tmp_path / "a.tif", np.ones((2, 4, 5), np.uint8), declared))
    assert scene.nodata is None
    assert missing(scene) == []


def test_a_declared_double_beyond_float32_is_no_message(tmp_path):
    array = np.ones((1, 4, 5), "float32")
    array[0, 1, 2] = -FLOAT_MAX
    scene = silently(open_scene, write(tmp_path / "a.tif", array, -1.7976931348623157e308))
    assert missing(scene) == []


def test_doubles_that_float32_cannot_hold_are_not_measured(tmp_path):
    array = np.ones((1, 4, 5))
    array[0, 1, 2] = -1.7976931348623157e308
    assert missing(open_scene(write(tmp_path / "a.tif", array))) == [[1, 2]]


def test_common_values():
    assert common_nodata([3.0, 3.0]) == 3
    assert common_nodata([3.0, 4.0]) is common_nodata([3.0, None]) is common_nodata([None]) is None
    assert np.isnan(common_nodata([float("nan"), float("nan")]))


# --- What is asked for ----------------------------------------------------------------------


def test_what_is_asked_for_wins_and_says_so(tmp_path):
    array = RNG.integers(50, 90, (2, 6, 7)).astype("int16")
    array[:, 0, 0], array[:, 1, 1] = -9999, -32768
    path = write(tmp_path / "a.tif", array, nodata=-32768)
    with pytest.warns(UserWarning, match=r"a\.tif declares nodata -32768; --nodata -9999 takes"):
        scene = open_scene(path, nodata=-9999)
    assert scene.nodata == -9999
    assert missing(scene) == [[0, 0]]
    with pytest.warns(UserWarning, match=r"declares nodata -32768; --nodata none takes"):
        scene = open_scene(path, nodata="none")
    assert scene.nodata is None
    assert missing(scene) == []
    assert missing(silently(open_scene, path, nodata=-32768.0)) == [[1, 1]]
    assert missing(silently(open_scene, write(tmp_path / "b.tif", array), nodata=-9999)) == [[0, 0]]


def test_labels_have_an_option_of_their_own(tmp_path):
    array = np.array([[[0, 1, 1], [255, 0, 1]]], np.uint8)
    path = write(tmp_path / "l.tif", array, nodata=0)
    like = open_scene(path).grid
    assert missing(open_labels(path, like)) == [[0, 0], [1, 1]]
    with pytest.warns(UserWarning, match=r"l\.tif declares nodata 0; --label-nodata none takes"):
        assert missing(open_labels(path, like, nodata="none")) == []
    with pytest.warns(UserWarning, match=r"--label-nodata 255 takes"):
        assert missing(open_labels(path, like, nodata=255)) == [[1, 0]]


@pytest.mark.parametrize("value", [-9999, 256, 0.5, float("nan"), 1e300])
def test_a_value_that_the_pixels_never_have_is_refused_when_asked_for(tmp_path, value):
    path = write(tmp_path / "a.tif", np.ones((1, 4, 5), np.uint8))
    with pytest.raises(InputError, match=r"--nodata .* the pixels of .*a\.tif are uint8, whole"):
        open_scene(path, nodata=value)


def test_none_in_any_spelling_means_no_value_and_python_none_leaves_it_to_the_file(tmp_path):
    path = write(tmp_path / "a.tif", np.array([[[1, 7, 7]]], np.uint8), declared=7)
    found = {}
    for word in ("none", "None", "declared", None):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found[word] = missing(open_scene(path, nodata=word))
    assert found["none"] == found["None"] == []
    assert found["declared"] == found[None] == [[0, 1], [0, 2]]


@pytest.mark.parametrize("option", ["nodata", "label_nodata", "fine_nodata"])
def test_settings_of_nodata_are_one_of_three_things(option, tmp_path):
    def setting(value):
        return getattr(TilingConfig(("a.tif",), tmp_path, **{option: value}), option)

    words = ["none", "None", "NONE", "declared", None, -9999, np.float32(0.5)]
    asked = ["none", "none", "none", "declared", "declared", -9999.0, 0.5]
    assert [setting(word) for word in words] == asked
    for wrong in ("-9999", "nothing", True, (0,)):
        with pytest.raises(InputError, match=f"{option} is .*: expected a number, none or decl"):
            setting(wrong)


@pytest.mark.parametrize("value", ["nothing", "0", True, (0,)])
def test_only_numbers_and_none_are_values(value):
    with pytest.raises(InputError, match="--nodata .*: expected a number, or none"):
        asked_nodata(value, "uint8", "a.tif", "--nodata")


def test_floats_take_nan(tmp_path):
    array = np.ones((1, 4, 5), "float32")
    array[0, 1, 2] = np.nan
    assert missing(open_scene(write(tmp_path / "a.tif", array), nodata=float("nan"))) == [[1, 2]]
