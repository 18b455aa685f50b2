"""Values that a pipeline has for the arguments its call leaves out, saved with its weights.

A pipeline that was trained for one step without guidance gives a wrong result with the defaults of the
library, which are those of Stable Diffusion.
"""

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from harmony_diffusion.errors import CheckpointError, InputError

CALL_SETTINGS = (
    "num_inference_steps",
    "guidance_scale",
    "high_scale",
    "low_scale",
    "high_window",
    "low_window",
    "control_cfg",
    "init",
    "strength",
    "context",
    "shadow",
    "detail",
    "feather",
    "match_surroundings",
)
F = TypeVar("F", bound=Callable[..., Any])


def check_call_defaults(defaults: Any) -> dict[str, Any] | None:
    """Return a copy of the defaults of a call, a dictionary with keys of `CALL_SETTINGS`; None for none.

    Raises:
        CheckpointError: It is none. The call checks the values.
    """
    if defaults is None:
        return None
    if not isinstance(defaults, dict) or set(defaults) - {*CALL_SETTINGS}:
        raise CheckpointError(
            f"call_defaults must be a dictionary with keys of {', '.join(CALL_SETTINGS)}; got {defaults!r}."
        )
    return dict(defaults) or None


def with_call_defaults(call: F) -> F:
    """Let a call take the arguments it was not given from `call_defaults` of the pipeline's config."""

    @functools.wraps(call)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        return call(self, *args, **{**(self.config["call_defaults"] or {}), **kwargs})

    return wrapped  # type: ignore[return-value]


def parse_call(texts: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    """Parse `NAME=VALUE`: numbers, true, false and null as in JSON, all other values as text.

    Args:
        texts: Values of the option `--call`.
        names: Arguments that may be given.

    Raises:
        InputError: A text has another form or another name.
    """
    options: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or name not in names:
            raise InputError("--call", f"expected NAME=VALUE with one of {', '.join(names)}, got {text!r}")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options
