PYTHON ?= python3
PORT ?= 3000
BIN := .venv/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check

# The build of onnxruntime and PyTorch: with CUDA where an NVIDIA driver is found.
GPU := $(if $(or $(wildcard /proc/driver/nvidia/version),$(shell command -v nvidia-smi)),-gpu)
# The PyTorch of PyPI for Linux has CUDA, this index has one without. Empty: PyPI.
TORCH_INDEX ?= $(if $(GPU)$(filter-out Linux,$(shell uname)),,https://download.pytorch.org/whl/cpu)

.PHONY: serve test check lint bento web-engine

serve: .venv/.serve
	@$(BIN)/sparsegen serve --port $(PORT)

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

check: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile -m "not slow"

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bento: .venv/.serve
	@rm -rf build
	@$(PIP) install --quiet --no-deps --target build/bento .
	@cp README.md build/bento/
	@$(BIN)/python -m bentoml build --bentofile bentofile.yaml build/bento

# The files of onnxruntime-web that an exported page contains, from npm.
web-engine: .venv/.dev
	$(BIN)/python -m sparsegen.export.web.engine

.venv/.serve: pyproject.toml
	$(call install,serve$(GPU) restore)

.venv/.dev: pyproject.toml
	$(call install,all$(GPU) dev)

# Both builds of onnxruntime may be there after a driver was added or removed. They share their files.
define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "sparsegen needs Python 3.11 or newer, this is " + sys.version)'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing sparsegen[$(1)] into .venv (some minutes the first time)"
	@$(PIP) uninstall --yes -qqq onnxruntime onnxruntime-gpu
	@test -z "$(TORCH_INDEX)" || $(BIN)/python -c 'from importlib.metadata import version as v; v("torch"), v("torchvision")' 2>/dev/null \
	|| $(PIP) install --no-deps --timeout 5 --retries 0 --index-url $(TORCH_INDEX) torch torchvision \
	|| echo "PyTorch without CUDA cannot be downloaded: the one with CUDA follows"
	@$(PIP) install --editable '.[$(subst $() ,$(,),$(1))]'
	@touch $@
endef
, := ,
