"""Self-attention against its matrix form, and which kernel computes it."""

import pytest
import torch
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from ganlab.errors import InputError
from ganlab.networks.attention import SelfAttention

FUSED = "aten::_scaled_dot_product_flash_attention_for_cpu"
MATRIX = "aten::_scaled_dot_product_attention_math"
LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.fixture(autouse=True)
def _same_numbers():
    torch.manual_seed(0)


def attention(channels=16, gamma=0.7, **options):
    """In float64, with all parameters different from 0."""
    layer = SelfAttention(channels, **options).double()
    for p in layer.parameters():
        p.data = torch.randn_like(p.data) * channels**-0.5
    layer.gamma.data.fill_(gamma)
    return layer


def image(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def by_matrix(layer, x, masked=None):
    """Zhang et al. (2019), eqs. 1-3, with columns of features; ``masked``: (B, pixels) bool."""
    columns = x.flatten(2)

    def project(linear):
        return linear.weight @ columns + linear.bias[:, None]

    logits = project(layer.query).transpose(1, 2) @ project(layer.key)  # query i, key j
    if masked is not None:
        logits = logits.masked_fill(masked[:, None], -torch.inf)
    weights = logits.exp() / logits.exp().sum(2, keepdim=True)
    gathered = torch.einsum("bij,bcj->bci", weights, project(layer.value))
    return x + layer.gamma * gathered.reshape(x.shape), weights


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("channels", "reduction"), [(16, 8), (2, 2), (6, 8), (7, 2)])
def test_equals_the_matrix_form(channels, reduction, layout, twice):
    layer = attention(channels, reduction=reduction, twice=twice)
    x = image(2, channels, 5, 6).to(memory_format=layout)
    expected, weights = by_matrix(layer, x)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.attention_map(x), weights, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("twice", [False, True])
def test_masked_keys_equal_the_matrix_form(twice):
    layer = attention(twice=twice)
    x, hole = image(3, 16, 5, 6), (torch.rand(3, 1, 5, 6) < 0.6).double()
    hole[1] = 0
    masked = hole.flatten(1) > 0
    expected, weights = by_matrix(layer, x, masked)
    torch.testing.assert_close(layer(x, hole), expected, rtol=1e-12, atol=1e-12)
    map_ = layer.attention_map(x, hole)
    torch.testing.assert_close(map_, weights, rtol=1e-12, atol=1e-12)
    assert not map_.masked_select(masked[:, None]).any()
    torch.testing.assert_close(map_.sum(2), torch.ones(3, 30).double())


def test_where_all_keys_are_masked_none_is():
    layer = attention()
    x, hole = image(2, 16, 4, 4), torch.ones(2, 1, 4, 4).double()
    hole[1, 0, 0, 0] = 0
    y = layer(x, hole)
    assert torch.equal(y[0], layer(x)[0])
    gathered = (y - x)[1]  # one key is left: all gather the same
    torch.testing.assert_close(gathered, gathered[:, :1, :1].expand(16, 4, 4))


def test_holes_are_brought_to_the_size_of_the_map():
    layer = attention()
    x, hole = image(2, 16, 3, 3), (torch.rand(2, 1, 3, 3) < 0.5).double()
    fine = hole.repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert torch.equal(layer(x, fine), layer(x, hole))
    wide, coarse = image(2, 16, 6, 6), hole.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.equal(layer(wide, hole), layer(wide, coarse))
    nearly = fine.clone()  # less than half of a pixel masked is none, half is all
    nearly[:, :, :4, :4] = 0
    nearly[:, :, :4, :2] = 1
    masked, free = hole.clone(), hole.clone()
    masked[:, :, 0, 0], free[:, :, 0, 0] = 1, 0
    assert torch.equal(layer(x, nearly), layer(x, masked))
    nearly[:, :, 0, 0] = 0
    assert torch.equal(layer(x, nearly), layer(x, free))


def test_what_is_in_a_hole_is_not_gathered():
    layer = attention()
    x, hole = image(1, 16, 4, 4), torch.zeros(1, 1, 4, 4).double()
    hole[0, 0, 1, 2] = 1
    other = x.clone()
    other[0, :, 1, 2] += 3
    changed = (layer(x, hole) != layer(other, hole)).any(1)[0]
    assert changed.nonzero().tolist() == [[1, 2]]
    assert (layer(x) != layer(other)).all()


def test_pixels_have_no_order():
    layer, x, order = attention(), image(1, 16, 1, 12), torch.randperm(12)
    torch.testing.assert_close(layer(x)[..., order], layer(x[..., order]))


