"""Pictures and masks of many megapixels are decoded without copies that are larger than they are."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harmony_diffusion.images.decoding import raster_of_pil
from harmony_diffusion.images.masks import load_mask

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys
from harmony_diffusion.images.masks import load_mask
from harmony_diffusion.images.picture import load_picture

def memory(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field)) * 1024

load_picture("small.png"), load_mask("small_mask.png")
before = memory("VmHWM")
picture = load_picture("large.png")
decoded = memory("VmHWM") - before
mask = load_mask("large_mask.png", size=picture.size)
print(decoded / picture.pixels.nbytes, (memory("VmRSS") - before) / picture.pixels.nbytes)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from /proc")
def test_decoding_needs_little_more_than_the_picture(tmp_path):
    for name, (width, height) in {"small": (64, 64), "large": (6000, 4000)}.items():
        Image.new("RGB", (width, height), (90, 120, 40)).save(tmp_path / f"{name}.png", compress_level=1)
        mask = np.zeros((height, width), np.uint8)
        mask[height // 3 : height // 2, width // 3 : width // 2] = 255
        Image.fromarray(mask).save(tmp_path / f"{name}_mask.png", compress_level=1)
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    decoded, held = map(float, run.stdout.split())
    # Pillow holds four bytes for each pixel, the array three.
    assert decoded < 2.7
    # A mask of floats would need 1.3 times the picture by itself.
    assert held < 1.7


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_pixels_are_those_of_pillow(mode):
    values = np.random.default_rng(0).integers(0, 256, (600, 37, len(mode)), dtype=np.uint8)
    image = Image.fromarray(values[..., 0] if mode == "L" else values, mode)
    raster = raster_of_pil(image, "picture")
    colors = values[..., : 1 if mode[0] == "L" else 3]
    assert np.array_equal(raster.channels, colors) and raster.channels.dtype == np.uint8
    assert (raster.alpha is None) == (mode[-1] != "A")
    if raster.alpha is not None:
        assert np.array_equal(raster.alpha, values[..., -1])


def test_soft_masks_are_divided_by_white_everywhere():
    values = np.random.default_rng(1).integers(0, 256, (200, 90), dtype=np.uint8)
    values[:70], values[:, 80:] = 0, 0
    np.testing.assert_array_equal(load_mask(values), values.astype(np.float32) / np.float32(255))
    hard = (values > 128).astype(np.uint8) * 255
    np.testing.assert_array_equal(load_mask(hard), (hard > 0).astype(np.float32))
