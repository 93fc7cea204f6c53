"""Vector labels against pixel centres that are transformed one by one, and files of every kind."""

import json
import shutil
import sqlite3
import subprocess
import sys
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from affine import Affine
from damage import damaged, result_or_refusal, spoil
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.warp import transform
from rasterio.windows import Window

from ganlab import inference
from ganlab.config import ApplyConfig, TilingConfig
from ganlab.data import reprojection, vectors
from ganlab.data.grids import Grid
from ganlab.data.scenes import open_labels
from ganlab.data.store import Source
from ganlab.data.tiling import tile
from ganlab.errors import InputError, Note

DEGREES = CRS.from_epsg(4326)
box = shapely.box


def moved(source, target, points):
    """Points one by one where need be; NaN where there is no such place."""
    if source == target:
        return points.copy()
    found = np.full(points.shape, np.nan)
    try:
        with rasterio.Env():
            found[:, 0], found[:, 1] = transform(source, target, *points.T)
    except Exception:
        if len(points) > 1:
            half = len(points) // 2
            found[:half] = moved(source, target, points[:half])
            found[half:] = moved(source, target, points[half:])
    return found


def places(grid, pixels):
    t = grid.transform
    x, y = pixels.T
    return np.stack([t.a * x + t.b * y + t.c, t.d * x + t.e * y + t.f], axis=1)


def truth(grid, crs, shapes):
    """Which feature (from 1) holds a pixel's centre, and whether no edge is within 0.01 pixels."""
    columns, rows = np.meshgrid(np.arange(grid.width) + 0.5, np.arange(grid.height) + 0.5)
    turn = 360 if crs.is_geographic else 40075016.68557849 if crs.to_epsg() == 3857 else 0
    found = []
    for dx, dy in [(0, 0), *((0.01 * a, 0.01 * b) for a in (-1, 0, 1) for b in (-1, 0, 1))]:
        pixels = np.stack([(columns + dx).ravel(), (rows + dy).ravel()], axis=1)
        x, y = moved(grid.crs, crs, places(grid, pixels)).T
        classes = np.zeros(len(x), int)
        for number, shape in enumerate(shapes, start=1):
            for part in shapely.get_parts(shape):
                for by in (-turn, 0, turn):
                    classes[shapely.intersects_xy(part, x + by, y)] = number
        found.append(classes.reshape(grid.height, grid.width))
    return found[0], (np.array(found) == found[0]).all(axis=0)


