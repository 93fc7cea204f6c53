"""What the Trainer, the inference and the evaluation ask of a task."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ganlab.config import InpaintingConfig, Pix2PixConfig
from ganlab.data.batches import Batch, DataSpec, Scaling, as_float32
from ganlab.data.store import Source, rgb_bands
from ganlab.errors import InputError
from ganlab.losses import perceptual
from ganlab.losses.adversarial import Verdict
from ganlab.losses.balance import Balance, FixedBalance
from ganlab.losses.likelihood import Noise
from ganlab.networks.features import load_features

NOISE = "noise"
"""In a batch: ``(B, 2, H, W)`` normal noise that belongs to places of a scene, if it is given."""

Arrays = Mapping[str, npt.NDArray[Any]]
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Field:
    """An input or output of a task: images are scaled, labels and masks are not."""

    source: Source
    scaling: Scaling | None

    @property
    def name(self) -> str:
        """Its name in batches and outputs."""
        return self.source.name

    @property
    def channels(self) -> int:
        """Channels it has inside a network: bands, or one for each class of a label."""
        return len(self.source.classes) if self.source.kind == "label" else len(self.source.bands)

    def enter(self, value: Tensor) -> Tensor:
        """Batch value to float network channels ``(B, channels, H, W)``.

        Scaled images ``(B, C, H, W)`` stay; stored classes ``(B, 1, H, W)`` become one-hot in
        {-1, 1}, where a pixel of no known class is -1 everywhere; masks ``(B, 1, H, W)`` stay.
        """
        if self.source.kind != "label":
            return value
        # By numbers, as a tensor of the classes would be copied to the device at every step.
        return torch.cat([value == known for known in self.source.classes], 1).float() * 2 - 1

    def leave(self, value: Tensor) -> npt.NDArray[Any]:
        """Network channels ``(B, channels, H, W)`` to stored units: the inverse of ``enter``."""
        if self.scaling is not None:
            return self.scaling.decode(value, self.source.dtype)
        if self.source.kind == "mask":
            return (value > 0.5).cpu().numpy().astype(self.source.dtype)
        if self.source.kind == "alpha":
            return value.detach().clamp(0, 1).cpu().numpy().astype(self.source.dtype)
        classes: npt.NDArray[Any] = np.asarray(self.source.classes, self.source.dtype)
        return np.take(classes, value.argmax(1, keepdim=True).cpu().numpy())


class Task(nn.Module, ABC):
    """One system: which networks, which inputs, which losses.

    A task knows nothing of optimizers, precision, stabilizers or files.

    Attributes:
        config_type: the dataclass that configures it.
        config: its configuration.
        spec: the sources of the tiles it is trained on, and their scaling.
        inputs: what ``generate`` needs.
        outputs: what ``generate`` makes.
        scale: output pixels along one input pixel.
        keeps: pixels of the first input that need no work come back as they are, so the first
            output has the data type and the nodata value of the scene.
        stride: total stride of the generator; windows start at its multiples.
        generator: the network that is applied.
        discriminator: its opponent, or None. Its forward takes (condition, image) and gives
            ``[(logits, features), ...]``, one entry for each head.
        likelihoods: which terms of the generator are errors of an image, and of which noise:
            what balances that follow from a likelihood may weigh.
        noise: ``generate`` draws random numbers: dropout that stays on, noise that is not given.
        batch_coupled: whether a loss of one sample depends on the others in its batch.
    """

    config_type: ClassVar[type]
    spec: DataSpec
    inputs: tuple[Field, ...]
    outputs: tuple[Field, ...]
    scale: int = 1
    keeps: bool = False
    stride: int = 1
    generator: nn.Module
    discriminator: nn.Module | None
    likelihoods: Mapping[str, Noise] = MappingProxyType({})
    noise: bool = False
    batch_coupled: bool = False

    def __init__(self, config: Any, spec: DataSpec) -> None:
        super().__init__()
        self.config, self.spec, self.discriminator = config, spec, None

    @property
    def hole(self) -> Field | None:
        """The input that says which pixels are missing (1), of tasks that fill them."""
        return next((field for field in self.inputs if field.source.kind == "mask"), None)

    @property
    def beyond(self) -> Tensor | None:
        """What is normal in scenes beyond the range of the tiles: ``(C, 1, 1)``, network units."""
        return None

    @property
    def pixel_size(self) -> float | None:
        """Size of an input pixel on the ground in training, in metres; None if not known."""
        return self.spec.pixel_size

    def prepare(self, batch: Batch) -> Batch:
        """Make on the device what only training has: holes, clouds, a lower resolution.

        Afterwards ``valid`` has the size of the inputs.
        """
        return batch

    def parts(self, batch: Batch) -> dict[str, Tensor | None]:
        """Parts of tiles to be measured by themselves: names and masks ``(B, 1, H, W)``.

        The one that matters most stands first; no name and None are all of a tile.
        """
        return {"": None}

    @abstractmethod
    def generate(self, batch: Batch) -> Tensors:
        """Run the generator once; needs the declared inputs and ``valid``, nothing else.

        Gives floats ``(B, channels, H * scale, W * scale)`` for each declared output, and
        whatever the losses share.
        """

    def sample(self, batch: Batch, seed: int) -> Tensors:
        """``generate`` without gradients; noise follows ``seed``, not the caller's random state."""
        device = batch["valid"].device
        cuda = [device] if device.type == "cuda" else []
        with torch.inference_mode(), torch.random.fork_rng(cuda, enabled=self.noise):
            if self.noise:
                torch.manual_seed(seed)
            return self.generate(batch)

    def stages(self, batch: Batch, out: Tensors) -> Tensors:
        """Earlier versions of the first output that an evaluation compares with it, by name."""
        return {}

    def numbers(self, batch: Batch, out: Tensors) -> Tensors:
        """What else an evaluation reports of the model, by name: a number for each image."""
        return {}

    def imagine(self, batch: Batch, seed: int) -> Tensor | None:
        """Samples of the first output from nothing but noise, of a batch's number and size.

        None if the task makes images from images only.
        """
        return None

    def judged(self, batch: Batch, out: Tensors) -> tuple[Tensor | None, Tensor, Tensor]:
        """(condition, real, fake) as the discriminator sees them, zero where not measured."""
        raise NotImplementedError(f"{type(self).__name__} has no discriminator")

    @abstractmethod
    def generator_losses(self, batch: Batch, out: Tensors, verdict: Verdict | None) -> Tensors:
        """Named, unweighted scalars; ``verdict`` is None for a task without discriminator."""

    def discriminator_losses(self, batch: Batch, out: Tensors, verdict: Verdict) -> Tensors:
        """Named, unweighted scalars."""
        raise NotImplementedError(f"{type(self).__name__} has no discriminator")

    @abstractmethod
    def balances(self, steps: int) -> tuple[FixedBalance, Balance | None]:
        """The balances of generator and discriminator for a training of ``steps`` steps."""

    @property
    @abstractmethod
    def last_layer(self) -> Tensor | None:
        """The generator's last weight, for balances that compare gradients there."""

    @property
    def values_judged(self) -> float:
        """Values of the first output, pixels times bands, for each logit of the discriminator."""
        stride: int = getattr(self.discriminator, "stride", 1)
        return float(self.outputs[0].channels * stride**2)

    def encode(self, inputs: Arrays, valid: npt.NDArray[Any], device: torch.device) -> Batch:
        """Stored arrays ``(B, C, H, W)`` of the declared inputs to a batch for ``generate``.

        Raises:
            InputError: a label holds a class that the training never met.
        """
        batch: Batch = {"valid": torch.from_numpy(valid.astype(np.float32)).to(device)}
        for field in self.inputs:
            stored, classes = inputs[field.name], field.source.classes
            if field.scaling is not None:
                values = torch.from_numpy(as_float32(stored)).to(device)
                batch[field.name] = field.scaling.encode(values, batch["valid"])
                continue
            if field.source.kind == "mask":
                batch[field.name] = torch.from_numpy(stored.astype(np.float32)).to(device)
                continue
            known = np.isin(stored, classes) | (valid == 0)
            if not known.all():
                found = f"{field.name}: class {stored[~known].flat[0]}"
                raise InputError(f"{found} is unknown to this model; it knows {list(classes)}")
            batch[field.name] = torch.from_numpy(stored.astype(np.int64)).to(device)
        return batch

    def shown(self, batch: Batch) -> list[tuple[Field, Tensor]]:
        """What a picture of the inputs shows: fields and their network channels."""
        return [(field, field.enter(batch[field.name])) for field in self.inputs]

    def compose(self, inputs: Arrays, outputs: Mapping[str, Tensor]) -> dict[str, Any]:
        """Outputs ``(B, C, H, W)`` of ``generate`` to arrays in stored units."""
        return {field.name: field.leave(outputs[field.name]) for field in self.outputs}


class FeatureTerms:
    """The perceptual and the style term of a task that makes images, where they have a weight.

    The network is loaded at the first call. It is no part of the task: it is neither trained nor
    saved. It sees red, green and blue, found by the bands' names (the first three without such
    names, one band as grey), with zeros where nothing was measured.
    """

    def __init__(self, image: Field, config: Pix2PixConfig | InpaintingConfig) -> None:
        """Terms of weight 0 are not computed.

        Raises:
            InputError: a weight is above 0 and the field is a label, which has no colours.
        """
        distances = {"perceptual": perceptual.perceptual, "style": perceptual.style}
        weight = {"perceptual": config.perceptual_weight, "style": config.style_weight}
        self.distances = {name: d for name, d in distances.items() if weight[name] > 0}
        if self.distances and image.source.kind == "label":
            raise InputError(
                f"{image.name!r} is a label source, and {' and '.join(self.distances)} compare "
                "images: give them weight 0, or make an image"
            )
        self.features, self.bands = config.features, rgb_bands(image.source.bands, image.channels)
        self.network: nn.Module | None = None

    def __call__(self, made: Sequence[Tensor], true: Tensor, valid: Tensor) -> Tensors:
        """Distances ``(B,)`` from ``true`` ``(B, C, H, W)``, summed over the images ``made``."""
        if not self.distances:
            return {}
        if self.network is None:
            self.network = load_features(**vars(self.features)).to(valid)
        with torch.no_grad():  # half the work of a backward pass would be for nobody
            truth = self.network(measured(true, valid)[:, self.bands])
        seen = [self.network(measured(image, valid)[:, self.bands]) for image in made]
        return {
            name: torch.stack([distance(image, truth) for image in seen]).sum(0)
            for name, distance in self.distances.items()
        }


