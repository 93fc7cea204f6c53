"""Metrics: values by hand, invalid pixels without any influence, masks, texture that ranks."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from ganlab.baselines import harmonic_fill, mean_fill
from ganlab.data.toytown import town
from ganlab.errors import InputError
from ganlab.metrics import (
    Seam,
    Texture,
    checkerboard,
    consistency,
    gradient_distance,
    gradient_histogram,
    l1,
    psnr,
    seam,
    spectral_angle,
    spectrum,
    spectrum_distance,
    ssim,
)
from ganlab.resolution import area, enlarge

PIXELWISE = {
    "l1": l1,
    "psnr": lambda *args: psnr(*args, data_range=2.0),
    "ssim": lambda *args: ssim(*args, data_range=2.0),
    "angle": lambda *args: spectral_angle(*args, dark=-2.0),
}


def images(seed=0, samples=2, bands=3, size=32):
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(samples, bands, size, size, generator=generator) / 3
    image = truth + torch.randn(truth.shape, generator=generator) / 10
    valid = (torch.rand(samples, 1, size, size, generator=generator) > 0.2).float()
    return image, truth, valid


def texture(seed=0, samples=8, size=64):
    """Scene-like: power falling with frequency, and edges."""
    generator = torch.Generator().manual_seed(seed)
    fy, fx = torch.fft.fftfreq(size), torch.fft.fftfreq(size)
    amplitude = 1 / torch.hypot(fy[:, None], fx).clamp(min=1 / size)
    noise = torch.randn(samples, 3, size, size, generator=generator)
    x = torch.fft.ifft2(torch.fft.fft2(noise) * amplitude).real
    x = x / x.std() / 4
    x[:, :, 10:25, 30:50] += 0.5
    return x


def blurred(x, sigma):
    position = torch.arange(-8, 9)
    window = torch.exp(-(position**2) / (2 * sigma**2))
    kernel = torch.outer(window, window) / window.sum() ** 2
    padded = F.pad(x, (8, 8, 8, 8), mode="reflect")
    return F.conv2d(padded, kernel.expand(x.shape[1], 1, 17, 17), groups=x.shape[1])


# --- pixelwise


def test_values_by_hand():
    truth = torch.zeros(2, 2, 2, 2)
    image = torch.tensor([[[[1.0, -3], [0, 5]], [[0, 0], [2, 5]]], [[[1.0] * 2] * 2] * 2])
    valid = torch.tensor([[[[1.0, 1], [1, 0]]], [[[1.0, 1], [1, 1]]]])
    torch.testing.assert_close(l1(image, truth, valid), torch.tensor([6 / 6, 1.0]))
    expected = [10 * math.log10(16 * 6 / (1 + 9 + 4)), 10 * math.log10(16)]
    result = psnr(image, truth, valid, data_range=4.0)
    torch.testing.assert_close(result, torch.tensor(expected))
    mask = torch.tensor([[0.0, 1], [1, 1]]).expand(2, 1, 2, 2)
    torch.testing.assert_close(l1(image, truth, valid, mask), torch.tensor([5 / 4, 1.0]))


def test_equal_images():
    image, _, valid = images()
    assert l1(image, image, valid).tolist() == [0, 0]
    assert psnr(image, image, valid, data_range=2.0).tolist() == [math.inf] * 2
    torch.testing.assert_close(ssim(image, image, valid, data_range=2.0), torch.ones(2))


@pytest.mark.parametrize("name", PIXELWISE)
@pytest.mark.parametrize("value", [7.0, 1e30, math.nan, math.inf])
def test_invalid_pixels_never_matter(name, value):
    image, truth, valid = images()
    before = PIXELWISE[name](image, truth, valid)
    outside = valid == 0
    assert torch.equal(
        PIXELWISE[name](
            image.masked_fill(outside, value), truth.masked_fill(outside, -value), valid
        ),
        before,
    )
    assert before.isfinite().all()
    inside = ~outside & (torch.rand(valid.shape) > 0.9)
    assert not torch.equal(PIXELWISE[name](image.masked_fill(inside, 7.0), truth, valid), before)


@pytest.mark.parametrize("name", PIXELWISE)
def test_mask_is_a_further_valid(name):
    image, truth, valid = images()
    mask = torch.zeros_like(valid)
    mask[:, :, 4:28, 8:31] = 1
    expected = PIXELWISE[name](image, truth, valid * mask)
    assert torch.equal(PIXELWISE[name](image, truth, valid, mask), expected)
    assert not torch.equal(PIXELWISE[name](image, truth, valid), expected)


@pytest.mark.parametrize("name", PIXELWISE)
def test_samples_do_not_mix(name):
    image, truth, valid = images(samples=3)
    together = PIXELWISE[name](image, truth, valid)
    alone = [PIXELWISE[name](image[i : i + 1], truth[i : i + 1], valid[i : i + 1]) for i in (0, 2)]
    torch.testing.assert_close(together[[0, 2]], torch.cat(alone))
    valid[1] = 0
    together = PIXELWISE[name](image, truth, valid)
    assert together.isnan().tolist() == [False, True, False]


def ssim_by_hand(x, y, counted, data_range):
    """Equation 13 of Wang et al. window by window, with weights of counted pixels only."""
    position = torch.arange(-5, 6, dtype=torch.float64)
    window = torch.exp(-(position**2) / 4.5)
    window = torch.outer(window, window) / window.sum() ** 2
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    x, y, counted = (
        F.pad(t[None, None], (5, 5, 5, 5), mode="reflect")[0, 0] for t in (x, y, counted)
    )
    values = []
    for row in range(x.shape[0] - 10):
        for column in range(x.shape[1] - 10):
            place = slice(row, row + 11), slice(column, column + 11)
            w = window * counted[place]
            if w.sum() < 0.5:
                continue
            w = w / w.sum()
            p, q = x[place], y[place]
            mp, mq = (w * p).sum(), (w * q).sum()
            vp, vq = (w * (p - mp) ** 2).sum(), (w * (q - mq) ** 2).sum()
            cov = (w * (p - mp) * (q - mq)).sum()
            values.append(
                ((2 * mp * mq + c1) * (2 * cov + c2)) / ((mp**2 + mq**2 + c1) * (vp + vq + c2))
            )
    return torch.stack(values).mean()


def test_masked_ssim_window_by_window():
    image, truth, valid = (t.double() for t in images(samples=1, bands=1, size=20))
    valid[:, :, 9:, 11:] = 0
    expected = ssim_by_hand(image[0, 0], truth[0, 0], valid[0, 0], 2.0)
    result = ssim(image, truth, valid, data_range=2.0)
    torch.testing.assert_close(result, expected[None])


def test_ssim_in_a_hole_is_not_flattered():
    """Global SSIM hides a small hole that is filled with nonsense; SSIM in the hole does not."""
    _, truth, _ = images(size=64)
    mask = torch.zeros(2, 1, 64, 64)
    mask[:, :, 24:36, 24:36] = 1
    nonsense = torch.where(mask > 0, truth.flip(0), truth)
    valid = torch.ones_like(mask)
    assert (ssim(nonsense, truth, valid, data_range=2.0) > 0.85).all()
    assert (ssim(nonsense, truth, valid, mask, data_range=2.0).abs() < 0.2).all()


def test_ssim_of_the_whole_hides_a_small_hole():
    """A hole of one colour: the whole tile looks fine, the hole holds nothing of its truth."""
    truth = texture(samples=4, size=128)
    hole = torch.zeros(4, 1, 128, 128)
    hole[:, :, 60:72, 60:72] = 1
    filled = mean_fill(truth, hole, torch.ones_like(hole))
    whole = ssim(filled, truth, torch.ones_like(hole), data_range=2.0)
    inside = ssim(filled, truth, torch.ones_like(hole), hole, data_range=2.0)
    assert (whole > 0.98).all()
    assert (inside.abs() < 0.1).all()


def test_ssim_refuses_small_images():
    with pytest.raises(InputError, match="11 x 11"):
        ssim(*torch.zeros(2, 1, 1, 10, 30), torch.ones(1, 1, 10, 30), data_range=2.0)


def test_coarse_dtypes_are_computed_in_float32():
    image, truth, valid = images()
    coarse = image.bfloat16(), truth.bfloat16()
    for metric in PIXELWISE.values():
        result = metric(*coarse, valid)
        assert result.dtype == torch.float32
        assert torch.equal(result, metric(*(t.float() for t in coarse), valid))


# --- spectral angle


def spectra(*values):
    """Pixels of one row: ``(1, bands, 1, pixels)``."""
    return torch.tensor(values, dtype=torch.float32).T[None, :, None, :]


def test_spectral_angle_by_hand():
    """From the dark (-1, -0.5): orthogonal, parallel, 45 degrees, opposite, one and two zeros."""
    dark = torch.tensor([-1, -0.5])
    made = spectra((1, 0), (2, 4), (3, 0), (1, 1), (0, 0), (0, 0))
    true = spectra((0, 5), (1, 2), (4, 4), (-2, -2), (3, 1), (0, 0))
    angles = [math.pi / 2, 0.0, math.pi / 4, math.pi, math.pi / 2, 0.0]
    shift = dark.view(1, 2, 1, 1)
    for pixel, angle in enumerate(angles):
        mask = torch.zeros(1, 1, 1, 6)
        mask[..., pixel] = 1
        for zero in (dark, dark.tolist(), dark.view(1, 2, 1, 1)):
            result = spectral_angle(
                made + shift, true + shift, torch.ones(1, 1, 1, 6), mask, dark=zero
            )
            torch.testing.assert_close(result, torch.tensor([angle]), rtol=0, atol=1e-6)
    valid = torch.tensor([1.0, 0, 1, 1, 1, 1]).view(1, 1, 1, 6)
    result = spectral_angle(made + shift, true + shift, valid, dark=dark)
    torch.testing.assert_close(result, torch.tensor([sum(angles) / 5]))
    stretched = made * torch.tensor([1, 4.0]).view(1, 2, 1, 1)  # bands in different units
    again = spectral_angle(
        stretched, 4 * true * torch.tensor([1, 4.0]).view(1, 2, 1, 1), valid, dark=0, gain=[4, 1]
    )
    torch.testing.assert_close(again, result)


@settings(max_examples=30, deadline=None)
@given(power=st.floats(-7, 0), brightness=st.floats(0.1, 10), seed=st.integers(0, 1000))
def test_small_angles_are_exact(power, brightness, seed):
    """The arccosine of a float32 product is blind below 3e-4."""
    angle = 10**power
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.linalg.qr(torch.randn(4, 2, generator=generator, dtype=torch.float64)).Q.T
    made = brightness * (math.cos(angle) * first + math.sin(angle) * second)
    image, truth = (x.view(1, 4, 1, 1).expand(1, 4, 3, 3) for x in (made, first))
    valid = torch.ones(1, 1, 3, 3)
    result = float(spectral_angle(image.float(), truth.float(), valid, dark=0.0))
    assert abs(result - angle) < 3e-7
    result = float(spectral_angle(image, truth, valid, dark=0.0))
    assert abs(result - angle) < 1e-14


def test_angle_is_blind_to_brightness_only_from_the_dark():
    _, truth, valid = images()
    image = 3 * (truth + 1.5) - 1.5
    assert (spectral_angle(image, truth, valid, dark=-1.5) < 1e-6).all()
    assert (spectral_angle(image, truth, valid, dark=0.0) > 0.1).all()


def test_gradients_of_equal_dark_and_broken_spectra_are_finite():
    truth = images()[1]
    truth[0, :, :5], truth[1, :, 7] = -1.0, math.nan
    valid = truth.isfinite().all(1, keepdim=True).float()
    for shift in (0.0, 1e-20, 1e-7, 0.1):
        image = (truth + shift).requires_grad_()
        spectral_angle(image, truth, valid, dark=-1.0).sum().backward()
        assert image.grad.isfinite().all()
        assert (image.grad.masked_fill(valid > 0, 0) == 0).all()
    assert image.grad.abs().max() > 0


# --- seam


def toytown_tiles(number, size, seed=0):
    scene = torch.from_numpy(town(512, 1)[0]).float() / 127.5 - 1
    places = torch.randint(512 - size, (number, 2), generator=torch.Generator().manual_seed(seed))
    return torch.stack([scene[:, r : r + size, c : c + size] for r, c in places.tolist()])


def random_holes(number, size, seed=0):
    """A circle and a rectangle each, anywhere, about 20 %."""
    generator = torch.Generator().manual_seed(seed)
    holes = torch.zeros(number, 1, size, size)
    y, x = torch.arange(size)[:, None], torch.arange(size)
    for hole in holes[:, 0]:
        row, column, r, top, left, h, w = torch.rand(7, generator=generator).tolist()
        hole[(y - row * size) ** 2 + (x - column * size) ** 2 < (0.3 * r * size + 3) ** 2] = 1
        height, width = int((0.5 * h + 0.05) * size), int((0.5 * w + 0.05) * size)
        top, left = int(top * (size - height)), int(left * (size - width))
        hole[top : top + height, left : left + width] = 1
    return holes


def ratio(image, hole, valid=None):
    made = Seam()
    for part in (slice(0, 5), slice(5, None)):
        made.update(
            image[part], hole[part], (torch.ones_like(hole) if valid is None else valid)[part]
        )
    return float(made.ratio())


def test_seam_by_hand():
    image = torch.tensor(
        [[0.0, 1, 3, 3], [0, 4, 6, 2], [0, 5, 9, 1], [7, 7, 7, 7]],
    )[None, None]
    image = torch.cat([image, -3 * image], 1)
    hole = torch.zeros(1, 1, 4, 4)
    hole[..., 1:3, 1:3] = 1
    valid = torch.ones_like(hole)
    across = [4, 5, 4, 8, 3, 3, 2, 2]  # left, left, right, right, above, above, below, below
    inside = [2, 4, 1, 3]
    expected = torch.tensor([[2 * sum(across) / 8, 2 * sum(inside) / 4]])
    torch.testing.assert_close(seam(image, hole, valid), expected)
    valid[..., 2, 2] = 0  # takes the differences 8 and 2, and 4 and 3
    image[..., 2, 2] = math.nan
    expected = torch.tensor([[2 * (sum(across) - 10) / 6, 2 * (2 + 1) / 2]])
    torch.testing.assert_close(seam(image, hole, valid), expected)
    made = Seam()
    made.update(image, hole, valid)
    torch.testing.assert_close(made.ratio(), expected[0, 0] / expected[0, 1])


def test_seam_of_tiles_without_pairs():
    image = toytown_tiles(3, 16)
    hole = torch.zeros(3, 1, 16, 16)
    hole[1], hole[2, 0, 3, 4] = 1, 1
    found = seam(image, hole, torch.ones_like(hole))
    assert found.isnan().tolist() == [[True, True], [True, False], [False, True]]
    assert seam(image, hole, torch.zeros_like(hole)).isnan().all()
    assert math.isfinite(ratio(image, hole))
    with pytest.raises(InputError, match="update"):
        Seam().ratio()


def test_seam_ratio_weighs_pairs_not_tiles():
    """A tile with few pairs counts little: sums over all tiles, then one ratio."""
    image, hole = toytown_tiles(8, 64), random_holes(8, 64)
    image[0] *= 9
    hole[0] = 0
    hole[0, :, 5:8, 5:8] = 1
    valid = (torch.rand(hole.shape, generator=torch.Generator().manual_seed(0)) > 0.1).float()
    totals, counts = torch.zeros(2, dtype=torch.float64), torch.zeros(2)
    known = valid > 0
    for a, b in ((slice(1, None), slice(None, -1)),):
        for flip in (False, True):
            x, h, v = (t.transpose(2, 3) if flip else t for t in (image, hole, known))
            difference = (x[:, :, a] - x[:, :, b]).abs().double().mean(1, keepdim=True)
            both = v[:, :, a] & v[:, :, b]
            number = h[:, :, a] + h[:, :, b]  # of the pair that are in a hole
            for column in (0, 1):
                totals[column] += difference[both & (number == column + 1)].sum()
                counts[column] += (both & (number == column + 1)).sum()
    expected = totals / counts
    assert ratio(image, hole, valid) == pytest.approx(float(expected[0] / expected[1]), rel=1e-5)
    means = seam(image, hole, valid).nanmean(0)
    assert abs(float(means[0] / means[1]) - float(expected[0] / expected[1])) > 0.05


def test_seam_ratio_is_one_in_truth_and_tells_fills_apart():
    truth, hole = toytown_tiles(300, 64), random_holes(300, 64)
    valid = torch.ones_like(hole)
    assert 0.95 < ratio(truth, hole) < 1.05
    assert 0.95 < ratio(truth.flip(0), hole) < 1.05
    elsewhere = torch.where(hole > 0, truth.roll(1, 0), truth)  # textured, but it does not fit
    assert ratio(elsewhere, hole) > 3
    assert ratio(truth + 0.3 * hole, hole) > 3
    assert ratio(harmonic_fill(truth, hole, valid), hole) > 1.8
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    assert ratio(torch.where(hole > 0, noise, truth), hole) < 0.85


# --- spectrum


def test_white_noise_has_its_variance_in_every_bin():
    noise = 0.3 * torch.randn(200, 2, 64, 64, generator=torch.Generator().manual_seed(0))
    valid = torch.ones(200, 1, 64, 64)
    valid[:, :, :, 40:] = 0
    for mask in (torch.ones_like(valid), valid):
        power = spectrum(noise + 5, mask).mean((0, 1))
        torch.testing.assert_close(power, torch.full((16,), 0.09), rtol=0.05, atol=0)


@settings(max_examples=15, deadline=None)
@given(row=st.integers(0, 32), column=st.integers(0, 32))
def test_wave_lands_in_its_bin(row, column):
    frequency = math.hypot(row, column) / 64
    if frequency < 0.06:
        return
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    wave = torch.cos(2 * math.pi * (row * y + column * x) / 64)[None, None]
    power = spectrum(wave, torch.ones_like(wave))[0, 0]
    expected = frequency / math.sqrt(0.5) * 16
    assert abs(int(power.argmax()) + 0.5 - expected) < 1


def test_spectrum_distance_by_hand():
    a, b = torch.ones(2, 3, 4), torch.ones(2, 3, 4)
    assert spectrum_distance(a, b).tolist() == [0, 0]
    a[0] *= 2  # a factor of two is 3.01 dB
    a[1, 0, 0] *= 10
    expected = torch.tensor([10 * math.log10(2), 10 / 12])
    torch.testing.assert_close(spectrum_distance(a, b), expected)
    torch.testing.assert_close(spectrum_distance(b, a), expected)
    zero = torch.zeros_like(a)
    assert spectrum_distance(zero, b).isfinite().all()


def test_spectrum_refuses_small_images():
    with pytest.raises(InputError, match="32 pixels"):
        spectrum(torch.zeros(1, 1, 31, 64), torch.ones(1, 1, 31, 64))


# --- checkerboard


def repeated(tile, height, width):
    """``(B, C, f, f)`` over and over: ``(B, C, height, width)``."""
    rows, columns = (-(-side // tile.shape[2]) for side in (height, width))
    return tile.repeat(1, 1, rows, columns)[:, :, :height, :width]


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(9, 80),
    width=st.integers(9, 80),
    a=st.floats(0.01, 10),
    brightness=st.floats(-5, 5),
)
def test_alternating_pixels_have_their_amplitude_squared(height, width, a, brightness):
    y, x = torch.arange(height)[:, None], torch.arange(width)
    alternating = [(-1.0) ** (x + y), (-1.0) ** (x + 0 * y), (-1.0) ** (y + 0 * x)]
    image = a * torch.stack(alternating)[:, None] + brightness
    energy = checkerboard(image, torch.ones(3, 1, height, width))
    torch.testing.assert_close(energy, torch.full((3,), a * a), rtol=2e-3, atol=1e-9)
    both = torch.stack([3 * alternating[0], 4 * alternating[1]])[None] * a
    torch.testing.assert_close(
        checkerboard(both, torch.ones(1, 1, height, width)),
        torch.tensor([12.5 * a * a]),
        rtol=2e-3,
        atol=1e-9,
    )


@settings(max_examples=30, deadline=None)
@given(
    factor=st.integers(2, 8),
    height=st.integers(64, 90),
    width=st.integers(64, 90),
    seed=st.integers(0, 1000),
)
def test_any_pattern_of_the_period_has_its_mean_square(factor, height, width, seed):
    """Parseval's theorem: all of it but its mean is at the frequencies k / factor."""
    tile = torch.randn(2, 3, factor, factor, generator=torch.Generator().manual_seed(seed))
    image = repeated(tile, height, width) + 3
    energy = checkerboard(image, torch.ones(2, 1, height, width), factor)
    expected = tile.var((2, 3), correction=0).mean(1)
    torch.testing.assert_close(energy, expected, rtol=5e-3, atol=1e-4)


@pytest.mark.parametrize(("factor", "height", "width"), [(2, 64, 96), (4, 128, 64), (8, 128, 128)])
def test_checkerboard_against_numpys_fft(factor, height, width):
    image = texture(size=128, samples=2)[:, :, :height, :width]
    found = checkerboard(image, torch.ones(2, 1, height, width), factor)
    x = image.double().numpy()
    x = x - x.mean((2, 3), keepdims=True)
    taper = np.outer(*(np.hanning(n + 2)[1:-1] for n in (height, width)))

    def near(frequency, size):
        apart = np.abs(np.fft.fftfreq(size) - frequency) % 1
        return np.minimum(apart, 1 - apart) <= 1 / 32 + 1e-9

    power, own = (np.abs(np.fft.fft2(t)) ** 2 for t in (x * taper, taper))

    def sums(t, k, m):
        return t[..., near(k / factor, height)[:, None] & near(m / factor, width)].sum(-1)

    places = [place for place in itertools.product(range(factor), repeat=2) if any(place)]
    expected = sum(sums(power, *place) for place in places).mean(1) / sums(own, 0, 0)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4)


def test_smooth_images_have_no_checkerboard():
    y, x = torch.arange(64.0)[:, None] / 64, torch.arange(64.0) / 64
    smooth = torch.stack([x + 3 * y, torch.cos(20 * x * y), torch.exp(-20 * (x - y) ** 2)])
    valid = torch.ones(1, 1, 64, 64)
    assert smooth[None].var((2, 3)).mean() > 0.2
    for factor in (2, 4):
        assert checkerboard(smooth[None], valid, factor).item() < 2e-7


def test_checkerboard_of_uneven_overlap_and_of_its_cure():
    """A transposed convolution of width 3 and stride 2 (Odena et al. 2016); one of width 4."""
    flat = torch.ones(1, 1, 32, 32)
    uneven = F.conv_transpose2d(flat, torch.ones(1, 1, 3, 3), stride=2)
    even = F.conv_transpose2d(flat, torch.ones(1, 1, 4, 4), stride=2, padding=1)
    energies = [checkerboard(x, torch.ones_like(x)).item() for x in (uneven, even)]
    # It adds up to 1 2 / 2 4, over and over.
    assert energies[0] == pytest.approx(6.25 - 2.25**2, rel=0.02)
    assert energies[1] < 1e-4


def test_checkerboard_is_blind_to_brightness_and_quadratic():
    image, _, valid = images(size=48)
    energy = checkerboard(image, valid)
    torch.testing.assert_close(checkerboard(image + 4, valid), energy, rtol=1e-4, atol=0)
    torch.testing.assert_close(checkerboard(3 * image, valid), 9 * energy)


def test_white_noise_has_little_checkerboard():
    noise = 0.3 * torch.randn(40, 1, 256, 256, generator=torch.Generator().manual_seed(0))
    energy = checkerboard(noise, torch.ones_like(noise)).mean().item()
    # The share of the spectrum that is looked at: 3 squares of 17 frequencies.
    assert energy == pytest.approx(0.09 * 3 * 17**2 / 256**2, rel=0.03)


def test_checkerboard_and_invalid_pixels():
    image, _, valid = images(samples=3, size=48)
    before = checkerboard(image, valid)
    for value in (7.0, 1e30, math.nan, math.inf):
        assert torch.equal(checkerboard(image.masked_fill(valid == 0, value), valid), before)
    torch.testing.assert_close(checkerboard(image[1:2], valid[1:2]), before[1:2])
    valid[1] = 0
    assert checkerboard(image, valid).isnan().tolist() == [False, True, False]
    half = torch.ones(1, 1, 48, 48)
    half[:, :, :, 30:] = 0
    tile = torch.tensor([[1.0, -1], [-1, 1]])[None, None]
    energy = checkerboard(repeated(tile, 48, 48), half)
    torch.testing.assert_close(energy, torch.ones(1), rtol=0.01, atol=0)


@pytest.mark.parametrize(("size", "factor"), [(8, 2), (64, 16), (64, 1)])
def test_checkerboard_refuses_what_it_cannot_tell_apart(size, factor):
    with pytest.raises(InputError, match=f"factor {factor} in images of {size}"):
        checkerboard(torch.zeros(1, 1, size, 90), torch.ones(1, 1, size, 90), factor)
    checkerboard(torch.zeros(1, 1, 65, 90), torch.ones(1, 1, 65, 90), max(factor, 2))


