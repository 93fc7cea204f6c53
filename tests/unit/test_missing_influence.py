"""What stands in missing and ignored pixels influences no training, no number and no output."""

import warnings

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from ganlab.config import (
    ApplyConfig,
    EncoderDecoderConfig,
    EvaluateConfig,
    InpaintingConfig,
    Pix2PixConfig,
    TilingConfig,
    TrainingConfig,
    UNetConfig,
)
from ganlab.data.tiling import tile
from ganlab.evaluation import evaluate
from ganlab.inference import apply
from ganlab.training import train

RNG = np.random.default_rng(12)
SIZE = 320
HOLES = RNG.random((SIZE // 8, SIZE // 8)).repeat(8, 0).repeat(8, 1) < 0.2
PHOTO = RNG.integers(20, 230, (3, SIZE, SIZE), np.uint8)
LABEL = RNG.integers(0, 3, (1, SIZE, SIZE), np.uint8)
FILLER = InpaintingConfig(generator=EncoderDecoderConfig(width=4), adversarial_weight=0.0)
UNET = UNetConfig(width=4, depth=2)
TASKS = {
    "classes": Pix2PixConfig("image", "label", UNET, adversarial_weight=0.0),
    "image": Pix2PixConfig("label", "image", UNET, adversarial_weight=0.0),
    "holes": FILLER,
}


def write(path, array, **options):
    count, height, width = array.shape
    profile = {"count": count, "height": height, "width": width, "dtype": array.dtype}
    profile |= {"crs": "EPSG:32633", "transform": from_origin(500_000, 5_000_000, 1, 1)}
    with rasterio.open(path, "w", "GTiff", **profile | options) as file:
        file.write(array)
    return str(path)


def everything(folder, task, nodata, unknown):
    """Numbers of an evaluation, and valid pixels of an output, with these values in the holes."""
    folder.mkdir()
    photo = write(folder / "a.tif", np.where(HOLES, nodata, PHOTO).astype("uint8"), nodata=nodata)
    label = write(folder / "l.tif", np.where(HOLES.T, unknown, LABEL).astype("uint8"))
    config = TilingConfig(photo, folder / "t", label, size=32, minimum_valid=0.2, ignore=unknown)
    tile(config)
    training = TrainingConfig(steps=2, batch_size=2, tensorboard=False, device="cpu")
    run = train(task, folder / "t", folder / "r", training)
    numbers = evaluate(EvaluateConfig(run, device="cpu", limit=4))
    scene = label if getattr(task, "source", "image") == "label" else photo
    made = apply(ApplyConfig(run, scene, folder / "made.tif", device="cpu", window=64, overlap=16))
    with rasterio.open(made[0]) as file:
        return numbers, file.read(), file.dataset_mask()


@pytest.mark.parametrize("name", TASKS)
def test_values_of_missing_pixels_do_not_matter(tmp_path, name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first = everything(tmp_path / "a", TASKS[name], 0, 255)
        other = everything(tmp_path / "b", TASKS[name], 255, 7)
    assert repr(first[0]) == repr(other[0])
    assert np.array_equal(first[2], other[2])
    missing = first[2] == 0
    assert np.array_equal(missing, {"classes": HOLES, "image": HOLES.T}.get(name, HOLES & False))
    # A generated value that equals the nodata value of its scene is moved to the one beside it.
    pixels = [np.clip(values[:, ~missing], 1, 254) for values in (first[1], other[1])]
    assert np.array_equal(*pixels)
    if name == "holes":
        assert np.array_equal(first[1][:, ~HOLES], PHOTO[:, ~HOLES])
