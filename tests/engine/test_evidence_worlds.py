"""The stored results of the ring of Gaussians: verdicts once more, and one seed played again."""

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from ganlab.mixtures import coverage, play

ROOT = Path(__file__).resolve().parents[2]
STORED = sorted((ROOT / "book" / "results" / "11" / "worlds").glob("*.json"))


@pytest.fixture(scope="module")
def worlds() -> Any:
    spec = importlib.util.spec_from_file_location("worlds", ROOT / "benchmarks" / "worlds.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["worlds"] = module  # where dataclasses look for it
    sys.path.insert(0, str(ROOT / "benchmarks"))  # as for a script
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    return module


def rows(setting: str, mixture: str = "ring") -> list[dict[str, Any]]:
    """What was counted, one row for each of ten seeds."""
    (path,) = (path for path in STORED if path.stem == f"{mixture}-{setting}")
    result = json.loads(path.read_text())
    assert [row["seed"] for row in result["rows"]] == result["seeds"] == list(range(10))
    return list(result["rows"])


def modes(setting: str) -> list[int]:
    """Covered modes, one number for each of ten seeds."""
    return [row["modes"] for row in rows(setting)]


def test_every_stored_result_is_that_of_its_settings(worlds: Any) -> None:
    runs = {run.path: run for run in worlds.all_runs()}
    assert len(STORED) >= 3
    for path in STORED:
        run = runs[path]
        result = json.loads(path.read_text())
        origin = result["provenance"]
        expected = json.loads(json.dumps(dataclasses.asdict(run.config)))
        assert origin["training"] == expected, path.name
        assert origin["task"]["penalties"] == run.weights
        assert result["curve"][-1]["modes"] == [row["modes"] for row in result["rows"]]
        assert origin["core_seconds_each_seed"] <= 20


def test_verdict_the_recommended_defaults_cover_the_ring() -> None:
    assert sum(found == 8 for found in modes("recommended")) >= 9


def test_verdict_the_plain_game_covers_fewer_modes_with_every_seed() -> None:
    pairs = zip(modes("plain"), modes("recommended"), strict=True)
    assert all(plain < recommended for plain, recommended in pairs)


def test_verdict_it_is_the_penalties_that_do_it() -> None:
    """As fast as the recommended one, or the same without penalties: half of the ring is lost."""
    for setting in ("plain-fast", "unpenalized"):
        assert max(modes(setting)) <= 4


def test_verdict_with_both_penalties_nothing_else_matters_to_the_count() -> None:
    """The game and the average of weights do not; R1 alone is not enough."""
    for setting in ("recommended", "vanilla", "no-ema"):
        assert min(modes(setting)) >= 7
        assert sum(found == 8 for found in modes(setting)) >= 9
    assert min(modes("r1")) == 5
    assert sum(found == 8 for found in modes("r1")) <= 5


def test_verdict_the_slow_plain_game_is_slow() -> None:
    """It has not lost modes: its points are spread more evenly than those of the fast one."""
    slow, fast = rows("plain"), rows("plain-fast")
    assert all(row["quality"] < 0.1 for row in slow)
    mean = sum(row["reverse_kl"] for row in slow) / len(slow)
    assert mean < 0.2 * sum(row["reverse_kl"] for row in fast) / len(fast)


class Enough(Exception):
    """Thrown out of a game that need not be played to its end."""


def test_a_seed_of_the_recommended_defaults_is_played_again(worlds: Any) -> None:
    """The first thousand steps: modes are not sharp yet, but each already has its share.

    The game makes much of little: alone, or on another machine, a seed takes another path, so
    its numbers are compared with those of the games that lose modes.
    """
    run = next(run for run in worlds.all_runs() if run.setting == "recommended")
    found = []

    def watch(step: int, points: Any) -> None:
        found.append(coverage(points[0], worlds.MIXTURES["ring"]))
        raise Enough

    with pytest.raises(Enough):
        play(worlds.MIXTURES["ring"], run.config, run.penalties(), [4], watch, watch_every=1000)
    lost = min(row["reverse_kl"] for name in ("plain-fast", "unpenalized") for row in rows(name))
    assert found[0].reverse_kl < lost / 2
    assert found[0].modes >= 2
