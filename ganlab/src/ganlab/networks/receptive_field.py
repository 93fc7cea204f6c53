"""What one output pixel sees: by a recurrence, by a formula, and by its gradient."""

import copy
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ganlab.errors import InputError
from ganlab.networks.attention import SelfAttention
from ganlab.networks.blocks import (
    ChannelNorm,
    MinibatchDeviation,
    MinibatchDiscrimination,
    SubPixel,
)
from ganlab.networks.gated import GatedConv, PartialConv, PlainConv

POINTWISE = (
    *(ChannelNorm, nn.GroupNorm, nn.LayerNorm, nn.modules.batchnorm._NormBase),
    *(nn.modules.dropout._DropoutNd, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.Sigmoid, nn.Tanh),
)
"""Norms, dropout and activations: nothing that connects pixels by weights."""
EVERYTHING = (SelfAttention, nn.MultiheadAttention, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
"""What connects every pixel with every other."""
PADDING = (nn.ZeroPad2d, nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d)


class Layer(NamedTuple):
    """Which pixels of its input one layer connects to a pixel of its output, along one axis.

    Downwards (convolution, pooling) output pixel y is made of the input pixels
    ``y * stride - padding + dilation * i``, upwards (transposed) input pixel x goes into the
    output pixels ``x * stride - padding + dilation * i``, i from 0 to ``kernel - 1``.
    """

    kernel: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    up: bool = False

    @property
    def reach(self) -> int:
        """From the first to the last pixel that the kernel touches."""
        return self.dilation * (self.kernel - 1)

    def seen(self, low: int, high: int) -> tuple[int, int]:
        """First and last input pixel behind the output pixels from ``low`` to ``high``."""
        if self.up:
            first = -((self.reach - self.padding - low) // self.stride)
            return first, (high + self.padding) // self.stride
        first = low * self.stride - self.padding
        return first, first + (high - low) * self.stride + self.reach


def layers(network: nn.Module) -> list[Layer]:
    """The layers of a network in the order in which they are registered.

    Convolutions, transposed ones, average and maximum pooling, padding, ``nn.Upsample`` by whole
    factors (nearest and bilinear), pixel shuffles and the library's own blocks. What is computed
    without a module (other than in the library's blocks) cannot be seen here.

    Args:
        network: one stack; of networks with several (``GlobalLocal``) give one. Where branches
            meet again (skips, residuals), the registered order must be the path that sees most;
            it is in ``UNet`` and all other networks here.

    Raises:
        InputError: self-attention or a pooling of everything, for which there is no field;
            a layer that is not square, or connects pixels in gaps or at fractions of pixels; no
            layer at all.
    """
    found = [
        layer
        for _, module in network.named_modules(remove_duplicate=False)
        for layer in _described(module)
    ]
    if not found:
        raise InputError(
            f"{type(network).__name__} has no convolution, pooling or up-sampling; a receptive "
            "field needs a stack of them"
        )
    return found


def by_recurrence(network: nn.Module) -> int:
    """Receptive field, from the first layer to the last (Araujo et al. 2019, eq. 2).

    Without up-sampling all pixels of a map see alike: each layer adds ``dilation * (kernel - 1)``
    times the product of all strides before. With up-sampling neighbours differ, and repeat after
    some pixels: so for each of them the first and the last pixel that it sees is kept.

    Args:
        network: as for ``layers``.

    Returns:
        Width in pixels, from the first to the last that one output pixel depends on; the largest
        if output pixels differ.

    Raises:
        InputError: see ``layers``.
    """
    seen, _ = _phases(network)
    return max(high - low + 1 for low, high in seen)


def by_formula(network: nn.Module) -> int:
    """Receptive field, from one output pixel back to the input.

    ``size`` pixels of a convolution's output are made of ``(size - 1) * stride + kernel`` pixels
    of its input. With up-sampling it matters where they are; all places are tried.

    Args:
        network: as for ``layers``.

    Returns:
        As ``by_recurrence``.

    Raises:
        InputError: see ``layers``.
    """
    stack = layers(network)
    widths = []
    for pixel in range(math.prod(layer.stride for layer in stack if layer.up)):
        low, high = pixel, pixel
        for layer in reversed(stack):
            low, high = layer.seen(low, high)
        widths.append(high - low + 1)
    return max(widths)


def by_gradient(
    network: nn.Module,
    channels: int,
    size: int | None = None,
    *,
    run: Callable[[nn.Module, Tensor], Any] | None = None,
) -> int:
    """Receptive field, measured: where the gradient of one output pixel is not zero.

    On a copy in float64 with positive weights, so that nothing cancels; norms, dropout and
    activations are left out and maxima become sums.

    Args:
        network: any network for which ``layers`` has an answer.
        channels: of its input; of a ``PatchGAN``, those of condition and image together.
        size: side of the image; by default the field of ``by_recurrence`` with some room.
        run: calls the copy with an image ``(1, channels, size, size)``; by default
            ``network(image)``, and ``network(None, image)`` if it takes a condition first.

    Returns:
        As ``by_recurrence``: the largest of the central output pixels, rows or columns.

    Raises:
        InputError: see ``layers``; the field reaches the image's border, where it may go on.
    """
    seen, shift = _phases(network)
    if size is None:
        room = max(high - low + 1 for low, high in seen) + 6 * shift
        size = -(-room // shift) * shift
    image = torch.full((1, channels, size, size), 1e-6, dtype=torch.float64, requires_grad=True)
    output = (run or _run)(_positive(network), image)
    while not isinstance(output, Tensor):
        output = output[0]
    small = InputError(
        f"the receptive field reaches the border of {size} x {size} pixels; give a larger size (if "
        "none suffices, the network does more than its modules show)"
    )
    if min(output.shape[2:]) < len(seen):
        raise small
    top, left = ((pixels - len(seen)) // 2 for pixels in output.shape[2:])
    fields = []
    for phase in range(len(seen)):
        pixel = output[0, :, top + phase, left + phase].sum()
        (gradient,) = torch.autograd.grad(pixel, image, retain_graph=True)
        touched = gradient[0].abs().sum(0).nonzero()
        first, last = touched.amin(0), touched.amax(0)
        if first.min() == 0 or last.max() == size - 1:
            raise small
        fields.append(int((last - first).max()) + 1)
    return max(fields)


def _phases(network: nn.Module) -> tuple[list[tuple[int, int]], int]:
    """First and last input pixel seen by each output pixel of a period, and the period's length.

    The length is in pixels of the input: so much further does the next period see.
    """
    seen, shift = [(0, 0)], 1
    for layer in layers(network):
        period, down = len(seen), 1 if layer.up else layer.stride
        turns = down // math.gcd(period, down)
        outputs = turns * period // down * (layer.stride if layer.up else 1)
        behind = [layer.seen(pixel, pixel) for pixel in range(outputs)]
        seen = [
            (
                seen[low % period][0] + low // period * shift,
                seen[high % period][1] + high // period * shift,
            )
            for low, high in behind
        ]
        shift *= turns
    return seen, shift


def _described(module: nn.Module) -> list[Layer]:
    if isinstance(module, EVERYTHING):
        raise InputError(
            f"{type(module).__name__} sees everything, so there is no receptive field (self-"
            "attention, adaptive pooling); give a network without it, or the layers before it"
        )
    if isinstance(module, GatedConv | PartialConv | PlainConv):
        return [Layer(2, 2, up=True)] if module.up else []
    if isinstance(module, nn.PixelShuffle):
        return [Layer(module.upscale_factor, module.upscale_factor, up=True)]
    if isinstance(module, nn.PixelUnshuffle):
        return [Layer(module.downscale_factor, module.downscale_factor)]
    if isinstance(module, nn.Upsample):
        return [_resampling(module)]
    if isinstance(module, PADDING):
        return [Layer(1, padding=_same(module, module.padding[::2]))]
    if not isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.AvgPool2d | nn.MaxPool2d):
        return []
    kernel, stride = _same(module, module.kernel_size), _same(module, module.stride)
    dilation = _same(module, getattr(module, "dilation", 1))
    if isinstance(module.padding, str):
        padding = dilation * (kernel - 1) // 2 if module.padding == "same" else 0
    else:
        padding = _same(module, module.padding)
    layer = Layer(kernel, stride, padding, dilation, isinstance(module, nn.ConvTranspose2d))
    if layer.up and stride > 1 and (dilation > 1 or kernel < stride):
        raise InputError(
            f"{module} leaves pixels that no or far-off inputs make; give a transposed convolution "
            "without dilation whose kernel is at least as wide as its stride"
        )
    return [layer, Layer(2, 2, up=True)] if isinstance(module, SubPixel) else [layer]


def _resampling(module: nn.Upsample) -> Layer:
    """Up-sampling as the transposed convolution that it is."""
    factor = 0.0 if module.scale_factor is None else _same(module, module.scale_factor)
    whole = int(factor)
    if whole == factor > 0 and module.mode in ("nearest", "nearest-exact"):
        return Layer(whole, whole, up=True)
    if whole == factor > 0 and module.mode == "bilinear" and not module.align_corners:
        return Layer(2 * whole - whole % 2, whole, whole // 2, up=True)
    raise InputError(
        f"{module} is not an up-sampling whose receptive field is known; give a whole scale_factor "
        "and mode nearest, or bilinear with align_corners=False"
    )


def _same(module: nn.Module, value: Any) -> Any:
    """The one number that holds along both axes."""
    values = set(value) if isinstance(value, tuple) else {value}
    if len(values) > 1:
        raise InputError(f"a receptive field is one number for square layers only, found {module}")
    return values.pop()


class _Sum(nn.Module):
    """What a maximum depends on: all pixels under its kernel."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride, padding, dilation, _ = self.layer
        weight = x.new_ones(x.shape[1], 1, kernel, kernel)
        return F.conv2d(x, weight, None, stride, padding, dilation, groups=x.shape[1])


@torch.no_grad()
def _positive(network: nn.Module) -> nn.Module:
    """A copy with positive weights, each output about a mean of its inputs, and no bias."""
    holder = nn.ModuleList([copy.deepcopy(network)]).cpu().double()
    for path, module in [*holder.named_modules(remove_duplicate=False)]:
        if isinstance(module, POINTWISE):
            holder.set_submodule(path, nn.Identity())
        elif isinstance(module, MinibatchDeviation | MinibatchDiscrimination):
            # Statistics of the batch, like those of a norm; the channels have to stay.
            holder.set_submodule(path, nn.ConstantPad3d((0, 0, 0, 0, 0, module.added), 0.0))
        elif isinstance(module, nn.MaxPool2d):
            holder.set_submodule(path, _Sum(*_described(module)))
    for weight in holder.parameters():
        weight.fill_(1 / weight[0].numel() if weight.dim() > 1 else 0)
    return holder[0].eval()


def _run(network: nn.Module, image: Tensor) -> Any:
    conditional = "condition" in inspect.signature(network.forward).parameters
    return network(None, image) if conditional else network(image)
