"""The files of a study, checked before anything is made of what they say.

A folder may come from anybody: names stay in it, and numbers can be computed with.
"""

import math
import os
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from ganlab.config import from_dict, read_json
from ganlab.errors import InputError
from ganlab.studies.questions import SETTING_NAME
from ganlab.studies.verdicts import Better, Result, Rule

ANEW = "once it is gone, the command that made the study makes it anew"
"""What to do with a damaged file."""


@dataclass(frozen=True)
class StoredStudy:
    """What is needed of ``study.json``."""

    study: str
    question: str
    baseline: str
    measures: dict[str, Better]
    rule: Rule
    share: Literal["validation", "test"]
    settings: dict[str, dict[str, Any]]

    def __post_init__(self) -> None:
        for name in self.settings:
            if not re.fullmatch(SETTING_NAME, name):
                raise InputError(f"setting {name!r:.80}: expected letters, digits, spaces, . + - _")
        if self.baseline not in self.settings:
            raise InputError(f"the baseline {self.baseline!r:.80} is none of its settings")
        if not (0 < self.rule.level < 1 and 0 <= self.rule.least < math.inf):
            raise InputError(f"{self.rule}: expected a level in (0, 1) and a least change from 0")


@dataclass(frozen=True)
class StoredResult:
    """What is needed of one result."""

    setting: str
    seed: int
    diverged: int | None
    tiles: int
    rows: dict[str, dict[str, float | None]]
    resampled: dict[str, list[float | None]]
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.diverged is None and "model" not in self.rows:
            raise InputError("rows: expected one for the model")
        if len({len(values) for values in self.resampled.values()}) > 1:
            raise InputError("resampled: expected as many draws of each measure")
        numbers = [*self.rows.values(), {m: v for m, vs in self.resampled.items() for v in vs}]
        for row in numbers:
            if any(value is not None and not math.isfinite(value) for value in row.values()):
                raise InputError("rows and resampled: expected finite numbers")
        if self.diverged is None and not _is_pace(self.provenance.get("seconds_per_step", "none")):
            raise InputError("provenance.seconds_per_step: expected a positive number or null")


def read_about(path: Path) -> dict[str, Any]:
    """``study.json``.

    Raises:
        InputError: it cannot be read, or does not say what a study needs.
    """
    needed = [each.name for each in fields(StoredStudy)]
    about = read_json(path, needed, ANEW)
    _check(StoredStudy, about, path)
    left_out = about.setdefault("left out", {})
    if not isinstance(left_out, dict) or not all(isinstance(v, str) for v in left_out.values()):
        raise InputError(f"{path} is damaged: left out: expected reasons by name; {ANEW}")
    return about


def read_results(folder: Path, settings: dict[str, Any]) -> list[Result]:
    """The results of a study, setting by setting, each with its seeds ascending.

    Raises:
        InputError: one cannot be read, or does not say what a result needs.
    """
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise InputError(f"cannot read {folder}: {error}") from error
    results = []
    for setting in settings:
        pattern = re.compile(rf"{re.escape(setting)}-seed(0|-?[1-9]\d{{0,17}})\.json")
        seeds = sorted(int(found[1]) for found in map(pattern.fullmatch, names) if found)
        results += [_read_result(folder, setting, seed) for seed in seeds]
    drawn = [
        sorted((measure, len(values)) for measure, values in result["resampled"].items())
        for result in results
        if result["diverged"] is None
    ]
    if any(each != drawn[0] for each in drawn):
        raise InputError(
            f"{folder}: its results hold different measures, or different numbers of draws of the "
            "tiles, which cannot be compared; make them anew"
        )
    return results


def _read_result(folder: Path, setting: str, seed: int) -> Result:
    path = folder / f"{setting}-seed{seed}.json"
    result = read_json(path, [each.name for each in fields(StoredResult)], ANEW)
    _check(StoredResult, result, path)
    if (result["setting"], result["seed"]) != (setting, seed):
        raise InputError(f"{path} is the result of another setting or seed; {ANEW}")
    return result


def _check(kind: type, values: dict[str, Any], path: Path) -> None:
    try:
        from_dict(kind, {each.name: values[each.name] for each in fields(kind)})
    except InputError as error:
        raise InputError(f"{path} is damaged: {error}; {ANEW}") from error


def _is_pace(value: Any) -> bool:
    if value is None:
        return True
    return type(value) in (int, float) and 0 < value < math.inf
