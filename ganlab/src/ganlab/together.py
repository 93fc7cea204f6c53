"""Files that take their places together or not at all, also when the process is killed.

New files are finished in a folder beside their places. Before the first one is moved, a journal
in that folder says what is about to happen. It is removed when all is done; where one is found
later, a process was killed in between, and what it did is undone.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ganlab import files
from ganlab.errors import InputError

JOURNAL = "journal.json"
FINISHED = "finished"
"""Folder of the new files, each under the name that it will have."""
OLD = "old"
"""Folder of what they replace."""


@contextmanager
def unfinished(target: Path) -> Iterator[Path]:
    """A new folder beside ``target`` for files that are not finished, removed at the end.

    Only for who holds the lock of ``target`` (:func:`ganlab.files.exclusive`): what killed
    processes left is undone and removed first. The folder holds an empty folder ``FINISHED``.

    Raises:
        InputError: what a killed process left cannot be undone.
    """
    recover(target)
    folder = Path(tempfile.mkdtemp(files.LEFTOVER, f".{target.name}.", target.parent))
    try:
        (folder / FINISHED).mkdir()
        yield folder
    finally:
        # With a journal it holds files of the user that could not be put back.
        if not (folder / JOURNAL).exists():
            shutil.rmtree(folder, ignore_errors=True)


def replace_together(
    folder: Path, replaced: Sequence[Path], check: Callable[[], None] = lambda: None
) -> None:
    """Move all files of ``folder / FINISHED`` beside ``folder``, in place of others.

    Args:
        folder: as :func:`unfinished` gives it.
        replaced: what goes from there, all of it before the first new file comes.
        check: looks at the new files in their places; an error undoes the replacement.

    Raises:
        OSError: a file cannot be moved; everything is as it was before.
        InputError: and it cannot be put back, which the next attempt will try.
    """
    fresh = sorted((folder / FINISHED).iterdir())
    for path in fresh:
        files.sync(path)
    stamps = {path.name: _stamp(path) for path in fresh}
    about = {"finished": stamps, "replaced": [path.name for path in replaced]}
    (folder / OLD).mkdir()
    try:
        files.replace_text(folder / JOURNAL, json.dumps(about))
        for path in replaced:
            os.replace(path, folder / OLD / path.name)
        for path in fresh:
            os.replace(path, folder.parent / path.name)
        check()
        files.sync(folder.parent)
        (folder / JOURNAL).unlink()
    except BaseException:
        if (folder / JOURNAL).exists():
            undo(folder)
        raise


def recover(target: Path) -> None:
    """Undo what killed processes did to ``target``, and remove what they left beside it.

    Raises:
        InputError: it cannot be undone.
    """
    for folder in files.leftovers(target):
        if folder.is_symlink() or not (folder / JOURNAL).exists():
            continue
        if hasattr(os, "getuid") and folder.stat().st_uid != os.getuid():
            raise InputError(f"{folder} was left by a process of another user; remove it")
        undo(folder)
    files.sweep(target)


def undo(folder: Path) -> None:
    """Put back what ``replace_together`` moved; does no harm if called again.

    Raises:
        InputError: the journal is damaged, or a file cannot be moved.
    """
    path = folder / JOURNAL
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        stamps = dict(about["finished"])
        replaced = list(about["replaced"])
        for name in (*stamps, *replaced):
            _check_name(name)
        for name, stamp in stamps.items():
            _take_back(folder, name, stamp)
        for name in replaced:
            kept = folder / OLD / name
            if os.path.lexists(kept) and not os.path.lexists(folder.parent / name):
                os.replace(kept, folder.parent / name)
        files.sync(folder.parent)
        path.unlink()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"the older files of an interrupted replacement lie in {folder / OLD} and cannot be "
            f"put back ({error}): move them where you want them, then remove {folder}"
        ) from error


def _take_back(folder: Path, name: str, stamp: Any) -> None:
    """Move a new file from its place to the folder again, unless somebody changed it there."""
    there = folder.parent / name
    kept = folder / FINISHED / name
    if os.path.lexists(there) and not kept.exists() and _stamp(there) == stamp:
        os.replace(there, kept)


def _check_name(name: Any) -> None:
    """A name leads nowhere else, whoever wrote the journal."""
    if not isinstance(name, str) or name in ("", ".", "..") or Path(name).name != name:
        raise ValueError(f"{name!r} is no file name")


def _stamp(path: Path) -> list[int]:
    """What tells a file from another one of its name; moving does not change it."""
    status = path.lstat()
    return [status.st_size, status.st_mtime_ns]
