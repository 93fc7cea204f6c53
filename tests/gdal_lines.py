"""Carries out the lines of GDAL's programs that ganlab prints, by rasterio alone.

It knows the options that are used and no others. Where the programs are installed, the tests run
them as well, so that this and they agree.
"""

import shlex
import shutil
import subprocess
import warnings
from contextlib import contextmanager

import numpy as np
import rasterio
from rasterio.enums import ColorInterp
from rasterio.transform import from_bounds
from rasterio.warp import Resampling, calculate_default_transform, reproject

PROGRAMS = ("gdalwarp", "gdal_translate", "gdal_create")
INSTALLED = all(shutil.which(program) for program in PROGRAMS)
WAYS = ["rasterio", *(["gdal"] if INSTALLED else [])]
TYPES = {
    "Byte": "uint8",
    "UInt16": "uint16",
    "Int16": "int16",
    "UInt32": "uint32",
    "Int32": "int32",
    "Float32": "float32",
    "Float64": "float64",
}


def carry_out(line, way="rasterio"):
    """Run a printed line, by one of the ``WAYS``."""
    if way == "gdal":
        done = subprocess.run(line, shell=True, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return
    for command in line.split(" && "):
        program, *words = shlex.split(command)
        {"gdalwarp": _warp, "gdal_translate": _translate, "gdal_create": _create}[program](words)


def _take(words, option, count=1):
    """The values of an option, which leave the words; None without it."""
    if option not in words:
        return None
    at = words.index(option)
    found = words[at + 1 : at + 1 + count]
    del words[at : at + 1 + count]
    return found


@contextmanager
def _opened(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path) as file:
            yield file


def _written(path, pixels, alpha=None, **profile):
    count, height, width = pixels.shape
    profile |= {"count": count, "height": height, "width": width, "dtype": pixels.dtype}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path, "w", "GTiff", photometric="minisblack", **profile) as file:
            plain = [ColorInterp.gray, *[ColorInterp.undefined] * (count - 1)]
            if alpha:
                plain[alpha - 1] = ColorInterp.alpha
            file.colorinterp = plain
            file.write(pixels)


def _cast(pixels, dtype):
    if np.dtype(dtype).kind in "iu":
        limits = np.iinfo(dtype)
        pixels = np.rint(pixels.real.astype("float64")).clip(limits.min, limits.max)
    return pixels.astype(dtype)


def _translate(words):
    dtype, size, bands = _take(words, "-ot"), _take(words, "-outsize", 2), []
    while "-b" in words:
        bands.append(int(_take(words, "-b")[0]))
    coloured = next((word for word in words if word.startswith("-colorinterp_")), None)
    if coloured:
        assert _take(words, coloured) == ["alpha"]
    source, target = words
    with _opened(source) as file:
        pixels = file.read(bands or None)
        names = [file.descriptions[band - 1] for band in bands]
        profile = {"crs": file.crs, "transform": file.transform, "nodata": file.nodata}
        old = file.colorinterp
    alpha = int(coloured.rpartition("_")[2]) if coloured else 0
    if not alpha and not bands and ColorInterp.alpha in old:
        alpha = old.index(ColorInterp.alpha) + 1
    if size:
        factor = int(size[0].rstrip("%")) // 100
        pixels = pixels.repeat(factor, 1).repeat(factor, 2)
        profile["transform"] *= rasterio.Affine.scale(1 / factor)
    if dtype:
        pixels = _cast(pixels, TYPES[dtype[0]])
    _written(target, pixels, alpha, **profile)
    with rasterio.open(target, "r+") as file:
        for number, name in enumerate(names, start=1):
            file.set_band_description(number, name or "")


def _create(words):
    like, dtype, bands = _take(words, "-if")[0], _take(words, "-ot")[0], _take(words, "-bands")[0]
    nodata = _take(words, "-a_nodata")
    (target,) = words
    with _opened(like) as file:
        shape = (int(bands), file.height, file.width)
        profile = {"crs": file.crs, "transform": file.transform}
    empty = np.full(shape, float(nodata[0]) if nodata else 0, TYPES[dtype])
    _written(target, empty, nodata=float(nodata[0]) if nodata else None, **profile)


def _warp(words):
    to, frame = _take(words, "-t_srs"), _take(words, "-te", 4)
    size, method = _take(words, "-ts", 2), _take(words, "-r")
    given, alpha = _take(words, "-s_srs"), _take(words, "-dstalpha", 0) is not None
    by_rpc = _take(words, "-rpc", 0) is not None
    source, target = words
    with _opened(source) as file:
        pixels, nodata = file.read(), file.nodata
        valid = file.dataset_mask()
        place = {"src_transform": file.transform, "src_crs": given[0] if given else file.crs}
        if by_rpc:
            place = {"rpcs": file.rpcs, "src_crs": "EPSG:4326"}
        elif file.gcps[0]:
            place = {"gcps": file.gcps[0], "src_crs": given[0] if given else file.gcps[1]}
        if ColorInterp.alpha in file.colorinterp:
            alpha = True
            pixels = np.delete(pixels, file.colorinterp.index(ColorInterp.alpha), axis=0)
        shape = file.shape
    if to is None:
        with _opened(target) as file:  # a raster that is there is filled
            to, grid = [file.crs], (file.transform, file.width, file.height)
            alpha = ColorInterp.alpha in file.colorinterp
    elif frame:
        width, height = map(int, size)
        grid = (from_bounds(*map(float, frame), width, height), width, height)
    else:
        where = {k: v for k, v in place.items() if k in ("rpcs", "gcps")}
        if not where:
            raise AssertionError("this warp needs a frame")
        grid = calculate_default_transform(place["src_crs"], to[0], shape[1], shape[0], **where)
    _write_warped(target, pixels, valid, nodata, alpha, to[0], grid, place, method or ["near"])


def _write_warped(target, pixels, valid, nodata, alpha, crs, grid, place, method):
    transform, width, height = grid
    how = Resampling.nearest if method[0] == "near" else Resampling[method[0]]
    options = {"dst_transform": transform, "dst_crs": crs, **place}
    seen = np.zeros((height, width), np.uint8)
    reproject((valid > 0).astype(np.uint8), seen, resampling=Resampling.nearest, **options)
    made = np.zeros((len(pixels), height, width), pixels.dtype)
    for band, out in zip(pixels, made, strict=True):
        masked = np.ma.array(band, mask=valid == 0)
        reproject(masked, out, resampling=how, src_nodata=nodata, init_dest_nodata=False, **options)
    if nodata is not None:
        made = np.where(seen > 0, made, np.asarray(nodata, made.dtype))
    if alpha:
        made = np.concatenate([made, seen[None].astype(made.dtype) * 255])
    _written(target, made, len(made) if alpha else 0, crs=crs, transform=transform, nodata=nodata)
