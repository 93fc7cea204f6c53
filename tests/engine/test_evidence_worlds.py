"""The stored results of the ring and the grid: verdicts once more, and one seed played again."""

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


def modes(setting: str, mixture: str = "ring") -> list[int]:
    """Covered modes, one number for each of ten seeds."""
    (path,) = (path for path in STORED if path.stem == f"{mixture}-{setting}")
    result = json.loads(path.read_text())
    assert [row["seed"] for row in result["rows"]] == result["seeds"] == list(range(10))
    return [row["modes"] for row in result["rows"]]


def test_every_stored_result_is_that_of_its_settings(worlds: Any) -> None:
    runs = {run.path: run for run in worlds.all_runs()}
    assert sorted(runs) == STORED
    for path, run in runs.items():
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
