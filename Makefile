# Everything a newcomer needs: `make train`, `make test`.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
CONSTRAINTS := constraints.txt pyproject.toml
PRESET ?= ppo/repeat_previous_easy
JOBS ?= 2

.PHONY: install train test lint results clean

install: $(VENV)/.installed  ## make the environment, install Statewise, build the cpu kernels

# torch goes first and by exact version: a bare requirement may fetch a much larger build.
$(VENV)/.installed: $(CONSTRAINTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet -c constraints.txt torch==2.13.0
	$(PIP) install --quiet -c constraints.txt -e '.[popgym]'
	$(BIN)/python -m statewise.kernels
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) install --quiet -c constraints.txt -e '.[popgym,atari,dmc,envpool,minigrid,bsuite,memory-maze,classic,sb3,jax,gpu,mujoco,offline,bench,eval,dev]'
	touch $@

train: $(VENV)/.installed  ## train, evaluate and plot the default preset
	@run=$$($(BIN)/statewise train $(PRESET)) && \
	$(BIN)/statewise eval $$run --episodes 100 && \
	curve=$$($(BIN)/statewise plot $$run) && \
	printf '%s\n' "checkpoints:    $$run/checkpoints" "learning curve: $$curve"

test: $(VENV)/.installed-test  ## all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup

lint: $(VENV)/.installed-test  ## format check, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

results: $(VENV)/.installed  ## train every claim again; tables and figures go to docs/results
	$(BIN)/statewise reproduce --all --out docs/results

clean:  ## remove the environment and caches; runs/ stays
	rm -rf $(VENV) build dist src/*.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
