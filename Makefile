# Two commands do everything on a machine with Python 3.11+ and make: `make demo` and `make test`.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin

# Idle threads of torch, FAISS and BLAS otherwise spin and take the cores from each other.
export OMP_WAIT_POLICY ?= PASSIVE
export TOKENIZERS_PARALLELISM ?= true

.PHONY: help demo test test-all check format bench clean

help:
	@echo "make demo      build a collection from installed documentation, train, index, search, evaluate"
	@echo "make test      style, types, the fast tests, and those that guard a promise of the README"
	@echo "make test-all  every test, and our losses beside public implementations"
	@echo "make check     ruff and strict types"
	@echo "make format    reformat the code"
	@echo "make bench     what the README's tables are made with (hours; finished cells are skipped)"

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,irds,dev]'
	@touch $@

$(VENV)/.bench: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@touch $@

# What our losses are compared with: 93 MB to download, 390 MB on disk, most of it jax; `make test` does without.
$(VENV)/.references: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[references]'
	@touch $@

demo: $(VENV)/.installed
	HF_HUB_OFFLINE=1 $(BIN)/python -m retrieval.demo $(if $(SMALL),--small)

test: check
	HF_HUB_OFFLINE=1 $(BIN)/pytest -m "not slow or promise"

# Two processes: other tests fork, which jax warns against.
test-all: check $(VENV)/.references
	HF_HUB_OFFLINE=1 HYPOTHESIS_PROFILE=thorough $(BIN)/pytest --ignore=tests/references
	HF_HUB_OFFLINE=1 $(BIN)/pytest tests/references

check: $(VENV)/.installed
	$(BIN)/ruff check retrieval rankers indexes tests benchmarks
	$(BIN)/ruff format --check --quiet retrieval rankers indexes tests benchmarks
	$(BIN)/mypy

format: $(VENV)/.installed
	$(BIN)/ruff check --fix --quiet retrieval rankers indexes tests benchmarks
	$(BIN)/ruff format --quiet retrieval rankers indexes tests benchmarks

bench: $(VENV)/.bench
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks

clean:
	rm -rf build dist runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
