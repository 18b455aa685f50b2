"""What the page harmonizes: files, from which picture and mask are read again for each rendering."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harmony_diffusion.images.compose import Composition, compose
from harmony_diffusion.images.masks import load_mask
from harmony_diffusion.images.picture import Picture, load_pairs, load_picture, load_reference_masks
from harmony_diffusion.images.shadow import Shadow

# Formats that are written as well as read. A result of another format is a PNG.
_WRITTEN = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".avif", ".bmp"}


@dataclass(frozen=True, eq=False)
class Scene:
    """A composite, its mask, and which part of the background to harmonize to."""

    composite: Picture
    mask: np.ndarray
    reference: np.ndarray | None = None
    layers: Composition | None = None


@dataclass(frozen=True)
class CompositeFiles:
    """A finished composite.

    Attributes:
        composite: Its file.
        mask: File of its mask, of the same size.
        reference: File of the mask of the background to harmonize to, or None.
        max_pixels: Limit of height times width.
    """

    composite: str
    mask: str
    reference: str | None = None
    max_pixels: int = 100_000_000

    def load(self) -> Scene:
        """Read the files."""
        ((composite, mask),) = load_pairs(self.composite, self.mask, max_pixels=self.max_pixels)
        (reference,) = load_reference_masks(self.reference, [composite], max_pixels=self.max_pixels)
        return Scene(composite, mask, reference)

    def result_name(self) -> str:
        """Return the name of the result's file: in the format of the input."""
        return _result_name(self.composite, "harmonized")


@dataclass(frozen=True)
class PastedFiles:
    """A cut-out, and where it lies on a background.

    Attributes:
        foreground: File of the cut-out.
        background: File of the background.
        mask: File of the cut-out's mask, or None.
        at: Left and top in pixels of the background.
        scale: Size relative to its own.
        shadow: A shadow, "auto", or None.
        decontaminate: Remove the colour of the old background from soft edges.
        max_pixels: Limit of height times width.
    """

    foreground: str
    background: str
    mask: str | None
    at: tuple[int, int]
    scale: float
    shadow: Shadow | str | None = None
    decontaminate: bool = False
    max_pixels: int = 100_000_000

    def load(self) -> Scene:
        """Read the files, and paste."""
        foreground, background = (
            load_picture(path, max_pixels=self.max_pixels) for path in (self.foreground, self.background)
        )
        mask = (
            None
            if self.mask is None
            else load_mask(self.mask, size=foreground.size, max_pixels=self.max_pixels)
        )
        layers = compose(
            foreground,
            background,
            mask,
            at=self.at,
            scale=self.scale,
            shadow=self.shadow,
            decontaminate=self.decontaminate,
        )
        return Scene(layers.composite, layers.mask, layers=layers)

    def result_name(self) -> str:
        """Return the name of the result's file: in the format of the background."""
        return _result_name(self.background, "composed")


def _result_name(path: str, ending: str) -> str:
    source = Path(path)
    suffix = source.suffix.lower() if source.suffix.lower() in _WRITTEN else ".png"
    return f"{source.stem}_{ending}{suffix}"
