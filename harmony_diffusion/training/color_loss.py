"""Errors of the colours that latents decode to, averaged over the pixels of one latent.

Harmonization changes colour and light, which are smooth. The error of latents counts texture as well, and
decoding each prediction costs more than the U-Net. Here the first blocks of the decoder, at the resolution of
the latents, are followed by a linear map to mean colours, which is fitted to decoded images.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harmony_diffusion.errors import InputError
from harmony_diffusion.models.tiny_autoencoder import TinyAutoencoder
from harmony_diffusion.training.pixel_loss import decode_latents

LEAST_AREA = 4.0  # foregrounds of fewer latents count less, so that small objects do not dominate
_RIDGE = 1e-5  # of the mean square of the features


class ColorReadout(nn.Module):
    """Estimate of the mean decoded colours in the area of each latent.

    Args:
        vae: Autoencoder.
        latents: Scaled latents of photographs to fit the linear map to, `(B, C, h, w)`.

    Raises:
        InputError: The autoencoder is not a `TinyAutoencoder`.
    """

    def __init__(self, vae: Any, latents: Tensor) -> None:
        super().__init__()
        if not isinstance(vae, TinyAutoencoder):
            raise InputError("color_loss", f"requires a TinyAutoencoder, got {type(vae).__name__}")
        self.scaling_factor = vae.config["scaling_factor"]
        stages = list(vae.decoder)
        first = next(number for number, stage in enumerate(stages) if isinstance(stage, nn.Upsample))
        self.stages = copy.deepcopy(nn.Sequential(*stages[:first])).float().requires_grad_(False)
        self.colors = nn.Conv2d(
            vae.config["block_out_channels"][0], 3, 3, padding=1, padding_mode="replicate"
        )
        self.colors.to(latents.device).requires_grad_(False)
        self._fit(vae, latents)

    @torch.no_grad()
    def _fit(self, vae: Any, latents: Tensor) -> None:
        sums: list[Any] = [0, 0]
        for part in latents.split(8):
            images = decode_latents(vae, part) / 2 + 0.5
            wanted = F.interpolate(images, part.shape[-2:], mode="area")
            features = self.stages(part / self.scaling_factor)
            patches = F.unfold(F.pad(features, (1, 1, 1, 1), mode="replicate"), 3)
            rows = F.pad(patches, (0, 0, 0, 1), value=1.0).transpose(1, 2).flatten(0, 1).double()
            sums[0] = sums[0] + rows.T @ rows
            sums[1] = sums[1] + rows.T @ wanted.flatten(2).transpose(1, 2).flatten(0, 1).double()
        moments = sums[0].cpu()
        ridge = _RIDGE * moments.diagonal().mean() * torch.eye(len(moments), dtype=torch.float64)
        solution = torch.linalg.solve(moments + ridge, sums[1].cpu()).T.float()
        self.colors.weight.copy_(solution[:, :-1].reshape(self.colors.weight.shape))
        assert self.colors.bias is not None
        self.colors.bias.copy_(solution[:, -1])

    def forward(self, latents: Tensor) -> Tensor:
        """Return mean colours in [0, 1], `(B, 3, h, w)`, from scaled latents `(B, C, h, w)`."""
        return self.colors(self.stages(latents / self.scaling_factor)).float()


class ColorLoss(nn.Module):
    """Squared error of mean colours over the foreground, divided by its area (as FN-MSE).

    Args:
        readout: Estimate of the colours.
        weight: Weight of this error beside that of the latents.
    """

    def __init__(self, readout: ColorReadout, weight: float) -> None:
        super().__init__()
        self.readout, self.weight = readout, weight

    def forward(self, latents: Tensor, wanted: Tensor, foreground: Tensor) -> Tensor:
        """Return the weighted errors, `(B,)`.

        Args:
            latents: Scaled latents, `(B, C, h, w)`.
            wanted: Target latents.
            foreground: Share of foreground in the area of each latent, `(B, 1, h, w)`.
        """
        with torch.no_grad():
            truth = self.readout(wanted)
        errors = (self.readout(latents) - truth).square().mean(1, keepdim=True) * foreground
        return self.weight * errors.sum((1, 2, 3)) / foreground.sum((1, 2, 3)).clamp_min(LEAST_AREA)
