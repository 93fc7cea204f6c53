"""Which tiles are trained on, and which are kept to measure on ground that was not.

Ground is dealt, not scenes: square blocks of one grid, each wholly in one part whatever scenes,
dates or groups cover it. A tile that reaches into blocks of different parts belongs to none.
"""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import shapely

from ganlab.config import SplitConfig
from ganlab.data.ground import (
    TOLERANCE,
    Floats,
    Footprints,
    Ground,
    Placed,
    Windows,
    grouped,
    least_side,
    overlapping_pairs,
    whole,
)
from ganlab.errors import InputError
from ganlab.randomness import derived_seed

PARTS = ("train", "validation", "test")
TRAIN, VALIDATION, TEST = range(3)
DROPPED = -1
UNLIKE_SIZE = 1.25
"""Tiles that are at most so many times as wide as those of the first scene count as equal."""
CLOSE = 0.01
"""Nearer than this to its fraction of all tiles no part is brought: chance decides the rest."""
CANDIDATES = 20
"""So many changes of the deal are tried exactly before it is left as it is."""
PAIRED = 64
"""Up to so many blocks, exchanges of two are tried beside moves of one."""

Ints = npt.NDArray[np.int64]


class IndexedTile(Protocol):
    """What a split asks of a tile: see :class:`ganlab.data.store.Tile`."""

    @property
    def scene(self) -> str:
        """The name of its scene."""

    @property
    def group(self) -> str:
        """The group of its scene."""

    @property
    def row(self) -> int:
        """Its first row in the scene."""

    @property
    def column(self) -> int:
        """Its first column."""

    @property
    def height(self) -> int:
        """Its rows."""

    @property
    def width(self) -> int:
        """Its columns."""

    @property
    def checksum(self) -> str:
        """CRC-32 of its pixels."""


@dataclass(frozen=True)
class Split:
    """Tile numbers of the three parts, ascending, and how many tiles belong to none."""

    train: Ints
    validation: Ints
    test: Ints
    dropped: int = 0

    def counts(self) -> dict[str, int]:
        """Tiles in each part, and those that were dropped."""
        sizes = {part: len(getattr(self, part)) for part in PARTS}
        return {**sizes, "dropped": self.dropped}


def split_tiles(
    config: SplitConfig,
    scenes: Mapping[str, Placed],
    tiles: Sequence[IndexedTile],
    size: int,
) -> Split:
    """Deal tiles to training, validation and test so that no ground is in two parts.

    The blocks are squares of ``config.block`` pixels of the first scene (four tiles if None) in
    one grid for each coordinate system; a rest of less than half a block at a border belongs to
    its neighbour. They are shuffled by the seed, dealt by the fractions, and exchanged until
    validation and test have as nearly their fraction of all kept tiles as the blocks allow (to 1 %
    of the tiles). Every
    part that was asked for gets a block while there are enough.

    Groups (``by="group"``) are dealt in the same way, as wholes. Groups that share ground and fall
    into different parts are refused, unless ``config.overlap`` says otherwise.

    Raises:
        InputError: fractions outside [0, 1], blocks smaller than a tile, unknown groups, groups
            that share ground, systems that cannot be compared.
    """
    _check(config, size)
    if not tiles:
        none = np.empty(0, np.int64)
        return Split(none, none, none)
    if config.by == "block":
        touched = _touched_blocks(config, *_ground(scenes, tiles), size)
        part_of_tile = _deal(config, touched, {})
    else:
        pinned = _named_groups(config, tiles)
        part_of_tile = _deal(config, _touched_groups(tiles), pinned)
        if config.overlap != "keep":
            _, footprints = _ground(scenes, tiles)
            part_of_tile = _without_common_ground(config, part_of_tile, footprints, tiles)
    return Split(
        np.flatnonzero(part_of_tile == TRAIN),
        np.flatnonzero(part_of_tile == VALIDATION),
        np.flatnonzero(part_of_tile == TEST),
        dropped=int((part_of_tile == DROPPED).sum()),
    )


def _ground(
    scenes: Mapping[str, Placed], tiles: Sequence[IndexedTile]
) -> tuple[Ground, Footprints]:
    """The ground of scenes, and where their tiles lie on it."""
    ground = Ground.of(list(scenes.values()), contents(scenes, tiles))
    return ground, ground.footprints(windows_of(tiles, list(scenes)))


