"""A trained task on tiles that it has not seen, measured beside baselines that need no network.

All image numbers are in network units, where the scaled range of the data is [-1, 1].
"""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ganlab import metrics
from ganlab.baselines import ClassMedian, harmonic_fill, mean_fill, nearest_fill
from ganlab.config import EvaluateConfig, TrainingConfig, from_dict
from ganlab.data.batches import Batch, Batches, DataSpec, Tiles
from ganlab.data.store import TileStore, rgb_bands
from ganlab.distributions import bootstrap_interval, kernel_distance, kernel_distance_interval
from ganlab.errors import InputError
from ganlab.networks.features import load_features
from ganlab.tasks.base import Field, Task
from ganlab.training.records import replace_text
from ganlab.training.runs import load_task, read_config, run_directory

DATA_RANGE = 2.0
TRUTH = "truth"
FIT_TILES = 512
"""At most so many training tiles are read to fit a baseline."""

Predict = Callable[[Batch], dict[str, Tensor]]
"""From a batch to what each method makes of it, ``(B, C, H, W)``; the model stands first."""
Progress = Callable[[int, int], None]
Rows = dict[str, dict[str, float]]
Features = Callable[[Tensor, Tensor], Tensor]
"""From images and valid masks to feature vectors ``(B, d)``."""


