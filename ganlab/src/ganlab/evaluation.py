"""A trained task on tiles that it has not seen, measured beside baselines that need no network.

All image numbers are in network units, where the scaled range of the data is [-1, 1].
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ganlab import metrics
from ganlab.baselines import ClassMedian
from ganlab.config import EvaluateConfig, TrainingConfig, from_dict
from ganlab.data.batches import Batch, Batches, Tiles
from ganlab.data.store import TileStore
from ganlab.errors import InputError
from ganlab.tasks.base import Field, Task
from ganlab.training.runs import load_task, read_config, run_directory

DATA_RANGE = 2.0
FIT_TILES = 512
"""At most so many training tiles are read to fit a baseline."""

Predictor = Callable[[Batch], Tensor]


def evaluate(
    config: EvaluateConfig, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Measure a run and its baselines on one split, and write the numbers as JSON.

    Images get L1, PSNR (dB) and SSIM as means over tiles, and the two texture distances of
    :mod:`ganlab.metrics` between all made and all true tiles together (0 = as rich as the truth).
    Labels get the share of right pixels and the mean intersection over union of the classes.

    Returns:
        ``{"split", "tiles", "output", "rows": {method: {metric: value}}}``.

    Raises:
        InputError: the split is empty, or the tiles do not fit the run.
    """
    run = run_directory(config.run)
    about = read_config(run)
    training = from_dict(TrainingConfig, about["training"])
    task = load_task(config.run, average=config.average, device=config.device)
    store = TileStore.open(config.tiles or run / about["tiles"])
    split = store.split(training.split)
    tiles: Tiles = getattr(split, config.split)
    if len(tiles) == 0:
        raise InputError(f"{store.path}: the {config.split} split is empty; tile more ground")
    if config.limit is not None:
        at = np.linspace(0, len(tiles) - 1, min(config.limit, len(tiles)))
        tiles = tiles[at.round().astype(int)]
    device = next(task.parameters()).device
    batches = Batches(store, tiles, task.spec, batch_size=1, augment=False, device=device)
    target = task.outputs[0]
    methods: dict[str, Predictor] = {"model": lambda batch: task.generate(batch)[target.name]}
    methods |= _baselines(task, batches, split.train)
    rows = (_labels if target.source.kind == "label" else _images)(
        methods, target, batches, config.batch_size, progress
    )
    result = {"split": config.split, "tiles": len(tiles), "output": target.name, "rows": rows}
    path = config.to or run / f"evaluation-{config.split}.json"
    path.write_text(json.dumps(result, indent=1))
    return result


def table(result: Mapping[str, Any]) -> str:
    """The numbers of ``evaluate`` as aligned text."""
    rows: dict[str, dict[str, float]] = result["rows"]
    columns = list(next(iter(rows.values())))
    width = max(len(name) for name in rows)
    lines = [f"{result['output']} on {result['tiles']} {result['split']} tiles"]
    lines.append(" " * width + "".join(f"{name:>12}" for name in columns))
    for name, values in rows.items():
        lines.append(f"{name:<{width}}" + "".join(f"{values[c]:12.4f}" for c in columns))
    return "\n".join(lines)


def _baselines(task: Task, batches: Batches, train: Tiles) -> dict[str, Predictor]:
    """What any method must beat, chosen by the kinds of input and output."""
    given, target = task.inputs[0], task.outputs[0]
    if target.source.kind == "label":
        counts = sum(
            target.enter(batch[target.name]).add(1).mul(batch["valid"]).sum((0, 2, 3))
            for batch in _whole(batches, _some(train), 16)
        )
        common = torch.nn.functional.one_hot(torch.as_tensor(counts).argmax(), target.channels)
        shape = common.float().view(1, -1, 1, 1)
        return {"commonest class": lambda batch: shape.expand(-1, -1, *batch["valid"].shape[-2:])}
    if given.source.kind == "label":
        median = ClassMedian(given.source.classes, target.channels)
        for batch in _whole(batches, _some(train), 16):
            median.update(batch[given.name], batch[target.name], batch["valid"])
        return {"class median": lambda batch: median.predict(batch[given.name])}
    if given.channels == target.channels and task.scale == 1:
        return {"copy the input": lambda batch: batch[given.name]}
    return {}


def _images(
    methods: Mapping[str, Predictor],
    target: Field,
    batches: Batches,
    size: int,
    progress: Callable[[int, int], None] | None,
) -> dict[str, dict[str, float]]:
    sums: dict[str, dict[str, Tensor]] = {name: {} for name in methods}
    textures = {name: metrics.Texture() for name in methods}
    truth, done, total = metrics.Texture(), 0, len(batches.tiles)
    for batch in _whole(batches, batches.tiles, size):
        valid, true = batch["valid"], batch[target.name]
        truth.update(true, valid)
        for name, predict in methods.items():
            made = predict(batch).float()
            values = {
                "L1": metrics.l1(made, true, valid),
                "PSNR": metrics.psnr(made, true, valid, data_range=DATA_RANGE),
                "SSIM": metrics.ssim(made, true, valid, data_range=DATA_RANGE),
            }
            for metric, value in values.items():
                sums[name].setdefault(metric, torch.zeros(2, device=value.device))
                sums[name][metric] += torch.stack([value.nansum(), (~value.isnan()).sum()])
            textures[name].update(made, valid)
        done += len(valid)
        if progress:
            progress(done, total)
    rows = {}
    for name in methods:
        rows[name] = {metric: float(s / n) for metric, (s, n) in sums[name].items()}
        apart = textures[name].distance(truth)
        rows[name] |= {f"{kind} d.": float(value) for kind, value in apart.items()}
    return rows


def _labels(
    methods: Mapping[str, Predictor],
    target: Field,
    batches: Batches,
    size: int,
    progress: Callable[[int, int], None] | None,
) -> dict[str, dict[str, float]]:
    n = target.channels
    confusion = {name: torch.zeros(n * n, dtype=torch.int64) for name in methods}
    done, total = 0, len(batches.tiles)
    for batch in _whole(batches, batches.tiles, size):
        true = target.enter(batch[target.name])
        known = (true.amax(1) > 0) & (batch["valid"][:, 0] > 0)
        for name, predict in methods.items():
            pairs = true.argmax(1) * n + predict(batch).argmax(1)
            confusion[name] += pairs[known].bincount(minlength=n * n).cpu()
        done += len(true)
        if progress:
            progress(done, total)
    rows = {}
    for name, counts in confusion.items():
        both = counts.view(n, n).double()
        right = both.diag()
        union = both.sum(0) + both.sum(1) - right
        rows[name] = {
            "accuracy": float(right.sum() / both.sum()),
            "mean IoU": float((right / union)[union > 0].mean()),
        }
    return rows


def _whole(batches: Batches, tiles: Tiles, size: int) -> Any:
    with torch.inference_mode():
        for start in range(0, len(tiles), size):
            yield batches.whole(tiles[start : start + size])


def _some(tiles: Tiles) -> Tiles:
    at = np.linspace(0, len(tiles) - 1, min(FIT_TILES, len(tiles)))
    return tiles[at.round().astype(int)]
