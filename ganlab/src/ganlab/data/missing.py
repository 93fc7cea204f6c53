"""Nodata values: which pixels hold one, and which values a pixel type can hold.

A value that the type of the pixels cannot hold (-9999 for uint8, say) never matches, as in GDAL.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ganlab.errors import InputError

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]

ROUNDING = 4
"""Units of a float type's precision within which a pixel equals a nodata value: GDAL's own rule,
so that both find the same pixels missing. Text and double precision round a float32 differently."""
HUGE = 1e38
"""Nodata values beyond this stand for the end of float32, often written with six digits."""
SIX_DIGITS = 1e-5


def declared_nodata(dataset: Any) -> tuple[float | None, ...]:
    """The nodata value of each band of an open raster; None where its pixels never have it."""
    with np.errstate(over="ignore"):  # rasterio compares doubles with the range of float32
        return tuple(dataset.nodatavals)


def can_hold(dtype: str, nodata: float) -> bool:
    """Whether pixels of a type can have a nodata value.

    >>> can_hold("uint8", 255), can_hold("uint8", -9999), can_hold("int16", float("nan"))
    (True, False, False)
    """
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return not math.isfinite(nodata) or abs(nodata) <= float(np.finfo(kind).max)
    if not math.isfinite(nodata) or nodata != math.floor(nodata):
        return False
    limits = np.iinfo(kind)
    return limits.min <= nodata <= limits.max


def equals_nodata(values: Array, nodata: float | None) -> Bools:
    """Where pixels hold a nodata value; for NaN, where a float is NaN.

    >>> equals_nodata(np.array([1, -9999], "float32"), -9999.0).tolist()
    [False, True]
    """
    if nodata is None or not can_hold(values.dtype.name, nodata):
        return np.zeros(values.shape, bool)
    if math.isnan(nodata):
        return np.isnan(values)
    if values.dtype.kind in "iu":
        return np.asarray(values == int(nodata))
    if not math.isfinite(nodata) or nodata == 0:
        return np.asarray(values == nodata)
    # In the type of the pixels: whole scenes go through here. Nothing is subtracted, because two
    # huge values of opposite sign would overflow.
    tolerance = _tolerance(values.dtype.name, nodata)
    limit = float(np.finfo(values.dtype).max)
    low = values.dtype.type(max(nodata - tolerance, -limit))
    high = values.dtype.type(min(nodata + tolerance, limit))
    return np.asarray((values >= low) & (values <= high))


def beside_nodata(dtype: str, nodata: float) -> Any:
    """The value next to nodata that reads as measured, for generated pixels that came out equal.

    It lies towards 0, or is 1 for 0.

    >>> int(beside_nodata("uint8", 0)), int(beside_nodata("uint8", 255))
    (1, 254)
    """
    kind: Any = np.dtype(dtype).type
    if np.dtype(dtype).kind in "iu":
        return kind(nodata + 1 if nodata < np.iinfo(dtype).max else nodata - 1)
    if nodata == 0:
        return np.nextafter(kind(0), kind(1))
    # Twice as far away as what still counts as equal.
    return kind(nodata - math.copysign(2 * _tolerance(dtype, nodata), nodata))


def same_nodata(one: float | None, other: float | None) -> bool:
    """Whether two declarations mean the same; NaN equals NaN."""
    if one is None or other is None:
        return one is other
    return one == other or (math.isnan(one) and math.isnan(other))


def common_nodata(declared: list[float | None]) -> float | None:
    """The nodata value of all bands; None if they differ or declare none."""
    first = declared[0]
    if all(same_nodata(first, other) for other in declared):
        return first
    return None


def asked_nodata(asked: object, dtype: str, file: str, option: str) -> float | None:
    """The nodata value that the caller gave, if pixels can have it; ``"none"`` is None.

    Args:
        asked: a number or ``"none"``, in any spelling.
        dtype: of the pixels.
        file: for the message.
        option: the name of the setting, for the message: ``"--nodata"``.

    Raises:
        InputError: neither, or a value that the pixels cannot have.
    """
    if isinstance(asked, str) and asked.casefold() == "none":
        return None
    if isinstance(asked, bool) or not isinstance(asked, int | float | np.number):
        raise InputError(f"{option} {asked!r}: expected a number, or none")
    value = float(asked)
    if can_hold(dtype, value):
        return value
    limits: Any = np.finfo(dtype) if np.dtype(dtype).kind == "f" else np.iinfo(dtype)
    kind = "numbers" if np.dtype(dtype).kind == "f" else "whole numbers"
    raise InputError(
        f"{option} {value:.17g}: the pixels of {file} are {dtype}, {kind} from {limits.min} to "
        f"{limits.max}, and never have this value; give another, or none"
    )


def _tolerance(dtype: str, nodata: float) -> float:
    if abs(nodata) > HUGE:
        return SIX_DIGITS * abs(nodata)
    return float(ROUNDING * np.finfo(dtype).eps * abs(nodata))
