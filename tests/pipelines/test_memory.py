"""Memory of the diffusion pipeline beyond its networks: bounded by the picture, whatever its size."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys
sys.path.insert(0, "tests")
import numpy as np
import torch
from tiny_diffusion import make_pipe, seeded, trained_like

def peak():
    # Of this process alone: ru_maxrss of a child begins with the peak of the parent that started it.
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024

torch.set_num_threads(1)
height, width = int(sys.argv[1]), int(sys.argv[2])
pipe = make_pipe(trained_like(), working_size=128)
options = {"generator": seeded(), "num_inference_steps": 1, "guidance_scale": 1.0, "output_type": "picture"}

def harmonize(height, width):
    composite = np.empty((height, width, 3), np.uint8)
    composite[..., 0] = np.linspace(10, 240, width)
    composite[..., 1] = np.linspace(250, 20, height)[:, None]
    composite[..., 2] = 120
    mask = np.zeros((height, width), np.uint8)
    mask[height // 10 : -height // 10, width // 10 : -width // 10] = 255
    for detail in ("generated", "preserve"):
        (result,) = pipe(composite, mask, "", detail=detail, match_surroundings=True, **options).images
        assert (result.pixels[0] == composite[0]).all() and (result.pixels != composite).any()

harmonize(height // 2, width // 2)  # what does not grow with the picture is counted here
before = peak()
harmonize(height, width)
print((peak() - before) / (0.75 * height * width))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from /proc")
@pytest.mark.parametrize(
    ("height", "width", "most"),
    [(1800, 2400, 40), pytest.param(4032, 6048, 25, marks=pytest.mark.slow)],
    ids=["4 MP", "24 MP"],
)
def test_memory_is_a_few_bytes_for_each_pixel(height, width, most):
    """As floats, a picture alone takes 12 bytes for each pixel, and the mask 4."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, str(height), str(width)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    print(run.stdout)  # `pytest -rP` shows it
    assert float(run.stdout.splitlines()[-1]) < most
