"""Vector labels: the features of a file near a scene, burned into the scene's pixels.

A pixel belongs to a polygon that holds its centre, in the polygon's own CRS. Lines and points mark
the pixels that they pass or lie in. Later features lie over earlier ones; the rest is 0.
"""

import json
import os
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import rasterio
import shapely
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.features import rasterize
from rasterio.windows import Window

from ganlab.data import reprojection
from ganlab.data.grids import Grid
from ganlab.data.reprojection import Block, crs_name
from ganlab.errors import InputError

Array = npt.NDArray[Any]
Box = tuple[float, float, float, float]
VECTORS = (".geojson", ".json", ".gpkg", ".shp", ".fgb", ".zip")
PARTS_OF_A_SHAPEFILE = (".dbf", ".shx", ".prj", ".cpg")
HEAD_BYTES = 100_000
"""Where in a GeoJSON its CRS is looked for; GDAL writes it before the features."""
UNDEFINED = '["Undefined '
"""How a GeoPackage calls both systems that it keeps for files without one."""
HEAVY = 2000
"""Vertices of a geometry from which on it is cut to a window before it is burned."""
FARTHEST = 1e15
"""Coordinates beyond this are damage: they lie on no planet, and sums with them lose all digits."""
ARC_STEP = "0.5"
"""Degrees of an arc that a straight piece stands for; GDAL's 4 are off by pixels on large arcs."""
ARC_OPTION = "OGR_ARC_STEPSIZE"
POLYGON = 3
"""GEOS's number of the last type of geometry that has no parts."""
HARMLESS = (
    "Several features with id",
    "Measured (M) geometry types are not supported",
    "Non closed ring detected",
    "organizePolygons",
    "invalid value encountered in from_wkb",
)
"""Beginnings of warnings of pyogrio and GDAL that change no pixel."""


class Layer(NamedTuple):
    """What is known of a layer before its features are read."""

    path: str
    name: str
    driver: str
    crs: CRS
    fields: tuple[str, ...]
    features: int
    bounds: Box | None
    """None where no feature has a geometry."""


class _Read(NamedTuple):
    """Features in the order of the file: geometries (None where missing), ids, an attribute."""

    shapes: Array
    ids: Array
    values: Array | None


