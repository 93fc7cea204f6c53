"""What every file that ganlab writes says of itself, read back by rasterio from the file alone."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import torch
from affine import Affine

from ganlab import __version__, inference
from ganlab.config import (
    ApplyConfig,
    Pix2PixConfig,
    TilingConfig,
    ToytownConfig,
    TrainingConfig,
    UNetConfig,
    VAEConfig,
)
from ganlab.data import samples, toytown
from ganlab.data.batches import DataSpec, Scaling
from ganlab.data.geotiff import write_geotiff
from ganlab.data.store import Source
from ganlab.data.tiling import tile
from ganlab.inference import apply
from ganlab.provenance import model_of
from ganlab.tasks.pix2pix import Pix2Pix
from ganlab.tasks.vae import GaussianVAE
from ganlab.training import load_task, train

PLACE = {"crs": "EPSG:32633", "transform": Affine(2, 0, 500_000, 0, -2, 5_000_000)}
SOFTWARE = f"ganlab {__version__}"
RGB = Source("image", "image", "uint8", ("red", "green", "blue"))
LABEL = Source("label", "label", "uint8", ("class",), classes=(1, 2))


def raster(path, count=3, size=64, valid=None, top=250):
    pixels = np.random.default_rng(0).integers(1, top, (count, size, size)).astype(np.uint8)
    profile = {"driver": "GTiff", "width": size, "height": size, "count": count, "dtype": "uint8"}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", photometric="minisblack", **profile, **PLACE) as file,
    ):
        file.write(pixels)
        if valid is not None:
            file.write_mask(valid)
    return path


def tags_of(path):
    with rasterio.open(path) as file:
        return file.tags()


@pytest.fixture
def applied(tmp_path, monkeypatch):
    """Apply untrained tasks to a scene with a gap; gives the tags by file name."""

    def use(task, filler=None, scene="scene.tif", to="made.tif", **options):
        tasks = {"run-7": task, "filler-3": filler}
        monkeypatch.setattr(inference, "load_task", lambda run, **_: tasks[run.name].eval())
        valid = np.ones((64, 64), bool)
        valid[10:20, 10:30] = False
        count = 1 if task.inputs[0].source.kind == "label" else 3
        path = raster(tmp_path / scene, count, valid=valid, top=3 if count == 1 else 250)
        config = ApplyConfig(tmp_path / "run-7", str(path), tmp_path / to, overwrite=True)
        fields = config.__dict__ | options
        return {path.name: tags_of(path) for path in apply(ApplyConfig(**fields))}

    return use


def pix2pix(source, target):
    scalings = {"image": Scaling((0.0,) * 3, (255.0,) * 3, (128.0,) * 3)}
    config = Pix2PixConfig(source, target, UNetConfig(width=4, depth=2), adversarial_weight=0.0)
    return Pix2Pix(config, DataSpec({"image": RGB, "label": LABEL}, scalings))


def common(tags, task, scene="scene.tif"):
    assert tags["TIFFTAG_SOFTWARE"] == SOFTWARE
    assert tags["GANLAB_TASK"] == task
    assert tags["GANLAB_RUN"] == "run-7"
    assert tags["GANLAB_SCENE"] == scene
    assert tags["GANLAB_WEIGHTS"].startswith("sha256:")
    assert all(word in tags["TIFFTAG_IMAGEDESCRIPTION"] for word in (SOFTWARE, "run-7", scene))
    return tags["TIFFTAG_IMAGEDESCRIPTION"], tags["GANLAB_GENERATED"]


def test_a_translated_image_and_a_class_map(applied):
    (tags,) = applied(pix2pix("label", "image")).values()
    text, generated = common(tags, "pix2pix")
    assert text.startswith("Synthetic image: every valid pixel was generated")
    assert generated == "all"
    (tags,) = applied(pix2pix("image", "label")).values()
    text, generated = common(tags, "pix2pix")
    assert text.startswith("Synthetic class map: every valid pixel was generated")
    assert generated == "all"


@pytest.mark.parametrize("kind", ["inpainting", "two_stage"])
def test_a_filled_image_names_the_mask_that_says_where(applied, hole_task, kind):
    found = applied(hole_task(kind))
    assert sorted(found) == ["made-invented.tif", "made.tif"]
    text, generated = common(found["made.tif"], kind)
    assert text.startswith("Partly synthetic image: the pixels where made-invented.tif is not 0")
    assert "the others are those of the scene" in text
    assert generated.startswith("see made-invented.tif")
    text, generated = common(found["made-invented.tif"], kind)
    assert text.startswith("Mask: not 0 where the pixel of made.tif was generated")
    assert "made.tif" in generated


def test_ground_below_clouds(applied, cloud_task):
    found = applied(cloud_task())
    text, generated = common(found["made.tif"], "cloud_layers")
    assert text.startswith("Partly synthetic image: the pixels where made-alpha.tif shows cloud")
    assert generated.startswith("see made-alpha.tif")
    text, generated = common(found["made-alpha.tif"], "cloud_layers")
    assert text.startswith("Estimated cloud opacity")
    assert generated == "all"


def test_a_chain_names_both_runs_in_all_its_outputs(applied, cloud_task, hole_task, tmp_path):
    first, second = cloud_task(), hole_task()
    found = applied(first, second, fill=tmp_path / "filler-3")
    assert sorted(found) == ["made-alpha.tif", "made-origin.tif", "made.tif"]
    for tags in found.values():
        text, _ = common(tags, "cloud_layers")
        assert "filler-3" in text
        assert tags["GANLAB_FILL_TASK"] == "inpainting"
        assert tags["GANLAB_FILL_RUN"] == "filler-3"
        assert tags["GANLAB_FILL_WEIGHTS"] == model_of(second, Path("x")).weights
        assert tags["GANLAB_WEIGHTS"] == model_of(first, Path("x")).weights
        assert tags["GANLAB_FILES"] == "made.tif, made-alpha.tif, made-origin.tif"
    assert found["made.tif"]["GANLAB_GENERATED"].startswith("see made-origin.tif")
    assert found["made-origin.tif"]["TIFFTAG_IMAGEDESCRIPTION"].startswith("Mask: not 0 where")


def test_finer_pixels_and_an_autoencoder(applied, super_task):
    (tags,) = applied(super_task(3, "uint8", factor=2)).values()
    text, generated = common(tags, "super_resolution")
    assert text.startswith("Synthetic image: every valid pixel was generated")
    assert generated == "all"
    scalings = {"image": Scaling((0.0,) * 3, (255.0,) * 3, (128.0,) * 3)}
    autoencoder = GaussianVAE(VAEConfig(), DataSpec({"image": RGB}, scalings))
    (tags,) = applied(autoencoder).values()
    assert common(tags, "vae")[1] == "all"


def test_names_of_any_letters_and_no_folders(applied, tmp_path):
    """Odd letters come back as they are; a name that is no text does no harm."""
    (tags,) = applied(pix2pix("label", "image"), scene="Müller & <Söhne> 图.tif").values()
    common(tags, "pix2pix", "Müller & <Söhne> 图.tif")
    assert str(tmp_path) not in repr(tags)
    (tags,) = applied(pix2pix("label", "image"), scene="a\nb\x07.tif").values()
    assert tags["GANLAB_SCENE"] == "a?b?.tif"


def test_the_same_work_gives_the_same_bytes_and_other_work_another_mark(
    applied, tmp_path, hole_task
):
    first = applied(hole_task())
    before = (tmp_path / "made.tif").read_bytes()
    again = applied(hole_task())
    assert again == first
    assert (tmp_path / "made.tif").read_bytes() == before
    marks = {tags["GANLAB_SET"] for tags in first.values()}
    assert len(marks) == 1
    other = hole_task()
    with torch.no_grad():
        next(other.generator.parameters()).add_(1)
    assert {tags["GANLAB_SET"] for tags in applied(other).values()}.isdisjoint(marks)


def test_the_checksum_is_that_of_the_weights_that_were_used(tmp_path):
    """Averaged weights where they are used, and of a checkpoint the run it is from."""
    raster(tmp_path / "scene.tif")
    tile(TilingConfig((str(tmp_path / "scene.tif"),), tmp_path / "tiles", size=16))
    settings = Pix2PixConfig("image", "image", UNetConfig(width=4, depth=2), adversarial_weight=0.0)
    training = TrainingConfig(steps=2, batch_size=1, tensorboard=False, device="cpu", ema=0.5)
    run = train(settings, tmp_path / "tiles", tmp_path / "run", training)
    (checkpoint,) = (run / "checkpoints").glob("*.safetensors")

    def weights(path, average):
        to = tmp_path / "made.tif"
        apply(ApplyConfig(path, str(tmp_path / "scene.tif"), to, average=average, overwrite=True))
        tags = tags_of(to)
        assert tags["GANLAB_RUN"] == "run"
        assert tags["GANLAB_TASK"] == "pix2pix"
        return tags["GANLAB_WEIGHTS"]

    def expected(average):
        state = load_task(run, average=average, device="cpu").generator.state_dict()
        digest = hashlib.sha256()
        for name, tensor in sorted(state.items()):
            digest.update(f"\0{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
            digest.update(tensor.numpy().tobytes())
        return f"sha256:{digest.hexdigest()[:16]}"

    assert weights(run, True) == weights(checkpoint, True) == expected(True)
    assert weights(run, False) == expected(False) != expected(True)


def test_a_scene_that_is_itself_synthetic_is_not_passed_off_as_real(
    applied, tmp_path, hole_task, monkeypatch
):
    """The output of one model is the scene of the next, also through a VRT."""
    words = applied(pix2pix("label", "image"))["made.tif"]["TIFFTAG_IMAGEDESCRIPTION"]
    rasterio.shutil.copy(tmp_path / "made.tif", tmp_path / "made.vrt", driver="VRT")
    monkeypatch.setattr(inference, "load_task", lambda *_, **__: hole_task().eval())
    for scene in ("made.tif", "made.vrt"):
        to = tmp_path / "again.tif"
        apply(ApplyConfig(tmp_path / "run-7", str(tmp_path / scene), to, overwrite=True))
        tags = tags_of(to)
        assert tags["GANLAB_SCENE_DESCRIPTION"] == words
        assert f"from {scene}, which is itself synthetic" in tags["TIFFTAG_IMAGEDESCRIPTION"]
    assert "GANLAB_SCENE_DESCRIPTION" not in tags_of(tmp_path / "made.tif")


# Files that no model made


def test_toytown_says_that_its_town_does_not_exist(tmp_path):
    for seed, pair in zip(
        (3, 4), toytown.write(ToytownConfig(tmp_path, scenes=2, size=64, seed=3)), strict=True
    ):
        for path in pair:
            tags = tags_of(path)
            assert tags["TIFFTAG_SOFTWARE"] == SOFTWARE
            assert tags["TIFFTAG_IMAGEDESCRIPTION"].startswith("Synthetic ")
            assert f"seed {seed} (64 x 64 pixels" in tags["TIFFTAG_IMAGEDESCRIPTION"]
            assert tags["GANLAB_GENERATED"] == "all"
            assert f"seed {seed}" in tags["GANLAB_SCENE"]


def test_samples_say_that_they_are_real(tmp_path):
    image, labels = map(tags_of, samples.write_samples(tmp_path))
    for tags in (image, labels):
        assert tags["TIFFTAG_SOFTWARE"] == SOFTWARE
        assert "Copernicus Sentinel" in tags["TIFFTAG_IMAGEDESCRIPTION"]
        assert tags["GANLAB_GENERATED"].startswith("none")
    assert image["TIFFTAG_IMAGEDESCRIPTION"].startswith("Real image")


def test_an_array_says_that_nothing_is_known_of_it_or_what_it_is_given(tmp_path):
    pixels = np.ones((1, 9, 9), np.uint8)
    write_geotiff(tmp_path / "a.tif", pixels, **PLACE, bands=("grey",))
    tags = tags_of(tmp_path / "a.tif")
    assert tags["TIFFTAG_SOFTWARE"] == SOFTWARE
    assert "was not recorded" in tags["TIFFTAG_IMAGEDESCRIPTION"]
    given = {"TIFFTAG_IMAGEDESCRIPTION": "Real image", "GANLAB_GENERATED": "none"}
    write_geotiff(tmp_path / "a.tif", pixels, **PLACE, bands=("grey",), tags=given)
    assert given.items() <= tags_of(tmp_path / "a.tif").items()
