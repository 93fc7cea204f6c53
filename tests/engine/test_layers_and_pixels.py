"""Cloud layers and super-resolution in training: small batches by heart, stops without a trace."""

import os
import signal
import warnings

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from rasterio.transform import from_origin

from ganlab.config import (
    CloudLayersConfig,
    CloudsConfig,
    PatchGANConfig,
    ScalingConfig,
    ScheduleConfig,
    SensorConfig,
    SplitConfig,
    SuperResolutionConfig,
    TilingConfig,
    ToytownConfig,
    TrainingConfig,
    UNetConfig,
)
from ganlab.data.batches import Batches, describe
from ganlab.data.tiling import tile
from ganlab.data.toytown import write
from ganlab.errors import InputError
from ganlab.tasks import TASKS
from ganlab.training import Trainer, checkpoints, load_task, resume, train
from ganlab.training.records import read_metrics

CONFIGS = {"cloud_layers": CloudLayersConfig, "super_resolution": SuperResolutionConfig}


def settings(kind, width=4, depth=2, judge=(4, 1), **changes):
    shape = UNetConfig(width=width, depth=depth, norm="channel", up="resize", dropout=0.0)
    judge = PatchGANConfig(width=judge[0], layers=judge[1])
    return CONFIGS[kind](generator=shape, discriminator=judge, **changes)


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    """Sixteen tiles of toytown: roofs, roads, trees and their shadows."""
    folder = tmp_path_factory.mktemp("town")
    ((image, label),) = write(ToytownConfig(folder, size=128, seed=3))
    return tile(TilingConfig((str(image),), folder / "tiles", (str(label),), size=32))


def trainer_of(config, town, folder, tiles=None, **options):
    kind = next(name for name, c in CONFIGS.items() if type(config) is c)
    tiles = np.arange(len(town)) if tiles is None else tiles
    spec = describe(town, np.arange(len(town)), ScalingConfig())
    training = TrainingConfig(device="cpu", ema=0.0, discriminator_lr=5e-4, **options)
    torch.manual_seed(training.seed)
    task = TASKS[kind](config, spec)
    batches = Batches(
        town, tiles, spec, batch_size=training.batch_size, augment=False, seed=training.seed
    )
    return Trainer(task, batches, training, folder)


def terms(trainer, batch):
    """The generator's distances, without the game."""
    task = trainer.task.eval()
    given = task.prepare(batch)
    with torch.no_grad():
        found = task.generator_losses(given, task.generate(given), None)
    return {name: value.item() for name, value in found.items()}


# Learning


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_small_batch_is_learnt_by_heart(town, tmp_path, kind, seed):
    """The same two tiles, under the same clouds, adversarial term on.

    Not residual: that would start at the cloudy image or its bicubic enlargement, the baselines,
    which are near the truth already.
    """
    config = settings(kind, 32, 3, (8, 2), residual=False, adversarial_weight=1.0)
    options = {"steps": 240, "batch_size": 2, "seed": seed, "generator_lr": 3e-3}
    trainer = trainer_of(config, town, tmp_path, lr_schedule=ScheduleConfig("cosine"), **options)
    batch = trainer.batches[0]
    judge = [p.detach().clone() for p in trainer.task.discriminator.parameters()]
    before = terms(trainer, batch)
    for _ in range(240):
        trainer.train_step(batch)
    after = terms(trainer, batch)
    names = {"cloud_layers": {"ground", "alpha"}, "super_resolution": {"l1"}}[kind]
    assert set(before) == names
    for name in names:
        assert 0.1 < before[name] < 0.6
        # Less than a hundredth in so few steps would mean that the truth got through.
        assert 0.01 < after[name] / before[name] < 0.1, name
    moved = zip(trainer.task.discriminator.parameters(), judge, strict=True)
    assert all(not torch.equal(*pair) for pair in moved)


@pytest.mark.parametrize("seed", [0, 1])
def test_an_autoencoder_has_the_easier_task(town, tmp_path, seed):
    """The same network, game and steps, on tiles that both have not seen.

    Neither is residual: factor 1 never is, and factor 2 would start at bicubic enlargement.
    """
    found = []
    for factor in (1, 2):
        config = settings("super_resolution", 16, 2, (8, 2), factor=factor, residual=False)
        options = {"steps": 100, "batch_size": 4, "seed": seed, "generator_lr": 2e-3}
        trainer = trainer_of(config, town, tmp_path, tiles=np.arange(12), **options)
        for step in range(100):
            trainer.train_step(trainer.batches[step])
        found.append(terms(trainer, trainer.batches.whole(np.arange(12, 16)))["l1"])
    assert 0.01 < found[0] < 0.95 * found[1] < 0.2


@pytest.mark.parametrize("term", ["matching", "similarity"])
def test_feature_terms_move_the_generator_alone(town, tmp_path, term):
    """After one step the discriminator is where it would be without them, bit for bit."""
    weights = []
    for weight in (0.0, 1000.0):
        options = {f"{term}_weight": weight, "residual": False}
        trainer = trainer_of(settings("super_resolution", **options), town, tmp_path, batch_size=4)
        trainer.train_step(trainer.batches[0])
        weights.append([list(p.parameters()) for p in trainer.players.values()])
    (generators, judges) = zip(*weights, strict=True)
    assert all(torch.equal(*pair) for pair in zip(*judges, strict=True))
    assert all(not torch.equal(*pair) for pair in zip(*generators, strict=True))


# Stopping and going on


@pytest.fixture(scope="module")
def nested(tmp_path_factory):
    """Twenty tiles of three bands, with one band of pixels half as wide."""
    folder, rng = tmp_path_factory.mktemp("nested"), np.random.default_rng(0)
    paths = []
    for name, bands, factor in (("coarse", 3, 1), ("fine", 1, 2)):
        array = rng.integers(1, 255, (bands, 80 * factor, 64 * factor), np.uint8)
        array[:, : 2 * factor, : 3 * factor] = 0
        profile = {"driver": "GTiff", "width": array.shape[2], "height": array.shape[1]}
        profile |= {"count": bands, "dtype": "uint8", "crs": "EPSG:32633", "nodata": 0}
        place = from_origin(600, 9000, 30 / factor, 30 / factor)
        paths.append(str(folder / f"{name}.tif"))
        with rasterio.open(paths[-1], "w", transform=place, **profile) as file:
            file.write(array)
    config = TilingConfig((paths[0],), folder / "tiles", fine=(paths[1],), size=16)
    return tile(config).path


@pytest.fixture
def alpha(tmp_path):
    """A layer of real-looking cloud."""
    path, rng = tmp_path / "alpha.tif", np.random.default_rng(0)
    array = rng.random((1, 12, 15), np.float32).repeat(4, 1).repeat(4, 2)
    profile = {"driver": "GTiff", "height": 48, "width": 60, "count": 1, "dtype": "float32"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path, "w", **profile) as file:
            file.write(array)
    return path


OFTEN = {"sample_every": 5, "checkpoint_every": 4, "log_every": 7}
FEATURES = {"matching_weight": 1.0, "similarity_weight": 1.0, "feature_layers": (-1,)}
FADE = {"reconstruction_schedule": ScheduleConfig("fade_out", start=0.2, stop=0.8)}
HOW = {
    "clouds": ("cloud_layers", {"clouds": CloudsConfig(darkness=0.5)}, {}),
    "clouds of files": (
        "cloud_layers",
        {"order": "sequential", "adversarial_weight": 1.0, "residual": False},
        OFTEN,
    ),
    "finer": ("super_resolution", {}, {"workers": 1, "crop": 12, "ema": 0.0}),
    "finer by features": (
        "super_resolution",
        {"sensor": SensorConfig(0.4, 0.1), "conditional": True, **FEATURES, **FADE},
        OFTEN,
    ),
    "two sources": ("super_resolution", {"image": "fine", "coarse": "image"}, OFTEN),
    "autoencoder": ("super_resolution", {"factor": 1}, {}),
}


