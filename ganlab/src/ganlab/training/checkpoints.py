"""Checkpoints: one safetensors file, with everything that is no tensor as JSON in its metadata.

A checkpoint is written beside its place, synced and renamed, so a killed process leaves the old
or the new one, never half. Its metadata hold a digest of all that is in it, which loading
compares: a flipped bit is found. Loading executes nothing from the file.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ganlab import files
from ganlab.errors import InputError

FORMAT = "ganlab checkpoint 1"
KINDS = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Types of tensors that a file can hold, and what safetensors calls them."""
NAME = re.compile(r"step-(\d{8,15})\.safetensors")
UNFIT = (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError, RecursionError)
"""What Python and torch raise for a tree that is not what was expected."""


def save(path: Path, tree: Any) -> None:
    """Write a tree of dicts, lists, numbers, strings, None and tensors; all or nothing.

    Raises:
        InputError: the disk is full or the folder cannot be written.
        TypeError: the tree holds something else.
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_pack(tree, tensors))
    metadata = {"format": FORMAT, "tree": text, "digest": digest(tensors, text)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, tensors, metadata)
    except OSError as error:
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
                return _verified(metadata["tree"], metadata["digest"], file)
    except (OSError, SafetensorError, MemoryError, *UNFIT) as error:
        raise InputError(f"cannot read checkpoint {path}: {error!r:.300}") from error
    raise InputError(f"{path} is not a checkpoint of ganlab (no {FORMAT!r} in it)")


def digest(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """SHA-256 over names, types, shapes and bytes of tensors, and over a text: 64 hex digits.

    It does not depend on the order or the device of the tensors. It takes about 0.6 s for a
    gigabyte on processors that compute SHA-256 themselves, which most do.

    >>> digest({"weight": torch.zeros(2)})[:8]
    '4382971b'
    """
    found = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"\0{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        found.update(_bytes(tensor))
    return found.hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file at once, streamed tensor by tensor.

    The library's own writer leaves a file of random name when it is killed, which nothing sweeps;
    the format is a length, a JSON header and the bytes.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    # Large numbers first, so that each tensor begins at a multiple of its item size.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        tensor = tensors[name]
        start, end = end, end + tensor.numel() * tensor.element_size()
        shape = list(tensor.shape)
        header[name] = {"dtype": KINDS[tensor.dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with files.beside(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in order:
            file.write(_bytes(tensors[name]))
        _flush(file)


def name(step: int) -> str:
    """File name of the checkpoint after ``step`` steps."""
    return f"step-{step:08d}.safetensors"


def step_of(path: Path) -> int:
    """The step in the name of a checkpoint, or of the batch that a training failed at."""
    return int(path.stem.rpartition("-")[2])


def all_in(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first; none if there is no such folder.

    Raises:
        InputError: the folder cannot be read.
    """
    try:
        found = [folder / file for file in os.listdir(folder) if NAME.fullmatch(file)]
    except OSError as error:
        if not os.path.lexists(folder):
            return []
        raise InputError(f"cannot read the checkpoints in {folder}: {error}") from error
    return sorted(found, key=step_of)


def latest(folder: Path) -> Path:
    """The newest checkpoint of a folder.

    Raises:
        InputError: there is none, or the folder cannot be read.
    """
    found = all_in(folder)
    if not found:
        raise InputError(f"{folder} holds no checkpoint; the run did not get that far")
    return found[-1]


def load_or_name_an_earlier(path: Path, way: str) -> Any:
    """Like ``load``; the error for a damaged checkpoint names the newest whole one before it.

    Args:
        path: the checkpoint.
        way: how to use an earlier one, with {broken} and {whole} for the paths.

    Raises:
        InputError: the file is missing, damaged or no checkpoint.
    """
    try:
        return load(path)
    except InputError as error:
        whole = _newest_whole(earlier(path))
        advice = "no earlier checkpoint is whole"
        if whole is not None:
            advice = way.format(broken=path, whole=whole)
        raise InputError(f"{error}; {advice}") from error


def earlier(path: Path) -> list[Path]:
    """The checkpoints beside one that are older than it, oldest first."""
    if not NAME.fullmatch(path.name):
        return []
    return [other for other in all_in(path.parent) if step_of(other) < step_of(path)]


def tidy(folder: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` checkpoints."""
    for old in all_in(folder)[: -max(keep, 1)]:
        with suppress(OSError):
            old.unlink()


def finite(module: nn.Module) -> bool:
    """Whether all parameters and buffers are finite; waits for the device once."""
    return all_finite(module.state_dict().values())


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all tensors of real numbers are finite; waits for the device once."""
    found = [tensor.isfinite().all() for tensor in tensors if tensor.is_floating_point()]
    return not found or bool(torch.stack([each.to(found[0].device) for each in found]).all())


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """All tensors of a tree of dicts and lists."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from tensors_in(value)
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            yield from tensors_in(value)


def _newest_whole(paths: list[Path]) -> Path | None:
    for path in reversed(paths):
        with suppress(InputError):
            load(path)
            return path
    return None


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """JSON form of a tree: tensors go to ``tensors``, dicts become pairs to keep integer keys."""
    if isinstance(value, Tensor):
        if value.dtype not in KINDS:
            raise TypeError(f"a checkpoint cannot hold a tensor of {value.dtype}")
        key = str(len(tensors))
        tensors[key] = value.detach().cpu().contiguous()
        return {"tensor": key}
    if isinstance(value, dict):
        return {"dict": [[_pack(k, tensors), _pack(v, tensors)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        return [_pack(item, tensors) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a checkpoint cannot hold a {type(value).__name__}")


def _verified(text: str, expected: str, file: Any) -> Any:
    """The tree of an open file, each of whose tensors is named in it once."""
    held: set[str] = set(file.keys())
    tensors: dict[str, Tensor] = {}

    def take(key: Any) -> Tensor:
        if not isinstance(key, str) or key not in held:
            raise KeyError(f"the tree names tensor {key!r:.30} twice, or the file has none")
        held.remove(key)
        # A copy, as no map may stay of a file that will be removed.
        tensors[key] = file.get_tensor(key).clone()
        return tensors[key]

    tree = _unpack(json.loads(text), take)
    if held:
        raise ValueError(f"the tree does not name tensor {min(held)}")
    if digest(tensors, text) != expected:
        raise ValueError("its digest is another: the file was damaged after it was written")
    return tree


def _unpack(value: Any, take: Any) -> Any:
    if isinstance(value, list):
        return [_unpack(item, take) for item in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return take(value["tensor"])
    return {_unpack(k, take): _unpack(v, take) for k, v in value["dict"]}


def _bytes(tensor: Tensor) -> Any:
    """The bytes of a tensor, without a copy where it lies on the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else b""


def _flush(file: BinaryIO) -> None:
    """Bring the bytes to disk, or raise what the system says against it."""
    file.flush()
    os.fsync(file.fileno())
