"""Batches from a store whose pixels say where they come from."""

import csv
import json
import math
import shutil
import zlib

import numpy as np
import pytest
import torch
from damage import flip_bit, truncate
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ganlab.config import ScalingConfig
from ganlab.data.batches import Batches, DataSpec, Scaling, describe
from ganlab.data.store import Source, TileStore
from ganlab.errors import InputError

SIZE, TILES = 8, 11
GRID = "1.0 0.0 0.0 0.0 -1.0 0.0"


def make_store(folder, arrays, kinds):
    """A store of one shard, written by hand: arrays ``(N, C, h, w)``, and kinds with "valid"."""
    folder.mkdir(parents=True)
    valid = arrays["valid"]
    size = valid.shape[-1]
    for name, array in arrays.items():
        np.save(folder / f"{name}-00000.npy", array)
    sources = [
        {"name": name, "kind": kind, "dtype": str(arrays[name].dtype)}
        | {"bands": [f"b{i}" for i in range(arrays[name].shape[1])]}
        | {"factor": arrays[name].shape[-1] // size}
        | {"classes": np.unique(arrays[name]).tolist() if kind == "label" else []}
        for name, kind in kinds.items()
    ]
    scene = {"name": "s", "group": "s", "crs": None, "transform": [1, 0, 0, 0, -1, 0]}
    head = {"format": "ganlab tile store", "version": 1, "size": size, "shards": [len(valid)]}
    head |= {"sources": sources, "scenes": [scene | {"width": size * len(valid), "height": size}]}
    (folder / "store.json").write_text(json.dumps(head))
    with open(folder / "index.csv", "w", newline="") as file:
        lines = csv.writer(file)
        names = "tile,scene,group,row,column,height,width,transform,valid_fraction,checksum"
        lines.writerow(names.split(","))
        for i in range(len(valid)):
            parts = b"".join(arrays[name][i].tobytes() for name in (*kinds, "valid"))
            lines.writerow(
                [i, "s", "s", 0, i * size, size, size, GRID, 1.0, f"{zlib.crc32(parts):08x}"]
            )
    return TileStore.open(folder)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Every label pixel is the number of its place; image and fine follow from it."""
    place = np.arange(TILES * SIZE * SIZE).reshape(TILES, 1, SIZE, SIZE)
    fine = np.arange(TILES * 4 * SIZE * SIZE).reshape(TILES, 1, 2 * SIZE, 2 * SIZE)
    valid = np.random.default_rng(0).random(place.shape) < 0.8
    arrays = {
        "image": np.concatenate([place * 90, 65535 - place], 1).astype(np.uint16),
        "label": place.astype(np.int32),
        "fine": fine.astype(np.float32),
        "valid": valid.astype(np.uint8),
    }
    kinds = {"image": "image", "label": "label", "fine": "image"}
    return make_store(tmp_path_factory.mktemp("batches") / "tiles", arrays, kinds)


@pytest.fixture(scope="module")
def spec(store):
    return describe(store, np.arange(TILES), ScalingConfig())


def make(store, spec, **options):
    options = {"batch_size": 4, "seed": 3} | options
    return Batches(store, np.arange(TILES), spec, **options)


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[k], other[k]) and one[k].dtype == other[k].dtype for k in one)


def test_shapes_types_and_ranges(store, spec):
    batch = make(store, spec, crop=6)[0]
    shapes = {name: (tuple(value.shape), value.dtype) for name, value in batch.items()}
    assert shapes == {
        "image": ((4, 2, 6, 6), torch.float32),
        "label": ((4, 1, 6, 6), torch.int64),
        "fine": ((4, 1, 12, 12), torch.float32),
        "valid": ((4, 1, 6, 6), torch.float32),
        "sample": ((4,), torch.int64),
        "key": ((4,), torch.int64),
    }
    assert set(batch["valid"].unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("crop", [None, 5])
def test_loader_resident_and_workers_give_the_same_bits(store, spec, crop):
    loader = make(store, spec, crop=crop)
    resident = make(store, spec, crop=crop, resident=True)
    expected = [loader[step] for step in range(2, 9)]
    for other in (
        [resident[step] for step in range(2, 9)],
        list(loader.stream(2, 9)),
        list(resident.stream(2, 9, workers=1)),
        list(loader.stream(2, 9, workers=2)),
    ):
        assert len(other) == 7
        assert all(same(a, b) for a, b in zip(expected, other, strict=True))
    assert not same(expected[0], make(store, spec, crop=crop, seed=4)[2])


def test_a_stream_leaves_the_global_generator_alone(store, spec):
    state = torch.get_rng_state()
    list(make(store, spec).stream(0, 3, workers=1))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_cut_during_a_training_ends_it_with_one_line(tmp_path, spec, store, workers):
    folder = tmp_path / "tiles"
    shutil.copytree(store.path, folder)
    opened = TileStore.open(folder)
    opened.verify()
    stream = make(opened, spec).stream(0, 50, workers=workers)
    next(stream)
    truncate(folder / "image-00000.npy", 128 + 3 * 2 * 2 * SIZE * SIZE)
    with pytest.raises(InputError) as error:
        list(stream)
    assert str(error.value) == (
        f"{folder / 'image-00000.npy'} was cut short while it was in use: tile the scenes again"
    )


@pytest.mark.parametrize("resident", [False, True])
def test_a_damaged_tile_is_named_and_not_trained_on(tmp_path, spec, store, resident):
    folder = tmp_path / "tiles"
    shutil.copytree(store.path, folder)
    flip_bit(folder / "label-00000.npy", 8 * (128 + 4 * SIZE * SIZE * 5 + 7))
    with pytest.raises(InputError, match="tile 5 of scene s is damaged"):
        list(make(TileStore.open(folder), spec, resident=resident).stream(0, 3))


def test_each_epoch_meets_each_tile_once_in_a_new_order(store, spec):
    batches = make(store, spec, batch_size=3)
    met = torch.cat([batches[step]["sample"] for step in range(TILES * 3)]).view(9, TILES)
    assert (met.sort(1).values == torch.arange(TILES)).all()
    assert len({tuple(epoch.tolist()) for epoch in met}) == 9


def test_a_batch_may_be_larger_than_the_tiles(store, spec):
    batch = make(store, spec, batch_size=2 * TILES + 3)[0]
    assert torch.bincount(batch["sample"]).min() >= 2
    # The same tile in two epochs is cut and turned anew.
    seen = {tuple(batch["label"][i].flatten().tolist()) for i in range(len(batch["sample"]))}
    assert len(seen) > TILES


@pytest.mark.parametrize("world", [2, 4])
def test_the_shares_of_the_processes_are_the_batch_of_one(store, spec, world):
    whole = make(store, spec, batch_size=4, crop=5)
    for step in range(8):
        shares = [
            make(store, spec, batch_size=4, crop=5, rank=rank, world=world)[step]
            for rank in range(world)
        ]
        joined = {name: torch.cat([share[name] for share in shares]) for name in shares[0]}
        assert same(joined, whole[step])


def turned_like(window, label):
    """Which of the eight symmetries of the square turns ``window`` into ``label``."""
    for turns in range(4):
        for mirrored in (False, True):
            candidate = np.rot90(window, turns)
            candidate = candidate[:, ::-1] if mirrored else candidate
            if (candidate == label).all():
                return turns, mirrored
    return None


@pytest.mark.parametrize("crop", [None, 5])
def test_all_sources_are_cut_and_turned_alike(store, spec, crop):
    batches = make(store, spec, crop=crop)
    side = crop or SIZE
    symmetries, corners = [], []
    for step in range(60):
        batch = batches[step]
        for i, tile in enumerate(batch["sample"].tolist()):
            label = batch["label"][i, 0].numpy()
            number, place = np.divmod(label, SIZE * SIZE)
            assert (number == tile).all()
            rows, columns = np.divmod(place, SIZE)
            top, left = rows.min(), columns.min()
            assert (rows.max() - top, columns.max() - left) == (side - 1, side - 1)
            corners.append((int(top), int(left)))
            window = np.s_[top : top + side, left : left + side]
            whole = store.read("label", [tile])[0, 0]
            symmetries.append(turned_like(whole[window], label))
            assert symmetries[-1] is not None

            valid = store.read("valid", [tile])[0, 0][rows, columns]
            assert (batch["valid"][i, 0].numpy() == valid).all()
            image = spec.scalings["image"].decode(batch["image"][i : i + 1], "uint16")[0]
            stored = store.read("image", [tile])[0][:, rows, columns]
            fill = np.rint(spec.scalings["image"].fill)[:, None, None]
            assert (image == np.where(valid, stored, fill)).all()

            turns, mirrored = symmetries[-1]
            fine_window = np.s_[2 * top : 2 * (top + side), 2 * left : 2 * (left + side)]
            fine = np.rot90(store.read("fine", [tile])[0, 0][fine_window], turns)
            fine = fine[:, ::-1] if mirrored else fine
            fine = np.where(valid.repeat(2, 0).repeat(2, 1), fine, spec.scalings["fine"].fill[0])
            made = spec.scalings["fine"].decode(batch["fine"][i : i + 1], "float32")[0, 0]
            assert np.allclose(made, fine, atol=0.01)
    counts = np.unique([t * 2 + m for t, m in symmetries], return_counts=True)[1]
    assert len(counts) == 8
    assert abs(((counts - 30) ** 2 / 30).sum() - 7) < 5 * math.sqrt(14)
    assert set(corners) == {(r, c) for r in range(SIZE - side + 1) for c in range(SIZE - side + 1)}


def test_without_augmentation_tiles_are_only_cropped(store, spec):
    batches = make(store, spec, augment=False)
    for step in range(6):
        batch = batches[step]
        assert (batch["label"].numpy() == store.read("label", batch["sample"])).all()
    whole = make(store, spec, crop=3).whole(np.array([5, 2, 2]))
    assert whole["sample"].tolist() == [5, 2, 2]
    assert (whole["label"].numpy() == store.read("label", [5, 2, 2])).all()


def test_some_of_the_tiles_in_any_order(store, spec):
    chosen = np.array([9, 1, 4])
    loader = Batches(store, chosen, spec, batch_size=2)
    resident = Batches(store, chosen, spec, batch_size=2, resident=True)
    met = torch.cat([loader[step]["sample"] for step in range(3)])
    assert sorted(met.tolist()) == [1, 1, 4, 4, 9, 9]
    assert all(same(loader[step], resident[step]) for step in range(5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": 9}, "crop 9 does not fit tiles of 8"),
        ({"crop": 0}, "crop 0"),
        ({"batch_size": 3, "world": 2}, "batch size 3 does not divide by 2"),
        ({"batch_size": 0}, "batch size 0"),
    ],
)
def test_wrong_options_are_refused(store, spec, options, message):
    with pytest.raises(InputError, match=message):
        make(store, spec, **options)


def test_no_tiles_are_refused(store, spec):
    with pytest.raises(InputError, match="no tiles"):
        Batches(store, np.zeros(0, np.int64), spec, batch_size=1)
    with pytest.raises(InputError, match="no training tiles"):
        describe(store, np.zeros(0, np.int64), ScalingConfig())


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32", "float64"])
def test_labels_and_images_of_every_type_arrive(tmp_path, dtype):
    values = np.array([0, 1, 200, 2, 100, 33, 7, 254], dtype).reshape(2, 1, 2, 2)
    if dtype == "uint16":
        values = values * np.uint16(257)
    if dtype == "uint32":
        values = values * np.uint32(16843009)  # the highest bit set, too
    arrays = {"image": values, "label": values, "valid": np.ones((2, 1, 2, 2), np.uint8)}
    kinds = {"image": "image"} | ({"label": "label"} if dtype != "float64" else {})
    if "label" not in kinds:
        del arrays["label"]
    store = make_store(tmp_path / dtype, arrays, kinds)
    high = 2**32 - 1 if dtype == "uint32" else 65535
    spec = describe(store, np.arange(2), ScalingConfig(low=(0,), high=(high,)))
    for resident in (False, True):
        whole = Batches(store, np.arange(2), spec, batch_size=2, resident=resident, augment=False)
        batch = whole[0]
        order = batch["sample"].numpy()
        decoded = spec.scalings["image"].decode(batch["image"], dtype)
        assert np.allclose(decoded, values[order], atol=0 if dtype != "float64" else 0.01)
        if "label" in kinds:
            assert (batch["label"].numpy() == values[order].astype(np.int64)).all()


RANGES = st.tuples(st.floats(-1e5, 1e5), st.floats(1e-3, 1e5)).map(lambda p: (p[0], p[0] + p[1]))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
@settings(max_examples=25)
@given(ends=RANGES)
def test_every_integer_returns_exactly(dtype, ends):
    info = np.iinfo(dtype)
    stored = np.arange(info.min, info.max + 1, dtype=dtype).reshape(1, 1, -1, 1)
    scaling = Scaling((ends[0],), (ends[1],), (0.0,))
    there = scaling.encode(torch.from_numpy(stored.astype(np.int32)), torch.ones(stored.shape))
    assert there.dtype == torch.float32
    assert (scaling.decode(there, dtype) == stored).all()
    exact = (2 * stored.astype(np.float64) - ends[0] - ends[1]) / (ends[1] - ends[0])
    size = np.abs(exact) + np.abs(ends).max() / (ends[1] - ends[0])
    assert (np.abs(there.numpy() - exact) <= 4e-7 * size).all()


@settings(max_examples=150)
@given(ends=RANGES, seed=st.integers(0, 2**31))
def test_floats_return_within_one_unit_in_the_last_place(ends, seed):
    low, high = np.float32(ends[0]), np.float32(ends[1])
    assume(low < high)
    shares = np.concatenate([[0, 0.5, 1], np.random.default_rng(seed).random(4000)])
    stored = (low + shares * (high - low)).astype(np.float32).clip(low, high)
    scaling = Scaling((float(low),), (float(high),), (0.0,))
    image = torch.from_numpy(stored).view(1, 1, -1, 1)
    back = scaling.decode(scaling.encode(image, torch.ones_like(image)), "float32").reshape(-1)
    ulp = np.spacing(max(abs(low), abs(high)))
    assert back.dtype == np.float32
    assert (np.abs(back.astype(np.float64) - stored) <= ulp).all()


def test_encoding_never_clips_and_decoding_saturates():
    scaling = Scaling((100.0, 0.0), (200.0, 1.0), (150.0, 0.5))
    stored = torch.tensor([[0.0, 100, 150, 200, 1000], [-3, 0, 0.5, 1, 9]]).view(1, 2, 5, 1)
    there = scaling.encode(stored, torch.ones(1, 1, 5, 1))
    assert there[0, 0].flatten().tolist() == [-3, -1, 0, 1, 17]
    assert there[0, 1].flatten().tolist() == [-7, -1, 0, 1, 17]
    wild = torch.tensor([-9.0, 0, 9]).view(1, 1, 3, 1)
    one = Scaling((0.0,), (255.0,), (0.0,))
    assert one.decode(wild, "uint8").flatten().tolist() == [0, 128, 255]
    assert one.decode(wild, "int8").flatten().tolist() == [-128, 127, 127]
    assert one.decode(wild, "uint16").flatten().tolist() == [0, 128, 1275]
    huge = Scaling((-1e38,), (1e38,), (0.0,)).decode(wild, "float32").flatten()
    assert huge.tolist() == [np.finfo("float32").min, 0, np.finfo("float32").max]
    with pytest.raises(InputError, match="not finite"):
        one.decode(torch.tensor([math.nan]).view(1, 1, 1, 1), "uint8")


def test_values_far_outside_are_those_of_another_sensor_unless_clouds_are_expected():
    scaling = Scaling((0.0,), (200.0,), (100.0,))  # -1 to 1; far means below -100 or above 300
    stored = torch.tensor([-101.0, -99, 150, 299, 301, 499, 501, 999]).view(1, 1, 2, 4)
    valid = torch.ones(1, 1, 2, 4)
    valid[..., -1] = 0
    assert scaling.outside(stored, valid).item() == pytest.approx(4 / 6)
    for value, share in ((0.5, 4 / 6), (2.0, 2 / 6), (2.01, 1 / 6), (-1.5, 3 / 6)):
        cloud = torch.tensor([value]).view(1, 1, 1)
        assert scaling.outside(stored, valid, cloud).item() == pytest.approx(share)


def test_what_lies_under_invalid_pixels_never_gets_through():
    scaling = Scaling((0.0, 0.0), (2.0, 2.0), (1.5, 0.5))
    stored = torch.full((1, 2, 1, 3), math.nan)
    stored[..., 0] = 2.0
    valid = torch.tensor([1.0, 0, 0]).view(1, 1, 1, 3)
    assert scaling.encode(stored, valid).tolist() == [[[[1, 0.5, 0.5]], [[1, -0.5, -0.5]]]]


def test_share_of_pixels_unlike_the_training():
    scaling = Scaling((0.0,), (2.0,), (1.0,))
    stored = torch.tensor([0.0, 2.9, 3.1, 99, -1.1, 50]).view(1, 1, 1, 6)
    valid = torch.tensor([1.0, 1, 1, 0, 1, 0]).view(1, 1, 1, 6)
    assert float(scaling.outside(stored, valid)) == 0.5
    assert float(scaling.outside(stored, valid * 0)) == 0


def float_store(tmp_path, bands, valid=None):
    values = np.stack(bands, 1).astype(np.float32)
    arrays = {"image": values}
    arrays["valid"] = np.ones_like(values[:, :1], np.uint8) if valid is None else valid
    return make_store(tmp_path / "tiles", arrays, {"image": "image"})


def test_measured_scaling_is_that_of_the_valid_training_pixels(tmp_path):
    rng = np.random.default_rng(1)
    values = rng.normal(50, 9, (6, 2, 16, 16)).astype(np.float32)
    valid = (rng.random((6, 1, 16, 16)) < 0.7).astype(np.uint8)
    hidden = np.where(valid > 0, values, np.float32(1e6))
    store = float_store(tmp_path, [hidden[:, 0], hidden[:, 1]], valid)
    train = np.array([0, 2, 3])
    scaling = describe(store, train, ScalingConfig()).scalings["image"]
    for band in range(2):
        seen = values[train, band][valid[train, 0] > 0].astype(np.float64)
        assert scaling.low[band] == pytest.approx(np.quantile(seen, 0.005), rel=1e-12)
        assert scaling.high[band] == pytest.approx(np.quantile(seen, 0.995), rel=1e-12)
        assert scaling.fill[band] == pytest.approx(seen.mean(), rel=1e-12)


def test_bytes_keep_their_natural_range(store, tmp_path):
    arrays = {"image": np.full((1, 3, 4, 4), 7, np.uint8), "valid": np.ones((1, 1, 4, 4), np.uint8)}
    bytes_ = make_store(tmp_path / "tiles", arrays, {"image": "image"})
    scaling = describe(bytes_, np.array([0]), ScalingConfig()).scalings["image"]
    assert scaling == Scaling((0.0,) * 3, (255.0,) * 3, (7.0,) * 3)


@pytest.mark.parametrize("value", [0.0, 7.5, -1e9, 3e37])
def test_constant_bands_stay_finite_and_return(tmp_path, value):
    store = float_store(tmp_path, [np.full((2, 4, 4), value)])
    spec = describe(store, np.arange(2), ScalingConfig())
    batch = Batches(store, np.arange(2), spec, batch_size=2)[0]
    assert batch["image"].isfinite().all()
    assert batch["image"].abs().max() <= 1 + 1e-6
    back = spec.scalings["image"].decode(batch["image"], "float32")
    assert (np.abs(back - np.float32(value)) <= np.spacing(np.float32(abs(value) + 1))).all()


def test_declared_scaling(tmp_path):
    rng = np.random.default_rng(2)
    store = float_store(tmp_path, [rng.normal(size=(2, 4, 4)) for _ in range(2)])

    def measured(low=(), high=()):
        return describe(store, np.arange(2), ScalingConfig(low, high)).scalings["image"]

    assert measured((-2,), (3,)).low == (-2, -2)
    assert measured((-2, 0), (3, 4)).high == (3, 4)
    assert measured((-9,)).low == (-9, -9)
    with pytest.raises(InputError, match="3 values for 2 bands"):
        measured((1, 2, 3))
    for low, high in [((5,), (1,)), ((2,), (2,)), ((100,), ())]:
        with pytest.raises(InputError, match="must lie below"):
            measured(low, high)


def test_a_band_without_valid_pixels_is_refused(tmp_path):
    store = float_store(tmp_path, [np.zeros((2, 4, 4))], np.zeros((2, 1, 4, 4), np.uint8))
    with pytest.raises(InputError, match="no valid pixel of 'image'"):
        describe(store, np.arange(2), ScalingConfig())


def test_the_specification_goes_through_json(spec):
    back = DataSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert back == spec
    assert isinstance(back.sources["image"], Source)
    assert back.scalings["image"].low == spec.scalings["image"].low
