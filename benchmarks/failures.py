"""Provoke every failure that the monitor names, and keep healthy runs beside them.

    python benchmarks/failures.py             make what is missing
    python benchmarks/failures.py --status    print what is named in each run, and the matrix
    python benchmarks/failures.py --only vae  only runs whose name contains a word

A result is one JSON file, ``book/results/12/failures/<task>-<kind>-seed<n>.json``, with the lines
of metrics from which the monitor judges, so that its verdict can be made again. Thresholds were
fixed on the tasks of ``FIXED_ON``, seeds 0 to 2. The other tasks are the test, seeds 3 to 5 (6 to 8
for what is in ``AGAIN``): which settings provoke a failure in them was tried out on seeds 0 to 2,
which are not kept.

Every run is a real training, some seconds long, on tiles of 32 x 32 pixels of the invented town.
What goes wrong is a setting, except in three kinds where it is a fault in the task: a generator
that sees the first sample of a batch for all of them (mode_collapse, where there is no code that
can cost too much), a last layer that stays at zero (blank_output), and pairs that do not belong
together (flat_reconstruction, where the task begins from an enlargement of its input).
"""

import argparse
import dataclasses
import json
import shutil
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from evidence import provenance, write

from ganlab.config import (
    CloudLayersConfig,
    EncoderDecoderConfig,
    HoleJudgeConfig,
    InpaintingConfig,
    PatchGANConfig,
    Pix2PixConfig,
    SplitConfig,
    SuperResolutionConfig,
    TilingConfig,
    ToytownConfig,
    TrainingConfig,
    TwoStageConfig,
    UNetConfig,
    VAEConfig,
    VAENetworkConfig,
    to_dict,
)
from ganlab.data import tiling, toytown
from ganlab.errors import TrainingFailed
from ganlab.tasks import TASKS
from ganlab.tasks.base import Task
from ganlab.training import train
from ganlab.training.monitor import diagnose
from ganlab.training.records import read_metrics

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "book" / "results" / "12" / "failures"
WORK = ROOT / "runs" / "failures"
FIXED_ON = ("pix2pix", "super_resolution")
HEALTHY = "healthy"

JUDGE = PatchGANConfig(width=8, layers=2)
FILL = EncoderDecoderConfig(width=8, dilations=(2, 4))
HOLES: dict[str, Any] = {
    "generator": FILL,
    "discriminator": HoleJudgeConfig(width=8, layers=2, local="none"),
}
SMALL: dict[str, Any] = {
    "pix2pix": Pix2PixConfig(generator=UNetConfig(width=8, depth=4), discriminator=JUDGE),
    "super_resolution": SuperResolutionConfig(
        generator=UNetConfig(width=8, depth=3, up="resize", dropout=0.0), discriminator=JUDGE
    ),
    "cloud_layers": CloudLayersConfig(
        generator=UNetConfig(width=8, depth=4, up="resize", dropout=0.0), discriminator=JUDGE
    ),
    "vae": VAEConfig(generator=VAENetworkConfig(width=8, depth=3)),
    "inpainting": InpaintingConfig(**HOLES),
    "two_stage": TwoStageConfig(**HOLES, refinement=FILL),
}
TRAINING = TrainingConfig(
    steps=300,
    batch_size=4,
    log_every=50,
    watch_every=50,
    sample_every=0,
    gradients_every=10,
    checkpoint_every=10_000,
    keep=1,
    augment=False,
    ema=0.0,
    tensorboard=False,
    split=SplitConfig(block=128),
    device="cpu",
)
SHORT = replace(TRAINING, steps=100, log_every=10, watch_every=10)

Fault = Callable[[Task], None] | None
Settings = tuple[Any, TrainingConfig, Fault]
TERMS = ("reconstruction", "hole", "valid", "ground", "alpha")


def game(task: Any, share: float = 0.0, kind: str | None = None) -> Any:
    """The adversarial term, beside this share of the others."""
    weights = {f"{term}_weight": getattr(task, f"{term}_weight", None) for term in TERMS}
    weights = {name: share * weight for name, weight in weights.items() if weight is not None}
    return replace(task, adversarial_weight=1.0, adversarial=kind or task.adversarial, **weights)


def bare(task: Any) -> Any:
    """Nothing is added to an input that is a fair answer already."""
    return replace(task, residual=False) if hasattr(task, "residual") else task


def seen(task: Any) -> Any:
    """Covered again by the same clouds, made and true ground can hardly be told apart."""
    return replace(task, compare="bare") if hasattr(task, "compare") else task


