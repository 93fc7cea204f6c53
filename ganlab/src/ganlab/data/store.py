"""The tile store: a folder of memory-mapped shards that anybody can read with numpy.

``store.json`` names the sources and the scenes, ``index.csv`` has one line for each tile, and
``<source>-NNNNN.npy`` holds the tiles themselves, ``(N, C, h, w)`` in the dtype of the scene.
``valid-NNNNN.npy`` is 1 where every source of the tile was measured. Tiles count through the
shards in order. Nothing is ever unpickled.
"""

import csv
import json
import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ganlab.config import SplitConfig, from_dict, to_dict
from ganlab.data.split import Split, split_tiles
from ganlab.errors import InputError

FORMAT = "ganlab tile store"
VERSION = 1
RGB_NAMES = (("red", "b4", "b04"), ("green", "b3", "b03"), ("blue", "b2", "b02"))

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Source:
    """One kind of pixels that every tile has."""

    name: str
    """For example ``"image"`` or ``"label"``; shards are named after it."""
    kind: str
    """``"image"``, ``"label"``, ``"mask"`` or ``"alpha"``."""
    dtype: str
    """Numpy's name of the stored type."""
    bands: tuple[str, ...]
    """Names of the bands, in stored order."""
    factor: int = 1
    """Pixels of this source along one pixel of the reference grid."""
    classes: tuple[int, ...] = ()
    """Labels: the values that may occur, ascending."""
    nodata: float | None = None
    """Value of missing pixels as the scenes declare it."""

    def shape(self, size: int) -> tuple[int, int, int]:
        """``(C, h, w)`` of a tile of ``size`` reference pixels."""
        return len(self.bands), size * self.factor, size * self.factor

    def nbytes(self, size: int) -> int:
        """Bytes of a tile."""
        return math.prod(self.shape(size)) * np.dtype(self.dtype).itemsize

    def shard(self, number: int) -> str:
        """File name of one shard."""
        return f"{self.name}-{number:05d}.npy"

    def to_dict(self) -> dict[str, Any]:
        """The source as plain JSON values."""
        return to_dict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of ``to_dict``."""
        return from_dict(cls, values)


VALID = Source("valid", "mask", "uint8", ("valid",))
"""What every store has besides its sources: 1 where all of them were measured."""


@dataclass(frozen=True)
class StoredScene:
    """Where the tiles of one scene come from; numbers are in tile pixels, after scaling."""

    name: str
    group: str
    crs: str | None
    """``EPSG:...`` or WKT; None for ungeoreferenced scenes."""
    transform: tuple[float, ...]
    """Affine coefficients a, b, c, d, e, f: x = a column + b row + c, y = d column + e row + f."""
    width: int
    height: int


@dataclass(frozen=True)
class Tile:
    """One line of the index."""

    tile: int
    scene: str
    group: str
    row: int
    """First row and column in the scene, in tile pixels."""
    column: int
    height: int
    """Rows and columns of the window; it may reach over the scene's border (edges="pad")."""
    width: int
    transform: tuple[float, ...]
    """Affine coefficients of the tile, as in ``StoredScene``."""
    valid_fraction: float
    checksum: str
    """CRC-32 of the tile's bytes in all sources and the valid mask, in hexadecimal."""


def checksum(parts: Iterable[Array]) -> str:
    """CRC-32 over the bytes of one tile: its sources in stored order, then the valid mask."""
    value = 0
    for part in parts:
        value = zlib.crc32(np.ascontiguousarray(part).data, value)
    return f"{value:08x}"


@dataclass(eq=False, repr=False)
class TileStore:
    """A tile store opened for reading; pickling it carries only its path."""

    path: Path
    sources: dict[str, Source]
    """By name, in stored order."""
    scenes: dict[str, StoredScene]
    """By name."""
    size: int
    """Width and height of a tile on the reference grid."""
    tiles: list[Tile]
    shards: list[int]
    """Number of tiles in each shard."""

    def __post_init__(self) -> None:
        self._all = self.sources | {"valid": VALID}
        self._places = [(shard, place) for shard, n in enumerate(self.shards) for place in range(n)]
        # Each open map holds a file descriptor, of which systems allow about a thousand.
        self._map = lru_cache(maxsize=256)(self._open_shard)

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open a tile store.

        Raises:
            InputError: not a tile store, another version, or a shard missing or cut short.
        """
        path = Path(path)
        try:
            head = json.loads((path / "store.json").read_text(encoding="utf-8"))
            found = f"{head['format']}, version {head['version']}"
            with open(path / "index.csv", newline="", encoding="utf-8") as file:
                tiles = [_tile_from(line) for line in csv.DictReader(file)]
            sources = {values["name"]: Source.from_dict(values) for values in head["sources"]}
            scenes = {values["name"]: from_dict(StoredScene, values) for values in head["scenes"]}
            store = cls(path, sources, scenes, head["size"], tiles, head["shards"])
        except FileNotFoundError as error:
            found = f"{Path(error.filename).name} is missing; make one with `ganlab tile`"
            raise InputError(f"{path} is not a tile store: {found}") from error
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise InputError(f"{path} is not a tile store, or damaged: {error!r}") from error
        if found != f"{FORMAT}, version {VERSION}":
            raise InputError(f"{path} is {found}; expected {FORMAT}, version {VERSION}: tile again")
        if [tile.tile for tile in tiles] != list(range(len(store._places))):
            found = f"lists {len(tiles)} tiles, the shards hold {len(store._places)}"
            raise InputError(f"{path / 'index.csv'} {found}: tile the scenes again")
        for source in store._all.values():
            for number, count in enumerate(store.shards):
                shard, payload = path / source.shard(number), count * source.nbytes(store.size)
                if not shard.is_file() or shard.stat().st_size <= payload:
                    raise InputError(f"{shard} is missing or cut short: tile the scenes again")
        return store

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).open, (self.path,)

    def __len__(self) -> int:
        return len(self.tiles)

    def _open_shard(self, name: str, number: int) -> Array:
        source = self._all[name]
        file = self.path / source.shard(number)
        expected = (self.shards[number], *source.shape(self.size))
        try:
            shard = np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise InputError(f"{file} cannot be read ({error}): tile the scenes again") from error
        if shard.shape != expected or shard.dtype != source.dtype:
            found = f"{shard.dtype} {shard.shape}, expected {source.dtype} {expected}"
            raise InputError(f"{file} holds {found}: tile the scenes again")
        return np.asarray(shard)

    def read(self, source: str, tiles: npt.ArrayLike) -> Array:
        """Tiles by number, in any order: ``(n, C, h, w)``; source ``"valid"`` is uint8, 0 or 1.

        Raises:
            InputError: no such source or tile, or a damaged shard.
        """
        if source not in self._all:
            names = ", ".join(self.sources)
            raise InputError(f"{self.path} has no source {source!r}, only {names} and valid")
        found = self._all[source]
        wanted = np.asarray(tiles, np.int64).reshape(-1).tolist()
        if wanted and not 0 <= min(wanted) <= max(wanted) < len(self):
            asked = f"{min(wanted)} to {max(wanted)}"
            raise InputError(f"{self.path} has tiles 0 to {len(self) - 1}, not {asked}")
        out = np.empty((len(wanted), *found.shape(self.size)), found.dtype)
        for i, tile in enumerate(wanted):
            shard, place = self._places[tile]
            out[i] = self._map(source, shard)[place]
        return out

    def pixel_size(self) -> float | None:
        """Mean ground size of a tile pixel in units of the CRS; None without coordinates."""
        grids = [s.transform for s in self.scenes.values() if s.crs is not None]
        sizes = [abs(a * e - b * d) ** 0.5 for a, b, _, d, e, _ in grids]
        return sum(sizes) / len(sizes) if sizes else None

    def nbytes(self) -> int:
        """Bytes of all tiles in all sources, with the valid masks."""
        return len(self) * sum(source.nbytes(self.size) for source in self._all.values())

    def verify(self) -> None:
        """Read everything and compare the checksums; ``InputError`` names a damaged tile."""
        for tile in self.tiles:
            if checksum(self.read(name, tile.tile) for name in self._all) != tile.checksum:
                shard, _ = self._places[tile.tile]
                found = f"tile {tile.tile} of scene {tile.scene} is damaged (shard {shard:05d})"
                raise InputError(f"{self.path}: {found}: tile the scenes again")

    def split(self, config: SplitConfig) -> Split:
        """Deal the tiles so that no ground is in two parts; see :mod:`ganlab.data.split`.

        Raises:
            InputError: fractions, blocks or groups that cannot be; groups that share ground.
        """
        try:
            return split_tiles(config, self.scenes, self.tiles, self.size)
        except InputError as error:
            raise InputError(f"{self.path}: {error}") from None


def _tile_from(line: dict[str, str]) -> Tile:
    values: dict[str, Any] = dict(line)
    values |= {key: int(line[key]) for key in ("tile", "row", "column", "height", "width")}
    values["transform"] = tuple(float(number) for number in line["transform"].split())
    values["valid_fraction"] = float(line["valid_fraction"])
    return Tile(**values)


def rgb_bands(names: Sequence[str], count: int) -> list[int]:
    """Which of ``count`` bands are red, green, blue: by name, else the first three, else grey."""
    lower = [name.lower() for name in names]
    found = [next((lower.index(n) for n in wanted if n in lower), None) for wanted in RGB_NAMES]
    if None not in found:
        return [index for index in found if index is not None]
    return [0, 1, 2] if count >= 3 else [0, 0, 0]
