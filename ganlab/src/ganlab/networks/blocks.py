"""What networks are made of: normalizations, up-samplings, blocks and the initialization."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ganlab.errors import InputError

Norm = Literal["batch", "instance", "channel", "none"]
Up = Literal["transposed", "resize", "subpixel"]


class ChannelNorm(nn.Module):
    """Layer normalization over the channels of every pixel (Ba et al. 2016, eqs. 3-4).

    A pixel's result never depends on its neighbours, so tiles of one scene cannot change colour
    against each other. ``(B, C, H, W)`` in, the same out, in the dtype of the input.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            # Autocast would make the result float32, twice the traffic for the next layer.
            with torch.autocast(x.device.type, enabled=False):
                return self._normalize(x)
        return self._normalize(x)

    def _normalize(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        pixels = F.layer_norm(x.permute(0, 2, 3, 1), weight.shape, weight, bias, self.eps)
        return pixels.permute(0, 3, 1, 2)


class InstanceNorm(nn.InstanceNorm2d):
    """Instance normalization (Ulyanov et al. 2016) with learned scale and shift.

    A map of one pixel has no statistics and is only scaled and shifted; PyTorch's module raises.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] * x.shape[3] == 1:
            return x * self.weight[:, None, None] + self.bias[:, None, None]
        return super().forward(x)


def normalization(kind: Norm, channels: int) -> nn.Module:
    """A normalization of ``(B, channels, H, W)`` with learned scale and shift, or none."""
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "instance":
        return InstanceNorm(channels)
    return ChannelNorm(channels) if kind == "channel" else nn.Identity()


class Dropout(nn.Dropout):
    """Dropout that stays on in evaluation while ``always`` is true: the noise of pix2pix."""

    always = False

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, self.training or self.always)


class SubPixel(nn.Conv2d):
    """3x3 convolution to four times the channels, laid out as 2x2 pixels (Shi et al. 2016)."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, 4 * out_channels, 3, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(super().forward(x), 2)


def upsampling(kind: Up, in_channels: int, out_channels: int, bias: bool = True) -> nn.Module:
    """A learned doubling of height and width.

    ``transposed`` is the 4x4 transposed convolution of pix2pix, ``resize`` nearest neighbour and
    a 3x3 convolution (Odena et al. 2016), ``subpixel`` a convolution and pixel shuffle.
    """
    if kind == "transposed":
        return nn.ConvTranspose2d(in_channels, out_channels, 4, 2, 1, bias=bias)
    if kind == "subpixel":
        return SubPixel(in_channels, out_channels, bias)
    convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias)
    return nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), convolution)


def padded(x: Tensor, stride: int) -> Tensor:
    """``(B, C, H, W)`` with its last row and column repeated up to a multiple of ``stride``."""
    below, right = -x.shape[2] % stride, -x.shape[3] % stride
    return F.pad(x, (0, right, 0, below), mode="replicate") if below or right else x


class ResidualBlock(nn.Module):
    """``x + f(x)`` with f twice activation, 3x3 convolution, norm (He et al. 2016)."""

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layer = nn.Conv2d(channels, channels, 3, padding=1, bias=norm == "none")
            layers += [nn.LeakyReLU(0.2), layer, normalization(norm, channels)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        residual: Tensor = self.layers(x)
        return x + residual


class MinibatchDeviation(nn.Module):
    """One more channel: how much the samples of the batch differ (Karras et al. 2018, section 3).

    The standard deviation over the batch of every feature at every pixel, in the mean over both:
    one number, everywhere in all samples. ``(B, C, H, W)`` in, ``(B, C + 1, H, W)`` out; at least
    two samples, else ``InputError``. Their 1e-8 under the root keeps gradients finite where all
    samples are equal.
    """

    added = 1

    def forward(self, x: Tensor) -> Tensor:
        _refuse_single(x)
        with torch.autocast(x.device.type, enabled=False):
            fine = x.to(torch.promote_types(x.dtype, torch.float32))
            deviation = (fine.var(0, correction=0) + 1e-8).sqrt().mean()
        return torch.cat([x, deviation.to(x.dtype).expand(len(x), 1, *x.shape[2:])], 1)


class MinibatchDiscrimination(nn.Module):
    """``kernels`` more channels: how near a sample is to the others of its batch.

    A learned map turns the features of sample i, in the mean over its pixels, into rows
    ``M[i, b]`` of ``dims`` numbers; channel b is ``sum_j exp(-|M[i, b] - M[j, b]|_1)`` over all
    other samples j, the same at every pixel (Salimans et al. 2016, section 3.2). The sample itself
    would add 1 to all and is left out. ``(B, channels, H, W)`` in,
    ``(B, channels + kernels, H, W)`` out; at least two samples, else ``InputError``.

    Args:
        channels: of the input.
        kernels: distances that are learned.
        dims: numbers behind each.
    """

    def __init__(self, channels: int, kernels: int = 32, dims: int = 5) -> None:
        super().__init__()
        self.added = kernels
        self.rows = nn.Linear(channels, kernels * dims, bias=False)
        nn.init.normal_(self.rows.weight, 0.0, channels**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        _refuse_single(x)
        with torch.autocast(x.device.type, enabled=False):
            pooled = x.mean((2, 3), dtype=torch.promote_types(x.dtype, torch.float32))
            rows = self.rows(pooled).unflatten(1, (self.added, -1))
            apart = (rows[:, None] - rows[None]).abs().sum(3)
            near = torch.exp(-apart).sum(1) - 1
        return torch.cat([x, near.to(x.dtype)[:, :, None, None].expand(-1, -1, *x.shape[2:])], 1)


def _refuse_single(x: Tensor) -> None:
    if len(x) < 2:
        raise InputError(
            "a batch of one sample has no diversity; give two or more for each process, or leave "
            "out the diversity layer"
        )


@torch.no_grad()
def initialize(network: nn.Module, std: float = 0.02) -> None:
    """Draw all weights as pix2pix does (Isola et al. 2017, section 6.2), in place.

    Convolutions from N(0, ``std``), scales of norms from N(1, ``std``), all biases 0. The four
    kernels of a sub-pixel convolution that share a channel start equal, so that it starts as a
    nearest-neighbour up-sampling without checkerboard (Aitken et al. 2017).
    """
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            layer.weight.normal_(0.0, std)
            if isinstance(layer, SubPixel):
                layer.weight.copy_(layer.weight[::4].repeat_interleave(4, 0))
        elif isinstance(layer, (nn.BatchNorm2d, InstanceNorm, ChannelNorm)):
            layer.weight.normal_(1.0, std)
        else:
            continue
        if layer.bias is not None:
            layer.bias.zero_()
