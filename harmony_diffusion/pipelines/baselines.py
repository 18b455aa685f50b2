"""Stable Diffusion inpainting and Paint by Example, the diffusion baselines, by diffusers' own pipelines.

Both generate the foreground of a composite: the first from a text alone, the second from an example picture,
which here is the cut-out foreground of the composite.

Papers: Rombach et al., CVPR 2022; Yang et al., "Paint by Example", CVPR 2023, arXiv 2211.13227.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from harmony_diffusion.data.cut_outs import cut_out
from harmony_diffusion.diffusion.base_models import check_base, load_autoencoder, load_base_components
from harmony_diffusion.errors import CheckpointError, InputError

SD_INPAINTING, PAINT_BY_EXAMPLE = "sd-inpainting", "paint-by-example"
BASELINES = (SD_INPAINTING, PAINT_BY_EXAMPLE)
PAINT_BY_EXAMPLE_REPOSITORY = "Fantasy-Studio/Paint-by-Example"
_GUIDANCE_SCALES = {SD_INPAINTING: 7.5, PAINT_BY_EXAMPLE: 5.0}  # diffusers' own


class InpaintingBaseline:
    """An inpainting pipeline of diffusers that takes composites.

    Args:
        name: One of `BASELINES`.
        source: Folder in diffusers layout, or id of a repository on the Hub. By default what
            `load_base_components` finds, or Paint by Example's own repository.

    Attributes:
        pipe: The pipeline, with UniPC as `StableDiffusionHarmonizationPipeline`. It has no safety checker:
            its black pictures would enter the scores.
        size: Side in pixels of its training images.

    Raises:
        CheckpointError: The weights cannot be found, or belong to another kind of model.
    """

    def __init__(self, name: str, source: str | os.PathLike[str] | None = None) -> None:
        self.name = name
        self.pipe = (_load_sd_inpainting if name == SD_INPAINTING else _load_paint_by_example)(source)
        self.pipe.set_progress_bar_config(disable=True)
        self.size = self.pipe.unet.config.sample_size * self.pipe.vae_scale_factor

    def generate(
        self,
        composite: Tensor,
        mask: Tensor,
        prompts: Sequence[str],
        generators: Sequence[torch.Generator],
        *,
        steps: int = 20,
        guidance_scale: float | None = None,
    ) -> Tensor:
        """Generate foregrounds.

        Args:
            composite: In [0, 1], `(B, 3, H, W)`, sides that are multiples of 8.
            mask: 1 on the foreground, `(B, 1, H, W)`; values from 0.5 on count as 1.
            prompts: One for each composite; Paint by Example ignores them.
            generators: Sources of noise, one for each composite.
            steps: Steps from noise to picture.
            guidance_scale: Weight of prompt or example; by default diffusers' own, 7.5 or 5.

        Returns:
            The decoded images, background included, in [0, 1], `(B, 3, H, W)` on the CPU.

        Raises:
            InputError: A side is not a multiple of 8.
        """
        height, width = composite.shape[-2:]
        if height % 8 or width % 8:
            raise InputError("size", f"is {width}x{height}", "Give a multiple of 8.")
        pictures = [_to_pil(one.permute(1, 2, 0)) for one in composite]
        masks = [_to_pil(one[0]) for one in mask]
        options: dict[str, Any] = {"image": pictures, "mask_image": masks, "num_inference_steps": steps}
        if self.name == SD_INPAINTING:
            options |= {"prompt": list(prompts), "height": height, "width": width}
        else:
            mean = self.pipe.feature_extractor.image_mean
            options["example_image"] = [
                cut_out(np.asarray(picture), np.asarray(plane), mean)
                for picture, plane in zip(pictures, masks, strict=True)
            ]
        images = self.pipe(
            **options,
            guidance_scale=_GUIDANCE_SCALES[self.name] if guidance_scale is None else guidance_scale,
            generator=list(generators),
            output_type="pt",
        ).images
        return images.float().cpu()


def _to_pil(image: Tensor) -> Image.Image:
    return Image.fromarray((255 * image).round().to(torch.uint8).cpu().numpy())


def _load_sd_inpainting(source: str | os.PathLike[str] | None) -> Any:
    from diffusers import StableDiffusionInpaintPipeline

    parts = load_base_components(source)
    return StableDiffusionInpaintPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


def _load_paint_by_example(source: str | os.PathLike[str] | None) -> Any:
    """Load the pipeline part by part: diffusers does not find the image encoder that it saved."""
    from diffusers import PaintByExamplePipeline, UNet2DConditionModel, UniPCMultistepScheduler
    from diffusers.pipelines.deprecated.paint_by_example.image_encoder import PaintByExampleImageEncoder
    from transformers import CLIPImageProcessor, CLIPVisionConfig

    place = os.fspath(source or PAINT_BY_EXAMPLE_REPOSITORY)
    try:
        unet = UNet2DConditionModel.from_pretrained(place, subfolder="unet")
        scheduler = UniPCMultistepScheduler.from_pretrained(place, subfolder="scheduler")
        check_base(unet, None, scheduler)
        # Without `config`, transformers builds the encoder with default sizes.
        config = CLIPVisionConfig.from_pretrained(place, subfolder="image_encoder")
        kind: Any = PaintByExampleImageEncoder
        encoder, loading = kind.from_pretrained(
            place, subfolder="image_encoder", config=config, output_loading_info=True
        )
        processor = CLIPImageProcessor.from_pretrained(place, subfolder="feature_extractor")
        vae = load_autoencoder(place)
    except OSError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"The weights of Paint by Example are neither here nor reachable: {place}: {reason}\nDownload "
            f"{PAINT_BY_EXAMPLE_REPOSITORY} where there is a network, and give the folder."
        ) from error
    if missing := sorted(loading["missing_keys"]):
        raise CheckpointError(f"{place}: the image encoder has no {missing[0]} ({len(missing)} missing).")
    return PaintByExamplePipeline(
        vae=vae,
        image_encoder=encoder,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,  # type: ignore[arg-type]
        feature_extractor=processor,
    )
