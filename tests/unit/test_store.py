"""The tile store, read back from files that are written here by hand."""

import csv
import itertools
import json
import pickle
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ganlab.config import SplitConfig
from ganlab.data.scenes import windows
from ganlab.data.store import Source, StoredScene, Tile, TileStore
from ganlab.errors import InputError

SIZE = 4
SHARDS = (3, 1, 4)
GRID = [2.0, 0.0, 100.0, 0.0, -2.0, 200.0]


def write_store(folder, version=1):
    """Eight tiles of two scenes in three shards: image (2, 4, 4) uint16, fine (1, 8, 8) float32."""
    rng = np.random.default_rng(5)
    n = sum(SHARDS)
    arrays = {
        "image": rng.integers(0, 60000, (n, 2, SIZE, SIZE), np.uint16),
        "fine": rng.normal(size=(n, 1, 2 * SIZE, 2 * SIZE)).astype(np.float32),
        "valid": rng.integers(0, 2, (n, 1, SIZE, SIZE), np.uint8),
    }
    folder.mkdir()
    ends = np.cumsum(SHARDS)
    for name, array in arrays.items():
        for number, (count, end) in enumerate(zip(SHARDS, ends, strict=True)):
            np.save(folder / f"{name}-{number:05d}.npy", array[end - count : end])
    sources = [
        {"name": "image", "kind": "image", "dtype": "uint16", "bands": ["B4", "B3"]},
        {"name": "fine", "kind": "image", "dtype": "float32", "bands": ["pan"], "factor": 2},
    ]
    scenes = [
        {"name": name, "group": group, "crs": "EPSG:32633", "transform": GRID}
        | {"width": 16, "height": 4}
        for name, group in (("a", "north"), ("b", "south"))
    ]
    head = {"format": "ganlab tile store", "version": version, "size": SIZE}
    head |= {"sources": sources, "scenes": scenes, "shards": list(SHARDS)}
    (folder / "store.json").write_text(json.dumps(head))
    with open(folder / "index.csv", "w", newline="") as file:
        lines = csv.writer(file)
        columns = ["tile", "scene", "group", "row", "column", "height", "width"]
        lines.writerow([*columns, "transform", "valid_fraction", "checksum"])
        for i in range(n):
            data = b"".join(arrays[name][i].tobytes() for name in ("image", "fine", "valid"))
            scene, group = ("a", "north") if i < 4 else ("b", "south")
            place = (0, SIZE * (i % 4), SIZE, SIZE, " ".join(map(repr, GRID)))
            fraction = float(arrays["valid"][i].mean())
            lines.writerow([i, scene, group, *place, fraction, f"{zlib.crc32(data):08x}"])
    return arrays


@pytest.fixture
def store(tmp_path):
    arrays = write_store(tmp_path / "tiles")
    return TileStore.open(tmp_path / "tiles"), arrays


def test_tiles_are_read_in_any_order(store):
    store, arrays = store
    assert len(store) == 8
    for wanted in ([0], [7, 0, 3, 3, 2, 4], np.arange(8)[::-1], []):
        for name, array in arrays.items():
            found = store.read(name, wanted)
            assert found.dtype == array.dtype
            np.testing.assert_array_equal(found, array[np.asarray(wanted, int)])


def test_index_and_sources(store):
    store, arrays = store
    assert store.sources["image"] == Source("image", "image", "uint16", ("B4", "B3"))
    assert store.sources["fine"].factor == 2
    assert store.scenes["b"] == StoredScene("b", "south", "EPSG:32633", tuple(GRID), 16, 4)
    tile = store.tiles[5]
    assert (tile.tile, tile.scene, tile.group, tile.row, tile.column) == (5, "b", "south", 0, 4)
    assert tile.transform == tuple(GRID)
    assert tile.valid_fraction == arrays["valid"][5].mean()
    assert store.nbytes() == sum(array.nbytes for array in arrays.values())


def test_source_goes_through_json():
    source = Source("label", "label", "uint8", ("class",), 3, (0, 2, 5), 255.0)
    assert Source.from_dict(json.loads(json.dumps(source.to_dict()))) == source


@pytest.mark.parametrize("wanted", [[8], [-1], [0, 100]])
def test_no_such_tile(store, wanted):
    with pytest.raises(InputError, match="has tiles 0 to 7"):
        store[0].read("image", wanted)


def test_no_such_source(store):
    with pytest.raises(InputError, match="no source 'label', only image, fine and valid"):
        store[0].read("label", [0])


def test_a_pickled_store_is_its_path(store):
    store, arrays = store
    store.read("image", [0])
    data = pickle.dumps(store)
    assert len(data) < 300
    np.testing.assert_array_equal(pickle.loads(data).read("image", [6]), arrays["image"][6:7])


