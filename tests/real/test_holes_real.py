"""Holes in real ground: clouds that Landsat saw, classes of L8 Biome, the houses of a real town.

A few steps of training each: what is asked is that everything fits together, not how it looks.
"""

import dataclasses
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from rasterio.errors import NotGeoreferencedWarning
from rasterio.warp import reproject

from ganlab.config import (
    ApplyConfig,
    EncoderDecoderConfig,
    HoleJudgeConfig,
    HolesConfig,
    InpaintingConfig,
    ScalingConfig,
    TilingConfig,
    TrainingConfig,
    TwoStageConfig,
)
from ganlab.data.batches import Batches, describe
from ganlab.data.store import TileStore
from ganlab.data.tiling import tile
from ganlab.errors import InputError
from ganlab.inference import apply
from ganlab.tasks.inpainting import Inpainting
from ganlab.training import train
from ganlab.training.records import read_metrics

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif("GANLAB_REAL_DATA" not in os.environ, reason="GANLAB_REAL_DATA is not set"),
]
DATA = Path(os.environ.get("GANLAB_REAL_DATA", "."))
COAST = DATA / "geotiff" / "sentinel2_coast_10m_utm18_cog.tif"
QUALITY = DATA / "geotiff" / "landsat8_cloudy_utm16" / "l8_BQA.tif"
BIOME = DATA / "clouds" / "l8biome" / "masks"
TOWN = DATA / "buildings" / "banepa_nepal_train"
SHAPE = EncoderDecoderConfig(width=4, dilations=(2, 4))
QUICK = TrainingConfig(
    steps=30,
    batch_size=4,
    log_every=10,
    sample_every=30,
    ema=0.9,
    generator_lr=2e-3,
    device="cpu",
    tensorboard=False,
)


def settings(kind: str, **changes: Any) -> InpaintingConfig:
    options: dict[str, Any] = {"generator": SHAPE, "fill": "constant", "residual": False}
    options |= {"discriminator": HoleJudgeConfig(width=4, layers=2)} | changes
    if kind == "inpainting":
        return InpaintingConfig(**options)
    return TwoStageConfig(refinement=SHAPE, **options)