def write(path, shapes, crs="EPSG:4326", layer=None, append=False, **columns):
    columns = columns or {"k": np.arange(1, len(shapes) + 1)}
    wkb = shapely.to_wkb(np.array(shapes, object))
    if not append:
        Path(path).unlink(missing_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pyogrio.raw.write(
            path, wkb, [np.asarray(column) for column in columns.values()], list(columns),
            geometry_type="Unknown", crs=crs, layer=layer, append=append,
        )  # fmt: skip
    return str(path)


def whole(scene):
    return scene.read(Window(0, 0, scene.grid.width, scene.grid.height))[0][0]


def wrong(folder, grid, crs, shapes):
    """Pixels away from edges that get another class than their centres have."""
    name = crs if isinstance(crs, str) else crs.to_wkt()
    scene = open_labels(write(folder / "f.gpkg", shapes, name), grid, "k")
    found = whole(scene)
    expected, sure = truth(grid, CRS.from_user_input(crs), shapes)
    for row in range(0, grid.height, 37):
        window = Window(5, row, grid.width - 5, min(37, grid.height - row))
        part = scene.read(window)[0][0]
        np.testing.assert_array_equal(part, found[row : row + window.height, 5:])
    assert len(np.unique(expected)) > 1
    assert sure.mean() > 0.9
    return int(((found != expected) & sure).sum())


def grid_at(crs, longitude, latitude, size, width=96, height=80, turn=0.0):
    """A grid whose middle lies at a place."""
    crs = CRS.from_user_input(crs)
    ((x, y),) = moved(DEGREES, crs, np.array([[longitude, latitude]], float))
    corner = Affine(size, 0, x, 0, -size, y) * Affine.rotation(turn)
    return Grid(crs, corner * Affine.translation(-width / 2, -height / 2), width, height)


# --- geometry ------------------------------------------------------------------------------

ANTARCTICA = shapely.Polygon(
    [(-180, -90), (180, -90), (180, -65), (90, -70), (0, -66), (-90, -72), (-180, -65)]
)


@pytest.mark.parametrize(
    ("grid", "crs", "shapes"),
    [
        # A border along a parallel: two vertices, 28 degrees apart.
        (grid_at("EPSG:32613", -105, 49, 30), "EPSG:4326", [box(-123, 49, -95, 60)]),
        # A map sheet at the resolution of aerial images.
        (grid_at("EPSG:32633", 15.125, 50.25, 0.25), "EPSG:4326", [box(15, 50, 15.25, 50.25)]),
        # A national grid with a shift of datum, far longer than the scene.
        (grid_at("EPSG:27700", -2, 53, 0.25), "EPSG:4326", [box(-9, 53, 5, 61)]),
        (grid_at("EPSG:2056", 8, 47, 10, turn=30), "EPSG:3035", [box(2e6, 1e6, 4.1693e6, 5e6)]),
        (grid_at("EPSG:3857", 10, 60, 100), "EPSG:32632", [box(1e5, 1e6, 5.56e5, 6.65e6)]),
        # Scenes in degrees.
        (grid_at("EPSG:4326", 10, 50, 0.01), "EPSG:32632", [box(1e5, 1e6, 5.72e5, 5.54e6)]),
        (grid_at("EPSG:4326", 10, 50, 1e-5), "EPSG:4258", [box(-20, 40, 10, 80)]),
        # Across the antimeridian: split, beyond 180, from 0 to 360, and in web mercator.
        (
            grid_at("EPSG:32760", 179.99, -17, 100),
            "EPSG:4326",
            [
                box(179.5, -18, 180, -17),
                box(-180, -17.01, -179.5, -16.9),
                box(179.98, -16.98, 180.01, -16.97),
                box(179.97, -17.03, 180.03, -17.02),
            ],
        ),
        (grid_at("EPSG:32601", -179.99, 60, 30), "EPSG:3857", [box(-2.1e7, 8e6, -2.0036e7, 9e6)]),
        (grid_at("EPSG:3413", 180, 70, 1000), "EPSG:4326", [box(170, 60, 190, 70)]),
        # Poles: a ring around one, and what a file says of a whole continent.
        (grid_at("EPSG:3413", 0, 90, 30), "EPSG:4326", [box(-180, 89.99, 180, 90)]),
        (
            grid_at("EPSG:3413", 0, 90, 1000),
            "EPSG:4326",
            [box(0, 89.8, 90, 90), box(350, 80, 370, 90), box(-180, 89.9, 180, 95)],
        ),
        (grid_at("EPSG:3031", 0, -90, 50_000), "EPSG:4326", [ANTARCTICA]),
        (grid_at("EPSG:4326", 0, 0, 3, 120, 60), "EPSG:3413", [box(-2e6, -3e6, 1e6, 2e6)]),
        (
            grid_at("EPSG:4326", 180, 0, 3, 120, 60),
            "EPSG:4326",
            [box(-170, 0, -20, 30), box(170, -40, 190, -20)],
        ),
        # The edge of a projection's domain.
        (
            grid_at("+proj=ortho +lat_0=40 +lon_0=10", 10, 40, 150_000),
            "EPSG:4326",
            [box(-100, -10, 40, 60)],
        ),
        # A hole, and parts that overlap.
        (
            grid_at("EPSG:32633", 15, 50, 100),
            "EPSG:4326",
            [box(14, 49, 16, 51) - box(14.98, 49.99, 15.02, 50.01)],
        ),
        (
            grid_at("EPSG:32633", 15, 50, 100),
            "EPSG:4326",
            [shapely.MultiPolygon([box(14, 49, 15, 51), box(14.99, 49.98, 15.02, 50.01)])],
        ),
    ],
)  # fmt: skip
def test_pixels_belong_to_what_holds_their_centres(tmp_path, grid, crs, shapes):
    assert wrong(tmp_path, grid, crs, shapes) == 0


@pytest.mark.parametrize(
    "shape", [box(-180, -90, 180, 90), box(-10, 0, 179, 80), box(-200, -100, 200, 100)]
)
def test_a_world_box_covers_the_scene(tmp_path, shape):
    path = write(tmp_path / "f.gpkg", [shape])
    for grid in (grid_at("EPSG:32633", 15, 50, 30), grid_at("EPSG:3035", 20, 55, 1000)):
        assert whole(open_labels(path, grid)).all()


SCENES = [
    ("EPSG:32633", 15, 50),
    ("EPSG:32760", 179.99, -17),
    ("EPSG:3413", -45, 70),
    ("EPSG:3413", 100, 89.9),
    ("EPSG:3031", 180, -75),
    ("EPSG:3857", 179.99, 60),
    ("EPSG:4326", 100, 85),
    ("EPSG:2056", 8, 47),
    ("EPSG:27700", -2, 53),
    ("EPSG:5070", -100, 40),
]
FILES = ["EPSG:4326", "EPSG:4258", "EPSG:3857", "EPSG:3413", "EPSG:3035", None]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(SCENES), st.sampled_from(FILES), st.sampled_from([0.25, 10, 1000]),
    st.sampled_from([0.0, 0.0, 33.0]), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_random_polygons_lie_where_their_centres_are(
    tmp_path_factory, scene, file, size, turn, seed
):
    rng = np.random.default_rng(seed)
    size = size / 111_000 if scene[0] == "EPSG:4326" else size
    grid = grid_at(*scene, size, 48, 40, turn)
    crs = CRS.from_user_input(file or scene[0])
    shapes = []
    for _ in range(4):
        reach = rng.choice([0.3, 3.0, 300.0])
        around = rng.uniform(-reach, 1 + reach, (rng.integers(3, 8), 2)) * [48, 40]
        corners = moved(grid.crs, crs, places(grid, around))
        corners = corners[np.isfinite(corners).all(axis=1)]
        if len(corners) < 3:
            continue
        shape = shapely.make_valid(shapely.Polygon(corners))
        if rng.random() < 0.3:
            shape = shape - shape.centroid.buffer(shape.area**0.5 / 4)
        shapes += [part for part in [shape] if part.area > 0]
    if not shapes:
        return
    expected, sure = truth(grid, crs, shapes)
    folder = tmp_path_factory.mktemp("random")
    try:
        found = whole(open_labels(write(folder / "f.gpkg", shapes, crs.to_wkt()), grid, "k"))
    except InputError as error:
        if "lies nowhere near the scene" not in str(error):
            raise
        found = np.zeros_like(expected)
    np.testing.assert_array_equal(found[sure], expected[sure])


def test_lines_and_points_mark_the_pixels_they_pass(tmp_path):
    grid = Grid(CRS.from_epsg(32633), Affine(10, 0, 500_000, 0, -10, 5_000_000), 40, 40)
    line = shapely.LineString([(500_005, 4_999_995), (500_395, 4_999_605)])
    point = shapely.Point(500_305, 4_999_995)
    found = whole(open_labels(write(tmp_path / "f.gpkg", [line, point], "EPSG:32633"), grid, "k"))
    assert (found.diagonal() == 1).all()
    assert found[0, 30] == 2
    assert np.count_nonzero(found) <= 2 * 40


def test_a_line_over_the_pole_is_drawn(tmp_path):
    grid = grid_at("EPSG:3413", 0, 90, 1000, 64, 64)
    line = shapely.LineString([(-45, 89.6), (-45, 90)])  # straight down in this projection
    other = shapely.MultiPoint([(135, 89.9), (45, 89.9)])
    found = whole(open_labels(write(tmp_path / "f.gpkg", [line, other]), grid, "k"))
    columns = np.nonzero(found == 1)[1]
    rows = np.unique(np.nonzero(found == 1)[0])
    assert set(columns) <= {31, 32}
    np.testing.assert_array_equal(rows, np.arange(rows[0], rows[0] + len(rows)))
    assert rows[0] == 32
    assert np.count_nonzero(found == 2) == 2


def test_invalid_rings_are_mended(tmp_path):
    grid = grid_at("EPSG:32633", 15, 50, 10)
    bow = shapely.Polygon([(14.99, 49.99), (15.01, 50.01), (15.01, 49.99), (14.99, 50.01)])
    far = shapely.Polygon([(10, 49.999), (20, 50.001), (20, 49.999), (10, 50.001)])
    for shape in (bow, far):
        found = whole(open_labels(write(tmp_path / "f.gpkg", [shape]), grid))
        expected, sure = truth(grid, DEGREES, [shapely.make_valid(shape)])
        np.testing.assert_array_equal(found[sure], expected[sure])


def test_many_vertices_stay_few(tmp_path):
    angle = np.linspace(0, 2 * np.pi, 200_000, endpoint=False)
    radius = 10 + 0.001 * np.sin(5000 * angle)
    land = shapely.Polygon(np.stack([5 + radius * np.cos(angle), 50 + radius * np.sin(angle)], 1))
    grid = grid_at("EPSG:32633", 15, 50, 10, 100, 100)
    scene = open_labels(write(tmp_path / "f.gpkg", [land]), grid)
    assert shapely.get_num_coordinates(scene._features().shapes).sum() < 2000
    expected, sure = truth(grid, DEGREES, [land])
    np.testing.assert_array_equal(whole(scene)[sure], expected[sure])


@pytest.mark.parametrize(
    ("place", "size"), [(("EPSG:32613", -105, 49), 300), (("EPSG:3413", 30, 82), 250)]
)
def test_edges_are_followed_to_a_hundredth_of_a_pixel(tmp_path, place, size):
    grid = grid_at(*place, size, 800, 800)
    longitude, latitude = place[1:]
    shape = box(longitude - 20, latitude, longitude + 0.3, latitude + 8)
    scene = open_labels(write(tmp_path / "f.gpkg", [shape]), grid)
    edges = shapely.boundary(shapely.union_all(scene._features().shapes))
    along = np.linspace(0, 1, 5000)
    parallel = np.stack([longitude - 20 + 20.3 * along, np.full(5000, float(latitude))], axis=1)
    meridian = np.stack([np.full(5000, longitude + 0.3), latitude + 8 * along], axis=1)
    points = moved(DEGREES, grid.crs, np.concatenate([parallel, meridian]))
    left, bottom, right, top = grid.bounds()
    x, y = points.T
    inside = points[(left < x) & (x < right) & (bottom < y) & (y < top)]
    assert len(inside) > 300
    assert shapely.distance(edges, shapely.points(inside)).max() < 0.01 * size


def test_long_edges_are_bent_by_few_vertices(tmp_path):
    grid = grid_at("EPSG:32613", -105, 49, 30, 5000, 5000)
    scene = open_labels(write(tmp_path / "f.gpkg", [box(-123, 49, -95, 60)]), grid)
    count = shapely.get_num_coordinates(scene._features().shapes).sum()
    assert 20 < count < 2000


# --- systems -------------------------------------------------------------------------------

LOCAL = CRS.from_wkt('LOCAL_CS["building site",UNIT["metre",1]]')


def test_systems_without_a_transformation_are_both_named(tmp_path):
    degrees = write(tmp_path / "f.gpkg", [box(0, 0, 9, 9)])
    grid = Grid(LOCAL, Affine(1, 0, 0, 0, -1, 10), 10, 10)
    with pytest.raises(InputError, match=r'f.gpkg is in EPSG:4326 .* "building site", and no tra'):
        open_labels(degrees, grid)
    shutil.copy(write(tmp_path / "site.shp", [box(0, 0, 9, 9)], "EPSG:32633"), tmp_path / "s.shp")
    for suffix in (".shx", ".dbf"):
        shutil.copy(tmp_path / f"site{suffix}", tmp_path / f"s{suffix}")
    (tmp_path / "s.prj").write_text(LOCAL.to_wkt())
    with pytest.raises(InputError, match=r's.shp is in "building site" and the scene in EPSG:326'):
        open_labels(tmp_path / "s.shp", grid_at("EPSG:32633", 15, 50, 10))
    moon = CRS.from_wkt(
        'GEOGCS["Moon 2000",DATUM["D_Moon",SPHEROID["Moon",1737400,0]],'
        'PRIMEM["Greenwich",0],UNIT["degree",0.0174532925199433]]'
    )
    with pytest.raises(InputError, match='EPSG:4326 and the scene in "Moon 2000"'):
        open_labels(degrees, Grid(moon, Affine(1, 0, 0, 0, -1, 10), 10, 10))


def test_one_local_system_is_no_obstacle(tmp_path):
    write(tmp_path / "f.shp", [box(2, 3, 6, 9)], "EPSG:32633")
    (tmp_path / "f.prj").write_text(LOCAL.to_wkt())
    grid = Grid(open_crs(tmp_path / "f.shp"), Affine(1, 0, 0, 0, -1, 10), 10, 10)
    found = whole(open_labels(tmp_path / "f.shp", grid))
    assert np.argwhere(found).min(axis=0).tolist() == [1, 2]
    assert found.sum() == 24


def open_crs(path):
    return CRS.from_user_input(pyogrio.read_info(path)["crs"])


def test_files_without_a_system_say_how_to_give_one(tmp_path):
    path = write(tmp_path / "f.shp", [box(0, 0, 1, 1)])
    (tmp_path / "f.prj").unlink()
    with pytest.raises(InputError, match=r"f.shp has no CRS: .*f.prj is missing or unreadable"):
        open_labels(path, grid_at("EPSG:32633", 15, 50, 10))


@pytest.mark.parametrize("undefined", [-1, 0])
def test_what_a_geopackage_calls_undefined_is_no_system(tmp_path, undefined):
    path = write(tmp_path / "f.gpkg", [box(14, 49, 16, 51)])
    with sqlite3.connect(path) as file:
        file.execute("UPDATE gpkg_contents SET srs_id = ?", [undefined])
        file.execute("UPDATE gpkg_geometry_columns SET srs_id = ?", [undefined])
    file.close()
    with pytest.raises(InputError, match="f.gpkg has no CRS: give it one with"):
        open_labels(path, HERE)


def geojson(path, *geometries, **members):
    features = [
        {"type": "Feature", "properties": {"k": number}, "geometry": geometry}
        for number, geometry in enumerate(geometries, start=1)
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features, **members}))
    return path


