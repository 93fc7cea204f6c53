"""A trained task over a whole scene: read, generated, blended and written window by window.

Works from what a task declares, for any task. Memory does not grow with the scene: windows are
blended inside swaths of bounded width, and rows are written as soon as no later window touches
them. Windows start at multiples of the generator's stride and are cut at the scene's border, so
the network pads only where the scene ends.
"""

import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.shutil
import torch
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window
from torch import Tensor, nn
from torch.nn import functional as F

from ganlab.config import ApplyConfig
from ganlab.data.scenes import VECTORS, Grid, Scene, open_labels, open_scene
from ganlab.errors import InputError
from ganlab.randomness import derived_seed
from ganlab.tasks.base import Field, Task
from ganlab.training.runs import autocast, decide_precision, load_task

SWATH = 8192
"""Width in pixels of the part of a scene that is blended at a time."""
UNLIKE = 0.05
"""Share of pixels far outside the training's range above which ``apply`` warns."""
CACHE_BYTES = 128 * 2**20
BLOCK = 512
COLOURS = ("red", "green", "blue")

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Span:
    """One window along one axis."""

    start: int
    stop: int
    ramp_in: tuple[int, int] | None
    """Where its weight rises from 0 to 1: the middle half of the overlap with its forerunner."""
    ramp_out: tuple[int, int] | None

    @property
    def size(self) -> int:
        """Its pixels."""
        return self.stop - self.start

    def weights(self) -> Tensor:
        """Weight of each pixel, float64; those of all spans of an axis add up to 1 everywhere."""
        at = torch.arange(self.start, self.stop, dtype=torch.float64) + 0.5
        weight = torch.ones_like(at)
        if self.ramp_in:
            low, high = self.ramp_in
            weight = ((at - low) / (high - low)).clamp(0, 1)
        if self.ramp_out:
            low, high = self.ramp_out
            weight = weight.minimum(1 - ((at - low) / (high - low)).clamp(0, 1))
        return weight


