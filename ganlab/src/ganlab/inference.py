"""A trained task over a whole scene: read, generated, blended and written window by window.

Works from what a task declares, for any task. Memory does not grow with the scene: windows are
blended inside swaths of bounded width, and rows are written as soon as no later window touches
them. Windows start at multiples of the generator's stride and are cut at the scene's border, so
the network pads only where the scene ends.
"""

import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.shutil
import torch
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window
from torch import Tensor, nn

from ganlab.config import ApplyConfig
from ganlab.data.scenes import Grid, Scene, open_labels, open_scene
from ganlab.errors import InputError
from ganlab.randomness import derived_seed
from ganlab.tasks.base import Field, Task
from ganlab.training.runs import autocast, load_task

SWATH = 8192
"""Width in pixels of the part of a scene that is blended at a time."""
UNLIKE = 0.05
"""Share of pixels far outside the training's range above which ``apply`` warns."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Span:
    """One window along one axis."""

    start: int
    stop: int
    ramp_in: tuple[int, int] | None
    """Where its weight rises from 0 to 1: the middle half of the overlap with its forerunner."""
    ramp_out: tuple[int, int] | None

    def weights(self) -> Tensor:
        """Weight of each pixel; those of all spans of an axis add up to 1 everywhere."""
        at = torch.arange(self.start, self.stop) + 0.5
        weight = torch.ones(len(at))
        if self.ramp_in:
            weight = ((at - self.ramp_in[0]) / (self.ramp_in[1] - self.ramp_in[0])).clamp(0, 1)
        if self.ramp_out:
            low, high = self.ramp_out
            weight = weight.minimum(1 - ((at - low) / (high - low)).clamp(0, 1))
        return weight


def spans(length: int, window: int, overlap: int, stride: int) -> list[Span]:
    """Windows along an axis of ``length`` pixels.

    Starts are multiples of ``stride``. The overlap is rounded up to it and never more than half
    a window, for which the window grows where it must. The last window is cut.
    """
    if overlap < 0 or window < 1:
        raise InputError(f"window {window} and overlap {overlap}: expected at least 1 and 0")
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
    scene = _open_input(config, task.inputs)
    targets = {
        field.name: config.to
        if index == 0
        else config.to.with_name(f"{config.to.stem}-{field.name}{config.to.suffix}")
        for index, field in enumerate(task.outputs)
    }
    for path in targets.values():
        if path.exists() and not config.overwrite:
            raise InputError(f"{path} exists; give --overwrite to replace it, or another name")
    try:
        config.to.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".apply-", dir=config.to.parent) as folder:
            grid = scene.grid.scaled(task.scale)
            writers = [
                _Writer(Path(folder), field, grid, targets[field.name]) for field in task.outputs
            ]
            with rasterio.Env(GDAL_CACHEMAX=128):
                for window, valid, stored in generate_scene(task, scene, config, progress):
                    for writer in writers:
                        writer.write(stored[writer.field.name], valid, window)
                for writer in writers:
                    writer.finish()
    except (OSError, RasterioError) as error:
        raise InputError(f"cannot write {config.to}: {error}") from error
    return list(targets.values())


def generate_scene(
    task: Task, scene: Scene, config: ApplyConfig, progress: Progress | None = None
) -> Iterator[tuple[Window, npt.NDArray[np.bool_], dict[str, Any]]]:
    """Blocks of the output that tile the scene, from top to bottom within each swath.

    Yields:
        Output window, its valid mask ``(h, w)``, and ``(C, h, w)`` in stored units for each output.
    """
    grid, scale = scene.grid, task.scale
    rows = spans(grid.height, config.window, config.overlap, task.stride)
    columns = spans(grid.width, config.window, config.overlap, task.stride)
    swaths = list(_swaths(columns, grid.width))
    done, total = 0, len(rows) * sum(len(members) for members, _, _ in swaths)
    unlike = _Unlike(task)
    for members, left, right in swaths:
        origin = members[0].start
        pending: dict[str, Tensor] = {}
        for number, row in enumerate(rows):
            height, width = row.stop - row.start, members[-1].stop - origin
            for column, out in _generate_row(task, scene, row, members, config, unlike):
                weight = row.weights()[:, None] * column.weights()[None, :]
                weight = weight.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
                for name, made in out.items():
                    field = pending.setdefault(
                        name, torch.zeros(len(made), height * scale, width * scale)
                    )
                    if field.shape[1] < height * scale:
                        more = torch.zeros(
                            len(made), height * scale - field.shape[1], width * scale
                        )
                        field = pending[name] = torch.cat([field, more], 1)
                    at = slice((column.start - origin) * scale, (column.stop - origin) * scale)
                    field[:, : height * scale, at] += made * weight
                done += 1
                if progress:
                    progress(done, total)
            final = rows[number + 1].start if number + 1 < len(rows) else row.stop
            window = Window(left, row.start, right - left, final - row.start)
            stored, valid = scene.read(window)
            cut = slice((left - origin) * scale, (right - origin) * scale)
            ready = {
                name: field[None, :, : window.height * scale, cut]
                for name, field in pending.items()
            }
            inputs = {task.inputs[0].name: stored[None]}
            composed = task.compose(inputs, ready)
            valid = valid.repeat(scale, 0).repeat(scale, 1)
            bigger = Window(*(scale * value for value in window.flatten()))
            yield bigger, valid, {name: array[0] for name, array in composed.items()}
            pending = {
                name: field[:, window.height * scale :] for name, field in pending.items()
            }
    unlike.warn(scene)


def _generate_row(
    task: Task,
    scene: Scene,
    row: Span,
    columns: list[Span],
    config: ApplyConfig,
    unlike: "_Unlike",
) -> Iterator[tuple[Span, dict[str, Tensor]]]:
    """The outputs of one row of windows, on the CPU; windows of equal width go together."""
    size = 1 if task.noise else config.batch_size
    groups: list[list[Span]] = []
    for column in columns:
        full = groups and len(groups[-1]) < size
        if full and _width(groups[-1][0]) == _width(column):
            groups[-1].append(column)
        else:
            groups.append([column])
    device = next(task.parameters()).device
    for group in groups:
        reads = [
            scene.read(Window(c.start, row.start, _width(c), row.stop - row.start)) for c in group
        ]
        stored = np.stack([array for array, _ in reads])
        valid = np.stack([mask for _, mask in reads])[:, None]
        batch = task.encode({task.inputs[0].name: stored}, valid, device)
        unlike.count(stored, valid)
        if task.noise:
            torch.manual_seed(derived_seed(config.seed, row.start, group[0].start, "noise"))
        with torch.inference_mode(), autocast(device, config.precision):
            made = task.generate(batch)
        out = {field.name: made[field.name].float().cpu() for field in task.outputs}
        for i, column in enumerate(group):
            yield column, {name: values[i] for name, values in out.items()}


class _Unlike:
    """Counts how much of a scene lies far outside the range that the training knew."""

    def __init__(self, task: Task) -> None:
        self.field = task.inputs[0]
        self.far = self.measured = 0.0

    def count(self, stored: npt.NDArray[Any], valid: npt.NDArray[np.bool_]) -> None:
        if self.field.scaling is None:
            return
        mask = torch.from_numpy(valid.astype(np.float32))
        values = torch.from_numpy(stored.astype(np.float32))
        self.far += float(self.field.scaling.outside(values, mask) * mask.sum())
        self.measured += float(mask.sum())

    def warn(self, scene: Scene) -> None:
        share = self.far / max(self.measured, 1)
        if share > UNLIKE:
            warnings.warn(
                f"{share:.0%} of the valid pixels of {scene.file} lie far outside the range that "
                "the model was trained on: other sensor, units or bands?",
                stacklevel=3,
            )


class _Writer:
    """One output: a plain tiled GeoTIFF while it grows, then copied to a cloud-optimized one."""

    def __init__(self, folder: Path, field: Field, grid: Grid, target: Path) -> None:
        self.field, self.grid, self.target = field, grid, target
        self.plain, self.cog = folder / f"{field.name}.tif", folder / f"{field.name}-cog.tif"
        self.masked = False
        source = field.source
        bands = ("class",) if source.kind == "label" else source.bands
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), _quiet():
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
                nodata=source.nodata,
                tiled=True,
                blockxsize=512,
                blockysize=512,
                bigtiff="if_safer",
            )
        self.file.descriptions = bands

    def write(
        self, stored: npt.NDArray[Any], valid: npt.NDArray[np.bool_], window: Window
    ) -> None:
        nodata = self.field.source.nodata
        if nodata is not None:
            stored = np.where(valid, _avoid(stored, nodata), np.asarray(nodata, stored.dtype))
        elif not valid.all() and not self.masked:
            self._start_mask()
        if self.masked and nodata is None:
            with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
                self.file.write_mask(valid.astype(np.uint8) * 255, window=window)
        self.file.write(stored, window=window)

    def _start_mask(self) -> None:
        """All that was written so far was valid; blocks to come bring their own mask."""
        self.masked = True
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
            for _, block in self.file.block_windows(1):
                full = np.full((block.height, block.width), 255, np.uint8)
                self.file.write_mask(full, window=block)

    def finish(self) -> None:
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), _quiet():
            self.file.close()
            rasterio.shutil.copy(
                self.plain,
                self.cog,
                driver="COG",
                compress="deflate",
                blocksize=512,
                bigtiff="if_safer",
                overview_resampling="nearest" if self.field.source.kind == "label" else "average",
            )
        os.replace(self.cog, self.target)


def _open_input(config: ApplyConfig, inputs: tuple[Field, ...]) -> Scene:
    """The scene that a model starts from, checked against what it was trained on."""
    if len(inputs) != 1:
        raise InputError(f"this model needs {[f.name for f in inputs]}; apply gives one scene")
    source, scene = inputs[0].source, None
    if source.kind == "label":
        like = Grid(None, rasterio.Affine.identity(), 0, 0)
        if config.like:
            like = open_scene(config.like, ungeoreferenced=config.ungeoreferenced).grid
        scene = open_labels(config.scene, like, config.attribute, config.ungeoreferenced)
    else:
        scene = open_scene(config.scene, config.bands, source.nodata, config.ungeoreferenced)
    same_kind = np.dtype(scene.dtype).kind == np.dtype(source.dtype).kind
    if len(scene.bands) != len(source.bands) or (source.kind == "image" and not same_kind):
        raise InputError(
            f"{scene.file} has {len(scene.bands)} bands {list(scene.bands)} of {scene.dtype}; the "
            f"model was trained on {list(source.bands)} of {source.dtype}: choose with --bands"
        )
    return scene


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


def _avoid(stored: npt.NDArray[Any], nodata: float) -> npt.NDArray[Any]:
    """Move made values that equal the nodata value by one step, so that they stay visible."""
    if np.isnan(nodata):
        return stored
    kind = np.dtype(stored.dtype)
    if kind.kind == "f":
        step = np.nextafter(np.asarray(nodata, kind), np.asarray(np.inf, kind))
    else:
        step = nodata + 1 if nodata < np.iinfo(kind).max else nodata - 1
    return np.where(stored == nodata, np.asarray(step, kind), stored)


def _use_batch_statistics(task: Task) -> None:
    for layer in task.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.track_running_stats = False
            layer.running_mean = layer.running_var = None
    warnings.warn(
        "batch statistics: every window is normalized by itself, so windows may differ in colour",
        stacklevel=3,
    )


def _width(span: Span) -> int:
    return span.stop - span.start


@contextmanager
def _quiet() -> Iterator[None]:
    """Without rasterio's warning that an output has no CRS, which was asked for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield
