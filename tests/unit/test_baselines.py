"""The class median against torch.median, bands against numpy's least squares, haze against loops;
fills against brute force and a dense solver."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from ganlab import baselines
from ganlab.baselines import (
    BandFit,
    ClassMedian,
    harmonic_fill,
    haze_removal,
    mean_fill,
    nearest_fill,
    smooth_fill,
)
from ganlab.data.toytown import town
from ganlab.errors import InputError


def tiles(seed=0, samples=6, bands=3, size=9, classes=(2, 5, 40)):
    generator = torch.Generator().manual_seed(seed)
    shape = (samples, 1, size, size)
    labels = torch.tensor(classes)[torch.randint(len(classes), shape, generator=generator)]
    stored = torch.randint(0, 256, (samples, bands, size, size), generator=generator)
    stored = (stored + labels).clamp(max=255).to(torch.uint8)
    valid = (torch.rand(shape, generator=generator) > 0.3).float()
    return labels, stored, valid


def medians(labels, image, valid, classes):
    """The definition: torch.median (the lower one) of the valid pixels of a class, by band."""
    return torch.stack(
        [
            image.movedim(1, 0)[:, ((labels == c) & (valid > 0))[:, 0]].median(1).values
            for c in classes
        ]
    )


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), bands=st.integers(1, 4), size=st.integers(3, 9))
def test_exact_for_stored_and_scaled_bytes(seed, bands, size):
    classes = (2, 5, 40)
    labels, stored, valid = tiles(seed, bands=bands, size=size)
    raw = ClassMedian(classes, bands, low=0, high=255, levels=256)
    scaled = ClassMedian(classes, bands)
    image = stored.float() / 127.5 - 1
    for part in (slice(0, 2), slice(2, 6)):
        raw.update(labels[part], stored[part], valid[part])
        scaled.update(labels[part], image[part], valid[part])
    expected = medians(labels, stored, valid, classes)
    assert torch.equal(raw.colours()[:-1], expected.float())
    torch.testing.assert_close(scaled.colours()[:-1], expected / 127.5 - 1, rtol=0, atol=1e-6)


def test_floats_are_rounded_finely():
    labels, stored, valid = tiles(size=40)
    image = torch.randn(stored.shape, generator=torch.Generator().manual_seed(1)) / 2
    baseline = ClassMedian((2, 5, 40), 3)
    baseline.update(labels, image, valid)
    expected = medians(labels, image, valid, (2, 5, 40))
    torch.testing.assert_close(baseline.colours()[:-1], expected, rtol=0, atol=0.00025)


def test_invalid_pixels_do_not_count():
    labels, stored, valid = tiles()
    image = stored.float() / 127.5 - 1
    colours = []
    for value in (0.0, 50.0, float("nan")):
        baseline = ClassMedian((2, 5, 40), 3)
        baseline.update(labels, image.masked_fill(valid == 0, value), valid)
        colours.append(baseline.colours())
    assert torch.equal(colours[0], colours[1])
    assert torch.equal(colours[0], colours[2])


def test_prediction_paints_classes():
    baseline = ClassMedian((1, 3), 2, low=0, high=9, levels=10)
    labels = torch.tensor([[[[1, 3], [3, 3]]]])
    image = torch.tensor([[[[4, 7], [8, 9]], [[0, 1], [2, 2]]]])
    baseline.update(labels, image, torch.ones(1, 1, 2, 2))
    unseen = torch.tensor([[[[3, 1, 2, 0, 99]]]])  # the last three were never seen
    predicted = baseline.predict(unseen)
    assert predicted.dtype == torch.float32
    assert predicted.tolist() == [[[[8, 4, 7, 7, 7]], [[2, 0, 1, 1, 1]]]]


def test_class_without_pixels_takes_the_overall_median():
    baseline = ClassMedian((0, 1), 1, low=0, high=9, levels=10)
    baseline.update(torch.zeros(1, 1, 1, 3).long(), torch.tensor([[[[2, 3, 7]]]]), torch.ones(1))
    assert baseline.colours().tolist() == [[3], [3], [3]]


def test_median_beats_every_other_colour_in_l1():
    labels, stored, valid = tiles(size=30)
    image = stored.float() / 127.5 - 1
    baseline = ClassMedian((2, 5, 40), 3)
    baseline.update(labels, image, valid)

    def error(prediction):
        return float(((prediction - image).abs() * valid).double().sum())

    best = error(baseline.predict(labels))
    for shift in (-0.05, 0.05):
        assert error(baseline.predict(labels) + shift) > best
    mean = (image * valid).sum((0, 2, 3), keepdim=True) / valid.sum()
    assert error(mean.expand_as(image)) > best


def test_memory_does_not_grow():
    labels, stored, valid = tiles()
    baseline = ClassMedian((2, 5, 40), 3)
    size = baseline.counts.numel()
    for _ in range(3):
        baseline.update(labels, stored.float() / 127.5 - 1, valid)
    assert baseline.counts.numel() == size
    assert baseline.counts.sum() == 3 * 3 * valid.sum()


def test_impossible_requests_are_refused():
    with pytest.raises(InputError, match="ascending"):
        ClassMedian((3, 1), 3)
    with pytest.raises(InputError, match="ascending"):
        ClassMedian((), 3)
    with pytest.raises(InputError, match="expected the declared 3"):
        ClassMedian((1,), 3).update(
            torch.ones(1, 1, 2, 2).long(), torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
        )


# --- bands on bands


def linear(seed=0, samples=3, coarse=4, fine=2, size=8):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(samples, coarse, size, size, generator=generator)
    weights = torch.randn(coarse, fine, generator=generator)
    intercept = torch.randn(fine, generator=generator)
    truth = torch.einsum("bchw,cf->bfhw", image, weights) + intercept[:, None, None]
    valid = (torch.rand(samples, 1, size, size, generator=generator) > 0.3).float()
    return image, truth, valid, weights, intercept


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), coarse=st.integers(1, 6), fine=st.integers(1, 3))
def test_what_is_linear_is_found_exactly(seed, coarse, fine):
    image, truth, valid, weights, intercept = linear(seed, coarse=coarse, fine=fine)
    outside = (valid == 0).expand_as(truth)
    fit = BandFit(coarse, fine)
    for cut in (slice(0, 1), slice(1, 3)):
        spoilt = truth.masked_fill(outside, math.nan)[cut]
        fit.update(image.masked_fill(valid == 0, math.inf)[cut], spoilt, valid[cut])
    expected = torch.cat([intercept[None], weights]).double()
    torch.testing.assert_close(fit.weights(), expected, rtol=1e-5, atol=1e-5)
    finer = torch.nn.functional.interpolate(image, scale_factor=2)
    found = fit.predict(finer)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[:, :, ::2, 1::2], truth, rtol=1e-4, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 1000),
    offset=st.floats(-100, 100),
    scale=st.floats(0.01, 1e3),
)
def test_least_squares_are_numpys(seed, offset, scale):
    """Noise that no band explains, in any units, such as stored numbers of 16 bits."""
    image, truth, valid, *_ = linear(seed)
    generator = torch.Generator().manual_seed(seed)
    truth = truth + torch.randn(truth.shape, generator=generator)
    image, truth = (scale * (t.double() + offset) for t in (image, truth))
    fit = BandFit(4, 2)
    fit.update(image, truth, valid)
    rows = (valid > 0)[:, 0]
    x, y = (t.movedim(1, -1)[rows].numpy() for t in (image, truth))
    x = np.concatenate([np.ones((len(x), 1)), x], 1)
    expected = x @ np.linalg.lstsq(x, y, rcond=None)[0]
    found = fit.predict(image).movedim(1, -1)[rows].numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7 * scale)


def test_bands_that_follow_from_each_other():
    image, truth, valid, *_ = linear(coarse=3, fine=2)
    alone = BandFit(3, 2)
    alone.update(image, truth, valid)
    dependent = torch.cat([image, image[:, :1], 3 * image[:, 1:2] - 2, 0 * image[:, :1]], 1)
    same = torch.cat([dependent, torch.full_like(image[:, :1], 7.0)], 1)
    fit = BandFit(7, 2)
    fit.update(same, truth, valid)
    assert fit.weights().abs().max() < 10
    torch.testing.assert_close(fit.predict(same), alone.predict(image), rtol=1e-4, atol=1e-4)


def test_a_single_pixel_is_fitted_too():
    image, truth, valid, *_ = linear()
    one = torch.zeros_like(valid)
    one[1, 0, 2, 3] = 1
    fit = BandFit(4, 2)
    fit.update(image, truth, one)
    torch.testing.assert_close(fit.predict(image)[1, :, 2, 3], truth[1, :, 2, 3])


def test_a_fits_memory_does_not_grow():
    image, truth, valid, *_ = linear()
    fit = BandFit(4, 2)
    for _ in range(3):
        fit.update(image.bfloat16(), truth, valid)
        assert fit.products.shape == (5, 7)
    assert fit.products.dtype == torch.float64
    assert fit.products[0, 0] == 3 * valid.sum()


def test_impossible_fits_are_refused():
    image, truth, valid, *_ = linear()
    fit = BandFit(4, 2)
    with pytest.raises(InputError, match=r"images of \(4, 4\) bands, expected .*\(4, 2\)"):
        fit.update(image, image, valid)
    for update in (False, True):
        if update:
            fit.update(image, truth, torch.zeros_like(valid))
        with pytest.raises(InputError, match="no valid pixel"):
            fit.predict(image)


# --- haze


def dark_ground(size=97, samples=2, bands=4, seed=0):
    """Light in [0, 1]: every patch of 3 x 3 pixels has one that is dark in one visible band."""
    generator = torch.Generator().manual_seed(seed)
    light = torch.rand(samples, bands, size, size, generator=generator, dtype=torch.float64)
    light[:, 1, ::3, ::3] = 0
    return light


AIR = torch.tensor([0.9, 0.95, 1.0, 0.7], dtype=torch.float64)[:, None, None]
PLAIN = {"dark": [0.0] * 4, "gain": [1.0] * 4, "bands": (0, 1, 2)}


def hazed(light, alpha, corner=12):
    """Under haze, which is opaque in a corner, as large as it takes to find the air light."""
    alpha = torch.zeros_like(light[:, :1]) + alpha
    alpha[:, :, :corner, :corner] = 1
    return light * (1 - alpha) + AIR * alpha


@pytest.mark.parametrize("opacity", [0.2, 0.6])
def test_even_haze_is_taken_off_exactly(opacity):
    light = dark_ground()
    ones = torch.ones_like(light[:, :1])
    settings = {"patch": 3, "clear": None, "strength": 1.0, "radius": 8}
    ground, alpha = haze_removal(hazed(light, opacity), ones, **PLAIN, **settings)
    far = (..., slice(32, None), slice(32, None))
    torch.testing.assert_close(alpha[far], opacity * ones[far])
    torch.testing.assert_close(ground[far], light[far], rtol=0, atol=1e-6)


def ramp(size=97):
    return torch.linspace(-0.3, 0.75, size, dtype=torch.float64).clamp(min=0).expand(1, 1, size, -1)


@pytest.mark.parametrize("options", [{}, {"clear": None}, {"patch": 3, "strength": 1.0}])
def test_uneven_haze_is_mostly_taken_off(options):
    light = dark_ground()
    image, valid = hazed(light, ramp()), torch.ones_like(light[:, :1])
    ground, alpha = haze_removal(image, valid, **PLAIN, radius=10, **options)
    far = (..., slice(40, -8), slice(40, -8))
    before, after = ((x - light)[far].abs().mean() for x in (image, ground))
    assert after < 0.25 * before
    assert (alpha - ramp())[far].abs().mean() < 0.08 < ramp()[far].mean()


def test_black_ground_without_haze_stays_as_it_is():
    light = dark_ground()
    ground, alpha = haze_removal(light, torch.ones_like(light[:, :1]), patch=3, **PLAIN)
    torch.testing.assert_close(ground, light)
    assert alpha.max() < 1e-6


def test_black_images_stay_black():
    black = torch.full((2, 3, 20, 20), -1.0)
    given = {"dark": [-1.0] * 3, "gain": [1.0] * 3, "bands": (0, 1, 2)}
    ground, alpha = haze_removal(black, torch.ones(2, 1, 20, 20), **given)
    assert torch.equal(ground, black)
    assert not alpha.any()


def loops(image, valid, dark, gain, bands, *, patch, clear, strength, least, radius, smoothing):
    """One sample, pixel by pixel, from the papers' equations; numpy."""
    light = (image - np.reshape(dark, (-1, 1, 1))) * np.reshape(gain, (-1, 1, 1))
    valid = valid[0] > 0.5
    height, width = valid.shape
    pixels = [(y, x) for y in range(height) for x in range(width) if valid[y, x]]

    def near(y, x, reach):
        rows = slice(max(y - reach, 0), y + reach + 1), slice(max(x - reach, 0), x + reach + 1)
        return rows, valid[rows]

    def darkest(values):
        out = np.full((height, width), np.nan)
        for y, x in pixels:
            place, known = near(y, x, patch // 2)
            out[y, x] = values[list(bands)].min(0)[place][known].min()
        return out

    channel = darkest(light)
    last = sorted(channel[valid])[-math.ceil(height * width / 1000)]
    air = np.mean([light[:, y, x] for y, x in pixels if channel[y, x] >= last], 0)[:, None, None]
    relative = light / air
    haze = darkest(relative)
    if clear is not None:
        base = np.sort(haze[valid])[int(clear * (valid.sum() - 1))]
        haze = (haze - base) / (1 - base)
    haze = strength * haze
    guide = relative[list(bands)].mean(0)

    slope, offset = np.zeros((2, height, width))
    for y, x in pixels:
        place, known = near(y, x, radius)
        g, h = guide[place][known], haze[place][known]
        slope[y, x] = ((g * h).mean() - g.mean() * h.mean()) / (g.var() + smoothing)
        offset[y, x] = h.mean() - slope[y, x] * g.mean()
    alpha, ground = np.zeros((height, width)), image.copy()
    for y, x in pixels:
        place, known = near(y, x, radius)
        refined = slope[place][known].mean() * guide[y, x] + offset[place][known].mean()
        alpha[y, x] = np.clip(refined, 0, strength)
        through = max(1 - alpha[y, x], least)
        found = (light[:, y, x] - air[:, 0, 0]) / through + air[:, 0, 0]
        ground[:, y, x] = found / gain + dark
    return ground, alpha


@pytest.mark.parametrize(
    "options",
    [
        {"patch": 5, "clear": 0.05, "strength": 0.95, "least": 0.1, "radius": 4, "smoothing": 1e-3},
        {"patch": 3, "clear": None, "strength": 0.8, "least": 0.6, "radius": 9, "smoothing": 1e-2},
        {"patch": 41, "clear": 0.5, "strength": 1.0, "least": 0.1, "radius": 50, "smoothing": 0.1},
    ],
)
def test_haze_removal_by_hand(options):
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(3, 5, 31, 42, generator=generator, dtype=torch.float64)
    image = image * torch.linspace(0.2, 1, 42) + torch.linspace(0, 1, 31)[:, None] - 1
    valid = (torch.rand(3, 1, 31, 42, generator=generator) > 0.2).double()
    # One band that is not visible measures less than nothing.
    dark, gain, bands = np.array([-1.2, 1, -1.1, -1.1, -1]), np.linspace(1, 2, 5), (0, 3, 4)
    found = haze_removal(image, valid, dark=dark, gain=gain, bands=bands, **options)
    for sample in range(3):
        expected = loops(image[sample].numpy(), valid[sample].numpy(), dark, gain, bands, **options)
        np.testing.assert_allclose(found[0][sample].numpy(), expected[0], rtol=0, atol=1e-9)
        np.testing.assert_allclose(found[1][sample, 0].numpy(), expected[1], rtol=0, atol=1e-9)


def hazy(seed=0, samples=3, size=40):
    light = dark_ground(size, samples, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    valid = (torch.rand(samples, 1, size, size, generator=generator) > 0.2).double()
    return hazed(light, ramp(size)), valid


def test_haze_in_other_units():
    image, valid = hazy()
    ground, alpha = haze_removal(image, valid, **PLAIN)
    scale, shift = (torch.linspace(*ends, 4).double()[:, None, None] for ends in ((2, 5), (-1, 3)))
    other = {"dark": shift[:, 0, 0], "gain": 7 / scale[:, 0, 0], "bands": (0, 1, 2)}
    converted, same = haze_removal(image * scale + shift, valid, **other)
    torch.testing.assert_close(same, alpha)
    torch.testing.assert_close(converted, ground * scale + shift)


def test_invalid_pixels_and_other_samples_do_not_matter_to_haze():
    image, valid = hazy()
    outside = (valid == 0).expand_as(image)
    valid[1] = 0
    ground, alpha = haze_removal(image, valid, **PLAIN)
    assert torch.equal(ground[outside], image[outside])
    assert torch.equal(ground[1], image[1])
    assert not alpha[valid == 0].any()
    assert not torch.equal(ground, image)
    for value in (math.nan, math.inf, -1e30):
        spoilt, same = haze_removal(image.masked_fill(valid == 0, value), valid, **PLAIN)
        assert torch.equal(same, alpha)
        assert torch.equal(spoilt[valid.expand_as(image) > 0], ground[valid.expand_as(image) > 0])
    alone = haze_removal(image[2:], valid[2:], **PLAIN)
    torch.testing.assert_close(alone[0], ground[2:])
    torch.testing.assert_close(alone[1], alpha[2:])


def test_least_transmission_and_strength_are_limits():
    image, valid = hazy()
    for strength in (0.5, 1.0):
        assert haze_removal(image, valid, **PLAIN, strength=strength)[1].max() <= strength
    mild, alpha = haze_removal(image, valid, **PLAIN, least=1.0)
    torch.testing.assert_close(mild, image)
    assert alpha.max() > 0.5


def test_air_that_is_known():
    """Clear and bright: the brightest patch is taken for a cloud, if nobody says it is none."""
    light = (dark_ground() * 0.2 + 0.3)[:, :3]
    plain = {"dark": [0.0] * 3, "gain": [1.0] * 3, "bands": (0, 1, 2), "clear": None}
    ones = torch.ones_like(light[:, :1])
    unknown = haze_removal(light, ones, **plain)[1]
    known = haze_removal(light, ones, **plain, air=1.5)[1]
    assert unknown.mean() > 0.7
    torch.testing.assert_close(known.mean().item(), 0.95 * 0.3 / 1.5, rtol=0.1, atol=0)
    each = haze_removal(light, ones, **plain, air=[1.5, 1.5, 1.5])[1]
    assert torch.equal(each, known)
    # Air light below what is found changes nothing.
    assert torch.equal(haze_removal(light, ones, **plain, air=0.1)[1], unknown)


def test_clear_ground_that_is_not_black_is_harmed_less():
    image, *_ = ground(128)
    given = {"dark": [-1.0] * 3, "gain": [1.0] * 3, "bands": (0, 1, 2)}
    valid = torch.ones_like(image[:, :1])
    harm = {
        name: (haze_removal(image, valid, **given, **options)[0] - image).abs().mean().item()
        for name, options in (("paper", {"clear": None, "patch": 15}), ("here", {}))
    }
    assert 0 < harm["here"] < 0.75 * harm["paper"]


@pytest.mark.parametrize("sides", [(5, 4), (1, 1), (1, 40)])
def test_images_smaller_than_patch_and_filter(sides):
    image = torch.rand(2, 3, *sides, generator=torch.Generator().manual_seed(0))
    given = {"dark": [0.0] * 3, "gain": [1.0] * 3, "bands": (0, 1, 2), "patch": 15}
    found, alpha = haze_removal(image, torch.ones(2, 1, *sides), **given)
    assert found.shape == image.shape
    assert alpha.shape == (2, 1, *sides)
    assert found.isfinite().all()
    assert alpha.isfinite().all()


def test_haze_of_coarse_numbers_without_a_graph_and_without_a_look_at_values():
    image, valid = hazy()
    ground, alpha = haze_removal(image.bfloat16().requires_grad_(), valid, **PLAIN)
    assert (ground.dtype, alpha.dtype) == (torch.bfloat16, torch.float32)
    assert not ground.requires_grad
    assert not alpha.requires_grad
    with FakeTensorMode():
        image, valid = torch.rand(2, 4, 33, 64), torch.ones(2, 1, 33, 64)
        assert haze_removal(image, valid, **PLAIN)[0].shape == image.shape


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"patch": 8}, "patch of 8"),
        ({"patch": -1}, "patch of -1"),
        ({"bands": ()}, r"bands \(\) of 4"),
        ({"bands": (0, 4)}, r"\(0, 4\) of 4"),
        ({"clear": 1.5}, "clear ground is 1.5"),
    ],
)
def test_haze_that_cannot_be_found_is_refused(change, words):
    with pytest.raises(InputError, match=words):
        haze_removal(torch.rand(1, 4, 8, 8), torch.ones(1, 1, 8, 8), **PLAIN | change)


