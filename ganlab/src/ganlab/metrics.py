"""How good is an image? Pixelwise metrics, and texture statistics that need no correspondence.

Images are ``(B, C, H, W)`` in any linear units; ``valid`` and ``mask`` are ``(B, 1, H, W)``, and a
pixel counts where both are 1. What stands elsewhere never matters, not even NaN. A sample without
a countable pixel gets NaN: average with ``nanmean``. Everything runs on the device of its input
without waiting for the host.

L1, PSNR and SSIM compare pixel with pixel, and so prefer a blurred image to a sharp one that is
slightly displaced. Spectrum and gradient histogram ask instead whether the texture is as rich as in
truth. They are distributions: averaged over a data set first and compared then, they are steadier
than a mean of distances between single tiles, and ``Texture`` does that. ``Seam`` asks whether one
sees where a hole was, ``checkerboard`` whether one sees how an image was enlarged, ``consistency``
whether it still is what it was enlarged from.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ganlab.errors import InputError
from ganlab.resolution import area


def l1(image: Tensor, truth: Tensor, valid: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean absolute difference over bands and counted pixels, in the units of the images: ``(B,)``.

    Args:
        image: ``(B, C, H, W)``.
        truth: ``(B, C, H, W)``.
        valid: ``(B, 1, H, W)``, 1 = measured.
        mask: ``(B, 1, H, W)``, 1 = to be counted (a hole, say); all pixels if None.
    """
    return _mean((_wide(image) - _wide(truth)).abs(), _counted(valid, mask))


def psnr(
    image: Tensor, truth: Tensor, valid: Tensor, mask: Tensor | None = None, *, data_range: float
) -> Tensor:
    """Peak signal-to-noise ratio in decibel, ``10 log10(data_range**2 / mean square)``: ``(B,)``.

    Infinite for equal images. Arguments as in ``l1``; ``data_range`` is the largest minus the
    smallest possible value, 2 for images in [-1, 1].
    """
    square = _mean((_wide(image) - _wide(truth)).square(), _counted(valid, mask))
    return 10 * torch.log10(data_range**2 / square)


def ssim(
    image: Tensor, truth: Tensor, valid: Tensor, mask: Tensor | None = None, *, data_range: float
) -> Tensor:
    """Structural similarity (Wang et al. 2004, eq. 13), mean over windows and bands: ``(B,)``.

    In [-1, 1], 1 for equal images; arguments as in ``psnr``. The windows are Gaussian, 11 x 11
    pixels with sigma 1.5, one around every pixel of the image reflected at its borders, as in
    torchmetrics. Pixels that do not count have weight 0 and the other weights of the window are
    scaled to sum 1, so SSIM in a hole never sees the known pixels around it. A window takes part
    if its counted pixels hold at least half of its weight.

    Raises:
        InputError: the images are smaller than a window.
    """
    if min(image.shape[2:]) < 11:
        raise InputError(
            f"images of {image.shape[2]} x {image.shape[3]} pixels are smaller than SSIM's window: "
            "give at least 11 x 11"
        )
    counted = _counted(valid, mask)
    x, y = (_wide(t).masked_fill(~counted, 0.0) for t in (image, truth))
    weight = _blur(counted.to(x.dtype))
    share = weight.clamp(min=1e-6)
    mx, my, xx, yy, xy = (_blur(t) / share for t in (x, y, x * x, y * y, x * y))
    variances = (xx - mx * mx).clamp(min=0) + (yy - my * my).clamp(min=0)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    similarity = (2 * mx * my + c1) * (2 * (xy - mx * my) + c2)
    similarity = similarity / ((mx * mx + my * my + c1) * (variances + c2))
    return _mean(similarity, weight >= 0.5)


