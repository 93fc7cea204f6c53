"""Inpainting and two-stage reconstruction: what is taken away, what nobody may see, what counts."""

import dataclasses
import json
import warnings

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ganlab.config import (
    FeaturesConfig,
    HoleJudgeConfig,
    HolesConfig,
    Pix2PixConfig,
    SplitConfig,
    TilingConfig,
    TrainingConfig,
)
from ganlab.data.batches import Batches, DataSpec
from ganlab.data.tiling import tile
from ganlab.errors import InputError
from ganlab.losses.adversarial import Verdict
from ganlab.randomness import keys
from ganlab.tasks import TASKS
from ganlab.tasks.inpainting import Inpainting
from ganlab.training import checkpoints, load_task, train
from ganlab.training.runs import read_config

KINDS = ("inpainting", "two_stage")
DRAWN = ("rectangle", "circle", "polygon", "stroke", "stripe", "cloud")
SIZE = 16
both = pytest.mark.parametrize("kind", KINDS)


def batch(bands=3, n=3, size=SIZE, seed=0, epoch=0, dtype=torch.float32):
    """Tiles with a fifth of the pixels unmeasured, which hold whatever they like."""
    rng = np.random.default_rng(seed)

    def image(low, high):
        values = rng.uniform(low, high, (n, bands, size, size))
        return torch.from_numpy(values).to(dtype)

    return {
        "image": image(-1, 1),
        "label": torch.from_numpy(rng.choice([0, 1, 7], (n, 1, size, size))),
        "valid": torch.from_numpy(rng.random((n, 1, size, size)) > 0.2).to(dtype),
        "sample": torch.arange(n),
        "key": torch.from_numpy(keys(5, epoch, np.arange(n))),
    }


def losses(task, given):
    """All terms of both players, as the trainer takes them."""
    out = task.generate(given)
    verdict = None
    if task.discriminator is not None:
        verdict = Verdict(task.discriminator, *task.judged(given, out), given["valid"])
    terms = {f"g/{k}": v for k, v in task.generator_losses(given, out, verdict).items()}
    if verdict is not None:
        found = task.discriminator_losses(given, out, verdict)
        terms |= {f"d/{k}": v for k, v in found.items()}
    return terms


def holes_of(*kinds, **options):
    return {"holes": HolesConfig(kinds=kinds, **{"coverage": (0.2, 0.5)} | options)}


EVERYTHING = {"variation_weight": 0.1, "perceptual_weight": 0.2, "style_weight": 50.0}


# Declarations


@both
@pytest.mark.parametrize("bands", [1, 3, 4, 13])
def test_shapes_and_declarations(hole_task, kind, bands):
    task, given = hole_task(kind, bands), batch(bands)
    assert isinstance(task, TASKS[kind])
    assert [field.name for field in task.inputs] == ["image", "hole"]
    assert [field.name for field in task.outputs] == ["image", "invented"]
    assert (task.scale, task.stride, task.batch_coupled) == (1, 4, False)
    hole = task.prepare(given)["hole"]
    out = task.generate({"valid": given["valid"], "image": given["image"], "hole": hole})
    assert out["image"].shape == out["raw"].shape == given["image"].shape
    assert torch.equal(out["invented"], hole)
    stage = task.stages(given | {"hole": hole}, out)
    assert set(stage) == ({"coarse stage"} if kind == "two_stage" else set())
    assert task.last_layer is list(task.generator.parameters())[-2]
    shown = task.shown(given | {"hole": hole})
    ((field, picture),) = shown
    assert field.name == "image"
    expected = torch.where(hole > 0, 1.0, given["image"])
    assert torch.equal(picture, expected)


def test_the_coarse_stage_is_composed_as_the_output_is(hole_task):
    task = hole_task("two_stage")
    given = task.prepare(batch())
    out = task.generate(given)
    (coarse,) = task.stages(given, out).values()
    inside = (given["hole"] > 0).expand_as(coarse)
    assert torch.equal(coarse[~inside], given["image"][~inside])
    assert torch.equal(coarse[inside], out["coarse"][inside])
    assert not torch.equal(out["coarse"], out["raw"])


@both
@pytest.mark.parametrize("layer", ["gated", "dcgan"])
def test_windows_start_at_multiples_of_the_networks_stride(hole_task, kind, layer):
    task = hole_task(kind)
    wide = dataclasses.replace(task.config.generator, layer=layer)
    assert hole_task(kind, generator=wide).stride == (16 if layer == "dcgan" else 4)


