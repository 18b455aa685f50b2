"""`ColorReadout` and `ColorLoss`: mean colours without decoding, and their error over the foreground."""

import pytest
import torch
import torch.nn.functional as F
from tiny_training import ROOT

from harmony_diffusion.diffusion.random_weights import random_components
from harmony_diffusion.errors import InputError
from harmony_diffusion.models.tiny_autoencoder import TinyAutoencoder
from harmony_diffusion.training.color_loss import LEAST_AREA, ColorLoss, ColorReadout
from harmony_diffusion.training.diffusion_step import encode_latents
from harmony_diffusion.training.pixel_loss import decode_latents


@pytest.fixture(scope="module")
def vae():
    return TinyAutoencoder.from_pretrained(ROOT / "checkpoints" / "mini_dual_controlnet" / "vae").float()


def smooth_latents(vae, count, seed):
    """Latents of images with smooth colours and a little texture."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    images = F.interpolate(coarse, (64, 64), mode="bicubic") + 0.1 * torch.rand(
        count, 3, 64, 64, generator=generator
    )
    return encode_latents(vae, 2 * images.clamp(0, 1) - 1)


@pytest.fixture(scope="module")
def readout(vae):
    return ColorReadout(vae, smooth_latents(vae, 24, 0))


def test_readout_is_close_to_the_mean_colours_of_decoded_images(vae, readout):
    latents = smooth_latents(vae, 6, 1)
    with torch.no_grad():
        decoded = F.interpolate(decode_latents(vae, latents) / 2 + 0.5, (8, 8), mode="area")
        error = (readout(latents) - decoded).square().mean().sqrt()
    assert readout(latents).shape == (6, 3, 8, 8)
    assert error < 0.25 * decoded.std()


def test_only_the_latents_get_gradients(vae, readout):
    latents = smooth_latents(vae, 1, 2).requires_grad_()
    ColorLoss(readout, 1.0)(latents, smooth_latents(vae, 1, 3), torch.ones(1, 1, 8, 8)).sum().backward()
    assert latents.grad is not None and latents.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in readout.parameters())
    assert all(parameter.grad is None for parameter in vae.parameters())


def test_loss_is_the_mean_squared_error_of_the_foreground_times_the_weight(vae, readout):
    latents, wanted = smooth_latents(vae, 2, 4), smooth_latents(vae, 2, 5)
    foreground = torch.zeros(2, 1, 8, 8)
    foreground[0, :, :4], foreground[1, :, 0, 0] = 1, 0.5
    losses = ColorLoss(readout, 3.0)(latents, wanted, foreground)
    with torch.no_grad():
        errors = (readout(latents) - readout(wanted)).square().mean(1)
    assert losses[0].item() == pytest.approx(3 * errors[0, :4].mean().item(), rel=1e-5)
    # A foreground smaller than the least area counts by its share of it.
    assert losses[1].item() == pytest.approx(3 * 0.5 * errors[1, 0, 0].item() / LEAST_AREA, rel=1e-5)


def test_another_autoencoder_is_refused():
    components = random_components()
    with pytest.raises(InputError, match=r"color_loss.* requires a TinyAutoencoder, got AutoencoderKL"):
        ColorReadout(components["vae"], torch.zeros(1, 4, 8, 8))
