"""The files of a raster: what it is made from, and what GDAL reads beside it without being asked.

Beside ``made.tif``, GDAL takes ``made.tif.aux.xml`` for its statistics and names, ``made.tif.msk``
for its mask, ``made.tif.ovr`` for its overviews and, for example, ``made_rpc.txt`` for its place.
Who replaces a raster has to replace these as well.
"""

import glob
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from ganlab.errors import InputError

OF_THE_NAME = (".aux.xml", ".msk", ".ovr", ".msk.aux.xml", ".msk.ovr", ".ovr.aux.xml")
"""What follows the whole name of a raster in the names of files that belong to it alone."""
WORLD_FILES = (".tfw", ".wld")
"""What follows its name without suffix, beside the suffix and a "w" (``.tifw``)."""
RASTERS = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".jp2", ".bmp", ".gif", ".img", ".vrt")
NO_DESCRIPTION = ("DERIVED_SUBDATASETS", "IMD", "IMAGERY")
"""Metadata that depend on the path, or tell of a satellite's product in the same folder."""
SATELLITE = "METADATATYPE"
"""The tag for such a product, which GDAL sets for any file called ``<stem>_metadata.txt``."""
SET = "GANLAB_SET"
"""The tag whose value is the same in outputs that were written together."""
FILES = "GANLAB_FILES"
"""The tag with the names of these outputs, each followed by a comma and a space or the end."""


def side_files(path: Path, georeferenced: bool = True) -> list[Path]:
    """Files beside a GeoTIFF that would describe any raster of that name.

    Args:
        path: where the GeoTIFF is or will be.
        georeferenced: whether it holds its place itself; otherwise GDAL looks for it elsewhere.

    Raises:
        InputError: such a file belongs to another raster as well, so that no raster can have
            this name.
    """
    beside = _beside(path)
    found = [file for file in beside if _is_named_after(file, path, beside)]
    rest = [file for file in beside if file not in found]
    attached = _attached(path, rest, georeferenced)
    other = _raster_of_the_same_stem(path, beside)
    if attached and other is not None:
        raise InputError(
            f"{path}: {_names(attached)} would describe it, but belongs to {other.name}; give "
            "another name"
        )
    return found + attached


def written_with(path: Path) -> list[Path]:
    """Rasters beside an output of ``apply`` that were written together with it, by their tags.

    They tell of the pixels of that output, for example which of them are generated.
    """
    mark, listed = _set(path)
    if mark is None:
        return []
    beside = sorted(path.parent.glob(f"{glob.escape(path.stem)}-*{glob.escape(path.suffix)}"))
    # A copy under another name has the mark as well, but belongs to the user.
    named = [file for file in beside if f", {file.name}, " in f", {listed}, "]
    return [file for file in named if _set(file)[0] == mark]


def _set(path: Path) -> tuple[str | None, str]:
    """The values of ``SET`` and ``FILES`` in a raster; None and nothing if there are none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path, driver="GTiff") as file:
                tags = file.tags()
    except RasterioError:
        return None, ""
    return tags.get(SET), tags.get(FILES, "")


def source_files(paths: Iterable[str]) -> list[Path]:
    """The given files and all that GDAL reads for them: sources of VRTs, masks, side files.

    What cannot be opened as a raster stands for itself.
    """
    found: dict[str, None] = {}
    to_open = list(paths)
    opened = set()
    while to_open:
        path = to_open.pop()
        found[path] = None
        opened.add(path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NotGeoreferencedWarning)
                with rasterio.open(path) as file:
                    sources = file.files
        except RasterioError:
            continue
        found.update(dict.fromkeys(sources))
        # A mosaic may have thousands of sources; only VRTs among them have sources themselves.
        vrts = [source for source in sources if source.lower().endswith(".vrt")]
        to_open += [source for source in vrts if source not in opened]
    return [Path(path) for path in found]


def is_same_file(one: Path, other: Path) -> bool:
    """Whether two paths lead to one file, also through links and other spellings."""
    try:
        return one.samefile(other)
    except OSError:
        return one.resolve() == other.resolve()


def shown(path: Path) -> str:
    """All that GDAL says of a raster beside its pixels, as text that can be compared."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path) as file:
            tags = {name: text for name, text in file.tags().items() if name != SATELLITE}
            about: list[Any] = [file.crs, file.transform, file.gcps, file.rpcs, tags]
            about += [file.mask_flag_enums, file.nodatavals, file.descriptions, file.colorinterp]
            about += [file.scales, file.offsets, file.units]
            spaces = [name for name in file.tag_namespaces() if name not in NO_DESCRIPTION]
            about += [(name, file.tags(ns=name)) for name in sorted(spaces)]
            about += [(file.tags(band), file.overviews(band)) for band in file.indexes]
    return repr(about)


