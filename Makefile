# Everything runs in .venv, made on first use from the pinned constraints.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: sweep test lint ui clean

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

sweep: .venv/.installed   ## the demo, or: make sweep ARGS='data.kwargs.toml_config_path=… …'
	$(BIN)/python -m sesttune.sweep $(ARGS)

# Two at a time, which share the cores with their servers and Ray workers: threads that wait for others must
# sleep, not spin (twice as slow). In the order of tests/conftest.py, since else files of few tests, the
# longest among them, run last and alone.
test: .venv/.installed
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

ui: .venv/.installed
	$(BIN)/python -m sesttune.ui $(ARGS)

clean:
	rm -rf .venv outputs .pytest_cache .mypy_cache .ruff_cache *.egg-info
