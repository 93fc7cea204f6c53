"""The committed chapters keep the rules, and the pages around them agree with them."""

import json
import os
import re
import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path

import nbformat
import pytest

import chapter

CHAPTERS = chapter.chapters()


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_keeps_the_rules(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert chapter.problems(path, notebook) == []


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_is_tidy(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert chapter.tidy(nbformat.read(path, as_version=4)) == notebook


def test_every_notebook_is_in_the_table_of_contents_in_order(root: Path) -> None:
    assert sorted((root / "book").glob("*.ipynb")) == CHAPTERS


def test_the_landing_page_links_every_chapter(root: Path) -> None:
    links = re.findall(r"\]\((\d\d_\w+\.ipynb)\)", (root / "book" / "intro.md").read_text())
    assert links == [path.name for path in CHAPTERS]


def test_every_page_holds_the_one_address(root: Path) -> None:
    """Whoever forks the repository changes _config.yml; this names the other places."""
    files = [*root.glob("*.md"), *root.glob("*.yml"), root / "CITATION.cff", *CHAPTERS]
    files += [*(root / "book").glob("*.md"), root / "ganlab" / "pyproject.toml"]
    owner, name = chapter.address().removeprefix("https://github.com/").split("/")
    for file in files:
        text = file.read_text()
        for found in re.findall(r"github(?:\.com)?/([\w.-]+/ganlab)\b", text):
            assert found == f"{owner}/{name}", file.name
    assert f"repository-code: {chapter.address()}\n" in (root / "CITATION.cff").read_text()


def test_a_chapter_alone_in_a_folder_installs_the_library(root: Path, tmp_path: Path) -> None:
    """As on Colab: torch and Jupyter are there, ganlab is not, and nothing is beside the notebook.

    The new environment sees the packages of this one through a .pth file. The path of an editable
    ganlab is itself a .pth file, which Python does not follow there.
    """
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copytree(
        root / "ganlab", tmp_path / "source", ignore=shutil.ignore_patterns("*.egg-info", "build")
    )
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    inside = subprocess.check_output(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
    )
    places = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    Path(inside.strip(), "others.pth").write_text("\n".join(places))

    if CHAPTERS:
        notebook = nbformat.read(CHAPTERS[0], as_version=4)
    else:
        notebook = chapter.from_text("%%% markdown\n# Sample\n%%% bootstrap", "98_sample.ipynb")
    for path in CHAPTERS:
        code = "\n".join(c.source for c in nbformat.read(path, as_version=4).cells[2:])
        imports = re.findall(r"^(?:from|import) ganlab[\w.]*", code, flags=re.MULTILINE)
        notebook.cells[1].source += "".join(
            f"\n{line.replace('from', 'import')}" for line in dict.fromkeys(imports)
        )
    report = (
        "import json, sys, ganlab.config, torch\n"
        "print(json.dumps([ganlab.__file__, torch.__file__, sys.prefix]))"
    )
    notebook.cells = [*notebook.cells[:2], nbformat.v4.new_code_cell(report)]
    nbformat.write(notebook, alone / "copy.ipynb")

    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PIP_", "VIRTUAL"))},
        "GANLAB_SOURCE": str(tmp_path / "source"),
        "PIP_NO_BUILD_ISOLATION": "0",  # pip's way to say yes: build with what is installed
        "PIP_NO_DEPS": "1",
        "PIP_NO_INDEX": "1",
    }
    done = subprocess.run(
        [python, "-c", "from nbclient import cli; cli.main()", "--inplace", "copy.ipynb"],
        cwd=alone,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    outputs = nbformat.read(alone / "copy.ipynb", as_version=4).cells[-1].outputs
    library, torch, prefix = json.loads(outputs[0].text)
    assert Path(prefix) == tmp_path / "env"
    assert Path(library).is_relative_to(prefix)
    assert not Path(torch).is_relative_to(prefix)
