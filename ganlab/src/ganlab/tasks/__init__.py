"""The systems, one file each. ``TASKS`` is the list of names that a run directory may hold."""

from ganlab.tasks.base import Task
from ganlab.tasks.cloud_layers import CloudLayers
from ganlab.tasks.inpainting import Inpainting
from ganlab.tasks.pix2pix import Pix2Pix
from ganlab.tasks.super_resolution import SuperResolution
from ganlab.tasks.two_stage import TwoStageReconstruction
from ganlab.tasks.vae import GaussianVAE

TASKS: dict[str, type[Task]] = {
    "pix2pix": Pix2Pix,
    "inpainting": Inpainting,
    "two_stage": TwoStageReconstruction,
    "cloud_layers": CloudLayers,
    "super_resolution": SuperResolution,
    "vae": GaussianVAE,
}
