"""Geometries of a file's CRS on the pixels of a grid in another CRS.

An edge is straight in the CRS of its file, so it is bent in the grid's: transforming vertices alone
moves the border along a parallel by kilometres. Geometries are therefore cut to the scene's
surroundings and get further vertices, as many as the bending asks for, before they are transformed.

Near poles, along the antimeridian and at the end of a projection's domain no smooth map leads from
one CRS to the other. The grid is divided there, down to small blocks whose pixel centres are
transformed the other way and compared with the geometries one by one.
"""

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.warp import transform

from ganlab.data.grids import Grid
from ganlab.errors import InputError

Array = npt.NDArray[Any]

TOLERANCE = 0.002
"""Greatest distance in pixels between an edge and the chords that stand for it."""
SMALLEST = 32
"""Width in pixels of the blocks that are compared pixel by pixel."""
SAMPLES = 17
"""Points along each axis of a block at which the map between two CRSs is looked at."""
MARGIN = 0.02
"""What is kept of the geometries around a block, relative to its width."""
LEAST_MARGIN = 2.0
"""The same in pixels, for small blocks."""
ROUND_TRIP = 1.0
"""Greatest distance in pixels between a point and itself, there and back, that is corrected."""
NEGLIGIBLE = 0.001
"""The same, up to which nothing is corrected."""
VARIATION = 0.15
"""Greatest relative change of a pixel's width or direction inside a block with a smooth map."""
LEAST_ANGLE = 0.31
"""Least sine of the angle between the images of both axes; with VARIATION, no two places of a
block coincide."""
WEB_MERCATOR = 3857
EARTH_RADIUS = 6378137.0


@dataclass(frozen=True)
class Block:
    """A part of a grid, and what surrounds it in the CRS of a file.

    ``region`` (left, bottom, right, top) may reach beyond the longitudes that the CRS calls its
    own, to both sides of the antimeridian: places repeat every ``period``. Its middle is one of
    those.
    """

    top: int
    left: int
    bottom: int
    right: int
    region: tuple[float, float, float, float]
    smooth: bool
    """Whether geometries can be transformed here; otherwise pixel centres are."""
    longest: float
    """Longest edge, in units of the file's CRS, that stays straight enough when transformed."""
    apart: float
    """Greatest distance in pixels between a point and itself, there and back: PROJ inverts shifts
    of datum to a few millimetres only."""

    @property
    def middle(self) -> tuple[float, float]:
        """Column and row of its centre."""
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2


def crs_name(crs: CRS) -> str:
    """Code of a CRS, or the name it gives itself: for messages.

    >>> crs_name(CRS.from_epsg(32633)), crs_name(CRS.from_wkt('LOCAL_CS["site",UNIT["metre",1]]'))
    ('EPSG:32633', '"site"')
    """
    code = crs.to_epsg()
    if code is not None:
        return f"EPSG:{code}"
    wkt = str(crs.to_wkt())
    found = re.search(r'\["([^"]*)"', wkt)
    return f'"{found[1]}"' if found else wkt[:60]


def period(crs: CRS) -> float | None:
    """Distance in x after which a CRS repeats itself, None where it does not.

    >>> period(CRS.from_epsg(4326)), period(CRS.from_epsg(32633))
    (360.0, None)
    """
    if crs.is_geographic:
        return float(round(2 * math.pi / crs.units_factor[1], 9))
    if crs.to_epsg() == WEB_MERCATOR:
        return 2 * math.pi * EARTH_RADIUS
    return None


def transform_points(source: CRS, target: CRS, points: Array) -> Array:
    """Points ``(n, 2)`` of one CRS in another; NaN where there is no such place.

    rasterio gives up all points when one of them fails, so those that fail are searched by halves.
    """
    found = np.full(points.shape, np.nan)
    possible = np.isfinite(points).all(axis=1)
    if source.is_geographic:
        possible &= np.abs(points[:, 1]) <= (period(source) or 0) / 4
    waiting = [np.flatnonzero(possible)]
    with rasterio.Env():  # GDAL would print its errors beside ours
        while waiting:
            chosen = waiting.pop()
            if not len(chosen):
                continue
            try:
                xs, ys = transform(source, target, points[chosen, 0], points[chosen, 1])
            except Exception:  # GDAL's errors have no common type
                if len(chosen) > 1:
                    waiting += np.array_split(chosen, 2)
                continue
            found[chosen, 0] = xs
            found[chosen, 1] = ys
    found[~np.isfinite(found).all(axis=1)] = np.nan
    return found


