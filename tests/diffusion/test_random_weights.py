"""Components with random weights."""

import torch

from harmony_diffusion.diffusion.random_weights import random_components


def test_noise_schedule_is_that_of_stable_diffusion():
    noise, velocity = (random_components(size)["scheduler"] for size in ("tiny", "mini"))
    assert (noise.config.prediction_type, velocity.config.prediction_type) == ("epsilon", "v_prediction")
    for scheduler in (noise, velocity):
        assert scheduler.config.num_train_timesteps == 1000
        torch.testing.assert_close(scheduler.alphas_cumprod[-1], torch.tensor(0.0046602), rtol=1e-3, atol=0)
