"""Adversarial games that can be solved on paper: orbits, eigenvalues and penalties by hand.

The Dirac-GAN (Mescheder et al. 2018, definition 2.1) has one true point, 0, and one made point,
theta; the discriminator is a slope, D(x) = psi x, or a line, psi x + c. Close to equilibrium

    d psi / dt = -r (m psi + p theta),    d theta / dt = q psi

with the slopes p and q of the two losses, a damping m that penalties and noise bring in, and r the
ratio of the learning rates. Everything below follows from these two lines, and each of it can also
be had from the losses of the library by automatic differentiation, in float64.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ganlab.errors import InputError
from ganlab.losses.adversarial import LOSSES, Heads, Penalty

_Slopes = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]

# Derivatives of the losses, by hand: that of D by the real and by the fake logit, that of G by the
# fake logit.
_SLOPES: dict[str, _Slopes] = {
    "vanilla": lambda r, f: (-(-r).sigmoid(), f.sigmoid(), -(-f).sigmoid()),
    "least_squares": lambda r, f: (2 * (r - 1), 2 * f, 2 * (f - 1)),
    "hinge": lambda r, f: (-(r < 1).to(r), (f > -1).to(f), -torch.ones_like(f)),
    "wasserstein": lambda r, f: (-torch.ones_like(r), torch.ones_like(f), -torch.ones_like(f)),
    "relativistic": lambda r, f: (-(f - r).sigmoid(), (f - r).sigmoid(), -(r - f).sigmoid()),
}

# Second derivatives of D's loss where both logits are the same: by the real and by the fake logit
# each, added; and by a shift of both.
_CURVATURES = {
    "vanilla": (0.5, 0.5),
    "least_squares": (4.0, 4.0),
    "hinge": (0.0, 0.0),
    "wasserstein": (0.0, 0.0),
    "relativistic": (0.5, 0.0),
}

# Derivatives of the bare penalties by psi, which is the gradient of D wherever it is taken.
_PENALTIES: dict[str, Callable[[Tensor], Tensor]] = {
    "r1": lambda psi: psi,
    "r2": lambda psi: psi,
    "zero_centred": lambda psi: 2 * psi,  # without the factor 1/2 of the other two
    "wgan_gp": lambda psi: 2 * (psi.abs() - 1) * psi.sign(),
}


@dataclass(frozen=True)
class DiracGAN:
    """The game on a line with two or three numbers: the state is ``(psi, theta)`` or with c last.

    Attributes:
        game: a name in :data:`ganlab.losses.adversarial.LOSSES`.
        penalties: terms of the discriminator's loss: R1, R2, WGAN-GP, zero-centred.
        noise: standard deviation of instance noise on true and made points; expectations are
            Gauss-Hermite sums of 16 points, exact for polynomials up to degree 31.
        ratio: learning rate of the discriminator over that of the generator.
        bias: whether the discriminator is a line.

    Raises:
        InputError: an unknown game or penalty, negative noise, a ratio that is not above 0.
    """

    game: str = "vanilla"
    penalties: Sequence[Penalty] = ()
    noise: float = 0.0
    ratio: float = 1.0
    bias: bool = False

    def __post_init__(self) -> None:
        if self.game not in LOSSES:
            raise InputError(f"game {self.game!r}: expected one of {', '.join(LOSSES)}")
        for penalty in self.penalties:
            if penalty.name not in _PENALTIES:
                raise InputError(
                    f"penalty {penalty.name!r}: not solved here; expected {', '.join(_PENALTIES)}"
                )
        if self.noise < 0 or not self.ratio > 0:
            raise InputError(
                f"noise {self.noise}, ratio {self.ratio}: expected at least 0, above 0"
            )

    @property
    def equilibrium(self) -> Tensor:
        """Where the made point is the true one and both players rest: ``(2,)`` or ``(3,)``.

        With least squares and no bias, all states with psi = 0 rest, this one among them: D(0) = 0
        is half a mistake that the discriminator cannot mend. A bias of 1/2 mends it.
        """
        rest = [0.0, 0.0, 0.5 if self.game == "least_squares" else 0.0]
        return torch.tensor(rest[: 2 + self.bias], dtype=torch.float64)

    def _points(self) -> tuple[Tensor, Tensor, Tensor]:
        """Noise of the true and of the made point, ``(B,)`` each, and the weight of the pair."""
        if self.noise == 0:
            return torch.zeros(1).double(), torch.zeros(1).double(), torch.ones(1).double()
        nodes, weights = (torch.from_numpy(x) for x in np.polynomial.hermite_e.hermegauss(16))
        pairs = torch.cartesian_prod(nodes, nodes) * self.noise
        return pairs[:, 0], pairs[:, 1], torch.outer(weights, weights).flatten() / (2 * math.pi)

    def field(self, state: Tensor) -> Tensor:
        """The velocity ``(..., 2 or 3)`` of states of that shape, from derivatives by hand."""
        real, noise, weight = self._points()
        psi, theta = state[..., 0, None], state[..., 1, None]
        bias = state[..., 2, None] if self.bias else torch.zeros_like(psi)
        fake = theta + noise
        of_real, of_fake, of_generator = _SLOPES[self.game](psi * real + bias, psi * fake + bias)
        damping = sum(
            (p.weight * _PENALTIES[p.name](psi[..., 0]) for p in self.penalties),
            torch.zeros_like(psi[..., 0]),
        )
        slope = (weight * (of_real * real + of_fake * fake)).sum(-1) + damping
        parts = [-self.ratio * slope, -psi[..., 0] * (weight * of_generator).sum(-1)]
        if self.bias:
            parts.append(-self.ratio * (weight * (of_real + of_fake)).sum(-1))
        return torch.stack(parts, -1)

    def simulated(self, state: Tensor) -> Tensor:
        """The velocity of one state, ``(2,)`` or ``(3,)``, by autograd from the library's losses.

        It keeps its graph where the state asks for gradients.
        """
        keep = state.requires_grad
        values = state if keep else state.detach().clone().requires_grad_()
        bias = values[2] if self.bias else values.new_zeros(())
        true, noise, weight = (x.view(-1, 1, 1, 1) for x in self._points())
        made = values[1] + noise

        def judge(condition: Tensor | None, image: Tensor) -> Heads:
            return [(values[0] * image + bias, [])]

        loss = LOSSES[self.game]
        (real, _), (fake, _) = judge(None, true)[0], judge(None, made)[0]
        of_d = (weight * loss.discriminator(real, fake)).sum()
        for penalty in self.penalties:
            of_d = of_d + penalty.weight * penalty(judge, None, true, made)
        of_g = (weight * loss.generator(real, fake)).sum()
        (by_d,) = torch.autograd.grad(of_d, values, create_graph=keep, retain_graph=True)
        (by_g,) = torch.autograd.grad(of_g, values, create_graph=keep)
        return torch.stack(
            [-by_g[i] if i == 1 else -self.ratio * by_d[i] for i in range(len(values))]
        )

    def update(
        self,
        state: Tensor,
        step: float,
        alternating: bool = False,
        field: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """The state after one step of gradient descent of both players.

        Args:
            state: ``(2,)`` or ``(3,)``; ``(..., 2 or 3)`` for :meth:`field`.
            step: the generator's learning rate.
            alternating: the generator answers the discriminator that has just moved.
            field: :meth:`simulated` (where None) or :meth:`field`, which is faster.
        """
        field = field or self.simulated
        if not alternating:
            return state + step * field(state)
        generator = torch.zeros_like(state)
        generator[..., 1] = step
        moved = state + (step - generator) * field(state)
        return moved + generator * field(moved)

    def orbit(
        self,
        start: Sequence[float] | Sequence[Sequence[float]],
        steps: int,
        step: float,
        alternating: bool = False,
        field: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """The states that :meth:`update` runs through, ``(steps + 1, 2 or 3)``.

        Several starts, for :meth:`field` only, give ``(steps + 1, starts, 2 or 3)``.
        """
        states = [torch.tensor(start, dtype=torch.float64)]
        for _ in range(steps):
            states.append(self.update(states[-1], step, alternating, field).detach())
        return torch.stack(states)

    def constants(self) -> tuple[float, float, float]:
        """The damping m and the slopes p and q of the two lines in the head of this module.

        Raises:
            InputError: WGAN-GP, whose force on psi jumps at the equilibrium.
        """
        if any(penalty.name == "wgan_gp" for penalty in self.penalties):
            raise InputError("WGAN-GP has no derivative at psi = 0; see wgan_gp_cycle")
        logit = self.equilibrium[2] if self.bias else torch.zeros(()).double()
        _, of_fake, of_generator = _SLOPES[self.game](logit, logit)
        damping = self.noise**2 * _CURVATURES[self.game][0]
        one = torch.ones(()).double()
        damping += sum(p.weight * _PENALTIES[p.name](one).item() for p in self.penalties)
        return damping, of_fake.item(), -of_generator.item()

    def eigenvalues(self, step: float | None = None, alternating: bool = False) -> list[complex]:
        """Of the flow at the equilibrium, or of one update of that step; that of the bias last.

        The flow is the paper's lemma 2.3, 3.2 (noise) and its section 4.1 (R1)::

            lambda = -r m / 2 +- sqrt(r**2 m**2 / 4 - r p q)

        A simultaneous update has 1 + h lambda, an alternating one

            mu = T / 2 +- sqrt(T**2 / 4 - (1 - h r m)),    T = 2 - h r m - h**2 r p q

        Raises:
            InputError: as :meth:`constants`.
        """
        m, p, q = self.constants()
        r, own = self.ratio, -self.ratio * _CURVATURES[self.game][1]
        pair = _roots(-r * m, r * p * q)
        if step is not None:
            if alternating:
                pair = _roots(2 - step * r * m - step**2 * r * p * q, 1 - step * r * m)
            else:
                pair = [1 + step * value for value in pair]
            own = 1 + step * own
        return [*pair, complex(own)] if self.bias else pair


def _roots(trace: float, determinant: float) -> list[complex]:
    """Eigenvalues of a 2 x 2 matrix."""
    root = complex(trace * trace / 4 - determinant) ** 0.5
    return [trace / 2 + root, trace / 2 - root]


def critical_damping(p: float, q: float, ratio: float = 1.0) -> float:
    """The damping m from which the orbit runs straight into the equilibrium, without circling.

    ``m = 2 sqrt(p q / r)``: for the vanilla game the paper's 2 f'(0) = 1.
    """
    return 2 * math.sqrt(p * q / ratio)


def wgan_gp_cycle(weight: float) -> float:
    """How far from the truth the Wasserstein game with WGAN-GP ends, for D(x) = psi x.

    While psi keeps its sign, theta is a damped pendulum around 2w or -2w. Below w = 1 it swings
    through psi = 0, where the centre jumps to the other side: a cycle remains, with theta between
    plus and minus ``2 w coth(pi w / (2 sqrt(1 - w**2)))``. From w = 1 on it never comes that far:
    theta creeps to 2w or -2w and stays.

    Args:
        weight: w, of ``(|psi| - 1)**2``, above 0; both players learn equally fast.

    Raises:
        InputError: a weight that is not above 0.
    """
    if not weight > 0:
        raise InputError(f"weight {weight}: expected above 0")
    if weight >= 1:
        return 2 * weight
    return 2 * weight / math.tanh(math.pi * weight / (2 * math.sqrt(1 - weight**2)))


class QuadraticJudge:
    """A discriminator of images whose gradient is known: the reference for penalties.

    Every patch gets the mean of ``w x + a x**2 / 2`` over its bands and pixels as logit; with
    a = 0 it is linear. No layer, no norm, no surprise.

    Args:
        linear: w, ``(C, k, k)``: the patch and its size.
        quadratic: a, of that shape; None is 0.
    """

    def __init__(self, linear: Tensor, quadratic: Tensor | None = None) -> None:
        self.linear = linear
        self.quadratic = torch.zeros_like(linear) if quadratic is None else quadratic

    def __call__(self, condition: Tensor | None, image: Tensor) -> Heads:
        """``(B, C, n k, m k)`` to logits ``(B, 1, n, m)``, without features."""
        size = self.linear.shape[-1]
        logits = F.conv2d(image, self.linear[None], stride=size)
        logits = logits + F.conv2d(image.square() / 2, self.quadratic[None], stride=size)
        return [(logits / self.linear.numel(), [])]

    def gradient(self, image: Tensor) -> Tensor:
        """Of the mean logit of every image by its pixels, by hand: the shape of ``image``.

        ``(w + a x) / (C k k n m)``: the mean over n m patches divides each gradient once more.
        """
        size = self.linear.shape[-1]
        tiles = (1, image.shape[-2] // size, image.shape[-1] // size)
        linear, quadratic = self.linear.repeat(tiles), self.quadratic.repeat(tiles)
        return (linear + quadratic * image) / linear.numel()

    def r1(self, real: Tensor) -> Tensor:
        """``E ||gradient||**2 / 2`` over true images, a scalar (Mescheder et al. 2018, eq. 9).

        For a linear judge ``|w|**2 / (2 n m (C k k)**2)`` whatever the images are.
        """
        return self.gradient(real).square().sum((1, 2, 3)).mean() / 2
