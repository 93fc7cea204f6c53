"""Tasks that fill holes, in training: small batches by heart, and stops that leave no trace."""

import os
import signal

import numpy as np
import pytest
import rasterio
import torch

from ganlab.config import (
    EncoderDecoderConfig,
    FeaturesConfig,
    HoleJudgeConfig,
    HolesConfig,
    InpaintingConfig,
    ScalingConfig,
    TilingConfig,
    ToytownConfig,
    TrainingConfig,
    TwoStageConfig,
)
from ganlab.data.batches import Batches, describe
from ganlab.data.tiling import tile
from ganlab.data.toytown import write
from ganlab.tasks import TASKS
from ganlab.training import Trainer, checkpoints, resume, train
from ganlab.training.records import read_metrics

CONFIGS = {"inpainting": InpaintingConfig, "two_stage": TwoStageConfig}
both = pytest.mark.parametrize("kind", CONFIGS)


# From a smooth start there would be little left to learn, and noise would be in the way.
AS_PUBLISHED = {"fill": "constant", "residual": False, "noise": False}


def settings(kind, width, holes, **changes):
    shape = EncoderDecoderConfig(width=width, dilations=(2,))
    changes |= {"refinement": shape} if kind == "two_stage" else {}
    return CONFIGS[kind](generator=shape, holes=holes, **changes)


# Learning by heart


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    """Sixteen tiles of toytown: roofs, roads, trees and their shadows."""
    folder = tmp_path_factory.mktemp("town")
    ((image, label),) = write(ToytownConfig(folder, size=128, seed=3))
    return tile(TilingConfig((str(image),), folder / "tiles", (str(label),), size=32))


@both
@pytest.mark.parametrize("seed", [0, 1])
def test_a_small_batch_is_learnt_by_heart(town, tmp_path, kind, seed):
    """The same four tiles with the same holes, adversarial term on.

    Measured in the hole: 0.045 to 0.072 of the start over six seeds, 0.057 to 0.076 in two stages.
    """
    steps, width = (90, 12) if kind == "two_stage" else (100, 16)
    tiles = np.arange(len(town))
    spec = describe(town, tiles, ScalingConfig())
    torch.manual_seed(seed)
    judge = HoleJudgeConfig(width=8, layers=2)
    holes = HolesConfig(coverage=(0.15, 0.35))
    config = settings(kind, width, holes, discriminator=judge, **AS_PUBLISHED)
    task = TASKS[kind](config, spec)
    assert config.adversarial_weight > 0
    batches = Batches(town, tiles, spec, batch_size=4, augment=False, seed=seed)
    training = TrainingConfig(
        steps=steps, batch_size=4, generator_lr=2e-3, discriminator_lr=5e-4, ema=0.0, seed=seed
    )
    trainer, batch = Trainer(task, batches, training, tmp_path), batches[0]
    judges = [p.detach().clone() for p in task.discriminator.parameters()]

    def terms():
        task.eval()
        given = task.prepare(batch)
        with torch.no_grad():
            found = task.generator_losses(given, task.generate(given), None)
        return {name: value.item() for name, value in found.items()}

    before = terms()
    for _ in range(steps):
        trainer.train_step(batch)
    after = terms()
    assert 0.15 < before["hole"] < 0.8
    # Less than a hundredth in a hundred steps would mean that the truth got through.
    assert 0.01 < after["hole"] / before["hole"] < 0.1
    assert after["valid"] < 0.25 * before["valid"]
    if kind == "two_stage":
        assert after["coarse_hole"] < 0.25 * before["coarse_hole"]
    moved = [not torch.equal(*p) for p in zip(task.discriminator.parameters(), judges, strict=True)]
    assert all(moved)


# Stopping and going on


@pytest.fixture
def mask(tmp_path):
    """A raster of real-looking gaps."""
    path = tmp_path / "mask.tif"
    array = np.random.default_rng(0).integers(0, 2, (1, 12, 15), np.uint8).repeat(3, 1).repeat(3, 2)
    profile = {"driver": "GTiff", "height": 36, "width": 45, "count": 1, "dtype": "uint8"}
    place = rasterio.Affine(2, 0, 0, 0, -2, 0)
    with rasterio.open(path, "w", crs="EPSG:32633", transform=place, **profile) as file:
        file.write(array)
    return path


@both
@pytest.mark.parametrize("how", ["plain", "everything", "loader"])
def test_twenty_steps_are_ten_and_ten(
    tiles, tmp_path, quick, same_runs, monkeypatch, mask, kind, how
):
    holes, changes, options = HolesConfig(coverage=(0.2, 0.5)), AS_PUBLISHED, {}
    if how == "everything":
        kinds = ("rectangle", "cloud", "footprint", "file")
        holes = HolesConfig(kinds, (0.2, 0.5), files=(mask,), footprint_classes=(1, 2))
        features = FeaturesConfig(weights="random", layers=("stem",))
        changes = {"features": features, "perceptual_weight": 0.1, "style_weight": 1.0}
        changes |= {"variation_weight": 0.1, "noise": True, "fill": "harmonic"}
        options = {"sample_every": 5, "checkpoint_every": 4, "log_every": 7}
    if how == "loader":
        options = {"workers": 1, "crop": 12, "ema": 0.0}
    config = settings(kind, 4, holes, discriminator=HoleJudgeConfig(width=4, layers=1), **changes)
    training = quick(steps=20, **options)
    whole = train(config, tiles, tmp_path / "whole", training)
    step = Trainer.train_step

    def interrupted(self, batch):
        step(self, batch)
        if self.step == 10:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    run = train(config, tiles, tmp_path / "run", training)
    monkeypatch.undo()
    assert checkpoints.latest(run / "checkpoints").name == checkpoints.name(10)
    torch.manual_seed(12345)  # what another process would bring along
    resume(run)
    same_runs(whole, run)
    lines = read_metrics(run)
    assert len(lines) == 20 // training.log_every
    assert lines[0]["generator/hole"] != lines[-1]["generator/hole"]
    if how == "everything":
        assert {"generator/perceptual", "generator/style", "generator/variation"} <= set(lines[0])
        panels = [(folder / "samples").iterdir() for folder in (whole, run)]
        for one, other in zip(*map(sorted, panels), strict=True):
            assert one.read_bytes() == other.read_bytes()
