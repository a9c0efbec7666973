# Each target sets up what it needs in .venv first. Nothing outside this folder is touched.
#
#   make demo      set up, explain a picture with a tiny network, write build/result.png
#   make test      set up, run the tests          make test ARGS="-k zoo -n 0"
#   make lint      format, lint, types and layers of imports
#   make gpu       on a machine with an NVIDIA GPU: set up, run the GPU tests and benchmarks/gpu.py
#   make docs      write docs/layers.md, gradients.md and methods.md from the registries, and the site into build/site
#   make pictures  write the photographs of README and docs; needs a classifier of photographs (scripts/pictures.py)
#   make schema    write converters/schema/caffe_pb2.py from caffe.proto
#   make clean     remove all that make made
#
# Another interpreter: make PYTHON=python3.12. Another runtime than the one detected: make RUNTIME=cpu.

PYTHON  ?= python3
RUNTIME ?= $(shell if nvidia-smi >/dev/null 2>&1 || [ -e /proc/driver/nvidia ]; then echo gpu; else echo cpu; fi)
ARGS    ?=

VENV  := .venv
BIN   := $(VENV)/bin
SETUP := setup.py setup.cfg pyproject.toml
CODE  := $(wildcard converters camrt)

# One of the two is installed, never both: they write into the same folder.
UNWANTED := $(if $(filter gpu,$(RUNTIME)),onnxruntime,onnxruntime-gpu)
PIP       = PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip

# A stamp says: these extras are installed, and the set-up files have not changed since.
DEMO_READY := $(VENV)/.demo-$(RUNTIME)
TEST_READY := $(VENV)/.test-$(RUNTIME)
GPU_READY  := $(VENV)/.peers-gpu

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test gpu no-gpu lint format docs pictures schema clean

help:
	@sed -n '/^#   /s/^#   //p' Makefile

demo: $(DEMO_READY)
	$(BIN)/camrt demo --output build/result.png

# worksteal: with loadfile, pytest-xdist 3.8 waits forever once a worker has crashed.
test: $(TEST_READY)
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow" $(ARGS)

# ARGS goes to the tests, BENCHMARK to the benchmark: make gpu BENCHMARK="--batches 1 16"
# The benchmark runs in any case; a failed test is reported after it.
gpu: $(if $(filter gpu,$(RUNTIME)),$(GPU_READY),no-gpu)
	@mkdir -p build
	$(BIN)/python -m pytest -m gpu $(ARGS); tests=$$?; \
	$(BIN)/python benchmarks/gpu.py --json build/gpu.json $(BENCHMARK) && exit $$tests

no-gpu:
	@echo "There is no NVIDIA GPU here (nvidia-smi finds none). Without one, after make test:" \
	    "$(BIN)/python benchmarks/gpu.py --device cpu --quick" >&2; exit 1

lint: $(TEST_READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy $(CODE)
	$(BIN)/lint-imports

format: $(TEST_READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(TEST_READY)
	@mkdir -p docs
	$(BIN)/python -m converters.docs > docs/layers.md.part
	mv docs/layers.md.part docs/layers.md
	$(BIN)/python -m camrt.graph.rules.table > docs/gradients.md.part
	mv docs/gradients.md.part docs/gradients.md
	$(BIN)/python -m camrt.docs docs
	$(PIP) install --quiet --editable '.[docs]'
	-npm install --prefix build/node --ignore-scripts --no-audit --no-fund --silent iframe-worker@1 mermaid@11 katex@0.16
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

pictures: $(TEST_READY)
	$(PIP) install --quiet --editable '.[docs]'
	$(BIN)/python scripts/pictures.py $(ARGS)
	$(BIN)/python -m camrt.docs docs

# grpcio-tools 1.62 holds protoc 25. Later ones write code that asks for a protobuf as new as themselves.
# It pins an old protobuf, so it gets an environment of its own.
schema: .venv-schema/.ready
	.venv-schema/bin/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. converters/schema/caffe.proto

clean:
	rm -rf $(VENV) .venv-schema build dist *.egg-info .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(DEMO_READY): $(SETUP) | $(BIN)/python
	$(call install,$(RUNTIME))

$(TEST_READY): $(SETUP) | $(BIN)/python
	$(call install,$(RUNTIME)$(comma)hdf5$(comma)test)

# What camrt is compared with. TensorRT and the peers may be missing: their rows say so.
$(GPU_READY): $(TEST_READY)
	$(PIP) install --quiet --editable '.[train]'
	-$(PIP) install --quiet --editable '.[tensorrt]'
	-$(PIP) install --quiet --no-deps 'grad-cam==1.5.*' ttach tqdm 'torchcam==0.5.*'
	@touch $@

comma := ,
define install
@echo "Setting up $(VENV) with camrt[$(1)]"
@$(PIP) uninstall --quiet --yes $(UNWANTED) 2>/dev/null || true
@rm -f $(VENV)/.demo-* $(VENV)/.test-* $(VENV)/.peers-*
$(PIP) install --quiet --editable '.[$(1)]'
@touch $@ $(DEMO_READY)
endef

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "camrt needs Python 3.11 or later, and $(PYTHON) is: $$($(PYTHON) --version 2>&1)." \
	         "Name another one: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

.venv-schema/.ready: Makefile
	$(PYTHON) -m venv .venv-schema
	.venv-schema/bin/python -m pip install --quiet 'grpcio-tools==1.62.*' 'setuptools<81'
	@touch $@