def square(x=15.0, y=50.0, size=0.01):
    return json.loads(shapely.to_geojson(box(x - size, y - size, x + size, y + size)))


def named(name):
    return {"type": "name", "properties": {"name": name}}


HERE = grid_at("EPSG:32633", 15, 50, 10)


def test_geojson_is_in_degrees_unless_it_says_otherwise(tmp_path):
    plain = whole(open_labels(geojson(tmp_path / "a.geojson", square()), HERE))
    assert plain.any()
    for name in ("urn:ogc:def:crs:OGC:1.3:CRS84", "urn:ogc:def:crs:EPSG::4326"):
        file = geojson(tmp_path / "b.GeoJSON", square(), crs=named(name))
        np.testing.assert_array_equal(whole(open_labels(file, HERE)), plain)
    x, y = places(HERE, np.array([[48.0, 40.0]]))[0]
    utm = geojson(
        tmp_path / "c.geojson", square(x, y, 100), crs=named("urn:ogc:def:crs:EPSG::32633")
    )
    assert whole(open_labels(utm, HERE)).sum() == 400
    unknown = geojson(tmp_path / "d.geojson", square(), crs=named("urn:ogc:def:crs:EPSG::999999"))
    with pytest.raises(InputError, match=r"d.geojson has a CRS that PROJ does not know.*999999"):
        open_labels(unknown, HERE)


