"""Distances of feature sets and intervals: closed forms, refusals, and coverage by simulation."""

import math

import numpy as np
import pytest

from ganlab.distributions import (
    bootstrap_interval,
    crossed_interval,
    draws,
    frechet_distance,
    kernel_distance,
    kernel_distance_interval,
    resampled_interval,
    student_quantile,
)
from ganlab.errors import InputError

DICE = np.random.default_rng


def whitened(n, d, seed):
    """Samples whose mean is exactly 0 and whose covariance is exactly the unit matrix."""
    x = DICE(seed).normal(size=(n, d))
    x -= x.mean(0)
    return x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T


def test_frechet_distance_of_gaussians_with_common_axes():
    """Diagonal covariances: |m - n|^2 + sum (s - t)^2 (Dowson and Landau 1982)."""
    s, t = np.array([1.0, 0.5, 3.0, 0.0]), np.array([2.0, 0.5, 1.0, 1.5])
    m, n = np.array([0.0, 1.0, -1.0, 2.0]), np.array([0.5, 1.0, 2.0, 2.0])
    turn = np.linalg.qr(DICE(0).normal(size=(4, 4)))[0]
    a, b = (m + whitened(50, 4, 1) * s) @ turn, (n + whitened(70, 4, 2) * t) @ turn
    expected = np.square(m - n).sum() + np.square(s - t).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-12)


def test_frechet_distance_of_gaussians_with_other_axes():
    """In two dimensions tr (AB)^(1/2) = (tr AB + 2 (det AB)^(1/2))^(1/2)."""
    a = whitened(40, 2, 0) @ np.array([[2.0, 1.0], [0.0, 0.5]])
    b = whitened(60, 2, 1) @ np.array([[1.0, -0.3], [0.7, 1.0]]) + [1, 2]
    first, second = np.cov(a.T), np.cov(b.T)
    product = first @ second
    root = math.sqrt(np.trace(product) + 2 * math.sqrt(np.linalg.det(product)))
    expected = 5 + np.trace(first) + np.trace(second) - 2 * root
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_frechet_distance_with_fewer_samples_than_dimensions():
    """Rank one against rank one: u u' and v v' have the root |u·v|."""
    u, v = DICE(0).normal(size=(2, 30))
    a, b = np.stack([u, -u]), np.stack([v, -v])  # the unbiased covariances are 2 u u', 2 v v'
    expected = 2 * (u @ u + v @ v - 2 * abs(u @ v))
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)
    few = DICE(1).normal(size=(20, 500))
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(few, few + 1) == pytest.approx(500, rel=1e-12)


def test_frechet_distance_is_biased_and_the_kernel_distance_is_not():
    def mean(distance, n, times=60):
        dice = DICE(0)
        found = [distance(*dice.normal(size=(2, n, 8))) for _ in range(times)]
        return np.mean(found), np.std(found) / math.sqrt(times)

    few, many = mean(frechet_distance, 20)[0], mean(frechet_distance, 80)[0]
    assert few > 1
    assert 2.5 < few / many < 5.5
    for n in (20, 80):
        middle, error = mean(kernel_distance, n)
        assert abs(middle) < 3 * error < 0.1


def moments(mean, spread):
    """First three moment tensors of a Gaussian with independent coordinates."""
    unit = np.eye(len(mean)) * spread**2
    second = unit + np.einsum("i,j->ij", mean, mean)
    mixed = np.einsum("ij,k->ijk", unit, mean)
    third = np.einsum("i,j,k->ijk", mean, mean, mean)
    return mean, second, third + mixed + mixed.transpose(0, 2, 1) + mixed.transpose(2, 1, 0)


def exact_kernel_distance(a, b):
    """Of Gaussians: (x·y / d + 1)^3 compares moments, with weights from the binomial theorem."""
    d = len(a[0])
    pairs = zip((3 / d, 3 / d**2, 1 / d**3), moments(*a), moments(*b), strict=True)
    return sum(weight * np.square(p - q).sum() for weight, p, q in pairs)


