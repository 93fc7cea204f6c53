"""No ground is trained on and measured on, whatever the layout of the scenes."""

import itertools
import math

import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.transform import from_origin
from rasterio.warp import transform

from ganlab.config import SplitConfig
from ganlab.data.scenes import windows
from ganlab.data.split import empty_parts, split_tiles
from ganlab.data.store import StoredScene, Tile
from ganlab.errors import InputError

SIZE = 8
UTM33 = "EPSG:32633"
UTM34 = "EPSG:32634"
PARTS = ("train", "validation", "test")


def scene(name, west=0.0, north=0.0, width=64, height=64, **options):
    """A scene of square pixels; ``west`` and ``north`` in metres."""
    pixel = options.get("pixel", 1.0)
    grid = from_origin(500_000 + west, 5_500_000 + north, pixel, pixel)
    grid = grid @ Affine.rotation(options.get("turned", 0.0))
    place = (options.get("crs", UTM33), tuple(grid)[:6], width, height)
    return StoredScene(name, options.get("group", name), *place)


def cut(scenes, stride=SIZE, edges="shift", keep=lambda scene, window: True):
    """All tiles of some scenes."""
    tiles = []
    for s in scenes:
        for w in windows(s.width, s.height, SIZE, stride, edges):
            if not keep(s, w):
                continue
            place = Affine(*s.transform) @ Affine.translation(w.col_off, w.row_off)
            where = (w.row_off, w.col_off, SIZE, SIZE, tuple(place)[:6])
            tiles.append(Tile(len(tiles), s.name, s.group, *where, 1.0, ""))
    return tiles


def split(scenes, tiles, **options):
    return split_tiles(SplitConfig(**options), {s.name: s for s in scenes}, tiles, SIZE)


def footprint(scene, tile, crs=UTM33):
    """The measured part of a tile as a polygon, with points along its edges."""
    rows = (max(tile.row, 0), min(tile.row + tile.height, scene.height))
    columns = (max(tile.column, 0), min(tile.column + tile.width, scene.width))
    along = np.linspace(0, 1, 5)[:-1]
    left, right = columns
    top, bottom = rows
    x = np.concatenate(
        [
            left + along * (right - left),
            np.full(4, right),
            right - along * (right - left),
            np.full(4, left),
        ]
    )
    y = np.concatenate(
        [
            np.full(4, top),
            top + along * (bottom - top),
            np.full(4, bottom),
            bottom - along * (bottom - top),
        ]
    )
    grid = Affine(*scene.transform)
    xs = grid.a * x + grid.b * y + grid.c
    ys = grid.d * x + grid.e * y + grid.f
    if scene.crs != crs:
        xs, ys = transform(scene.crs, crs, xs, ys)
    return shapely.Polygon(np.stack([xs, ys], axis=1))


def common_ground(scenes, tiles, one, other):
    """Square metres that tiles of two parts share."""
    by_name = {s.name: s for s in scenes}
    areas = [
        shapely.union_all([footprint(by_name[tiles[i].scene], tiles[i]) for i in part])
        for part in (one, other)
    ]
    return areas[0].intersection(areas[1]).area


def assert_no_ground_in_two_parts(scenes, tiles, found):
    for one, other in itertools.combinations(PARTS, 2):
        shared = common_ground(scenes, tiles, getattr(found, one), getattr(found, other))
        assert shared < 0.05 * SIZE, (one, other, shared)  # rounding along borders
    together = np.concatenate([found.train, found.validation, found.test])
    assert len(np.unique(together)) == len(together) == len(tiles) - found.dropped


