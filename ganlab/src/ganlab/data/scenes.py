"""Scenes: rasters and vector labels of any size, read window by window on a known grid.

A scene holds paths and options, not open files, so that it can travel to another process.
Whatever a file uses to say "missing" (nodata value, alpha band, internal mask, NaN) becomes one
valid mask: 1 = measured.
"""

import math
import os
import re
import shlex
import threading
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.features import rasterize
from rasterio.warp import transform as transform_points
from rasterio.warp import transform_bounds
from rasterio.windows import Window

from ganlab.errors import InputError

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]
Edges = Literal["shift", "pad", "drop"]
COLOURS = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
VECTORS = (".geojson", ".json", ".gpkg", ".shp", ".fgb")
DTYPES = ("uint8", "uint16", "int16", "uint32", "int32", "float32", "float64")


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
        corners = [self.transform * (x, y) for x in (0, self.width) for y in (0, self.height)]
        xs, ys = zip(*corners, strict=True)
        return min(xs), min(ys), max(xs), max(ys)


@dataclass(frozen=True)
class Scene:
    """Anything that can be read by window: a raster, stacked band files or vector labels."""

    name: str
    """The file's name without folder and suffix."""
    file: str
    """The (first) file, for messages."""
    grid: Grid
    dtype: str
    """Numpy's name of the pixel type."""
    bands: tuple[str, ...]
    nodata: float | None

    def read(self, window: Window) -> tuple[Array, Bools]:
        """Read a window, which may reach outside the raster (invalid there).

        Returns:
            ``(C, h, w)`` in the scene's dtype, and ``(h, w)`` bool, True = measured.

        Raises:
            InputError: the file cannot be read, for example because it is cut short.
        """
        raise NotImplementedError


class Band(NamedTuple):
    """One band of one file; ``number`` counts from 1."""

    path: str
    number: int
    name: str
    alpha: bool


@dataclass(frozen=True)
class RasterScene(Scene):
    """A raster, or several band files that lie on one grid; made by ``open_scene``."""

    parts: tuple[Band, ...]

    def read(self, window: Window) -> tuple[Array, Bools]:
        """Read a window; see ``Scene.read``.

        Where a nodata value marks missing pixels, a uint8 pixel is missing when all its bands
        hold it (one dark band is not a hole), any other pixel when one of its bands does.
        """
        out = np.zeros((len(self.parts), window.height, window.width), self.dtype)
        valid = np.zeros((window.height, window.width), bool)
        rows, columns, inside = _inside(self.grid, window)
        if inside is None:
            return out, valid
        measured = np.ones((inside.height, inside.width), bool)
        for path in dict.fromkeys(band.path for band in self.parts):
            places = [i for i, band in enumerate(self.parts) if band.path == path]
            try:
                dataset = _dataset(path)
                values = dataset.read([self.parts[i].number for i in places], window=inside)
                chosen_alpha = any(self.parts[i].alpha for i in places)
                if MaskFlags.per_dataset in dataset.mask_flag_enums[0] and not chosen_alpha:
                    measured &= dataset.dataset_mask(window=inside) > 0
            except RasterioError as error:
                raise InputError(
                    f"{path} cannot be read at row {inside.row_off}, column {inside.col_off} "
                    f"({error.__cause__ or error}): the file is damaged or cut short, get it again"
                ) from error
            out[places, rows, columns] = values
        inner = out[:, rows, columns]
        if self.nodata is not None and not math.isnan(self.nodata):
            known = inner != self.nodata
            measured &= known.any(axis=0) if self.dtype == "uint8" else known.all(axis=0)
        if inner.dtype.kind == "f":
            measured &= np.isfinite(inner).all(axis=0)
        valid[rows, columns] = measured
        return out, valid


@dataclass(frozen=True)
class VectorScene(Scene):
    """Vector labels burned into the grid of a scene; made by ``open_labels``."""

    attribute: str | None

    def read(self, window: Window) -> tuple[Array, Bools]:
        """Read a window; see ``Scene.read``.

        A pixel belongs to a feature that holds its centre; later features lie over earlier
        ones, pixels outside all features are 0.
        """
        out = np.zeros((1, window.height, window.width), self.dtype)
        valid = np.zeros((window.height, window.width), bool)
        rows, columns, inside = _inside(self.grid, window)
        if inside is None:
            return out, valid
        import shapely

        features, values, tree = _features(self.file, _age(self.file), self.grid, self.attribute)
        area = Grid(self.grid.crs, self.grid.at(inside), inside.width, inside.height)
        found = np.sort(tree.query(shapely.box(*area.bounds())))
        if len(found):
            out[0, rows, columns] = rasterize(
                [(features[i], int(values[i])) for i in found],
                out_shape=(inside.height, inside.width),
                transform=area.transform,
                dtype=self.dtype,
            )
        valid[rows, columns] = True
        return out, valid


