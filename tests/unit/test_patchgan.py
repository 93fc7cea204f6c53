"""Discriminators with attention, and those that judge a hole beside its image."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ganlab.config import HoleJudgeConfig
from ganlab.errors import InputError
from ganlab.losses.adversarial import LOSSES, Verdict
from ganlab.networks.attention import SelfAttention
from ganlab.networks.patchgan import GlobalLocal, PatchGAN, around

LOCAL = ["zeroed", "crop", "none"]


@pytest.fixture(autouse=True)
def _same_numbers():
    torch.manual_seed(0)


def shaken(network):
    for p in network.parameters():
        p.data = 0.5 * torch.randn_like(p.data)
    return network


class Silent(nn.Module):
    """A discriminator without heads, which leaves another one alone."""

    def forward(self, condition, image):
        return []


def square(size, top, left, side):
    hole = torch.zeros(1, 1, size, size)
    hole[:, :, top : top + side, left : left + side] = 1
    return hole


def attentions(network):
    return [m for m in network.modules() if isinstance(m, SelfAttention)]


# --- attention in a PatchGAN


def test_attention_stands_after_the_second_layer():
    network = PatchGAN(3, width=8, attention=True)
    [attention] = attentions(network)
    seen = []
    attention.register_forward_hook(lambda _, inputs, y: seen.extend([*inputs, y]))
    [(_, features)] = network(None, torch.randn(1, 3, 64, 64))
    x, y = seen
    assert x.shape == (1, 16, 16, 16)
    assert features[1] is y
    assert len(features) == 4


def test_attention_starts_without_effect_and_then_has_one():
    plain, attending = PatchGAN(2, width=4), PatchGAN(2, width=4, attention=True)
    weights = plain.state_dict()
    own = {key.replace("layers.1.0.", "layers.1."): key for key in attending.state_dict()}
    attending.load_state_dict({own[key]: value for key, value in weights.items()}, strict=False)
    image = torch.randn(2, 2, 32, 32)
    [(expected, _)], [(logits, _)] = plain(None, image), attending(None, image)
    assert torch.equal(logits, expected)
    logits.square().sum().backward()
    [attention] = attentions(attending)
    assert attention.gamma.grad != 0
    attention.gamma.data.fill_(0.5)
    [(logits, _)] = attending(None, image)
    assert not torch.allclose(logits, expected, atol=1e-3)


def test_attention_lets_a_logit_see_everything():
    network = shaken(PatchGAN(1, width=2, layers=2, norm="none", attention=True).double())
    image = torch.randn(1, 1, 64, 64).double()
    for gamma in (0.0, 1.0):
        attentions(network)[0].gamma.data.fill_(gamma)
        leaf = image.clone().requires_grad_()
        network(None, leaf)[0][0][0, 0, 0, 0].backward()
        assert bool(leaf.grad[0, 0, 40:, 40:].any()) is (gamma != 0)


@pytest.mark.parametrize("norm", ["none", "channel", "instance"])
def test_second_derivatives_through_attention(norm):
    """The whole discriminator in float64 against finite differences of its gradient."""
    network = shaken(PatchGAN(1, width=2, layers=1, norm=norm, attention=True).double())
    image = torch.randn(1, 1, 6, 6).double().requires_grad_()
    names, values = zip(*network.named_parameters(), strict=True)

    def function(image, *values):
        named = dict(zip(names, values, strict=True))
        return torch.func.functional_call(network, named, (None, image))[0][0]

    assert torch.autograd.gradcheck(function, (image, *values))
    assert torch.autograd.gradgradcheck(function, (image, *values), fast_mode=True)


# --- the cut around a hole


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(2, 24),
    width=st.integers(2, 24),
    box=st.tuples(*[st.integers(0, 23)] * 4),
)
def test_the_cut_is_a_slice_around_the_hole(height, width, box):
    top, left = box[0] % height, box[1] % width
    bottom, right = top + 1 + box[2] % (height - top), left + 1 + box[3] % (width - left)
    hole = torch.zeros(1, 1, height, width)
    hole[:, :, top:bottom, left:right] = 1
    image = torch.arange(2.0 * height * width).reshape(1, 2, height, width)
    side = min(height, width) // 2
    starts = []
    for low, high, size in ((top, bottom, height), (left, right, width)):
        start = round((low + high - 1) / 2 - (side - 1) / 2)  # both round half to even
        starts.append(min(max(start, 0), size - side))
    rows, columns = (slice(start, start + side) for start in starts)
    cut, cut_hole = around(hole, image, hole)
    assert torch.equal(cut, image[:, :, rows, columns])
    assert torch.equal(cut_hole, hole[:, :, rows, columns])


def test_each_sample_is_cut_at_its_own_hole():
    hole = torch.cat([square(16, 0, 0, 3), square(16, 12, 11, 4), torch.zeros(1, 1, 16, 16)])
    hole[1, 0, 0, 0] = 0.0
    image = torch.arange(256.0).reshape(1, 1, 16, 16).expand(3, 1, 16, 16)
    [cut] = around(hole, image)
    corners = cut[:, 0, 0, 0].tolist()
    assert corners == [0.0, 8 * 16 + 8, 4 * 16 + 4]  # a corner, the other corner, the middle


def test_the_centre_is_that_of_mass():
    hole = torch.zeros(1, 1, 33, 33)
    hole[0, 0, 8, 8], hole[0, 0, 8, 10], hole[0, 0, 20, 24] = 1, 1, 1  # centre 12, 14
    [cut] = around(hole, torch.arange(33.0 * 33).reshape(1, 1, 33, 33))
    assert cut[0, 0, 0, 0] == (12 - 8) * 33 + (14 - 8) + 0  # side 16: 4.5 and 6.5, half to even


def test_cutting_can_be_differentiated_twice():
    hole = torch.cat([square(8, 1, 5, 2), square(8, 6, 0, 2)]).double()
    image = torch.randn(2, 2, 8, 8).double().requires_grad_()
    function = lambda image: around(hole, image.square())[0]  # noqa: E731
    assert torch.autograd.gradcheck(function, image)
    assert torch.autograd.gradgradcheck(function, image)


# --- both judges


@pytest.mark.parametrize("local", LOCAL)
def test_settings_make_a_judge(local):
    config = HoleJudgeConfig(width=4, layers=2, local=local)
    network = GlobalLocal(4, **vars(config))
    heads = network(square(32, 4, 6, 8).expand(3, 1, 32, 32), torch.randn(3, 4, 32, 32))
    shapes = [tuple(logits.shape) for logits, _ in heads]
    whole = (3, 1, 6, 6)
    expected = {"zeroed": [whole, whole], "crop": [whole, (3, 1, 1, 1)], "none": [whole]}
    assert shapes == expected[local]
    assert all(len(features) == 3 for _, features in heads)


def test_the_first_judges_image_and_hole():
    hole, image = square(32, 4, 6, 8), torch.randn(1, 2, 32, 32)
    for local in LOCAL:
        network = shaken(GlobalLocal(2, width=2, layers=1, local=local))
        [(expected, _)] = network.whole(hole, image)
        assert torch.equal(network(hole, image)[0][0], expected)
        assert not torch.equal(network(square(32, 0, 0, 4), image)[0][0], expected)


def test_zeroed_judges_the_inside_of_the_hole_alone():
    network = shaken(GlobalLocal(2, width=2, layers=1))
    hole, image = square(32, 8, 8, 12), torch.randn(1, 2, 32, 32)
    outside = image + 5 * (1 - hole)
    inside = image.clone()
    inside[0, 0, 10, 10] += 1
    judged = network(hole, image)[1][0]
    assert torch.equal(network(hole, outside)[1][0], judged)
    assert not torch.equal(network(hole, inside)[1][0], judged)
    [(expected, _)] = network.part(None, torch.cat([hole, image * hole], 1))
    assert torch.equal(judged, expected)


def test_a_crop_judges_the_hole_with_its_surroundings():
    network = shaken(GlobalLocal(2, width=2, layers=1, local="crop"))
    hole, image = square(32, 20, 4, 4), torch.randn(1, 2, 32, 32)
    judged = network(hole, image)[1][0]
    window = (..., slice(14, 30), slice(0, 16))  # centre 21.5, 5.5; moved right to the border
    [(expected, _)] = network.part(hole[window], image[window])
    torch.testing.assert_close(judged[:, 0, 0, 0], expected.mean((1, 2, 3)))
    for place, changes in [((0, 0, 0, 0), False), ((0, 0, 21, 5), True), ((0, 0, 14, 15), True)]:
        other = image.clone()
        other[place] += 3
        assert torch.equal(network(hole, other)[1][0], judged) is not changes


def test_a_crop_counts_once_whatever_was_measured():
    """One logit for each sample: the mask of measured pixels cannot change its weight."""
    network = shaken(GlobalLocal(1, width=2, layers=1, local="crop"))
    hole = square(16, 2, 2, 4).expand(2, 1, 16, 16)
    real, fake = torch.randn(2, 2, 1, 16, 16)
    valid = torch.ones(2, 1, 16, 16)
    valid[0, :, :, 5:] = 0
    network.whole = Silent()
    values = [
        Verdict(network, hole, real, fake, mask).discriminator_term(LOSSES["hinge"])
        for mask in (valid, torch.ones_like(valid))
    ]
    torch.testing.assert_close(*values)
    assert values[0] > 0


def test_judges_share_no_weights():
    network = GlobalLocal(3, width=2)
    assert not torch.equal(network.whole.head.weight, network.part.head.weight)
    assert not hasattr(GlobalLocal(3, width=2, local="none"), "part")


def test_judging_without_holes_or_room_is_refused():
    network = GlobalLocal(3, width=2, layers=3, local="crop")
    with pytest.raises(InputError, match="judges holes"):
        network(None, torch.randn(1, 3, 64, 64))
    with pytest.raises(InputError, match="20 x 20 pixels is too small"):
        network(square(40, 0, 0, 4), torch.randn(1, 3, 40, 40))


@pytest.mark.parametrize(
    ("local", "attention", "norm"),
    list(itertools.product(LOCAL, [False, True], ["none", "channel"])),
)
def test_second_derivatives_of_both(local, attention, norm):
    """As in penalties on gradients: in float64 through crop, zeroing and attention."""
    options = {"width": 2, "layers": 1, "norm": norm, "attention": attention, "local": local}
    network = shaken(GlobalLocal(1, **options).double())
    hole = torch.cat([square(12, 1, 5, 4), square(12, 8, 0, 3)]).double()
    image = torch.randn(2, 1, 12, 12).double().requires_grad_()
    names, values = zip(*network.named_parameters(), strict=True)

    def function(image, *values):
        named = dict(zip(names, values, strict=True))
        heads = torch.func.functional_call(network, named, (hole, image))
        return torch.cat([logits.flatten() for logits, _ in heads])

    assert torch.autograd.gradcheck(function, (image, *values), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, (image, *values), fast_mode=True)


@pytest.mark.parametrize("local", LOCAL)
def test_bfloat16_and_layout_change_only_the_rounding(local):
    network = GlobalLocal(3, width=8, layers=2, attention=True, local=local)
    for attention in attentions(network):
        attention.gamma.data.fill_(1.0)
    hole, image = square(32, 20, 3, 9).expand(2, 1, 32, 32), torch.randn(2, 3, 32, 32)
    exact = [logits for logits, _ in network(hole, image)]
    network.to(memory_format=torch.channels_last)
    packed = image.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        coarse = [logits for logits, _ in network(hole, packed)]
    for one, other, third in zip(exact, coarse, network(hole, packed), strict=True):
        torch.testing.assert_close(third[0], one, rtol=1e-4, atol=1e-5)
        assert other.dtype == torch.bfloat16
        torch.testing.assert_close(other.float(), one, rtol=0.1, atol=0.05)


@pytest.mark.parametrize("local", LOCAL)
def test_graphs_have_no_breaks(local):
    """Nothing waits for the device: a branch on data would break the graph."""
    network = GlobalLocal(1, width=2, layers=1, norm="channel", attention=True, local=local)
    hole, image = square(16, 10, 1, 5), torch.randn(1, 1, 16, 16)
    torch.compiler.reset()
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    for (ours, _), (theirs, _) in zip(compiled(hole, image), network(hole, image), strict=True):
        torch.testing.assert_close(ours, theirs)
