"""Where tiles lie on the ground, so that the same ground is recognized in any scene.

Scenes of one coordinate system lie in one plane, whatever their grids; scenes of different systems
do if they overlap. Inside a plane every window becomes a box in pixels of the plane's first scene.
Scenes without coordinates have a plane each, except for copies of one scene.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import shapely

from ganlab.errors import InputError

TOLERANCE = 0.01
"""Boxes that share less than this part of a pixel only touch: coordinates are rounded."""
EDGE_POINTS = 8
"""Points along each edge of a window that are transformed to another system."""
PERIODS = dict.fromkeys(("EPSG:4326", "OGC:CRS84", "EPSG:4258", "EPSG:4269"), 360.0)
PERIODS["EPSG:3857"] = 40_075_016.685578488
"""Systems in which one place has many coordinates, which differ by so much along x."""
BULGE = 0.01
"""By this part of its width a box grows beyond transformed points: edges are curved there."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Placed(Protocol):
    """A scene with its place: what :class:`ganlab.data.store.StoredScene` has."""

    @property
    def name(self) -> str:
        """Its name, for messages."""

    @property
    def crs(self) -> str | None:
        """Its system as text; None without coordinates."""

    @property
    def transform(self) -> tuple[float, ...]:
        """Affine coefficients a, b, c, d, e, f."""

    @property
    def width(self) -> int:
        """Its pixels along a row."""

    @property
    def height(self) -> int:
        """Its rows."""


@dataclass(frozen=True)
class Windows:
    """Rectangles of pixels, each in one of several scenes; all arrays are ``(n,)``."""

    scene: Ints
    """Number of the scene."""
    row: Ints
    column: Ints
    height: Ints
    width: Ints

    def of(self, scene: int) -> "Windows":
        """Those in one scene."""
        inside = self.scene == scene
        return Windows(
            self.scene[inside],
            self.row[inside],
            self.column[inside],
            self.height[inside],
            self.width[inside],
        )


def whole(scenes: Sequence[Placed]) -> Windows:
    """Every scene as one window."""
    zeros = np.zeros(len(scenes), np.int64)
    heights = np.array([scene.height for scene in scenes], np.int64)
    widths = np.array([scene.width for scene in scenes], np.int64)
    return Windows(np.arange(len(scenes)), zeros, zeros, heights, widths)


@dataclass(frozen=True)
class Ground:
    """The planes of some scenes.

    Attributes:
        scenes: the scenes.
        plane: for each scene, the number of the first scene of its plane.
    """

    scenes: Sequence[Placed]
    plane: Ints

    @classmethod
    def of(cls, scenes: Sequence[Placed], content: Sequence[Hashable] | None = None) -> "Ground":
        """Find out which scenes lie in one plane.

        Args:
            scenes: the scenes.
            content: for each scene something that only copies of it share, or None; by it copies
                are recognized where there are no coordinates.
        """
        contents = [None] * len(scenes) if content is None else list(content)
        plane = np.arange(len(scenes))
        first_of: dict[Hashable, int] = {}
        for number, scene in enumerate(scenes):
            key: Hashable = ("system", scene.crs)
            if scene.crs is None:
                known = contents[number]
                key = ("single", number) if known is None else ("copy", known)
            plane[number] = first_of.setdefault(key, number)
        ground = cls(scenes, plane)
        return ground._joined() if len({s.crs for s in scenes if s.crs is not None}) > 1 else ground

    def _joined(self) -> "Ground":
        """Planes of different systems become one where scenes of both overlap."""
        plane = self.plane.copy()
        spheres = [_sphere(scene) for scene in self.scenes]
        for j in range(len(self.scenes)):
            for i in range(j):
                if plane[i] == plane[j] or not _may_meet(spheres[i], spheres[j]):
                    continue
                if _same_system(self.scenes[i], self.scenes[j]) or self._meet(i, j):
                    older, newer = sorted((plane[i], plane[j]))
                    plane[plane == newer] = older
        return Ground(self.scenes, plane)

    def _meet(self, i: int, j: int) -> bool:
        pair = [self.scenes[i], self.scenes[j]]
        boxes = Ground(pair, np.zeros(2, np.int64)).boxes(whole(pair))
        return bool(overlap_area(boxes[:1], boxes[1:])[0] > 0)

    def boxes(self, windows: Windows) -> Floats:
        """Each window's bounding box ``(n, 4)``: left, top, right, bottom.

        In pixels of the first scene of its plane, from that scene's upper left corner.

        Raises:
            InputError: the window's system cannot be transformed to that of the first scene.
        """
        boxes = np.empty((len(windows.scene), 4))
        for number in np.unique(windows.scene).tolist():
            scene = self.scenes[number]
            reference = self.scenes[self.plane[number]]
            boxes[windows.scene == number] = _boxes(scene, reference, windows.of(number))
        return boxes

    def planes(self, windows: Windows) -> Ints:
        """The plane of each window, as the number of its first scene."""
        return np.asarray(self.plane[windows.scene])


def overlap_area(boxes: Floats, others: Floats) -> Floats:
    """Pixels that each box shares with the box of the same line; 0 where they only touch."""
    low = np.maximum(boxes[:, :2], others[:, :2])
    high = np.minimum(boxes[:, 2:], others[:, 2:])
    sides = high - low
    return np.asarray(np.where((sides > TOLERANCE).all(axis=1), sides.prod(axis=1), 0.0))


