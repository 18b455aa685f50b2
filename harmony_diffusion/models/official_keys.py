"""Rename the keys of official checkpoints; unknown keys are errors."""

import re
from collections.abc import Iterable

from torch import Tensor

from harmony_diffusion.errors import CheckpointError


def rename_keys(
    state_dict: dict[str, Tensor], renames: Iterable[tuple[str, str | None]], model: str
) -> dict[str, Tensor]:
    r"""Rename every key by the first pattern that matches the whole of it.

    Args:
        state_dict: Official name -> tensor.
        renames: Pairs of a regular expression and its replacement (`\1` for groups), or None to drop the key.
        model: Name of the model, for the error.

    Returns:
        Our name -> tensor.

    Raises:
        CheckpointError: A key matches no pattern, or two keys get the same name.

    Example:
        >>> import torch
        >>> list(rename_keys({"net.conv.weight": torch.ones(1)}, [(r"net\.(.*)", r"\1")], "demo"))
        ['conv.weight']
    """
    patterns = [(re.compile(pattern), name) for pattern, name in renames]
    renamed: dict[str, Tensor] = {}
    unknown = []
    for key, tensor in state_dict.items():
        found = next(((match, name) for regex, name in patterns if (match := regex.fullmatch(key))), None)
        if found is None:
            unknown.append(key)
        elif found[1] is not None:
            ours = found[0].expand(found[1])
            if ours in renamed:
                raise CheckpointError(f"Two keys of this {model} checkpoint map to {ours!r}; one is {key!r}.")
            renamed[ours] = tensor
    if unknown:
        listed = ", ".join(unknown[:5]) + (", …" if len(unknown) > 5 else "")
        raise CheckpointError(
            f"{len(unknown)} keys do not belong to an official {model} checkpoint: {listed}."
        )
    return renamed


def own_keys(state_dict: dict[str, Tensor], known: Iterable[str], model: str) -> dict[str, Tensor]:
    """Remove the prefixes that `DataParallel`, `torch.compile` and trainers add to the keys of our models.

    Args:
        state_dict: Name -> tensor, with any of the prefixes `module.`, `_orig_mod.`, `model.`, `net.`.
        known: All keys of the model; numbers of layers and blocks may differ from the checkpoint's.
        model: Name of the model, for the error.

    Returns:
        Our name -> tensor.

    Raises:
        CheckpointError: A key is not one of the model's, or two keys get the same name.

    Example:
        >>> import torch
        >>> list(own_keys({"module.blocks.7.bias": torch.ones(1)}, ["blocks.0.bias"], "demo"))
        ['blocks.7.bias']
    """
    prefix = r"(?:(?:module|_orig_mod|model|net)\.)*"
    names = sorted({re.sub(r"\d+", "0", key) for key in known})
    return rename_keys(
        state_dict, [(f"{prefix}({re.escape(name).replace('0', r'[0-9]+')})", r"\1") for name in names], model
    )
