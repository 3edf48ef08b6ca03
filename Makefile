# tskd-yolo: `make demo` and `make test` work on a fresh machine that has Python >= 3.10 and nothing else.
#
#   make demo     train a student with a teacher on drawn defects, some minutes on a CPU
#   make test     the tests, whole runs included  make fast   the same without what takes long
#   make soak     the long tests that make test leaves out
#   make lint     ruff and mypy                  make docs    the documentation, as a site in site/
#   make clean    remove the environment and all caches
#
# PYTHON=python3.12 picks the interpreter, VENV=path the environment, ARGS="-k drd" goes to pytest.

VENV   ?= .venv
PYTHON ?=
ARGS   ?=

PY      = $(VENV)/bin/python
OFFLINE = YOLO_OFFLINE=1 YOLO_AUTOINSTALL=0
WORKERS = -n 2 --dist loadfile --no-loadscope-reorder # on two workers; tests of a file share what they train

.PHONY: help demo test fast soak lint docs clean
.DEFAULT_GOAL := help

help:
	@sed -n -e '/^$$/q' -e 's/^# \{0,1\}//p' Makefile

demo: $(VENV)/.installed
	$(VENV)/bin/tskd-yolo demo

test: $(VENV)/.installed-test
	$(OFFLINE) $(PY) -m pytest $(WORKERS) $(ARGS)

fast: $(VENV)/.installed-test
	$(OFFLINE) $(PY) -m pytest $(WORKERS) -m "not slow and not soak" $(ARGS)

soak: $(VENV)/.installed-test
	$(OFFLINE) $(PY) -m pytest $(WORKERS) -m soak $(ARGS)

lint: $(VENV)/.installed-test
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

docs: $(VENV)/.installed-docs
	$(PY) docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

clean:
	rm -rf .venv build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment that exists is used as it is; otherwise python3, or the newest python3.x, makes one.
$(PY):
	@new() { "$$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; }; \
	for python in $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11 python3.10); do \
	  if new "$$python"; then \
	    echo "Creating $(VENV) with $$("$$python" --version)."; \
	    exec "$$python" -m venv "$(VENV)"; \
	  fi; \
	done; \
	echo "tskd-yolo needs Python >= 3.10 with venv; $(or $(PYTHON),python3) is missing, older or lacks it (PYTHON=path picks another)." >&2; \
	exit 1

$(VENV)/.installed: setup.py pyproject.toml | $(PY)
	@echo "Installing tskd-yolo into $(VENV), once: with PyTorch this takes some minutes and several GB."
	@$(PY) -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.installed-test: setup.py pyproject.toml | $(PY)
	@echo "Installing tskd-yolo and its tests' tools into $(VENV), once: with PyTorch this takes some minutes and several GB."
	@$(PY) -m pip install --quiet --disable-pip-version-check --editable ".[test]"
	@touch $(VENV)/.installed $@

$(VENV)/.installed-docs: setup.py pyproject.toml | $(PY)
	@echo "Installing tskd-yolo and what builds its documentation into $(VENV), once."
	@$(PY) -m pip install --quiet --disable-pip-version-check --editable ".[docs]"
	@touch $(VENV)/.installed $@