def attached_files(path: Path) -> list[Path]:
    """Files that GDAL reads for a raster beside the raster itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path) as file:
            return [Path(name) for name in file.files if Path(name).name != path.name]


def _beside(path: Path) -> list[Path]:
    """Other files of its folder whose names begin like its own, sorted."""
    try:
        names = sorted(os.listdir(path.parent))
    except OSError:
        return []
    begin = (f"{path.stem}.", f"{path.stem}_")
    chosen = [name for name in names if name.startswith(begin) and name != path.name]
    return [path.with_name(name) for name in chosen if path.with_name(name).is_file()]


def _is_named_after(file: Path, path: Path, beside: Sequence[Path]) -> bool:
    """Whether its name alone says that a file belongs to a raster."""
    if file.name.startswith(path.name) and file.name[len(path.name) :].lower() in OF_THE_NAME:
        return True
    rest = file.name[len(path.stem) :].lower()
    if rest not in (*WORLD_FILES, f"{path.suffix.lower()}w"):
        return False
    return _raster_of_the_same_stem(path, beside) is None


def _raster_of_the_same_stem(path: Path, beside: Sequence[Path]) -> Path | None:
    rasters = [file for file in beside if file.suffix.lower() in RASTERS]
    return next((file for file in rasters if file.stem == path.stem), None)


def _attached(path: Path, candidates: Sequence[Path], georeferenced: bool) -> list[Path]:
    """Which files GDAL takes for parts of a GeoTIFF, learned from a small one of its name.

    Formats of two dozen satellites decide by what is in these files, so GDAL itself is asked.
    """
    rasters = [file for file in candidates if file.suffix.lower() in RASTERS]
    candidates = [file for file in candidates if file not in rasters]
    if not candidates:
        return []
    with tempfile.TemporaryDirectory() as name:
        probe = Path(name) / path.name
        profile: dict[str, Any] = {"driver": "GTiff", "width": 1, "height": 1, "count": 1}
        if georeferenced:
            profile |= {"crs": "EPSG:32633", "transform": Affine(1, 0, 500_000, 0, -1, 5_000_000)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(probe, "w", dtype="uint8", **profile) as file:
                file.write(np.ones((1, 1, 1), np.uint8))
        alone = _everything(probe)
        for file in candidates:
            _link(file, probe.with_name(file.name))
        if _everything(probe) == alone:
            return []
        names = {file.name for file in attached_files(probe)}
    return [file for file in candidates if file.name in names]


def _everything(probe: Path) -> str:
    """What GDAL says of a probe, also of the satellite that took it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(probe) as file:
            return shown(probe) + repr([file.tags(ns=name) for name in ("IMD", "IMAGERY")])


def _link(file: Path, to: Path) -> None:
    try:
        to.symlink_to(file.resolve())
    except OSError:  # Windows wants a right for it
        shutil.copyfile(file, to)


def _names(paths: Sequence[Path]) -> str:
    return ", ".join(path.name for path in paths)
