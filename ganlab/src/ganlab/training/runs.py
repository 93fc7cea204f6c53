"""Run directories: start a training, continue it, take the trained model out.

::

    RUN/config.json                           task, settings, data, versions
    RUN/ground.json                           where the tiles lie that it was trained on
    RUN/metrics.jsonl  RUN/tensorboard/       every term of every loss, looks at made images
    RUN/findings.jsonl                        what the monitor told while it trained
    RUN/*.broken                              either of the two as it was when lines were damaged
    RUN/failure.json                          where numbers stopped being finite, if they did
    RUN/samples/step-NNNNNNNN.png             input, made, true
    RUN/checkpoints/step-NNNNNNNN.safetensors everything that the next step depends on
"""

import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate.utils import broadcast_object_list
from torch import nn

from ganlab import __version__, files
from ganlab.config import TrainingConfig, check_sizes, check_words, to_dict
from ganlab.data.batches import Batches, DataSpec, Tiles, describe
from ganlab.data.split import Split, empty_parts
from ganlab.data.store import Source, TileStore, check_same_scales
from ganlab.data.tags import BandTags
from ganlab.data.trained import FILE as GROUND
from ganlab.data.trained import (
    TrainedScene,
    fingerprint,
    open_tiles,
    read_trained,
    trained_scenes,
    write_trained,
)
from ganlab.errors import InputError, TrainingFailed
from ganlab.networks.features import weights_digest
from ganlab.stabilize.choice import prepare
from ganlab.tasks import TASKS
from ganlab.tasks.base import Task
from ganlab.training import checkpoints, restoring
from ganlab.training.advice import Finding
from ganlab.training.description import FORMAT, About, check_training, parts, read_config, sealed
from ganlab.training.monitor import diagnose
from ganlab.training.processes import this_process
from ganlab.training.records import (
    FAILURE,
    Records,
    panel,
    picture,
    read_failure,
    read_metrics,
)
from ganlab.training.trainer import OnLog, Trainer
from ganlab.training.watch import Watch, first_bad
from ganlab.workers import leave_if_main_is_being_imported

EARLIER = (
    "the newest whole one before it is {whole}: name it as the run to apply or evaluate it, or "
    "remove {broken}, and resume goes on from there"
)
"""How to go on after a damaged checkpoint."""


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
    with _alone(Path(to)):
        return _begin(task, Path(tiles), Path(to), config, init, on_log)


def _begin(
    task: Any,
    tiles: Path,
    run: Path,
    config: TrainingConfig,
    init: Path | str | None,
    on_log: OnLog | None,
) -> Path:
    store = TileStore.open(tiles)
    kind = next((name for name, t in TASKS.items() if t.config_type is type(task)), None)
    if kind is None:
        raise InputError(f"{type(task).__name__} configures no task; tasks: {sorted(TASKS)}")
    if checkpoints.all_in(run / "checkpoints"):
        raise InputError(f"{run} is a run already; continue it with: ganlab resume --run {run}")
    if (run / "store.json").exists():
        raise InputError(f"{run} is a tile store; give another folder for the run")
    check_words(task)
    check_words(config)
    check_sizes(task)
    check_sizes(config)
    check_training(config)
    device = _device(config.device)
    precision = decide_precision(config.precision, device)
    config = replace(config, precision=precision)
    split = store.split(config.split)
    lacking = empty_parts(split, config.split)
    if lacking is not None and len(split.train):
        warnings.warn(f"{store.path}: {lacking}", stacklevel=2)
    spec = describe(store, split.train, config.scaling)
    if init is not None:
        _, earlier, _ = parts(read_config(run_directory(Path(init))))
        spec = _start_from(Path(init), earlier, spec)
        ignore = config.ignore_scale_tags
        check_same_scales(earlier.sources, spec.sources, Path(init), store.path, ignore)
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
        "device": device.type,
        "features": _own_features(task),
        "versions": {"ganlab": __version__, "torch": torch.__version__},
    }
    return _fit(run, about, store, init, _ground_of_start(init), on_log)


