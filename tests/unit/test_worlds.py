"""Games solved by hand against autograd through the losses of the library, in float64."""

import cmath
import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ganlab.errors import InputError
from ganlab.losses.adversarial import LOSSES
from ganlab.stabilize.penalties import R1, R2, GradientPenalty, ZeroCentred
from ganlab.worlds import DiracGAN, QuadraticJudge, critical_damping, wgan_gp_cycle

ONE, BOTH = (R1(0.3),), (R1(0.3), R2(2.0))
SETTINGS = [
    (game, penalties, noise, bias)
    for game, penalties, noise, bias in product(
        LOSSES, [(), ONE, BOTH, (ZeroCentred(0.4),)], [0.0, 0.7], [False, True]
    )
    if not (noise and len(penalties) == 1)
]


def simulated_eigenvalues(world, step=None, alternating=False):
    """Of the numbers that autograd gives, not of the formulas."""

    def move(state):
        if step is None:
            return world.simulated(state)
        return world.update(state, step, alternating)

    jacobian = torch.autograd.functional.jacobian(move, world.equilibrium)
    return torch.linalg.eigvals(jacobian).tolist()


def distance(found, expected):
    """Of two sets of complex numbers, whatever their order."""
    left, worst = list(expected), 0.0
    for value in found:
        nearest = min(left, key=lambda other: abs(other - value))
        left.remove(nearest)
        worst = max(worst, abs(nearest - value))
    return worst


@pytest.mark.parametrize(("game", "penalties", "noise", "bias"), SETTINGS)
def test_eigenvalues_derived_are_eigenvalues_simulated(game, penalties, noise, bias):
    world = DiracGAN(game, penalties, noise, ratio=1.7, bias=bias)
    for step, alternating in ((None, False), (0.1, False), (0.1, True), (1.3, True)):
        found = simulated_eigenvalues(world, step, alternating)
        derived = world.eigenvalues(step, alternating)
        assert len(derived) == len(found) == 2 + bias
        # A double eigenvalue is known to the root of the rounding error.
        assert distance(found, derived) < 1e-6, (step, alternating)
    assert world.simulated(world.equilibrium).abs().max() < 1e-12


NUMBER = st.floats(-2, 2)


@pytest.mark.parametrize("game", LOSSES)
@settings(max_examples=15, deadline=None)
@given(psi=NUMBER, theta=NUMBER, c=NUMBER, noise=st.sampled_from([0.0, 0.5]))
def test_the_field_derived_is_the_field_simulated(game, psi, theta, c, noise):
    for bias, penalty in ((False, R1(0.3)), (True, GradientPenalty(0.6))):
        world = DiracGAN(game, (penalty,), noise, ratio=0.5, bias=bias)
        # Where a penalty's norm or a hinge has a kink, any value is as good as another.
        psi = psi if abs(psi) > 1e-3 else 0.1
        state = torch.tensor([psi, theta, c][: 2 + bias], dtype=torch.float64)
        assert torch.allclose(world.field(state), world.simulated(state), atol=1e-9)


def test_fields_are_those_of_the_paper():
    """The curves of Mescheder et al. 2018 written down anew: f' is a sigmoid, or 1."""
    psi, theta = 0.7, -1.2
    state = torch.tensor([psi, theta], dtype=torch.float64)

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    def same(world, by_psi, by_theta):
        for value in (world.field(state), world.simulated(state)):
            assert value.tolist() == pytest.approx([by_psi, by_theta], abs=1e-12)

    t = psi * theta
    # Non-saturating, as in the code that goes with the paper.
    same(DiracGAN("vanilla"), -theta * sigmoid(t), psi * sigmoid(-t))
    same(DiracGAN("wasserstein"), -theta, psi)
    same(DiracGAN("hinge"), -theta, psi)
    same(DiracGAN("wasserstein", ONE), -theta - 0.3 * psi, psi)
    same(DiracGAN("wasserstein", (GradientPenalty(2.0),)), -theta - 4 * (abs(psi) - 1), psi)
    # One pair of a relativistic game is a pair of the vanilla one: D(0) = 0.
    same(DiracGAN("relativistic"), -theta * sigmoid(t), psi * sigmoid(-t))
    same(DiracGAN("least_squares"), -2 * theta * t, -2 * psi * (t - 1))


