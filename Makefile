# Every target does its own set-up: a .venv with hash-locked packages (requirements/*.txt), nothing outside this folder.
PYTHON ?= python3
BIN := .venv/bin
UV := $(BIN)/python -m uv --quiet
INSTALL := $(UV) pip install --python $(BIN)/python --require-hashes --compile-bytecode
EDITABLE := $(UV) pip install --python $(BIN)/python --no-deps --no-build-isolation --editable .
DATA ?= $(SPINE_REAL_DATA)
BENCH_SECONDS ?= 5
JOBS ?= 2
TESTS ?= tests
PLANTED ?= tests/mutants/planted

# Tests start many processes; without bytecode each would compile its imports anew.
unexport PYTHONDONTWRITEBYTECODE
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal

.PHONY: help demo test test-fast test-named check check-all lint mutants mutants-planted docs accept bench same faults scale report pictures viewer eval-detector eval-grader detector grader bundle families train-demo lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

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

.venv/.bench: requirements/bench.txt .venv/.run
	$(INSTALL) -r requirements/bench.txt
	touch $@

.venv/.docs: requirements/docs.txt .venv/.run
	$(INSTALL) -r requirements/docs.txt
	touch $@

.venv/.mutants: requirements/mutants.txt .venv/.all
	$(INSTALL) -r requirements/mutants.txt
	touch $@

demo: .venv/.run ## make three phantom studies, grade them, show the grades
	$(BIN)/spine-engine demo

test: .venv/.dev ## the quick tests; those of training and export only where PyTorch is installed (make test-fast)
	$(PYTEST) -m "not slow and not gpu"

test-fast: .venv/.all ## the quick tests, training and export included (installs PyTorch); 3 minutes on 2 cores
	$(PYTEST) -m "not slow and not gpu"

test-named: .venv/.all ## the slow tests that every change must pass
	$(PYTEST) @tests/slow_tests_of_ci.txt

lint: .venv/.all ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test-fast ## lint and the quick tests

check-all: lint ## lint and every test that needs no GPU; half an hour
	$(PYTEST) -m "not gpu"

mutants: .venv/.mutants ## do the fast tests notice small faults? in what differs from BASE, or SAMPLE=1000 SEED=1 of the core
	$(BIN)/python tests/mutants mutants --jobs $(JOBS) --tests $(TESTS) $(if $(SAMPLE),--sample $(SAMPLE)) $(if $(SEED),--seed $(SEED)) $(if $(BASE),--base $(BASE))

mutants-planted: .venv/.mutants ## do the fast tests notice the faults of PLANTED, patches that people wrote?
	$(BIN)/python tests/mutants planted --jobs $(JOBS) --tests $(TESTS) --folder $(PLANTED)

docs: .venv/.docs ## build docs/ and the reference of the public names into build/docs; every warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	! grep -rnE '<(script|img|iframe|link)[^>]+(src|href)="?(https?:)?//' build/docs --include='*.html'

accept: .venv/.dev ## measure what the project promises and write docs/acceptance.md (SPINE_REAL_DATA for the real exams)
	$(BIN)/spine-engine bench acceptance --markdown docs/acceptance.md

eval-detector: .venv/.all ## five detectors, each judged on the fifth of DATA it never saw; writes docs/detector.md; hours
	for fold in 0 1 2 3 4; do \
	  $(BIN)/spine-engine train detector --data $(DATA) --out build/fold$$fold --fold $$fold --epochs 6 --resume || exit 1; \
	done
	$(BIN)/python -m spine_training.detector cross-validate "build/fold{fold}/last.pt" --data $(DATA) --crops --markdown docs/detector.md

eval-grader: .venv/.all ## the packaged bundle on 400 phantoms that no training saw, from DICOM on disk, then scored
	rm -rf build/eval
	$(BIN)/spine-engine phantom --studies 400 --seed 7700 --output build/eval/set
	$(BIN)/spine-engine run --input build/eval/set --output build/eval/results
	$(BIN)/spine-engine evaluate --predictions build/eval/results/predictions.csv --truth build/eval/set/train.csv --out build/eval/report

detector: .venv/.all ## train the disc detector on DATA (lumbar-mri/, spider-slices/) and phantoms; hours
	$(BIN)/spine-engine train detector --data $(DATA) --out build/detector-1 --fold -1 --phantoms 60 --resume
	$(BIN)/spine-engine train detector --data $(DATA) --out build/detector --fold -1 --phantoms 60 --seed 7 --epochs 10 --learning-rate 1.2e-3 --start build/detector-1/last.pt --resume

