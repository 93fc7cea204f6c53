"""Studies: verdicts on results made up for them, and small studies that are stopped and go on."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import matplotlib as mpl
import numpy as np
import pytest
import rasterio
from matplotlib.colors import to_rgb
from rasterio.transform import from_origin

from ganlab import cli, evaluation
from ganlab.config import (
    PatchGANConfig,
    Pix2PixConfig,
    SplitConfig,
    TilingConfig,
    TrainingConfig,
    UNetConfig,
)
from ganlab.data.tiling import tile
from ganlab.errors import InputError
from ganlab.files import exclusive
from ganlab.plotting import study as drawing
from ganlab.studies import (
    STUDIES,
    Rule,
    Study,
    changed,
    compare,
    read_study,
    run_study,
    runs,
    table,
)
from ganlab.studies.questions import fitting
from ganlab.training import Trainer, checkpoints
from ganlab.training.records import read_metrics

mpl.use("Agg")
TASK = Pix2PixConfig(
    generator=UNetConfig(width=4, depth=2), discriminator=PatchGANConfig(width=4, layers=1)
)
TRAINING = TrainingConfig(
    steps=4,
    batch_size=2,
    ema=0.0,
    log_every=1,
    sample_every=0,
    device="cpu",
    tensorboard=False,
    split=SplitConfig(block=32),
)
SAME = "no difference worth naming"


# What settings change


def test_a_setting_changes_what_it_names_and_nothing_else():
    setting = {
        "task.adversarial": "hinge",
        r"task\..*\.norm": "batch",
        "training.balance.kind": "derived",
        r"training\.(generator|discriminator)_lr": lambda old: 10 * old,
    }
    task, training = changed(setting, TASK, TRAINING)
    assert task == dataclasses.replace(
        TASK,
        adversarial="hinge",
        generator=dataclasses.replace(TASK.generator, norm="batch"),
        discriminator=dataclasses.replace(TASK.discriminator, norm="batch"),
    )
    balance = dataclasses.replace(TRAINING.balance, kind="derived")
    rates = {"generator_lr": 2e-3, "discriminator_lr": 2e-3}
    assert training == dataclasses.replace(TRAINING, balance=balance, **rates)
    assert changed({}, TASK, TRAINING) == (TASK, TRAINING)


@pytest.mark.parametrize("field", ["task.norm", "generator.norm", "training.stepss", "task"])
def test_a_field_that_is_none_is_named(field):
    with pytest.raises(InputError, match=f"{field} is no field of Pix2Pix or of the training"):
        changed({"task.adversarial": "hinge", field: 1}, TASK, TRAINING)


def test_settings_that_do_not_fit_are_left_out_and_named():
    settings = {
        "hinge": {"task.adversarial": "hinge"},
        "holes": {"task.hole_weight": 1.0},
        "vanilla": {"task.adversarial": "vanilla"},
        "again": {"task.adversarial": "hinge"},
    }
    found, left_out = fitting(Study("own", "Which?", settings), TASK, TRAINING)
    assert list(found) == ["as given", "hinge"]
    assert list(left_out) == ["holes", "vanilla", "again"]
    assert "task.hole_weight is no field" in left_out["holes"]
    assert left_out["vanilla"] == 'the same as "as given"'
    assert left_out["again"] == 'the same as "hinge"'
    named = Study("own", "Which?", settings, baseline="hinge")
    assert list(fitting(named, TASK, TRAINING)[0]) == ["hinge", "vanilla"]


@pytest.mark.parametrize(
    ("study", "match"),
    [
        (Study("own", "?", {"a": {"task.hole_weight": 1}}), "'own' is not for this Pix2Pix: a: "),
        (Study("own", "?", {}), "'own' is not for this Pix2Pix"),
        (Study("own", "?", {"a/b": {"task.noise": True}}), "'a/b'"),
        (Study("own", "?", {"a": {"task.noise": True}}, needs="task.hole_weight"), "has no task.h"),
        (Study("own", "?", {"a": {"task.source": "b"}}, needs="task.noise"), "task.noise is 0"),
        (Study("own", "?", {"a": {}, "b": {"task.hat": 1}}, baseline="b"), "b: task.hat is no f"),
    ],
)
def test_a_study_that_does_not_fit_is_refused(study, match):
    with pytest.raises(InputError, match=match):
        fitting(study, TASK, TRAINING)


@pytest.mark.parametrize("name", STUDIES)
@pytest.mark.parametrize("task", cli.TASKS)
def test_named_studies_change_one_thing_of_every_task_or_say_why_not(name, task):
    """With an opponent, every task but the VAE has all; every setting differs from the others."""
    settings = cli.TASKS[task][0]()
    if task == "cloud-layers":
        settings = dataclasses.replace(settings, adversarial_weight=1.0)
    study = STUDIES[name]
    if task == "vae" and study.needs:
        with pytest.raises(InputError, match="not for this VAE: it has no task.adversarial_weight"):
            fitting(study, settings, TRAINING)
        return
    found, left_out = fitting(study, settings, TRAINING)
    assert {*found, *left_out} == {study.baseline, *study.settings}
    assert set(left_out.values()) <= {f'the same as "{study.baseline}"'}
    assert len(left_out) == (name in ("games", "norms") and (name, task) not in MIXED)
    assert len(set(map(str, found.values()))) == len(found)


MIXED = {("norms", "pix2pix"), ("norms", "inpainting"), ("norms", "two-stage")}
"""Their discriminators have another norm than their generators."""


# Verdicts


@pytest.mark.parametrize(
    ("difference", "low", "high", "lower"),
    [
        (-0.10, -0.15, -0.05, "better"),
        (-0.02, -0.03, -0.01, "better"),
        (-0.0199, -0.03, -0.01, "undecided"),
        (-0.10, -0.21, 0.01, "undecided"),
        (-0.01, -0.019, -0.001, SAME),
        (0.0, -0.0199, 0.0199, SAME),
        (0.0, -0.0201, 0.0199, "undecided"),
        (float("nan"), float("nan"), float("nan"), "undecided"),
    ],
)
def test_the_rule_has_two_sides_and_a_middle(difference, low, high, lower):
    rule = Rule(least=0.02)
    other = {"better": "worse"}.get(lower, lower)
    assert rule.verdict(difference, low, high, "lower") == lower
    assert rule.verdict(-difference, -high, -low, "lower") == other
    assert rule.verdict(difference, low, high, "higher") == other
    assert rule.verdict(-difference, -high, -low, "higher") == lower


def made_up(setting, values, *, name="L1", drawn=None, pace=1.0):
    """Results of one setting: a value for each seed, or the step at which it diverged."""
    results = []
    for seed, value in enumerate(values):
        lost = value if isinstance(value, int) else None
        there = lost is None
        draws = [value] * 3 if drawn is None else drawn[seed]
        results.append(
            {
                "setting": setting,
                "seed": seed,
                "diverged": lost,
                "tiles": 20,
                "rows": {"model": {"alpha SSIM": 0.5, name: value}} if there else {},
                "resampled": {name: list(draws)} if there else {},
                "provenance": {"seconds_per_step": pace},
            }
        )
    return results


BASE = made_up("base", [0.5, 0.8, 0.3], pace=2.0)


def verdict(results, **options):
    found = compare(BASE + results, "base", {"L1": "lower"}, **options)
    assert found[0].verdict == "baseline"
    return found[1]


def test_differences_are_paired_over_seeds():
    """Seeds differ by far more than settings do."""
    found = verdict(made_up("new", [0.45, 0.76, 0.25], pace=3.0))
    assert found.verdict == "better"
    assert found.difference == pytest.approx((-0.05 - 0.04 - 0.05) / 3)
    assert found.scale == pytest.approx(1.6 / 3)
    assert found.interval[1] < 0
    assert found.cost == 1.5
    assert found.values == {0: 0.45, 1: 0.76, 2: 0.25}
    assert verdict(made_up("new", [0.55, 0.84, 0.35])).verdict == "worse"
    assert verdict(made_up("new", [0.25, 0.45, 0.76])).verdict == "undecided"
    assert verdict(made_up("new", [0.501, 0.8005, 0.2995])).verdict == SAME
    assert verdict(made_up("new", [0.501, 0.8005, 0.2995]), rule=Rule(1e-6)).verdict == "undecided"


def test_differences_are_paired_over_tiles():
    """The same draws of tiles for all runs: what a tile does to both drops out."""
    hard = np.random.default_rng(0).normal(0, 0.3, 200)
    values = [0.5, 0.5, 0.5]
    base = made_up("base", values, drawn=[value + hard for value in values])
    less = [0.46, 0.459, 0.461]
    new = made_up("new", less, drawn=[value + hard for value in less])
    other = made_up("other", less, drawn=[value - hard for value in less])
    found = compare(base + new + other, "base", {"L1": "lower"})
    assert [c.verdict for c in found] == ["baseline", "better", "undecided"]


def test_one_seed_decides_nothing():
    results = [result for result in BASE + made_up("new", [0.1] * 3) if result["seed"] == 1]
    assert compare(results, "base", {"L1": "lower"})[1].verdict == "undecided"


@pytest.mark.parametrize(
    ("base", "new", "expected"),
    [
        ([0.5, 0.8, 0.3], [7, 8, 9], "worse"),
        ([7, 8, 9], [0.5, 0.8, 0.3], "better"),
        ([7, 8, 9], [1, 2, 3], "undecided"),
        ([7, 8, 0.3], [1, 2, 3], "worse"),
        ([0.5, 0.8, 0.3], [7, 0.1, 0.1], "undecided"),
        ([7, 0.8, 0.3], [7, 0.4, 0.15], "undecided"),  # two seeds prove next to nothing
        ([7, 0.8, 0.3, 0.4], [7, 0.4, -0.1, 0.0], "better"),
        ([7, 0.8, 0.3, 0.4], [0.3, 7, -0.1, 0.0], "undecided"),
    ],
)
def test_what_diverges_is_a_result(base, new, expected):
    found = compare(made_up("base", base) + made_up("new", new), "base", {"L1": "lower"})[1]
    assert found.verdict == expected
    assert found.diverged == {seed: step for seed, step in enumerate(new) if isinstance(step, int)}


def test_seeds_that_the_other_side_lacks_decide_nothing():
    """A study that goes on has more seeds of some settings than of others."""
    lost, two = made_up("base", [7, 8, 9]), made_up("new", [1, 0.2])
    assert compare(lost + two[:1], "base", {"L1": "lower"})[1].verdict == "undecided"
    assert compare(lost + two[1:], "base", {"L1": "lower"})[1].verdict == "better"
    ahead = made_up("base", [0.5, 0.8, 9])
    new = made_up("new", [0.45, 0.75])
    assert compare(ahead + new, "base", {"L1": "lower"})[1].verdict == "better"


def test_measures_are_found_by_the_part_that_matters():
    """The first of that name; numbers that were not drawn have an interval over seeds alone."""
    results = [made_up("base", [0.5, 0.6], name="hole L1"), made_up("new", [0.4, 0.5], name="L1")]
    results[0][0]["rows"]["model"]["L1"] = 9.0
    for result in [*results[0], *results[1]]:
        result["resampled"] = {}
        result["rows"]["model"]["mean IoU"] = None
    found = compare([*results[0], *results[1]], "base", {"mean IoU": "higher", "L1": "lower"})
    assert [(c.measure, c.values) for c in found[1::2]] == [
        ("mean IoU", {}),
        ("L1", {0: 0.4, 1: 0.5}),
    ]
    assert found[3].difference == pytest.approx(-0.1)
    assert found[3].interval == pytest.approx((-0.1, -0.1))
    assert [c.verdict for c in found[1::2]] == ["undecided", "better"]
    with pytest.raises(InputError, match=r"nothing of \['PSNT'\] was measured, only \['alpha SSIM"):
        compare(results[0], "base", {"PSNT": "higher"})
    with pytest.raises(
        InputError, match=r"no result of the baseline 'nothing', only of \['base'\]"
    ):
        compare(results[0], "nothing")


def test_more_can_be_better():
    base, new = made_up("base", [20.0, 21.0, 22.0], name="PSNR"), [22.0, 23.0, 24.1]
    results = base + made_up("new", new, name="PSNR")
    assert compare(results, "base", {"PSNR": "higher"})[1].verdict == "better"
    assert compare(results, "base", {"PSNR": "lower"})[1].verdict == "worse"


# Studies that are made


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studies")
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, (1, 16, 16), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    image = (60 * label + rng.integers(20, 60, (3, 128, 128))).astype(np.uint8)
    for name, array in {"image.tif": image, "label.tif": label}.items():
        profile = {"driver": "GTiff", "width": 128, "height": 128, "count": len(array)}
        place = {"crs": "EPSG:32633", "transform": from_origin(0, 128, 1, 1), "dtype": "uint8"}
        with rasterio.open(folder / name, "w", **profile, **place) as file:
            file.write(array)
    paths = (str(folder / "image.tif"),), folder / "tiles", (str(folder / "label.tif"),)
    tile(TilingConfig(*paths, size=32))
    return folder / "tiles"


OWN = Study(
    "own",
    "Does the game matter?",
    {"hinge": {"task.adversarial": "hinge"}, "wild": {"training.generator_lr": 1e38}},
)


@pytest.fixture(autouse=True, scope="module")
def _quick():
    """Intervals beside the baselines of an evaluation are not the matter here."""
    before, evaluation.RESAMPLES = evaluation.RESAMPLES, 10
    yield
    evaluation.RESAMPLES = before


@pytest.fixture(scope="module")
def whole(tiles, tmp_path_factory):
    """A study of three settings and two seeds, made without a break."""
    return run_study(OWN, TASK, tiles, tmp_path_factory.mktemp("whole"), seeds=2, training=TRAINING)


def numbers(outcome):
    """Everything of the results but how long they took, and intervals beside baselines."""
    found = {}
    for result in outcome.results:
        origin = {k: v for k, v in result["provenance"].items() if not k.startswith("seconds")}
        error = result.get("error", "").split("; its batch is in")[0]
        name = f"{result['setting']} {result['seed']}"
        found[name] = result | {"provenance": origin, "error": error, "intervals": None}
    return found


def test_a_result_is_complete_and_says_where_it_comes_from(whole, tiles):
    assert [(r["setting"], r["seed"]) for r in whole.results] == [
        (setting, seed) for setting in ("as given", "hinge", "wild") for seed in (0, 1)
    ]
    for result in whole.results:
        origin = result["provenance"]
        assert {"versions", "hardware", "seconds", "seconds_per_step", "threads"} <= origin.keys()
        assert origin["training"]["seed"] == result["seed"]
        assert origin["training"]["steps"] == result["steps"] == 4
        assert origin["task"]["adversarial"] == (
            "hinge" if result["setting"] == "hinge" else "vanilla"
        )
        if result["setting"] != "wild":
            assert [line["step"] for line in result["curve"]] == [1, 2, 3, 4]
            assert len(result["resampled"]["L1"]) == 500
            assert result["tiles"] > 1
            assert 0.5 < np.mean(result["resampled"]["L1"]) / result["rows"]["model"]["L1"] < 2
    one, other = (r["rows"]["model"]["L1"] for r in whole.results[:2])
    assert one != other
    assert whole.about["rule"] == {"least": 0.02, "level": 0.95}


def test_a_failed_training_is_a_result(whole):
    for result in whole.results[4:]:
        assert 0 <= result["diverged"] < 4
        assert f"infinite or NaN at step {result['diverged']};" in result["error"]
        assert result["rows"] == {}
    lost = [c for c in whole.comparisons if c.setting == "wild"]
    assert [c.verdict for c in lost] == ["worse"] * 3
    assert all(len(c.diverged) == 2 for c in lost)


def test_a_study_that_was_killed_goes_on_and_makes_nothing_twice(
    whole, tiles, tmp_path, monkeypatch
):
    def stop(done, total, name):
        assert (done, total, name) == (1, 6, "as given-seed0")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(OWN, TASK, tiles, tmp_path, seeds=2, training=TRAINING, progress=stop)
    assert [p.name for p in tmp_path.glob("*seed*.json")] == ["as given-seed0.json"]
    made, make = [], runs._make

    def note(run):
        made.append(run.name)
        make(run)

    monkeypatch.setattr(runs, "_make", note)
    steps = []
    step = Trainer.train_step

    def interrupted(self, batch):
        step(self, batch)
        steps.append(self.step)
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_study(OWN, TASK, tiles, tmp_path, seeds=2, training=TRAINING)
    assert (made, steps) == (["hinge-seed0"], [1, 2])
    outcome = run_study(OWN, TASK, tiles, tmp_path, seeds=2, training=TRAINING)
    assert made == ["hinge-seed0", "hinge-seed0", "wild-seed0"] + [
        f"{setting}-seed1" for setting in ("as given", "hinge", "wild")
    ]
    assert steps[2:4] == [3, 4]
    assert numbers(outcome) == numbers(whole)
    again = run_study(OWN, TASK, tiles, tmp_path, seeds=2, training=TRAINING)
    assert len(made) == 6
    assert again.results == outcome.results == read_study(tmp_path).results


def test_two_processes_give_what_one_gives_and_stop_together(whole, tiles, tmp_path):
    """Bit for bit. When the first is done, the other is in the middle: it saves what it has."""
    endless = {"hinge": {"task.adversarial": "hinge", "training.steps": 1_000_000}}
    study = dataclasses.replace(OWN, settings=endless)
    other = tmp_path / "runs" / "hinge-seed0"

    def stop(done, total, name):
        assert (done, total, name) == (1, 2, "as given-seed0")
        while len(read_metrics(other)) < 4:
            time.sleep(0.01)
        raise KeyboardInterrupt

    options = {"seeds": 1, "training": TRAINING, "processes": 2, "progress": stop}
    with pytest.raises(KeyboardInterrupt):
        run_study(study, TASK, tiles, tmp_path, **options)
    expected = numbers(whole)
    assert numbers(read_study(tmp_path)) == {"as given 0": expected["as given 0"]}
    lines = read_metrics(other)
    assert lines[:4] == expected["hinge 0"]["curve"]
    (saved,) = checkpoints.all_in(other / "checkpoints")
    assert checkpoints.step_of(saved) == lines[-1]["step"] >= 4


def test_measuring_that_was_interrupted_goes_on_and_says_nothing_of_the_pace(
    whole, tiles, tmp_path, monkeypatch
):
    """The step of an older failure at the same place is not this one's, either."""
    old = tmp_path / "runs" / "wild-seed0" / "failed-step-00009999.safetensors"
    old.parent.mkdir(parents=True)
    old.touch()
    evaluate = evaluation.evaluate

    def stop(config):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "evaluate", stop)
    with pytest.raises(KeyboardInterrupt):
        run_study(OWN, TASK, tiles, tmp_path, seeds=1, training=TRAINING)
    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    outcome = run_study(OWN, TASK, tiles, tmp_path, seeds=1, training=TRAINING)
    expected = numbers(whole)
    assert numbers(outcome) == {name: expected[name] for name in numbers(outcome)}
    pace = {r["setting"]: r["provenance"]["seconds_per_step"] for r in outcome.results}
    assert pace["as given"] is None
    assert pace["hinge"] > 0
    assert all(np.isnan(c.cost) for c in outcome.comparisons)
    json.loads((tmp_path / "as given-seed0.json").read_text(), parse_constant=pytest.fail)


