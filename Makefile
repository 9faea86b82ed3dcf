# Everything here makes its own environment (.venv): it needs Python 3.11 and make, no root, nothing activated.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
UV ?= $(shell command -v uv || echo .venv-tools/bin/uv)
BIN := .venv/bin
READY := .venv/.ready
PEERS := .venv/.peers

export UV_SYSTEM_CERTS := 1
unexport PYTHONDONTWRITEBYTECODE PYTHONHOME PYTHONPATH VIRTUAL_ENV

.DEFAULT_GOAL := help
.PHONY: help setup demo down test check bench minio lock clean

help: ## this list
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{ printf "%-14s %s\n", $$1, $$2 }'

setup: $(READY) ## make the environment (.venv) from the lock

demo: setup ## take real turbines' data once round the whole loop; the platform stays up to be looked at
	@$(BIN)/fieldloop demo

down: setup ## stop the platform; its data stays
	@$(BIN)/fieldloop down

test: setup ## run the tests on real services, two at a time; ARGS="-k broker" picks some
	@command -v chromium > /dev/null || echo "no chromium here: the browser tests are skipped; Debian and Ubuntu: sudo apt-get install chromium"
	@$(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder $(ARGS)

check: setup ## lint, format, types and import layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: $(PEERS) ## list the benchmarks; NAME=loop runs one
	@$(BIN)/python -m benchmarks $(NAME)

minio: setup ## build the MinIO object store into the user's cache folder, once, about three minutes
	@$(BIN)/fieldloop minio

lock: $(UV) ## resolve the dependencies anew into the three locks
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --extra platform --group dev pyproject.toml -o requirements.lock
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --extra platform --group dev --group bench pyproject.toml -o requirements-bench.lock
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header pyproject.toml -o requirements-edge.lock

clean: ## remove the environment and all caches; data stays
	rm -rf .venv .venv-tools .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis tests/output
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): requirements.lock pyproject.toml | $(UV)
	@test -n "$(PYTHON)" || { echo "no python3.11 on PATH: install Python 3.11, or say make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and f"{sys.executable} is Python {sys.version.split()[0]}; Fieldloop needs 3.11: make PYTHON=/path/to/python3.11")'
	@echo "making .venv: about 1.4 GB, from 10 seconds to a few minutes by the network"
	@test -x $(BIN)/python || $(UV) venv --quiet --python $(PYTHON) .venv
	@$(UV) pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock & pid=$$!; \
	 while kill -0 $$pid 2> /dev/null; do sleep 1; n=$$((n + 1)); [ $$((n % 5)) -ne 0 ] || echo "  ... $$n s, installing"; done; wait $$pid
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

$(PEERS): requirements-bench.lock $(READY)
	@echo "adding what the benchmarks compare with"
	@$(UV) pip install --quiet --python $(BIN)/python --require-hashes -r requirements-bench.lock
	@touch $@

.venv-tools/bin/uv:
	@test -n "$(PYTHON)" || { echo "no python3.11 on PATH: install Python 3.11, or say make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "no uv on PATH: installing it into .venv-tools"
	@$(PYTHON) -m venv .venv-tools
	@.venv-tools/bin/python -m pip install --quiet --disable-pip-version-check uv
