"""Stabilizers within a training: chosen by configuration, for tasks that know nothing of them."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from ganlab.config import ApplyConfig, PatchGANConfig, ScheduleConfig, StabilizersConfig
from ganlab.errors import InputError
from ganlab.inference import apply
from ganlab.losses.adversarial import LOSSES, Verdict
from ganlab.losses.balance import FixedBalance
from ganlab.networks.patchgan import PatchGAN
from ganlab.stabilize.choice import Stabilizers, prepare
from ganlab.tasks.pix2pix import Pix2Pix
from ganlab.training import checkpoints, load_task, resume, train
from ganlab.training.updates import Updates

EVERYTHING = StabilizersConfig(
    penalties=("r1", "wgan_gp"),
    penalty_every=3,
    replay=6,
    history=0.5,
    gate="accuracy",
    gate_range=(0.45, 0.55),
    gate_every=2,
    diversity="discrimination",
    instance_noise=0.2,
    instance_noise_schedule=ScheduleConfig(),
    smoothing=0.1,
    spectral="regularization",
)


@pytest.fixture
def make(make_trainer, quick, tiny):
    """Makes a Trainer of pix2pix: ``make(StabilizersConfig(critic=2), adversarial="hinge")``."""

    def trainer(chosen, *, training=None, **changes):
        settings = tiny(**changes)
        config = quick(stabilizers=chosen, **training or {})
        return make_trainer(lambda spec: Pix2Pix(settings, spec), config)

    return trainer


def weights(player):
    return [p.detach().clone() for p in player.parameters()]


def moved(player, before):
    return not all(map(torch.equal, before, weights(player)))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_all_of_them_at_once_resume_exactly(
    tiles, tmp_path, quick, tiny, same_runs, precision
) -> None:
    config = quick(steps=12, stabilizers=EVERYTHING, checkpoint_every=5, precision=precision)
    whole = train(tiny(), tiles, tmp_path / "whole", config)
    train(tiny(), tiles, tmp_path / "run", dataclasses.replace(config, steps=5))
    same_runs(whole, resume(tmp_path / "run", steps=12))


def test_spectral_normalization_resumes_exactly(tiles, tmp_path, quick, tiny, same_runs) -> None:
    chosen = StabilizersConfig(spectral="normalization")
    config = quick(steps=8, stabilizers=chosen, checkpoint_every=4)
    whole = train(tiny(), tiles, tmp_path / "whole", config)
    train(tiny(), tiles, tmp_path / "run", dataclasses.replace(config, steps=4))
    same_runs(whole, resume(tmp_path / "run", steps=8))


@pytest.mark.parametrize(
    "chosen",
    [StabilizersConfig(spectral="normalization"), StabilizersConfig(diversity="deviation")],
    ids=["normalization", "deviation"],
)
def test_a_run_whose_discriminator_was_changed_is_loaded_applied_and_continued(
    tiles, tmp_path, quick, tiny, chosen
) -> None:
    run = train(tiny(), tiles, tmp_path / "run", quick(steps=2, stabilizers=chosen))
    task = load_task(run, device="cpu")
    assert len(list(task.discriminator.parameters())) > 0
    scene = str(tiles.parent / "label.tif")
    apply(ApplyConfig(run=run, scene=scene, to=tmp_path / "made.tif", device="cpu"))
    assert (tmp_path / "made.tif").exists()
    train(tiny(), tiles, tmp_path / "next", quick(steps=1, stabilizers=chosen), init=run)


def test_penalties_of_the_configuration_are_added_with_their_weight(make) -> None:
    chosen = StabilizersConfig(penalties=("r1", "r2"), penalty_weight=2.5, penalty_every=2)
    trainer = make(chosen)
    trainer.fit()
    for line in trainer.lines:
        on = line["step"] % 2 == 1  # lines count steps done; steps 0, 2 and 4 carry penalties
        assert ("discriminator/r1" in line) == ("discriminator/r2" in line) == on
        extra = 2 * 2.5 * (line["discriminator/r1"] + line["discriminator/r2"]) if on else 0.0
        half = 0.5 * line["discriminator/adversarial"]
        assert line["discriminator/total"] == pytest.approx(half + extra, rel=1e-5)
        assert not on or line["discriminator/r1"] > 0 < line["discriminator/r2"]


def test_penalties_come_at_every_so_many_updates_not_steps(make) -> None:
    """A discriminator that rests at every second step would else be held twice as hard."""
    chosen = StabilizersConfig(penalties=("r1",), penalty_every=2, gate="accuracy", gate_every=1000)

    def penalized(trainer, steps):
        found = []
        for step in steps:
            trainer.stabilizers.gate.open = (True, step % 2 == 0)
            trainer.train_step(trainer.batches[step])
            found += [step] * ("discriminator/r1" in trainer._meter.means())
        return found

    trainer, again, old = make(chosen), make(chosen), make(chosen)
    assert penalized(trainer, range(2)) == [0]
    state = trainer.state_dict()
    again.load_state_dict(state)
    assert penalized(trainer, range(2, 12)) == penalized(again, range(2, 12)) == [4, 8]
    # Checkpoints of before went by steps, and so do trainings that go on from them.
    del state["stabilizers"]["judged"]
    old.load_state_dict(state)
    assert penalized(old, range(2, 12)) == [2, 6, 10]


def test_a_critic_is_updated_more_often(make) -> None:
    trainer = make(StabilizersConfig(critic=3))
    for step in range(6):
        before = weights(trainer.task.generator), weights(trainer.task.discriminator)
        trainer.train_step(trainer.batches[step])
        assert moved(trainer.task.generator, before[0]) == (step % 3 == 2)
        assert moved(trainer.task.discriminator, before[1])
    line = trainer._meter.means()
    assert (line["generator/open"], line["discriminator/open"]) == (pytest.approx(1 / 3), 1.0)
    assert line["generator/l1"] > 0


@pytest.mark.parametrize(("rests", "plays"), [(0, 1), (1, 0)], ids=["generator", "discriminator"])
def test_a_player_that_rests_is_asked_and_does_not_move(make, rests, plays) -> None:
    trainer = make(StabilizersConfig(gate="accuracy", gate_every=1000))
    trainer.stabilizers.gate.open = (rests == 1, rests == 0)
    players = [trainer.task.generator, trainer.task.discriminator]
    before = [weights(player) for player in players]
    averaged = weights(trainer.averaged)
    for step in range(3):
        trainer.train_step(trainer.batches[step])
    assert moved(players[plays], before[plays])
    assert not moved(players[rests], before[rests])
    assert moved(trainer.averaged, averaged) == (rests == 1)
    line = trainer._meter.means()
    names = ("generator", "discriminator")
    assert line[f"{names[rests]}/open"] == 0.0
    assert line[f"{names[plays]}/open"] == 1.0
    assert line[f"{names[rests]}/adversarial"] > 0
    assert 0 <= line["discriminator/accuracy"] <= 1


def test_a_gate_closes_on_a_discriminator_that_is_always_right(make) -> None:
    chosen = StabilizersConfig(gate="accuracy", gate_range=(0.1, 0.9), gate_every=2)
    trainer = make(chosen, training={"steps": 30, "discriminator_lr": 2e-2})
    trainer.fit()
    rests = [line["discriminator/open"] == 0 for line in trainer.lines]
    right = [line["discriminator/accuracy"] for line in trainer.lines]
    assert any(rests)
    first = rests.index(True)
    assert sum(right[first - 2 : first]) / 2 > 0.9


def test_instance_noise_covers_what_was_measured_and_fades(make) -> None:
    fades = ScheduleConfig("linear", start=0.0, stop=0.5)
    chosen = StabilizersConfig(instance_noise=0.5, instance_noise_schedule=fades)
    trainer = make(chosen, training={"steps": 100})
    real, fake = torch.zeros(2, 3, 64, 64), torch.ones(2, 3, 64, 64)
    valid = (torch.arange(64) < 32).float().expand(2, 1, 64, 64)
    for step, width in ((0, 0.5), (25, 0.25), (50, 0.0)):
        condition, *noisy, where = trainer.stabilizers.shown((real, real, fake, valid), step, False)
        assert condition is real
        assert where is valid
        for clear, image in zip((real, fake), noisy, strict=True):
            noise = image - clear
            assert torch.equal(noise[..., 32:], torch.zeros(2, 3, 64, 32))
            assert noise[..., :32].std() == pytest.approx(width, rel=0.05)
        assert width == 0 or not torch.equal(noisy[0], noisy[1] - 1)


def test_only_the_learning_discriminator_is_reminded_of_the_past(make) -> None:
    trainer = make(StabilizersConfig(replay=4))
    shown = trainer.stabilizers.shown
    old = (torch.zeros(4, 1, 2, 2),) * 3 + (torch.ones(4, 1, 2, 2),)
    new = (torch.ones(4, 1, 2, 2),) * 4
    shown(old, 0, True)
    assert shown(new, 1, False) is new
    assert shown(new, 1, True)[2].mean() == 0.5


def test_smoothed_labels_are_cross_entropy_and_squares_with_those_labels() -> None:
    torch.manual_seed(0)
    real, fake = torch.randn(2, 3, 1, 5, 5, dtype=torch.float64)
    label = torch.full_like(real, 0.85)

    def term(game):
        heads = {0: real, 1: fake}
        verdict = Verdict(
            lambda _, image: [(heads[int(image.mean())], [])],
            None,
            torch.zeros(3, 1, 5, 5),
            torch.ones(3, 1, 5, 5),
            torch.ones(3, 1, 5, 5),
            doubt=0.15,
        )
        return verdict.discriminator_term(LOSSES[game])

    entropy = F.binary_cross_entropy_with_logits
    expected = entropy(real, label) + entropy(fake, torch.zeros_like(fake))
    assert term("vanilla").item() == pytest.approx(expected.item(), rel=1e-6)
    expected = (real - label).square().mean() + fake.square().mean()
    assert term("least_squares").item() == pytest.approx(expected.item(), rel=1e-6)
    for game in ("hinge", "wasserstein", "relativistic"):
        with pytest.raises(InputError, match="no labels to smooth; take vanilla or least_squares"):
            term(game)


@pytest.mark.parametrize(
    ("game", "expected"),
    # Real: 0.4, 0.6, -1; fake: 0.2, 0.7, -2.
    [
        ("vanilla", (2 + 1) / 6),
        ("hinge", (2 + 1) / 6),
        ("least_squares", (1 + 2) / 6),
        ("wasserstein", 2 / 3),
        ("relativistic", 2 / 3),
    ],
)
def test_accuracy_is_the_share_of_patches_judged_rightly(game, expected) -> None:
    logits = {0: torch.tensor([0.4, 0.6, -1.0]), 1: torch.tensor([0.2, 0.7, -2.0])}
    verdict = Verdict(
        lambda _, image: [(logits[int(image.mean())].view(1, 1, 1, 3), [])],
        None,
        torch.zeros(1, 1, 1, 3),
        torch.ones(1, 1, 1, 3),
        torch.ones(1, 1, 1, 3),
    )
    assert verdict.accuracy is None
    verdict.discriminator_term(LOSSES[game])
    assert verdict.accuracy.item() == pytest.approx(expected)


@pytest.mark.parametrize("game", LOSSES)
def test_patches_that_are_the_same_in_both_images_do_not_count(game) -> None:
    """Two of six are sure, in the right order; the rest lies under opaque cloud, say."""
    same = [3.0, -3.0, 0.2, 0.7]
    logits = {0: torch.tensor([2.0, 3.0, *same]), 1: torch.tensor([-2.0, -3.0, *same])}

    def accuracy(part):
        verdict = Verdict(
            lambda _, image: [(logits[int(image.mean())][part].view(1, 1, 1, -1), [])],
            None,
            torch.zeros(1, 1, 1, 6),
            torch.ones(1, 1, 1, 6),
            torch.ones(1, 1, 1, 6),
        )
        verdict.discriminator_term(LOSSES[game])
        return verdict.accuracy.item()

    assert accuracy(slice(0, 6)) == pytest.approx(1.0)
    assert accuracy(slice(2, 6)) == pytest.approx(0.5)


def test_history_holds_both_players_back(make) -> None:
    free, held = make(StabilizersConfig()), make(StabilizersConfig(history=1e4))
    start = [weights(p) for p in free.players.values()]
    assert all(map(moved, held.players.values(), start)) is False
    for trainer in (free, held):
        for step in range(6):
            trainer.train_step(trainer.batches[step])

    def distance(trainer, name, before):
        now = weights(trainer.players[name])
        return sum(float((a - b).square().sum()) for a, b in zip(now, before, strict=True))

    for name, before in zip(free.players, start, strict=True):
        assert distance(held, name, before) < 0.7 * distance(free, name, before)


class Counting(TorchDispatchMode):
    """Counts the operations that bring a number from the device to the host."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        waits = ("_local_scalar_dense", "nonzero", "masked_select", "equal")
        self.count += func.overloadpacket.__name__ in waits
        return func(*args, **(kwargs or {}))


