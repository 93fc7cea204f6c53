"""Pixel sizes on the ground, and what is said where they differ."""

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS

from ganlab import cli
from ganlab.config import (
    ApplyConfig,
    CloudLayersConfig,
    EncoderDecoderConfig,
    EvaluateConfig,
    InpaintingConfig,
    PatchGANConfig,
    Pix2PixConfig,
    SuperResolutionConfig,
    TilingConfig,
    TrainingConfig,
    UNetConfig,
)
from ganlab.data.grids import Grid
from ganlab.data.metres import ground_pixel_size
from ganlab.data.tiling import tile
from ganlab.errors import Note
from ganlab.evaluation import evaluate
from ganlab.inference import apply
from ganlab.training import train

FOOT = 0.3048
US_FOOT = 1200 / 3937
KM_UTM = "+proj=utm +zone=33 +units=km"
UTM = "EPSG:32633"
NEW_YORK = "EPSG:2263"  # Long Island, US survey feet
ARIZONA = "EPSG:2222"  # east, international feet
WEB_MERCATOR = "EPSG:3857"
DEGREES = "EPSG:4326"
LOCAL = 'LOCAL_CS["site",UNIT["US survey foot",0.304800609601219]]'
MOON = "+proj=longlat +R=1737400 +no_defs"


def size_of(crs, pixel, x, y, height=None, pixels=100):
    """The size of a pixel in the middle of a small scene around a place."""
    height = pixel if height is None else height
    corner = Affine.translation(x - pixel * pixels / 2, y + height * pixels / 2)
    grid = Grid(CRS.from_user_input(crs), corner * Affine.scale(pixel, -height), pixels, pixels)
    return ground_pixel_size(grid)


@pytest.mark.parametrize(
    ("crs", "pixel", "x", "y", "metres"),
    [
        (UTM, 10, 320_000, 5.5e6, 10),  # where the scale of UTM is 1
        (UTM, 0.01, 320_000, 5.5e6, 0.01),
        (KM_UTM, 0.01, 320, 5500, 10),
        (NEW_YORK, 1, 984_250, 200_000, US_FOOT),
        (ARIZONA, 1, 700_000, 1_000_000, FOOT),
        (WEB_MERCATOR, 10, 0, 0, 10),
        ("ESRI:54009", 1000, 0, 0, 1000),
        (LOCAL, 1, 0, 0, US_FOOT),
        ("+proj=eqc +R=1737400 +units=m", 5, 0, 0, 5),
    ],
)
def test_units_become_metres(crs, pixel, x, y, metres):
    assert size_of(crs, pixel, x, y) == pytest.approx(metres, rel=4e-3)


# Lengths of a degree on WGS 84 in metres, from published tables: to the east and to the north.
DEGREE = {0: (111_319.5, 110_574.3), 45: (78_846.8, 111_131.7), 60: (55_800.0, 111_412.2)}


@pytest.mark.parametrize(("latitude", "lengths"), DEGREE.items())
@pytest.mark.parametrize("x", [8.0, 180.0, -179.999])
def test_degrees_count_at_their_latitude(latitude, lengths, x):
    east, north = lengths
    expected = 1e-4 * math.sqrt(east * north)
    assert size_of(DEGREES, 1e-4, x, latitude) == pytest.approx(expected, rel=1e-4)
    # As wide as high on the ground: the usual way to make square pixels of degrees.
    square = size_of(DEGREES, 10 / east, x, latitude, height=10 / north)
    assert square == pytest.approx(10, rel=1e-4)


@pytest.mark.parametrize("latitude", [0, 30, 60, -60, 75])
def test_web_mercator_shrinks_to_the_ground(latitude):
    y = 6_378_137 * math.asinh(math.tan(math.radians(latitude)))
    expected = 20 * math.cos(math.radians(latitude))
    assert size_of(WEB_MERCATOR, 20, 1e6, y) == pytest.approx(expected, rel=7e-3)


def test_the_pole_is_a_place_like_others():
    # True to scale at 70 degrees north, 3 % too small at the pole (Snyder 1987, table 32).
    assert size_of("EPSG:3413", 10, 0, 0) == pytest.approx(10.31, rel=1e-3)
    assert size_of(DEGREES, 1, 0, 0, pixels=180) == pytest.approx(110_946, rel=1e-4)


def test_a_turned_grid_has_the_same_pixels():
    turned = Affine.translation(320_000, 5.5e6) * Affine.rotation(33) * Affine.scale(2, -2)
    assert ground_pixel_size(Grid(CRS.from_string(UTM), turned, 9, 9)) == pytest.approx(2, rel=1e-3)


def test_what_has_no_length_has_no_size():
    assert ground_pixel_size(Grid(None, Affine.identity(), 9, 9)) is None
    assert size_of(MOON, 1, 0, 0) is None


# --- what is said --------------------------------------------------------------------------


def write(path, pixel, crs=UTM, place=(320_000.0, 5.5e6), size=64):
    pixels = np.random.default_rng(1).integers(0, 255, (1, size, size), np.uint8)
    form = {"driver": "GTiff", "count": 1, "dtype": "uint8", "width": size, "height": size}
    grid = Affine(pixel, 0, place[0], 0, -pixel, place[1])
    with rasterio.open(path, "w", crs=crs, transform=grid, **form) as file:
        file.write(pixels)
    return str(path)


def said_by(call, *arguments):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        call(*arguments)
    return [warning for warning in said if "pixels of" in str(warning.message)]


PLACES = {UTM: (320_000.0, 5.5e6), NEW_YORK: (984_250.0, 200_000.0), DEGREES: (8.0, 50.0)}


