"""Balances within a training: stopped and continued, logged, measured."""

import dataclasses
import json
import os
import signal

import numpy as np
import pytest
import torch

from ganlab.config import (
    BalanceConfig,
    EncoderDecoderConfig,
    FeaturesConfig,
    HoleJudgeConfig,
    PatchGANConfig,
    TwoStageConfig,
    UNetConfig,
    VAEConfig,
    VAENetworkConfig,
)
from ganlab.errors import InputError
from ganlab.losses.balance import FixedBalance, GradNormBalance
from ganlab.tasks.pix2pix import Pix2Pix
from ganlab.training import Trainer, checkpoints, resume, train
from ganlab.training.records import read_metrics

KINDS = ["derived", "uncertainty", "gradnorm", "adaptive"]
TERMS = ("l1", "adversarial")
SMALL = EncoderDecoderConfig(width=4, dilations=(2,))
TWO_STAGE = TwoStageConfig(
    generator=SMALL,
    refinement=SMALL,
    discriminator=HoleJudgeConfig(width=4, layers=1),
    features=FeaturesConfig(weights="random", layers=("stem",)),
    style_weight=1.0,
)


def curve(lines, name):
    return [line[name] for line in lines]


@pytest.mark.parametrize("kind", KINDS)
def test_twenty_steps_are_ten_and_ten(tiles, tmp_path, quick, tiny, same_runs, monkeypatch, kind):
    config = quick(steps=20, balance=BalanceConfig(kind, start=0.6), log_every=3)
    whole = train(tiny(), tiles, tmp_path / "whole", config)
    step = Trainer.train_step

    def interrupted(self, batch):
        step(self, batch)
        if self.step == 10:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    run = train(tiny(), tiles, tmp_path / "run", config)
    monkeypatch.undo()
    newest = checkpoints.latest(run / "checkpoints")
    assert newest.name == checkpoints.name(10)
    numbers = checkpoints.load(newest)["balances"][0]["numbers"]
    expected = {"gradnorm": {"logs", "first"}, "adaptive": set()}
    assert set(numbers) == expected.get(kind, {"l1"})
    torch.manual_seed(12345)
    resume(run)
    same_runs(whole, run)
    assert json.loads((run / "config.json").read_text())["training"]["balance"]["kind"] == kind


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_curves_and_make_up_the_total(tiles, tmp_path, quick, tiny, kind):
    config = quick(steps=8, balance=BalanceConfig(kind, start=0.5))
    lines = read_metrics(train(tiny(), tiles, tmp_path / "run", config))
    for line in lines:
        parts = [line[f"generator/weight/{name}"] * line[f"generator/{name}"] for name in TERMS]
        assert line["generator/total"] == pytest.approx(sum(parts), rel=1e-5)
    l1, game = (curve(lines, f"generator/weight/{name}") for name in TERMS)
    if kind in ("derived", "uncertainty"):
        assert l1[0] == pytest.approx(1 / lines[0]["generator/l1"], rel=1e-5)
        assert l1[1] == l1[0]  # a scale moves after it was used
        assert len(set(l1)) == 7
        # Three bands, and two pixels from one logit to the next.
        assert game == pytest.approx([1 / 12] * 8, rel=1e-6)
    elif kind == "gradnorm":
        assert (l1[0], game[0]) == pytest.approx((100, 1))
        assert len(set(game)) == 8
        assert np.add(l1, game) == pytest.approx([101] * 8, rel=1e-5)
    else:
        assert l1 == [100] * 8
        assert game[:4] == [0] * 4
        assert all(weight > 0 for weight in game[4:])


def test_adaptive_pulls_are_equal_in_a_training(tiles, tmp_path, quick, tiny):
    config = quick(steps=4, balance=BalanceConfig("adaptive"), gradients_every=1)
    lines = read_metrics(train(tiny(), tiles, tmp_path / "run", config))
    l1, game = (curve(lines, f"generator/gradient/{name}") for name in TERMS)
    assert l1 == pytest.approx(game, rel=1e-4)
    assert all(pull > 1e-3 for pull in l1)


def test_a_given_balance_is_told_of_processes_and_precision(make_trainer, quick, tiny):
    given = GradNormBalance(FixedBalance({"l1": 1.0, "adversarial": 1.0}))
    balances = (given, FixedBalance({"adversarial": 1.0}))
    trainer = make_trainer(
        lambda spec: Pix2Pix(tiny(), spec), quick(precision="fp16"), balances=balances
    )
    assert given.scale(torch.ones(())) == trainer.scaler.get_scale() > 1
    assert given.reduce(torch.tensor(3.0)) == 3
    assert given.reduce.__self__ is trainer


class Faint(Pix2Pix):
    """As on tiles of ordinary size, where a logit's share in the mean is small."""

    def generator_losses(self, batch, out, verdict):
        terms = super().generator_losses(batch, out, verdict)
        return {**terms, "adversarial": 1e-4 * terms["adversarial"]}


@pytest.mark.parametrize("kind", ["gradnorm", "adaptive"])
def test_float16_measures_the_same_pulls(make_trainer, quick, tiny, kind):
    """Once the GradScaler has found its factor; what it passes over, the balance does too."""
    found, settings = {}, tiny(generator=PLAIN, reconstruction_weight=0.1)
    for precision in ("fp32", "fp16"):
        balance = BalanceConfig(kind, rate=0.0)
        config = quick(steps=16, balance=balance, precision=precision, gradients_every=1)
        config = dataclasses.replace(config, generator_lr=0.0, discriminator_lr=0.0)
        trainer = make_trainer(lambda spec: Faint(settings, spec), config)
        trainer.fit()
        assert all(np.isfinite(line["generator/total"]) for line in trainer.lines)
        found[precision] = trainer.lines[-1]
    names = [f"generator/{what}/{name}" for what in ("gradient", "weight") for name in TERMS]
    for name in names:
        assert found["fp16"][name] == pytest.approx(found["fp32"][name], rel=0.03)
        assert found["fp32"][name] > 0


