"""The stored runs of the five systems: what they had switched on, and what came out."""

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
STORED = {
    path.stem: json.loads(path.read_text())
    for path in (ROOT / "book" / "results" / "systems" / "real").glob("*.json")
}


def switched_on(system: str, run: str) -> dict[str, Any]:
    """Settings of a run, those of the task and of the training."""
    about = STORED[system]["runs"][run]
    return {**about["settings"], **about["training"]}


def test_all_five_are_there() -> None:
    assert sorted(STORED) == ["000", "001", "002", "003", "004"]


@pytest.mark.parametrize("system", sorted(STORED))
def test_everything_that_was_checked_holds(system: str) -> None:
    result = STORED[system]
    assert [what for what, right in result["checks"].items() if not right] == []
    kinds = {what.split(": ")[1] for what in result["checks"]}
    assert {"CRS", "transform", "size", "nodata", "finite", "evaluated twice, the same"} <= kinds
    for about in result["runs"].values():
        steps, every = about["training"]["steps"], about["training"]["log_every"]
        assert about["last"]["step"] == steps - steps % every
        assert steps >= 100
        assert about["evaluation"]["tiles"] > 20


def test_known_pixels_came_back() -> None:
    """Where there were any: haze over all of a scene leaves none."""
    assert STORED["000"]["checks"]["clear.tif: known pixels bit for bit"]
    assert 0 < STORED["000"]["numbers"]["share of the scene invented"] < 0.5


def test_what_their_authors_name_is_switched_on() -> None:
    fill = switched_on("000", "fill")
    assert fill["generator"]["layer"] == "gated"
    assert {fill[part]["norm"] for part in ("generator", "refinement", "discriminator")} == {
        "channel"
    }
    assert fill["perceptual_weight"] > 0
    assert fill["balance"]["kind"] == "derived"
    assert fill["stabilizers"]["penalties"] == ["r1"]
    assert fill["stabilizers"]["spectral"] == "regularization"
    vae = switched_on("000", "vae")
    assert (vae["scale"], vae["beta"]) == ("optimal", 1.0)

    photo = switched_on("001", "photo")
    assert (photo["generator"]["block"], photo["generator"]["norm"]) == ("residual", "instance")
    assert photo["reconstruction_weight"] == 100
    assert photo["perceptual_weight"] > 0
    assert photo["balance"]["kind"] != "fixed"

    holes = switched_on("002", "fill")
    assert holes["holes"]["kinds"] == ["polygon", "circle"]
    assert holes["discriminator"]["local"] == "zeroed"
    assert holes["stabilizers"]["gate"] == "loss_ratio"
    assert holes["stabilizers"]["replay"] > 0
    assert switched_on("002", "layers")["compare"] == "covered"

    for run in ("to-photo", "to-map"):
        pair = switched_on("003", run)
        assert (pair["generator"]["depth"], pair["discriminator"]["layers"]) == (8, 3)
        assert (pair["generator"]["dropout"], pair["noise"]) == (0.5, True)
        assert (pair["adversarial"], pair["discriminator_factor"]) == ("vanilla", 0.5)

    for run, factor in (("finer", 2), ("autoencoder", 1)):
        finer = switched_on("004", run)
        assert (finer["factor"], finer["adversarial"]) == (factor, "least_squares")
        assert finer["matching_weight"] > 0
        assert finer["reconstruction_schedule"]["shape"] == "fade_out"
        assert finer["stabilizers"]["diversity"] == "discrimination"
        assert min(finer["stabilizers"][trick] for trick in ("replay", "history")) > 0


def test_verdict_thin_cloud_on_ground_that_was_not_learned() -> None:
    between = STORED["002"]["runs"]["layers"]["evaluation"]["intervals"]
    for baseline in ("dark channel", "copy the input"):
        assert between[baseline]["thin L1"][1] < 0
    numbers = STORED["002"]["numbers"]
    off = {name.split(": ")[1]: v for name, v in numbers.items() if name.startswith("reflectance")}
    assert off["made ground"] < 0.5 * off["cloudy scene"]


def test_verdict_the_photo_has_gradients_and_pays_in_error() -> None:
    """Against the median colour of each class, which has none."""
    between = STORED["001"]["runs"]["photo"]["evaluation"]["intervals"]["class median"]
    assert between["gradient d."][1] < 0
    assert between["spectrum d."][1] < 0
    assert between["L1"][0] > 0


def test_verdict_buildings_are_found_and_a_map_is_painted() -> None:
    """Better than the commonest class, and than the median colour of each class."""
    rows = STORED["003"]["runs"]["to-map"]["evaluation"]["rows"]
    assert rows["model"]["mean IoU"] > 1.5 * rows["commonest class"]["mean IoU"]
    between = STORED["003"]["runs"]["to-photo"]["evaluation"]["intervals"]["class median"]
    assert between["L1"][1] < 0 < between["PSNR"][0]
    assert between["gradient d."][1] < 0


def test_verdict_all_tricks_at_once_hold_a_short_training_at_its_start() -> None:
    """What begins at a smooth answer ends beside it: better by nothing that an eye could see."""
    for system, run, start, metric in (
        ("000", "fill", "harmonic fill", "hole L1"),
        ("002", "fill", "harmonic fill", "hole L1"),
        ("004", "finer", "bicubic", "L1"),
    ):
        rows = STORED[system]["runs"][run]["evaluation"]["rows"]
        assert 0.97 < rows["model"][metric] / rows[start][metric] < 1.03
    between = STORED["004"]["runs"]["finer"]["evaluation"]["intervals"]["bicubic"]
    assert between["PSNR"][1] < 0
    assert between["spectrum d."][1] < 0
    # Known pixels begin without an error, so the derived noise level is almost none.
    weights = STORED["000"]["runs"]["fill"]["last"]
    assert weights["generator/weight/valid"] > 5 * weights["generator/weight/hole"]