def test_starts_as_the_identity_and_learns_to_leave_it():
    layer = SelfAttention(16)
    x = torch.randn(2, 16, 5, 5)
    y = layer(x)
    assert torch.equal(y, x)
    (y * torch.randn_like(y)).sum().backward()
    assert layer.gamma.grad != 0
    assert not layer.value.weight.grad.any()  # gamma has to move first


def test_widths():
    layer = SelfAttention(64)
    assert layer.query.out_features == layer.key.out_features == 8
    assert layer.value.out_features == 64
    assert sum(p.numel() for p in layer.parameters()) == 2 * (64 * 8 + 8) + 64 * 64 + 64 + 1


@pytest.mark.parametrize(("channels", "reduction"), [(1, 8), (16, 1)])
def test_no_room_for_narrow_queries_is_refused(channels, reduction):
    with pytest.raises(InputError, match=f"{channels} channels with reduction {reduction}"):
        SelfAttention(channels, reduction=reduction)


# --- derivatives


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("twice", [False, True])
def test_derivatives(twice, masked):
    layer = attention(4, reduction=2, twice=twice)
    x = image(2, 4, 2, 3).requires_grad_()
    hole = (torch.rand(2, 1, 2, 3) < 0.5).double() if masked else None
    names, values = zip(*layer.named_parameters(), strict=True)

    def function(x, *values):
        named = dict(zip(names, values, strict=True))
        return torch.func.functional_call(layer, named, (x, hole))

    assert torch.autograd.gradcheck(function, (x, *values))
    if twice:
        assert torch.autograd.gradgradcheck(function, (x, *values))


def test_only_the_twice_differentiable_form_is_twice_differentiable():
    x = image(1, 4, 2, 2).requires_grad_()
    for twice in (False, True):
        layer = attention(4, reduction=2, twice=twice)
        (gradient,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        if twice:
            gradient.square().sum().backward()
            assert layer.query.weight.grad.any()
        else:
            with pytest.raises(RuntimeError, match="derivative for .*flash_attention"):
                gradient.square().sum().backward()


# --- kernels


def operators(function):
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        function()
    return {event.key for event in profiled.key_averages()} & {FUSED, MATRIX}


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_fused_kernel_runs(layout, train, masked, autocast):
    layer = SelfAttention(32)
    x = torch.randn(2, 32, 8, 8).to(memory_format=layout).requires_grad_(train)
    hole = torch.rand(2, 1, 8, 8).round() if masked else None

    def run():
        with torch.set_grad_enabled(train), torch.autocast("cpu", torch.bfloat16, autocast):
            y = layer(x, hole)
        if train:
            y.sum().backward()

    assert operators(run) == {FUSED}
    layer.twice = True
    assert operators(run) == {MATRIX}


def test_without_padding_and_layout_it_would_not_run():
    layer = SelfAttention(32)
    x = torch.randn(2, 32, 8, 8)
    query, key, value = (part[:, None] for part in layer._project(x, None))
    narrow = (query[..., :4], key[..., :4], value)
    strided = [part.mT.contiguous().mT for part in (query, key, value)]
    for inputs in (narrow, strided):
        same = F.scaled_dot_product_attention(*inputs, scale=1.0)
        torch.testing.assert_close(
            same, F.scaled_dot_product_attention(query, key, value, scale=1.0)
        )
        run = lambda inputs=inputs: F.scaled_dot_product_attention(*inputs, scale=1.0)  # noqa: E731
        assert operators(run) == {MATRIX}


@pytest.mark.parametrize("twice", [False, True])
def test_bfloat16_changes_only_the_rounding(twice):
    layer = SelfAttention(32, twice=twice)
    layer.gamma.data.fill_(1.0)
    x, hole = torch.randn(2, 32, 8, 8), torch.rand(2, 1, 8, 8).round()
    hole[1] = 1
    exact = layer(x, hole)
    with torch.autocast("cpu", torch.bfloat16):
        coarse = layer(x.bfloat16(), hole)
    assert coarse.dtype == torch.bfloat16
    torch.testing.assert_close(coarse.float(), exact, rtol=0.1, atol=0.1)


def test_graphs_have_no_breaks():
    x, hole = torch.randn(1, 8, 4, 4), torch.rand(1, 1, 4, 4).round()
    for twice in (False, True):
        torch.compiler.reset()
        layer = SelfAttention(8, twice=twice)
        layer.gamma.data.fill_(1.0)
        compiled = torch.compile(layer, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x, hole), layer(x, hole))
