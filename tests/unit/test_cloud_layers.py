"""Cloud and ground: what is laid on, what is compared, what comes back."""

import dataclasses
import warnings

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ganlab.data.batches import DataSpec
from ganlab.errors import InputError
from ganlab.losses.adversarial import Verdict
from ganlab.randomness import keys
from ganlab.tasks import TASKS
from ganlab.tasks.cloud_layers import CloudLayers

SIZE = 16
CPU = torch.device("cpu")


def batch(bands=3, n=3, size=SIZE, seed=0, epoch=0, dtype=torch.float32):
    """Tiles with a fifth of the pixels unmeasured, which hold whatever they like."""
    rng = np.random.default_rng(seed)
    image = rng.uniform(-1, 1, (n, bands, size, size))
    valid = rng.random((n, 1, size, size)) > 0.2
    return {
        "image": torch.from_numpy(image).to(dtype),
        "valid": torch.from_numpy(valid).to(dtype),
        "sample": torch.arange(n),
        "key": torch.from_numpy(keys(5, epoch, np.arange(n))),
    }


def layered(task, **options):
    """A prepared batch whose alpha has all values from 0 to 1, the ends among them."""
    given = task.prepare(batch(task.image.channels, dtype=torch.float64, **options))
    rng = np.random.default_rng(7)
    alpha = rng.choice([0, 0.01, 0.05, 0.3, 0.75, 0.9, 1], given["alpha"].shape)
    return given | {"alpha": torch.from_numpy(alpha)}


def exact(given):
    return {"image": given["image"], "alpha": given["alpha"]}


def verdict_of(task, given, out):
    return Verdict(task.discriminator, *task.judged(given, out), given["valid"])


def losses(task, given, out=None):
    """All terms of both players, as the trainer takes them."""
    out = task.generate(given) if out is None else out
    verdict = None if task.discriminator is None else verdict_of(task, given, out)
    terms = {f"g/{k}": v for k, v in task.generator_losses(given, out, verdict).items()}
    if verdict is not None:
        found = task.discriminator_losses(given, out, verdict)
        terms |= {f"d/{k}": v for k, v in found.items()}
    return terms


# Declarations


@pytest.mark.parametrize("bands", [1, 3, 4, 13])
@pytest.mark.parametrize("order", ["joint", "sequential"])
def test_shapes_and_declarations(cloud_task, bands, order):
    task, given = cloud_task(bands, order=order), batch(bands)
    assert TASKS["cloud_layers"] is CloudLayers is type(task)
    assert [(f.name, f.source.kind) for f in task.inputs] == [("cloudy", "image")]
    kinds = [(f.name, f.source.kind, f.source.dtype) for f in task.outputs]
    assert kinds == [("image", "image", "uint8"), ("alpha", "alpha", "float32")]
    assert (task.scale, task.stride, task.keeps, task.batch_coupled) == (1, 4, True, False)
    assert task.inputs[0].source.bands == task.outputs[0].source.bands
    assert task.inputs[0].scaling == task.outputs[0].scaling == task.spec.scalings["image"]
    cloudy = task.prepare(given)["cloudy"]
    out = task.generate({"valid": given["valid"], "cloudy": cloudy})
    assert out["image"].shape == given["image"].shape
    assert out["alpha"].shape == given["valid"].shape
    assert task.last_layer is task.generator.ground.last_layer.weight
    ((field, picture),) = task.shown(given | {"cloudy": cloudy})
    assert (field.name, picture is cloudy) == ("cloudy", True)