# --- consistency


@settings(max_examples=20, deadline=None)
@given(factor=st.integers(1, 4), off=st.floats(-2, 2), seed=st.integers(0, 1000))
def test_repeated_pixels_are_consistent(factor, off, seed):
    coarse, _, valid = images(seed, size=8)
    image = enlarge(coarse, factor, "nearest")
    for given_valid in (valid, enlarge(valid, factor, "nearest")):
        found = consistency(image, coarse, given_valid, factor)
        torch.testing.assert_close(found, torch.zeros(2), rtol=0, atol=1e-6)
        found = consistency(image + off, coarse, given_valid, factor)
        torch.testing.assert_close(found, torch.full((2,), abs(off)), rtol=1e-4, atol=1e-6)


def test_consistency_by_hand():
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 3, 12, 8, generator=generator)
    coarse = torch.randn(2, 3, 3, 2, generator=generator)
    valid = torch.ones(2, 1, 12, 8)
    valid[0, 0, 5, 1] = 0  # one fine pixel takes its coarse one away
    counted = torch.ones(2, 1, 3, 2)
    counted[0, 0, 1, 0] = 0
    cells = image.double().numpy().reshape(2, 3, 3, 4, 2, 4).mean((3, 5))
    apart = np.abs(cells - coarse.double().numpy()).mean(1)
    expected = (apart * counted[:, 0].numpy()).sum((1, 2)) / [5, 6]
    for mask in (valid, counted):
        found = consistency(image, coarse, mask, 4)
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)
    spoilt = image.masked_fill(valid == 0, math.nan)
    coarse[0, :, 1, 0] = math.inf
    np.testing.assert_allclose(consistency(spoilt, coarse, valid, 4).numpy(), expected, rtol=1e-5)
    valid[1] = 0
    assert consistency(image, coarse, valid, 4).isnan().tolist() == [False, True]


def test_consistency_with_oneself_is_l1():
    image, truth, valid = images()
    assert torch.equal(consistency(image, truth, valid, 1), l1(image, truth, valid))
    assert not consistency(image, area(image, 4), torch.ones_like(valid), 4).any()


@pytest.mark.parametrize("shape", [(2, 3, 7, 8), (2, 2, 8, 8), (1, 3, 8, 8)])
def test_consistency_refuses_shapes_that_do_not_fit(shape):
    with pytest.raises(InputError, match="not 2 times as fine"):
        consistency(torch.zeros(2, 3, 16, 16), torch.zeros(shape), torch.ones(2, 1, 16, 16), 2)


def test_new_metrics_do_not_wait_for_the_host(no_waiting):
    image, _, valid = images(size=32)
    with no_waiting():
        checkerboard(image, valid)
        consistency(image, area(image, 2), valid, 2)


# --- gradients


def test_gradient_histogram_by_hand():
    image = torch.zeros(1, 1, 3, 3)
    image[0, 0, 0, 1], image[0, 0, 1, 0] = 0.3, 0.4  # magnitudes 0.50, 0.42, 0.57, 0
    histogram = gradient_histogram(image, torch.ones(1, 1, 3, 3), bins=10)
    assert histogram.tolist() == [[[1, 0, 0, 0, 1, 2, 0, 0, 0, 0]]]
    valid = torch.ones(1, 1, 3, 3)
    valid[0, 0, 1, 0] = 0  # takes the upper left and the lower left difference
    histogram = gradient_histogram(image, valid, bins=10)
    assert histogram.tolist() == [[[1, 0, 0, 0, 1, 0, 0, 0, 0, 0]]]
    steep = gradient_histogram(100 * image, torch.ones(1, 1, 3, 3), bins=10)
    assert steep.tolist() == [[[1] + [0] * 8 + [3]]]
    image[0, 0, 0, 0] = math.nan
    assert gradient_histogram(image, torch.ones(1, 1, 3, 3), bins=10)[0, 0, -1] == 1


