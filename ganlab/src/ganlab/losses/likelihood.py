"""Reconstruction terms as what they are: negative log-likelihoods with a noise level.

A squared error is the log-likelihood of Gaussian noise, an absolute one that of Laplace noise; the
weight that one gives it is a statement about how large the noise is. With D values in an image:

======================  ==================================  ==================
loss                    negative log-likelihood (nats)      best scale
======================  ==================================  ==================
squared error S (mean)  D (S / (2 s**2) + ln(2 pi s**2)/2)  s**2 = S
absolute error A (mean) D (A / b + ln(2 b))                 b = A
======================  ==================================  ==================
"""

import math
from typing import Literal

from torch import Tensor

from ganlab.errors import InputError

Noise = Literal["gaussian", "laplace"]


def negative_log_likelihood(error: Tensor, scale: Tensor | float, noise: Noise) -> Tensor:
    """Nats for each value of an image whose mean error is given: the shape of ``error``.

    Args:
        error: mean squared ("gaussian") or mean absolute ("laplace") difference over the values
            of an image, as :mod:`ganlab.losses.reconstruction` gives it.
        scale: the standard deviation s, or Laplace's b, above 0.
        noise: which of the two.
    """
    log = scale.log() if isinstance(scale, Tensor) else math.log(scale)
    if noise == "gaussian":
        return error / (2 * scale**2) + 0.5 * math.log(2 * math.pi) + log
    return error / scale + math.log(2) + log


def best_scale(error: Tensor, noise: Noise) -> Tensor:
    """The scale that makes errors most likely, a scalar without gradient.

    The root of the mean squared error, or the mean absolute error (Rybkin et al. 2021, eq. 9, for
    Gaussian noise). Put into :func:`negative_log_likelihood`, which then is
    ``(1 + ln(2 pi S)) / 2`` or ``1 + ln(2 A)``, it may stay constant: the derivative by the scale
    vanishes there, so the gradient is that of the logarithm. One scale is shared by the batch.
    """
    mean = error.detach().mean().clamp(min=1e-12)
    return mean.sqrt() if noise == "gaussian" else mean


def implied_beta(scale: float, values: int | None = None) -> float:
    """The weight of the KL divergence beside a squared error with weight 1.

    ``sum of squares + beta * KL`` is the evidence bound for noise of that standard deviation if
    beta is 2 s**2; ``mean of squares + beta * KL`` if it is 2 s**2 / D.

    Args:
        scale: standard deviation s of the noise, in the units of the image.
        values: D, pixels times bands, where the squares are averaged; None where summed.

    Raises:
        InputError: a scale that is not above 0, or no values.
    """
    if not scale > 0 or (values is not None and values < 1):
        raise InputError(f"scale {scale} with {values} values: expected both above 0")
    return 2 * scale**2 / (1 if values is None else values)


def implied_scale(beta: float, values: int | None = None) -> float:
    """The noise that a weight of the KL divergence claims: the inverse of :func:`implied_beta`.

    Raises:
        InputError: a weight that is not above 0, or no values.
    """
    if not beta > 0 or (values is not None and values < 1):
        raise InputError(f"beta {beta} with {values} values: expected both above 0")
    return math.sqrt(beta * (1 if values is None else values) / 2)
