"""Diversity layers against loops over the papers' equations, alone and before a PatchGAN's head."""

import math

import pytest
import torch
from torch import nn

from ganlab.errors import InputError
from ganlab.networks import receptive_field
from ganlab.networks.blocks import MinibatchDeviation, MinibatchDiscrimination
from ganlab.networks.patchgan import FIELDS, GlobalLocal, PatchGAN, diversify

KINDS = ["deviation", "discrimination"]


@pytest.fixture(autouse=True)
def _same_numbers():
    torch.manual_seed(0)


def layer(kind, channels=3, kernels=2, dims=3):
    if kind == "deviation":
        return MinibatchDeviation()
    return MinibatchDiscrimination(channels, kernels, dims)


def deviation_by_loops(x):
    batch, channels, height, width = x.shape
    total = 0.0
    for c in range(channels):
        for i in range(height):
            for j in range(width):
                values = [float(x[b, c, i, j]) for b in range(batch)]
                mean = sum(values) / batch
                total += math.sqrt(sum((v - mean) ** 2 for v in values) / batch + 1e-8)
    return [[total / (channels * height * width)]] * batch


def discrimination_by_loops(x, weight, kernels, dims):
    batch, channels, height, width = x.shape
    pooled = [
        [sum(x[b, c].flatten().tolist()) / (height * width) for c in range(channels)]
        for b in range(batch)
    ]
    matrices = [
        [
            [
                sum(float(weight[k * dims + d, c]) * pooled[b][c] for c in range(channels))
                for d in range(dims)
            ]
            for k in range(kernels)
        ]
        for b in range(batch)
    ]
    return [
        [
            sum(
                math.exp(
                    -sum(abs(p - q) for p, q in zip(matrices[i][k], matrices[j][k], strict=True))
                )
                for j in range(batch)
                if j != i
            )
            for k in range(kernels)
        ]
        for i in range(batch)
    ]


@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (5, 3, 4, 3), (3, 3, 7, 2)])
@pytest.mark.parametrize("kind", KINDS)
def test_channels_are_those_of_the_paper(kind, shape):
    network, x = layer(kind).double(), torch.randn(shape, dtype=torch.float64)
    y = network(x)
    assert torch.equal(y[:, :3], x)
    assert y.shape == (shape[0], 3 + network.added, *shape[2:])
    if kind == "deviation":
        expected = deviation_by_loops(x)
    else:
        expected = discrimination_by_loops(x, network.rows.weight.detach(), 2, 3)
    expected = torch.tensor(expected, dtype=torch.float64)[:, :, None, None]
    torch.testing.assert_close(y[:, 3:], expected.expand_as(y[:, 3:]), rtol=1e-12, atol=1e-12)


