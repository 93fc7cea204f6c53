"""The command line, as it is typed."""

import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from ganlab import cli
from ganlab.errors import InputError, TrainingFailed

SMALL = "--generator.width 4 --generator.depth 2 --discriminator.width 4 --discriminator.layers 1"
PAIR = "--images photo.tif --labels map.tif"
GANLAB = str(Path(sys.executable).with_name("ganlab"))
LITTLE = "--generator.width 4 --generator.dilations 2"
FILL = f"{LITTLE} --discriminator.width 4 --discriminator.layers 1 --holes.kinds circle stroke"
FILL += " --batch-size 2 --split.block 32 --tensorboard False"
QUICK = f"{SMALL} --batch-size 2 --split.block 32 --tensorboard False"


def ganlab(line, folder, check=True):
    """A command in a process of its own."""
    done = subprocess.run(
        [GANLAB, *line.split()],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def scene(path, bands=3, crs="EPSG:32633", size=96, top=None):
    rng = np.random.default_rng(bands)
    array = rng.integers(1, top or 255, (bands, size, size), dtype=np.uint8)
    profile = {"driver": "GTiff", "width": size, "height": size, "count": bands}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(
            path, "w", **profile, dtype="uint8", crs=crs, transform=from_origin(0, 96, 1, 1)
        ) as file:
            file.write(array)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """Scenes, tiles and a run, made by the commands themselves."""
    folder = tmp_path_factory.mktemp("cli")
    scene(folder / "photo.tif")
    scene(folder / "map.tif", bands=1, top=4)
    scene(folder / "nowhere.tif", crs=None)
    (folder / "file").write_text("in the way")
    before = Path.cwd()
    os.chdir(folder)
    try:
        cli.main(f"tile {PAIR} --to tiles --size 32".split())
        cli.main(f"train pix2pix --tiles tiles --to run {QUICK} --steps 2".split())
        cli.main(f"train inpainting --tiles tiles --to filler {FILL} --steps 2".split())
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def inside(workplace, monkeypatch):
    monkeypatch.chdir(workplace)


# What is loaded


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import ganlab, ganlab.config, ganlab.errors", "torch rasterio matplotlib numpy tyro"),
        ("import ganlab.cli", "torch rasterio matplotlib accelerate"),
        ("import ganlab.training", "rasterio matplotlib tyro"),
        ("import ganlab.data.scenes, ganlab.data.tiling", "torch matplotlib"),
        ("import ganlab.inference, ganlab.evaluation", "matplotlib tyro"),
        ("import sys, ganlab.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: pass",
         "torch rasterio matplotlib accelerate"),
        ("import sys, ganlab.cli as c\ntry: c.main(['train', 'pix2pix', '--help'])\n"
         "except SystemExit: pass", "torch rasterio matplotlib accelerate"),
    ],
)  # fmt: skip
def test_nothing_heavy_is_loaded_in_vain(code, absent):
    script = f"{code}\nimport sys; print('modules:', *sys.modules)"
    out = subprocess.check_output([sys.executable, "-c", script], text=True)
    loaded = set(out.split("modules:")[1].split())
    assert "ganlab" in loaded
    assert not loaded & set(absent.split())


def test_the_installed_command_is_this_one():
    (entry,) = importlib.metadata.entry_points(group="console_scripts", name="ganlab")
    assert entry.load() is cli.main


# Help


def helped(capsys, *words):
    with pytest.raises(SystemExit) as left:
        cli.main([*words, "--help"])
    assert left.value.code == 0
    return capsys.readouterr().out


def test_help_lists_the_commands(capsys):
    text = helped(capsys)
    for name in cli.COMMANDS:
        assert f"• {name}" in text
    for name in cli.COMMANDS["train"]:
        assert f"• {name}" in helped(capsys, "train")


