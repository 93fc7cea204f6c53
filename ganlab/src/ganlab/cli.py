"""The command line: ``ganlab COMMAND``, generated from the dataclasses of ``ganlab.config``.

Nothing here imports torch or rasterio before a command runs, so that help comes at once.
"""

import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import tyro

from ganlab.config import (
    ApplyConfig,
    CloudLayersConfig,
    EvaluateConfig,
    InpaintingConfig,
    Pix2PixConfig,
    SamplesConfig,
    SuperResolutionConfig,
    TilingConfig,
    ToytownConfig,
    TrainingConfig,
    TwoStageConfig,
    VAEConfig,
)
from ganlab.errors import InputError, Note, TrainingFailed
from ganlab.foreign_lines import without_lines_of_gdal
from ganlab.studies import STUDIES, Study

Flat = tyro.conf.arg(name="")


def toytown(config: Annotated[ToytownConfig, Flat]) -> None:
    """Make georeferenced aerial scenes of an invented town, with exact labels."""
    from ganlab.data.toytown import write

    with without_lines_of_gdal():
        pairs = write(config)
    for image, label in pairs:
        print(f"{image}  {label}")


def samples(config: Annotated[SamplesConfig, Flat]) -> None:
    """Write the real Sentinel-2 sample scene and a class map (extra "samples")."""
    from ganlab.data.samples import write_samples

    with without_lines_of_gdal():
        paths = write_samples(config.to)
    for path in paths:
        print(path)


def tile(config: Annotated[TilingConfig, Flat]) -> None:
    """Cut scenes into a tile store."""
    from ganlab.config import SplitConfig
    from ganlab.data.tiling import tile_and_summarize

    with _bar("tiling", "tiles") as progress:
        store, summary = tile_and_summarize(config, progress=progress)
    split = store.split(SplitConfig())
    print(
        f"{config.to}: {len(store)} tiles of {store.size} x {store.size} pixels, "
        f"{store.nbytes() / 1e6:.1f} MB; split by blocks: {len(split.train)} train, "
        f"{len(split.validation)} validation, {len(split.test)} test, {split.dropped} on borders"
    )
    for line in summary.lines():
        print(line)


def _trains(settings: type, about: str) -> Callable[..., None]:
    """The command that trains one task; its options are the fields of ``settings``."""

    def command(
        tiles: Path,
        to: Path,
        task: Any = settings(),  # noqa: B008
        training: Annotated[TrainingConfig, Flat] = TrainingConfig(),  # noqa: B008
        init: Path | None = None,
    ) -> None:
        _train(task, tiles, to, training, init)

    command.__annotations__["task"] = Annotated[settings, Flat]
    command.__doc__ = f"""{about}

    Args:
        tiles: The tile store.
        to: The run directory to make.
        task: The networks and their losses.
        training: How they are trained.
        init: A run whose weights are the start, to fine-tune on new tiles.
    """
    return command


def resume(
    run: Path,
    tiles: Path | None = None,
    steps: int | None = None,
    device: Literal["auto", "cuda", "mps", "cpu"] | None = None,
    precision: Literal["fp32", "bf16", "fp16", "auto"] | None = None,
) -> None:
    """Continue an interrupted run exactly where its newest checkpoint was taken.

    Args:
        run: The run directory.
        tiles: Where the tile store is now, if it moved.
        steps: Train to this step in place of the one first asked for.
        device: Go on there, on another machine, say; the run is then no longer bit for bit what
            it would have been.
        precision: Go on with this arithmetic; the same holds.
    """
    from ganlab.training import resume
    from ganlab.training.description import read_config

    total = steps or read_config(run)["training"]["steps"]
    with _training_bar(total) as on_log:
        resume(run, tiles=tiles, steps=steps, device=device, precision=precision, on_log=on_log)
    _say_where_it_ended(run, total)


def apply(config: Annotated[ApplyConfig, Flat]) -> None:
    """Run a trained model over a whole scene; the result lies on the scene's grid."""
    from ganlab.inference import apply

    with without_lines_of_gdal(), _bar("applying", "windows") as progress:
        paths = apply(config, progress=progress)
    for path in paths:
        print(path)