@dataclass(frozen=True)
class Features:
    """What a vector file says about the pixels of a grid; made by ``features_on``."""

    grid: Grid
    crs: CRS
    dtype: str
    """The narrowest of uint8 and int32 that holds all classes near the grid."""
    shapes: Array
    """Simple geometries in the CRS of the grid, in the order in which they are burned."""
    classes: Array
    tree: Any
    parts: Array
    """Simple geometries in the CRS of the file, where ``seams`` needs them."""
    part_classes: Array
    part_tree: Any
    seams: tuple[Block, ...]
    """Blocks of the grid where pixel centres are compared with ``parts`` one by one."""

    @property
    def empty(self) -> bool:
        """Whether no feature touches the grid: all its pixels are 0."""
        touching = self.tree.query(shapely.box(*self.grid.bounds()), predicate="intersects")
        return not len(touching) and not any(self._burn_seam(seam).any() for seam in self.seams)

    def burn(self, window: Window, dtype: str) -> Array:
        """Classes ``(h, w)`` of the pixels of a window inside the grid."""
        area = Grid(self.grid.crs, self.grid.at(window), window.width, window.height)
        values = np.zeros((window.height, window.width), dtype)
        found = np.sort(self.tree.query(shapely.box(*area.bounds())))
        if len(found):
            shapes = _lightened(self.shapes[found], area)
            classes = self.classes[found].tolist()
            burned = [pair for pair in zip(shapes, classes, strict=True) if not pair[0].is_empty]
            if burned:
                rasterize(burned, out=values, transform=area.transform)
        for seam in self.seams:
            top = max(seam.top, window.row_off)
            left = max(seam.left, window.col_off)
            bottom = min(seam.bottom, window.row_off + window.height)
            right = min(seam.right, window.col_off + window.width)
            if top < bottom and left < right:
                whole = self._burn_seam(seam)
                values[
                    top - window.row_off : bottom - window.row_off,
                    left - window.col_off : right - window.col_off,
                ] = whole[top - seam.top : bottom - seam.top, left - seam.left : right - seam.left]
        return values

    def _burn_seam(self, seam: Block) -> Array:
        """A block of pixels whose centres are compared with the features one by one."""
        shape = (seam.bottom - seam.top, seam.right - seam.left)
        values = np.zeros(shape, np.int64)
        centres = reprojection.centres(self.grid, self.crs, seam)
        turns = _turns(self.crs)
        boxes = [shapely.box(*_moved(seam.region, -turn)) for turn in turns]
        which, found = self.part_tree.query(boxes)
        for k in np.argsort(found, kind="stable"):
            part = self.parts[found[k]]
            turn = turns[which[k]]
            if shapely.get_dimensions(part) == 2:
                inside = shapely.intersects_xy(part, centres[:, 0] - turn, centres[:, 1])
                marked = inside.reshape(shape)
            else:
                marked = self._passed(part, boxes[which[k]], seam)
            values[marked] = self.part_classes[found[k]]
        return values

    def _passed(self, part: Any, box: Any, seam: Block) -> Array:
        """Pixels of a block that a line passes, or in which a point lies."""
        marked = np.zeros((seam.bottom - seam.top, seam.right - seam.left), bool)
        inside = shapely.intersection(part, box)
        left, bottom, right, top = seam.region
        step = min(right - left, top - bottom) / (8 * reprojection.SMALLEST)
        if shapely.get_dimensions(inside) == 1 and step > 0:
            inside = shapely.segmentize(inside, step)
        points = shapely.get_coordinates(inside)
        pixels = reprojection.pixels_of(self.grid, self.crs, points, seam)
        pixels = np.floor(pixels[np.isfinite(pixels).all(axis=1)]).astype(np.int64)
        columns = pixels[:, 0] - seam.left
        rows = pixels[:, 1] - seam.top
        within = (rows >= 0) & (rows < marked.shape[0])
        within &= (columns >= 0) & (columns < marked.shape[1])
        marked[rows[within], columns[within]] = True
        return marked


def is_vector(path: str) -> bool:
    """Whether a file is read as vectors, by its suffix.

    >>> is_vector("roads.SHP"), is_vector("classes.tif")
    (True, False)
    """
    return path.lower().endswith(VECTORS)


def features_on(
    path: str, grid: Grid, attribute: str | None = None, layer: str | None = None
) -> Features:
    """The features of a file near a grid, kept for the next window.

    Args:
        path: GeoJSON, GeoPackage, Shapefile (also zipped) or FlatGeobuf.
        grid: the pixels of a scene; it has a CRS.
        attribute: holds the classes, whole numbers; all are 1 without it.
        layer: by name, where the file has several.

    Raises:
        InputError: unreadable file, no or several layers, no CRS or none that can be transformed,
            values that are no classes, nothing near the scene, pyogrio not installed.
    """
    return _features_on(path, _ages(path), grid, attribute, layer)


@lru_cache(maxsize=8)
def _features_on(
    path: str, ages: tuple[int, ...], grid: Grid, attribute: str | None, layer: str | None
) -> Features:
    with _quiet(path):
        described = _describe(path, ages, layer)
        reprojection.check_transformation(path, described.crs, grid)
        blocks = reprojection.blocks(grid, described.crs)
        if not blocks and described.bounds is not None:
            raise InputError(
                f"{path} lies nowhere near the scene: no point of the scene, in "
                f"{crs_name(grid.crs)}, has a place in {crs_name(described.crs)}, the CRS of the "
                "file; check both"
            )
        near = _read_near(described, blocks, attribute)
        if not len(near.ids):
            _check_place(described, grid, blocks)
        classes = _classes(described, near, attribute)
    try:
        return _placed(described, grid, blocks, near.shapes, classes)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except shapely.errors.GEOSException as error:
        raise InputError(
            f"{path} has geometries that cannot be cut to the scene ({error}): repair them with "
            "Fix geometries in QGIS or ogr2ogr -makevalid"
        ) from error


