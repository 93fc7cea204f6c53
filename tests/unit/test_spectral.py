"""Largest singular values against the decomposition itself."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ganlab.errors import InputError
from ganlab.networks.patchgan import GlobalLocal, PatchGAN
from ganlab.stabilize.spectral import SpectralRegularization, normalize


class Mixed(nn.Module):
    """One layer of each kind, in float64, and weights that are none of these."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.convolution = nn.Conv2d(3, 5, 4, 2, 1)
        self.transposed = nn.ConvTranspose2d(5, 2, 3)
        self.linear = nn.Linear(8, 6)
        self.norm = nn.BatchNorm2d(5)
        self.scale = nn.Parameter(torch.ones(7, 7))
        self.double()


def matrices(network):
    """By index, not by the library's reshaping: rows are outputs."""
    found = []
    for layer in (network.convolution, network.transposed, network.linear):
        weight, kind = layer.weight, type(layer)
        if "Transpose" in kind.__name__:  # (in, out, k, k)
            rows = [weight[:, out].reshape(-1) for out in range(weight.shape[1])]
        else:
            rows = [weight[out].reshape(-1) for out in range(weight.shape[0])]
        found.append(torch.stack(rows))
    return found


def sigmas(network):
    return [torch.linalg.svdvals(matrix)[0] for matrix in matrices(network)]


def settled(network, weight=1.0, steps=300):
    term = SpectralRegularization(network, weight)
    for _ in range(steps):
        term()
    return term


# Regularization


def test_it_is_half_the_sum_of_squared_singular_values():
    network = Mixed()
    term = settled(network)
    expected = sum(sigma.square() for sigma in sigmas(network)) / 2
    found = term()
    assert found.shape == ()
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-10)
    assert (term.name, term.weight) == ("spectral", 1.0)


def test_its_gradient_is_that_through_the_decomposition():
    network = Mixed()
    term = settled(network)
    weights = [network.convolution.weight, network.transposed.weight, network.linear.weight]
    ours = torch.autograd.grad(term(), weights)
    theirs = torch.autograd.grad(sum(s.square() for s in sigmas(network)) / 2, weights)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
        assert float(one.norm()) > 0.1
    term().backward()
    assert network.linear.bias.grad is None
    assert network.scale.grad is None
    assert network.norm.weight.grad is None


def test_the_iteration_converges_as_the_power_method_does():
    """The error of sigma falls with (second / first)^2 twice a step, from below."""
    network = nn.Sequential(nn.Linear(30, 20, bias=False)).double()
    values = torch.cat([torch.tensor([2.0, 1.9]), torch.linspace(1, 0.1, 18)]).double()
    generator = torch.Generator().manual_seed(0)
    left, right = (
        torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0]
        for n in (20, 30)
    )
    network[0].weight.data = left @ torch.diag(values) @ right[:20]
    term = SpectralRegularization(network, 1.0)
    errors = [2 - math.sqrt(2 * float(term().detach())) for _ in range(60)]
    assert all(a > b > 0 for a, b in itertools.pairwise(errors))
    rate = (errors[59] / errors[49]) ** (1 / 10)
    # The squared share of the second direction falls with (s2 / s1)^4 a step (both sides).
    assert rate == pytest.approx((1.9 / 2) ** 4, rel=0.02)


def test_it_follows_weights_that_move():
    """Under its own pull alone, the hardest case: the first sigmas become equal, and change places.

    One step a call then lags by some percent, always from below, and catches up at rest.
    """
    network = Mixed()
    term = settled(network)
    adam = torch.optim.Adam(network.parameters(), 2e-4)
    before = [float(s.detach()) for s in sigmas(network)]
    for _ in range(200):
        loss = term()
        exact = float(sum(s.square() for s in sigmas(network)).detach()) / 2
        assert 0.92 * exact < float(loss.detach()) < exact * (1 + 1e-12)
        adam.zero_grad()
        loss.backward()
        adam.step()
    after = [float(s.detach()) for s in sigmas(network)]
    assert all(0.6 * a < b < 0.9 * a for a, b in zip(before, after, strict=True))
    for _ in range(200):
        loss = term()
    exact = sum(s**2 for s in after) / 2
    assert float(loss.detach()) == pytest.approx(exact, rel=2e-3)


def test_resumed_it_goes_on_bit_for_bit():
    network, other = Mixed(), Mixed()
    term = SpectralRegularization(network, 1.0)
    for _ in range(3):
        term()
    state = term.state_dict()
    on = [float(term().detach()) for _ in range(3)]
    again = SpectralRegularization(other, 1.0)
    assert float(again().detach()) != on[0]
    again.load_state_dict(state)
    assert [float(again().detach()) for _ in range(3)] == on
    again.load_state_dict(state)  # the state was not worked on
    assert float(again().detach()) == on[0]
    with pytest.raises(InputError, match="resume with the same discriminator"):
        SpectralRegularization(nn.Linear(2, 3), 1.0).load_state_dict(state)


def test_its_start_does_not_touch_the_generator():
    network = Mixed()
    torch.manual_seed(1)
    first = SpectralRegularization(network, 1.0)
    drawn = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(3))
    torch.manual_seed(2)
    assert torch.equal(first(), SpectralRegularization(network, 1.0)())


def test_weights_of_zeros_are_passed_over_and_found_again():
    network = nn.Linear(4, 3).double()
    network.weight.data.zero_()
    term = SpectralRegularization(network, 1.0)
    value = term()
    value.backward()
    assert float(value.detach()) == 0
    assert bool(network.weight.grad.isfinite().all())
    network.weight.data.copy_(
        torch.diag(torch.tensor([1.0, 3, 2]).double()) @ torch.eye(3, 4).double()
    )
    for _ in range(60):
        value = term()
    assert float(value.detach()) == pytest.approx(4.5, rel=1e-9)


