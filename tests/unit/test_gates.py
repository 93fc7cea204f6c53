"""Gates against the rule written once more, in ratios instead of logarithms."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ganlab.errors import InputError
from ganlab.stabilize import gates
from ganlab.stabilize.gates import Gate
from ganlab.training import checkpoints

BOTH, NO_GENERATOR, NO_DISCRIMINATOR = (True, True), (False, True), (True, False)
RANGES = {"loss_ratio": (0.2, 5.0), "accuracy": (0.5, 0.9)}


def gate(kind, every=1):
    return Gate(kind, *RANGES[kind], every)


def see(gate, measure):
    """One step with this ratio or share; the other numbers would decide otherwise."""
    if gate.kind == "loss_ratio":
        gate.observe(*torch.tensor([0.5 * measure, 0.5, 1.0 if measure < 1 else 0.0]))
    else:
        gate.observe(*torch.tensor([1000.0 if measure < 0.7 else 0.001, 1.0, measure]))
    return gate.open


@pytest.mark.parametrize(
    ("kind", "walk"),
    [
        # 5 ** 0.9 = 4.257 and 0.2 ** 0.9 = 0.235
        ("loss_ratio", [(1, BOTH), (4.99, BOTH), (5.01, NO_DISCRIMINATOR), (4.99, NO_DISCRIMINATOR),
                        (4.26, NO_DISCRIMINATOR), (4.25, BOTH), (4.99, BOTH), (0.201, BOTH),
                        (0.199, NO_GENERATOR), (0.234, NO_GENERATOR), (0.236, BOTH),
                        (0.1, NO_GENERATOR), (80, NO_DISCRIMINATOR), (1e-3, NO_GENERATOR)]),
        ("accuracy", [(0.7, BOTH), (0.899, BOTH), (0.901, NO_DISCRIMINATOR),
                      (0.881, NO_DISCRIMINATOR), (0.879, BOTH), (0.501, BOTH),
                      (0.499, NO_GENERATOR), (0.519, NO_GENERATOR), (0.521, BOTH),
                      (1, NO_DISCRIMINATOR), (0, NO_GENERATOR), (1, NO_DISCRIMINATOR)]),
    ],
)  # fmt: skip
def test_who_rests(kind, walk):
    found = gate(kind)
    assert found.open == BOTH
    for measure, expected in walk:
        assert see(found, measure) == expected, measure


@settings(max_examples=100, deadline=None)
@given(
    kind=st.sampled_from(sorted(RANGES)),
    measures=st.lists(st.floats(0, 1), min_size=1, max_size=30),
    bounds=st.lists(st.floats(0.05, 0.95), min_size=2, max_size=2, unique=True),
)
def test_decisions_follow_the_rule(kind, measures, bounds):
    low, high = sorted(bounds)
    if kind == "loss_ratio":
        low, high, measures = 40 * low, 40 * high, [40 * m for m in measures]
    # Where a rest ends: one tenth of the way from the bound to the middle.
    if kind == "loss_ratio":
        up, down = high * (low / high) ** 0.05, low * (high / low) ** 0.05
    else:
        up, down = high - (high - low) / 20, low + (high - low) / 20
    found, rests = Gate(kind, low, high, 1), None
    for measure in measures:
        if min(abs(measure - bound) for bound in (low, high, up, down)) < 1e-5 * high:
            continue  # float32 may fall on either side
        if rests == "D" and measure < up:
            rests = None
        if rests == "G" and measure > down:
            rests = None
        if measure > high:
            rests = "D"
        elif measure < low:
            rests = "G"
        assert see(found, measure) == (rests != "G", rests != "D")


@pytest.mark.parametrize("side", [0, 1], ids=["low", "high"])
@pytest.mark.parametrize("kind", sorted(RANGES))
def test_a_measure_that_trembles_at_a_bound_moves_the_gate_once(kind, side, monkeypatch):
    def changes():
        found, states = gate(kind), [BOTH]
        bound, other = RANGES[kind][side], RANGES[kind][1 - side]
        for step in range(40):
            # Up to half a margin to both sides.
            share = (-1) ** step * 0.05 / 2
            if kind == "loss_ratio":
                measure = bound * (other / bound) ** share
            else:
                measure = bound + (other - bound) * share
            states.append(see(found, measure))
        return sum(a != b for a, b in zip(states[1:], states, strict=False))

    assert changes() == 1
    monkeypatch.setattr(gates, "MARGIN", 0.0)
    assert changes() == 39  # what the margin is for


def test_decisions_come_at_their_time_from_means():
    found = gate("accuracy", every=4)
    for share in (1.0, 1.0, 1.0):
        assert see(found, share) == BOTH
    assert see(found, 0.7) == NO_DISCRIMINATOR  # 0.925 in the mean
    for share in (0.0, 0.0, 0.0):
        assert see(found, share) == NO_DISCRIMINATOR
    assert see(found, 0.9) == NO_GENERATOR  # nothing is left of the steps before


def test_a_ratio_is_that_of_the_means():
    found = gate("loss_ratio", every=2)
    found.observe(*torch.tensor([9.0, 1.0, 0.0]))
    found.observe(*torch.tensor([1.0, 3.0, 0.0]))
    assert found.open == BOTH  # 10 / 4; the mean of the ratios were 4.67, near the last bound
    found.observe(*torch.tensor([0.0, 0.1, 0.0]))
    found.observe(*torch.tensor([10.0, 1.8, 0.0]))
    assert found.open == NO_DISCRIMINATOR  # 10 / 1.9, where the mean of the ratios were 2.8


def test_numbers_that_say_nothing_open_the_gate():
    nan, inf = math.nan, math.inf
    for kind, closed, numbers in [
        ("loss_ratio", 80, [(nan, 1, 0), (1, nan, 0), (inf, 1, 0), (1, inf, 0), (inf, inf, 0)]),
        ("loss_ratio", 80, [(9, 0, 0), (9, -1, 0), (-9, -1, 0), (0, 0, 0), (-inf, 1, 0)]),
        ("accuracy", 1, [(1, 1, nan), (1, 1, inf), (1, 1, -inf)]),
    ]:
        for given_now in numbers:
            found = gate(kind)
            assert see(found, closed) == NO_DISCRIMINATOR
            found.observe(*torch.tensor(given_now, dtype=torch.float32))
            assert found.open == BOTH, given_now
            assert see(found, closed) == NO_DISCRIMINATOR  # and they leave no trace
    found = gate("loss_ratio")
    found.observe(*torch.tensor([-0.5, 0.5, nan]))  # a hinge game that the generator wins
    assert found.open == NO_GENERATOR
    found = gate("accuracy")
    found.observe(*torch.tensor([nan, -1, 0.95]))
    assert found.open == NO_DISCRIMINATOR


def test_only_decisions_wait_for_the_device():
    """Meta tensors have no numbers: whoever asks for one fails."""
    found = gate("accuracy", every=3)
    for _ in range(2):
        found.observe(*torch.zeros(3, device="meta"))
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        found.observe(*torch.zeros(3, device="meta"))


def test_sums_hold_no_graph():
    found = gate("accuracy", every=3)
    found.observe(*torch.ones(3, requires_grad=True))
    assert not found.state_dict()["sums"].requires_grad


def test_processes_decide_alike_from_the_mean_of_all():
    """One alone would let the discriminator rest, the other the generator."""
    pair, waiting = [gate("accuracy", 2), gate("accuracy", 2)], []
    shares = [(1.0, 0.0), (0.95, 0.1)]
    for mine in range(2):
        # What a reduction over both would give: 0.5125, out of 0.975 and 0.05.
        other = torch.tensor(shares, dtype=torch.float32).mean(0)[1 - mine]

        def reduce(value, other=other):
            waiting.append(value)
            mean = value.clone()
            mean[2] = (value[2] + other) / 2
            return mean

        pair[mine].reduce = reduce
        for step in shares:
            see(pair[mine], step[mine])
    assert len(waiting) == 2
    assert [found.open for found in pair] == [BOTH, BOTH]


@pytest.mark.parametrize("kind", sorted(RANGES))
def test_a_gate_goes_on_from_a_checkpoint(tmp_path, kind):
    low, high = RANGES[kind]
    noise = torch.rand(60, generator=torch.Generator().manual_seed(0))
    place = 0.4 + 0.8 * torch.sin(torch.arange(60) / 5) + 0.2 * noise
    ratio = kind == "loss_ratio"
    measures = low * (high / low) ** place if ratio else low + (high - low) * place
    whole = gate(kind, 3)
    states = [see(whole, measure) for measure in measures]
    assert {*states} == {BOTH, NO_GENERATOR, NO_DISCRIMINATOR}
    for stop in range(1, 40):
        first, second = gate(kind, 3), gate(kind, 3)
        for measure in measures[:stop]:
            see(first, measure)
        checkpoints.save(tmp_path / "a", first.state_dict())
        second.load_state_dict(checkpoints.load(tmp_path / "a"))
        assert second.open == first.open
        assert [see(second, measure) for measure in measures[stop:]] == states[stop:]
        for key, value in whole.state_dict().items():
            assert torch.as_tensor(value or 0).equal(torch.as_tensor(second.state_dict()[key] or 0))


def test_what_one_process_saves_is_of_all():
    """The others start from it, so a mean over processes stays what it was."""
    pair = [gate("accuracy", 2) for _ in range(2)]
    for found, share in zip(pair, (1.0, 0.5), strict=True):
        see(found, share)
    both = torch.stack([found.state_dict()["sums"] for found in pair]).mean(0)
    pair[0].reduce = lambda value: both
    assert pair[0].state_dict()["sums"].tolist()[2] == 0.75


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [
        *[("loss_ratio", *pair) for pair in [(0, 5), (-1, 5), (5, 0.2), (2, 2), (1, math.inf)]],
        *[("accuracy", *pair) for pair in [(-0.1, 0.9), (0.5, 1.1), (0.9, 0.5), (0.7, 0.7)]],
        *[(kind, math.nan, 0.5) for kind in sorted(RANGES)],
    ],
)
def test_impossible_ranges_are_refused(kind, low, high):
    with pytest.raises(InputError, match=f"gate range {low}, {high}: expected 0 <"):
        Gate(kind, low, high, 1)


def test_a_gate_that_never_decides_is_refused():
    with pytest.raises(InputError, match="every 0 steps never does"):
        Gate("accuracy", 0, 1, 0)
    assert see(Gate("accuracy", 0, 1, 1), 1.0) == BOTH  # no bound at all is possible