def overlapping_pairs(
    planes: Ints, boxes: Floats, other_planes: Ints, other_boxes: Floats
) -> tuple[Ints, Ints]:
    """Numbers of all pairs of boxes of two lists that share ground."""
    firsts: list[Ints] = []
    seconds: list[Ints] = []
    for plane in np.intersect1d(planes, other_planes):
        mine = np.flatnonzero(planes == plane)
        theirs = np.flatnonzero(other_planes == plane)
        tree = shapely.STRtree(shapely.box(*other_boxes[theirs].T))
        first, second = tree.query(shapely.box(*boxes[mine].T), predicate="intersects")
        first, second = mine[first], theirs[second]
        shared = overlap_area(boxes[first], other_boxes[second]) > 0
        firsts.append(first[shared])
        seconds.append(second[shared])
    empty = [np.empty(0, np.int64)]
    return np.concatenate(firsts or empty), np.concatenate(seconds or empty)


def _boxes(scene: Placed, reference: Placed, windows: Windows) -> Floats:
    # What reaches over the scene's border was never measured.
    left = np.maximum(windows.column, 0)
    top = np.maximum(windows.row, 0)
    right = np.minimum(windows.column + windows.width, scene.width)
    bottom = np.minimum(windows.row + windows.height, scene.height)
    along = np.linspace(0, 1, EDGE_POINTS + 1)
    around = np.concatenate(
        [
            np.stack([along, np.zeros_like(along)]),
            np.stack([along, np.ones_like(along)]),
            np.stack([np.zeros_like(along), along]),
            np.stack([np.ones_like(along), along]),
        ],
        axis=1,
    )
    columns = left[:, None] + (right - left)[:, None] * around[0]
    rows = top[:, None] + (bottom - top)[:, None] * around[1]
    if scene.crs is not None:
        xs, ys = _apply(scene.transform, columns, rows)
        same = _same_system(scene, reference)
        if same:
            xs = xs - _turns(scene, reference)
        else:
            xs, ys = _transformed(scene, reference, xs, ys)
        columns, rows = _apply(_inverse(reference.transform), xs, ys)
    low = np.stack([columns.min(axis=1), rows.min(axis=1)], axis=1)
    high = np.stack([columns.max(axis=1), rows.max(axis=1)], axis=1)
    if scene.crs is not None and not same:
        margin = BULGE * (high - low)
        low = low - margin
        high = high + margin
    return np.concatenate([low, high], axis=1)


def _apply(transform: Sequence[float], columns: Any, rows: Any) -> tuple[Any, Any]:
    a, b, c, d, e, f = transform[:6]
    return a * columns + b * rows + c, d * columns + e * rows + f


def _inverse(transform: Sequence[float]) -> tuple[float, ...]:
    a, b, c, d, e, f = transform[:6]
    determinant = a * e - b * d
    return (
        e / determinant,
        -b / determinant,
        (b * f - c * e) / determinant,
        -d / determinant,
        a / determinant,
        (c * d - a * f) / determinant,
    )


def _turns(scene: Placed, reference: Placed) -> float:
    """What to subtract from x so that the scene lies on the same side of the antimeridian."""
    period = PERIODS.get(scene.crs or "")
    if period is None:
        return 0.0
    middles = [_apply(s.transform, s.width / 2, s.height / 2)[0] for s in (scene, reference)]
    return float(period * round((middles[0] - middles[1]) / period))


def _same_system(scene: Placed, other: Placed) -> bool:
    if scene.crs == other.crs:
        return True
    from rasterio.crs import CRS

    return bool(CRS.from_user_input(scene.crs) == CRS.from_user_input(other.crs))


def _transformed(scene: Placed, to: Placed, xs: Floats, ys: Floats) -> tuple[Floats, Floats]:
    found = _transform(scene.crs, to.crs, xs, ys)
    if found is None:
        raise InputError(
            f"scene {scene.name} ({scene.crs}) lies on ground that {to.crs}, the system of scene "
            f"{to.name}, cannot express, so that common ground cannot be told: warp the scenes to "
            "one system with gdalwarp -t_srs"
        )
    return found


def _transform(source: Any, target: Any, xs: Floats, ys: Floats) -> tuple[Floats, Floats] | None:
    """Coordinates in another system; None if there is no transformation or a point has none."""
    # Scenes of one system, the usual case, need no rasterio.
    from rasterio.crs import CRS
    from rasterio.errors import RasterioError
    from rasterio.warp import transform

    try:
        systems = (CRS.from_user_input(source), CRS.from_user_input(target))
        moved = np.array(transform(*systems, xs.ravel(), ys.ravel()))
    except (RasterioError, ValueError, OSError):
        return None
    if not np.isfinite(moved).all():
        return None
    return moved[0].reshape(xs.shape), moved[1].reshape(ys.shape)


def _sphere(scene: Placed) -> tuple[Floats, float] | None:
    """Middle and radius of a ball around a scene, on an Earth of radius 1; None if unknown."""
    if scene.crs is None:
        return None
    along = np.linspace(0, 1, 9)
    columns, rows = np.meshgrid(along * scene.width, along * scene.height)
    found = _transform(scene.crs, "EPSG:4326", *_apply(scene.transform, columns, rows))
    if found is None:
        return None
    longitude = np.radians(found[0].ravel())
    latitude = np.radians(found[1].ravel())
    points = np.stack(
        [
            np.cos(latitude) * np.cos(longitude),
            np.cos(latitude) * np.sin(longitude),
            np.sin(latitude),
        ],
        axis=1,
    )
    middle = points.mean(axis=0)
    radius = float(np.linalg.norm(points - middle, axis=1).max())
    # Between the points the scene reaches at most a cell further.
    return middle, 1.25 * radius


def _may_meet(one: tuple[Floats, float] | None, other: tuple[Floats, float] | None) -> bool:
    if one is None or other is None:
        return False
    return bool(np.linalg.norm(one[0] - other[0]) <= one[1] + other[1])
