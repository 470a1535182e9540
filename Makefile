# `make demo` and `make test` need Python 3.10 or newer and make; all else is installed into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# torch takes all cores in each test process otherwise.
export OMP_NUM_THREADS := 1

.PHONY: help demo test frameworks lint mutations clean

help:
	@echo "make demo   install acclint into $(VENV) and run it on the fixtures"
	@echo "make test   install everything, torch included, and run linters and tests"
	@echo "make frameworks   the probe with accelerate, Lightning and transformers, which it installs"
	@echo "make lint   the linters alone"
	@echo "make mutations   all mutated fixtures against torch (half an hour); writes benchmarks/mutations.md and verdicts.md"
	@echo "make clean  remove $(VENV) and all caches"

demo: $(VENV)/.installed
	$(BIN)/acclint check --exit-zero fixtures

test: lint
	$(BIN)/python -m pytest -q -n 2

frameworks: $(VENV)/.tools
	$(BIN)/python -m pip install -q -e '.[test,frameworks]'
	$(BIN)/python -m pytest -q tests/probe/test_frameworks.py

mutations: $(VENV)/.tools
	$(BIN)/python -m tests.mutations --all --table benchmarks/mutations.md
	$(BIN)/python -m tests.mutations --probe --sample 600 --table benchmarks/verdicts.md
	$(BIN)/python -m tests.mutations --confirm --sample 1000 --table benchmarks/verdicts.md

lint: $(VENV)/.tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "acclint needs Python 3.10 or newer: make PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# The installation is editable: only a change of pyproject.toml calls for another one.
$(VENV)/.installed: $(VENV)/.created pyproject.toml
	$(BIN)/python -m pip install -q -e .
	@touch $@

$(VENV)/.tools: $(VENV)/.installed pyproject.toml
	$(BIN)/pip install torch==2.13.0
	$(BIN)/python -m pip install -q -e '.[test,dev]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
