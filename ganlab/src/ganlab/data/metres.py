"""The size of pixels on the ground, in metres, whatever the units of a coordinate system are."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from rasterio.warp import transform as transform_points

from ganlab.data.grids import Grid

Array = npt.NDArray[Any]

EQUATOR_RADIUS = 6_378_137.0
FLATTENING = 1 / 298.257223563
"""The ellipsoid of WGS 84, in metres."""
BASELINE = 100.0
"""Metres along which a pixel is measured: rounding of coordinates then stays below a millionth."""


def ground_pixel_size(grid: Grid) -> float | None:
    """Width in metres of a square with the ground area of the pixel in the middle of a grid.

    The middle is brought to longitude and latitude and measured on the ellipsoid of WGS 84, so
    0.3048 m and 1 foot are one size, degrees count at their latitude, and the stretched metres of
    web mercator shrink to those on the ground. A system without a way to longitude and latitude
    (a local one) counts by its own unit of length.

    Returns:
        Metres; None without a CRS, or if the system has no unit of length either.

    >>> from affine import Affine
    >>> from rasterio.crs import CRS
    >>> degrees = Grid(CRS.from_epsg(4326), Affine(0.001, 0, 8, 0, -0.001, 60), 10, 10)
    >>> round(ground_pixel_size(degrees), 1)  # 55.8 m to the east, 111.4 m to the north
    78.9
    """
    if grid.crs is None:
        return None
    size = _measured_size(grid, 1.0)
    if size is None:
        return _nominal_size(grid)
    if size < BASELINE:
        # Of small pixels many are measured at once.
        size = _measured_size(grid, BASELINE / size) or size
    return size


def _measured_size(grid: Grid, pixels: float) -> float | None:
    """The size by a parallelogram of so many pixels around the middle; None if that fails."""
    column = grid.width / 2
    row = grid.height / 2
    half = pixels / 2
    ends = ((column - half, row), (column + half, row), (column, row - half), (column, row + half))
    xs, ys = zip(*(grid.transform * end for end in ends), strict=True)
    try:
        longitudes, latitudes = transform_points(grid.crs, "EPSG:4326", xs, ys)
    except Exception:  # GDAL's errors have no common type
        return None
    west, east, north, south = _on_the_ellipsoid(np.array(longitudes), np.array(latitudes))
    area = float(np.linalg.norm(np.cross(east - west, south - north)))
    if not math.isfinite(area) or area == 0:
        return None
    return math.sqrt(area) / pixels


def _on_the_ellipsoid(longitudes: Array, latitudes: Array) -> Array:
    """``(n, 3)`` Cartesian coordinates in metres: no pole and no antimeridian to go wrong at."""
    longitude = np.radians(longitudes)
    latitude = np.radians(latitudes)
    eccentricity = FLATTENING * (2 - FLATTENING)
    radius = EQUATOR_RADIUS / np.sqrt(1 - eccentricity * np.sin(latitude) ** 2)
    x = radius * np.cos(latitude) * np.cos(longitude)
    y = radius * np.cos(latitude) * np.sin(longitude)
    z = radius * (1 - eccentricity) * np.sin(latitude)
    return np.stack([x, y, z], axis=1)


def _nominal_size(grid: Grid) -> float | None:
    """The size by the unit of the system alone."""
    assert grid.crs is not None
    if grid.crs.is_geographic:
        return None
    try:
        _, metres = grid.crs.units_factor
    except ValueError:
        return None
    return math.sqrt(abs(grid.transform.determinant)) * float(metres)
