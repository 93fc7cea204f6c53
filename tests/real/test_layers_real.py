"""Clouds that were really there, and pixels that were really finer.

Short trainings on clear imagery, applied to cloudy scenes of other days and other places: what is
asked is that what was learned from made clouds holds for real ones.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

from ganlab.config import (
    ApplyConfig,
    CloudLayersConfig,
    CloudsConfig,
    EncoderDecoderConfig,
    EvaluateConfig,
    HoleJudgeConfig,
    InpaintingConfig,
    PatchGANConfig,
    SplitConfig,
    SuperResolutionConfig,
    TilingConfig,
    TrainingConfig,
    UNetConfig,
)
from ganlab.data.tiling import tile
from ganlab.data.toytown import write_geotiff
from ganlab.evaluation import evaluate
from ganlab.inference import apply
from ganlab.training import train

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif("GANLAB_REAL_DATA" not in os.environ, reason="GANLAB_REAL_DATA is not set"),
]
DATA = Path(os.environ.get("GANLAB_REAL_DATA", "."))
PAIRS = DATA / "clouds" / "sen12mscr"
BIOME = DATA / "clouds" / "l8biome"
LANDSAT = DATA / "geotiff" / "landsat8_cloudy_utm16"
SENTINEL2_WHITE = (
    *(9500, 10500, 10500, 12500, 13000, 13500, 13500, 13500, 14000, 8000, 250, 11000, 9000),
)
LANDSAT_WHITE = (0.75, 0.75, 0.75, 0.8, 0.55, 0.4, 0.01, 265.0)
"""Reflectances of a thick low cloud, next to nothing in the cirrus band, and its temperature."""
BODY = UNetConfig(width=16, depth=4, up="resize", dropout=0.0)
QUICK = TrainingConfig(
    steps=200,
    batch_size=8,
    log_every=50,
    sample_every=0,
    checkpoint_every=200,
    ema=0.99,
    generator_lr=1e-3,
    device="cpu",
    tensorboard=False,
    split=SplitConfig(block=256, validation=0.0, test=0.0),
)


def read(path: Path | str) -> Any:
    with rasterio.open(path) as scene:
        return scene.read()


def layers(white: tuple[float, ...]) -> CloudLayersConfig:
    clouds = CloudsConfig(white=white, coverage=(0.2, 0.9), thickness=(0.2, 1.0), tint=0.3)
    return CloudLayersConfig(generator=BODY, clouds=clouds)


@pytest.fixture(scope="module")
def sentinel2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the ten clear scenes of SEN12MS-CR, 13 bands."""
    folder = tmp_path_factory.mktemp("sentinel2")
    scenes = tuple(map(str, sorted((PAIRS / "clear").glob("*.tif"))))
    tile(TilingConfig(images=scenes, to=folder / "tiles", size=64, stride=48))
    return train(layers(SENTINEL2_WHITE), folder / "tiles", folder / "run", QUICK)


def test_ground_under_real_clouds_comes_nearer_to_that_of_a_clear_day(
    sentinel2: Path, tmp_path: Path
) -> None:
    """The partners are of other dates, so nobody can reach them; copying the input is far away."""
    for place in ("136_p139", "136_p140", "136_p309", "136_p315"):
        scene = PAIRS / "cloudy" / f"ROIs1970_fall_s2_cloudy_{place}.tif"
        to = tmp_path / f"{place}.tif"
        assert apply(ApplyConfig(run=sentinel2, scene=str(scene), to=to, window=256, overlap=64))
        cloudy, ground = read(scene).astype(float), read(to).astype(float)
        clear = read(PAIRS / "clear" / f"ROIs1970_fall_s2_{place}.tif").astype(float)
        (alpha,) = read(to.with_name(f"{place}-alpha.tif"))
        with rasterio.open(scene) as given, rasterio.open(to) as made:
            assert (made.crs, made.transform, made.dtypes) == (
                given.crs,
                given.transform,
                given.dtypes,
            )
        assert 0.03 < alpha.mean() < 0.7, place
        # Red, green, blue and near infrared, as the eye and most indices see it.
        bands = [3, 2, 1, 7]
        before, after = (np.abs(x - clear)[bands].mean() for x in (cloudy, ground))
        assert after < 0.7 * before, (place, before, after)
        kept = alpha < 0.02
        assert kept.any()
        assert (ground[:, kept] == cloudy[:, kept]).all()


