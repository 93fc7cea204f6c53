"""Holes: coverage, independence of the batch, and that each shape is what its name says."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ganlab import masks
from ganlab.config import HolesConfig
from ganlab.errors import InputError
from ganlab.randomness import draws, keys

SHAPES = ["rectangles", "circles", "polygons", "strokes", "stripes", "cloudlike"]
KINDS = ("rectangle", "circle", "polygon", "stroke", "stripe", "cloud", "footprint", "file")
SIZES = st.integers(32, 160)


def some_keys(n=8, seed=0):
    return torch.from_numpy(keys(seed, 0, np.arange(n)))


def town(n=8, height=64, width=64, seed=0):
    """Separate rectangular buildings on a grid of plots: masks, and the number of each building."""
    generator = np.random.default_rng(seed)
    number = np.zeros((n, 1, height, width), np.int64)
    for sample in number[:, 0]:
        for row in range(0, height - 15, 16):
            for column in range(0, width - 15, 16):
                top, left = generator.integers(1, 7, 2)
                bottom, right = generator.integers(9, 15, 2)
                sample[row + top : row + bottom, column + left : column + right] = (
                    1 + row * width + column
                )
    return torch.from_numpy(number)


def bank():
    one = masks.cloudlike(some_keys(1), 200, 160, 0.3)[0, 0] > 0
    two = masks.cloudlike(some_keys(1, 1), 180, 260, 0.5)[0, 0] > 0
    return masks.Bank([one, two])


def make(name, key, height, width, coverage):
    if name == "footprints":
        buildings = (town(1, height, width) > 0).float().expand(len(key), -1, -1, -1)
        return masks.footprints(key, buildings, coverage)
    return getattr(masks, name)(key, height, width, coverage)


def tolerance(name, height, width):
    """A rectangle grows by whole lines, the others by a few pixels that are equally far."""
    return 0.5 / min(height, width) if name == "rectangles" else 3 / (height * width)


@pytest.mark.parametrize("name", [*SHAPES, "footprints"])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), height=SIZES, width=SIZES, target=st.floats(0.05, 0.6))
def test_coverage_is_met(name, seed, height, width, target):
    made = make(name, some_keys(4, seed), height, width, target)
    assert made.shape == (4, 1, height, width)
    assert made.dtype == torch.float32
    assert ((made == 0) | (made == 1)).all()
    error = (made.mean((1, 2, 3)) - target).abs().max().item()
    assert error <= tolerance(name, height, width) + 1e-6


def test_coverage_is_met_for_every_key():
    """Among many rectangles some have a side next to the end of a bin of the search."""
    for target in (0.2, 0.3):
        made = masks.rectangles(some_keys(2000), 64, 64, target).mean((1, 2, 3))
        assert (made - target).abs().max() <= tolerance("rectangles", 64, 64) + 1e-6


@pytest.mark.parametrize("name", [*SHAPES, "footprints"])
def test_each_sample_has_its_own_coverage(name):
    target = torch.linspace(0.05, 0.6, 8)
    made = make(name, some_keys(), 96, 64, target).mean((1, 2, 3))
    torch.testing.assert_close(made, target, rtol=0, atol=tolerance(name, 96, 64))


@pytest.mark.parametrize("size", [(64, 64), (37, 51)])  # 37 x 51 fills no vector register evenly
@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_depends_on_its_own_key_only(kind, size):
    config = HolesConfig(kinds=(kind,), coverage=(0.1, 0.5))
    key, buildings, pieces = some_keys(), (town(8, *size) > 0).float(), bank()
    together = masks.draw(config, key, *size, buildings=buildings, bank=pieces)
    alone = [
        masks.draw(config, key[i : i + 1], *size, buildings=buildings[i : i + 1], bank=pieces)
        for i in range(8)
    ]
    assert torch.equal(together, torch.cat(alone))
    assert len({tuple(mask.flatten().tolist()) for mask in together}) == 8


def test_noise_depends_on_its_own_key_only():
    key = some_keys()
    together = masks.fractal_noise(key, 37, 51)
    alone = torch.cat([masks.fractal_noise(key[i : i + 1], 37, 51) for i in range(8)])
    assert torch.equal(together, alone)


def test_noise_is_normalized_and_follows_roughness():
    key, steps = some_keys(16), {}
    for roughness in (0.4, 0.55, 0.7):
        noise = masks.fractal_noise(key, 96, 128, roughness=roughness)
        assert noise.shape == (16, 1, 96, 128)
        torch.testing.assert_close(noise.mean((1, 2, 3)), torch.zeros(16), rtol=0, atol=1e-5)
        torch.testing.assert_close(
            noise.square().mean((1, 2, 3)), torch.ones(16), rtol=1e-4, atol=0
        )
        steps[roughness] = noise.diff(dim=3).square().mean().item()
    assert 2 * steps[0.4] < steps[0.55] < steps[0.7] / 2
    other = masks.fractal_noise(key, 96, 128, purpose="other")
    assert (masks.fractal_noise(key, 96, 128) * other).mean().abs() < 0.2


def test_noise_has_no_preferred_direction_and_no_lattice():
    """Steps along both axes and the diagonals are equal, and so is variance across a cell."""
    noise = masks.fractal_noise(some_keys(512), 64, 64, scale=0.125, roughness=0.0)[:, 0]
    down, right = noise.diff(dim=1).square().mean(), noise.diff(dim=2).square().mean()
    assert 0.97 < down / right < 1.03
    diagonal = (noise[:, 1:, 1:] - noise[:, :-1, :-1]).square().mean() / 2
    other = (noise[:, 1:, :-1] - noise[:, :-1, 1:]).square().mean() / 2
    assert 0.95 < diagonal / other < 1.05
    assert 0.95 < diagonal / right < 1.05
    variance = noise.square().mean(0).view(8, 8, 8, 8).mean((0, 2))  # by place in the cell
    assert variance.max() / variance.min() < 1.25


def test_noise_is_the_spline_of_its_lattice():
    """One octave against the definition of the cubic B-spline, evaluated pixel by pixel."""

    def spline(x):
        x = abs(x)
        return 2 / 3 - x * x + x**3 / 2 if x < 1 else max(2 - x, 0) ** 3 / 6

    key, cell = some_keys(1), 3.2  # 0.4 of 8 pixels: a single octave
    rows, columns = int(8 / cell) + 4, int(10 / cell) + 4
    lattice = draws(key, "noise 0", rows * columns).view(rows, columns).double() - 0.5
    expected = torch.tensor(
        [
            [
                sum(
                    lattice[i, j]
                    * spline((y + 0.5) / cell + 1 - i)
                    * spline((x + 0.5) / cell + 1 - j)
                    for i in range(rows)
                    for j in range(columns)
                )
                for x in range(10)
            ]
            for y in range(8)
        ]
    )
    expected = (expected - expected.mean()) / expected.std(correction=0)
    noise = masks.fractal_noise(key, 8, 10)[0, 0]
    torch.testing.assert_close(noise, expected.float(), rtol=0, atol=1e-4)


def test_a_refined_lattice_is_the_same_spline():
    coarse = torch.rand(2, 12, 9, generator=torch.Generator().manual_seed(0))
    fine = masks._refine(coarse, 20, 14)
    assert fine.shape == (2, 20, 14)
    same = masks._interpolate(coarse, 40, 30, 6)
    torch.testing.assert_close(masks._interpolate(fine, 40, 30, 3), same, rtol=0, atol=1e-6)


def box(mask):
    rows, columns = torch.where(mask)
    return rows.min().item(), rows.max().item() + 1, columns.min().item(), columns.max().item() + 1


def test_a_rectangle_fills_its_bounding_box():
    ratios = []
    for mask in masks.rectangles(some_keys(64), 96, 96, 0.05)[:, 0] > 0:
        top, bottom, left, right = box(mask)
        assert mask.sum() == (bottom - top) * (right - left)
        if 0 < top < bottom < 96 and 0 < left < right < 96:
            ratios.append((bottom - top) / (right - left))
    assert 0.35 < min(ratios) < 0.6
    assert 1.7 < max(ratios) < 2.8


def test_a_circle_is_round_wherever_the_border_leaves_it():
    whole = 0
    for mask in masks.circles(some_keys(64), 96, 80, 0.1)[:, 0] > 0:
        top, bottom, left, right = box(mask)
        if 0 < top < bottom < 96 and 0 < left < right < 80:
            whole += 1
            radius = math.sqrt(mask.sum().item() / math.pi)
            assert abs(bottom - top - 2 * radius) < 2
            assert abs(right - left - 2 * radius) < 2
            rows, columns = torch.where(mask)
            away = (rows - rows.float().mean()).square() + (
                columns - columns.float().mean()
            ).square()
            assert away.max().sqrt() < radius + 1
            # A disc has the least second moment of its area: r**2 / 2.
            assert 0.97 < away.mean() / (radius**2 / 2) < 1.03
    assert whole > 15


def edges(mask):
    """Pixels of a mask with a neighbour that is not of it."""
    padded = torch.nn.functional.pad(mask.float()[None, None], (1, 1, 1, 1), value=1)
    least = -torch.nn.functional.max_pool2d(-padded, 3, 1)[0, 0]
    return int((mask & (least == 0)).sum())


def test_a_polygon_holds_a_disc_and_is_seen_whole_from_its_middle():
    rough = []
    for key in some_keys(24)[:, None]:
        mask = masks.polygons(key, 96, 96, 0.15)[0, 0] > 0
        centre_y, centre_x = (draws(key, "polygon", 2)[0] * 96).tolist()
        ys, xs = (t + 0.5 for t in torch.where(mask))
        for share in (0.25, 0.5, 0.75):  # star-shaped: the way back to the middle stays inside
            back_y = ((centre_y + (ys - centre_y) * share).clamp(0, 95.9)).long()
            back_x = ((centre_x + (xs - centre_x) * share).clamp(0, 95.9)).long()
            assert mask[back_y, back_x].float().mean() > 0.985
        rows, columns = torch.meshgrid(
            torch.arange(96) + 0.5, torch.arange(96) + 0.5, indexing="ij"
        )
        away = torch.hypot(rows - centre_y, columns - centre_x)
        reach, inner = away[mask].max(), away[~mask].min()
        assert inner > 0.38 * reach  # the corners lie at most 1, the disc at 0.4
        rough.append((reach / inner).item())
    assert np.median(rough) > 1.25  # a disc has 1


@pytest.mark.parametrize("coverage", [0.05, 0.2, 0.35, 0.5])
def test_strokes_are_long_and_thin(coverage):
    """Squares that fit inside them are small beside a disc of the same area."""
    side = 128
    made = masks.strokes(some_keys(16), side, side, coverage)
    disc = 2 * math.sqrt(coverage / math.pi)
    widths = []
    for mask in made:
        width, rest = 0, mask
        while rest.any():
            padded = torch.nn.functional.pad(rest[None], (1, 1, 1, 1), value=1)
            rest, width = -torch.nn.functional.max_pool2d(-padded, 3, 1)[0], width + 2
        widths.append(width / side)
    assert min(widths) > 2 / side
    assert np.median(widths) < 0.4 * disc
    assert max(widths) < 0.75 * disc
    long = [edges(mask[0] > 0) for mask in made]
    round_ = [edges(mask[0] > 0) for mask in masks.circles(some_keys(16), side, side, coverage)]
    assert np.mean(long) > 2 * np.mean(round_)


def test_stripes_are_parallel_and_periodic():
    made = masks.stripes(some_keys(48), 132, 132, 0.22)[:, 0]
    tilts, spacings = [], []
    for mask in made:
        first = mask[:, 0]
        starts = torch.where(first[1:] > first[:-1])[0]
        if len(starts) > 2:
            spacings.append(starts.diff().float())
        # Along its own tilt a gap goes on; across it ends.
        agree = {}
        for slope in np.linspace(-0.4, 0.4, 33):
            shift = round(slope * 24)
            a, b = mask[12:-12, 24:-24], mask[12 + shift : 120 + shift, 48:]
            agree[slope] = (a * b).sum().item()
        tilts.append(max(agree, key=agree.get))
    # A quarter of the tile, times 0.75 to 1.25, and up to 5 % more down a tilted column; where
    # that column crosses the middle, the phase jumps.
    assert len(spacings) > 30
    medians = torch.stack([s.median() for s in spacings])
    assert 24 <= medians.min() < 28 < 38 < medians.max() <= 44
    even = torch.cat([(s - s.median()).abs() <= 1 for s in spacings])
    assert even.float().mean() > 0.95
    assert np.mean((np.abs(tilts) > 0.05) & (np.abs(tilts) < 0.35)) > 0.9
    assert 0.15 < np.median(np.abs(tilts)) < 0.25
    assert min(tilts) < 0 < max(tilts)


def test_stripes_widen_away_from_a_middle_where_their_phase_jumps():
    """Where the middle lies in the tile: no gap there, wide ones at the sides."""
    key = some_keys(200)
    middle = 5 * draws(key, "stripe", 5)[:, 4] - 2
    central = key[(middle > 0.45) & (middle < 0.55)]
    assert len(central) >= 3
    share = masks.stripes(central, 132, 132, 0.22)[:, 0].mean((0, 1))
    assert share[60:72].mean() < 0.12 < 0.3 < min(share[:12].mean(), share[-12:].mean())
    torch.testing.assert_close(
        share[12:24].mean() / share[36:48].mean(), torch.tensor(2.4), rtol=0.3, atol=0
    )


def test_clouds_are_patches_of_all_sizes():
    """Ragged: their edge is far longer than a disc's, yet their inside is more than edge."""
    made = masks.cloudlike(some_keys(32), 128, 128, 0.3)[:, 0] > 0
    ragged = np.mean([edges(mask) for mask in made])
    assert ragged > 1.5 * np.mean(
        [edges(mask) for mask in masks.circles(some_keys(32), 128, 128, 0.3)[:, 0] > 0]
    )
    assert ragged < 0.25 * 0.3 * 128**2


