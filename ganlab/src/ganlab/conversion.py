"""What users of Python write for a setting becomes what its field declares.

One value is taken for a tuple of one, lists become tuples, texts become paths where a path is
meant. Above all, a text is never taken apart into its letters.
"""

import dataclasses
import operator
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from ganlab.errors import InputError

Nodata = float | Literal["declared", "none", "None"]
"""Value of missing pixels; "none" says that no value means missing, "declared" leaves it to the
files. The command line takes "None" as "none"; None itself, from Python, is "declared"."""


class Converted:
    """Base of configurations whose tuples and paths may be given more loosely.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Example(Converted):
    ...     images: tuple[str, ...]
    ...     classes: tuple[int, ...] = ()
    ...     to: Path | None = None
    >>> Example("photo.tif", 3, to="tiles")
    Example(images=('photo.tif',), classes=(3,), to=PosixPath('tiles'))
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            try:
                converted = _convert(value, field.type)
            except (TypeError, ValueError) as error:
                raise InputError(f"{field.name} is {value!r:.200}: {error}") from None
            if converted is not value:
                # The dataclass is frozen for everybody else.
                object.__setattr__(self, field.name, converted)


def paths_of(files: Any) -> tuple[str, ...]:
    """One path, or several, as texts.

    >>> paths_of(Path("a.tif")), paths_of(["a.tif", Path("b.tif")])
    (('a.tif',), ('a.tif', 'b.tif'))

    Raises:
        InputError: anything else.
    """
    try:
        found: tuple[str, ...] = _convert(files, tuple[str, ...])
    except TypeError as error:
        raise InputError(f"files {files!r:.200}: {error}") from None
    return found


def nodata_of(value: Any) -> Any:
    """A nodata setting as a number, ``"none"`` or ``"declared"``, which None stands for.

    >>> nodata_of(0), nodata_of("None"), nodata_of(None)
    (0.0, 'none', 'declared')

    Raises:
        ValueError: anything else.
    """
    if value is None or value == "declared":
        return "declared"
    if isinstance(value, str) and value.casefold() == "none":
        return "none"
    try:
        return float(_item(value, float))
    except (TypeError, ValueError):
        raise ValueError("expected a number, none or declared") from None


def _convert(value: Any, kind: Any) -> Any:
    """The value as the type of its field wants it."""
    if get_origin(kind) is tuple:
        return _tuple(value, get_args(kind))
    if kind == Nodata:
        return nodata_of(value)
    wants_path = kind is Path or Path in get_args(kind)
    if wants_path and isinstance(value, str):
        return Path(value)
    return value


def _tuple(value: Any, kinds: tuple[Any, ...]) -> Any:
    any_length = kinds[-1] is Ellipsis
    if value is None and any_length:
        return ()
    one = isinstance(value, str | os.PathLike) or not isinstance(value, Iterable)
    if isinstance(value, set | frozenset | dict):
        raise TypeError("expected an order: give a list or a tuple")
    items = [value] if one else list(value)
    if not any_length and len(items) != len(kinds):
        raise ValueError(f"expected {len(kinds)} values")
    if isinstance(value, tuple) and not any_length:
        return value
    return tuple(_item(item, kinds[0]) for item in items)


def _item(item: Any, kind: Any) -> Any:
    if kind is str:
        return _text(item)
    if kind is Path:
        return Path(item)
    if isinstance(item, str | bool) and kind in (int, float):
        raise TypeError(f"expected numbers, found {item!r:.80}")
    if kind is int:
        return operator.index(item)
    if kind is float and not isinstance(item, int | float):
        return float(item)
    return item


def _text(item: Any) -> str:
    """Names and paths; numbers, as bands and groups may be counted."""
    if isinstance(item, str):
        return item
    if isinstance(item, os.PathLike):
        return str(os.fspath(item))
    if isinstance(item, bool) or not hasattr(item, "__index__"):
        raise TypeError(f"expected texts, found {item!r:.80}")
    return str(operator.index(item))
