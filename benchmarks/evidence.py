"""Make the stored results that the book quotes: one training for each setting and seed.

    python benchmarks/evidence.py             make what is missing, the oldest gaps first
    python benchmarks/evidence.py --status    list what there is, and what is older than its code
    python benchmarks/evidence.py --gpu       the real configurations, on a GPU
    python benchmarks/evidence.py --only gan  only results whose name contains a word

A result is one JSON file, ``book/results/<chapter>/<name>.json``: settings, numbers on held-out
tiles, the curve, and where and from which code it came. Runs that exist are not made again, so the
script can be stopped and started at any time. Trained weights and tiles stay in ``runs/evidence``.
"""

import argparse
import ast
import dataclasses
import hashlib
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import ganlab
from ganlab.config import (
    EvaluateConfig,
    PatchGANConfig,
    Pix2PixConfig,
    SplitConfig,
    TilingConfig,
    ToytownConfig,
    TrainingConfig,
    UNetConfig,
    to_dict,
)
from ganlab.data import samples, tiling, toytown
from ganlab.evaluation import evaluate
from ganlab.training import checkpoints, train
from ganlab.training.records import read_metrics

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "book" / "results"
WORK = ROOT / "runs" / "evidence"

SMALL = Pix2PixConfig(
    generator=UNetConfig(width=16, depth=6), discriminator=PatchGANConfig(width=16, layers=2)
)
TRAINING = TrainingConfig(
    steps=1000,
    batch_size=8,
    log_every=50,
    sample_every=1000,
    checkpoint_every=1000,
    keep=1,
    tensorboard=False,
    split=SplitConfig(block=256, validation=0.1, test=0.25),
    device="cpu",
)


@dataclasses.dataclass(frozen=True)
class Run:
    """One result: a task on some data, from one seed."""

    chapter: str
    data: str
    setting: str
    task: Pix2PixConfig
    training: TrainingConfig

    @property
    def name(self) -> str:
        return f"{self.data}-{self.setting}-seed{self.training.seed}"

    @property
    def path(self) -> Path:
        return RESULTS / self.chapter / f"{self.name}.json"


def chapter_04() -> Iterator[Run]:
    """What each part of pix2pix does, one change at a time."""

    def norm(kind: Any) -> Pix2PixConfig:
        return dataclasses.replace(
            SMALL,
            generator=dataclasses.replace(SMALL.generator, norm=kind),
            discriminator=dataclasses.replace(SMALL.discriminator, norm=kind),
        )

    settings = {
        "l1": dataclasses.replace(SMALL, adversarial_weight=0.0),
        "gan": SMALL,
        "l2": dataclasses.replace(SMALL, adversarial_weight=0.0, reconstruction="l2"),
        "lambda10": dataclasses.replace(SMALL, reconstruction_weight=10.0),
        "lambda25": dataclasses.replace(SMALL, reconstruction_weight=25.0),
        "batch": norm("batch"),
        "instance": norm("instance"),
        "lr10x": SMALL,
        "lr100x": SMALL,
        "lr1000x": SMALL,
        "lr10x-batch": norm("batch"),
    }
    rates = {"lr10x": 2e-3, "lr10x-batch": 2e-3, "lr100x": 2e-2, "lr1000x": 2e-1}
    once = {"lambda25", *rates}  # one seed shows what happens; they support no comparison
    for seed in range(3):
        for setting, task in settings.items():
            if seed > 0 and setting in once:
                continue
            rate = rates.get(setting, 2e-4)
            training = dataclasses.replace(
                TRAINING, seed=seed, generator_lr=rate, discriminator_lr=rate
            )
            # One sun lights the whole town: turned tiles would teach shadows on every side.
            one_sun = dataclasses.replace(training, augment=False)
            yield Run("04", "toytown", setting, task, one_sun)
            if setting in ("l1", "gan") or (seed == 0 and setting in ("l2", "lambda10")):
                yield Run("04", "sentinel2", setting, task, training)


def chapter_04_gpu() -> Iterator[Run]:
    """The canonical pair at 256 x 256, as long as it needs."""
    for setting, task in {
        "l1": Pix2PixConfig(adversarial_weight=0.0),
        "gan": Pix2PixConfig(),
    }.items():
        for seed in range(3):
            training = dataclasses.replace(
                TRAINING,
                steps=20_000,
                batch_size=16,
                sample_every=5000,
                checkpoint_every=5000,
                precision="bf16",
                compile=True,
                device="cuda",
                augment=False,
                seed=seed,
            )
            yield Run("04/gpu", "toytown256", setting, task, training)


