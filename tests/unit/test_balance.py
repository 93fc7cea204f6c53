"""Balances against optima that are known, and against gradients taken by hand."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from ganlab.config import BalanceConfig, PatchGANConfig, Pix2PixConfig, ScheduleConfig, UNetConfig
from ganlab.errors import InputError
from ganlab.losses.balance import (
    AdaptiveBalance,
    FixedBalance,
    GradNormBalance,
    LikelihoodBalance,
    choose,
    gradient_norms,
)
from ganlab.networks.patchgan import PatchGAN
from ganlab.tasks.pix2pix import Pix2Pix

UNIT = FixedBalance({"a": 1.0, "b": 1.0, "adversarial": 1.0})
SIGMA = {"a": 0.3, "b": 4.0}
KINDS = ["fixed", "derived", "uncertainty", "gradnorm", "adaptive"]


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain(weights):
    return {name: float(weight) for name, weight in weights.items()}


# Likelihoods


class Regression:
    """Two outputs of one linear map, of known and very different noise."""

    def __init__(self, noise, count=4000):
        self.x, self.noise = numbers(count, 3), noise
        self.map = nn.Linear(3, 2, bias=False).double()
        rng = np.random.default_rng(0)
        draw = rng.normal if noise == "gaussian" else rng.laplace
        drawn = np.stack([draw(0, SIGMA[name], count) for name in "ab"], 1)
        self.y = self.x @ torch.tensor([[1.0, -2], [0.5, 3], [2, 1]]).double()
        self.y = self.y + torch.from_numpy(drawn)

    def terms(self):
        apart = self.map(self.x) - self.y
        errors = apart.square() if self.noise == "gaussian" else apart.abs()
        return dict(zip("ab", errors.mean(0).unbind(), strict=True))

    def residuals(self):
        """What least squares leave (of Laplace noise: nearly what the least deviations do)."""
        best = torch.linalg.lstsq(self.x, self.y).solution
        apart = self.x @ best - self.y
        return (apart.square() if self.noise == "gaussian" else apart.abs()).mean(0)


@pytest.mark.parametrize("learned", [False, True], ids=["derived", "uncertainty"])
@pytest.mark.parametrize("noise", ["gaussian", "laplace"])
def test_weights_go_to_the_noise_that_there_is(noise, learned):
    problem = Regression(noise)
    adam = torch.optim.Adam(problem.map.parameters(), 0.05)
    fixed = FixedBalance({"a": 7.0, "b": 0.1})  # the start of no likelihood
    balance = LikelihoodBalance(fixed, {"a": noise, "b": noise}, learned=learned)
    for step in range(900):
        total, weights = balance(problem.terms(), None, step)
        adam.zero_grad()
        total.backward()
        adam.step()
    # Exactly the best in the sample: Rybkin's optimum, where Kendall's slope vanishes as well.
    for name, left in zip("ab", problem.residuals(), strict=True):
        best = 1 / (2 * left) if noise == "gaussian" else 1 / left
        assert float(weights[name]) == pytest.approx(float(best), rel=0.01)
        true = SIGMA[name]
        known = 1 / (2 * true**2) if noise == "gaussian" else 1 / true
        assert float(weights[name]) == pytest.approx(known, rel=0.06)


def test_learned_scales_descend_their_own_likelihood():
    """One step of gradient descent on error / b + ln b, by the logarithm of b (Kendall, eq. 10)."""
    balance = LikelihoodBalance(UNIT, {"a": "laplace"}, learned=True, rate=0.1)
    balance.numbers["a"] = torch.tensor(0.4)
    error = torch.tensor(2.5)
    _, weights = balance({"a": error}, None, 0)
    assert float(weights["a"]) == pytest.approx(math.exp(-0.4))  # before the scale moves
    log = torch.tensor(0.4, requires_grad=True)
    (error * torch.exp(-log) + log).backward()
    assert float(balance.numbers["a"]) == pytest.approx(0.4 - 0.1 * float(log.grad))


def test_a_scale_far_from_its_error_does_not_jump():
    balance = LikelihoodBalance(UNIT, {"a": "laplace"}, learned=True, rate=0.1)
    balance.numbers["a"] = torch.tensor(-20.0)
    balance({"a": torch.tensor(1.0)}, None, 0)
    assert float(balance.numbers["a"]) == pytest.approx(-19.0)


def test_derived_scales_are_running_means():
    balance = LikelihoodBalance(UNIT, {"a": "laplace", "b": "gaussian"}, memory=0.75)
    errors, mean = [4.0, 2.0, 8.0, 1.0], 4.0
    for step, error in enumerate(errors):
        terms = {name: torch.tensor(error) for name in "ab"}
        total, weights = balance(terms, None, step)
        assert plain(weights) == pytest.approx({"a": 1 / mean, "b": 0.5 / mean})
        assert total.item() == pytest.approx(1.5 * error / mean)
        mean = 0.75 * mean + 0.25 * error


@pytest.mark.parametrize("learned", [False, True])
def test_weights_of_likelihoods_are_constants_to_the_gradient(learned):
    error = torch.tensor(0.25, requires_grad=True)
    balance = LikelihoodBalance(UNIT, {"a": "gaussian"}, learned=learned)
    total, weights = balance({"a": error}, None, 0)
    total.backward()
    assert float(error.grad) == pytest.approx(2.0) == float(weights["a"])
    assert not weights["a"].requires_grad
    nothing, _ = balance({"a": error * 0}, None, 1)
    assert nothing.isfinite()


@pytest.mark.parametrize("learned", [False, True])
def test_terms_that_are_no_likelihoods_are_left_alone(learned):
    schedule = {
        "adversarial": ScheduleConfig("fade_out", 0.0, 1.0),
        "a": ScheduleConfig("fade_in", 0.0),
    }
    fixed = FixedBalance({"a": 50.0, "adversarial": 3.0}, schedule, steps=10)
    balance = LikelihoodBalance(fixed, {"a": "laplace"}, values=12, learned=learned)
    for step in range(5):
        terms = {"a": torch.tensor(0.5), "adversarial": torch.tensor(-9.0)}
        total, weights = balance(terms, None, step)
        assert weights["adversarial"] == pytest.approx(3 * (1 - step / 10) / 12)
        assert float(weights["a"]) == pytest.approx(step / 10 / 0.5)
        assert total.item() == pytest.approx(step / 10 - 9 * weights["adversarial"])
    assert set(balance.numbers) == {"a"}
    with pytest.raises(InputError, match="no weight for 'style'"):
        balance({"a": terms["a"], "style": terms["a"]}, None, 0)


def test_a_task_without_likelihoods_is_refused():
    with pytest.raises(InputError, match="no term of this task is a likelihood"):
        LikelihoodBalance(UNIT, {})


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "adaptive"])
def test_a_term_of_weight_zero_stays_out(kind):
    """Even where it is not finite: it is a curve, no part of the training."""
    layer = torch.ones(2, requires_grad=True)
    fixed = FixedBalance({"a": 2.0, "b": 0.0, "c": 0.0})
    noises = {"a": "laplace", "b": "laplace"}
    balance = choose(BalanceConfig(kind), fixed, noises, 1.0, 10)
    for step in range(2):
        terms = {"a": layer.sum(), "b": layer.sum(), "c": layer.sum() * math.nan}
        total, weights = balance(terms, layer, step)
        assert total.isfinite()
        assert float(weights["b"]) == float(weights["c"]) == 0
        (slope,) = torch.autograd.grad(total, layer)
        assert slope[0].item() == pytest.approx(float(weights["a"]))
    with pytest.raises(InputError, match="all weights are 0"):
        balance({"b": terms["b"], "c": terms["c"]}, layer, 0)


# Gradients


def test_gradient_norms_are_those_of_autograd():
    layer = numbers(3, 4).requires_grad_()
    x = numbers(4, 5, seed=1)
    hidden = torch.tanh(layer @ x)
    elsewhere = torch.ones(2, requires_grad=True)
    terms = {
        "square": hidden.square().mean(),
        "abs": 5 * hidden.abs().sum(),
        "elsewhere": elsewhere.sum(),
        "detached": hidden.sum().detach(),
    }
    found = gradient_norms(terms, layer)
    assert list(found) == list(terms)
    y = hidden.detach().numpy()
    for name, outer in {"square": 2 * y / y.size, "abs": 5 * np.sign(y)}.items():
        expected = np.linalg.norm((outer * (1 - y**2)) @ x.numpy().T)
        assert float(found[name]) == pytest.approx(expected, rel=1e-6)
    assert float(found["elsewhere"]) == float(found["detached"]) == 0
    assert not any(norm.requires_grad for norm in found.values())
    assert layer.grad is None
    sum(terms.values()).backward()  # the graph is still there


def test_small_gradients_do_not_vanish_in_float16():
    """A network in 16 bits rounds gradients below 6e-8 to nothing, unless the loss is enlarged."""
    layer = torch.ones(3, 4, requires_grad=True)
    hidden = (layer.half() * 2).float()
    terms = {"faint": 1e-9 * hidden.sum(), "strong": 3 * hidden.sum()}
    expected = {"faint": 2e-9 * 12**0.5, "strong": 6 * 12**0.5}
    plain_norms = gradient_norms(terms, layer)
    assert plain_norms["faint"] == 0
    found = gradient_norms(terms, layer, scale=lambda value: value * 2**13)
    assert plain(found) == pytest.approx(expected, rel=1e-2)
    too_much = gradient_norms(terms, layer, scale=lambda value: value * 2**20)
    assert too_much["strong"].isinf()
    assert too_much["faint"].item() == pytest.approx(expected["faint"], rel=1e-2)


@pytest.mark.parametrize("kind", ["gradnorm", "adaptive"])
def test_a_gradient_that_was_too_much_is_passed_over(kind):
    """As the GradScaler passes over the step; afterwards all is as it was."""
    fixed = FixedBalance({"a": 3.0, "adversarial": 2.0})
    balance = choose(BalanceConfig(kind, alpha=0.0), fixed, {}, 1.0, 10)
    layer = torch.ones(2, requires_grad=True)

    def weights(size):
        hidden = layer.half().float()
        terms = {"a": size * hidden.sum(), "adversarial": hidden.sum()}
        total, found = balance(terms, layer, 0)
        assert total.isfinite()
        return plain(found)

    first = weights(1.0)
    balance.scale = lambda value: value * 2**13
    skipped, after = weights(40.0), weights(1.0)
    assert first["a"] == 3
    if kind == "gradnorm":
        assert skipped["a"] + skipped["adversarial"] == pytest.approx(5)
        assert 2 < after["a"] <= skipped["a"] < 3
    else:
        assert skipped == {"a": 3, "adversarial": 0}
        assert first == after == pytest.approx({"a": 3, "adversarial": 6}, rel=1e-3)


def test_without_a_layer_nothing_can_be_compared():
    with pytest.raises(InputError, match="this task names none"):
        gradient_norms({"a": torch.ones(())}, None)
    for balance in (GradNormBalance(UNIT), AdaptiveBalance(UNIT)):
        terms = {"a": torch.ones(()), "adversarial": torch.ones(())}
        with pytest.raises(InputError, match="this task names none"):
            balance(terms, None, 0)


def settle(balance, terms, layer, steps=800):
    for step in range(steps):
        _, weights = balance(terms(), layer, step)
    return plain(weights)


def test_gradnorm_makes_pulls_equal():
    """Gradients 3 and 12 long, weights that sum to 10: 3 u = 12 v has the answer 8 and 2."""
    layer = torch.ones(9, dtype=torch.float64, requires_grad=True)

    def terms():
        return {"a": layer.sum() - 5, "b": 4 * layer.sum() + 1}

    balance = GradNormBalance(FixedBalance({"a": 1.0, "b": 9.0}), alpha=0.0)
    _, first = balance(terms(), layer, 0)
    assert plain(first) == pytest.approx({"a": 1, "b": 9})
    assert settle(balance, terms, layer) == pytest.approx({"a": 8, "b": 2}, rel=1e-4)


def test_gradnorm_weighs_what_lags_behind_by_its_power():
    """The loss of a is a half of its first one, that of b all of it: r is 2/3 and 4/3, and pulls
    are in the proportion 1 : 2**alpha (Chen et al. 2018, eqs. 1 and 2)."""
    layer = torch.ones(1, dtype=torch.float64, requires_grad=True)
    for alpha in (0.0, 0.5, 1.5):
        balance = GradNormBalance(FixedBalance({"a": 1.0, "b": 1.0}), alpha=alpha)
        balance({"a": layer.sum() + 3, "b": 3 * layer.sum() + 1}, layer, 0)
        found = settle(balance, lambda: {"a": layer.sum() + 1, "b": 3 * layer.sum() + 1}, layer)
        assert 3 * found["b"] / found["a"] == pytest.approx(2**alpha, rel=1e-4)
        assert sum(found.values()) == pytest.approx(2, rel=1e-4)


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_gradnorm_leaves_what_does_not_reach_the_layer(alpha):
    layer, other = (torch.ones(2, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def terms():
        return {"a": layer.sum() + 1, "coarse": other.sum(), "b": 5 * layer.sum() + 1}

    fixed = FixedBalance({"a": 3.0, "coarse": 0.7, "b": 3.0})
    balance = GradNormBalance(fixed, alpha=alpha)
    found = settle(balance, terms, layer)
    assert found["coarse"] == pytest.approx(0.7)
    assert found["a"] + found["b"] == pytest.approx(6, rel=1e-5)
    assert found["a"] == pytest.approx(5 * found["b"], rel=1e-3)
    nothing = GradNormBalance(fixed, alpha=alpha)
    kept = settle(nothing, lambda: {n: other.sum() + 1 for n in ("a", "coarse")}, layer, 5)
    assert kept == pytest.approx({"a": 3, "coarse": 0.7})


def test_gradnorm_takes_terms_below_zero_as_neither_ahead_nor_behind():
    layer = torch.ones(1, dtype=torch.float64, requires_grad=True)

    def terms():
        return {"a": layer.sum() + 3, "adversarial": -2 * layer.sum()}

    fixed = FixedBalance({"a": 1.0, "adversarial": 1.0})
    found = settle(GradNormBalance(fixed, alpha=1.5), terms, layer)
    assert found == pytest.approx({"a": 4 / 3, "adversarial": 2 / 3}, rel=1e-4)


def test_schedules_come_on_top_of_gradnorm():
    layer = torch.ones(1, dtype=torch.float64, requires_grad=True)
    fixed = FixedBalance({"a": 1.0, "b": 1.0}, {"b": ScheduleConfig("fade_in", 0.0)}, steps=4)
    balance = GradNormBalance(fixed, alpha=0.0)
    for step in range(4):
        terms = {"a": layer.sum(), "b": layer.sum()}
        total, weights = balance(terms, layer, step)
        assert plain(weights) == pytest.approx({"a": 1, "b": step / 4})
        assert total.item() == pytest.approx(1 + step / 4)


def autoencoder():
    """A last layer with a reconstruction and a critic behind it, in plain PyTorch."""
    torch.manual_seed(0)
    first, last, critic = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 3, 3), nn.Conv2d(3, 1, 4)
    made = last(torch.tanh(first(torch.randn(2, 3, 12, 12))))
    true = torch.randn_like(made)
    terms = {
        "l1": (made - true).abs().mean(),
        "l2": (made - true).square().mean(),
        "adversarial": -critic(made).mean(),
    }
    return terms, last.weight


def test_the_adaptive_weight_is_the_ratio_of_gradients():
    terms, layer = autoencoder()
    fixed = FixedBalance({"l1": 3.0, "l2": 0.5, "adversarial": 0.8})
    total, weights = AdaptiveBalance(fixed)(terms, layer, 0)
    rest = torch.autograd.grad(3 * terms["l1"] + 0.5 * terms["l2"], layer, retain_graph=True)[0]
    game = torch.autograd.grad(terms["adversarial"], layer, retain_graph=True)[0]
    expected = 0.8 * np.linalg.norm(rest.flatten()) / (np.linalg.norm(game.flatten()) + 1e-6)
    assert plain(weights) == pytest.approx({"l1": 3, "l2": 0.5, "adversarial": expected}, rel=1e-5)
    assert expected > 0.01
    by_hand = 3 * terms["l1"] + 0.5 * terms["l2"] + expected * terms["adversarial"]
    assert total.item() == pytest.approx(by_hand.item(), rel=1e-5)
    # Detached: the gradient is that of constant weights.
    got = torch.autograd.grad(total, layer)[0]
    assert torch.allclose(got, rest + expected * game, rtol=1e-4, atol=1e-7)


def test_the_adaptive_weight_waits_is_bounded_and_scheduled():
    layer = torch.ones(1, requires_grad=True)
    schedule = {"adversarial": ScheduleConfig("fade_out", 0.0)}
    fixed = FixedBalance({"a": 1.0, "adversarial": 0.5}, schedule, steps=10)
    balance = AdaptiveBalance(fixed, start=3)
    for step in range(6):
        terms = {"a": 6 * layer.sum(), "adversarial": 2 * layer.sum()}
        if step < 3:
            terms["adversarial"] = terms["adversarial"] * math.nan
        total, weights = balance(terms, layer, step)
        expected = 0.0 if step < 3 else 3 * 0.5 * (1 - step / 10)
        assert float(weights["adversarial"]) == pytest.approx(expected, rel=1e-5)
        assert total.item() == pytest.approx(6 + 2 * expected, rel=1e-5)
    faint = {"a": layer.sum(), "adversarial": 1e-9 * layer.sum()}
    _, weights = AdaptiveBalance(UNIT)(faint, layer, 0)
    assert float(weights["adversarial"]) == 1e4
    gone = {"a": layer.sum(), "adversarial": torch.zeros(())}
    total, weights = AdaptiveBalance(UNIT)(gone, layer, 0)
    assert total.isfinite()


@pytest.mark.parametrize("terms", [("a",), ("adversarial",)])
def test_the_adaptive_weight_needs_a_game_and_something_beside_it(terms):
    values = {name: torch.ones(()) for name in terms}
    with pytest.raises(InputError, match="weighs 'adversarial' against others; found"):
        AdaptiveBalance(UNIT)(values, torch.ones(1), 0)


# From the configuration


def test_a_configuration_chooses():
    fixed, noises = FixedBalance({"a": 1.0, "adversarial": 1.0}), {"a": "laplace"}
    made = {
        kind: choose(BalanceConfig(kind, 0.3, 0.7, 0.25), fixed, noises, 12.0, 50) for kind in KINDS
    }
    assert made["fixed"] is fixed
    derived, learned = made["derived"], made["uncertainty"]
    assert (derived.learned, learned.learned) == (False, True)
    assert (learned.rate, learned.values, learned.noises) == (0.3, 12.0, noises)
    assert (made["gradnorm"].alpha, made["gradnorm"].rate) == (0.7, 0.3)
    assert made["adaptive"].start == 12
    assert {type(balance) for balance in made.values()} == {
        FixedBalance, LikelihoodBalance, GradNormBalance, AdaptiveBalance
    }  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_is_not_begun_that_would_end_without_a_loss(kind):
    """After the fading there must be something left, at the last step too and not after it."""
    fade = {"a": ScheduleConfig("fade_out", 0.5, 0.8)}

    def make(other, schedules=fade, steps=10):
        fixed = FixedBalance({"a": 30.0, "adversarial": other}, schedules, steps)
        return choose(BalanceConfig(kind), fixed, {"a": "laplace"}, 1.0, steps)

    with pytest.raises(InputError, match=r"all weights are 0 at the last of 10 steps.*schedule"):
        make(0.0)
    game = float(kind == "adaptive")  # which needs both
    assert make(game, {"a": ScheduleConfig("fade_out", 0.5, 1.0)}) is not None
    assert make(game, {"a": ScheduleConfig("fade_in", 0.0, 0.5)}) is not None
    if kind != "adaptive":
        assert make(1.0) is not None
        return
    alone = r"balance.kind adaptive .*; found \['adversarial'\] at the last of 10 steps: .*"
    with pytest.raises(InputError, match=alone + "reconstruction_schedule end above 0"):
        make(1.0)
    with pytest.raises(InputError, match=r"balance.kind adaptive .*; found \['a'\]"):
        make(0.0, {})


@pytest.mark.parametrize(
    "wrong", [{"rate": -0.1}, {"alpha": -0.1}, {"start": 2.0}, {"start": -1.0}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match="expected rate >= 0, alpha >= 0, 0 <= start <= 1"):
        choose(BalanceConfig("adaptive", **wrong), UNIT, {}, 1.0, 10)


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_holds_all_there_is(kind):
    def make():
        return choose(BalanceConfig(kind), UNIT, {"a": "laplace", "b": "gaussian"}, 3.0, 40)

    def run(balance, steps):
        used = []
        for step in steps:
            layer = numbers(3, seed=step).requires_grad_()
            terms = {
                "a": layer.square().sum(),
                "b": layer.exp().mean(),
                "adversarial": -(layer**3).sum(),
            }
            total, weights = balance(terms, layer, step)
            used.append((total.item(), plain(weights)))
        return used

    whole, first, second = make(), make(), make()
    used = run(whole, range(20))
    run(first, range(10))
    second.load_state_dict(first.state_dict())
    state = repr(first.state_dict())
    assert run(second, range(10, 20)) == used[10:]
    assert repr(first.state_dict()) == state  # not one thing shared by two
    if kind != "fixed":
        assert used[0][1] != used[19][1]


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_waits_for_the_device(no_waiting, kind):
    balance = choose(BalanceConfig(kind), UNIT, {"a": "laplace"}, 3.0, 40)
    layer = numbers(3).requires_grad_()
    with no_waiting():
        for step in range(3):
            terms = {"a": layer.square().sum(), "b": layer.exp().sum(), "adversarial": layer.sum()}
            total, weights = balance(terms, layer, step)
            gradient_norms({name: weights[name] * term for name, term in terms.items()}, layer)
            total.backward()


@pytest.mark.parametrize("reconstruction", ["l1", "l2"])
def test_tasks_name_their_likelihoods(hole_task, cloud_task, super_task, reconstruction):
    noise = {"l1": "laplace", "l2": "gaussian"}[reconstruction]
    pix2pix = Pix2Pix(
        Pix2PixConfig("label", "image", UNetConfig(4, 2), PatchGANConfig(4, 1),
                      reconstruction=reconstruction),
        hole_task().spec,
    )  # fmt: skip
    tasks = {
        pix2pix: {reconstruction: noise},
        hole_task(): dict.fromkeys(["hole", "valid"], "laplace"),
        hole_task("two_stage"): dict.fromkeys(
            ["hole", "valid", "coarse_hole", "coarse_valid"], "laplace"
        ),
        cloud_task(reconstruction=reconstruction): dict.fromkeys(["ground", "alpha"], noise),
        super_task(reconstruction=reconstruction): {reconstruction: noise},
    }
    for task, expected in tasks.items():
        assert dict(task.likelihoods) == expected
        balance, _ = task.balances(10)
        assert set(expected) <= set(balance.weights)  # which are names of terms indeed
        assert task.last_layer.requires_grad


@pytest.mark.parametrize("layers", [1, 3])
def test_a_logit_stands_for_as_many_values_as_there_are_between_two(layers, super_task):
    judge = PatchGAN(3, width=2, layers=layers, norm="none")
    sizes = [judge(None, torch.zeros(1, 3, side, side))[0][0].shape[-1] for side in (64, 128)]
    assert judge.stride == 64 / (sizes[1] - sizes[0])
    task = super_task(4, discriminator=PatchGANConfig(width=4, layers=layers, norm="none"))
    assert task.values_judged == 4 * judge.stride**2
    assert super_task(4, adversarial_weight=0.0).values_judged == 4
