"""Repositories on the Hub that hold a pipeline or a model of this library, as folders in the cache."""

from collections.abc import Iterable
from typing import Any

from harmony_diffusion.errors import CheckpointError
from harmony_diffusion.models import MODELS, model_class
from harmony_diffusion.models.hub_files import (
    DOWNLOAD_OPTIONS,
    class_name_of,
    download_bare_model,
    download_components,
    download_index,
    read_json_object,
)
from harmony_diffusion.models.tiny_autoencoder import TinyAutoencoder

_PIPELINES = ("HarmonizationPipeline", "StableDiffusionHarmonizationPipeline")


def own_classes() -> dict[str, str]:
    """Return the module of each class of this library that a saved pipeline may hold."""
    classes = [TinyAutoencoder, *(model_class(name) for name in MODELS)]
    return {kind.__name__: kind.__module__ for kind in classes}


def use_own_classes(config: dict[str, Any]) -> None:
    """Name the modules of this library in an index that names entry files in the folders of components."""
    homes = own_classes()
    for name, entry in config.items():
        if not name.startswith("_") and isinstance(entry, list | tuple) and len(entry) == 2:
            if isinstance(entry[1], str) and entry[1] in homes:
                config[name] = [homes[entry[1]], entry[1]]


def resolve_repository(name: str, options: dict[str, Any], passed: Iterable[str] = ()) -> str:
    """Download what a repository holds of this library; leave pipelines of others to diffusers.

    No code is downloaded.

    Args:
        name: `owner/name` or `owner/name@revision`.
        options: Keywords of `from_pretrained`. Those of the download are taken out if it happens here.
        passed: Components that are given as keywords, and therefore not downloaded.

    Returns:
        A folder in the cache: of a saved pipeline, or of a model alone. Else the name without its revision.

    Raises:
        CheckpointError: It cannot be downloaded, or holds neither a pipeline nor a model of this library.
    """
    wanted = {key: options[key] for key in DOWNLOAD_OPTIONS if key in options}
    folder, index = download_index(name, wanted)
    if index is None:
        config = folder / "config.json"
        held = class_name_of(read_json_object(config, name)) if config.is_file() else ""
        if held not in own_classes():
            raise CheckpointError(f"{name}: the repository holds {held or 'no config.json'}, not a pipeline.")
        download_bare_model(name, folder, wanted)
    elif class_name_of(index) in _PIPELINES:
        held_parts = [key for key, entry in index.items() if isinstance(entry, list) and key[0] != "_"]
        download_components(name, folder, [part for part in held_parts if part not in set(passed)], wanted)
    else:
        name, _, revision = name.partition("@")
        if revision:
            options["revision"] = revision
        return name
    for key in wanted:
        del options[key]
    return str(folder)
