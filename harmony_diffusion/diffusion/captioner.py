"""Write the prompts that a caller leaves out, with BLIP, as in the paper."""

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from harmony_diffusion.data.captions import generate_captions, prepare_picture
from harmony_diffusion.highres.offload import load_offloaded


def caption_images(captioner: Any, processor: Any, images: list[Tensor]) -> list[str]:
    """Describe images in the same way as the captions for training.

    Args:
        captioner: `transformers.BlipForConditionalGeneration`; it may be offloaded.
        processor: Its `transformers.BlipProcessor`.
        images: Images in [0, 1], each `(1, 3, H, W)`; sizes may differ.

    Returns:
        One caption for each image.
    """
    load_offloaded(captioner)
    arrays = [(image[0] * 255).round().byte().permute(1, 2, 0).cpu().numpy() for image in images]
    inputs = [prepare_picture(processor, Image.fromarray(array)) for array in arrays]
    return generate_captions(processor, captioner, torch.stack(inputs)) if inputs else []
