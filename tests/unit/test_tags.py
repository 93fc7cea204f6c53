"""Scale and offset, units, colours and palettes: read, compared, and written again."""

import re
import shlex
import shutil
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin

from ganlab import cli
from ganlab.config import (
    ApplyConfig,
    CloudLayersConfig,
    EncoderDecoderConfig,
    EvaluateConfig,
    HoleJudgeConfig,
    InpaintingConfig,
    Pix2PixConfig,
    SuperResolutionConfig,
    TilingConfig,
    TrainingConfig,
    UNetConfig,
)
from ganlab.data.scenes import open_labels, open_scene
from ganlab.data.store import Source, TileStore
from ganlab.data.tags import BandTags, Tagged, check_same_scale, conversion
from ganlab.data.tiling import tile
from ganlab.errors import InputError, Note
from ganlab.evaluation import evaluate
from ganlab.inference import apply
from ganlab.training import resume, train
from ganlab.training.runs import read_config

CRS = "EPSG:32633"
RNG = np.random.default_rng(3)
DARK = RNG.integers(1200, 4000, (4, 64, 64), np.uint16)
OLD = (1e-4, 0.0)
NEW = (1e-4, -0.1)
"""Sentinel-2 before and from processing baseline 04.00."""
LOST = (1.0, 0.0)
NAMES = ("B04", "B03", "B02", "B08")
RGBN = ("red", "green", "blue", "nir")
SMALL = UNetConfig(width=4, depth=2)
TRAINING = TrainingConfig(steps=1, batch_size=1, tensorboard=False, device="cpu", ema=0.0)


def write(path, array, pair=LOST, unit=None, names=None, colours=None, table=None, tags=None, **o):
    array = np.asarray(array)
    count, height, width = array.shape
    profile = {"driver": "GTiff", "count": count, "height": height, "width": width, "crs": CRS}
    profile |= {"transform": from_origin(5e5, 5e6, 10, 10), "dtype": array.dtype}
    with rasterio.open(path, "w", **profile | o) as file:
        if colours:
            file.colorinterp = [ColorInterp[name] for name in colours]
        if table:
            file.write_colormap(1, table)
        if pair != LOST:
            pairs = pair if isinstance(pair, list) else [pair] * count
            file.scales = [scale for scale, _ in pairs]
            file.offsets = [offset for _, offset in pairs]
        if unit:
            file.units = (unit,) * count
        if names:
            file.descriptions = names
        if tags:
            file.update_tags(**tags)
        file.write(array)
    return str(path)


def scene(path, pair, array=DARK, **options):
    return write(path, array, pair, unit="reflectance", names=NAMES, colours=RGBN, **options)


def about(path):
    with rasterio.open(path) as file:
        return {
            "pairs": list(zip(file.scales, file.offsets, strict=True)),
            "units": file.units,
            "names": file.descriptions,
            "colours": tuple(colour.name for colour in file.colorinterp),
        }


def run_on(folder, task, *images, labels=(), fine=(), **options):
    store = folder / "t"
    tile(TilingConfig(images, store, labels, fine, size=32, **options))
    return train(task, store, folder / "r", TRAINING)


def applied(run, path, **options):
    to = Path(path).with_name("made.tif")
    given = {"device": "cpu", "overwrite": True} | options
    return apply(ApplyConfig(run=run, scene=str(path), to=to, **given))


INPAINTING = InpaintingConfig(
    generator=EncoderDecoderConfig(width=4, dilations=(2,)),
    discriminator=HoleJudgeConfig(width=4, layers=1),
    adversarial_weight=0.0,
)


@pytest.fixture(name="filler", scope="module")
def _filler(tmp_path_factory):
    """A model that fills holes of scenes since baseline 04.00."""
    folder = tmp_path_factory.mktemp("filler")
    return run_on(folder, INPAINTING, scene(folder / "new.tif", NEW))


# --- read and kept -------------------------------------------------------------------------


