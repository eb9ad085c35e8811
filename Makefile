# make run      train the small model to its target on two CPU ranks, and check its log
# make test     check format, lint, types and shell scripts, and run every test that needs no GPU
# make format   format the code and fix lint
# make bench    time the CPU run
# make clean    remove .venv, the sample data and caches
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
SCRIPTS := $(wildcard *.sh */*.sh) run.sub .ci/run

# Pin this version in a build for your machine, for example TORCH="torch==2.13.0 --index-url <index of CPU builds>".
TORCH ?= torch==2.13.0
# uv installs several times as fast as pip, and reads the same files.
UV := $(shell command -v uv)
INSTALL := $(if $(UV),$(UV) pip install --quiet --python $(BIN)/python,$(BIN)/python -m pip install --quiet --disable-pip-version-check)
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	--custom-compile-command "make lock"

.PHONY: run test format lock bench clean

run: .venv/run-ready
	$(BIN)/python -m data_scripts.make_sample_data data/sample
	source config_CPU_1x2.sh && PYTHON=$(BIN)/python ./run_and_time.sh

test: .venv/test-ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/codespell --dictionary - --dictionary .codespell-dictionary
	$(BIN)/shellcheck $(SCRIPTS)
	$(BIN)/hadolint Dockerfile
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --durations 25 --doctest-modules \
		gptoss20b data_scripts compliance system_info tests

format: .venv/test-ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/run-ready
	$(BIN)/python -m data_scripts.make_sample_data data/sample
	$(BIN)/python -m benchmarks.cpu_run

# requirements/*.txt: pins with hashes. lock.txt has every extra; the others are the part of it that one environment needs.
lock: .venv/test-ready
	$(LOCK) pyproject.toml --extra dev --override requirements/torch.in --output-file requirements/lock.txt
	$(LOCK) pyproject.toml --extra run --extra data --extra compliance --override requirements/torch.in \
		--constraint requirements/lock.txt --output-file requirements/cpu.txt
	$(LOCK) pyproject.toml --extra run --extra data --extra compliance --override requirements/base_image.in \
		--constraint requirements/lock.txt --output-file requirements/container.txt

.venv/run-ready: requirements/cpu.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "Python 3.11, 3.12 or 3.13 is needed, got " + sys.version.split()[0] + ": set PYTHON=python3.11")'
	@echo "Installing into .venv: about 1 GB with a CPU build of torch, 5 GB (3 GB to download) with the CUDA build that PyPI"
	@echo "serves by default. For a CPU build: make TORCH='$(TORCH) --index-url INDEX' with the index of CPU builds on pytorch.org"
	$(PYTHON) -m venv .venv
	$(INSTALL) $(TORCH)
	$(INSTALL) --no-deps --require-hashes -r requirements/cpu.txt
	@touch $@

.venv/test-ready: requirements/lock.txt .venv/run-ready
	$(INSTALL) --no-deps --require-hashes -r requirements/lock.txt
	@touch $@

clean:
	rm -rf .venv data/sample .mypy_cache .ruff_cache .pytest_cache .hypothesis
