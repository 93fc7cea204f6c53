"""The five systems that the book began with, once more: the command line on real scenes.

    python benchmarks/systems.py                make what is missing, then print the table
    python benchmarks/systems.py --only 002     one system, made anew
    python benchmarks/systems.py --quick        ten steps each, nothing stored: does it all run?

Each system has the losses, the balance and the stabilizers that its authors name, all at once, in
networks and trainings small enough for a minute of one CPU core: it shows that they work together,
and what comes out; it is no contest. Every training is a command in a process of its own, then it
is looked at by ``ganlab doctor``, evaluated, applied to a whole scene, and evaluated once more:
the two must agree to the last digit. Scenes are read from the folder that ``GANLAB_REAL_DATA``
names; results go to ``book/results/systems/real/<system>.json``.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from affine import Affine
from evidence import ROOT, provenance, write
from rasterio.enums import Resampling

from ganlab.clouds import thickness

RESULTS = ROOT / "book" / "results" / "systems" / "real"
GANLAB = Path(sys.executable).with_name("ganlab")
INTERRUPTED = 130
SEED = 0
TILES = 48
"""At most so many held-out tiles are measured."""

USUAL = "--device cpu --tensorboard False --sample-every 0 --keep 1"
"""What all trainings have in common."""


@dataclass
class Workplace:
    """A temporary folder with one system in it, and what was noted about it.

    Attributes:
        folder: where the commands run.
        data: the real scenes.
        steps: at most so many steps for each training; None for as many as it names.
    """

    folder: Path
    data: Path
    steps: int | None = None
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    checks: dict[str, bool] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    numbers: dict[str, float] = field(default_factory=dict)

    def ganlab(self, line: str, interrupt_after: int | None = None) -> str:
        """One command as it is typed; with ``interrupt_after``, Ctrl-C at that step."""
        words = [str(GANLAB), *shlex.split(line)]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(words, cwd=self.folder, text=True, **pipes) as process:
            if interrupt_after is not None:
                run = self.folder / words[words.index("--to") + 1]
                _wait(process, run / "metrics.jsonl", interrupt_after)
                process.send_signal(signal.SIGINT)
            out, err = process.communicate()
        expected = 0 if interrupt_after is None else INTERRUPTED
        if process.returncode != expected:
            raise SystemExit(f"ganlab {line}\nended with {process.returncode}: {out}{err}")
        self.said += err.splitlines()
        print(f"  ganlab {' '.join(words[1:3])} ...", flush=True)
        return out

    def train(self, name: str, task: str, options: str, steps: int, stop: bool = False) -> None:
        """Train, with one Ctrl-C and ``resume`` if asked for; then see what the monitor says."""
        steps, run = min(steps, self.steps or steps), self.folder / name
        every = max(steps // 20, 1)
        line = f"train {task} --to {name} --steps {steps} --seed {SEED} --log-every {every} "
        line += f"{USUAL} {options}"
        begin = time.perf_counter()
        self.ganlab(line, interrupt_after=2 * every if stop else None)
        if stop:
            reached = int(_only((run / "checkpoints").iterdir()).stem.split("-")[1])
            self.ganlab(f"resume --run {name}")
            at = [json.loads(text)["step"] for text in _whole(run / "metrics.jsonl")]
            self.checks[f"{name}: interrupted before the end"] = 0 < reached < steps
            self.checks[f"{name}: one line for each step"] = at == sorted(set(at))
        seconds = time.perf_counter() - begin
        config = json.loads((run / "config.json").read_text())
        found = self.ganlab(f"doctor --run {name}").splitlines()
        self.runs[name] = {
            "command": f"ganlab {line}",
            "task": config["task"],
            "settings": config["settings"],
            "training": config["training"],
            "seconds": round(seconds, 1),
            "doctor": [text for text in found if not text.startswith("  ")],
            "last": json.loads(_whole(run / "metrics.jsonl")[-1]),
        }

    def measure(self, name: str, again: bool = False) -> None:
        """Held-out numbers; the second time they must be what they were."""
        to = self.folder / name / ("again.json" if again else "numbers.json")
        self.ganlab(f"evaluate --run {name} --device cpu --limit {TILES} --to {to}")
        numbers = json.loads(to.read_text())
        if again:
            same = numbers == self.runs[name]["evaluation"]
            self.checks[f"{name}: evaluated twice, the same"] = same
        else:
            self.runs[name]["evaluation"] = numbers

    def apply(self, name: str, scene: Path, to: str, options: str = "") -> Path:
        """A whole scene through the model."""
        self.ganlab(f"apply --run {name} --scene {scene} --to {to} --device cpu {options}")
        return self.folder / to

    def check(self, made: Path, like: Path, dtype: str | None = None) -> None:
        """Same CRS, transform, size, nodata and type as another raster; finite."""
        with rasterio.open(made) as one, rasterio.open(like) as other:
            name = made.name
            self.checks[f"{name}: CRS"] = one.crs == other.crs
            self.checks[f"{name}: transform"] = one.transform == other.transform
            self.checks[f"{name}: size"] = one.shape == other.shape
            self.checks[f"{name}: type"] = one.dtypes[0] == (dtype or other.dtypes[0])
            self.checks[f"{name}: nodata"] = dtype is not None or one.nodata == other.nodata
            pixels = one.read()
            self.checks[f"{name}: finite"] = bool(np.isfinite(pixels).all())
            varied = pixels.reshape(len(pixels), -1).std(1) > 0
            self.checks[f"{name}: not blank"] = bool(varied.any())

    def kept(self, made: Path, scene: Path, known: np.ndarray, bands: Any = None) -> None:
        """Known pixels, if there are any, come back bit for bit, and not all others do."""
        new, old = _read(made), _read(scene, bands)
        same = (new == old).all(0)
        if known.any():
            self.checks[f"{made.name}: known pixels bit for bit"] = bool(same[known].all())
        self.checks[f"{made.name}: others made"] = not bool(same[~known].all())


def _wait(process: subprocess.Popen[str], metrics: Path, step: int) -> None:
    """Until a step is logged."""
    while process.poll() is None:
        if metrics.exists() and any(json.loads(t)["step"] >= step for t in _whole(metrics)):
            return
        time.sleep(0.1)


def _whole(path: Path) -> list[str]:
    """The finished lines of a file that is being written."""
    return path.read_text().split("\n")[:-1]


def _only(found: Any) -> Path:
    (path,) = found
    return Path(path)


def _read(path: Path, bands: Any = None) -> np.ndarray:
    with rasterio.open(path) as file:
        return np.asarray(file.read(bands))


def coarser(path: Path, to: Path, factor: int, how: Resampling = Resampling.average) -> Path:
    """A raster with pixels ``factor`` times as wide, over the part that divides evenly."""
    with rasterio.open(path) as file:
        height, width = file.height // factor, file.width // factor
        window = rasterio.windows.Window(0, 0, width * factor, height * factor)
        pixels = file.read(window=window, out_shape=(file.count, height, width), resampling=how)
        profile = {"crs": file.crs, "dtype": file.dtypes[0], "nodata": file.nodata}
        place = file.transform @ Affine.scale(factor)
    size = {"count": len(pixels), "height": height, "width": width, "transform": place}
    size["photometric"] = "minisblack"  # otherwise the fourth of four byte bands is transparency
    with rasterio.open(to, "w", driver="GTiff", **profile, **size) as file:
        file.write(pixels)
    return to


def two_stage_and_vae(at: Workplace) -> None:
    """Seed 000: gated and attention stages, R1, spectral regularization, perceptual term, VAE.

    NAIP of North Dakota, four bands of 5 m, under the shapes of real Landsat clouds. Features are
    those of efficientnet-lite0 in place of VGG16-BN, whose weights have to be fetched.
    """
    scene = at.data / "geotiff" / "naip_nd_2017_4band_utm14.tif"
    quality = at.data / "geotiff" / "landsat8_cloudy_utm16" / "l8_BQA.tif"
    sky = at.folder / "sky.tif"
    with rasterio.open(scene) as file, rasterio.open(quality) as clouds:
        size = {"width": file.width, "height": file.height, "count": 1, "dtype": "uint16"}
        grid = {"crs": file.crs, "transform": file.transform}
        large = clouds.read(1).repeat(2, 0).repeat(2, 1)[: file.height, : file.width]
    with rasterio.open(sky, "w", driver="GTiff", **size, **grid) as file:
        file.write(large, 1)

    at.ganlab(f"tile --images {scene} --to tiles --size 64 --stride 32")
    split = "--tiles tiles --split.block 192 --split.validation 0.1 --split.test 0.25"
    fill = (
        f"--holes.kinds file --holes.files {quality} --holes.read-as landsat_pre "
        "--holes.coverage 0.2 0.5 --generator.width 8 --generator.dilations 2 4 "
        "--generator.norm channel --refinement.width 8 --refinement.dilations 2 4 "
        "--refinement.norm channel --discriminator.width 16 --discriminator.layers 2 "
        "--discriminator.norm channel --perceptual-weight 1 --balance.kind derived "
        "--stabilizers.penalties r1 --stabilizers.penalty-every 4 "
        "--stabilizers.spectral regularization --batch-size 4 --discriminator-lr 8e-4"
    )
    at.train("fill", "two-stage", f"{split} {fill}", 100)
    at.measure("fill")
    made = at.apply("fill", scene, "clear.tif", f"--mask {sky} --read-as landsat_pre --window 256")
    at.check(made, scene)
    known = _read(made.with_name("clear-invented.tif"))[0] == 0
    at.kept(made, scene, known)
    at.numbers["share of the scene invented"] = float((~known).mean())
    at.measure("fill", again=True)

    coder = "--generator.width 16 --generator.depth 3 --generator.latent 8 --batch-size 8"
    at.train("vae", "vae", f"{split} {coder} --generator-lr 1e-3", 250)
    at.measure("vae")
    at.check(at.apply("vae", scene, "coded.tif", "--window 256"), scene)
    at.measure("vae", again=True)


def map_to_photo(at: Workplace) -> None:
    """Seed 001: residual U-Net, instance norm, perceptual term, lambda 100, balanced.

    Footprints of Banepa, Nepal, as vectors; the drone's photo at 0.6 m.
    """
    town = at.data / "buildings" / "banepa_nepal_train"
    photo, footprints = town / "scene_rgb.tif", town / "footprints.geojson"
    options = "--size 64 --stride 32 --scale 0.25"
    at.ganlab(f"tile --images {photo} --labels {footprints} --to tiles {options}")
    task = (
        "--tiles tiles --split.block 192 --split.validation 0.1 --split.test 0.25 "
        "--generator.width 12 --generator.depth 5 --generator.block residual "
        "--generator.norm instance --generator.up resize --discriminator.width 16 "
        "--discriminator.layers 2 --discriminator.norm instance --perceptual-weight 4 "
        "--reconstruction-weight 100 --balance.kind adaptive --balance.start 0.2 --batch-size 4"
    )
    at.train("photo", "pix2pix", task, 200)
    at.measure("photo")
    like = coarser(photo, at.folder / "like.tif", 4)
    made = at.apply("photo", footprints, "made.tif", f"--like {like} --window 256")
    at.check(made, like)
    at.measure("photo", again=True)


def clouds_then_holes(at: Workplace) -> None:
    """Seed 002: cloud alpha and ground in one network; opaque cloud filled by an opponent's game.

    Red, green and blue of SEN12MS-CR. Two places to learn on, another one to be measured on, real
    thin clouds of Landsat 8 (cirrus band) over them, and a cloudy scene of the first place.
    """
    clear = sorted((at.data / "clouds" / "sen12mscr" / "clear").glob("*.tif"))
    places = [path.stem.split("_")[3] for path in clear]
    alphas = []
    for name in ("Forest_05_0415", "Urban_00_0515", "Wetlands_00_1426", "Shrubland_02_1021"):
        cirrus = _read(at.data / "clouds" / "l8biome" / "images" / f"{name}.tif", [7])
        alpha = thickness(torch.from_numpy(cirrus), clear=float(np.quantile(cirrus, 0.2)))
        alphas.append(at.folder / f"{name}-alpha.tif")
        shape = {"count": 1, "height": cirrus.shape[1], "width": cirrus.shape[2]}
        with rasterio.open(alphas[-1], "w", driver="GTiff", dtype="float32", **shape) as file:
            file.write(alpha.numpy())
    images, groups = " ".join(map(str, clear)), " ".join(places)
    options = "--size 64 --stride 32 --bands 4 3 2"
    at.ganlab(f"tile --images {images} --groups {groups} --to tiles {options}")
    split = "--tiles tiles --split.by group --split.test-groups 102 --split.validation 0"
    layers = (
        f"--clouds.files {' '.join(map(str, alphas))} --clouds.coverage 0.1 0.5 "
        "--clouds.thickness 0.7 1 --clouds.white 12500 10500 10500 --generator.width 16 "
        "--generator.depth 5 --batch-size 4 --generator-lr 5e-4"
    )
    at.train("layers", "cloud-layers", f"{split} {layers}", 250)
    at.measure("layers")
    holes = (
        "--holes.kinds polygon circle --holes.coverage 0.2 0.5 --generator.width 8 "
        "--discriminator.width 16 --discriminator.layers 2 --discriminator.local zeroed "
        "--adversarial vanilla --stabilizers.gate loss_ratio --stabilizers.replay 64 "
        "--batch-size 4 --discriminator-lr 8e-4"
    )
    at.train("fill", "inpainting", f"{split} {holes}", 120, stop=True)
    at.measure("fill")
    # One under cloud from edge to edge, and one with next to none.
    pairs = at.data / "clouds" / "sen12mscr" / "cloudy"
    haze = pairs / "ROIs1868_summer_s2_cloudy_101_p505.tif"
    cloudy = pairs / "ROIs1970_fall_s2_cloudy_136_p139.tif"
    for scene, to in ((haze, "clear.tif"), (cloudy, "ground.tif")):
        made = at.apply("layers", scene, to, "--bands 4 3 2 --fill fill --window 256")
        at.check(made, scene)
        at.check(made.with_name(f"{made.stem}-alpha.tif"), scene, dtype="float32")
        origin = _read(made.with_name(f"{made.stem}-origin.tif"))[0]
        at.kept(made, scene, origin == 0, [4, 3, 2])
        for value, name in enumerate(("its own", "seen through cloud", "invented")):
            at.numbers[f"{to}, share {name}"] = float((origin == value).mean())
    partner = next(path for path in clear if path.stem.endswith("136_p139"))
    truth, ground, before = (
        _read(path, bands).astype(float)
        for path, bands in ((partner, [4, 3, 2]), (made, None), (cloudy, [4, 3, 2]))
    )
    through = origin == 1
    for name, pixels in (("made ground", ground), ("cloudy scene", before)):
        off = np.abs(pixels - truth)[:, through].mean() if through.any() else np.nan
        at.numbers[f"reflectance off a clear day, through cloud: {name}"] = float(off / 1e4)
    at.measure("layers", again=True)
    at.measure("fill", again=True)


def canonical_both_ways(at: Workplace) -> None:
    """Seed 003: all eight levels and the 70 x 70 patches, with few filters, in both directions.

    Batch norm with the statistics of each image, dropout as noise, the discriminator's loss halved.
    Banepa again, as pairs of rasters at 0.3 m and in tiles of 256 pixels.
    """
    town = at.data / "buildings" / "banepa_nepal_train"
    photo = coarser(town / "scene_rgb.tif", at.folder / "photo.tif", 2)
    plan = coarser(town / "scene_buildings.tif", at.folder / "map.tif", 2, Resampling.mode)
    at.ganlab(f"tile --images {photo} --labels {plan} --to tiles --size 256 --stride 64")
    task = (
        "--tiles tiles --split.block 512 --split.validation 0 --split.test 0.25 "
        "--generator.width 8 --generator.depth 8 --generator.norm batch --generator.dropout 0.5 "
        "--noise --discriminator.width 8 --discriminator.layers 3 --discriminator.norm batch "
        "--adversarial vanilla --discriminator-factor 0.5 --batch-size 1"
    )
    whole = "--window 1024 --overlap 256 --batch-statistics"
    for name, direction, scene, like in (
        ("photo", "--source label --target image", plan, photo),
        ("map", "--source image --target label", photo, plan),
    ):
        at.train(f"to-{name}", "pix2pix", f"{task} {direction}", 250)
        at.measure(f"to-{name}")
        made = at.apply(f"to-{name}", scene, f"made-{name}.tif", whole)
        at.check(made, like)
        if name == "photo":
            same, other = (
                at.apply(f"to-{name}", scene, f"{name}-{seed}.tif", f"{whole} --seed {seed}")
                for seed in (0, 1)
            )
            first = _read(made)
            at.checks[f"{made.name}: one seed, one image"] = bool((_read(same) == first).all())
            at.checks[f"{made.name}: dropout is noise"] = bool((_read(other) != first).any())
        at.measure(f"to-{name}", again=True)


def finer_pixels(at: Workplace) -> None:
    """Seed 004: 64 to 128 pixels and the autoencoder, with every trick that it lists.

    NAIP of North Dakota: 10 m to 5 m; the scene is that of 2009, made coarser.
    """
    scenes = at.data / "geotiff"
    at.ganlab(
        f"tile --images {scenes / 'naip_nd_2017_4band_utm14.tif'} --to tiles --size 128 --stride 64"
    )
    task = (
        "--tiles tiles --split.block 256 --split.validation 0.1 --split.test 0.3 "
        "--generator.width 8 --generator.depth 4 --discriminator.width 16 "
        "--discriminator.layers 2 --adversarial least_squares --matching-weight 30 "
        "--reconstruction-schedule.shape fade_out --reconstruction-schedule.start 0.6 "
        "--reconstruction-schedule.stop 1 --stabilizers.diversity discrimination "
        "--stabilizers.replay 32 --stabilizers.history 0.1 --batch-size 4 --generator-lr 1e-3"
    )
    before = scenes / "naip_nd_2009_4band_utm14.tif"
    given = coarser(before, at.folder / "coarse.tif", 2)
    at.train("finer", "super-resolution", f"{task} --factor 2", 200)
    at.measure("finer")
    made = at.apply("finer", given, "finer.tif", "--window 256")
    at.check(made, before)
    at.measure("finer", again=True)
    at.train("autoencoder", "super-resolution", f"{task} --factor 1", 100)
    at.measure("autoencoder")
    at.check(at.apply("autoencoder", before, "same.tif", "--window 256"), before)
    at.measure("autoencoder", again=True)


SYSTEMS: dict[str, Callable[[Workplace], None]] = {
    "000": two_stage_and_vae,
    "001": map_to_photo,
    "002": clouds_then_holes,
    "003": canonical_both_ways,
    "004": finer_pixels,
}


def make(name: str, data: Path, steps: int | None = None) -> dict[str, Any]:
    """Run one system from scenes to scenes."""
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        at = Workplace(Path(folder), data.resolve(), steps)
        SYSTEMS[name](at)
        text = json.dumps({"runs": at.runs, "said": at.said})
        parts = json.loads(text.replace(folder, "folder").replace(str(at.data), "data"))
    runs = parts["runs"]
    return {
        "experiment": "systems",
        "data": "real",
        "setting": name,
        "about": " ".join((SYSTEMS[name].__doc__ or "").split()),
        "seed": SEED,
        "runs": runs,
        "said": parts["said"],
        "numbers": at.numbers,
        "checks": at.checks,
        "provenance": {
            "task": {run: about["settings"] for run, about in runs.items()},
            "training": {run: about["training"] for run, about in runs.items()},
            **provenance(time.perf_counter() - begin),
        },
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    """Each run beside its baselines, then what was checked and what was said.

    Intervals in brackets are those of 95 % for model minus baseline.
    """
    lines = []
    for name, result in results.items():
        for run, about in result["runs"].items():
            numbers = about["evaluation"]
            rows, between = numbers["rows"], numbers.get("intervals", {})
            metrics = list(next(iter(between.values()), None) or rows["model"])[:4]
            doctor = "; ".join(about["doctor"])
            steps = about["training"]["steps"]
            lines.append(f"{name} {run}: {steps} steps, {numbers['tiles']} tiles; doctor: {doctor}")
            lines.append(f"  {'':16}" + "".join(f"{metric:>26}" for metric in metrics))
            for method, row in rows.items():
                cells = ""
                for metric in metrics:
                    low, high = between.get(method, {}).get(metric, (None, None))
                    value = row.get(metric)
                    cell = "-" if value is None else f"{value:.3f}"
                    cell += "" if low is None else f" [{low:+.3f}, {high:+.3f}]"
                    cells += f"{cell:>26}"
                lines.append(f"  {method:16}{cells}")
        lines += [f"  {what}: {value:.4f}" for what, value in result["numbers"].items()]
        failed = [what for what, right in result["checks"].items() if not right]
        count = len(result["checks"])
        lines.append(f"  checks: {count - len(failed)} of {count}; failed: {failed or 'none'}")
        lines += [f"  said: {text}" for text in sorted(set(result["said"]))]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", choices=SYSTEMS, help="one system, made anew")
    parser.add_argument("--quick", action="store_true", help="ten steps each, nothing stored")
    options = parser.parse_args()
    data = os.environ.get("GANLAB_REAL_DATA")
    if data is None:
        print("skipped: GANLAB_REAL_DATA names no folder of real scenes")
        return
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
    results = {}
    for name in [options.only] if options.only else SYSTEMS:
        path = RESULTS / f"{name}.json"
        if options.quick or options.only or not path.exists():
            print(name, flush=True)
            results[name] = make(name, Path(data), 10 if options.quick else None)
            if not options.quick:
                write(path, results[name])
        else:
            results[name] = json.loads(path.read_text())
    print(table(results))


if __name__ == "__main__":
    main()
