"""Where tiles lie on the ground, so that the same ground is recognized in any scene.

Scenes of one coordinate system lie in one plane, whatever their grids; scenes of different systems
do if they overlap. Inside a plane every window has an outline and a bounding box in pixels of one
of its scenes, the reference: usually the first. Scenes without coordinates have a plane each,
except that copies of another scene lie where that one does.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import shapely

from ganlab.data import systems
from ganlab.errors import InputError

TOLERANCE = 0.01
"""Windows that share less than this part of a pixel, or of the smaller window if that is less than
a pixel, only touch: coordinates are rounded."""
EDGE_POINTS = 8
"""Points along each edge of a window that are transformed to another system."""
MOST_POINTS = 1000
"""From so many points on they are not multiplied any more."""
BULGE = 0.01
"""By this part of its width a box grows beyond transformed points: edges are curved there."""
TEAR = 0.97
"""An edge of a scene is torn apart by a transformation if a half of it stays so long."""
LONG = 10.0
"""Only edges so many times as long as the usual ones are looked at for that."""
PAIRS = 100_000
"""So many pairs of outlines are intersected at once."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


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

    def of(self, numbers: Ints) -> "Windows":
        """Those with some numbers."""
        return Windows(
            self.scene[numbers],
            self.row[numbers],
            self.column[numbers],
            self.height[numbers],
            self.width[numbers],
        )


def whole(scenes: Sequence[Placed]) -> Windows:
    """Every scene as one window."""
    zeros = np.zeros(len(scenes), np.int64)
    heights = np.array([scene.height for scene in scenes], np.int64)
    widths = np.array([scene.width for scene in scenes], np.int64)
    return Windows(np.arange(len(scenes)), zeros, zeros, heights, widths)


@dataclass(frozen=True)
class Footprints:
    """The ground of some windows, in pixels of the references of their planes.

    Attributes:
        plane: the plane of each window, ``(n,)``.
        box: left, top, right and bottom of its bounding box, ``(n, 4)``.
        outline: the polygon itself where it is not the box, otherwise None, ``(n,)``.
        is_box: where that is so, ``(n,)``.
    """

    plane: Ints
    box: Floats
    outline: npt.NDArray[Any]
    is_box: Bools

    def of(self, numbers: Ints) -> "Footprints":
        """Those with some numbers."""
        return Footprints(
            self.plane[numbers], self.box[numbers], self.outline[numbers], self.is_box[numbers]
        )

    def polygons(self) -> npt.NDArray[Any]:
        """All outlines, those that are boxes too."""
        found = self.outline.copy()
        found[self.is_box] = shapely.box(*self.box[self.is_box].T)
        return found


