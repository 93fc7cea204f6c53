"""Bands by number and by name, and the paths of the files that they stand in.

A name is what a file says of its band: a description, a colour, or the band that the file is
named after. Names are compared as people write them: ``B04``, ``B4`` and ``b4`` are one name,
``B8`` and ``B8A`` are two.
"""

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ganlab.errors import InputError

BY_NAME = "name:"
BY_NUMBER = "number:"


class Band(NamedTuple):
    """One band of one file; ``number`` counts from 1."""

    path: str
    number: int
    name: str
    alpha: bool
    named: bool = True
    """Whether the name comes from the file; otherwise it is the number."""
    description: str = ""
    """What the file calls the band, if anything."""
    nodata: float | None = None
    """Its value of missing pixels."""
    component: int | None = None
    """0 to 2 for red, green and blue of a palette that is expanded; None for stored values."""
    missing_number: float | None = None
    """The number in an expanded palette that means missing."""


def split_paths(paths: str | Path | Sequence[str | Path]) -> list[str]:
    """The files of a scene: one path, several joined by commas, or a sequence of them.

    A comma can also be a part of a name, so the longest piece that exists is taken first.

    >>> split_paths("B4.tif,B3.tif")
    ['B4.tif', 'B3.tif']
    >>> split_paths(["B4.tif", "a, b.tif"])
    ['B4.tif', 'a, b.tif']
    """
    if isinstance(paths, Path):
        return [str(paths)]
    if not isinstance(paths, str):
        return [str(path) for path in paths]
    files = []
    pieces = paths.split(",")
    while pieces:
        lengths = range(len(pieces), 1, -1)
        length = next((n for n in lengths if _exists(",".join(pieces[:n]))), 1)
        files.append(",".join(pieces[:length]))
        pieces = pieces[length:]
    return files


def _exists(path: str) -> bool:
    if os.path.exists(path):
        return True
    if ":" not in path and not path.startswith("/vsi"):
        return False
    import rasterio.shutil  # a name that only GDAL understands

    return bool(rasterio.shutil.exists(path))


def choose_bands(wanted: Sequence[str | int] | str, bands: Sequence[Band]) -> list[Band]:
    """The bands that are asked for, by number (from 1) or name.

    ``"name:4"`` is always a name, ``"number:4"`` and the int 4 are always numbers. A text of
    digits alone is either, as long as both mean the same band.

    Raises:
        InputError: no such band, several of one name, or a text that can mean two bands.
    """
    asked = [wanted] if isinstance(wanted, str) else list(wanted)
    return [_one_band(str(word) if isinstance(word, str) else word, bands) for word in asked]


def _one_band(word: str | int, bands: Sequence[Band]) -> Band:
    text = str(word)
    by_name = isinstance(word, str)
    by_number = _is_number(text)
    if by_name and text.startswith(BY_NAME):
        text = text.removeprefix(BY_NAME)
        by_number = False
    elif by_name and text.startswith(BY_NUMBER):
        text = text.removeprefix(BY_NUMBER)
        by_name = False
        by_number = _is_number(text)
    named = _places_of(text, bands) if by_name else []
    numbered = [int(text) - 1] if by_number and 0 < int(text) <= len(bands) else []
    found = sorted({*named, *numbered})
    if len(found) == 1:
        return bands[found[0]]
    known = ", ".join(f"{i} ({band.name})" for i, band in enumerate(bands, start=1))
    file = bands[0].path
    if not found:
        raise InputError(f"{file} has no single band {str(word)!r}; it has {known}")
    numbers = " or ".join(f"{BY_NUMBER}{place + 1}" for place in found)
    if numbered and named:
        raise InputError(
            f"band {text!r} of {file} can be the one called {bands[named[0]].name} (number "
            f"{named[0] + 1}) or number {text} (called {bands[numbered[0]].name}): say "
            f"{BY_NAME}{text} or {BY_NUMBER}{text}; it has {known}"
        )
    raise InputError(f"{file} has no single band {text!r}, but {known}: say {numbers}")


