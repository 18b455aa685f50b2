"""Publication of trained weights: the folder `OUTPUT/model`, and its upload to the Hub."""

import argparse
from collections.abc import Callable
from pathlib import Path

from harmony_diffusion.training.checkpoints import write_folder_atomically


def publish(args: argparse.Namespace, write: Callable[[Path], None]) -> None:
    """Write `OUTPUT/model` completely or not at all, and upload it with `--push_to_hub`.

    Args:
        args: Arguments of the script.
        write: Function that fills a folder with weights and card.
    """
    folder = args.output / "model"
    write_folder_atomically(folder, write)
    if args.push_to_hub:
        from huggingface_hub import HfApi

        hub = HfApi()
        repository = hub.create_repo(args.hub_model_id, exist_ok=True).repo_id
        hub.upload_folder(repo_id=repository, folder_path=folder)
