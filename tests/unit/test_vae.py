"""The Gaussian VAE: its network, and its task's terms by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.distributions import Laplace, Normal, kl_divergence

from ganlab.config import BalanceConfig, ScheduleConfig, TrainingConfig, VAEConfig, VAENetworkConfig
from ganlab.errors import InputError
from ganlab.losses.balance import choose
from ganlab.networks.vae import NARROWEST, SCALE_RATE, VAE
from ganlab.tasks import TASKS
from ganlab.tasks.vae import GaussianVAE

NOISES = pytest.mark.parametrize("noise", ["gaussian", "laplace"])
SMALL = VAENetworkConfig(latent=3, width=4, depth=2)


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network(channels=3, **changes):
    torch.manual_seed(0)
    return VAE(channels, **vars(SMALL) | changes)


@pytest.fixture
def vae(hole_task):
    """Makes untrained tasks: ``vae(bands=4, noise="laplace")``."""

    def make(bands=3, **changes):
        spec = hole_task(bands=bands).spec
        torch.manual_seed(0)
        return GaussianVAE(VAEConfig(**{"generator": SMALL} | changes), spec)

    return make


def batch_of(*shape, seed=0):
    image = numbers(*shape, seed=seed).clamp(-2, 2) / 2
    return {
        "image": image,
        "valid": torch.ones_like(image[:, :1]),
        "sample": torch.arange(len(image)),
    }


# The network


@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 24), (17, 9), (5, 3), (4, 1)])
@pytest.mark.parametrize("up", ["resize", "transposed", "subpixel"])
@pytest.mark.parametrize("channels", [1, 4])
def test_images_of_any_size_come_back_in_it(channels, up, height, width):
    coder = network(channels, up=up)
    made, mean, log_variance = coder(numbers(2, channels, height, width))
    assert made.shape == (2, channels, height, width)
    assert mean.shape == log_variance.shape == (2, 3, -(-height // 4), -(-width // 4))


@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("norm", ["channel", "batch", "none"])
def test_the_stride_is_that_of_the_code(depth, norm):
    coder = network(depth=depth, norm=norm, width=2)
    assert coder.stride == 2**depth
    mean, _ = coder.encode(numbers(1, 3, 64, 96))
    assert mean.shape[2:] == (64 // coder.stride, 96 // coder.stride)
    assert coder.decode(mean).shape == (1, 3, 64, 96)
    # With as many halvings as the image has, the code is a vector.
    assert coder.encode(numbers(2, 3, coder.stride, coder.stride))[0].shape == (2, 3, 1, 1)


def test_codes_move_with_the_image_by_whole_strides():
    """A convolution codes a place by what surrounds it, wherever it lies."""
    coder, image = network().eval(), numbers(1, 3, 64, 64)
    one, other = coder.encode(image[..., 4:])[0], coder.encode(image)[0][..., 1:]
    assert torch.allclose(one[..., 2:-1], other[..., 2:-1], atol=1e-6)
    assert not torch.allclose(
        coder.encode(image[..., 2:-2])[0][..., 2:-1], other[..., 2:-1], atol=1e-2
    )


def test_all_goes_through_the_code():
    coder = network().eval()
    code = numbers(2, 3, 4, 4)
    assert torch.allclose(coder.decode(code)[0], coder.decode(code[:1])[0], atol=1e-6)
    coder.encode = lambda image: (code, torch.zeros_like(code))
    one, other = (coder(numbers(2, 3, 16, 16, seed=seed))[0] for seed in range(2))
    assert torch.equal(one, other)


def test_codes_are_drawn_in_training_and_means_in_evaluation():
    coder, image = network(), numbers(2, 3, 8, 8)
    made, mean, log_variance = coder(image)
    assert not torch.equal(made, coder(image)[0])
    torch.manual_seed(5)
    made = coder(image)[0]
    torch.manual_seed(5)
    by_hand = mean + torch.exp(log_variance / 2) * torch.randn_like(mean)
    assert torch.allclose(made, coder.decode(by_hand))
    coder.eval()
    state = torch.get_rng_state()
    made, mean, _ = coder(image)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(made, coder(image)[0])
    assert torch.equal(made, coder.decode(mean))


def test_drawn_codes_have_the_spread_that_is_claimed():
    coder = network(latent=2)
    mean, log_variance = torch.tensor([0.5, -2.0]), torch.tensor([-3.0, 1.0])
    mean, log_variance = (x.view(1, 2, 1, 1).expand(20_000, 2, 1, 1) for x in (mean, log_variance))
    coder.encode = lambda image: (mean, log_variance)
    coder.decode = lambda code: code
    drawn = coder(torch.zeros(20_000, 3, 4, 4))[0].flatten(1)
    assert torch.allclose(drawn.mean(0), torch.tensor([0.5, -2.0]), atol=0.05)
    assert torch.allclose(drawn.var(0).log(), torch.tensor([-3.0, 1.0]), atol=0.05)


def test_gradients_reach_mean_and_log_variance():
    """Through the image alone: the divergence has no part in it."""
    coder, image = network(), numbers(2, 3, 8, 8)
    made, mean, log_variance = coder(image)
    slopes = torch.autograd.grad(made.square().sum(), (mean, log_variance), retain_graph=True)
    assert all((slope != 0).all() for slope in slopes)
    made.square().sum().backward()
    head = coder.encoder[-1].weight.grad
    assert (head.abs().amax((1, 2, 3)) > 0).all()  # of all six channels, three are log-variances


def test_narrow_codes_end_somewhere():
    coder = network()
    coder.encoder[-1].weight.data.zero_()
    coder.encoder[-1].bias.data.fill_(-1000.0)
    _, log_variance = coder.encode(numbers(1, 3, 8, 8))
    assert (log_variance == NARROWEST).all()


@pytest.mark.parametrize("up", ["resize", "transposed", "subpixel"])
def test_the_last_layer_makes_the_image(up):
    coder = network(4, up=up)
    made = coder(numbers(1, 4, 8, 8))[0]
    assert torch.autograd.grad(made.sum(), coder.last_layer.weight)[0].abs().max() > 0
    channels = coder.last_layer.weight.shape[1 if up == "transposed" else 0]
    assert channels == (16 if up == "subpixel" else 4)


@pytest.mark.parametrize("changes", [{"latent": 0}, {"width": 0}, {"depth": 0}])
def test_an_empty_network_is_refused(changes):
    with pytest.raises(InputError, match="is empty; give at least 1 of each"):
        network(**changes)


# The task


def test_what_it_declares(vae):
    task = vae(4)
    assert TASKS["vae"] is GaussianVAE
    assert [f.name for f in task.inputs] == [f.name for f in task.outputs] == ["image"]
    assert (task.scale, task.stride, task.noise, task.discriminator) == (1, 4, False, None)
    assert dict(task.likelihoods) == {}
    assert task.last_layer is task.generator.last_layer.weight
    for name in ("label", "mean", "nowhere"):
        with pytest.raises(InputError, match=f"{name!r}"):
            vae(image=name)


@pytest.mark.parametrize(
    ("changes", "coupled"),
    [
        ({}, True),
        ({"scale": "learned"}, False),
        ({"scale": "fixed"}, False),
        ({"scale": "fixed", "free": 0.1}, True),
    ],
)
def test_it_says_whether_it_couples_a_batch(vae, changes, coupled):
    """And does so: shares of a batch make up the whole, or do not."""
    task = vae(**changes)
    assert task.batch_coupled is coupled
    batch, out = half_known(task)

    def terms(part):
        given, made = ({n: v[part] for n, v in d.items()} for d in (batch, out))
        return torch.stack(list(task.generator_losses(given, made, None).values()))

    halves = (terms(slice(0, 2)) + terms(slice(2, 4))) / 2
    assert torch.allclose(halves, terms(slice(0, 4)), rtol=1e-4) is not coupled


def half_known(task, bands=3):
    """Four images and what is made of them, very unlike each other; nothing is missing."""
    batch = batch_of(4, bands, 8, 12)
    size = torch.tensor([0.1, 0.5, 1.0, 3.0]).view(4, 1, 1, 1)
    mean, log_variance = (numbers(4, 3, 2, 3, seed=seed) * size for seed in (1, 2))
    made = batch["image"] + numbers(4, bands, 8, 12, seed=3) * size
    return batch, {"image": made, "mean": mean, "log_variance": log_variance}


@NOISES
@pytest.mark.parametrize("scale", ["optimal", "learned", "fixed"])
@pytest.mark.parametrize("bands", [1, 3])
def test_terms_by_hand(vae, noise, scale, bands):
    """torch's densities over all valid values, and its divergence, per value."""
    task = vae(bands, noise=noise, scale=scale, fixed_scale=0.3)
    if scale == "learned":
        task.generator.scale.data.fill_(-0.7 / SCALE_RATE)
    batch, out = half_known(task, bands)
    batch["valid"][0] = 0  # nothing of the first
    batch["valid"][1, :, :3] = 0
    got = task.generator_losses(batch, out, None)
    keep = batch["valid"].bool().expand_as(batch["image"])
    apart = (out["image"] - batch["image"])[keep].double()
    best = apart.square().mean().sqrt() if noise == "gaussian" else apart.abs().mean()
    level = {"optimal": best, "learned": math.exp(-0.7), "fixed": 0.3}[scale]
    kind = Normal if noise == "gaussian" else Laplace
    fit = -kind(torch.zeros_like(apart), level).log_prob(apart)
    assert list(got) == ["likelihood", "kl"]
    assert got["likelihood"].item() == pytest.approx(fit.mean().item(), rel=1e-5)
    code = Normal(out["mean"], torch.exp(out["log_variance"] / 2))
    nats = kl_divergence(code, Normal(torch.zeros(()), torch.ones(()))).sum()
    assert got["kl"].item() == pytest.approx(nats.item() / len(apart), rel=1e-5)
    # Together: minus the evidence bound of the batch, divided by the number of its valid values.
    bound = -fit.sum() - nats
    assert sum(got.values()).item() == pytest.approx(-bound.item() / len(apart), rel=1e-5)


