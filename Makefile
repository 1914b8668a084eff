# Works on a fresh clone: every target first installs what it needs, once, into .venv.
#
#   make serve [PORT=8000] [ARGS="..."]    serve the default model, or the one named in ARGS
#   make test [ARGS="..."]                 the fast tests: two minutes
#   make test-all | test-thorough          all tests that are not slow; those of them that `make test` leaves out
#   make test-slow                         tests that need vLLM, a browser or minutes
#   make figures [ARGS="--missing"]        every headline benchmark, alone on the machine; writes the pages
#   make figures ARGS="--hooks"            what each hook saves: starts with and without it; --hook NAME: one
#   make test-gpu [ARGS="--minutes 10"]    on a GPU: tests and figures, the most valuable first, in 45 minutes
#   make size                              tokens of code in each room, against the ceiling in tools/size.txt
#   make lint | format                     the linters; corrects order of imports and layout
#   make bench [ARGS="..."]                times starts of the default model with `vllm-cli bench startup`
#   make docs                              writes docs/{cli,flags}.md, docs/dev/vllm-hooks.md, and the names of our flags
#   make pictures                          takes the pictures of the page in docs with Chromium, for each release
#   make peers [PEERS="vllm@0.29.0"]       installs into .peers what slow tests compare with: vLLM for CPU, a model
#   make gpu-env                           vLLM's CUDA build (9 GB) and a stand-in for a GPU, on which no kernel runs
#   make test-gpu-stub [ARGS="-k sleep"]   tests with these two
#   make gpu-stub-starts [ARGS="--rounds 5"]  times starts with these two beside `vllm serve`, in 90 minutes
#   make gpu-stub-swaps [ARGS="--way sleep"]  times models that change places on a GPU with these two, as root
#   make test-newest [TORCH=torch] [ARGS="..."]   tests with the newest releases of all dependencies but torch
#   make test-vllm-versions [VERSIONS="0.29.0 0.31.0"]   the launcher's real tests with several versions of vLLM
#   make test-vllm-suite [ARGS="files"]    vLLM's own tests of its entrypoints; see docs/dev/changing.md
#   make imports                           what vLLM's processes import and never use, until a few requests are answered
#   make test-machines [MACHINES="trixie"] the first commands on fresh machines: Debian 12, 13, testing; as root
#   make test-containers [ARGS="-k pod"]  the images and manifests with podman and runc, a rollout under load; as root
#   make test-soak [ARGS="--minutes 60"]   half an hour of mixed load: nothing grows
#   make test JOBS=0                       the tests one after another, for -s and --pdb; see tests/README.md
#   make lock [ARGS="--upgrade"]           writes constraints.txt anew from pyproject.toml, with newer versions if need be
#   make audit                             known vulnerabilities of what is installed
#   make release                           wheel, sdist, SBOM and checksums of the last commit, in dist
#   make install | install-dev | clean
#
# PYTHON chooses the interpreter that .venv is made with, e.g. make PYTHON=python3.12 serve

PYTHON ?= python3
PORT ?= 8000
ARGS ?=
# The number of tests that run at once: one more than two cores, as many tests wait for processes and clocks.
JOBS ?= 3
PYTEST = $(BIN)/python -m pytest -n $(JOBS) --dist worksteal
# The tests of the maintainers' tools lie outside of what `make test` collects. ARGS with paths take precedence.
WITH_TOOLS = -o testpaths="tests tools"
WITH_ALONE = -o testpaths="$(shell grep -rl --include='*.py' 'mark\.alone' tests)"
# Without these folders, in which no test is fast, each worker collects sooner.
WITHOUT_SLOW = $(addprefix --ignore=tests/,cuda gpu_stub vllm_engine)
# Runs the tests that an expression of marks selects; those marked `alone` follow, one after the other. Fails if both
# parts have selected none (pytest's exit code 5).
run = @codes=; set -x; \
  $(PYTEST) $(WITH_TOOLS) -m "$(1) and not alone" $(ARGS) || codes=$$?; \
  $(PYTEST) -n 0 $(WITH_ALONE) -m "$(1) and alone" $(ARGS) || codes=$$codes$$?; \
  case $$codes in '' | 5) ;; *) exit 1 ;; esac
