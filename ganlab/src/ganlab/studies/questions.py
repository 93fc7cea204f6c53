"""What a study asks, how settings change configurations, and the studies that have a name."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ganlab.config import TrainingConfig
from ganlab.errors import InputError
from ganlab.studies.verdicts import MEASURES, Better, Rule

Setting = Mapping[str, Any]
"""What is changed: ``{field: value}``, or in place of the value a function of the old one. Fields
are ``task.generator.width`` or ``training.balance.kind``; a regular expression means all fields
that it matches, and has to match one."""
Configs = tuple[Any, TrainingConfig]
SETTING_NAME = r"[\w.+-]+( [\w.+-]+)*"
"""What a setting may be called, since files are named after it."""


@dataclass(frozen=True)
class Study:
    """A question about settings, and how it will be answered."""

    name: str
    question: str
    settings: Mapping[str, Setting]
    """Each is one change of the configurations that a reader gives."""
    baseline: str = "as given"
    """The setting that all others are compared with; if it is not among them, no change at all."""
    needs: str = ""
    """A field (as in settings) without which, or with 0 in it, the question makes no sense."""
    measures: Mapping[str, Better] = field(default_factory=lambda: dict(MEASURES))
    """What is compared, see :func:`ganlab.studies.compare`."""
    rule: Rule = field(default_factory=Rule)


def changed(setting: Setting, task: Any, training: TrainingConfig) -> Configs:
    """The configurations of a task and of its training with the changes of a setting.

    Raises:
        InputError: a field that neither has.
    """
    for pattern, value in setting.items():
        before = task, training
        task = _replaced(task, pattern, value, "task")
        training = _replaced(training, pattern, value, "training")
        if task is before[0] and training is before[1]:
            raise InputError(f"{pattern} is no field of {_kind(task)} or of the training")
    return task, training


def fitting(
    study: Study, task: Any, training: TrainingConfig
) -> tuple[dict[str, Configs], dict[str, str]]:
    """The configurations of each setting, the baseline first; and why others are left out.

    Raises:
        InputError: the study does not fit the task at all.
    """
    needed: list[Any] = []
    if study.needs:
        _replaced(task, study.needs, needed.append, "task")
        if not any(needed):
            found = f"{study.needs} is 0" if needed else f"it has no {study.needs}"
            raise InputError(f"study {study.name!r} is not for this {_kind(task)}: {found}")
    first = {study.baseline: study.settings.get(study.baseline, {})}
    settings: dict[str, Configs] = {}
    left_out: dict[str, str] = {}
    for name, setting in (first | dict(study.settings)).items():
        if not re.fullmatch(SETTING_NAME, name):
            raise InputError(f"setting {name!r}: a name has letters, digits, spaces and . + - _")
        try:
            configs = changed(setting, task, training)
        except InputError as error:
            left_out[name] = str(error)
            continue
        same = [other for other, known in settings.items() if known == configs]
        if same:
            left_out[name] = f'the same as "{same[0]}"'
        else:
            settings[name] = configs
    if study.baseline not in settings or len(settings) < 2:
        reasons = "; ".join(f"{name}: {why}" for name, why in left_out.items())
        raise InputError(f"study {study.name!r} is not for this {_kind(task)}: {reasons}")
    return settings, left_out


def _replaced(config: Any, pattern: str, value: Any, path: str) -> Any:
    """``config`` itself if no field of it matches, at any depth."""
    news = {}
    for name in (f.name for f in dataclasses.fields(config)):
        old, here = getattr(config, name), f"{path}.{name}"
        if re.fullmatch(pattern, here):
            news[name] = value(old) if callable(value) else value
        elif dataclasses.is_dataclass(old):
            new = _replaced(old, pattern, value, here)
            if new is not old:
                news[name] = new
    return dataclasses.replace(config, **news) if news else config


def _kind(task: Any) -> str:
    return type(task).__name__.removesuffix("Config")


def _times(factor: float) -> Callable[[float], float]:
    return lambda old: old * factor


GAME = "task.adversarial_weight"
WEIGHTS = r"task\.(reconstruction|hole|valid|ground|alpha)_weight"
FACTORS = {"a tenth": 0.1, "a third": 1 / 3, "3 times": 3.0, "10 times": 10.0}


def _stabilizer(**changes: Any) -> Setting:
    return {f"training.stabilizers.{name}": value for name, value in changes.items()}


STUDIES = {
    study.name: study
    for study in (
        Study(
            "balance",
            "Do weights that follow from a likelihood or from gradients beat fixed ones?",
            {
                kind: {"training.balance.kind": kind}
                for kind in ("fixed", "derived", "uncertainty", "gradnorm", "adaptive")
            },
            baseline="fixed",
        ),
        Study(
            "games",
            "Does another game of the two networks give better images?",
            {
                game: {"task.adversarial": game}
                for game in ("vanilla", "least_squares", "hinge", "wasserstein", "relativistic")
            },
            needs=GAME,
        ),
        Study(
            "norms",
            "Which normalization suits these tiles?",
            {norm: {r"task\..*\.norm": norm} for norm in ("channel", "instance", "batch", "none")},
        ),
        Study(
            "learning-rate",
            "How far is the learning rate of both networks from the best one?",
            {
                name: {r"training\.(generator|discriminator)_lr": _times(factor)}
                for name, factor in FACTORS.items()
            },
        ),
        Study(
            "reconstruction-weight",
            "How much should the distance to the true image weigh against the game?",
            {name: {WEIGHTS: _times(factor)} for name, factor in FACTORS.items()},
            needs=GAME,
        ),
        Study(
            "stabilizers",
            "Which technique that keeps the game stable helps here, and what does it cost?",
            {
                "r1": _stabilizer(penalties=("r1",)),
                "r2": _stabilizer(penalties=("r2",)),
                "r1 every 16": _stabilizer(penalties=("r1",), penalty_every=16),
                "wgan_gp": _stabilizer(penalties=("wgan_gp",), penalty_weight=10.0),
                "zero_centred": _stabilizer(penalties=("zero_centred",), penalty_weight=10.0),
                "spectral normalization": _stabilizer(spectral="normalization"),
                "spectral regularization": _stabilizer(spectral="regularization"),
                "replay": _stabilizer(replay=50),
                "history": _stabilizer(history=1.0),
                "gate by loss": _stabilizer(gate="loss_ratio"),
                "gate by accuracy": _stabilizer(gate="accuracy"),
                "two critics": _stabilizer(critic=2),
                "deviation": _stabilizer(diversity="deviation"),
                "discrimination": _stabilizer(diversity="discrimination"),
                "instance noise": _stabilizer(instance_noise=0.1),
                "smoothing": _stabilizer(smoothing=0.1),
                "two rates": {"training.discriminator_lr": _times(4.0)},
            },
            needs=GAME,
        ),
    )
}
"""Studies by name, for any task that has what they change."""