def test_measured_gradients_are_those_of_the_weighted_terms(make_trainer, quick, tiny):
    config = quick(steps=1, gradients_every=1)
    trainer = make_trainer(lambda spec: Pix2Pix(tiny(generator=PLAIN), spec), config)
    found = {}
    measure = trainer.task.generator_losses

    def spy(batch, out, verdict):
        terms = measure(batch, out, verdict)
        layer = trainer.task.generator.last_layer.weight
        for name, weight in (("l1", 100), ("adversarial", 1)):
            (slope,) = torch.autograd.grad(weight * terms[name], layer, retain_graph=True)
            found[name] = float(slope.square().sum().sqrt())
        return terms

    trainer.task.generator_losses = spy
    trainer.fit()
    (line,) = trainer.lines
    for name in TERMS:
        assert line[f"generator/gradient/{name}"] == pytest.approx(found[name], rel=1e-5)


PLAIN = UNetConfig(width=4, depth=3, dropout=0.0)


@pytest.mark.parametrize("kind", ["fixed", *KINDS])
def test_measuring_changes_nothing(tiles, tmp_path, quick, tiny, kind):
    config = quick(steps=9, balance=BalanceConfig(kind))
    runs = [
        train(
            tiny(), tiles, tmp_path / str(every), dataclasses.replace(config, gradients_every=every)
        )
        for every in (0, 4)
    ]
    states = [checkpoints.load(checkpoints.latest(run / "checkpoints")) for run in runs]
    for key in ("players", "optimizers", "balances", "ema"):
        assert repr(flat(states[0][key])) == repr(flat(states[1][key])), key
    plain, measured = map(read_metrics, runs)
    names = {f"generator/gradient/{name}" for name in TERMS}
    assert [line["step"] for line in measured if names <= set(line)] == [1, 5, 9]
    for line in measured:
        for name in names:
            assert (name in line) == (line["step"] in (1, 5, 9))
            line.pop(name, None)
    assert plain == measured


def flat(tree):
    """A tree with its tensors as bytes."""
    if isinstance(tree, torch.Tensor):
        return tree.numpy().tobytes()
    if isinstance(tree, dict):
        return {key: flat(value) for key, value in tree.items()}
    return [flat(value) for value in tree] if isinstance(tree, list) else tree


@pytest.mark.parametrize("kind", KINDS)
def test_two_stages_go_with_every_balance(tiles, tmp_path, quick, kind):
    """Terms of the first stage do not reach the last layer, and are no less trained for it."""
    config = quick(steps=4, balance=BalanceConfig(kind), gradients_every=1)
    lines = read_metrics(train(TWO_STAGE, tiles, tmp_path / "run", config))
    fixed = {name: getattr(TWO_STAGE, f"{name}_weight") for name in ("hole", "valid", "style")}
    for line in lines:
        assert line["generator/gradient/coarse_hole"] == 0
        assert line["generator/gradient/hole"] > 0
        assert line["generator/weight/coarse_hole"] > 0
    names = [name.split("/")[2] for name in lines[0] if name.startswith("generator/weight/")]
    assert {"hole", "valid", "coarse_hole", "coarse_valid", "style", "adversarial"} <= set(names)
    if kind in ("gradnorm", "adaptive"):
        given = [line["generator/weight/coarse_hole"] for line in lines]
        assert given == pytest.approx([given[0]] * 4)
    else:
        values = 3 * 2**2  # bands, and pixels from one logit to the next, squared
        assert lines[-1]["generator/weight/style"] == pytest.approx(fixed["style"] / values)
        assert lines[0]["generator/weight/hole"] == pytest.approx(1 / lines[0]["generator/hole"])


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        ("derived", "no term .* is a likelihood whose noise level is left to find .that of a VAE"),
        ("uncertainty", "no term of this task is a likelihood"),
        ("adaptive", "weighs 'adversarial' against others"),
    ],
)
def test_a_balance_that_fits_no_vae_is_refused(tiles, tmp_path, quick, kind, match):
    """It has its likelihood in itself, and no opponent."""
    config = VAEConfig(generator=VAENetworkConfig(latent=2, width=4, depth=2))
    with pytest.raises(InputError, match=match):
        train(config, tiles, tmp_path / "run", quick(balance=BalanceConfig(kind)))


def test_without_opponent_there_is_nothing_to_adapt(tiles, tmp_path, quick, tiny):
    alone = tiny(adversarial_weight=0.0)
    with pytest.raises(InputError, match="weighs 'adversarial' against others; found \\['l1'\\]"):
        train(alone, tiles, tmp_path / "run", quick(balance=BalanceConfig("adaptive")))
    assert not (tmp_path / "run").exists()
    config = quick(steps=2, balance=BalanceConfig("derived"))
    lines = read_metrics(train(alone, tiles, tmp_path / "derived", config))
    assert lines[0]["generator/total"] == pytest.approx(1)


@pytest.mark.parametrize("game", ["wasserstein", "relativistic"])
def test_the_new_games_are_played(tiles, tmp_path, quick, tiny, game):
    judge = PatchGANConfig(width=4, layers=1, norm="none")
    config = tiny(adversarial=game, discriminator=judge)
    lines = read_metrics(
        train(config, tiles, tmp_path / "run", quick(steps=12, discriminator_lr=2e-3))
    )
    first, last = (line["discriminator/adversarial"] for line in (lines[0], lines[-1]))
    assert last < first
    assert lines[0]["generator/adversarial"] != 0