def test_labels_and_unknown_sources_are_refused(hole_task):
    for kind in KINDS:
        with pytest.raises(InputError, match="'label' is a label source; this task is for im"):
            hole_task(kind, image="label")
        with pytest.raises(InputError, match=r"no source 'photo', only \['image', 'label'\]"):
            hole_task(kind, image="photo")
        with pytest.raises(InputError, match="'image' is an image source; footprints are classes"):
            hole_task(kind, **holes_of("footprint", footprints="image"))
        with pytest.raises(InputError, match="no source 'houses'"):
            hole_task(kind, **holes_of("circle", "footprint", footprints="houses"))
        with pytest.raises(InputError, match=r"classes \[5\] .* 'label' has only \[0, 1, 7\]"):
            hole_task(kind, **holes_of("footprint", footprint_classes=(1, 5)))


def test_images_finer_than_the_tiles_are_refused(hole_task):
    task = hole_task()
    fine = {"image": dataclasses.replace(task.spec.sources["image"], factor=2)}
    with pytest.raises(InputError, match="'image' has 2 x 2 pixels for each of the tile"):
        Inpainting(task.config, DataSpec(fine, task.spec.scalings))


@pytest.mark.parametrize("name", ["raw", "coarse", "hole", "invented", "noise"])
def test_names_of_the_tasks_own_are_refused(hole_task, name):
    """A composed image under the name of the painted one would be learnt from in its place."""
    task = hole_task()
    sources = {name: dataclasses.replace(task.spec.sources["image"], name=name)}
    spec = DataSpec(sources, {name: task.spec.scalings["image"]})
    with pytest.raises(InputError, match=f"'{name}' is a name of the task's own"):
        Inpainting(dataclasses.replace(task.config, image=name), spec)


# Holes


@both
@pytest.mark.parametrize("shape", DRAWN)
def test_a_hole_follows_from_the_key_alone(hole_task, kind, shape):
    task = hole_task(kind, **holes_of(shape, coverage=(0.2, 0.5)))
    first = task.prepare(batch(n=9, size=40))["hole"]
    assert first.shape == (9, 1, 40, 40)
    assert set(first.unique().tolist()) == {0.0, 1.0}
    again = task.prepare(batch(n=9, size=40, seed=8))["hole"]  # of other images
    assert torch.equal(first, again)
    later = task.prepare(batch(n=9, size=40, epoch=1))["hole"]
    assert all(not torch.equal(a, b) for a, b in zip(first, later, strict=True))
    assert all(not torch.equal(first[0], other) for other in first[1:])
    order = torch.tensor([4, 0, 7])
    some = {name: value[order] for name, value in batch(n=9, size=40).items()}
    assert torch.equal(task.prepare(some)["hole"], first[order])
    share = torch.cat([first, later]).mean((1, 2, 3))
    edge = 1 / 40  # rectangles grow by whole rows
    assert share.min() > 0.2 - edge
    assert share.max() < 0.5 + edge
    assert share.max() - share.min() > 0.1


@both
def test_prepare_leaves_the_rest_of_the_batch_alone(hole_task, kind):
    given, same = batch(), batch()
    made = hole_task(kind).prepare(given)
    assert set(made) == {*given, "hole"}
    assert "hole" not in given
    assert all(torch.equal(made[name], value) for name, value in same.items())
    fine = hole_task(kind).prepare(batch(dtype=torch.float64))
    assert fine["hole"].dtype == torch.float64


@both
def test_footprints_are_those_of_the_label(hole_task, kind):
    task = hole_task(kind, **holes_of("footprint", coverage=(0.1, 0.2), footprint_classes=(1, 7)))
    given = batch(n=6, size=32)
    label = torch.zeros(6, 1, 32, 32, dtype=torch.int64)
    label[:, :, 4:14, 4:28], label[:, :, 18:30, 2:30] = 1, 7
    hole = task.prepare(given | {"label": label})["hole"]
    assert (label[hole > 0] > 0).all()
    share = hole.mean((1, 2, 3))
    assert ((share > 0.09) & (share < 0.21)).all()
    taken = [{int(c) for c in label[i][hole[i] > 0].unique()} for i in range(6)]
    assert set().union(*taken) == {1, 7}


def mask_file(path, array, crs="EPSG:32633", nodata=None):
    array = np.asarray(array)
    profile = {"driver": "GTiff", "height": array.shape[0], "width": array.shape[1], "count": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path, "w", dtype=array.dtype, crs=crs, nodata=nodata, **profile) as file:
            file.write(array[None])
    return path


