"""Harmonize pictures with any model of the registry, at the resolution they come in."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from harmony_diffusion.errors import InputError
from harmony_diffusion.highres.harmonize import harmonize_picture
from harmony_diffusion.images.masks import MaskSource, check_background
from harmony_diffusion.images.picture import Picture, PictureSource, load_pairs, load_reference_masks
from harmony_diffusion.models import MODELS, load_model
from harmony_diffusion.models.contract import HarmonyModel
from harmony_diffusion.numbers import check_number
from harmony_diffusion.pipelines.output import HarmonizationOutput

logger = logging.getLogger(__name__)

OUTPUT_TYPES = ("pil", "np", "pt", "picture")


class HarmonizationPipeline(DiffusionPipeline):
    """Make the foreground of a composite agree with its background.

    Args:
        model: Any model of `harmony_diffusion.MODELS`.

    Example:
        >>> import numpy as np
        >>> from harmony_diffusion import HarmonizationPipeline, load_model
        >>> pipe = HarmonizationPipeline(load_model("reinhard"))
        >>> composite = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        >>> mask = np.zeros((64, 64), np.uint8)
        >>> mask[20:40, 20:40] = 255
        >>> pipe(composite, mask, output_type="np").images[0].shape
        (64, 64, 3)
    """

    model_cpu_offload_seq = "model"  # type: ignore[assignment]
    model: HarmonyModel

    def __init__(self, model: ModelMixin) -> None:
        super().__init__()
        self.register_modules(model=model)
        self.model.eval()
        self._warned_of_prompt = False

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str] = "default", **options: Any
    ) -> "HarmonizationPipeline":
        """Load a pipeline: `"default"` and other models that come with the package work offline.

        Args:
            pretrained_model_name_or_path: `"default"`, a name `load_model` takes, a folder of a model, or, as
                with every pipeline of diffusers, a folder or Hub id of a saved pipeline.
            options: As in diffusers; of a model alone, `torch_dtype`.

        Raises:
            CheckpointError: Nothing to load by this name.
        """
        name = str(pretrained_model_name_or_path)
        is_model = (Path(name) / "config.json").is_file() and not (Path(name) / "model_index.json").is_file()
        if name == "default" or name in MODELS or is_model:
            return cls(load_model(name).to(options.get("torch_dtype", torch.float32)))  # type: ignore[arg-type]
        return super().from_pretrained(pretrained_model_name_or_path, **options)

    @torch.no_grad()
    def __call__(
        self,
        composite: PictureSource | Sequence[PictureSource],
        mask: MaskSource | Sequence[MaskSource],
        prompt: str | list[str] | None = None,
        *,
        strength: float = 1.0,
        reference_mask: MaskSource | Sequence[MaskSource | None] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> HarmonizationOutput | tuple[Any, Any]:
        """Harmonize one composite or a list of them.

        Where the mask is 0 the result is the input to the bit. Each picture is worked on by itself, so a list
        gives exactly what a loop over it gives.

        Args:
            composite: A path, PIL image, `Picture`, array `(H, W, 3)` of uint8, uint16 or float in [0, 1],
                tensor `(3, H, W)` or `(B, 3, H, W)` in [0, 1], or a list of these.
            mask: The foreground of each composite, of the same height and width: 1 (white) is foreground,
                soft values are kept. Same kinds as `composite`, with one channel.
            prompt: Accepted so that pipelines can be swapped; these models read no text.
            strength: 0 returns the input, 1 the model's result, values between blend the two.
            reference_mask: Which part of the background to harmonize to, as `mask`; all of it by
                default, or where a list holds None.
            output_type: `"pil"` (8 bits), `"np"` (arrays in the composite's own dtype), `"pt"` (float tensors
                in [0, 1]) or `"picture"` (bit depth, profile and EXIF kept; write with `save`).
            return_dict: Return a `HarmonizationOutput`, else the tuple `(images, filters)`.

        Returns:
            The harmonized images, and the filter arguments `(B, F)` of white-box models.

        Raises:
            InputError: A picture, mask or argument that cannot be used; nothing was computed.
        """
        self.check_inputs(prompt, strength, output_type)
        pairs = load_pairs(composite, mask)
        references = load_reference_masks(reference_mask, [picture for picture, _ in pairs])
        for (_, foreground), reference in zip(pairs, references, strict=True):
            check_background(foreground, reference)

        results = []
        with self.progress_bar(total=len(pairs)) as progress:
            for (picture, foreground), reference in zip(pairs, references, strict=True):
                results.append(
                    harmonize_picture(self.model, picture, foreground, reference=reference, strength=strength)
                )
                progress.update()

        images = export_pictures([picture for picture, _ in results], output_type)
        filters = stack_filters([filters for _, filters in results])
        self.maybe_free_model_hooks()
        return HarmonizationOutput(images, filters) if return_dict else (images, filters)

    def check_inputs(self, prompt: str | list[str] | None, strength: float, output_type: str) -> None:
        """Check what can be checked before any picture is read.

        Raises:
            InputError: A value out of its range.
        """
        check_number("strength", strength, 0, 1)
        if output_type not in OUTPUT_TYPES:
            raise InputError("output_type", f"must be one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}")
        if prompt is not None and not self._warned_of_prompt:
            logger.warning("`prompt` is ignored: %s reads no text.", type(self.model).__name__)
            self._warned_of_prompt = True


def export_pictures(pictures: list[Picture], output_type: str) -> Any:
    """Turn pictures into what the caller asked for; see `HarmonizationPipeline.__call__`."""
    if output_type == "picture":
        return pictures
    if output_type == "pil":
        return [picture.to_pil() for picture in pictures]
    if output_type == "np":
        return [picture.to_numpy() for picture in pictures]
    tensors = [picture.to_tensor() for picture in pictures]
    return torch.stack(tensors) if len({t.shape for t in tensors}) == 1 else tensors


def stack_filters(filters: list[torch.Tensor | None]) -> torch.Tensor | None:
    """Concatenate the filter arguments of several pictures to `(B, F)`; None for models without."""
    known = [f for f in filters if f is not None]
    return torch.cat(known) if known else None
