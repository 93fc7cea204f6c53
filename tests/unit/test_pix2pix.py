"""pix2pix and the contract that every task keeps."""

import dataclasses

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import given
from hypothesis import strategies as st
from rasterio.transform import from_origin
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ganlab.config import (
    FeaturesConfig,
    PatchGANConfig,
    Pix2PixConfig,
    ScalingConfig,
    ScheduleConfig,
    TilingConfig,
    TrainingConfig,
    UNetConfig,
)
from ganlab.data.batches import Batches, DataSpec, Scaling, describe
from ganlab.data.store import Source
from ganlab.data.tiling import tile
from ganlab.errors import InputError
from ganlab.losses.adversarial import Verdict
from ganlab.networks.features import load_features
from ganlab.tasks import TASKS
from ganlab.tasks.base import Field, field, measured
from ganlab.tasks.pix2pix import Pix2Pix
from ganlab.training.trainer import Trainer

CLASSES = (0, 1, 4, 200)
SOURCES = {
    "image": Source("image", "image", "uint8", ("red", "green", "blue")),
    "label": Source("label", "label", "uint8", ("1",), classes=CLASSES),
    "other": Source("other", "image", "uint16", ("1", "2", "3", "4")),
}
SCALINGS = {
    "image": Scaling((0.0,) * 3, (255.0,) * 3, (90.0, 100.0, 110.0)),
    "other": Scaling((0.0,) * 4, (9000.0,) * 4, (500.0,) * 4),
}
SPEC = DataSpec(SOURCES, SCALINGS)
DIRECTIONS = [("label", "image"), ("image", "label"), ("image", "other")]
CHANNELS = {"image": 3, "label": 4, "other": 4}


def pix2pix(source, target, **changes):
    torch.manual_seed(0)
    options = {"generator": UNetConfig(width=8, depth=3, dropout=0.0)}
    options |= {"discriminator": PatchGANConfig(width=8, layers=2)}
    return Pix2Pix(Pix2PixConfig(source, target, **options | changes), SPEC)


def batch(seed=0, n=3, size=32):
    rng = np.random.default_rng(seed)
    valid = torch.from_numpy(rng.random((n, 1, size, size)) > 0.3).float()
    made = {"valid": valid, "sample": torch.arange(n)}
    made["label"] = torch.from_numpy(rng.choice(CLASSES, (n, 1, size, size)))
    for name, bands in (("image", 3), ("other", 4)):
        made[name] = torch.from_numpy(rng.uniform(-1, 1, (n, bands, size, size))).float()
    return made


def losses(task, given):
    """All terms of both players, as the trainer takes them."""
    out = task.generate(given)
    verdict = Verdict(task.discriminator, *task.judged(given, out), given["valid"])
    return {
        **{f"g/{k}": v for k, v in task.generator_losses(given, out, verdict).items()},
        **{f"d/{k}": v for k, v in task.discriminator_losses(given, out, verdict).items()},
    }


# Fields


@given(st.integers(0, 99))
def test_labels_enter_and_leave_unchanged(seed):
    field = Field(SOURCES["label"], None)
    labels = batch(seed)["label"]
    channels = field.enter(labels)
    assert channels.shape[1] == field.channels == 4
    assert torch.equal(channels.sum(1), torch.full_like(channels[:, 0], -2.0))
    assert set(channels.unique().tolist()) == {-1.0, 1.0}
    stored = field.leave(channels)
    assert stored.dtype == np.uint8
    assert np.array_equal(stored, labels.numpy())
    assert (field.enter(torch.full((1, 1, 2, 2), 7)) == -1).all()