# --- fills

FILLS = [mean_fill, nearest_fill, harmonic_fill, smooth_fill]
SIZES = st.integers(1, 13)
SHARES = st.sampled_from([0.03, 0.3, 0.6, 0.9, 0.99])
SEEDS = st.integers(0, 10**6)


def case(seed, height=12, width=17, share=0.5, samples=3, bands=2):
    """Random holes of single pixels, and invalid pixels inside and outside of them."""
    generator = torch.Generator().manual_seed(seed)
    shape = (samples, 1, height, width)
    image = torch.rand(samples, bands, height, width, generator=generator) * 2 - 1
    hole = (torch.rand(shape, generator=generator) < share).float()
    valid = (torch.rand(shape, generator=generator) > 0.2).float()
    place = (*torch.randint(height, (1,), generator=generator).tolist(), -1)
    hole[(slice(None), 0, *place)], valid[(slice(None), 0, *place)] = 0, 1
    return image, hole, valid


def ground(size, samples=4, seed=3):
    """Toytown with four circles and a rectangle each, about 30 % of the ground."""
    generator = torch.Generator().manual_seed(seed)
    scene = torch.from_numpy(town(max(2 * size, 128), seed)[0]).float() / 127.5 - 1
    y, x = torch.arange(size)[:, None], torch.arange(size)
    images, holes = [], []
    for _ in range(samples):
        row, column = torch.randint(scene.shape[1] - size, (2,), generator=generator).tolist()
        images.append(scene[:, row : row + size, column : column + size])
        hole = torch.zeros(1, size, size)
        for cy, cx in (size * torch.rand(4, 2, generator=generator)).tolist():
            hole[0][(y - cy) ** 2 + (x - cx) ** 2 < (0.15 * size) ** 2] = 1
        hole[:, : size // 4, size // 3 : size // 2] = 1
        holes.append(hole)
    image, hole = torch.stack(images), torch.stack(holes)
    return image, hole, torch.ones_like(hole)


# --- all of them


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_only_holes_change_and_what_stands_in_them_never_matters(fill, dtype):
    image, hole, valid = case(0)
    image = image.to(dtype)
    outside = (hole == 0).expand_as(image)
    unknown = (hole == 1) | (valid == 0)
    filled = fill(image, hole, valid)
    assert filled.dtype == dtype
    assert torch.equal(filled[outside], image[outside])
    assert filled[~outside].isfinite().all()
    assert not torch.equal(filled[~outside], image[~outside])
    if dtype is torch.bfloat16:  # only stored so: computed in float32
        assert torch.equal(filled, fill(image.float(), hole, valid).bfloat16())
    for value in (math.nan, math.inf, -1e30):
        broken = image.masked_fill(unknown, value)
        again = fill(broken, hole, valid)
        assert torch.equal(again[~outside], filled[~outside])
        assert torch.equal(again[outside].nan_to_num(7), broken[outside].nan_to_num(7))


@pytest.mark.parametrize("fill", FILLS)
def test_nothing_known_gives_zero_and_does_not_touch_other_samples(fill):
    image, hole, valid = case(1)
    alone = fill(image[2:], hole[2:], valid[2:])
    hole[0], valid[1] = 1, 0
    filled = fill(image, hole, valid)
    assert (filled[0] == 0).all()
    assert (filled[1][hole[1].bool().expand(2, -1, -1)] == 0).all()
    torch.testing.assert_close(filled[2:], alone, rtol=0, atol=1e-4)
    assert torch.equal(fill(image, torch.zeros_like(hole), valid), image)


@pytest.mark.parametrize("fill", FILLS)
@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, height=SIZES, width=SIZES, share=SHARES)
def test_maximum_principle(fill, seed, height, width, share):
    image, hole, valid = case(seed, height, width, share)
    filled = fill(image, hole, valid)
    for sample in range(3):
        inside = hole[sample, 0] > 0
        known = image[sample][:, ~inside & (valid[sample, 0] > 0)]
        low, high = known.amin(1, keepdim=True), known.amax(1, keepdim=True)
        values = filled[sample][:, inside]
        assert ((values >= low - 1e-6) & (values <= high + 1e-6)).all()