def test_tags_are_read_for_the_bands_that_are_chosen(tmp_path):
    pairs = [(1e-4, -0.1), (1e-4, 0.0), (2.75e-5, -0.2), (0.01, 273.15)]
    path = scene(tmp_path / "s.tif", pairs)
    tags = open_scene(path, bands=("B08", "B04")).tags
    assert tags.pairs(2) == [(0.01, 273.15), (1e-4, -0.1)]
    assert tags.units == ("reflectance", "reflectance")
    assert tags.colours == ("nir", "red")
    one = write(tmp_path / "B4.tif", DARK[:1], NEW)
    other = write(tmp_path / "B10.tif", DARK[:1], (0.1, 0.0))
    assert open_scene([one, other]).tags.pairs(2) == [NEW, (0.1, 0.0)]


def test_files_without_tags_say_nothing(tmp_path):
    assert open_scene(write(tmp_path / "s.tif", DARK)).tags == BandTags()
    zero = write(tmp_path / "zero.tif", DARK, (0.0, 5.0))  # that would be one value everywhere
    assert open_scene(zero).tags == BandTags()


def test_the_store_and_the_run_keep_them(tmp_path):
    task = Pix2PixConfig("image", "image", SMALL, adversarial_weight=0.0)
    run = run_on(tmp_path, task, scene(tmp_path / "s.tif", NEW))
    kept = TileStore.open(tmp_path / "t").sources["image"].tags
    assert kept.pairs(4) == [NEW] * 4
    assert kept.units == ("reflectance",) * 4
    assert kept.colours == RGBN
    assert read_config(run)["data"]["sources"]["image"]["tags"]["offsets"] == [-0.1] * 4


def test_tags_that_do_not_fit_the_bands_are_refused():
    for tags in (BandTags(scales=(1.0,)), BandTags(palette=("red",))):
        with pytest.raises(InputError, match="tags do not fit its 2 bands"):
            Source("image", "image", "uint8", ("a", "b"), tags=tags)


# --- compared ------------------------------------------------------------------------------


def test_scenes_of_two_pairs_are_refused_with_both_and_the_line_that_mends_it(tmp_path):
    old = scene(tmp_path / "old.tif", OLD)
    new = scene(tmp_path / "new.tif", NEW)
    with pytest.raises(InputError) as refused:
        tile(TilingConfig((old, new), tmp_path / "t", size=32))
    message = str(refused.value)
    assert "new.tif has scale 0.0001 and offset -0.1 in band 1 (B04) and 3 more" in message
    assert "old.tif has scale 0.0001 and offset 0:" in message
    assert "gdal_translate -scale 0 10000 -1000 9000 -a_scale 0.0001 -a_offset 0 " in message
    assert "--ignore-scale-tags" in message
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize(
    ("pair", "other"),
    [
        (NEW, (float(np.float32(1e-4)), float(np.float32(-0.1)))),
        (OLD, (1e-4, 1e-18)),
        ((0.1, 1e6), (0.1, 1e6 * (1 + 1e-9))),
    ],
)
def test_rounded_tags_are_the_same(tmp_path, pair, other):
    files = (scene(tmp_path / "a.tif", pair), scene(tmp_path / "b.tif", other))
    assert len(tile(TilingConfig(files, tmp_path / "t", size=32))) == 8


@pytest.mark.parametrize("pair", [LOST, OLD, (2e-4, -0.1), (1e-4, -0.1001), (-1e-4, -0.1)])
def test_other_tags_are_others(tmp_path, pair):
    files = (scene(tmp_path / "a.tif", NEW), scene(tmp_path / "b.tif", pair))
    with pytest.raises(InputError, match="equal stored values do not mean the same"):
        tile(TilingConfig(files, tmp_path / "t", size=32))


def test_one_band_that_differs_is_enough(tmp_path):
    a = scene(tmp_path / "a.tif", [NEW, NEW, NEW, NEW])
    b = scene(tmp_path / "b.tif", [NEW, NEW, OLD, NEW])
    with pytest.raises(InputError, match=r"in band 3 \(B02\), .*a.tif has .* offset -0.1"):
        tile(TilingConfig((a, b), tmp_path / "t", size=32))
    assert len(tile(TilingConfig((a, b), tmp_path / "few", size=32, bands=("B04", "B08")))) == 8