@dataclass(frozen=True)
class Ground:
    """The planes of some scenes.

    Attributes:
        scenes: the scenes; a copy without coordinates is replaced by what it is a copy of.
        plane: for each scene, the number of the first scene of its plane.
        reference: for each scene, the number of the scene in whose pixels its plane is measured.
        seam: for each scene, the least x of its plane, where the system repeats itself along x.
        period: for each scene, the distance after which it does; NaN if it does not.
    """

    scenes: Sequence[Placed]
    plane: Ints
    reference: Ints
    seam: Floats
    period: Floats

    @classmethod
    def of(cls, scenes: Sequence[Placed], content: Sequence[Hashable] | None = None) -> "Ground":
        """Find out which scenes lie in one plane.

        Args:
            scenes: the scenes.
            content: for each scene something that only copies of it share, or None; by it copies
                are recognized where there are no coordinates.

        Raises:
            InputError: scenes in systems between which there is no transformation.
        """
        if content is not None:
            scenes = _copies_replaced(scenes, content)
        plane = np.arange(len(scenes))
        first_of: dict[Hashable, int] = {}
        for number, scene in enumerate(scenes):
            key: Hashable = id(scene) if scene.crs is None else scene.crs
            plane[number] = first_of.setdefault(key, number)
        if len({scene.crs for scene in scenes if scene.crs is not None}) > 1:
            plane = _joined(scenes, plane)
        return cls._measured(scenes, plane)

    @classmethod
    def _measured(cls, scenes: Sequence[Placed], plane: Ints) -> "Ground":
        """Choose the reference of each plane, and where a plane that repeats itself begins."""
        reference = plane.copy()
        seam = np.full(len(scenes), np.nan)
        period = np.full(len(scenes), np.nan)
        for first in np.unique(plane).tolist():
            members = np.flatnonzero(plane == first)
            inside = [scenes[number] for number in members.tolist()]
            chosen = _common_reference(inside)
            reference[members] = members[chosen]
            crs = inside[chosen].crs
            # Alone, a scene is compared with nothing but itself.
            distance = None if crs is None or len(inside) == 1 else systems.period(crs)
            if distance is not None:
                seam[members] = _seam(inside, inside[chosen], distance)
                period[members] = distance
        return cls(scenes, plane, reference, seam, period)

    def footprints(self, windows: Windows) -> Footprints:
        """The ground of some windows.

        Boxes of windows from other systems are a little larger than their outlines.
        """
        count = len(windows.scene)
        bent = np.array([self._is_bent(number) for number in range(len(self.scenes))], bool)
        is_box = self._are_parallel(bent)[windows.scene]
        found = Footprints(
            self.plane[windows.scene], np.empty((count, 4)), np.full(count, None, object), is_box
        )
        self._trace(found, windows, np.flatnonzero(~bent[windows.scene]), 1)
        from_afar = np.flatnonzero(bent[windows.scene])
        for _, inside in grouped(windows.scene[from_afar]):
            self._trace(found, windows, from_afar[inside], EDGE_POINTS)
        return found

    def _trace(self, found: Footprints, windows: Windows, inside: Ints, points: int) -> None:
        """Fill in the footprints of some windows, by so many points along each edge.

        With several points, all windows are of one scene from another system. Where they do not
        follow the curve of the edges, near a pole, more of them do.
        """
        if not len(inside):
            return
        scenes = windows.scene[inside]
        widths = np.array([scene.width for scene in self.scenes], np.int64)[scenes]
        heights = np.array([scene.height for scene in self.scenes], np.int64)[scenes]
        columns, rows = _outlines(windows.of(inside), widths, heights, points)
        columns, rows = self._in_reference(scenes, columns, rows, is_bent=points > 1)
        found.box[inside] = _bounds(columns, rows, is_bent=points > 1)
        turned = np.flatnonzero(~found.is_box[inside])
        found.outline[inside[turned]] = _polygons(columns[turned], rows[turned])
        if 1 < points < MOST_POINTS:
            rough = _is_rough(columns, rows, points)
            self._trace(found, windows, inside[rough], 8 * points)

    def _is_bent(self, number: int) -> bool:
        """Whether straight edges of a scene are curved in its plane."""
        return _is_bent(self.scenes[number], self.scenes[self.reference[number]])

    def _are_parallel(self, bent: Bools) -> Bools:
        """Whether edges of scenes are parallel to rows and columns of their planes."""
        transforms = _transforms(self.scenes)
        widths = np.array([scene.width for scene in self.scenes], float)
        heights = np.array([scene.height for scene in self.scenes], float)
        inverse = _inverse(transforms[:, self.reference])
        x, y = _apply(inverse, *_apply(transforms, 0 * widths, 0 * heights))
        right_x, right_y = _apply(inverse, *_apply(transforms, widths, 0 * heights))
        low_x, low_y = _apply(inverse, *_apply(transforms, 0 * widths, heights))
        along_rows = np.minimum(np.abs(right_x - x), np.abs(right_y - y))
        along_columns = np.minimum(np.abs(low_x - x), np.abs(low_y - y))
        return np.asarray(~bent & (np.maximum(along_rows, along_columns) <= TOLERANCE))

    def _in_reference(
        self, scenes: Ints, columns: Floats, rows: Floats, is_bent: bool
    ) -> tuple[Floats, Floats]:
        """Pixels ``(n, points)`` of scenes ``(n,)`` as pixels of their planes' references."""
        transforms = _transforms(self.scenes)
        xs, ys = _apply(transforms[:, scenes, None], columns, rows)
        if is_bent:
            number = int(scenes[0])
            reference = self.scenes[self.reference[number]]
            xs, ys = _transformed(self.scenes[number], reference, xs, ys)
        middles = (xs.min(axis=1) + xs.max(axis=1)) / 2
        turns = np.floor((middles - self.seam[scenes]) / self.period[scenes])
        repeats = np.isfinite(turns)
        xs[repeats] -= (self.period[scenes] * turns)[repeats, None]
        return _apply(_inverse(transforms[:, self.reference[scenes], None]), xs, ys)


