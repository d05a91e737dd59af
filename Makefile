# make demo   set up, then run the main job on an image set made on the spot
# make test   set up, then run the tests
# make faults the faults that are put in on purpose, many more of them: an hour
# make mutants wrong lines put into copies of the code: the tests must notice every one
# make test-gpu  on a machine with a GPU: what it has to pass, in under ten minutes
# make check  set up, then lint and type-check
# make lock   requirements-lock.txt anew: the versions of .venv, which the tests were run with
# make docs   set up, then the site, in site/: dead links are errors
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
LOCKED = hf export detection timm wandb mlflow

.PHONY: demo test test-gpu faults mutants check docs lock bench clean

demo: $(VENV)/.installed
	$(BIN)/mgd-ssl demo

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -rs -n 3 --dist loadfile --no-loadscope-reorder

test-gpu: $(VENV)/.installed
	$(BIN)/mgd-ssl bench --only gpu

faults: $(VENV)/.installed-dev
	MGD_FAULTS=20 $(BIN)/python -m pytest -q -rs -n 2 tests/faults

mutants: $(VENV)/.installed-dev
	$(BIN)/python -m tests.mutants

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lock: $(VENV)/.installed-dev
	$(BIN)/python -m pip install -q --disable-pip-version-check uv
	$(BIN)/python -m pip freeze --exclude-editable > $(VENV)/frozen.txt
	UV_CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/uv pip compile pyproject.toml --python $(BIN)/python $(LOCKED:%=--extra %) --no-annotate -q \
		-c $(VENV)/frozen.txt -o requirements-lock.txt

bench: $(VENV)/.installed
	$(BIN)/mgd-ssl bench --image-size 64 --batch-size 32
	$(BIN)/mgd-ssl bench --image-size 224 --batch-size 8

$(VENV)/.installed: requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "mgd_ssl needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt docs/requirements.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) build site .cache *.egg-info .mypy_cache .ruff_cache .pytest_cache
