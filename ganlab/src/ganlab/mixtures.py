"""Mixtures of Gaussians in the plane, on which it can be counted what a GAN has lost.

A generator that leaves modes out is hard to convict on images; on a ring of eight Gaussians every
mode is known, and its samples are counted. Points are images of two bands and one pixel,
``(B, 2, 1, 1)``, so that games and penalties are those of the tasks.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from ganlab.errors import InputError
from ganlab.losses.adversarial import LOSSES, Heads, Penalty
from ganlab.randomness import derived_seed

WITHIN_THREE_SIGMA = 1 - math.exp(-4.5)
"""Share of a round Gaussian in the plane that lies within three standard deviations: 0.989."""


@dataclass(frozen=True, eq=False)
class Mixture:
    """Round Gaussians of equal weight.

    Attributes:
        centres: ``(n, 2)`` their means.
        std: the standard deviation that all of them have.
    """

    centres: Tensor
    std: float

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """``count`` points as images, ``(count, 2, 1, 1)`` float32."""
        mode = torch.randint(len(self.centres), (count,), generator=generator)
        noise = torch.randn(count, 2, generator=generator)
        return (self.centres[mode] + self.std * noise)[:, :, None, None]


def ring(modes: int = 8, radius: float = 2.0, std: float = 0.02) -> Mixture:
    """Gaussians on a circle; the defaults are those of Metz et al. 2017, section 3.1.

    Raises:
        InputError: no modes, or a radius or deviation that is not above 0.
    """
    if modes < 1 or not radius > 0 or not std > 0:
        raise InputError(f"ring of {modes} modes, radius {radius}, std {std}: expected all above 0")
    angle = torch.arange(modes) * (2 * math.pi / modes)
    return Mixture(radius * torch.stack([angle.cos(), angle.sin()], 1), std)


def grid(side: int = 5, spacing: float = 1.0, std: float = 0.05) -> Mixture:
    """``side`` x ``side`` Gaussians around 0, as in Srivastava et al. 2017 (VEEGAN), section 4.

    Raises:
        InputError: no modes, or a spacing or deviation that is not above 0.
    """
    if side < 1 or not spacing > 0 or not std > 0:
        raise InputError(f"grid of {side}, spacing {spacing}, std {std}: expected all above 0")
    steps = (torch.arange(side) - (side - 1) / 2) * spacing
    return Mixture(torch.cartesian_prod(steps, steps), std)


@dataclass(frozen=True)
class Coverage:
    """What is left of a mixture in generated points.

    Attributes:
        modes: number of covered modes.
        quality: share of points within three standard deviations of a mode.
        reverse_kl: KL divergence, in nats, of the histogram over nearest modes from the uniform
            one: 0 where all modes get their share, ``ln n`` where one gets everything.
    """

    modes: int
    quality: float
    reverse_kl: float


def coverage(points: Tensor, mixture: Mixture, fair: float = 0.2) -> Coverage:
    """Count the modes that points cover (Srivastava et al. 2017, section 4, made stricter).

    A mode is covered if at least the share ``fair`` of the points that the mixture itself would
    put within three standard deviations of it are there. One stray point covers nothing.

    Args:
        points: ``(B, 2, 1, 1)`` or ``(B, 2)``.
        mixture: the one they should come from.
        fair: above 0, at most 1.

    Raises:
        InputError: points of another shape, none of them, or a share out of range.
    """
    if points.dim() not in (2, 4) or not len(points) or points[0].numel() != 2:
        raise InputError(f"points of shape {tuple(points.shape)}: expected (B, 2) or (B, 2, 1, 1)")
    if not 0 < fair <= 1:
        raise InputError(f"fair share {fair}: expected above 0, at most 1")
    distance, nearest = torch.cdist(points.flatten(1), mixture.centres).min(1)
    modes = len(mixture.centres)
    near = distance <= 3 * mixture.std
    counts = torch.bincount(nearest[near], minlength=modes)
    expected = len(points) / modes * WITHIN_THREE_SIGMA
    share = torch.bincount(nearest, minlength=modes).double() / len(points)
    return Coverage(
        modes=int((counts >= fair * expected).sum()),
        quality=near.double().mean().item(),
        reverse_kl=(torch.xlogy(share, share * modes)).sum().item(),
    )


def perceptron(inputs: int, outputs: int, width: int, layers: int) -> nn.Sequential:
    """``(B, inputs)`` through hidden layers with leaky ReLU to ``(B, outputs)``, no norm."""
    sizes = [inputs] + [width] * layers
    hidden = [module for a, b in pairwise(sizes) for module in (nn.Linear(a, b), nn.LeakyReLU(0.2))]
    return nn.Sequential(*hidden, nn.Linear(width, outputs))


class PointGenerator(nn.Module):
    """Latents ``(B, latent)`` to points ``(B, 2, 1, 1)``."""

    def __init__(self, latent: int, width: int, layers: int) -> None:
        super().__init__()
        self.network = perceptron(latent, 2, width, layers)

    def forward(self, latents: Tensor) -> Tensor:
        points: Tensor = self.network(latents)
        return points[:, :, None, None]


class PointDiscriminator(nn.Module):
    """Judges points without a condition: ``(None, (B, 2, 1, 1)) -> [((B, 1, 1, 1), [])]``."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.network = perceptron(2, 1, width, layers)

    def forward(self, condition: Tensor | None, points: Tensor) -> Heads:
        return [(self.network(points.flatten(1))[:, :, None, None], [])]