def test_verify_names_the_damaged_tile(store):
    store, _ = store
    store.verify()
    file = store.path / "fine-00002.npy"
    data = bytearray(file.read_bytes())
    data[-4 * 64 * 2 - 1] ^= 1  # the last byte of the last tile but two
    file.write_bytes(data)
    with pytest.raises(InputError, match=r"tile 5 of scene b is damaged .shard 00002"):
        TileStore.open(store.path).verify()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: (path / "store.json").unlink(), "not a tile store: store.json is missing"),
        (lambda path: (path / "index.csv").unlink(), "not a tile store: index.csv is missing"),
        (lambda path: (path / "store.json").write_text("{"), "not a tile store, or damaged"),
        (lambda path: (path / "store.json").write_text("{}"), "not a tile store, or damaged"),
        (lambda path: (path / "fine-00001.npy").unlink(), "fine-00001.npy is missing"),
        (
            lambda path: (path / "valid-00002.npy").write_bytes(
                (path / "valid-00002.npy").read_bytes()[:60]
            ),
            "valid-00002.npy is missing or cut short",
        ),
        (
            lambda path: (path / "index.csv").write_text(
                "".join((path / "index.csv").read_text().splitlines(keepends=True)[:-1])
            ),
            "lists 7 tiles, the shards hold 8",
        ),
    ],
)
def test_what_is_no_store_is_refused(store, spoil, message):
    spoil(store[0].path)
    with pytest.raises(InputError, match=message):
        TileStore.open(store[0].path)


def test_other_versions_are_refused(tmp_path):
    write_store(tmp_path / "tiles", version=2)
    with pytest.raises(InputError, match="version 2; expected ganlab tile store, version 1"):
        TileStore.open(tmp_path / "tiles")
    with pytest.raises(InputError, match="nowhere is not a tile store"):
        TileStore.open(tmp_path / "nowhere")


def test_a_shard_cut_by_a_few_bytes_is_refused_when_read(store):
    file = store[0].path / "fine-00001.npy"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"fine-00001.npy cannot be read"):
        TileStore.open(store[0].path).read("fine", [3])


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("a shard was unpickled",)


@pytest.mark.parametrize("wrapped", [False, True])
def test_shards_are_never_unpickled(store, wrapped):
    file = store[0].path / "image-00000.npy"
    if wrapped:
        np.save(file, np.array([Bomb()] * 200, object), allow_pickle=True)
    else:
        file.write_bytes(pickle.dumps([Bomb()] * 200))
    with pytest.raises(InputError, match=r"image-00000.npy cannot be read"):
        TileStore.open(store[0].path).read("image", [0])


def test_shards_of_another_shape_are_refused(store):
    np.save(store[0].path / "image-00000.npy", np.zeros((3, 2, SIZE, SIZE), np.int32))
    with pytest.raises(InputError, match=r"int32 .3, 2, 4, 4., expected uint16"):
        TileStore.open(store[0].path).read("image", [0])


def in_memory(scenes, size, stride, edges):
    """A store of scenes {name: (group, width, height)} without any pixels."""
    tiles, stored = [], {}
    for name, (group, width, height) in scenes.items():
        stored[name] = StoredScene(name, group, None, tuple(GRID), width, height)
        for w in windows(width, height, size, stride, edges):
            place = (w.row_off, w.col_off, size, size, tuple(GRID), 1.0, "")
            tiles.append(Tile(len(tiles), name, group, *place))
    return TileStore("memory", {}, stored, size, tiles, [len(tiles)])


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_shares_never_have_a_pixel_in_common(data):
    size = data.draw(st.integers(2, 9), "size")
    stride = data.draw(st.integers(1, size + 2), "stride")
    edges = data.draw(st.sampled_from(["shift", "pad", "drop"]), "edges")
    extents = data.draw(
        st.lists(st.tuples(st.integers(size, 40), st.integers(size, 40)), min_size=1, max_size=2)
    )
    scenes = {f"scene{i}": (f"scene{i}", *extent) for i, extent in enumerate(extents)}
    store = in_memory(scenes, size, stride, edges)
    split = store.split(
        SplitConfig(
            block=data.draw(st.integers(size, 25), "block"),
            validation=data.draw(st.sampled_from([0.0, 0.2, 0.5])),
            test=data.draw(st.sampled_from([0.0, 0.2, 0.5])),
            seed=data.draw(st.integers(0, 5)),
        )
    )
    shares = {"train": split.train, "validation": split.validation, "test": split.test}
    together = np.concatenate(list(shares.values()))
    assert len(np.unique(together)) == len(together) == len(store) - split.dropped
    owner = {name: np.full((h, w), "", object) for name, (_, w, h) in scenes.items()}
    for share, numbers in shares.items():
        for tile in (store.tiles[i] for i in numbers):
            pixels = owner[tile.scene][tile.row :, tile.column :][: tile.height, : tile.width]
            assert set(pixels.ravel()) <= {"", share}
            pixels[:] = share


