"""Discriminators that judge overlapping patches (Isola et al. 2017), everywhere and at holes."""

import re
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from ganlab.errors import InputError
from ganlab.networks.attention import SelfAttention
from ganlab.networks.blocks import (
    MinibatchDeviation,
    MinibatchDiscrimination,
    Norm,
    initialize,
    normalization,
)

FIELDS = {9 * 2**layers - 2: layers for layers in range(1, 6)}
"""Receptive fields that have a name, 16 to 286 pixels, and the layers with stride 2 they take."""


class PatchGAN(nn.Module):
    """A stack of 4x4 convolutions whose every output pixel judges one patch of the input.

    ``layers`` convolutions with stride 2, one with stride 1, and one to the logit, with
    LeakyReLU(0.2) between them; width doubles up to eight times. The first and the last layer
    have no norm, and biases stand only where no norm follows. With three layers it sees 70 x 70
    pixels and has 2,768,705 parameters at 3 + 3 channels (Isola et al. 2017, section 6.1). The
    weights are drawn by ``blocks.initialize``.

    Args:
        in_channels: channels of condition and image together.
        width: channels of the first layer.
        layers: convolutions with stride 2, at least 1.
        norm: "batch", "instance", "channel" or "none". Penalties on gradients need one that does
            not couple the batch.
        attention: self-attention after the second layer (Zhang et al. 2019), in the form that
            penalties on gradients can differentiate again. Its matrix grows with the fourth power
            of the image's side: 67 MB for each sample of 256 x 256 in float32.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        width: int = 64,
        layers: int = 3,
        norm: Norm = "batch",
        attention: bool = False,
    ) -> None:
        super().__init__()
        if layers < 1 or width < 1:
            raise InputError(
                f"a PatchGAN of width {width} and {layers} layers is empty; give at least 1 of both"
            )
        self.smallest = 3 * 2**layers
        self.layers = nn.ModuleList()
        source = in_channels
        for layer in range(layers + 1):
            here: Norm = norm if layer else "none"
            channels = width * min(2**layer, 8)
            stride = 2 if layer < layers else 1
            parts: list[nn.Module] = [
                nn.Conv2d(source, channels, 4, stride, 1, bias=here == "none")
            ]
            if here != "none":
                parts.append(normalization(here, channels))
            self.layers.append(nn.Sequential(*parts, nn.LeakyReLU(0.2)))
            source = channels
        self.diversity: nn.Module = nn.Identity()
        self.head = nn.Conv2d(source, 1, 4, 1, 1)
        initialize(self)
        if attention:
            attended = SelfAttention(2 * width, twice=True)
            self.layers[1] = nn.Sequential(self.layers[1], attended)

    @classmethod
    def seeing(cls, field: int, in_channels: int, **rest: Any) -> Self:
        """A PatchGAN whose every logit judges a patch of ``field`` x ``field`` pixels.

        Args:
            field: 16, 34, 70, 142 or 286.
            in_channels: channels of condition and image together.
            rest: further arguments, without ``layers``.

        Raises:
            InputError: another field.
        """
        if field not in FIELDS:
            raise InputError(
                f"no PatchGAN sees {field} pixels; choose {', '.join(map(str, FIELDS))} "
                "(9 * 2**layers - 2)"
            )
        return cls(in_channels, layers=FIELDS[field], **rest)

    @classmethod
    def from_shorthand(cls, shorthand: str, in_channels: int, **rest: Any) -> Self:
        """A PatchGAN in the notation of Isola et al. (2017), section 6.1.2.

        Args:
            shorthand: such as ``"C64-C128-C256-C512"``, the channels of every layer but that of
                the logit. All have stride 2 but the last.
            in_channels: channels of condition and image together.
            rest: further arguments, without ``layers`` and ``width``.

        Raises:
            InputError: not in this notation, or other channels than a PatchGAN has.
        """
        parts = re.sub(r"\s", "", shorthand).split("-")
        if len(parts) < 2 or not all(re.fullmatch("C0*[1-9][0-9]*", part) for part in parts):
            raise InputError(
                f"{shorthand!r} is no PatchGAN; expected two or more layers in the form "
                "C64-C128-C256-C512"
            )
        found = [int(part[1:]) for part in parts]
        width, layers = found[0], len(found) - 1
        possible = [width * min(2**layer, 8) for layer in range(layers + 1)]
        if found != possible:
            raise InputError(
                f"{shorthand!r} has layers of {', '.join(map(str, found))} channels; a PatchGAN "
                f"doubles them up to eight times: {'-'.join(f'C{c}' for c in possible)}"
            )
        return cls(in_channels, width=width, layers=layers, **rest)

    @property
    def shorthand(self) -> str:
        """The layers in the notation that ``from_shorthand`` reads."""
        convolutions = [
            next(part for part in layer.modules() if isinstance(part, nn.Conv2d))
            for layer in self.layers
        ]
        return "-".join(f"C{convolution.out_channels}" for convolution in convolutions)

    @property
    def stride(self) -> int:
        """Pixels from one logit to the next."""
        return 1 << (len(self.layers) - 1)

    def forward(self, condition: Tensor | None, image: Tensor) -> list[tuple[Tensor, list[Tensor]]]:
        """Judge an image, given what it was made from.

        Args:
            condition: ``(B, C1, H, W)``, or None for an unconditional game.
            image: ``(B, C2, H, W)``, true or made.

        Returns:
            One ``(logits, features)`` for each head, here one: logits ``(B, 1, h, w)``, positive
            for true; features are the activations after every layer but the last.

        Raises:
            InputError: the image is too small for one logit.
        """
        if min(image.shape[2:]) < self.smallest:
            raise InputError(
                f"image of {image.shape[2]} x {image.shape[3]} pixels is too small for a PatchGAN "
                f"of {len(self.layers) - 1} layers: at least {self.smallest} are needed; take "
                "fewer layers or larger tiles"
            )
        x = image if condition is None else torch.cat([condition, image], 1)
        features: list[Tensor] = []
        for layer in self.layers:
            x = layer(x)
            features.append(x)
        return [(self.head(self.diversity(x)), features)]


class GlobalLocal(nn.Module):
    """One discriminator for the whole image, one for its hole (Iizuka et al. 2017, section 3.3).

    Both see the hole's place as a further channel.

    Args:
        image_channels: channels of the image.
        width: channels of the first layer of each.
        layers: layers with stride 2 of each.
        norm: "batch", "instance", "channel" or "none".
        attention: self-attention in both.
        local: what the second one sees: "zeroed", the image with everything outside the hole set
            to 0, for holes of any form; "crop", a square of half the image's shorter side around
            the hole's centre, moved inside the image, with one logit for all of it; "none", there
            is no second one.
    """

    def __init__(
        self,
        image_channels: int,
        *,
        width: int = 32,
        layers: int = 3,
        norm: Norm = "none",
        attention: bool = False,
        local: Literal["zeroed", "crop", "none"] = "zeroed",
    ) -> None:
        super().__init__()
        channels, self.local = image_channels + 1, local
        self.whole = PatchGAN(channels, width=width, layers=layers, norm=norm, attention=attention)
        if local != "none":
            self.part = PatchGAN(
                channels, width=width, layers=layers, norm=norm, attention=attention
            )

    @property
    def stride(self) -> int:
        """Pixels from one logit to the next, of the whole image."""
        return self.whole.stride

    def forward(self, condition: Tensor | None, image: Tensor) -> list[tuple[Tensor, list[Tensor]]]:
        """Judge a filled image.

        Args:
            condition: ``(B, 1, H, W)``, the hole, 1 = missing.
            image: ``(B, image_channels, H, W)``, true or filled.

        Returns:
            ``(logits, features)`` of the whole image and of its hole: logits ``(B, 1, h, w)``,
            positive for true, and ``(B, 1, 1, 1)`` of a crop.

        Raises:
            InputError: no hole is given; the image, or the crop, is too small for one logit.
        """
        if condition is None:
            raise InputError("GlobalLocal judges holes; give them as the condition")
        heads: list[tuple[Tensor, list[Tensor]]] = self.whole(condition, image)
        if self.local == "zeroed":
            heads += self.part(condition, image * condition)
        elif self.local == "crop":
            [(logits, features)] = self.part(*around(condition, condition, image))
            heads.append((logits.mean((2, 3), keepdim=True), features))
        return heads


def diversify(discriminator: nn.Module, kind: Literal["deviation", "discrimination"]) -> None:
    """Let every PatchGAN in a discriminator see how much the samples of a batch differ, in place.

    A layer before the head adds channels (``blocks.MinibatchDeviation`` or
    ``blocks.MinibatchDiscrimination``). The head's weights for them are drawn by
    ``blocks.initialize``, its others stay. From then on the judgement of a sample depends on the
    others in its batch. To be called before optimizers are made.

    Args:
        discriminator: a PatchGAN or a network of several.
        kind: which layer.

    Raises:
        InputError: there is no PatchGAN, or one that has such a layer already.
    """
    networks = [module for module in discriminator.modules() if isinstance(module, PatchGAN)]
    if not networks:
        raise InputError(f"{type(discriminator).__name__} has no PatchGAN; leave out diversity")
    for network in networks:
        if not isinstance(network.diversity, nn.Identity):
            raise InputError("this PatchGAN has a diversity layer already; one is enough")
        old = network.head
        layer = (
            MinibatchDeviation()
            if kind == "deviation"
            else MinibatchDiscrimination(old.in_channels)
        )
        head = nn.Conv2d(old.in_channels + layer.added, 1, 4, 1, 1)
        initialize(head)
        head.weight.data[:, : old.in_channels] = old.weight.data
        head.bias = old.bias
        network.diversity, network.head = layer.to(old.weight), head.to(old.weight)


def around(hole: Tensor, *images: Tensor) -> list[Tensor]:
    """Cut a square of half the shorter side around the centre of each hole.

    The square is moved inside the image; without hole it is taken from the middle. All stays on
    the device, and the cut can be differentiated any number of times.

    Args:
        hole: ``(B, 1, H, W)``, 1 = missing.
        images: each ``(B, C, H, W)``.

    Returns:
        A cut of each image, ``(B, C, side, side)``.
    """
    side = min(hole.shape[2:]) // 2
    cuts = list(images)
    for axis in (2, 3):
        size = hole.shape[axis]
        weight = hole.float().sum((1, 5 - axis))
        place = torch.arange(size, device=hole.device)
        middle = (weight * place).sum(1) / weight.sum(1)
        middle = torch.where(weight.sum(1) > 0, middle, (size - 1) / 2)
        start = (middle - (side - 1) / 2).round().long().clamp(0, size - side)
        index = start[:, None] + torch.arange(side, device=hole.device)
        index = index[:, None, :, None] if axis == 2 else index[:, None, None, :]
        for number, cut in enumerate(cuts):
            shape = [*cut.shape]
            shape[axis] = side
            cuts[number] = cut.gather(axis, index.expand(shape))
    return cuts