def test_footprints_take_whole_buildings_nearest_first():
    number = town()
    key = some_keys()
    made = masks.footprints(key, (number > 0).float(), 0.1)
    points = draws(key, "footprint", 2) * 64
    for mask, of, point in zip(made[:, 0] > 0, number[:, 0], points, strict=True):
        rows, columns = torch.meshgrid(
            torch.arange(64) + 0.5, torch.arange(64) + 0.5, indexing="ij"
        )
        away = torch.hypot(rows - point[0], columns - point[1])
        order = sorted(set(of[of > 0].tolist()), key=lambda b: away[of == b].min().item())
        shares = [mask[of == b].float().mean().item() for b in order]
        assert not mask[of == 0].any()
        cut = [share for share in shares if 0 < share < 1]
        assert len(cut) <= 1
        assert shares == sorted(shares, reverse=True)


def test_a_crooked_building_is_one_building():
    """Rotated and angled buildings: all of it is taken before the next one."""
    rows, columns = np.mgrid[:96, :96]
    u = (rows - 30) * 0.8 + (columns - 30) * 0.6
    v = (columns - 30) * 0.8 - (rows - 30) * 0.6
    angled = (abs(u) < 20) & (abs(v) < 20) & ~((u > -8) & (v > -8))
    other = (abs(rows - 75) < 12) & (abs(columns - 75) < 12)
    buildings = torch.from_numpy(angled | other).float()[None, None].expand(16, -1, -1, -1)
    share = min(angled.mean(), other.mean())
    made = masks.footprints(some_keys(16), buildings, float(share))[:, 0].numpy() > 0
    for mask in made:
        assert not (mask & angled).any() or not (mask & other).any()


