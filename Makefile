# make demo: set up and run the main job.       make test: set up and run the tests (make test-all: the slow ones too).
# make lint, make bench, make figures: what their names say (figures: the pictures of the documents).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-all fast lint docs bench machine gpu figures clean

demo: $(VENV)/.all
	$(BIN)/guidestar demo --out out/demo

JOBS ?= 2
FAST ?= tests/core tests/sampling tests/guidance tests/test_architecture.py
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

fast: $(VENV)/.dev  # the core's own tests
	$(PYTEST) -m "not slow" $(FAST)

test: $(VENV)/.dev
	$(PYTEST) -m "not slow"

test-all: $(VENV)/.dev
	$(PYTEST)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/pyright --pythonpath $(BIN)/python -p tools/strict.json

docs: $(VENV)/.docs  # the site: out/site/index.html
	DISABLE_MKDOCS_2_WARNING=true NO_MKDOCS_2_WARNING=1 $(BIN)/properdocs build --strict --quiet

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/against_diffusers.py
	$(BIN)/python benchmarks/composed.py
	MALLOC_MMAP_THRESHOLD_=4000000000 MALLOC_TRIM_THRESHOLD_=8000000000 $(BIN)/python benchmarks/composed.py  # an allocator that keeps its pages
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/pipelines.py
	$(BIN)/python benchmarks/newer_pipelines.py
	$(BIN)/python benchmarks/serve.py
	$(BIN)/python benchmarks/serve_load.py --seconds 60
	$(BIN)/python benchmarks/studio.py  # needs Chromium

machine: $(VENV)/.dev  # allocator, threads, bfloat16, compiled networks: one table (docs/performance.md)
	$(BIN)/python benchmarks/machine.py --profile --write

gpu: $(VENV)/.dev  # what holds on a GPU: one table, in under 10 minutes
	$(BIN)/python benchmarks/gpu.py

figures: $(VENV)/.docs
	$(BIN)/python docs/make_figures.py
	$(BIN)/guidestar demo --out out/demo && cp out/demo/*.png docs/figures/

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.all: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[all]'
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[dev]'
	touch $@ $(VENV)/.all

$(VENV)/.docs: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[docs]'
	touch $@

clean:
	rm -rf out build dist src/*.egg-info
