"""What users of diffusers try in a call, and what they get: a result or one clear line."""

import warnings

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from tiny_diffusion import call, count_calls, latents_of, make_pipe, object_mask, picture, seeded

from harmony_diffusion import (
    HarmonizationPipeline,
    StableDiffusionHarmonizationPipeline,
    load_mask,
    load_model,
)
from harmony_diffusion.errors import InputError, InputNote, InputTypeError, SizeMismatchError, TooLargeError


@pytest.fixture
def pipe(tiny_sd2_components):
    return make_pipe(tiny_sd2_components)


@pytest.fixture(scope="module")
def plain():
    pipe = HarmonizationPipeline(load_model("reinhard"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_np_is_one_float_array_as_in_diffusers(pipe, plain):
    composites, masks = [picture((96, 80)), picture((96, 80), 1)], [object_mask((96, 80))] * 2
    for one in (pipe, plain):
        settings = {"generator": seeded(), "num_inference_steps": 2}
        images = {
            kind: one(
                composites, masks, "a cup", output_type=kind, **settings | {"generator": seeded()}
            ).images
            for kind in ("np", "array", "pt")
        }
        assert images["np"].shape == (2, 96, 80, 3) and images["np"].dtype == np.float32
        assert np.array_equal(images["np"], images["pt"].permute(0, 2, 3, 1))
        assert np.array_equal((images["np"] * 255).round().astype(np.uint8), np.stack(images["array"]))
    mixed = plain([composites[0], picture()], [masks[0], object_mask()], output_type="np").images
    assert [image.shape for image in mixed] == [(96, 80, 3), (64, 64, 3)]


def test_array_keeps_depth_and_alpha(plain):
    rgba = np.dstack((picture(dtype=np.uint16), np.full((64, 64), 65535, np.uint16)))
    rgba[:8, :8, 3] = 1000
    (result,) = plain(rgba, object_mask(), output_type="array").images
    assert result.dtype == np.uint16 and result.shape == (64, 64, 4)
    assert plain(rgba, object_mask(), output_type="np").images.shape == (1, 64, 64, 3)


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16])
def test_numpy_numbers_are_numbers(kind, pipe, plain):
    composite, mask = picture(), object_mask()
    half = plain(composite, mask, strength=0.5, output_type="array").images[0]
    assert np.array_equal(half, plain(composite, mask, strength=kind(0.5), output_type="array").images[0])
    plain(composite, mask, strength=np.int64(1))
    options = {
        "high_scale": 0.5,
        "guidance_scale": 2.0,
        "low_window": (0.0, 0.5),
        "context": 1.0,
        "feather": 4.0,
    }
    same = {name: tuple(map(kind, v)) if isinstance(v, tuple) else kind(v) for name, v in options.items()}
    expected = call(pipe, num_inference_steps=3, num_images_per_prompt=2, **options).images
    counts = {"num_inference_steps": np.int32(3), "num_images_per_prompt": np.uint8(2)}
    result = call(pipe, **counts, **same).images
    assert all(np.array_equal(a, b) for a, b in zip(result, expected, strict=True))


@pytest.mark.parametrize("value", ["0.5", None, np.float32("nan"), np.array([0.5]), 1 + 0j, -0.5, np.inf])
def test_what_is_no_number_is_refused(value, plain, pipe):
    for one in (plain, pipe):
        with pytest.raises(InputError, match="strength: must be a number"):
            one(picture(), object_mask(), "a cup", strength=value)


@pytest.mark.parametrize("value", [0, 1.5, "2", True, np.int64(-1), None])
def test_what_is_no_count_is_refused(value, plain, pipe):
    for one in (pipe, plain) if value is not None else (pipe,):
        with pytest.raises(InputError, match="num_inference_steps: must be an integer"):
            one(picture(), object_mask(), "a cup", num_inference_steps=value)


def test_the_discriminative_pipeline_takes_the_call_of_the_other(plain):
    options = {"num_inference_steps": 20, "generator": seeded(), "output_type": "array"}
    expected = plain(picture(), object_mask(), output_type="array").images[0]
    assert np.array_equal(plain(picture(), object_mask(), None, **options).images[0], expected)
    for wrong in ({"generator": 7}, {"generator": [seeded(), seeded()]}):
        with pytest.raises(InputError, match="generator"):
            plain(picture(), object_mask(), **wrong)


