"""What the tasks that fill holes share: what is taken away, what is judged, what comes back."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ganlab import baselines, clouds, masks
from ganlab.config import InpaintingConfig
from ganlab.data.batches import Batch, DataSpec
from ganlab.data.store import Source
from ganlab.errors import InputError
from ganlab.losses import adversarial, reconstruction
from ganlab.losses.adversarial import Verdict
from ganlab.losses.balance import FixedBalance
from ganlab.losses.likelihood import Noise
from ganlab.networks.patchgan import GlobalLocal
from ganlab.tasks.base import (
    NOISE,
    Arrays,
    FeatureTerms,
    Field,
    Task,
    Tensors,
    field,
    image_field,
    measured,
    read_layer,
)

HOLE = Field(Source("hole", "mask", "uint8", ("hole",)), None)
INVENTED = Field(Source("invented", "mask", "uint8", ("invented",)), None)
RESERVED = (HOLE.name, INVENTED.name, NOISE, "raw", "coarse")


class HoleTask(Task):
    """Takes pixels away, lets a generator paint them, and keeps all others as they are.

    The inputs are an image and ``hole`` (1 = missing), the outputs the image with its holes
    filled and ``invented`` (1 = made by the network).
    """

    config: InpaintingConfig
    keeps = True
    likelihoods: Mapping[str, Noise] = MappingProxyType({"hole": "laplace", "valid": "laplace"})

    def __init__(self, config: InpaintingConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.image, _ = image_field(spec, config.image, RESERVED)
        if "footprint" in config.holes.kinds:
            self._check_footprints(field(spec, config.holes.footprints).source)
        self.inputs, self.outputs = (self.image, HOLE), (self.image, INVENTED)
        if config.adversarial_weight > 0:
            judge = vars(config.discriminator)
            self.discriminator = GlobalLocal(self.image.channels, **judge)
        self._game = adversarial.LOSSES[config.adversarial]
        self._bank: masks.Bank | None = None
        self._features = FeatureTerms(self.image, config)

    @abstractmethod
    def paint(self, start: Tensor, hole: Tensor, noise: Tensor | None) -> Tensors:
        """``raw``, the last painting ``(B, C, H, W)``, and whatever else the losses need.

        Args:
            start: ``(B, C, H, W)`` the image with something in its holes.
            hole: ``(B, 1, H, W)``, 1 = not known.
            noise: ``(B, 2, H, W)`` to make texture from; drawn anew if None.
        """

    def prepare(self, batch: Batch) -> Batch:
        """Add ``hole``: drawn anew for every sample and epoch, the same in every evaluation."""
        holes, buildings = self.config.holes, None
        if "footprint" in holes.kinds:
            labels = batch[field(self.spec, holes.footprints).name]
            buildings = torch.zeros_like(batch["valid"])
            for value in holes.footprint_classes:
                buildings = torch.where(labels == value, 1.0, buildings)
        if "file" in holes.kinds and self._bank is None:
            self._bank = masks.Bank([self._read_mask(str(path)) for path in holes.files])
        height, width = batch["valid"].shape[-2:]
        hole = masks.draw(holes, batch["key"], height, width, buildings=buildings, bank=self._bank)
        return batch | {HOLE.name: hole.to(batch["valid"])}

    def generate(self, batch: Batch) -> Tensors:
        image, hole = batch[self.image.name], batch[HOLE.name]
        known = batch["valid"] * (1 - hole)
        out = self.paint(self.start(image, known), 1 - known, batch.get(NOISE))
        return {
            **out,
            self.image.name: torch.where(hole > 0.5, out["raw"], image),
            INVENTED.name: hole,
        }

    def start(self, image: Tensor, known: Tensor) -> Tensor:
        """``(B, C, H, W)`` as the network sees it: what is not known is filled as configured."""
        config, everywhere = self.config, torch.ones_like(known)
        if config.fill == "constant":
            return torch.where(known > 0, image, config.fill_value)
        fill = baselines.mean_fill if config.fill == "mean" else baselines.smooth_fill
        return fill(image, 1 - known, everywhere)

    def parts(self, batch: Batch) -> dict[str, Tensor | None]:
        hole = batch[HOLE.name]
        return {"hole": hole, "valid": 1 - hole, "": None}

    def judged(self, batch: Batch, out: Tensors) -> tuple[Tensor, Tensor, Tensor]:
        name, valid = self.image.name, batch["valid"]
        seen = (batch[HOLE.name], batch[name], out[name])
        hole, real, fake = (measured(image, valid) for image in seen)
        return hole, real, fake

    def generator_losses(self, batch: Batch, out: Tensors, verdict: Verdict | None) -> Tensors:
        config, true, valid = self.config, batch[self.image.name], batch["valid"]
        hole = valid * batch[HOLE.name]
        terms = {
            "hole": reconstruction.l1(out["raw"], true, hole),
            "valid": reconstruction.l1(out["raw"], true, valid - hole),
        }
        if config.variation_weight > 0:
            near = reconstruction.dilate(hole) * valid
            terms["variation"] = reconstruction.total_variation(out[self.image.name], near)
        # Of the raw and of the composed image (Liu et al. 2018, eqs. 3-5).
        terms |= self._features((out["raw"], out[self.image.name]), true, valid)
        terms = {name: values.mean() for name, values in terms.items()}
        if verdict is not None:
            terms["adversarial"] = verdict.generator_term(self._game)
        return terms

    def discriminator_losses(self, batch: Batch, out: Tensors, verdict: Verdict) -> Tensors:
        return {"adversarial": verdict.discriminator_term(self._game)}

    def balances(self, steps: int) -> tuple[FixedBalance, FixedBalance]:
        config = self.config
        names = ("hole", "valid", "adversarial", "variation", "perceptual", "style")
        weights = {name: getattr(config, f"{name}_weight") for name in names}
        return FixedBalance(weights), FixedBalance({"adversarial": config.discriminator_factor})

    def shown(self, batch: Batch) -> list[tuple[Field, Tensor]]:
        image = batch[self.image.name]
        return [(self.image, torch.where(batch[HOLE.name] > 0.5, 1.0, image))]

    def compose(self, inputs: Arrays, outputs: Mapping[str, Tensor]) -> dict[str, Any]:
        """Known pixels come back bit for bit; ``invented`` says which ones are not."""
        name, hole = self.image.name, inputs[HOLE.name] > 0
        # A scene's type may be wider than that of the training, and its known pixels use it.
        source = replace(self.image.source, dtype=inputs[name].dtype.name)
        made = replace(self.image, source=source).leave(outputs[name])
        image = np.where(hole, made, inputs[name])
        return {name: image, INVENTED.name: hole.astype(np.uint8)}

    def _check_footprints(self, source: Source) -> None:
        if source.kind != "label":
            raise InputError(f"{source.name!r} is an image source; footprints are classes")
        if unknown := set(self.config.holes.footprint_classes) - set(source.classes):
            raise InputError(
                f"footprints: classes {sorted(unknown)} do not occur, {source.name!r} has only "
                f"{list(source.classes)}"
            )

    def _read_mask(self, path: str) -> Tensor:
        holes, (stored, valid) = self.config.holes, read_layer(path)
        try:
            missing = clouds.missing(np.where(valid, stored, 0), holes.read_as, holes.classes)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        return torch.from_numpy(missing & valid)
