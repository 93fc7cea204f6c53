"""Holes: which pixels are taken away, so that a network learns to put them back.

Every function makes a batch of masks ``(B, 1, H, W)``, float32, 1 = missing, on the device of the
keys (:func:`ganlab.randomness.keys`), and never waits for the host. A sample's mask depends on its
own key and coverage only, to the last bit. To that end whatever differs between samples uses
nothing but arithmetic that is rounded exactly: libraries' sines differ between the body and the end
of a vector, and sums of floats with the order of the terms.

A shape is a *field*, a continuous function of the pixel, and the hole is where the field lies below
the level that gives the coverage asked for. So the coverage is met whatever the border cuts off.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ganlab.config import HolesConfig
from ganlab.errors import InputError
from ganlab.randomness import draws


def rectangles(keys: Tensor, height: int, width: int, coverage: float | Tensor) -> Tensor:
    """One upright rectangle, with sides in a ratio of up to 2.5.

    A rectangle grows by whole rows and columns, so the coverage is met within half of one.

    Args:
        keys: ``(B,)`` int64, from :func:`ganlab.randomness.keys`.
        height: rows of the masks.
        width: their columns.
        coverage: share of the pixels that are missing, in (0, 1): one number, or ``(B,)``.

    Returns:
        ``(B, 1, height, width)`` float32, exactly 0 or 1.

    Raises:
        InputError: the coverage is a number outside (0, 1).
    """
    return _shape(_rectangle, keys, height, width, coverage)


def circles(keys: Tensor, height: int, width: int, coverage: float | Tensor) -> Tensor:
    """One disc around a random point. Arguments as in :func:`rectangles`."""
    return _shape(_circle, keys, height, width, coverage)


def polygons(keys: Tensor, height: int, width: int, coverage: float | Tensor) -> Tensor:
    """A star-shaped polygon of eight random corners, united with a disc around its middle.

    The disc keeps the hole from shrinking to thin spikes. Arguments as in :func:`rectangles`.
    """
    return _shape(_polygon, keys, height, width, coverage)


def strokes(keys: Tensor, height: int, width: int, coverage: float | Tensor) -> Tensor:
    """Free-form strokes of a brush along random walks (after Yu et al. 2019).

    More coverage means more strokes and a wider brush. Arguments as in :func:`rectangles`.
    """
    return _shape(_stroke, keys, height, width, coverage)


def stripes(keys: Tensor, height: int, width: int, coverage: float | Tensor) -> Tensor:
    """Gaps between scan lines, as in Landsat 7 since its line corrector failed in 2003.

    The mirror sweeps back and forth, and without correction its lines form a zigzag: gaps are
    wedges that widen away from the middle of the swath, where there are none, and those to its
    left lie between those to its right. In a whole scene they repeat every 33 pixels or so, are up
    to 14 wide and take 22 %. Here the middle lies in the tile or up to two tiles beside it, and the
    gaps are at most about a quarter of the tile apart. Arguments as in :func:`rectangles`.
    """
    return _shape(_stripe, keys, height, width, coverage)


def cloudlike(keys: Tensor, height: int, width: int, coverage: float | Tensor) -> Tensor:
    """Where fractal noise is high: ragged patches of all sizes. Arguments as in ``rectangles``."""
    return _shape(_cloud, keys, height, width, coverage)


def footprints(keys: Tensor, buildings: Tensor, coverage: float | Tensor) -> Tensor:
    """The buildings nearest to a random point, the last one cut where the coverage is met.

    Where all buildings together are too few, the hole grows into what surrounds them; without any,
    it is a disc around the point.

    Args:
        keys: ``(B,)`` int64.
        buildings: ``(B, 1, H, W)``, 1 = building.
        coverage: as in :func:`rectangles`.

    Returns:
        ``(B, 1, H, W)`` float32, exactly 0 or 1.
    """
    share = _share(keys, coverage)
    return _level_set(_footprint(keys, buildings), share)


def fractal_noise(
    keys: Tensor,
    height: int,
    width: int,
    *,
    scale: float = 0.4,
    roughness: float = 0.55,
    purpose: str = "noise",
) -> Tensor:
    """Noise with detail of all sizes: ``(B, 1, height, width)`` float32, mean 0 and variance 1.

    Random numbers on ever finer lattices, each interpolated by cubic B-splines, which are close to
    round and so hide the lattice, and weakened by ``roughness`` from one to the next.

    Args:
        keys: ``(B,)`` int64.
        height: rows.
        width: columns.
        scale: size of the largest patches: cells of the first lattice, as a share of the shorter
            side. Cells halve down to about two pixels.
        roughness: amplitude of a lattice relative to the one before; 0.5 is smooth, 0.7 rough.
        purpose: other purposes get independent noise.
    """
    cells = [scale * min(height, width)]
    while cells[-1] >= 4:
        cells.append(cells[-1] / 2)
    # Sizes of the lattices, from the finest to the coarsest: each refines to the one before.
    sizes = [_lattice_size(height, width, cells[-1])]
    for _ in cells[1:]:
        sizes.append((sizes[-1][0] // 2 + 3, sizes[-1][1] // 2 + 3))
    noise: Tensor | None = None
    for octave, (rows, columns) in enumerate(reversed(sizes)):
        lattice = draws(keys, f"{purpose} {octave}", rows * columns).view(-1, rows, columns) - 0.5
        lattice = lattice * roughness**octave
        noise = lattice if noise is None else _refine(noise, rows, columns) + lattice
    assert noise is not None
    noise = _interpolate(noise, height, width, cells[-1])
    noise = noise - _mean(noise)
    return (noise / _mean(noise * noise).sqrt())[:, None]


def level(field: Tensor, coverage: Tensor) -> Tensor:
    """The level below which a field lies in a share of its pixels: ``(B, 1, 1)``.

    A histogram, then one of the bin that matters, find it to 2e-7 of the field's range; of the
    field's values at the two ends of that last bin the one nearer to the share is taken. The field
    must be continuous: equal values are taken or left together.

    Args:
        field: ``(B, H, W)`` float.
        coverage: ``(B,)`` shares in (0, 1).
    """
    bins, flat = 2048, field.flatten(1)
    target = coverage[:, None] * flat.shape[1]
    least, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    low, one = least, torch.ones_like(flat)
    for _ in range(2):
        size = ((high - low) / bins).clamp(min=1e-30)
        # Bin 0 is for all below, the last one for all above.
        index = ((flat - low) / size + 1).clamp(0, bins + 1).long()
        counts = torch.zeros(len(flat), bins + 2, device=flat.device).scatter_add_(1, index, one)
        counts = counts.cumsum(1)
        bin_ = (counts < target).sum(1, keepdim=True)
        # A little wider, since rounding may move a value at the end of a bin into the next.
        low = low + size * (bin_ - 1 - 2**-6)
        high = low + size * (1 + 2**-5)
    # Counted by bin: compared with low and high, values at the ends might change sides.
    less, more = (counts.gather(1, end) for end in (bin_ - 1, bin_))
    last = torch.where(target - less < more - target, bin_ - 1, bin_)
    return torch.where(index <= last, flat, least).amax(1)[:, None, None]


def directions(turns: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors (down, right) at angles in turns, clockwise from the right.

    The angles are met within three degrees only, since parabolas stand in for sines; in return the
    result is the same in every batch, to the last bit.
    """

    def arc(turns: Tensor) -> Tensor:
        half = 2 * (turns - turns.round())
        return half * (1 - half.abs())

    down, right = arc(turns), arc(turns + 0.25)
    length = (down * down + right * right).sqrt()
    return down / length, right / length