def test_given_noise_replaces_drawn_noise(pipe):
    noise = torch.randn(1, 4, 8, 8, generator=seeded())
    expected = latents_of(pipe)
    assert torch.equal(latents_of(pipe, latents=noise, generator=None), expected)
    assert torch.equal(latents_of(pipe, latents=[noise[0]], generator=None), expected)
    composites, masks = [picture((64, 200)), picture()], [object_mask((64, 200)), object_mask()]
    sizes = [torch.randn(4, *size, generator=seeded()) for size in ((8, 24), (8, 8))]
    with pytest.raises(InputError, match=r"latents\[0\]: has shape \(4, 8, 24\), expected \(4, 8, "):
        call(pipe, composites, masks, latents=sizes)
    region = call(pipe, composites, masks).regions[0]
    sizes[0] = torch.randn(4, region.working_height // 8, region.working_width // 8, generator=seeded())
    assert len(latents_of(pipe, composites, masks, latents=sizes, generator=None)) == 2
    for wrong in (noise[0], torch.zeros(2, 4, 8, 8), "noise", [None]):
        with pytest.raises(InputError, match="latents"):
            call(pipe, latents=wrong)


def test_own_timesteps_and_sigmas_replace_the_schedule(pipe):
    seen = []
    watch = {"callback_on_step_end": lambda _, step, time, tensors: seen.append(int(time)) or {}}
    with pytest.raises(InputError, match="timesteps: are given, but UniPCMultistepScheduler makes its own"):
        call(pipe, timesteps=[900, 500, 100])
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    call(pipe, timesteps=[900, 500, 100], **watch)
    assert seen == [900, 500, 100] and pipe.num_timesteps == 3
    call(pipe, timesteps=np.array([900, 100]))
    call(pipe, sigmas=[10.0, 3.0, 1.0, 0.5, 0.0])
    assert pipe.num_timesteps == 4
    for wrong, words in (
        ({"timesteps": [900], "sigmas": [1.0]}, "together"),
        ({"timesteps": []}, "timesteps"),
        ({"sigmas": "1"}, "sigmas"),
    ):
        with pytest.raises(InputError, match=words):
            call(pipe, **wrong)


def test_timesteps_that_the_scheduler_refuses_are_named(pipe):
    from diffusers import LCMScheduler

    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    runs = count_calls(pipe.unet)
    with pytest.raises(InputError, match="timesteps: cannot be used with LCMScheduler"):
        call(pipe, timesteps=[100, 500, 900])
    assert not runs


def test_eta_reaches_ddim(pipe):
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    plain = latents_of(pipe, num_inference_steps=4)
    assert torch.equal(latents_of(pipe, num_inference_steps=4, eta=0.0), plain)
    assert not torch.equal(latents_of(pipe, num_inference_steps=4, eta=1.0), plain)
    for wrong in (-0.1, 1.1, "much"):
        with pytest.raises(InputError, match="eta"):
            call(pipe, eta=wrong)


def test_clip_skip_leaves_out_layers(pipe):
    assert not torch.equal(latents_of(pipe, clip_skip=1), latents_of(pipe))
    for wrong in (-1, 99, 1.5, True):
        with pytest.raises(InputError, match="clip_skip: must be an integer from 0 to"):
            call(pipe, clip_skip=wrong)
    assert torch.equal(latents_of(pipe), latents_of(pipe, clip_skip=0))


def test_cross_attention_kwargs_weigh_lora_layers(pipe):

    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    expected = latents_of(pipe)
    torch.manual_seed(0)
    pipe.unet.add_adapter(config, "tiny")
    whole, none = latents_of(pipe), latents_of(pipe, cross_attention_kwargs={"scale": 0.0})
    torch.testing.assert_close(none, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(whole, expected, atol=1e-3)
    assert torch.equal(latents_of(pipe), whole)  # the scale of one call does not stay


def test_cross_attention_kwargs_reach_the_unet_of_their_call_alone(pipe):
    seen = []
    pipe.unet.register_forward_pre_hook(
        lambda _, arguments, keywords: seen.append(keywords["cross_attention_kwargs"]), with_kwargs=True
    )
    call(pipe, num_inference_steps=1, cross_attention_kwargs={"scale": 1.0})
    call(pipe, num_inference_steps=1)
    assert seen == [{"scale": 1.0}, None]
    with pytest.raises(InputTypeError, match="cross_attention_kwargs"):
        call(pipe, cross_attention_kwargs=0.5)


def test_a_reference_mask_is_refused_with_what_there_is(pipe):
    with pytest.raises(InputError, match="reference_mask.*`context`.*HarmonizationPipeline"):
        call(pipe, reference_mask=object_mask())


def test_callbacks_see_and_change_negative_embeddings(pipe):
    seen = {}

    def look(called, step, timestep, tensors):
        seen.setdefault("shapes", {name: tuple(tensor.shape) for name, tensor in tensors.items()})
        return tensors

    names = pipe._callback_tensor_inputs
    options = {"callback_on_step_end": look, "callback_on_step_end_tensor_inputs": names}
    assert torch.equal(latents_of(pipe, **options), latents_of(pipe))
    assert seen["shapes"]["negative_prompt_embeds"] == (1, 77, 32)
    assert seen["shapes"]["prompt_embeds"] == (2, 77, 32)

    def replace(called, step, timestep, tensors):
        return {"negative_prompt_embeds": pipe.encode_prompt("bad", "cpu", 1, False)[0]}

    changed = latents_of(pipe, callback_on_step_end=replace, num_inference_steps=3)
    assert not torch.equal(changed, latents_of(pipe, num_inference_steps=3))


def test_latents_keep_their_positions(pipe):
    composites = [picture(seed=seed) for seed in range(3)] + [picture((64, 200))]
    masks = [object_mask(composite.shape[:2]) for composite in composites]
    masks[1] = np.zeros_like(masks[1])
    order = [3, 1, 0, 2]
    with pytest.warns(InputNote, match="empty"):
        output = call(
            pipe,
            [composites[i] for i in order],
            [masks[i] for i in order],
            output_type="latent",
            generator=[seeded(i) for i in order],
        )
    assert [None if one is None else tuple(one.shape[1:]) != (8, 8) for one in output.images] == [
        True,
        None,
        False,
        False,
    ]
    alone = latents_of(pipe, composites[2], generator=seeded(2))[0]
    torch.testing.assert_close(output.images[3], alone, atol=1e-3, rtol=1e-3)
    nothing = call(pipe, init="composite", strength=0, output_type="latent", num_images_per_prompt=2)
    assert nothing.images == [None, None]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prompt_embeds": torch.zeros(1, 77, 16)}, r"prompt_embeds: must be a tensor \(B, L, 32\)"),
        ({"prompt_embeds": np.zeros((1, 77, 32))}, "prompt_embeds: must be a tensor"),
        (
            {"prompt_embeds": torch.zeros(1, 77, 32), "negative_prompt_embeds": torch.zeros(1, 60, 32)},
            "expected equal ones",
        ),
    ],
)
def test_embeddings_that_do_not_fit_are_refused(options, words, pipe):
    runs = count_calls(pipe.unet)
    with pytest.raises(InputError, match=words):
        call(pipe, prompt=None, **options)
    assert not runs


