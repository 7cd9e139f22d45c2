# MetAug Workbook. `make` lists the targets. A fresh machine needs git, make, a POSIX shell and Python 3.11-3.13.
# The environment .venv is built from requirements.lock, and again when the lock changes; nothing outside it is touched.
#   make run PYTHON=/path/to/python3.12     another Python
#   make run INSTALL=pip                    plain pip instead of uv (slower; reads your pip configuration)
# Windows without make:  py -3.12 -m venv .venv
#                        .venv\Scripts\python -m pip install -r requirements.lock
#                        .venv\Scripts\python -m pip install --no-deps --no-build-isolation -e .

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help env run lab notebooks figures site test test-fast check benchmarks gpu lock clean FORCE

ifeq ($(OS),Windows_NT)
BIN := .venv/Scripts
else
BIN := .venv/bin
endif
PY := $(BIN)/python
UV_VERSION := 0.13.9
STAMP := .venv/metaug-complete
INSTALL ?= uv
WORKERS ?= 2
AS_ROOT := $(if $(filter 0,$(shell id -u 2>/dev/null)),--allow-root)
# Not Untitled.ipynb.
NOTEBOOKS := notebooks/[0-9][0-9]_*.ipynb

ifeq ($(INSTALL),pip)
PIP := $(PY) -m pip install --quiet --disable-pip-version-check
else
PIP := $(BIN)/uv pip install --quiet --compile-bytecode --python $(PY)
endif

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-11s %s\n", $$1, $$2}' Makefile

## ---- the environment ------------------------------------------------------------------------------------------------

SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))

# Sets $$python or ends with one sentence. Candidates are run, not only looked up: a pyenv shim may exist and not work.
define find_python
python=; for p in $(if $(PYTHON),"$(PYTHON)",python3 python3.13 python3.12 python3.11 python); do \
  if "$$p" -c '$(SUPPORTED)' >/dev/null 2>&1; then python=$$p; break; fi; done; \
if [ -z "$$python" ]; then \
  echo "$(if $(PYTHON),PYTHON=$(PYTHON) does not start a Python 3.11$(COMMA) 3.12 or 3.13.,No Python 3.11$(COMMA) 3.12 or 3.13 found: install one$(COMMA) or name it with 'make PYTHON=/path/to/python3'.)" >&2; exit 1; fi; \
if ! "$$python" -c 'import venv, ensurepip' >/dev/null 2>&1; then \
  echo "$$python has no venv module: on Debian and Ubuntu install python3-venv, then run make again." >&2; exit 1; fi
endef
COMMA := ,

define new_venv
$(find_python); echo "Making .venv with $$("$$python" --version) ..."; \
"$$python" -m venv --clear .venv && \
$(if $(filter pip,$(INSTALL)),true,$(PY) -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)) || \
  { echo "Could not make .venv: the reason stands above." >&2; exit 1; }
endef

# The stamp names this folder and is written last: an interrupted build, a moved folder or a vanished Python is built again.
COMPLETE := $(shell grep -qxF "$(CURDIR)" $(STAMP) 2>/dev/null && $(PY) -c "" 2>/dev/null && echo yes)

env: $(STAMP) ## build .venv from requirements.lock (6 GB on Linux)

$(STAMP): requirements.lock pyproject.toml $(if $(COMPLETE),,FORCE)
	@rm -f $@
	@if ! cmp -s requirements.lock .venv/installed.lock || ! $(PY) -c "" 2>/dev/null; then \
	  $(new_venv); echo "Installing requirements.lock: some minutes and gigabytes the first time ..."; \
	  $(PIP) -r requirements.lock || \
	    { echo "Could not install requirements.lock: the reason stands above; 'make env' starts again." >&2; exit 1; }; \
	  cp requirements.lock .venv/installed.lock; fi
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@echo "$(CURDIR)" > $@
	@echo "The environment .venv is complete."

## ---- use ------------------------------------------------------------------------------------------------------------

run: $(STAMP) ## pretrain and evaluate the small default, then say where everything lies
	$(BIN)/metaug run notebooks/01_pretrain.ipynb
	$(BIN)/metaug run notebooks/02_evaluate.ipynb
	$(BIN)/metaug report

