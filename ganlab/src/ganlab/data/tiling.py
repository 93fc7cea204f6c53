"""Tiling: from scenes of any size to a tile store, one shard at a time.

A shard is a job that knows its scenes and windows and nothing else, so any executor can carry
it, memory is bounded by the shard, and the result does not depend on who did the work.
"""

import csv
import json
import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import astuple, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.windows import Window

from ganlab import workers
from ganlab.config import SplitConfig, TilingConfig, to_dict
from ganlab.conversion import paths_of
from ganlab.data import repairs
from ganlab.data.bands import name_key, option_for, reordered, split_paths
from ganlab.data.fill import said_to_be_measured, warn_of_fill
from ganlab.data.metres import ground_pixel_size
from ganlab.data.missing import common_nodata
from ganlab.data.scenes import (
    Palette,
    RasterScene,
    Scene,
    VectorScene,
    check_same_grid,
    open_labels,
    open_scene,
    windows,
)
from ganlab.data.sizes import readable_size, same_size
from ganlab.data.split import empty_parts
from ganlab.data.store import (
    FORMAT,
    KINDS,
    VALID,
    VERSION,
    Source,
    StoredScene,
    Tile,
    TileStore,
    check_source_names,
    checksum,
    file_checksum,
    head_checksum,
)
from ganlab.data.summary import (
    Summary,
    Tally,
    check_encodings,
    ignored_but_one,
    nodata_hides_background,
    reason,
    summarize,
    total,
)
from ganlab.data.tags import Tagged, check_same_scale, merged
from ganlab.errors import InputError, Note
from ganlab.files import exclusive, folder_beside, sweep

SHARD_BYTES = 64 * 2**20
CACHE_BYTES = 128 * 2**20
FILL_TILES = 64
"""Tiles, spread evenly, that are searched for undeclared fill."""

Array = npt.NDArray[Any]
Sources = tuple[Source, ...]
Scenes = list[tuple[StoredScene, tuple[Scene, ...]]]
More = Mapping[str, tuple[Sequence[str], str]]
Progress = Callable[[int, int], None]


class _Job(NamedTuple):
    """One shard: windows, each with its scene and one raster per source."""

    folder: Path
    number: int
    sources: Sources
    windows: list[tuple[StoredScene, tuple[Scene, ...], Window]]
    scale: float
    minimum_valid: float


class _Result(NamedTuple):
    """What a job wrote: tiles not yet numbered, what it counted, and the scenes with any pixel."""

    tiles: list[Tile]
    tally: Tally
    measured: set[str]


def tile(
    config: TilingConfig,
    executor: Executor | None = None,
    progress: Progress | None = None,
    more: More | None = None,
) -> TileStore:
    """Cut scenes into a tile store.

    The sources are ``"image"``, ``"label"`` and ``"fine"`` if they are given, and those of
    ``more``. Scaling takes the mean over the valid area of images and the majority of labels; a
    pixel stays valid when half of its area is.

    Args:
        config: what to tile and how.
        executor: carries the jobs, one for each shard; anything with ``submit``, for example
            Dask's ``Client.get_executor()``. Without it, ``config.workers`` processes.
        progress: called with the number of finished windows and of all windows.
        more: further sources: name -> (one file for each scene, kind). Their pixels may be a
            whole number of times finer than those of the images (``Source.factor``).

    Raises:
        InputError: anything wrong with the scenes, labels, options or the target folder; then
            nothing is left behind.
    """
    return tile_and_summarize(config, executor, progress, more)[0]