def field(spec: DataSpec, name: str) -> Field:
    """The field of a named source.

    Raises:
        InputError: the tiles have no such source, or it is neither image nor label.
    """
    usable = [n for n, s in spec.sources.items() if s.kind == "label" or n in spec.scalings]
    if name not in usable:
        raise InputError(
            f"the tiles have no source {name!r}, only {sorted(usable)} of images and labels; "
            "choose among these or tile the scenes with it"
        )
    return Field(spec.sources[name], spec.scalings.get(name))


def image_field(spec: DataSpec, name: str, reserved: Collection[str]) -> tuple[Field, Scaling]:
    """The field of an image source on the tiles' own grid, and its scaling.

    Raises:
        InputError: it is no image, finer than the tiles' grid, or has a name that the task needs.
    """
    found = field(spec, name)
    if found.scaling is None:
        raise InputError(f"{name!r} is a label source; this task is for images")
    if found.source.factor > 1:
        n = found.source.factor
        raise InputError(f"{name!r} has {n} x {n} pixels for each of the tile; tile it by itself")
    if name in reserved:
        raise InputError(f"{name!r} is a name of the task's own; tile it under another")
    return found, found.scaling


def read_layer(path: str) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """A raster of one band, whole: values and valid pixels, both ``(h, w)``.

    Raises:
        InputError: it cannot be read, or has several bands.
    """
    # Training from a tile store needs no rasterio.
    from rasterio.windows import Window

    from ganlab.data.scenes import open_scene

    scene = open_scene(path, ungeoreferenced=True, palette="keep")
    if len(scene.bands) != 1:
        raise InputError(f"{path} has {len(scene.bands)} bands, expected one")
    stored, valid = scene.read(Window(0, 0, scene.grid.width, scene.grid.height))
    return stored[0], valid


def fitted(valid: Tensor, image: Tensor) -> Tensor:
    """``valid`` ``(B, 1, h, w)`` brought to the size of ``image``, whose pixels nest in its own."""
    if valid.shape[-2:] == image.shape[-2:]:
        return valid
    return F.interpolate(valid, image.shape[-2:])


def measured(image: Tensor, valid: Tensor) -> Tensor:
    """``image`` with zeros where nothing was measured; ``valid`` is brought to its size."""
    return image * fitted(valid, image)
