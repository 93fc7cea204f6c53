"""Run directories: start a training, continue it, take the trained model out.

::

    RUN/config.json                           task, settings, data, versions
    RUN/metrics.jsonl  RUN/tensorboard/       every term of every loss
    RUN/samples/step-NNNNNNNN.png             input, made, true
    RUN/checkpoints/step-NNNNNNNN.safetensors everything that the next step depends on
"""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ganlab import __version__
from ganlab.config import TrainingConfig, from_dict, to_dict
from ganlab.data.batches import Batches, DataSpec, Tiles, describe
from ganlab.data.store import Source, Split, TileStore
from ganlab.errors import InputError
from ganlab.losses.balance import schedule
from ganlab.tasks import TASKS
from ganlab.tasks.base import Task
from ganlab.training import checkpoints
from ganlab.training.processes import autocast as autocast
from ganlab.training.processes import this_process
from ganlab.training.records import Records, panel, picture
from ganlab.training.trainer import Trainer

FORMAT = "ganlab run 1"
OnLog = Callable[[int, dict[str, float]], None]
LEAST = {
    "steps": 1, "batch_size": 1, "log_every": 1, "checkpoint_every": 1, "keep": 1, "processes": 1,
    "sample_every": 0, "workers": 0, "generator_lr": 0, "discriminator_lr": 0, "ema": 0,
}  # fmt: skip
"""The smallest value of each number in a ``TrainingConfig``."""


def train(
    task: Any,
    tiles: Path | str,
    to: Path | str,
    training: TrainingConfig | None = None,
    *,
    init: Path | str | None = None,
    on_log: OnLog | None = None,
) -> Path:
    """Train a task on a tile store in a new run directory.

    Args:
        task: configuration of the task, for example ``Pix2PixConfig()``.
        tiles: the tile store.
        to: the run directory to make.
        training: how to train.
        init: a run (or checkpoint) of the same task whose weights and scaling are the start.
        on_log: called with (step, metrics) at every line of metrics.

    Returns:
        The run directory.

    Raises:
        InputError: a path, setting or combination is not usable.
        TrainingFailed: a loss became infinite or NaN.
    """
    config, run, store = training or TrainingConfig(), Path(to), TileStore.open(Path(tiles))
    kind = next((name for name, t in TASKS.items() if t.config_type is type(task)), None)
    if kind is None:
        raise InputError(f"{type(task).__name__} configures no task; tasks: {sorted(TASKS)}")
    if checkpoints.all_in(run / "checkpoints"):
        raise InputError(f"{run} is a run already; continue it with: ganlab resume --run {run}")
    _check(config)
    precision = decide_precision(config.precision, _device(config.device))
    config = dataclasses.replace(config, precision=precision)
    split = store.split(config.split)
    spec = describe(store, split.train, config.scaling)
    if init is not None:
        spec = _start_from(Path(init), spec)
    torch.manual_seed(config.seed)
    model = TASKS[kind](task, spec)
    if init is not None:
        _copy_weights(Path(init), model)
    about = {
        "format": FORMAT,
        "task": kind,
        "settings": to_dict(task),
        "training": to_dict(config),
        "tiles": os.path.relpath(store.path, run),
        "init": None if init is None else os.path.relpath(init, run),
        "data": spec.to_dict(),
        "pixel_size": store.pixel_size(),
        "split": _sizes(split),
        "versions": {"ganlab": __version__, "torch": torch.__version__},
    }
    _fit(run, model, store, config, about, None, on_log)
    return run


