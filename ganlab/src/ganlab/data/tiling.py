"""Tiling: from scenes of any size to a tile store, one shard at a time.

A shard is a job that knows its scenes and windows and nothing else, so any executor can carry
it, memory is bounded by the shard, and the result does not depend on who did the work.
"""

import csv
import json
import math
import multiprocessing
import shutil
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed, wait
from contextlib import closing
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from rasterio.windows import Window

from ganlab.config import TilingConfig, to_dict
from ganlab.data.scenes import Scene, check_same_grid, open_labels, open_scene, windows
from ganlab.data.store import (
    FORMAT,
    VALID,
    VERSION,
    Source,
    StoredScene,
    Tile,
    TileStore,
    checksum,
    shard_name,
)
from ganlab.errors import InputError

SHARD_BYTES = 64 * 2**20
CACHE_BYTES = 128 * 2**20

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]
Scenes = dict[str, tuple[StoredScene, tuple[Scene, ...]]]
Sources = Mapping[str, tuple[Sequence[str], str]]


@dataclass(frozen=True)
class _Job:
    """One shard: windows of scenes, each with one raster per source."""

    folder: Path
    number: int
    sources: tuple[Source, ...]
    scenes: Scenes
    windows: tuple[tuple[str, Window], ...]
    scale: float
    minimum_valid: float


@dataclass(frozen=True)
class _Result:
    """What a job wrote: tiles not yet numbered, classes seen, and the scenes with any pixel."""

    tiles: list[Tile]
    classes: dict[str, set[int]]
    measured: set[str]


