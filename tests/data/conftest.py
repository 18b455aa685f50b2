import csv

import numpy as np
import pytest
from PIL import Image
from tiny_pictures import disc, picture


@pytest.fixture
def photographs_folder(tmp_path):
    """Nine photographs of two sources: index.csv, SOURCE/ID.jpg, SOURCE/ID.png (1 bit), as in photos/."""
    root = tmp_path / "photos"
    rows = [("street", "train")] * 6 + [("food", "train")] * 2 + [("food", "test")]
    root.mkdir()
    with (root / "index.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("source", "id", "split", "licence", "licence_class"))
        for number, (source, split) in enumerate(rows):
            (root / source).mkdir(exist_ok=True)
            Image.fromarray(picture(number)).save(root / source / f"p.{number}.jpg", quality=95)
            mask = Image.fromarray(disc(center=(20 + number, 28 + number)))
            mask.convert("1").save(root / source / f"p.{number}.png")
            kind = "permissive" if source == "food" else "research"
            writer.writerow((source, f"p.{number}", split, "CC0 1.0", kind))
    return root


@pytest.fixture
def iharmony4_folder(tmp_path):
    """Two subsets in the published layout, with the file names of the real ones."""
    root = tmp_path / "iharmony4"
    names = {
        "HCOCO": ["c100_318219_1.jpg", "c100_318219_2.jpg", "c7_5_1.jpg"],
        "Hday2night": ["d1048-20120628-200951_1_3.jpg"],
    }
    merged = []
    for subset, composites in names.items():
        for folder in ("composite_images", "masks", "real_images"):
            (root / subset / folder).mkdir(parents=True)
        for name in composites:
            mask_name, real_name = name.rsplit("_", 1)[0], name.rsplit("_", 2)[0]
            real = picture(len(real_name))
            mask = disc()
            composite = np.where(mask[..., None] > 0, 255 - real, real)
            Image.fromarray(composite).save(root / subset / "composite_images" / name)
            Image.fromarray(mask).save(root / subset / "masks" / f"{mask_name}.png")
            Image.fromarray(real).save(root / subset / "real_images" / f"{real_name}.jpg")
        (root / subset / f"{subset}_test.txt").write_text("\n".join(composites) + "\n")
        merged += [f"{subset}/composite_images/{name}" for name in composites]
    (root / "IHD_test.txt").write_text("\n".join(merged) + "\n")
    return root
