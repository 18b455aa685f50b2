"""Harmonize a 16-bit array; background pixels stay equal to the bit."""

import numpy as np
from PIL import Image

from harmony_diffusion import HarmonizationPipeline, load_mask, load_picture

composite = load_picture("examples/composite.jpg").pixels.astype(np.uint16) * 257
mask = load_mask("examples/mask.png")

pipe = HarmonizationPipeline.from_pretrained("default")
harmonized = pipe(composite, mask, output_type="picture").images[0].pixels

assert harmonized.dtype == np.uint16
assert np.array_equal(harmonized[mask == 0], composite[mask == 0])
print("levels used in the foreground:", len(np.unique(harmonized[mask > 0])))
print("as 8 bits:", Image.fromarray((harmonized // 257).astype(np.uint8)).size)
