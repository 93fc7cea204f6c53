"""Distances between a made and a true image, over the measured pixels."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ganlab.losses.likelihood import Noise


def l1(made: Tensor, true: Tensor, valid: Tensor) -> Tensor:
    """Mean absolute difference: ``(B,)``, 0 where a sample has no valid pixel.

    Args:
        made: ``(B, C, H, W)``.
        true: ``(B, C, H, W)``.
        valid: ``(B, 1, H, W)``, 1 = measured; may hold fractions, used as weights.
    """
    return _mean(_difference(made, true, valid).abs(), valid)


def l2(made: Tensor, true: Tensor, valid: Tensor) -> Tensor:
    """Mean squared difference: ``(B,)``; arguments as for :func:`l1`."""
    return _mean(_difference(made, true, valid).square(), valid)


DISTANCES = {"l1": l1, "l2": l2}
NOISES: dict[str, Noise] = {"l1": "laplace", "l2": "gaussian"}
"""Of which noise they are the log-likelihoods."""


def total_variation(image: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels: ``(B,)``, 0 where no pair counts.

    Liu et al. 2018, eq. 6, where the mask is the hole and one pixel around it: see
    :func:`dilate`. Here it is divided by the number of pairs and bands, there by that of all
    pixels, so that its size does not depend on the hole's.

    Args:
        image: ``(B, C, H, W)``.
        mask: ``(B, 1, H, W)``; horizontal and vertical neighbours count if it is 1 on both.
    """
    total = pairs = torch.zeros((), dtype=image.dtype, device=image.device)
    for axis in (2, 3):
        size = image.shape[axis] - 1
        both = mask.narrow(axis, 0, size) * mask.narrow(axis, 1, size)
        step = image.narrow(axis, 1, size) - image.narrow(axis, 0, size)
        total = total + (torch.where(both > 0, step, 0).abs() * both).sum((1, 2, 3))
        pairs = pairs + both.sum((1, 2, 3))
    return total / torch.where(pairs > 0, pairs * image.shape[1], 1)


def dilate(mask: Tensor, pixels: int = 1) -> Tensor:
    """The mask ``(B, 1, H, W)`` grown by so many pixels to all sides, corners included."""
    return F.max_pool2d(mask, 2 * pixels + 1, stride=1, padding=pixels)


def _difference(made: Tensor, true: Tensor, valid: Tensor) -> Tensor:
    # Selected, not multiplied, and at once: nothing that lies under an invalid pixel gets through,
    # neither forward nor backward.
    return torch.where(valid > 0, made - true, 0)


def _mean(values: Tensor, valid: Tensor) -> Tensor:
    area = valid.sum((1, 2, 3)) * values.shape[1]
    return (values * valid).sum((1, 2, 3)) / torch.where(area > 0, area, 1)