@pytest.mark.parametrize("fill", FILLS)
def test_one_known_pixel_is_all_there_is(fill):
    image = torch.full((1, 2, 50, 70), math.nan)
    hole, valid = torch.ones(1, 1, 50, 70), torch.ones(1, 1, 50, 70)
    hole[:, :, 31, 2] = 0
    image[0, :, 31, 2] = torch.tensor([0.25, -0.75])
    expected = torch.tensor([0.25, -0.75])[:, None, None].expand(1, 2, 50, 70)
    torch.testing.assert_close(fill(image, hole, valid), expected, rtol=0, atol=1e-6)


def test_mean_by_hand():
    image = torch.tensor([[[[1.0, 2], [6, 100]], [[0, 0], [0.5, 100]]]])
    hole = torch.tensor([[[[0.0, 0], [0, 1]]]])
    valid = torch.tensor([[[[1.0, 0], [1, 0]]]])
    expected = torch.tensor([[[[1.0, 2], [6, 3.5]], [[0, 0], [0.5, 0.25]]]])
    assert torch.equal(mean_fill(image, hole, valid), expected)


# --- nearest


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, height=SIZES, width=SIZES, share=SHARES)
def test_nearest_against_brute_force(seed, height, width, share):
    """The image holds the number of each pixel, so the fill tells where it took its value."""
    _, hole, valid = case(seed, height, width, share)
    image = torch.arange(float(height * width)).view(1, 1, height, width).expand(3, 1, -1, -1)
    filled = nearest_fill(image, hole, valid)
    for sample in range(3):
        known = ((hole == 0) & (valid == 1))[sample, 0].nonzero().tolist()
        for y, x in (hole[sample, 0] == 1).nonzero().tolist():
            order = [((y - r) ** 2 + (x - c) ** 2, abs(x - c), c, r) for r, c in known]
            row, column = divmod(int(filled[sample, 0, y, x]), width)
            assert (row - y) ** 2 + (column - x) ** 2 == min(order)[0]
            assert (column, row) == min(order)[2:]  # and ties as documented


