"""Names what goes wrong in a training, from its lines of metrics alone.

Every rule compares a run with itself, with a share, or with the truth, never with an absolute loss,
so one set of thresholds does for every task and every game. A rule holds at single lines; only what
holds at most of several lines is a finding, and the first steps never count.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from ganlab.training.advice import ADVICE, Finding

Lines = Sequence[Mapping[str, float]]
Points = list[tuple[int, float]]
"""Steps with the value of one name."""
Marks = list[tuple[int, str | None]]
"""Steps, each with the evidence if a rule holds there."""

SETTLING = 50
"""Steps that are not judged: every network begins with nonsense, and Adam with a guess."""
PATIENCE = 4
"""Lines at which a rule must hold: one or two are noise, ten would come too late ..."""
SPAN = 6
"""... among so many in a row: one good batch in between does not end what goes wrong."""
SURE = 0.97
"""Share of patches judged rightly from which the discriminator has nothing left to learn: in odds,
half-way from the 0.85 of healthy games to the 0.995 of decided ones."""
GUESSING = 0.55
"""Share below which it is about as good as a coin."""
WORSE = 0.05
"""Rise of an adversarial term that is more than noise, in its own units (all games are made of
logits, whose natural scale is 1) or as a share of what it began with, if that is more."""
VANISHED = 0.01
"""Gradients below this share of the first ones; healthy ones vary by a factor of ten."""
EXPLODED = 30.0
"""Gradients above this multiple of the first ones: that of a discriminator, which begins nearly
flat, grows up to eightfold in healthy games, and thousandfold in those that run away."""
SAME = 0.05
"""Diversity of what is made, relative to the truth, below which the outputs are one image; blurred
answers to hard questions have 0.1."""
BLANK = 0.05
"""Contrast below which nothing is seen; the blurred images of the first hundred steps have 0.2."""
FLAT = 0.9
"""Error, relative to that of one colour, above which a reconstruction is none, and ..."""
FELL = 0.95
"""... the share of its first value above which it has not fallen."""
CHECKED = 10.0
"""Energy of checkerboards as a multiple of the truth's; transposed convolutions have 4 to 7 in the
first hundred steps without anybody calling it a failure."""
SWING = 0.25
"""Share of patches by which the verdict must swing: from sure (0.9) to nearly guessing (0.65)."""
LEAP = 1.5
"""Factor by which an error of the same tiles must swing."""
TURNS = 4
"""Swings that make an oscillation: two are a setback and its repair."""
RECENT = 20
"""Lines in which they must lie; what is slower than that is a drift."""
GAP = 1.5
"""Error on new tiles over that on the training's, relative to the smallest such ratio so far: some
difference between two sets of tiles is there from the start."""
STALE = 0.98
"""Error on new tiles, relative to the least one ``PATIENCE`` looks ago and before, from which it no
longer falls."""
APART = 300.0
"""Ratio of the hardest pull at the last layer to the weakest; 100 : 1 by pix2pix's weights is 3 to
100 in gradients."""


def diagnose(lines: Lines, failure: Mapping[str, Any] | None = None) -> list[Finding]:
    """What goes wrong in a run, in the order in which it began.

    A pure function of the lines, which may be those of a run that still goes on. What is not
    logged is not judged: without ``watch_every`` there is nothing about images, without
    ``gradients_every`` nothing about proportions. Blank outputs are also all alike and wrong, and
    are named as blank alone; the same holds for outputs that are all alike.

    Args:
        lines: ``{"step": ..., name: value, ...}``, oldest first.
        failure: what ``failure.json`` of a run that broke off holds.
    """
    lines = [line for line in lines if math.isfinite(line.get("step", math.nan))]
    found = {}
    for kind, rule in RULES.items():
        lasting = [last for marks in rule(lines) if (last := _lasting(marks))]
        if lasting:
            found[kind] = min(lasting)
    if "blank_output" in found:
        found.pop("mode_collapse", None)
    if "blank_output" in found or "mode_collapse" in found:
        found.pop("flat_reconstruction", None)
    findings = [_finding(kind, *where) for kind, where in found.items()]
    return sorted([*findings, *_non_finite(lines, failure)], key=lambda f: (f.steps, f.kind))


def _finding(kind: str, first: int, last: int, evidence: str) -> Finding:
    return Finding(kind, (first, last), evidence, *ADVICE[kind])


def _lasting(marks: Marks) -> tuple[int, int, str] | None:
    """The last time that a rule held at ``PATIENCE`` of ``SPAN`` lines: from, to, evidence."""
    held = [i for i, (_, evidence) in enumerate(marks) if evidence]
    first = last = -1
    for start, end in zip(held, held[PATIENCE - 1 :], strict=False):
        if end - start < SPAN:
            first, last = (first if start <= last else start), end
    return None if last < 0 else (marks[first][0], marks[last][0], str(marks[last][1]))


def _series(lines: Lines, name: str) -> Points:
    """Finite values of one name, with their steps."""
    return [(int(x["step"]), x[name]) for x in lines if math.isfinite(x.get(name, math.nan))]


def _start(points: Points) -> float:
    """Where a value began: the median of the first three, 0 for none."""
    return median(value for _, value in points[:3]) if points else 0.0


def _marks(points: Points, holds: Callable[[float], bool], told: str) -> Marks:
    """Where a rule holds after the first steps; ``told`` is the evidence, with {} for the value."""
    after = [point for point in points if point[0] > SETTLING]
    return [(step, told.format(value) if holds(value) else None) for step, value in after]


def _non_finite(lines: Lines, failure: Mapping[str, Any] | None) -> list[Finding]:
    bad = [(int(failure.get("step", 0)), failure.get("place") or "a loss")] if failure else []
    for line in lines:
        # Infinite gradients are how fp16 finds its scale.
        names = [k for k in line if not k.endswith("/norm") and "/gradient/" not in k]
        infinite = [name for name in names if not math.isfinite(line[name])]
        bad += [(int(line["step"]), ", ".join(infinite))] if infinite else []
    return [_finding("non_finite", s, s, f"Not finite at step {s}: {at}.") for s, at in bad[:1]]


def _discriminator_overpowers(lines: Lines) -> list[Marks]:
    told = "The discriminator judges {:.1%} of the patches rightly."
    return [_marks(_series(lines, "discriminator/accuracy"), lambda x: x >= SURE, told)]


def _generator_overpowers(lines: Lines) -> list[Marks]:
    terms = _series(lines, "discriminator/adversarial")
    # The least of the first three: a discriminator that is run over loses at once.
    start, now = min([value for _, value in terms[:3]], default=0.0), dict(terms)
    risen = start + WORSE * max(1.0, abs(start))
    told = (
        "The discriminator judges {:.1%} of the patches rightly, no better than a coin, and its "
        f"loss is above the {start:.3g} with which it began."
    )
    points = _series(lines, "discriminator/accuracy")
    shares = [(step, share if now.get(step, -math.inf) >= risen else 1.0) for step, share in points]
    return [_marks(shares, lambda x: x <= GUESSING, told)]


def _gradient(lines: Lines, name: str, who: str, limit: float) -> Marks:
    """Where a gradient left its first size by a factor: above 1 by growing, else by falling."""
    # That of a term is taken for one unit of its weight, which may fade out on purpose.
    weights = dict(_series(lines, name.replace("/gradient/", "/weight/")))
    points = _series(lines, name)
    if name.startswith("generator/gradient/"):
        points = [(step, pull / w) for step, pull in points if (w := weights.get(step, 1.0)) > 0]
    # What vanishes is compared with the most that there was: it may be gone after ten steps.
    start = max([x for _, x in points[:3]], default=0.0) if limit < 1 else _start(points)
    if not 0 < start < math.inf:
        return []
    told = f"The gradient of {who} went from {start:.3g} to {{:.3g}}."
    return _marks(points, lambda x: x >= limit * start if limit > 1 else x <= limit * start, told)


def _pulls(lines: Lines) -> list[str]:
    names = {name for line in lines for name in line}
    return sorted(name for name in names if name.startswith("generator/gradient/"))


def _vanishing_gradient(lines: Lines) -> list[Marks]:
    # Not the discriminator's, which vanishes when it has won.
    whole = _gradient(lines, "generator/norm", "the generator", VANISHED)
    terms = [(name, f"the generator's {name.rsplit('/', 1)[1]} term") for name in _pulls(lines)]
    return [whole, *(_gradient(lines, name, who, VANISHED) for name, who in terms)]


def _exploding_gradient(lines: Lines) -> list[Marks]:
    players = ("generator", "discriminator")
    return [_gradient(lines, f"{player}/norm", f"the {player}", EXPLODED) for player in players]


def _mode_collapse(lines: Lines) -> list[Marks]:
    inputs, noise = _series(lines, "look/diversity"), _series(lines, "look/imagined")
    told = "{:.1%} of what true images do."
    return [
        _marks(inputs, lambda x: x <= SAME, f"Outputs for different inputs differ by {told}"),
        _marks(noise, lambda x: x <= SAME, f"Samples from noise differ by {told}"),
    ]


def _oscillation(lines: Lines) -> list[Marks]:
    shares = _series(lines, "discriminator/accuracy")
    errors = [(s, math.log(max(e, 1e-9))) for s, e in _series(lines, "look/error/train")]
    shared = _marks(
        _turns(shares, SWING),
        lambda x: x >= TURNS,
        ("The share of patches judged rightly went up and down {:.0f} times."),
    )
    wrong = _marks(
        _turns(errors, math.log(LEAP)),
        lambda x: x >= TURNS,
        ("The error on training tiles went up and down {:.0f} times."),
    )
    return [shared, wrong]


def _turns(points: Points, swing: float) -> Points:
    """How often, in the last ``RECENT`` lines, a value turned and went ``swing`` the other way."""
    turned: list[bool] = []
    points = [point for point in points if point[0] > SETTLING]
    direction, low, high = 0, math.inf, -math.inf
    for _, value in points:
        low, high = min(low, value), max(high, value)
        fell = direction >= 0 and value <= high - swing
        rose = direction <= 0 and value >= low + swing
        turned.append(fell or rose)
        if fell or rose:
            direction, low, high = 1 if rose else -1, value, value
    recent = [sum(turned[max(0, i - RECENT) : i]) for i in range(1, len(turned) + 1)]
    return [(step, float(count)) for (step, _), count in zip(points, recent, strict=True)]


def _flat_reconstruction(lines: Lines) -> list[Marks]:
    points = _series(lines, "look/error/train")
    start = points[0][1] if points else 0.0
    told = (
        "The error on training tiles is {:.2f} times that of one colour, and was "
        f"{start:.2f} times at the first look."
    )
    return [_marks(points, lambda x: x >= max(FLAT, FELL * start), told)]


def _blank_output(lines: Lines) -> list[Marks]:
    told = "The contrast of the outputs is {:.1%} of the truth's."
    return [_marks(_series(lines, "look/contrast"), lambda x: x <= BLANK, told)]


def _checkerboard(lines: Lines) -> list[Marks]:
    told = "Checkerboards have {:.3g} times the energy that they have in the truth."
    return [_marks(_series(lines, "look/checkerboard"), lambda x: x >= CHECKED, told)]


def _over_fitting(lines: Lines) -> list[Marks]:
    train, new = dict(_series(lines, "look/error/train")), _series(lines, "look/error/validation")
    pairs = [(s, train[s], e) for s, e in new if s > SETTLING and train.get(s, 0.0) > 0]
    marks: Marks = []
    for i, (step, here, error) in enumerate(pairs):
        before = pairs[: max(0, i - PATIENCE)]
        least, known = min(((e, h) for _, h, e in before), default=(math.inf, 0.0))
        gap = min((e / h for _, h, e in before), default=math.inf)
        told = (
            f"The error on training tiles fell from {known:.3g} to {here:.3g} times that of one "
            f"colour, that on validation tiles is {error:.3g} and was {least:.3g} before."
        )
        holds = error >= STALE * least and here < known and error >= GAP * gap * here
        marks.append((step, told if holds else None))
    return [marks]


def _weights_out_of_proportion(lines: Lines) -> list[Marks]:
    names = _pulls(lines)
    marks: Marks = []
    weights = {name: name.replace("/gradient/", "/weight/") for name in names}
    starts = {name: _start(_series(lines, weights[name])) for name in names}
    for line in lines:
        # A term that fades out is meant to, and one that never reaches this layer says 0.
        kept = [n for n in names if line.get(weights[n], math.inf) >= starts[n] / 2]
        pulls = {n: line[n] for n in kept if 0 < line.get(n, 0.0) < math.inf}
        if line["step"] > SETTLING and len(pulls) > 1:
            weak, hard = min(pulls, key=pulls.__getitem__), max(pulls, key=pulls.__getitem__)
            ratio = pulls[hard] / pulls[weak]
            told = (
                f"At the last layer the {hard.rsplit('/', 1)[1]} term pulls {ratio:.3g} times as "
                f"hard as the {weak.rsplit('/', 1)[1]} term."
            )
            marks.append((int(line["step"]), told if ratio >= APART else None))
    return [marks]


RULES: dict[str, Callable[[Lines], list[Marks]]] = {
    "discriminator_overpowers": _discriminator_overpowers,
    "generator_overpowers": _generator_overpowers,
    "vanishing_gradient": _vanishing_gradient,
    "exploding_gradient": _exploding_gradient,
    "mode_collapse": _mode_collapse,
    "oscillation": _oscillation,
    "flat_reconstruction": _flat_reconstruction,
    "blank_output": _blank_output,
    "checkerboard": _checkerboard,
    "over_fitting": _over_fitting,
    "weights_out_of_proportion": _weights_out_of_proportion,
}
"""Each gives marks for every series that it looks at."""
