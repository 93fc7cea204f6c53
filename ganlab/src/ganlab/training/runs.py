"""Run directories: start a training, continue it, take the trained model out.

::

    RUN/config.json                           task, settings, data, versions
    RUN/ground.json                           where the tiles lie that it was trained on
    RUN/metrics.jsonl  RUN/tensorboard/       every term of every loss, looks at made images
    RUN/findings.jsonl                        what the monitor told while it trained
    RUN/failure.json                          where numbers stopped being finite, if they did
    RUN/samples/step-NNNNNNNN.png             input, made, true
    RUN/checkpoints/step-NNNNNNNN.safetensors everything that the next step depends on
"""

import json
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ganlab import __version__, files
from ganlab.config import TrainingConfig, check_words, from_dict, read_json, to_dict
from ganlab.data.batches import Batches, DataSpec, Tiles, describe
from ganlab.data.split import empty_parts
from ganlab.data.store import Source, TileStore
from ganlab.data.tags import BandTags, check_same_scale_of_tiles
from ganlab.data.trained import (
    TrainedScene,
    fingerprint,
    open_tiles,
    read_trained,
    trained_scenes,
    write_trained,
)
from ganlab.errors import InputError, TrainingFailed
from ganlab.losses.balance import schedule
from ganlab.stabilize.choice import prepare
from ganlab.tasks import TASKS
from ganlab.tasks.base import Task
from ganlab.training import checkpoints
from ganlab.training.advice import Finding
from ganlab.training.monitor import diagnose
from ganlab.training.processes import this_process
from ganlab.training.records import Records, panel, picture, read_metrics, replace_text
from ganlab.training.trainer import OnLog, Trainer
from ganlab.training.watch import Watch, first_bad
from ganlab.workers import leave_if_main_is_being_imported

FORMAT = "ganlab run 1"
FAILURE = "failure.json"
About = dict[str, Any]


def train(
    task: Any,
    tiles: Path | str,
    to: Path | str,
    training: TrainingConfig | None = None,
    *,
    init: Path | str | None = None,
    on_log: OnLog | None = None,
) -> Path:
    """Train a task on a tile store in a new run directory, and return that.

    Args:
        task: configuration of the task, for example ``Pix2PixConfig()``.
        tiles: the tile store.
        to: the run directory to make.
        training: how to train.
        init: a run (or checkpoint) of the same task whose weights and scaling are the start.
        on_log: called with (step, metrics) at every line of metrics.

    Raises:
        InputError: a path, setting or combination is not usable.
        TrainingFailed: a loss became infinite or NaN.
    """
    config = training or TrainingConfig()
    if config.workers:
        leave_if_main_is_being_imported()
    run = Path(to)
    store = TileStore.open(Path(tiles))
    kind = next((name for name, t in TASKS.items() if t.config_type is type(task)), None)
    if kind is None:
        raise InputError(f"{type(task).__name__} configures no task; tasks: {sorted(TASKS)}")
    if checkpoints.all_in(run / "checkpoints"):
        raise InputError(f"{run} is a run already; continue it with: ganlab resume --run {run}")
    check_words(task)
    check_words(config)
    _check(config)
    precision = decide_precision(config.precision, _device(config.device))
    config = replace(config, precision=precision)
    split = store.split(config.split)
    lacking = empty_parts(split, config.split)
    if lacking is not None and len(split.train):
        warnings.warn(f"{store.path}: {lacking}", stacklevel=2)
    spec = describe(store, split.train, config.scaling)
    if init is not None:
        spec = _start_from(Path(init), spec, config.ignore_scale_tags)
    about = {
        "format": FORMAT,
        "task": kind,
        "settings": to_dict(task),
        "training": to_dict(config),
        "tiles": _from(run, store.path),
        "init": None if init is None else _from(run, init),
        "data": spec.to_dict(),
        "split": split.counts(),
        "fingerprint": fingerprint(store, split),
        "versions": {"ganlab": __version__, "torch": torch.__version__},
    }
    return _fit(run, about, store, init, on_log)


