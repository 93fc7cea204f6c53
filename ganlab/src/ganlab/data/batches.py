"""From a tile store to batches on the device.

A batch is a pure function of (seed, step). Tiles travel and rest as the integers they are stored
as; crop, flip, quarter turn and scaling happen on the device, for a whole batch at once. The
resident path (all tiles on the device) and the loader path (tiles read from shards) run the same
code on the same random numbers, so they give the same batches.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import le, lt
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ganlab.config import ScalingConfig, from_dict, to_dict
from ganlab.data.fill import how_to_declare, said_to_be_measured, warn_of_fill
from ganlab.data.missing import HUGE
from ganlab.data.store import Source, TileStore, check_source_names
from ganlab.errors import InputError
from ganlab.randomness import keys, permutation, uniforms
from ganlab.workers import GUARD, leave_if_main_is_being_imported

Batch = dict[str, Tensor]
Tiles = npt.NDArray[np.int64]
PerBand = tuple[float, ...]
LARGEST_FACTOR = 1024
LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


def as_float32(stored: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Stored values as networks take them; what is too large, which is never valid, is infinite."""
    with np.errstate(over="ignore"):
        return stored.astype(np.float32)


@dataclass(frozen=True)
class Scaling:
    """Affine map for each band between stored values and about [-1, 1]; never clips on encode.

    Attributes:
        low: stored values that become -1.
        high: stored values that become +1.
        fill: stored values that invalid pixels take: the means of the bands.
    """

    low: PerBand
    high: PerBand
    fill: PerBand

    def _center_and_half(self) -> tuple[Tensor, Tensor]:
        # Rounded to float32 once, so that both ways use the same numbers.
        low, high = torch.tensor([self.low, self.high], dtype=torch.float64).view(2, -1, 1, 1)
        return ((low + high) / 2).float(), ((high - low) / 2).float()

    @property
    def gain(self) -> PerBand:
        """Stored units of one network unit, for each band."""
        return tuple((high - low) / 2 for low, high in zip(self.low, self.high, strict=True))

    @property
    def dark(self) -> PerBand:
        """Where the stored value 0 lies in network units, for each band."""
        ends = zip(self.low, self.high, strict=True)
        return tuple(-(low + high) / (high - low) for low, high in ends)

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
        whole = np.issubdtype(dtype, np.integer)
        limits = np.iinfo(dtype) if whole else np.finfo(dtype)
        stored = np.clip(np.rint(values) if whole else values, limits.min, limits.max)
        return np.asarray(stored.astype(dtype))

    def outside(self, stored: Tensor, valid: Tensor, also: Tensor | None = None) -> Tensor:
        """Share of valid values beyond twice the scaled range: data unlike the training's.

        ``also`` ``(C, 1, 1)`` is a value in network units up to which the range is widened.
        """
        scaled = self.encode(stored, valid)
        also = torch.zeros(()) if also is None else also
        low, high = 2 * also.clamp(max=-1), 2 * also.clamp(min=1)
        far = ((scaled < low) | (scaled > high)) & (valid > 0)
        return far.sum() / (valid.sum() * stored.shape[1]).clamp(min=1)


