"""Equations 6-11 on small cases that are worked by hand."""

import torch

from harmony_diffusion.diffusion import conditioning
from harmony_diffusion.diffusion.random_weights import random_components


def test_inpainting_mask_is_hard_and_covers_soft_edges():
    soft = torch.tensor([0.0, 0.1, 0.11, 0.5, 1.0]).view(1, 1, 1, 5)
    assert conditioning.inpainting_mask(soft).flatten().tolist() == [0, 0, 1, 1, 1]


def test_masked_image_is_mid_grey_under_the_mask_and_the_background_elsewhere():
    image = torch.tensor([0.0, 0.25, 1.0]).view(1, 1, 1, 3).expand(1, 3, 1, 3)
    mask = torch.tensor([0.0, 0.0, 1.0]).view(1, 1, 1, 3)
    assert conditioning.visible_image(image, mask, "masked")[0, 0, 0].tolist() == [-1, -0.5, 0]
    assert conditioning.visible_image(image, mask, "composite")[0, 0, 0].tolist() == [-1, -0.5, 1]


def test_latents_are_scaled_modes():
    vae = random_components("tiny")["vae"]
    images = 2 * torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) - 1
    expected = vae.encode(images).latent_dist.mode() * vae.config.scaling_factor
    assert torch.equal(conditioning.encode_latents(vae, images), expected)
    half = conditioning.encode_latents(torch.nn.Module.to(vae, torch.bfloat16), images)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, expected, atol=0.05, rtol=0.1)


def test_the_small_mask_takes_every_eighth_pixel():
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :1, :9] = 1
    assert conditioning.latent_mask(mask, (2, 2)).tolist() == [[[[1, 1], [0, 0]]]]


def test_unet_input_is_noise_mask_background_and_a_controlnet_sees_its_choice():
    noisy, mask, background = (torch.full((1, c, 1, 1), float(v)) for c, v in ((2, 1), (1, 2), (2, 3)))
    sample = conditioning.unet_sample(noisy, mask, background)
    assert sample.flatten().tolist() == [1, 1, 2, 3, 3]
    assert conditioning.controlnet_sample(noisy, sample, "noisy_latents") is noisy
    assert conditioning.controlnet_sample(noisy, sample, "unet_input") is sample


def test_the_unconditional_half_gets_zeros():
    down, middle = conditioning.for_conditional_half(([torch.ones(1, 2)], torch.full((1, 1), 5.0)))
    assert down[0].tolist() == [[0, 0], [1, 1]] and middle.tolist() == [[0], [5]]