def test_what_is_written_is_json(tmp_path):
    """Python's own reader takes more than the standard has."""
    curve = [{"step": 1, "generator/gradient/l1": float("inf")}, {"step": 2, "l1": float("nan")}]
    runs._write(tmp_path / "a.json", {"curve": curve, "seed": 0})
    found = json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)
    curve = [{"step": 1, "generator/gradient/l1": None}, {"step": 2, "l1": None}]
    assert found == {"curve": curve, "seed": 0}


@pytest.mark.parametrize("text", ["", '{"settings": {}, "se', "[]", '{"settings": {}}'])
def test_a_damaged_file_is_named(whole, tiles, tmp_path, text):
    (tmp_path / "study.json").write_text(json.dumps(whole.about))
    result = tmp_path / "as given-seed0.json"
    result.write_text(text)
    with pytest.raises(InputError, match=r"as given-seed0.json.*; once it is gone, the command"):
        read_study(tmp_path)
    (tmp_path / "study.json").write_text(text)
    with pytest.raises(InputError, match=r"study.json.*; once it is gone, the command"):
        read_study(tmp_path)
    if text != '{"settings": {}}':
        with pytest.raises(InputError, match=r"study.json.*; once it is gone, the command"):
            run_study(OWN, TASK, tiles, tmp_path, training=TRAINING)


