"""Clouds: made from noise, found in quality bands, cut from real imagery, put on and taken off.

A cloud is an *alpha* ``(B, 1, H, W)`` in [0, 1], 1 = opaque, and a colour: what is seen is
``ground * (1 - alpha) + colour * alpha``. A shadow takes a share of the light away from the ground
below. What is made for training is made on the device of the keys, without waiting for the host,
and depends on a sample's own key only.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ganlab.config import MaskMeaning
from ganlab.errors import InputError
from ganlab.masks import Bank, directions, fractal_noise, level
from ganlab.randomness import draws


class Clouds(NamedTuple):
    """A batch of cloud layers with their shadows.

    Attributes:
        alpha: ``(B, 1, H, W)`` in [0, 1], 1 = opaque.
        shadow: ``(B, 1, H, W)`` in [0, 1], share of the light that the ground below lacks.
        colour: ``(B, bands, 1, 1)`` of the cloud, in the units of the image.
        offset: ``(B, 2)`` pixels down and to the right from a cloud to its shadow.
    """

    alpha: Tensor
    shadow: Tensor
    colour: Tensor
    offset: Tensor


def clouds(
    keys: Tensor,
    height: int,
    width: int,
    *,
    coverage: float | Tensor = 0.4,
    thickness: float | Tensor = 0.95,
    softness: float = 0.8,
    altitude: tuple[float, float] = (0.05, 0.2),
    sun: tuple[float | None, float] = (None, 45.0),
    darkness: float = 0.5,
    bands: int = 3,
    white: float = 0.9,
    tint: float = 0.05,
    scale: float = 0.4,
    roughness: float = 0.5,
) -> Clouds:
    """Clouds from fractal noise, with shadows.

    The edge of a cloud, where alpha is half of ``thickness``, is the level of the noise that gives
    the coverage; around it alpha rises smoothly over ``softness`` standard deviations of the noise.
    A shadow is its cloud moved away from the sun by altitude / tan(elevation), with an edge twice
    as soft, and weakened by ``darkness``. Clouds beside the tile throw shadows into it; the farther
    they may stand, under a low sun, the more noise has to be made.

    Args:
        keys: ``(B,)`` int64, from :func:`ganlab.randomness.keys`.
        height: rows.
        width: columns.
        coverage: share of the pixels where alpha is at least half of ``thickness``, in (0, 1): one
            number, or ``(B,)``.
        thickness: alpha inside the clouds, in [0, 1]: one number, or ``(B,)``.
        softness: 0.1 gives hard edges, 3 haze.
        altitude: range to draw each sample's altitude from, in shorter sides of the tile: 1 km is
            0.4 above tiles of 256 pixels of 10 m.
        sun: azimuth, clockwise from up (north), and elevation of the sun in degrees; with azimuth
            None every sample draws one.
        darkness: share of the light that the shadow of an opaque cloud takes.
        bands: bands of the image.
        white: colour of the brightest cloud, in units of the image, where 1 is the brightest.
        tint: most by which a band is darker than ``white``, drawn for each band.
        scale: size of the largest clouds (:func:`ganlab.masks.fractal_noise`).
        roughness: how ragged they are.

    Raises:
        InputError: softness not above 0; altitudes below 0 or in the wrong order; the sun not above
            the horizon; thickness, as a number, or darkness outside [0, 1]; coverage, as a number,
            outside (0, 1).
    """
    low, high = altitude
    azimuth, elevation = sun
    _check("coverage", coverage, 0 < coverage < 1 if isinstance(coverage, float) else True)
    _check("thickness", thickness, 0 <= thickness <= 1 if isinstance(thickness, float) else True)
    _check("softness", softness, softness > 0)
    _check("altitude", altitude, 0 <= low <= high < math.inf)
    _check("sun's elevation", elevation, 0 < elevation <= 90)
    _check("darkness", darkness, 0 <= darkness <= 1)

    drawn = draws(keys, "clouds", 2 + bands)
    away = min(height, width) / math.tan(math.radians(elevation))
    length = away * (low + (high - low) * drawn[:, 0])
    if azimuth is None:
        down, right = directions(drawn[:, 1])
    else:
        angle = math.radians(azimuth)
        down = torch.full_like(length, math.cos(angle))
        right = torch.full_like(length, -math.sin(angle))
    offset = torch.stack([length * down, length * right], 1).round()

    # The noise reaches beyond the tile on the side where the sun stands.
    margin = math.ceil(away * high)
    noise = fractal_noise(
        keys,
        height + margin,
        width + margin,
        scale=scale * min(height, width) / (min(height, width) + margin),
        roughness=roughness,
        purpose="clouds",
    )[:, 0]
    start = torch.where(offset > 0, margin, 0)
    field = -_window(noise, start, height, width)
    share = torch.zeros_like(length) + coverage
    edge = level(field, share)
    opaque = (torch.zeros_like(length) + thickness)[:, None, None]
    alpha = opaque * _rise((edge - field) / softness + 0.5)
    behind = -_window(noise, start - offset.long(), height, width)
    shadow = darkness * opaque * _rise((edge - behind) / (2 * softness) + 0.5)
    colour = white - tint * drawn[:, 2:, None, None]
    return Clouds(alpha[:, None], shadow[:, None], colour, offset)


def cover(ground: Tensor, alpha: Tensor, colour: Tensor | float) -> Tensor:
    """Clouds over ground, ``ground * (1 - alpha) + colour * alpha``, in the units of the ground."""
    return ground * (1 - alpha) + colour * alpha


def uncover(image: Tensor, alpha: Tensor, colour: Tensor | float) -> Tensor:
    """The ground that was covered: the inverse of :func:`cover` where alpha < 1.

    Rounding errors of the image grow by 1 / (1 - alpha). Where alpha is 1 nothing is left of the
    ground, and the result is the image, which is the cloud's colour.
    """
    opaque = alpha >= 1
    return (image - colour * alpha.masked_fill(opaque, 0.0)) / (1 - alpha).masked_fill(opaque, 1.0)


def shade(image: Tensor, shadow: Tensor, dark: float | Tensor = -1.0) -> Tensor:
    """Ground in shadow: its light, counted from ``dark``, times ``1 - shadow``.

    Args:
        image: ``(B, C, H, W)`` in linear units.
        shadow: ``(B, 1, H, W)`` share of the light that is missing.
        dark: the value that stands for no light, one for all bands or ``(C, 1, 1)``. On images
            scaled to [-1, 1] it is -1 (to multiply them as they are would draw shadows towards
            grey), on reflectances 0.
    """
    return (image - dark) * (1 - shadow) + dark


def unshade(image: Tensor, shadow: Tensor, dark: float = -1.0) -> Tensor:
    """The inverse of :func:`shade` where shadow < 1; where it is 1, the image as it is."""
    none = shadow >= 1
    return (image - dark) / (1 - shadow).masked_fill(none, 1.0) + dark


def paste(
    keys: Tensor,
    ground: Tensor,
    layers: Bank,
    *,
    coverage: float | Tensor = 0.3,
    colour: Tensor | float = 0.9,
) -> tuple[Tensor, Tensor]:
    """Real cloud layers on clear tiles.

    Args:
        keys: ``(B,)`` int64.
        ground: ``(B, C, H, W)`` clear tiles.
        layers: alphas, such as :func:`thickness` makes from imagery; pieces of them are cut,
            flipped and turned.
        coverage: mean alpha to aim at, one number or ``(B,)``.
        colour: of the clouds, in the units of the ground, one number or ``(B, C, 1, 1)``.

    Returns:
        The covered tiles and alpha ``(B, 1, H, W)``.

    Raises:
        InputError: a layer is smaller than the tiles.
    """
    alpha = layers.cut(keys, ground.shape[2], ground.shape[3], coverage)
    return cover(ground, alpha, colour), alpha


def thickness(
    image: Tensor, clear: float | None = None, opaque: float | None = None, *, cold: bool = False
) -> Tensor:
    """Alpha of clouds from imagery that shows little but clouds, linear between two values.

    Such as the cirrus band (1.37 um, where clear sky is dark), or thermal infrared, where thick
    clouds are cold: ``thickness(kelvin, clear=285, opaque=250)``. It is made once for a scene, and
    waits for the host.

    Args:
        image: one band, any shape, finite.
        clear: value that means no cloud; if None the median, which suits a scene that is clear in
            more than half of its pixels.
        opaque: value that means alpha 1, above or below ``clear``; if None the value that one
            pixel in a hundred exceeds.
        cold: clouds have low values: what is not given is taken from the other end.

    Returns:
        Alpha in [0, 1], float32, in the shape of the image.

    Raises:
        InputError: values that are not finite; ``clear`` equal to ``opaque``.
    """
    values = image.float()
    if values.numel() == 0 or not bool(values.isfinite().all()):
        raise InputError("the image has no pixels, or some that are not finite: cut them off first")
    flat = values.flatten()

    def quantile(share: float) -> float:
        share = 1 - share if cold else share
        return flat.kthvalue(1 + round(share * (flat.numel() - 1))).values.item()

    clear = quantile(0.5) if clear is None else clear
    opaque = quantile(0.99) if opaque is None else opaque
    if clear == opaque:
        raise InputError(f"clear and opaque are both {clear}, expected two different values")
    return ((values - clear) / (opaque - clear)).clamp(0, 1)


def missing(
    stored: npt.NDArray[np.generic],
    read_as: MaskMeaning = "nonzero",
    classes: Sequence[int] = (),
    *,
    shadows: bool = True,
    cirrus: bool = False,
) -> npt.NDArray[np.bool_]:
    """Which pixels a mask or a quality band calls cloud, or otherwise missing.

    The bits of Landsat's quality bands, as the USGS publishes them (two bits hold a confidence:
    0 not determined, 1 low, 2 medium, 3 high):

    =============  ============  ===================  ============
    ``read_as``    cloud         shadow               cirrus
    =============  ============  ===================  ============
    landsat_pre    14-15 high    6-7 high, never set  12-13 high
    landsat_c1     4             7-8 high             11-12 high
    landsat_c2     3             4                    2
    =============  ============  ===================  ============

    They stand for the BQA band of Landsat 8 before there were collections, BQA of Collection 1, and
    QA_PIXEL of Collection 2, whose flags are set at high confidence, too. Its flag 1, a rim around
    clouds, is not taken. Bit 0 is fill, and fill is never missing here: it was not measured in the
    first place, which is for nodata to say.

    Args:
        stored: values as stored, any shape.
        read_as: "nonzero", for masks of 0 and one other value, or the layout of the bits.
        classes: if given, the values that mean missing, whatever ``read_as`` says. Class rasters
            of L8 Biome have 64 shadow, 128 clear, 192 thin cloud, 255 cloud.
        shadows: count cloud shadows, too (of bits only).
        cirrus: count cirrus, too (of bits only).

    Raises:
        InputError: ``read_as`` is unknown; bits are to be read from values that are no 16-bit
            whole numbers; values other than 0 differ, and it is "nonzero".
    """
    if len(classes):
        return np.isin(stored, np.asarray(classes))
    if read_as == "nonzero":
        found = np.asarray(stored != 0)
        if np.any(stored[found][1:] != stored[found][:1]):
            values = np.unique(stored)
            raise InputError(
                f"mask read as nonzero holds {len(values)} values, {values[:4].tolist()} among "
                "them, expected 0 and one other: name the classes that mean missing, or read it "
                "as the quality band that it is"
            )
        return found
    if read_as not in _BITS:
        raise InputError(f"mask read as {read_as!r}, expected one of {get_args(MaskMeaning)}")
    whole = np.issubdtype(stored.dtype, np.integer)
    if not whole or (stored.size and (int(stored.min()) < -(2**15) or int(stored.max()) >= 2**16)):
        raise InputError(
            f"mask read as {read_as} holds {stored.dtype}, expected whole numbers of 16 bits: "
            "give the quality band as delivered, or name its classes"
        )
    bits = stored.astype(np.int64)
    wanted = {"cloud": True, "shadow": shadows, "cirrus": cirrus}
    found = np.zeros(stored.shape, bool)
    for name, (first, value) in _BITS[read_as].items():
        if wanted[name]:
            found |= (bits >> first) & value == value
    return np.asarray(found & (bits & 1 == 0))


# Name: first bit, and its value; 3 is high confidence, in two bits.
_BITS: dict[str, dict[str, tuple[int, int]]] = {
    "landsat_pre": {"cloud": (14, 3), "shadow": (6, 3), "cirrus": (12, 3)},
    "landsat_c1": {"cloud": (4, 1), "shadow": (7, 3), "cirrus": (11, 3)},
    "landsat_c2": {"cloud": (3, 1), "shadow": (4, 1), "cirrus": (2, 1)},
}


def _check(name: str, value: object, fits: bool) -> None:
    if not fits:
        raise InputError(f"{name} of clouds is {value}, outside of what clouds can have")


def _rise(x: Tensor) -> Tensor:
    """From 0 to 1 while x goes from 0 to 1, level at both ends."""
    x = x.clamp(0, 1)
    return x * x * (3 - 2 * x)


def _window(field: Tensor, start: Tensor, height: int, width: int) -> Tensor:
    """``(B, height, width)`` of ``(B, rows, columns)``, from ``(B, 2)`` on."""
    y = start[:, 0, None] + torch.arange(height, device=field.device)
    x = start[:, 1, None] + torch.arange(width, device=field.device)
    index = y[:, :, None] * field.shape[2] + x[:, None]
    return field.flatten(1).gather(1, index.flatten(1)).view(-1, height, width)