def spectral_angle(
    image: Tensor,
    truth: Tensor,
    valid: Tensor,
    mask: Tensor | None = None,
    *,
    dark: float | Sequence[float] | Tensor,
    gain: float | Sequence[float] | Tensor = 1.0,
) -> Tensor:
    """Mean angle of made to true spectra in radian (Kruse et al. 1993): ``(B,)``.

    Blind to brightness, and so a measure of colour. Angles need the physical zero, and the bands in
    one unit: the spectrum of a pixel is ``(image - dark) * gain``. A spectrum of zeros has no
    direction: its angle is 0 to another one of zeros and pi / 2 to any other.

    The angle is that of Kahan (2006), twice the arctangent of difference over sum of the unit
    vectors, which is exact for small angles, too, where the arccosine of a rounded product is not.

    Args:
        image: ``(B, C, H, W)``.
        truth: ``(B, C, H, W)``.
        valid: ``(B, 1, H, W)``, 1 = measured.
        mask: ``(B, 1, H, W)``, 1 = to be counted (a hole, say); all pixels if None.
        dark: the value that means no radiance, one or per band: -1 for bytes scaled to [-1, 1].
        gain: radiance for each unit of the image, one or per band; only ratios of bands matter.
    """
    counted = _counted(valid, mask)
    units = []
    for x in (image, truth):
        spectra = ((_wide(x) - _per_band(dark, x)) * _per_band(gain, x)).masked_fill(~counted, 0.0)
        length = torch.linalg.vector_norm(spectra, dim=1, keepdim=True)
        units.append(spectra / length.masked_fill(length == 0, 1.0))
    made, true = units
    apart, along = (
        torch.linalg.vector_norm(x, dim=1, keepdim=True) for x in (made - true, made + true)
    )
    # Torch 2.9 gives atan2(0, 0) a gradient that is not finite.
    along = along.masked_fill(apart + along == 0, 1.0)
    return _mean(2 * torch.atan2(apart, along), counted)


def seam(image: Tensor, hole: Tensor, valid: Tensor) -> Tensor:
    """Mean absolute difference of neighbours across the border of holes, and inside: ``(B, 2)``.

    Neighbours share a side, and count where both are valid: in the first column if one of the two
    is in a hole, in the second if both are. Units are those of the image; NaN without a pair.
    ``Seam`` makes a ratio of the two for a whole set.

    Args:
        image: ``(B, C, H, W)`` with the holes filled.
        hole: ``(B, 1, H, W)``, 1 = filled.
        valid: ``(B, 1, H, W)``, 1 = measured.
    """
    totals, pairs = _seam(image, hole, valid)
    return totals / pairs


def spectrum(image: Tensor, valid: Tensor, bins: int = 16) -> Tensor:
    """Radially averaged power spectrum of every band: ``(B, C, bins)``.

    Invalid pixels take the mean of the valid ones, the mean is taken off, and a Hann window keeps
    the image's border out of the spectrum. Power is divided by the sum of the squared window
    over valid pixels, so white noise of variance v has power v in every bin, whatever is invalid.
    The bins are rings of equal width from frequency 0 (left out) to sqrt(1/2) cycles per pixel, the
    finest checkerboard.

    Raises:
        InputError: the image has fewer than ``2 * bins`` rows or columns.
    """
    height, width = image.shape[2:]
    if min(height, width) < 2 * bins:
        raise InputError(
            f"images of {height} x {width} pixels are too small for a spectrum of {bins} bins: "
            f"give at least {2 * bins} pixels, or fewer bins"
        )
    x, taper = _tapered(image, valid)
    power = torch.fft.fft2(x).abs().square() / taper.square().sum((2, 3), keepdim=True)

    fy, fx = (torch.fft.fftfreq(n, device=x.device) for n in (height, width))
    radius = torch.hypot(fy[:, None], fx).flatten()
    ring = (radius * (bins * 2**0.5)).long().clamp(max=bins - 1)
    rings = F.one_hot(ring, bins).to(x.dtype) * (radius > 0)[:, None]
    sums = torch.einsum("bcn,nk->bck", power.flatten(2), rings)
    return sums / rings.sum(0)


def spectrum_distance(a: Tensor, b: Tensor, floor: float = 1e-7) -> Tensor:
    """Mean absolute difference of two spectra over bins and bands, in decibel.

    The spectra are ``(..., C, bins)``, of single images or averaged over many, and give ``(...)``:
    0 for equal spectra, 3 dB for a factor of two in power. ``floor`` is power that does not matter,
    added to both; the default is below the rounding of 8-bit images in [-1, 1] (5e-6).
    """
    ratio = torch.log10((a + floor) / (b + floor))
    return 10 * ratio.abs().mean((-2, -1))