def tile(
    config: TilingConfig,
    executor: Executor | None = None,
    progress: Callable[[int, int], None] | None = None,
    more: Sources | None = None,
) -> TileStore:
    """Cut scenes into a tile store.

    The sources are ``"image"`` (``config.images``), ``"label"`` (``config.labels``) if there
    are labels, and those of ``more``. Scaling takes the mean over the valid area of images and
    the majority of labels; a pixel stays valid when half of its area is.

    Args:
        config: what to tile and how.
        executor: carries the jobs, one for each shard; anything with ``submit``, for example
            Dask's ``Client.get_executor()``. Without it, ``config.workers`` processes.
        progress: called with the number of finished windows and of all windows.
        more: further sources: name -> (one file for each scene, kind). Their pixels may be a
            whole number of times finer than those of the images (``Source.factor``).

    Returns:
        The finished store. Until it is finished nothing stands in its place.

    Raises:
        InputError: anything wrong with the scenes, labels, options or the target folder.
    """
    to = Path(config.to)
    if to.exists():
        raise InputError(f"{to} exists already: delete it or give another folder")
    if "valid" in (more or {}):
        raise InputError("a source cannot be called valid: that is the name of the valid mask")
    scenes, sources = _open(config, more or {})
    partial = to.with_name(f".{to.name}.partial")
    jobs = _plan(config, scenes, sources, partial)
    total = sum(len(job.windows) for job in jobs)
    results: dict[int, _Result] = {}
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        done = 0
        with closing(_run(jobs, executor, config.workers)) as finished:
            for number, result in finished:
                results[number] = result
                done += len(jobs[number].windows)
                if progress is not None:
                    progress(done, total)
        _finish(config, scenes, sources, [results[job.number] for job in jobs], partial)
        partial.rename(to)
    except OSError as error:
        need = total * sum(s.nbytes(config.size) for s in (*sources, VALID)) / 1e6
        raise InputError(
            f"{to} cannot be written ({error}): a folder that can be written and up to "
            f"{need:.0f} MB of free disk are needed; nothing was left behind"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return TileStore.open(to)


def _open(config: TilingConfig, more: Sources) -> tuple[Scenes, tuple[Source, ...]]:
    """All scenes by name, each with its sources in order, checked against each other."""
    if config.scale <= 0 or not 0 <= config.minimum_valid <= 1:
        raise InputError(
            f"scale {config.scale} must be above 0, minimum_valid {config.minimum_valid} between "
            "0 and 1"
        )
    wanted: dict[str, tuple[Sequence[str], str]] = {"image": (config.images, "image")}
    if config.labels:
        wanted["label"] = (config.labels, "label")
    wanted |= more
    counts = {name: len(paths) for name, (paths, _) in wanted.items()}
    counts["group"] = len(config.groups) or len(config.images)
    if len(set(counts.values())) != 1 or not config.images:
        found = ", ".join(f"{count} {name}s" for name, count in counts.items())
        raise InputError(f"{found}: give one of each for every scene, in the same order")
    paths = [Path(path.split(",")[0]) for path in config.images]
    names = [path.stem for path in paths]
    if len(set(names)) < len(names):
        names = [f"{path.parent.name}-{path.stem}" for path in paths]
    if len(set(names)) < len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise InputError(f"several scenes are called {twice}: rename or leave out one of them")
    scenes: Scenes = {}
    sources: tuple[Source, ...] = ()
    for i, scene_name in enumerate(names):
        image = open_scene(config.images[i], config.bands, config.nodata, config.ungeoreferenced)
        opened: list[Scene] = []
        described: list[Source] = []
        for name, (files, kind) in wanted.items():
            scene: Scene = image
            factor = 1
            if kind in ("label", "mask"):
                scene = open_labels(files[i], image.grid, config.attribute, config.ungeoreferenced)
            elif name != "image":
                scene = open_scene(files[i], ungeoreferenced=config.ungeoreferenced)
            if name in more:
                factor = max(1, round(scene.grid.width / image.grid.width))
            check_same_grid(image, scene, kind, factor)
            opened.append(scene)
            described.append(
                Source(
                    *(name, kind, scene.dtype, scene.bands, factor),
                    classes=tuple(sorted(config.classes)) if name == "label" else (),
                    nodata=scene.nodata,
                )
            )
        for scene, new, old in zip(opened, described, sources or described, strict=True):
            if (len(new.bands), new.dtype, new.factor) != (len(old.bands), old.dtype, old.factor):
                raise InputError(
                    f"{scene.file} has {len(new.bands)} bands of {new.dtype} at {new.factor} times "
                    f"the resolution, the scenes before it {len(old.bands)} of {old.dtype} at "
                    f"{old.factor}: choose common --bands or convert with gdal_translate"
                )
        sources = sources or tuple(described)
        grid = image.grid.scaled(config.scale)
        group = config.groups[i] if config.groups else scene_name
        place = (grid.crs_name, tuple(grid.transform)[:6], grid.width, grid.height)
        scenes[scene_name] = StoredScene(scene_name, group, *place), tuple(opened)
    return scenes, sources


def _plan(
    config: TilingConfig, scenes: Scenes, sources: tuple[Source, ...], folder: Path
) -> list[_Job]:
    cut: list[tuple[str, Window]] = []
    for name, (stored, opened) in scenes.items():
        stride = config.size if config.stride is None else config.stride
        try:
            found = windows(stored.width, stored.height, config.size, stride, config.edges)
        except InputError as error:
            raise InputError(f"{opened[0].file}: {error}") from None
        cut += [(name, window) for window in found]
    count = max(1, SHARD_BYTES // sum(s.nbytes(config.size) for s in (*sources, VALID)))
    jobs: list[_Job] = []
    for start in range(0, len(cut), count):
        part = tuple(cut[start : start + count])
        needed = {name: scenes[name] for name in dict.fromkeys(name for name, _ in part)}
        options = (config.scale, config.minimum_valid)
        jobs.append(_Job(folder, len(jobs), sources, needed, part, *options))
    return jobs


def _run(
    jobs: Sequence[_Job], executor: Executor | None, workers: int
) -> Generator[tuple[int, _Result], None, None]:
    """Results as they come; on the way out nothing is left running."""
    if executor is None and workers <= 1:
        for job in jobs:
            yield job.number, _write_shard(job)
        return
    own = None
    if executor is None:
        # A forked process would share the open files, and their positions, with this one.
        spawn = multiprocessing.get_context("spawn")
        own = executor = ProcessPoolExecutor(workers, mp_context=spawn)
    futures = {executor.submit(_write_shard, job): job.number for job in jobs}
    try:
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        for future in futures:
            future.cancel()
        wait(futures)
        if own is not None:
            own.shutdown()


def _write_shard(job: _Job) -> _Result:
    size = job.windows[0][1].width
    result = _Result([], {source.name: set() for source in job.sources}, set())
    sources = (*job.sources, VALID)
    stored = [np.empty((len(job.windows), *s.shape(size)), s.dtype) for s in sources]
    with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES):
        for name, window in job.windows:
            scene, rasters = job.scenes[name]
            read = [
                _read(raster, source, window, job.scale)
                for raster, source in zip(rasters, job.sources, strict=True)
            ]
            valid = np.logical_and.reduce([_coarse(mask, size) for _, mask in read])
            fraction = float(valid.mean())
            if fraction > 0:
                result.measured.add(name)
            if fraction == 0 or fraction < job.minimum_valid:
                continue
            for source, raster, (values, _) in zip(job.sources, rasters, read, strict=True):
                _classes(result, source, raster, values, valid)
            count = len(result.tiles)
            for array, values in zip(stored, [*(values for values, _ in read), valid], strict=True):
                array[count] = values
            row, column = window.row_off, window.col_off
            corner = Affine(*scene.transform) * Affine.translation(column, row)
            place = (row, column, size, size, tuple(corner)[:6])
            total = checksum(array[count] for array in stored)
            result.tiles.append(Tile(0, name, scene.group, *place, fraction, total))
    if result.tiles:
        for source, array in zip(sources, stored, strict=True):
            _save(job.folder / shard_name(source.name, job.number), array[: len(result.tiles)])
    return result


def _save(path: Path, array: Array) -> None:
    np.save(path, array, allow_pickle=False)


def _coarse(mask: Bools, size: int) -> Bools:
    """A reference pixel is measured when all pixels of a finer source in it are."""
    factor = mask.shape[0] // size
    return np.asarray(mask.reshape(size, factor, size, factor).all(axis=(1, 3)))


def _classes(result: _Result, source: Source, raster: Scene, values: Array, valid: Bools) -> None:
    """Note the classes of a tile; refuse what was not declared."""
    if source.kind != "label":
        return
    fine = valid.repeat(source.factor, axis=0).repeat(source.factor, axis=1)
    found = set(np.unique(values[:, fine]).tolist())
    unknown = sorted(found - set(source.classes)) if source.classes else []
    if unknown:
        raise InputError(
            f"{raster.file} holds class {', '.join(map(str, unknown))}; expected "
            f"{', '.join(map(str, source.classes))}: correct the label or declare its --classes"
        )
    result.classes[source.name] |= found


def _read(scene: Scene, source: Source, window: Window, scale: float) -> tuple[Array, Bools]:
    """A window of the scaled scene: ``(C, h, w)`` values and ``(h, w)`` valid."""
    row, column, height, width = (
        n * source.factor for n in (window.row_off, window.col_off, window.height, window.width)
    )
    if scale == 1:
        return scene.read(Window(column, row, width, height))
    rows, columns = _Overlap(row, height, scale), _Overlap(column, width, scale)
    values, valid = scene.read(Window(columns.first, rows.first, columns.extent, rows.extent))

    def area(pixels: Array) -> Array:
        return columns.mean(rows.mean(pixels.astype(np.float64), -2), -1)

    share = area(valid)
    if source.kind in ("label", "mask"):
        classes = np.unique(values[0][valid]) if valid.any() else np.zeros(1, values.dtype)
        votes = np.stack([area(valid & (values[0] == label)) for label in classes])
        out = classes[votes.argmax(axis=0)][None]
    else:
        total = area(np.where(valid, values, 0))
        out = np.divide(total, share, out=np.zeros_like(total), where=share > 0)
        out = np.rint(out) if values.dtype.kind in "iu" else out
    return out.astype(values.dtype), share >= 0.5 - 1e-9


class _Overlap:
    """How output pixels lie over input pixels along one axis, counted from the scene's corner.

    Written as sums of shifted pictures: the same pixel comes out bit for bit in any window.
    """

    def __init__(self, start: int, size: int, scale: float) -> None:
        edges = np.round(np.arange(start, start + size + 1) / scale, 9)
        index = np.floor(edges[:-1, None]).astype(np.int64) + np.arange(math.ceil(1 / scale) + 1)
        cover = np.minimum(index + 1, edges[1:, None]) - np.maximum(index, edges[:-1, None])
        self.weights = np.clip(cover, 0, None) * scale
        self.first = int(index.min())
        self.extent = int(index.max()) + 1 - self.first
        self.places = index - self.first

    def mean(self, pixels: Array, axis: int) -> Array:
        shape = (-1, 1) if axis == -2 else (-1,)
        parts = [
            pixels.take(self.places[:, i], axis) * self.weights[:, i].reshape(shape)
            for i in np.flatnonzero(self.weights.any(axis=0))
        ]
        return np.asarray(sum(parts))


def _finish(
    config: TilingConfig,
    scenes: Scenes,
    sources: tuple[Source, ...],
    results: Sequence[_Result],
    folder: Path,
) -> None:
    """Number the tiles and shards that were kept, and write the index and the head."""
    measured = set().union(*(result.measured for result in results))
    for name, (_, opened) in scenes.items():
        if name not in measured:
            raise InputError(
                f"{' with '.join(scene.file for scene in opened)} has no valid pixel: check its "
                "nodata value, or leave it out"
            )
    tiles = [tile for result in results for tile in result.tiles]
    if not tiles:
        raise InputError(
            f"no window has {config.minimum_valid:.0%} valid pixels: lower --minimum-valid or "
            "take smaller tiles"
        )
    kept = [number for number, result in enumerate(results) if result.tiles]
    for new, old in enumerate(kept):
        for source in (*sources, VALID):
            (folder / shard_name(source.name, old)).rename(folder / shard_name(source.name, new))
    seen = {s.name: set().union(*(result.classes[s.name] for result in results)) for s in sources}
    final = [s if s.classes else replace(s, classes=tuple(sorted(seen[s.name]))) for s in sources]
    left_out = ("images", "labels", "to", "groups", "workers")
    head = {
        "format": FORMAT,
        "version": VERSION,
        "size": config.size,
        "sources": [source.to_dict() for source in final],
        "scenes": [to_dict(stored) for stored, _ in scenes.values()],
        "shards": [len(results[number].tiles) for number in kept],
        "tiling": {k: v for k, v in to_dict(config).items() if k not in left_out},
    }
    (folder / "store.json").write_text(json.dumps(head, indent=1) + "\n", encoding="utf-8")
    with open(folder / "index.csv", "w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow([field.name for field in fields(Tile)])
        for number, line in enumerate(tiles):
            values = astuple(replace(line, tile=number))
            lines.writerow(" ".join(map(repr, v)) if isinstance(v, tuple) else v for v in values)