@lru_cache(maxsize=8)
def _describe(path: str, ages: tuple[int, ...], wanted: str | None) -> Layer:
    pyogrio = _pyogrio(path)
    if not path.startswith(("/vsi", "zip:")) and not os.path.exists(path):
        raise InputError(f"{path} cannot be read as a vector file: there is no such file")
    name = _layer(path, wanted)
    options = {"force_feature_count": True, "force_total_bounds": True}
    info = pyogrio.read_info(path, layer=name, **options)
    _check_whole(path)
    bounds = info["total_bounds"]
    if bounds is not None and not bounds[0] <= bounds[2]:
        bounds = None  # only empty geometries
    fields = tuple(map(str, info["fields"]))
    count = int(info["features"])
    driver = str(info["driver"])
    if driver == "FlatGeobuf":
        _check_count(path, name, count)
    crs = _crs(path, info["crs"])
    if driver == "GeoJSON":
        _check_crs_member(path)
    return Layer(path, name, driver, crs, fields, count, bounds)


def _layer(path: str, wanted: str | None) -> str:
    """The layer that is asked for, or the only one that has geometries."""
    pyogrio = _pyogrio(path)
    layers = [(str(name), kind) for name, kind in pyogrio.list_layers(path)]
    spatial = [name for name, kind in layers if kind is not None]
    if not spatial:
        tables = ", ".join(name for name, _ in layers) or "nothing"
        raise InputError(f"{path} has no layer with geometries; it holds {tables}")
    if wanted is not None and wanted not in spatial:
        raise InputError(
            f"{path} has no layer {wanted!r} with geometries; it has {', '.join(spatial)}"
        )
    if wanted is None and len(spatial) > 1:
        raise InputError(
            f"{path} has layers {', '.join(spatial)}; expected one: choose with --layer"
        )
    return wanted or spatial[0]


def _check_whole(path: str) -> None:
    """Refuse an archive or a shapefile that is damaged in a way that GDAL does not look at.

    It reads the missing geometries of a shapefile that was cut as empty ones.
    """
    if path.lower().endswith(".zip") and os.path.isfile(path):
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is not None:
            raise InputError(f"{path}: {broken} in it is damaged, get it again")
    if not path.lower().endswith(".shp") or not os.path.exists(path):
        return
    with open(path, "rb") as file:
        head = file.read(28)
    declared = 2 * int.from_bytes(head[24:28], "big")
    size = os.path.getsize(path)
    if size < declared:
        raise InputError(
            f"{path} has {size} of the {declared} bytes that it declares: it is cut short, get it "
            "again"
        )


def _check_count(path: str, layer: str, declared: int) -> None:
    """Refuse a FlatGeobuf that was cut: GDAL leaves out the features that are missing."""
    _, ids, _, _ = _pyogrio(path).raw.read(
        path, layer=layer, columns=[], read_geometry=False, return_fids=True
    )
    if len(ids) < declared:
        raise InputError(
            f"{path} holds {len(ids)} of the {declared} features that it declares: it is cut "
            "short, get it again"
        )


def _check_crs_member(path: str) -> None:
    """Refuse GeoJSON of an unknown CRS: GDAL takes it for degrees without a word."""
    if not os.path.isfile(path):
        return
    with open(path, "rb") as file:
        head = file.read(HEAD_BYTES).decode("utf-8", errors="replace")
    found = re.search(
        r'"crs"\s*:\s*\{[^{}]*"properties"\s*:\s*\{[^{}]*"name"\s*:\s*"([^"]*)"', head
    )
    if found:
        _crs(path, found[1])