# --- harmonic


def dense(image, hole, valid):
    """The definition: (number of neighbours - adjacency) x = known neighbours, in float64."""
    filled = image.double().clone()
    height, width = image.shape[2:]
    for sample in range(len(image)):
        known = ((hole == 0) & (valid == 1))[sample, 0].numpy()
        number = {tuple(p): i for i, p in enumerate(np.argwhere(~known).tolist())}
        matrix = np.zeros((len(number), len(number)))
        right = np.zeros((len(number), image.shape[1]))
        for (y, x), i in number.items():
            for r, c in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if 0 <= r < height and 0 <= c < width:
                    matrix[i, i] += 1
                    if known[r, c]:
                        right[i] += image[sample, :, r, c].double().numpy()
                    else:
                        matrix[i, number[r, c]] -= 1
        solution = torch.from_numpy(np.linalg.solve(matrix, right))
        for (y, x), i in number.items():
            if hole[sample, 0, y, x]:
                filled[sample, :, y, x] = solution[i]
    return filled


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, height=SIZES, width=SIZES, share=SHARES)
def test_harmonic_against_a_dense_solver(seed, height, width, share):
    image, hole, valid = case(seed, height, width, share)
    expected = dense(image, hole, valid)
    close = harmonic_fill(image, hole, valid)
    torch.testing.assert_close(close.double(), expected, rtol=0, atol=2e-4)
    close = harmonic_fill(image.double(), hole, valid, tolerance=1e-10)
    torch.testing.assert_close(close, expected, rtol=0, atol=1e-9)


