"""The monitor's rules on streams made by hand: just above and just below each threshold."""

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ganlab.training import monitor
from ganlab.training.advice import ADVICE, Finding
from ganlab.training.monitor import RULES, diagnose

STEPS = tuple(range(50, 501, 50))


def stream(steps=STEPS, **series):
    """Lines in which a name is a constant or a function of the step; ``__`` stands for ``/``."""
    return [
        {"step": s} | {k.replace("__", "/"): v(s) if callable(v) else v for k, v in series.items()}
        for s in steps
    ]


def kinds(lines, failure=None):
    return [finding.kind for finding in diagnose(lines, failure)]


def late(value, start=1.0):
    """``start`` at the first three lines, ``value`` from then on."""
    return lambda step: start if step <= 150 else value


def fall(value, start=0.6):
    """``start`` until step 300, four lines before the last four."""
    return lambda step: start if step <= 300 else value


HEALTHY = {
    "generator__adversarial": lambda s: 0.7 + s / 1000,
    "generator__l1": lambda s: 0.3 - s / 5000,
    "generator__norm": lambda s: 40 + 10 * math.sin(s),
    "generator__weight__l1": 100.0,
    "generator__weight__adversarial": 1.0,
    "generator__gradient__l1": lambda s: 30 + 5 * math.cos(s),
    "generator__gradient__adversarial": lambda s: 1 + s / 100,
    "discriminator__adversarial": lambda s: 1.38 - s / 1000,
    "discriminator__accuracy": lambda s: 0.55 + s / 2000 + 0.05 * math.sin(s),
    "discriminator__norm": lambda s: 5 + s / 50,
    "look__contrast": lambda s: 0.2 + s / 1000,
    "look__diversity": lambda s: 0.12 + s / 1000,
    "look__checkerboard": lambda s: 7 - s / 100,
    "look__error__train": lambda s: 1.2 - s / 1000,
    "look__error__validation": lambda s: 1.2 - s / 1200,
    "look__imagined": 0.6,
    "look__variety": 0.01,
}


def test_a_healthy_stream_is_silent():
    assert diagnose(stream(**HEALTHY)) == []


def sawtooth(low, high):
    return lambda step: high if step // 50 % 2 else low


