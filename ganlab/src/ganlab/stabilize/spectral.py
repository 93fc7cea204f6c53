"""Largest singular values of a network's layers: divided away, or kept small by a loss.

A layer's weight is taken for a matrix of ``out`` rows, ``out x in`` of a linear layer and
``out x (in k k)`` of a convolution, transposed or not. The sigma of that matrix is what a
convolution does to one patch, *not* its norm as a map from images to images: patches overlap, and
that norm lies between sigma and ``ceil(k / stride)`` times sigma (Tsuzuku et al. 2018), which is
twice for a 4 x 4 kernel of stride 2. The exact norm takes a Fourier transform of the kernel (Sedghi
et al. 2019). So layers of sigma 1 do not make a network 1-Lipschitz.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from ganlab.errors import InputError
from ganlab.losses.adversarial import full

Layer = nn.Conv2d | nn.ConvTranspose2d | nn.Linear


def normalize(network: nn.Module) -> None:
    """Divide the weights of all convolutions and linear layers by their sigma, in place.

    By torch's parametrization (Miyato et al. 2018), which takes one step of the power iteration at
    every pass in training, and none in evaluation. Biases stay as they are, and so do layers that
    have it already. The start is drawn from torch's generator.
    """
    for layer in _layers(network):
        if not parametrize.is_parametrized(layer, "weight"):
            spectral_norm(layer)


class SpectralRegularization:
    """Half the sum of the squared sigmas of all layers (Yoshida and Miyato 2017).

    The weight is their lambda. Unlike the normalization it leaves the layers their scale, and only
    pulls at the largest direction of each: the gradient with respect to a weight W is
    ``sigma u v'``, with u and v its first singular vectors. They come from a power iteration that
    moves by one step a call and never waits for the device. Its sigma is a little low where the
    weights move fast or the first two sigmas are close, as they become under this very pull.

    Args:
        network: whose convolutions and linear layers; their weights are read anew at every call, so
            it may move to another device.
        weight: what the term is multiplied by, at least 0.

    Raises:
        InputError: there are no such layers, or their weights are normalized already; a negative
            weight.
    """

    name = "spectral"

    def __init__(self, network: nn.Module, weight: float) -> None:
        self.layers = _layers(network)
        if not 0 <= weight < float("inf"):
            raise InputError(f"spectral regularization of weight {weight}: expected at least 0")
        if not self.layers:
            raise InputError(
                f"{type(network).__name__} has no convolution and no linear layer, and so nothing "
                "for a spectral regularization; leave it out"
            )
        if any(parametrize.is_parametrized(layer, "weight") for layer in self.layers):
            raise InputError(
                "a spectral regularization of normalized layers has nothing to do: choose one"
            )
        self.weight = weight
        self._left = []
        for index, layer in enumerate(self.layers):
            matrix = _matrix(layer).detach()
            draw = torch.randn(len(matrix), generator=torch.Generator().manual_seed(index))
            left = F.normalize(draw.to(matrix), dim=0)
            for _ in range(15):  # as torch's normalization does at its start
                left, _right = _iterate(matrix, left)
            self._left.append(left)

    def __call__(self) -> Tensor:
        """The bare term, a scalar; moves the iteration on."""
        device = self.layers[0].weight.device
        with torch.autocast(device.type, enabled=False):
            sigmas = []
            for index, layer in enumerate(self.layers):
                matrix = _matrix(layer)
                left, right = _iterate(matrix.detach(), self._left[index].to(matrix))
                self._left[index] = left
                sigmas.append(left @ matrix @ right)
            return torch.stack(sigmas).square().sum() / 2

    def state_dict(self) -> dict[str, Tensor]:
        """Where the iteration stands: ``(out,)`` of each layer, by its number."""
        return {str(index): left for index, left in enumerate(self._left)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue exactly where ``state_dict`` was taken.

        Raises:
            InputError: the state is that of other layers.
        """
        found = [tuple(state[key].shape) for key in sorted(state, key=int)]
        expected = [tuple(left.shape) for left in self._left]
        if found != expected:
            raise InputError(
                f"the spectral regularization of layers of {expected} outputs cannot go on from "
                f"{found}; resume with the same discriminator"
            )
        self._left = [state[str(i)].to(left) for i, left in enumerate(self._left)]


def _layers(network: nn.Module) -> list[Layer]:
    return [layer for layer in network.modules() if isinstance(layer, Layer)]


def _matrix(layer: Layer) -> Tensor:
    """``(out, rest)``, in float32 at least; transposed convolutions store ``in`` first."""
    weight = full(layer.weight)
    if isinstance(layer, nn.ConvTranspose2d):
        weight = weight.transpose(0, 1)
    return weight.flatten(1)


@torch.no_grad()
def _iterate(matrix: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
    """One step of the power iteration: the new left and right vectors of length 1."""
    right = F.normalize(left @ matrix, dim=0)
    image = matrix @ right
    norm = image.norm()
    # A weight of zeros has no direction; the old one is kept for when it is no longer zero.
    return torch.where(norm > 0, image / norm, left), right
