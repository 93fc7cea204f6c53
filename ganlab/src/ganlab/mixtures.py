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
from torch.nn import functional as F

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


class Perceptrons(nn.Module):
    """One perceptron for each seed, run side by side: ``(S B, inputs)`` to ``(S B, outputs)``.

    Networks this small cost calls, not arithmetic, so ten take little longer than one. Leaky ReLU,
    no norm; weights from N(0, 2 / inputs) (He et al. 2015, eq. 10), biases from N(0, 0.01).

    Args:
        seeds: one for each of the S members, which share nothing.
        sizes: units of the layers, inputs first, outputs last.
        name: of the network, so that two of one seed do not start alike.
    """

    def __init__(self, seeds: Sequence[int], sizes: Sequence[int], name: str) -> None:
        super().__init__()
        self.members = len(seeds)
        sources = [torch.Generator().manual_seed(derived_seed(seed, name)) for seed in seeds]

        def drawn(std: float, *shape: int) -> nn.Parameter:
            draws = [torch.randn(shape, generator=source) for source in sources]
            return nn.Parameter(std * torch.stack(draws))

        pairs = list(pairwise(sizes))
        self.weights = nn.ParameterList([drawn((2 / a) ** 0.5, a, b) for a, b in pairs])
        self.biases = nn.ParameterList([drawn(0.1, 1, b) for _, b in pairs])

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(self.members, -1, x.shape[-1])
        for level, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, F.leaky_relu(x, 0.2) if level else x, weight)
        return x.flatten(0, 1)


class PointGenerator(Perceptrons):
    """Latents ``(S B, latent)`` to points ``(S B, 2, 1, 1)``."""

    def __init__(self, seeds: Sequence[int], latent: int, width: int, layers: int) -> None:
        super().__init__(seeds, [latent] + [width] * layers + [2], "generator")

    def forward(self, latents: Tensor) -> Tensor:
        return super().forward(latents)[:, :, None, None]


class PointDiscriminator(Perceptrons):
    """Judges points, no condition: ``(None, (S B, 2, 1, 1)) -> [((S B, 1, 1, 1), [])]``."""

    def __init__(self, seeds: Sequence[int], width: int, layers: int) -> None:
        super().__init__(seeds, [2] + [width] * layers + [1], "discriminator")

    def forward(self, condition: Tensor | None, points: Tensor) -> Heads:  # type: ignore[override]
        return [(super().forward(points.flatten(1))[:, :, None, None], [])]


@dataclass(frozen=True)
class PlayConfig:
    """How the two networks play.

    With R1 and R2 of weight 0.05 the defaults cover all of ``ring(std=0.05)`` in nine of ten
    seeds and seven modes in the tenth (``benchmarks/worlds.py``, ``book/results/11/worlds``).

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
    """

    game: str = "relativistic"
    steps: int = 2500
    batch_size: int = 64
    generator_lr: float = 3e-3
    discriminator_lr: float = 3e-3
    betas: tuple[float, float] = (0.5, 0.99)
    n_critic: int = 1
    decay: bool = True
    ema: float = 0.995
    latent: int = 8
    width: int = 64
    layers: int = 3


def play(
    mixture: Mixture,
    config: PlayConfig,
    penalties: Sequence[Penalty] = (),
    seeds: Sequence[int] = (0,),
    watch: Callable[[int, Tensor], None] | None = None,
    watch_every: int = 500,
) -> Tensor:
    """Train a generator for each seed on a mixture, and return 10,000 points of each.

    Args:
        mixture: the truth.
        config: the game and how it is played.
        penalties: terms of the discriminator's loss, each with its own weight and interval.
        seeds: of weights, latents and points, one for each of S games that share nothing.
        watch: called with the step and points of the averaged generators.
        watch_every: steps between two calls.

    Returns:
        ``(S, 10000, 2, 1, 1)`` points of the averaged generators.

    Raises:
        InputError: a game that is not in LOSSES, or a number out of its range.
    """
    if config.game not in LOSSES:
        raise InputError(f"game {config.game!r}: expected one of {', '.join(LOSSES)}")
    if min(config.steps, config.n_critic, len(seeds)) < 1 or not 0 <= config.ema < 1:
        raise InputError(
            f"{config.steps} steps, {config.n_critic} updates of the discriminator, {len(seeds)} "
            f"seeds, ema {config.ema}: expected at least 1 of each, and ema in [0, 1)"
        )
    loss, count = LOSSES[config.game], len(seeds)
    draws = [torch.Generator().manual_seed(derived_seed(seed, "points")) for seed in seeds]

    def latents(size: int) -> Tensor:
        return torch.cat([torch.randn(size, config.latent, generator=draw) for draw in draws])

    def points() -> Tensor:
        return torch.cat([mixture.sample(config.batch_size, draw) for draw in draws])

    def turn(player: nn.Module, rate: float) -> torch.optim.Adam:
        return torch.optim.Adam(player.parameters(), rate, config.betas, fused=True)

    shape = (config.width, config.layers)
    generator, averaged = (PointGenerator(seeds, config.latent, *shape) for _ in range(2))
    discriminator = PointDiscriminator(seeds, *shape)
    g_turn = turn(generator, config.generator_lr)
    d_turn = turn(discriminator, config.discriminator_lr)
    seen = latents(10_000)
    for step in range(config.steps):
        left = 1 - step / config.steps if config.decay else 1.0
        g_turn.param_groups[0]["lr"] = left * config.generator_lr
        d_turn.param_groups[0]["lr"] = left * config.discriminator_lr
        for number in range(step * config.n_critic, (step + 1) * config.n_critic):
            real = points()
            with torch.no_grad():
                fake = generator(latents(config.batch_size))
            of_real, of_fake = (discriminator(None, x)[0][0] for x in (real, fake))
            total = loss.discriminator(of_real, of_fake).mean()
            for penalty in penalties:
                if number % penalty.every == 0:
                    term = penalty(discriminator, None, real, fake)
                    total = total + penalty.weight * penalty.every * term
            d_turn.zero_grad()
            # A mean over all games would divide the gradient of each by their number.
            (count * total).backward()  # type: ignore[no-untyped-call]
            d_turn.step()
        discriminator.requires_grad_(False)
        judged = discriminator(None, points())[0][0] if loss.relativistic else None
        of_fake = discriminator(None, generator(latents(config.batch_size)))[0][0]
        g_turn.zero_grad()
        (count * loss.generator(judged, of_fake).mean()).backward()  # type: ignore[no-untyped-call]
        discriminator.requires_grad_(True)
        g_turn.step()
        # Averages over few steps first: the weights of the start are no part of the answer.
        decay = min(config.ema, step / (step + 10))
        with torch.no_grad():
            for mean, weight in zip(averaged.parameters(), generator.parameters(), strict=True):
                mean.lerp_(weight, 1 - decay)
            if watch is not None and (step + 1) % watch_every == 0:
                watch(step + 1, averaged(seen).view(count, -1, 2, 1, 1))
    with torch.no_grad():
        made: Tensor = averaged(seen)
    return made.view(count, -1, 2, 1, 1)
