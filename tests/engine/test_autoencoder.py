"""A VAE goes all the way: trained, stopped, continued, applied to a scene, measured."""

import json
import os
import signal

import numpy as np
import pytest
import rasterio
import torch
from torch.distributions import Independent, Normal, kl_divergence

from ganlab import evaluation
from ganlab.config import (
    ApplyConfig,
    EvaluateConfig,
    ScheduleConfig,
    SplitConfig,
    TilingConfig,
    TrainingConfig,
    VAEConfig,
    VAENetworkConfig,
)
from ganlab.data.batches import Batches
from ganlab.data.store import TileStore
from ganlab.data.tiling import tile
from ganlab.distributions import kernel_distance
from ganlab.evaluation import evaluate, table
from ganlab.inference import apply
from ganlab.metrics import Texture
from ganlab.tasks.vae import GaussianVAE
from ganlab.training import Trainer, checkpoints, load_task, resume, train
from ganlab.training.records import read_metrics

SMALL = VAENetworkConfig(latent=2, width=4, depth=2)
TINY = VAEConfig(generator=SMALL, warm_up=ScheduleConfig("fade_in", 0.0, 0.5))


@pytest.fixture(scope="module")
def town(tile_town):
    """The scene of a town, and its tiles of 32 pixels: textures are measured on no smaller ones."""
    scene = tile_town(rows=12, columns=12).parent / "image.tif"
    tiles = scene.parent / "tiles of 32"
    tile(TilingConfig(images=(str(scene),), to=tiles, size=32))
    return scene, tiles


@pytest.fixture(scope="module")
def run(town, tmp_path_factory):
    """A barely trained one: what it makes is bad, and the numbers must say how bad."""
    folder = tmp_path_factory.mktemp("vae")
    return train(TINY, town[1], folder / "run", training(split=SplitConfig(block=32)))


def training(**changes):
    settings = {"steps": 60, "batch_size": 4, "log_every": 5, "checkpoint_every": 1000}
    settings |= {"device": "cpu", "tensorboard": False, "split": SplitConfig(block=16)}
    return TrainingConfig(**{**settings, "generator_lr": 3e-3, "sample_every": 30, **changes})


def test_it_learns_without_an_opponent(run):
    lines = read_metrics(run)
    names = {f"generator/{name}" for name in ("likelihood", "kl", "total", "norm")}
    names |= {f"generator/weight/{name}" for name in ("likelihood", "kl")}
    assert set(lines[0]) == {"step", *names}
    for line in lines[6:]:
        assert line["generator/weight/kl"] == 1
        total = line["generator/likelihood"] + line["generator/kl"]
        assert line["generator/total"] == pytest.approx(total, rel=1e-5)
    assert lines[0]["generator/weight/kl"] < 0.1
    assert lines[-1]["generator/likelihood"] < lines[0]["generator/likelihood"] - 0.2
    state = checkpoints.load(checkpoints.latest(run / "checkpoints"))
    assert list(state["players"]) == ["generator"]
    assert len(list((run / "samples").glob("*.png"))) == 2


@pytest.mark.parametrize("scale", ["optimal", "learned"])
def test_twenty_steps_are_ten_and_ten(tiles, tmp_path, same_runs, monkeypatch, scale):
    task = VAEConfig(generator=SMALL, scale=scale)
    config = training(steps=20, log_every=3, sample_every=7)
    whole = train(task, tiles, tmp_path / "whole", config)
    step = Trainer.train_step

    def interrupted(self, batch):
        step(self, batch)
        if self.step == 10:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    run = train(task, tiles, tmp_path / "run", config)
    monkeypatch.undo()
    assert checkpoints.latest(run / "checkpoints").name == checkpoints.name(10)
    torch.manual_seed(12345)
    resume(run)
    same_runs(whole, run)
    state = checkpoints.load(checkpoints.latest(run / "checkpoints"))
    assert ("scale" in state["players"]["generator"]) == (scale == "learned")


def test_codes_are_drawn_anew_at_every_step(make_trainer, quick):
    """The same batch gives another loss, and the same seed the same."""

    def losses():
        trainer = make_trainer(
            lambda spec: GaussianVAE(TINY, spec), quick(generator_lr=0.0, steps=3)
        )
        batch = trainer.batches[0]
        for _ in range(3):
            trainer.train_step(batch)
            trainer.on_log(trainer.step, trainer._meter.means())
        return [line["generator/likelihood"] for line in trainer.lines]

    first = losses()
    assert len(set(first)) == 3
    assert losses() == first


def test_a_scene_is_coded_and_made_again(run, town, tmp_path):
    scene, to = town[0], tmp_path / "made.tif"
    apply(ApplyConfig(run, str(scene), to, window=64, overlap=32))
    with rasterio.open(scene) as given, rasterio.open(to) as made:
        assert (made.crs, made.transform, made.dtypes) == (given.crs, given.transform, given.dtypes)
        got, true = made.read(), given.read()
    assert got.shape == true.shape
    task = load_task(run)
    field = task.inputs[0]
    inputs = {"image": true[None]}
    batch = task.encode(inputs, np.ones((1, 1, *true.shape[1:])), torch.device("cpu"))
    expected = field.leave(task.sample(batch, 0)["image"])[0]
    assert (got == expected).all()  # eight strides of overlap hide all borders of windows
    assert np.abs(got - true.astype(float)).mean() > 1
    again = tmp_path / "again.tif"
    apply(ApplyConfig(run, str(scene), again, window=64, overlap=32, seed=5))
    with rasterio.open(again) as file:
        assert (file.read() == got).all()  # nothing is drawn