class NoCopies(TorchDispatchMode):
    """Refuses tensors made of Python numbers, which a device waits for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not func.overloadpacket.__name__.startswith("lift_fresh")
        return func(*args, **(kwargs or {}))


def test_classes_enter_without_a_copy_to_the_device():
    field = Field(SOURCES["label"], None)
    with NoCopies():
        with pytest.raises(AssertionError):
            torch.tensor([0, 1])
        field.enter(torch.zeros(2, 1, 8, 8, dtype=torch.int64))


def test_images_enter_as_they_are_and_leave_in_stored_units():
    field = Field(SOURCES["other"], SCALINGS["other"])
    values = batch()["other"]
    assert torch.equal(field.enter(values), values)
    expected = np.rint((values.double().numpy() + 1) * 4500)
    assert np.array_equal(field.leave(values), expected)


def test_encode_is_what_batches_are():
    task = pix2pix("image", "label")
    rng = np.random.default_rng(0)
    stored = rng.integers(0, 256, (2, 3, 8, 8), dtype=np.uint8)
    valid = rng.random((2, 1, 8, 8)) > 0.5
    got = task.encode({"image": stored}, valid, torch.device("cpu"))
    fill = np.array(SCALINGS["image"].fill).reshape(3, 1, 1)
    expected = np.where(valid, stored, fill) / 127.5 - 1
    np.testing.assert_allclose(got["image"].numpy(), expected, rtol=0, atol=1e-6)
    assert torch.equal(got["valid"], torch.from_numpy(valid).float())
    labels = pix2pix("label", "image")
    classes = rng.choice(np.uint8(CLASSES), (2, 1, 8, 8))
    classes[~valid] = 77
    got = labels.encode({"label": classes}, valid, torch.device("cpu"))
    assert got["label"].dtype == torch.int64
    classes[1, 0][valid[1, 0]] = 78
    with pytest.raises(InputError, match=r"label: class 78 .* \[0, 1, 4, 200\]"):
        labels.encode({"label": classes}, valid, torch.device("cpu"))


def test_measured_brings_the_mask_to_the_size_of_the_image():
    valid = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])
    fine = measured(torch.ones(1, 2, 4, 4), valid)
    assert fine[0, 0].tolist() == [[1, 1, 0, 0]] * 2 + [[0, 0, 1, 1]] * 2
    assert torch.equal(measured(torch.ones(1, 1, 2, 2), valid), valid)


# The contract


@pytest.mark.parametrize(("source", "target"), DIRECTIONS)
def test_shapes_and_declarations(source, target):
    task, given = pix2pix(source, target), batch()
    assert TASKS["pix2pix"] is Pix2Pix
    assert ([f.name for f in task.inputs], [f.name for f in task.outputs]) == ([source], [target])
    assert (task.scale, task.stride) == (1, 8)
    out = task.generate({"valid": given["valid"], source: given[source]})  # and nothing else
    assert out[target].shape == (3, CHANNELS[target], 32, 32)
    condition, real, fake = task.judged(given, out)
    assert condition.shape[1] == CHANNELS[source]
    assert real.shape == fake.shape == out[target].shape
    made = task.compose({}, out)[target]
    assert made.dtype.name == SOURCES[target].dtype
    assert made.shape == (3, 1 if target == "label" else CHANNELS[target], 32, 32)
    assert task.last_layer is next(task.generator.up[-1].parameters())


@pytest.mark.parametrize(("source", "target"), DIRECTIONS)
@pytest.mark.parametrize("reconstruction", ["l1", "l2"])
def test_terms_are_named_and_unweighted(source, target, reconstruction):
    task = pix2pix(source, target, reconstruction=reconstruction, reconstruction_weight=77.0)
    given = batch()
    terms = losses(task, given)
    assert set(terms) == {f"g/{reconstruction}", "g/adversarial", "d/adversarial"}
    made = task.generate(given)[target].detach().double().numpy()
    true = given[target].numpy()
    if target == "label":
        true = np.where(true == np.reshape(CLASSES, (1, 4, 1, 1)), 1.0, -1.0)
    apart = np.abs(made - true) ** (2 if reconstruction == "l2" else 1)
    valid = np.broadcast_to(given["valid"].numpy() > 0, apart.shape)
    expected = np.mean([a[v].mean() for a, v in zip(apart, valid, strict=True)])
    assert terms[f"g/{reconstruction}"].item() == pytest.approx(expected, rel=1e-5)
    weights = task.balances(10)[0]({reconstruction: 1.0, "adversarial": 1.0}, None, 0)[1]
    assert weights == {reconstruction: 77.0, "adversarial": 1.0}
    assert task.balances(10)[1]({"adversarial": 1.0}, None, 0)[1] == {"adversarial": 0.5}


@pytest.mark.parametrize(("source", "target"), DIRECTIONS)
def test_what_is_not_valid_does_not_matter(source, target):
    """Not in the networks, not in a loss, not for the discriminator."""
    task, one, two = pix2pix(source, target), batch(), batch()
    for name in ("image", "label", "other"):
        hidden = (one["valid"] == 0).expand_as(one[name])
        assert hidden.any()
        two[name] = torch.where(hidden, batch(7)[name], one[name])
        assert not torch.equal(one[name], two[name])
    first, second = losses(task, one), losses(task, two)
    assert all(torch.equal(first[name], second[name]) for name in first)
    for a, b in zip(task.judged(one, task.generate(one)), task.judged(two, task.generate(two)),
                    strict=True):  # fmt: skip
        assert torch.equal(a, b)
        assert (a[(one["valid"] == 0).expand_as(a)] == 0).all()


def test_without_adversarial_weight_there_is_no_discriminator():
    task, given = pix2pix("label", "image", adversarial_weight=0.0), batch()
    assert task.discriminator is None
    assert set(task.generator_losses(given, task.generate(given), None)) == {"l1"}


def test_the_reconstruction_can_fade():
    fading = ScheduleConfig("fade_out", start=0.0, stop=1.0)
    balance = pix2pix("label", "image", reconstruction_schedule=fading).balances(10)[0]
    terms = {"l1": torch.tensor(1.0), "adversarial": torch.tensor(2.0)}
    totals = [float(balance(terms, None, step)[0]) for step in (0, 5, 10)]
    assert totals == pytest.approx([102, 52, 2])


def test_gradients_reach_every_weight():
    task, given = pix2pix("label", "image"), batch()
    terms = losses(task, given)
    (terms["g/l1"] + terms["g/adversarial"]).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in task.generator.parameters())
    task.zero_grad()
    terms = losses(task, given)
    terms["d/adversarial"].backward()
    assert all(p.grad.abs().sum() > 0 for p in task.discriminator.parameters())


# Features

SHALLOW = FeaturesConfig(weights="random", layers=("stem", "block1"))
BOTH = {"perceptual_weight": 0.2, "style_weight": 9.0, "features": SHALLOW}


@pytest.mark.parametrize(
    ("changes", "more"),
    [({}, set()), ({"perceptual_weight": 0.2}, {"perceptual"}), ({"style_weight": 9.0}, {"style"})],
)
def test_terms_of_features_have_their_weights_and_are_off_without(changes, more):
    task, given = pix2pix("label", "image", features=SHALLOW, **changes), batch()
    terms = losses(task, given)
    assert set(terms) == {"g/l1", "g/adversarial", "d/adversarial"} | {f"g/{n}" for n in more}
    ones = dict.fromkeys({"l1", "adversarial"} | more, torch.tensor(1.0))
    total, used = task.balances(10)[0](ones, None, 0)
    assert used == {"l1": 100.0, "adversarial": 1.0} | {n: changes[f"{n}_weight"] for n in more}
    assert total.item() == pytest.approx(101 + sum(changes.values()))


@pytest.mark.parametrize("target", ["image", "other"])
def test_the_terms_of_features_by_hand(target):
    """In float64 from the activations of another copy of the network; what is missing is zero."""
    task, given = pix2pix("label", target, **BOTH), batch()
    terms, out = losses(task, given), task.generate(given)
    network = load_features(weights="random", layers=SHALLOW.layers).double()

    def seen(image):
        return network((image.detach() * given["valid"]).double()[:, :3])

    made, true = seen(out[target]), seen(given[target])

    def gram(x):
        return torch.einsum("bcij,bdij->bcd", x, x) / x[0].numel()

    expected = sum((made[k] - true[k]).abs().mean() for k in true) / 2
    assert terms["g/perceptual"].item() == pytest.approx(expected.item(), rel=1e-5)
    expected = sum((gram(made[k]) - gram(true[k])).abs().mean() for k in true) / 2
    assert terms["g/style"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_features_see_red_green_and_blue_by_name():
    bands = ("B02", "B03", "B04", "B08")
    named = dataclasses.replace(SOURCES["other"], bands=bands)
    torch.manual_seed(0)
    config = pix2pix("label", "other", **BOTH).config
    task = Pix2Pix(config, DataSpec(SOURCES | {"other": named}, SCALINGS))
    given = batch()
    made = task.generate(given)["other"].detach().requires_grad_()
    terms = task.generator_losses(given, {"other": made}, None)
    (slope,) = torch.autograd.grad(terms["perceptual"] + terms["style"], made)
    assert (slope.abs().sum((0, 2, 3)) > 0).tolist() == [True, True, True, False]
    assert (slope[(given["valid"] == 0).expand_as(slope)] == 0).all()
    # Red goes in first: by hand, from the bands in the network's order.
    valid, network = given["valid"], task._features.network
    a, b = (network((x * valid)[:, [2, 1, 0]]) for x in (made, given["other"]))
    expected = sum((a[k] - b[k]).abs().mean() for k in a) / 2
    assert terms["perceptual"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_features_teach_the_generator_alone_and_are_no_part_of_the_task():
    task, given = pix2pix("label", "image", **BOTH), batch()
    before = set(task.state_dict())
    terms = losses(task.train(), given)
    network = task._features.network
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    (terms["g/perceptual"] + terms["g/style"]).backward()
    assert all(p.grad.abs().sum() > 0 for p in task.generator.parameters())
    assert all(p.grad is None for p in task.discriminator.parameters())
    assert all(p.grad is None and not p.requires_grad for p in network.parameters())
    assert all(torch.equal(value, weights[n]) for n, value in network.state_dict().items())
    assert set(task.state_dict()) == before
    same = {"image": given["image"]}
    terms = task.generator_losses(given, same, None)
    assert (terms["perceptual"].item(), terms["style"].item()) == (0.0, 0.0)


@pytest.mark.parametrize("term", ["perceptual", "style"])
def test_labels_have_no_features(term):
    with pytest.raises(InputError, match=f"'label' is a label source, and {term} compare images"):
        pix2pix("image", "label", **{f"{term}_weight": 0.1})


def test_unknown_sources():
    with pytest.raises(InputError, match=r"no source 'map', only \['image', 'label', 'other'\]"):
        pix2pix("map", "image")
    with pytest.raises(InputError, match="no source 'photo'"):
        pix2pix("label", "photo")
    mask = Source("clouds", "mask", "uint8", ("1",))
    with pytest.raises(InputError, match=r"no source 'clouds', only \['image'\]"):
        field(DataSpec({"clouds": mask, "image": SOURCES["image"]}, SCALINGS), "clouds")


def test_noise_is_dropout_that_stays():
    options = {"generator": UNetConfig(width=8, depth=3, dropout=0.5)}
    given = batch()
    noisy = pix2pix("label", "image", noise=True, **options).eval()
    quiet = pix2pix("label", "image", **options).eval()
    assert (noisy.noise, quiet.noise) == (True, False)
    one, same, two = (noisy.sample(given, seed)["image"] for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, two)
    assert torch.equal(*(quiet.sample(given, seed)["image"] for seed in (1, 2)))
    torch.manual_seed(4)
    expected = torch.rand(2)
    torch.manual_seed(4)
    noisy.sample(given, 1)
    assert torch.equal(torch.rand(2), expected)


def test_the_canonical_configuration():
    """54,413,955 + 2,768,705 parameters at 3 to 3 channels with batch norm, as published."""
    config = Pix2PixConfig(
        "image",
        "image",
        UNetConfig(norm="batch"),
        PatchGANConfig(norm="batch"),
    )
    with torch.device("meta"):
        task = Pix2Pix(config, SPEC)
    count = {
        name: sum(p.numel() for p in player.parameters())
        for name, player in (("g", task.generator), ("d", task.discriminator))
    }
    assert count["g"] == 54_413_955
    assert count["d"] == 2_768_705
    assert task.stride == 256


# Learning


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Four tiles: rectangles of four classes, a photo of them, and a second image of it."""
    folder, n = tmp_path_factory.mktemp("tiles"), 64
    rng = np.random.default_rng(0)
    label = np.zeros((1, n, n), np.uint8)
    for k in range(14):
        (y, x), (h, w) = rng.integers(0, n - 8, 2), rng.integers(4, 18, 2)
        label[0, y : y + h, x : x + w] = CLASSES[1 + k % 3]
    colours = np.array([(90, 120, 70), (180, 80, 60), (90, 90, 95), (60, 90, 160)])
    image = colours[np.searchsorted(CLASSES, label[0])].transpose(2, 0, 1)
    image = image + rng.normal(0, 6, image.shape) + 20 * np.sin(np.arange(n) / 3)
    image = image.clip(0, 255).astype(np.uint8)
    other = (255 - image[[1, 1, 0, 2]] // 2).astype(np.uint16) * 100

    def write(name, array):
        profile = {"driver": "GTiff", "width": n, "height": n, "count": len(array)}
        profile |= {"dtype": array.dtype, "crs": "EPSG:32633", "photometric": "minisblack"}
        with rasterio.open(
            folder / name, "w", transform=from_origin(0, 64, 1, 1), **profile
        ) as file:
            file.write(array)
        return str(folder / name)

    config = TilingConfig(
        (write("image.tif", image),), folder / "tiles", (write("label.tif", label),), size=32
    )
    return tile(config, more={"other": ((write("other.tif", other),), "image")})


# Measured: 0.114, 0.062, 0.172.
LEARNT = {("label", "image"): 0.16, ("image", "label"): 0.1, ("image", "other"): 0.25}


@pytest.mark.parametrize(("source", "target"), DIRECTIONS)
def test_a_small_batch_is_learnt_by_heart(store, tmp_path, source, target):
    steps, tiles = 150, np.arange(4)
    spec = describe(store, tiles, ScalingConfig())
    torch.manual_seed(0)
    shape = UNetConfig(width=16, depth=4, dropout=0.0)
    task = Pix2Pix(Pix2PixConfig(source, target, shape, PatchGANConfig(width=8, layers=2)), spec)
    config = TrainingConfig(
        steps=steps, batch_size=4, generator_lr=2e-3, discriminator_lr=5e-4, ema=0.0
    )
    batches = Batches(store, tiles, spec, batch_size=4, augment=False)
    trainer = Trainer(task, batches, config, tmp_path)
    task.eval()
    given = batches.whole(tiles)

    def distance():
        made = task.sample(given, 0)
        return float(nn.functional.l1_loss(made[target], task.outputs[0].enter(given[target])))

    before = distance()
    for step in range(steps):
        trainer.train_step(batches[step])
    task.eval()
    assert 0.01 < distance() / before < LEARNT[source, target]
    if target == "label":
        made = task.compose({}, task.sample(given, 0))["label"]
        assert (made == given["label"].numpy()).mean() > 0.85  # measured: 0.897
