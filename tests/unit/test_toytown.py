"""Toytown: the same town from the same seed, labels that fit the picture, a sun that fits."""

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st

from ganlab.config import ToytownConfig
from ganlab.data.toytown import (
    BUILDING,
    CLASSES,
    GROUND,
    ROAD,
    TO_SUN,
    TREE,
    WATER,
    _dice,
    _roof,
    _Town,
    town,
    write,
)
from ganlab.errors import InputError

DATA = Path(__file__).parents[2] / "data"


@pytest.fixture(scope="module")
def scenes() -> list[tuple[np.ndarray, np.ndarray]]:
    """Image as floats ``(3, h, w)`` and classes ``(h, w)`` of four towns."""
    made = [town(512, seed) for seed in (1, 2, 3, 4)]
    return [(rgb.astype(float), labels[0]) for rgb, labels in made]


def test_same_seed_same_pixels_in_another_process() -> None:
    code = (
        "import zlib; from ganlab.data.toytown import town; "
        "print([zlib.crc32(a.tobytes()) for a in town(200, 7)])"
    )
    first, second = (
        subprocess.check_output([sys.executable, "-c", code], text=True) for _ in range(2)
    )
    assert first == second
    assert not np.array_equal(town(200, 7)[0], town(200, 8)[0])


def test_neighbouring_seeds_are_unrelated(scenes: list[tuple[np.ndarray, np.ndarray]]) -> None:
    for (_, a), (_, b) in pairwise(scenes):
        assert np.mean(a != b) > 0.3
        # Two unrelated maps agree about buildings as often as chance says.
        expected = np.mean(a == BUILDING) * np.mean(b == BUILDING)
        assert np.mean((a == BUILDING) & (b == BUILDING)) < 3 * expected


@settings(max_examples=12, deadline=None)
@given(
    size=st.integers(64, 300),
    seed=st.integers(0, 10**6),
    resolution=st.sampled_from([0.1, 0.15, 0.3, 0.5, 1.0]),
)
def test_any_size(size: int, seed: int, resolution: float) -> None:
    rgb, labels = town(size, seed, resolution)
    assert (rgb.shape, rgb.dtype) == ((3, size, size), np.uint8)
    assert (labels.shape, labels.dtype) == ((1, size, size), np.uint8)
    assert labels.max() < len(CLASSES)
    assert rgb.std() > 5


def test_every_class_has_its_share(scenes: list[tuple[np.ndarray, np.ndarray]]) -> None:
    for _, labels in scenes:
        shares = np.bincount(labels.ravel(), minlength=5) / labels.size
        assert len(shares) == 5
        assert 0.3 < shares[GROUND] < 0.8
        assert all(0.01 < share < 0.35 for share in shares[1:])


def test_classes_have_their_colours(scenes: list[tuple[np.ndarray, np.ndarray]]) -> None:
    for rgb, labels in scenes:
        colour = {c: np.median(rgb[:, labels == c], 1) for c in range(5)}
        blue = {c: colour[c][2] - colour[c][0] for c in range(5)}
        assert blue[WATER] > max(blue[c] for c in (GROUND, BUILDING, ROAD, TREE)) + 2
        assert np.ptp(colour[ROAD]) < 12  # grey
        for green in (GROUND, TREE):
            assert colour[green][1] > colour[green][[0, 2]].max()
        assert colour[TREE].mean() < colour[GROUND].mean() - 20
        # Roofs are the most varied: that is what a network cannot know from the labels.
        spread = {c: rgb[:, labels == c].std(1).mean() for c in (BUILDING, ROAD, WATER)}
        assert spread[BUILDING] > 1.3 * max(spread[ROAD], spread[WATER])


