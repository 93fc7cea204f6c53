"""Run directories that two want to write, that are damaged, or that come from somebody else."""

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
import time
import warnings

import pytest
import torch
from damage import truncate

from ganlab import cli, evaluation, files
from ganlab.config import (
    EvaluateConfig,
    FeaturesConfig,
    PatchGANConfig,
    Pix2PixConfig,
    SplitConfig,
    StabilizersConfig,
    TrainingConfig,
    UNetConfig,
)
from ganlab.errors import InputError, TrainingFailed
from ganlab.evaluation import evaluate
from ganlab.networks import features
from ganlab.networks.features import EfficientNetLite0
from ganlab.training import Trainer, checkpoints, load_task, records, resume, train
from ganlab.training.description import sealed
from ganlab.training.records import read_metrics
from ganlab.training.runs import doctor, read_config

TASK = Pix2PixConfig(
    generator=UNetConfig(width=4, depth=3), discriminator=PatchGANConfig(width=4, layers=1)
)
TRAINING = TrainingConfig(
    steps=8,
    batch_size=4,
    log_every=1,
    sample_every=0,
    watch_every=0,
    checkpoint_every=4,
    device="cpu",
    tensorboard=False,
    split=SplitConfig(block=16),
)


@pytest.fixture(scope="module")
def finished(tiles, tmp_path_factory):
    """A run of eight steps with two checkpoints; not to be changed."""
    return train(TASK, tiles, tmp_path_factory.mktemp("finished") / "run", TRAINING)


@pytest.fixture
def run(finished, tiles, tmp_path):
    """A copy of it that finds its tiles."""
    shutil.copytree(finished, tmp_path / "run")
    change_config(tmp_path / "run", lambda about: about.update(tiles=str(tiles)))
    return tmp_path / "run"


def change_config(run, change):
    path = run / "config.json"
    about = json.loads(path.read_text())
    change(about)
    path.write_text(json.dumps(sealed(about)))


def contents(folder):
    """All files below a folder, with their bytes."""
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def refusal(work, match):
    """The message of the one-line refusal, which comes within seconds."""
    begin = time.monotonic()
    with pytest.raises(InputError, match=match) as caught:
        work()
    assert "\n" not in str(caught.value)
    assert time.monotonic() - begin < 20
    return str(caught.value)


# Two at once