def test_without_enough_buildings_their_surroundings_go_too():
    buildings = torch.zeros(4, 1, 64, 64)
    buildings[:, :, 20:30, 40:50] = 1
    made = masks.footprints(some_keys(4), buildings, 0.2)
    assert (made * buildings).sum() == buildings.sum()
    for mask in made[:, 0] > 0:
        top, bottom, left, right = box(mask)
        assert 0 <= top < 20 < 30 < bottom < 60
        assert left < 40 < 50 < right
    empty = masks.footprints(some_keys(4), torch.zeros(4, 1, 64, 64), 0.2)
    disc = masks._level_set(  # the same point, as the definition has it
        sum(
            (torch.arange(64).view(shape) + 0.5 - 64 * place[:, None, None]).square()
            for shape, place in zip(
                ((-1, 1), (-1,)), draws(some_keys(4), "footprint", 2).unbind(1), strict=True
            )
        ),
        torch.full((4,), 0.2),
    )
    assert (empty != disc).float().mean() < 0.005


def test_pieces_are_windows_of_the_masks_flipped_and_turned():
    pattern = torch.rand(40, 50, generator=torch.Generator().manual_seed(0)) < 0.5
    windows = {}
    for y in range(40 - 16 + 1):
        for x in range(50 - 12 + 1):
            windows[tuple(pattern[y : y + 16, x : x + 12].flatten().tolist())] = "straight"
    for y in range(40 - 12 + 1):
        for x in range(50 - 16 + 1):
            windows[tuple(pattern[y : y + 12, x : x + 16].T.flatten().tolist())] = "turned"
    seen = set()
    for mask in masks.Bank([pattern]).cut(some_keys(64), 16, 12, 0.5)[:, 0] > 0:
        found = []
        for flips in ((), (0,), (1,), (0, 1)):
            way = windows.get(tuple(mask.flip(flips).flatten().tolist()))
            found += [(way, flips)] if way else []
        assert len(found) == 1
        seen |= set(found)
    assert len(seen) == 8


