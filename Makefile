# `make run`: the main job. `make test`: the whole suite. `make check`: lint, types and import rules, in seconds.
# `make everywhere`: the suite under every condition that changes rounding (docs/testing.md); CONDITIONS='v3 one-core'
# chooses some, TESTS=tests/test_fused.py is handed to pytest.
# Each sets up what it needs in .venv first; PYTHON names the interpreter to build it with.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

.PHONY: run test everywhere check setup bench clean

run: $(VENV)/.run
	$(BIN)/ladder run r1

test: check
	$(BIN)/python -m pytest

everywhere: $(VENV)/.dev
	$(BIN)/python tests/everywhere.py $(CONDITIONS) -- $(TESTS)

check: $(VENV)/.dev
	$(BIN)/ruff check src tests examples benchmarks
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest -q tests/test_house.py

# make bench MODEL=SmolLM2-135M-Instruct.gguf DATA=directory BENCH='--only sft --threads 1': beside the peers, whose
# environments it makes first; see benchmarks/README.md
bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.speed $(if $(MODEL),--model $(MODEL)) $(if $(DATA),--data $(DATA)) $(BENCH)

setup: $(VENV)/.dev

# torch comes first and pinned: a resolver that meets it unpinned may pull a build for other hardware
$(VENV)/.run: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt torch
	$(PIP) install -c constraints.txt -e .
	touch $@

$(VENV)/.dev: $(VENV)/.run
	$(PIP) install -c constraints.txt -e '.[dev,data,math,gguf,gym,trackers]'
	touch $@

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache
