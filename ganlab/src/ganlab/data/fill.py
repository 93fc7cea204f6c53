"""Undeclared fill: pixels that are missing, though nothing in the file says so.

Programs write -9999, the smallest float, 65535 or 0 where they know nothing. Undeclared, such a
value is trained on, and it takes a place at one end of the scaling.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]

OPTIONS = {"image": "--nodata", "fine": "--fine-nodata"}
"""What declares the value when tiling."""
SETTINGS = {"image": "nodata", "fine": "fine_nodata"}
"""The same in ``TilingConfig``."""


@dataclass(frozen=True)
class Limits:
    """From when on an extreme value is taken for fill.

    Chosen on real scenes: saturated clouds and roofs, dark water and toytown stay below them, and
    fill of some percent in any of them lies above.
    """

    fraction: float = 0.005
    """Of the pixels: where quantile scaling begins."""
    distinct: int = 16
    """Other values that there must be: a map of few classes has extremes that mean something."""
    far: float = 1.0
    """Distance from the next value in units of the range of the others: from here on, fill."""
    spike: float = 5.0
    """Nearer ones: so many times as frequent as any value near it,"""
    frequent: float = 2.0
    """so many times as frequent as values are on average,"""
    solid: float = 0.75
    """so many of its pixels have it on all four sides,"""
    abrupt: float = 0.6
    """and pixels beside it are so much as far away from it as pixels are elsewhere. Saturation
    fades out into its surroundings; fill is cut out of them."""


LIMITS = Limits()
NEAR = 0.1
"""Values near an extreme one: within this part of the range of the others."""
SENTINELS = (-9999.0, -99999.0, -32768.0, -32767.0, -2147483648.0, 9.969209968386869e36)
"""Values that mean missing by convention, however few other values there are."""
LARGEST = 1e30
"""Nothing that is measured has values beyond this."""
SAMPLE = 200_000
"""Values from which the range of all is estimated."""


def suspected_fill(values: Array, valid: Bools, limits: Limits = LIMITS) -> dict[float, float]:
    """Extreme values of one band that look like fill, each with its fraction of the valid pixels.

    Args:
        values: ``(n, h, w)`` tiles of one band.
        valid: ``(n, h, w)``, True = measured.
        limits: from when on.
    """
    known = values[valid]
    if known.size == 0:
        return {}
    found = {}
    for extreme in dict.fromkeys((known.min(), known.max())):
        here = (values == extreme) & valid
        fraction = float(here.sum() / known.size)
        least = 0.0 if abs(float(extreme)) > LARGEST else limits.fraction
        if least <= fraction < 1 and _apart(values, valid, here, float(extreme), limits):
            found[float(extreme)] = fraction
    return found


def _apart(values: Array, valid: Bools, here: Bools, extreme: float, limits: Limits) -> bool:
    """Whether a value that many pixels have lies apart from all others."""
    if abs(extreme) > LARGEST or extreme in SENTINELS:
        return True
    others = values[valid & ~here]
    some = others[:: max(1, others.size // SAMPLE)].astype(np.float64)
    numbers, counts = np.unique(some, return_counts=True)
    if len(numbers) < limits.distinct:
        return False
    # The fill at the other end, if any, is left out of the range.
    plausible = some[np.abs(some) <= LARGEST]
    if plausible.size == 0:
        return False
    low, high = np.quantile(plausible, (0.01, 0.99))
    spread = float(high - low)
    distance = np.abs(numbers - extreme)
    if distance.min() > limits.far * spread:
        return True
    count = int(here.sum()) * some.size / others.size
    near = counts[distance <= NEAR * spread]
    if count < limits.spike * near.max(initial=0) or count < limits.frequent * counts.mean():
        return False
    return _solid(here) >= limits.solid and _abrupt(values, valid, here, some) >= limits.abrupt


def _solid(here: Bools) -> float:
    """The fraction of pixels whose four neighbours in the tile are like them."""
    inside = here[:, 1:-1, 1:-1].copy()
    total = int(inside.sum())
    for neighbour in (here[:, :-2, 1:-1], here[:, 2:, 1:-1], here[:, 1:-1, :-2], here[:, 1:-1, 2:]):
        inside &= neighbour
    return float(inside.sum() / max(total, 1))


def _abrupt(values: Array, valid: Bools, here: Bools, others: Array) -> float:
    """How far pixels beside a region are from its value, relative to pixels anywhere."""
    beside = np.zeros_like(here)
    beside[:, 1:] |= here[:, :-1]
    beside[:, :-1] |= here[:, 1:]
    beside[:, :, 1:] |= here[:, :, :-1]
    beside[:, :, :-1] |= here[:, :, 1:]
    beside &= valid & ~here
    if not beside.any():
        return 1.0  # it fills whole tiles
    extreme = values[here][0].astype(np.float64)
    step = np.median(np.abs(values[beside].astype(np.float64) - extreme))
    return float(step / np.median(np.abs(others - extreme)))


def said_to_be_measured(source: str, tiling: Mapping[str, Any]) -> bool:
    """Whether the options of a tiling say that no value of an image source means missing."""
    return source in SETTINGS and tiling.get(SETTINGS[source]) == "none"


def warn_of_fill(
    what: str,
    source: str,
    bands: Sequence[str],
    values: Array,
    valid: Bools,
    *,
    stacklevel: int = 2,
) -> None:
    """Say which extreme values look like fill, and what declares them.

    Args:
        what: the tile store, for the message.
        source: the image source.
        bands: its bands.
        values: ``(n, C, h, w)`` tiles.
        valid: ``(n, h, w)``, True = measured.
        stacklevel: as in ``warnings.warn``.
    """
    found: dict[float, dict[str, float]] = {}
    for i, band in enumerate(bands):
        for value, fraction in suspected_fill(values[:, i], valid).items():
            found.setdefault(value, {})[band] = fraction
    for value, fractions in found.items():
        warnings.warn(_sentence(what, source, value, fractions), stacklevel=stacklevel + 1)


def _sentence(what: str, source: str, value: float, fractions: Mapping[str, float]) -> str:
    least = min(fractions.values())
    most = max(fractions.values())
    shown = f"{most:.1%}" if f"{least:.1%}" == f"{most:.1%}" else f"{least:.1%} to {most:.1%}"
    measured = "all is well"
    if source in OPTIONS:
        measured += f" ({OPTIONS[source]} none says so)"
    several = "band" if len(fractions) == 1 else "bands"
    return (
        f"{what}: the value {value:.17g} makes up {shown} of the pixels of {source!r} in {several} "
        f"{', '.join(fractions)} and lies apart from all others, as a fill value does that no file "
        f"declares. If these pixels are missing, {how_to_declare(source, value)}; if they were "
        f"measured, {measured}"
    )


def how_to_declare(source: str, value: float) -> str:
    """What makes a value that no file declares count as missing."""
    if source in OPTIONS:
        return f"tile again with {OPTIONS[source]} {value:.17g}"
    return f"declare it in the files (gdal_translate -a_nodata {value:.17g})"
