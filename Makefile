# `make demo` and `make test` need only Python 3.11 or newer: they set up .venv by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test slow lint types check setup clean

demo: $(VENV)/ready
	$(BIN)/ornstein demo

test: $(VENV)/ready-dev
	$(BIN)/python -m pytest -q -n 2 -m "not slow"

slow: $(VENV)/ready-dev
	$(BIN)/python -m pytest -q -m slow

lint: $(VENV)/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/ready-dev
	$(BIN)/mypy

check: lint types test

setup: $(VENV)/ready-dev

$(VENV)/ready: pyproject.toml constraints.txt scripts/setup.sh
	PYTHON="$(PYTHON)" sh scripts/setup.sh $(VENV)
	touch $@

$(VENV)/ready-dev: $(VENV)/ready
	PYTHON="$(PYTHON)" sh scripts/setup.sh $(VENV) dev
	touch $@

clean:
	rm -rf $(VENV) build src/*.egg-info