def tile_and_summarize(
    config: TilingConfig,
    executor: Executor | None = None,
    progress: Progress | None = None,
    more: More | None = None,
) -> tuple[TileStore, Summary]:
    """As :func:`tile`, and what was left out and why, and how frequent each class is."""
    if executor is None and config.workers > 1:
        workers.leave_if_main_is_being_imported()
    to = Path(config.to)
    _refuse_existing(to)
    scenes, sources = _open(config, _further_sources(config, more or {}))
    jobs = _plan(config, scenes, sources)
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(to, "tiling"):
            _refuse_existing(to)
            sweep(to)
            with folder_beside(to) as partial, _executor(config, executor) as carrier:
                here = [job._replace(folder=partial) for job in jobs]
                # Our own processes get few jobs at a time: an interruption while jobs are handed
                # out can leave a lock of the executor taken for good.
                ahead = len(here) if executor is not None else 2 * config.workers
                results = _run(here, carrier, ahead, progress)
                tally = total(result.tally for result in results)
                _finish(config, scenes, sources, results, tally, partial)
                partial.rename(to)
    except OSError as error:
        tile_bytes = sum(source.nbytes(config.size) for source in (*sources, VALID))
        need = tile_bytes * sum(len(job.windows) for job in jobs) / 1e6
        raise InputError(
            f"{to} cannot be written ({error}); nothing was left behind: a folder that can be "
            f"written and up to {need:.0f} MB of free disk are needed"
        ) from error
    store = TileStore.open(to)
    _warn_of_empty_parts(store)
    summary = summarize(tally, sum(len(job.windows) for job in jobs))
    _warn_of_a_single_class(config, scenes, summary, to)
    _warn_of_undeclared_fill(store)
    return store, summary


def _declared_by_labels(config: TilingConfig, scenes: Scenes) -> list[tuple[str, float | None]]:
    """Label rasters and the nodata values that they declare, unless the caller gave one."""
    if not config.labels or config.label_nodata != "declared":
        return []
    labels = [rasters[1] for _, rasters in scenes]
    return [(label.file, label.nodata) for label in labels if isinstance(label, RasterScene)]


def _warn_of_a_single_class(
    config: TilingConfig, scenes: Scenes, summary: Summary, store: Path
) -> None:
    """Say which options or declarations hide all classes but one; declared ones do not count."""
    found = summary.classes.get("label", {})
    if len(found) != 1:
        return
    hidden = nodata_hides_background(_declared_by_labels(config, scenes), 1)
    ignored = ignored_but_one(config.ignore, 1)
    only = next(iter(found))
    for said in filter(None, (hidden, ignored)):
        warnings.warn(f"{store}: the only class is {only}. {said}", stacklevel=4)


def _warn_of_undeclared_fill(store: TileStore) -> None:
    tiles = np.linspace(0, len(store) - 1, min(len(store), FILL_TILES)).round().astype(int)
    valid = store.read("valid", tiles)[:, 0] > 0
    for name, source in store.sources.items():
        if source.kind != "image" or said_to_be_measured(name, store.tiling):
            continue
        known = valid.repeat(source.factor, 1).repeat(source.factor, 2)
        values = store.read(name, tiles)
        warn_of_fill(str(store.path), name, source.bands, values, known, stacklevel=4)


def _warn_of_empty_parts(store: TileStore) -> None:
    """Say at once what a training would meet: the usual split leaves a part empty."""
    if len(store) == 1:
        return  # one picture, not a training set
    config = SplitConfig()
    try:
        lacking = empty_parts(store.split(config), config)
    except InputError as error:
        lacking = str(error)
    if lacking is not None:
        warnings.warn(f"{store.path}: {lacking}", stacklevel=4)


def _further_sources(config: TilingConfig, more: More) -> More:
    """What is tiled besides images and labels; one path stands for a tuple of one."""
    found: dict[str, tuple[Sequence[str], str]] = {}
    if config.fine:
        found["fine"] = (config.fine, "image")
    for name, entry in more.items():
        if isinstance(entry, str | os.PathLike) or len(entry) != 2 or entry[1] not in KINDS:
            raise InputError(
                f"source {name!r} is {entry!r:.200}; expected its files, one for each scene, and "
                f"its kind among {', '.join(KINDS)}"
            )
        files, kind = entry
        found[name] = (paths_of(files), kind)
    return found


def _refuse_existing(to: Path) -> None:
    if to.exists():
        raise InputError(f"{to} exists already: delete it or give another folder")


