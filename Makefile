PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check

# The stamp is newer than the files that say what to install, so an edit of them installs again.
.venv/installed: pyproject.toml requirements-dev.txt constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check --quiet -r requirements-dev.txt
	@touch $@

demo: .venv/installed
	@mkdir -p outputs
	$(BIN)/harmony image examples/composite.jpg examples/mask.png -o outputs/harmonized.jpg --side-by-side --overwrite

test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow and not gpu and not network"

check: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) test
