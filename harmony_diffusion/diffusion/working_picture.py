"""One picture on its way through the diffusion pipeline: cut out for the network, and put back."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harmony_diffusion.diffusion.conditioning import inpainting_mask
from harmony_diffusion.diffusion.shadows import Layers, shadow_mask, split_layers
from harmony_diffusion.diffusion.working_region import WorkingRegion, choose_region
from harmony_diffusion.highres.harmonize import shown_mask
from harmony_diffusion.images.masks import check_background
from harmony_diffusion.images.picture import Picture, PictureSource, load_pictures


@dataclass(frozen=True)
class View:
    """Inputs of the network from one picture, all `(1, C, h, w)` at working size.

    Attributes:
        composite: The composite, in [0, 1].
        foreground: Picture that holds the foreground, in [0, 1].
        foreground_mask: 1 on the foreground.
        background: Picture that holds the background, in [0, 1].
        inpainting_mask: M of equation 9: 1 where the network generates, else 0.
    """

    composite: Tensor
    foreground: Tensor
    foreground_mask: Tensor
    background: Tensor
    inpainting_mask: Tensor

    def mirrored(self) -> "View":
        """Return the mirror image, left and right exchanged."""
        return View(*(getattr(self, field.name).flip(3) for field in fields(self)))


@dataclass(frozen=True)
class WorkingPicture:
    """A picture, and the inputs of the network from it.

    Attributes:
        index: Position among the pictures of the call.
        picture: The composite.
        mask: 1 on the foreground, 0 where the picture is hidden, `(H, W)` float32.
        generation_mask: Where the picture may change, as `mask`: the foreground, and its shadow's place.
        region: The part that the network sees; None without foreground.
        view: The part at working size; None without foreground.
    """

    index: int
    picture: Picture
    mask: np.ndarray
    generation_mask: np.ndarray
    region: WorkingRegion | None = None
    view: View | None = None

    def mirrored(self) -> "WorkingPicture":
        """Return the same picture with a mirrored view; what is generated must be mirrored before `paste`."""
        return replace(self, view=self.view and self.view.mirrored())

    def paste(self, generated: Tensor, pasting: dict[str, Any], reference: Tensor | None = None) -> Picture:
        """Put the network's output back into the picture; see `WorkingRegion.paste_picture`.

        Args:
            generated: `(1, 3, h, w)` in [0, 1].
            pasting: Options of `paste_picture`.
            reference: The composite as the network reproduces it, `(1, 3, h, w)`; None for the composite.
        """
        assert self.region is not None
        before = None if reference is None else reference.float().cpu()
        return self.region.paste_picture(
            self.picture, self.generation_mask, generated.float().cpu(), **pasting, reference=before
        )

    def split(self, result: Picture) -> Layers:
        """Split a result into foreground and shadow."""
        composite, *masks = self.picture.to_tensor(), self.mask, self.generation_mask
        planes = [torch.from_numpy(mask)[None, None] for mask in masks]
        return split_layers(result.to_tensor()[None], composite[None], *planes)


def make_working_pictures(
    pairs: Sequence[tuple[Picture, np.ndarray]],
    foreground: PictureSource | Sequence[PictureSource] | None,
    background: PictureSource | Sequence[PictureSource] | None,
    *,
    shadow: bool,
    working_size: int,
    context: float,
) -> list[WorkingPicture]:
    """Cut out what the network works on.

    Args:
        pairs: Composites and their masks, as `load_pairs` returns them.
        foreground: Picture of the composite's size to take the foreground's edges and colours from, or a list
            of such; None = the composite.
        background: Picture of the composite's size without the foreground, or a list; None = the composite.
        shadow: Leave room for a shadow.
        working_size: See `choose_region`.
        context: See `choose_region`.

    Raises:
        InputError: An input that cannot be used; the subclass says which kind.
    """
    pictures = [picture for picture, _ in pairs]
    foregrounds = _load_like(foreground, pictures, "foreground")
    backgrounds = _load_like(background, pictures, "background")
    for _, mask in pairs:
        check_background(mask)
    return [
        _cut(index, *pair, foregrounds[index], backgrounds[index], shadow, working_size, context)
        for index, pair in enumerate(pairs)
    ]


def _cut(
    index: int,
    picture: Picture,
    mask: np.ndarray,
    foreground: Picture,
    background: Picture,
    shadow: bool,
    working_size: int,
    context: float,
) -> WorkingPicture:
    mask = generated = shown_mask(picture, mask)
    if not mask.any():
        return WorkingPicture(index, picture, mask, generated)
    if shadow:
        generated = shadow_mask(torch.from_numpy(mask)[None, None])[0, 0].numpy()
    region = choose_region(
        torch.from_numpy(generated)[None, None], working_size=working_size, context=context
    )
    visible = picture.visible
    unknown = generated if visible is None else np.where(visible == 0, np.float32(1), generated)
    composite = region.cut_picture(picture)
    view = View(
        composite=composite,
        foreground=composite if foreground is picture else region.cut_picture(foreground),
        foreground_mask=_cut_mask(region, mask),
        background=composite if background is picture else region.cut_picture(background),
        inpainting_mask=inpainting_mask(_cut_mask(region, unknown)),
    )
    return WorkingPicture(index, picture, mask, generated, region, view)


def _cut_mask(region: WorkingRegion, mask: np.ndarray) -> Tensor:
    return region.cut(torch.from_numpy(mask)[None, None])


def _load_like(
    source: PictureSource | Sequence[PictureSource] | None, pictures: list[Picture], name: str
) -> list[Picture]:
    """Load one picture for each composite, of the same size; return the composites without a source."""
    return pictures if source is None else load_pictures(source, name=name, like=pictures)


@dataclass(frozen=True)
class Group:
    """Pictures of one working size, which the networks process together.

    Attributes:
        works: The pictures; each has a view.
        images_each: Images to be made of each.
    """

    works: tuple[WorkingPicture, ...]
    images_each: int = 1

    @cached_property
    def rows(self) -> list[int]:
        """Position of each image among all images of the call."""
        return [work.index * self.images_each + k for work in self.works for k in range(self.images_each)]

    def stack(self, name: str) -> Tensor:
        """Return one attribute of all views, `(B, C, h, w)`."""
        return torch.cat([getattr(work.view, name) for work in self.works])

    def mirrored(self) -> "Group":
        """Return the same pictures with mirrored views."""
        return Group(tuple(work.mirrored() for work in self.works), self.images_each)

    def repeat(self, tensor: Tensor) -> Tensor:
        """Repeat `(B, …)` to `(N, …)`, the images of each picture in a row."""
        return tensor if self.images_each == 1 else tensor.repeat_interleave(self.images_each, 0)


def groups_of_equal_size(works: Sequence[WorkingPicture], images_each: int) -> Iterator[Group]:
    """Yield the pictures that have a foreground, those of the same working size together, in order."""
    groups: dict[tuple[int, int], list[WorkingPicture]] = {}
    for work in works:
        if work.region is not None:
            groups.setdefault(work.region.working_size, []).append(work)
    for group in groups.values():
        yield Group(tuple(group), images_each)


@dataclass(frozen=True)
class Batch:
    """The tensors of one group between two denoising steps.

    Attributes:
        rows: Position of each image among all images of the call.
        latents: Z_t, `(N, C, h, w)`.
        prompt_embeds: `(N, L, D)`, with guidance `(2N, L, D)`: the negative prompts first.
        mask: M' of equation 11: 1 where the network generates, `(N, 1, h, w)`.
        masked_image_latents: Z_ms, the background's latents, `(N, C, h, w)`.
        mirrored: The finished batch of the mirrored pictures; None = it is not wanted.
    """

    rows: Sequence[int]
    latents: Tensor
    prompt_embeds: Tensor
    mask: Tensor
    masked_image_latents: Tensor
    mirrored: "Batch | None" = None

    @property
    def negative_prompt_embeds(self) -> Tensor | None:
        """Embeddings of the negative prompts, `(N, L, D)`; None without guidance."""
        count = len(self.latents)
        return self.prompt_embeds[:count] if len(self.prompt_embeds) == 2 * count else None