def open_scene(
    paths: str | Path | Sequence[str],
    bands: Sequence[str] = (),
    nodata: float | None = None,
    ungeoreferenced: bool = False,
) -> RasterScene:
    """Open a raster, or several band files as one scene.

    Args:
        paths: one file, several joined by commas, or a sequence of files.
        bands: which bands, by number (from 1, through all files) or by name: a description, a
            colour, or the band that a file is named after (``B4``). If empty, all but alpha
            bands. An alpha band that is asked for is an image band and no mask: GDAL marks the
            fourth band of uint8 files so, whatever it holds.
        nodata: value of missing pixels, for files that declare none.
        ungeoreferenced: accept files without a CRS.

    Raises:
        InputError: unreadable file, no CRS, no such band, band files on different grids or of
            different types.
    """
    files = str(paths).split(",") if isinstance(paths, str | Path) else list(paths)
    opened = [_open_file(file, len(files) > 1, ungeoreferenced) for file in files]
    first = opened[0]
    for other in opened[1:]:
        check_same_grid(first, other)
        if (other.dtype, str(other.nodata)) != (first.dtype, str(first.nodata)):
            raise InputError(
                f"{other.file} is {other.dtype} with nodata {other.nodata}, {first.file} is "
                f"{first.dtype} with nodata {first.nodata}: band files of one scene must agree"
            )
    everything = [band for scene in opened for band in scene.parts]
    chosen = tuple(_choose(everything, wanted) for wanted in bands)
    chosen = chosen or tuple(band for band in everything if not band.alpha)
    if not chosen:
        raise InputError(f"{first.file} has nothing but an alpha band; ask for it with --bands 1")
    return replace(
        first,
        bands=tuple(band.name for band in chosen),
        nodata=nodata if first.nodata is None else first.nodata,
        parts=chosen,
    )


def open_labels(
    path: str | Path,
    like: Grid,
    attribute: str | None = None,
    ungeoreferenced: bool = False,
) -> Scene:
    """Open classes: a raster of one band, or a vector file (GeoJSON, GeoPackage, ...).

    Vectors are reprojected to the grid ``like`` and burned into it window by window. Rasters
    keep their own grid: compare it with ``check_same_grid``.

    Args:
        path: the file.
        like: the grid of the image.
        attribute: vector labels: an integer attribute that holds the class. Without it,
            features are 1. Ground outside all features is 0.
        ungeoreferenced: accept rasters without a CRS.

    Raises:
        InputError: unreadable file, more than one band, classes that are no integers, no CRS, no
            feature near the scene, pyogrio or shapely not installed.
    """
    path = str(path)
    if not path.lower().endswith(VECTORS):
        raster = open_scene([path], ungeoreferenced=ungeoreferenced)
        if len(raster.parts) > 1 or raster.dtype.startswith("float"):
            raise InputError(
                f"{path} has {len(raster.parts)} bands of {raster.dtype}; labels are one band of "
                "integers: extract it with `gdal_translate -b 1 -ot Byte`"
            )
        return raster
    if like.crs is None:
        raise InputError(f"{path} needs an image with a CRS to lie on; give raster labels")
    dtype = "uint8"
    if attribute is not None:
        values = _read_vector(path, columns=[attribute], read_geometry=False)[3]
        if not values or values[0].dtype.kind not in "iu":
            found = f"is {values[0].dtype}, or empty in places" if values else "is missing"
            raise InputError(
                f"{path}: attribute {attribute!r} {found}; expected an integer in every feature"
            )
        if len(values[0]) and not 0 <= values[0].min() <= values[0].max() <= 255:
            dtype = "int32"
    _features(path, _age(path), like, attribute)
    return VectorScene(Path(path).stem, path, like, dtype, ("class",), None, attribute)