def test_what_cannot_be_parted(cloud_task):
    with pytest.raises(InputError, match="'label' is a label source; this task is for images"):
        cloud_task(image="label")
    with pytest.raises(InputError, match=r"no source 'photo', only \['image', 'label'\]"):
        cloud_task(image="photo")
    task = cloud_task()
    fine = {"image": dataclasses.replace(task.spec.sources["image"], factor=2)}
    with pytest.raises(InputError, match="'image' has 2 x 2 pixels for each of the tile"):
        CloudLayers(task.config, DataSpec(fine, task.spec.scalings))
    for name in ("alpha", "cloudy", "colour", "shadow"):
        sources = {name: dataclasses.replace(task.spec.sources["image"], name=name)}
        spec = DataSpec(sources, {name: task.spec.scalings["image"]})
        with pytest.raises(InputError, match=f"'{name}' is a name of the task's own"):
            CloudLayers(dataclasses.replace(task.config, image=name), spec)


@pytest.mark.parametrize(
    ("clouds", "match"),
    [
        ({"white": (200.0, 180.0)}, "2 values of white for 3 bands; give 1 or all"),
        ({"coverage": (0.8, 0.3)}, r"coverage \(0.8, 0.3\) .* 0 < low <= high < 1"),
        ({"coverage": (0.0, 0.3)}, r"coverage \(0.0, 0.3\)"),
        ({"coverage": (0.5, 1.0)}, r"coverage \(0.5, 1.0\)"),
        ({"thickness": (0.5, 1.5)}, r"thickness \(0.5, 1.5\)"),
        ({"thickness": (-0.5, 0.5)}, r"thickness \(-0.5, 0.5\)"),
        ({"thickness": (0.9, 0.5)}, r"thickness \(0.9, 0.5\)"),
    ],
)
def test_clouds_that_cannot_be(cloud_task, clouds, match):
    with pytest.raises(InputError, match=match):
        cloud_task(clouds=clouds)


@pytest.mark.parametrize(
    ("clouds", "match"),
    [({"softness": 0.0}, "softness of clouds is 0"), ({"darkness": 2.0}, "darkness of clouds is")],
)
def test_clouds_that_cannot_be_made(cloud_task, clouds, match):
    task = cloud_task(clouds=clouds)
    with pytest.raises(InputError, match=match):
        task.prepare(batch())


# Clouds on clear tiles


@pytest.mark.parametrize("darkness", [0.0, 0.6])
def test_what_is_seen_is_ground_below_its_cloud(cloud_task, darkness):
    """In stored units, by hand: shadow takes light from the ground, the cloud covers both."""
    task = cloud_task(4, "uint16", clouds={"darkness": darkness, "thickness": (0.9, 1.0)})
    given = task.prepare(batch(4, n=5, size=32, dtype=torch.float64))
    alpha, shadow, colour = (given[k].double().numpy() for k in ("alpha", "shadow", "colour"))

    def stored(scaled):
        return 4550 + 4450 * scaled

    ground = stored(given["image"].numpy()) * (1 - shadow)
    expected = ground * (1 - alpha) + stored(colour) * alpha
    np.testing.assert_allclose(stored(given["cloudy"].numpy()), expected, rtol=0, atol=0.01)
    assert shadow.max() <= darkness
    assert shadow.max() == 0 or darkness > 0
    assert not darkness or shadow.max() > 0.4
    clear = ((alpha == 0) & (shadow == 0)).repeat(4, 1)
    assert clear.any()
    apart = np.abs((given["cloudy"] - given["image"]).numpy())
    assert apart[clear].max() <= 1e-15 < 0.1 < apart.mean()


@pytest.mark.parametrize("source", ["noise", "files"])
def test_clouds_follow_from_the_key_alone(cloud_task, alpha_file, source):
    clouds = {"darkness": 0.5} if source == "noise" else {"files": (alpha_file(),)}
    task, made = cloud_task(clouds=clouds), ("alpha", "shadow", "colour")

    def drawn(**options):
        given = task.prepare(batch(n=9, size=40, **options))
        return {name: given[name] for name in made}

    first, again, later = drawn(), drawn(seed=8), drawn(epoch=1)  # again: of other images
    for name in made:
        assert torch.equal(first[name], again[name]), name
    for i in range(9):
        assert not torch.equal(first["alpha"][i], later["alpha"][i])
        assert not torch.equal(first["colour"][i], later["colour"][i])
        assert i == 0 or not torch.equal(first["alpha"][0], first["alpha"][i])
    order = torch.tensor([4, 0, 7])
    some = task.prepare({k: v[order] for k, v in batch(n=9, size=40).items()})
    for name in (*made, "cloudy"):
        whole = task.prepare(batch(n=9, size=40))[name]
        assert torch.equal(some[name], whole[order]), name


