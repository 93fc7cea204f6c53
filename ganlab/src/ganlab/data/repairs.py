"""Command lines that repair a raster, as error messages print them, and comparing of systems.

Each line was carried out in a test on what it is printed for. They are GDAL's own programs; on
paths that a shell would split, names are quoted.
"""

import re
import shlex
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import rasterio
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.errors import CRSError, RasterioError

from ganlab.data.missing import declared_nodata

GDAL_TYPES = {
    "uint8": "Byte",
    "uint16": "UInt16",
    "int16": "Int16",
    "uint32": "UInt32",
    "int32": "Int32",
    "float32": "Float32",
    "float64": "Float64",
}
LONGEST_CODE = 20
"""Characters; what is longer is no code but the WKT of a system without one."""
EXACT = 2**53
"""Up to here float64 holds every whole number."""


class File(Protocol):
    """What is asked of a scene here."""

    @property
    def file(self) -> str:
        """Its path."""

    @property
    def dtype(self) -> str:
        """Numpy's name of its pixel type."""


def beside(path: str, what: str) -> str:
    """The name of a repaired file beside the one to be repaired.

    >>> beside("labels.png", "warped")
    'labels-warped.tif'
    """
    return f"{Path(path).with_suffix('')}-{what}.tif"


def line(*words: object) -> str:
    """A command line, quoted where a shell needs it."""
    return shlex.join(map(str, words))


# --- Types of pixels ------------------------------------------------------------------------


def common_type(one: str, other: str) -> str:
    """The smallest pixel type that holds all values of two others.

    >>> common_type("uint16", "int16"), common_type("uint8", "float32")
    ('int32', 'float32')
    """
    common = np.promote_types(one, other).name
    return common if common in GDAL_TYPES else "float64"


def convert_lines(scenes: Iterable[File], dtype: str) -> str:
    """Bring rasters to one pixel type."""
    files = [scene.file for scene in scenes if scene.dtype != dtype]
    return " && ".join(convert_line(file, dtype) for file in files)


def convert_line(path: str, dtype: str) -> str:
    """Bring a raster to another pixel type."""
    return line("gdal_translate", "-ot", GDAL_TYPES[dtype], path, beside(path, dtype))


def bands_line(path: str, numbers: Sequence[int], what: str) -> str:
    """Keep some bands of a raster, in a given order."""
    chosen = [word for number in numbers for word in ("-b", number)]
    return line("gdal_translate", *chosen, path, beside(path, what))


def other_type(path: str, dtypes: Collection[str]) -> str:
    """How to bring a raster to a pixel type that can be read without changing a value."""
    if any(np.dtype(name).kind == "c" for name in dtypes):
        derived = f"DERIVED_SUBDATASET:AMPLITUDE:{path}"
        amplitude = line("gdal_translate", "-ot", "Float32", derived, beside(path, "amplitude"))
        return f"Take the amplitude: {amplitude}"
    found = _type_of_values(path, dtypes)
    if found is None:
        return "None of them holds its values exactly: renumber or rescale them"
    return f"Repair: {convert_line(path, found)}"


def _type_of_values(path: str, dtypes: Collection[str]) -> str | None:
    """The smallest type that holds all values of a raster; None if there is none."""
    common = np.result_type(*(np.dtype(name) for name in dtypes))
    if common.name in GDAL_TYPES:
        return common.name
    if common.name == "int8":
        return "int16"
    if common.name == "float16":
        return "float32"
    try:
        low, high = _extent_of_values(path)
    except RasterioError:
        return None
    for name in ("uint8", "int16", "uint16", "int32", "uint32"):
        limits = np.iinfo(name)
        if limits.min <= low and high <= limits.max:
            return name
    return "float64" if max(-low, high) <= EXACT else None


def _extent_of_values(path: str) -> tuple[int, int]:
    low, high = 0, 0
    with rasterio.open(path) as dataset:
        for _, window in dataset.block_windows(1):
            values = dataset.read(window=window)
            low = min(low, int(values.min()))
            high = max(high, int(values.max()))
    return low, high


# --- Grids ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Warp:
    """Bring a raster onto the grid of another, or onto one ``factor`` times as fine.

    Ground that it does not show must not become class 0 or black: where it has neither a nodata
    value nor an alpha band, the result gets an alpha band that says so.
    """

    reference: str
    factor: int
    other: str
    bands: int
    """Of ``other``, without its alpha band."""
    dtype: str
    method: str
    nodata: float | None
    alpha: bool
    covered: bool
    """``other`` shows all the ground of ``reference``."""

    @property
    def _out(self) -> str:
        return beside(self.other, "warped")

    @property
    def _new_alpha(self) -> bool:
        return not (self.covered or self.alpha or self.nodata is not None)

    def to(self, crs: str | None, bounds: Sequence[float], width: int, height: int) -> str:
        """Onto a grid whose rows run east and whose columns run south."""
        options = ["-t_srs", crs, "-te", *bounds, "-ts", width, height, "-r", self.method]
        if self._new_alpha:
            options.append("-dstalpha")
        return line("gdalwarp", *options, self.other, self._out)

    def onto_a_copy_of_the_grid(self) -> str:
        """Onto any grid: gdalwarp makes no turned ones, but fills a raster that has one."""
        commands = []
        like = self.reference
        if self.factor > 1:
            like = beside(self.other, "finer")
            percent = f"{100 * self.factor}%"
            size = ["-outsize", percent, percent]
            commands.append(line("gdal_translate", *size, self.reference, like))
        alpha = self.alpha or self._new_alpha
        bands = self.bands + alpha
        empty = beside(self.other, "empty") if alpha else self._out
        options = ["-if", like, "-ot", GDAL_TYPES[self.dtype], "-bands", bands]
        if self.nodata is not None:
            options += ["-a_nodata", f"{self.nodata:.17g}"]
        commands.append(line("gdal_create", *options, empty))
        if alpha:
            # gdal_create can make alpha only of the band after the colours.
            last = f"-colorinterp_{bands}"
            commands.append(line("gdal_translate", last, "alpha", empty, self._out))
        commands.append(line("gdalwarp", "-r", self.method, self.other, self._out))
        return " && ".join(commands)