def empty_parts(split: Split, config: SplitConfig) -> str | None:
    """What to say of a split that leaves a part empty that was asked for; None if it does not."""
    asked = {
        "validation": config.validation > 0 or bool(config.validation_groups),
        "test": config.test > 0 or bool(config.test_groups),
        "train": config.validation + config.test < 1,
    }
    empty = [part for part, wanted in asked.items() if wanted and not len(getattr(split, part))]
    if not empty:
        return None
    counts = ", ".join(f"{count} {part}" for part, count in split.counts().items())
    if config.by == "group":
        cure = "name the groups (test_groups, validation_groups), or give scenes of more groups"
    else:
        cure = "take smaller blocks (--split.block), no smaller than a tile, or tile more ground"
    return f"the split leaves no tile for {' and '.join(empty)} ({counts}): {cure}"


def windows_of(tiles: Sequence[IndexedTile], names: Sequence[str]) -> Windows:
    """The tiles as windows of the named scenes."""
    number = {name: i for i, name in enumerate(names)}
    return Windows(
        np.array([number[tile.scene] for tile in tiles], np.int64),
        np.array([tile.row for tile in tiles], np.int64),
        np.array([tile.column for tile in tiles], np.int64),
        np.array([tile.height for tile in tiles], np.int64),
        np.array([tile.width for tile in tiles], np.int64),
    )


def contents(
    scenes: Mapping[str, Placed], tiles: Sequence[IndexedTile]
) -> list[frozenset[tuple[int, int, str]] | None]:
    """For each scene, where its tiles lie and their checksums, by which a copy is recognized."""
    found: dict[str, set[tuple[int, int, str]]] = {name: set() for name in scenes}
    for tile in tiles:
        if tile.checksum:
            found[tile.scene].add((tile.row, tile.column, tile.checksum))
    return [frozenset(seen) if seen else None for seen in found.values()]


@dataclass(frozen=True)
class _Touched:
    """Which blocks or groups each tile reaches into, as pairs in the order of the tiles."""

    tile: Ints
    """``(n,)``, ascending."""
    unit: Ints
    """``(n,)`` numbers of blocks or groups, in the order of their first whole tile."""
    names: list[str]
    """Of groups; empty for blocks."""

    @property
    def starts(self) -> Ints:
        """Where the pairs of each tile begin."""
        return np.flatnonzero(np.diff(self.tile, prepend=-1))

    def parts_of_tiles(self, parts: Ints) -> Ints:
        """The part of each tile, given those of the units; DROPPED where they differ."""
        reached = parts[self.unit]
        low = np.minimum.reduceat(reached, self.starts)
        high = np.maximum.reduceat(reached, self.starts)
        return np.where(low == high, low, DROPPED)

    def whole_tiles(self) -> Ints:
        """How many tiles lie wholly inside each unit."""
        ends = np.append(self.starts[1:], len(self.tile))
        alone = self.starts[ends - self.starts == 1]
        return np.bincount(self.unit[alone], minlength=int(self.unit.max()) + 1)


def _check(config: SplitConfig, size: int) -> None:
    validation = config.validation
    test = config.test
    if not (validation >= 0 and test >= 0 and test + validation <= 1 + 1e-9):  # NaN is none
        raise InputError(f"validation {validation} and test {test} must be fractions of 1")
    if config.by == "group":
        return
    if config.test_groups or config.validation_groups:
        raise InputError('test_groups and validation_groups need by="group"')
    if config.block is not None and config.block < size:
        raise InputError(f"block {config.block} is smaller than a tile ({size} pixels): enlarge")


def _named_groups(config: SplitConfig, tiles: Sequence[IndexedTile]) -> dict[str, int]:
    """The groups that the configuration deals by name."""
    named = config.test_groups + config.validation_groups
    known = {tile.group for tile in tiles}
    wrong = [name for name in named if name not in known or named.count(name) > 1]
    if wrong:
        raise InputError(
            f"groups {', '.join(wrong)} are unknown or in two parts; it has "
            f"{', '.join(sorted(known))}"
        )
    pinned = dict.fromkeys(config.test_groups, TEST)
    return {**pinned, **dict.fromkeys(config.validation_groups, VALIDATION)}


def _touched_groups(tiles: Sequence[IndexedTile]) -> _Touched:
    names = sorted({tile.group for tile in tiles})
    number = {name: i for i, name in enumerate(names)}
    groups = np.array([number[tile.group] for tile in tiles], np.int64)
    return _Touched(np.arange(len(tiles)), groups, names)