def test_networks_of_other_types_are_refused_with_the_line_that_converts(pipe):
    torch.nn.Module.to(pipe.controlnet_low, torch.bfloat16)
    with pytest.raises(InputError, match=r"controlnet_low: .*`pipe.controlnet_low.to\(pipe.unet.dtype"):
        call(pipe)
    call(pipe, low_scale=0)


def test_a_captioner_needs_its_processor(tiny_sd2_components, tmp_path):
    from tiny_blip import save_tiny_blip

    from harmony_diffusion.data.captions import load_captioner

    processor, captioner = load_captioner(save_tiny_blip(tmp_path / "blip"))
    with pytest.raises(InputError, match="captioner_processor: is None"):
        make_pipe({**tiny_sd2_components, "captioner": captioner})
    pipe = make_pipe(tiny_sd2_components)
    pipe.captioner = captioner
    with pytest.raises(InputError, match="captioner_processor: is None"):
        call(pipe, prompt=None)
    call(pipe)  # with a prompt it is not asked


def test_the_remedy_of_a_refused_mask_exists_and_works(pipe, plain):
    composite, mask = picture((80, 64)), object_mask((160, 128))
    for one in (pipe, plain):
        with pytest.raises(SizeMismatchError, match=r"use `load_mask\(…, size=…, resize=True\)`") as caught:
            one(composite, mask, "a cup")
        assert "--resize-mask" not in str(caught.value)
    resized = load_mask(mask, size=(80, 64), resize=True)
    plain(composite, resized)
    with pytest.raises(SizeMismatchError, match="reference_mask.*resize=True"):
        plain(composite, object_mask((80, 64)), reference_mask=mask)


