"""The games that a generator and a discriminator play, as functions of logits.

Every loss takes the logits of real *and* of made images for both players, as maps ``(B, 1, h, w)``,
and returns a map of the same shape: relativistic losses need both, and patches outside the
measured area can be left out of the mean.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

Heads = Sequence[tuple[Tensor, Sequence[Tensor]]]
Judge = Callable[[Tensor | None, Tensor], Heads]
"""A discriminator: ``(condition, image) -> [(logits, features), ...]``, one entry a head."""


@dataclass(frozen=True)
class AdversarialLoss:
    """A pair of losses.

    Attributes:
        discriminator: ``(real logits, fake logits) -> map`` that the discriminator minimizes.
        generator: the same for the generator.
        relativistic: the generator's loss uses the real logits; where False they may be None,
            which saves a pass through the discriminator.
    """

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor | None, Tensor], Tensor]
    relativistic: bool = False


def vanilla_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """-log D(x) - log(1 - D(G)) (Goodfellow et al. 2014, eq. 1), from logits."""
    return F.softplus(-real) + F.softplus(fake)


def vanilla_generator(real: Tensor | None, fake: Tensor) -> Tensor:
    """-log D(G): the non-saturating form (Goodfellow et al. 2014, section 3), from logits."""
    return F.softplus(-fake)


def _relativistic_generator(real: Tensor | None, fake: Tensor) -> Tensor:
    if real is None:
        raise TypeError("the relativistic generator's loss needs the real logits")
    return F.softplus(real - fake)


LOSSES = {
    "vanilla": AdversarialLoss(vanilla_discriminator, vanilla_generator),
    # (D(x) - 1)^2 + D(G)^2 and (D(G) - 1)^2 (Mao et al. 2017, eq. 9, without its factor 1/2).
    "least_squares": AdversarialLoss(
        lambda real, fake: (real - 1).square() + fake.square(),
        lambda _, fake: (fake - 1).square(),
    ),
    # max(0, 1 - D(x)) + max(0, 1 + D(G)) (Lim and Ye 2017; Miyato et al. 2018, eq. 16) and -D(G).
    "hinge": AdversarialLoss(
        lambda real, fake: F.relu(1 - real) + F.relu(1 + fake),
        lambda _, fake: -fake,
    ),
    # D(G) - D(x) and -D(G) (Arjovsky et al. 2017, eqs. 2 and 3); wants a penalty on gradients.
    "wasserstein": AdversarialLoss(lambda real, fake: fake - real, lambda _, fake: -fake),
    # -log of the odds that the true one of a pair is taken for it (Jolicoeur-Martineau 2019, in
    # the paired form of Huang et al. 2024, eq. 2); the generator plays the same with sides swapped.
    "relativistic": AdversarialLoss(
        lambda real, fake: F.softplus(fake - real), _relativistic_generator, relativistic=True
    ),
}


class Penalty(Protocol):
    """A term of the discriminator's loss that is computed every ``every`` steps."""

    name: str
    every: int
    weight: float

    def __call__(
        self, discriminator: Judge, condition: Tensor | None, real: Tensor, fake: Tensor
    ) -> Tensor:
        """The unweighted term; tensors are float32, outside autocast."""


def full(value: Tensor) -> Tensor:
    """``value`` in float32, or as it is if that is finer: losses are never taken in 16 bits."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


class Verdict:
    """What a discriminator says of real and of made images, asked only when needed.

    Args:
        discriminator: the one that is asked.
        condition: ``(B, C, H, W)`` what the image was made from, or None.
        real: ``(B, C, H, W)`` true images.
        fake: ``(B, C, H, W)`` made images.
        valid: ``(B, 1, H, W)``, 1 = measured; a patch counts by its share of measured pixels.
    """

    def __init__(
        self,
        discriminator: Judge,
        condition: Tensor | None,
        real: Tensor,
        fake: Tensor,
        valid: Tensor,
    ) -> None:
        self._discriminator = discriminator
        self._condition, self._real, self._fake, self._valid = condition, real, fake, valid

    @cached_property
    def real(self) -> Heads:
        """Logits and features of the real images, one entry a head."""
        return self._discriminator(self._condition, self._real)

    @cached_property
    def fake(self) -> Heads:
        """Logits and features of the made images, one entry a head."""
        return self._discriminator(self._condition, self._fake)

    def discriminator_term(self, loss: AdversarialLoss) -> Tensor:
        """The discriminator's loss: mean over patches, samples and heads."""
        heads = zip(self.real, self.fake, strict=True)
        return self._mean([loss.discriminator(full(r), full(f)) for (r, _), (f, _) in heads])

    def generator_term(self, loss: AdversarialLoss) -> Tensor:
        """The generator's loss: mean over patches, samples and heads."""
        reals = [full(r) for r, _ in self.real] if loss.relativistic else [None] * len(self.fake)
        heads = zip(reals, self.fake, strict=True)
        return self._mean([loss.generator(real, full(fake)) for real, (fake, _) in heads])

    def _mean(self, maps: list[Tensor]) -> Tensor:
        means = []
        for values in maps:
            weight = F.adaptive_avg_pool2d(self._valid, (values.shape[-2], values.shape[-1]))
            means.append((values * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3)).clamp(min=1e-6))
        return sum(means[1:], means[0]).mean() / len(means)
