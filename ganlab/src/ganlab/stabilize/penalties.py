"""Penalties on the slope of a discriminator.

What a head says of an image is taken for one number here, the **mean** of its map of logits, as the
games take the mean over patches; and the gradient is that of this number with respect to the
image, never to the condition. With a sum in place of the mean, the squared slope of n patches would
be n^2 times as large, and so another weight would be meant by the same number. The mean does not
free the weight of the image's size altogether: patches that do not overlap share the slope among
them, so an image of four times the area has about a quarter of the squared slope, and takes about
four times the weight to hold each patch as firmly.

Several heads are several discriminators, and the penalty is the mean of those of each. That of the
mean logit would let two heads be as steep as they like in opposite directions.

All pixels count, also where nothing was measured: images come with zeros there, real and made
alike, so that holding the discriminator flat in these places costs it nothing it could use.

Everything is computed in float32 (float64 if the images are), whatever autocast is on around it.
A discriminator has to judge each sample by itself, without batch norm, and twice alike, without
dropout.
"""

import math

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from ganlab.errors import InputError
from ganlab.losses.adversarial import Judge, full


class _Penalty:
    """A penalty ``f(||gradient||)`` at some images; without more, the squared norm.

    Args:
        weight: what the term is multiplied by, with ``every``; at least 0.
        every: updates of the discriminator from one to the next (lazy regularization, Karras et al.
            2020, appendix B).
        step: 0 takes the gradient by autograd, which needs a discriminator that can be
            differentiated twice. Above 0 it is the step s, in network units, of the slope in one
            random direction, ``(D(x + s e) - D(x - s e)) / 2s`` with e from N(0, I): two passes and
            no gradient with respect to the image. Its expected penalty is the exact one but for
            terms of order s**2, those of the third derivative; a single draw scatters widely.

    Raises:
        InputError: a number out of its range.
    """

    name = ""
    factor = 1.0

    def __init__(self, weight: float, *, every: int = 1, step: float = 0.0) -> None:
        if not (0 <= weight < math.inf and every >= 1 and 0 <= step < math.inf):
            raise InputError(
                f"{self.name} of weight {weight}, every {every} steps, differences over {step}: "
                "expected a weight of at least 0, at least 1, and a width of at least 0 (0 = exact)"
            )
        self.weight, self.every, self.step = weight, every, step

    def __call__(
        self, discriminator: Judge, condition: Tensor | None, real: Tensor, fake: Tensor
    ) -> Tensor:
        """The bare term, a scalar, for the discriminator to minimize.

        Args:
            discriminator: ``(condition, image) -> [(logits, features), ...]``.
            condition: ``(B, C1, H, W)``, or None.
            real: ``(B, C2, H, W)`` true images.
            fake: ``(B, C2, H, W)`` made images; no gradient goes back to either.

        Raises:
            InputError: the logits of a head do not depend on the image, as far as autograd sees.
        """
        with torch.autocast(real.device.type, enabled=False):
            given = None if condition is None else full(condition)
            image = self._place(full(real.detach()), full(fake.detach()))
            if self.step:
                heads = [self._estimate(s) for s in self._slopes(discriminator, given, image)]
            else:
                heads = [self._exact(g) for g in _gradients(discriminator, given, image)]
            return torch.stack([head.mean() for head in heads]).mean()

    def _place(self, real: Tensor, fake: Tensor) -> Tensor:
        """Where the slope is taken."""
        raise NotImplementedError

    def _exact(self, gradient: Tensor) -> Tensor:
        """Penalty ``(B,)`` of gradients ``(B, C, H, W)``."""
        return self.factor * gradient.square().flatten(1).sum(1)

    def _estimate(self, slope: Tensor) -> Tensor:
        """The same in expectation, of slopes ``(B,)`` in normal directions: E (g.e)^2 = ||g||^2."""
        return self.factor * slope.square()

    def _slopes(self, judge: Judge, condition: Tensor | None, image: Tensor) -> list[Tensor]:
        aside = self.step * torch.randn_like(image)
        # Spectral normalization goes on with its iteration at every pass: both take one state.
        with parametrize.cached():
            ahead = judge(condition, image + aside)
            behind = judge(condition, image - aside)
        pairs = zip(ahead, behind, strict=True)
        return [(full(a) - full(b)).mean((1, 2, 3)) / (2 * self.step) for (a, _), (b, _) in pairs]


class R1(_Penalty):
    """``E ||grad D(x)||^2 / 2`` at true images; the weight is gamma (Mescheder et al. 2018, eq. 9).

    Arguments as for all penalties: ``weight``, ``every`` and ``step``, see :class:`_Penalty`.
    """

    name = "r1"
    factor = 0.5

    def _place(self, real: Tensor, fake: Tensor) -> Tensor:
        return real


class R2(_Penalty):
    """``E ||grad D(x)||^2 / 2`` at made images, with the weight gamma (Mescheder et al. 2018).

    Arguments as for :class:`R1`.
    """

    name = "r2"
    factor = 0.5

    def _place(self, real: Tensor, fake: Tensor) -> Tensor:
        return fake


class ZeroCentred(_Penalty):
    """``E ||grad D(x)||^2`` between true and made images (Thanh-Tung et al. 2019).

    On the line from each true image to the made one of the same sample, at a uniform random place.
    Arguments as for :class:`R1`.
    """

    name = "zero_centred"

    def _place(self, real: Tensor, fake: Tensor) -> Tensor:
        return _between(real, fake)


class GradientPenalty(_Penalty):
    """``E (||grad D(x)|| - 1)^2`` between true and made images (Gulrajani et al. 2017, eq. 3).

    The norm is that over all pixels and bands of an image, and what it holds at 1 is the slope of
    the mean logit.

    With ``step`` the slope d in one normal direction gives ``d^2 - 2 sqrt(pi / 2) |d| + 1``. As
    E |g.e| = sqrt(2 / pi) ||g||, its expectation is the exact term, and so is that of its gradient;
    a single draw may be as low as 1 - pi / 2. The plain (|d| - 1)^2 would be least for a norm of
    sqrt(2 / pi), 0.8.

    Arguments as for :class:`R1`.
    """

    name = "wgan_gp"

    def _place(self, real: Tensor, fake: Tensor) -> Tensor:
        return _between(real, fake)

    def _exact(self, gradient: Tensor) -> Tensor:
        # The norm of a vanishing gradient has the subgradient 0 in torch, not NaN.
        norm: Tensor = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
        return (norm - 1).square()

    def _estimate(self, slope: Tensor) -> Tensor:
        return slope.square() - math.sqrt(2 * math.pi) * slope.abs() + 1


def _between(real: Tensor, fake: Tensor) -> Tensor:
    share = torch.rand(len(real), 1, 1, 1, dtype=real.dtype, device=real.device)
    return real + share * (fake - real)


def _gradients(discriminator: Judge, condition: Tensor | None, image: Tensor) -> list[Tensor]:
    """Of each head's mean logit with respect to the image, ``(B, C, H, W)``, differentiable."""
    image = image.requires_grad_()
    found = []
    for number, (logits, _) in enumerate(discriminator(condition, image)):
        said = full(logits).mean((1, 2, 3)).sum()
        (gradient,) = torch.autograd.grad(said, image, create_graph=True, allow_unused=True)
        if gradient is None:
            raise InputError(
                f"the logits of head {number} do not depend on the image: something on the way to "
                "them cannot be differentiated; mend it, or take finite differences (step)"
            )
        found.append(gradient)
    return found
