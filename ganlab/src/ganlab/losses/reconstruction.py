"""Distances between a made and a true image, over the measured pixels."""

import torch
from torch import Tensor


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


def _difference(made: Tensor, true: Tensor, valid: Tensor) -> Tensor:
    # Selected, not multiplied, and at once: nothing that lies under an invalid pixel gets through,
    # neither forward nor backward.
    return torch.where(valid > 0, made - true, 0)


def _mean(values: Tensor, valid: Tensor) -> Tensor:
    area = valid.sum((1, 2, 3)) * values.shape[1]
    return (values * valid).sum((1, 2, 3)) / torch.where(area > 0, area, 1)
