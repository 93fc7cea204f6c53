"""Scenes: rasters and vector labels of any size, read window by window on a known grid.

A scene holds paths and options, not open files, so that it can travel to another process.
Whatever a file uses to say "missing" (nodata value, alpha band, internal mask, NaN) becomes one
valid mask: 1 = measured.
"""

import math
import os
import shlex
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.crs import CRS
from rasterio.enums import MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.features import rasterize
from rasterio.warp import transform as transform_points
from rasterio.warp import transform_bounds
from rasterio.windows import Window

from ganlab.data.bands import Band, choose_bands, split_paths, stacked
from ganlab.data.grids import Grid
from ganlab.errors import InputError

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]
Edges = Literal["shift", "pad", "drop"]
VECTORS = (".geojson", ".json", ".gpkg", ".shp", ".fgb")
DTYPES = ("uint8", "uint16", "int16", "uint32", "int32", "float32", "float64")
LOCK = threading.Lock()


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
        """``(C, h, w)`` pixels of a window, and ``(h, w)`` bool, True = measured.

        The window may reach outside the raster; nothing is measured there.

        Raises:
            InputError: the file cannot be read, for example because it is cut short.
        """
        out = np.zeros((len(self.bands), window.height, window.width), self.dtype)
        valid = np.zeros((window.height, window.width), bool)
        top, left = max(window.row_off, 0), max(window.col_off, 0)
        height = min(window.row_off + window.height, self.grid.height) - top
        width = min(window.col_off + window.width, self.grid.width) - left
        if height > 0 and width > 0:
            row, column = top - window.row_off, left - window.col_off
            place = np.s_[row : row + height, column : column + width]
            out[:, *place], valid[place] = self._read_inside(Window(left, top, width, height))
        return out, valid

    def _read_inside(self, window: Window) -> tuple[Array, Bools]:
        raise NotImplementedError


@dataclass(frozen=True)
class RasterScene(Scene):
    """A raster, or several band files that lie on one grid; made by ``open_scene``.

    Where a nodata value marks missing pixels, a uint8 pixel is missing when all its bands hold
    it (one dark band is not a hole), any other pixel when one of its bands does.
    """

    parts: tuple[Band, ...]

    def _read_inside(self, window: Window) -> tuple[Array, Bools]:
        values = np.zeros((len(self.parts), window.height, window.width), self.dtype)
        valid = np.ones((window.height, window.width), bool)
        for path in dict.fromkeys(band.path for band in self.parts):
            places = [i for i, band in enumerate(self.parts) if band.path == path]
            chosen_alpha = any(self.parts[i].alpha for i in places)
            try:
                dataset = _dataset(path, _age(path), os.getpid(), threading.get_ident())
                values[places] = dataset.read([self.parts[i].number for i in places], window=window)
                if MaskFlags.per_dataset in dataset.mask_flag_enums[0] and not chosen_alpha:
                    valid &= dataset.dataset_mask(window=window) > 0
            except RasterioError as error:
                reason = error.__cause__ or error
                raise InputError(
                    f"{path} cannot be read ({reason}): it is damaged or cut short, get it again"
                ) from error
        if self.nodata is not None and not math.isnan(self.nodata):
            known = values != self.nodata
            valid &= known.any(axis=0) if self.dtype == "uint8" else known.all(axis=0)
        if values.dtype.kind == "f":
            valid &= np.isfinite(values).all(axis=0)
        return values, valid


@dataclass(frozen=True)
class VectorScene(Scene):
    """Vector labels burned into the grid of a scene; made by ``open_labels``.

    A pixel belongs to a feature that holds its centre; later features lie over earlier ones,
    pixels outside all features are 0.
    """

    attribute: str | None

    def _read_inside(self, window: Window) -> tuple[Array, Bools]:
        import shapely

        shapes, classes, tree, _ = _features(self.file, _age(self.file), self.grid, self.attribute)
        area = Grid(self.grid.crs, self.grid.at(window), window.width, window.height)
        values = np.zeros((1, window.height, window.width), self.dtype)
        found = np.sort(tree.query(shapely.box(*area.bounds())))
        if len(found):
            burned = [(shapes[i], int(classes[i])) for i in found]
            rasterize(burned, out=values[0], transform=area.transform)
        return values, np.ones(values.shape[1:], bool)


def open_scene(
    paths: str | Path | Sequence[str | Path],
    bands: Sequence[str | int] = (),
    nodata: float | None = None,
    ungeoreferenced: bool = False,
) -> RasterScene:
    """Open a raster, or several band files as one scene.

    Args:
        paths: one file, several joined by commas, or a sequence of files.
        bands: by number (from 1, through all files) or by name: a description, a colour, or the
            band that a file is named after (``B4``). Where a text can be both, it is
            ``"number:4"`` or ``"name:4"``. If empty, all but alpha. An alpha band that is asked
            for is no mask: GDAL marks any fourth band of uint8 files so.
        nodata: value of missing pixels, for files that declare none.
        ungeoreferenced: accept files without a CRS.

    Raises:
        InputError: unreadable file, no CRS, no such band, band files that do not fit together.
    """
    files = split_paths(paths)
    opened = [_open_file(file, ungeoreferenced) for file in files]
    first = opened[0]
    for other in opened[1:]:
        check_same_grid(first, other)
        mine, theirs = (f"{scene.dtype} with nodata {scene.nodata}" for scene in (first, other))
        if mine != theirs:
            raise InputError(
                f"{other.file} is {theirs}, {first.file} is {mine}: stack only files that agree"
            )
    everything = [band for scene in opened for band in scene.parts]
    if len(opened) > 1:
        everything = stacked(everything)
    chosen = [band for band in everything if not band.alpha]
    if bands:
        chosen = choose_bands(bands, everything)
    if not chosen:
        raise InputError(f"{first.file} has nothing but an alpha band; ask for it with --bands 1")
    nodata = nodata if first.nodata is None else first.nodata
    return replace(first, bands=tuple(b.name for b in chosen), nodata=nodata, parts=tuple(chosen))


def open_labels(
    path: str | Path, like: Grid, attribute: str | None = None, ungeoreferenced: bool = False
) -> Scene:
    """Open classes: a raster of one band, or a vector file (GeoJSON, GeoPackage, ...).

    Vectors are reprojected to the grid ``like`` of the image and burned into it window by
    window; the integer ``attribute`` holds their class, which is 1 without it. Rasters keep
    their own grid: compare it with ``check_same_grid``.

    Raises:
        InputError: unreadable file, more than one band, classes that are no integers, no CRS, no
            feature near the scene, pyogrio or shapely not installed.
    """
    path = str(path)
    if not path.lower().endswith(VECTORS):
        raster = open_scene([path], ungeoreferenced=ungeoreferenced)
        if len(raster.parts) > 1 or raster.dtype.startswith("float"):
            found = f"{len(raster.parts)} bands of {raster.dtype}"
            raise InputError(
                f"{path} has {found}; labels are one band of integers: gdal_translate -b 1 -ot Byte"
            )
        return raster
    if like.crs is None:
        raise InputError(f"{path} needs an image with a CRS to lie on; give raster labels")
    dtype = _features(path, _age(path), like, attribute)[3]
    return VectorScene(Path(path).stem, path, like, dtype, ("class",), None, attribute)


def check_same_grid(reference: Scene, other: Scene, kind: str = "image", factor: int = 1) -> None:
    """Refuse a raster that does not lie on the grid of another, and say how to repair it.

    ``other`` has ``factor`` pixels along one of ``reference``. Corners may differ by a hundredth
    of a pixel. Without a CRS only the sizes are compared.

    Raises:
        InputError: says what differs, with the ``gdalwarp`` line that repairs it: by nearest
            neighbours for the kinds ``"label"`` and ``"mask"``, otherwise smoothly.
    """
    want, have = reference.grid.scaled(factor), other.grid
    sizes = f"{have.width} x {have.height} pixels, not {want.width} x {want.height}"
    differences = [sizes] if (want.width, want.height) != (have.width, have.height) else []
    if want.crs is None or have.crs is None:
        if differences:
            raise InputError(f"{other.file} has {sizes} as {reference.file} has: make them agree")
        return
    if want.crs != have.crs:
        differences.append(f"CRS {have.crs_name}, not {want.crs_name}")
    else:
        corners = product((0, want.width), (0, want.height))
        shift = [np.subtract(~want.transform * (have.transform * p), p) for p in corners]
        if np.abs(shift).max() > 0.01:
            a, b = (tuple(grid.transform)[:6] for grid in (have, want))
            differences.append(f"transform {a}, not {b}")
    if not differences:
        return
    left, _, right, _ = transform_bounds(have.crs, want.crs, *have.bounds())
    finer = (right - left) / have.width < 0.75 * abs(want.transform.a)
    method = "near" if kind in ("label", "mask") else "average" if finer else "bilinear"
    options = ["-t_srs", want.crs_name, "-te", *want.bounds(), "-ts", want.width, want.height]
    files = [other.file, f"{Path(other.file).with_suffix('')}-warped.tif"]
    repair = shlex.join(map(str, ["gdalwarp", *options, "-r", method, *files]))
    if want.transform.b or want.transform.d or want.transform.e > 0:
        repair = f"gdalwarp {shlex.quote(reference.file)} north-up.tif (its grid is turned) first"
    where = f"{other.file} is not on the grid of {reference.file}"
    raise InputError(f"{where}: {'; '.join(differences)}. Repair: {repair}")


