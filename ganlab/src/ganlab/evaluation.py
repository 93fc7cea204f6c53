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
from ganlab.baselines import ClassMedian
from ganlab.config import EvaluateConfig, TrainingConfig, from_dict
from ganlab.data.batches import Batch, Batches, DataSpec, Tiles
from ganlab.data.store import TileStore
from ganlab.errors import InputError
from ganlab.tasks.base import Field, Task
from ganlab.training.records import replace_text
from ganlab.training.runs import load_task, read_config, run_directory

DATA_RANGE = 2.0
FIT_TILES = 512
"""At most so many training tiles are read to fit a baseline."""

Predictors = dict[str, Callable[[Batch], Tensor]]
Progress = Callable[[int, int], None]
Rows = dict[str, dict[str, float]]


def evaluate(config: EvaluateConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Measure a run and its baselines on one split, and write the numbers as JSON.

    Images get L1, PSNR (dB) and SSIM as means over tiles, and the two texture distances of
    :mod:`ganlab.metrics` between all made and all true tiles together (0 = as rich as the truth).
    Labels get the share of right pixels and the mean intersection over union of the classes.

    Returns:
        ``{"split", "tiles", "output", "rows": {method: {metric: value}}}``.

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

    def model(batch: Batch) -> Tensor:
        return task.sample(batch, int(batch["sample"][0]))[target.name]

    methods = {"model": model, **_baselines(task, batches, _some(split.train, FIT_TILES))}
    measure = _labels if target.source.kind == "label" else _images
    # Noise follows from the first tile of a batch, so that alone it is always the same.
    size = 1 if task.noise else config.batch_size
    rows = measure(methods, target, _prepared(task, batches, tiles, size, progress))
    result = {"split": config.split, "tiles": len(tiles), "output": target.name, "rows": rows}
    _write(config.to or run / f"evaluation-{config.split}.json", result)
    return result


def table(result: Mapping[str, Any]) -> str:
    """The numbers of ``evaluate`` as aligned text."""
    rows: Rows = result["rows"]
    columns = list(next(iter(rows.values())))
    width = max(len(name) for name in rows)
    lines = [f"{result['output']} on {result['tiles']} {result['split']} tiles"]
    lines.append(" " * width + "".join(f"{name:>12}" for name in columns))
    for name, values in rows.items():
        lines.append(f"{name:<{width}}" + "".join(f"{values[c]:12.4f}" for c in columns))
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


def _baselines(task: Task, batches: Batches, train: Tiles) -> Predictors:
    """What any method must beat, chosen by the kinds of input and output."""
    given, target = task.inputs[0], task.outputs[0]
    if target.source.kind == "label":
        counts = torch.zeros(target.channels, dtype=torch.int64)
        for batch in _prepared(task, batches, train):
            known = (target.enter(batch[target.name]) > 0) & (batch["valid"] > 0)
            counts += known.sum((0, 2, 3)).cpu()
        shape = F.one_hot(counts.argmax(), target.channels).float().view(1, -1, 1, 1)
        return {"commonest class": lambda batch: shape.expand(-1, -1, *batch["valid"].shape[-2:])}
    if given.source.kind == "label":
        median = ClassMedian(given.source.classes, target.channels)
        for batch in _prepared(task, batches, train):
            median.update(batch[given.name], batch[target.name], batch["valid"])
        return {"class median": lambda batch: median.predict(batch[given.name])}
    if given.channels == target.channels and task.scale == 1:
        return {"copy the input": lambda batch: batch[given.name]}
    return {}


def _images(methods: Predictors, target: Field, batches: Iterable[Batch]) -> Rows:
    seen: dict[str, dict[str, list[Tensor]]] = {name: defaultdict(list) for name in methods}
    truth, textures = metrics.Texture(), {name: metrics.Texture() for name in methods}
    for batch in batches:
        valid, true = batch["valid"], batch[target.name]
        truth.update(true, valid)
        for name, predict in methods.items():
            made = predict(batch).float()
            values = seen[name]
            values["L1"].append(metrics.l1(made, true, valid))
            values["PSNR"].append(metrics.psnr(made, true, valid, data_range=DATA_RANGE))
            values["SSIM"].append(metrics.ssim(made, true, valid, data_range=DATA_RANGE))
            textures[name].update(made, valid)
    rows = {}
    for name, texture in textures.items():
        rows[name] = {metric: float(torch.cat(v).nanmean()) for metric, v in seen[name].items()}
        rows[name] |= {f"{kind} d.": float(d) for kind, d in texture.distance(truth).items()}
    return rows


def _labels(methods: Predictors, target: Field, batches: Iterable[Batch]) -> Rows:
    n = target.channels
    confusion = {name: torch.zeros(n * n, dtype=torch.int64) for name in methods}
    for batch in batches:
        true = target.enter(batch[target.name])
        known = (true.amax(1) > 0) & (batch["valid"][:, 0] > 0)
        for name, predict in methods.items():
            pairs = true.argmax(1) * n + predict(batch).argmax(1).to(true.device)
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
    # JSON has no NaN and no infinity, which the PSNR of equal images is.
    rows = {
        name: {metric: value if math.isfinite(value) else None for metric, value in row.items()}
        for name, row in result["rows"].items()
    }
    try:
        replace_text(path, json.dumps(result | {"rows": rows}, indent=1))
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error}; name another file by --to") from error