VERSIONS ?= 0.29.0 0.30.0 0.31.0 0.32.0 0.33.0

VENV := .venv
NEWEST_VENV := .venv-newest
# The newest may bring gigabytes for another CUDA: `make test-newest TORCH=torch` asks for it.
TORCH ?= $(shell sed -n 's/^\(torch==[^ ]*\).*/\1/p' constraints.txt)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(BIN)/python -m tools.install
STEP := $(PYTHON) -m tools.step

# What is done is stamped, so that a second run does nothing. The stamps go with .venv.
CREATED := $(VENV)/.created
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev
DEFAULT_MODEL := $(VENV)/.default-model

.DEFAULT_GOAL := help
.PHONY: help serve test test-all test-thorough test-slow figures test-gpu test-newest test-vllm-versions test-vllm-suite test-machines test-containers test-soak lint format size imports docs pictures release release-notes bench audit lock peers gpu-env test-gpu-stub gpu-stub-starts gpu-stub-swaps test-ci-vllm install install-dev clean

help:
	@sed -n 's/^#   //p' Makefile

# exec: Ctrl-C and SIGTERM reach the server itself and no shell in between.
serve: $(DEFAULT_MODEL)
	@echo 'Once the log says "ready", open http://localhost:$(PORT) in a browser, or in another terminal:'
	@echo '  $(BIN)/vllm-cli chat --url http://localhost:$(PORT)'
	@exec $(BIN)/vllm-cli serve --port $(PORT) $(ARGS)

bench: $(DEFAULT_MODEL)
	@exec $(BIN)/vllm-cli bench startup --cmd "$(BIN)/vllm-cli serve" $(ARGS)

test: $(INSTALLED_DEV) $(DEFAULT_MODEL)
	$(PYTEST) $(WITHOUT_SLOW) -m "not slow and not alone and (smoke or not thorough)" $(ARGS)

# These tests start processes and wait for them more than they compute.
test-thorough: JOBS = 5
test-thorough: $(INSTALLED_DEV) $(DEFAULT_MODEL)
	$(call run,not slow and (alone or thorough and not smoke))

test-all: $(INSTALLED_DEV) $(DEFAULT_MODEL)
	$(call run,not slow)

test-slow: $(INSTALLED_DEV) $(DEFAULT_MODEL)
	$(call run,slow and not gpu_stub and not containers)

test-gpu: $(INSTALLED_DEV)
	$(BIN)/python -m tools.gpu_figures $(ARGS)

# Needs the peers and `make gpu-env`.
figures: $(INSTALLED_DEV)
	$(BIN)/python -m tools.figures $(ARGS)

PEERS ?= vllm transformers model

peers:
	@$(PYTHON) -m tools.peers $(PEERS)

gpu-env:
	@$(PYTHON) -m tools.peers model cuda gpu-stub

# One server at a time.
test-gpu-stub: $(INSTALLED_DEV)
	$(BIN)/python -m pytest tests/gpu_stub $(ARGS)

gpu-stub-starts: $(INSTALLED_DEV)
	$(BIN)/python -m tools.gpu_stub.starts $(ARGS)

gpu-stub-swaps: $(INSTALLED_DEV)
	$(BIN)/python -m tools.gpu_stub.swaps $(ARGS)

# What `.ci/run` has time for; the rest is in `make test-slow` and `make test-gpu-stub`.
test-ci-vllm: $(INSTALLED_DEV)
	$(BIN)/python -m pytest tests/vllm_engine tests/gpu_stub -m ci_vllm $(ARGS)

