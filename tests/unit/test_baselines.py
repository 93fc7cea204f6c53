"""The class median against torch.median; fills against brute force and a dense solver."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from ganlab import baselines
from ganlab.baselines import ClassMedian, harmonic_fill, mean_fill, nearest_fill, smooth_fill
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
