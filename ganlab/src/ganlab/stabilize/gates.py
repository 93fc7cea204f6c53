"""Which player rests while the other catches up."""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from ganlab.errors import InputError

MARGIN = 0.1
"""How far from a bound to the middle of the range the measure must come before a rest ends."""


class Gate:
    """Pauses the player that is ahead, until the other has caught up.

    Every ``every`` steps one measure is taken from the means over these steps:

    - "loss_ratio": the generator's adversarial loss divided by the discriminator's. It and its
      range are taken in logarithms, where twice and half are equally far from 1;
    - "accuracy": the share of patches that the discriminator judges rightly.

    Above the range the discriminator rests, below it the generator; inside nobody does, and never
    both. A rest ends only when the measure is back inside by ``MARGIN`` of the way from the bound
    to the middle of the range (geometric for the ratio), so that a measure that trembles at a bound
    does not open and close the gate at each decision. Numbers that are not finite, and a
    discriminator's loss that is not positive, say nothing: then nobody rests. A generator's loss
    that is not positive, as of a hinge game, puts the ratio below every range.

    Args:
        kind: the measure.
        low: below it the generator rests; above 0 for the ratio.
        high: above it the discriminator rests; at most 1 for the accuracy.
        every: steps between decisions.

    Raises:
        InputError: no measure can lie within the range, or on both of its sides; ``every`` is not
            positive.

    Attributes:
        open: whether (generator, discriminator) are updated in the coming step.
        reduce: makes means over processes, which must all decide alike; the Trainer sets it.
    """

    reduce: Callable[[Tensor], Tensor] = staticmethod(lambda value: value)

    def __init__(
        self, kind: Literal["loss_ratio", "accuracy"], low: float, high: float, every: int
    ) -> None:
        if kind == "loss_ratio" and not 0 < low < high < math.inf:
            raise InputError(f"gate range {low}, {high}: expected 0 < low < high for a ratio")
        if kind == "accuracy" and not 0 <= low < high <= 1:
            raise InputError(f"gate range {low}, {high}: expected 0 <= low < high <= 1 for a share")
        if every < 1:
            raise InputError(f"a gate that decides every {every} steps never does; give 1 or more")
        self.kind, self.every = kind, every
        ratio = kind == "loss_ratio"
        self._low, self._high = (math.log(low), math.log(high)) if ratio else (low, high)
        self.open = (True, True)
        self._count = 0
        self._sums: Tensor | None = None

    def observe(self, generator: Tensor, discriminator: Tensor, accuracy: Tensor) -> None:
        """Take in one step, also one at which a player rested.

        Waits for the device at a decision only.

        Args:
            generator: its adversarial loss, a scalar.
            discriminator: its adversarial loss, a scalar.
            accuracy: share of patches that the discriminator judged rightly, a scalar in [0, 1].
        """
        numbers = (generator, discriminator, accuracy)
        step = torch.stack([number.detach().float() for number in numbers])
        # Out of a checkpoint they come on the CPU.
        self._sums = step if self._sums is None else self._sums.to(step) + step
        self._count += 1
        if self._count == self.every:
            means = self.reduce(self._sums / self.every).tolist()
            self.open = self._decide(self._measure(*means))
            self._count, self._sums = 0, None

    def _measure(self, generator: float, discriminator: float, accuracy: float) -> float:
        """What is compared with the range; NaN if the numbers say nothing."""
        if self.kind == "accuracy":
            return accuracy if math.isfinite(accuracy) else math.nan
        if not (0 < discriminator < math.inf and math.isfinite(generator)):
            return math.nan
        return math.log(generator) - math.log(discriminator) if generator > 0 else -math.inf

    def _decide(self, measure: float) -> tuple[bool, bool]:
        generator_open, discriminator_open = self.open
        margin = MARGIN * (self._high - self._low) / 2
        if measure > self._high - (0 if discriminator_open else margin):
            return True, False
        if measure < self._low + (0 if generator_open else margin):
            return False, True
        return True, True

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold; all processes ask together, since sums are reduced."""
        sums = None if self._sums is None else self.reduce(self._sums).clone()
        return {"open": list(self.open), "count": self._count, "sums": sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Return to a state given by ``state_dict``; it may lie on another device."""
        generator, discriminator = state["open"]
        self.open = (generator, discriminator)
        self._count, self._sums = state["count"], state["sums"]
