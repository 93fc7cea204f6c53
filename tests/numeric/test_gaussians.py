"""The divergence of Gaussians and the evidence bound against references that share no formula."""

import numpy as np
import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from ganlab.losses.kl import kl
from ganlab.losses.likelihood import negative_log_likelihood


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def normal(mean, log_variance):
    return Normal(mean, torch.exp(0.5 * log_variance))


PAIRS = [numbers(4, seed=seed).tolist() for seed in range(6)]
PAIRS += [[0.0, 0.0, 0.0, 0.0], [3.0, -4.0, -1.0, 0.5], [0.0, -6.0, 0.0, 2.0], [1e-3, 0, 0, 1e-3]]


def test_the_closed_form_is_that_of_torch():
    m, v, n, w = (2 * numbers(3, 5, 4, 2, seed=seed) for seed in range(4))
    expected = kl_divergence(normal(m, v), normal(n, w))
    assert torch.allclose(kl(m, v, n, w), expected, rtol=1e-12)
    standard = kl_divergence(normal(m, v), normal(torch.zeros_like(m), torch.zeros_like(v)))
    assert torch.allclose(kl(m, v), standard, rtol=1e-12)
    whole = kl_divergence(Independent(normal(m, v), 3), Independent(normal(n, w), 3))
    assert torch.allclose(kl(m, v, n, w).sum((1, 2, 3)), whole, rtol=1e-12)


@pytest.mark.parametrize(("m", "v", "n", "w"), PAIRS)
def test_the_closed_form_is_the_integral(m, v, n, w):
    """By the trapezoid rule, which for a bell that has faded at both ends is exact to rounding."""
    x = m + np.exp(v / 2) * np.linspace(-14, 14, 4001)

    def log_density(mean, log_variance):
        apart = (x - mean) ** 2 / np.exp(log_variance)
        return -0.5 * (apart + log_variance + np.log(2 * np.pi))

    p, q = log_density(m, v), log_density(n, w)
    expected = np.trapezoid(np.exp(p) * (p - q), x)
    got = kl(*(torch.tensor(z, dtype=torch.float64) for z in (m, v, n, w))).item()
    assert got == pytest.approx(expected, rel=1e-10, abs=1e-13)


@pytest.mark.parametrize(("m", "v", "n", "w"), PAIRS)
def test_the_closed_form_is_the_mean_over_samples(m, v, n, w):
    m, v, n, w = (torch.tensor(z, dtype=torch.float64) for z in (m, v, n, w))
    drawn = m + torch.exp(v / 2) * numbers(200_000, seed=9)
    ratios = normal(m, v).log_prob(drawn) - normal(n, w).log_prob(drawn)
    error = ratios.std() / len(ratios) ** 0.5
    assert abs(kl(m, v, n, w) - ratios.mean()) <= 4 * error + 1e-12


class Linear:
    """``x = W z + b + s * noise``: what is known of z given x, and of x, is Gaussian as well."""

    def __init__(self, orthogonal, values=7, code=3, scale=0.6):
        self.w, self.b, self.s = numbers(values, code), numbers(values, seed=1), scale
        if orthogonal:  # then the posterior has no correlations
            self.w = torch.linalg.qr(self.w)[0] * torch.tensor([0.3, 1.0, 2.0])
        eye = torch.eye(values, dtype=torch.float64)
        self.evidence = MultivariateNormal(self.b, self.w @ self.w.T + scale**2 * eye)

    def posterior(self, x):
        precision = torch.eye(self.w.shape[1]).double() + self.w.T @ self.w / self.s**2
        covariance = torch.linalg.inv(precision)
        covariance = (covariance + covariance.T) / 2
        return MultivariateNormal(covariance @ self.w.T @ (x - self.b) / self.s**2, covariance)

    def bound(self, x, mean, log_variance):
        """The evidence bound; the expectation of the squared error over the code is exact."""
        squares = (x - self.b - self.w @ mean).square().sum()
        squares = squares + (log_variance.exp() * self.w.square().sum(0)).sum()
        fit = negative_log_likelihood(squares / len(x), self.s, "gaussian") * len(x)
        return -fit - kl(mean, log_variance).sum()


@pytest.mark.parametrize("orthogonal", [True, False])
def test_the_bound_lies_below_the_evidence_by_the_divergence_from_the_posterior(orthogonal):
    model = Linear(orthogonal)
    for seed in range(20):
        x = model.evidence.mean + 1.5 * numbers(7, seed=seed)
        mean, log_variance = numbers(3, seed=seed + 50), numbers(3, seed=seed + 100) - 1
        gap = model.evidence.log_prob(x) - model.bound(x, mean, log_variance)
        coded = MultivariateNormal(mean, log_variance.exp().diag())
        assert gap > 0.01
        assert gap == pytest.approx(kl_divergence(coded, model.posterior(x)).item(), rel=1e-9)


def test_the_bound_is_the_evidence_at_the_posterior():
    model = Linear(orthogonal=True)
    for seed in range(5):
        x = numbers(7, seed=seed)
        posterior = model.posterior(x)
        log_variance = posterior.covariance_matrix.diag().log()
        got = model.bound(x, posterior.mean, log_variance).item()
        assert got == pytest.approx(model.evidence.log_prob(x).item(), rel=1e-12)


def test_with_correlations_the_best_bound_stays_below():
    """The best diagonal Gaussian has the posterior's mean and its precisions (Bishop 10.12)."""
    model, x = Linear(orthogonal=False), numbers(7, seed=3)
    posterior = model.posterior(x)
    best = -posterior.precision_matrix.diag().log()
    found = [posterior.mean.clone().requires_grad_(), best.clone().requires_grad_()]
    bound = model.bound(x, *found)
    slopes = torch.autograd.grad(bound, found)
    assert all(slope.abs().max() < 1e-10 for slope in slopes)
    correlation = best.sum() - torch.logdet(posterior.covariance_matrix)
    gap = model.evidence.log_prob(x) - bound.detach()
    assert gap > 1e-3
    assert gap.item() == pytest.approx(-0.5 * correlation.item(), rel=1e-9)


@pytest.mark.parametrize("noise", ["gaussian", "laplace"])
def test_likelihoods_are_those_of_torch(noise):
    made, true, scale = numbers(4, 3, 5, 6), numbers(4, 3, 5, 6, seed=1), 0.37
    kind = {"gaussian": Normal, "laplace": torch.distributions.Laplace}[noise]
    power = 2 if noise == "gaussian" else 1
    error = ((made - true).abs() ** power).mean((1, 2, 3))
    expected = -kind(made, scale).log_prob(true).mean((1, 2, 3))
    for given in (scale, torch.tensor(scale)):  # a float32 scale is taken as it is
        got = negative_log_likelihood(error, given, noise)
        assert got.dtype == torch.float64
        assert torch.allclose(got, expected, rtol=1e-6 if torch.is_tensor(given) else 1e-12)
