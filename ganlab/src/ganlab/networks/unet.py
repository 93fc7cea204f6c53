"""The U-Net generator (Ronneberger et al. 2015), from pix2pix's canonical one to residual ones."""

from typing import Literal

import torch
from torch import Tensor, nn

from ganlab.errors import InputError
from ganlab.networks.blocks import (
    Dropout,
    Norm,
    ResidualBlock,
    Up,
    initialize,
    normalization,
    padded,
    upsampling,
)


class UNet(nn.Module):
    """Encoder and decoder with skip connections between levels of equal size.

    Level k (from 1) has ``width * 2**(k - 1)`` channels, at most ``8 * width``. The encoder level
    is LeakyReLU(0.2), 4x4 convolution with stride 2, norm; the decoder level ReLU, up-sampling,
    norm, dropout, and takes the level below joined with the encoder's level. The first level, the
    bottleneck and the output have no norm. With the default arguments this is the generator of
    pix2pix (Isola et al. 2017, section 6.1), layer for layer: C64-C128-C256-C512-C512-C512-C512-
    C512, CD512-CD512-CD512-C512-C256-C128-C64 and tanh, 54,413,955 parameters at 3 to 3 channels.

    As in the authors' implementation, a network with norms has a bias in its output layer only
    (and in residual blocks without norm). The weights are drawn by ``blocks.initialize``.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        width: channels of the first level.
        depth: number of halvings, at least 1.
        norm: "batch", "instance", "channel" or "none".
        block: "residual" adds a residual block to every level but the output (He et al. 2016).
        up: "transposed", "resize" or "subpixel".
        dropout: drop probability in the first three decoder levels after the bottleneck.
        tanh: bound the output to (-1, 1); without it the output is linear.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        width: int = 64,
        depth: int = 8,
        norm: Norm = "batch",
        block: Literal["plain", "residual"] = "plain",
        up: Up = "transposed",
        dropout: float = 0.5,
        tanh: bool = True,
    ) -> None:
        super().__init__()
        if depth < 1 or width < 1:
            raise InputError(
                f"a U-Net of width {width} and depth {depth} is empty; give at least 1 of both"
            )
        self.depth, self.block, self.upsampling, self.tanh = depth, block, up, tanh
        bias = norm == "none"
        channels = [width * min(2**level, 8) for level in range(depth)]
        self.down = nn.ModuleList()
        self.up = nn.ModuleList()
        for level in range(depth):
            here: Norm = "none" if level in (0, depth - 1) else norm
            source = channels[level - 1] if level else in_channels
            layers: list[nn.Module] = [nn.LeakyReLU(0.2)] if level else []
            layers.append(nn.Conv2d(source, channels[level], 4, 2, 1, bias=bias))
            if here != "none":
                layers.append(normalization(here, channels[level]))
            if block == "residual":
                layers.append(ResidualBlock(channels[level], here))
            self.down.append(nn.Sequential(*layers))
        for level in reversed(range(1, depth)):
            source = channels[level] * (1 if level == depth - 1 else 2)
            layers = [nn.ReLU(), upsampling(up, source, channels[level - 1], bias)]
            if norm != "none":
                layers.append(normalization(norm, channels[level - 1]))
            if block == "residual":
                layers.append(ResidualBlock(channels[level - 1], norm))
            if len(self.up) < 3 and dropout > 0:
                layers.append(Dropout(dropout))
            self.up.append(nn.Sequential(*layers))
        last = upsampling(up, width * (1 if depth == 1 else 2), out_channels)
        self.up.append(nn.Sequential(nn.ReLU(), last))
        initialize(self)

    @property
    def stride(self) -> int:
        """Total stride: pixels of the input along one pixel of the bottleneck."""
        return 1 << self.depth

    @property
    def halo(self) -> int:
        """Context that a window needs on every side, in pixels, a multiple of ``stride``.

        A window that starts and ends at multiples of ``stride`` has every pixel in common with
        the whole scene if so many pixels around it are given, unless statistics over space
        (instance norm) join them. Found by following an interval of pixels from the output back
        through the bottleneck: 2 strides for plain blocks, more for residual ones.
        """
        residual = 2 if self.block == "residual" else 0
        low, high = 0, self.stride - 1
        for level in range(self.depth):
            if level > 0:
                low, high = low - residual, high + residual
            if self.upsampling == "subpixel":
                low, high = low // 2 - 1, high // 2 + 1
            else:
                low, high = (low - 1) // 2, (high + 1) // 2
        for _ in range(self.depth):
            low, high = low - residual, high + residual
            low, high = 2 * low - 1, 2 * high + 2
        reach = max(-low, high - self.stride + 1)
        return -(-reach // self.stride) * self.stride

    @property
    def last_layer(self) -> nn.Conv2d | nn.ConvTranspose2d:
        """The layer that makes the output and bears its weights."""
        kinds = (nn.Conv2d, nn.ConvTranspose2d)
        return next(layer for layer in self.up[-1].modules() if isinstance(layer, kinds))

    def keep_dropout(self, on: bool = True) -> None:
        """Let dropout act in evaluation too, and nothing else of the training mode.

        pix2pix generates this way: dropout is its only noise (Isola et al. 2017, section 3.1).
        """
        for layer in self.modules():
            if isinstance(layer, Dropout):
                layer.always = on

    def forward(self, x: Tensor) -> Tensor:
        """Translate ``(B, in_channels, H, W)`` to ``(B, out_channels, H, W)``.

        Any height and width: the border pixels are repeated at the right and the bottom up to a
        multiple of ``stride``, and the result is cropped.
        """
        height, width = x.shape[2:]
        x = padded(x, self.stride)
        skips: list[Tensor] = []
        for down in self.down:
            x = down(x)
            skips.append(x)
        x = self.up[0](skips.pop())
        for up in self.up[1:]:
            x = up(torch.cat([x, skips.pop()], 1))
        x = x[:, :, :height, :width]
        return torch.tanh(x) if self.tanh else x
