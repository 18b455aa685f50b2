"""Components with random weights."""

import torch

from harmony_diffusion.random_weights import random_components


def test_small_networks_take_the_first_timesteps_of_the_same_schedule():
    whole, part = (random_components(size)["scheduler"] for size in ("tiny", "mini"))
    assert (whole.config.num_train_timesteps, part.config.num_train_timesteps) == (1000, 750)
    torch.testing.assert_close(part.alphas_cumprod, whole.alphas_cumprod[:750], rtol=1e-4, atol=1e-5)
    # The published schedule of Stable Diffusion 2.
    torch.testing.assert_close(whole.alphas_cumprod[-1], torch.tensor(0.0046602), rtol=1e-3, atol=0)
