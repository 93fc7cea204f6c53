"""A training step through the Trainer beside the same step written out in plain PyTorch."""

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from ganlab.config import (
    PatchGANConfig,
    Pix2PixConfig,
    ScalingConfig,
    SplitConfig,
    TilingConfig,
    ToytownConfig,
    TrainingConfig,
    UNetConfig,
)
from ganlab.data import tiling, toytown
from ganlab.data.batches import Batches, describe
from ganlab.tasks.pix2pix import Pix2Pix
from ganlab.training.trainer import Trainer

SIZES = {
    "64 px, 16 filters, batch 8": (64, 8, UNetConfig(16, 6), PatchGANConfig(16, 2)),
    "128 px, 16 filters, batch 8": (128, 8, UNetConfig(16, 7), PatchGANConfig(16, 3)),
    "256 px, canonical, batch 1": (256, 1, UNetConfig(), PatchGANConfig()),
}
GPU_SIZES = {
    "256 px, canonical, batch 16": (256, 16, UNetConfig(), PatchGANConfig()),
    "256 px, canonical, batch 64": (256, 64, UNetConfig(), PatchGANConfig()),
}


def plain(task: Pix2Pix, batches: Batches) -> Callable[[int], None]:
    """The step that a tutorial would write: no precision, no averages, no records."""
    generator, discriminator = task.generator, task.discriminator
    assert discriminator is not None
    players = (generator, discriminator)
    first, second = (torch.optim.Adam(p.parameters(), 2e-4, (0.5, 0.999)) for p in players)

    def step(number: int) -> None:
        batch = batches[number]
        source = task.inputs[0].enter(batch["label"])
        true = batch["image"]
        made = generator(source)
        real = discriminator(source, true)[0][0]
        fake = discriminator(source, made.detach())[0][0]
        second.zero_grad()
        (0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())).backward()
        second.step()
        first.zero_grad()
        fake = discriminator(source, made)[0][0]
        (F.softplus(-fake).mean() + 100 * F.l1_loss(made, true)).backward()
        first.step()

    return step


def milliseconds(step: Callable[[int], None], device: str, steps: int) -> float:
    """Time of a step: the best of three rounds, since neighbours disturb the others."""
    rounds = []
    for start in range(0, 4 * steps, steps):
        if device == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        for number in range(start, start + steps):
            step(number)
        if device == "cuda":
            torch.cuda.synchronize()
        rounds.append((time.perf_counter() - begin) / steps * 1000)
    return min(rounds[1:])  # the first one warms up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()
    gpu = options.device == "cuda"
    variants = {"Trainer, fp32": TrainingConfig()}
    if gpu:
        variants["Trainer, bf16"] = TrainingConfig(precision="bf16")
        variants["Trainer, bf16, compiled"] = TrainingConfig(precision="bf16", compile=True)
    print(f"{'one step':<30}{'plain':>12}" + "".join(f"{name:>26}" for name in variants))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ((image, label),) = toytown.write(ToytownConfig(to=folder / "town", size=1024))
        for title, (size, batch_size, generator, opponent) in (GPU_SIZES if gpu else SIZES).items():
            store = tiling.tile(
                TilingConfig((str(image),), folder / f"{title}.tiles", (str(label),), size=size)
            )
            tiles = store.split(SplitConfig(validation=0, test=0)).train
            spec = describe(store, tiles, ScalingConfig())
            batches = Batches(
                store, tiles, spec, batch_size=batch_size, device=options.device, resident=gpu
            )
            config = Pix2PixConfig(generator=generator, discriminator=opponent)
            task = Pix2Pix(config, spec).to(options.device).train()
            base = milliseconds(plain(task, batches), options.device, options.steps)
            line = f"{title:<30}{base:9.1f} ms"
            for training in variants.values():
                training = dataclasses.replace(training, batch_size=batch_size)
                trainer = Trainer(
                    Pix2Pix(config, spec), batches, training, folder, device=options.device
                )
                run = lambda number, t=trainer, b=batches: t.train_step(b[number])  # noqa: E731
                spent = milliseconds(run, options.device, options.steps)
                line += f"{spent:15.1f} ms, {base / spent:4.2f} x"
            print(line, flush=True)


if __name__ == "__main__":
    main()
