import pytest
import torch
from tiny_diffusion import object_mask, picture

from harmony_diffusion.data.keyed_random import sample_key
from harmony_diffusion.diffusion.control_settings import ControlSettings
from harmony_diffusion.diffusion.random_weights import random_components
from harmony_diffusion.training.diffusion_step import (
    Conditions,
    DenoisingObjective,
    embed_prompts,
    encode_images,
    encode_latents,
    sample_noise,
)
from harmony_diffusion.training.pixel_loss import PixelLoss, decode_latents, draw_pixel_weights
from harmony_diffusion.training.validation import Triple

KEYS = torch.tensor([sample_key(0, 0, index) for index in range(4000)])


def conditions(components, count=1, **others):
    pixels = torch.from_numpy(picture()).permute(2, 0, 1)[None].float() / 255
    mask = torch.from_numpy(object_mask())[None, None].float() / 255
    images = Triple(*(part.repeat(count, 1, 1, 1) for part in (pixels, mask, pixels)))
    parts = encode_images(components["vae"], images, "masked")
    text = embed_prompts(components["tokenizer"], components["text_encoder"], ["a cup"] * count)
    return Conditions(*parts, text, ControlSettings("high").draw(images.composite, images.mask), **others)


def test_channels_weigh_by_what_they_do_to_the_picture():
    vae = random_components()["vae"]
    weights = PixelLoss(vae).channel_weights
    assert weights.shape == (4, 1, 1) and weights.min() > 0 and weights.mean().item() == pytest.approx(1)
    assert torch.equal(weights, PixelLoss(vae).channel_weights)
    columns = vae.post_quant_conv.weight.data
    columns[:, 1] = 0  # the decoder does not see it any more
    columns[:, 3] *= 10
    changed = PixelLoss(vae).channel_weights
    assert changed[1] == 0 and changed[3] / changed[2] > 10 * weights[3] / weights[2]


def test_decoded_latents_are_the_pipelines_pictures():
    vae = random_components()["vae"]
    latents = encode_latents(vae, torch.rand(1, 3, 64, 64) * 2 - 1)
    scale = vae.config["scaling_factor"]
    assert scale != 1
    torch.testing.assert_close(decode_latents(vae, latents), vae.decode(latents / scale).sample)


def test_decoded_errors_are_the_weighted_ones_to_first_order_and_not_beyond():
    vae = random_components()["vae"]
    loss = PixelLoss(vae)
    latents, noise = torch.randn(2, 8, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ratios = []
        for size in (0.02, 5.0):
            decoded = loss.errors(latents + size * noise, latents)
            assert decoded.shape == (8,)
            ratios.append(decoded.mean() / (loss.channel_weights * (size * noise).square()).mean())
    assert ratios[0].item() == pytest.approx(1, rel=0.1)
    assert ratios[1] < 0.8  # pictures are bounded
    assert torch.equal(loss.errors(latents, latents), torch.zeros(8))


def test_samples_are_drawn_to_be_decoded_by_their_keys():
    weights = draw_pixel_weights(KEYS, 0.25)
    assert weights.dtype == torch.float32 and set(weights.tolist()) == {0.0, 4.0}
    assert weights.mean().item() == pytest.approx(1, abs=0.1)
    assert torch.equal(draw_pixel_weights(KEYS[100:102], 0.25), weights[100:102])
    assert set(draw_pixel_weights(KEYS, 1.0).tolist()) == {1.0}


@pytest.mark.parametrize("snr_gamma", [None, 5.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_loss_adds_the_error_of_the_decoded_picture_in_units_of_what_is_predicted(prediction, snr_gamma):
    components = random_components()
    unet, scheduler, vae = (components[name] for name in ("unet", "scheduler", "vae"))
    scheduler.register_to_config(prediction_type=prediction)
    given = conditions(components)
    noise, step = sample_noise(KEYS[:1], given.latents), torch.tensor([400])
    pixel_loss = PixelLoss(vae)
    objective = DenoisingObjective(unet, scheduler, snr_gamma=snr_gamma, pixel_loss=pixel_loss)

    def loss(weight):
        weighed = given._replace(pixel_weights=torch.tensor([weight]))
        return objective(weighed, noise, step)["loss"].item()

    level = scheduler.alphas_cumprod[400]
    noisy = level.sqrt() * given.latents + (1 - level).sqrt() * noise
    with torch.no_grad():
        predicted = unet(
            torch.cat([noisy, given.mask, given.image_latents], 1), step, encoder_hidden_states=given.text
        ).sample
        target, clean = noise, (noisy - (1 - level).sqrt() * predicted) / level.sqrt()
        if prediction == "v_prediction":
            target = level.sqrt() * noise - (1 - level).sqrt() * given.latents
            clean = level.sqrt() * noisy - (1 - level).sqrt() * predicted
        decoded = pixel_loss.errors(clean, given.latents).item()
    channels = (pixel_loss.channel_weights * (predicted - target).square()).mean().item()
    # By how much an error of what is predicted exceeds that of the latents.
    snr = (level / (1 - level)).item()
    factor = snr + 1 if prediction == "v_prediction" else snr
    by_time = 1 if snr_gamma is None else min(snr, 5) / factor
    assert loss(0.0) == pytest.approx(by_time * channels, rel=1e-4)
    assert loss(3.0) == pytest.approx(by_time * (channels + 3 * factor * decoded), rel=1e-4)
    assert objective(given, noise, step)["loss"].item() == loss(0.0)
    plain = DenoisingObjective(unet, scheduler, snr_gamma=snr_gamma)(given, noise, step)["loss"].item()
    assert plain == pytest.approx(by_time * (predicted - target).square().mean().item(), rel=1e-4)


def test_batch_is_the_mean_of_its_samples():
    components = random_components()
    weights, steps = torch.tensor([0.0, 2.0, 2.0]), torch.tensor([100, 500, 900])
    given = conditions(components, 3, pixel_weights=weights)
    noise = sample_noise(KEYS[:3], given.latents)
    objective = DenoisingObjective(
        components["unet"], components["scheduler"], pixel_loss=PixelLoss(components["vae"])
    )
    alone = [
        objective(
            Conditions(*(None if part is None else part[i : i + 1] for part in given)),
            noise[i : i + 1],
            steps[i : i + 1],
        )["loss"].item()
        for i in range(3)
    ]
    assert objective(given, noise, steps)["loss"].item() == pytest.approx(sum(alone) / 3, rel=1e-5)


def test_controlnet_learns_from_the_decoded_picture():
    components = random_components()
    controlnet = components["controlnet_high"].requires_grad_(True)
    for model in (components["unet"], components["vae"]):
        model.requires_grad_(False)
    pixel_loss = PixelLoss(components["vae"])
    pixel_loss.channel_weights = pixel_loss.channel_weights * 0
    objective = DenoisingObjective(
        components["unet"], components["scheduler"], controlnet, pixel_loss=pixel_loss
    )
    given = conditions(components, pixel_weights=torch.ones(1))
    noise = sample_noise(KEYS[:1], given.latents)
    objective(given, noise, torch.tensor([500]))["loss"].backward()
    assert max(value.grad.abs().max() for value in controlnet.parameters() if value.grad is not None) > 0
