"""What a method must beat: predictions that need no training of a network.

``ClassMedian`` answers labels to images, ``BandFit`` bands to bands, ``haze_removal`` takes thin
clouds off. The fills answer holes: ``image`` is ``(B, C, H, W)``,
``hole`` and ``valid`` are ``(B, 1, H, W)``, and what is known has ``valid`` 1 and ``hole`` 0. They
change pixels of holes only: all others come back bit for bit, also those that are invalid. What
stands in holes and invalid pixels never matters, not even NaN. A sample without a known pixel is
filled with 0, the middle of the range. No gradient passes through a fill.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

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


class BandFit:
    """For enlargement of other bands than the target's: least squares of bands on bands.

    Where truth is panchromatic and the input multispectral, interpolation alone has nothing to
    offer. This is the best linear guess of each fine band from the coarse ones, with intercept,
    fitted where both have the same pixels: at the coarse resolution. It is made over batches, in
    float64, and remembers the normal equations only. Bands that say the same share their weight.

    Args:
        coarse_bands: bands of the input.
        fine_bands: bands of the target.

    Raises:
        InputError: images have another number of bands; ``predict`` comes before ``update``.
    """

    def __init__(self, coarse_bands: int, fine_bands: int) -> None:
        self.bands = (coarse_bands, fine_bands)
        self.products = torch.zeros(1 + coarse_bands, 1 + coarse_bands + fine_bands).double()
        """Sums over pixels of (1, coarse) times (1, coarse, fine); they add over processes."""

    def update(self, coarse: Tensor, fine_at_coarse: Tensor, valid: Tensor) -> None:
        """Add tiles.

        Args:
            coarse: ``(B, coarse_bands, h, w)``.
            fine_at_coarse: ``(B, fine_bands, h, w)``, the target as :func:`ganlab.resolution.area`
                makes it coarse.
            valid: ``(B, 1, h, w)``, 1 = measured.
        """
        found = (coarse.shape[1], fine_at_coarse.shape[1])
        if found != self.bands:
            raise InputError(f"images of {found} bands, expected the declared {self.bands}")
        # MPS has no float64.
        device = "cpu" if valid.device.type == "mps" else valid.device
        values = torch.cat([torch.ones_like(valid), coarse, fine_at_coarse], 1).to(device).double()
        values = values.masked_fill((valid < 0.5).to(device), 0.0)
        pixels = values.transpose(0, 1).flatten(1)
        self.products = self.products.to(device)
        self.products += pixels[: 1 + self.bands[0]] @ pixels.T

    def weights(self) -> Tensor:
        """``(1 + coarse_bands, fine_bands)`` float64; the first row is the intercept."""
        if not self.products[0, 0] > 0:
            raise InputError("BandFit has seen no valid pixel: call update first")
        n = 1 + self.bands[0]
        # In units in which all bands are of size 1; what is left of bands that follow from the
        # others is rounding, and cut off.
        size = self.products.diagonal().sqrt().clamp(min=1e-300)[:, None]
        gram = self.products[:, :n] / size / size.T
        inverse = torch.linalg.pinv(gram, rtol=1e-13, hermitian=True)
        weights: Tensor = inverse @ (self.products[:, n:] / size) / size
        return weights

    def predict(self, image: Tensor) -> Tensor:
        """``(B, coarse_bands, H, W)`` of any resolution to ``(B, fine_bands, H, W)``."""
        wide = image.to(torch.promote_types(image.dtype, torch.float32))
        weights = self.weights().to(wide.dtype).to(wide.device)
        return weights[0, :, None, None] + torch.einsum("bchw,cf->bfhw", wide, weights[1:])


@torch.no_grad()
def haze_removal(
    image: Tensor,
    valid: Tensor,
    *,
    dark: Sequence[float] | Tensor,
    gain: Sequence[float] | Tensor,
    bands: Sequence[int],
    patch: int = 7,
    clear: float | None = 0.05,
    air: float | Sequence[float] | Tensor = -math.inf,
    strength: float = 0.95,
    least: float = 0.1,
    radius: int = 30,
    smoothing: float = 1e-3,
) -> tuple[Tensor, Tensor]:
    """Haze and thin cloud taken off by the dark channel prior (He, Sun and Tang 2011).

    Clear ground, so the prior, has next to no light in some band of some pixel of every patch. What
    light there is, is haze: its share of the air light is the haze's opacity. The air light is the
    mean over the 0.1 % of the pixels with the brightest dark channel, and their equals; opacity is
    refined by the guided filter (He et al. 2013) with the image as guide, not by matting.

    Fields and deserts are not as dark as the streets of the paper. So the dark channel of the
    darkest pixels, ``clear`` of all, counts as that of clear ground (dark-object subtraction,
    Chavez 1988), and only what is brighter as haze. Without that step, and with the paper's patch,
    clear tiles in [-1, 1] change by 0.21 (Sentinel-2) and 0.30 (toytown), with it by 0.05 and 0.18:
    still not nothing, because the brightest patch is taken for a cloud even where there is none.
    What is wrong under thin clouds falls by a sixth to a half. But haze that lies on the whole tile
    is taken for ground.

    Args:
        image: ``(B, C, H, W)`` in linear units.
        valid: ``(B, 1, H, W)``, 1 = measured; invalid pixels come back as they are, with alpha 0.
        dark: for each band the value that means no light (``Scaling.dark``).
        gain: for each band the light of one unit (``Scaling.gain``).
        bands: the visible bands, which the dark channel is made of.
        patch: its side in pixels, odd. The paper has 15.
        clear: share of the pixels, in [0, 1], whose dark channel is that of clear ground; None, as
            in the paper, if clear ground has none.
        air: least air light, in units of the image, one or per band, where it is known that clouds
            are at least so bright. It finds thin clouds' alpha better where no cloud is thick.
        strength: share of the haze that is taken off (omega in the paper, eq. 12).
        least: least transmission to divide by (t0, eq. 22).
        radius: of the guided filter, in pixels.
        smoothing: its epsilon, in squares of the air light: edges of less contrast than its root
            are smoothed away.

    Returns:
        The ground ``(B, C, H, W)``, and the haze's alpha ``(B, 1, H, W)`` in [0, ``strength``].

    Raises:
        InputError: the patch's side is even; no bands, or bands that the image does not have;
            ``clear`` outside [0, 1].
    """
    channels = image.shape[1]
    if patch < 1 or patch % 2 == 0:
        raise InputError(f"patch of {patch} pixels for a dark channel, expected an odd number")
    if not bands or not all(0 <= band < channels for band in bands):
        raise InputError(f"visible bands {tuple(bands)} of {channels}: name those that are there")
    if clear is not None and not 0 <= clear <= 1:
        raise InputError(f"share of clear ground is {clear}, expected a number in [0, 1]")
    counted = valid > 0.5
    wide = _values(image, counted)
    zero, unit, floor = (
        torch.as_tensor(x, dtype=wide.dtype, device=wide.device).view(-1, 1, 1)
        for x in (dark, gain, air)
    )
    light = (wide - zero) * unit
    visible = torch.stack([light[:, band] for band in bands], 1)

    channel = _darkest(visible, counted, patch).masked_fill(~counted, -math.inf)
    top = channel.flatten(1).topk(math.ceil(channel[0].numel() / 1000)).values[:, -1]
    top_pixels = (channel >= top[:, None, None, None]) & counted
    total = light.masked_fill(~top_pixels, 0.0).sum((2, 3), keepdim=True)
    brightest = total / top_pixels.sum((2, 3), keepdim=True).clamp(min=1)
    brightest = torch.maximum(brightest, (floor - zero) * unit)

    white = torch.stack([brightest[:, band] for band in bands], 1)
    relative = visible / torch.where(white > 0, white, 1.0)
    haze = _darkest(relative, counted, patch)
    if clear is not None:
        ranks = haze.masked_fill(~counted, math.inf).flatten(1).sort(1).values
        rank = (clear * (counted.sum((2, 3)) - 1)).clamp(min=0).long()
        base = ranks.gather(1, rank)[..., None, None].clamp(0, 0.99)
        haze = (haze - base) / (1 - base)
    haze = (strength * haze).masked_fill(~counted, 0.0)
    alpha = _guided(relative.mean(1, keepdim=True), haze, counted, radius, smoothing)
    alpha = alpha.clamp(0, strength).masked_fill(~counted, 0.0)
    found = (light - brightest) / (1 - alpha).clamp(min=least) + brightest
    return torch.where(counted, (found / unit + zero).to(image.dtype), image), alpha


def _darkest(light: Tensor, counted: Tensor, patch: int) -> Tensor:
    """Least light of any band in the patch around each pixel, of counted pixels: ``(B, 1, H, W)``.

    Infinite where no pixel of the patch counts.
    """
    x = light.amin(1, keepdim=True).masked_fill(~counted, math.inf)
    for sides in ((patch, 1), (1, patch)):
        x = -F.max_pool2d(-x, sides, 1, (sides[0] // 2, sides[1] // 2))
    return x


def _guided(guide: Tensor, x: Tensor, counted: Tensor, radius: int, smoothing: float) -> Tensor:
    """Guided filter with one guide band (He et al. 2013, eq. 4 to 8), of counted pixels."""

    def mean(t: Tensor) -> Tensor:
        for sides in ((2 * radius + 1, 1), (1, 2 * radius + 1)):
            padding = (sides[0] // 2, sides[1] // 2)
            t = F.avg_pool2d(t, sides, 1, padding, divisor_override=1)
        return t

    number = mean(counted.to(x.dtype)).clamp(min=1)
    guide, x = guide.masked_fill(~counted, 0.0), x.masked_fill(~counted, 0.0)
    g, m = mean(guide) / number, mean(x) / number
    slope = (mean(guide * x) / number - g * m) / (
        (mean(guide * guide) / number - g * g).clamp(min=0) + smoothing
    )
    offset = m - slope * g
    slope, offset = (mean(t * counted) / number for t in (slope, offset))
    return slope * guide + offset


@torch.no_grad()
def mean_fill(image: Tensor, hole: Tensor, valid: Tensor) -> Tensor:
    """Holes filled with the mean of the known pixels, by sample and band.

    Args:
        image: ``(B, C, H, W)``.
        hole: ``(B, 1, H, W)``, 1 = missing.
        valid: ``(B, 1, H, W)``, 1 = measured.
    """
    known = _known(hole, valid)
    total = _values(image, known).sum((2, 3), keepdim=True)
    return _filled(image, hole, total / known.sum((2, 3), keepdim=True).clamp(min=1))


@torch.no_grad()
def nearest_fill(image: Tensor, hole: Tensor, valid: Tensor) -> Tensor:
    """Holes filled with the nearest known pixel by Euclid's distance, exactly; as ``mean_fill``.

    Of equally near ones the one with the least column offset counts, then the left one, then the
    upper one. Columns come first and rows second, as in Meijster et al. (2000). The second step
    takes as many rounds as the largest distance has pixels, and waits for the host in each.
    """
    known = _known(hole, valid)
    height, width = known.shape[2:]
    far = height + width
    row = torch.arange(height, device=image.device, dtype=torch.int32)[:, None].expand_as(known)
    above = torch.where(known, row, -far).cummax(2).values
    below = torch.where(known, row, height + far).flip(2).cummin(2).values.flip(2)
    nearest = torch.where(row - above <= below - row, above, below)
    gap = (nearest - row).abs().clamp(max=far)
    gap = gap * known.any(3, keepdim=True).any(2, keepdim=True)

    square = gap * gap
    place = nearest * width + torch.arange(width, device=image.device, dtype=torch.int32)
    best, source = square.clone(), place.clone()
    for step in range(1, width):
        if bool((best <= step * step).all()):
            break
        for here, there in (
            (slice(step, None), slice(None, -step)),
            (slice(None, -step), slice(step, None)),
        ):
            other = square[..., there] + step * step
            nearer = other < best[..., here]
            best[..., here] = torch.where(nearer, other, best[..., here])
            source[..., here] = torch.where(nearer, place[..., there], source[..., here])
    source = source.clamp(0, height * width - 1).long().expand_as(image).flatten(2)
    return _filled(image, hole, _values(image, known).flatten(2).gather(2, source).view_as(image))


@torch.no_grad()
def harmonic_fill(
    image: Tensor, hole: Tensor, valid: Tensor, tolerance: float = 1e-4, limit: int = 50
) -> Tensor:
    """Holes filled so that every pixel is the mean of its neighbours: Laplace's equation.

    The smoothest way from the known pixels through the holes, like a soap film; arguments as in
    ``mean_fill``. Invalid pixels outside holes are unknown, too, and the film passes through them.
    The image ends with Neumann's condition: neighbours outside it do not count. The result stays
    within the range of the known values (maximum principle).

    Conjugate gradients (in the flexible form of Notay 2000) after multigrid cycles: about 5
    iterations, whatever the size, each of which waits for the host.

    Args:
        image: ``(B, C, H, W)``.
        hole: ``(B, 1, H, W)``, 1 = missing.
        valid: ``(B, 1, H, W)``, 1 = measured.
        tolerance: in units of the image. It ends when a cycle would change no pixel by more, which
            is a close estimate of the largest error.
        limit: number of iterations at most.
    """
    known = _known(hole, valid)
    grids = _grids(known)
    values = _values(image, known)
    current = _neighbours(values) * ~known
    x = _guess(grids, current)
    rest = _rest(grids[0], x, current)
    change = _cycle(grids, rest)
    direction, gain = change, _dot(rest, change)
    for _ in range(limit):
        if bool(change.abs().max() <= tolerance):
            break
        drawn = -_rest(grids[0], direction, torch.zeros_like(x))
        step = _ratio(gain, _dot(direction, drawn))
        x = x + step * direction
        before, rest = rest, rest - step * drawn
        change = _cycle(grids, rest)
        turn = _ratio(_dot(rest - before, change), gain)
        direction, gain = change + turn * direction, _dot(rest, change)
    return _filled(image, hole, _within(x, values, known))


@torch.no_grad()
def smooth_fill(image: Tensor, hole: Tensor, valid: Tensor) -> Tensor:
    """Holes filled nearly as by ``harmonic_fill``, cheap enough for every training step.

    A fixed number of operations that never waits for the host: the cascade of Bornemann and
    Deuflhard (1996), from one pixel for the whole image to full resolution with four sweeps each,
    and one multigrid cycle. In toytown's tiles of 64 and of 256 pixels, 20 to 40 % of them missing,
    it is on average 0.0014 away from the harmonic fill, which is 0.1 to 0.16 away from the truth.
    It is further off only where next to nothing is known. Arguments as in ``mean_fill``.
    """
    known = _known(hole, valid)
    values = _values(image, known)
    x = _guess(_grids(known), _neighbours(values) * ~known)
    return _filled(image, hole, _within(x, values, known))


@dataclass
class _Grid:
    """Laplace's equation for the unknown pixels of one resolution: a network of conductors.

    An unknown pixel's neighbours that are unknown, too, hang on conductors of weight ``right`` and
    ``down``, the known ones together on one of weight ``fixed``. The equation says that no current
    is left over. Pixels outside the image have no conductor: Neumann's condition.
    """

    right: Tensor
    down: Tensor
    fixed: Tensor
    inverse: Tensor
    """1 / the sum of a pixel's conductors; 0 for pixels that are not to be solved for."""


def _grid(right: Tensor, down: Tensor, fixed: Tensor) -> _Grid:
    total = fixed.clone()
    total[..., :-1] += right
    total[..., 1:] += right
    total[..., :-1, :] += down
    total[..., 1:, :] += down
    return _Grid(right, down, fixed, torch.where(total > 0, 1 / total, 0.0))


def _grids(known: Tensor) -> list[_Grid]:
    """From full resolution to a single pixel, each of half the size of the one before.

    A conductor of a coarser grid is twice as wide and twice as long, so it is the mean of those
    that it replaces. One to a known pixel gets longer by half a pixel only: 2/3 of the sum.
    """
    unknown = (~known).float()
    right, down = unknown[..., 1:] * unknown[..., :-1], unknown[..., 1:, :] * unknown[..., :-1, :]
    grids = [_grid(right, down, unknown * _neighbours(known.float()))]
    while max(grids[-1].fixed.shape[2:]) > 1:
        fine = grids[-1]
        right, down = (
            _pairs(fine.right[..., 1::2], -2) / 2,
            _pairs(fine.down[..., 1::2, :], -1) / 2,
        )
        grids.append(_grid(right, down, _blocks(fine.fixed) * (2 / 3)))
    return grids


def _guess(grids: list[_Grid], current: Tensor) -> Tensor:
    """Nearly the solution: from the coarsest grid to the finest, then one cycle."""
    currents = [current]
    for _ in grids[1:]:
        currents.append(_blocks(currents[-1]) * (2 / 3))
    x = currents[-1] * grids[-1].inverse
    for grid, b in zip(grids[-2::-1], currents[-2::-1], strict=True):
        x = _sweeps(grid, _enlarged(grid, x, "nearest"), b, 4, 0.1)
    return x + _cycle(grids, _rest(grids[0], x, current))


