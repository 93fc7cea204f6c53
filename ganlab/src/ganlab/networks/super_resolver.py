"""The generator that makes finer pixels: a symmetric body, then stages that double."""

from typing import Any

import torch
from torch import Tensor, nn

from ganlab.errors import InputError
from ganlab.networks.blocks import Up, initialize, upsampling
from ganlab.networks.unet import UNet
from ganlab.resolution import enlarge


class SuperResolver(nn.Module):
    """A U-Net at the coarse resolution, whose features are enlarged in stages of two.

    Shi et al. (2016) found that all work is best done at the coarse resolution. The body sees far
    for little, and is as symmetric as any U-Net; each stage is LeakyReLU(0.2) and an up-sampling,
    and a 3x3 convolution makes the image. With ``last`` "transposed" it is instead the last
    transposed convolution that makes the image, with nothing after it to smooth its pattern.

    With ``residual`` the output starts as the bicubic enlargement of the input, bit for bit (the
    last layer starts at zero). If input and output differ in bands, the enlargement of a learned
    mixture of the bands, at the start their mean, stands in its place.

    Args:
        in_channels: bands of the input.
        out_channels: bands of the output.
        factor: output pixels along one input pixel, a power of two; 1 has no stage.
        last: what doubles: "subpixel", "resize" or "transposed".
        residual: add to the enlargement; without it the output is bounded by tanh. Factor 1 never
            does: its input is the answer.
        width: channels of the body's first level and of the stages.
        unet: further arguments of :class:`ganlab.networks.unet.UNet`.

    Raises:
        InputError: factor is no power of two.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        factor: int = 2,
        last: Up = "subpixel",
        residual: bool = True,
        width: int = 64,
        **unet: Any,
    ) -> None:
        super().__init__()
        if factor < 1 or factor & (factor - 1):
            raise InputError(f"factor {factor}: expected a power of two, 1 for an autoencoder")
        self.factor, self.residual = factor, residual and factor > 1
        self.body = UNet(in_channels, width, width=width, tanh=False, **unet)
        stages: list[nn.Module] = []
        doublings = factor.bit_length() - 1
        ends = last == "transposed" and doublings > 0
        for number in range(doublings):
            final = ends and number == doublings - 1
            channels = out_channels if final else width
            stages += [nn.LeakyReLU(0.2), upsampling(last, width, channels)]
        if not ends:
            stages += [nn.LeakyReLU(0.2), nn.Conv2d(width, out_channels, 3, padding=1)]
        self.stages = nn.Sequential(*stages)
        initialize(self.stages)
        self.mixture: nn.Conv2d | None = None
        if self.residual:
            nn.init.zeros_(self.last_layer.weight)
            if in_channels != out_channels:
                self.mixture = nn.Conv2d(in_channels, out_channels, 1)
                nn.init.constant_(self.mixture.weight, 1 / in_channels)
                nn.init.zeros_(self.mixture.bias)  # type: ignore[arg-type]

    @property
    def stride(self) -> int:
        """Total stride, in input pixels."""
        return self.body.stride

    @property
    def halo(self) -> int:
        """Context that a window needs on every side, in input pixels, a multiple of ``stride``.

        The stages and the enlargement reach at most one stride further than the body.
        """
        return self.body.halo + max(self.stride, 4)

    @property
    def last_layer(self) -> nn.Conv2d | nn.ConvTranspose2d:
        """The layer that makes the image."""
        layer = self.stages[-1]
        if isinstance(layer, nn.Sequential):
            layer = layer[-1]
        if not isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            raise TypeError(f"{type(layer).__name__} has no weights")
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge ``(B, in_channels, H, W)`` to ``(B, out_channels, factor H, factor W)``."""
        made: Tensor = self.stages(self.body(x))
        if not self.residual:
            return torch.tanh(made)
        start = enlarge(x, self.factor)
        return made + (start if self.mixture is None else self.mixture(start))
