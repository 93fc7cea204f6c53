"""Pixelwise metrics against torchmetrics: the whole, and a hole cut out."""

import pytest
import torch
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    spectral_angle_mapper,
    structural_similarity_index_measure,
)
from torchmetrics.functional.regression import mean_absolute_error, mean_squared_error

from ganlab.metrics import l1, psnr, spectral_angle, ssim


def pair(dtype, shape, noise, seed=0):
    generator = torch.Generator().manual_seed(seed)
    truth = torch.rand(shape, generator=generator, dtype=dtype) * 2 - 1
    truth = torch.nn.functional.avg_pool2d(truth, 3, 1, 1)
    image = truth + noise * torch.randn(shape, generator=generator, dtype=dtype)
    return image, truth, torch.ones_like(truth[:, :1])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
@pytest.mark.parametrize("noise", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("shape", [(3, 3, 40, 57), (1, 1, 11, 11)])
def test_ssim(dtype, tolerance, noise, shape):
    image, truth, valid = pair(dtype, shape, noise)
    expected = structural_similarity_index_measure(
        image, truth, data_range=2.0, reduction="none"
    ).reshape(-1)
    result = ssim(image, truth, valid, data_range=2.0)
    assert result.dtype == dtype
    torch.testing.assert_close(result, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("data_range", [1.0, 255.0])
def test_ssim_of_other_ranges(data_range):
    image, truth, valid = (t.double() for t in pair(torch.float64, (2, 3, 32, 32), 0.1))
    image, truth = (data_range * (t + 1) / 2 for t in (image, truth))
    expected = structural_similarity_index_measure(
        image, truth, data_range=data_range, reduction="none"
    )
    result = ssim(image, truth, valid, data_range=data_range)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("data_range", [2.0, 255.0])
def test_psnr(data_range):
    image, truth, valid = pair(torch.float32, (3, 4, 20, 30), 0.1)
    expected = peak_signal_noise_ratio(
        image, truth, data_range=data_range, reduction="none", dim=(1, 2, 3)
    )
    torch.testing.assert_close(psnr(image, truth, valid, data_range=data_range), expected)


def test_l1():
    image, truth, valid = pair(torch.float32, (3, 4, 20, 30), 0.1)
    expected = torch.nn.functional.l1_loss(image, truth, reduction="none").flatten(1).mean(1)
    torch.testing.assert_close(l1(image, truth, valid), expected)


def test_spectral_angle():
    image, truth, valid = pair(torch.float64, (3, 4, 20, 30), 0.1)
    expected = spectral_angle_mapper(image + 1.5, truth + 1.5, reduction="none").mean((1, 2))
    result = spectral_angle(image, truth, valid, dark=-1.5)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)
    dark = torch.tensor([-1.5, -2, -1.2, -3], dtype=torch.float64)
    x, y = (t - dark.view(4, 1, 1) for t in (image, truth))
    expected = spectral_angle_mapper(x, y, reduction="none").mean((1, 2))
    result = spectral_angle(image, truth, valid, dark=dark)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)


PLACE = (..., slice(5, 38), slice(11, 41))


def hole_and_garbage():
    """A rectangular hole, and two that differ from it only where the metric must not look."""
    image, truth, valid = pair(torch.float64, (3, 3, 50, 57), 0.1)
    hole = torch.zeros_like(valid)
    hole[PLACE] = 1
    broken = [t.masked_fill(hole == 0, float("nan")) for t in (image, truth)]
    return image, truth, valid, hole, broken


def test_hole_is_the_cropped_image():
    image, truth, valid, hole, broken = hole_and_garbage()
    x, y = image[PLACE].contiguous(), truth[PLACE].contiguous()
    wanted = {
        "l1": torch.stack([mean_absolute_error(a, b) for a, b in zip(x, y, strict=True)]),
        "psnr": peak_signal_noise_ratio(x, y, data_range=2.0, reduction="none", dim=(1, 2, 3)),
        "angle": spectral_angle_mapper(x + 2, y + 2, reduction="none").mean((1, 2)),
    }
    for made, true in ((image, truth), broken):
        found = {
            "l1": l1(made, true, valid, hole),
            "psnr": psnr(made, true, valid, hole, data_range=2.0),
            "angle": spectral_angle(made, true, valid, hole, dark=-2.0),
        }
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)


def test_valid_part_is_what_is_left():
    image, truth, valid, hole, _ = hole_and_garbage()
    left = (hole == 0)[:, 0]
    for sample in range(3):
        x, y = (t[sample][:, left[sample]] for t in (image, truth))
        at = slice(sample, sample + 1)
        arguments = image[at], truth[at], valid[at], 1 - hole[at]
        torch.testing.assert_close(l1(*arguments)[0], mean_absolute_error(x, y))
        expected = 10 * torch.log10(4 / mean_squared_error(x, y))
        torch.testing.assert_close(psnr(*arguments, data_range=2.0)[0], expected)
        expected = spectral_angle_mapper(x[None, :, None] + 2, y[None, :, None] + 2)
        torch.testing.assert_close(spectral_angle(*arguments, dark=-2.0)[0], expected)


def test_ssim_in_a_hole_is_nearly_that_of_the_cropped_image():
    """They differ at the border: torchmetrics reflects the image there, ours looks at less of it.

    Windows that lie in the hole are the same; with a hole in the whole's place all are.
    """
    image, truth, valid, hole, broken = hole_and_garbage()
    x, y = image[PLACE], truth[PLACE]
    wanted = structural_similarity_index_measure(x, y, data_range=2.0, reduction="none")
    found = ssim(image, truth, valid, hole, data_range=2.0)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.02)
    whole = structural_similarity_index_measure(image, truth, data_range=2.0, reduction="none")
    assert (found - wanted).abs().mean() < 0.5 * (whole - wanted).abs().mean()
    assert torch.equal(ssim(*broken, valid, hole, data_range=2.0), found)
    everything = torch.ones_like(hole)
    found = ssim(image, truth, valid, everything, data_range=2.0)
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-10)
