"""Coordinate reference systems, given as text.

Which are the same, how points get from one to another, and where one repeats itself.
"""

import math
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

STEP = 15.0
"""Degrees between the meridians by which a period is found."""
PARALLELS = (0.0, 40.0)
"""On these, meridians are equally far apart in systems that repeat themselves."""

NO_WAY = "coordinate operation"
"""In what GDAL says if there is no transformation between two systems at all."""


@lru_cache(maxsize=256)
def parsed(system: str) -> Any:
    """A system as an object of rasterio; None if it cannot be understood."""
    # Scenes without coordinates, or a single one, need no rasterio.
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    try:
        return CRS.from_user_input(system)
    except (CRSError, ValueError):
        return None


@lru_cache(maxsize=1024)
def is_same(one: str, other: str) -> bool:
    """Whether two texts mean one system.

    >>> is_same("EPSG:32633", "epsg:32633"), is_same("EPSG:32633", "EPSG:32634")
    (True, False)
    """
    if one == other:
        return True
    first = parsed(one)
    second = parsed(other)
    return first is not None and second is not None and bool(first == second)


@lru_cache(maxsize=256)
def period(system: str) -> float | None:
    """Distance along x after which a system comes to the same ground again; None if it does not.

    >>> period("EPSG:4326"), round(period("EPSG:3857")), period("EPSG:32633")
    (360.0, 40075017, None)
    """
    found = parsed(system)
    if found is None:
        return None
    if found.is_geographic:
        return float(round(2 * math.pi / found.units_factor[1], 9))
    meridians = np.arange(-180 + STEP / 3, 180, STEP)
    widths = []
    for parallel in PARALLELS:
        moved = transformed("EPSG:4326", system, meridians, np.full_like(meridians, parallel))
        steps = np.diff(moved[0])
        if not np.isfinite(steps).all():
            return None
        width = float(np.median(steps))
        # One step may lead over the border of the map.
        if (np.abs(steps - width) > 1e-6 * abs(width)).sum() > 1:
            return None
        widths.append(width)
    if abs(widths[0] - widths[1]) > 1e-6 * abs(widths[0]):
        return None
    return abs(widths[0]) * 360 / STEP


def transformed(source: str, target: str, xs: Floats, ys: Floats) -> tuple[Floats, Floats]:
    """Points in another system; NaN where they have no place there, or where no way leads to it.

    >>> x, y = transformed("EPSG:4326", "EPSG:32633", np.array([15.0]), np.array([0.0]))
    >>> round(x.item()), round(y.item())
    (500000, 0)
    """
    points = np.stack([xs.ravel(), ys.ravel()])
    moved = np.full(points.shape, np.nan)
    if parsed(source) is not None and parsed(target) is not None:
        from rasterio.env import Env

        with Env():  # GDAL would print its errors beside ours
            moved = _moved(source, target, points)
    moved[:, ~np.isfinite(moved).all(axis=0)] = np.nan
    return moved[0].reshape(xs.shape), moved[1].reshape(xs.shape)


def _moved(source: str, target: str, points: Floats) -> Floats:
    """Points ``(2, n)``; halved where one of them fails, because rasterio then gives up all."""
    from rasterio.warp import transform

    count = points.shape[1]
    nowhere = np.full(points.shape, np.nan)
    try:
        return np.array(transform(parsed(source), parsed(target), *points)[:2])
    except Exception as error:  # GDAL's errors have no common type
        if count <= 1 or NO_WAY in str(error):
            return nowhere
    halves = [_moved(source, target, half) for half in np.array_split(points, 2, axis=1)]
    return np.concatenate(halves, axis=1)
