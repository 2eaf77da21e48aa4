# Everything starts here, on a machine with Python >= 3.10 and a C++ compiler:
#   make test         the linter, the type checker, the tests
#   make test-integrations  networks under other tools, ONNX among them, which it installs first
#   make test-oldest  the same tests on the oldest PyTorch and Triton that the package supports
#   make sanitize     the C++ kernels under sanitizers (make sanitize-address, sanitize-thread): suites and a fuzzer
#   make throughput   the main benchmark, its picture and the README's numbers
#   make docs         the documentation, into site/, with warnings as errors
#   make codegen      compiles every GPU kernel for every GPU, without one, on the newest Triton and the oldest: hours
#   make predict      counts the instructions of the GPU kernels at full size, and predicts their times: minutes, no GPU
#   make gpu-check    on a machine with a GPU: proves the kernels within 7 minutes, without a network, into $OUT
#   make gpu-rehearse the same without a GPU, so that nothing of it is run there for the first time
#   make compile-commands   writes compile_commands.json, for an editor's clangd

PYTHON ?= python3
# Of .venv: any that is supported, at its choice.
TORCH ?= torch>=2.11
OUT ?= gpu-check
VENV := .venv
BIN := $(VENV)/bin
OLDEST := .venv-oldest
# Of the oldest versions, for tests on the newest: PyTorch's headers, in torch/include, and Triton, in python.
PARTS := .oldest
SOURCES := setup.py $(wildcard csrc/*.cpp csrc/*/*)

# The oldest versions of what the package runs on, and the newest NumPy that this Triton's interpreter runs with.
OLDEST_TORCH := torch==2.11.0
OLDEST_TRITON := "triton==3.6.0; platform_system == 'Linux'"
OLDEST_NUMPY := "numpy<2.4"

PIP_INSTALL := pip install --quiet --disable-pip-version-check
PYTEST := python -m pytest --numprocesses auto --dist worksteal

.PHONY: install test test-integrations test-oldest docs sanitize sanitize-address sanitize-thread throughput readme codegen predict
.PHONY: gpu-check gpu-rehearse compile-commands clean

install: $(VENV)/installed

# One resolution for everything that depends on torch, so that no later step exchanges it.
$(VENV)/prepared: PACKAGES := "$(TORCH)" torchvision timm
$(OLDEST)/prepared: PACKAGES := $(OLDEST_TORCH) torchvision==0.26.0 $(OLDEST_NUMPY) timm rich matplotlib pytest
$(VENV)/prepared $(OLDEST)/prepared: pyproject.toml
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/$(PIP_INSTALL) "setuptools>=77" ninja $(PACKAGES)
	touch $@

# Editable, and without build isolation: the extension is built in the source folder, against the torch it will run
# with. The environments share that folder, so what the one installs takes the place of what the other did.
$(VENV)/installed: $(VENV)/prepared
$(OLDEST)/installed: $(OLDEST)/prepared
$(VENV)/installed $(OLDEST)/installed: $(SOURCES)
	rm -f $(VENV)/installed $(OLDEST)/installed
	LENI_KERNELS_REQUIRE_EXTENSION=1 $(@D)/bin/$(PIP_INSTALL) --no-build-isolation --editable ".[benchmark,docs,test]"
	touch $@

# Of macOS' wheel, a sixth the size of Linux': the headers of the stable ABI are the same in every one.
$(PARTS)/prepared: $(VENV)/prepared
	rm -rf $(PARTS)
	$(BIN)/$(PIP_INSTALL) --no-deps --no-compile --target $(PARTS)/wheel --only-binary :all: \
		--platform macosx_11_0_arm64 --python-version 3.12 $(OLDEST_TORCH)
	mkdir $(PARTS)/torch
	mv $(PARTS)/wheel/torch/include $(PARTS)/torch
	rm -r $(PARTS)/wheel
	$(BIN)/$(PIP_INSTALL) --no-deps --target $(PARTS)/python $(OLDEST_TRITON) $(OLDEST_NUMPY)
	touch $@

# A process for each core, of one thread each. The tests of several threads ask for theirs, and those that wait sleep:
# if they spun, they would keep the cores from those that work.
test test-integrations test-oldest: export OMP_NUM_THREADS := 1
test test-integrations test-oldest: export OMP_WAIT_POLICY := passive

test: install $(PARTS)/prepared
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/$(PYTEST)

test-integrations: install
	$(BIN)/$(PIP_INSTALL) --no-build-isolation --editable ".[test-integrations]"
	$(BIN)/$(PYTEST) tests/integrations

test-oldest: $(OLDEST)/installed
	$(OLDEST)/bin/$(PYTEST)

# Not --quiet, under which --strict sees no warning. The variable keeps an announcement of Material's out of the output.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# With GCC. SANITIZE="--seconds 0 tests/two_branch/test_isa.py", for example, is for one suite and no fuzzer.
sanitize: sanitize-address sanitize-thread

sanitize-address sanitize-thread: sanitize-%: install
	$(BIN)/python tests/sanitize.py $* $(SANITIZE)

throughput: install
	$(BIN)/python benchmarks/throughput.py --save
	$(BIN)/python benchmarks/memory.py --save
	$(BIN)/python benchmarks/overhead.py --save
	$(BIN)/python benchmarks/readme.py

readme: install
	$(BIN)/python benchmarks/readme.py

CODEGEN := $(BIN)/python benchmarks/codegen.py --save
codegen: install $(PARTS)/prepared
	$(CODEGEN)
	PYTHONPATH=$(PARTS)/python $(CODEGEN)

predict: install
	$(BIN)/python benchmarks/codegen.py --predict h100 --save

# With the machine's own Python and packages; nothing is installed, and the extension is not needed.
gpu-check:
	$(PYTHON) benchmarks/gpu_check.py --output "$(OUT)"

gpu-rehearse: $(OLDEST)/prepared
	$(OLDEST)/bin/python benchmarks/gpu_check.py --rehearse --output "$(OUT)"

# What clangd needs to know of the files in csrc/.
compile-commands: $(VENV)/prepared
	$(BIN)/python setup.py -q compile_commands

clean:
	rm -rf $(VENV) $(OLDEST) $(PARTS) build site benchmarks/out *.egg-info leni_kernels/*.so leni_kernels/_without_extension.txt \
		.mypy_cache compile_commands.json
