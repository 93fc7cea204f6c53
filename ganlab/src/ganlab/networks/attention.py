"""Self-attention over the pixels of a feature map (Zhang et al. 2019)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ganlab.errors import InputError

CLOSED = -1e4
"""What a masked key adds to its logits; a number that 16 bits can hold."""


class SelfAttention(nn.Module):
    """``x + gamma * attention(x)``: every pixel gathers from all others (Zhang et al. 2019, eq. 3).

    The attention from pixel i to pixel j is ``softmax_j(query_i . key_j)``, without scale, with
    queries and keys narrower than values. PyTorch's fused kernels want them all equally wide, else
    they silently give way to one that stores the whole ``(H W, H W)`` matrix; so queries and keys
    are padded by zeros, which leaves their products as they are. One of the spare channels closes
    masked keys: 1 in every query and ``CLOSED`` in the key.

    Args:
        channels: channels of the map, at least 2.
        reduction: queries and keys have ``channels // reduction`` channels, at least 1.
        twice: take the kernel that can be differentiated twice, for discriminators whose gradient
            is itself part of a loss. It stores the matrix. May be changed at any time.

    Raises:
        InputError: no room for a query narrower than the value.

    Attributes:
        gamma: weight of the attention, learned from 0 on: the layer starts as the identity.
    """

    def __init__(self, channels: int, *, reduction: int = 8, twice: bool = False) -> None:
        super().__init__()
        if channels < 2 or reduction < 2:
            raise InputError(
                f"self-attention over {channels} channels with reduction {reduction} leaves no "
                "query narrower than the value; give at least 2 of both"
            )
        self.narrow, self.twice = max(1, channels // reduction), twice
        self.query = nn.Linear(channels, self.narrow)
        self.key = nn.Linear(channels, self.narrow)
        self.value = nn.Linear(channels, channels)
        self.gamma = nn.Parameter(torch.zeros(()))
        for layer in (self.query, self.key, self.value):
            nn.init.normal_(layer.weight, 0.0, channels**-0.5)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, hole: Tensor | None = None) -> Tensor:
        """Add to each pixel what it gathers.

        Args:
            x: ``(B, channels, H, W)``.
            hole: ``(B, 1, h, w)`` at any resolution, 1 = missing; pixels of ``x`` that lie at
                least half in a hole are not gathered from. Where an image is all hole, all are.

        Returns:
            ``(B, channels, H, W)``.
        """
        query, key, value = (part[:, None] for part in self._project(x, hole))
        if self.twice:
            with sdpa_kernel(SDPBackend.MATH):
                gathered = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        else:
            gathered = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        gathered = gathered.reshape(x.shape[0], *x.shape[2:], -1).permute(0, 3, 1, 2)
        return x + self.gamma * gathered

    def attention_map(self, x: Tensor, hole: Tensor | None = None) -> Tensor:
        """Where each pixel gathers from: ``(B, H W, H W)``, each row sums to 1.

        Row and column number the pixels line by line; arguments as for ``forward``.
        """
        query, key, _ = self._project(x, hole)
        return torch.softmax(query @ key.mT, -1)

    def _project(self, x: Tensor, hole: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value of every pixel, each ``(B, H W, channels)``."""
        pixels = x.permute(0, 2, 3, 1).flatten(1, 2)
        query, key, value = self.query(pixels), self.key(pixels), self.value(pixels)
        spare = value.shape[2] - self.narrow - 1
        closed = key.new_zeros(*key.shape[:2], 1)
        if hole is not None:
            closed = CLOSED * _closed(hole, x.shape[2], x.shape[3]).to(key.dtype)
        query = torch.cat([query, torch.ones_like(closed)], 2)
        key = torch.cat([key, closed], 2)
        return F.pad(query, (0, spare)), F.pad(key, (0, spare)), value


def _closed(hole: Tensor, height: int, width: int) -> Tensor:
    """1 for keys that are masked, ``(B, height * width, 1)``; none where all of them would be."""
    closed = (F.adaptive_avg_pool2d(hole, (height, width)) >= 0.5).to(hole.dtype)
    open_somewhere = 1 - closed.amin((1, 2, 3), keepdim=True)
    return (closed * open_somewhere).flatten(1).unsqueeze(2)
