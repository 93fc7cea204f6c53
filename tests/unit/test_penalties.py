"""Penalties on slopes against closed forms, finite differences and each other."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from ganlab.errors import InputError
from ganlab.networks.attention import SelfAttention
from ganlab.networks.patchgan import GlobalLocal, PatchGAN
from ganlab.stabilize.penalties import R1, R2, GradientPenalty, ZeroCentred

KINDS = [R1, R2, GradientPenalty, ZeroCentred]
NETWORKS = ["patch", "channel", "attention", "zeroed", "crop"]


def numbers(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def squares(count, size, dtype=torch.float64):
    """A hole of another place in each image."""
    hole = torch.zeros(count, 1, size, size, dtype=dtype)
    for i in range(count):
        hole[i, :, 1 + i % 4 : size // 2, 2 : size // 2 + i % 3] = 1
    return hole


def network(kind, size=16):
    """One of the library's, with weights of a size that a training reaches, and its condition."""
    torch.manual_seed(3)
    options = {"width": 4, "layers": 2 if size > 12 else 1}
    if kind in ("zeroed", "crop"):
        found = GlobalLocal(2, **options | {"layers": 1}, local=kind)
    else:
        norm = "channel" if kind == "channel" else "none"
        found = PatchGAN(3, **options, norm=norm, attention=kind == "attention")
    with torch.no_grad():
        for name, values in found.named_parameters():
            values.mul_(6) if "weight" in name and values.ndim > 1 else values.normal_(0, 0.3)
    for layer in found.modules():
        if isinstance(layer, SelfAttention):
            layer.gamma.data.fill_(0.7)
    return found.double()


def value(term):
    return float(term.detach())


class Linear(nn.Module):
    """Two patches, each a weighted sum of all pixels; the condition is weighed as well."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, condition, image):
        maps = torch.einsum("bchw,pchw->bp", image, self.weight)
        return [(maps[:, None, None] * (1 if condition is None else condition.mean()), [])]


class Quadratic(nn.Module):
    """x' A x / 2 in one logit, whose gradient is A x with a symmetric A."""

    def __init__(self, matrix):
        super().__init__()
        self.matrix = nn.Parameter(matrix)

    def forward(self, condition, image):
        x = image.flatten(1)
        return [(torch.einsum("bi,ij,bj->b", x, self.matrix, x)[:, None, None, None] / 2, [])]


def symmetric(size, seed=0):
    a = numbers(size, size, seed=seed)
    return (a + a.T) / 2


# Closed forms


@pytest.mark.parametrize("kind", KINDS)
def test_of_a_linear_discriminator(kind):
    weight = numbers(2, 3, 4, 5)
    norm = float(weight.mean(0).norm())  # of the mean of both patches
    expected = {
        R1: norm**2 / 2,
        R2: norm**2 / 2,
        ZeroCentred: norm**2,
        GradientPenalty: (norm - 1) ** 2,
    }[kind]
    real, fake = numbers(6, 3, 4, 5, seed=1), numbers(6, 3, 4, 5, seed=2)
    term = kind(7.0)(Linear(weight), None, real, fake)
    assert term.shape == ()
    assert term.dtype == torch.float64
    assert value(term) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", [R1, R2])
