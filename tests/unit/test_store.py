"""The tile store, read back from files that are written here by hand."""

import csv
import itertools
import json
import math
import os
import pickle
import shutil
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from damage import result_or_refusal, truncate
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


def change_head(path, **changes):
    head = json.loads((path / "store.json").read_text())
    (path / "store.json").write_text(json.dumps(head | changes))


def change_source(path, **changes):
    head = json.loads((path / "store.json").read_text())
    head["sources"][0] |= changes
    (path / "store.json").write_text(json.dumps(head))


def change_scene(path, **changes):
    head = json.loads((path / "store.json").read_text())
    head["scenes"][0] |= changes
    (path / "store.json").write_text(json.dumps(head))


HOSTILE_SOURCES = [
    ({"name": "../other/image"}, "source '../other/image': expected a name without folders"),
    ({"name": "/etc/image"}, "source '/etc/image': expected a name without folders"),
    ({"name": ".image"}, "source '.image': expected a name"),
    ({"name": ""}, "source '': expected a name"),
    ({"name": 7}, "sources.0.name: Input should be a valid string, found 7"),
    ({"name": "fine"}, "one name for each"),
    ({"name": "Fine"}, "one name for each"),
    ({"name": "key"}, "cannot be called key"),
    ({"name": "Valid"}, "cannot be called Valid"),
    ({"kind": "photo"}, "kind 'photo', not one of"),
    ({"dtype": "object"}, "type 'object', not one of"),
    ({"dtype": "U999999999"}, "type 'U999999999', not one of"),
    ({"dtype": "int16"}, "holds uint16 .3, 2, 4, 4., expected int16"),
    ({"bands": []}, "has 0 bands"),
    ({"bands": "red"}, "sources.0.bands"),
    ({"bands": ["b"] * 3}, "image-00000.npy holds uint16 .* expected uint16 .3, 3, 4, 4."),
    ({"factor": 0}, "factor 0, expected 1"),
    ({"factor": 10**6}, "image-00000.npy is missing or cut short"),
    ({"factor": 10**400}, "image-00000.npy is missing or cut short"),
    ({"factor": 1.5}, "sources.0.factor"),
    ({"classes": [70000]}, "uint16 cannot hold all its classes"),
    ({"classes": ["a"]}, "sources.0.classes.0"),
    ({"nodata": "none"}, "sources.0.nodata"),
    ({"flavour": 1}, "sources.0.flavour: no setting of Source"),
]
HOSTILE_SCENES = [
    ({"name": "b"}, "several scenes have the same name"),
    ({"transform": GRID[:5]}, "scene 'a': transform .* expected six finite numbers"),
    ({"transform": [*GRID[:5], float("inf")]}, "expected six finite numbers"),
    ({"transform": [*GRID[:5], float("nan")]}, "expected six finite numbers"),
    ({"transform": [0.0] * 6}, "gives its pixels no area"),
    ({"transform": "here"}, "scenes.0.transform"),
    ({"width": 0}, "scene 'a' has 0 x 4 pixels"),
    ({"height": 10**30}, "scene 'a' has 16 x 10"),
    ({"name": "c"}, "scene 'a' of group 'north', which store.json does not have"),
    ({"group": "east"}, "scene 'a' of group 'north', which store.json does not have"),
]
HOSTILE_HEADS = [
    ({"size": 0}, "size 0 or the number"),
    ({"size": 10**9}, "image-00000.npy is missing or cut short"),
    ({"size": "4"}, "size: Input should be a valid integer"),
    ({"size": 2}, "image-00000.npy holds .* expected uint16 .3, 2, 2, 2."),
    ({"shards": []}, "number of tiles in a shard"),
    ({"shards": [3, 1, -4]}, "number of tiles in a shard is below"),
    ({"shards": [300_000_000]}, "image-00000.npy is missing or cut short"),
    ({"shards": [3, 1]}, "index.csv lists more tiles than the 4 of the shards"),
    ({"shards": [3, 1, 4, 1]}, "image-00003.npy is missing"),
    ({"shards": [3, 1, 2]}, "expected uint16 .2, 2, 4, 4."),
    ({"shards": [3.0, 1, 4]}, "shards.0"),
    ({"shards": {"0": 3}}, "shards"),
    ({"sources": []}, "expected one name for each"),
    ({"sources": {}}, "sources: "),
    ({"sources": [7]}, "sources.0"),
    ({"scenes": None}, "scenes: "),
    ({"version": True}, "version"),
    ({"colour": "red"}, "colour: no setting of Head"),
]


@pytest.mark.parametrize(
    ("change", "what", "message"),
    [
        *[(change_source, what, message) for what, message in HOSTILE_SOURCES],
        *[(change_scene, what, message) for what, message in HOSTILE_SCENES],
        *[(change_head, what, message) for what, message in HOSTILE_HEADS],
    ],
)
def test_every_number_and_name_of_the_head_is_checked(store, change, what, message):
    change(store[0].path, **what)
    with pytest.raises(InputError, match=message) as refused:
        TileStore.open(store[0].path)
    assert len(str(refused.value)) < 1000
    assert "\n" not in str(refused.value)


def test_shards_of_another_folder_are_not_read(store, tmp_path):
    """The planted name leads to shards that fit in every way."""
    write_store(tmp_path / "private")
    change_source(store[0].path, name="../private/image")
    with pytest.raises(InputError, match="without folders"):
        TileStore.open(store[0].path)


@pytest.mark.parametrize(
    "text",
    [
        b"", b"null", b"[]", b"7", b'"ganlab tile store"', b"{", b"\xff\xfe{}", b"\0" * 100,
        b"[" * 200_000, b'{"a":' * 200_000, b"9" * 100_000, b'{"format": "ganlab tile store"}',
    ],
)  # fmt: skip
def test_texts_that_are_no_head(store, text):
    (store[0].path / "store.json").write_bytes(text)
    with pytest.raises(InputError, match="not a tile store, or damaged") as refused:
        TileStore.open(store[0].path)
    assert len(str(refused.value)) < 1000


def lines_of(path):
    with open(path / "index.csv", newline="") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("tile", "3", "line 4: tile 3, expected 2"),
        ("tile", "two", "line 4: invalid literal"),
        ("tile", "9" * 5000, "line 4: Exceeds the limit"),
        ("scene", "c", "line 4: scene 'c' of group 'north', which store.json does not have"),
        ("scene", "a\0", "which store.json does not have"),
        ("scene", "a" * 200_000, "not a tile store, or damaged: field larger|line 4: "),
        ("group", "south", "group 'south', which store.json does not have"),
        ("row", "-1", "row -1, column 8 is outside of scene 'a'"),
        ("column", "16", "row 0, column 16 is outside of scene 'a'"),
        ("column", str(10**30), "is outside of scene 'a'"),
        ("width", "5", "5 x 4 pixels, expected 4 x 4"),
        ("height", "0", "4 x 0 pixels"),
        ("transform", "1 2 3", "tile 2: transform .* expected six finite numbers"),
        ("transform", "nan 0 0 0 1 0", "expected six finite numbers"),
        ("transform", "0 0 0 0 0 0", "no area"),
        ("transform", "a b c d e f", "line 4: could not convert string to float"),
        ("valid_fraction", "1.01", "valid_fraction 1.01, expected 0 to 1"),
        ("valid_fraction", "nan", "valid_fraction nan"),
        ("checksum", "", "checksum '', expected eight"),
        ("checksum", "0x123456", "expected eight hexadecimal digits"),
    ],
)
def test_every_field_of_the_index_is_checked(store, column, value, message):
    lines = lines_of(store[0].path)
    lines[3][lines[0].index(column)] = value
    with open(store[0].path / "index.csv", "w", newline="") as file:
        csv.writer(file).writerows(lines)
    with pytest.raises(InputError, match=message) as refused:
        TileStore.open(store[0].path)
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: [],
        lambda lines: lines[1:],
        lambda lines: [line[:-1] for line in lines],
        lambda lines: [line[::-1] for line in lines],
        lambda lines: [*lines, lines[-1]],
        lambda lines: [*lines[:4], [], *lines[4:]],
        lambda lines: [*lines[:4], [*lines[4], "more"], *lines[5:]],
    ],
)
def test_lines_and_columns_of_the_index_are_checked(store, change):
    lines = lines_of(store[0].path)
    with open(store[0].path / "index.csv", "w", newline="") as file:
        csv.writer(file).writerows(change(lines))
    with pytest.raises(InputError):
        TileStore.open(store[0].path)


def test_an_index_without_an_end_is_not_read_to_it(store):
    with open(store[0].path / "index.csv", "ab") as file:
        file.truncate(file.tell() + 4 * 2**30)  # zeros that take no place on the disk
    with pytest.raises(InputError, match=r"index.csv lists more tiles|index.csv, line 10"):
        TileStore.open(store[0].path)


@pytest.mark.parametrize("name", ["store.json", "index.csv", "image-00000.npy"])
def test_pipes_are_not_waited_for(store, name):
    (store[0].path / name).unlink()
    os.mkfifo(store[0].path / name)
    with pytest.raises(InputError, match="is no file|is missing"):
        TileStore.open(store[0].path)


def test_no_bit_of_an_array_header_can_move_the_pixels(store):
    """All 1,024 bits: what is not refused is read right."""
    store, arrays = store
    file = store.path / "image-00001.npy"
    data = file.read_bytes()
    refused = 0
    for bit in range(1024):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        result = result_or_refusal(lambda: TileStore.open(store.path).read("image", [3]))
        if isinstance(result, InputError):
            refused += 1
            assert "image-00001.npy" in str(result)
        else:
            np.testing.assert_array_equal(result, arrays["image"][3:4])
    assert refused > 1000


