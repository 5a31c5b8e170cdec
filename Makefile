# Needs Python 3.11 or newer and make; everything else comes from the package index into .venv.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help install sweep test check format docs clean

# python3.11 is what constraints.txt was resolved with, hence first.
PYTHON ?= $(shell for name in python3.11 python3.12 python3; do \
	"$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$name" && break; done)
BIN := .venv/bin
INSTALLED := .venv/.installed
ARGS ?=

help:  ## This list
	@echo "Start with:  make sweep            a demonstration sweep, minutes on two cores"
	@echo "       then:  make sweep ARGS='space=breast cohort.root=DATA trials=12 epochs=8'"
	@echo "              make sweep ARGS=--help"
	@echo
	@grep -hE '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 18

install: $(INSTALLED)  ## The environment in .venv, exact versions from constraints.txt

sweep: $(INSTALLED)  ## Search: python -m sweep.run $(ARGS); the same command again continues
	$(BIN)/python -m sweep.run $(ARGS)

test: $(INSTALLED)  ## The whole test suite; ARGS='tests/mmpkd -k auroc' for a part
	$(BIN)/python -m pytest $(ARGS)

check: $(INSTALLED)  ## Lint, format and types, as in CI
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

format: $(INSTALLED)  ## Put code into the form that check wants
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

docs: $(INSTALLED)  ## The pages of docs/ as a site in build/docs, warnings as errors
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs

clean:  ## Remove .venv and tool caches; runs/ and cache/ stay
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Redone when the requirements change. The stamp comes last, so an interrupted install is redone too.
# uv trusts the machine's certificates, like pip: hospital networks often bring their own. Our own code is compiled too,
# because where PYTHONDONTWRITEBYTECODE is set, every worker would otherwise compile it again.
$(INSTALLED): pyproject.toml constraints.txt tests/sweep/moto.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer found: install one, or name it with make PYTHON=/path/to/python" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	$(BIN)/python -m uv pip install --quiet --compile-bytecode --system-certs --python $(BIN)/python --constraint constraints.txt --editable '.[sweep,vlm,export,dev]'
	$(BIN)/python -m compileall -q mmpkd sweep benchmarks tests
	test -x .venv/moto/bin/python || $(PYTHON) -m venv .venv/moto
	$(BIN)/python -m uv pip install --quiet --system-certs --python .venv/moto/bin/python --requirement tests/sweep/moto.txt
	@touch $@
