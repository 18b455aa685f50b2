"""Errors of latents counted by what they do to the decoded picture.

The loss of the paper takes all latent channels alike. Of an autoencoder of few channels that is near enough;
of TAEF2's 32, two hold most of the light, and a small network that halves the error of the thirty others has
not made the picture any better.
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
    """Measure how much a little noise in each latent channel changes the decoded picture, `(C,)`.

    Returns:
        Mean squared changes of the picture, each divided by the variance of the noise. The noise is added to
        random latents, one channel after the other.
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
    """Draw which samples are decoded, `(B,)` float32: 1 / `share` for those that are, 0 for the others."""
    return (KeyedDraws(keys).chance("pixel_loss", share) / share).float()


class PixelLoss:
    """Weights of the latent channels for all samples, and the error of the decoded picture for some.

    The weights are the error of the picture to first order. Where a network is unsure, its latents are far
    from those of any picture, and only decoding tells what becomes of them, which takes long.

    Attributes:
        channel_weights: `(C, 1, 1)`, with a mean of 1.
    """

    def __init__(self, vae: Any) -> None:
        self.vae = vae
        sensitivities = channel_sensitivities(vae)
        self.total = sensitivities.sum()
        self.channel_weights = (sensitivities / sensitivities.mean())[:, None, None]

    def __call__(self, latents: Tensor, wanted: Tensor, weights: Tensor) -> Tensor:
        """Return weighed squared errors of the decoded picture, `(B,)`.

        Args:
            latents: Scaled latents, `(B, C, h, w)`.
            wanted: What they should be.
            weights: What each sample counts, `(B,)`; those of weight 0 are not decoded.

        Returns:
            Errors that are to first order those of the latents, weighted by channel; 0 for weight 0.
        """
        chosen = weights.nonzero()[:, 0]
        errors = torch.zeros_like(weights)
        if not len(chosen):
            return errors
        return errors.index_add(0, chosen, weights[chosen] * self.errors(latents[chosen], wanted[chosen]))

    def errors(self, latents: Tensor, wanted: Tensor) -> Tensor:
        """Return the squared errors of decoded latents, `(B,)`; to first order those of the weighted ones."""
        with torch.no_grad():
            truth = decode_latents(self.vae, wanted)
        return (decode_latents(self.vae, latents) - truth).square().mean((1, 2, 3)) / self.total