@pytest.mark.parametrize(
    "text",
    [
        "{'descr': '<u2', 'fortran_order': True, 'shape': (1, 2, 4, 4), }",
        "{'descr': '>u2', 'fortran_order': False, 'shape': (1, 2, 4, 4), }",
        "{'descr': [('a', '<u2')], 'fortran_order': False, 'shape': (1, 2, 4, 4), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (1, 2, 4, 4), }",
        "{'descr': 'zz', 'fortran_order': False, 'shape': (1, 2, 4, 4), }",
        "{'descr': '<u2', 'fortran_order': False, 'shape': (2, 2, 4, 4), }",
        "{'descr': '<u2', 'fortran_order': False, 'shape': (1, 2, 4, 99999999999999999), }",
        "{'descr': '<u2', 'fortran_order': False, 'shape': (), }",
        "{'descr': '<u2', 'fortran_order': False}",
        "(" * 100,
        "",
    ],
)
def test_array_headers_that_do_not_fit(store, text):
    file = store[0].path / "image-00001.npy"
    pixels = file.read_bytes()[128:]
    header = text.encode().ljust(117) + b"\n"
    file.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + pixels)
    with pytest.raises(InputError, match=r"image-00001.npy (cannot be read|holds)"):
        TileStore.open(store[0].path)


def test_longer_headers_of_other_writers_are_read(store):
    store, arrays = store
    file = store.path / "image-00001.npy"
    data = file.read_bytes()
    header = data[10:127].ljust(181) + b"\n"
    file.write_bytes(data[:8] + len(header).to_bytes(2, "little") + header + data[128:])
    np.testing.assert_array_equal(
        TileStore.open(store.path).read("image", [3]), arrays["image"][3:4]
    )


def test_a_tile_is_verified_when_it_is_first_read_whatever_is_asked_of_it(store):
    store, arrays = store
    file = store.path / "fine-00002.npy"
    data = bytearray(file.read_bytes())
    data[-4 * 64 * 2 - 1] ^= 1  # the last byte of the last tile but two
    file.write_bytes(data)
    opened = TileStore.open(store.path)
    np.testing.assert_array_equal(opened.read("image", [4, 6]), arrays["image"][[4, 6]])
    for source in ("image", "valid", "fine"):
        with pytest.raises(InputError, match="tile 5 of scene b is damaged"):
            opened.read(source, [0, 5])


def test_a_mask_of_other_numbers_than_0_and_1_is_refused(store):
    store, arrays = store
    masks = arrays["valid"][4:].copy()
    masks[1, 0, 0, 0] = 2
    np.save(store.path / "valid-00002.npy", masks)
    lines = lines_of(store.path)
    parts = (arrays["image"][5], arrays["fine"][5], masks[1])
    lines[6][-1] = f"{zlib.crc32(b''.join(part.tobytes() for part in parts)):08x}"
    with open(store.path / "index.csv", "w", newline="") as file:
        csv.writer(file).writerows(lines)
    with pytest.raises(InputError, match="tile 5 of scene b is damaged"):
        TileStore.open(store.path).verify()


def test_a_shard_cut_while_the_store_is_open_is_an_error_and_no_signal(store):
    store, arrays = store
    np.testing.assert_array_equal(store.read("image", [4]), arrays["image"][4:5])
    store.verify()
    truncate(store.path / "image-00002.npy", 128 + 2 * 2 * 4 * 4 + 3)
    with pytest.raises(InputError, match="image-00002.npy was cut short while it was in use"):
        store.read("image", [7])


def test_a_store_that_is_replaced_while_it_is_open_stays_what_it_was(store):
    store, arrays = store
    store.verify()
    shutil.move(store.path, store.path.with_name("old"))
    write_store(store.path)
    np.save(store.path / "image-00001.npy", np.zeros((1, 2, SIZE, SIZE), np.uint16))
    np.testing.assert_array_equal(store.read("image", [3]), arrays["image"][3:4])


def test_threads_read_without_disturbing_each_other(store):
    store, arrays = store
    order = np.random.default_rng(0).integers(0, 8, 400).tolist()
    with ThreadPoolExecutor(8) as threads:
        read = list(threads.map(lambda tile: store.read("fine", [tile])[0], order))
    np.testing.assert_array_equal(np.stack(read), arrays["fine"][order])


@pytest.mark.skipif(not hasattr(os, "preadv"), reason="what other systems do is tested here")
def test_systems_without_positioned_reads_read_the_same(store, monkeypatch):
    store, arrays = store
    monkeypatch.delattr(os, "preadv")
    np.testing.assert_array_equal(store.read("fine", [7, 2]), arrays["fine"][[7, 2]])


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
        (SplitConfig(validation=math.nan), "validation nan"),
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
