"""Perceptual and style losses over dictionaries of activations."""

import numpy as np
import pytest
import torch

from ganlab.errors import InputError
from ganlab.losses.perceptual import gram, perceptual, style
from ganlab.networks.features import load_features


def maps(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def two_layers(seed=0):
    return {"near": maps(2, 3, 8, 6, seed=seed), "far": maps(2, 5, 4, 3, seed=seed + 100)}


def test_perceptual_by_hand():
    made = {"a": torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), "b": torch.tensor([[0.0, 6.0]])}
    true = {"a": torch.zeros(1, 1, 2, 2), "b": torch.tensor([[1.0, 1.0]])}
    # Layer a: (1 + 2 + 3 + 4) / 4; layer b, a vector: (1 + 5) / 2.
    assert perceptual(made, true).tolist() == [(2.5 + 3) / 2]


def test_valid_weighs_places_by_their_measured_share():
    made = {"a": torch.tensor([[[[1.0, 2.0]], [[5.0, 7.0]]]]), "b": torch.tensor([[8.0]])}
    true = {name: torch.zeros_like(x) for name, x in made.items()}
    valid = torch.ones(1, 1, 2, 4)
    valid[..., 2:] = torch.tensor([[1.0, 0.0], [0.0, 0.0]])  # a quarter of the right place
    expected = (1 + 5 + (2 + 7) / 4) / (2 * 1.25)
    assert perceptual(made, true, valid).item() == pytest.approx((expected + 8) / 2)
    assert perceptual({"a": made["a"]}, {"a": true["a"]}, 0 * valid).tolist() == [0]
    whole = perceptual(made, true, torch.ones(1, 1, 2, 4))
    torch.testing.assert_close(whole, perceptual(made, true))


def test_a_place_without_measured_pixels_does_not_matter():
    made, true = two_layers(), two_layers(1)
    valid = torch.ones(2, 1, 16, 12, dtype=torch.float64)
    valid[:, :, :8, :6] = 0
    before = perceptual(made, true, valid)
    for x in made.values():
        x[:, :, : x.shape[2] // 2, : x.shape[3] // 2] += 100
    cut = {"near": made["near"], "far": true["far"]}, {"near": true["near"], "far": true["far"]}
    assert not torch.allclose(perceptual(*cut), before)
    made["far"][:, :, :2, 1] = two_layers()["far"][:, :, :2, 1]  # half measured: it counts
    torch.testing.assert_close(perceptual(made, true, valid), before)


def test_gram_by_hand():
    features = torch.tensor([[[[1.0, 2.0]], [[3.0, 5.0]]]])  # two channels, 1 x 2 places
    expected = torch.tensor([[[1 + 4.0, 3 + 10], [3 + 10, 9 + 25]]]) / (2 * 1 * 2)
    torch.testing.assert_close(gram(features), expected)


def test_gram_is_a_sum_over_places():
    features = maps(2, 4, 3, 5)
    expected = torch.zeros(2, 4, 4, dtype=torch.float64)
    for b, i, j, y, x in np.ndindex(2, 4, 4, 3, 5):
        expected[b, i, j] += features[b, i, y, x] * features[b, j, y, x] / (4 * 3 * 5)
    torch.testing.assert_close(gram(features), expected)


def test_style_by_hand():
    made = {"a": torch.tensor([[[[1.0, 2.0]], [[3.0, 5.0]]]]), "b": torch.tensor([[[[3.0]]]])}
    true = {"a": torch.zeros(1, 2, 1, 2), "b": torch.tensor([[[[1.0]]]])}
    # Layer a: (5 + 13 + 13 + 34) / 4, over C^2 = 4 entries; layer b: |9 - 1|.
    assert style(made, true).item() == pytest.approx((65 / 4 / 4 + 8) / 2)


def test_style_leaves_vectors_out():
    made, true = two_layers(), two_layers(1)
    vectors = {"logits": maps(2, 7)}, {"logits": maps(2, 7, seed=1)}
    torch.testing.assert_close(style(made | vectors[0], true | vectors[1]), style(made, true))
    with pytest.raises(InputError, match=r"no layer for a style loss among \['logits'\]"):
        style(*vectors)


@pytest.mark.parametrize("loss", [perceptual, style])
def test_equal_images_have_no_distance_and_samples_do_not_mix(loss):
    made, true = two_layers(), two_layers(1)
    assert loss(made, made).tolist() == [0, 0]
    both = loss(made, true)
    assert both.shape == (2,)
    for i in range(2):
        one = loss({k: v[i : i + 1] for k, v in made.items()}, {k: v[[i]] for k, v in true.items()})
        torch.testing.assert_close(one, both[i : i + 1])
    assert (both[0] - both[1]).abs() > 1e-3


def test_style_is_blind_to_where_and_perceptual_is_not():
    made, true = two_layers(), two_layers(1)
    order = {k: torch.randperm(v[0, 0].numel()) for k, v in made.items()}
    moved = {k: v.flatten(2)[:, :, order[k]].view_as(v) for k, v in made.items()}
    torch.testing.assert_close(style(moved, true), style(made, true))
    assert style(moved, made).max() < 1e-14
    assert perceptual(moved, made).min() > 0.5


@pytest.mark.parametrize("loss", [perceptual, style])
def test_gradients_are_right_and_reach_the_made_image_only(loss):
    true = {name: x.requires_grad_() for name, x in two_layers(1).items()}
    near, far = (x.requires_grad_() for x in two_layers().values())
    valid = (maps(2, 1, 8, 6, seed=5) > 0).double()
    extra = (valid,) if loss is perceptual else ()

    def value(a, b):
        return loss({"near": a, "far": b}, true, *extra)

    assert torch.autograd.gradcheck(value, (near, far))
    value(near, far).sum().backward()
    assert near.grad.abs().sum() > 0
    assert far.grad.abs().sum() > 0
    assert all(x.grad is None for x in true.values())


def test_through_a_network_the_gradient_reaches_the_made_image_only():
    network = load_features(weights="random")
    made, true = (maps(1, 3, 32, 32, seed=s).float().clamp(-1, 1) for s in range(2))
    made.requires_grad_()
    true.requires_grad_()
    (
        perceptual(network(made), network(true)) + style(network(made), network(true))
    ).sum().backward()
    assert made.grad.abs().sum() > 0
    assert true.grad is None


def test_half_precision_sums_in_float32():
    made, true = ({k: (50 * v).bfloat16() for k, v in two_layers(s).items()} for s in range(2))
    for loss in (perceptual, style):
        with torch.autocast("cpu", torch.bfloat16):
            found = loss(made, true)
        expected = loss(*({k: v.double() for k, v in x.items()} for x in (made, true)))
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("loss", [perceptual, style])
def test_other_layers_are_refused(loss):
    with pytest.raises(InputError, match=r"\['far', 'near'\] were given with those of \['near'\]"):
        loss(two_layers(), {"near": two_layers()["near"]})
    with pytest.raises(InputError, match="no layer for a"):
        loss({}, {})
