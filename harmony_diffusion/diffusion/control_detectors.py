"""Control images by a detector of others: controlnet-aux, or any function from image to image."""

import inspect
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from harmony_diffusion.diffusion.control_images import check_foreground, cut_foreground, keep_inside
from harmony_diffusion.errors import InputError, InputTypeError, MissingDependencyError

BACKENDS = ("opencv", "controlnet_aux")
ControlDetector = Callable[..., Any]


def detector_image(
    foreground: Tensor, mask: Tensor, detector: ControlDetector, *, silhouette: bool = True
) -> Tensor:
    """Draw the control image of the foreground by a detector, as `canny_image` does by OpenCV.

    Args:
        foreground: Image that holds the foreground, in [0, 1], `(B, 3, H, W)`.
        mask: 1 on the foreground, soft values allowed, `(B, 1, H, W)`.
        detector: Function of a PIL image. It returns a PIL image, or an array `(h, w)` or `(h, w, 3)` of
            uint8 or of floats in [0, 1]; another size is resized. Detectors of controlnet-aux, which take
            `detect_resolution` and `image_resolution`, get the size of the image.
        silhouette: See `canny_image`.

    Returns:
        `(B, 3, H, W)` in [0, 1].

    Raises:
        SizeMismatchError: `foreground` and `mask` do not fit together.
        InputTypeError: `detector` cannot be called, or returns no image.
        InputError: It returns an image of another shape or range.
    """
    check_detector(detector)
    check_foreground(foreground, mask)
    pixels = cut_foreground(foreground, mask, silhouette)
    drawn = np.stack([_detect(detector, one) for one in pixels])
    images = torch.from_numpy(drawn).permute(0, 3, 1, 2).to(foreground)
    return images if silhouette else images * keep_inside(mask).to(images)


def check_detector(detector: Any) -> None:
    """Check that a detector can be called.

    Raises:
        InputTypeError: It cannot.
    """
    if not callable(detector):
        raise InputTypeError(
            "control_detector",
            f"is a {type(detector).__name__}, expected a function from image to image",
            "Give for example `controlnet_aux.HEDdetector.from_pretrained(…)`.",
        )


def controlnet_aux_canny(low_threshold: float = 100, high_threshold: float = 200) -> ControlDetector:
    """Return the Canny detector of controlnet-aux with these thresholds.

    It draws the edges that `canny_image` draws where height and width are multiples of 64; other sizes it
    resizes.

    Raises:
        MissingDependencyError: controlnet-aux, or a package that it imports, is not installed.
    """
    try:
        from controlnet_aux.canny import CannyDetector
    except ImportError as error:
        raise MissingDependencyError(
            f"This backend needs controlnet-aux, and {error.name or error} is missing. "
            'Run `pip install "harmony-diffusion[controlnet-aux]"`, or use the backend opencv.'
        ) from error
    detector = CannyDetector()

    def detect(image: Image.Image, detect_resolution: int, image_resolution: int) -> Any:
        return detector(
            image,
            low_threshold=low_threshold,
            high_threshold=high_threshold,
            detect_resolution=detect_resolution,
            image_resolution=image_resolution,
        )

    return detect


def _detect(detector: ControlDetector, pixels: np.ndarray) -> np.ndarray:
    """Return what a detector draws for `(H, W, 3)` uint8, as `(H, W, 3)` float32 in [0, 1]."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    takes = _parameters(detector)
    options = {name: side for name in ("detect_resolution", "image_resolution") if name in takes}
    answer = detector(Image.fromarray(pixels), **options)
    if isinstance(answer, Image.Image):
        answer = np.asarray(answer.convert("RGB"))
    if not isinstance(answer, np.ndarray):
        raise InputTypeError(
            "control_detector", f"returns a {type(answer).__name__}, expected a PIL image or an array"
        )
    if answer.ndim == 2:
        answer = answer[..., None].repeat(3, -1)
    if answer.ndim != 3 or answer.shape[-1] != 3:
        raise InputError(
            "control_detector", f"returns the shape {answer.shape}, expected (h, w) or (h, w, 3)"
        )
    drawn = answer.astype(np.float32) / (255 if answer.dtype == np.uint8 else 1)
    if not (np.isfinite(drawn).all() and drawn.min() >= 0 and drawn.max() <= 1):
        raise InputError("control_detector", "returns values outside [0, 1]", "Return uint8, or scale them.")
    if drawn.shape[:2] != (height, width):
        drawn = cv2.resize(drawn, (width, height), interpolation=cv2.INTER_LINEAR)
    return drawn


def _parameters(detector: ControlDetector) -> set[str]:
    try:
        return set(inspect.signature(detector).parameters)
    except (TypeError, ValueError):  # functions written in C may have no signature
        return set()
