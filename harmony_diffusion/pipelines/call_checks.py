"""What can be refused in a call of the diffusion pipeline before any picture is read."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from torch import Tensor

from harmony_diffusion.errors import InputError, InputTypeError
from harmony_diffusion.numbers import check_integer, check_number
from harmony_diffusion.pipelines.harmonization import OUTPUT_TYPES

# Scale, and start and end of the steps in which it counts.
ControlSetting = tuple[float, tuple[float, float]]

# What a callback may see and change.
CALLBACK_TENSORS = ("latents", "prompt_embeds", "mask", "masked_image_latents")


def check_text(
    prompt: Any, negative_prompt: Any, prompt_embeds: Tensor | None, negative_prompt_embeds: Tensor | None
) -> None:
    """Check that texts are texts, and given once.

    Raises:
        InputError: They are not.
    """
    for name, text, embeds in (
        ("prompt", prompt, prompt_embeds),
        ("negative_prompt", negative_prompt, negative_prompt_embeds),
    ):
        if text is not None and embeds is not None:
            raise InputError(name, f"is given together with {name}_embeds", "Give one of them.")
        words = text if isinstance(text, list) else [text]
        if text is not None and not all(isinstance(word, str) for word in words):
            raise InputTypeError(name, f"must be a text or a list of texts, got {text!r}")


def check_sampling(
    num_inference_steps: Any, guidance_scale: Any, init: Any, strength: Any, num_images_per_prompt: Any
) -> None:
    """Check how often, how strongly and from where to denoise.

    Raises:
        InputError: A value out of its range.
    """
    for name, count in (
        ("num_inference_steps", num_inference_steps),
        ("num_images_per_prompt", num_images_per_prompt),
    ):
        check_integer(name, count, 1)
    check_number("guidance_scale", guidance_scale, 0)
    check_number("strength", strength, 0, 1)
    if init not in ("noise", "composite"):
        raise InputError("init", f"must be 'noise' or 'composite', got {init!r}")
    if init == "noise" and strength != 1:
        raise InputError(
            "strength",
            f"is {strength}, but what starts from noise starts from noise alone",
            "Give init='composite' to keep a part of the composite.",
        )
    if strength > 0 and int(num_inference_steps * strength) < 1:
        raise InputError(
            "strength", f"{strength} leaves none of {num_inference_steps} steps", "Give more of either."
        )


def check_controls(control_cfg: Any, **settings: tuple[Any, Any]) -> dict[str, ControlSetting]:
    """Check scale and window of each control, and return them by the name of its ControlNet.

    Raises:
        InputError: A value out of its range.
    """
    if control_cfg not in ("both", "cond"):
        raise InputError("control_cfg", f"must be 'both' or 'cond', got {control_cfg!r}")
    checked = {}
    for name, (scale, window) in settings.items():
        check_number(f"{name}_scale", scale)
        if not isinstance(window, list | tuple) or len(window) != 2:
            raise InputError(f"{name}_window", f"must be a start and an end, got {window!r}")
        for share in window:
            check_number(f"{name}_window", share, 0, 1)
        if window[0] >= window[1]:
            raise InputError(f"{name}_window", f"must start before it ends, got {tuple(window)}")
        checked[f"controlnet_{name}"] = (float(scale), (float(window[0]), float(window[1])))
    return checked


def check_result(output_type: Any, detail: Any, feather: Any, return_layers: bool) -> None:
    """Check what is asked for, and how it is put into the picture.

    Raises:
        InputError: An unknown kind, or layers of latents.
    """
    kinds = (*OUTPUT_TYPES, "latent")
    if output_type not in kinds:
        raise InputError("output_type", f"must be one of {', '.join(kinds)}, got {output_type!r}")
    if detail not in ("generated", "preserve"):
        raise InputError("detail", f"must be 'generated' or 'preserve', got {detail!r}")
    check_number("feather", feather, 0)
    if return_layers and output_type == "latent":
        raise InputError("return_layers", "is of pictures, and output_type is 'latent'")


class StepCallback:
    """What the caller wants done after each step.

    Args:
        function: `function(pipe, step, timestep, tensors)`, which may return tensors to go on with; None =
            nothing.
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

    def __call__(self, pipe: Any, step: int, timestep: Tensor, holder: Any) -> None:
        """Show tensors, attributes of `holder`, and take those that come back."""
        if self.function is None:
            return
        tensors = {name: getattr(holder, name) for name in self.tensor_inputs}
        for name, tensor in (self.function(pipe, step, timestep, tensors) or {}).items():
            if hasattr(holder, name):
                setattr(holder, name, tensor)


def check_generators(generator: Any, count: int) -> list[torch.Generator] | torch.Generator | None:
    """Check that there is one generator for all images or one for each.

    Raises:
        InputError: There is not.
    """
    if generator is None or isinstance(generator, torch.Generator):
        return generator
    if not isinstance(generator, list | tuple) or not all(isinstance(g, torch.Generator) for g in generator):
        raise InputTypeError("generator", f"must be a torch.Generator or a list of them, got {generator!r}")
    if len(generator) != count:
        raise InputError("generator", f"has {len(generator)} generators for {count} images")
    return list(generator)


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
