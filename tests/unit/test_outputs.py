"""Outputs of apply: in place of all that belonged to older ones, together, and only where asked."""

import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from rasterio.enums import Resampling

from ganlab import files, inference
from ganlab.config import ApplyConfig, Pix2PixConfig, TilingConfig, TrainingConfig, UNetConfig
from ganlab.data import placing
from ganlab.data.batches import DataSpec, Scaling
from ganlab.data.placing import in_the_way
from ganlab.data.raster_files import shown
from ganlab.data.store import Source
from ganlab.data.tiling import tile
from ganlab.errors import InputError
from ganlab.inference import apply
from ganlab.tasks.base import Field, Task
from ganlab.training import train

PLACE = {"crs": "EPSG:32633", "transform": Affine(2, 0, 500_000, 0, -2, 5_000_000)}
SIZE = 48
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


class Copies(Task):
    """A task without training: each output is the scene, whatever it is called."""

    def __init__(self, *names):
        super().__init__(None, DataSpec({}, {}))
        scaling = Scaling((0.0,), (255.0,), (128.0,))
        self.inputs = (Field(Source("image", "image", "uint8", ("grey",)), scaling),)
        self.outputs = tuple(
            Field(Source("image", "image", "uint8", ("grey",)), scaling) for _ in names
        )
        for field, name in zip(self.outputs, names, strict=True):
            # A source refuses such names itself; this is about what apply does if one comes.
            object.__setattr__(field.source, "name", name)
        self.generator = torch.nn.Linear(1, 1)

    def generate(self, batch):
        return {field.name: batch["image"] for field in self.outputs}

    def generator_losses(self, batch, out, verdict):
        raise NotImplementedError

    def balances(self, steps):
        raise NotImplementedError

    last_layer = None


def raster(path, value=None, size=SIZE, count=1, georeferenced=True, **options):
    pixels = np.random.default_rng(0).integers(1, 255, (count, size, size)).astype(np.uint8)
    if value is not None:
        pixels[:] = value
    profile = {"driver": "GTiff", "width": size, "height": size, "count": count, "dtype": "uint8"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        place = PLACE if georeferenced else {}
        with rasterio.open(path, "w", **profile, **place, **options) as file:
            file.write(pixels)
    return path


def described_raster(path):
    """An older raster with everything that GDAL and others write beside one."""
    raster(path, value=7, count=3)
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False, TIFF_USE_OVR=True),
        rasterio.open(path, "r+") as file,
    ):
        file.write_mask(np.eye(SIZE, dtype=bool))
        file.build_overviews([2, 4], Resampling.nearest)
    band = '<PAMRasterBand band="1"><Description>old band</Description><NoDataValue>9'
    band += '</NoDataValue><Metadata><MDI key="STATISTICS_MAXIMUM">7</MDI></Metadata>'
    band += "</PAMRasterBand>"
    path.with_name(f"{path.name}.aux.xml").write_text(f"<PAMDataset>{band}</PAMDataset>")
    path.with_suffix(".tfw").write_text("2\n0\n0\n-2\n100\n200\n")
    return path


@pytest.fixture
def task(monkeypatch):
    """Let ``apply`` find a task in place of a trained one."""

    def use(*names):
        made = Copies(*names).eval()
        monkeypatch.setattr(inference, "load_task", lambda *_, **__: made)
        return made

    use("image")
    return use


def applied(folder, scene=None, to="made.tif", **options):
    scene = str(folder / "scene.tif") if scene is None else str(scene)
    return apply(ApplyConfig(Path("run"), scene, folder / to, **options))


def names(folder):
    return sorted(path.name for path in Path(folder).rglob("*"))


# What an older raster leaves


