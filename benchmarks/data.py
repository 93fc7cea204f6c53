"""Tiling, and reading tiles against decoding the scene in every epoch (seed 001's discovery)."""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rasterio
import torch

from ganlab.config import ScalingConfig, SplitConfig, TilingConfig, ToytownConfig
from ganlab.data import tiling, toytown
from ganlab.data.batches import Batches, describe
from ganlab.data.scenes import open_labels, open_scene, windows


def seconds(work: Callable[[], object], repeat: int = 3) -> float:
    """The best of some repetitions: the others were disturbed."""
    times = []
    for _ in range(repeat):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=4096, help="width of the scene in pixels")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ((image, label),) = toytown.write(ToytownConfig(to=folder / "town", size=options.size))
        config = TilingConfig(images=(str(image),), labels=(str(label),), to=folder / "tiles")
        pixels = options.size**2 * 4 / 1e6
        begin = time.perf_counter()
        store = tiling.tile(config)
        tiled = time.perf_counter() - begin
        split = store.split(SplitConfig(validation=0, test=0))
        spec = describe(store, split.train, ScalingConfig())
        batches = Batches(store, split.train, spec, batch_size=8)
        resident = Batches(store, split.train, spec, batch_size=8, resident=True)
        steps = len(split.train) // 8

        def decode() -> None:
            """What a data set class does that opens the scene for every tile it returns."""
            for window in windows(options.size, options.size, 256, 256, "shift"):
                scene = open_scene(image)
                picture, valid = scene.read(window)
                classes, _ = open_labels(label, scene.grid).read(window)
                tensor = torch.from_numpy(picture.astype(np.float32) / 127.5 - 1)
                tensor.mul_(torch.from_numpy(valid)), torch.from_numpy(classes.astype(np.int64))

        def whole() -> None:
            """What seed 001 began with: the whole scene is decoded for one crop of it."""
            with rasterio.open(image) as file:
                file.read()

        rows = {
            "tiling": (tiled, pixels / tiled, "MB/s of decoded scene"),
            "epoch, tiles decoded from the scene": (seconds(decode), 1.0, "ratio"),
        }
        base = rows["epoch, tiles decoded from the scene"][0]

        def read() -> None:
            """The same pixels from the store, neither augmented nor scaled."""
            for number in range(len(store)):
                for source in ("image", "label", "valid"):
                    store.read(source, np.array([number]))

        spent = seconds(read)
        rows["epoch, tile store, reading alone"] = (spent, base / spent, "times faster")
        for title, source in {"tile store": batches, "resident tiles": resident}.items():
            spent = seconds(lambda source=source: [source[i] for i in range(steps)])  # type: ignore[misc]
            rows[f"epoch, {title}"] = (spent, base / spent, "times faster, augmented and scaled")
        spent = seconds(whole, 1) * len(split.train)
        rows["epoch, whole scene decoded for each tile"] = (spent, base / spent, "times faster")
        for title, (spent, value, unit) in rows.items():
            print(f"{title:<42}{spent:9.2f} s {value:9.1f} {unit}")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{'peak memory of the process':<42}{peak:9.0f} MiB")


if __name__ == "__main__":
    main()
