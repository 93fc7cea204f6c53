"""Losses and balances against closed forms."""

import math
import typing

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ganlab.config import Adversarial, ScheduleConfig
from ganlab.errors import InputError
from ganlab.losses import adversarial, reconstruction
from ganlab.losses.adversarial import LOSSES, AdversarialLoss, Verdict, full
from ganlab.losses.balance import FixedBalance, schedule

LOGITS = st.floats(-30, 30)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


CLOSED = {
    "vanilla": (
        lambda r, f: -math.log(sigmoid(r)) - math.log(1 - sigmoid(f)),
        lambda f: -math.log(sigmoid(f)),
    ),
    "least_squares": (lambda r, f: (r - 1) ** 2 + f**2, lambda f: (f - 1) ** 2),
    "hinge": (lambda r, f: max(0, 1 - r) + max(0, 1 + f), lambda f: -f),
    "wasserstein": (lambda r, f: f - r, lambda f: -f),
}
ALONE = [name for name, game in LOSSES.items() if not game.relativistic]


def test_every_game_is_tested():
    assert sorted([*CLOSED, "relativistic"]) == sorted(LOSSES)
    assert sorted(typing.get_args(Adversarial)) == sorted(LOSSES)
    assert [name for name in LOSSES if name not in ALONE] == ["relativistic"]


@pytest.mark.parametrize("name", ALONE)
@given(real=LOGITS, fake=LOGITS)
def test_games_are_their_closed_forms(name, real, fake):
    r, f = (torch.tensor(x, dtype=torch.float64).view(1, 1, 1, 1) for x in (real, fake))
    of_d, of_g = CLOSED[name]
    # 1 - sigmoid loses digits in the reference, not in the loss.
    assert LOSSES[name].discriminator(r, f).item() == pytest.approx(of_d(real, fake), rel=1e-3)
    assert LOSSES[name].generator(None, f).item() == pytest.approx(of_g(fake), rel=1e-9, abs=1e-12)


@given(real=LOGITS, fake=LOGITS)
def test_the_relativistic_game_is_its_closed_form(real, fake):
    r, f = (torch.tensor(x, dtype=torch.float64).view(1, 1, 1, 1) for x in (real, fake))
    game = LOSSES["relativistic"]
    # The odds of a pair: exp(real) against exp(fake).
    odds = math.exp(real) / (math.exp(real) + math.exp(fake))
    assert game.discriminator(r, f).item() == pytest.approx(-math.log(odds), rel=1e-3, abs=1e-12)
    # Symmetric: who sees the sides swapped plays for the other; a common shift changes nothing.
    assert torch.equal(game.generator(r, f), game.discriminator(f, r))
    shifted = game.generator(r + 5, f + 5).item()
    assert shifted == pytest.approx(game.generator(r, f).item(), rel=1e-9, abs=1e-12)
    difference = game.generator(r, f) - game.discriminator(r, f)
    assert difference.item() == pytest.approx(real - fake, rel=1e-9, abs=1e-9)


def test_the_relativistic_generator_needs_the_real_logits():
    with pytest.raises(TypeError, match="needs the real logits"):
        LOSSES["relativistic"].generator(None, torch.zeros(1, 1, 1, 1))


@pytest.mark.parametrize("name", LOSSES)
def test_games_have_the_right_gradients(name):
    generator = torch.Generator().manual_seed(1)
    real, fake = (
        torch.randn(2, 1, 3, 3, generator=generator, dtype=torch.float64).requires_grad_()
        for _ in range(2)
    )
    assert torch.autograd.gradcheck(LOSSES[name].discriminator, (real, fake))
    if LOSSES[name].relativistic:
        assert torch.autograd.gradcheck(LOSSES[name].generator, (real, fake))
    else:
        assert torch.autograd.gradcheck(lambda f: LOSSES[name].generator(None, f), (fake,))


def test_the_wasserstein_critic_and_its_generator_want_the_opposite():
    """Slopes are 1 everywhere: nothing saturates, and nothing is bounded."""
    real, fake = (torch.tensor([-50.0, 0, 3], requires_grad=True) for _ in range(2))
    of_d = torch.autograd.grad(LOSSES["wasserstein"].discriminator(real, fake).sum(), (real, fake))
    (of_g,) = torch.autograd.grad(LOSSES["wasserstein"].generator(None, fake).sum(), fake)
    assert [slope.tolist() for slope in (*of_d, of_g)] == [[-1] * 3, [1] * 3, [-1] * 3]


def test_vanilla_survives_certainty():
    sure = torch.tensor([[[[1e4]]]])
    assert LOSSES["vanilla"].discriminator(sure, -sure).item() == 0
    assert LOSSES["vanilla"].discriminator(-sure, sure).item() == 2e4
    assert LOSSES["vanilla"].generator(None, -sure).item() == 1e4


@pytest.mark.parametrize(
    ("name", "best"),
    [("vanilla", 0.0), ("least_squares", 0.5), ("relativistic", 3.0), ("wasserstein", 3.0)],
)
def test_where_real_and_made_agree_the_best_answer_has_no_slope(name, best):
    logit = torch.full((1, 1, 1, 1), best, dtype=torch.float64, requires_grad=True)
    LOSSES[name].discriminator(logit, logit).sum().backward()
    assert abs(logit.grad.item()) < 1e-12


def images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("distance", "power"), [("l1", 1), ("l2", 2)])
def test_distances_are_means_over_the_measured_pixels(distance, power):
    made, true = images(3, 2, 4, 5), images(3, 2, 4, 5, seed=1)
    valid = (images(3, 1, 4, 5, seed=2) > 0).double()
    valid[2] = 0
    function = getattr(reconstruction, distance)
    got = function(made, true, valid)
    for i in range(2):
        seen = valid[i, 0].numpy() > 0
        values = np.abs(made[i].numpy() - true[i].numpy())[:, seen] ** power
        assert got[i].item() == pytest.approx(values.mean(), rel=1e-12)
    assert got[2].item() == 0
    whole = function(made, true, torch.ones(3, 1, 4, 5, dtype=torch.float64))
    expected = ((made - true).abs() ** power).mean((1, 2, 3))
    assert torch.allclose(whole, expected, rtol=1e-12)


@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_distances_take_fractions_as_weights_and_pass_gradcheck(distance):
    made, true = images(2, 3, 4, 4).requires_grad_(), images(2, 3, 4, 4, seed=1)
    weight = images(2, 1, 4, 4, seed=2).abs()
    function = getattr(reconstruction, distance)
    assert torch.autograd.gradcheck(lambda m: function(m, true, weight), (made,))
    differences = (made - true).abs() if distance == "l1" else (made - true) ** 2
    expected = (differences * weight).sum((1, 2, 3)) / (3 * weight.sum((1, 2, 3)))
    assert torch.allclose(function(made, true, weight), expected, rtol=1e-12)


@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_nothing_gets_through_from_under_invalid_pixels(distance):
    made, true = images(1, 1, 2, 2).requires_grad_(), images(1, 1, 2, 2, seed=1)
    true[..., 0, 0] = math.nan
    valid = torch.ones(1, 1, 2, 2, dtype=torch.float64)
    valid[..., 0, 0] = 0
    value = getattr(reconstruction, distance)(made, true, valid)
    value.sum().backward()
    assert value.isfinite().all()
    assert made.grad[0, 0, 0, 0] == 0
    assert (made.grad.flatten()[1:] != 0).all()


class Judge:
    """A discriminator that answers with given maps and counts what it is asked."""

    def __init__(self, heads=1, dtype=torch.float64):
        self.asked, self.heads, self.dtype = [], heads, dtype

    def __call__(self, condition, image):
        self.asked.append((condition, image))
        return [
            (torch.nn.functional.avg_pool2d(image[:, :1], 2 ** (head + 1)).to(self.dtype), [image])
            for head in range(self.heads)
        ]


def verdict(judge, valid=None, batch=3):
    real, fake = images(batch, 2, 4, 4), images(batch, 2, 4, 4, seed=1)
    valid = torch.ones(batch, 1, 4, 4, dtype=torch.float64) if valid is None else valid
    return Verdict(judge, None, real, fake, valid), real, fake


RELATIVISTIC = LOSSES["relativistic"]


def test_a_verdict_asks_once_and_only_when_needed():
    judge = Judge()
    said, real, fake = verdict(judge)
    assert judge.asked == []
    said.generator_term(LOSSES["vanilla"])
    assert [image is fake for _, image in judge.asked] == [True]
    said.generator_term(RELATIVISTIC)
    assert [image is real for _, image in judge.asked] == [False, True]
    said.discriminator_term(LOSSES["hinge"])
    assert said.real[0][1][0] is real
    assert len(judge.asked) == 2


@pytest.mark.parametrize("name", LOSSES)
def test_terms_are_means_over_patches_samples_and_heads(name):
    said, real, fake = verdict(Judge(heads=2))
    pool = torch.nn.functional.avg_pool2d
    reals, fakes = ([pool(x[:, :1], size) for size in (2, 4)] for x in (real, fake))
    game = LOSSES[name]
    expected = [
        np.mean([game.discriminator(r, f).mean() for r, f in zip(reals, fakes, strict=True)]),
        np.mean([game.generator(r, f).mean() for r, f in zip(reals, fakes, strict=True)]),
    ]
    assert said.discriminator_term(game).item() == pytest.approx(expected[0], rel=1e-12)
    assert said.generator_term(game).item() == pytest.approx(expected[1], rel=1e-12)


def test_a_relativistic_generator_sees_real_logits():
    said, real, fake = verdict(Judge())
    pool = torch.nn.functional.avg_pool2d
    difference = pool(real[:, :1], 2) - pool(fake[:, :1], 2)
    expected = torch.log1p(torch.exp(difference)).mean().item()
    assert said.generator_term(RELATIVISTIC).item() == pytest.approx(expected, rel=1e-12)
    other = torch.log1p(torch.exp(-difference)).mean().item()
    assert said.discriminator_term(RELATIVISTIC).item() == pytest.approx(other, rel=1e-12)


