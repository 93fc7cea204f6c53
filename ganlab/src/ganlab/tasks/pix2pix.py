"""Paired image-to-image translation (Isola et al. 2017): a map becomes a photo, or back."""

from torch import Tensor

from ganlab.config import Pix2PixConfig
from ganlab.data.batches import Batch, DataSpec
from ganlab.losses import adversarial, reconstruction
from ganlab.losses.adversarial import Verdict
from ganlab.losses.balance import FixedBalance
from ganlab.networks.patchgan import PatchGAN
from ganlab.networks.unet import UNet
from ganlab.tasks.base import FeatureTerms, Task, Tensors, field, measured


class Pix2Pix(Task):
    """A U-Net makes the target from the source; a PatchGAN judges (source, target) pairs."""

    config_type = Pix2PixConfig
    config: Pix2PixConfig
    generator: UNet

    def __init__(self, config: Pix2PixConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        source, target = field(spec, config.source), field(spec, config.target)
        self.inputs, self.outputs = (source,), (target,)
        self.generator = UNet(source.channels, target.channels, **vars(config.generator))
        self.generator.keep_dropout(config.noise)
        self.stride, self.noise = self.generator.stride, config.noise
        if config.adversarial_weight > 0:
            judged = source.channels + target.channels
            self.discriminator = PatchGAN(judged, **vars(config.discriminator))
        self.likelihoods = {config.reconstruction: reconstruction.NOISES[config.reconstruction]}
        self._game = adversarial.LOSSES[config.adversarial]
        self._features = FeatureTerms(target, config)

    def generate(self, batch: Batch) -> Tensors:
        source = self.inputs[0].enter(batch[self.inputs[0].name])
        return {self.outputs[0].name: self.generator(measured(source, batch["valid"]))}

    def judged(self, batch: Batch, out: Tensors) -> tuple[Tensor, Tensor, Tensor]:
        source, target, valid = self.inputs[0], self.outputs[0], batch["valid"]
        condition, real = source.enter(batch[source.name]), target.enter(batch[target.name])
        return measured(condition, valid), measured(real, valid), measured(out[target.name], valid)

    def generator_losses(self, batch: Batch, out: Tensors, verdict: Verdict | None) -> Tensors:
        target, valid = self.outputs[0], batch["valid"]
        name: str = self.config.reconstruction
        made, true = out[target.name], target.enter(batch[target.name])
        terms = {name: reconstruction.DISTANCES[name](made, true, valid)}
        terms |= self._features((made,), true, valid)
        terms = {name: values.mean() for name, values in terms.items()}
        if verdict is not None:
            terms["adversarial"] = verdict.generator_term(self._game)
        return terms

    def discriminator_losses(self, batch: Batch, out: Tensors, verdict: Verdict) -> Tensors:
        return {"adversarial": verdict.discriminator_term(self._game)}

    def balances(self, steps: int) -> tuple[FixedBalance, FixedBalance]:
        config, name = self.config, self.config.reconstruction
        weights = {
            name: config.reconstruction_weight,
            "adversarial": config.adversarial_weight,
            "perceptual": config.perceptual_weight,
            "style": config.style_weight,
        }
        generator = FixedBalance(weights, {name: config.reconstruction_schedule}, steps)
        return generator, FixedBalance({"adversarial": config.discriminator_factor})

    @property
    def last_layer(self) -> Tensor:
        return self.generator.last_layer.weight
