"""What the layout promises: import direction, lazy imports, Hub entry files, wheel contents, script names."""

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "harmony_diffusion"
SCRIPT_FOLDERS = ("train", "eval", "pipelines")
OPTIONAL = {
    "av",
    "gradio",
    "onnx",
    "onnxruntime",
    "datasets",
    "torchmetrics",
    "controlnet_aux",
    "xformers",
    "bitsandbytes",
    "ray",
}


def imported_roots(tree, *, top_level_only):
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_library_imports_no_script_and_no_optional_package_at_the_top(path):
    tree = ast.parse(path.read_text())
    assert not set(imported_roots(tree, top_level_only=False)) & {*SCRIPT_FOLDERS, "tests"}
    assert not set(imported_roots(tree, top_level_only=True)) & OPTIONAL


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_library_never_prints_and_files_stay_small(path):
    text = path.read_text()
    calls = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    if path.name != "cli.py":
        assert not [call.lineno for call in calls if call.func.id == "print"]
    assert len(text.splitlines()) <= 600


def test_metrics_and_data_know_no_model():
    for folder in ("metrics", "data"):
        for path in (PACKAGE / folder).rglob("*.py"):
            assert "harmony_diffusion.models" not in path.read_text(), path


@pytest.mark.parametrize("path", sorted((ROOT / "pipelines").glob("*.py")), ids=lambda p: p.name)
def test_hub_entry_file_is_a_docstring_and_one_import_of_one_class(path):
    docstring, statement = ast.parse(path.read_text()).body
    assert isinstance(docstring, ast.Expr)
    assert isinstance(statement, ast.ImportFrom) and statement.module.startswith(
        "harmony_diffusion.pipelines."
    )
    assert len(statement.names) == 1


def test_script_names_start_with_a_verb():
    for folder in ("train", "eval"):
        for path in (ROOT / folder).glob("*.py"):
            assert re.match(r"(train|eval|prepare|make|bench|rank)_", path.name), path


def test_no_catch_all_modules():
    names = {path.stem for path in PACKAGE.rglob("*.py")}
    assert not names & {"utils", "misc", "helpers", "common"}


def test_torchvision_is_absent():
    assert importlib.util.find_spec("torchvision") is None


@pytest.mark.parametrize(
    "arguments",
    [["-c", "import harmony_diffusion"], ["-m", "harmony_diffusion.cli", "--help"]],
    ids=["import", "help"],
)
def test_nothing_heavy_is_imported_early(arguments):
    run = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True, check=True
    )
    modules = {line.rsplit("|", 1)[-1].strip() for line in run.stderr.splitlines() if "|" in line}
    assert "harmony_diffusion" in modules
    assert not modules & {"torch", "diffusers", "transformers", "numpy", "cv2", "PIL"}


def test_every_public_name_loads():
    import harmony_diffusion

    for name in harmony_diffusion.__all__:
        assert getattr(harmony_diffusion, name) is not None
    with pytest.raises(AttributeError):
        _ = harmony_diffusion.no_such_name


def test_wheel_holds_the_package_and_nothing_else(tmp_path):
    setuptools = pytest.importorskip("setuptools")
    configured = subprocess.run(
        [
            sys.executable,
            "-c",
            "from setuptools import Distribution\n"
            "from setuptools.config.pyprojecttoml import apply_configuration\n"
            "d = Distribution(); apply_configuration(d, 'pyproject.toml'); print(*d.packages)",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert setuptools.__version__
    packages = configured.stdout.split()
    assert packages and {package.split(".")[0] for package in packages} == {"harmony_diffusion"}


def test_time_is_not_asserted_in_tests():
    # Machines are noisy: timings live in eval/bench_*.py.
    pattern = re.compile(r"assert .*(perf_counter|time\.time|elapsed)")
    for path in (ROOT / "tests").rglob("*.py"):
        if path != Path(__file__):
            assert not pattern.search(path.read_text()), path
