"""Checkpoints: what goes in comes out, and nothing else ever does."""

import errno
import hashlib
import json
import math
import os
import pickle
import resource
import struct

import numpy as np
import pytest
import torch
from damage import flip_bit, truncate
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ganlab import files
from ganlab.errors import InputError
from ganlab.training import checkpoints

TYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16,
    torch.int64, torch.int32, torch.int16, torch.uint8, torch.bool,
]  # fmt: skip


@st.composite
def tensors(draw):
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    dtype = draw(st.sampled_from(TYPES))
    seed = draw(st.integers(0, 99))
    values = torch.from_numpy(np.random.default_rng(seed).normal(0, 100, shape)).to(dtype)
    if dtype.is_floating_point and values.numel() > 1:
        values.view(-1)[0] = draw(st.sampled_from([math.inf, -math.inf, math.nan, 0.0]))
    return values


KEYS = st.one_of(st.text(max_size=5), st.integers(), st.booleans(), st.none(), st.floats())
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), tensors()
)
TREES = st.recursive(
    LEAVES,
    lambda t: st.lists(t, max_size=4) | st.dictionaries(KEYS, t, max_size=4),
    max_leaves=20,
)


def alike(one, other):
    """Equal to the bit and in type."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            return False
        if not one.numel():
            return True
        bits = [t.contiguous().view(-1).view(torch.uint8) for t in (one, other)]
        return torch.equal(*bits)
    if isinstance(one, dict):
        return alike([*one.keys(), *one.values()], [*other.keys(), *other.values()])
    if isinstance(one, list):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, float):
        return math.isnan(one) == math.isnan(other) and (
            math.isnan(one) or struct.pack("d", one) == struct.pack("d", other)
        )
    return one == other


@settings(max_examples=150)
@given(tree=TREES)
def test_any_tree_returns(tree, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "any" / "tree.safetensors"
    checkpoints.save(path, tree)
    assert alike(checkpoints.load(path), tree)
    load_file(path)
    assert [p.name for p in path.parent.iterdir()] == ["tree.safetensors"]


def test_a_state_of_adam_returns_and_continues(tmp_path):
    def make():
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 2)
        return layer, torch.optim.Adam(layer.parameters(), betas=(0.5, 0.9))

    def step(layer, optimizer):
        optimizer.zero_grad()
        layer(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()

    layer, optimizer = make()
    step(layer, optimizer)
    path = tmp_path / "adam.safetensors"
    checkpoints.save(path, {"layer": layer.state_dict(), "adam": optimizer.state_dict()})
    step(layer, optimizer)
    other, again = make()
    state = checkpoints.load(path)
    other.load_state_dict(state["layer"])
    again.load_state_dict(state["adam"])
    step(other, again)
    assert all(map(torch.equal, layer.parameters(), other.parameters()))


def test_views_and_shared_tensors_are_written_as_they_look(tmp_path):
    base = torch.arange(12.0).view(3, 4)
    tree = {"a": base, "same": base, "turned": base.t(), "part": base[:, 1]}
    checkpoints.save(tmp_path / "x", tree)
    base += 1
    back = checkpoints.load(tmp_path / "x")
    assert torch.equal(back["turned"] + 1, base.t())
    assert torch.equal(back["part"] + 1, base[:, 1])
    back["a"] += 5
    assert torch.equal(back["same"] + 1, base)
    assert torch.equal(checkpoints.load(tmp_path / "x")["a"] + 1, base)


def test_anyone_can_read_it_without_ganlab(tmp_path):
    checkpoints.save(tmp_path / "x", {"step": 3, "weight": torch.ones(2)})
    assert [t.tolist() for t in load_file(tmp_path / "x").values()] == [[1.0, 1.0]]
    raw = (tmp_path / "x").read_bytes()
    header = json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])
    tree = json.loads(header["__metadata__"]["tree"])
    assert tree == {"dict": [["step", 3], ["weight", {"tensor": "0"}]]}


@pytest.mark.parametrize("value", [{1, 2}, b"bytes", object(), np.float32(1), np.arange(3), 1j])
def test_other_things_are_refused(tmp_path, value):
    with pytest.raises(TypeError, match=type(value).__name__):
        checkpoints.save(tmp_path / "x", {"a": [value]})
    assert list(tmp_path.iterdir()) == []


class Bomb:
    """What a pickle would do when loaded."""

    def __reduce__(self):
        return os.mkdir, (os.environ["BOMB"],)


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """Files that are no checkpoints, by name."""
    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    good = tmp_path / "good"
    checkpoints.save(good, {"a": torch.ones(100), "b": 1})
    raw = good.read_bytes()
    deep = "[" * 100_000 + "]" * 100_000

    def with_tree(text, **tensors):
        path = tmp_path / "made"
        digest = checkpoints.digest(tensors, text)
        metadata = {"format": checkpoints.FORMAT, "tree": text, "digest": digest}
        save_file(tensors, path, metadata=metadata)
        return path.read_bytes()

    def without_digest():
        path = tmp_path / "made"
        save_file({}, path, metadata={"format": checkpoints.FORMAT, "tree": "1"})
        return path.read_bytes()

    save_file({"a": torch.ones(1)}, tmp_path / "foreign")
    save_file({}, tmp_path / "headless", metadata={"format": checkpoints.FORMAT})
    torch.save({"a": Bomb()}, tmp_path / "torch")
    files = {
        "empty": b"",
        "text": b"hello" * 100,
        "truncated": raw[:-7],
        "truncated header": raw[:60],
        "pickle": pickle.dumps(Bomb()),
        "torch.save": (tmp_path / "torch").read_bytes(),
        "foreign safetensors": (tmp_path / "foreign").read_bytes(),
        "no tree": (tmp_path / "headless").read_bytes(),
        "no json": with_tree("{"),
        "odd dict": with_tree('{"x": 1}'),
        "list as key": with_tree('{"dict": [[[1], 1]]}'),
        "number as dict": with_tree('{"dict": 5}'),
        "missing tensor": with_tree('{"tensor": "9"}'),
        "no tensor name": with_tree('{"tensor": {}}'),
        "too deep": with_tree(deep),
        "no digest": without_digest(),
        "tensor named often": with_tree(
            '[{"tensor": "0"}, {"tensor": "0"}]', **{"0": torch.ones(9)}
        ),
        "tensor of no name": with_tree("[]", **{"0": torch.ones(9)}),
    }
    folder = tmp_path / "broken"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "folder").mkdir()
    return folder


BROKEN = (
    "empty|text|truncated|truncated header|pickle|torch.save|foreign safetensors|no tree|no json|"
    "odd dict|list as key|number as dict|missing tensor|no tensor name|too deep|no digest|"
    "tensor named often|tensor of no name|folder|absent"
)


@pytest.mark.parametrize("name", BROKEN.split("|"))
def test_what_is_no_checkpoint_is_refused_and_never_runs(broken, tmp_path, name):
    with pytest.raises(InputError, match=name) as caught:
        checkpoints.load(broken / name)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("where", ["tempfile.mkstemp", "os.fsync", "os.replace"])
def test_a_full_disk_keeps_the_older_and_leaves_no_half(tmp_path, monkeypatch, where):
    path = tmp_path / "step"
    checkpoints.save(path, {"a": 1})

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(where, full)
    with pytest.raises(InputError, match="No space left on device"):
        checkpoints.save(path, {"a": torch.ones(2)})
    monkeypatch.undo()
    assert checkpoints.load(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["step"]


def test_a_disk_that_takes_half_of_it_keeps_the_older(tmp_path):
    path = tmp_path / "step"
    checkpoints.save(path, {"a": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        with pytest.raises(InputError, match="File too large; earlier checkpoints are kept"):
            checkpoints.save(path, {"a": torch.ones(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoints.load(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["step"]


def test_a_file_in_the_way_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        checkpoints.save(tmp_path / "file" / "step", {"a": 1})


def test_a_killed_writer_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "step"
    checkpoints.save(path, {"a": 1})
    monkeypatch.setattr(
        "ganlab.training.checkpoints.files.os.replace", lambda *_: os.kill(os.getpid(), 9)
    )
    child = os.fork()
    if child == 0:
        checkpoints.save(path, {"a": 2})
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert checkpoints.load(path) == {"a": 1}
    leftover, kept = sorted(p.name for p in tmp_path.iterdir())
    assert kept == "step"
    assert leftover.startswith(".step.")
    assert leftover.endswith(files.LEFTOVER)


def test_it_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace

    def note_sync(handle):
        events.append("sync")
        fsync(handle)

    def note_replace(old, new):
        events.append("replace")
        replace(old, new)

    monkeypatch.setattr("ganlab.training.checkpoints.os.fsync", note_sync)
    monkeypatch.setattr("ganlab.training.checkpoints.files.os.replace", note_replace)
    checkpoints.save(tmp_path / "step", {})
    assert events[0] == "sync"
    assert events[-2:] == ["replace", "sync"]


def test_order_and_tidying(tmp_path):
    for step in (5, 100, 20, 99_999_999):
        checkpoints.save(tmp_path / checkpoints.name(step), {"step": step})
    (tmp_path / "other.txt").write_text("mine")
    steps = [checkpoints.load(p)["step"] for p in checkpoints.all_in(tmp_path)]
    assert steps == [5, 20, 100, 99_999_999]
    assert checkpoints.load(checkpoints.latest(tmp_path)) == {"step": 99_999_999}
    checkpoints.tidy(tmp_path, 2)
    assert [checkpoints.load(p)["step"] for p in checkpoints.all_in(tmp_path)] == [100, 99_999_999]
    checkpoints.tidy(tmp_path, 0)
    assert len(checkpoints.all_in(tmp_path)) == 1
    assert (tmp_path / "other.txt").exists()
    with pytest.raises(InputError, match="holds no checkpoint"):
        checkpoints.latest(tmp_path / "nothing")


def test_finite():
    layer = torch.nn.Linear(2, 2)
    assert checkpoints.finite(layer)
    for bad in (math.nan, math.inf):
        with torch.no_grad():
            layer.weight[1, 1] = bad
        assert not checkpoints.finite(layer)


@pytest.mark.parametrize("kind", ["weight", "buffer"])
def test_finite_looks_at_buffers_too(kind):
    norm = torch.nn.BatchNorm2d(2)
    assert checkpoints.finite(norm)
    with torch.no_grad():
        (norm.weight if kind == "weight" else norm.running_var)[1] = math.nan
    assert not checkpoints.finite(norm)
    assert checkpoints.finite(torch.nn.ReLU())


# Digests


def reference_digest(tensors, text=""):
    """As the documentation says it, written out with numpy."""
    found = hashlib.sha256(text.encode())
    for key, tensor in sorted(tensors.items()):
        array = tensor.contiguous().view(torch.uint8).numpy() if tensor.numel() else np.empty(0)
        shape = ", ".join(map(str, tensor.shape))
        found.update(f"\0{key}\0{tensor.dtype}\0[{shape}]\0".encode() + array.tobytes())
    return found.hexdigest()


def test_a_digest_is_sha_256_over_names_types_shapes_and_bytes():
    tensors = {"b": torch.arange(6).view(2, 3), "a": torch.tensor([1.5], dtype=torch.bfloat16)}
    tensors["empty"] = torch.zeros(0, 2)
    assert checkpoints.digest(tensors) == reference_digest(tensors)
    assert checkpoints.digest(tensors, "tree") == reference_digest(tensors, "tree")
    turned = dict(reversed(tensors.items()))
    assert checkpoints.digest(turned) == checkpoints.digest(tensors)


@pytest.mark.parametrize(
    "change",
    [
        {"a": torch.zeros(3)},
        {"b": torch.zeros(2, 2)},
        {"a": torch.zeros(4)},
        {"a": torch.zeros(2, 2, dtype=torch.int32)},
        {"a": -torch.zeros(2, 2)},
        {},
    ],
)
def test_a_digest_changes_with_every_part_of_a_tensor(change):
    assert checkpoints.digest(change) != checkpoints.digest({"a": torch.zeros(2, 2)})


def test_every_flipped_bit_of_a_checkpoint_is_found(tmp_path):
    path = tmp_path / "step-00000001.safetensors"
    weights = {"generator": {"weight": torch.randn(3), "count": torch.tensor(7)}}
    checkpoints.save(path, {"step": 1, "players": weights, "rate": 0.5})
    for bit in range(8 * path.stat().st_size):
        flip_bit(path, bit)
        with pytest.raises(InputError, match="step-00000001"):
            checkpoints.load(path)
        flip_bit(path, bit)
    assert checkpoints.load(path)["step"] == 1


def test_a_file_cut_anywhere_is_refused(tmp_path):
    path = tmp_path / "step-00000001.safetensors"
    checkpoints.save(path, {"step": 1, "weight": torch.randn(3)})
    whole = path.read_bytes()
    for size in range(len(whole)):
        truncate(path, size)
        with pytest.raises(InputError, match="step-00000001"):
            checkpoints.load(path)
        path.write_bytes(whole)


def test_the_error_for_a_cut_checkpoint_names_the_newest_whole_one(tmp_path):
    paths = [tmp_path / checkpoints.name(step) for step in (10, 20, 30, 40)]
    for path in paths:
        checkpoints.save(path, {"a": torch.ones(5)})
    for path in paths[2:]:
        truncate(path, 60)
    way = "use {whole}, not {broken}"
    with pytest.raises(InputError, match=f"; use {paths[1]}, not {paths[3]}$"):
        checkpoints.load_or_name_an_earlier(paths[3], way)
    with pytest.raises(InputError, match=f"; use {paths[1]}, not {paths[2]}$"):
        checkpoints.load_or_name_an_earlier(paths[2], way)
    for path in paths[:2]:
        truncate(path, 60)
    with pytest.raises(InputError, match="; no earlier checkpoint is whole$"):
        checkpoints.load_or_name_an_earlier(paths[2], way)


def test_only_files_named_like_checkpoints_are_checkpoints(tmp_path):
    checkpoints.save(tmp_path / checkpoints.name(123_456_789), {})
    checkpoints.save(tmp_path / checkpoints.name(99_999_999), {})
    for name in ("step-new.safetensors", "step-1.safetensors", "step-00000001.safetensors.bak"):
        (tmp_path / name).touch()
    assert list(map(checkpoints.step_of, checkpoints.all_in(tmp_path))) == [99_999_999, 123_456_789]
    assert checkpoints.all_in(tmp_path / "nothing") == []


def test_a_folder_that_cannot_be_read_is_no_empty_one(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot read the checkpoints in .*file: .*Not a dir"):
        checkpoints.latest(tmp_path / "file")

    def refused(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(checkpoints.os, "listdir", refused)
    with pytest.raises(InputError, match="cannot read the checkpoints in .*Permission denied"):
        checkpoints.all_in(tmp_path)
