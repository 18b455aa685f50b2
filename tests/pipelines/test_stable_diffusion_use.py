"""How the diffusion pipeline is used: saved, loaded, offloaded, watched, interrupted, given bad input."""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionInpaintPipeline
from diffusers.callbacks import SDCFGCutoffCallback
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from tiny_blip import save_tiny_blip
from tiny_diffusion import call, count_calls, latents_of, make_pipe, object_mask, picture, seeded
from transformers import CLIPConfig, CLIPImageProcessor

from harmony_diffusion.data.captions import load_captioner
from harmony_diffusion.diffusion.random_weights import random_components
from harmony_diffusion.errors import CheckpointError, InputError, InputNote, MaskError, SizeMismatchError
from harmony_diffusion.images.picture import Picture
from harmony_diffusion.models import create_model
from harmony_diffusion.pipelines.harmonization import HarmonizationPipeline
from harmony_diffusion.pipelines.stable_diffusion import StableDiffusionHarmonizationPipeline

ROOT = Path(__file__).resolve().parents[2]
ENTRY = ROOT / "pipelines" / "stable_diffusion.py"


@pytest.fixture
def pipe(tiny_sd2_components):
    return make_pipe(tiny_sd2_components)


def hub_folder(folder):
    """Turn a saved pipeline into what a repository on the Hub holds: the entry file, and its name."""
    shutil.copy(ENTRY, folder / "pipeline.py")
    index = json.loads((folder / "model_index.json").read_text())
    index["_class_name"] = ["pipeline", "StableDiffusionHarmonizationPipeline"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)


LOADERS = {
    "class": StableDiffusionHarmonizationPipeline.from_pretrained,
    "custom pipeline": lambda folder: DiffusionPipeline.from_pretrained(
        folder, custom_pipeline=str(ENTRY), trust_remote_code=True
    ),
    "hub folder": hub_folder,
}


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
def test_saved_pipeline_loads_and_gives_the_same(load, tiny_sd2_components, tmp_path):
    config = {"sigma": 3.0, "canny_thresholds": (50, 80), "silhouette": False, "premultiplied": False}
    pipe = make_pipe(tiny_sd2_components, **config)
    pipe.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded).__name__ == "StableDiffusionHarmonizationPipeline"
    assert {key: loaded.config[key] for key in config} == config
    assert type(loaded.scheduler) is type(pipe.scheduler)
    assert np.array_equal(call(loaded).images[0], call(pipe).images[0])


def test_a_pipeline_with_one_controlnet_loads_with_its_role(tiny_sd2_components, tmp_path):
    pipe = make_pipe({**tiny_sd2_components, "controlnet_high": None})
    pipe.save_pretrained(tmp_path)
    loaded = StableDiffusionHarmonizationPipeline.from_pretrained(tmp_path)
    assert loaded.controlnet_high is None and loaded.controlnet_low is not None