# --- place ---------------------------------------------------------------------------------


def test_ground_without_a_feature_is_background(tmp_path):
    path = geojson(tmp_path / "f.geojson", square(14.5), square(15.5))
    scene = open_labels(path, HERE)
    assert scene.empty
    assert not whole(scene).any()
    assert not open_labels(geojson(tmp_path / "g.geojson", square()), HERE).empty
    assert open_labels(geojson(tmp_path / "n.geojson"), HERE).empty


def test_another_place_is_refused_with_both_extents_and_the_cause(tmp_path):
    far = geojson(tmp_path / "f.geojson", square(30))
    with pytest.raises(
        InputError,
        match=r"nowhere near the scene: in EPSG:4326 it covers x 29.99000 to 30.01000, y 49.*, the "
        r"scene x 14.99\d+ to 15.00.*check its CRS.* For ground without a feature give a file with",
    ):
        open_labels(far, HERE)
    exchanged = geojson(tmp_path / "x.geojson", square(50, 15))
    with pytest.raises(InputError, match="with x and y exchanged it would lie there"):
        open_labels(exchanged, HERE)
    metres = geojson(tmp_path / "m.geojson", square(5e5, 5.5e6, 100))
    with pytest.raises(InputError, match="its coordinates are no degrees, so EPSG:4326 is not its"):
        open_labels(metres, HERE)
    other_side = write(tmp_path / "u.gpkg", [box(4e5, 4e6, 6e5, 6e6)], "EPSG:32601")
    with pytest.raises(InputError, match="nowhere near the scene"):
        open_labels(other_side, HERE)