def filled(config: ApplyConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels, what is valid, and what was invented, as rasterio reads them."""
    made, invented = apply(config)
    with rasterio.open(made) as file, rasterio.open(invented) as where:
        assert (file.crs, file.transform) == (where.crs, where.transform)
        return file.read(), file.dataset_mask() > 0, where.read(1) == 1


def clouds_of_landsat() -> tuple[np.ndarray, dict[str, Any]]:
    with rasterio.open(QUALITY) as file:
        return file.read(1), file.profile


@pytest.fixture(scope="module")
def coast(tmp_path_factory: pytest.TempPathFactory) -> TileStore:
    """Four bands of Sentinel-2 at 10 m."""
    folder = tmp_path_factory.mktemp("coast")
    return tile(TilingConfig((str(COAST),), folder / "tiles", size=64))


@pytest.mark.parametrize("kind", ["inpainting", "two_stage"])
def test_sentinel_2_under_landsats_clouds(coast: TileStore, tmp_path: Path, kind: str) -> None:
    holes = HolesConfig(kinds=("file",), files=(QUALITY,), read_as="landsat_pre")
    run = train(settings(kind, holes=holes), coast.path, tmp_path / "run", QUICK)
    lines = read_metrics(run)
    assert lines[-1]["generator/hole"] < lines[0]["generator/hole"]
    assert (run / "samples" / "step-00000030.png").exists()
    # The quality band itself, laid over the scene pixel by pixel, is the mask.
    bits, profile = clouds_of_landsat()
    with rasterio.open(COAST) as file:
        true, grid = file.read(), {"crs": file.crs, "transform": file.transform}
        size = {"width": file.width, "height": file.height}
    quality = np.zeros((file.height, file.width), np.uint16)
    quality[: bits.shape[0], : bits.shape[1]] = bits
    cloud = (quality >> 14) == 3
    assert 0.02 < cloud.mean() < 0.1
    mask = tmp_path / "quality.tif"
    with rasterio.open(mask, "w", **profile | grid | size) as file:
        file.write(quality[None])
    config = ApplyConfig(
        run, str(COAST), tmp_path / "made.tif", mask=str(mask), read_as="landsat_pre",
        window=256, overlap=32, device="cpu",
    )  # fmt: skip
    made, valid, invented = filled(config)
    assert valid.all()
    assert np.array_equal(invented, cloud)
    assert made.dtype == true.dtype
    assert np.array_equal(made[:, ~cloud], true[:, ~cloud])
    assert (made[:, cloud] != true[:, cloud]).mean() > 0.9
    with pytest.raises(InputError, match=r"l8_BQA\.tif is not on the grid of .*gdalwarp") as caught:
        apply(dataclasses.replace(config, mask=str(QUALITY), overwrite=True))
    assert "-r near" in str(caught.value)
    with pytest.raises(InputError, match=r"quality\.tif: mask read as nonzero holds \d+ values"):
        apply(dataclasses.replace(config, read_as="nonzero", overwrite=True))
    assert np.array_equal(rasterio.open(tmp_path / "made.tif").read(), made)


def test_holes_are_pieces_of_the_clouds_that_landsat_saw(coast: TileStore) -> None:
    """Every hole, flipped or turned, lies somewhere in the quality band."""
    holes = HolesConfig(("file",), (0.2, 0.5), files=(QUALITY,), read_as="landsat_pre")
    tiles = np.arange(len(coast))
    spec = describe(coast, tiles, ScalingConfig())
    task = Inpainting(InpaintingConfig(holes=holes, generator=SHAPE, adversarial_weight=0), spec)
    batches = Batches(coast, tiles, spec, batch_size=16)
    hole = task.prepare(batches[0])["hole"][:, 0]
    share = hole.mean((1, 2))
    assert share.min() > 0.1
    assert share.max() < 0.6
    cloud = torch.from_numpy((clouds_of_landsat()[0] >> 14) == 3).float()[None, None]
    for piece in hole[:4]:
        turned = [p.flip(f) for p in (piece, piece.T) for f in ((), (0,), (1,), (0, 1))]
        kernels = torch.stack([2 * p - 1 for p in turned])[:, None]
        matches = torch.nn.functional.conv2d(cloud, kernels).amax((0, 2, 3))
        assert matches.max() == piece.sum()  # as many hits as it has pixels, and no miss


def test_masks_of_l8_biome_are_read_by_class(tmp_path: Path, coast: TileStore) -> None:
    files = tuple(sorted(BIOME.glob("*.tif")))
    assert len(files) == 8
    cloudy = HolesConfig(("file",), (0.2, 0.5), files=files, classes=(192, 255))
    run = train(settings("inpainting", holes=cloudy), coast.path, tmp_path / "run", QUICK)
    assert read_metrics(run)[-1]["generator/hole"] > 0
    blind = settings("inpainting", holes=dataclasses.replace(cloudy, classes=()))
    with pytest.raises(InputError, match=r"\.tif: mask read as nonzero holds \d values"):
        train(blind, coast.path, tmp_path / "other", QUICK)
    # Applied: the classes of one of them say where to fill a scene of that size.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        classes = np.stack([rasterio.open(path).read(1) for path in files])
    number = int(np.argmin(np.abs(np.isin(classes, (192, 255)).mean((1, 2)) - 0.4)))
    with rasterio.open(COAST) as file:
        true = file.read(window=rasterio.windows.Window(0, 0, 256, 256))
        profile = file.profile | {"driver": "GTiff", "width": 256, "height": 256}
    for name, array in (("scene.tif", true), ("mask.tif", classes[number][None])):
        profile |= {"count": len(array), "dtype": array.dtype}
        with rasterio.open(tmp_path / name, "w", **profile) as file:
            file.write(array)
    config = ApplyConfig(
        run, str(tmp_path / "scene.tif"), tmp_path / "made.tif", mask=str(tmp_path / "mask.tif"),
        classes=(192, 255), window=128, overlap=32, device="cpu",
    )  # fmt: skip
    made, valid, invented = filled(config)
    cloud = np.isin(classes[number], (192, 255))
    assert 0.1 < cloud.mean() < 0.9
    assert valid.all()
    assert np.array_equal(invented, cloud)
    assert np.array_equal(made[:, ~cloud], true[:, ~cloud])


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> TileStore:
    """Banepa at 0.6 m with the footprints of OpenStreetMap."""
    folder = tmp_path_factory.mktemp("town")
    image, label = str(TOWN / "scene_rgb.tif"), str(TOWN / "footprints.geojson")
    return tile(TilingConfig((image,), folder / "tiles", (label,), size=64, scale=0.25))


@pytest.mark.parametrize("kind", ["inpainting", "two_stage"])
def test_houses_are_taken_away_and_the_town_is_filled(
    town: TileStore, tmp_path: Path, kind: str
) -> None:
    holes = HolesConfig(kinds=("footprint", "polygon"), coverage=(0.1, 0.3))
    config = settings(kind, holes=holes, fill="harmonic")
    run = train(config, town.path, tmp_path / "run", QUICK)
    assert read_metrics(run)[-1]["generator/hole"] < read_metrics(run)[0]["generator/hole"]
    # Where footprints are wanted and enough of them are there, nothing else goes.
    houses = HolesConfig(kinds=("footprint",), coverage=(0.1, 0.3))
    tiles = np.arange(len(town))
    spec = describe(town, tiles, ScalingConfig())
    task = Inpainting(InpaintingConfig(holes=houses, generator=SHAPE, adversarial_weight=0), spec)
    given = task.prepare(Batches(town, tiles, spec, batch_size=32)[0])
    built = given["label"] == 1
    enough = built.float().mean((1, 2, 3)) > 0.31
    assert 4 < enough.sum() < 32
    assert built[enough][given["hole"][enough] > 0].all()
    # A corner of the town, without its houses.
    size = 320
    with rasterio.open(TOWN / "scene_rgb.tif") as file:
        grid = {"crs": file.crs, "transform": file.transform @ rasterio.Affine.scale(4)}
        true = np.zeros((3, size, size), np.uint8)
        source = {"src_transform": file.transform, "src_crs": file.crs}
        reproject(
            file.read(window=rasterio.windows.Window(0, 0, 4 * size, 4 * size)), true, **source,
            dst_transform=grid["transform"], dst_crs=grid["crs"],
            resampling=rasterio.enums.Resampling.average,
        )  # fmt: skip
    with rasterio.open(TOWN / "scene_buildings.tif") as file:
        window = rasterio.windows.Window(0, 0, 4 * size, 4 * size)
        lost = file.read(1, window=window, out_shape=(size, size)) == 1
    assert 0.2 < lost.mean() < 0.8
    profile = {"driver": "GTiff", "width": size, "height": size, "dtype": "uint8", **grid}
    scene, mask = tmp_path / "scene.tif", tmp_path / "mask.tif"
    for path, array in ((scene, true), (mask, lost[None].astype(np.uint8))):
        with rasterio.open(path, "w", count=len(array), **profile) as file:
            file.write(array)
    made, valid, invented = filled(
        ApplyConfig(
            run,
            str(scene),
            tmp_path / "made.tif",
            mask=str(mask),
            window=128,
            overlap=32,
            device="cpu",
        )
    )
    assert valid.all()
    assert np.array_equal(invented, lost)
    assert np.array_equal(made[:, ~lost], true[:, ~lost])
    assert made[:, lost].std() > 1


WAYS = {"nodata": 0, "alpha": None, "mask": None}


@pytest.mark.parametrize("how", WAYS)
def test_missing_ground_is_filled_however_it_is_told(tmp_path: Path, how: str) -> None:
    """One photo of Colorado, whose missing ground is told in three ways."""
    paths = {name: DATA / "geotiff" / f"usgs_hro_colorado_15cm_{name}.tif" for name in WAYS}
    config = TilingConfig((str(paths[how]),), tmp_path / "tiles", size=64, minimum_valid=0.6)
    store = tile(config)
    run = train(settings("inpainting"), store.path, tmp_path / "run", QUICK)
    for name, path in paths.items():
        to = tmp_path / f"{name}.tif"
        config = ApplyConfig(run, str(path), to, window=128, overlap=32, device="cpu")
        made, valid, invented = filled(config)
        with rasterio.open(path) as given:
            known, true = given.dataset_mask() > 0, given.read((1, 2, 3))
        assert 0.8 < known.mean() < 0.99
        assert valid.all()
        assert np.array_equal(invented, ~known)
        assert np.array_equal(made[:, known], true[:, known])
