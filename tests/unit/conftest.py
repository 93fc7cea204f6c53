"""Tasks, small and untrained, for any number of bands."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ganlab.config import (
    CloudLayersConfig,
    CloudsConfig,
    EncoderDecoderConfig,
    FeaturesConfig,
    HoleJudgeConfig,
    HolesConfig,
    InpaintingConfig,
    PatchGANConfig,
    SuperResolutionConfig,
    TwoStageConfig,
    UNetConfig,
)
from ganlab.data.batches import DataSpec, Scaling
from ganlab.data.store import Source
from ganlab.tasks.cloud_layers import CloudLayers
from ganlab.tasks.inpainting import Inpainting
from ganlab.tasks.super_resolution import SuperResolution
from ganlab.tasks.two_stage import TwoStageReconstruction

NAMES = {
    1: ("pan",),
    3: ("red", "green", "blue"),
    4: ("B02", "B03", "B04", "B08"),
    13: tuple(f"B{i}" for i in range(1, 14)),
}
# Not symmetric, and neither limit is a power of two.
RANGES = {
    "uint8": (0.0, 255.0),
    "uint16": (100.0, 9000.0),
    "int16": (-300.0, 4000.0),
    "float32": (-0.25, 1.5),
}
TINY = EncoderDecoderConfig(width=4, dilations=(2,))
HOLES = HolesConfig(kinds=("rectangle", "polygon"), coverage=(0.2, 0.5))


def hole_spec(bands=3, dtype="uint8", nodata=None):
    low, high = RANGES[dtype]
    image = Source("image", "image", dtype, NAMES[bands], nodata=nodata)
    label = Source("label", "label", "uint8", ("class",), classes=(0, 1, 7))
    scaling = Scaling((low,) * bands, (high,) * bands, ((low + 2 * high) / 3,) * bands)
    return DataSpec({"image": image, "label": label}, {"image": scaling}, 10.0)


def hole_task(kind="inpainting", bands=3, dtype="uint8", *, nodata=None, **changes):
    """An untrained task: ``kind`` is the name in ``TASKS``, ``changes`` go into its settings."""
    torch.manual_seed(0)
    settings = {
        "holes": HOLES,
        "generator": TINY,
        "discriminator": HoleJudgeConfig(width=4, layers=1),
        "features": FeaturesConfig(weights="random", layers=("stem", "block1")),
        "fill": "constant",
        "residual": False,
        "noise": False,
    }
    if kind == "two_stage":
        settings["refinement"] = TINY
    config = {"inpainting": InpaintingConfig, "two_stage": TwoStageConfig}[kind]
    task = {"inpainting": Inpainting, "two_stage": TwoStageReconstruction}[kind]
    return task(config(**settings | changes), hole_spec(bands, dtype, nodata))


@pytest.fixture(name="hole_task")
def hole_task_fixture():
    """Makes untrained tasks: ``hole_task("two_stage", bands=4, dtype="uint16", fill="mean")``."""
    return hole_task


SMALL = UNetConfig(width=4, depth=2, norm="channel", up="resize", dropout=0.0)
JUDGE = PatchGANConfig(width=4, layers=1, norm="none")


def cloud_task(bands=3, dtype="uint8", *, nodata=None, clouds=None, **changes):
    """An untrained task that parts clouds from ground; ``clouds`` are settings of those."""
    torch.manual_seed(0)
    settings = {"generator": SMALL, "discriminator": JUDGE, "adversarial_weight": 1.0}
    settings["clouds"] = CloudsConfig(**clouds or {})
    config = CloudLayersConfig(**settings | changes)
    return CloudLayers(config, hole_spec(bands, dtype, nodata))


@pytest.fixture(name="cloud_task")
def _cloud_task():
    """Makes untrained tasks: ``cloud_task(13, "uint16", clouds={"darkness": 0.5})``."""
    return cloud_task


def super_task(bands=3, dtype="uint8", *, nodata=None, out=None, **changes):
    """An untrained task that makes finer pixels; ``out`` bands of a second source, if given."""
    torch.manual_seed(0)
    settings = {"generator": SMALL, "discriminator": JUDGE}
    spec = hole_spec(bands, dtype, nodata)
    if out is not None:
        low, high = RANGES["uint16"]
        factor = changes.get("factor", 2)
        fine = Source("fine", "image", "uint16", NAMES[out], factor=factor)
        scaling = Scaling((low,) * out, (high,) * out, (low,) * out)
        spec = DataSpec(spec.sources | {"fine": fine}, spec.scalings | {"fine": scaling}, 10.0)
        settings |= {"image": "fine", "coarse": "image"}
    return SuperResolution(SuperResolutionConfig(**settings | changes), spec)


@pytest.fixture(name="super_task")
def _super_task():
    """Makes untrained tasks: ``super_task(3, out=1, factor=4)``."""
    return super_task


class NoWaiting(TorchDispatchMode):
    """Refuses whatever brings a number from the device to the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "masked_select", "equal"), name
        return func(*args, **(kwargs or {}))


@pytest.fixture(name="no_waiting")
def _no_waiting():
    return NoWaiting
