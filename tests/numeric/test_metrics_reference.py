"""PSNR and SSIM against torchmetrics on fully valid images."""

import pytest
import torch
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from ganlab.metrics import l1, psnr, ssim


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
