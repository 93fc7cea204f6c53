"""Files that take their places together or not at all: full disks, kills at every step, planted
journals."""

import json
import os

import pytest
from damage import killed_before_change

from ganlab import files
from ganlab.errors import InputError
from ganlab.together import FINISHED, JOURNAL, OLD, recover, replace_together, undo, unfinished

NAMES = ("made.tif", "made-alpha.tif", "made-origin.tif")
OLDER = {"made.tif": "old", "made-alpha.tif": "old", "made.tif.msk": "old mask"}


def fill(folder, texts):
    for name, text in texts.items():
        (folder / name).write_text(text)


def held(folder):
    """Names and texts of all files in a folder, also hidden ones."""
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


def replace(folder):
    """Write three files, in place of three others."""
    with unfinished(folder / "made.tif") as work:
        fill(work / FINISHED, dict.fromkeys(NAMES, "new"))
        replace_together(work, [folder / name for name in OLDER if (folder / name).exists()])


def test_all_new_ones_come_and_all_old_ones_go(tmp_path):
    fill(tmp_path, OLDER | {"mine.txt": "mine"})
    replace(tmp_path)
    assert held(tmp_path) == dict.fromkeys(NAMES, "new") | {"mine.txt": "mine"}
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("older", [OLDER, {}])
def test_a_move_that_fails_is_undone(tmp_path, monkeypatch, error, older):
    """Whichever of the moves it is."""
    move = os.replace
    for failing in range(1 + len(older) + len(NAMES)):
        done = []

        def moved(source, target, failing=failing, done=done):
            done.append(source)
            if len(done) == failing + 1:
                raise error
            move(source, target)

        fill(tmp_path, older)
        monkeypatch.setattr(os, "replace", moved)
        with pytest.raises(type(error)):
            replace(tmp_path)
        monkeypatch.setattr(os, "replace", move)
        assert len(done) > failing
        assert held(tmp_path) == older
        assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_a_check_that_fails_undoes(tmp_path):
    fill(tmp_path, OLDER)

    def check():
        assert (tmp_path / "made.tif").read_text() == "new"
        raise InputError("not as written")

    with unfinished(tmp_path / "made.tif") as work:
        fill(work / FINISHED, dict.fromkeys(NAMES, "new"))
        with pytest.raises(InputError, match="not as written"):
            replace_together(work, [tmp_path / name for name in OLDER], check)
    assert held(tmp_path) == OLDER


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("older", [OLDER, {}])
def test_a_kill_before_any_change_leaves_all_old_or_all_new(tmp_path, older):
    new = dict.fromkeys(NAMES, "new")
    number, outcomes = 1, []
    while True:
        place = tmp_path / str(number)
        place.mkdir()
        fill(place, older)
        died = killed_before_change(number, lambda place=place: replace(place))
        recover(place / "made.tif")
        assert held(place) in (older, new), number
        assert not [path for path in place.iterdir() if path.is_dir()]
        outcomes.append(held(place) == new)
        if not died:
            break
        replace(place)
        assert held(place) == new
        number += 1
    assert number > 1 + len(older) + len(NAMES)
    assert outcomes == sorted(outcomes)  # first always the old ones, then always the new ones
    assert outcomes[0] is False
    assert outcomes[-1] is True


def half_done(folder):
    """A folder as a killed process leaves it, after one of two new files came."""
    work = folder / ".made.tif.a1b2c3d4.ganlab-tmp"
    for name in (FINISHED, OLD):
        (work / name).mkdir(parents=True)
    fill(folder, {"made.tif": "new one"})
    fill(work / FINISHED, {"made-alpha.tif": "new two"})
    fill(work / OLD, {"made.tif": "old one", "made-alpha.tif": "old two"})
    paths = {"made.tif": folder / "made.tif"}
    paths["made-alpha.tif"] = work / FINISHED / "made-alpha.tif"
    stamps = {name: [p.stat().st_size, p.stat().st_mtime_ns] for name, p in paths.items()}
    about = {"finished": stamps, "replaced": ["made.tif", "made-alpha.tif"]}
    (work / JOURNAL).write_text(json.dumps(about))
    return work


