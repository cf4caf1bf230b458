# make run: the reverse proxy before a site of its own. make test: all checks (ARGS=tests/test_x.py: of that file alone).
# make bench: every experiment, under 30 minutes (QUICK=1: under 3). make load: Locust, two minutes. make seed: the
# seed's workload. make mutants: whether the tests notice what is broken, hours. All make .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run seed test bench load mutants clean
.DELETE_ON_ERROR:

run: $(VENV)/installed
	$(BIN)/python -m examples.reverse_proxy $(ARGS)

seed: $(VENV)/installed
	$(BIN)/python -m loadtests.seed $(ARGS)

test: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(if $(ARGS),$(BIN)/python -m pytest $(ARGS),$(BIN)/python tests/side_by_side.py)

mutants: $(VENV)/installed-test
	$(BIN)/python tests/mutants.py $(ARGS)

bench: $(VENV)/installed-bench
	$(BIN)/python -m loadtests.bench all $(ARGS); status=$$?; \
	$(BIN)/python -m loadtests.plots && $(BIN)/python -m loadtests.tables --write && exit $$status

load: $(VENV)/installed-load
	$(BIN)/python -m loadtests.load $(ARGS)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(BIN)/python pyproject.toml setup.py
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@

$(VENV)/installed-bench: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[bench]'
	touch $@

$(VENV)/installed-load: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[load]'
	touch $@

clean:
	rm -rf $(VENV) loadtests/build *.egg-info
