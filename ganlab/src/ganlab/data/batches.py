"""From a tile store to batches on the device.

A batch is a pure function of (seed, step). Tiles travel and rest as the integers they are stored
as; crop, flip, quarter turn and scaling happen on the device, for a whole batch at once. The
resident path (all tiles on the device) and the loader path (memory-mapped shards) run the same
code on the same random numbers, so they give the same batches.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import le, lt
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ganlab.config import ScalingConfig
from ganlab.data.store import Source, TileStore
from ganlab.errors import InputError
from ganlab.randomness import permutation, uniforms

Batch = dict[str, Tensor]
Tiles = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Scaling:
    """Affine map for each band between stored values and about [-1, 1]; never clips on encode.

    Attributes:
        low: stored value that becomes -1, for each band.
        high: stored value that becomes +1, for each band.
        fill: stored value that invalid pixels take (the band's mean), for each band.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    fill: tuple[float, ...]

    def _center_and_half(self) -> tuple[Tensor, Tensor]:
        # Rounded to float32 once, so that both ways use the same numbers.
        low, high = torch.tensor([self.low, self.high], dtype=torch.float64).view(2, -1, 1, 1)
        return ((low + high) / 2).float(), ((high - low) / 2).float()

    def encode(self, stored: Tensor, valid: Tensor) -> Tensor:
        """``(B, C, H, W)`` stored values to float32; invalid pixels become the band's mean."""
        center, half = (t.to(stored.device) for t in self._center_and_half())
        fill = torch.tensor(self.fill, device=stored.device).view(-1, 1, 1)
        return (torch.where(valid > 0, stored.float(), fill) - center) / half

    def decode(self, scaled: Tensor, dtype: str) -> npt.NDArray[Any]:
        """The way back, saturating at the range of ``dtype`` (a numpy name).

        Integers of up to 16 bits return exactly; float32 within one unit in the last place at
        the magnitude of ``max(|low|, |high|)``.

        Raises:
            InputError: a value is not finite.
        """
        center, half = self._center_and_half()
        values = (scaled.detach().cpu().double() * half + center).numpy()
        if not np.isfinite(values).all():
            raise InputError("the model made values that are not finite; train it anew or use fp32")
        kind = np.dtype(dtype)
        limits = np.iinfo(kind) if kind.kind in "iu" else np.finfo(kind)
        if kind.kind in "iu":
            values = np.rint(values)
        stored: npt.NDArray[Any] = np.clip(values, limits.min, limits.max).astype(kind)
        return stored

    def outside(self, stored: Tensor, valid: Tensor) -> Tensor:
        """Share of valid values beyond twice the scaled range: data unlike the training's."""
        far = (self.encode(stored, valid).abs() > 2) & (valid > 0)
        return far.sum() / (valid.sum() * stored.shape[1]).clamp(min=1)


@dataclass(frozen=True)
class DataSpec:
    """What a run must know about its data: sources, and the scaling of the image sources."""

    sources: Mapping[str, Source]
    scalings: Mapping[str, Scaling]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "sources": {name: source.to_dict() for name, source in self.sources.items()},
            "scalings": {name: vars(scaling) for name, scaling in self.scalings.items()},
        }

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "DataSpec":
        """The inverse of ``to_dict``."""
        return DataSpec(
            {name: Source.from_dict(v) for name, v in values["sources"].items()},
            {
                name: Scaling(**{key: tuple(numbers) for key, numbers in v.items()})
                for name, v in values["scalings"].items()
            },
        )


def describe(store: TileStore, train: Tiles, config: ScalingConfig, sample: int = 256) -> DataSpec:
    """Measure the scaling of every image source on (at most ``sample``) training tiles.

    Raises:
        InputError: no training tiles, a band without valid pixels, or a declared range that does
            not fit the bands or is empty.
    """
    if len(train) == 0:
        raise InputError(f"{store.path}: no training tiles; change the split or tile more ground")
    chosen = train[np.linspace(0, len(train) - 1, min(len(train), sample)).round().astype(int)]
    scalings = {}
    for name, source in store.sources.items():
        if source.kind != "image":
            continue
        values = store.read(name, chosen)
        valid = np.broadcast_to(_on_grid_of(source, store.read("valid", chosen)) > 0, values.shape)
        bands = [values[:, i][valid[:, i]].astype(np.float64) for i in range(values.shape[1])]
        if not all(len(band) for band in bands):
            raise InputError(f"{store.path}: no valid pixel of {name!r} in the training tiles")
        low = _per_band(config.low, bands, 0.0 if source.dtype == "uint8" else None, 0.005)
        high = _per_band(config.high, bands, 255.0 if source.dtype == "uint8" else None, 0.995)
        below = lt if config.low and config.high else le
        if not all(map(below, low, high)):
            raise InputError(f"scaling of {name!r}: low {low} must lie below high {high}")
        # A constant band has no range; any that is not lost beside its value keeps it finite.
        ends = zip(low, high, strict=True)
        high = tuple(hi if hi > lo else lo + max(1.0, abs(lo)) for lo, hi in ends)
        scalings[name] = Scaling(low, high, tuple(float(band.mean()) for band in bands))
    return DataSpec(dict(store.sources), scalings)


def _per_band(
    declared: tuple[float, ...],
    bands: list[npt.NDArray[np.float64]],
    default: float | None,
    quantile: float,
) -> tuple[float, ...]:
    if len(declared) not in (0, 1, len(bands)):
        raise InputError(
            f"scaling: {len(declared)} values for {len(bands)} bands; give one, or one for each"
        )
    if declared:
        return declared * len(bands) if len(declared) == 1 else declared
    if default is not None:
        return (default,) * len(bands)
    return tuple(float(np.quantile(band, quantile)) for band in bands)


def _on_grid_of(source: Source, valid: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    if source.factor == 1:
        return valid
    return valid.repeat(source.factor, axis=2).repeat(source.factor, axis=3)


@dataclass(frozen=True)
class _Plan:
    """Which tiles make a batch, and how each is cut and turned; small, made on the host."""

    tiles: Tiles
    top: Tiles
    left: Tiles
    flip: npt.NDArray[np.bool_]  # (B, 2): rows, columns
    transpose: npt.NDArray[np.bool_]


class Batches(Dataset[Batch]):
    """The batches of a training: ``batches[step]`` depends on (seed, step) and nothing else.

    Args:
        store: where the tiles are.
        tiles: the tile numbers to draw from; each epoch meets each once, in a new order.
        spec: sources and scalings.
        batch_size: tiles for each step over all processes; must divide by ``world``.
        crop: width of a random crop; the whole tile if None.
        augment: random flips and quarter turns.
        seed: every choice follows from it.
        device: where batches are made.
        resident: keep all tiles on the device.
        rank: this process; it gets its share of every batch.
        world: number of processes.
    """

    def __init__(
        self,
        store: TileStore,
        tiles: Tiles,
        spec: DataSpec,
        *,
        batch_size: int,
        crop: int | None = None,
        augment: bool = True,
        seed: int = 0,
        device: torch.device | str = "cpu",
        resident: bool = False,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if len(tiles) == 0:
            raise InputError(f"{store.path}: no tiles to draw from; change the split")
        if crop is not None and not 0 < crop <= store.size:
            raise InputError(f"crop {crop} does not fit tiles of {store.size} pixels")
        if batch_size < 1 or batch_size % world:
            raise InputError(f"batch size {batch_size} does not divide by {world} processes")
        self.store, self.tiles, self.spec = store, np.sort(np.asarray(tiles, np.int64)), spec
        self.batch_size, self.crop, self.augment = batch_size, crop or store.size, augment
        self.seed, self.device = seed, torch.device(device)
        self.rank, self.world = rank, world
        self._resident: Batch | None = None
        if resident:
            self._resident = {k: v.to(self.device) for k, v in self._read(self.tiles).items()}

    def __getitem__(self, step: int) -> Batch:
        """The batch of one step, on the device (see the module's words on what is in it)."""
        plan = self._plan(step)
        if self._resident is None:
            return self._make(self._read(plan.tiles), np.arange(len(plan.tiles)), plan)
        return self._make(self._resident, np.searchsorted(self.tiles, plan.tiles), plan)

    def stream(self, start: int, stop: int, workers: int = 0) -> Iterator[Batch]:
        """The batches of steps ``start`` to ``stop - 1``; ``workers`` processes read ahead."""
        if self._resident is not None or workers == 0:
            yield from (self[step] for step in range(start, stop))
            return
        loader: DataLoader[Batch] = DataLoader(
            _HostReader(self),
            batch_size=None,
            sampler=range(start, stop),
            num_workers=workers,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),
        )
        for step, raw in enumerate(loader, start):
            plan = self._plan(step)
            yield self._make(raw, np.arange(len(plan.tiles)), plan)

    def whole(self, tiles: Tiles) -> Batch:
        """Given tiles as they are: no crop, no flip, no turn."""
        n = len(tiles)
        zeros, no = np.zeros(n, np.int64), np.zeros(n, bool)
        plan = _Plan(np.asarray(tiles, np.int64), zeros, zeros, np.zeros((n, 2), bool), no)
        return self._make(self._read(plan.tiles), np.arange(n), plan, self.store.size)

    def _plan(self, step: int) -> _Plan:
        share = self.batch_size // self.world
        first = step * self.batch_size + self.rank * share
        position = np.arange(first, first + share)
        epoch, place = np.divmod(position, len(self.tiles))
        order = {e: permutation(self.seed, int(e), len(self.tiles)) for e in np.unique(epoch)}
        tiles = self.tiles[[order[e][p] for e, p in zip(epoch, place, strict=True)]]
        room = self.store.size - self.crop + 1
        corner = (uniforms(self.seed, epoch, tiles, "crop", 2) * room).astype(np.int64)
        turn = uniforms(self.seed, epoch, tiles, "flip and turn", 3) < 0.5
        turn &= self.augment
        return _Plan(tiles, corner[:, 0], corner[:, 1], turn[:, :2], turn[:, 2])

    def _read(self, tiles: Tiles) -> Batch:
        raw = {name: self.store.read(name, tiles) for name in (*self.store.sources, "valid")}
        return {name: torch.from_numpy(_indexable(array)) for name, array in raw.items()}

    def _make(self, raw: Batch, rows: Tiles, plan: _Plan, size: int | None = None) -> Batch:
        size = size or self.crop
        here = {name: data.to(self.device, non_blocking=True) for name, data in raw.items()}
        cut = {
            name: _cut(data, rows, plan, size, self._factor(name)) for name, data in here.items()
        }
        valid = cut.pop("valid").float()
        batch: Batch = {"valid": valid}
        for name, stored in cut.items():
            source = self.spec.sources[name]
            if source.dtype == "uint16":
                stored = stored.int() & 0xFFFF
            if source.kind == "image":
                fine = valid.repeat_interleave(source.factor, 2).repeat_interleave(source.factor, 3)
                batch[name] = self.spec.scalings[name].encode(stored, fine)
            else:
                batch[name] = stored.long()
        batch["sample"] = torch.from_numpy(plan.tiles).to(self.device, non_blocking=True)
        return batch

    def _factor(self, name: str) -> int:
        return 1 if name == "valid" else self.store.sources[name].factor


class _HostReader(Dataset[Batch]):
    """What loader processes run: reading only, no work on the device."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __getitem__(self, step: int) -> Batch:
        return self.batches._read(self.batches._plan(step).tiles)


def _indexable(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    # torch indexes no uint16 on all devices; the same bits travel as int16.
    return array.view(np.int16) if array.dtype == np.uint16 else array


def _cut(data: Tensor, rows: Tiles, plan: _Plan, size: int, factor: int) -> Tensor:
    """One gather takes tile, crop and flips together: ``(B, C, size, size)``, channels last."""
    steps = np.arange(size * factor)
    y = np.where(plan.flip[:, :1], steps[::-1], steps) + plan.top[:, None] * factor
    x = np.where(plan.flip[:, 1:], steps[::-1], steps) + plan.left[:, None] * factor
    at = (rows[:, None, None], y[:, :, None], x[:, None, :], plan.transpose[:, None, None, None])
    tile, row, column, turned = (
        torch.from_numpy(index).to(data.device, non_blocking=True) for index in at
    )
    cut = data[tile, :, row, column].permute(0, 3, 1, 2)
    return torch.where(turned, cut.transpose(2, 3), cut)
