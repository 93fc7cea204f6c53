"""The PatchGAN discriminator, which judges overlapping patches (Isola et al. 2017)."""

import torch
from torch import Tensor, nn

from ganlab.errors import InputError
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
    """

    def __init__(
        self, in_channels: int, *, width: int = 64, layers: int = 3, norm: Norm = "batch"
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


def receptive_field(network: nn.Module) -> int:
    """Width of the input patch that one output pixel of a stack of convolutions sees.

    The recurrence, from the first layer on: the field grows by ``dilation * (kernel - 1)`` times
    the product of all strides before (Araujo et al. 2019, eq. 2).

    Args:
        network: its ``Conv2d`` layers, in the order in which they are registered, are the stack.

    Raises:
        InputError: no convolution, a transposed or a non-square one.
    """
    field, jump = 1, 1
    for layer in network.modules():
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
