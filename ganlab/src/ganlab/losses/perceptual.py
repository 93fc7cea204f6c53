"""Distances between activations of a made and a true image.

Activations come as ``{layer: tensor}``, as a feature network gives them
(:func:`ganlab.networks.features.load_features`): maps ``(B, C, h, w)`` or vectors ``(B, C)``.
Gradients flow to the made image only.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from ganlab.errors import InputError


def perceptual(
    made: Mapping[str, Tensor], true: Mapping[str, Tensor], valid: Tensor | None = None
) -> Tensor:
    """Mean absolute difference of activations, averaged over the layers: ``(B,)``.

    The term of Liu et al. 2018, eq. 3, divided by the number of layers, so that its weight does
    not depend on their choice; Johnson et al. 2016, eq. 2, square the differences.

    Args:
        made: activations of the made image.
        true: activations of the true image, the same layers.
        valid: ``(B, 1, H, W)``, 1 = measured. A place of a map weighs as much as its share of
            measured pixels, a vector weighs as if all were. None: all are.

    Raises:
        InputError: the layers differ, or there are none.
    """
    return _mean_over_layers(
        [_distance(a, b, valid) for a, b in _pairs(made, true)], "perceptual", made
    )


def gram(features: Tensor) -> Tensor:
    """Which channels are active together, wherever it is: ``(B, C, C)`` in at least float32.

    The Gram matrix of the maps ``(B, C, h, w)``, divided by ``C * h * w`` (Gatys et al. 2016,
    eq. 3; normalized as in Johnson et al. 2016, section 3.2).
    """
    flat = _wide(features).flatten(2)
    # A product of many terms, of which differences are taken: too fine for half precision.
    with torch.autocast(features.device.type, enabled=False):
        return flat @ flat.transpose(1, 2) / (flat.shape[1] * flat.shape[2])


def style(made: Mapping[str, Tensor], true: Mapping[str, Tensor]) -> Tensor:
    """Mean absolute difference of Gram matrices, averaged over the layers: ``(B,)``.

    Liu et al. 2018, eq. 4, divided by the number of layers. Blind to where a texture is. Layers
    that are vectors have no Gram matrix and are left out. Arguments as for :func:`perceptual`.

    Raises:
        InputError: the layers differ, or none is a map.
    """
    distances = [
        (gram(a) - gram(b)).abs().mean((1, 2)) for a, b in _pairs(made, true) if a.ndim == 4
    ]
    return _mean_over_layers(distances, "style", made)


def _pairs(made: Mapping[str, Tensor], true: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    if set(made) != set(true):
        raise InputError(
            f"activations of layers {sorted(made)} were given with those of {sorted(true)}; give "
            "the same layers of both images"
        )
    return [(made[name], true[name].detach()) for name in made]


def _distance(made: Tensor, true: Tensor, valid: Tensor | None) -> Tensor:
    difference = (_wide(made) - _wide(true)).abs()
    if valid is None or difference.ndim == 2:
        return difference.flatten(1).mean(1)
    weight = F.interpolate(valid.to(difference.dtype), difference.shape[2:], mode="area")
    area = weight.sum((1, 2, 3)) * difference.shape[1]
    return (difference * weight).sum((1, 2, 3)) / torch.where(area > 0, area, 1)


def _mean_over_layers(distances: list[Tensor], name: str, made: Mapping[str, Tensor]) -> Tensor:
    if not distances:
        raise InputError(f"no layer for a {name} loss among {sorted(made)}; ask for maps (B,C,h,w)")
    return torch.stack(distances).mean(0)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