grader: .venv/.all ## train both graders on phantoms; hours
	$(BIN)/spine-engine train grader --phantoms 600 --cache build/grids --out build/grader --resume
	$(BIN)/spine-engine train whole-study --phantoms 600 --cache build/grids --out build/whole-study --epochs 6 --resume

bundle: .venv/.all ## write the packaged bundle from what the two targets above trained, with its card
	$(BIN)/spine-engine export bundle --detector build/detector/last.pt --grader build/grader/last.pt --card training/lumbar-small.card.json --name lumbar-small --version 0.2.3 --out engine/spine_engine/bundle/packaged/lumbar-small

bench: .venv/.bench ## the engine beside what people use today, on phantoms; writes docs/benchmarks.md; 15 minutes on 2 cores
	mkdir -p build/bench
	$(BIN)/spine-engine bench --seconds $(BENCH_SECONDS) --out build/bench/result.json --chart docs/benchmarks.svg --markdown docs/benchmarks.md

same: .venv/.run ## do BASE, a git revision, and this tree give the same bytes on phantoms and in DATA, and which is faster?
	$(BIN)/spine-engine bench same --base $(BASE) $(if $(findstring command,$(origin DATA)),--data $(DATA))

faults: .venv/.run ## 200 runs in which workers die, stages raise and studies hang: is every study recorded once? 20 minutes
	$(BIN)/spine-engine bench faults --trials 200

scale: .venv/.run ## runs over 50 and over 5,000 thin studies: rate, memory, first result, resuming; 10 minutes
	$(BIN)/spine-engine bench scale

report: .venv/.dev ## the report of a run over 1,000 studies: seconds, sizes of pages, opening in a browser; 6 minutes, 9 GB
	$(BIN)/spine-engine bench report

pictures: .venv/.all ## the pictures of the README and of docs/report.md (needs a chromium)
	$(BIN)/spine-engine bench pictures

viewer: ## build the 3-D view of the pages again (needs node and npm)
	cd engine/spine_engine/report/viewer && npm ci --no-audit --no-fund --ignore-scripts && npm run build && rm -rf node_modules

families: .venv/.all ## export every family of backbones, run it in every runtime here, write docs/families.md; 40 minutes
	$(BIN)/spine-engine bench families --markdown docs/families.md

train-demo: .venv/.all ## from nothing to a bundle on a CPU: 40 phantom studies, two trainings, a run, its score
	rm -rf build/demo
	$(BIN)/spine-engine phantom --studies 40 --seed 11 --output build/demo/set
	$(BIN)/spine-engine phantom --studies 8 --seed 12 --output build/demo/unseen
	$(BIN)/spine-engine train detector --data build/demo/set --out build/demo/detector --fold -1 --epochs 4
	$(BIN)/spine-engine train grader --data build/demo/set --detector build/demo/detector/last.pt --out build/demo/grader --epochs 8
	$(BIN)/spine-engine export bundle --detector build/demo/detector/last.pt --grader build/demo/grader/last.pt --name demo --out build/demo/bundle
	$(BIN)/spine-engine run --input build/demo/unseen --bundle build/demo/bundle --output build/demo/results
	$(BIN)/spine-engine evaluate --predictions build/demo/results/predictions.csv --truth build/demo/unseen/train.csv

lock: .venv/.bootstrap ## solve the requirements again
	$(UV) pip compile --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header requirements/bootstrap.in -o requirements/bootstrap.txt
	$(UV) pip compile --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header -c requirements/bounds.in pyproject.toml -o requirements/run.txt
	$(UV) pip compile --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header -c requirements/bounds.in pyproject.toml --extra dev -c requirements/run.txt -o requirements/dev.txt
	$(UV) pip compile --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header -c requirements/bounds.in pyproject.toml --extra dev --extra train --extra viz --extra int8 --extra tensorrt-rtx -c requirements/dev.txt -o requirements/all.txt
	$(UV) pip compile --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header -c requirements/bounds.in pyproject.toml --extra bench --extra baselines -c requirements/all.txt -o requirements/bench.txt
	$(UV) pip compile --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header -c requirements/bounds.in pyproject.toml --extra mutants -c requirements/all.txt -o requirements/mutants.txt
	$(UV) pip compile --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header -c requirements/bounds.in pyproject.toml --extra docs -c requirements/all.txt -o requirements/docs.txt

clean: ## remove what the targets made
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache
