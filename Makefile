# Two commands on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
KILL_SEEDS ?= 20

.PHONY: help demo test nightly check unit bench bench-full bench-learning clean

help:
	@echo "make demo              the README's program against the simulated model, without a key"
	@echo "make test              everything that CI runs"
	@echo "make nightly           the long tests, an hour on two cores: $(KILL_SEEDS) seeds of kills, 100,000 calls over HTTP"
	@echo "make bench             the benchmarks, small: about eight minutes; ARGS=\"calls step\" takes some"
	@echo "make bench-learning    what optimizers learn, with the simulated LM; ARGS=\"--lm local\" with a real one"
	@echo "make docs              the documentation as a site in ./site"
	@echo "make bench-full        the benchmarks with all sizes and more repeats"

$(VENV)/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is missing; on Debian: apt-get install python3 python3-venv"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Afnio needs Python 3.11 or newer ($$($(PYTHON) -V)); name one: make PYTHON=python3.12 …"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "$(PYTHON) has no venv module; on Debian: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The marks tell which extras are installed for which state of pyproject.toml.
$(VENV)/.base: $(VENV)/bin/python pyproject.toml
	@echo "Installing Afnio and what it needs (OpenAI's SDK, aiohttp, anyio, pydantic, rich, the studio) into $(VENV):"
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[studio]'
	@touch $@

# uv installs the 150 packages in a fifth of pip's time; it doesn't read pip's settings, as of a mirror.
$(VENV)/.dev: $(VENV)/bin/python pyproject.toml
	@echo "Installing Afnio and the tools of its tests into $(VENV); the first time this takes a minute or two"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -e '.[dev]' || \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $(VENV)/.base $@

demo: $(VENV)/.base
	$(BIN)/python -m afnio.demo $(ARGS)

test:
	$(MAKE) --jobs 2 check unit

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/ruff check --quiet --preview --select PLC2701 tests
	$(BIN)/python scripts/check_house.py

unit: $(VENV)/.dev
	$(BIN)/python -m pytest -n 3 --dist worksteal $(ARGS)

nightly: $(VENV)/.dev
	AFNIO_NIGHTLY=1 AFNIO_KILL_SEEDS=$(KILL_SEEDS) $(BIN)/python -m pytest -n 2 --dist worksteal -m "nightly or longer" --durations 30 $(ARGS)

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks $(ARGS)

bench-full: $(VENV)/.dev
	$(BIN)/python -m benchmarks --full $(ARGS)

bench-learning: $(VENV)/.dev
	$(BIN)/python -m benchmarks.learning --curve $(ARGS)

docs: $(VENV)/.dev
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache
