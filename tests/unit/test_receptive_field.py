"""Receptive fields: three ways that agree, on every network here and on random stacks."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from ganlab.errors import InputError
from ganlab.networks.blocks import Dropout, SubPixel, normalization, upsampling
from ganlab.networks.encoder_decoder import DCGANAutoencoder, EncoderDecoder
from ganlab.networks.patchgan import GlobalLocal, PatchGAN
from ganlab.networks.receptive_field import (
    Layer,
    by_formula,
    by_gradient,
    by_recurrence,
    layers,
)
from ganlab.networks.unet import UNet

NAMED = {
    16: "C64-C128",
    34: "C64-C128-C256",
    70: "C64-C128-C256-C512",
    142: "C64-C128-C256-C512-C512",
    286: "C64-C128-C256-C512-C512-C512",
}


def three(network, channels, **options):
    gradient = by_gradient(network, channels, **options)
    return by_recurrence(network), by_formula(network), gradient


# --- PatchGAN


def test_seventy_three_times():
    assert three(PatchGAN(6, width=8), 6) == (70, 70, 70)


@pytest.mark.parametrize("norm", ["batch", "instance", "channel", "none"])
@pytest.mark.parametrize("field", NAMED)
def test_every_named_patchgan_sees_what_its_name_says(field, norm):
    network = PatchGAN.seeing(field, 3, width=2, norm=norm)
    assert three(network, 3) == (field, field, field)
    assert network.shorthand == NAMED[field].replace("64-C", "2-C").replace("128", "4").replace(
        "256", "8"
    ).replace("512", "16")


@pytest.mark.parametrize(("field", "shorthand"), NAMED.items())
def test_names_and_shorthands_are_those_of_the_paper(field, shorthand):
    with torch.device("meta"):
        network = PatchGAN.from_shorthand(shorthand, 6)
    assert by_recurrence(network) == by_formula(network) == field
    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    strides = [layer.stride[0] for layer in convolutions]
    assert strides == [2] * (len(convolutions) - 2) + [1, 1]
    assert [f"C{layer.out_channels}" for layer in convolutions[:-1]] == shorthand.split("-")


@settings(max_examples=30, deadline=None)
@given(width=st.integers(1, 9), layers=st.integers(1, 6), attention=st.booleans())
def test_shorthand_round_trip(width, layers, attention):
    network = PatchGAN(2, width=width, layers=layers, attention=attention, norm="none")
    again = PatchGAN.from_shorthand(network.shorthand, 2, attention=attention, norm="none")
    shapes = [{key: value.shape for key, value in n.state_dict().items()} for n in (network, again)]
    assert shapes[0] == shapes[1]
    assert again.shorthand == network.shorthand


def test_shorthand_may_hold_spaces_and_other_arguments_pass():
    network = PatchGAN.from_shorthand(" C8-C16 -C32- C64", 4, norm="none")
    assert network.shorthand == "C8-C16-C32-C64"
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())
    assert PatchGAN.seeing(34, 4, width=8).shorthand == "C8-C16-C32"


@pytest.mark.parametrize("shorthand", ["", "C64", "64-128", "C64-D128", "C64--C128", "C0-C0", "c1"])
def test_what_is_no_shorthand_is_refused(shorthand):
    with pytest.raises(InputError, match="two or more layers in the form C64-C128-C256-C512"):
        PatchGAN.from_shorthand(shorthand, 3)


def test_other_widths_are_named_with_what_can_be_built():
    message = "64, 128, 512 channels; .* eight times: C64-C128-C256"
    with pytest.raises(InputError, match=message):
        PatchGAN.from_shorthand("C64-C128-C512", 3)
    with pytest.raises(InputError, match="C4-C8-C16-C32-C32"):
        PatchGAN.from_shorthand("C4-C8-C16-C32-C64", 3)


def test_a_field_without_a_name_is_refused():
    with pytest.raises(InputError, match="sees 71 pixels; choose 16, 34, 70, 142, 286"):
        PatchGAN.seeing(71, 3)


def test_each_judge_of_a_hole():
    network = GlobalLocal(1, width=2, layers=2)
    assert three(network.whole, 2) == three(network.part, 2) == (34, 34, 34)


# --- generators


@pytest.mark.parametrize("up", ["transposed", "resize", "subpixel"])
@pytest.mark.parametrize("block", ["plain", "residual"])
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_unet(up, block, depth):
    norm = ["channel", "batch", "instance", "none"][depth - 1]
    network = UNet(2, 3, width=1, depth=depth, up=up, block=block, norm=norm)
    network.keep_dropout()
    one, other, third = three(network, 2)
    assert one == other == third


@pytest.mark.parametrize("up", ["transposed", "resize", "subpixel"])
@pytest.mark.parametrize("block", ["plain", "residual"])
@pytest.mark.parametrize("depth", [1, 2, 5, 8])
def test_the_unet_follows_its_own_pixels_alike(up, block, depth):
    """The halo of ``UNet`` comes from its own arithmetic, for one stride of output pixels."""
    network = UNet(1, 1, width=1, depth=depth, up=up, block=block)
    low, high = 0, network.stride - 1
    for layer in reversed(layers(network)):
        low, high = layer.seen(low, high)
    reach = max(-low, high - network.stride + 1)
    assert network.halo - network.stride < reach <= network.halo
    assert by_recurrence(network) == by_formula(network) <= high - low + 1


def test_canonical_unet():
    with torch.device("meta"):
        network = UNet(3, 3)
    assert by_recurrence(network) == by_formula(network) == 1278


@pytest.mark.parametrize("layer", ["plain", "gated", "partial"])
def test_up_sampling_inside_the_librarys_own_blocks(layer):
    network = EncoderDecoder(1, 1, layer=layer, width=1, dilations=(2, 3))

    def run(network, image):
        return network(image, torch.zeros_like(image))

    one, other, third = three(network, 1, run=run)
    assert one == other == third > 100
    network = DCGANAutoencoder(1, 1, width=1, depth=2, dilations=(2,))
    one, other, third = three(network, 1, run=run)
    assert one == other == third > 18


# --- any stack


KINDS = ["convolution", "max", "mean", "pad", "transposed", "nearest", "bilinear", "shuffle", "sub"]


@st.composite
def stacks(draw):
    """Up to five layers of one channel, and up-samplings among them."""
    found, channels = [], 1
    for _ in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from(KINDS))
        kernel, stride = draw(st.integers(1, 4)), draw(st.integers(1, 3))
        padding, dilation = draw(st.integers(0, kernel // 2)), draw(st.integers(1, 3))
        if kind == "convolution":
            found.append(nn.Conv2d(1, 1, kernel, stride, padding, dilation))
        elif kind == "max":
            found.append(nn.MaxPool2d(kernel, stride, padding, dilation))
        elif kind == "mean":
            found.append(nn.AvgPool2d(kernel, stride, padding))
        elif kind == "transposed":
            stride = min(stride, kernel)
            more = draw(st.integers(0, stride - 1))
            found.append(nn.ConvTranspose2d(1, 1, kernel, stride, padding, more))
        elif kind == "nearest":
            found.append(nn.Upsample(scale_factor=stride))
        elif kind == "bilinear":
            found.append(nn.Upsample(scale_factor=float(stride), mode="bilinear"))
        elif kind == "shuffle":
            found += [nn.Conv2d(1, stride**2, 1), nn.PixelShuffle(stride)]
        elif kind == "sub":
            found.append(SubPixel(1, 1))
        else:
            found += [nn.ReflectionPad2d(kernel // 2), nn.LeakyReLU(0.2)]
        if draw(st.booleans()):
            kind = draw(st.sampled_from(["batch", "instance", "channel"]))
            found += [normalization(kind, channels), nn.ReLU(), Dropout(0.5)]
    return nn.Sequential(*found)


@settings(max_examples=150, deadline=None)
@given(network=stacks())
def test_three_ways_agree_on_random_stacks(network):
    field = by_recurrence(network)
    assume(field < 150)
    assert three(network, 1) == (field, field, field)


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.lists(
        st.tuples(st.integers(1, 7), st.integers(1, 4), st.integers(0, 3), st.integers(1, 3)),
        min_size=1,
        max_size=8,
    )
)
def test_without_up_sampling_it_is_the_closed_sum(shapes):
    """``1 + sum_l d_l (k_l - 1) prod_{i<l} s_i`` (Araujo et al. 2019, eq. 2)."""
    network = nn.Sequential(*[nn.Conv2d(1, 1, k, s, p, d) for k, s, p, d in shapes])
    strides = torch.tensor([1] + [s for _, s, _, _ in shapes]).cumprod(0).tolist()
    closed = 1 + sum(d * (k - 1) * j for (k, _, _, d), j in zip(shapes, strides, strict=False))
    assert by_recurrence(network) == by_formula(network) == closed


def test_by_hand():
    def field(*stack):
        one, other, third = three(nn.Sequential(*stack), 1)
        assert one == other == third
        return one

    assert field(nn.Conv2d(1, 1, 1)) == 1
    assert field(nn.Conv2d(1, 1, 3, dilation=2), nn.Conv2d(1, 1, 3)) == 7
    assert field(nn.Conv2d(1, 1, 4, dilation=2, padding="same")) == 7
    assert field(nn.MaxPool2d(2), nn.AvgPool2d(3)) == 6
    assert field(nn.PixelUnshuffle(3), nn.Conv2d(9, 1, 2)) == 6
    assert field(nn.ConvTranspose2d(1, 1, 4, 2, 1)) == 2
    assert field(nn.ConvTranspose2d(1, 1, 3, 2)) == 2  # one pixel or two, by turns
    assert field(nn.Upsample(scale_factor=2), nn.Conv2d(1, 1, 2)) == 2
    # Two pixels of the large grid: padding decides whether they come from one small pixel.
    halved = nn.Conv2d(1, 1, 2, 2)
    assert field(nn.Upsample(scale_factor=2), halved) == 1
    assert field(nn.Upsample(scale_factor=2), nn.ZeroPad2d(1), halved) == 2
    assert field(nn.Upsample(scale_factor=2), nn.Conv2d(1, 1, 2, 2, padding=1)) == 2
    assert field(nn.Upsample(scale_factor=2), nn.Conv2d(1, 1, 3, padding="same"), halved) == 3


def test_a_layer_used_twice_counts_twice():
    convolution, norm = nn.Conv2d(1, 1, 3), nn.BatchNorm2d(1)
    assert three(nn.Sequential(convolution, norm, convolution, norm), 1) == (5, 5, 5)


def test_layers_in_words():
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, 2, 1, 2), nn.ReLU(), nn.MaxPool2d(2), nn.PixelShuffle(2)
    )
    assert layers(network) == [Layer(3, 2, 1, 2), Layer(2, 2), Layer(2, 2, up=True)]
    assert layers(SubPixel(1, 1)) == [Layer(3, padding=1), Layer(2, 2, up=True)]
    assert layers(upsampling("resize", 1, 1)) == [Layer(2, 2, up=True), Layer(3, padding=1)]


def test_the_network_itself_stays_as_it_was():
    network = PatchGAN(1, width=1, layers=1, norm="batch").train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    by_gradient(network, 1)
    assert network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(p.grad is None and p.dtype == torch.float32 for p in network.parameters())


def test_normalized_weights_change_nothing():
    network = PatchGAN(1, width=2, layers=2, norm="none")
    for layer in list(network.modules()):
        if isinstance(layer, nn.Conv2d):
            nn.utils.parametrizations.spectral_norm(layer)
    assert three(network, 1) == (34, 34, 34)


# --- what has no field


@pytest.mark.parametrize("way", [layers, by_recurrence, by_formula, lambda n: by_gradient(n, 1)])
@pytest.mark.parametrize(
    ("network", "message"),
    [
        (PatchGAN(1, width=2, attention=True), "SelfAttention sees everything"),
        (nn.Sequential(nn.Conv2d(1, 1, 3), nn.AdaptiveAvgPool2d(1)), "AdaptiveAvgPool2d sees"),
        (nn.Conv2d(1, 1, (3, 5)), r"square layers only, found Conv2d.*\(3, 5\)"),
        (nn.Conv2d(1, 1, 3, stride=(1, 2)), "square"),
        (nn.MaxPool2d((2, 3)), "square layers only, found MaxPool2d"),
        (nn.ZeroPad2d((1, 0, 2, 0)), "square"),
        (nn.ReLU(), "ReLU has no convolution, pooling or up-sampling"),
        (nn.Upsample(scale_factor=1.5), "whole scale_factor"),
        (nn.Upsample(size=64), "whole scale_factor"),
        (nn.Upsample(scale_factor=2, mode="bicubic"), "mode nearest, or bilinear"),
        (nn.UpsamplingBilinear2d(scale_factor=2), "align_corners=False"),
        (nn.ConvTranspose2d(1, 1, 2, 3), "kernel is at least as wide as its stride"),
        (nn.ConvTranspose2d(1, 1, 3, 2, dilation=2), "without dilation"),
    ],
)
def test_what_has_no_field_is_refused(network, message, way):
    with pytest.raises(InputError, match=message):
        way(network)


def test_a_field_that_may_go_on_beyond_the_border_is_refused():
    network = PatchGAN(1, width=1)
    assert by_gradient(network, 1, 96) == 70
    with pytest.raises(InputError, match="border of 64 x 64 pixels; give a larger size"):
        by_gradient(network, 1, 64)
    short = nn.Sequential(nn.Conv2d(1, 1, 7), nn.Upsample(scale_factor=2), nn.Conv2d(1, 1, 2))
    with pytest.raises(InputError, match="border of 7 x 7"):  # one pixel of two that differ
        by_gradient(short, 1, 7)


def test_what_modules_do_not_show_is_noticed_by_the_gradient():
    class Blurred(nn.Conv2d):
        def forward(self, x):
            return F.avg_pool2d(super().forward(x), 41, 1, 20)

    network = Blurred(1, 1, 3)
    with pytest.raises(InputError, match="does more than its modules show"):
        by_gradient(network, 1)
    assert by_gradient(network, 1, 128) == 43 != by_recurrence(network)
