"""Mixtures of Gaussians: samples against their moments, counts against hand-made points."""

import dataclasses
import math

import pytest
import torch

from ganlab.errors import InputError
from ganlab.losses.adversarial import LOSSES
from ganlab.mixtures import (
    WITHIN_THREE_SIGMA,
    PlayConfig,
    PointDiscriminator,
    coverage,
    grid,
    play,
    ring,
)
from ganlab.stabilize.penalties import R1

SHORT = PlayConfig(steps=30, batch_size=16, width=8, layers=1, latent=2)


def drawn(mixture, count, seed=0):
    return mixture.sample(count, torch.Generator().manual_seed(seed))


def test_rings_and_grids_lie_where_they_should():
    assert torch.allclose(ring().centres.norm(dim=1), torch.full((8,), 2.0))
    sides = (ring().centres - ring().centres.roll(1, 0)).norm(dim=1)
    assert torch.allclose(sides, torch.full((8,), 4 * math.sin(math.pi / 8)), atol=1e-6)
    places = {(round(x), round(y)) for x, y in grid().centres.tolist()}
    assert places == {(x, y) for x in range(-2, 3) for y in range(-2, 3)}


@pytest.mark.parametrize("mixture", [ring(), grid()], ids=["ring", "grid"])
def test_samples_of_a_mixture_have_its_moments_and_cover_it(mixture):
    count, modes = 40_000, len(mixture.centres)
    points = drawn(mixture, count)
    assert points.shape == (count, 2, 1, 1)
    flat = points.flatten(1)
    nearest = torch.cdist(flat, mixture.centres).argmin(1)
    share = torch.bincount(nearest, minlength=modes) / count
    assert (share - 1 / modes).abs().max() < 5 * math.sqrt(1 / modes / count)
    residual = flat - mixture.centres[nearest]
    assert residual.std().item() == pytest.approx(mixture.std, rel=0.02)
    found = coverage(points, mixture)
    assert found.modes == modes
    assert found.quality == pytest.approx(WITHIN_THREE_SIGMA, abs=0.003)
    assert 0 < found.reverse_kl < 2 * modes / count


def test_modes_are_counted_by_their_fair_share():
    """Of 800 points, a fair fifth of what a mode should get near it is 19.8."""
    mixture = ring(std=0.1)
    c = mixture.centres
    points = torch.cat([c[:1].repeat(400, 1), c[1:2].repeat(20, 1), c[2:3].repeat(19, 1)])
    points = torch.cat([points, torch.zeros(361, 2)])
    # Just inside and just outside of three standard deviations.
    points[0, 0] += 0.299
    points[1, 0] += 0.301
    found = coverage(points, mixture)
    assert found.modes == 2
    assert found.quality == pytest.approx(438 / 800)
    assert coverage(points, mixture, fair=0.19).modes == 3
    assert coverage(points, mixture, fair=1.0).modes == 1


def test_reverse_kl_is_that_of_the_histogram():
    mixture = ring()
    for modes, expected in ((1, math.log(8)), (4, math.log(2)), (8, 0.0)):
        points = mixture.centres[:modes].repeat(10, 1)
        assert coverage(points, mixture).reverse_kl == pytest.approx(expected, abs=1e-12)
    points = mixture.centres[[0, 0, 0, 1]]
    expected = 0.75 * math.log(6) + 0.25 * math.log(2)
    assert coverage(points, mixture).reverse_kl == pytest.approx(expected)


class Counted(R1):
    """R1 that keeps what it was asked."""

    def __init__(self, weight=1.0, **options):
        super().__init__(weight, **options)
        self.seen = []

    def __call__(self, discriminator, condition, real, fake):
        assert real.shape == fake.shape == (16, 2, 1, 1)
        assert not fake.requires_grad
        self.seen.append(condition)
        return super().__call__(discriminator, condition, real, fake)


class Seldom(Counted):
    """Lazy by itself: four times the term at every fourth step, nothing in between."""

    def __call__(self, *arguments):
        term = super().__call__(*arguments)
        return term * 4 if len(self.seen) % 4 == 1 else term * 0


@pytest.mark.parametrize("game", LOSSES)
def test_every_game_moves_the_generator_and_repeats(game):
    config = dataclasses.replace(SHORT, game=game)
    before = torch.random.get_rng_state()
    first, second = play(ring(), config), play(ring(), config)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first, second)
    assert first.shape == (1, 10_000, 2, 1, 1)
    still = play(ring(), dataclasses.replace(config, generator_lr=0.0))
    assert not torch.equal(first, still)
    # Games side by side share nothing: the third seed of three plays as it does alone.
    three = play(ring(), config, [R1(1.0)], seeds=[1, 2, 0])
    alone = play(ring(), config, [R1(1.0)])
    assert torch.allclose(three[2], alone[0], atol=1e-3)
    assert not torch.allclose(three[0], three[1], atol=1e-1)


def test_penalties_count_with_weight_and_interval():
    plain = play(ring(), SHORT)
    every, fourth = Counted(), Counted(every=4)
    always = play(ring(), SHORT, [every])
    lazily = play(ring(), SHORT, [fourth])
    assert every.seen == [None] * 30
    assert fourth.seen == [None] * 8
    assert torch.equal(play(ring(), SHORT, [Counted(0.0)]), plain)
    assert not torch.equal(always, plain)
    assert not torch.equal(lazily, plain)
    assert torch.allclose(play(ring(), SHORT, [Seldom(1.0)]), lazily, atol=1e-5)
    # n_critic counts updates of the discriminator.
    thrice = Counted()
    play(ring(), dataclasses.replace(SHORT, n_critic=3), [thrice])
    assert len(thrice.seen) == 90


def test_the_averaged_generator_is_what_is_judged():
    seen = []
    ema = dataclasses.replace(SHORT, ema=0.9)
    last = play(ring(), ema, watch=lambda step, points: seen.append((step, points)), watch_every=15)
    assert [step for step, _ in seen] == [15, 30]
    assert torch.equal(seen[-1][1], last)
    bare = play(ring(), dataclasses.replace(SHORT, ema=0.0))
    # The average lags behind: it has come less far from the start.
    start = play(ring(), dataclasses.replace(SHORT, generator_lr=0.0))
    assert 0 < (last - start).norm() < (bare - start).norm()


def test_the_discriminator_is_a_judge_of_points():
    (logits, features), *others = PointDiscriminator([0], 8, 2)(None, torch.randn(5, 2, 1, 1))
    assert logits.shape == (5, 1, 1, 1)
    assert (features, others) == ([], [])


def test_nonsense_is_refused():
    with pytest.raises(InputError, match="ring of 0 modes"):
        ring(0)
    with pytest.raises(InputError, match="std 0"):
        grid(std=0)
    with pytest.raises(InputError, match=r"shape \(5, 3\)"):
        coverage(torch.zeros(5, 3), ring())
    with pytest.raises(InputError, match="fair share 0"):
        coverage(torch.zeros(5, 2), ring(), fair=0)
    with pytest.raises(InputError, match="game 'go'"):
        play(ring(), PlayConfig(game="go"))
    with pytest.raises(InputError, match="0 steps"):
        play(ring(), PlayConfig(steps=0))