def test_reconstructions_and_samples_are_measured(run, town, tmp_path):
    config = EvaluateConfig(run, "train", batch_size=5, to=tmp_path / "numbers.json")
    result = evaluate(config)
    rows = result["rows"]
    names = list(rows)
    assert (names[0], names[-1]) == ("model", "samples")
    assert {"L1", "PSNR", "SSIM", "spectrum d.", "gradient d."} <= set(rows["model"])
    assert set(rows["samples"]) == {"spectrum d.", "gradient d."}  # no partners, no L1
    assert "samples" not in result["intervals"]
    written = json.loads((tmp_path / "numbers.json").read_text())["rows"]
    assert all(written[name] == rows[name] for name in ("model", "samples"))
    # By hand, from the same draws.
    task, store = load_task(run), TileStore.open(town[1])
    chosen = store.split(SplitConfig(block=32)).train
    batches = Batches(store, chosen, task.spec, batch_size=1, augment=False)
    textures = [Texture() for _ in range(3)]
    errors, squares, nats = [], [], []
    for start in range(0, len(chosen), 5):
        batch = batches.whole(chosen[start : start + 5])
        made = task.sample(batch, 0)["image"]
        drawn = task.imagine(batch, int(chosen[start]))
        errors += (made - batch["image"]).abs().mean((1, 2, 3)).tolist()
        squares += (made - batch["image"]).square().mean((1, 2, 3)).tolist()
        with torch.no_grad():
            mean, log_variance = task.generator.encode(batch["image"])
        coded = Independent(Normal(mean, torch.exp(0.5 * log_variance)), 3)
        standard = Independent(Normal(torch.zeros_like(mean), torch.ones_like(mean)), 3)
        nats += kl_divergence(coded, standard).tolist()
        for texture, images in zip(textures, (made, drawn, batch["image"]), strict=True):
            texture.update(images, batch["valid"])
    assert rows["model"]["L1"] == pytest.approx(np.mean(errors), rel=1e-4)
    assert rows["model"]["MSE"] == pytest.approx(np.mean(squares), rel=1e-4)
    # Nats of a whole image, not of a value or a place.
    assert rows["model"]["KL"] == pytest.approx(np.mean(nats), rel=1e-4)
    for row, texture in zip(("model", "samples"), textures, strict=False):
        for kind, distance in texture.distance(textures[2]).items():
            assert rows[row][f"{kind} d."] == pytest.approx(float(distance), rel=1e-3)
    assert rows["samples"]["spectrum d."] != rows["model"]["spectrum d."]


def test_samples_have_no_partners_in_their_kernel_distance(run, town, tmp_path, monkeypatch):
    """Products of a made tile with the one it was made from are left out; samples have none."""

    def features(image, valid):
        return torch.nn.functional.adaptive_avg_pool2d(image, 2).flatten(1)

    monkeypatch.setattr(evaluation, "_features", lambda *_: features)
    rows = evaluate(EvaluateConfig(run, "train", batch_size=100, to=tmp_path / "n.json"))["rows"]
    task, store = load_task(run), TileStore.open(town[1])
    chosen = store.split(SplitConfig(block=32)).train
    batch = Batches(store, chosen, task.spec, batch_size=1, augment=False).whole(chosen)
    made = {"model": task.sample(batch, 0)["image"], "samples": task.imagine(batch, int(chosen[0]))}
    true = features(batch["image"], None).double().numpy()
    for name, images in made.items():
        both = features(images, None).double().numpy(), true
        expected, other = (1000 * kernel_distance(*both, paired=p) for p in (True, False))
        if name == "samples":
            expected, other = other, expected
        assert rows[name]["KID"] == pytest.approx(expected, rel=1e-4)
        assert rows[name]["KID"] != pytest.approx(other, rel=1e-2)


def test_the_table_leaves_out_what_samples_do_not_have(run, tmp_path):
    config = EvaluateConfig(
        run, "train", to=tmp_path / "numbers.json", features="efficientnet-lite0", weights="random"
    )
    result = evaluate(config)
    assert {"KID"} <= set(result["rows"]["samples"])
    lines = table(result).splitlines()
    (samples,) = (
        line.split() for line in lines if line.startswith("samples") and "-" in line.split()
    )
    (model,) = (
        line.split()
        for line in lines
        if line.startswith("model") and len(line.split()) == len(samples)
    )
    assert [cell == "-" for cell in samples[1:]].count(True) == len(
        set(result["rows"]["model"]) - set(result["rows"]["samples"])
    )
    assert "-" not in model