TWO_SIDED = {
    "discriminator_overpowers": [
        ({"discriminator__accuracy": 0.97}, True),
        ({"discriminator__accuracy": 0.969}, False),
    ],
    "generator_overpowers": [
        ({"discriminator__accuracy": 0.55, "discriminator__adversarial": late(1.471, 1.4)}, True),
        ({"discriminator__accuracy": 0.56, "discriminator__adversarial": late(1.471, 1.4)}, False),
        ({"discriminator__accuracy": 0.5, "discriminator__adversarial": late(1.469, 1.4)}, False),
        # Wasserstein's begins at 0.
        ({"discriminator__accuracy": 0.3, "discriminator__adversarial": late(0.051, 0.0)}, True),
        ({"discriminator__accuracy": 0.3, "discriminator__adversarial": late(0.049, 0.0)}, False),
    ],
    "vanishing_gradient": [
        ({"generator__norm": late(0.099, 10.0)}, True),
        ({"generator__norm": late(0.101, 10.0)}, False),
        ({"generator__gradient__adversarial": late(0.0099)}, True),
        (
            {
                "generator__gradient__l1": late(0.0099),
                "generator__weight__l1": late(0.0099),
            },
            False,  # it was faded out
        ),
        ({"generator__gradient__kl": 0.0}, False),
        ({"discriminator__norm": late(0.001)}, False),
    ],
    "exploding_gradient": [
        ({"generator__norm": late(301.0, 10.0)}, True),
        ({"generator__norm": late(299.0, 10.0)}, False),
        ({"discriminator__norm": late(301.0, 10.0)}, True),
    ],
    "mode_collapse": [
        ({"look__diversity": 0.05, "look__contrast": 0.5}, True),
        ({"look__diversity": 0.051, "look__contrast": 0.5}, False),
        ({"look__imagined": 0.05}, True),
        ({"look__imagined": 0.051}, False),
        ({"look__variety": 0.0}, False),  # pix2pix never had any
    ],
    "oscillation": [
        ({"discriminator__accuracy": sawtooth(0.6, 0.86)}, True),
        ({"discriminator__accuracy": sawtooth(0.6, 0.84)}, False),
        ({"look__error__train": sawtooth(0.4, 0.61)}, True),
        ({"look__error__train": sawtooth(0.4, 0.59)}, False),
        ({"discriminator__accuracy": lambda s: 0.5 + s / 1001}, False),
    ],
    "flat_reconstruction": [
        ({"look__error__train": late(0.96)}, True),
        ({"look__error__train": late(0.94)}, False),
        ({"look__error__train": 0.89}, False),
        ({"look__error__train": 0.91}, True),
    ],
    "blank_output": [
        ({"look__contrast": 0.05}, True),
        ({"look__contrast": 0.051}, False),
    ],
    "checkerboard": [
        ({"look__checkerboard": 10.0}, True),
        ({"look__checkerboard": 9.9}, False),
    ],
    "over_fitting": [
        ({"look__error__train": fall(0.39), "look__error__validation": 0.6}, True),
        ({"look__error__train": fall(0.41), "look__error__validation": 0.6}, False),
        ({"look__error__train": fall(0.3), "look__error__validation": fall(0.589)}, True),
        ({"look__error__train": fall(0.3), "look__error__validation": fall(0.587)}, False),
        # Both worse: a setback, no learning by heart.
        ({"look__error__train": fall(0.62), "look__error__validation": fall(1.2)}, False),
    ],
    "weights_out_of_proportion": [
        ({"generator__gradient__l1": 301.0, "generator__gradient__adversarial": 1.0}, True),
        ({"generator__gradient__l1": 299.0, "generator__gradient__adversarial": 1.0}, False),
        ({"generator__gradient__l1": 301.0, "generator__gradient__coarse": 0.0}, False),
        (
            {
                "generator__gradient__l1": late(0.003),
                "generator__weight__l1": late(0.003),
                "generator__gradient__adversarial": 1.0,
            },
            False,  # meant to fade
        ),
    ],
}


@pytest.mark.parametrize(
    ("kind", "series", "named"),
    [(kind, *case) for kind, cases in TWO_SIDED.items() for case in cases],
)
def test_each_kind_is_named_above_its_threshold_and_not_below(kind, series, named):
    assert (kind in kinds(stream(**series))) == named


def test_every_kind_has_a_rule_advice_and_a_test():
    assert set(RULES) | {"non_finite"} == set(ADVICE)
    assert set(TWO_SIDED) == set(RULES)


@pytest.mark.parametrize("kind", TWO_SIDED)
def test_what_is_named_stands_out_of_a_healthy_stream_alone(kind):
    series = next(series for series, named in TWO_SIDED[kind] if named)
    assert set(kinds(stream(**(HEALTHY | series)))) == {kind}


def blank_at(*steps):
    return stream(look__contrast=lambda s: 0.0 if s in steps else 0.5)


@pytest.mark.parametrize(
    ("steps", "found"),
    [
        ((100, 150, 200), None),
        ((50, 100, 150, 200), None),  # 50 is settling
        ((100, 150, 200, 250), (100, 250)),
        ((100, 200, 250, 350), (100, 350)),  # four of six lines
        ((100, 200, 250, 400), None),  # four of seven
        # What is told is the last stretch: one that begins anew, or one that goes on.
        ((100, 150, 200, 250, 350, 400, 450, 500), (100, 500)),
        ((100, 150, 200, 250, 450, 500), (100, 250)),
    ],
)
def test_a_rule_must_hold_at_four_of_six_lines_and_not_at_the_start(steps, found):
    findings = diagnose(blank_at(*steps))
    assert [finding.steps for finding in findings] == ([found] if found else [])


def test_the_last_stretch_is_told():
    held = {*range(100, 300, 50), *range(800, 1000, 50)}
    lines = stream(range(50, 1001, 50), look__contrast=lambda s: 0.0 if s in held else 0.5)
    (finding,) = diagnose(lines)
    assert finding.steps == (800, 950)


