"""TAEF2: a tiny autoencoder with the 32 latent channels of FLUX.2, small enough for CPUs.

Paper: none.  Official code: https://github.com/madebyollin/taesd (MIT).  Changed here: images in [-1, 1], as
diffusers has them; diffusers' own `AutoencoderTiny` lacks the branch of group norms at the lowest resolution.
"""

import sys
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTinyOutput
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_utils import ModelMixin
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from harmony_diffusion.errors import CheckpointError
from harmony_diffusion.models.weight_files import check_weights_file

# Pipelines saved by 0.1.0 name this module by its old address, and diffusers looks it up among the modules
# that are already imported.
sys.modules.setdefault("harmony_diffusion.tiny_autoencoder", sys.modules[__name__])

# Beyond this many units the decoder's input saturates.
_LIMIT = 3.0


class _Block(nn.Module):
    """Residual block; with `pooled`, a group-normalised branch is first added to its input."""

    def __init__(self, width: int, pooled: bool = False) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )
        self.pool = None
        if pooled:
            self.pool = nn.Sequential(
                nn.Conv2d(width, 4 * width, 1, bias=False),
                nn.GroupNorm(4, 4 * width),
                nn.ReLU(),
                nn.Conv2d(4 * width, width, 1, bias=False),
            )

    def forward(self, features: Tensor) -> Tensor:
        if self.pool is not None:
            features = features + self.pool(features)
        return torch.relu(self.conv(features) + features)


class _Saturate(nn.Module):
    def forward(self, latents: Tensor) -> Tensor:
        return _LIMIT * torch.tanh(latents / _LIMIT)


class TinyAutoencoder(ModelMixin, ConfigMixin):
    """Autoencoder of images at an eighth of their size.

    Args:
        latent_channels: Channels of the latents.
        scaling_factor: Factor of the latents for a diffusion model, the inverse of their deviation.
        block_out_channels: Widths by resolution, highest first; all equal, one more than there are halvings.
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 32,
        scaling_factor: float = 1.19,
        block_out_channels: tuple[int, ...] = (64, 64, 64, 64),
    ) -> None:
        super().__init__()
        width, halvings = block_out_channels[0], len(block_out_channels) - 1
        encoder: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), _Block(width)]
        decoder: list[nn.Module] = [_Saturate(), nn.Conv2d(latent_channels, width, 3, padding=1), nn.ReLU()]
        for halving in range(halvings):
            encoder.append(nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False))
            encoder += [_Block(width, pooled=halving == halvings - 1) for _ in range(3)]
            decoder += [_Block(width, pooled=halving == 0) for _ in range(3)]
            decoder += [nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1, bias=False)]
        self.encoder = nn.Sequential(*encoder, nn.Conv2d(width, latent_channels, 3, padding=1))
        self.decoder = nn.Sequential(*decoder, _Block(width), nn.Conv2d(width, 3, 3, padding=1))

    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderTinyOutput | tuple[Tensor]:
        """Encode images in [-1, 1], `(B, 3, H, W)`, to `latents`, `(B, C, H / 8, W / 8)`."""
        latents = self.encoder(x / 2 + 0.5)
        return AutoencoderTinyOutput(latents=latents) if return_dict else (latents,)

    def decode(self, z: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """Decode latents to a `sample` of images in [-1, 1]; values may be slightly outside."""
        images = 2 * self.decoder(z) - 1
        return DecoderOutput(sample=images) if return_dict else (images,)

    def forward(self, sample: Tensor) -> Tensor:
        """Encode and decode images in [-1, 1], `(B, 3, H, W)`."""
        return cast(Tensor, cast(Any, self.decode(cast(Any, self.encode(sample)).latents)).sample)


def load_taef2(path: Path) -> TinyAutoencoder:
    """Load the published weights of TAEF2.

    Args:
        path: `taef2.safetensors`.

    Raises:
        CheckpointError: The file is missing or does not hold these weights.
    """
    if not path.is_file():
        raise CheckpointError(
            f"{path}: there is no such file. Download it from https://github.com/madebyollin/taesd."
        )
    check_weights_file(path)
    model = TinyAutoencoder()
    try:
        model.load_state_dict({key: value.float() for key, value in load_file(path).items()})
    except (RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{path}: is not TAEF2: {str(error).splitlines()[0]}") from error
    return model.eval().requires_grad_(False)
