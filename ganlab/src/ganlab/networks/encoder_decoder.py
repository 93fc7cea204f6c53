"""Generators that fill holes: what they see is squeezed, looked at from afar, and painted out."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ganlab.errors import InputError
from ganlab.networks.attention import SelfAttention
from ganlab.networks.blocks import Norm, initialize, normalization, padded
from ganlab.networks.gated import GatedConv, PartialConv, PlainConv, draw

Layer = Literal["gated", "partial", "plain"]
LAYERS = {"gated": GatedConv, "partial": PartialConv, "plain": PlainConv}
LEAKY_POWER = 0.52
"""Second moment of LeakyReLU(0.2)(z), z from N(0, 1)."""


class EncoderDecoder(nn.Module):
    """Two halvings, dilated layers at a quarter of the resolution, two doublings; no skips.

    With four dilations these are the 17 convolutions of the coarse stage of CMUNet (Shao et al.
    2022) and the 18 of its refinement, after the inpainting network of Yu et al. (2018, 2019):
    5x5 and a halving, twice two 3x3 with a halving between, the dilated ones, two more, (attention
    and one more), and back up. The output layer is an ordinary convolution.

    The first layer and the last but one have no norm: they are few channels wide and carry the
    colours. ``gated.draw`` draws the weights so that the variance stays in any depth, with or
    without norms: ``blocks.initialize`` would let it die out.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        layer: "gated" (Yu et al. 2019), "partial" (Liu et al. 2018) or "plain" convolutions.
        width: channels at full resolution; twice and four times as many further down, half before
            the output.
        norm: "batch", "instance", "channel" or "none".
        dilations: one dilated layer each.
        attention: one layer of self-attention after the dilated ones.
        known_keys: the attention gathers from outside the hole alone.
        tanh: bound the output to (-1, 1); without it the output is linear.

    Raises:
        InputError: no width.
    """

    stride = 4
    """Total stride: pixels of the input along one pixel in the middle."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        layer: Layer = "gated",
        width: int = 32,
        norm: Norm = "channel",
        dilations: tuple[int, ...] = (2, 4, 8, 16),
        attention: bool = False,
        known_keys: bool = False,
        tanh: bool = True,
    ) -> None:
        super().__init__()
        _check(width, dilations)
        self.known_keys, self.tanh = known_keys, tanh
        make, half = LAYERS[layer], max(1, width // 2)
        middle = 4 * width
        layers: list[nn.Module] = [
            make(in_channels, width, 5),
            make(width, 2 * width, stride=2, norm=norm),
            make(2 * width, 2 * width, norm=norm),
            make(2 * width, middle, stride=2, norm=norm),
            *(make(middle, middle, norm=norm) for _ in range(2)),
            *(make(middle, middle, dilation=dilation, norm=norm) for dilation in dilations),
            make(middle, middle, norm=norm),
        ]
        if attention:
            layers += [SelfAttention(middle), make(middle, middle, norm=norm)]
        layers += [
            make(middle, middle, norm=norm),
            make(middle, 2 * width, up=True, norm=norm),
            make(2 * width, 2 * width, norm=norm),
            make(2 * width, width, up=True, norm=norm),
            make(width, half),
        ]
        self.layers = nn.ModuleList(layers)
        self.last_layer = nn.Conv2d(half, out_channels, 3, padding=1)
        draw(self.last_layer)

    def forward(self, x: Tensor, hole: Tensor) -> Tensor:
        """Transform ``(B, in_channels, H, W)`` to ``(B, out_channels, H, W)``.

        Any height and width: the border pixels are repeated at the right and the bottom up to a
        multiple of ``stride``, and the result is cropped.

        Args:
            x: the image, with whatever else the network may see. Partial convolutions ignore what
                it holds inside the hole.
            hole: ``(B, 1, H, W)``, 1 = missing.
        """
        height, width = x.shape[2:]
        x, hole = padded(x, self.stride), padded(hole, self.stride)
        known = 1 - hole
        for layer in self.layers:
            if isinstance(layer, PartialConv):
                x, known = layer(x, known)
            elif isinstance(layer, SelfAttention):
                x = layer(x, hole if self.known_keys else None)
            else:
                x = layer(x)
        x = self.last_layer(x)[:, :, :height, :width]
        return torch.tanh(x) if self.tanh else x


class DCGANAutoencoder(nn.Module):
    """A DCGAN (Radford et al. 2016) behind its mirror image: 4x4 convolutions, no skips.

    The encoder halves the size by strides, the decoder doubles it by transposed convolutions, each
    followed by norm and then LeakyReLU(0.2), in that order. The first and the last layer have no
    norm. The weights are drawn by ``blocks.initialize`` as in the paper, without norms by
    ``gated.draw``.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        width: channels of the first level, doubled at each of the others.
        depth: number of halvings, at least 1.
        norm: "batch", "instance", "channel" or "none".
        dilations: one dilated 3x3 layer each, between encoder and decoder.
        attention: self-attention after those.
        tanh: bound the output to (-1, 1); without it the output is linear.

    Raises:
        InputError: no width, no depth.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        width: int = 32,
        depth: int = 4,
        norm: Norm = "batch",
        dilations: tuple[int, ...] = (),
        attention: bool = False,
        tanh: bool = True,
    ) -> None:
        super().__init__()
        _check(width, dilations)
        if depth < 1:
            raise InputError(f"depth {depth} leaves no layer; give at least 1")
        self.depth, self.tanh = depth, tanh
        channels = [width << level for level in range(depth)]

        def block(convolution: nn.Module, out: int, norm: Norm = norm) -> nn.Sequential:
            return nn.Sequential(convolution, normalization(norm, out), nn.LeakyReLU(0.2))

        layers: list[nn.Module] = [block(nn.Conv2d(in_channels, width, 4, 2, 1), width, "none")]
        for here, below in pairwise(channels):
            layers.append(block(nn.Conv2d(here, below, 4, 2, 1), below))
        deep = channels[-1]
        for dilation in dilations:
            layers.append(block(nn.Conv2d(deep, deep, 3, 1, dilation, dilation), deep))
        after = len(layers)
        for below, here in zip(channels[:0:-1], channels[-2::-1], strict=True):
            layers.append(block(nn.ConvTranspose2d(below, here, 4, 2, 1), here))
        self.layers = nn.Sequential(*layers)
        self.last_layer = nn.ConvTranspose2d(width, out_channels, 4, 2, 1)
        initialize(self)
        if norm == "none":
            for layer in self.modules():
                if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                    draw(layer, LEAKY_POWER)
        if attention:
            self.layers.insert(after, SelfAttention(deep))

    @property
    def stride(self) -> int:
        """Total stride: pixels of the input along one pixel in the middle."""
        return 1 << self.depth

    def forward(self, x: Tensor, hole: Tensor) -> Tensor:
        """As ``EncoderDecoder.forward``; the hole's place is known only from ``x``."""
        height, width = x.shape[2:]
        x = self.last_layer(self.layers(padded(x, self.stride)))[:, :, :height, :width]
        return torch.tanh(x) if self.tanh else x


class HoleFiller(nn.Module):
    """One stage: an encoder-decoder that sees the image, its holes, and a channel of ones.

    The ones tell the image from the zeros that convolutions see outside of it.

    Args:
        bands: bands of the image.
        layer: "gated", "partial", "plain" (``EncoderDecoder``) or "dcgan" (``DCGANAutoencoder``).
        residual: the network's output, linear then and small at first, is added to the image that
            it is given; else it is the new image, bounded by tanh.
        noise: the network sees a further channel, normal noise in the holes: what is the same
            everywhere in a hole gives it nothing to make a texture from.
        shape: further arguments of the network: width, norm, dilations, attention, ...
    """

    def __init__(
        self,
        bands: int,
        *,
        layer: Literal["gated", "partial", "plain", "dcgan"] = "gated",
        residual: bool = False,
        noise: bool = False,
        **shape: Any,
    ) -> None:
        super().__init__()
        self.residual, self.noise, channels = residual, noise, bands + 2 + noise
        self.network: EncoderDecoder | DCGANAutoencoder
        if layer == "dcgan":
            self.network = DCGANAutoencoder(channels, bands, tanh=not residual, **shape)
        else:
            shape |= {"layer": layer, "tanh": not residual}
            self.network = EncoderDecoder(channels, bands, **shape)
        if residual:
            with torch.no_grad():
                self.last_layer.weight.mul_(0.1)

    @property
    def stride(self) -> int:
        """Total stride of the network."""
        return self.network.stride

    @property
    def last_layer(self) -> nn.Conv2d | nn.ConvTranspose2d:
        """The layer that makes the output."""
        return self.network.last_layer

    def forward(self, image: Tensor, hole: Tensor, noise: Tensor | None = None) -> Tensor:
        """Paint an image anew.

        Args:
            image: ``(B, bands, H, W)``, about -1 to 1, with something put into the holes.
            hole: ``(B, 1, H, W)``, 1 = missing.
            noise: ``(B, 1, H, W)``, for networks that see noise; drawn anew if None.

        Returns:
            The whole image as the network sees it, known pixels included.
        """
        seen = [image, hole, torch.ones_like(hole)]
        if self.noise:
            seen.append((torch.randn_like(hole) if noise is None else noise) * hole)
        made: Tensor = self.network(torch.cat(seen, 1), hole)
        return image + made if self.residual else made


class TwoStage(nn.Module):
    """A coarse filling that a second stage with self-attention refines (Shao et al. 2022).

    Args:
        bands: bands of the image.
        coarse: arguments of the first ``HoleFiller``.
        refinement: arguments of the second; attention is on unless they say otherwise.
        residual: for both stages.
        noise: for both stages.
    """

    def __init__(
        self,
        bands: int,
        *,
        coarse: Mapping[str, Any],
        refinement: Mapping[str, Any],
        residual: bool = False,
        noise: bool = False,
    ) -> None:
        super().__init__()
        self.coarse = HoleFiller(bands, residual=residual, noise=noise, **coarse)
        arguments = {"attention": True, "residual": residual, "noise": noise, **refinement}
        self.refinement = HoleFiller(bands, **arguments)

    @property
    def stride(self) -> int:
        """Total stride: the larger of both, which the smaller divides."""
        return max(self.coarse.stride, self.refinement.stride)

    @property
    def last_layer(self) -> nn.Conv2d | nn.ConvTranspose2d:
        """The layer that makes the refined output."""
        return self.refinement.last_layer

    def forward(
        self, image: Tensor, hole: Tensor, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Paint an image twice.

        Args:
            image: ``(B, bands, H, W)``, about -1 to 1, with something put into the holes.
            hole: ``(B, 1, H, W)``, 1 = missing.
            noise: ``(B, 2, H, W)``, a channel for each stage; drawn anew if None.

        Returns:
            The coarse and the refined image, both whole. The refinement saw the image with the
            coarse one's pixels in the holes.
        """
        first, second = (None, None) if noise is None else (noise[:, :1], noise[:, 1:])
        coarse = self.coarse(image, hole, first)
        return coarse, self.refinement(torch.where(hole > 0, coarse, image), hole, second)


def _check(width: int, dilations: tuple[int, ...]) -> None:
    if width < 1 or any(dilation < 1 for dilation in dilations):
        raise InputError(
            f"width {width} and dilations {dilations} make no network; give at least 1 for each"
        )
