"""Finer pixels from coarse ones: reconstruction first, the game as polish (StackGAN's idea)."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ganlab.config import SuperResolutionConfig
from ganlab.data.batches import Batch, DataSpec
from ganlab.errors import InputError
from ganlab.losses import adversarial, features, reconstruction
from ganlab.losses.adversarial import Verdict
from ganlab.losses.balance import FixedBalance
from ganlab.networks.patchgan import PatchGAN
from ganlab.networks.super_resolver import SuperResolver
from ganlab.resolution import enlarge, sensor
from ganlab.tasks.base import Field, Task, Tensors, field, fitted, image_field, measured

COARSE = "coarse"


class SuperResolution(Task):
    """A coarse image is enlarged; what the enlargement lacks is learned.

    The coarse image is a source of its own, on whose grid the fine one is nested, or is made from
    the fine one as a coarser sensor would have measured it. In both cases ``valid`` counts coarse
    pixels, after ``prepare``.
    """

    config_type = SuperResolutionConfig
    config: SuperResolutionConfig
    generator: SuperResolver

    def __init__(self, config: SuperResolutionConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        fine, coarse = self._fields()
        self.inputs, self.outputs, self.scale = (coarse,), (fine,), config.factor
        self.generator = SuperResolver(
            coarse.channels,
            fine.channels,
            factor=config.factor,
            last=config.enlarge,
            residual=config.residual,
            **vars(config.generator),
        )
        self.stride = self.generator.stride
        played = ("adversarial", "matching", "similarity")
        if any(getattr(config, f"{name}_weight") > 0 for name in played):
            judged = fine.channels + config.conditional * coarse.channels
            self.discriminator = PatchGAN(judged, **vars(config.discriminator))
        coupled = features.feature_matching in features.BATCH_COUPLED
        self.batch_coupled = coupled and config.matching_weight > 0
        self.likelihoods = {config.reconstruction: reconstruction.NOISES[config.reconstruction]}
        self._game = adversarial.LOSSES[config.adversarial]

    def _fields(self) -> tuple[Field, Field]:
        """What is made and what it is made from."""
        config, spec = self.config, self.spec
        if config.coarse is None:
            fine, scaling = image_field(spec, config.image, (COARSE,))
            return fine, Field(replace(fine.source, name=COARSE), scaling)
        coarse, _ = image_field(spec, config.coarse, ())
        fine = field(spec, config.image)
        if fine.scaling is None or fine.source.factor != config.factor:
            raise InputError(
                f"{config.image!r} has {fine.source.factor} pixels along one of {config.coarse!r}, "
                f"expected an image with factor {config.factor}: set --factor, or tile finer "
                "rasters with --fine"
            )
        return fine, coarse

    @property
    def pixel_size(self) -> float | None:
        here = self.spec.pixel_size
        return here * self.scale if here and self.config.coarse is None else here

    def prepare(self, batch: Batch) -> Batch:
        """Add ``coarse``, where the tiles have none, and make ``valid`` that of its pixels."""
        config, factor = self.config, self.scale
        if config.coarse is not None:
            return batch
        fine, chosen = batch[self.outputs[0].name], config.sensor
        coarse = sensor(fine, batch["key"], factor, blur=chosen.blur, noise=chosen.noise)
        whole = 1 - F.max_pool2d(1 - batch["valid"], factor)
        # As in a scene: what is not measured holds the mean of its band.
        scaling, nothing = self.spec.scalings[config.image], torch.zeros_like(whole)
        mean = scaling.encode(torch.zeros_like(coarse), nothing)
        return batch | {COARSE: torch.where(whole > 0, coarse, mean), "valid": whole}

    def generate(self, batch: Batch) -> Tensors:
        # Not multiplied by valid: beside gaps the enlargement would fade into zeros.
        return {self.outputs[0].name: self.generator(batch[self.inputs[0].name])}

    def judged(self, batch: Batch, out: Tensors) -> tuple[Tensor | None, Tensor, Tensor]:
        name, valid = self.outputs[0].name, batch["valid"]
        condition = None
        if self.config.conditional:
            condition = enlarge(measured(batch[self.inputs[0].name], valid), self.scale)
        return condition, measured(batch[name], valid), measured(out[name], valid)

    def generator_losses(self, batch: Batch, out: Tensors, verdict: Verdict | None) -> Tensors:
        config, made = self.config, out[self.outputs[0].name]
        true, valid = batch[self.outputs[0].name], fitted(batch["valid"], made)
        name: str = config.reconstruction
        terms = {name: reconstruction.DISTANCES[name](made, true, valid).mean()}
        if verdict is None:
            return terms
        if config.adversarial_weight > 0:
            terms["adversarial"] = verdict.generator_term(self._game)
        layers = config.feature_layers
        if config.matching_weight > 0:
            terms["matching"] = features.feature_matching(verdict.fake, verdict.real, layers)
        if config.similarity_weight > 0:
            similarity = features.learned_similarity(verdict.fake, verdict.real, layers)
            terms["similarity"] = similarity.mean()
        return terms

    def discriminator_losses(self, batch: Batch, out: Tensors, verdict: Verdict) -> Tensors:
        return {"adversarial": verdict.discriminator_term(self._game)}

    def balances(self, steps: int) -> tuple[FixedBalance, FixedBalance]:
        config, name = self.config, self.config.reconstruction
        weights = {name: config.reconstruction_weight, "adversarial": config.adversarial_weight}
        weights |= {"matching": config.matching_weight, "similarity": config.similarity_weight}
        generator = FixedBalance(weights, {name: config.reconstruction_schedule}, steps)
        return generator, FixedBalance({"adversarial": config.discriminator_factor})

    @property
    def last_layer(self) -> Tensor:
        return self.generator.last_layer.weight