class Bank:
    """Pieces of real masks, such as clouds and data gaps, cut by coverage.

    Args:
        masks: ``(H, W)`` tensors of any sizes: bool, True = missing, or float layers in [0, 1],
            such as the thickness of clouds, whose coverage is their mean.

    Raises:
        InputError: no mask, or one that is not as described.
    """

    candidates = 64
    """Windows looked at for each sample; the one nearest to the coverage wins."""

    def __init__(self, masks: Sequence[Tensor]) -> None:
        for mask in masks:
            if mask.ndim != 2 or not (mask.dtype == torch.bool or mask.is_floating_point()):
                found = f"{mask.dtype} of shape {tuple(mask.shape)}"
                raise InputError(f"mask is {found}, expected bool or float of shape (H, W)")
            if not bool(((mask >= 0) & (mask <= 1)).all()):
                raise InputError("mask has values outside [0, 1], or NaN: expected shares")
        if not masks:
            raise InputError("no mask to cut pieces from: give at least one")
        self.smallest = tuple(min(mask.shape[dim] for mask in masks) for dim in (0, 1))
        # All masks behind each other, each with a row and a column of zeros before it, so that
        # sums over windows are four look-ups in the integral image. It may wrap around in int32:
        # differences come out right all the same.
        padded = [F.pad(mask.cpu(), (1, 0, 1, 0)) for mask in masks]
        self._pixels = torch.cat([mask.flatten() for mask in padded])
        self._unit = 1 if self._pixels.dtype == torch.bool else 255
        units = [(mask * self._unit).round().int() for mask in padded]
        sums = [part.cumsum(0, dtype=torch.int32).cumsum(1, dtype=torch.int32) for part in units]
        self._sums = torch.cat([part.flatten() for part in sums])
        sizes = torch.tensor([mask.shape for mask in padded])
        starts = sizes.prod(1).cumsum(0) - sizes.prod(1)
        self._table = torch.cat([sizes, starts[:, None]], 1)  # rows, columns, start

    def cut(self, keys: Tensor, height: int, width: int, coverage: float | Tensor) -> Tensor:
        """One piece for each key, flipped and turned at random.

        The coverage is met as well as 64 random windows can: not at all in masks that are empty
        or hardly larger than the piece. Arguments as in :func:`rectangles`; the result is 0 or 1
        from bool masks, and in [0, 1] from float layers.

        Raises:
            InputError: a mask is smaller than the piece.
        """
        if self.smallest[0] < height or self.smallest[1] < width:
            raise InputError(
                f"a mask has only {self.smallest[0]} rows or {self.smallest[1]} columns: "
                f"for pieces of {height} x {width} pixels give larger masks, or smaller tiles"
            )
        if self._table.device != keys.device:
            tensors = (self._pixels, self._sums, self._table)
            self._pixels, self._sums, self._table = (t.to(keys.device) for t in tensors)
        n = self.candidates
        drawn = draws(keys, "bank", 4 * n + 2)
        which, turn, down, right = drawn[:, : 4 * n].view(-1, 4, n).unbind(1)
        rows, columns, start = self._table[_whole(which, len(self._table))].unbind(-1)
        turned = (turn < 0.5) & (rows > width) & (columns > height)
        tall = torch.where(turned, width, height)
        wide = torch.where(turned, height, width)
        first = start + _whole(down, rows - tall) * columns + _whole(right, columns - wide)
        below, beside = tall * columns, wide
        missing = (
            self._sums[first + below + beside]
            - self._sums[first + below]
            - self._sums[first + beside]
            + self._sums[first]
        )
        target = _share(keys, coverage)[:, None] * (height * width * self._unit)
        best = (missing - target).abs().argmin(1, keepdim=True)
        first, columns, turned, tall, wide = (
            t.gather(1, best)[:, :, None] for t in (first, columns, turned, tall, wide)
        )
        y = torch.arange(height, device=keys.device)[:, None]
        x = torch.arange(width, device=keys.device)
        y, x = torch.where(turned, x, y), torch.where(turned, y, x)
        up, left = (drawn[:, 4 * n :, None, None] < 0.5).unbind(1)
        y, x = torch.where(up, tall - 1 - y, y), torch.where(left, wide - 1 - x, x)
        return self._pixels[first + (y + 1) * columns + x + 1].float()[:, None]


