"""Predict the colour transforms of the default model on a small copy and apply them to the full picture."""

import torch
import torch.nn.functional as F

from harmony_diffusion import load_mask, load_model, load_picture

composite = torch.tensor(load_picture("examples/composite.jpg").pixels).permute(2, 0, 1)[None].float() / 255
mask = torch.tensor(load_mask("examples/mask.png"))[None, None].float()

model = load_model("default")
with torch.no_grad():
    small = (F.interpolate(image, (160, 160), mode="area") for image in (composite, mask))
    filters = model.predict_filters(*small)  # (1, 21, 10, 10): a coarse grid of 3 x 7 matrices
    harmonized = model.apply_filters(composite, filters, mask)
    half = model.apply_filters(composite, filters / 2, mask)

print("filters", tuple(filters.shape), "result", tuple(harmonized.shape))
print(
    "mean change",
    (harmonized - composite).abs().mean().item(),
    "with half of it",
    (half - composite).abs().mean().item(),
)