def test_a_new_output_opens_with_nothing_but_its_own(tmp_path, task):
    raster(tmp_path / "scene.tif")
    described_raster(tmp_path / "made.tif")
    users = {"made.txt": "notes", "made.tif.md5": "1", "made.qml": "<qgis/>", "x.tif.msk": "x"}
    for name, text in users.items():
        (tmp_path / name).write_text(text)
    before = names(tmp_path)
    assert {"made.tif.msk", "made.tif.ovr", "made.tif.aux.xml", "made.tfw"} < set(before)
    applied(tmp_path, overwrite=True)
    applied(tmp_path, to="clean.tif")
    assert names(tmp_path) == sorted(["scene.tif", "made.tif", "clean.tif", *users])
    with rasterio.open(tmp_path / "made.tif") as made, rasterio.open(tmp_path / "scene.tif") as old:
        assert np.array_equal(made.read(), old.read())
        assert made.dataset_mask().all()
        assert made.descriptions == ("grey",)
        assert made.nodata is None
        assert "STATISTICS_MAXIMUM" not in made.tags(1)
        assert [Path(name).name for name in made.files] == ["made.tif"]
    mark = shown(tmp_path / "made.tif").replace("made.tif", "clean.tif")
    clean = shown(tmp_path / "clean.tif")
    assert [part for part in mark.split("'") if part not in clean] in ([], [set_of(tmp_path)])
    assert all((tmp_path / name).read_text() == text for name, text in users.items())


def set_of(folder):
    with rasterio.open(folder / "made.tif") as file:
        return file.tags()["GANLAB_SET"]


@pytest.mark.parametrize(
    "name", ["made.tif.aux.xml", "made.tif.msk", "made.tif.ovr", "made.tfw", "made-two.tif.aux.xml"]
)
def test_leftovers_alone_are_refused_by_name_or_removed(tmp_path, task, name):
    task("image", "two")
    raster(tmp_path / "scene.tif")
    (tmp_path / name).write_text("old")
    with pytest.raises(InputError, match=rf"/{name}: left by an older raster.*--overwrite"):
        applied(tmp_path)
    assert names(tmp_path) == sorted(["scene.tif", name])
    assert (tmp_path / name).read_text() == "old"
    applied(tmp_path, overwrite=True)
    assert names(tmp_path) == ["made-two.tif", "made.tif", "scene.tif"]


def test_what_was_written_with_an_older_output_goes_with_it(tmp_path, task):
    """Otherwise the origin of older pixels would stand beside new ones."""
    task("image", "two", "three")
    raster(tmp_path / "scene.tif")
    applied(tmp_path)
    (tmp_path / "made-three.tif.aux.xml").write_text("<PAMDataset></PAMDataset>")
    raster(tmp_path / "made-mine.tif")
    shutil.copy(tmp_path / "made-three.tif", tmp_path / "made-kept.tif")
    applied(tmp_path, to="made-other.tif")
    task("image", "two")
    applied(tmp_path, overwrite=True)
    others = ["made-kept.tif", "made-other-three.tif", "made-other-two.tif", "made-other.tif"]
    assert names(tmp_path) == sorted(
        ["scene.tif", "made.tif", "made-two.tif", "made-mine.tif", *others]
    )


@pytest.mark.parametrize("name", ["made.tif", "made-two.tif"])
def test_what_exists_is_found_before_any_work(tmp_path, task, monkeypatch, name):
    task("image", "two")
    raster(tmp_path / "scene.tif")
    (tmp_path / name).write_text("mine")
    monkeypatch.setattr(inference, "generate_scene", None)
    with pytest.raises(InputError, match=f"{name} exists; give --overwrite"):
        applied(tmp_path)
    assert (tmp_path / name).read_text() == "mine"
    assert names(tmp_path) == sorted([name, "scene.tif"])


def test_what_appears_while_apply_works_is_not_replaced(tmp_path, task):
    raster(tmp_path / "scene.tif")
    config = ApplyConfig(Path("run"), str(tmp_path / "scene.tif"), tmp_path / "made.tif")

    def meanwhile(done, total):
        (tmp_path / "made.tif").write_text("mine")

    with pytest.raises(InputError, match=r"made\.tif exists"):
        apply(config, meanwhile)
    assert (tmp_path / "made.tif").read_text() == "mine"
    assert names(tmp_path) == ["made.tif", "scene.tif"]


