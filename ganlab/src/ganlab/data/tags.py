"""What files say of their bands beyond the values: scale and offset, units, colours, palettes.

The physical value of a pixel is ``stored * scale + offset``. Where scenes declare other pairs,
equal stored values mean other things, so scenes are compared before their values are.
"""

import math
import os
import re
import shlex
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ganlab.data.bands import Band
from ganlab.errors import InputError

SAME = 1e-6
"""Scales and offsets that differ by less, relative to their size, are one: files round them."""
PART_OF_A_UNIT = 1e-3
"""Offsets that differ by less, in stored units, are one."""
PLAIN = (1.0, 0.0)
"""The pair of a band that declares none."""
NO_COLOUR = ("undefined", "gray")
LAST_OF_A_PALETTE = 255
"""The largest class for which outputs have a colour."""
RGB = ("red", "green", "blue")
WRITTEN_COLOURS = (
    *("gray", *RGB, "pan", "coastal", "rededge", "nir", "swir", "mwir", "lwir", "tir", "other_ir"),
)
"""Colour interpretations that outputs keep; alpha and those of printing would change the values."""
OPTION = "--ignore-scale-tags"

Pair = tuple[float, float]


@dataclass(frozen=True)
class BandTags:
    """What files declare of the bands of a source; a field that is empty says nothing."""

    scales: tuple[float, ...] = ()
    """Physical units of one stored unit, for each band; 1 if empty."""
    offsets: tuple[float, ...] = ()
    """Physical value of the stored value 0, for each band; 0 if empty."""
    units: tuple[str, ...] = ()
    """Physical unit of each band, empty where none is declared."""
    colours: tuple[str, ...] = ()
    """GDAL's colour interpretation of each band, for example ``"red"`` or ``"nir"``."""
    palette: tuple[str, ...] = ()
    """Classes: the colours of the values 0, 1, 2, ... as RRGGBBAA in hexadecimal."""
    categories: tuple[tuple[int, str], ...] = ()
    """Classes: values and their names."""

    def pairs(self, count: int) -> list[Pair]:
        """(scale, offset) of each of ``count`` bands."""
        scales = self.scales or (1.0,) * count
        offsets = self.offsets or (0.0,) * count
        return list(zip(scales, offsets, strict=True))

    def fit(self, count: int) -> bool:
        """Whether they can be the tags of so many bands."""
        lists = (self.scales, self.offsets, self.units, self.colours)
        return all(len(values) in (0, count) for values in lists) and all(
            re.fullmatch(r"[0-9a-f]{8}", colour) for colour in self.palette
        )


class Tagged(NamedTuple):
    """Something with tags, for messages."""

    what: str
    """A file, a store or a run."""
    bands: tuple[str, ...]
    tags: BandTags
    dtype: str
    files: tuple[str, ...] = ()
    """The file of each band, of scenes."""


def read_tags(dataset: Any) -> BandTags:
    """The tags of all bands of an open rasterio dataset."""
    colours = tuple(colour.name for colour in dataset.colorinterp)
    palette: tuple[str, ...] = ()
    if colours[0] == "palette":
        palette = _palette(dataset, 1)
    names = dataset.tags().items()
    found = [(re.fullmatch(r"class_(\d{1,10})", key), name) for key, name in names]
    return BandTags(
        tuple(float(scale) for scale in dataset.scales),
        tuple(float(offset) for offset in dataset.offsets),
        tuple(unit or "" for unit in dataset.units),
        colours,
        palette,
        tuple(sorted((int(key[1]), name) for key, name in found if key)),
    )


def _palette(dataset: Any, band: int) -> tuple[str, ...]:
    """The colours of the values from 0; GDAL's filling of opaque black at the end is left out."""
    try:
        table = dataset.colormap(band)
    except ValueError:  # it has none, whatever its colour interpretation says
        return ()
    colours = [bytes(table[value]).hex() for value in sorted(table)]
    while colours and colours[-1] == "000000ff":
        colours.pop()
    return tuple(colours)


