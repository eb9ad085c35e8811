# make run       train the small model to its target on two CPU ranks, and check its log
# make check     the fast lane: format, lint, types, import contracts, and the unit tests that need no ranks
# make test      all of that, and every test that needs no GPU but those of gpu-proof and soak
# make gpu-proof trace the GPU code without a GPU: memory, waits, collectives; compile its kernels
# make kernel-budget record the registers, spills and shared memory of every kernel
# make soak      train, evaluate and save for two minutes, and check that memory, files, threads and step time are flat
# make coverage  print the line and branch coverage of the tests
# make pythons   run the unit tests on every supported Python: make pythons PYTHONS="python3.12 python3.13"
# make docs      build the documentation into site/; a broken link fails
# make reference write the generated pages of docs/reference
# make pictures  draw docs/images and the example report (report.png needs Chromium)
# make format    format the code and fix lint
# make lock      regenerate requirements/*.txt from pyproject.toml
# make bench     time the CPU run
# make clean     remove the environments, the sample data and caches
SHELL := /bin/bash
PYTHON ?= python3
PYTHONS ?= python3.11 python3.12 python3.13
VENV ?= .venv
BIN := $(VENV)/bin
SCRIPTS := $(wildcard *.sh */*.sh) run.sub .ci/run
PACKAGES := gptoss20b data_scripts compliance system_info launch
# The order of files counts: a long one that starts last keeps one worker busy alone.
LONGEST_FIRST := --no-loadscope-reorder tests/integration/test_journeys.py tests/integration/test_run_local.py \
	tests/integration tests/unit tests/launch tests/compliance tests/data_scripts tests/system_info tests/gpu $(PACKAGES)
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --doctest-modules --dist loadfile

# Pin this version in a build for your machine, for example TORCH="torch==2.13.0 --index-url <index of CPU builds>".
TORCH ?= torch==2.13.0
# uv installs several times as fast as pip, and reads the same files.
UV := $(shell command -v uv)
INSTALL := $(if $(UV),$(UV) pip install --quiet --python $(BIN)/python,$(BIN)/python -m pip install --quiet --disable-pip-version-check)
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	--custom-compile-command "make lock"

.PHONY: run check test gpu-proof soak kernel-budget coverage pythons lint types unit all-tests docs reference pictures format lock bench clean

run: $(VENV)/run-ready
	$(BIN)/python -m data_scripts.make_sample_data data/sample
	source config_CPU_1x2.sh && PYTHON=$(BIN)/python ./run_and_time.sh

# Types take one core as long as the unit tests take the other.
check: $(VENV)/test-ready lint
	$(MAKE) --no-print-directory --jobs 2 types unit

test: $(VENV)/test-ready lint
	$(MAKE) --no-print-directory --jobs 2 types all-tests

lint: $(VENV)/test-ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/codespell --dictionary - --dictionary .codespell-dictionary
	$(BIN)/shellcheck $(SCRIPTS)
	$(BIN)/hadolint Dockerfile

types: $(VENV)/test-ready
	$(BIN)/mypy

unit: $(VENV)/test-ready
	$(PYTEST) -n 2 --hypothesis-profile quick -m "not slow and not gpu" tests/unit tests/launch tests/compliance tests/data_scripts tests/system_info

all-tests: $(VENV)/test-ready
	$(PYTEST) -n 3 --durations 25 -m "not proof and not soak" $(LONGEST_FIRST)

gpu-proof: $(VENV)/proof-ready
	$(PYTEST) -n 2 -m proof tests/integration

soak: $(VENV)/test-ready
	$(PYTEST) -n 0 -m soak tests/integration/test_soak.py

# The table of record of make gpu-proof. Read what has changed before you commit it.
kernel-budget: $(VENV)/proof-ready
	$(BIN)/python -m doc_tools.kernel_budget

pythons:
	for python in $(PYTHONS); do \
		$(MAKE) --no-print-directory unit VENV=.venv-$$python PYTHON=$$python || exit; \
	done

# Without the tests that run clones and images of the code, which are not measured.
coverage: $(VENV)/test-ready
	$(PYTEST) -n 3 --cov --cov-report term:skip-covered $(LONGEST_FIRST) \
		--deselect tests/integration/test_journeys.py --deselect tests/integration/test_image_steps.py

docs: $(VENV)/test-ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: $(VENV)/test-ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/run-ready
	$(BIN)/python -m data_scripts.make_sample_data data/sample
	$(BIN)/python -m benchmarks.cpu_run

reference: $(VENV)/test-ready
	$(BIN)/python -m doc_tools.reference

pictures: $(VENV)/test-ready
	$(BIN)/python -m compliance report examples/ten_runs --system examples/CPU_1x2.json --out examples/report.html
	$(BIN)/python -m doc_tools.pictures

# requirements/*.txt: pins with hashes. lock.txt has every extra but proof; the others are the part of it that one
# environment needs. proof.txt has the Triton that torch's build for CUDA requires.
lock: $(VENV)/test-ready
	$(LOCK) pyproject.toml --extra dev --override requirements/torch.in --output-file requirements/lock.txt
	$(LOCK) pyproject.toml --extra run --extra data --extra compliance --override requirements/torch.in \
		--constraint requirements/lock.txt --output-file requirements/cpu.txt
	$(LOCK) pyproject.toml --extra run --extra data --extra compliance --override requirements/base_image.in \
		--constraint requirements/lock.txt --output-file requirements/container.txt
	echo "$(word 1,$(TORCH))" | $(BIN)/uv pip compile --quiet --no-header --python-platform linux - | grep ^triton== | \
		$(LOCK) --output-file requirements/proof.txt -

$(VENV)/run-ready: requirements/cpu.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "Python 3.11, 3.12 or 3.13 is needed, got " + sys.version.split()[0] + ": set PYTHON=python3.11")'
	@echo "Installing into $(VENV): about 1 GB with a CPU build of torch, 5 GB (3 GB to download) with the CUDA build that PyPI"
	@echo "serves by default. For a CPU build: make TORCH='$(TORCH) --index-url INDEX' with the index of CPU builds on pytorch.org"
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) $(TORCH)
	$(INSTALL) --no-deps --require-hashes -r requirements/cpu.txt
	@touch $@

$(VENV)/test-ready: requirements/lock.txt $(VENV)/run-ready
	$(INSTALL) --no-deps --require-hashes -r requirements/lock.txt
	@touch $@

$(VENV)/proof-ready: requirements/proof.txt $(VENV)/test-ready
	$(INSTALL) --no-deps --require-hashes -r requirements/proof.txt
	@touch $@

clean:
	rm -rf .venv .venv-* site data/sample .mypy_cache .ruff_cache .pytest_cache .hypothesis
