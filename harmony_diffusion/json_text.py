"""JSON from files that anybody may have written."""

import json
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """Return what a JSON text holds.

    Raises:
        ValueError: It is no JSON, no UTF-8, or nested so deeply that Python cannot read it.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError(str(error)) from error