def checkerboard(image: Tensor, valid: Tensor, factor: int = 2) -> Tensor:
    """Energy of patterns that repeat every ``factor`` pixels, as up-sampling leaves: ``(B,)``.

    In squared units of the image, mean over bands: a pattern ``a * (-1)**(x + y)`` has ``a**2``,
    and so has ``a * (-1)**x``; one of longer period has its mean square. Transposed convolutions
    and sub-pixel stages leave such patterns (Odena et al. 2016). Ground has little at these
    frequencies, but not nothing, and white noise of variance v has 0.013 v (factor 2, 256 pixels):
    so read it beside that of the truth. Several stages of factor 2 are one of factor 4 or 8.

    It is the power of the spectrum (see ``spectrum`` for the window) within 1/32 cycles per pixel,
    or half the way between them if that is nearer, but at least the main lobe of the Hann window,
    of the frequencies (k / factor, l / factor) other than (0, 0), over that which the window itself
    has there around 0. Holes of invalid pixels scatter power into it, as into every frequency.

    Raises:
        InputError: the factor is below 2; the image is too small to tell these frequencies apart.
    """
    if factor < 2 or min(image.shape[2:]) <= 4 * factor:
        raise InputError(
            f"a checkerboard of factor {factor} in images of {image.shape[2]} x {image.shape[3]} "
            "pixels: give a factor of at least 2, and images of more than 4 x factor pixels"
        )
    waves = [_waves(n, factor, image.device) for n in image.shape[2:]]

    def power(x: Tensor) -> Tensor:
        around = torch.einsum("kmy,bcyx,lnx->bcklmn", waves[0], x.to(waves[0].dtype), waves[1])
        return around.abs().square().sum((4, 5))

    x, taper = _tapered(image, valid)
    return power(x).flatten(2)[:, :, 1:].sum(2).mean(1) / power(taper)[:, 0, 0, 0]


def consistency(image: Tensor, coarse: Tensor, valid: Tensor, factor: int) -> Tensor:
    """How far an enlarged image, made coarse again, is from what it was made from: ``(B,)``.

    It needs no truth: the mean absolute difference of ``area(image, factor)`` to ``coarse`` over
    bands and pixels, in units of the images. 0 where pixels are only repeated. Where the coarse
    image was not measured as the mean over areas, a good result has some, too.

    Args:
        image: ``(B, C, H, W)``.
        coarse: ``(B, C, H / factor, W / factor)``.
        valid: ``(B, 1, H, W)``, or as coarse ``(B, 1, H / factor, W / factor)``; 1 = measured. A
            coarse pixel counts if all its fine ones do.
        factor: fine pixels along one coarse pixel.

    Raises:
        InputError: the shapes do not fit the factor.
    """
    small = area(image, factor)
    if small.shape != coarse.shape:
        raise InputError(
            f"image {tuple(image.shape)} is not {factor} times as fine as {tuple(coarse.shape)}"
        )
    if valid.shape[2:] == image.shape[2:]:
        valid = (area((valid > 0.5).float(), factor) == 1).float()
    return l1(small, coarse, valid)


def gradient_histogram(image: Tensor, valid: Tensor, bins: int = 64, limit: float = 1.0) -> Tensor:
    """How often gradients of each magnitude occur, for every band: ``(B, C, bins)`` int64 counts.

    The gradient is the difference to the right and to the lower neighbour, and counts where all
    three pixels are valid. The bins are of equal width up to ``limit``, in units of the image per
    pixel; the last one takes all above, and NaN, too.
    """
    counted = valid > 0.5
    x = _wide(image).masked_fill(~counted, 0.0)
    corner = x[:, :, :-1, :-1]
    magnitude = torch.hypot(x[:, :, :-1, 1:] - corner, x[:, :, 1:, :-1] - corner)
    counted = counted[:, :, :-1, :-1] & counted[:, :, :-1, 1:] & counted[:, :, 1:, :-1]
    index = (magnitude * (bins / limit)).nan_to_num(bins - 1).clamp(max=bins - 1)
    counts = torch.zeros(*x.shape[:2], bins, dtype=torch.int64, device=x.device)
    return counts.scatter_add_(
        2, index.long().flatten(2), counted.long().expand_as(magnitude).flatten(2)
    )