def test_patches_count_by_their_measured_share():
    valid = torch.ones(2, 1, 4, 4, dtype=torch.float64)
    valid[0, :, :2, :2] = 0  # one whole patch of the first sample
    valid[0, :, 2:, 2:] = torch.tensor([[1.0, 0], [0, 0]])  # and three quarters of another
    valid[1] = 0  # nothing of the second sample
    said, _, fake = verdict(Judge(), valid, batch=2)
    logits = torch.nn.functional.avg_pool2d(fake[:, :1], 2)[0, 0]
    weights = torch.tensor([[0, 1], [1, 0.25]], dtype=torch.float64)
    first = ((logits - 1) ** 2 * weights).sum() / 2.25
    got = said.generator_term(LOSSES["least_squares"]).item()
    assert got == pytest.approx(first.item() / 2, rel=1e-12)


def test_losses_are_taken_in_float32_and_never_below_what_came():
    for dtype, expected in [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ]:
        said, *_ = verdict(Judge(dtype=dtype))
        assert said.discriminator_term(LOSSES["vanilla"]).dtype == torch.float64  # the mask's
        seen = []

        def spy(real, fake, seen=seen):
            seen.append((real.dtype, fake.dtype))
            return real - fake

        said.discriminator_term(AdversarialLoss(spy, spy, True))
        said.generator_term(AdversarialLoss(spy, spy, True))
        assert seen == [(expected, expected)] * 2
        assert full(torch.zeros(1, dtype=dtype)).dtype == expected


def test_shares_of_a_batch_average_to_the_whole():
    valid = (images(4, 1, 4, 4, seed=7) > -0.5).double()
    real, fake = images(4, 2, 4, 4), images(4, 2, 4, 4, seed=1)

    def term(part):
        said = Verdict(Judge(), None, real[part], fake[part], valid[part])
        return said.discriminator_term(adversarial.LOSSES["vanilla"]).item()

    halves = [term(slice(0, 2)), term(slice(2, 4))]
    assert np.mean(halves) == pytest.approx(term(slice(0, 4)), rel=1e-12)


@given(share=st.floats(0, 1), end=st.floats(-1, 3))
def test_schedules_are_their_closed_forms(share, end):
    steps, start, stop = 1000, 0.25, 0.75
    step = round(share * steps)
    progress = min(max((step / steps - start) / (stop - start), 0), 1)
    for shape, expected in {
        "constant": 1.0,
        "linear": 1 + (end - 1) * progress,
        "fade_out": 1 - progress,
        "fade_in": progress,
        "cosine": end + (1 - end) * (1 + math.cos(math.pi * progress)) / 2,
    }.items():
        config = ScheduleConfig(shape, start, stop, end)
        assert schedule(config, step, steps) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_a_schedule_may_be_a_jump():
    jump = ScheduleConfig("linear", 0.5, 0.5, 0.1)
    assert [schedule(jump, step, 10) for step in (4, 5, 6)] == pytest.approx([1, 1, 0.1])


def test_fading_in_begins_at_nothing_and_ends_at_all():
    config = ScheduleConfig("fade_in", 0.0, 0.25, end=7.0)  # end has no say in it
    assert [schedule(config, step, 8) for step in (0, 1, 2, 5)] == pytest.approx([0, 0.5, 1, 1])
    balance = FixedBalance({"a": 1.0, "b": 4.0}, {"b": config}, steps=8)
    a, b = (torch.tensor(x, requires_grad=True) for x in (2.0, 3.0))
    totals = [balance({"a": a, "b": b}, None, step)[0].item() for step in range(4)]
    assert totals == [2, 8, 14, 14]


@pytest.mark.parametrize(("start", "stop"), [(0.6, 0.5), (-0.1, 0.5), (0.5, 1.1), (math.nan, 1)])
def test_impossible_schedules_are_refused(start, stop):
    with pytest.raises(InputError, match="0 <= start <= stop <= 1"):
        schedule(ScheduleConfig("linear", start, stop), 0, 10)


def test_a_fixed_balance_weighs_schedules_and_leaves_out():
    a, b, c = (torch.tensor(x, requires_grad=True) for x in (2.0, 3.0, math.nan))
    balance = FixedBalance(
        {"a": 5.0, "b": 2.0, "c": 0.0, "unused": 1.0},
        {"b": ScheduleConfig("linear", 0.0, 1.0, 0.0)},
        steps=4,
    )
    total, used = balance({"a": a, "b": b, "c": c}, None, 3)
    assert used == {"a": 5.0, "b": 0.5, "c": 0.0}
    assert total.item() == 11.5
    total.backward()
    assert (a.grad.item(), b.grad.item(), c.grad) == (5.0, 0.5, None)
    balance.load_state_dict(balance.state_dict())


def test_unweighted_terms_and_empty_sums_are_refused():
    one = torch.tensor(1.0)
    with pytest.raises(InputError, match="no weight for 'b'; weights: \\['a'\\]"):
        FixedBalance({"a": 1.0})({"a": one, "b": one}, None, 0)
    with pytest.raises(InputError, match="all weights are 0"):
        FixedBalance({"a": 0.0})({"a": one}, None, 0)
