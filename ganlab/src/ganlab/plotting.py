"""Figures of scenes, tiles and runs (matplotlib, extra "plot"): what the chapters draw with."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ganlab.data.store import rgb_bands
from ganlab.errors import InputError
from ganlab.studies import Comparison, Outcome
from ganlab.training.records import PALETTE, read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = npt.NDArray[Any]

_COLOURS = np.asarray(PALETTE) / 255

_VERDICTS = {
    "better": ("▲", 3),
    "worse": ("▼", 1),
    "no difference worth naming": ("=", 4),
    "undecided": ("?", 2),
    "baseline": ("", 9),
}
"""What stands beside a setting in the drawing of a study, and in which colour."""


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


def study(outcome: Outcome, measures: Sequence[str] = (), width: float = 9.0) -> "Figure":
    """A study: a row for each setting, a panel for each measure.

    Points are runs, one for each seed. The dashed line is the baseline's mean; the bar is the
    interval of the difference from it, laid from that line on, and grey is what would not be worth
    naming. Verdicts have colours that all readers can tell, and signs: ▲ better, ▼ worse, = no
    difference worth naming, ? undecided; × and a step: runs that diverged.

    Args:
        outcome: of ``run_study`` or ``read_study``.
        measures: which, in this order; all if not given.
        width: in inches.

    Raises:
        InputError: a measure that the study does not have.
    """
    import matplotlib.pyplot as plt

    known = list(dict.fromkeys(c.measure for c in outcome.comparisons))
    missing = [measure for measure in measures if measure not in known]
    if missing:
        raise InputError(f"the study has no {missing[0]!r}; it has {known}")
    chosen = list(measures) or known
    names = list(dict.fromkeys(c.setting for c in outcome.comparisons))
    height = 0.9 + 0.32 * len(names)
    figure, grid = plt.subplots(
        1, len(chosen), figsize=(width, height), squeeze=False, sharey=True, layout="constrained"
    )
    least = outcome.about["rule"]["least"]
    for axes, measure in zip(grid[0], chosen, strict=True):
        better = outcome.about["measures"][measure]
        axes.set(title=measure, xlabel=f"{better} is better")
        for row, c in enumerate(c for c in outcome.comparisons if c.measure == measure):
            _one_setting(axes, row, c, least)
    grid[0][0].set_yticks(range(len(names)), names)
    grid[0][0].invert_yaxis()
    return figure


def _one_setting(axes: "Axes", row: int, c: Comparison, least: float) -> None:
    sign, number = _VERDICTS[c.verdict]
    colour, values = _COLOURS[number], list(c.values.values())
    if c.verdict == "baseline":
        middle = float(np.mean(values)) if values else 0.0
        axes.axvline(middle, color=colour, linestyle="--", linewidth=1)
        axes.axvspan(middle * (1 - least), middle * (1 + least), color=_COLOURS[0], zorder=0)
    elif np.isfinite(c.interval).all():
        ends = [c.scale + end for end in c.interval]
        axes.plot(ends, [row, row], color=colour, linewidth=2, solid_capstyle="butt")
    points: dict[str, Any] = {"markersize": 5, "markeredgecolor": "white", "markeredgewidth": 0.7}
    axes.plot(values, [row] * len(values), "o", color=colour, **points)
    lost = "".join(f" ×{step}" for step in c.diverged.values())
    axes.text(
        1.01, row, sign + lost, transform=axes.get_yaxis_transform(), va="center", color=colour
    )
