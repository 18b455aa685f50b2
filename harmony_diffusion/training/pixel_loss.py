"""Errors of latents, weighted by their effect on the decoded image.

The loss of the paper gives all latent channels the same weight, which suits an autoencoder with few
channels. Two of the 32 channels of TAEF2 hold most of the light: a small network that halves the error of
the other thirty does not improve the image.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from harmony_diffusion.data.keyed_random import KeyedDraws, generator_of


def decode_latents(vae: Any, latents: Tensor) -> Tensor:
    """Decode scaled latents `(B, C, h, w)` to images in [-1, 1], `(B, 3, H, W)`, in float32."""
    return vae.decode(latents.to(vae.dtype) / vae.config["scaling_factor"]).sample.float()


@torch.no_grad()
def channel_sensitivities(vae: Any) -> Tensor:
    """Measure how much noise in each latent channel changes the decoded image, `(C,)`.

    Returns:
        Mean squared changes of the image, divided by the variance of the noise. The noise is added to random
        latents, one channel at a time.
    """
    draw, channels, variance = generator_of(0, "latents").standard_normal, vae.config["latent_channels"], 0.01
    latents = torch.from_numpy(draw((8, channels, 16, 16), np.float32)).to(vae.device)
    noise = variance**0.5 * torch.from_numpy(draw((8, 16, 16), np.float32)).to(latents)
    picture, changes = decode_latents(vae, latents), []
    for channel in range(channels):
        changed = latents.clone()
        changed[:, channel] += noise
        changes.append((decode_latents(vae, changed) - picture).square().mean() / variance)
    return torch.stack(changes)


def draw_pixel_weights(keys: Tensor, share: float) -> Tensor:
    """Draw the samples to decode, `(B,)` float32: 1 / `share` for these, 0 for the others."""
    return (KeyedDraws(keys).chance("pixel_loss", share) / share).float()


class PixelLoss:
    """Weights of the latent channels for all samples, and the error of the decoded image for some.

    The weights give the error of the image to first order. Uncertain predictions are far from the latents of
    any image, so their exact error needs decoding, which is slow.

    Attributes:
        channel_weights: `(C, 1, 1)`, with a mean of 1.
    """

    def __init__(self, vae: Any) -> None:
        self.vae = vae
        sensitivities = channel_sensitivities(vae)
        self.total = sensitivities.sum()
        self.channel_weights = (sensitivities / sensitivities.mean())[:, None, None]

    def __call__(self, latents: Tensor, wanted: Tensor, weights: Tensor) -> Tensor:
        """Return weighted squared errors of the decoded image, `(B,)`.

        Args:
            latents: Scaled latents, `(B, C, h, w)`.
            wanted: Target latents.
            weights: Weight of each sample, `(B,)`; samples of weight 0 are not decoded.

        Returns:
            Errors, to first order equal to the channel-weighted errors of the latents; 0 for weight 0.
        """
        chosen = weights.nonzero()[:, 0]
        errors = torch.zeros_like(weights)
        if not len(chosen):
            return errors
        return errors.index_add(0, chosen, weights[chosen] * self.errors(latents[chosen], wanted[chosen]))

    def errors(self, latents: Tensor, wanted: Tensor) -> Tensor:
        """Return the squared errors of decoded latents, `(B,)`."""
        with torch.no_grad():
            truth = decode_latents(self.vae, wanted)
        return (decode_latents(self.vae, latents) - truth).square().mean((1, 2, 3)) / self.total
