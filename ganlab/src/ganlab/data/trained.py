"""What a run remembers of its tiles: which they were, and the ground that it was trained on.

The fingerprint tells whether a store holds the very tiles of a run. The trained ground is compared
with tiles of any store, grown, renamed or made anew, so that none is taken for unseen that is not.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ganlab.config import from_dict, read_json, to_dict
from ganlab.data.ground import Ground, Placed, Windows, overlapping_pairs
from ganlab.data.split import PARTS, Split, contents, windows_of
from ganlab.data.store import Tile, TileStore, check_transform
from ganlab.errors import InputError
from ganlab.files import replace_text

FILE = "ground.json"
"""Name of the file in a run directory."""

LARGEST = 2**40
"""No scene has so many rows or columns; greater numbers would overflow."""
ROUNDING = 1e-6
"""By this part of a pixel products of sizes are inexact."""

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class TrainedScene:
    """The tiles of one scene that a network was trained on."""

    name: str
    crs: str | None
    """As text; None without coordinates."""
    transform: tuple[float, ...]
    """Affine coefficients of the scene in tile pixels: a, b, c, d, e, f."""
    width: int
    height: int
    size: int
    """Width and height of a tile."""
    rows: tuple[int, ...]
    """First row of each tile."""
    columns: tuple[int, ...]
    """First column of each tile."""
    checksums: tuple[str, ...]
    """Of each tile, to recognize it where there are no coordinates."""


def open_tiles(run: Path, recorded: str, given: Path | str | None) -> TileStore:
    """The tile store that a run was trained on.

    Args:
        run: the run directory.
        recorded: where the store was, as seen from the run.
        given: where the store is now, or another store; None if it is where it was.

    Raises:
        InputError: it is not there, or damaged.
    """
    if given is not None:
        return TileStore.open(given)
    place = run / recorded
    if not place.exists():
        expected = os.path.realpath(place)
        raise InputError(
            f"the tile store of {run} is not at {expected}: say where it is now with --tiles"
        )
    return TileStore.open(place)


def fingerprint(store: TileStore, split: Split) -> dict[str, str]:
    """Digests of the tiles (scenes, places, contents) and of their parts, as hexadecimal text."""
    tiles = hashlib.sha256()
    for scene in store.scenes.values():
        tiles.update(json.dumps(to_dict(scene), sort_keys=True).encode())
    for tile in store.tiles:
        tiles.update(f"{tile.scene} {tile.row} {tile.column} {tile.checksum}\n".encode())
    parts = hashlib.sha256()
    for part in PARTS:
        parts.update(f"{part} {getattr(split, part).tolist()}\n".encode())
    return {"tiles": tiles.hexdigest(), "split": parts.hexdigest()}


def trained_scenes(store: TileStore, numbers: Ints) -> list[TrainedScene]:
    """The ground of some tiles, scene by scene."""
    chosen: dict[str, list[Tile]] = {}
    for number in numbers.tolist():
        tile = store.tiles[number]
        chosen.setdefault(tile.scene, []).append(tile)
    return [
        TrainedScene(
            scene.name,
            scene.crs,
            scene.transform,
            scene.width,
            scene.height,
            store.size,
            tuple(tile.row for tile in chosen[scene.name]),
            tuple(tile.column for tile in chosen[scene.name]),
            tuple(tile.checksum for tile in chosen[scene.name]),
        )
        for scene in store.scenes.values()
        if scene.name in chosen
    ]


def write_trained(
    run: Path, own: Sequence[TrainedScene], inherited: Sequence[TrainedScene]
) -> None:
    """Write down the ground of a run, and that of the run whose weights it started from."""
    record = {
        "own": [to_dict(scene) for scene in own],
        "inherited": [to_dict(scene) for scene in inherited],
    }
    replace_text(run / FILE, json.dumps(record))


def read_trained(run: Path) -> tuple[list[TrainedScene], list[TrainedScene]]:
    """The ground of a run, and what it inherited.

    Raises:
        InputError: the file is missing or damaged.
    """
    path = run / FILE
    lost = "without it nobody can tell which ground the run was trained on"
    record = read_json(path, ("own", "inherited"), lost)
    try:
        own = [_scene(values) for values in record["own"]]
        inherited = [_scene(values) for values in record["inherited"]]
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(f"{path} cannot be read ({error}); {lost}") from error
    return own, inherited


def _scene(values: Any) -> TrainedScene:
    scene = from_dict(TrainedScene, values)
    check_transform(scene.transform, f"scene {scene.name!r:.80}")
    if len({len(scene.rows), len(scene.columns), len(scene.checksums)}) != 1:
        raise InputError(f"scene {scene.name} has rows, columns and checksums of unlike number")
    if min(scene.size, scene.width, scene.height) < 1:
        raise InputError(f"scene {scene.name} or its tiles are empty")
    numbers = (*scene.rows, *scene.columns, scene.size, scene.width, scene.height)
    if max(map(abs, numbers)) > LARGEST:
        raise InputError(f"scene {scene.name} has numbers beyond {LARGEST} pixels")
    return scene


def on_trained_ground(store: TileStore, numbers: Ints, trained: Sequence[TrainedScene]) -> Bools:
    """Which tiles share ground with what was trained on: ``(n,)``.

    Where one of two scenes has no coordinates, they are one if their names are the same, and their
    tiles if the checksums are.

    Raises:
        InputError: scenes in systems between which there is no transformation.
    """
    if not trained or not len(numbers):
        return np.zeros(len(numbers), bool)
    tiles = [store.tiles[number] for number in numbers.tolist()]
    scenes: list[Placed] = [*store.scenes.values(), *trained]
    known = [*contents(store.scenes, store.tiles), *[None] * len(trained)]
    ground = Ground.of(scenes, known)
    here = ground.footprints(windows_of(tiles, list(store.scenes)))
    there = ground.footprints(_windows(store, trained))
    seen = np.zeros(len(numbers), bool)
    seen[overlapping_pairs(here, there)[0]] = True
    return np.logical_or(seen, _copies(store, tiles, trained))


def _copies(store: TileStore, tiles: Sequence[Tile], trained: Sequence[TrainedScene]) -> Bools:
    """Which tiles hold the same pixels as trained ones, as far as coordinates do not decide."""
    everything = {checksum for scene in trained for checksum in scene.checksums}
    unplaced = {checksum for scene in trained if scene.crs is None for checksum in scene.checksums}
    has_place = {name: scene.crs is not None for name, scene in store.scenes.items()}
    return np.array(
        [tile.checksum in (unplaced if has_place[tile.scene] else everything) for tile in tiles],
        bool,
    )


def _windows(store: TileStore, trained: Sequence[TrainedScene]) -> Windows:
    """The trained tiles; their scenes are numbered after those of the store.

    Tiles of a scene that the store has under the same name, with coordinates on one side at most,
    are windows of the store's scene, whatever the scale of either.
    """
    number_of = {name: number for number, name in enumerate(store.scenes)}
    found = []
    for number, scene in enumerate(trained, start=len(store.scenes)):
        rows = np.array(scene.rows, np.int64)
        columns = np.array(scene.columns, np.int64)
        sizes = np.full(len(rows), scene.size)
        windows = Windows(np.full(len(rows), number), rows, columns, sizes, sizes)
        twin = store.scenes.get(scene.name)
        if twin is not None and (twin.crs is None or scene.crs is None):
            windows = _rescaled(windows, scene, twin, number_of[scene.name])
        found.append(windows)
    return Windows(*(np.concatenate(parts) for parts in zip(*map(_columns, found), strict=True)))


def _rescaled(windows: Windows, scene: Placed, twin: Placed, number: int) -> Windows:
    """Windows of a scene as windows of the same picture in other pixels, rounded outwards."""
    down = twin.height / scene.height
    across = twin.width / scene.width
    top = np.floor(windows.row * down + ROUNDING).astype(np.int64)
    left = np.floor(windows.column * across + ROUNDING).astype(np.int64)
    bottom = np.ceil((windows.row + windows.height) * down - ROUNDING).astype(np.int64)
    right = np.ceil((windows.column + windows.width) * across - ROUNDING).astype(np.int64)
    return Windows(np.full(len(top), number), top, left, bottom - top, right - left)


def _columns(windows: Windows) -> tuple[Ints, ...]:
    return windows.scene, windows.row, windows.column, windows.height, windows.width


def recognized_by_name(store: TileStore, trained: Sequence[TrainedScene]) -> list[str]:
    """Scenes of a store that are compared with trained ones by their names, for want of places."""
    has_place = {scene.name: scene.crs is not None for scene in trained}
    return [
        name
        for name, scene in store.scenes.items()
        if name in has_place and (scene.crs is None or not has_place[name])
    ]