def test_blocks_are_shared_out_by_the_fractions():
    store = in_memory({"a": ("a", 100, 60), "b": ("b", 40, 100)}, 10, 10, "shift")
    split = store.split(SplitConfig(block=20, validation=0.2, test=0.24, seed=3))
    # 5 x 3 + 2 x 5 = 25 blocks of four tiles: 5 validate, 6 test, 14 train, none straddles.
    assert (len(split.train), len(split.validation), len(split.test)) == (56, 20, 24)
    assert split.dropped == 0
    assert split.train.dtype == np.int64
    again = store.split(SplitConfig(block=20, validation=0.2, test=0.24, seed=3))
    other = store.split(SplitConfig(block=20, validation=0.2, test=0.24, seed=4))
    np.testing.assert_array_equal(split.test, again.test)
    assert set(split.test.tolist()) != set(other.test.tolist())


def test_every_share_gets_a_block_if_there_are_enough():
    for blocks, sizes in ((3, (1, 1, 1)), (2, (1, 0, 1)), (1, (1, 0, 0))):
        store = in_memory({"a": ("a", 10 * blocks, 10)}, 10, 10, "shift")
        split = store.split(SplitConfig(block=10, validation=0.01, test=0.02))
        found = tuple(map(len, (split.train, split.validation, split.test)))
        assert sum(found) == blocks
        assert found[0] == sizes[0]
        assert sorted(found) == sorted(sizes)
    everything = store.split(SplitConfig(block=10, validation=0, test=1))
    assert (len(everything.train), len(everything.test)) == (0, 1)


def test_a_narrow_rest_belongs_to_its_neighbour():
    store = in_memory({"a": ("a", 24, 10)}, 10, 10, "shift")
    split = store.split(SplitConfig(block=10, validation=0, test=0.5))
    # Blocks 0..9 and 10..23; the shifted tile 14..23 overlaps that at 10 and shares its block.
    assert split.dropped == 0
    assert {tuple(split.train), tuple(split.test)} == {(0,), (1, 2)}


def test_tiles_across_a_border_are_dropped_and_counted():
    store = in_memory({"a": ("a", 40, 10)}, 10, 5, "shift")
    split = store.split(SplitConfig(block=20, validation=0, test=0.5))
    assert split.dropped == 1  # the tile 15..24
    assert {tuple(split.train), tuple(split.test)} == {(0, 1, 2), (4, 5, 6)}


def test_groups_stay_together():
    scenes = {f"s{i}": (f"city{i // 2}", 20, 10) for i in range(20)}
    store = in_memory(scenes, 10, 10, "shift")
    split = store.split(SplitConfig(by="group", validation=0.2, test=0.3))
    shares = [
        {store.tiles[i].group for i in s} for s in (split.train, split.validation, split.test)
    ]
    assert [len(groups) for groups in shares] == [5, 2, 3]
    assert all(not a & b for a, b in itertools.combinations(shares, 2))
    assert sum(map(len, (split.train, split.validation, split.test))) == 40


def test_groups_by_name():
    scenes = {f"s{i}": (f"city{i}", 10, 10) for i in range(10)}
    store = in_memory(scenes, 10, 10, "shift")
    config = SplitConfig(by="group", test_groups=("city3", "city7"), validation=0.25)
    split = store.split(config)
    assert split.test.tolist() == [3, 7]
    assert len(split.validation) == 2
    named = SplitConfig(by="group", test_groups=("city3",), validation_groups=("city0",))
    split = store.split(named)
    assert (split.test.tolist(), split.validation.tolist(), len(split.train)) == ([3], [0], 8)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SplitConfig(validation=0.7, test=0.4), "validation 0.7 and test 0.4"),
        (SplitConfig(validation=-0.1), "validation -0.1"),
        (SplitConfig(block=9), "block 9 is smaller than a tile .10 pixels"),
        (SplitConfig(block=10, test_groups=("city0",)), 'need by="group"'),
        (SplitConfig(by="group", test_groups=("Paris",)), "Paris are unknown.*has city0, city1"),
        (
            SplitConfig(by="group", test_groups=("city0",), validation_groups=("city0",)),
            "in two parts",
        ),
    ],
)
def test_impossible_splits(config, message):
    store = in_memory({f"s{i}": (f"city{i}", 10, 10) for i in range(2)}, 10, 10, "shift")
    with pytest.raises(InputError, match=message):
        store.split(config)