def test_help_lists_the_studies_with_their_questions(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    text = helped(capsys, "study")
    assert len(cli.STUDIES) >= 6
    for name, study in cli.STUDIES.items():
        assert f"• {name}" in text
        assert study.question in text
        assert study.question.endswith("?")
        tasks = helped(capsys, "study", name)
        assert all(f"• {task}" in tasks for task in cli.TASKS)
        assert all(setting in tasks for setting in study.settings)


LEAVES = [(name,) for name, command in cli.COMMANDS.items() if callable(command)]
LEAVES += [("train", name) for name in cli.COMMANDS["train"]]
LEAVES += [("study", *pair) for pair in zip(cli.STUDIES, cli.TASKS, strict=True)]


@pytest.mark.parametrize("words", LEAVES, ids="-".join)
def test_every_option_is_explained(capsys, monkeypatch, words):
    """No option without a sentence, no markup, no name of a class."""
    monkeypatch.setenv("COLUMNS", "100")
    text = helped(capsys, *words)
    assert "``" not in text
    assert "Config" not in text
    options = re.split(r"\n\W*(?=--[a-z])", text.replace("│", " "))[1:]
    assert options
    for option in options:
        assert re.fullmatch(r"--[^\n]*?(\s{2,}|\n\s*)[A-Z].*", option, re.DOTALL), option


def test_help_of_tasks_that_fill_holes(capsys, monkeypatch):
    """The second stage has settings of its own, and only where there is one."""
    monkeypatch.setenv("COLUMNS", "400")
    one, two = (helped(capsys, "train", name) for name in ("inpainting", "two-stage"))
    for text in (one, two):
        for option in ("holes.kinds", "holes.files", "holes.read-as", "generator.layer", "fill"):
            assert f"--{option} " in text
        assert "rectangle,circle,polygon,stroke,stripe,cloud,footprint,file" in text
    assert "--refinement.width " in two
    assert "refinement" not in one
    text = helped(capsys, "apply")
    for option in ("--mask ", "--read-as ", "--classes "):
        assert option in text
    assert "nonzero,landsat_pre,landsat_c1,landsat_c2" in text


def test_required_options_are_marked(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    text = helped(capsys, "apply")
    marked = [line for line in text.splitlines() if "(required)" in line]
    assert [line.strip("│ ").split()[0] for line in marked] == ["--run", "--scene", "--to"]


# The whole way


def test_from_nothing_to_a_scene(tmp_path):
    out = ganlab("toytown --to town --size 128 --seed 3", tmp_path).stdout
    assert out.split() == ["town/town-003.tif", "town/town-003-labels.tif"]
    pair = "--images town/town-003.tif --labels town/town-003-labels.tif"
    out = ganlab(f"tile {pair} --to tiles --size 32", tmp_path)
    assert out.stdout.startswith("tiles: 16 tiles of 32 x 32 pixels, 0.1 MB; split by blocks: ")
    out = ganlab(f"train pix2pix --tiles tiles --to run --steps 3 {QUICK}", tmp_path)
    assert (out.stdout, out.stderr) == ("run: trained to step 3\n", "")
    out = ganlab("resume --run run --steps 5", tmp_path)
    assert (out.stdout, out.stderr) == ("run: trained to step 5\n", "")
    out = ganlab("apply --run run --scene town/town-003-labels.tif --to made.tif", tmp_path)
    assert (out.stdout, out.stderr) == ("made.tif\n", "")
    out = ganlab("evaluate --run run", tmp_path)
    assert out.stderr == ""
    assert "model" in out.stdout
    assert "class median" in out.stdout
    assert json.loads((tmp_path / "run" / "evaluation-test.json").read_text())["rows"]
    with (
        rasterio.open(tmp_path / "made.tif") as made,
        rasterio.open(tmp_path / "town" / "town-003.tif") as photo,
    ):
        assert made.read().shape == photo.read().shape
        assert (made.crs, made.transform) == (photo.crs, photo.transform)
    settings = json.loads((tmp_path / "run" / "config.json").read_text())
    assert settings["settings"]["generator"]["width"] == 4


def cloudy(path, value=1, size=96):
    """A mask with one hole, on the grid of ``scene``."""
    array = np.zeros((1, size, size), np.uint8)
    array[0, 20:50, 30:70] = value
    profile = {"driver": "GTiff", "width": size, "height": size, "count": 1, "dtype": "uint8"}
    with rasterio.open(
        path, "w", **profile, crs="EPSG:32633", transform=from_origin(0, 96, 1, 1)
    ) as file:
        file.write(array)
    return array[0] > 0


@pytest.mark.parametrize("task", ["inpainting", "two-stage"])
def test_from_tiles_to_a_filled_scene(workplace, tmp_path, task):
    hole = cloudy(tmp_path / "mask.tif", 200)
    more = f"{LITTLE.replace('generator', 'refinement')} " if task == "two-stage" else ""
    line = f"train {task} --tiles {workplace}/tiles --to run --steps 3 {more}{FILL}"
    out = ganlab(f"{line} --holes.kinds file --holes.files mask.tif --fill mean", tmp_path)
    assert (out.stdout, out.stderr) == ("run: trained to step 3\n", "")
    settings = json.loads((tmp_path / "run" / "config.json").read_text())
    assert settings["task"] == task.replace("-", "_")
    assert settings["settings"]["holes"]["files"] == ["mask.tif"]
    out = ganlab("resume --run run --steps 4", tmp_path)
    assert (out.stdout, out.stderr) == ("run: trained to step 4\n", "")
    photo = workplace / "photo.tif"
    line = f"apply --run run --scene {photo} --to made.tif"
    out = ganlab(f"{line} --mask mask.tif --classes 200 201", tmp_path)
    assert (out.stdout, out.stderr) == ("made.tif\nmade-invented.tif\n", "")
    with (
        rasterio.open(photo) as given,
        rasterio.open(tmp_path / "made.tif") as made,
        rasterio.open(tmp_path / "made-invented.tif") as invented,
    ):
        assert np.array_equal(invented.read(1), hole)
        assert np.array_equal(made.read()[:, ~hole], given.read()[:, ~hole])
        assert (made.read()[:, hole] != given.read()[:, hole]).mean() > 0.9
        assert (made.crs, made.transform) == (given.crs, given.transform)
    out = ganlab(f"{line} --overwrite", tmp_path)
    assert out.stdout == "made.tif\nmade-invented.tif\n"
    assert out.stderr.startswith("ganlab: warning: ")
    assert out.stderr.count("\n") == 1
    assert "photo.tif has no hole to fill" in out.stderr


def typed(capsys, line):
    """A command, in this process; what it printed."""
    cli.main(line.split())
    out, err = capsys.readouterr()
    assert err == ""
    return out


@pytest.mark.usefixtures("inside")
def test_from_tiles_to_a_scene_without_clouds(capsys, tmp_path):
    """Two runs one after the other: what is thin is seen through, what is opaque invented."""
    line = f"train cloud-layers --tiles tiles --to {tmp_path}/run --steps 2 {QUICK}"
    out = typed(capsys, f"{line} --clouds.thickness 0.5 0.9 --clouds.white 250 --order sequential")
    assert out == f"{tmp_path}/run: trained to step 2\n"
    about = json.loads((tmp_path / "run" / "config.json").read_text())
    assert about["task"] == "cloud_layers"
    assert about["settings"]["clouds"]["thickness"] == [0.5, 0.9]
    assert about["settings"]["clouds"]["white"] == [250]
    out = typed(capsys, f"evaluate --run {tmp_path}/run")
    for words in ("model", "dark channel", "copy the input", "thin L1", "alpha L1"):
        assert words in out
    line = f"apply --run {tmp_path}/run --scene photo.tif --to {tmp_path}/made.tif"
    assert typed(capsys, line).split() == [f"{tmp_path}/made{x}.tif" for x in ("", "-alpha")]
    with rasterio.open(tmp_path / "made-alpha.tif") as file:
        alpha = file.read(1)
    level = float(np.median(alpha))
    line += f" --overwrite --fill filler --opaque {level}"
    names = [f"{tmp_path}/made{x}.tif" for x in ("", "-alpha", "-origin")]
    assert typed(capsys, line).split() == names
    with rasterio.open(names[2]) as origin, rasterio.open("photo.tif") as photo:
        assert (origin.crs, origin.transform) == (photo.crs, photo.transform)
        assert np.array_equal(origin.read(1) == 2, alpha > level)


@pytest.mark.usefixtures("inside")
def test_from_nested_scenes_to_finer_ones(capsys, tmp_path):
    rng = np.random.default_rng(0)
    profile = {"driver": "GTiff", "width": 192, "height": 192, "count": 1, "dtype": "uint8"}
    place = from_origin(0, 96, 0.5, 0.5)
    with rasterio.open(
        tmp_path / "fine.tif", "w", crs="EPSG:32633", transform=place, **profile
    ) as file:
        file.write(rng.integers(1, 255, (1, 192, 192), dtype=np.uint8))
    line = f"tile --images photo.tif --fine {tmp_path}/fine.tif --to {tmp_path}/tiles --size 32"
    assert typed(capsys, line).startswith(f"{tmp_path}/tiles: 9 tiles of 32 x 32 pixels")
    line = f"train super-resolution --tiles {tmp_path}/tiles --to {tmp_path}/run --steps 2 {QUICK}"
    more = "--image fine --coarse image --factor 2 --reconstruction-schedule.shape fade_out"
    assert typed(capsys, f"{line} {more}") == f"{tmp_path}/run: trained to step 2\n"
    out = typed(capsys, f"evaluate --run {tmp_path}/run")
    for words in ("fine on ", "model", "bicubic", "nearest", "checkerboard"):
        assert words in out
    line = f"apply --run {tmp_path}/run --scene photo.tif --to {tmp_path}/made.tif"
    assert typed(capsys, line) == f"{tmp_path}/made.tif\n"
    with rasterio.open(tmp_path / "made.tif") as made:
        assert made.read().shape == (1, 192, 192)
        assert (made.transform, made.crs.to_epsg()) == (place, 32633)


@pytest.mark.usefixtures("inside")
def test_a_vae_from_tiles_to_numbers(capsys, tmp_path):
    shape = "--generator.width 4 --generator.depth 2 --generator.latent 2 --noise laplace"
    more = "--warm-up.shape fade_in --warm-up.start 0 --gradients-every 1 --log-every 1"
    rest = f"--steps 2 --batch-size 2 --split.block 32 --tensorboard False --to {tmp_path}/run"
    line = f"train vae --tiles tiles {shape} {more} {rest}"
    assert typed(capsys, line) == f"{tmp_path}/run: trained to step 2\n"
    settings = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (settings["task"], settings["settings"]["noise"]) == ("vae", "laplace")
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert "generator/gradient/likelihood" in json.loads(metrics[0])
    out = typed(capsys, f"evaluate --run {tmp_path}/run")
    assert re.search(r"\nsamples +-", out)  # they have no partners, so no L1
    assert re.search(r"\nmodel +[0-9.]+ ", out)
    line = f"apply --run {tmp_path}/run --scene photo.tif --to {tmp_path}/made.tif"
    assert typed(capsys, line) == f"{tmp_path}/made.tif\n"


@pytest.mark.usefixtures("inside")
def test_a_study_goes_on_where_it_was(capsys, tmp_path):
    """Two settings of three fit; what the first command made is used by the second."""
    line = f"study norms pix2pix --tiles tiles --to {tmp_path}/study --steps 1 {QUICK}"
    more = "--generator.norm batch --discriminator.norm batch --seeds"
    out = typed(capsys, f"{line} {more} 1")
    assert out.startswith("norms: Which normalization suits these tiles?\n1 seed, ")
    assert re.search(r"\nas given +\d\.\d{4} +1\.00  baseline\n", out)
    assert re.search(r"\nchannel +\d\.\d{4} +[+-]\d+\.\d% .* undecided\n", out)
    assert '\nleft out: batch: the same as "as given"' in out
    made = {p: p.read_bytes() for p in (tmp_path / "study").glob("*-seed0.json")}
    assert {p.name for p in made} == {f"{n}-seed0.json" for n in ("as given", *NORMS)}
    assert "\n2 seeds, " in typed(capsys, f"{line} {more} 2")
    assert len(list((tmp_path / "study").glob("*-seed1.json"))) == len(made)
    assert all(path.read_bytes() == content for path, content in made.items())


@pytest.mark.usefixtures("inside")
def test_every_balance_and_game_can_be_asked_for(capsys, tmp_path):
    pairs = [("derived", "wasserstein"), ("uncertainty", "relativistic"), ("gradnorm", "hinge")]
    for kind, game in [*pairs, ("adaptive", "vanilla")]:
        asked = f"--balance.kind {kind} --balance.rate 0.1 --adversarial {game} --steps 1"
        line = f"train pix2pix --tiles tiles --to {tmp_path}/{kind} {QUICK} {asked}"
        assert typed(capsys, line) == f"{tmp_path}/{kind}: trained to step 1\n"
        settings = json.loads((tmp_path / kind / "config.json").read_text())
        assert settings["training"]["balance"]["kind"] == kind
        assert settings["settings"]["adversarial"] == game


def test_ctrl_c_saves_and_says_how_to_go_on(workplace, tmp_path):
    run = tmp_path / "a run"
    line = f"train pix2pix --tiles tiles --steps 1000000 --log-every 1 {QUICK}".split()
    process = subprocess.Popen(
        [GANLAB, *line, "--to", str(run)],
        cwd=workplace,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while not (run / "metrics.jsonl").exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert err == ""
    assert "stopped at step" in out
    assert f"go on with: ganlab resume --run '{run}'" in out
    assert len(list((run / "checkpoints").iterdir())) == 1


# What goes wrong


NORMS = ("channel", "instance", "none")
STUDY = "--tiles tiles --to new --split.block 32"
HOUSES = "--tiles tiles --to new --holes.kinds footprint"
FILLED = "apply --run filler --scene photo.tif"
WRONG = {
    "toytown --to file": "file",
    "toytown --to town --size 0": "size",
    "toytown --to town --scenes 0": "scenes",
    "toytown --to town --resolution 0": "resolution",
    "samples --to file": "file",
    "tile --images missing.tif --to new": "missing.tif",
    "tile --images --to new": "images",
    "tile --images file --to new": "file cannot be opened",
    "tile --images nowhere.tif --to new": "nowhere.tif has no CRS; give --ungeoreferenced",
    "tile --images photo.tif --labels map.tif map.tif --to new": "2 labels",
    "tile --images photo.tif --to tiles": "tiles exists",
    "tile --images photo.tif --to file/new --size 32": "file/new",
    "tile --images photo.tif --to new --size 0": "size 0",
    "tile --images photo.tif --to new --size 500": "--edges pad",
    "tile --images photo.tif --to new --stride 0": "stride 0",
    "tile --images photo.tif --to new --scale 0": "scale 0",
    "tile --images photo.tif --to new --minimum-valid 2": "minimum_valid 2",
    "tile --images photo.tif --to new --bands nir": "nir",
    "tile --images photo.tif --labels photo.tif --to new": "labels are one band",
    "train pix2pix --tiles missing --to new": "missing is not a tile store",
    "train pix2pix --tiles run --to new": "run is not a tile store",
    "train pix2pix --tiles tiles --to run": "run is a run already",
    "train pix2pix --tiles tiles --to file/new": "file/new",
    "train pix2pix --tiles tiles --to new --source map": "no source 'map'",
    "train pix2pix --tiles tiles --to new --batch-size 0": "batch",
    "train pix2pix --tiles tiles --to new --steps 0": "steps",
    "train pix2pix --tiles tiles --to new --log-every 0": "log_every",
    "train pix2pix --tiles tiles --to new --checkpoint-every 0": "checkpoint_every",
    "train pix2pix --tiles tiles --to new --crop 64": "crop 64",
    "train pix2pix --tiles tiles --to new --generator.depth 0": "depth 0",
    "train pix2pix --tiles tiles --to new --discriminator.layers 0": "layers",
    "train pix2pix --tiles tiles --to new --split.block 8": "block 8",
    "train pix2pix --tiles tiles --to new --split.validation 2": "validation 2",
    "train pix2pix --tiles tiles --to new --processes 2": "processes",
    "train pix2pix --tiles tiles --to new --init tiles": "tiles is not a run",
    "train pix2pix --tiles tiles --to new --init run --generator.width 8": "another shape",
    "train pix2pix --tiles tiles --to new --device mps": "mps",
    "train inpainting --tiles tiles --to new --image label": "'label' is a label source",
    "train two-stage --tiles tiles --to new --image pan": "no source 'pan'",
    "train two-stage --tiles tiles --to new --refinement.width 0": "width 0",
    "train inpainting --tiles tiles --to new --generator.dilations 0": "dilations (0,)",
    f"train inpainting {HOUSES} --holes.footprints image": "footprints are classes",
    f"train inpainting {HOUSES} --holes.footprint-classes 9": "classes [9] do not occur",
    "train two-stage --tiles tiles --to new --init filler": "another shape",
    f"study games pix2pix {STUDY} --seeds 0": "0 seeds",
    f"study games pix2pix {STUDY} --jobs 0": "in 0 processes",
    f"study games pix2pix {STUDY} --split.validation 0": "the validation split is empty",
    f"study games pix2pix {STUDY} --adversarial-weight 0": "task.adversarial_weight is 0",
    f"study games vae {STUDY}": "it has no task.adversarial_weight",
    "study games pix2pix --tiles missing --to new": "missing is not a tile store",
    "study games pix2pix --tiles tiles --to file --split.block 32": "file/study.json cannot be wr",
    "evaluate --run run --resamples -1": "-1 resamples",
    "resume --run missing": "missing is not a run directory",
    "resume --run run --tiles missing": "missing is not a tile store",
    "apply --run missing --scene map.tif --to new.tif": "missing is not a run directory",
    "apply --run run --scene missing.tif --to new.tif": "missing.tif",
    "apply --run run --scene photo.tif --to new.tif": "photo.tif has 3 bands",
    "apply --run run --scene nowhere.tif --to new.tif": "nowhere.tif has no CRS",
    "apply --run run --scene map.tif --to photo.tif": "photo.tif exists; give --overwrite",
    "apply --run run --scene map.tif --to new.png": "new.png",
    "apply --run run --scene map.tif --to file/new.tif": "file/new.tif cannot be written",
    "apply --run run --scene map.tif --to new.tif --window 0": "window 0",
    "apply --run run --scene map.tif --to new.tif --overlap -1": "overlap -1",
    "apply --run run --scene map.tif --to new.tif --batch-size 0": "batch size 0",
    "apply --run run --scene map.tif --to new.tif --batch-statistics": "has no batch norm",
    "apply --run run --scene map.tif --to new.tif --device mps": "mps",
    "apply --run file --scene map.tif --to new.tif": "not a run directory",
    "apply --run run --scene map.tif --to new.tif --mask map.tif": "this model fills no holes",
    "apply --run run --scene map.tif --to new.tif --classes 3": "give it, too",
    f"{FILLED} --to new.tif --read-as landsat_c2": "give it, too",
    f"{FILLED} --to new.tif --mask gone.tif": "gone.tif cannot be op",
    f"{FILLED} --to new.tif --mask photo.tif": "3 bands; a mask has one",
    f"{FILLED} --to new.tif --mask map.tif": "map.tif: mask read as non",
    f"{FILLED} --to new.tif --mask nowhere.tif": "nowhere.tif has no CRS",
    f"{FILLED} --to map.tif --mask map.tif --classes 3 --overwrite": "or its mask",
    "evaluate --run missing": "missing is not a run directory",
    "doctor --run missing": "missing is not a run directory",
    "evaluate --run run --tiles missing": "missing is not a tile store",
    "evaluate --run run --limit 0": "limit 0",
    "evaluate --run run --batch-size 0": "batch size 0",
    "evaluate --run run --to missing/x.json": "missing/x.json cannot be written",
}


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize("line", WRONG)
def test_wrong_input_gives_one_line(capsys, line):
    before = sorted(path for path in Path().rglob("*"))
    with pytest.raises(SystemExit) as left:
        cli.main(line.split())
    assert left.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("ganlab: ")
    assert WRONG[line] in err
    assert "Error" not in err
    assert sorted(path for path in Path().rglob("*")) == before, "something was left behind"


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "Expected one of {toytown"),
        ("paint", "paint"),
        ("train", "{pix2pix, inpainting, cloud-layers,"),
        ("train super-resolution --tiles tiles --to new --enlarge bicubic", "bicubic"),
        ("train cloud-layers --tiles tiles --to new --order both", "both"),
        ("train inpainting --tiles tiles --to new --holes.kinds star", "star"),
        ("train inpainting --tiles tiles --to new --holes.coverage 0.2", "coverage"),
        ("train inpainting --tiles tiles --to new --refinement.width 4", "--refinement.width"),
        ("apply --run run --scene map.tif --to new.tif --read-as sentinel", "sentinel"),
        ("train nothing", "pix2pix"),
        ("train --tiles tiles --to new", "pix2pix"),
        ("tile --to new", "--images"),
        ("tile --images photo.tif --to new --size many", "many"),
        ("tile --images photo.tif --to new --edges round", "round"),
        ("tile --images photo.tif --to new --sise 3", "--sise"),
        ("evaluate --run run --split all", "all"),
        ("study", "{balance, games, norms, "),
        ("study everything", "everything"),
        ("study games paint --tiles tiles --to new", "paint"),
        ("study games pix2pix --tiles tiles --to new --refinement.width 4", "--refinement.width"),
    ],
)
def test_what_tyro_refuses(capsys, line, says):
    with pytest.raises(SystemExit) as left:
        cli.main(line.split())
    assert left.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err
    assert "Traceback" not in err


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--holes.coverage 0.5 0.2", "coverage of holes is (0.5, 0.2)"),
        ("--holes.kinds file", "no mask to cut pieces from"),
        ("--holes.kinds file --holes.files gone.tif", "gone.tif cannot be opened"),
        ("--holes.kinds file --holes.files photo.tif", "photo.tif has 3 bands, expected one"),
        ("--holes.kinds file --holes.files map.tif", "map.tif: mask read as nonzero holds 3"),
        ("--discriminator.layers 4", "too small for a PatchGAN"),
        ("--perceptual-weight 1 --features.weights gone.pth", "cannot read weights from gone.pth"),
    ],
)
def test_holes_that_cannot_be_made(capsys, tmp_path, options, says):
    """Found at the first step; the same command with other options goes well."""
    line = f"train inpainting --tiles tiles --to {tmp_path / 'new'} {FILL} --steps 1"
    with pytest.raises(SystemExit) as left:
        cli.main(f"{line} {options}".split())
    assert left.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert says in err
    assert not (tmp_path / "new" / "checkpoints").exists()
    cli.main(line.split())
    assert capsys.readouterr().out.endswith("trained to step 1\n")