HOLD = """
import sys
from pathlib import Path
from ganlab.files import exclusive
with exclusive(Path(sys.argv[1]), "training"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def held(run):
    """The run while another process trains in it."""
    command = [sys.executable, "-c", HOLD, str(run)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as other:
        assert other.stdout.readline() == "held\n"
        yield run
        other.kill()


def test_a_second_training_is_refused_and_touches_nothing(held, tiles, capsys):
    shutil.rmtree(held / "checkpoints")  # so that nothing but the lock protects it
    before = contents(held)
    refusal(lambda: train(TASK, tiles, held, TRAINING), "written by another process .training.")
    refusal(lambda: resume(held), "written by another process .training.")
    with pytest.raises(SystemExit) as left:
        cli.main(["resume", "--run", str(held)])
    assert left.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert contents(held) == before


def test_a_run_that_is_trained_can_be_read(held):
    load_task(held, device="cpu")
    doctor(held)


def test_the_lock_goes_with_the_training(run):
    resume(run, steps=9)
    resume(run, steps=10)
    assert not list(run.parent.glob(".run.lock"))


# What is broken in the records


def break_line(path, number, text='{"step": 3, "generator/l1": 0.'):
    lines = path.read_text().splitlines()
    lines[number] = text
    path.write_text("\n".join(lines) + "\n")
    return path.read_bytes()


BROKEN_LINES = [
    '{"step": 3, "generator/l1": 0.',
    "[1, 2]",
    "3",
    '{"generator/l1": 0.5}',
    '{"step": "3"}',
    '{"step": 3, "generator/l1": "low"}',
    '{"step": -3}',
    '{"step": true}',
    '{"step": 3, "a": ' + "9" * 400 + "}",
    "[" * 100_000,
    "\0" * 40,
]


@pytest.mark.parametrize("text", BROKEN_LINES)
def test_a_broken_line_in_the_middle_costs_no_other(run, text):
    path = run / "metrics.jsonl"
    whole = read_metrics(run)
    original = break_line(path, 2, text)
    with pytest.warns(UserWarning, match="metrics.jsonl: 1 line is broken .the first is line 3"):
        doctor(run)
    assert path.read_bytes() == original
    with pytest.warns(UserWarning, match=r"kept as metrics\.jsonl\.broken"):
        resume(run, steps=9)
    assert (run / "metrics.jsonl.broken").read_bytes() == original
    assert read_metrics(run)[:-1] == whole[:2] + whole[3:]
    assert read_metrics(run)[-1]["step"] == 9


def test_files_kept_aside_do_not_replace_each_other(run):
    for number, name in ((2, "metrics.jsonl.broken"), (4, "metrics.jsonl.broken-2")):
        original = break_line(run / "metrics.jsonl", number)
        with pytest.warns(UserWarning, match="broken"):
            resume(run)
        assert (run / name).read_bytes() == original
    assert len(read_metrics(run)) == 6


def test_half_a_last_line_is_what_a_kill_leaves(run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "gen')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read_metrics(run)) == 8
        resume(run, steps=9)
    assert not (run / "metrics.jsonl.broken").exists()
    assert [line["step"] for line in read_metrics(run)] == list(range(1, 10))


def test_records_that_are_folders_are_named(run):
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").mkdir()
    refusal(lambda: doctor(run), "cannot read .*metrics.jsonl: .*Is a directory")
    refusal(lambda: resume(run, steps=9), "cannot write the records of .*Is a directory")


@pytest.mark.parametrize(
    "failure",
    [
        {"step": [], "place": None},
        {"step": -1, "place": None},
        {"step": 3, "place": 3},
        {"step": 3, "place": None, "batch": {}},
    ],
)
def test_a_damaged_failure_is_refused(run, failure):
    (run / "failure.json").write_text(json.dumps(failure))
    refusal(lambda: doctor(run), r"failure\.json is damaged: .*; remove it, and resume")


# What config.json says


def nested(about, path, value):
    *first, last = path.split("/")
    for name in first:
        about = about[int(name)] if isinstance(about, list) else about[name]
    about[last] = value


IMAGE = "data/sources/image/"
LOW = "data/scalings/image/"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("settings/generator/depth", 10**6),
        ("settings/generator/width", 10**7),
        ("settings/generator/width", 60_000),
        ("settings/discriminator/layers", 10**6),
        ("settings/generator/width", "wide"),
        ("settings/generator/width", 8),
        ("settings/generator/depth", 2),
        ("settings/generator/depth", True),
        ("settings/adversarial_weight", 0.0),
        ("settings/generator/norm", "layer"),
        ("settings/source", "radar"),
        ("settings", None),
        ("settings", []),
        ("data", 3),
        ("data/sources", []),
        ("data/sources/image", None),
        (IMAGE + "name", "../image"),
        (IMAGE + "name", "/tmp/image"),
        (IMAGE + "name", "other"),
        (IMAGE + "kind", "sound"),
        (IMAGE + "dtype", "object"),
        (IMAGE + "bands", []),
        (IMAGE + "bands", ["red"]),
        (IMAGE + "factor", 0),
        (IMAGE + "factor", 10**9),
        ("data/sources/label/classes", ["a"]),
        ("data/sources/label/classes", [0, 10**12]),
        ("data/scalings", {}),
        ("data/scalings/label", {"low": [0.0], "high": [1.0], "fill": [0.5]}),
        (LOW + "low", [0.0, 0.0]),
        (LOW + "low", [255.0, 0.0, 0.0]),
        (LOW + "low", [math.nan, 0.0, 0.0]),
        (LOW + "high", [math.inf, 255.0, 255.0]),
        (LOW + "high", [1e300, 255.0, 255.0]),
        (LOW + "fill", ["a", 0.0, 0.0]),
        ("data/pixel_size", -1.0),
        ("data/pixel_size", math.inf),
    ],
)
def test_a_description_that_does_not_fit_is_refused(run, path, value):
    change_config(run, lambda about: nested(about, path, value))
    for use in (lambda: load_task(run, device="cpu"), lambda: resume(run)):
        refusal(use, "run")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("training/steps", 10**30),
        ("training/batch_size", 10**9),
        ("training/workers", 10**6),
        ("training/precision", "fp8"),
        ("training/device", "tpu"),
        ("training/keep", 0),
        ("training/generator_lr", -1.0),
        ("training/balance", {"kind": "foo"}),
        ("training/stabilizers/penalties", ["r9"]),
        ("training/split/block", "all"),
        ("training/lr_schedule", {"shape": "linear", "start": 7}),
        ("split", {"train": -1}),
        ("split", "all"),
        ("fingerprint", 3),
        ("tiles", 3),
        ("tiles", ""),
        ("init", ["x"]),
    ],
)
def test_a_training_that_does_not_fit_is_refused(run, path, value):
    change_config(run, lambda about: nested(about, path, value))
    refusal(lambda: resume(run), "run|settings|split")


@pytest.mark.parametrize("name", ["settings", "training", "data", "tiles", "split", "fingerprint"])
def test_what_is_missing_in_a_description_is_named(run, name):
    change_config(run, lambda about: about.pop(name))
    for use in (load_task, resume, doctor):
        refusal(lambda use=use: use(run), f"config.json does not fit .*{name}")


@pytest.mark.parametrize("size", [{"width": 2**16}, {"depth": 17}, {"width": 10**9}])
def test_networks_that_no_machine_holds_are_refused_before_they_are_made(tiles, tmp_path, size):
    task = dataclasses.replace(TASK, generator=UNetConfig(**{"depth": 3, **size}))
    refusal(
        lambda: train(task, tiles, tmp_path / "run", TRAINING),
        r"parameters, .* GB, and this machine has|(width|depth) is \d+; it must be at most",
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["batch_size", "workers"])
def test_absurd_numbers_are_refused_before_anything_is_made(tiles, tmp_path, name):
    config = dataclasses.replace(TRAINING, **{name: 10**9})
    work = lambda: train(TASK, tiles, tmp_path / "run", config)  # noqa: E731
    refusal(work, f"{name} is 1000000000; it must be at most")


def test_a_change_by_hand_or_damage_is_said(run):
    """Every number of it could be another, and most of them would give an image as well."""
    path = run / "config.json"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_task(run, device="cpu")
    path.write_text(path.read_text().replace("255.0", "254.0", 1))
    with pytest.warns(UserWarning, match="config.json was changed after ganlab had written it"):
        load_task(run, device="cpu")


# What checkpoints hold


def rewrite(run, change):
    path = checkpoints.latest(run / "checkpoints")
    state = checkpoints.load(path)
    change(state)
    checkpoints.save(path, state)
    return path


def first(tree):
    return next(iter(tree))


DAMAGE = {
    "no weights": lambda s: s.pop("players"),
    "no generator": lambda s: s["players"].pop("generator"),
    "no discriminator": lambda s: s["players"].pop("discriminator"),
    "one more network": lambda s: s["players"].update(third={}),
    "one weight less": lambda s: s["players"]["generator"].popitem(),
    "one weight more": lambda s: s["players"]["generator"].update(more=torch.ones(2)),
    "another shape": lambda s: s["players"]["generator"].update(
        {first(s["players"]["generator"]): torch.ones(3)}
    ),
    "weights as text": lambda s: s["players"]["generator"].update(
        {first(s["players"]["generator"]): "heavy"}
    ),
    "weights as list": lambda s: s.update(players=[1, 2]),
    "no step": lambda s: s.pop("step"),
    "another step": lambda s: s.update(step=7),
    "step as text": lambda s: s.update(step="8"),
    "step as tensor": lambda s: s.update(step=torch.tensor(8)),
    "no average": lambda s: s.pop("ema"),
    "average as text": lambda s: s.update(ema="mean"),
    "average of others": lambda s: s["ema"].popitem(),
    "a number": lambda s: s.clear(),
}
ONLY_TO_GO_ON = {
    "no optimizers": lambda s: s.pop("optimizers"),
    "no optimizer": lambda s: s["optimizers"].pop("generator"),
    "no moments": lambda s: s["optimizers"]["generator"].pop("state"),
    "moments of others": lambda s: s["optimizers"]["generator"]["state"][0].update(
        exp_avg=torch.ones(1)
    ),
    "moments as text": lambda s: s["optimizers"]["generator"]["state"][0].update(exp_avg="low"),
    "no groups": lambda s: s["optimizers"]["generator"].update(param_groups=[]),
    "group without betas": lambda s: s["optimizers"]["generator"]["param_groups"][0].pop("betas"),
    "no balances": lambda s: s.pop("balances"),
    "one balance": lambda s: s["balances"].pop(),
    "no stabilizers": lambda s: s.pop("stabilizers"),
    "no scaler": lambda s: s.pop("scaler"),
    "no meter": lambda s: s.pop("meter"),
    "meter as text": lambda s: s.update(meter={"generator/l1": "low"}),
    "meter as numbers": lambda s: s.update(meter={"generator/l1": 3}),
    "count of nothing": lambda s: s["stabilizers"].update(judged=None),
    "count as truth": lambda s: s["stabilizers"].update(judged=True),
    "moment of nothing": lambda s: s["optimizers"]["generator"]["state"][0].update(step=None),
    "rate as text": lambda s: s["optimizers"]["generator"]["param_groups"][0].update(lr="low"),
    "more": lambda s: s.update(more=3),
    "average left out": lambda s: s.update(ema=None),
}


@pytest.mark.parametrize("what", [*DAMAGE, *ONLY_TO_GO_ON])
def test_a_checkpoint_that_does_not_fit_is_refused(run, what):
    path = rewrite(run, (DAMAGE | ONLY_TO_GO_ON)[what])
    refusal(lambda: resume(run, steps=9), f"{path.name}: config.json and checkpoint do not fit: ")
    if what in DAMAGE:
        refusal(lambda: load_task(run, device="cpu"), f"{path.name}: config.json and checkpoint do")


def test_a_cut_checkpoint_names_the_one_before_and_how_to_use_it(run, capsys):
    older, newest = checkpoints.all_in(run / "checkpoints")
    truncate(newest, newest.stat().st_size - 9)
    for use in (resume, load_task):
        said = refusal(lambda use=use: use(run), f"cannot read checkpoint {newest}: ")
        assert f"the newest whole one before it is {older}: " in said
        assert f"remove {newest}, and resume goes on" in said
    load_task(older, device="cpu")
    newest.unlink()
    resume(run)
    assert [line["step"] for line in read_metrics(run)] == list(range(1, 9))
    assert checkpoints.load(newest)["step"] == 8


def test_an_unreadable_folder_of_checkpoints_is_no_empty_one(run, tiles):
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").write_text("in the way")
    uses = [load_task, resume, lambda run: train(TASK, tiles, run, TRAINING)]
    for use in uses:
        refusal(lambda use=use: use(run), "cannot read the checkpoints in .*Not a directory")


@pytest.mark.parametrize("where", ["players", "ema"])
def test_models_that_are_not_finite_are_refused(run, where):
    def spoil(state):
        weights = state["ema"] if where == "ema" else state["players"]["generator"]
        next(v for v in weights.values() if v.ndim).view(-1)[0] = math.nan

    rewrite(run, spoil)
    config = EvaluateConfig(run=run, device="cpu", average=where == "ema")
    refusal(lambda: evaluate(config), "holds weights that are infinite or NaN")
    assert not list(run.glob("evaluation*"))


# Records that cannot be written


def full(*_, **__):
    raise OSError(28, "No space left on device")


def test_metrics_that_cannot_be_written_end_in_a_line_with_the_last_checkpoint(
    tiles, tmp_path, monkeypatch
):
    append = records.append_line

    def fills_up(path, values):
        if values["step"] == 6:
            full()
        append(path, values)

    monkeypatch.setattr(records, "append_line", fills_up)
    run = tmp_path / "run"
    said = refusal(lambda: train(TASK, tiles, run, TRAINING), "No space left on device")
    last = run / "checkpoints" / checkpoints.name(4)
    assert f"the last checkpoint is {last}; go on with: ganlab resume --run {run}" in said
    monkeypatch.undo()
    resume(run)
    assert [line["step"] for line in read_metrics(run)] == list(range(1, 9))


def test_a_folder_that_goes_away_ends_in_a_line(tiles, tmp_path, monkeypatch):
    step, run = Trainer.train_step, tmp_path / "run"

    def removing(self, batch):
        step(self, batch)
        if self.step == 2:
            shutil.rmtree(run)

    monkeypatch.setattr(Trainer, "train_step", removing)
    refusal(lambda: train(TASK, tiles, run, TRAINING), "no checkpoint had been saved")
    assert not run.exists()


def test_a_panel_that_fails_is_told_once_and_ends_nothing(
    tiles, tmp_path, monkeypatch, finished, same_runs
):
    monkeypatch.setattr(records.Image.Image, "save", full)
    config = dataclasses.replace(TRAINING, sample_every=2)
    with pytest.warns(UserWarning, match="a sample panel cannot be written: .*No space") as said:
        run = train(TASK, tiles, tmp_path / "run", config)
    assert len(said) == 1
    same_runs(run, finished)
    assert not list((run / "samples").iterdir())


def test_a_panel_that_cannot_be_made_leaves_the_generator_that_is_trained(
    tiles, tmp_path, monkeypatch, finished, same_runs
):
    def fails(*_):
        raise RuntimeError("no picture")

    monkeypatch.setattr("ganlab.training.runs.picture", fails)
    config = dataclasses.replace(TRAINING, sample_every=2)
    with pytest.warns(UserWarning, match="a sample panel cannot be written: no picture"):
        same_runs(train(TASK, tiles, tmp_path / "run", config), finished)


def test_a_tensorboard_that_fails_is_told_once_and_ends_nothing(
    tiles, tmp_path, monkeypatch, finished, same_runs
):
    from torch.utils.tensorboard import SummaryWriter

    monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    config = dataclasses.replace(TRAINING, tensorboard=True)
    with pytest.warns(UserWarning, match="a line for TensorBoard cannot be written") as said:
        same_runs(train(TASK, tiles, tmp_path / "run", config), finished)
    assert len(said) == 1


def test_a_file_where_tensorboard_writes_ends_nothing(run):
    (run / "tensorboard").write_text("in the way")
    change_config(run, lambda about: nested(about, "training/tensorboard", True))
    with pytest.warns(UserWarning, match="a line for TensorBoard cannot be written"):
        resume(run, steps=9)
    assert read_metrics(run)[-1]["step"] == 9


def test_the_failed_batch_is_the_one_that_the_trainer_names(tiles, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    other = run / "failed-step-00009999.safetensors"
    other.touch()
    os.utime(other, (2**33, 2**33))  # newer than anything
    config = dataclasses.replace(TRAINING, generator_lr=1e30)
    with pytest.raises(TrainingFailed, match="no checkpoint had been saved yet") as caught:
        train(TASK, tiles, run, config)
    failure = json.loads((run / "failure.json").read_text())
    assert failure["step"] == caught.value.step < 8
    assert (
        failure["batch"] == caught.value.batch == f"failed-step-{failure['step']:08d}.safetensors"
    )
    assert (run / failure["batch"]).exists()


# Links that somebody planted


def test_planted_links_are_not_followed(run, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    names = ["config.json.tmp", "metrics.jsonl.tmp", "failure.json", "evaluation-test.json"]
    names += ["evaluation-test.json.tmp", "ground.json.tmp", "samples/step-00000009.png"]
    names += [f"checkpoints/{checkpoints.name(9)}.tmp", "checkpoints/step-new.safetensors"]
    (run / "samples").mkdir()
    for name in names:
        (run / name).symlink_to(precious)
    change_config(run, lambda about: nested(about, "training/sample_every", 9))
    resume(run, steps=9)
    evaluation._write(run / "evaluation-test.json", {"rows": {}})
    assert precious.read_text() == "mine"
    assert (run / "samples" / "step-00000009.png").read_bytes()[:4] == b"\x89PNG"
    assert "rows" in json.loads((run / "evaluation-test.json").read_text())


@pytest.mark.parametrize("name", ["metrics.jsonl", "findings.jsonl"])
def test_records_are_never_appended_through_a_link(run, tmp_path, name):
    elsewhere = tmp_path / "elsewhere"
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(elsewhere)
    with pytest.raises(OSError, match=r"symbolic link|Too many levels"):
        records.append_line(run / name, {"step": 1})
    assert not elsewhere.exists()


# Another machine


def test_a_run_goes_on_on_another_device_and_says_what_is_lost(run):
    def elsewhere(about):
        about["device"] = about["training"]["device"] = "cuda"
        about["training"]["precision"] = "fp16"

    change_config(run, elsewhere)
    said = refusal(lambda: resume(run, steps=10), "no device 'cuda' here")
    assert "resume takes another device" in said
    lost = "goes on on cpu with fp32, before it was cuda with fp16: .* no longer bit for bit"
    with pytest.warns(UserWarning, match=lost):
        resume(run, steps=10, device="cpu", precision="fp32")
    assert checkpoints.step_of(checkpoints.latest(run / "checkpoints")) == 10
    about = read_config(run)
    assert (about["device"], about["training"]["device"]) == ("cpu", "cpu")
    assert about["training"]["precision"] == "fp32"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resume(run, steps=11)


@pytest.mark.parametrize(("first", "then"), [("fp32", "fp16"), ("fp16", "bf16"), ("fp16", "fp32")])
def test_a_run_goes_on_with_another_precision(tiles, tmp_path, first, then):
    config = dataclasses.replace(TRAINING, precision=first, steps=3)
    run = train(TASK, tiles, tmp_path / "run", config)
    with pytest.warns(UserWarning, match=f"goes on on cpu with {then}, before it was cpu with"):
        resume(run, steps=6, precision=then)
    assert [line["step"] for line in read_metrics(run)] == list(range(1, 7))


def test_a_run_of_an_automatic_device_says_when_it_is_another(run):
    def elsewhere(about):
        about["device"], about["training"]["device"] = "cuda", "auto"

    change_config(run, elsewhere)
    with pytest.warns(UserWarning, match="goes on on cpu with fp32, before it was cuda"):
        resume(run, steps=9)


def test_the_command_takes_a_device_and_a_precision(run, capsys):
    cli.main(
        ["resume", "--run", str(run), "--steps", "9", "--device", "cpu", "--precision", "bf16"]
    )
    done = capsys.readouterr()
    assert done.out == f"{run}: trained to step 9\n"
    assert "no longer bit for bit" in done.err
    for option, word in (("--device", "tpu"), ("--precision", "fp8")):
        with pytest.raises(SystemExit):
            cli.main(["resume", "--run", str(run), option, word])
    with pytest.raises(InputError, match=r"training\.|device"):
        resume(run, device="tpu")


# Feature networks with weights of one's own


@pytest.fixture
def own_weights(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "own.pth"
    state = {k: v.abs() + 0.1 for k, v in EfficientNetLite0().state_dict().items()}
    torch.save(state, path)
    return path


def test_feature_weights_of_ones_own_are_known_by_their_digest(tiles, tmp_path, own_weights):
    choice = FeaturesConfig(weights=str(own_weights), layers=("stem",))
    task = dataclasses.replace(TASK, perceptual_weight=1.0, features=choice)
    config = dataclasses.replace(TRAINING, steps=2)
    run = train(task, tiles, tmp_path / "run", config)
    digest = features.weights_digest(own_weights)
    assert read_config(run)["features"] == {str(own_weights): digest}
    resume(run, steps=3)
    asked = EvaluateConfig(run=run, features="efficientnet-lite0", weights=str(own_weights))
    assert evaluation._said_of(asked).endswith(f"own.pth, SHA-256 {digest}")
    state = torch.load(own_weights)
    state["_conv_stem.weight"][0, 0, 0, 0] += 1
    torch.save(state, own_weights)
    refusal(lambda: resume(run, steps=4), "weights of the feature network .* are others than")
    own_weights.unlink()
    refusal(lambda: resume(run, steps=4), "cannot read weights from .*own.pth")


def test_stabilizers_and_tasks_go_through_the_outline(tiles, tmp_path):
    """Networks are described without memory also where layers are changed after they are made."""
    for name, value in (("spectral", "normalization"), ("diversity", "discrimination")):
        config = dataclasses.replace(
            TRAINING, steps=2, stabilizers=StabilizersConfig(**{name: value})
        )
        run = train(TASK, tiles, tmp_path / name, config)
        resume(run, steps=3)
        load_task(run, device="cpu")


def test_leftovers_of_evaluations_are_left_to_them(run):
    theirs = run / f".evaluation-test.json.abc{files.LEFTOVER}"
    theirs.write_text("half")
    resume(run, steps=9)
    assert theirs.exists()
