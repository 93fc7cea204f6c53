"""Palette images: numbers that stand for colours in a table.

As classes they are kept. As an image they mean nothing: 7 is no brighter than 6. So they are
refused, or replaced by red, green and blue of their table.
"""

import shlex
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ganlab.data.bands import Band
from ganlab.data.missing import declared_nodata, equals_nodata
from ganlab.data.tags import RGB, BandTags
from ganlab.errors import InputError

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]


def check_not_palette(bands: Sequence[Band], files: Mapping[str, BandTags]) -> None:
    """Refuse an image whose numbers stand for colours in a table.

    Raises:
        InputError: names the file, and the option that makes red, green and blue of it.
    """
    for band in bands:
        if is_palette(band, files):
            raise InputError(
                f"{band.path} is a palette image: its numbers stand for colours in a table and are "
                "no brightness. Give --expand-palette to make red, green and blue of it; if they "
                "are classes, give it as labels"
            )


def is_palette(band: Band, files: Mapping[str, BandTags]) -> bool:
    """Whether a band holds numbers of colours that are not expanded."""
    return band.component is None and files[band.path].colours[band.number - 1] == "palette"


def expanded_bands(bands: Sequence[Band], files: Mapping[str, BandTags]) -> list[Band]:
    """The bands, with red, green and blue in place of each palette.

    Raises:
        InputError: a palette without a table of colours.
    """
    found: list[Band] = []
    for band in bands:
        if not is_palette(band, files):
            found.append(band)
            continue
        if not files[band.path].palette:
            raise InputError(
                f"{band.path} is called a palette image but has no table of colours; if its "
                "values are brightness, say so: gdal_edit.py -colorinterp_1 gray "
                f"{shlex.quote(band.path)}"
            )
        found += [
            band._replace(name=name, named=True, description="", component=component)
            for component, name in enumerate(RGB)
        ]
    return found


def without_stored_nodata(band: Band) -> Band:
    """A band whose nodata value, if it is expanded, is a number of the palette and no colour."""
    if band.component is None:
        return band
    return band._replace(missing_number=band.nodata, nodata=None)


def expanded(dataset: Any, stored: Array, bands: Sequence[Band]) -> tuple[Array, Bools]:
    """Stored values ``(C, h, w)`` of bands, palettes as colours, and where those have a colour.

    A number has none if its colour is transparent, if it lies beyond the table, or if it means
    missing.
    """
    visible = np.ones(stored.shape[1:], bool)
    if all(band.component is None for band in bands):
        return stored, visible
    values = stored.copy()
    declared = declared_nodata(dataset)
    for place, band in enumerate(bands):
        if band.component is None:
            continue
        table = _table(dataset, band.number)
        numbers = np.minimum(stored[place].astype(np.int64), len(table) - 1)
        values[place] = table[numbers, band.component]
        # GDAL makes the colour of a declared nodata value transparent, also if it is overruled.
        visible &= (table[numbers, 3] > 0) | equals_nodata(stored[place], declared[band.number - 1])
        if band.missing_number is not None:
            visible &= stored[place] != band.missing_number
    return values, visible


@lru_cache(maxsize=16)
def _table(dataset: Any, band: int) -> Array:
    """Colours by number as ``(n, 4)``; the last row, for numbers beyond, is transparent."""
    colours = dataset.colormap(band)
    table = np.zeros((max(colours) + 2, 4), np.uint8)
    for number, colour in colours.items():
        table[number] = colour
    return table