def test_stored_values_can_be_taken_as_they_are(tmp_path):
    lost = scene(tmp_path / "lost.tif", LOST)
    new = scene(tmp_path / "new.tif", NEW)
    store = tile(TilingConfig((lost, new), tmp_path / "t", size=32, ignore_scale_tags=True))
    assert store.sources["image"].tags.pairs(4) == [NEW] * 4


def test_the_finer_source_is_compared_too(tmp_path):
    images = tuple(scene(tmp_path / f"{i}.tif", NEW) for i in (1, 2))
    fine = tuple(scene(tmp_path / f"f{i}.tif", pair) for i, pair in ((1, NEW), (2, OLD)))
    with pytest.raises(InputError, match=r"f2.tif has .*f1.tif has"):
        tile(TilingConfig(images, tmp_path / "t", fine=fine, size=32))


def test_units_that_differ_are_said(tmp_path):
    one = write(tmp_path / "a.tif", DARK, unit="K")
    other = write(tmp_path / "b.tif", DARK, unit="degC")
    same = write(tmp_path / "c.tif", DARK, unit="k")
    with pytest.warns(UserWarning, match=r"b.tif declares the unit 'degC', .*a.tif 'K'"):
        tile(TilingConfig((one, other), tmp_path / "t", size=32))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*declares the unit")
        tile(TilingConfig((one, same), tmp_path / "same", size=32))


@pytest.mark.parametrize("pair", [OLD, LOST])
def test_apply_refuses_a_scene_of_other_tags(tmp_path, filler, pair):
    path = scene(tmp_path / "s.tif", pair)
    with pytest.raises(InputError) as refused:
        applied(filler, path)
    message = str(refused.value)
    assert "the training has scale 0.0001 and offset -0.1" in message
    cure = "-scale 0 10000 1000 11000 -a_scale 0.0001 -a_offset -0.1"
    assert ("gdal_edit.py -scale SCALE" if pair == LOST else cure) in message
    assert not (tmp_path / "made.tif").exists()


def test_apply_takes_it_if_asked_and_leaves_its_tags(tmp_path, filler, capsys):
    array = DARK.copy()
    array[:, 10:20, 10:20] = 0
    path = scene(tmp_path / "s.tif", LOST, array, nodata=0)
    to = tmp_path / "made.tif"
    options = ["--scene", path, "--to", str(to), "--device", "cpu", "--ignore-scale-tags"]
    cli.main(["apply", "--run", str(filler), *options])
    capsys.readouterr()
    assert about(to) == about(path)


def test_evaluate_refuses_tiles_of_other_tags(tmp_path, filler):
    tile(TilingConfig((scene(tmp_path / "s.tif", OLD),), tmp_path / "t", size=32))
    options = {"run": filler, "tiles": tmp_path / "t", "split": "train", "device": "cpu"}
    with pytest.raises(InputError, match=r"offset 0 in band 1 .*offset -0.1.*--ignore-scale-tags"):
        evaluate(EvaluateConfig(**options))
    to = tmp_path / "e.json"
    assert evaluate(EvaluateConfig(**options, ignore_scale_tags=True, to=to))["tiles"]


def test_a_start_from_other_tags_is_refused(tmp_path, filler):
    tile(TilingConfig((scene(tmp_path / "s.tif", OLD),), tmp_path / "t", size=32))
    with pytest.raises(InputError, match=r"offset 0 in band 1 .*offset -0.1.*--ignore-scale-tags"):
        train(INPAINTING, tmp_path / "t", tmp_path / "r", TRAINING, init=filler)
    ignoring = TrainingConfig(**vars(TRAINING) | {"ignore_scale_tags": True})
    train(INPAINTING, tmp_path / "t", tmp_path / "r", ignoring, init=filler)


def test_a_run_goes_on_with_tiles_of_the_same_tags_only(tmp_path):
    run = run_on(tmp_path, INPAINTING, scene(tmp_path / "s.tif", NEW))
    tile(TilingConfig((scene(tmp_path / "s.tif", OLD),), tmp_path / "other", size=32))
    with pytest.raises(InputError, match=r"offset 0 in band 1 .*offset -0.1.*tile them again$"):
        resume(run, tiles=tmp_path / "other", steps=2)
    resume(run, steps=2)