def draw(
    config: HolesConfig,
    keys: Tensor,
    height: int,
    width: int,
    *,
    buildings: Tensor | None = None,
    bank: Bank | None = None,
) -> Tensor:
    """Holes of mixed kinds: every sample draws one of the kinds, and a coverage.

    Args:
        config: the kinds and the range of coverages.
        keys: ``(B,)`` int64.
        height: rows.
        width: columns.
        buildings: for kind "footprint": ``(B, 1, H, W)``, 1 = building.
        bank: for kind "file": the masks of those files.

    Returns:
        ``(B, 1, height, width)`` float32, exactly 0 or 1.

    Raises:
        InputError: no kinds; coverages not in (0, 1), or in the wrong order; "footprint" without
            buildings or with buildings of another shape; "file" without bank.
    """
    low, high = config.coverage
    if not config.kinds:
        raise InputError("holes have no kinds: name at least one, for example polygon")
    if not 0 < low <= high < 1:
        raise InputError(f"coverage of holes is ({low}, {high}), expected 0 < low <= high < 1")
    if "file" in config.kinds and bank is None:
        raise InputError('holes of kind "file" need masks: name raster files of masks')
    shape = (len(keys), 1, height, width)
    if "footprint" in config.kinds and (buildings is None or buildings.shape != shape):
        found = "none" if buildings is None else str(tuple(buildings.shape))
        raise InputError(f'holes of kind "footprint" need buildings {shape}, found {found}')
    choice, place = draws(keys, "hole", 2).unbind(1)
    number = _whole(choice, len(config.kinds))[:, None, None]
    coverage = low + (high - low) * place
    fields: list[tuple[int, Tensor]] = []
    holes = torch.zeros(shape, device=keys.device)
    for index, kind in enumerate(config.kinds):
        if kind == "file" and bank is not None:
            piece = bank.cut(keys, height, width, coverage)
            holes = torch.where((number == index)[:, None], piece, holes)
        elif kind == "footprint" and buildings is not None:
            fields.append((index, _footprint(keys, buildings)))
        else:
            fields.append((index, _FIELDS[kind](keys, height, width, coverage)))
    if fields:
        # One search for the levels of all samples, not one for each kind.
        field = fields[0][1]
        for index, other in fields[1:]:
            field = torch.where(number == index, other, field)
        of_file = number == (config.kinds.index("file") if "file" in config.kinds else -1)
        holes = torch.where(of_file[:, None], holes, _level_set(field, coverage))
    return holes