def _touched_blocks(
    config: SplitConfig, ground: Ground, footprints: Footprints, size: int
) -> _Touched:
    """Which blocks each tile reaches into; those of different planes are different ones."""
    planes = footprints.plane
    boxes = footprints.box
    scene_boxes = ground.footprints(whole(ground.scenes)).box
    first = np.empty((len(boxes), 2), np.int64)
    last = np.empty((len(boxes), 2), np.int64)
    extents = dict(grouped(ground.plane))
    for plane, inside in grouped(planes):
        width = float(4 * size if config.block is None else config.block)
        widest = (boxes[inside, 2:] - boxes[inside, :2]).max() / size
        if widest > UNLIKE_SIZE:  # coarser scenes: a block still holds whole tiles of theirs
            width *= widest
        extent = scene_boxes[extents[plane]]
        # Pixels of finer scenes are smaller than those of the plane.
        tolerance = TOLERANCE * np.minimum(least_side(boxes[inside]) / size, 1)
        first[inside], last[inside] = _block_range(
            boxes[inside], tolerance, width, extent[:, :2].min(axis=0), extent[:, 2:].max(axis=0)
        )
    return _as_pairs(planes, first, last)


def _block_range(
    boxes: Floats, tolerance: Floats, width: float, low: Floats, high: Floats
) -> tuple[Ints, Ints]:
    """First and last block of each box along x and y, counted from the plane's origin.

    Boxes that reach into a block by less than their ``tolerance`` only touch it; ``low`` and
    ``high`` are the ends of all scenes.
    """
    lowest = np.rint(low / width)
    highest = np.maximum(np.rint(high / width) - 1, lowest)
    first = np.floor((boxes[:, :2] + tolerance[:, None]) / width)
    last = np.ceil((boxes[:, 2:] - tolerance[:, None]) / width) - 1
    inside_first = np.clip(first, lowest, highest).astype(np.int64)
    inside_last = np.clip(last, lowest, highest).astype(np.int64)
    return inside_first, np.maximum(inside_first, inside_last)


def _as_pairs(planes: Ints, first: Ints, last: Ints) -> _Touched:
    """One pair for every tile and block, blocks numbered by their first whole tile."""
    tiles: list[Ints] = []
    blocks: list[Ints] = []
    spans = last - first
    for down in range(int(spans[:, 1].max()) + 1):
        for right in range(int(spans[:, 0].max()) + 1):
            reaches = np.flatnonzero((spans[:, 0] >= right) & (spans[:, 1] >= down))
            place = first[reaches] + np.array([right, down])
            tiles.append(reaches)
            blocks.append(np.stack([planes[reaches], place[:, 0], place[:, 1]], axis=1))
    tile = np.concatenate(tiles)
    block = np.concatenate(blocks)
    order = np.argsort(tile, kind="stable")
    tile = tile[order]
    block = block[order]
    # Whole tiles first, so that they decide on the order of the blocks.
    is_whole = (spans[tile] == 0).all(axis=1)
    by_whole = np.concatenate([np.flatnonzero(is_whole), np.flatnonzero(~is_whole)])
    _, met, number = np.unique(block[by_whole], axis=0, return_index=True, return_inverse=True)
    rank = np.empty(len(met), np.int64)
    rank[np.argsort(met)] = np.arange(len(met))
    unit = np.empty(len(tile), np.int64)
    unit[by_whole] = rank[number.reshape(-1)]
    return _Touched(tile, unit, [])


def _deal(config: SplitConfig, touched: _Touched, pinned: Mapping[str, int]) -> Ints:
    """The part of every tile."""
    sizes = touched.whole_tiles()
    fixed = np.zeros(len(sizes), bool)
    parts = np.full(len(sizes), TRAIN)
    for name, part in pinned.items():
        unit = touched.names.index(name)
        fixed[unit] = True
        parts[unit] = part
    # A block without a whole tile decides nothing: it stays with the training.
    movable = np.flatnonzero((sizes > 0) & ~fixed)
    order = np.random.default_rng(derived_seed(config.seed, "split")).permutation(len(movable))
    movable = movable[order]
    fractions = {VALIDATION: config.validation, TEST: config.test}
    for part in set(pinned.values()):
        fractions[part] = 0.0  # the named groups are all of it
    wanted = {part: fraction for part, fraction in fractions.items() if fraction > 0}
    if not wanted or not len(movable):
        return touched.parts_of_tiles(parts)
    goal = _Goal(wanted, len(touched.starts), sum(fractions.values()) < 1)
    parts[movable] = _deal_by_number(len(movable), fractions)
    parts = _exchanged(touched, parts, movable, goal)
    if not goal.is_reached(_counts(touched.parts_of_tiles(parts))):
        others = parts.copy()
        others[movable] = _deal_by_size(sizes[movable], wanted)
        others = _exchanged(touched, others, movable, goal)
        costs = [goal.cost(_counts(touched.parts_of_tiles(p))) for p in (parts, others)]
        parts = others if costs[1] < costs[0] - 1e-6 else parts
    return touched.parts_of_tiles(parts)


