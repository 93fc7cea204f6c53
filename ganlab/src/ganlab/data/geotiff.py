"""GeoTIFFs that ganlab writes: small ones at once, outputs of ``apply`` window by window."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from affine import Affine
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioError
from rasterio.windows import Window

from ganlab.data.grids import Grid
from ganlab.data.missing import beside_nodata, can_hold, equals_nodata
from ganlab.data.scenes import Array, Bools
from ganlab.data.store import Source
from ganlab.errors import InputError

Names = Sequence[str]
COLOURS = ("red", "green", "blue")


def write_geotiff(
    path: Path, pixels: Array, crs: Any, transform: Affine, bands: Names, classes: Names = ()
) -> None:
    """Write ``(C, h, w)`` pixels as a tiled, compressed GeoTIFF, beside its place, and rename.

    Names of classes become the tags ``class_0``, ``class_1`` and so on.

    Raises:
        InputError: the file cannot be written.
    """
    count, height, width = pixels.shape
    options = {"dtype": pixels.dtype, "crs": crs, "transform": transform, "interleave": "band"}
    options |= {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate"}
    options |= {"predictor": 2 if count > 1 else 1, "zlevel": 9}
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with rasterio.open(part, "w", "GTiff", width, height, count, **options) as file:
            file.write(pixels)
            file.descriptions = tuple(bands)
            file.update_tags(**{f"class_{i}": name for i, name in enumerate(classes)})
        part.replace(path)
    except (OSError, RasterioError) as error:
        raise InputError(f"{path} cannot be written: {error}") from error
    finally:
        if part.exists():
            part.unlink()


class Output:
    """One output: a plain tiled GeoTIFF while it grows, then copied to a cloud-optimized one."""

    def __init__(self, folder: Path, source: Source, grid: Grid) -> None:
        self.source, self.masked, self.total = source, False, 0
        nodata, dtype = source.nodata, source.dtype
        self.nodata = nodata if nodata is not None and can_hold(dtype, nodata) else None
        self.plain, self.final = folder / f"{source.name}.tif", folder / f"{source.name}-cog.tif"
        bands = ("class",) if source.kind == "label" else source.bands
        profile = {"driver": "GTiff", "count": len(bands), "dtype": dtype, **vars(grid)}
        profile |= {"nodata": self.nodata, "tiled": True, "bigtiff": "if_safer"}
        # Otherwise GDAL takes the fourth of four byte bands for transparency.
        self.file = rasterio.open(self.plain, "w", **profile, photometric="minisblack")
        self.file.descriptions = bands
        if set(COLOURS) <= set(bands):
            other = ColorInterp.undefined
            self.file.colorinterp = [ColorInterp[b] if b in COLOURS else other for b in bands]

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

    def finish(self) -> Path:
        """The cloud-optimized copy, read again: GDAL does not always say that a disk is full."""
        options = {"compress": "deflate", "bigtiff": "if_safer"}
        method = "nearest" if self.source.kind == "label" else "average"
        try:
            rasterio.shutil.copy(
                self.plain, self.final, "COG", overview_resampling=method, **options
            )
        except Exception as error:  # GDAL's errors have no common type
            raise OSError(str(error)) from error
        with rasterio.open(self.final) as made:
            blocks = (made.read(window=block) for _, block in made.block_windows(1))
            if sum(map(_sum_of_bytes, blocks)) != self.total:
                raise OSError("the disk did not take all of it")
        return self.final


def _sum_of_bytes(stored: Array) -> int:
    return int(np.ascontiguousarray(stored).view(np.uint8).sum(dtype=np.uint64))


def _avoid(stored: Array, nodata: float) -> Array:
    """Move generated values that equal the nodata value a little, so that they stay visible."""
    beside = beside_nodata(stored.dtype.name, nodata)
    return np.where(equals_nodata(stored, nodata), beside, stored)
