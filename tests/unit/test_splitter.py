"""The network that parts cloud and ground: two layers, in one pass or one after the other."""

import pytest
import torch
from torch import nn

from ganlab.networks.splitter import CloudSplitter

SHAPE = {"width": 4, "depth": 2, "norm": "channel", "up": "resize", "dropout": 0.0}
orders = pytest.mark.parametrize("order", ["joint", "sequential"])


def splitter(bands=3, order="joint", residual=True, loud=False, **changes):
    torch.manual_seed(3)
    network = CloudSplitter(bands, order=order, residual=residual, **SHAPE | changes).double()
    for parameter in network.parameters():
        if loud:  # at the initial size every output is near 0, and so is every difference
            nn.init.normal_(parameter, 0.0, 0.3)
    return network.eval()


def image(bands=3, height=16, width=16, n=2, seed=0):
    dice = torch.Generator().manual_seed(seed)
    return torch.rand(n, bands, height, width, generator=dice, dtype=torch.float64) * 2 - 1


@orders
@pytest.mark.parametrize("bands", [1, 3, 13])
@pytest.mark.parametrize("size", [(16, 24), (9, 31), (1, 5)])
def test_two_layers_of_any_size(order, bands, size):
    ground, alpha = splitter(bands, order, loud=True)(image(bands, *size))
    assert ground.shape == (2, bands, *size)
    assert alpha.shape == (2, 1, *size)
    assert ((alpha > 0) & (alpha < 1)).all()
    assert (alpha - 0.5).abs().max() > 0.05


@pytest.mark.parametrize("residual", [True, False])
def test_joint_is_one_pass(residual):
    """The last channel is alpha's logit, the others are the ground or what is added to it."""
    network, x = splitter(residual=residual, loud=True), image()
    ground, alpha = network(x)
    made = network.ground(x)
    assert made.shape[1] == 4
    assert torch.allclose(alpha, 1 / (1 + torch.exp(-made[:, 3:])), rtol=1e-12)
    assert torch.equal(ground, made[:, :3] + x if residual else made[:, :3])
    assert network.alpha is None


@pytest.mark.parametrize("residual", [True, False])
def test_sequential_shows_alpha_to_the_second_network(residual):
    network, x = splitter(order="sequential", residual=residual, loud=True), image()
    ground, alpha = network(x)
    assert torch.allclose(alpha, 1 / (1 + torch.exp(-network.alpha(x))), rtol=1e-12)
    made = network.ground(torch.cat([x, alpha], 1))
    assert torch.equal(ground, made + x if residual else made)
    ground.square().sum().backward()  # the ground's loss teaches alpha, too
    assert all(p.grad.abs().sum() > 0 for p in network.alpha.parameters())
    with torch.no_grad():
        network.alpha.last_layer.bias += 3
    assert (network(x)[0] - ground).abs().max() > 1e-3


@orders
def test_the_ground_may_leave_the_range_and_starts_at_the_image(order):
    """A residual network of pix2pix's small weights adds next to nothing."""
    x = 4 * image()
    ground, alpha = splitter(order=order)(x)
    assert 0 < (ground - x).abs().mean() < 0.1
    assert ground.abs().max() > 3
    assert (alpha - 0.5).abs().max() < 0.1


def test_parameters_by_hand():
    # 4x4 convolutions 3 -> 4 and 4 -> 8; 3x3 convolutions 8 -> 4 with a norm, and 8 -> 4 with bias.
    joint = 3 * 4 * 16 + 4 * 8 * 16 + 8 * 4 * 9 + 2 * 4 + (8 * 4 * 9 + 4)
    assert sum(p.numel() for p in splitter().parameters()) == joint == 1292
    first = 3 * 4 * 16 + 4 * 8 * 16 + 8 * 4 * 9 + 2 * 4 + (8 * 1 * 9 + 1)
    second = 4 * 4 * 16 + 4 * 8 * 16 + 8 * 4 * 9 + 2 * 4 + (8 * 3 * 9 + 3)
    assert sum(p.numel() for p in splitter(order="sequential").parameters()) == first + second


@orders
def test_the_last_layer_makes_the_ground(order):
    network, x = splitter(order=order, loud=True), image()
    colour = torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64)
    with torch.no_grad():
        network.last_layer.weight[:3], network.last_layer.bias[:3] = 0, colour
    ground, alpha = network(x)
    assert torch.equal(ground, x + colour.view(-1, 1, 1))
    assert alpha.std() > 1e-3


@orders
@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("up", ["transposed", "resize", "subpixel"])
def test_a_window_with_its_halo_is_the_whole(order, depth, up):
    network = splitter(order=order, loud=True, depth=depth, up=up)
    stride, halo = network.stride, network.halo
    assert stride == 2**depth
    assert halo % stride == 0
    assert halo == network.ground.halo * (2 if order == "sequential" else 1)
    x = image(height=stride, width=2 * halo + 10 * stride, n=1)
    whole = torch.cat(network(x), 1)

    def gap(margin):
        first, last = halo + 3 * stride, halo + 5 * stride
        made = torch.cat(network(x[..., first - margin : last + margin]), 1)
        inner = made[..., margin : margin + last - first]
        return (inner - whole[..., first:last]).abs().max()

    assert whole.std() > 0.1
    assert gap(halo) <= 1e-12
    assert gap(0) > 1e-6  # so the halo mattered
