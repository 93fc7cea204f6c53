"""Super-resolution: what is given, what is judged, what is compared, at which resolution."""

import dataclasses

import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import from_origin

from ganlab.config import (
    ScalingConfig,
    ScheduleConfig,
    SensorConfig,
    SplitConfig,
    SuperResolutionConfig,
    TilingConfig,
)
from ganlab.data.batches import Batches, DataSpec, describe
from ganlab.data.tiling import tile
from ganlab.errors import InputError
from ganlab.losses.adversarial import Verdict
from ganlab.randomness import keys
from ganlab.resolution import enlarge, sensor
from ganlab.tasks import TASKS
from ganlab.tasks.super_resolution import SuperResolution

SIZE = 24
CPU = torch.device("cpu")
FULL = {"adversarial_weight": 1.0, "matching_weight": 2.0, "similarity_weight": 3.0}


def batch(bands=3, n=3, size=SIZE, seed=0, epoch=0, dtype=torch.float32, fine=None, factor=2):
    """Tiles of which some blocks are unmeasured; ``fine`` bands of a second source."""
    rng = np.random.default_rng(seed)

    def image(bands, size):
        return torch.from_numpy(rng.uniform(-1, 1, (n, bands, size, size))).to(dtype)

    valid = rng.random((n, 1, size // 4, size // 4)) > 0.2
    given = {
        "image": image(bands, size),
        "valid": torch.from_numpy(valid.repeat(4, 2).repeat(4, 3)).to(dtype),
        "sample": torch.arange(n),
        "key": torch.from_numpy(keys(5, epoch, np.arange(n))),
    }
    # One lonely pixel: the coarse pixel around it is not measured, either.
    given["valid"][:, :, 5, 6] = 0
    return given | ({"fine": image(fine, factor * size)} if fine else {})


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


def cells(image, factor):
    """``(n, c, h, w)`` to ``(n, c, h / factor, w / factor, factor * factor)``."""
    n, c, h, w = image.shape
    parts = image.reshape(n, c, h // factor, factor, w // factor, factor)
    return np.moveaxis(parts, 3, 4).reshape(n, c, h // factor, w // factor, -1)


def finer(coarse, factor):
    return np.asarray(coarse).repeat(factor, -1).repeat(factor, -2)


# Declarations


@pytest.mark.parametrize("bands", [1, 3, 13])
@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_one_source_and_its_coarser_self(super_task, bands, factor):
    task, given = super_task(bands, factor=factor), batch(bands)
    assert TASKS["super_resolution"] is SuperResolution is type(task)
    ((coarse,), (fine,)) = task.inputs, task.outputs
    assert (coarse.name, fine.name) == ("coarse", "image")
    assert dataclasses.replace(coarse.source, name="image") == fine.source
    assert coarse.scaling == fine.scaling == task.spec.scalings["image"]
    assert (task.scale, task.stride, task.keeps, task.hole) == (factor, 4, False, None)
    assert task.pixel_size == 10 * factor  # that of the input
    made = task.prepare(given)
    side = SIZE // factor
    assert made["coarse"].shape == (3, bands, side, side)
    assert made["valid"].shape == (3, 1, side, side)
    out = task.generate({"coarse": made["coarse"], "valid": made["valid"]})
    assert {name: value.shape for name, value in out.items()} == {"image": given["image"].shape}
    assert task.last_layer is task.generator.last_layer.weight
    ((field, picture),) = task.shown(made)
    assert (field.name, picture is made["coarse"]) == ("coarse", True)


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_two_sources_on_nested_grids(super_task, factor):
    """Three bands of 30 m to one of 15 m, say; tiles and their valid mask count coarse pixels."""
    task = super_task(3, out=1, factor=factor)
    given = batch(3, fine=1, factor=factor)
    ((coarse,), (fine,)) = task.inputs, task.outputs
    assert (coarse.name, coarse.source.dtype, fine.name, fine.source.dtype) == (
        "image", "uint8", "fine", "uint16"
    )  # fmt: skip
    assert (coarse.scaling, fine.scaling) == tuple(task.spec.scalings.values())
    assert task.pixel_size == 10
    made = task.prepare(given)
    assert made is given
    out = task.generate({"image": made["image"], "valid": made["valid"]})
    assert out["fine"].shape == given["fine"].shape == (3, 1, factor * SIZE, factor * SIZE)
    terms = losses(task, made)
    assert all(value.isfinite() for value in terms.values())
    task.spec = DataSpec(task.spec.sources, task.spec.scalings, None)
    assert task.pixel_size is None


def test_sources_that_do_not_fit(super_task):
    spec = super_task(3, out=1, factor=2).spec
    with pytest.raises(InputError, match="'fine' has 2 pixels along one of 'image', expected .*4"):
        SuperResolution(SuperResolutionConfig(image="fine", coarse="image", factor=4), spec)
    with pytest.raises(InputError, match="'image' has 1 pixels along one of 'image'.*--fine"):
        super_task(coarse="image")
    with pytest.raises(InputError, match="'label' has 1 pixels along one of 'image'"):
        super_task(image="label", coarse="image")
    with pytest.raises(InputError, match="'label' is a label source"):
        super_task(image="label")
    with pytest.raises(InputError, match="'label' is a label source"):
        super_task(3, out=1, coarse="label")
    with pytest.raises(InputError, match="'fine' has 2 x 2 pixels for each of the tile"):
        super_task(3, out=1, coarse=None)
    with pytest.raises(InputError, match="no source 'pan'"):
        super_task(image="pan")
    with pytest.raises(InputError, match="factor 3: expected a power of two"):
        super_task(factor=3)
    task = super_task()
    sources = {"coarse": dataclasses.replace(task.spec.sources["image"], name="coarse")}
    spec = DataSpec(sources, {"coarse": task.spec.scalings["image"]})
    with pytest.raises(InputError, match="'coarse' is a name of the task's own"):
        SuperResolution(dataclasses.replace(task.config, image="coarse"), spec)


def test_tiles_that_do_not_divide(super_task):
    with pytest.raises(InputError, match="24 x 24 pixels does not divide into cells of 16 x 16"):
        super_task(factor=16).prepare(batch())


# The coarser sensor


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_a_coarse_pixel_is_the_mean_of_fine_ones(super_task, factor):
    """Where all of them were measured; elsewhere it is not valid, and holds the band's mean."""
    task, given = super_task(factor=factor), batch(dtype=torch.float64)
    made = task.prepare(given)
    image, valid = given["image"].numpy(), given["valid"].numpy()
    whole = cells(valid, factor).all(-1)
    assert np.array_equal(made["valid"].numpy() > 0, whole)
    assert 0.4 < whole.mean() < 0.9
    # A third and two thirds of the range, in network units.
    expected = np.where(whole, cells(image, factor).mean(-1), 1 / 3)
    np.testing.assert_allclose(made["coarse"].numpy(), expected, rtol=0, atol=1e-7)
    assert torch.equal(made["image"], given["image"])
    assert set(made) == {*given, "coarse"}
    assert "coarse" not in given


def test_optics_and_noise_are_those_of_the_settings(super_task):
    given = batch(n=4, dtype=torch.float64)
    given["valid"] = torch.ones_like(given["valid"])
    for blur, noise in ((0.0, 0.0), (0.5, 0.0), (0.0, 0.1), (0.4, 0.2)):
        task = super_task(sensor=SensorConfig(blur, noise))
        expected = sensor(given["image"], given["key"], 2, blur=blur, noise=noise)
        assert torch.equal(task.prepare(given)["coarse"], expected)
    plain, blurred, noisy = (
        super_task(sensor=SensorConfig(*s)).prepare(given)["coarse"]
        for s in ((0, 0), (0.5, 0), (0, 0.1))
    )
    assert blurred.std() < 0.9 * plain.std()
    assert (noisy - plain).std().item() == pytest.approx(0.1, rel=0.1)


def test_noise_follows_from_the_key_alone(super_task):
    task = super_task(sensor=SensorConfig(0.4, 0.1))
    clean = super_task(sensor=SensorConfig(0.4, 0.0))

    def noise(**options):
        given = batch(n=6, **options)
        given["valid"] = torch.ones_like(given["valid"])
        return task.prepare(given)["coarse"] - clean.prepare(given)["coarse"]

    first = noise()
    assert (noise(seed=3) - first).abs().max() < 1e-6
    later = noise(epoch=1)
    assert min((a - b).abs().max() for a, b in zip(first, later, strict=True)) > 0.1
    assert min((first[0] - other).abs().max() for other in first[1:]) > 0.1
    order = torch.tensor([4, 0])
    whole = task.prepare(batch(n=6))["coarse"]
    some = task.prepare({name: value[order] for name, value in batch(n=6).items()})["coarse"]
    assert torch.equal(some, whole[order])


def test_an_autoencoder_is_given_what_it_makes(super_task):
    task, given = super_task(factor=1), batch()
    made = task.prepare(given)
    seen = (given["valid"] > 0).expand_as(given["image"])
    assert torch.equal(made["coarse"][seen], given["image"][seen])
    assert torch.equal(made["valid"], given["valid"])
    out = task.generate(made)["image"]
    assert not task.generator.residual  # or it would be right without learning
    assert (out - made["coarse"])[seen].abs().mean() > 0.3


def test_it_starts_as_the_bicubic_enlargement(super_task):
    task = super_task(factor=4)
    given = task.prepare(batch())
    assert torch.equal(task.generate(given)["image"], enlarge(given["coarse"], 4))


# What is judged and compared


@pytest.mark.parametrize("sources", [1, 2])
@pytest.mark.parametrize("conditional", [False, True])
def test_what_the_judge_sees(super_task, sources, conditional):
    options = {"conditional": conditional, "residual": False}
    if sources == 1:
        task, given = super_task(**options), batch(n=2)
    else:
        task, given = super_task(3, out=1, **options), batch(n=2, fine=1)
    name, given = task.outputs[0].name, task.prepare(given)
    out = task.generate(given)
    condition, real, fake = task.judged(given, out)
    seen = torch.from_numpy(finer(given["valid"].numpy(), 2)) > 0
    assert real.shape == fake.shape == given[name].shape
    assert 0.05 < (~seen).float().mean() < 0.6
    for shown, whole in ((real, given[name]), (fake, out[name])):
        where = seen.expand_as(shown)
        assert torch.equal(shown[where], whole[where])
        assert (shown[~where] == 0).all()
    first = next(p for p in task.discriminator.parameters())
    if conditional:
        coarse = given[task.inputs[0].name] * given["valid"]
        assert torch.equal(condition, enlarge(coarse, 2))
        assert first.shape[1] == real.shape[1] + 3
    else:
        assert condition is None
        assert first.shape[1] == real.shape[1]
    ((logits, features),) = task.discriminator(condition, fake)
    assert logits.isfinite().all()
    assert len(features) == 2


@pytest.mark.parametrize("sources", [1, 2])
@pytest.mark.parametrize("reconstruction", ["l1", "l2"])
@pytest.mark.parametrize("layers", [(), (-1,), (0,)])
def test_terms_by_hand(super_task, sources, reconstruction, layers):
    options = {"reconstruction": reconstruction, "feature_layers": layers, "residual": False} | FULL
    if sources == 1:
        task, given = super_task(factor=4, **options), batch(n=4, dtype=torch.float64)
    else:
        task = super_task(3, out=1, factor=4, **options)
        given = batch(n=4, size=8, fine=1, factor=4, dtype=torch.float64)
    name, given = task.outputs[0].name, task.double().prepare(given)
    terms, out = losses(task, given), {k: v.detach() for k, v in task.generate(given).items()}
    seen = finer(given["valid"].numpy(), 4) > 0
    away = (out[name] - given[name]).numpy()
    error = np.abs(away) if reconstruction == "l1" else away**2
    where = np.broadcast_to(seen, error.shape)
    expected = np.mean([e[w].mean() for e, w in zip(error, where, strict=True)])
    assert terms[f"g/{reconstruction}"].item() == pytest.approx(expected, rel=1e-9)
    condition, real, fake = task.judged(given, out)
    (f, made), (r, true) = (task.discriminator(condition, x)[0] for x in (fake, real))
    weight = torch.nn.functional.adaptive_avg_pool2d(given["valid"], f.shape[-2:])

    def share(values):
        return ((values * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3))).mean().item()

    assert terms["g/adversarial"].item() == pytest.approx(share((f - 1) ** 2), rel=1e-9)
    assert terms["d/adversarial"].item() == pytest.approx(share((r - 1) ** 2 + f**2), rel=1e-9)
    pairs = [(made[i].detach().numpy(), true[i].detach().numpy()) for i in layers or (0, 1)]
    matching = np.mean([((a.mean(0) - b.mean(0)) ** 2).mean() for a, b in pairs])
    similarity = np.mean([((a - b) ** 2).mean() for a, b in pairs])
    assert terms["g/matching"].item() == pytest.approx(matching, rel=1e-9)
    assert terms["g/similarity"].item() == pytest.approx(similarity, rel=1e-9)
    assert matching < 0.9 * similarity  # averages forgive


def test_terms_are_named_as_configured(super_task):
    off = {"adversarial_weight": 0.0}
    for changes, more in (
        ({}, {"adversarial"}),
        (off, set()),
        (off | {"matching_weight": 1.0}, {"matching"}),
        (off | {"similarity_weight": 1.0}, {"similarity"}),
        (FULL, {"adversarial", "matching", "similarity"}),
        ({"reconstruction": "l2"}, {"adversarial"}),
    ):
        task = super_task(**changes)
        terms = losses(task, task.prepare(batch()))
        names = {name[2:] for name in terms if name[0] == "g"}
        assert names == {changes.get("reconstruction", "l1")} | more
        # Features are worth something only of a discriminator that learns.
        judged = {"d/adversarial"} if more else set()
        assert {name for name in terms if name[0] == "d"} == judged
        assert (task.discriminator is None) == (not more)
        assert all(value.ndim == 0 for value in terms.values())
        task.balances(10)[0]({name: terms[f"g/{name}"] for name in names}, None, 0)


def test_weights_are_those_of_the_settings(super_task):
    options = {f"{name}_weight": w for name, w in (("reconstruction", 5.0), ("adversarial", 0.3))}
    task = super_task(**FULL | options, discriminator_factor=0.4, reconstruction="l2")
    generator, discriminator = task.balances(10)
    expected = {"l2": 5.0, "adversarial": 0.3, "matching": 2.0, "similarity": 3.0}
    one = torch.tensor(1.0)
    total, used = generator(dict.fromkeys(expected, one), None, 9)
    assert used == expected
    assert total.item() == pytest.approx(10.3)
    assert discriminator({"adversarial": one}, None, 3)[1] == {"adversarial": 0.4}


@pytest.mark.parametrize("reconstruction", ["l1", "l2"])
def test_the_reconstruction_fades_out(super_task, reconstruction):
    fade = ScheduleConfig("fade_out", start=0.2, stop=0.6)
    options = {"reconstruction": reconstruction, "reconstruction_weight": 50.0}
    generator, _ = super_task(**options, reconstruction_schedule=fade).balances(100)
    terms = {reconstruction: torch.tensor(3.0), "adversarial": torch.tensor(1.0)}
    found = {step: generator(terms, None, step) for step in (0, 20, 40, 60, 99)}
    weights = {step: used[reconstruction] for step, (_, used) in found.items()}
    assert weights == pytest.approx({0: 50, 20: 50, 40: 25, 60: 0, 99: 0})
    assert weights[99] == 0
    assert [float(total) for total, _ in found.values()] == pytest.approx([151, 151, 76, 1, 1])
    assert all(used["adversarial"] == 1 for _, used in found.values())


# Features


def gradients(module):
    return [p.grad for p in module.parameters()]


@pytest.mark.parametrize("name", ["matching", "similarity"])
def test_feature_terms_teach_the_generator_alone(super_task, name):
    """The Trainer freezes the discriminator while the generator learns; no truth is moved."""
    task = super_task(**FULL, residual=False)
    given = task.prepare(batch(n=4))
    given["image"].requires_grad_()
    task.discriminator.requires_grad_(False)
    out = task.generate(given)
    term = task.generator_losses(given, out, verdict_of(task, given, out))[name]
    term.backward()
    assert all(g is not None and g.abs().sum() > 0 for g in gradients(task.generator))
    assert all(g is None for g in gradients(task.discriminator))
    assert given["image"].grad is None or given["image"].grad.abs().max() == 0
    # Nor is there a feature term in the discriminator's own loss.
    assert {k for k in losses(task, given) if k[0] == "d"} == {"d/adversarial"}
    same = {"image": given["image"].detach()}
    term = task.generator_losses(given, same, verdict_of(task, given, same))[name]
    assert term.item() == 0


def test_matching_couples_the_batch_and_says_so(super_task):
    for changes in ({}, {"similarity_weight": 1.0}):
        assert not super_task(**changes).batch_coupled
    task = super_task(**FULL, residual=False).double()
    assert task.batch_coupled
    given = task.prepare(batch(n=6, dtype=torch.float64))
    given["valid"] = torch.ones_like(given["valid"])
    out = {"image": batch(n=6, seed=9, dtype=torch.float64)["image"]}
    whole = losses(task, given, out)
    halves = [
        losses(
            task, *({name: value[half] for name, value in both.items()} for both in (given, out))
        )
        for half in (slice(3), slice(3, None))
    ]
    for name, value in whole.items():
        mean = (halves[0][name] + halves[1][name]).item() / 2
        if name == "g/matching":
            assert mean > 1.1 * value.item()
        else:
            assert value.item() == pytest.approx(mean, rel=1e-9), name
    order = torch.tensor([3, 0, 5, 1, 2, 4])
    mixed = losses(task, given, {"image": out["image"][order]})
    assert mixed["g/matching"].item() == pytest.approx(whole["g/matching"].item(), rel=1e-9)
    assert mixed["g/similarity"].item() != pytest.approx(whole["g/similarity"].item(), rel=1e-3)


@pytest.mark.parametrize("enlarge_by", ["subpixel", "resize", "transposed"])
@pytest.mark.parametrize("factor", [1, 2])
def test_gradients_reach_every_weight(super_task, enlarge_by, factor):
    task = super_task(factor=factor, enlarge=enlarge_by, residual=False, conditional=True)
    given = task.prepare(batch(n=4))
    terms = losses(task, given)
    sum(value for name, value in terms.items() if name[0] == "g").backward()
    assert all(g.abs().sum() > 0 for g in gradients(task.generator))
    task.zero_grad()
    out = {name: value.detach() for name, value in task.generate(given).items()}
    losses(task, given, out)["d/adversarial"].backward()
    assert all(g.abs().sum() > 0 for g in gradients(task.discriminator))
    assert all(g is None for g in gradients(task.generator))


@pytest.mark.parametrize("sources", [1, 2])
def test_nothing_waits_for_the_host(super_task, no_waiting, sources):
    options = FULL | {"sensor": SensorConfig(0.4, 0.1), "conditional": True}
    if sources == 1:
        task, given = super_task(**options), batch()
    else:
        task, given = super_task(3, out=1, **options), batch(fine=1)
    with no_waiting():
        given = task.prepare(given)
        terms = losses(task, given)
        task.balances(10)[0]({k[2:]: v for k, v in terms.items() if k[0] == "g"}, None, 0)
    assert all(value.isfinite() for value in terms.values())


@pytest.mark.parametrize("sources", [1, 2])
def test_nothing_unmeasured_gets_through(super_task, sources):
    options = FULL | {"conditional": True, "residual": False}
    if sources == 1:
        task, one, two = super_task(**options), batch(), batch(seed=3)
    else:
        task, one = super_task(3, out=1, **options), batch(fine=1)
        two = batch(fine=1, seed=3)
    name, valid = task.outputs[0].name, one["valid"]
    if sources == 2:  # batches fill what is given; what is compared may hold anything
        valid = torch.from_numpy(finer(valid, 2))
    other = torch.where(valid > 0, one[name], 5 * two[name])
    one, two = task.prepare(one), task.prepare(one | {name: other})
    assert not torch.equal(one[name], two[name])
    assert torch.equal(task.generate(one)[name], task.generate(two)[name])
    first, second = losses(task, one), losses(task, two)
    assert {k: v.item() for k, v in first.items()} == {k: v.item() for k, v in second.items()}


# Tiles


def write(path, array, pixel):
    """A raster whose first corner lies at (600, 9000)."""
    profile = {"driver": "GTiff", "width": array.shape[2], "height": array.shape[1]}
    profile |= {"count": len(array), "crs": "EPSG:32633", "nodata": 0}
    place = from_origin(600, 9000, pixel, pixel)
    with rasterio.open(path, "w", dtype=array.dtype, transform=place, **profile) as file:
        file.write(array)
    return str(path)


@pytest.mark.parametrize("crop", [None, 12])
@pytest.mark.parametrize("factor", [2, 4])
def test_a_store_with_a_finer_source(super_task, tmp_path, crop, factor):
    """Coarse pixels are means of fine ones, and stay so in every crop, flip and turn."""
    rng, unit = np.random.default_rng(0), factor * factor
    fine = rng.integers(1, 4000, (1, 48 * factor, 64 * factor), np.uint16)
    fine[:, 3::29, 2::29] = 0  # not measured; so are the coarse pixels around them
    coarse = np.stack([cells(fine[None], factor).sum(-1, dtype=np.int32)[0, 0]] * 3)
    paths = write(tmp_path / "c.tif", coarse, 30), write(tmp_path / "f.tif", fine, 30 / factor)
    config = TilingConfig((paths[0],), tmp_path / "tiles", fine=(paths[1],), size=16)
    store = tile(config)
    assert {name: s.factor for name, s in store.sources.items()} == {"image": 1, "fine": factor}
    tiles = store.split(SplitConfig(block=16)).train
    spec = describe(store, tiles, ScalingConfig(low=(0.0,), high=(4000.0,)))
    scalings = spec.scalings | {
        "image": dataclasses.replace(spec.scalings["image"], high=(4000.0 * unit,) * 3)
    }
    spec = DataSpec(spec.sources, scalings, spec.pixel_size)
    settings = super_task(3, out=1, factor=factor, residual=False).config
    task = SuperResolution(settings, spec)
    assert task.pixel_size == pytest.approx(30, rel=0.01)  # metres on the ground
    batches, side = Batches(store, tiles, spec, batch_size=6, crop=crop), crop or 16
    met = set()
    for step in range(4):
        given = task.prepare(batches[step])
        assert given["image"].shape == (6, 3, side, side)
        assert given["valid"].shape == (6, 1, side, side)
        assert given["fine"].shape == (6, 1, factor * side, factor * side)
        mean = cells(given["fine"].double().numpy(), factor).mean(-1)
        apart = np.abs(mean - given["image"][:, :1].numpy())[given["valid"].numpy() > 0]
        assert apart.max() < 1e-6
        assert task.generate(given)["fine"].shape == given["fine"].shape
        assert all(value.isfinite() for value in losses(task, given).values())
        met |= set(given["valid"].mean((1, 2, 3)).tolist())
    assert min(met) < 1


# Stored units


def test_encode_is_what_batches_are_and_compose_leads_back(super_task):
    task, rng = super_task(4, "uint16", residual=False), np.random.default_rng(0)
    coarse = rng.integers(0, 60000, (2, 4, 8, 8), np.uint16)
    valid = rng.random((2, 1, 8, 8)) > 0.4
    given = task.encode({"coarse": coarse}, valid, CPU)
    assert set(given) == {"coarse", "valid"}
    expected = np.where(valid, coarse, (100 + 2 * 9000) / 3)
    np.testing.assert_allclose(given["coarse"].numpy(), (expected - 4550) / 4450, atol=1e-6)
    out = task.sample(given, 0)
    composed = task.compose({"coarse": coarse}, out)
    assert {k: (v.dtype, v.shape) for k, v in composed.items()} == {
        "image": (np.uint16, (2, 4, 16, 16))
    }
    expected = np.rint(out["image"].double().numpy() * 4450 + 4550)
    assert np.abs(composed["image"] - expected).max() <= 1
