"""Lines that libraries in C write to the standard error, past Python.

GDAL hands over its errors, but the copy of libtiff in it also prints some of them, for example
one line for every block that a full disk refuses. They would surround the one line that counts.
"""

import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

OF_GDAL = re.compile(rb"(_?tiff\w*|_?TIFF\w*|ERROR \d+|Warning \d+): ")
"""How lines of libtiff and of GDAL begin."""
PATIENCE = 1.0
"""Seconds to wait for the last lines."""


@contextmanager
def without_lines_of_gdal() -> Iterator[None]:
    """Leave out what GDAL and libtiff print themselves; all other lines pass.

    What Python prints goes straight to where it went before, so that it still knows a terminal.
    """
    sys.stderr.flush()
    try:
        real = os.dup(2)
    except OSError:  # there is no standard error
        yield
        return
    read, write = os.pipe()
    os.dup2(write, 2)
    os.close(write)
    reader = threading.Thread(target=_pass_on, args=(read, real), daemon=True)
    reader.start()
    before = sys.stderr
    own = _reopened(before, real)
    if own is not None:
        sys.stderr = own
    try:
        yield
    finally:
        sys.stderr = before
        if own is not None:
            own.close()
        os.dup2(real, 2)  # closes the end that is written to
        reader.join(PATIENCE)
        if not reader.is_alive():
            os.close(real)


def _reopened(stream: TextIO, real: int) -> TextIO | None:
    """The stream once more on the file that it had; None where it is no file with number 2."""
    with suppress(OSError, ValueError, AttributeError):
        if stream.fileno() == 2:
            return open(
                os.dup(real), "w", buffering=1, encoding=stream.encoding, errors=stream.errors
            )
    return None


def _pass_on(read: int, real: int) -> None:
    """Copy lines that are not GDAL's until the other end is closed."""
    with open(read, "rb") as lines:
        for line in lines:
            if OF_GDAL.match(line) is None:
                with suppress(OSError):
                    os.write(real, line)
