"""One network fills holes; the image is judged as a whole and locally (Iizuka et al. 2017)."""

from torch import Tensor

from ganlab.config import InpaintingConfig
from ganlab.data.batches import DataSpec
from ganlab.networks.encoder_decoder import HoleFiller
from ganlab.tasks.base import Tensors
from ganlab.tasks.holes import HoleTask


class Inpainting(HoleTask):
    """A gated (or partial, or plain) encoder-decoder paints what is missing."""

    config_type = InpaintingConfig
    generator: HoleFiller

    def __init__(self, config: InpaintingConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.generator = HoleFiller(
            self.image.channels,
            residual=config.residual,
            noise=config.noise,
            **vars(config.generator),
        )
        self.stride, self.noise = self.generator.stride, config.noise

    def paint(self, start: Tensor, hole: Tensor, noise: Tensor | None) -> Tensors:
        return {"raw": self.generator(start, hole, None if noise is None else noise[:, :1])}

    @property
    def last_layer(self) -> Tensor:
        return self.generator.last_layer.weight
