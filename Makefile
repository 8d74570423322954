# Everything runs in .venv; `PYTHON=python3.12 make install` picks the interpreter it is made from.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test faults plugs bench lint

install: .venv/installed

.venv/installed: pyproject.toml
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/rltemp demo --out runs/demo

test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -m 'not slow and not faults'

faults: install
	$(BIN)/pip install --quiet --editable '.[fuzz,ray]'
	$(BIN)/pytest -m faults

plugs: install
	$(BIN)/pip install --quiet --editable '.[dev,plugs]'
	$(BIN)/pytest -m 'not faults' tests/integrations

bench: install
	$(BIN)/python scripts/bench.py
