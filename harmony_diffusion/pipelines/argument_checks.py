"""Checks of arguments that all pipelines share; they import nothing of the diffusion method."""

import math
from collections.abc import Sequence
from numbers import Integral, Real
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


def is_integer(value: Any) -> bool:
    """Return True for integers of Python and NumPy, and False for truth values."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_count(name: str, value: Any) -> int:
    """Return a count of 1 or more as a Python integer.

    Raises:
        InputError: It is something else.
    """
    if not is_integer(value) or value < 1:
        raise InputError(name, f"must be an integer of 1 or more, got {value!r}")
    return int(value)


def check_number(name: str, value: Any, low: float, high: float) -> float:
    """Return a number of Python or NumPy, from `low` to `high`, as a Python number.

    Raises:
        InputError: It is something else.
    """
    if not isinstance(value, Real) or not math.isfinite(value) or not low <= float(value) <= high:
        bounds = (
            "" if low == -math.inf else f" of {low} or more" if high == math.inf else f" from {low} to {high}"
        )
        raise InputError(name, f"must be a number{bounds}, got {value!r}")
    return value if isinstance(value, int | float) else float(value)