def test_a_saved_inpainting_pipeline_of_diffusers_loads_with_controlnets_added(tiny_sd2_components, tmp_path):
    names = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
    StableDiffusionInpaintPipeline(
        **{name: tiny_sd2_components[name] for name in names},
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(tmp_path)
    controls = {name: tiny_sd2_components[name] for name in ("controlnet_high", "controlnet_low")}
    loaded = StableDiffusionHarmonizationPipeline.from_pretrained(tmp_path, working_size=64, **controls)
    loaded.set_progress_bar_config(disable=True)
    assert np.array_equal(call(loaded).images[0], call(make_pipe(tiny_sd2_components)).images[0])


def test_the_nine_channel_mode_is_saved(tmp_path):
    make_pipe(random_components(control_input="unet_input"), control_input="unet_input").save_pretrained(
        tmp_path
    )
    loaded = StableDiffusionHarmonizationPipeline.from_pretrained(tmp_path)
    assert loaded.config["control_input"] == "unet_input"
    with pytest.raises(CheckpointError, match="9 input channels.*unet_input"):
        StableDiffusionHarmonizationPipeline.from_pretrained(tmp_path, control_input="noisy_latents")


@pytest.mark.parametrize("shared", [False, True], ids=["diffusion", "discriminative"])
def test_one_call_serves_both_pipelines(shared, tiny_sd2_components):
    pipe = HarmonizationPipeline(create_model("reinhard")) if shared else make_pipe(tiny_sd2_components)
    pipe.set_progress_bar_config(disable=True)
    harmonize_with(pipe)


def harmonize_with(pipe):
    """Use a pipeline as a caller does who does not know which it is."""
    composite, mask = picture((96, 80)), object_mask((96, 80))
    for output_type, kind in (("pil", Image.Image), ("array", np.ndarray), ("picture", Picture)):
        images = pipe(composite, mask, "a cup on a table", output_type=output_type).images
        assert len(images) == 1 and isinstance(images[0], kind)
    result = pipe(composite, mask, "a cup on a table", output_type="array").images[0]
    assert result.shape == composite.shape and result.dtype == composite.dtype
    assert np.array_equal(result[:10], composite[:10]) and not np.array_equal(result, composite)
    tensor = pipe(composite, mask, "a cup on a table", output_type="pt").images
    assert tensor.shape == (1, 3, 96, 80) and 0 <= tensor.min() and tensor.max() <= 1
    assert len(pipe([composite] * 2, [mask] * 2, "a cup", return_dict=False)[0]) == 2
    for wrong in ({"output_type": "jpg"}, {"strength": 2}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            pipe(composite, mask, "a cup", **wrong)
    with pytest.raises(SizeMismatchError):
        pipe(composite, mask[:50], "a cup")
    with pytest.raises(MaskError, match="no background"), warnings.catch_warnings():
        warnings.simplefilter("ignore", InputNote)
        pipe(composite, np.full_like(mask, 255), "a cup")
    with pytest.warns(InputNote, match="empty"):
        untouched = pipe(composite, np.zeros_like(mask), "a cup", output_type="array").images[0]
    assert np.array_equal(untouched, composite)


def test_an_empty_mask_among_others_leaves_that_picture_alone(pipe):
    composites, masks = [picture(seed=seed) for seed in range(3)], [object_mask()] * 3
    masks[1] = np.zeros_like(masks[0])
    with pytest.warns(InputNote, match="empty"):
        output = call(pipe, composites, masks, generator=[seeded(seed) for seed in range(3)])
    assert output.regions[1] is None and np.array_equal(output.images[1], composites[1])
    assert (
        np.abs(call(pipe, composites[2], generator=seeded(2)).images[0] - output.images[2].astype(int)).max()
        <= 1
    )


@pytest.mark.parametrize(
    ("way", "device"),
    [
        # A processor may play the accelerator: all hooks run, and move nothing.
        ("enable_model_cpu_offload", "cpu"),
        pytest.param("enable_model_cpu_offload", "cuda", marks=pytest.mark.gpu),
        pytest.param("enable_sequential_cpu_offload", "cuda", marks=pytest.mark.gpu),
    ],
)
def test_offloaded_pipeline_gives_the_same_twice(way, device, pipe):
    expected = call(pipe).images[0].astype(int)
    getattr(pipe, way)(device=device)
    for _ in range(2):
        assert np.abs(call(pipe).images[0] - expected).max() <= 1


def test_controlnets_are_unloaded_before_decoding(pipe):
    pipe.enable_model_cpu_offload(device="cpu")
    order = []
    for name in ("controlnet_high", "controlnet_low"):
        hook = next(hook for hook in pipe._all_hooks if hook.model is getattr(pipe, name))
        unload = hook.offload
        hook.offload = lambda name=name, unload=unload: (order.append(name), unload())
    pipe.vae.decoder.register_forward_hook(lambda *_: order.append("decoder"))
    call(pipe)
    assert order[:3] == ["controlnet_high", "controlnet_low", "decoder"]


def test_group_offloaded_pipeline_gives_the_same(pipe):
    expected = call(pipe).images[0]
    pipe.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")
    assert np.array_equal(call(pipe).images[0], expected)


def test_sliced_autoencoder_gives_the_same(pipe):
    composites, masks = [picture(), picture(seed=1)], [object_mask()] * 2
    expected = call(pipe, composites, masks).images
    pipe.vae.enable_slicing()
    sliced = call(pipe, composites, masks).images
    assert all(np.abs(a.astype(int) - b).max() <= 1 for a, b in zip(sliced, expected, strict=True))
    pipe.vae.enable_tiling()
    assert call(pipe).images[0].shape == (64, 64, 3)


def test_callback_sees_each_step_and_may_change_the_latents(pipe):
    steps = []

    def watch(pipeline, step, timestep, tensors):
        steps.append((step, int(timestep), sorted(tensors)))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 3 else {}

    wanted = ["latents", "mask", "masked_image_latents", "prompt_embeds"]
    latents = latents_of(
        pipe, num_inference_steps=4, callback_on_step_end=watch, callback_on_step_end_tensor_inputs=wanted
    )
    assert [step for step, *_ in steps] == [0, 1, 2, 3] and pipe.num_timesteps == 4
    assert [time for _, time, _ in steps] == sorted((time for _, time, _ in steps), reverse=True)
    assert all(names == wanted for *_, names in steps)
    assert not latents.any()


def test_guidance_can_be_cut_off_by_diffusers_own_callback(pipe):
    sizes = []
    pipe.unet.register_forward_pre_hook(lambda _, arguments: sizes.append(len(arguments[0])))
    cutoff = SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1)
    for control_cfg in ("both", "cond"):
        call(pipe, num_inference_steps=4, callback_on_step_end=cutoff, control_cfg=control_cfg)
    assert sizes == [2, 2, 1, 1] * 2
    sizes.clear()
    pipe.register_to_config(average_mirrored=True)
    call(pipe, num_inference_steps=4, callback_on_step_end=cutoff)
    assert sizes == [2, 2, 1, 1] * 2


def test_interrupt_stops_and_returns_what_there_is(pipe):
    runs = count_calls(pipe.unet)

    def stop(pipeline, step, timestep, tensors):
        pipeline._interrupt = step == 1
        return {}

    composites = [picture(), picture((64, 200))]
    masks = [object_mask(composite.shape[:2]) for composite in composites]
    images = call(pipe, composites, masks, num_inference_steps=6, callback_on_step_end=stop).images
    assert len(runs) == 2
    pipe.register_to_config(average_mirrored=True)
    averaged = call(pipe, composites, masks, num_inference_steps=6, callback_on_step_end=stop).images
    assert all(np.array_equal(one, other) for one, other in zip(images, averaged, strict=True))
    assert not np.array_equal(images[0], composites[0]) and np.array_equal(images[1], composites[1])
    assert call(pipe).images[0].shape == (64, 64, 3)  # the next call is not interrupted


def test_captioner_writes_the_prompt_nobody_gave(tiny_sd2_components, tmp_path):
    processor, captioner = load_captioner(save_tiny_blip(tmp_path / "blip"))
    pipe = make_pipe({**tiny_sd2_components, "captioner": captioner, "captioner_processor": processor})
    output = call(pipe, [picture(), picture(seed=3)], [object_mask()] * 2, prompt=None)
    assert len(output.prompts) == 2 and output.prompts[0] != output.prompts[1]
    again = call(pipe, [picture(), picture(seed=3)], [object_mask()] * 2, prompt=output.prompts)
    assert all(np.array_equal(a, b) for a, b in zip(output.images, again.images, strict=True))
    runs = count_calls(captioner.vision_model)
    call(pipe)
    assert not runs
    pipe.save_pretrained(tmp_path / "saved")
    loaded = StableDiffusionHarmonizationPipeline.from_pretrained(tmp_path / "saved")
    loaded.set_progress_bar_config(disable=True)
    assert call(loaded, prompt=None).prompts == output.prompts[:1]


def test_without_prompt_and_captioner_the_prompt_is_empty_and_that_is_noted(pipe):
    with pytest.warns(InputNote, match="no captioner"):
        output = call(pipe, prompt=None)
    assert output.prompts == [""] and np.array_equal(output.images[0], call(pipe, prompt="").images[0])


@pytest.mark.parametrize("threshold", [-10.0, 10.0])
def test_what_the_safety_checker_objects_to_is_black(threshold, tiny_sd2_components):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        projection_dim=16, text_config=sizes, vision_config={**sizes, "image_size": 32, "patch_size": 16}
    )
    checker = StableDiffusionSafetyChecker(config).eval()
    for embeds in (checker.concept_embeds, checker.special_care_embeds):
        embeds.data.normal_(generator=seeded())
    checker.concept_embeds_weights.data.fill_(threshold)
    checker.special_care_embeds_weights.data.fill_(10.0)
    extractor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    parts = {**tiny_sd2_components, "safety_checker": checker, "feature_extractor": extractor}
    output = call(make_pipe(parts), feather=0)
    assert output.nsfw_content_detected == [threshold < 0]
    assert (output.images[0][object_mask() > 0] == 0).all() == (threshold < 0)


