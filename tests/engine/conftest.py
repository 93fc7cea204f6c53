"""A tiny town, tiled once, and trainings small enough to run many of."""

import dataclasses
import json

import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import from_origin

from ganlab.config import (
    PatchGANConfig,
    Pix2PixConfig,
    ScalingConfig,
    SplitConfig,
    TilingConfig,
    TrainingConfig,
    UNetConfig,
)
from ganlab.data.batches import Batches, describe
from ganlab.data.store import TileStore
from ganlab.data.tiling import tile
from ganlab.training import Trainer, checkpoints

SIZE = 16


def write_scene(folder, classes=(0, 1, 2), bands=3, rows=5, columns=4):
    """A raster of soft colours and its classes: each class has a colour of its own."""
    rng = np.random.default_rng(0)
    shape = rows * SIZE, columns * SIZE
    label = rng.choice(np.array(classes, np.uint8), (shape[0] // 8, shape[1] // 8))
    label = label.repeat(8, 0).repeat(8, 1)
    colours = np.random.default_rng(1).integers(40, 216, (256, bands))
    image = colours[label].transpose(2, 0, 1) + rng.integers(-20, 21, (bands, *shape))
    folder.mkdir(parents=True, exist_ok=True)
    grid = {
        "driver": "GTiff",
        "height": shape[0],
        "width": shape[1],
        "crs": "EPSG:32633",
        "transform": from_origin(500_000, 5_000_000, 0.5, 0.5),
        "dtype": "uint8",
    }
    with rasterio.open(folder / "image.tif", "w", count=bands, **grid) as file:
        file.write(image.astype(np.uint8))
    with rasterio.open(folder / "label.tif", "w", count=1, **grid) as file:
        file.write(label[None])
    return folder


@pytest.fixture(scope="session")
def tile_town(tmp_path_factory):
    """Makes tile stores: ``tile_town(classes=..., bands=...)`` gives the folder."""

    def make(**scene):
        folder = write_scene(tmp_path_factory.mktemp("town"), **scene)
        tile(
            TilingConfig(
                images=(str(folder / "image.tif"),),
                labels=(str(folder / "label.tif"),),
                to=folder / "tiles",
                size=SIZE,
            )
        )
        return folder / "tiles"

    return make


@pytest.fixture(scope="session")
def tiles(tile_town):
    """A store of twenty tiles of 16 x 16 pixels, RGB and three classes."""
    return tile_town()


TINY = Pix2PixConfig(
    generator=UNetConfig(width=4, depth=3),
    discriminator=PatchGANConfig(width=4, layers=1),
)
# Fourteen training tiles in batches of four: epochs end within a batch.
QUICK = TrainingConfig(
    steps=6,
    batch_size=4,
    log_every=1,
    sample_every=0,
    checkpoint_every=1000,
    device="cpu",
    tensorboard=False,
    split=SplitConfig(block=SIZE),
)


@pytest.fixture
def tiny():
    """Makes settings of pix2pix: ``tiny(adversarial="hinge")``."""
    return lambda **changes: dataclasses.replace(TINY, **changes)


@pytest.fixture
def quick():
    """Makes settings of a training: ``quick(steps=20)``."""
    return lambda **changes: dataclasses.replace(QUICK, **changes)


@pytest.fixture
def make_batches(tiles):
    """Makes the batches of a training."""

    def make(config, **options):
        store = TileStore.open(tiles)
        train = store.split(config.split).train
        spec = describe(store, train, ScalingConfig())
        return Batches(
            store, train, spec, batch_size=config.batch_size, seed=config.seed, **options
        )

    return make


@pytest.fixture
def make_trainer(make_batches, tmp_path, quick):
    """Makes a Trainer of any task; its metric lines gather in ``trainer.lines``."""

    def make(task, config=None, **options):
        config = config or quick()
        batches = make_batches(config)
        torch.manual_seed(config.seed)
        lines = []
        trainer = Trainer(
            task(batches.spec),
            batches,
            config,
            tmp_path,
            on_log=lambda step, values: lines.append({"step": step, **values}),
            **options,
        )
        trainer.lines = lines
        return trainer

    return make


def same(one, other):
    """Two trees of a checkpoint are equal to the bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.fixture
def same_runs():
    """Asserts that two runs left the same newest checkpoint and the same metric lines."""

    def compare(one, other):
        states = [checkpoints.load(checkpoints.latest(run / "checkpoints")) for run in (one, other)]
        for key in states[0]:
            assert same(states[0][key], states[1][key]), key
        lines = [(run / "metrics.jsonl").read_text() for run in (one, other)]
        assert lines[0] == lines[1]
        assert [json.loads(line)["step"] for line in lines[0].splitlines()]

    return compare