def gradient_distance(a: Tensor, b: Tensor, limit: float = 1.0) -> Tensor:
    """Wasserstein-1 distance of two gradient histograms, mean over bands.

    In one dimension it is the area between the two cumulative distributions (Vallender 1974): the
    mean change of gradient, in units of the image per pixel, that turns one into the other.

    The histograms are ``(..., C, bins)`` up to ``limit``, of single images or added over many, and
    give ``(...)``, 0 for equal distributions.
    """
    shares = [counts / counts.sum(-1, keepdim=True) for counts in (a, b)]
    apart = (shares[0] - shares[1]).cumsum(-1).abs()
    return apart.sum(-1).mean(-1) * (limit / a.shape[-1])


class Texture:
    """Texture of a whole data set: feed it tiles, then compare it with that of another one.

    >>> made, truth = Texture(), Texture()
    >>> for image, target, valid in batches:  # doctest: +SKIP
    ...     made.update(image, valid)
    ...     truth.update(target, valid)
    >>> made.distance(truth)  # doctest: +SKIP
    {'spectrum': tensor(...), 'gradient': tensor(...)}
    """

    def __init__(self) -> None:
        self.sums: list[Tensor] = []
        """Power ``(C, bins)``, gradient counts ``(C, bins)``, tiles; they add over processes."""

    def update(self, image: Tensor, valid: Tensor, mask: Tensor | None = None) -> None:
        """Add tiles; those without a valid pixel add nothing.

        Args:
            image: ``(B, C, H, W)``.
            valid: ``(B, 1, H, W)``, 1 = measured.
            mask: ``(B, 1, H, W)``, 1 = where gradients count (a hole, say); all if None. The
                spectrum is that of the whole tile, since a hole is no window of its own.
        """
        power = spectrum(image, valid).nansum(0)
        gradients = gradient_histogram(image, _counted(valid, mask).float()).sum(0)
        news = [power, gradients, (valid > 0.5).flatten(1).any(1).sum()]
        self.sums = [a + b for a, b in zip(self.sums, news, strict=True)] if self.sums else news

    def distance(self, truth: "Texture") -> dict[str, Tensor]:
        """``{"spectrum": decibel, "gradient": image units per pixel}``, scalars on the device.

        Raises:
            InputError: one of the two has seen no tile.
        """
        if not self.sums or not truth.sums:
            raise InputError("a Texture without tiles cannot be compared: call update first")
        (a, here, n), (b, there, m) = self.sums, truth.sums
        return {
            "spectrum": spectrum_distance(a / n, b / m),
            "gradient": gradient_distance(here, there),
        }


class Seam:
    """The seam ratio of a whole data set: are holes seen by their border?

    The mean difference of neighbours across the border of the holes over that inside them, of all
    tiles together (each pair of pixels weighs the same). Holes that lie anywhere in true images
    have 1. A step at the border makes it large; so does a smooth filling of textured ground, whose
    inside is too calm (harmonic fill of toytown: 2.4, mean fill: infinite). Below 1, the inside is
    rougher than the way into it: noise lowers it, and nearest fill, which copies its way in and
    breaks within, has 0.3. So read it beside ``Texture``, and not as a goal of its own.

    >>> made = Seam()
    >>> for image, hole, valid in batches:  # doctest: +SKIP
    ...     made.update(image, hole, valid)
    >>> made.ratio()  # doctest: +SKIP
    tensor(...)
    """

    def __init__(self) -> None:
        self.sums: list[Tensor] = []
        """Sums of differences ``(2,)`` across and inside, numbers of pairs; over processes, too."""

    def update(self, image: Tensor, hole: Tensor, valid: Tensor) -> None:
        """Add tiles, as for ``seam``."""
        news = [t.sum(0) for t in _seam(image, hole, valid)]
        self.sums = [a + b for a, b in zip(self.sums, news, strict=True)] if self.sums else news

    def ratio(self) -> Tensor:
        """A scalar on the device; NaN if there was no pair across, or none inside.

        Raises:
            InputError: no tile was added.
        """
        if not self.sums:
            raise InputError("a Seam without tiles has no ratio: call update first")
        means = self.sums[0] / self.sums[1]
        return means[0] / means[1]