def image(path, grid=HERE):
    pixels = np.random.default_rng(0).integers(1, 255, (3, grid.height, grid.width), np.uint8)
    profile = {"driver": "GTiff", "count": 3, "dtype": "uint8", **vars(grid)}
    with rasterio.open(path, "w", **profile) as file:
        file.write(pixels)
    return str(path)


def test_tile_counts_scenes_without_features(tmp_path):
    images = (
        image(tmp_path / "a.tif"),
        image(tmp_path / "b.tif", grid_at("EPSG:32633", 15.2, 50, 10)),
    )
    labels = str(geojson(tmp_path / "f.geojson", square(), square(15.5)))
    config = TilingConfig(images, tmp_path / "t", labels=(labels, labels), size=32)
    with pytest.warns(UserWarning, match="1 of 2 scenes has no feature: all background"):
        store = tile(config)
    assert store.sources["label"].classes == (0, 1)


def test_one_parse_of_a_geojson_serves_all_scenes(tmp_path, monkeypatch):
    path = geojson(tmp_path / "f.geojson", square(14.9), square(15), square(15.1))
    read = pyogrio.raw.read
    parsed = []
    monkeypatch.setattr(pyogrio.raw, "read", lambda *a, **k: parsed.append(1) or read(*a, **k))
    for longitude in (14.9, 15.0, 15.1):
        assert whole(open_labels(path, grid_at("EPSG:32633", longitude, 50, 10))).any()
    assert len(parsed) == 1


# --- classes -------------------------------------------------------------------------------


def test_classes_beyond_int32_are_refused(tmp_path):
    path = write(
        tmp_path / "f.gpkg",
        [box(14, 49, 16, 51)] * 2,
        big=np.array([1, 4_000_000_000]),
        wide=np.array([1.0, 1e19]),
        part=np.array([1.0, 2.5]),
        flag=np.array([True, True]),
        fine=np.array([3.0, 7.0]),
        low=np.array([1, -(2**31)]),
    )
    expected = {
        "big": r"f.gpkg: attribute 'big' is 4000000000, outside -21\d+ to 2147483647 in feature 2",
        "wide": r"attribute 'wide' is 1e\+19, outside .* in feature 2",
        "part": r"attribute 'part' is 2.5, no whole number in feature 2",
        "none": r"attribute 'none' is missing; it has big, wide, part, flag, fine, low",
    }
    for attribute, message in expected.items():
        with pytest.raises(InputError, match=message):
            open_labels(path, HERE, attribute)
    for attribute, value in (("fine", 7), ("flag", 1), ("low", -(2**31))):
        assert (whole(open_labels(path, HERE, attribute)) == value).all()


def test_an_empty_attribute_is_refused(tmp_path):
    path = geojson(tmp_path / "f.geojson", square(), square())
    text = path.read_text().replace('"k": 2', '"k": null')
    path.write_text(text)
    with pytest.raises(InputError, match="attribute 'k' is empty in feature 1"):
        open_labels(path, HERE, "k")


