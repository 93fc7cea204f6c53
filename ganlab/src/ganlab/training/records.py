"""What a run leaves to read: metrics as JSON lines and TensorBoard, samples as PNG."""

import importlib.util
import json
import os
import shutil
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate.utils import reduce
from PIL import Image
from torch import Tensor

from ganlab import files
from ganlab.config import from_dict, read_json
from ganlab.data.store import rgb_bands
from ganlab.errors import InputError
from ganlab.tasks.base import Field

PALETTE = (
    (230, 230, 230), (213, 94, 0), (86, 86, 86), (0, 158, 115), (0, 114, 178),
    (240, 228, 66), (204, 121, 167), (86, 180, 233), (230, 159, 0), (0, 0, 0),
)  # fmt: skip
"""Colours of classes in panels: Okabe and Ito's, told apart by colour-blind readers too."""
METRICS = "metrics.jsonl"
FINDINGS = "findings.jsonl"
FAILURE = "failure.json"
LARGEST_STEP = 2**60
BOARD = "a line for TensorBoard"


class Meter:
    """Means of named scalars since the last look; adding never waits for the device.

    Args:
        device: where processes can exchange tensors.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = device
        self.sums: dict[str, Tensor] = {}

    def add(self, values: Mapping[str, float | Tensor]) -> None:
        """Count one observation of each value."""
        for name, value in values.items():
            value = torch.as_tensor(value).detach().float()
            pair = torch.stack([value, torch.ones_like(value)])
            self.sums[name] = self.sums[name].to(pair.device) + pair if name in self.sums else pair

    def totals(self) -> dict[str, Tensor]:
        """Sum and count of each name over all processes, ``(2,)`` on the CPU."""
        if not self.sums:
            return {}
        names = sorted(self.sums)
        pairs = reduce(torch.stack([self.sums[name].to(self.device) for name in names]), "sum")
        return dict(zip(names, pairs.cpu(), strict=True))

    def means(self) -> dict[str, float]:
        """The means over all processes; starts anew."""
        pairs = {name: pair.tolist() for name, pair in self.totals().items()}
        self.sums = {}
        return {name: total / count for name, (total, count) in pairs.items()}


class Records:
    """Writes the records of one run.

    Metrics must be written; panels and TensorBoard files are spared where they fail.

    Args:
        folder: the run directory.
        after: keep only lines up to this step: what lies behind the checkpoint is written again.
        tensorboard: write TensorBoard files; None writes them when tensorboard is installed.

    Raises:
        OSError: the lines of an earlier training cannot be read or written.
    """

    def __init__(self, folder: Path, after: int = 0, tensorboard: bool | None = None) -> None:
        self.folder, self._lines = folder, folder / METRICS
        self._told: set[str] = set()
        for path in (self._lines, folder / FINDINGS):
            if os.path.lexists(path):
                _cut(path, after)
        installed = importlib.util.find_spec("tensorboard") is not None
        if tensorboard and not installed:
            raise InputError("no TensorBoard here: pip install tensorboard, or leave it out")
        self._board: Any = None
        self._quiet = ExitStack()
        if installed and tensorboard is not False:
            from torch.utils.tensorboard import SummaryWriter

            self._quiet.enter_context(_quiet_tensorboard())
            with self.spared(BOARD):
                self._board = SummaryWriter(folder / "tensorboard", purge_step=after + 1)

    @contextmanager
    def spared(self, what: str) -> Iterator[None]:
        """Do what a training can do without: an error in it is told once, and nothing more."""
        try:
            yield
        except Exception as error:
            if what not in self._told:
                self._told.add(what)
                warnings.warn(f"{what} cannot be written: {error}; going on without", stacklevel=3)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line ``{"step": ..., name: value, ...}``."""
        append_line(self._lines, {"step": step, **values})
        for name, value in values.items():
            self._show("add_scalar", name, value, step)

    def samples(self, step: int, picture: npt.NDArray[np.uint8]) -> Path:
        """Write an ``(H, W, 3)`` picture to ``samples/step-NNNNNNNN.png``."""
        path = self.folder / "samples" / f"step-{step:08d}.png"
        path.parent.mkdir(exist_ok=True)
        with files.beside(path) as temporary:
            Image.fromarray(picture).save(temporary, format="png")
        self._show("add_image", "samples", picture, step, dataformats="HWC")
        return path

    def _show(self, method: str, *values: Any, **options: Any) -> None:
        """Give something to TensorBoard, if there is one and it still works."""
        if self._board is not None and BOARD not in self._told:
            with self.spared(BOARD):
                getattr(self._board, method)(*values, **options)

    def close(self) -> None:
        """Flush everything."""
        self._show("close")
        self._quiet.close()


@contextmanager
def _quiet_tensorboard() -> Iterator[None]:
    """Keep the traceback of TensorBoard's writing thread off the terminal; we say it in a line."""
    before = threading.excepthook

    def hook(error: threading.ExceptHookArgs) -> None:
        if type(error.thread).__name__ != "_AsyncWriterThread":
            before(error)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


def append_line(path: Path, values: Mapping[str, Any]) -> None:
    """Append a JSON line to a file, never through a link that somebody put there.

    Raises:
        OSError: the disk is full, the folder is gone or cannot be written.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    with open(os.open(path, flags, 0o666), "a", encoding="utf-8") as file:
        file.write(json.dumps(values) + "\n")


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """All metric lines of a run directory, oldest first."""
    return read_lines(folder / METRICS)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All good JSON lines of metrics or findings, oldest first; none if there is no file.

    A killed process can leave half a line, and only at the end: that one is passed over. Others
    that are broken are passed over with a warning.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        lines, broken = _read_lines(path)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"cannot read {path}: {error}") from error
    if broken:
        warnings.warn(
            f"{path}: {_count(broken)} broken (the first is line {broken[0]}); the other "
            f"{len(lines)} were read",
            stacklevel=2,
        )
    return lines


def read_failure(folder: Path) -> dict[str, Any] | None:
    """What ``failure.json`` of a run directory says; None if there is none.

    Raises:
        InputError: it is damaged.
    """
    path, cure = folder / FAILURE, "remove it, and resume the run to see it fail again"
    if not os.path.lexists(path):
        return None
    found = read_json(path, ("step", "place"), cure)
    fields = ("step", "place", "batch", "message")
    known: dict[str, Any] = {name: found[name] for name in fields if name in found}
    try:
        from_dict(Failure, known)
    except InputError as error:
        raise InputError(f"{path} is damaged: {error}; {cure}") from error
    return known


@dataclass(frozen=True)
class Failure:
    """Where numbers stopped being finite."""

    step: int
    place: str | None
    """The layer in which it was seen first."""
    batch: str | None = None
    """Name of the file with the batch of that step."""
    message: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.step < LARGEST_STEP:
            raise InputError(f"step {self.step} is none")


def _cut(path: Path, after: int) -> None:
    """Keep the good lines of a file up to a step; a file with broken ones is kept beside it."""
    lines, broken = _read_lines(path)
    if broken:
        kept_aside = _unused(path.with_name(path.name + ".broken"))
        shutil.copyfile(path, kept_aside)
        warnings.warn(
            f"{path}: {_count(broken)} broken (the first is line {broken[0]}); the whole file is "
            f"kept as {kept_aside.name}, and the good lines stay",
            stacklevel=4,
        )
    kept = [line for line in lines if line["step"] <= after]
    files.replace_text(path, "".join(json.dumps(line) + "\n" for line in kept))


def _unused(path: Path) -> Path:
    """The path itself, or the first with a number behind it that nothing has."""
    number, found = 1, path
    while os.path.lexists(found):
        number, found = number + 1, path.with_name(f"{path.name}-{number + 1}")
    return found


def _count(broken: list[int]) -> str:
    return "1 line is" if len(broken) == 1 else f"{len(broken)} lines are"


def _read_lines(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """The good lines of a file, and the numbers (from 1) of those broken before the last one."""
    good: list[dict[str, Any]] = []
    broken: list[int] = []
    raw = path.read_bytes().split(b"\n")
    while raw and not raw[-1].strip():
        raw.pop()
    for number, text in enumerate(raw, 1):
        line = _parsed(text, findings=path.name == FINDINGS)
        if line is not None:
            good.append(line)
        elif text.strip() and number < len(raw):
            broken.append(number)
    return good, broken


def _parsed(text: bytes, findings: bool) -> dict[str, Any] | None:
    """A line of metrics or findings; None if it is neither."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or type(line.get("step")) is not int:
        return None
    if not 0 <= line["step"] < LARGEST_STEP:
        return None
    if findings:
        return line if isinstance(line.get("kind"), str) else None
    return line if all(map(_is_number, line.values())) else None


def _is_number(value: Any) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < LARGEST_STEP)


def picture(field: Field, value: Tensor) -> npt.NDArray[np.uint8]:
    """Network channels ``(B, channels, H, W)`` as pictures ``(B, H, W, 3)``.

    Labels get the colours of ``PALETTE``, alpha is grey from 0 to 1; images show red, green and
    blue where the bands have such names, otherwise their first three bands (or the first as grey).
    """
    if field.source.kind == "label":
        colours = np.asarray(PALETTE, np.uint8)
        return np.asarray(colours[value.argmax(1).cpu().numpy() % len(PALETTE)], np.uint8)
    if field.source.kind == "alpha":
        value = 2 * value - 1
    order = rgb_bands(field.source.bands, len(field.source.bands))
    bytes_ = ((value[:, order].detach().float().cpu() + 1) * 127.5).round().clamp(0, 255).byte()
    return np.asarray(bytes_.permute(0, 2, 3, 1).numpy(), np.uint8)


def panel(rows: list[list[npt.NDArray[np.uint8]]]) -> npt.NDArray[np.uint8]:
    """Pictures ``(h, w, 3)`` of equal size in rows and columns, with thin white lines between."""
    frame = ((0, 2), (0, 2), (0, 0))
    return np.vstack([np.hstack([np.pad(p, frame, constant_values=255) for p in r]) for r in rows])
