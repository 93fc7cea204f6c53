"""Checkpoints: one safetensors file, with everything that is no tensor as JSON in its metadata.

A checkpoint is written beside its place, synced and renamed, so a killed process leaves the old
or the new one, never half. Loading executes nothing from the file.
"""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ganlab.errors import InputError

FORMAT = "ganlab checkpoint 1"


def save(path: Path, tree: Any) -> None:
    """Write a tree of dicts, lists, numbers, strings, None and tensors; all or nothing.

    Raises:
        InputError: the disk is full or the folder cannot be written.
        TypeError: the tree holds something else.
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_pack(tree, tensors))
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporary, metadata={"format": FORMAT, "tree": text})
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            temporary.unlink()
        raise InputError(f"cannot write {path}: {error}; earlier checkpoints are kept") from error


def load(path: Path) -> Any:
    """Read a tree written by ``save``; tensors arrive on the CPU.

    Raises:
        InputError: the file is missing, damaged or no checkpoint.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") == FORMAT:
                return _unpack(json.loads(metadata["tree"]), file)
    except (OSError, SafetensorError, KeyError, TypeError, RecursionError, ValueError) as error:
        raise InputError(f"cannot read checkpoint {path}: {error!r}") from error
    raise InputError(f"{path} is not a checkpoint of ganlab (no {FORMAT!r} in it)")


def name(step: int) -> str:
    """File name of the checkpoint after ``step`` steps."""
    return f"step-{step:08d}.safetensors"


def step_of(path: Path) -> int:
    """The step in the name of a checkpoint, or of the batch that a training failed at."""
    return int(path.stem.rpartition("-")[2])


def all_in(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    return sorted(folder.glob("step-*.safetensors"))


def latest(folder: Path) -> Path:
    """The newest checkpoint of a folder.

    Raises:
        InputError: there is none.
    """
    found = all_in(folder)
    if not found:
        raise InputError(f"{folder} holds no checkpoint; the run did not get that far")
    return found[-1]


def tidy(folder: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` checkpoints."""
    for old in all_in(folder)[: -max(keep, 1)]:
        old.unlink()


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """JSON form of a tree: tensors go to ``tensors``, dicts become pairs to keep integer keys."""
    if isinstance(value, Tensor):
        key = str(len(tensors))
        tensors[key] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": key}
    if isinstance(value, dict):
        return {"dict": [[_pack(k, tensors), _pack(v, tensors)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        return [_pack(item, tensors) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a checkpoint cannot hold a {type(value).__name__}")


def _unpack(value: Any, file: Any) -> Any:
    if isinstance(value, list):
        return [_unpack(item, file) for item in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return file.get_tensor(value["tensor"]).clone()  # no map of a file that will be removed
    return {_unpack(k, file): _unpack(v, file) for k, v in value["dict"]}


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def finite(module: nn.Module) -> bool:
    """Whether all parameters are finite; waits for the device once."""
    return bool(torch.stack([p.isfinite().all() for p in module.parameters()]).all())
