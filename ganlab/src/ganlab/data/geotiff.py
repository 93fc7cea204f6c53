"""GeoTIFFs that ganlab writes: small ones at once, outputs of ``apply`` window by window."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from affine import Affine
from rasterio.errors import RasterioError
from rasterio.windows import Window

from ganlab import __version__
from ganlab.data.grids import Grid
from ganlab.data.missing import beside_nodata, can_hold, equals_nodata
from ganlab.data.placing import placed
from ganlab.data.scenes import Array, Bools
from ganlab.data.store import Source
from ganlab.data.tags import write_tags
from ganlab.errors import InputError
from ganlab.files import exclusive
from ganlab.together import FINISHED

Names = Sequence[str]
SOFTWARE = f"ganlab {__version__}"
"""What the tag ``TIFFTAG_SOFTWARE`` holds."""


UNKNOWN = "Written by {} from an array; where its pixels come from was not recorded"


def write_geotiff(
    path: Path,
    pixels: Array,
    crs: Any,
    transform: Affine,
    bands: Names,
    classes: Names = (),
    tags: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write ``(C, h, w)`` pixels as a tiled, compressed GeoTIFF, whole or not at all.

    An older file of that name goes, with all that described it.

    Args:
        path: the file.
        pixels: ``(C, h, w)``.
        crs: coordinate system, as rasterio takes it; None for none.
        transform: from columns and rows to coordinates.
        bands: names of the bands.
        classes: names of classes, which become the tags ``class_0``, ``class_1`` and so on.
        tags: what else the file says of itself, first of all where its pixels come from.

    Raises:
        InputError: the file cannot be written.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the name of a file")
    placed_there = bool(crs) or not transform.is_identity
    with exclusive(path, "a GeoTIFF"):
        try:
            with placed([path], replace=True, georeferenced=placed_there) as folder:
                file = folder / FINISHED / path.name
                write_pixels(file, pixels, crs, transform, bands, classes, tags)
        except (OSError, RasterioError) as error:
            reason = error.__cause__ or error
            raise InputError(f"{path} cannot be written: {reason}") from error


def write_pixels(
    path: Path,
    pixels: Array,
    crs: Any,
    transform: Affine,
    bands: Names,
    classes: Names = (),
    tags: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """``write_geotiff`` for a file that is moved to its place later, and read again here.

    Raises:
        OSError: the disk did not take it. Errors of rasterio's own also come.
    """
    count, height, width = pixels.shape
    options = {"dtype": pixels.dtype, "crs": crs, "transform": transform, "interleave": "band"}
    options |= {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate"}
    options |= {"predictor": 2 if count > 1 else 1, "zlevel": 9}
    about = {"TIFFTAG_SOFTWARE": SOFTWARE, "TIFFTAG_IMAGEDESCRIPTION": UNKNOWN.format(SOFTWARE)}
    about |= {f"class_{i}": name for i, name in enumerate(classes)}
    with rasterio.open(path, "w", "GTiff", width, height, count, **options) as file:
        file.write(pixels)
        file.descriptions = tuple(bands)
        file.update_tags(**about | readable(tags))
    with rasterio.open(path) as file:  # GDAL does not always say that a disk is full
        if file.read().tobytes() != np.ascontiguousarray(pixels).tobytes():
            raise OSError("the disk did not take all of it")


def readable(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags as text that every reader of TIFFs takes, whatever file names they hold."""
    plain = {}
    for name, text in tags.items():
        known = text.encode("utf-8", "replace").decode("utf-8")
        plain[name] = "".join(c if c.isprintable() else "?" for c in known)
    return plain


class Output:
    """One output: a plain tiled GeoTIFF while it grows, then copied to a cloud-optimized one."""

    def __init__(self, folder: Path, source: Source, grid: Grid) -> None:
        self.source, self.masked, self.total = source, False, 0
        nodata, dtype = source.nodata, source.dtype
        self.nodata = nodata if nodata is not None and can_hold(dtype, nodata) else None
        self.plain = folder / f"{source.name}.tif"
        bands = source.bands
        if source.kind == "label" and bands[0].isdecimal():
            bands = ("class",)
        profile = {"driver": "GTiff", "count": len(bands), "dtype": dtype, **vars(grid)}
        profile |= {"nodata": self.nodata, "tiled": True, "bigtiff": "if_safer"}
        # Otherwise GDAL takes the fourth of four byte bands for transparency.
        self.file = rasterio.open(self.plain, "w", **profile, photometric="minisblack")
        self.file.descriptions = bands
        write_tags(self.file, source.tags, bands)

    def write(self, window: Window, valid: Bools, made: Bools, stored: Array) -> None:
        """Write ``(C, h, w)``, and what says where it is valid; where made, no nodata is meant."""
        if self.nodata is not None:
            if self.source.kind != "label":
                stored = np.where(made, _avoid(stored, self.nodata), stored)
            stored = np.where(valid, stored, np.asarray(self.nodata, stored.dtype))
        elif self.masked or not valid.all():
            if not self.masked:
                self.file.write_mask(True)  # all that was written so far was valid
                self.masked = True
            self.file.write_mask(valid, window=window)
        self.file.write(stored, window=window)
        self.total += _sum_of_bytes(stored)

    def finish(self, final: Path, tags: Mapping[str, str]) -> None:
        """Make the cloud-optimized copy ``final``, which says of itself what ``tags`` say.

        It is read again, as GDAL does not always say that a disk is full.

        Raises:
            OSError: the disk did not take it.
        """
        options = {"compress": "deflate", "bigtiff": "if_safer"}
        method = "nearest" if self.source.kind == "label" else "average"
        try:
            with rasterio.open(self.plain, "r+") as file:
                file.update_tags(**readable(tags))
            rasterio.shutil.copy(self.plain, final, "COG", overview_resampling=method, **options)
        except Exception as error:  # GDAL's errors have no common type
            raise OSError(str(error)) from error
        with rasterio.open(final) as made:
            blocks = (made.read(window=block) for _, block in made.block_windows(1))
            if sum(map(_sum_of_bytes, blocks)) != self.total:
                raise OSError("the disk did not take all of it")


def _sum_of_bytes(stored: Array) -> int:
    return int(np.ascontiguousarray(stored).view(np.uint8).sum(dtype=np.uint64))


def _avoid(stored: Array, nodata: float) -> Array:
    """Move generated values that equal the nodata value a little, so that they stay visible."""
    beside = beside_nodata(stored.dtype.name, nodata)
    return np.where(equals_nodata(stored, nodata), beside, stored)