def _executor(
    config: TilingConfig, given: Executor | None
) -> AbstractContextManager[Executor | None]:
    """Who carries the jobs: what was given, processes of our own, or None for this one."""
    if given is not None or config.workers <= 1:
        return nullcontext(given)
    return workers.pool(config.workers)


def _open(config: TilingConfig, more: More) -> tuple[Scenes, Sources]:
    """All scenes, each with its rasters in the order of the sources, checked against each other."""
    scale, share = config.scale, config.minimum_valid
    if scale <= 0 or not 0 <= share <= 1:
        raise InputError(f"scale {scale} must be above 0, minimum_valid {share} between 0 and 1")
    check_source_names(more)
    wanted = {"image": (config.images, "image"), "label": (config.labels, "label"), **more}
    if not config.labels:
        del wanted["label"]
    counts = {name: len(files) for name, (files, _) in wanted.items()}
    counts["group"] = len(config.groups or config.images)
    if len(set(counts.values())) != 1 or not config.images:
        found = ", ".join(f"{count} {name}s" for name, count in counts.items())
        raise InputError(f"{found}: give one of each for every scene, in the same order")
    paths = [Path(split_paths(image)[0]) for image in config.images]
    names = [path.stem for path in paths]
    if len(set(names)) < len(names):
        names = [f"{path.parent.name}-{path.stem}" for path in paths]
    twice = max(names, key=names.count)
    if names.count(twice) > 1:
        raise InputError(f"several scenes are called {twice}: rename or leave out one of them")
    scenes: Scenes = []
    sources: dict[str, Source] = {}
    for i, scene_name in enumerate(names):
        palette: Palette = "expand" if config.expand_palette else "refuse"
        image = open_scene(
            config.images[i],
            config.bands,
            config.nodata,
            config.ungeoreferenced,
            palette=palette,
        )
        rasters: list[Scene] = []
        for name, (files, kind) in wanted.items():
            raster: Scene = image
            if kind in ("label", "mask"):
                raster = open_labels(
                    files[i],
                    image.grid,
                    config.attribute,
                    config.ungeoreferenced,
                    config.layer,
                    nodata=config.label_nodata if name == "label" else "declared",
                    ignore=config.ignore if name == "label" else (),
                    colours=config.colours if name == "label" else None,
                )
            elif name != "image":
                raster = open_scene(
                    files[i],
                    (),
                    config.fine_nodata if name == "fine" else "declared",
                    config.ungeoreferenced,
                    option="--fine-nodata",
                    palette=palette,
                )
            factor = max(1, round(raster.grid.width / image.grid.width)) if name in more else 1
            check_same_grid(image, raster, kind, factor)
            classes: tuple[int, ...] = ()
            if name == "label":
                classes = tuple(sorted(set(config.classes) - set(config.ignore)))
            new = Source(
                name,
                kind,
                raster.dtype,
                raster.bands,
                factor,
                classes,
                raster.nodata,
                tags=raster.tags,
                ignore=raster.ignore,
            )
            old = sources.setdefault(name, new)
            if isinstance(raster, VectorScene):  # its type is free, see _with_common_types
                new = replace(new, dtype=old.dtype)
            if (len(new.bands), new.dtype, factor) != (len(old.bands), old.dtype, old.factor):
                column = len(rasters)
                earlier = [others[column] for _, others in scenes]
                raise InputError(
                    f"{raster.file} has {len(new.bands)} bands of {new.dtype}, factor {factor}, "
                    f"the scenes before it {len(old.bands)} of {old.dtype}, factor {old.factor}: "
                    f"{_how_to_agree(raster, earlier, factor == old.factor)}"
                )
            if reordered(new.bands, old.bands):
                raise InputError(
                    f"{raster.file} has the bands {list(new.bands)}, the scenes before it "
                    f"{list(old.bands)}: bring them into one order{_how_to_order(raster, old)}"
                )
            if kind == "image" and isinstance(raster, RasterScene):
                before = Tagged(
                    scenes[0][1][len(rasters)].file if scenes else raster.file,
                    old.bands,
                    old.tags,
                    old.dtype,
                )
                check_same_scale(before, raster.tagged, ignore=config.ignore_scale_tags)
            nodata = common_nodata([old.nodata, new.nodata])
            sources[name] = replace(old, nodata=nodata, tags=merged(old.tags, new.tags))
            rasters.append(raster)
        grid = image.grid.scaled(scale)
        group = config.groups[i] if config.groups else scene_name
        place = (grid.crs_name, tuple(grid.transform)[:6], grid.width, grid.height)
        stored = StoredScene(scene_name, group, *place, pixel_size=ground_pixel_size(grid))
        scenes.append((stored, tuple(rasters)))
    _warn_of_unlike_pixels([(rasters[0].file, scene.pixel_size) for scene, rasters in scenes])
    _check_vector_options(config, scenes)
    _check_raster_options(config, scenes, tuple(sources))
    return _with_common_types(scenes, tuple(sources.values()))