def test_gradient_distance_is_wasserstein():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 1000, generator=generator)
    b = b * 0.5
    exact = (a.sort().values - b.sort().values).abs().mean()  # of two samples of equal size
    bins = 500
    a, b = (torch.histc(t, bins, 0, 1)[None].long() for t in (a, b))
    torch.testing.assert_close(gradient_distance(a, b), exact, rtol=0, atol=1 / bins)
    torch.testing.assert_close(gradient_distance(3 * a, b), gradient_distance(a, b))
    torch.testing.assert_close(gradient_distance(a, b, 4.0), 4 * gradient_distance(a, b))


def test_gradient_distance_is_per_sample_and_averages_bands():
    a = torch.tensor([[[1, 0, 0, 0], [1, 0, 0, 0]], [[1, 1, 0, 0], [0, 0, 0, 1]]])
    b = torch.tensor([[[0, 1, 0, 0], [0, 0, 0, 1]], [[1, 1, 0, 0], [0, 0, 0, 1]]])
    torch.testing.assert_close(gradient_distance(a, b), torch.tensor([(0.25 + 0.75) / 2, 0]))


# --- texture


def texture_distances(image, truth, valid=None):
    valid = torch.ones_like(truth[:, :1]) if valid is None else valid
    made, real = Texture(), Texture()
    for part in (slice(0, 3), slice(3, None)):
        made.update(image[part], valid[part])
        real.update(truth[part], valid[part])
    return made.distance(real)


