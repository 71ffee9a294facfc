# Everything runs inside .venv, which is made again when the files it depends on change.
#   make PYTHON=python3.12 test PYTEST_ARGS="-k cem"

PYTHON ?= python3
DEMO_ARGS ?=
PYTEST_ARGS ?=
# Processes of the test suite; each one runs torch with a single thread. 0: no extra process (for a debugger).
WORKERS ?= auto

ROOMS := agent worldmodel envs planners configs
STAMP := .venv/.stamp

# uv does not read pip's settings; whoever has set them (a mirror, a folder of wheels) gets them here too.
empty :=
comma := ,
ifneq ($(strip $(PIP_FIND_LINKS)),)
export UV_FIND_LINKS ?= $(subst $(empty) $(empty),$(comma),$(strip $(PIP_FIND_LINKS)))
endif
ifneq ($(strip $(PIP_INDEX_URL)),)
export UV_DEFAULT_INDEX ?= $(PIP_INDEX_URL)
endif
ifneq ($(strip $(PIP_EXTRA_INDEX_URL)),)
export UV_INDEX ?= $(PIP_EXTRA_INDEX_URL)
endif

.DEFAULT_GOAL := help
.PHONY: help demo test check lint types format typings clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

demo: $(STAMP) ## the demonstration of the README (DEMO_ARGS="...")
	@.venv/bin/forethought demo $(DEMO_ARGS)

test: $(STAMP) ## all tests (PYTEST_ARGS="-k name", WORKERS=0 for one process)
	@.venv/bin/pytest -n $(WORKERS) --maxprocesses 8 --dist loadgroup $(PYTEST_ARGS)

check: lint types test ## what CI runs: format, lint, types, tests

lint: $(STAMP) ## formatting and lint, nothing is rewritten
	@.venv/bin/ruff format --check --output-format concise . || { echo "run: make format"; exit 1; }
	@.venv/bin/ruff check .

types: $(STAMP) typings ## mypy
	@.venv/bin/mypy

format: $(STAMP) ## rewrite the files: fixable lint, then formatting
	@.venv/bin/ruff check --fix --quiet --exit-zero .
	@.venv/bin/ruff format .

# Type checkers do not read setup.py's mapping of root folders to sub-packages; they see this folder of links.
typings: ## put the links under typings/ in order (after adding or removing a module of forethought/)
	@mkdir -p typings/forethought
	@cd typings/forethought \
		&& for link in *; do [ -e "$$link" ] || rm -f "$$link"; done \
		&& for target in $(ROOMS:%=../../%) ../../forethought/*.py; do \
			[ -L "$${target##*/}" ] || ln -s "$$target" .; \
		done

clean: ## remove build products and caches; .venv and runs stay
	@rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .coverage
	@find $(ROOMS) forethought tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

$(STAMP): pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "forethought needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." \
			"Name another one: make PYTHON=python3.12"; exit 1; }
	@echo "Setting up .venv (once; about a minute, longer where torch has to be downloaded) ..."
	@$(PYTHON) -m venv .venv || { \
		echo "No virtual environment could be made; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@if .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv; then \
		.venv/bin/uv pip install --quiet --python .venv/bin/python --compile-bytecode \
			-c constraints.txt --build-constraints constraints.txt -e '.[dev]'; \
	else \
		echo "uv cannot be installed here; pip does it, more slowly."; \
		.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'; \
	fi
	@touch $@
