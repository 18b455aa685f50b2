"""What every pipeline returns."""

from dataclasses import dataclass
from typing import Any

from diffusers.utils import BaseOutput


@dataclass
class HarmonizationOutput(BaseOutput):
    """Output of a harmonization pipeline.

    Attributes:
        images: Harmonized images, one per composite: a list of PIL images (`output_type="pil"`), of HWC
            arrays in the dtype of the composite (`"np"`), of `Picture` (`"picture"`), or one tensor
            `(B, 3, H, W)` in [0, 1] (`"pt"`; a list of `(3, H, W)` when sizes differ).
        filters: White-box filter arguments, `(B, F)`, or None for models that have none.
    """

    images: Any
    filters: Any = None


@dataclass
class DiffusionHarmonizationOutput(HarmonizationOutput):
    """Output of the diffusion pipeline.

    Attributes:
        images: As in `HarmonizationOutput`, `num_images_per_prompt` in a row for each composite; with
            `output_type="latent"` the latents `(B, 4, h, w)` (a list of them when sizes differ).
        filters: None.
        prompts: The text that each composite was harmonized with, given or captioned; None when embeddings
            were given.
        regions: The `WorkingRegion` of each composite; None where nothing was generated.
        nsfw_content_detected: What the safety checker said of each image; None without one.
        layers: `Layers` of each image when they were asked for, else None.
    """

    prompts: list[str] | None = None
    regions: Any = None
    nsfw_content_detected: list[bool] | None = None
    layers: Any = None
