"""`make_sheet.py`: methods side by side."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).resolve().parents[2] / "eval" / "make_sheet.py"
LEVELS = {"a": 40, "b": 200}


@pytest.fixture
def sheet(monkeypatch, tmp_path):
    for folder, level in LEVELS.items():
        for name in ("coco/1", "coco/2", "dogs/3"):
            path = tmp_path / folder / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (64, 32), (level, level, int(name[-1]))).save(path)

    def make(*arguments):
        columns = [f"first={tmp_path / 'a'}", tmp_path / "b"]
        command = ["make_sheet.py", *columns, "--side", "32", "--output", tmp_path / "s.png", *arguments]
        monkeypatch.setattr(sys, "argv", [*map(str, command)])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return np.asarray(Image.open(tmp_path / "s.png"))

    return make


def test_columns_are_folders_and_lines_are_images(sheet):
    pixels = sheet("--names", "dogs/3", "coco/1")
    assert pixels.shape == (26 + 2 * (16 + 6), 6 + 2 * (32 + 6), 3)
    for line, number in ((0, 3), (1, 1)):
        for column, level in enumerate(LEVELS.values()):
            pixel = pixels[26 + line * 22 + 8, 6 + column * 38 + 16]
            assert pixel.tolist() == [level, level, number]


def test_first_names_are_taken_and_files_are_kept(sheet, tmp_path):
    (tmp_path / "b" / "coco" / "1.png").unlink()
    assert sheet("--count", "5").shape[0] == 26 + 2 * 22
    with pytest.raises(SystemExit, match="--overwrite|exists"):
        sheet()
    sheet("--count", "1", "--overwrite")
    with pytest.raises(SystemExit, match=r"1\.png: does not exist"):
        sheet("--names", "coco/1", "--overwrite")
    assert Image.open(tmp_path / "s.png").height == 26 + 22