def windows(width: int, height: int, size: int, stride: int, edges: Edges) -> list[Window]:
    """Windows of ``size`` x ``size`` pixels over a raster, row by row from its upper left.

    They begin ``stride`` pixels apart. ``edges``: ``"shift"`` moves the last window of a row or
    column back inside, ``"pad"`` lets it reach over the border, ``"drop"`` leaves the rest out.

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
        last = extent - size if edges == "shift" else inside[-1] + stride
        reached = edges == "drop" or inside[-1] + size >= extent or last >= extent
        return inside if reached else [*inside, last]

    return [Window(x, y, size, size) for y in starts(height) for x in starts(width)]


def _open(path: str) -> Any:
    # The missing CRS is judged here; rasterio's own warning would only repeat it.
    with LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return rasterio.open(path)


def _age(path: str) -> int:
    # A part of the caches' keys, so that a changed file is read again.
    return os.stat(path).st_mtime_ns if os.path.exists(path) else 0


@lru_cache(maxsize=128)
def _dataset(path: str, age: int, process: int, thread: int) -> Any:
    """An open dataset, kept for the next window; GDAL wants one for each process and thread."""
    return _open(path)


def _open_file(path: str | Path, ungeoreferenced: bool) -> RasterScene:
    path, stem = str(path), Path(path).stem
    try:
        with _open(path) as dataset:
            grid = Grid(dataset.crs, dataset.transform, dataset.width, dataset.height)
            described = list(zip(dataset.colorinterp, dataset.descriptions, strict=True))
            dtypes, nodata = set(dataset.dtypes), dataset.nodata
    except RasterioError as error:
        raise InputError(f"{path} cannot be opened as a raster: {error}") from error
    if grid.crs is None and not ungeoreferenced:
        raise InputError(f"{path} has no CRS; give --ungeoreferenced to tile it by pixel")
    if len(dtypes) != 1 or not dtypes <= set(DTYPES):
        raise InputError(
            f"{path} has bands of type {', '.join(sorted(dtypes))}; expected one of "
            f"{', '.join(DTYPES)} for all: gdal_translate -ot"
        )
    parts = []
    for i, (colour, description) in enumerate(described, start=1):
        alpha = colour.name == "alpha"
        coloured = colour.name in ("red", "green", "blue")
        name = description or (colour.name if coloured else str(i))
        named = alpha or coloured or bool(description)
        parts.append(Band(path, i, "alpha" if alpha else name, alpha, named, description or ""))
    bands = tuple(band.name for band in parts)
    return RasterScene(stem, path, grid, dtypes.pop(), bands, nodata, tuple(parts))


@lru_cache(maxsize=8)
def _features(path: str, age: int, grid: Grid, attribute: str | None) -> tuple[Any, ...]:
    """Shapes near the grid in its CRS, their classes, a spatial index, a type for all classes."""
    try:
        import pyogrio
        import shapely
    except ImportError as error:
        raise InputError(f"{path} needs pyogrio, shapely: pip install 'ganlab[vector]'") from error
    options = {"columns": [] if attribute is None else [attribute], "return_fids": True}
    try:
        layers = pyogrio.list_layers(path)[:, 0]
        if len(layers) != 1:
            found = ", ".join(layers)
            raise InputError(f"{path} has layers {found}; expected one, extract it with ogr2ogr")
        meta, everywhere, _, values = pyogrio.raw.read(path, read_geometry=False, **options)
        if meta["crs"] is None:
            raise InputError(f"{path} has no CRS: give it one with `ogr2ogr -a_srs`")
        crs = CRS.from_user_input(meta["crs"])
        bounds = transform_bounds(grid.crs, crs, *grid.bounds())
        _, fids, geometry, near = pyogrio.raw.read(path, bbox=bounds, **options)
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError) as error:
        raise InputError(f"{path} cannot be read as a vector file: {error}") from error
    if len(everywhere) and not len(fids):
        raise InputError(f"{path} lies nowhere near the scene, {bounds}: check its CRS, axis order")
    shapes, classes, dtype = shapely.from_wkb(geometry), np.ones(len(fids), np.int64), "uint8"
    if attribute is not None:
        if not values or values[0].dtype.kind not in "iu":
            found = f"is {values[0].dtype}, or empty in places" if values else "is missing"
            raise InputError(f"{path}: attribute {attribute!r} {found}; give one of integers")
        classes = near[0]
        if values[0].min(initial=0) < 0 or values[0].max(initial=0) > 255:
            dtype = "int32"
    if path.lower().endswith(".gpkg"):
        # The spatial index answers in an order of its own; GeoJSON keeps that of the file.
        order = np.argsort(fids, kind="stable")
        shapes, classes = shapes[order], classes[order]

    shapes = shapely.transform(
        shapes, lambda points: np.stack(transform_points(crs, grid.crs, *points.T), axis=1)
    )
    return shapes, classes, shapely.STRtree(shapes), dtype