Field = Callable[[Tensor, int, int, Tensor], Tensor]


def _shape(field: Field, keys: Tensor, height: int, width: int, coverage: float | Tensor) -> Tensor:
    share = _share(keys, coverage)
    return _level_set(field(keys, height, width, share), share)


def _level_set(field: Tensor, coverage: Tensor) -> Tensor:
    """Where ``(B, H, W)`` fields are lowest, over ``(B,)`` of the pixels: ``(B, 1, H, W)``."""
    return (field <= level(field, coverage)).float()[:, None]


def _rectangle(keys: Tensor, height: int, width: int, coverage: Tensor) -> Tensor:
    centre_y, centre_x, ratio, lies = _columns(draws(keys, "rectangle", 4))
    y, x = _offsets(centre_y, centre_x, height, width)
    ratio = 1 + 1.5 * ratio
    tall, wide = torch.where(lies < 0.5, ratio, 1.0), torch.where(lies < 0.5, 1.0, ratio)
    return torch.maximum(y.abs() * tall, x.abs() * wide)


def _circle(keys: Tensor, height: int, width: int, coverage: Tensor) -> Tensor:
    centre_y, centre_x = _columns(draws(keys, "circle", 2))
    y, x = _offsets(centre_y, centre_x, height, width)
    return y * y + x * x


def _polygon(keys: Tensor, height: int, width: int, coverage: Tensor) -> Tensor:
    corners, disc = 8, 0.4
    drawn = draws(keys, "polygon", 2 + 2 * corners)
    centre_y, centre_x = _columns(drawn[:, :2])
    y, x = _offsets(centre_y, centre_x, height, width)
    turns, radii = drawn[:, 2:].view(-1, 2, corners).unbind(1)
    turns = (torch.arange(corners, device=keys.device) + 0.8 * turns) / corners
    down, right = (_columns(part * (0.3 + 0.7 * radii)) for part in directions(turns))
    # A pixel is a * corner + b * next corner with a, b >= 0 in one wedge only, and a + b says how
    # much the polygon has to grow to reach it.
    field = torch.zeros(len(keys), height, width, device=keys.device)
    left = [right[i] * y - down[i] * x >= 0 for i in range(corners)]
    for i in range(corners):
        j = (i + 1) % corners
        area = right[i] * down[j] - down[i] * right[j]
        growth = y * ((right[i] - right[j]) / area) + x * ((down[j] - down[i]) / area)
        field = torch.where(left[i] & ~left[j], growth, field)
    return torch.minimum(field, (y * y + x * x).sqrt() / disc)