def test_refusals_of_other_sources_stay_short(tmp_path):
    """Tags of 256 colours would fill a page."""
    label = write(tmp_path / "l.tif", NUMBERS, table=TABLE)
    store = tile(TilingConfig((scene(tmp_path / "s.tif", NEW),), tmp_path / "t", (label,), size=32))
    assert store.sources["label"].tags.palette
    assert "228b22" not in repr(store.sources["label"])


def test_a_model_that_starts_from_labels_does_not_ask(tmp_path):
    label = write(tmp_path / "l.tif", (DARK[:1] % 3).astype(np.uint8))
    task = Pix2PixConfig(generator=SMALL, adversarial_weight=0.0)
    run = run_on(tmp_path, task, scene(tmp_path / "s.tif", NEW), labels=(label,))
    applied(run, label)
    assert about(tmp_path / "made.tif") == about(tmp_path / "s.tif")  # what is made is that band


# --- the advice ----------------------------------------------------------------------------


def physical(path):
    with rasterio.open(path) as file:
        stored = file.read(masked=True).astype(float)
        scales = np.reshape(file.scales, (-1, 1, 1))
        return stored * scales + np.reshape(file.offsets, (-1, 1, 1))


def translated(line):
    """What the printed ``gdal_translate`` line does, done by the tool or, without it, by hand."""
    words = shlex.split(line)
    assert words[0] == "gdal_translate"
    if shutil.which(words[0]):
        subprocess.run([words[0], "-q", *words[1:]], check=True)
        return words[-1]
    low, high, to_low, to_high = map(float, words[2:6])
    options = dict(zip(words[6:10:2], words[7:10:2], strict=True))
    with rasterio.open(words[-2]) as file:
        stored, valid, profile = file.read(), file.dataset_mask() > 0, file.profile
    values = (stored - low) * (to_high - to_low) / (high - low) + to_low
    if stored.dtype.kind in "iu":
        limits = np.iinfo(stored.dtype)
        values = np.clip(np.rint(values), limits.min, limits.max)
    with rasterio.open(words[-1], "w", **profile) as file:
        file.write(np.where(valid, values, stored).astype(stored.dtype))
        file.scales = [float(options["-a_scale"])] * len(stored)
        file.offsets = [float(options["-a_offset"])] * len(stored)
    return words[-1]


@pytest.mark.parametrize(
    ("have", "want", "dtype"),
    [
        (NEW, OLD, "uint16"),
        (OLD, NEW, "uint16"),
        ((2.75e-5, -0.2), OLD, "uint16"),
        ((1e-4, -0.1), (1.0, 0.0), "float32"),
        ((1.0, 0.0), (0.01, -50.0), "float32"),
    ],
)
def test_the_printed_line_gives_the_same_physical_values(tmp_path, have, want, dtype):
    array = RNG.integers(9000, 20_000, (3, 64, 64)).astype(dtype)
    array[:, 5, 5] = 0
    first = write(tmp_path / "first.tif", array, want, nodata=0)
    other = write(tmp_path / "other one.tif", array, have, nodata=0)
    with pytest.raises(InputError) as refused:
        tile(TilingConfig((first, other), tmp_path / "t", size=32))
    line = re.search(r"gdal_translate .*-converted.tif'?", str(refused.value))[0]
    made = translated(line)
    there = physical(made)
    assert about(made)["pairs"] == [pytest.approx(want)] * 3
    assert np.array_equal(there.mask, physical(other).mask)
    step = want[0] if dtype == "uint16" else 1e-4 * abs(physical(other).max())
    assert np.abs(there - physical(other)).max() <= 0.51 * step
    assert len(tile(TilingConfig((first, made), tmp_path / "t", size=32))) == 8


def test_bands_of_several_pairs_get_the_formula():
    text = conversion([NEW, OLD], [OLD, OLD], "a.tif")
    assert "(stored * scale + offset - wanted offset) / wanted scale" in text
    tagged = Tagged("a.tif", ("x",), BandTags((1e-4,), (0.0,)), "uint16", ("dir/b.tif",))
    with pytest.raises(InputError, match=r"^dir/b.tif has scale 0.0001"):  # of a stack, that file
        check_same_scale(Tagged("run", ("x",), BandTags((1e-4,), (-0.1,)), "uint16"), tagged)