def resume(
    run: Path | str,
    *,
    tiles: Path | str | None = None,
    steps: int | None = None,
    device: str | None = None,
    precision: str | None = None,
    on_log: OnLog | None = None,
) -> Path:
    """Continue a run exactly where its newest checkpoint was taken, and return it.

    On another kind of device, or with another precision, it goes on with other rounding: the run
    is then no longer bit for bit what it would have been, which a warning says.

    Args:
        run: the run directory.
        tiles: where the tile store is now, if it moved.
        steps: train to this step in place of the one first asked for.
        device: where to train from now on, if not where it began: auto, cuda, mps or cpu.
        precision: its arithmetic from now on: fp32, bf16, fp16 or auto.
        on_log: as for :func:`train`.

    Raises:
        InputError: no run directory, a damaged checkpoint, or other tiles than it began with.
        TrainingFailed: a loss became infinite or NaN.
    """
    run = Path(run)
    about = read_config(run)  # before a lock is made beside what is no run
    if about["training"].get("workers"):
        leave_if_main_is_being_imported()
    with _alone(run):
        return _go_on(run, tiles, steps, device, precision, on_log)


def _go_on(
    run: Path,
    tiles: Path | str | None,
    steps: int | None,
    device: str | None,
    precision: str | None,
    on_log: OnLog | None,
) -> Path:
    about = read_config(run)
    if steps is not None:
        about["training"]["steps"] = steps
    _move(run, about, device, precision)
    settings, spec, config = parts(about)
    check_training(config)
    if _own_features(settings) != about.get("features"):
        raise InputError(
            f"the weights of the feature network ({settings.features.weights}) are others than "
            f"those that {run} began with; it needs those"
        )
    store = open_tiles(run, about["tiles"], tiles)
    check_same_scales(spec.sources, store.sources, run, store.path, ignore=None)
    # Compared as text, because nodata may be NaN.
    same = repr(dict(store.sources)) == repr(dict(spec.sources))
    if not same or fingerprint(store, store.split(config.split)) != about["fingerprint"]:
        raise InputError(f"{store.path} holds other tiles than {run} began with; it needs those")
    about["tiles"] = _from(run, store.path)
    init = about["init"] and run / about["init"]
    # The run that it started from may be gone by now, or trained further on other ground.
    is_noted = (run / GROUND).exists()
    inherited = read_trained(run)[1] if is_noted else _ground_of_start(init)
    return _fit(run, about, store, init, inherited, on_log)


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
    folder = run_directory(path)
    about = read_config(folder)
    file = path if path.is_file() else checkpoints.latest(path / "checkpoints")
    state = checkpoints.load_or_name_an_earlier(file, EARLIER)
    restoring.check_fit(restoring.outline(folder, partial(_untrained, about)), state, file)
    task = _untrained(about)
    weights = dict(state["players"])
    if average and state["ema"] is not None:
        weights["generator"] = restoring.average_in(state)
    for name, values in weights.items():
        getattr(task, name).load_state_dict(values)
    if not checkpoints.finite(task):
        raise InputError(
            f"{file} holds weights that are infinite or NaN, from which nothing can be made; take "
            "an earlier checkpoint, or train again"
        )
    return task.to(_device(device)).eval()


def decide_precision(precision: str, device: torch.device) -> Any:
    """What ``precision="auto"`` means on a device; other settings stay as they are."""
    if precision != "auto":
        return precision
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"


@contextmanager
def _alone(run: Path) -> Iterator[None]:
    """Hold the right to train in a run directory; of several processes the main one does.

    Raises:
        InputError: in all processes, if another training has it.
    """
    processes = this_process()
    refusal: list[str | None] = [None]
    with ExitStack() as stack:
        if processes.is_main_process:
            try:
                stack.enter_context(files.exclusive(run, "training"))
            except InputError as error:
                refusal = [str(error)]
        if processes.num_processes > 1:
            broadcast_object_list(refusal)
        if refusal[0] is not None:
            raise InputError(refusal[0])
        yield


def _move(run: Path, about: About, device: str | None, precision: str | None) -> None:
    """Note where and how a run goes on, and warn if that is not where and how it was."""
    training = about["training"]
    before = (about.get("device"), training["precision"])
    training["device"] = device or training["device"]
    training["precision"] = precision or training["precision"]
    _, _, config = parts(about)
    try:
        here = _device(config.device)
    except InputError as error:
        raise InputError(f"{run}: {error}; resume takes another device") from error
    training["precision"] = decide_precision(config.precision, here)
    about["device"] = here.type
    now = (about["device"], training["precision"])
    if before[0] is not None and before != now:
        warnings.warn(
            f"{run} goes on on {now[0]} with {now[1]}, before it was {before[0]} with "
            f"{before[1]}: from here on it is no longer bit for bit what it would have been",
            stacklevel=4,
        )


def _own_features(settings: Any) -> dict[str, str] | None:
    """The user's own file of feature weights, where a loss needs it, with its SHA-256."""
    config = getattr(settings, "features", None)
    if config is None or config.weights in ("imagenet", "random"):
        return None
    if not (settings.perceptual_weight > 0 or settings.style_weight > 0):
        return None
    return {config.weights: weights_digest(Path(config.weights))}


