"""Small copies of pictures and masks, as the page shows them, and masks as the page sends them."""

import base64
import binascii
import io

import cv2
import numpy as np
from PIL import Image

from harmony_diffusion.errors import InputError
from harmony_diffusion.images.picture import Picture

PAINT_SIDE = 1024  # longer side of what is painted on
VIEW_SIDE = 1600  # longer side of results
_GREY = 0.75  # shown behind transparent pixels
_MOST_CHARACTERS = 8_000_000  # of a picture that the page sends
_PNG = "data:image/png;base64,"


def fit(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Return height and width with the longer side at most `side`."""
    scale = min(1.0, side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def small_pixels(picture: Picture, side: int) -> np.ndarray:
    """Return an sRGB copy `(h, w, 3)` uint8, whose longer side is at most `side`."""
    height, width = fit(picture.size, side)
    values = (
        picture.read_srgb()
        if (height, width) == picture.size
        else picture.thumbnail_srgb(height, width, antialias=True)
    )
    return np.rint(values * 255).astype(np.uint8)


def small_alpha(picture: Picture, side: int) -> np.ndarray | None:
    """Return the alpha of `small_pixels` as float32 in [0, 1]; None if the picture is opaque."""
    visible = picture.visible
    return None if visible is None else small_mask(visible, side)


def small_mask(mask: np.ndarray, side: int) -> np.ndarray:
    """Return a mask `(H, W)` at the size of `small_pixels`."""
    height, width = fit((mask.shape[0], mask.shape[1]), side)
    return cv2.resize(mask, (width, height), interpolation=cv2.INTER_AREA)


def jpeg_url(pixels: np.ndarray, alpha: np.ndarray | None = None) -> str:
    """Return a data URL of a picture over grey."""
    if alpha is not None:
        pixels = np.rint(pixels * alpha[..., None] + 255 * _GREY * (1 - alpha[..., None])).astype(np.uint8)
    return _data_url(Image.fromarray(pixels), "jpeg")


def png_url(pixels: np.ndarray, alpha: np.ndarray) -> str:
    """Return a data URL of a cut-out."""
    rgba = np.dstack((pixels, np.rint(alpha * 255).astype(np.uint8)))
    return _data_url(Image.fromarray(rgba), "png")


def mask_url(mask: np.ndarray) -> str:
    """Return a data URL of a mask: alpha is the mask."""
    white = np.full((*mask.shape, 3), 255, np.uint8)
    return png_url(white, mask)


def read_mask_url(url: object, size: tuple[int, int]) -> np.ndarray | None:
    """Return the alpha of a PNG that the page sends, `(H, W)` float32 in [0, 1]; None for nothing.

    Raises:
        InputError: It is no such PNG, or of another size.
    """
    if not url:
        return None
    try:
        if not isinstance(url, str) or not url.startswith(_PNG) or len(url) > _MOST_CHARACTERS:
            raise ValueError
        with Image.open(
            io.BytesIO(base64.b64decode(url[len(_PNG) :], validate=True)), formats=["PNG"]
        ) as image:
            if image.size != size[::-1]:
                raise ValueError
            alpha = np.asarray(image.convert("RGBA"))[..., 3]
    except (ValueError, OSError, SyntaxError, binascii.Error):
        raise InputError(
            "mask", "what the page sent is no drawing of this picture", "Reload the page."
        ) from None
    return alpha.astype(np.float32) / 255


def _data_url(image: Image.Image, kind: str) -> str:
    file = io.BytesIO()
    # Fast compression: the page is on the same machine.
    image.save(file, kind.upper(), **({"quality": 90} if kind == "jpeg" else {"compress_level": 1}))
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
