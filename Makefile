# Every target does its own set-up: a .venv with hash-locked packages (requirements/*.txt), nothing outside this folder.
PYTHON ?= python3
BIN := .venv/bin
UV := $(BIN)/python -m uv --quiet
INSTALL := $(UV) pip install --python $(BIN)/python --require-hashes
EDITABLE := $(UV) pip install --python $(BIN)/python --no-deps --no-build-isolation --editable .
DATA ?= $(SPINE_REAL_DATA)
OUT ?= out

.PHONY: help demo test check lint accept detector grader bundle lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

.venv/.bootstrap: requirements/bootstrap.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"spine-engine needs Python 3.11 or newer; this is {sys.version.split()[0]}. Name another: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bootstrap.txt
	touch $@

.venv/.run: requirements/run.txt pyproject.toml .venv/.bootstrap
	$(INSTALL) -r requirements/run.txt
	$(EDITABLE)
	touch $@

.venv/.dev: requirements/dev.txt .venv/.run
	$(INSTALL) -r requirements/dev.txt
	touch $@

.venv/.all: requirements/all.txt .venv/.dev
	$(INSTALL) -r requirements/all.txt
	touch $@

demo: .venv/.run ## make three phantom studies, grade them, show the grades
	$(BIN)/spine-engine demo

test: .venv/.dev ## the tests that need no PyTorch and no GPU
	$(BIN)/python -m pytest -m "not gpu" -n 2

lint: .venv/.all ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint ## everything: lint and all tests, training included (installs PyTorch)
	$(BIN)/python -m pytest -m "not gpu" -n 2

accept: .venv/.dev ## measure what the project promises and write docs/acceptance.md (SPINE_REAL_DATA for the real exams)
	$(BIN)/python -m spine_bench.acceptance

lock: .venv/.bootstrap ## solve the requirements again
	$(UV) pip compile --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header requirements/bootstrap.in -o requirements/bootstrap.txt
	$(UV) pip compile --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header pyproject.toml -o requirements/run.txt
	$(UV) pip compile --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header pyproject.toml --extra dev -c requirements/run.txt -o requirements/dev.txt
	$(UV) pip compile --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header pyproject.toml --extra dev --extra train -c requirements/dev.txt -o requirements/all.txt

clean: ## remove what the targets made
	rm -rf .venv demo out .pytest_cache .mypy_cache .ruff_cache
