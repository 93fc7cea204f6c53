"""A whole scene through a network: speed, and memory for scenes of growing size."""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
from rasterio.windows import Window

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
from ganlab.training import train


def grow(label: Path, size: int, to: Path) -> None:
    """A scene of ``size`` pixels made of copies of a smaller one, written block by block."""
    with rasterio.open(label) as file:
        block, profile = file.read(), file.profile
    profile.update(width=size, height=size)
    with rasterio.open(to, "w", **profile) as file:
        for row in range(0, size, block.shape[1]):
            for column in range(0, size, block.shape[2]):
                window = Window(
                    column, row, *np.minimum(block.shape[1:], (size - column, size - row))
                )
                file.write(block[:, : window.height, : window.width], window=window)


def measure(run: Path, scene: Path, to: Path) -> None:
    """Seconds and peak memory of one process that does nothing else."""
    begin = time.perf_counter()
    apply(ApplyConfig(run=run, scene=str(scene), to=to))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{time.perf_counter() - begin:.2f} {peak:.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 2048, 5000])
    parser.add_argument("--measure", nargs=3, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(*options.measure)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ((image, label),) = toytown.write(ToytownConfig(to=folder / "town", size=1024))
        tiling.tile(TilingConfig((str(image),), folder / "tiles", (str(label),), size=64))
        task = Pix2PixConfig(generator=UNetConfig(16, 5), discriminator=PatchGANConfig(16, 2))
        run = train(task, folder / "tiles", folder / "run", TrainingConfig(steps=1))
        print("U-Net of 16 filters and depth 5, windows of 512 with overlap 128")
        for size in options.sizes:
            scene = folder / f"scene-{size}.tif"
            grow(label, size, scene)
            answer = subprocess.check_output(
                [sys.executable, __file__, "--measure", run, scene, folder / f"made-{size}.tif"],
                text=True,
            )
            spent, peak = (float(number) for number in answer.split())
            made = size**2 * 3 / 1e6
            print(f"{size:6d} px {spent:8.1f} s {made / spent:8.2f} MB/s made {peak:8.0f} MiB peak")


if __name__ == "__main__":
    main()
