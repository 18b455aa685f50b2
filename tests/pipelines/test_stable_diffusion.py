"""What the diffusion pipeline computes: parity with diffusers, the paper's equations, and what it saves."""

import cv2
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionControlNetInpaintPipeline, StableDiffusionInpaintPipeline
from tiny_diffusion import (
    call,
    count_calls,
    latents_of,
    make_pipe,
    object_mask,
    picture,
    seeded,
    trained_like,
)

from harmony_diffusion.diffusion.conditioning import control_residuals
from harmony_diffusion.diffusion.controlnets import Control
from harmony_diffusion.diffusion.random_weights import random_components
from harmony_diffusion.diffusion.working_picture import Group, make_working_pictures
from harmony_diffusion.errors import InputError
from harmony_diffusion.pipelines.inputs import load_call_pairs

SHARED = ("vae", "text_encoder", "tokenizer", "unet")


class Unsampled:
    """diffusers samples the latents of images; ours, and so the reference here, are their mode."""

    def _encode_vae_image(self, image, generator):
        return self.vae.encode(image).latent_dist.mode() * self.vae.config.scaling_factor


class Inpainting(Unsampled, StableDiffusionInpaintPipeline):
    pass


class ControlNetInpainting(Unsampled, StableDiffusionControlNetInpaintPipeline):
    pass