def test_free_bits_enter_the_divergence(vae):
    batch, out = half_known(vae())
    nats = 0.5 * (out["log_variance"].exp() + out["mean"] ** 2 - 1 - out["log_variance"])
    expected = nats.mean(0).clamp(min=0.4).sum().item() / (3 * 8 * 12)
    got = vae(free=0.4).generator_losses(batch, out, None)["kl"].item()
    assert got == pytest.approx(expected, rel=1e-5)
    assert got > vae().generator_losses(batch, out, None)["kl"].item() * 1.01


@NOISES
@pytest.mark.parametrize("scale", ["optimal", "learned", "fixed"])
def test_nothing_gets_through_from_under_invalid_pixels(vae, noise, scale):
    task = vae(noise=noise, scale=scale)
    batch, out = half_known(task)
    batch["valid"][1:, :, 2:5, 3:] = 0
    gap = (batch["valid"] == 0).expand_as(batch["image"])
    made = out["image"].requires_grad_()

    def terms(fill):
        given = dict(batch, image=torch.where(gap, fill, batch["image"]))
        return task.generator_losses(given, out, None)

    clean, dirty = terms(0.0), terms(math.nan)
    assert all(torch.equal(clean[name], dirty[name]) for name in clean)
    dirty["likelihood"].backward()
    assert (made.grad[gap] == 0).all()
    assert (made.grad[~gap] != 0).all()


