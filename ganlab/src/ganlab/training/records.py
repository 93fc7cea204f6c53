"""What a run leaves to read: metrics as JSON lines and TensorBoard, samples as PNG."""

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate.utils import reduce
from PIL import Image
from torch import Tensor

from ganlab.data.store import rgb_bands
from ganlab.errors import InputError
from ganlab.tasks.base import Field

PALETTE = (
    (230, 230, 230), (213, 94, 0), (86, 86, 86), (0, 158, 115), (0, 114, 178),
    (240, 228, 66), (204, 121, 167), (86, 180, 233), (230, 159, 0), (0, 0, 0),
)  # fmt: skip
"""Colours of classes in panels: Okabe and Ito's, told apart by colour-blind readers too."""
FINDINGS = "findings.jsonl"


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

    Args:
        folder: the run directory.
        after: keep only lines up to this step: what lies behind the checkpoint is written again.
        tensorboard: write TensorBoard files; None writes them when tensorboard is installed.
    """

    def __init__(self, folder: Path, after: int = 0, tensorboard: bool | None = None) -> None:
        self.folder, self._lines = folder, folder / "metrics.jsonl"
        for path in (self._lines, folder / FINDINGS):
            if path.exists():
                kept = [line for line in read_lines(path) if line["step"] <= after]
                replace_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        installed = importlib.util.find_spec("tensorboard") is not None
        if tensorboard and not installed:
            raise InputError("no TensorBoard here: pip install tensorboard, or leave it out")
        self._board: Any = None
        if installed and tensorboard is not False:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(folder / "tensorboard", purge_step=after + 1)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line ``{"step": ..., name: value, ...}``."""
        with self._lines.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def samples(self, step: int, picture: npt.NDArray[np.uint8]) -> Path:
        """Write an ``(H, W, 3)`` picture to ``samples/step-NNNNNNNN.png``."""
        path = self.folder / "samples" / f"step-{step:08d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(picture).save(path)
        if self._board is not None:
            self._board.add_image("samples", picture, step, dataformats="HWC")
        return path

    def close(self) -> None:
        """Flush everything."""
        if self._board is not None:
            self._board.close()


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """All metric lines of a run directory, oldest first."""
    return read_lines(folder / "metrics.jsonl")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All JSON lines of a file, oldest first; none if there is no file."""
    lines: list[dict[str, Any]] = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break  # a killed process can leave half a line, and only at the end
    return lines


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


def replace_text(path: Path, text: str) -> None:
    """Write a file at once: a killed process leaves the old text or the new one, never half."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)
