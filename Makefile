# Everything runs in .venv, made on first use. `make run` starts the embedded cluster.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RUN_ARGS ?=

.PHONY: run install lint test bench sim nightly test-nightly topology-nightly sim-nightly spec clean

run: $(STAMP)
	@"$(BIN)/meridian" dev $(RUN_ARGS)

install: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Meridian needs Python 3.11 or newer; $(PYTHON) is older. Try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x "$(BIN)/python" || "$(PYTHON)" -m venv "$(VENV)" || { \
	  echo "Could not make $(VENV). On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "Installing into $(VENV) (once)..."
	@"$(BIN)/python" -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@"$(BIN)/python" -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch "$(STAMP)"

lint: $(STAMP)
	"$(BIN)/python" -m ruff check src tests examples bench
	"$(BIN)/python" -m ruff format --check --quiet src tests examples bench
	"$(BIN)/python" -m mypy

# Two at a time: most of a test is waiting for disks and processes. One file stays in one process.
TEST_ARGS ?= -n 2 --dist loadfile
test: $(STAMP)
	"$(BIN)/python" -m pytest -q -m "not nightly" $(TEST_ARGS)
	MERIDIAN_TEST_TOPOLOGY=$(TOPOLOGY) "$(BIN)/python" -m pytest -q -m "not nightly" $(TEST_ARGS) $(TOPOLOGY_TESTS)

# Storage shards, adjudicators, journals: a part of the tests runs so too, by night all of them.
TOPOLOGY ?= 4,3,2
TOPOLOGY_TESTS := tests/isolation tests/crash tests/differential tests/pgext/test_ddl.py \
  tests/clients/test_psycopg.py tests/dataplane

# One part that fails does not keep the others from running.
nightly: $(STAMP)
	@$(MAKE) --no-print-directory --keep-going test-nightly topology-nightly sim-nightly spec

test-nightly: $(STAMP)
	"$(BIN)/python" -m pytest -q --timeout=3600

topology-nightly: $(STAMP)
	MERIDIAN_TEST_TOPOLOGY=$(TOPOLOGY) "$(BIN)/python" -m pytest -q --timeout=3600

# One process per core, each with its own range of seeds.
SIM_NIGHTLY_SEEDS ?= 20000
sim-nightly: $(STAMP)
	@cores=$$(getconf _NPROCESSORS_ONLN); each=$$((($(SIM_NIGHTLY_SEEDS) + cores - 1) / cores)); \
	pids=; trap 'kill $$pids 2>/dev/null; exit 130' INT TERM; core=0; failed=0; \
	while [ $$core -lt $$cores ]; do \
	  "$(BIN)/meridian" sim run --seeds $$each --start $$((core * each)) & \
	  pids="$$pids $$!"; core=$$((core + 1)); \
	done; \
	for pid in $$pids; do wait $$pid || failed=1; done; exit $$failed

spec:
	@if command -v spin >/dev/null; then spec/check.sh; \
	else echo "spec: skipped, spin is not installed (Debian and Ubuntu: apt install spin)"; fi

bench: $(STAMP)
	@for name in point-read update load scan-agg; do "$(BIN)/meridian" bench $$name --json || exit 1; done

sim: $(STAMP)
	"$(BIN)/meridian" sim run --seeds 500

clean:
	rm -rf "$(VENV)" .pytest_cache .mypy_cache .ruff_cache
