"""`harmony models`: list the methods."""

import argparse
import json
from typing import Any

from harmony_diffusion.cli.terminal import show


def add_command(commands: Any) -> None:
    """Describe `harmony models`."""
    models = commands.add_parser("models", help="list the methods", description="List the methods.")
    models.add_argument("--json", action="store_true", help="print JSON")
    models.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)
    models.set_defaults(run=run_models)


def run_models(args: argparse.Namespace) -> None:
    """Print one line a registry model: name, kind, parameters, licence, weights."""
    import torch

    from harmony_diffusion.models import DEFAULT_MODEL, MODELS, create_model, has_weights

    rows: list[dict[str, Any]] = []
    for name in MODELS:
        with torch.device("meta"):
            model = create_model(name)
        parameters = model.num_parameters()
        rows.append(
            {
                "name": name,
                "kind": "classical" if not parameters else "white-box" if model.predicts_filters else "dense",
                "parameters": parameters,
                "license": model.origin.weights_license or model.origin.code_license or "-",
                "weights": _weights_of(parameters, has_weights(name)),
                "trained_on": _photographs_of(name) if has_weights(name) else None,
                "default": name == DEFAULT_MODEL,
            }
        )
    if args.json:
        show(json.dumps(rows, indent=2))
        return
    show(
        f"{'name':20} {'kind':10} {'parameters':>11}  {'weights':15} licence of the official code or weights"
    )
    for row in rows:
        name = f"{row['name']}{' *' if row['default'] else ''}"
        show(f"{name:20} {row['kind']:10} {row['parameters']:11,}  {row['weights']:15} {row['license']}")
    show("* default")
    for row in rows:
        if row["trained_on"]:
            counts = ", ".join(f"{count:,} {terms}" for terms, count in row["trained_on"].items())
            show(
                f"The weights of {row['name']} were trained here on {sum(row['trained_on'].values()):,} "
                f"photographs by the terms of their sources: {counts}. Whether weights inherit such terms is "
                "not settled: decide before you sell pictures."
            )


def _photographs_of(name: str) -> dict[str, int] | None:
    """Return how many photographs of each kind of terms the weights were trained on, by their card."""
    from harmony_diffusion.hub.card import read_header
    from harmony_diffusion.models import WEIGHTS

    return read_header(WEIGHTS / name / "README.md").get("training_photographs")


def _weights_of(parameters: int, shipped: bool) -> str:
    if not parameters:
        return "none needed"
    return "included" if shipped else "bring your own"
