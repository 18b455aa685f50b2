"""One training step of the diffusion method as functions: latents, noise, timesteps, prompts, loss.

Liu et al. 2025, DOI 10.20169/j.issn.2095-2163.24111102, equations 6-11. All that is random is a function of
the keys of the samples, so that a step is the same in any number of processes and after any restart.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.training_utils import compute_snr
from torch import Tensor, nn

from harmony_diffusion.data.keyed_random import KeyedDraws, generator_of
from harmony_diffusion.diffusion import conditioning
from harmony_diffusion.diffusion.controlnets import Control, ControlInput
from harmony_diffusion.training.color_loss import ColorLoss
from harmony_diffusion.training.pixel_loss import PixelLoss
from harmony_diffusion.training.validation import Triple


class Conditions(NamedTuple):
    """What the U-Net is trained to turn noise into, and what it is told of it.

    Attributes:
        latents: Scaled latents of the real image, Z_0, `(B, C, h, w)`.
        mask: M' of equation 11, `(B, 1, h, w)`.
        image_latents: Z_ms, scaled latents of the background or of the composite, `(B, C, h, w)`.
        text: Embedded prompts, `(B, L, D)`.
        control: Control images in [0, 1], `(B, 3, H, W)`; None when the U-Net itself is trained.
        other_control: Those of the other ControlNet, which is there already; None if there is none.
        other_scale: Its scale for each sample, `(B, 1, 1, 1)`.
        pixel_weights: What the error of the decoded picture counts for each sample, `(B,)`; 0: it is not.
        foreground: Share of foreground in the area of each latent, `(B, 1, h, w)`; None without `ColorLoss`.
    """

    latents: Tensor
    mask: Tensor
    image_latents: Tensor
    text: Tensor
    control: Tensor | None
    other_control: Tensor | None = None
    other_scale: Tensor | None = None
    pixel_weights: Tensor | None = None
    foreground: Tensor | None = None


@torch.no_grad()
def encode_latents(vae: Any, images: Tensor) -> Tensor:
    """Encode images in [-1, 1], `(B, 3, H, W)`, to scaled latents `(B, C, h, w)` in float32; not sampled."""
    return conditioning.encode_latents(vae, images).float()


def encode_images(vae: Any, images: Triple, image_channel: str) -> tuple[Tensor, Tensor, Tensor]:
    """Encode the real image and what the U-Net sees of the picture.

    Args:
        vae: Autoencoder.
        images: Composite, mask and real image.
        image_channel: "masked": the background alone, the rest mid-grey (equation 9); "composite".

    Returns:
        `latents`, `mask` and `image_latents` of `Conditions`.
    """
    generated = conditioning.inpainting_mask(images.mask).to(images.real)
    # Where nothing is generated, the composite is the real image.
    image = images.composite if image_channel == "composite" else images.real
    visible = conditioning.visible_image(image, generated, image_channel)
    latents, image_latents = encode_latents(vae, torch.cat([2 * images.real - 1, visible])).chunk(2)
    return latents, conditioning.latent_mask(generated, latents.shape[-2:]), image_latents


@torch.no_grad()
def embed_prompts(tokenizer: Any, text_encoder: Any, prompts: Sequence[str]) -> Tensor:
    """Embed prompts as the pipeline does, `(B, L, D)`."""
    tokens = tokenizer(
        list(prompts),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    return text_encoder(tokens.input_ids.to(text_encoder.device))[0]


def drops_prompt(keys: Tensor, share: float) -> Tensor:
    """Draw which samples go without their prompt, `(B,)` bool."""
    return KeyedDraws(keys).chance("prompt", share).bool()


def drops_other_control(keys: Tensor, share: float) -> Tensor:
    """Draw which samples go without the ControlNet that is there already, `(B,)` bool."""
    return KeyedDraws(keys).chance("other_control", share).bool()


def sample_noise(keys: Tensor, like: Tensor) -> Tensor:
    """Draw normal noise, of the shape, type and on the device of `like`."""
    draws = [generator_of(key, "noise").standard_normal(like.shape[1:], np.float32) for key in keys.tolist()]
    return torch.from_numpy(np.stack(draws)).to(like)


def sample_timesteps(keys: Tensor, count: int, last_share: float | None = None) -> Tensor:
    """Draw timesteps from 0, …, `count - 1`, `(B,)` int64.

    Args:
        keys: Keys of the samples, `(B,)`.
        count: Number of timesteps.
        last_share: Share of samples at the last timestep; None or 0 draws uniformly.
    """
    draws = KeyedDraws(keys)
    timesteps = (draws.uniform("timestep") * count).long()
    if not last_share:
        return timesteps
    return torch.where(draws.chance("last_timestep", last_share).bool(), count - 1, timesteps)


class DenoisingObjective(nn.Module):
    """The loss of equation 8: the squared error of the predicted noise.

    Of a U-Net that predicts velocity, as the scheduler's `prediction_type` says, the squared error of the
    velocity (Salimans and Ho, ICLR 2022, https://arxiv.org/abs/2202.00512, appendix D). It does not fade
    where there is much noise, which is where a control decides on large shapes and colours.

    Args:
        unet: Inpainting U-Net.
        scheduler: Whose noise schedule is trained on.
        controlnet: Trained ControlNet; None to train the U-Net.
        control_input: What the ControlNet sees.
        control_scale: Lambda of equation 7.
        snr_gamma: Weigh timesteps by min(SNR, gamma) / SNR, velocities by min(SNR, gamma) / (SNR + 1), so
            that those of little noise count less and the training converges sooner (Hang et al., ICCV 2023);
            None: all alike, as in the paper.
        other: ControlNet of the other kind that is there already, frozen: the new one learns what is missing.
        pixel_loss: Counts errors by what they do to the picture; None: all latents alike, as in the paper.
        color_loss: Adds the error of the mean colours of the foreground; None: it is not added.
    """

    def __init__(
        self,
        unet: nn.Module,
        scheduler: Any,
        controlnet: nn.Module | None = None,
        control_input: ControlInput = "noisy_latents",
        control_scale: float = 1.0,
        snr_gamma: float | None = None,
        other: nn.Module | None = None,
        pixel_loss: PixelLoss | None = None,
        color_loss: ColorLoss | None = None,
    ) -> None:
        super().__init__()
        self.pixel_loss, self.color_loss = pixel_loss, color_loss
        self.snr_gamma, self.other = snr_gamma, other
        self.unet, self.controlnet = unet, controlnet
        self.control_input, self.control_scale = control_input, control_scale
        self.noising = DDPMScheduler.from_config(scheduler.config)

    def forward(self, conditions: Conditions, noise: Tensor, timesteps: Tensor) -> dict[str, Tensor]:
        """Return `loss`, a scalar; `noise` is `(B, C, h, w)`, `timesteps` `(B,)`."""
        noisy: Any = self.noising.add_noise(conditions.latents, noise, timesteps)
        sample = conditioning.unet_sample(noisy, conditions.mask, conditions.image_latents)
        networks: tuple[tuple[Any, Any, Any], ...] = (
            (self.other, conditions.other_control, conditions.other_scale),
            (self.controlnet, conditions.control, self.control_scale),
        )
        controls = [Control(*network, (0.0, 1.0)) for network in networks if network[0] is not None]
        seen = conditioning.controlnet_sample(noisy, sample, self.control_input)
        residuals = conditioning.control_residuals(controls, seen, timesteps, conditions.text)
        predicted = conditioning.predict_noise(self.unet, sample, timesteps, conditions.text, residuals)
        predicted = predicted.float()
        loss = self.loss(predicted, conditions, noise, noisy, timesteps)
        if self.color_loss is None or conditions.foreground is None:
            return {"loss": loss}
        clean = self.clean_latents(predicted, noisy, timesteps)
        colors = self.color_loss(clean, conditions.latents, conditions.foreground).mean()
        return {"loss": loss + colors, "colors": colors.detach()}

    def clean_latents(self, predicted: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """Return the latents without noise that a prediction implies, `(B, C, h, w)`."""
        level = self.noising.alphas_cumprod.to(noisy.device)[timesteps].view(-1, 1, 1, 1)
        if self.noising.config["prediction_type"] == "v_prediction":
            return level.sqrt() * noisy - (1 - level).sqrt() * predicted
        return (noisy - (1 - level).sqrt() * predicted) / level.sqrt()

    def loss(
        self, predicted: Tensor, conditions: Conditions, noise: Tensor, noisy: Tensor, timesteps: Tensor
    ) -> Tensor:
        """Return the loss of what the U-Net predicted."""
        velocity = self.noising.config["prediction_type"] == "v_prediction"
        target: Any = noise
        if velocity:
            target = self.noising.get_velocity(conditions.latents, noise, timesteps)
        errors = (predicted - target.float()).square()
        if self.pixel_loss is not None:
            errors = errors * self.pixel_loss.channel_weights
        errors = errors.mean((1, 2, 3))
        if self.pixel_loss is None and self.snr_gamma is None:
            return errors.mean()
        snr = compute_snr(self.noising, timesteps)
        factor = snr + 1 if velocity else snr  # by which errors of the prediction exceed those of the latents
        if self.pixel_loss is not None and conditions.pixel_weights is not None:
            clean = self.clean_latents(predicted, noisy, timesteps)
            errors = errors + factor * self.pixel_loss(clean, conditions.latents, conditions.pixel_weights)
        if self.snr_gamma is not None:
            errors = errors * snr.clamp_max(self.snr_gamma) / factor
        return errors.mean()
