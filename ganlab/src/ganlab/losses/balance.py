"""How the terms of a loss become one number.

A balance maps (terms, last layer, step) to the scalar that is minimized and the weights it used.
It has a state, so that balances that learn their weights go through checkpoints like any other.
"""

import math
from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from ganlab.config import ScheduleConfig
from ganlab.errors import InputError

Terms = Mapping[str, Tensor]
Weights = dict[str, float | Tensor]


class Balance(Protocol):
    """What the Trainer asks of a balance."""

    def __call__(
        self, terms: Terms, last_layer: Tensor | None, step: int
    ) -> tuple[Tensor, Weights]:
        """The weighted sum of the terms, and the weight that each one had."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Return to a state given by ``state_dict``."""


def schedule(config: ScheduleConfig, step: int, steps: int) -> float:
    """The factor of a schedule at one step of a training of ``steps`` steps."""
    if config.shape == "constant":
        return 1.0
    if not 0 <= config.start <= config.stop <= 1:
        raise InputError(f"{config}: expected 0 <= start <= stop <= 1")
    begin, finish = config.start * steps, config.stop * steps
    progress = min(max((step - begin) / max(finish - begin, 1e-9), 0.0), 1.0)
    if config.shape == "cosine":
        progress = (1 - math.cos(math.pi * progress)) / 2
    end = 0.0 if config.shape == "fade_out" else config.end
    return 1.0 + (end - 1.0) * progress


class FixedBalance(Balance):
    """Weights given beforehand, each times its schedule.

    Args:
        weights: a weight for each term; a term with weight 0 is logged but not trained on.
        schedules: schedules for some of the terms.
        steps: length of the training, for the schedules.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        schedules: Mapping[str, ScheduleConfig] | None = None,
        steps: int = 1,
    ) -> None:
        self.weights, self.schedules, self.steps = dict(weights), dict(schedules or {}), steps

    def __call__(
        self, terms: Terms, last_layer: Tensor | None, step: int
    ) -> tuple[Tensor, Weights]:
        if missing := set(terms) - set(self.weights):
            raise InputError(f"no weight for {sorted(missing)}; weights: {sorted(self.weights)}")
        used: Weights = {}
        for name in terms:
            form = self.schedules.get(name, ScheduleConfig())
            used[name] = self.weights[name] * schedule(form, step, self.steps)
        parts = [used[name] * term for name, term in terms.items() if used[name] != 0]
        if not parts:
            raise InputError(f"all weights are 0 at step {step}: {used}")
        return sum(parts[1:], parts[0]), used

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
