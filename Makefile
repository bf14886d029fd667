# One step each on a machine that has python3 (3.11 or newer), make and nothing else.
PYTHON ?= python3
BIN := .venv/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable

.PHONY: demo test test-ends bench cookbooks

demo: .venv/installed
	$(BIN)/foreal demo $(ARGS)

test: .venv/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pytest -q --numprocesses auto --dist worksteal $(ARGS)

bench: .venv/installed
	$(BIN)/foreal bench --ratios $(ARGS)

# Runs the notebooks again and keeps their output.
cookbooks: .venv/installed-dev
	$(BIN)/python cookbooks/execute.py $(ARGS)

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP_INSTALL) .
	touch $@

.venv/installed-dev: .venv/installed
	$(PIP_INSTALL) '.[dev]'
	touch $@

# The tests with each transformers that constraints.txt names as an end of what is allowed; a newer
# one is tried by its number: make test-ends ENDS=5.25.0
ENDS ?= $(shell sed -n 's/^\# transformers is also tested at: //p' constraints.txt)
test-ends: $(ENDS:%=.venv-%/tested)

.venv-%/tested: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-$*
	sed -e 's/^transformers==.*/transformers==$*/' -e '/^huggingface_hub==/d' constraints.txt > .venv-$*/constraints.txt
	.venv-$*/bin/python -m pip install --quiet --constraint .venv-$*/constraints.txt --editable '.[dev]'
	.venv-$*/bin/pytest -q --numprocesses auto --dist worksteal $(ARGS)
	touch $@
