"""Make the stored results that the book quotes: one training for each setting and seed.

    python benchmarks/evidence.py             make what is missing, the oldest gaps first
    python benchmarks/evidence.py --status    list what there is, and what is older than its code
    python benchmarks/evidence.py --gpu       the real configurations, on a GPU
    python benchmarks/evidence.py --only gan  only results whose name contains a word

A result is one JSON file, ``book/results/<chapter>/<name>.json``: settings, numbers on held-out
tiles, the curve, and where and from which code it came. Runs that exist are not made again, so the
script can be stopped and started at any time. Trained weights and tiles stay in ``runs/evidence``.
"""

import argparse
import ast
import dataclasses
import hashlib
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from affine import Affine
from PIL import Image
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window
from torch.nn import functional as F

import ganlab
from ganlab.clouds import thickness
from ganlab.config import (
    BalanceConfig,
    CloudLayersConfig,
    CloudsConfig,
    EncoderDecoderConfig,
    EvaluateConfig,
    FeaturesConfig,
    HoleJudgeConfig,
    HolesConfig,
    InpaintingConfig,
    PatchGANConfig,
    Pix2PixConfig,
    ScheduleConfig,
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
from ganlab.data import samples, tiling, toytown
from ganlab.data.scenes import open_scene
from ganlab.evaluation import evaluate
from ganlab.resolution import enlarge
from ganlab.training import checkpoints, load_task, train
from ganlab.training.records import panel, picture, read_metrics

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "book" / "results"
WORK = ROOT / "runs" / "evidence"

SMALL = Pix2PixConfig(
    generator=UNetConfig(width=16, depth=6), discriminator=PatchGANConfig(width=16, layers=2)
)
TRAINING = TrainingConfig(
    steps=1000,
    batch_size=8,
    log_every=50,
    sample_every=1000,
    checkpoint_every=1000,
    keep=1,
    tensorboard=False,
    split=SplitConfig(block=256, validation=0.1, test=0.25),
    device="cpu",
)


BEFORE_GROUND = {("06", "ground"), ("07", "ground"), ("13", "clear")}
"""Results (chapter, data) whose blocks were dealt by number, not yet by tiles: these stores have
blocks of unequal size. They hold, but the present split gives other tiles; remove them from here
when they are made again. All others have the same split as before, or were made again."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One result: a task on some data, from one seed."""

    chapter: str
    data: str
    setting: str
    task: Any
    training: TrainingConfig
    features: Any = "none"
    limit: int | None = None

    @property
    def name(self) -> str:
        return f"{self.data}-{self.setting}-seed{self.training.seed}"

    @property
    def path(self) -> Path:
        return RESULTS / self.chapter / f"{self.name}.json"


def chapter_04() -> Iterator[Run]:
    """What each part of pix2pix does, one change at a time."""

    def norm(kind: Any) -> Pix2PixConfig:
        return dataclasses.replace(
            SMALL,
            generator=dataclasses.replace(SMALL.generator, norm=kind),
            discriminator=dataclasses.replace(SMALL.discriminator, norm=kind),
        )

    settings = {
        "l1": dataclasses.replace(SMALL, adversarial_weight=0.0),
        "gan": SMALL,
        "l2": dataclasses.replace(SMALL, adversarial_weight=0.0, reconstruction="l2"),
        "lambda10": dataclasses.replace(SMALL, reconstruction_weight=10.0),
        "lambda25": dataclasses.replace(SMALL, reconstruction_weight=25.0),
        "batch": norm("batch"),
        "instance": norm("instance"),
        "lr10x": SMALL,
        "lr100x": SMALL,
        "lr1000x": SMALL,
        "lr10x-batch": norm("batch"),
    }
    rates = {"lr10x": 2e-3, "lr10x-batch": 2e-3, "lr100x": 2e-2, "lr1000x": 2e-1}
    once = {"lambda25", *rates}  # one seed shows what happens; they support no comparison
    for seed in range(3):
        for setting, task in settings.items():
            if seed > 0 and setting in once:
                continue
            rate = rates.get(setting, 2e-4)
            training = dataclasses.replace(
                TRAINING, seed=seed, generator_lr=rate, discriminator_lr=rate
            )
            # One sun lights the whole town: turned tiles would teach shadows on every side.
            one_sun = dataclasses.replace(training, augment=False)
            yield Run("04", "toytown", setting, task, one_sun)
            if setting in ("l1", "gan") or (seed == 0 and setting in ("l2", "lambda10")):
                yield Run("04", "sentinel2", setting, task, training)


def chapter_04_gpu() -> Iterator[Run]:
    """The canonical pair at 256 x 256, as long as it needs."""
    for setting, task in {
        "l1": Pix2PixConfig(adversarial_weight=0.0),
        "gan": Pix2PixConfig(),
    }.items():
        for seed in range(3):
            training = dataclasses.replace(
                TRAINING,
                steps=20_000,
                batch_size=16,
                sample_every=5000,
                checkpoint_every=5000,
                precision="bf16",
                compile=True,
                device="cuda",
                augment=False,
                seed=seed,
            )
            yield Run("04/gpu", "toytown256", setting, task, training)


def chapter_05() -> Iterator[Run]:
    """The same pix2pix with other patches, and with residual blocks in its generator.

    Chapter 4's setting "gan" (a field of 34) is the other side of every comparison. A residual
    U-Net of width 12 has 1.97 million parameters, the plain one of width 16 has 1.83 million; a
    step with it takes 1.31 times as long on one core, so 765 steps take the time of 1000.
    """
    residual = dataclasses.replace(
        SMALL, generator=dataclasses.replace(SMALL.generator, block="residual", width=12)
    )
    settings = {
        f"patch{field}": dataclasses.replace(
            SMALL, discriminator=dataclasses.replace(SMALL.discriminator, layers=layers)
        )
        for layers, field in {1: 16, 3: 70, 4: 142}.items()
    } | {"residual": residual, "residual-time": residual}
    for data in ("toytown", "sentinel2"):
        for seed in range(3):
            for setting, task in settings.items():
                steps = 765 if setting == "residual-time" else 1000
                training = dataclasses.replace(
                    TRAINING, seed=seed, steps=steps, sample_every=steps, checkpoint_every=steps
                )
                one_sun = dataclasses.replace(training, augment=False)
                yield Run("05", data, setting, task, one_sun if data == "toytown" else training)


FILL = InpaintingConfig(
    holes=HolesConfig(kinds=("polygon", "cloud"), coverage=(0.2, 0.5)),
    generator=EncoderDecoderConfig(width=16),
    discriminator=HoleJudgeConfig(width=32, layers=2, norm="instance"),
    fill="harmonic",
    residual=True,
    noise=True,
    adversarial_weight=1.0,
    hole_weight=20.0,
)
REAL_CLOUDS = HolesConfig(
    kinds=("file",),
    coverage=(0.2, 0.5),
    files=(Path("runs/evidence/clouds/landsat8-quality.tif"),),
    read_as="landsat_pre",
)
FEATURES = "efficientnet-lite0"


def _fills(chapter: str, setting: str, task: Any, steps: int, seeds: int = 3) -> Iterator[Run]:
    """On the invented town, and on real ground with the shapes of real clouds."""
    for seed in range(seeds):
        training = dataclasses.replace(
            TRAINING,
            steps=steps,
            sample_every=steps,
            checkpoint_every=steps,
            seed=seed,
            discriminator_lr=8e-4,
        )
        one_sun = dataclasses.replace(training, augment=False)
        yield Run(chapter, "toytown", setting, task, one_sun, FEATURES)
        real = dataclasses.replace(task, holes=REAL_CLOUDS, hole_weight=30.0)
        yield Run(chapter, "ground", setting, real, training, FEATURES)


def chapter_06() -> Iterator[Run]:
    """One stage: with a discriminator, and without."""
    yield from _fills("06", "gan", FILL, 800)
    yield from _fills("06", "l1", dataclasses.replace(FILL, adversarial_weight=0.0), 800, seeds=1)


def chapter_07() -> Iterator[Run]:
    """Two stages, the second around self-attention."""
    settings = {f.name: getattr(FILL, f.name) for f in dataclasses.fields(FILL)}
    settings |= {
        "generator": EncoderDecoderConfig(width=8),
        "refinement": EncoderDecoderConfig(width=16),
    }
    yield from _fills("07", "gan", TwoStageConfig(**settings), 800)


CLEAR = CloudLayersConfig(generator=UNetConfig(width=16, depth=5, up="resize", dropout=0.0))
REAL_LAYERS = CloudsConfig(
    coverage=(0.1, 0.5),
    thickness=(0.7, 1.0),
    white=(7000.0,),
    files=(Path("runs/evidence/clouds/landsat8-cirrus.tif"),),
)

SPECTRAL_CLOUDS = CloudsConfig(
    white=(9500, 10500, 10500, 12500, 13000, 13500, 13500, 13500, 14000, 8000, 250, 11000, 9000)
)
"""Reflectance x 10,000 of thick low cloud in the bands of Sentinel-2, as real ones have it: next
to none in B10, which only high clouds reach. A cloud white in all bands is read off from B10, and
what was learned from it finds no real cloud."""


def _short(data: str, seed: int, steps: int, **more: Any) -> TrainingConfig:
    """A training of so many steps; on the invented town without turns, because of its one sun."""
    ends = {"steps": steps, "sample_every": steps, "checkpoint_every": steps, "seed": seed}
    return dataclasses.replace(TRAINING, augment=data != "toytown", **ends, **more)


def chapter_08() -> Iterator[Run]:
    """Cloud layers: the loss after covering, the order, the distance, an opponent; real clouds."""
    settings = {
        "joint": CLEAR,
        "bare": dataclasses.replace(CLEAR, compare="bare"),
        "sequential": dataclasses.replace(CLEAR, order="sequential"),
        # One network with as many weights as the two of "sequential", 3 % more.
        "wide": dataclasses.replace(
            CLEAR, generator=dataclasses.replace(CLEAR.generator, width=23)
        ),
        "real": dataclasses.replace(CLEAR, clouds=REAL_LAYERS),
        "spectrum": dataclasses.replace(CLEAR, clouds=SPECTRAL_CLOUDS),
        "l2": dataclasses.replace(CLEAR, reconstruction="l2"),
        "gan": dataclasses.replace(
            CLEAR, adversarial_weight=1.0, discriminator=PatchGANConfig(width=16, layers=2)
        ),
    }
    which = {
        "ground": ("joint", "real", "bare", "sequential", "wide"),
        "toytown": ("joint", "bare", "sequential", "l2", "gan", "wide"),
        "spectral": ("spectrum",),
    }
    for seed in range(3):
        for data, names in which.items():
            for name in names:
                training = _short(data, seed, 800, generator_lr=5e-4)
                yield Run("08", data, name, settings[name], training)


CODED = VAEConfig(generator=VAENetworkConfig(latent=16, width=24, depth=3))
BALANCES: tuple[Any, ...] = ("fixed", "derived", "uncertainty", "gradnorm", "adaptive")
DEARER = 1.09
"""A step of a balance that compares gradients, as a multiple of the others' in processor time (and
in operations, 1.09 for the game and 1.07 for two stages): it gets fewer steps by that factor."""


def chapter_09() -> Iterator[Run]:
    """Balances: of an autoencoder around the derived one, of a game, and of two stages.

    Networks learn from crops of 32 pixels and are tested on whole tiles. The game is chapter 4's
    with one halving less, the two stages are chapter 7's, half as wide.
    """
    coded = {
        "beta1": CODED,
        # Half the sum of squares + KL: noise as large as half the range of the data.
        "unit": dataclasses.replace(CODED, scale="fixed", fixed_scale=1.0),
        "beta0.01": dataclasses.replace(CODED, beta=0.01),
        "beta100": dataclasses.replace(CODED, beta=100.0),
        "beta10": dataclasses.replace(CODED, beta=10.0),
        "beta0.1": dataclasses.replace(CODED, beta=0.1),
    }
    game = dataclasses.replace(SMALL, generator=UNetConfig(width=16, depth=5))
    settings = {f.name: getattr(FILL, f.name) for f in dataclasses.fields(FILL)}
    narrow = EncoderDecoderConfig(width=8)
    stages = TwoStageConfig(**settings | {"generator": narrow, "refinement": narrow})
    for seed in range(3):
        for name, task in coded.items():
            training = _short("toytown", seed, 800, generator_lr=2e-3, crop=32)
            if name in ("beta10", "beta0.1") and seed > 0:
                continue  # one seed shows that they lie between
            yield Run("09", "toytown", name, task, training, FEATURES, limit=64)
        for title, chosen, steps, more in (
            ("game", game, 400, {}),
            ("stages", stages, 200, {"batch_size": 4, "discriminator_lr": 8e-4}),
        ):
            for kind in BALANCES:
                dear = kind in ("gradnorm", "adaptive")
                training = _short(
                    "toytown",
                    seed,
                    round(steps / DEARER) if dear else steps,
                    balance=BalanceConfig(kind=kind),
                    crop=32,
                    **more,
                )
                yield Run("09", "toytown", f"{title}-{kind}", chosen, training, limit=64)


def chapter_10() -> Iterator[Run]:
    """Perceptual and style terms in pix2pix, beside chapter 4's setting "gan" (here with KID).

    No weight is searched for. With each, to one digit, the term pulls as hard at the last layer as
    L1 does with its 100: the median of steps 20, 40 and 60 of seed 0 (``gradients_every=20``).
    "labels" is what seed 001 describes: the distance of a classifier's answers in place of L1.
    """
    answers = FeaturesConfig(layers=("logits",))
    settings = {
        "perceptual": dataclasses.replace(SMALL, perceptual_weight=4.0),
        "gan": SMALL,
        "random": dataclasses.replace(
            SMALL, perceptual_weight=20.0, features=FeaturesConfig(weights="random")
        ),
        "labels": dataclasses.replace(
            SMALL, reconstruction_weight=0.0, perceptual_weight=3.0, features=answers
        ),
        "style": dataclasses.replace(SMALL, style_weight=20.0),
    }
    for setting, task in settings.items():
        for seed in range(1 if setting == "labels" else 3):
            yield Run("10", "toytown", setting, task, _short("toytown", seed, 1000), FEATURES)


FINER = SuperResolutionConfig(
    generator=UNetConfig(width=16, depth=4, up="resize", dropout=0.0),
    discriminator=PatchGANConfig(width=16, layers=2),
    adversarial_weight=1.0,
    reconstruction_weight=30.0,
)


def chapter_13() -> Iterator[Run]:
    """Super-resolution: with and without opponent, its other signals, and how to enlarge."""
    alone = dataclasses.replace(FINER, adversarial_weight=0.0)
    bounded = dataclasses.replace(alone, residual=False)
    settings = {
        "l1": alone,
        "gan": FINER,
        "matching": dataclasses.replace(alone, matching_weight=30.0),
        "similarity": dataclasses.replace(alone, similarity_weight=3.0),
        "fade": dataclasses.replace(
            FINER, reconstruction_schedule=ScheduleConfig("fade_out", 0.5, 0.8)
        ),
        "subpixel": bounded,
        "resize": dataclasses.replace(bounded, enlarge="resize"),
        "transposed": dataclasses.replace(bounded, enlarge="transposed"),
        "autoencoder": dataclasses.replace(bounded, factor=1),
        "factor4": dataclasses.replace(alone, factor=4),
    }
    pan = {"image": "fine", "coarse": "image"}
    for seed in range(3):
        for data in ("toytown", "ground", "landsat"):
            for name, task in settings.items():
                if data != "toytown" and name not in ("l1", "gan"):
                    continue
                chosen = dataclasses.replace(task, **pan) if data == "landsat" else task
                training = _short(data, seed, 800, generator_lr=1e-3)
                yield Run("13", data, name, chosen, training)
        for name in ("l1", "gan"):
            training = _short("clear", seed, 800, generator_lr=1e-3)
            # The clear part of the scene is small.
            small = SplitConfig(block=96, validation=0.1, test=0.3)
            chosen = dataclasses.replace(settings[name], **pan)
            yield Run("13", "clear", name, chosen, dataclasses.replace(training, split=small))


GUARDS = {
    "r1": StabilizersConfig(penalties=("r1",), penalty_weight=1.0),
    "spectral-norm": StabilizersConfig(spectral="normalization"),
    "spectral-reg": StabilizersConfig(spectral="regularization", spectral_weight=0.01),
    "replay": StabilizersConfig(replay=64),
    "history": StabilizersConfig(history=0.1),
    "gate-ratio": StabilizersConfig(gate="loss_ratio"),
    "critic": StabilizersConfig(critic=2),
    "deviation": StabilizersConfig(diversity="deviation"),
    "discrimination": StabilizersConfig(diversity="discrimination"),
    "noise": StabilizersConfig(instance_noise=0.2),
    "smoothing": StabilizersConfig(smoothing=0.1),
}
"""One stabilizer at a time, at the weights of its paper where that has one."""

POLYGONS = dataclasses.replace(
    FILL,
    holes=HolesConfig(kinds=("polygon",), coverage=(0.2, 0.5)),
    generator=EncoderDecoderConfig(width=8),
    discriminator=HoleJudgeConfig(width=16, layers=2, norm="instance"),
)
STAGES = TwoStageConfig(
    **{f.name: getattr(POLYGONS, f.name) for f in dataclasses.fields(POLYGONS)},
    refinement=EncoderDecoderConfig(width=8),
)


def _guarded(
    setting: str, task: Any, training: TrainingConfig, names: Sequence[str], more: dict[str, Any]
) -> Iterator[Run]:
    """A system as it is, with some of the stabilizers, with other games, with its own tricks."""
    tasks = {
        "base": task,
        "wasserstein": dataclasses.replace(task, adversarial="wasserstein"),
        "wgan-gp": dataclasses.replace(task, adversarial="wasserstein"),
        "relativistic": dataclasses.replace(task, adversarial="relativistic"),
    }
    trainings = {
        "wgan-gp": dataclasses.replace(
            training, stabilizers=StabilizersConfig(penalties=("wgan_gp",), penalty_weight=10.0)
        ),
        "two-rates": dataclasses.replace(training, discriminator_lr=4 * training.discriminator_lr),
        "no-ema": dataclasses.replace(training, ema=0.0),
    } | {name: dataclasses.replace(training, stabilizers=chosen) for name, chosen in GUARDS.items()}
    for name in ("base", *names, *more):
        changed = {**tasks, **more}.get(name, task)
        used = trainings.get(name, training)
        yield Run("11", "toytown", f"{setting}-{name}", changed, used, limit=96)


def chapter_11() -> Iterator[Run]:
    """Stabilizers and tricks, one at a time, in the three systems that name them.

    Many short trainings on crops of 32 x 32 pixels, measured on whole tiles of 64: enough to see
    what feeds a game and what calms it, not what it leads to. With 300 steps the games over holes
    ended where the generator had not answered yet.
    """
    instance = dataclasses.replace(
        SMALL, discriminator=dataclasses.replace(SMALL.discriminator, norm="instance")
    )
    judge = STAGES.discriminator

    def judged(**changes: Any) -> TwoStageConfig:
        return dataclasses.replace(STAGES, discriminator=dataclasses.replace(judge, **changes))

    stages = {
        "attention": judged(attention=True),
        "judge64": judged(width=64),
        "judge-channel": judged(norm="channel"),
        "mask-0": dataclasses.replace(STAGES, fill="constant", residual=False),
        "mask-1": dataclasses.replace(STAGES, fill="constant", fill_value=1.0, residual=False),
    }
    holes = {
        "global": dataclasses.replace(
            POLYGONS, discriminator=dataclasses.replace(POLYGONS.discriminator, local="none")
        ),
        "vanilla": dataclasses.replace(POLYGONS, adversarial="vanilla"),
        "least-squares": dataclasses.replace(POLYGONS, adversarial="least_squares"),
    }
    finer = {
        "matching": dataclasses.replace(FINER, matching_weight=30.0),
        "similarity": dataclasses.replace(FINER, similarity_weight=3.0),
        "fade": dataclasses.replace(
            FINER, reconstruction_schedule=ScheduleConfig("fade_out", 0.5, 0.8)
        ),
    }
    for seed in range(3):
        short = _short("toytown", seed, 1000, generator_lr=1e-3, crop=32)
        names = ("wgan-gp", "wasserstein", "relativistic", "two-rates", "no-ema", *GUARDS)
        yield from _guarded("finer", FINER, short, names, finer)
        fill = _short("toytown", seed, 1000, discriminator_lr=8e-4, crop=32)
        names = ("wgan-gp", "wasserstein", "replay", "gate-ratio")
        yield from _guarded("holes", POLYGONS, fill, names, holes)
        fill = dataclasses.replace(fill, steps=800, sample_every=800, checkpoint_every=800)
        names = ("wasserstein", "r1", "spectral-norm", "spectral-reg")
        yield from _guarded("stages", STAGES, fill, names, stages)
        one_sun = dataclasses.replace(TRAINING, seed=seed, augment=False)
        yield Run("11", "toytown", "map-judge-instance", instance, one_sun)


def all_runs(gpu: bool = False) -> list[Run]:
    """Every run of the book."""
    chapters = (
        [chapter_04_gpu()]
        if gpu
        else [
            chapter_04(),
            chapter_05(),
            chapter_06(),
            chapter_07(),
            chapter_08(),
            chapter_09(),
            chapter_10(),
            chapter_11(),
            chapter_13(),
        ]
    )
    return list(chain(*chapters))


def tiles(data: str) -> Path:
    """The tile store of one data set, made at the first call."""
    store = WORK / f"{data}-tiles"
    if store.exists():
        return store
    scenes = WORK / f"{data}-scenes"
    shutil.rmtree(scenes, ignore_errors=True)
    if data == "sentinel2":
        image, label = samples.write_samples(scenes)
        config = TilingConfig(
            images=(str(image),),
            labels=(str(label),),
            to=store,
            size=64,
            bands=("red", "green", "blue"),
        )
    elif data == "ground":
        config = TilingConfig(images=(str(_ground(scenes)),), to=store, size=64, nodata=0)
    elif data == "spectral":
        config = TilingConfig(images=(str(_spectral(scenes)),), to=store, size=64)
    elif data == "landsat":
        bands, sharp = _landsat(scenes)
        config = TilingConfig(images=(str(bands),), fine=(str(sharp),), to=store, size=32)
    elif data == "clear":
        bands, sharp = _landsat(scenes, clear=True)
        config = TilingConfig(
            images=(str(bands),), fine=(str(sharp),), to=store, size=32, stride=16, nodata=0
        )
    else:
        large = data == "toytown256"
        pairs = toytown.write(ToytownConfig(to=scenes, scenes=16 if large else 4, size=2048))
        config = TilingConfig(
            images=tuple(str(image) for image, _ in pairs),
            labels=tuple(str(label) for _, label in pairs),
            to=store,
            size=256 if large else 64,
            scale=1.0 if large else 0.5,
        )
    tiling.tile(config)
    return store


def _ground(folder: Path) -> Path:
    """The Sentinel-2 scene with its water missing, so that mostly land remains, four bands."""
    image, label = samples.write_samples(folder)
    with rasterio.open(image, "r+") as scene, rasterio.open(label) as classes:
        pixels = scene.read()
        pixels[:, classes.read(1) == samples.CLASSES.index("water")] = 0
        scene.write(pixels)
    return image


def _spectral(folder: Path) -> Path:
    """All 13 bands of the Sentinel-2 scene at 20 m: means of finer, repeats of coarser pixels."""
    scene, path = samples.sentinel2(), folder / "sentinel2-13.tif"
    with rasterio.open(scene.files("B11")[0]) as middle:
        crs, transform, shape = middle.crs, middle.transform, (middle.height, middle.width)
    bands = []
    for band in scene.bands:
        how = Resampling.average if band.resolution < 20 else Resampling.nearest
        with rasterio.open(band.path) as file:
            grid = {"transform": transform, "width": shape[1], "height": shape[0]}
            with WarpedVRT(file, crs=crs, resampling=how, **grid) as warped:
                bands.append(warped.read(1))
    folder.mkdir(parents=True, exist_ok=True)
    names = tuple(band.name for band in scene.bands)
    toytown.write_geotiff(path, np.stack(bands), crs, transform, names)
    return path


def _landsat(folder: Path, clear: bool = False) -> tuple[Path, Path]:
    """Red, green and blue of the Landsat 8 scene on a 30 m grid in which the 15 m pixels nest.

    The panchromatic pixels are truth and stay as they are. Their grid starts half of one of them
    beside that of the bands, which therefore are shifted by a quarter of their own pixel (cubic).

    The bands look one after the other and from slightly different places, so a high cloud stands
    beside itself: in this scene by up to two pixels. With ``clear``, pixels of the bands are
    missing within 100 m of cloud, down to a reflectance of 0.004 in the cirrus band.
    """
    scene, paths = samples.landsat8(), (folder / "bands.tif", folder / "panchromatic.tif")
    folder.mkdir(parents=True, exist_ok=True)
    with rasterio.open(scene.files("B8")[0]) as file:
        height, width = file.height // 2 * 2, file.width // 2 * 2
        sharp = file.read(window=Window(0, 0, width, height))
        crs, fine = file.crs, file.transform
    coarse = fine * Affine.scale(2)
    grid = {"transform": coarse, "width": width // 2, "height": height // 2}
    bands = []
    for name in scene.files("B4", "B3", "B2"):
        with (
            rasterio.open(name) as file,
            WarpedVRT(file, crs=crs, resampling=Resampling.cubic, **grid) as warped,
        ):
            bands.append(warped.read(1))
    if clear:
        cirrus, _ = open_scene(scene.files("B9")).read(Window(0, 0, width // 2, height // 2))
        cloud = F.max_pool2d(torch.from_numpy(cirrus > 5200).float(), 7, 1, 3)[0] > 0
        bands = [np.where(cloud, 0, band) for band in bands]
    toytown.write_geotiff(paths[0], np.stack(bands), crs, coarse, ("red", "green", "blue"))
    toytown.write_geotiff(paths[1], sharp, crs, fine, ("panchromatic",))
    return paths


def clouds(root: Path = ROOT) -> None:
    """Two layers of the cloudy Landsat 8 scene at 10 m, where settings look for them.

    The quality band, and the alpha of thin cloud from the cirrus band, made smooth.
    """
    quality, cirrus = (root / config.files[0] for config in (REAL_CLOUDS, REAL_LAYERS))
    for path, band in ((quality, "BQA"), (cirrus, "B9")):
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        scene = open_scene(samples.landsat8().files(band))
        stored, _ = scene.read(Window(0, 0, scene.grid.width, scene.grid.height))
        fine, grid = stored.repeat(3, 1).repeat(3, 2), scene.grid.scaled(3)
        if band == "B9":
            alpha = thickness(torch.from_numpy(stored.astype(np.float32)))
            fine = enlarge(alpha[None], 3, "bilinear")[0].clamp(0, 1).numpy()
        toytown.write_geotiff(path, fine, grid.crs, grid.transform, (band,))


def make(run: Run) -> dict[str, Any]:
    """Train and measure one run, and store its result."""
    folder = WORK / run.chapter / run.name
    clouds()
    os.chdir(ROOT)  # settings name files from here
    shutil.rmtree(folder, ignore_errors=True)
    begin = time.perf_counter()
    train(run.task, tiles(run.data), folder, run.training)
    trained = time.perf_counter() - begin
    if not (folder / "checkpoints" / checkpoints.name(run.training.steps)).exists():
        raise SystemExit(f"{run.name} was interrupted; nothing is stored of it")
    device = "cuda" if run.training.device == "cuda" else "cpu"
    numbers = folder / "numbers.json"
    evaluate(
        EvaluateConfig(
            run=folder,
            split="test",
            device=device,
            features=run.features,
            limit=run.limit,
            to=numbers,
        )
    )
    measured = json.loads(numbers.read_text())
    result = {
        "experiment": run.chapter,
        "data": run.data,
        "setting": run.setting,
        "seed": run.training.seed,
        "steps": run.training.steps,
        "tiles": measured["tiles"],
        "rows": measured["rows"],
        "intervals": measured.get("intervals", {}),
        "curve": read_metrics(folder),
        "provenance": {
            "task": to_dict(run.task),
            "training": to_dict(run.training),
            **provenance(trained, device),
        },
    }
    write(run.path, result)
    panels = sorted((folder / "samples").glob("*.png"))
    if panels and run.training.seed == 0:
        shutil.copy(panels[-1], run.path.with_suffix(".png"))
        _imagined(folder, run.path.with_name(f"{run.name}-samples.png"))
    return result


def _imagined(folder: Path, path: Path) -> None:
    """Four samples as a picture, of a task that makes images from noise."""
    task = load_task(folder, device="cpu")
    made = task.imagine({"valid": torch.ones(4, 1, 64, 64)}, 0)
    if made is not None:
        rows = [[image] for image in picture(task.outputs[0], made)]
        Image.fromarray(panel(rows)).save(path)


def provenance(seconds: float, device: str = "cpu") -> dict[str, Any]:
    """From which code, where, and in what time a result comes."""
    return {
        "code": _code(),
        "commit": _git("rev-parse", "--short", "HEAD"),
        "versions": {
            "ganlab": ganlab.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "hardware": _hardware(device),
        "threads": torch.get_num_threads(),
        "seconds": round(seconds, 1),
    }


def write(path: Path, result: dict[str, Any], indent: int | None = 1) -> None:
    """Store a result at once: a killed process leaves the old one or the new one, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=indent) + "\n")
    os.replace(temporary, path)


def _code(part: str = "") -> str:
    """Fingerprint of the library (or one folder of it): a result with another one is older.

    Of the syntax tree without docstrings, so that better words make no result old.
    """
    digest = hashlib.sha256()
    for file in sorted((ROOT / "ganlab" / "src" / "ganlab" / part).rglob("*.py")):
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list):
                node.body = [n for n in body if not _is_text(n)]  # type: ignore[attr-defined]
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _git(*arguments: str) -> str:
    answer = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return answer.stdout.strip() or "unknown"


def _hardware(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {os.cpu_count()} cores"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gpu", action="store_true", help="the real configurations, on a GPU")
    parser.add_argument("--status", action="store_true", help="list, make nothing")
    parser.add_argument("--only", default="", help="only names that contain this")
    options = parser.parse_args()
    runs = [r for r in all_runs(options.gpu) if options.only in f"{r.chapter}/{r.name}"]
    code = _code()
    for run in runs:
        state = "missing"
        if run.path.exists():
            made_by = json.loads(run.path.read_text())["provenance"]["code"]
            state = "there" if made_by == code else "older than the library"
            if (run.chapter, run.data) in BEFORE_GROUND:
                state = "of an earlier split"
        if state == "missing" and not options.status:
            result = make(run)
            rows = result["rows"]["model"].items()
            numbers = {name: round(value, 4) for name, value in rows if value is not None}
            state = f"made in {result['provenance']['seconds']} s: {numbers}"
        print(f"{run.chapter}/{run.name}: {state}", flush=True)


if __name__ == "__main__":
    main()