@dataclass(frozen=True)
class PlayConfig:
    """How the two networks play.

    Attributes:
        game: a name in :data:`ganlab.losses.adversarial.LOSSES`.
        steps: updates of the generator.
        batch_size: points of each kind in an update.
        generator_lr: Adam's learning rate.
        discriminator_lr: the same for the discriminator.
        betas: Adam's decay rates, for both.
        n_critic: updates of the discriminator for one of the generator.
        decay: learning rates fall to 0, in a straight line.
        ema: decay of the averaged generator; 0 judges the weights as they are.
        latent: dimensions of the latent, standard normal.
        width: units of a hidden layer, in both networks.
        layers: hidden layers, in both networks.
        seed: of weights, latents and points.
    """

    game: str = "relativistic"
    steps: int = 3000
    batch_size: int = 256
    generator_lr: float = 1e-3
    discriminator_lr: float = 1e-3
    betas: tuple[float, float] = (0.0, 0.99)
    n_critic: int = 1
    decay: bool = True
    ema: float = 0.995
    latent: int = 8
    width: int = 64
    layers: int = 3
    seed: int = 0


def play(
    mixture: Mixture,
    config: PlayConfig,
    penalties: Sequence[Penalty] = (),
    watch: Callable[[int, Tensor], None] | None = None,
    watch_every: int = 500,
) -> Tensor:
    """Train a generator on a mixture and return 10,000 of its points.

    Args:
        mixture: the truth.
        config: the game and how it is played.
        penalties: terms of the discriminator's loss, each with its own weight and interval.
        watch: called with the step and 10,000 points of the averaged generator.
        watch_every: steps between two calls.

    Returns:
        ``(10000, 2, 1, 1)`` points of the averaged generator.

    Raises:
        InputError: a game that is not in LOSSES, or a number of steps below 1.
    """
    if config.game not in LOSSES:
        raise InputError(f"game {config.game!r}: expected one of {', '.join(LOSSES)}")
    if min(config.steps, config.n_critic) < 1 or not 0 <= config.ema < 1:
        raise InputError(
            f"{config.steps} steps, {config.n_critic} updates of the discriminator, ema "
            f"{config.ema}: expected at least 1, at least 1, and 0 to below 1"
        )
    loss = LOSSES[config.game]
    draw = torch.Generator().manual_seed(derived_seed(config.seed, "points"))
    look = torch.Generator().manual_seed(derived_seed(config.seed, "look"))
    seen = torch.randn(10_000, config.latent, generator=look)
    # Penalties may draw from the global generator, which the caller keeps as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(config.seed, "weights"))
        generator = PointGenerator(config.latent, config.width, config.layers)
        averaged = PointGenerator(config.latent, config.width, config.layers)
        averaged.load_state_dict(generator.state_dict())
        discriminator = PointDiscriminator(config.width, config.layers)
        g_step = torch.optim.Adam(
            generator.parameters(), config.generator_lr, config.betas, fused=True
        )
        d_step = torch.optim.Adam(
            discriminator.parameters(), config.discriminator_lr, config.betas, fused=True
        )
        latents = (config.batch_size, config.latent)
        for step in range(config.steps):
            left = 1 - step / config.steps if config.decay else 1.0
            g_step.param_groups[0]["lr"] = left * config.generator_lr
            d_step.param_groups[0]["lr"] = left * config.discriminator_lr
            for turn in range(config.n_critic):
                real = mixture.sample(config.batch_size, draw)
                with torch.no_grad():
                    fake = generator(torch.randn(latents, generator=draw))
                (judged_real, _), (judged_fake, _) = (
                    discriminator(None, points)[0] for points in (real, fake)
                )
                total = loss.discriminator(judged_real, judged_fake).mean()
                for penalty in penalties:
                    if (step * config.n_critic + turn) % penalty.every == 0:
                        term = penalty(discriminator, None, real, fake)
                        total = total + penalty.weight * penalty.every * term
                d_step.zero_grad()
                total.backward()  # type: ignore[no-untyped-call]
                d_step.step()
            real = mixture.sample(config.batch_size, draw)
            fake = generator(torch.randn(latents, generator=draw))
            discriminator.requires_grad_(False)
            judged_real = discriminator(None, real)[0][0] if loss.relativistic else None
            value = loss.generator(judged_real, discriminator(None, fake)[0][0]).mean()
            g_step.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            discriminator.requires_grad_(True)
            g_step.step()
            # Averages over few steps first: the weights of the start are no part of the answer.
            decay = min(config.ema, step / (step + 10))
            with torch.no_grad():
                for mean, weight in zip(averaged.parameters(), generator.parameters(), strict=True):
                    mean.lerp_(weight, 1 - decay)
                if watch is not None and (step + 1) % watch_every == 0:
                    watch(step + 1, averaged(seen))
    with torch.no_grad():
        points: Tensor = averaged(seen)
    return points