@pytest.mark.usefixtures("inside")
def test_a_failed_training(capsys, tmp_path):
    line = f"train pix2pix --tiles tiles {QUICK} --steps 9 --log-every 1 --generator-lr 1e38"
    with pytest.raises(SystemExit) as left:
        cli.main([*line.split(), "--to", str(tmp_path / "new")])
    assert left.value.code == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith("ganlab: a loss or weight became infinite or NaN at step")


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (InputError("a.tif is\n  broken"), 2, "ganlab: a.tif is broken\n"),
        (TrainingFailed("NaN"), 1, "ganlab: NaN\n"),
        (KeyboardInterrupt(), 130, "ganlab: interrupted\n"),
    ],
)
def test_exit_codes(monkeypatch, capsys, error, code, says):
    def fail(run: Path) -> None:
        """Fail."""
        raise error

    monkeypatch.setitem(cli.COMMANDS, "resume", fail)
    with pytest.raises(SystemExit) as left:
        cli.main(["resume", "--run", "x"])
    assert left.value.code == code
    assert capsys.readouterr() == ("", says)


def test_mistakes_in_the_program_keep_their_traceback(monkeypatch):
    def fail(run: Path) -> None:
        """Fail."""
        raise ZeroDivisionError

    monkeypatch.setitem(cli.COMMANDS, "resume", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["resume", "--run", "x"])


def test_warnings_take_one_line(monkeypatch, capsys):
    def warn(run: Path) -> None:
        """Warn."""
        warnings.warn("odd\ndata", UserWarning, stacklevel=1)

    monkeypatch.setitem(cli.COMMANDS, "resume", warn)
    before = warnings.showwarning
    cli.main(["resume", "--run", "x"])
    assert capsys.readouterr().err == "ganlab: warning: odd data\n"
    assert warnings.showwarning is before
