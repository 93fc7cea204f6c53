"""Stopping and going on: every way of ending leaves a run that continues exactly."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from ganlab.config import ScheduleConfig, to_dict
from ganlab.errors import InputError
from ganlab.files import LEFTOVER
from ganlab.training import Trainer, checkpoints, load_task, resume, train
from ganlab.training.processes import interruptible
from ganlab.training.records import read_metrics
from ganlab.training.runs import read_config


def stop_at(step):
    """Press Ctrl-C when the metric line of a step appears."""

    def on_log(now, values):
        if now == step:
            os.kill(os.getpid(), signal.SIGINT)

    return on_log


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"log_every": 3, "checkpoint_every": 10},
        {"log_every": 7, "checkpoint_every": 4, "sample_every": 5, "tensorboard": True},
        {"ema": 0.0, "precision": "bf16"},
        {"precision": "fp16"},
        {"workers": 1, "crop": 8},
        {"resident": True, "lr_schedule": ScheduleConfig("cosine", 0.0)},
    ],
    ids=["plain", "between lines", "samples", "bf16", "fp16", "workers", "resident"],
)
def test_twenty_steps_are_ten_and_ten(
    tiles, tmp_path, quick, tiny, same_runs, monkeypatch, changes
):
    config = quick(steps=20, **changes)
    whole = train(tiny(), tiles, tmp_path / "whole", config)
    step = Trainer.train_step

    def interrupted(self, batch):
        step(self, batch)
        if self.step == 10:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    run = train(tiny(), tiles, tmp_path / "run", config)
    monkeypatch.undo()
    assert checkpoints.latest(run / "checkpoints").name == checkpoints.name(10)
    torch.manual_seed(12345)  # what another process would bring along
    resume(run)
    same_runs(whole, run)
    assert len(read_metrics(run)) == 20 // config.log_every


def test_many_stops_are_none(tiles, tmp_path, quick, tiny, same_runs):
    config = quick(steps=13, log_every=1, checkpoint_every=5)
    whole = train(tiny(), tiles, tmp_path / "whole", config)
    run = train(tiny(), tiles, tmp_path / "run", config, on_log=stop_at(1))
    for step in (3, 4, 8, 12):
        resume(run, on_log=stop_at(step))
        assert checkpoints.latest(run / "checkpoints").name == checkpoints.name(step)
    seen = []
    resume(run, on_log=lambda step, values: seen.append(step))
    assert seen == [13]  # from the newest checkpoint on, not from an older one
    same_runs(whole, run)


def test_a_finished_run_is_left_as_it_is(tiles, tmp_path, quick, tiny, same_runs):
    run = train(tiny(), tiles, tmp_path / "run", quick(steps=4))
    shutil.copytree(run, tmp_path / "copy")
    resume(run)
    same_runs(run, tmp_path / "copy")


def test_a_run_can_be_prolonged_and_stopped_on_the_way(tiles, tmp_path, quick, tiny, same_runs):
    whole = train(tiny(), tiles, tmp_path / "whole", quick(steps=11))
    run = train(tiny(), tiles, tmp_path / "run", quick(steps=5))
    resume(run, steps=11, on_log=stop_at(8))
    resume(run)  # what the command line proposes
    same_runs(whole, run)
    assert read_config(run)["training"]["steps"] == 11


def test_a_run_goes_on_from_its_very_start(tiles, tmp_path, quick, tiny, same_runs):
    donor = train(tiny(), tiles, tmp_path / "donor", quick(steps=2))
    config = quick(steps=3)
    for name, init in (("plain", None), ("tuned", donor)):
        whole = train(tiny(), tiles, tmp_path / f"whole {name}", config, init=init)
        run = tmp_path / name
        shutil.copytree(whole, run)
        shutil.rmtree(run / "checkpoints")  # killed before the first
        torch.manual_seed(99)
        resume(run)
        same_runs(whole, run)


def test_lines_after_the_checkpoint_go(tiles, tmp_path, quick, tiny, same_runs):
    whole = train(tiny(), tiles, tmp_path / "whole", quick(steps=8))
    run = train(tiny(), tiles, tmp_path / "run", quick(steps=8), on_log=stop_at(5))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "generator/l1": 0.5}\n{"step": 7, "gen')
    resume(run)
    same_runs(whole, run)


def test_leftovers_are_swept(tiles, tmp_path, quick, tiny):
    run = train(tiny(), tiles, tmp_path / "run", quick(steps=2))
    leftovers = [
        run / "checkpoints" / f".step-00000009.safetensors.abc{LEFTOVER}",
        run / f".config.json.abc{LEFTOVER}",
        run / f".metrics.jsonl.abc{LEFTOVER}",
        run / f".failed-step-00000003.safetensors.abc{LEFTOVER}",
        run / "samples" / f".step-00000003.png.abc{LEFTOVER}",
    ]
    (run / "samples").mkdir()
    for leftover in leftovers:
        leftover.write_text("half")
    resume(run)
    assert not any(leftover.exists() for leftover in leftovers)


def test_a_moved_run_and_moved_tiles(tiles, tmp_path, quick, tiny, same_runs):
    whole = train(tiny(), tiles, tmp_path / "whole", quick(steps=6))
    run = train(tiny(), tiles, tmp_path / "run", quick(steps=6), on_log=stop_at(3))
    shutil.copytree(tiles, tmp_path / "moved" / "tiles")
    shutil.move(run, tmp_path / "moved" / "elsewhere" / "run")
    run = tmp_path / "moved" / "elsewhere" / "run"
    with pytest.raises(InputError, match="is not at .*say where it is now"):
        resume(run)
    resume(run, tiles=tmp_path / "moved" / "tiles")
    same_runs(whole, run)
    assert read_config(run)["tiles"] == "../../tiles"


def test_a_run_behind_a_link_finds_its_tiles(tiles, tmp_path, quick, tiny, same_runs):
    whole = train(tiny(), tiles, tmp_path / "whole", quick(steps=3))
    disk = tmp_path / "far" / "away" / "disk"
    disk.mkdir(parents=True)
    (tmp_path / "link").symlink_to(disk)
    run = train(tiny(), tiles, tmp_path / "link" / "run", quick(steps=3), on_log=stop_at(2))
    resume(run, steps=2)
    resume(disk / "run", steps=3)
    same_runs(whole, run)


def test_other_tiles_are_refused(tiles, tile_town, tmp_path, quick, tiny):
    run = train(tiny(), tiles, tmp_path / "run", quick(steps=2))
    for other in (tile_town(rows=6), tile_town(bands=1), tile_town(classes=(0, 1))):
        with pytest.raises(InputError, match="holds other tiles than"):
            resume(run, tiles=other)


def test_a_damaged_checkpoint_is_named(tiles, tmp_path, quick, tiny):
    run = train(tiny(), tiles, tmp_path / "run", quick(steps=2))
    newest = checkpoints.latest(run / "checkpoints")
    newest.write_bytes(newest.read_bytes()[:-9])
    with pytest.raises(InputError, match=newest.name):
        resume(run)


# Signals


def test_the_first_signal_is_noted_and_the_second_ends():
    before = signal.getsignal(signal.SIGINT)
    with interruptible() as received:
        signal.raise_signal(signal.SIGTERM)
        assert received == [signal.SIGTERM]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_training_may_run_in_a_thread(tiles, tmp_path, quick, tiny):
    thread = threading.Thread(
        target=train, args=(tiny(), tiles, tmp_path / "run", quick(steps=2)), daemon=True
    )
    thread.start()
    thread.join(60)
    assert len(read_metrics(tmp_path / "run")) == 2


# Other processes, ended from outside

SCRIPT = """
import json, sys, time
from pathlib import Path
from ganlab.config import Pix2PixConfig, TrainingConfig, from_dict
from ganlab.training import Trainer, checkpoints, resume, train