# The checkout is the root, not notebooks/: the run browser links to executed notebooks in runs/. Jupyter refuses root, whom
# a container has, unless it is told. Idle threads of its kernels sleep: see WAITING in metaug_workbook/jobs/processes.py.
lab: $(STAMP) ## JupyterLab on the walkthrough, on this machine only, with a token
	OMP_WAIT_POLICY=$${OMP_WAIT_POLICY:-passive} GOMP_SPINCOUNT=$${GOMP_SPINCOUNT:-1000} $(PY) -m jupyterlab --ServerApp.ip=127.0.0.1 --ServerApp.root_dir=. $(AS_ROOT) \
	  --LabApp.default_url=/lab/tree/notebooks/00_walkthrough.ipynb

site: $(STAMP) ## the documentation and the notebooks as a site in site/, read without a network
	$(PY) -m sphinx -M html . site -c docs -W --keep-going --quiet
	@echo "Open site/html/index.html in a browser."

figures: $(STAMP) ## the figures and their gallery again, from the stored results
	$(BIN)/metaug figures

## ---- work on it -----------------------------------------------------------------------------------------------------

notebooks: $(STAMP) ## execute every notebook in place, each from a clean kernel
	@unset MPLBACKEND; for n in $(NOTEBOOKS); do $(PY) -m nbconvert --to notebook --execute --inplace \
	  --ExecutePreprocessor.kernel_name=python3 --ExecutePreprocessor.timeout=1800 \
	  --ExecutePreprocessor.record_timing=False "$$n" || exit 1; done

# One thread per worker: two workers on two cores. Runs go to a folder that is thrown away, never to the user's.
APART = tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; \
  export METAUG_RUNS="$$tmp/runs" OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 MPLBACKEND=Agg

# The notebooks are tested even when the tests fail, and either failing fails.
test: $(STAMP) ## the tests, then every notebook
	@$(APART); failed=; \
	$(PY) -m pytest -n $(WORKERS) --dist loadfile tests || failed="$$failed tests"; \
	$(PY) -m pytest -n $(WORKERS) --dist loadfile --nbval-lax --nbval-cell-timeout=600 $(NOTEBOOKS) || failed="$$failed notebooks"; \
	if [ -n "$$failed" ]; then echo "Failed:$$failed" >&2; exit 1; fi

# What a change needs while it is written: no slow tests, no browser, no notebooks.
test-fast: $(STAMP) ## the quick tests only
	@$(APART); \
	$(PY) -m pytest -n $(WORKERS) --dist loadfile -m "not slow and not browser" tests

check: $(STAMP) ## ruff, pyright and the contracts of the layers
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright
	$(BIN)/lint-imports --no-cache

benchmarks: $(STAMP) ## every benchmark, one after the other
	@for f in benchmarks/[a-z]*.py; do echo "== $$f"; $(PY) "$$f" || exit 1; done

# What the tests find does not keep the engine from being measured, and either failing fails.
gpu: $(STAMP) ## on a CUDA machine: the tests that need one, then ten minutes of measuring the engine
	@$(PY) -c 'import torch; raise SystemExit(None if torch.cuda.is_available() else "There is no CUDA device here.")'
	@failed=; $(PY) -m pytest tests/gpu || failed=yes; \
	$(PY) benchmarks/engine.py --minutes 10 || failed=yes; test -z "$$failed"

# Keeps the pins that still hold; UPGRADE=--upgrade takes the newest. Only the ordinary index may answer: a local wheel
# or a CPU-only torch must never get in.
lock: ## resolve pyproject.toml into requirements.lock, for every platform and Python
	@if ! $(PY) -c "" 2>/dev/null; then $(new_venv); fi
	@$(PY) -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	env -u UV_INDEX -u UV_EXTRA_INDEX_URL -u UV_FIND_LINKS -u UV_TORCH_BACKEND $(BIN)/uv pip compile --no-config \
	  --universal --python-version 3.11 --all-extras --generate-hashes --no-emit-index-url \
	  --no-emit-find-links --no-annotate --custom-compile-command "make lock" $(UPGRADE) --quiet pyproject.toml -o requirements.lock

clean: ## remove the environment and caches; runs/ and data/ stay
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis build dist site *.egg-info
	find metaug_core metaug_workbook tests benchmarks notebooks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
	find notebooks -name .ipynb_checkpoints -prune -exec rm -rf {} + 2>/dev/null || true