def test_eigenvalues_are_those_of_the_paper():
    """Lemmas 2.3 and 3.2 and section 4.1 of Mescheder et al. 2018, f'(0) = 1/2, f''(0) = -1/4."""
    gamma, sigma, first, second = 0.3, 0.7, 0.5, -0.25
    root = cmath.sqrt(gamma**2 / 4 - first**2)
    paper = {
        DiracGAN(): [first * 1j, -first * 1j],
        DiracGAN(penalties=ONE): [-gamma / 2 + root, -gamma / 2 - root],
        DiracGAN(noise=sigma): [
            second * sigma**2 + sign * cmath.sqrt(second**2 * sigma**4 - first**2)
            for sign in (1, -1)
        ],
    }
    for world, values in paper.items():
        assert distance(world.eigenvalues(), values) < 1e-12


@pytest.mark.parametrize("game", ["vanilla", "hinge", "wasserstein", "relativistic"])
def test_without_a_penalty_the_game_circles(game):
    world = DiracGAN(game)
    assert all(abs(value.real) < 1e-12 < abs(value.imag) for value in world.eigenvalues())
    assert all(abs(value) > 1.001 for value in world.eigenvalues(0.1))
    assert [abs(value) for value in world.eigenvalues(0.1, True)] == pytest.approx([1, 1])
    # Too large a step leaves the ellipse: h sqrt(p q) above 2.
    _, p, q = world.constants()
    edge = 2 / math.sqrt(p * q)
    assert max(map(abs, world.eigenvalues(0.999 * edge, True))) == pytest.approx(1)
    assert max(map(abs, world.eigenvalues(1.001 * edge, True))) > 1.01


def test_wasserstein_orbits_are_known_as_a_whole():
    world, h = DiracGAN("wasserstein"), 0.2
    radius = world.orbit([1.0, 0.5], 60, h).norm(dim=1)
    grown = 1.25**0.5 * (1 + h * h) ** (torch.arange(61).double() / 2)
    assert torch.allclose(radius, grown, rtol=1e-9)
    psi, theta = world.orbit([1.0, 0.5], 200, h, alternating=True).T
    ellipse = psi**2 + theta**2 - h * psi * theta
    assert torch.allclose(ellipse, ellipse[:1], rtol=1e-9)
    # The ellipse is gone round more than once: nothing rests.
    assert (psi.diff().sign().diff() != 0).sum() >= 10


def test_the_vanilla_orbit_closes_slowly_and_large_steps_keep_it_open():
    """1 / radius**2 grows by 1/8 a second; joint steps h push out to the radius sqrt(2 h)."""
    world = DiracGAN()
    orbit = world.orbit([0.4, 0.0], 2000, 0.05, alternating=True, field=world.field)
    last = orbit[-252:].square().sum(1).mean().item()  # one round takes 4 pi seconds
    assert last == pytest.approx(1 / (6.25 + (100 - 2 * math.pi) / 8), rel=0.01)
    orbit = world.orbit([[0.3, 0.0], [0.8, 0.0]], 2000, 0.1, field=world.field)
    for radius in orbit[-126:].norm(dim=2).mean(0).tolist():
        assert radius == pytest.approx(math.sqrt(0.2), rel=0.03)


@pytest.mark.parametrize("game", ["vanilla", "hinge", "wasserstein", "relativistic"])
def test_r1_converges_and_turns_from_spiral_to_node(game):
    _, p, q = DiracGAN(game).constants()
    edge = critical_damping(p, q)
    assert edge == pytest.approx({"vanilla": 1, "relativistic": 1}.get(game, 2))
    for weight, circles in ((0.99 * edge, True), (1.01 * edge, False)):
        values = simulated_eigenvalues(DiracGAN(game, (R1(weight),)))
        assert all(value.real < -0.1 for value in values)
        assert all((abs(value.imag) > 1e-3) == circles for value in values)
    for alternating in (False, True):
        world = DiracGAN(game, (R1(edge),))
        end = world.orbit([0.8, 0.5], 300, 0.1, alternating)[-1]
        assert end.abs().max() < 1e-4


def test_at_its_edge_damping_is_as_fast_as_it_gets():
    rate = [
        -max(v.real for v in DiracGAN(penalties=(R1(g),)).eigenvalues()) for g in (0.5, 1.0, 1.5)
    ]
    assert rate == pytest.approx([0.25, 0.5, 0.75 - math.sqrt(0.75**2 - 0.25)])


def test_noise_damps_games_that_curve_and_no_others():
    """m = sigma**2 times the curvature; straight lines average noise away."""
    for game, damping in (("vanilla", 0.245), ("relativistic", 0.245), ("least_squares", 1.96)):
        assert DiracGAN(game, noise=0.7).constants()[0] == pytest.approx(damping)
    for game in ("hinge", "wasserstein"):
        values = simulated_eigenvalues(DiracGAN(game, noise=0.3))
        assert distance(values, [1j, -1j]) < 1e-6
    world = DiracGAN(noise=1.0)
    assert world.orbit([0.8, 0.5], 600, 0.1, field=world.field)[-1].abs().max() < 1e-5