def test_of_a_quadratic_discriminator_at_true_or_made_images(kind):
    """The mean of ||A x||^2 / 2, and its gradient with respect to A by hand."""
    real, fake = numbers(5, 1, 2, 3, seed=1), numbers(5, 1, 2, 3, seed=2)
    judge = Quadratic(symmetric(6))
    term = kind(1.0)(judge, None, real, fake)
    x = (real if kind is R1 else fake).flatten(1)
    a = judge.matrix.detach()
    assert value(term) == pytest.approx(float((x @ a).square().sum(1).mean() / 2), rel=1e-12)
    term.backward()
    # Of x' S' S x / 2 with S = (A + A') / 2: the symmetric part of A x x'.
    by_hand = a @ x.T @ x / len(x)
    torch.testing.assert_close(judge.matrix.grad, (by_hand + by_hand.T) / 2, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", [ZeroCentred, GradientPenalty])
def test_of_a_quadratic_discriminator_on_the_line_between(kind):
    """The place u is uniform: E ||A (r + u d)||^2 is a polynomial, and the norm an integral."""
    real, fake = numbers(3, 1, 2, 2, seed=1), numbers(3, 1, 2, 2, seed=2)
    a = symmetric(4)
    near, far = real.flatten(1) @ a, (fake - real).flatten(1) @ a
    share = (torch.arange(4000, dtype=torch.float64) + 0.5)[:, None, None] / 4000
    norms = (near + share * far).norm(dim=2)
    along = norms.square() if kind is ZeroCentred else (norms - 1).square()
    expected = along.mean()
    if kind is ZeroCentred:
        closed = near.square().sum(1) + (near * far).sum(1) + far.square().sum(1) / 3
        assert float(expected) == pytest.approx(float(closed.mean()), rel=1e-6)
    many = 40_000
    torch.manual_seed(0)
    repeated = [x.repeat(many, 1, 1, 1) for x in (real, fake)]
    term = value(kind(1.0)(Quadratic(a), None, *repeated))
    error = float(along.std(0).square().sum().sqrt()) / 3 / math.sqrt(many)
    assert term == pytest.approx(float(expected), abs=4 * error)
    assert error < 0.005 * float(expected)


def test_each_sample_has_a_place_of_its_own():
    seen = []

    def judge(condition, image):
        seen.append(image.detach())
        return [(image.mean((1, 2, 3), keepdim=True), [])]

    zero = torch.zeros(50, 2, 3, 3)
    torch.manual_seed(0)
    ZeroCentred(1.0)(judge, None, zero, zero + 1)
    places = seen[0].flatten(1)
    assert bool((places == places[:, :1]).all())  # one for all pixels of an image
    assert len(places[:, 0].unique()) == 50
    assert 0 <= float(places.min()) < 0.15
    assert 0.85 < float(places.max()) <= 1
    torch.manual_seed(0)
    ZeroCentred(1.0)(judge, None, zero, zero + 1)
    assert torch.equal(seen[0], seen[1])  # torch's generator decides


def test_only_the_slope_with_respect_to_the_image_counts():
    weight = numbers(2, 1, 3, 3)
    condition = torch.full((4, 1, 3, 3), 2.0, dtype=torch.float64, requires_grad=True)
    x = numbers(4, 1, 3, 3, seed=1).requires_grad_()
    term = R1(1.0)(Linear(weight), condition, x, x)
    assert value(term) == pytest.approx(float((2 * weight.mean(0)).square().sum() / 2), rel=1e-12)
    judge = Quadratic(symmetric(9))
    R1(1.0)(judge, condition, x, x).backward()
    assert x.grad is None
    assert judge.matrix.grad is not None


def test_heads_are_discriminators_of_their_own():
    """Two steep heads of opposite sign are not flat together."""
    weight = numbers(2, 1, 3, 3)
    heads = [Linear(weight), Linear(-weight), Linear(0 * weight)]

    def judge(condition, image):
        return [head(condition, image)[0] for head in heads]

    x, norm = numbers(4, 1, 3, 3, seed=1), float(weight.mean(0).norm())
    assert value(R1(1.0)(judge, None, x, x)) == pytest.approx(norm**2 / 3, rel=1e-12)
    expected = (2 * (norm - 1) ** 2 + 1) / 3
    assert value(GradientPenalty(1.0)(judge, None, x, x)) == pytest.approx(expected, rel=1e-12)


# Derivatives of the penalties


@pytest.mark.parametrize(
    ("kind", "net", "step"),
    [
        *[(kind, "crop", step) for kind in KINDS for step in (0.0, 0.01)],
        *[(R1, net, step) for net in NETWORKS[:-1] for step in (0.0, 0.01)],
        (GradientPenalty, "attention", 0.0),
    ],
)
def test_its_gradient_with_respect_to_the_weights(kind, net, step):
    """Along random directions in the space of all weights, by differences in float64."""
    judge = network(net)
    hole, real, fake = squares(3, 16), numbers(3, 2, 16, 16, seed=1), numbers(3, 2, 16, 16, seed=2)
    penalty = kind(1.0, step=step)
    weights = list(judge.parameters())

    def term():
        torch.manual_seed(5)  # the same place and the same direction
        return penalty(judge, hole, real, fake)

    gradients = torch.autograd.grad(term(), weights, allow_unused=True)
    for seed in range(3):
        torch.manual_seed(seed)
        way = [torch.randn_like(weight) for weight in weights]
        analytic = sum(
            float((g * w).sum()) for g, w in zip(gradients, way, strict=True) if g is not None
        )
        values, h = [], 1e-7
        for sign in (h, -2 * h):
            with torch.no_grad():
                for weight, w in zip(weights, way, strict=True):
                    weight += sign * w
            values.append(value(term()))
        with torch.no_grad():
            for weight, w in zip(weights, way, strict=True):
                weight += h * w
        assert abs(analytic) > 1e-3
        assert analytic == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-4)


