# Thin front of the project's commands. Everything lands in .venv (and .venvs for the real engines
# and the released peers); nothing outside this folder is changed.

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.stamps
SRC    := router scorers envoy src/warmlane/__init__.py src/warmlane/__main__.py
CORE   := $(wildcard src_ext/*.pyx src_ext/*.pxd src_ext/*.h src_ext/h2/*.pyx src_ext/h2/*.pxd src_ext/h2/*.h)
# One stamp for each way to build, so that a change of the switch builds everything again.
NATIVE := $(filter-out 0,$(WARMLANE_NATIVE))
BUILT  := $(STAMP)/core$(if $(NATIVE),-native)
OTHER  := $(STAMP)/core$(if $(NATIVE),,-native)
H2     := src_ext/h2/connection.*.so

SHELL       := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# `python -m` must not put this folder on sys.path: `import router` would find our router/.
export PYTHONSAFEPATH := 1
# cython-lint looks for pycodestyle on PATH, pyright for the python whose packages it reads.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: help setup build native run envoy test test-vllm lint manifests bench bench-policies clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: build ## create .venv and install everything the other targets need

build: $(BUILT) ## compile the core in place; WARMLANE_NATIVE=1: for this CPU only, not portable

native: ## build with the native ext-proc transport; installs libnghttp2-dev where it can (apt, root)
	@deploy/install_nghttp2.sh
	@$(MAKE) --no-print-directory $(STAMP)/installed
	WARMLANE_H2=1 $(PY) setup.py -q build_ext --inplace
	@touch $(BUILT)

run: build ## four embedded replicas and the router on a slice of a trace (TRACE=FILE to choose)
	$(PY) -m warmlane demo $(if $(TRACE),--trace "$(TRACE)")

envoy: build ## a real Envoy, the endpoint picker and fake engines on this machine (PORT=8080)
	@PYTHONPATH=. $(PY) -m tests.envoy_e2e.install
	$(PY) deploy/local/run.py $(if $(PORT),--port $(PORT))

test: lint ## the linters, then every test that needs no real engine
	@ls $(H2) >/dev/null 2>&1 || echo "make: the native ext-proc transport is not built here:" \
	    "its tests are skipped ('make native' installs libnghttp2-dev and builds it)" >&2
	$(PY) -m pytest -m "not vllm"

test-vllm: build ## the router in front of two real vLLM engines (fetches about 600 MB once)
	$(PY) -m pytest -m vllm -s tests/e2e

lint: build ## ruff, mypy strict, pyright, cython-lint
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/pyright --warnings
	$(VENV)/bin/cython-lint src_ext

manifests: build ## write deploy/kubernetes/ anew from the Helm chart
	PYTHONPATH=. $(PY) -m tests.deploy.tools

bench: build ## the bars: core, decision, proxy; exits non-zero when one falls short (ARGS=--quick)
	PYTHONPATH=. $(PY) -m benchmarks $(ARGS)

bench-policies: build ## policies against each other in the lab; resumable; QUICK=1: a few minutes
	PYTHONPATH=. $(PY) -m benchmarks.bench_policies $(if $(QUICK),--quick) $(ARGS)

clean: ## remove what was built, and the virtual environments
	rm -rf build dist .venv .venvs .cache src/*.egg-info .mypy_cache .ruff_cache .pytest_cache
	find src_ext -name '*.so' -delete -o -name '*.c' -delete -o -name '*.html' -delete

$(STAMP)/venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "make: warmlane needs Python 3.11 or later; $(PYTHON) is $$($(PYTHON) -V 2>&1)." \
	         "Choose another one with: make PYTHON=python3.12" >&2; exit 2; }
	@command -v $${CC:-cc} >/dev/null || { \
	    echo "make: no C compiler ($${CC:-cc}) found: the core is compiled on this machine." \
	         "Install one (Debian: apt install gcc libc6-dev, Fedora: dnf install gcc)" \
	         "or name it with CC=..." >&2; exit 2; }
	@$(PYTHON) -c 'import pathlib, sys, sysconfig; \
	    sys.exit(not (pathlib.Path(sysconfig.get_path("include")) / "Python.h").exists())' || { \
	    echo "make: the C headers of $$($(PYTHON) -V) are missing" \
	         "(Debian: apt install python3-dev, Fedora: dnf install python3-devel)" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { \
	    echo "make: $(PYTHON) cannot make a virtual environment" \
	         "(Debian: apt install python3-venv)" >&2; exit 2; }
	@mkdir -p $(STAMP) && touch $@

$(STAMP)/installed: pyproject.toml setup.py | $(STAMP)/venv
	$(VENV)/bin/pip install -qq --disable-pip-version-check -e '.[test,lint]'
	@touch $@

$(BUILT): $(STAMP)/installed $(CORE)
	$(PY) setup.py -q build_ext --inplace $(if $(wildcard $(OTHER)),--force)
	@rm -f $(OTHER) && touch $@
