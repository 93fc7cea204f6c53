"""A history of whole samples, counted one by one; past means against their definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ganlab.errors import InputError
from ganlab.stabilize.replay import HistoricalAverage, Replay
from ganlab.training import checkpoints

PARTS = {"condition": 2, "real": 3, "fake": 3, "valid": 1}


def samples(first, size, *, conditional=True, device="cpu"):
    """A batch in which the parts of sample i hold 10 i, 10 i + 1, 10 i + 2 and 10 i + 3."""
    numbers = torch.arange(first, first + size, dtype=torch.float32, device=device)
    batch = [
        (10 * numbers + part).view(-1, 1, 1, 1).expand(size, channels, 4, 5).clone()
        for part, channels in enumerate(PARTS.values())
    ]
    return batch if conditional else [None, *batch[1:]]


def who(batch):
    """The numbers of the samples in a batch, each of whose values has to be as it was given."""
    numbers = (batch[2][:, 0, 0, 0].long() - 2) // 10
    for part, values in enumerate(batch):
        if values is not None:
            expected = (10.0 * numbers + part).view(-1, 1, 1, 1).expand_as(values)
            assert torch.equal(values, expected)
    return numbers.tolist()


def remembered(replay):
    held = replay.state_dict()["held"]
    parts = [held.get(name) for name in PARTS]
    return who(parts) if held else []


# --- history of samples


@settings(max_examples=60, deadline=None)
@given(
    capacity=st.integers(1, 12),
    size=st.integers(1, 12),
    calls=st.integers(1, 12),
    conditional=st.booleans(),
    seed=st.integers(0, 99),
)
def test_half_of_a_batch_is_of_the_past(capacity, size, calls, conditional, seed):
    """Against a record of who was given, shown and remembered."""
    torch.manual_seed(seed)
    capacity = max(capacity, size)
    replay = Replay(capacity)
    for call in range(calls):
        given_now = list(range(size * call, size * (call + 1)))
        before = remembered(replay)
        shown = who(replay(*samples(size * call, size, conditional=conditional)))
        after = remembered(replay)
        old = [number for number in shown if number < size * call]
        new = [number for number in shown if number >= size * call]
        expected = 0 if call == 0 else size // 2 if size > 1 else call % 2
        assert len(old) == expected
        assert len(new) == size - expected
        assert len({*shown}) == size
        assert {*old} <= {*before}
        assert {*new} <= {*given_now}
        if len(before) == capacity:
            gave_way = {*given_now} - {*new}
            assert {*after} == {*before} - {*old} | gave_way
        else:
            assert after[: len(before)] == before
            assert {*after[len(before) :]} <= {*given_now}
        assert len({*after}) == len(after) == min(capacity, size * (call + 1))


def test_the_past_is_drawn_evenly():
    torch.manual_seed(0)
    replay = Replay(6)
    counts = torch.zeros(6)
    for call in range(2000):
        rows = {number: row for row, number in enumerate(remembered(replay))}
        for number in who(replay(*samples(4 * call, 4))):
            if len(rows) == 6 and number in rows:
                counts[rows[number]] += 1
    assert counts.sum() == 2 * 1998
    assert float((counts - counts.mean()).abs().max()) < 5 * (counts.mean() * 2 / 3).sqrt()


def test_choices_follow_the_global_generator():
    def run(seed):
        replay = Replay(8)
        for call in range(6):
            torch.manual_seed(seed + call)
            shown = who(replay(*samples(4 * call, 4)))
        return shown

    assert run(0) == run(0)
    assert len({tuple(run(seed)) for seed in range(5)}) > 1


def test_nothing_is_tied_to_the_graph_or_to_what_was_given():
    replay = Replay(2)
    given_now = [part.requires_grad_() for part in samples(0, 2)]
    first = replay(*[part * 1 for part in given_now])
    assert not any(part.requires_grad for part in first)
    assert not any(part.requires_grad for part in replay.state_dict()["held"].values())
    given_again = samples(2, 2)
    replay(*given_again)
    for part in given_again:
        part.zero_()
    assert sorted(remembered(replay)) in ([0, 2], [1, 2])


@pytest.mark.parametrize("size", [1, 4, 5])
def test_nothing_waits_for_the_device(size):
    """Meta tensors have no numbers: whoever asks for one fails."""
    replay = Replay(8)
    for call in range(12):
        shown = replay(*samples(size * call, size, device="meta"))
        assert [part.shape for part in shown] == [(size, c, 4, 5) for c in PARTS.values()]


@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize("done", [0, 1, 2, 3, 9])
def test_a_history_goes_on_from_a_checkpoint(tmp_path, done, size):
    def go_on(replay, start):
        shown = []
        for call in range(start, 14):
            torch.manual_seed(call)
            shown.append(who(replay(*samples(size * call, size))))
        return shown, remembered(replay)

    replay = Replay(12)
    for call in range(done):
        torch.manual_seed(call)
        replay(*samples(size * call, size))
    checkpoints.save(tmp_path / "a", replay.state_dict())
    expected = go_on(replay, done)
    again = Replay(12)
    again.load_state_dict(checkpoints.load(tmp_path / "a"))
    assert go_on(again, done) == expected


def test_a_state_is_a_copy():
    replay = Replay(4)
    replay(*samples(0, 4))
    state = replay.state_dict()
    again = Replay(4)
    again.load_state_dict(state)
    for call in range(1, 5):
        replay(*samples(4 * call, 4))
        again(*samples(4 * call, 4))
    assert who([state["held"][name] for name in PARTS]) == [0, 1, 2, 3]


def test_a_history_moves_to_the_device_of_the_batch():
    replay, again = Replay(6), Replay(6)
    replay(*samples(0, 4))
    again.load_state_dict(replay.state_dict())
    shown = again(*samples(4, 4, device="meta"))
    assert all(part.device.type == "meta" and len(part) == 4 for part in shown)


def test_what_cannot_be_remembered_is_refused():
    with pytest.raises(InputError, match="history of 0 samples is empty"):
        Replay(0)
    with pytest.raises(InputError, match="3 samples is smaller than a batch of 4; give at least 4"):
        Replay(3)(*samples(0, 4))
    replay = Replay(4)
    replay(*samples(0, 4))
    with pytest.raises(InputError, match=r"'real': \(3, 4, 5\).* found .*'real': \(3, 2, 5\)"):
        replay(*[part[:, :, :2] for part in samples(4, 4)])
    with pytest.raises(InputError, match="start a new one"):
        replay(*samples(4, 4, conditional=False))
    with pytest.raises(InputError, match="history of 4 samples does not fit into 2"):
        Replay(2).load_state_dict(replay.state_dict())


# --- mean of past weights


def moved(network, seed):
    generator = torch.Generator().manual_seed(seed)
    for p in network.parameters():
        p.data = torch.randn(p.shape, generator=generator, dtype=p.dtype)


def test_the_mean_is_that_of_all_weights_so_far():
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Linear(3, 1)).double()
    history, past = HistoricalAverage(network, 0.5), []
    assert (history.name, history.weight) == ("history", 0.5)
    for step in range(20):
        moved(network, step)
        now = torch.cat([p.detach().flatten() for p in network.parameters()]).tolist()
        network.zero_grad()
        term = history()
        term.backward()
        gradient = torch.cat([p.grad.flatten() for p in network.parameters()]).tolist()
        expected, slopes = 0.0, [0.0] * len(now)
        if past:
            for place, value in enumerate(now):
                apart = value - sum(weights[place] for weights in past) / len(past)
                expected += apart**2
                slopes[place] = 2 * apart
        assert term.item() == pytest.approx(expected, rel=1e-12, abs=0)
        assert gradient == pytest.approx(slopes, rel=1e-9, abs=1e-12)
        history.update()
        past.append(now)
    assert expected > 1


def test_the_mean_stays_right_over_many_steps_of_float32():
    network = nn.Linear(50, 1, bias=False)
    history, total = HistoricalAverage(network, 1.0), torch.zeros(1, 50, dtype=torch.float64)
    for step in range(3000):
        moved(network, step)
        history.update()
        total += network.weight.detach().double()
    assert torch.allclose(history.state_dict()["means"][0].double(), total / 3000, atol=1e-5)


def test_players_that_circle_are_drawn_to_the_middle():
    """min over x, max over y of xy: alternating gradient steps circle around 0 for ever.

    With weight 1/2 the players soon stand where the game's pull and that of the mean m are equal,
    (1 + J) z = m with the rotation J, and the mean follows: dm/dt = (z - m) / t. So m, and with it
    z, falls like t to the power of Re(1 / (1 + i)) - 1 = -1/2.
    """

    def distances(weight, steps):
        x, y = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        x.weight.data.fill_(1.0)
        y.weight.data.fill_(0.0)
        players = [(x, HistoricalAverage(x, weight), 1.0), (y, HistoricalAverage(y, weight), -1.0)]
        found = []
        for _ in range(steps):
            for player, history, sign in players:
                loss = sign * x.weight.sum() * y.weight.sum() + weight * history()
                [gradient] = torch.autograd.grad(loss, player.weight)
                player.weight.data -= 0.1 * gradient
                history.update()
            found.append(float((x.weight.square() + y.weight.square()).detach().sqrt()))
        return found

    assert 0.9 < min(distances(0.0, 300)) < max(distances(0.0, 300)) < 1.1
    found = distances(0.5, 1600)
    assert found[399] < 0.3
    assert found[1599] / found[399] == pytest.approx(0.5, rel=0.04)


def test_means_go_on_from_a_checkpoint(tmp_path):
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Conv2d(3, 1, 1))
    network = network.to(memory_format=torch.channels_last)
    for done in (0, 1, 7):
        history, again = HistoricalAverage(network, 1.0), HistoricalAverage(network, 1.0)
        for step in range(done):
            moved(network, step)
            history.update()
        checkpoints.save(tmp_path / "a", history.state_dict())
        kept = history.state_dict()
        again.load_state_dict(checkpoints.load(tmp_path / "a"))
        for step in range(done, done + 5):
            moved(network, step)
            assert torch.equal(history(), again())
            history.update()
            again.update()
        pairs = zip(history.state_dict()["means"], again.state_dict()["means"], strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        if done:  # and the first state is a copy
            assert not torch.equal(kept["means"][0], history.state_dict()["means"][0])


def test_means_wait_for_nothing():
    network = nn.Linear(2, 2, device="meta")
    history = HistoricalAverage(network, 1.0)
    for _ in range(3):
        assert history().shape == ()
        history.update()


def test_the_past_of_other_weights_is_refused():
    network = nn.Linear(2, 2)
    history = HistoricalAverage(network, 1.0)
    history.update()
    with pytest.raises(InputError, match="belong to another network"):
        HistoricalAverage(nn.Linear(2, 3), 1.0).load_state_dict(history.state_dict())
    with pytest.raises(InputError, match="weight -1.0 of the history"):
        HistoricalAverage(network, -1.0)
