"""Random numbers that depend only on what they are for.

A draw is a pure function of (seed, epoch, sample, purpose): the worker, the process, the order
and the batch in which a sample is met never matter. So a loader, a device-resident store, a
resumed run and two processes all agree.
"""

import zlib
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

UInts = npt.NDArray[np.uint64]


def _mix(x: UInts) -> UInts:
    """Finalizer of SplitMix64 (Steele et al. 2014): a bijection that scatters all 64 bits."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _key(*parts: "int | str | npt.NDArray[np.integer]") -> UInts:
    key = np.zeros(1, np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            if isinstance(part, str):
                part = zlib.crc32(part.encode())
            value = np.asarray(part).astype(np.int64).astype(np.uint64)
            key = _mix(key + np.uint64(0x9E3779B97F4A7C15) + _mix(value))
    return key


def uniforms(
    seed: int,
    epoch: "int | npt.NDArray[np.integer]",
    samples: npt.ArrayLike,
    purpose: str,
    count: int,
) -> npt.NDArray[np.float64]:
    """Draw ``count`` numbers in [0, 1) for each sample.

    Args:
        seed: the run's seed.
        epoch: one number, or one per sample.
        samples: ``(n,)`` integers that name the samples.
        purpose: what the numbers are for, for example ``"crop"``; other purposes get
            independent numbers.
        count: numbers per sample.

    Returns:
        ``(n, count)`` float64 array.
    """
    samples = np.asarray(samples, np.int64).reshape(-1)
    key = _key(seed, epoch, samples, purpose)[:, None]
    bits = _key(key, np.arange(count, dtype=np.int64)[None, :])
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def keys(
    seed: int, epoch: "int | npt.NDArray[np.integer]", samples: npt.ArrayLike
) -> npt.NDArray[np.int64]:
    """One number for each sample from which all its later draws follow: ``(n,)`` int64.

    Made on the host, it travels with the batch; :func:`draws` unfolds it on the device.
    """
    return _key(seed, epoch, np.asarray(samples, np.int64).reshape(-1)).view(np.int64)


def draws(keys: "Tensor", purpose: str, count: int) -> "Tensor":
    """Draw ``count`` numbers in [0, 1) for each key, on the device of the keys.

    Whole-number arithmetic only, so every kind of device gives the same bits.

    Args:
        keys: ``(B,)`` int64, from :func:`keys`.
        purpose: what the numbers are for; other purposes get independent numbers.
        count: numbers for each key.

    Returns:
        ``(B, count)`` float32 with 24 random bits.
    """
    import torch

    def mix(x: "Tensor") -> "Tensor":
        # As _mix, in int64: products wrap, and >> must not drag the sign along.
        for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
            x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
        return x ^ ((x >> 31) & ((1 << 33) - 1))

    step, name = -0x61C8864680B583EB, int(_key(purpose).view(np.int64)[0])
    numbers = torch.arange(count, device=keys.device) * step
    bits = mix(mix(keys[:, None] ^ name) + numbers)
    return ((bits >> 40) & 0xFFFFFF).float() * 2.0**-24


def place_noise(
    seed: int, top: int, left: int, height: int, width: int, purpose: str
) -> npt.NDArray[np.float32]:
    """Normal noise of a scene, of which every pixel's number depends on its place alone.

    So overlapping windows agree on it. ``(height, width)`` float32, mean 0 and variance 1, for the
    window whose first pixel lies in row ``top`` and column ``left``.
    """
    row = np.arange(top, top + height, dtype=np.int64)[:, None]
    key = _key(seed, purpose, row, np.arange(left, left + width, dtype=np.int64))
    # Both halves of the bits, as numbers in (0, 1) (Box and Muller 1958).
    high, low = (((key >> np.uint64(s)) & np.uint64(0xFFFFFFFF)) + 0.5 for s in (32, 0))
    radius = np.sqrt(-2 * np.log(high * 2.0**-32))
    return np.asarray(radius * np.cos(2 * np.pi * 2.0**-32 * low), np.float32)


def derived_seed(seed: int, *parts: "int | str") -> int:
    """A seed in [0, 2**63) for one purpose, for generators that take a single number."""
    return int(_key(seed, *parts)[0] >> np.uint64(1))


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, n: int) -> npt.NDArray[np.int64]:
    """The order in which ``n`` samples are met in one epoch: ``(n,)`` int64, read-only."""
    order = np.random.default_rng(derived_seed(seed, epoch, "order")).permutation(n)
    order.setflags(write=False)
    return order