def check_same_grid(reference: Scene, other: Scene, kind: str = "image", factor: int = 1) -> None:
    """Refuse a raster that does not lie on the grid of another, and say how to repair it.

    Corners may differ by a hundredth of a pixel. Without a CRS only the sizes are compared.

    Args:
        reference: the scene with the right grid.
        other: the raster to compare.
        kind: ``"label"`` or ``"mask"`` are warped with nearest neighbours, others smoothly.
        factor: expected pixels of ``other`` along one pixel of ``reference``.

    Raises:
        InputError: says what differs, in numbers, with the ``gdalwarp`` line that repairs it.
    """
    want, have = reference.grid.scaled(factor), other.grid
    differences = []
    if (want.width, want.height) != (have.width, have.height):
        differences.append(f"{have.width} x {have.height} pixels, not {want.width} x {want.height}")
    if want.crs is None or have.crs is None:
        if differences:
            raise InputError(
                f"{other.file} has {differences[0]} as {reference.file} has: pairs without "
                "coordinates must agree in size"
            )
        return
    if want.crs != have.crs:
        differences.append(f"CRS {have.crs_name}, not {want.crs_name}")
    corners = product((0, want.width), (0, want.height))
    shift = [np.subtract(~want.transform * (have.transform * p), p) for p in corners]
    if want.crs == have.crs and np.abs(shift).max() > 0.01:
        a, b = (tuple(grid.transform)[:6] for grid in (have, want))
        differences.append(f"transform {a}, not {b}")
    if not differences:
        return
    left, bottom, right, top = want.bounds()
    smooth = (
        "average" if _pixel_width(have, want.crs) < 0.75 * abs(want.transform.a) else "bilinear"
    )
    target = str(Path(other.file).with_suffix("")) + "-warped.tif"
    method = "near" if kind in ("label", "mask") else smooth
    command = (
        f"gdalwarp -t_srs {shlex.quote(want.crs_name or '')} -te {left!r} {bottom!r} {right!r} "
        f"{top!r} -ts {want.width} {want.height} -r {method} {shlex.quote(other.file)} "
        f"{shlex.quote(target)}"
    )
    if want.transform.b or want.transform.d or want.transform.e > 0:
        command = f"gdalwarp {shlex.quote(reference.file)} north-up.tif (its grid is turned) first"
    raise InputError(
        f"{other.file} is not on the grid of {reference.file}: {'; '.join(differences)}. "
        f"Repair: {command}"
    )


def windows(width: int, height: int, size: int, stride: int, edges: Edges) -> list[Window]:
    """Windows of ``size`` x ``size`` pixels over a raster, row by row from its upper left.

    Args:
        width: columns of the raster.
        height: rows of the raster.
        size: width and height of a window.
        stride: distance of neighbouring windows; less than ``size`` overlaps.
        edges: ``"shift"`` moves the last window of a row or column back inside, ``"pad"`` lets
            it reach over the border, ``"drop"`` leaves the rest out.

    Raises:
        InputError: size or stride below 1, or a raster smaller than a window, without padding.
    """
    if size < 1 or stride < 1:
        raise InputError(f"size {size} and stride {stride} must be at least 1 pixel")
    if min(width, height) < 1 or (edges != "pad" and min(width, height) < size):
        raise InputError(
            f"{width} x {height} pixels are less than a tile of {size}: give --edges pad or a "
            "smaller --size"
        )

    def starts(extent: int) -> list[int]:
        inside = list(range(0, extent - size + 1, stride)) or [0]
        if edges == "drop" or inside[-1] + size >= extent:
            return inside
        if edges == "shift":
            return [*inside, extent - size]
        return list(range(0, min(extent, extent - size + stride), stride))

    return [Window(x, y, size, size) for y in starts(height) for x in starts(width)]


_LOCK = threading.Lock()
_LOCAL = threading.local()


def _open(path: str) -> Any:
    # The missing CRS is judged here; rasterio's own warning would only repeat it.
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return rasterio.open(path)


def _age(path: str) -> int:
    return os.stat(path).st_mtime_ns if os.path.exists(path) else 0


def _dataset(path: str) -> Any:
    """An open dataset, kept for the next window; GDAL wants one for each thread and process."""
    opened: OrderedDict[Any, Any] = _LOCAL.__dict__.setdefault("opened", OrderedDict())
    key = (path, _age(path), os.getpid())
    if key not in opened:
        opened[key] = _open(path)
        if len(opened) > 32:
            opened.popitem(last=False)[1].close()
    opened.move_to_end(key)
    return opened[key]


def _inside(grid: Grid, window: Window) -> tuple[slice, slice, Window | None]:
    """The part of a window that lies on the grid: its place in the window, and on the grid."""
    top, left = max(window.row_off, 0), max(window.col_off, 0)
    height = min(window.row_off + window.height, grid.height) - top
    width = min(window.col_off + window.width, grid.width) - left
    row, column = top - window.row_off, left - window.col_off
    inside = Window(left, top, width, height) if height > 0 and width > 0 else None
    return slice(row, row + height), slice(column, column + width), inside


