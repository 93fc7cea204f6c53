"""What a tiling kept, what it left out and why, and the classes that it met."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ganlab.errors import InputError

MOST_CLASSES = 12
"""Classes of a label that a summary lists; of more, the most frequent ones."""
TOGETHER = "no source by itself"


class Tally(NamedTuple):
    """What one shard counted."""

    left_out: Counter[str]
    """Windows that have too few valid pixels, by the sources that lack them."""
    classes: dict[tuple[str, str], Counter[int]]
    """Valid pixels of each class, by (source, scene)."""

    def count_classes(self, source: str, scene: str, found: Mapping[int, int]) -> None:
        """Add the pixels of one tile."""
        self.classes.setdefault((source, scene), Counter()).update(found)


def reason(shares: Mapping[str, float], least: float) -> str:
    """Which sources have too few valid pixels in a window, given their fractions.

    >>> reason({"image": 1.0, "label": 0.2}, 0.5)
    'label'
    """
    lacking = [name for name, share in shares.items() if share == 0 or share < least]
    return " and ".join(lacking) or TOGETHER


def total(tallies: Iterable[Tally]) -> Tally:
    """What all shards counted together."""
    everything = Tally(Counter(), {})
    for tally in tallies:
        everything.left_out.update(tally.left_out)
        for (source, scene), found in tally.classes.items():
            everything.count_classes(source, scene, found)
    return everything


@dataclass(frozen=True)
class Summary:
    """What a tiling kept and left out."""

    windows: int
    """Windows in all."""
    left_out: Mapping[str, int]
    """Windows that were left out, by the sources that lack valid pixels in them."""
    classes: Mapping[str, Mapping[int, float]]
    """For each label source the fraction of the tiles' valid pixels that each class has."""

    def lines(self) -> list[str]:
        """The summary in words."""
        found = []
        if self.left_out:
            count = sum(self.left_out.values())
            found.append(f"left out: {count} of {self.windows} windows, {self.why()}")
        for source, fractions in self.classes.items():
            most = sorted(fractions, key=lambda number: -fractions[number])[:MOST_CLASSES]
            shown = [f"{number}: {_percent(fractions[number])}" for number in sorted(most)]
            more = len(fractions) - len(most)
            rest = f", and {more} more" if more else ""
            found.append(f"classes of {source}: {', '.join(shown)}{rest}")
        return found

    def why(self) -> str:
        """What the windows that were left out lack."""
        parts = [f"{source} ({count})" for source, count in sorted(self.left_out.items())]
        return f"which lack valid pixels of {', '.join(parts)}"


def summarize(tally: Tally, windows: int) -> Summary:
    """The summary of a tiling, from the counts of all its shards."""
    pixels: dict[str, Counter[int]] = {}
    for (source, _), found in tally.classes.items():
        pixels.setdefault(source, Counter()).update(found)
    fractions = {
        source: {number: found[number] / found.total() for number in sorted(found)}
        for source, found in pixels.items()
        if found
    }
    return Summary(windows, dict(tally.left_out), fractions)


def check_encodings(tally: Tally, source: str, files: Mapping[str, str]) -> None:
    """Refuse masks of 0 and 1 beside masks of 0 and 255: they would become three classes.

    Args:
        tally: of all shards.
        source: the label source.
        files: the label file of each scene.

    Raises:
        InputError: names a scene of each kind.
    """
    found: dict[int, str] = {}
    for (name, scene), classes in tally.classes.items():
        ones = {number for number, pixels in classes.items() if number and pixels}
        if name == source and len(ones) == 1:
            found.setdefault(ones.pop(), scene)
    full = [number for number in (255, 65535) if number in found]
    if 1 not in found or not full:
        return
    one, other = files[found[1]], files[found[full[0]]]
    raise InputError(
        f"{one} is a mask of 0 and 1, {other} one of 0 and {full[0]}: in one store these would be "
        f"three classes. If they mean the same, recode them with --colours FILE (lines `0 0`, "
        f"`1 1` and `{full[0]} 1`); if {full[0]} means unknown, give --ignore {full[0]}; if they "
        f"are three classes, --classes 0 1 {full[0]}"
    )


def nodata_hides_background(declared: Sequence[tuple[str, float | None]], classes: int) -> str:
    """What to say where label rasters declare nodata 0 and so few classes are left; or nothing.

    Args:
        declared: label files and their nodata values.
        classes: how many classes have valid pixels.
    """
    zero = [file for file, nodata in declared if nodata == 0]
    if not zero or classes > 1:
        return ""
    others = f" and {len(zero) - 1} more declare" if len(zero) > 1 else " declares"
    return (
        f"{zero[0]}{others} nodata 0, so its pixels of class 0 count as missing (QGIS writes this "
        "unless told otherwise): if 0 is a class, the background, tile with --label-nodata none"
    )


def ignored_but_one(ignore: Sequence[int], classes: int) -> str:
    """What to say where values to ignore leave a single class, as in a mask of 0 and 255.

    Args:
        ignore: label values that count as missing.
        classes: how many classes have valid pixels.
    """
    if not ignore or classes > 1:
        return ""
    values = " ".join(map(str, ignore))
    value = ignore[0]
    renumber = "" if value == 1 else f"; --colours FILE (lines `0 0` and `{value} 1`) renumbers it"
    return (
        f"--ignore {values} makes all others missing: if {value} is a class, as in masks of 0 and "
        f"{value}, leave it out{renumber}"
    )


def _percent(fraction: float) -> str:
    return f"{fraction:.2%}" if fraction < 0.1 else f"{fraction:.1%}"
