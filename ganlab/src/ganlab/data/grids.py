"""Grids: where the pixels of a raster lie on the ground."""

import math
from dataclasses import dataclass
from itertools import product

from affine import Affine
from rasterio.crs import CRS
from rasterio.windows import Window


@dataclass(frozen=True)
class Grid:
    """Where the pixels of a raster lie; ``crs`` is None for ungeoreferenced images."""

    crs: CRS | None
    transform: Affine
    width: int
    height: int

    @property
    def crs_name(self) -> str | None:
        """``EPSG:...`` where there is a code, otherwise WKT."""
        return None if self.crs is None else str(self.crs.to_string())

    def scaled(self, scale: float) -> "Grid":
        """The same ground in pixels 1 / ``scale`` times as wide; a partial last pixel goes."""
        width, height = (math.floor(n * scale + 1e-9) for n in (self.width, self.height))
        return Grid(self.crs, self.transform * Affine.scale(1 / scale), width, height)

    def at(self, window: Window) -> Affine:
        """Transform of a window of this grid."""
        return self.transform * Affine.translation(window.col_off, window.row_off)

    def bounds(self) -> tuple[float, float, float, float]:
        """Left, bottom, right and top in the CRS."""
        corners = product((0, self.width), (0, self.height))
        xs, ys = zip(*(self.transform * corner for corner in corners), strict=True)
        return min(xs), min(ys), max(xs), max(ys)