def _fit(
    run: Path,
    about: About,
    store: TileStore,
    init: Path | str | None,
    inherited: Sequence[TrainedScene],
    on_log: OnLog | None,
) -> Path:
    """Make what ``about`` describes, go on from the newest checkpoint if there is one, train."""
    _, spec, config = parts(about)
    processes = this_process()
    if processes.num_processes != config.processes:
        raise InputError(
            f"processes is {config.processes}, but {processes.num_processes} run; start them with "
            f"torchrun --nproc_per_node {config.processes} or accelerate launch"
        )
    device = processes.device if config.processes > 1 else _device(config.device)
    split = store.split(config.split)
    with _enough_memory(run, device):
        batches = _batches(store, split.train, spec, config, device)
        start = partial(_start, run, about, init, batches, device)
        trainer = start()
        _warn_if_coupled(trainer.task, config)
        if not processes.is_main_process:
            trainer.fit()
            return run
        store.verify()
        _rehearse(trainer)
        try:
            run.mkdir(parents=True, exist_ok=True)
            write_trained(run, trained_scenes(store, split.train), inherited)
            files.replace_text(run / "config.json", json.dumps(sealed(about), indent=1))
        except OSError as error:
            raise InputError(f"cannot write the run directory {run}: {error}") from error
        with _recording(run):
            _sweep(run)
            (run / FAILURE).unlink(missing_ok=True)
            records = Records(run, trainer.step, config.tensorboard)
        with closing(records):
            shown = split.validation if len(split.validation) else split.train
            trainer.on_log = _logging(run, trainer, split, records, on_log)
            trainer.on_sample = partial(_sample, trainer.task, batches, shown, records)
            _fit_or_find_the_place(run, trainer, start)
    return run


