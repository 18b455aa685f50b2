"""Numbers of the command line, checked when it is read."""

import argparse
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from harmony_diffusion.errors import InputError
from harmony_diffusion.numbers import check_integer, check_number

_OPTION = re.compile(r"--[a-z][a-z-]*")
_NEGATIVE = re.compile(r"-[0-9.]")


def number(low: float = -math.inf, high: float = math.inf) -> Callable[[str], float]:
    """Return an argparse type: a finite number within bounds."""
    return lambda text: _convert(text, float, lambda value: check_number("it", value, low, high))


def integer(low: float = -math.inf, high: float = math.inf) -> Callable[[str], int]:
    """Return an argparse type: an integer within bounds."""
    return lambda text: _convert(text, int, lambda value: check_integer("it", value, low, high))


def position(text: str) -> tuple[int, int]:
    """Read X,Y in pixels; both may be negative."""
    try:
        x, y = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected X,Y in pixels, got {text[:40]!r}") from None
    return x, y


def join_negative(arguments: Sequence[str]) -> list[str]:
    """Join an option and its negative value by "=", as argparse takes `-5,3` for an option.

    Example:
        >>> join_negative(["--at", "-5,3", "--strength", "0.5"])
        ['--at=-5,3', '--strength', '0.5']
    """
    joined: list[str] = []
    for argument in arguments:
        if joined and _OPTION.fullmatch(joined[-1]) and _NEGATIVE.match(argument) and "--" not in joined:
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _convert(text: str, kind: type, check: Callable[[Any], Any]) -> Any:
    try:
        return check(kind(text))
    except InputError as error:
        raise argparse.ArgumentTypeError(error.reason) from None
    except ValueError:
        wanted = "an integer" if kind is int else "a number"
        raise argparse.ArgumentTypeError(f"must be {wanted}, got {text[:40]!r}") from None
