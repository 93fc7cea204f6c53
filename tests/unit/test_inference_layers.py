"""Whole scenes in finer pixels, and without clouds: grids, bits, and where pixels are from."""

import os
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import from_origin
from torch import nn

from ganlab import inference
from ganlab.config import ApplyConfig, Pix2PixConfig
from ganlab.errors import InputError
from ganlab.inference import apply
from ganlab.resolution import enlarge
from ganlab.tasks.pix2pix import Pix2Pix

CRS = rasterio.crs.CRS.from_epsg(32633)
PLACE = from_origin(500_000, 5_000_000, 20, 20)
SHAPE = 60, 76
# Scenes of 20 m suit what was trained on pixels of 10 m that were made coarse; clouds do not mind.
pytestmark = pytest.mark.filterwarnings("ignore:.*in.tif has pixels of 20")
HIGH = {"uint8": 255, "uint16": 9000, "int16": 4000, "float32": 1}


def raster(path, array, crs=CRS, transform=PLACE, valid=None, names=None, **options):
    array = np.asarray(array)
    count, height, width = array.shape
    profile = {"driver": "GTiff", "width": width, "height": height, "count": count}
    profile |= {"dtype": array.dtype, "crs": crs, "transform": transform}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with (
            rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
            rasterio.open(path, "w", photometric="minisblack", **profile | options) as file,
        ):
            file.write(array)
            if names:
                file.descriptions = names
            if valid is not None:
                file.write_mask(valid)
    return str(path)


def noise(bands=3, dtype="uint8", shape=SHAPE, seed=0):
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.uniform(-0.25, 1.5, (bands, *shape)).astype(dtype)
    return rng.integers(1, HIGH[dtype], (bands, *shape)).astype(dtype)


def gap(shape=SHAPE):
    """Missing ground: at a corner, within, and a lonely pixel."""
    hole = np.zeros(shape, bool)
    hole[:17, 50:] = hole[30:44, 5:30] = hole[-1, 0] = True
    return hole


@pytest.fixture
def run_of(monkeypatch):
    """Let ``apply`` find given tasks in place of trained ones, by the name of the run."""

    def use(run, filler=None):
        tasks = {Path("run"): run, Path("filler"): filler}
        monkeypatch.setattr(inference, "load_task", lambda path, **_: tasks[path].eval())
        return run

    return use


def applied(folder, scene, **options):
    """What ``apply`` wrote, read by rasterio alone: {name: (pixels, valid, profile)}."""
    options = {"window": 32, "overlap": 8} | options
    to = options.pop("to", Path(folder) / "out" / "made.tif")
    paths = apply(ApplyConfig(Path("run"), str(scene), to, **options))
    assert paths[0] == to
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        for path in paths:
            with rasterio.open(path) as file:
                assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
                assert len(set(file.dtypes)) == 1
                profile = file.profile | {"bounds": file.bounds, "names": file.descriptions}
                name = path.stem.removeprefix(to.stem).strip("-")
                found[name] = file.read(), file.dataset_mask() > 0, profile
    assert sorted(p.name for p in to.parent.glob(f"*{to.stem}*")) == sorted(p.name for p in paths)
    return found


def left(folder):
    return sorted(path.name for path in Path(folder).rglob("*") if path.is_file())


def loud(task):
    """At the initial size every difference is near 0."""
    for parameter in task.generator.parameters():
        nn.init.normal_(parameter, 0.0, 0.3)
    return task


# Finer pixels


def bicubic(task, stored, valid):
    """The whole scene at once, in stored units, before rounding."""
    scaling = task.inputs[0].scaling
    values = torch.from_numpy(stored.astype(np.float32))[None]
    scaled = scaling.encode(values, torch.from_numpy(valid.astype(np.float32))[None, None])
    low, high = (np.reshape(ends, (-1, 1, 1)) for ends in (scaling.low, scaling.high))
    made = enlarge(scaled.double(), task.scale)[0].numpy()
    return (made + 1) / 2 * (high - low) + low


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("how", ["nodata", "mask"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_finer_pixels_of_the_same_ground(tmp_path, run_of, super_task, factor, how, dtype):
    """An untrained model is bicubic enlargement; missing ground stays missing."""
    nodata = {"nodata": 7.0, "mask": None}[how]
    task = run_of(super_task(3, dtype, factor=factor, nodata=nodata))
    task.spec = type(task.spec)(task.spec.sources, task.spec.scalings, 20 / factor)
    array, hole = noise(3, dtype), gap()
    array[array == 7] = 8  # one band of a type other than bytes would be enough to be missing
    if how == "nodata":
        array[:, hole] = 7
        scene = raster(tmp_path / "in.tif", array, nodata=7)
    else:
        scene = raster(tmp_path / "in.tif", array, valid=~hole)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        (found,) = applied(tmp_path, scene).values()
    made, valid, profile = found
    assert made.shape == (3, factor * SHAPE[0], factor * SHAPE[1])
    assert made.dtype == dtype
    size = 20 / factor
    assert profile["transform"] == rasterio.Affine(size, 0, 500_000, 0, -size, 5_000_000)
    assert profile["crs"] == CRS
    assert tuple(profile["bounds"]) == (500_000, 5_000_000 - 1200, 500_000 + 1520, 5_000_000)
    assert profile["names"] == ("red", "green", "blue")
    assert profile["nodata"] == nodata
    fine = hole.repeat(factor, 0).repeat(factor, 1)
    assert np.array_equal(valid, ~fine)
    expected, known = bicubic(task, array, ~hole), np.broadcast_to(~fine, made.shape)
    limits = {"uint8": (0, 255), "uint16": (0, 65535)}.get(dtype, (-9, 9))
    apart = np.abs(made - np.clip(expected, *limits))[known]
    # Rounding, and a pixel of nodata's own value that moves by one.
    assert apart.max() <= (1e-5 if dtype == "float32" else 1.51)
    assert apart.mean() < 0.3


@pytest.mark.parametrize("kind", ["subpixel", "resize", "transposed"])
def test_finer_tiled_is_whole(tmp_path, run_of, super_task, kind):
    """With an overlap of twelve strides, of which a quarter is margin."""
    task = run_of(loud(super_task(2 + 1, "float32", enlarge=kind)))
    scene = raster(tmp_path / "in.tif", noise(3, "float32", (90, 130)))

    def made(**options):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return applied(tmp_path, scene, overwrite=True, **options)[""][0]

    once = made(window=10**4)
    assert task.stride == 4
    assert once.std() > 0.3
    assert np.abs(made(window=96, overlap=48) - once).max() <= 2e-4
    assert np.abs(made(window=96, overlap=4) - once).max() > 1e-3  # so the overlap mattered


def test_a_second_source_of_other_bands_and_type(tmp_path, run_of, super_task):
    """Three bands of bytes in, one band of 16 bits out."""
    task = run_of(super_task(3, out=1))
    task.spec = type(task.spec)(task.spec.sources, task.spec.scalings, 20.0)
    array = noise()
    (found,) = applied(tmp_path, raster(tmp_path / "in.tif", array, valid=~gap())).values()
    made, valid, profile = found
    assert (made.shape, made.dtype) == ((1, 120, 152), np.uint16)
    assert profile["transform"] == rasterio.Affine(10, 0, 500_000, 0, -10, 5_000_000)
    assert np.array_equal(valid, ~gap().repeat(2, 0).repeat(2, 1))
    mean = enlarge(torch.from_numpy(array / 127.5 - 1)[None].mean(1, keepdim=True), 2)[0]
    far = np.zeros(made.shape[1:], bool)
    far[40:56, 20:100] = True  # from the gaps
    apart = np.abs(made - (mean.numpy() * 4450 + 4550))[:, far]
    assert apart.max() <= 0.6


def test_stacking(tmp_path, run_of, super_task):
    """Applied to its own output it gives four times the size, and says that it never met such."""
    run_of(super_task(nodata=0.0))
    array = noise()
    array[:, gap()] = 0
    scene = raster(tmp_path / "in.tif", array, nodata=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # trained on 10 m, from 20 m
        once = applied(tmp_path, scene)[""]
    with pytest.warns(UserWarning, match=r"10 m from such of 20 m; for .*made\.tif"):
        twice = applied(tmp_path, tmp_path / "out" / "made.tif", to=tmp_path / "again" / "x.tif")
    made, valid, profile = twice[""]
    assert made.shape == (3, 4 * SHAPE[0], 4 * SHAPE[1])
    assert profile["transform"] == rasterio.Affine(5, 0, 500_000, 0, -5, 5_000_000)
    assert profile["bounds"] == once[2]["bounds"]
    assert np.array_equal(valid, ~gap().repeat(4, 0).repeat(4, 1))
    # An untrained model twice is bicubic enlargement twice, of what was rounded in between.
    expected = bicubic(super_task(), once[0], once[1])
    apart = np.abs(made - np.clip(expected, 0, 255))[:, valid]
    assert apart.max() <= 1.51
    assert apart.mean() < 0.3


def test_finer_without_coordinates(tmp_path, run_of, super_task):
    run_of(super_task())
    nowhere = {"crs": None, "transform": rasterio.Affine.identity()}
    scene = raster(tmp_path / "in.tif", noise(), **nowhere)
    with pytest.raises(InputError, match=r"in\.tif has no CRS"):
        applied(tmp_path, scene)
    assert left(tmp_path) == ["in.tif"]
    made, valid, profile = applied(tmp_path, scene, ungeoreferenced=True)[""]
    assert made.shape == (3, 120, 152)
    assert valid.all()
    assert profile["crs"] is None


# Without clouds


class Part(nn.Module):
    """Ground of one value; alpha that rises with the first band, from 0 to 1 over its range."""

    def __init__(self, level=0.3):
        super().__init__()
        self.level = nn.Parameter(torch.tensor(level))

    def forward(self, image):
        return self.level.expand(image.shape).clone(), (image[:, :1] + 1) / 2


class Paint(nn.Module):
    """Paints one value into holes."""

    def __init__(self, level=-0.6):
        super().__init__()
        self.level = nn.Parameter(torch.tensor(level))

    def forward(self, image, hole, noise=None):
        return self.level.expand(image.shape).clone()


def parter(cloud_task, *args, level=0.3, **options):
    task = cloud_task(*args, **options)
    task.generator = Part(level)
    return task


def painter(hole_task, *args, level=-0.6, **options):
    task = hole_task(*args, **options)
    task.generator = Paint(level)
    return task


def level_of(task, dtype=None):
    """What ``Part`` and ``Paint`` make, in stored units: ``(C, 1)``."""
    scaling = task.image.scaling
    levels = task.generator.level.expand(1, task.image.channels, 1, 1)
    return scaling.decode(levels, dtype or task.image.source.dtype)[0, :, 0]


def clouded(bands=3, dtype="uint8", seed=0):
    """A scene whose first band holds steps of alpha, and these: none is near a threshold."""
    rng = np.random.default_rng(seed)
    alpha = rng.choice([0.005, 0.01, 0.1, 0.4, 0.7, 0.8, 0.95], (15, 19)).repeat(4, 0).repeat(4, 1)
    ends = {
        "uint8": (0, 255),
        "uint16": (100, 9000),
        "int16": (-300, 4000),
        "float32": (-0.25, 1.5),
    }
    low, high = ends[dtype]
    array, first = noise(bands, dtype, seed=seed), low + (high - low) * alpha
    array[0] = first if dtype == "float32" else np.rint(first)
    array[1:][array[1:] == 7] = 8
    return array, (array[0].astype(float) - low) / (high - low)


def same_bits(one, other):
    return one.dtype == other.dtype and one.tobytes() == other.tobytes()


CASES = [(how, d, b) for how in ("nodata", "mask", "none") for d in HIGH for b in (3, 13)]


@pytest.mark.parametrize(("how", "dtype", "bands"), CASES)
def test_ground_and_alpha(tmp_path, run_of, cloud_task, how, dtype, bands):
    task = run_of(parter(cloud_task, bands, dtype))
    (array, alpha), hole = clouded(bands, dtype), gap()
    options = {"nodata": {"nodata": 7}, "mask": {"valid": ~hole}, "none": {}}[how]
    if how == "nodata":
        array[:, hole] = 7
    if how == "none":
        hole = np.zeros_like(hole)
    scene = raster(tmp_path / "in.tif", array, **options)
    found = applied(tmp_path, scene)
    assert list(found) == ["", "alpha"]
    (ground, valid, profile), (layer, known, about) = found.values()
    assert ground.dtype == array.dtype
    assert (layer.shape, layer.dtype) == ((1, *SHAPE), np.float32)
    assert about["names"] == ("alpha",)
    assert about["nodata"] is None
    for made in (profile, about):
        assert (made["crs"], made["transform"]) == (CRS, PLACE)
    assert np.array_equal(valid, ~hole)
    assert np.array_equal(known, ~hole)
    assert profile["nodata"] == (7 if how == "nodata" else None)
    np.testing.assert_allclose(layer[0][~hole], alpha[~hole], atol=1e-5)
    clear, cloud = ~hole & (alpha < 0.02), ~hole & (alpha >= 0.02)
    assert clear.mean() > 0.1
    assert same_bits(ground[:, clear], array[:, clear])
    assert np.array_equal(ground[:, cloud], np.broadcast_to(level_of(task), (bands, cloud.sum())))


def test_clear_pixels_with_a_band_of_nodata_stay(tmp_path, run_of, cloud_task):
    """Missing is a pixel of which all bands are nodata; one dark band is not, and is no error."""
    run_of(parter(cloud_task))
    array, alpha = clouded()
    array[2, 20:30] = 7
    assert (alpha[20:30] < 0.02).any()
    scene = raster(tmp_path / "in.tif", array, nodata=7)
    ground, valid, _ = applied(tmp_path, scene)[""]
    clear = alpha < 0.02
    assert valid.all()
    assert same_bits(ground[:, clear], array[:, clear])


@pytest.mark.parametrize(("level", "nodata", "moved"), [(-1.0, 0, 1), (1.0, 255, 254)])
def test_made_ground_never_reads_as_missing(tmp_path, run_of, cloud_task, level, nodata, moved):
    run_of(parter(cloud_task, level=level))
    array, alpha = clouded()
    array[array == nodata] = moved
    scene = raster(tmp_path / "in.tif", array, nodata=nodata)
    ground, valid, _ = applied(tmp_path, scene)[""]
    cloud = alpha >= 0.02
    assert valid.all()
    assert (ground[:, cloud] == moved).all()
    assert same_bits(ground[:, ~cloud], array[:, ~cloud])


@pytest.mark.parametrize(("trained", "stored"), [("uint8", "uint16"), ("uint16", "uint32")])
def test_a_scene_of_a_wider_type_keeps_its_own(tmp_path, run_of, cloud_task, trained, stored):
    task = run_of(parter(cloud_task, 3, trained))
    array, alpha = clouded(3, trained)
    array = array.astype(stored)
    array[1, 0] = np.iinfo(stored).max
    scene = raster(tmp_path / "in.tif", array)
    ground, _, profile = applied(tmp_path, scene)[""]
    clear = alpha < 0.02
    assert profile["dtype"] == stored
    assert same_bits(ground[:, clear], array[:, clear])
    assert (ground[:, ~clear] == level_of(task, stored)).all()


@pytest.mark.parametrize("order", ["joint", "sequential"])
def test_layers_tiled_are_whole(tmp_path, run_of, cloud_task, order):
    """Two networks one behind the other need twice the overlap."""
    run_of(loud(cloud_task(3, "float32", order=order, clear=0.0)))
    scene = raster(tmp_path / "in.tif", noise(3, "float32", (90, 130)))

    def made(**options):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            found = applied(tmp_path, scene, overwrite=True, **options)
        return np.concatenate([found[""][0], found["alpha"][0]])

    once, overlap = made(window=10**4), 32 if order == "joint" else 64
    assert once.std() > 0.1
    assert np.abs(made(window=2 * overlap, overlap=overlap) - once).max() <= 2e-4
    assert np.abs(made(window=64, overlap=4) - once).max() > 1e-3  # so the overlap mattered


# Seen through, or invented


@pytest.mark.parametrize("how", ["nodata", "mask", "none"])
@pytest.mark.parametrize("opaque", [0.75, 0.5, 0.9])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_from_a_cloudy_scene_to_where_its_pixels_are_from(
    tmp_path, run_of, cloud_task, hole_task, how, opaque, dtype
):
    task, filler = parter(cloud_task, 3, dtype), painter(hole_task, "inpainting", 3, dtype)
    run_of(task, filler)
    (array, alpha), hole = clouded(3, dtype), gap()
    options = {"nodata": {"nodata": 7}, "mask": {"valid": ~hole}, "none": {}}[how]
    if how == "nodata":
        array[:, hole] = 7
    if how == "none":
        hole = np.zeros_like(hole)
    scene = raster(tmp_path / "in.tif", array, **options)
    found = applied(tmp_path, scene, fill=Path("filler"), opaque=opaque)
    assert list(found) == ["", "alpha", "origin"]
    (ground, valid, profile), (layer, *_), (origin, known, about) = found.values()
    assert (origin.shape, origin.dtype) == ((1, *SHAPE), np.uint8)
    assert (about["crs"], about["transform"], about["nodata"]) == (CRS, PLACE, None)
    assert profile["nodata"] == (7 if how == "nodata" else None)
    for mask in (valid, known):
        assert np.array_equal(mask, ~hole)
    kept, seen, made = (~hole & (origin[0] == value) for value in range(3))
    assert np.array_equal(kept, ~hole & (alpha < 0.02))
    assert np.array_equal(seen, ~hole & (alpha >= 0.02) & (alpha <= opaque))
    assert np.array_equal(made, ~hole & (alpha > opaque))
    assert min(kept.mean(), seen.mean(), made.mean()) > 0.05
    np.testing.assert_allclose(layer[0][~hole], alpha[~hole], atol=1e-5)
    assert same_bits(ground[:, kept], array[:, kept])
    near = {"rtol": 1e-6 if dtype == "float32" else 0}  # weights of windows round
    for which, where in ((task, seen), (filler, made)):
        expected = np.broadcast_to(level_of(which), (3, where.sum()))
        np.testing.assert_allclose(ground[:, where], expected, **near)


def test_networks_in_a_chain(tmp_path, run_of, cloud_task, hole_task):
    """What the second one does not invent is what the first one made, bit for bit."""
    task, filler = loud(cloud_task(4, "uint16")), hole_task("two_stage", 4, "uint16")
    run_of(task, filler)
    array = noise(4, "uint16")
    scene = raster(tmp_path / "in.tif", array, valid=~gap())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        alone = applied(tmp_path, scene)
        both = applied(tmp_path, scene, overwrite=True, fill=Path("filler"), opaque=0.6)
    assert same_bits(alone["alpha"][0], both["alpha"][0])
    (ground, valid, _), (origin, *_) = both[""], both["origin"]
    alpha, plain = both["alpha"][0][0], alone[""][0]
    invented = valid & (origin[0] == 2)
    assert np.array_equal(invented, valid & (alpha > 0.6))
    assert 0.02 < invented.mean() < 0.98
    assert same_bits(ground[:, valid & ~invented], plain[:, valid & ~invented])
    assert (ground[:, invented] != plain[:, invented]).mean() > 0.9
    same = (plain == array).all(0)
    assert np.array_equal(valid & (origin[0] == 0), valid & same & ~invented)


@pytest.mark.parametrize(("value", "origin"), [(2, 0), (120, 1), (250, 2)])
def test_a_sky_of_one_kind(tmp_path, run_of, cloud_task, hole_task, value, origin):
    """Clear, thin or closed; none of them is a reason to warn."""
    task, filler = parter(cloud_task), painter(hole_task)
    run_of(task, filler)
    array = np.full((3, *SHAPE), value, np.uint8)
    scene = raster(tmp_path / "in.tif", array, transform=from_origin(5e5, 5e6, 10, 10))
    done = []
    config = ApplyConfig(
        Path("run"), str(scene), tmp_path / "m.tif", window=32, overlap=8, fill=Path("filler")
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        paths = apply(config, progress=lambda *at: done.append(at))
    assert [path.name for path in paths] == ["m.tif", "m-alpha.tif", "m-origin.tif"]
    assert left(tmp_path) == ["in.tif", "m-alpha.tif", "m-origin.tif", "m.tif"]
    assert done[-1][0] == done[-1][1]
    with rasterio.open(paths[2]) as file:
        assert (file.read() == origin).all()
    with rasterio.open(paths[0]) as file:
        expected = array if origin == 0 else level_of(task if origin == 1 else filler)[..., None]
        assert (file.read() == expected).all()


def test_a_chain_without_coordinates(tmp_path, run_of, cloud_task, hole_task):
    run_of(parter(cloud_task), painter(hole_task))
    nowhere = {"crs": None, "transform": rasterio.Affine.identity()}
    scene = raster(tmp_path / "in.tif", clouded()[0], **nowhere)
    with pytest.raises(InputError, match=r"in\.tif has no CRS"):
        applied(tmp_path, scene, fill=Path("filler"))
    assert left(tmp_path) == ["in.tif"]
    found = applied(tmp_path, scene, fill=Path("filler"), ungeoreferenced=True)
    assert all(profile["crs"] is None for _, _, profile in found.values())
    assert set(np.unique(found["origin"][0])) == {0, 1, 2}


def test_chosen_bands_go_through_the_chain(tmp_path, run_of, cloud_task, hole_task):
    """``bands`` are those of the scene; the ground has only these."""
    task, filler = parter(cloud_task), painter(hole_task)
    run_of(task, filler)
    array, _ = clouded()
    names = ("x", "red", "y", "green", "blue")
    wide = np.stack([noise(1)[0], array[0], noise(1)[0], array[1], array[2]])
    plain = applied(tmp_path, raster(tmp_path / "in.tif", array), fill=Path("filler"))
    scene = raster(tmp_path / "wide.tif", wide, names=names)
    for bands in (("2", "4", "5"), ("red", "green", "blue")):
        found = applied(tmp_path, scene, fill=Path("filler"), bands=bands, overwrite=True)
        for name, (pixels, *_) in plain.items():
            assert same_bits(found[name][0], pixels)


# What goes wrong


def test_chains_that_cannot_be(tmp_path, run_of, cloud_task, hole_task):
    scene = raster(tmp_path / "in.tif", clouded()[0])
    cloudy, filling = parter(cloud_task), painter(hole_task)
    other = Pix2Pix(Pix2PixConfig("image", "image"), cloudy.spec)
    wrong = [
        (cloudy, cloudy, {}, r"--fill filler: this model fills no holes; give one that does"),
        (cloudy, other, {}, r"--fill filler: this model fills no holes"),
        (other, filling, {}, r"--fill filler: this model finds no clouds; leave it out"),
        (filling, filling, {}, r"--fill filler: this model finds no clouds"),
        (cloudy, filling, {"opaque": 0.0}, r"--opaque 0.0: expected alpha above 0, at most 1"),
        (cloudy, filling, {"opaque": 75.0}, r"--opaque 75.0"),
        (cloudy, filling, {"opaque": float("nan")}, r"--opaque nan"),
        (cloudy, filling, {"mask": scene}, r"--mask .*this model fills no holes"),
        (cloudy, painter(hole_task, "inpainting", 4), {}, r"fills \['B02'.* ground has \['red'"),
        (cloudy, painter(hole_task, "inpainting", 3, "float32"), {}, "of float32, the ground has"),
    ]
    for task, filler, options, match in wrong:
        run_of(task, filler)
        with pytest.raises(InputError, match=match) as caught:
            applied(tmp_path, scene, fill=Path("filler"), **options)
        assert "\n" not in str(caught.value)
        assert left(tmp_path) == ["in.tif"]


def test_a_filler_of_other_bands(tmp_path, run_of, cloud_task, hole_task):
    """As many bands, but near infrared first: green would be filled as if it were red."""
    scene = raster(tmp_path / "in.tif", clouded()[0])
    filler = painter(hole_task)
    (given, *others), names = filler.inputs, ("nir", "red", "green")
    filler.inputs = (replace(given, source=replace(given.source, bands=names)), *others)
    run_of(parter(cloud_task), filler)
    with pytest.raises(InputError, match=r"fills \['nir', 'red', 'green'\].* ground has \['red'"):
        applied(tmp_path, scene, fill=Path("filler"))
    assert left(tmp_path) == ["in.tif"]


def test_opacity_asks_for_a_filler(tmp_path, run_of, cloud_task):
    run_of(parter(cloud_task))
    with pytest.raises(InputError, match="--opaque says where --fill is asked"):
        applied(tmp_path, raster(tmp_path / "in.tif", clouded()[0]), opaque=0.5)
    assert left(tmp_path) == ["in.tif"]


@pytest.mark.parametrize("kind", ["clouds", "finer"])
def test_a_scene_without_a_valid_pixel(tmp_path, run_of, cloud_task, super_task, kind):
    run_of({"clouds": cloud_task, "finer": super_task}[kind]())
    scene = raster(tmp_path / "in.tif", np.zeros((3, *SHAPE), np.uint8), nodata=0)
    with pytest.raises(InputError, match=r"in\.tif has no valid pixel: check its nodata value"):
        applied(tmp_path, scene)
    assert left(tmp_path) == ["in.tif"]


@pytest.mark.parametrize("name", ["made.tif", "made-alpha.tif", "made-origin.tif"])
def test_nothing_is_written_over_unasked(tmp_path, run_of, cloud_task, hole_task, name):
    run_of(parter(cloud_task), painter(hole_task))
    scene = raster(tmp_path / "in.tif", clouded()[0])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("dear to somebody")
    with pytest.raises(InputError, match=f"{name} exists"):
        applied(tmp_path, scene, fill=Path("filler"))
    assert left(tmp_path) == sorted(["in.tif", name])
    assert (tmp_path / "out" / name).read_text() == "dear to somebody"


@pytest.mark.parametrize("who", ["first", "second"])
def test_values_that_are_not_finite_leave_nothing(tmp_path, run_of, cloud_task, hole_task, who):
    level = {"first": (float("nan"), 0.0), "second": (0.0, float("nan"))}[who]
    run_of(parter(cloud_task, level=level[0]), painter(hole_task, level=level[1]))
    scene = raster(tmp_path / "in.tif", clouded()[0])
    with pytest.raises(InputError, match="not finite"):
        applied(tmp_path, scene, fill=Path("filler"))
    assert left(tmp_path) == ["in.tif"]


@pytest.mark.parametrize("when", ["write", "fill", "finish", "replace"])
def test_a_full_disk_leaves_what_stood_there(
    tmp_path, run_of, cloud_task, hole_task, monkeypatch, when
):
    run_of(parter(cloud_task), painter(hole_task))
    scene = raster(tmp_path / "in.tif", clouded()[0])
    applied(tmp_path, scene, fill=Path("filler"))
    out = tmp_path / "out"
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    calls = []

    def full(*arguments, **_):
        calls.append(arguments)
        raise OSError(28, "No space left on device")

    place = {
        "write": (inference.Output, "write"),
        "fill": (inference, "_fill"),
        "finish": (inference.Output, "finish"),
        "replace": (os, "replace"),
    }[when]
    monkeypatch.setattr(*place, full)
    with pytest.raises(InputError, match=r"made\.tif cannot be written"):
        applied(tmp_path, scene, fill=Path("filler"), overwrite=True)
    assert calls
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
