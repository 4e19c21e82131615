# Two commands: `make demo` and `make test`. Everything else is listed by `make help`.

PYTHON ?= python3
PYTEST_ARGS ?= -n 2

VENV := .venv
TEST_VENV := .venv-test
LOWEST_VENV := .venv-lowest
FUZZ_VENV := .venv-fuzz
RAY_VENV := .venv-ray
PY := $(VENV)/bin/python
TEST_PY := $(TEST_VENV)/bin/python
CODE := bnfold tests models

# Only the schema that it carries is read; what it depends on would pull older packages in.
TRITONCLIENT := 2.73.0

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint style formatted types floors format wheel-check test-lowest reasons reference pictures proof mutants fuzz fuzz-files accidents wide load matrix ray clean check-python

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.installed ## fold BN-Inception, prove it, time it
	@$(PY) -m models.demo

test: lint ## style, types, import floors, tests
	@$(TEST_PY) -m pytest $(PYTEST_ARGS)

lint: style formatted types floors ## style, types, import floors

style: $(TEST_VENV)/.installed
	@$(TEST_PY) -m ruff check --quiet $(CODE)

formatted: $(TEST_VENV)/.installed
	@$(TEST_PY) -m ruff format --quiet --check $(CODE) || { echo "not formatted: run 'make format'" >&2; exit 1; }

types: $(TEST_VENV)/.installed
	@$(TEST_PY) -m mypy

floors: $(TEST_VENV)/.installed
	@$(TEST_VENV)/bin/lint-imports --no-logo

format: $(TEST_VENV)/.installed ## format the code, sort the imports
	@$(TEST_PY) -m ruff check --quiet --fix-only $(CODE)
	@$(TEST_PY) -m ruff format $(CODE)

wheel-check: $(TEST_VENV)/.installed ## build the wheel and run it in a bare environment
	@PYTHON=$(PYTHON) .ci/wheel $(TEST_PY)

test-lowest: $(LOWEST_VENV)/.installed ## the tests on the oldest dependencies that pyproject.toml allows
	@$(LOWEST_VENV)/bin/python -m pytest $(PYTEST_ARGS)

reasons: $(TEST_VENV)/.installed ## write docs/reasons.md anew from the code
	@$(TEST_PY) -m tests.reasons_doc

reference: $(TEST_VENV)/.installed ## write docs/reference.md and docs/api.md anew from the code
	@$(TEST_PY) -m tests.reference_doc
	@$(TEST_PY) -m tests.api_doc

pictures: $(TEST_VENV)/.installed ## draw the pictures of docs/how-it-works.md anew, from folds
	@$(TEST_PY) -m tests.pictures_doc

proof: $(TEST_VENV)/.installed ## put bugs into the folding code, ask each layer of the proof, write the table of docs/proof.md
	@$(TEST_PY) -m tests.proof_doc

mutants: $(TEST_VENV)/.installed ## remove every guard of every rule in turn: some test must notice (ONLY=regex of module names)
	@$(TEST_PY) -m tests.mutants --only '$(ONLY)'

fuzz: $(TEST_VENV)/.installed ## the law on GRAPHS=5000 random graphs, from a SEED that is printed
	@BNFOLD_FUZZ=$(or $(GRAPHS),5000) BNFOLD_SEED=$(SEED) $(TEST_PY) -m pytest -n 0 -s tests/test_fuzz.py tests/test_fuzz_rows.py

fuzz-files: $(FUZZ_VENV)/.installed ## coverage-guided fuzzing of model files for MINUTES=30, with atheris
	@mkdir -p build/fuzz && cd build/fuzz && PYTHONPATH=$(CURDIR) PYTHONWARNINGS=ignore $(CURDIR)/$(FUZZ_VENV)/bin/python -m tests.fuzzer corpus \
	  -max_total_time=$$(( 60 * $(or $(MINUTES),30) )) -timeout=150 -rss_limit_mb=12000 -max_len=20000 -print_final_stats=1

wide: $(TEST_VENV)/.installed ## fold 100,000 nodes, 5,000 bodies, chains of 10,000: seconds and memory of each
	@$(TEST_PY) -m tests.large

load: $(TEST_VENV)/.installed ## fold 1,000 models in one process: does its memory grow?
	@$(TEST_PY) -m tests.load 1000

ray: $(RAY_VENV)/.installed ## fold MODELS=200 on a real Ray cluster of two nodes: broken models, a lost node, interrupted, resumed
	@$(RAY_VENV)/bin/python -m tests.cluster $(or $(MODELS),200)

matrix: | check-python ## the tests on every Python here and on the oldest and newest dependencies, outputs in OpenVINO
	@.ci/matrix

accidents: $(TEST_VENV)/.installed ## kill runs 200 times, interrupt them, let them race, fill their disk: ten minutes (KILLS=200)
	@$(TEST_PY) -m tests.accidents steps
	@$(TEST_PY) -m tests.accidents kills $(or $(KILLS),200)
	@$(TEST_PY) -m tests.accidents signals $(or $(KILLS),200)
	@$(TEST_PY) -m tests.accidents races $(or $(KILLS),200)
	@$(TEST_PY) -m tests.accidents deployments
	@mkdir -p build/small && unshare -rm sh -c 'mount -t tmpfs -o size=300k tmpfs build/small && $(TEST_PY) -m tests.accidents full build/small'

clean: ## remove the environments and all build output
	rm -rf $(VENV) $(TEST_VENV) $(LOWEST_VENV) $(FUZZ_VENV) $(RAY_VENV) .venv-train .venv-zoo .venv-rivals .venv-triton build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache

# $(call environment,DIR,EXTRAS,CONSTRAINTS): an editable bnfold with pinned dependencies. The build backend is installed
# first, so that it is pinned too.
define environment
	@echo "making $(1)" >&2
	@$(PYTHON) -m venv $(1)
	@$(1)/bin/python -m pip install -qq -c $(3) hatchling
	@$(1)/bin/python -m pip install -qq -c $(3) --no-build-isolation -e '.$(2)'
	@touch $@
endef

$(VENV)/.installed: pyproject.toml constraints.txt | check-python
	$(call environment,$(VENV),,constraints.txt)

$(TEST_VENV)/.installed: pyproject.toml constraints.txt | check-python
	$(call environment,$(TEST_VENV),[test],constraints.txt)
	@$(TEST_VENV)/bin/python -m pip install -qq --no-deps tritonclient==$(TRITONCLIENT) || echo "no tritonclient: its schema is not tested" >&2

$(LOWEST_VENV)/.installed: pyproject.toml constraints.txt .ci/lowest | check-python
	@mkdir -p build && $(PYTHON) .ci/lowest > build/lowest.txt
	$(call environment,$(LOWEST_VENV),[test],build/lowest.txt)

$(FUZZ_VENV)/.installed: pyproject.toml constraints.txt | check-python
	$(call environment,$(FUZZ_VENV),[fuzz],constraints.txt)

$(RAY_VENV)/.installed: pyproject.toml constraints.txt | check-python
	$(call environment,$(RAY_VENV),[ray],constraints.txt)

check-python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "bnfold needs Python 3.11 or newer, and '$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo missing). Name one: make $(or $(MAKECMDGOALS),test) PYTHON=python3.12" >&2; exit 1; }

-include models/targets.mk tests/zoo/targets.mk tests/triton/targets.mk
