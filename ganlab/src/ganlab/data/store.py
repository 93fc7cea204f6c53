"""The tile store: a folder of shards that anybody can read, or map into memory, with numpy.

``store.json`` names the sources and the scenes, ``index.csv`` has one line for each tile, and
``<source>-NNNNN.npy`` holds the tiles themselves, ``(N, C, h, w)`` in the dtype of the scene.
``valid-NNNNN.npy`` is 1 where every source of the tile was measured. Tiles count through the
shards in order. Nothing is ever unpickled, and no file outside the folder is read.

A store may come from anybody. When it is opened, all that it says of itself is checked, and
compared with the sizes of its files; when a tile is read for the first time, its checksum is.
"""

import csv
import itertools
import json
import math
import re
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Self, TextIO

import numpy as np
import numpy.typing as npt

from ganlab.config import SplitConfig, from_dict, to_dict
from ganlab.data.shards import CURE, Shard, find_pixels
from ganlab.data.split import Split, split_tiles
from ganlab.data.tags import BandTags, Tagged, check_same_scale
from ganlab.errors import InputError
from ganlab.files import is_plain_name

FORMAT = "ganlab tile store"
VERSION = 1
KINDS = ("image", "label", "mask", "alpha")
DTYPES = ("uint8", "uint16", "int16", "uint32", "int32", "float32", "float64")
"""Numpy's names of the types that a source may have."""
BATCH_ENTRIES = ("valid", "sample", "key", "noise", "hole")
"""What a batch holds besides the sources, which therefore cannot have these names."""
RGB_NAMES = (("red", "b4", "b04"), ("green", "b3", "b03"), ("blue", "b2", "b02"))

