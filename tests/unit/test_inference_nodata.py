"""What outputs of ``apply`` declare: what the scene did, or what was asked for; nothing else."""

import re
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from rasterio.enums import MaskFlags
from rasterio.transform import from_origin
from torch import nn

from ganlab import inference
from ganlab.config import ApplyConfig, PatchGANConfig, Pix2PixConfig, UNetConfig
from ganlab.data.batches import DataSpec, Scaling
from ganlab.data.store import Source
from ganlab.errors import InputError
from ganlab.inference import apply
from ganlab.tasks.pix2pix import Pix2Pix

SHAPE = (40, 48)
PROFILE = {"crs": "EPSG:32633", "transform": from_origin(500_000, 5_000_000, 10, 10)}
SMALL = UNetConfig(width=4, depth=2, dropout=0.0)


def write(path, array, **options):
    count, height, width = array.shape
    profile = {"count": count, "height": height, "width": width, "dtype": array.dtype}
    profile |= {"photometric": "minisblack"} | PROFILE
    with rasterio.open(path, "w", "GTiff", **profile | options) as file:
        file.write(array)
    return str(path)


def vrt(path, files, nodata, kind):
    bands = "".join(
        f'<VRTRasterBand dataType="{kind}" band="{i}"><NoDataValue>{value}</NoDataValue>'
        f"<SimpleSource><SourceFilename>{name}</SourceFilename><SourceBand>1</SourceBand>"
        "</SimpleSource></VRTRasterBand>"
        for i, (name, value) in enumerate(zip(files, nodata, strict=True), start=1)
    )
    path.write_text(
        f'<VRTDataset rasterXSize="{SHAPE[1]}" rasterYSize="{SHAPE[0]}"><SRS>EPSG:32633</SRS>'
        f"<GeoTransform>500000, 10, 0, 5000000, 0, -10</GeoTransform>{bands}</VRTDataset>"
    )
    return str(path)


@pytest.fixture
def run_of(monkeypatch):
    """Let ``apply`` find a given task in place of a trained one."""

    def use(task):
        monkeypatch.setattr(inference, "load_task", lambda *_, **__: task.eval())
        return task

    return use


def applied(folder, scene, **options):
    """(pixels, valid, nodata, mask flags) of the first output, and the warnings."""
    to = Path(folder) / "out" / "made.tif"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        paths = apply(ApplyConfig(Path("run"), str(scene), to, overwrite=True, **options))
    said = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
    with rasterio.open(paths[0]) as file:
        found = file.read(), file.dataset_mask() > 0, file.nodata, file.mask_flag_enums[0]
    return (*found, said)


def picture(bands=3, dtype="uint8", seed=0):
    return np.random.default_rng(seed).integers(1, 250, (bands, *SHAPE)).astype(dtype)


# --- What the training declared -------------------------------------------------------------


@pytest.mark.parametrize("trained", [0.0, 255.0])
def test_black_stays_black(tmp_path, run_of, hole_task, trained):
    """A scene without nodata whose shadows have the value that was missing in the training."""
    run_of(hole_task(nodata=trained))
    array = picture()
    array[:, 10:20, 10:30] = trained
    hole = np.zeros(SHAPE, bool)
    hole[25:35, 5:20] = True
    mask = write(tmp_path / "mask.tif", hole[None].astype("uint8"))
    scene = write(tmp_path / "in.tif", array)
    made, valid, nodata, _, said = applied(tmp_path, scene)
    assert np.array_equal(made, array)
    assert valid.all()
    assert nodata is None
    hint = f"declared nodata {trained:.0f}, this one declares none: .* give --nodata {trained:.0f}"
    assert re.search(hint, said[0])
    made, valid, nodata, *_ = applied(tmp_path, scene, mask=mask)
    assert np.array_equal(made[:, ~hole], array[:, ~hole])
    assert valid.all()
    assert nodata is None


