"""Start and end of a training script, with one process or several."""

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator

from harmony_diffusion.errors import HarmonyError, InputError
from harmony_diffusion.training.sharding import make_sharding_accelerator, sharding_is_on


def run_script(
    train: Callable[[argparse.Namespace, Accelerator], None],
    args: argparse.Namespace,
    *,
    can_shard: bool = True,
) -> None:
    """Run the `train` function of a script; exit with one line on an error of this library.

    Args:
        train: Function of the script.
        args: Arguments of the script.
        can_shard: The script supports FSDP and DeepSpeed.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        accelerator = make_accelerator(args, can_shard=can_shard)
        train(args, accelerator)
    except HarmonyError as error:
        sys.exit(f"{Path(sys.argv[0]).stem}: {error}")
    # No process may leave while another one still publishes. Objects that use the process group must be
    # released before the group, or gloo may wait forever.
    accelerator.free_memory()
    accelerator.wait_for_everyone()
    accelerator.end_training()


def make_accelerator(args: argparse.Namespace, *, can_shard: bool = True) -> Accelerator:
    """Make the accelerator of a run, from the settings of `accelerate launch` and the arguments.

    Raises:
        InputError: The settings require shards, and the script or another setting does not support them.
    """
    if sharding_is_on():
        if not can_shard:
            raise InputError(
                "distributed_type",
                "FSDP and DeepSpeed work with train_controlnet.py and train_inpainting.py only",
                "Launch without --config_file.",
            )
        return make_sharding_accelerator(args)
    return Accelerator(
        mixed_precision=args.mixed_precision, gradient_accumulation_steps=args.gradient_accumulation_steps
    )
