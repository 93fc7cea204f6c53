"""The same ground is recognized in any system: across the antimeridian, at poles, turned.

Compared point by point: points of each tile are transformed to every other scene on their own.
"""

import itertools

import numpy as np
import pytest
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.warp import transform

from ganlab.config import SplitConfig
from ganlab.data import systems
from ganlab.data.ground import Ground, overlapping_pairs, whole
from ganlab.data.scenes import windows
from ganlab.data.split import split_tiles
from ganlab.data.store import StoredScene, Tile
from ganlab.errors import InputError

SIZE = 8
PARTS = ("train", "validation", "test")
LOCAL = 'LOCAL_CS["site",UNIT["metre",1]]'


def scene(name, crs, middle, metres=10.0, count=64, **options):
    """A scene of square pixels around a place (longitude, latitude)."""
    (x,), (y,) = transform("EPSG:4326", crs, [middle[0]], [middle[1]])
    pixel = metres / 111_320 if CRS.from_user_input(crs).is_geographic else metres
    grid = Affine.translation(x + options.get("shift", 0.0), y)
    grid = grid @ Affine.rotation(options.get("turned", 0.0)) @ Affine.scale(pixel, -pixel)
    grid = grid @ Affine.translation(-count / 2, -count / 2)
    return StoredScene(name, options.get("group", name), crs, tuple(grid)[:6], count, count)


def cut(scenes, stride=SIZE):
    tiles = []
    for s in scenes:
        for w in windows(s.width, s.height, SIZE, stride, "shift"):
            place = Affine(*s.transform) @ Affine.translation(w.col_off, w.row_off)
            where = (w.row_off, w.col_off, SIZE, SIZE, tuple(place)[:6])
            content = f"{s.name} {w.row_off} {w.col_off}"
            tiles.append(Tile(len(tiles), s.name, s.group, *where, 1.0, content))
    return tiles


def split(scenes, tiles, **options):
    return split_tiles(SplitConfig(**options), {s.name: s for s in scenes}, tiles, SIZE)


def points_in(tiles, scene, part):
    """Columns and rows of points inside the tiles of one part in a scene."""
    along = (np.arange(5) + 0.5) / 5 * SIZE
    x, y = np.meshgrid(along, along)
    inside = [tiles[i] for i in part if tiles[i].scene == scene.name]
    columns = np.array([t.column + x.ravel() for t in inside]).reshape(-1)
    rows = np.array([t.row + y.ravel() for t in inside]).reshape(-1)
    return columns, rows


def pixels_elsewhere(scene, other, columns, rows):
    """Pixels of another scene at the same ground, by way of longitude and latitude."""
    grid = Affine(*scene.transform)
    xs = grid.a * columns + grid.b * rows + grid.c
    ys = grid.d * columns + grid.e * rows + grid.f
    degrees = transform(scene.crs, "EPSG:4326", xs, ys)
    xs, ys = np.array(transform("EPSG:4326", other.crs, *degrees))
    back = ~Affine(*other.transform)
    period = 0.0
    if CRS.from_user_input(other.crs).is_geographic:
        period = 360.0
    elif other.crs in ("EPSG:3857", "EPSG:3395"):
        period = 2 * np.pi * 6_378_137
    for turn in (-2, -1, 0, 1, 2) if period else (0,):
        x = xs + turn * period
        yield back.a * x + back.b * ys + back.c, back.d * x + back.e * ys + back.f


def shared_points(scenes, tiles, found):
    """Points of tiles that lie inside a tile of another part."""
    count = 0
    for one, other in itertools.permutations(PARTS, 2):
        for a, b in itertools.product(scenes, repeat=2):
            columns, rows = points_in(tiles, a, getattr(found, one))
            theirs = [tiles[i] for i in getattr(found, other) if tiles[i].scene == b.name]
            boxes = [shapely.box(t.column, t.row, t.column + SIZE, t.row + SIZE) for t in theirs]
            if not boxes or not len(columns):
                continue
            area = shapely.union_all(boxes).buffer(-0.002)
            for x, y in pixels_elsewhere(a, b, columns, rows):
                count += int(shapely.contains_xy(area, x, y).sum())
    return count


FIJI = (180.0, -16.85)
ACROSS = {
    "degrees first": ["EPSG:4326", "EPSG:32760", "EPSG:32701"],
    "zones first": ["EPSG:32760", "EPSG:32701", "EPSG:4326"],
    "web mercator": ["EPSG:3857", "EPSG:32760", "EPSG:4326"],
    "mercator": ["EPSG:3395", "EPSG:3395"],
    "other degrees": ["EPSG:4167", "OGC:CRS84", "EPSG:3832"],
}


@pytest.mark.parametrize("crs", ACROSS.values(), ids=ACROSS)
@pytest.mark.parametrize("by", ["block", "group"])
def test_scenes_across_the_antimeridian(crs, by):
    scenes = [scene(f"s{i}", system, FIJI) for i, system in enumerate(crs)]
    tiles = cut(scenes)
    found = split(scenes, tiles, by=by, overlap="drop", block=24)
    assert shared_points(scenes, tiles, found) == 0
    if by == "block":
        assert min(map(len, (found.train, found.validation, found.test))) > 0
        assert found.dropped < 0.7 * len(tiles)


@pytest.mark.parametrize(("crs", "turn"), [("EPSG:4326", 360.0), ("EPSG:3395", 40075016.6855785)])
def test_both_sides_of_the_antimeridian_are_one_whatever_the_first_scene(crs, turn):
    """Opposite to the first scene a plane usually begins anew: here scenes lie there."""
    scenes = [scene("first", crs, (0.0, -16.85))]
    east = scene("east", crs, (179.99999, -16.85))
    a, b, c, d, e, f = east.transform
    scenes += [east, StoredScene("west", "west", crs, (a, b, c - turn, d, e, f), 64, 64)]
    tiles = cut(scenes)
    found = split(scenes, tiles, block=16)
    assert shared_points(scenes, tiles, found) == 0
    for part in PARTS:
        names = [tiles[i].scene for i in getattr(found, part)]
        assert names.count("east") == names.count("west")


def test_maps_of_the_world_from_0_and_from_minus_180():
    scenes = [
        StoredScene("a", "a", "EPSG:4326", (1.0, 0, -180.0, 0, -1.0, 32.0), 360, 64),
        StoredScene("b", "b", "EPSG:4326", (1.0, 0, 0.0, 0, -1.0, 32.0), 360, 64),
    ]
    tiles = cut(scenes, stride=4)
    tiles = [t for t in tiles if not (t.scene == "b" and t.column < 180 < t.column + SIZE)]
    tiles = [Tile(**{**vars(t), "tile": i}) for i, t in enumerate(tiles)]
    found = split(scenes, tiles)
    assert shared_points(scenes, tiles, found) == 0
    assert min(map(len, (found.train, found.validation, found.test))) > 0


@pytest.mark.parametrize("pole", [90.0, -90.0])
@pytest.mark.parametrize("by", ["block", "group"])
def test_a_band_of_degrees_around_a_pole_and_a_map_of_the_pole(pole, by):
    system = "EPSG:3413" if pole > 0 else "EPSG:3031"
    top = 90.0 if pole > 0 else -89.9
    scenes = [
        StoredScene("band", "band", "EPSG:4326", (5.0, 0, -180, 0, -0.1 / 64, top), 72, 64),
        StoredScene("map", "map", system, (200.0, 0, -6400.0, 0, -200.0, 6400.0), 64, 64),
        StoredScene("beside", "beside", system, (100.0, 0, 310.0, 0, -100.0, 3200.0), 64, 64),
    ]
    tiles = cut(scenes, stride=4)
    found = split(scenes, tiles, by=by, overlap="drop", block=16, test=0.4)
    assert shared_points(scenes, tiles, found) == 0