def test_what_is_asked_for_is_applied_and_declared(tmp_path, run_of, hole_task):
    run_of(hole_task())
    array = picture()
    array[:, 10:20, 10:30] = 0
    scene = write(tmp_path / "in.tif", array)
    made, valid, nodata, *_ = applied(tmp_path, scene, nodata=0)
    hole = (array == 0).all(0)
    assert (nodata, valid.all()) == (0, True)
    assert np.array_equal(made[:, ~hole], array[:, ~hole])
    assert (made[:, hole] != 0).all()
    declared = write(tmp_path / "b.tif", array, nodata=7)
    made, valid, nodata, _, said = applied(tmp_path, declared, nodata=0)
    assert any(re.search(r"b\.tif declares nodata 7; --nodata 0 takes its place", s) for s in said)
    assert nodata == 0
    made, valid, nodata, _, said = applied(tmp_path, declared, nodata="none")
    assert np.array_equal(made, array)
    assert nodata is None
    assert valid.all()
    with pytest.raises(InputError, match="--nodata -9999: the pixels of"):
        applied(tmp_path, scene, nodata=-9999)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_bands_with_values_of_their_own_get_a_mask(tmp_path, run_of, super_task, dtype):
    """GeoTIFF has one nodata value for all bands."""
    run_of(super_task(3, dtype))
    array = picture(3, dtype)
    array[0, :, :8], array[1, :, 40:], array[2, 20:, :] = 255, 0, 9
    files = [write(tmp_path / f"{i}.tif", band[None]) for i, band in enumerate(array)]
    kind = {"uint8": "Byte", "uint16": "UInt16", "float32": "Float32"}[dtype]
    scene = vrt(tmp_path / "in.vrt", files, (255, 0, 9), kind)
    known = (array[0] != 255) & (array[1] != 0) & (array[2] != 9)
    _, valid, nodata, flags, _ = applied(tmp_path, scene)
    assert nodata is None
    assert flags == [MaskFlags.per_dataset]
    assert np.array_equal(valid, known.repeat(2, 0).repeat(2, 1))


def test_known_pixels_of_such_bands_come_back_bit_for_bit(tmp_path, run_of, hole_task):
    run_of(hole_task())
    array = picture()
    array[0, :, :8], array[1, :, 40:] = 255, 0
    files = [write(tmp_path / f"{i}.tif", band[None]) for i, band in enumerate(array)]
    scene = vrt(tmp_path / "in.vrt", files, (255, 0, 9), "Byte")
    known = (array[0] != 255) & (array[1] != 0) & (array[2] != 9)
    made, valid, nodata, *_ = applied(tmp_path, scene)
    assert nodata is None
    assert valid.all()
    assert np.array_equal(made[:, known], array[:, known])
    asked = np.zeros((1, *SHAPE), np.uint8)
    asked[0, 15:25, 20:30] = 1
    mask = write(tmp_path / "mask.tif", asked)
    made, valid, *_ = applied(tmp_path, scene, mask=mask)
    assert np.array_equal(valid, known | (asked[0] > 0))
    still = asked[0] == 0
    assert np.array_equal(made[:, still], array[:, still])


# --- Tasks that make something else than the scene's bands ----------------------------------


def translator(source, target):
    """An untrained map from one source to another whose output is as dark as it can be."""
    label = Source("label", "label", "uint8", ("class",), classes=(0, 1, 2))
    image = Source("image", "image", "uint8", ("red", "green", "blue"), nodata=0.0)
    spec = DataSpec(
        {"label": label, "image": image},
        {"image": Scaling((0.0,) * 3, (255.0,) * 3, (99.0,) * 3)},
        10.0,
    )
    torch.manual_seed(0)
    settings = {"source": source, "target": target, "generator": SMALL}
    settings["discriminator"] = PatchGANConfig(width=4, layers=1)
    return Pix2Pix(Pix2PixConfig(**settings), spec)


