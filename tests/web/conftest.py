import os
import shutil
from pathlib import Path

import pytest

WEB = Path(__file__).resolve().parents[2] / "web"


@pytest.fixture(scope="session")
def web():
    """Folder of the page with the model and the runtime that `make web` puts there."""
    pytest.importorskip("onnxruntime")
    for name in ("model/export.json", "runtime/ort.wasm.bundle.min.mjs"):
        if not (WEB / name).is_file():
            pytest.skip(f"web/{name} is absent: run `make web`")
    return WEB


@pytest.fixture(scope="session")
def node():
    program = shutil.which("node")
    if program is None:
        pytest.skip("node is not installed")
    return program


@pytest.fixture(scope="session")
def chromium():
    names = [os.environ.get("HARMONY_CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome"]
    program = next((found for name in names if name and (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium is installed (HARMONY_CHROMIUM can name one)")
    return program
