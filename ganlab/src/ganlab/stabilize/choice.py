"""The stabilizers that a configuration asks for, built for the two players of one task."""

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ganlab.config import StabilizersConfig
from ganlab.errors import InputError
from ganlab.losses.adversarial import Penalty
from ganlab.losses.balance import ADVERSARIAL, Terms, schedule
from ganlab.networks.blocks import MinibatchDeviation, MinibatchDiscrimination
from ganlab.networks.patchgan import diversify
from ganlab.stabilize import penalties, spectral
from ganlab.stabilize.gates import Gate
from ganlab.stabilize.replay import HistoricalAverage, Replay

PENALTIES = {
    "r1": penalties.R1,
    "r2": penalties.R2,
    "wgan_gp": penalties.GradientPenalty,
    "zero_centred": penalties.ZeroCentred,
}
RANGES = {"loss_ratio": (0.2, 5.0), "accuracy": (0.5, 0.9)}
"""Where a gate leaves both players in the game, if no range is given."""

Seen = tuple[Tensor | None, Tensor, Tensor, Tensor]
"""What a discriminator judges: condition, real, fake, and which pixels are valid."""


class Regularizer(Protocol):
    """A term of one player's loss that depends on its weights alone."""

    name: str
    weight: float

    def __call__(self) -> Tensor:
        """The unweighted term."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Return to a state given by ``state_dict``."""


def prepare(config: StabilizersConfig, discriminator: nn.Module | None) -> None:
    """Put the layers that a configuration asks for into a discriminator, in place, once.

    To be called before its weights are loaded, and before optimizers are made.
    """
    if discriminator is None:
        return
    layers = (MinibatchDeviation, MinibatchDiscrimination)
    there = any(isinstance(module, layers) for module in discriminator.modules())
    if config.diversity != "none" and not there:
        diversify(discriminator, config.diversity)
    if config.spectral == "normalization":
        spectral.normalize(discriminator)


