"""Small GeoTIFFs that are written at once: whole, over older ones, never through a link; and the
pairs that toytown and samples make of them, also after kills."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from damage import killed_before_change

from ganlab import files
from ganlab.config import ToytownConfig
from ganlab.data import geotiff, samples, toytown
from ganlab.data.geotiff import write_geotiff
from ganlab.errors import InputError

PLACE = {"crs": "EPSG:32633", "transform": Affine(2, 0, 500_000, 0, -2, 5_000_000)}
ONES = np.ones((1, 9, 9), np.uint8)
TOWN = {"scenes": 2, "size": 64, "seed": 3}
PAIRS = ["town-003-labels.tif", "town-003.tif", "town-004-labels.tif", "town-004.tif"]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_described_an_older_file_goes_with_it(tmp_path):
    for name in ("a.tif", "a.tif.aux.xml", "a.tif.msk", "a.tif.ovr", "a.tfw", "a.txt"):
        (tmp_path / name).write_text("old")
    write_geotiff(tmp_path / "a.tif", ONES, **PLACE, bands=("grey",))
    assert names(tmp_path) == ["a.tif", "a.txt"]
    with rasterio.open(tmp_path / "a.tif") as file:
        assert np.array_equal(file.read(), ONES)
        assert file.descriptions == ("grey",)
        assert [Path(name).name for name in file.files] == ["a.tif"]


def test_no_link_is_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in ("a.tif", "a.tif.part"):
        (tmp_path / name).symlink_to(victim)
    write_geotiff(tmp_path / "a.tif", ONES, **PLACE, bands=("grey",))
    assert victim.read_text() == "precious"
    assert not (tmp_path / "a.tif").is_symlink()


def test_a_folder_is_not_replaced(tmp_path):
    (tmp_path / "a.tif").mkdir()
    (tmp_path / "a.tif" / "mine").write_text("mine")
    with pytest.raises(InputError, match=r"a\.tif is a folder"):
        write_geotiff(tmp_path / "a.tif", ONES, **PLACE, bands=("grey",))
    assert (tmp_path / "a.tif" / "mine").read_text() == "mine"


def test_a_disk_that_loses_pixels_without_a_word(tmp_path, monkeypatch):
    """Noticed by reading the file again; what stood there stays."""
    write_geotiff(tmp_path / "a.tif", ONES, **PLACE, bands=("grey",))
    before = (tmp_path / "a.tif").read_bytes()
    opened = rasterio.open

    def lossy(path, mode="r", *arguments, **options):
        file = opened(path, mode, *arguments, **options)
        if mode == "w":
            write = file.write
            file.write = lambda pixels: write(pixels * 0)
        return file

    monkeypatch.setattr(geotiff, "rasterio", rasterio)
    monkeypatch.setattr(rasterio, "open", lossy)
    with pytest.raises(InputError, match=r"a\.tif cannot be written: the disk did not take all"):
        write_geotiff(tmp_path / "a.tif", ONES, **PLACE, bands=("grey",))
    monkeypatch.undo()
    assert (tmp_path / "a.tif").read_bytes() == before
    assert names(tmp_path) == ["a.tif"]


# Toytown and samples


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_toytown_goes_on_when_it_is_asked_again(tmp_path, monkeypatch):
    drawn = toytown.town(64, 3)
    monkeypatch.setattr(toytown, "town", lambda *_: drawn)  # drawing is not what is tested
    number, died, published = 1, True, False
    while died:
        folder = tmp_path / str(number)
        town = ToytownConfig(folder, **TOWN)
        died = killed_before_change(number, lambda town=town: toytown.write(town))
        if (folder / PAIRS[0]).exists() and not list(folder.glob(".*/journal.json")):
            with pytest.raises(InputError, match="exists already"):  # all of it
                toytown.write(ToytownConfig(folder, **TOWN))
            published = True
        else:
            assert not published
            toytown.write(ToytownConfig(folder, **TOWN))
        assert names(folder) == PAIRS, number
        number += 1
    assert published
    assert number > 2 + len(PAIRS)


def test_leftovers_beside_the_names_of_towns_are_refused(tmp_path):
    (tmp_path / "town-004.tif.aux.xml").write_text("old")
    with pytest.raises(InputError, match=r"town-004\.tif\.aux\.xml: left by an older raster"):
        toytown.write(ToytownConfig(tmp_path, **TOWN))
    assert names(tmp_path) == ["town-004.tif.aux.xml"]
    (tmp_path / "sentinel2-labels.tif.msk").write_text("old")
    with pytest.raises(InputError, match=r"sentinel2-labels\.tif\.msk: left by"):
        samples.write_samples(tmp_path)


def test_two_toytowns_in_one_folder_at_once(tmp_path):
    with (
        files.exclusive(tmp_path / "toytown", "toytown"),
        pytest.raises(InputError, match="is being written by another process"),
    ):
        toytown.write(ToytownConfig(tmp_path, **TOWN))


LIMITED = """
import resource, signal, sys
from ganlab import cli
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
cli.main(sys.argv[1:])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit of the system")
def test_a_full_disk_is_one_line_and_nothing_is_left(tmp_path):
    """The lines of libtiff itself do not surround it."""
    command = [sys.executable, "-c", LIMITED, "toytown", "--to", "towns", "--size", "256"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("ganlab: towns cannot be written to: ")
    assert names(tmp_path / "towns") == []
