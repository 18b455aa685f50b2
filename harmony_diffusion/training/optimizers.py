"""Optimizers of the training scripts."""

import argparse
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from harmony_diffusion.errors import InputError, MissingDependencyError
from harmony_diffusion.training.muon import MuonWithAdamW

_OPTIMIZERS: dict[str, Any] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adamw_fused": functools.partial(torch.optim.AdamW, fused=True),
    "muon": MuonWithAdamW,
}


def build_optimizer(
    parameters: Iterable[torch.nn.Parameter] | list[dict[str, Any]], args: argparse.Namespace
) -> torch.optim.Optimizer:
    """Build the optimizer that `args.optimizer` names: adam, adamw, adamw_fused, adamw_8bit or muon.

    Args:
        parameters: Parameters, or parameter groups. The entry `factor` of a group scales its learning rate.
            For muon groups, see `MuonWithAdamW`.
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
        kind = _OPTIMIZERS[args.optimizer]
    return kind(parameters, lr=args.learning_rate, weight_decay=args.adam_weight_decay, eps=args.adam_epsilon)


def parameter_groups(
    model: nn.Module,
    *,
    backbone_factor: float = 1.0,
    muon_layers: Sequence[str] = (),
    muon_factor: float = 1.0,
) -> list[dict[str, Any]]:
    """Group the trained parameters of a model by their learning rate and optimizer.

    Args:
        model: Model. Parameters that need no gradient are left out.
        backbone_factor: Factor of the learning rate of a pretrained encoder, the submodule `backbone`.
        muon_layers: Prefixes of the names of linear layers. Their matrices get the entry `matrices`.
        muon_factor: Factor of the learning rate of these matrices.

    Raises:
        InputError: No trained linear layer has one of the prefixes, or nothing else is trained.
    """
    matrices = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(tuple(muon_layers))
    }
    groups: list[dict[str, Any]] = [
        {
            "params": [],
            "factor": (backbone_factor if in_backbone else 1.0) * (muon_factor if is_matrix else 1.0),
            "matrices": is_matrix,
        }
        for is_matrix in (False, True)
        for in_backbone in (False, True)
    ]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[2 * (name in matrices) + name.startswith("backbone.")]["params"].append(parameter)
    groups = [group for group in groups if group["params"]]
    if muon_layers and {group["matrices"] for group in groups} != {False, True}:
        raise InputError("muon_layers", "must name some trained linear layers, and not all that is trained")
    return groups