LARGEST_HEAD = 2**28
LONGEST_LINE = 2**16
"""Bytes of ``store.json``, and characters of a line of the index, beyond which it is no store."""
LARGEST_SCENE = 2**31
"""Rows or columns, as in GDAL."""

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
    """Value of missing pixels that all bands of all scenes declare; None if they differ."""
    tags: BandTags = field(default=BandTags(), repr=False)
    """What the scenes declare of the bands: scale and offset, units, colours, a palette."""
    ignore: tuple[int, ...] = ()
    """Labels: values that mean unknown, whose pixels are never valid."""

    def __post_init__(self) -> None:
        if not is_plain_name(self.name):
            raise InputError(f"source {self.name!r:.80}: expected a name without folders")
        if self.kind not in KINDS:
            raise InputError(f"source {self.name!r}: kind {self.kind!r:.80}, not one of {KINDS}")
        if self.dtype not in DTYPES:
            raise InputError(f"source {self.name!r}: type {self.dtype!r:.80}, not one of {DTYPES}")
        if not self.bands or self.factor < 1:
            found = f"{len(self.bands)} bands and factor {self.factor}"
            raise InputError(f"source {self.name!r} has {found}, expected 1 at least")
        if not self.tags.fit(len(self.bands)):
            raise InputError(f"source {self.name!r}: tags do not fit its {len(self.bands)} bands")
        if self.classes and np.dtype(self.dtype).kind in "iu":
            limits = np.iinfo(self.dtype)
            if not limits.min <= min(self.classes) <= max(self.classes) <= limits.max:
                raise InputError(f"source {self.name!r}: {self.dtype} cannot hold all its classes")

    def shape(self, size: int) -> tuple[int, int, int]:
        """``(C, h, w)`` of a tile of ``size`` reference pixels."""
        return len(self.bands), size * self.factor, size * self.factor

    def nbytes(self, size: int) -> int:
        """Bytes of a tile."""
        return math.prod(self.shape(size)) * np.dtype(self.dtype).itemsize

    def shard(self, number: int) -> str:
        """File name of one shard."""
        return f"{self.name}-{number:05d}.npy"

    def tagged(self, what: str) -> Tagged:
        """Its bands with their tags, to be compared with others; ``what`` is for messages."""
        return Tagged(what, self.bands, self.tags, self.dtype)

    def to_dict(self) -> dict[str, Any]:
        """The source as plain JSON values."""
        return to_dict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of ``to_dict``."""
        return from_dict(cls, values)


def check_same_scales(
    known: Mapping[str, Source],
    found: Mapping[str, Source],
    run: Path,
    store: Path,
    ignore: bool | None,
) -> None:
    """Refuse tiles whose values mean other things than those that a run was trained on.

    ``ignore`` is as for :func:`ganlab.data.tags.check_same_scale`.

    Raises:
        InputError: scale or offset of a band of an image source differ.
    """
    cure = (
        "Convert the scenes to the scale and offset of the run (`ganlab apply` gives the line for "
        "a scene), and tile them again"
    )
    for name, source in found.items():
        if source.kind == "image" and name in known:
            trained = known[name].tagged(f"{run} (its tiles)")
            here = source.tagged(f"{store} (its source {name!r})")
            check_same_scale(trained, here, cure, ignore)


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
    pixel_size: float | None = field(default=None, compare=False)
    """Metres on the ground of a tile pixel in the middle; None where they are not known."""

    def __post_init__(self) -> None:
        check_transform(self.transform, f"scene {self.name!r:.80}")
        if not (1 <= self.width <= LARGEST_SCENE and 1 <= self.height <= LARGEST_SCENE):
            raise InputError(f"scene {self.name!r:.80} has {self.width} x {self.height} pixels")


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


@dataclass(frozen=True)
class Head:
    """What ``store.json`` holds."""

    format: str
    version: int
    size: int
    """Width and height of a tile on the reference grid."""
    sources: tuple[Source, ...]
    scenes: tuple[StoredScene, ...]
    shards: tuple[int, ...]
    """Number of tiles in each shard."""
    tiling: dict[str, Any] = field(default_factory=dict)
    """The options it was made with."""
    index_checksum: str | None = None
    """CRC-32 of ``index.csv``, in hexadecimal."""
    checksum: str | None = None
    """CRC-32 of all the rest of the head, see :func:`head_checksum`."""

    def __post_init__(self) -> None:
        names = [source.name for source in self.sources]
        check_source_names(names)
        if len({name.casefold() for name in names}) < len(names) or not names:
            raise InputError(f"the sources are called {names}: expected one name for each")
        scenes = [scene.name for scene in self.scenes]
        if len(set(scenes)) < len(scenes):
            raise InputError("several scenes have the same name")
        if self.size < 1 or not self.shards or min(self.shards) < 0:
            raise InputError(f"size {self.size} or the number of tiles in a shard is below 1")


def checksum(parts: Iterable[Array]) -> str:
    """CRC-32 over the bytes of one tile: its sources in stored order, then the valid mask."""
    value = 0
    for part in parts:
        value = zlib.crc32(np.ascontiguousarray(part).data, value)
    return f"{value:08x}"


def head_checksum(head: dict[str, Any]) -> str:
    """CRC-32 of what ``store.json`` says, however it is written, without its own checksum."""
    said = {name: value for name, value in head.items() if name != "checksum"}
    return f"{zlib.crc32(json.dumps(said, sort_keys=True).encode()):08x}"


def file_checksum(path: Path) -> str:
    """CRC-32 of a file, in hexadecimal."""
    value = 0
    with open(path, "rb") as file:
        while block := file.read(2**20):
            value = zlib.crc32(block, value)
    return f"{value:08x}"


def check_source_names(names: Iterable[str]) -> None:
    """Refuse names of sources that would hide what a batch holds besides them.

    Raises:
        InputError: there is one.
    """
    for name in names:
        if name.casefold() in BATCH_ENTRIES:
            raise InputError(
                f"a source cannot be called {name}: that is the name of the {name} of each batch; "
                "give it another"
            )


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
    damage: str | None = None
    """What is wrong with the description of the tiles, so that none of them is read."""
    tiling: dict[str, Any] = field(default_factory=dict)
    """The options it was made with."""

    def __post_init__(self) -> None:
        self._all = self.sources | {"valid": VALID}
        self._first = list(itertools.accumulate(self.shards, initial=0))
        self._verified = np.zeros(len(self.tiles), bool)
        # Each open shard holds a file descriptor, of which systems allow about a thousand.
        self._shard = lru_cache(maxsize=256)(self._open_shard)

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open a tile store.

        Raises:
            InputError: not a tile store, another version, or a shard missing or cut short.
        """
        path = Path(path)
        try:
            head, head_damage = _read_head(path / "store.json")
            for source in (*head.sources, VALID):
                for number, count in enumerate(head.shards):
                    shape = (count, *source.shape(head.size))
                    find_pixels(path / source.shard(number), source.dtype, shape)
            tiles, index_damage = _read_index(path / "index.csv", head)
        except InputError:
            raise
        except FileNotFoundError as error:
            found = f"{Path(error.filename).name} is missing; make one with `ganlab tile`"
            raise InputError(f"{path} is not a tile store: {found}") from error
        except (OSError, ValueError, csv.Error) as error:
            raise InputError(f"{path} is not a tile store, or damaged: {error!s:.200}") from error
        sources = {source.name: source for source in head.sources}
        scenes = {scene.name: scene for scene in head.scenes}
        shards = list(head.shards)
        damage = head_damage or index_damage
        return cls(path, sources, scenes, head.size, tiles, shards, damage, head.tiling)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).open, (self.path,)

    def __len__(self) -> int:
        return len(self.tiles)

    def _open_shard(self, name: str, number: int) -> Shard:
        source = self._all[name]
        shape = (self.shards[number], *source.shape(self.size))
        return Shard(self.path / source.shard(number), source.dtype, shape)

    def read(self, source: str, tiles: npt.ArrayLike) -> Array:
        """Tiles by number, in any order: ``(n, C, h, w)``; source ``"valid"`` is uint8, 0 or 1.

        A tile that is read for the first time is compared with its checksum, in all sources:
        that reads it once more, and takes about half a second for each GB.

        Raises:
            InputError: no such source or tile, or a damaged tile or shard.
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
            self._verify(tile)
            self._read_tile(source, tile, out[i])
        return out

    def _read_tile(self, source: str, tile: int, out: Array) -> None:
        number = self._shard_of(tile)
        self._shard(source, number).read(tile - self._first[number], out)

    def _shard_of(self, tile: int) -> int:
        return bisect_right(self._first, tile) - 1

    def pixel_size(self) -> float | None:
        """Mean size of a tile pixel on the ground in metres; None without coordinates."""
        sizes = [s.pixel_size for s in self.scenes.values() if s.pixel_size is not None]
        return sum(sizes) / len(sizes) if sizes else None

    def nbytes(self) -> int:
        """Bytes of all tiles in all sources, with the valid masks."""
        return len(self) * sum(source.nbytes(self.size) for source in self._all.values())

    def verify(self) -> None:
        """Compare the checksums of all tiles that were not read yet (half a second for each GB).

        Raises:
            InputError: a tile is damaged; the message names it.
        """
        for tile in range(len(self)):
            self._verify(tile)

    def _verify(self, tile: int) -> None:
        if self._verified[tile]:
            return
        if self.damage is not None:
            raise InputError(f"{self.damage}: damaged, or changed by hand; {CURE}")
        parts = []
        for name, source in self._all.items():
            part = np.empty(source.shape(self.size), source.dtype)
            self._read_tile(name, tile, part)
            parts.append(part)
        # The valid mask stands last; losses would multiply by whatever number it holds.
        if checksum(parts) != self.tiles[tile].checksum or parts[-1].max() > 1:
            place = f"tile {tile} of scene {self.tiles[tile].scene}"
            found = f"{place} is damaged (shard {self._shard_of(tile):05d})"
            raise InputError(f"{self.path}: {found}: {CURE}")
        self._verified[tile] = True

    def split(self, config: SplitConfig) -> Split:
        """Deal the tiles so that no ground is in two parts; see :mod:`ganlab.data.split`.

        Raises:
            InputError: fractions, blocks or groups that cannot be; groups that share ground.
        """
        try:
            return split_tiles(config, self.scenes, self.tiles, self.size)
        except InputError as error:
            raise InputError(f"{self.path}: {error}") from None


def _read_head(path: Path) -> tuple[Head, str | None]:
    """What ``store.json`` says, checked, and what is wrong if its checksum is."""
    _refuse_what_is_no_file(path)
    with open(path, "rb") as file:
        text = file.read(LARGEST_HEAD + 1)
    if len(text) > LARGEST_HEAD:
        raise ValueError(f"store.json has more than {LARGEST_HEAD} bytes")
    try:
        said = json.loads(text.decode("utf-8"))
    except RecursionError as error:
        raise ValueError("store.json is nested too deeply") from error
    if not isinstance(said, dict) or not {"format", "version"} <= said.keys():
        raise ValueError("store.json says neither format nor version")
    if (said["format"], said["version"]) != (FORMAT, VERSION):
        found = f"{said['format']!s:.80}, version {said['version']!s:.80}"
        raise InputError(f"{path.parent} is {found}; expected {FORMAT}, version {VERSION}: {CURE}")
    try:
        head = from_dict(Head, said)
    except InputError as error:
        raise ValueError(f"store.json: {error}") from error
    if head.checksum in (None, head_checksum(said)):
        return head, None
    return head, f"{path} does not have the checksum that it names"


def _read_index(path: Path, head: Head) -> tuple[list[Tile], str | None]:
    """The lines of ``index.csv``, checked, and what is wrong if its checksum is."""
    _refuse_what_is_no_file(path)
    scenes = {scene.name: scene for scene in head.scenes}
    expected = sum(head.shards)
    tiles: list[Tile] = []
    with open(path, newline="", encoding="utf-8") as file:
        lines = csv.reader(_short_lines(file))
        names = [field.name for field in fields(Tile)]
        if next(lines, None) != names:
            raise ValueError(f"index.csv does not begin with {','.join(names)}")
        for values in lines:
            if len(tiles) == expected:
                raise InputError(f"{path} lists more tiles than the {expected} of the shards")
            try:
                tile = _tile_from(dict(zip(names, values, strict=True)))
                _check_tile(tile, len(tiles), scenes, head.size)
            except (ValueError, OverflowError) as error:
                raise ValueError(f"index.csv, line {lines.line_num}: {error}") from error
            tiles.append(tile)
    if len(tiles) < expected:
        found = f"lists {len(tiles)} tiles, the shards hold {expected}"
        raise InputError(f"{path} {found}: {CURE}")
    if head.index_checksum in (None, file_checksum(path)):
        return tiles, None
    return tiles, f"{path} does not have the checksum that store.json names"


def _refuse_what_is_no_file(path: Path) -> None:
    """Opening a pipe would wait for somebody who writes."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path.name} is no file")