def _deal_by_number(count: int, fractions: Mapping[int, float]) -> Ints:
    """Parts of shuffled units: the first ones for the test, the next to validate, the rest."""
    asked = {part: fractions[part] for part in (TEST, VALIDATION) if fractions[part] > 0}
    counts = {part: max(1, round(fraction * count)) for part, fraction in asked.items()}
    for_train = int(sum(fractions.values()) < 1)
    while counts and sum(counts.values()) > max(count - for_train, 0):
        counts[max(counts, key=lambda part: counts[part])] -= 1
    dealt = [np.full(number, part) for part, number in counts.items()]
    rest = np.full(count - sum(counts.values()), TRAIN)
    return np.concatenate([*dealt, rest]).astype(np.int64)


def _deal_by_size(sizes: Ints, wanted: Mapping[int, float]) -> Ints:
    """Parts of shuffled units whose sizes come as near to the fractions as any choice of units."""
    parts = np.full(len(sizes), TRAIN)
    for part in sorted(wanted, reverse=True):
        left = np.flatnonzero(parts == TRAIN)
        chosen = _subset(sizes[left], wanted[part] * sizes.sum())
        parts[left[chosen]] = part
    return parts


def _subset(sizes: Ints, target: float) -> list[int]:
    """Units whose sizes have a sum as near to ``target`` as possible, and above 0; early ones.

    The subset-sum problem by dynamic programming: for each sum, the first unit that completes it.
    """
    limit = int(min(2 * target + sizes.min(initial=0), sizes.sum()))
    completes = np.full(limit + 1, -1)
    reached = np.zeros(limit + 1, bool)
    reached[0] = True
    for unit, size in enumerate(sizes.tolist()):
        if size > limit:
            continue
        new = np.zeros_like(reached)
        new[size:] = reached[: limit + 1 - size]
        new &= ~reached
        completes[new] = unit
        reached |= new
    sums = np.flatnonzero(reached[1:]) + 1
    if not len(sums):
        return []
    rest = int(sums[np.abs(sums - target).argmin()])
    chosen: list[int] = []
    while rest > 0:
        chosen.append(int(completes[rest]))
        rest -= int(sizes[chosen[-1]])
    return chosen


@dataclass(frozen=True)
class _Goal:
    """What a deal is to reach."""

    fractions: Mapping[int, float]
    """Of the kept tiles, for validation and test; those that are dealt."""
    total: int
    """Tiles in all."""
    for_train: bool
    """Whether some tiles must be left to train on."""

    def is_reached(self, counts: Ints) -> bool:
        """Whether no part is empty and all are within ``CLOSE`` of their fractions."""
        kept = counts.sum()
        misses = [abs(counts[part] - f * kept) for part, f in self.fractions.items()]
        return bool(self.cost(counts) < 2 * self.total and max(misses) <= CLOSE * kept)

    def cost(self, counts: Ints) -> Floats:
        """Tiles by which the parts miss their fractions, of counts ``(..., 3)``.

        A part that stays empty though it was asked for costs more than that ever can.
        """
        kept = counts.sum(axis=-1)
        cost = np.zeros(kept.shape)
        for part, fraction in self.fractions.items():
            cost += np.abs(counts[..., part] - fraction * kept)
            cost += np.where(counts[..., part] == 0, 2 * self.total, 0)
        if self.for_train:
            cost += np.where(counts[..., TRAIN] == 0, 2 * self.total, 0)
        return cost


def _exchanged(touched: _Touched, parts: Ints, movable: Ints, goal: _Goal) -> Ints:
    """The parts of the units, moved and exchanged while that helps and the goal is not reached."""
    allowed = np.array([TRAIN, *goal.fractions])
    counts = _counts(touched.parts_of_tiles(parts))
    while not goal.is_reached(counts):
        better = _first_better(touched, parts, movable, allowed, goal, counts)
        if better is None:
            break
        parts, counts = better
    return parts


