# Everything sets itself up: Python 3.11 or newer, make and a package index are all it takes.
# The first one that runs and is new enough: a version manager's stub may be on the path without a Python behind it.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
# The release that the tests of training are known to pass with; TORCH_INDEX=URL names an index with builds for the CPU alone.
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin

.PHONY: help demo test test-train suites lint format bench clean
help:
	@echo "make demo    optimize the embedded classifier and show what that did"
	@echo "make test    run the tests"
	@echo "make test-train  install PyTorch and run the tests of training"
	@echo "make lint    check format, lint and types"
	@echo "make suites  run the large test suites"
	@echo "make bench   measure against other quantizers (needs MODELS and DATA)"
	@echo "make format  format the code"
	@echo "make clean   remove the environment and what tools left behind"

demo: $(VENV)/.installed
	$(BIN)/graphopt run models/fashion-resnet.onnx --passes prune,quantize

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 -q

# A build of PyTorch without GPU libraries is a tenth of the size: TORCH_INDEX=URL names a package index that has it.
TORCH_INDEX ?=

test-train: $(VENV)/.installed-train
	$(BIN)/python -m pytest -n 2 -q tests/training

suites: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 -q -m 'suite or not suite' tests/suites

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/quantize_peers.py --models $(MODELS) --data $(DATA)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer found: install one, or set PYTHON" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "cannot make an environment: install the venv module (Debian: python3-venv)" >&2; exit 1; }

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-train: pyproject.toml | $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) "$(TORCH)" -e ".[dev,train]"
	@touch $@
