"""A convolutional Gaussian variational autoencoder (Kingma and Welling 2014)."""

import torch
from torch import Tensor, nn

from ganlab.errors import InputError
from ganlab.networks.blocks import Norm, Up, initialize, normalization, padded, upsampling

NARROWEST = -14.0
"""Least log-variance of a code: below, its noise is nothing and its divergence still grows."""


SCALE_RATE = 100.0
"""Learning rates by which a learned noise level moves, in its logarithm: Adam's steps are as long
for it as for any weight, and it has to come from 0 to about -3."""


class VAE(nn.Module):
    """An image is coded as a map of Gaussians, and made again from what they give.

    The encoder is ``depth`` times LeakyReLU(0.2), 4x4 convolution with stride 2 and norm, the
    decoder its mirror image; 1x1 convolutions lead to the code and away from it. There are no
    skips: all that the image is made of went through the code. It is a map ``(latent, H / 2**depth,
    W / 2**depth)``, so images of any size can be coded; with as many halvings as the image has, it
    is a single vector.

    Args:
        channels: bands of the image.
        latent: numbers of the code at each place.
        width: channels of the first level, doubled at each level up to eight times.
        depth: number of halvings, at least 1.
        norm: "batch", "instance", "channel" or "none".
        up: "transposed", "resize" or "subpixel".
        learned_scale: the noise level of the image is a parameter; ``log_scale`` is its logarithm.

    Raises:
        InputError: no width, no depth, or no code.
    """

    def __init__(
        self,
        channels: int,
        *,
        latent: int = 16,
        width: int = 32,
        depth: int = 4,
        norm: Norm = "channel",
        up: Up = "resize",
        learned_scale: bool = False,
    ) -> None:
        super().__init__()
        if min(depth, width, latent) < 1:
            raise InputError(
                f"a VAE of width {width}, depth {depth} and {latent} latent numbers is empty; "
                "give at least 1 of each"
            )
        self.depth, self.latent = depth, latent
        widths = [width * min(2**level, 8) for level in range(depth)]
        down: list[nn.Module] = []
        for level, here in enumerate(widths):
            before = widths[level - 1] if level else channels
            down += [nn.Conv2d(before, here, 4, 2, 1), normalization(norm, here), nn.LeakyReLU(0.2)]
        self.encoder = nn.Sequential(*down, nn.Conv2d(widths[-1], 2 * latent, 1))
        rise: list[nn.Module] = [nn.Conv2d(latent, widths[-1], 1), nn.LeakyReLU(0.2)]
        for level in reversed(range(1, depth)):
            here = widths[level - 1]
            rise += [upsampling(up, widths[level], here), normalization(norm, here)]
            rise.append(nn.LeakyReLU(0.2))
        self.decoder = nn.Sequential(*rise, upsampling(up, width, channels))
        initialize(self)
        self.scale = nn.Parameter(torch.zeros(())) if learned_scale else None

    @property
    def log_scale(self) -> Tensor | None:
        """Logarithm of the learned noise level, from 0 on; None if it is not learned."""
        return None if self.scale is None else SCALE_RATE * self.scale

    @property
    def stride(self) -> int:
        """Total stride: pixels of the image along one place of the code."""
        return 1 << self.depth

    @property
    def last_layer(self) -> nn.Conv2d | nn.ConvTranspose2d:
        """The layer that makes the image."""
        kinds = (nn.Conv2d, nn.ConvTranspose2d)
        return [layer for layer in self.decoder.modules() if isinstance(layer, kinds)][-1]

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log-variances of the code, ``(B, latent, h, w)`` each, of ``(B, C, H, W)``.

        Any height and width: the border pixels are repeated up to a multiple of ``stride``.
        """
        mean, log_variance = self.encoder(padded(image, self.stride)).chunk(2, 1)
        return mean, log_variance.clamp(min=NARROWEST)

    def decode(self, code: Tensor) -> Tensor:
        """The image ``(B, C, h * stride, w * stride)`` of a code ``(B, latent, h, w)``.

        Standard normal numbers give samples; points between two codes, an interpolation.
        """
        made: Tensor = self.decoder(code)
        return made

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(B, C, H, W)`` to the image made again, the means and the log-variances of its code.

        In training the code is drawn, ``mean + exp(log_variance / 2) * noise``, so that gradients
        reach both (the reparameterization of Kingma and Welling 2014, section 2.4); in evaluation
        it is its mean.
        """
        mean, log_variance = self.encode(image)
        code = mean
        if self.training:
            code = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        made = self.decode(code)[:, :, : image.shape[2], : image.shape[3]]
        return made, mean, log_variance
