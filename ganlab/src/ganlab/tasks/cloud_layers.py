"""Thin cloud and the ground below it, parted by a U-Net with one output more than bands."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ganlab import clouds, masks
from ganlab.config import CloudLayersConfig
from ganlab.data.batches import Batch, DataSpec
from ganlab.data.store import Source
from ganlab.errors import InputError
from ganlab.losses import adversarial, reconstruction
from ganlab.losses.adversarial import Verdict
from ganlab.losses.balance import FixedBalance
from ganlab.networks.patchgan import PatchGAN
from ganlab.networks.splitter import CloudSplitter
from ganlab.randomness import draws
from ganlab.tasks.base import Arrays, Field, Task, Tensors, image_field, measured, read_layer

ALPHA = Field(Source("alpha", "alpha", "float32", ("alpha",)), None)
CLOUDY = "cloudy"
COLOUR, SHADOW = "colour", "shadow"
THIN = (0.05, 0.75)
"""Alpha of cloud that one can see through: above the second number little is left (seed of the
task: "harder than 75 % cannot be recovered"); below the first there is nothing to do."""


class CloudLayers(Task):
    """Lays clouds over clear tiles, and learns to take them off again.

    The ground is compared after the *true* cloud is laid over what was made and over what was
    there: where the cloud is opaque both are the cloud, and what cannot be known costs nothing.
    Anywhere else an error counts by the share of the ground that was visible.
    """

    config_type = CloudLayersConfig
    config: CloudLayersConfig
    generator: CloudSplitter
    keeps = True
    dark: Tensor
    white: Tensor

    def __init__(self, config: CloudLayersConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        reserved = (ALPHA.name, CLOUDY, COLOUR, SHADOW)
        self.image, scaling = image_field(spec, config.image, reserved)
        bands, white = self.image.channels, config.clouds.white
        if len(white) not in (0, 1, bands):
            raise InputError(
                f"clouds: {len(white)} values of white for {bands} bands; give 1 or all"
            )
        (least, most), (thin, thick) = config.clouds.coverage, config.clouds.thickness
        if not (0 < least <= most < 1 and 0 <= thin <= thick <= 1):
            raise InputError(
                f"clouds: coverage ({least}, {most}) and thickness ({thin}, {thick}); expected "
                "0 < low <= high < 1 and 0 <= low <= high <= 1"
            )
        given = replace(self.image, source=replace(self.image.source, name=CLOUDY))
        self.inputs, self.outputs = (given,), (self.image, ALPHA)
        self.generator = CloudSplitter(
            bands, order=config.order, residual=config.residual, **vars(config.generator)
        )
        self.stride = self.generator.stride
        if config.adversarial_weight > 0:
            self.discriminator = PatchGAN(bands + 1, **vars(config.discriminator))
        noise = reconstruction.NOISES[config.reconstruction]
        self.likelihoods = {"ground": noise, "alpha": noise}
        self._game = adversarial.LOSSES[config.adversarial]
        self._distance = reconstruction.DISTANCES[config.reconstruction]
        self._bank: masks.Bank | None = None
        # No light, and the brightest cloud, in network units.
        low, high = np.array(scaling.low), np.array(scaling.high)
        scaled = (2 * np.array(white) - low - high) / (high - low) if white else 0.9 + 0 * low
        for name, values in (("dark", scaling.dark), ("white", scaled)):
            tensor = torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)
            self.register_buffer(name, tensor, persistent=False)

    def prepare(self, batch: Batch) -> Batch:
        """Add ``cloudy`` and what it was made of: ``alpha``, ``colour`` and ``shadow``."""
        ground = batch[self.image.name]
        alpha, shadow, colour = self._clouds(batch["key"], *ground.shape[-2:])
        colour = colour + self.white
        cloudy = clouds.cover(clouds.shade(ground, shadow, self.dark), alpha, colour)
        return batch | {CLOUDY: cloudy, ALPHA.name: alpha, SHADOW: shadow, COLOUR: colour}

    def _clouds(self, keys: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """Alpha, shadow, and by how much the clouds differ from white."""
        config, bands = self.config.clouds, self.image.channels
        drawn = draws(keys, "cloud layer", 2 + bands)
        ranges = zip((config.coverage, config.thickness), drawn.unbind(1)[:2], strict=True)
        coverage, thickness = (low + (high - low) * share for (low, high), share in ranges)
        if config.files:
            if self._bank is None:
                self._bank = masks.Bank([self._read(str(path)) for path in config.files])
            alpha = self._bank.cut(keys, height, width, coverage) * thickness.view(-1, 1, 1, 1)
            return alpha, torch.zeros_like(alpha), -config.tint * drawn[:, 2:, None, None]
        layer = clouds.clouds(
            keys,
            height,
            width,
            coverage=coverage,
            thickness=thickness,
            softness=config.softness,
            darkness=config.darkness,
            bands=bands,
            white=0.0,
            tint=config.tint,
        )
        return layer.alpha, layer.shadow, layer.colour

    def generate(self, batch: Batch) -> Tensors:
        ground, alpha = self.generator(measured(batch[CLOUDY], batch["valid"]))
        return {self.image.name: ground, ALPHA.name: alpha}

    def parts(self, batch: Batch) -> dict[str, Tensor | None]:
        alpha, (low, high) = batch[ALPHA.name], THIN
        thin = ((alpha > low) & (alpha <= high)).float()
        return {"thin": thin, "clear": (alpha <= low).float(), "": None}

    def judged(self, batch: Batch, out: Tensors) -> tuple[Tensor, Tensor, Tensor]:
        seen = (batch[ALPHA.name], *self._compared(batch, out))
        alpha, fake, real = (measured(image, batch["valid"]) for image in seen)
        return alpha, real, fake

    def generator_losses(self, batch: Batch, out: Tensors, verdict: Verdict | None) -> Tensors:
        valid, (made, true) = batch["valid"], self._compared(batch, out)
        terms = {
            "ground": self._distance(made, true, valid).mean(),
            "alpha": self._distance(out[ALPHA.name], batch[ALPHA.name], valid).mean(),
        }
        if verdict is not None:
            terms["adversarial"] = verdict.generator_term(self._game)
        return terms

    def discriminator_losses(self, batch: Batch, out: Tensors, verdict: Verdict) -> Tensors:
        return {"adversarial": verdict.discriminator_term(self._game)}

    def balances(self, steps: int) -> tuple[FixedBalance, FixedBalance]:
        config = self.config
        weights = {name: getattr(config, f"{name}_weight") for name in ("ground", "alpha")}
        weights["adversarial"] = config.adversarial_weight
        return FixedBalance(weights), FixedBalance({"adversarial": config.discriminator_factor})

    @property
    def beyond(self) -> Tensor:
        """Clouds are far brighter than the ground, and colder."""
        return self.white

    @property
    def last_layer(self) -> Tensor:
        return self.generator.last_layer.weight

    def compose(self, inputs: Arrays, outputs: Mapping[str, Tensor]) -> dict[str, Any]:
        """Pixels with less than ``clear`` of cloud come back bit for bit."""
        name, stored, alpha = self.image.name, inputs[CLOUDY], ALPHA.leave(outputs[ALPHA.name])
        source = replace(self.image.source, dtype=stored.dtype.name)
        made = replace(self.image, source=source).leave(outputs[name])
        return {name: np.where(alpha < self.config.clear, stored, made), ALPHA.name: alpha}

    def _compared(self, batch: Batch, out: Tensors) -> tuple[Tensor, Tensor]:
        """Made and true ground as the loss sees them."""
        made, true = out[self.image.name], batch[self.image.name]
        if self.config.compare == "bare":
            return made, true
        shaded = (clouds.shade(ground, batch[SHADOW], self.dark) for ground in (made, true))
        made, true = (clouds.cover(g, batch[ALPHA.name], batch[COLOUR]) for g in shaded)
        return made, true

    def _read(self, path: str) -> Tensor:
        stored, valid = read_layer(path)
        alpha = np.where(valid, stored, 0)
        if alpha.dtype.kind != "f" or alpha.min() < 0 or alpha.max() > 1:
            raise InputError(
                f"{path} holds {stored.dtype} from {alpha.min()} to {alpha.max()}; alpha is a "
                "float from 0 to 1 (ganlab.clouds.thickness makes it from a cirrus or thermal band)"
            )
        return torch.from_numpy(alpha.astype(np.float32))