def evaluate(config: Annotated[EvaluateConfig, Flat]) -> None:
    """Measure a trained model on tiles it has not seen, beside its baselines."""
    from ganlab.evaluation import evaluate, table

    with _bar("evaluating", "tiles") as progress:
        print(table(evaluate(config, progress=progress)))


def doctor(run: Path) -> None:
    """Say what goes wrong in a run, finished or not, and what to try.

    Args:
        run: The run directory.
    """
    from ganlab.training.runs import doctor

    findings = doctor(run)
    for finding in findings:
        print(f"{finding.kind}, steps {finding.steps[0]} to {finding.steps[1]}")
        print(f"  seen: {finding.evidence}")
        print(f"  why:  {finding.why}")
        print(f"  try:  {finding.remedy}")
        print(f"  read: chapter {finding.chapter}")
    if not findings:
        print("nothing noticed")


def _studies(study: Study, settings: type, about: str) -> Callable[..., None]:
    """The command that makes one study of one task, from which its settings depart."""

    def command(
        tiles: Path,
        to: Path,
        task: Any = settings(),  # noqa: B008
        training: Annotated[TrainingConfig, Flat] = TrainingConfig(),  # noqa: B008
        seeds: int = 3,
        jobs: int = 1,
        gpus: tuple[str, ...] = (),
        share: Literal["validation", "test"] = "validation",
        features: Literal["none", "efficientnet-lite0", "vgg16-bn", "inception"] = "none",
    ) -> None:
        from ganlab.studies import run_study, table

        options: dict[str, Any] = {"seeds": seeds, "processes": jobs, "devices": gpus}
        options |= {"share": share, "features": features, "training": training}
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # also stops its processes
        try:
            with _bar("studying", "runs") as progress:
                outcome = run_study(study, task, tiles, to, progress=progress, **options)
        except KeyboardInterrupt:
            _say(f"{to}: stopped; the same command goes on")
            sys.exit(INTERRUPTED)
        print(table(outcome))

    command.__annotations__["task"] = Annotated[settings, Flat]
    command.__doc__ = f"""{about}

    Args:
        tiles: The tile store.
        to: The folder of the study; one that was begun there goes on.
        task: The networks and their losses, from which each setting departs.
        training: How they are trained; the seed is the first of the seeds.
        seeds: Trainings of each setting, from other seeds; three at least to decide anything.
        jobs: Trainings at a time, each in a process of its own with one thread.
        gpus: GPUs by number: a training at a time on each of them.
        share: Tiles to measure on. Choose settings on validation, and prove the choice on test.
        features: Network whose features give the kernel distance (KID).
    """
    return command


TASKS: dict[str, tuple[type, str]] = {
    "pix2pix": (Pix2PixConfig, "Paired translation: a U-Net against a PatchGAN."),
    "inpainting": (InpaintingConfig, "Fill holes in one stage."),
    "cloud-layers": (CloudLayersConfig, "Part thin cloud and the ground below it."),
    "super-resolution": (SuperResolutionConfig, "Make finer pixels from coarse ones."),
    "vae": (VAEConfig, "Code tiles as Gaussians and make them again."),
    "two-stage": (TwoStageConfig, "Fill holes coarsely, then refine with attention."),
}
COMMANDS: dict[str, Any] = {
    "toytown": toytown,
    "samples": samples,
    "tile": tile,
    "train": {name: _trains(*task) for name, task in TASKS.items()},
    "resume": resume,
    "apply": apply,
    "evaluate": evaluate,
    "doctor": doctor,
    "study": {
        name: {task: _studies(study, *settings) for task, settings in TASKS.items()}
        for name, study in STUDIES.items()
    },
}
GROUPS = {
    "train": "Train a task on a tile store.",
    "study": "Compare settings of a task over seeds, by a rule fixed beforehand.",
    **{
        name: f"{study.question} Settings: {', '.join(study.settings)}; the baseline is "
        f'"{study.baseline}".'
        for name, study in STUDIES.items()
    },
}
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; a wrong input gives one line and exit code 2."""
    interrupted: list[int] = []
    try:
        with warnings.catch_warnings(), _one_end_for_all_signals(interrupted):
            warnings.showwarning = lambda message, kind, *_: _say(f"{_word_for(kind)}: {message}")
            about = "GANs for aerial and satellite imagery."
            tyro.cli(_choice(COMMANDS), prog="ganlab", description=about, args=arguments)
    except (InputError, TrainingFailed) as error:
        _say(error)
        sys.exit(2 if isinstance(error, InputError) else 1)
    except KeyboardInterrupt:
        _say("interrupted")
        sys.exit(INTERRUPTED)
    except Exception:
        # A signal that comes inside C code, numpy's writing say, can surface as another error.
        if not interrupted:
            raise
        _say("interrupted")
        sys.exit(INTERRUPTED)


@contextmanager
def _one_end_for_all_signals(received: list[int]) -> Iterator[None]:
    """Clean up after SIGTERM as after Ctrl-C; a training has a handler of its own meanwhile.

    What came is added to the list. A signal that the caller handles or ignores is left alone.
    """
    usual: dict[int, Any] = {
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGINT: signal.default_int_handler,
    }
    mine = [number for number, handler in usual.items() if signal.getsignal(number) is handler]
    if threading.current_thread() is not threading.main_thread():
        mine = []

    def end(number: int, frame: Any) -> None:
        received.append(number)
        raise KeyboardInterrupt

    for number in mine:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, usual[number])


def _choice(commands: dict[str, Any]) -> Any:
    """The type from which tyro makes a subcommand for each function, and groups of them."""
    options: list[Any] = [Annotated[None, tyro.conf.Suppress]]
    for name, command in commands.items():
        if callable(command):
            made = tyro.conf.subcommand(name, constructor=command)
        else:
            group = partial(_choice, command)
            made = tyro.conf.subcommand(name, constructor_factory=group, description=GROUPS[name])
        options.append(Annotated[Any, made])
    return Union[tuple(options)]  # noqa: UP007 - made at run time


def _word_for(kind: type[Warning]) -> str:
    return "note" if issubclass(kind, Note) else "warning"


def _say(message: object) -> None:
    print("ganlab:", *str(message).split(), file=sys.stderr)


def _train(task: Any, tiles: Path, to: Path, training: TrainingConfig, init: Path | None) -> None:
    from ganlab.training import train

    with _training_bar(training.steps) as on_log:
        train(task, tiles, to, training, init=init, on_log=on_log)
    _say_where_it_ended(to, training.steps)


def _say_where_it_ended(run: Path, steps: int) -> None:
    from ganlab.training.checkpoints import latest, step_of
    from ganlab.training.processes import this_process

    if not this_process().is_main_process:
        return
    reached = step_of(latest(run / "checkpoints"))
    if reached >= steps:
        print(f"{run}: trained to step {reached}")
        return
    again = f"ganlab resume --run {shlex.quote(str(run))}"
    print(f"{run}: stopped at step {reached} of {steps}; go on with: {again}")
    sys.exit(INTERRUPTED)


@contextmanager
def _bar(what: str, unit: str) -> Iterator[Callable[..., None]]:
    """A progress bar in a terminal, silence elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    measures = (BarColumn(), MofNCompleteColumn(), unit, TimeRemainingColumn())
    columns = ("{task.description}", *measures, "{task.fields[note]}")
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        row = bar.add_task(what, total=None, note="")

        def update(done: int, total: int, note: str = "") -> None:
            bar.update(row, completed=done, total=total, note=note)

        yield update


@contextmanager
def _training_bar(steps: int) -> Iterator[Callable[[int, dict[str, float]], None]]:
    with _bar("training", "steps") as update:

        def on_log(step: int, values: dict[str, float]) -> None:
            shown = (n for n in values if "/weight/" not in n and not n.startswith("look/"))
            terms = [n for n in shown if not n.endswith("/total")]
            update(step, steps, "  ".join(f"{name} {values[name]:.3f}" for name in terms))

        yield on_log