def _batches(
    store: TileStore, train: Tiles, spec: DataSpec, config: TrainingConfig, device: torch.device
) -> Batches:
    processes, resident = this_process(), config.resident
    if resident is None:
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
        resident = store.nbytes() < free / 2
    return Batches(
        store,
        train,
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


def _start(
    run: Path, about: About, init: Path | str | None, batches: Batches, device: torch.device
) -> Trainer:
    """A trainer at the newest checkpoint, or at the first step if there is none."""
    _, _, config = parts(about)
    outline = restoring.outline(run, partial(_untrained, about))
    found = checkpoints.all_in(run / "checkpoints")
    state = None
    if found:
        state = checkpoints.load_or_name_an_earlier(found[-1], EARLIER)
        restoring.check_fit(outline, state, found[-1])
    torch.manual_seed(config.seed)
    task = _untrained(about)
    if init is not None and not found:
        _copy_weights(Path(init), task, about)
    trainer = Trainer(task, batches, config, run, device=device)
    if state is not None:
        restoring.restore(trainer, state, found[-1])
    return trainer


def _warn_if_coupled(task: Task, config: TrainingConfig) -> None:
    coupled = task.batch_coupled or config.stabilizers.diversity != "none"
    if coupled and config.processes > 1:
        warnings.warn(
            "a loss of this task couples the samples of a batch; each of the "
            f"{config.processes} processes sees only its own share of it",
            stacklevel=5,
        )


def _logging(
    run: Path, trainer: Trainer, split: Split, records: Records, on_log: OnLog | None
) -> OnLog:
    """What is done with every line of metrics."""
    config, batches = trainer.config, trainer.batches
    few = batches.whole(_spread(split.train, 8))
    new = batches.whole(_spread(split.validation, 8)) if len(split.validation) else None
    watch = Watch(run, trainer.task, config.watch_every, config.log_every, (few, new))

    def log(step: int, values: dict[str, float]) -> None:
        values |= watch.look(step)
        with _recording(run):
            records.metrics(step, values)
            watch.tell(step, values)
        if on_log:
            on_log(step, values)

    return log


def _fit_or_find_the_place(run: Path, trainer: Trainer, start: Callable[[], Trainer]) -> None:
    """Train; if a number becomes infinite or NaN, say in which layer it was seen first."""
    try:
        trainer.fit()
    except TrainingFailed as failure:
        place = None
        try:
            if this_process().num_processes == 1:
                place = _first_bad(start, trainer.step)
        except Exception as error:  # out of memory, say; the failure matters more
            warnings.warn(f"the search for its first place ended by {error!r}", stacklevel=2)
        raise _told(run, failure, place) from failure


@contextmanager
def _recording(run: Path) -> Iterator[None]:
    """Turn an error of the file system into one line that names the last checkpoint."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot write the records of {run}: {error}; {_last_checkpoint(run)}"
        ) from error


def _last_checkpoint(run: Path) -> str:
    with suppress(InputError):
        saved = checkpoints.all_in(run / "checkpoints")
        if saved:
            return f"the last checkpoint is {saved[-1]}; go on with: ganlab resume --run {run}"
    return "no checkpoint had been saved"


@contextmanager
def _enough_memory(run: Path, device: torch.device) -> Iterator[None]:
    """Turn a lack of memory into one line that says what to make smaller."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        on_device = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if not on_device and "can't allocate memory" not in str(error):
            raise
        raise InputError(
            f"training in {run} needs more memory than {device} has; give it a smaller "
            "batch_size, crop or width"
        ) from error


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
    about = {
        "step": failure.step,
        "place": place,
        "batch": failure.batch,
        "message": str(failure),
    }
    try:
        files.replace_text(run / FAILURE, json.dumps(about, indent=1))
    except OSError as error:
        warnings.warn(f"{run / FAILURE} cannot be written: {error}", stacklevel=2)
    message = f"{failure}; first seen in {place}" if place else str(failure)
    return TrainingFailed(message, failure.step, failure.batch)


def doctor(run: Path | str) -> list[Finding]:
    """What went wrong in a run, finished or not; see :func:`ganlab.training.monitor.diagnose`.

    Raises:
        InputError: no run directory, or a damaged file in it.
    """
    folder = run_directory(Path(run))
    read_config(folder)
    return diagnose(read_metrics(folder), read_failure(folder))


def _spread(tiles: Tiles, count: int) -> Tiles:
    """At most so many tiles, evenly."""
    places = np.linspace(0, len(tiles) - 1, min(count, len(tiles))).round().astype(int)
    return np.asarray(tiles[places])


def _sample(
    task: Task, batches: Batches, tiles: Tiles, records: Records, step: int, generator: nn.Module
) -> None:
    """Write a panel of input, generated image and target; the training goes on without it."""
    with records.spared("a sample panel"):
        records.samples(step, _panel(task, batches, tiles, generator))


@torch.no_grad()
def _panel(
    task: Task, batches: Batches, tiles: Tiles, generator: nn.Module
) -> npt.NDArray[np.uint8]:
    batch, trained = task.prepare(batches.whole(_spread(tiles, 4))), task.generator
    task.generator = generator
    task.eval()
    try:
        out = task.generate(batch)
    finally:
        task.generator = trained
    truth = [(f, f.enter(batch[f.name])) for f in task.outputs if f.name in batch]
    made = [(f, out[f.name]) for f, _ in truth]
    given = task.shown(batch)
    # Pictures of one size: a coarse pixel becomes a square of fine ones.
    size = max(value.shape[-1] for _, value in (*given, *truth))
    columns = [picture(*column) for column in (*given, *made, *truth)]
    columns = [c.repeat(size // c.shape[1], 1).repeat(size // c.shape[2], 2) for c in columns]
    return panel([list(row) for row in zip(*columns, strict=True)])


def _essential(source: Source) -> Source:
    """A source without what its files say of its values, which is compared by itself.

    What is missing is never seen, so it may differ.
    """
    return replace(source, nodata=None, ignore=(), tags=BandTags())


def _start_from(init: Path, earlier: DataSpec, measured: DataSpec) -> DataSpec:
    """The sources of the new tiles with the scaling that the earlier run learned with."""
    for name, source in measured.sources.items():
        known = earlier.sources.get(name)
        if known is None or _essential(known) != _essential(source):
            raise InputError(
                f"{init} was trained on {name!r} = {known}; these tiles have {source}; "
                "bands, dtype and classes must be the same to start from its weights"
            )
    return DataSpec(measured.sources, earlier.scalings, measured.pixel_size)


def _ground_of_start(init: Path | str | None) -> list[TrainedScene]:
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


def _untrained(about: About) -> Task:
    settings, spec, config = parts(about)
    task = TASKS[about["task"]](settings, spec)
    prepare(config.stabilizers, task.discriminator)
    return task


def _device(name: str) -> torch.device:
    """The device of a configuration; auto takes cuda, then mps, then cpu."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    usable = [kind for kind, available in {**there, "cpu": True}.items() if available]
    if name not in ("auto", *usable):
        raise InputError(f"no device {name!r} here; use one of {usable}")
    return torch.device(usable[0] if name == "auto" else name)
