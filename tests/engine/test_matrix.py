"""Every stabilizer with every task: the stored table, and some of its rows made again."""

import importlib.util
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def matrix() -> Any:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location("matrix", BENCHMARKS / "matrix.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(BENCHMARKS))
    return module


@pytest.fixture(scope="module")
def rows(matrix: Any) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(matrix.TABLE.read_text())["rows"]
    return found


def test_each_combination_works_or_says_why_not(matrix: Any, rows: list[dict[str, str]]) -> None:
    eager = [row for row in rows if not row["compiled"]]
    keys = [(row["task"], row["stabilizer"], row["precision"]) for row in eager]
    assert keys == list(matrix.combinations())
    for row in eager:
        alone = row["task"] == "vae" and row["stabilizer"] != "none"
        impossible = row["stabilizer"] in ("r1, batch norm in D", "smoothing, hinge")
        if alone:
            assert "this task has none" in row["outcome"], row
        elif impossible:
            assert row["outcome"].startswith("refused: "), row
        else:
            assert row["outcome"] == "works", row


def test_each_task_works_compiled(matrix: Any, rows: list[dict[str, str]]) -> None:
    compiled = {row["task"]: row["outcome"] for row in rows if row["compiled"]}
    assert compiled == dict.fromkeys(matrix.TASKS, "works")


def test_a_rotating_sample_gives_the_same(
    matrix: Any, rows: list[dict[str, str]], tmp_path: Path
) -> None:
    """Eight rows, others for each state of the library."""
    start = int(sys.modules["evidence"]._code(), 16)  # which matrix.py stands on
    tiles = matrix.store(tmp_path)
    eager = [row for row in rows if not row["compiled"]]
    for turn in range(8):
        row = eager[(start + turn * len(eager) // 8) % len(eager)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = matrix.outcome(tiles, row["task"], row["stabilizer"], row["precision"])
        assert found == row["outcome"], row
