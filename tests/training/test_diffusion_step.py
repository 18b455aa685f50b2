from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_diffusion import call, make_pipe, object_mask, picture, trained_like

from harmony_diffusion.data.keyed_random import sample_key
from harmony_diffusion.diffusion.control_settings import ControlSettings
from harmony_diffusion.diffusion.controlnets import Control
from harmony_diffusion.diffusion.random_weights import random_components
from harmony_diffusion.training.diffusion_step import (
    Conditions,
    DenoisingObjective,
    drops_prompt,
    embed_prompts,
    encode_images,
    sample_noise,
    sample_timesteps,
)
from harmony_diffusion.training.validation import Triple

KEYS = torch.tensor([sample_key(0, 0, index) for index in range(400)])


def images():
    """A picture as composite and truth, of which the box in the middle is the foreground."""
    pixels = torch.from_numpy(picture()).permute(2, 0, 1)[None].float() / 255
    mask = torch.from_numpy(object_mask())[None, None].float() / 255
    return Triple(pixels, mask, pixels)


def conditions(components, control=None):
    parts = encode_images(components["vae"], images(), "masked")
    text = embed_prompts(components["tokenizer"], components["text_encoder"], ["a cup"])
    return Conditions(*parts, text, control)


def test_draws_are_of_the_sample_and_not_of_the_batch():
    like = torch.zeros(400, 4, 8, 8)
    whole = sample_noise(KEYS, like), sample_timesteps(KEYS, 1000), drops_prompt(KEYS, 0.5)
    part = sample_noise(KEYS[7:9], like[7:9]), sample_timesteps(KEYS[7:9], 1000), drops_prompt(KEYS[7:9], 0.5)
    assert all(torch.equal(many[7:9], few) for many, few in zip(whole, part, strict=True))
    assert not torch.equal(whole[0][0], whole[0][1])


def test_noise_is_normal_timesteps_uniform_and_prompts_dropped_as_often_as_asked():
    noise = sample_noise(KEYS, torch.zeros(400, 4, 8, 8)).flatten()
    count = len(noise)  # 102,400: limits are five standard errors
    assert abs(noise.mean()) < 5 / count**0.5 and abs(noise.var() - 1) < 5 * (2 / count) ** 0.5
    assert abs((noise.abs() < 1).float().mean() - 0.6827) < 5 * (0.6827 * 0.3173 / count) ** 0.5
    steps = sample_timesteps(KEYS, 1000)
    assert steps.min() >= 0 and steps.max() <= 999
    assert abs(steps.float().mean() - 499.5) < 5 * 1000 / 12**0.5 / 20
    assert abs(drops_prompt(KEYS, 0.3).float().mean() - 0.3) < 5 * (0.3 * 0.7 / 400) ** 0.5
    assert not drops_prompt(KEYS, 0.0).any() and drops_prompt(KEYS, 1.0).all()


def test_share_of_the_samples_has_the_last_timestep():
    steps = sample_timesteps(KEYS, 1000, 0.6)
    last = steps == 999
    assert abs(last.float().mean() - 0.6) < 5 * (0.6 * 0.4 / 400) ** 0.5
    assert torch.equal(steps[~last], sample_timesteps(KEYS, 1000)[~last])
    assert (sample_timesteps(KEYS, 1000, 1.0) == 999).all()


def test_clean_latents_are_those_that_noise_was_added_to():
    components = random_components()
    given, steps = conditions(components), torch.tensor([700])
    noise = sample_noise(KEYS[:1], given.latents)
    for prediction, exact in (("epsilon", noise), ("v_prediction", None)):
        components["scheduler"].register_to_config(prediction_type=prediction)
        objective = DenoisingObjective(components["unet"], components["scheduler"])
        noisy = objective.noising.add_noise(given.latents, noise, steps)
        if exact is None:
            exact = objective.noising.get_velocity(given.latents, noise, steps)
        torch.testing.assert_close(objective.clean_latents(exact, noisy, steps), given.latents)


