"""Whole scenes: windows that leave no trace, and files that lie where their input lies."""

import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.transform import from_origin
from rasterio.windows import Window
from torch import nn

from ganlab import inference
from ganlab.config import ApplyConfig, Pix2PixConfig, TilingConfig, TrainingConfig, UNetConfig
from ganlab.data import geotiff, tags
from ganlab.data.batches import DataSpec, Scaling
from ganlab.data.scenes import Grid, Scene
from ganlab.data.store import Source
from ganlab.data.tiling import tile
from ganlab.errors import InputError
from ganlab.inference import apply, generate_scene, spans
from ganlab.networks.unet import UNet
from ganlab.tasks.base import Field, Task
from ganlab.tasks.pix2pix import Pix2Pix
from ganlab.training import train

CRS = rasterio.crs.CRS.from_epsg(32633)
PLACE = from_origin(500_000, 5_000_000, 2, 2)
RGB = Source("image", "image", "uint8", ("red", "green", "blue"))
LABEL = Source("label", "label", "uint8", ("class",), classes=(1, 3, 200))


class Mapped(Task):
    """A generator without training between two sources."""

    def __init__(self, given, made, generator=None, *, scale=1, stride=1, low=0.0, high=255.0):
        super().__init__(None, DataSpec({}, {}))
        self.inputs = (self._field(given, low, high),)
        self.outputs = (self._field(made, low, high),)
        self.generator = nn.Identity() if generator is None else generator
        self.scale, self.stride = scale, stride
        self.place = nn.Parameter(torch.zeros(()))

    @staticmethod
    def _field(source, low, high):
        n = len(source.bands)
        scaling = Scaling((low,) * n, (high,) * n, ((low + high) / 2,) * n)
        return Field(source, None if source.kind == "label" else scaling)

    def generate(self, batch):
        given, made = self.inputs[0], self.outputs[0]
        x = self.generator(given.enter(batch[given.name]))
        return {made.name: x.repeat_interleave(self.scale, 2).repeat_interleave(self.scale, 3)}

    def generator_losses(self, batch, out, verdict):
        raise NotImplementedError

    def balances(self, steps):
        raise NotImplementedError

    last_layer = None


class Held(Scene):
    """A scene in memory."""

    def __init__(self, array, valid=None):
        grid = Grid(CRS, PLACE, array.shape[2], array.shape[1])
        bands = tuple(map(str, range(len(array))))
        super().__init__("held", "held", grid, array.dtype.name, bands, None)
        valid = np.ones(array.shape[1:], bool) if valid is None else valid
        object.__setattr__(self, "pixels", (array, valid))

    def read(self, window):
        rows, columns = window.toslices()
        assert 0 <= rows.start < rows.stop <= self.grid.height
        assert 0 <= columns.start < columns.stop <= self.grid.width
        return self.pixels[0][:, rows, columns].copy(), self.pixels[1][rows, columns].copy()


def whole(task, scene, **options):
    """What ``generate_scene`` yields, put together; every pixel exactly once."""
    field, grid = task.outputs[0], scene.grid.scaled(task.scale)
    count = 1 if field.source.kind == "label" else len(field.source.bands)
    made = np.zeros((count, grid.height, grid.width), field.source.dtype)
    valid, seen = np.zeros(made.shape[1:], bool), np.zeros(made.shape[1:], int)
    for window, mask, stored in generate_scene(task, scene, **options):
        rows, columns = window.toslices()
        made[:, rows, columns], valid[rows, columns] = stored[field.name], mask
        seen[rows, columns] += 1
    assert (seen == 1).all()
    return made, valid