def tags_of(bands: Sequence[Band], files: Mapping[str, BandTags]) -> BandTags:
    """The tags of chosen bands, from those of whole files; what says nothing is left empty."""
    pairs = []
    units = []
    colours = []
    for band in bands:
        tags = files[band.path]
        place = band.number - 1
        if band.component is not None:
            pairs.append(PLAIN)
            units.append("")
            colours.append(RGB[band.component])
            continue
        pairs.append(_usable((tags.scales[place], tags.offsets[place])))
        units.append(tags.units[place])
        colours.append(tags.colours[place])
    tagged = any(pair != PLAIN for pair in pairs)
    coloured = any(colour not in NO_COLOUR for colour in colours)
    alone = files[bands[0].path] if len(bands) == 1 else BandTags()
    is_palette = colours == ["palette"]
    return BandTags(
        tuple(scale for scale, _ in pairs) if tagged else (),
        tuple(offset for _, offset in pairs) if tagged else (),
        tuple(units) if any(units) else (),
        tuple(colours) if coloured and not is_palette else (),
        alone.palette if is_palette else (),
        alone.categories,
    )


def tags_of_classes(
    stored: BandTags, table: Sequence[tuple[tuple[int, ...], int]], dtype: str
) -> BandTags:
    """The tags of a label whose colours or values become the classes that a table gives them.

    A class gets the colour that it is recoded from: of three bands that colour itself, of one band
    that of its value in the palette of the file. The first of several counts.

    >>> tags_of_classes(BandTags(), [((255, 0, 0), 1), ((0, 0, 255), 0)], "uint8").palette
    ('0000ffff', 'ff0000ff')
    """
    colours: dict[int, str] = {}
    names: dict[int, str] = {}
    categories = dict(stored.categories)
    for values, number in table:
        colour = ""
        if len(values) == 3 and dtype == "uint8":
            colour = f"{bytes(values).hex()}ff"
        elif len(values) == 1 and 0 <= values[0] < len(stored.palette):
            colour = stored.palette[values[0]]
        if colour and 0 <= number <= LAST_OF_A_PALETTE:
            colours.setdefault(number, colour)
        if len(values) == 1 and values[0] in categories:
            names.setdefault(number, categories[values[0]])
    palette = [colours.get(number, "000000ff") for number in range(max(colours, default=-1) + 1)]
    return BandTags(palette=tuple(palette), categories=tuple(sorted(names.items())))


def _usable(pair: Pair) -> Pair:
    """A scale of 0, or a number that is none, is no statement about values."""
    scale, offset = pair
    return pair if math.isfinite(scale) and math.isfinite(offset) and scale != 0 else PLAIN


def merged(first: BandTags, other: BandTags) -> BandTags:
    """The tags of the first, and those of the other where the first says nothing."""
    use = first if first.scales else other
    return BandTags(
        use.scales,
        use.offsets,
        first.units or other.units,
        first.colours or other.colours,
        first.palette or other.palette,
        first.categories or other.categories,
    )


def check_same_scale(
    known: Tagged, found: Tagged, cure: str = "", ignore: bool | None = False
) -> None:
    """Refuse bands whose stored values mean other things than those before.

    Args:
        known: what was there first.
        found: what is compared with it, band by band.
        cure: how to repair it, where ``found`` is no scene.
        ignore: take the stored values as they are; None where nobody can ask for that.

    Raises:
        InputError: scale or offset of a band differ; names both pairs and the way to mend it.
    """
    count = len(found.bands)
    want = known.tags.pairs(count)
    have = found.tags.pairs(count)
    differing = [i for i in range(count) if not _same_pair(have[i], want[i])]
    if differing and not ignore:
        first = differing[0]
        name = found.bands[first]
        band = f"{first + 1} ({name})" if name != str(first + 1) else name
        if len(differing) > 1:
            band = f"{band} and {len(differing) - 1} more"
        file = found.files[first] if found.files else found.what
        if not cure:
            inside = [i for i in range(count) if found.files[i] == file]
            cure = _cure([have[i] for i in inside], [want[i] for i in inside], file, found.dtype)
        anyway = "" if ignore is None else f"; {OPTION} takes the stored values as they are"
        raise InputError(
            f"{file} has {_text(have[first])} in band {band}, {known.what} has "
            f"{_text(want[first])}: equal stored values do not mean the same. "
            f"{cure}{anyway}"
        )
    unlike = _unlike_units(known.tags, found.tags)
    if unlike is not None:
        warnings.warn(
            f"{found.what} declares the unit {unlike[1]!r}, {known.what} {unlike[0]!r}: convert "
            "its values if that is true",
            stacklevel=3,
        )


