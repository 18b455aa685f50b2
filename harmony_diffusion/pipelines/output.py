"""What every pipeline returns."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from torch import Tensor

from harmony_diffusion.images.picture import Picture

OUTPUT_TYPES = ("pil", "np", "pt", "picture", "array")


@dataclass
class HarmonizationOutput(BaseOutput):
    """Output of a harmonization pipeline.

    Attributes:
        images: Harmonized images, one for each composite. The `output_type` of the call chooses the kind:

            - "pil": a list of PIL images of 8 bits;
            - "np": float32 sRGB values in [0, 1] without alpha, an array `(B, H, W, 3)`, as in diffusers;
            - "pt": the same values as a tensor `(B, 3, H, W)`;
            - "picture": a list of `Picture`, with bit depth, profile, alpha and EXIF; write with `save`;
            - "array": a list of `(H, W, 3)` arrays in the composite's own dtype and colour space, `(H, W, 4)`
              with alpha.

            "np" and "pt" are lists of single images when the sizes differ.
        filters: Filter arguments of white-box models, `(B, F)`; None for other models.
    """

    images: Any
    filters: Any = None


@dataclass
class DiffusionHarmonizationOutput(HarmonizationOutput):
    """Output of the diffusion pipeline.

    Attributes:
        images: As in `HarmonizationOutput`, `num_images_per_prompt` in a row for each composite. With
            `output_type="latent"` the latents `(B, C, h, w)`, or a list of `(C, h, w)` when the sizes differ
            or an image has none. The list holds None for an image that was not generated: its mask is
            empty, `strength` is 0, or the call was interrupted.
        filters: None.
        prompts: The prompt of each composite, given or captioned; None when embeddings were given.
        regions: The `WorkingRegion` of each composite; None without foreground.
        nsfw_content_detected: Verdict of the safety checker on each image; None without a safety checker.
        layers: `Layers` of each image with `return_layers=True`, else None.
    """

    prompts: list[str] | None = None
    regions: Any = None
    nsfw_content_detected: list[bool] | None = None
    layers: Any = None


def export_pictures(pictures: list[Picture], output_type: str) -> Any:
    """Convert pictures to an output type; see `HarmonizationOutput`."""
    if output_type == "picture":
        return pictures
    if output_type == "pil":
        return [picture.to_pil() for picture in pictures]
    if output_type == "array":
        return [picture.to_numpy() for picture in pictures]
    tensors = [picture.to_tensor() for picture in pictures]
    if output_type == "pt":
        return stack_equal(tensors)
    arrays = [np.ascontiguousarray(tensor.permute(1, 2, 0).numpy()) for tensor in tensors]
    return np.stack(arrays) if len({array.shape for array in arrays}) == 1 else arrays


def stack_equal(tensors: list[Any]) -> Tensor | list[Any]:
    """Stack tensors of one size to `(B, …)`; return a list with other sizes, or None in it, as it is."""
    if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors):
        return tensors
    return torch.stack(tensors) if len({tensor.shape for tensor in tensors}) == 1 else tensors
