"""Coarser and finer: the same ground in larger or in smaller pixels.

Images are ``(B, C, H, W)``. Everything is aligned to the pixels' areas, as in GIS: the first pixel
of a coarse image covers the first ``factor`` x ``factor`` pixels of the fine one. Results are
float32 at least, can be differentiated, and are made on the device of their input without waiting
for the host.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ganlab.errors import InputError
from ganlab.randomness import draws

MODES = ("nearest", "bilinear", "bicubic")


def area(image: Tensor, factor: int) -> Tensor:
    """The mean over cells of ``factor`` x ``factor`` pixels: ``(B, C, H / factor, W / factor)``.

    What an ideal sensor with pixels of that size measures. A factor of 1 returns the image.

    Raises:
        InputError: the factor is below 1, or does not divide the image's sides.
    """
    _check(factor)
    height, width = image.shape[2:]
    if height % factor or width % factor:
        raise InputError(
            f"image of {height} x {width} pixels does not divide into cells of {factor} x {factor}"
            ": crop it, or choose tiles of a size that divides"
        )
    return image if factor == 1 else F.avg_pool2d(_wide(image), factor)


def enlarge(image: Tensor, factor: int, mode: str = "bicubic") -> Tensor:
    """Interpolated to ``factor`` times the size: ``(B, C, H * factor, W * factor)``.

    Aligned to the pixels' areas, not to their corners. A factor of 1 returns the image.

    Args:
        image: ``(B, C, H, W)``.
        factor: fine pixels along one coarse pixel.
        mode: "nearest" repeats pixels; "bilinear" is linear between their centres; "bicubic" is the
            cubic convolution of Keys (1981) with a = -0.5, the only one that is exact for
            parabolas. gdal_translate and Pillow have the same one, with the same border: weights of
            pixels outside the image are left out, and the others scaled to sum 1.

    Raises:
        InputError: the factor is below 1, or the mode unknown.
    """
    _check(factor)
    if mode not in MODES:
        raise InputError(f"enlarge by {mode!r}, expected one of {MODES}")
    if factor == 1:
        return image
    size = [side * factor for side in image.shape[2:]]
    if mode == "nearest":
        return F.interpolate(_wide(image), size, mode=mode)
    # Without antialias, torch takes a = -0.75, which overshoots more. To enlarge nothing else.
    return F.interpolate(_wide(image), size, mode=mode, antialias=mode == "bicubic")


def sensor(
    image: Tensor, keys: Tensor, factor: int, *, blur: float = 0.0, noise: float = 0.0
) -> Tensor:
    """What a sensor with coarser pixels measures: optics, pixels' areas, noise, in this order.

    Args:
        image: ``(B, C, H, W)`` fine image.
        keys: ``(B,)`` int64, from :func:`ganlab.randomness.keys`; a sample's noise depends on its
            own key only.
        factor: fine pixels along one coarse pixel; 1 leaves optics and noise.
        blur: standard deviation in *coarse* pixels of a Gaussian point-spread function, with the
            image continued at its borders by its last pixels. With the pixels' area, 0.4 to 0.5
            pass 0.3 to 0.2 of the contrast at the Nyquist frequency, as satellites do. It is
            sampled at fine pixels: of a deviation below half a fine pixel, less is left.
        noise: standard deviation of normal noise, in units of the image.

    Returns:
        ``(B, C, H / factor, W / factor)``.

    Raises:
        InputError: as for :func:`area`; blur or noise is negative or not finite.
    """
    for name, value in (("blur", blur), ("noise", noise)):
        if not 0 <= value < math.inf:
            raise InputError(f"a sensor's {name} is {value}, expected 0 or a positive number")
    x = area(_gaussian(image, blur * factor) if blur else image, factor)
    return x + noise * _normal(keys, x) if noise else x


def _gaussian(image: Tensor, deviation: float) -> Tensor:
    """Gaussian window up to four standard deviations, border pixels continued.

    Sums of shifted images, because convolutions may round to TF32 or bfloat16; product and sum
    apart, because fused ones would round differently in different places of a batch.
    """
    reach = math.ceil(4 * deviation)
    window = [math.exp(-0.5 * (d / deviation) ** 2) for d in range(-reach, reach + 1)]
    x = _wide(image)
    for axis in (2, 3):
        size, repeat = x.shape[axis], [1, 1, 1, 1]
        repeat[axis] = reach
        first, last = (x.narrow(axis, place, 1).repeat(repeat) for place in (0, size - 1))
        wider = torch.cat([first, x, last], axis)
        x = torch.zeros_like(x)
        for i, weight in enumerate(window):
            x = x + wider.narrow(axis, i, size) * (weight / sum(window))
    return x


def _normal(keys: Tensor, like: Tensor) -> Tensor:
    """Normal numbers of variance 1 in the shape of ``like`` (Box and Muller 1958)."""
    count = like[0].numel()
    half = (count + 1) // 2
    distance, turn = draws(keys, "sensor noise", 2 * half).view(-1, 2, half).unbind(1)
    radius = (-2 * torch.log(1 - distance)).sqrt()
    angle = 2 * math.pi * turn
    numbers = torch.cat([radius * angle.cos(), radius * angle.sin()], 1)[:, :count]
    return numbers.to(like.dtype).view_as(like)


def _check(factor: int) -> None:
    if factor < 1:
        raise InputError(f"a factor between resolutions is {factor}, expected at least 1")


def _wide(x: Tensor) -> Tensor:
    """At least float32: bfloat16 and integers are too coarse for sums."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
