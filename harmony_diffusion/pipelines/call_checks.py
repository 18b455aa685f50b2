"""Checks of a pipeline's call before any picture is read, and before any network runs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from inspect import signature
from numbers import Real
from typing import Any

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from torch import Tensor

from harmony_diffusion.diffusion.working_picture import Batch, WorkingPicture
from harmony_diffusion.errors import InputError, InputTypeError
from harmony_diffusion.numbers import check_integer, check_number
from harmony_diffusion.pipelines.argument_checks import check_output_type
from harmony_diffusion.pipelines.output import OUTPUT_TYPES

# Scale, and start and end of the steps in which a control is active.
ControlSetting = tuple[float, tuple[float, float]]

# Tensors that a callback may see and change.
CALLBACK_TENSORS = (
    "latents",
    "prompt_embeds",
    "negative_prompt_embeds",
    "mask",
    "masked_image_latents",
)


@dataclass(frozen=True)
class Texts:
    """Prompts of a call, and how they are encoded; see `StableDiffusionHarmonizationPipeline.__call__`."""

    prompt: str | list[str] | None
    negative_prompt: str | list[str] | None
    prompt_embeds: Tensor | None
    negative_prompt_embeds: Tensor | None
    clip_skip: int | None


def check_text(
    prompt: Any,
    negative_prompt: Any,
    prompt_embeds: Any,
    negative_prompt_embeds: Any,
    clip_skip: Any,
    pipe: Any,
) -> Texts:
    """Check that prompts are texts, are given once, and fit the networks.

    Raises:
        InputError: They do not.
    """
    width = pipe.unet.config["cross_attention_dim"]
    for name, text, embeds in (
        ("prompt", prompt, prompt_embeds),
        ("negative_prompt", negative_prompt, negative_prompt_embeds),
    ):
        if text is not None and embeds is not None:
            raise InputError(name, f"is given together with {name}_embeds", "Give one of them.")
        words = text if isinstance(text, list) else [text]
        if text is not None and not all(isinstance(word, str) for word in words):
            raise InputTypeError(name, f"must be a text or a list of texts, got {text!r}")
        if embeds is not None and (
            not isinstance(embeds, Tensor) or embeds.ndim != 3 or embeds.shape[2] != width
        ):
            got = tuple(embeds.shape) if isinstance(embeds, Tensor) else type(embeds).__name__
            raise InputError(
                f"{name}_embeds",
                f"must be a tensor (B, L, {width}), got {got}",
                "Make it with `encode_prompt` of this pipeline.",
            )
    check_equal_embeds(prompt_embeds, negative_prompt_embeds)
    if clip_skip is not None:
        layers = pipe.text_encoder.config.num_hidden_layers
        clip_skip = check_integer("clip_skip", clip_skip, 0, layers)
    return Texts(prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, clip_skip)


def check_equal_embeds(positive: Tensor | None, negative: Tensor | None) -> None:
    """Check that the embeddings of prompts and of negative prompts have one shape.

    Raises:
        InputError: They do not.
    """
    if positive is not None and negative is not None and positive.shape != negative.shape:
        raise InputError(
            "prompt_embeds, negative_prompt_embeds",
            f"have shapes {tuple(positive.shape)} and {tuple(negative.shape)}, expected equal ones",
            "Make both with one call of `encode_prompt`.",
        )


@dataclass(frozen=True)
class Sampling:
    """How to denoise; see `StableDiffusionHarmonizationPipeline.__call__`."""

    num_inference_steps: int
    guidance_scale: float
    init: str
    strength: float
    timesteps: list[int] | None
    sigmas: list[float] | None
    eta: float


def check_sampling(
    num_inference_steps: Any,
    guidance_scale: Any,
    init: Any,
    strength: Any,
    timesteps: Any,
    sigmas: Any,
    eta: Any,
    scheduler: Any,
) -> Sampling:
    """Check how often, how strongly and from where to denoise.

    Raises:
        InputError: A value out of its range, or that the scheduler does not take.
    """
    steps = check_integer("num_inference_steps", num_inference_steps, 1)
    if timesteps is not None and sigmas is not None:
        raise InputError("sigmas", "are given together with timesteps", "Give one of them.")
    for name, values in (("timesteps", timesteps), ("sigmas", sigmas)):
        if values is None:
            continue
        if name not in signature(scheduler.set_timesteps).parameters:
            raise InputError(
                name,
                f"are given, but {type(scheduler).__name__} makes its own",
                "Give `num_inference_steps` instead, or set `pipe.scheduler` to one that takes them.",
            )
        listed = values.tolist() if hasattr(values, "tolist") else values
        if not isinstance(listed, list | tuple) or not listed or not all(isinstance(v, Real) for v in listed):
            raise InputTypeError(name, f"must be a list of numbers, got {values!r}")
        steps = len(listed)
        timesteps, sigmas = ([int(v) for v in listed], sigmas) if name == "timesteps" else (timesteps, listed)
    strength = check_number("strength", strength, 0, 1)
    if init not in ("noise", "composite"):
        raise InputError("init", f"must be 'noise' or 'composite', got {init!r}")
    if init == "noise" and strength != 1:
        raise InputError(
            "strength",
            f"is {strength}, and init='noise' starts from noise alone",
            "Give init='composite' to keep a part of the composite.",
        )
    if strength > 0 and int(steps * strength) < 1:
        raise InputError("strength", f"{strength} leaves none of {steps} steps", "Give more of either.")
    scale = check_number("guidance_scale", guidance_scale, 0)
    return Sampling(steps, scale, init, strength, timesteps, sigmas, check_number("eta", eta, 0, 1))


@dataclass(frozen=True)
class Controls:
    """How the ControlNets act.

    Attributes:
        settings: Scale and step range by the name of the ControlNet.
        cfg: "both" or "cond": the halves of guidance in which they act.
    """

    settings: dict[str, ControlSetting]
    cfg: str


def check_controls(control_cfg: Any, **settings: tuple[Any, Any]) -> Controls:
    """Check scale and step range of each control.

    Raises:
        InputError: A value out of its range.
    """
    if control_cfg not in ("both", "cond"):
        raise InputError("control_cfg", f"must be 'both' or 'cond', got {control_cfg!r}")
    checked = {}
    for name, (scale, window) in settings.items():
        scale = check_number(f"{name}_scale", scale)
        if not isinstance(window, list | tuple) or len(window) != 2:
            raise InputError(f"{name}_window", f"must be a start and an end, got {window!r}")
        start, end = (check_number(f"{name}_window", share, 0, 1) for share in window)
        if start >= end:
            raise InputError(f"{name}_window", f"must start before it ends, got {tuple(window)}")
        checked[f"controlnet_{name}"] = (scale, (start, end))
    return Controls(checked, control_cfg)


def check_types_of_controlnets(pipe: Any, controls: Controls) -> None:
    """Check that the ControlNets that run have the number type of the U-Net.

    Under autocast they may differ.

    Raises:
        InputError: One has another type.
    """
    if torch.is_autocast_enabled(pipe.device.type):
        return
    for name, (scale, _) in controls.settings.items():
        controlnet = getattr(pipe, name)
        if controlnet is not None and scale != 0 and controlnet.dtype != pipe.unet.dtype:
            raise InputError(
                name,
                f"has weights in {controlnet.dtype}, the U-Net in {pipe.unet.dtype}",
                f"Convert it: `pipe.{name}.to(pipe.unet.dtype)`.",
            )


@dataclass(frozen=True)
class Result:
    """Kind of result, and the options of `WorkingRegion.paste_picture`."""

    output_type: str
    return_layers: bool
    pasting: dict[str, Any]


def check_result(
    output_type: Any,
    return_layers: bool,
    detail: Any,
    feather: Any,
    match_surroundings: bool,
    reference_mask: Any,
) -> Result:
    """Check the kind of result, and how it is put into the picture.

    Raises:
        InputError: An unknown kind, layers of latents, or a reference mask.
    """
    check_output_type(output_type, (*OUTPUT_TYPES, "latent"))
    if detail not in ("generated", "preserve"):
        raise InputError("detail", f"must be 'generated' or 'preserve', got {detail!r}")
    feather = check_number("feather", feather, 0)
    if return_layers and output_type == "latent":
        raise InputError(
            "return_layers",
            "needs images, and output_type is 'latent'",
            "Give another output_type, such as 'picture'.",
        )
    if reference_mask is not None:
        raise InputError(
            "reference_mask",
            "is not read by the diffusion pipeline, which sees all surroundings of the foreground",
            "Leave it out, and make the surroundings smaller with `context`, or hide a part by alpha 0. "
            "`HarmonizationPipeline` reads reference masks.",
        )
    pasting = {"detail": detail, "feather": feather, "match_surroundings": match_surroundings}
    return Result(output_type, return_layers, pasting)


class StepCallback:
    """The caller's function that runs after each step.

    Args:
        function: `function(pipe, step, timestep, tensors)`, which may return tensors to go on with; or None.
        tensor_inputs: Names of the tensors that it sees.

    Raises:
        InputError: There is no such tensor.
    """

    def __init__(self, function: Any, tensor_inputs: Sequence[str]) -> None:
        if isinstance(function, PipelineCallback | MultiPipelineCallbacks):
            tensor_inputs = function.tensor_inputs
        unknown = [name for name in tensor_inputs if name not in CALLBACK_TENSORS]
        if unknown:
            raise InputError(
                "callback_on_step_end_tensor_inputs",
                f"{', '.join(unknown)}: not one of {', '.join(CALLBACK_TENSORS)}",
            )
        self.function, self.tensor_inputs = function, list(tensor_inputs)

    def __call__(self, pipe: Any, step: int, timestep: Tensor, batch: Batch) -> Batch:
        """Call the function, and return the batch with the tensors that it returned."""
        if self.function is None:
            return batch
        tensors = {name: getattr(batch, name) for name in self.tensor_inputs}
        returned = self.function(pipe, step, timestep, dict(tensors)) or {}
        changed = {
            name: returned[name]
            for name in CALLBACK_TENSORS
            if name in returned and returned[name] is not tensors.get(name)
        }
        negative = changed.pop("negative_prompt_embeds", None)
        batch = replace(batch, **changed)
        if negative is not None and batch.negative_prompt_embeds is not None:
            positive = batch.prompt_embeds[len(batch.latents) :]
            batch = replace(batch, prompt_embeds=torch.cat([negative, positive]))
        return batch


def check_latents(
    latents: Any, works: Sequence[WorkingPicture], images_each: int, channels: int, factor: int
) -> list[Tensor] | None:
    """Check that there is noise of the right size for each image.

    Args:
        latents: Tensor `(N, C, h, w)`, or a list of N tensors `(C, h, w)` for working sizes that differ.
        works: Pictures of the call.
        images_each: Images of each.
        channels: Channels of the latents.
        factor: Pixels of the working size to a latent, in each direction.

    Raises:
        InputError: There is not.
    """
    if latents is None:
        return None
    listed = list(latents) if isinstance(latents, list | tuple | Tensor) else []
    count = len(works) * images_each
    if len(listed) != count or not all(isinstance(one, Tensor) for one in listed):
        raise InputError(
            "latents",
            f"must be a tensor (N, C, h, w) or a list of tensors (C, h, w) for {count} image(s), "
            f"got {tuple(latents.shape) if isinstance(latents, Tensor) else latents!r}",
        )
    for row, one in enumerate(listed):
        region = works[row // images_each].region
        if region is None:
            continue
        expected = (channels, region.working_height // factor, region.working_width // factor)
        if one.shape != expected:
            raise InputError(f"latents[{row}]", f"has shape {tuple(one.shape)}, expected {expected}")
    return listed


def one_for_each(text: str | list[str] | None, count: int, name: str) -> list[str] | None:
    """Return one text for each composite.

    Raises:
        InputError: There are more or fewer.
    """
    if text is None or isinstance(text, str):
        return text if text is None else [text] * count
    if len(text) != count:
        raise InputError(
            name, f"has {len(text)} texts for {count} composite(s)", "Give one for each, or one."
        )
    return text