@pytest.mark.parametrize("how", HOW)
def test_twenty_steps_are_ten_and_ten(
    tiles, nested, tmp_path, quick, same_runs, monkeypatch, alpha, how
):
    kind, changes, options = HOW[how]
    if how == "clouds of files":
        changes = changes | {"clouds": CloudsConfig(files=(alpha,), white=(230.0,))}
    if how == "two sources":
        tiles = nested
    config, training = settings(kind, **changes), quick(steps=20, **options)
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
    names = {"cloud_layers": ("ground", "alpha"), "super_resolution": ("l1",)}[kind]
    for name in names:
        assert lines[0][f"generator/{name}"] != lines[-1][f"generator/{name}"]
    if how == "finer by features":
        faded = [line["generator/weight/l1"] for line in lines]
        # Means over steps 0 to 6 and 7 to 13, of a weight that falls from step 4 to step 16.
        shares = [np.mean([min(1, 1 - (s - 4) / 12) for s in r]) for r in (range(7), range(7, 14))]
        assert faded == pytest.approx([config.reconstruction_weight * s for s in shares], rel=1e-6)
        assert {"generator/matching", "generator/similarity"} <= set(lines[0])
    if options is OFTEN:
        panels = [sorted((folder / "samples").iterdir()) for folder in (whole, run)]
        assert len(panels[0]) == 4
        for one, other in zip(*panels, strict=True):
            assert one.read_bytes() == other.read_bytes()
        # Three tiles; given, made and true, side by side, at the finest size, with a line of 2.
        columns, side = {"clouds of files": (5, 16), "two sources": (3, 32)}.get(how, (3, 16))
        assert Image.open(panels[0][0]).size == (columns * (side + 2), 3 * (side + 2))
    task = load_task(run, average=False, device="cpu")
    assert repr(task.config) == repr(config)


def test_coupled_losses_and_several_processes(tiles, tmp_path, quick, monkeypatch):
    """Each process would match the features of its own share of the batch: said, not hidden."""
    from ganlab.training import runs

    class Two:
        num_processes, process_index, is_main_process, device = 2, 0, True, torch.device("cpu")

    class Enough(Exception):
        pass

    def stop(*_, **__):
        raise Enough

    monkeypatch.setattr(runs, "this_process", Two)
    monkeypatch.setattr(runs.TileStore, "verify", stop)
    training = quick(processes=2)
    for weight in (1.0, 0.0):
        config = settings("super_resolution", matching_weight=weight)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            with pytest.raises(Enough):
                train(config, tiles, tmp_path / f"{weight}", training)
        found = [str(w.message) for w in said if "couples the samples of a batch" in str(w.message)]
        assert len(found) == (weight > 0)
        assert all("2 processes" in text for text in found)


def test_tiles_without_a_finer_source(tiles, tmp_path, quick):
    config = settings("super_resolution", image="fine", coarse="image")
    with pytest.raises(InputError, match="no source 'fine'"):
        train(config, tiles, tmp_path / "run", quick())
    assert not (tmp_path / "run").exists()


def test_a_run_on_nested_sources_knows_both(nested, tmp_path, quick):
    config = settings("super_resolution", image="fine", coarse="image")
    run = train(config, nested, tmp_path / "run", quick(steps=1, split=SplitConfig(block=16)))
    task = load_task(run, device="cpu")
    assert task.scale == 2
    assert task.pixel_size == pytest.approx(30, rel=0.01)  # metres on the ground
    assert {name: s.factor for name, s in task.spec.sources.items()} == {"image": 1, "fine": 2}
    assert len(task.spec.scalings["fine"].low) == 1