def _short_lines(file: TextIO) -> Iterator[str]:
    """The lines of a text, which are cut where they are too long to be any of an index."""
    while line := file.readline(LONGEST_LINE):
        yield line


def _tile_from(line: dict[str, str]) -> Tile:
    values: dict[str, Any] = dict(line)
    values |= {key: int(line[key]) for key in ("tile", "row", "column", "height", "width")}
    values["transform"] = tuple(float(number) for number in line["transform"].split())
    values["valid_fraction"] = float(line["valid_fraction"])
    return Tile(**values)


def _check_tile(tile: Tile, number: int, scenes: dict[str, StoredScene], size: int) -> None:
    """Compare a line of the index with the head of the store."""
    if tile.tile != number:
        raise InputError(f"tile {tile.tile}, expected {number}")
    scene = scenes.get(tile.scene)
    if scene is None or scene.group != tile.group:
        found = f"scene {tile.scene!r:.80} of group {tile.group!r:.80}"
        raise InputError(f"{found}, which store.json does not have")
    if (tile.height, tile.width) != (size, size):
        raise InputError(f"{tile.width} x {tile.height} pixels, expected {size} x {size}")
    if not (0 <= tile.row < scene.height and 0 <= tile.column < scene.width):
        place = f"row {tile.row}, column {tile.column}"
        raise InputError(f"{place} is outside of scene {tile.scene!r:.80}")
    check_transform(tile.transform, f"tile {number}")
    if not 0 <= tile.valid_fraction <= 1:
        raise InputError(f"valid_fraction {tile.valid_fraction}, expected 0 to 1")
    if not re.fullmatch("[0-9a-f]{8}", tile.checksum):
        raise InputError(f"checksum {tile.checksum!r:.80}, expected eight hexadecimal digits")


def check_transform(transform: tuple[float, ...], what: str) -> None:
    """Refuse what is no affine transform of pixels with an area; ``what`` has it, for the message.

    Raises:
        InputError: it is not six finite numbers, or the pixels have no area.
    """
    if len(transform) != 6 or not all(map(math.isfinite, transform)):
        raise InputError(f"{what}: transform {transform!s:.200}, expected six finite numbers")
    a, b, _, d, e, _ = transform
    if a * e == b * d:
        raise InputError(f"{what}: the transform {transform} gives its pixels no area")


def rgb_bands(names: Sequence[str], count: int) -> list[int]:
    """Which of ``count`` bands are red, green, blue: by name, else the first three, else grey."""
    lower = [name.lower() for name in names]
    found = [next((lower.index(n) for n in wanted if n in lower), None) for wanted in RGB_NAMES]
    if None not in found:
        return [index for index in found if index is not None]
    return [0, 1, 2] if count >= 3 else [0, 0, 0]
