"""Random numbers that depend only on what they are for.

A draw is a pure function of (seed, epoch, sample, purpose): the worker, the process, the order
and the batch in which a sample is met never matter. So a loader, a device-resident store, a
resumed run and two processes all agree.
"""

import zlib
from functools import lru_cache

import numpy as np
import numpy.typing as npt

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


def derived_seed(seed: int, *parts: "int | str") -> int:
    """A seed in [0, 2**63) for one purpose, for generators that take a single number."""
    return int(_key(seed, *parts)[0] >> np.uint64(1))


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, n: int) -> npt.NDArray[np.int64]:
    """The order in which ``n`` samples are met in one epoch: ``(n,)`` int64, read-only."""
    order = np.random.default_rng(derived_seed(seed, epoch, "order")).permutation(n)
    order.setflags(write=False)
    return order