def tiles(data: str) -> Path:
    """The tile store of one data set, made at the first call."""
    store = WORK / f"{data}-tiles"
    if store.exists():
        return store
    scenes = WORK / f"{data}-scenes"
    shutil.rmtree(scenes, ignore_errors=True)
    if data == "sentinel2":
        image, label = samples.write_samples(scenes)
        config = TilingConfig(
            images=(str(image),),
            labels=(str(label),),
            to=store,
            size=64,
            bands=("red", "green", "blue"),
        )
    else:
        large = data == "toytown256"
        pairs = toytown.write(ToytownConfig(to=scenes, scenes=16 if large else 4, size=2048))
        config = TilingConfig(
            images=tuple(str(image) for image, _ in pairs),
            labels=tuple(str(label) for _, label in pairs),
            to=store,
            size=256 if large else 64,
            scale=1.0 if large else 0.5,
        )
    tiling.tile(config)
    return store


def make(run: Run) -> dict[str, Any]:
    """Train and measure one run, and store its result."""
    folder = WORK / run.chapter / run.name
    shutil.rmtree(folder, ignore_errors=True)
    begin = time.perf_counter()
    train(run.task, tiles(run.data), folder, run.training)
    trained = time.perf_counter() - begin
    if not (folder / "checkpoints" / checkpoints.name(run.training.steps)).exists():
        raise SystemExit(f"{run.name} was interrupted; nothing is stored of it")
    device = "cuda" if run.training.device == "cuda" else "cpu"
    measured = evaluate(EvaluateConfig(run=folder, split="test", device=device))
    result = {
        "experiment": run.chapter,
        "data": run.data,
        "setting": run.setting,
        "seed": run.training.seed,
        "steps": run.training.steps,
        "tiles": measured["tiles"],
        "rows": measured["rows"],
        "curve": read_metrics(folder),
        "provenance": {
            "task": to_dict(run.task),
            "training": to_dict(run.training),
            "code": _code(),
            "commit": _git("rev-parse", "--short", "HEAD"),
            "versions": {
                "ganlab": ganlab.__version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
            "hardware": _hardware(device),
            "threads": torch.get_num_threads(),
            "seconds": round(trained, 1),
        },
    }
    run.path.parent.mkdir(parents=True, exist_ok=True)
    temporary = run.path.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(temporary, run.path)
    panels = sorted((folder / "samples").glob("*.png"))
    if panels and run.training.seed == 0:
        shutil.copy(panels[-1], run.path.with_suffix(".png"))
    return result


def _code(part: str = "") -> str:
    """Fingerprint of the library (or one folder of it): a result with another one is older.

    Of the syntax tree without docstrings, so that better words make no result old.
    """
    digest = hashlib.sha256()
    for file in sorted((ROOT / "ganlab" / "src" / "ganlab" / part).rglob("*.py")):
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list):
                node.body = [n for n in body if not _is_text(n)]  # type: ignore[attr-defined]
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _git(*arguments: str) -> str:
    answer = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return answer.stdout.strip() or "unknown"


def _hardware(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {os.cpu_count()} cores"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gpu", action="store_true", help="the real configurations, on a GPU")
    parser.add_argument("--status", action="store_true", help="list, make nothing")
    parser.add_argument("--only", default="", help="only names that contain this")
    options = parser.parse_args()
    runs = [
        r for r in (chapter_04_gpu() if options.gpu else chapter_04()) if options.only in r.name
    ]
    code = _code()
    for run in runs:
        state = "missing"
        if run.path.exists():
            made_by = json.loads(run.path.read_text())["provenance"]["code"]
            state = "there" if made_by == code else "older than the library"
        if state == "missing" and not options.status:
            result = make(run)
            numbers = {k: round(v, 4) for k, v in result["rows"]["model"].items()}
            state = f"made in {result['provenance']['seconds']} s: {numbers}"
        print(f"{run.chapter}/{run.name}: {state}", flush=True)


if __name__ == "__main__":
    main()
