# `make demo` runs the main job, `make test` the tests; each sets itself up in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint types sanitize slow aot clean
demo: $(VENV)/installed
	$(BIN)/perilune demo

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest

lint: $(VENV)/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/installed-dev
	$(BIN)/mypy

# The kernel tests under the address and undefined-behaviour sanitizers; builds the extension once more.
sanitize: $(VENV)/installed-dev
	tools/sanitize.sh

# Soaks and long runs, by hand: docs/testing.md
slow: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m slow --timeout 3600

# Every GPU kernel compiled for every target, and the report of it that tests compare with: docs/gpu.md
aot: $(VENV)/installed-dev
	$(BIN)/perilune ops --aot gfx1151,gfx942,gfx950,sm_90 --json > docs/aot.json

$(VENV)/bin/python:
	$(PYTHON) tools/check_python.py
	$(PYTHON) -m venv $(VENV)

BUILT_FROM := pyproject.toml requirements.lock CMakeLists.txt $(wildcard csrc/*)

$(VENV)/installed: $(VENV)/bin/python $(BUILT_FROM)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/bin/python $(BUILT_FROM)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[dev]'
	touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) build dist
