"""Bands by number and name, and paths with commas."""

import dataclasses

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin
from rasterio.windows import Window

from ganlab.config import ApplyConfig, Pix2PixConfig, TilingConfig, TrainingConfig, UNetConfig
from ganlab.data.bands import Band, choose_bands, reordered, split_paths
from ganlab.data.scenes import open_labels, open_scene
from ganlab.data.tiling import tile
from ganlab.errors import InputError
from ganlab.inference import apply
from ganlab.training import train

PIXELS = np.random.default_rng(0).integers(1, 200, (4, 64, 64), np.uint16)


def write(path, array, names=(), **options):
    count, height, width = array.shape
    profile = {"driver": "GTiff", "count": count, "height": height, "width": width}
    profile |= {"crs": "EPSG:32633", "transform": from_origin(5e5, 5e6, 2, 2)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(path, "w", dtype=array.dtype, **profile, **options) as file:
        file.write(array)
        if names:
            file.descriptions = names
    return str(path)


def first_pixels(scene):
    return scene.read(Window(0, 0, 1, 1))[0].ravel().tolist()


def values_of(numbers):
    return [int(PIXELS[number - 1, 0, 0]) for number in numbers]


# --- choosing ------------------------------------------------------------------------------


def test_a_digit_that_is_a_name_and_another_number_is_refused_with_both_readings(tmp_path):
    path = write(tmp_path / "s2.tif", PIXELS, names=("2", "3", "4", "8"))
    with pytest.raises(InputError) as refused:
        open_scene(path, bands=("4", "3", "2"))
    message = str(refused.value)
    assert "called 4 (number 3)" in message
    assert "number 4 (called 8)" in message
    assert "name:4" in message
    assert "number:4" in message


@pytest.mark.parametrize(
    ("wanted", "numbers"),
    [
        (("name:4", "name:3", "name:2"), (3, 2, 1)),
        (("number:4", "number:3", "number:2"), (4, 3, 2)),
        ((4, 3, 2), (4, 3, 2)),
        (("8",), (4,)),  # there is no band number 8
        (("1",), (1,)),  # there is no band called 1
        ("name:8", (4,)),
    ],
)
def test_each_reading_can_be_asked_for(tmp_path, wanted, numbers):
    path = write(tmp_path / "s2.tif", PIXELS, names=("2", "3", "4", "8"))
    scene = open_scene(path, bands=wanted)
    assert first_pixels(scene) == values_of(numbers)
    assert scene.bands == tuple(("2", "3", "4", "8")[number - 1] for number in numbers)


@pytest.mark.parametrize("names", [("1", "2", "3", "4"), (), ("a", "2", "b", "c")])
def test_numbers_that_agree_with_names_need_no_more(tmp_path, names):
    path = write(tmp_path / "s.tif", PIXELS, names=names)
    assert first_pixels(open_scene(path, bands=("2",))) == values_of((2,))
    assert first_pixels(open_scene(path, bands=("number:2",))) == values_of((2,))


def test_a_number_never_means_the_number_of_a_band_that_has_no_name(tmp_path):
    path = write(tmp_path / "s.tif", PIXELS, names=("4", "", "", ""))
    with pytest.raises(InputError, match="name:4 or number:4"):
        open_scene(path, bands=("4",))
    assert first_pixels(open_scene(path, bands=("name:4",))) == values_of((1,))
    with pytest.raises(InputError, match="no single band 'name:3'"):
        open_scene(path, bands=("name:3",))


@pytest.mark.parametrize("wanted", ["B8", "b8", "B08", "b08"])
def test_b8_is_not_b8a_however_it_is_written(tmp_path, wanted):
    path = write(tmp_path / "s2.tif", PIXELS, names=("B8A", "B08", "B80", "B18"))
    assert open_scene(path, bands=(wanted,)).bands == ("B08",)
    assert open_scene(path, bands=("b8a",)).bands == ("B8A",)


def test_the_exact_name_comes_before_one_that_is_written_otherwise(tmp_path):
    path = write(tmp_path / "s.tif", PIXELS, names=("nir", "NIR", "B04", "B4"))
    assert first_pixels(open_scene(path, bands=("NIR", "B4"))) == values_of((2, 4))
    with pytest.raises(InputError, match=r"no single band 'Nir', .* say number:1 or number:2"):
        open_scene(path, bands=("Nir",))


def test_bands_of_one_name_are_asked_for_by_number(tmp_path):
    path = write(tmp_path / "s.tif", PIXELS, names=("x", "x", "y", "z"))
    assert open_scene(path).bands == ("x", "x", "y", "z")
    with pytest.raises(InputError, match="say number:1 or number:2"):
        open_scene(path, bands=("x",))
    assert first_pixels(open_scene(path, bands=("number:2",))) == values_of((2,))


@pytest.mark.parametrize("wanted", ["0", "5", "-1", "²", "number:0", "number:x", "name:", "", 0, 9])
def test_bands_that_do_not_exist(wanted):
    bands = [Band("s.tif", i, f"B{i}", False) for i in range(1, 5)]
    with pytest.raises(InputError, match=r"s.tif has no single band '.*'; it has 1 \(B1\), 2 "):
        choose_bands([wanted], bands)


@pytest.mark.parametrize(
    ("bands", "others", "answer"),
    [
        (("B04", "B03"), ("B3", "B4"), True),
        (("Red", "Green"), ("green", "red"), True),
        (("B04", "B03"), ("b4", "b3"), False),
        (("B8", "B8A"), ("B8A", "B8"), True),
        (("B8", "B4"), ("B8A", "B4"), False),
        (("x", "x", "y"), ("x", "y", "x"), True),
        (("x", "x", "y"), ("x", "x", "y"), False),
        (("4", "3", "2"), ("2", "3", "4"), True),
        (("4", "3", "2"), ("1", "2", "3"), False),
    ],
)
def test_orders_are_compared_by_what_names_mean(bands, others, answer):
    assert reordered(bands, others) is answer
    assert reordered(others, bands) is answer


def test_the_option_that_brings_bands_into_order_is_taken_even_if_they_are_called_by_digits(
    tmp_path,
):
    one = write(tmp_path / "a.tif", PIXELS[:3], names=("4", "3", "2"))
    other = write(tmp_path / "b.tif", PIXELS[2::-1], names=("2", "3", "4"))
    with pytest.raises(InputError, match="one order: --bands name:4 name:3 name:2$"):
        tile(TilingConfig((one, other), tmp_path / "t", size=32))
    words = ("name:4", "name:3", "name:2")
    tile(TilingConfig((one, other), tmp_path / "t", size=32, bands=words))
    assert first_pixels(open_scene(one, bands=words)) == values_of((1, 2, 3))
    assert first_pixels(open_scene(other, bands=words)) == values_of((1, 2, 3))
    task = Pix2PixConfig("image", "image", UNetConfig(width=4, depth=2), adversarial_weight=0.0)
    training = TrainingConfig(steps=1, batch_size=1, tensorboard=False, device="cpu")
    run = train(task, tmp_path / "t", tmp_path / "r", training)
    rgbn = write(tmp_path / "c.tif", PIXELS, names=("B8", "B2", "B3", "B4"))
    for scene in (other, write(tmp_path / "d.tif", PIXELS, names=("8", "2", "3", "4"))):
        config = ApplyConfig(run=run, scene=scene, to=tmp_path / "made.tif", overwrite=True)
        with pytest.raises(InputError, match="choose with --bands name:4 name:3 name:2$"):
            apply(config)
        apply(dataclasses.replace(config, bands=words))
    with pytest.raises(InputError, match="choose with --bands$"):  # names of another kind
        apply(dataclasses.replace(config, scene=rgbn))


# --- stacked files -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (("2020/B4.tif", "2021/B4.tif"), ("2020/B4", "2021/B4")),
        (("LC08_B4_2020.tif", "LC08_B4_2021.tif"), ("LC08_B4_2020", "LC08_B4_2021")),
        (("T33_B08_10m.tif", "T33_B8A_20m.tif"), ("B08", "B8A")),
        (("a_b04.tif", "ratio_B4_B3.tif"), ("b04", "ratio_B4_B3")),
        (("x/1/B4.tif", "y/1/B4.tif"), ("B4-1", "B4-2")),
    ],
)
def test_stacked_files_get_names_of_their_own(tmp_path, files, names):
    paths = [write(tmp_path / name, PIXELS[i : i + 1]) for i, name in enumerate(files)]
    scene = open_scene(",".join(paths))
    assert scene.bands == names
    assert first_pixels(open_scene(paths, bands=(names[1],))) == values_of((2,))


