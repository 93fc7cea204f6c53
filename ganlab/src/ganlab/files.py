"""Files that appear whole or not at all, and targets that only one process writes at a time.

Whatever is written lies under a new, random name beside its target until it is complete, so a
killed process leaves the old file or the new one, and nobody can plant a link under the name that
comes next.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ganlab.errors import InputError

LEFTOVER = ".ganlab-tmp"
"""Suffix of what is not finished yet."""


def is_plain_name(name: object) -> bool:
    """Whether a text can be a file name in one folder: not empty, no path, nothing hidden.

    >>> is_plain_name("image"), is_plain_name("../image"), is_plain_name("/tmp/image")
    (True, False, False)
    """
    if not isinstance(name, str) or not name or len(name) > 100:
        return False
    if name.startswith(".") or not name.isprintable():
        return False
    return not set(name) & set('/\\:*?"<>|')


def is_special(path: Path) -> bool:
    """Whether a pipe, a device or a socket lies there: nothing to replace, or to wait for."""
    return path.exists() and not path.is_file() and not path.is_dir()


@contextmanager
def exclusive(target: Path, what: str) -> Iterator[None]:
    """Hold the right to write ``target``, which the system gives back when the process ends.

    Args:
        target: the file or folder that is written; the lock file ``.<name>.lock`` lies beside it,
            or in it where only the folder itself can be written (one that is mounted, say).
        what: what a second process is told the first one does, for example ``"training"``.

    Raises:
        InputError: another process holds it, or the folder cannot be written.
    """
    target = Path(os.path.realpath(target))
    path = target.with_name(f".{target.name}.lock")
    if target.is_dir() and not os.access(target.parent, os.W_OK):
        path = target / path.name
    lock = FileLock(path, timeout=0)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        if not os.path.lexists(path):
            raise InputError(
                f"{target} cannot be written: no file can be made in {path.parent}"
            ) from None
        raise InputError(
            f"{target} is being written by another process ({what}); wait for it, or give another "
            "name"
        ) from None
    except OSError as error:
        raise InputError(
            f"{target} cannot be written ({error}): expected a folder that can be written"
        ) from error
    try:
        yield
    finally:
        # Removed while held: whoever has opened it meanwhile finds it gone and opens a new one.
        with suppress(OSError):
            path.unlink()
        lock.release()


@contextmanager
def beside(target: Path) -> Iterator[Path]:
    """A new file beside ``target``, which takes its place when the block ends without an error.

    The file is synced to disk before it is renamed.
    """
    if is_special(target):
        raise OSError(f"{target} is no regular file, and is not replaced")
    handle, name = tempfile.mkstemp(LEFTOVER, f".{target.name}.", target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())
        sync(temporary)
        os.replace(temporary, target)
        sync(target.parent)
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def folder_beside(target: Path) -> Iterator[Path]:
    """A new folder beside ``target``; what is still in it when the block ends is removed."""
    folder = Path(tempfile.mkdtemp(LEFTOVER, f".{target.name}.", target.parent))
    os.chmod(folder, 0o777 & ~_umask())
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def replace_text(path: Path, text: str) -> None:
    """Write a text file at once: a killed process leaves the old text or the new one."""
    with beside(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def leftovers(target: Path) -> list[Path]:
    """What processes that write ``target``, or were killed while they did, have beside it."""
    # Exactly the names that are made above: not those of a target called <name>.<more>.
    made = re.compile(rf"\.{re.escape(target.name)}\.[a-z0-9_]+{re.escape(LEFTOVER)}")
    return sorted(path for path in target.parent.iterdir() if made.fullmatch(path.name))


def sweep(target: Path) -> None:
    """Remove what killed processes left beside ``target``; only for who holds its lock."""
    for leftover in leftovers(target):
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            with suppress(OSError):
                leftover.unlink()


def sync(path: Path) -> None:
    """Ask the system to bring a file, or a folder's names, to disk; not possible everywhere."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        with suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
