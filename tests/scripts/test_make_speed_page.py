import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "eval" / "make_speed_page.py"


def make(*options):
    return subprocess.run(
        [sys.executable, SCRIPT, *options], check=True, capture_output=True, text=True
    ).stdout


def test_page_is_made_from_its_files(tmp_path):
    make("--output", tmp_path / "speed.md")
    assert (tmp_path / "speed.md").read_text("utf-8") == (ROOT / "docs" / "speed.md").read_text("utf-8")


def test_every_figure_file_has_a_section_and_others_are_left_out(tmp_path):
    for file in (ROOT / "docs" / "speed").glob("*.json"):
        report = json.loads(file.read_text("utf-8"))
        folder = tmp_path / file.stem
        folder.mkdir()
        (folder / file.name).write_text(json.dumps(report))
        told = make("--folder", folder, "--output", folder / "speed.md")
        page = (folder / "speed.md").read_text("utf-8")
        assert page.count("\n## ") == 1 and f"{file.stem}.json is missing" not in told
        assert page.count("\n| `") >= (
            0 if file.stem in ("large", "runtime") else len(report.get("rows", [1]))
        )
