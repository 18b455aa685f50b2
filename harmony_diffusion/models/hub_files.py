"""Download settings and weights of a model or pipeline from a repository on the Hub, never code."""

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download

from harmony_diffusion.errors import CheckpointError
from harmony_diffusion.json_text import parse_json

INDEX = "model_index.json"
# Options of `from_pretrained` that a download takes.
DOWNLOAD_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "token")
# Code (`*.py`) and pickled weights (`*.bin`) are never downloaded.
_COMPONENT_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_STATUS = {
    401: "the Hub knows no such repository, or it is private. Log in with `hf auth login`, or set HF_TOKEN.",
    403: "access is denied. Ask its owner for access, then log in with `hf auth login`.",
    404: "the Hub knows no such repository or revision. Check both names.",
    429: "the Hub refuses more requests for now. Try again in some minutes, or log in with `hf auth login`.",
}


def looks_like_repository(name: str) -> bool:
    """Return True for `owner/name` or `owner/name@revision` that can only be a repository on the Hub.

    Example:
        >>> looks_like_repository("owner/name@v1"), looks_like_repository("./folder")
        (True, False)
    """
    owner = name.partition("/")[0]
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(@[\w./-]+)?", name)) and not os.path.isdir(owner)


def download_model(name: str, known: Iterable[str], options: Mapping[str, Any] | None = None) -> Path:
    """Download a model, alone in its repository or within a saved `HarmonizationPipeline`.

    Args:
        name: `owner/name` or `owner/name@revision`.
        known: Class names of the models that can be opened.
        options: `DOWNLOAD_OPTIONS`.

    Returns:
        The folder of the model in the cache.

    Raises:
        CheckpointError: It cannot be downloaded, or the repository holds something else.
    """
    folder, index = download_index(name, options)
    if index is None:
        config = read_json_object(folder / "config.json", name) if (folder / "config.json").is_file() else {}
        if config.get("_class_name") not in list(known):
            held = config.get("_class_name") or "neither config.json nor model_index.json"
            raise CheckpointError(f"{name}: the repository holds {held}, expected a model of this library.")
        return download_bare_model(name, folder, options)
    held = class_name_of(index)
    if held != "HarmonizationPipeline":
        raise CheckpointError(
            f"{name}: the repository holds a saved pipeline ({held}), expected a model. "
            f"Open it with `{held}.from_pretrained`."
        )
    patterns = ["model/config.json", "model/diffusion_pytorch_model*.safetensors*"]
    return _download(name, patterns, options, commit=folder.name) / "model"


def download_index(name: str, options: Mapping[str, Any] | None = None) -> tuple[Path, dict[str, Any] | None]:
    """Download only what says which class a repository holds.

    Returns:
        The folder of one commit in the cache, and the content of `model_index.json`; None without that file.

    Raises:
        CheckpointError: It cannot be downloaded.
    """
    folder = _download(name, ["config.json", INDEX], options)
    return folder, read_json_object(folder / INDEX, name) if (folder / INDEX).is_file() else None


def download_bare_model(name: str, folder: Path, options: Mapping[str, Any] | None = None) -> Path:
    """Download the weights beside a `config.json` that `download_index` found."""
    return _download(name, ["diffusion_pytorch_model*.safetensors*"], options, commit=folder.name)


def download_components(
    name: str, folder: Path, components: Iterable[str], options: Mapping[str, Any] | None = None
) -> Path:
    """Download components of a pipeline whose index `download_index` found, without any code."""
    patterns = [f"{component}/{kind}" for component in components for kind in _COMPONENT_FILES]
    return _download(name, [INDEX, *patterns], options, commit=folder.name)


def class_name_of(index: Mapping[str, Any]) -> str:
    """Return the name of the pipeline's class in `model_index.json`, or of the model's in `config.json`."""
    held = index.get("_class_name", "")
    return str(held[-1]) if isinstance(held, list) and held else str(held)


def read_json_object(path: Path, name: str) -> dict[str, Any]:
    """Read a JSON file of a repository that holds one object.

    Raises:
        CheckpointError: It holds something else.
    """
    try:
        content = parse_json(path.read_text("utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{name}: its {path.name} is no JSON: {error}.") from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{name}: its {path.name} holds a {type(content).__name__}, expected an object."
        )
    return content


def _download(
    name: str, patterns: list[str], options: Mapping[str, Any] | None, *, commit: str | None = None
) -> Path:
    """Download the files that match the patterns; a given commit overrules the revision.

    A commit in the cache opens without a connection.
    """
    repository, _, revision = name.partition("@")
    given = dict(options or {})
    if revision and given.get("revision") not in (None, revision):
        raise CheckpointError(f"{name}: names a revision, and `revision` is {given['revision']!r}. Give one.")
    given["revision"] = commit or revision or given.get("revision")
    cache = Path(given.get("cache_dir") or constants.HF_HUB_CACHE).expanduser().resolve()
    before = set(cache.glob(f"models--{repository.replace('/', '--')}/blobs/*"))
    try:
        folder = Path(
            snapshot_download(repository, allow_patterns=patterns, library_name="harmony-diffusion", **given)
        )
    except Exception as error:  # httpx, huggingface_hub and the file system raise a dozen types
        raise CheckpointError(f"{name}: {_reason(error)}") from error
    _check_hashes(name, folder, before)
    return folder


def _check_hashes(name: str, folder: Path, before: set[Path]) -> None:
    """Compare new weights with the SHA-256 by which the Hub stores them; remove files that differ."""
    for path in sorted(folder.rglob("*.safetensors")):
        blob = path.resolve()
        if blob in before or not _SHA256.fullmatch(blob.name):
            continue
        with blob.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != blob.name:
            path.unlink()
            blob.unlink()
            raise CheckpointError(
                f"{name}: {path.name} has the SHA-256 {found[:12]}…, expected {blob.name[:12]}…. "
                "It was removed; download it again."
            )


def _reason(error: BaseException) -> str:
    """Return why a download failed, by the status of the answer if there was one."""
    link: BaseException | None = error
    while link is not None:
        status = getattr(getattr(link, "response", None), "status_code", None)
        if isinstance(status, int):
            return f"cannot be downloaded: {_STATUS.get(status, f'the Hub answered with status {status}.')}"
        link = link.__cause__ or link.__context__
    if constants.HF_HUB_OFFLINE:
        return (
            "is neither a folder here nor reachable on the Hub: there is no such folder, and with "
            "HF_HUB_OFFLINE set a repository outside the cache is not resolved. Unset it, or run "
            "`hf download` first."
        )
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"is neither a folder here nor reachable on the Hub: {type(error).__name__}: {line}"
