"""Every program and the notebook in `examples` run as they stand, from the root of the repository."""

import json
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAMS = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_example_runs(program, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [str(program), str(tmp_path)])
    runpy.run_path(str(program), run_name="__main__")
    assert list(tmp_path.glob("*.png")) or capsys.readouterr().out.strip()


def test_there_are_six_programs_and_the_index_names_them():
    assert len(PROGRAMS) >= 6
    index = (ROOT / "examples" / "README.md").read_text("utf-8")
    assert all(f"`{program.name}`" in index for program in PROGRAMS)


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom():
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(ROOT / "examples" / "tour.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}}).execute()
    last = notebook.cells[-1].outputs[0]["text"]
    assert "harmonized" in last
    pictures = [
        o for cell in notebook.cells for o in cell.get("outputs", ()) if "image/png" in o.get("data", {})
    ]
    assert len(pictures) >= 6


def test_the_notebook_is_stored_without_outputs():
    cells = json.loads((ROOT / "examples" / "tour.ipynb").read_text("utf-8"))["cells"]
    assert not any(cell.get("outputs") for cell in cells)
