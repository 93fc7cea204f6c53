"""Scenes: rasters and vector labels of any size, read window by window on a known grid.

A scene holds paths and options, not open files, so that it can travel to another process.
Whatever a file uses to say "missing" (nodata value, alpha band, internal mask, NaN) becomes one
valid mask: 1 = measured.
"""

import os
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError, RasterioIOError
from rasterio.warp import transform as transform_points
from rasterio.windows import Window

from ganlab.conversion import Nodata
from ganlab.data import repairs
from ganlab.data.bands import Band, choose_bands, split_paths, stacked
from ganlab.data.coding import Coding, coding_of, columns_of
from ganlab.data.grids import Grid
from ganlab.data.missing import (
    asked_nodata,
    common_nodata,
    declared_nodata,
    equals_nodata,
    same_nodata,
)
from ganlab.data.palettes import (
    check_not_palette,
    expanded,
    expanded_bands,
    without_stored_nodata,
)
from ganlab.data.tags import BandTags, Tagged, read_tags, tags_of, tags_of_classes
from ganlab.data.vectors import Features, features_on, is_vector
from ganlab.errors import InputError
from ganlab.files import is_special

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]
Edges = Literal["shift", "pad", "drop"]
Palette = Literal["refuse", "expand", "keep"]
DTYPES = ("uint8", "uint16", "int16", "uint32", "int32", "float32", "float64")
LARGEST = float(np.finfo(np.float32).max)
"""Networks compute in float32: what it cannot hold counts as not measured, like NaN."""
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
    """Value of missing pixels in all bands; None if there is none, or if bands differ."""
    tags: BandTags = field(default=BandTags(), kw_only=True)
    """What the files say of the bands: scale and offset, units, colours, a palette."""
    ignore: tuple[int, ...] = field(default=(), kw_only=True)
    """Labels: classes that mean unknown; their pixels count as not measured."""

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
        if self.ignore:
            valid &= ~np.isin(out, self.ignore).any(axis=0)
        return out, valid

    def _read_inside(self, window: Window) -> tuple[Array, Bools]:
        raise NotImplementedError


@dataclass(frozen=True)
class RasterScene(Scene):
    """A raster, or several band files that lie on one grid; made by ``open_scene``.

    A pixel is measured where all its bands are, and each band is compared with its own nodata
    value. One exception: where all bands of a uint8 scene have the same value, a pixel is missing
    only when all of them hold it. Bytes are colours stretched to 0 to 255, whose nodata is mostly
    0 or 255, and in one band that is a dark or a bright colour, not a hole.
    """

    parts: tuple[Band, ...]
    coding: Coding | None = None
    """Labels: how values become classes; if None, they are classes."""

    @property
    def tagged(self) -> Tagged:
        """Its bands with their tags, to be compared with others."""
        files = tuple(band.path for band in self.parts)
        return Tagged(self.file, self.bands, self.tags, self.dtype, files)

    def _read_inside(self, window: Window) -> tuple[Array, Bools]:
        dtype = self.dtype if self.coding is None else self.coding.stored
        values = np.zeros((len(self.parts), window.height, window.width), dtype)
        valid = np.ones((window.height, window.width), bool)
        for path in dict.fromkeys(band.path for band in self.parts):
            places = [i for i, band in enumerate(self.parts) if band.path == path]
            chosen = [self.parts[i] for i in places]
            try:
                dataset = _dataset(path, _age(path), os.getpid(), threading.get_ident())
                stored = dataset.read([band.number for band in chosen], window=window)
                values[places], visible = expanded(dataset, stored, chosen)
                valid &= visible & _unmasked(dataset, chosen, window)
            except RasterioError as error:
                reason = error.__cause__ or error
                raise InputError(
                    f"{path} cannot be read ({reason}): it is damaged or cut short, get it again"
                ) from error
        if values.dtype.kind == "f":
            valid &= (np.abs(values) <= LARGEST).all(axis=0)
        valid &= self._without_nodata(values)
        if self.coding is not None:
            values = self.coding.classes(values, valid, self.file, window)
        return values, valid

    def _without_nodata(self, values: Array) -> Bools:
        """Where ``(C, h, w)`` pixels are measured, as the nodata values of their bands say."""
        declared = [band.nodata for band in self.parts]
        if not any(value is not None for value in declared):
            return np.ones(values.shape[1:], bool)
        pairs = zip(values, declared, strict=True)
        missing = np.stack([equals_nodata(band, nodata) for band, nodata in pairs])
        if values.dtype == "uint8" and common_nodata(declared) is not None:
            return np.asarray(~missing.all(axis=0))
        return np.asarray(~missing.any(axis=0))