def _check_vector_options(config: TilingConfig, scenes: Scenes) -> None:
    """Refuse options that no file takes, and count scenes on which no feature lies."""
    vectors = [
        [raster for raster in rasters if isinstance(raster, VectorScene)] for _, rasters in scenes
    ]
    if not any(vectors):
        for option, given in (("attribute", config.attribute), ("layer", config.layer)):
            if given is not None:
                raise InputError(
                    f"--{option} {given} is for vector labels, and none are given: leave it out"
                )
        return
    empty = sum(any(raster.empty for raster in rasters) for rasters in vectors)
    if empty:
        have = "has" if empty == 1 else "have"
        warnings.warn(
            Note(f"{empty} of {len(scenes)} scenes {have} no feature: all background (class 0)"),
            stacklevel=4,
        )


def _check_raster_options(config: TilingConfig, scenes: Scenes, names: Sequence[str]) -> None:
    """Refuse options for labels or finer images where there are none: somebody forgot these."""
    given = {
        "--label-nodata": config.label_nodata != "declared",
        "--ignore": bool(config.ignore),
        "--colours": config.colours is not None,
        "--classes": bool(config.classes),
    }
    if "label" not in names:
        for option, is_given in given.items():
            if is_given:
                raise InputError(f"{option} is for labels, and none are given: leave it out")
    else:
        column = list(names).index("label")
        vectors = [isinstance(rasters[column], VectorScene) for _, rasters in scenes]
        for option in ("--label-nodata", "--colours"):
            if all(vectors) and given[option]:
                raise InputError(
                    f"{option} is for label rasters, and all labels are vectors: leave it out"
                )
    if config.fine_nodata != "declared" and "fine" not in names:
        raise InputError(
            "--fine-nodata is for --fine, and no finer rasters are given: leave it out"
        )


def _with_common_types(scenes: Scenes, sources: Sources) -> tuple[Scenes, Sources]:
    """One type for all vectors of a source: that of its rasters, or one that holds all classes."""
    columns: list[list[Scene]] = []
    typed = []
    for i, source in enumerate(sources):
        column = [rasters[i] for _, rasters in scenes]
        vectors = [raster.dtype for raster in column if isinstance(raster, VectorScene)]
        fixed = [raster.dtype for raster in column if not isinstance(raster, VectorScene)]
        dtype = fixed[0] if fixed else str(np.result_type(*vectors))
        rasters = [raster for raster in column if not isinstance(raster, VectorScene)]
        columns.append([_in_type(raster, dtype, rasters) for raster in column])
        typed.append(replace(source, dtype=dtype))
    together = zip(*columns, strict=True)
    merged = [(scene, new) for (scene, _), new in zip(scenes, together, strict=True)]
    return merged, tuple(typed)


def _in_type(scene: Scene, dtype: str, rasters: Sequence[Scene]) -> Scene:
    """Vectors in the type of the rasters beside them, which must hold all their classes."""
    if not isinstance(scene, VectorScene):
        return scene
    if not np.can_cast(scene.dtype, dtype):
        raise InputError(
            f"{scene.file} has classes outside 0 to 255, and the label rasters beside it are "
            f"{dtype}. Repair: {repairs.convert_lines(rasters, scene.dtype)}"
        )
    return replace(scene, dtype=dtype)