@pytest.mark.parametrize("first", [0, 1])
def test_a_continent_in_degrees_and_a_sheet_in_a_zone(first):
    """The zone cannot express the continent, the continent's system both."""
    scenes = [
        scene("sheet", "EPSG:32633", (15.0, 49.0)),
        StoredScene("earth", "earth", "EPSG:4326", (1.0, 0, -180.0, 0, -1.0, 90.0), 360, 180),
    ]
    scenes = [scenes[first], scenes[1 - first]]
    tiles = cut(scenes)
    found = split(scenes, tiles, by="group", overlap="drop", test_groups=("sheet",), validation=0)
    assert found.counts() == {"train": 45 * 23 - 1, "validation": 0, "test": 64, "dropped": 1}


def test_systems_without_a_transformation_between_them_are_refused_in_one_line():
    place = ((1.0, 0, 0, 0, -1.0, 0), 64, 64)
    scenes = [scene("utm", "EPSG:32633", (15.0, 49.0)), StoredScene("plan", "plan", LOCAL, *place)]
    tiles = cut(scenes)
    with pytest.raises(InputError, match=r"plan .LOCAL_CS.* scene utm .EPSG:32633. cannot expr"):
        split(scenes, tiles)
    kept = split(scenes, tiles, by="group", overlap="keep", test_groups=("plan",), validation=0)
    assert kept.counts() == {"train": 64, "validation": 0, "test": 64, "dropped": 0}


def test_turned_neighbours_that_only_touch_share_no_ground():
    """Their bounding boxes overlap, they themselves do not."""
    one = scene("one", "EPSG:32633", (15.0, 49.0), turned=30.0, group="a")
    grid = Affine(*one.transform) @ Affine.translation(64, 0)
    other = StoredScene("other", "b", "EPSG:32633", tuple(grid)[:6], 64, 64)
    far = scene("north-up", "EPSG:32633", (15.1, 49.0), group="c")
    scenes = [far, one, other]
    found = split(scenes, cut(scenes), by="group", test_groups=("b",), validation=0)
    assert found.counts() == {"train": 128, "validation": 0, "test": 64, "dropped": 0}
    nearer = Affine(*one.transform) @ Affine.translation(63.5, 0)
    scenes[2] = StoredScene("other", "b", "EPSG:32633", tuple(nearer)[:6], 64, 64)
    with pytest.raises(InputError, match="other of group 'b' have 1% of the smaller one's"):
        split(scenes, cut(scenes), by="group", test_groups=("b",), validation=0)


def test_a_copy_without_coordinates_lies_where_its_original_does():
    """The georeferenced scene, a picture of it, and a picture of something else."""
    georeferenced = scene("town", "EPSG:32633", (15.0, 49.0))
    copy = StoredScene("png", "png", None, (1, 0, 0, 0, 1, 0), 64, 64)
    other = StoredScene("other", "other", None, (1, 0, 0, 0, 1, 0), 64, 64)
    for scenes in itertools.permutations([georeferenced, copy, other]):
        tiles = cut(scenes)
        content = {"town": "1", "png": "1", "other": "2"}
        tiles = [
            Tile(**{**vars(t), "checksum": f"{content[t.scene]} {t.row} {t.column}"}) for t in tiles
        ]
        found = split(scenes, tiles, block=16)
        part_of = {}
        for part in PARTS:
            for i in getattr(found, part):
                part_of[tiles[i].scene, tiles[i].row, tiles[i].column] = part
        places = itertools.product(range(0, 64, SIZE), repeat=2)
        assert all(part_of["town", *place] == part_of["png", *place] for place in places)
        with pytest.raises(InputError, match="100%"):
            split(scenes, tiles, by="group", test_groups=("png",), validation=0)