def test_a_step_waits_no_more_often_than_without_them(make) -> None:
    """Adam asks for one counter for each weight, here on the CPU; the gate decides later."""
    counts = []
    later = dataclasses.replace(EVERYTHING, gate_every=100, penalty_every=1)
    for chosen in (StabilizersConfig(), later):
        trainer = make(chosen)
        for step in range(3):
            trainer.train_step(trainer.batches[step])
        with Counting() as mode:
            trainer.train_step(trainer.batches[3])
        counts.append(mode.count - len(list(trainer.task.parameters())))
    assert counts[0] == counts[1]


def test_a_discriminator_is_prepared_once() -> None:
    network = PatchGAN(3, width=4, layers=1, norm="channel")
    chosen = StabilizersConfig(diversity="deviation", spectral="normalization")
    prepare(chosen, network)
    names = list(network.state_dict())
    prepare(chosen, network)
    assert list(network.state_dict()) == names
    plain = copy.deepcopy(network)
    prepare(StabilizersConfig(), plain)
    assert list(plain.state_dict()) == names
    prepare(chosen, None)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (StabilizersConfig(penalty_weight=-1.0, penalties=("r1",)), "penalty_weight is -1.0"),
        (StabilizersConfig(penalty_every=0, penalties=("r1",)), "penalty_every is 0"),
        (StabilizersConfig(critic=0), "critic is 0; it must be at least 1"),
        (StabilizersConfig(smoothing=0.5), "smoothing is 0.5; expected at least 0, below 0.5"),
        (StabilizersConfig(instance_noise=float("nan")), "instance_noise is nan"),
        (StabilizersConfig(gate="loss_ratio", gate_range=(2.0, 1.0)), "gate range 2.0, 1.0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make, chosen, message) -> None:
    with pytest.raises(InputError, match=message):
        make(chosen)


def test_combinations_that_cannot_work_are_named(make) -> None:
    slope, batch = StabilizersConfig(penalties=("r1",)), PatchGANConfig(4, 1, "batch")
    with pytest.raises(InputError, match="penalties r1 with batch norm in the discriminator"):
        make(slope, discriminator=batch)
    make(StabilizersConfig(replay=8), discriminator=batch)
    both = StabilizersConfig(penalties=("r1",), penalty_step=0.1, diversity="deviation")
    with pytest.raises(InputError, match="penalty_step 0.1 with diversity deviation"):
        make(both)
    make(dataclasses.replace(both, penalty_step=0.0))
    with pytest.raises(InputError, match="penalties: these act on a discriminator.* has none"):
        make(slope, adversarial_weight=0.0)
    network = torch.nn.Linear(1, 1)
    with pytest.raises(InputError, match="replay with 2 processes"):
        Stabilizers(StabilizersConfig(replay=8), network, network, processes=2)
    trainer = make(StabilizersConfig(gate="loss_ratio"))
    trainer.task.generator_losses = lambda batch, out, verdict: {"l1": out["image"].mean()}
    trainer.balances = FixedBalance({"l1": 1.0}), trainer.balances[1]
    with pytest.raises(InputError, match="'adversarial' terms, and the generator has only .'l1'"):
        trainer.train_step(trainer.batches[0])


def test_a_critic_is_measured_as_often_as_asked(make) -> None:
    trainer = make(StabilizersConfig(critic=2), training={"steps": 8, "gradients_every": 4})
    trainer.fit()
    on = [line["step"] for line in trainer.lines if "generator/gradient/l1" in line]
    assert on == [2, 6]  # lines count steps done; the generator plays at steps 1, 3, 5 and 7


def test_a_critic_that_rests_does_not_keep_the_generator_waiting(make) -> None:
    trainer = make(StabilizersConfig(critic=5, gate="accuracy"))
    assert [trainer.stabilizers.open(step)[0] for step in range(5)] == [False] * 4 + [True]
    trainer.stabilizers.gate.open = (True, False)
    assert [trainer.stabilizers.open(step) for step in range(5)] == [(True, False)] * 5


def test_moments_come_back_in_the_layout_of_their_weights(tmp_path, quick) -> None:
    """As on a GPU: channels last, and one fused step that walks through memory."""

    def updates():
        torch.manual_seed(0)
        layer = torch.nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
        made = Updates({"generator": layer}, quick(), torch.device("cpu"), 1)
        fused = torch.optim.Adam(layer.parameters(), betas=(0.5, 0.999), fused=True)
        made.optimizers["generator"] = fused
        return layer, made

    def step(layer, made, number):
        torch.manual_seed(number)
        image = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
        made.begin(number)
        made.move("generator", layer(image).square().mean(), number)

    layer, made = updates()
    for number in range(3):
        step(layer, made, number)
    checkpoints.save(tmp_path / "step-00000003.safetensors", {"own": made.state_dict()})
    other, again = updates()
    other.load_state_dict(layer.state_dict())
    again.load_state_dict(checkpoints.load(tmp_path / "step-00000003.safetensors")["own"])
    for pair in ((layer, made), (other, again)):
        step(*pair, 3)
    assert all(map(torch.equal, layer.parameters(), other.parameters()))