# An environment of its own, upgraded each time.
test-newest: BIN = $(NEWEST_VENV)/bin
test-newest:
	@$(MAKE) --no-print-directory VENV=$(NEWEST_VENV) $(NEWEST_VENV)/.created
	$(NEWEST_VENV)/bin/python -m tools.install pip
	$(NEWEST_VENV)/bin/python -m pip --disable-pip-version-check install \
	  --upgrade --upgrade-strategy eager '$(TORCH)' -e '.[embedded,dev]'
	$(NEWEST_VENV)/bin/vllm-cli prefetch --engine embedded --download-only
	$(NEWEST_VENV)/bin/python -m pip --disable-pip-version-check list --outdated
	$(call run,not slow)

test-vllm-versions: $(INSTALLED_DEV)
	@code=0; for version in $(VERSIONS); do \
	  site=$$(dirname .peers/vllm*/lib/python3*/site-packages/vllm*-$$version*.dist-info | head -1); \
	  [ -d $$site ] || { echo "vLLM $$version: skipped, it is not installed below .peers"; continue; }; \
	  PYTHONPATH=. .peers/$$(echo $$site | cut -d/ -f2)/bin/python -m vllm_cli doctor --hooks; \
	  PEER_VLLM=$$(echo $$site | cut -d/ -f2) $(BIN)/python -m pytest -q -m versions tests/vllm_engine $(ARGS) || code=1; \
	done; exit $$code

test-vllm-suite: $(INSTALLED_DEV)
	@exec $(BIN)/python -m tools.vllm_suite $(ARGS)

# Nothing of .venv is used: the machines install their own.
test-machines:
	@$(PYTHON) -m tools.machines check $(MACHINES) $(ARGS)

# One container at a time. The first run builds images, in minutes.
test-containers: $(INSTALLED_DEV) $(DEFAULT_MODEL)
	$(BIN)/python -m pytest tests/containers $(ARGS)

# With vLLM's CUDA build: the same tool, with the environment of tests/gpu_stub/gpu_server.py.
PEER := .peers/vllm/bin/python -m vllm_cli
imports: $(INSTALLED_DEV)
	PYTHONPATH=. VLLM_CPU_KVCACHE_SPACE=1 $(BIN)/python -m tools.import_use $(ARGS) \
	  "$(PEER) serve --engine vllm .peers/model --enforce-eager --port $(PORT)" \
	  "$(PEER) wait http://127.0.0.1:$(PORT) && $(PEER) chat --quick Hi --url http://127.0.0.1:$(PORT)"

test-soak: $(INSTALLED_DEV) $(DEFAULT_MODEL)
	$(BIN)/python -m pytest -s tests/soak/test_soak.py --minutes 30 $(ARGS)