# --- written -------------------------------------------------------------------------------


def test_filled_holes_keep_what_the_scene_says(tmp_path, filler):
    array = DARK.copy()
    array[:, 10:20, 10:20] = 0
    path = scene(tmp_path / "s.tif", NEW, array, nodata=0)
    image, invented = applied(filler, path)
    assert about(image) == about(path)
    assert about(invented) == {
        "pairs": [LOST],
        "units": (None,),
        "names": ("invented",),
        "colours": ("gray",),
    }
    known = physical(path)
    assert np.array_equal(physical(image)[~known.mask], known[~known.mask])


def test_the_scene_keeps_its_own_names_and_colours(tmp_path, filler):
    """The model knows B04, B03 ...; this scene calls them otherwise."""
    array = DARK.copy()
    array[:, 10:20, 10:20] = 0
    names = ("Red", "Green", "Blue", "NIR")
    path = write(tmp_path / "s.tif", array, NEW, names=names, nodata=0)
    image, _ = applied(filler, path)
    assert about(image)["names"] == names
    assert about(image)["units"] == (None,) * 4


def test_cloud_layers_keep_them_and_alpha_has_none(tmp_path):
    path = scene(tmp_path / "s.tif", NEW)
    run = run_on(tmp_path, CloudLayersConfig(generator=SMALL, adversarial_weight=0.0), path)
    ground, alpha = applied(run, path)
    assert about(ground) == about(path)
    found = about(alpha)
    assert found["pairs"] == [LOST]
    assert found["units"] == (None,)
    assert found["colours"] == ("gray",)


def test_cloud_layers_and_their_filler_agree_on_tags(tmp_path, filler):
    path = scene(tmp_path / "s.tif", OLD)
    run = run_on(tmp_path, CloudLayersConfig(generator=SMALL, adversarial_weight=0.0), path)
    with pytest.raises(InputError, match=r"offset 0 in band 1 .*offset -0.1.*Give one that was"):
        applied(run, path, fill=filler)
    same = tmp_path / "same"
    same.mkdir()
    path = scene(same / "s.tif", NEW)
    run = run_on(same, CloudLayersConfig(generator=SMALL, adversarial_weight=0.0), path)
    ground, _, origin = applied(run, path, fill=filler, opaque=0.01)
    assert about(ground) == about(path)
    assert about(origin)["pairs"] == [LOST]


def test_finer_pixels_keep_them(tmp_path):
    path = scene(tmp_path / "s.tif", NEW)
    shape = UNetConfig(width=4, depth=2, up="resize", dropout=0.0)
    task = SuperResolutionConfig(generator=shape, adversarial_weight=0.0)
    run = run_on(tmp_path, task, path)
    with pytest.warns(Note, match="10 m from such of 20 m"):
        (made,) = applied(run, path)
    assert about(made) == about(path)


@pytest.mark.parametrize(
    ("bands", "colours", "dtype"),
    [
        (1, ("gray",), "uint8"),
        (2, ("gray", "undefined"), "uint8"),
        (3, ("red", "green", "blue"), "uint8"),
        (4, ("red", "green", "blue", "nir"), "uint8"),
        (4, ("red", "green", "blue", "undefined"), "uint8"),
        (4, ("blue", "green", "red", "nir"), "uint16"),
        (3, ("gray", "undefined", "undefined"), "uint8"),
        (1, ("red",), "uint8"),
    ],
)
def test_colours_stay_what_they_are(tmp_path, bands, colours, dtype):
    array = RNG.integers(1, 200, (bands, 64, 64)).astype(dtype)
    plain = {"photometric": "minisblack"}
    path = write(tmp_path / "s.tif", array, colours=colours, **plain)
    assert about(path)["colours"] == colours
    task = Pix2PixConfig("image", "image", SMALL, adversarial_weight=0.0)
    (made,) = applied(run_on(tmp_path, task, path), path)
    assert about(made)["colours"] == colours


