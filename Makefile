# Needs make and Python 3.11 or newer. Each target installs what it needs into .venv, once.
#
#   make demo          train a small network with callbacks (examples/digits.py)
#   make test          linters, types, and the everyday tests with the examples in docstrings
#   make fast          tests that train no network, in less than a minute
#   make test-newest   a short set of tests on the newest Python here, with the newest jax locked
#   make test-oldest   a short set of tests with the oldest versions that pyproject.toml allows
#   make long          tests that take minutes: processes killed at arbitrary times, all ways to interrupt a run
#   make blocks        the tests of runs with the steps in blocks of 2, 7 and 32, as on a GPU
#   make deep          complete runs of the examples, which take longest
#   make browser       check TensorBoard's pages and the report in a browser (apt-get install chromium chromium-driver)
#   make package       build the packages, check them, and try them with the oldest and newest versions
#   make docs          build the site in docs/_build/html, execute its notebooks, and check both
#   make loaders       train with PyTorch's, TensorFlow's and grain's loaders, in runs that are killed
#   make keras         compare the callbacks with the real Keras on 14,000 streams of metrics
#   make mutants       change the callbacks one line at a time, and check that the tests fail
#   make bench         all benchmarks against hand-written loops, Keras and Lightning, in a separate environment
#   make bench-quick   a part of it, in under three minutes
#   make bench-gpu     the benchmarks for a GPU, in under ten minutes, in a separate environment
#   make accelerators  compile for a TPU and a GPU that are not here, and compare with loops by hand
#   make trackers      kill runs that log to W&B, MLflow and Trackio, and compare what these hold
#   make lock          resolve the locked versions again
#   make clean         remove everything that make has made
#
# PYTHON=... names the interpreter for .venv, ARGS=... is passed to pytest.

SHELL := /bin/sh
.NOTPARALLEL:
.SUFFIXES:
.PHONY: docs package demo fast test lint style test-newest test-oldest long blocks deep browser loaders keras mutants bench bench-quick \
    bench-gpu accelerators trackers format lock clean

PYTHON ?=
BENCH_PYTHON ?=
ARGS ?=
WORKERS ?= 2

BIN := .venv/bin
NEWEST := .venv-newest
OLDEST := .venv-oldest
BENCH := .venv-bench
BENCH_GPU := .venv-bench-gpu
ACCELERATORS := .venv-accelerators
LOADERS := .venv-loaders
SITE := .venv-site
TRACKERS := .venv-trackers
PIP_FLAGS := -qq --disable-pip-version-check
export PYTHONUNBUFFERED := 1

# The lock that fits an interpreter: jax 0.10 for Python 3.11, the newest one for later Pythons.
LOCK_OF = $$($(1) -c 'import sys; print("requirements/py311.txt" if sys.version_info < (3, 12) else "requirements/newest.txt")')

# Sets $$python to a Python 3.11, the last one that all packages of the benchmarks are locked for.
PYTHON311 = @python=$(BENCH_PYTHON); [ -n "$$python" ] || python=$$(command -v python3.11) || \
    { echo "$(1) Python 3.11: install it, or name one with make BENCH_PYTHON=..." >&2; exit 1; };

TYPES = $(BIN)/pyright --pythonpath $(BIN)/python

# Makes the environment of a rule with $$python: the locked versions of these names in requirements/, and jaxcb.
ENVIRONMENT = $$python -m venv $(@D) && \
    $(@D)/bin/python -m pip install $(PIP_FLAGS) $(patsubst %,-r requirements/%.txt,$(1)) && \
    $(@D)/bin/python -m pip install $(PIP_FLAGS) --no-deps --no-build-isolation -e .

SOURCES := pyproject.toml requirements/py311.txt requirements/newest.txt

# Tests of the algebra and of single parts, which train no network.
CALLBACKS = csv_logger early_stopping history lambda_callback learning_rate_scheduler model_checkpoint model_summary \
    progress_bar reduce_lr_on_plateau reporters tensorboard terminate_on_nan timer
FAST = tests/core/test_actions.py tests/core/test_callback.py tests/core/test_metrics.py tests/history tests/replay \
    tests/data/test_chunking.py tests/data/test_position.py tests/inspection/test_flops.py \
    tests/training/test_learning_rate.py tests/training/test_train_state.py tests/utils/test_names_of_classes.py \
    tests/utils/test_exact.py tests/utils/test_images.py tests/utils/test_names_of_leaves.py \
    tests/writers/test_event_file.py tests/writers/trackers/test_delivery.py tests/writers/test_recorder.py \
    tests/test_public.py tests/test_signatures.py $(CALLBACKS:%=tests/callbacks/test_%.py)

