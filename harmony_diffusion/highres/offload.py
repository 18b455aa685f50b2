"""Call models whose weights are offloaded between calls.

The hooks of accelerate and diffusers, as set by `enable_model_cpu_offload`, run around `forward` only.
White-box models are called by `predict_filters` and `apply_filters`: there the hooks must be run by hand.
"""

import itertools
from collections.abc import Callable
from typing import Any

import torch


def execution_device(model: Any) -> torch.device:
    """Return the device that a model computes on, which is not that of its weights while it is offloaded."""
    for module in _all_modules(model) if is_offloaded(model) else ():
        for hook in _hooks(module):
            for one in getattr(hook, "hooks", [hook]):
                device = getattr(one, "execution_device", None)
                device = (
                    getattr(getattr(one, "group", None), "onload_device", None) if device is None else device
                )
                if device is not None:
                    return torch.device(device)
    return model.device


def device_and_dtype(model: Any) -> tuple[torch.device, torch.dtype]:
    """Return the device that a model computes on, and the precision of its input.

    The properties of diffusers look for hooks in all modules; without any the first tensor has the answer.
    """
    if not is_offloaded(model):
        first = next(itertools.chain(model.parameters(), model.buffers()), None)
        if first is not None and first.is_floating_point():
            return first.device, first.dtype
    return execution_device(model), model.dtype


def is_offloaded(model: Any) -> bool:
    """Return True if a hook moves or casts the weights of a model, or of a part of it, around a call."""
    return any(
        "_hf_hook" in vars(module) or "_diffusers_hook" in vars(module) for module in _all_modules(model)
    )


def run_with_hooks(model: Any, method: Callable[..., Any], *arguments: Any) -> Any:
    """Call a method of a model as its `forward` would be called: between the hooks of the model.

    Args:
        model: Any model, offloaded or not.
        method: Method of it.
        arguments: Of the method.

    Returns:
        What the method returns.
    """
    hooks = _hooks(model)
    for hook in hooks:
        arguments, _ = hook.pre_forward(model, *arguments)
    result = method(*arguments)
    for hook in reversed(hooks):
        result = hook.post_forward(model, result)
    return result


def load_offloaded(model: Any) -> None:
    """Load the weights of an offloaded model before a part of it is called."""
    for hook in _hooks(model):
        hook.pre_forward(model)


def _all_modules(model: Any) -> list[Any]:
    """Return a model and all its parts, in a fifth of the time that `modules` takes."""
    found = [model]
    for module in found:
        found.extend(part for part in module._modules.values() if part is not None)
    return found


def _hooks(module: Any) -> list[Any]:
    """Return the hooks of a module alone: accelerate's, then those of diffusers."""
    accelerate, diffusers = vars(module).get("_hf_hook"), vars(module).get("_diffusers_hook")
    hooks = [] if accelerate is None else [accelerate]
    return hooks + ([] if diffusers is None else list(diffusers.hooks.values()))
