"""Checks of names, folders and files given as weights. Errors state what was given instead."""

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from harmony_diffusion.errors import CheckpointError
from harmony_diffusion.json_text import parse_json

WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
_LISTED = 5
_HEAD = 1024
_WEB_PAGE = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--", b"<script")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a sentence that suggests known names close to a misspelt one, or an empty string.

    Upper case and punctuation do not count.

    Example:
        >>> did_you_mean("PCT-Net", ["hdnet", "pct_net"])
        " Did you mean 'pct_net'?"
    """
    plain = {_letters(other): other for other in known}
    close = difflib.get_close_matches(_letters(name), plain, n=3)
    return f" Did you mean {' or '.join(repr(plain[match]) for match in close)}?" if close else ""


def check_weights_file(path: Path) -> None:
    """Raise an error if a file is evidently not weights, usually because a download failed.

    Raises:
        CheckpointError: The file is missing, a folder, empty, a web page, a Git LFS pointer or a JSON text.
    """
    if path.is_dir():
        raise CheckpointError(f"{path}: is a folder, expected a file of weights.{_suggest_content(path)}")
    if not path.is_file():
        near = did_you_mean(path.name, _names_beside(path))
        raise CheckpointError(f"{path}: there is no such file.{near}")
    head = _read_head(path)
    kind = _kind_of(head, "weights")
    if head.startswith((b"{", b"[")) and b"\0" not in head:
        kind = "is a JSON text, not weights."
    if kind:
        raise CheckpointError(f"{path}: {kind}")


def check_model_folder(folder: Path, known: Iterable[str]) -> str:
    """Check that a folder was written by `save_pretrained` of a known model.

    Args:
        folder: An existing folder.
        known: Class names of the models that can be opened.

    Returns:
        The class name in its `config.json`.

    Raises:
        CheckpointError: The folder is empty, contains a pipeline or another model, or lacks weights. The
            message states which.
    """
    if (folder / "model_index.json").is_file():
        raise CheckpointError(_describe_pipeline(folder))
    if not (folder / "config.json").is_file():
        if not any(folder.iterdir()):
            raise CheckpointError(f"{folder}: is empty, expected a folder written by `save_pretrained`.")
        raise CheckpointError(
            f"{folder}: has no config.json, so it was not written by `save_pretrained` of a model."
            f"{_suggest_content(folder)}"
        )
    name = _read_config(folder / "config.json").get("_class_name")
    known = list(known)
    if not isinstance(name, str):
        raise CheckpointError(f"{folder}: its config.json names no class (`_class_name`), so it is not ours.")
    if name not in known:
        near = did_you_mean(name, known)
        raise CheckpointError(f"{folder}: holds a {name!r}, which is not one of {', '.join(known)}.{near}")
    files = sorted(folder.glob("diffusion_pytorch_model*.safetensors")) or sorted(
        folder.glob("diffusion_pytorch_model*.bin")
    )
    if not files:
        raise CheckpointError(f"{folder}: has no {WEIGHTS_NAME}.{_suggest_content(folder)}")
    for file in files:
        check_weights_file(file)
    return name


def describe_missing(name: str, known: Iterable[str]) -> str:
    """Explain that a name is neither a known name nor an existing folder, and suggest a close one."""
    path = Path(name)
    if path.is_file():
        beside = path.parent if (path.parent / "config.json").is_file() else None
        remedy = (
            f"Give its folder, {beside}."
            if beside
            else "`harmony convert` turns official weights into such a folder."
        )
        return f"{name}: is a file, expected a folder written by `save_pretrained`. {remedy}"
    if path.name != name:  # it has a separator
        near = did_you_mean(path.name, _names_beside(path))
        return f"{name}: there is no such folder.{near} A repository on the Hub is named owner/name."
    known = list(known)
    return f"No model is called {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}."


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type if there is none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def list_some(names: Iterable[str], most: int) -> str:
    """Join at most `most` names and append the number of the others."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _names_beside(path: Path) -> list[str]:
    try:
        return [other.name for other in path.parent.iterdir()]
    except OSError:
        return []


def _read_head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD).removeprefix(b"\xef\xbb\xbf").lstrip()


def _kind_of(head: bytes, wanted: str) -> str:
    """Describe a file from its first bytes if it is evidently not the wanted kind, else an empty string."""
    text = head.lower()
    if not text:
        return "is empty. Download it again."
    if text.startswith((b"version https://git-lfs", b"version https://hawser")):
        return (
            f"is a Git LFS pointer, not {wanted}. Run `git lfs pull` in its repository, or download the file."
        )
    if text.startswith(_WEB_PAGE):
        return f"is a web page (HTML or XML), not {wanted}. Download the file itself, not its page."
    return ""


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        kind = _kind_of(_read_head(path), "a configuration") or f"is no JSON: {first_line(error)}."
        raise CheckpointError(f"{path}: {kind}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: holds a {type(config).__name__}, expected a JSON object.")
    return config


def _describe_pipeline(folder: Path) -> str:
    name = _read_config(folder / "model_index.json").get("_class_name")
    name = name[-1] if isinstance(name, list) and name else name
    remedy = f"Open it with `{name}.from_pretrained`, or give the folder of a model."
    if (folder / "model" / "config.json").is_file():
        remedy = f"Give the model in it, {folder / 'model'}, or open it with `{name}.from_pretrained`."
    return f"{folder}: holds a saved pipeline ({name}), expected a saved model. {remedy}"


def _suggest_content(folder: Path) -> str:
    """Describe the content of a folder, preferably a model folder in it."""
    models = sorted(path.parent for path in folder.glob("*/config.json"))
    if models:
        return f" Did you mean {' or '.join(str(model) for model in models[:3])}?"
    if (folder / "config.json").is_file() and (folder / WEIGHTS_NAME).is_file():
        return " It was written by `save_pretrained`, so that `load_model` opens it as it is."
    names = sorted(path.name for path in folder.iterdir())
    if "export.json" in names:
        return " It is an exported model, for `runtime='onnx'` (`--runtime onnx`)."
    return f" It holds {list_some(names, _LISTED)}." if names else " It is empty."
