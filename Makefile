PYTHON ?= python3
PORT ?= 3000
BIN := .venv/bin

.PHONY: serve test

serve: .venv/.serve
	@$(BIN)/sparsegen serve --port $(PORT)

test: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.venv/.serve: pyproject.toml
	$(call install,serve)

# The page is tested in a real browser where there is one; on a CI machine it is installed.
.venv/.dev: pyproject.toml
	$(call install,dev)
	@if [ "$(CI)" = true ] && ! command -v chromium chromium-browser google-chrome >/dev/null; then \
		apt-get update -qq && apt-get install -qq -y chromium chromium-driver >/dev/null; fi

define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "sparsegen needs Python 3.11 or newer, this is " + sys.version)'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing sparsegen[$(1)] into .venv (some minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(1)]'
	@touch .venv/.$(1)
endef