def check_transformation(file: str, crs: CRS, grid: Grid) -> None:
    """Refuse two systems between which PROJ knows no way, such as a local one and UTM.

    Raises:
        InputError: names both.
    """
    if crs == grid.crs:
        return
    corner = _affine(grid.transform, np.zeros((1, 2)))[0]
    try:
        with rasterio.Env():
            transform(grid.crs, crs, [corner[0]], [corner[1]])
    except Exception as error:  # GDAL's errors have no common type
        if "coordinate operation" not in str(error) and not isinstance(
            error, rasterio.errors.CRSError
        ):
            return  # only this corner has no place there
        names = [crs_name(crs), crs_name(grid.crs)]
        if names[0] == names[1]:
            names[1] += " of another definition"
        raise InputError(
            f"{file} is in {names[0]} and the scene in {names[1]}, and no transformation leads "
            "from one to the other: give both in systems that are tied to the Earth, or both in "
            "the same local one"
        ) from error


def blocks(grid: Grid, crs: CRS) -> list[Block]:
    """Parts of a grid that together hold all its pixels with a place in ``crs``."""
    if crs == grid.crs:
        return [_whole(grid)]
    found: list[Block] = []
    waiting = [(0, 0, grid.height, grid.width)]
    while waiting:
        top, left, bottom, right = waiting.pop()
        block = _look(grid, crs, top, left, bottom, right)
        if block is None:
            continue
        if block.smooth or max(bottom - top, right - left) <= SMALLEST:
            found.append(block)
            continue
        rows = _halves(top, bottom)
        columns = _halves(left, right)
        waiting += [(a, c, b, d) for a, b in rows for c, d in columns]
    return found


def transformed(shapes: Array, crs: CRS, grid: Grid, block: Block) -> Array:
    """Geometries inside the region of a smooth block, in the CRS of the grid.

    Raises:
        InputError: a vertex has no place in the CRS of the grid.
    """
    if crs == grid.crs:
        return shapes
    if math.isfinite(block.longest):
        shapes = shapely.segmentize(shapes, block.longest)

    def move(points: Array) -> Array:
        pixels = pixels_of(grid, crs, points, block)
        if block.apart > NEGLIGIBLE:
            pixels = pixels_of(grid, crs, points + _error(grid, crs, points, pixels), block)
        if np.isnan(pixels).any():
            raise InputError(
                f"a vertex in {crs_name(crs)} has no place in {crs_name(grid.crs)}, the CRS of the "
                "scene: cut the vectors to the scene first"
            )
        # Both sides of a seam, such as 180 and -180 degrees, come to lie on the same numbers.
        return _affine(grid.transform, np.round(pixels, 6))

    return np.asarray(shapely.transform(shapes, move))


def pixels_of(grid: Grid, crs: CRS, points: Array, block: Block) -> Array:
    """Columns and rows ``(n, 2)`` of points in another CRS, as near to the block as they repeat."""
    places = transform_points(crs, grid.crs, points)
    repeats = period(grid.crs)
    if repeats:
        middle = _affine(grid.transform, np.array([block.middle]))[0]
        places[:, 0] += repeats * np.round((middle[0] - places[:, 0]) / repeats)
    return _affine(~grid.transform, places)


def centres(grid: Grid, crs: CRS, block: Block) -> Array:
    """Centres of the pixels of a block in another CRS, ``(n, 2)`` row by row; NaN without a place.

    Places that repeat are given as near to the region of the block as can be.
    """
    columns = np.arange(block.left, block.right) + 0.5
    rows = np.arange(block.top, block.bottom) + 0.5
    x, y = np.meshgrid(columns, rows)
    pixels = np.stack([x.ravel(), y.ravel()], axis=1)
    places = transform_points(grid.crs, crs, _affine(grid.transform, pixels))
    repeats = period(crs)
    if repeats:
        middle = (block.region[0] + block.region[2]) / 2
        places[:, 0] += repeats * np.round((middle - places[:, 0]) / repeats)
    return places


def _whole(grid: Grid) -> Block:
    margin = max(LEAST_MARGIN, MARGIN * max(grid.width, grid.height))
    corners = _lattice(-margin, grid.width + margin, -margin, grid.height + margin, 2)
    region = _bounds(_affine(grid.transform, corners))
    return Block(0, 0, grid.height, grid.width, region, True, math.inf, 0.0)