def _crs(path: str, found: str | None) -> CRS:
    if found is None or UNDEFINED in found:
        repair = "give it one with `ogr2ogr -a_srs`, or in QGIS with Assign projection"
        if path.lower().endswith(".shp"):
            beside = Path(path).with_suffix(".prj")
            repair = f"{beside} is missing or unreadable, copy it from where the file came from"
        raise InputError(f"{path} has no CRS: {repair}")
    try:
        with rasterio.Env():  # GDAL would print its errors beside ours
            return CRS.from_user_input(found)
    except CRSError as error:
        name = " ".join(found[:60].split())
        raise InputError(f"{path} has a CRS that PROJ does not know, {name}: assign one") from error


def _read_near(layer: Layer, blocks: list[Block], attribute: str | None) -> _Read:
    """The features whose bounds touch a block, in the order of the file."""
    if attribute is not None and attribute not in layer.fields and layer.features:
        names = ", ".join(layer.fields) or "none"
        raise InputError(f"{layer.path}: attribute {attribute!r} is missing; it has {names}")
    if not blocks or not layer.features:
        return _Read(np.zeros(0, object), np.zeros(0, np.int64), None)
    areas = [_moved(block.region, -turn) for block in blocks for turn in _turns(layer.crs)]
    boxes = _boxes_to_read(layer, areas)
    if boxes:
        reads = [_read(layer.path, layer.name, attribute, box) for box in boxes]
    else:
        reads = [_read_whole(layer.path, _ages(layer.path), layer.name, attribute)]
    for read in reads:
        _check_missing(layer, read)
    ids = np.concatenate([read.ids for read in reads])
    shapes = np.concatenate([read.shapes for read in reads])
    values = None
    if attribute is not None:
        values = np.concatenate([read.values for read in reads if read.values is not None])
    # The spatial index of a GeoPackage answers in an order of its own. GeoJSON is read at once,
    # and its ids are free.
    order = np.arange(len(ids))
    if layer.driver != "GeoJSON":
        order = np.unique(ids, return_index=True)[1]
    kept = order[_touching(shapes[order], areas)]
    read = _Read(shapes[kept], ids[kept], None if values is None else values[kept])
    _check_coordinates(layer, read)
    return read


def _boxes_to_read(layer: Layer, areas: list[Box]) -> list[Box]:
    """Where to read; nothing means everywhere."""
    if layer.driver == "GeoJSON" or layer.bounds is None:
        return []  # it lies in memory anyway
    if not np.isfinite(layer.bounds).all():
        return []  # to name the feature that is damaged
    turns = len(_turns(layer.crs))
    boxes = []
    for turn in range(turns):
        lefts, bottoms, rights, tops = zip(*areas[turn::turns], strict=True)
        box = (min(lefts), min(bottoms), max(rights), max(tops))
        if _overlap(box, layer.bounds):
            boxes.append(box)
    return boxes or areas[:1]


@lru_cache(maxsize=1)
def _read_whole(path: str, ages: tuple[int, ...], layer: str, attribute: str | None) -> _Read:
    """All features: GeoJSON has no index, and often serves many scenes one after the other."""
    return _read(path, layer, attribute, None)


def _read(path: str, layer: str, attribute: str | None, box: Box | None) -> _Read:
    columns = [] if attribute is None else [attribute]
    _, ids, geometry, values = _pyogrio(path).raw.read(
        path, layer=layer, bbox=box, columns=columns, return_fids=True
    )
    try:
        shapes = shapely.from_wkb(geometry)
    except shapely.errors.GEOSException:
        for number, one in zip(ids, geometry, strict=True):
            _decode(path, number, one)
        raise
    return _Read(shapely.force_2d(shapes), ids, values[0] if values else None)


def _decode(path: str, number: int, geometry: bytes | None) -> None:
    try:
        shapely.from_wkb(geometry)
    except shapely.errors.GEOSException as error:
        raise InputError(
            f"{path}: the geometry of feature {number} cannot be read ({error}): repair it "
            "with Fix geometries in QGIS, or leave it out"
        ) from error


def _check_missing(layer: Layer, read: _Read) -> None:
    """Refuse GeoJSON whose coordinates GDAL could not read: it takes them for no geometry."""
    missing = np.flatnonzero(shapely.is_missing(read.shapes))
    if not len(missing) or layer.driver != "GeoJSON" or not os.path.isfile(layer.path):
        return
    for i in missing.tolist():
        if _has_coordinates(layer.path, i):
            raise InputError(
                f"{layer.path}: the geometry of feature {read.ids[i]} cannot be read: its "
                "coordinates are no pairs of numbers; correct it or leave it out"
            )


def _has_coordinates(path: str, number: int) -> bool:
    """Whether a feature of a GeoJSON file has anything that should have been read."""
    content = _parsed(path, _ages(path))
    features = content.get("features", [content])
    geometry = features[number].get("geometry") if number < len(features) else None
    return bool(geometry and (geometry.get("coordinates") or geometry.get("geometries")))


@lru_cache(maxsize=1)
def _parsed(path: str, ages: tuple[int, ...]) -> dict[str, Any]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise InputError(f"{path} cannot be read as GeoJSON: {error}") from error
    return content if isinstance(content, dict) else {}


def _touching(shapes: Array, areas: list[Box]) -> Array:
    """Places of geometries whose bounds touch one of the areas; not-a-number touches everything."""
    bounds = shapely.bounds(shapes)
    there = ~shapely.is_missing(shapes) & ~shapely.is_empty(shapes)
    found = np.zeros(len(shapes), bool)
    for left, bottom, right, top in areas:
        apart = (bounds[:, 0] > right) | (bounds[:, 2] < left)
        apart |= (bounds[:, 1] > top) | (bounds[:, 3] < bottom)
        found |= ~apart
    return np.flatnonzero(found & there)


def _check_coordinates(layer: Layer, read: _Read) -> None:
    points, owners = shapely.get_coordinates(read.shapes, return_index=True)
    wild = ~(np.abs(points) < FARTHEST).all(axis=1)
    if wild.any():
        first = int(np.argmax(wild))
        x, y = points[first].tolist()
        raise InputError(
            f"{layer.path}: feature {read.ids[owners[first]]} has the coordinates {x:g} {y:g}, "
            "which are no place: correct it or leave it out"
        )


def _classes(layer: Layer, read: _Read, attribute: str | None) -> Array:
    """Class of each feature: whole numbers that fit int32."""
    values = read.values
    if attribute is None or values is None:
        return np.ones(len(read.ids), np.int64)
    where = f"{layer.path}: attribute {attribute!r}"
    if values.dtype.kind not in "biuf":
        kind = "text" if values.dtype.kind == "O" else f"of type {values.dtype}"
        example = f", {values[0]!r} for instance" if len(values) else ""
        raise InputError(f"{where} is {kind}{example}; give one of whole numbers")
    limits = np.iinfo(np.int32)
    numbers = values.astype(np.float64)
    missing = np.isnan(numbers)
    broken = ~missing & (numbers != np.round(numbers))
    outside = (numbers < limits.min) | (numbers > limits.max)
    for odd, what in (
        (missing, "is empty"),
        (broken, "is {}, no whole number"),
        (outside, f"is {{}}, outside {limits.min} to {limits.max}"),
    ):
        if odd.any():
            first = int(np.argmax(odd))
            found = what.format(values[first])
            raise InputError(
                f"{where} {found} in feature {read.ids[first]}; give every feature near the scene "
                "a class that fits int32"
            )
    return values.astype(np.int64)


def _check_place(layer: Layer, grid: Grid, blocks: list[Block]) -> None:
    """Accept ground without a feature inside the extent of a file; refuse another place."""
    bounds = layer.bounds
    if bounds is None:
        return
    areas = [_moved(block.region, -turn) for block in blocks for turn in _turns(layer.crs)]
    if any(_overlap(area, bounds) for area in areas):
        return
    lefts, bottoms, rights, tops = zip(*(block.region for block in blocks), strict=True)
    scene = (min(lefts), min(bottoms), max(rights), max(tops))
    name = crs_name(layer.crs)
    cause = "check its CRS and that of the scene"
    limit = reprojection.period(layer.crs)
    if layer.crs.is_geographic and limit and max(map(abs, bounds)) > 1.5 * limit:
        cause = f"its coordinates are no degrees, so {name} is not its CRS: assign the right one"
    elif _exchanged(layer, areas):
        cause = "with x and y exchanged it would lie there: swap them (QGIS: Swap X and Y)"
    raise InputError(
        f"{layer.path} lies nowhere near the scene: in {name} it covers {_shown(bounds)}, the "
        f"scene {_shown(scene)}; {cause}. For ground without a feature give a file with none"
    )