def _seam(image: Tensor, hole: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over pairs of the differences' mean over bands, and numbers of pairs: ``(B, 2)`` each.

    The first column is across a hole's border, the second inside.
    """
    counted, inside = valid > 0.5, hole > 0.5
    x = _wide(image)
    totals, pairs = [], []
    for axis in (2, 3):
        (x0, c0, h0), (x1, c1, h1) = (
            [t.narrow(axis, start, t.shape[axis] - 1) for t in (x, counted, inside)]
            for start in (0, 1)
        )
        difference = (x1 - x0).abs().mean(1, keepdim=True)
        for kind in (h0 ^ h1, h0 & h1):
            kind = kind & c0 & c1
            totals.append(difference.masked_fill(~kind, 0.0).sum((1, 2, 3)))
            pairs.append(kind.sum((1, 2, 3)))
    sums = [torch.stack([t[0] + t[2], t[1] + t[3]], 1) for t in (totals, pairs)]
    return sums[0], sums[1]


def _tapered(image: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Mean taken off (invalid pixels have it), times a Hann window; and window ``(B, 1, H, W)``."""
    counted = valid > 0.5
    x = _wide(image).masked_fill(~counted, 0.0)
    number = counted.sum((2, 3), keepdim=True)
    taper_y, taper_x = (
        torch.hann_window(n + 2, periodic=False, device=x.device)[1:-1] for n in x.shape[2:]
    )
    taper = counted * taper_y[:, None] * taper_x
    return (x - x.sum((2, 3), keepdim=True) / number) * taper, taper


def _waves(size: int, factor: int, device: torch.device) -> Tensor:
    """Waves of k / factor cycles per pixel, and of those around: ``(factor, waves, size)``."""
    reach = max(min(size // 32, (size - 1) // (2 * factor)), 2)
    pixel = torch.arange(size, device=device)
    k = torch.arange(factor, device=device)[:, None, None]
    around = torch.arange(-reach, reach + 1, device=device)[:, None]
    # Whole turns are left out in whole numbers, where they cost no precision.
    turns = (k * pixel % factor) / factor + (around * pixel % size) / size
    return torch.polar(torch.ones_like(turns), -2 * math.pi * turns)


def _per_band(value: float | Sequence[float] | Tensor, image: Tensor) -> float | Tensor:
    if isinstance(value, int | float):
        return value
    return torch.as_tensor(value, dtype=_wide(image).dtype, device=image.device).view(-1, 1, 1)


def _counted(valid: Tensor, mask: Tensor | None) -> Tensor:
    return valid > 0.5 if mask is None else (valid > 0.5) & (mask > 0.5)


def _wide(x: Tensor) -> Tensor:
    """At least float32: bfloat16 and integers are too coarse for sums."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    """Mean over bands and counted pixels of each sample; NaN without one: ``(B,)``."""
    total = values.masked_fill(~counted, 0.0).sum((1, 2, 3))
    return total / (counted.sum((1, 2, 3)) * values.shape[1])


def _blur(x: Tensor) -> Tensor:
    """Gaussian window of 11 pixels with sigma 1.5, borders reflected: the same shape.

    Sums of shifted images, because a convolution may round to TF32 or bfloat16, which destroys
    the small differences of squares that variances are.
    """
    window = [math.exp(-(distance**2) / (2 * 1.5**2)) for distance in range(-5, 6)]
    shape = x.shape
    x = F.pad(x, (5, 5, 5, 5), mode="reflect")
    for axis in (-1, -2):
        size = shape[axis]
        blurred = torch.zeros_like(x.narrow(axis, 0, size))
        for i, weight in enumerate(window):
            blurred = blurred.add(x.narrow(axis, i, size), alpha=weight / sum(window))
        x = blurred
    return x
