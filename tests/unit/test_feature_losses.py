"""Distances of a discriminator's features: by hand, blind to what they should be, one side only."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ganlab.errors import InputError
from ganlab.losses import features
from ganlab.losses.features import feature_matching, learned_similarity
from ganlab.networks.patchgan import GlobalLocal, PatchGAN

LOSSES = [feature_matching, learned_similarity]
SHAPES = ((3, 8, 8), (5, 4, 4), (7,))


def heads(seed=0, count=2, batch=4, shapes=SHAPES, dtype=torch.float64):
    """As discriminators give them: logits, which nothing may depend on, and features."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape):
        return torch.randn(batch, *shape, generator=generator, dtype=dtype)

    logits = torch.full((batch, 1, 2, 2), torch.nan)
    return [(logits, [drawn(*shape) for shape in shapes]) for _ in range(count)]


def by_hand(made, true, layers, weights, *, of_means):
    """In numpy, from the definition, head by head and layer by layer."""
    total = 0.0
    for (_, a), (_, b) in zip(made, true, strict=True):
        for layer, weight in zip(layers, weights, strict=True):
            x, y = a[layer].numpy(), b[layer].numpy()
            if of_means:
                apart = (x.mean(0) - y.mean(0)) ** 2
                total = total + weight * apart.sum() / apart.size
            else:
                apart = ((x - y) ** 2).reshape(len(x), -1)
                total = total + weight * apart.sum(1) / apart.shape[1]
    return total / sum(weights) / len(made)


CHOICES = [((), ()), ((0,), ()), ((-1, 0), ()), ((), (1.0, 0.0, 2.0)), ((1, -1), (0.25, 4.0))]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("layers", "weights"), CHOICES)
@pytest.mark.parametrize("count", [1, 3])
def test_by_hand(loss, layers, weights, count):
    made, true = heads(0, count), heads(1, count)
    taken = layers or (0, 1, 2)
    shares = weights or (1.0,) * len(taken)
    expected = by_hand(made, true, taken, shares, of_means=loss is feature_matching)
    found = loss(made, true, layers, weights)
    assert found.shape == (() if loss is feature_matching else (4,))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(0.01, 100))
def test_zero_for_equal_batches_and_quadratic(loss, seed, scale):
    made, true = heads(seed), heads(seed + 1)
    assert not loss(made, made).any()
    further = [
        (logits, [y + scale * (x - y) for x, y in zip(a, b, strict=True)])
        for (logits, a), (_, b) in zip(made, true, strict=True)
    ]
    torch.testing.assert_close(loss(further, true), scale**2 * loss(made, true))
    torch.testing.assert_close(loss(true, made), loss(made, true))


def permuted(given, order):
    return [(logits[order], [x[order] for x in maps]) for logits, maps in given]


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(4)), seed=st.integers(0, 1000))
def test_only_the_batchs_mean_is_blind_to_a_permutation(order, seed):
    made, true = heads(seed), heads(seed + 1)
    other = permuted(made, order)
    torch.testing.assert_close(feature_matching(other, true), feature_matching(made, true))
    assert feature_matching(permuted(true, order), true) < 1e-25
    similarity = learned_similarity(permuted(true, order), true)
    assert ((similarity > 0.1) == (torch.tensor(order) != torch.arange(4))).all()


def test_matching_keeps_places_apart():
    made, true = heads(count=1, shapes=((2, 4, 4),)), heads(count=1, shapes=((2, 4, 4),))
    made[0][1][0] = made[0][1][0].roll(1, 3)
    assert feature_matching(made, true) > 0.1


@pytest.mark.parametrize("parts", [(1, 3), (2, 2)])
def test_only_learned_similarity_adds_up_over_batches(parts):
    made, true = heads(2), heads(3)
    cuts = [slice(0, parts[0]), slice(parts[0], 4)]
    pieces = [(permuted(made, cut), permuted(true, cut)) for cut in cuts]
    alone = torch.cat([learned_similarity(a, b) for a, b in pieces])
    torch.testing.assert_close(alone, learned_similarity(made, true))
    mean = sum(len(a[0][0]) * feature_matching(a, b) for a, b in pieces) / 4
    assert mean > 1.2 * feature_matching(made, true)
    assert set(features.BATCH_COUPLED) == {feature_matching}


