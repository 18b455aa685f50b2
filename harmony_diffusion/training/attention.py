"""Attention by xformers, switched on by diffusers' own method."""

from collections.abc import Iterable
from typing import Any

import torch

from harmony_diffusion.errors import InputError, MissingDependencyError

FLAG = "--enable_xformers_memory_efficient_attention"


def enable_xformers(models: Iterable[Any]) -> None:
    """Switch attention of U-Nets and ControlNets to xformers.

    Args:
        models: Models of diffusers.

    Raises:
        MissingDependencyError: xformers is not installed, or does not fit the installed PyTorch.
        InputError: There is no CUDA device.
    """
    try:
        import xformers.ops  # noqa: F401
    except (ImportError, OSError) as error:
        raise MissingDependencyError(
            f'{FLAG} needs xformers. Run `pip install "harmony-diffusion[xformers]"`, or leave the flag out: '
            "PyTorch's own attention is the default and usually as fast."
        ) from error
    if not torch.cuda.is_available():
        raise InputError(
            FLAG, "needs a CUDA device", "Leave it out: PyTorch's own attention works everywhere."
        )
    for model in models:
        model.enable_xformers_memory_efficient_attention()
