"""What belongs to a raster: sources of VRTs, and files that GDAL reads beside it."""

import os
import warnings

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.enums import Resampling

from ganlab.data.raster_files import is_same_file, shown, side_files, source_files
from ganlab.errors import InputError

PLACE = {"crs": "EPSG:32633", "transform": Affine(2, 0, 500_000, 0, -2, 5_000_000)}
RPC = "LINE_OFF: 8\nSAMP_OFF: 8\nLAT_OFF: 1\nLONG_OFF: 1\nHEIGHT_OFF: 0\n"
RPC += "".join(f"{name}_SCALE: 8\n" for name in ("LINE", "SAMP", "LAT", "LONG", "HEIGHT"))
RPC += "".join(
    f"{name}_COEFF_{i}: 1\n"
    for name in ("LINE_NUM", "LINE_DEN", "SAMP_NUM", "SAMP_DEN")
    for i in range(1, 21)
)
IMD = 'version = "AA";\nBEGIN_GROUP = IMAGE_1\nsatId = "WV02";\nEND_GROUP = IMAGE_1\nEND;\n'
PAM = '<PAMDataset><Metadata><MDI key="old">yes</MDI></Metadata></PAMDataset>'
WORLD = "2\n0\n0\n-2\n100\n200\n"
TAB = """!table
!version 300
Definition Table
  File "made.tif"
  Type "RASTER"
  (500000,5000000) (0,0) Label "Pt 1",
  (500016,5000000) (16,0) Label "Pt 2",
  (500000,4999984) (0,16) Label "Pt 3"
  CoordSys Earth Projection 8, 104, "m", 15, 0, 0.9996, 500000, 0
"""
VECTOR_TAB = """!table
!version 300
Definition Table
  Type NATIVE Charset "WindowsLatin1"
  Fields 1
    id Integer ;
"""

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def raster(path, size=32, georeferenced=True):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        profile = {"driver": "GTiff", "width": size, "height": size, "count": 1, "dtype": "uint8"}
        with rasterio.open(path, "w", **profile, **(PLACE if georeferenced else {})) as file:
            file.write(np.full((1, size, size), 7, np.uint8))
    return path


def names(paths):
    return sorted(path.name for path in paths)


@pytest.mark.parametrize("suffix", [".tif", ".tiff", ".TIF"])
def test_what_gdal_itself_wrote_beside_a_raster(tmp_path, suffix):
    path = raster(tmp_path / f"made{suffix}")
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False, TIFF_USE_OVR=True),
        rasterio.open(path, "r+") as file,
    ):
        file.write_mask(np.eye(32, dtype=bool))
        file.build_overviews([2], Resampling.nearest)
    (tmp_path / f"made{suffix}.aux.xml").write_text(PAM)
    expected = [f"made{suffix}.aux.xml", f"made{suffix}.msk", f"made{suffix}.ovr"]
    found = names(side_files(path))
    assert set(expected) <= set(found)
    # All that GDAL says it reads, and no more than there is.
    with rasterio.open(path) as file:
        read = {os.path.basename(name) for name in file.files}
    assert read - {path.name} <= set(found)


@pytest.mark.parametrize("georeferenced", [True, False])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("made_rpc.txt", RPC),
        ("made_RPC.TXT", RPC),
        ("made.rpc", RPC),
        ("made.IMD", IMD),
        ("made.imd", IMD),
        ("made.tif.aux.xml", PAM),
        ("made.tfw", WORLD),
        ("made.TFW", WORLD),
        ("made.tifw", WORLD),
        ("made.wld", WORLD),
        ("made.tab", TAB),
    ],
)
def test_whatever_would_describe_a_new_raster_is_found(tmp_path, name, text, georeferenced):
    """Compared with what GDAL says of a raster that is really there."""
    (tmp_path / name).write_text(text)
    found = names(side_files(tmp_path / "made.tif", georeferenced))
    path = raster(tmp_path / "made.tif", georeferenced=georeferenced)
    with_it = shown(path), imagery(path)
    (tmp_path / name).unlink()
    without = shown(path), imagery(path)
    if with_it != without:
        assert found == [name]
    elif name == "made.tab":
        assert found == []  # GDAL does not look at it: it may be a table of the user's
    else:
        assert found == [name]  # a world file, which other programs read