@pytest.mark.parametrize("weight", [0.1, 0.5])
def test_wgan_gp_ends_in_the_cycle_that_was_derived(weight):
    world = DiracGAN("wasserstein", (GradientPenalty(weight),))
    orbit = world.orbit([[0.5, 0.1], [0.5, 3.0]], 4000, 0.02, True, world.field)[-500:, :, 1]
    expected = wgan_gp_cycle(weight)
    assert orbit.max(0).values.tolist() == pytest.approx([expected] * 2, rel=0.03)
    assert orbit.min(0).values.tolist() == pytest.approx([-expected] * 2, rel=0.03)
    assert wgan_gp_cycle(1e-6) == pytest.approx(4 / math.pi, rel=1e-4)


def test_heavy_wgan_gp_stops_at_the_wrong_place():
    world = DiracGAN("wasserstein", (GradientPenalty(2.0),))
    end = world.orbit([0.5, 0.0], 800, 0.1, field=world.field)[-1]
    assert end.tolist() == pytest.approx([0, 4], abs=1e-3)
    assert end[1].item() == pytest.approx(wgan_gp_cycle(2.0), abs=1e-3)


def test_least_squares_rests_where_it_should_only_with_a_bias():
    """Without one, D(0) = 0 misses its target 1, and every theta rests once psi is 0."""
    world = DiracGAN("least_squares")
    for theta in (-3.0, 0.0, 0.4):
        assert world.simulated(torch.tensor([0.0, theta]).double()).abs().max() < 1e-12
    psi, theta = world.orbit([0.5, 1.0], 400, 0.1)[-1]
    assert abs(psi) < 1e-6
    assert abs(theta) > 0.5
    lined = DiracGAN("least_squares", bias=True)
    assert lined.equilibrium.tolist() == [0, 0, 0.5]
    assert distance(lined.eigenvalues(), [1j, -1j, -4]) < 1e-12
    damped = DiracGAN("least_squares", (R1(1.0),), bias=True)
    end = damped.orbit([0.3, 0.3, 0.0], 600, 0.05)[-1]
    assert (end - damped.equilibrium).abs().max() < 1e-4


class Unknown(R1):
    name = "unknown"

    def __init__(self):
        super().__init__(1.0)


def test_what_cannot_be_solved_says_so():
    with pytest.raises(InputError, match="game 'go': expected one of vanilla"):
        DiracGAN("go")
    with pytest.raises(InputError, match="penalty 'unknown': not solved here"):
        DiracGAN(penalties=(Unknown(),))
    with pytest.raises(InputError, match="ratio 0"):
        DiracGAN(ratio=0)
    with pytest.raises(InputError, match="no derivative at psi = 0"):
        DiracGAN("wasserstein", (GradientPenalty(1.0),)).eigenvalues()
    with pytest.raises(InputError, match="weight 0"):
        wgan_gp_cycle(0)


@pytest.mark.parametrize("curved", [False, True])
def test_the_gradient_of_a_quadratic_judge_is_that_of_autograd(curved):
    generator = torch.Generator().manual_seed(3)
    linear, quadratic = (torch.randn(3, 4, 4, generator=generator).double() for _ in range(2))
    image = torch.randn(5, 3, 8, 12, generator=generator).double()
    judge = QuadraticJudge(linear, quadratic if curved else None)
    (logits, _), *others = judge(None, image)
    assert logits.shape == (5, 1, 2, 3)
    assert not others
    patch = image[1, :, 4:, 8:]
    by_hand = linear * patch + (quadratic * patch**2 / 2 if curved else 0)
    assert logits[1, 0, 1, 2].item() == pytest.approx(by_hand.mean().item())
    image.requires_grad_()
    (by,) = torch.autograd.grad(judge(None, image)[0][0].mean((1, 2, 3)).sum(), image)
    assert torch.allclose(by, judge.gradient(image.detach()), atol=1e-12)
    term = R1(1.0)(judge, None, image.detach(), image.detach())
    assert term.item() == pytest.approx(judge.r1(image.detach()).item())
    if not curved:
        expected = linear.square().sum() / (2 * 6 * 48**2)
        assert judge.r1(image.detach()).item() == pytest.approx(expected.item())