settings = json.loads(sys.argv[1])
run, flush, step = Path(settings["run"]), checkpoints._flush, Trainer.train_step

def slow_flush(file):
    flush(file)
    if settings["hang_at"] and settings["hang_at"] in file.name:
        Path(settings["marker"]).touch()
        time.sleep(60)

def slow_step(self, batch):
    step(self, batch)
    time.sleep(0.02)

checkpoints._flush, Trainer.train_step = slow_flush, slow_step
if checkpoints.all_in(run / "checkpoints"):
    resume(run)
else:
    task = from_dict(Pix2PixConfig, settings["task"])
    train(task, settings["tiles"], run, from_dict(TrainingConfig, settings["training"]))
print("returned")
"""


class Training:
    """A long training in a process (and process group) of its own, started or continued."""

    def __init__(self, task, tiles, run, config, hang_at=None):
        self.run, self.marker = run, run.parent / "marker"
        settings = {
            "task": to_dict(task),
            "tiles": str(tiles),
            "run": str(run),
            "training": to_dict(config),
            "hang_at": hang_at and checkpoints.name(hang_at),
            "marker": str(self.marker),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, json.dumps(settings)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end(signal.SIGKILL)

    def reached(self):
        found = checkpoints.all_in(self.run / "checkpoints")
        return int(found[-1].stem.split("-")[1]) if found else 0

    def wait_until(self, condition):
        for _ in range(6000):
            if condition():
                return
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.005)
        raise AssertionError("waited in vain")

    def end(self, number):
        """Send a signal to the group, as a terminal does; give the output."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)
        return self.process.communicate(timeout=60)


def test_kill_9_at_any_moment_loses_nothing(tiles, tmp_path, quick, tiny, same_runs):
    config = quick(steps=120, log_every=7, checkpoint_every=5)
    run = tmp_path / "run"
    chance = random.Random(0)
    for hang_at, pause in ((None, chance.random() / 3), (40, 0), (None, chance.random() / 3)):
        with Training(tiny(), tiles, run, config, hang_at) as training:
            if hang_at:
                training.wait_until(training.marker.exists)
                assert training.reached() == 35
                leftovers = (run / "checkpoints").glob(f".{checkpoints.name(40)}.*{LEFTOVER}")
                assert len(list(leftovers)) == 1
            else:
                before = training.reached()
                training.wait_until(lambda old=before: training.reached() > old)
                time.sleep(pause)
            training.end(signal.SIGKILL)
        assert training.process.returncode == -signal.SIGKILL
        state = checkpoints.load(checkpoints.latest(run / "checkpoints"))
        assert 0 < state["step"] < 120
        assert load_task(run, device="cpu").generator.last_layer.weight.isfinite().all()
    resume(run)
    assert not list(run.rglob(f"*{LEFTOVER}"))
    same_runs(train(tiny(), tiles, tmp_path / "whole", config), run)


def test_ctrl_c_saves_and_the_run_goes_on(tiles, tmp_path, quick, tiny, same_runs):
    config = quick(steps=120, log_every=7, checkpoint_every=1000, workers=1)
    run = tmp_path / "run"
    with Training(tiny(), tiles, run, config) as training:
        training.wait_until(lambda: len(read_metrics(run)) >= 2)
        out, errors = training.end(signal.SIGINT)
    assert (training.process.returncode, out) == (0, "returned\n"), errors
    assert 14 <= training.reached() < 120
    resume(run)
    same_runs(train(tiny(), tiles, tmp_path / "whole", config), run)
