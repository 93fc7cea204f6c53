"""What ``config.json`` of a run directory says, checked before anything is made of it.

A run directory may come from anybody: names stay in their folder, numbers have bounds.
"""

import hashlib
import json
import warnings
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ganlab.config import TrainingConfig, check_sizes, from_dict
from ganlab.data.batches import DataSpec
from ganlab.errors import InputError
from ganlab.losses.balance import schedule
from ganlab.tasks import TASKS

FORMAT = "ganlab run 1"
About = dict[str, Any]
"""The contents of ``config.json``."""


@dataclass(frozen=True)
class _Head:
    """What stands beside the settings; ``data``, ``settings`` and ``training`` are read apart."""

    tiles: str
    """Where the tile store is, as seen from the run directory."""
    split: dict[str, int]
    """Number of tiles in each part."""
    fingerprint: dict[str, str]
    init: str | None = None
    device: str | None = None
    """Kind of the device that it is trained on."""
    features: dict[str, str] | None = None
    """SHA-256 of the user's own file of feature weights, by its path."""
    versions: dict[str, str] = field(default_factory=dict)


def read_config(run: Path) -> About:
    """``config.json`` of a run directory; warns if somebody has changed it.

    Raises:
        InputError: it is missing, damaged, or names a task that ganlab does not have.
    """
    path = run / "config.json"
    try:
        about: Any = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{run} is not a run directory: it has no config.json") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read {path}: {error!s:.200}") from error
    kind = about.get("task") if isinstance(about, dict) else None
    if not isinstance(kind, str) or kind not in TASKS or about.get("format") != FORMAT:
        expected = f"{FORMAT!r} with a task among {sorted(TASKS)}"
        raise InputError(f"{path}: expected {expected}, found task {kind!r:.80}")
    try:
        _, _, training = parts(about)
        check_training(training)
    except InputError as error:
        raise InputError(f"{path} does not fit this version of ganlab: {error}") from error
    if about.get("checksum") != _checksum(about):
        warnings.warn(
            f"{path} was changed after ganlab had written it, by hand or by damage; results are "
            "those of what it says now",
            stacklevel=1,  # one place, so that it is said once
        )
    checked: About = about
    return checked


def sealed(about: About) -> About:
    """The contents with a checksum of all the rest, by which a later change is noticed."""
    return {**_unsealed(about), "checksum": _checksum(about)}


def _checksum(about: About) -> str:
    text = json.dumps(_unsealed(about), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _unsealed(about: About) -> About:
    return {name: value for name, value in about.items() if name != "checksum"}


def parts(about: About) -> tuple[Any, DataSpec, TrainingConfig]:
    """Settings of the task, data and training, as ``config.json`` holds them.

    Raises:
        InputError: one is missing, or not what it should be.
    """
    apart = {"format", "task", "settings", "training", "data"}
    missing = apart - about.keys()
    if missing:
        raise InputError(f"{min(missing)} is missing")
    known = [each.name for each in fields(_Head)]
    head = from_dict(_Head, {name: about[name] for name in known if name in about})
    if any(count < 0 for count in head.split.values()):
        raise InputError(f"split: {head.split} are no numbers of tiles")
    settings: Any = from_dict(TASKS[about["task"]].config_type, about["settings"])
    check_sizes(settings)
    training = from_dict(TrainingConfig, about["training"])
    check_sizes(training)
    return settings, DataSpec.from_dict(about["data"]), training


def check_training(config: TrainingConfig) -> None:
    """See that the numbers of a training make sense.

    Raises:
        InputError: one does not.
    """
    counts = ("steps", "batch_size", "log_every", "checkpoint_every", "keep", "processes")
    rates = ("generator_lr", "discriminator_lr", "ema")
    for name in (*counts, "watch_every", "sample_every", "gradients_every", "workers", *rates):
        value, least = getattr(config, name), int(name in counts)
        if not value >= least:
            raise InputError(f"{name} is {value}; it must be at least {least}")
    if not (config.ema < 1 and all(0 <= beta < 1 for beta in config.betas)):
        raise InputError(f"ema {config.ema} and betas {config.betas} must lie in [0, 1)")
    schedule(config.lr_schedule, 0, config.steps)
    if 0 < config.stabilizers.replay < config.batch_size:
        found = f"replay {config.stabilizers.replay} with batch_size {config.batch_size}"
        raise InputError(f"{found}: a history is 0 or holds at least a batch")