def test_a_second_study_in_a_folder_is_refused_and_touches_nothing(tiles, tmp_path):
    match = r"written by another process .a study."
    with exclusive(tmp_path, "a study"), pytest.raises(InputError, match=match):
        run_study(OWN, TASK, tiles, tmp_path, training=TRAINING)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("study.json", {"settings": {"../x": {}, "as given": {}}}),
        ("study.json", {"settings": {"*": {}, "as given": {}}}),
        ("study.json", {"settings": ["as given"]}),
        ("study.json", {"baseline": "gone"}),
        ("study.json", {"measures": {"L1": "nicer"}}),
        ("study.json", {"rule": {"least": 0.02, "level": 2.0}}),
        ("study.json", {"rule": {"lowest": 1}}),
        ("study.json", {"share": "all"}),
        ("study.json", {"left out": ["a"]}),
        ("hinge-seed0.json", {"setting": "as given"}),
        ("hinge-seed0.json", {"seed": 1}),
        ("hinge-seed0.json", {"seed": "0"}),
        ("hinge-seed0.json", {"rows": {}}),
        ("hinge-seed0.json", {"rows": {"model": {"L1": "low"}}}),
        ("hinge-seed0.json", {"resampled": {"L1": [0.1]}}),
        ("hinge-seed0.json", {"resampled": {"L1": [float("inf")]}}),
        ("hinge-seed0.json", {"provenance": {"seconds_per_step": 0.0}}),
        ("hinge-seed0.json", {"provenance": {}}),
        ("hinge-seed0.json", {"tiles": -1.5}),
    ],
)
def test_what_is_no_study_is_refused(whole, tmp_path, name, change):
    (tmp_path / "study.json").write_text(json.dumps(whole.about))
    for result in whole.results:
        path = tmp_path / f"{result['setting']}-seed{result['seed']}.json"
        path.write_text(json.dumps(result))
    assert read_study(tmp_path).results == whole.results
    path = tmp_path / name
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError) as caught:
        read_study(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_processes_do_not_outlive_the_study(tiles, tmp_path, number):
    """They save what they have, and end."""
    asked = ["study", "balance", "pix2pix", "--tiles", str(tiles), "--to", str(tmp_path)]
    asked += ["--gpus", "0", "--device", "cpu", "--steps", "100000", "--log-every", "1"]
    asked += ["--checkpoint-every", "100000", "--generator.width", "4", "--generator.depth", "2"]
    asked += ["--discriminator.width", "4", "--discriminator.layers", "1", "--split.block", "32"]
    code = f"import sys; from ganlab.cli import main; main({asked})"
    run = tmp_path / "runs" / "fixed-seed0"

    def wait(condition):
        for _ in range(6000):
            if condition():
                return
            time.sleep(0.01)
        raise AssertionError("waited in vain")

    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) as process:
        wait(lambda: read_metrics(run) or process.poll() is not None)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    if number == signal.SIGTERM:
        assert (process.returncode, said) == (
            130,
            f"ganlab: {tmp_path}: stopped; the same command goes on\n".encode(),
        )
        assert checkpoints.all_in(run / "checkpoints")
    wait(lambda: checkpoints.all_in(run / "checkpoints"))
    (saved,) = checkpoints.all_in(run / "checkpoints")
    assert checkpoints.step_of(saved) == read_metrics(run)[-1]["step"]