def plain_slice(image):
    """A random square, the same place for the batch, as a plain slice."""
    side = image.shape[2] // 2
    top, left = torch.randint(0, side + 1, (2,)).tolist()
    return image[:, :, top : top + side, left : left + side]


class Cropping(nn.Module):
    """A PatchGAN that looks at one part of the image."""

    def __init__(self, crop):
        super().__init__()
        self.judge, self.crop = network("patch"), crop

    def forward(self, condition, image):
        return self.judge(None, self.crop(torch.cat([condition, image], 1)))


def test_twice_through_a_random_crop():
    """Nested gradients through a crop, which failed where the crop was an operation of its own."""
    judge = Cropping(plain_slice)
    hole, real = squares(3, 32), numbers(3, 2, 32, 32, seed=1)
    torch.manual_seed(1)
    R1(1.0)(judge, hole, real, real).backward()
    weights = [weight for weight in judge.judge.parameters() if weight.grad is not None]
    found = [weight.grad.clone() for weight in weights]
    judge.zero_grad()
    torch.manual_seed(1)
    cut = plain_slice(torch.cat([hole, real], 1))
    R1(1.0)(judge.judge, cut[:, :1], cut[:, 1:], real).backward()
    for ours, weight in zip(found, weights, strict=True):
        torch.testing.assert_close(ours, weight.grad, rtol=1e-10, atol=1e-14)
    assert any(float(gradient.abs().max()) > 1e-3 for gradient in found)


class Foreign(torch.autograd.Function):
    """A crop with a gradient of its own that cannot be differentiated again."""

    @staticmethod
    def forward(ctx, image):
        ctx.shape = image.shape
        return image[:, :, 4:20, 4:20].clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        whole = gradient.new_zeros(ctx.shape)
        whole[:, :, 4:20, 4:20] = gradient
        return whole


def test_what_crops_that_cannot_be_differentiated_do():
    """They fail aloud; differences need no derivative of the crop, and give the right term."""
    hole, real = squares(2, 32), numbers(2, 2, 32, 32, seed=1)
    detached = Cropping(lambda image: image.detach()[:, :, 4:20, 4:20])
    with pytest.raises(InputError, match="head 0 do not depend on the image"):
        R1(1.0)(detached, hole, real, real)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        R1(1.0)(Cropping(Foreign.apply), hole, real, real).backward()
    terms = []
    for crop in (detached.crop, Foreign.apply, lambda image: image[:, :, 4:20, 4:20]):
        torch.manual_seed(0)
        judge = Cropping(crop)
        term = R1(1.0, step=1e-3)(judge, hole, real, real)
        term.backward()
        terms.append([value(term), float(judge.judge.head.weight.grad.norm())])
    assert terms[0] == terms[1] == terms[2]
    assert min(terms[0]) > 0


def test_no_slope_at_all_is_no_nan():
    """The part of an image without hole is nothing: its slope is 0, where a norm has a corner."""
    judge, real = network("zeroed"), numbers(2, 2, 16, 16)
    term = GradientPenalty(1.0)(judge, torch.zeros(2, 1, 16, 16).double(), real, real)
    term.backward()
    whole = GradientPenalty(1.0)(judge.whole, torch.zeros(2, 1, 16, 16).double(), real, real)
    assert value(term) == pytest.approx((value(whole) + 1) / 2, rel=1e-12)
    for weight in judge.parameters():
        assert weight.grad is None or bool(weight.grad.isfinite().all())


# Differences against gradients