class Dark(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.channels = channels
        self.place = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return -torch.ones(len(x), self.channels, *x.shape[-2:]) + 0 * self.place


@pytest.mark.parametrize("declared", [None, 2])
def test_generated_black_is_not_missing(tmp_path, run_of, declared):
    """The images of the training declared 0; a label's own nodata means nothing in an image."""
    task = translator("label", "image")
    task.generator = Dark(3)
    run_of(task)
    classes = np.random.default_rng(0).integers(0, 3, (1, *SHAPE), np.uint8)
    made, valid, nodata, *_ = applied(tmp_path, write(tmp_path / "l.tif", classes, nodata=declared))
    assert not made.any()
    assert nodata is None
    assert np.array_equal(valid, classes[0] != 2 if declared else np.ones(SHAPE, bool))


def test_class_0_of_an_image_with_nodata_0_is_not_missing(tmp_path, run_of):
    task = translator("image", "label")
    run_of(task)
    array = picture()
    array[:, :9] = 0
    made, valid, nodata, *_ = applied(tmp_path, write(tmp_path / "in.tif", array, nodata=0))
    assert nodata is None
    assert np.array_equal(valid, (array != 0).any(0))
    assert set(np.unique(made)) <= {0, 1, 2}


# --- Label scenes ---------------------------------------------------------------------------


def test_a_nodata_value_that_is_a_class_is_said(tmp_path, run_of):
    run_of(translator("label", "image"))
    classes = np.random.default_rng(0).integers(0, 3, (1, *SHAPE), np.uint8)
    scene = write(tmp_path / "l.tif", classes, nodata=0)
    _, valid, _, _, said = applied(tmp_path, scene)
    assert any("declares nodata 0, which is a class of this model" in text for text in said)
    assert np.array_equal(valid, classes[0] != 0)
    _, valid, *_ = applied(tmp_path, scene, nodata="none")
    assert valid.all()


def test_ignored_classes_of_the_training_are_missing_in_a_scene(tmp_path, run_of):
    task = translator("label", "image")
    field = task.inputs[0]
    task.inputs = (replace(field, source=replace(field.source, ignore=(255,))),)
    run_of(task)
    classes = np.random.default_rng(0).integers(0, 3, (1, *SHAPE), np.uint8)
    classes[0, 5:9, 5:9] = 255
    _, valid, *_ = applied(tmp_path, write(tmp_path / "l.tif", classes))
    assert np.array_equal(valid, classes[0] != 255)


def test_unknown_classes_name_the_options_that_mend_them(tmp_path, run_of):
    run_of(translator("label", "image"))
    classes = np.random.default_rng(0).choice(np.uint8([0, 255]), (1, *SHAPE))
    scene = write(tmp_path / "l.tif", classes)
    with pytest.raises(InputError, match=r"class 255 is unknown .*--colours FILE .*--nodata VALUE"):
        applied(tmp_path, scene)
    table = tmp_path / "values.txt"
    table.write_text("0 0\n255 1\n")
    _, valid, *_ = applied(tmp_path, scene, colours=table)
    assert valid.all()
    _, valid, *_ = applied(tmp_path, scene, nodata=255)
    assert np.array_equal(valid, classes[0] == 0)


def test_coloured_labels_are_recoded(tmp_path, run_of):
    task = run_of(translator("label", "image"))
    classes = np.random.default_rng(0).integers(0, 3, SHAPE)
    colours = np.array([[0, 255, 255], [255, 255, 0], [0, 0, 0]], np.uint8)
    scene = write(tmp_path / "l.tif", colours[classes].transpose(2, 0, 1))
    table = tmp_path / "colours.txt"
    table.write_text("0 255 255 0\n255 255 0 1\n0 0 0 2\n")
    made, *_ = applied(tmp_path, scene, colours=table)
    plain = write(tmp_path / "p.tif", classes[None].astype("uint8"))
    expected, *_ = applied(tmp_path, plain)
    assert np.array_equal(made, expected)
    with pytest.raises(InputError, match="--colours FILE"):
        applied(tmp_path, scene)
    run_of(translator("image", "label"))
    with pytest.raises(InputError, match=r"--colours .* is for labels"):
        applied(tmp_path, write(tmp_path / "i.tif", picture()), colours=table)
    assert task.inputs[0].source.classes == (0, 1, 2)
