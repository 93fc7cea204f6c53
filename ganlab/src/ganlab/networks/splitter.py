"""The generator that parts a cloudy image into ground and cloud."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from ganlab.networks.unet import UNet


class CloudSplitter(nn.Module):
    """A U-Net with one output more than the image has bands: the ground, and alpha.

    Alpha is the sigmoid of its output, in (0, 1); the ground is not bounded, because images are
    only about [-1, 1].

    Args:
        bands: bands of the image.
        order: "joint" makes both in one network, "sequential" first alpha and then, in a second
            network that is given image and alpha, the ground.
        residual: the network adds to the image to make the ground.
        unet: further arguments of :class:`ganlab.networks.unet.UNet`.
    """

    def __init__(
        self,
        bands: int,
        *,
        order: Literal["joint", "sequential"] = "joint",
        residual: bool = True,
        **unet: Any,
    ) -> None:
        super().__init__()
        self.bands, self.residual = bands, residual
        self.alpha: UNet | None = None
        if order == "sequential":
            self.alpha = UNet(bands, 1, tanh=False, **unet)
            self.ground = UNet(bands + 1, bands, tanh=False, **unet)
        else:
            self.ground = UNet(bands, bands + 1, tanh=False, **unet)

    @property
    def stride(self) -> int:
        """Total stride."""
        return self.ground.stride

    @property
    def halo(self) -> int:
        """Context that a window needs on every side, in pixels (see :attr:`UNet.halo`)."""
        return self.ground.halo * (1 if self.alpha is None else 2)

    @property
    def last_layer(self) -> nn.Conv2d | nn.ConvTranspose2d:
        """The layer that makes the ground."""
        return self.ground.last_layer

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Part ``(B, bands, H, W)`` into ground, of the same shape, and alpha ``(B, 1, H, W)``."""
        if self.alpha is None:
            made = self.ground(image)
            ground, logit = made[:, : self.bands], made[:, self.bands :]
            alpha = torch.sigmoid(logit)
        else:
            alpha = torch.sigmoid(self.alpha(image))
            ground = self.ground(torch.cat([image, alpha], 1))
        return (image + ground if self.residual else ground), alpha
