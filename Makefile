# Two commands do everything on a fresh machine: `make run` and `make test`.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: run test test-unit check format bench bench-planners clean install demo-model help

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

install: $(STAMP) ## Make the environment in .venv; made again only when the lock changes

# torch comes through pip, which finds a local or CPU build where one is configured; uv installs the rest from the lock.
$(STAMP): requirements.lock
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep -E '^(uv|torch)==' requirements.lock)
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	touch $(STAMP)

run: $(STAMP) ## Study the embedded demo model: plan, compress, measure, Pareto frontier
	$(BIN)/acf run --config configs/studies/demo.yaml

test: $(STAMP) ## The whole test suite
	$(BIN)/python -m pytest

test-unit: $(STAMP) ## The quick tests
	$(BIN)/python -m pytest tests/unit tests/contracts -m "not slow"

check: $(STAMP) ## Formatting, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## Format the code and mend what lint can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP) ## Benchmarks: ratios against a floor or a baseline, within one run
	$(BIN)/python -m benchmarks.frontier
	$(BIN)/python -m benchmarks.orchestration
	$(BIN)/python -m benchmarks.rungs
	$(BIN)/python -m benchmarks.deployed_decode

bench-planners: $(STAMP) ## Every planner replayed on recorded results: who finds the frontier in fewer episodes
	$(BIN)/python -m benchmarks.planners

demo-model: $(STAMP) ## Train the demo model again from scratch (about 20 minutes on 2 cores)
	$(BIN)/python scripts/train_demo_model.py

clean: ## Remove caches and build outputs; data/ and .venv stay
	rm -rf build dist *.egg-info .ruff_cache .mypy_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
