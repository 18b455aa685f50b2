"""The one thing every dataset yields."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class HarmonySample:
    """One composite with its mask and, where there is one, its ground truth, as files.

    Attributes:
        name: Name of the composite, unique in the dataset.
        subset: Part of the dataset it belongs to.
        composite: File of the composite.
        mask: File of the mask.
        real: File of the ground truth.
        prompt: Caption of the picture, empty when there is none.
    """

    name: str
    subset: str
    composite: Path
    mask: Path
    real: Path
    prompt: str = ""
