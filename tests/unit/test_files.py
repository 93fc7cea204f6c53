"""Files that appear whole, locks that end with their process, names that stay in their folder."""

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ganlab.errors import InputError
from ganlab.files import (
    LEFTOVER,
    beside,
    exclusive,
    folder_beside,
    is_plain_name,
    replace_text,
    sweep,
)


@pytest.mark.parametrize("name", ["image", "label", "B08 (nir)", "ground-alpha", "ähre"])
def test_plain_names(name):
    assert is_plain_name(name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "/x", "a/b", "a\\b", "C:x", ".hidden", "a\nb", "a\0b", 3, None]
)
def test_names_that_lead_elsewhere(name):
    assert not is_plain_name(name)


@given(st.text())
def test_a_plain_name_stays_in_its_folder(name):
    if is_plain_name(name):
        assert os.path.dirname(os.path.normpath(os.path.join("folder", name))) == "folder"


def test_text_is_replaced_and_nothing_stays_beside_it(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    replace_text(path, "new ä")
    assert path.read_text(encoding="utf-8") == "new ä"
    assert os.listdir(tmp_path) == ["a.json"]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_an_error_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")

    def write_half():
        with beside(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_planted_link_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "a.json.tmp").symlink_to(victim)
    (tmp_path / "a.json").symlink_to(victim)
    replace_text(tmp_path / "a.json", "new")
    assert victim.read_text() == "precious"
    assert not (tmp_path / "a.json").is_symlink()


def test_leftovers_are_swept_and_nothing_else(tmp_path):
    (tmp_path / f".a.json.abc{LEFTOVER}").write_text("half")
    (tmp_path / f".a.json.def{LEFTOVER}").mkdir()
    others = {f".b.json.abc{LEFTOVER}", ".a.json.abc", "a.json", f".a.json.v2.abc{LEFTOVER}"}
    for name in others:
        (tmp_path / name).write_text("")
    sweep(tmp_path / "a.json")
    assert set(os.listdir(tmp_path)) == others


def test_sweeping_knows_brackets_from_patterns(tmp_path):
    for name in ("a[1].json", "a1.json"):
        (tmp_path / f".{name}.abc{LEFTOVER}").write_text("half")
    sweep(tmp_path / "a[1].json")
    assert os.listdir(tmp_path) == [f".a1.json.abc{LEFTOVER}"]


def test_a_folder_goes_with_its_block(tmp_path):
    with folder_beside(tmp_path / "store") as folder:
        assert folder.parent == tmp_path
        (folder / "x").write_text("")
    assert os.listdir(tmp_path) == []


HOLD = """
import sys
from pathlib import Path
from ganlab.files import exclusive
with exclusive(Path(sys.argv[1]), "testing"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_until_the_first_one_dies(tmp_path):
    target = tmp_path / "run"
    command = [sys.executable, "-c", HOLD, str(target)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as other:
        assert other.stdout.readline() == "held\n"
        refusal = r"run is being written by another process \(mine\)"
        with pytest.raises(InputError, match=refusal), exclusive(target, "mine"):
            pass
        other.kill()
        other.wait()
    with exclusive(target, "mine"):
        pass
    assert os.listdir(tmp_path) == []


def test_a_folder_whose_surroundings_cannot_be_written_holds_its_lock(tmp_path, monkeypatch):
    target = tmp_path / "run"
    target.mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with exclusive(target, "mine"):
        assert os.listdir(tmp_path) == ["run"]
        assert os.listdir(target) == [".run.lock"]
        with pytest.raises(InputError, match="being written"), exclusive(target, "mine"):
            pass
    assert os.listdir(target) == []


def test_a_pipe_is_neither_replaced_nor_waited_for(tmp_path):
    pipe = tmp_path / "a.json"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match=r"a\.json is no regular file, and is not replaced"):
        replace_text(pipe, "new")
    assert pipe.is_fifo()
    assert os.listdir(tmp_path) == ["a.json"]
