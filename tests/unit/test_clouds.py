"""Clouds: what they cover, where their shadows fall, on and off again, bits by their meaning."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ganlab import clouds as c
from ganlab.errors import InputError
from ganlab.masks import Bank
from ganlab.randomness import keys

SIZES = st.integers(32, 160)


def some_keys(n=8, seed=0):
    return torch.from_numpy(keys(seed, 0, np.arange(n)))


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    height=SIZES,
    width=SIZES,
    coverage=st.floats(0.05, 0.6),
    thickness=st.floats(0.2, 1.0),
    softness=st.floats(0.1, 3.0),
)
def test_coverage_is_met_where_alpha_is_half_its_thickness(
    seed, height, width, coverage, thickness, softness
):
    made = c.clouds(
        some_keys(4, seed),
        height,
        width,
        coverage=coverage,
        thickness=thickness,
        softness=softness,
    )
    assert made.alpha.shape == made.shadow.shape == (4, 1, height, width)
    assert made.alpha.dtype == made.shadow.dtype == torch.float32
    share = (made.alpha >= thickness * (0.5 - 1e-6)).float().mean((1, 2, 3))
    assert (share - coverage).abs().max() <= 3 / (height * width) + 1e-6
    assert made.alpha.min() >= 0
    assert made.alpha.max() <= thickness + 1e-6
    assert made.shadow.min() >= 0
    assert made.shadow.max() <= 0.5 * thickness + 1e-6


def test_coverage_and_thickness_of_each_sample():
    coverage, thickness = torch.linspace(0.1, 0.6, 8), torch.linspace(0.3, 1, 8)
    made = c.clouds(some_keys(), 128, 96, coverage=coverage, thickness=thickness, softness=0.2)
    share = (made.alpha >= thickness.view(-1, 1, 1, 1) * (0.5 - 1e-6)).float().mean((1, 2, 3))
    torch.testing.assert_close(share, coverage, rtol=0, atol=3 / (128 * 96))
    torch.testing.assert_close(made.alpha.amax((1, 2, 3)), thickness, rtol=1e-5, atol=0)


def test_softness_widens_the_edge():
    edges = []
    for softness in (0.1, 0.4, 1.6):
        alpha = c.clouds(some_keys(16), 96, 96, thickness=1.0, softness=softness).alpha
        edges.append(((alpha > 0.05) & (alpha < 0.95)).float().mean().item())
    assert edges[0] < 0.12
    assert 2 * edges[0] < edges[1] < edges[2] / 2


@pytest.mark.parametrize("azimuth", [0.0, 90.0, 180.0, 270.0, 135.0, None])
@pytest.mark.parametrize(("low", "high", "elevation"), [(0.1, 0.1, 45.0), (0.05, 0.2, 60.0)])
def test_shadows_lie_away_from_the_sun_as_far_as_clouds_are_high(azimuth, low, high, elevation):
    made = c.clouds(some_keys(), 96, 120, altitude=(low, high), sun=(azimuth, elevation))
    altitude = made.offset.norm(dim=1) * math.tan(math.radians(elevation)) / 96
    assert altitude.min() > low - 0.012  # half a pixel down and to the right
    assert altitude.max() < high + 0.012
    if low < high:
        assert altitude.max() - altitude.min() > 0.3 * (high - low)
    if azimuth is None:
        angles = torch.atan2(made.offset[:, 0], made.offset[:, 1])
        assert angles.std() > 0.5
    else:  # 0 is up, where rows are few; 90 is to the right; the shadow lies opposite
        down, right = math.cos(math.radians(azimuth)), -math.sin(math.radians(azimuth))
        along = made.offset[:, 0] * down + made.offset[:, 1] * right
        assert (made.offset.norm(dim=1) - along).abs().max() < 0.2

    # A shadow is half as dark as it gets exactly where its cloud, moved, is half as thick.
    for alpha, shadow, offset in zip(made.alpha, made.shadow, made.offset.long(), strict=True):
        dy, dx = offset.tolist()
        cloud = (alpha[0] >= 0.475 - 1e-6)[
            max(-dy, 0) : 96 - max(dy, 0), max(-dx, 0) : 120 - max(dx, 0)
        ]
        dark = (shadow[0] >= 0.2375 - 1e-6)[
            max(dy, 0) : 96 - max(-dy, 0), max(dx, 0) : 120 - max(-dx, 0)
        ]
        assert cloud.shape == dark.shape
        assert (cloud != dark).float().mean() < 2e-3
        assert 0.05 < cloud.float().mean() < 0.8


def test_shadows_are_softer_and_weaker_than_clouds():
    made = c.clouds(some_keys(16), 96, 96, altitude=(0.0, 0.0), darkness=0.4, thickness=1.0)
    assert (made.offset == 0).all()
    assert 0.35 < made.shadow.max() <= 0.4
    assert made.alpha.max() == 1
    shadow = made.shadow / 0.4
    steps = [
        t.diff(dim=3).abs()[(made.alpha[..., 1:] > 0.4) & (made.alpha[..., 1:] < 0.6)].mean()
        for t in (made.alpha, shadow)
    ]
    torch.testing.assert_close(steps[0] / steps[1], torch.tensor(2.0), rtol=0.05, atol=0)


def test_colours_are_slightly_tinted_white():
    colour = c.clouds(some_keys(200), 32, 32, bands=4, white=0.8, tint=0.2).colour
    assert colour.shape == (200, 4, 1, 1)
    assert 0.6 <= colour.min() < 0.61
    assert 0.79 < colour.max() <= 0.8
    assert (colour.flatten(1).std(1) > 0).all()


@pytest.mark.parametrize("size", [(64, 64), (37, 51)])
@pytest.mark.parametrize("sun", [(None, 30.0), (135.0, 40.0)])
def test_clouds_depend_on_their_own_key_only(size, sun):
    key = some_keys()
    together = c.clouds(key, *size, sun=sun)
    alone = [c.clouds(key[i : i + 1], *size, sun=sun) for i in range(8)]
    for name in together._fields:
        parts = torch.cat([getattr(one, name) for one in alone])
        assert torch.equal(getattr(together, name), parts), name
    assert len({tuple(alpha.flatten().tolist()) for alpha in together.alpha}) == 8


def test_nothing_waits_for_the_host(no_waiting):
    key, layers = some_keys(), Bank([torch.rand(80, 90)])
    with no_waiting():
        made = c.clouds(key, 48, 64)
        image = c.cover(c.shade(torch.zeros(8, 3, 48, 64), made.shadow), made.alpha, made.colour)
        c.unshade(c.uncover(image, made.alpha, made.colour), made.shadow)
        c.paste(key, image, layers)


@given(
    seed=st.integers(0, 1000),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    thickest=st.floats(0, 0.95),
)
def test_what_is_covered_can_be_uncovered(seed, dtype, thickest):
    generator = torch.Generator().manual_seed(seed)
    ground = torch.rand(2, 4, 7, 9, generator=generator, dtype=dtype) * 2 - 1
    alpha = torch.rand(2, 1, 7, 9, generator=generator, dtype=dtype) * thickest
    colour = torch.rand(2, 4, 1, 1, generator=generator, dtype=dtype)
    image = c.cover(ground, alpha, colour)
    # Some roundings of numbers up to 2, each enlarged by 1 / (1 - alpha).
    tolerance = 6 * torch.finfo(dtype).eps / (1 - thickest)
    torch.testing.assert_close(c.uncover(image, alpha, colour), ground, rtol=0, atol=tolerance)


def test_compositing_by_hand():
    ground, alpha = torch.tensor([0.0, 1.0, -1.0, 0.5]), torch.tensor([0.25, 0.5, 0.0, 1.0])
    image = c.cover(ground, alpha, 0.8)
    torch.testing.assert_close(image, torch.tensor([0.2, 0.9, -1.0, 0.8]))
    back = c.uncover(image, alpha, 0.8)
    torch.testing.assert_close(back, torch.tensor([0.0, 1.0, -1.0, 0.8]))


def test_under_an_opaque_cloud_is_its_colour_and_no_nan():
    alpha = torch.tensor([[[[1.0, 0.5]]]], requires_grad=True)
    image = torch.tensor([[[[0.9, 0.2]]]], requires_grad=True)
    ground = c.uncover(image, alpha, 0.9)
    assert ground[..., 0].item() == image[..., 0].item()
    ground.sum().backward()
    assert alpha.grad.isfinite().all()
    assert image.grad.flatten().tolist() == [1.0, 2.0]
    dark = c.unshade(image, alpha)
    assert dark.flatten().tolist() == pytest.approx([0.9, 1.4])


@given(seed=st.integers(0, 1000), deepest=st.floats(0, 0.9))
def test_shade_multiplies_light_not_network_units(seed, deepest):
    generator = torch.Generator().manual_seed(seed)
    reflectance = torch.rand(2, 3, 5, 6, generator=generator, dtype=torch.float64)
    shadow = torch.rand(2, 1, 5, 6, generator=generator, dtype=torch.float64) * deepest
    expected = reflectance * (1 - shadow)
    shaded = c.shade(2 * reflectance - 1, shadow)
    torch.testing.assert_close((shaded + 1) / 2, expected)
    torch.testing.assert_close(c.shade(reflectance, shadow, dark=0.0), expected)
    torch.testing.assert_close(c.unshade(shaded, shadow), 2 * reflectance - 1)


# Two bits count as high confidence when both are set; the fill flag is the last digit.
CLOUD = {
    "landsat_pre": lambda b: b[0:2] == "11",
    "landsat_c1": lambda b: b[11] == "1",
    "landsat_c2": lambda b: b[12] == "1",
}
SHADOW = {
    "landsat_pre": lambda b: b[8:10] == "11",
    "landsat_c1": lambda b: b[7:9] == "11",
    "landsat_c2": lambda b: b[11] == "1",
}
CIRRUS = {
    "landsat_pre": lambda b: b[2:4] == "11",
    "landsat_c1": lambda b: b[3:5] == "11",
    "landsat_c2": lambda b: b[13] == "1",
}


@pytest.mark.parametrize("shadows", [False, True])
@pytest.mark.parametrize("cirrus", [False, True])
@pytest.mark.parametrize("read_as", ["landsat_pre", "landsat_c1", "landsat_c2"])
def test_every_pattern_of_bits_has_its_published_meaning(read_as, cirrus, shadows):
    """All 65536 of them, against their binary digits, the highest bit first."""
    stored = np.arange(2**16, dtype=np.uint16)
    found = c.missing(stored, read_as, shadows=shadows, cirrus=cirrus)
    digits = [f"{value:016b}" for value in range(2**16)]
    expected = [
        b[15] == "0"
        and (
            CLOUD[read_as](b) or (shadows and SHADOW[read_as](b)) or (cirrus and CIRRUS[read_as](b))
        )
        for b in digits
    ]
    assert found.dtype == bool
    assert found.tolist() == expected
    signed = c.missing(stored.view(np.int16), read_as, shadows=shadows, cirrus=cirrus)
    assert signed.tolist() == expected


@pytest.mark.parametrize(
    ("read_as", "value", "cloud", "shadow", "cirrus"),
    [  # values as they are listed for real products
        ("landsat_pre", 20480, False, False, False),  # clear
        ("landsat_pre", 28672, False, False, True),  # cirrus
        ("landsat_pre", 36864, False, False, False),  # cloud: maybe
        ("landsat_pre", 53248, True, False, False),  # cloud
        ("landsat_pre", 61440, True, False, True),  # cloud and cirrus
        ("landsat_pre", 1, False, False, False),  # fill
        ("landsat_c1", 2720, False, False, False),  # clear
        ("landsat_c1", 2752, False, False, False),  # medium confidence of cloud
        ("landsat_c1", 2800, True, False, False),  # cloud
        ("landsat_c1", 2976, False, True, False),  # cloud shadow
        ("landsat_c1", 6896, True, False, True),  # cloud and cirrus
        ("landsat_c1", 1, False, False, False),  # fill
        ("landsat_c2", 21824, False, False, False),  # clear
        ("landsat_c2", 21826, False, False, False),  # rim of a cloud
        ("landsat_c2", 22280, True, False, False),  # cloud
        ("landsat_c2", 23888, False, True, False),  # cloud shadow
        ("landsat_c2", 54596, False, False, True),  # cirrus
        ("landsat_c2", 55052, True, False, True),  # cloud and cirrus
        ("landsat_c2", 1, False, False, False),  # fill
    ],
)
def test_values_of_real_products(read_as, value, cloud, shadow, cirrus):
    stored = np.array([[value]], np.uint16)
    only = c.missing(stored, read_as, shadows=False)
    assert only.shape == (1, 1)
    assert only.item() == cloud
    assert c.missing(stored, read_as).item() == (cloud or shadow)
    assert c.missing(stored, read_as, shadows=False, cirrus=True).item() == (cloud or cirrus)


def test_classes_and_nonzero():
    biome = np.array([[0, 64], [128, 192], [255, 0]], np.uint8)
    with pytest.raises(InputError, match="holds 5 values"):
        c.missing(biome)
    two = np.where(biome > 100, 7, 0)
    assert c.missing(two).tolist() == [[False, False], [True, True], [True, False]]
    assert not c.missing(np.zeros((2, 3), np.uint8)).any()
    assert c.missing(biome, classes=(192, 255)).tolist() == [
        [False, False],
        [False, True],
        [True, False],
    ]
    assert c.missing(biome, "landsat_c2", (64,)).sum() == 1
    assert c.missing(np.array([0.0, 0.5])).tolist() == [False, True]
    assert c.missing(np.array([True, False])).tolist() == [True, False]
    assert c.missing(np.zeros((0, 3), np.uint16), "landsat_c2").shape == (0, 3)


def test_bits_of_other_numbers_are_refused():
    for stored in (
        np.array([22280.0]),
        np.array([True]),
        np.array([2**16]),
        np.array([-(2**15) - 1]),
    ):
        with pytest.raises(InputError, match="expected whole numbers of 16 bits"):
            c.missing(stored, "landsat_c2")
    with pytest.raises(InputError, match="'landsat_c3', expected one of"):
        c.missing(np.array([1]), "landsat_c3")


def test_thickness_is_linear_either_way():
    kelvin = torch.tensor([[290.0, 285.0], [267.5, 240.0]])
    alpha = c.thickness(kelvin, clear=285, opaque=250)
    torch.testing.assert_close(alpha, torch.tensor([[0.0, 0.0], [0.5, 1.0]]))
    cirrus = torch.tensor([0.0, 0.01, 0.02, 0.03])
    alpha = c.thickness(cirrus, clear=0.005, opaque=0.025)
    torch.testing.assert_close(alpha, torch.tensor([0.0, 0.25, 0.75, 1.0]))


@pytest.mark.parametrize("cold", [False, True])
def test_thickness_without_values_takes_median_and_extreme(cold):
    band = torch.arange(1001.0)[torch.randperm(1001, generator=torch.Generator().manual_seed(0))]
    expected = ((band - 500) / 490).clamp(0, 1)
    if cold:
        band = 1000 - band
    torch.testing.assert_close(c.thickness(band, cold=cold), expected)


def test_impossible_thickness_is_refused():
    with pytest.raises(InputError, match="not finite"):
        c.thickness(torch.tensor([1.0, float("nan")]))
    with pytest.raises(InputError, match="no pixels"):
        c.thickness(torch.zeros(0))
    with pytest.raises(InputError, match=r"both 3\.0"):
        c.thickness(torch.full((9,), 3.0))


def test_pasted_clouds_are_pieces_of_the_layers():
    key = some_keys(4)
    layers = Bank([torch.rand(80, 90, generator=torch.Generator().manual_seed(0)).square()])
    ground = torch.full((4, 3, 40, 48), -0.5)
    image, alpha = c.paste(key, ground, layers, coverage=0.3, colour=0.7)
    assert torch.equal(alpha, layers.cut(key, 40, 48, 0.3))
    assert ((alpha > 0) & (alpha < 1)).float().mean() > 0.9
    torch.testing.assert_close(image, (-0.5 + 1.2 * alpha).expand(-1, 3, -1, -1))


@pytest.mark.parametrize(
    "wrong",
    [
        {"coverage": 1.0},
        {"coverage": float("nan")},
        {"thickness": 1.2},
        {"softness": 0.0},
        {"altitude": (0.3, 0.1)},
        {"altitude": (-0.1, 0.1)},
        {"sun": (None, 0.0)},
        {"sun": (None, 91.0)},
        {"darkness": -0.1},
    ],
)
def test_impossible_clouds_are_refused(wrong):
    with pytest.raises(InputError, match="of clouds is"):
        c.clouds(some_keys(1), 32, 32, **wrong)