def resume(
    run: Path | str,
    *,
    tiles: Path | str | None = None,
    steps: int | None = None,
    on_log: OnLog | None = None,
) -> Path:
    """Continue a run exactly where its newest checkpoint was taken.

    Args:
        run: the run directory.
        tiles: where the tile store is now, if it moved.
        steps: train to this step in place of the one first asked for.
        on_log: as for :func:`train`.

    Returns:
        The run directory.

    Raises:
        InputError: no run directory, a damaged checkpoint, or other tiles than it began with.
        TrainingFailed: a loss became infinite or NaN.
    """
    run = Path(run)
    about = read_config(run)
    if steps is not None:
        about["training"]["steps"] = steps
    config = from_dict(TrainingConfig, about["training"])
    _check(config)
    store, spec = TileStore.open(Path(tiles or run / about["tiles"])), _spec(about)
    # Compared as text, because nodata may be NaN.
    same = repr(dict(store.sources)) == repr(dict(spec.sources))
    if not same or _sizes(store.split(config.split)) != about["split"]:
        raise InputError(f"{store.path} holds other tiles than {run} began with; it needs those")
    about["tiles"] = os.path.relpath(store.path, run)
    torch.manual_seed(config.seed)
    model = TASKS[about["task"]](_settings(about), spec)
    found = checkpoints.all_in(run / "checkpoints")
    if not found and about["init"] is not None:
        _copy_weights(run / about["init"], model)
    _fit(run, model, store, config, about, checkpoints.load(found[-1]) if found else None, on_log)
    return run


def load_task(run: Path | str, *, average: bool = True, device: str = "auto") -> Task:
    """The trained task of a run directory (or of one checkpoint in it), ready to generate.

    Args:
        run: ``RUN`` or ``RUN/checkpoints/step-NNNNNNNN.safetensors``.
        average: use the averaged generator, if the run has one.
        device: auto, cuda, mps or cpu.
    """
    path = Path(run)
    about = read_config(run_directory(path))
    state = checkpoints.load(path if path.is_file() else checkpoints.latest(path / "checkpoints"))
    task = TASKS[about["task"]](_settings(about), _spec(about))
    _load_weights(task, state, average)
    return task.to(_device(device)).eval()


def read_config(run: Path) -> dict[str, Any]:
    """``config.json`` of a run directory.

    Raises:
        InputError: it is missing, damaged, or names a task that ganlab does not have.
    """
    path = run / "config.json"
    try:
        about: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{run} is not a run directory: it has no config.json") from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    kind = about.get("task") if isinstance(about, dict) else None
    if not isinstance(kind, str) or kind not in TASKS or about.get("format") != FORMAT:
        raise InputError(
            f"{path}: expected {FORMAT!r} with a task among {sorted(TASKS)}, found task {kind!r}"
        )
    try:
        _settings(about), _spec(about), from_dict(TrainingConfig, about["training"])
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} does not fit this version of ganlab: {error!r}") from error
    return about


def decide_precision(precision: str, device: torch.device) -> Any:
    """What ``precision="auto"`` means on a device; other settings stay as they are."""
    if precision != "auto":
        return precision
    if device.type != "cuda":
        return "fp32"
    native = torch.cuda.get_device_capability(device) >= (8, 0)
    return "bf16" if native else "fp16"


def _fit(
    run: Path,
    model: Task,
    store: TileStore,
    config: TrainingConfig,
    about: dict[str, Any],
    state: dict[str, Any] | None,
    on_log: OnLog | None,
) -> None:
    processes = this_process()
    if processes.num_processes != config.processes:
        raise InputError(
            f"processes is {config.processes}, but {processes.num_processes} run; start them with "
            f"torchrun --nproc_per_node {config.processes} or accelerate launch"
        )
    device = processes.device if config.processes > 1 else _device(config.device)
    split = store.split(config.split)
    batches = Batches(
        store,
        split.train,
        model.spec,
        batch_size=config.batch_size,
        crop=config.crop,
        augment=config.augment,
        seed=config.seed,
        device=device,
        resident=_resident(config, store, device),
        rank=processes.process_index,
        world=processes.num_processes,
    )
    trainer = Trainer(model, batches, config, run, device=device)
    if state is not None:
        trainer.load_state_dict(state)
    if processes.is_main_process:
        store.verify()
        _write_config(run, about)
        for leftover in run.rglob("*.tmp"):
            leftover.unlink()
        records = Records(run, trainer.step, config.tensorboard)
        shown = split.validation if len(split.validation) else split.train

        def log(step: int, values: dict[str, float]) -> None:
            records.metrics(step, values)
            if on_log:
                on_log(step, values)

        trainer.on_log = log
        trainer.on_sample = lambda step, generator: _sample(
            step, generator, trainer.task, batches, shown, records
        )
        try:
            trainer.fit()
        finally:
            records.close()
    else:
        trainer.fit()


@torch.no_grad()
def _sample(
    step: int, generator: nn.Module, task: Task, batches: Batches, tiles: Tiles, records: Records
) -> None:
    chosen = tiles[np.linspace(0, len(tiles) - 1, min(4, len(tiles))).round().astype(int)]
    batch, trained = task.prepare(batches.whole(chosen)), task.generator
    task.generator = generator
    task.eval()
    out = task.generate(batch)
    task.generator = trained
    columns = [picture(f, f.enter(batch[f.name])) for f in task.inputs]
    columns += [picture(f, out[f.name]) for f in task.outputs]
    columns += [picture(f, f.enter(batch[f.name])) for f in task.outputs if f.name in batch]
    records.samples(step, panel([list(row) for row in zip(*columns, strict=True)]))


def _load_weights(task: Task, state: dict[str, Any], average: bool) -> None:
    players = state["players"]
    task.generator.load_state_dict(players["generator"])
    if task.discriminator is not None and "discriminator" in players:
        task.discriminator.load_state_dict(players["discriminator"])
    if average and state["ema"] is not None:
        prefix = "module."
        averaged = {k[len(prefix) :]: v for k, v in state["ema"].items() if k.startswith(prefix)}
        task.generator.load_state_dict(averaged)


def _start_from(init: Path, measured: DataSpec) -> DataSpec:
    """The sources of the new tiles with the scaling that the earlier run learned with."""
    earlier = _spec(read_config(run_directory(init)))
    for name, source in measured.sources.items():
        known = earlier.sources.get(name)
        if known is None or _kind_of(known) != _kind_of(source):
            raise InputError(
                f"{init} was trained on {name!r} = {known}; these tiles have {source}; "
                "bands, dtype and classes must be the same to start from its weights"
            )
    return DataSpec(measured.sources, earlier.scalings)


def _copy_weights(init: Path, model: Task) -> None:
    donor = load_task(init, average=False, device="cpu")
    try:
        model.generator.load_state_dict(donor.generator.state_dict())
        if model.discriminator is not None and donor.discriminator is not None:
            model.discriminator.load_state_dict(donor.discriminator.state_dict())
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise InputError(
            f"the networks of {init} have another shape than these settings: {first}"
        ) from error


def _kind_of(source: Source) -> tuple[Any, ...]:
    return source.kind, source.dtype, source.bands, source.factor, source.classes


def run_directory(path: Path) -> Path:
    """The run directory that a path means: itself, or the one that holds a checkpoint file."""
    return path.parent.parent if path.is_file() else path


def _spec(about: dict[str, Any]) -> DataSpec:
    return DataSpec.from_dict(about["data"])


def _settings(about: dict[str, Any]) -> Any:
    return from_dict(TASKS[about["task"]].config_type, about["settings"])


def _sizes(split: Split) -> dict[str, int]:
    shares = {name: len(getattr(split, name)) for name in ("train", "validation", "test")}
    return shares | {"dropped": split.dropped}


def _check(config: TrainingConfig) -> None:
    for name, least in LEAST.items():
        if not getattr(config, name) >= least:
            raise InputError(f"{name} is {getattr(config, name)}; it must be at least {least}")
    if not (config.ema < 1 and all(0 <= beta < 1 for beta in config.betas)):
        raise InputError(f"ema {config.ema} and betas {config.betas} must lie in [0, 1)")
    schedule(config.lr_schedule, 0, config.steps)


def _write_config(run: Path, about: dict[str, Any]) -> None:
    try:
        run.mkdir(parents=True, exist_ok=True)
        temporary = run / "config.json.tmp"
        temporary.write_text(json.dumps(about, indent=1))
        temporary.replace(run / "config.json")
    except OSError as error:
        raise InputError(f"cannot write the run directory {run}: {error}") from error


def _resident(config: TrainingConfig, store: TileStore, device: torch.device) -> bool:
    if config.resident is not None:
        return config.resident
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return store.nbytes() < free / 2


def _device(name: str) -> torch.device:
    """The device of a configuration; auto takes cuda, then mps, then cpu."""
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    if not available.get(name, False):
        usable = [kind for kind, there in available.items() if there]
        raise InputError(f"no device {name!r} here; use one of {usable}")
    return torch.device(name)
