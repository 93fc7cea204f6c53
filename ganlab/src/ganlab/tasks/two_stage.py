"""A coarse painting, refined with self-attention (after CMUNet, Shao et al. 2022)."""

import torch
from torch import Tensor

from ganlab.config import TwoStageConfig
from ganlab.data.batches import Batch, DataSpec
from ganlab.losses import reconstruction
from ganlab.losses.adversarial import Verdict
from ganlab.losses.balance import FixedBalance
from ganlab.networks.encoder_decoder import TwoStage
from ganlab.tasks.base import Tensors
from ganlab.tasks.holes import HOLE, HoleTask


class TwoStageReconstruction(HoleTask):
    """The coarse stage has two distances of its own; all terms of the refined one reach it too."""

    config_type = TwoStageConfig
    config: TwoStageConfig
    generator: TwoStage

    def __init__(self, config: TwoStageConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.generator = TwoStage(
            self.image.channels,
            coarse=vars(config.generator),
            refinement=vars(config.refinement),
            residual=config.residual,
            noise=config.noise,
        )
        self.stride, self.noise = self.generator.stride, config.noise
        terms = ("hole", "valid", "coarse_hole", "coarse_valid")
        self.likelihoods = dict.fromkeys(terms, "laplace")

    def paint(self, start: Tensor, hole: Tensor, noise: Tensor | None) -> Tensors:
        coarse, refined = self.generator(start, hole, noise)
        return {"coarse": coarse, "raw": refined}

    def stages(self, batch: Batch, out: Tensors) -> Tensors:
        image = batch[self.image.name]
        return {"coarse stage": torch.where(batch[HOLE.name] > 0.5, out["coarse"], image)}

    def generator_losses(self, batch: Batch, out: Tensors, verdict: Verdict | None) -> Tensors:
        true, valid = batch[self.image.name], batch["valid"]
        hole = valid * batch[HOLE.name]
        return super().generator_losses(batch, out, verdict) | {
            "coarse_hole": reconstruction.l1(out["coarse"], true, hole).mean(),
            "coarse_valid": reconstruction.l1(out["coarse"], true, valid - hole).mean(),
        }

    def balances(self, steps: int) -> tuple[FixedBalance, FixedBalance]:
        config, (generator, discriminator) = self.config, super().balances(steps)
        coarse = {
            "coarse_hole": config.coarse_weight * config.hole_weight,
            "coarse_valid": config.coarse_weight * config.valid_weight,
        }
        return FixedBalance(generator.weights | coarse), discriminator

    @property
    def last_layer(self) -> Tensor:
        return self.generator.last_layer.weight
