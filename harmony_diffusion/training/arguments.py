"""Flags that all training scripts share.

The defaults are those of the diffusion method; `train_discriminative.py` sets its own.
"""

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from harmony_diffusion.errors import HubError
from harmony_diffusion.training.precision import DTYPES
from harmony_diffusion.training.publishing import check_push

AddArgument = Callable[..., Any]


class HelpWithDefaults(argparse.RawDescriptionHelpFormatter):
    """Formatter of `--help` that keeps the lines of the description and adds defaults to the options."""

    def _get_help_string(self, action: argparse.Action) -> str:
        told = action.help or ""
        unset = (
            action.default is None or action.default is False or action.default in (argparse.SUPPRESS, [], {})
        )
        if unset or "default:" in told:
            return told
        return f"{told} (default: %(default)s)".lstrip()


def add_data_arguments(parser: argparse.ArgumentParser) -> AddArgument:
    """Add the flags that choose the data, and return the `add_argument` of their group."""
    add = parser.add_argument_group("data").add_argument
    add("--data", type=Path, required=True, help="data set of any layout that `harmony data check` reads")
    add("--split", default="train", help="split to train on")
    add("--filter", nargs="*", action="extend", default=[], metavar="COLUMN=VALUE", help="keep photographs with these values")  # fmt: skip  # noqa: E501
    add("--bad_samples", choices=("stop", "skip"), default="stop", help="stop at an unusable file, or skip it")  # fmt: skip  # noqa: E501
    add("--resolution", type=int, default=512, help="side of the square training crops")
    add("--dataloader_num_workers", type=int, default=0, help="processes that decode pictures")
    add("--validation_split", help="split to validate on (default: no validation)")
    add("--num_validation_images", type=int, default=4, help="images in a validation")
    return add


def add_optimizer_arguments(
    parser: argparse.ArgumentParser, schedules: Sequence[str], learning_rate: float
) -> AddArgument:
    """Add the flags that set the updates of the weights, and return the `add_argument` of their group."""
    add = parser.add_argument_group("optimizer").add_argument
    add("--train_batch_size", type=int, default=4, help="images in a micro-batch of one process")
    add("--gradient_accumulation_steps", type=int, default=1, help="micro-batches in a step")
    add("--gradient_checkpointing", action="store_true", help="save memory, compute activations twice")
    add("--num_train_epochs", type=int, default=1, help="passes over the data")
    add("--max_train_steps", type=int, help="replaces --num_train_epochs")
    add("--learning_rate", type=float, default=learning_rate, help="after the warm-up")
    add("--lr_scheduler", choices=schedules, default="constant", help="course of the learning rate")
    add("--lr_warmup_steps", type=int, default=500, help="counted in optimizer steps")
    add(
        "--adam_weight_decay",
        type=float,
        default=1e-2,
        help="with AdamW decoupled",
    )
    add("--adam_epsilon", type=float, default=1e-8, help="added to the denominator of Adam")
    add("--max_grad_norm", type=float, default=1.0, help="clip gradients to this norm; 0 = do not clip")
    add("--use_ema", action="store_true", help="validate and publish a moving average of the weights")
    add("--ema_decay", type=float, default=0.9999, help="largest decay of this average")
    return add


def add_run_arguments(
    parser: argparse.ArgumentParser, precisions: Sequence[str] = tuple(DTYPES)
) -> AddArgument:
    """Add the flags of output, logging and publication, and return the `add_argument` of their group."""
    add = parser.add_argument_group("run").add_argument
    add("--output", type=Path, required=True, help="folder of the run")
    add("--seed", type=int, default=0, help="of weights, order, augmentation and noise")
    add("--mixed_precision", choices=precisions, help="default: that of `accelerate launch`, or no")
    add("--checkpointing_steps", type=int, default=500, help="steps between two checkpoints")
    add("--checkpoints_total_limit", type=int, default=3, help="checkpoints to keep")
    add("--resume_from_checkpoint", default="latest", help="'latest', a name in OUTPUT, or a folder")
    add("--validation_steps", type=int, default=500, help="steps between two validations")
    add("--logging_steps", type=int, default=20, help="steps between two lines of the log")
    add("--report_to", choices=("none", "tensorboard"), default="none", help="where to write curves")
    add("--profile_steps", type=int, default=0, help="log the time shares of the first N steps")
    add("--half", action="store_true", help="publish the weights in half precision")
    add("--push_to_hub", action="store_true", help="upload OUTPUT/model")
    add("--hub_model_id", help="repository of the upload (default: the name of OUTPUT)")
    return add


def check_shared_arguments(
    parser: argparse.ArgumentParser, args: argparse.Namespace, precisions: Sequence[str] = tuple(DTYPES)
) -> None:
    """Fill in the defaults that depend on the environment or on other flags; exit if they are invalid."""
    args.mixed_precision = args.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if args.mixed_precision not in precisions:
        parser.error(f"--mixed_precision must be one of {', '.join(precisions)}, got {args.mixed_precision}")
    if args.push_to_hub:
        try:
            check_push()
        except HubError as error:
            parser.error(f"--push_to_hub: {error}")
    args.hub_model_id = args.hub_model_id or args.output.resolve().name
