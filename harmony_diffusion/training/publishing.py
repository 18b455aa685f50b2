"""Publication of trained weights: the folder `OUTPUT/model`, and its upload to the Hub."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from harmony_diffusion import __version__
from harmony_diffusion.errors import HubError, InputError
from harmony_diffusion.images.output_folders import write_folder_atomically

_PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
_STATUS = {
    401: ("the Hub does not accept the token", "Log in with `hf auth login`, or set HF_TOKEN."),
    403: ("the token gives no right to write there", "Make a token with the right to write."),
    404: ("the Hub knows no such repository or revision", "Check the names."),
    429: ("the Hub refuses more requests for now", "Try again in some minutes."),
}


def publish(args: argparse.Namespace, write: Callable[[Path], None]) -> None:
    """Write `OUTPUT/model` completely or not at all, and upload it with `--push_to_hub`.

    Args:
        args: Arguments of the script.
        write: Function that fills a folder with weights and card.
    """
    folder = args.output / "model"
    write_folder_atomically(folder, write)
    if args.push_to_hub:
        push_to_hub(folder, args.hub_model_id)


def check_push() -> None:
    """Check, before any work is done, that an upload is possible.

    Raises:
        HubError: HF_HUB_OFFLINE is set, or there is no token.
    """
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise HubError("nothing can be uploaded while HF_HUB_OFFLINE is set", "Unset it.")
    if not get_token():
        raise HubError("there is no token for the Hub", "Log in with `hf auth login`, or set HF_TOKEN.")


def push_to_hub(
    folder: str | os.PathLike[str],
    repository: str,
    *,
    private: bool = True,
    revision: str | None = None,
    create_pr: bool = False,
) -> str:
    """Upload a folder in one commit; the token is that of `hf auth login` or of HF_TOKEN.

    Args:
        folder: Folder to publish, such as `save_for_hub` writes.
        repository: `owner/name`, or the name alone for the owner of the token. It is made if it is missing.
        private: A new repository is private; an existing one stays as it is.
        revision: Branch, made if it is missing; by default `main`.
        create_pr: Open a pull request.

    Returns:
        Address of the commit, or of the pull request.

    Raises:
        InputError: The folder does not exist, or holds weights that are no safetensors.
        HubError: The Hub cannot be reached, or refuses the upload; says why.
    """
    check_push()
    source = Path(folder)
    files = [path for path in source.rglob("*") if path.is_file()]
    if not files:
        raise InputError(source, "is no folder with files", "Give one that `save_for_hub` wrote.")
    if pickled := [path.name for path in files if path.suffix.lower() in _PICKLES]:
        raise InputError(source, f"holds {pickled[0]}", "Save the weights as safetensors.")

    from huggingface_hub import HfApi

    hub = HfApi(library_name="harmony-diffusion", library_version=__version__)
    try:
        target = hub.create_repo(repository, private=private, exist_ok=True).repo_id
        if revision is not None:
            hub.create_branch(target, branch=revision, exist_ok=True)
        commit = hub.upload_folder(
            repo_id=target,
            folder_path=source,
            revision=revision,
            create_pr=create_pr,
            commit_message=f"Upload with harmony-diffusion {__version__}",
        )
    except Exception as error:  # httpx, huggingface_hub and its threads raise a dozen types
        raise _hub_error(repository, error) from error
    return str(commit.pr_url or commit.commit_url)


def _hub_error(repository: str, error: BaseException) -> HubError:
    link: BaseException | None = error
    while link is not None:
        status = getattr(getattr(link, "response", None), "status_code", None)
        if status in _STATUS:
            reason, fix = _STATUS[status]
            return HubError(f"{repository}: {reason} (status {status})", fix)
        link = link.__cause__ or link.__context__
    text = " ".join(str(error).split())[:300].rstrip(".")
    return HubError(f"{repository}: the upload failed: {type(error).__name__}: {text}")