class Deadly:
    """Ends the process that unpickles it."""

    def __reduce__(self):
        return os._exit, (9,)


def test_a_process_that_dies_is_named(tmp_path):
    run = runs._Run("new", Deadly(), TRAINING, tmp_path, tmp_path, "test", "none", {})
    assert list(runs._apart([run], [""])) == [(run, "its process ended with code 9")]


def test_each_gpu_has_a_process(monkeypatch):
    places = []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "before")
    monkeypatch.setattr(os, "setsid", lambda: None)
    monkeypatch.setattr(
        runs, "_made", lambda run: places.append(os.environ["CUDA_VISIBLE_DEVICES"]) or (run, "no")
    )

    class Answer(list):
        send = list.append

    answer = Answer()
    runs._child(None, "3", answer)
    assert (places, answer) == (["3"], ["no"])


def test_what_cannot_be_trained_is_left_out_and_tried_again(tiles, tmp_path):
    study = Study(
        "own", "?", {"big": {"training.crop": 64}, "hinge": {"task.adversarial": "hinge"}}
    )
    once = dataclasses.replace(TRAINING, steps=1)
    outcome = run_study(study, TASK, tiles, tmp_path, seeds=1, training=once)
    assert list(outcome.about["left out"]) == ["big"]
    assert "crop 64" in outcome.about["left out"]["big"]
    assert [result["setting"] for result in outcome.results] == ["as given", "hinge"]
    assert "left out: big: crop 64" in table(outcome)
    first = Study("own", "?", {"big": {"training.crop": 64}, "good": {}}, baseline="big")
    with pytest.raises(InputError, match="the baseline 'big' cannot be made: crop 64"):
        run_study(first, TASK, tiles, tmp_path / "other", seeds=1, training=once)


