"""What a method must beat: predictions that need no training of a network."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ganlab.errors import InputError


class ClassMedian:
    """For labels to images: every pixel takes the median colour of its class.

    Of all images that know only the class of a pixel, it has the least L1 distance to the training
    tiles. It is fitted over batches from a histogram of ``levels`` values from ``low`` to ``high``
    (others count as the nearest) for each class and band: memory does not grow with the data. The
    default is exact for 8-bit images scaled to [-1, 1] and rounds others to 0.0005; for stored
    uint8, ``low=0, high=255, levels=256`` is exact.

    Args:
        classes: the label values, ascending, as the tile store lists them.
        bands: bands of the images.
        low: lowest value of the histogram.
        high: its highest value.
        levels: number of values.

    Raises:
        InputError: classes are not ascending, or images have another number of bands.
    """

    def __init__(
        self,
        classes: Sequence[int],
        bands: int,
        *,
        low: float = -2.0,
        high: float = 2.0,
        levels: int = 8161,
    ) -> None:
        if not classes or list(classes) != sorted(set(classes)):
            raise InputError(f"classes must be ascending numbers, found {tuple(classes)}")
        self.classes, self.low, self.high = tuple(classes), low, high
        # The last row collects labels that are not among the classes.
        self.counts = torch.zeros(len(classes) + 1, bands, levels, dtype=torch.int64)

    def update(self, labels: Tensor, image: Tensor, valid: Tensor) -> None:
        """Add tiles: labels and valid ``(B, 1, H, W)``, image ``(B, bands, H, W)``."""
        self.counts = self.counts.to(image.device)
        _, bands, levels = self.counts.shape
        if image.shape[1] != bands:
            raise InputError(f"image of {image.shape[1]} bands, expected the declared {bands}")
        step = (self.high - self.low) / (levels - 1)
        counted = (valid > 0.5).expand_as(image)
        level = ((image.float() - self.low) / step).masked_fill(~counted, 0.0)
        level = level.round().clamp(0, levels - 1).long()
        band = torch.arange(bands, device=image.device)[:, None, None]
        index = (self._row(labels) * bands + band) * levels + level
        self.counts.view(-1).scatter_add_(0, index.flatten(), counted.long().flatten())

    def colours(self) -> Tensor:
        """The (lower) medians ``(classes + 1, bands)``; the last row is for any other label.

        Classes without a pixel take the median of all pixels.
        """
        known = self.counts[:-1].sum(2, keepdim=True) > 0
        everything = self.counts.sum(0, keepdim=True)
        counts = torch.cat([torch.where(known, self.counts[:-1], everything), everything])
        total = counts.cumsum(2)
        level = (2 * total < total[:, :, -1:]).sum(2)
        return self.low + level * ((self.high - self.low) / (self.counts.shape[2] - 1))

    def predict(self, labels: Tensor) -> Tensor:
        """``(B, 1, H, W)`` labels to ``(B, bands, H, W)`` float32 images."""
        return self.colours().float()[self._row(labels)[:, 0]].permute(0, 3, 1, 2)

    def _row(self, labels: Tensor) -> Tensor:
        classes = torch.tensor(self.classes, device=labels.device)
        row = torch.searchsorted(classes, labels.long().contiguous()).clamp(max=len(classes) - 1)
        return torch.where(classes[row] == labels, row, len(classes))
