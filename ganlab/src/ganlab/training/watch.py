"""What a monitor sees beside the losses: made images, and where numbers stop being finite."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ganlab import metrics
from ganlab.data.batches import Batch
from ganlab.tasks.base import Task, Tensors, fitted
from ganlab.training.monitor import diagnose
from ganlab.training.records import FINDINGS, append_line, read_lines

SMOOTH = 1e-4
"""Checkerboards below this share of the truth's variance do not count: nobody sees them, and the
ratio to a truth that has none means nothing."""


class Watch:
    """Looks at a training from time to time, and tells each kind of finding once.

    Args:
        run: the run directory; what was told is in its ``findings.jsonl``.
        task: what is trained.
        every: steps between looks, each at the next line of metrics; 0 for none.
        log_every: steps between lines of metrics.
        tiles: a batch of the training and, if there is one, of the validation, not prepared.
    """

    def __init__(
        self, run: Path, task: Task, every: int, log_every: int, tiles: tuple[Batch, Batch | None]
    ) -> None:
        self.path, self.task, self.tiles = run / FINDINGS, task, tiles
        self.every, self.log_every = every, log_every
        self.lines = read_lines(run / "metrics.jsonl")
        self.told = {line["kind"] for line in read_lines(self.path)}

    def look(self, step: int) -> dict[str, float]:
        """Measures for the line of this step, if it is time; see :func:`look`."""
        if not self._due(step):
            return {}
        return look(self.task, self.task.generator, *self.tiles)

    def tell(self, step: int, values: Mapping[str, float]) -> None:
        """Take note of a line of metrics; warn of what is new in the run so far."""
        self.lines.append({"step": step, **values})
        for finding in diagnose(self.lines) if self._due(step) else ():
            if finding.kind not in self.told:
                self.told.add(finding.kind)
                append_line(self.path, {"step": step, **asdict(finding)})
                told = f"step {step}: {finding.kind}. {finding.evidence} {finding.remedy}"
                warnings.warn(f"{told} (ganlab doctor says more)", stacklevel=2)

    def _due(self, step: int) -> bool:
        return self.every > 0 and step % self.every < self.log_every


def look(
    task: Task, generator: nn.Module, train: Batch, validation: Batch | None = None
) -> dict[str, float]:
    """Measure what a generator makes of tiles, relative to what is true there.

    All are ratios without a unit, over the part of the tiles that the task names first (the hole,
    say); those that do not exist for a task or a batch are left out, so that every number is
    finite, except where the generator itself is not.

    - ``look/contrast``: standard deviation inside the images, made over true.
    - ``look/diversity``: mean distance between the images of a batch, made over true.
    - ``look/checkerboard``: its energy at a period of two pixels, made over true.
    - ``look/error/train`` and ``look/error/validation``: mean absolute error, over that of one
      colour for all pixels. 1 is what a blank image gets.
    - ``look/variety``: mean distance of two answers to one question, over that between true images
      (tasks with noise).
    - ``look/imagined``: the diversity of samples from nothing but noise (tasks that have them).

    Args:
        task: says what is made, from what, and which part counts; its mode is left as evaluation.
        generator: the network to look at, in place of the task's own.
        train: tiles of the training, not prepared; always the same ones.
        validation: tiles that are not trained on.
    """
    usual, task.generator = task.generator, generator
    task.eval()
    try:
        # A compiled network would be compiled once more for these few images.
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            seen = _measure(task, train)
            if validation is not None:
                seen["error/validation"] = _error(*_made(task, validation, 0))
    finally:
        task.generator = usual
    if not seen:
        return {}
    values = torch.stack([value.float() for value in seen.values()]).tolist()
    return {f"look/{name}": v for name, v in zip(seen, values, strict=True) if v == v}


def _measure(task: Task, batch: Batch) -> Tensors:
    made, true, counted = _made(task, batch, 0)
    apart = _apart(true, counted)
    seen = {
        "error/train": _error(made, true, counted),
        "contrast": _over(_variance(made, counted), _variance(true, counted)).sqrt(),
        "diversity": _over(_apart(made, counted), apart),
    }
    if min(true.shape[-2:]) > 8:
        floor = SMOOTH * _variance(true, counted)
        energy = [metrics.checkerboard(image, counted).nanmean() + floor for image in (made, true)]
        seen["checkerboard"] = _over(*energy)
    if task.noise:
        other, _, _ = _made(task, batch, 1)
        seen["variety"] = _over(_mean((made - other).abs(), counted), apart)
    samples = task.imagine(batch, 0)
    if samples is not None:
        seen["imagined"] = _over(_apart(samples, counted), apart)
    return seen


def _made(task: Task, batch: Batch, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """The first output, made and true, and where it counts ``(B, 1, H, W)``."""
    batch, output = task.prepare(batch), task.outputs[0]
    made, true = task.sample(batch, seed)[output.name].float(), output.enter(batch[output.name])
    counted, part = fitted(batch["valid"], true), next(iter(task.parts(batch).values()))
    return made, true, counted if part is None else counted * fitted(part, true)


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    weight = weight.expand_as(values)
    return (values * weight).sum() / weight.sum()


def _error(made: Tensor, true: Tensor, counted: Tensor) -> Tensor:
    weights = counted.sum().clamp(min=1)
    colour = (true * counted).sum((0, 2, 3), keepdim=True) / weights
    return _over(_mean((made - true).abs(), counted), _mean((true - colour).abs(), counted))


def _over(value: Tensor, truth: Tensor) -> Tensor:
    """Their ratio; NaN, which is left out, where the truth is flat and nothing can be compared."""
    return torch.where(truth > 0, value / truth, torch.nan)


def _variance(image: Tensor, counted: Tensor) -> Tensor:
    """Inside each image, then over images and bands."""
    total = counted.sum((2, 3), keepdim=True).clamp(min=1)
    mean = (image * counted).sum((2, 3), keepdim=True) / total
    return _mean((image - mean).square(), counted)


def _apart(image: Tensor, counted: Tensor) -> Tensor:
    """Mean absolute difference of all pairs of a batch, at pixels that count in both."""
    first, second = torch.triu_indices(len(image), len(image), 1, device=image.device)
    both = counted[first] * counted[second]
    return _mean((image[first] - image[second]).abs(), both)


def first_bad(
    players: Mapping[str, nn.Module], step: Callable[[], None], gradients: bool = True
) -> str | None:
    """Run one training step, and name the first place where a number is not finite.

    Looked at in this order: the parameters before the step; outputs of layers and the gradients
    that arrive at them, as they come; the parameters after the step.

    Args:
        players: networks by name.
        step: one update of the players.
        gradients: look at gradients, too; not with a loss scale, which tries infinite ones.

    Returns:
        ``"discriminator.layers.2: its output"``, say; None if everything is finite.
    """
    seen = _bad_weight(players, "its value before the step")
    if seen:
        return seen
    with _watched(players, gradients) as places, torch.compiler.set_stance("force_eager"):
        step()
    return places[0] if places else _bad_weight(players, "its value after the update")


def _bad_weight(players: Mapping[str, nn.Module], what: str) -> str | None:
    for player, network in players.items():
        for name, value in network.state_dict().items():
            if value.is_floating_point() and not value.isfinite().all():
                return f"{player}.{name}: {what}"
    return None


@contextmanager
def _watched(players: Mapping[str, nn.Module], gradients: bool) -> Iterator[list[str]]:
    """Hooks on every layer, which fill the list with places, the first one first."""
    places: list[str] = []

    def note(value: Tensor, place: str) -> None:
        if not places and not value.isfinite().all():
            places.append(place)

    def hook(name: str) -> Callable[..., None]:
        def after(layer: nn.Module, given: Any, output: Any) -> None:
            if not isinstance(output, Tensor):
                return
            note(output, f"{name}: its output")
            if gradients and output.requires_grad:
                arrived = partial(note, place=f"{name}: the gradient at it")
                output.register_hook(arrived)  # type: ignore[no-untyped-call]

        return after

    handles = [
        layer.register_forward_hook(hook(f"{player}.{name}".rstrip(".")))
        for player, network in players.items()
        for name, layer in network.named_modules()
    ]
    try:
        yield places
    finally:
        for handle in handles:
            handle.remove()
