# Everything starts here, on a machine with Python >= 3.10 and a C++ compiler:
#   make test         the tests
#   make throughput   the main benchmark, its picture and the README's numbers
#   make gpu-check    on a machine with a GPU and no network: the GPU tests and the benchmark, into $OUT

PYTHON ?= python3
OUT ?= gpu-check
VENV := .venv
BIN := $(VENV)/bin
SOURCES := setup.py $(wildcard csrc/*.cpp csrc/*.h csrc/*/*)

.PHONY: install test throughput readme gpu-check clean

install: $(VENV)/installed

# One resolution for everything that depends on torch, so that no later step exchanges it.
$(VENV)/prepared: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "setuptools>=77" ninja "torch>=2.11" torchvision timm
	touch $@

# Editable, and without build isolation: the extension is built against the torch it will run with.
$(VENV)/installed: $(VENV)/prepared $(SOURCES)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --editable ".[benchmark,test]"
	touch $@

test: install
	$(BIN)/ruff check .
	$(BIN)/python -m pytest

throughput: install
	$(BIN)/python benchmarks/throughput.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/readme.py

readme: install
	$(BIN)/python benchmarks/readme.py

gpu-check:
	OUT="$(OUT)" PYTHON="$(PYTHON)" bash benchmarks/gpu_check.sh

clean:
	rm -rf $(VENV) build *.egg-info leni_kernels/*.so