def imagery(path):
    with rasterio.open(path) as file:
        return file.tags(ns="IMD")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("made.txt", "notes"),
        ("made.tif.md5", "1234"),
        ("made.tif.xml", "<metadata/>"),
        ("made.qml", "<qgis/>"),
        ("made.csv", "1,2"),
        ("made.xml", "<notes/>"),
        ("made_metadata.txt", "notes"),
        ("made.tab", VECTOR_TAB),
        ("made.aux", "\\relax"),
        ("made.prj", "PROJCS"),
        ("made-alpha.tif.aux.xml", PAM),
        ("made.2.tif.aux.xml", PAM),
        ("unmade.tif.aux.xml", PAM),
        ("made.tif.aux.xml.bak", PAM),
        ("other.tif.msk", "x"),
    ],
)
@pytest.mark.parametrize("georeferenced", [True, False])
def test_files_of_the_user_are_not_taken_for_parts(tmp_path, name, text, georeferenced):
    (tmp_path / name).write_text(text)
    assert side_files(tmp_path / "made.tif", georeferenced) == []


def test_a_folder_is_no_side_file(tmp_path):
    (tmp_path / "made.tif.msk").mkdir()
    (tmp_path / "made_rpc.txt").mkdir()
    assert side_files(tmp_path / "made.tif") == []
    assert side_files(tmp_path / "missing" / "made.tif") == []


def test_what_belongs_to_another_raster_of_the_same_stem(tmp_path):
    """A world file of a PNG would move an output that does not say where it lies."""
    raster(tmp_path / "made.png")
    world = tmp_path / "made.wld"
    world.write_text(WORLD)
    assert side_files(tmp_path / "made.tif", georeferenced=True) == []
    with pytest.raises(InputError, match=r"made\.wld would describe it, but belongs to made\.png"):
        side_files(tmp_path / "made.tif", georeferenced=False)
    assert world.read_text() == WORLD


# What a raster is made from


VRT = """<VRTDataset rasterXSize="32" rasterYSize="32"><VRTRasterBand dataType="Byte" band="1">
<SimpleSource><SourceFilename relativeToVRT="1">{}</SourceFilename><SourceBand>1</SourceBand>
</SimpleSource></VRTRasterBand></VRTDataset>"""


def test_sources_of_vrts_and_of_vrts_of_vrts(tmp_path):
    first = raster(tmp_path / "first.tif")
    (tmp_path / "one.vrt").write_text(VRT.format("first.tif"))
    (tmp_path / "two.vrt").write_text(VRT.format("one.vrt"))
    found = source_files([str(tmp_path / "two.vrt"), str(tmp_path / "missing.tif")])
    expected = {first, *(tmp_path / name for name in ("one.vrt", "two.vrt", "missing.tif"))}
    assert {path.resolve() for path in found} == expected


def test_a_vrt_that_is_its_own_source_ends(tmp_path):
    loop = tmp_path / "loop.vrt"
    loop.write_text(VRT.format("loop.vrt"))
    assert loop in source_files([str(loop)])


def test_the_mask_of_a_scene_belongs_to_it(tmp_path):
    path = raster(tmp_path / "scene.tif")
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False),
        rasterio.open(path, "r+") as file,
    ):
        file.write_mask(np.zeros((32, 32), bool))
    assert names(source_files([str(path)])) == ["scene.tif", "scene.tif.msk"]


def test_one_file_by_several_paths(tmp_path, monkeypatch):
    path = raster(tmp_path / "scene.tif")
    os.link(path, tmp_path / "hard.tif")
    (tmp_path / "soft.tif").symlink_to(path)
    copy = raster(tmp_path / "copy.tif")
    monkeypatch.chdir(tmp_path)
    for other in ("hard.tif", "soft.tif", "../" + tmp_path.name + "/scene.tif", "./scene.tif"):
        assert is_same_file(path, tmp_path / other)
        assert is_same_file(type(path)(other), path)
    assert not is_same_file(path, copy)
    assert not is_same_file(path, tmp_path / "missing.tif")
    assert is_same_file(tmp_path / "missing.tif", type(path)("missing.tif"))