def _first_better(
    touched: _Touched, parts: Ints, movable: Ints, allowed: Ints, goal: _Goal, counts: Ints
) -> tuple[Ints, Ints] | None:
    """The parts of the units, and tiles in each part, after a change that lowers the cost.

    Changes are sorted by what they promise by whole tiles; the first few are counted exactly, with
    the tiles between blocks that they free or drop.
    """
    units, targets = _changes(parts, movable, allowed)
    sizes = np.append(touched.whole_tiles(), 0)  # the unit -1 is none
    steps = np.eye(len(PARTS), dtype=np.int64)
    moved = sizes[units][..., None] * (steps[targets] - steps[parts[units]])
    promise = goal.cost(counts + moved.sum(axis=1))
    present = float(goal.cost(counts))
    for change in np.argsort(promise, kind="stable")[:CANDIDATES]:
        tried = np.append(parts, 0)
        tried[units[change]] = targets[change]
        tried = tried[:-1]
        exact = _counts(touched.parts_of_tiles(tried))
        if goal.cost(exact) < present - 1e-6:
            return tried, exact
    return None


def _changes(parts: Ints, movable: Ints, allowed: Ints) -> tuple[Ints, Ints]:
    """Moves of one unit and exchanges of two: units ``(n, 2)``, -1 for none, and new parts."""
    unit = np.repeat(movable, len(allowed))
    target = np.tile(allowed, len(movable))
    other = parts[unit] != target
    none = np.full(int(other.sum()), -1)
    units = np.stack([unit[other], none], axis=1)
    targets = np.stack([target[other], none * 0], axis=1)
    if len(movable) > PAIRED:
        return units, targets
    first, second = np.triu_indices(len(movable), 1)
    one = movable[first]
    two = movable[second]
    unlike = parts[one] != parts[two]
    pairs = np.stack([one[unlike], two[unlike]], axis=1)
    exchanged = parts[pairs[:, ::-1]]
    return np.concatenate([units, pairs]), np.concatenate([targets, exchanged])


def _counts(part_of_tile: Ints) -> Ints:
    """Tiles in each part."""
    return np.bincount(part_of_tile[part_of_tile != DROPPED], minlength=len(PARTS))


def _without_common_ground(
    config: SplitConfig, parts: Ints, footprints: Footprints, tiles: Sequence[IndexedTile]
) -> Ints:
    """Refuse groups that share ground across parts, or leave out tiles, as asked."""
    first, second = _pairs_across(parts, footprints)
    if not len(first):
        return parts
    if config.overlap == "drop":
        # What is tested on stays; what would be trained on there goes.
        parts = parts.copy()
        parts[first] = DROPPED
        return parts
    raise InputError(_common_ground(first, second, footprints, tiles))


def _pairs_across(parts: Ints, footprints: Footprints) -> tuple[Ints, Ints]:
    """All pairs of tiles that share ground and are in two parts, the earlier part first."""
    firsts: list[Ints] = []
    seconds: list[Ints] = []
    for one, other in itertools.combinations(range(len(PARTS)), 2):
        mine = np.flatnonzero(parts == one)
        theirs = np.flatnonzero(parts == other)
        first, second = overlapping_pairs(footprints.of(mine), footprints.of(theirs))
        firsts.append(mine[first])
        seconds.append(theirs[second])
    return np.concatenate(firsts), np.concatenate(seconds)


def _common_ground(
    first: Ints, second: Ints, footprints: Footprints, tiles: Sequence[IndexedTile]
) -> str:
    """Which scenes of different groups share ground, and how much of the smaller one."""
    pairs = Counter(
        (tiles[i].scene, tiles[j].scene)
        for i, j in zip(first.tolist(), second.tolist(), strict=True)
    )
    (one, other), _ = pairs.most_common(1)[0]
    groups = {tile.scene: tile.group for tile in tiles}
    covered = [_covered(name, footprints, tiles) for name in (one, other)]
    smaller = min(area.area for area in covered)
    fraction = covered[0].intersection(covered[1]).area / smaller
    more = f" ({len(pairs) - 1} more pairs of scenes do)" if len(pairs) > 1 else ""
    return (
        f"scene {one} of group {groups[one]!r} and scene {other} of group {groups[other]!r} have "
        f"{fraction:.0%} of the smaller one's tiled ground in common{more}; give scenes that "
        'overlap one group, split by="block", or say overlap="drop" (leaves out training tiles '
        'there) or overlap="keep" (--split.overlap)'
    )


def _covered(scene: str, footprints: Footprints, tiles: Sequence[IndexedTile]) -> shapely.Geometry:
    """The ground under a scene's tiles."""
    inside = np.array([i for i, tile in enumerate(tiles) if tile.scene == scene])
    return shapely.union_all(footprints.of(inside).polygons())