def _exchanged(layer: Layer, areas: list[Box]) -> bool:
    """Whether a file would lie on the scene with latitude first, as some programs write it."""
    if layer.bounds is None:
        return False
    left, bottom, right, top = layer.bounds
    limit = reprojection.period(layer.crs)
    if layer.crs.is_geographic and limit and max(abs(left), abs(right)) > limit / 4:
        return False  # no latitudes
    return any(_overlap(area, (bottom, left, top, right)) for area in areas)


def _shown(box: Box) -> str:
    left, bottom, right, top = box
    digits = 1 if max(map(abs, box)) > 1000 else 5
    return f"x {left:.{digits}f} to {right:.{digits}f}, y {bottom:.{digits}f} to {top:.{digits}f}"


def _placed(
    layer: Layer, grid: Grid, blocks: list[Block], shapes: Array, classes: Array
) -> Features:
    """Cut and transform the geometries block by block."""
    dtype = "uint8"
    if classes.min(initial=0) < 0 or classes.max(initial=0) > 255:
        dtype = "int32"
    parts, owners = _simple(shapes)
    burned, origins = _transformed(layer, grid, blocks, parts)
    origins = owners[origins]
    order = np.argsort(origins, kind="stable")
    burned = burned[order]
    seams = tuple(block for block in blocks if not block.smooth)
    if not seams:
        parts = parts[:0]
        owners = owners[:0]
    shapely.prepare(parts)
    return Features(
        grid=grid,
        crs=layer.crs,
        dtype=dtype,
        shapes=burned,
        classes=classes[origins[order]],
        tree=shapely.STRtree(burned),
        parts=parts,
        part_classes=classes[owners],
        part_tree=shapely.STRtree(parts),
        seams=seams,
    )


def _transformed(
    layer: Layer, grid: Grid, blocks: list[Block], parts: Array
) -> tuple[Array, Array]:
    """What lies on the smooth blocks, in the grid's CRS, and its place in ``parts``."""
    tree = shapely.STRtree(parts)
    pieces = [np.zeros(0, object)]
    origins = [np.zeros(0, np.int64)]
    for block in blocks:
        for turn in _turns(layer.crs) if block.smooth else ():
            box = _moved(block.region, -turn)
            found = np.sort(tree.query(shapely.box(*box)))
            cut, sources = _cut(parts[found], box)
            if turn:
                cut = shapely.transform(cut, lambda points, by=turn: points + np.array([by, 0.0]))
            pieces.append(reprojection.transformed(cut, layer.crs, grid, block))
            origins.append(found[sources])
    return np.concatenate(pieces), np.concatenate(origins)


def _simple(shapes: Array) -> tuple[Array, Array]:
    """Points, lines and valid polygons, and the place in ``shapes`` that each comes from.

    The parts of a geometry are burned one by one, so that where they overlap is inside, too.
    """
    parts, owners = _flat(shapes)
    wrong = ~shapely.is_valid(parts)
    if not wrong.any():
        return parts, owners
    dimensions = shapely.get_dimensions(parts)
    parts[wrong] = shapely.make_valid(parts[wrong])
    mended, places = _flat(parts)
    same = shapely.get_dimensions(mended) == dimensions[places]
    return mended[same], owners[places[same]]


def _flat(shapes: Array) -> tuple[Array, Array]:
    """The parts of collections of any depth that are not empty, and where they come from."""
    parts = shapes
    places = np.arange(len(shapes))
    while (shapely.get_type_id(parts) > POLYGON).any():
        parts, inner = shapely.get_parts(parts, return_index=True)
        places = places[inner]
    there = ~shapely.is_empty(parts)
    return parts[there], places[there]


