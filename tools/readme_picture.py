"""Make the picture of the README: train on two towns, apply to a third, lay the three beside it."""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
from PIL import Image

from ganlab.config import (
    ApplyConfig,
    PatchGANConfig,
    Pix2PixConfig,
    TilingConfig,
    ToytownConfig,
    TrainingConfig,
    UNetConfig,
)
from ganlab.data import tiling, toytown
from ganlab.inference import apply
from ganlab.plotting import classes, rgb
from ganlab.training import train

PICTURE = Path(__file__).resolve().parents[1] / "book" / "figures" / "readme.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--to", type=Path, default=PICTURE)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pairs = toytown.write(
            ToytownConfig(to=folder / "towns", scenes=2, size=1536, resolution=0.5)
        )
        ((photo, label),) = toytown.write(
            ToytownConfig(to=folder / "next", size=512, resolution=0.5, seed=11)
        )
        tiling.tile(
            TilingConfig(
                images=tuple(str(image) for image, _ in pairs),
                labels=tuple(str(labels) for _, labels in pairs),
                to=folder / "tiles",
                size=64,
                stride=48,
            )
        )
        task = Pix2PixConfig(
            generator=UNetConfig(width=24, depth=5, norm="instance", up="resize"),
            discriminator=PatchGANConfig(width=24, layers=2, norm="instance"),
            reconstruction_weight=25.0,
        )
        training = TrainingConfig(
            steps=options.steps, augment=False, generator_lr=5e-4, ema=0.99, sample_every=0
        )
        begin = time.perf_counter()
        run = train(task, folder / "tiles", folder / "run", training)
        minutes = (time.perf_counter() - begin) / 60
        made = folder / "made.tif"
        apply(ApplyConfig(run=run, scene=str(label), to=made, window=256))
        pictures = []
        for path in (label, made, photo):
            with rasterio.open(path) as file:
                pixels = file.read()[:, 60:440, 60:440]
            pictures.append(classes(pixels, range(5)) if len(pixels) == 1 else rgb(pixels))
        gap = np.ones((380, 8, 3))
        row = np.hstack([pictures[0], gap, pictures[1], gap, pictures[2]])
        options.to.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((row * 255).round().astype(np.uint8)).save(options.to, optimize=True)
        print(f"{options.to.name}: {options.steps} steps in {minutes:.1f} minutes")


if __name__ == "__main__":
    main()