def slopes(penalty, judge, condition, image, times):
    """Of each head, ``(times, B)``: one random direction for each copy of the image."""
    found = []
    with torch.no_grad():
        for _ in range(times // 250):
            single = [x.repeat(250, 1, 1, 1) for x in (condition, image)]
            heads = penalty._slopes(judge, *single)
            found.append(torch.stack([head.view(250, -1) for head in heads]))
    return torch.cat(found, 1)


def mean(terms):
    """Over directions, of terms (heads, directions, images), and its standard error."""
    each = terms.mean((0, 2))
    return float(each.mean()), float(each.std() / math.sqrt(len(each)))


@pytest.mark.parametrize("net", NETWORKS)
def test_differences_are_the_gradient_in_the_mean(net):
    judge, r1, wgan = network(net), R1(1.0, step=1e-3), GradientPenalty(1.0, step=1e-3)
    hole, image = squares(2, 16), numbers(2, 2, 16, 16, seed=1)
    torch.manual_seed(0)
    found = slopes(r1, judge, hole, image, 1500)
    for penalty in (r1, wgan):
        exact = value(type(penalty)(1.0)(judge, hole, image, image))
        got, error = mean(penalty._estimate(found))
        assert error < 0.05 * max(exact, 0.3)
        assert got == pytest.approx(exact, abs=4 * error)
    # This could fail: the penalty that one would write down first is seen to be another one.
    plain, error = mean((found.abs() - 1).square())
    assert abs(plain - exact) > 8 * error


@pytest.mark.parametrize("kind", KINDS)
def test_differences_of_a_call_are_those_of_its_parts(kind):
    """One call with many images against the exact term, at the places where that is taken."""
    judge, size = network("patch"), 12
    hole = squares(1, size).expand(1500, -1, -1, -1)
    real, fake = (numbers(1, 2, size, size, seed=s).expand(1500, -1, -1, -1) for s in (1, 2))
    terms = {}
    for step in (0.0, 1e-3):
        torch.manual_seed(0)
        terms[step] = value(kind(1.0, step=step)(judge, hole, real, fake))
    # Of squares of normal numbers the deviation is sqrt(2) of the mean; of wgan_gp's below 2.
    assert terms[1e-3] == pytest.approx(
        terms[0.0], abs=4 * 2 * max(terms[0.0], 0.5) / math.sqrt(1500)
    )


def test_differences_of_a_quadratic_are_exact_in_the_mean_for_any_step():
    """Central ones: D(x + s e) - D(x - s e) = 2 s e'A x has no term of the curvature."""
    a, x = symmetric(4), numbers(1, 1, 2, 2, seed=1)
    exact = float((x.flatten() @ a).square().sum()) / 2
    for step in (1e-3, 1.0, 30.0):
        torch.manual_seed(0)
        penalty = R1(1.0, step=step)
        found = slopes(penalty, Quadratic(a), torch.zeros(1, 1, 2, 2), x, 20_000)
        got, error = mean(penalty._estimate(found))
        assert got == pytest.approx(exact, abs=4 * error)
        assert error < 0.02 * exact


def test_differences_see_one_state_of_a_spectral_norm():
    """Its iteration moves at every pass; without care that would count as slope."""
    judge = PatchGAN(4, width=4, layers=2, norm="none").double()
    for layer in [m for m in judge.modules() if isinstance(m, nn.Conv2d)]:
        spectral_norm(layer)
    hole, image = torch.randn(2, 2, 16, 16).double(), numbers(2, 2, 16, 16, seed=1)
    judge(hole, image)
    first = {name: x.clone() for name, x in judge.state_dict().items()}
    terms = {}
    for step in (1e-5, 1e-7):  # the error of a state that moves would go with 1 / step
        judge.load_state_dict(first)
        torch.manual_seed(0)
        terms[step] = value(R1(1.0, step=step)(judge, hole, image, image))
    moved = [not torch.equal(first[name], x) for name, x in judge.state_dict().items()]
    assert any(moved)
    assert terms[1e-7] == pytest.approx(terms[1e-5], rel=0.02)
    assert terms[1e-7] > 0


# In a training


@pytest.mark.parametrize("step", [0.0, 0.05])
def test_lazily_it_is_the_same_in_expectation(step):
    """every * term on each k-th step against the term on each: value and gradient, both noisy."""
    judge = Quadratic(symmetric(4) / 3)
    penalties = {k: R1(2.0, every=k, step=step) for k in (1, 4)}
    torch.manual_seed(0)
    found = {}
    for k, penalty in penalties.items():
        steps = []
        for number in range(800):
            if number % penalty.every == 0:
                real = torch.randn(8, 1, 2, 2).double()
                term = penalty.every * penalty.weight * penalty(judge, None, real, real)
                (gradient,) = torch.autograd.grad(term, judge.matrix)
                steps.append(torch.cat([term.detach()[None], gradient.flatten()]))
        rows = torch.stack(steps) / k
        found[k] = rows.mean(0), rows.std(0) / math.sqrt(len(rows))
    apart = (found[1][0] - found[4][0]) / (found[1][1].square() + found[4][1].square()).sqrt()
    assert float(apart.abs().max()) < 4
    # E ||A x||^2 of standard normal x is the sum of the squares of A.
    a = judge.matrix.detach()
    assert float(found[1][0][0]) == pytest.approx(
        float(a.square().sum()), abs=4 * float(found[1][1][0])
    )
    assert float(found[1][1][0]) < 0.04 * float(a.square().sum())


@pytest.mark.parametrize(("kind", "step"), list(itertools.product(KINDS, [0.0, 0.01])))
def test_autocast_around_it_changes_nothing(kind, step):
    judge = network("crop").float()
    hole = squares(2, 16, torch.float32)
    real, fake = (numbers(2, 2, 16, 16, seed=s, dtype=torch.float32) for s in (1, 2))
    torch.manual_seed(0)
    plain = kind(1.0, step=step)(judge, hole, real, fake)
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(0)
        inside = kind(1.0, step=step)(judge, hole, real, fake)
        # Images may come from a network in 16 bits: that costs their own rounding, no more.
        torch.manual_seed(0)
        coarse = kind(1.0, step=step)(judge, hole, real.bfloat16(), fake.bfloat16())
    assert plain.dtype == inside.dtype == coarse.dtype == torch.float32
    assert value(plain) == value(inside)
    assert value(coarse) == pytest.approx(value(plain), rel=0.01)
    coarse.backward()
    assert all(
        weight.grad is None or weight.grad.dtype == torch.float32 for weight in judge.parameters()
    )


def test_beside_a_compiled_discriminator_in_one_backward():
    """The loss through the compiled call, the exact penalty through ``forward``."""
    hole, real = squares(2, 16), numbers(2, 2, 16, 16)
    gradients = []
    for compiled in (False, True):
        judge = network("crop")
        if compiled:
            torch.compiler.reset()
            judge.compile(backend="aot_eager")
        loss = sum(logits.mean() for logits, _ in judge(hole, real))
        (loss + R1(1.0)(judge.forward, hole, real, real)).backward()
        gradients.append([weight.grad for weight in judge.parameters()])
    for plain, other in zip(*gradients, strict=True):
        torch.testing.assert_close(other, plain, rtol=1e-10, atol=1e-14)
    # The compiled call itself: no double backward, but two passes have one derivative.
    with pytest.raises(RuntimeError, match="double backward"):
        R1(1.0)(judge, hole, real, real).backward()
    terms = []
    for call in (judge, judge.forward):
        torch.manual_seed(0)
        judge.zero_grad()
        term = R1(1.0, step=0.01)(call, hole, real, real)
        term.backward()
        terms.append(
            [
                value(term),
                *(
                    float(weight.grad.norm())
                    for weight in judge.parameters()
                    if weight.grad is not None
                ),
            ]
        )
    assert terms[0] == pytest.approx(terms[1], rel=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_out_of_range_are_refused(kind):
    penalty = kind(0.5, every=4, step=0.1)
    assert (penalty.weight, penalty.every, penalty.step) == (0.5, 4, 0.1)
    for bad in (
        {"weight": -1.0},
        {"weight": math.nan},
        {"every": 0},
        {"step": -0.1},
        {"step": math.inf},
    ):
        with pytest.raises(InputError, match=f"^{kind.name} of weight"):
            kind(**{"weight": 1.0, **bad})
