"""Compare methods on one composite whose ground truth is known: a photograph with a darkened foreground."""

import torch

from harmony_diffusion import fmse, load_mask, load_model, load_picture, psnr

real = torch.tensor(load_picture("examples/background.jpg").pixels).permute(2, 0, 1)[None].float() / 255
mask = torch.tensor(load_mask("examples/mask.png"))[None, None].float()
composite = torch.lerp(real, real * 0.6, mask)

print(f"{'method':20} {'PSNR (dB)':>10} {'fMSE':>10}")
for name in ("identity", "reinhard", "mkl", "color_grid"):
    harmonized = load_model(name)(composite, mask)
    levels = (harmonized * 255).round(), (real * 255).round()
    print(f"{name:20} {psnr(*levels).item():10.2f} {fmse(*levels, mask).item():10.2f}")
