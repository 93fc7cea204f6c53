"""When does one setting beat another? Differences over seeds and tiles, and a rule."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ganlab.distributions import crossed_interval
from ganlab.errors import InputError

Better = Literal["lower", "higher"]
Verdict = Literal["baseline", "better", "worse", "no difference worth naming", "undecided"]
Result = dict[str, Any]

MEASURES: Mapping[str, Better] = {
    "L1": "lower",
    "spectrum d.": "lower",
    "gradient d.": "lower",
    "KID": "lower",
    "mean IoU": "higher",
}


@dataclass(frozen=True)
class Rule:
    """When a difference counts: to be fixed before the first run."""

    least: float = 0.02
    """Share of the baseline's value from which on a difference is worth naming."""
    level: float = 0.95
    """Of the interval. Each comparison has its own: of twenty at 0.95, one errs on average."""

    def verdict(self, difference: float, low: float, high: float, better: Better) -> Verdict:
        """What a relative difference and the ends of its interval say.

        Better or worse: the interval lies beyond 0, and the difference is at least ``least``. Not
        worth naming: the whole interval is nearer to 0 than that. Undecided: anything else.
        """
        if better == "lower":
            difference, low, high = -difference, -high, -low
        if low > 0 and difference >= self.least:
            return "better"
        if high < 0 and difference <= -self.least:
            return "worse"
        small = -self.least < low and high < self.least
        return "no difference worth naming" if small else "undecided"


@dataclass(frozen=True)
class Comparison:
    """One setting beside the baseline, by one measure."""

    setting: str
    measure: str
    values: Mapping[int, float]
    """By seed, of the runs that did not diverge."""
    diverged: Mapping[int, int]
    """Step by seed, of those that did."""
    difference: float
    """Mean of setting minus baseline, over the seeds that both have."""
    interval: tuple[float, float]
    """Of that difference (:func:`ganlab.distributions.crossed_interval`): over seeds and tiles;
    over the tiles alone if there is one seed, over the seeds alone for KID."""
    scale: float
    """The baseline's mean over those seeds: what relative differences are shares of."""
    verdict: Verdict
    cost: float
    """Time of a training step, as a multiple of the baseline's."""


def compare(
    results: Iterable[Result],
    baseline: str,
    measures: Mapping[str, Better] = MEASURES,
    rule: Rule = Rule(),
) -> list[Comparison]:
    """Every setting beside the baseline: same seeds, same tiles, differences of both.

    One seed decides nothing. Neither do numbers of runs where other seeds diverged than in the
    baseline; but where no seed is left to compare, the one that diverged more often is worse.

    Args:
        results: as :func:`ganlab.studies.run_study` stores them.
        baseline: the setting to compare with; it comes first for each measure.
        measures: numbers of ``evaluate``, and which of them are better. "L1" is that of the part
            that matters most, the hole, say. Those that were not measured are passed over.
        rule: when a difference counts.

    Raises:
        InputError: no result of the baseline, or nothing of the measures was measured.
    """
    by_setting: dict[str, dict[int, Result]] = {baseline: {}}
    for result in results:
        by_setting.setdefault(result["setting"], {})[result["seed"]] = result
    if not by_setting[baseline]:
        raise InputError(f"no result of the baseline {baseline!r}, only of {[*by_setting][1:]}")
    whole = [r for runs in by_setting.values() for r in runs.values() if r["diverged"] is None]
    found = [m for m in measures if any(_own_name(r, m) for r in whole)]
    if whole and not found:
        names = list(whole[0]["rows"]["model"])
        raise InputError(f"nothing of {list(measures)} was measured, only {names}")
    return [
        _beside(by_setting[baseline], runs, setting, measure, measures[measure], rule)
        for measure in found or measures
        for setting, runs in by_setting.items()
    ]


def _beside(
    base: Mapping[int, Result],
    runs: Mapping[int, Result],
    setting: str,
    measure: str,
    better: Better,
    rule: Rule,
) -> Comparison:
    ours, theirs = _draws(runs, measure), _draws(base, measure)
    shared = [seed for seed in ours if seed in theirs]
    lost, both = _diverged(runs), runs.keys() & base.keys()
    our_loss, their_loss = lost.keys() & both, _diverged(base).keys() & both
    difference = low = high = scale = math.nan
    if shared:
        apart = np.stack([ours[seed] - theirs[seed] for seed in shared])
        scale = float(np.mean([theirs[seed][0] for seed in shared]))
        difference = float(apart[:, 0].mean())
        low, high = crossed_interval(apart[:, 0], apart[:, 1:], level=rule.level)
    verdict: Verdict = "undecided"
    if runs is base:
        verdict = "baseline"
    elif not shared and len(our_loss) != len(their_loss):
        verdict = "worse" if len(our_loss) > len(their_loss) else "better"
    elif len(shared) > 1 and our_loss == their_loss and scale:
        unit = abs(scale)
        verdict = rule.verdict(difference / unit, low / unit, high / unit, better)
    return Comparison(
        setting,
        measure,
        {seed: float(values[0]) for seed, values in ours.items()},
        lost,
        difference,
        (low, high),
        scale,
        verdict,
        _pace(runs) / _pace(base),
    )


def _draws(runs: Mapping[int, Result], measure: str) -> dict[int, npt.NDArray[np.float64]]:
    """By seed: the value on all tiles, and those on draws of them, if there are any."""
    found = {}
    for seed, result in runs.items():
        name = _own_name(result, measure)
        value = result["rows"]["model"][name] if name else None
        if name and value is not None:
            drawn = result["resampled"].get(name) or [value]
            found[seed] = np.array([value, *drawn], np.float64)
    return found


def _own_name(result: Result, measure: str) -> str | None:
    names = result["rows"].get("model", {})
    return next((n for n in names if n == measure or n.endswith(f" {measure}")), None)


def _diverged(runs: Mapping[int, Result]) -> dict[int, int]:
    return {seed: r["diverged"] for seed, r in runs.items() if r["diverged"] is not None}


def _pace(runs: Mapping[int, Result]) -> float:
    whole = [r["provenance"]["seconds_per_step"] for r in runs.values() if r["diverged"] is None]
    known = [seconds for seconds in whole if seconds is not None]
    return float(np.mean(known)) if known else math.nan
