"""Evaluation against numbers computed by hand on the same tiles."""

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import rasterio
import torch
from damage import flip_bit
from rasterio.transform import from_origin

from ganlab import evaluation, metrics
from ganlab.baselines import ClassMedian, harmonic_fill, mean_fill, nearest_fill
from ganlab.config import (
    CloudLayersConfig,
    CloudsConfig,
    EncoderDecoderConfig,
    EvaluateConfig,
    HoleJudgeConfig,
    HolesConfig,
    PatchGANConfig,
    Pix2PixConfig,
    SplitConfig,
    SuperResolutionConfig,
    TilingConfig,
    TrainingConfig,
    TwoStageConfig,
    UNetConfig,
)
from ganlab.data.batches import Batches
from ganlab.data.store import VALID, Source
from ganlab.data.tiling import tile
from ganlab.distributions import bootstrap_interval
from ganlab.errors import InputError
from ganlab.evaluation import evaluate, table
from ganlab.randomness import derived_seed
from ganlab.resolution import enlarge
from ganlab.tasks.base import Field
from ganlab.training import load_task, resume, train

CLASSES = (0, 2, 7)
DEVICE = torch.device("cpu")


def write(path, array, **options):
    profile = {"driver": "GTiff", "width": array.shape[2], "height": array.shape[1]}
    profile |= {"count": len(array), "dtype": array.dtype, "crs": "EPSG:32633", **options}
    profile["photometric"] = "minisblack"
    with rasterio.open(path, "w", transform=from_origin(0, 500, 1, 1), **profile) as file:
        file.write(array)
    return str(path)


