"""Damaged files of runs and studies: each gives the right result, a warning, or a refusal.

Damage follows from a seed, see :mod:`damage`; JSON trees of any form are hypothesis'. A hundred
cases are made always, two thousand with ``-m slow``.
"""

import copy
import json
import shutil
import warnings

import numpy as np
import pytest
import rasterio
import torch
from damage import damaged, result_or_refusal, spoil
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.transform import from_origin

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
from ganlab.networks.features import load_features
from ganlab.studies import Study, read_study, run_study, table
from ganlab.training import checkpoints, load_task, resume, train
from ganlab.training.description import read_config
from ganlab.training.records import read_failure, read_lines, read_metrics
from ganlab.training.runs import doctor

TASK = Pix2PixConfig(
    generator=UNetConfig(width=4, depth=2), discriminator=PatchGANConfig(width=4, layers=1)
)
TRAINING = TrainingConfig(
    steps=2,
    batch_size=2,
    log_every=1,
    checkpoint_every=1,
    sample_every=0,
    watch_every=0,
    device="cpu",
    tensorboard=False,
    split=SplitConfig(block=32),
)
FINDING = '{"step": 1, "kind": "blank_output", "steps": [1, 2]}\n'
FAILURE = {"step": 1, "place": "generator.0: its output", "batch": None, "message": "NaN"}
FEW, MANY = 7, 134
"""Cases of each of the fifteen tests: about 100, and about 2,000."""
MORE = pytest.param(1, marks=pytest.mark.slow)
SEEDS = pytest.mark.parametrize("seed", [0, MORE])