class Stabilizers:
    """What the Trainer asks at each step; without a discriminator there is nothing to be asked.

    Args:
        config: which ones.
        generator: its weights are averaged for ``history``.
        discriminator: the opponent, or None.
        steps: length of the training, for schedules.
        processes: how many train together.

    Raises:
        InputError: a combination that cannot work, by its name.

    Attributes:
        penalties: terms of the discriminator's loss that need images.
        regularizers: terms of each player's loss that need its weights alone.
        gate: decides who rests, or None.
        judged: how often the discriminator was updated.
    """

    def __init__(
        self,
        config: StabilizersConfig,
        generator: nn.Module,
        discriminator: nn.Module | None,
        *,
        steps: int = 1,
        processes: int = 1,
    ) -> None:
        self.config, self.steps, self.judged = config, steps, 0
        self.penalties: list[Penalty] = []
        self.regularizers: dict[str, list[Regularizer]] = {"generator": [], "discriminator": []}
        self._averages: dict[str, HistoricalAverage] = {}
        self.gate: Gate | None = None
        self.replay: Replay | None = None
        if config == StabilizersConfig():
            return
        if discriminator is None:
            raise InputError(
                f"{', '.join(_asked(config))}: these act on a discriminator, and this task has "
                "none; give its adversarial term a weight, or leave them out"
            )
        _check(config, discriminator, processes)
        weight, every, width = config.penalty_weight, config.penalty_every, config.penalty_step
        self.penalties = [
            PENALTIES[kind](weight, every=every, step=width) for kind in config.penalties
        ]
        if config.spectral == "regularization":
            term = spectral.SpectralRegularization(discriminator, config.spectral_weight)
            self.regularizers["discriminator"].append(term)
        if config.history > 0:
            for name, player in (("generator", generator), ("discriminator", discriminator)):
                self._averages[name] = HistoricalAverage(player, config.history)
                self.regularizers[name].append(self._averages[name])
        if config.replay > 0:
            self.replay = Replay(config.replay)
        if config.gate != "none":
            low, high = RANGES[config.gate] if config.gate_range == (0, 0) else config.gate_range
            self.gate = Gate(config.gate, low, high, config.gate_every)

    def open(self, step: int) -> tuple[bool, bool]:
        """Whether (generator, discriminator) are updated in one step."""
        generator, discriminator = (True, True) if self.gate is None else self.gate.open
        due = (step + 1) % max(self.config.critic, 1) == 0 or not discriminator
        return generator and due, discriminator

    def shown(self, seen: Seen, step: int, learns: bool) -> Seen:
        """What a discriminator is shown: partly of the past if it learns from it, and noisy."""
        config = self.config
        if learns and self.replay is not None:
            seen = self.replay(*seen)
        width = config.instance_noise * schedule(config.instance_noise_schedule, step, self.steps)
        if width == 0:
            return seen
        condition, real, fake, valid = seen
        where = nn.functional.interpolate(valid, real.shape[-2:])
        real, fake = (image + width * where * torch.randn_like(image) for image in (real, fake))
        return condition, real, fake, valid

    def observe(
        self, made: Terms, judged: Terms, accuracy: Tensor | None, plays: bool, judges: bool
    ) -> dict[str, float | Tensor]:
        """Take note of one step of the game; gives what is worth a line of metrics.

        Args:
            made: the generator's terms.
            judged: the discriminator's terms.
            accuracy: share of patches that it judged rightly.
            plays: whether the generator was updated.
            judges: whether the discriminator was.
        """
        noted: dict[str, float | Tensor] = {}
        if accuracy is not None:
            noted["discriminator/accuracy"] = accuracy
        if self.gate is not None or self.config.critic > 1:
            noted |= {"generator/open": float(plays), "discriminator/open": float(judges)}
        if self.gate is not None:
            if ADVERSARIAL not in made or accuracy is None:
                raise InputError(
                    f"gate {self.config.gate}: it compares the players' {ADVERSARIAL!r} terms, and "
                    f"the generator has only {sorted(made)}"
                )
            self.gate.observe(made[ADVERSARIAL], judged[ADVERSARIAL], accuracy)
        return noted

    def updated(self, player: str) -> None:
        """Note that a player's weights have moved."""
        self.judged += player == "discriminator"
        if player in self._averages:
            self._averages[player].update()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold."""
        terms = {name: [t.state_dict() for t in ts] for name, ts in self.regularizers.items()}
        return {
            "regularizers": terms,
            "replay": self.replay and self.replay.state_dict(),
            "gate": self.gate and self.gate.state_dict(),
            "judged": self.judged,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Return to a state given by ``state_dict``; older ones leave ``judged`` as it is."""
        self.judged = state.get("judged", self.judged)
        for name, terms in self.regularizers.items():
            for term, values in zip(terms, state["regularizers"][name], strict=True):
                term.load_state_dict(values)
        for part in ("replay", "gate"):
            if getattr(self, part) is not None:
                getattr(self, part).load_state_dict(state[part])


def _asked(config: StabilizersConfig) -> list[str]:
    """Names of the settings that differ from their defaults."""
    default = vars(StabilizersConfig())
    return [name for name, value in vars(config).items() if value != default[name]]


def _check(config: StabilizersConfig, discriminator: nn.Module, processes: int) -> None:
    least = {"penalty_weight": 0, "penalty_every": 1, "penalty_step": 0, "spectral_weight": 0}
    least |= {"replay": 0, "history": 0, "gate_every": 1, "critic": 1, "instance_noise": 0}
    for name, value in least.items():
        if not getattr(config, name) >= value:
            raise InputError(f"{name} is {getattr(config, name)}; it must be at least {value}")
    if not 0 <= config.smoothing < 0.5:
        raise InputError(f"smoothing is {config.smoothing}; expected at least 0, below 0.5")
    couples = any(isinstance(module, _BatchNorm) for module in discriminator.modules())
    if config.penalties and couples:
        raise InputError(
            f"penalties {', '.join(config.penalties)} with batch norm in the discriminator: the "
            "slope of one image's logit would depend on the others; set --discriminator.norm to "
            "channel, instance or none"
        )
    if config.penalties and config.penalty_step > 0 and config.diversity != "none":
        raise InputError(
            f"penalty_step {config.penalty_step} with diversity {config.diversity}: differences "
            "would take in the slopes across samples; set penalty_step to 0"
        )
    if config.replay and processes > 1:
        raise InputError(
            f"replay with {processes} processes: each would remember other tiles, and a "
            "checkpoint holds those of one; train in one process or without replay"
        )
