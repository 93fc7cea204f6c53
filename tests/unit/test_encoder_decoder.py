"""Generators that fill holes: their exact form, what they see, and what reaches what."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ganlab.config import EncoderDecoderConfig
from ganlab.errors import InputError
from ganlab.networks.attention import SelfAttention
from ganlab.networks.encoder_decoder import (
    DCGANAutoencoder,
    EncoderDecoder,
    HoleFiller,
    TwoStage,
)
from ganlab.networks.gated import GatedConv, PartialConv, PlainConv

LAYERS = {"gated": GatedConv, "partial": PartialConv, "plain": PlainConv}
KINDS = [*LAYERS, "dcgan"]
NORMS = ["batch", "instance", "channel", "none"]
CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


@pytest.fixture(autouse=True)
def _same_numbers():
    torch.manual_seed(0)


def shaken(network):
    for p in network.parameters():
        p.data = 0.5 * torch.randn_like(p.data)
    return network


def scene(batch, bands, height, width, share=0.4):
    image = torch.rand(batch, bands, height, width) * 2 - 1
    return image, (torch.rand(batch, 1, height, width) < share).float()


def inputs_of(module, function):
    """What ``module`` is called with while ``function`` runs."""
    seen = []
    handle = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    function()
    handle.remove()
    return seen


def parameters(network):
    return sum(p.numel() for p in network.parameters())


# --- the encoder-decoder


@pytest.mark.parametrize("layer", LAYERS)
def test_coarse_stage_has_seventeen_convolutions(layer):
    network = EncoderDecoder(5, 3, layer=layer, width=8)
    found = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert len(found) == 17
    assert [m for m in network.modules() if isinstance(m, LAYERS[layer])] == list(network.layers)
    assert type(network.last_layer) is nn.Conv2d
    assert found[-1] is network.last_layer
    form = [(m.kernel_size[0], m.stride[0], m.dilation[0]) for m in found]
    plain = (3, 1, 1)
    assert form == [
        *[(5, 1, 1), (3, 2, 1), plain, (3, 2, 1), plain, plain],
        *[(3, 1, 2), (3, 1, 4), (3, 1, 8), (3, 1, 16)],
        *[plain] * 7,
    ]
    halves = 2 if layer == "gated" else 1
    widths = [m.out_channels // (halves if m is not network.last_layer else 1) for m in found]
    assert widths == [8, 16, 16, *[32] * 9, 16, 16, 8, 4, 3]
    assert network.stride == math.prod(m.stride[0] for m in found) == 4
    ups = [m.up for m in network.layers]
    assert [i for i, up in enumerate(ups) if up] == [12, 14]


def test_refinement_has_eighteen_around_self_attention():
    network = EncoderDecoder(5, 3, width=8, attention=True)
    assert sum(isinstance(m, nn.Conv2d) for m in network.modules()) == 18
    [attention] = [m for m in network.modules() if isinstance(m, SelfAttention)]
    image, hole = torch.randn(2, 5, 24, 16), torch.zeros(2, 1, 24, 16)
    [(x, mask)] = inputs_of(attention, lambda: network(image, hole))
    assert x.shape == (2, 32, 6, 4)
    assert mask is None
    index = list(network.layers).index(attention)
    assert network.layers[index - 2].convolution.dilation == (16, 16)


def test_keys_in_holes_can_be_masked():
    network = EncoderDecoder(1, 1, width=2, attention=True, known_keys=True)
    [attention] = [m for m in network.modules() if isinstance(m, SelfAttention)]
    image, hole = scene(1, 1, 10, 9)
    [(x, mask)] = inputs_of(attention, lambda: network(image, hole))
    assert mask.shape == (1, 1, 12, 12)
    assert torch.equal(mask[:, :, :10, :9], hole)
    assert x.shape[2:] == (3, 3)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("norm", NORMS)
def test_first_and_last_layers_have_no_norm(layer, norm):
    network = EncoderDecoder(1, 1, layer=layer, width=2, norm=norm, dilations=())
    free = [i for i, m in enumerate(network.layers) if isinstance(m.norm, nn.Identity)]
    assert free == (list(range(12)) if norm == "none" else [0, 11])


@settings(max_examples=12, deadline=None)
@given(
    height=st.integers(1, 30),
    width=st.integers(1, 30),
    layer=st.sampled_from(KINDS),
    norm=st.sampled_from(NORMS),
    attention=st.booleans(),
)
def test_any_size_equals_padding_by_hand(height, width, layer, norm, attention):
    options = {"layer": layer, "width": 2, "norm": norm, "dilations": (2,), "attention": attention}
    network = shaken(HoleFiller(2, **options)).eval()
    image, hole = scene(2, 2, height, width)
    rows, columns = (
        torch.arange(-(-n // network.stride) * network.stride).clamp(max=n - 1)
        for n in (height, width)
    )
    with torch.no_grad():
        y = network(image, hole)
        large = [t[:, :, rows][:, :, :, columns] for t in (image, hole)]
        padded = network(*large)
    assert y.shape == (2, 2, height, width)
    assert torch.equal(y, padded[:, :, :height, :width])


@pytest.mark.parametrize("content", [9.0, math.nan])
def test_partial_convolutions_never_see_what_is_in_the_hole(content):
    network = shaken(EncoderDecoder(2, 2, layer="partial", width=2, dilations=(2, 4)))
    image, hole = scene(2, 2, 16, 16)
    hole[0] = 1
    spoilt = image.where(hole == 0, content)
    assert torch.equal(network(spoilt, hole), network(image, hole))
    assert network(spoilt, hole).isfinite().all()


@pytest.mark.parametrize("layer", ["gated", "plain", "dcgan"])
def test_the_others_do(layer):
    network = shaken(HoleFiller(2, layer=layer, width=2, dilations=()))
    image, hole = scene(2, 2, 16, 16)
    assert not torch.equal(network(image.where(hole == 0, 0.5), hole), network(image, hole))
    assert not torch.equal(network(image, hole), network(image, 1 - hole))


@pytest.mark.parametrize("layer", LAYERS)
def test_dilations_see_from_afar(layer):
    """An interval of pixels followed from the output back: what is seen, to the pixel."""
    options = {"layer": layer, "width": 1, "norm": "none", "dilations": (2, 4), "tanh": False}
    network = EncoderDecoder(1, 1, **options).double()
    for p in network.parameters():
        p.data = p.data.abs() + 0.1  # nothing may cancel
    image = torch.rand(1, 1, 128, 128).double().requires_grad_()
    network(image, torch.zeros_like(image))[0, 0, 64, 64].backward()
    form = [(5, 1, 1), (3, 2, 1), (3, 1, 1), (3, 2, 1), *[(3, 1, 1)] * 2, (3, 1, 2), (3, 1, 4)]
    form += [(3, 1, 1)] * 2 + [(3, 0.5, 1), (3, 1, 1)] * 2 + [(3, 1, 1)]  # halves are doublings
    low = high = 64
    for kernel, stride, dilation in reversed(form):
        reach = dilation * (kernel // 2)
        if stride < 1:
            low, high = (low - reach) // 2, (high + reach) // 2
        else:
            low, high = low * stride - reach, high * stride + reach
    touched = image.grad[0, 0].nonzero()
    assert touched.min(0).values.tolist() == [low, low]
    assert touched.max(0).values.tolist() == [high, high]


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("norm", ["none", "channel"])
def test_the_signal_starts_alive(layer, norm):
    """At the start the output is neither a constant nor saturated, with and without norms."""
    image, hole = scene(2, 3, 128, 128, share=0.0)
    hole[:, :, 30:70, 40:80] = 1
    image = image * (1 - hole)
    filler = HoleFiller(3, layer=layer, norm=norm, width=16)
    parts = [filler.network.layers[i] for i in range(16)]
    made = []
    for part in parts:
        part.register_forward_hook(
            lambda _, __, y: made.append(y[0] if isinstance(y, tuple) else y)
        )
    with torch.no_grad():
        y = filler(image, hole)
    assert 0.05 < y.std() < 0.9
    for signal in made:
        assert 0.05 < signal.square().mean() < 20


@pytest.mark.parametrize("layer", KINDS)
def test_derivatives(layer):
    network = HoleFiller(1, layer=layer, width=2, norm="channel", dilations=(2,), attention=True)
    shaken(network.double())
    image, hole = (t.double() for t in scene(1, 1, 6, 5))
    image.requires_grad_()
    names, values = zip(*network.named_parameters(), strict=True)

    def function(image, *values):
        named = dict(zip(names, values, strict=True))
        return torch.func.functional_call(network, named, (image, hole))

    assert torch.autograd.gradcheck(function, (image, *values), fast_mode=True)


@pytest.mark.parametrize(("layer", "norm"), list(itertools.product(KINDS, NORMS)))
def test_every_combination_trains(layer, norm):
    """Training mode, channels_last: every parameter gets a gradient."""
    network = TwoStage(
        2,
        coarse={"layer": layer, "norm": norm, "width": 4},
        refinement={"layer": layer, "norm": norm, "width": 4, "dilations": (2,)},
    )
    network = network.to(memory_format=torch.channels_last).train()
    for m in network.modules():
        if isinstance(m, SelfAttention):
            m.gamma.data.fill_(0.5)
    coarse, refined = network(*scene(3, 2, 32, 32))
    (coarse.square().mean() + refined.square().mean()).backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


# --- the DCGAN-style one


@pytest.mark.parametrize(("norm", "kind"), [("batch", nn.BatchNorm2d), ("none", nn.Identity)])
def test_transposed_convolution_norm_leaky_in_that_order(norm, kind):
    network = DCGANAutoencoder(5, 3, width=4, depth=3, norm=norm, dilations=(2, 4))
    assert network.stride == 8
    blocks = [[type(m) for m in block] for block in network.layers]
    down, up = nn.Conv2d, nn.ConvTranspose2d
    assert blocks == [
        [down, nn.Identity, nn.LeakyReLU],
        *[[down, kind, nn.LeakyReLU]] * 4,
        *[[up, kind, nn.LeakyReLU]] * 2,
    ]
    assert type(network.last_layer) is up
    convolutions = [m for m in network.modules() if isinstance(m, CONVOLUTIONS)]
    form = [(m.kernel_size[0], m.stride[0], m.dilation[0]) for m in convolutions]
    assert form == [(4, 2, 1)] * 3 + [(3, 1, 2), (3, 1, 4)] + [(4, 2, 1)] * 3
    assert [m.out_channels for m in convolutions] == [4, 8, 16, 16, 16, 8, 4, 3]
    assert {block[2].negative_slope for block in network.layers} == {0.2}


def test_its_attention_stands_after_the_dilated_layers():
    network = DCGANAutoencoder(5, 3, width=4, depth=3, dilations=(2, 4), attention=True)
    places = [i for i, m in enumerate(network.layers) if isinstance(m, SelfAttention)]
    assert places == [5]
    attention = network.layers[5]
    assert (attention.query.out_features, attention.value.out_features) == (2, 16)


def test_without_norms_its_signal_starts_alive_too():
    for norm in NORMS:
        network = DCGANAutoencoder(5, 3, norm=norm)
        with torch.no_grad():
            assert 0.02 < network(torch.rand(4, 5, 64, 64) * 2 - 1, None).std() < 0.9


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: EncoderDecoder(5, 3, width=0), "width 0"),
        (lambda: EncoderDecoder(5, 3, dilations=(2, 0)), "0"),
        (lambda: DCGANAutoencoder(5, 3, width=0), "width 0"),
        (lambda: DCGANAutoencoder(5, 3, depth=0), "depth 0"),
    ],
)
def test_impossible_shapes_are_refused(make, match):
    with pytest.raises(InputError, match=match):
        make()


# --- one stage


@pytest.mark.parametrize("layer", KINDS)
def test_settings_make_a_filler(layer):
    config = EncoderDecoderConfig(layer=layer, width=4, dilations=(2,))
    network = HoleFiller(4, **vars(config)).eval()
    image, hole = scene(2, 4, 20, 20)
    made = network(image, hole)
    assert made.shape == image.shape
    assert made.abs().max() <= 1
    assert network.stride == (16 if layer == "dcgan" else 4)


def test_a_filler_sees_image_hole_and_ones():
    network = HoleFiller(3, width=2)
    image, hole = scene(2, 3, 8, 8)
    [(x, mask)] = inputs_of(network.network, lambda: network(image, hole))
    assert torch.equal(x, torch.cat([image, hole, torch.ones(2, 1, 8, 8)], 1))
    assert torch.equal(mask, hole)


@pytest.mark.parametrize("layer", KINDS)
def test_the_last_layer_makes_the_image(layer):
    for residual in (False, True):
        network = HoleFiller(2, layer=layer, width=2, residual=residual)
        assert isinstance(network.last_layer, CONVOLUTIONS)
        network.last_layer.weight.data.zero_()
        network.last_layer.bias.data.fill_(1.5)
        image, hole = scene(2, 2, 32, 32)
        expected = image + 1.5 if residual else torch.full_like(image, math.tanh(1.5))
        torch.testing.assert_close(network(image, hole), expected)


@pytest.mark.parametrize("layer", KINDS)
def test_a_residual_filler_starts_near_what_it_is_given(layer):
    network = HoleFiller(3, layer=layer, width=16, norm="channel", residual=True)
    image, hole = scene(2, 3, 64, 64)
    change = (network(image, hole) - image).square().mean().sqrt()
    assert 0.001 < change < 0.15


# --- two stages


def test_the_refinement_sees_the_coarse_image_in_the_holes_alone():
    network = shaken(TwoStage(3, coarse={"width": 2}, refinement={"width": 2}))
    image, hole = scene(2, 3, 12, 12)
    made = []
    [(seen, mask, *_)] = inputs_of(network.refinement, lambda: made.extend(network(image, hole)))
    coarse, refined = made
    inside = hole.bool().expand_as(image)
    assert torch.equal(seen[inside], coarse[inside])
    assert torch.equal(seen[~inside], image[~inside])
    assert torch.equal(mask, hole)
    assert not torch.equal(refined, coarse)


def test_the_refined_image_teaches_the_coarse_stage_through_the_holes():
    network = shaken(TwoStage(2, coarse={"width": 2}, refinement={"width": 2}))
    for p in network.parameters():
        p.data *= 0.5
    image, hole = scene(1, 2, 12, 12)
    coarse, refined = network(image, hole)
    coarse.retain_grad()
    refined.square().sum().backward()
    assert coarse.grad.where(hole > 0, 0).any()
    assert not coarse.grad.where(hole == 0, 0).any()


def test_two_stages_are_as_published():
    """17 and 18 gated convolutions, attention in the second stage unless declined."""
    network = TwoStage(3, coarse={"width": 4}, refinement={"width": 8})
    counts = [
        sum(isinstance(m, nn.Conv2d) for m in stage.modules())
        for stage in (network.coarse, network.refinement)
    ]
    assert counts == [17, 18]
    attentions = [m for m in network.modules() if isinstance(m, SelfAttention)]
    assert [m.value.in_features for m in attentions] == [32]
    assert network.last_layer is network.refinement.last_layer
    assert network.stride == 4
    declined = TwoStage(3, coarse={"layer": "dcgan"}, refinement={"attention": False})
    assert not any(isinstance(m, SelfAttention) for m in declined.modules())
    assert declined.stride == 16


def test_sizes_at_the_default_width():
    """Counted by hand, layer by layer: weights and biases of both halves, then two per norm."""
    c, halves = 32, 2
    pairs = [(1, 2), (2, 2), (2, 4), *[(4, 4)] * 8, (4, 2), (2, 2), (2, 1)]
    total = halves * c * (5 * 25 + 1) + halves * (c // 2) * (9 * c + 1) + 3 * (9 * c // 2 + 1)
    for source, out in pairs:
        total += halves * c * out * (9 * c * source + 1) + 2 * c * out
    assert parameters(HoleFiller(3)) == total == 2_898_899
    extra = halves * 4 * c * (9 * 4 * c + 1) + 2 * 4 * c
    attention = 2 * 16 * (128 + 1) + 128 * (128 + 1) + 1
    assert parameters(HoleFiller(3, attention=True)) == total + extra + attention
    assert parameters(TwoStage(3, coarse={}, refinement={})) == 6_113_863


# --- both


@pytest.mark.parametrize("layer", KINDS)
def test_bfloat16_and_layout_change_only_the_rounding(layer):
    network = HoleFiller(3, layer=layer, width=8, norm="channel", attention=True)
    image, hole = scene(2, 3, 32, 32)
    exact = network(image, hole)
    network.to(memory_format=torch.channels_last)
    packed = image.to(memory_format=torch.channels_last)
    torch.testing.assert_close(network(packed, hole), exact, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        coarse = network(packed, hole)
    assert coarse.dtype == torch.bfloat16
    torch.testing.assert_close(coarse.float(), exact, rtol=0.1, atol=0.1)


@pytest.mark.parametrize(("coarse", "refinement"), [("partial", "gated"), ("plain", "dcgan")])
def test_graphs_have_no_breaks(coarse, refinement):
    shape = {"width": 2, "dilations": ()}
    stages = [{"layer": layer, **shape} for layer in (coarse, refinement)]
    network = TwoStage(1, coarse=stages[0], refinement=stages[1]).eval()
    inputs = scene(1, 1, 15, 15)
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled), torch.no_grad():
            torch.compiler.reset()
            compiled = torch.compile(network, backend="eager", fullgraph=True)
            for ours, theirs in zip(compiled(*inputs), network(*inputs), strict=True):
                torch.testing.assert_close(ours, theirs)