def test_stacked_files_of_one_description_are_called_after_their_files(tmp_path):
    paths = [
        write(tmp_path / f"B{i}.tif", PIXELS[i : i + 1], names=("reflectance",)) for i in (2, 3)
    ]
    assert open_scene(paths).bands == ("B2", "B3")


def test_stacked_files_that_are_called_by_digits(tmp_path):
    paths = [write(tmp_path / f"{i}.tif", PIXELS[i - 1 : i]) for i in (2, 1)]
    with pytest.raises(InputError, match="name:1 or number:1"):
        open_scene(paths, bands=("1",))
    assert first_pixels(open_scene(paths, bands=("name:1",))) == values_of((1,))


# --- commas --------------------------------------------------------------------------------


def test_a_comma_can_be_a_part_of_a_name(tmp_path):
    one = write(tmp_path / "Berlin, Mitte.tif", PIXELS)
    other = write(tmp_path / "B4,v2.tif", PIXELS)
    assert split_paths(one) == [one]
    assert split_paths(f"{one},{other}") == [one, other]
    assert split_paths(tmp_path / "Berlin, Mitte.tif") == [one]
    assert split_paths([one, other]) == [one, other]
    assert split_paths("no.tif,neither.tif") == ["no.tif", "neither.tif"]
    assert open_scene(one).name == "Berlin, Mitte"
    assert len(open_scene(f"{one},{other}").bands) == 8
    with pytest.raises(InputError, match=r"^no such, file.tif|^no such cannot be opened"):
        open_scene("no such, file.tif")


def test_a_folder_with_a_comma_serves_every_path_of_a_training(tmp_path):
    folder = tmp_path / "a, b"
    photo = write(folder / "photo, 1.tif", PIXELS[:3].astype(np.uint8))
    label = write(folder / "label, 1.tif", (PIXELS[:1] % 2).astype(np.uint8))
    assert open_labels(label, open_scene(photo).grid).bands == ("1",)
    store = tile(TilingConfig((photo,), folder / "t", (label,), size=32))
    assert list(store.scenes) == ["photo, 1"]
    task = Pix2PixConfig(generator=UNetConfig(width=4, depth=2), adversarial_weight=0.0)
    training = TrainingConfig(steps=1, batch_size=1, tensorboard=False, device="cpu")
    run = train(task, folder / "t", folder / "r", training)
    made = apply(ApplyConfig(run=run, scene=label, to=folder / "made, 1.tif", device="cpu"))
    with rasterio.open(made[0]) as file:
        assert file.shape == (64, 64)
    with pytest.raises(InputError, match="or the scene itself"):
        apply(ApplyConfig(run=run, scene=label, to=folder / "label, 1.tif", overwrite=True))
