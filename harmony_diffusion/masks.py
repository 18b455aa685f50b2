"""Masks: read from anything, checked, and returned as float32 with 1 on the foreground."""

import os

import cv2
import numpy as np
import torch
from PIL import Image

from harmony_diffusion.errors import InputError, InputTypeError, MaskError, SizeMismatchError
from harmony_diffusion.image_arrays import Raster, array_of, clamp_float, note
from harmony_diffusion.image_files import raster_of_pil, read_file

MaskSource = str | os.PathLike[str] | Image.Image | np.ndarray | torch.Tensor


def load_mask(
    source: MaskSource,
    *,
    size: tuple[int, int] | None = None,
    name: str = "mask",
    invert: bool = False,
    label: int | None = None,
    resize: bool = False,
    max_pixels: int = 100_000_000,
) -> np.ndarray:
    """Load a mask.

    Args:
        source: Path, PIL image, array or tensor.
        size: Height and width the mask must have.
        name: For messages, when `source` has no path.
        invert: Take what is black for the foreground.
        label: Take the pixels of this value of a label map for the foreground.
        resize: Resize the mask to `size` (nearest when it is hard, bilinear when it is soft).
        max_pixels: Limit of height times width.

    Returns:
        `(H, W)` float32 in [0, 1].

    Raises:
        InputError: Something that cannot be read.
        MaskError: It cannot say what the foreground is.
        SizeMismatchError: It has another size than `size`, and `resize` is false.
    """
    if isinstance(source, str | os.PathLike):
        name = os.fsdecode(source)
        plane = _plane(read_file(source, max_pixels=max_pixels, frame=0, allow_truncated=False))
    elif isinstance(source, Image.Image):
        plane = _plane(raster_of_pil(source, name))
    elif isinstance(source, np.ndarray | torch.Tensor):
        plane = array_of(source, name)
        plane = plane[..., 0] if plane.ndim == 3 and plane.shape[2] == 1 else plane
        plane = plane[0] if plane.ndim == 3 and plane.shape[0] == 1 else plane
    else:
        raise InputTypeError(
            name, f"is a {type(source).__name__}", "Give a path, PIL image, array or tensor."
        )
    mask = (plane == label).astype(np.float32) if label is not None else _scaled(plane, name)
    if invert:
        mask = 1 - mask
    if size is not None and mask.shape != tuple(size):
        if not resize:
            raise SizeMismatchError(
                name,
                f"is {mask.shape[1]}x{mask.shape[0]}, the composite is {size[1]}x{size[0]}",
                "Give a mask of the same size, or allow resizing with `resize` (`--resize-mask`).",
            )
        hard = bool(np.isin(mask, (0, 1)).all())
        mask = cv2.resize(
            mask, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT if hard else cv2.INTER_LINEAR
        )
    if not mask.any():
        note(name, "is empty: there is no foreground, and the picture stays as it is")
    return mask


def _plane(raster: Raster) -> np.ndarray:
    if raster.alpha is not None and raster.alpha.min() != raster.alpha.max():
        return raster.alpha
    if raster.channels.shape[2] == 1:
        return raster.channels[..., 0]
    return np.rint(raster.channels @ np.array([0.299, 0.587, 0.114], np.float32)).astype(
        raster.channels.dtype
    )


def _scaled(plane: np.ndarray, name: str) -> np.ndarray:
    if plane.ndim != 2:
        raise InputError(name, f"has shape {plane.shape}", "Give a mask of shape `(H, W)`.")
    if plane.dtype == bool:
        return plane.astype(np.float32)
    if np.issubdtype(plane.dtype, np.floating):
        return clamp_float(plane, name, largest=1.001)
    if plane.dtype not in (np.uint8, np.uint16):
        raise InputTypeError(name, f"values of type {plane.dtype}", "Give bool, uint8, uint16 or float.")
    if plane.max() == 1:
        note(name, "holds the values 0 and 1; 1 is taken for foreground")
        return plane.astype(np.float32)
    return plane.astype(np.float32) / np.iinfo(plane.dtype).max


def check_background(
    mask: np.ndarray | torch.Tensor, reference: np.ndarray | torch.Tensor | None = None
) -> None:
    """Check that there is background to harmonize to.

    Args:
        mask: 1 on the foreground, any shape.
        reference: Weight of the background pixels in [0, 1], of the same shape; None = all of them.

    Raises:
        MaskError: No pixel is background.
    """
    if not bool(((mask < 1) if reference is None else ((mask < 1) & (reference > 0))).any()):
        raise MaskError("mask", "leaves no background to harmonize to", "Mark only the pasted object.")