def stripes(dtype, value, other, width=8, size=64):
    """Columns of one value and of another, in turns."""
    line = np.where(np.arange(size) // width % 2 == 1, value, other)
    return np.broadcast_to(line, (size, size)).astype(dtype)


# What the files hold for missing pixels, and for others; how they are read.
FILES = {
    "zero or not": ("uint8", 255, 0, {}),
    "without place": ("uint8", 1, 0, {"crs": None}),
    "nodata beside": ("uint8", 3, 9, {"nodata": 9}),
    "classes": ("int16", 192, 128, {"classes": (192, 255)}),
    # Fill, terrain, water, low cloud, snow and cirrus are no reason; cloud is.
    "landsat_pre": ("uint16", 0b11_00_00_00_00_01_00_00, 0b01_11_11_00_00_11_01_00, {}),
    "landsat_c1": ("uint16", 0b1_00_00_00_00_1_00_00, 0b0_11_11_00_00_0_11_10, {}),
    "landsat_c2": ("uint16", 0b1000, 0b1110_0001_1110_0111, {}),
}


@both
@pytest.mark.parametrize("how", FILES)
def test_holes_from_files(hole_task, tmp_path, kind, how):
    dtype, value, other, options = FILES[how]
    reading = {"classes": options["classes"]} if "classes" in options else {}
    if how.startswith("landsat"):
        reading = {"read_as": how}
    options = {name: v for name, v in options.items() if name != "classes"}
    path = mask_file(tmp_path / "mask.tif", stripes(dtype, value, other), **options)
    task = hole_task(kind, **holes_of("file", files=(path,), coverage=(0.4, 0.6), **reading))
    hole = task.prepare(batch(n=8, size=32))["hole"][:, 0]
    assert hole.mean().item() == pytest.approx(0.5, abs=0.05)
    upright = (hole == hole[:, :1]).all(2).all(1)
    lying = (hole == hole[:, :, :1]).all(2).all(1)
    assert (upright ^ lying).all()
    assert upright.any()
    assert lying.any()


def test_every_file_is_used(hole_task, tmp_path):
    rng = np.random.default_rng(0)
    files = (
        mask_file(tmp_path / "a.tif", stripes("uint8", 1, 0, width=12)),
        mask_file(tmp_path / "b.tif", rng.integers(0, 2, (40, 50), np.uint8)),
    )
    task = hole_task(**holes_of("file", "circle", files=files, coverage=(0.3, 0.7)))
    hole = task.prepare(batch(n=40, size=32))["hole"][:, 0]
    upright, lying = (hole == hole[:, :1]), (hole == hole[:, :, :1])
    striped = upright.all(2).all(1) | lying.all(2).all(1)
    steps = (hole[:, 1:] != hole[:, :-1]).float().mean((1, 2))
    assert {bool(s) for s in striped} == {True, False}
    assert (steps > 0.4).any()  # noise
    assert ((steps < 0.1) & ~striped).any()  # circles


@pytest.mark.parametrize(
    ("array", "options", "match"),
    [
        (stripes("uint8", 1, 0, size=20), {}, "a mask has only 20 rows"),
        (np.arange(64 * 64, dtype=np.uint8).reshape(64, 64), {}, r"mask\.tif: .*256 values"),
        (stripes("float32", 1, 0), {"read_as": "landsat_c2"}, r"mask\.tif: .*float32"),
        (np.zeros((2, 64, 64), np.uint8), {}, r"mask\.tif has 2 bands, expected one"),
        (None, {}, r"mask\.tif cannot be opened"),
    ],
    ids=["too small", "classes", "no bits", "two bands", "no file"],
)
def test_files_that_are_no_masks(hole_task, tmp_path, array, options, match):
    path = tmp_path / "mask.tif"
    if array is not None and array.ndim == 3:
        profile = {"driver": "GTiff", "height": 64, "width": 64, "count": 2, "dtype": "uint8"}
        place = rasterio.Affine(10, 0, 0, 0, -10, 0)
        with rasterio.open(path, "w", crs="EPSG:32633", transform=place, **profile) as file:
            file.write(array)
    elif array is not None:
        mask_file(path, array)
    task = hole_task(**holes_of("file", files=(path,), **options))
    with pytest.raises(InputError, match=match):
        task.prepare(batch(size=32))


# What nobody may see


OTHERS = (-0.3, 1e30, float("nan"), float("inf"))


@both
@pytest.mark.parametrize("fill", ["constant", "mean", "harmonic"])
@pytest.mark.parametrize("layer", ["gated", "partial", "plain", "dcgan"])
@pytest.mark.parametrize("residual", [False, True])
def test_nothing_under_a_hole_gets_through(hole_task, kind, fill, layer, residual):
    shape = dataclasses.replace(hole_task().config.generator, layer=layer)
    options = {"generator": shape, "fill": fill, "fill_value": 0.25, "residual": residual}
    options |= {"refinement": shape} if kind == "two_stage" else {}
    task = hole_task(kind, **options)
    given = task.prepare(batch())
    assert given["hole"].mean() > 0.2
    hidden = ((given["hole"] > 0) | (given["valid"] == 0)).expand_as(given["image"])
    kept = ~(given["hole"] > 0).expand_as(hidden)
    expected = task.generate(given)
    for value in OTHERS:
        other = given | {"image": given["image"].masked_fill(hidden, value)}
        out = task.generate(other)
        for name in {"raw", "coarse"} & set(out):
            assert torch.equal(out[name], expected[name]), (name, value)
        assert out["raw"].isfinite().all()
        assert torch.equal(out["image"][~kept], expected["image"][~kept])
        same = out["image"] == other["image"]
        assert (same | other["image"].isnan())[kept].all()
    # And what is known does get through.
    hint = given["image"].clone()
    hint[~hidden] += 0.5
    assert (task.generate(given | {"image": hint})["raw"] - expected["raw"]).abs().max() > 1e-3


@both
def test_what_stands_in_the_holes_is_as_configured(hole_task, kind):
    given = batch()
    known = given["valid"] * (1 - hole_task().prepare(given)["hole"])
    seen = known.bool().expand_as(given["image"])
    starts = {
        fill: hole_task(kind, fill=fill, fill_value=0.3).start(given["image"], known)
        for fill in ("constant", "mean", "harmonic")
    }
    for start in starts.values():
        assert torch.equal(start[seen], given["image"][seen])
    assert (starts["constant"][~seen] == np.float32(0.3)).all()
    for i, sample in enumerate(given["image"]):
        for band, values in enumerate(sample):
            inside = known[i, 0] > 0
            mean = values[inside].double().mean().item()
            filled = starts["mean"][i, band][~inside].tolist()
            assert filled == pytest.approx([mean] * len(filled), abs=1e-6)
            smooth = starts["harmonic"][i, band][~inside]
            assert smooth.std() > 0.05
            assert values[inside].min() <= smooth.min() < smooth.max() <= values[inside].max()


@both
@pytest.mark.parametrize("local", ["zeroed", "crop", "none"])
def test_the_judge_sees_hole_and_image_and_nothing_unmeasured(hole_task, kind, local):
    task = hole_task(kind, discriminator=HoleJudgeConfig(width=4, layers=1, local=local))
    given = task.prepare(batch(size=32))
    out = task.generate(given)
    condition, real, fake = task.judged(given, out)
    hole, valid = given["hole"] > 0, given["valid"] > 0
    assert torch.equal(condition > 0, hole & valid)
    assert set(condition.unique().tolist()) == {0.0, 1.0}
    seen, known = (m.expand_as(real) for m in (valid, valid & ~hole))
    assert torch.equal(real[seen], given["image"][seen])
    assert torch.equal(fake[known], given["image"][known])
    made = seen & hole.expand_as(real)
    assert torch.equal(fake[made], out["raw"][made])
    for shown in (real, fake):
        assert (shown[~seen] == 0).all()
    heads = task.discriminator(condition, fake)
    assert len(heads) == (1 if local == "none" else 2)


@both
def test_no_term_depends_on_what_was_not_measured(hole_task, kind):
    task = hole_task(kind, **EVERYTHING)
    one = task.prepare(batch(size=32))
    away = (one["valid"] == 0).expand_as(one["image"])
    two = one | {"image": torch.where(away, batch(size=32, seed=3)["image"], one["image"])}
    assert not torch.equal(one["image"], two["image"])
    first, second = losses(task, one), losses(task, two)
    assert len(first) == (9 if kind == "two_stage" else 7)
    assert {k: v.item() for k, v in first.items()} == {k: v.item() for k, v in second.items()}


# Losses


def by_hand(values, where):
    """Mean over the bands and the chosen pixels of each sample, then over samples."""
    chosen = np.broadcast_to(where, values.shape)
    return np.mean([v[c].mean() if c.any() else 0.0 for v, c in zip(values, chosen, strict=True)])


@both
@pytest.mark.parametrize("bands", [1, 4])
def test_terms_by_hand(hole_task, kind, bands):
    task = hole_task(kind, bands, variation_weight=1.0).double()
    given = task.prepare(batch(bands, dtype=torch.float64))
    given["hole"][0] = 0  # a sample without a hole,
    given["hole"][1] = 1  # and one that is nothing else
    terms = losses(task, given)
    out = {name: value.detach().numpy() for name, value in task.generate(given).items()}
    true, valid = given["image"].numpy(), given["valid"].numpy() > 0
    hole = given["hole"].numpy() > 0
    for name, made in (("", "raw"), ("coarse_", "coarse"))[: 1 + (kind == "two_stage")]:
        apart = np.abs(out[made] - true)
        expected = by_hand(apart, valid & hole), by_hand(apart, valid & ~hole)
        found = terms[f"g/{name}hole"].item(), terms[f"g/{name}valid"].item()
        assert found == pytest.approx(expected, rel=1e-12)
    total = []
    for sample in range(3):
        near = np.zeros((SIZE, SIZE), bool)
        for y, x in np.argwhere((hole & valid)[sample, 0]):
            near[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2] = True
        near &= valid[sample, 0]
        steps = []
        for axis in (0, 1):
            pair = np.take(near, range(1, SIZE), axis) & np.take(near, range(SIZE - 1), axis)
            image = out["image"][sample]
            steps += list(np.abs(np.diff(image, axis=axis + 1))[:, pair].ravel())
        total.append(np.mean(steps) if steps else 0.0)
    assert total[0] == 0 < total[1]
    assert terms["g/variation"].item() == pytest.approx(np.mean(total), rel=1e-12)


@both
@pytest.mark.parametrize("game", ["hinge", "vanilla", "least_squares"])
def test_the_adversarial_terms_by_hand(hole_task, kind, game):
    """Means over the measured share of patches, then samples, then both heads."""
    task = hole_task(kind, adversarial=game).double()
    given = task.prepare(batch(dtype=torch.float64))
    given["valid"] = torch.ones_like(given["valid"])
    terms, out = losses(task, given), task.generate(given)
    condition, real, fake = task.judged(given, out)
    heads = zip(task.discriminator(condition, real), task.discriminator(condition, fake),
                strict=True)  # fmt: skip
    made, judged = [], []
    for (r, _), (f, _) in heads:
        r, f = r.detach().numpy(), f.detach().numpy()
        if game == "hinge":
            made.append(-f.mean())
            judged.append(np.maximum(0, 1 - r).mean() + np.maximum(0, 1 + f).mean())
        elif game == "vanilla":
            made.append(np.log1p(np.exp(-f)).mean())
            judged.append(np.log1p(np.exp(-r)).mean() + np.log1p(np.exp(f)).mean())
        else:
            made.append(((f - 1) ** 2).mean())
            judged.append(((r - 1) ** 2).mean() + (f**2).mean())
    assert terms["g/adversarial"].item() == pytest.approx(np.mean(made), rel=1e-10)
    assert terms["d/adversarial"].item() == pytest.approx(np.mean(judged), rel=1e-10)


@both
def test_a_batch_is_the_mean_of_its_halves(hole_task, kind):
    task = hole_task(kind, **EVERYTHING).double()
    given = task.prepare(batch(n=6, size=32, dtype=torch.float64))
    given["valid"][:3, :, 5:] = 0  # halves of very different area
    whole = losses(task, given)
    parts = [
        losses(task, {name: value[half] for name, value in given.items()})
        for half in (slice(3), slice(3, None))
    ]
    assert len(whole) == (9 if kind == "two_stage" else 7)
    for name, value in whole.items():
        assert value.dtype == torch.float64
        expected = (parts[0][name] + parts[1][name]).item() / 2
        assert value.item() == pytest.approx(expected, rel=1e-12), name
        assert parts[0][name].item() != pytest.approx(expected, rel=1e-8)


COARSE = {"coarse_hole", "coarse_valid"}


@both
@pytest.mark.parametrize(
    ("changes", "more"),
    [
        ({}, {"adversarial"}),
        ({"adversarial_weight": 0.0}, set()),
        ({"variation_weight": 0.1}, {"adversarial", "variation"}),
        ({"perceptual_weight": 0.1}, {"adversarial", "perceptual"}),
        ({"style_weight": 0.1, "adversarial_weight": 0.0}, {"style"}),
    ],
)
def test_terms_are_named_as_configured(hole_task, kind, changes, more):
    task = hole_task(kind, **changes)
    terms = losses(task, task.prepare(batch()))
    names = {"hole", "valid"} | more | (COARSE if kind == "two_stage" else set())
    assert {name[2:] for name in terms if name.startswith("g/")} == names
    judged = {"d/adversarial"} if "adversarial" in more else set()
    assert {name for name in terms if name.startswith("d/")} == judged
    assert (task.discriminator is None) == (not judged)
    assert all(value.ndim == 0 and value.isfinite() for value in terms.values())
    total, _ = task.balances(10)[0]({n: terms[f"g/{n}"] for n in names}, None, 0)
    assert total.isfinite()


def test_weights_are_those_of_the_settings(hole_task):
    weights = {"hole": 5.0, "valid": 2.0, "adversarial": 0.3}
    weights |= {"variation": 0.7, "perceptual": 0.11, "style": 90.0}
    options = {f"{name}_weight": value for name, value in weights.items()}
    options |= {"discriminator_factor": 0.4}
    one = torch.tensor(1.0)
    for kind in KINDS:
        more = {"coarse_weight": 1.5} if kind == "two_stage" else {}
        expected = weights | ({"coarse_hole": 7.5, "coarse_valid": 3.0} if more else {})
        generator, discriminator = hole_task(kind, **options, **more).balances(10)
        total, used = generator(dict.fromkeys(expected, one), None, 3)
        assert used == expected
        assert total.item() == pytest.approx(sum(expected.values()))
        assert discriminator({"adversarial": one}, None, 3)[1] == {"adversarial": 0.4}


# Features


@both
@pytest.mark.parametrize("bands", [1, 3, 4, 13])
def test_features_judge_the_colours_and_teach_the_generator_alone(hole_task, kind, bands):
    task = hole_task(kind, bands, perceptual_weight=0.2, style_weight=9.0)
    task.train()
    given = task.prepare(batch(bands, size=32))
    terms = losses(task, given)
    features = task._features.network
    before = {name: value.clone() for name, value in features.state_dict().items()}
    assert not any(p.requires_grad for p in features.parameters())
    (terms["g/perceptual"] + terms["g/style"]).backward()
    assert all(p.grad is None for p in task.discriminator.parameters())
    last = task.generator.refinement if kind == "two_stage" else task.generator
    assert all(p.grad is not None for p in last.parameters())
    assert task.last_layer.grad.abs().sum() > 0
    for name, value in features.state_dict().items():
        assert torch.equal(value, before[name]), name
    # Red, green and blue by name, in this order; a single band is grey; else the first three.
    out = {name: value.detach() for name, value in task.generate(given).items()}
    raw = out["raw"].requires_grad_()
    made = torch.where(given["hole"] > 0, raw, given["image"])
    terms = task.generator_losses(given, out | {"raw": raw, "image": made}, None)
    (slope,) = torch.autograd.grad(terms["perceptual"], raw)
    felt = slope.abs().sum((0, 2, 3)) > 0
    colours = {1: [0], 3: [0, 1, 2], 4: [0, 1, 2], 13: [1, 2, 3]}[bands]
    assert felt.nonzero().flatten().tolist() == colours
    assert (slope[(given["valid"] == 0).expand_as(slope)] == 0).all()
    same = {"raw": given["image"], "image": given["image"], "coarse": given["image"]}
    terms = task.generator_losses(given, same, None)
    assert (terms["perceptual"].item(), terms["style"].item()) == (0.0, 0.0)


def test_the_terms_of_features_count_the_raw_and_the_composed_image(hole_task):
    """By hand, from the activations of red, green and blue: bands 3, 2, 1 of Sentinel-2."""
    task = hole_task(bands=4, perceptual_weight=1.0, style_weight=1.0)
    given = task.prepare(batch(4, size=32))
    terms, out = losses(task, given), task.generate(given)
    images = [
        task._features.network((image * given["valid"])[:, [2, 1, 0]])
        for image in (given["image"], out["raw"], out["image"])
    ]
    true, *both = ({k: v.detach().double() for k, v in found.items()} for found in images)

    def gram(x):
        return torch.einsum("bcij,bdij->bcd", x, x) / x[0].numel()

    perceptual = sum((m[k] - true[k]).abs().mean() for m in both for k in m) / 2
    style = sum((gram(m[k]) - gram(true[k])).abs().mean() for m in both for k in m) / 2
    assert terms["g/perceptual"].item() == pytest.approx(perceptual.item(), rel=1e-5)
    assert terms["g/style"].item() == pytest.approx(style.item(), rel=1e-5)


def test_layers_without_a_place_have_no_style(hole_task):
    deep = FeaturesConfig(weights="random", layers=("stem", "logits"))
    task = hole_task(perceptual_weight=1.0, style_weight=1.0, features=deep)
    shallow = dataclasses.replace(deep, layers=("stem",))
    other = hole_task(perceptual_weight=1.0, style_weight=1.0, features=shallow)
    given = task.prepare(batch(size=32))
    one, two = losses(task, given), losses(other, given)
    assert one["g/style"].item() == two["g/style"].item()
    assert one["g/perceptual"].item() != two["g/perceptual"].item()


@both
@pytest.mark.parametrize("layer", ["gated", "partial", "plain", "dcgan"])
def test_gradients_reach_every_weight(hole_task, kind, layer):
    shape = dataclasses.replace(hole_task().config.generator, layer=layer)
    refinement = {"refinement": shape} if kind == "two_stage" else {}
    # With hinge the biases of the heads rest until a logit leaves (-1, 1).
    task = hole_task(kind, generator=shape, adversarial="vanilla", **refinement)
    for name, parameter in task.generator.named_parameters():
        if name.endswith("gamma"):  # at its start, 0, nothing gets through attention
            torch.nn.init.constant_(parameter, 0.5)
    given = task.prepare(batch(n=4, size=32))
    terms = losses(task, given)
    sum(value for name, value in terms.items() if name.startswith("g/")).backward()
    for name, parameter in task.generator.named_parameters():
        assert parameter.grad is not None, name
        if not name.endswith("key.bias"):  # softmax does not feel it
            assert parameter.grad.abs().sum() > 0, name
    task.zero_grad()
    out = {name: value.detach() for name, value in task.generate(given).items()}
    verdict = Verdict(task.discriminator, *task.judged(given, out), given["valid"])
    task.discriminator_losses(given, out, verdict)["adversarial"].backward()
    assert all(p.grad.abs().sum() > 0 for p in task.discriminator.parameters())
    assert all(p.grad is None for p in task.generator.parameters())


@both
def test_noise_follows_the_seed(hole_task, kind):
    task = hole_task(kind, noise=True)
    assert task.noise
    assert not hole_task(kind).noise
    given = task.prepare(batch())
    one, same, two = (task.sample(given, seed)["image"] for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, two)
    kept = ~(given["hole"] > 0).expand_as(one)
    assert torch.equal(two[kept], given["image"][kept])
    # Where it is given, it counts, in holes alone.
    noise = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 2, SIZE, SIZE))).float()
    one, same = (task.sample(given | {"noise": noise}, seed)["image"] for seed in (1, 2))
    assert torch.equal(one, same)
    known = given["valid"] * (1 - given["hole"])
    outside = task.sample(given | {"noise": noise + known}, 1)["image"]
    assert torch.equal(one, outside)
    for channel in range(1 + (kind == "two_stage")):
        other = noise.clone()
        other[:, channel] += 1
        assert not torch.equal(one, task.sample(given | {"noise": other}, 1)["image"])


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
    kind=st.sampled_from(KINDS),
    bands=st.sampled_from([1, 3, 4, 13]),
    trained=st.sampled_from(["uint8", "uint16", "int16", "float32"]),
    stored=st.sampled_from([None, "uint8", "uint16", "int16", "uint32", "int32", "float64"]),
    seed=st.integers(0, 99),
)
def test_known_pixels_come_back_bit_for_bit(hole_task, kind, bands, trained, stored, seed):
    """Also from scenes of a type that is wider, or narrower, than that of the training."""
    rng = np.random.default_rng(seed)
    task = hole_task(kind, bands, trained)
    image = extremes(stored or trained, (1, bands, 12, 9), seed)
    hole = rng.random((1, 1, 12, 9)) < 0.4
    made = torch.from_numpy(rng.uniform(-3, 3, (1, bands, 12, 9))).float()
    outputs = {"image": made, "invented": torch.from_numpy(hole).float()}
    composed = task.compose({"image": image, "hole": hole}, outputs)
    got = composed["image"]
    assert got.dtype == image.dtype
    inside = np.broadcast_to(hole, image.shape)
    assert got[~inside].tobytes() == image[~inside].tobytes()
    expected = task.image.scaling.decode(made, image.dtype.name)
    assert np.array_equal(got[inside], expected[inside])
    assert composed["invented"].dtype == np.uint8
    assert np.array_equal(composed["invented"], hole)


