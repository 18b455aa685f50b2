"""The diffusion pipeline at the published size."""

import json
import subprocess
import sys

import pytest

PROGRAM = """
import json, resource, time
import numpy as np, torch
from harmony_diffusion.pipelines.stable_diffusion import StableDiffusionHarmonizationPipeline
from harmony_diffusion.diffusion.random_weights import random_components

start = time.perf_counter()
pipe = StableDiffusionHarmonizationPipeline(**random_components("full", dtype=torch.bfloat16))
pipe.set_progress_bar_config(disable=True)
built = time.perf_counter()
composite = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
mask = np.zeros((512, 512), np.uint8)
mask[160:352, 160:352] = 255
output = pipe(composite, mask, "a cup on a table", num_inference_steps=2, output_type="array")
result, (region,) = output.images[0], output.regions
print(json.dumps({
    "parameters": {n: c.num_parameters() for n, c in pipe.components.items() if hasattr(c, "num_parameters")},
    "size": [region.working_height, region.working_width],
    "background": bool((result[:100] == composite[:100]).all()),
    "changed": float((result[mask > 0] != composite[mask > 0]).mean()),
    "build_seconds": built - start,
    "call_seconds": time.perf_counter() - built,
    "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
}))
"""


@pytest.mark.slow
def test_published_size_runs_in_24_gib():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    print(figures)  # `pytest -rP` shows it
    assert figures["parameters"]["unet"] == 865_925_124
    assert 363e6 < figures["parameters"]["controlnet_high"] < 365e6
    assert figures["size"] == [512, 512] and figures["background"] and figures["changed"] > 0.9
    assert figures["peak_gib"] < 24
