"""A trained task over a whole scene: read, generated, blended and written window by window.

Works from what a task declares, for any task: one that wants a hole mask gets the scene's missing
pixels or a given mask, and is run only where something is to be filled. Memory does not grow with
the scene: windows are blended inside swaths of bounded width, and rows are written as soon as no
later window touches them. Windows start at multiples of the generator's stride and are cut at the
scene's border, so the network pads only where the scene ends.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import rasterio
import torch
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window
from torch import Tensor, nn

from ganlab import clouds
from ganlab.config import ApplyConfig
from ganlab.data import repairs
from ganlab.data.bands import option_for, reordered, split_paths
from ganlab.data.batches import as_float32
from ganlab.data.geotiff import Output
from ganlab.data.metres import ground_pixel_size
from ganlab.data.placing import check_no_input, placed
from ganlab.data.raster_files import SET, source_files
from ganlab.data.scenes import (
    Array,
    Bools,
    Palette,
    Scene,
    VectorScene,
    check_same_grid,
    open_labels,
    open_scene,
)
from ganlab.data.sizes import readable_size, same_size
from ganlab.data.store import Source
from ganlab.data.tags import check_same_scale
from ganlab.data.vectors import is_vector
from ganlab.errors import InputError, Note
from ganlab.files import exclusive, is_plain_name
from ganlab.provenance import model_of, output_tags, set_mark
from ganlab.randomness import derived_seed, place_noise
from ganlab.tasks.base import NOISE, Task
from ganlab.together import FINISHED
from ganlab.training.processes import autocast
from ganlab.training.runs import decide_precision, load_task

SWATH = 8192
"""Width in pixels of the part of a scene that is blended at a time."""
UNLIKE = 0.05
"""Share of pixels far outside the training's range above which ``apply`` warns."""
CACHE_BYTES = 128 * 2**20
STRIP = 512
"""Rows of a mask that are checked at a time."""

ORIGIN = Source("origin", "label", "uint8", ("origin",), classes=(0, 1, 2))
"""Where a pixel comes from: 0 the scene as it was, 1 seen through cloud, 2 invented."""

Progress = Callable[[int, int], None]
Holes = Callable[[Window, Bools], Bools]
"""Where a window of a scene is to be filled, given where it was measured: ``(h, w)``."""


@dataclass(frozen=True)
class Span:
    """One window along one axis; its weight rises from 0 to 1 on a ramp and falls on another."""

    start: int
    stop: int
    ramp_in: tuple[int, int]
    ramp_out: tuple[int, int]

    @property
    def size(self) -> int:
        """Its pixels."""
        return self.stop - self.start

    def weights(self) -> Tensor:
        """Weight of each pixel, float64; those of all spans of an axis add up to 1 everywhere."""
        at = torch.arange(self.start, self.stop, dtype=torch.float64) + 0.5
        # A ramp of no width is a step between two pixels: infinite, then clamped.
        rise, fall = (
            ((at - low) / (high - low)).clamp(0, 1) for low, high in (self.ramp_in, self.ramp_out)
        )
        return rise.minimum(1 - fall)


def spans(length: int, window: int, overlap: int, stride: int) -> list[Span]:
    """Windows along an axis of ``length`` pixels, the last one cut.

    Starts are multiples of ``stride``. The overlap is rounded up to it and never more than half
    a window, for which the window grows where it must; its middle half is the ramp.

    Raises:
        InputError: the window is empty or the overlap negative.
    """
    if overlap < 0 or window < 1:
        raise InputError(f"window {window} and overlap {overlap}: expected at least 1 and 0 pixels")
    shared = -(-overlap // stride) * stride
    step = max((window - shared) // stride * stride, shared, stride)
    starts = [0, *range(step, length - shared, step)]
    inner = [(start + shared // 4, start + shared - shared // 4) for start in starts[1:]]
    ramps = pairwise([(0, 0), *inner, (length, length)])
    stops = [min(start + step + shared, length) for start in starts]
    return [Span(a, b, *pair) for a, b, pair in zip(starts, stops, ramps, strict=True)]


def apply(config: ApplyConfig, progress: Progress | None = None) -> list[Path]:
    """Run a trained model over a whole scene and write its outputs as cloud-optimized GeoTIFFs.

    ``progress`` is called with (windows done, windows in all).

    With ``config.fill`` two models work one after the other: the first parts clouds from the
    ground, the second invents what lies under opaque cloud.

    Returns:
        The written files: ``config.to`` for the first output, ``<stem>-<name>`` for others.

    Raises:
        InputError: an input does not fit the model, or an output cannot be written.
    """
    task = load_task(config.run, average=config.average, device=config.device)
    if config.batch_statistics:
        layers = [layer for layer in task.generator.modules() if isinstance(layer, nn.BatchNorm2d)]
        if not layers:
            raise InputError("--batch-statistics: this model has no batch norm; leave it out")
        for layer in layers:
            layer.train()
    scene = _open_input(config.scene, config, task.inputs[0].source)
    holes, filler = _open_holes(config, scene, task), _load_filler(config, task)
    _compare_pixel_sizes(scene, task, "the model")
    if filler is not None:
        _compare_pixel_sizes(scene, filler, f"the model of --fill {config.fill}")
    inputs = _inputs(config)
    targets = _targets(config, task, filler, inputs)
    with ExitStack() as locks:
        for target in sorted(targets):
            locks.enter_context(exclusive(target, "apply"))
        try:
            _write_all(config, task, filler, scene, holes, inputs, targets, progress)
        except (OSError, RasterioError) as error:
            raise InputError(
                f"{config.to} cannot be written ({error.__cause__ or error}): expected a folder "
                "that can be written and a disk with room for it twice; nothing was changed"
            ) from error
    return targets


def _compare_pixel_sizes(scene: Scene, task: Task, model: str) -> None:
    """Say where a scene has pixels of another size on the ground than those of the training."""
    trained = task.pixel_size
    here = ground_pixel_size(scene.grid)
    if trained is None or here is None or same_size(here, trained):
        return
    fine = trained / task.scale
    if task.scale > 1 and same_size(here, fine):
        warnings.warn(
            f"{model} learned to make pixels of {readable_size(fine)} from such of "
            f"{readable_size(trained)}; for {scene.file} it makes "
            f"{readable_size(here / task.scale)} from {readable_size(here)}, on the assumption "
            "that detail looks alike at both sizes, which nobody has measured",
            Note,
            stacklevel=3,
        )
        return
    warnings.warn(
        f"{scene.file} has pixels of {readable_size(here)} on the ground, {model} was trained on "
        f"{readable_size(trained)}: warp the scene to that size, or train on tiles of this one",
        stacklevel=3,
    )


def _write_all(
    config: ApplyConfig,
    task: Task,
    filler: Task | None,
    scene: Scene,
    holes: Holes | None,
    inputs: Sequence[Path],
    targets: Sequence[Path],
    progress: Progress | None,
) -> None:
    """All outputs, finished in a folder beside their places, which they take together."""
    model = model_of(task, config.run)
    second = None if filler is None or config.fill is None else model_of(filler, config.fill)
    tags = output_tags(
        task, model, [Path(file) for file in split_paths(config.scene)], targets, second
    )
    environment = rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES, GDAL_TIFF_INTERNAL_MASK=True)
    georeferenced = scene.grid.crs is not None or not scene.grid.transform.is_identity
    with (
        environment,
        placed(
            targets, replace=config.overwrite, georeferenced=georeferenced, inputs=inputs
        ) as folder,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # as asked for
        outputs = _write(folder, config, task, scene, holes, progress)
        if filler is not None:
            outputs = _fill(folder, config, filler, scene, outputs, progress)
        mark = set_mark(tags, [output.total for output in outputs])
        for output, target, about in zip(outputs, targets, tags, strict=True):
            output.finish(folder / FINISHED / target.name, about | {SET: mark})


def _write(
    folder: Path,
    config: ApplyConfig,
    task: Task,
    scene: Scene,
    holes: Holes | None,
    progress: Progress | None,
) -> list[Output]:
    """All outputs of a task as plain GeoTIFFs in a folder."""
    blocks = generate_scene(
        task,
        scene,
        holes=holes,
        window=config.window,
        overlap=config.overlap,
        batch_size=1 if config.batch_statistics else config.batch_size,
        precision=config.precision,
        seed=config.seed,
        progress=progress,
    )
    # What the scenes of the training declared says nothing about this one.
    sources = [replace(field.source, nodata=None) for field in task.outputs]
    if _shows_the_scene(task):
        sources[0] = replace(sources[0], nodata=scene.nodata)
    if task.keeps:  # pixels of the scene come back as they are, and what they mean
        named = any(not name.isdecimal() for name in scene.bands)
        bands = scene.bands if named else sources[0].bands
        sources[0] = replace(sources[0], dtype=scene.dtype, bands=bands, tags=scene.tags)
    outputs = [Output(folder, source, scene.grid.scaled(task.scale)) for source in sources]
    for block, valid, stored in blocks:
        made = valid
        if task.hole:
            made = stored[sources[1].name][0] > 0
        elif task.keeps:
            made = stored[sources[0].name] != scene.read(block)[0]
        outputs[0].write(block, valid, made, stored[sources[0].name])
        for output in outputs[1:]:
            output.write(block, valid, valid, stored[output.source.name])
    for output in outputs:
        output.file.close()
    return outputs


def _shows_the_scene(task: Task) -> bool:
    """Whether the scene's nodata value has a meaning in the first output: both are images.

    In others, where the value would be a class or a colour, a mask says which pixels are missing.
    """
    return task.inputs[0].source.kind == task.outputs[0].source.kind == "image"


def _load_filler(config: ApplyConfig, task: Task) -> Task | None:
    """The model that fills what another one cannot see through."""
    if config.fill is None:
        if config.opaque != ApplyConfig.opaque:
            raise InputError("--opaque says where --fill is asked for the ground; give it, too")
        return None
    if task.outputs[-1].source.kind != "alpha":
        raise InputError(f"--fill {config.fill}: this model finds no clouds; leave it out")
    if not 0 < config.opaque <= 1:
        raise InputError(f"--opaque {config.opaque}: expected alpha above 0, at most 1")
    filler = load_task(config.fill, average=config.average, device=config.device)
    if filler.hole is None:
        raise InputError(f"--fill {config.fill}: this model fills no holes; give one that does")
    mine, other = task.outputs[0].source, filler.inputs[0].source
    kinds = [np.dtype(source.dtype).kind for source in (mine, other)]
    strange = len(mine.bands) != len(other.bands) or reordered(mine.bands, other.bands)
    if strange or kinds[0] != kinds[1]:
        raise InputError(
            f"--fill {config.fill}: this model fills {list(other.bands)} of {other.dtype}, the "
            f"ground has {list(mine.bands)} of {mine.dtype}; give one that was trained on these"
        )
    check_same_scale(
        other.tagged(f"the model of {config.fill}"),
        mine.tagged(f"the model of {config.run}"),
        "Give one that was trained on the same scale and offset",
        config.ignore_scale_tags,
    )
    return filler


def _fill(
    folder: Path,
    config: ApplyConfig,
    filler: Task,
    scene: Scene,
    layers: list[Output],
    progress: Progress | None,
) -> list[Output]:
    """Invent the ground under opaque cloud: filled ground, alpha, and where each pixel is from."""
    ground, alpha = layers
    # The ground has only the bands that were asked for, and says itself where it is missing.
    chosen = replace(config, bands=(), nodata="declared")
    seen = _open_input(str(ground.plain), chosen, filler.inputs[0].source)
    clouded = open_scene(str(alpha.plain), ungeoreferenced=config.ungeoreferenced)

    def opaque(window: Window, valid: Bools) -> Bools:
        alpha, _ = clouded.read(window)
        return np.asarray(alpha[0] > config.opaque) & valid

    (folder / "filled").mkdir()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*has no hole to fill")  # no cloud is opaque
        filled, invented = _write(folder / "filled", config, filler, seen, opaque, progress)
    origin = Output(folder, ORIGIN, scene.grid)
    with rasterio.open(filled.plain) as made, rasterio.open(invented.plain) as new:
        for _, block in made.block_windows(1):
            was, valid = scene.read(block)
            changed = (made.read(window=block) != was).any(0)
            stored = np.where(new.read(1, window=block) > 0, 2, changed).astype(np.uint8)
            origin.write(block, valid, valid, stored[None])
    origin.file.close()
    return [filled, alpha, origin]


def generate_scene(
    task: Task,
    scene: Scene,
    *,
    holes: Holes | None = None,
    window: int = 512,
    overlap: int = 128,
    batch_size: int = 4,
    precision: str = "fp32",
    seed: int = 0,
    progress: Progress | None = None,
) -> Iterator[tuple[Window, Bools, dict[str, Array]]]:
    """Blocks of the output that tile the scene, from top to bottom within each swath.

    The task is as ``load_task`` gives it; the options are those of
    :class:`ganlab.config.ApplyConfig`, and ``progress`` gets (windows done, windows in all).
    ``holes`` is for tasks that fill them; if None, they get the pixels that are not valid.

    Yields:
        Output window, its valid mask ``(h, w)``, and ``(C, h, w)`` in stored units for each output.

    Raises:
        InputError: the scene cannot be read, holds what the model does not know, or (said after
            the last block) has no valid pixel for a task that fills no holes.
    """
    if batch_size < 1:
        raise InputError(f"batch size {batch_size}: expected at least 1")
    grid, scale = scene.grid, task.scale
    rows, columns = (spans(n, window, overlap, task.stride) for n in (grid.height, grid.width))
    finals = [*(row.start for row in rows[1:]), grid.height]
    swaths = list(_swaths(columns, grid.width))
    done, total = 0, len(rows) * sum(len(members) for members, _, _ in swaths)
    if holes is None and task.hole is not None:
        holes = missing_pixels
    field, far, measured, asked, empty = task.inputs[0], 0.0, 0, False, True
    also = None if task.beyond is None else task.beyond.cpu()
    for members, left, right in swaths:
        canvas = _Canvas(task, rows[0].size, members[0].start, members[-1].stop)
        for row, final in zip(rows, finals, strict=True):
            for group in _groups(members, 1 if task.noise else batch_size):
                for column, made in _generate(task, scene, holes, row, group, precision, seed):
                    canvas.add(row, column, made)
                done += len(group)
                if progress:
                    progress(done, total)
            block = Window(left, row.start, right - left, final - row.start)
            stored, valid = scene.read(block)
            empty &= not valid.any()
            inputs, hole = {field.name: stored[None]}, np.zeros_like(valid)
            if holes:
                hole = holes(block, valid)
                inputs[task.inputs[1].name], asked = hole[None, None], asked or bool(hole.any())
            ready = canvas.take(block.height, left, right)
            composed = task.compose(inputs, ready)
            place = Window(*(scale * value for value in block.flatten()))
            stored_units = {name: array[0] for name, array in composed.items()}
            yield place, (valid | hole).repeat(scale, 0).repeat(scale, 1), stored_units
            if field.scaling is not None:  # every eighth row is enough to judge by
                values = torch.from_numpy(as_float32(stored[None, :, ::8]))
                known = torch.from_numpy((valid & ~hole)[None, None, ::8])
                far += float(field.scaling.outside(values, known, also) * known.sum())
                measured += int(known.sum())
    if empty and task.hole is None:
        raise InputError(f"{scene.file} has no valid pixel: check its nodata value")
    if holes and not asked:
        warnings.warn(
            f"{scene.file} has no hole to fill: all its pixels are there, or --mask names none; "
            f"the output is the scene as it was{_hint_of_nodata(task, scene)}",
            stacklevel=2,
        )
    if far > UNLIKE * measured:
        share = f"{far / measured:.0%} of the valid pixels of {scene.file} lie far outside the"
        warnings.warn(f"{share} range of the training: other sensor, units or bands?", stacklevel=2)


def _hint_of_nodata(task: Task, scene: Scene) -> str:
    """What the scenes of the training declared, where this one declares nothing."""
    trained = task.inputs[0].source.nodata
    if trained is None or scene.nodata is not None:
        return ""
    return (
        f" (the scenes of the training declared nodata {trained:.17g}, this one declares none: if "
        f"it means the same here, give --nodata {trained:.17g})"
    )


def missing_pixels(window: Window, valid: Bools) -> Bools:
    """The holes of a scene without a mask: every pixel that was not measured."""
    return ~valid


def _generate(
    task: Task,
    scene: Scene,
    holes: Holes | None,
    row: Span,
    columns: list[Span],
    precision: str,
    seed: int,
) -> Iterator[tuple[Span, dict[str, Tensor]]]:
    """The outputs of windows of one size, on the CPU; where nothing is asked for, none."""
    asked, reads = [], []
    for column in columns:
        window = Window(column.start, row.start, column.size, row.size)
        stored, valid = scene.read(window)
        wanted = holes(window, valid) if holes else valid
        if wanted.any():
            asked.append(column)
            reads.append((stored, valid[None], wanted[None]))
    if not reads:
        return
    stored, valid, wanted = map(np.stack, zip(*reads, strict=True))
    inputs = dict(zip((field.name for field in task.inputs), (stored, wanted), strict=False))
    device = next(task.parameters()).device
    try:
        batch = task.encode(inputs, valid, device)
    except InputError as error:
        raise InputError(
            f"{scene.file}: {error} (--colours FILE recodes classes, --nodata VALUE makes one "
            "missing)"
        ) from None
    if task.noise:
        size = (row.size, columns[0].size)
        places = [
            [place_noise(seed, row.start, c.start, *size, f"noise {i}") for i in range(2)]
            for c in asked
        ]
        batch[NOISE] = torch.from_numpy(np.array(places)).to(device)
    with autocast(device, decide_precision(precision, device)):
        made = task.sample(batch, derived_seed(seed, row.start, columns[0].start, "noise"))
    for i, column in enumerate(asked):
        yield column, {field.name: made[field.name][i].cpu() for field in task.outputs}


class _Canvas:
    """Weighted sums of a swath's windows in rows not yet final, ``task.scale`` times as fine."""

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
            self.sums[name] = nn.functional.pad(sums[:, count:], (0, 0, 0, count))
        return ready

    def _columns(self, left: int, right: int) -> slice:
        return slice((left - self.left) * self.scale, (right - self.left) * self.scale)


def _open_input(file: str, config: ApplyConfig, source: Source) -> Scene:
    """The scene that a model starts from, checked against what it was trained on."""
    vector, labels = is_vector(file), source.kind == "label"
    expected = f"{len(source.bands)} bands {list(source.bands)} of {source.dtype}"
    if vector and not labels:
        raise InputError(f"{file} is a vector file; this model starts from {expected}")
    if vector and config.like is None:
        raise InputError(f"{file} is a vector file; its grid must be given: --like RASTER")
    if not vector and (config.like or config.attribute or config.layer):
        raise InputError(f"{file} is a raster; --like, --attribute and --layer are for vectors")
    if vector and (config.nodata != "declared" or config.colours is not None):
        raise InputError(f"{file} is a vector file; --nodata and --colours are for rasters")
    if config.colours is not None and not labels:
        raise InputError(f"--colours {config.colours} is for labels; this model starts from images")
    if labels:
        if config.bands:
            raise InputError(f"--bands {' '.join(config.bands)}: this model starts from labels")
        like = open_scene(
            config.like or file, ungeoreferenced=config.ungeoreferenced, palette="keep"
        )
        scene: Scene = open_labels(
            file,
            like.grid,
            config.attribute,
            config.ungeoreferenced,
            config.layer,
            nodata=config.nodata,
            ignore=source.ignore,
            colours=config.colours,
            option="--nodata",
        )
        if isinstance(scene, VectorScene) and scene.empty:
            warnings.warn(
                Note(f"{file} has no feature on {like.file}: all of it is class 0"), stacklevel=3
            )
        if config.nodata == "declared" and scene.nodata in source.classes:
            warnings.warn(
                f"{file} declares nodata {scene.nodata:.17g}, which is a class of this model: its "
                "pixels count as missing, and --nodata none makes them that class",
                stacklevel=3,
            )
        return scene
    palette: Palette = "expand" if config.expand_palette else "refuse"
    scene = open_scene(file, config.bands, config.nodata, config.ungeoreferenced, palette=palette)
    unlike = np.dtype(scene.dtype).kind != np.dtype(source.dtype).kind
    strange = len(scene.bands) != len(source.bands) or reordered(scene.bands, source.bands)
    if strange or unlike:
        files = dict.fromkeys(band.path for band in scene.parts)
        convert = " && ".join(repairs.convert_line(path, source.dtype) for path in files)
        repair = f"convert its type, if its units are those of the training: {convert}"
        if strange:
            option = option_for(source.bands, scene.parts)
            repair = "choose with --bands" if option is None else f"choose with {option}"
        raise InputError(
            f"{scene.file} has {len(scene.bands)} bands {list(scene.bands)} of {scene.dtype}; the "
            f"model was trained on {expected}: {repair}"
        )
    check_same_scale(source.tagged("the training"), scene.tagged, ignore=config.ignore_scale_tags)
    return scene


def _open_holes(config: ApplyConfig, scene: Scene, task: Task) -> Holes | None:
    """Where a task that fills holes is to do so; None for others."""
    if config.mask is None and (config.classes or config.read_as != "nonzero"):
        raise InputError("--read-as and --classes say what the values of --mask mean; give it, too")
    if task.hole is None:
        if config.mask:
            raise InputError(f"--mask {config.mask}: this model fills no holes; leave it out")
        return None
    if config.mask is None:
        return missing_pixels
    mask = open_scene(config.mask, ungeoreferenced=config.ungeoreferenced, palette="keep")
    check_same_grid(scene, mask, "mask")
    if len(mask.bands) != 1:
        raise InputError(f"{mask.file} has {len(mask.bands)} bands; a mask has one")
    _check_mask(mask, config)

    def holes(window: Window, valid: Bools) -> Bools:
        stored, known = mask.read(window)
        stored = np.where(known, stored, 0)
        return clouds.missing(stored[0], config.read_as, config.classes) & known

    return holes


def _check_mask(mask: Scene, config: ApplyConfig) -> None:
    """Read all of a mask, so that one that is not as asked is refused before anything is made."""
    values, grid = np.zeros(1, mask.dtype), mask.grid
    for row in range(0, grid.height, STRIP):
        stored, known = mask.read(Window(0, row, grid.width, min(STRIP, grid.height - row)))
        if not config.classes:
            values = np.union1d(values, stored[0][known])
        try:
            clouds.missing(values, config.read_as, config.classes)
        except InputError as error:
            raise InputError(f"{mask.file}: {error} (--classes, --read-as)") from None


def _targets(
    config: ApplyConfig, task: Task, filler: Task | None, inputs: Sequence[Path]
) -> list[Path]:
    """Where the outputs will be: the first as asked for, the others beside it.

    Raises:
        InputError: a place cannot be one, or is that of an input.
    """
    to = config.to
    if to.suffix.lower() not in (".tif", ".tiff"):
        raise InputError(f"{to}: the output is a GeoTIFF; give a name that ends in .tif")
    made_by = [(config.run, task)]
    if filler is not None and config.fill is not None:
        made_by.append((config.fill, filler))
    for run, maker in made_by:
        for field in maker.outputs:
            if not is_plain_name(field.name):
                raise InputError(
                    f"{run}: config.json names a source {field.name!r}, which cannot be a part of "
                    "a file name; this run is damaged or not to be trusted"
                )
    names = [field.name for field in task.outputs[1:]]
    if filler is not None:
        names.append(ORIGIN.name)
    targets = [to, *(to.with_name(f"{to.stem}-{name}{to.suffix}") for name in names)]
    check_no_input(targets, inputs)
    return targets


def _inputs(config: ApplyConfig) -> list[Path]:
    """All files that are read for the scene, its mask and its grid."""
    given = [*split_paths(config.scene), config.mask, config.like]
    return source_files(file for file in given if file)


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
        left = columns[first].start
        last = first + max(sum(column.stop - left <= SWATH for column in columns[first:]), 1)
        right = columns[last].start if last < len(columns) else width
        yield columns[max(first - 1, 0) : last], left, right
        first = last
