# make demo: see it work.  make test: everything that CI runs.
# The environment in .venv is made once, and again when pyproject.toml or constraints.txt change.

PYTHON ?= python3.11 python3.12 python3.13 python3
OPTIONS ?=
R52 ?=

VENV := .venv
BIN := $(VENV)/bin
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder
PIP := $(BIN)/python -m pip --quiet --quiet --disable-pip-version-check --no-input

.DEFAULT_GOAL := help
.PHONY: help demo test coverage lint format docs bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "OPTIONS are handed on, as in: make demo OPTIONS=--quick"

demo: $(VENV)/.demo-installed ## train on packaged licence texts and write runs/demo/report.html
	$(BIN)/longarc demo --overwrite $(OPTIONS)

test: lint ## everything that CI runs: format, lint, types, layers, tests
	$(PYTEST) $(OPTIONS)

coverage: $(VENV)/.dev-installed ## the tests again, and which lines and branches of src/ they do not reach
	$(PYTEST) --cov $(OPTIONS)

lint: $(VENV)/.dev-installed ## the checks that run no code: format, lint, types, layers
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright
	$(BIN)/lint-imports

format: $(VENV)/.dev-installed ## put the code into its form
	$(BIN)/ruff check --fix --quiet
	$(BIN)/ruff format --quiet

docs: $(VENV)/.dev-installed ## make the documentation's site: docs/_build/index.html, static and searchable
	$(BIN)/python -m sphinx -W --keep-going --quiet -b html -c docs . docs/_build
	@echo "docs/_build/index.html"

# A benchmark is a file of benchmarks/ that runs as a script; what it needs besides is its variable.
bench: $(VENV)/.dev-installed ## run every benchmark; rows are appended to benchmarks/results.jsonl
	@set -e; for file in $$(grep -l '^if __name__ == "__main__"' benchmarks/*.py); do \
	  words=; \
	  if [ "$$file" = benchmarks/r52.py ]; then \
	    words="$(R52)"; \
	    if [ -z "$$words" ]; then \
	      echo "skipped $$file: name its tables, make bench R52=\"TRAIN TEST\""; continue; \
	    fi; \
	  fi; \
	  echo "$$file $$words"; $(BIN)/python "$$file" $$words; \
	done

clean: ## remove .venv, caches and builds; runs/ stays
	rm -rf $(VENV) build dist docs/_build .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# One command with the constraints: pip must never resolve torch without its pin.
$(VENV)/.demo-installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into $(VENV) …"
	@$(PIP) install --constraint constraints.txt --editable '.[demo]'
	@touch $@

$(VENV)/.dev-installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into $(VENV) …"
	@$(PIP) install --constraint constraints.txt --editable '.[dev]'
	@touch $@ $(VENV)/.demo-installed

$(BIN)/python:
	@for python in $(PYTHON); do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    "$$python" -m venv $(VENV) || { rm -rf $(VENV); exit 1; }; \
	    exit 0; \
	  fi; \
	done; \
	echo "longarc needs Python 3.11 or later; tried: $(PYTHON). Found: $$(python3 --version 2>&1)." >&2; \
	echo "Install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; \
	exit 1