def test_masked_channel_hides_the_foreground_and_composite_channel_shows_it():
    vae, whole = random_components()["vae"], images()
    changed = whole._replace(composite=torch.where(whole.mask > 0, 1 - whole.composite, whole.composite))
    for channel, shown in (("masked", False), ("composite", True)):
        first, second = encode_images(vae, whole, channel), encode_images(vae, changed, channel)
        assert torch.equal(first[0], second[0]) and torch.equal(first[2], second[2]) != shown
    # The target under the mask is not shown either.
    other = whole._replace(real=changed.composite, composite=changed.composite)
    assert torch.equal(encode_images(vae, whole, "masked")[2], encode_images(vae, other, "masked")[2])


@pytest.mark.parametrize("image_channel", ["masked", "composite"])
def test_training_shows_the_networks_what_the_pipeline_shows_them(image_channel):
    components = trained_like()
    components["controlnet_high"] = None
    seen = []
    components["unet"].register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((args[0], kwargs)), with_kwargs=True
    )
    embedded = []
    embedding = components["controlnet_low"].controlnet_cond_embedding
    embedding.register_forward_pre_hook(lambda _, args: embedded.append(args[0]))
    pipe = make_pipe(components, image_channel=image_channel)
    call(pipe, guidance_scale=1.0)
    sample, kwargs = seen[0]
    _, mask, image_latents = encode_images(components["vae"], images(), image_channel)
    torch.testing.assert_close(sample[:, 4:5], mask)
    torch.testing.assert_close(sample[:, 5:], image_latents)
    text = embed_prompts(components["tokenizer"], components["text_encoder"], ["a cup"])
    torch.testing.assert_close(kwargs["encoder_hidden_states"], text)
    drawn = ControlSettings("low").draw(images().composite, images().mask)
    torch.testing.assert_close(embedded[0], drawn)


@pytest.mark.parametrize("control_input", ["noisy_latents", "unet_input"])
def test_loss_is_the_error_of_what_the_pipeline_predicts(control_input):
    components = trained_like(control_input=control_input)
    pipe = make_pipe(components | {"controlnet_high": None}, control_input=control_input)
    pipe._guidance_scale = 1.0
    control = ControlSettings("low").draw(images().composite, images().mask)
    given = conditions(components, control)
    noise, step = sample_noise(KEYS[:1], given.latents), torch.tensor([400])
    scheduler, controlnet = components["scheduler"], components["controlnet_low"]
    loss = DenoisingObjective(components["unet"], scheduler, controlnet, control_input)(given, noise, step)
    level = np.float32(scheduler.alphas_cumprod[400])
    batch = SimpleNamespace(
        latents=level**0.5 * given.latents + (1 - level) ** 0.5 * noise,  # equation 5
        mask=given.mask,
        masked_image_latents=given.image_latents,
        prompt_embeds=given.text,
    )
    active = [Control(controlnet, control, 1.0, (0.0, 1.0))]
    predicted = pipe.predict_noise(batch, step[0], active, "both")
    assert loss["loss"].item() == pytest.approx((predicted - noise).square().mean().item(), rel=1e-4)


