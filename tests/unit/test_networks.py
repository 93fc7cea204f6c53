"""Networks: exact sizes, what each layer sees, and that nothing depends on layout or mode."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from ganlab.errors import InputError
from ganlab.networks.blocks import (
    ChannelNorm,
    InstanceNorm,
    ResidualBlock,
    SubPixel,
    initialize,
    normalization,
    upsampling,
)
from ganlab.networks.patchgan import PatchGAN
from ganlab.networks.unet import UNet

NORMS = ["batch", "instance", "channel", "none"]
UPS = ["transposed", "resize", "subpixel"]
BLOCKS = ["plain", "residual"]


@pytest.fixture(autouse=True)
def _same_numbers():
    torch.manual_seed(0)


def parameters(network):
    return sum(p.numel() for p in network.parameters())


def gigaflops(network, *inputs):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(*inputs)
    return counter.get_total_flops()


def shaken(network, seed=0):
    """Parameters far from their initial ones, so that every one of them matters."""
    generator = torch.Generator().manual_seed(seed)
    for p in network.parameters():
        p.data = 0.5 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return network


# --- blocks


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_channel_norm_is_layer_norm_over_channels(layout):
    norm = shaken(ChannelNorm(7))
    reference = nn.LayerNorm(7)
    reference.weight.data, reference.bias.data = norm.weight.data, norm.bias.data
    x = (3 + 2 * torch.randn(2, 7, 5, 6)).to(memory_format=layout)
    expected = reference(x.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2)
    torch.testing.assert_close(norm(x), expected)


def test_channel_norm_ignores_other_pixels():
    norm = shaken(ChannelNorm(4))
    x = torch.randn(1, 4, 3, 3)
    other = x.clone()
    other[:, :, 0, 0] += 10
    changed = (norm(x) != norm(other)).any(1)[0]
    assert changed.nonzero().tolist() == [[0, 0]]


def test_channel_norm_derivatives():
    norm = shaken(ChannelNorm(3).double())
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(norm, x)
    assert torch.autograd.gradgradcheck(norm, x)


def test_channel_norm_keeps_dtype_and_layout_under_autocast():
    norm = shaken(ChannelNorm(8))
    x = torch.randn(2, 8, 4, 4).bfloat16().to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(x)
    assert y.dtype == torch.bfloat16
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y.float(), norm(x.float()), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("kind", ["instance", "channel", "none"])
def test_norms_accept_one_pixel_in_training(kind):
    norm = normalization(kind, 3).train()
    x = torch.randn(2, 3, 1, 1)
    assert norm(x).isfinite().all()
    if kind == "instance":  # nothing to normalize by: the pixel must survive
        shaken(norm)
        torch.testing.assert_close(
            norm(x), x * norm.weight[:, None, None] + norm.bias[:, None, None]
        )


def test_instance_norm_statistics_are_those_of_one_band_of_one_sample():
    x = 5 + 3 * torch.randn(2, 3, 8, 8)
    norm = InstanceNorm(3)
    y = norm(x)
    expected = (x - x.mean((2, 3), keepdim=True)) / x.std((2, 3), keepdim=True, correction=0)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(norm.eval()(x), y)


def test_upsampling_doubles():
    for kind in UPS:
        assert upsampling(kind, 3, 5)(torch.randn(2, 3, 4, 6)).shape == (2, 5, 8, 12)


def test_resize_is_nearest_then_convolution():
    layer = upsampling("resize", 2, 3)
    x = torch.randn(1, 2, 3, 4)
    repeated = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(
        layer(x), F.conv2d(repeated, layer[1].weight, layer[1].bias, padding=1)
    )


def test_subpixel_starts_without_checkerboard():
    layer = SubPixel(3, 2)
    x = torch.randn(1, 3, 4, 4)

    def roughness():
        y = layer(x).detach()
        return max(
            float((y[:, :, i::2, j::2] - y[:, :, ::2, ::2]).abs().max())
            for i, j in itertools.product((0, 1), repeat=2)
        )

    assert roughness() > 0.1
    initialize(layer)
    assert roughness() < 1e-6


def test_initialization():
    network = nn.Sequential(nn.Conv2d(16, 64, 3), ChannelNorm(2000), nn.ConvTranspose2d(64, 16, 4))
    shaken(network)
    initialize(network)
    for layer, mean, count in zip(network, (0, 1, 0), (9216, 2000, 16384), strict=True):
        assert layer.weight.numel() == count
        assert abs(float(layer.weight.detach().mean()) - mean) < 4 * 0.02 / count**0.5
        assert float(layer.weight.detach().std()) == pytest.approx(0.02, rel=4 / (2 * count) ** 0.5)
        assert not layer.bias.any()


def test_residual_block_adds_to_its_input():
    block = ResidualBlock(4, "none")
    x = torch.randn(2, 4, 5, 5)
    assert not torch.equal(block(x), x)
    for p in block.parameters():
        p.data.zero_()
    assert torch.equal(block(x), x)


# --- U-Net


def test_canonical_unet():
    network = UNet(3, 3).eval()
    assert parameters(network) == 54_413_955
    encoder = [m.out_channels for m in network.down.modules() if isinstance(m, nn.Conv2d)]
    assert encoder == [64, 128, 256, 512, 512, 512, 512, 512]
    decoder = [m for m in network.up.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert [m.in_channels for m in decoder] == [512, 1024, 1024, 1024, 1024, 512, 256, 128]
    assert [m.out_channels for m in decoder] == [512, 512, 512, 512, 256, 128, 64, 3]
    with_dropout = [any(isinstance(m, nn.Dropout) for m in level) for level in network.up]
    assert with_dropout == [True] * 3 + [False] * 5
    with_bias = [
        m for m in [*network.down.modules(), *decoder] if getattr(m, "bias", None) is not None
    ]
    assert [m for m in with_bias if not isinstance(m, nn.BatchNorm2d)] == [network.last_layer]
    assert network.stride == 256
    x = torch.randn(1, 3, 256, 256)
    # Two operations for a multiplication with its addition: 12.10 GFLOP.
    assert gigaflops(network, x) == 12_096_372_736
    assert network(x).abs().max() < 1


@pytest.mark.parametrize("norm", ["instance", "channel"])
def test_norms_with_scale_and_shift_cost_the_same(norm):
    def size(kind):
        return parameters(UNet(3, 3, norm=kind, width=8)), parameters(PatchGAN(6, norm=kind))

    assert size(norm) == size("batch")


@pytest.mark.parametrize(("norm", "up"), list(itertools.product(NORMS, UPS)))
def test_where_residual_unets_have_biases_and_norms(norm, up):
    network = UNet(2, 3, width=4, depth=3, norm=norm, up=up, block="residual")
    weighty = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
    assert len(weighty) == 6 + 2 * 5
    # A norm makes a bias superfluous; the first level and the bottleneck have none.
    free = [
        m
        for level in (network.down[0], network.down[-1])
        for block in level
        if isinstance(block, ResidualBlock)
        for m in block.layers
        if isinstance(m, nn.Conv2d)
    ]
    with_bias = [m for m in weighty if m.bias is not None]
    assert with_bias == (weighty if norm == "none" else [*free, network.last_layer])
    kind = type(normalization(norm, 1))
    norms = [sum(isinstance(m, kind) for m in level.modules()) for level in network.down]
    assert norms == ([2, 2, 2] if norm == "none" else [0, 3, 0])


@settings(max_examples=12, deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    depth=st.integers(1, 4),
    norm=st.sampled_from(NORMS),
    block=st.sampled_from(BLOCKS),
    up=st.sampled_from(UPS),
)
def test_any_size_equals_padding_by_hand(height, width, depth, norm, block, up):
    network = UNet(2, 3, width=4, depth=depth, norm=norm, block=block, up=up).eval()
    shaken(network)
    x = torch.randn(2, 2, height, width)
    rows = torch.arange(-(-height // network.stride) * network.stride).clamp(max=height - 1)
    columns = torch.arange(-(-width // network.stride) * network.stride).clamp(max=width - 1)
    with torch.no_grad():
        y = network(x)
        padded = network(x[:, :, rows][:, :, :, columns])
    assert y.shape == (2, 3, height, width)
    assert torch.equal(y, padded[:, :, :height, :width])


@pytest.mark.parametrize(("norm", "up", "block"), list(itertools.product(NORMS, UPS, BLOCKS)))
def test_every_combination_trains(norm, up, block):
    """Training mode, bottleneck of one pixel, channels_last: every parameter gets a gradient."""
    network = UNet(2, 3, width=8, depth=3, norm=norm, up=up, block=block, tanh=False)
    network = shaken(network).to(memory_format=torch.channels_last).train()
    network(torch.randn(3, 2, 8, 8)).square().mean().backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_skips_preserve_position():
    """With the way through the deeper levels cut off, one pixel only reaches its surroundings."""
    network = shaken(UNet(1, 1, width=4, depth=4, norm="channel", dropout=0)).eval()
    for p in network.up[:-1].parameters():
        p.data.zero_()
    x = torch.zeros(1, 1, 32, 32)
    point = x.clone()
    point[0, 0, 9, 20] = 5
    with torch.no_grad():
        changed = (network(point) != network(x))[0, 0].nonzero()
    assert len(changed) > 0
    assert (changed - torch.tensor([9, 20])).abs().max() <= 4


def test_skips_carry_every_level():
    network = shaken(UNet(1, 1, width=2, depth=4, norm="none", dropout=0)).eval()
    x = torch.randn(1, 1, 16, 16)
    before = network(x)
    for up in network.up[1:]:  # the second half of the input channels is the encoder's
        weight = up[1].weight
        kept = weight.data.clone()
        weight.data[weight.shape[0] // 2 :] = 0
        assert not torch.equal(network(x), before)
        weight.data = kept


@pytest.mark.parametrize(("up", "block"), list(itertools.product(UPS, BLOCKS)))
def test_halo_is_enough_and_one_stride_less_is_not(up, block):
    network = UNet(1, 1, width=4, depth=2, norm="channel", up=up, block=block).double().eval()
    shaken(network)
    stride, halo = network.stride, network.halo
    assert halo % stride == 0
    window = slice(halo + 2 * stride, halo + 4 * stride)
    side = window.stop + window.start
    scene = torch.randn(1, 1, side, side, dtype=torch.float64)

    def error(context):
        wide = slice(window.start - context, window.stop + context)
        inner = slice(context, context + 2 * stride)
        with torch.no_grad():
            tile = network(scene[:, :, wide, wide])[:, :, inner, inner]
            whole = network(scene)[:, :, window, window]
        return float((tile - whole).abs().max())

    assert error(halo) < 1e-12
    assert error(halo - stride) > 1e-8


def test_halo_of_plain_networks_is_two_strides():
    for depth, up in itertools.product((3, 5, 8), ("transposed", "resize")):
        network = UNet(1, 1, width=1, depth=depth, up=up)
        assert network.halo == 2 * network.stride


def test_dropout_can_stay_on_alone():
    network = UNet(1, 1, width=4, depth=4, norm="batch").eval()
    x = torch.randn(2, 1, 16, 16)
    assert torch.equal(network(x), network(x))
    network.keep_dropout()
    network.eval()  # must not end it
    statistics = [b.clone() for b in network.buffers()]
    assert not torch.equal(network(x), network(x))
    assert all(torch.equal(a, b) for a, b in zip(statistics, network.buffers(), strict=True))
    network.keep_dropout(False)
    assert torch.equal(network(x), network(x))


def test_linear_output():
    bounded = shaken(UNet(1, 1, width=4, depth=2, norm="none")).eval()
    linear = UNet(1, 1, width=4, depth=2, norm="none", tanh=False).eval()
    linear.load_state_dict(bounded.state_dict())
    x = torch.randn(1, 1, 8, 8)
    assert linear(x).abs().max() > 1
    torch.testing.assert_close(bounded(x), linear(x).tanh())


@pytest.mark.parametrize("up", UPS)
def test_last_layer_makes_the_output(up):
    network = UNet(1, 2, width=4, depth=2, up=up)
    assert isinstance(network.last_layer, (nn.Conv2d, nn.ConvTranspose2d))
    network.last_layer.weight.data.zero_()
    network.last_layer.bias.data.fill_(0.5)
    expected = torch.full((1, 2, 4, 4), 0.5).tanh()
    torch.testing.assert_close(network(torch.randn(1, 1, 4, 4)), expected)


# --- PatchGAN


def test_canonical_patchgan():
    network = PatchGAN(6).eval()
    assert parameters(network) == 2_768_705
    condition, image = torch.randn(2, 1, 3, 256, 256)
    assert gigaflops(network, condition, image) == 6_394_281_984  # 6.39 GFLOP
    [(logits, features)] = network(condition, image)
    assert logits.shape == (1, 1, 30, 30)
    shapes = [tuple(f.shape[1:]) for f in features]
    assert shapes == [(64, 128, 128), (128, 64, 64), (256, 32, 32), (512, 31, 31)]
    for feature in features:  # activations, so mostly shrunk where negative
        assert feature.min() > -0.25 * feature.max()


def test_patchgan_sees_condition_and_image():
    network = shaken(PatchGAN(3, width=2, layers=1, norm="none"))
    condition, image = torch.randn(2, 2, 16, 16), torch.randn(2, 1, 16, 16)
    [(logits, _)] = network(condition, image)
    [(joined, _)] = network(None, torch.cat([condition, image], 1))
    assert torch.equal(logits, joined)
    assert not torch.equal(network(condition + 1, image)[0][0], logits)
    assert not torch.equal(network(condition, image + 1)[0][0], logits)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_smallest_image(layers):
    network = PatchGAN(1, width=2, layers=layers)
    smallest = 3 * 2**layers
    [(logits, _)] = network(None, torch.randn(2, 1, smallest, smallest))
    assert logits.shape == (2, 1, 1, 1)
    with pytest.raises(InputError, match=f"{smallest} are needed"):
        network(None, torch.randn(2, 1, smallest, smallest - 1))


def test_impossible_shapes_are_refused():
    with pytest.raises(InputError, match="depth 0"):
        UNet(3, 3, depth=0)
    with pytest.raises(InputError, match="0 layers"):
        PatchGAN(3, layers=0)


# --- both


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("make", ["unet", "patchgan"])
def test_second_derivatives(make, norm):
    """Gradient penalties differentiate twice: compared with finite differences in float64."""
    if make == "unet":
        network = UNet(1, 1, width=2, depth=2, norm=norm, block="residual", dropout=0)
        inputs = torch.randn(2, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    else:
        network = PatchGAN(1, width=2, layers=1, norm=norm)
        inputs = torch.randn(2, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    shaken(network.double())

    def penalty(x):
        out = network(x) if make == "unet" else network(None, x)[0][0]
        (gradient,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        return gradient.square().sum()

    weight = next(network.parameters())
    (derivative,) = torch.autograd.grad(penalty(inputs), weight)
    index, step = (0, 0, 1, 2), 1e-6
    values = []
    for sign in (1, -1):
        weight.data[index] += sign * step
        values.append(float(penalty(inputs).detach()))
        weight.data[index] -= sign * step
    assert derivative[index] != 0
    assert float(derivative[index]) == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_bfloat16_and_layout_change_only_the_rounding(norm):
    generator = UNet(3, 3, width=8, depth=3, norm=norm, dropout=0)
    discriminator = PatchGAN(6, width=8, layers=2, norm=norm)
    x = torch.randn(2, 3, 32, 32)
    exact = generator(x)
    judged = discriminator(x, exact)[0][0]
    for network in (generator, discriminator):
        network.to(memory_format=torch.channels_last)
    packed = x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(generator(packed), exact, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        coarse = generator(packed)
        coarse_judged = discriminator(packed, coarse)[0][0]
    assert coarse.dtype == coarse_judged.dtype == torch.bfloat16
    torch.testing.assert_close(coarse.float(), exact, rtol=0.1, atol=0.05)
    torch.testing.assert_close(coarse_judged.float(), judged, rtol=0.1, atol=0.05)


def test_graphs_have_no_breaks():
    """torch.compile sees each network as one graph, with and without autocast."""
    generator = UNet(1, 1, width=2, depth=2, norm="channel")
    discriminator = PatchGAN(2, width=2, layers=1, norm="channel")
    x = torch.randn(1, 1, 15, 15)
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled), torch.no_grad():
            for network, inputs in ((generator.eval(), (x,)), (discriminator, (x, x))):
                torch.compiler.reset()
                compiled = torch.compile(network, backend="eager", fullgraph=True)
                torch.testing.assert_close(compiled(*inputs), network(*inputs))