@pytest.mark.parametrize(
    ("flips", "named"),
    [
        ((200, 300, 400, 500), True),
        ((200, 300, 400), False),
        # Sixteen lines apart, all four are among the last twenty at four lines.
        ((200, 500, 800, 1000), True),
        ((200, 500, 800, 1050), False),
    ],
)
def test_an_oscillation_needs_four_swings_not_too_far_apart(flips, named):
    def share(step):
        return 0.6 + 0.3 * (sum(step >= flip for flip in flips) % 2)

    steps = range(50, 3001, 50)
    assert ("oscillation" in kinds(stream(steps, discriminator__accuracy=share))) == named


def test_evidence_has_the_numbers_and_advice_the_settings():
    (finding,) = diagnose(stream(look__contrast=0.034))
    assert finding == Finding("blank_output", (100, 500), finding.evidence, *ADVICE["blank_output"])
    assert "3.4%" in finding.evidence
    assert "generator_lr" in finding.remedy


def test_looks_may_be_rarer_than_lines():
    lines = stream(generator__l1=0.1)
    for line in lines:
        if line["step"] % 100 == 0:
            line["look/contrast"] = 0.01
    (finding,) = diagnose(lines)
    assert finding.steps == (100, 500)


def test_blank_outputs_are_not_named_three_times():
    series = {"look__contrast": 0.0, "look__diversity": 0.0, "look__error__train": 1.0}
    assert kinds(stream(**series)) == ["blank_output"]
    assert kinds(stream(**series | {"look__contrast": 0.5})) == ["mode_collapse"]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_named_with_its_place(bad):
    lines = stream(**HEALTHY)
    lines[4]["generator/l1"] = bad
    (finding,) = diagnose(lines)
    assert (finding.kind, finding.steps) == ("non_finite", (250, 250))
    assert "generator/l1" in finding.evidence
    lines = stream(**HEALTHY)
    lines[4]["generator/norm"] = lines[5]["generator/gradient/l1"] = bad  # fp16 does that
    assert diagnose(lines) == []


def test_a_failure_is_named_by_its_layer():
    failure = {"step": 123, "place": "generator.down.3: its output"}
    (finding,) = diagnose(stream(**HEALTHY), failure)
    assert finding.steps == (123, 123)
    assert "generator.down.3: its output" in finding.evidence
    (finding,) = diagnose([], {"step": 0, "place": None})
    assert "a loss" in finding.evidence


NAMES = [name.replace("__", "/") for name in HEALTHY]
NUMBERS = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([0.0, -1.0, 1e-300, 1e300, 0.04, 0.99, 20.0]),
)
LINE = st.fixed_dictionaries(
    {"step": st.integers(0, 10_000)}, optional=dict.fromkeys(NAMES, NUMBERS)
)


@settings(max_examples=150, deadline=None)
@given(st.lists(LINE, max_size=12), st.booleans())
def test_no_stream_raises(lines, ordered):
    if ordered:
        lines = sorted(lines, key=lambda line: line["step"])
    for finding in diagnose(lines):
        assert finding.kind in ADVICE
        assert finding.evidence.endswith(".")


@given(st.lists(LINE, min_size=1, max_size=1))
def test_one_line_says_nothing_but_what_is_not_finite(lines):
    assert set(kinds(lines)) <= {"non_finite"}


def test_adding_scale_to_a_game_changes_no_verdict_of_gradients():
    lines = stream(generator__norm=late(1e-3), discriminator__norm=late(1e3))
    scaled = [{k: v * (1e6 if "norm" in k else 1) for k, v in line.items()} for line in lines]
    assert (
        sorted(kinds(lines))
        == sorted(kinds(scaled))
        == ["exploding_gradient", "vanishing_gradient"]
    )


def test_thresholds_are_explained():
    source = Path(monitor.__file__).read_text()
    for name, value in vars(monitor).items():
        if name.isupper() and isinstance(value, (int, float)):
            after = source.split(f"\n{name} = ", 1)[1].splitlines()[1]
            assert after.startswith('"""'), name