def test_the_remedy_of_a_large_picture_exists(plain):
    with pytest.raises(TooLargeError, match=r"load_picture\(…, max_pixels=…\)"):
        plain(np.broadcast_to(np.uint8(0), (10001, 10000, 3)), object_mask())


@pytest.mark.parametrize("kind", ["list", "(N, H, W)", "(N, H, W, 1)", "tensor (N, 1, H, W)", "None in it"])
def test_batches_of_reference_masks_are_batches_of_masks(kind, plain):
    composites, masks = np.stack([picture(), picture(seed=1)]), np.stack([object_mask()] * 2)
    reference = np.stack([masks[0] == 0, np.arange(64)[:, None] + np.zeros((64, 64)) < 20])
    given = {
        "list": list(reference),
        "(N, H, W)": reference,
        "(N, H, W, 1)": reference[..., None],
        "tensor (N, 1, H, W)": torch.from_numpy(reference)[:, None],
        "None in it": [None, reference[1]],
    }[kind]
    expected = plain(composites, masks, reference_mask=list(reference), output_type="array").images
    result = plain(composites, masks, reference_mask=given, output_type="array").images
    assert all(np.array_equal(a, b) for a, b in zip(result[1:], expected[1:], strict=True))
    with pytest.raises(InputTypeError, match="reference_mask: there are 1 for 2"):
        plain(composites, masks, reference_mask=[reference[0]])


def test_from_pipe_keeps_types_settings_and_networks(tiny_sd2_components, plain):
    torch.nn.Module.to(tiny_sd2_components["unet"], torch.bfloat16)
    pipe = make_pipe(tiny_sd2_components, sigma=3.0, canny_thresholds=(10, 20))
    other = StableDiffusionHarmonizationPipeline.from_pipe(pipe, sigma=5.0)
    assert other.unet is pipe.unet and other.unet.dtype == torch.bfloat16
    assert (other.config["sigma"], other.config["canny_thresholds"], other.config["working_size"]) == (
        5,
        (10, 20),
        64,
    )
    assert HarmonizationPipeline.from_pipe(plain).model is plain.model
    with pytest.raises(InputTypeError, match="which has no model"):
        HarmonizationPipeline.from_pipe(pipe)
    with pytest.raises(InputTypeError, match="which has no scheduler, text_encoder"):
        StableDiffusionHarmonizationPipeline.from_pipe(plain)
    with pytest.raises(InputTypeError, match="Did you mean 'sigma'"):
        StableDiffusionHarmonizationPipeline.from_pipe(pipe, sigmas=1)


def test_components_alone_lose_the_settings_and_that_is_noted(tiny_sd2_components):
    pipe = make_pipe(tiny_sd2_components, sigma=3.0)
    with pytest.warns(InputNote, match="sigma=3.0, working_size=64.*from_pipe"):
        StableDiffusionHarmonizationPipeline(**pipe.components)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        StableDiffusionHarmonizationPipeline(**pipe.components, sigma=3.0, working_size=64)
        StableDiffusionHarmonizationPipeline.from_pipe(pipe)


def test_the_constructor_names_what_it_takes():
    with pytest.raises(InputTypeError, match="from_pretrained"):
        HarmonizationPipeline("default")
