"""Images `(B, H, W, C)` and masks `(B, H, W)` of ComfyUI: sizes, batches, and the notes of the library."""

import contextlib
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

CATEGORY = "image/harmony"
MASK_TOOLTIP = (
    "White (1) is the foreground. The MASK output of LoadImage is 1 where the file is TRANSPARENT: put an "
    "InvertMask between them."
)


def check_image(image: Tensor, name: str, channels: tuple[int, ...] = (3,)) -> Tensor:
    """Return an image as contiguous float32 on the CPU, or raise what is wrong with it."""
    if image.ndim != 4 or image.shape[-1] not in channels:
        expected = " or ".join(f"(batch, height, width, {count})" for count in channels)
        raise ValueError(f"{name}: has the shape {tuple(image.shape)}, expected {expected}.")
    return _finite(image.detach().to("cpu", torch.float32), name).contiguous()


def check_mask(mask: Tensor, image: Tensor, name: str = "mask", resize: bool | None = None) -> Tensor:
    """Return a mask `(B, H, W)` of the size of the image.

    Args:
        mask: As ComfyUI gives it.
        image: What it belongs to.
        name: Of the input, for messages.
        resize: Resize a mask of another size; None for nodes that have no such option.
    """
    mask = mask.detach().to("cpu", torch.float32)
    mask = mask[None] if mask.ndim == 2 else mask
    if mask.ndim != 3:
        raise ValueError(f"{name}: has the shape {tuple(mask.shape)}, expected (batch, height, width).")
    size = image.shape[1:3]
    if mask.shape[1:] != size:
        if not resize:
            raise ValueError(
                f"{name}: is {mask.shape[2]}x{mask.shape[1]} pixels, the image is {size[1]}x{size[0]}. "
                f"Connect a mask of the same size{'.' if resize is None else ', or switch on resize_mask.'}"
            )
        mask = torch.nn.functional.interpolate(mask[:, None], size=size, mode="bilinear", antialias=True)[
            :, 0
        ]
    return _finite(mask, name).clamp(0, 1).contiguous()


def _finite(values: Tensor, name: str) -> Tensor:
    if not values.isfinite().all():
        raise ValueError(f"{name}: holds values that are no finite numbers. Replace them first.")
    return values


def broadcast(**batches: Tensor | None) -> list[Tensor | None]:
    """Repeat single items to the longest batch; other differences in length are an error."""
    counts = {name: len(batch) for name, batch in batches.items() if batch is not None}
    longest = max(counts.values())
    for name, count in counts.items():
        if count not in (1, longest):
            other = next(key for key, value in counts.items() if value == longest)
            raise ValueError(
                f"{name}: has {count} items in its batch, {other} has {longest}. Give as many, or one."
            )
    return [
        batch if batch is None or len(batch) == longest else batch.expand(longest, *batch.shape[1:])
        for batch in batches.values()
    ]


@contextlib.contextmanager
def collect_notes(notes: list[str]) -> Iterator[None]:
    """Append the library's notes on pictures and masks, such as that a mask is empty."""
    from harmony_diffusion.errors import InputNote

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", InputNote)
        yield
    notes += [str(entry.message) for entry in caught if issubclass(entry.category, InputNote)]


def status(notes: list[str]) -> dict[str, list[str]] | None:
    """Return the text that ComfyUI shows below a node; None without notes."""
    return {"text": list(dict.fromkeys(notes))} if notes else None
