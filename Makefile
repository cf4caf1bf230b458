# make run: the reverse proxy before a site of its own. make test: all checks, with the engine in Python and compiled
# (ARGS=tests/test_x.py: of that file alone). make wheels: what pip installs where there is no compiler, and its test.
# make test-sctp, make test-lossy: in user-mode Linux, over SCTP, and over a network that is late and loses packets.
# make bench: every experiment, under 30 minutes (QUICK=1: under 3). make bench-workers: those with many processes, nine
# minutes. make load: Locust, two minutes. make seed: the seed's workload. make soak: a million requests while processes
# come and go, of which none is lost. make soak-tls: 100,000 TLS handshakes, of which nothing is left. make mutants:
# whether the tests notice what is broken, hours. All make .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Else each of the hundreds of processes of the tests would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run seed test checked test-sctp test-lossy bench bench-workers load soak soak-tls mutants wheels clean
.DELETE_ON_ERROR:

run: $(VENV)/compiled
	$(BIN)/python -m examples.reverse_proxy $(ARGS)

seed: $(VENV)/compiled
	$(BIN)/python -m loadtests.seed $(ARGS)

test: $(VENV)/installed-test
	$(MAKE) --no-print-directory --jobs=2 checked $(VENV)/compiled
	$(if $(ARGS),GREENSOCK_PURE=1 $(BIN)/python -m pytest $(ARGS))
	$(if $(ARGS),$(BIN)/python -m pytest $(ARGS),$(BIN)/python tests/side_by_side.py)

checked: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/mypy
	GREENSOCK_PURE=1 $(BIN)/python -m pytest --collect-only -qq >$(VENV)/collected || { tail -60 $(VENV)/collected; exit 1; }

test-sctp test-lossy: test-%: $(VENV)/installed-test $(VENV)/compiled
	$(BIN)/python tests/user_mode_linux.py $* $(ARGS)

wheels: $(VENV)/installed
	$(BIN)/python tests/wheels.py $(ARGS)

soak: $(VENV)/installed-test $(VENV)/compiled
	$(BIN)/python tests/promise.py $(ARGS)

soak-tls: $(VENV)/installed-test $(VENV)/compiled
	$(BIN)/python tests/tls_soak.py $(ARGS)

mutants: $(VENV)/installed-test
	$(BIN)/python tests/mutants.py $(ARGS)

bench: $(VENV)/installed-bench $(VENV)/compiled
	$(BIN)/python -m loadtests.bench all $(ARGS); status=$$?; \
	$(BIN)/python -m loadtests.plots && $(BIN)/python -m loadtests.tables --write && exit $$status

bench-workers: $(VENV)/installed-bench $(VENV)/compiled
	$(BIN)/python -m loadtests.bench held reload herd $(ARGS); status=$$?; \
	$(BIN)/python -m loadtests.tables --write && exit $$status

load: $(VENV)/installed-load $(VENV)/compiled
	$(BIN)/python -m loadtests.load $(ARGS)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(BIN)/python pyproject.toml setup.py
	GREENSOCK_PURE=1 $(BIN)/pip install --quiet --disable-pip-version-check -e .
	touch $@

# In place, and anew whenever one of its sources changed; without a compiler it says so, and all runs in Python.
$(VENV)/compiled: $(VENV)/installed setup.py greensock/framing.py $(wildcard greensock/*.pxd greensock/core/*.py greensock/core/*.pxd greensock/http/wire/*.pxd) \
		greensock/http/wire/plain_heads.py greensock/http/wire/ordinary_heads.py
	$(BIN)/pip install --quiet --disable-pip-version-check 'setuptools>=65' 'Cython>=3.1'
	$(BIN)/python setup.py --quiet build_ext --inplace
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	GREENSOCK_PURE=1 $(BIN)/pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@

$(VENV)/installed-bench: $(VENV)/installed
	GREENSOCK_PURE=1 $(BIN)/pip install --quiet --disable-pip-version-check -e '.[bench]'
	touch $@

$(VENV)/installed-load: $(VENV)/installed
	GREENSOCK_PURE=1 $(BIN)/pip install --quiet --disable-pip-version-check -e '.[load]'
	touch $@

clean:
	rm -rf $(VENV) build loadtests/build greensock/_compiled greensock/*/_compiled greensock/*/*/_compiled *.egg-info