def grouped(values: Ints) -> Iterator[tuple[int, Ints]]:
    """Each value with the places where it stands, ascending."""
    if not len(values):
        return
    order = np.argsort(values, kind="stable")
    found, starts = np.unique(values[order], return_index=True)
    yield from zip(found.tolist(), np.split(order, starts[1:]), strict=True)


def overlap_area(boxes: Floats, others: Floats) -> Floats:
    """Pixels that each box shares with the box of the same line; 0 where they only touch."""
    low = np.maximum(boxes[:, :2], others[:, :2])
    high = np.minimum(boxes[:, 2:], others[:, 2:])
    sides = high - low
    # Windows of much finer scenes may be less than a pixel wide.
    smaller = np.minimum(least_side(boxes), least_side(others))
    enough = TOLERANCE * np.minimum(smaller, 1)
    return np.asarray(np.where((sides > enough[:, None]).all(axis=1), sides.prod(axis=1), 0.0))


def least_side(boxes: Floats) -> Floats:
    """The shorter of width and height of each box."""
    return np.asarray((boxes[:, 2:] - boxes[:, :2]).min(axis=1))


def overlapping_pairs(some: Footprints, others: Footprints) -> tuple[Ints, Ints]:
    """Numbers of all pairs of windows of two lists that share ground."""
    firsts: list[Ints] = []
    seconds: list[Ints] = []
    of_others = dict(grouped(others.plane))
    for plane, mine in grouped(some.plane):
        theirs = of_others.get(plane, np.empty(0, np.int64))
        tree = shapely.STRtree(shapely.box(*others.box[theirs].T))
        first, second = tree.query(shapely.box(*some.box[mine].T), predicate="intersects")
        first = mine[first]
        second = theirs[second]
        shared = overlap_area(some.box[first], others.box[second]) > 0
        first = first[shared]
        second = second[shared]
        for start in range(0, len(first), PAIRS):
            part = slice(start, start + PAIRS)
            shared = _outlines_overlap(some.of(first[part]), others.of(second[part]))
            firsts.append(first[part][shared])
            seconds.append(second[part][shared])
    empty = [np.empty(0, np.int64)]
    return np.concatenate(firsts or empty), np.concatenate(seconds or empty)


def _outlines_overlap(some: Footprints, others: Footprints) -> Bools:
    """Whether windows share ground, line by line; their boxes do."""
    found = np.ones(len(some.plane), bool)
    look = np.flatnonzero(~(some.is_box & others.is_box))
    if len(look):
        shared = shapely.intersection(some.of(look).polygons(), others.of(look).polygons())
        smaller = np.minimum(least_side(some.box[look]), least_side(others.box[look]))
        # Of a strip, twice the area is about its width times the length of its border.
        enough = TOLERANCE * np.minimum(smaller, 1) * shapely.length(shared)
        found[look] = 2 * shapely.area(shared) > enough
    return found


