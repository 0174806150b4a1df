PYTHON ?= python3
PORT ?= 3000
BIN := .venv/bin

.PHONY: serve test check lint bento

serve: .venv/.serve
	@$(BIN)/sparsegen serve --port $(PORT)

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

check: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile -m "not slow"

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bento: .venv/.serve
	@rm -rf build
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target build/bento .
	@cp README.md build/bento/
	@$(BIN)/python -m bentoml build --bentofile bentofile.yaml build/bento

.venv/.serve: pyproject.toml
	$(call install,serve)

.venv/.dev: pyproject.toml
	$(call install,dev)

define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "sparsegen needs Python 3.11 or newer, this is " + sys.version)'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing sparsegen[$(1)] into .venv (some minutes the first time)"
	@$(BIN)/python -m pip install --disable-pip-version-check --editable '.[$(1)]'
	@touch .venv/.$(1)
endef