def tiles_of(folder, seed=0, size=160, classes=CLASSES, bands=3, **options):
    """A scene of three classes with holes, the photo of a second date, and their tiles."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    label = np.asarray(classes, np.uint8)[rng.integers(0, len(classes), (1, 20, 20))]
    label = label.repeat(size // 20, 1).repeat(size // 20, 2)
    image = rng.normal(40 + 20 * label, 15, (bands, size, size)).clip(1, 255).astype(np.uint8)
    holes = rng.random((size, size)) < 0.1
    image[:, holes] = 0
    later = (image // 2 + 60).astype(np.uint8)
    paths = [
        write(folder / "a.tif", image, nodata=0),
        write(folder / "labels.tif", label),
        write(folder / "later.tif", later),
    ]
    config = TilingConfig((paths[0],), folder / "tiles", (paths[1],), size=32)
    return tile(replace(config, **options), more={"later": ((paths[2],), "image")})


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tiles_of(tmp_path_factory.mktemp("evaluation") / "scene")


@pytest.fixture(scope="module")
def runs(store, tmp_path_factory):
    """Barely trained runs: what they make is bad, and the numbers must say how bad."""
    folder, made = tmp_path_factory.mktemp("runs"), {}
    training = TrainingConfig(
        steps=3, batch_size=4, split=SplitConfig(block=32), tensorboard=False, generator_lr=2e-3
    )
    for source, target, noise in (
        ("label", "image", False),
        ("image", "label", False),
        ("later", "image", False),
        ("label", "image", True),
    ):
        shape = UNetConfig(width=4, depth=2, dropout=0.5 if noise else 0.0)
        config = Pix2PixConfig(source, target, shape, PatchGANConfig(width=4, layers=1))
        name = f"{source}-{target}{'-noise' * noise}"
        made[name] = train(replace(config, noise=noise), store.path, folder / name, training)
    return made


def kept(batch):
    return np.broadcast_to(batch["valid"].numpy() > 0, batch["image"].shape)


def whole(task, store, tiles):
    batches = Batches(store, tiles, task.spec, batch_size=1, augment=False)
    return batches.whole(tiles)


def angles(made, true, valid):
    """Mean angle of each tile between the spectra from black on, which lies at -1 for bytes."""
    a, b = made + 1, true + 1
    cosine = (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
    angle = np.arccos(np.clip(cosine, -1, 1))
    return [x[k > 0].mean() for x, k in zip(angle, valid[:, 0], strict=True)]


def by_hand(made, true, valid):
    """L1, PSNR and SSIM as means over tiles; the texture of all tiles together."""
    m, t, v = (x.double().numpy() for x in (made, true, valid))
    apart = [(a - b)[np.broadcast_to(k > 0, a.shape)] for a, b, k in zip(m, t, v, strict=True)]
    textures = metrics.Texture(), metrics.Texture()
    textures[0].update(made, valid)
    textures[1].update(true, valid)
    distance = textures[0].distance(textures[1])
    return {
        "L1": np.mean([np.abs(d).mean() for d in apart]),
        "PSNR": np.mean([10 * np.log10(4 / (d**2).mean()) for d in apart]),
        "SSIM": float(metrics.ssim(made, true, valid, data_range=2).mean()),
        "SAM": np.mean(angles(m, t, v)),
        "spectrum d.": float(distance["spectrum"]),
        "gradient d.": float(distance["gradient"]),
    }


@pytest.mark.parametrize("source", ["label", "later"])
@pytest.mark.parametrize("share", ["test", "validation"])
@pytest.mark.filterwarnings("ignore:.*the split leaves no tile:UserWarning")
@pytest.mark.filterwarnings("error::UserWarning")
def test_images(store, runs, tmp_path, source, share):
    run = runs[f"{source}-image"]
    config = EvaluateConfig(run, share, batch_size=3, to=tmp_path / "numbers.json")
    calls = []
    result = evaluate(config, progress=lambda *at: calls.append(at))
    split = store.split(SplitConfig(block=32))
    tiles = getattr(split, share)
    assert (result["split"], result["tiles"], result["output"]) == (share, len(tiles), "image")
    task = load_task(run)
    batch = whole(task, store, tiles)
    assert batch["valid"].mean() < 0.95
    expected = {"model": task.sample(batch, 0)["image"]}
    if source == "label":
        median, known = ClassMedian(CLASSES, 3), whole(task, store, split.train)
        median.update(known["label"], known["image"], known["valid"])
        expected["class median"] = median.predict(batch["label"])
    else:
        expected["copy the input"] = batch["later"]
    assert set(result["rows"]) == set(expected)
    for name, made in expected.items():
        hand = by_hand(made, batch["image"], batch["valid"])
        assert set(result["rows"][name]) == set(hand)
        for metric, value in hand.items():
            close = 1e-3 if metric == "SAM" else 1e-5  # arccos is coarse near 0
            assert result["rows"][name][metric] == pytest.approx(value, rel=close), (name, metric)
    (baseline,) = expected.keys() - {"model"}
    each = [np.abs(m - batch["image"].numpy()) for m in map(np.asarray, expected.values())]
    apart = [[d[k].mean() for d, k in zip(e, kept(batch), strict=True)] for e in each]
    interval = bootstrap_interval(apart[0], other=apart[1])
    assert result["intervals"][baseline]["L1"] == pytest.approx(interval, rel=1e-4)
    assert json.loads((tmp_path / "numbers.json").read_text()) == result
    assert calls[-1] == (len(tiles), len(tiles))
    again = evaluate(replace(config, batch_size=1))
    for name, row in result["rows"].items():
        assert again["rows"][name] == pytest.approx(row, rel=1e-5)


def test_labels(store, runs):
    run = runs["image-label"]
    result = evaluate(EvaluateConfig(run, batch_size=2))
    split = store.split(SplitConfig(block=32))
    task = load_task(run)
    batch = whole(task, store, split.test)
    known = whole(task, store, split.train)
    counts = [((known["label"] == c) & (known["valid"] > 0)).sum() for c in CLASSES]
    made = {
        "model": task.compose({}, task.sample(batch, 0))["label"],
        "commonest class": np.full(batch["label"].shape, CLASSES[int(np.argmax(counts))]),
    }
    assert set(result["rows"]) == set(made)
    true, valid = batch["label"].numpy(), batch["valid"].numpy() > 0
    for name, values in made.items():
        t, m = true[valid], values[valid]
        ious = [((t == c) & (m == c)).sum() / ((t == c) | (m == c)).sum() for c in CLASSES]
        assert result["rows"][name]["accuracy"] == pytest.approx((t == m).mean(), rel=1e-9)
        assert result["rows"][name]["mean IoU"] == pytest.approx(np.mean(ious), rel=1e-9)
    saved = json.loads((run / "evaluation-test.json").read_text())
    assert saved == result


@pytest.mark.parametrize("name", ["label-image", "image-label"])
def test_numbers_of_drawn_tiles(store, runs, tmp_path, name):
    """Each draw by hand: a mean of means, a texture of sums, a confusion of counts."""
    config = EvaluateConfig(run=runs[name], resamples=4, to=tmp_path / "a.json")
    result = evaluate(config)
    task = load_task(runs[name], device="cpu")
    tiles = store.split(SplitConfig(block=32)).test
    batch = task.prepare(whole(task, store, tiles))
    made = task.sample(batch, 0)[task.outputs[0].name]
    dice = np.random.default_rng(derived_seed(0, "bootstrap"))
    for number in range(4):
        places = dice.integers(len(tiles), size=len(tiles))
        valid, found = batch["valid"][places], {}
        if name == "label-image":
            expected = by_hand(made[places], batch["image"][places], valid)
        else:
            true, guess = batch["label"][places], made[places].argmax(1, keepdim=True)
            known = valid > 0
            right = torch.tensor(CLASSES)[guess[known]] == true[known]
            expected = {"accuracy": float(right.double().mean())}
        for metric in expected:
            found[metric] = result["resampled"][metric][number]
        assert found == pytest.approx(expected, rel=1e-4)
    assert result["resampled"].keys() == result["rows"]["model"].keys()
    again = evaluate(replace(config, resamples=0))
    assert again == {key: value for key, value in result.items() if key != "resampled"}


def test_a_confusion_matrix_by_hand():
    """Rows true, columns made: [[3, 1, 0], [2, 4, 0], [0, 0, 0]], and five pixels left out."""
    field = Field(Source("label", "label", "uint8", ("1",), classes=CLASSES), None)
    true = torch.tensor([0] * 4 + [2] * 6 + [2, 2, 2, 0, 9])
    made = torch.tensor([0, 0, 0, 2, 0, 0, 2, 2, 2, 2, 2, 0, 7, 7, 2])
    valid = torch.tensor([1.0] * 10 + [0.0] * 4 + [1.0])  # the last is of no known class
    batch = {"label": true.view(1, 1, 3, 5), "valid": valid.view(1, 1, 3, 5)}

    def guess(_):
        return {"model": {"label": field.enter(made.view(1, 1, 3, 5))}}

    rows = evaluation._Labels(field).measure(guess, [batch])["rows"]
    assert rows["model"]["accuracy"] == pytest.approx(7 / 10)
    assert rows["model"]["mean IoU"] == pytest.approx((3 / 6 + 4 / 7) / 2)
    again = evaluation._Labels(field).measure(guess, [batch, batch])["rows"]
    assert again == rows


def test_limit_spreads_evenly(store, runs):
    run = runs["label-image"]
    train_tiles = store.split(SplitConfig(block=32)).train
    result = evaluate(EvaluateConfig(run, "train", limit=3))
    assert result["tiles"] == 3
    task = load_task(run)
    middle = round((len(train_tiles) - 1) / 2)
    batch = whole(task, store, train_tiles[[0, middle, -1]])
    hand = by_hand(task.sample(batch, 0)["image"], batch["image"], batch["valid"])
    assert result["rows"]["model"]["L1"] == pytest.approx(hand["L1"], rel=1e-5)
    assert evaluate(EvaluateConfig(run, limit=10**6))["tiles"] == len(
        store.split(SplitConfig(block=32)).test
    )


def test_noise_is_the_same_every_time(runs):
    run = runs["label-image-noise"]
    torch.manual_seed(1)
    first = evaluate(EvaluateConfig(run, batch_size=3))
    torch.manual_seed(2)
    assert evaluate(EvaluateConfig(run, batch_size=1)) == first


def test_average_or_last_weights(runs):
    run = runs["label-image"]
    averaged, last = (evaluate(EvaluateConfig(run, average=a))["rows"] for a in (True, False))
    assert averaged["model"]["L1"] != last["model"]["L1"]
    assert averaged["class median"] == last["class median"]


def test_other_tiles_of_the_same_kind(store, runs, tmp_path):
    other = tiles_of(tmp_path / "other", seed=5)
    here, there = (
        evaluate(EvaluateConfig(runs["label-image"], tiles=t, to=tmp_path / "x.json"))["rows"]
        for t in (None, other.path)
    )
    assert here["model"]["L1"] != there["model"]["L1"]
    assert here["model"]["L1"] == pytest.approx(there["model"]["L1"], rel=0.3)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"bands": 4}, "source 'image' is .* the run was trained with"),
        ({"classes": (0, 2, 9)}, "source 'label' is "),
    ],
)
def test_tiles_that_do_not_fit(runs, tmp_path, options, match):
    other = tiles_of(tmp_path / "other", **options)
    with pytest.raises(InputError, match=match):
        evaluate(EvaluateConfig(runs["label-image"], tiles=other.path))


def test_tiles_with_fewer_sources_do_not_fit(store, runs, tmp_path):
    folder = tmp_path / "tiles"
    shutil.copytree(store.path, folder)
    head = json.loads((folder / "store.json").read_text())
    head["sources"] = [source for source in head["sources"] if source["name"] != "later"]
    (folder / "store.json").write_text(json.dumps(head))
    with pytest.raises(InputError, match="source 'later' is None"):
        evaluate(EvaluateConfig(runs["label-image"], tiles=folder))


@pytest.mark.parametrize("name", ["image", "label", "later", "valid"])
def test_a_flipped_bit_in_a_test_tile_is_found_and_named(store, runs, tmp_path, name):
    """Whatever the run looks at: twenty of twenty, where it gave other numbers."""
    folder = tmp_path / "tiles"
    shutil.copytree(store.path, folder)
    tile = int(store.split(SplitConfig(block=32)).test[1])
    size = (VALID if name == "valid" else store.sources[name]).nbytes(store.size)
    rng = np.random.default_rng(0)
    for byte in rng.integers(0, size, 5).tolist():
        place = 8 * (128 + tile * size + byte) + int(rng.integers(0, 8))
        flip_bit(folder / f"{name}-00000.npy", place)
        with pytest.raises(InputError, match=f"tile {tile} of scene a is damaged"):
            evaluate(EvaluateConfig(runs["label-image"], tiles=folder, to=tmp_path / "x.json"))
        flip_bit(folder / f"{name}-00000.npy", place)
    assert not (tmp_path / "x.json").exists()
    evaluate(EvaluateConfig(runs["label-image"], tiles=folder, to=tmp_path / "x.json"))


def test_a_store_that_moved_is_asked_for(runs, tmp_path):
    run = tmp_path / "another" / "run"
    shutil.copytree(runs["label-image"], run)
    expected = os.path.realpath(run / json.loads((run / "config.json").read_text())["tiles"])
    for again in (lambda: evaluate(EvaluateConfig(run)), lambda: resume(run)):
        with pytest.raises(InputError) as error:
            again()
        assert str(error.value) == (
            f"the tile store of {run} is not at {expected}: say where it is now with --tiles"
        )


@pytest.mark.parametrize(
    ("options", "match"),
    [({"batch_size": 0}, "batch size 0"), ({"limit": 0}, "limit 0"), ({"limit": -1}, "limit -1")],
)
def test_nothing_to_measure(runs, options, match):
    with pytest.raises(InputError, match=match):
        evaluate(EvaluateConfig(runs["label-image"], **options))


def test_an_empty_split(store, runs, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs["label-image"], run)
    about = json.loads((run / "config.json").read_text())
    about["training"]["split"]["test"] = 0.0
    about["tiles"] = str(store.path)
    (run / "config.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match="the test split is empty"):
        evaluate(EvaluateConfig(run))
    assert evaluate(EvaluateConfig(run, "validation"))["tiles"] > 0


@pytest.fixture(scope="module")
def filler(store, tmp_path_factory):
    """A run that fills holes in two stages, barely trained."""
    shape = EncoderDecoderConfig(width=4, dilations=(2,))
    judge = HoleJudgeConfig(width=4, layers=1)
    holes = HolesConfig(kinds=("polygon",), coverage=(0.2, 0.3))
    config = TwoStageConfig(
        holes=holes, generator=shape, discriminator=judge, refinement=shape, noise=True
    )
    training = TrainingConfig(steps=2, batch_size=4, split=SplitConfig(block=32), tensorboard=False)
    return train(config, store.path, tmp_path_factory.mktemp("filler") / "run", training)


def test_holes_are_measured_apart_and_beside_fills(store, filler):
    result = evaluate(EvaluateConfig(filler, features="efficientnet-lite0", weights="random"))
    rows = result["rows"]
    fills = {"mean fill": mean_fill, "nearest fill": nearest_fill, "harmonic fill": harmonic_fill}
    assert list(rows) == ["model", "coarse stage", "copy the input", *fills]
    task, split = load_task(filler), store.split(SplitConfig(block=32))
    batch = task.prepare(whole(task, store, split.test))
    image, hole, valid = batch["image"], batch["hole"], batch["valid"]
    made = {name: fill(image, hole, valid) for name, fill in fills.items()}
    made["copy the input"] = image * (1 - hole)
    outs = [
        task.sample({k: v[i : i + 1] for k, v in batch.items()}, int(batch["sample"][i]))
        for i in range(len(image))
    ]
    made["model"] = torch.cat([out["image"] for out in outs])
    coarse = torch.cat([out["coarse"] for out in outs])
    made["coarse stage"] = coarse * hole + image * (1 - hole)
    for name, picture in made.items():
        seam = metrics.Seam()
        seam.update(picture, hole, valid)
        parts = {"hole ": hole, "valid ": 1 - hole, "": None}
        expected = {f"{k}L1": metrics.l1(picture, image, valid, m) for k, m in parts.items()}
        expected |= {
            f"{k}SSIM": metrics.ssim(picture, image, valid, m, data_range=2)
            for k, m in parts.items()
        }
        for metric, values in expected.items():
            assert rows[name][metric] == pytest.approx(float(values.nanmean()), abs=1e-5)
        assert rows[name]["valid L1"] < 1e-6
        assert rows[name]["seam"] == pytest.approx(float(seam.ratio()), rel=1e-4)
        assert np.isfinite(rows[name]["KID"])
    low, high = result["intervals"]["coarse stage"]["hole L1"]
    difference = rows["model"]["hole L1"] - rows["coarse stage"]["hole L1"]
    assert low <= difference <= high
    low, high = result["intervals"]["mean fill"]["KID"]
    assert (low + high) / 2 == pytest.approx(
        rows["model"]["KID"] - rows["mean fill"]["KID"], rel=1e-6
    )
    saved = json.loads((filler / "evaluation-test.json").read_text(), parse_constant=pytest.fail)
    assert saved["rows"]["model"]["valid PSNR"] is None
    assert len(table(result).splitlines()) == 1 + 3 * (1 + len(made))


def test_a_file_that_cannot_be_written(runs, tmp_path):
    with pytest.raises(InputError, match=r"missing/x\.json cannot be written"):
        evaluate(EvaluateConfig(runs["label-image"], to=tmp_path / "missing" / "x.json"))


def test_json_has_no_infinity(store, runs, tmp_path, monkeypatch):
    """A perfect model has an infinite PSNR; JSON has no word for it."""

    task = load_task(runs["later-image"])
    later = Field(task.spec.sources["later"], task.spec.scalings["later"])
    task.inputs = task.outputs = (later,)
    task.generate = lambda batch: {"later": batch["later"]}
    monkeypatch.setattr(evaluation, "load_task", lambda *_, **__: task)
    result = evaluate(EvaluateConfig(runs["later-image"], to=tmp_path / "x.json"))
    assert result["rows"]["model"]["PSNR"] == float("inf")
    assert result["rows"]["model"]["SSIM"] == pytest.approx(1)
    saved = json.loads((tmp_path / "x.json").read_text(), parse_constant=pytest.fail)
    assert saved["rows"]["model"]["PSNR"] is None
    assert saved["rows"]["copy the input"]["L1"] == 0


def test_the_table():
    rows = {"model": {"L1": 0.5, "PSNR": 21.25}, "class median": {"L1": 1, "PSNR": 2.0}}
    text = table({"split": "test", "tiles": 7, "output": "image", "rows": rows})
    assert text.splitlines() == [
        "image on 7 test tiles",
        "                      L1        PSNR",
        "model             0.5000     21.2500",
        "class median      1.0000      2.0000",
    ]


# Cloud layers and finer pixels

BARE = UNetConfig(width=4, depth=2, norm="channel", up="resize", dropout=0.0)
BRIEF = TrainingConfig(
    steps=3, batch_size=4, split=SplitConfig(block=32), tensorboard=False, generator_lr=2e-3
)
SPLIT = SplitConfig(block=32)


@pytest.fixture(scope="module")
def layers(store, tmp_path_factory):
    """A run that parts clouds from ground, barely trained."""
    clouds = CloudsConfig(coverage=(0.5, 0.7), thickness=(0.6, 1.0), darkness=0.3)
    config = CloudLayersConfig(generator=BARE, clouds=clouds)
    return train(config, store.path, tmp_path_factory.mktemp("layers") / "run", BRIEF)


@pytest.fixture(scope="module")
def finer(store, tmp_path_factory):
    """A run that doubles the resolution, barely trained."""
    judge = PatchGANConfig(width=4, layers=1, norm="none")
    config = SuperResolutionConfig(generator=BARE, discriminator=judge, enlarge="transposed")
    return train(config, store.path, tmp_path_factory.mktemp("finer") / "run", BRIEF)


def mean_over_tiles(values, where):
    """Mean over bands and chosen pixels of each tile, then over the tiles that have some."""
    v, w = np.asarray(values), np.asarray(where) > 0
    w = np.broadcast_to(w, v.shape)
    return np.mean([x[k].mean() for x, k in zip(v, w, strict=True) if k.any()])


def test_thin_cloud_stands_first_and_alpha_has_its_own_number(store, layers):
    result = evaluate(EvaluateConfig(layers, batch_size=3))
    rows = result["rows"]
    assert list(rows) == ["model", "dark channel", "copy the input"]
    task = load_task(layers)
    batch = task.prepare(whole(task, store, store.split(SPLIT).test))
    image, alpha, valid = (batch[name].numpy() for name in ("image", "alpha", "valid"))
    thin, clear = (alpha > 0.05) & (alpha <= 0.75), alpha <= 0.05
    assert 0.1 < thin.mean() < 0.9
    assert clear.any()
    out = task.sample(batch, 0)
    made = {"model": (out["image"], out["alpha"]), "copy the input": (batch["cloudy"], 0 * alpha)}
    for name, (ground, layer) in made.items():
        error = np.abs(np.asarray(ground) - image)
        expected = {
            "thin L1": mean_over_tiles(error, thin & (valid > 0)),
            "clear L1": mean_over_tiles(error, clear & (valid > 0)),
            "L1": mean_over_tiles(error, valid),
            "alpha L1": mean_over_tiles(np.abs(np.asarray(layer) - alpha), valid),
        }
        for metric, value in expected.items():
            assert rows[name][metric] == pytest.approx(value, rel=1e-4, abs=1e-7), (name, metric)
    assert rows["copy the input"]["clear L1"] < 0.2 * rows["copy the input"]["thin L1"]
    columns = list(rows["model"])
    assert all(list(row) == columns for row in rows.values())
    assert columns[:2] == ["thin L1", "thin PSNR"]
    assert {"spectrum d.", "gradient d.", "thin SSIM", "PSNR"} <= set(columns)
    assert not {"consistency", "checkerboard", "seam"} & set(columns)
    haze, _ = rows["dark channel"], rows.pop("model")
    assert 0 < haze["alpha L1"] < 1
    assert haze["thin L1"] != rows["copy the input"]["thin L1"]
    assert set(result["intervals"]) == set(rows)
    for found in result["intervals"].values():
        assert list(found) == ["thin L1", "thin PSNR", "spectrum d.", "gradient d."]


def test_intervals_of_textures_against_a_loop(store, layers, monkeypatch):
    """The same tiles for both methods in every resample, and those of the truth."""
    monkeypatch.setattr(evaluation, "RESAMPLES", 25)
    found = evaluate(EvaluateConfig(layers, "validation"))["intervals"]["copy the input"]
    task = load_task(layers)
    batch = task.prepare(whole(task, store, store.split(SPLIT).validation))
    images = [task.sample(batch, 0)["image"], batch["cloudy"], batch["image"]]
    n, dice = len(images[0]), np.random.default_rng(derived_seed(0, "bootstrap"))
    assert n > 2
    gains = {"spectrum": [], "gradient": []}
    for _ in range(25):
        chosen = torch.from_numpy(dice.integers(n, size=n))
        textures = []
        for image in images:
            textures.append(metrics.Texture())
            textures[-1].update(image[chosen], batch["valid"][chosen])
        model, other = (t.distance(textures[2]) for t in textures[:2])
        for kind, values in gains.items():
            values.append(float(model[kind] - other[kind]))
    for kind, values in gains.items():
        expected = np.quantile(values, [0.025, 0.975])
        assert expected[0] < expected[1]
        assert found[f"{kind} d."] == pytest.approx(expected, rel=1e-3, abs=1e-6), kind


def test_finer_pixels_beside_enlargements(store, finer):
    rows = evaluate(EvaluateConfig(finer, batch_size=3))["rows"]
    assert list(rows) == ["model", "bicubic", "bilinear", "nearest"]
    task = load_task(finer)
    batch = task.prepare(whole(task, store, store.split(SPLIT).test))
    image, coarse, valid = batch["image"], batch["coarse"], batch["valid"].numpy()
    assert valid.mean() < 0.8
    made = {name: enlarge(coarse, 2, name) for name in ("bicubic", "bilinear", "nearest")}
    made["model"] = task.sample(batch, 0)["image"]
    fine = valid.repeat(2, 2).repeat(2, 3)
    true = metrics.checkerboard(image, torch.from_numpy(fine), 2).mean()
    for name, picture in made.items():
        means = picture.numpy().reshape(*coarse.shape[:2], 16, 2, 16, 2).mean((3, 5))
        energy = metrics.checkerboard(picture, torch.from_numpy(fine), 2).mean()
        expected = {
            "L1": mean_over_tiles(np.abs((picture - image).numpy()), fine),
            "consistency": mean_over_tiles(np.abs(means - coarse.numpy()), valid),
            "checkerboard": float(energy / true),
        }
        for metric, value in expected.items():
            assert rows[name][metric] == pytest.approx(value, rel=1e-3, abs=1e-6), (name, metric)
    assert rows["nearest"]["consistency"] < 1e-6 < rows["bilinear"]["consistency"]
    assert list(rows["model"])[:2] == ["L1", "PSNR"]
    assert "alpha L1" not in rows["model"]


def test_the_truth_has_one_checkerboard_of_its_own(finer, monkeypatch, tmp_path):
    task = load_task(finer)
    task.generate = lambda batch: {"image": batch["image"]}
    monkeypatch.setattr(evaluation, "load_task", lambda *_, **__: task)
    rows = evaluate(EvaluateConfig(finer, to=tmp_path / "x.json"))["rows"]
    assert rows["model"]["checkerboard"] == pytest.approx(1)
    assert rows["model"]["L1"] == rows["model"]["spectrum d."] == rows["model"]["gradient d."] == 0
    assert rows["model"]["consistency"] < 1e-6


def test_other_bands_are_enlarged_as_their_best_mixture(tmp_path):
    """One fine band of three coarse ones: by least squares on the training tiles, from numpy."""
    rng = np.random.default_rng(0)
    fine = rng.integers(1, 200, (1, 320, 320), np.uint8)
    area = fine[0].reshape(160, 2, 160, 2).mean((1, 3))
    coarse = np.stack([area + 20, 250 - area, rng.uniform(0, 250, area.shape)]).round()
    paths = write(tmp_path / "c.tif", coarse.astype(np.uint8)), str(tmp_path / "f.tif")
    profile = {"driver": "GTiff", "width": 320, "height": 320, "count": 1, "dtype": "uint8"}
    place = from_origin(0, 500, 0.5, 0.5)
    with rasterio.open(paths[1], "w", crs="EPSG:32633", transform=place, **profile) as file:
        file.write(fine)
    store = tile(TilingConfig((paths[0],), tmp_path / "tiles", fine=(paths[1],), size=32))
    config = SuperResolutionConfig(
        image="fine", coarse="image", generator=BARE, adversarial_weight=0.0
    )
    run = train(config, store.path, tmp_path / "run", BRIEF)
    rows = evaluate(EvaluateConfig(run))["rows"]
    assert list(rows) == ["model", "bicubic", "bilinear", "nearest"]
    assert all("consistency" not in row for row in rows.values())  # of other bands
    task, split = load_task(run), store.split(SPLIT)
    known = whole(task, store, split.train)
    small = known["fine"].double().numpy().reshape(-1, 32, 2, 32, 2).mean((2, 4)).ravel()
    x = known["image"].double().permute(0, 2, 3, 1).reshape(-1, 3).numpy()
    weights = np.linalg.lstsq(np.column_stack([np.ones(len(x)), x]), small, rcond=None)[0]
    batch = whole(task, store, split.test)
    mixed = np.einsum("c,ncyx->nyx", weights[1:], batch["image"].double().numpy()) + weights[0]
    for name in ("bicubic", "bilinear", "nearest"):
        made = enlarge(torch.from_numpy(mixed)[:, None], 2, name)
        expected = (made - batch["fine"]).abs().mean().item()
        assert rows[name]["L1"] == pytest.approx(expected, rel=1e-3)