@both
def test_encode_is_what_batches_are(hole_task, kind):
    task = hole_task(kind, 4, "uint16")
    rng = np.random.default_rng(0)
    image = rng.integers(0, 60000, (2, 4, 8, 8), np.uint16)
    hole, valid = (rng.random((2, 1, 8, 8)) > 0.6 for _ in range(2))
    given = task.encode({"image": image, "hole": hole}, valid, torch.device("cpu"))
    assert {name: value.dtype for name, value in given.items()} == dict.fromkeys(
        ("image", "hole", "valid"), torch.float32
    )
    assert np.array_equal(given["hole"].numpy(), hole)
    expected = np.where(valid, image, (100 + 2 * 9000) / 3)
    np.testing.assert_allclose(given["image"].numpy(), (expected - 4550) / 4450, atol=1e-6)


# Tiles and runs


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Twenty tiles of four bands and their classes."""
    folder = tmp_path_factory.mktemp("tiles")
    rng = np.random.default_rng(0)
    label = rng.choice(np.uint8([0, 1, 7]), (1, 10, 8)).repeat(8, 1).repeat(8, 2)
    image = 300 * label.astype(int) + rng.integers(0, 500, (4, 80, 64)) + 50

    def write(name, array):
        profile = {"driver": "GTiff", "height": 80, "width": 64, "count": len(array)}
        profile |= {"crs": "EPSG:32633", "transform": rasterio.Affine(10, 0, 0, 0, -10, 800)}
        with rasterio.open(folder / name, "w", dtype=array.dtype, **profile) as file:
            file.write(array)
        return str(folder / name)

    image, label = write("i.tif", image.astype(np.uint16)), write("l.tif", label)
    return tile(TilingConfig((image,), folder / "tiles", (label,), size=SIZE))


QUICK = TrainingConfig(
    steps=2,
    batch_size=4,
    log_every=1,
    sample_every=2,
    device="cpu",
    tensorboard=False,
    ema=0.5,
    split=SplitConfig(block=SIZE),
)


@both
def test_holes_of_a_training_and_of_an_evaluation(hole_task, store, kind):
    task = hole_task(kind, **holes_of("polygon", "footprint"))
    tiles = store.split(SplitConfig(block=SIZE)).train
    task.spec = DataSpec(store.sources, task.spec.scalings)
    scalings = {"image": hole_task(bands=4, dtype="uint16").spec.scalings["image"]}
    batches = Batches(store, tiles, DataSpec(store.sources, scalings), batch_size=len(tiles))
    met = [
        dict(zip(given["sample"].tolist(), task.prepare(given)["hole"], strict=True))
        for given in (batches[0], batches[1], batches[0])
    ]
    assert met[0].keys() == met[1].keys()
    for sample, hole in met[0].items():
        assert torch.equal(met[2][sample], hole)
        assert not torch.equal(met[1][sample], hole)
    whole, part = (task.prepare(batches.whole(some))["hole"] for some in (tiles, tiles[3:5]))
    assert torch.equal(whole[3:5], part)


@both
def test_a_run_keeps_everything(hole_task, store, tmp_path, kind):
    mask = mask_file(tmp_path / "mask.tif", stripes("uint8", 1, 0))
    changes = EVERYTHING | holes_of("circle", "footprint", "file", files=(mask,))
    config = hole_task(kind, 4, "uint16", **changes).config
    run = train(config, store.path, tmp_path / "run", QUICK)
    about = read_config(run)
    assert about["task"] == kind
    task = load_task(run, average=False, device="cpu")
    assert task.config == config
    assert repr(task.config) == repr(config)
    assert not task.training
    state = checkpoints.load(checkpoints.latest(run / "checkpoints"))
    assert set(state["players"]) == {"generator", "discriminator"}
    assert not any("feature" in name for player in state["players"].values() for name in player)
    torch.manual_seed(77)
    twin = TASKS[kind](config, task.spec).eval()
    given = twin.prepare(batch(4, size=24))
    untrained = twin.sample(given, 0)["image"]
    for player, weights in state["players"].items():
        getattr(twin, player).load_state_dict(weights)
    made = task.sample(given, 0)["image"]
    assert torch.equal(made, twin.sample(given, 0)["image"])
    assert not torch.equal(made, untrained)
    assert not torch.equal(made, load_task(run, device="cpu").sample(given, 0)["image"])
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    names = {"hole", "valid", "adversarial", "variation", "perceptual", "style"}
    names |= COARSE if kind == "two_stage" else set()
    for line in lines:
        assert {f"generator/{name}" for name in names} <= set(line)
    (panel,) = (run / "samples").iterdir()
    assert panel.name == "step-00000002.png"


def test_fine_tuning_from_another_run_of_the_task(hole_task, store, tmp_path):
    config = hole_task(bands=4, dtype="uint16").config
    donor = train(config, store.path, tmp_path / "donor", QUICK)
    still = dataclasses.replace(QUICK, steps=1, generator_lr=0.0, discriminator_lr=0.0)
    run = train(config, store.path, tmp_path / "run", still, init=donor)
    old, new = (load_task(r, average=False, device="cpu") for r in (donor, run))
    for name, value in old.state_dict().items():
        assert torch.equal(value, new.state_dict()[name]), name
    pair = Pix2PixConfig("image", "image")
    with pytest.raises(InputError, match="another shape"):
        train(pair, store.path, tmp_path / "pair", still, init=donor)
