"""Configurations: plain values, there and back."""

import dataclasses
import json
import subprocess
import sys
import typing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ganlab import config as module
from ganlab.config import (
    ApplyConfig,
    BalanceConfig,
    EvaluateConfig,
    Pix2PixConfig,
    ScheduleConfig,
    SplitConfig,
    StabilizersConfig,
    TilingConfig,
    TrainingConfig,
    UNetConfig,
    check_words,
    from_dict,
    to_dict,
)
from ganlab.errors import InputError

CONFIGS = [
    kind
    for kind in vars(module).values()
    if isinstance(kind, type) and dataclasses.is_dataclass(kind)
]
st.register_type_strategy(Path, st.text("abc/.-", min_size=1, max_size=9).map(Path))
st.register_type_strategy(float, st.floats(allow_nan=False))


@pytest.mark.parametrize("kind", CONFIGS, ids=lambda kind: kind.__name__)
@settings(max_examples=20)
@given(data=st.data())
def test_any_configuration_goes_through_json(kind, data):
    hints = typing.get_type_hints(kind)
    values = {name: data.draw(st.from_type(hint), name) for name, hint in hints.items()}
    config = kind(**values)
    text = json.dumps(to_dict(config))
    back = from_dict(kind, json.loads(text))
    check_words(back)
    assert back == config
    assert repr(back) == repr(config)  # 1 and 1.0, Path and str are equal but not the same


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TrainingConfig(precision="float16"), "precision is 'float16'; expected fp32 or bf16 or"),
        (TrainingConfig(balance=BalanceConfig("foo")), "kind is 'foo'; expected fixed or derived"),
        (Pix2PixConfig(generator=UNetConfig(norm="layer")), "norm is 'layer'; expected batch or"),
        (StabilizersConfig(penalties=("r1", "r3")), r"penalties is \('r1', 'r3'\); expected r1 or"),
    ],
)
def test_a_word_that_means_nothing_is_named(config, message):
    with pytest.raises(InputError, match=message):
        check_words(config)


def test_what_it_looks_like():
    config = Pix2PixConfig(
        generator=UNetConfig(width=16),
        reconstruction_schedule=ScheduleConfig("fade_out", 0.1),
    )
    plain = to_dict(config)
    assert plain["generator"]["width"] == 16
    assert plain["reconstruction_schedule"] == {
        "shape": "fade_out",
        "start": 0.1,
        "stop": 1.0,
        "end": 0.0,
    }
    assert to_dict(TrainingConfig(split=SplitConfig(test_groups=("a",))))["split"][
        "test_groups"
    ] == ["a"]


def test_paths_and_the_lack_of_one():
    given_ = EvaluateConfig(run=Path("runs/a"), tiles=Path("tiles"))
    plain = to_dict(given_)
    assert (plain["run"], plain["tiles"], plain["to"]) == ("runs/a", "tiles", None)
    back = from_dict(EvaluateConfig, plain)
    assert (type(back.run), type(back.tiles), back.to) == (type(Path()), type(Path()), None)
    apply = from_dict(ApplyConfig, {"run": "r", "scene": "s.tif", "to": "o.tif"})
    assert (apply.run, apply.scene, apply.to) == (Path("r"), "s.tif", Path("o.tif"))


def test_missing_fields_take_their_defaults_and_unknown_ones_are_refused():
    assert from_dict(TrainingConfig, {}) == TrainingConfig()
    assert from_dict(TrainingConfig, {"split": {"block": 64}}).split == SplitConfig(block=64)
    with pytest.raises(InputError, match="stepz"):
        from_dict(TrainingConfig, {"stepz": 3})
    with pytest.raises(InputError, match="sizze"):
        from_dict(TrainingConfig, {"split": {"sizze": 3}})
    with pytest.raises(InputError, match="images"):
        from_dict(TilingConfig, {"to": "x"})


@pytest.mark.parametrize("kind", CONFIGS, ids=lambda kind: kind.__name__)
def test_configurations_are_frozen(kind):
    assert kind.__dataclass_params__.frozen
    assert kind.__doc__


def test_the_command_line_starts_without_heavy_libraries():
    code = (
        "import sys; before = set(sys.modules)\n"
        "import ganlab, ganlab.config, ganlab.errors\n"
        "heavy = {'torch', 'numpy', 'rasterio', 'matplotlib', 'accelerate'} & set(sys.modules)\n"
        "sys.exit(repr(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