@pytest.mark.parametrize("scale", ["optimal", "learned", "fixed"])
def test_nothing_waits_for_the_device(vae, no_waiting, scale):
    task, batch = vae(scale=scale, free=0.1), batch_of(2, 3, 8, 8)
    balance, _ = task.balances(10)
    with no_waiting():
        terms = task.generator_losses(batch, task.generate(batch), None)
        balance(terms, task.last_layer, 0)[0].backward()


def test_a_batch_of_nothing_is_finite(vae):
    for noise in ("gaussian", "laplace"):
        batch, out = half_known(vae())
        batch["valid"].zero_()
        terms = vae(noise=noise).generator_losses(batch, out, None)
        assert all(term.isfinite() for term in terms.values())


def test_beta_and_its_warm_up_weigh_the_divergence(vae):
    warm = ScheduleConfig("fade_in", 0.0, 0.5)
    balance, other = vae(beta=4.0, warm_up=warm).balances(20)
    assert other is None
    terms = {"likelihood": torch.tensor(-1.0), "kl": torch.tensor(0.5)}
    totals = [balance(terms, None, step)[0].item() for step in (0, 5, 10, 15)]
    assert totals == pytest.approx([-1, 0, 1, 1])
    plain, _ = vae().balances(20)
    assert plain(terms, None, 0)[0].item() == -0.5


def test_gradnorm_leaves_the_divergence_alone(vae):
    """It does not reach the layer that makes the image."""
    task, batch = vae(), batch_of(2, 3, 8, 8)
    fixed, _ = task.balances(10)
    balance = choose(BalanceConfig("gradnorm"), fixed, task.likelihoods, task.values_judged, 10)
    for step in range(3):
        terms = task.generator_losses(batch, task.generate(batch), None)
        _, weights = balance(terms, task.last_layer, step)
        assert float(weights["kl"]) == pytest.approx(1)
        assert float(weights["likelihood"]) == pytest.approx(1, rel=1e-5)


# Samples


def test_samples_follow_the_seed_and_nothing_else(vae):
    task = vae().eval()
    batch = batch_of(3, 3, 10, 13)
    made = task.imagine(batch, 7)
    assert made.shape == (3, 3, 10, 13)
    state = torch.get_rng_state()
    other = dict(batch, image=batch["image"] * 5)
    assert torch.equal(task.imagine(other, 7), made)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(task.imagine(batch, 8), made)
    assert not torch.allclose(made[0], made[1])
    noise = torch.randn(3, 3, 3, 4, generator=torch.Generator().manual_seed(7))
    assert torch.equal(made, task.generator.decode(noise)[..., :10, :13])
    assert not made.requires_grad


