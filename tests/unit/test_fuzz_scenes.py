"""Damaged rasters: tiled as far as their format lets damage pass, or refused in one line.

A TIFF has no redundancy in its header and, uncompressed or by LZW, none in its pixels, so other
numbers may come out. What may not come: another exception, a hang, or more memory than pixels take.
"""

import resource
import shutil
import signal
import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from damage import result_or_refusal, spoil
from rasterio.transform import from_origin

from ganlab.config import TilingConfig
from ganlab.data.tiling import tile

QUICK, SLOW = 12, 250
SECONDS = 60
"""One damaged file takes a fraction of a second; what takes so long hangs."""
MEMORY = 3 * 2**30
"""Bytes of address space beyond those in use, far above what 48 x 48 pixels need."""
KINDS = ("none", "lzw", "deflate", "png", "vrt", "label")


def write(path, pixels, **options):
    profile = {"width": 48, "height": 48, "count": len(pixels), "dtype": pixels.dtype}
    profile |= {"crs": "EPSG:32633", "transform": from_origin(500_000, 5_000_000, 1, 1)}
    with rasterio.open(path, "w", **profile | options) as file:
        file.write(pixels)
    return path


@pytest.fixture(scope="module")
def rasters(tmp_path_factory):
    """A file of each kind, none of them damaged."""
    folder = tmp_path_factory.mktemp("rasters")
    rng = np.random.default_rng(0)
    image = rng.integers(0, 4000, (3, 48, 48)).astype(np.uint16)
    paths = {}
    for kind in ("none", "lzw", "deflate"):
        options = {"driver": "GTiff", "compress": kind, "tiled": True}
        options |= {"blockxsize": 16, "blockysize": 16, "nodata": 0}
        paths[kind] = write(folder / f"{kind}.tif", image, **options)
    paths["png"] = write(folder / "p.png", (image // 16).astype(np.uint8), driver="PNG")
    paths["vrt"] = folder / "v.vrt"
    rasterio.shutil.copy(paths["none"], paths["vrt"], driver="VRT")
    label = rng.integers(0, 3, (1, 48, 48)).astype(np.uint8)
    paths["label"] = write(folder / "label.tif", label, driver="GTiff", compress="lzw")
    return paths


def tiled(kind, rasters, folder):
    """Tile the one file that is damaged, with an image beside it if it is a label."""
    images = rasters["none"] if kind == "label" else folder / rasters[kind].name
    labels = (str(folder / rasters[kind].name),) if kind == "label" else ()
    config = TilingConfig((str(images),), folder / "tiles", labels, size=16, ungeoreferenced=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        store = tile(config)
    pixels = [store.read(name, np.arange(len(store))) for name in (*store.sources, "valid")]
    return [part.shape for part in pixels]


def stop(number, frame):
    raise TimeoutError(f"still at work after {SECONDS} s")


@pytest.fixture
def bounded():
    """Little time and little memory for each test."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    used = pages * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    handler = signal.signal(signal.SIGALRM, stop)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, handler)
    resource.setrlimit(resource.RLIMIT_AS, before)


def meet_damage(kind, rasters, tmp_path, seeds):
    whole = rasters[kind].read_bytes()
    for seed in seeds:
        words, damaged = spoil(whole, np.random.default_rng(seed))
        folder = tmp_path / f"{kind}-{seed}"
        folder.mkdir()
        (folder / rasters["none"].name).write_bytes(rasters["none"].read_bytes())
        (folder / rasters[kind].name).write_bytes(damaged)
        signal.alarm(SECONDS)
        try:
            result_or_refusal(lambda folder=folder: tiled(kind, rasters, folder))
        except BaseException as error:
            error.add_note(f"{kind}, seed {seed}: {words}")
            raise
        shutil.rmtree(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_rasters_are_tiled_or_refused(kind, rasters, tmp_path, bounded):
    meet_damage(kind, rasters, tmp_path, range(QUICK))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_damaged_rasters_are_tiled_or_refused(kind, rasters, tmp_path, bounded):
    meet_damage(kind, rasters, tmp_path, range(QUICK, SLOW))
