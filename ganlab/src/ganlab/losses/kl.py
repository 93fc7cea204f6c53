"""How far one Gaussian lies from another, in closed form (nats)."""

import math

import torch
from torch import Tensor

from ganlab.errors import InputError


def kl(
    mean: Tensor,
    log_variance: Tensor,
    other_mean: Tensor | float = 0.0,
    other_log_variance: Tensor | float = 0.0,
) -> Tensor:
    """KL divergence of a diagonal Gaussian from another one, dimension by dimension.

    With variances v and w, ``(ln w - ln v + (v + (m - n)**2) / w - 1) / 2`` for every dimension;
    the sum over the dimensions is the divergence of the whole. Without the other one it is that
    from the standard normal, ``(v + m**2 - 1 - ln v) / 2`` (Kingma and Welling 2014, appendix B).

    Args:
        mean: any shape.
        log_variance: natural logarithms of the variances, the same shape.
        other_mean: of the second Gaussian.
        other_log_variance: of the second Gaussian.

    Returns:
        Nats for each dimension, at least 0, in the shape of ``mean``, float32 or finer.
    """
    wide = torch.promote_types(mean.dtype, torch.float32)
    mean, log_variance = mean.to(wide), log_variance.to(wide)
    # expm1: near equality the divergence is a small difference of large numbers.
    ratio = log_variance - other_log_variance
    distance = (mean - other_mean).square() * _exp(-other_log_variance)
    return 0.5 * (torch.expm1(ratio) - ratio + distance)


def _exp(value: Tensor | float) -> Tensor | float:
    return value.exp() if isinstance(value, Tensor) else math.exp(value)


def free_bits(nats: Tensor, free: float) -> Tensor:
    """The divergence of which ``free`` nats a dimension cost nothing: a scalar.

    A dimension whose mean over the batch is below ``free`` counts as ``free``, and so has no
    gradient: it is not pressed to say nothing at all (Kingma et al. 2016, appendix C.8). This
    couples the batch. With 0 it is the mean over samples of the sum over dimensions.

    Args:
        nats: ``(B, ...)`` from :func:`kl`.
        free: nats for each dimension, at least 0.

    Raises:
        InputError: ``free`` is negative.
    """
    if free < 0:
        raise InputError(f"free bits {free}: expected at least 0 nats")
    return nats.mean(0).clamp(min=free).sum()