def raster(path, array, crs=CRS, transform=PLACE, names=None, colours=None, mask=None, **options):
    array = np.asarray(array)
    count, height, width = array.shape
    profile = {"driver": "GTiff", "width": width, "height": height, "count": count}
    profile |= {"dtype": array.dtype, "crs": crs, "transform": transform, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with (
            rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
            rasterio.open(path, "w", **profile) as file,
        ):
            if colours:
                file.colorinterp = colours
            for band, name in enumerate(names or (), 1):
                file.set_band_description(band, name)
            file.write(array)
            if mask is not None:
                file.write_mask(mask)
    return str(path)


def noise(shape, dtype="uint8", seed=0):
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.normal(100, 60, shape).astype(dtype)
    return rng.integers(1, np.iinfo(dtype).max, shape, dtype=dtype)


@pytest.fixture
def run_of(monkeypatch):
    """Let ``apply`` find a given task in place of a trained one."""

    def use(task):
        monkeypatch.setattr(inference, "load_task", lambda *_, **__: task.eval())

    return use


def applied(tmp_path, scene, **options):
    config = ApplyConfig(Path("run"), str(scene), tmp_path / "out" / "made.tif", **options)
    (path,) = apply(config)
    return path


# Windows


lengths = st.integers(1, 300)


@given(lengths, st.integers(1, 90), st.integers(0, 60), st.sampled_from([1, 2, 4, 8, 32]))
def test_weights_of_windows_add_up_to_one(length, window, overlap, stride):
    found = spans(length, window, overlap, stride)
    total, number = torch.zeros(length, dtype=torch.float64), torch.zeros(length)
    for span in found:
        assert span.start % stride == 0
        assert span.size == span.stop - span.start > 0
        total[span.start : span.stop] += span.weights()
        number[span.start : span.stop] += 1
    assert (total - 1).abs().max() <= 1e-15
    assert number.min() >= 1
    assert number.max() <= 2
    assert len({span.size for span in found[:-1]}) <= 1
    assert all((span.size % stride == 0) for span in found[:-1])
    if window >= 2 * overlap + stride:
        # Windows are no larger than asked for, but for whole strides.
        assert found[0].size <= max(window, 3 * stride)


@given(st.integers(2, 9), st.integers(1, 9))
def test_the_outer_quarter_of_an_overlap_has_no_weight(strides, more):
    stride, overlap = 4, 4 * strides
    first, second = spans(1000, 2 * overlap + 4 * more, overlap, stride)[:2]
    assert first.stop - second.start == overlap
    assert (second.weights()[: overlap // 4] == 0).all()
    assert (first.weights()[-(overlap // 4) :] == 0).all()
    assert second.weights()[overlap // 4] > 0
    assert first.weights()[-(overlap // 4) - 1] > 0


@pytest.mark.parametrize(("window", "overlap"), [(0, 0), (-4, 0), (8, -1)])
def test_windows_without_pixels_are_refused(window, overlap):
    with pytest.raises(InputError, match=f"window {window} and overlap {overlap}"):
        spans(100, window, overlap, 1)


def test_no_batch_is_refused():
    with pytest.raises(InputError, match="batch size 0"):
        whole(Mapped(RGB, RGB), Held(noise((3, 8, 8))), batch_size=0)


# What comes out of windows


@settings(max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    window=st.integers(1, 40),
    overlap=st.integers(0, 24),
    stride=st.sampled_from([1, 2, 4]),
    scale=st.sampled_from([1, 2]),
    batch=st.integers(1, 5),
    swath=st.sampled_from([1, 30, 10**6]),
    source=st.sampled_from(["uint8", "uint16", "float32", "label"]),
    seed=st.integers(0, 99),
)
def test_the_identity_gives_the_scene_back(
    shape, window, overlap, stride, scale, batch, swath, source, seed
):
    if source == "label":
        kind = LABEL
        array = np.random.default_rng(seed).choice(np.uint8(kind.classes), (1, *shape))
    else:
        kind = replace(RGB, dtype=source)
        array = noise((3, *shape), source, seed)
    valid = np.random.default_rng(seed + 1).random(shape) > 0.2
    high = 65535.0 if source == "uint16" else 255.0
    task = Mapped(kind, kind, scale=scale, stride=stride, high=high)
    scene, options = Held(array, valid), {"window": window, "overlap": overlap, "batch_size": batch}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference, "SWATH", swath)
        made, mask = whole(task, scene, **options)
    expected = array.repeat(scale, 1).repeat(scale, 2)
    assert np.array_equal(mask, valid.repeat(scale, 0).repeat(scale, 1))
    if source == "float32":
        # Scaling and weights round three times, each by half a unit at the size of the range.
        largest = np.float32(max(255, np.abs(array).max()))
        assert np.abs(made - expected)[:, mask].max(initial=0) <= 3 * np.spacing(largest)
    else:
        assert np.array_equal(made[:, mask], expected[:, mask])


@settings(max_examples=20)
@given(
    shape=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    window=st.integers(1, 40),
    overlap=st.integers(0, 20),
)
def test_a_pointwise_network_does_not_know_of_windows(shape, window, overlap):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 3, 1), nn.Tanh())
    task, scene = Mapped(RGB, RGB, layers), Held(noise((3, *shape)))
    once, _ = whole(task, scene, window=10**4, overlap=0)
    made, _ = whole(task, scene, window=window, overlap=overlap)
    assert np.abs(made.astype(int) - once).max() <= 1
    assert (made != once).mean() < 0.01


class Wide(nn.Module):
    """A network in float64, whatever comes."""

    def __init__(self, network):
        super().__init__()
        self.network = network.double()

    def forward(self, x):
        return self.network(x.double())


def unet(norm, up="transposed", double=False):
    torch.manual_seed(1)
    network = UNet(3, 3, width=4, depth=2, norm=norm, up=up, dropout=0.0)
    for name, parameter in network.named_parameters():
        if name.endswith("weight"):
            # At the initial size every output is near 0, and so is every difference.
            nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.3)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.3)
            layer.running_var.uniform_(0.5, 2)
    return Wide(network) if double else network


@pytest.mark.parametrize(
    ("norm", "up", "strides"),
    [
        ("channel", "transposed", 8),
        ("channel", "resize", 8),
        ("none", "subpixel", 12),
        ("batch", "transposed", 8),
    ],
)
@pytest.mark.parametrize("shape", [(97, 130), (64, 141)])
def test_tiled_is_whole(norm, up, strides, shape):
    """With a margin of two strides, an overlap of eight; sub-pixels need three, and twelve."""
    source = replace(RGB, dtype="float64")
    task = Mapped(source, source, unet(norm, up, double=True), stride=4, low=-1.0, high=1.0)
    task.double().eval()
    scene = Held(np.random.default_rng(0).uniform(-1, 1, (3, *shape)))
    once, _ = whole(task, scene, window=10**4, overlap=0)
    tiled, _ = whole(task, scene, window=8 * strides, overlap=4 * strides, batch_size=2)
    assert once.std() > 0.2
    assert np.abs(tiled - once).max() <= 1e-12
    close, _ = whole(task, scene, window=64, overlap=4)
    assert np.abs(close - once).max() > 1e-6  # so the overlap mattered


def test_tiled_is_whole_in_single_precision():
    source = replace(RGB, dtype="float32")
    task = Mapped(source, source, unet("channel"), stride=4, low=-1.0, high=1.0).eval()
    scene = Held(np.random.default_rng(0).uniform(-1, 1, (3, 97, 130)).astype(np.float32))
    once, _ = whole(task, scene, window=10**4, overlap=0)
    tiled, _ = whole(task, scene, window=64, overlap=32)
    assert np.abs(tiled - once).max() <= 1e-5


def test_instance_norm_blends_without_a_seam():
    """Its statistics jump between windows; blending spreads the jump over the overlap."""
    source = replace(RGB, dtype="float32")
    task = Mapped(source, source, nn.InstanceNorm2d(3), low=-1.0, high=1.0)
    smooth = np.linspace(-1, 1, 256, dtype=np.float32)
    scene = Held(np.broadcast_to(smooth[None, None], (3, 64, 256)).copy())

    def steps(overlap):
        made, _ = whole(task, scene, window=64, overlap=overlap)
        return np.abs(np.diff(made, axis=2)).mean((0, 1))

    butted, blended = steps(0), steps(32)
    assert np.median(butted) < 0.06
    assert butted[[63, 127, 191]].min() > 3
    assert blended.max() < 0.2


@pytest.mark.parametrize("swath", [1, 100, 200])
def test_swaths_leave_no_trace(monkeypatch, swath):
    task = Mapped(RGB, RGB, unet("instance"), stride=4).eval()
    scene = Held(noise((3, 70, 300)))
    once, _ = whole(task, scene, window=64, overlap=16, batch_size=1)
    monkeypatch.setattr(inference, "SWATH", swath)
    windows = [block for block, *_ in generate_scene(task, scene, window=64, overlap=16)]
    assert len({window.col_off for window in windows}) > 1
    assert np.array_equal(whole(task, scene, window=64, overlap=16, batch_size=1)[0], once)


def test_windows_without_a_valid_pixel_are_left_out():
    seen = []

    class Watch(nn.Module):
        def forward(self, x):
            seen.append(len(x))
            return x

    array, valid = noise((3, 40, 100)), np.zeros((40, 100), bool)
    valid[:, 55:] = True
    task, done = Mapped(RGB, RGB, Watch()), []
    made, mask = whole(
        task,
        Held(array, valid),
        window=20,
        overlap=4,
        batch_size=3,
        progress=lambda *at: done.append(at),
    )
    assert np.array_equal(made[:, valid], array[:, valid])
    assert np.array_equal(mask, valid)
    assert done[-1][0] == done[-1][1] > sum(seen) > 0
    assert [at for at, _ in done] == sorted({at for at, _ in done})


def environment():
    """In which a script finds this module, and the library where it is found here."""
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


MEMORY = """
import resource, sys
from pathlib import Path
from test_inference import *

def scene(name, width, height):
    profile = {"driver": "GTiff", "width": width, "height": height, "count": 3, "dtype": "uint8",
               "crs": CRS, "transform": PLACE, "tiled": True, "sparse_ok": True}
    with rasterio.open(name, "w", **profile) as file:
        file.write(noise((3, 256, 256)), window=Window(0, 0, 256, 256))
    return name

inference.SWATH, inference.CACHE_BYTES = 500, 2**22
task = Mapped(RGB, RGB)
inference.load_task = lambda *_, **__: task
torch.set_num_threads(1)
for name, width, height in (("s", 500, 6000), ("t", 500, 24000), ("w", 24000, 500)):
    where = {"scene": scene(name, width, height), "to": Path(name + ".tif")}
    apply(ApplyConfig(Path("r"), **where, window=256, overlap=32))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_memory_does_not_grow_with_the_scene(tmp_path):
    """The high-water mark of a process over one scene and two that are four times as large."""
    out = subprocess.run(
        [sys.executable, "-c", MEMORY],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    small, tall, wide = map(int, out.split())
    # A large scene has 144 MB in float32. GDAL's copy warms up by some 30 MB and stays there.
    assert tall - small < 48, out
    assert wide - small < 48, out


# Files


def test_the_output_is_cloud_optimized_and_lies_over_the_input(tmp_path, run_of):
    array = noise((3, 700, 1100))
    turned = PLACE * rasterio.Affine.rotation(10)
    scene = raster(tmp_path / "in.tif", array, transform=turned)
    run_of(Mapped(RGB, RGB))
    with rasterio.open(applied(tmp_path, scene)) as made, rasterio.open(scene) as given:
        assert np.array_equal(made.read(), array)
        assert (made.crs, made.transform, made.shape) == (given.crs, given.transform, given.shape)
        assert made.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert made.profile["tiled"]
        assert made.block_shapes == [(512, 512)] * 3
        assert made.overviews(1) == [2, 4]
        assert made.descriptions == RGB.bands
        assert made.colorinterp == (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
        assert made.nodata is None
        assert made.mask_flag_enums == ([MaskFlags.all_valid],) * 3
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["made.tif"]


def test_twice_as_fine(tmp_path, run_of):
    array = noise((3, 30, 41))
    run_of(Mapped(RGB, RGB, scale=2))
    with rasterio.open(applied(tmp_path, raster(tmp_path / "in.tif", array))) as made:
        assert np.array_equal(made.read(), array.repeat(2, 1).repeat(2, 2))
        assert made.transform == PLACE * rasterio.Affine.scale(0.5)


BANDS = ["red", "1 2", "1 2 3 4", "red green blue 4", "B02 B03 B04 B08 B11"]


@pytest.mark.parametrize("names", BANDS)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_any_number_of_bands_and_no_transparency(tmp_path, run_of, names, dtype):
    """Four bands of bytes are no RGBA."""
    names = tuple(names.split())
    source = Source("image", "image", dtype, names)
    array = noise((len(names), 40, 50), dtype)
    array[:, 0, 0] = 0
    colours = [ColorInterp[name] if name in tags.RGB else ColorInterp.undefined for name in names]
    options = {"names": names, "colours": colours, "photometric": "minisblack"}
    scene = raster(tmp_path / "in.tif", array, **options)
    high = {"uint8": 255.0, "uint16": 65535.0, "int16": 32767.0, "float32": 400.0}[dtype]
    run_of(Mapped(source, source, low=0.0, high=high))
    with rasterio.open(applied(tmp_path, scene)) as made:
        got = made.read()
        if dtype == "float32":
            np.testing.assert_allclose(got, array, rtol=0, atol=1e-4)
        else:
            assert np.array_equal(got, array)
        assert made.dtypes == (dtype,) * len(names)
        assert made.descriptions == names
        assert made.mask_flag_enums == ([MaskFlags.all_valid],) * len(names)
        assert ColorInterp.alpha not in made.colorinterp
        if "blue" in names:
            assert made.colorinterp[:3] == tuple(colours[:3])


class Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_values_saturate(tmp_path, run_of, dtype):
    source = Source("image", "image", dtype, ("1",))
    array = np.linspace(1, 100, 30 * 20).reshape(1, 20, 30).astype(dtype)
    run_of(Mapped(source, source, Times(1e38 if dtype == "float32" else 1e6), low=0.0, high=101.0))
    with rasterio.open(applied(tmp_path, raster(tmp_path / "in.tif", array))) as made:
        limits = np.finfo(dtype) if dtype == "float32" else np.iinfo(dtype)
        expected = np.where(array < 50.5, limits.min, limits.max)
        if dtype == "float32":
            expected = np.clip(
                (array.astype(float) / 50.5 - 1.0) * 1e38 * 50.5, limits.min, limits.max
            )
            np.testing.assert_allclose(made.read(), expected, rtol=1e-3, atol=1e32)
            assert made.read().max() == limits.max
        else:
            assert np.array_equal(made.read(), expected)


def hole(array, value=None):
    """The array with a corner that is missing, and where it is measured."""
    valid = np.ones(array.shape[1:], bool)
    valid[:17, 25:] = False
    if value is not None:
        array = np.where(valid, array, np.asarray(value, array.dtype))
    return array, valid


@pytest.mark.parametrize("how", ["nodata", "alpha", "mask"])
@pytest.mark.parametrize("trained", [None, 0.0, 255.0])
def test_what_was_missing_stays_missing(tmp_path, run_of, how, trained):
    """The output declares what the scene does; what the training's scenes declared is not said."""
    array, valid = hole(noise((3, 40, 50)), 7 if how == "nodata" else None)
    array[0, 30, 30:32] = 0, 255
    if how == "nodata":
        scene = raster(tmp_path / "in.tif", array, nodata=7)
    elif how == "alpha":
        alpha = np.uint8(valid[None] * 255)
        colours = (*(ColorInterp[name] for name in RGB.bands), ColorInterp.alpha)
        scene = raster(tmp_path / "in.tif", np.concatenate([array, alpha]), colours=colours)
    else:
        scene = raster(tmp_path / "in.tif", array, mask=valid)
    run_of(Mapped(RGB, replace(RGB, nodata=trained)))
    with rasterio.open(applied(tmp_path, scene, window=16, overlap=4)) as made:
        assert made.nodata == (7 if how == "nodata" else None)
        kept = array
        if how == "nodata":
            kept = np.where(array == 7, np.uint8(8), array)
            assert (kept != array)[:, valid].sum() >= 1
            assert MaskFlags.nodata in made.mask_flag_enums[0]
        else:
            assert made.mask_flag_enums == ([MaskFlags.per_dataset],) * 3
        assert np.array_equal(made.read()[:, valid], kept[:, valid])
        assert np.array_equal(made.dataset_mask() > 0, valid)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["made.tif"]


@pytest.mark.parametrize("nodata", [-9999.0, float("nan"), 0.0, 3.4028234663852886e38])
def test_missing_floats(tmp_path, run_of, nodata):
    source = Source("image", "image", "float32", ("1",), nodata=nodata)
    array, valid = hole(noise((1, 40, 50), "float32"), nodata)
    scene = raster(tmp_path / "in.tif", array, nodata=nodata)
    run_of(Mapped(source, source))
    with rasterio.open(applied(tmp_path, scene)) as made:
        assert np.isnan(made.nodata) if np.isnan(nodata) else made.nodata == nodata
        np.testing.assert_allclose(made.read()[0][valid], array[0][valid], rtol=0, atol=1e-4)
        assert np.array_equal(made.dataset_mask() > 0, valid)


@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [("uint8", 0), ("uint8", 255), ("int16", -7), ("float32", 0.0), ("float32", 5.0),
     ("float32", float(np.finfo(np.float32).max)), ("float32", float(np.finfo(np.float32).min))],
)  # fmt: skip
def test_made_values_that_would_read_as_missing_move_a_little(tmp_path, dtype, nodata):
    """So far that GDAL, which allows for rounding, reads them as measured."""
    stored = np.asarray([nodata, 3, 4], dtype)
    moved = geotiff._avoid(stored, nodata)
    assert moved.dtype == stored.dtype
    assert np.isfinite(moved).all()
    assert moved[0] != stored[0]
    assert moved[1:].tolist() == [3, 4]
    step = max(abs(nodata) * 2.0**-20, 2.0**-149) if dtype == "float32" else 1
    if abs(nodata) > 1e38:
        step = abs(nodata) * 2e-5 * 1.01
    assert abs(float(moved[0]) - nodata) <= step
    path = raster(tmp_path / "a.tif", moved[None, None], nodata=nodata)
    with rasterio.open(path) as file:
        assert file.dataset_mask().all() or abs(nodata) > 1e38  # where GDAL's own sum overflows


def test_nodata_that_the_pixels_cannot_hold_becomes_a_mask(tmp_path, run_of):
    array, valid = hole(noise((3, 40, 50)))
    scene = raster(tmp_path / "in.tif", array, mask=valid)
    run_of(Mapped(RGB, replace(RGB, nodata=-9999.0)))
    with rasterio.open(applied(tmp_path, scene)) as made:
        assert made.nodata is None
        assert np.array_equal(made.dataset_mask() > 0, valid)


def test_classes_keep_their_numbers(tmp_path, run_of):
    """Also where one of them was nodata in the training, and where the input has holes."""
    array, valid = hole(np.random.default_rng(0).choice(np.uint8([1, 3, 200]), (1, 600, 700)))
    scene = raster(tmp_path / "in.tif", array, mask=valid)
    run_of(Mapped(LABEL, replace(LABEL, nodata=3)))
    with rasterio.open(applied(tmp_path, scene)) as made:
        assert np.array_equal(made.read(1)[valid], array[0][valid])
        assert made.nodata is None
        assert np.array_equal(made.dataset_mask() > 0, valid)
        assert made.descriptions == ("class",)
        with rasterio.open(made.name, overview_level=0) as half:
            assert set(np.unique(half.read())) == {1, 3, 200}  # nothing between two classes


def test_several_outputs_lie_side_by_side(tmp_path, run_of):
    task = Mapped(RGB, RGB)
    second = Mapped._field(replace(RGB, name="other"), 0.0, 255.0)
    task.outputs = (*task.outputs, second)
    task.generate = lambda batch: {"image": batch["image"], "other": -batch["image"]}
    run_of(task)
    array = noise((3, 20, 30))
    scene = raster(tmp_path / "in.tif", array)
    paths = apply(ApplyConfig(Path("run"), scene, tmp_path / "made.tif"))
    assert [path.name for path in paths] == ["made.tif", "made-other.tif"]
    for path, expected in zip(paths, (array, 255 - array), strict=True):
        with rasterio.open(path) as made:
            assert np.array_equal(made.read(), expected)
    paths[0].unlink()
    with pytest.raises(InputError, match=r"made-other\.tif exists"):
        apply(ApplyConfig(Path("run"), scene, tmp_path / "made.tif"))


def test_vector_labels(tmp_path, run_of):
    image = raster(tmp_path / "image.tif", noise((3, 40, 50)))
    square = [[[500_010, 4_999_990], [500_050, 4_999_990], [500_050, 4_999_950],
               [500_010, 4_999_950], [500_010, 4_999_990]]]  # fmt: skip
    vector = tmp_path / "houses.geojson"
    vector.write_text(
        '{"type": "FeatureCollection", "crs": {"type": "name", "properties": {"name": '
        '"urn:ogc:def:crs:EPSG::32633"}}, "features": [{"type": "Feature", "properties": '
        f'{{"kind": 3}}, "geometry": {{"type": "Polygon", "coordinates": {square}}}}}]}}'
    )
    source = replace(LABEL, classes=(0, 1, 3))
    run_of(Mapped(source, source))
    for attribute, value in ((None, 1), ("kind", 3)):
        options = {"like": image, "attribute": attribute, "overwrite": True}
        with rasterio.open(applied(tmp_path, vector, **options)) as made:
            expected = np.zeros((40, 50), np.uint8)
            expected[5:25, 5:25] = value
            assert np.array_equal(made.read(1), expected)
            assert (made.crs, made.transform) == (CRS, PLACE)
    with pytest.raises(InputError, match=r"houses\.geojson is a vector file.*--like"):
        applied(tmp_path, vector, overwrite=True)
    with pytest.raises(InputError, match="--bands 1 2: this model starts from labels"):
        applied(tmp_path, vector, like=image, bands=("1", "2"), overwrite=True)
    run_of(Mapped(RGB, RGB))
    with pytest.raises(InputError, match=r"houses\.geojson is a vector file.*starts from 3 bands"):
        applied(tmp_path, vector, like=image, overwrite=True)
    for wrong in ({"like": image}, {"attribute": "kind"}):
        with pytest.raises(InputError, match=r"image\.tif is a raster"):
            applied(tmp_path, image, overwrite=True, **wrong)


# What does not fit


def test_without_coordinates(tmp_path, run_of):
    array = noise((3, 20, 30))
    identity = rasterio.Affine.identity()
    scene = raster(tmp_path / "in.tif", array, crs=None, transform=identity)
    run_of(Mapped(RGB, RGB))
    with pytest.raises(InputError, match=r"in\.tif has no CRS; give --ungeoreferenced"):
        applied(tmp_path, scene)
    assert not (tmp_path / "out").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error", rasterio.errors.NotGeoreferencedWarning)
        path = applied(tmp_path, scene, ungeoreferenced=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(path) as made:
            assert made.crs is None
            assert np.array_equal(made.read(), array)


@pytest.mark.parametrize(
    ("bands", "dtype", "names", "match"),
    [
        (1, "uint8", None, r"in\.tif has 1 bands \['1'\] of uint8; .*\['red', 'green', 'blue'\]"),
        (4, "uint8", None, r"4 bands .* choose with --bands"),
        (3, "float32", None, "of float32; the model was trained on .* of uint8: convert .* -ot"),
        (3, "int16", None, "of int16"),
        (3, "uint8", ("blue", "green", "red"), r"\['blue', 'green', 'red'\].* --bands"),
        (3, "uint8", ("nir", "red", "green"), r"\['nir', 'red', 'green'\].* --bands"),
    ],
)
def test_bands_unlike_the_trained_ones(tmp_path, run_of, bands, dtype, names, match):
    options = {"names": names, "photometric": "minisblack"}
    scene = raster(tmp_path / "in.tif", noise((bands, 20, 30), dtype), **options)
    run_of(Mapped(RGB, RGB))
    with pytest.raises(InputError, match=match):
        applied(tmp_path, scene)


def test_bands_are_chosen(tmp_path, run_of):
    array = noise((4, 20, 30))
    options = {"names": ("nir", "blue", "green", "red"), "photometric": "minisblack"}
    scene = raster(tmp_path / "in.tif", array, **options)
    run_of(Mapped(RGB, RGB))
    for bands in (("red", "green", "blue"), ("4", "3", "2")):
        with rasterio.open(applied(tmp_path, scene, bands=bands, overwrite=True)) as made:
            assert np.array_equal(made.read(), array[[3, 2, 1]])


def test_an_unknown_class(tmp_path, run_of):
    array, valid = hole(np.full((1, 40, 50), 3, np.uint8), 77)
    scene = raster(tmp_path / "in.tif", array, mask=valid)
    run_of(Mapped(LABEL, LABEL))
    applied(tmp_path, scene)  # 77 stands where nothing was measured
    array[0, 30, 20] = 9
    scene = raster(tmp_path / "other.tif", array, mask=valid)
    with pytest.raises(InputError, match=r"other\.tif: label: class 9 is unknown.*\[1, 3, 200\]"):
        applied(tmp_path, scene, overwrite=True)


@pytest.mark.parametrize(("share", "warned"), [(0.04, False), (0.08, True)])
def test_data_unlike_the_training(tmp_path, run_of, share, warned):
    """A pixel is far outside from twice the range on: here above 300 or below -100."""
    source = Source("image", "image", "int16", ("1",))
    array = np.full((1, 50, 100), 299, np.int16)
    array[0, :, : round(100 * share)] = 301
    scene = raster(tmp_path / "in.tif", array)
    run_of(Mapped(source, source, low=0.0, high=200.0))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        applied(tmp_path, scene)
    text = [str(w.message) for w in said if "far outside" in str(w.message)]
    assert len(text) == warned
    assert not warned or ("8%" in text[0] and "in.tif" in text[0])


def test_existing_outputs_and_odd_names(tmp_path, run_of):
    scene = raster(tmp_path / "in.tif", noise((3, 20, 30)))
    run_of(Mapped(RGB, RGB))
    path = applied(tmp_path, scene)
    path.write_bytes(b"old")
    with pytest.raises(InputError, match=r"made\.tif exists; give --overwrite"):
        applied(tmp_path, scene)
    assert path.read_bytes() == b"old"
    applied(tmp_path, scene, overwrite=True)
    with rasterio.open(path) as made:
        assert made.shape == (20, 30)
    config = ApplyConfig(Path("run"), scene, tmp_path / "made.png")
    with pytest.raises(InputError, match=r"made\.png: .* ends in \.tif"):
        apply(config)
    (tmp_path / "folder.tif").mkdir()
    for name in ("folder.tif", "in.tif", "out/../in.tif"):
        with pytest.raises(InputError, match="is a folder or the scene itself"):
            apply(replace(config, to=tmp_path / name, overwrite=True))


def left(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_folder_that_cannot_be_written(tmp_path, run_of):
    scene = raster(tmp_path / "in.tif", noise((3, 20, 30)))
    run_of(Mapped(RGB, RGB))
    (tmp_path / "out").write_text("a file")
    with pytest.raises(InputError, match=r"made\.tif cannot be written.*folder that can be"):
        applied(tmp_path, scene)
    assert left(tmp_path) == ["in.tif", "out"]


@pytest.mark.parametrize("when", ["write", "copy", "silent", "replace", "interrupt"])
def test_a_full_disk_leaves_what_stood_there(tmp_path, run_of, monkeypatch, when):
    scene = raster(tmp_path / "in.tif", noise((3, 200, 300)))
    run_of(Mapped(RGB, RGB))
    path = applied(tmp_path, scene)
    before = path.read_bytes()

    def full(*_, **__):
        if when == "interrupt":
            raise KeyboardInterrupt
        raise OSError(28, "No space left on device")

    if when == "silent":
        copy = rasterio.shutil.copy

        def lossy(plain, final, *args, **options):
            with rasterio.open(plain, "r+") as file:
                file.write(np.zeros((3, 1, 1), np.uint8), window=Window(299, 199, 1, 1))
            copy(plain, final, *args, **options)

        monkeypatch.setattr(rasterio.shutil, "copy", lossy)
    else:
        where = {"copy": (rasterio.shutil, "copy"), "replace": (os, "replace")}
        monkeypatch.setattr(*where.get(when, (inference.Output, "write")), full)
    kind = KeyboardInterrupt if when == "interrupt" else InputError
    with pytest.raises(kind, match=None if when == "interrupt" else r"made\.tif cannot be written"):
        applied(tmp_path, scene, overwrite=True, window=64, overlap=8)
    assert path.read_bytes() == before
    assert left(tmp_path) == ["in.tif", "made.tif"]


LIMITED = """
import resource, signal
from pathlib import Path
from test_inference import *

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
task = Mapped(RGB, RGB)
inference.load_task = lambda *_, **__: task
for limit in map(int, sys.argv[1:]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        applied(Path.cwd(), "in.tif", overwrite=True)
        with rasterio.open("out/made.tif") as made, rasterio.open("in.tif") as given:
            print(limit, np.array_equal(made.read(), given.read()))
    except InputError as error:
        print(limit, "InputError", left(Path.cwd()) == ["in.tif"])
"""


@pytest.mark.parametrize(
    ("shape", "limits"),
    [
        # 1,573 kB, which noise with its overviews exceeds even compressed: either file can fail.
        ((512, 1024), (10_000, 900_000, 1_500_000, 1_600_000, 1_800_000)),
        # The first of these is what GDAL does not speak of.
        ((1500, 2000), (100_000, 9_100_000)),
    ],
)
def test_a_disk_that_refuses_in_the_middle(tmp_path, shape, limits):
    """GDAL can lose what does not fit without a word; here the system really refuses it."""
    raster(tmp_path / "in.tif", noise((3, *shape)))
    out = subprocess.run(
        [sys.executable, "-c", LIMITED, *map(str, limits), "20000000"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = dict(line.split(" ", 1) for line in out.splitlines())
    assert found.pop("20000000") == "True"
    assert set(found) == set(map(str, limits))
    assert set(found.values()) == {"InputError True"}, out


def test_leftovers_of_a_killed_process_go(tmp_path, run_of):
    scene = raster(tmp_path / "in.tif", noise((3, 20, 30)))
    run_of(Mapped(RGB, RGB))
    old = tmp_path / "out" / ".made.tif.a1b2c3d4.ganlab-tmp"
    old.mkdir(parents=True)
    (old / "image.tif").write_text("half")
    applied(tmp_path, scene)
    assert left(tmp_path) == ["in.tif", "made.tif"]
    assert not old.exists()


def test_a_scene_that_is_cut_short(tmp_path, run_of):
    scene = raster(tmp_path / "in.tif", noise((3, 600, 600)), compress="deflate", tiled=True)
    data = Path(scene).read_bytes()
    Path(scene).write_bytes(data[: len(data) // 2])
    run_of(Mapped(RGB, RGB))
    with pytest.raises(InputError, match=r"in\.tif cannot be (read|opened)"):
        applied(tmp_path, scene)
    assert left(tmp_path) == ["in.tif"]


def test_values_that_are_not_finite(tmp_path, run_of):
    scene = raster(tmp_path / "in.tif", noise((3, 20, 30)))
    run_of(Mapped(RGB, RGB, Times(float("inf"))))
    with pytest.raises(InputError, match="not finite"):
        applied(tmp_path, scene)
    assert left(tmp_path) == ["in.tif"]


# Noise, statistics, precision


def pix2pix(norm="channel", noise=False, dropout=0.5):
    torch.manual_seed(3)
    scalings = {"image": Scaling((0.0,) * 3, (255.0,) * 3, (128.0,) * 3)}
    shape = UNetConfig(width=4, depth=3, norm=norm, dropout=dropout)
    config = Pix2PixConfig("image", "image", shape, noise=noise)
    task = Pix2Pix(config, DataSpec({"image": RGB}, scalings)).eval()
    for parameter in task.generator.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, 0.0, 0.2)
    return task


def test_dropout_noise_follows_the_seed_and_nothing_else():
    scene = Held(noise((3, 60, 100)))
    task = pix2pix(noise=True)

    def made(**options):
        torch.manual_seed(int(options.pop("state", 0)))
        return whole(task, scene, window=32, overlap=8, **options)[0]

    first = made(seed=1)
    assert np.array_equal(made(seed=1, batch_size=2, state=9), first)
    assert (made(seed=2) != first).mean() > 0.5
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    whole(task, scene, window=32, overlap=8, seed=1)
    assert torch.equal(torch.rand(3), expected), "the caller's random state was used up"
    quiet = pix2pix(noise=False)
    assert np.array_equal(*(whole(quiet, scene, window=32, seed=s)[0] for s in (1, 2)))


def test_noise_differs_from_window_to_window():
    flat = Held(np.full((3, 64, 128), 90, np.uint8))
    made, _ = whole(pix2pix(noise=True), flat, window=64, overlap=0, seed=0)
    assert (made[:, :, :64] != made[:, :, 64:]).mean() > 0.5


def test_batch_statistics_are_those_of_one_window(tmp_path, run_of):
    scene = raster(tmp_path / "in.tif", noise((3, 64, 128)))
    options = {"window": 32, "overlap": 0, "overwrite": True}

    def made(task, **more):
        run_of(task)
        with rasterio.open(applied(tmp_path, scene, **options, **more)) as file:
            return file.read()

    usual = made(pix2pix("batch"))
    single = made(pix2pix("batch"), batch_statistics=True, batch_size=1)
    several = made(pix2pix("batch"), batch_statistics=True, batch_size=4)
    assert np.array_equal(single, several)
    assert (single != usual).mean() > 0.5
    with pytest.raises(InputError, match="has no batch norm"):
        made(pix2pix("channel"), batch_statistics=True)


def test_bfloat16_is_close_and_not_equal(monkeypatch):
    scene, task = Held(noise((3, 64, 64))), pix2pix(dropout=0.0)

    def made(precision):
        return whole(task, scene, precision=precision)[0].astype(int)

    full, half = made("fp32"), made("bf16")
    assert 0 < np.abs(full - half).mean() < 3
    assert np.array_equal(made("auto"), full) == (not torch.cuda.is_available())
    monkeypatch.setattr(inference, "decide_precision", lambda *_: "bf16")
    assert np.array_equal(made("auto"), half)


@pytest.mark.parametrize("average", [True, False])
def test_the_model_is_taken_as_asked_for(tmp_path, monkeypatch, average):
    asked = []

    def load(run, **options):
        asked.append((run, options))
        return Mapped(RGB, RGB)

    monkeypatch.setattr(inference, "load_task", load)
    applied(tmp_path, raster(tmp_path / "in.tif", noise((3, 9, 9))), average=average, device="cpu")
    assert asked == [(Path("run"), {"average": average, "device": "cpu"})]


@pytest.mark.parametrize(("size", "warns"), [(0.5, False), (0.6, False), (1.0, True), (0.3, True)])
def test_a_scene_of_another_pixel_size_is_applied_with_a_warning(tmp_path, size, warns):
    """A network knows houses of a certain width in pixels, whatever the coordinates say."""
    pixels = np.random.default_rng(0).integers(0, 255, (1, 64, 64), np.uint8)
    files = {}
    for name, width in (("photo", 0.5), ("same", 0.5), ("other", size)):
        files[name] = tmp_path / f"{name}.tif"
        grid = rasterio.Affine(width, 0, 5e5, 0, -width, 5e6)
        form = {"driver": "GTiff", "width": 64, "height": 64, "count": 1, "dtype": "uint8"}
        with rasterio.open(files[name], "w", crs="EPSG:32633", transform=grid, **form) as file:
            file.write(pixels if name == "photo" else pixels % 2)
    tile(TilingConfig((str(files["photo"]),), tmp_path / "t", (str(files["same"]),), size=32))
    shape = UNetConfig(width=4, depth=2)
    training = TrainingConfig(steps=1, batch_size=1, tensorboard=False, device="cpu")
    run = train(
        Pix2PixConfig(generator=shape, adversarial_weight=0.0),
        tmp_path / "t",
        tmp_path / "r",
        training,
    )
    config = ApplyConfig(run=run, scene=str(files["other"]), to=tmp_path / "made.tif")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        apply(config)
    assert any("pixels of" in str(warning.message) for warning in said) == warns


def test_settings_and_checkpoint_that_do_not_fit(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (1, 64, 64), np.uint8)
    form = {"driver": "GTiff", "width": 64, "height": 64, "count": 1, "dtype": "uint8"}
    with rasterio.open(tmp_path / "s.tif", "w", crs=CRS, transform=PLACE, **form) as file:
        file.write(pixels)
    tile(TilingConfig((str(tmp_path / "s.tif"),), tmp_path / "t", size=32))
    task = Pix2PixConfig("image", "image", UNetConfig(width=4, depth=2), adversarial_weight=0.0)
    training = TrainingConfig(steps=1, batch_size=1, tensorboard=False, device="cpu")
    run = train(task, tmp_path / "t", tmp_path / "r", training)
    about = (run / "config.json").read_text()
    (run / "config.json").write_text(about.replace('"width": 4', '"width": 8', 1))
    with pytest.raises(InputError, match="do not fit: .*size mismatch"):
        apply(ApplyConfig(run=run, scene=str(tmp_path / "s.tif"), to=tmp_path / "m.tif"))