def warp_first(dataset: Any) -> str | None:
    """What to say of a raster whose place is known, though it has no grid; None of others.

    Ground control points, rational polynomials (RPC) and arrays of coordinates say where pixels
    lie; gdalwarp makes a grid out of each.
    """
    points, crs = dataset.gcps
    if points:
        found, options = _from_points(points, crs)
    elif dataset.rpcs:
        found = "rational polynomials (RPC)"
        options = ["-rpc", "-t_srs", _utm(dataset.rpcs.long_off, dataset.rpcs.lat_off)]
    elif dataset.tags(ns="GEOLOCATION"):
        found = "arrays of coordinates"
        options = ["-geoloc", "-t_srs", "EPSG:4326"]
    else:
        return None
    missing = any(value is not None for value in declared_nodata(dataset))
    if not missing and ColorInterp.alpha not in dataset.colorinterp:
        options.append("-dstalpha")
    command = line("gdalwarp", *options, dataset.name, beside(dataset.name, "warped"))
    return (
        f"{dataset.name} has {found}, but no grid in a CRS: warp it first, and take the result: "
        f"{command} (--ungeoreferenced would lose the place)"
    )


def _from_points(points: Sequence[Any], crs: CRS | None) -> tuple[str, list[str]]:
    found = "ground control points"
    x = float(np.mean([point.x for point in points]))
    y = float(np.mean([point.y for point in points]))
    if crs is not None and not crs.is_geographic:
        return found, ["-t_srs", crs.to_string()]
    if crs is not None:
        return found, ["-t_srs", _utm(x, y)]
    if abs(x) <= 180 and abs(y) <= 90:
        return f"{found} without a CRS", ["-s_srs", "EPSG:4326", "-t_srs", _utm(x, y)]
    return f"{found} without a CRS (give it as SYSTEM)", ["-s_srs", "SYSTEM", "-t_srs", "SYSTEM"]


def _utm(longitude: float, latitude: float) -> str:
    """The UTM zone of a place; near the poles, the polar stereographic system."""
    if latitude > 84:
        return "EPSG:3413"
    if latitude < -80:
        return "EPSG:3031"
    zone = int((longitude + 180) // 6) % 60 + 1
    return f"EPSG:{32600 + zone if latitude >= 0 else 32700 + zone}"


# --- Systems --------------------------------------------------------------------------------


def same_crs(one: CRS, other: CRS) -> bool:
    """Whether two systems give a pixel the same place on the ground.

    Heights, shifts to other datums that a file carries along, names and the order of axes do not
    matter: GDAL's rasters have x to the east in any order of axes.
    """
    code = one.to_epsg()
    if one == other or (code is not None and code == other.to_epsg()):
        return True
    here, there = _horizontal(one), _horizontal(other)
    code = here.to_epsg()
    return here == there or (code is not None and code == there.to_epsg())


def crs_difference(found: CRS, wanted: CRS) -> str:
    """What differs between two systems: their codes, their names, or the first other element."""
    codes = [crs.to_string() for crs in (found, wanted)]
    wkts = [crs.to_wkt() for crs in (found, wanted)]
    names = [re.findall(r'"[^"]*"', wkt)[0] for wkt in wkts]
    if max(map(len, codes)) <= LONGEST_CODE and codes[0] != codes[1]:
        return f"CRS {codes[0]}, not {codes[1]}"
    if names[0] != names[1]:
        return f"CRS {names[0]}, not {names[1]}"
    elements = [re.split(r",(?=[A-Z_0-9]+\[)", wkt) for wkt in wkts]
    for one, other in zip(*elements, strict=False):
        if one != other:
            return f"CRS {names[0]} with {one}, not {other}"
    return f"CRS {wkts[0]}, not {wkts[1]}"


def _horizontal(crs: CRS) -> CRS:
    """A system without heights and datum shifts, its axes to the east and to the north."""
    try:
        tree = crs.to_dict(projjson=True)
        while tree.get("type") in ("CompoundCRS", "BoundCRS"):
            tree = tree["components"][0] if "components" in tree else tree["source_crs"]
        axes = tree["coordinate_system"]["axis"]
        flat = [axis for axis in axes if axis["direction"] not in ("up", "down")]
        if {axis["direction"] for axis in flat} == {"east", "north"}:
            flat.sort(key=lambda axis: str(axis["direction"]))
        tree["coordinate_system"]["axis"] = flat
        tree.pop("id", None)
        return CRS.from_dict(tree)
    except (CRSError, KeyError, TypeError, AttributeError):
        return crs
