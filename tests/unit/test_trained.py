"""A run remembers its tiles: no tile on ground that was trained on counts as unseen."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin
from rasterio.warp import transform

from ganlab.config import (
    EvaluateConfig,
    PatchGANConfig,
    Pix2PixConfig,
    SplitConfig,
    TilingConfig,
    TrainingConfig,
    UNetConfig,
)
from ganlab.data.store import TileStore
from ganlab.data.tiling import tile
from ganlab.data.trained import (
    fingerprint,
    on_trained_ground,
    read_trained,
    trained_scenes,
    write_trained,
)
from ganlab.errors import InputError
from ganlab.evaluation import evaluate, table
from ganlab.training import resume, train

SIZE = 32
PIXELS = 192
CONFIG = SplitConfig(block=SIZE)
TINY = Pix2PixConfig(
    generator=UNetConfig(width=4, depth=2), discriminator=PatchGANConfig(width=4, layers=1)
)
QUICK = TrainingConfig(
    steps=2,
    batch_size=4,
    log_every=1,
    watch_every=0,
    sample_every=0,
    device="cpu",
    tensorboard=False,
    split=CONFIG,
)


def write_pair(folder, name, seed=0, west=0.0, north=0.0, crs="EPSG:32633", pixel=1.0):
    """A photo and its classes; places in metres from a corner in zone 33."""
    rng = np.random.default_rng(seed)
    count = round(PIXELS / pixel)
    image = rng.integers(20, 230, (3, count, count), dtype=np.uint8)
    label = rng.integers(0, 3, (1, count, count), dtype=np.uint8)
    x, y = 500_000 + west, 5_500_000 + north
    if crs not in (None, "EPSG:32633"):
        (x,), (y,) = transform("EPSG:32633", crs, [x], [y])
    options = {"driver": "GTiff", "dtype": "uint8", "width": count, "height": count, "crs": crs}
    if crs is not None:
        options["transform"] = from_origin(x, y, pixel, pixel)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for kind, pixels in (("", image), ("-label", label)):
        path = folder / f"{name}{kind}.tif"
        with rasterio.open(path, "w", count=len(pixels), **options) as file:
            file.write(pixels)
        paths.append(str(path))
    return paths


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def tiled(folder, *pairs, **options):
    """A tile store of some pairs."""
    images = tuple(image for image, _ in pairs)
    labels = tuple(label for _, label in pairs)
    return tile(TilingConfig(images, folder, labels, size=SIZE, **options))


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A store of one scene."""
    folder = tmp_path_factory.mktemp("first")
    return tiled(folder / "tiles", write_pair(folder, "town"))


@pytest.fixture(scope="module")
def run(first, tmp_path_factory):
    """A run on it."""
    return train(TINY, first.path, tmp_path_factory.mktemp("runs") / "run", QUICK)


def test_the_fingerprint_follows_contents_places_and_parts(first, tmp_path):
    own = fingerprint(first, first.split(CONFIG))
    assert own == fingerprint(TileStore.open(first.path), first.split(CONFIG))
    other_parts = fingerprint(first, first.split(SplitConfig(block=SIZE, seed=1)))
    assert other_parts["tiles"] == own["tiles"]
    assert other_parts["split"] != own["split"]
    for name, change in {"seed": {"seed": 1}, "place": {"west": 1.0}}.items():
        other = tiled(tmp_path / name, write_pair(tmp_path / f"{name}-scenes", "town", **change))
        assert fingerprint(other, other.split(CONFIG))["tiles"] != own["tiles"], name


def test_trained_ground_is_written_and_read(first, tmp_path):
    own = trained_scenes(first, first.split(CONFIG).train)
    assert [(s.name, len(s.rows), len(s.checksums)) for s in own] == [("town", 26, 26)]
    write_trained(tmp_path, own, own[:1])
    assert read_trained(tmp_path) == (own, own)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"size"', '"width_"'),
        lambda text: json.dumps({"own": [{**json.loads(text)["own"][0], "rows": [0]}]}),
        lambda text: "[" * 100_000,
        lambda text: "{}",
        lambda text: text.replace('"own": [', '"own": [3, '),
    ],
)
def test_a_damaged_record_is_refused(first, tmp_path, damage):
    write_trained(tmp_path, trained_scenes(first, first.split(CONFIG).train), [])
    path = tmp_path / "ground.json"
    path.write_text(damage(path.read_text()))
    with pytest.raises(InputError, match=r"ground\.json"):
        read_trained(tmp_path)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, "all"),
        ({"seed": 5}, "all"),
        ({"west": -16.0, "pixel": 0.75}, "all"),
        ({"pixel": 0.5}, "all"),
        ({"west": PIXELS}, "none"),
        ({"north": -PIXELS}, "none"),
        ({"crs": "EPSG:32632"}, "all"),
        ({"crs": "EPSG:3035", "west": 5 * PIXELS}, "none"),
    ],
)
def test_ground_is_recognized_in_any_scene(first, tmp_path, change, expected):
    """Another date, another grid, other pixels, another system, and neighbours."""
    own = trained_scenes(first, np.arange(len(first)))
    other = tiled(tmp_path / "tiles", write_pair(tmp_path, "another", **change))
    seen = on_trained_ground(other, np.arange(len(other)), own)
    assert seen.mean() == (expected == "all")


def test_half_of_a_scene_is_recognized(first, tmp_path):
    own = trained_scenes(first, np.arange(len(first)))
    other = tiled(tmp_path / "tiles", write_pair(tmp_path, "east", west=PIXELS / 2))
    seen = on_trained_ground(other, np.arange(len(other)), own)
    assert seen.tolist() == [t.column < PIXELS // 2 for t in other.tiles]


def test_without_coordinates_names_and_contents_count(tmp_path):
    pairs = [write_pair(tmp_path, name, seed=i, crs=None) for i, name in enumerate("ab")]
    store = tiled(tmp_path / "tiles", *pairs, ungeoreferenced=True)
    own = trained_scenes(store, np.arange(36))
    assert [scene.name for scene in own] == ["a"]
    for kind in ("", "-label"):
        shutil.copy(tmp_path / f"a{kind}.tif", tmp_path / f"renamed{kind}.tif")
    renamed = (str(tmp_path / "renamed.tif"), str(tmp_path / "renamed-label.tif"))
    other = tiled(tmp_path / "other", renamed, pairs[1], ungeoreferenced=True)
    seen = on_trained_ground(other, np.arange(72), own)
    assert seen.tolist() == [True] * 36 + [False] * 36
    moved = tiled(tmp_path / "moved", pairs[0], ungeoreferenced=True, stride=20)
    assert on_trained_ground(moved, np.arange(len(moved)), own).all()


def test_the_own_tiles_are_measured_without_a_word(run, first, recwarn):
    result = evaluate(EvaluateConfig(run))
    assert result["left_out"] == 0
    assert result["tiles"] == len(first.split(CONFIG).test)
    assert not [w for w in recwarn if "trained on" in str(w.message)]


def grown(folder, first):
    """The scenes of the run and a further one, tiled anew: blocks are dealt otherwise."""
    town = [str(Path(first.path).parent / name) for name in ("town.tif", "town-label.tif")]
    return tiled(folder / "tiles", town, write_pair(folder, "new", seed=3, west=PIXELS))


def renamed(folder, first):
    """The scene under another name, with tiles that lie elsewhere."""
    folder.mkdir()
    for kind in ("", "-label"):
        shutil.copy(Path(first.path).parent / f"town{kind}.tif", folder / f"city{kind}.tif")
    pair = (str(folder / "city.tif"), str(folder / "city-label.tif"))
    return tiled(folder / "tiles", pair, stride=SIZE // 2)


@pytest.mark.parametrize("change", [grown, renamed])
def test_no_trained_tile_is_tested_on_in_another_store(run, first, tmp_path, change):
    store = change(tmp_path / "other", first)
    trained = trained_scenes(first, first.split(CONFIG).train)
    test = store.split(CONFIG).test
    seen = on_trained_ground(store, test, trained)
    assert 0 < seen.sum() < len(test), "the case must have both kinds"
    with pytest.warns(UserWarning, match=rf"{len(test)} test tiles {seen.sum()} lie on ground"):
        result = evaluate(EvaluateConfig(run, tiles=store.path, to=tmp_path / "e.json"))
    assert result["tiles"] == (~seen).sum()
    assert result["left_out"] == seen.sum()
    assert f"({seen.sum()} more lie on ground that was trained on)" in table(result)


def test_a_store_of_trained_ground_alone_is_refused(run, first, tmp_path):
    town = Path(first.path).parent
    pair = (str(town / "town.tif"), str(town / "town-label.tif"))
    # Tiles so large that each of them touches ground that was trained on.
    config = TilingConfig((pair[0],), tmp_path / "tiles", (pair[1],), size=96)
    store = tile(config)
    about = json.loads((run / "config.json").read_text())
    about["training"]["split"]["block"] = 96
    other = tmp_path / "run"
    shutil.copytree(run, other)
    (other / "config.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match="all 1 test tiles lie on ground that .*run was trained"):
        evaluate(EvaluateConfig(other, tiles=store.path))


def test_resume_refuses_tiles_of_another_content(run, first, tmp_path):
    pair = write_pair(tmp_path, "town", seed=9)
    other = tiled(tmp_path / "tiles", pair)
    assert other.split(CONFIG).counts() == first.split(CONFIG).counts()
    with pytest.raises(InputError, match="holds other tiles than .*run began with"):
        resume(run, tiles=other.path, steps=4)


def test_a_start_from_other_weights_remembers_their_ground(run, first, tmp_path):
    """Fine-tuned on the second scene, a network still knows the first one."""
    store = grown(tmp_path / "other", first)
    tuned = train(TINY, store.path, tmp_path / "tuned", QUICK, init=run)
    own, inherited = read_trained(tuned)
    assert {scene.name for scene in own} == {"town", "new"}
    assert inherited == read_trained(run)[0]
    test = store.split(CONFIG).test
    seen = on_trained_ground(store, test, inherited)
    assert 0 < seen.sum() < len(test)
    with pytest.warns(UserWarning, match="started from the weights of a run"):
        result = evaluate(EvaluateConfig(tuned))
    assert (result["tiles"], result["left_out"]) == ((~seen).sum(), seen.sum())


def test_training_and_tiling_tell_of_empty_parts(tmp_path):
    pair = write_pair(tmp_path, "town")
    with pytest.warns(UserWarning, match=r"tiles: the split leaves no tile for validation and"):
        store = tile(TilingConfig((pair[0],), tmp_path / "tiles", (pair[1],), size=64))
    config = TrainingConfig(**{**vars(QUICK), "split": SplitConfig()})
    with pytest.warns(UserWarning, match=r"leaves no tile for validation and test \(9 train"):
        train(TINY, store.path, tmp_path / "run", config)


def test_a_picture_without_coordinates_is_recognized_at_any_scale_and_beside_a_placed_one(tmp_path):
    pairs = {crs: write_pair(tmp_path / str(crs), "town", crs=crs) for crs in (None, "EPSG:32633")}
    plain = tiled(tmp_path / "plain", pairs[None], ungeoreferenced=True)
    placed = tiled(tmp_path / "placed", pairs["EPSG:32633"])
    half = tiled(tmp_path / "half", pairs[None], ungeoreferenced=True, scale=0.5)
    west = trained_scenes(plain, np.flatnonzero([t.column < 64 for t in plain.tiles]))
    everything = np.arange(9)
    seen = on_trained_ground(half, everything, west)
    # In pixels of the whole scale, columns 0 to 63 of 192: the first of three columns of tiles.
    assert seen.tolist() == [t.column == 0 for t in half.tiles]
    west_placed = trained_scenes(placed, np.flatnonzero([t.column < 64 for t in placed.tiles]))
    for store, trained in ((placed, west), (plain, west_placed)):
        seen = on_trained_ground(store, np.arange(36), trained)
        assert seen.tolist() == [t.column < 64 for t in store.tiles]


def test_a_renamed_copy_loses_no_memory_with_its_coordinates(tmp_path):
    """Tiles of a georeferenced scene are recognized in a plain picture of another name."""
    placed = tiled(tmp_path / "placed", write_pair(tmp_path, "town"))
    pair = write_pair(tmp_path / "png", "city", crs=None)
    plain = tiled(tmp_path / "plain", pair, ungeoreferenced=True)
    own = trained_scenes(placed, np.arange(12))
    assert on_trained_ground(plain, np.arange(36), own).tolist() == [True] * 12 + [False] * 24
    own = trained_scenes(plain, np.arange(12))
    assert on_trained_ground(placed, np.arange(36), own).tolist() == [True] * 12 + [False] * 24


def test_equal_pixels_on_other_ground_are_no_trained_ground(tmp_path):
    """Sea looks alike everywhere."""
    first = tiled(tmp_path / "first", write_pair(tmp_path / "a", "town"))
    other = tiled(tmp_path / "other", write_pair(tmp_path / "b", "city", west=5000.0))
    assert [t.checksum for t in first.tiles] == [t.checksum for t in other.tiles]
    assert not on_trained_ground(other, np.arange(36), trained_scenes(first, np.arange(36))).any()


@pytest.mark.parametrize(
    "change",
    [
        {"width": 10**30},
        {"rows": [10**30] * 26},
        {"size": 0},
        {"transform": [0.0] * 6},
        {"transform": [1e999, 0, 0, 0, 1, 0]},
        {"crs": 3},
        {"columns": "0"},
        {"checksums": []},
    ],
)
def test_impossible_numbers_in_the_record_are_refused(first, tmp_path, change):
    write_trained(tmp_path, trained_scenes(first, first.split(CONFIG).train), [])
    path = tmp_path / "ground.json"
    record = json.loads(path.read_text())
    record["own"][0] |= change
    path.write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"ground\.json cannot be read"):
        read_trained(tmp_path)


def test_a_resumed_run_keeps_the_ground_that_it_inherited(run, first, tmp_path):
    """Also when the run that it started from is gone."""
    start = tmp_path / "start"
    shutil.copytree(run, start)
    about = json.loads((start / "config.json").read_text())
    about["tiles"] = str(first.path)
    (start / "config.json").write_text(json.dumps(about))
    store = grown(tmp_path / "other", first)
    tuned = train(TINY, store.path, tmp_path / "tuned", QUICK, init=start)
    before = read_trained(tuned)
    twice = train(TINY, store.path, tmp_path / "twice", QUICK, init=tuned)
    assert read_trained(twice)[1] == [*before[0], *before[1]]
    shutil.rmtree(start)
    resume(tuned, steps=3)
    assert read_trained(tuned) == before