def _stroke(keys: Tensor, height: int, width: int, coverage: Tensor) -> Tensor:
    walks, steps = 6, 6
    unit = (height * width) ** 0.5
    drawn = draws(keys, "stroke", 2 + walks * (1 + 2 * steps))
    turn, *bends = drawn[:, 2:].view(-1, 1 + 2 * steps, walks).unbind(1)
    # Walks start far from each other: a two-dimensional golden section (Roberts 2018).
    number = torch.arange(walks, device=keys.device)
    y, x = (
        height * (drawn[:, :1] + 0.7548777 * number),
        width * (drawn[:, 1:2] + 0.5698403 * number),
    )
    # Squared distances at few places: what lies between is as smooth as splines are.
    cell = max(2.0, min(height, width) / 64)
    rows, columns = _lattice_size(height, width, cell)
    row = cell * (torch.arange(rows, device=keys.device)[:, None] - 1.0)
    column = cell * (torch.arange(columns, device=keys.device) - 1.0)
    unused = torch.where(number < 1 + 10 * coverage[:, None], 0.0, float("inf"))
    field = torch.full((len(keys), rows, columns), float("inf"), device=keys.device)
    for bend, reach in zip(bends[:steps], bends[steps:], strict=True):
        y0, x0 = _fold(y, height), _fold(x, width)
        turn = turn + 0.4 * (bend - 0.5)
        down, right = directions(turn)
        y, x = y + unit * (0.06 + 0.12 * reach) * down, x + unit * (0.06 + 0.12 * reach) * right
        down, right = _fold(y, height) - y0, _fold(x, width) - x0
        length = (down * down + right * right).sqrt().clamp(min=1e-3)
        segments = (y0, x0, down / length, right / length, length, unused)
        top, left, dy, dx, most, far = (t[:, :, None, None] for t in segments)
        below, beside = row - top, column - left
        ahead = below * dy + beside * dx
        nearest = ahead.clamp(torch.zeros_like(most), most)
        along = ahead.mul_(-2).add_(nearest).mul_(nearest)
        square = along.add_(below * below + far).add_(beside * beside)
        field = torch.minimum(field, square.amin(1))
    return _interpolate(field, height, width, cell)


def _stripe(keys: Tensor, height: int, width: int, coverage: Tensor) -> Tensor:
    period, phase, slope, rising, middle = _columns(draws(keys, "stripe", 5))
    y, x = _offsets(middle * 0, 5 * middle - 2, height, width)
    slope = torch.where(rising < 0.5, -1.0, 1.0) * (0.1 + 0.2 * slope)
    length = (1 + slope * slope).sqrt()
    along, across = (x + y * slope) / length, (y - x * slope) / length
    period = min(33.0, min(height, width) / 4) * (0.75 + 0.5 * period)
    between = torch.where(along < 0, 0.5, 0.0)
    line = across / period + phase + between
    from_gap = (line - line.round()).abs()
    return from_gap / (0.05 + along.abs() / width)


def _cloud(keys: Tensor, height: int, width: int, coverage: Tensor) -> Tensor:
    return -fractal_noise(keys, height, width, purpose="cloudlike")[:, 0]


def _footprint(keys: Tensor, buildings: Tensor) -> Tensor:
    height, width = buildings.shape[2:]
    inside = buildings[:, 0] > 0.5
    centre_y, centre_x = _columns(draws(keys, "footprint", 2))
    y, x = _offsets(centre_y, centre_x, height, width)
    away = (y * y + x * x).sqrt() / (height + width)
    nearest = torch.where(inside, away, float("inf"))
    rows, columns = _runs(inside), _runs(inside.mT)
    for _ in range(4):  # enough for every building that is not a maze
        nearest = _least(nearest, rows)
        nearest = _least(nearest.mT, columns).mT
    # Pixels of the last building come in the order of their own distance.
    first = nearest + 0.002 * (away - nearest)
    far = float(height + width)
    steps = torch.where(inside, 0.0, far)
    for size in (width, height):  # along rows, then along columns
        place = torch.arange(size, device=keys.device)
        before = (steps - place).cummin(2).values + place
        after = (steps + place).flip(2).cummin(2).values.flip(2) - place
        steps = torch.minimum(before, after).mT.contiguous()
    return torch.where(inside, first, 1.5 + (steps + 0.9 * away) / far)