def test_an_output_that_would_be_read_otherwise_is_taken_back(tmp_path, task, monkeypatch):
    """Even where nobody knows why: here, what stands beside it is overlooked."""
    raster(tmp_path / "scene.tif")
    described_raster(tmp_path / "made.tif")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(placing, "side_files", lambda *_: [])
    with pytest.raises(InputError, match=r"would be read with .*made\.tif\.aux\.xml"):
        applied(tmp_path, overwrite=True)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_metadata_of_a_satellite_product_stay(tmp_path, task):
    """An output beside the bands of a Landsat scene, named after it."""
    raster(tmp_path / "scene.tif")
    text = 'GROUP = L1_METADATA_FILE\n  SPACECRAFT_ID = "LANDSAT_8"\nEND_GROUP = L1_METADATA_FILE\n'
    about = tmp_path / "LC08_MTL.txt"
    about.write_text(text + "END\n")
    applied(tmp_path, to="LC08_made.tif")
    assert about.exists()


def test_a_scene_without_a_place_takes_none_from_an_old_world_file(tmp_path, task):
    raster(tmp_path / "scene.tif", georeferenced=False)
    (tmp_path / "made.wld").write_text("2\n0\n0\n-2\n100\n200\n")
    options = {"ungeoreferenced": True}
    with pytest.raises(InputError, match=r"made\.wld: left by"):
        applied(tmp_path, **options)
    applied(tmp_path, overwrite=True, **options)
    with rasterio.open(tmp_path / "made.tif") as file:
        assert file.transform.is_identity


def test_a_link_in_the_place_of_an_output_is_not_followed(tmp_path, task):
    raster(tmp_path / "scene.tif")
    victim = tmp_path / "victim"
    (tmp_path / "made.tif").symlink_to(victim)
    with pytest.raises(InputError, match=r"made\.tif exists"):
        applied(tmp_path)  # also where it leads nowhere
    victim.write_text("precious")
    with pytest.raises(InputError, match=r"made\.tif exists"):
        applied(tmp_path)
    applied(tmp_path, overwrite=True)
    assert victim.read_text() == "precious"
    assert not (tmp_path / "made.tif").is_symlink()


def test_planted_temporary_names_are_not_followed(tmp_path, task):
    raster(tmp_path / "scene.tif")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").write_text("precious")
    planted = tmp_path / f".made.tif.a1b2c3d4{files.LEFTOVER}"
    planted.symlink_to(tmp_path / "elsewhere")
    (tmp_path / ".made.tif.partial").symlink_to(tmp_path / "elsewhere")
    applied(tmp_path)
    assert (tmp_path / "elsewhere" / "kept").read_text() == "precious"
    assert names(tmp_path / "elsewhere") == ["kept"]


def test_a_new_folder_and_the_usual_rights(tmp_path, task):
    raster(tmp_path / "scene.tif")
    applied(tmp_path, to="a/b/made.tif")
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "a" / "b" / "made.tif").stat().st_mode & 0o777 == 0o666 & ~mask
    assert names(tmp_path / "a") == ["b", "made.tif"]


# Kills


KILLED = """
import sys
from pathlib import Path
import torch
from damage import killed_before_change
from test_outputs import *

torch.set_num_threads(1)
task = Copies("image", "two").eval()
inference.load_task = lambda *_, **__: task
root = Path(sys.argv[1])

number, died = 1, True
while died:
    folder = root / str(number)
    folder.mkdir()
    for name in ("made.tif", "made-two.tif"):
        raster(folder / name, value=7)
        (folder / f"{name}.aux.xml").write_text("old")
    old = {path.name: path.read_bytes() for path in folder.iterdir()}
    work = lambda: applied(folder, root / "scene.tif", overwrite=True)
    died = killed_before_change(number, work)
    try:
        # Refused, as there are outputs, and what the kill left is put in order.
        applied(folder, root / "scene.tif")
    except InputError as error:
        assert "exists; give --overwrite" in str(error), error
    now = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    state = "old" if now == old else "new"
    if state == "new":
        assert sorted(now) == ["made-two.tif", "made.tif"], (number, sorted(now))
        marks = set()
        for name in now:
            with rasterio.open(folder / name) as file:
                marks.add(file.tags()["GANLAB_SET"])
        assert len(marks) == 1
    assert not [path for path in folder.iterdir() if path.is_dir()], number
    print(state, died)
    number += 1
"""


