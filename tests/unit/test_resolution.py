"""Coarser and finer: against numpy, Keys' cubic by hand, Pillow and GDAL; whose noise is whose."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rasterio import Affine
from rasterio.enums import Resampling
from rasterio.io import MemoryFile

from ganlab.errors import InputError
from ganlab.randomness import keys
from ganlab.resolution import area, enlarge, sensor


def images(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def own(*samples, seed=0):
    return torch.from_numpy(keys(seed, 0, np.array(samples)))


@given(factor=st.integers(1, 5), rows=st.integers(1, 5), columns=st.integers(1, 5))
def test_area_is_the_mean_over_cells(factor, rows, columns):
    x = images(2, 3, rows * factor, columns * factor)
    expected = x.numpy().reshape(2, 3, rows, factor, columns, factor).mean((3, 5))
    np.testing.assert_allclose(area(x, factor).numpy(), expected, rtol=1e-12, atol=1e-12)


def test_area_of_coarse_numbers_is_taken_in_float32():
    x = torch.full((1, 1, 16, 16), 1.0, dtype=torch.bfloat16)
    x[0, 0, 0, 0] = 1.0078125
    result = area(x, 16)
    assert result.dtype == torch.float32
    assert result.item() == 1 + 0.0078125 / 256
    assert area(x.int(), 8).dtype == torch.float32


@pytest.mark.parametrize("factor", [2, 3, 4, 5, 8])
def test_a_samples_area_and_optics_are_its_own_to_the_last_bit(factor):
    x = images(5, 3, 8 * factor, 7 * factor, dtype=torch.float32)
    for blur in (0.0, 0.5):
        together = sensor(x, own(*range(5)), factor, blur=blur)
        alone = [sensor(x[i : i + 1], own(i), factor, blur=blur) for i in range(5)]
        assert torch.equal(together, torch.cat(alone))


def cubic(distance, a=-0.5):
    """Keys 1981, eq. 4 (there with a = -1/2 already)."""
    s = abs(distance)
    if s < 1:
        return (a + 2) * s**3 - (a + 3) * s**2 + 1
    return a * s**3 - 5 * a * s**2 + 8 * a * s - 4 * a if s < 2 else 0.0


def tent(distance):
    return max(0.0, 1 - abs(distance))


def matrix(size, factor, kernel):
    """Weights of every coarse pixel in every fine one; what lies outside is left out."""
    centres = (np.arange(size * factor) + 0.5) / factor - 0.5
    weights = np.array([[kernel(centre - i) for i in range(size)] for centre in centres])
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("factor", [2, 3, 4, 8])
@pytest.mark.parametrize("sides", [(9, 6), (1, 7), (5, 1), (2, 2)])
@pytest.mark.parametrize(("mode", "kernel"), [("bicubic", cubic), ("bilinear", tent)])
def test_interpolation_by_hand(factor, sides, mode, kernel):
    x = images(2, 3, *sides)
    rows, columns = (matrix(side, factor, kernel) for side in sides)
    expected = np.einsum("yr,bcrs,xs->bcyx", rows, x.numpy(), columns)
    np.testing.assert_allclose(enlarge(x, factor, mode).numpy(), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
def test_pillow_and_gdal_agree(factor, mode):
    x = images(7, 9, dtype=torch.float32).numpy()
    found = enlarge(torch.from_numpy(x)[None, None], factor, mode)[0, 0].numpy()
    height, width = found.shape
    pillow = Image.fromarray(x).resize((width, height), Image.Resampling[mode.upper()])
    np.testing.assert_allclose(found, np.asarray(pillow), rtol=0, atol=3e-6)
    how = Resampling["cubic" if mode == "bicubic" else mode]
    profile = {"driver": "GTiff", "height": 7, "width": 9, "count": 1, "dtype": "float32"}
    with MemoryFile() as memory:
        with memory.open(**profile, transform=Affine.scale(2, -2)) as scene:
            scene.write(x, 1)
        with memory.open() as scene:
            gdal = scene.read(1, out_shape=(height, width), resampling=how)
    np.testing.assert_allclose(found, gdal, rtol=0, atol=3e-6)


@settings(deadline=None)
@given(factor=st.integers(2, 5), coefficients=st.tuples(*[st.floats(-2, 2)] * 6))
def test_bicubic_is_exact_for_parabolas_where_it_sees_no_border(factor, coefficients):
    def parabola(centre):
        y, x = np.meshgrid(centre, centre, indexing="ij")
        powers = (np.ones_like(x), x, y, x * x, x * y, y * y)
        return sum(c * p for c, p in zip(coefficients, powers, strict=True))

    coarse, fine = np.arange(8.0), (np.arange(8 * factor) + 0.5) / factor - 0.5
    found = enlarge(torch.from_numpy(parabola(coarse))[None, None], factor)[0, 0].numpy()
    inner = slice(2 * factor, -2 * factor)
    np.testing.assert_allclose(found[inner, inner], parabola(fine)[inner, inner], atol=1e-10)


@settings(deadline=None)
@given(
    factor=st.integers(1, 5),
    rows=st.integers(1, 6),
    columns=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_area_undoes_repeated_pixels(factor, rows, columns, seed):
    x = images(2, 3, rows, columns, seed=seed)
    finer = enlarge(x, factor, "nearest")
    expected = x.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    assert torch.equal(finer, expected)
    torch.testing.assert_close(area(finer, factor), x, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
def test_enlarging_keeps_constants_and_is_linear_in_the_image(mode):
    flat = torch.full((1, 1, 5, 4), 0.7, dtype=torch.float64)
    assert (enlarge(flat, 3, mode) - 0.7).abs().max() < 1e-15
    x, y = images(1, 2, 5, 4), images(1, 2, 5, 4, seed=1)
    both = enlarge(2 * x - 3 * y, 4, mode)
    torch.testing.assert_close(both, 2 * enlarge(x, 4, mode) - 3 * enlarge(y, 4, mode))
    assert enlarge(x.bfloat16(), 2, mode).dtype == torch.float32


def test_a_factor_of_one_is_the_image():
    x = images(1, 2, 5, 3).half()
    for result in (area(x, 1), enlarge(x, 1), enlarge(x, 1, "nearest"), sensor(x, own(0), 1)):
        assert result is x


def blurred(x, deviation):
    """By the definition, in numpy: every pixel from all, the border pixels continued for ever."""
    out = x.numpy()
    for axis in (2, 3):
        size = out.shape[axis]
        reach = math.ceil(4 * deviation)
        weights = np.zeros((size, size))
        for here, step in itertools.product(range(size), range(-reach, reach + 1)):
            there = min(max(here + step, 0), size - 1)
            weights[here, there] += math.exp(-(step**2) / (2 * deviation**2))
        weights /= weights.sum(1, keepdims=True)
        out = np.moveaxis(np.moveaxis(out, axis, -1) @ weights.T, -1, axis)
    return torch.from_numpy(out)


@pytest.mark.parametrize(("factor", "blur"), [(1, 0.7), (2, 0.5), (4, 0.4), (4, 3.0), (3, 1.0)])
def test_optics_then_area(factor, blur):
    x = images(2, 3, 12, 24)
    expected = area(blurred(x, blur * factor), factor)
    torch.testing.assert_close(sensor(x, own(0, 1), factor, blur=blur), expected)


@pytest.mark.parametrize("deviation", [0.7, 1.0, 2.0])
def test_a_point_spreads_by_the_deviation(deviation):
    point = torch.zeros(1, 1, 33, 33, dtype=torch.float64)
    point[0, 0, 16, 16] = 1
    spread = sensor(point, own(0), 1, blur=deviation)[0, 0]
    assert spread.sum().item() == pytest.approx(1)
    steps = torch.arange(-16, 17, dtype=torch.float64)
    for axis in (0, 1):
        profile = spread.sum(axis)
        assert (profile * steps).sum().item() == pytest.approx(0, abs=1e-12)
        assert (profile * steps**2).sum().item() == pytest.approx(deviation**2, rel=0.005)


@pytest.mark.parametrize("blur", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("frequency", [0.1, 0.25, 0.4])
def test_contrast_falls_as_that_of_a_sensor_with_square_pixels(blur, frequency):
    """The transfer function is that of the Gaussian times that of the pixel, in coarse pixels."""
    factor, size = 8, 40
    place = (torch.arange(size * factor, dtype=torch.float64) + 0.5) / factor - 0.5
    wave = torch.cos(2 * math.pi * frequency * place).expand(1, 1, size * factor, -1)
    seen = sensor(wave, own(0), factor, blur=blur)[0, 0, 0, 6:-6]
    expected = math.exp(-2 * (math.pi * blur * frequency) ** 2) * np.sinc(frequency)
    coarse = torch.cos(2 * math.pi * frequency * torch.arange(size, dtype=torch.float64))[6:-6]
    torch.testing.assert_close(seen, expected * coarse, rtol=0, atol=0.004)
    assert (seen * coarse).sum() / coarse.square().sum() == pytest.approx(expected, rel=0.01)


def test_noise_is_normal_and_of_the_deviation_asked_for():
    flat = torch.zeros(64, 4, 64, 64, dtype=torch.float32)
    noise = sensor(flat, own(*range(64)), 2, blur=0.5, noise=0.25) / 0.25
    n = noise.numel()
    assert noise.shape == (64, 4, 32, 32)
    assert abs(noise.mean()) < 4 / n**0.5
    assert abs(noise.square().mean() - 1) < 4 * (2 / n) ** 0.5
    assert abs((noise**4).mean() - 3) < 4 * (96 / n) ** 0.5
    for limit in (1.0, 2.0, 3.0):
        share = math.erfc(limit / 2**0.5)
        found = (noise.abs() > limit).double().mean().item()
        assert abs(found - share) < 4 * (share / n) ** 0.5
    parts = [noise[:, :, :, :-1], noise[:, :, :-1], noise[:, :-1], noise[:-1]]
    others = [noise[:, :, :, 1:], noise[:, :, 1:], noise[:, 1:], noise[1:]]
    # Sine and cosine of one angle are uncorrelated, but so must their squares be.
    halves = noise.flatten(1).chunk(2, 1)
    for a, b in [*zip(parts, others, strict=True), halves]:
        assert abs((a * b).mean()) < 5 / a.numel() ** 0.5
        assert abs(((a**2 - 1) * (b**2 - 1)).mean()) < 5 * 2 / a.numel() ** 0.5


@pytest.mark.parametrize("sides", [(8, 8), (5, 3), (1, 1)])
def test_a_samples_noise_is_its_own(sides):
    x = images(4, 3, *sides)
    keyed = own(7, 8, 9, 7)
    together = sensor(x, keyed, 1, noise=0.1)
    for order in ([3, 1, 0], [2]):
        part = sensor(x[order], keyed[order], 1, noise=0.1)
        torch.testing.assert_close(part, together[order], rtol=0, atol=1e-7)
    noise = together - x
    torch.testing.assert_close(noise[0], noise[3], rtol=0, atol=1e-7)
    assert (noise[0] - noise[1]).abs().max() > 0.01
    other = sensor(x, own(7, 8, 9, 7, seed=1), 1, noise=0.1)
    assert (other - together).abs().max() > 0.01


def test_gradients():
    x = images(1, 2, 4, 4).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda t: sensor(t, own(3), 2, blur=0.6, noise=0.2), (x,), fast_mode=True
    )
    for mode in ("nearest", "bilinear", "bicubic"):
        assert torch.autograd.gradcheck(lambda t, m=mode: enlarge(t, 2, m), (x,), fast_mode=True)


def test_nothing_waits_for_the_host(no_waiting):
    x, keyed = images(2, 3, 8, 8), own(0, 1)
    with no_waiting():
        enlarge(sensor(x, keyed, 2, blur=0.5, noise=0.1), 2)


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (lambda x: area(x, 4), "6 x 8 pixels does not divide into cells of 4 x 4"),
        (lambda x: area(x, 0), "factor between resolutions is 0"),
        (lambda x: enlarge(x, -2), "factor between resolutions is -2"),
        (lambda x: enlarge(x, 2, "lanczos"), "lanczos.*bicubic"),
        (lambda x: enlarge(x, 1, "lanczos"), "lanczos.*bicubic"),
        (lambda x: sensor(x, own(0), 2, blur=-0.1), "blur is -0.1"),
        (lambda x: sensor(x, own(0), 2, noise=math.nan), "noise is nan"),
        (lambda x: sensor(x, own(0), 5), "does not divide"),
    ],
)
def test_what_cannot_be_is_refused(action, words):
    with pytest.raises(InputError, match=words):
        action(images(1, 1, 6, 8))
