# Two commands for a newcomer: `make demo` and `make test`. Everything else is `dvc repro` and the stages themselves.
PYTHON ?= python3
BIN := $(CURDIR)/.venv/bin
export PATH := $(BIN):$(PATH)
# Processes of a training wait for each other without burning the other's core.
export OMP_WAIT_POLICY ?= passive

.PHONY: demo test test-slow lint

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "python >= 3.10 is needed; set PYTHON=...")'
	@echo "installing into .venv (several GB with PyTorch, some minutes)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

demo: .venv/.installed
	dvc repro
	@python -m pipeline.report --show
	@echo "report:  reports/index.html"
	@echo "MLflow:  .venv/bin/mlflow ui --backend-store-uri sqlite:///mlflow.db"

test: .venv/.installed lint
	OMP_NUM_THREADS=1 pytest -m "not slow"

test-slow: .venv/.installed
	OMP_NUM_THREADS=1 pytest -m slow

lint: .venv/.installed
	ruff check .
	ruff format --check .
	lint-imports
