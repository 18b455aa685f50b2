"""Arguments of white-box filters as a small JSON file that people read and edit.

{"model": "Harmonizer", "filters": {"temperature": 0.21, "brightness": -0.07, ...}}
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from harmony_diffusion.errors import InputError
from harmony_diffusion.json_text import parse_json
from harmony_diffusion.numbers import check_number

if TYPE_CHECKING:
    from torch import Tensor

    from harmony_diffusion.models.contract import HarmonyModel


def check_named_filters(model: "HarmonyModel") -> None:
    """Refuse models whose filters have no names.

    Raises:
        InputError: The model predicts pixels or maps.
    """
    if not model.filter_names:
        raise InputError(
            "--filters",
            f"needs a model of named filters; {type(model).__name__} has none",
            "Use `--model harmonizer_lite`, or leave it out.",
        )


def filters_to_json(model: "HarmonyModel", filters: "Tensor") -> bytes:
    """Return the file of the filters `(1, F)` of one picture."""
    values = filters[0].clamp(-1, 1).tolist()
    # Nine digits tell apart all numbers of 32 bits that are not tiny.
    named = {name: round(value, 9) for name, value in zip(model.filter_names, values, strict=True)}
    return json.dumps({"model": type(model).__name__, "filters": named}, indent=1).encode() + b"\n"


def filters_from_json(path: Path, model: "HarmonyModel") -> "Tensor":
    """Read the filters `(1, F)` of one picture.

    Raises:
        InputError: The file is not JSON, is of another model, lacks a filter, has one too many, or has a
            value outside [-1, 1].
    """
    import torch

    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(path, f"is not a JSON file of filters: {error}") from None
    given = content.get("filters") if isinstance(content, dict) else None
    if not isinstance(given, dict) or set(given) != set(model.filter_names):
        names = ", ".join(model.filter_names)
        raise InputError(path, f'must hold {{"filters": {{…}}}} with exactly the names {names}')
    if content.get("model", type(model).__name__) != type(model).__name__:
        raise InputError(path, f"is of {content['model']}, and the model is {type(model).__name__}")
    values = [check_number(f"{path}: {name}", given[name], -1, 1) for name in model.filter_names]
    return torch.tensor([values])
