"""Processes that tile: what happens to them, and to a store, when somebody kills or doubles one."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import rasterio
from rasterio.transform import from_origin

from ganlab.cli import main
from ganlab.config import TilingConfig
from ganlab.data.store import TileStore
from ganlab.data.tiling import tile
from ganlab.files import LEFTOVER, exclusive

SLOW = """
import sys
from ganlab.config import TilingConfig
from ganlab.data import tiling

if __name__ == "__main__":
    tiling.SHARD_BYTES = 40_000
    tiling.tile(TilingConfig((sys.argv[1],), sys.argv[2], size=64, stride=1, workers=2))
"""
UNGUARDED = """
import sys
from ganlab.config import TilingConfig
from ganlab.data.tiling import tile

tile(TilingConfig(images=(sys.argv[1],), to=sys.argv[2], size=64, workers=2))
"""

UNGUARDED_LOADER = """
import multiprocessing
import sys
import numpy as np
from ganlab.config import ScalingConfig
from ganlab.data.batches import Batches, describe
from ganlab.data.store import TileStore

multiprocessing.set_start_method("spawn", force=True)
store = TileStore.open(sys.argv[1])
tiles = np.arange(len(store))
batches = Batches(store, tiles, describe(store, tiles, ScalingConfig()), batch_size=2)
print(len(list(batches.stream(0, 3, workers=2))))
"""


@pytest.fixture
def scene(tmp_path):
    path = tmp_path / "scene.tif"
    image = np.random.default_rng(0).integers(1, 255, (3, 256, 256), np.uint8)
    grid = {"width": 256, "height": 256, "count": 3, "dtype": "uint8", "crs": "EPSG:32633"}
    with rasterio.open(path, "w", **grid, transform=from_origin(5, 0, 1, 1)) as file:
        file.write(image)
    return str(path)


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def tiles_of(scene, to):
    return tile(TilingConfig(images=(scene,), to=to, size=64))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_the_process_that_started_them(tmp_path, scene, how):
    script = tmp_path / "slow.py"
    script.write_text(SLOW)
    to = tmp_path / "store"
    parent = subprocess.Popen([sys.executable, str(script), scene, str(to)])
    wait_for(lambda: list(tmp_path.glob(f".store.*{LEFTOVER}/image-0000*.npy")))
    workers = psutil.Process(parent.pid).children(recursive=True)
    assert len(workers) >= 2
    parent.send_signal(how)
    parent.wait()
    wait_for(lambda: not any(alive(worker) for worker in workers), seconds=10)
    assert not to.exists()
    # What the killed one left is no harm to the next, which sweeps it away.
    assert len(tiles_of(scene, to)) == 16
    TileStore.open(to).verify()
    assert not list(tmp_path.glob(f".store.*{LEFTOVER}"))


def alive(process):
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_store_that_is_being_written_is_left_alone(tmp_path, scene, capsys):
    to = tmp_path / "store"
    running = tmp_path / f".store.abcdefgh{LEFTOVER}"
    running.mkdir()
    command = ["tile", "--images", scene, "--to", str(to), "--size", "64"]
    with exclusive(to, "tiling"):
        with pytest.raises(SystemExit) as ended:
            main(command)
        assert ended.value.code == 2
        assert running.exists()
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{to} is being written by another process (tiling)" in line
    assert not to.exists()
    main(command)
    assert len(TileStore.open(to)) == 16


def test_two_tilings_at_once_give_one_store_and_one_refusal(tmp_path, scene):
    script = tmp_path / "slow.py"
    script.write_text(SLOW.replace("stride=1", "stride=16"))
    to = tmp_path / "store"
    command = [sys.executable, str(script), scene, str(to)]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate()[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 1]
    refused = errors[0 if both[0].returncode else 1].splitlines()[-1]
    assert "being written by another process" in refused or "exists already" in refused
    store = TileStore.open(to)
    assert len(store) == 13**2
    store.verify()


def test_a_script_without_a_main_guard_is_told_so_in_one_line(tmp_path, scene):
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED)
    command = [sys.executable, str(script), scene, str(tmp_path / "store")]
    run = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr.count("Traceback (most recent call last)") == 1
    assert run.stderr.splitlines()[-1].startswith("ganlab.errors.InputError: the 2 worker process")
    assert 'under `if __name__ == "__main__":`' in run.stderr.splitlines()[-1]
    assert sorted(os.listdir(tmp_path)) == ["scene.tif", "script.py"]


def test_loader_processes_of_a_script_without_a_main_guard(tmp_path, scene):
    """As on systems that spawn processes in place of forking them."""
    script = tmp_path / "script.py"
    store = tiles_of(scene, tmp_path / "store")
    script.write_text(UNGUARDED_LOADER)
    command = [sys.executable, str(script), str(store.path)]
    run = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr.count("Traceback (most recent call last)") == 1
    last = run.stderr.splitlines()[-1]
    assert last.startswith("ganlab.errors.InputError: the 2 loader processes do not start")
    assert 'under `if __name__ == "__main__":`' in last


def test_a_worker_that_is_killed_is_said(tmp_path, scene):
    script = tmp_path / "slow.py"
    script.write_text(SLOW)
    to = tmp_path / "store"
    command = [sys.executable, str(script), scene, str(to)]
    parent = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: list(tmp_path.glob(f".store.*{LEFTOVER}/image-0000*.npy")))
    for child in psutil.Process(parent.pid).children():
        if "multiprocessing.spawn" in " ".join(child.cmdline()):
            child.kill()
            break
    last = parent.communicate()[1].splitlines()[-1]
    assert "one of the 2 worker processes was ended from outside" in last
    assert not to.exists()
    assert not list(tmp_path.glob(f".store.*{LEFTOVER}"))


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_tiling_that_is_asked_to_end_leaves_nothing(tmp_path, scene, workers):
    code = (
        "from ganlab import cli; from ganlab.data import tiling; "
        "tiling.SHARD_BYTES = 40_000; cli.main()"
    )
    size = ["--size", "64", "--stride", "1", "--workers", workers]
    command = [sys.executable, "-c", code, "tile", "--images", scene, "--to", "store", *size]
    ended = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: list(tmp_path.glob(f".store.*{LEFTOVER}/image-0000*.npy")))
    children = psutil.Process(ended.pid).children(recursive=True)
    ended.send_signal(signal.SIGTERM)
    assert ended.communicate()[1] == "ganlab: interrupted\n"
    assert ended.returncode == 130
    wait_for(lambda: not any(alive(child) for child in children), seconds=10)
    assert os.listdir(tmp_path) == ["scene.tif"]