def test_prepare_leaves_the_rest_of_the_batch_alone(cloud_task):
    given, same = batch(), batch()
    made = cloud_task().prepare(given)
    assert set(made) == {*given, "cloudy", "alpha", "colour", "shadow"}
    assert set(given) == set(same)
    assert all(torch.equal(made[name], value) for name, value in same.items())


def test_coverage_and_thickness_lie_in_their_ranges(cloud_task):
    clouds = {"coverage": (0.2, 0.6), "thickness": (0.5, 0.8), "softness": 0.3}
    alpha = cloud_task(clouds=clouds).prepare(batch(n=60, size=48))["alpha"]
    thickest = alpha.amax((1, 2, 3))
    assert 0.5 < thickest.min() < 0.54
    assert 0.76 < thickest.max() <= 0.8
    inside = (alpha >= thickest.view(-1, 1, 1, 1) / 2).float().mean((1, 2, 3))
    assert 0.19 < inside.min() < 0.25
    assert 0.55 < inside.max() < 0.61
    both = np.corrcoef(thickest, inside)[0, 1]
    assert abs(both) < 0.4  # drawn apart


WHITE = {
    (3, "uint8", ()): [0.9] * 3,
    (3, "uint8", (255.0,)): [1.0] * 3,
    (3, "uint8", (204.0, 102.0, 0.0)): [0.6, -0.2, -1.0],
    (13, "uint16", ()): [0.9] * 13,
    (13, "uint16", (13450.0,)): [2.0] * 13,  # beyond the scaled range, where clouds are
    (13, "uint16", tuple(100.0 + 445 * i for i in range(13))): [-1 + i / 10 for i in range(13)],
}


@pytest.mark.parametrize("how", WHITE, ids=lambda how: f"{how[0]}-{how[1]}-{len(how[2])}")
def test_white_is_given_in_stored_units(cloud_task, how):
    bands, dtype, white = how
    expected = torch.tensor(WHITE[how]).view(1, bands, 1, 1)
    given = batch(bands, n=40)
    colour = cloud_task(bands, dtype, clouds={"white": white, "tint": 0.0}).prepare(given)["colour"]
    assert (colour - expected).abs().max() < 1e-6
    tinted = cloud_task(bands, dtype, clouds={"white": white, "tint": 0.3}).prepare(given)
    below = expected - tinted["colour"]
    assert -1e-6 < below.min() < 0.02
    assert 0.28 < below.max() < 0.3 + 1e-6
    assert below.std((0, 2, 3)).min() > 0.05  # every band has its own
    opaque = tinted | {"alpha": torch.ones_like(tinted["alpha"])}
    shown = task_cover(opaque)
    assert (shown - tinted["colour"]).abs().max() < 1e-6


def task_cover(given):
    return given["image"] * (1 - given["alpha"]) + given["colour"] * given["alpha"]


@pytest.fixture
def alpha_file(tmp_path):
    """Writes a raster of alpha: noise, if no array is given."""

    def write(array=None, name="alpha.tif", **options):
        if array is None:
            array = np.random.default_rng(0).random((70, 90)).astype(np.float32)
        array = np.asarray(array)
        array = array[None] if array.ndim == 2 else array
        profile = {"driver": "GTiff", "height": array.shape[1], "width": array.shape[2]}
        profile |= {"count": len(array), "dtype": array.dtype, "crs": None, **options}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            with rasterio.open(tmp_path / name, "w", **profile) as file:
                file.write(array)
        return tmp_path / name

    return write


def test_real_layers_are_cut_and_thinned(cloud_task, alpha_file):
    """Of a layer that is 0.5 everywhere, half the drawn thickness is left; elsewhere nothing."""
    half = alpha_file(np.full((40, 40), 0.5, np.float32))
    clouds = {"files": (half,), "thickness": (0.4, 0.8), "coverage": (0.3, 0.7), "darkness": 0.5}
    made = cloud_task(clouds=clouds).prepare(batch(n=50, size=20))
    alpha = made["alpha"]
    levels = alpha.amax((1, 2, 3))
    assert (alpha == levels.view(-1, 1, 1, 1)).all()
    assert 0.2 < levels.min() < 0.22
    assert 0.38 < levels.max() < 0.4
    assert (made["shadow"] == 0).all()  # where a real cloud's shadow falls is not known
    lost = np.where(np.arange(40) < 20, np.float32(0.5), np.float32(-9))
    gone = alpha_file(np.broadcast_to(lost, (40, 40)), "lost.tif", nodata=-9)
    alpha = cloud_task(clouds=clouds | {"files": (gone,)}).prepare(batch(n=50, size=20))["alpha"]
    levels = alpha.flatten(1)
    assert ((levels == 0) | (levels == levels.amax(1, keepdim=True))).all()
    assert 0.05 < (levels == 0).float().mean() < 0.8


def test_all_layers_are_used(cloud_task, alpha_file):
    files = tuple(
        alpha_file(np.full((30, 30), level, np.float32), f"{level}.tif") for level in (0.25, 1)
    )
    clouds = {"files": files, "thickness": (0.8, 0.8), "coverage": (0.05, 0.95)}
    alpha = cloud_task(clouds=clouds).prepare(batch(n=40))["alpha"]
    assert {round(float(a.mean()), 4) for a in alpha} == {0.2, 0.8}


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (np.zeros((40, 40), np.uint8), r"alpha\.tif holds uint8 from 0 to 0; alpha is a float"),
        (np.full((40, 40), 1.5, np.float32), r"from 1\.5 to 1\.5; .*ganlab\.clouds\.thickness"),
        (np.full((40, 40), -0.5, np.float32), r"from -0\.5 to -0\.5"),
        (np.zeros((2, 40, 40), np.float32), r"alpha\.tif has 2 bands, expected one"),
        (np.zeros((10, 40), np.float32), "a mask has only 10 rows"),
        (None, r"alpha\.tif cannot be opened"),
    ],
    ids=["bytes", "too high", "negative", "two bands", "small", "no file"],
)
def test_files_that_are_no_layers(cloud_task, alpha_file, tmp_path, array, match):
    path = tmp_path / "alpha.tif" if array is None else alpha_file(array)
    task = cloud_task(clouds={"files": (path,)})
    with pytest.raises(InputError, match=match):
        task.prepare(batch())


# Losses


@pytest.mark.parametrize("compare", ["covered", "bare"])
@pytest.mark.parametrize("reconstruction", ["l1", "l2"])
def test_exact_layers_cost_nothing(cloud_task, compare, reconstruction):
    task = cloud_task(compare=compare, reconstruction=reconstruction, clouds={"darkness": 0.5})
    given = layered(task.double())
    terms = losses(task, given, exact(given))
    assert (terms["g/ground"].item(), terms["g/alpha"].item()) == (0.0, 0.0)
    off = exact(given) | {"alpha": given["alpha"] + 0.1}
    expected = 0.1 if reconstruction == "l1" else 0.01
    assert losses(task, given, off)["g/alpha"].item() == pytest.approx(expected, rel=1e-9)
    assert losses(task, given, off)["g/ground"].item() == 0  # it is the true cloud that covers