def test_output_types(pipe):
    images = {
        kind: call(pipe, output_type=kind).images for kind in ("pil", "array", "pt", "picture", "latent")
    }
    assert np.array_equal(np.asarray(images["pil"][0]), images["array"][0])
    assert images["pt"].shape == (1, 3, 64, 64) and images["latent"].shape == (1, 4, 8, 8)
    assert np.array_equal(images["picture"][0].pixels, images["array"][0])
    first, flags = call(pipe, return_dict=False)
    assert np.array_equal(first[0], images["array"][0]) and flags is None
    mixed = call(
        pipe, [picture(), picture((64, 200))], [object_mask(), object_mask((64, 200))], output_type="latent"
    )
    assert [latents.shape[0] for latents in mixed.images] == [4, 4] and isinstance(mixed.images, list)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"num_inference_steps": 2.5}, "num_inference_steps"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"guidance_scale": -1}, "guidance_scale"),
        ({"high_scale": "strong"}, "high_scale"),
        ({"low_scale": float("inf")}, "low_scale"),
        ({"high_window": 0.5}, "high_window"),
        ({"high_window": (0.5, 0.5)}, "high_window.*before"),
        ({"low_window": (0, 1.5)}, "low_window"),
        ({"control_cfg": "uncond"}, "control_cfg"),
        ({"init": "background"}, "init"),
        ({"strength": 0.5}, "init='composite'"),
        ({"init": "composite", "strength": 1.5}, "strength"),
        ({"init": "composite", "strength": 0.1}, "none of 2 steps"),
        ({"output_type": "jpg"}, "output_type"),
        ({"output_type": "latent", "return_layers": True}, "return_layers"),
        ({"detail": "keep"}, "detail"),
        ({"feather": -1}, "feather"),
        ({"context": -1}, "context"),
        ({"prompt": 3}, "prompt.*text"),
        ({"prompt": ["a", "b"]}, "2 texts for 1"),
        ({"negative_prompt": ["a", "b"]}, "negative_prompt: has 2 texts for 1"),
        ({"prompt_embeds": torch.zeros(1, 77, 32)}, "together"),
        ({"prompt": None, "prompt_embeds": torch.zeros(2, 77, 32)}, "prompt_embeds"),
        ({"negative_prompt_embeds": torch.zeros(77, 32)}, "negative_prompt_embeds"),
        ({"generator": 0}, "generator"),
        ({"generator": [seeded(), seeded()]}, "2 generators for 1"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, "noise"),
        ({"foreground": picture((10, 20))}, "foreground"),
        ({"background": picture((80, 64))}, "background.*80"),
        ({"background": [picture()] * 2}, "there are 2 for 1"),
        ({"composite": "no_such_file.png"}, "no_such_file"),
        ({"mask": np.zeros((10, 10), np.uint8)}, "10x10"),
        ({"mask": np.full((64, 64), 255, np.uint8)}, "no background"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
@pytest.mark.filterwarnings("ignore::harmony_diffusion.errors.InputNote")
def test_bad_input_is_refused_before_anything_runs(pipe, options, words):
    runs = count_calls(pipe.unet)
    options = {"composite": picture(), "mask": object_mask(), **options}
    with pytest.raises(InputError, match=words):
        call(pipe, **options)
    assert not runs


def test_values_that_are_no_numbers_are_refused(pipe):
    pipe.vae.decoder.conv_out.weight.data.fill_(float("inf"))
    with pytest.raises(InputError, match=r"vae\.to\(torch\.float32\)"):
        call(pipe)


def changed_config(module, **values):
    module.register_to_config(**values)
    return module


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: changed_config(c["unet"], in_channels=4), "4 input channels"),
        (lambda c: changed_config(c["unet"], cross_attention_dim=64), "width 64.*gives 32"),
        (lambda c: changed_config(c["scheduler"], prediction_type="sample"), "sample.*velocity"),
        (lambda c: changed_config(c["controlnet_low"], in_channels=9), "controlnet_low has 9"),
        (lambda c: changed_config(c["controlnet_high"], in_channels=3), "neither"),
        (lambda c: changed_config(c["controlnet_high"], block_out_channels=(1, 2)), "controlnet_high"),
    ],
)
def test_components_that_do_not_belong_together_are_refused(tiny_sd2_components, change, words):
    change(tiny_sd2_components)
    with pytest.raises(CheckpointError, match=words):
        make_pipe(tiny_sd2_components)


