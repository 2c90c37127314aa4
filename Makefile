# Every target does its own set-up in .venv, and reuses what is there and current.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
JOBS ?= auto
CONSTRAINTS ?= constraints.txt

.PHONY: sweep test test-f32 test-all gallery lint docs figures figures-check bench release-check clean

sweep: $(VENV)/.ready-experiments  ## the main job: certify and draw the k-means limit
	$(RUN) experiments/sigma_sweep.py $(ARGS)

test: $(VENV)/.ready-test  ## the theorems, in float64, families taking turns
	$(RUN) -m pytest -n $(JOBS)

test-f32: $(VENV)/.ready-test  ## the same theorems, in float32 with its own tolerances; annotations were checked in float64
	JAXEM_TEST_PRECISION=32 $(RUN) -m pytest -n $(JOBS) -o addopts="--dist=loadgroup -q"

test-all: $(VENV)/.ready-test  ## every statement of every family and program, in both precisions (tests/turns.py)
	JAXEM_TURN=all $(RUN) -m pytest -n $(JOBS)
	JAXEM_TURN=all JAXEM_TEST_PRECISION=32 $(RUN) -m pytest -n $(JOBS)

gallery: $(VENV)/.ready-test  ## every program of docs/programs.md, of which `make test` takes one of each kind
	JAXEM_TURN=all $(RUN) -m pytest -n $(JOBS) tests/test_gallery.py

lint: $(VENV)/.ready-test
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

docs: $(VENV)/.ready-docs  ## the documentation, as a site in site/; every warning is an error
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

figures: $(VENV)/.ready-figures  ## every figure of paper_figures/, running the experiments whose results are missing
	$(RUN) paper_figures/build.py $(ARGS)

figures-check:  ## do figures, scripts, style and inputs match paper_figures/MANIFEST.json?
	$(PYTHON) paper_figures/build.py --check

bench: $(VENV)/.ready-bench  ## the benchmark tables, against peers
	$(RUN) experiments/benchmarks/run.py $(ARGS)

release-check: $(VENV)/.ready-release  ## dist/: the sdist, the wheel that it makes, their metadata; and the wheel alone
	rm -rf build dist
	$(RUN) -m build
	$(RUN) -m twine check --strict dist/*
	$(RUN) -m pip install --quiet --no-deps --target build/alone dist/*.whl
	cd build/alone && $(abspath $(RUN)) -P -c "import sys; sys.path.insert(0, '.'); import jaxem; print(jaxem.__file__)"

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# one stamp for each extra; older than pyproject.toml or constraints.txt means out of date
$(VENV)/.ready-%: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) --editable ".[$*]"
	touch $@

clean:
	rm -rf $(VENV) results site build dist
