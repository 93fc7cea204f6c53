"""How the terms of a loss become one number.

A balance maps (terms, last layer, step) to the scalar that is minimized and the weights it used.
It has a state, so that balances that learn their weights go through checkpoints like any other.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from ganlab.config import BalanceConfig, ScheduleConfig
from ganlab.errors import InputError
from ganlab.losses.likelihood import Noise

Terms = Mapping[str, Tensor]
Weights = dict[str, float | Tensor]


class Balance(Protocol):
    """What the Trainer asks of a balance.

    ``reduce`` makes means over processes, which must all decide alike, and ``scale`` enlarges a
    loss before its backward pass in 16 bits; the Trainer sets both.
    """

    reduce: Callable[[Tensor], Tensor] = staticmethod(lambda value: value)
    scale: Callable[[Tensor], Tensor] = staticmethod(lambda value: value)

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
    if config.shape == "fade_in":
        return progress
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
        used: Weights = {name: self.weight(name) * self.factor(name, step) for name in terms}
        parts = [used[name] * term for name, term in terms.items() if used[name] != 0]
        if not parts:
            raise InputError(f"all weights are 0 at step {step}: {used}")
        return sum(parts[1:], parts[0]), used

    def weight(self, name: str) -> float:
        """The weight given for a term.

        Raises:
            InputError: there is none.
        """
        if name not in self.weights:
            raise InputError(f"no weight for {name!r}; weights: {sorted(self.weights)}")
        return self.weights[name]

    def factor(self, name: str, step: int) -> float:
        """The schedule of a term at one step."""
        return schedule(self.schedules.get(name, ScheduleConfig()), step, self.steps)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def gradient_norms(
    terms: Terms,
    layer: Tensor | None,
    reduce: Callable[[Tensor], Tensor] = lambda value: value,
    scale: Callable[[Tensor], Tensor] = lambda value: value,
) -> dict[str, Tensor]:
    """How hard each term pulls at one layer: norms of the gradients, scalars without graph.

    A backward pass for each term, down to that layer only: cheap where it is the last one. A term
    that does not depend on it has norm 0.

    Args:
        terms: scalars.
        layer: the weight whose gradients are measured.
        reduce: makes means over processes: of the gradients, since a mean of norms is another
            number than the norm for the whole batch.
        scale: enlarges a loss before its backward pass, where small gradients of float16 would
            vanish; norms are those of the loss as it is, infinite where it was too much.

    Raises:
        InputError: there is no layer.
    """
    if layer is None:
        raise InputError("gradients are compared at a last layer; this task names none")
    norms = {}
    for name, term in terms.items():
        found, factor = None, scale(term.new_ones(()))
        if term.requires_grad:
            large = scale(term)
            (found,) = torch.autograd.grad(large, layer, retain_graph=True, allow_unused=True)
        if found is None:
            norms[name] = term.new_zeros(())
        else:
            norms[name] = (reduce(found.detach().float()) / factor).norm()
    return norms


class _Learned(Balance):
    """A balance with numbers of its own, one for each term that it weighs.

    ``fixed`` gives the weights of all other terms, and the place where the own ones start from; a
    term that has weight 0 there stays out.
    """

    def __init__(self, fixed: FixedBalance) -> None:
        self.fixed = fixed
        self.numbers: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"numbers": dict(self.numbers)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.numbers = dict(state["numbers"])

    def _given(self, terms: Terms) -> list[str]:
        """The terms whose fixed weight is not 0."""
        given = [name for name in terms if self.fixed.weight(name) != 0]
        if not given:
            raise InputError(f"all weights are 0: {sorted(terms)}")
        return given

    def _total(self, terms: Terms, weights: Weights) -> tuple[Tensor, Weights]:
        parts = [weights[name] * terms[name] for name in self._given(terms)]
        return sum(parts[1:], parts[0]), weights


class LikelihoodBalance(_Learned):
    """Weights that follow from a likelihood: each error is divided by its own noise level.

    The term of Laplace noise has weight 1 / b, that of Gaussian noise 1 / (2 s**2), in nats for
    each value (:mod:`ganlab.losses.likelihood`). The noise is not chosen but found:

    - "derived": it is the running mean of the error itself, which is its most likely value
      (Rybkin et al. 2021, for Gaussians);
    - "uncertainty": it is learned along with the network, from its log-likelihood (Kendall et
      al. 2018, eqs. 7 and 10), and goes to the same value more slowly.

    Other terms are no likelihoods: an adversarial term can be negative, and a learned scale would
    then fall to 0, its weight grow without end. They keep the weights of ``fixed``, and so their
    proportions, divided by ``values``: how many values of the image one judgement is about.

    Args:
        fixed: weights of the other terms; its schedules apply to all.
        noises: for each likelihood term "gaussian" or "laplace".
        values: pixels times bands behind one logit.
        learned: "uncertainty" in place of "derived".
        rate: step of the logarithms of learned scales.
        memory: share that a running mean keeps at each step.

    Raises:
        InputError: no term is a likelihood.
    """

    def __init__(
        self,
        fixed: FixedBalance,
        noises: Mapping[str, Noise],
        *,
        values: float = 1.0,
        learned: bool = False,
        rate: float = 0.02,
        memory: float = 0.98,
    ) -> None:
        super().__init__(fixed)
        if not noises:
            raise InputError(
                "no term of this task is a likelihood whose noise level is left to find (that of a "
                "VAE is found by --scale, with every balance); leave --balance.kind out"
            )
        self.noises, self.values = dict(noises), values
        self.learned, self.rate, self.memory = learned, rate, memory

    def __call__(
        self, terms: Terms, last_layer: Tensor | None, step: int
    ) -> tuple[Tensor, Weights]:
        weights: Weights = {}
        for name, term in terms.items():
            factor = self.fixed.factor(name, step)
            if name in self.noises and self.fixed.weight(name) != 0:
                weights[name] = factor * self._precision(name, term)
            else:
                weights[name] = self.fixed.weight(name) * factor / self.values
        return self._total(terms, weights)

    def _precision(self, name: str, term: Tensor) -> Tensor:
        """What a unit of the error costs; then the scale moves on."""
        error = self.reduce(term.detach().float()).clamp(min=1e-8)
        # Out of a checkpoint they come on the CPU.
        log_error = self.numbers.get(name, error.log()).to(error)
        if self.learned:
            # The derivative of error / scale + ln(scale) by ln(scale).
            pull = error * torch.exp(-log_error) - 1
            self.numbers[name] = log_error + self.rate * pull.clamp(-10, 10)
        else:
            mean = self.memory * log_error.exp() + (1 - self.memory) * error
            self.numbers[name] = mean.log()
        # Numbers are ln b, or ln s**2: the mean absolute, or the mean squared error.
        return torch.exp(-log_error) * (0.5 if self.noises[name] == "gaussian" else 1.0)


class GradNormBalance(_Learned):
    """All terms pull equally hard, those that lag behind harder (Chen et al. 2018).

    Every step the weights move so that the weighted gradient of term i at the last layer comes
    nearer to a part of all pulls in proportion to ``r_i**alpha``, where r_i is the term's loss as a
    share of its first one (their eqs. 1 and 2, up to a factor that all targets have in common). The
    weights move in their logarithms and by shares of the mean pull, which needs no rate in units of
    a gradient; their sum stays.

    Args:
        fixed: where the weights start; terms with weight 0 stay out, and terms that do not reach
            the last layer (those of an earlier stage) keep theirs.
        alpha: how much terms that lag behind gain; 0 makes the pulls equal. Terms that were
            ever not above 0, as adversarial ones can be, have r = 1.
        rate: step of the logarithms.
    """

    def __init__(self, fixed: FixedBalance, *, alpha: float = 0.5, rate: float = 0.02) -> None:
        super().__init__(fixed)
        self.alpha, self.rate = alpha, rate

    def __call__(
        self, terms: Terms, last_layer: Tensor | None, step: int
    ) -> tuple[Tensor, Weights]:
        names = self._given(terms)
        given = {name: terms[name] for name in names}
        found = gradient_norms(given, last_layer, self.reduce, self.scale)
        norms = torch.stack([found[name] for name in names])
        losses = self.reduce(torch.stack([terms[name].detach().float() for name in names]))
        if not self.numbers:
            start = torch.tensor([math.log(self.fixed.weight(name)) for name in names])
            self.numbers = {"logs": start, "first": losses}
        # Out of a checkpoint they come on the CPU.
        logs, first = (self.numbers[key].to(norms) for key in ("logs", "first"))
        self.numbers["first"] = first
        pulls = (norms > 0) & norms.isfinite()
        weighted = torch.where(pulls, logs.exp() * norms, 0)
        positive = (losses > 0) & (first > 0)
        left = torch.where(positive, losses / torch.where(positive, first, 1), 1.0)
        share = torch.where(pulls, left**self.alpha, 0)
        mean = weighted.sum() / pulls.sum().clamp(min=1)
        target = weighted.sum() * share / share.sum()
        used = dict(zip(names, logs.exp().unbind(), strict=True))
        moved = logs - self.rate * (weighted - target) / mean.clamp(min=1e-12)
        kept = torch.where(pulls, logs.exp(), 0).sum() / torch.where(pulls, moved.exp(), 0).sum()
        self.numbers["logs"] = torch.where(pulls, moved + kept.log(), logs)
        weights: Weights = {n: used.get(n, 0.0) for n in terms}
        factors = {name: self.fixed.factor(name, step) for name in names}
        return self._total(terms, weights | {n: f * used[n] for n, f in factors.items()})


class AdaptiveBalance(_Learned):
    """The adversarial term pulls as hard as all others together (Esser et al. 2021, eq. 7).

    Its weight is ``||grad others|| / (||grad adversarial|| + 1e-6)`` at the last layer, at most
    10,000, times its fixed weight; 0 before ``start``. The other terms keep their fixed weights.

    Args:
        fixed: weights of all terms; that of the adversarial one is a factor here.
        start: first step at which the adversarial term counts.
    """

    def __init__(self, fixed: FixedBalance, *, start: int = 0) -> None:
        super().__init__(fixed)
        self.start = start

    def __call__(
        self, terms: Terms, last_layer: Tensor | None, step: int
    ) -> tuple[Tensor, Weights]:
        rest = {name: term for name, term in terms.items() if name != ADVERSARIAL}
        if ADVERSARIAL not in terms or not rest:
            raise InputError(
                f"the adaptive balance weighs {ADVERSARIAL!r} against others; found {sorted(terms)}"
            )
        others, weights = self.fixed(rest, last_layer, step)
        if step < self.start:
            return others, {**weights, ADVERSARIAL: 0.0}
        game = terms[ADVERSARIAL]
        both = {"others": others, "game": game}
        pulls = gradient_norms(both, last_layer, self.reduce, self.scale)
        ratio = (pulls["others"] / (pulls["game"] + 1e-6)).clamp(max=1e4)
        ratio = torch.where((pulls["others"] + pulls["game"]).isfinite(), ratio, 0)
        factor = self.fixed.weight(ADVERSARIAL) * self.fixed.factor(ADVERSARIAL, step)
        weight = factor * ratio
        return others + weight * game, {**weights, ADVERSARIAL: weight}


ADVERSARIAL = "adversarial"


def choose(
    config: BalanceConfig,
    fixed: FixedBalance,
    noises: Mapping[str, Noise],
    values: float,
    steps: int,
) -> Balance:
    """The balance that a configuration asks for.

    Args:
        config: which one.
        fixed: the task's own weights.
        noises: which of its terms are likelihoods, and of which noise.
        values: pixels times bands behind one logit of its discriminator.
        steps: length of the training.

    Raises:
        InputError: a setting out of its range, or nothing is left to train on at the last step.
    """
    if not (config.rate >= 0 and config.alpha >= 0 and 0 <= config.start <= 1):
        raise InputError(f"{config}: expected rate >= 0, alpha >= 0, 0 <= start <= 1")
    # Schedules only rise or only fall; a training must not end before its last step.
    left = [n for n, weight in fixed.weights.items() if weight * fixed.factor(n, steps - 1)]
    if not left:
        raise InputError(
            f"all weights are 0 at the last of {steps} steps: {sorted(fixed.weights)}; give "
            "another term a weight, or let the schedule end above 0"
        )
    if config.kind == "fixed":
        return fixed
    if config.kind == "gradnorm":
        return GradNormBalance(fixed, alpha=config.alpha, rate=config.rate)
    if config.kind == "adaptive":
        if not fixed.weights.get(ADVERSARIAL) or left == [ADVERSARIAL]:
            raise InputError(
                f"balance.kind adaptive weighs {ADVERSARIAL!r} against others; found {left} at the "
                f"last of {steps} steps: give both a weight, and let a reconstruction_schedule end "
                "above 0, or take another balance"
            )
        return AdaptiveBalance(fixed, start=round(config.start * steps))
    learned = config.kind == "uncertainty"
    return LikelihoodBalance(fixed, noises, values=values, learned=learned, rate=config.rate)
