"""The monitor on stored failures and healthy runs, judged by today's rules and made again."""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ganlab.config import TrainingConfig, from_dict
from ganlab.training.advice import ADVICE

MISSED = {
    # No swings: the discriminator judges one half rightly from the first line to the last.
    ("inpainting", "oscillation", 3),
    ("inpainting", "oscillation", 5),
    # Named blank; the gradient fell to between 1 and 3 hundredths.
    ("inpainting", "vanishing_gradient", 4),
    ("two_stage", "vanishing_gradient", 3),
    # A grid of 7 to 11 times the truth's energy.
    ("cloud_layers", "checkerboard", 5),
}
LOUD = {
    "toytown-finer-wasserstein": {"checkerboard", "generator_overpowers"},
    "toytown-finer-wgan-gp": {"generator_overpowers"},
    "toytown-holes-wasserstein": {"generator_overpowers"},
    "toytown-stages-wasserstein": {"generator_overpowers"},
    "toytown-stages-mask-0": {"flat_reconstruction"},
    "toytown-stages-mask-1": {"flat_reconstruction"},
}
"""Of the games of chapter 11: those that ran away, and holes that are filled from nothing."""
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def failures() -> Any:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        yield importlib.import_module("failures")
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


@pytest.fixture(scope="module")
def results(failures: Any) -> dict[Any, dict[str, Any]]:
    return {
        run: json.loads(run.path.read_text()) for run in failures.all_runs() if run.path.exists()
    }


def test_every_stored_stream_belongs_to_a_run_of_the_script(failures: Any, results: Any) -> None:
    assert {run.path for run in results} == set(failures.RESULTS.glob("*.json"))
    for run, result in results.items():
        task, training, fault = failures.provoke(run.kind, run.task)
        origin, training = result["provenance"], replace(training, seed=run.seed)
        assert from_dict(type(task), origin["task"]) == task, run.name
        assert from_dict(TrainingConfig, origin["training"]) == training, run.name
        assert origin["fault"] == (fault.__name__ if fault else None)
        assert result["seed"] == run.seed
        if run.kind != "non_finite":
            assert result["lines"][-1]["step"] == training.steps


def test_healthy_runs_are_silent(failures: Any, results: Any) -> None:
    healthy = {run: failures.named(r) for run, r in results.items() if run.kind == failures.HEALTHY}
    assert {(run.task, run.seed) for run in healthy} == {
        (task, seed)
        for task in failures.SMALL
        for seed in (range(3) if task in failures.FIXED_ON else range(3, 6))
    }
    assert [run.name for run, kinds in healthy.items() if kinds] == []


def test_provoked_kinds_are_named_on_the_tasks_that_fixed_the_thresholds(
    failures: Any, results: Any
) -> None:
    fixed = [run for run in results if run.task in failures.FIXED_ON]
    assert {run.kind for run in fixed} == {*ADVICE, failures.HEALTHY}
    for run in fixed:
        assert run.kind == failures.HEALTHY or run.kind in failures.named(results[run]), run.name


def test_provoked_kinds_are_named_on_tasks_that_no_threshold_has_seen(
    failures: Any, results: Any
) -> None:
    scored = [run for run in results if run.task not in failures.FIXED_ON]
    scored = [run for run in scored if run.kind != failures.HEALTHY]
    missed = {run for run in scored if run.kind not in failures.named(results[run])}
    assert {(run.task, run.kind, run.seed) for run in missed} == MISSED
    assert {run.kind for run in set(scored) - missed} == {*ADVICE}


def test_thresholds_were_fixed_on_other_seeds_than_they_are_scored_on(
    failures: Any, results: Any
) -> None:
    seeds: dict[bool, set[int]] = {True: set(), False: set()}
    for run in results:
        seeds[run.task in failures.FIXED_ON].add(run.seed)
    assert seeds[True] == {0, 1, 2}
    assert not seeds[True] & seeds[False]


def test_the_books_other_games_are_silent_unless_they_ran_away(failures: Any) -> None:
    """Longer and larger trainings than those above, made for other questions."""
    paths = sorted((ROOT / "book" / "results" / "11").glob("toytown-*.json"))
    loud: dict[str, set[str]] = {}
    for path in paths:
        kinds = failures.named({"lines": json.loads(path.read_text())["curve"], "failure": None})
        if kinds:
            loud.setdefault(path.stem.rpartition("-seed")[0], set()).update(kinds)
    assert len(paths) > 100
    assert loud == LOUD


def test_what_is_not_finite_has_a_layer(results: Any) -> None:
    places = [r["failure"]["place"] for run, r in results.items() if run.kind == "non_finite"]
    assert len(places) >= 3
    assert all(place.startswith(("generator.", "discriminator.")) for place in places)


@pytest.mark.parametrize("kind", ["healthy", "blank_output"])
def test_a_run_made_again_gets_the_same_verdict(
    failures: Any, results: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(failures, "WORK", tmp_path)
    run = failures.Run("vae", kind, 3)
    lines, failure = failures.stream(run, tmp_path / "run")
    stored = results[run]
    assert lines[0] == pytest.approx(stored["lines"][0], rel=0.02, abs=1e-3)
    assert failures.named({"lines": lines, "failure": failure}) == failures.named(stored)
