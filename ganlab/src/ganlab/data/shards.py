"""One shard of a tile store: an ``.npy`` file that is read by position.

The file stays a plain array that numpy can load or map. It is not mapped here, because the system
kills a process that touches a mapped file which was cut short meanwhile, where a read that finds
nothing is an error with a message.
"""

import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ganlab.errors import InputError

CURE = "tile the scenes again"
MAGIC = b"\x93NUMPY\x01\x00"
LONGEST_HEADER = 2**12
# As numpy.save writes it. Numpy's own reader evaluates whatever stands there, at any length.
HEADER = re.compile(
    r"\{'descr': '([<>=|][biufcO][0-9]{0,2})', 'fortran_order': (True|False), "
    r"'shape': \(([0-9]{1,18}(?:, [0-9]{1,18})*),?\), \} *\n"
)

Array = npt.NDArray[Any]
Shape = tuple[int, ...]


def find_pixels(file: Path, dtype: str, shape: Shape) -> int:
    """Byte of a shard at which its pixels begin, and with them end.

    Raises:
        InputError: the file is missing, or anything but one array of this type and shape.
    """
    payload = math.prod(shape) * np.dtype(dtype).itemsize
    try:
        # Asked before it is opened: opening a pipe would wait for somebody who writes.
        size = file.stat().st_size if file.is_file() else 0
        if size <= payload:
            raise InputError(f"{file} is missing or cut short: {CURE}")
        with open(file, "rb") as opened:
            start = opened.read(LONGEST_HEADER)
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error}): {CURE}") from error
    found = _parse_header(start)
    if found is None:
        raise InputError(f"{file} cannot be read (it does not begin like an array): {CURE}")
    found_dtype, found_shape, length = found
    if found_dtype != np.dtype(dtype) or found_shape != shape:
        holds = f"holds {found_dtype} {found_shape}, expected {dtype} {shape}"
        raise InputError(f"{file} {holds}: {CURE}")
    if length + payload != size:
        wrong = f"{size} bytes, expected {length + payload}"
        raise InputError(f"{file} cannot be read ({wrong}): {CURE}")
    return length


def _parse_header(start: bytes) -> tuple[np.dtype[Any], Shape, int] | None:
    """Type, shape and length of an ``.npy`` header; None if it is no such header."""
    length = len(MAGIC) + 2 + int.from_bytes(start[len(MAGIC) : len(MAGIC) + 2], "little")
    text = start[len(MAGIC) + 2 : length].decode("latin-1")
    match = HEADER.fullmatch(text)
    if not start.startswith(MAGIC) or len(start) < length or match is None:
        return None
    try:
        dtype = np.dtype(match[1])
    except (TypeError, ValueError):
        return None
    if dtype.hasobject or match[2] == "True":
        return None
    return dtype, tuple(int(number) for number in match[3].split(",")), length


class Shard:
    """An open shard; its tiles can be read from several threads and forked processes at once.

    Args:
        file: the ``.npy`` file.
        dtype: numpy's name of its type.
        shape: ``(N, C, h, w)``.

    Raises:
        InputError: see :func:`find_pixels`.
    """

    def __init__(self, file: Path, dtype: str, shape: Shape) -> None:
        self._file = file
        self._handle = -1
        self._start = find_pixels(file, dtype, shape)
        try:
            self._handle = os.open(file, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise InputError(f"{file} cannot be read ({error}): {CURE}") from error

    def __del__(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)

    def read(self, place: int, out: Array) -> None:
        """Read the tile at one place of the shard into ``out``, a contiguous ``(C, h, w)``.

        Raises:
            InputError: the file cannot be read, or was cut short since it was opened.
        """
        rest = out.reshape(-1).view(np.uint8).data
        position = self._start + place * len(rest)
        while len(rest):
            try:
                count = self._read_at(position, rest)
            except OSError as error:
                raise InputError(f"{self._file} cannot be read ({error}): {CURE}") from error
            if count == 0:
                raise InputError(f"{self._file} was cut short while it was in use: {CURE}")
            rest = rest[count:]
            position += count

    def _read_at(self, position: int, out: memoryview) -> int:
        """Bytes that were read into ``out``, at most as many as it holds; 0 at the file's end."""
        if hasattr(os, "preadv"):
            return os.preadv(self._handle, [out], position)
        # Systems without it: a handle of its own, as a position that is shared would be a race.
        with open(self._file, "rb", buffering=0) as opened:
            opened.seek(position)
            return opened.readinto(out) or 0
