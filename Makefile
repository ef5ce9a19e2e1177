# Two commands for a newcomer: `make demo` and `make test`. Everything else is `dvc repro` and the stages themselves.
PYTHON ?= python3
BIN := $(CURDIR)/.venv/bin
# One thread per process: the trainings run one process per core, and oversubscribed cores are many times slower.
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= passive
export PATH := $(BIN):$(PATH)

.PHONY: demo test test-slow lint

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "python >= 3.10 is needed; set PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

demo: .venv/.installed
	dvc repro
	@python -m pipeline.report --show

test: .venv/.installed lint
	pytest -m "not slow"

test-slow: .venv/.installed
	pytest -m slow

lint: .venv/.installed
	ruff check . && ruff format --check . && lint-imports
