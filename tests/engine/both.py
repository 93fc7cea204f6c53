"""What two processes do together in test_processes.py; one process does the same for comparison.

Run by ``torchrun --nproc_per_node 2 both.py TILES FOLDER``.
"""

import dataclasses
import json
import math
import os
import signal
import sys
from pathlib import Path

import torch

from ganlab.config import (
    BalanceConfig,
    EncoderDecoderConfig,
    FeaturesConfig,
    HoleJudgeConfig,
    HolesConfig,
    InpaintingConfig,
    PatchGANConfig,
    Pix2PixConfig,
    ScalingConfig,
    ScheduleConfig,
    SplitConfig,
    TrainingConfig,
    TwoStageConfig,
    UNetConfig,
)
from ganlab.data.batches import Batches, describe
from ganlab.data.store import TileStore
from ganlab.errors import InputError, TrainingFailed
from ganlab.networks.attention import SelfAttention
from ganlab.tasks.inpainting import Inpainting
from ganlab.tasks.pix2pix import Pix2Pix
from ganlab.tasks.two_stage import TwoStageReconstruction
from ganlab.training import Trainer, resume, train
from ganlab.training.processes import this_process

TASK = Pix2PixConfig(
    generator=UNetConfig(width=4, depth=3, dropout=0.0),
    discriminator=PatchGANConfig(width=4, layers=1),
)
TRAINING = TrainingConfig(
    steps=20,
    batch_size=4,
    log_every=5,
    sample_every=0,
    checkpoint_every=8,
    device="cpu",
    tensorboard=False,
    split=SplitConfig(block=16),
    lr_schedule=ScheduleConfig("linear", 0.0, 1.0, 0.1),
)


SMALL = EncoderDecoderConfig(width=4, dilations=(2,))
FILLS = {
    "generator": SMALL,
    "discriminator": HoleJudgeConfig(width=4, layers=1),
    "holes": HolesConfig(kinds=("polygon", "stroke", "footprint"), coverage=(0.2, 0.5)),
    "fill": "harmonic",
    "noise": False,
    "variation_weight": 0.1,
    "perceptual_weight": 0.1,
    "style_weight": 1.0,
    "features": FeaturesConfig(weights="random", layers=("stem",)),
}


class InFloat64:
    """A task in float64, with other pixels unmeasured in every tile."""

    def __init__(self, config, spec):
        super().__init__(config, spec)
        self.double()

    def prepare(self, batch):
        fine = {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
        stripes = (batch["sample"].view(-1, 1, 1, 1) + torch.arange(16)) % 5
        fine["valid"] = (stripes > 0).double().expand_as(batch["valid"])
        return super().prepare(fine)


class Fine(InFloat64, Pix2Pix):
    """pix2pix, which one tile may poison."""

    poisoned = -1

    def generator_losses(self, batch, out, verdict):
        terms = super().generator_losses(batch, out, verdict)
        if self.poisoned in batch["sample"].tolist():
            terms["l1"] = terms["l1"] * math.nan
        return terms


class FineInpainting(InFloat64, Inpainting):
    """One stage."""


class FineTwoStage(InFloat64, TwoStageReconstruction):
    """Two stages."""

    def __init__(self, config, spec):
        super().__init__(config, spec)
        # No output depends on it, so its gradient is nothing but rounding, which Adam enlarges.
        (attention,) = (m for m in self.generator.modules() if isinstance(m, SelfAttention))
        attention.key.bias.requires_grad_(False)


TASKS = {
    "pix2pix": (Fine, TASK),
    "inpainting": (FineInpainting, InpaintingConfig(**FILLS)),
    "two_stage": (FineTwoStage, TwoStageConfig(**FILLS, refinement=SMALL)),
}


class R1:
    """The squared slope of the mean logit at real images, every fourth step."""

    name, every, weight = "r1", 4, 2.5

    def __call__(self, discriminator, condition, real, fake):
        real = real.detach().requires_grad_()
        logits = discriminator(condition, real)[0][0]
        (slope,) = torch.autograd.grad(logits.mean((1, 2, 3)).sum(), real, create_graph=True)
        return slope.square().sum((1, 2, 3)).mean() / 2


def make_trainer(tiles, folder, config=TRAINING, kind="pix2pix", poisoned=-1, on_log=None):
    """A Trainer of a fine task with a penalty, for however many processes there are."""
    state, store = this_process(), TileStore.open(tiles)
    train_tiles = store.split(config.split).train
    batches = Batches(
        store,
        train_tiles,
        describe(store, train_tiles, ScalingConfig()),
        batch_size=config.batch_size,
        rank=state.process_index,
        world=state.num_processes,
    )
    torch.manual_seed(0)
    make, settings = TASKS[kind]
    task = make(settings, batches.spec)
    task.poisoned = poisoned
    folder.mkdir(parents=True, exist_ok=True)
    return Trainer(task, batches, config, folder, penalties=[R1()], on_log=on_log)


def fine(tiles, folder, kind="pix2pix", config=TRAINING):
    """Twenty steps in float64, with a stop between two lines; returns the metric lines."""
    lines = []

    def note(step, values):
        lines.append({"step": step, **values})

    first = dataclasses.replace(config, steps=13)
    first = make_trainer(tiles, folder, first, kind, on_log=note)
    first.fit()
    second = make_trainer(tiles, folder, config, kind, on_log=note)
    second.load_state_dict(first.state_dict())
    second.fit()
    return lines


def inpainting(tiles, folder):
    """The same with holes."""
    return fine(tiles, folder, "inpainting")


def two_stage(tiles, folder):
    """The same with holes, in two stages."""
    return fine(tiles, folder, "two_stage")


def balanced(tiles, folder):
    """pix2pix with every balance that finds its weights itself, gradients measured."""
    found = {}
    for kind in ("derived", "uncertainty", "gradnorm", "adaptive"):
        balance = BalanceConfig(kind, rate=0.1)
        config = dataclasses.replace(TRAINING, balance=balance, gradients_every=2)
        found[kind] = fine(tiles, folder / kind, config=config)
    return found


def interrupted(tiles, folder):
    """Only the last process receives Ctrl-C; all stop together at the next line."""
    trainer = make_trainer(tiles, folder)
    state, step = this_process(), trainer.train_step

    def one_step(batch):
        step(batch)
        if trainer.step == 6 and state.is_last_process:
            os.kill(os.getpid(), signal.SIGINT)

    trainer.train_step = one_step
    return trainer.fit()


def failed(tiles, folder):
    """One tile is poisonous, so one process alone meets what is not finite."""
    trainer = make_trainer(tiles, folder, poisoned=10)
    try:
        trainer.fit()
    except TrainingFailed as error:
        return str(error)
    return "went well"


def refused(tiles, folder):
    """A training that expects another number of processes than there are."""
    wanted = 3 - this_process().num_processes
    try:
        train(TASK, tiles, folder, dataclasses.replace(TRAINING, processes=wanted))
    except InputError as error:
        return str(error)
    return "went well"


def ordinary(tiles, folder):
    """What the command line does: train, and resume with more steps."""
    config = dataclasses.replace(TRAINING, processes=this_process().num_processes, steps=12)
    train(TASK, tiles, folder, config)
    resume(folder, steps=20)


def all_of_it(tiles, folder):
    """Everything above, with what it returned."""
    return {
        part.__name__: part(tiles, folder / part.__name__)
        for part in (refused, fine, inpainting, two_stage, balanced, interrupted, failed, ordinary)
    }


if __name__ == "__main__":
    tiles, folder = map(Path, sys.argv[1:])
    result = all_of_it(tiles, folder)
    rank = this_process().process_index
    (folder / f"rank-{rank}.json").write_text(json.dumps(result))
