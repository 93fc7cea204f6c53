"""Make a study: every setting from every seed, here or in processes side by side.

::

    TO/study.json              question, rule, measures, every configuration
    TO/SETTING-seedN.json      one result: numbers, curve, and where it came from
    TO/runs/SETTING-seedN/     its run directory

Nothing here imports torch before a run is made, so that processes can still choose their device.
"""

import dataclasses
import hashlib
import json
import math
import multiprocessing
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ganlab import __version__, files
from ganlab.config import EvaluateConfig, TrainingConfig, finite, read_json, to_dict
from ganlab.errors import InputError, TrainingFailed
from ganlab.studies.questions import Study, fitting
from ganlab.studies.stored import ANEW, read_about, read_results
from ganlab.studies.verdicts import Comparison, Result, Rule, compare
from ganlab.workers import GUARD, leave_if_main_is_being_imported

FORMAT = "ganlab study 1"
RESAMPLES = 500
INTERRUPTED = 130
PATIENCE = 300
"""Tenths of a second; a process finishes its step and saves in much less."""

Progress = Callable[[int, int, str], None]
Made = tuple["_Run", str | None]
"""A run, and why there is no result of it."""


@dataclass(frozen=True)
class Outcome:
    """A study as far as it has been made."""

    about: dict[str, Any]
    """What ``study.json`` says."""
    results: list[Result]
    """One for each setting and seed."""
    comparisons: list[Comparison]
    """One for each measure and setting, the baseline first."""


@dataclass(frozen=True)
class _Run:
    """All that a process needs to make one result."""

    setting: str
    task: Any
    training: TrainingConfig
    tiles: Path
    to: Path
    share: Any
    features: Any
    origin: Mapping[str, Any]

    @property
    def name(self) -> str:
        return f"{self.setting}-seed{self.training.seed}"

    @property
    def path(self) -> Path:
        return self.to / f"{self.name}.json"


