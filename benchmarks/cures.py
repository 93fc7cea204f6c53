"""Cure the failures that ``failures.py`` provokes: the same training again, with a setting changed.

    python benchmarks/cures.py             make what is missing
    python benchmarks/cures.py --status    print what is named before and after

A result is one JSON file, ``book/results/12/cures/pix2pix-<kind>.json``, in the form of those of
``failures.py`` and with the same seed, and a picture of four tiles that were not trained on: rows
are labels, truth, the failure and the cure. What was changed is the difference of the two
provenances. A fault in the task is cured by taking it out.
"""

import argparse
import json
import shutil
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from evidence import provenance, write
from failures import KINDS, TRAINING, WORK, Run, named, provoke, stream, tiles
from failures import RESULTS as FAILURES
from PIL import Image

from ganlab.config import BalanceConfig, StabilizersConfig, to_dict
from ganlab.data.batches import Batches, describe
from ganlab.data.store import TileStore
from ganlab.training import load_task, train
from ganlab.training.records import panel, picture, read_metrics

RESULTS = FAILURES.parent / "cures"
TASK, SEED = "pix2pix", 0


def cure(kind: str) -> tuple[Any, Any]:
    """The settings of a failure with what is changed against it."""
    task, training, _ = provoke(kind, TASK)
    usual = {"generator_lr": 2e-4, "discriminator_lr": 2e-4}
    changed: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "non_finite": ({}, {"generator_lr": 2e-4}),
        "discriminator_overpowers": ({}, usual),
        "generator_overpowers": ({}, usual),
        "vanishing_gradient": ({}, {"generator_lr": 2e-4}),
        "exploding_gradient": (
            {},
            {
                "generator_lr": 2e-4,
                "stabilizers": StabilizersConfig(penalties=("wgan_gp",), penalty_weight=10.0),
            },
        ),
        "mode_collapse": ({}, {}),
        # Usual rates and betas alone still swing.
        "oscillation": (
            {},
            {
                **usual,
                "betas": (0.5, 0.999),
                "stabilizers": StabilizersConfig(penalties=("r1",), penalty_weight=10.0),
            },
        ),
        "flat_reconstruction": ({}, {"generator_lr": 1e-3}),
        "blank_output": ({}, {}),
        "checkerboard": ({"generator": replace(task.generator, up="resize")}, {}),
        "over_fitting": ({}, {"split": TRAINING.split}),
        "weights_out_of_proportion": ({}, {"balance": BalanceConfig(kind="adaptive")}),
    }
    of_task, of_training = changed[kind]
    return replace(task, **of_task), replace(training, seed=SEED, **of_training)


def path(kind: str) -> Path:
    return RESULTS / f"{TASK}-{kind}.json"


def make(kind: str) -> None:
    """Train the failure for its picture, then the cure for its lines and its picture."""
    begin, failed, cured = time.process_time(), WORK / f"failed-{kind}", WORK / f"cured-{kind}"
    _, failure = stream(Run(TASK, kind, SEED), failed)
    task, training = cure(kind)
    shutil.rmtree(cured, ignore_errors=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(task, tiles(), cured, training)
    lines = read_metrics(cured)
    result = {
        "experiment": "12",
        "data": "toytown",
        "setting": f"{TASK}-{kind}-cured",
        "seed": SEED,
        "lines": [{k: float(f"{v:.4g}") for k, v in line.items()} for line in lines],
        "failure": None,
        "provenance": {
            "task": to_dict(task),
            "training": to_dict(training),
            "fault": None,
            **provenance(time.process_time() - begin),
        },
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    runs = [] if failure else [failed]
    Image.fromarray(drawn(kind, [*runs, cured])).save(path(kind).with_suffix(".png"))
    write(path(kind), result, indent=None)
    for folder in (failed, cured):
        shutil.rmtree(folder)


@torch.no_grad()
def drawn(kind: str, runs: list[Path]) -> Any:
    """Labels, truth and what each run makes of four tiles, row by row."""
    fault, store = provoke(kind, TASK)[2], TileStore.open(tiles())
    split = store.split(TRAINING.split)
    spec = describe(store, split.train, TRAINING.scaling)
    # Of tiles that are one class, nothing can be seen.
    edges = np.abs(np.diff(store.read("label", split.validation).astype(int))).clip(max=1)
    shown = split.validation[np.argsort(-edges.sum((1, 2, 3)), kind="stable")[:4]]
    four = Batches(store, split.validation, spec, batch_size=4).whole(shown)
    rows: list[Any] = []
    for run in runs:
        task = load_task(run, device="cpu")
        if fault and run.name.startswith("failed"):
            fault(task)
        batch = task.prepare(four)
        if not rows:
            given, true = task.inputs[0], task.outputs[0]
            rows += [picture(x, x.enter(batch[x.name])) for x in (given, true)]
        rows.append(picture(task.outputs[0], task.sample(batch, 0)[task.outputs[0].name]))
    return panel([list(row) for row in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--status", action="store_true", help="list, make nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for kind in KINDS[TASK]:
        if not path(kind).exists() and not options.status:
            make(kind)
        before, after = Run(TASK, kind, SEED).path, path(kind)
        seen = [
            named(json.loads(p.read_text())) if p.exists() else "missing" for p in (before, after)
        ]
        print(f"{kind}: {seen[0]} -> {seen[1]}", flush=True)


if __name__ == "__main__":
    main()
