# Everything happens in .venv; nothing else on the machine is touched.
#   make PYTHON=/path/to/python   another Python than the first of these that is 3.11 or newer
#   make TORCH_INDEX_URL=...      torch from that index; PyTorch's index of CPU builds saves several GB without a GPU
#   make demo PORT=8080           another port; EBM_MODELS_DIR=... another models directory
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$python; exit; }; done; echo python3)
PORT ?= 8000
EBM_MODELS_DIR ?= checkpoints
TORCH_INDEX_URL ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help install demo test lint bench clean
.DEFAULT_GOAL := help

help:
	@echo "make install  everything into .venv"
	@echo "make demo     install, train a small model if there is none, serve on http://127.0.0.1:$(PORT)"
	@echo "make test     install, then all tests"
	@echo "make lint     install, then ruff, mypy and import-linter"
	@echo "make bench    install, then the benchmarks"
	@echo "make clean    remove caches and build output (not .venv, checkpoints or data)"

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: Python 3.11 or newer is needed, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1);" \
			"name one with: make PYTHON=/path/to/python $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
		echo "error: '$(PYTHON)' cannot make virtual environments (no venv or ensurepip);" \
			"on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(if $(TORCH_INDEX_URL),$(PIP) install --no-deps --index-url "$(TORCH_INDEX_URL)" -c constraints.txt torch)
	$(PIP) install -c constraints.txt -e ".[dev]"
	@touch $@

demo: install
	@ls "$(EBM_MODELS_DIR)"/*/*/manifest.json >/dev/null 2>&1 || { \
		echo "no model in $(EBM_MODELS_DIR) yet: training one"; \
		$(BIN)/ebm train rbm-digits --out "$(EBM_MODELS_DIR)"; }
	@echo "serving $(EBM_MODELS_DIR) on http://127.0.0.1:$(PORT) (API: /docs); Ctrl-C ends it"
	@exec $(BIN)/ebm serve --models "$(EBM_MODELS_DIR)" --host 127.0.0.1 --port $(PORT)

test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install
	@if [ -e benchmarks/__main__.py ]; then exec $(BIN)/python -m benchmarks; else echo "no benchmarks yet"; fi

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find models training service tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
