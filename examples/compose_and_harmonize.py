"""Paste a cut-out on a background, then harmonize it; the mask comes from the cut-out's alpha."""

import sys
from pathlib import Path

from PIL import Image

from harmony_diffusion import HarmonizationPipeline

examples = Path(__file__).parent
output = Path(sys.argv[1] if len(sys.argv) > 1 else "outputs")
output.mkdir(parents=True, exist_ok=True)

cut_out = Image.open(examples / "foreground.png").convert("RGBA")
composite = Image.open(examples / "background.jpg").convert("RGB")
mask = Image.new("L", composite.size)
composite.paste(cut_out, (18, 119), cut_out)
mask.paste(cut_out.getchannel("A"), (18, 119))

pipe = HarmonizationPipeline.from_pretrained("default")
pipe(composite, mask).images[0].save(output / "composed.png")