def test_a_fourth_band_that_is_asked_for_is_no_alpha_afterwards(tmp_path):
    array = RNG.integers(1, 200, (4, 64, 64), np.uint8)
    path = write(tmp_path / "s.tif", array, colours=("red", "green", "blue", "alpha"))
    assert about(path)["colours"][3] == "alpha"
    task = Pix2PixConfig("image", "image", SMALL, adversarial_weight=0.0)
    run = run_on(tmp_path, task, path, bands=("1", "2", "3", "4"))
    (made,) = applied(run, path, bands=("1", "2", "3", "4"))
    assert about(made)["colours"] == ("red", "green", "blue", "undefined")


# --- palettes ------------------------------------------------------------------------------

TABLE = {0: (0, 0, 0, 255), 1: (34, 139, 34, 255), 2: (30, 144, 255, 255), 3: (205, 92, 92, 255)}
NUMBERS = RNG.integers(0, 4, (1, 64, 64), np.uint8)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_palette_images_are_refused_or_become_their_colours(tmp_path, dtype):
    path = write(tmp_path / "p.tif", NUMBERS.astype(dtype), table=TABLE)
    with pytest.raises(InputError, match=r"p.tif is a palette image.*--expand-palette"):
        tile(TilingConfig((path,), tmp_path / "t", size=32))
    with pytest.raises(InputError, match="is a palette image"):
        open_scene(path)
    store = tile(TilingConfig((path,), tmp_path / "t", size=32, expand_palette=True))
    image = store.sources["image"]
    assert (image.dtype, image.bands) == ("uint8", ("red", "green", "blue"))
    colours = np.array([TABLE[number][:3] for number in range(4)], np.uint8)
    assert np.array_equal(
        store.read("image", 0)[0], colours[NUMBERS[0, :32, :32]].transpose(2, 0, 1)
    )


@pytest.mark.parametrize("number", [0, 2])
def test_a_number_of_a_palette_that_is_declared_missing_can_be_declared_measured(tmp_path, number):
    path = write(tmp_path / "p.tif", NUMBERS, table=TABLE, nodata=number)
    window = rasterio.windows.Window(0, 0, 64, 64)
    _, valid = open_scene(path, palette="expand").read(window)
    assert np.array_equal(valid, NUMBERS[0] != number)
    with pytest.warns(UserWarning, match="--nodata none takes its place"):
        scene = open_scene(path, nodata="none", palette="expand")
    values, valid = scene.read(window)
    assert valid.all()
    colours = np.array([TABLE[number][:3] for number in range(4)], np.uint8)
    assert np.array_equal(values, colours[NUMBERS[0]].transpose(2, 0, 1))
    with pytest.warns(UserWarning, match="--nodata 3 takes its place"):
        scene = open_scene(path, nodata=3, palette="expand")
    assert np.array_equal(scene.read(window)[1], NUMBERS[0] != 3)


def test_an_expanded_palette_goes_through_apply(tmp_path):
    array = NUMBERS.copy()
    array[:, 10:20, 10:20] = 9
    path = write(tmp_path / "p.tif", array, table=TABLE, nodata=9)
    run = run_on(tmp_path, INPAINTING, path, expand_palette=True)
    with pytest.raises(InputError, match="--expand-palette"):
        applied(run, path)
    image, _ = applied(run, path, expand_palette=True)
    colours = np.array([TABLE[number][:3] for number in range(4)], np.uint8)
    with rasterio.open(image) as file:
        got = file.read()
    known = array[0] != 9
    assert np.array_equal(got[:, known], colours[array[0][known]].T)
    assert about(image)["colours"] == ("red", "green", "blue")


def test_bands_of_an_expanded_palette(tmp_path):
    path = write(tmp_path / "p.tif", NUMBERS, table=TABLE)
    chosen = open_scene(path, bands=("blue", "1"), palette="expand")
    assert chosen.bands == ("blue", "red")
    band = write(tmp_path / "B8.tif", NUMBERS)
    assert open_scene([path, band], palette="expand").bands == ("p-red", "p-green", "p-blue", "B8")


def test_numbers_without_a_colour_are_missing(tmp_path):
    table = {0: (0, 0, 0, 255), 1: (9, 9, 9, 255), 2: (7, 7, 7, 255)}
    path = write(tmp_path / "p.tif", NUMBERS, table=table, nodata=2)
    scene = open_scene(path, palette="expand")
    _, valid = scene.read(rasterio.windows.Window(0, 0, 64, 64))
    assert scene.nodata is None
    assert np.array_equal(valid, NUMBERS[0] != 2)
    given = open_scene(write(tmp_path / "q.tif", NUMBERS, table=table), nodata=1, palette="expand")
    _, valid = given.read(rasterio.windows.Window(0, 0, 64, 64))
    assert np.array_equal(valid, NUMBERS[0] != 1)