def _open_file(path: str | Path, stacked: bool, ungeoreferenced: bool) -> RasterScene:
    path, stem = str(path), Path(path).stem
    try:
        with _open(path) as dataset:
            grid = Grid(dataset.crs, dataset.transform, dataset.width, dataset.height)
            colours, descriptions = dataset.colorinterp, dataset.descriptions
            dtypes, nodata = dataset.dtypes, dataset.nodata
    except RasterioError as error:
        raise InputError(f"{path} cannot be opened as a raster: {error}") from error
    if grid.crs is None and not ungeoreferenced:
        raise InputError(f"{path} has no CRS; give --ungeoreferenced to tile it by pixel")
    named = re.search(r"(?<![A-Za-z0-9])B\d{1,2}A?(?![A-Za-z0-9])", stem)
    parts = []
    for i, (colour, description) in enumerate(zip(colours, descriptions, strict=True), start=1):
        name = colour.name if colour in COLOURS else str(i)
        if stacked:
            name = named[0] if named else stem
            name += f"-{i}" if len(colours) > 1 else ""
        alpha = colour == ColorInterp.alpha
        parts.append(Band(path, i, "alpha" if alpha else description or name, alpha))
    found = set(dtypes)
    if len(found) != 1 or not found <= set(DTYPES):
        raise InputError(
            f"{path} has bands of type {', '.join(sorted(found))}; expected one of "
            f"{', '.join(DTYPES)} for all: convert it with `gdal_translate -ot`"
        )
    bands = tuple(band.name for band in parts)
    return RasterScene(stem, path, grid, found.pop(), bands, nodata, tuple(parts))


def _choose(bands: Sequence[Band], wanted: str) -> Band:
    number = int(wanted) if wanted.isdigit() else 0
    found = [band for band in bands if band.name == wanted]
    if number:
        found = list(bands[number - 1 : number])
    if len(found) != 1:
        names = ", ".join(f"{i} ({band.name})" for i, band in enumerate(bands, start=1))
        raise InputError(f"{bands[0].path} has no single band {wanted!r}; it has {names}")
    return found[0]


def _pixel_width(grid: Grid, crs: CRS) -> float:
    left, _, right, _ = transform_bounds(grid.crs, crs, *grid.bounds())
    return float((right - left) / grid.width)


def _read_vector(path: str, **options: Any) -> Any:
    """``(meta, fids, geometry as WKB, attribute columns)`` of the only layer of a file."""
    try:
        import pyogrio
        import shapely  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"{path}: vector labels need pyogrio and shapely, pip install 'ganlab[vector]'"
        ) from error
    try:
        layers = pyogrio.list_layers(path)[:, 0]
        if len(layers) != 1:
            raise InputError(
                f"{path} has layers {', '.join(layers)}; expected one, extract it with ogr2ogr"
            )
        found = pyogrio.raw.read(path, **options)
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError) as error:
        raise InputError(f"{path} cannot be read as a vector file: {error}") from error
    if found[0]["crs"] is None:
        raise InputError(f"{path} has no CRS: give it one with `ogr2ogr -a_srs`")
    return found


@lru_cache(maxsize=8)
def _features(path: str, age: int, grid: Grid, attribute: str | None) -> tuple[Array, Array, Any]:
    """Geometries near the grid in its CRS, their classes, and a spatial index.

    ``age`` is there so that a changed file is read again.
    """
    columns = [] if attribute is None else [attribute]
    meta, first, _, _ = _read_vector(path, columns=[], max_features=1, return_fids=True)
    import shapely

    crs = CRS.from_user_input(meta["crs"])
    bounds = transform_bounds(grid.crs, crs, *grid.bounds())
    _, fids, geometry, values = _read_vector(path, columns=columns, bbox=bounds, return_fids=True)
    if len(first) and not len(fids):
        raise InputError(
            f"{path} lies nowhere near the scene: it has no feature in {bounds} ({meta['crs']}); "
            "check its CRS and its axis order"
        )
    shapes = shapely.from_wkb(geometry)
    classes = values[0] if values else np.ones(len(shapes), np.int64)
    if path.lower().endswith(".gpkg"):
        # The spatial index answers in an order of its own; GeoJSON keeps that of the file.
        order = np.argsort(fids, kind="stable")
        shapes, classes = shapes[order], classes[order]

    def project(points: Array) -> Array:
        return np.stack(transform_points(crs, grid.crs, points[:, 0], points[:, 1]), axis=1)

    shapes = shapely.transform(shapes, project)
    return shapes, classes, shapely.STRtree(shapes)
