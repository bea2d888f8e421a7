# The commands of this project; `make` alone lists them. Set PYTHON to choose the interpreter, ARGS to pass options on.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
BIN := .venv/bin
PACKAGES := shared service evolver deploy tests

.PHONY: help setup demo up test unit faults bench results lint audit format clean

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

setup: ## the environment in .venv (does nothing when it is up to date)
	@deploy/local/setup.sh

demo: setup ## the whole loop on a generated store, in a few minutes
	@$(BIN)/evorec demo $(ARGS)

up: setup ## Redis, worker and service on this machine
	@$(BIN)/evorec up $(ARGS)

test: lint ## linters, types, import walls, then every test
	@$(BIN)/python -m pytest $(ARGS)

unit: setup ## the tests without I/O
	@$(BIN)/python -m pytest tests/unit $(ARGS)

faults: setup ## processes killed, disks full, bytes flipped: every promise of docs/reliability.md, at full size: an hour and a half
	@FAULTS=full $(BIN)/python -m pytest tests/faults --timeout 1800 $(ARGS)
	@$(BIN)/python -m tests.faults.page

bench: setup ## the figures of docs/performance.md, in an hour and a quarter on a quiet machine
	@for part in kernels serving ingestion prefix peers scale page; do $(BIN)/python -m tests.load.$$part || exit 1; done

results: setup ## docs/results.md and docs/results-earlier.md once more from their files of results
	@$(BIN)/python -m evolver.bench.report docs/results/bench-*.json --forget docs/results/forget.json --out docs/results.md
	@$(BIN)/python -m evolver.bench.report docs/results-earlier/bench-*.json --out docs/results-earlier.md

lint: setup ## ruff, mypy and import-linter
	@$(BIN)/ruff check $(PACKAGES)
	@$(BIN)/ruff format --check $(PACKAGES)
	@$(BIN)/mypy $(PACKAGES)
	@$(BIN)/lint-imports

# Our own code is `make lint`'s: ruff's S rules are bandit's (ADR 0009 says which are not). `make` says 2 for every failure; the module's own status tells them apart.
audit: setup ## known vulnerabilities of the pinned versions; says so, and fails, where there is no data to audit with
	@$(BIN)/python -m tests.dependencies

format: setup ## ruff's formatter and its safe fixes
	@$(BIN)/ruff format $(PACKAGES)
	@$(BIN)/ruff check --fix $(PACKAGES)

clean: ## removes the environment and every cache, keeps .evorec
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build *.egg-info