def test_kernel_distance_is_a_double_sum():
    x, y = DICE(0).normal(size=(7, 3)), DICE(1).normal(size=(5, 3)) + 0.5

    def mean(pairs):
        return np.mean([(p @ q / 3 + 1) ** 3 for p, q in pairs])

    within = [
        mean((p, q) for i, p in enumerate(z) for j, q in enumerate(z) if i != j) for z in (x, y)
    ]
    expected = sum(within) - 2 * mean((p, q) for p in x for q in y)
    assert kernel_distance(x, y) == pytest.approx(expected, rel=1e-12)
    x = x[:5]
    terms = [
        (p @ q / 3 + 1) ** 3 + (r @ s / 3 + 1) ** 3 - (p @ s / 3 + 1) ** 3 - (r @ q / 3 + 1) ** 3
        for i, (p, r) in enumerate(zip(x, y, strict=True))
        for j, (q, s) in enumerate(zip(x, y, strict=True))
        if i != j
    ]
    assert kernel_distance(x, y, paired=True) == pytest.approx(np.mean(terms), rel=1e-12)


@pytest.mark.parametrize("paired", [False, True])
def test_kernel_distance_is_unbiased(paired):
    a, b = (np.array([1.0, 0.0, 0.0]), 1.0), (np.array([0.0, 0.5, 0.0]), 1.3)
    exact, dice, found = exact_kernel_distance(a, b), DICE(0), []
    for _ in range(1500):
        noise = dice.normal(size=(12, 3))
        own = dice.normal(size=(12, 3))
        other = 0.8 * noise + 0.6 * own if paired else own  # correlated with its partner
        found.append(kernel_distance(a[0] + noise, b[0] + 1.3 * other, paired=paired))
    error = np.std(found) / math.sqrt(len(found))
    assert abs(np.mean(found) - exact) < 3 * error
    assert 10 * error < exact


def test_pairs_would_otherwise_reward_a_copy():
    x = DICE(0).normal(size=(20, 4))
    assert kernel_distance(x, x) < -0.1
    assert kernel_distance(x, x, paired=True) == 0


def trial(dice, n, shift, other, likeness=0.7, d=4):
    """Truth and two methods, tile by tile alike; each is off by its shift, along its own axis."""
    truth = dice.normal(size=(n, d))
    rest = math.sqrt(1 - likeness**2)
    a, b = (likeness * truth + rest * dice.normal(size=(n, d)) for _ in range(2))
    a[:, 0] += shift
    b[:, 1] += other
    return a, b, truth


@pytest.mark.parametrize(("shift", "other"), [(1.0, 1.0), (0.5, 1.0)])
def test_kernel_intervals_cover_the_exact_difference(shift, other):
    """95 % of the intervals, by simulation: not fewer, and not many more."""
    mean = np.eye(4)
    exact = exact_kernel_distance((shift * mean[0], 1.0), (np.zeros(4), 1.0))
    exact -= exact_kernel_distance((other * mean[1], 1.0), (np.zeros(4), 1.0))
    dice, trials = DICE(1), 600
    ends = [kernel_distance_interval(*trial(dice, 100, shift, other)) for _ in range(trials)]
    low, high = np.array(ends).T
    assert 0.925 < np.mean((low < exact) & (exact < high)) < 0.975
    assert np.mean(high < exact) < 0.06
    assert np.mean(low > exact) < 0.06
    narrow = kernel_distance_interval(*trial(DICE(2), 100, 1, 1), level=0.5)
    wide = kernel_distance_interval(*trial(DICE(2), 100, 1, 1), level=0.95)
    assert (wide[1] - wide[0]) / (narrow[1] - narrow[0]) == pytest.approx(1.95996 / 0.67449, 1e-4)


@pytest.mark.parametrize("n", [10, 40])
def test_kernel_intervals_rarely_claim_what_is_not_there(n):
    """Also for few tiles, and where all three sets have one distribution."""
    dice = DICE(3)
    for shift in (0.0, 1.0):
        ends = [kernel_distance_interval(*trial(dice, n, shift, shift)) for _ in range(300)]
        assert np.mean([low > 0 or high < 0 for low, high in ends]) < 0.07


def test_kernel_intervals_find_what_is_there():
    dice = DICE(4)
    ends = np.array([kernel_distance_interval(*trial(dice, 60, 0.3, 1.2)) for _ in range(100)])
    assert np.mean(ends[:, 1] < 0) > 0.8
    a, b, truth = trial(DICE(5), 60, 0.3, 1.2)
    low, high = kernel_distance_interval(a, b, truth)
    back = kernel_distance_interval(b, a, truth)
    assert back == pytest.approx((-high, -low), rel=1e-12)
    difference = kernel_distance(a, truth, paired=True) - kernel_distance(b, truth, paired=True)
    assert (low + high) / 2 == pytest.approx(difference, rel=1e-9)


def test_the_jackknife_leaves_out_every_tile_in_turn():
    a, b, truth = trial(DICE(6), 12, 0.5, 1.0)

    def difference(keep):
        return kernel_distance(a[keep], truth[keep], paired=True) - kernel_distance(
            b[keep], truth[keep], paired=True
        )

    without = [difference(np.arange(12) != i) for i in range(12)]
    error = math.sqrt(11 / 12 * np.square(without - np.mean(without)).sum())
    low, high = kernel_distance_interval(a, b, truth)
    assert (high - low) / 2 == pytest.approx(1.959964 * error, rel=1e-6)


@pytest.mark.parametrize("kind", ["normal", "skewed", "paired"])
def test_bootstrap_intervals_cover_the_mean(kind):
    dice, hits, above, below, trials, n = DICE(7), 0, 0, 0, 500, 60
    for i in range(trials):
        tile = dice.normal(size=n)
        values, other, mean = 3 + tile, None, 3.0
        if kind == "skewed":
            values, mean = dice.gamma(2.0, size=n), 2.0
        if kind == "paired":  # what makes a tile hard is shared, and larger than the difference
            values = 10 * tile + dice.normal(size=n) + 0.5
            other, mean = 10 * tile + dice.normal(size=n), 0.5
            values[dice.integers(n, size=5)] = other[dice.integers(n, size=5)] = np.nan
        low, high = bootstrap_interval(values, other=other, resamples=300, seed=i)
        hits += low <= mean <= high
        above += low > mean
        below += high < mean
        assert high - low < (1.6 if kind == "skewed" else 1.3)
    assert 0.91 < hits / trials < 0.975
    assert max(above, below) / trials < 0.075


def test_bootstrap_intervals_follow_the_seed_and_ignore_nan_by_pairs():
    values, other = DICE(0).normal(size=(2, 30))
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)
    holes, others = values.copy(), other.copy()
    holes[3], others[7] = np.nan, np.nan
    keep = np.delete(np.arange(30), [3, 7])
    found = bootstrap_interval(holes, other=others)
    assert found == bootstrap_interval(values[keep] - other[keep])
    assert all(math.isnan(end) for end in bootstrap_interval([np.nan], other=[1.0]))
    assert bootstrap_interval([2.0, np.nan]) == (2.0, 2.0)
    inner, outer = (bootstrap_interval(values, level=level) for level in (0.5, 0.99))
    assert outer[0] < inner[0] < values.mean() < inner[1] < outer[1]


