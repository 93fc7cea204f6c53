"""Distances between a discriminator's features of made and of true images.

What discriminators give is ``[(logits, features), ...]``, one entry a head; the logits are not
looked at. Features are maps ``(B, C, h, w)`` or vectors ``(B, C)``, and are compared in float32 at
least. Gradients flow to the made image only, and through the discriminator on their way: it is for
the generator to minimize these, never for the discriminator.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ganlab.errors import InputError

Heads = Sequence[tuple[Tensor, Sequence[Tensor]]]


def feature_matching(
    made: Heads, true: Heads, layers: Sequence[int] = (), weights: Sequence[float] = ()
) -> Tensor:
    """Squared distance between the *batch's mean* features: a scalar.

    Salimans et al. 2016, section 3.1: the squared L2 distance, here divided by the number of
    elements, so that weights do not depend on the layers' sizes. The mean is over the batch only,
    and positions stay apart. It asks made images to be like the true ones on average, not each like
    its own truth: it is blind to a permutation of the batch, and it couples the samples, so that
    batches do not add up (see ``BATCH_COUPLED``).

    Args:
        made: heads of the made images.
        true: heads of the true images, of the same shapes.
        layers: which features of each head to take, negative ones from the end; all if empty.
        weights: one for each layer taken, not negative; equal if empty. The loss is the weighted
            mean over layers, and the mean over heads.

    Raises:
        InputError: heads of another number or with other features; a layer that is not there; a
            number of weights that is not that of the layers; negative weights, or none above 0.
    """
    return _mean(lambda a, b: (a.mean(0) - b.mean(0)).square().mean(), made, true, layers, weights)


def learned_similarity(
    made: Heads, true: Heads, layers: Sequence[int] = (), weights: Sequence[float] = ()
) -> Tensor:
    """Mean squared difference of features, image by image: ``(B,)``.

    The learned similarity of Larsen et al. 2016, eq. 7 to 9: the likelihood of the features under
    a normal distribution of variance 1, but for constants. Arguments and errors as for
    :func:`feature_matching`.
    """
    return _mean(lambda a, b: (a - b).square().flatten(1).mean(1), made, true, layers, weights)


BATCH_COUPLED = (feature_matching,)
"""Losses here in which one sample's value depends on the others in its batch."""


def _mean(
    distance: Callable[[Tensor, Tensor], Tensor],
    made: Heads,
    true: Heads,
    layers: Sequence[int],
    weights: Sequence[float],
) -> Tensor:
    """Weighted mean over layers, mean over heads, of distances of features."""
    if len(made) != len(true) or not made:
        raise InputError(
            f"features of {len(made)} heads of made and {len(true)} of true images: give those of "
            "the same discriminator"
        )
    heads = [
        _weighted(distance, a, b, layers, weights)
        for (_, a), (_, b) in zip(made, true, strict=True)
    ]
    return torch.stack(heads).mean(0)


def _weighted(
    distance: Callable[[Tensor, Tensor], Tensor],
    made: Sequence[Tensor],
    true: Sequence[Tensor],
    layers: Sequence[int],
    weights: Sequence[float],
) -> Tensor:
    shapes = [[tuple(x.shape) for x in features] for features in (made, true)]
    if shapes[0] != shapes[1]:
        raise InputError(f"made features of shapes {shapes[0]} cannot be compared to {shapes[1]}")
    taken = layers or range(len(made))
    if not taken or not all(-len(made) <= layer < len(made) for layer in taken):
        raise InputError(
            f"layers {tuple(taken)} of a head with {len(made)} features: count from 0, or back "
            "from -1"
        )
    shares = weights or [1.0] * len(taken)
    if len(shares) != len(taken) or min(shares) < 0 or not 0 < sum(shares) < float("inf"):
        raise InputError(
            f"weights {tuple(shares)} for {len(taken)} layers: give each one, not negative, and "
            "one of them above 0"
        )
    total = sum(shares)
    distances = [
        distance(_wide(made[layer]), _wide(true[layer].detach())) * (share / total)
        for layer, share in zip(taken, shares, strict=True)
    ]
    return torch.stack(distances).sum(0)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