def _cycle(grids: list[_Grid], rest: Tensor) -> Tensor:
    """A multigrid V-cycle (Brandt 1977): about the error that left ``rest``."""
    grid = grids[0]
    if len(grids) == 1:
        return rest * grid.inverse
    x = _sweeps(grid, torch.zeros_like(rest), rest, 2, 0.3)
    coarse = _cycle(grids[1:], _blocks(_rest(grid, x, rest)))
    return _sweeps(grid, x + _enlarged(grid, coarse, "bilinear"), rest, 2, 0.3)


def _sweeps(grid: _Grid, x: Tensor, current: Tensor, number: int, lowest: float) -> Tensor:
    """Jacobi sweeps with Chebyshev's steps: damp errors of eigenvalues from ``lowest`` to 2."""
    for i in range(number):
        root = math.cos(math.pi * (2 * i + 1) / (2 * number))
        step = 2 / (2 + lowest + (2 - lowest) * root)
        x = torch.addcmul(x, grid.inverse, _rest(grid, x, current), value=step)
    return x


def _rest(grid: _Grid, x: Tensor, current: Tensor) -> Tensor:
    """The current that is left over at every pixel, 0 for the solution."""
    rest = torch.addcmul(current, grid.fixed, x, value=-1)
    for axis, weight in ((3, grid.right), (2, grid.down)):
        size = x.shape[axis] - 1
        difference = x.narrow(axis, 1, size) - x.narrow(axis, 0, size)
        rest.narrow(axis, 0, size).addcmul_(weight, difference)
        rest.narrow(axis, 1, size).addcmul_(weight, difference, value=-1)
    return rest


def _enlarged(grid: _Grid, x: Tensor, mode: str) -> Tensor:
    """Twice the size, cut to that of the grid, 0 where nothing is to be solved for."""
    x = F.interpolate(x, scale_factor=2, mode=mode)
    height, width = grid.fixed.shape[2:]
    return x[..., :height, :width] * (grid.inverse > 0)


def _blocks(x: Tensor) -> Tensor:
    """Sums of 2 x 2 pixels; at an odd end, of those that are there."""
    return _pairs(_pairs(x, -1), -2)


def _pairs(x: Tensor, axis: int) -> Tensor:
    if x.shape[axis] % 2:  # not by F.pad: that of torch 2.9 refuses grids without a column
        x = torch.cat([x, torch.zeros_like(x.narrow(axis, -1, 1))], axis)
    return torch.unflatten(x, axis, (x.shape[axis] // 2, 2)).sum(axis)


def _neighbours(x: Tensor) -> Tensor:
    """Sum of the four neighbours inside the image."""
    total = torch.zeros_like(x)
    total[..., 1:] += x[..., :-1]
    total[..., :-1] += x[..., 1:]
    total[..., 1:, :] += x[..., :-1, :]
    total[..., :-1, :] += x[..., 1:, :]
    return total


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Of each sample and band: ``(B, C, 1, 1)``."""
    return (a * b).sum((2, 3), keepdim=True)


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """0 where b is: such a band has converged already."""
    return torch.where(b > 0, a / b, 0.0)


def _within(x: Tensor, values: Tensor, known: Tensor) -> Tensor:
    """Cut to the range of the known values: the maximum principle; 0 if nothing is known."""
    low = values.masked_fill(~known, math.inf).amin((2, 3), keepdim=True)
    high = values.masked_fill(~known, -math.inf).amax((2, 3), keepdim=True)
    nothing = ~known.any(3, keepdim=True).any(2, keepdim=True)
    return x.clamp(low, high).masked_fill(nothing, 0.0)


def _known(hole: Tensor, valid: Tensor) -> Tensor:
    return (valid > 0.5) & (hole < 0.5)


def _values(image: Tensor, known: Tensor) -> Tensor:
    """Known pixels at least in float32 (bfloat16 is too coarse for sums), 0 elsewhere."""
    wide = image.to(torch.promote_types(image.dtype, torch.float32))
    return wide.masked_fill(~known, 0.0)


def _filled(image: Tensor, hole: Tensor, filling: Tensor) -> Tensor:
    return torch.where(hole > 0.5, filling.to(image.dtype), image)