def test_scenes_that_are_clear_stay_nearly_as_they_are(sentinel2: Path, tmp_path: Path) -> None:
    for place in ("102_p840", "101_p505"):
        scene = PAIRS / "cloudy" / f"ROIs1868_summer_s2_cloudy_{place}.tif"
        to = tmp_path / f"{place}.tif"
        apply(ApplyConfig(run=sentinel2, scene=str(scene), to=to, window=256, overlap=64))
        (alpha,) = read(to.with_name(f"{place}-alpha.tif"))
        assert alpha.mean() < 0.05
        assert (alpha < 0.02).mean() > 0.6


def test_opaque_cloud_is_filled_and_said_to_be_invented(sentinel2: Path, tmp_path: Path) -> None:
    scenes = tuple(map(str, sorted((PAIRS / "clear").glob("*fall*.tif"))))
    tile(TilingConfig(images=scenes, to=tmp_path / "tiles", size=64))
    shape = EncoderDecoderConfig(width=4, dilations=(2, 4))
    filler = train(
        InpaintingConfig(generator=shape, discriminator=HoleJudgeConfig(width=4, layers=2)),
        tmp_path / "tiles",
        tmp_path / "filler",
        TrainingConfig(
            steps=10, batch_size=4, sample_every=0, device="cpu", tensorboard=False, log_every=10
        ),
    )
    scene = PAIRS / "cloudy" / "ROIs1970_fall_s2_cloudy_136_p309.tif"
    options: dict[str, Any] = {"window": 256, "overlap": 64, "opaque": 0.6}
    made = apply(
        ApplyConfig(
            run=sentinel2, scene=str(scene), to=tmp_path / "clear.tif", fill=filler, **options
        )
    )
    assert [path.name for path in made] == ["clear.tif", "clear-alpha.tif", "clear-origin.tif"]
    ground, (alpha,), (origin,) = map(read, made)
    cloudy = read(scene)
    assert set(np.unique(origin)) == {0, 1, 2}
    np.testing.assert_array_equal(origin == 2, alpha > 0.6)
    np.testing.assert_array_equal(ground[:, origin == 0], cloudy[:, origin == 0])
    assert (ground != cloudy).any(0)[origin == 1].all()


def test_alpha_follows_masks_drawn_by_hand(tmp_path: Path) -> None:
    """Trained on two clear Landsat scenes: thin cloud of six others has more of it than clear
    ground, thick cloud more than thin."""
    clear = [str(BIOME / "images" / f"{n}.tif") for n in ("Shrubland_01_0508", "Wetlands_01_0416")]
    options: dict[str, Any] = {"ungeoreferenced": True}
    tile(TilingConfig(images=tuple(clear), to=tmp_path / "t", size=64, stride=32, **options))
    run = train(layers(LANDSAT_WHITE), tmp_path / "t", tmp_path / "run", QUICK)
    others = [path for path in sorted((BIOME / "images").glob("*.tif")) if str(path) not in clear]
    assert len(others) == 6
    for scene in others:
        to = tmp_path / scene.name
        apply(ApplyConfig(run=run, scene=str(scene), to=to, window=256, overlap=64, **options))
        (alpha,), (mask,) = (
            read(to.with_name(f"{to.stem}-alpha.tif")),
            read(BIOME / "masks" / to.name),
        )
        ground, thin, thick = (float(alpha[mask == value].mean()) for value in (128, 192, 255))
        assert ground < thin, scene.name
        assert thin < thick or scene.stem == "Wetlands_00_1426", scene.name  # 134 thick pixels


@pytest.fixture(scope="module")
def landsat(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Red, green and blue on a 30 m grid in which the panchromatic 15 m pixels nest.

    The grids lie half a fine pixel apart, so the bands are warped; the truth stays as it is.
    """
    folder = tmp_path_factory.mktemp("landsat")
    with rasterio.open(LANDSAT / "l8_B8.tif") as file:
        height, width = file.height // 2 * 2, file.width // 2 * 2
        sharp, crs, fine = file.read()[:, :height, :width], file.crs, file.transform
    coarse = fine * fine.scale(2)
    bands = []
    for name in ("B4", "B3", "B2"):
        grid = {"transform": coarse, "width": width // 2, "height": height // 2}
        with (
            rasterio.open(LANDSAT / f"l8_{name}.tif") as file,
            WarpedVRT(file, crs=crs, resampling=Resampling.cubic, **grid) as warped,
        ):
            bands.append(warped.read(1))
    paths = folder / "bands.tif", folder / "panchromatic.tif"
    write_geotiff(paths[0], np.stack(bands), crs, coarse, ("red", "green", "blue"))
    write_geotiff(paths[1], sharp, crs, fine, ("panchromatic",))
    return paths


FINER = SuperResolutionConfig(
    generator=BODY,
    discriminator=PatchGANConfig(width=8, layers=2),
    adversarial_weight=0.0,
    image="fine",
    coarse="image",
)


def test_fifteen_metres_from_thirty(landsat: tuple[Path, Path], tmp_path: Path) -> None:
    """Held-out ground: nearer to the panchromatic truth than the best mixture, interpolated."""
    bands, sharp = map(str, landsat)
    tile(TilingConfig(images=(bands,), fine=(sharp,), to=tmp_path / "tiles", size=32))
    training = TrainingConfig(
        **{**vars(QUICK), "steps": 500, "split": SplitConfig(block=128, validation=0.0, test=0.3)}
    )
    run = train(FINER, tmp_path / "tiles", tmp_path / "run", training)
    result = evaluate(EvaluateConfig(run=run, device="cpu"))
    rows = result["rows"]
    assert set(rows) == {"model", "bicubic", "bilinear", "nearest"}
    assert rows["model"]["L1"] < 0.97 * rows["bicubic"]["L1"]
    assert rows["bicubic"]["L1"] < rows["nearest"]["L1"]
    to = tmp_path / "fine.tif"
    apply(ApplyConfig(run=run, scene=bands, to=to, window=256, overlap=64))
    with rasterio.open(to) as made, rasterio.open(sharp) as true:
        assert (made.crs, made.transform, made.shape) == (true.crs, true.transform, true.shape)
        assert made.descriptions == ("panchromatic",)
        assert np.corrcoef(made.read(1).ravel(), true.read(1).ravel())[0, 1] > 0.95


def test_what_was_learned_in_one_year_holds_in_another(tmp_path: Path) -> None:
    """NAIP 2009 teaches, 2017 (other crops, other camera) is enlarged from 10 m to 5 m.

    These 5 m pixels were resampled before, so there is little left to learn: a few hundredths of
    a decibel, but of all tiles and in the other year, too.
    """
    scenes = {
        year: str(DATA / "geotiff" / f"naip_nd_{year}_4band_utm14.tif") for year in (2009, 2017)
    }
    for year, scene in scenes.items():
        tile(TilingConfig(images=(scene,), to=tmp_path / f"{year}", size=64))
    one = SuperResolutionConfig(generator=BODY, adversarial_weight=0.0)
    training = TrainingConfig(**{**vars(QUICK), "steps": 400, "checkpoint_every": 400})
    run = train(one, tmp_path / "2009", tmp_path / "run", training)
    config = EvaluateConfig(run=run, tiles=tmp_path / "2017", split="train", device="cpu")
    rows = evaluate(config)["rows"]
    assert 0.015 < rows["model"]["PSNR"] - rows["bicubic"]["PSNR"] < 0.5
    assert rows["model"]["L1"] < rows["bicubic"]["L1"]
    assert rows["model"]["consistency"] < rows["bicubic"]["consistency"]


def test_images_on_shifted_grids_are_refused(tmp_path: Path) -> None:
    """Landsat's own 15 m and 30 m bands do not nest: half a fine pixel apart."""
    from ganlab.errors import InputError

    config = TilingConfig(
        images=(str(LANDSAT / "l8_B4.tif"),),
        fine=(str(LANDSAT / "l8_B8.tif"),),
        to=tmp_path / "tiles",
        size=32,
    )
    with pytest.raises(InputError, match="gdalwarp"):
        tile(config)