def make_reference(components, cls=Inpainting, **controlnets):
    """Build diffusers' pipeline from the same components, with a scheduler of its own."""
    reference = cls(
        **{name: components[name] for name in SHARED},
        **controlnets,
        scheduler=type(components["scheduler"]).from_config(components["scheduler"].config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    reference.set_progress_bar_config(disable=True)
    return reference


def in_type(components, dtype):
    for module in components.values():
        if isinstance(module, torch.nn.Module):
            torch.nn.Module.to(module, dtype)
    return components


def one_group(**options):
    settings = {"shadow": False, "working_size": 64, "context": 10.0, **options}
    pairs = load_call_pairs(picture(), object_mask())
    return Group(tuple(make_working_pictures(pairs, None, None, **settings)))


def whole_frame():
    """Picture in [0, 1] and mask as tensors, of the working size."""
    composite = torch.from_numpy(picture()).permute(2, 0, 1)[None] / 255
    return composite, torch.from_numpy(object_mask())[None, None] / 255


@pytest.mark.parametrize("control_input", ["noisy_latents", "unet_input"])
@pytest.mark.parametrize("guidance_scale", [1.0, 7.5])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_zero_initialised_controlnets_are_plain_inpainting_to_the_bit(
    control_input, guidance_scale, prediction_type
):
    components = random_components("tiny", control_input=control_input)
    components["scheduler"].register_to_config(prediction_type=prediction_type)
    pipe = make_pipe(components, control_input=control_input)
    composite, mask = whole_frame()
    options = {"num_inference_steps": 4, "guidance_scale": guidance_scale, "negative_prompt": "blurry"}
    ours = latents_of(pipe, **options)
    theirs = make_reference(components, StableDiffusionInpaintPipeline)(
        "a cup",
        image=composite,
        mask_image=mask,
        masked_image_latents=pipe.encode_images((2 * composite - 1) * (mask < 0.5)),
        height=64,
        width=64,
        generator=seeded(),
        output_type="latent",
        **options,
    ).images
    assert torch.equal(ours, theirs)


def test_masked_image_is_that_of_diffusers(tiny_sd2_components):
    composite, mask = whole_frame()
    ours = latents_of(make_pipe(tiny_sd2_components), high_scale=0, low_scale=0)
    settings = {"num_inference_steps": 2, "generator": seeded(), "output_type": "latent"}
    reference = make_reference(tiny_sd2_components)
    assert torch.equal(ours, reference("a cup", composite, mask, height=64, width=64, **settings).images)


def test_scale_zero_is_plain_inpainting_to_the_bit_and_runs_no_controlnet(tiny_sd2_components):
    pipe = make_pipe(tiny_sd2_components)
    runs = [count_calls(pipe.controlnet_high), count_calls(pipe.controlnet_low)]
    without = latents_of(make_pipe({**tiny_sd2_components, "controlnet_high": None, "controlnet_low": None}))
    assert torch.equal(latents_of(pipe, high_scale=0, low_scale=0.0), without)
    assert runs == [[], []]
    assert not torch.allclose(latents_of(pipe), without, atol=1e-3)
    assert [len(run) for run in runs] == [2, 2]


# Guidance and the first steps multiply rounding by some hundreds: there, double precision shows the equality.
@pytest.mark.parametrize(
    ("dtype", "guidance_scale", "tolerance"), [(torch.float32, 1.0, 1e-5), (torch.float64, 5.0, 1e-9)]
)
def test_two_controlnets_equal_diffusers_controlnet_inpainting(
    tiny_sd2_components, dtype, guidance_scale, tolerance
):
    pipe = make_pipe(in_type(tiny_sd2_components, dtype))
    nets = [tiny_sd2_components["controlnet_high"], tiny_sd2_components["controlnet_low"]]
    composite, mask = whole_frame()
    drawn = pipe.make_control_images(one_group())
    options = {"num_inference_steps": 4, "guidance_scale": guidance_scale, "negative_prompt": "dark"}
    ours = latents_of(
        pipe, high_scale=0.8, low_scale=0.6, high_window=(0, 0.75), low_window=(0.25, 1), **options
    )
    theirs = make_reference(tiny_sd2_components, ControlNetInpainting, controlnet=nets)(
        "a cup",
        composite,
        mask,
        control_image=[drawn["controlnet_high"](), drawn["controlnet_low"]()],
        controlnet_conditioning_scale=[0.8, 0.6],
        control_guidance_start=[0.0, 0.25],
        control_guidance_end=[0.75, 1.0],
        generator=seeded(),
        output_type="latent",
        **options,
    ).images
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)
    assert not torch.allclose(ours, latents_of(pipe, **options), atol=1e-2)


def test_starting_from_the_composite_equals_diffusers_strength(tiny_sd2_components):
    composite, mask = whole_frame()
    pipe, reference = make_pipe(tiny_sd2_components), make_reference(tiny_sd2_components)
    settings = {"num_inference_steps": 4, "strength": 0.5}
    ours = latents_of(pipe, init="composite", high_scale=0, low_scale=0, **settings)
    settings |= {"height": 64, "width": 64, "generator": seeded(), "output_type": "latent"}
    assert torch.equal(ours, reference("a cup", composite, mask, **settings).images)


def test_residuals_add_up_with_their_scales(tiny_sd2_components):
    nets = [tiny_sd2_components[name] for name in ("controlnet_high", "controlnet_low")]
    images = torch.rand(2, 1, 3, 64, 64, generator=seeded())
    sample, text = torch.randn(1, 4, 8, 8, generator=seeded()), torch.randn(1, 77, 32, generator=seeded())

    def residuals(high, low):
        settings = [(net, image, s) for net, image, s in zip(nets, images, (high, low), strict=True) if s]
        controls = [Control(net, image, scale, (0.0, 1.0)) for net, image, scale in settings]
        down, middle = control_residuals(controls, sample, torch.tensor(7), text)
        return [*down, middle]

    high, low, both = residuals(1, 0), residuals(0, 1), residuals(0.3, -1.7)
    for one, other, together in zip(high, low, both, strict=True):
        torch.testing.assert_close(together, 0.3 * one - 1.7 * other, atol=1e-5, rtol=1e-5)
        assert one.abs().max() > 0 and other.abs().max() > 0


def seen_by(module):
    """Return a list of (arguments, keyword arguments) of each call."""
    seen = []
    module.register_forward_pre_hook(
        lambda _, arguments, keywords: seen.append((arguments, keywords)), with_kwargs=True
    )
    return seen


@pytest.mark.parametrize("control_input", ["noisy_latents", "unet_input"])
def test_channels_come_in_the_order_noisy_latents_mask_background(control_input):
    pipe = make_pipe(trained_like(control_input=control_input), control_input=control_input)
    by_unet, by_control = seen_by(pipe.unet), seen_by(pipe.controlnet_low)
    call(pipe, num_inference_steps=1)
    ((sample, _), _), ((controlled, _), _) = by_unet[0], by_control[0]
    composite, mask = whole_frame()
    assert sample.shape == (2, 9, 8, 8)
    assert torch.equal(sample[0], sample[1])
    assert torch.equal(sample[:1, :4], torch.randn(1, 4, 8, 8, generator=seeded()))
    assert torch.equal(sample[:1, 4:5], mask[..., ::8, ::8])
    background = pipe.encode_images((2 * composite - 1) * (1 - mask))
    torch.testing.assert_close(sample[:1, 5:], background)
    assert torch.equal(controlled, sample if control_input == "unet_input" else sample[:, :4])


def test_mask_is_white_on_what_is_generated_and_hides_it_from_the_network(tiny_sd2_components):
    pipe = make_pipe(tiny_sd2_components)
    other = picture()
    other[object_mask() > 0] = 255 - other[object_mask() > 0]
    off = {"high_scale": 0, "low_scale": 0}
    assert torch.equal(latents_of(pipe, **off), latents_of(pipe, other, **off))
    assert not torch.allclose(latents_of(pipe), latents_of(pipe, other), atol=1e-3)
    other = picture()
    other[object_mask() == 0] = 255 - other[object_mask() == 0]
    assert not torch.allclose(latents_of(pipe, **off), latents_of(pipe, other, **off), atol=1e-3)


def test_controls_on_the_conditional_half_leave_the_other_half_alone(tiny_sd2_components):
    pipe = make_pipe(tiny_sd2_components)
    halves = []
    pipe.unet.register_forward_hook(lambda *arguments: halves.append(arguments[-1][0].chunk(2)))
    for options in ({"control_cfg": "cond"}, {"control_cfg": "both"}, {"high_scale": 0, "low_scale": 0}):
        call(pipe, num_inference_steps=1, **options)
    cond, both, neither = halves
    torch.testing.assert_close(cond[0], neither[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(cond[1], both[1], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(cond[0], both[0], atol=1e-3)


def test_controls_run_in_their_window_only(tiny_sd2_components):
    pipe = make_pipe(tiny_sd2_components)
    high, low = count_calls(pipe.controlnet_high), count_calls(pipe.controlnet_low)
    call(pipe, num_inference_steps=10, high_window=(0.0, 0.3), low_window=(0.5, 1.0))
    assert (len(high), len(low)) == (3, 5)


def test_what_does_not_change_is_computed_once(tiny_sd2_components):
    pipe = make_pipe(tiny_sd2_components)
    embedded = count_calls(pipe.controlnet_low.controlnet_cond_embedding.conv_in)
    text, encoder = count_calls(pipe.text_encoder), count_calls(pipe.vae.encoder)
    call(pipe, num_inference_steps=5)
    assert (len(embedded), len(text), len(encoder)) == (1, 2, 1)


@pytest.mark.parametrize("name", ["controlnet_high", "controlnet_low"])
def test_reusable_embeddings_change_nothing_for_images(tiny_sd2_components, name):
    controlnet = tiny_sd2_components[name]
    arguments = (torch.randn(1, 4, 8, 8), torch.tensor(3), torch.randn(1, 77, 32), torch.rand(1, 3, 64, 64))
    before = controlnet(*arguments).mid_block_res_sample
    keys = list(controlnet.state_dict())
    call(make_pipe(tiny_sd2_components))
    assert torch.equal(controlnet(*arguments).mid_block_res_sample, before)
    assert list(controlnet.state_dict()) == keys


def test_channel_order_of_a_bgr_controlnet_is_kept(tiny_sd2_components):
    plain = latents_of(make_pipe(in_type(tiny_sd2_components, torch.float64)))
    controlnet = tiny_sd2_components["controlnet_low"]
    controlnet.register_to_config(controlnet_conditioning_channel_order="bgr")
    controlnet.controlnet_cond_embedding.conv_in.weight.data = (
        controlnet.controlnet_cond_embedding.conv_in.weight.data.flip(1)
    )
    torch.testing.assert_close(latents_of(make_pipe(tiny_sd2_components)), plain)


def test_control_images_are_drawn_after_cropping_and_of_the_foreground_alone(tiny_sd2_components):
    pipe = make_pipe(tiny_sd2_components)
    seen = seen_by(pipe.controlnet_low.controlnet_cond_embedding.conv_in)
    large, mask = picture((200, 300)), np.zeros((200, 300), np.uint8)
    mask[80:120, 100:140] = 255
    other = large.copy()
    other[mask == 0] = 0
    for composite in (large, other):
        call(pipe, composite, mask, context=0.5)
    first, second = (arguments[0] for arguments, _ in seen)
    assert first.shape == (1, 3, 64, 64)
    assert torch.equal(first, second)


@pytest.mark.parametrize("size", [(64, 64), (37, 53), (33, 200), (301, 97), (129, 511)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_background_is_bit_identical_at_any_size(size, dtype, tiny_sd2_components):
    composite, mask = picture(size, dtype=dtype), object_mask(size)
    before = composite.copy()
    output = call(make_pipe(tiny_sd2_components), composite, mask, context=0.3)
    (region,), (result,) = output.regions, output.images
    reach = int(np.ceil(8 * max(region.height, region.width) / 64)) + 1
    far = cv2.dilate(mask, np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)) == 0
    assert result.shape == composite.shape and result.dtype == dtype
    assert np.array_equal(result[far], before[far]) and np.array_equal(composite, before)
    assert (result[mask > 0] != before[mask > 0]).mean() > 0.5
    strict = call(make_pipe(tiny_sd2_components), composite, mask, context=0.3, feather=0).images[0]
    assert np.array_equal(strict[mask == 0], before[mask == 0])


def test_soft_masks_blend(tiny_sd2_components):
    pipe = make_pipe(tiny_sd2_components)
    composite, soft = picture(dtype=np.float32), object_mask().astype(np.float32) / 255
    hard = soft.copy()
    soft[16:48, 16:20] = 0.5
    off = {"feather": 0, "high_scale": 0, "low_scale": 0}  # control images follow the mask's softness
    full = call(pipe, composite, hard, **off).images[0]
    half = call(pipe, composite, soft, **off).images[0]
    rim = (slice(16, 48), slice(16, 20))
    np.testing.assert_allclose(half[rim], (full[rim] + composite[rim]) / 2, atol=1e-5)
    faded = call(pipe, composite, hard, feather=8).images[0]
    change = np.abs(faded - composite).max(2)
    assert 0 < (change[14, 20:44] > 0).mean() and change[:8].max() == 0


def test_preserving_detail_hands_over_colour_and_light_only(tiny_sd2_components):
    pipe, mask = make_pipe(tiny_sd2_components), object_mask((150, 130))
    composite = picture((150, 130), dtype=np.float32)
    output = call(pipe, composite, mask, detail="preserve")
    kept, (region,) = output.images[0], output.regions
    generated, _ = pipe.decode(latents_of(pipe, composite, mask))
    tensors = torch.from_numpy(composite).permute(2, 0, 1)[None], torch.from_numpy(mask)[None, None] / 255
    expected = region.paste(generated, *tensors, detail="preserve")[0].permute(1, 2, 0)
    np.testing.assert_allclose(kept, expected, atol=1e-6)
    assert np.array_equal(kept[mask == 0], composite[mask == 0])
    assert not np.allclose(kept, call(pipe, composite, mask).images[0], atol=0.05)


def test_errors_of_the_autoencoder_are_no_change_where_the_network_sees_the_composite(tiny_sd2_components):
    def copy_input(pipe, step, timestep, tensors):
        return {"latents": tensors["masked_image_latents"]}

    options = {"callback_on_step_end": copy_input, "detail": "preserve"}
    options["callback_on_step_end_tensor_inputs"] = ["latents", "masked_image_latents"]
    copied = call(make_pipe(tiny_sd2_components, image_channel="composite"), **options).images[0]
    assert np.abs(copied.astype(int) - picture()).max() <= 1
    # A random autoencoder reproduces nothing: without the reference its errors are changes of colour.
    masked = call(make_pipe(tiny_sd2_components), **options).images[0]
    assert np.abs(masked.astype(int) - picture()).max() > 20


def test_drift_of_colour_is_taken_back_when_asked(tiny_sd2_components):
    pipe = make_pipe(tiny_sd2_components)
    pipe.vae.decoder.conv_out.weight.data.zero_()
    pipe.vae.decoder.conv_out.bias.data.fill_(0.5)  # a network that makes everything the grey 0.75
    composite = np.full((64, 64, 3), 0.25, np.float32)
    inside = (slice(24, 40), slice(24, 40))
    np.testing.assert_allclose(call(pipe, composite).images[0][inside], 0.75, atol=1e-3)
    matched = call(pipe, composite, match_surroundings=True).images[0]
    np.testing.assert_allclose(matched[inside], 0.25, atol=1e-3)


@pytest.mark.parametrize("detail", ["generated", "preserve"])
def test_the_mean_with_the_mirrored_picture(detail, tiny_sd2_components):
    pipe = make_pipe(tiny_sd2_components, image_channel="composite", average_mirrored=True)
    composite, mask = picture(dtype=np.float32), object_mask()
    options = {"latents": torch.randn(1, 4, 8, 8, generator=seeded()), "detail": detail, "feather": 0}
    runs = count_calls(pipe.unet)
    mean = call(pipe, composite, mask, **options).images[0]
    assert len(runs) == 4  # two steps each
    pipe.register_to_config(average_mirrored=False)
    plain = call(pipe, composite, mask, **options).images[0]
    mirrored = call(pipe, composite[:, ::-1].copy(), mask[:, ::-1].copy(), **options).images[0][:, ::-1]
    assert np.abs(plain - mirrored).max() > 0.01
    if detail == "generated":
        np.testing.assert_allclose(mean, (plain + mirrored) / 2, atol=1e-4)
    else:  # colours are fitted to the mean of pixels
        assert np.abs(mean - (plain + mirrored) / 2).mean() < np.abs(plain - mirrored).mean() / 2
    assert np.array_equal(mean[mask == 0], composite[mask == 0])


@pytest.mark.parametrize("detail", ["generated", "preserve"])
def test_opacity_keeps_a_share_of_the_change(detail, tiny_sd2_components):
    composite, mask = picture(dtype=np.float32), object_mask()

    def change(opacity):
        pipe = make_pipe(tiny_sd2_components, opacity=opacity)
        return call(pipe, composite, mask, detail=detail, generator=seeded()).images[0] - composite

    whole = change(1.0)
    assert np.abs(whole).max() > 0.05
    np.testing.assert_allclose(change(0.25), whole / 4, atol=1e-5)
    assert not change(0.0).any()
    with pytest.raises(InputError, match=r"^opacity: "):
        make_pipe(tiny_sd2_components, opacity=1.5)


def test_shadow_may_change_the_ground_and_layers_give_the_result_back(tiny_sd2_components):
    pipe, mask = make_pipe(tiny_sd2_components), object_mask()
    composite = picture(dtype=np.float32)
    plain = call(pipe, composite, mask, feather=0).images[0]
    output = call(pipe, composite, mask, feather=0, shadow=True, return_layers=True)
    result, (layers,) = output.images[0], output.layers
    assert np.array_equal(plain[mask == 0], composite[mask == 0])
    ground = (slice(49, 51), slice(20, 44))
    assert not np.array_equal(result[ground], composite[ground])
    assert np.array_equal(result[:16], composite[:16])
    assert layers.foreground.shape == (1, 4, 64, 64) and layers.shadow.shape == (1, 1, 64, 64)
    assert np.array_equal(layers.composite[0].permute(1, 2, 0), result)


def test_batch_equals_loop(tiny_sd2_components):
    pipe = make_pipe(tiny_sd2_components)
    sizes = [(64, 64), (96, 64), (64, 64), (200, 64)]
    composites = [picture(size, seed) for seed, size in enumerate(sizes)]
    masks = [object_mask(size) for size in sizes]
    prompts = ["a cup", "a red car", "a dog", ""]
    runs = count_calls(pipe.unet)
    together = call(
        pipe, composites, masks, prompts, generator=[seeded(seed) for seed in range(4)], negative_prompt="bad"
    )
    assert len(runs) < 2 * 4
    for i, (composite, mask, prompt) in enumerate(zip(composites, masks, prompts, strict=True)):
        alone = call(pipe, composite, mask, prompt, generator=seeded(i), negative_prompt="bad").images[0]
        assert np.abs(alone.astype(int) - together.images[i]).max() <= 1
    assert together.prompts == prompts


def test_several_images_of_each_composite_stand_together(tiny_sd2_components):
    pipe = make_pipe(tiny_sd2_components)
    composites, masks = [picture(seed=seed) for seed in range(2)], [object_mask()] * 2
    generators = [seeded(seed) for seed in range(4)]
    images = call(pipe, composites, masks, generator=generators, num_images_per_prompt=2).images
    for i, image in enumerate(images):
        alone = call(pipe, composites[i // 2], masks[0], generator=seeded(i)).images[0]
        assert np.abs(alone.astype(int) - image).max() <= 1
    assert not np.array_equal(images[0], images[1])


def test_one_seed_one_result(tiny_sd2_components):
    pipe = make_pipe(tiny_sd2_components)
    first, again, other = (call(pipe, generator=seeded(seed)).images[0] for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.01), (torch.bfloat16, 0.1)])
def test_half_precision_is_close_to_single(dtype, tolerance):
    halves = []
    for kind in (torch.float32, dtype):
        pipe = make_pipe(in_type(trained_like(), kind))
        pipe.unet.register_forward_hook(lambda *arguments: halves.append(arguments[-1][0]))
        # The composite's latents at the last timestep: hardly any noise, which is another one in each type.
        call(pipe, init="composite", strength=0.05, num_inference_steps=20, high_window=(0, 1))
    single, half = halves
    assert half.dtype == dtype
    assert (half.float() - single).abs().max() < tolerance * single.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_autoencoder_may_have_a_larger_type(dtype):
    pipe = make_pipe(in_type(trained_like(), dtype))
    pipe.vae.to(torch.float32)
    assert torch.isfinite(call(pipe, output_type="pt").images).all()
    assert latents_of(pipe).dtype == dtype


def test_foreground_and_background_are_read_where_they_are_given(tiny_sd2_components):
    pipe = make_pipe(tiny_sd2_components)
    composite, mask = picture(), object_mask()
    mine = composite.copy()
    mine[mask > 0] = picture(seed=5)[mask > 0]
    assert torch.equal(latents_of(pipe, foreground=composite, background=composite), latents_of(pipe))
    assert torch.equal(latents_of(pipe, foreground=mine), latents_of(pipe, mine))
    assert torch.equal(latents_of(pipe, mine, foreground=composite), latents_of(pipe))
    other = picture(seed=7)
    assert torch.equal(
        latents_of(pipe, background=other, high_scale=0, low_scale=0),
        latents_of(pipe, other, high_scale=0, low_scale=0),
    )
    result = call(pipe, background=other, feather=0).images[0]
    assert np.array_equal(result[mask == 0], composite[mask == 0])


def test_hidden_pixels_are_neither_shown_to_the_network_nor_changed(tiny_sd2_components):
    pipe = make_pipe(tiny_sd2_components)
    rgba = np.dstack((picture(), np.full((64, 64), 255, np.uint8)))
    rgba[:, 40:, 3] = 0
    other = rgba.copy()
    other[:, 40:, :3] = 255 - other[:, 40:, :3]
    assert torch.equal(latents_of(pipe, rgba), latents_of(pipe, other))
    result = call(pipe, other).images[0]
    assert np.array_equal(result[:, 40:], other[:, 40:])


def test_strength_zero_returns_the_input(tiny_sd2_components):
    pipe, composite = make_pipe(tiny_sd2_components), picture()
    runs = count_calls(pipe.unet)
    assert np.array_equal(call(pipe, init="composite", strength=0).images[0], composite)
    assert not runs


def test_preset_embeddings_equal_their_prompts(tiny_sd2_components):
    pipe = make_pipe(tiny_sd2_components)
    positive, negative = pipe.encode_prompt("a cup", "cpu", 1, True, "bad")
    given = latents_of(pipe, prompt=None, prompt_embeds=positive, negative_prompt_embeds=negative)
    assert torch.equal(given, latents_of(pipe, negative_prompt="bad"))
