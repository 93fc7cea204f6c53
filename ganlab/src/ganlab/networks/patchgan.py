"""Discriminators that judge overlapping patches (Isola et al. 2017), everywhere and at holes."""

from typing import Literal

import torch
from torch import Tensor, nn

from ganlab.errors import InputError
from ganlab.networks.attention import SelfAttention
from ganlab.networks.blocks import Norm, initialize, normalization


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
        self.head = nn.Conv2d(source, 1, 4, 1, 1)
        initialize(self)
        if attention:
            attended = SelfAttention(2 * width, twice=True)
            self.layers[1] = nn.Sequential(self.layers[1], attended)

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
        return [(self.head(x), features)]


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


def receptive_field(network: nn.Module) -> int:
    """Width of the input patch that one output pixel of a stack of convolutions sees.

    The recurrence, from the first layer on: the field grows by ``dilation * (kernel - 1)`` times
    the product of all strides before (Araujo et al. 2019, eq. 2).

    Args:
        network: its ``Conv2d`` layers, in the order in which they are registered, are the stack.

    Raises:
        InputError: no convolution, a transposed or a non-square one; self-attention, which sees
            everything.
    """
    field, jump = 1, 1
    for layer in network.modules():
        if isinstance(layer, SelfAttention):
            raise InputError("receptive_field wants convolutions only, found self-attention")
        if isinstance(layer, nn.ConvTranspose2d):
            raise InputError("receptive_field wants convolutions only, found a transposed one")
        if isinstance(layer, nn.Conv2d):
            shape = {*zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)}
            if len(shape) > 1:
                raise InputError(f"receptive_field wants square convolutions, found {layer}")
            kernel, stride, dilation = shape.pop()
            field += dilation * (kernel - 1) * jump
            jump *= stride
    if field == 1 and jump == 1:
        raise InputError("receptive_field wants a stack of convolutions, found none")
    return field