def cases(seed):
    """How many cases, and the random numbers that make them."""
    return (FEW if seed == 0 else MANY), np.random.default_rng(seed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tiles, a run of two steps with all its records, and a study of two settings."""
    folder = tmp_path_factory.mktemp("fuzz")
    pixels = np.random.default_rng(0).integers(0, 255, (3, 128, 128), np.uint8)
    form = {"driver": "GTiff", "width": 128, "height": 128, "dtype": "uint8"}
    place = {"crs": "EPSG:32633", "transform": from_origin(500_000, 5_000_000, 1, 1)}
    with rasterio.open(folder / "image.tif", "w", count=3, **form, **place) as file:
        file.write(pixels)
    with rasterio.open(folder / "label.tif", "w", count=1, **form, **place) as file:
        file.write(pixels[:1] // 128)
    tile(
        TilingConfig(
            images=(str(folder / "image.tif"),),
            labels=(str(folder / "label.tif"),),
            to=folder / "tiles",
            size=32,
        )
    )
    run = train(TASK, folder / "tiles", folder / "run", TRAINING)
    (run / "findings.jsonl").write_text(4 * FINDING)
    line = (run / "metrics.jsonl").read_text().splitlines()[0]
    (run / "metrics.jsonl").write_text(6 * (line + "\n"))
    (run / "failure.json").write_text(json.dumps(FAILURE))
    study = Study("own", "Which?", {"hinge": {"task.adversarial": "hinge"}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ganlab.studies.runs.RESAMPLES", 3)
        run_study(study, TASK, folder / "tiles", folder / "study", seeds=1, training=TRAINING)
    return folder


def outcome(work):
    """What work gives, or its refusal; and what was said while it did it."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = result_or_refusal(work)
    return found, [str(warning.message) for warning in said]


def same(one, other):
    """Two trees are equal to the bit, NaN equal to NaN."""
    return repr(one) == repr(other)


def flattened(tree):
    """A tree as text and bytes, which compare quickly."""
    tensors = {str(i): t for i, t in enumerate(checkpoints.tensors_in(tree))}
    return repr(tree), checkpoints.digest(tensors)


@SEEDS
def test_checkpoints(folder, seed):
    """No damage gives other numbers: there is a digest over all of it."""
    path = checkpoints.latest(folder / "run" / "checkpoints")
    intact, data = flattened(checkpoints.load(path)), path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    count, rng = cases(seed)
    for number in range(count):
        # Half of the damage hits the header, which is a small part of the file.
        if number % 2:
            what, changed = spoil(data, rng)
        else:
            what, head = spoil(data[:header], rng)
            changed = head + data[header:]
        with damaged(path, changed):
            found, _ = outcome(lambda: checkpoints.load(path))
            assert isinstance(found, InputError) or flattened(found) == intact, what


@SEEDS
def test_descriptions(folder, seed):
    """A config.json that says something else is refused, or the change is said."""
    run = folder / "run"
    path = run / "config.json"
    intact, data = read_config(run), path.read_bytes()
    count, rng = cases(seed)
    for _ in range(count):
        what, changed = spoil(data, rng)
        with damaged(path, changed):
            found, said = outcome(lambda: read_config(run))
            if not isinstance(found, InputError):
                rest = {k: v for k, v in found.items() if k != "checksum"}
                unchanged = same(rest, {k: v for k, v in intact.items() if k != "checksum"})
                assert unchanged or any("was changed after" in text for text in said), what
            outcome(lambda: load_task(run, device="cpu"))
            outcome(lambda: doctor(run))


@SEEDS
def test_runs_that_are_resumed(folder, tmp_path, seed):
    """Whatever config.json says, resume goes on or refuses, and the checkpoint stays."""
    shutil.copytree(folder / "run", tmp_path / "run")
    run, path = tmp_path / "run", tmp_path / "run" / "config.json"
    resume(run, steps=2, tiles=folder / "tiles")
    newest = checkpoints.latest(run / "checkpoints")
    data, weights = path.read_bytes(), newest.read_bytes()
    count, rng = cases(seed)
    for _ in range(count):
        what, changed = spoil(data, rng)
        with damaged(path, changed):
            outcome(lambda: resume(run, steps=2, tiles=folder / "tiles"))
        assert newest.read_bytes() == weights, what


@SEEDS
@pytest.mark.parametrize("name", ["metrics.jsonl", "findings.jsonl"])
def test_lines(folder, name, seed):
    """Lines that were not touched are read; those that are lost are said, but for the last."""
    path = folder / "run" / name
    data = path.read_bytes()
    lines, intact = data.splitlines(), read_lines(path)
    count, rng = cases(seed)
    for _ in range(count):
        what, changed = spoil(data, rng)
        with damaged(path, changed):
            found, said = outcome(lambda: read_lines(path))
            kept = [line for line in changed.splitlines() if line in lines]
            assert sum(same(line, intact[0]) for line in found) >= len(kept), what
            lost = len(changed.rstrip(b"\n").split(b"\n")) - len(found)
            assert lost <= 1 or said, what
            outcome(lambda: doctor(folder / "run"))


@SEEDS
@pytest.mark.parametrize("name", ["study.json", "hinge-seed0.json"])
def test_studies(folder, name, seed):
    path = folder / "study" / name
    data = path.read_bytes()
    count, rng = cases(seed)
    for _ in range(count):
        what, changed = spoil(data, rng)
        with damaged(path, changed):
            found, _ = outcome(lambda: table(read_study(folder / "study")))
            assert isinstance(found, (InputError, str)), what


@SEEDS
def test_failures(folder, seed):
    path = folder / "run" / "failure.json"
    data = path.read_bytes()
    count, rng = cases(seed)
    for _ in range(count):
        what, changed = spoil(data, rng)
        with damaged(path, changed):
            found, _ = outcome(lambda: read_failure(folder / "run"))
            assert isinstance(found, (InputError, dict)), what
            outcome(lambda: doctor(folder / "run"))


@SEEDS
@pytest.mark.parametrize("suffix", ["pth", "safetensors", "old"])
def test_feature_weights(tmp_path, suffix, seed):
    """A file of one's own has no checksum: other numbers are allowed, other errors are not."""
    from safetensors.torch import save_file

    names = ("_conv_stem.weight", "_bn0.weight", "_bn0.bias", "_bn0.running_mean")
    shapes = {name: (32, 3, 3, 3) if "conv" in name else (32,) for name in names}
    state = {name: torch.ones(shape) for name, shape in shapes.items()}
    state["_bn0.running_var"] = torch.ones(32)
    path = tmp_path / f"weights.{suffix}"
    if suffix == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=suffix == "pth")
    data = path.read_bytes()
    count, rng = cases(seed)
    for _ in range(count):
        _, changed = spoil(data, rng)
        with damaged(path, changed):
            outcome(lambda: load_features(weights=str(path), layers=("stem",)))


