"""Real clouds: a quality band, hand-drawn masks, and thickness from infrared imagery."""

import os
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

from ganlab import clouds, masks
from ganlab.randomness import keys

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif("GANLAB_REAL_DATA" not in os.environ, reason="GANLAB_REAL_DATA is not set"),
    pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning"),
]
DATA = Path(os.environ.get("GANLAB_REAL_DATA", "."))
BIOME = DATA / "clouds" / "l8biome"


def read(path, bands=1):
    with rasterio.open(path) as scene:
        return scene.read(bands)


def test_clouds_of_a_quality_band_are_what_is_bright():
    folder = DATA / "geotiff" / "landsat8_cloudy_utm16"
    quality, blue = read(folder / "l8_BQA.tif"), read(folder / "l8_B2.tif")
    found = clouds.missing(quality, "landsat_pre")
    assert np.array_equal(found, np.isin(quality, [53248, 53280, 61440, 61472]))
    assert found.mean() == pytest.approx(0.0602, abs=0.0002)
    assert np.median(blue[found]) > 1.2 * np.median(blue[~found])
    cirrus = clouds.missing(quality, "landsat_pre", cirrus=True)
    assert cirrus.mean() == pytest.approx(0.32, abs=0.01)


def test_pieces_of_real_clouds_reach_their_coverage():
    quality = read(DATA / "geotiff" / "landsat8_cloudy_utm16" / "l8_BQA.tif")
    layers = [clouds.missing(quality, "landsat_pre")]
    layers += [clouds.missing(read(p), classes=(192, 255)) for p in sorted(BIOME.glob("masks/*"))]
    bank = masks.Bank([torch.from_numpy(layer) for layer in layers])
    key = torch.from_numpy(keys(0, 0, np.arange(64)))
    coverage = torch.linspace(0.05, 0.6, 64)
    found = bank.cut(key, 64, 64, coverage).mean((1, 2, 3))
    assert (found - coverage).abs().median() < 0.02
    assert (found - coverage).abs().max() < 0.15


@pytest.mark.parametrize(
    ("name", "clear", "opaque"),
    [
        ("Forest_01_2715", None, None),
        ("Shrubland_02_1021", None, None),
        ("Wetlands_00_1426", None, None),
        ("Urban_00_0515", 282.0, 270.0),  # three quarters under clouds: no median
    ],
)
def test_thickness_from_thermal_imagery_agrees_with_masks_drawn_by_hand(name, clear, opaque):
    cloud = clouds.missing(read(BIOME / "masks" / f"{name}.tif"), classes=(192, 255))
    kelvin = torch.from_numpy(read(BIOME / "images" / f"{name}.tif", 8))
    alpha = clouds.thickness(kelvin, clear, opaque, cold=True).numpy()
    assert alpha.min() == 0
    assert alpha.max() == 1
    assert alpha[cloud].mean() > 4 * alpha[~cloud].mean()
    assert ((alpha > 0) & (alpha < 1)).mean() > 0.1


def test_real_clouds_on_clear_ground():
    thermal = [
        read(BIOME / "images" / f"{name}.tif", 8) for name in ("Forest_01_2715", "Wetlands_00_1426")
    ]
    bank = masks.Bank([clouds.thickness(torch.from_numpy(t), cold=True) for t in thermal])
    key = torch.from_numpy(keys(0, 0, np.arange(8)))
    image, alpha = clouds.paste(key, torch.full((8, 3, 96, 96), -0.5), bank, coverage=0.25)
    assert (alpha.mean((1, 2, 3)) - 0.25).abs().max() < 0.05
    back = clouds.uncover(image, alpha, 0.9)
    thin = (alpha < 0.95).expand_as(back)
    torch.testing.assert_close(back[thin], torch.full_like(back[thin], -0.5), rtol=0, atol=1e-5)
