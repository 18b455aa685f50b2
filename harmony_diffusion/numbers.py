"""Numbers that callers give as arguments: of Python or of NumPy, finite, and within bounds."""

import math
from numbers import Integral, Real

from harmony_diffusion.errors import InputError

_MOST_SHOWN = 40  # characters of a value in a message


def check_number(name: str, value: object, low: float = -math.inf, high: float = math.inf) -> float:
    """Return an argument as a finite `float` within bounds.

    Args:
        name: Of the argument, for the message.
        value: Number of Python or NumPy; no `bool`.
        low: Smallest value accepted.
        high: Largest value accepted.

    Raises:
        InputError: It is no such number.

    Example:
        >>> check_number("strength", 1, 0, 1)
        1.0
    """
    try:
        # Only the conversion refuses an integer that no float holds.
        if _is_number(value, Real) and low <= value <= high and math.isfinite(number := float(value)):  # type: ignore[operator, arg-type]
            return number
    except OverflowError:
        pass
    raise InputError(name, f"must be a number{_bounds(low, high)}, got {_shown(value)}")


def check_integer(name: str, value: object, low: float = -math.inf, high: float = math.inf) -> int:
    """Return an argument as an `int` within bounds.

    Args:
        name: Of the argument, for the message.
        value: Integer of Python or NumPy; no `bool`.
        low: Smallest value accepted.
        high: Largest value accepted.

    Raises:
        InputError: It is no such integer.

    Example:
        >>> check_integer("frame", 3, 0)
        3
    """
    if _is_number(value, Integral) and low <= value <= high:  # type: ignore[operator]
        return int(value)  # type: ignore[call-overload, no-any-return]
    raise InputError(name, f"must be an integer{_bounds(low, high)}, got {_shown(value)}")


def _is_number(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _bounds(low: float, high: float) -> str:
    if high == math.inf:
        return "" if low == -math.inf else f" of {low} or more"
    return f" of {high} or less" if low == -math.inf else f" from {low} to {high}"


def _shown(value: object) -> str:
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # Python does not print integers of more than 4300 digits
        return "an enormous integer"
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"