def _look(grid: Grid, crs: CRS, top: int, left: int, bottom: int, right: int) -> Block | None:
    """A block as it lies in another CRS; None if no point of it has a place there."""
    margin = max(LEAST_MARGIN, MARGIN * max(bottom - top, right - left))
    lattice = _lattice(left - margin, right + margin, top - margin, bottom + margin, SAMPLES)
    places = transform_points(grid.crs, crs, _affine(grid.transform, lattice))
    known = np.isfinite(places[:, 0])
    if not known.any():
        return None
    repeats = period(crs)
    if repeats:
        middle = places[len(places) // 2] if known[len(places) // 2] else places[known][0]
        places[:, 0] += repeats * np.round((middle[0] - places[:, 0]) / repeats)
        places[:, 0] -= repeats * np.round(places[known, 0].mean() / repeats)
    region = _bounds(places[known])
    block = Block(top, left, bottom, right, region, True, math.inf, 0.0)
    longest = None
    apart = math.inf
    if known.all():
        back = pixels_of(grid, crs, places, block)
        apart = float(np.abs(back - lattice).max())
        if apart <= ROUND_TRIP:  # False for NaN
            longest = _longest_edge(grid, crs, block)
    if longest is not None:
        return Block(top, left, bottom, right, region, True, longest, apart)
    # The samples may have missed the outermost places, a pole for instance.
    width = region[2] - region[0]
    height = region[3] - region[1]
    around = (
        region[0] - width / 2,
        region[1] - height / 2,
        region[2] + width / 2,
        region[3] + height / 2,
    )
    return Block(top, left, bottom, right, around, False, math.inf, math.inf)


def _longest_edge(grid: Grid, crs: CRS, block: Block) -> float | None:
    """How long an edge in a region may be; None if the map from there to the grid is not smooth.

    The chord of an arc of length s departs from it by at most s² / 8 times the second derivative,
    which differences on a lattice give.
    """
    left, bottom, right, top = block.region
    lattice = _lattice(left, right, bottom, top, SAMPLES)
    pixels = pixels_of(grid, crs, lattice, block).reshape(SAMPLES, SAMPLES, 2)
    if np.isnan(pixels).any():
        return None
    along_x = np.diff(pixels, axis=1)
    along_y = np.diff(pixels, axis=0)
    mean_x = along_x.mean(axis=(0, 1))
    mean_y = along_y.mean(axis=(0, 1))
    width = np.linalg.norm(mean_x)
    height = np.linalg.norm(mean_y)
    varies_x = np.linalg.norm(along_x - mean_x, axis=-1).max()
    varies_y = np.linalg.norm(along_y - mean_y, axis=-1).max()
    if not (varies_x <= VARIATION * width and varies_y <= VARIATION * height):
        return None
    area = abs(mean_x[0] * mean_y[1] - mean_x[1] * mean_y[0])
    if not area > LEAST_ANGLE * width * height:
        return None
    seconds = [
        np.linalg.norm(np.diff(along_x, axis=1), axis=-1).max(),
        2 * np.linalg.norm(np.diff(along_x, axis=0), axis=-1).max(),
        np.linalg.norm(np.diff(along_y, axis=0), axis=-1).max(),
    ]
    bending = 2 * sum(seconds)  # twice: it may be greater between two points of the lattice
    steps = math.sqrt(8 * TOLERANCE / max(bending, 1e-12))
    step = min(right - left, top - bottom) / (SAMPLES - 1)
    return float(steps * step)


def _error(grid: Grid, crs: CRS, points: Array, pixels: Array) -> Array:
    """What is missing from pixels that were transformed back to where they came from."""
    missing = points - transform_points(grid.crs, crs, _affine(grid.transform, pixels))
    repeats = period(crs)
    if repeats:
        missing[:, 0] -= repeats * np.round(missing[:, 0] / repeats)
    return missing


def _affine(transform: Affine, points: Array) -> Array:
    x, y = points.T
    columns = transform.a * x + transform.b * y + transform.c
    rows = transform.d * x + transform.e * y + transform.f
    return np.stack([columns, rows], axis=1)


def _lattice(left: float, right: float, low: float, high: float, count: int) -> Array:
    xs = np.linspace(left, right, count)
    ys = np.linspace(low, high, count)
    x, y = np.meshgrid(xs, ys)
    return np.stack([x.ravel(), y.ravel()], axis=1)


def _bounds(points: Array) -> tuple[float, float, float, float]:
    left, bottom = points.min(axis=0).tolist()
    right, top = points.max(axis=0).tolist()
    return left, bottom, right, top


def _halves(start: int, stop: int) -> list[tuple[int, int]]:
    if stop - start <= SMALLEST:
        return [(start, stop)]
    middle = (start + stop) // 2
    return [(start, middle), (middle, stop)]