def _copies_replaced(scenes: Sequence[Placed], content: Sequence[Hashable]) -> list[Placed]:
    """Scenes without coordinates replaced by what they are copies of, if that has some."""
    original: dict[Hashable, Placed] = {}
    for with_coordinates in (True, False):
        for scene, known in zip(scenes, content, strict=True):
            if known is not None and (scene.crs is not None) == with_coordinates:
                original.setdefault(known, scene)
    return [
        original.get(known, scene) if scene.crs is None else scene
        for scene, known in zip(scenes, content, strict=True)
    ]


def _is_bent(scene: Placed, reference: Placed) -> bool:
    """Whether straight edges of the one are curved in the other."""
    if scene.crs is None or reference.crs is None:
        return False
    return not systems.is_same(scene.crs, reference.crs)


def _transforms(scenes: Sequence[Placed]) -> Floats:
    """Affine coefficients ``(6, n)``; pixels stay pixels where there are no coordinates."""
    none = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    return np.array([none if s.crs is None else s.transform[:6] for s in scenes]).T


def _outlines(
    windows: Windows, widths: Ints | int, heights: Ints | int, points: int
) -> tuple[Floats, Floats]:
    """Columns and rows ``(n, 4 * points)`` around each window, ``points`` on each edge.

    Widths and heights are those of the scenes: what reaches beyond was never measured.
    """
    left = np.maximum(windows.column, 0)
    top = np.maximum(windows.row, 0)
    right = np.minimum(windows.column + windows.width, widths)
    bottom = np.minimum(windows.row + windows.height, heights)
    across, down = _ring(points)
    columns = left[:, None] + (right - left)[:, None] * across
    rows = top[:, None] + (bottom - top)[:, None] * down
    return columns, rows


def _ring(count: int) -> tuple[Floats, Floats]:
    """Points around a square of width 1, ``count`` on each edge, from its upper left corner."""
    along = np.linspace(0, 1, count + 1)[:-1]
    zeros = np.zeros(count)
    across = np.concatenate([along, zeros + 1, 1 - along, zeros])
    down = np.concatenate([zeros, along, zeros + 1, 1 - along])
    return across, down


def _transformed(scene: Placed, reference: Placed, xs: Floats, ys: Floats) -> tuple[Floats, Floats]:
    """Coordinates ``(n, points)`` in the reference's system, each line connected."""
    if scene.crs is None or reference.crs is None or not _is_bent(scene, reference):
        return xs, ys
    xs, ys = systems.transformed(scene.crs, reference.crs, xs, ys)
    if np.isnan(xs).any():
        raise _not_expressed(scene, reference)
    period = systems.period(reference.crs)
    if period is not None:
        xs = np.unwrap(xs, period=period, axis=1)
    return xs, ys


def _bounds(columns: Floats, rows: Floats, is_bent: bool) -> Floats:
    """Bounding boxes ``(n, 4)`` of points ``(n, points)``."""
    low = np.stack([columns.min(axis=1), rows.min(axis=1)], axis=1)
    high = np.stack([columns.max(axis=1), rows.max(axis=1)], axis=1)
    if is_bent:
        margin = BULGE * (high - low)
        low = low - margin
        high = high + margin
    return np.concatenate([low, high], axis=1)


def _is_rough(columns: Floats, rows: Floats, points: int) -> Bools:
    """Whether edges bulge between their points beyond half the margin of the box: ``(n,)``."""
    corners = np.arange(0, 4 * points, points)
    rough = np.zeros(len(columns), bool)
    for values in (columns, rows):
        second = np.roll(values, 1, axis=1) - 2 * values + np.roll(values, -1, axis=1)
        second[:, corners] = 0
        # Of a curve between two points, the height is an eighth of the second difference.
        bulge = np.abs(second).max(axis=1) / 8
        rough |= bulge > BULGE / 2 * (values.max(axis=1) - values.min(axis=1))
    return rough


