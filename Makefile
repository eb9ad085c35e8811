# make run      train the small model to its target on two CPU ranks, and check its log
# make test     check format, lint, types and shell scripts, and run every test that needs no GPU
# make format   format the code and fix lint
# make bench    time the CPU run
# make clean    remove .venv, the sample data and caches
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
SCRIPTS := $(wildcard *.sh */*.sh) run.sub .ci/run

.PHONY: run test format bench clean

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

.venv/run-ready: requirements/cpu.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "python 3.11 or later is needed, got " + sys.version.split()[0] + ": set PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/cpu.txt
	@touch $@

.venv/test-ready: requirements/test.txt .venv/run-ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/test.txt
	@touch $@

clean:
	rm -rf .venv data/sample .mypy_cache .ruff_cache .pytest_cache .hypothesis