def test_transparent_colours_and_numbers_beyond_the_table_are_missing(tmp_path):
    write(tmp_path / "p.tif", NUMBERS, table=TABLE)
    rasterio.shutil.copy(tmp_path / "p.tif", tmp_path / "p.vrt", driver="VRT")
    entries = "".join(f'<Entry c1="9" c2="9" c3="9" c4="{alpha}"/>' for alpha in (255, 0, 255))
    text = (tmp_path / "p.vrt").read_text()
    text = re.sub(r"(?s)<ColorTable>.*</ColorTable>", f"<ColorTable>{entries}</ColorTable>", text)
    (tmp_path / "p.vrt").write_text(text)
    scene = open_scene(tmp_path / "p.vrt", palette="expand")
    values, valid = scene.read(rasterio.windows.Window(0, 0, 64, 64))
    assert np.array_equal(valid, np.isin(NUMBERS[0], (0, 2)))
    assert (values[:, valid] == 9).all()


def test_classes_keep_their_palette_and_their_names(tmp_path):
    tags = {"class_0": "other", "class_1": "wood", "class_2": "water"}
    label = write(tmp_path / "l.tif", NUMBERS, table=TABLE, names=("land cover",), tags=tags)
    photo = write(tmp_path / "s.tif", RNG.integers(1, 200, (3, 64, 64), np.uint8))
    assert open_labels(label, open_scene(photo).grid).tags.palette[1] == "228b22ff"
    task = Pix2PixConfig("image", "label", SMALL, adversarial_weight=0.0)
    run = run_on(tmp_path, task, photo, labels=(label,))
    (made,) = applied(run, photo)
    with rasterio.open(made) as file:
        assert file.colorinterp == (ColorInterp.palette,)
        assert {n: file.colormap(1)[n] for n in TABLE} == TABLE
        assert file.descriptions == ("land cover",)
        assert tags.items() <= file.tags().items()


@pytest.mark.parametrize("kind", ["rgb", "palette", "values"])
def test_recoded_classes_get_the_colours_that_they_come_from(tmp_path, kind):
    colours = np.array([TABLE[number][:3] for number in range(4)], np.uint8)
    recipe = tmp_path / "recipe.txt"
    if kind == "values":  # of a palette of one band
        recipe.write_text("0 2\n1 0\n2 1\n3 1\n")
        tags = {"class_1": "wood", "class_2": "water"}
        label = write(tmp_path / "l.tif", NUMBERS, table=TABLE, tags=tags)
    else:
        pairs = zip(colours, (2, 0, 1, 1), strict=True)
        lines = [f"{r} {g} {b} {number}\n" for (r, g, b), number in pairs]
        recipe.write_text("".join(lines))
        label = write(tmp_path / "l.tif", colours[NUMBERS[0]].transpose(2, 0, 1))
        if kind == "palette":
            label = write(tmp_path / "l.tif", NUMBERS, table=TABLE)
    photo = write(tmp_path / "s.tif", RNG.integers(1, 200, (3, 64, 64), np.uint8))
    store = tile(TilingConfig((photo,), tmp_path / "t", (label,), size=32, colours=recipe))
    kept = store.sources["label"].tags
    # The classes 0, 1 and 2 come from the numbers 1, 2 (and 3), and 0.
    assert kept.palette == ("228b22ff", "1e90ffff", "000000ff")
    assert kept.categories == (((0, "wood"), (1, "water")) if kind == "values" else ())


def test_a_palette_mask_and_a_palette_grid_are_fine(tmp_path, filler):
    mask = write(tmp_path / "m.tif", (NUMBERS == 1).astype(np.uint8), table=TABLE)
    path = scene(tmp_path / "s.tif", NEW)
    _, invented = applied(filler, path, mask=mask)
    with rasterio.open(invented) as file:
        assert np.array_equal(file.read(), NUMBERS == 1)
