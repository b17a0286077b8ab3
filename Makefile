# `make setup` once; each target below sees to it anyway.
PYTHON ?= python3
BIN := .venv/bin
# As root every part can be had, so a part that is missing is a failure and not a skip.
ALL := $(if $(filter 0,$(shell id -u)),1,0)

# Test files at once: much of a test's time is waiting for processes that it started.
JOBS ?= 3
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

.PHONY: help setup demo serve test quick lint format bench clean

help:
	@echo "make demo    set up, and show the whole thing at work"
	@echo "make serve   set up, and start a server that stays"
	@echo "make test    set up, and run every test, on both engines"
	@echo "make quick   the fast tests, on the bubblewrap engine"
	@echo "make lint    ruff, mypy --strict, the direction of imports"
	@echo "make bench   what is claimed about speed"

setup: .venv/.run

.venv/.run: pyproject.toml tools/setup.sh
	@PYTHON=$(PYTHON) tools/setup.sh run

.venv/.test: pyproject.toml tools/setup.sh
	@PYTHON=$(PYTHON) tools/setup.sh test

demo: .venv/.run
	@$(BIN)/python -m tests.kit run -- $(BIN)/cmdsvc demo

serve: .venv/.run
	@tools/first-user.sh
	@$(BIN)/python -m tests.kit run -- $(BIN)/cmdsvc serve

test: .venv/.test
	CMDSVC_TEST_ALL=$(ALL) $(PYTEST)

quick: .venv/.test
	$(PYTEST) -m "not slow" --engine bubblewrap

lint: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/.test
	$(BIN)/python -m bench.run
	$(BIN)/python -m bench.profile
	$(BIN)/python -m bench.http
	$(BIN)/python -m bench.deliveries --database sqlite
	$(BIN)/python -m bench.throughput
	$(BIN)/python -m bench.scale

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