# What the oldest versions are tried on. Orbax 0.11 leaves event loops open, of which Python warns at any time later.
OLD = $(FAST) tests/checkpointing/test_store.py tests/checkpointing/test_load.py tests/core tests/loop/test_fit.py \
    tests/models tests/storage/test_former_orbax.py tests/test_package.py tests/utils
OLD_FLAGS = -p no:unraisableexception -W ignore::ResourceWarning \
    --deselect tests/checkpointing/test_store.py::test_saved_on_four_devices

demo: .venv/.demo
	$(BIN)/python examples/digits.py $(ARGS)

fast: .venv/.dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(FAST) $(ARGS)

# Types are checked beside the tests, which leave a part of the cores idle while they wait for processes.
test: .venv/.dev style
	@log=$$(mktemp); $(TYPES) >"$$log" 2>&1 & types=$$!; \
	trap 'kill $$types 2>/dev/null; rm -f "$$log"' EXIT; trap 'exit 130' INT TERM; \
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS); tests=$$?; \
	wait $$types; typed=$$?; cat "$$log"; \
	exit $$((tests || typed))

lint: style
	$(TYPES)

style: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell -D - -D tools/old_words.txt jaxcb docs examples README.md
	$(BIN)/lint-imports
	$(BIN)/python tools/house.py
	$(BIN)/python tools/prose.py

format: .venv/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

long: .venv/.dev
	$(BIN)/python -m pytest -n $(WORKERS) -m long $(ARGS)

blocks: .venv/.dev
	for size in 2 7 32; do \
	    $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --block $$size tests/loop tests/sweep tests/data \
	        tests/checkpointing tests/callbacks tests/training tests/writers $(ARGS) || exit 1; \
	done

deep: .venv/.dev
	$(BIN)/python -m pytest -n $(WORKERS) -m deep $(ARGS)

browser: .venv/.dev
	$(BIN)/python -m pytest -m browser -rs tests/browser $(ARGS)

package: .venv/.dev
	$(BIN)/python tools/check_package.py $(ARGS)

docs: $(SITE)/.done
	$(SITE)/bin/sphinx-build -q -W --keep-going -b html docs docs/_build/html $(ARGS)
	$(SITE)/bin/python -m pytest -n0 -m site tests/built_site
	@echo "The site is docs/_build/html/index.html"

loaders: $(LOADERS)/.done
	$(LOADERS)/bin/python -m pytest tests/data/test_third_party_data.py
	$(LOADERS)/bin/python -m pytest tests/test_docs.py -k lightning
	$(LOADERS)/bin/python -m pytest -m loaders tests/loaders $(ARGS)

keras: .venv/.dev
	$(BIN)/python tests/against_keras $(ARGS)

mutants: .venv/.dev
	$(BIN)/python tools/mutants.py $(ARGS)

bench: $(BENCH)/.done
	$(BENCH)/bin/python benchmarks/bench.py --save $(ARGS)
	$(BENCH)/bin/python docs/tables.py speed.md

bench-quick: $(BENCH)/.done
	$(BENCH)/bin/python benchmarks/bench.py --quick $(ARGS)

bench-gpu: $(BENCH_GPU)/.done
	$(BENCH_GPU)/bin/python benchmarks/gpu.py --save $(ARGS)

accelerators: $(ACCELERATORS)/.done
	$(ACCELERATORS)/bin/python benchmarks/accelerators --save $(ARGS)
	$(ACCELERATORS)/bin/python docs/tables.py speed.md

trackers: $(TRACKERS)/.done
	$(TRACKERS)/bin/python -m pytest -n0 -rs -m trackers tests/trackers $(ARGS)

test-newest:
	@python=$$(sh tools/find_python.sh newest) || exit 1; \
	default=$(PYTHON); \
	if [ -x $(BIN)/python ]; then default=$(BIN)/python; fi; \
	if [ -z "$$default" ]; then default=$$(sh tools/find_python.sh default) || exit 1; fi; \
	minor='import sys; print("3.%d" % sys.version_info[1])'; \
	if [ "$$($$python -c "$$minor")" = "$$($$default -c "$$minor")" ]; then \
	    echo "No Python newer than $$($$default -c "$$minor") here: 'make test' is already on the newest one."; \
	else \
	    $(MAKE) --no-print-directory $(NEWEST)/.dev NEWEST_PYTHON="$$python" && \
	    $(NEWEST)/bin/python -m pytest -n $(WORKERS) --dist worksteal --cases other \
	        -m "not deep and not slow and not long and not browser and not loaders and not trackers and not site" $(ARGS); \
	fi

test-oldest: $(OLDEST)/.done
	$(OLDEST)/bin/python -m pytest -n $(WORKERS) --dist worksteal $(OLD_FLAGS) $(OLD) $(ARGS)

$(BIN)/python:
	@python=$(PYTHON); [ -n "$$python" ] || python=$$(sh tools/find_python.sh default) || exit 1; \
	echo "Setting up .venv with $$($$python --version)"; \
	$$python -m venv .venv

# The demo needs the library, matplotlib, and a data set from scikit-learn.
.venv/.demo: $(SOURCES) | $(BIN)/python
	@echo "Installing what the demo needs (once)"
	@lock=$(call LOCK_OF,$(BIN)/python); \
	$(BIN)/python -m pip install $(PIP_FLAGS) -c $$lock hatchling editables scikit-learn && \
	$(BIN)/python -m pip install $(PIP_FLAGS) -c $$lock --no-build-isolation -e '.[plot]'
	@touch $@

.venv/.dev: $(SOURCES) | $(BIN)/python
	@echo "Installing the locked versions (once)"
	@$(BIN)/python -m pip install $(PIP_FLAGS) -r $(call LOCK_OF,$(BIN)/python)
	@$(BIN)/python -m pip install $(PIP_FLAGS) --no-deps --no-build-isolation -e .
	@touch .venv/.demo $@

$(NEWEST)/.dev: $(SOURCES)
	@echo "Setting up $(NEWEST) with $$($(NEWEST_PYTHON) --version), and installing the locked versions (once)"
	@$(NEWEST_PYTHON) -m venv $(NEWEST)
	@$(NEWEST)/bin/python -m pip install $(PIP_FLAGS) -r $(call LOCK_OF,$(NEWEST)/bin/python)
	@$(NEWEST)/bin/python -m pip install $(PIP_FLAGS) --no-deps --no-build-isolation -e .
	@touch $@

$(OLDEST)/.done: $(SOURCES) requirements/oldest.txt
	$(call PYTHON311,The oldest versions need) \
	echo "Setting up $(OLDEST) with the oldest versions (once)"; \
	$(call ENVIRONMENT,oldest)
	@touch $@

$(BENCH)/.done: $(SOURCES) requirements/bench.txt
	$(call PYTHON311,The benchmarks need) \
	echo "Setting up $(BENCH) with Keras, PyTorch and Lightning (once)"; \
	$(call ENVIRONMENT,py311 bench)
	@touch $@

$(BENCH_GPU)/.done: $(SOURCES) requirements/bench.txt requirements/bench-gpu.txt
	$(call PYTHON311,The benchmarks for a GPU need) \
	echo "Setting up $(BENCH_GPU) with CUDA, PyTorch and Lightning (once)"; \
	$(call ENVIRONMENT,py311 bench bench-gpu)
	@touch $@

$(SITE)/.done: $(SOURCES) requirements/site.txt
	$(call PYTHON311,The site needs) \
	echo "Setting up $(SITE) with Sphinx (once)"; \
	$(call ENVIRONMENT,py311 site)
	@touch $@

$(LOADERS)/.done: $(SOURCES) requirements/loaders.txt
	$(call PYTHON311,The tests of loaders need) \
	echo "Setting up $(LOADERS) with PyTorch and TensorFlow (once)"; \
	$(call ENVIRONMENT,py311 loaders)
	@touch $@

# The compilers of a TPU and a GPU take a gigabyte. Hypothesis is for docs/tables.py.
$(ACCELERATORS)/.done: $(SOURCES) requirements/accelerators.txt
	$(call PYTHON311,The compilers for accelerators need) \
	echo "Setting up $(ACCELERATORS) with the compilers for TPUs and GPUs (once)"; \
	$$python -m venv $(ACCELERATORS) && \
	$(ACCELERATORS)/bin/python -m pip install $(PIP_FLAGS) -c requirements/py311.txt hatchling editables \
	    -r requirements/accelerators.txt && \
	$(ACCELERATORS)/bin/python -m pip install $(PIP_FLAGS) -c requirements/py311.txt --no-build-isolation -e '.[testing]'
	@touch $@

$(TRACKERS)/.done: $(SOURCES) requirements/trackers.txt
	$(call PYTHON311,The trackers need) \
	echo "Setting up $(TRACKERS) with W&B, MLflow and Trackio (once)"; \
	$(call ENVIRONMENT,trackers)
	@touch $@

lock:
	sh tools/lock.sh

clean:
	rm -rf .venv $(NEWEST) $(OLDEST) $(BENCH) $(BENCH_GPU) $(ACCELERATORS) $(LOADERS) $(TRACKERS) $(SITE) docs/_build docs/reference .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	find jaxcb tests examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
