"""The divergence of Gaussians: its properties, gradients and precision."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ganlab.errors import InputError
from ganlab.losses.kl import free_bits, kl

MEAN, LOG = st.floats(-20, 20), st.floats(-14, 14)


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def f64(*values):
    return [torch.tensor(value, dtype=torch.float64) for value in values]


def test_gradients():
    four = [numbers(2, 3, 2, 2, seed=seed).requires_grad_() for seed in range(4)]
    assert torch.autograd.gradcheck(kl, four)
    assert torch.autograd.gradcheck(kl, four[:2])
    # By hand: the mean itself, and half the variance less one.
    m, v = four[:2]
    by_mean, by_log = torch.autograd.grad(kl(m, v).sum(), (m, v))
    assert torch.allclose(by_mean, m)
    assert torch.allclose(by_log, (v.exp() - 1) / 2)


@given(m=MEAN, v=LOG, n=MEAN, w=LOG)
def test_it_is_zero_for_equals_and_above_zero_for_others(m, v, n, w):
    got = kl(*f64(m, v, n, w)).item()
    assert got >= 0
    if abs(m - n) > 1e-3 or abs(v - w) > 1e-3:
        assert got > 0
    assert kl(*f64(m, v, m, v)).item() == 0


@given(m=st.floats(-1, 1), v=st.floats(-1, 1), n=st.floats(-1, 1), w=st.floats(-1, 1))
def test_in_float32_as_well(m, v, n, w):
    values = [torch.tensor(x, dtype=torch.float32) for x in (m, v, n, w)]
    got, exact = kl(*values).item(), kl(*(x.double() for x in values)).item()
    assert got >= 0
    assert got == pytest.approx(exact, rel=1e-4, abs=1e-12)


@given(m=MEAN, v=LOG, n=MEAN, w=LOG, shift=MEAN, stretch=LOG)
def test_it_does_not_depend_on_where_zero_is_and_how_long_one(m, v, n, w, shift, stretch):
    size = math.exp(stretch / 2)
    one = kl(*f64(m, v, n, w)).item()
    other = kl(*f64(shift + size * m, v + stretch, shift + size * n, w + stretch)).item()
    assert other == pytest.approx(one, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("near", [1e-2, -1e-2, 1e-3, 1e-4, -1e-4])
def test_near_equality_no_digits_are_lost(near):
    """A quarter of the squared difference of the logarithms, and its third power's twelfth."""
    expected = near**2 / 4 + near**3 / 12 + near**4 / 48
    zero, log = torch.zeros(()), torch.tensor(near)
    assert kl(zero, log).item() == pytest.approx(expected, rel=5e-3)
    naive = 0.5 * (log.exp() - 1 - log).item()
    if abs(near) <= 1e-4:  # what the difference of large numbers would give
        assert naive != pytest.approx(expected, rel=0.5)


def test_shapes_types_and_plain_numbers():
    m, v = numbers(2, 3, 4, 5), numbers(2, 3, 4, 5, seed=1)
    assert kl(m, v).shape == m.shape
    assert torch.equal(kl(m, v), kl(m, v, torch.zeros_like(m), torch.zeros_like(v)))
    assert torch.equal(kl(m, v, 0.5, -1.0), kl(m, v, *f64(0.5, -1.0)))
    for narrow in (torch.bfloat16, torch.float16):
        got = kl(m.to(narrow), v.to(narrow))
        assert got.dtype == torch.float32
        assert torch.equal(got, kl(m.to(narrow).float(), v.to(narrow).float()))


def test_free_bits_are_free_by_dimension_over_the_batch():
    nats = torch.tensor([[0.0, 0.3, 2.0], [0.2, 0.9, 4.0]], requires_grad=True)
    assert free_bits(nats, 0.0).item() == pytest.approx(0.1 + 0.6 + 3.0)
    total = free_bits(nats, 0.5)
    assert total.item() == pytest.approx(0.5 + 0.6 + 3.0)
    total.backward()
    assert nats.grad.tolist() == [[0, 0.5, 0.5]] * 2


def test_no_free_bits_are_the_divergence():
    nats = numbers(3, 2, 4, 4).square()
    assert free_bits(nats, 0.0).item() == pytest.approx(nats.sum((1, 2, 3)).mean().item())


def test_negative_free_bits_are_refused():
    with pytest.raises(InputError, match="free bits -0.1: expected at least 0 nats"):
        free_bits(torch.ones(1, 1), -0.1)