def evaluate(config: EvaluateConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Measure a run and its baselines on one split, and write the numbers as JSON.

    Images get L1, PSNR (dB), SSIM and the spectral angle (rad) as means over tiles, and the two
    texture distances of :mod:`ganlab.metrics` between all made and all true tiles together (0 = as
    rich as the truth), with the kernel distance (KID, times 1000) of a feature network. Where
    holes were filled, L1 and its like are taken over the hole, over the known pixels and over the
    whole, texture gradients over the hole, and the seam ratio is added. Labels get the share of
    right pixels and the mean intersection over union of the classes.

    Returns:
        ``{"split", "tiles", "output", "features", "rows": {method: {metric: value}},
        "intervals": {method: {metric: [low, high]}}}``; the intervals are those of 95 % for model
        minus method, tile by tile, of the first column and of KID: both ends below 0 mean that
        the model is better.

    Raises:
        InputError: the split is empty, the tiles do not fit the run, or the file cannot be written.
    """
    if config.batch_size < 1 or (config.limit is not None and config.limit < 1):
        found = f"batch size {config.batch_size} and limit {config.limit}"
        raise InputError(f"{found}: expected at least 1")
    run = run_directory(config.run)
    about = read_config(run)
    task = load_task(config.run, average=config.average, device=config.device)
    store = TileStore.open(config.tiles or run / about["tiles"])
    split = store.split(from_dict(TrainingConfig, about["training"]).split)
    for share in (config.split, "train"):
        if len(getattr(split, share)) == 0:
            raise InputError(
                f"{store.path}: the {share} split is empty; take another split, or tile more ground"
            )
    _check_sources(store, task.spec)
    tiles = _some(getattr(split, config.split), config.limit)
    device = next(task.parameters()).device
    batches = Batches(store, tiles, task.spec, batch_size=1, augment=False, device=device)
    target = task.outputs[0]

    baselines = _baselines(task, batches, _some(split.train, FIT_TILES))

    def predict(batch: Batch) -> dict[str, Tensor]:
        out = task.sample(batch, int(batch["sample"][0]))
        return {"model": out[target.name], **task.stages(batch, out), **baselines(batch)}

    # Noise follows from the first tile of a batch, so that alone it is always the same.
    size = 1 if task.noise else config.batch_size
    prepared = _prepared(task, batches, tiles, size, progress)
    result: dict[str, Any] = {"split": config.split, "tiles": len(tiles), "output": target.name}
    result["features"] = f"{config.features}, weights {config.weights}"
    if target.source.kind == "label":
        result["rows"] = _labels(predict, target, prepared)
    else:
        result |= _Images(task, _features(config, target, device)).measure(predict, prepared)
    _write(config.to or run / f"evaluation-{config.split}.json", result)
    return result


def table(result: Mapping[str, Any], columns: int = 7) -> str:
    """The numbers of ``evaluate`` as aligned text, at most so many columns side by side."""
    rows: Rows = result["rows"]
    names = list(next(iter(rows.values())))
    width = max(len(name) for name in rows)
    lines = [f"{result['output']} on {result['tiles']} {result['split']} tiles"]
    for start in range(0, len(names), columns):
        here = names[start : start + columns]
        lines.append(" " * width + "".join(f"{name:>12}" for name in here))
        for name, values in rows.items():
            lines.append(f"{name:<{width}}" + "".join(f"{values[c]:12.4f}" for c in here))
    return "\n".join(lines)


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


def _baselines(task: Task, batches: Batches, train: Tiles) -> Predict:
    """What any method must beat, chosen by the kinds of input and output."""
    given, target = task.inputs[0], task.outputs[0]
    if target.source.kind == "label":
        counts = torch.zeros(target.channels, dtype=torch.int64)
        for batch in _prepared(task, batches, train):
            known = (target.enter(batch[target.name]) > 0) & (batch["valid"] > 0)
            counts += known.sum((0, 2, 3)).cpu()
        shape = F.one_hot(counts.argmax(), target.channels).float().view(1, -1, 1, 1)
        return lambda batch: {"commonest class": shape.expand(-1, -1, *batch["valid"].shape[-2:])}
    if given.source.kind == "label":
        median = ClassMedian(given.source.classes, target.channels)
        for batch in _prepared(task, batches, train):
            median.update(batch[given.name], batch[target.name], batch["valid"])
        return lambda batch: {"class median": median.predict(batch[given.name])}
    if task.hole is not None:
        hole = task.hole.name
        return lambda batch: {
            name: fill(batch[given.name], batch[hole], batch["valid"])
            for name, fill in FILLS.items()
        }
    if given.channels == target.channels and task.scale == 1:
        return lambda batch: {"copy the input": batch[given.name]}
    return lambda batch: {}


def _copy(image: Tensor, hole: Tensor, valid: Tensor) -> Tensor:
    """The input as it is: holes hold the middle of the range."""
    return image.masked_fill(hole > 0.5, 0)


FILLS = {
    "copy the input": _copy,
    "mean fill": mean_fill,
    "nearest fill": nearest_fill,
    "harmonic fill": harmonic_fill,
}


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


class _Images:
    """Collects what the metrics need of every method, tile by tile."""

    def __init__(self, task: Task, features: Features | None) -> None:
        self.target, self.hole, self.features = task.outputs[0], task.hole, features
        self.values: dict[str, dict[str, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
        self.textures: dict[str, metrics.Texture] = defaultdict(metrics.Texture)
        self.seams: dict[str, metrics.Seam] = defaultdict(metrics.Seam)
        self.seen: dict[str, list[Tensor]] = defaultdict(list)

    def measure(self, predict: Predict, batches: Iterable[Batch]) -> dict[str, Any]:
        """``{"rows": ..., "intervals": ...}`` as :func:`evaluate` gives them."""
        for batch in batches:
            valid, true = batch["valid"], batch[self.target.name]
            hole = None if self.hole is None else batch[self.hole.name]
            self._collect(TRUTH, true, true, valid, hole)
            for name, made in predict(batch).items():
                self._collect(name, made.to(true.device).float(), true, valid, hole)
        methods = [name for name in self.textures if name != TRUTH]
        rows = {name: self._row(name) for name in methods}
        others = methods[1:]
        return {"rows": rows, "intervals": {other: self._intervals(other) for other in others}}

    def _collect(
        self, name: str, made: Tensor, true: Tensor, valid: Tensor, hole: Tensor | None
    ) -> None:
        self.textures[name].update(made, valid, hole)
        if self.features is not None:
            self.seen[name].append(self.features(made, valid).cpu())
        if hole is not None:
            self.seams[name].update(made, hole, valid)
        if name == TRUTH:
            return
        parts = {"": None} if hole is None else {"hole ": hole, "valid ": 1 - hole, "": None}
        values, scaling = self.values[name], self.target.scaling
        for part, mask in parts.items():
            values[f"{part}L1"].append(metrics.l1(made, true, valid, mask))
            for kind, metric in (("PSNR", metrics.psnr), ("SSIM", metrics.ssim)):
                found = metric(made, true, valid, mask, data_range=DATA_RANGE)
                values[f"{part}{kind}"].append(found)
            if made.shape[1] > 1 and scaling is not None:
                angle = metrics.spectral_angle(
                    made, true, valid, mask, dark=scaling.dark, gain=scaling.gain
                )
                values[f"{part}SAM"].append(angle)

    def _row(self, name: str) -> dict[str, float]:
        row = {metric: float(torch.cat(v).nanmean()) for metric, v in self.values[name].items()}
        distances = self.textures[name].distance(self.textures[TRUTH])
        row |= {f"{kind} d.": float(d) for kind, d in distances.items()}
        if name in self.seams:
            row["seam"] = float(self.seams[name].ratio())
        if name in self.seen:
            made, true = (torch.cat(self.seen[n]).double().numpy() for n in (name, TRUTH))
            row["KID"] = 1000 * kernel_distance(made, true, paired=True)
        return row

    def _intervals(self, other: str) -> dict[str, list[float]]:
        metric = next(iter(self.values["model"]))
        model, theirs = (torch.cat(self.values[n][metric]).cpu().numpy() for n in ("model", other))
        found = {metric: list(bootstrap_interval(model, other=theirs))}
        if self.seen:
            sets = (torch.cat(self.seen[n]).double().numpy() for n in ("model", other, TRUTH))
            low, high = kernel_distance_interval(*sets)
            found["KID"] = [1000 * low, 1000 * high]
        return found


def _labels(predict: Predict, target: Field, batches: Iterable[Batch]) -> Rows:
    n = target.channels
    confusion: dict[str, Tensor] = defaultdict(lambda: torch.zeros(n * n, dtype=torch.int64))
    for batch in batches:
        true = target.enter(batch[target.name])
        known = (true.amax(1) > 0) & (batch["valid"][:, 0] > 0)
        for name, made in predict(batch).items():
            pairs = true.argmax(1) * n + made.argmax(1).to(true.device)
            confusion[name] += pairs[known].bincount(minlength=n * n).cpu()
    rows = {}
    for name, counts in confusion.items():
        both = counts.view(n, n).double()
        right = both.diag()
        union = both.sum(0) + both.sum(1) - right
        iou = (right / union)[union > 0].mean()
        rows[name] = {"accuracy": float(right.sum() / both.sum()), "mean IoU": float(iou)}
    return rows


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
        replace_text(path, json.dumps(_finite(result), indent=1))
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error}; name another file by --to") from error


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity, which the PSNR of equal images is: None in their place."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
