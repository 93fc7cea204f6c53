"""What a run remembers of its tiles: which they were, and the ground that it was trained on.

The fingerprint tells whether a store holds the very tiles of a run. The trained ground is compared
with tiles of any store, grown, renamed or made anew, so that none is taken for unseen that is not.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ganlab.config import from_dict, to_dict
from ganlab.data.ground import Ground, Placed, Windows, overlapping_pairs
from ganlab.data.split import PARTS, Split, windows_of
from ganlab.data.store import TileStore
from ganlab.errors import InputError
from ganlab.files import replace_text

FILE = "ground.json"
"""Name of the file in a run directory."""

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
    """Of each tile, where there are no coordinates to recognize it by."""


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
    chosen = [store.tiles[number] for number in numbers.tolist()]
    found = []
    for scene in store.scenes.values():
        tiles = [tile for tile in chosen if tile.scene == scene.name]
        if not tiles:
            continue
        checksums = tuple(tile.checksum for tile in tiles) if scene.crs is None else ()
        found.append(
            TrainedScene(
                scene.name,
                scene.crs,
                scene.transform,
                scene.width,
                scene.height,
                store.size,
                tuple(tile.row for tile in tiles),
                tuple(tile.column for tile in tiles),
                checksums,
            )
        )
    return found


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
    try:
        record: Any = json.loads(path.read_text(encoding="utf-8"))
        own = [_scene(values) for values in record["own"]]
        inherited = [_scene(values) for values in record["inherited"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path} cannot be read ({error}); without it nobody can tell which ground the run "
            "was trained on"
        ) from error
    return own, inherited


def _scene(values: Any) -> TrainedScene:
    scene = from_dict(TrainedScene, values)
    lengths = {len(scene.rows), len(scene.columns), len(scene.checksums or scene.rows)}
    if len(scene.transform) != 6 or len(lengths) != 1 or scene.size < 1:
        raise InputError(f"scene {scene.name} does not agree with itself")
    return scene


def on_trained_ground(store: TileStore, numbers: Ints, trained: Sequence[TrainedScene]) -> Bools:
    """Which tiles share ground with what was trained on: ``(n,)``.

    Scenes without coordinates are recognized by their names and sizes, their tiles by checksums.
    """
    if not trained or not len(numbers):
        return np.zeros(len(numbers), bool)
    tiles = [store.tiles[number] for number in numbers.tolist()]
    scenes: list[Placed] = [*store.scenes.values(), *trained]
    same_picture = [(scene.name, scene.width, scene.height) for scene in scenes]
    ground = Ground.of(scenes, same_picture)
    here = windows_of(tiles, list(store.scenes))
    there = _windows(trained, first=len(store.scenes))
    pairs = overlapping_pairs(ground.footprints(here), ground.footprints(there))
    seen = np.zeros(len(numbers), bool)
    seen[pairs[0]] = True
    known = {checksum for scene in trained for checksum in scene.checksums}
    copies: Bools = np.array([tile.checksum in known for tile in tiles])
    return np.logical_or(seen, copies)


def _windows(trained: Sequence[TrainedScene], first: int) -> Windows:
    """The trained tiles; their scenes are numbered from ``first`` on."""

    def joined(parts: Iterable[npt.ArrayLike]) -> Ints:
        return np.concatenate([np.asarray(part, np.int64) for part in parts])

    counts = [len(scene.rows) for scene in trained]
    sizes = np.repeat([scene.size for scene in trained], counts)
    return Windows(
        np.repeat(np.arange(first, first + len(trained)), counts),
        joined(scene.rows for scene in trained),
        joined(scene.columns for scene in trained),
        sizes,
        sizes,
    )