def enclosed(name):
    """Holes with a difficulty: (hole, valid), 20 x 23."""
    hole, valid = torch.zeros(1, 1, 20, 23), torch.ones(1, 1, 20, 23)
    if name == "at the border":
        hole[..., :9, 5:] = 1
    elif name == "corner":
        hole[..., 12:, :10] = 1
    elif name == "invalid inside":
        hole[..., 4:16, 4:16] = 1
        valid[..., 8:11, 6:13] = 0
    elif name == "enclosed by invalid":
        valid[..., 3:14, 3:14] = 0
        hole[..., 6:11, 6:11] = 1
        valid[..., 6:11, 6:11] = 1
    elif name == "island known":
        hole[..., 2:18, 2:20] = 1
        hole[..., 9:11, 9:11] = 0
    elif name == "cut off by the border":
        valid[..., :, 10:13] = 0
        hole[..., :, 13:] = 1
    elif name == "winding":
        hole[..., 1::2, :] = 1
        hole[..., 2::4, -1], hole[..., 4::4, 0] = 1, 1
    return hole, valid


@pytest.mark.parametrize(
    "name",
    [
        "at the border",
        "corner",
        "invalid inside",
        "enclosed by invalid",
        "island known",
        "cut off by the border",
        "winding",
    ],
)
def test_harmonic_in_difficult_holes(name):
    hole, valid = enclosed(name)
    image = torch.rand(1, 3, 20, 23, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = dense(image, hole, valid)
    filled = harmonic_fill(image, hole, valid).double()
    torch.testing.assert_close(filled, expected, rtol=0, atol=2e-4)
    filled = harmonic_fill(image.double(), hole, valid, tolerance=1e-11)
    torch.testing.assert_close(filled, expected, rtol=0, atol=1e-10)
    assert (smooth_fill(image, hole, valid) - expected).abs().mean() < 0.01


@pytest.mark.parametrize(("height", "width"), [(64, 64), (37, 101)])
def test_harmonic_reproduces_ramps(height, width):
    y, x = torch.arange(height)[:, None] / height, torch.arange(width) / width
    ramp = torch.stack([y + 0 * x, 0.3 * y - 0.9 * x + 0.2])[None]
    hole, valid = torch.zeros(1, 1, height, width), torch.ones(1, 1, height, width)
    hole[..., 5:25, 3:30], hole[..., 20:33, 20:28] = 1, 1
    valid[..., 10:12, 8:20] = 0
    filled = harmonic_fill(ramp.masked_fill(hole > 0, 9.0), hole, valid, tolerance=1e-6)
    torch.testing.assert_close(filled, ramp, rtol=0, atol=2e-6)


def test_tolerance_is_the_error_and_few_iterations_are_enough(monkeypatch):
    image, hole, valid = ground(128)
    exact = harmonic_fill(image.double(), hole, valid, tolerance=1e-12)
    inside = exact.masked_fill(hole == 0, math.nan)[..., 1:-1, 1:-1]
    mean = sum(exact.roll(s, a)[..., 1:-1, 1:-1] for s in (-1, 1) for a in (2, 3)) / 4
    assert (inside - mean).abs().nan_to_num(0).max() < 1e-11  # Laplace's equation itself
    for tolerance in (1e-2, 1e-3, 1e-4, 1e-5):
        error = (harmonic_fill(image, hole, valid, tolerance) - exact).abs().max()
        assert error < 2 * tolerance
    cycles = []
    cycle = baselines._cycle
    monkeypatch.setattr(baselines, "_cycle", lambda g, r: cycles.append(len(g)) or cycle(g, r))
    harmonic_fill(image, hole, valid)
    assert cycles.count(8) <= 8  # at full resolution; one for the guess, one for the first check
    cycles.clear()
    harmonic_fill(image, hole, valid, tolerance=0.0, limit=3)
    assert cycles.count(8) == 5
    hole[:], hole[..., 5, 9], hole[..., 70, 90] = 1, 0, 0
    cycles.clear()
    harmonic_fill(image, hole, valid, tolerance=1e-6)
    assert cycles.count(8) <= 12  # the same cycles without conjugate directions take 20


@pytest.mark.parametrize("fill", [mean_fill, harmonic_fill, smooth_fill])
def test_nan_that_claims_to_be_known_is_not_hidden(fill):
    image, hole, valid = case(0)
    image[0, 0, (hole + 1 - valid)[0, 0] == 0] = math.nan
    filled = fill(image, hole, valid)
    assert filled[0, 0].masked_fill(hole[0, 0] == 0, math.nan).isnan().all()
    assert filled[1:].isfinite().all()


def test_bands_of_any_range_do_not_disturb_each_other():
    image, hole, valid = ground(32)
    mixed = torch.cat([image[:, :1] * 1e4, image[:, 1:2] * 0, image[:, 2:] * 1e-6], 1)
    filled = harmonic_fill(mixed, hole, valid)
    for band in range(3):
        alone = harmonic_fill(mixed[:, band : band + 1].double(), hole, valid, tolerance=1e-12)
        scale = float(mixed[:, band].abs().max()) + 1e-9
        error = (filled[:, band : band + 1] - alone).abs().max()
        assert error < 1e-5 * scale


# --- smooth


@pytest.mark.parametrize("size", [64, 256])
def test_smooth_is_nearly_harmonic(size):
    image, hole, valid = ground(size)
    inside = hole.bool().expand_as(image)
    assert 0.2 < hole.mean() < 0.4
    harmonic = harmonic_fill(image, hole, valid)[inside]
    smooth = smooth_fill(image, hole, valid)[inside]
    assert (smooth - harmonic).abs().mean() < 0.003
    assert (smooth - harmonic).abs().max() < 0.05
    for other in (mean_fill, nearest_fill):
        assert (other(image, hole, valid)[inside] - harmonic).abs().mean() > 0.05


def test_smooth_never_looks_at_values():
    """Fake tensors have none: whoever waits for the host fails."""
    with FakeTensorMode():
        image, hole = torch.rand(2, 3, 33, 64), torch.rand(2, 1, 33, 64)
        assert smooth_fill(image, hole, torch.ones(2, 1, 33, 64)).shape == image.shape
        assert mean_fill(image, hole, torch.ones(2, 1, 33, 64)).shape == image.shape
        with pytest.raises(Exception, match="local_scalar"):
            harmonic_fill(image, hole, torch.ones(2, 1, 33, 64))


def test_fills_are_cut_from_the_graph():
    image, hole, valid = case(0)
    image.requires_grad_()
    for fill in FILLS:
        assert not fill(image, hole, valid).requires_grad
