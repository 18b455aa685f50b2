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