def test_autocast_and_other_types_of_weights():
    network = PatchGAN(3, width=4, layers=2)
    term = settled(network, steps=50)
    state, plain = term.state_dict(), term()
    term.load_state_dict(state)
    with torch.autocast("cpu", torch.bfloat16):
        inside = term()
    assert inside.dtype == torch.float32
    assert torch.equal(plain, inside)
    network.double()  # as after a move: the vectors follow the weights
    assert float(term().detach()) == pytest.approx(float(plain.detach()), rel=1e-3)
    assert term().dtype == torch.float64


def test_it_does_not_wait_for_the_device(no_waiting):
    term = SpectralRegularization(Mixed(), 1.0)
    with no_waiting():
        term().backward()


def test_what_it_cannot_work_with_is_refused():
    with pytest.raises(InputError, match="expected at least 0"):
        SpectralRegularization(Mixed(), -0.1)
    with pytest.raises(InputError, match="BatchNorm2d has no convolution"):
        SpectralRegularization(nn.BatchNorm2d(3), 1.0)
    network = Mixed()
    normalize(network)
    with pytest.raises(InputError, match="choose one"):
        SpectralRegularization(network, 1.0)


# Normalization


def test_normalized_layers_have_sigma_one():
    network = Mixed()
    biases = [network.convolution.bias.clone(), network.linear.bias.clone()]
    plain = [matrix.detach().clone() for matrix in matrices(network)]
    normalize(network)
    network.train()
    for _ in range(200):
        network.convolution.weight, network.transposed.weight, network.linear.weight  # noqa: B018
    network.eval()
    for sigma, matrix, before in zip(sigmas(network), matrices(network), plain, strict=True):
        assert float(sigma.detach()) == pytest.approx(1, rel=1e-6)
        # The same weight but for a factor.
        first = torch.linalg.svdvals(before)[0]
        torch.testing.assert_close(matrix, before / first, rtol=1e-6, atol=1e-9)
    assert torch.equal(network.convolution.bias, biases[0])
    assert torch.equal(network.linear.bias, biases[1])
    assert not hasattr(network.norm, "parametrizations")


def test_twice_is_once():
    network = PatchGAN(3, width=4, layers=2, attention=True)
    normalize(network)
    keys = list(network.state_dict())
    normalize(network)
    assert list(network.state_dict()) == keys
    vectors = [key for key in keys if key.endswith("0._u")]
    assert len(vectors) == 4 + 3  # convolutions, and the three maps of the attention


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("local", ["zeroed", "crop"])
def test_a_discriminator_trains_with_it(precision, local):
    torch.manual_seed(0)
    network = GlobalLocal(2, width=8, layers=2, local=local, attention=True)
    normalize(network)
    adam = torch.optim.Adam(network.parameters(), 1e-3)
    hole, image = torch.zeros(2, 1, 32, 32), torch.randn(2, 2, 32, 32)
    hole[:, :, 4:20, 6:18] = 1
    for _ in range(20):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            heads = network(hole, image)
        loss = sum(F.softplus(logits.float()).mean() for logits, _ in heads)
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert all(bool(logits.isfinite().all()) for logits, _ in heads)
    assert all(
        bool(weight.grad.isfinite().all())
        for weight in network.parameters()
        if weight.grad is not None
    )
    # The iteration lags behind weights that move (7 % here), and catches up when they rest.
    for _ in range(60):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            network(hole, image)
    network.eval()
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            sigma = torch.linalg.svdvals(layer.weight.detach().flatten(1))[0]
            assert float(sigma) == pytest.approx(1, rel=0.02 if precision == "bf16" else 0.005)


@pytest.mark.parametrize(("kernel", "stride"), [(4, 2), (4, 1), (3, 1), (3, 2), (2, 2)])
def test_the_norm_of_a_convolution_lies_between_sigma_and_a_multiple(kernel, stride):
    """What the module's docstring says: the matrix bounds the map from images to images."""
    torch.manual_seed(kernel)
    layer = nn.Conv2d(2, 3, kernel, stride, kernel // 2, bias=False).double()
    shape = (2, 8, 8)
    whole = torch.eye(math.prod(shape)).double().view(-1, *shape)
    operator = layer(whole).flatten(1)  # the row of each pixel
    norm = float(torch.linalg.svdvals(operator.detach())[0])
    sigma = float(torch.linalg.svdvals(layer.weight.detach().flatten(1))[0])
    overlap = math.ceil(kernel / stride)
    assert sigma * (1 - 1e-9) <= norm <= overlap * sigma * (1 + 1e-9)
    # Patches that do not overlap: equal; those that do: the sigma says too little.
    assert (norm == pytest.approx(sigma, rel=1e-9)) == (overlap == 1)
    # Where all patches agree the image is stretched k / stride times as much as a patch.
    layer.weight.data.fill_(1.0)
    whole = torch.eye(2 * 40).double().view(-1, 2, 40, 1).expand(-1, -1, -1, 40) / math.sqrt(40)
    flat = (
        layer(torch.ones(1, 2, 60, 60).double()).norm() / torch.ones(1, 2, 60, 60).double().norm()
    )
    sigma = float(torch.linalg.svdvals(layer.weight.detach().flatten(1))[0])
    assert float(flat.detach()) > 0.9 * kernel / stride * sigma
