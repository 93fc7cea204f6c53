"""From the values of a label raster to classes: colours that stand for classes, whole floats.

A file of colours is a text with one line for each colour: the values of the bands and the class,
split by spaces or commas, and a name if one likes. Lines that begin with # are comments::

    # red green blue class
    0 255 255  0  urban
    255 255 0  1  agriculture

For labels of one band the lines are VALUE CLASS, which brings masks of 0 and 255 to 0 and 1.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rasterio.windows import Window

from ganlab.errors import InputError

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]
Table = tuple[tuple[tuple[int, ...], int], ...]
"""Colours, each with its class."""

WHOLE = "int32"
"""Pixel type of classes that a file holds as floats."""


@dataclass(frozen=True)
class Coding:
    """How the pixels of a label raster become classes."""

    stored: str
    """Pixel type in the file."""
    dtype: str
    """Pixel type of the classes."""
    table: Table = ()
    """If empty, the values are the classes."""
    source: str = ""
    """The file of colours, for messages."""

    def classes(self, values: Array, valid: Bools, file: str, window: Window) -> Array:
        """``(1, h, w)`` classes of ``(C, h, w)`` pixels; where they are not valid, 0.

        Raises:
            InputError: a valid pixel has a colour that is not in the table, or is no whole number.
        """
        numbers = self._whole_numbers(values, valid, file, window)
        if not self.table:
            return numbers.astype(self.dtype)
        found = np.zeros(valid.shape, self.dtype)
        known = ~valid
        for colour, number in self.table:
            here = (numbers == np.reshape(colour, (-1, 1, 1))).all(axis=0)
            found[here & valid] = number
            known |= here
        if not known.all():
            row, column = np.argwhere(~known)[0]
            unknown = " ".join(str(value) for value in numbers[:, row, column].tolist())
            raise InputError(
                f"{file} has the colour {unknown} at {_place(window, row, column)}, for which "
                f"{self.source} has no class: add a line, or correct the label"
            )
        return found[None]

    def _whole_numbers(self, values: Array, valid: Bools, file: str, window: Window) -> Array:
        if values.dtype.kind in "iu":
            return values
        numbers = np.where(valid, values, 0)
        limits = np.iinfo(WHOLE)
        wrong = (numbers != np.rint(numbers)) | (numbers < limits.min) | (numbers > limits.max)
        if wrong.any():
            band, row, column = np.argwhere(wrong)[0]
            raise InputError(
                f"{file} holds {numbers[band, row, column]:.9g} at {_place(window, row, column)}: "
                "classes are whole numbers; a raster of continuous values is an image (--images, "
                "--fine)"
            )
        return numbers.astype(WHOLE)


def _place(window: Window, row: int, column: int) -> str:
    return f"row {window.row_off + row}, column {window.col_off + column}"


def coding_of(
    file: str, stored: str, bands: tuple[str, ...], colours: str | Path | None
) -> Coding | None:
    """How a label raster is to be read; None if its values are classes as they are.

    Raises:
        InputError: its bands are colours and there is no table for them, or the table does not
            fit them.
    """
    if colours is not None:
        table = read_colours(colours)
        columns = len(table[0][0])
        if columns != len(bands):
            raise InputError(
                f"{colours} gives classes to colours of {columns} bands, {file} has {len(bands)}"
            )
        classes = [number for _, number in table]
        dtype = "uint8" if min(classes) >= 0 and max(classes) <= 255 else WHOLE
        return Coding(stored, dtype, table, str(colours))
    if np.dtype(stored).kind == "f":
        return Coding(stored, WHOLE)
    return None


def columns_of(colours: str | Path) -> int:
    """How many bands the colours of a file have."""
    return len(read_colours(colours)[0][0])


def read_colours(path: str | Path) -> Table:
    """The classes of colours from a text file (see above for its form).

    Raises:
        InputError: it cannot be read, or a line is not of that form or contradicts another.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as a text of colours: {error}") from error
    table: dict[tuple[int, ...], int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        colour, found = _colour_and_class(line, f"{path}, line {number}")
        if table.setdefault(colour, found) != found:
            shown = " ".join(map(str, colour))
            raise InputError(f"{path}, line {number}: colour {shown} has class {table[colour]}")
        if len({len(known) for known in table}) > 1:
            raise InputError(f"{path}, line {number}: not as many numbers as in the lines before")
    if not table:
        raise InputError(f"{path} has no colour: expected lines R G B CLASS")
    return tuple(table.items())


def _colour_and_class(line: str, place: str) -> tuple[tuple[int, ...], int]:
    words = re.split(r"[\s,;]+", line.strip().rstrip(",;"))
    numbers = []
    for word in words:
        if not re.fullmatch(r"[+-]?\d+", word):
            break  # a name follows
        numbers.append(int(word))
    limits = np.iinfo(WHOLE)
    if len(numbers) < 2 or not all(limits.min <= number <= limits.max for number in numbers):
        raise InputError(
            f"{place}: {line.strip()!r:.80} is no colour with its class: expected R G B CLASS, or "
            "VALUE CLASS for labels of one band, in whole numbers"
        )
    return tuple(numbers[:-1]), numbers[-1]
