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
    if path.parent.name != "cli":
        assert not [call.lineno for call in calls if call.func.id == "print"]
    assert len(text.splitlines()) <= 600


# The map in CONTRIBUTING.md, from the top down; each is a line of modules that may import one another.
ROOMS = (
    ("", "image_processor"),  # public names, and an address of 0.1.0 that re-exports
    ("cli",),
    ("app",),
    ("batch",),
    ("export",),
    ("hub",),
    ("reports",),
    ("training",),
    ("pipelines",),
    ("video",),
    ("diffusion",),
    ("data",),
    ("metrics",),
    ("highres",),
    ("models",),
    ("images",),
    ("color", "boxes", "morphology", "numbers", "paths", "json_text", "process", "errors"),
)
HEIGHT = {name: len(ROOMS) - number for number, room in enumerate(ROOMS) for name in room}


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def height_of(module):
    return HEIGHT[module.split(".")[1] if "." in module else ""]


def imported_modules(tree):
    """Yield the modules of the package that are imported anywhere in a file, and the line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names if alias.name.split(".")[0] == PACKAGE.name]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE.name:
            names = [(f"{node.module}.{alias.name}", alias.name) for alias in node.names]
            found = [
                full if full in MODULES else node.module for full, name in names if name != "__version__"
            ]
        else:
            continue
        yield from ((module, node.lineno) for module in found)


def runs_only_for_type_checkers(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def without_type_checking(tree):
    tree.body = [node for node in tree.body if not runs_only_for_type_checkers(node)]
    return tree


def graph_of_imports(*, types=True):
    graph = {}
    for name, path in MODULES.items():
        tree = ast.parse(path.read_text())
        graph[name] = dict(imported_modules(tree if types else without_type_checking(tree)))
    return graph


def test_every_room_is_in_the_list():
    names = {name.split(".")[1] for name in MODULES if "." in name}
    assert names <= {*HEIGHT}, names - {*HEIGHT}
    assert {"cli", "training", "data", "models", "images"} <= names


def test_imports_point_down_the_list_of_rooms():
    upward = [
        f"{name}:{line} imports {other}"
        for name, imports in graph_of_imports().items()
        for other, line in imports.items()
        if height_of(other) > height_of(name)
    ]
    assert not upward, upward


def test_the_check_of_directions_sees_imports_in_functions():
    tree = ast.parse(
        "def f():\n    from harmony_diffusion.cli import main\n    import harmony_diffusion.color as c"
    )
    assert dict(imported_modules(tree)) == {"harmony_diffusion.cli": 2, "harmony_diffusion.color": 3}
    assert height_of("harmony_diffusion.cli") > height_of("harmony_diffusion.color")


def test_no_module_imports_itself_by_a_circle():
    graph = graph_of_imports(types=False)
    assert sum(map(len, graph.values())) > 200
    done, path = set(), []

    def visit(module):
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module in done:
            return
        path.append(module)
        for other in graph[module]:
            visit(other)
        done.add(path.pop())

    for module in graph:
        visit(module)


def test_few_modules_stand_at_the_top():
    assert len(list(PACKAGE.glob("*.py"))) <= 12


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


def test_the_map_for_contributors_is_complete():
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    rooms = [path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"]
    folders = subprocess.run(
        ["git", "ls-tree", "-d", "--name-only", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    for name in [*rooms, *(folder for folder in folders if not folder.startswith("."))]:
        assert f"{name}/" in text, name
    for path in PACKAGE.glob("*.py"):
        assert path.stem == "__init__" or path.name in text, path.name