def test_shadows_lie_away_from_the_sun(scenes: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Ground and road 2 m beyond a building are dark, those 2 m before it are not."""
    down, right = (round(2 / 0.3 * TO_SUN[i]) for i in (1, 0))
    for rgb, labels in scenes:
        bright = rgb.mean(0)
        low = (labels == GROUND) | (labels == ROAD)
        built = labels == BUILDING
        # Pixel (r, c) of the first view and (r + down, c + right) of the second: to the sun.
        beyond = low[:-down, :-right] & built[down:, right:]
        before = low[down:, right:] & built[:-down, :-right]
        shaded, lit = bright[:-down, :-right][beyond], bright[down:, right:][before]
        assert np.median(shaded) < 0.65 * np.median(lit)
        assert np.median(lit) > 0.9 * np.median(bright[low])


def test_a_shadow_is_as_long_as_its_object_is_high() -> None:
    scene = _Town(0, 200, 0.3)
    scene.colour[:] = 100
    plain = scene.light().astype(float).mean(0)
    scene.height[120:130, 120:130] = 6.0  # 20 pixels high
    dark = scene.light().astype(float).mean(0) < plain - 25
    dark[118:132, 118:132] = False
    rows, columns = np.nonzero(dark)
    # The corner (120, 120) throws its shadow to (120 - 20 * 0.8, 120 - 20 * 0.6).
    assert rows.min() == pytest.approx(120 - 16, abs=2)
    assert columns.min() == pytest.approx(120 - 12, abs=2)
    assert rows.max() < 130
    assert columns.max() < 130


def test_gable_and_hip_roofs() -> None:
    a, b = np.array([[0.0, 5.0, 7.5]]), np.array([[0.0], [3.0], [4.5]])
    gable, slope_a, slope_b = _roof(a, b, 8, 4, 0.5, hip=False)
    assert gable[:2] == pytest.approx(np.array([[2, 2, 2], [0.5, 0.5, 0.5]]))
    assert (gable[2] < 0).all()  # outside
    assert not slope_a.any()
    assert slope_b[1] == pytest.approx(-0.5)
    hip, slope_a, slope_b = _roof(a, b, 8, 4, 0.5, hip=True)
    assert hip[:2] == pytest.approx(np.array([[2, 1.5, 0.25], [0.5, 0.5, 0.25]]))
    assert slope_a[0] == pytest.approx([0, -0.5, -0.5])
    assert slope_b[0] == pytest.approx([0, 0, 0])


def test_roofs_are_brighter_towards_the_sun() -> None:
    """One bare house, its ridge across the sun's direction."""
    rgb = []
    for seed in range(12):
        scene = _Town(seed, 200, 0.3)
        scene.colour[:] = 100
        # Along the street: across the sun, so that b points away from it or to it.
        scene.house(_dice(seed, "test", 0, 60)[0], False, 30.0, 30.0, TO_SUN[1], -TO_SUN[0])
        if scene.height.max() == 0:
            continue
        y, x = np.mgrid[:200, :200] - 100
        roof = scene.labels == BUILDING
        towards = (x * TO_SUN[0] + y * TO_SUN[1]) > 3
        away = (x * TO_SUN[0] + y * TO_SUN[1]) < -3
        colour = scene.colour.mean(0)
        rgb.append(np.median(colour[roof & towards]) / np.median(colour[roof & away]))
    assert len(rgb) == 12
    assert np.median(rgb) > 1.2


def test_written_scenes_are_georeferenced(tmp_path: Path) -> None:
    pairs = write(ToytownConfig(tmp_path / "new", scenes=2, size=128, seed=3))
    assert [path.name for path in pairs[1]] == ["town-004.tif", "town-004-labels.tif"]
    assert len(list((tmp_path / "new").iterdir())) == 4  # nothing left over
    boxes = []
    for seed, (image, labels) in zip((3, 4), pairs, strict=True):
        rgb, classes = town(128, seed)
        with rasterio.open(image) as a, rasterio.open(labels) as b:
            assert np.array_equal(a.read(), rgb)
            assert np.array_equal(b.read(), classes)
            assert a.crs == b.crs == rasterio.CRS.from_epsg(32633)
            assert a.transform == b.transform
            assert (a.transform.a, a.transform.e) == (0.3, -0.3)
            assert a.descriptions == ("red", "green", "blue")
            assert b.descriptions == ("class",)
            assert [b.tags()[f"class_{i}"] for i in range(5)] == list(CLASSES)
            assert a.profile["tiled"]
            assert a.profile["compress"] == "deflate"
            boxes.append(a.bounds)
    assert boxes[0].right <= boxes[1].left + 1e-6  # side by side


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "town-001-labels.tif").write_text("mine")
    with pytest.raises(InputError, match=r"town-001-labels\.tif exists already"):
        write(ToytownConfig(tmp_path, scenes=2, size=128))
    assert [path.name for path in tmp_path.iterdir()] == ["town-001-labels.tif"]
    assert (tmp_path / "town-001-labels.tif").read_text() == "mine"


@pytest.mark.parametrize(("size", "seed", "resolution"), [(63, 0, 0.3), (64, -1, 0.3), (64, 0, 2)])
def test_bad_values(size: int, seed: int, resolution: float) -> None:
    with pytest.raises(InputError, match="expected at least 64 pixels"):
        town(size, seed, resolution)


def test_the_sample_in_the_data_folder_is_what_the_command_makes(tmp_path: Path) -> None:
    pairs = write(ToytownConfig(tmp_path, size=512))
    assert sum((DATA / path.name).stat().st_size for path in pairs[0]) < 600_000
    for path in pairs[0]:
        with rasterio.open(path) as new, rasterio.open(DATA / path.name) as kept:
            assert np.array_equal(new.read(), kept.read())
            assert (new.profile, new.tags()) == (kept.profile, kept.tags())
        # Compressed bytes may differ between builds of GDAL; this is the build of the wheels.
        if rasterio.__gdal_version__ == "3.10.3":
            assert path.read_bytes() == (DATA / path.name).read_bytes()