@pytest.mark.parametrize("seed", range(12))
def test_no_ground_is_in_two_parts_in_any_mixture_of_systems(seed):
    places = {
        (18.0, 49.0): ["EPSG:32633", "EPSG:32634", "EPSG:4326", "EPSG:3857", "EPSG:3035"],
        FIJI: ["EPSG:32760", "EPSG:32701", "EPSG:4326", "EPSG:3857", "EPSG:3395", "EPSG:3832"],
        (-180.0, 68.0): ["EPSG:32660", "EPSG:32601", "EPSG:4326", "EPSG:3413", "EPSG:3576"],
        (-0.1, 51.5): ["EPSG:27700", "EPSG:32630", "EPSG:32631", "EPSG:4326", "EPSG:7405"],
    }
    rng = np.random.default_rng(seed)
    place = list(places)[seed % len(places)]
    scenes = []
    for number in range(3):
        system = str(rng.choice(places[place]))
        options = {
            "metres": float(rng.choice([10.0, 5.0, 13.0])),
            "count": int(rng.integers(24, 60)),
        }
        options["turned"] = float(rng.choice([0.0, 0.0, 20.0]))
        if CRS.from_user_input(system).is_geographic:
            options["shift"] = float(rng.choice([0.0, 360.0, -360.0]))
        scenes.append(scene(f"s{number}", system, place, **options))
    tiles = cut(scenes, stride=int(rng.choice([SIZE, SIZE // 2])))
    for by in ("block", "group"):
        found = split(scenes, tiles, by=by, overlap="drop", block=13, test=0.4)
        assert shared_points(scenes, tiles, found) == 0
        together = np.concatenate([found.train, found.validation, found.test])
        assert len(np.unique(together)) == len(tiles) - found.dropped


@pytest.mark.parametrize("by", ["block", "group"])
def test_a_finer_scene_beside_the_borders_of_blocks(by):
    """A hundredth of the first scene's pixel is two pixels of the second one."""
    coarse = StoredScene("c", "c", "EPSG:32633", (10.0, 0, 500_000, 0, -10.0, 5_500_000), 64, 64)
    place = (0.05, 0, 500_159.9, 0, -0.05, 5_500_000 - 100)
    fine = StoredScene("f", "f", "EPSG:32633", place, 64, 64)
    scenes = [coarse, fine]
    tiles = cut(scenes)
    for seed in range(6):
        found = split(scenes, tiles, by=by, overlap="drop", block=16, test=0.5, seed=seed)
        assert shared_points(scenes, tiles, found) == 0


def test_pairs_that_share_ground_are_found_once():
    scenes = [scene("a", "EPSG:32633", (15.0, 49.0)), scene("b", "EPSG:4326", (15.0, 49.0))]
    footprints = Ground.of(scenes).footprints(whole(scenes))
    first, second = overlapping_pairs(footprints, footprints)
    assert sorted(zip(first.tolist(), second.tolist(), strict=True)) == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
    ]


@pytest.mark.parametrize(
    ("system", "expected"),
    [
        ("EPSG:4326", 360.0),
        ("EPSG:4807", 400.0),  # in gon
        ("EPSG:3857", 40_075_016.69),
        ("EPSG:3832", 40_075_016.69),  # centred at 150 degrees east
        ("EPSG:6933", 34_735_060.89),  # parallels of 30 degrees in their true length: Snyder 1987
        ("EPSG:32633", None),
        ("ESRI:54009", None),  # Mollweide: parallels of unlike length
        (LOCAL, None),
        ("no system", None),
    ],
)
def test_the_distance_after_which_a_system_repeats_itself(system, expected):
    found = systems.period(system)
    assert found == expected if expected is None else abs(found - expected) < 0.01


def test_points_without_a_place_are_nan_and_the_others_are_right():
    longitude = np.array([15.0, 15.0, 16.0])
    latitude = np.array([49.0, 95.0, 50.0])
    x, y = systems.transformed("EPSG:4326", "EPSG:32633", longitude, latitude)
    expected = transform("EPSG:4326", "EPSG:32633", [15.0, 16.0], [49.0, 50.0])
    np.testing.assert_array_equal(np.isnan(x), [False, True, False])
    np.testing.assert_allclose([x[[0, 2]], y[[0, 2]]], expected)