@pytest.fixture(name="run_of", scope="module")
def _run_of(tmp_path_factory):
    """Trains on pixels of a size, once for each kind of system and task."""
    made = {}

    def run_of(pixel, crs=UTM, task=None):
        key = (pixel, crs, type(task))
        if key not in made:
            folder = tmp_path_factory.mktemp("run")
            scene = write(folder / "s.tif", pixel, crs, PLACES[crs])
            tile(TilingConfig((scene,), folder / "t", size=32))
            shape = UNetConfig(width=4, depth=2)
            task = task or Pix2PixConfig("image", "image", shape, adversarial_weight=0.0)
            training = TrainingConfig(steps=1, batch_size=1, tensorboard=False, device="cpu")
            made[key] = train(task, folder / "t", folder / "r", training)
        return made[key]

    return run_of


@pytest.mark.parametrize(
    ("trained", "crs", "pixel", "other_crs", "warns"),
    [
        (0.3048, UTM, 1.0, NEW_YORK, False),
        (1.0, NEW_YORK, 0.3048, UTM, False),
        (1.0, UTM, 1.0, NEW_YORK, True),
        (1.0, NEW_YORK, 1.0, UTM, True),
        (10.0, UTM, 0.00011, DEGREES, False),  # 7.9 m by 12.2 m
        (10.0, UTM, 10.0, DEGREES, True),
        (10.0, UTM, 0.0002, DEGREES, True),
    ],
)
def test_sizes_are_compared_in_metres(tmp_path, run_of, trained, crs, pixel, other_crs, warns):
    run = run_of(trained, crs)
    scene = write(tmp_path / "s.tif", pixel, other_crs, PLACES[other_crs])
    said = said_by(apply, ApplyConfig(run=run, scene=scene, to=tmp_path / "made.tif", device="cpu"))
    assert len(said) == warns
    if warns:
        assert not issubclass(said[0].category, Note)
        assert "on the ground" in str(said[0].message)


FINER = SuperResolutionConfig(
    generator=UNetConfig(width=4, depth=2, up="resize"),
    discriminator=PatchGANConfig(width=4, layers=1),
)


@pytest.mark.parametrize(("pixel", "kind"), [(20.0, None), (10.0, Note), (5.0, UserWarning)])
def test_finer_pixels_from_fine_ones_are_an_assumption_not_a_mistake(tmp_path, run_of, pixel, kind):
    """The model learned 10 m from 20 m."""
    run = run_of(10.0, UTM, FINER)
    scene = write(tmp_path / "s.tif", pixel)
    said = said_by(apply, ApplyConfig(run=run, scene=scene, to=tmp_path / "made.tif", device="cpu"))
    assert [warning.category for warning in said] == ([] if kind is None else [kind])
    if kind is Note:
        text = str(said[0].message)
        assert "pixels of 10 m from such of 20 m" in text
        assert "makes 5 m from 10 m" in text


def test_the_model_that_fills_is_asked_too(tmp_path, run_of):
    clouds = CloudLayersConfig(generator=UNetConfig(width=4, depth=2), adversarial_weight=0.0)
    shape = EncoderDecoderConfig(width=4, dilations=(2,))
    filler = run_of(30.0, UTM, InpaintingConfig(generator=shape, adversarial_weight=0.0))
    scene = write(tmp_path / "s.tif", 10.0)
    config = ApplyConfig(
        run=run_of(10.0, UTM, clouds),
        fill=filler,
        scene=scene,
        to=tmp_path / "made.tif",
        device="cpu",
    )
    (said,) = said_by(apply, config)
    assert "the model of --fill" in str(said.message)
    assert "was trained on 30 m" in str(said.message)


def test_the_command_line_calls_a_note_a_note(tmp_path, run_of, capsys):
    scene = write(tmp_path / "s.tif", 10.0)
    options = ["--scene", scene, "--to", str(tmp_path / "made.tif"), "--device", "cpu"]
    cli.main(["apply", "--run", str(run_of(10.0, UTM, FINER)), *options])
    said = capsys.readouterr().err
    assert said.count("ganlab: note: the model learned to make pixels of 10 m") == 1
    assert "warning" not in said


def test_scenes_of_one_store_are_compared(tmp_path):
    metre = write(tmp_path / "metre.tif", 1.0)
    third = write(tmp_path / "third.tif", 0.3048, place=(330_000.0, 5.5e6))
    foot = write(tmp_path / "foot.tif", 1.0, NEW_YORK, PLACES[NEW_YORK])
    said = said_by(tile, TilingConfig((metre, third, foot), tmp_path / "t", size=32))
    assert len(said) == 1
    text = str(said[0].message)
    assert "metre.tif has pixels of 1 m on the ground" in text
    assert "of 0.305 m" in text
    assert said_by(tile, TilingConfig((third, foot), tmp_path / "same", size=32)) == []


def test_a_store_knows_its_pixels_in_metres(tmp_path):
    foot = write(tmp_path / "foot.tif", 1.0, NEW_YORK, PLACES[NEW_YORK])
    store = tile(TilingConfig((foot,), tmp_path / "t", size=16, scale=0.5))
    assert store.pixel_size() == pytest.approx(2 * US_FOOT, rel=1e-4)


def test_tiles_of_another_size_are_measured_with_a_warning(tmp_path, run_of):
    run = run_of(10.0)
    for pixel, warns in ((10.0, False), (30.0, True)):
        folder = tmp_path / f"{pixel}"
        tile(TilingConfig((write(tmp_path / f"{pixel}.tif", pixel),), folder, size=32))
        config = EvaluateConfig(run=Path(run), tiles=folder, split="train", device="cpu")
        assert bool(said_by(evaluate, config)) == warns