def resume(
    run: Path | str,
    *,
    tiles: Path | str | None = None,
    steps: int | None = None,
    on_log: OnLog | None = None,
) -> Path:
    """Continue a run exactly where its newest checkpoint was taken, and return it.

    Args:
        run: the run directory.
        tiles: where the tile store is now, if it moved.
        steps: train to this step in place of the one first asked for.
        on_log: as for :func:`train`.

    Raises:
        InputError: no run directory, a damaged checkpoint, or other tiles than it began with.
        TrainingFailed: a loss became infinite or NaN.
    """
    run = Path(run)
    about = read_config(run)
    if steps is not None:
        about["training"]["steps"] = steps
    _, spec, config = _parts(about)
    _check(config)
    if config.workers:
        leave_if_main_is_being_imported()
    store = open_tiles(run, about["tiles"], tiles)
    # Compared as text, because nodata may be NaN.
    same = repr(dict(store.sources)) == repr(dict(spec.sources))
    if not same or fingerprint(store, store.split(config.split)) != about["fingerprint"]:
        raise InputError(f"{store.path} holds other tiles than {run} began with; it needs those")
    about["tiles"] = _from(run, store.path)
    return _fit(run, about, store, about["init"] and run / about["init"], on_log)


def load_task(run: Path | str, *, average: bool = True, device: str = "auto") -> Task:
    """The trained task of a run directory (or of one checkpoint in it), ready to generate.

    Args:
        run: ``RUN`` or ``RUN/checkpoints/step-NNNNNNNN.safetensors``.
        average: use the averaged generator, if the run has one.
        device: auto, cuda, mps or cpu.

    Raises:
        InputError: no run, a damaged checkpoint, or networks of another shape than the settings'.
    """
    path = Path(run)
    task = _untrained(read_config(run_directory(path)))
    state = checkpoints.load(path if path.is_file() else checkpoints.latest(path / "checkpoints"))
    if average and state["ema"] is not None:
        del state["ema"]["n_averaged"]
        averaged = {name.removeprefix("module."): value for name, value in state["ema"].items()}
        state["players"]["generator"] = averaged
    try:
        for name, weights in state["players"].items():
            getattr(task, name).load_state_dict(weights)
    except (RuntimeError, AttributeError) as error:
        first = str(error).splitlines()[-1].strip()
        raise InputError(f"{run}: config.json and checkpoint do not fit: {first}") from error
    return task.to(_device(device)).eval()


def read_config(run: Path) -> About:
    """``config.json`` of a run directory.

    Raises:
        InputError: it is missing, damaged, or names a task that ganlab does not have.
    """
    path = run / "config.json"
    try:
        about: About = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{run} is not a run directory: it has no config.json") from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    kind = about.get("task") if isinstance(about, dict) else None
    if not isinstance(kind, str) or kind not in TASKS or about.get("format") != FORMAT:
        expected = f"{FORMAT!r} with a task among {sorted(TASKS)}"
        raise InputError(f"{path}: expected {expected}, found task {kind!r}")
    try:
        _parts(about)
    except (KeyError, TypeError, AttributeError, InputError) as error:
        raise InputError(f"{path} does not fit this version of ganlab: {error!r}") from error
    return about


def decide_precision(precision: str, device: torch.device) -> Any:
    """What ``precision="auto"`` means on a device; other settings stay as they are."""
    if precision != "auto":
        return precision
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"