def test_what_a_user_wrote_since_the_kill_stays(tmp_path):
    half_done(tmp_path)
    (tmp_path / "made.tif").write_text("written by hand since")
    recover(tmp_path / "made.tif")
    assert held(tmp_path) == {"made.tif": "written by hand since", "made-alpha.tif": "old two"}


def test_undoing_twice_does_no_harm(tmp_path, monkeypatch):
    """The first time is cut off after each of its moves."""
    move = os.replace
    for stop in range(3):
        place = tmp_path / str(stop)
        place.mkdir()
        work = half_done(place)
        calls = []

        def moved(source, target, stop=stop, calls=calls):
            if len(calls) == stop:
                raise KeyboardInterrupt
            calls.append(source)
            move(source, target)

        monkeypatch.setattr(os, "replace", moved)
        with pytest.raises(KeyboardInterrupt):
            undo(work)
        monkeypatch.setattr(os, "replace", move)
        recover(place / "made.tif")
        assert held(place) == {"made.tif": "old one", "made-alpha.tif": "old two"}


def test_old_files_that_cannot_be_put_back_are_not_deleted(tmp_path, monkeypatch):
    fill(tmp_path, OLDER)
    move, calls = os.replace, []

    def moved(source, target):
        calls.append(source)
        if len(calls) > 3:
            raise OSError(13, "Permission denied")
        move(source, target)

    monkeypatch.setattr(os, "replace", moved)
    with pytest.raises(InputError, match=r"older files .* lie in .*old and cannot be put back"):
        replace(tmp_path)
    (work,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert len(held(work / OLD)) == 2
    monkeypatch.setattr(os, "replace", move)
    recover(tmp_path / "made.tif")
    assert held(tmp_path) == OLDER
    assert not work.exists()


@pytest.mark.parametrize("name", ["../outside.tif", "/tmp/outside.tif", "", 7, "a/b", ".."])
@pytest.mark.parametrize("which", ["finished", "replaced"])
def test_a_planted_journal_reaches_nothing_outside_its_folder(tmp_path, name, which):
    place = tmp_path / "place"
    place.mkdir()
    work = half_done(place)
    (work / OLD / "outside.tif").write_text("planted")
    about = json.loads((work / JOURNAL).read_text())
    about[which] = {str(name): [3, 4]} if which == "finished" else [name]
    if which == "finished" and not isinstance(name, str):
        return
    (work / JOURNAL).write_text(json.dumps(about))
    with pytest.raises(InputError, match="cannot be put back"):
        recover(place / "made.tif")
    assert not (tmp_path / "outside.tif").exists()
    assert (work / OLD / "made.tif").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"finished": 3}', "null", "\xff"])
def test_a_damaged_journal_is_one_line(tmp_path, text):
    work = half_done(tmp_path)
    (work / JOURNAL).write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"then remove .*ganlab-tmp"):
        recover(tmp_path / "made.tif")
    assert (work / OLD / "made-alpha.tif").read_text() == "old two"


def test_leftovers_without_a_journal_go_and_those_of_other_targets_stay(tmp_path):
    for name in ("made.tif", "made.tif.more", "other.tif"):
        (tmp_path / f".{name}.a1b2c3d4{files.LEFTOVER}").mkdir()
    with unfinished(tmp_path / "made.tif"):
        pass
    left = sorted(path.name for path in tmp_path.iterdir())
    expected = [f".made.tif.more.a1b2c3d4{files.LEFTOVER}", f".other.tif.a1b2c3d4{files.LEFTOVER}"]
    assert left == expected


def test_names_with_the_signs_of_patterns(tmp_path):
    target = tmp_path / "made[1]*.tif"
    (tmp_path / f".{target.name}.a1b2c3d4{files.LEFTOVER}").mkdir()
    with unfinished(target) as work:
        fill(work / FINISHED, {target.name: "new"})
        replace_together(work, [])
    assert held(tmp_path) == {target.name: "new"}
    assert len(list(tmp_path.iterdir())) == 1