def test_only_classes_near_the_scene_count(tmp_path):
    path = write(tmp_path / "f.gpkg", [box(14, 49, 16, 51), box(50, 49, 51, 50)], k=[255, 10**12])
    assert open_labels(path, HERE, "k").dtype == "uint8"


def test_scenes_of_a_store_share_one_type(tmp_path):
    there = grid_at("EPSG:32633", 15.2, 50, 10)
    images = (image(tmp_path / "a.tif"), image(tmp_path / "b.tif", there))
    small = write(tmp_path / "small.gpkg", [box(14.99, 49.99, 15, 50.01)], k=[200])
    large = write(tmp_path / "large.gpkg", [box(15.2, 49, 16, 51)], k=[70_000])
    for order, to in (((0, 1), "t"), ((1, 0), "u")):
        chosen_images = tuple(images[i] for i in order)
        labels = tuple((small, large)[i] for i in order)
        config = TilingConfig(chosen_images, tmp_path / to, labels=labels, size=32, attribute="k")
        store = tile(config)
        label = store.sources["label"]
        assert label.dtype == "int32"
        assert label.classes == (0, 200, 70_000)


def test_options_that_no_file_takes_are_refused(tmp_path):
    picture = image(tmp_path / "a.tif")
    for option in ("attribute", "layer"):
        config = TilingConfig((picture,), tmp_path / "t", size=32, **{option: "x"})
        with pytest.raises(InputError, match=f"--{option} x is for vector labels, and none are"):
            tile(config)


# --- layers --------------------------------------------------------------------------------


def with_styles(path):
    """A table as QGIS writes it for the styles of a GeoPackage."""
    with sqlite3.connect(path) as file:
        file.execute("CREATE TABLE layer_styles (id INTEGER PRIMARY KEY, styleQML TEXT)")
        file.execute(
            "INSERT INTO gpkg_contents (table_name, data_type, identifier) "
            "VALUES ('layer_styles', 'attributes', 'layer_styles')"
        )
    file.close()
    return path


def test_tables_without_geometry_are_ignored(tmp_path):
    path = with_styles(write(tmp_path / "f.gpkg", [box(14, 49, 16, 51)], layer="houses"))
    assert whole(open_labels(path, HERE)).all()


def test_one_of_several_layers_is_chosen(tmp_path):
    path = write(tmp_path / "f.gpkg", [box(14, 49, 16, 51)], layer="houses", k=[3])
    with_styles(write(path, [box(14, 49, 16, 51)], layer="roads", append=True, k=[5]))
    with pytest.raises(InputError, match="has layers houses, roads; expected one: choose with --l"):
        open_labels(path, HERE)
    with pytest.raises(InputError, match="no layer 'rivers' with geometries; it has houses, roads"):
        open_labels(path, HERE, layer="rivers")
    assert (whole(open_labels(path, HERE, "k", layer="roads")) == 5).all()
    config = TilingConfig(
        (image(tmp_path / "a.tif"),), tmp_path / "t", labels=(path,), size=32,
        attribute="k", layer="houses",
    )  # fmt: skip
    label = tile(config).sources["label"]
    assert label.classes == (3,)


# --- files ---------------------------------------------------------------------------------


def test_geometries_of_every_kind_are_read(tmp_path):
    wide = [[14.0, 49.0], [16.0, 49.0], [16.0, 51.0], [14.0, 51.0], [14.0, 49.0]]
    polygon = {"type": "Polygon", "coordinates": [wide]}
    deep = polygon
    for _ in range(5):
        deep = {"type": "GeometryCollection", "geometries": [deep]}
    height = {"type": "Polygon", "coordinates": [[[*corner, 7.0] for corner in wide]]}
    nothing = {"type": "Polygon", "coordinates": []}
    for geometry in (polygon, deep, height):
        path = geojson(tmp_path / "f.geojson", None, geometry, nothing)
        assert (whole(open_labels(path, HERE, "k")) == 2).all()


def test_curves_are_followed_finely(tmp_path):
    # Half a circle of 300 pixels: straight pieces of GDAL's four degrees are off by 0.2 pixels.
    x, y = 500_000.0, 5_500_000.0
    corners = [(-300, 0), (0, 300), (300, 0), (0, -300), (-300, 0)]
    arc = ", ".join(f"{x + east} {y + north}" for east, north in corners)
    (tmp_path / "arc.csv").write_text(f'id,WKT\n1,"CURVEPOLYGON (CIRCULARSTRING ({arc}))"\n')
    grid = Grid(CRS.from_epsg(32633), Affine(1, 0, x - 310, 0, -1, y + 310), 620, 620)
    with vectors._quiet("arc.csv"):
        _, _, geometry, _ = pyogrio.raw.read(tmp_path / "arc.csv")
    circle = write(tmp_path / "f.gpkg", shapely.from_wkb(geometry), "EPSG:32633", k=[1])
    rows, columns = np.mgrid[:620, :620] + 0.5
    distance = np.hypot(columns - 310, rows - 310)
    sure = np.abs(distance - 300) > 0.01
    np.testing.assert_array_equal(whole(open_labels(circle, grid))[sure], (distance < 300)[sure])


