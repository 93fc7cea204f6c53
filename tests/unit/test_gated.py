"""Gated, partial and plain convolutions against loops, formulas and finite differences."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from ganlab.errors import InputError
from ganlab.networks.blocks import initialize
from ganlab.networks.gated import (
    ELU_POWER,
    GATE_POWER,
    GatedConv,
    PartialConv,
    PlainConv,
    draw,
)

KINDS = [PlainConv, GatedConv, PartialConv]
OPTIONS = [
    {},
    {"kernel": 1},
    {"kernel": 5},
    {"stride": 2},
    {"dilation": 3},
    {"up": True},
    {"activation": False},
    {"norm": "batch"},
    {"norm": "instance"},
    {"norm": "channel"},
    {"kernel": 5, "stride": 2, "dilation": 2, "up": True, "norm": "channel"},
]
NAMES = ["-".join(f"{key}={value}" for key, value in o.items()) or "default" for o in OPTIONS]


@pytest.fixture(autouse=True)
def _same_numbers():
    torch.manual_seed(0)


def shaken(layer):
    for p in layer.parameters():
        p.data = torch.randn_like(p.data)
    return layer


def mask(*shape, share=0.5):
    return (torch.rand(*shape) < share).to(torch.get_default_dtype())


def apply(layer, x, known):
    return layer(x, known)[0] if isinstance(layer, PartialConv) else layer(x)


# --- gated


@pytest.mark.parametrize("options", OPTIONS, ids=NAMES)
def test_open_gates_are_a_plain_convolution(options):
    gated, plain = GatedConv(3, 4, **options).double(), PlainConv(3, 4, **options).double()
    shaken(plain)
    gated.norm.load_state_dict(plain.norm.state_dict())
    weight, bias = gated.convolution.weight.data, gated.convolution.bias.data
    weight[:4], bias[:4] = plain.convolution.weight.data, plain.convolution.bias.data
    weight[4:], bias[4:] = 0.0, 50.0
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(gated(x), plain(x), rtol=1e-14, atol=1e-14)
    bias[4:] = -50.0
    assert gated(x).abs().max() < 1e-18


def test_gates_multiply_after_the_activation():
    layer = shaken(GatedConv(3, 2, norm="channel").double())
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    weight, bias = layer.convolution.weight, layer.convolution.bias
    feature = F.conv2d(x, weight[:2], bias[:2], padding=1)
    gate = F.conv2d(x, weight[2:], bias[2:], padding=1)
    normed = layer.norm(feature)
    expected = torch.where(normed > 0, normed, normed.exp() - 1) / (1 + torch.exp(-gate))
    torch.testing.assert_close(layer(x), expected)


def test_up_repeats_pixels_first():
    x = torch.randn(1, 2, 3, 4)
    for kind in KINDS:
        flat = shaken(kind(2, 3))
        double = kind(2, 3, up=True)
        double.load_state_dict(flat.state_dict())
        repeated = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        known, small = torch.ones(1, 1, 6, 8), torch.ones(1, 1, 3, 4)
        torch.testing.assert_close(apply(double, x, small), apply(flat, repeated, known))


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    kernel=st.sampled_from([1, 3, 5]),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 4),
    up=st.booleans(),
    kind=st.sampled_from(KINDS),
)
def test_the_size_stays(height, width, kernel, stride, dilation, up, kind):
    layer = kind(1, 2, kernel, stride=stride, dilation=dilation, up=up)
    y = apply(layer, torch.randn(1, 1, height, width), torch.ones(1, 1, height, width))
    factor = 2 if up else 1
    sizes = [math.ceil(factor * size / stride) for size in (height, width)]
    assert y.shape == (1, 2, *sizes)


def test_even_kernels_are_refused():
    for kind in KINDS:
        with pytest.raises(InputError, match="width 4"):
            kind(1, 1, 4)


@pytest.mark.parametrize("options", OPTIONS, ids=NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_derivatives(kind, options):
    """Of the input and of every parameter, against finite differences in float64."""
    layer = shaken(kind(2, 3, **options).double())
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    known = mask(2, 1, 4, 4).double()
    names, values = zip(*layer.named_parameters(), strict=True)

    def function(x, *values):
        inputs = (x, known) if kind is PartialConv else (x,)
        out = torch.func.functional_call(layer, dict(zip(names, values, strict=True)), inputs)
        return out[0] if kind is PartialConv else out

    assert torch.autograd.gradcheck(function, (x, *values))


# --- partial


def test_partial_convolution_by_hand():
    layer = PartialConv(1, 1, activation=False)
    layer.convolution.weight.data.fill_(1.0)
    layer.bias.data.fill_(0.5)
    x = torch.tensor([[1.0, 2, 3, 0], [4, 5, 6, 0], [7, 8, 9, 0], [0, 0, 0, 0]])[None, None]
    known = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]])[None, None]
    y, grown = layer(x, known)
    # 1 alone of nine pixels, 1 and 7 together, 7 alone, and nothing in the last two columns.
    expected = torch.tensor(
        [[9.5, 9.5, 0, 0], [36.5, 36.5, 0, 0], [63.5, 63.5, 0, 0], [63.5, 63.5, 0, 0]]
    )
    assert torch.equal(y[0, 0], expected)
    assert torch.equal(grown[0, 0], (expected > 0).float())


def by_loops(x, known, weight, bias, stride, dilation):
    """Equations 1 and 2 of Liu et al. (2018) pixel by pixel; outside the image is unknown."""
    kernel, (height, width) = weight.shape[-1], x.shape[1:]
    rows, columns = -(-height // stride), -(-width // stride)
    y = torch.zeros(len(weight), rows, columns, dtype=x.dtype)
    grown = torch.zeros(rows, columns, dtype=x.dtype)
    for row in range(rows):
        for column in range(columns):
            total, count = torch.zeros(len(weight), dtype=x.dtype), 0
            for i in range(kernel):
                for j in range(kernel):
                    r = stride * row + dilation * (i - kernel // 2)
                    c = stride * column + dilation * (j - kernel // 2)
                    if 0 <= r < height and 0 <= c < width and known[r, c]:
                        total += weight[:, :, i, j] @ x[:, r, c]
                        count += 1
            if count:
                y[:, row, column] = total * kernel**2 / count + bias
                grown[row, column] = 1
    return y, grown


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    kernel=st.sampled_from([1, 3, 5]),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 3),
    share=st.floats(0, 1),
)
def test_partial_convolution_by_loops(seed, height, width, kernel, stride, dilation, share):
    torch.manual_seed(seed)
    options = {"stride": stride, "dilation": dilation, "activation": False}
    layer = shaken(PartialConv(2, 3, kernel, **options).double())
    x = torch.randn(1, 2, height, width, dtype=torch.float64)
    known = mask(1, 1, height, width, share=share).double()
    y, grown = layer(x, known)
    weight, bias = layer.convolution.weight.data, layer.bias.data
    expected, after = by_loops(x[0], known[0, 0], weight, bias, stride, dilation)
    torch.testing.assert_close(y[0], expected)
    assert torch.equal(grown[0, 0], after)


@pytest.mark.parametrize("options", OPTIONS, ids=NAMES)
@pytest.mark.parametrize("content", [7.0, math.inf, math.nan])
def test_what_is_in_a_hole_never_leaks(options, content):
    layer = shaken(PartialConv(2, 3, **options))
    known = mask(2, 1, 8, 8)
    clean = torch.randn(2, 2, 8, 8).where(known > 0, 0)
    spoilt = clean.where(known > 0, content).requires_grad_()
    y, grown = layer(spoilt, known)
    expected, after = layer(clean, known)
    assert torch.equal(y, expected)
    assert torch.equal(grown, after)
    y.square().sum().backward()
    assert spoilt.grad.isfinite().all()
    assert not spoilt.grad.where(known == 0, 0).any()
    assert spoilt.grad.where(known > 0, 0).any()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_nothing_known_gives_nothing():
    y, grown = shaken(PartialConv(2, 3))(
        torch.full((1, 2, 5, 5), math.nan), torch.zeros(1, 1, 5, 5)
    )
    assert not y.any()
    assert not grown.any()


def test_known_grows_by_half_a_kernel():
    known = torch.zeros(1, 1, 15, 15)
    known[0, 0, 7, 7] = 1
    _, grown = PartialConv(1, 1, 5)(torch.zeros_like(known), known)
    expected = F.pad(torch.ones(5, 5), (5, 5, 5, 5))
    assert torch.equal(grown[0, 0], expected)


def test_a_known_image_is_convolved_as_usual_inside():
    partial, plain = shaken(PartialConv(2, 3)), PlainConv(2, 3)
    plain.convolution.weight.data = partial.convolution.weight.data
    plain.convolution.bias.data = partial.bias.data
    x = torch.randn(1, 2, 6, 6)
    y, _ = partial(x, torch.ones(1, 1, 6, 6))
    inside = (..., slice(1, -1), slice(1, -1))
    torch.testing.assert_close(y[inside], plain(x)[inside])


@given(share=st.floats(0.05, 1), seed=st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_an_average_of_a_constant_is_that_constant(share, seed):
    """The point of the scaling: a hole does not darken its surroundings, nor does the border."""
    torch.manual_seed(seed)
    layer = PartialConv(1, 1, activation=False)
    layer.convolution.weight.data.fill_(1 / 9)
    known = mask(1, 1, 8, 8, share=share)
    y, grown = layer(torch.full((1, 1, 8, 8), 3.0), known)
    torch.testing.assert_close(y, 3.0 * grown)


# --- initialization


def test_powers_are_the_integrals_that_they_claim():
    z = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    density = torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    assert torch.trapezoid(F.elu(z) ** 2 * density, z).item() == pytest.approx(ELU_POWER, abs=5e-4)
    gate = torch.trapezoid(z.sigmoid() ** 2 * density, z).item()
    assert gate == pytest.approx(GATE_POWER, abs=5e-4)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_drawn_weights_give_variance_one(kind, stride):
    layer = kind(32, 64, 4, stride, 1)
    draw(layer, power=4.0)
    assert not layer.bias.any()
    inner = layer(2 * torch.randn(8, 32, 16, 16))[:, :, 3:-3, 3:-3]
    assert inner.var().item() == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_signals_live_through_deep_stacks_without_norm(kind):
    """12 layers keep the power of the signal; drawn as for pix2pix they would lose it."""
    x, known = torch.randn(1, 32, 40, 40), torch.ones(1, 1, 40, 40)
    powers = {}
    for drawn in (True, False):
        y = x * kind.power**0.5
        with torch.no_grad():
            for _ in range(12):
                layer = kind(32, 32)
                if not drawn:
                    initialize(layer)
                y = apply(layer, y, known)
        powers[drawn] = float(y[..., 12:-12, 12:-12].square().mean())
    assert 0.3 < powers[True] / kind.power < 3
    assert powers[False] < 1e-6


# --- precision and layout


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_and_layout_change_only_the_rounding(kind):
    layer = kind(8, 8, norm="channel")
    x, known = torch.randn(2, 8, 16, 16), mask(2, 1, 16, 16)
    exact = apply(layer, x, known)
    layer.to(memory_format=torch.channels_last)
    packed = x.to(memory_format=torch.channels_last)
    same = apply(layer, packed, known)
    assert same.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(same, exact, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        coarse = apply(layer, packed, known)
    assert coarse.dtype == torch.bfloat16
    torch.testing.assert_close(coarse.float(), exact, rtol=0.05, atol=0.05)