def test_what_lies_under_an_opaque_cloud_costs_nothing(cloud_task):
    task, bare = (cloud_task(compare=c).double() for c in ("covered", "bare"))
    given = layered(task)
    opaque = (given["alpha"] == 1).expand_as(given["image"])
    assert 0.1 < opaque.double().mean() < 0.2
    wrong = exact(given) | {"image": torch.where(opaque, 7.0, given["image"])}
    assert losses(task, given, wrong)["g/ground"].item() == 0
    assert losses(bare, given, wrong)["g/ground"].item() > 0.5
    condition, real, fake = task.judged(given, wrong)
    assert torch.equal(real, fake)  # nor does the discriminator see it
    _, real, fake = bare.judged(given, wrong)
    assert not torch.equal(real, fake)
    assert torch.equal(condition, given["alpha"] * given["valid"])


@pytest.mark.parametrize("compare", ["covered", "bare"])
@pytest.mark.parametrize("reconstruction", ["l1", "l2"])
@pytest.mark.parametrize("darkness", [0.0, 0.5])
def test_the_slope_of_the_ground_in_closed_form(cloud_task, compare, reconstruction, darkness):
    """By how much of the ground was visible: (1 - alpha) (1 - shadow), squared for l2."""
    options = {"compare": compare, "reconstruction": reconstruction}
    task = cloud_task(**options, clouds={"darkness": darkness, "coverage": (0.5, 0.8)})
    given = layered(task, size=32)
    made = torch.from_numpy(np.random.default_rng(2).uniform(-1, 1, given["image"].shape))
    # The cloud that covers is the true one, whatever alpha was made.
    out = {"image": made.requires_grad_(), "alpha": 0.5 * given["alpha"]}
    (slope,) = torch.autograd.grad(task.generator_losses(given, out, None)["ground"], made)
    seen = ((1 - given["alpha"]) * (1 - given["shadow"])).numpy()
    assert (given["shadow"].max() > 0.1) == (darkness > 0)
    if compare == "bare":
        seen = np.ones_like(seen)
    away, valid = (made - given["image"]).detach().numpy(), given["valid"].numpy()
    unit = np.sign(away) * seen if reconstruction == "l1" else 2 * away * seen**2
    area = 3 * valid.sum((1, 2, 3), keepdims=True)
    np.testing.assert_allclose(slope, valid * unit / area / 3, rtol=1e-6, atol=1e-12)
    hidden = (given["alpha"] == 1).expand_as(made)
    assert hidden.any()
    assert (slope[hidden] == 0).all() == (compare == "covered")
    felt = (given["valid"] > 0).expand_as(made) & ~hidden
    assert (slope[felt] != 0).all()


@pytest.mark.parametrize("order", ["joint", "sequential"])
def test_terms_by_hand(cloud_task, order):
    task = cloud_task(4, "uint16", order=order, clouds={"darkness": 0.3}).double()
    given = layered(task, size=24)
    terms, out = losses(task, given), {k: v.detach() for k, v in task.generate(given).items()}
    measured = given["valid"].numpy() > 0
    alpha, shadow = given["alpha"].numpy(), given["shadow"].double().numpy()
    apart = np.abs((out["image"] - given["image"]).numpy()) * (1 - shadow) * (1 - alpha)
    error = np.abs((out["alpha"] - given["alpha"]).numpy())

    def mean(values):
        where = np.broadcast_to(measured, values.shape)
        return np.mean([v[w].mean() for v, w in zip(values, where, strict=True)])

    assert terms["g/ground"].item() == pytest.approx(mean(apart), rel=1e-6)
    assert terms["g/alpha"].item() == pytest.approx(mean(error), rel=1e-9)
    condition, real, fake = task.judged(given, out)
    ((f, _),), ((r, _),) = task.discriminator(condition, fake), task.discriminator(condition, real)
    weight = torch.nn.functional.adaptive_avg_pool2d(given["valid"], f.shape[-2:])

    def share(values):
        return ((values * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3))).mean().item()

    assert terms["g/adversarial"].item() == pytest.approx(share((f - 1) ** 2), rel=1e-9)
    assert terms["d/adversarial"].item() == pytest.approx(share((r - 1) ** 2 + f**2), rel=1e-9)


