"""What users of Python write for tuples and paths, and what the configurations make of it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ganlab.config import (
    ApplyConfig,
    CloudsConfig,
    EncoderDecoderConfig,
    EvaluateConfig,
    FeaturesConfig,
    HolesConfig,
    Pix2PixConfig,
    SamplesConfig,
    ScalingConfig,
    SplitConfig,
    StabilizersConfig,
    TilingConfig,
    ToytownConfig,
    TrainingConfig,
    TwoStageConfig,
    from_dict,
    to_dict,
)
from ganlab.conversion import paths_of
from ganlab.errors import InputError


@pytest.mark.parametrize(
    "given",
    [
        "photo.tif", Path("photo.tif"), ["photo.tif"], [Path("photo.tif")], ("photo.tif",),
        np.array(["photo.tif"]), (name for name in ["photo.tif"]),
    ],
)  # fmt: skip
def test_one_path_is_a_tuple_of_one(given):
    assert TilingConfig(images=given, to="tiles").images == ("photo.tif",)
    assert TilingConfig("x", "tiles", labels="l.tif", fine=Path("f.tif")).labels == ("l.tif",)


def test_single_values_of_every_tuple():
    config = TilingConfig(
        "a.tif", "tiles", bands=4, classes=np.uint8(3), groups="Ulm", labels=None, fine=[]
    )
    assert (config.bands, config.classes, config.groups) == (("4",), (3,), ("Ulm",))
    assert (config.labels, config.fine, config.to) == ((), (), Path("tiles"))
    assert TilingConfig("a.tif", "t", bands=(4, "red", np.int64(2))).bands == ("4", "red", "2")
    assert TilingConfig("a.tif", "t", groups=range(2)).groups == ("0", "1")
    assert ScalingConfig(0, 1.5) == ScalingConfig((0.0,), (1.5,))
    assert ScalingConfig(np.float32(0.5)).low == (0.5,)
    assert SplitConfig(test_groups="Ulm").test_groups == ("Ulm",)
    assert FeaturesConfig(layers="logits").layers == ("logits",)
    assert HolesConfig(kinds="file", files="hole.tif").files == (Path("hole.tif"),)
    assert HolesConfig(kinds="file", files="hole.tif").kinds == ("file",)
    assert HolesConfig(coverage=[0.1, 0.2]).coverage == (0.1, 0.2)
    assert EncoderDecoderConfig(dilations=2).dilations == (2,)
    assert CloudsConfig(white=1).white == (1,)
    assert StabilizersConfig(penalties="r1").penalties == ("r1",)
    assert TrainingConfig(betas=[0.0, 0.9]).betas == (0.0, 0.9)
    assert TwoStageConfig().holes == HolesConfig()
    apply = ApplyConfig("run", "a.tif", "b.tif", bands="red", classes=1, fill="other")
    assert (apply.run, apply.to, apply.fill) == (Path("run"), Path("b.tif"), Path("other"))
    assert (apply.bands, apply.classes) == (("red",), (1,))
    assert EvaluateConfig("run", tiles="tiles", to="x.json").tiles == Path("tiles")
    assert EvaluateConfig("run").tiles is None
    assert (ToytownConfig("town").to, SamplesConfig("s").to) == (Path("town"), Path("s"))


def test_what_is_right_already_stays_itself():
    config = TilingConfig(("a.tif", "b.tif"), Path("tiles"), classes=(0, 1))
    assert config.images == ("a.tif", "b.tif")
    assert replace(config, size=64).images == ("a.tif", "b.tif")
    assert from_dict(TilingConfig, to_dict(config)) == config
    assert from_dict(TrainingConfig, to_dict(TrainingConfig())) == TrainingConfig()
    assert from_dict(Pix2PixConfig, to_dict(Pix2PixConfig())) == Pix2PixConfig()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TilingConfig(3.5, "t"), "images is 3.5: expected texts, found 3.5"),
        (lambda: TilingConfig({"a.tif", "b.tif"}, "t"), "images is .* expected an order"),
        (lambda: TilingConfig([("B4.tif", "B3.tif")], "t"), "images is .* expected texts, found"),
        (lambda: TilingConfig("a.tif", "t", classes="1"), "classes is '1': expected numbers"),
        (lambda: TilingConfig("a.tif", "t", classes=1.5), "classes is 1.5: "),
        (lambda: TilingConfig("a.tif", "t", bands=True), "bands is True: expected texts"),
        (lambda: ScalingConfig("0"), "low is '0': expected numbers"),
        (lambda: TrainingConfig(betas=0.5), "betas is 0.5: expected 2 values"),
        (lambda: HolesConfig(coverage=(0.1, 0.2, 0.3)), "coverage is .* expected 2 values"),
    ],
)
def test_what_means_nothing_is_refused_by_name(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_paths_of_further_sources():
    assert paths_of("a.tif") == paths_of(Path("a.tif")) == paths_of(["a.tif"]) == ("a.tif",)
    with pytest.raises(InputError, match="expected texts, found 3.5"):
        paths_of(["a.tif", 3.5])