_FIELDS: dict[str, Field] = {
    "rectangle": _rectangle,
    "circle": _circle,
    "polygon": _polygon,
    "stroke": _stroke,
    "stripe": _stripe,
    "cloud": _cloud,
}


def _runs(inside: Tensor) -> Tensor:
    """Number the runs of equal pixels along each row: ``(B, H, W)`` indices into the H * W."""
    starts = F.pad(inside[:, :, 1:] != inside[:, :, :-1], (1, 0)).cumsum(2)
    row = torch.arange(inside.shape[1], device=inside.device)[:, None]
    return row * inside.shape[2] + starts


def _least(values: Tensor, runs: Tensor) -> Tensor:
    """The least value of each run, at all its pixels."""
    flat, index = values.flatten(1), runs.flatten(1)
    least = torch.full_like(flat, float("inf")).scatter_reduce(1, index, flat, "amin")
    return least.gather(1, index).view(values.shape)


def _share(keys: Tensor, coverage: float | Tensor) -> Tensor:
    if not isinstance(coverage, Tensor) and not 0 < coverage < 1:
        raise InputError(f"coverage is {coverage}, expected a share between 0 and 1")
    return torch.zeros(len(keys), device=keys.device) + coverage


def _whole(uniform: Tensor, count: int | Tensor) -> Tensor:
    """Whole numbers below ``count`` from numbers in [0, 1)."""
    whole = (uniform * count).long()
    return torch.minimum(whole, torch.zeros_like(whole) + count - 1)  # a product may round up


def _columns(drawn: Tensor) -> tuple[Tensor, ...]:
    """``(B, n)`` as n tensors ``(B, 1, 1)``."""
    return drawn[:, :, None, None].unbind(1)


def _offsets(centre_y: Tensor, centre_x: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Pixels down and to the right of a centre given as a share: ``(B, H, 1)``, ``(B, 1, W)``."""
    row, column = (torch.arange(n, device=centre_x.device) + 0.5 for n in (height, width))
    return row[:, None] - height * centre_y, column - width * centre_x


def _fold(place: Tensor, size: int) -> Tensor:
    """Reflect what left [0, size] back into it, as often as it takes."""
    return (place - 2 * size * (place / (2 * size)).round()).abs()


def _lattice_size(height: int, width: int, cell: float) -> tuple[int, int]:
    """Rows and columns of the lattice that :func:`_interpolate` needs."""
    return int(height / cell) + 4, int(width / cell) + 4


def _interpolate(lattice: Tensor, height: int, width: int, cell: float) -> Tensor:
    """Cubic B-splines over ``(B, rows, columns)`` numbers that lie ``cell`` pixels apart.

    The first number lies ``cell`` pixels above and to the left of the image's corner.
    """
    for dim, size in ((2, width), (1, height)):
        place = (torch.arange(size, device=lattice.device) + 0.5) / cell
        first = place.floor()
        t = place - first
        u = 1 - t
        near, far = (4 - 3 * t * t * (1 + u)) / 6, (4 - 3 * u * u * (1 + t)) / 6
        shape = (-1, 1) if dim == 1 else (-1,)
        a, b, c, d = (
            lattice.index_select(dim, first.long() + k) * weight.view(shape)
            for k, weight in enumerate((u * u * u / 6, near, far, t * t * t / 6))
        )
        lattice = (a + b) + (c + d)
    return lattice


def _refine(lattice: Tensor, rows: int, columns: int) -> Tensor:
    """The same spline over a lattice twice as fine (Lane and Riesenfeld 1980)."""
    for dim, size in ((2, columns), (1, rows)):
        parts = lattice.shape[dim] - 2
        a, b, c = (lattice.narrow(dim, k, parts) for k in range(3))
        pairs = torch.stack([(a + b) / 2, (a + 6 * b + c) / 8], dim + 1)
        lattice = pairs.flatten(dim, dim + 1).narrow(dim, 0, size)
    return lattice


def _mean(values: Tensor) -> Tensor:
    """Mean over the pixels of each sample, summed in whole numbers: ``(B, 1, 1)``."""
    count = values[0].numel()
    return (values * 2**20).round().long().sum((1, 2), keepdim=True) / (count * 2.0**20)