def _fit(
    run: Path, about: About, store: TileStore, init: Path | str | None, on_log: OnLog | None
) -> Path:
    """Make what ``about`` describes, go on from the newest checkpoint if there is one, train."""
    _, spec, config = _parts(about)
    processes = this_process()
    if processes.num_processes != config.processes:
        raise InputError(
            f"processes is {config.processes}, but {processes.num_processes} run; start them with "
            f"torchrun --nproc_per_node {config.processes} or accelerate launch"
        )
    device = processes.device if config.processes > 1 else _device(config.device)
    resident, split = config.resident, store.split(config.split)
    if resident is None:
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
        resident = store.nbytes() < free / 2
    batches = Batches(
        store,
        split.train,
        spec,
        batch_size=config.batch_size,
        crop=config.crop,
        augment=config.augment,
        seed=config.seed,
        device=device,
        resident=resident,
        rank=processes.process_index,
        world=processes.num_processes,
    )

    def start() -> Trainer:
        torch.manual_seed(config.seed)
        task, found = _untrained(about), checkpoints.all_in(run / "checkpoints")
        if init is not None and not found:
            _copy_weights(Path(init), task, about)
        trainer = Trainer(task, batches, config, run, device=device)
        if found:
            trainer.load_state_dict(checkpoints.load(found[-1]))
        return trainer

    trainer = start()
    task = trainer.task
    coupled = task.batch_coupled or config.stabilizers.diversity != "none"
    if coupled and config.processes > 1:
        warnings.warn(
            "a loss of this task couples the samples of a batch; each of the "
            f"{config.processes} processes sees only its own share of it",
            stacklevel=2,
        )
    if not processes.is_main_process:
        trainer.fit()
        return run
    store.verify()
    _rehearse(trainer)
    try:
        run.mkdir(parents=True, exist_ok=True)
        write_trained(run, trained_scenes(store, split.train), _inherited(init))
        replace_text(run / "config.json", json.dumps(about, indent=1))
    except OSError as error:
        raise InputError(f"cannot write the run directory {run}: {error}") from error
    _sweep(run)
    (run / FAILURE).unlink(missing_ok=True)
    shown = split.validation if len(split.validation) else split.train
    with closing(Records(run, trainer.step, config.tensorboard)) as records:
        few = batches.whole(_spread(split.train, 8))
        new = batches.whole(_spread(split.validation, 8)) if len(split.validation) else None
        watch = Watch(run, task, config.watch_every, config.log_every, (few, new))

        def log(step: int, values: dict[str, float]) -> None:
            values |= watch.look(step)
            records.metrics(step, values)
            watch.tell(step, values)
            if on_log:
                on_log(step, values)

        trainer.on_log = log
        trainer.on_sample = lambda step, generator: _sample(
            step, generator, task, batches, shown, records
        )
        try:
            trainer.fit()
        except TrainingFailed as failure:
            place = None
            try:
                if processes.num_processes == 1:
                    place = _first_bad(start, trainer.step)
            except Exception as error:  # out of memory, say; the failure matters more
                warnings.warn(f"the search for its first place ended by {error!r}", stacklevel=2)
            raise _told(run, failure, place) from failure
    return run


def _sweep(run: Path) -> None:
    """Remove what killed trainings left half written; evaluations may still write theirs."""
    ours = ("config.json", "metrics.jsonl", "findings.jsonl", FAILURE, "failed-step-", "step-")
    for folder in (run, run / "checkpoints", run / "samples"):
        for leftover in folder.glob(f".*{files.LEFTOVER}"):
            if leftover.name[1:].startswith(ours):
                leftover.unlink(missing_ok=True)


def _rehearse(trainer: Trainer) -> None:
    """Compute every term once, so that what cannot be trained is refused; changes nothing."""
    task, batch = trainer.task.eval(), trainer.batches[trainer.step]
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        batch = task.prepare(batch)
        out = task.generate(batch)
        verdict = trainer.verdict(batch, out)
        if verdict is not None:
            terms = task.discriminator_losses(batch, out, verdict)
            if trainer.balances[1] is not None:
                trainer.balances[1](terms, None, trainer.step)
        task.generator_losses(batch, out, verdict)


def _first_bad(start: Callable[[], Trainer], reached: int) -> str | None:
    """Train once more from the last good checkpoint, now looking at every layer."""
    trainer = start()
    suspect = reached - trainer.config.log_every
    while trainer.step < reached:
        batch = trainer.batches[trainer.step]
        if trainer.step < suspect:
            trainer.train_step(batch)
            continue
        gradients = trainer.config.precision != "fp16"
        place = first_bad(trainer.players, partial(trainer.train_step, batch), gradients)
        if place:
            return place
    return None


def _told(run: Path, failure: TrainingFailed, place: str | None) -> TrainingFailed:
    """The failure with its place, which is written down beside the batch that did it."""
    saved = run.glob("failed-step-*.safetensors")
    batch = max(saved, key=lambda path: path.stat().st_mtime_ns).name
    step = int(batch.removeprefix("failed-step-").split(".")[0])
    about = {"step": step, "place": place, "batch": batch, "message": str(failure)}
    replace_text(run / FAILURE, json.dumps(about, indent=1))
    return TrainingFailed(f"{failure}; first seen in {place}" if place else str(failure))


def doctor(run: Path | str) -> list[Finding]:
    """What went wrong in a run, finished or not; see :func:`ganlab.training.monitor.diagnose`.

    Raises:
        InputError: no run directory, or a damaged file in it.
    """
    folder = run_directory(Path(run))
    read_config(folder)
    path, cure = folder / FAILURE, "remove it, and resume the run to see it fail again"
    failure = read_json(path, ("step", "place"), cure) if path.exists() else None
    return diagnose(read_metrics(folder), failure)


def _spread(tiles: Tiles, count: int) -> Tiles:
    """At most so many tiles, evenly."""
    places = np.linspace(0, len(tiles) - 1, min(count, len(tiles))).round().astype(int)
    return np.asarray(tiles[places])


