# Everything starts here, on a machine with Python >= 3.10 and a C++ compiler:
#   make test         the tests
#   make throughput   the main benchmark, its picture and the README's numbers
#   make gpu-check    on a machine with a GPU: proves the kernels within 7 minutes, without a network, into $OUT
#   make gpu-rehearse the same without a GPU, so that nothing of it is run there for the first time

PYTHON ?= python3
OUT ?= gpu-check
VENV := .venv
BIN := $(VENV)/bin
SOURCES := setup.py $(wildcard csrc/*.cpp csrc/*.h csrc/*/*)

.PHONY: install test throughput readme gpu-check gpu-rehearse clean

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

# With the machine's own Python and packages; nothing is installed, and the extension is not needed.
gpu-check:
	$(PYTHON) benchmarks/gpu_check.py --output "$(OUT)"

gpu-rehearse: $(OLDEST)/prepared
	$(OLDEST)/bin/python benchmarks/gpu_check.py --rehearse --output "$(OUT)"

clean:
	rm -rf $(VENV) build *.egg-info leni_kernels/*.so
