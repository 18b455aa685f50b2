"""From what is drawn on the page to the file of a mask, and back."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from harmony_diffusion.app.auto_mask import find_object
from harmony_diffusion.app.engine import Engine
from harmony_diffusion.app.previews import (
    PAINT_SIDE,
    fit,
    jpeg_url,
    mask_url,
    read_mask_url,
    small_alpha,
    small_mask,
    small_pixels,
)
from harmony_diffusion.errors import InputError, MaskError, SizeMismatchError
from harmony_diffusion.images.arrays import note
from harmony_diffusion.images.compose import save_mask
from harmony_diffusion.images.masks import load_mask
from harmony_diffusion.images.picture import Picture, load_picture
from harmony_diffusion.numbers import check_number

_NOISE = 2.5 / 255  # a drawing that differs less than this from the mask below it is no change
_FIRST = "Upload a picture first."


def open_picture(engine: Engine, path: str) -> dict[str, Any]:
    """Return what the drawing board shows of a picture, and its own transparency as a mask."""
    picture = load_picture(path, max_pixels=engine.max_pixels)
    height, width = fit(picture.size, PAINT_SIDE)
    return {
        "picture": jpeg_url(small_pixels(picture, PAINT_SIDE), small_alpha(picture, PAINT_SIDE)),
        "width": width,
        "height": height,
        "full": list(picture.size[::-1]),
        "transparent": picture.alpha is not None,
    }


def mask_of_file(engine: Engine, path: str, picture: str | None) -> str:
    """Save the mask in a file, scaled to a picture, and return the path of the copy.

    Raises:
        InputError: There is no picture, or the mask cannot be read.
    """
    size = _size(engine, picture)
    try:
        mask = load_mask(path, size=size, max_pixels=engine.max_pixels)
    except SizeMismatchError as error:
        note(error.subject, f"{error.reason}: it is scaled to that")
        mask = load_mask(path, size=size, resize=True, max_pixels=engine.max_pixels)
    return _saved(engine, mask)


def mask_of_alpha(engine: Engine, picture: str | None) -> str:
    """Save a picture's own transparency as a mask.

    Raises:
        MaskError: It has none.
    """
    visible = _open(engine, picture).visible
    if visible is None:
        raise MaskError(Path(picture or "").name, "has no transparency", "Paint the mask, or draw a box.")
    return _saved(engine, visible)


def mask_of_box(engine: Engine, picture: str | None, drawn: dict[str, Any]) -> str:
    """Save the mask of the object in the box and under the strokes that were drawn.

    Raises:
        MaskError: Nothing was drawn, or nothing found.
    """
    opened = _open(engine, picture)
    size = fit(opened.size, PAINT_SIDE)
    inside, outside = (read_mask_url(drawn.get(name), size) for name in ("inside", "outside"))
    pixels = small_pixels(opened, PAINT_SIDE)
    strokes = [None if stroke is None else stroke > 0.5 for stroke in (inside, outside)]
    mask = find_object(pixels, _box(drawn.get("box")), *strokes)
    return _saved(engine, _enlarged(mask, opened.size))


def mask_for_board(engine: Engine, bases: list[str], mask: str) -> tuple[list[str], dict[str, Any]]:
    """Return the masks that were sent to the drawing board with this one, and what the board shows of it."""
    return [*bases, mask], {"mask": mask_url(small_mask(_read(engine, mask), PAINT_SIDE)), "base": len(bases)}


def drawn_mask(engine: Engine, picture: str | None, bases: list[str], drawn: dict[str, Any]) -> str:
    """Save the mask that was drawn, and return the file: the base where nothing was drawn over it.

    Args:
        engine: Knows the limits.
        picture: File of the picture.
        bases: Files of masks at full resolution that were sent to the board; `drawn` says with which of them
            the drawing began.
        drawn: What the drawing board holds.

    Raises:
        InputError: It began with a mask that was never sent.
        MaskError: Nothing was drawn.
    """
    base = _base_of(bases, drawn.get("base"))
    size = _size(engine, picture)
    board = fit(size, PAINT_SIDE)
    painted = read_mask_url(drawn.get("mask"), board)
    if base is not None and not drawn.get("edited"):
        return base
    if painted is None or not painted.any():
        raise MaskError("mask", "is empty", "Paint the object, or draw a box and press Find object.")
    mask = _enlarged(painted, size)
    if base is not None:
        below = _read(engine, base)
        changed = np.abs(painted - small_mask(below, PAINT_SIDE)) > _NOISE
        changed = cv2.dilate(changed.astype(np.uint8), np.ones((3, 3), np.uint8))
        share = cv2.resize(changed, size[::-1], interpolation=cv2.INTER_NEAREST) > 0
        mask = np.where(share, mask, below)
    return _saved(engine, mask)


def _base_of(bases: list[str], index: object) -> str | None:
    if index is None:
        return None
    if type(index) is not int or not 0 <= index < len(bases):
        raise InputError("page", "sent what cannot be read", "Reload the page.")
    return bases[index]


def drawn_reference(engine: Engine, picture: str | None, drawn: dict[str, Any]) -> str | None:
    """Save the region to harmonize to, if one was drawn."""
    size = _size(engine, picture)
    painted = read_mask_url(drawn.get("reference"), fit(size, PAINT_SIDE))
    if painted is None or not painted.any():
        return None
    return _saved(engine, (_enlarged(painted, size) > 0.5).astype(np.float32))


def _enlarged(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return cv2.resize(mask, size[::-1], interpolation=cv2.INTER_LINEAR)


def _open(engine: Engine, picture: str | None) -> Picture:
    if not picture:
        raise InputError("picture", "is missing", _FIRST)
    return load_picture(picture, max_pixels=engine.max_pixels)


def _size(engine: Engine, picture: str | None) -> tuple[int, int]:
    return _open(engine, picture).size


def _read(engine: Engine, mask: str) -> np.ndarray:
    return load_mask(mask, max_pixels=engine.max_pixels)


def _saved(engine: Engine, mask: np.ndarray) -> str:
    path = engine.new_folder() / "mask.png"
    save_mask(mask, path)
    return str(path)


def _box(box: object) -> tuple[float, float, float, float] | None:
    if not box:
        return None
    try:
        left, top, right, bottom = (check_number("box", share) for share in box)  # type: ignore[attr-defined]
    except (TypeError, ValueError):  # of which the error of `check_number` is one
        raise InputError("box", "is no box", "Draw it again.") from None
    return left, top, right, bottom
