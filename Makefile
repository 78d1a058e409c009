# Two commands on a machine that has Python 3.11 or newer and make: `make run` and `make test`.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
ifneq ($(strip $(TORCH_INDEX)),)
PIP += --extra-index-url $(TORCH_INDEX)
endif

# Many shells export HOST as the machine's name, which would open the server to the network: so HOST counts
# only when it is given to make itself.
ifeq ($(origin HOST),command line)
SERVE += --host $(HOST)
endif
ifneq ($(strip $(PORT)),)
SERVE += --port $(PORT)
endif

.DEFAULT_GOAL := help
.PHONY: help run test lint bench clean

help:
	@echo "make run     set up what is needed, then serve on http://127.0.0.1:8000"
	@echo "             PORT=9000, HOST=0.0.0.0: listen elsewhere (make run HOST=... PORT=...)"
	@echo "             TORCH_INDEX=...: another wheel index for torch (PyPI's Linux wheels bring CUDA)"
	@echo "make test    set up what is needed, then lint, check types and imports, and run all tests"
	@echo "make lint    the checks of make test without the tests"
	@echo "make bench   measure images per second here (darkroom bench serve)"
	@echo "make clean   remove the virtual environment and what tools left; your data stays"

run: $(VENV)/.installed
	exec $(BIN)/python -m app serve $(SERVE)

test: lint
	$(BIN)/python -m pytest $(PYTEST)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict app
	$(BIN)/lint-imports

bench: $(VENV)/.installed
	$(BIN)/python -m app bench serve $(BENCH)

clean:
	rm -rf $(VENV) dist build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find app tests alembic -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are older than pyproject.toml or constraints.txt when something is to be installed anew.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e .
	@touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e ".[train,test]"
	@touch $@ $(VENV)/.installed

$(BIN)/python:
	@for python in $(PYTHON) python3.11 python3.12 python3.13 python3.14 python3 python; do \
		"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
		"$$python" -c 'import ensurepip, venv' 2>/dev/null || { missing=$$python; continue; }; \
		echo "Setting up $(VENV) with $$python"; \
		exec "$$python" -m venv --clear $(VENV); \
	done; \
	if [ -n "$$missing" ]; then \
		echo "$$missing cannot make virtual environments: install its venv package (on Debian and Ubuntu" >&2; \
		echo "python3-venv), or name another with make PYTHON=/path/to/python." >&2; \
	else \
		echo "Python 3.11 or newer is needed and was not found; name one with make PYTHON=/path/to/python." >&2; \
	fi; exit 1
