"""Average the weights of models with the same architecture and a common ancestor.

    python train/make_average.py --model default 0.3 --model outputs/a/model 0.35 \
        --model outputs/b/model 0.35 --output outputs/averaged

Models that were trained from the same weights on different data can be averaged (Wortsman et al., "Robust
fine-tuning of zero-shot models", CVPR 2022). The average keeps much of what each of them does well: here, a
model that was trained on relocated objects regains part of what its ancestor does in place.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import torch

from harmony_diffusion.errors import HarmonyError, InputError, OutputError
from harmony_diffusion.images.output_files import check_new_folder
from harmony_diffusion.models import load_model
from harmony_diffusion.models.contract import HarmonyModel
from harmony_diffusion.numbers import check_number
from harmony_diffusion.training.model_card import drop_local_paths


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model",
        nargs=2,
        action="append",
        required=True,
        metavar=("MODEL", "SHARE"),
        help="name or saved folder, and its share; shares are divided by their sum",
    )
    parser.add_argument("--half", action="store_true", help="store as float16")
    parser.add_argument("--output", type=Path, required=True, help="new folder for the averaged model")
    return parser.parse_args()


def average(models: list[HarmonyModel], shares: list[float]) -> HarmonyModel:
    """Return the first model with the weighted mean of all weights.

    Args:
        models: Models of one class with equal configurations.
        shares: Share of each model, above 0. They are divided by their sum.

    Raises:
        InputError: The models differ in class or configuration.
    """
    first = models[0]

    def described(model: HarmonyModel) -> dict[str, object]:
        return {key: value for key, value in model.config.items() if not key.startswith("_")}

    for model in models[1:]:
        if type(model) is not type(first) or described(model) != described(first):
            raise InputError("--model", "must be models of one class with equal configurations")
    total = sum(shares)
    states = [model.state_dict() for model in models]
    with torch.no_grad():
        for name, value in first.state_dict().items():
            if value.is_floating_point():
                parts = (
                    share / total * state[name].double() for share, state in zip(shares, states, strict=True)
                )
                value.copy_(torch.stack(list(parts)).sum(0))
    return first


def read_share(text: str) -> float:
    try:
        share = check_number("--model", float(text), 0, 1e6)
    except ValueError:
        share = 0.0
    if share == 0:
        raise InputError("--model", f"expects a share above 0 after each model, got {text!r}")
    return share


def save(model: HarmonyModel, folder: Path) -> None:
    """Save a model into a new folder, whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
        model.save_pretrained(Path(unfinished) / "model")
        drop_local_paths(Path(unfinished))
        os.rename(Path(unfinished) / "model", folder)


def main() -> int:
    args = parse_args()
    try:
        check_new_folder(args.output)
        if args.output.exists():
            raise OutputError(args.output, "exists", "Choose another `--output`.")
        shares = [read_share(share) for _, share in args.model]
        averaged = average([load_model(name).float() for name, _ in args.model], shares)
        save(averaged.half() if args.half else averaged, args.output)
    except HarmonyError as error:
        print(f"make_average: {error}", file=sys.stderr)
        return 2
    print(args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
