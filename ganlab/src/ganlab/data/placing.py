"""How rasters take their places: together, and in place of all that belonged to older ones."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ganlab.data.raster_files import (
    attached_files,
    is_same_file,
    shown,
    side_files,
    written_with,
)
from ganlab.errors import InputError
from ganlab.files import is_special
from ganlab.together import FINISHED, replace_together, unfinished


@dataclass(frozen=True)
class Refusal:
    """What is said where older files may not be replaced."""

    exists: str = "exists; give --overwrite to replace it, or another name"
    """After the name of an older raster."""
    remedy: str = "remove it, or give --overwrite"
    """What to do about files that described a raster which is gone."""


@contextmanager
def placed(
    targets: Sequence[Path],
    *,
    replace: bool,
    georeferenced: bool = True,
    inputs: Sequence[Path] = (),
    refusal: Refusal = Refusal(),
    work: Path | None = None,
) -> Iterator[Path]:
    """Rasters that are written in a folder and moved to their places when the block ends.

    The caller writes each of them as ``folder / FINISHED / target.name`` and holds the lock of
    the first target, or of ``work``. If the block or the move fails, all is as it was before.

    Args:
        targets: where the rasters will be, all in one folder.
        replace: whether older files of these names, and what describes them, may go.
        georeferenced: whether the rasters say where they lie.
        inputs: files that are read meanwhile, none of which may go.
        refusal: what is said if they may not.
        work: after which name the folder is called, if not after the first target.

    Raises:
        InputError: older files stand there and may not go, or a new one would not be read as it
            was written.
        OSError: a file cannot be moved.
    """
    with unfinished(work or targets[0]) as folder:
        if not replace:
            check_free(targets, georeferenced, refusal)
        check_no_input(in_the_way(targets, georeferenced), inputs)
        yield folder
        if not replace:
            check_free(targets, georeferenced, refusal)
        older = in_the_way(targets, georeferenced)
        expected = {target: shown(folder / FINISHED / target.name) for target in targets}

        def check() -> None:
            for target, text in expected.items():
                if shown(target) != text:
                    raise InputError(
                        f"{target} would be read with {_names(attached_files(target))}, which "
                        "describe another raster; give another name"
                    )

        replace_together(folder, older, check)


def check_free(targets: Sequence[Path], georeferenced: bool, refusal: Refusal) -> None:
    """Refuse to write where something stands already.

    Raises:
        InputError: a raster of one of these names exists, or something that would describe it.
    """
    for target in targets:
        if os.path.lexists(target):
            raise InputError(f"{target} {refusal.exists}")
    if left := in_the_way(targets, georeferenced):
        raise InputError(
            f"{', '.join(map(str, left))}: left by an older raster, GDAL would take it for a part "
            f"of the new one; {refusal.remedy}"
        )


def in_the_way(targets: Sequence[Path], georeferenced: bool) -> list[Path]:
    """Older rasters of these names, what was written with them, and what describes them.

    Raises:
        InputError: a name is no file's, or its side files belong to another raster.
    """
    found: dict[Path, None] = {}
    companions: list[Path] = []
    for target in targets:
        if target.is_dir() or is_special(target):
            raise InputError(f"{target} is a folder or no regular file; give another name")
        if os.path.lexists(target):
            found[target] = None
            companions += written_with(target)
    found.update(dict.fromkeys(companions))
    for raster in dict.fromkeys([*targets, *companions]):
        found.update(dict.fromkeys(side_files(raster, georeferenced)))
    return list(found)


def check_no_input(paths: Sequence[Path], inputs: Sequence[Path]) -> None:
    """Refuse to replace what is read.

    Raises:
        InputError: one of the paths is one of the inputs, or a folder.
    """
    for path in paths:
        same = next((file for file in inputs if is_same_file(path, file)), None)
        if path.is_dir() or same is not None:
            found = "" if same is None else f" ({same} is an input)"
            raise InputError(
                f"{path} is a folder or the scene itself, or its mask, or a file of "
                f"these{found}; give another name"
            )


def _names(paths: Sequence[Path]) -> str:
    return ", ".join(path.name for path in paths)
