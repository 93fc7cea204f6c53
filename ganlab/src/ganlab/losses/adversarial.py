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

from ganlab.errors import InputError

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
        smoothed: ``(real logits, fake logits, doubt) -> map``: the discriminator's loss if true
            images count as true with 1 - doubt only; None where the game has no labels.
        boundary: logit above which an image is taken for true; None where only the order of two
            logits has a meaning.
    """

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor | None, Tensor], Tensor]
    relativistic: bool = False
    smoothed: Callable[[Tensor, Tensor, float], Tensor] | None = None
    boundary: float | None = None


def vanilla_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """-log D(x) - log(1 - D(G)) (Goodfellow et al. 2014, eq. 1), from logits."""
    return F.softplus(-real) + F.softplus(fake)


def _vanilla_smoothed(real: Tensor, fake: Tensor, doubt: float) -> Tensor:
    # Cross-entropy with the label 1 - doubt: softplus(real) - (1 - doubt) real.
    return F.softplus(-real) + doubt * real + F.softplus(fake)


def vanilla_generator(real: Tensor | None, fake: Tensor) -> Tensor:
    """-log D(G): the non-saturating form (Goodfellow et al. 2014, section 3), from logits."""
    return F.softplus(-fake)


def _relativistic_generator(real: Tensor | None, fake: Tensor) -> Tensor:
    if real is None:
        raise TypeError("the relativistic generator's loss needs the real logits")
    return F.softplus(real - fake)


LOSSES = {
    "vanilla": AdversarialLoss(
        vanilla_discriminator, vanilla_generator, smoothed=_vanilla_smoothed, boundary=0.0
    ),
    # (D(x) - 1)^2 + D(G)^2 and (D(G) - 1)^2 (Mao et al. 2017, eq. 9, without its factor 1/2).
    "least_squares": AdversarialLoss(
        lambda real, fake: (real - 1).square() + fake.square(),
        lambda _, fake: (fake - 1).square(),
        smoothed=lambda real, fake, doubt: (real - 1 + doubt).square() + fake.square(),
        boundary=0.5,
    ),
    # max(0, 1 - D(x)) + max(0, 1 + D(G)) (Lim and Ye 2017; Miyato et al. 2018, eq. 16) and -D(G).
    "hinge": AdversarialLoss(
        lambda real, fake: F.relu(1 - real) + F.relu(1 + fake),
        lambda _, fake: -fake,
        boundary=0.0,
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
        doubt: by how much the discriminator's label of true images is smoothed.

    Attributes:
        seen: (condition, real, fake, valid).
        accuracy: share of patches, of both kinds, that were judged rightly (of pairs that were put
            in the right order, in games without a boundary); None before ``discriminator_term``.
            Patches that are the same in both images, as known pixels are, do not count: nobody
            could tell them apart. A sample without any other has 1/2.
    """

    def __init__(
        self,
        discriminator: Judge,
        condition: Tensor | None,
        real: Tensor,
        fake: Tensor,
        valid: Tensor,
        doubt: float = 0.0,
    ) -> None:
        self._discriminator, self._doubt = discriminator, doubt
        self.accuracy: Tensor | None = None
        self.seen = condition, real, fake, valid

    @cached_property
    def real(self) -> Heads:
        """Logits and features of the real images, one entry a head."""
        return self._discriminator(self.seen[0], self.seen[1])

    @cached_property
    def fake(self) -> Heads:
        """Logits and features of the made images, one entry a head."""
        return self._discriminator(self.seen[0], self.seen[2])

    def discriminator_term(self, loss: AdversarialLoss) -> Tensor:
        """The discriminator's loss: mean over patches, samples and heads.

        Raises:
            InputError: labels are to be smoothed, and the game has none.
        """
        heads = zip(self.real, self.fake, strict=True)
        logits = [(full(real), full(fake)) for (real, _), (fake, _) in heads]
        self.accuracy = self._accuracy(loss, [(r.detach(), f.detach()) for r, f in logits])
        if not self._doubt:
            return self._mean([loss.discriminator(real, fake) for real, fake in logits])
        if loss.smoothed is None:
            raise InputError(
                f"smoothing {self._doubt}: this game has no labels to smooth; take vanilla or "
                "least_squares, or leave smoothing out"
            )
        return self._mean([loss.smoothed(real, fake, self._doubt) for real, fake in logits])

    def generator_term(self, loss: AdversarialLoss) -> Tensor:
        """The generator's loss: mean over patches, samples and heads."""
        reals = [full(r) for r, _ in self.real] if loss.relativistic else [None] * len(self.fake)
        heads = zip(reals, self.fake, strict=True)
        return self._mean([loss.generator(real, full(fake)) for real, (fake, _) in heads])

    def _accuracy(self, loss: AdversarialLoss, logits: list[tuple[Tensor, Tensor]]) -> Tensor:
        sums = []
        for real, fake in logits:
            weight = self._weight(real) * (real != fake)
            right = (_rightly(loss, real, fake) * weight).sum((1, 2, 3))
            sums.append(torch.stack([right, weight.sum((1, 2, 3))]))
        right, count = torch.stack(sums).sum(0)
        # Sample by sample, so that batches and processes add up.
        accuracy: Tensor = ((right + 0.5e-6) / (count + 1e-6)).mean()
        return accuracy

    def _weight(self, logits: Tensor) -> Tensor:
        """Share of measured pixels of each patch."""
        return F.adaptive_avg_pool2d(self.seen[3], (logits.shape[-2], logits.shape[-1]))

    def _mean(self, maps: list[Tensor]) -> Tensor:
        means = []
        for values in maps:
            weight = self._weight(values)
            means.append((values * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3)).clamp(min=1e-6))
        return sum(means[1:], means[0]).mean() / len(means)


def _rightly(loss: AdversarialLoss, real: Tensor, fake: Tensor) -> Tensor:
    if loss.boundary is None:
        return (real > fake).to(real)
    return ((real > loss.boundary).to(real) + (fake <= loss.boundary).to(real)) / 2
