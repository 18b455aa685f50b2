"""Tiny pipelines, pictures and masks for the tests of the diffusion pipeline."""

import numpy as np
import torch

from harmony_diffusion.diffusion.random_weights import random_components
from harmony_diffusion.pipelines.stable_diffusion import StableDiffusionHarmonizationPipeline


def trained_like(**options):
    """Components whose ControlNets' zero convolutions are not zero, as after training."""
    components = random_components("tiny", **options)
    generator = torch.Generator().manual_seed(1)
    for name in ("controlnet_high", "controlnet_low"):
        controlnet = components[name]
        outward = [*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block]
        for module in (*outward, controlnet.controlnet_cond_embedding.conv_out):
            for parameter in module.parameters():
                values = torch.randn(parameter.shape, generator=generator) * 0.2
                parameter.data.copy_(values)
    return components


def make_pipe(components, **config):
    pipe = StableDiffusionHarmonizationPipeline(**components, **{"working_size": 64, **config})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(size=(64, 64), seed=0, dtype=np.uint8):
    coarse = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(coarse, size, mode="bilinear")[0].permute(1, 2, 0).numpy()
    return smooth if dtype == np.float32 else (smooth * np.iinfo(dtype).max).round().astype(dtype)


def object_mask(size=(64, 64)):
    """A box in the middle, half as high and wide as the picture."""
    mask = np.zeros(size, np.uint8)
    mask[size[0] // 4 : 3 * size[0] // 4, size[1] // 4 : 3 * size[1] // 4] = 255
    return mask


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def call(pipe, composite=None, mask=None, prompt="a cup", **options):
    """Call the pipeline on a whole picture of 64 pixels, two steps, unless told otherwise."""
    composite = picture() if composite is None else composite
    mask = object_mask(composite.shape[:2]) if mask is None else mask
    settings = {"num_inference_steps": 2, "generator": seeded(), "context": 10.0, "output_type": "array"}
    return pipe(composite, mask, prompt, **{**settings, **options})


def latents_of(pipe, *arguments, **options):
    return call(pipe, *arguments, output_type="latent", **options).images


def count_calls(module):
    """Return a list that grows by one with each forward pass of a module."""
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls
