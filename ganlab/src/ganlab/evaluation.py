"""A trained task on tiles that it has not seen, measured beside baselines that need no network.

All image numbers are in network units, where the scaled range of the data is [-1, 1].
"""

import json
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from ganlab import metrics
from ganlab.baselines import (
    BandFit,
    ClassMedian,
    harmonic_fill,
    haze_removal,
    mean_fill,
    nearest_fill,
)
from ganlab.config import EvaluateConfig, TrainingConfig, finite, from_dict
from ganlab.data.batches import Batch, Batches, DataSpec, Tiles
from ganlab.data.sizes import readable_size, same_size
from ganlab.data.split import Split
from ganlab.data.store import TileStore, check_same_scales, rgb_bands
from ganlab.data.trained import (
    fingerprint,
    on_trained_ground,
    open_tiles,
    read_trained,
    recognized_by_name,
)
from ganlab.distributions import (
    bootstrap_interval,
    draws,
    kernel_distance,
    kernel_distance_interval,
    resampled_interval,
)
from ganlab.errors import InputError
from ganlab.files import replace_text
from ganlab.networks.features import load_features, weights_digest
from ganlab.resolution import area, enlarge
from ganlab.tasks.base import Field, Task, Tensors, fitted
from ganlab.training.description import read_config
from ganlab.training.runs import load_task, run_directory

DATA_RANGE = 2.0
TRUTH, SAMPLES = "truth", "samples"
RESAMPLES = 500
FIT_TILES = 512
"""At most so many training tiles are read to fit a baseline."""

Predict = Callable[[Batch], dict[str, Tensors]]
"""From a batch to the outputs of each method, ``(B, C, H, W)``; the model stands first."""
Simple = Callable[[Batch], Tensors]
"""The same for the first output alone: ``{method: (B, C, H, W)}``."""
Progress = Callable[[int, int], None]
Places = npt.NDArray[np.int64]
Rows = dict[str, dict[str, float]]
Features = Callable[[Tensor, Tensor], Tensor]
"""From images and valid masks to feature vectors ``(B, d)``."""


