"""Pixel sizes in metres: when two are alike, and how they are written."""

SAME_SIZE = 1.25
"""Sizes that differ by less than this factor count as one for a network."""


def same_size(size: float, other: float) -> bool:
    """Whether two pixel sizes are alike enough for one network.

    >>> same_size(0.6, 0.5), same_size(1.0, 0.3048)
    (True, False)
    """
    return 1 / SAME_SIZE < size / other < SAME_SIZE


def readable_size(metres: float) -> str:
    """A pixel size for messages.

    >>> readable_size(0.3048006), readable_size(10.004), readable_size(1500.0)
    ('0.305 m', '10 m', '1500 m')
    """
    return f"{metres:.0f} m" if metres >= 1000 else f"{metres:.3g} m"
