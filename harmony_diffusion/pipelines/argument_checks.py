"""Checks of arguments that all pipelines share; they import nothing of the diffusion method."""

from collections.abc import Sequence
from typing import Any

import torch

from harmony_diffusion.errors import InputError, InputTypeError
from harmony_diffusion.pipelines.output import OUTPUT_TYPES


def check_output_type(output_type: Any, known: Sequence[str] = OUTPUT_TYPES) -> None:
    """Check that an output type is known.

    Raises:
        InputError: It is not.
    """
    if output_type not in known:
        raise InputError("output_type", f"must be one of {', '.join(known)}, got {output_type!r}")


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
