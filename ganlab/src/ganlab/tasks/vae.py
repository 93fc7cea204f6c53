"""A Gaussian variational autoencoder on tiles: the likelihood written out, no opponent."""

import torch
from torch import Tensor

from ganlab.config import VAEConfig
from ganlab.data.batches import Batch, DataSpec
from ganlab.losses import kl, likelihood, reconstruction
from ganlab.losses.adversarial import Verdict
from ganlab.losses.balance import FixedBalance
from ganlab.networks.vae import VAE
from ganlab.tasks.base import Task, Tensors, image_field

ERRORS = {"gaussian": reconstruction.l2, "laplace": reconstruction.l1}


class GaussianVAE(Task):
    """Minimizes the negative evidence bound, in nats for each value of the image.

    Both terms are divided by the number of values, pixels times bands: so they keep their balance,
    which beta 1 leaves as it follows from Bayes' rule, and do not grow with the tile. Only valid
    pixels have a likelihood, each the same, so an image with gaps counts by what is left of it.
    """

    config_type = VAEConfig
    config: VAEConfig
    generator: VAE

    def __init__(self, config: VAEConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.image, _ = image_field(spec, config.image, ("mean", "log_variance"))
        self.inputs = self.outputs = (self.image,)
        self.generator = VAE(
            self.image.channels, learned_scale=config.scale == "learned", **vars(config.generator)
        )
        self.stride = self.generator.stride
        # The best scale is that of the batch, and free bits are those of its mean divergence. (So
        # is the number of valid pixels, but that differs little.)
        self.batch_coupled = config.scale == "optimal" or config.free > 0

    def generate(self, batch: Batch) -> Tensors:
        # Gaps hold the mean of their band.
        made, mean, log_variance = self.generator(batch[self.image.name])
        return {self.image.name: made, "mean": mean, "log_variance": log_variance}

    def numbers(self, batch: Batch, out: Tensors) -> Tensors:
        """The mean squared error, and the divergence of the code in nats for each image."""
        name = self.image.name
        error = reconstruction.l2(out[name], batch[name], batch["valid"])
        return {"MSE": error, "KL": kl.kl(out["mean"], out["log_variance"]).sum((1, 2, 3))}

    def imagine(self, batch: Batch, seed: int) -> Tensor:
        """Samples: as many images as the batch has, of its size, from nothing but noise."""
        height, width = batch["valid"].shape[-2:]
        size = [-(-side // self.stride) for side in (height, width)]
        shape = (len(batch["valid"]), self.generator.latent, *size)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        with torch.inference_mode():
            made = self.generator.decode(noise.to(batch["valid"]))
        return made[:, :, :height, :width]

    def generator_losses(self, batch: Batch, out: Tensors, verdict: Verdict | None) -> Tensors:
        config, true, valid = self.config, batch[self.image.name], batch["valid"]
        errors = ERRORS[config.noise](out[self.image.name], true, valid)
        area = valid.sum((1, 2, 3))
        error = (errors * area).sum() / area.sum().clamp(min=1)
        nats = kl.kl(out["mean"], out["log_variance"])
        values = area.mean().clamp(min=1) * true.shape[1]
        fit = likelihood.negative_log_likelihood(error, self._scale(error), config.noise)
        return {"likelihood": fit, "kl": kl.free_bits(nats, config.free) / values}

    def _scale(self, error: Tensor) -> Tensor | float:
        log_scale = self.generator.log_scale
        if log_scale is not None:
            return log_scale.exp()
        if self.config.scale == "optimal":
            return likelihood.best_scale(error, self.config.noise)
        return self.config.fixed_scale

    def balances(self, steps: int) -> tuple[FixedBalance, None]:
        weights = {"likelihood": 1.0, "kl": self.config.beta}
        return FixedBalance(weights, {"kl": self.config.warm_up}, steps), None

    @property
    def last_layer(self) -> Tensor:
        return self.generator.last_layer.weight