def test_the_piece_nearest_to_the_coverage_wins():
    """Along a ramp of coverage every target is within reach."""
    ramp = torch.rand(64, 1000, generator=torch.Generator().manual_seed(0)) < torch.linspace(
        0, 1, 1000
    )
    pieces = masks.Bank([ramp])
    target = torch.linspace(0.05, 0.9, 32)
    found = pieces.cut(some_keys(32), 64, 64, target).mean((1, 2, 3))
    assert (found - target).abs().max() < 0.05
    assert (found - target).abs().mean() < 0.01
    pieces.candidates = 1
    assert (pieces.cut(some_keys(32), 64, 64, target).mean((1, 2, 3)) - target).abs().mean() > 0.15


def test_layers_are_cut_by_their_mean():
    generator = torch.Generator().manual_seed(0)
    ramp = torch.rand(64, 1000, generator=generator) * torch.linspace(0, 1, 1000)
    target = torch.linspace(0.05, 0.45, 16)
    pieces = masks.Bank([ramp]).cut(some_keys(16), 64, 64, target)
    assert (pieces.mean((1, 2, 3)) - target).abs().max() < 0.02
    assert set(pieces.flatten().tolist()) <= set(ramp.flatten().tolist())


def test_integral_images_may_wrap_around():
    """As the sums of a large scene of thickness do: pieces stay the same."""
    ramp = torch.linspace(0, 1, 400).expand(64, -1)
    plain, wrapped = masks.Bank([ramp]), masks.Bank([ramp])
    wrapped._sums = (wrapped._sums.long() + 2**31 - 10**5).to(torch.int32)
    key = some_keys()
    assert torch.equal(plain.cut(key, 32, 32, 0.5), wrapped.cut(key, 32, 32, 0.5))


