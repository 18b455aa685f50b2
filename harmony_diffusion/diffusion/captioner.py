"""Describe what the diffusion pipeline works on, for prompts nobody wrote: BLIP, as in the paper."""

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from harmony_diffusion.data.captions import generate_captions, prepare_picture
from harmony_diffusion.highres.offload import load_offloaded


def caption_images(captioner: Any, processor: Any, images: list[Tensor]) -> list[str]:
    """Describe images, as the captions of training were made.

    Args:
        captioner: `transformers.BlipForConditionalGeneration`, which may be offloaded.
        processor: Its `transformers.BlipProcessor`.
        images: Images in [0, 1], each `(1, 3, H, W)`; sizes may differ.

    Returns:
        One caption an image.
    """
    load_offloaded(captioner)
    arrays = [(image[0] * 255).round().byte().permute(1, 2, 0).cpu().numpy() for image in images]
    inputs = [prepare_picture(processor, Image.fromarray(array)) for array in arrays]
    return generate_captions(processor, captioner, torch.stack(inputs)) if inputs else []
