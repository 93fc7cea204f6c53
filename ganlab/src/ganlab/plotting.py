"""Figures of scenes, tiles and runs (matplotlib, extra "plot"): what the chapters draw with."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ganlab.data.store import rgb_bands
from ganlab.errors import InputError
from ganlab.training.records import PALETTE, read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = npt.NDArray[Any]

_COLOURS = np.asarray(PALETTE) / 255


def rgb(
    image: Array,
    bands: Sequence[str] = (),
    valid: Array | None = None,
    limits: tuple[float, float] | None = None,
) -> Array:
    """A scene or tile as ``(h, w, 3)`` floats in [0, 1], for the eye only.

    Args:
        image: ``(C, h, w)``; one band is shown as grey.
        bands: band names; red, green and blue are found by them, otherwise the first three.
        valid: ``(h, w)``; where it is 0 the picture is white.
        limits: values that become black and white. If not given: 0 and 255 for uint8, otherwise
            the 2 % and 98 % quantiles of the valid pixels, over all bands together.
    """
    shown = image[rgb_bands(bands, len(image))].astype(np.float64)
    measured = np.ones(image.shape[1:], bool) if valid is None else np.asarray(valid) > 0
    low, high = limits or (0.0, 255.0)
    if limits is None and image.dtype != np.uint8:
        values = shown[:, measured] if measured.any() else shown
        low, high = np.quantile(values, (0.02, 0.98))
    scaled = (shown - low) / max(high - low, 1e-12)
    picture: Array = np.moveaxis(np.clip(scaled, 0, 1), 0, 2)
    picture[~measured] = 1
    return picture


def classes(labels: Array, values: Sequence[int]) -> Array:
    """Labels ``(h, w)`` or ``(1, h, w)`` as ``(h, w, 3)`` in colours that all readers can tell."""
    flat = labels.reshape(labels.shape[-2:])
    row = np.searchsorted(np.asarray(values), flat).clip(max=len(values) - 1)
    return np.take(_COLOURS, row % len(_COLOURS), axis=0)


def legend(axes: "Axes", names: Sequence[str]) -> None:
    """A legend of class colours under the axes, in the order of the class values."""
    from matplotlib.patches import Patch

    handles = [Patch(color=_COLOURS[i % len(_COLOURS)], label=n) for i, n in enumerate(names)]
    style: dict[str, Any] = {"frameon": False, "fontsize": "small", "bbox_to_anchor": (0.5, -0.02)}
    style |= {"handlelength": 1, "columnspacing": 1, "ncols": min(len(names), 5)}
    axes.legend(handles=handles, loc="upper center", **style)


def show(pictures: Mapping[str, Array], columns: int | None = None, width: float = 9.0) -> "Figure":
    """Titled pictures ``(h, w, 3)`` (or ``(h, w)`` in grey) side by side, without axes."""
    if not pictures:
        raise InputError("show needs at least one picture")
    import matplotlib.pyplot as plt

    columns = columns or len(pictures)
    rows = -(-len(pictures) // columns)
    first = next(iter(pictures.values()))
    height = width / columns * first.shape[0] / first.shape[1] * rows + 0.35 * rows
    figure, grid = plt.subplots(rows, columns, figsize=(width, height), squeeze=False)
    figure.set_layout_engine("constrained")
    for axes in grid.flat:
        axes.axis("off")
    for axes, (title, picture) in zip(grid.flat, pictures.items(), strict=False):
        axes.imshow(picture, cmap="gray" if picture.ndim == 2 else None, interpolation="nearest")
        axes.set_title(title, fontsize="medium")
    return figure


def curves(
    runs: Mapping[str, Path | str | Sequence[Mapping[str, float]]],
    terms: Sequence[str],
    width: float = 9.0,
) -> "Figure":
    """Terms of the losses against the step, one panel for each term, one line for each run.

    Args:
        runs: title -> run directory, or its metric lines.
        terms: names as in ``metrics.jsonl``, for example ``"generator/l1"``.
        width: in inches.
    """
    import matplotlib.pyplot as plt

    figure, grid = plt.subplots(1, len(terms), figsize=(width, 2.8), squeeze=False)
    figure.set_layout_engine("constrained")
    styles = ("-", "--", ":", "-.")
    for axes, term in zip(grid[0], terms, strict=True):
        for number, (title, run) in enumerate(runs.items()):
            lines = read_metrics(Path(run)) if isinstance(run, str | Path) else run
            points = [(line["step"], line[term]) for line in lines if term in line]
            if not points:
                raise InputError(f"{title}: no term {term!r} in its metrics")
            colour, style = _COLOURS[1 + number % (len(_COLOURS) - 1)], styles[number % len(styles)]
            axes.plot(*zip(*points, strict=True), style, color=colour, label=title)
        axes.set(xlabel="step", title=term)
    if len(runs) > 1:
        grid[0][0].legend(frameon=False, fontsize="small")
    return figure
