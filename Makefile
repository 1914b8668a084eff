# Works on a fresh clone: every target first installs what it needs, once, into .venv.
#
#   make serve [PORT=8000] [ARGS="..."]    serve the default model, or the one named in ARGS
#   make test | test-slow | test-cuda | lint | bench   [ARGS="..."]
#   make audit                             known vulnerabilities of what is installed
#   make install | install-dev | clean
#
# PYTHON chooses the interpreter that .venv is made with, e.g. make PYTHON=python3.12 serve

PYTHON ?= python3
PORT ?= 8000
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

# What is done is stamped, so that a second run does nothing. The stamps go with .venv.
CREATED := $(VENV)/.created
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev
DEFAULT_MODEL := $(VENV)/.default-model

.DEFAULT_GOAL := help
.PHONY: help serve test test-slow test-cuda lint bench audit install install-dev clean

help:
	@sed -n 's/^#   //p' Makefile

# exec: Ctrl-C and SIGTERM reach the server itself and no shell in between.
serve: $(DEFAULT_MODEL)
	@exec $(BIN)/vllm-cli serve --port $(PORT) $(ARGS)

bench: $(DEFAULT_MODEL)
	@exec $(BIN)/vllm-cli bench serve --cmd "$(BIN)/vllm-cli serve" $(ARGS)

test: $(INSTALLED_DEV) $(DEFAULT_MODEL)
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

test-slow: $(INSTALLED_DEV) $(DEFAULT_MODEL)
	$(BIN)/python -m pytest -m slow $(ARGS)

test-cuda: $(INSTALLED_DEV)
	$(BIN)/python -m pytest tests/cuda $(ARGS)

lint: $(INSTALLED_DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

audit: $(INSTALLED_DEV)
	.ci/audit $(VENV)

install: $(DEFAULT_MODEL)

install-dev: $(INSTALLED_DEV)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find . -name .peers -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

$(CREATED):
	@command -v $(PYTHON) >/dev/null || \
	  { echo "$(PYTHON) is not installed; on Debian: sudo apt install python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is $$($(PYTHON) --version 2>&1); 3.11 or newer is needed: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "$(PYTHON) cannot make virtual environments; on Debian: sudo apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(INSTALLED): pyproject.toml constraints.txt | $(CREATED)
	@echo "Installing vllm-cli into $(VENV): this takes some minutes the first time."
	$(PIP) install -c constraints.txt -e .
	@touch $@

$(INSTALLED_DEV): pyproject.toml constraints.txt | $(INSTALLED)
	$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

$(DEFAULT_MODEL): | $(INSTALLED)
	$(BIN)/python -m startup.model.default_model
	@touch $@