lint: $(INSTALLED_DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --config-file tests/mypy.ini
	$(BIN)/lint-imports --no-logo

# Rewrites the files; what it cannot correct is reported by `make lint`.
format: $(INSTALLED_DEV)
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

size: $(INSTALLED_DEV)
	@$(BIN)/python -m tools.size

release-notes:
	@sed -n "/^## \[$$(sed -n 's/^VERSION = "\(.*\)"/\1/p' vllm_cli/version.py)\]/,/^## \[/{/^## \[/!p}" CHANGELOG.md

RELEASE := $(VENV)/release/bin
SOURCES := build/release
# From the last commit, in `dist`: wheel, sdist, an SBOM with licenses of what a user installs, and checksums.
# Two runs on one commit give equal files. The installed wheel then serves the default model.
release: export SOURCE_DATE_EPOCH = $(shell git log -1 --format=%ct)
release: $(INSTALLED_DEV)
	@test -x $(RELEASE)/cyclonedx-py || { $(BIN)/python -m venv $(VENV)/release && PATH=$(CURDIR)/$(BIN):$$PATH $(RELEASE)/python -m tools.install cyclonedx-bom; }
	rm -rf $(SOURCES) dist && mkdir -p $(SOURCES)/sdist dist
	umask 022 && git archive HEAD | tar -x --no-same-permissions -C $(SOURCES)
	$(PIP) wheel --quiet --no-index --no-deps --no-build-isolation --wheel-dir dist $(SOURCES)
	cd $(SOURCES) && $(CURDIR)/$(BIN)/python -c 'from setuptools.build_meta import *; build_sdist("sdist")' >/dev/null
	cd $(SOURCES)/sdist && tar -xzf *.tar.gz && tar -c --sort=name --mtime=@$$SOURCE_DATE_EPOCH --owner=0 --group=0 \
	  --numeric-owner --mode=go-w */ | gzip -n >$(CURDIR)/dist/$$(basename *.tar.gz)
	$(PYTHON) -m venv $(SOURCES)/user
	PATH=$(CURDIR)/$(BIN):$$PATH $(SOURCES)/user/bin/python -m tools.install "$$(echo dist/*.whl)[embedded]"
	$(RELEASE)/cyclonedx-py environment $(SOURCES)/user/bin/python --pyproject pyproject.toml --output-reproducible -o dist/sbom.cdx.json
	cd dist && sha256sum *.whl *.tar.gz *.json >SHA256SUMS && cat SHA256SUMS
	cd $(SOURCES)/user && bin/vllm-cli bench startup --rounds 1 --cmd "bin/vllm-cli serve --engine embedded"

docs: $(INSTALLED_DEV)
	$(BIN)/python -m tools.generated_docs

pictures: $(INSTALLED_DEV) $(DEFAULT_MODEL)
	$(BIN)/python -m tools.page_pictures

AUDIT := $(VENV)/audit/bin
# Holes in functions that nothing here calls: click.edit, and torch.jit.script on code of others.
ACCEPTED := PYSEC-2026-2132 CVE-2025-3000

audit: $(INSTALLED_DEV)
	@test -x $(AUDIT)/pip-audit || { $(BIN)/python -m venv $(VENV)/audit && PATH=$(CURDIR)/$(BIN):$$PATH $(AUDIT)/python -m tools.install pip-audit; }
	$(PIP) freeze --exclude-editable | sed -n 's/^\([A-Za-z0-9._-]*==[^+ ]*\).*/\1/p' >$(VENV)/audit/installed
	$(AUDIT)/pip-audit --strict -r $(VENV)/audit/installed --no-deps --disable-pip $(ACCEPTED:%=--ignore-vuln %)

lock: | $(CREATED)
	$(BIN)/python -m tools.lock $(ARGS)

install: $(DEFAULT_MODEL)

install-dev: $(INSTALLED_DEV)

clean:
	rm -rf $(VENV) $(NEWEST_VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find . -name .peers -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

$(CREATED):
	@command -v $(PYTHON) >/dev/null || \
	  { echo "$(PYTHON) is not installed; on Debian: sudo apt install python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is $$($(PYTHON) --version 2>&1); 3.11 or newer is needed: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "$(PYTHON) cannot make virtual environments; on Debian: sudo apt install python3-venv" >&2; exit 1; }
	@$(STEP) "Creating $(VENV)" $(PYTHON) -m venv --without-pip $(VENV)
	@touch $@

# uv brings pip. Nothing is compiled here: it takes 25 seconds of processor time for 10,000 modules, of which a start imports a quarter.
$(INSTALLED): pyproject.toml setup.py constraints.txt vllm_cli/version.py | $(CREATED)
	@$(STEP) "Installing vllm-cli into $(VENV), up to some minutes for PyTorch" $(INSTALL) -e '.[embedded]'
	@touch $@

# The tests start hundreds of processes, also at once.
$(INSTALLED_DEV): pyproject.toml setup.py constraints.txt vllm_cli/version.py | $(INSTALLED)
	@$(STEP) "Installing what tests and linters need" $(INSTALL) --compile-bytecode -e '.[embedded,dev]'
	@touch $@

# While the model is prepared, a second process imports what the first start imports. So Python compiles it now.
$(DEFAULT_MODEL): | $(INSTALLED)
	@$(STEP) "Preparing the default model" sh -c "$(BIN)/python -c 'from startup.imports.heavy import import_engine; import_engine()' & \
	  $(BIN)/vllm-cli prefetch --engine embedded --download-only; code=\$$?; wait; exit \$$code"
	@touch $@
