PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo web test check

# The stamp is newer than the files that say what to install, so an edit of them installs again.
.venv/installed: pyproject.toml requirements-dev.txt constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check --quiet -r requirements-dev.txt
	@touch $@

demo: .venv/installed
	@mkdir -p outputs
	$(BIN)/harmony image examples/composite.jpg examples/mask.png -o outputs/harmonized.jpg --side-by-side --overwrite

# The page without a server: web/ with the default model and the runtime beside it.
web: .venv/installed
	cd web && npm install --no-package-lock --ignore-scripts --no-audit --no-fund
	@mkdir -p web/runtime
	cp web/node_modules/onnxruntime-web/dist/ort.wasm.bundle.min.mjs \
		web/node_modules/onnxruntime-web/dist/ort-wasm-simd-threaded.mjs \
		web/node_modules/onnxruntime-web/dist/ort-wasm-simd-threaded.wasm web/runtime/
	$(BIN)/harmony export default web/model --overwrite

test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow and not gpu and not network"

check: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) test