def test_shapefiles_in_capitals_and_in_archives(tmp_path):
    path = Path(write(tmp_path / "f.shp", [box(14, 49, 16, 51)], k=[4]))
    with zipfile.ZipFile(tmp_path / "f.zip", "w") as archive:
        for suffix in (".shp", ".shx", ".dbf", ".prj"):
            archive.write(path.with_suffix(suffix), f"f{suffix}")
            path.with_suffix(suffix).rename(tmp_path / f"UP{suffix.upper()}")
    for name in ("UP.SHP", "f.zip"):
        assert (whole(open_labels(tmp_path / name, HERE, "k")) == 4).all()


@pytest.mark.parametrize(
    ("coordinates", "message"),
    [
        ("[[[15,50],[15.1,50]]]", "geometry of feature 0 cannot be read"),
        ("[[[15,50],[15.1,50],[15.1,50.1],[15,50.1]]]", "geometry of feature 0 cannot be read"),
        ("[[[15,50],[1e308,50],[1e308,1e308],[15,50]]]", r"feature 0 has the coordinates 1e\+308"),
        ("[[[15,50],[NaN,50],[15.1,50.1],[15,50]]]", "feature 0 has the coordinates nan"),
        ("[[[15,50],[Infinity,50],[15.1,50.1],[15,50]]]", "feature 0 has the coordinates inf"),
        ('[[["a","b"],[15.1,50],[15.1,50.1],["a","b"]]]', "its coordinates are no pairs of numb"),
        ("[[[15],[15.1],[15.2],[15]]]", "its coordinates are no pairs of numbers"),
        ("[" * 3000 + "]" * 3000, "cannot be read as a vector file: .*Too many nested"),
        ("[[[15,50],[15.1,50],[15.1,", "cannot be read as a vector file"),
    ],
)  # fmt: skip
def test_damaged_geojson_is_refused_in_one_line(tmp_path, coordinates, message):
    path = tmp_path / "f.geojson"
    path.write_text(
        '{"type":"FeatureCollection","features":[{"type":"Feature","properties":{},"geometry":'
        f'{{"type":"Polygon","coordinates":{coordinates}}}}}]}}'
    )
    with pytest.raises(InputError, match=message) as error:
        open_labels(path, HERE)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("seed", range(12))
def test_damaged_files_are_read_or_refused(tmp_path, seed):
    rng = np.random.default_rng(seed)
    corners = places(HERE, rng.uniform(0, 90, (20, 2)))
    degrees = moved(HERE.crs, DEGREES, corners)
    shapes = [box(x, y, x + 0.001, y + 0.001) for x, y in degrees]
    for suffix in (".geojson", ".gpkg", ".shp", ".fgb"):
        write(tmp_path / f"f{suffix}", shapes)
    for suffix in (".geojson", ".gpkg", ".shp", ".shx", ".dbf", ".prj", ".fgb"):
        path = tmp_path / f"f{suffix}"
        whole_file = path.with_suffix(".shp") if suffix in (".shx", ".dbf", ".prj") else path
        _, spoiled = spoil(path.read_bytes(), rng)
        with damaged(path, spoiled), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result_or_refusal(lambda file=whole_file: whole(open_labels(file, HERE, "k")))


def test_damaged_values_and_archives_are_refused(tmp_path):
    path = Path(write(tmp_path / "f.shp", [box(14, 49, 16, 51)], k=np.array([4], np.int32)))
    table = path.with_suffix(".dbf")
    data = table.read_bytes()
    spoiled = data[: data.rindex(b" 4")] + b"4x" + data[data.rindex(b" 4") + 2 :]
    with (
        damaged(table, spoiled),
        pytest.raises(InputError, match="f.shp holds damaged values: Value '.*4x' of field"),
    ):
        open_labels(path, HERE, "k")
    with zipfile.ZipFile(tmp_path / "f.zip", "w") as archive:
        for suffix in (".shp", ".shx", ".dbf", ".prj"):
            archive.write(path.with_suffix(suffix), f"f{suffix}")
    packed = (tmp_path / "f.zip").read_bytes()
    place = packed.index(data) + data.rindex(b" 4") + 1
    (tmp_path / "f.zip").write_bytes(packed[:place] + b"5" + packed[place + 1 :])
    with pytest.raises(InputError, match=r"f.zip: f.dbf in it is damaged, get it again"):
        open_labels(tmp_path / "f.zip", HERE, "k")