@dataclass(frozen=True)
class VectorScene(Scene):
    """Vector labels burned into the grid of a scene; made by ``open_labels``.

    A pixel belongs to a polygon that holds its centre; later features lie over earlier ones,
    pixels outside all features are 0.
    """

    attribute: str | None
    layer: str | None
    empty: bool
    """Whether no feature lies on the scene: all its pixels are 0."""

    def _read_inside(self, window: Window) -> tuple[Array, Bools]:
        values = self._features().burn(window, self.dtype)
        return values[None], np.ones(values.shape, bool)

    def _features(self) -> Features:
        return features_on(self.file, self.grid, self.attribute, self.layer)


def open_scene(
    paths: str | Path | Sequence[str | Path],
    bands: Sequence[str | int] = (),
    nodata: Nodata | None = "declared",
    ungeoreferenced: bool = False,
    option: str = "--nodata",
    palette: Palette = "refuse",
) -> RasterScene:
    """Open a raster, or several band files as one scene.

    Args:
        paths: one file, several joined by commas, or a sequence of files.
        bands: by number (from 1, through all files) or by name: a description, a colour, or the
            band that a file is named after (``B4``). Where a text can be both, it is
            ``"number:4"`` or ``"name:4"``. If empty, all but alpha. An alpha band that is asked
            for is no mask: GDAL marks any fourth band of uint8 files so.
        nodata: value of missing pixels in all bands, in place of what the files declare, or
            ``"none"``: no value means missing. A warning says which declaration it overrules.
            ``"declared"``, or None, leaves it to the files.
        ungeoreferenced: accept files without a CRS.
        option: what messages call ``nodata``.
        palette: what becomes of numbers that stand for colours in a table: ``"refuse"`` images of
            them, ``"expand"`` to red, green and blue, or ``"keep"`` the numbers (classes, masks).

    Raises:
        InputError: unreadable file, no CRS, no such band, band files that do not fit together, a
            nodata value that the pixels cannot have.
    """
    files = split_paths(paths)
    opened = [_open_file(file, ungeoreferenced) for file in files]
    first = opened[0]
    for other in opened[1:]:
        check_same_grid(first, other)
        if other.dtype != first.dtype:
            dtype = repairs.common_type(first.dtype, other.dtype)
            raise InputError(
                f"{other.file} is {other.dtype} but {first.file} is {first.dtype}; stack only "
                f"files that agree. Repair: {repairs.convert_lines([first, other], dtype)}"
            )
    everything = [band for scene in opened for band in scene.parts]
    tags = {file: _tags(file) for file in files}
    if palette == "expand":
        everything = expanded_bands(everything, tags)
    if len(opened) > 1:
        everything = stacked(everything)
    chosen = [band for band in everything if not band.alpha]
    if bands:
        chosen = choose_bands(bands, everything)
    if not chosen:
        raise InputError(f"{first.file} has nothing but an alpha band; ask for it with --bands 1")
    if palette == "refuse":
        check_not_palette(chosen, tags)
    if nodata not in (None, "declared"):
        value = asked_nodata(nodata, first.dtype, first.file, option)
        _say_what_is_overruled(chosen, value, option)
        chosen = [band._replace(nodata=value) for band in chosen]
    chosen = [without_stored_nodata(band) for band in chosen]
    common = common_nodata([band.nodata for band in chosen])
    return replace(
        first,
        dtype="uint8" if all(band.component is not None for band in chosen) else first.dtype,
        bands=tuple(band.name for band in chosen),
        nodata=common,
        parts=tuple(chosen),
        tags=tags_of(chosen, tags),
    )


def _say_what_is_overruled(bands: Sequence[Band], value: float | None, option: str) -> None:
    for path in dict.fromkeys(band.path for band in bands):
        declared = [band.nodata for band in bands if band.path == path and band.nodata is not None]
        overruled = [other for other in declared if not same_nodata(other, value)]
        if overruled:
            found = ", ".join(dict.fromkeys(f"{other:.17g}" for other in overruled))
            asked = "none" if value is None else f"{value:.17g}"
            warnings.warn(
                f"{path} declares nodata {found}; {option} {asked} takes its place", stacklevel=3
            )