@dataclass(frozen=True)
class DataSpec:
    """What a run must know about its data: sources, and the scaling of the image sources."""

    sources: Mapping[str, Source]
    scalings: Mapping[str, Scaling]
    pixel_size: float | None = None
    """Size of a pixel on the ground in metres; None without coordinates."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return to_dict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "DataSpec":
        """The inverse of ``to_dict``, for values that may come from anybody's file.

        Raises:
            InputError: they are not those of a DataSpec, or do not agree with each other.
        """
        spec = from_dict(_DataSpec, values)
        for part, kind in (("sources", Source), ("scalings", Scaling)):
            for item in values[part].values():
                from_dict(kind, item)  # which refuses fields that nobody knows
        check_source_names(spec.sources)
        for name, source in spec.sources.items():
            if name != source.name:
                raise InputError(f"data.sources.{name} is called {source.name!r}")
            if source.factor > LARGEST_FACTOR:
                raise InputError(f"data.sources.{name}: factor {source.factor} is none")
            if (source.kind == "image") != (name in spec.scalings):
                raise InputError(f"data.scalings: an image source has one, and {name!r} does not")
            if name in spec.scalings:
                _check_scaling(spec.scalings[name], source)
        if not spec.scalings.keys() <= spec.sources.keys():
            raise InputError("data.scalings: a scaling belongs to no source")
        size = spec.pixel_size
        if size is not None and not 0 < size < math.inf:
            raise InputError(f"data.pixel_size is {size}, expected a positive number")
        return DataSpec(spec.sources, spec.scalings, size)


@dataclass(frozen=True)
class _DataSpec:
    """What a file says of a DataSpec."""

    sources: dict[str, Source]
    scalings: dict[str, Scaling]
    pixel_size: float | None = None


def _check_scaling(scaling: Scaling, source: Source) -> None:
    place = f"data.scalings.{source.name}"
    for part in ("low", "high", "fill"):
        values = getattr(scaling, part)
        if len(values) != len(source.bands):
            raise InputError(f"{place}.{part}: {len(values)} values for {len(source.bands)} bands")
        if not all(math.isfinite(value) and abs(value) < LARGEST_FLOAT32 for value in values):
            raise InputError(f"{place}.{part} is {values!r:.80}, expected finite numbers")
    for half in scaling.gain:
        if not (half > 0 and np.float32(half) > 0):
            raise InputError(f"{place}: low {scaling.low} must lie below high {scaling.high}")


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
        valid = store.read("valid", chosen).repeat(source.factor, 2).repeat(source.factor, 3) > 0
        values = store.read(name, chosen).swapaxes(0, 1)
        pixels = values.swapaxes(0, 1)
        bands = [band[valid[:, 0]].astype(np.float64) for band in values]
        if not all(len(band) for band in bands):
            raise InputError(f"{store.path}: no valid pixel of {name!r} in the training tiles")
        _check_range(str(store.path), source, bands)
        if not said_to_be_measured(name, store.tiling):
            warn_of_fill(str(store.path), name, source.bands, pixels, valid[:, 0], stacklevel=3)
        natural = (0.0, 255.0) if source.dtype == "uint8" else (None, None)
        low = _per_band(config.low, bands, natural[0], 0.005)
        high = _per_band(config.high, bands, natural[1], 0.995)
        below = lt if config.low and config.high else le
        if not all(map(below, low, high)):
            raise InputError(f"scaling of {name!r}: low {low} must lie below high {high}")
        # A constant band has no range; any that is not lost beside its value keeps it finite.
        ends = zip(low, high, strict=True)
        high = tuple(hi if hi > lo else lo + max(1.0, abs(lo)) for lo, hi in ends)
        scalings[name] = Scaling(low, high, tuple(float(band.mean()) for band in bands))
    return DataSpec(dict(store.sources), scalings, store.pixel_size())


def _check_range(store: str, source: Source, bands: Sequence[npt.NDArray[Any]]) -> None:
    """Refuse values as large as the largest of float32, whose scaling would not be finite."""
    for name, band in zip(source.bands, bands, strict=True):
        extreme = float(band[np.abs(band).argmax()])
        if abs(extreme) <= HUGE:
            continue
        raise InputError(
            f"{store}: band {name} of {source.name!r} holds {extreme:.17g}, which is no "
            "measurement but a fill value that no file declares: "
            f"{how_to_declare(source.name, extreme)}"
        )


def _per_band(
    declared: PerBand, bands: list[npt.NDArray[Any]], natural: float | None, quantile: float
) -> PerBand:
    n = len(bands)
    if len(declared) not in (0, 1, n):
        raise InputError(f"scaling: {len(declared)} values for {n} bands; give 1 or {n}")
    if declared:
        return declared * (n // len(declared))
    if natural is not None:
        return (natural,) * n
    return tuple(float(np.quantile(band, quantile)) for band in bands)


@dataclass(frozen=True)
class _Plan:
    """Which tiles make a batch, and how each is cut and turned; small, made on the host."""

    tiles: Tiles
    size: int
    corner: Tiles  # (B, 2): first row and column
    turn: npt.NDArray[np.bool_]  # (B, 3): flip rows, flip columns, transpose
    key: Tiles  # (B,): later draws on the device follow from it


class Batches:
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
        kept = self._read(self.tiles) if resident else {}
        self._resident = {name: pixels.to(self.device) for name, pixels in kept.items()}

    def __getitem__(self, step: int) -> Batch:
        """The batch of one step, on the device (see the module's words on what is in it)."""
        plan = self._plan(step)
        if self._resident:
            return self._make(self._resident, plan, np.searchsorted(self.tiles, plan.tiles))
        return self._make(self._read(plan.tiles), plan)

    def stream(self, start: int, stop: int, workers: int = 0) -> Iterator[Batch]:
        """The batches of steps ``start`` to ``stop - 1``; ``workers`` processes read ahead."""
        if self._resident or workers == 0:
            yield from (self[step] for step in range(start, stop))
            return
        leave_if_main_is_being_imported()
        loader: DataLoader[Batch | InputError] = DataLoader(
            _HostReader(self),
            batch_size=None,
            sampler=range(start, stop),
            num_workers=workers,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),
        )
        for step, raw in enumerate(_from_processes(loader, workers), start):
            yield self._make(raw, self._plan(step))

    def whole(self, tiles: Tiles) -> Batch:
        """Given tiles as they are: no crop, no flip, no turn."""
        corner, turn = np.zeros((len(tiles), 2), np.int64), np.zeros((len(tiles), 3), bool)
        tiles = np.asarray(tiles, np.int64)
        plan = _Plan(tiles, self.store.size, corner, turn, keys(self.seed, -1, tiles))
        return self._make(self._read(plan.tiles), plan)

    def _plan(self, step: int) -> _Plan:
        share = self.batch_size // self.world
        position = step * self.batch_size + self.rank * share + np.arange(share)
        epoch, place = np.divmod(position, len(self.tiles))
        order = {e: permutation(self.seed, int(e), len(self.tiles)) for e in np.unique(epoch)}
        tiles = self.tiles[[order[e][p] for e, p in zip(epoch, place, strict=True)]]
        room = self.store.size - self.crop + 1
        corner = (uniforms(self.seed, epoch, tiles, "crop", 2) * room).astype(np.int64)
        turn = self.augment & (uniforms(self.seed, epoch, tiles, "flip and turn", 3) < 0.5)
        return _Plan(tiles, self.crop, corner, turn, keys(self.seed, epoch, tiles))

    def _read(self, tiles: Tiles) -> Batch:
        raw = {name: self.store.read(name, tiles) for name in (*self.store.sources, "valid")}
        # Not every torch indexes these on all devices; the same bits travel as signed numbers.
        signed = {np.dtype("uint16"): np.int16, np.dtype("uint32"): np.int32}
        bits = {k: v.view(signed.get(v.dtype, v.dtype)) for k, v in raw.items()}
        return {name: torch.from_numpy(array) for name, array in bits.items()}

    def _make(self, raw: Batch, plan: _Plan, rows: Tiles | None = None) -> Batch:
        """The batch of a plan, whose tiles are the given rows of ``raw`` (if None, all)."""
        rows = np.arange(len(plan.tiles)) if rows is None else rows
        here = {name: data.to(self.device, non_blocking=True) for name, data in raw.items()}
        valid = _cut(here["valid"], rows, plan).float()
        batch: Batch = {"valid": valid}
        for name, source in self.spec.sources.items():
            stored = _cut(here[name], rows, plan, source.factor)
            if source.dtype == "uint16":
                stored = stored.int() & 0xFFFF
            elif source.dtype == "uint32":
                stored = stored.long() & 0xFFFFFFFF
            if source.kind == "image":
                fine = valid.repeat_interleave(source.factor, 2).repeat_interleave(source.factor, 3)
                batch[name] = self.spec.scalings[name].encode(stored, fine)
            else:
                batch[name] = stored.long()
        for name, numbers in (("sample", plan.tiles), ("key", plan.key)):
            batch[name] = torch.from_numpy(numbers).to(self.device, non_blocking=True)
        return batch


