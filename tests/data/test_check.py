import numpy as np
import pytest
from PIL import Image
from tiny_pictures import picture

from harmony_diffusion.cli import main
from harmony_diffusion.data.check import check_dataset


def reasons(report):
    return {problem.file.rsplit("/", 1)[1]: problem.reason for problem in report.problems}


@pytest.fixture
def damaged(iharmony4_folder):
    """One fault of each kind."""
    coco = iharmony4_folder / "HCOCO"
    names = ["c1_1_1.jpg", "c2_1_1.jpg", "c3_1_1.jpg", "c4_1_1.jpg", "c5_1_1.jpg", "c6_1_1.jpg"]
    for name in names:
        Image.fromarray(picture(1)).save(coco / "composite_images" / name)
        Image.fromarray(picture(1)).save(coco / "real_images" / f"{name[:2]}.jpg")
        mask = np.zeros((48, 64), np.uint8)
        mask[10:30, 10:30] = 255
        Image.fromarray(mask).save(coco / "masks" / f"{name[:4]}.png")
    (coco / "real_images" / "c1.jpg").unlink()
    data = (coco / "composite_images" / "c2_1_1.jpg").read_bytes()
    (coco / "composite_images" / "c2_1_1.jpg").write_bytes(data[:-200])
    Image.fromarray(np.full((40, 64), 255, np.uint8)).save(coco / "masks" / "c3_1.png")
    Image.fromarray(np.zeros((48, 64), np.uint8)).save(coco / "masks" / "c4_1.png")
    Image.fromarray(picture(1, 24, 32)).save(coco / "real_images" / "c5.jpg")
    Image.fromarray(np.full((48, 64), 255, np.uint8)).save(coco / "masks" / "c6_1.png")
    path = coco / "HCOCO_test.txt"
    path.write_text(path.read_text() + "\n".join([*names, "c7_5_1.jpg"]) + "\n")
    return iharmony4_folder


def test_every_fault_is_reported_with_file_and_reason(damaged):
    report = check_dataset(damaged, "test")
    assert report.count == 9  # of ten, the one without a real cannot be looked at
    found = reasons(report)
    assert "is missing" in found["c1"]
    assert "cannot be decoded" in found["c2_1_1.jpg"] and "truncated" in found["c2_1_1.jpg"]
    assert found["c4_1.png"].startswith("is empty")
    assert found["c5.jpg"] == "is 32x24, its picture is 64x48"
    assert found["c6_1.png"].startswith("covers the whole picture")
    assert "is already listed in" in found["HCOCO_test.txt:10"]
    sizes = [p.reason for p in report.problems if p.file.endswith("c3_1.png")]
    assert "is 64x40, its picture is 64x48" in sizes
    assert "lists 9 samples for test, published are 4283" in found["HCOCO"]


def test_the_command_prints_problems_and_fails(damaged, photographs_folder, capsys):
    assert main(["data", "check", str(damaged), "--split", "test"]) == 2
    captured = capsys.readouterr()
    assert "c4_1.png: is empty: no pixel is foreground\n" in captured.out
    assert "iharmony4: 9 samples looked at" in captured.out and "problems" in captured.err
    assert main(["data", "check", str(photographs_folder), "--filter", "licence_class=permissive"]) == 0
    assert capsys.readouterr().out == "photographs: 2 samples looked at, 0 problems\n"
    assert main(["data", "check", str(photographs_folder / "nothing")]) == 2


def test_photographs_are_checked(photographs_folder):
    (photographs_folder / "street" / "p.1.png").unlink()
    Image.fromarray(np.zeros((48, 64), np.uint8)).save(photographs_folder / "food" / "p.6.png")
    found = reasons(check_dataset(photographs_folder))
    assert set(found) == {"p.1.png", "p.6.png"} and found["p.6.png"].startswith("is empty")