@pytest.mark.parametrize("suffix", [".shp", ".fgb", ".gpkg", ".geojson"])
@pytest.mark.parametrize("part", [0.3, 0.9])
def test_files_that_are_cut_short_are_refused(tmp_path, suffix, part):
    rng = np.random.default_rng(1)
    shapes = [
        box(x, y, x + 0.01, y + 0.01) for x, y in rng.uniform([14.9, 49.9], [15.1, 50.1], (500, 2))
    ]
    path = Path(write(tmp_path / f"f{suffix}", shapes))
    assert whole(open_labels(path, HERE)).any()
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data))])
    with pytest.raises(InputError, match=rf"f\{suffix} (cannot be read|is cut|has|holds)") as error:
        open_labels(path, HERE)
    assert "\n" not in str(error.value)


def test_files_that_are_not_there(tmp_path):
    (tmp_path / "folder.gpkg").mkdir()
    for name, reason in (("no.gpkg", "there is no such file"), ("folder.gpkg", "not recognized")):
        with pytest.raises(InputError, match=f"{name} cannot be read as a vector file: .*{reason}"):
            open_labels(tmp_path / name, HERE)


def test_attributes_of_a_shapefile_are_read_again_when_they_change(tmp_path):
    path = write(tmp_path / "f.shp", [box(14, 49, 16, 51)], k=[4])
    other = write(tmp_path / "g.shp", [box(14, 49, 16, 51)], k=[9])
    assert (whole(open_labels(path, HERE, "k")) == 4).all()
    shutil.copy(Path(other).with_suffix(".dbf"), Path(path).with_suffix(".dbf"))
    assert (whole(open_labels(path, HERE, "k")) == 9).all()


def test_only_our_line_is_printed(tmp_path):
    (tmp_path / "bad.geojson").write_text('{"type": "FeatureCollection", "features": [')
    picture = image(tmp_path / "a.tif")
    unknown = geojson(tmp_path / "crs.geojson", square(), crs=named("urn:ogc:def:crs:EPSG::999999"))
    for path in (tmp_path / "bad.geojson", unknown, tmp_path / "none.gpkg"):
        command = [sys.executable, "-c", "from ganlab.cli import main; main()", "tile"]
        command += ["--images", picture, "--labels", str(path), "--to", str(tmp_path / "t")]
        done = subprocess.run([*command, "--size", "32"], capture_output=True, text=True)
        assert done.returncode == 2
        assert done.stderr.startswith(f"ganlab: {path} ")
        assert done.stderr.count("\n") == 1


# --- the map between two systems -----------------------------------------------------------


def test_points_without_a_place_do_not_hide_the_others():
    points = np.array([[15.0, 50.0], [15.0, 95.0], [np.inf, 50.0], [16.0, 50.0], [15.0, np.nan]])
    found = reprojection.transform_points(DEGREES, CRS.from_epsg(32633), points)
    assert np.isfinite(found).all(axis=1).tolist() == [True, False, False, True, False]
    np.testing.assert_allclose(found[0], [500_000, 5_538_630.70], atol=0.01)


def test_shifts_of_datum_that_proj_inverts_roughly_are_corrected(tmp_path):
    grid = grid_at("EPSG:4326", 100, 85, 5e-6)  # 0.5 m, far from where the datum is used
    gauss_krueger = CRS.from_epsg(31467)
    ((x, y),) = moved(grid.crs, gauss_krueger, places(grid, np.array([[48.3, 40.3]])))
    back = moved(gauss_krueger, grid.crs, np.array([[x, y]]))
    assert np.abs(back - places(grid, np.array([[48.3, 40.3]]))).max() > 0.3 * 5e-6
    assert wrong(tmp_path, grid, "EPSG:31467", [box(x - 1e6, y - 1e6, x, y)]) == 0


def test_apply_takes_a_layer_and_open_ground(tmp_path):
    # What ``apply`` opens, without a model.
    path = write(tmp_path / "f.gpkg", [box(14.4, 49, 14.5, 51)], layer="houses", k=[3])
    write(path, [box(14, 49, 16, 51)], layer="roads", append=True, k=[5])
    source = Source("label", "label", "uint8", ("class",), classes=(0, 3, 5))
    config = ApplyConfig(
        run=tmp_path, scene=path, to=tmp_path / "to.tif", like=image(tmp_path / "a.tif"),
        attribute="k", layer="roads",
    )  # fmt: skip
    assert (whole(inference._open_input(path, config, source)) == 5).all()
    with pytest.raises(InputError, match="has layers houses, roads; expected one"):
        inference._open_input(path, replace(config, layer=None), source)
    write(path, [box(16, 49, 16.1, 51)], layer="houses", append=True, k=[3])
    with pytest.warns(Note, match="f.gpkg has no feature on .*a.tif: all of it is class 0"):
        open_ground = inference._open_input(path, replace(config, layer="houses"), source)
    assert not whole(open_ground).any()
    picture = config.like
    with pytest.raises(InputError, match="--like, --attribute and --layer are for vectors"):
        inference._open_input(picture, replace(config, like=None, attribute=None), source)