class _HostReader(Dataset[Batch | InputError]):
    """What loader processes run: reading only, no work on the device."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __getitem__(self, step: int) -> Batch | InputError:
        # Raised in a loader process, an error would arrive with the traceback of that in its text.
        try:
            return self.batches._read(self.batches._plan(step).tiles)
        except InputError as error:
            return error


def _from_processes(loader: DataLoader[Batch | InputError], workers: int) -> Iterator[Batch]:
    """What the loader processes read.

    Raises:
        InputError: they cannot read a tile, do not start, or end before their work is done.
    """
    begun = False
    try:
        for raw in loader:
            begun = True
            if isinstance(raw, InputError):
                raise raw
            yield raw
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        if not begun:
            raise InputError(
                f"the {workers} loader processes do not start: {GUARD}; or give workers=0"
            ) from None
        raise InputError(
            f"one of the {workers} loader processes was ended from outside, perhaps for want of "
            "memory: use fewer workers, or none"
        ) from None


def _cut(data: Tensor, rows: Tiles, plan: _Plan, factor: int = 1) -> Tensor:
    """One gather takes tile, crop and flips together: ``(B, C, size, size)``, channels last."""
    steps, first = np.arange(plan.size * factor), plan.corner * factor
    y = np.where(plan.turn[:, :1], steps[::-1], steps) + first[:, :1]
    x = np.where(plan.turn[:, 1:2], steps[::-1], steps) + first[:, 1:]
    at = (rows[:, None, None], y[:, :, None], x[:, None, :], plan.turn[:, 2:, None, None])
    tile, row, column, turned = (
        torch.from_numpy(index).to(data.device, non_blocking=True) for index in at
    )
    cut = data[tile, :, row, column].permute(0, 3, 1, 2)
    return torch.where(turned, cut.transpose(2, 3), cut)
