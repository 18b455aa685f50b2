"""Optimizers of the training scripts."""

import argparse
import functools
from collections.abc import Iterable
from typing import Any

import torch

from harmony_diffusion.errors import MissingDependencyError

_TORCH_OPTIMIZERS: dict[str, Any] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adamw_fused": functools.partial(torch.optim.AdamW, fused=True),
}


def build_optimizer(
    parameters: Iterable[torch.nn.Parameter] | list[dict[str, Any]], args: argparse.Namespace
) -> torch.optim.Optimizer:
    """Build the optimizer that `args.optimizer` names: adam, adamw, adamw_fused or adamw_8bit.

    Args:
        parameters: Parameters, or parameter groups. The entry `factor` of a group scales its learning rate.
        args: Arguments of the script.

    Raises:
        MissingDependencyError: bitsandbytes is required and not installed.
    """
    if args.optimizer == "adamw_8bit":
        try:
            from bitsandbytes.optim import AdamW8bit as kind
        except ImportError as error:
            raise MissingDependencyError(
                '8-bit Adam needs bitsandbytes. Run `pip install "harmony-diffusion[8bit]"`.'
            ) from error
    else:
        kind = _TORCH_OPTIMIZERS[args.optimizer]
    return kind(parameters, lr=args.learning_rate, weight_decay=args.adam_weight_decay, eps=args.adam_epsilon)