def _how_to_order(raster: Scene, wanted: Source) -> str:
    """What brings the bands of a raster into the order of the scenes before it, if it has all."""
    names = [name_key(name) for name in raster.bands]
    keys = [name_key(name) for name in wanted.bands]
    if len(set(names)) < len(names) or set(names) != set(keys):
        return ", by name with --bands"
    assert isinstance(raster, RasterScene)
    option = option_for(wanted.bands, raster.parts)
    if wanted.name == "image" and option is not None:
        return f": {option}"
    numbers = [raster.parts[names.index(key)].number for key in keys]
    return f". Repair: {repairs.bands_line(raster.file, numbers, 'ordered')}"


def _how_to_agree(raster: Scene, before: Sequence[Scene], one_factor: bool) -> str:
    """What brings a raster and those of the scenes before it to one form."""
    if len(raster.bands) != len(before[0].bands):
        return "choose common --bands"
    if not one_factor:
        return "tile the two kinds of scenes by themselves"
    dtype = repairs.common_type(raster.dtype, before[0].dtype)
    return f"bring all to one type: {repairs.convert_lines([*before, raster], dtype)}"


def _warn_of_unlike_pixels(sizes: Sequence[tuple[str, float | None]]) -> None:
    """Say which scenes have finer or coarser pixels than others."""
    known = [(size, file) for file, size in sizes if size]
    if not known:
        return
    fine, fine_file = min(known)
    coarse, coarse_file = max(known)
    if not same_size(coarse, fine):
        warnings.warn(
            f"{coarse_file} has pixels of {readable_size(coarse)} on the ground, {fine_file} of "
            f"{readable_size(fine)}: a network knows things by their width in pixels; warp all "
            "scenes to one size, or tile them into stores of their own",
            stacklevel=2,
        )


def _plan(config: TilingConfig, scenes: Scenes, sources: Sources) -> list[_Job]:
    stride = config.size if config.stride is None else config.stride
    cut = []
    for scene, rasters in scenes:
        try:
            found = windows(scene.width, scene.height, config.size, stride, config.edges)
        except InputError as error:
            raise InputError(f"{rasters[0].file}: {error}") from None
        cut += [(scene, rasters, window) for window in found]
    count = max(1, SHARD_BYTES // sum(s.nbytes(config.size) for s in (*sources, VALID)))
    shards = [cut[start : start + count] for start in range(0, len(cut), count)]
    options = (config.scale, config.minimum_valid)
    return [_Job(Path(), i, sources, shard, *options) for i, shard in enumerate(shards)]


def _run(
    jobs: list[_Job], executor: Executor | None, ahead: int, progress: Progress | None
) -> list[_Result]:
    """The results of all jobs, in order; on the way out nothing is left running."""
    done = 0
    total = sum(len(job.windows) for job in jobs)
    results: dict[int, _Result] = {}
    with closing(_carried_out(jobs, executor, ahead)) as finished:
        for job, result in finished:
            results[job.number] = result
            done += len(job.windows)
            if progress is not None:
                progress(done, total)
    return [results[job.number] for job in jobs]


def _carried_out(
    jobs: list[_Job], executor: Executor | None, ahead: int
) -> Generator[tuple[_Job, _Result]]:
    """Jobs with their results, in the order in which they finish; ``ahead`` are handed out."""
    if executor is None:
        for job in jobs:
            yield job, _write_shard(job)
        return
    waiting = iter(jobs)
    futures: dict[Future[_Result], _Job] = {}
    try:
        for job in islice(waiting, ahead):
            futures[executor.submit(_write_shard, job)] = job
        while futures:
            finished, _ = wait(futures, return_when=FIRST_COMPLETED)
            for future in finished:
                job = futures.pop(future)
                for following in islice(waiting, 1):
                    futures[executor.submit(_write_shard, following)] = following
                yield job, future.result()
    except BrokenExecutor:
        # It fails what is waiting by itself, and never ends if somebody cancels that meanwhile.
        raise
    except BaseException:
        for future in futures:
            future.cancel()
        wait(futures)
        raise


def _write_shard(job: _Job) -> _Result:
    size = job.windows[0][2].width
    result = _Result([], Tally(Counter(), {}), set())
    sources = (*job.sources, VALID)
    stored = [np.empty((len(job.windows), *s.shape(size)), s.dtype) for s in sources]
    with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES):
        for scene, rasters, window in job.windows:
            *pixels, valid = parts = [array[len(result.tiles)] for array in stored]
            valid[:] = 1
            shares = {}
            for source, raster, values in zip(job.sources, rasters, pixels, strict=True):
                values[:], measured = _read(raster, source, window, job.scale)
                # A reference pixel is measured when all pixels of a finer source in it are.
                cells = measured.reshape(size, source.factor, size, source.factor)
                whole = cells.all(axis=(1, 3))
                valid &= whole
                shares[source.name] = float(whole.mean())
            fraction = float(valid.mean())
            if fraction > 0:
                result.measured.add(scene.name)
            if fraction == 0 or fraction < job.minimum_valid:
                result.tally.left_out[reason(shares, job.minimum_valid)] += 1
                continue
            for source, raster, values in zip(job.sources, rasters, pixels, strict=True):
                if source.kind == "label":
                    found = _classes(source, raster, values, valid[0])
                    result.tally.count_classes(source.name, scene.name, found)
            corner = rasters[0].grid.scaled(job.scale).at(window)
            place = (window.row_off, window.col_off, size, size, tuple(corner)[:6])
            result.tiles.append(Tile(0, scene.name, scene.group, *place, fraction, checksum(parts)))
    if result.tiles:
        for source, array in zip(sources, stored, strict=True):
            _save(job.folder / source.shard(job.number), array[: len(result.tiles)])
    return result


