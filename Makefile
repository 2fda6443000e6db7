# Every target makes what it needs: a Python from 3.11 on and make are enough.
#   make demo    worked examples, then one classifier trained on every array library that is installed
#   make test    the tests, the conformance suite and the examples in docstrings
#   make lint, types, docs, bench, clean

PYTHON ?= python3
WORKERS ?= 2
EXTRAS ?= test# what of pyproject.toml `make test` installs
PACKAGES ?=# and what beside it
ARGS ?=# for pytest; nothing means everything

PIP = install --quiet --disable-pip-version-check
VENV = .venv/bin
DEMO = .venv-demo/bin

.PHONY: demo test lint types docs bench clean

demo: .venv-demo/installed
	@$(DEMO)/python examples/demo.py

test: .venv/installed
	$(VENV)/pytest -n $(WORKERS) $(ARGS)

lint: .venv/installed-dev
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .

types: .venv/installed-dev
	$(VENV)/pyright --pythonpath $(VENV)/python

docs: .venv/installed-dev
	$(VENV)/sphinx-build -q -W docs docs/_build

bench: .venv/installed
	$(VENV)/python -m benchmarks $(ARGS)

clean:
	rm -rf .venv .venv-demo docs/_build build dist .pytest_cache .ruff_cache .hypothesis

# The stamps: an environment is installed once, and again when pyproject.toml changes.

.venv-demo/installed: pyproject.toml | .venv-demo/bin/python
	@echo "installing softxp, numpy, scikit-learn and rich into .venv-demo"
	@$(DEMO)/python -m pip $(PIP) -e ".[numpy,demo]"
	@touch $@

.venv/installed: pyproject.toml | .venv/bin/python
	@echo "installing softxp[$(EXTRAS)] $(PACKAGES) into .venv (minutes, the first time)"
	@$(VENV)/python -m pip $(PIP) -e ".[$(EXTRAS)]" $(PACKAGES)
	@touch $@

.venv/installed-dev: pyproject.toml | .venv/bin/python
	@echo "installing softxp[dev] into .venv (minutes, the first time)"
	@$(VENV)/python -m pip $(PIP) -e ".[dev]"
	@touch $@ .venv/installed

%/bin/python:
	@$(PYTHON) -c "import sys; sys.version_info >= (3, 11) or sys.exit('softxp needs Python 3.11 or newer, got ' + sys.version.split()[0] + '; name one, as in: make PYTHON=python3.12')"
	@echo "making $* with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $*