def _same_pair(pair: Pair, other: Pair) -> bool:
    (scale, offset), (other_scale, other_offset) = pair, other
    unit = PART_OF_A_UNIT * abs(other_scale)
    return math.isclose(scale, other_scale, rel_tol=SAME) and math.isclose(
        offset, other_offset, rel_tol=SAME, abs_tol=unit
    )


def _unlike_units(tags: BandTags, other: BandTags) -> tuple[str, str] | None:
    for one, two in zip(tags.units, other.units, strict=False):
        if one and two and one.strip().casefold() != two.strip().casefold():
            return one, two
    return None


def _text(pair: Pair) -> str:
    if pair == PLAIN:
        return "scale 1 and offset 0 (no tags)"
    return f"scale {_number(pair[0])} and offset {_number(pair[1])}"


def _number(value: float) -> str:
    return f"{value:.10g}"


def _cure(have: list[Pair], want: list[Pair], file: str, dtype: str) -> str:
    """How the values of a file become those that are wanted."""
    whole_numbers = not dtype.startswith("float")
    if whole_numbers and all(pair == PLAIN for pair in have):
        return (
            "If it only lost its tags, write them into it: gdal_edit.py -scale SCALE -offset "
            f"OFFSET {shlex.quote(file)}"
        )
    if whole_numbers and all(pair == PLAIN for pair in want):
        return (
            "If the values of the other only lost their tags, write them into its files "
            "(gdal_edit.py -scale SCALE -offset OFFSET FILE) and tile again"
        )
    return f"Repair: {conversion(have, want, file)}"


def conversion(have: list[Pair], want: list[Pair], file: str) -> str:
    """The ``gdal_translate`` line that brings stored values to another scale and offset.

    Values become ``(stored * scale + offset - wanted offset) / wanted scale``; nodata stays, and
    what the data type cannot hold saturates. Of bands with pairs of their own only the formula
    is given.

    >>> conversion([(0.0001, -0.1)], [(0.0001, 0.0)], "new.tif")
    'gdal_translate -scale 0 10000 -1000 9000 -a_scale 0.0001 -a_offset 0 new.tif new-converted.tif'
    """
    if len(set(have)) > 1 or len(set(want)) > 1:
        return (
            "convert band by band: (stored * scale + offset - wanted offset) / wanted scale, and "
            "write the wanted scale and offset as tags"
        )
    (scale, offset), (wanted_scale, wanted_offset) = have[0], want[0]
    low = (offset - wanted_offset) / wanted_scale
    high = (10_000 * scale + offset - wanted_offset) / wanted_scale
    ends = [0, 10_000, low, high]
    options = ["-scale", *map(_number, ends)]
    options += ["-a_scale", _number(wanted_scale), "-a_offset", _number(wanted_offset)]
    converted = f"{os.path.splitext(file)[0]}-converted.tif"
    return shlex.join(["gdal_translate", *options, file, converted])


def write_tags(file: Any, tags: BandTags, bands: Sequence[str]) -> None:
    """Write tags into a GeoTIFF that rasterio has opened for writing, before its pixels."""
    from rasterio.enums import ColorInterp  # training reads stores without rasterio

    count = len(bands)
    if tags.scales:
        file.scales = tags.scales
        file.offsets = tags.offsets
    if tags.units:
        file.units = tags.units
    colours = [name if name in WRITTEN_COLOURS else "undefined" for name in tags.colours]
    if not colours and {name.casefold() for name in bands} >= set(RGB):
        named = [name.casefold() for name in bands]
        colours = [name if name in RGB else "undefined" for name in named]
    if colours:
        file.colorinterp = [ColorInterp[name] for name in colours]
    if tags.palette and count == 1 and file.dtypes[0] in ("uint8", "uint16"):
        table = {value: tuple(bytes.fromhex(colour)) for value, colour in enumerate(tags.palette)}
        file.write_colormap(1, table)
    if tags.categories:
        file.update_tags(**{f"class_{value}": name for value, name in tags.categories})
