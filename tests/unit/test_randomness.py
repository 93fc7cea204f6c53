"""Random numbers: what they depend on, and that they are as random as they claim."""

import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ganlab.randomness import derived_seed, draws, keys, permutation, place_noise, uniforms

MASK = 2**64 - 1
INTS = st.integers(-(2**63), 2**63 - 1)
GOLDEN = [[0.6636240905136072, 0.3536779820765399], [0.4086358587827814, 0.36951549923573546]]
GOLDEN_SEEDS = [5869482720368735705, 3712099525075736394]


def mix(x):
    """SplitMix64's finalizer in whole numbers."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def key(*parts):
    value = 0
    for part in parts:
        part = zlib.crc32(part.encode()) if isinstance(part, str) else part
        value = mix((value + 0x9E3779B97F4A7C15 + mix(part & MASK)) & MASK)
    return value


@given(seed=INTS, epoch=INTS, sample=INTS, purpose=st.text(max_size=9))
def test_a_draw_is_the_documented_function_of_its_four_arguments(seed, epoch, sample, purpose):
    drawn = uniforms(seed, epoch, [sample], purpose, 3)
    base = key(seed, epoch, sample, purpose)
    assert drawn.tolist() == [[(key(base, i) >> 11) / 2**53 for i in range(3)]]
    assert derived_seed(seed, epoch, purpose) == key(seed, epoch, purpose) >> 1


def test_numbers_that_runs_on_disk_depend_on_stay():
    assert uniforms(0, 0, [0, 7], "crop", 2).tolist() == GOLDEN
    assert [derived_seed(0, 3, "step"), derived_seed(1, 3, "step")] == GOLDEN_SEEDS


@given(
    samples=st.lists(st.integers(0, 10**6), min_size=1, max_size=20),
    epochs=st.lists(st.integers(0, 50), min_size=20, max_size=20),
    order=st.randoms(use_true_random=False),
)
def test_neighbours_and_order_do_not_matter(samples, epochs, order):
    epochs = np.array(epochs[: len(samples)])
    together = uniforms(5, epochs, samples, "crop", 4)
    places = list(range(len(samples)))
    order.shuffle(places)
    shuffled = uniforms(5, epochs[places], np.array(samples)[places], "crop", 4)
    alone = [uniforms(5, int(e), [s], "crop", 4)[0] for e, s in zip(epochs, samples, strict=True)]
    assert (shuffled == together[places]).all()
    assert (np.array(alone) == together).all()
    assert (uniforms(5, epochs, samples, "crop", 2) == together[:, :2]).all()


N = 1 << 16
AXES = {
    "samples": lambda: uniforms(3, 2, np.arange(N), "crop", 1)[:, 0],
    "epochs": lambda: uniforms(3, np.arange(N), np.full(N, 4), "crop", 1)[:, 0],
    "counts": lambda: uniforms(3, 2, [4], "crop", N)[0],
    "far samples": lambda: uniforms(3, 2, np.arange(N) << 40, "crop", 1)[:, 0],
    "other purpose": lambda: uniforms(3, 2, np.arange(N), "flip and turn", 1)[:, 0],
    "other epoch": lambda: uniforms(3, 3, np.arange(N), "crop", 1)[:, 0],
    "other seed": lambda: uniforms(4, 2, np.arange(N), "crop", 1)[:, 0],
    "second number": lambda: uniforms(3, 2, np.arange(N), "crop", 2)[:, 1],
}


def chi_square(counts):
    expected = counts.sum() / counts.size
    return float(((counts - expected) ** 2 / expected).sum())


def assert_like_chance(counts):
    """Chi-square within five standard deviations of its mean: neither uneven nor too even."""
    freedom = counts.size - 1
    assert abs(chi_square(counts) - freedom) < 5 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("axis", AXES)
def test_uniform_along_every_axis(axis):
    values = AXES[axis]()
    assert values.min() >= 0
    assert values.max() < 1
    assert_like_chance(np.histogram(values, 256, (0, 1))[0])
    # Neighbours along the axis are independent: pairs fill the square evenly.
    pairs = np.histogram2d(values[:-1:2], values[1::2], 16, ((0, 1), (0, 1)))[0]
    assert_like_chance(pairs)
    low_bits = (values * 2**53).astype(np.int64) & 255
    assert_like_chance(np.bincount(low_bits, minlength=256))


@pytest.mark.parametrize("axis", ["other purpose", "other epoch", "other seed", "second number"])
def test_independent_of_each_other(axis):
    pairs = np.histogram2d(AXES["samples"](), AXES[axis](), 16, ((0, 1), (0, 1)))[0]
    assert_like_chance(pairs)


def test_seeds_are_uniform_distinct_and_fit_torch():
    seeds = np.array([derived_seed(seed, 0, "step") for seed in range(4096)])
    assert len(set(seeds.tolist())) == 4096
    assert seeds.min() >= 0
    assert_like_chance(np.bincount(seeds >> 57, minlength=64))
    torch.manual_seed(int(seeds.max()))
    assert derived_seed(0, 1, 2, "step") != derived_seed(0, 2, 1, "step")


def test_each_epoch_is_an_order_of_its_own():
    orders = np.array([permutation(0, epoch, 6) for epoch in range(3000)])
    assert (np.sort(orders, axis=1) == np.arange(6)).all()
    for place in range(6):
        assert_like_chance(np.bincount(orders[:, place], minlength=6))
    assert_like_chance(np.unique(orders, axis=0, return_counts=True)[1])
    assert (permutation(0, 5, 100) == permutation(0, 5, 100)).all()
    assert (permutation(0, 5, 100) != permutation(1, 5, 100)).any()


def test_an_order_cannot_be_spoilt_by_who_asked_for_it():
    order = permutation(9, 0, 10)
    before = order.tolist()
    with pytest.raises(ValueError, match="read-only"):
        order[0] = 3
    assert permutation(9, 0, 10).tolist() == before


def test_one_draw_of_every_call_is_left_alone():
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    state = torch.get_rng_state()
    expected = np.random.RandomState(3).rand()
    uniforms(0, 0, [1], "crop", 3), permutation(0, 77, 5), derived_seed(1, 2)
    assert np.random.rand() == expected  # noqa: NPY002
    assert (torch.get_rng_state() == state).all()


@given(INTS, st.integers(-1, 1000), st.lists(INTS, min_size=1, max_size=4), st.text(max_size=5))
def test_draws_on_a_device_are_the_whole_number_formula(seed, epoch, samples, purpose):
    names = keys(seed, epoch, np.array(samples))
    assert [int(n) & MASK for n in names] == [key(seed, epoch, sample) for sample in samples]
    found = draws(torch.from_numpy(names), purpose, 3)
    for i, name in enumerate(names):
        for n in range(3):
            bits = mix((mix((int(name) & MASK) ^ key(purpose)) + n * 0x9E3779B97F4A7C15) & MASK)
            assert found[i, n].item() == (bits >> 40) / 2**24


def test_draws_of_neighbouring_keys_and_purposes_are_independent():
    names = torch.from_numpy(keys(0, 0, np.arange(4000)))
    a, b = draws(names, "a", 16), draws(names, "b", 16)
    pairs = ((a, b), (a[:, :-1], a[:, 1:]), (a[:-1], a[1:]))
    for first, second in pairs:
        together = torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]
        assert abs(together) < 5 / first.numel() ** 0.5
    assert a.mean().item() == pytest.approx(0.5, abs=5 / (12 * a.numel()) ** 0.5)
    counts = torch.histc(a, 16, 0, 1)
    assert counts.max() - counts.min() < 10 * (a.numel() / 16) ** 0.5


def test_noise_of_places_is_normal_and_belongs_to_the_place():
    whole = place_noise(3, 0, 0, 200, 300, "a")
    part = place_noise(3, 50, 120, 30, 40, "a")
    np.testing.assert_array_equal(part, whole[50:80, 120:160])
    for other in (place_noise(4, 0, 0, 200, 300, "a"), place_noise(3, 0, 0, 200, 300, "b")):
        assert abs(np.corrcoef(whole.ravel(), other.ravel())[0, 1]) < 5 / whole.size**0.5
    assert whole.mean() == pytest.approx(0, abs=5 / whole.size**0.5)
    assert whole.var() == pytest.approx(1, abs=5 * (2 / whole.size) ** 0.5)
    for limit, share in ((1, 0.682689), (2, 0.954500), (3, 0.997300)):  # of a normal variable
        deviation = (share * (1 - share) / whole.size) ** 0.5
        assert (np.abs(whole) < limit).mean() == pytest.approx(share, abs=5 * deviation)
    for a, b in ((whole[1:], whole[:-1]), (whole[:, 1:], whole[:, :-1])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / a.size**0.5
