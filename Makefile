# Everything runs in .venv, made on first use. `make run` starts the embedded cluster.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RUN_ARGS ?=

.PHONY: run install lint test bench sim nightly clean

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
	"$(BIN)/python" -m ruff check src tests examples
	"$(BIN)/python" -m mypy

test: $(STAMP)
	"$(BIN)/python" -m pytest -q -m "not nightly"

nightly: $(STAMP)
	"$(BIN)/python" -m pytest -q --timeout=3600

bench: $(STAMP)
	@for name in point-read update load scan-agg; do "$(BIN)/meridian" bench $$name --json || exit 1; done

sim: $(STAMP)
	"$(BIN)/meridian" sim run --seeds 500

clean:
	rm -rf "$(VENV)" .pytest_cache .mypy_cache .ruff_cache