def option_for(names: Sequence[str], bands: Sequence[Band]) -> str | None:
    """The option that takes bands of these names out of a scene; None if it lacks one.

    >>> red, nir = Band("a.tif", 1, "red", False), Band("a.tif", 2, "8", False)
    >>> option_for(["8", "red"], [red, nir])
    '--bands name:8 red'
    """
    words = []
    for name in names:
        if len(_places_of(name, bands)) != 1:
            return None
        words.append(f"{BY_NAME}{name}" if _is_number(name) else name)
    return shlex.join(["--bands", *words])


def _places_of(name: str, bands: Sequence[Band]) -> list[int]:
    """Where the bands of a name stand; spelled in the same way if there are such."""
    named = [i for i, band in enumerate(bands) if band.named]
    exact = [i for i in named if bands[i].name == name]
    return exact or [i for i in named if name_key(bands[i].name) == name_key(name)]


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def name_key(name: str) -> str:
    """The same text for all ways to write one name: in small letters, numbers without zeros.

    >>> name_key("B04"), name_key("b4"), name_key("B8A")
    ('b4', 'b4', 'b8a')
    """
    return re.sub(r"(?<!\d)0+(?=\d)", "", name.strip().casefold())


def reordered(bands: Sequence[str], others: Sequence[str]) -> bool:
    """Whether bands of one name stand at other places in ``others``.

    The number of a band without a name says nothing about another file that holds a part of them,
    so numbers are compared only if both have the same ones.

    >>> reordered(("B4", "B3"), ("B03", "B04")), reordered(("B4", "B3"), ("red", "green"))
    (True, False)
    """
    mine = [name_key(name) for name in bands]
    theirs = [name_key(name) for name in others]
    shared = {name for name in mine if name in theirs and not name.isdecimal()}
    if set(mine) == set(theirs):
        shared = set(mine)
    return any(_differ(_places(name, mine), _places(name, theirs)) for name in shared)


def _places(name: str, names: Sequence[str]) -> list[int]:
    return [i for i, other in enumerate(names) if other == name]


def _differ(places: list[int], others: list[int]) -> bool:
    if len(places) == len(others):
        return places != others
    return places[0] != others[0]


def stacked(bands: Sequence[Band]) -> list[Band]:
    """The bands of several files, with names by which they can be told apart.

    A band keeps its description, unless two bands would then be called alike; otherwise it is
    called after its file, and its number in there if the file has several.
    """
    files = list(dict.fromkeys(band.path for band in bands))
    names = dict(zip(files, file_names(files), strict=True))
    descriptions = [band.description for band in bands if band.description and not band.alpha]
    described = _all_different(descriptions)
    found = []
    for band in bands:
        several = sum(other.path == band.path for other in bands) > 1
        part = str(band.number) if band.component is None else band.name
        name = f"{names[band.path]}-{part}" if several else names[band.path]
        if band.alpha or (described and band.description):
            name = band.name
        found.append(band._replace(name=name, named=True))
    return found


def file_names(paths: Sequence[str]) -> list[str]:
    """A name for each band file of a scene, no two alike.

    It is the band in the file's name (``B8A`` of ``T33_B8A_10m.tif``), else the name without
    suffix; where two would be alike, more of the name and its folders is taken.

    >>> file_names(["T33_B04_10m.jp2", "T33_B8A_20m.jp2", "thermal.tif"])
    ['B04', 'B8A', 'thermal']
    >>> file_names(["2020/B4.tif", "2021/B4.tif"])
    ['2020/B4', '2021/B4']
    """
    stems = [Path(path).stem for path in paths]
    found = [re.findall(r"(?<![A-Za-z0-9])B\d{1,2}A?(?![A-Za-z0-9])", stem, re.I) for stem in stems]
    names = [
        bands[0] if len(bands) == 1 else stem for bands, stem in zip(found, stems, strict=True)
    ]
    if _all_different(names):
        return names
    if _all_different(stems):
        return stems
    folders = [Path(path).parent.name for path in paths]
    names = [f"{folder}/{stem}" for folder, stem in zip(folders, stems, strict=True)]
    if _all_different(names):
        return names
    return [f"{stem}-{i}" for i, stem in enumerate(stems, start=1)]


def _all_different(names: Sequence[str]) -> bool:
    return len({name_key(name) for name in names}) == len(names)
