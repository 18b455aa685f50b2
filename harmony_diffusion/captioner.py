"""Describe a picture in words, for prompts nobody wrote: BLIP, as in the paper."""

from typing import Any

import torch
from torch import Tensor

from harmony_diffusion.controlnets import load_offloaded

_MOST_WORDS = 40


@torch.no_grad()
def caption_images(captioner: Any, processor: Any, images: list[Tensor]) -> list[str]:
    """Describe images.

    Args:
        captioner: `transformers.BlipForConditionalGeneration`.
        processor: Its `transformers.BlipProcessor`.
        images: Images in [0, 1], each `(1, 3, H, W)`; sizes may differ.

    Returns:
        One caption an image.
    """
    load_offloaded(captioner)
    arrays = [(image[0] * 255).round().byte().permute(1, 2, 0).cpu().numpy() for image in images]
    pixels = processor(images=arrays, return_tensors="pt").pixel_values.to(captioner.device, captioner.dtype)
    tokens = captioner.generate(pixel_values=pixels, max_new_tokens=_MOST_WORDS)
    return [caption.strip() for caption in processor.batch_decode(tokens, skip_special_tokens=True)]