def test_texture_of_equal_images():
    truth = texture()
    assert {k: float(v) for k, v in texture_distances(truth, truth).items()} == {
        "spectrum": 0,
        "gradient": 0,
    }


@pytest.mark.parametrize("name", ["spectrum", "gradient"])
def test_texture_rises_with_blur_and_noise(name):
    truth = texture()
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(1))
    blur = [float(texture_distances(blurred(truth, s), truth)[name]) for s in (0.5, 0.8, 1.5, 3)]
    grain = [float(texture_distances(truth + s * noise, truth)[name]) for s in (0.02, 0.05, 0.1)]
    for distances in (blur, grain):
        assert distances[0] > 0
        assert all(b > 1.1 * a for a, b in itertools.pairwise(distances))


@pytest.mark.parametrize("name", ["spectrum", "gradient"])
def test_texture_needs_no_correspondence(name):
    """Another scene of the same kind is nearer than the same scene blurred; L1 says the reverse."""
    truth, other = texture(0, samples=16), texture(1, samples=16)
    soft = blurred(truth, 1.0)
    assert texture_distances(other, truth)[name] < 0.25 * texture_distances(soft, truth)[name]
    valid = torch.ones_like(truth[:, :1])
    assert (l1(other, truth, valid) > 2 * l1(soft, truth, valid)).all()


def test_texture_ignores_invalid_pixels_and_empty_tiles():
    truth = texture()
    image = blurred(truth, 1.0)
    valid = torch.ones_like(truth[:, :1])
    valid[:, :, 20:40, :15] = 0
    before = texture_distances(image, truth, valid)
    for value in (9.0, math.nan):
        after = texture_distances(
            image.masked_fill(valid == 0, value), truth.masked_fill(valid == 0, -value), valid
        )
        assert {k: float(v) for k, v in after.items()} == {k: float(v) for k, v in before.items()}
    empty = torch.cat([valid, torch.zeros_like(valid)])
    more = texture_distances(torch.cat([image, truth]), torch.cat([truth, image]), empty)
    torch.testing.assert_close(more, before)


def test_texture_is_that_of_the_whole_set():
    """Batches add up, and are averaged before they are compared."""
    image, truth = texture(0), blurred(texture(1), 0.7)
    valid = torch.ones_like(truth[:, :1])
    together = texture_distances(image, truth)
    spectra = [spectrum(t, valid).mean(0) for t in (image, truth)]
    gradients = [gradient_histogram(t, valid).sum(0) for t in (image, truth)]
    torch.testing.assert_close(together["spectrum"], spectrum_distance(*spectra))
    torch.testing.assert_close(together["gradient"], gradient_distance(*gradients))


def test_gradients_can_be_those_of_holes_alone():
    """A small hole without texture: nothing beside the whole tile, everything beside its truth."""
    truth = toytown_tiles(6, 64)
    hole = torch.zeros(6, 1, 64, 64)
    hole[:, :, 20:30, 20:30] = 1
    valid = torch.ones_like(hole)
    filled = mean_fill(truth, hole, valid)

    def distance(mask):
        made, real = Texture(), Texture()
        made.update(filled, valid, mask)
        real.update(truth, valid, mask)
        return made.distance(real)

    assert torch.equal(distance(hole)["spectrum"], distance(None)["spectrum"])
    counts = [gradient_histogram(x, hole).sum(0) for x in (filled, truth)]
    torch.testing.assert_close(distance(hole)["gradient"], gradient_distance(*counts))
    assert distance(hole)["gradient"] > 10 * distance(None)["gradient"]


def test_texture_without_tiles_is_refused():
    with pytest.raises(InputError, match="update"):
        Texture().distance(Texture())
