"""The wheel works alone: built from the sources, installed in an empty environment, run in another folder."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow  # minutes: it installs PyTorch


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


def test_it_holds_the_package_with_its_weights_and_nothing_else(wheel):
    archive = zipfile.ZipFile(wheel)
    names = archive.namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"harmony_diffusion"}
    assert "harmony_diffusion/weights/color_grid/diffusion_pytorch_model.safetensors" in names
    second = archive.getinfo("harmony_diffusion/weights/harmonizer_lite/diffusion_pytorch_model.safetensors")
    assert wheel.stat().st_size - second.compress_size < 15e6
    assert second.file_size < 9e6


def test_harmony_image_runs_from_an_empty_environment(wheel, tmp_path):
    """Install as the Dockerfile says, in another place, and run the demo outside of the sources."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    install = tmp_path / "install"
    install.mkdir()
    for file in (ROOT / "constraints.txt", wheel):
        shutil.copy(file, install)
    (line,) = re.findall(r"^RUN (pip install .*)$", (ROOT / "Dockerfile").read_text("utf-8"), flags=re.M)
    binaries = tmp_path / "venv" / "bin"
    subprocess.run(
        ["bash", "-c", f"{binaries}/{line.replace('/tmp/install', str(install))} && {binaries}/pip check"],
        check=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    files = [str(ROOT / "examples" / name) for name in ("composite.jpg", "mask.png")]
    command = [binaries / "harmony", "image", *files, "-o", "out.png"]
    subprocess.run(command, check=True, cwd=tmp_path, env={"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1"})
    with Image.open(tmp_path / "out.png") as result, Image.open(files[0]) as composite:
        assert result.size == composite.size
        assert result.tobytes() != composite.tobytes()