def test_directions_are_unit_vectors_near_their_angles():
    turns = torch.linspace(-1.5, 1.5, 601)
    down, right = masks.directions(turns)
    torch.testing.assert_close(torch.hypot(down, right), torch.ones(601), rtol=0, atol=1e-6)
    true = 2 * math.pi * turns
    cosine = down * true.sin() + right * true.cos()
    assert 1e-4 < (1 - cosine).max() < 1 - math.cos(math.radians(3))


def test_a_mask_as_large_as_the_piece_is_cut_whole():
    pattern = torch.rand(20, 30, generator=torch.Generator().manual_seed(0)) < 0.3
    for mask in masks.Bank([pattern]).cut(some_keys(), 20, 30, 0.5)[:, 0] > 0:
        assert any(torch.equal(mask.flip(f), pattern) for f in ((), (0,), (1,), (0, 1)))


def test_kinds_and_coverages_are_drawn_evenly():
    key = some_keys(400)
    config = HolesConfig(kinds=("circle", "rectangle"), coverage=(0.2, 0.4))
    made = masks.draw(config, key, 48, 48)
    circle = masks.circles(key, 48, 48, made.mean((1, 2, 3)))
    same = (circle == made).flatten(1).all(1).float()
    assert 0.43 < same.mean() < 0.57
    coverage = made.mean((1, 2, 3))
    assert 0.2 - 0.5 / 48 <= coverage.min() < 0.21
    assert 0.39 < coverage.max() <= 0.4 + 0.5 / 48
    assert 0.29 < coverage.mean() < 0.31