def plain(task: Any) -> Any:
    """A discriminator that no norm holds."""
    return replace(task, discriminator=replace(task.discriminator, norm="none"))


def unmoved(task: Any) -> Any:
    """The same answer for the same input."""
    return replace(task, noise=False) if hasattr(task, "noise") else task


def blind(task: Task) -> None:
    task.generator.register_forward_pre_hook(
        lambda _, given: tuple(x if x is None else x[:1].expand_as(x) for x in given)
    )


def mute(task: Task) -> None:
    last = task.last_layer
    if last is None:
        raise TypeError("this task has no last layer")
    last.data.zero_()
    last.register_hook(torch.zeros_like)  # type: ignore[no-untyped-call]


def mismatch(task: Task) -> None:
    name, prepare = task.outputs[0].name, task.prepare

    def rolled(batch: Any) -> Any:
        batch = prepare(batch)
        return batch | {name: batch[name].roll(1, 0)}

    task.prepare = rolled  # type: ignore[method-assign]


def checkered(task: Any) -> Any:
    if hasattr(task, "enlarge"):
        return replace(task, enlarge="transposed")
    return replace(task, generator=replace(task.generator, up="transposed"))


FEW = SplitConfig(block=32, validation=0.4, test=0.58)


def provoke(kind: str, name: str) -> Settings:
    """Settings under which a kind is to be expected."""
    task = seen(SMALL[name]) if kind in GAMES else SMALL[name]
    decided = replace(SHORT, steps=400)
    alone = replace(task, adversarial_weight=0.0) if hasattr(task, "adversarial_weight") else task
    return {
        HEALTHY: lambda: (task, TRAINING, None),
        "non_finite": lambda: (task, replace(SHORT, generator_lr=1e30), None),
        "discriminator_overpowers": lambda: (
            bare(game(task, 0.01)),
            replace(decided, discriminator_lr=1e-3, generator_lr=1e-6),
            None,
        ),
        "generator_overpowers": lambda: (
            game(task),
            replace(decided, discriminator_lr=1e-7, generator_lr=1e-3),
            None,
        ),
        "vanishing_gradient": lambda: (
            bare(task),
            # Ground over clouds has no end of its range; alpha has, further out.
            replace(SHORT, generator_lr=5.0 if name == "cloud_layers" else 0.2),
            None,
        ),
        "exploding_gradient": lambda: (
            plain(game(task, 0.0, "wasserstein")),
            replace(SHORT, steps=200, discriminator_lr=5e-3, generator_lr=1e-6),
            None,
        ),
        "mode_collapse": lambda: (
            (unmoved(bare(game(task))), SHORT, blind)
            if alone is not task
            else (replace(task, beta=1e3), SHORT, None)
        ),
        "oscillation": lambda: (
            game(task, 0.0, "vanilla"),
            replace(SHORT, steps=300, discriminator_lr=1e-3, generator_lr=1e-3, betas=(0.9, 0.99)),
            None,
        ),
        "flat_reconstruction": lambda: (
            task if name == "super_resolution" else bare(task),
            replace(SHORT, generator_lr=1e-7),
            mismatch if name == "super_resolution" else None,
        ),
        "blank_output": lambda: (bare(task), SHORT, mute),
        "checkerboard": lambda: (
            bare(checkered(game(task))),
            replace(SHORT, generator_lr=1e-3),
            None,
        ),
        "over_fitting": lambda: (
            alone,
            replace(SHORT, steps=250, generator_lr=3e-3, split=FEW),
            None,
        ),
        "weights_out_of_proportion": lambda: (game(task, 3e3), SHORT, None),
    }[kind]()


GAMES = (
    "discriminator_overpowers",
    "generator_overpowers",
    "vanishing_gradient",
    "exploding_gradient",
    "oscillation",
    "weights_out_of_proportion",
)
ALWAYS = ("non_finite", "mode_collapse", "blank_output", "over_fitting")
KINDS: dict[str, tuple[str, ...]] = {
    # Clouds and holes are drawn anew for every batch: nothing is learned by heart so soon.
    "cloud_layers": (*ALWAYS[:3], *GAMES, "flat_reconstruction", "checkerboard"),
    "vae": ALWAYS,  # no opponent, and one term that reaches the last layer
    "super_resolution": (*ALWAYS, *GAMES, "flat_reconstruction", "checkerboard"),
    "pix2pix": (*ALWAYS, *GAMES, "flat_reconstruction", "checkerboard"),
    # No up-sampling to choose: no checkerboard.
    "inpainting": (*ALWAYS[:3], *GAMES, "flat_reconstruction"),
    "two_stage": (*ALWAYS[:3], *GAMES, "flat_reconstruction"),
}
AGAIN = {("cloud_layers", "vanishing_gradient")}
"""Provocations that were replaced after their first scoring, and have fresh seeds: at the rate 0.2
alpha's gradient had not vanished with seed 3."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One training: a task, what is provoked, a seed."""

    task: str
    kind: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.task}-{self.kind}-seed{self.seed}"

    @property
    def path(self) -> Path:
        return RESULTS / f"{self.name}.json"


def all_runs() -> Iterator[Run]:
    """Every failure and a healthy run of every task, over three seeds."""
    for task, kinds in KINDS.items():
        for kind in (*kinds, HEALTHY):
            first = 0 if task in FIXED_ON else 6 if (task, kind) in AGAIN else 3
            yield from (Run(task, kind, seed) for seed in range(first, first + 3))


def tiles() -> Path:
    """A store of 256 tiles, made when first asked for."""
    store = WORK / "tiles"
    if not store.exists():
        pairs = toytown.write(ToytownConfig(to=WORK / "scenes", scenes=1, size=1024))
        images, labels = zip(*([str(image), str(label)] for image, label in pairs), strict=True)
        tiling.tile(TilingConfig(images=images, labels=labels, to=store, size=32, scale=0.5))
    return store


def stream(run: Run, folder: Path, **changes: Any) -> tuple[list[Any], Any]:
    """Train, and give what the monitor sees: lines of metrics, and the failure if there is one."""
    task, training, fault = provoke(run.kind, run.task)
    usual = TASKS[run.task]

    class Faulty(usual):  # type: ignore[misc, valid-type]
        def __init__(self, config: Any, spec: Any) -> None:
            super().__init__(config, spec)
            fault(self)

    TASKS[run.task] = Faulty if fault else usual
    shutil.rmtree(folder, ignore_errors=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            train(task, tiles(), folder, replace(training, seed=run.seed, **changes))
    except TrainingFailed:
        if run.kind != "non_finite":
            raise
    finally:
        TASKS[run.task] = usual
    failure = folder / "failure.json"
    return read_metrics(folder), json.loads(failure.read_text()) if failure.exists() else None


def make(run: Run) -> dict[str, Any]:
    """Train one run and store what the monitor saw."""
    begin = time.process_time()
    lines, failure = stream(run, WORK / run.name)
    task, training, fault = provoke(run.kind, run.task)
    if failure:
        failure = {key: failure[key] for key in ("step", "place")}
    result = {
        "experiment": "12",
        "data": "toytown",
        "setting": f"{run.task}-{run.kind}",
        "seed": run.seed,
        "lines": [{k: float(f"{v:.4g}") for k, v in line.items()} for line in lines],
        "failure": failure,
        "provenance": {
            "task": to_dict(task),
            "training": to_dict(replace(training, seed=run.seed)),
            "fault": fault.__name__ if fault else None,
            **provenance(time.process_time() - begin),
        },
    }
    write(run.path, result, indent=None)
    shutil.rmtree(WORK / run.name)
    return result


def named(result: dict[str, Any]) -> list[str]:
    """The kinds that today's monitor names in a stored run."""
    return [finding.kind for finding in diagnose(result["lines"], result["failure"])]


def confusion(tasks: tuple[str, ...]) -> dict[str, Counter[str]]:
    """How often each kind was named where one was provoked; ``runs`` is how often that was."""
    matrix: dict[str, Counter[str]] = {}
    for run in all_runs():
        if run.task in tasks and run.path.exists():
            row = matrix.setdefault(run.kind, Counter())
            row.update(["runs", *named(json.loads(run.path.read_text()))])
    return matrix


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--status", action="store_true", help="list, make nothing")
    parser.add_argument("--only", default="", help="only names that contain this")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for run in all_runs():
        if options.only in run.name:
            missing = not run.path.exists()
            if missing and not options.status:
                make(run)
            seen = named(json.loads(run.path.read_text())) if run.path.exists() else "missing"
            print(f"{run.name}: {seen}", flush=True)
    for tasks in (FIXED_ON, tuple(task for task in SMALL if task not in FIXED_ON)):
        print(f"\n{', '.join(tasks)}")
        for kind, row in confusion(tasks).items():
            print(f"  {kind:26}", dict(row))


if __name__ == "__main__":
    main()
