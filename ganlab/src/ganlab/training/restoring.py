"""See that a checkpoint fits the networks that ``config.json`` describes, before it is put in.

Networks are described on torch's device "meta", which computes shapes and allocates nothing, so
absurd sizes in a file from somebody else cost neither memory nor time.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ganlab.errors import InputError
from ganlab.tasks.base import Task
from ganlab.training import checkpoints
from ganlab.training.checkpoints import UNFIT

PLAYERS = ("generator", "discriminator")
State = dict[str, Any]


def outline(run: Path, make: Callable[[], Task]) -> Task:
    """The networks that ``make`` makes for a run directory, without their numbers.

    Raises:
        InputError: they cannot be made, or do not fit into the memory of this machine.
    """
    try:
        with torch.device("meta"):
            task = make()
    except InputError as error:
        described = run / "config.json"
        raise InputError(f"{described}: {error}" if described.exists() else str(error)) from error
    values = sum(parameter.numel() for parameter in task.parameters())
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if 4 * values > there:
        raise InputError(
            f"{run}: these networks have {values:.3g} parameters, {4 * values / 1e9:.3g} GB, and "
            f"this machine has {there / 1e9:.3g} GB of memory; give them a smaller width or depth"
        )
    return task


def check_fit(task: Task, state: Any, path: Path) -> None:
    """See that a checkpoint holds the weights of these networks, and what else a run needs.

    Args:
        task: the networks, of which only names and shapes are looked at.
        state: what the checkpoint holds.
        path: the checkpoint.

    Raises:
        InputError: something is missing, or of another shape.
    """
    try:
        _check_step(state["step"], path)
        players = {name: getattr(task, name) for name in PLAYERS}
        expected = {name: network for name, network in players.items() if network is not None}
        if state["players"].keys() != expected.keys():
            raise ValueError(f"it has networks {[*state['players']]}, expected {[*expected]}")
        for name, network in expected.items():
            _check_weights(name, state["players"][name], network.state_dict())
        if state["ema"] is not None:
            averaged = average_in(state)
            _check_weights("average", averaged, task.generator.state_dict())
    except UNFIT as error:
        raise InputError(f"{_misfit(path)}: {_in_a_line(error)}") from error


def average_in(state: State) -> dict[str, Tensor]:
    """The averaged generator of a checkpoint that has one, named as the generator's weights."""
    names = (name for name in state["ema"] if name != "n_averaged")
    return {name.removeprefix("module."): state["ema"][name] for name in names}


def restore(trainer: Any, state: State, path: Path) -> None:
    """Put a checkpoint into a trainer, which must then hold all of it and nothing else.

    Args:
        trainer: a :class:`ganlab.training.trainer.Trainer`.
        state: what the checkpoint holds.
        path: the checkpoint.

    Raises:
        InputError: the checkpoint is not one of such a trainer.
    """
    try:
        before = _form(state)
        _check_kinds(trainer.state_dict(), state, "")
        if any(each.shape != (2,) for each in state["meter"].values()):
            raise ValueError("meter: expected pairs of sum and count")
        trainer.load_state_dict(state)
        after = _form(trainer.state_dict())
        if not (before["scaler"] and after["scaler"]):  # there is one with fp16 only
            before["scaler"] = after["scaler"]
    except (InputError, *UNFIT) as error:
        raise InputError(f"{_misfit(path)}: {_in_a_line(error)}") from error
    if before != after:
        place = _first_difference(before, after)
        raise InputError(f"{_misfit(path)}: {place} is not what this training has there")


def _check_step(step: Any, path: Path) -> None:
    if type(step) is not int or not 0 <= step < 2**60:
        raise ValueError(f"its step is {step!r:.30}")
    if checkpoints.NAME.fullmatch(path.name) and step != checkpoints.step_of(path):
        raise ValueError(f"it holds step {step}")


def _check_weights(player: str, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name in sorted(found.keys() | expected.keys()):
        there = _shape(found.get(name))
        here = _shape(expected.get(name))
        if there != here:
            raise ValueError(f"size mismatch for {player}.{name}: {there}, {here} by config.json")


def _check_kinds(fresh: Any, found: Any, place: str) -> None:
    """See that numbers are where a trainer that has not trained yet has numbers, and so on."""
    if fresh is None:
        return
    if isinstance(fresh, dict) and isinstance(found, dict):
        for name, value in found.items():
            if name in fresh:
                _check_kinds(fresh[name], value, f"{place}.{name}")
            elif not _is_numeric(value):
                raise ValueError(f"{place}.{name} holds something else than numbers".lstrip("."))
    elif isinstance(fresh, (list, tuple)) and isinstance(found, (list, tuple)):
        if not fresh and _is_numeric(found):
            return
        for number, pair in enumerate(zip(fresh, found, strict=True)):
            _check_kinds(*pair, f"{place}.{number}")
    elif isinstance(fresh, (dict, list, tuple)) or _kind(fresh) != _kind(found):
        raise ValueError(f"{place} is a {_kind(found)}, not a {_kind(fresh)}".lstrip("."))


def _is_numeric(value: Any) -> bool:
    """Whether a tree holds numbers and tensors alone."""
    if isinstance(value, dict):
        return all(map(_is_numeric, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_numeric, value))
    return _kind(value) in ("tensor", "number")


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return "tensor"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return "number"
    return type(value).__name__


def _shape(value: Any) -> str:
    return f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else "nothing"


def _form(value: Any) -> Any:
    """A tree without its numbers: names, and types and shapes of tensors."""
    if isinstance(value, Tensor):
        return f"{value.dtype} {list(value.shape)}"
    if isinstance(value, dict):
        return {name: _form(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_form(item) for item in value]
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return type(value).__name__
    return "number"


def _first_difference(one: Any, other: Any, place: str = "") -> str:
    """The first place where two forms differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        for name in [*one, *other]:
            if one.get(name) != other.get(name):
                return _first_difference(one.get(name), other.get(name), f"{place}.{name}")
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, pair in enumerate(zip(one, other, strict=True)):
            if pair[0] != pair[1]:
                return _first_difference(*pair, f"{place}.{number}")
    return place.lstrip(".") or "it"


def _misfit(path: Path) -> str:
    return f"{path}: config.json and checkpoint do not fit"


def _in_a_line(error: Exception) -> str:
    if isinstance(error, (KeyError, AttributeError)):
        return f"{error!r:.200}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:300] or repr(error)
