# Needs Python 3.11 to 3.13 with venv, and make. `PYTHON=python3.12 make ...` chooses another Python.
# The tests need torch: a CPU build is enough, and pip's own settings (PIP_FIND_LINKS, PIP_EXTRA_INDEX_URL) choose it.

PYTHON ?= python3
PROMPT ?= red apple
VENV := .venv
BIN := $(VENV)/bin
export PROMPT

.PHONY: picture test clients lint docs clean

picture: $(VENV)/.base  ## make a picture here: make picture PROMPT="red apple"
	@$(BIN)/imagewright generate -- "$$PROMPT"

test: $(VENV)/.test  ## run the tests
	@$(BIN)/python -m pytest

clients: $(VENV)/.test  ## make the environments of the clients that are quick to get, for the tests to run them
	@$(BIN)/python scripts/clients.py openai-legacy openai $$(command -v npm >/dev/null && echo node)

lint: $(VENV)/.dev  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.base  ## write docs/cli.md again
	$(BIN)/python scripts/cli_docs.py

clean:  ## remove the virtual environment
	rm -rf $(VENV)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
	  { echo "error: $(PYTHON) is not Python 3.11 to 3.13; try: make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.test $(VENV)/.dev: $(VENV)/.%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$*]'
	@touch $@ $(VENV)/.base