def _cut(parts: Array, box: Box) -> tuple[Array, Array]:
    """What lies inside a box, and the place in ``parts`` that it comes from."""
    bounds = shapely.bounds(parts).reshape(-1, 4)
    crossing = (bounds[:, :2] < box[:2]).any(axis=1) | (bounds[:, 2:] > box[2:]).any(axis=1)
    parts = parts.copy()
    dimensions = shapely.get_dimensions(parts)
    parts[crossing] = shapely.intersection(parts[crossing], shapely.box(*box))
    cut, places = _flat(parts)
    same = shapely.get_dimensions(cut) == dimensions[places]  # not where it only touches the box
    return cut[same], places[same]


def _lightened(shapes: Array, area: Grid) -> Array:
    """Geometries of many vertices without what lies far outside a window: a coast, for instance."""
    heavy = shapely.get_num_coordinates(shapes) > HEAVY
    if heavy.any():
        left, bottom, right, top = area.bounds()
        around = shapely.box(
            left - (right - left), bottom - (top - bottom),
            right + (right - left), top + (top - bottom),
        )  # fmt: skip
        with suppress(shapely.errors.GEOSException):  # then the whole is burned, slowly
            shapes = np.where(heavy, shapely.intersection(shapes, around), shapes)
    return shapes


def _turns(crs: CRS) -> tuple[float, ...]:
    """Distances in x at which a place of a CRS is found again."""
    repeats = reprojection.period(crs)
    return (0.0,) if repeats is None else (-repeats, 0.0, repeats)


def _moved(box: Box, by: float) -> Box:
    left, bottom, right, top = box
    return left + by, bottom, right + by, top


def _overlap(a: Box, b: Box) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


def _ages(path: str) -> tuple[int, ...]:
    # A part of the caches' keys, so that a changed file is read again.
    files = [Path(path)]
    if path.lower().endswith(".shp"):
        files += [Path(path).with_suffix(suffix) for suffix in PARTS_OF_A_SHAPEFILE]
    return tuple(os.stat(file).st_mtime_ns if file.exists() else 0 for file in files)


def _pyogrio(path: str) -> Any:
    try:
        import pyogrio
    except ImportError as error:
        raise InputError(f"{path} needs pyogrio: pip install 'ganlab[vector]'") from error
    return pyogrio


@contextmanager
def _quiet(path: str) -> Iterator[None]:
    """Errors of pyogrio and GDAL become one line, and their warnings ours."""
    pyogrio = _pyogrio(path)
    errors = pyogrio.errors
    kinds = (
        errors.DataSourceError,
        errors.DataLayerError,
        errors.FeatureError,
        errors.GeometryError,
        errors.FieldError,
        errors.CRSError,
        zipfile.BadZipFile,
    )
    before = pyogrio.get_gdal_config_option(ARC_OPTION)
    pyogrio.set_gdal_config_options({ARC_OPTION: ARC_STEP})
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
    except kinds as error:
        reason = " ".join(str(error).split()).removeprefix(f"{path}: ")
        reason = reason.split(".; It might help")[0]  # to name a driver, which is no help here
        raise InputError(f"{path} cannot be read as a vector file: {reason}") from error
    except (UnicodeDecodeError, UnboundLocalError) as error:
        # The second is what pyogrio makes of the first in the name of a CRS.
        raise InputError(
            f"{path} cannot be read as a vector file: names in it are no UTF-8, it is damaged or "
            "in another encoding"
        ) from error
    finally:
        pyogrio.set_gdal_config_options({ARC_OPTION: before})
    for warning in caught:
        if "parsed incompletely" in str(warning.message):
            raise InputError(f"{path} holds damaged values: {warning.message}")
        known = str(warning.message).startswith(HARMLESS)
        if not known and issubclass(warning.category, RuntimeWarning | UserWarning):
            warnings.warn(f"{path}: {warning.message}", stacklevel=2)