# JSON of any form

ODD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text(max_size=9)
    | st.sampled_from(["../x", "/tmp/x", "image", 10**6, 10**7, 3e8]),
    lambda tree: (
        st.lists(tree, max_size=3) | st.dictionaries(st.text(max_size=5), tree, max_size=3)
    ),
    max_leaves=6,
)


def places(tree, path=()):
    """All places of a JSON tree."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for name, value in items:
        yield (*path, name)
        if isinstance(value, (dict, list)):
            yield from places(value, (*path, name))


def with_odd(tree, data):
    """The tree with something else at one place."""
    changed = copy.deepcopy(tree)
    *first, last = data.draw(st.sampled_from(sorted(places(tree), key=repr)))
    inner = changed
    for name in first:
        inner = inner[name]
    inner[last] = data.draw(ODD)
    return json.dumps(changed).encode()


ONCE = settings(max_examples=FEW, suppress_health_check=[HealthCheck.function_scoped_fixture])
OFTEN = settings(ONCE, max_examples=MANY)


def odd_description(folder, data):
    path = folder / "run" / "config.json"
    with damaged(path, with_odd(json.loads(path.read_bytes()), data)):
        outcome(lambda: load_task(folder / "run", device="cpu"))
        outcome(lambda: doctor(folder / "run"))


def odd_study(folder, data):
    name = data.draw(st.sampled_from(["study.json", "as given-seed0.json"]))
    path = folder / "study" / name
    with damaged(path, with_odd(json.loads(path.read_bytes()), data)):
        outcome(lambda: table(read_study(folder / "study")))


def odd_line(folder, data):
    path = folder / "run" / "metrics.jsonl"
    lines = path.read_bytes().splitlines()
    lines[2] = with_odd(json.loads(lines[2]), data)
    with damaged(path, b"\n".join(lines)):
        outcome(lambda: doctor(folder / "run"))
        assert len(outcome(lambda: read_metrics(folder / "run"))[0]) >= len(lines) - 1


def odd_checkpoint(folder, data):
    """Written anew, so that its digest is right: as somebody could who means harm."""
    run = folder / "again"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(folder / "run", run)
    path = checkpoints.latest(run / "checkpoints")
    state = checkpoints.load(path)
    inner, last = state, data.draw(st.sampled_from([*state]))
    while isinstance(inner[last], dict) and inner[last] and data.draw(st.booleans()):
        inner, last = inner[last], data.draw(st.sampled_from([*inner[last]]))
    inner[last] = data.draw(ODD | st.just(torch.ones(2)))
    checkpoints.save(path, state)
    outcome(lambda: load_task(run, device="cpu"))
    outcome(lambda: resume(run, steps=3, tiles=folder / "tiles"))


ODDITIES = pytest.mark.parametrize(
    "check", [odd_description, odd_study, odd_line, odd_checkpoint], ids=lambda f: f.__name__
)


@ODDITIES
@ONCE
@given(data=st.data())
def test_json_of_any_form(folder, check, data):
    check(folder, data)


@pytest.mark.slow
@ODDITIES
@OFTEN
@given(data=st.data())
def test_json_of_any_form_often(folder, check, data):
    check(folder, data)