def test_a_folder_holds_one_study(whole, tiles, tmp_path):
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "study.json").write_text(json.dumps(whole.about))
    options = {"task": TASK, "tiles": tiles, "to": folder, "training": TRAINING}
    ruled = dataclasses.replace(OWN, rule=Rule(0.5))
    with pytest.raises(InputError, match="holds a study with other rule; give this one another f"):
        run_study(ruled, **options)
    longer = dataclasses.replace(TRAINING, steps=5)
    with pytest.raises(InputError, match="other settings"):
        run_study(OWN, **options | {"training": longer})
    assert sorted(path.name for path in folder.iterdir()) == ["study.json"]
    with pytest.raises(InputError, match="no result of the baseline 'as given'"):
        read_study(folder)
    with pytest.raises(InputError, match="cannot read"):
        read_study(tmp_path)


def test_the_table_and_the_drawing_say_the_same(whole):
    lines = table(whole).splitlines()
    assert lines[0] == "own: Does the game matter?"
    assert lines[1].startswith("2 seeds, ")
    start = lines.index("L1, lower is better")
    assert lines[start + 2].startswith("as given")
    mean = np.mean([r["rows"]["model"]["L1"] for r in whole.results[2:4]])
    assert lines[start + 3].split()[:2] == ["hinge", f"{mean:.4f}"]
    assert "worse; seed 0 diverged at step" in lines[start + 4]
    figure = drawing(whole)
    assert [axes.get_title() for axes in figure.axes] == ["L1", "spectrum d.", "gradient d."]
    one = drawing(whole, ["L1"]).axes[0]
    assert [label.get_text() for label in one.get_yticklabels()] == ["as given", "hinge", "wild"]
    (points,) = [
        line for line in one.lines if list(line.get_ydata()) == [1, 1] and line.get_marker() == "o"
    ]
    values = [r["rows"]["model"]["L1"] for r in whole.results[2:4]]
    assert list(points.get_xdata()) == values
    (bar,) = [line for line in one.lines if list(line.get_ydata()) == [1, 1] and line is not points]
    (c,) = [c for c in whole.comparisons if (c.setting, c.measure) == ("hinge", "L1")]
    assert list(bar.get_xdata()) == [c.scale + end for end in c.interval]
    texts = [text.get_text() for text in one.texts]
    steps = " ×".join(str(r["diverged"]) for r in whole.results[4:])
    assert texts == ["", {SAME: "=", "undecided": "?"}[c.verdict], f"▼ ×{steps}"]
    assert to_rgb(one.texts[2].get_color()) == pytest.approx((213 / 255, 94 / 255, 0))
    with pytest.raises(InputError, match="no 'PSNR'"):
        drawing(whole, ["PSNR"])
