"""Equations 6-11 of the paper: input and prediction of the networks, for the pipeline and for training.

Liu et al. 2025, "Image instances semantics and visual harmonization using pretrained diffusion model",
DOI 10.20169/j.issn.2095-2163.24111102. Equations 6 and 7 add the two ControlNets to the U-Net. Equation 8 is
the training loss, the error of the U-Net's prediction. Equations 9 and 10 make the latents of the background
and the small mask. Equation 11 joins them with the noisy latents.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint import retrieve_latents
from torch import Tensor

from harmony_diffusion.diffusion.controlnets import Control

# Residuals of the skip connections, and of the middle block.
Residuals = tuple[list[Tensor], Tensor]

# "masked": the U-Net sees the background alone, as inpainting models do. "composite": it sees the whole
# composite (Zhou et al., DiffHarmony, ICMR 2024).
IMAGE_CHANNELS = ("masked", "composite")
# The network generates pixels that hold more of the foreground than this share: their old values would show
# it the colours that it must replace.
INPAINTING_THRESHOLD = 0.1


def inpainting_mask(mask: Tensor) -> Tensor:
    """Return the hard mask M of equation 9: 1 where the network generates, else 0.

    Args:
        mask: 1 on the foreground, soft values allowed, `(B, 1, H, W)`.

    Returns:
        `(B, 1, H, W)` float32.
    """
    return (mask > INPAINTING_THRESHOLD).float()


def visible_image(image: Tensor, inpainting_mask: Tensor, image_channel: str) -> Tensor:
    """Return what the U-Net sees of an image, in the autoencoder's range [-1, 1] (equation 9).

    Args:
        image: In [0, 1], `(B, 3, H, W)`.
        inpainting_mask: See `inpainting_mask`.
        image_channel: One of `IMAGE_CHANNELS`; "masked" replaces what the mask covers by mid-grey.

    Returns:
        `(B, 3, H, W)`.
    """
    scaled = 2 * image - 1
    return scaled if image_channel == "composite" else scaled * (1 - inpainting_mask)


def encode_latents(vae: Any, images: Tensor) -> Tensor:
    """Encode images to scaled latents: the mode of the distribution, not a sample of it (equation 10).

    Args:
        vae: Autoencoder.
        images: In [-1, 1], `(B, 3, H, W)`, on the device of the autoencoder.

    Returns:
        `(B, C, h, w)` in the autoencoder's type, or float32 if that is a half type.
    """
    latents = retrieve_latents(vae.encode(images.to(vae.dtype)), sample_mode="argmax")
    wide = torch.promote_types(latents.dtype, torch.float32)
    return latents.to(wide) * vae.config["scaling_factor"]


def latent_mask(inpainting_mask: Tensor, size: Sequence[int]) -> Tensor:
    """Return M' of equation 10: the inpainting mask at the size of the latents, by nearest neighbours."""
    return F.interpolate(inpainting_mask, tuple(size))


def unet_sample(noisy: Tensor, mask: Tensor, image_latents: Tensor) -> Tensor:
    """Join the input of the U-Net: noisy latents, mask, latents of the background (equation 11).

    Args:
        noisy: Z_t, `(B, C, h, w)`.
        mask: M', `(B, 1, h, w)`.
        image_latents: Z_ms, `(B, C, h, w)`.

    Returns:
        `(B, 2 C + 1, h, w)`, in the order that inpainting models are trained with.
    """
    return torch.cat([noisy, mask, image_latents], 1)


def controlnet_sample(noisy: Tensor, sample: Tensor, control_input: str) -> Tensor:
    """Choose the latent input of a ControlNet: Z_t (equation 6), or the whole input of the U-Net."""
    return noisy if control_input == "noisy_latents" else sample


def control_residuals(
    controls: Sequence[Control], sample: Tensor, timestep: Tensor, prompt_embeds: Tensor
) -> Residuals | None:
    """Run ControlNets and add their outputs: lambda_h F_h + lambda_l F_l (equations 6 and 7).

    Args:
        controls: The active ControlNets.
        sample: Their input, see `controlnet_sample`, `(N, C, h, w)`; N is a multiple of the batch size of the
            control images.
        timestep: One for all, or `(N,)`.
        prompt_embeds: `(N, L, D)`.

    Returns:
        The summands of the skip connections and of the middle block, or None without controls.
    """
    total: Residuals | None = None
    for control in controls:
        repeats = len(sample) // len(control.embedding)
        embedding = torch.cat([control.embedding] * repeats) if repeats > 1 else control.embedding
        down, middle = control.controlnet(
            sample,
            timestep,
            encoder_hidden_states=prompt_embeds,
            controlnet_cond=embedding,
            conditioning_scale=control.scale,
            return_dict=False,
        )
        if total is not None:
            down = [ours + theirs for ours, theirs in zip(total[0], down, strict=True)]
            middle = total[1] + middle
        total = down, middle
    return total


def for_conditional_half(residuals: Residuals) -> Residuals:
    """Put zeros before residuals `(B, …)`, so that they count for the conditional half of `(2B, …)` only."""
    down, middle = residuals
    return [_after_zeros(tensor) for tensor in down], _after_zeros(middle)


def _after_zeros(tensor: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(tensor), tensor])


def predict_noise(
    unet: Any,
    sample: Tensor,
    timestep: Tensor,
    prompt_embeds: Tensor,
    residuals: Residuals | None,
    cross_attention_kwargs: dict[str, Any] | None = None,
) -> Tensor:
    """Run the U-Net; the error of its prediction is the loss of equation 8.

    Args:
        unet: Inpainting U-Net.
        sample: See `unet_sample`.
        timestep: One for all, or `(N,)`.
        prompt_embeds: `(N, L, D)`.
        residuals: See `control_residuals`.
        cross_attention_kwargs: As in diffusers; `{"scale": …}` weighs LoRA layers.

    Returns:
        Noise, or velocity if the U-Net predicts that, `(N, C, h, w)`.
    """
    down, middle = residuals if residuals is not None else (None, None)
    return unet(
        sample,
        timestep,
        encoder_hidden_states=prompt_embeds,
        down_block_additional_residuals=down,
        mid_block_additional_residual=middle,
        cross_attention_kwargs=cross_attention_kwargs,
        return_dict=False,
    )[0]
