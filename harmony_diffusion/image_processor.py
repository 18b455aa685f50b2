"""The names of `harmony_diffusion.images` that had this address in 0.1.0."""

from harmony_diffusion.images.arrays import MAX_PIXELS
from harmony_diffusion.images.masks import MaskSource, check_background, load_mask
from harmony_diffusion.images.picture import Picture, PictureSource, load_pairs, load_picture

__all__ = [
    "MAX_PIXELS",
    "MaskSource",
    "Picture",
    "PictureSource",
    "check_background",
    "load_mask",
    "load_pairs",
    "load_picture",
]