@torch.no_grad()
def _sample(
    step: int, generator: nn.Module, task: Task, batches: Batches, tiles: Tiles, records: Records
) -> None:
    batch, trained = task.prepare(batches.whole(_spread(tiles, 4))), task.generator
    task.generator = generator
    task.eval()
    out = task.generate(batch)
    task.generator = trained
    truth = [(f, f.enter(batch[f.name])) for f in task.outputs if f.name in batch]
    made = [(f, out[f.name]) for f, _ in truth]
    given = task.shown(batch)
    # Pictures of one size: a coarse pixel becomes a square of fine ones.
    size = max(value.shape[-1] for _, value in (*given, *truth))
    columns = [picture(*column) for column in (*given, *made, *truth)]
    columns = [c.repeat(size // c.shape[1], 1).repeat(size // c.shape[2], 2) for c in columns]
    records.samples(step, panel([list(row) for row in zip(*columns, strict=True)]))


def _essential(source: Source) -> Source:
    """A source without what its files say of its values, which is compared by itself."""
    return replace(source, nodata=None, tags=BandTags())


def _start_from(init: Path, measured: DataSpec, ignore: bool) -> DataSpec:
    """The sources of the new tiles with the scaling that the earlier run learned with."""
    _, earlier, _ = _parts(read_config(run_directory(init)))
    for name, source in measured.sources.items():
        known = earlier.sources.get(name)
        if known is None or _essential(known) != _essential(source):
            raise InputError(
                f"{init} was trained on {name!r} = {known}; these tiles have {source}; "
                "bands, dtype and classes must be the same to start from its weights"
            )
        if source.kind == "image":
            before = known.tagged(f"{init} (its tiles)")
            check_same_scale_of_tiles(before, source.tagged(f"{name!r} of these tiles"), ignore)
    return DataSpec(measured.sources, earlier.scalings, measured.pixel_size)


def _inherited(init: Path | str | None) -> list[TrainedScene]:
    """The ground that the weights of a start have seen before."""
    if init is None:
        return []
    own, inherited = read_trained(run_directory(Path(init)))
    return own + inherited


def _copy_weights(init: Path, model: Task, about: About) -> None:
    donor = load_task(init, average=False, device="cpu")
    try:
        model.generator.load_state_dict(donor.generator.state_dict())
        if model.discriminator is not None and donor.discriminator is not None:
            model.discriminator.load_state_dict(donor.discriminator.state_dict())
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise InputError(
            f"{init} has networks of another shape than these: {first} Its settings are others: "
            f"{'; '.join(_apart(read_config(run_directory(init)), about))}; give the same"
        ) from error


def _apart(there: Any, here: Any, path: str = "") -> Iterator[str]:
    """Which settings that networks can follow from differ in two configurations."""
    for name in here:
        one, other = there.get(name), here[name]
        if isinstance(other, dict) and isinstance(one, dict):
            yield from _apart(one, other, f"{path}{name}.")
        elif one != other and f"{path}{name}".startswith(("task", "settings", "training.stab")):
            yield f"{path}{name} is {one} there and {other} here"


def run_directory(path: Path) -> Path:
    """The run directory that a path means: itself, or the one that holds a checkpoint file."""
    return path.parent.parent if path.is_file() else path


def _from(run: Path, path: Path | str) -> str:
    """A path as seen from the run, whose ``..`` leads out of where links to it point."""
    return os.path.relpath(os.path.realpath(path), os.path.realpath(run))


def _parts(about: About) -> tuple[Any, DataSpec, TrainingConfig]:
    """Settings of the task, data and training, as ``config.json`` holds them."""
    settings: Any = from_dict(TASKS[about["task"]].config_type, about["settings"])
    return settings, DataSpec.from_dict(about["data"]), from_dict(TrainingConfig, about["training"])


def _untrained(about: About) -> Task:
    settings, spec, config = _parts(about)
    task = TASKS[about["task"]](settings, spec)
    prepare(config.stabilizers, task.discriminator)
    return task


def _check(config: TrainingConfig) -> None:
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


def _device(name: str) -> torch.device:
    """The device of a configuration; auto takes cuda, then mps, then cpu."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    usable = [kind for kind, available in {**there, "cpu": True}.items() if available]
    if name not in ("auto", *usable):
        raise InputError(f"no device {name!r} here; use one of {usable}")
    return torch.device(usable[0] if name == "auto" else name)