def test_a_batch_is_the_mean_of_its_halves(cloud_task):
    task = cloud_task(clouds={"darkness": 0.5}).double()
    given = task.prepare(batch(n=6, size=24, dtype=torch.float64))
    given["valid"][:3, :, 5:] = 0
    whole = losses(task, given)
    halves = [
        losses(task, {name: value[half] for name, value in given.items()})
        for half in (slice(3), slice(3, None))
    ]
    assert set(whole) == {"g/ground", "g/alpha", "g/adversarial", "d/adversarial"}
    for name, value in whole.items():
        mean = (halves[0][name] + halves[1][name]).item() / 2
        assert value.item() == pytest.approx(mean, rel=1e-9), name


def test_weights_are_those_of_the_settings(cloud_task):
    weights = {"ground": 5.0, "alpha": 2.0, "adversarial": 0.3}
    options = {f"{name}_weight": value for name, value in weights.items()}
    generator, discriminator = cloud_task(**options, discriminator_factor=0.4).balances(10)
    one = torch.tensor(1.0)
    total, used = generator(dict.fromkeys(weights, one), None, 3)
    assert used == weights
    assert total.item() == pytest.approx(7.3)
    assert discriminator({"adversarial": one}, None, 3)[1] == {"adversarial": 0.4}
    alone = cloud_task(adversarial_weight=0.0)
    assert alone.discriminator is None
    assert set(losses(alone, alone.prepare(batch()))) == {"g/ground", "g/alpha"}


@pytest.mark.parametrize("order", ["joint", "sequential"])
def test_gradients_reach_every_weight(cloud_task, order):
    task = cloud_task(order=order)
    given = task.prepare(batch(n=4, size=24))
    terms = losses(task, given)
    sum(value for name, value in terms.items() if name.startswith("g/")).backward()
    assert all(p.grad.abs().sum() > 0 for p in task.generator.parameters())
    task.zero_grad()
    out = {name: value.detach() for name, value in task.generate(given).items()}
    losses(task, given, out)["d/adversarial"].backward()
    assert all(p.grad.abs().sum() > 0 for p in task.discriminator.parameters())
    assert all(p.grad is None for p in task.generator.parameters())


@pytest.mark.parametrize("clouds", [{"darkness": 0.5}, {"files": 1, "white": (200.0,)}])
@pytest.mark.parametrize("order", ["joint", "sequential"])
def test_nothing_waits_for_the_host(cloud_task, no_waiting, alpha_file, clouds, order):
    if "files" in clouds:
        clouds = clouds | {"files": (alpha_file(),)}
    task = cloud_task(order=order, clouds=clouds)
    task.prepare(batch())  # reads the files
    given = batch(seed=1, epoch=1)
    with no_waiting():
        given = task.prepare(given)
        terms = losses(task, given)
        task.balances(10)[0]({k[2:]: v for k, v in terms.items() if k[0] == "g"}, None, 0)
        task.parts(given)
    assert all(value.isfinite() for value in terms.values())


# What nobody may see, and what counts


def test_nothing_unmeasured_gets_through(cloud_task):
    task = cloud_task(clouds={"darkness": 0.5})
    one = batch(size=24)
    away = (one["valid"] == 0).expand_as(one["image"])
    two = one | {"image": torch.where(away, 3 * batch(size=24, seed=3)["image"], one["image"])}
    one, two = task.prepare(one), task.prepare(two)
    assert not torch.equal(one["cloudy"], two["cloudy"])
    for name, value in task.generate(one).items():
        assert torch.equal(value, task.generate(two)[name])
    for mine, other in zip(task.judged(one, exact(one)), task.judged(two, exact(two)), strict=True):
        assert torch.equal(mine, other)
        assert (mine[(one["valid"] == 0).expand_as(mine)] == 0).all()
    first, second = losses(task, one), losses(task, two)
    assert {k: v.item() for k, v in first.items()} == {k: v.item() for k, v in second.items()}


