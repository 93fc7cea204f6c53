"""From real scenes to generated ones: grids, missing pixels, four bands, images without a place."""

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from rasterio.errors import NotGeoreferencedWarning
from rasterio.vrt import WarpedVRT

from ganlab import cli
from ganlab.config import (
    ApplyConfig,
    PatchGANConfig,
    Pix2PixConfig,
    TilingConfig,
    TrainingConfig,
    UNetConfig,
)
from ganlab.data.tiling import tile
from ganlab.inference import apply
from ganlab.training import train

ROOT = Path(os.environ.get("GANLAB_REAL_DATA", "."))
BANEPA = ROOT / "buildings" / "banepa_nepal_train"
GEOTIFF = ROOT / "geotiff"

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif("GANLAB_REAL_DATA" not in os.environ, reason="GANLAB_REAL_DATA is not set"),
]


def trained(folder, store, source, target, steps=30):
    shape = UNetConfig(width=8, depth=4, dropout=0.0)
    task = Pix2PixConfig(source, target, shape, PatchGANConfig(width=8, layers=2))
    training = TrainingConfig(
        steps=steps, batch_size=4, generator_lr=2e-3, ema=0.9, tensorboard=False
    )
    return train(task, store.path, folder / "run", training)


def test_a_town_from_its_footprints(tmp_path):
    photo, footprints = BANEPA / "scene_rgb.tif", BANEPA / "scene_buildings.tif"
    store = tile(TilingConfig((str(photo),), tmp_path / "tiles", (str(footprints),), size=64))
    run = trained(tmp_path, store, "label", "image")
    config = ApplyConfig(run, str(footprints), tmp_path / "made.tif", overlap=64)
    (path,) = apply(config)
    with (
        rasterio.open(path) as made,
        rasterio.open(photo) as true,
        rasterio.open(footprints) as labels,
    ):
        assert (made.crs, made.transform, made.shape) == (true.crs, true.transform, true.shape)
        assert (made.count, made.dtypes) == (true.count, true.dtypes)
        assert made.descriptions == ("red", "green", "blue")
        assert made.colorinterp == true.colorinterp
        assert made.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert made.overviews(1) == [2, 4, 8]
        picture, truth, houses = made.read(), true.read(), labels.read(1) == 1
        # Rows and columns of windows begin every 448 pixels: no brighter steps there.
        for axis in (1, 2):
            steps = np.abs(np.diff(picture.astype(int), axis=axis)).mean((0, 3 - axis))
            seams = np.arange(480, len(steps), 448)
            assert steps[seams].max() < np.quantile(steps, 0.99) * 1.5

    def shown(pixels):
        return pixels[:, houses].mean() - pixels[:, ~houses].mean()

    # After 30 steps houses are already brighter than the ground, as they are in truth.
    assert shown(truth) > 10
    assert shown(picture) > 3


def test_chips_without_a_place(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = [f"OAM-386690-22024{i}-19" for i in (1, 2)]
    images = [str(BANEPA / "images" / f"{name}.tif") for name in names]
    masks = [str(BANEPA / "masks" / f"{name}.png") for name in names]
    here = ["--ungeoreferenced"]
    tiles = ["tile", "--images", *images, "--labels", *masks, "--to", "tiles", "--size", "64"]
    scene = ["apply", "--run", "run", "--scene", masks[0], "--to", "made.tif"]
    for line in (tiles, [*scene[:1], "--run", "x", *scene[3:]]):
        with pytest.raises(SystemExit) as left:
            cli.main(line)
        assert left.value.code == 2
    assert "has no CRS; give --ungeoreferenced" in capsys.readouterr().err
    cli.main([*tiles, *here])
    small = "--generator.width 8 --generator.depth 4 --discriminator.width 8 --batch-size 4"
    cli.main(f"train pix2pix --tiles tiles --to run --steps 5 {small}".split())
    with pytest.raises(SystemExit):
        cli.main(scene)
    assert "has no CRS; give --ungeoreferenced" in capsys.readouterr().err
    cli.main([*scene, *here])
    assert capsys.readouterr() == ("made.tif\n", "")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open("made.tif") as made:
            assert (made.crs, made.shape, made.count) == (None, (512, 512), 3)
            assert made.transform.is_identity
            assert made.read().std() > 1


@pytest.mark.parametrize("kind", ["nodata", "mask"])
def test_missing_ground_stays_missing(tmp_path, kind):
    """One photo of Colorado, whose missing ground is told in three ways (and drawn in two)."""
    paths = {
        how: GEOTIFF / f"usgs_hro_colorado_15cm_{how}.tif" for how in ("nodata", "alpha", "mask")
    }
    config = TilingConfig((str(paths[kind]),), tmp_path / "tiles", size=64, minimum_valid=0.2)
    run = trained(tmp_path, tile(config), "image", "image", steps=4)
    for how, path in paths.items():
        (out,) = apply(ApplyConfig(run, str(path), tmp_path / f"{how}.tif", window=128, overlap=32))
        with rasterio.open(out) as made, rasterio.open(path) as given:
            valid = given.dataset_mask() > 0
            assert 0.8 < valid.mean() < 0.99
            assert np.array_equal(made.dataset_mask() > 0, valid)
            # What the output declares follows from the scene, not from the training.
            assert made.nodata == given.nodata
            assert (made.count, made.shape, made.transform) == (3, given.shape, given.transform)


def test_four_bands_over_eight_years(tmp_path):
    """NAIP: red, green, blue and near infrared in bytes, 2009 to 2017."""
    before, later = (str(GEOTIFF / f"naip_nd_{year}_4band_utm14.tif") for year in (2009, 2017))
    after = str(tmp_path / "after.tif")
    with rasterio.open(before) as grid, rasterio.open(later) as file:
        place = {"transform": grid.transform, "width": grid.width, "height": grid.height}
        with WarpedVRT(file, **place) as moved:  # by two metres
            rasterio.shutil.copy(moved, after, driver="GTiff")
    config = TilingConfig((before,), tmp_path / "tiles", size=64)
    store = tile(config, more={"after": ((after,), "image")})
    run = trained(tmp_path, store, "image", "after")
    (out,) = apply(ApplyConfig(run, before, tmp_path / "made.tif", window=256, overlap=64))
    with rasterio.open(out) as made, rasterio.open(before) as given, rasterio.open(after) as true:
        assert (made.crs, made.transform, made.shape) == (given.crs, given.transform, given.shape)
        assert (made.count, made.nodata) == (4, 0)
        assert rasterio.enums.ColorInterp.alpha not in made.colorinterp
        picture, copied, truth = (f.read().astype(float) for f in (made, given, true))
        assert np.array_equal(made.dataset_mask() > 0, given.dataset_mask() > 0)
    error = np.abs(picture - truth).mean()
    assert error < np.abs(copied - truth).mean()
