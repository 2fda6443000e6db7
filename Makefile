# Every target makes what it needs: a Python from 3.11 on and make are enough.
#   make demo    worked examples, then one classifier trained on every array library that is installed
#   make examples    six examples in full, on numpy, torch and JAX; their pictures go to build/examples (PICTURES=docs/pictures: the docs')
#   make test    the tests, the conformance suite and the examples in docstrings
#   make accuracy    measures every target and every peer, and writes docs/accuracy.md and its pictures anew
#   make budgets     asks the same anew, and writes the budgets that `make test` holds softxp to (review the difference!)
#   make third-party the conformance suite as a stranger has it: from a wheel, in an empty folder, for their library
#   make gpu     on a machine with an NVIDIA GPU, in ten minutes: tests, conformance and speed on it (PYTHON=one that has torch for CUDA;
#                CONTRIBUTING.md says what else)
#   make bench   times softxp and its peers (half an hour), and writes docs/speed.md and its picture anew
#   make lint, types, docs, clean

PYTHON ?= python3
WORKERS ?= 2
EXTRAS ?= test# what of pyproject.toml `make test` installs
PACKAGES ?=# and what beside it
ARGS ?=# for pytest; nothing means everything

EXAMPLES = digits distillation language_model attention_maps contrastive experts
PICTURES ?= build/examples

PIP = install --quiet --disable-pip-version-check
VENV = .venv/bin
DEMO = .venv-demo/bin

# (with it, each of the tests' many processes would compile pytest's plugins and softxp anew)
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo examples test accuracy budgets third-party lint types docs bench gpu clean

PEERS = scipy.special torch.nn.functional jax.nn optax entmax
SUITE = $(VENV)/python -m softxp_conformance -n $(WORKERS)

demo: .venv-demo/installed
	@$(DEMO)/python examples/demo.py

examples: .venv/installed
	@for name in $(EXAMPLES); do $(VENV)/python examples/$$name.py --out $(PICTURES)/$$name.svg $(ARGS) || exit 1; done

# (each kernel is compiled once, not by each worker)
test: .venv/installed
	@printf '%s\n' float16 bfloat16 float32 float64 | xargs -P $(WORKERS) -n 1 \
		$(VENV)/python -c "import sys, softxp; softxp.warmup(sys.argv[1], progress=False)"
	$(VENV)/pytest -n $(WORKERS) --dist worksteal $(ARGS)

accuracy: .venv/installed
	@mkdir -p build/accuracy
	$(SUITE) --target all --report build/accuracy/softxp.jsonl
	$(SUITE) $(PEERS:%=--implementation %) --report build/accuracy/peers.jsonl >build/accuracy/peers.log || test $$? -eq 1
	$(VENV)/python -m softxp_conformance.report build/accuracy/*.jsonl --insert docs/accuracy.md

# once more with the oldest instructions that numpy and torch know, since another processor has another exp
budgets: .venv/installed
	@mkdir -p build/budgets
	$(SUITE) --target all --report build/budgets/newest.jsonl || test $$? -eq 1
	NPY_DISABLE_CPU_FEATURES="X86_V3 X86_V4" ATEN_CPU_CAPABILITY=default $(SUITE) --target numpy --target torch \
		--target array-api-strict --target array-api-strict-32 --report build/budgets/oldest.jsonl || test $$? -eq 1
	$(VENV)/python -m softxp_conformance.budgets build/budgets/*.jsonl

third-party:
	rm -rf build/wheel
	$(PYTHON) -m venv --clear .venv-third-party
	.venv-third-party/bin/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir build/wheel . ./examples/third_party
	.venv-third-party/bin/python -m pip $(PIP) "$$(ls build/wheel/softxp-*.whl)[conformance]" build/wheel/pebble_arrays-*.whl
	cd "$$(mktemp -d)" && $(CURDIR)/.venv-third-party/bin/python -m softxp_conformance -n $(WORKERS) \
		--target pebble.softxp_target:TARGET

lint: .venv/installed-dev
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .

types: .venv/installed-dev
	$(VENV)/pyright --pythonpath $(VENV)/python

docs: .venv/installed-dev
	$(VENV)/sphinx-build -q -W docs docs/_build

bench: .venv/installed
	$(VENV)/python -m benchmarks --json build/speed.json --page docs/speed.md $(ARGS)
	$(VENV)/python -m benchmarks.rooms --json build/rooms.json --page docs/speed-rooms.md

# installs nothing: such machines come with what drives their GPU, and often without a network
gpu:
	@PYTHON="$(PYTHON)" .ci/gpu

clean:
	rm -rf .venv .venv-demo .venv-third-party docs/_build build dist .pytest_cache .ruff_cache .hypothesis

# The stamps: an environment is installed once, and again when pyproject.toml changes.

.venv-demo/installed: pyproject.toml | .venv-demo/bin/python
	@echo "installing softxp, numpy, numba, scikit-learn, rich and matplotlib into .venv-demo (a minute or more)"
	@$(DEMO)/python -m pip $(PIP) -e ".[numpy,cpu,demo]"
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
