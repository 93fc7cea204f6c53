"""Every rule for chapters passes a good notebook and catches a bad one."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest

import chapter

NAME = "98_sample.ipynb"
PROSE = "\n\n".join(["A sentence of seven words stands here."] * 200)
LINES = "\n".join(f"x{i} = {i}" for i in range(140))
TEXT = f"""\
%%% markdown
# A sample

@badge

**Promise: you will have read a sample.**
%%% bootstrap
%%% markdown
| | In this chapter |
|---|---|
| **Outcomes** | You know a sample. |
| **Prerequisites** | None. |
| **Minutes** | 1 on two CPU cores |

## Question

Which?

**Prediction.** Write it down. {PROSE}
%%% code
from ganlab import errors

{LINES}
%%% code {{"tags": ["nbval-ignore-output"]}}
print(0.123)
%%% code {{"alt": "A blue curve that falls from left to right"}}
assert issubclass(errors.InputError, ValueError)
%%% markdown
## Exercises

1. Try it.
%%% code {{"tags": ["hide-cell"]}}
print(2)
%%% markdown
## Summary

- Short.

## References

- Isola et al. (2017). [arXiv:1611.07004](https://arxiv.org/abs/1611.07004)
"""


@pytest.fixture(scope="module")
def path(root: Path) -> Path:
    return root / "book" / NAME


@pytest.fixture
def good() -> Any:
    notebook = chapter.from_text(TEXT, NAME)
    for count, cell in enumerate((c for c in notebook.cells if c.cell_type == "code"), 1):
        cell.execution_count = count
        if "mystnb" in cell.metadata:
            data = {"image/png": "iVBORw0KGgo=", "text/plain": "<Figure size 640x480 with 1 Axes>"}
            cell.outputs = [nbformat.v4.new_output("display_data", data)]
        elif "print" in cell.source:
            cell.outputs = [nbformat.v4.new_output("stream", text="0.123\n")]
    return notebook


def find(notebook: Any, text: str) -> Any:
    return next(cell for cell in notebook.cells if text in cell.source)


def replace(old: str, new: str) -> Callable[[Any], None]:
    def change(notebook: Any) -> None:
        cell = find(notebook, old)
        cell.source = cell.source.replace(old, new)

    return change


def output(kind: str, **content: Any) -> Callable[[Any], None]:
    def change(notebook: Any) -> None:
        find(notebook, "print(2)").outputs = [nbformat.v4.new_output(kind, **content)]

    return change


def without(key: str, text: str) -> Callable[[Any], None]:
    return lambda notebook: find(notebook, text).metadata.pop(key)


def tagged(tag: str, text: str) -> Callable[[Any], None]:
    return lambda notebook: find(notebook, text).metadata.setdefault("tags", []).append(tag)


BROKEN: dict[str, Callable[[Any], Any]] = {
    "the title": replace("# A sample", "A sample"),
    "Colab badge": replace(NAME, "97_other.ipynb"),
    "a promise": replace("\n\n**Promise: you will have read a sample.**", ""),
    "the bootstrap cell (tag": replace("%pip install", "%pip install --pre"),
    "one bootstrap cell": tagged("bootstrap", "print(2)"),
    "**Outcomes**": replace("**Outcomes**", "Outcomes"),
    "**Prerequisites**": replace("| **Prerequisites** | None. |\n", ""),
    "needs a head": replace("| | In this chapter |", "| | |"),
    "a number for the CPU": replace("1 on two CPU cores", "few"),
    "one title": replace("## Question", "# Question"),
    "the question": replace("## Question", "## Which"),
    "the prediction": replace("**Prediction.**", "Well."),
    "the last sections": replace("## Summary", "## Conclusion"),
    "executed solutions": lambda notebook: notebook.cells.remove(find(notebook, "print(2)")),
    "must be folded": without("tags", "print(2)"),
    "bytes; at most": output("stream", text="x" * chapter.BYTES),
    "words; expected": replace(PROSE, "Little."),
    "lines of code; expected": replace(LINES, "x = 1"),
    "from top to bottom": lambda notebook: find(notebook, "print(2)").update(execution_count=9),
    "ended in ValueError": output("error", ename="ValueError", evalue="", traceback=[]),
    "stderr": output("stream", name="stderr", text="careful"),
    "output of type image/svg+xml": output("display_data", data={"image/svg+xml": "<svg/>"}),
    "unknown tag": tagged("nbval-skip", "print(2)"),
    "no untagged assert": replace("assert ", "bool "),
    "nothing is imported": replace("from ganlab import", "from another import"),
    "idea and the library agree": tagged("hide-cell", "assert"),
    "has no text": without("mystnb", "assert"),
    "no alternative text": replace("Which?", "![](98_sample.ipynb)"),
    "MyST directives": replace("Which?", "```{note}\nWhich?\n```"),
    "leads nowhere": replace("Which?", "[Which?](97_missing.ipynb)"),
    "an absolute path": output("stream", text="wrote /ho" + "me/ada/town.tif"),
    "address of an object": output("stream", text="<object at 0x7f00deadbeef>"),
    "not a list": replace("- Isola", "Isola"),
    "missing in book/references.bib": replace("abs/1611.07004", "abs/9999.99999"),
}


def test_a_good_notebook_passes(path: Path, good: Any) -> None:
    nbformat.validate(good)
    assert chapter.problems(path, good) == []


@pytest.mark.parametrize("problem", BROKEN)
def test_a_bad_notebook_is_caught(path: Path, good: Any, problem: str) -> None:
    assert problem not in "\n".join(chapter.problems(path, good))
    BROKEN[problem](good)
    assert problem in "\n".join(chapter.problems(path, good))


def test_text_and_notebook_are_the_same(good: Any) -> None:
    again = chapter.from_text(chapter.to_text(good), NAME)
    assert [(c.cell_type, c.source, c.metadata) for c in again.cells] == [
        (c.cell_type, c.source, c.metadata) for c in good.cells
    ]


def test_tidying_removes_what_changes_between_runs(good: Any) -> None:
    noisy = copy.deepcopy(good)
    noisy.metadata["widgets"] = {"state": {}}
    noisy.metadata["language_info"]["version"] = "3.12.1"
    for cell in noisy.cells:
        cell.id = f"random-{id(cell)}"
        cell.metadata["execution"] = {"iopub.execute_input": "2026-01-01T00:00:00Z"}
    assert chapter.tidy(noisy) == chapter.tidy(good)


def test_execution_is_fresh_and_single_threaded(tmp_path: Path) -> None:
    text = "%%% code\nimport os\n\nprint(os.environ['OMP_NUM_THREADS'], 'b' in globals())\nb = 1\n"
    for _ in range(2):
        notebook = chapter.from_text(text, NAME)
        chapter.execute(notebook, tmp_path)
        assert notebook.cells[0].outputs[0].text == "1 False\n"
