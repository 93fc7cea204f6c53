"""Make the stored results of the ring of Gaussians: ten seeds for each setting.

    python benchmarks/worlds.py             make what is missing
    python benchmarks/worlds.py --status    list what there is, and what is older than its code

A result is one JSON file, ``book/results/11/worlds/<mixture>-<setting>.json``, with modes, share of
good points and divergence for each seed. Results that exist are not made again. Half a minute
of one core each.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from evidence import _code, provenance, write

from ganlab.losses.adversarial import Penalty
from ganlab.mixtures import Mixture, PlayConfig, coverage, play, ring
from ganlab.stabilize.penalties import R1, R2

RESULTS = Path(__file__).resolve().parents[1] / "book" / "results" / "11" / "worlds"
SEEDS = range(10)
# Metz et al. 2017 have modes of 0.02, which take longer than a test may.
MIXTURES = {"ring": ring(std=0.05)}

RECOMMENDED = PlayConfig()
GAMMA = 0.05
# DCGAN's optimizer (Radford et al. 2016, section 4), neither average nor schedule.
PLAIN = dataclasses.replace(
    RECOMMENDED,
    game="vanilla",
    generator_lr=2e-4,
    discriminator_lr=2e-4,
    betas=(0.5, 0.999),
    decay=False,
    ema=0.0,
)


@dataclasses.dataclass(frozen=True)
class Run:
    """One result: a way to play on one mixture."""

    mixture: str
    setting: str
    config: PlayConfig
    weights: dict[str, float]

    @property
    def path(self) -> Path:
        return RESULTS / f"{self.mixture}-{self.setting}.json"

    def penalties(self) -> list[Penalty]:
        kinds = {"r1": R1, "r2": R2}
        return [kinds[name](weight) for name, weight in self.weights.items()]


def all_runs() -> Iterator[Run]:
    both = {"r1": GAMMA, "r2": GAMMA}
    vanilla = dataclasses.replace(RECOMMENDED, game="vanilla")
    settings = {
        "recommended": (RECOMMENDED, both),
        "plain": (PLAIN, {}),
        # As fast as the recommended one, everything else plain.
        "plain-fast": (
            dataclasses.replace(
                PLAIN,
                generator_lr=RECOMMENDED.generator_lr,
                discriminator_lr=RECOMMENDED.discriminator_lr,
            ),
            {},
        ),
        # Each of these differs from the recommended one in one thing.
        "unpenalized": (RECOMMENDED, {}),
        "r1": (RECOMMENDED, {"r1": GAMMA}),
        "no-ema": (dataclasses.replace(RECOMMENDED, ema=0.0), both),
        "vanilla": (vanilla, both),
        # The plain one has not arrived anywhere after the steps of the recommended one.
        "plain-long": (dataclasses.replace(PLAIN, steps=4 * PLAIN.steps), {}),
    }
    for setting, (config, weights) in settings.items():
        yield Run("ring", setting, config, weights)


def make(run: Run) -> dict[str, Any]:
    """Play with all seeds side by side, count, and store the result."""
    mixture: Mixture = MIXTURES[run.mixture]
    curve: list[dict[str, Any]] = []

    def watch(step: int, points: torch.Tensor) -> None:
        curve.append({"step": step, "modes": [coverage(p, mixture).modes for p in points]})

    begin, used = time.perf_counter(), time.process_time()
    made = play(mixture, run.config, run.penalties(), list(SEEDS), watch, watch_every=250)
    used, seconds = time.process_time() - used, time.perf_counter() - begin
    rows = [
        {"seed": seed, **dataclasses.asdict(coverage(points, mixture))}
        for seed, points in zip(SEEDS, made, strict=True)
    ]
    result = {
        "experiment": "11",
        "data": run.mixture,
        "setting": run.setting,
        "seed": SEEDS[0],
        "seeds": list(SEEDS),
        "modes": len(mixture.centres),
        "rows": rows,
        "curve": curve,
        "provenance": {
            "task": {"mixture": run.mixture, "std": mixture.std, "penalties": run.weights},
            "training": dataclasses.asdict(run.config),
            **provenance(seconds),
            "core_seconds_each_seed": round(used / len(SEEDS), 1),
        },
    }
    write(run.path, result)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--status", action="store_true", help="list, make nothing")
    options = parser.parse_args()
    code = _code()
    for run in all_runs():
        state = "missing"
        if run.path.exists():
            made_by = json.loads(run.path.read_text())["provenance"]["code"]
            state = "there" if made_by == code else "older than the library"
        elif not options.status:
            result = make(run)
            modes = [row["modes"] for row in result["rows"]]
            state = f"made in {result['provenance']['seconds']} s: {modes}"
        print(f"{run.path.stem}: {state}", flush=True)


if __name__ == "__main__":
    main()
