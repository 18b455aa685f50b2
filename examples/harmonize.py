"""Harmonize one composite and save the result with half of the effect besides."""

import sys
from pathlib import Path

from harmony_diffusion import HarmonizationPipeline

examples = Path(__file__).parent
output = Path(sys.argv[1] if len(sys.argv) > 1 else "outputs")
output.mkdir(parents=True, exist_ok=True)

pipe = HarmonizationPipeline.from_pretrained("default")
for strength in (0.5, 1.0):
    image = pipe(examples / "composite.jpg", examples / "mask.png", strength=strength).images[0]
    image.save(output / f"harmonized-{strength}.png")