def test_mixed_batches_hold_each_kind_as_it_is_alone():
    key, buildings, pieces = some_keys(64), (town(64) > 0).float(), bank()
    fixed = {"coverage": (0.25, 0.25)}
    mixed = masks.draw(
        HolesConfig(kinds=KINDS, **fixed), key, 64, 64, buildings=buildings, bank=pieces
    )
    single = torch.stack(
        [
            masks.draw(
                HolesConfig(kinds=(k,), **fixed), key, 64, 64, buildings=buildings, bank=pieces
            )
            for k in KINDS
        ]
    )
    equal = (single == mixed).flatten(2).all(2)
    assert (equal.sum(0) == 1).all()
    assert (equal.sum(1) >= 2).all()


def test_only_the_kinds_named_are_computed(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("not asked for")

    monkeypatch.setattr(masks, "_FIELDS", {"circle": masks._FIELDS["circle"]})
    monkeypatch.setattr(masks, "_footprint", refuse)
    masks.draw(
        HolesConfig(kinds=("circle",)), some_keys(), 32, 32, buildings=torch.ones(8, 1, 32, 32)
    )


def test_nothing_waits_for_the_host(no_waiting):
    config = HolesConfig(kinds=KINDS)
    key, buildings, pieces = some_keys(), (town() > 0).float(), bank()
    with no_waiting():
        masks.draw(config, key, 64, 64, buildings=buildings, bank=pieces)
    with pytest.raises(AssertionError, match="_local_scalar_dense"), no_waiting():
        key.sum().item()


def test_impossible_requests_are_refused():
    key = some_keys(2)
    with pytest.raises(InputError, match="no kinds"):
        masks.draw(HolesConfig(kinds=()), key, 32, 32)
    for coverage in ((0.0, 0.2), (0.4, 0.2), (0.4, 1.0), (float("nan"), 0.5)):
        with pytest.raises(InputError, match="expected 0 < low <= high < 1"):
            masks.draw(HolesConfig(coverage=coverage), key, 32, 32)
    with pytest.raises(InputError, match="need masks"):
        masks.draw(HolesConfig(kinds=("circle", "file")), key, 32, 32)
    with pytest.raises(InputError, match="found none"):
        masks.draw(HolesConfig(kinds=("footprint",)), key, 32, 32)
    with pytest.raises(InputError, match=r"found \(2, 1, 32, 30\)"):
        masks.draw(
            HolesConfig(kinds=("footprint",)), key, 32, 32, buildings=torch.ones(2, 1, 32, 30)
        )
    with pytest.raises(InputError, match="coverage is 1.5"):
        masks.circles(key, 32, 32, 1.5)
    with pytest.raises(InputError, match="only 40 rows or 31 columns"):
        masks.Bank([torch.ones(64, 40) > 0, torch.ones(40, 31) > 0]).cut(key, 32, 32, 0.3)
    with pytest.raises(InputError, match="no mask"):
        masks.Bank([])
    with pytest.raises(InputError, match="expected bool or float"):
        masks.Bank([torch.ones(64, 40, dtype=torch.uint8)])
    with pytest.raises(InputError, match="expected bool or float"):
        masks.Bank([torch.ones(1, 64, 40)])
    for value in (1.5, -0.1, float("nan")):
        with pytest.raises(InputError, match="outside"):
            masks.Bank([torch.full((64, 40), value)])