def open_labels(
    path: str | Path,
    like: Grid,
    attribute: str | None = None,
    ungeoreferenced: bool = False,
    layer: str | None = None,
    *,
    nodata: Nodata | None = "declared",
    ignore: Sequence[int] = (),
    colours: str | Path | None = None,
    option: str = "--label-nodata",
) -> Scene:
    """Open classes: a raster of one band, or a vector file (GeoJSON, GeoPackage, ...).

    Vectors are reprojected to the grid ``like`` of the image and burned into it window by
    window; the integer ``attribute`` holds their class, which is 1 without it, and ``layer``
    chooses among several. Rasters keep their own grid: compare it with ``check_same_grid``.

    ``nodata`` and ``option`` are for rasters, as in ``open_scene``. Pixels of the classes to
    ``ignore`` count as not measured. ``colours`` is a file that recodes a raster's colours, or the
    values of its one band, to classes (see ``ganlab.data.coding``). Floats that are whole numbers
    are classes, too.

    Raises:
        InputError: unreadable file, more than one band without colours, no CRS, a file
            of another place, several layers, pyogrio not installed; when read: a fraction, a
            colour without a class.
    """
    path = str(path)
    if not is_vector(path):
        # A number of a palette is a class, unless the table of classes is one of colours.
        by_colour = colours is not None and columns_of(colours) > 1
        palette: Palette = "expand" if by_colour else "keep"
        raster = open_scene([path], (), nodata, ungeoreferenced, option=option, palette=palette)
        classes = _as_classes(raster, colours)
        if nodata in (None, "declared"):
            _say_what_is_hidden(classes, option)
        return replace(classes, ignore=tuple(ignore))
    if like.crs is None:
        raise InputError(f"{path} needs an image with a CRS to lie on; give raster labels")
    features = features_on(path, like, attribute, layer)
    return VectorScene(
        name=Path(path).stem,
        file=path,
        grid=like,
        dtype=features.dtype,
        bands=("class",),
        nodata=None,
        attribute=attribute,
        layer=layer,
        empty=features.empty,
        ignore=tuple(ignore),
    )


def _say_what_is_hidden(label: RasterScene, option: str) -> None:
    """Say where a colour has a class in the table, but means missing by the file's own words."""
    if label.coding is None:
        return
    nodata = [band.nodata for band in label.parts]
    for colour, number in label.coding.table:
        if list(colour) == nodata:
            shown = " ".join(map(str, colour))
            warnings.warn(
                f"{label.file} declares nodata {colour[0]}, and {label.coding.source} gives class "
                f"{number} to {shown}: these pixels count as missing, and {option} none makes them "
                "that class",
                stacklevel=3,
            )


def _as_classes(raster: RasterScene, colours: str | Path | None) -> RasterScene:
    """A raster whose pixels are classes, one band."""
    coding = coding_of(raster.file, raster.dtype, raster.bands, colours)
    if len(raster.bands) > 1 and (coding is None or not coding.table):
        found = f"{raster.file} has {len(raster.bands)} bands of {raster.dtype}"
        if len(raster.bands) == 3 and raster.dtype == "uint8":
            raise InputError(
                f"{found}; labels are one band of classes: recode colours to numbers with "
                "--colours FILE, a text that has a line R G B CLASS for each colour"
            )
        names = ", ".join(f"{band.number} ({band.name})" for band in raster.parts)
        number = raster.parts[0].number
        keep = repairs.bands_line(raster.file, [number], f"band{number}")
        raise InputError(
            f"{found}; labels are one band of classes. Its bands are {names}: keep the one with "
            f"the classes, for the first that is: {keep} (finer images of the same ground go to "
            "--fine)"
        )
    if coding is None:
        return raster
    bands = ("class",) if coding.table else raster.bands
    nodata = None if coding.table else raster.nodata
    tags = raster.tags
    if coding.table:
        tags = tags_of_classes(tags, coding.table, coding.stored)
    return replace(raster, dtype=coding.dtype, bands=bands, nodata=nodata, coding=coding, tags=tags)


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
    if not repairs.same_crs(have.crs, want.crs):
        differences.append(repairs.crs_difference(have.crs, want.crs))
    else:
        corners = product((0, want.width), (0, want.height))
        shift = [np.subtract(~want.transform * (have.transform * p), p) for p in corners]
        if np.abs(shift).max() > 0.01:
            a, b = (tuple(grid.transform)[:6] for grid in (have, want))
            differences.append(f"transform {a}, not {b}")
    if differences:
        found = f"{other.file} is not on the grid of {reference.file}: {'; '.join(differences)}"
        raise InputError(f"{found}. {_repair(reference, other, kind, factor)}")


def _repair(reference: Scene, other: Scene, kind: str, factor: int) -> str:
    """The commands that bring a raster onto the grid of another, or why there are none."""
    want, have = reference.grid.scaled(factor), other.grid
    try:
        place = _place(want, have)
    except RasterioError:
        return "There is no transformation between the two systems: check which one is right"
    method = "near"
    if kind not in ("label", "mask"):
        method = "average" if place.finer else "bilinear"
    with _open(other.file) as dataset:
        job = repairs.Warp(
            reference=reference.file,
            factor=factor,
            other=other.file,
            bands=len(other.bands),
            dtype=other.dtype,
            method=method,
            nodata=declared_nodata(dataset)[0],
            alpha=ColorInterp.alpha in dataset.colorinterp,
            covered=place.covered,
        )
    turns = want.transform.b != 0 or want.transform.d != 0
    if turns or want.transform.a < 0 or want.transform.e > 0:
        repair = job.onto_a_copy_of_the_grid()
    else:
        repair = job.to(want.crs_name, want.bounds(), want.width, want.height)
    if not place.overlaps:
        return (
            "They have no ground in common: check whether they belong together and whether both "
            f"systems are right. Repair, which leaves all of it missing as long as not: {repair}"
        )
    return f"Repair: {repair}"


class _Place(NamedTuple):
    """How one raster lies on another."""

    finer: bool
    """Its pixels are smaller."""
    covered: bool
    """It shows all of the other's ground."""
    overlaps: bool
    """It shows any of it."""


def _place(want: Grid, have: Grid) -> _Place:
    steps = np.linspace(0, 1, 21)
    columns, rows = (axis.ravel() for axis in np.meshgrid(want.width * steps, want.height * steps))
    points: Any = (columns, rows)
    xs, ys = transform_points(want.crs, have.crs, *(want.transform * points))
    points = (np.asarray(xs), np.asarray(ys))
    columns, rows = ~have.transform * points
    inside = (columns > -0.01) & (columns < have.width + 0.01)
    inside &= (rows > -0.01) & (rows < have.height + 0.01)
    # Along one pixel of the wanted grid there are so many of the other's.
    across = np.ptp(columns) / want.width + np.ptp(rows) / want.height
    return _Place(finer=across / 2 > 4 / 3, covered=bool(inside.all()), overlaps=bool(inside.any()))


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
    # It compares a nodata value that was declared in double precision with the range of float32.
    with LOCK, warnings.catch_warnings(), np.errstate(over="ignore"):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        if is_special(Path(path)):
            raise RasterioIOError("it is a pipe or a device, no file")
        try:
            return rasterio.open(path)
        except UnicodeDecodeError as error:  # GDAL quotes what it found in a damaged file
            raise RasterioIOError(f"what stands in it is no text ({error.reason})") from error


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
            dtypes, nodata = set(dataset.dtypes), declared_nodata(dataset)
            warp_first = repairs.warp_first(dataset)
    except RasterioError as error:
        raise InputError(f"{path} cannot be opened as a raster: {error}") from error
    if grid.crs is None and warp_first and not ungeoreferenced:
        raise InputError(warp_first)
    if grid.crs is None and not ungeoreferenced:
        raise InputError(f"{path} has no CRS; give --ungeoreferenced to tile it by pixel")
    if len(dtypes) != 1 or not dtypes <= set(DTYPES):
        raise InputError(
            f"{path} has bands of type {', '.join(sorted(dtypes))}; expected one of "
            f"{', '.join(DTYPES)} for all. {repairs.other_type(path, dtypes)}"
        )
    parts = []
    for i, (colour, description) in enumerate(described, start=1):
        alpha = colour.name == "alpha"
        coloured = colour.name in ("red", "green", "blue")
        name = description or (colour.name if coloured else str(i))
        name = "alpha" if alpha else name
        named = alpha or coloured or bool(description)
        parts.append(Band(path, i, name, alpha, named, description or "", nodata[i - 1]))
    bands = tuple(band.name for band in parts)
    common = common_nodata([band.nodata for band in parts])
    return RasterScene(stem, path, grid, dtypes.pop(), bands, common, tuple(parts))


def _tags(path: str) -> BandTags:
    with _open(path) as dataset:
        return read_tags(dataset)


def _unmasked(dataset: Any, chosen: Sequence[Band], window: Window) -> Bools:
    """Where masks and alpha bands of a file say that its chosen bands are measured.

    Alpha counts beside a nodata value, too, for which GDAL forgets it.
    """
    valid = np.ones((window.height, window.width), bool)
    alphas = [i for i, colour in enumerate(dataset.colorinterp, 1) if colour == ColorInterp.alpha]
    if alphas and not any(band.alpha for band in chosen):
        valid &= dataset.read(alphas[0], window=window) > 0
    for band in chosen:
        flags = dataset.mask_flag_enums[band.number - 1]
        if MaskFlags.all_valid in flags or MaskFlags.alpha in flags or flags == [MaskFlags.nodata]:
            continue
        valid &= dataset.read_masks(band.number, window=window) > 0
        if MaskFlags.per_dataset in flags:
            break
    return valid