def _save(path: Path, array: Array) -> None:
    np.save(path, array, allow_pickle=False)


def _classes(source: Source, raster: Scene, values: Array, valid: Array) -> dict[int, int]:
    """The classes of a tile and their pixels; refuses what was not declared."""
    measured = valid.repeat(source.factor, axis=0).repeat(source.factor, axis=1) > 0
    numbers, counts = np.unique(values[:, measured], return_counts=True)
    found = dict(zip(numbers.tolist(), counts.tolist(), strict=True))
    odd = sorted(set(found) - set(source.classes)) if source.classes else []
    if odd:
        known = ", ".join(map(str, source.classes))
        what = f"holds class {', '.join(map(str, odd))}; expected {known}"
        raise InputError(
            f"{raster.file} {what}: correct the label, declare its --classes, or --ignore those "
            "that mean unknown"
        )
    return found


def _read(scene: Scene, source: Source, window: Window, scale: float) -> tuple[Array, Array]:
    """A window of the scaled scene: ``(C, h, w)`` values and ``(h, w)`` valid."""
    row, column, size = (n * source.factor for n in (window.row_off, window.col_off, window.width))
    if scale == 1:
        return scene.read(Window(column, row, size, size))
    rows, columns = _cover(row, size, scale), _cover(column, size, scale)
    top, left = int(rows[0][0][0]), int(columns[0][0][0])
    bottom, right = int(rows[-1][0][-1]) + 1, int(columns[-1][0][-1]) + 1
    values, valid = scene.read(Window(left, top, right - left, bottom - top))

    def area(pixels: Array) -> Array:
        # Sums of shifted pictures: the same pixel comes out bit for bit in any window.
        tall = np.asarray(sum(pixels.take(i - top, -2) * weight[:, None] for i, weight in rows))
        return np.asarray(sum(tall.take(i - left, -1) * weight for i, weight in columns))

    share = area(valid)
    if source.kind in ("label", "mask"):
        classes = np.unique(values[0][valid]) if valid.any() else np.zeros(1, values.dtype)
        votes = np.stack([area(valid & (values[0] == label)) for label in classes])
        out = classes[votes.argmax(axis=0)][None]
    else:
        total = area(np.where(valid, values, 0))
        out = np.divide(total, share, out=np.zeros_like(total), where=share > 0)
        out = np.rint(out) if values.dtype.kind in "iu" else out
        if values.dtype.kind == "f":  # the mean of the largest values may round beyond them
            limits = np.finfo(values.dtype)
            out = out.clip(limits.min, limits.max)
    return out.astype(values.dtype), share >= 0.5 - 1e-9


def _cover(start: int, size: int, scale: float) -> list[tuple[Array, Array]]:
    """Along one axis: the first, second, ... input pixel under each output pixel, and its share."""
    edges = np.round(np.arange(start, start + size + 1) / scale, 9)
    cover = []
    for k in range(math.ceil(1 / scale) + 1):
        pixels = np.floor(edges[:-1]).astype(np.int64) + k
        overlap = np.minimum(pixels + 1, edges[1:]) - np.maximum(pixels, edges[:-1])
        cover.append((pixels, np.clip(overlap, 0, None) * scale))
    return [(pixels, share) for pixels, share in cover if share.any()]


def _check_anything_is_kept(
    config: TilingConfig, scenes: Scenes, results: list[_Result], tally: Tally
) -> None:
    """Refuse scenes without a valid pixel, and a store without a tile."""
    hidden = nodata_hides_background(_declared_by_labels(config, scenes), 0)
    hidden = hidden or ignored_but_one(config.ignore, 0)
    measured = set().union(*(result.measured for result in results))
    for scene, rasters in scenes:
        if scene.name not in measured:
            files = " with ".join(raster.file for raster in rasters)
            raise InputError(
                f"{files} has no valid pixel: check its nodata value, or leave it out. {hidden}"
            )
    if not any(result.tiles for result in results):
        found = f"no window has {config.minimum_valid:.0%} valid pixels"
        why = summarize(tally, 0).why()
        raise InputError(
            f"{found}: lower --minimum-valid or take smaller tiles; there are windows {why}. "
            f"{hidden}"
        )


def _finish(
    config: TilingConfig,
    scenes: Scenes,
    sources: Sources,
    results: list[_Result],
    tally: Tally,
    folder: Path,
) -> None:
    """Number the tiles and shards that were kept, and write the index and the head."""
    kept = [number for number, result in enumerate(results) if result.tiles]
    _check_anything_is_kept(config, scenes, results, tally)
    for i, source in enumerate(sources):
        if source.kind == "label" and not source.classes:
            files = {scene.name: rasters[i].file for scene, rasters in scenes}
            check_encodings(tally, source.name, files)
    for new, old in enumerate(kept):
        for source in (*sources, VALID):
            (folder / source.shard(old)).rename(folder / source.shard(new))
    seen: dict[str, set[int]] = {source.name: set() for source in sources}
    for (name, _), found in tally.classes.items():
        seen[name] |= set(found)
    final = [s if s.classes else replace(s, classes=tuple(sorted(seen[s.name]))) for s in sources]
    with open(folder / "index.csv", "w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow([field.name for field in fields(Tile)])
        for number, line in enumerate(line for result in results for line in result.tiles):
            values = astuple(replace(line, tile=number))
            lines.writerow(" ".join(map(repr, v)) if isinstance(v, tuple) else v for v in values)
    left_out = ("images", "labels", "fine", "to", "groups", "workers", "colours")
    head: dict[str, Any] = {"format": FORMAT, "version": VERSION, "size": config.size}
    head["sources"] = [source.to_dict() for source in final]
    head["scenes"] = [to_dict(scene) for scene, _ in scenes]
    head["shards"] = [len(results[number].tiles) for number in kept]
    head["tiling"] = {k: v for k, v in to_dict(config).items() if k not in left_out}
    head["index_checksum"] = file_checksum(folder / "index.csv")
    head["checksum"] = head_checksum(head)
    (folder / "store.json").write_text(json.dumps(head, indent=1) + "\n", encoding="utf-8")