def test_two_samples_by_hand():
    x = torch.tensor([1.0, 4.0]).view(2, 1, 1, 1)
    assert float(MinibatchDeviation()(x)[0, 1]) == pytest.approx(1.5)
    network = MinibatchDiscrimination(1, 2, 2)
    network.rows.weight.data = torch.tensor([[0.1], [-0.2], [0.0], [1.0]])
    expected = torch.tensor([math.exp(-0.9), math.exp(-3)]).expand(2, 2)
    torch.testing.assert_close(network(x)[:, 1:, 0, 0], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_order_within_a_batch_is_not_seen(kind):
    network, x = layer(kind).double(), torch.randn(6, 3, 5, 4, dtype=torch.float64)
    order = torch.randperm(6)
    torch.testing.assert_close(network(x[order]), network(x)[order], rtol=1e-13, atol=1e-13)


def test_equal_samples_and_far_ones():
    x = torch.randn(1, 3, 4, 4).expand(5, 3, 4, 4)
    assert float(MinibatchDeviation()(x)[0, 3, 0, 0]) == pytest.approx(1e-4, rel=1e-3)
    torch.testing.assert_close(layer("discrimination")(x)[:, 3:], torch.full((5, 2, 4, 4), 4.0))
    far = 1e4 * torch.randn(5, 3, 4, 4)
    assert float(MinibatchDeviation()(far)[0, 3, 0, 0]) > 1e3
    assert float(layer("discrimination")(far)[:, 3:].detach().abs().max()) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_and_those_of_derivatives(kind):
    network = layer(kind).double()
    names, values = [], []
    for name, value in network.named_parameters():
        names.append(name)
        values.append(value)
    x = torch.randn(3, 3, 2, 2, dtype=torch.float64, requires_grad=True)

    def function(x, *values):
        return torch.func.functional_call(network, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(function, (x, *values))
    assert torch.autograd.gradgradcheck(function, (x, *values))


@pytest.mark.parametrize("kind", KINDS)
def test_equal_samples_have_finite_derivatives(kind):
    network = layer(kind)
    x = torch.ones(4, 3, 2, 2, requires_grad=True)
    [slope] = torch.autograd.grad(network(x)[:, 3:].sum(), x, create_graph=True)
    assert torch.equal(slope, torch.zeros_like(slope))
    [second] = torch.autograd.grad((slope + 1).square().sum(), x)
    assert second.isfinite().all()


def test_equal_samples_of_float16_have_a_slope():
    """It has no 1e-8, and the root of 0 has no slope."""
    x = torch.ones(4, 3, 2, 2, dtype=torch.float16, requires_grad=True)
    MinibatchDeviation()(x)[:, 3:].sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize("kind", KINDS)
def test_16_bits_are_left_only_for_the_result(kind):
    """Samples that differ by less than 16 bits can count the squares of."""
    network = layer(kind, channels=8)
    x = (3 + 0.02 * torch.randn(16, 8, 6, 6)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        low = network(x)
    assert low.dtype == torch.bfloat16
    high = network.double()(x.double())
    torch.testing.assert_close(low.double(), high, rtol=2**-8, atol=0)
    assert network(x.double()).dtype == torch.float64


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_one_is_refused(kind):
    with pytest.raises(InputError, match="batch of one sample has no diversity"):
        layer(kind)(torch.randn(1, 3, 4, 4))
    network = PatchGAN(3, width=4, layers=1)
    diversify(network, kind)
    with pytest.raises(InputError, match="batch of one sample"):
        network(None, torch.randn(1, 3, 16, 16))


# --- before the head of discriminators


def discriminators():
    yield (
        PatchGAN(3, width=4, norm="channel"),
        (torch.randn(3, 1, 32, 32), torch.randn(3, 2, 32, 32)),
    )
    for local in ("zeroed", "crop", "none"):
        hole = torch.zeros(3, 1, 64, 64)
        hole[:, :, 20:40, 30:45] = 1
        network = GlobalLocal(2, width=4, layers=1, norm="instance", attention=True, local=local)
        yield network, (hole, torch.randn(3, 2, 64, 64))


def patches(network):
    return [m for m in network.modules() if isinstance(m, PatchGAN)]


@pytest.mark.parametrize("kind", KINDS)
def test_old_weights_stay_and_new_ones_are_drawn_like_them(kind):
    for network, inputs in discriminators():
        for m in patches(network):
            m.head.bias.data.fill_(0.3)
        before = {name: value.clone() for name, value in network.state_dict().items()}
        expected = network(*inputs)
        diversify(network, kind)
        after = network.state_dict()
        assert len(patches(network)) == len(expected)
        for name, value in before.items():
            assert torch.equal(
                after[name][:, : value.shape[1]] if value.dim() > 1 else after[name], value
            )
        new = torch.cat(
            [m.head.weight[:, 32 if len(m.layers) > 2 else 8 :].flatten() for m in patches(network)]
        )
        assert new.numel() == sum(16 * m.diversity.added for m in patches(network))
        assert 0.5 * 0.02 < float(new.detach().std()) < 1.6 * 0.02
        for (logits, features), (old, same) in zip(network(*inputs), expected, strict=True):
            assert not torch.equal(logits, old)
            assert all(torch.equal(a, b) for a, b in zip(features, same, strict=True))
        for m in patches(network):
            m.head.weight.data[:, -m.diversity.added :] = 0
        for (logits, _), (old, _) in zip(network(*inputs), expected, strict=True):
            torch.testing.assert_close(logits, old)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_is_judged_by_its_batch(kind):
    """A collapsed batch looks different from a diverse one, by a weight that is learned."""
    network = PatchGAN(3, width=4, layers=1, norm="channel")
    image = torch.randn(4, 3, 16, 16)
    same = image[:1].expand_as(image)
    for diverse in (False, True):
        if diverse:
            diversify(network, kind)
            network.head.weight.data[:, 8:] = 1.0
        [(apart, _)], [(equal, _)] = network(None, image), network(None, same)
        assert bool((apart[0] - equal[0]).abs().max() > 1e-3) is diverse


@pytest.mark.parametrize("kind", KINDS)
def test_all_parts_of_a_diverse_discriminator_learn(kind):
    for network, inputs in discriminators():
        diversify(network, kind)
        sum(logits.square().sum() for logits, _ in network(*inputs)).backward()
        for name, p in network.named_parameters():
            if not name.endswith("attention"):
                assert p.grad is not None, name
        for m in patches(network):
            assert m.head.weight.grad[:, -m.diversity.added :].abs().min() > 0
            assert all(p.grad.abs().max() > 0 for p in m.diversity.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_penalties_differentiate_a_diverse_discriminator_twice(kind):
    """The whole of it in float64 against finite differences of its gradient."""
    network = PatchGAN(1, width=2, layers=1, norm="channel")
    diversify(network, kind)
    network.double()
    for p in network.parameters():
        p.data = 0.5 * torch.randn_like(p)
    names, values = zip(*network.named_parameters(), strict=True)
    image = torch.randn(3, 1, 6, 6, dtype=torch.float64, requires_grad=True)

    def penalty(image, *values):
        named = dict(zip(names, values, strict=True))
        [(logits, _)] = torch.func.functional_call(network, named, (None, image))
        [slope] = torch.autograd.grad(logits.sum(), image, create_graph=True)
        return slope.square().sum()

    assert torch.autograd.gradcheck(penalty, (image, *values), fast_mode=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("field", FIELDS)
def test_field_stride_and_shorthand_stay(kind, field):
    plain, diverse = (PatchGAN.seeing(field, 1, width=2) for _ in range(2))
    diversify(diverse, kind)
    assert diverse.stride == plain.stride
    assert diverse.shorthand == plain.shorthand
    assert receptive_field.by_recurrence(diverse) == field
    assert receptive_field.by_formula(diverse) == field
    if field < 142:
        assert receptive_field.by_gradient(diverse, 1) == field


@pytest.mark.parametrize("kind", KINDS)
def test_layers_take_any_size_and_compile_without_breaks(kind):
    network = PatchGAN(1, width=2, layers=1, norm="channel")
    diversify(network, kind)
    torch.compiler.reset()
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    for size in ((6, 6), (17, 30)):
        image = torch.randn(2, 1, *size)
        [(ours, _)], [(theirs, _)] = compiled(None, image), network(None, image)
        torch.testing.assert_close(ours, theirs)


def test_the_draw_follows_the_seed():
    def drawn(seed):
        torch.manual_seed(seed)
        network = PatchGAN(1, width=2, layers=1)
        diversify(network, "discrimination")
        return torch.cat([p.flatten() for p in network.parameters()])

    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))


def test_what_cannot_be_made_diverse_is_refused():
    with pytest.raises(InputError, match="Conv2d has no PatchGAN"):
        diversify(nn.Conv2d(1, 1, 1), "deviation")
    network = GlobalLocal(1, width=2, layers=1)
    diversify(network, "deviation")
    with pytest.raises(InputError, match="has a diversity layer already"):
        diversify(network, "discrimination")
