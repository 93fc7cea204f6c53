"""Convolutions for images with holes: gated, partial, and plain ones to compare them with.

All three take the same options and keep the size of the image, which a stride divides and ``up``
doubles. Their activation is ELU, as in the gated convolutions of Yu et al. (2019): without a kink,
so that every derivative exists, and bounded below, so that strong signals grow less than weak ones
and a deep stack without norms stays where ``draw`` starts it.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ganlab.errors import InputError
from ganlab.networks.blocks import Norm, normalization

ELU_POWER = 0.645
"""Second moment of ELU(z), z from N(0, 1)."""
GATE_POWER = 0.293
"""Second moment of sigmoid(z), z from N(0, 1)."""


@torch.no_grad()
def draw(convolution: nn.Conv2d | nn.ConvTranspose2d, power: float = 1.0) -> None:
    """Draw weights that give outputs of variance 1, in place (after He et al. 2015, section 2.2).

    Args:
        convolution: its weights come from N(0, 1 / (n * power)), where n inputs make one output;
            its bias is 0.
        power: second moment of its inputs.
    """
    inputs = convolution.weight.numel() / convolution.out_channels
    if isinstance(convolution, nn.ConvTranspose2d):
        inputs /= math.prod(convolution.stride)
    convolution.weight.normal_(0.0, (inputs * power) ** -0.5)
    if convolution.bias is not None:
        convolution.bias.zero_()


class _Convolution(nn.Module):
    """What the three have in common: options, one convolution, norm and activation."""

    outputs = 1
    power = ELU_POWER
    own_bias = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        dilation: int = 1,
        up: bool = False,
        norm: Norm = "none",
        activation: bool = True,
    ) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise InputError(f"a kernel of width {kernel} has no middle; give an odd width")
        self.convolution = nn.Conv2d(
            in_channels,
            self.outputs * out_channels,
            kernel,
            stride,
            padding=dilation * (kernel // 2),
            dilation=dilation,
            bias=not self.own_bias,
        )
        draw(self.convolution, self.power)
        if self.own_bias:
            self.bias = nn.Parameter(torch.zeros(out_channels))
        self.up = up
        self.norm = normalization(norm, out_channels)
        self.activation = nn.ELU() if activation else nn.Identity()

    def _resized(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2.0, mode="nearest") if self.up else x

    def _activated(self, x: Tensor) -> Tensor:
        activated: Tensor = self.activation(self.norm(x))
        return activated


class PlainConv(_Convolution):
    """``activation(norm(convolution))``: blind to holes. Arguments as for ``GatedConv``."""

    def forward(self, x: Tensor) -> Tensor:
        """Transform ``(B, in_channels, H, W)``."""
        return self._activated(self.convolution(self._resized(x)))


class GatedConv(_Convolution):
    """``activation(norm(feature)) * sigmoid(gate)`` (Yu et al. 2019, section 3.1).

    One convolution makes the feature and the gate, which learns where to listen. With open gates
    this is a plain convolution.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel: odd width of the kernel.
        stride: the output has ``ceil(size / stride)`` pixels along each side.
        dilation: distance of the pixels that the kernel touches.
        up: double the size first by repeating pixels (Odena et al. 2016).
        norm: "batch", "instance", "channel" or "none".
        activation: ELU, or nothing.

    Raises:
        InputError: an even kernel.
    """

    outputs = 2
    power = ELU_POWER * GATE_POWER

    def forward(self, x: Tensor) -> Tensor:
        """Transform ``(B, in_channels, H, W)``."""
        feature, gate = self.convolution(self._resized(x)).chunk(2, 1)
        return self._activated(feature) * torch.sigmoid(gate)


class PartialConv(_Convolution):
    """Convolution over the known pixels alone (Liu et al. 2018, eqs. 1-2).

    The sum over the known part of a window is scaled up to the whole window's area; what lies
    outside the image counts as unknown, as in the authors' implementation. A pixel is known
    afterwards if its window held a known one; others are 0 before norm and activation. Arguments
    as for ``GatedConv``.
    """

    own_bias = True

    def forward(self, x: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """Transform an image and the mask of what is known of it.

        Args:
            x: ``(B, in_channels, H, W)``; unknown pixels may hold anything, even NaN.
            known: ``(B, 1, H, W)``, 1 = known, 0 = missing.

        Returns:
            The new image and the grown mask.
        """
        x, known = self._resized(x), self._resized(known)
        layer = self.convolution
        with torch.no_grad():
            window = known.new_ones(1, 1, *layer.kernel_size)
            area = F.conv2d(known, window, None, layer.stride, layer.padding, layer.dilation)
            grown = (area > 0).to(known.dtype)
            ratio = window.numel() / area.clamp(min=1)
        total = layer(torch.where(known > 0, x, 0))
        bias = grown.to(total.dtype) * self.bias[:, None, None].to(total.dtype)
        return self._activated(total * ratio.to(total.dtype) + bias), grown
