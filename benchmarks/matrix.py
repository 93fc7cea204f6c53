"""Every stabilizer with every task and precision: does it work, or say why not?

    python benchmarks/matrix.py             all combinations, and compiled once for each task
    python benchmarks/matrix.py --quick     without the compiled ones (which take minutes)

Each combination trains the smallest networks for a few steps on a CPU. The table goes to
``book/results/11/matrix/combinations.json``; chapter 11 shows it, and the tests make a few of its
rows again.
"""

import argparse
import dataclasses
import math
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evidence import ROOT, provenance, write

from ganlab.config import (
    CloudLayersConfig,
    EncoderDecoderConfig,
    HoleJudgeConfig,
    HolesConfig,
    InpaintingConfig,
    PatchGANConfig,
    Pix2PixConfig,
    SplitConfig,
    StabilizersConfig,
    SuperResolutionConfig,
    TilingConfig,
    ToytownConfig,
    TrainingConfig,
    TwoStageConfig,
    UNetConfig,
    VAEConfig,
    VAENetworkConfig,
    to_dict,
)
from ganlab.data import tiling, toytown
from ganlab.errors import InputError
from ganlab.training import train
from ganlab.training.records import read_metrics

TABLE = ROOT / "book" / "results" / "11" / "matrix" / "combinations.json"

_UNET = UNetConfig(width=4, depth=3, dropout=0.0)
_PATCH = PatchGANConfig(width=4, layers=1)
_FILL = {
    "generator": EncoderDecoderConfig(width=4, dilations=(2,)),
    "discriminator": HoleJudgeConfig(width=4, layers=1),
    "holes": HolesConfig(kinds=("polygon",)),
}
TASKS: dict[str, Any] = {
    "pix2pix": Pix2PixConfig(generator=_UNET, discriminator=_PATCH),
    "inpainting": InpaintingConfig(**_FILL),
    "two_stage": TwoStageConfig(**_FILL, refinement=EncoderDecoderConfig(width=4, dilations=(2,))),
    "cloud_layers": CloudLayersConfig(
        generator=_UNET, discriminator=_PATCH, adversarial_weight=1.0
    ),
    "super_resolution": SuperResolutionConfig(generator=_UNET, discriminator=_PATCH),
    "vae": VAEConfig(generator=VAENetworkConfig(latent=4, width=4, depth=3)),
}
STABILIZERS = {
    "none": StabilizersConfig(),
    "r1": StabilizersConfig(penalties=("r1",)),
    "r1 and r2": StabilizersConfig(penalties=("r1", "r2")),
    "r1, every 2 steps": StabilizersConfig(penalties=("r1",), penalty_every=2),
    "r1, finite differences": StabilizersConfig(penalties=("r1",), penalty_step=0.1),
    "wgan_gp": StabilizersConfig(penalties=("wgan_gp",)),
    "zero_centred": StabilizersConfig(penalties=("zero_centred",)),
    "spectral normalization": StabilizersConfig(spectral="normalization"),
    "spectral regularization": StabilizersConfig(spectral="regularization"),
    "replay": StabilizersConfig(replay=8),
    "historical averaging": StabilizersConfig(history=0.1),
    "gate: loss ratio": StabilizersConfig(gate="loss_ratio", gate_every=2),
    "gate: accuracy": StabilizersConfig(gate="accuracy", gate_every=2),
    "critic, 2 for 1": StabilizersConfig(critic=2),
    "minibatch deviation": StabilizersConfig(diversity="deviation"),
    "minibatch discrimination": StabilizersConfig(diversity="discrimination"),
    "instance noise": StabilizersConfig(instance_noise=0.1),
    "label smoothing": StabilizersConfig(smoothing=0.1),
}
OTHERS = {
    "r1, batch norm in D": StabilizersConfig(penalties=("r1",)),
    "smoothing, hinge": StabilizersConfig(smoothing=0.1),
    "everything at once": StabilizersConfig(
        penalties=("r1", "wgan_gp"),
        spectral="regularization",
        replay=8,
        history=0.1,
        gate="accuracy",
        diversity="deviation",
        instance_noise=0.1,
    ),
}
TRAINING = TrainingConfig(
    steps=4,
    batch_size=4,
    log_every=2,
    sample_every=0,
    checkpoint_every=4,
    tensorboard=False,
    split=SplitConfig(block=64),
    device="cpu",
    augment=False,
)


def combinations() -> Iterator[tuple[str, str, str]]:
    """(task, stabilizer, precision)."""
    for task in TASKS:
        for stabilizer in [*STABILIZERS, *OTHERS]:
            for precision in ("fp32", "bf16"):
                yield task, stabilizer, precision


def store(folder: Path) -> Path:
    """The smallest town, tiled."""
    pairs = toytown.write(ToytownConfig(to=folder / "scenes", size=192))
    images, labels = ((str(pair[side]),) for pair in pairs for side in (0, 1))
    config = TilingConfig(images=images, labels=labels, to=folder / "tiles", size=32)
    tiling.tile(config)
    return folder / "tiles"


def outcome(tiles: Path, task: str, stabilizer: str, precision: Any, compiled: bool = False) -> str:
    """``"works"``, or the message with which a combination is refused.

    To work is to train four steps with finite, changing numbers and to save them.
    """
    settings = TASKS[task]
    if stabilizer == "r1, batch norm in D" and hasattr(settings, "discriminator"):
        judge = dataclasses.replace(settings.discriminator, norm="batch")
        settings = dataclasses.replace(settings, discriminator=judge)
    if stabilizer == "smoothing, hinge" and hasattr(settings, "adversarial"):
        settings = dataclasses.replace(settings, adversarial="hinge")
    if stabilizer == "label smoothing" and hasattr(settings, "adversarial"):
        settings = dataclasses.replace(settings, adversarial="vanilla")
    chosen = {**STABILIZERS, **OTHERS}[stabilizer]
    config = dataclasses.replace(
        TRAINING, stabilizers=chosen, precision=precision, compile=compiled
    )
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        try:
            train(settings, tiles, run, config)
        except InputError as error:
            return f"refused: {error}"
        lines = read_metrics(run)
    values = [value for line in lines for value in line.values()]
    moved = any(lines[0][name] != lines[-1].get(name) for name in lines[0] if name != "step")
    return "works" if all(map(math.isfinite, values)) and moved else "BROKEN"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="nothing compiled")
    options = parser.parse_args()
    begin, rows = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tiles = store(Path(folder))
        for task, stabilizer, precision in combinations():
            found = outcome(tiles, task, stabilizer, precision)
            rows.append((task, stabilizer, precision, "", found))
            print(*rows[-1], sep=" | ", flush=True)
        for task in () if options.quick else TASKS:
            found = outcome(tiles, task, "none" if task == "vae" else "r1", "fp32", compiled=True)
            rows.append((task, "none" if task == "vae" else "r1", "fp32", "compiled", found))
            print(*rows[-1], sep=" | ", flush=True)
    keys = ("task", "stabilizer", "precision", "compiled", "outcome")
    result = {
        "seed": TRAINING.seed,
        "rows": [dict(zip(keys, row, strict=True)) for row in rows],
        "provenance": {
            "task": {name: to_dict(task) for name, task in TASKS.items()},
            "training": to_dict(TRAINING),
            **provenance(time.perf_counter() - begin),
        },
    }
    write(TABLE, result)


if __name__ == "__main__":
    main()
