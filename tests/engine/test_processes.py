"""Two processes over gloo do what one does."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ganlab.training import checkpoints
from ganlab.training.records import read_metrics

SCRIPT = Path(__file__).parent / "both.py"


@pytest.fixture(scope="module")
def both(tiles, tmp_path_factory):
    """(results by rank, folder) of two processes."""
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*command, "--nproc_per_node", "2", SCRIPT, tiles, folder],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)], folder


@pytest.fixture(scope="module")
def alone(tiles, tmp_path_factory):
    """(result, folder) of one process."""
    spec = importlib.util.spec_from_file_location("both", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = tmp_path_factory.mktemp("one")
    return module.all_of_it(tiles, folder), folder


def newest(folder):
    return checkpoints.load(checkpoints.latest(folder / "checkpoints"))


def difference(one, other):
    """Largest difference of two trees of tensors, relative to each tensor's largest value."""
    if isinstance(one, torch.Tensor):
        scale = max(float(other.abs().max()), 1e-30) if other.numel() else 1
        return float((one - other).abs().max()) / scale if one.numel() else 0.0
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        return max((difference(one[k], other[k]) for k in one), default=0.0)
    return 0.0


TASKS = pytest.mark.parametrize("task", ["fine", "inpainting", "two_stage"])


@TASKS
def test_in_float64_two_processes_are_one(alone, both, task):
    states = [newest(folder / task) for folder in (alone[1], both[1])]
    assert states[0]["step"] == states[1]["step"] == 20
    for player in ("generator", "discriminator"):
        weights = [state["players"][player] for state in states]
        assert all(w.dtype == torch.float64 for w in weights[1].values())
        assert difference(*weights) < 1e-10
        moments = [state["optimizers"][player]["state"] for state in states]
        assert difference(*moments) < 1e-8
    assert difference(*[state["ema"] for state in states]) < 1e-10


@TASKS
def test_metrics_are_those_of_all_processes(alone, both, task):
    (expected, _), ((got, others), _) = alone, both
    assert got[task] == others[task]
    assert [line["step"] for line in got[task]] == [5, 10, 15, 20]
    for one, other in zip(expected[task], got[task], strict=True):
        assert one.keys() == other.keys()
        assert one == pytest.approx(other, rel=1e-5)
    assert all("discriminator/r1" in line for line in got[task])
    assert all(("generator/style" in line) == (task != "fine") for line in got[task])


@pytest.mark.parametrize("kind", ["derived", "uncertainty", "gradnorm", "adaptive"])
def test_balances_of_all_processes_find_the_weights_of_one(alone, both, kind):
    """Weights are found in float32, so they agree to its digits."""
    (expected, folder), ((got, others), folder_of_both) = alone, both
    assert got["balanced"][kind] == others["balanced"][kind]
    for one, other in zip(expected["balanced"][kind], got["balanced"][kind], strict=True):
        assert one == pytest.approx(other, rel=1e-5)
        assert one["generator/gradient/adversarial"] > 0
    states = [newest(f / "balanced" / kind) for f in (folder, folder_of_both)]
    assert difference(*[state["players"]["generator"] for state in states]) < 1e-5
    for name, number in states[0]["balances"][0]["numbers"].items():
        assert difference(number, states[1]["balances"][0]["numbers"][name]) < 1e-5


def test_ctrl_c_at_one_process_stops_all_at_one_step(both):
    results, folder = both
    assert [r["interrupted"] for r in results] == [10, 10]
    assert newest(folder / "interrupted")["step"] == 10


def test_what_is_not_finite_in_one_process_stops_all(alone, both):
    (expected, folder_of_one), (results, folder) = alone, both
    step = expected["failed"].split("at step ")[1].split(";")[0]
    assert expected["failed"].startswith("a loss or weight became infinite or NaN")
    for result in results:
        assert f"at step {step};" in result["failed"]
    batches = [load_file(next((f / "failed").glob("failed-*"))) for f in (folder_of_one, folder)]
    assert batches[0]["sample"].tolist() == batches[1]["sample"].tolist()
    assert 10 in batches[1]["sample"].tolist()
    assert all(torch.equal(batches[0][name], batches[1][name]) for name in batches[0])


def test_another_number_of_processes_is_refused(alone, both):
    (expected, _), (results, folder) = alone, both
    assert "processes is 2, but 1 run" in expected["refused"]
    for result in results:
        assert "processes is 1, but 2 run" in result["refused"]
    assert not (folder / "refused").exists()


def test_a_run_of_two_processes_is_a_run(alone, both):
    lines = [read_metrics(folder / "ordinary") for folder in (alone[1], both[1])]
    assert [line["step"] for line in lines[1]] == [5, 10, 15, 20]
    for one, other in zip(*lines, strict=True):
        assert one == pytest.approx(other, rel=2e-3, abs=1e-5)
    states = [newest(folder / "ordinary") for folder in (alone[1], both[1])]
    # Adam turns rounding in small gradients into steps; twenty of them stay close.
    for player in ("generator", "discriminator"):
        assert difference(*[state["players"][player] for state in states]) < 2e-2
    settings = json.loads((both[1] / "ordinary" / "config.json").read_text())["training"]
    assert (settings["processes"], settings["steps"]) == (2, 20)
