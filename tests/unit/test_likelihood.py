"""Noise levels and the weights that they imply."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ganlab.errors import InputError
from ganlab.losses.kl import kl
from ganlab.losses.likelihood import (
    best_scale,
    implied_beta,
    implied_scale,
    negative_log_likelihood,
)

NOISES = pytest.mark.parametrize("noise", ["gaussian", "laplace"])


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Coder:
    """A linear coder of 6 values into 2 numbers, with its parameters in one row."""

    def __init__(self, batch=5):
        self.x, self.noise = numbers(batch, 6), numbers(batch, 2, seed=2)
        self.parameters = (0.5 * numbers(6 * 4 + 2 * 6, seed=1)).requires_grad_()

    def parts(self):
        """Squared differences ``(B, 6)`` and nats ``(B, 2)``."""
        to, back = self.parameters[:24].view(6, 4), self.parameters[24:].view(2, 6)
        mean, log_variance = (self.x @ to).chunk(2, 1)
        code = mean + torch.exp(log_variance / 2) * self.noise
        return code @ back - self.x, kl(mean, log_variance)

    def errors(self, noise):
        """Mean error of each sample."""
        apart, _ = self.parts()
        return (apart.square() if noise == "gaussian" else apart.abs()).mean(1)

    def slope(self, value):
        return torch.autograd.grad(value, self.parameters)[0]


@NOISES
def test_the_profiled_likelihood_has_the_gradient_of_the_joint_one_at_the_best_scale(noise):
    coder = Coder()
    errors = coder.errors(noise)
    profiled = negative_log_likelihood(errors, best_scale(errors, noise), noise).mean()
    # The joint one: the scale is a parameter of its own, at the most likely value.
    errors = coder.errors(noise)
    best = errors.detach().mean()
    log_scale = (0.5 * best.log() if noise == "gaussian" else best.log()).requires_grad_()
    joint = negative_log_likelihood(errors, log_scale.exp(), noise).mean()
    by_parameters, by_scale = torch.autograd.grad(joint, (coder.parameters, log_scale))
    assert abs(by_scale) < 1e-14
    assert torch.allclose(coder.slope(profiled), by_parameters, rtol=1e-12)
    assert by_parameters.abs().max() > 0.1
    # And what is left when the scale is put in: a logarithm of the error, no weight to choose.
    mean = coder.errors(noise).mean()
    if noise == "gaussian":
        left = 0.5 * (1 + torch.log(2 * math.pi * mean))
    else:
        left = 1 + torch.log(2 * mean)
    assert profiled.item() == pytest.approx(left.item(), rel=1e-12)
    assert torch.allclose(coder.slope(left), by_parameters, rtol=1e-12)


@NOISES
@given(error=st.floats(1e-6, 10), other=st.floats(-3, 3))
def test_no_scale_is_more_likely(noise, error, other):
    error = torch.tensor(error, dtype=torch.float64)
    best = best_scale(error, noise)
    least = negative_log_likelihood(error, best, noise)
    assert negative_log_likelihood(error, best * math.exp(other), noise) >= least - 1e-12
    if abs(other) > 0.01:
        assert negative_log_likelihood(error, best * math.exp(other), noise) > least + 1e-5


def test_the_best_scale_is_the_batchs_and_has_no_gradient():
    error = torch.tensor([0.01, 0.03], requires_grad=True)
    assert best_scale(error, "gaussian").item() == pytest.approx(0.02**0.5)
    assert best_scale(error, "laplace").item() == pytest.approx(0.02)
    assert not best_scale(error, "gaussian").requires_grad
    for noise in ("gaussian", "laplace"):
        nothing = torch.zeros(3)
        assert negative_log_likelihood(nothing, best_scale(nothing, noise), noise).isfinite().all()


@NOISES
def test_gradients(noise):
    error = numbers(4).square().add(0.1).requires_grad_()
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda e, s: negative_log_likelihood(e, s, noise), (error, scale)
    )


@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("scale", [0.3, 0.7, 3.0])
def test_a_weight_of_the_divergence_is_a_noise_level(averaged, scale):
    """Error plus beta times divergence pulls in the direction of the evidence bound."""
    coder, values = Coder(), 6
    apart, nats = coder.parts()
    squares = apart.square().mean(1) if averaged else apart.square().sum(1)
    beta = implied_beta(scale, values if averaged else None)
    usual = coder.slope((squares + beta * nats.sum(1)).mean())
    apart, nats = coder.parts()
    # The negative evidence bound, from torch's own density.
    fit = -torch.distributions.Normal(torch.zeros_like(apart), scale).log_prob(apart).sum(1)
    bound = coder.slope((fit + nats.sum(1)).mean())
    factor = 2 * scale**2 / (values if averaged else 1)
    assert torch.allclose(usual, factor * bound, rtol=1e-10)
    # Another weight pulls elsewhere.
    apart, nats = coder.parts()
    squares = apart.square().mean(1) if averaged else apart.square().sum(1)
    wrong = coder.slope((squares + 4 * beta * nats.sum(1)).mean())
    assert torch.nn.functional.cosine_similarity(wrong, bound, dim=0) < 1 - 1e-6


@given(scale=st.floats(1e-4, 1e3), values=st.one_of(st.none(), st.integers(1, 10**7)))
def test_weights_and_noise_levels_are_each_others_inverse(scale, values):
    assert implied_scale(implied_beta(scale, values), values) == pytest.approx(scale, rel=1e-12)


def test_known_weights():
    assert implied_beta(1.0) == 2.0
    assert implied_beta(0.1, 3 * 64 * 64) == pytest.approx(0.02 / 12288)
    # The plain sum of mean squares and divergence on tiles of 64 x 64 claims a noise far beyond
    # the range of the image, [-1, 1].
    assert implied_scale(1.0, 3 * 64 * 64) == pytest.approx(78.38, abs=0.01)


@pytest.mark.parametrize("function", [implied_beta, implied_scale])
@pytest.mark.parametrize(("number", "values"), [(0, None), (-1, 5), (math.nan, None), (1, 0)])
def test_what_is_no_noise_is_refused(function, number, values):
    with pytest.raises(InputError, match="expected both above 0"):
        function(number, values)