def spans(length: int, window: int, overlap: int, stride: int) -> list[Span]:
    """Windows along an axis of ``length`` pixels.

    Starts are multiples of ``stride``. The overlap is rounded up to it and never more than half
    a window, for which the window grows where it must. The last window is cut.

    Raises:
        InputError: the window is empty or the overlap negative.
    """
    if overlap < 0 or window < 1:
        raise InputError(f"window {window} and overlap {overlap}: expected at least 1 and 0 pixels")
    shared = -(-overlap // stride) * stride
    step = max((window - shared) // stride * stride, shared, stride)
    window = step + shared
    starts = [0]
    while starts[-1] + window < length:
        starts.append(starts[-1] + step)
    ramps = [(start + shared // 4, start + shared - shared // 4) for start in starts[1:]]
    if shared == 0:
        return [Span(start, min(start + window, length), None, None) for start in starts]
    return [
        Span(start, min(start + window, length), before, after)
        for start, before, after in zip(starts, [None, *ramps], [*ramps, None], strict=True)
    ]


def apply(config: ApplyConfig, progress: Progress | None = None) -> list[Path]:
    """Run a trained model over a whole scene and write its outputs as cloud-optimized GeoTIFFs.

    Args:
        config: see :class:`ganlab.config.ApplyConfig`.
        progress: called with (windows done, windows in all).

    Returns:
        The written files: ``config.to`` for the first output, ``<stem>-<name>`` for others.

    Raises:
        InputError: an input does not fit the model, or an output cannot be written.
    """
    task = load_task(config.run, average=config.average, device=config.device)
    if config.batch_statistics:
        _use_batch_statistics(task)
    scene = _open_input(config, task.inputs[0])
    grid, to = scene.grid.scaled(task.scale), config.to
    others = [to.with_name(f"{to.stem}-{field.name}{to.suffix}") for field in task.outputs[1:]]
    targets = [to, *others]
    for path in targets:
        _check_target(path, scene, config.overwrite)
    blocks = generate_scene(
        task,
        scene,
        window=config.window,
        overlap=config.overlap,
        batch_size=1 if config.batch_statistics else config.batch_size,
        precision=config.precision,
        seed=config.seed,
        progress=progress,
    )
    needed = sum(_nbytes(field, grid) for field in task.outputs)
    try:
        with _workplace(to, needed) as folder, rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES), _quiet():
            outputs = [_Output(folder, field, grid) for field in task.outputs]
            for block, valid, stored in blocks:
                for output in outputs:
                    output.write(block, valid, stored[output.field.name])
            finished = [output.finish() for output in outputs]
            for path, target in zip(finished, targets, strict=True):
                os.replace(path, target)
    except (OSError, RasterioError) as error:
        raise InputError(
            f"{to} cannot be written ({error.__cause__ or error}): a folder that can be written "
            f"and up to {2 * needed / 1e6:.0f} MB of free disk are needed; nothing was changed"
        ) from error
    return targets


def generate_scene(
    task: Task,
    scene: Scene,
    *,
    window: int = 512,
    overlap: int = 128,
    batch_size: int = 4,
    precision: str = "fp32",
    seed: int = 0,
    progress: Progress | None = None,
) -> Iterator[tuple[Window, Bools, dict[str, Array]]]:
    """Blocks of the output that tile the scene, from top to bottom within each swath.

    Args:
        task: as ``load_task`` gives it.
        scene: its input.
        window: width of the windows in pixels of the scene; see :func:`spans`.
        overlap: pixels that neighbouring windows share.
        batch_size: windows at a time.
        precision: fp32, bf16, fp16 or auto.
        seed: of the dropout noise, where the task keeps it.
        progress: called with (windows done, windows in all).

    Yields:
        Output window, its valid mask ``(h, w)``, and ``(C, h, w)`` in stored units for each output.

    Raises:
        InputError: the scene cannot be read, or holds what the model does not know.
    """
    if batch_size < 1:
        raise InputError(f"batch size {batch_size}: expected at least 1")
    grid, scale = scene.grid, task.scale
    rows = spans(grid.height, window, overlap, task.stride)
    columns = spans(grid.width, window, overlap, task.stride)
    finals = [*(row.start for row in rows[1:]), grid.height]
    swaths = list(_swaths(columns, grid.width))
    done, total = 0, len(rows) * sum(len(members) for members, _, _ in swaths)
    network = _Network(task, scene, precision, seed)
    for members, left, right in swaths:
        canvas = _Canvas(task, rows[0].size, members[0].start, members[-1].stop)
        for row, final in zip(rows, finals, strict=True):
            for group in _groups(members, 1 if task.noise else batch_size):
                for column, made in network.generate(row, group):
                    canvas.add(row, column, made)
                done += len(group)
                if progress:
                    progress(done, total)
            block = Window(left, row.start, right - left, final - row.start)
            stored, valid = scene.read(block)
            ready = canvas.take(block.height, left, right)
            composed = task.compose({task.inputs[0].name: stored[None]}, ready)
            yield (
                Window(*(scale * value for value in block.flatten())),
                valid.repeat(scale, 0).repeat(scale, 1),
                {name: array[0] for name, array in composed.items()},
            )
    network.warn()


class _Network:
    """The task on windows of one scene; counts how much of it is unlike the training."""

    def __init__(self, task: Task, scene: Scene, precision: str, seed: int) -> None:
        self.task, self.scene, self.seed = task, scene, seed
        self.device = next(task.parameters()).device
        self.precision = decide_precision(precision, self.device)
        self.far = self.measured = 0.0

    def generate(self, row: Span, columns: list[Span]) -> Iterator[tuple[Span, dict[str, Tensor]]]:
        """The outputs of windows of one size, on the CPU; windows without a pixel have none."""
        task, field = self.task, self.task.inputs[0]
        reads = [self.scene.read(Window(c.start, row.start, c.size, row.size)) for c in columns]
        kept = [i for i, (_, mask) in enumerate(reads) if mask.any()]
        if not kept:
            return
        stored = np.stack([reads[i][0] for i in kept])
        valid = np.stack([reads[i][1] for i in kept])[:, None]
        try:
            batch = task.encode({field.name: stored}, valid, self.device)
        except InputError as error:
            raise InputError(f"{self.scene.file}: {error}") from None
        if field.scaling is not None:
            values, mask = torch.from_numpy(stored.astype(np.float32)), torch.from_numpy(valid)
            self.far += float(field.scaling.outside(values, mask)) * valid.sum()
            self.measured += valid.sum()
        seed = derived_seed(self.seed, row.start, columns[0].start, "noise")
        with autocast(self.device, self.precision):
            made = task.sample(batch, seed)
        out = {field.name: made[field.name].cpu() for field in task.outputs}
        for place, i in enumerate(kept):
            yield columns[i], {name: values[place] for name, values in out.items()}

    def warn(self) -> None:
        share = self.far / max(self.measured, 1)
        if share > UNLIKE:
            warnings.warn(
                f"{share:.0%} of the valid pixels of {self.scene.file} lie far outside the range "
                "that the model was trained on: other sensor, units or bands?",
                stacklevel=3,
            )


class _Canvas:
    """Weighted sums of windows over one swath, for the rows that are not final yet.

    Sizes and places are in pixels of the scene; the sums are ``task.scale`` times as fine.
    """

    def __init__(self, task: Task, height: int, left: int, right: int) -> None:
        self.left, self.scale = left, task.scale
        dtype = torch.promote_types(next(task.parameters()).dtype, torch.float32)
        shape = (height * self.scale, (right - left) * self.scale)
        self.sums = {f.name: torch.zeros(f.channels, *shape, dtype=dtype) for f in task.outputs}

    def add(self, row: Span, column: Span, made: Mapping[str, Tensor]) -> None:
        """Add a window whose first row is the first one that is not final."""
        weight = row.weights()[:, None] * column.weights()
        weight = weight.repeat_interleave(self.scale, 0).repeat_interleave(self.scale, 1)
        rows, columns = slice(0, row.size * self.scale), self._columns(column.start, column.stop)
        for name, values in made.items():
            part = self.sums[name][:, rows, columns]
            part += values.to(part.dtype) * weight.to(part.dtype)

    def take(self, height: int, left: int, right: int) -> dict[str, Tensor]:
        """The first rows, which become final: ``(1, C, h, w)`` for each output."""
        count, ready = height * self.scale, {}
        for name, sums in self.sums.items():
            ready[name] = sums[None, :, :count, self._columns(left, right)]
            self.sums[name] = F.pad(sums[:, count:], (0, 0, 0, count))
        return ready

    def _columns(self, left: int, right: int) -> slice:
        return slice((left - self.left) * self.scale, (right - self.left) * self.scale)


class _Output:
    """One output: a plain tiled GeoTIFF while it grows, then copied to a cloud-optimized one."""

    def __init__(self, folder: Path, field: Field, grid: Grid) -> None:
        source = field.source
        self.field, self.nbytes, self.masked = field, _nbytes(field, grid), False
        self.nodata = source.nodata if _holds(source.dtype, source.nodata) else None
        self.plain, self.final = folder / f"{field.name}.tif", folder / f"{field.name}-cog.tif"
        bands = ("class",) if source.kind == "label" else source.bands
        self.file = rasterio.open(
            self.plain,
            "w",
            driver="GTiff",
            width=grid.width,
            height=grid.height,
            count=len(bands),
            dtype=source.dtype,
            crs=grid.crs,
            transform=grid.transform,
            nodata=self.nodata,
            tiled=True,
            blockxsize=BLOCK,
            blockysize=BLOCK,
            bigtiff="if_safer",
            # Otherwise GDAL takes the fourth of four byte bands for transparency.
            photometric="minisblack",
        )
        self.file.descriptions = bands
        if set(COLOURS) <= set(bands):
            self.file.colorinterp = [
                ColorInterp[band] if band in COLOURS else ColorInterp.undefined for band in bands
            ]

    def write(self, window: Window, valid: Bools, stored: Array) -> None:
        """Write ``(C, h, w)``, and what says where it is valid."""
        if self.nodata is not None:
            if self.field.source.kind != "label":
                stored = _avoid(stored, self.nodata)
            stored = np.where(valid, stored, np.asarray(self.nodata, stored.dtype))
        elif self.masked or not valid.all():
            with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
                if not self.masked:
                    self._start_mask()
                self.file.write_mask(valid.astype(np.uint8) * 255, window=window)
        self.file.write(stored, window=window)

    def _start_mask(self) -> None:
        """All that was written so far was valid; blocks to come bring their own mask."""
        self.masked = True
        for _, block in self.file.block_windows(1):
            self.file.write_mask(np.full((block.height, block.width), 255, np.uint8), window=block)

    def finish(self) -> Path:
        """The cloud-optimized copy.

        Raises:
            OSError: the disk did not take everything, which GDAL does not always say.
        """
        self.file.close()
        if self.plain.stat().st_size < self.nbytes:
            raise OSError("the disk did not take all of it")
        try:
            rasterio.shutil.copy(
                self.plain,
                self.final,
                driver="COG",
                compress="deflate",
                blocksize=BLOCK,
                bigtiff="if_safer",
                overview_resampling="nearest" if self.field.source.kind == "label" else "average",
            )
            if _checksums(self.plain) != _checksums(self.final):
                raise OSError("the disk did not take all of the copy")
        except Exception as error:  # GDAL's errors have no common type
            raise OSError(str(error)) from error
        return self.final


def _open_input(config: ApplyConfig, field: Field) -> Scene:
    """The scene that a model starts from, checked against what it was trained on."""
    source, vector = field.source, config.scene.lower().endswith(VECTORS)
    if vector and source.kind != "label":
        raise InputError(
            f"{config.scene} is a vector file; this model starts from an image of "
            f"{len(source.bands)} bands"
        )
    if vector and config.like is None:
        raise InputError(f"{config.scene} is a vector file; its grid must be given: --like RASTER")
    if not vector and (config.like or config.attribute):
        raise InputError(f"{config.scene} is a raster; --like and --attribute are for vectors")
    if source.kind == "label" and config.bands:
        raise InputError(f"--bands {' '.join(config.bands)}: this model starts from labels")
    scene: Scene
    if source.kind != "label":
        scene = open_scene(config.scene, config.bands, source.nodata, config.ungeoreferenced)
    else:
        grid = Grid(None, rasterio.Affine.identity(), 0, 0)
        if config.like:
            grid = open_scene(config.like, ungeoreferenced=config.ungeoreferenced).grid
        scene = open_labels(config.scene, grid, config.attribute, config.ungeoreferenced)
    same_kind = np.dtype(scene.dtype).kind == np.dtype(source.dtype).kind
    shuffled = set(scene.bands) == set(source.bands) and scene.bands != source.bands
    if source.kind != "label" and (
        len(scene.bands) != len(source.bands) or not same_kind or shuffled
    ):
        raise InputError(
            f"{scene.file} has {len(scene.bands)} bands {list(scene.bands)} of {scene.dtype}; the "
            f"model was trained on {list(source.bands)} of {source.dtype}: choose with --bands"
        )
    return scene


def _check_target(path: Path, scene: Scene, overwrite: bool) -> None:
    if path.suffix.lower() not in (".tif", ".tiff"):
        raise InputError(f"{path}: the output is a GeoTIFF; give a name that ends in .tif")
    if path.is_dir() or path.resolve() == Path(scene.file).resolve():
        raise InputError(f"{path} is a folder or the scene itself; give another name")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists; give --overwrite to replace it, or another name")


@contextmanager
def _workplace(to: Path, needed: int) -> Iterator[Path]:
    """A folder beside the output that is gone in the end, with what a killed process left there."""
    folder = to.with_name(f".{to.name}.partial")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise OSError(f"{free / 1e6:.0f} MB are free")
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _nbytes(field: Field, grid: Grid) -> int:
    """What the plain file takes: whole blocks."""
    blocks = -(-grid.width // BLOCK) * -(-grid.height // BLOCK)
    return blocks * BLOCK**2 * len(field.source.bands) * np.dtype(field.source.dtype).itemsize


def _checksums(path: Path) -> list[int]:
    with rasterio.open(path) as file:
        return [file.checksum(band) for band in file.indexes]


def _groups(columns: list[Span], size: int) -> list[list[Span]]:
    """Windows that go through the network together: only the last one may be narrower."""
    full = [column for column in columns if column.size == columns[0].size]
    groups = [full[i : i + size] for i in range(0, len(full), size)]
    return groups if len(full) == len(columns) else [*groups, columns[len(full) :]]


def _swaths(columns: list[Span], width: int) -> Iterator[tuple[list[Span], int, int]]:
    """(windows, left, right) of parts of at most about ``SWATH`` pixels.

    The window before a part's first pixel belongs to it too: it reaches over the cut.
    """
    first = 0
    while first < len(columns):
        last = first
        while last + 1 < len(columns) and columns[last + 1].stop - columns[first].start <= SWATH:
            last += 1
        right = columns[last + 1].start if last + 1 < len(columns) else width
        yield columns[max(first - 1, 0) : last + 1], columns[first].start, right
        first = last + 1


def _holds(dtype: str, nodata: float | None) -> bool:
    """Whether a pixel type can say nodata; a file's header may promise what it cannot."""
    if nodata is None or np.dtype(dtype).kind == "f":
        return nodata is not None
    limits = np.iinfo(dtype)
    return bool(limits.min <= nodata <= limits.max and nodata == int(nodata))


def _avoid(stored: Array, nodata: float) -> Array:
    """Move made values that equal the nodata value by one step, so that they stay visible."""
    if np.isnan(nodata):
        return stored
    kind = stored.dtype
    if kind.kind == "f":
        step = np.nextafter(kind.type(nodata), kind.type(0 if nodata > 0 else 1))
    else:
        step = kind.type(nodata + 1 if nodata < np.iinfo(kind).max else nodata - 1)
    return np.where(stored == nodata, step, stored)


def _use_batch_statistics(task: Task) -> None:
    layers = [layer for layer in task.generator.modules() if isinstance(layer, nn.BatchNorm2d)]
    if not layers:
        raise InputError("--batch-statistics: this model has no batch norm; leave it out")
    for layer in layers:
        layer.track_running_stats = False
        layer.running_mean = layer.running_var = None
    warnings.warn(
        "batch statistics: every window is normalized by itself, so windows may differ in colour",
        stacklevel=3,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without rasterio's warning that an output has no CRS, which was asked for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield
