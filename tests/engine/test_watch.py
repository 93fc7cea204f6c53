"""Looks at made images, the place of what is not finite, and what a run tells of itself."""

import dataclasses
import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from ganlab import cli
from ganlab.config import (
    PatchGANConfig,
    Pix2PixConfig,
    SplitConfig,
    SuperResolutionConfig,
    TrainingConfig,
    UNetConfig,
    VAEConfig,
    VAENetworkConfig,
)
from ganlab.errors import InputError, TrainingFailed
from ganlab.metrics import checkerboard
from ganlab.tasks.pix2pix import Pix2Pix
from ganlab.tasks.super_resolution import SuperResolution
from ganlab.tasks.vae import GaussianVAE
from ganlab.training import checkpoints, resume, runs, train
from ganlab.training.records import read_lines, read_metrics
from ganlab.training.runs import doctor
from ganlab.training.watch import first_bad, look


class Given(nn.Module):
    """A generator that answers with what it was told to."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, *_):
        return self.answer


@pytest.fixture
def batch(make_batches, quick):
    """Six tiles, and the batches that they are from."""
    batches = make_batches(quick())
    return batches.whole(np.arange(6)), batches


def stack(values):
    return values.double().numpy()


def by_hand(made, true, valid):
    """The four ratios with loops, in float64; valid is one for all images."""
    n, bands = true.shape[:2]
    w = np.broadcast_to(valid, true.shape) > 0
    colour = [true[:, c][w[:, c]].mean() for c in range(bands)]
    error = np.abs(made - true)[w].mean()
    flat = np.abs(true - np.array(colour)[None, :, None, None])[w].mean()

    def inside(x):
        parts = [[x[i, c][w[i, c]] for c in range(bands)] for i in range(n)]
        squares = [((p - p.mean()) ** 2).sum() for row in parts for p in row]
        return sum(squares) / w.sum()

    def apart(x):
        pairs = [(i, j) for i in range(n) for j in range(i)]
        both = [w[i] & w[j] for i, j in pairs]
        total = sum(np.abs(x[i] - x[j])[b].sum() for (i, j), b in zip(pairs, both, strict=True))
        return total / sum(b.sum() for b in both)

    return {
        "look/error/train": error / flat,
        "look/contrast": np.sqrt(inside(made) / inside(true)),
        "look/diversity": apart(made) / apart(true),
    }


def test_a_look_is_what_loops_give(batch, tiny):
    batch, batches = batch
    holes = torch.rand(6, 1, 16, 16, generator=torch.Generator().manual_seed(1)) > 0.3
    batch["valid"] = holes.float()
    task = Pix2Pix(tiny(), batches.spec)
    generator = torch.Generator().manual_seed(0)
    made = 0.7 * batch["image"] + 0.3 * torch.randn(batch["image"].shape, generator=generator)
    seen = look(task, Given(made), batch)
    expected = by_hand(stack(made), stack(batch["image"]), stack(batch["valid"]))
    for name, value in expected.items():
        assert seen[name] == pytest.approx(value, rel=1e-5), name
    energy = [checkerboard(x, batch["valid"]).mean().item() for x in (made, batch["image"])]
    assert seen["look/checkerboard"] == pytest.approx(energy[0] / energy[1], rel=0.02)
    assert set(seen) == {*expected, "look/checkerboard"}
    json.dumps(seen, allow_nan=False)


def test_a_look_at_the_truth_finds_nothing(batch, tiny):
    batch, batches = batch
    task = Pix2Pix(tiny(), batches.spec)
    network = task.generator
    seen = look(task, Given(batch["image"]), batch, batch)
    ones = ("contrast", "diversity", "checkerboard")
    assert [seen[f"look/{name}"] for name in ones] == pytest.approx([1, 1, 1], rel=1e-6)
    assert seen["look/error/train"] == seen["look/error/validation"] == 0
    assert task.generator is network


def test_blank_and_equal_answers_and_grids_are_seen(batch, tiny):
    batch, batches = batch
    task = Pix2Pix(tiny(), batches.spec)
    image = batch["image"]
    blank = look(task, Given(image.mean((0, 2, 3), keepdim=True).expand_as(image)), batch)
    assert blank["look/contrast"] < 1e-3
    assert blank["look/diversity"] == 0
    assert blank["look/error/train"] == pytest.approx(1, abs=1e-5)
    same = look(task, Given(image[:1].expand_as(image)), batch)
    assert same["look/diversity"] == 0
    assert 0.3 < same["look/contrast"] < 3
    y, x = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    grid = look(task, Given(image + 0.5 * (-1.0) ** (x + y)), batch)
    assert grid["look/checkerboard"] > 10


def test_only_the_first_part_of_a_task_counts(batch, tiny):
    batch, batches = batch

    class Half(Pix2Pix):
        def parts(self, batch):
            left = (torch.arange(16) < 8).float().expand(len(batch["valid"]), 1, 16, 16)
            return {"left": left, "": None}

    task, image = Half(tiny(), batches.spec), batch["image"]
    wrong = torch.where(torch.arange(16) < 8, image, torch.zeros_like(image))
    assert look(task, Given(wrong), batch)["look/error/train"] == 0
    wrong = torch.where(torch.arange(16) >= 8, image, torch.zeros_like(image))
    assert look(task, Given(wrong), batch)["look/error/train"] > 0.5


def test_what_a_task_has_is_measured_and_nothing_else_changes(batch, tiny):
    batch, batches = batch
    noisy = Pix2Pix(tiny(noise=True, generator=UNetConfig(width=4, depth=4)), batches.spec)
    before = torch.random.get_rng_state()
    seen = look(noisy, noisy.generator, batch)
    assert seen["look/variety"] > 0
    assert seen == look(noisy, noisy.generator, batch)
    assert torch.equal(before, torch.random.get_rng_state())
    vae = GaussianVAE(VAEConfig(generator=VAENetworkConfig(width=4, depth=2)), batches.spec)
    seen = look(vae, vae.generator, batch, batch)
    assert seen["look/imagined"] > 0
    assert seen["look/error/validation"] == seen["look/error/train"]
    # Tiles of the coarse image have a valid mask of their own size.
    finer = SuperResolution(
        SuperResolutionConfig(generator=UNetConfig(width=4, depth=2)), batches.spec
    )
    assert look(finer, finer.generator, batch)["look/error/train"] > 0
    alone = {name: value[:1] for name, value in batch.items()}
    assert "look/diversity" not in look(vae, vae.generator, alone)


def test_the_first_place_that_is_not_finite_is_named():
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    x = torch.ones(2, 3)

    def run(scale=1.0):
        def step():
            (network(x * scale).square().sum()).backward()

        return first_bad({"generator": network}, step)

    assert run() is None
    assert run(float("inf")) == "generator.0: its output"
    x = torch.full((2, 3), 0.0)

    def slope():
        network[0](x).abs().sqrt().sum().backward()

    with torch.no_grad():
        network[0].bias.zero_()
    assert first_bad({"generator": network}, slope) == "generator.0: the gradient at it"
    assert first_bad({"generator": network}, slope, gradients=False) is None

    def overflow():
        with torch.no_grad():
            network[2].weight.mul_(float("inf"))

    assert first_bad({"d": network}, overflow) == "d.2.weight: its value after the update"
    assert first_bad({"d": network}, run) == "d.2.weight: its value before the step"
    assert not network[0]._forward_hooks


@pytest.fixture(scope="module")
def lazy(tiles, tmp_path_factory, tiny_task, quick_training):
    """A generator that never moves, and the warnings on the way."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = train(tiny_task, tiles, tmp_path_factory.mktemp("lazy") / "run", quick_training)
    return run, [str(w.message) for w in caught]


@pytest.fixture(scope="module")
def tiny_task():
    return Pix2PixConfig(
        generator=UNetConfig(width=4, depth=3), discriminator=PatchGANConfig(width=4, layers=1)
    )


@pytest.fixture(scope="module")
def quick_training():
    return TrainingConfig(
        steps=140,
        batch_size=4,
        log_every=10,
        watch_every=20,
        sample_every=0,
        checkpoint_every=70,
        generator_lr=0.0,
        tensorboard=False,
        device="cpu",
        split=SplitConfig(block=16),
    )


def test_a_run_looks_and_tells_each_kind_once(lazy):
    run, caught = lazy
    lines = read_metrics(run)
    looks = [line["step"] for line in lines if "look/contrast" in line]
    assert looks == [20, 40, 60, 80, 100, 120, 140]
    told = read_lines(run / "findings.jsonl")
    kinds = [line["kind"] for line in told]
    assert "flat_reconstruction" in kinds
    assert len(kinds) == len(set(kinds)) == len(caught)
    flat = told[kinds.index("flat_reconstruction")]
    assert flat["step"] == 120  # the fourth look after the first steps
    assert flat["steps"] == [60, 120]
    assert any(
        "step 120: flat_reconstruction. The error on training tiles is" in w and "generator_lr" in w
        for w in caught
    )
    found = {finding.kind: finding for finding in doctor(run)}
    assert set(kinds) <= set(found)
    assert found["flat_reconstruction"].steps == (60, 140)
    assert doctor(checkpoints.latest(run / "checkpoints")) == doctor(run)


def test_the_command_prints_all_there_is_to_say(lazy, tmp_path, capsys):
    run, _ = lazy
    cli.main(["doctor", "--run", str(run)])
    out = capsys.readouterr().out
    for finding in doctor(run):
        assert f"{finding.kind}, steps {finding.steps[0]} to {finding.steps[1]}\n" in out
        for part in (finding.evidence, finding.why, finding.remedy):
            assert part in out
        assert f"chapter {finding.chapter}\n" in out
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").unlink()
    cli.main(["doctor", "--run", str(tmp_path / "run")])
    assert capsys.readouterr().out == "nothing noticed\n"


def test_resume_goes_on_with_the_same_lines_and_tells_what_lies_ahead_anew(
    lazy, tiles, tmp_path, tiny_task, quick_training, same_runs
):
    run, _ = lazy
    short, other = dataclasses.replace(quick_training, steps=130), tmp_path / "run"
    findings = other / "findings.jsonl"
    other.mkdir()  # what is left of a run that failed before its first checkpoint
    findings.write_text('{"step": 120, "kind": "flat_reconstruction"}\n')
    with pytest.warns(UserWarning, match="flat_reconstruction"):
        train(tiny_task, tiles, other, short)
    told = findings.read_text()
    findings.write_text(told + '{"step": 130, "ki')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resume(other)
    assert findings.read_text() == told
    for path in (other / "checkpoints").glob("*130*"):
        path.unlink()  # as if it had been killed: back to step 70
    with pytest.warns(UserWarning, match="flat_reconstruction"):
        resume(other, steps=140)
    same_runs(run, other)
    assert findings.read_text() == (run / "findings.jsonl").read_text()


def test_nothing_is_looked_at_if_not_wanted(tiles, tmp_path, tiny_task, quick_training):
    config = dataclasses.replace(quick_training, watch_every=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = train(tiny_task, tiles, tmp_path / "run", config)
    assert not any(name.startswith("look/") for line in read_metrics(run) for name in line)
    assert not (run / "findings.jsonl").exists()


def test_a_failure_is_told_with_its_place(tiles, tmp_path, tiny_task, quick_training):
    config = dataclasses.replace(quick_training, generator_lr=1e30, log_every=3)
    with pytest.raises(TrainingFailed, match=r"first seen in generator\.[\w.]+: \w+") as caught:
        train(tiny_task, tiles, tmp_path / "run", config)
    failure = json.loads((tmp_path / "run" / "failure.json").read_text())
    assert str(caught.value).endswith(failure["place"])
    assert (tmp_path / "run" / failure["batch"]).exists()
    (finding,) = doctor(tmp_path / "run")
    assert finding.kind == "non_finite"
    assert finding.steps == (failure["step"],) * 2
    assert failure["place"] in finding.evidence


def test_a_search_that_breaks_off_does_not_hide_the_failure(
    tiles, tmp_path, tiny_task, quick_training, monkeypatch
):
    def full(*_):
        raise torch.OutOfMemoryError("no room for a second training")

    monkeypatch.setattr(runs, "first_bad", full)
    config = dataclasses.replace(quick_training, generator_lr=1e30, log_every=3)
    failed = pytest.raises(TrainingFailed, match="infinite or NaN at step")
    with failed, pytest.warns(UserWarning, match="ended by OutOfMemoryError.'no room for"):
        train(tiny_task, tiles, tmp_path / "run", config)
    (finding,) = doctor(tmp_path / "run")
    assert finding.kind == "non_finite"


@pytest.mark.parametrize("text", ["", '{"step": 3, "pl', "[]", '{"step": 3}'])
def test_a_damaged_failure_is_named(lazy, tmp_path, text):
    shutil.copytree(lazy[0], tmp_path / "run")
    (tmp_path / "run" / "failure.json").write_text(text)
    with pytest.raises(InputError, match=r"failure\.json.*; remove it, and resume the run to see"):
        doctor(tmp_path / "run")


def test_the_doctor_asks_for_a_run(tmp_path):
    with pytest.raises(InputError, match="not a run directory"):
        doctor(tmp_path)
