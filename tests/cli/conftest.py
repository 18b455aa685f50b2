import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder, with a composite c.png, its mask m.png, and both as a cut-out cut.png."""
    monkeypatch.chdir(tmp_path)
    composite = np.random.default_rng(0).integers(0, 256, (80, 96, 3), dtype=np.uint8)
    mask = np.zeros((80, 96), np.uint8)
    mask[20:40, 24:48] = 255
    Image.fromarray(composite).save("c.png")
    Image.fromarray(mask).save("m.png")
    Image.fromarray(np.dstack((composite, mask))).save("cut.png")
    return tmp_path