def test_unknown_control_input_is_refused(tiny_sd2_components):
    with pytest.raises(InputError, match="control_input"):
        make_pipe(tiny_sd2_components, control_input="pixels")


def test_call_reads_as_named_steps():
    import inspect

    assert len(inspect.getsource(StableDiffusionHarmonizationPipeline.__call__).splitlines()) <= 100


@pytest.mark.parametrize("name", ["unet", "controlnet_high", "controlnet_low"])
def test_networks_compile_without_a_graph_break(name, tiny_sd2_components):
    torch._dynamo.reset()
    expected = latents_of(make_pipe(tiny_sd2_components), guidance_scale=1.0)
    # "eager" traces as the other backends do, and raises at a break, but generates no code.
    compiled = torch.compile(tiny_sd2_components[name], fullgraph=True, backend="eager")
    pipe = make_pipe(tiny_sd2_components)
    setattr(pipe, name, compiled)
    torch.testing.assert_close(latents_of(pipe, guidance_scale=1.0), expected, atol=1e-4, rtol=1e-4)


def test_calls_take_the_arguments_they_leave_out_from_the_config(tiny_sd2_components, tmp_path):
    settings = {"num_inference_steps": 1, "guidance_scale": 1, "detail": "preserve", "high_window": [0, 0.5]}
    make_pipe(tiny_sd2_components, call_defaults=settings).save_pretrained(tmp_path)
    pipe = StableDiffusionHarmonizationPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.config["call_defaults"] == settings
    mask = object_mask()
    given = {"generator": seeded(), "output_type": "array"}

    def run(**options):
        return pipe(picture(), mask, "a cup", **given | {"generator": seeded()} | options).images[0]

    runs = count_calls(pipe.unet)
    own = run()
    assert len(runs) == 1
    named = run(detail="generated", num_inference_steps=2)
    assert len(runs) == 3 and not np.array_equal(own, named)
    pipe.register_to_config(call_defaults=None)
    np.testing.assert_array_equal(run(**settings), own)


@pytest.mark.parametrize("wrong", [{"steps": 1}, {"generator": None}, ["detail"], "detail=preserve"])
def test_defaults_of_unknown_arguments_are_refused(wrong, tiny_sd2_components):
    with pytest.raises(CheckpointError, match="call_defaults must be a dictionary with keys of num_inf"):
        make_pipe(tiny_sd2_components, call_defaults=wrong)