@settings(max_examples=150)
@given(st.data())
def test_no_ground_is_in_two_parts_in_random_layouts(data):
    """Dates, sheets that overlap, other pixel sizes, turned grids, another system."""
    scenes = []
    for number in range(data.draw(st.integers(1, 4), "scenes")):
        crs = data.draw(st.sampled_from([UTM33, UTM33, UTM34]), "crs")
        pixel = data.draw(st.sampled_from([1.0, 1.0, 0.5, 2.0, 3.0]), "pixel")
        west = data.draw(st.integers(-60, 60), "west") * data.draw(st.sampled_from([1, 0.37]))
        north = data.draw(st.integers(-60, 60), "north")
        turned = data.draw(st.sampled_from([0.0, 0.0, 30.0, 90.0]), "turned")
        made = scene(f"s{number}", west, north, 48, 40, pixel=pixel, turned=turned)
        if crs == UTM34:
            grid = Affine(*made.transform)
            (x,), (y,) = transform(UTM33, UTM34, [grid.c], [grid.f])
            grid = Affine(grid.a, grid.b, x, grid.d, grid.e, y)
            made = StoredScene(made.name, made.group, UTM34, tuple(grid)[:6], 48, 40)
        scenes.append(made)
    stride = data.draw(st.sampled_from([SIZE, SIZE // 2, SIZE + 3]), "stride")
    edges = data.draw(st.sampled_from(["shift", "pad", "drop"]), "edges")
    tiles = cut(scenes, stride, edges)
    by = data.draw(st.sampled_from(["block", "block", "group"]), "by")
    found = split(
        scenes,
        tiles,
        by=by,
        overlap="drop",
        block=data.draw(st.sampled_from([SIZE, 13, 4 * SIZE]), "block"),
        validation=data.draw(st.sampled_from([0.0, 0.2])),
        test=data.draw(st.sampled_from([0.2, 0.5])),
        seed=data.draw(st.integers(0, 3)),
    )
    assert_no_ground_in_two_parts(scenes, tiles, found)


def test_dates_of_one_place_fall_into_the_same_part():
    scenes = [scene(month) for month in ("june", "july", "august")]
    tiles = cut(scenes)
    found = split(scenes, tiles, block=16)
    for part in PARTS:
        places = [(tiles[i].row, tiles[i].column) for i in getattr(found, part)]
        assert len(places) == 3 * len(set(places)) > 0
    assert found.dropped == 0


def test_a_second_date_changes_nothing_for_the_first_one():
    june, july = scene("june"), scene("july")
    alone = split([june], cut([june]), block=16)
    both = split([june, july], cut([june, july]), block=16)
    for part in PARTS:
        numbers = getattr(both, part)
        assert numbers[numbers < 64].tolist() == getattr(alone, part).tolist()


def test_sheets_that_overlap_share_blocks():
    scenes = [scene("west"), scene("east", west=44)]
    tiles = cut(scenes)
    found = split(scenes, tiles, block=16)
    assert_no_ground_in_two_parts(scenes, tiles, found)
    assert len(found.test) > 0


def test_scenes_in_two_systems_are_compared_on_the_ground():
    scenes = [None, None]
    # 18 degrees east lies between the zones 33 and 34.
    (x,), (y,) = transform("EPSG:4326", UTM33, [18.0], [49.0])
    scenes[0] = StoredScene("here", "here", UTM33, (1.0, 0, x, 0, -1.0, y), 64, 64)
    (x,), (y,) = transform("EPSG:4326", UTM34, [18.0], [49.0])
    scenes[1] = StoredScene("there", "there", UTM34, (1.0, 0, x, 0, -1.0, y), 64, 64)
    tiles = cut(scenes)
    found = split(scenes, tiles, block=16)
    assert_no_ground_in_two_parts(scenes, tiles, found)
    assert {tiles[i].scene for i in found.test} == {"here", "there"}
    with pytest.raises(InputError, match="have 9[0-9]% of the smaller one's tiled ground"):
        split(scenes, tiles, by="group", validation=0)


def test_scenes_far_apart_in_other_systems_have_blocks_of_their_own():
    scenes = [scene("a"), scene("b", crs="EPSG:32718"), scene("c", crs="EPSG:3413")]
    tiles = cut(scenes)
    found = split(scenes, tiles, block=16)
    assert found.dropped == 0
    assert sum(found.counts().values()) == 3 * 64


def test_the_two_sides_of_the_antimeridian_are_one_ground():
    step = 0.001
    east = StoredScene("e", "e", "EPSG:4326", (step, 0, 179.97, 0, -step, 10.0), 64, 64)
    west = StoredScene("w", "w", "EPSG:4326", (step, 0, -180.03, 0, -step, 10.0), 64, 64)
    tiles = cut([east, west])
    found = split([east, west], tiles, block=16)
    for part in PARTS:
        places = [(tiles[i].row, tiles[i].column) for i in getattr(found, part)]
        assert len(places) == 2 * len(set(places)) > 0


def test_one_file_under_two_names_without_coordinates():
    scenes = [StoredScene(n, n, None, (1, 0, 0, 0, 1, 0), 64, 64) for n in ("a", "copy", "c")]
    tiles = cut(scenes)
    contents = {"a": "1", "copy": "1", "c": "2"}
    tiles = [_with_checksum(tile, contents[tile.scene]) for tile in tiles]
    found = split(scenes, tiles, block=16)
    parts = {}
    for part in PARTS:
        for i in getattr(found, part):
            parts[tiles[i].scene, tiles[i].row, tiles[i].column] = part
    same = [parts["a", r, c] == parts["copy", r, c] for r, c in _places()]
    other = [parts["a", r, c] == parts["c", r, c] for r, c in _places()]
    assert all(same)
    assert not all(other)


def _places():
    return [(r, c) for r in range(0, 64, SIZE) for c in range(0, 64, SIZE)]


def _with_checksum(tile, content):
    fields = {**vars(tile), "checksum": f"{content} {tile.row} {tile.column}"}
    return Tile(**fields)


def fractions(found):
    sizes = [len(getattr(found, part)) for part in PARTS]
    return [size / sum(sizes) for size in sizes]


@pytest.mark.parametrize("seed", range(8))
def test_scattered_ground_is_dealt_by_tiles_not_by_blocks(seed):
    """Most blocks hold one or two tiles, a few hold sixteen."""
    rng = np.random.default_rng(seed)
    valid = rng.random((16, 16)) < 0.25
    valid[:4, :8] = True
    scenes = [scene("a", width=128, height=128)]
    tiles = cut(scenes, keep=lambda s, w: valid[w.row_off // SIZE, w.col_off // SIZE])
    found = split(scenes, tiles, seed=seed)
    train, validation, test = fractions(found)
    assert abs(validation - 0.15) <= 0.02
    assert abs(test - 0.15) <= 0.02
    assert abs(train - 0.70) <= 0.04


def test_the_best_deal_of_few_unequal_blocks_is_found():
    """Blocks of 16, 8, 4, 2 and 1 tiles: of all deals, none comes nearer."""
    sizes = {0: 16, 1: 8, 2: 4, 3: 2, 4: 1}
    scenes = [scene("a", width=5 * 32, height=32)]

    def keep(s, w):
        number = w.row_off // SIZE * 4 + w.col_off % 32 // SIZE
        return number < sizes[w.col_off // 32]

    tiles = cut(scenes, keep=keep)
    total = sum(sizes.values())

    def miss(validation, test):
        return abs(validation - 0.2 * total) + abs(test - 0.3 * total)

    deals = itertools.product(range(3), repeat=5)
    best = math.inf
    for deal in deals:
        parts = [sum(n for b, n in sizes.items() if deal[b] == p) for p in range(3)]
        if min(parts) > 0:
            best = min(best, miss(parts[1], parts[2]))
    for seed in range(6):
        found = split(scenes, tiles, validation=0.2, test=0.3, seed=seed)
        assert miss(len(found.validation), len(found.test)) <= best + 2 * 0.01 * total


def test_tiles_that_overlap_count_as_they_are_kept():
    """With half a stride a third of the tiles straddles; fractions are those of what is kept."""
    scenes = [scene("a", width=160, height=160)]
    tiles = cut(scenes, stride=SIZE // 2)
    found = split(scenes, tiles)
    assert found.dropped > 0
    train, validation, test = fractions(found)
    assert abs(validation - 0.15) < 0.03
    assert abs(test - 0.15) < 0.03
    assert abs(train - 0.7) < 0.05


def test_coarser_scenes_get_blocks_that_hold_their_tiles():
    scenes = [scene("fine", width=128, height=128), scene("coarse", pixel=6.0, north=3000)]
    tiles = cut(scenes)
    found = split(scenes, tiles)
    assert_no_ground_in_two_parts(scenes, tiles, found)
    kept = np.concatenate([found.train, found.validation, found.test])
    assert {tiles[i].scene for i in kept} == {"fine", "coarse"}
    assert found.dropped < len(tiles) / 2


def test_groups_that_share_ground_are_refused_with_names_and_amount():
    scenes = [
        scene("june", group="2019"),
        scene("july", west=32, group="2020"),
        scene("far", west=5000, group="2021"),
    ]
    tiles = cut(scenes)
    options = {"by": "group", "test_groups": ("2020",), "validation": 0}
    with pytest.raises(InputError) as error:
        split(scenes, tiles, **options)
    message = str(error.value)
    assert "scene june of group '2019' and scene july of group '2020' have 50%" in message
    assert 'overlap="drop"' in message
    dropped = split(scenes, tiles, overlap="drop", **options)
    assert_no_ground_in_two_parts(scenes, tiles, dropped)
    assert dropped.counts() == {"train": 32 + 64, "validation": 0, "test": 64, "dropped": 32}
    kept = split(scenes, tiles, overlap="keep", **options)
    assert kept.counts() == {"train": 128, "validation": 0, "test": 64, "dropped": 0}


def test_groups_that_overlap_inside_one_part_are_no_contradiction():
    scenes = [
        scene("june", group="2019"),
        scene("july", west=32, group="2020"),
        scene("far", west=5000, group="test"),
    ]
    found = split(scenes, cut(scenes), by="group", test_groups=("test",), validation=0)
    assert found.counts() == {"train": 128, "validation": 0, "test": 64, "dropped": 0}


def test_an_empty_part_is_told_with_what_to_change():
    scenes = [scene("a", width=24, height=24)]
    tiles = cut(scenes)
    config = SplitConfig()
    told = empty_parts(split(scenes, tiles), config)
    assert "no tile for validation and test (9 train, 0 validation, 0 test, 0 dropped)" in told
    assert "--split.block" in told
    smaller = SplitConfig(block=SIZE)
    assert empty_parts(split(scenes, tiles, block=SIZE), smaller) is None
    no_test = SplitConfig(validation=0, test=0)
    assert empty_parts(split(scenes, tiles, validation=0, test=0), no_test) is None
    groups = SplitConfig(by="group")
    assert "groups" in empty_parts(split(scenes, tiles, by="group"), groups)
