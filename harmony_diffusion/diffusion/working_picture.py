"""One picture on its way through the diffusion pipeline: cut out for the network, and put back."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from harmony_diffusion.diffusion.working_region import (
    Layers,
    WorkingRegion,
    choose_region,
    shadow_mask,
    split_layers,
)
from harmony_diffusion.highres.harmonize import shown_mask
from harmony_diffusion.images.masks import check_background
from harmony_diffusion.images.picture import Picture, load_pairs, load_pictures

# Pixels that hold more of the foreground than this are generated anew: their old value would show the network
# the colours it is to replace.
HOLE_THRESHOLD = 0.1


@dataclass
class WorkingPicture:
    """A picture, and what the network sees of it, all `(1, C, h, w)` at working size.

    Attributes:
        index: Position among the pictures of the call.
        picture: The composite.
        mask: 1 on the foreground, `(1, 1, H, W)`.
        generation_mask: What may change, as `mask`: the foreground, and where its shadow may fall.
        region: Which part the network sees; None when there is no foreground and nothing to do.
        composite: What it sees of the composite, in [0, 1].
        foreground: Picture that holds the foreground, in [0, 1].
        foreground_mask: 1 on the foreground.
        background: Picture that holds the background, in [0, 1].
        hole: 1 where the background is not shown to the network, else 0; M of the paper.
    """

    index: int
    picture: Picture
    mask: Tensor
    generation_mask: Tensor
    region: WorkingRegion | None = None
    composite: Any = None
    foreground: Any = None
    foreground_mask: Any = None
    background: Any = None
    hole: Any = None

    @property
    def size(self) -> tuple[int, int]:
        """Working height and width."""
        return (self.region.working_height, self.region.working_width) if self.region else (0, 0)

    def paste(
        self,
        generated: Tensor,
        *,
        detail: Literal["generated", "preserve"],
        feather: float,
        match_surroundings: bool,
    ) -> Picture:
        """Put what was generated, `(1, 3, h, w)` in [0, 1], back into the picture; see `WorkingRegion`."""
        assert self.region is not None
        before = self.picture.to_tensor()[None]
        after = self.region.paste(
            generated.float().cpu(),
            before,
            self.generation_mask,
            detail=detail,
            feather=feather,
            match_surroundings=match_surroundings,
        )
        window = self.region.window
        before, after = before[0, :, *window], after[0, :, *window]
        changed = (after != before).any(0).numpy()
        visible = self.picture.visible
        if visible is not None:
            changed &= visible[window] > 0
        pixels = self.picture.pixels.copy()
        values = after.permute(1, 2, 0).numpy()
        np.copyto(pixels[window], self.picture.write_srgb(values, *window), where=changed[..., None])
        return self.picture.with_pixels(pixels)

    def split(self, result: Picture) -> Layers:
        """Take a result apart into foreground and shadow."""
        composite = self.picture.to_tensor()[None]
        return split_layers(result.to_tensor()[None], composite, self.mask, self.generation_mask)


def load_working_pictures(
    composite: Any,
    mask: Any,
    foreground: Any,
    background: Any,
    *,
    shadow: bool,
    working_size: int,
    context: float,
) -> list[WorkingPicture]:
    """Load pictures and masks, and cut out what the network works on.

    Args:
        composite: See `load_pairs`.
        mask: See `load_pairs`.
        foreground: Picture of the composite's size to take the foreground's edges and colours from, or a list
            of such; None = the composite.
        background: Picture of the composite's size without the foreground, or a list; None = the composite.
        shadow: Leave room for a shadow.
        working_size: See `choose_region`.
        context: See `choose_region`.

    Raises:
        InputError: Something that cannot be used; its subclasses tell what.
    """
    pairs = load_pairs(composite, mask)
    pictures = [picture for picture, _ in pairs]
    foregrounds = _load_others(foreground, "foreground", pictures)
    backgrounds = _load_others(background, "background", pictures)
    works = []
    for index, (picture, array) in enumerate(pairs):
        check_background(array)
        shown = torch.from_numpy(shown_mask(picture, array).copy())[None, None]
        work = WorkingPicture(index, picture, shown, shadow_mask(shown) if shadow else shown)
        if shown.any():
            _cut(work, foregrounds[index], backgrounds[index], working_size, context)
        works.append(work)
    return works


def _cut(
    work: WorkingPicture, foreground: Picture, background: Picture, working_size: int, context: float
) -> None:
    region = choose_region(work.generation_mask, working_size=working_size, context=context)
    work.region = region
    work.composite = region.cut(work.picture.to_tensor()[None])
    work.foreground = _cut_other(work, foreground, region)
    work.background = _cut_other(work, background, region)
    work.foreground_mask = region.cut(work.mask)
    unknown = work.generation_mask
    if work.picture.visible is not None:
        hidden = torch.from_numpy(work.picture.visible == 0)[None, None]
        unknown = torch.maximum(unknown, hidden.to(unknown))
    work.hole = (region.cut(unknown) > HOLE_THRESHOLD).float()


def _cut_other(work: WorkingPicture, picture: Picture, region: WorkingRegion) -> Tensor:
    return work.composite if picture is work.picture else region.cut(picture.to_tensor()[None])


def _load_others(source: Any, name: str, pictures: list[Picture]) -> list[Picture]:
    return pictures if source is None else load_pictures(source, name=name, like=pictures)


def groups_of_equal_size(works: list[WorkingPicture]) -> Iterator[list[WorkingPicture]]:
    """Yield the pictures that have something to do, those of the same working size together, in order."""
    groups: dict[tuple[int, int], list[WorkingPicture]] = {}
    for work in works:
        if work.region is not None:
            groups.setdefault(work.size, []).append(work)
    yield from groups.values()


class Batch:
    """Pictures of one working size that are denoised together, and the tensors of that.

    Args:
        works: The pictures.
        images_each: Images to be made of each.
        generator: Source of the noise of the whole call: one, or one for each image of each picture.

    Attributes:
        rows: Position of each image among all images of the call.
        latents: Z_t, `(N, C, h, w)`.
        prompt_embeds: `(N, L, D)`, with guidance `(2N, L, D)`: those of the negative prompts first.
        mask: M' of equation 11: 1 where to generate, `(N, 1, h, w)`.
        masked_image_latents: Z_ms, the background's latents, `(N, C, h, w)`.
    """

    latents: Tensor
    prompt_embeds: Tensor
    mask: Tensor
    masked_image_latents: Tensor

    def __init__(
        self,
        works: list[WorkingPicture],
        images_each: int,
        generator: list[torch.Generator] | torch.Generator | None,
    ) -> None:
        self.works, self.images_each = works, images_each
        self.rows = [work.index * images_each + k for work in works for k in range(images_each)]
        self.generator = [generator[i] for i in self.rows] if isinstance(generator, list) else generator

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.rows)

    def stack(self, name: str) -> Tensor:
        """Return one attribute of all pictures, `(B, C, h, w)`."""
        return torch.cat([getattr(work, name) for work in self.works])

    def repeat(self, tensor: Tensor) -> Tensor:
        """Repeat `(B, …)` to `(N, …)`, the images of each picture in a row."""
        return tensor if self.images_each == 1 else tensor.repeat_interleave(self.images_each, 0)
