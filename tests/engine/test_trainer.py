"""The training loop and the run directory: pix2pix step by step, and everything that ends it."""

import copy
import dataclasses
import json
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ganlab.config import (
    InpaintingConfig,
    PatchGANConfig,
    Pix2PixConfig,
    ScalingConfig,
    ScheduleConfig,
    SplitConfig,
    StabilizersConfig,
    SuperResolutionConfig,
    TrainingConfig,
    UNetConfig,
    from_dict,
)
from ganlab.data.batches import Batches
from ganlab.data.store import TileStore
from ganlab.errors import InputError, TrainingFailed
from ganlab.randomness import derived_seed
from ganlab.tasks.pix2pix import Pix2Pix
from ganlab.training import checkpoints, load_task, resume, train
from ganlab.training.records import read_metrics
from ganlab.training.runs import read_config


class Fine(Pix2Pix):
    """pix2pix in float64, with a fifth of the pixels unmeasured."""

    def __init__(self, config, spec):
        super().__init__(config, spec)
        self.double()

    def prepare(self, batch):
        fine = {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
        fine["valid"] = (((batch["sample"].view(-1, 1, 1, 1) + torch.arange(16)) % 5) > 0).double()
        fine["valid"] = fine["valid"].expand_as(batch["valid"])
        return fine


def gradients(module):
    return {name: p.grad.clone() for name, p in module.named_parameters()}


def assert_close(got, expected):
    assert got.keys() == expected.keys()
    for name in got:
        scale = float(expected[name].abs().max())
        assert torch.allclose(got[name], expected[name], rtol=1e-8, atol=1e-10 * scale), name


def test_a_step_is_the_plain_step_of_pix2pix(make_trainer, quick, tiny):
    config = quick(generator_lr=1e-3, discriminator_lr=2e-3, betas=(0.6, 0.9), seed=3)
    trainer = make_trainer(lambda spec: Fine(tiny(), spec), config)
    task = copy.deepcopy(trainer.task)
    g, d = task.generator, task.discriminator
    adam_g = torch.optim.Adam(g.parameters(), 1e-3, (0.6, 0.9))
    adam_d = torch.optim.Adam(d.parameters(), 2e-3, (0.6, 0.9))
    for step in range(4):
        trainer.train_step(trainer.batches[step])
        batch = task.prepare(trainer.batches[step])
        torch.manual_seed(derived_seed(3, step, 0, "step"))  # dropout
        valid = batch["valid"]
        hot = torch.nn.functional.one_hot(batch["label"][:, 0], 3).permute(0, 3, 1, 2)
        given = (2.0 * hot - 1) * valid
        real, made = batch["image"] * valid, g(given)
        share = torch.nn.functional.adaptive_avg_pool2d(valid, d(given, real)[0][0].shape[-2:])

        def patches(values, share=share):
            return ((values * share).sum((1, 2, 3)) / share.sum((1, 2, 3))).mean()

        answers = [torch.sigmoid(d(given, x)[0][0]) for x in (real, (made * valid).detach())]
        loss = patches(-answers[0].log()) + patches(-(1 - answers[1]).log())
        adam_d.zero_grad()
        (0.5 * loss).backward()
        assert_close(gradients(trainer.task.discriminator), gradients(d))
        adam_d.step()
        fooled = patches(-torch.sigmoid(d(given, made * valid)[0][0]).log())
        distance = ((made - batch["image"]).abs() * valid).sum((1, 2, 3)) / (
            3 * valid.sum((1, 2, 3))
        )
        adam_g.zero_grad()
        (fooled + 100 * distance.mean()).backward()
        assert_close(gradients(trainer.task.generator), gradients(g))
        adam_g.step()
    assert_close(trainer.task.state_dict(), task.state_dict())


def test_pix2pix_learns_the_town(make_trainer, quick, tiny):
    config = quick(steps=60, log_every=10, generator_lr=2e-3)
    trainer = make_trainer(lambda spec: Pix2Pix(tiny(), spec), config)
    assert trainer.fit() == 60
    first, last = trainer.lines[0], trainer.lines[-1]
    assert last["generator/l1"] < 0.7 * first["generator/l1"]
    assert {line["step"] for line in trainer.lines} == {10, 20, 30, 40, 50, 60}


def test_lines_are_means_of_the_steps_between(make_trainer, quick, tiny):
    def lines(every):
        trainer = make_trainer(lambda spec: Pix2Pix(tiny(), spec), quick(steps=7, log_every=every))
        trainer.fit()
        return trainer.lines

    single, grouped = lines(1), lines(3)
    assert [line["step"] for line in grouped] == [3, 6]
    for i, line in enumerate(grouped):
        for name in line.keys() - {"step"}:
            mean = np.mean([part[name] for part in single[3 * i : 3 * i + 3]])
            assert line[name] == pytest.approx(mean, rel=1e-5, abs=1e-6)


def test_the_average_is_its_closed_form(make_trainer, quick, tiny):
    trainer = make_trainer(lambda spec: Pix2Pix(tiny(), spec), quick(ema=0.4, generator_lr=0.05))
    history = []
    for step in range(6):
        trainer.train_step(trainer.batches[step])
        flat = torch.cat([p.detach().flatten() for p in trainer.task.generator.parameters()])
        history.append(flat.double())
    expected = history[0]
    for step in range(1, 6):  # (1 + t) / (10 + t) until that is more than 0.4
        decay = [None, 2 / 11, 3 / 12, 4 / 13, 5 / 14, 0.4][step]
        expected = decay * expected + (1 - decay) * history[step]
    got = torch.cat([p.flatten() for p in trainer.averaged.parameters()])
    assert torch.allclose(got.double(), expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(got.double(), history[-1], rtol=1e-3)


def test_without_averaging_the_generator_itself_is_applied(make_trainer, quick, tiny):
    trainer = make_trainer(lambda spec: Pix2Pix(tiny(), spec), quick(ema=0, steps=1))
    trainer.fit()
    assert trainer.averaged is trainer.task.generator
    assert trainer.state_dict()["ema"] is None


def test_learning_rates_follow_the_schedule(make_trainer, quick, tiny):
    config = quick(
        steps=8,
        generator_lr=0.01,
        discriminator_lr=0.03,
        lr_schedule=ScheduleConfig("linear", 0.25, 0.75, 0.0),
    )
    trainer = make_trainer(lambda spec: Pix2Pix(tiny(), spec), config)
    rates = []
    for step in range(8):
        before = trainer.task.generator.last_layer.weight.clone()
        trainer.train_step(trainer.batches[step])
        moved = not torch.equal(before, trainer.task.generator.last_layer.weight)
        groups = [o.param_groups[0]["lr"] for o in trainer.optimizers.values()]
        rates.append((*groups, moved))
    factors = [1, 1, 1, 0.75, 0.5, 0.25, 0, 0]
    for (generator, discriminator, moved), factor in zip(rates, factors, strict=True):
        assert generator == pytest.approx(0.01 * factor)
        assert discriminator == pytest.approx(0.03 * factor)
        assert moved == (factor > 0)


def test_weights_are_logged_and_applied(make_trainer, quick, tiny):
    config = tiny(
        reconstruction="l2",
        reconstruction_weight=7.0,
        adversarial_weight=0.5,
        discriminator_factor=0.25,
        reconstruction_schedule=ScheduleConfig("fade_out", 0.0, 0.5),
    )
    trainer = make_trainer(lambda spec: Pix2Pix(config, spec), quick(steps=6))
    trainer.fit()
    for line, factor in zip(trainer.lines, [1, 2 / 3, 1 / 3, 0, 0, 0], strict=True):
        weight = line["generator/weight/l2"]
        assert weight == pytest.approx(7 * factor, abs=1e-6)
        total = weight * line["generator/l2"] + 0.5 * line["generator/adversarial"]
        assert line["generator/total"] == pytest.approx(total, rel=1e-5)
        game = line["discriminator/adversarial"]
        assert line["discriminator/total"] == pytest.approx(0.25 * game, rel=1e-5)
        assert line["generator/l2"] > 0


def test_a_weight_of_zero_is_logged_but_not_trained_on(make_trainer, quick, tiny):
    config = tiny(reconstruction_weight=0.0)
    trainer = make_trainer(lambda spec: Pix2Pix(config, spec), quick(steps=1))
    twin = copy.deepcopy(trainer.task)
    trainer.fit()
    (line,) = trainer.lines
    assert line["generator/l1"] > 0
    assert line["generator/total"] == line["generator/adversarial"]

    class OtherTruth(Pix2Pix):
        """The same game; only the distance is another."""

        def generator_losses(self, batch, out, verdict):
            terms = super().generator_losses(batch, out, verdict)
            return {**terms, "l1": terms["l1"] * math.nan}

    other = make_trainer(lambda spec: OtherTruth(config, spec), quick(steps=1))
    other.task.load_state_dict(twin.state_dict())
    other.train_step(other.batches[0])
    assert all(map(torch.equal, other.task.parameters(), trainer.task.parameters()))


def test_without_an_adversarial_weight_there_is_no_discriminator(make_trainer, quick, tiny):
    trainer = make_trainer(lambda spec: Pix2Pix(tiny(adversarial_weight=0), spec), quick(steps=2))
    trainer.fit()
    assert trainer.task.discriminator is None
    assert not any("discriminator" in name or "adversarial" in name for name in trainer.lines[0])


def test_samples_are_asked_for_with_the_averaged_generator(make_trainer, quick, tiny):
    asked = []
    trainer = make_trainer(
        lambda spec: Pix2Pix(tiny(), spec),
        quick(steps=7, sample_every=3),
        on_sample=lambda step, generator: asked.append((step, generator)),
    )
    trainer.fit()
    assert asked == [(3, trainer.averaged), (6, trainer.averaged)]


# What is not finite


class Poisoned(Pix2Pix):
    """pix2pix whose sixth step goes wrong in one of several ways."""

    how, step = "loss", 5

    def generator_losses(self, batch, out, verdict):
        terms = super().generator_losses(batch, out, verdict)
        self.seen = getattr(self, "seen", 0) + 1
        if self.seen - 1 == self.step:
            made = out["image"].mean()
            terms["l1"] = {
                "loss": terms["l1"] * math.nan,
                "infinity": terms["l1"] + math.inf,
                "gradient": terms["l1"] + (made * 0).abs().sqrt(),  # finite, with slope 0 * inf
            }[self.how]
        return terms


@pytest.mark.parametrize("how", ["loss", "infinity", "gradient"])
def test_what_is_not_finite_stops_the_run(make_trainer, quick, tiny, tmp_path, how):
    config = quick(steps=20, log_every=9, checkpoint_every=4)
    trainer = make_trainer(lambda spec: Poisoned(tiny(), spec), config)
    trainer.task.how = how
    with pytest.raises(TrainingFailed, match="at step 5; its batch is in") as caught:
        trainer.fit()
    (path,) = tmp_path.glob("failed-step-*.safetensors")
    assert str(path) in str(caught.value)
    assert (caught.value.step, caught.value.batch) == (5, path.name)
    batch, expected = load_file(path), trainer.batches[5]
    assert batch.keys() == expected.keys()
    assert all(torch.equal(batch[name], expected[name]) for name in batch)
    newest = checkpoints.latest(tmp_path / "checkpoints")
    assert newest.name == checkpoints.name(4)
    state = checkpoints.load(newest)
    assert all(v.isfinite().all() for v in state["players"]["generator"].values())
    assert trainer.lines == []  # found at step 8, before the first line


def test_weights_that_run_away_stop_the_run(make_trainer, quick, tiny, tmp_path):
    config = quick(steps=20, log_every=9, checkpoint_every=4, generator_lr=1e30)
    trainer = make_trainer(lambda spec: Pix2Pix(tiny(), spec), config)
    with pytest.raises(TrainingFailed, match="at step [01];.*no checkpoint had been saved yet"):
        trainer.fit()
    assert checkpoints.all_in(tmp_path / "checkpoints") == []


@pytest.mark.parametrize("what", ["average", "buffer", "moment"])
def test_what_is_not_finite_beside_the_weights_is_never_saved(
    make_trainer, quick, tiny, tmp_path, what
):
    class Spoilt(Pix2Pix):
        """One number of its trainer's state becomes NaN at the sixth step."""

        def generator_losses(self, batch, out, verdict):
            if trainer.step == 5:
                place = {
                    "average": lambda: next(trainer.ema.module.parameters()),
                    "buffer": lambda: self.generator.get_buffer("spoilt"),
                    "moment": lambda: next(iter(trainer.optimizers["generator"].state.values()))[
                        "exp_avg_sq"
                    ],
                }[what]()
                place.data.view(-1)[0] = math.inf if what == "moment" else math.nan
            return super().generator_losses(batch, out, verdict)

    def task(spec):
        task = Spoilt(tiny(), spec)
        task.generator.register_buffer("spoilt", torch.zeros(2))
        return task

    trainer = make_trainer(task, quick(steps=20, log_every=20, checkpoint_every=2, keep=1))
    with pytest.raises(TrainingFailed, match="at step 5;.*is kept .step-00000004.safetensors.;"):
        trainer.fit()
    (saved,) = checkpoints.all_in(tmp_path / "checkpoints")
    assert checkpoints.step_of(saved) == 4
    state = checkpoints.load(saved)
    kept = [state["players"], state["ema"], state["optimizers"]]
    assert checkpoints.all_finite(checkpoints.tensors_in(kept))


def test_a_failed_batch_that_cannot_be_written_does_not_hide_the_failure(
    make_trainer, quick, tiny, monkeypatch
):
    def full(*_):
        raise OSError(28, "No space left on device")

    trainer = make_trainer(lambda spec: Poisoned(tiny(), spec), quick(steps=20))
    monkeypatch.setattr(checkpoints, "write_tensors", full)
    failed = pytest.raises(TrainingFailed, match="at step 5; its batch could not be saved")
    with failed as caught, pytest.warns(UserWarning, match="failed-step-00000005.*No space left"):
        trainer.fit()
    assert (caught.value.step, caught.value.batch) == (5, None)


def test_a_disk_that_fills_up_keeps_what_was_saved(
    make_trainer, quick, tiny, tmp_path, monkeypatch
):
    trainer = make_trainer(lambda spec: Pix2Pix(tiny(), spec), quick(steps=9, checkpoint_every=3))
    save, calls = checkpoints.write_tensors, []

    def full(*arguments, **options):
        calls.append(1)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        save(*arguments, **options)

    monkeypatch.setattr(checkpoints, "write_tensors", full)
    with pytest.raises(InputError, match="No space left on device.*earlier checkpoints are kept"):
        trainer.fit()
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == [checkpoints.name(3)]
    assert checkpoints.load(checkpoints.latest(tmp_path / "checkpoints"))["step"] == 3


# Run directories


RUN_TASK = Pix2PixConfig(
    generator=UNetConfig(width=4, depth=3), discriminator=PatchGANConfig(width=4, layers=1)
)
RUN_TRAINING = TrainingConfig(
    steps=8,
    batch_size=4,
    log_every=2,
    sample_every=4,
    checkpoint_every=2,
    device="cpu",
    tensorboard=True,
    split=SplitConfig(block=16),
)


@pytest.fixture(scope="module")
def run(tiles, tmp_path_factory):
    """A finished run of eight steps, with samples and TensorBoard files."""
    seen = []
    folder = train(
        RUN_TASK,
        tiles,
        tmp_path_factory.mktemp("runs") / "run",
        RUN_TRAINING,
        on_log=lambda step, values: seen.append(step),
    )
    assert seen == [2, 4, 6, 8]
    return folder


def test_a_run_leaves_what_it_says(run, tiles):
    about = read_config(run)
    assert about["task"] == "pix2pix"
    assert from_dict(type(RUN_TASK), about["settings"]) == RUN_TASK
    assert from_dict(TrainingConfig, about["training"]) == RUN_TRAINING
    assert (run / about["tiles"]).resolve() == tiles.resolve()
    split = TileStore.open(tiles).split(RUN_TRAINING.split)
    assert about["split"] == {"train": 14, "validation": 3, "test": 3, "dropped": 0}
    assert len(split.train) == 14
    assert [line["step"] for line in read_metrics(run)] == [2, 4, 6, 8]
    assert [p.name for p in checkpoints.all_in(run / "checkpoints")] == [
        checkpoints.name(6),
        checkpoints.name(8),
    ]
    assert sorted(p.name for p in run.iterdir()) == [
        "checkpoints",
        "config.json",
        "ground.json",
        "metrics.jsonl",
        "samples",
        "tensorboard",
    ]
    assert list((run / "tensorboard").glob("events.out.tfevents.*"))


def test_panels_show_input_made_and_true(run, tiles):
    paths = sorted((run / "samples").iterdir())
    assert [p.name for p in paths] == ["step-00000004.png", "step-00000008.png"]
    panels = [np.asarray(Image.open(p)) for p in paths]
    assert {p.shape for p in panels} == {(3 * 18, 3 * 18, 3)}  # three validation tiles
    store = TileStore.open(tiles)
    shown = store.split(RUN_TRAINING.split).validation
    for i, tile in enumerate(shown):
        true = panels[1][18 * i : 18 * i + 16, 36 : 36 + 16]
        assert (true == store.read("image", [tile])[0].transpose(1, 2, 0)).all()
    task = load_task(run, device="cpu")
    batch = Batches(store, shown, task.spec, batch_size=1).whole(shown)
    made = task.sample(batch, 0)["image"]
    expected = ((made + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    got = np.stack([panels[1][18 * i : 18 * i + 16, 18 : 18 + 16] for i in range(3)])
    assert np.abs(got.astype(int) - expected).max() <= 1
    assert (panels[0] != panels[1]).any()


def test_a_trained_task_comes_with_or_without_its_average(run):
    state = checkpoints.load(checkpoints.latest(run / "checkpoints"))
    for average in (True, False):
        task = load_task(run, average=average, device="cpu")
        assert not task.training
        for name, value in task.generator.state_dict().items():
            expected = state["ema"][f"module.{name}"] if average else None
            expected = state["players"]["generator"][name] if expected is None else expected
            assert torch.equal(value, expected)
    older = run / "checkpoints" / checkpoints.name(6)
    early = load_task(older, average=False, device="cpu").generator.last_layer.weight
    late = load_task(run, average=False, device="cpu").generator.last_layer.weight
    assert not torch.equal(early, late)


def test_no_tensorboard_and_no_samples_when_not_wanted(tiles, tmp_path, quick, tiny):
    run = train(tiny(), tiles, tmp_path / "run", quick(steps=2))
    names = {p.name for p in run.iterdir()}
    assert names == {"checkpoints", "config.json", "ground.json", "metrics.jsonl"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps is 0; it must be at least 1"),
        ({"log_every": 0}, "log_every is 0"),
        ({"checkpoint_every": -1}, "checkpoint_every is -1"),
        ({"keep": 0}, "keep is 0"),
        ({"workers": -1}, "workers is -1"),
        ({"precision": "float16"}, "precision is 'float16'; expected fp32 or bf16 or fp16 or auto"),
        ({"gradients_every": -1}, "gradients_every is -1"),
        ({"generator_lr": -1e-4}, "generator_lr is -0.0001"),
        ({"discriminator_lr": math.nan}, "discriminator_lr is nan"),
        ({"ema": 1.0}, "ema 1.0"),
        ({"betas": (0.5, 1.0)}, "betas"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"crop": 17}, "crop 17 does not fit tiles of 16"),
        ({"processes": 2}, "processes is 2, but 1 run"),
        ({"device": "mps"}, "no device 'mps' here"),
        ({"lr_schedule": ScheduleConfig("linear", 0.9, 0.1)}, "0 <= start <= stop <= 1"),
        ({"split": SplitConfig(block=8)}, "block 8 is smaller than a tile"),
        ({"split": SplitConfig(block=16, test=0.5, validation=0.5)}, "no training tiles"),
        ({"scaling": ScalingConfig(low=(0, 1))}, "2 values for 3 bands"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_written(
    tiles, tmp_path, quick, tiny, changes, message
):
    with pytest.raises(InputError, match=message) as caught:
        train(tiny(), tiles, tmp_path / "run", quick(**changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


HINGE = Pix2PixConfig(
    adversarial="hinge",
    generator=UNetConfig(width=4, depth=3),
    discriminator=PatchGANConfig(width=4, layers=1),
)


@pytest.mark.parametrize(
    ("task", "stabilizers", "message"),
    [
        (SuperResolutionConfig(factor=32), {}, "16 x 16 pixels does not divide into cells of 32"),
        (InpaintingConfig(), {}, "too small for a PatchGAN of 3 layers"),
        (HINGE, {"smoothing": 0.1}, "has no labels to smooth"),
        (HINGE, {"replay": 3}, "replay 3 with batch_size 4"),
        (dataclasses.replace(HINGE, discriminator_factor=0.0), {}, "all weights are 0 at step 0"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    tiles, tmp_path, quick, task, stabilizers, message
):
    config = quick(stabilizers=StabilizersConfig(**stabilizers))
    with pytest.raises(InputError, match=message):
        train(task, tiles, tmp_path / "run", config)
    assert not (tmp_path / "run").exists()


def test_a_tile_store_is_no_place_for_a_run(tiles, quick, tiny):
    before = sorted(path.name for path in tiles.iterdir())
    with pytest.raises(InputError, match="is a tile store; give another folder for the run"):
        train(tiny(), tiles, tiles, quick())
    assert sorted(path.name for path in tiles.iterdir()) == before


def test_wrong_tasks_and_folders_are_refused(tiles, tmp_path, quick, tiny, run):
    with pytest.raises(InputError, match="UNetConfig configures no task; tasks: .*'pix2pix'"):
        train(UNetConfig(), tiles, tmp_path / "run", quick())
    with pytest.raises(InputError, match="adversarial is 'foo'; expected vanilla or"):
        train(tiny(adversarial="foo"), tiles, tmp_path / "run", quick())
    with pytest.raises(InputError, match="no source 'radar', only \\['image', 'label'\\]"):
        train(tiny(source="radar"), tiles, tmp_path / "run", quick())
    with pytest.raises(InputError, match="not a tile store"):
        train(tiny(), tmp_path, tmp_path / "run", quick())
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="is a run already; continue it with"):
        train(tiny(), tiles, run, quick())
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file/run cannot be written .*File exists"):
        train(tiny(), tiles, tmp_path / "file" / "run", quick())
    with pytest.raises(InputError, match="not a run directory"):
        load_task(tmp_path)


def test_a_run_that_never_got_started_is_no_obstacle(tiles, tmp_path, quick, tiny):
    large = tiny(discriminator=PatchGANConfig(width=4, layers=4))
    with pytest.raises(InputError, match="too small for a PatchGAN"):
        train(large, tiles, tmp_path / "run", quick(steps=1))
    train(tiny(), tiles, tmp_path / "run", quick(steps=1))
    assert load_task(tmp_path / "run", device="cpu").config == tiny()


def test_a_damaged_shard_is_named_and_not_trained_on(tiles, tmp_path, quick, tiny):
    shutil.copytree(tiles, tmp_path / "tiles")
    shard = next((tmp_path / "tiles").glob("image-*.npy"))
    raw = bytearray(shard.read_bytes())
    raw[-100] ^= 1
    shard.write_bytes(raw)
    with pytest.raises(InputError, match="tile 19 .*damaged"):
        train(tiny(), tmp_path / "tiles", tmp_path / "run", quick())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "os.system"}, "found task 'os.system'"),
        ({"task": ["pix2pix"]}, "expected 'ganlab run 1'"),
        ({"task": None}, "task among"),
        ({"format": "ganlab run 9"}, "expected 'ganlab run 1'"),
        ({"settings": {"magic": 1}}, "does not fit this version of ganlab.*magic"),
        ({"training": {"steps": 1, "speed": 2}}, "speed"),
        ({"data": {}}, "does not fit this version"),
    ],
)
def test_a_foreign_run_is_refused(run, tmp_path, change, message):
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    for use in (load_task, resume):
        with pytest.raises(InputError, match=message):
            use(tmp_path / "run")


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "3"])
def test_a_damaged_configuration_is_refused(run, tmp_path, text):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json"):
        load_task(tmp_path / "run")


# Starting from another run


def test_fine_tuning_starts_from_the_weights_and_scaling_of_the_donor(
    tiles, tile_town, tmp_path, quick, tiny
):
    declared = quick(steps=5, generator_lr=1e-2, scaling=ScalingConfig((-100.0,), (300.0,)))
    donor = train(tiny(), tiles, tmp_path / "donor", declared)
    other = tile_town(rows=6)
    config = quick(steps=1, generator_lr=0.0, discriminator_lr=0.0, seed=8, augment=False)
    run = train(tiny(), other, tmp_path / "run", config, init=donor)
    old, new = (load_task(r, average=False, device="cpu") for r in (donor, run))
    assert new.spec.scalings == old.spec.scalings
    assert new.spec.scalings["image"].low == (-100.0,) * 3
    for name, value in old.state_dict().items():
        assert torch.equal(value, new.state_dict()[name]), name

    store = TileStore.open(other)
    train_tiles = store.split(config.split).train
    batch = Batches(store, train_tiles, old.spec, batch_size=4, augment=False, seed=8)[0]
    torch.manual_seed(derived_seed(8, 0, 0, "step"))
    made = old.train().generate(batch)["image"]
    expected = (made - batch["image"]).abs().mean().item()
    (line,) = read_metrics(run)
    assert line["generator/l1"] == pytest.approx(expected, rel=1e-5)
    untouched = train(tiny(), other, tmp_path / "scratch", config)
    assert read_metrics(untouched)[0]["generator/l1"] != pytest.approx(expected, rel=1e-2)
    assert read_config(run)["init"] == "../donor"


def test_a_game_may_start_from_a_generator_trained_alone(run, tiles, tmp_path, quick, tiny):
    alone = train(tiny(adversarial_weight=0.0), tiles, tmp_path / "alone", quick(steps=2))
    config = quick(steps=1, generator_lr=0.0)
    both = train(tiny(), tiles, tmp_path / "both", config, init=alone)
    old, new = (load_task(r, average=False, device="cpu") for r in (alone, both))
    for name, value in old.generator.state_dict().items():
        assert torch.equal(value, new.generator.state_dict()[name])
    assert new.discriminator is not None


def test_what_does_not_fit_the_donor_is_refused(run, tiles, tile_town, tmp_path, quick, tiny):
    grey, other = tile_town(bands=1), tile_town(classes=(0, 5))
    for store in (grey, other):
        with pytest.raises(InputError, match="bands, dtype and classes must be the same"):
            train(tiny(), store, tmp_path / "run", quick(), init=run)
    wide = tiny(generator=UNetConfig(width=8, depth=3))
    same = r"another shape.*size mismatch for.* others: settings\.generator\.width is 4 there and 8"
    with pytest.raises(InputError, match=same) as caught:
        train(wide, tiles, tmp_path / "run", quick(), init=run)
    assert "\n" not in str(caught.value)
    for name, value in (("spectral", "normalization"), ("diversity", "deviation")):
        config = quick(steps=1, stabilizers=StabilizersConfig(**{name: value}))
        changed = (
            f"others: training.stabilizers.{name} is none there and {value} here; give the same"
        )
        with pytest.raises(InputError, match=changed):
            train(tiny(), tiles, tmp_path / "run", config, init=run)
    with pytest.raises(InputError, match="not a run directory"):
        train(tiny(), tiles, tmp_path / "run", quick(), init=tmp_path)
    assert not (tmp_path / "run").exists()