def environment():
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_kill_before_any_change_leaves_all_outputs_old_or_all_new(tmp_path):
    raster(tmp_path / "scene.tif")
    command = [sys.executable, "-W", "ignore", "-c", KILLED, str(tmp_path)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) > 6  # four old files and two new ones move
    assert lines[-1] == "new False"
    states = [line.split()[0] for line in lines]
    assert states == sorted(states, reverse=True)


TERMINATED = """
import sys, time
from pathlib import Path
from damage import killed_before_change
from test_outputs import *
from ganlab import cli
from ganlab.data.scenes import RasterScene

task = Copies("image").eval()
inference.load_task = lambda *_, **__: task
read = RasterScene._read_inside
def slow(self, window):
    print("reading", flush=True)
    time.sleep(60)
RasterScene._read_inside = slow
cli.main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    "command",
    [
        "apply --run run --scene scene.tif --to made.tif --overwrite",
        "tile --images scene.tif --to tiles --size 16",
    ],
)
def test_sigterm_cleans_up_like_ctrl_c(tmp_path, command):
    raster(tmp_path / "scene.tif")
    (tmp_path / "made.tif").write_text("old")
    process = subprocess.Popen(
        [sys.executable, "-c", TERMINATED, *command.split()],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "reading\n"
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors == "ganlab: interrupted\n"
    assert names(tmp_path) == ["made.tif", "scene.tif"]
    assert (tmp_path / "made.tif").read_text() == "old"


# Two at once


def test_a_second_apply_on_a_target_is_refused_and_the_first_one_ends_well(tmp_path, task):
    task("image", "two")
    raster(tmp_path / "scene.tif")
    config = ApplyConfig(Path("run"), str(tmp_path / "scene.tif"), tmp_path / "made.tif")
    said = []

    def meanwhile(done, total):
        for to in ("made.tif", "made-two.tif"):  # also as its own first output
            with pytest.raises(InputError, match=r"is being written by another process") as error:
                applied(tmp_path, to=to, overwrite=True)
            said.append(str(error.value))

    apply(config, meanwhile)
    assert len(said) >= 2
    assert names(tmp_path) == ["made-two.tif", "made.tif", "scene.tif"]
    with rasterio.open(tmp_path / "made.tif") as made, rasterio.open(tmp_path / "scene.tif") as old:
        assert np.array_equal(made.read(), old.read())


# Where outputs go


@pytest.mark.parametrize(
    "name", ["../x/photo", "/tmp/ganlab-planted/photo", "..", "", "a/b", ".hidden", "a\\b", "x\ny"]
)
@pytest.mark.parametrize("first", [True, False])
def test_a_run_says_nothing_of_where_outputs_go(tmp_path, task, name, first):
    task(*([name, "two"] if first else ["image", name]))
    raster(tmp_path / "scene.tif")
    (tmp_path / "x").mkdir()
    victim = raster(tmp_path / "x" / "photo.tif", value=9)
    before = victim.read_bytes()
    with pytest.raises(InputError, match="cannot be a part of a file name"):
        applied(tmp_path, to="out/made.tif", overwrite=True)
    assert victim.read_bytes() == before
    assert names(tmp_path) == ["photo.tif", "scene.tif", "x"]
    assert not Path("/tmp/ganlab-planted").exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    raster(folder / "scene.tif", size=64)
    tile(TilingConfig((str(folder / "scene.tif"),), folder / "tiles", size=16))
    settings = Pix2PixConfig("image", "image", UNetConfig(width=4, depth=2), adversarial_weight=0.0)
    training = TrainingConfig(steps=1, batch_size=1, tensorboard=False, device="cpu")
    train(settings, folder / "tiles", folder / "run", training)
    return folder


@pytest.mark.parametrize("absolute", [True, False])
def test_a_hostile_run_directory_overwrites_nothing(tmp_path, trained, absolute):
    victim = raster(tmp_path / "photo.tif", value=9)
    before = victim.read_bytes()
    planted = str(tmp_path / "photo") if absolute else "../photo"
    about = json.loads((trained / "run" / "config.json").read_text())
    text = json.dumps(about).replace('"name": "image"', f'"name": {json.dumps(planted)}')
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(text)
    (run / "checkpoints").symlink_to(trained / "run" / "checkpoints")
    (tmp_path / "out").mkdir()
    config = ApplyConfig(run, str(trained / "scene.tif"), tmp_path / "out" / "made.tif")
    assert planted in text
    with pytest.raises(InputError, match="photo"):
        apply(config)
    assert victim.read_bytes() == before
    assert names(tmp_path / "out") == []


# Inputs


def linked(tmp_path, scene):
    os.link(scene, tmp_path / "hard.tif")
    (tmp_path / "soft.tif").symlink_to(scene)
    (tmp_path / "folder").symlink_to(tmp_path, target_is_directory=True)


@pytest.mark.parametrize("to", ["scene.tif", "hard.tif", "soft.tif", "folder/scene.tif"])
def test_the_scene_itself_is_never_replaced(tmp_path, task, to):
    scene = raster(tmp_path / "scene.tif")
    before = scene.read_bytes()
    linked(tmp_path, scene)
    with pytest.raises(InputError, match="is a folder or the scene itself, or its mask"):
        applied(tmp_path, to=to, overwrite=True)
    assert scene.read_bytes() == before


def test_what_a_scene_is_made_of_is_never_replaced(tmp_path, task):
    scene = raster(tmp_path / "made.tif")
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False),
        rasterio.open(scene, "r+") as file,
    ):
        file.write_mask(np.eye(SIZE, dtype=bool))
    text = f'<VRTDataset rasterXSize="{SIZE}" rasterYSize="{SIZE}"><SRS>EPSG:32633</SRS>'
    text += "<GeoTransform>500000, 2, 0, 5000000, 0, -2</GeoTransform>"
    text += '<VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
    text += '<SourceFilename relativeToVRT="1">{}</SourceFilename><SourceBand>1</SourceBand>'
    text += "</SimpleSource></VRTRasterBand></VRTDataset>"
    (tmp_path / "one.vrt").write_text(text.format("made.tif"))
    (tmp_path / "two.vrt").write_text(text.format("one.vrt"))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for name in ("one.vrt", "two.vrt"):
        with pytest.raises(InputError, match=r"made\.tif is a folder or the scene itself"):
            applied(tmp_path, tmp_path / name, overwrite=True)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_mask_that_lies_beside_the_output_is_not_taken_away(tmp_path, hole_task, monkeypatch):
    """``--mask made.tif.msk --to made.tif``: it would go with the older raster."""
    painter = hole_task(bands=1).eval()
    monkeypatch.setattr(inference, "load_task", lambda *_, **__: painter)
    raster(tmp_path / "scene.tif")
    mask = raster(tmp_path / "m.tif", value=1)
    mask.rename(tmp_path / "made.tif.msk")
    with pytest.raises(InputError, match=r"made\.tif\.msk.*an input"):
        applied(tmp_path, mask=str(tmp_path / "made.tif.msk"), overwrite=True)
    assert names(tmp_path) == ["made.tif.msk", "scene.tif"]


def test_the_grid_that_an_output_takes_is_not_replaced(tmp_path, task, trained):
    labels = task("image")
    source = Source("image", "label", "uint8", ("class",), classes=(0, 1))
    labels.inputs = (Field(source, None),)
    like = raster(tmp_path / "made.tif")
    before = like.read_bytes()
    polygon = [[500010, 4999990], [500050, 4999990], [500050, 4999950], [500010, 4999990]]
    feature = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon"}}
    feature["geometry"]["coordinates"] = [polygon]
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32633"}}
    collection = {"type": "FeatureCollection", "crs": crs, "features": [feature]}
    (tmp_path / "map.geojson").write_text(json.dumps(collection))
    with pytest.raises(InputError, match="is a folder or the scene itself"):
        applied(tmp_path, tmp_path / "map.geojson", like=str(like), overwrite=True)
    assert like.read_bytes() == before


def test_a_pipe_is_no_place_for_an_output(tmp_path):
    os.mkfifo(tmp_path / "made.tif")
    with pytest.raises(InputError, match=r"made\.tif is a folder or no regular file"):
        in_the_way([tmp_path / "made.tif"], georeferenced=True)
    assert (tmp_path / "made.tif").is_fifo()
