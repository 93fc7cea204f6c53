"""Damage done to files by tests, and what a reader may make of it: the right result or a refusal.

The damage follows from a seed, so a case that fails can be made again.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ganlab.errors import InputError

ODD_TEXTS = (b"", b"null", b"-1", b"1e999", b"NaN", b"[]", b"{}", b'"../x"', b"9" * 30, b"\0")


def flip_bit(path: Path, bit: int) -> None:
    """Turn over one bit of a file, counted from its first byte, lowest bit first."""
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def truncate(path: Path, size: int) -> None:
    """Cut a file to its first ``size`` bytes."""
    path.write_bytes(path.read_bytes()[:size])


@contextmanager
def damaged(path: Path, data: bytes) -> Iterator[None]:
    """The file holds ``data`` within the block, and what it held before after it."""
    before = path.read_bytes()
    path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(before)


def spoil(data: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """One random damage to the bytes of a file, and its name in words."""
    kind = rng.choice(["bit", "cut", "longer", "zeros", "removed", "doubled", "number"])
    start = int(rng.integers(0, len(data)))
    stop = min(len(data), start + int(rng.integers(1, 64)))
    if kind == "bit":
        changed = bytearray(data)
        changed[start] ^= 1 << int(rng.integers(0, 8))
        return f"bit turned in byte {start}", bytes(changed)
    if kind == "cut":
        return f"cut to {start} bytes", data[:start]
    if kind == "longer":
        return "bytes added at the end", data + rng.bytes(stop - start)
    if kind == "zeros":
        return f"bytes {start} to {stop} are 0", data[:start] + bytes(stop - start) + data[stop:]
    if kind == "removed":
        return f"bytes {start} to {stop} removed", data[:start] + data[stop:]
    if kind == "doubled":
        return f"bytes {start} to {stop} doubled", data[:stop] + data[start:]
    return _odd_number(data, start, rng)


def _odd_number(data: bytes, start: int, rng: np.random.Generator) -> tuple[str, bytes]:
    """The first number after ``start`` in a text becomes something else."""
    digits = b"0123456789"
    while start < len(data) and data[start] not in digits:
        start += 1
    stop = start
    while stop < len(data) and data[stop] in digits:
        stop += 1
    text = ODD_TEXTS[int(rng.integers(0, len(ODD_TEXTS)))]
    return f"number at {start} became {text!r}", data[:start] + text + data[stop:]


def result_or_refusal(work: Callable[[], Any]) -> Any:
    """What ``work`` returns, or the InputError it raised; any other exception goes through."""
    try:
        return work()
    except InputError as error:
        refusal = error
    message = str(refusal)
    assert message.strip(), "a refusal says nothing"
    assert "\n" not in message, f"a refusal has several lines: {message}"
    return refusal


def killed_before_change(number: int, work: Callable[[], Any]) -> bool:
    """Do ``work`` in a forked process that dies before its n-th change of the file system.

    Returns whether it died; if not, it had fewer changes.
    """
    child = os.fork()
    if child == 0:
        changes = [0]

        def counted(change: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                changes[0] += 1
                if changes[0] == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return change(*arguments, **options)

            return call

        for name in ("replace", "unlink", "mkdir", "rmdir", "rename"):
            setattr(os, name, counted(getattr(os, name)))
        try:
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)
