"""Every odd GeoTIFF goes the whole line: tiled, trained on for a step, applied, on its own grid."""

import os
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.windows import Window

from ganlab.config import ApplyConfig, Pix2PixConfig, TilingConfig, TrainingConfig, UNetConfig
from ganlab.data.scenes import open_scene
from ganlab.data.tiling import tile
from ganlab.inference import apply
from ganlab.training import train

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif("GANLAB_REAL_DATA" not in os.environ, reason="GANLAB_REAL_DATA is not set"),
]
FOLDER = Path(os.environ.get("GANLAB_REAL_DATA", "."), "geotiff")
LANDSAT = ",".join(str(FOLDER / "landsat8_cloudy_utm16" / f"l8_B{i}.tif") for i in (4, 3, 2))
SCENES = {
    "four bands of uint8": str(FOLDER / "naip_nd_2017_4band_utm14.tif"),
    "four bands of uint16": str(FOLDER / "sentinel2_coast_10m_utm18_cog.tif"),
    "three band files": LANDSAT,
    "nodata": str(FOLDER / "usgs_hro_colorado_15cm_nodata.tif"),
    "alpha": str(FOLDER / "usgs_hro_colorado_15cm_alpha.tif"),
    "internal mask": str(FOLDER / "usgs_hro_colorado_15cm_mask.tif"),
    "nodata 255": str(FOLDER / "neon_osbs_10cm_utm17_nodata255.tif"),
    "rotated valid area": str(FOLDER / "landsat7_bahamas_rgb_byte_utm18.tif"),
}


@pytest.mark.parametrize("path", SCENES.values(), ids=SCENES.keys())
def test_grid_bands_and_missing_pixels_come_back(path: str, tmp_path: Path) -> None:
    tile(TilingConfig((path,), tmp_path / "tiles", size=64, edges="pad", minimum_valid=0.1))
    shape = UNetConfig(width=4, depth=2, dropout=0.0)
    task = Pix2PixConfig("image", "image", shape, adversarial_weight=0.0)
    training = TrainingConfig(steps=1, batch_size=2, tensorboard=False, device="cpu")
    run = train(task, tmp_path / "tiles", tmp_path / "run", training)
    (made,) = apply(ApplyConfig(run=run, scene=path, to=tmp_path / "made.tif", device="cpu"))
    before, after = open_scene(path), open_scene(made)
    assert after.grid == before.grid
    assert (after.dtype, len(after.bands)) == (before.dtype, len(before.bands))
    whole = Window(0, 0, before.grid.width, before.grid.height)
    (_, expected), (pixels, valid) = before.read(whole), after.read(whole)
    assert np.array_equal(valid, expected)
    assert valid.mean() > 0.1
    assert pixels[:, valid].std() > 0
    with rasterio.open(made) as file:
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
