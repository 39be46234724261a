# make quickstart   execute notebooks/quickstart.ipynb on local pods and show its results
# make test         all tests: style, types, pytest with the browser tests
# make cluster      bring up a Kubernetes and an S3 server on this machine (docs/cluster.md); make cluster-down ends them
# make panel        build the run panel again, if its sources changed
# Each makes the virtual environment it needs. Another interpreter: make PYTHON=python3.12 …

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
export PYTHON
unexport PYTHONDONTWRITEBYTECODE # else each worker compiles what it imports anew: seconds, for every task

.PHONY: help quickstart test smoke lint lab bench pins clean env panel cluster cluster-down

help:
	@sed -n 's/^# //p' Makefile

env: panel
	@.ci/venv $(VENV)

panel: # the front end; without node it says so, and people see the static status
	@.ci/frontend

quickstart: env
	$(BIN)/python notebooks/execute.py notebooks/quickstart.ipynb
	@echo
	@echo "To see it in JupyterLab:  make lab    then open quickstart.ipynb and choose Run > Run All Cells"

lab: env
	$(BIN)/jupyter lab --notebook-dir=notebooks

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	@.ci/chromium
	@.ci/frontend check
	@.ci/cluster $(BIN)/python
	$(BIN)/python -m pytest $(TWO_AT_ONCE)

# Tests wait for kernels, pages and processes most of the time. A file stays in one worker: its tests share what is dear to start.
TWO_AT_ONCE = -n 2 --dist loadfile

# What another Python could break: how code is read, pickled and run
SMOKE = tests/test_body.py tests/test_canon.py tests/test_classgraph.py tests/test_codec.py tests/test_flowspec.py tests/test_forkserver.py tests/test_house.py tests/kernel/test_run.py tests/kernel/test_law.py
smoke: env
	$(BIN)/python -m pytest -q $(TWO_AT_ONCE) $(SMOKE)

cluster: env # WITH=karpenter adds optional parts
	@.ci/cluster $(BIN)/python
	$(BIN)/python -m tests.cluster up $(if $(WITH),--with $(WITH))

cluster-down: env
	$(BIN)/python -m tests.cluster down

bench: env
	$(BIN)/python benchmarks/run.py

# The newest versions that pyproject.toml allows, as pins for every system and Python; names no registry
pins:
	uv pip compile --quiet --universal --upgrade --python-version 3.11 --no-header --no-annotate --no-emit-index-url \
		--group dev pyproject.toml -o requirements-dev.txt
	sed -i.old '1i# Every package of the development environment, pinned; made by `make pins` from pyproject.toml.' requirements-dev.txt
	rm requirements-dev.txt.old

clean:
	rm -rf $(VENV) build dist out flowbook/static node_modules
