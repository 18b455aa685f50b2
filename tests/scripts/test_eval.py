import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).resolve().parents[2] / "eval" / "eval_dataset.py"


@pytest.fixture
def tiny_iharmony4(tmp_path):
    """Two composites of one ground truth, brighter by 10 and by 20 on a quarter of the frame."""
    folder = tmp_path / "data" / "HCOCO"
    for name in ("composite_images", "masks", "real_images"):
        (folder / name).mkdir(parents=True)
    real = np.full((256, 256, 3), 100, np.uint8)
    mask = np.zeros((256, 256), np.uint8)
    mask[:128, :128] = 255
    Image.fromarray(real).save(folder / "real_images" / "c1.png")
    Image.fromarray(mask).save(folder / "masks" / "c1_1.png")
    for k, shift in ((1, 10), (2, 20)):
        composite = real.copy()
        composite[mask > 0] += np.uint8(shift)
        Image.fromarray(composite).save(folder / "composite_images" / f"c1_1_{k}.png")
    (folder / "HCOCO_test.txt").write_text("c1_1_1.png\nc1_1_2.png\n")
    return tmp_path


def test_rows_hold_the_known_errors(tiny_iharmony4):
    out = tiny_iharmony4 / "out"
    command = [sys.executable, SCRIPT, "--data", tiny_iharmony4 / "data", "--model", "identity"]
    run = subprocess.run([*command, "--output", out], check=True, capture_output=True, text=True)
    rows = list(csv.DictReader((out / "rows.csv").open()))
    assert [row["name"] for row in rows] == ["c1_1_1", "c1_1_2"]
    for row, shift in zip(rows, (10, 20), strict=True):
        assert float(row["fmse"]) == pytest.approx(shift**2)
        assert float(row["mse"]) == pytest.approx(shift**2 / 4)
        assert float(row["psnr"]) == pytest.approx(10 * np.log10(255**2 * 4 / shift**2))
        assert float(row["foreground_ratio"]) == pytest.approx(0.25)
    assert "| all | 2 | 62.50 |" in run.stdout