def test_any_number_of_resampled_tiles():
    """Two tiles of 0 and 1: their mean is 0, 1/2 or 1, with probability 1/4, 1/2, 1/4."""
    values, seen = np.array([0.0, 1.0]), []

    def mean(tiles):
        seen.append(tiles)
        return values[tiles].mean()

    assert resampled_interval(mean, 2) == (0.0, 1.0)
    assert len(seen) == 2000
    assert all(tiles.shape == (2,) and set(tiles.tolist()) <= {0, 1} for tiles in seen)
    shares = np.bincount([t.sum() for t in seen], minlength=3) / 2000
    assert np.abs(shares - [0.25, 0.5, 0.25]).max() < 0.05
    assert resampled_interval(mean, 2, level=0.4) == (0.5, 0.5)
    # A number that is no mean: the largest of ten is missed with probability 0.9**10 = 0.35.
    largest = [resampled_interval(lambda t: t.max(), 10, level=v) for v in (0.2, 0.95)]
    assert largest[0] == (9, 9)
    assert 6 <= largest[1][0] < 8
    assert largest[1][1] == 9


def test_resampled_means_are_those_of_the_bootstrap():
    values = DICE(0).normal(size=400)
    found = resampled_interval(lambda tiles: values[tiles].mean(), 400, seed=3)
    assert found == bootstrap_interval(values, seed=3)
    error = values.std() / 20
    assert found == pytest.approx((values.mean() - 1.96 * error, values.mean() + 1.96 * error),
                                  abs=0.25 * error)  # fmt: skip
    assert found != resampled_interval(lambda tiles: values[tiles].mean(), 400, seed=4)
    seen = []
    resampled_interval(lambda tiles: seen.append(tiles) or 0.0, 400, resamples=7)
    assert len(seen) == 7
    assert all(math.isnan(end) for end in resampled_interval(lambda tiles: 1 / 0, 0))
    for level in (0, 1, 95):
        with pytest.raises(InputError, match=f"an interval of level {level}: expected a share"):
            resampled_interval(lambda tiles: 0.0, 5, level=level)


BAD = [
    (np.zeros((3, 2)), np.zeros((3, 4))),
    (np.zeros(3), np.zeros(3)),
    (np.zeros((1, 2)), np.zeros((3, 2))),
    (np.full((3, 2), np.nan), np.zeros((3, 2))),
    (np.zeros((3, 2)), np.full((3, 2), np.inf)),
]


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
@pytest.mark.parametrize(("a", "b"), BAD)
def test_bad_features_are_refused(distance, a, b):
    with pytest.raises(InputError, match="expected finite numbers"):
        distance(a, b)


def test_what_cannot_be_paired_or_drawn_is_refused():
    x = DICE(0).normal(size=(6, 2))
    with pytest.raises(InputError, match="6 samples cannot be paired with 5"):
        kernel_distance(x, x[:5], paired=True)
    with pytest.raises(InputError, match="5 samples cannot be paired with 6"):
        kernel_distance_interval(x, x[:5], x)
    with pytest.raises(InputError, match="2 tiles are too few"):
        kernel_distance_interval(x[:2], x[:2], x[:2])
    for level in (0, 1, 95):
        with pytest.raises(InputError, match=f"an interval of level {level}: expected a share"):
            kernel_distance_interval(x, x, x, level=level)
        with pytest.raises(InputError, match="expected a share"):
            bootstrap_interval(x[0], level=level)
    for bad in ((x, None, 5), (x[0], x[0, :1], 5), (x[0], None, 0)):
        with pytest.raises(InputError, match="give one number for each tile"):
            bootstrap_interval(bad[0], other=bad[1], resamples=bad[2])


# Seeds and tiles together


@pytest.mark.parametrize(
    ("probability", "freedom", "quantile"),
    [
        (0.975, 1, 12.70620), (0.975, 2, 4.30265), (0.975, 3, 3.18245), (0.975, 4, 2.77645),
        (0.975, 9, 2.26216), (0.975, 29, 2.04523), (0.975, 120, 1.97993), (0.95, 2, 2.91999),
        (0.995, 7, 3.49948), (0.75, 6, 0.71756), (0.5, 5, 0.0),
    ],
)  # fmt: skip
def test_quantiles_of_student_are_those_of_the_printed_tables(probability, freedom, quantile):
    assert student_quantile(probability, freedom) == pytest.approx(quantile, abs=6e-6)


