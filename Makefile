# Targets for people and machines; `make` alone lists them.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
PYTEST_OPTIONS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test check bench trial trial-text trial-cluster cluster-up cluster-down cluster-demo golden docs clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-12s %s\n", $$1, $$2 }'

install: $(STAMP) ## make .venv with everything, as constraints.txt pins it

$(STAMP): setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e '.[all,dev]'
	touch $@

demo: $(STAMP) ## label, train and report on a small data set
	$(BIN)/decant demo

test: check ## check, then every test
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'not trial' $(PYTEST_OPTIONS)

check: $(STAMP) ## lint, format, types and the import law
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP) ## measure sizes and speeds
	$(BIN)/python -m tests.benchmarks

trial: $(STAMP) ## train real students on Fashion-MNIST, with and without labels from a teacher
	$(BIN)/python -m tests.trials.fashion_mnist

trial-text: $(STAMP) ## the same on SST-2 and, with a real language model, on tinyshakespeare
	$(BIN)/python -m tests.trials.sst2
	$(BIN)/python -m tests.trials.stories

trial-cluster: $(STAMP) ## label on Spark, on Prism and on a Flink cluster with faults (needs Java 17, Maven and Go; an hour)
	$(BIN)/python -m tests.trials.engines
	$(BIN)/python -m tests.trials.cluster_faults

cluster-up: $(STAMP) ## play a Flink cluster of two hosts on this machine (needs Java 17 and Maven)
	$(BIN)/python -m cluster up

cluster-down: $(STAMP) ## take it down
	$(BIN)/python -m cluster down
	$(BIN)/python -m cluster down --folder runs/cluster-demo

cluster-demo: $(STAMP) ## label pictures on such a cluster and compare every digest with a local run
	$(BIN)/python -m cluster demo

golden: $(STAMP) ## write the golden files of the current format version
	$(BIN)/python -m tests.golden

docs: $(STAMP) ## write docs/configuration.md from the config classes
	$(BIN)/python -m storage.config.reference > docs/configuration.md

clean: ## remove caches and build outputs; .venv and runs/ stay
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name $(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