def test_other_tasks_imagine_nothing(hole_task):
    assert hole_task().imagine(batch_of(1, 3, 8, 8), 0) is None


# Learning


@NOISES
def test_a_learned_scale_comes_to_the_error(vae, noise):
    """Noise that no decoder can make: the scale finds its root mean square, or mean deviation."""
    task = vae(noise=noise, scale="learned")
    rng = np.random.default_rng(0)
    drawn = (
        rng.normal(0, 0.2, (8, 3, 16, 16))
        if noise == "gaussian"
        else rng.laplace(0, 0.2, (8, 3, 16, 16))
    )
    batch = batch_of(8, 3, 16, 16)
    out = {"image": torch.zeros(8, 3, 16, 16), "mean": torch.zeros(8, 3, 4, 4)}
    out["log_variance"] = out["mean"]
    batch["image"] = torch.from_numpy(drawn).float()
    adam = torch.optim.Adam([task.generator.scale], 5e-4)
    for _ in range(150):
        loss = sum(task.generator_losses(batch, out, None).values())
        adam.zero_grad()
        loss.backward()
        adam.step()
    best = np.sqrt((drawn**2).mean()) if noise == "gaussian" else np.abs(drawn).mean()
    found = task.generator.log_scale.exp().item()
    assert found == pytest.approx(best, rel=1e-3)
    assert found == pytest.approx(0.2, rel=0.05)
    # There it is the optimal one, so both say the same.
    optimal = vae(noise=noise).generator_losses(batch, out, None)["likelihood"]
    assert optimal.item() == pytest.approx(loss.item(), rel=1e-4)


@NOISES
@pytest.mark.parametrize("scale", ["optimal", "learned"])
def test_one_batch_can_be_learned_by_heart(vae, noise, scale):
    """Colours of two smooth tiles: from the nats of their own spread to far less."""
    task = vae(noise=noise, scale=scale, generator=VAENetworkConfig(latent=4, width=8, depth=3))
    ramp = torch.linspace(-0.8, 0.8, 16)
    image = torch.stack(
        [ramp.expand(16, 16), ramp.view(16, 1).expand(16, 16), ramp.expand(16, 16).flip(1)]
    )
    batch = batch_of(2, 3, 16, 16)
    batch["image"] = torch.stack([image, -image * 0.5])
    adam = torch.optim.Adam(task.parameters(), 4e-3 if scale == "optimal" else 2e-3)
    torch.manual_seed(1)
    likelihoods, totals = [], []
    for _ in range(250):
        terms = task.generator_losses(batch, task.generate(batch), None)
        adam.zero_grad()
        sum(terms.values()).backward()
        adam.step()
        likelihoods.append(terms["likelihood"].item())
        totals.append(sum(terms.values()).item())
    # Never better than if the mean colour were all that is said, to begin with ...
    assert likelihoods[0] > 0.4
    # ... and in the end an error of a twelfth of the range of a tile at most.
    level = likelihood_of(0.1, noise)
    assert np.mean(likelihoods[-20:]) < level
    assert np.mean(totals[-20:]) < 0.3 * totals[0]
    task.eval()
    made = task.sample(batch, 0)["image"]
    assert (made - batch["image"]).abs().mean() < 0.1


def test_a_learned_scale_is_there_in_time(vae):
    """At the learning rate of the networks: what the data say within 200 steps, not 10,000."""
    task, (batch, out) = vae(scale="learned"), half_known(vae())
    out["image"] = batch["image"] + 0.05
    adam = torch.optim.Adam(task.parameters(), TrainingConfig().generator_lr)
    for _ in range(200):
        adam.zero_grad()
        task.generator_losses(batch, out, None)["likelihood"].backward()
        adam.step()
    assert task.generator.log_scale.exp().item() == pytest.approx(0.05, rel=0.05)


def likelihood_of(scale, noise):
    """Nats per value where the noise has just that scale."""
    if noise == "gaussian":
        return 0.5 * (1 + math.log(2 * math.pi)) + math.log(scale)
    return 1 + math.log(2 * scale)


def test_settings_of_the_network_are_passed_on(vae):
    shape = VAENetworkConfig(latent=5, width=6, depth=3, norm="none", up="subpixel")
    coder = vae(generator=shape).generator
    assert (coder.latent, coder.depth, coder.encoder[0].out_channels) == (5, 3, 6)
    assert coder.log_scale is None
    learned = vae(generator=replace(shape, norm="batch"), scale="learned").generator
    assert learned.log_scale.item() == 0
    assert any(isinstance(layer, torch.nn.BatchNorm2d) for layer in learned.modules())