def evaluate(config: EvaluateConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Measure a run and its baselines on one split, and write the numbers as JSON.

    Images get L1, PSNR (dB), SSIM and the spectral angle (rad) as means over tiles, and the two
    texture distances of :mod:`ganlab.metrics` between all made and all true tiles together (0 = as
    rich as the truth), with the kernel distance (KID, times 1000) of a feature network. L1 and its
    like are taken over the parts that the task names, too: the hole, thin cloud. Where holes were
    filled, texture gradients are those of the hole, and the seam ratio is added; alpha has its
    L1; finer pixels have their consistency with the input (L1 after averaging) and the energy of
    checkerboards, as a multiple of the truth's; a task may add numbers of its model. Labels get the
    share of right pixels and the mean intersection over union of the classes. Tasks that can make
    images from noise have a row of samples, which have no partners and so no L1.

    Returns:
        ``{"split", "tiles", "left_out", "output", "features", "rows": {method: {metric: value}},
        "intervals": {method: {metric: [low, high]}}}``; the intervals are those of 95 % for model
        minus method over the tiles, of L1 and PSNR of the first part, of the texture distances and
        of KID: both ends below 0 mean that the model is better (above, for PSNR). With
        ``resamples`` also ``"resampled": {metric: [values of the model]}``, one for each draw of
        the tiles, of all but KID (which tiles drawn twice would spoil) and the seam ratio.

    Raises:
        InputError: the split is empty, the tiles do not fit the run, or the file cannot be written.
    """
    if config.batch_size < 1 or (config.limit is not None and config.limit < 1):
        found = f"batch size {config.batch_size} and limit {config.limit}"
        raise InputError(f"{found}: expected at least 1")
    if config.resamples < 0:
        raise InputError(f"{config.resamples} resamples: expected at least 0")
    run = run_directory(config.run)
    about = read_config(run)
    task = load_task(config.run, average=config.average, device=config.device)
    store = open_tiles(run, about["tiles"], config.tiles)
    split = store.split(from_dict(TrainingConfig, about["training"]).split)
    for share in (config.split, "train"):
        if len(getattr(split, share)) == 0:
            raise InputError(
                f"{store.path}: the {share} split is empty; take another split, or tile more ground"
            )
    _check_sources(store, task.spec)
    ignore = config.ignore_scale_tags
    check_same_scales(task.spec.sources, store.sources, run, store.path, ignore)
    _compare_pixel_sizes(store, task.spec)
    unseen, left_out = _unseen(config, run, about["fingerprint"], store, split)
    tiles = _some(unseen, config.limit)
    device = next(task.parameters()).device
    batches = Batches(store, tiles, task.spec, batch_size=1, augment=False, device=device)
    target = task.outputs[0]

    baselines = _baselines(task, batches, _some(split.train, FIT_TILES))

    def predict(batch: Batch) -> dict[str, Tensors]:
        out = task.sample(batch, int(batch["sample"][0]))
        stages = {name: {target.name: made} for name, made in task.stages(batch, out).items()}
        return {"model": out, **stages, **baselines(batch)}

    # Noise follows from the first tile of a batch, so that alone it is always the same.
    size = 1 if task.noise else config.batch_size
    prepared = _prepared(task, batches, tiles, size, progress)
    result: dict[str, Any] = {"split": config.split, "tiles": len(tiles), "output": target.name}
    result["left_out"] = left_out
    result["features"] = _said_of(config)
    collected: _Labels | _Images
    if target.source.kind == "label":
        collected = _Labels(target)
    else:
        collected = _Images(task, _features(config, target, device))
    result |= collected.measure(predict, prepared)
    if config.resamples:
        drawn = [collected.on("model", p) for p in draws(len(tiles), config.resamples)]
        # Six digits are more than a draw is worth, and they are many.
        result["resampled"] = {m: [float(f"{row[m]:.6g}") for row in drawn] for m in drawn[0]}
    _write(config.to or run / f"evaluation-{config.split}.json", result)
    return result


def table(result: Mapping[str, Any], columns: int = 7) -> str:
    """The numbers of ``evaluate`` as aligned text, at most so many columns side by side."""
    rows: Rows = result["rows"]
    names = list(next(iter(rows.values())))
    width = max(len(name) for name in rows)
    left_out = result.get("left_out", 0)
    more = f" ({left_out} more lie on ground that was trained on)" if left_out else ""
    lines = [f"{result['output']} on {result['tiles']} {result['split']} tiles{more}"]
    for start in range(0, len(names), columns):
        here = names[start : start + columns]
        lines.append(" " * width + "".join(f"{name:>12}" for name in here))
        for name, values in rows.items():
            cells = (f"{values[c]:12.4f}" if c in values else f"{'-':>12}" for c in here)
            lines.append(f"{name:<{width}}" + "".join(cells))
    return "\n".join(lines)


def _unseen(
    config: EvaluateConfig, run: Path, known: dict[str, str], store: TileStore, split: Split
) -> tuple[Tiles, int]:
    """The tiles of the asked part that were not trained on, and how many were left out.

    The part itself is enough only if the store holds the tiles that the run began with, and the
    run did not start from the weights of another one.
    """
    tiles: Tiles = getattr(split, config.split)
    if config.split == "train":
        return tiles, 0
    own, inherited = read_trained(run)
    is_same = fingerprint(store, split) == known
    trained = inherited if is_same else [*own, *inherited]
    seen = on_trained_ground(store, tiles, trained)
    unseen = tiles[~seen]
    by_name = recognized_by_name(store, trained)
    note = ""
    if by_name:
        note = f" (without coordinates, {by_name[0]} is taken for the scene of that name)"
    if len(unseen) == 0:
        raise InputError(
            f"{store.path}: all {len(tiles)} {config.split} tiles lie on ground that {run} was "
            f"trained on{note}; tile other ground"
        )
    if not is_same:
        warnings.warn(
            f"{store.path} holds other tiles, or deals them otherwise, than {run} began with: of "
            f"{len(tiles)} {config.split} tiles {int(seen.sum())} lie on ground that it was "
            f"trained on and are left out{note}, {len(unseen)} are measured",
            stacklevel=3,
        )
    elif seen.any():
        warnings.warn(
            f"{run} started from the weights of a run that was trained on the ground of "
            f"{int(seen.sum())} of {len(tiles)} {config.split} tiles; these are left out",
            stacklevel=3,
        )
    return unseen, int(seen.sum())


def _check_sources(store: TileStore, spec: DataSpec) -> None:
    for name in sorted(spec.sources.keys() | store.sources.keys()):
        known, found = spec.sources.get(name), store.sources.get(name)
        if (
            known is None
            or found is None
            or (found.bands, found.dtype, found.factor) != (known.bands, known.dtype, known.factor)
            or not set(found.classes) <= set(known.classes)
        ):
            raise InputError(
                f"{store.path}: source {name!r} is {found}, the run was trained with {known}; "
                "tile these scenes in the same way"
            )


def _compare_pixel_sizes(store: TileStore, spec: DataSpec) -> None:
    here = store.pixel_size()
    trained = spec.pixel_size
    if here and trained and not same_size(here, trained):
        warnings.warn(
            f"{store.path} has pixels of {readable_size(here)} on the ground, the run was trained "
            f"on {readable_size(trained)}: tile scenes of that size to measure what it learned",
            stacklevel=3,
        )


def _baselines(task: Task, batches: Batches, train: Tiles) -> Predict:
    """What any method must beat, chosen by the kinds of input and output."""
    given, target = task.inputs[0], task.outputs[0]
    learn = partial(_prepared, task, batches, train)
    simple: Simple
    if target.source.kind == "label":
        simple = _commonest(target, learn())
    elif given.source.kind == "label":
        simple = _class_median(given, target, learn())
    elif task.hole is not None:
        simple = _fills(given, task.hole)
    elif task.scale > 1:
        simple = _enlargements(task, learn)
    elif any(field.source.kind == "alpha" for field in task.outputs):
        return _hazes(task)
    elif given.channels == target.channels:
        simple = partial(_copy_input, given)
    else:
        return lambda batch: {}
    return lambda batch: {name: {target.name: made} for name, made in simple(batch).items()}


def _copy_input(given: Field, batch: Batch) -> Tensors:
    return {"copy the input": batch[given.name]}


def _commonest(target: Field, train: Iterable[Batch]) -> Simple:
    counts = torch.zeros(target.channels, dtype=torch.int64)
    for batch in train:
        known = (target.enter(batch[target.name]) > 0) & (batch["valid"] > 0)
        counts += known.sum((0, 2, 3)).cpu()
    shape = F.one_hot(counts.argmax(), target.channels).float().view(1, -1, 1, 1)
    return lambda batch: {"commonest class": shape.expand(-1, -1, *batch["valid"].shape[-2:])}


def _class_median(given: Field, target: Field, train: Iterable[Batch]) -> Simple:
    median = ClassMedian(given.source.classes, target.channels)
    for batch in train:
        median.update(batch[given.name], batch[target.name], batch["valid"])
    return lambda batch: {"class median": median.predict(batch[given.name])}


def _fills(given: Field, hole: Field) -> Simple:
    return lambda batch: {
        name: fill(batch[given.name], batch[hole.name], batch["valid"])
        for name, fill in FILLS.items()
    }


def _enlargements(task: Task, train: Callable[[], Iterable[Batch]]) -> Simple:
    """The usual interpolations; of other bands than the output's, their best linear mixture."""
    given, target, factor = task.inputs[0], task.outputs[0], task.scale
    fit: BandFit | None = None
    if given.channels != target.channels:
        fit = BandFit(given.channels, target.channels)
        for batch in train():
            fit.update(batch[given.name], area(batch[target.name], factor), batch["valid"])

    def enlarged(batch: Batch) -> Tensors:
        coarse = batch[given.name] if fit is None else fit.predict(batch[given.name])
        return {mode: enlarge(coarse, factor, mode) for mode in ENLARGEMENTS}

    return enlarged


def _hazes(task: Task) -> Predict:
    given, (target, alpha, *_) = task.inputs[0], task.outputs
    scaling = given.scaling
    if scaling is None:
        return lambda batch: {}
    bands = rgb_bands(given.source.bands, given.channels)

    def predict(batch: Batch) -> dict[str, Tensors]:
        cloudy, valid = batch[given.name], batch["valid"]
        ground, haze = haze_removal(
            cloudy, valid, dark=scaling.dark, gain=scaling.gain, bands=bands
        )
        none = torch.zeros_like(valid)
        return {
            "dark channel": {target.name: ground, alpha.name: haze},
            "copy the input": {target.name: cloudy, alpha.name: none},
        }

    return predict


def _copy(image: Tensor, hole: Tensor, valid: Tensor) -> Tensor:
    """The input as it is: holes hold the middle of the range."""
    return image.masked_fill(hole > 0.5, 0)


FILLS = {
    "copy the input": _copy,
    "mean fill": mean_fill,
    "nearest fill": nearest_fill,
    "harmonic fill": harmonic_fill,
}


def _said_of(config: EvaluateConfig) -> str:
    """The feature network of a result; a file of one's own is known by its digest."""
    said = f"{config.features}, weights {config.weights}"
    if config.features == "none" or config.weights in ("imagenet", "random"):
        return said
    return f"{said}, SHA-256 {weights_digest(Path(config.weights))}"


def _features(config: EvaluateConfig, target: Field, device: torch.device) -> Features | None:
    """Vectors of a network that knows photographs; small tiles are enlarged to what it knows."""
    if config.features == "none":
        return None
    layer = {"efficientnet-lite0": "pooled", "vgg16-bn": "logits", "inception": "2048"}
    network = load_features(config.features, config.weights, (layer[config.features],)).to(device)
    order = rgb_bands(target.source.bands, target.channels)

    def features(image: Tensor, valid: Tensor) -> Tensor:
        seen = (image[:, order] * (valid > 0.5)).clamp(-1, 1)
        with torch.no_grad():
            scale = max(1.0, 224 / min(seen.shape[2:]))
            seen = F.interpolate(seen, scale_factor=scale, mode="bilinear", antialias=True)
            (found,) = network(seen).values()
        return torch.as_tensor(found)

    return features


ENLARGEMENTS = ("bicubic", "bilinear", "nearest")


class _Images:
    """Collects what the metrics need of every method, tile by tile."""

    def __init__(self, task: Task, features: Features | None) -> None:
        self.task, self.target, self.features = task, task.outputs[0], features
        self.alpha = next((f.name for f in task.outputs if f.source.kind == "alpha"), None)
        self.values: dict[str, dict[str, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
        self.tiles: dict[str, list[metrics.Texture]] = defaultdict(list)
        self.textures: dict[str, list[Tensor]] = {}
        self.seams: dict[str, metrics.Seam] = defaultdict(metrics.Seam)
        self.seen: dict[str, list[Tensor]] = defaultdict(list)
        self.energies: dict[str, list[Tensor]] = defaultdict(list)
        self.parts: list[str] = []

    def measure(self, predict: Predict, batches: Iterable[Batch]) -> dict[str, Any]:
        """``{"rows": ..., "intervals": ...}`` as :func:`evaluate` gives them."""
        name = self.target.name
        for batch in batches:
            true = batch[name]
            self._collect(TRUTH, true, batch)
            for method, made in predict(batch).items():
                self._collect(method, made[name].to(true.device).float(), batch)
                if self.alpha is not None:
                    error = metrics.l1(made[self.alpha], batch[self.alpha], batch["valid"])
                    self.values[method]["alpha L1"].append(error)
                if method == "model":
                    for metric, found in self.task.numbers(batch, made).items():
                        self.values[method][metric].append(found)
            imagined = self.task.imagine(batch, int(batch["sample"][0]))
            if imagined is not None:
                self._collect(SAMPLES, imagined.float(), batch)
        for method, tiles in self.tiles.items():
            sums = zip(*(texture.sums for texture in tiles), strict=True)
            self.textures[method] = [torch.stack(part).cpu() for part in sums]
        rows = {name: self._row(name) for name in self.textures if name != TRUTH}
        others = [name for name in rows if name not in ("model", SAMPLES)]
        return {"rows": rows, "intervals": {other: self._intervals(other) for other in others}}

    def _collect(self, name: str, made: Tensor, batch: Batch) -> None:
        true = batch[self.target.name]
        valid = fitted(batch["valid"], true)
        hole = None if self.task.hole is None else batch[self.task.hole.name]
        for tile in range(len(made)):
            one = slice(tile, tile + 1)
            texture = metrics.Texture()
            texture.update(made[one], valid[one], None if hole is None else hole[one])
            self.tiles[name].append(texture)
        if self.features is not None:
            self.seen[name].append(self.features(made, valid).cpu())
        if hole is not None:
            self.seams[name].update(made, hole, valid)
        values, scaling = self.values[name], self.target.scaling
        if self.task.scale > 1:
            energy = metrics.checkerboard(made, valid, self.task.scale)
            self.energies[name].append(energy)
        if name in (TRUTH, SAMPLES):
            return
        parts = self.task.parts(batch)
        self.parts = list(parts)
        for part, mask in parts.items():
            prefix = f"{part} " if part else ""
            values[f"{prefix}L1"].append(metrics.l1(made, true, valid, mask))
            for kind, metric in (("PSNR", metrics.psnr), ("SSIM", metrics.ssim)):
                found = metric(made, true, valid, mask, data_range=DATA_RANGE)
                values[f"{prefix}{kind}"].append(found)
            if made.shape[1] > 1 and scaling is not None:
                angle = metrics.spectral_angle(
                    made, true, valid, mask, dark=scaling.dark, gain=scaling.gain
                )
                values[f"{prefix}SAM"].append(angle)
        given = self.task.inputs[0]
        if self.task.scale > 1 and given.channels == self.target.channels:
            found = metrics.consistency(made, batch[given.name], valid, self.task.scale)
            values["consistency"].append(found)

    def on(self, name: str, tiles: Places) -> dict[str, float]:
        """The numbers of a method on some tiles, each as often as it is named."""
        values = self.values[name].items()
        row = {metric: float(torch.cat(v)[tiles].nanmean()) for metric, v in values}
        row |= {f"{kind} d.": d for kind, d in self._texture(name, tiles).items()}
        if name in self.energies:
            made, true = (torch.cat(self.energies[n])[tiles].nanmean() for n in (name, TRUTH))
            row["checkerboard"] = float(made / true)
        return row

    def _row(self, name: str) -> dict[str, float]:
        row = self.on(name, np.arange(len(self.tiles[name])))
        if name in self.seams:
            row["seam"] = float(self.seams[name].ratio())
        if name in self.seen:
            both = (torch.cat(self.seen[n]).double().numpy() for n in (name, TRUTH))
            row["KID"] = 1000 * kernel_distance(*both, paired=name != SAMPLES)
        return row

    def _texture(self, name: str, tiles: Places) -> dict[str, float]:
        """The texture distances of some tiles from the truth, each as often as it is named."""
        both = []
        for method in (name, TRUTH):
            texture = metrics.Texture()
            texture.sums = [sums[tiles].sum(0) for sums in self.textures[method]]
            both.append(texture)
        return {kind: float(d) for kind, d in both[0].distance(both[1]).items()}

    def _intervals(self, other: str) -> dict[str, list[float]]:
        part = self.parts[0]
        found = {}
        for metric in (f"{part} L1".strip(), f"{part} PSNR".strip()):
            model, theirs = (torch.cat(self.values[n][metric]).cpu() for n in ("model", other))
            if not (model.isinf() | theirs.isinf()).any():  # as the PSNR of equal images is
                found[metric] = list(bootstrap_interval(model.numpy(), other=theirs.numpy()))
        for kind in ("spectrum", "gradient"):

            def gain(tiles: Places, kind: str = kind) -> float:
                return self._texture("model", tiles)[kind] - self._texture(other, tiles)[kind]

            count = len(self.tiles[other])
            found[f"{kind} d."] = list(resampled_interval(gain, count, resamples=RESAMPLES))
        if self.seen:
            sets = (torch.cat(self.seen[n]).double().numpy() for n in ("model", other, TRUTH))
            low, high = kernel_distance_interval(*sets)
            found["KID"] = [1000 * low, 1000 * high]
        return found


class _Labels:
    """Collects the confusion of classes for every method, tile by tile."""

    def __init__(self, target: Field) -> None:
        self.target = target
        self.confusion: dict[str, list[Tensor]] = defaultdict(list)

    def measure(self, predict: Predict, batches: Iterable[Batch]) -> dict[str, Rows]:
        """``{"rows": ...}`` as :func:`evaluate` gives them."""
        n = self.target.channels
        for batch in batches:
            true = self.target.enter(batch[self.target.name])
            known = (true.amax(1) > 0) & (batch["valid"][:, 0] > 0)
            for name, outputs in predict(batch).items():
                made = outputs[self.target.name].argmax(1).to(true.device)
                for pairs, where in zip(true.argmax(1) * n + made, known, strict=True):
                    counts = pairs[where].bincount(minlength=n * n)
                    self.confusion[name].append(counts.cpu().view(n, n))
        return {
            "rows": {name: self.on(name, np.arange(len(c))) for name, c in self.confusion.items()}
        }

    def on(self, name: str, tiles: Places) -> dict[str, float]:
        """The numbers of a method on some tiles, each as often as it is named."""
        both = torch.stack(self.confusion[name])[tiles].sum(0).double()
        right = both.diag()
        union = both.sum(0) + both.sum(1) - right
        iou = (right / union)[union > 0].mean()
        return {"accuracy": float(right.sum() / both.sum()), "mean IoU": float(iou)}


def _prepared(
    task: Task, batches: Batches, tiles: Tiles, size: int = 16, progress: Progress | None = None
) -> Iterator[Batch]:
    for start in range(0, len(tiles), size):
        yield task.prepare(batches.whole(tiles[start : start + size]))
        if progress:
            progress(min(start + size, len(tiles)), len(tiles))


def _some(tiles: Tiles, limit: int | None) -> Tiles:
    """At most so many, spread evenly."""
    count = min(limit or len(tiles), len(tiles))
    return tiles[np.linspace(0, len(tiles) - 1, count).round().astype(np.int64)]


def _write(path: Path, result: dict[str, Any]) -> None:
    try:
        replace_text(path, json.dumps(finite(result), indent=1))
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error}; name another file by --to") from error
