"""The network that makes finer pixels: where it starts, how it grows, how far it sees."""

import pytest
import torch
from torch import nn

from ganlab.errors import InputError
from ganlab.networks.super_resolver import SuperResolver
from ganlab.resolution import enlarge

SHAPE = {"width": 4, "depth": 2, "norm": "channel", "up": "resize", "dropout": 0.0}
LAST = ("subpixel", "resize", "transposed")
lasts = pytest.mark.parametrize("last", LAST)


def resolver(bands=3, out=None, loud=False, **changes):
    torch.manual_seed(3)
    network = SuperResolver(bands, out or bands, **SHAPE | changes)
    for parameter in network.parameters():
        if loud:  # at the initial size every output is near 0, and so is every difference
            nn.init.normal_(parameter, 0.0, 0.3)
    return network.eval()


def image(bands=3, height=16, width=16, n=2, seed=0, dtype=torch.float32):
    dice = torch.Generator().manual_seed(seed)
    return (torch.rand(n, bands, height, width, generator=dice) * 2 - 1).to(dtype)


@lasts
@pytest.mark.parametrize("factor", [1, 2, 4, 8])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("size", [(8, 12), (9, 7), (1, 2)])
def test_factor_times_any_size(last, factor, residual, size):
    network = resolver(last=last, factor=factor, residual=residual, loud=True)
    made = network(image(3, *size))
    assert made.shape == (2, 3, factor * size[0], factor * size[1])
    assert network.stride == 4  # in pixels of the input, whatever the factor


@pytest.mark.parametrize("factor", [0, -2, 3, 6, 12])
def test_factors_that_are_no_powers_of_two(factor):
    with pytest.raises(InputError, match=f"factor {factor}: expected a power of two"):
        resolver(factor=factor)


@lasts
@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize("norm", ["channel", "batch", "none"])
def test_it_starts_as_the_bicubic_enlargement(last, factor, norm):
    """Bit for bit; so does every step that learns nothing."""
    x = image(height=13, width=10)
    made = resolver(last=last, factor=factor, norm=norm)(x)
    assert torch.equal(made, enlarge(x, factor))
    other = resolver(last=last, factor=factor, norm=norm, residual=False)(x)
    assert (made - other).abs().max() > 0.3


@lasts
def test_from_its_start_it_learns_in_all_layers(last):
    """The first step moves the last layer alone, the second one all others."""
    network, x = resolver(last=last), image()
    truth = enlarge(x, 2) + 0.3 * image(height=32, width=32, seed=1)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)

    def step():
        optimizer.zero_grad()
        (network(x) - truth).square().mean().backward()
        moved = {n for n, p in network.named_parameters() if p.grad.abs().sum() > 0}
        optimizer.step()
        return moved

    names = {id(p): n for n, p in network.named_parameters()}
    assert step() == {names[id(p)] for p in network.last_layer.parameters()}
    assert step() == set(names.values())


@lasts
@pytest.mark.parametrize(("bands", "out"), [(3, 1), (2, 4)])
def test_other_bands_start_at_their_mean(last, bands, out):
    x = image(bands)
    network = resolver(bands, out, last=last)
    expected = enlarge(x.double().mean(1, keepdim=True), 2).expand(-1, out, -1, -1)
    assert (network(x) - expected).abs().max() < 1e-6
    with torch.no_grad():
        weights = torch.arange(out * bands).view(out, bands) / 7
        network.mixture.weight[:] = weights[..., None, None]
        network.mixture.bias[:] = 0.25
    expected = torch.einsum("ob,nbyx->noyx", weights, enlarge(x, 2)) + 0.25
    assert (network(x) - expected).abs().max() < 1e-5
    assert resolver(3, 3, last=last).mixture is None
    assert resolver(bands, out, last=last, residual=False).mixture is None


@lasts
@pytest.mark.parametrize("factor", [1, 2, 4])
def test_without_residual_tanh_bounds(last, factor):
    network, x = resolver(last=last, factor=factor, residual=False, loud=True), image()
    made = network(x)
    assert made.abs().max() <= 1
    assert torch.equal(made, torch.tanh(network.stages(network.body(x))))
    assert made.std() > 0.1
    free = resolver(last=last, factor=max(factor, 2), loud=True)(x)
    assert free.abs().max() > 1


def test_an_autoencoder_is_not_shown_its_answer():
    """Factor 1 would be solved by adding nothing to the input."""
    for last in LAST:
        network, x = resolver(last=last, factor=1, residual=True), image()
        assert not network.residual
        assert network.last_layer.weight.abs().max() > 0
        assert network(x).abs().max() < 0.1 < x.abs().max()


@lasts
@pytest.mark.parametrize("factor", [1, 2, 4])
def test_the_last_layer_makes_the_image(last, factor):
    network = resolver(3, 2, last=last, factor=factor, loud=True)
    kind = nn.ConvTranspose2d if last == "transposed" and factor > 1 else nn.Conv2d
    assert type(network.last_layer) is kind
    with torch.no_grad():
        network.last_layer.weight.zero_()
        network.last_layer.bias[:] = torch.tensor([0.1, -0.3])
        start = network.mixture(enlarge(image(), factor)) if factor > 1 else 0
        made = network(image())
    bias = torch.tensor([0.1, -0.3]).view(-1, 1, 1).expand(2, 2, 16 * factor, 16 * factor)
    expected = bias + start if factor > 1 else torch.tanh(bias)
    assert (made - expected).abs().max() < 1e-6


def test_parameters_by_hand():
    # 4x4 convolutions 3 -> 4 and 4 -> 8; 3x3 convolutions 8 -> 4 with a norm, and 8 -> 4 with bias.
    body = 3 * 4 * 16 + 4 * 8 * 16 + 8 * 4 * 9 + 2 * 4 + (8 * 4 * 9 + 4)
    end = 4 * 3 * 9 + 3
    stage = {"subpixel": 4 * 16 * 9 + 16, "resize": 4 * 4 * 9 + 4, "transposed": 4 * 4 * 16 + 4}

    def count(**options):
        return sum(p.numel() for p in resolver(**options).parameters())

    for last in LAST:
        assert count(last=last, factor=1) == body + end
    for last in ("subpixel", "resize"):
        assert count(last=last, factor=4) == body + 2 * stage[last] + end
    # The seed's one more transposed convolution makes the image itself.
    assert count(last="transposed", factor=4) == body + stage["transposed"] + (4 * 3 * 16 + 3)
    assert count(last="subpixel", out=1) == body + stage["subpixel"] + (4 * 9 + 1) + (3 + 1)


@lasts
@pytest.mark.parametrize("factor", [1, 2, 4, 8])
@pytest.mark.parametrize(("up", "depth"), [("transposed", 1), ("resize", 2), ("subpixel", 2)])
def test_a_window_with_its_halo_is_the_whole(last, factor, up, depth):
    network = resolver(last=last, factor=factor, loud=True, up=up, depth=depth).double()
    stride, halo = network.stride, network.halo
    assert halo % stride == 0
    assert halo <= network.body.halo + max(stride, 4)
    x = image(height=stride, width=2 * halo + 10 * stride, n=1, dtype=torch.float64)
    whole = network(x)

    def gap(margin):
        first, last = halo + 3 * stride, halo + 5 * stride
        made = network(x[..., first - margin : last + margin])
        inner = made[..., factor * margin : factor * (margin + last - first)]
        return (inner - whole[..., factor * first : factor * last]).abs().max()

    assert whole.std() > 0.1
    assert gap(halo) <= 1e-12
    assert gap(0) > 1e-6  # so the halo mattered
