# Every target does its own set-up: a .venv with hash-locked packages (requirements/*.txt), nothing outside this folder.
PYTHON ?= python3
BIN := .venv/bin
UV := $(BIN)/python -m uv --quiet
INSTALL := $(UV) pip install --python $(BIN)/python --require-hashes
EDITABLE := $(UV) pip install --python $(BIN)/python --no-deps --no-build-isolation --editable .
DATA ?= $(SPINE_REAL_DATA)

.PHONY: help demo test check lint accept detector grader lock clean

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

detector: .venv/.all ## train the disc detector on DATA (lumbar-mri/, spider-slices/) and export build/detector.onnx; hours
	$(BIN)/spine-engine train detector --data $(DATA) --out build/detector-1 --fold 0
	$(BIN)/spine-engine train detector --data $(DATA) --out build/detector-2 --fold -1 --seed 1 --steps 800 --learning-rate 1.2e-3 --phantoms 50 --start build/detector-1/last.pt
	$(BIN)/spine-engine train detector --data $(DATA) --out build/detector-3 --fold -1 --seed 2 --steps 1200 --learning-rate 1.2e-3 --phantoms 50 --start build/detector-2/last.pt
	$(BIN)/spine-engine export detector build/detector-3/last.pt --out build/detector.onnx

grader: .venv/.all ## train the grader on phantoms and export build/grader.onnx with its card; hours
	$(BIN)/spine-engine train grader --crops build/crops --out build/grader --threads 2
	$(BIN)/python -m spine_training.grader evaluate build/grader/last.pt --crops build/crops > build/figures.json
	$(BIN)/spine-engine export grader build/grader/last.pt --out build --figures build/figures.json --crops build/crops

lock: .venv/.bootstrap ## solve the requirements again
	$(UV) pip compile --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header requirements/bootstrap.in -o requirements/bootstrap.txt
	$(UV) pip compile --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header pyproject.toml -o requirements/run.txt
	$(UV) pip compile --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header pyproject.toml --extra dev -c requirements/run.txt -o requirements/dev.txt
	$(UV) pip compile --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header pyproject.toml --extra dev --extra train -c requirements/dev.txt -o requirements/all.txt

clean: ## remove what the targets made
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache
