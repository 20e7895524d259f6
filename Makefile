# SPIRA continuous training. `make help` explains every target.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
MODEL := .venv/model
ORCHESTRATION := .venv/orchestration
BIN := $(MODEL)/bin
PIP := -m pip install -qq --disable-pip-version-check --no-input
LOCKED := --no-deps --require-hashes -r
OTHERS := var/bench/others
ENVIRONMENTS := $(MODEL)/.made $(ORCHESTRATION)/.made
QUICK := not slow and not torchserve and not airflow and not docker
PROOFS := tests/e2e/test_audit.py tests/e2e/test_real_recordings.py tests/data/test_coughs.py
STACKS := tests/e2e/test_compose.py tests/e2e/test_scheduler.py tests/e2e/test_stack.py
TESTS := $(MODEL)/.made-tests $(ORCHESTRATION)/.made-tests

.PHONY: help demo demo-docker demo-process images deliver up down status compose-up compose-down compose-status
.PHONY: environments test test-stacks test-code test-serve test-proofs test-orchestration test-quick lint format params
.PHONY: locks bench bench-serve clean distclean

help:  ## Explain every target
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "  \033[1m%-15s\033[0m %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  Ports: AIRFLOW_PORT, MLFLOW_PORT, GATEWAY_PORT, APP_PORT, INFERENCE_PORT, MANAGEMENT_PORT, METRICS_PORT (free ones are found)."
	@echo "  Data: SPIRA_VAR (var/), SPIRA_LAKE (var/lake).  Python 3.11: PYTHON."

demo:  ## Simulate a lake, backfill it through the whole pipeline, serve the model, ask it
	@$(MAKE) --no-print-directory demo-$${SPIRA_RUNTIME:-$$(docker version >/dev/null 2>&1 && echo docker || echo process)}

demo-docker:
	@$(MAKE) --no-print-directory -j2 $(MODEL)/.made images
	@SPIRA_RUNTIME=docker $(BIN)/python -m local.demo

demo-process: environments
	@SPIRA_RUNTIME=process $(BIN)/python -m local.demo

up: environments  ## Start the whole stack on this machine, Airflow to app, and keep it running
	@$(BIN)/python -m local.stack up

down:  ## Stop what `make up` started; the data stays
	@if test -x $(BIN)/python; then $(BIN)/python -m local.stack down; else echo "nothing was running"; fi

status:  ## Say what runs and where, which model is served, since when and why
	@if test -x $(BIN)/python; then $(BIN)/python -m local.stack status; else echo "not running; 'make up' starts it"; fi

images:  ## Build the container images (VARIANT=cuda for GPUs; images/build.py explains BASE, CA_BUNDLE, WHEELS)
	@$(PYTHON) images/build.py

deliver:  ## Copy a lake's recordings (FROM=folder) into the lake of the stack in containers
	@$(PYTHON) -m local.volumes deliver $(FROM)

compose-up:  ## Start the stack in containers (after `make images`) and wait until it is healthy
	@$(PYTHON) -m local.compose up

compose-down:  ## Stop the stack in containers; the data stays in the engine's volumes
	@$(PYTHON) -m local.compose down

compose-status:  ## Say what runs in containers, how and where, which model is served, since when and why
	@$(PYTHON) -m local.compose status

environments:  ## Create the two locked Python environments, side by side
	@$(MAKE) --no-print-directory -j2 $(ENVIRONMENTS)

test: environments  ## Run every test in the environment it belongs to
	@$(MAKE) --no-print-directory -j2 $(TESTS)
	@$(MAKE) --no-print-directory -j2 --output-sync=target test-stacks test-code test-serve test-proofs test-orchestration

# Whole stacks mostly wait for services; they come first, and all else runs beside them in one lane.
test-stacks:
	$(BIN)/python -m pytest $(STACKS)

test-code:
	$(BIN)/python -m pytest tests $(addprefix --ignore ,tests/dags tests/engine tests/serve $(PROOFS) $(STACKS))

test-serve:
	$(BIN)/python -m pytest tests/serve

test-proofs:
	$(BIN)/python -m pytest $(PROOFS)

test-orchestration:
	$(ORCHESTRATION)/bin/python -m pytest tests/dags tests/engine --confcutdir tests/dags

test-quick: environments  ## Run the tests that start no service
	@$(MAKE) --no-print-directory -j2 $(TESTS)
	$(BIN)/python -m pytest tests --ignore tests/dags --ignore tests/engine -m "$(QUICK)"
	$(ORCHESTRATION)/bin/python -m pytest tests/dags tests/engine --confcutdir tests/dags -m "$(QUICK)"

lint: $(MODEL)/.made-tests  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(MODEL)/.made-tests  ## Bring the code into its common form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

params: $(MODEL)/.made  ## Write dags/params.json, the trigger form, from the configuration's fields
	$(BIN)/spira-train schema > dags/params.json

locks:  ## Pin every version again: requirements/*.in -> requirements/*.lock
	@tools=$$(mktemp -d) && trap 'rm -rf "$$tools"' EXIT && \
	$(PYTHON) -m venv $$tools && $$tools/bin/python $(PIP) uv && cd requirements && \
	compile="$$tools/bin/uv pip compile --quiet --python-version 3.11 --generate-hashes --no-header --no-annotate" && \
	$$compile model.in -o model.lock && \
	$$compile machine.in -c model.lock -o machine.lock && \
	$$compile mlflow.in -c model.lock -o mlflow.lock && \
	$$compile gateway.in -c model.lock -o gateway.lock && \
	$$compile app.in -c model.lock -c gateway.lock -o app.lock && \
	$$compile nats.in -c machine.lock -o nats.lock && \
	$$compile bench.in -c model.lock -c gateway.lock -o bench.lock && \
	$$compile orchestration.in -o orchestration.lock && \
	$$compile engine-proxy.in -c orchestration.lock -o engine-proxy.lock && \
	$$compile test-model.in -c model.lock -c gateway.lock -c app.lock -o test-model.lock && \
	$$compile test.in -c orchestration.lock -o test-orchestration.lock

bench: environments  ## Measure every step and print one table
	$(BIN)/python -m bench

bench-serve: environments $(OTHERS)/.made  ## Measure serving, beside a first handler, LitServe and other ways (needs wrk)
	$(BIN)/python -m bench.serve
	PYTHONPATH=$(OTHERS) $(BIN)/python -m bench.serve.ways

$(OTHERS)/.made: requirements/bench.lock $(MODEL)/.made
	@rm -rf $(OTHERS)
	@$(BIN)/python $(PIP) --target $(OTHERS) $(LOCKED) requirements/bench.lock
	@touch $@

clean: down  ## Stop the stack and delete what it kept under var/, recordings and models included
	@test ! -e var/compose.env || $(PYTHON) -m local.compose down
	rm -rf var

distclean: clean  ## Delete the environments as well
	rm -rf .venv

# torch has no hash: its CPU and CUDA builds differ, and the second alone needs NVIDIA's libraries beside it. torchaudio's
# compiled parts load only with the torch build that they were linked to; without them its pure-torch transforms work,
# and we use no others.
$(MODEL)/.made: requirements/model.lock requirements/machine.lock requirements/gateway.lock requirements/app.lock \
    requirements/torch.txt pyproject.toml
	$(call venv,$(MODEL))
	@$(BIN)/python $(PIP) $(LOCKED) requirements/model.lock
	@$(BIN)/python $(PIP) $(LOCKED) requirements/machine.lock
	@$(BIN)/python $(PIP) $(LOCKED) requirements/gateway.lock
	@$(BIN)/python $(PIP) $(LOCKED) requirements/app.lock
	@$(BIN)/python $(PIP) --no-deps -r requirements/torch.txt
	@$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/python $(PIP) -r requirements/torch.txt
	@$(BIN)/python -c "import torchaudio" 2>/dev/null || rm -f $(MODEL)/lib/python3.11/site-packages/torchaudio/lib/*.so
	@$(BIN)/python -c "import torchaudio"
	@$(BIN)/python $(PIP) --no-deps --no-build-isolation -e .
	@touch $@

$(ORCHESTRATION)/.made: requirements/orchestration.lock
	$(call venv,$(ORCHESTRATION))
	@$(ORCHESTRATION)/bin/python $(PIP) $(LOCKED) requirements/orchestration.lock
	@touch $@

$(MODEL)/.made-tests: requirements/test-model.lock $(MODEL)/.made
	@$(BIN)/python $(PIP) $(LOCKED) requirements/test-model.lock
	@touch $@

$(ORCHESTRATION)/.made-tests: requirements/test-orchestration.lock $(ORCHESTRATION)/.made
	@$(ORCHESTRATION)/bin/python $(PIP) $(LOCKED) requirements/test-orchestration.lock
	@touch $@

# $(1): the environment's folder
define venv
@test -n "$(PYTHON)" && $(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || \
	{ echo "Python 3.11 is needed, and '$(PYTHON)' is not it. Name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
@echo "making $(1) ..."
@test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
endef