def _polygons(columns: Floats, rows: Floats) -> npt.NDArray[Any]:
    found = shapely.polygons(np.stack([columns, rows], axis=2))
    valid = shapely.is_valid(found)
    found[~valid] = shapely.make_valid(found[~valid])
    return np.asarray(found)


def _apply(transform: Any, columns: Any, rows: Any) -> tuple[Any, Any]:
    a, b, c, d, e, f = transform[:6]
    return a * columns + b * rows + c, d * columns + e * rows + f


def _inverse(transform: Any) -> tuple[Any, ...]:
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


def _seam(scenes: Sequence[Placed], reference: Placed, period: float) -> float:
    """The least x of a plane that repeats itself, if possible where no scene lies.

    It is opposite to the reference, unless some scene lies across that meridian.
    """
    middle_x, _ = _apply(reference.transform, reference.width / 2, reference.height / 2)
    usual = float(middle_x - period / 2)
    low = np.empty(len(scenes))
    high = np.empty(len(scenes))
    for number, scene in enumerate(scenes):
        columns, rows = _outlines(whole([scene]), scene.width, scene.height, EDGE_POINTS)
        xs, ys = _apply(scene.transform, columns, rows)
        xs, _ = _transformed(scene, reference, xs, ys)
        low[number] = xs.min()
        high[number] = xs.max()
    turns = np.floor(((low + high) / 2 - usual) / period)
    pixel = abs(reference.transform[0]) + abs(reference.transform[1])
    beyond = np.maximum(usual - (low - period * turns), high - period * (turns + 1) - usual)
    if beyond.max() <= TOLERANCE * pixel:
        return usual
    starts = (low - usual) % period
    order = np.argsort(starts)
    reached = np.maximum.accumulate((starts + high - low)[order])
    gaps = np.append(starts[order][1:], starts.min() + period) - reached
    widest = int(gaps.argmax())
    if gaps[widest] < -TOLERANCE * pixel:
        return usual
    return float(usual + reached[widest] + gaps[widest] / 2)


def _joined(scenes: Sequence[Placed], plane: Ints) -> Ints:
    """Planes of different systems become one where scenes of both overlap."""
    plane = plane.copy()
    middles, radii = _balls(scenes)
    for j in range(len(scenes)):
        distances = np.linalg.norm(middles[:j] - middles[j], axis=1)
        near = (distances <= radii[:j] + radii[j]) & (plane[:j] != plane[j])
        for i in np.flatnonzero(near).tolist():
            if plane[i] != plane[j] and _meet(scenes[i], scenes[j]):
                older, newer = sorted((plane[i], plane[j]))
                plane[plane == newer] = older
    return plane


def _meet(one: Placed, other: Placed) -> bool:
    """Whether two scenes with coordinates share ground, or may do so."""
    if not _is_bent(one, other):
        return True
    for scene, reference in ((other, one), (one, other)):
        found = _expressed(scene, reference)
        if found is None:
            continue
        columns, rows = _apply(_inverse(reference.transform), *found)
        box = _bounds(columns[None], rows[None], is_bent=True)
        shifts = _repetitions(reference)
        everything = np.array([0.0, 0.0, reference.width, reference.height])
        shared = overlap_area(box + shifts, np.broadcast_to(everything, shifts.shape))
        return bool((shared > 0).any())
    raise _not_expressed(other, one)


def _repetitions(reference: Placed) -> Floats:
    """What to add to boxes in pixels of a scene ``(n, 4)`` to get the same ground again."""
    period = None if reference.crs is None else systems.period(reference.crs)
    if period is None:
        return np.zeros((1, 4))
    a, _, _, d, _, _ = _inverse(reference.transform)
    turn = period * np.array([a, d, a, d])
    return np.arange(-2, 3)[:, None] * turn


def _common_reference(scenes: Sequence[Placed]) -> int:
    """The first scene of a plane in whose system all others can be expressed."""
    candidates: dict[str | None, int] = {}
    for number, scene in enumerate(scenes):
        candidates.setdefault(scene.crs, number)
    if len(candidates) == 1:
        return 0
    for number in candidates.values():
        if all(_expressed(scene, scenes[number]) is not None for scene in scenes):
            return number
    wrong = next(scene for scene in scenes if _expressed(scene, scenes[0]) is None)
    raise _not_expressed(wrong, scenes[0])


def _expressed(scene: Placed, reference: Placed) -> tuple[Floats, Floats] | None:
    """Points around a scene in the system of another ``(points,)``; None if that is impossible.

    It is where a point has no place there, where the scene holds a pole that is no point there, or
    where the other system has its border inside the scene.
    """
    across, down = _ring(2 * EDGE_POINTS)
    columns = scene.width * np.append(across, 0.0)
    rows = scene.height * np.append(down, 0.0)
    xs, ys = _apply(scene.transform, columns, rows)
    if scene.crs is None or reference.crs is None or not _is_bent(scene, reference):
        return xs[:-1], ys[:-1]
    xs, ys = systems.transformed(scene.crs, reference.crs, xs, ys)
    if np.isnan(xs).any():
        return None
    period = systems.period(reference.crs)
    if period is not None:
        xs = np.unwrap(xs, period=period)
        if abs(xs[-1] - xs[0]) > period / 2:
            return None
    # Every second point is halfway between its neighbours.
    steps = np.hypot(np.diff(xs), np.diff(ys))
    longer_half = np.maximum(steps[::2], steps[1::2])
    edges = np.hypot(xs[2::2] - xs[:-2:2], ys[2::2] - ys[:-2:2])
    is_torn = (longer_half > TEAR * edges) & (longer_half > LONG * np.median(steps))
    if is_torn.any():
        return None
    return xs[:-1], ys[:-1]


def _not_expressed(scene: Placed, reference: Placed) -> InputError:
    return InputError(
        f"scene {scene.name} ({_short(scene)}) lies on ground that the system of scene "
        f"{reference.name} ({_short(reference)}) cannot express, so that common ground cannot be "
        "told: warp the scenes to one system with gdalwarp -t_srs"
    )


def _short(scene: Placed) -> str:
    """The name of its system: WKT fills a page."""
    return str(scene.crs) if len(str(scene.crs)) <= 60 else f"{str(scene.crs)[:57]}..."


def _balls(scenes: Sequence[Placed]) -> tuple[Floats, Floats]:
    """Middles ``(n, 3)`` and radii ``(n,)`` of balls around scenes, on an Earth of radius 1.

    Scenes without coordinates meet nothing; those whose place on Earth is unknown may meet all.
    """
    middles = np.zeros((len(scenes), 3))
    radii = np.full(len(scenes), np.inf)
    along = np.linspace(0, 1, EDGE_POINTS + 1)
    for number, scene in enumerate(scenes):
        if scene.crs is None:
            radii[number] = np.nan
            continue
        columns, rows = np.meshgrid(along * scene.width, along * scene.height)
        xs, ys = _apply(scene.transform, columns, rows)
        longitude, latitude = systems.transformed(scene.crs, "EPSG:4326", xs, ys)
        known = ~np.isnan(longitude)
        if not known.any():
            continue
        points = _on_sphere(longitude[known], latitude[known])
        middles[number] = points.mean(axis=0)
        # Between the points the scene reaches at most a cell further.
        radii[number] = 1.25 * np.linalg.norm(points - middles[number], axis=1).max()
    return middles, radii


def _on_sphere(longitude: Floats, latitude: Floats) -> Floats:
    """Degrees ``(n,)`` as points ``(n, 3)`` of a ball of radius 1."""
    east = np.radians(longitude)
    north = np.radians(latitude)
    points = [np.cos(north) * np.cos(east), np.cos(north) * np.sin(east), np.sin(north)]
    return np.stack(points, axis=1)
