"""Damaged and hostile tile stores: read right, or refused in one line; nothing else.

Damage follows from a seed. Hostile stores have right checksums, so that every other check is met.
"""

import csv
import json
import resource
import shutil
import zlib

import numpy as np
import pytest
import rasterio
from damage import damaged, result_or_refusal, spoil
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.transform import from_origin

from ganlab.config import SplitConfig, TilingConfig
from ganlab.data import tiling
from ganlab.data.store import TileStore, head_checksum
from ganlab.errors import InputError

QUICK, SLOW = 100, 2000


def write_scene(path, bands, pixel, seed):
    rng = np.random.default_rng(seed)
    size = round(24 * 2 / pixel)
    image = rng.integers(0, 4, (bands, size, size)).astype(np.uint16)
    grid = {"driver": "GTiff", "width": size, "height": size, "count": bands, "dtype": "uint16"}
    place = from_origin(500_000 + 1000 * seed, 5_000_000, pixel, pixel)
    with rasterio.open(path, "w", **grid, crs="EPSG:32633", transform=place) as file:
        file.write(image)
    return str(path)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Two scenes, three sources, several shards."""
    folder = tmp_path_factory.mktemp("fuzz")
    config = TilingConfig(
        images=[write_scene(folder / f"{name}.tif", 3, 2, i) for i, name in enumerate("ab")],
        labels=[write_scene(folder / f"{name}-label.tif", 1, 2, i) for i, name in enumerate("ab")],
        fine=[write_scene(folder / f"{name}-fine.tif", 1, 1, i) for i, name in enumerate("ab")],
        to=folder / "tiles",
        size=8,
        groups=("north", "south"),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiling, "SHARD_BYTES", 8000)
        made = tiling.tile(config)
    assert len(made.shards) > 2
    return made


@pytest.fixture(scope="module")
def right(store):
    return everything(store.path)


def everything(path):
    """All that a store says, as one would use it."""
    store = TileStore.open(path)
    parts = {name: store.read(name, np.arange(len(store))) for name in (*store.sources, "valid")}
    split = store.split(SplitConfig(block=8))
    return {
        "said": (store.sources, store.scenes, store.size, store.tiles, store.shards),
        "pixels": {name: part.tobytes() for name, part in parts.items()},
        "split": (split.train.tolist(), split.validation.tolist(), split.test.tolist()),
    }


def meet_damage(store, right, seeds):
    """How many stores were refused; the others are read as if nothing had happened."""
    files = sorted(store.path.iterdir())
    refused = 0
    for seed in seeds:
        rng = np.random.default_rng(seed)
        texts = [file for file in files if file.suffix != ".npy"]
        file = rng.choice(texts if seed % 2 else files)
        what, data = spoil(file.read_bytes(), rng)
        with damaged(file, data):
            result = result_or_refusal(lambda: everything(store.path))
        if isinstance(result, InputError):
            refused += 1
            assert len(str(result)) < 2000
        else:
            assert result == right, f"seed {seed}: {file.name}, {what}: read as something else"
    return refused


def test_damage_is_refused_or_does_no_harm(store, right):
    assert meet_damage(store, right, range(QUICK)) > 0.9 * QUICK


@pytest.mark.slow
def test_much_more_damage_is_refused_or_does_no_harm(store, right):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert meet_damage(store, right, range(QUICK, QUICK + SLOW)) > 0.9 * SLOW
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, -1, 2**31, 2**63, 10**30, 300_000_000])
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["../x", "/x", "valid", "object", "EPSG:0", "a\0b", "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
AGAIN = {"suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]}


def change_something(data, head):
    """Put anything in place of one of the values, at any depth."""
    place, key = head, data.draw(st.sampled_from([k for k in head if "checksum" not in k]))
    while isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans()):
        place = place[key]
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
    place[key] = data.draw(JSON)


def meet_hostile_heads(store, tmp_path_factory, examples):
    folder = tmp_path_factory.mktemp("hostile") / "tiles"
    shutil.copytree(store.path, folder)
    text = (folder / "store.json").read_text()

    @settings(max_examples=examples, **AGAIN)
    @given(st.data())
    def meet(data):
        head = json.loads(text)
        change_something(data, head)
        head["checksum"] = head_checksum(head)
        (folder / "store.json").write_text(json.dumps(head))
        result_or_refusal(lambda: everything(folder))

    meet()


def test_hostile_heads_are_read_or_refused(store, tmp_path_factory):
    meet_hostile_heads(store, tmp_path_factory, QUICK)


@pytest.mark.slow
def test_many_more_hostile_heads_are_read_or_refused(store, tmp_path_factory):
    meet_hostile_heads(store, tmp_path_factory, SLOW)


FIELDS = (
    st.text(max_size=8)
    | st.integers().map(str)
    | st.floats().map(repr)
    | st.lists(st.floats(), min_size=6, max_size=6).map(lambda v: " ".join(map(repr, v)))
    | st.sampled_from(["a", "b", "north", "0", "8", "1e400", "\0", '"', "1_0", "١", "0" * 5000])
)


def meet_hostile_indices(store, tmp_path_factory, examples):
    folder = tmp_path_factory.mktemp("hostile") / "tiles"
    shutil.copytree(store.path, folder)
    with open(folder / "index.csv", newline="") as file:
        lines = list(csv.reader(file))
    head = json.loads((folder / "store.json").read_text())

    @settings(max_examples=examples, **AGAIN)
    @given(st.integers(0, len(lines) - 1), st.integers(0, len(lines[0]) - 1), FIELDS)
    def meet(row, column, value):
        changed = [line.copy() for line in lines]
        changed[row][column] = value
        with open(folder / "index.csv", "w", newline="", errors="surrogateescape") as file:
            csv.writer(file, lineterminator="\n").writerows(changed)
        head["index_checksum"] = f"{zlib.crc32((folder / 'index.csv').read_bytes()):08x}"
        head["checksum"] = head_checksum(head)
        (folder / "store.json").write_text(json.dumps(head))
        result_or_refusal(lambda: everything(folder))

    meet()


def test_hostile_indices_are_read_or_refused(store, tmp_path_factory):
    meet_hostile_indices(store, tmp_path_factory, QUICK)


@pytest.mark.slow
def test_many_more_hostile_indices_are_read_or_refused(store, tmp_path_factory):
    meet_hostile_indices(store, tmp_path_factory, SLOW)