def halves(interval, middle):
    return middle - interval[0], interval[1] - middle


def test_of_many_seeds_and_tiles_alike_the_interval_is_students():
    """No spread over tiles: mean ± t s / sqrt(n)."""
    d = DICE(0).normal(3, 2, 40)
    found = crossed_interval(d, np.repeat(d[:, None], 7, 1), resamples=20_000)
    half = student_quantile(0.975, 39) * d.std(ddof=1) / math.sqrt(40)
    assert halves(found, d.mean()) == pytest.approx((half, half), rel=0.05)
    narrow = crossed_interval(d, np.zeros((40, 0)), level=0.5, resamples=20_000)
    half = student_quantile(0.75, 39) * d.std(ddof=1) / math.sqrt(40)
    assert halves(narrow, d.mean()) == pytest.approx((half, half), rel=0.05)


def test_of_three_seeds_the_ends_are_the_outer_ones_moved_out():
    """One draw in 27 is the lowest three times; 4.30265 / 1.95996 * sqrt(3 / 2) = 2.68865."""
    d = np.array([1.0, 2.0, 6.0])
    found = crossed_interval(d, d[:, None])
    assert found == pytest.approx((3 - 2 * 2.68865, 3 + 3 * 2.68865), rel=1e-5)


@pytest.mark.parametrize("n", [1, 3, 8])
def test_of_seeds_alike_the_interval_is_that_of_the_tiles(n):
    """The bootstrap of means of one difference at all seeds, by the other function."""
    tiles = DICE(1).normal(1, 3, 60)
    drawn = np.array([tiles[places].mean() for places in draws(60, 4000)])
    found = crossed_interval(np.full(n, tiles.mean()), np.tile(drawn, (n, 1)), resamples=40_000)
    assert found == pytest.approx(bootstrap_interval(tiles, resamples=4000), abs=0.03)


def test_crossed_intervals_cover_the_mean_and_claim_little_that_is_not_there():
    """Three seeds: 95 % and rather more, where their outer values cover three in four."""
    dice, places = DICE(2), np.stack(list(draws(30, 100)))
    covered = between = 0
    for trial in range(400):
        spread = dice.normal(size=(3, 1)) + dice.normal(size=(1, 30)) + dice.normal(size=(3, 30))
        d = spread.mean(1)
        drawn = spread[:, places].mean(2)
        low, high = crossed_interval(d, drawn, resamples=400, seed=trial)
        covered += low <= 0 <= high
        between += d.min() <= 0 <= d.max()
    assert 0.92 <= covered / 400 <= 0.985
    assert 0.70 <= between / 400 <= 0.83


def test_crossed_intervals_leave_out_what_is_not_finite_and_follow_their_seed():
    d = np.array([1.0, 2.0, 3.0])
    drawn = d[:, None] + DICE(3).normal(size=(3, 50))
    spoilt = np.insert(drawn, 10, [1.0, np.nan, 2.0], axis=1)
    assert crossed_interval(d, spoilt) == crossed_interval(d, drawn)
    assert crossed_interval(d, drawn) != crossed_interval(d, drawn, seed=1)
    assert crossed_interval(d[:1], np.full((1, 2), np.inf)) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("d", "drawn", "level", "match"),
    [
        ([], np.zeros((0, 3)), 0.95, "shapes"),
        ([1.0, 2.0], np.zeros((3, 3)), 0.95, "shapes"),
        ([[1.0]], np.zeros((1, 3)), 0.95, "shapes"),
        ([1.0], np.zeros(3), 0.95, "shapes"),
        ([1.0], np.zeros((1, 3)), 1.0, "level"),
    ],
)
def test_seeds_and_tiles_that_do_not_fit(d, drawn, level, match):
    with pytest.raises(InputError, match=match):
        crossed_interval(d, drawn, level=level)