def test_other_controlnet_counts_as_in_the_pipeline_for_the_samples_that_have_it():
    components = trained_like()
    high, low = (ControlSettings(role).draw(images().composite, images().mask) for role in ("high", "low"))
    given = conditions(components, low)._replace(other_control=high)
    noise, step = sample_noise(KEYS[:1], given.latents), torch.tensor([400])
    networks = (components["unet"], components["scheduler"], components["controlnet_low"])
    beside = DenoisingObjective(*networks, other=components["controlnet_high"])

    def loss(*scales):
        count = len(scales)
        tensors = (part.repeat(count, *[1] * (part.ndim - 1)) for part in given[:6])
        scale = torch.tensor(scales)[:, None, None, None]
        repeated = Conditions(*tensors, scale)
        return beside(repeated, noise.repeat(count, 1, 1, 1), step.repeat(count))["loss"].item()

    alone = DenoisingObjective(*networks)(given, noise, step)["loss"].item()
    assert loss(0.0) == alone
    assert loss(1.0, 0.0) == pytest.approx((loss(1.0) + alone) / 2, rel=1e-5)

    pipe = make_pipe(components)
    pipe._guidance_scale = 1.0
    level = np.float32(components["scheduler"].alphas_cumprod[400])
    batch = SimpleNamespace(
        latents=level**0.5 * given.latents + (1 - level) ** 0.5 * noise,
        mask=given.mask,
        masked_image_latents=given.image_latents,
        prompt_embeds=given.text,
    )
    active = [
        Control(components[f"controlnet_{role}"], drawn, 1.0, (0.0, 1.0))
        for role, drawn in (("high", high), ("low", low))
    ]
    predicted = pipe.predict_noise(batch, step[0], active, "both")
    assert loss(1.0) == pytest.approx((predicted - noise).square().mean().item(), rel=1e-4)
    assert loss(1.0) != pytest.approx(alone, rel=1e-3)


def test_velocity_is_the_direction_in_which_noise_turns_into_the_picture():
    components = random_components()
    given = conditions(components)
    noise, step = sample_noise(KEYS[:1], given.latents), torch.tensor([700])
    unet, scheduler = components["unet"], components["scheduler"]
    scheduler.register_to_config(prediction_type="v_prediction")
    loss = DenoisingObjective(unet, scheduler)(given, noise, step)["loss"].item()
    level = scheduler.alphas_cumprod[700]
    noisy = level.sqrt() * given.latents + (1 - level).sqrt() * noise
    with torch.no_grad():
        sample = torch.cat([noisy, given.mask, given.image_latents], 1)
        predicted = unet(sample, step, encoder_hidden_states=given.text).sample
    # What the sampler takes for the picture is off by the error of the velocity, over the root of SNR + 1.
    picture = level.sqrt() * noisy - (1 - level).sqrt() * predicted
    error = (picture - given.latents).square().mean() / (1 - level)
    assert loss == pytest.approx(error.item(), rel=1e-4)
    weighted = DenoisingObjective(unet, scheduler, snr_gamma=5.0)(given, noise, step)["loss"].item()
    snr = (level / (1 - level)).item()
    assert weighted / loss == pytest.approx(min(snr, 5) / (snr + 1), rel=1e-4)


def test_timesteps_of_little_noise_count_less_by_their_signal_to_noise_ratio():
    components = random_components()
    given = conditions(components)
    noise = sample_noise(KEYS[:1], given.latents)
    plain, weighted = (
        DenoisingObjective(components["unet"], components["scheduler"], snr_gamma=gamma)
        for gamma in (None, 5.0)
    )
    for step in (3, 900):
        timesteps = torch.tensor([step])
        level = components["scheduler"].alphas_cumprod[step].item()
        snr = level / (1 - level)
        ratio = weighted(given, noise, timesteps)["loss"] / plain(given, noise, timesteps)["loss"]
        assert ratio.item() == pytest.approx(min(snr, 5) / snr, rel=1e-4)
        assert (snr > 5) == (step == 3)


def test_new_controlnet_changes_no_loss_and_alone_gets_gradients():
    components = random_components()
    control = ControlSettings("high").draw(images().composite, images().mask)
    given = conditions(components, control)
    noise, step = sample_noise(KEYS[:1], given.latents), torch.tensor([10])
    controlnet = components["controlnet_high"].requires_grad_(True)
    with_it = DenoisingObjective(components["unet"], components["scheduler"], controlnet)(given, noise, step)
    without = DenoisingObjective(components["unet"], components["scheduler"])(given, noise, step)
    assert with_it["loss"].item() == without["loss"].item()
    with_it["loss"].backward()
    assert all(parameter.grad is None for parameter in components["unet"].parameters())
    moved = [name for name, value in controlnet.named_parameters() if value.grad.abs().max() > 0]
    assert moved and all(name.startswith(("controlnet_down", "controlnet_mid")) for name in moved)
