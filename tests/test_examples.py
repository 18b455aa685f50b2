"""Every program in `examples` runs as it stands, from the root of the repository."""

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