def test_parts_are_thin_cloud_clear_ground_and_all(cloud_task):
    task = cloud_task()
    given = layered(task)
    parts = task.parts(given)
    assert list(parts) == ["thin", "clear", ""]
    assert parts[""] is None
    alpha = given["alpha"]
    assert torch.equal(parts["thin"] > 0, (alpha == 0.3) | (alpha == 0.75))
    assert torch.equal(parts["clear"] > 0, (alpha == 0) | (alpha == 0.01) | (alpha == 0.05))


# Stored units


def extremes(dtype, shape, seed=0):
    """Values over the whole range of a type, the odd ones among them."""
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        values = rng.normal(0, 1e3, shape).astype(dtype)
        limits = np.finfo(dtype)
        odd = [-0.0, np.nan, np.inf, -np.inf, limits.max, limits.tiny, limits.tiny / 8, 16777217]
    else:
        limits = np.iinfo(dtype)
        values, odd = rng.integers(limits.min, limits.max, shape, dtype), [limits.min, limits.max]
    values.reshape(-1)[: len(odd)] = odd
    return values


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    bands=st.sampled_from([1, 3, 4, 13]),
    trained=st.sampled_from(["uint8", "uint16", "int16", "float32"]),
    stored=st.sampled_from([None, "uint8", "uint16", "int16", "uint32", "int32", "float64"]),
    clear=st.sampled_from([0.0, 0.02, 0.5, 1.1]),
    seed=st.integers(0, 99),
)
def test_clear_pixels_come_back_bit_for_bit(cloud_task, bands, trained, stored, clear, seed):
    """Also from scenes of a type that is wider, or narrower, than that of the training."""
    rng = np.random.default_rng(seed)
    task = cloud_task(bands, trained, clear=clear)
    image = extremes(stored or trained, (1, bands, 12, 9), seed)
    alpha = rng.choice(np.float32([-0.1, 0, 0.019, 0.02, 0.4, 0.5, 1, 1.2]), (1, 1, 12, 9))
    made = torch.from_numpy(rng.uniform(-3, 3, (1, bands, 12, 9))).float()
    outputs = {"image": made, "alpha": torch.from_numpy(alpha)}
    composed = task.compose({"cloudy": image}, outputs)
    assert set(composed) == {"image", "alpha"}
    got = composed["image"]
    assert got.dtype == image.dtype
    kept = np.broadcast_to(np.clip(alpha, 0, 1) < np.float32(clear), image.shape)
    assert kept.any() == (clear > 0)
    assert got[kept].tobytes() == image[kept].tobytes()
    expected = task.image.scaling.decode(made, image.dtype.name)
    assert np.array_equal(got[~kept], expected[~kept])
    assert composed["alpha"].dtype == np.float32
    assert np.array_equal(composed["alpha"], np.clip(alpha, 0, 1))


def test_encode_is_what_batches_are(cloud_task):
    task, rng = cloud_task(4, "uint16"), np.random.default_rng(0)
    image = rng.integers(0, 60000, (2, 4, 8, 8), np.uint16)
    valid = rng.random((2, 1, 8, 8)) > 0.4
    given = task.encode({"cloudy": image}, valid, CPU)
    assert set(given) == {"cloudy", "valid"}
    expected = np.where(valid, image, (100 + 2 * 9000) / 3)
    np.testing.assert_allclose(given["cloudy"].numpy(), (expected - 4550) / 4450, atol=1e-6)
    assert set(task.sample(given, 0)) == {"image", "alpha"}
