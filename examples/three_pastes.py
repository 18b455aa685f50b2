"""Harmonize the pastes in `pastes/` and show them in one picture: before above, after below."""

import sys
from pathlib import Path

from PIL import Image

from harmony_diffusion import HarmonizationPipeline

pastes = Path(__file__).parent / "pastes"
output = Path(sys.argv[1] if len(sys.argv) > 1 else "outputs")
output.mkdir(parents=True, exist_ok=True)

names = ["sloth", "burger", "dog"]
composites = [Image.open(pastes / f"{name}.jpg") for name in names]
pipe = HarmonizationPipeline.from_pretrained("default")
results = pipe(composites, [pastes / f"{name}_mask.png" for name in names]).images

width, height = composites[0].size
sheet = Image.new("RGB", (3 * width + 12, 2 * height + 6), "white")
for column, pair in enumerate(zip(composites, results, strict=True)):
    for row, image in enumerate(pair):
        sheet.paste(image, (column * (width + 6), row * (height + 6)))
sheet.save(output / "three_pastes.jpg", quality=92)
print(output / "three_pastes.jpg")