def run_study(
    study: Study,
    task: Any,
    tiles: Path | str,
    to: Path | str,
    *,
    seeds: int = 3,
    training: TrainingConfig | None = None,
    processes: int = 1,
    devices: Sequence[str] = (),
    share: Literal["validation", "test"] = "validation",
    features: str = "none",
    origin: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Make what is missing of a study, and compare.

    Results that are there are not made again, and interrupted runs go on exactly where they were:
    the same call continues a study, also with more seeds. A run that diverges is a result.
    Settings that the task has no field for, that change nothing, or that cannot be trained are left
    out, and named in ``about["left out"]``.

    Args:
        study: one of ``STUDIES``, or your own.
        task: configuration of the task, from which the settings depart.
        tiles: the tile store.
        to: folder of the study.
        seeds: how many, from ``training.seed`` on.
        training: how to train, from which the settings depart, too.
        processes: runs at a time. One is made in this process, with its threads; several are made
            each in a process of its own with one thread, which gives the same numbers as one thread
            here. In a script, call this under ``if __name__ == "__main__":`` then.
        devices: GPUs by the names that CUDA_VISIBLE_DEVICES takes: a process for each of them.
        share: tiles to measure on. What was chosen by its test tiles needs others for its proof.
        features: network for KID, see ``EvaluateConfig``.
        origin: more to note in the provenance of every result.
        progress: called with (results there, results in all, which was made last).

    Raises:
        InputError: the study does not fit the task, the folder holds another one, or the baseline
            cannot be trained.
        KeyboardInterrupt: Ctrl-C; what was begun is saved.
    """
    from ganlab.data.store import TileStore

    if devices or processes > 1:
        leave_if_main_is_being_imported()
    training, to = training or TrainingConfig(), Path(to)
    if seeds < 1 or processes < 1:
        raise InputError(f"{seeds} seeds in {processes} processes: expected at least 1 of each")
    store = TileStore.open(Path(tiles))
    if len(getattr(store.split(training.split), share)) == 0:
        raise InputError(f"{store.path}: the {share} split is empty; give it a larger share")
    settings, left_out = fitting(study, task, training)
    about = {
        "format": FORMAT,
        "study": study.name,
        "question": study.question,
        "baseline": study.baseline,
        "measures": dict(study.measures),
        "rule": dataclasses.asdict(study.rule),
        "share": share,
        "features": features,
        "settings": {
            name: {"task": to_dict(configs[0]), "training": to_dict(configs[1])}
            for name, configs in settings.items()
        },
        "tiles": hashlib.sha256((store.path / "index.csv").read_bytes()).hexdigest(),
        "left out": left_out,
    }
    runs = [
        _Run(
            name,
            configs[0],
            dataclasses.replace(configs[1], seed=seed),
            store.path.resolve(),
            to.resolve(),
            share,
            features,
            origin or {},
        )
        for seed in range(training.seed, training.seed + seeds)
        for name, configs in settings.items()
    ]
    with files.exclusive(to, "a study"):
        _begin(to, about)
        _make_missing(runs, about, processes, devices, progress)
        _write(to / "study.json", about)
        return read_study(to)


def _make_missing(
    runs: Sequence[_Run],
    about: dict[str, Any],
    processes: int,
    devices: Sequence[str],
    progress: Progress | None,
) -> None:
    """Make the results that are not there; settings that cannot be made are noted in ``about``."""
    missing = [run for run in runs if not run.path.exists()]
    done = len(runs) - len(missing)
    here = not devices and processes == 1
    made = (_made(run) for run in missing) if here else _apart(missing, devices or [""] * processes)
    with closing(made):
        for run, refused in made:
            done += 1
            if refused and run.setting == about["baseline"]:
                raise InputError(f"the baseline {run.setting!r} cannot be made: {refused}")
            if refused:
                about["left out"][run.setting] = refused
            if progress:
                progress(done, len(runs), run.name)


def read_study(folder: Path | str) -> Outcome:
    """A study out of its folder, compared by its own rule.

    Raises:
        InputError: there is none, or it has no result of its baseline yet.
    """
    about = read_about(Path(folder) / "study.json")
    results = read_results(Path(folder), about["settings"])
    rule = Rule(**about["rule"])
    return Outcome(about, results, compare(results, about["baseline"], about["measures"], rule))


def table(outcome: Outcome) -> str:
    """A study as aligned text: the question, what was found, what was left out and why."""
    about, rule = outcome.about, Rule(**outcome.about["rule"])
    seeds = len({result["seed"] for result in outcome.results})
    counted = f"{seeds} seed{'s' * (seeds > 1)}"
    tiles = max(result["tiles"] for result in outcome.results)
    lines = [
        f"{about['study']}: {about['question']}",
        f"{counted}, {tiles} {about['share']} tiles. Better or worse: by {rule.least:.0%} or more, "
        f"and the {rule.level:.0%} interval over seeds and tiles lies beyond 0.",
    ]
    width = max(len(comparison.setting) for comparison in outcome.comparisons)
    for measure in dict.fromkeys(comparison.measure for comparison in outcome.comparisons):
        title = f"{measure}, {about['measures'][measure]} is better"
        lines += ["", f"{title}\n{'':<{width}}{'mean':>10}{'change':>9}   {'interval':<20}time"]
        for c in (c for c in outcome.comparisons if c.measure == measure):
            mean = float(np.mean([*c.values.values()])) if c.values else math.nan
            cells = f"{c.setting:<{width}}{mean:10.4f}"
            if c.verdict == "baseline":
                cells += f"{'':32}{c.cost:4.2f}  baseline"
            else:
                change, *ends = (
                    f"{x / (abs(c.scale) or math.nan):+.1%}" for x in (c.difference, *c.interval)
                )
                cells += f"{change:>9}   {' to '.join(ends):<20}{c.cost:4.2f}  {c.verdict}"
            lost = (f"seed {seed} diverged at step {step}" for seed, step in c.diverged.items())
            lines.append("; ".join((cells, *lost)))
    lines += [""] * bool(about["left out"])
    lines += [f"left out: {name}: {why}" for name, why in about["left out"].items()]
    return "\n".join(lines)


def _begin(to: Path, about: Result) -> None:
    """Write down what will be studied, or see that it is what was begun here."""
    path = to / "study.json"
    _sweep(to)
    if not path.exists():
        _write(path, about)
        return
    before, now = read_json(path, ("settings",), ANEW), json.loads(json.dumps(finite(about)))
    for key, value in now.items():
        if key != "left out" and before.get(key) != value:
            raise InputError(f"{to} holds a study with other {key}; give this one another folder")


def _sweep(to: Path) -> None:
    """Remove what killed studies left half written."""
    for leftover in to.glob(f".*.json.*{files.LEFTOVER}"):
        leftover.unlink(missing_ok=True)


def _wait_for_orphan(folder: Path) -> None:
    """Wait while a process of a study that was killed still saves its run here."""
    if not folder.exists():
        return
    for _ in range(PATIENCE):
        try:
            with files.exclusive(folder, "training"):
                return
        except InputError:
            time.sleep(0.1)


def _made(run: _Run) -> Made:
    try:
        _make(run)
    except InputError as error:
        return run, str(error)
    return run, None


def _make(run: _Run) -> None:
    """Train, or go on with training; measure, and store the result."""
    import torch

    from ganlab.evaluation import evaluate
    from ganlab.training import checkpoints, resume, train
    from ganlab.training.records import read_metrics

    folder, begin, diverged = run.to / "runs" / run.name, time.perf_counter(), None
    _wait_for_orphan(folder)
    saved = checkpoints.all_in(folder / "checkpoints")
    first = checkpoints.step_of(saved[-1]) if saved else 0
    try:
        if saved:
            resume(folder, tiles=run.tiles)
        else:
            train(run.task, run.tiles, folder, run.training)
        last = checkpoints.step_of(checkpoints.latest(folder / "checkpoints"))
        if last < run.training.steps:
            raise KeyboardInterrupt
    except TrainingFailed as error:
        last = diverged = error.step
        measured: Result = {"error": str(error), "tiles": 0, "rows": {}, "resampled": {}}
    seconds = time.perf_counter() - begin
    device = run.training.device
    if diverged is None:
        config = EvaluateConfig(
            run=folder,
            split=run.share,
            features=run.features,
            resamples=RESAMPLES,
            device=device,
        )
        measured = evaluate(config)
    on_cuda = device in ("auto", "cuda") and torch.cuda.is_available()
    cpu = f"{platform.machine()} CPU, {os.cpu_count()} cores"
    versions = {"ganlab": __version__, "torch": torch.__version__}
    result = {
        "setting": run.setting,
        "seed": run.training.seed,
        "steps": run.training.steps,
        "diverged": diverged,
        **measured,
        "curve": read_metrics(folder),
        "provenance": {
            "task": to_dict(run.task),
            "training": to_dict(run.training),
            "versions": versions | {"python": platform.python_version()},
            "hardware": torch.cuda.get_device_name() if on_cuda else cpu,
            "threads": torch.get_num_threads(),
            "seconds": round(seconds, 1),
            # Nothing was trained if it was the measuring that had been interrupted.
            "seconds_per_step": seconds / (last - first) if last > first else None,
            **run.origin,
        },
    }
    _write(run.path, result)


def _apart(runs: Sequence[_Run], places: Sequence[str]) -> Generator[Made]:
    """Make results in processes of their own, at each place (a GPU, or "") one at a time."""
    context = multiprocessing.get_context("spawn")
    waiting, free = list(runs), list(places)
    busy: dict[Any, tuple[Any, Any, _Run, str]] = {}
    try:
        while waiting or busy:
            while waiting and free:
                run, place = waiting.pop(0), free.pop(0)
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_child, args=(run, place, theirs))
                process.start()
                theirs.close()
                busy[process.sentinel] = process, ours, run, place
            for sentinel in wait(list(busy)):
                process, ours, run, place = busy.pop(sentinel)
                process.join()
                free.append(place)
                try:
                    refused = ours.recv()
                except EOFError:
                    refused = f"its process ended with code {process.exitcode}"
                    if process.exitcode == 1:
                        refused += f", perhaps as it could not start: {GUARD}"
                yield run, refused
    finally:
        for process, *_ in busy.values():
            process.terminate()  # it finishes its step and saves
        for process, *_ in busy.values():
            process.join()


def _child(run: _Run, place: str, answer: Any) -> None:
    os.setsid()  # Ctrl-C reaches the parent alone, which asks each child once
    threading.Thread(target=_follow, daemon=True).start()
    if place:
        os.environ["CUDA_VISIBLE_DEVICES"] = place
    import torch

    torch.set_num_threads(1)
    try:
        answer.send(_made(run)[1])
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _follow() -> None:
    """End with the parent, whom a kill may end without a word: finish the step, and save."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _write(path: Path, content: Result) -> None:
    """At once: a killed process leaves the old file or the new one, never half."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.replace_text(path, json.dumps(finite(content), indent=1) + "\n")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error}") from error