def trainable(given):
    return [(logits, [x.clone().requires_grad_() for x in maps]) for logits, maps in given]


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_reach_the_made_side_only(loss):
    made, true = trainable(heads(0)), trainable(heads(1))
    loss(made, true, (0, -1)).mean().backward()
    for (_, a), (_, b) in zip(made, true, strict=True):
        assert a[0].grad.abs().min() > 0
        assert a[1].grad is None
        assert all(x.grad is None for x in b)
    flat = [x for _, maps in made for x in maps]

    def of(*maps):
        cut = [(None, list(maps[:3])), (None, list(maps[3:]))]
        return loss(cut, true, (), (3.0, 1.0, 0.5))

    assert torch.autograd.gradcheck(of, flat, fast_mode=True)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("judge", [PatchGAN, GlobalLocal])
def test_of_a_discriminator_to_the_image_and_not_to_its_truth(loss, judge):
    torch.manual_seed(0)
    network = judge(3, width=4, layers=2, norm="none").requires_grad_(False)
    hole = torch.zeros(2, 1, 32, 32)
    hole[:, :, 8:20, 8:20] = 1
    condition = hole if judge is GlobalLocal else None
    made, true = (torch.randn(2, 3, 32, 32, requires_grad=True) for _ in range(2))
    loss(network(condition, made), network(condition, true)).sum().backward()
    assert made.grad.abs().sum() > 0
    assert true.grad is None
    assert loss(network(condition, made), network(condition, made)).abs().max() == 0


@pytest.mark.parametrize("loss", LOSSES)
def test_coarse_numbers_are_compared_in_float32(loss):
    made, true = (heads(s, dtype=torch.float32) for s in (0, 1))
    coarse = [
        [(logits, [x.bfloat16() for x in maps]) for logits, maps in given] for given in (made, true)
    ]
    fine = [[(logits, [x.float() for x in maps]) for logits, maps in given] for given in coarse]
    found = loss(*coarse)
    assert found.dtype == torch.float32
    assert torch.equal(found, loss(*fine))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(*fine), found)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layers": (3,)}, r"layers \(3,\) of a head with 3 features"),
        ({"layers": (0, -4)}, r"\(0, -4\)"),
        ({"weights": (1.0,)}, r"weights \(1.0,\) for 3 layers"),
        ({"layers": (0, 1), "weights": (1.0, 1.0, 1.0)}, "for 2 layers"),
        ({"weights": (1.0, -1.0, 1.0)}, "not negative"),
        ({"weights": (0.0, 0.0, 0.0)}, "above 0"),
        ({"weights": (1.0, float("nan"), 1.0)}, "nan"),
        ({"weights": (1.0, float("inf"), 1.0)}, "inf"),
        ({"true": heads(1, 1)}, "2 heads of made and 1 of true"),
        ({"true": heads(1, shapes=SHAPES[:2])}, "cannot be compared"),
        ({"true": heads(1, shapes=((3, 8, 8), (5, 4, 5), (7,)))}, r"\(4, 5, 4, 5\)"),
        ({"made": [], "true": []}, "0 heads"),
        ({"made": heads(0, shapes=()), "true": heads(1, shapes=())}, "with 0 features"),
    ],
)
def test_what_cannot_be_compared_is_refused(loss, change, words):
    given = {"made": heads(0), "true": heads(1), "layers": (), "weights": ()} | change
    with pytest.raises(InputError, match=words):
        loss(*given.values())


def test_nothing_waits_for_the_host(no_waiting):
    with no_waiting():
        for loss in LOSSES:
            loss(heads(0), heads(1), (-1,), (2.0,))
