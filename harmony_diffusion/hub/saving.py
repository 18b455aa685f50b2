"""A folder that can be published as it is: it opens by its id with this library and with diffusers alone."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from harmony_diffusion import __version__
from harmony_diffusion.errors import InputError, InputTypeError
from harmony_diffusion.hub.card import EXAMPLES, Card
from harmony_diffusion.hub.checks import check_for_publication
from harmony_diffusion.images.output_folders import check_replaceable, holds_only, write_folder_atomically
from harmony_diffusion.models import MODELS, model_class
from harmony_diffusion.models.contract import HarmonyModel
from harmony_diffusion.models.hub_files import INDEX
from harmony_diffusion.pipelines.harmonization import HarmonizationPipeline
from harmony_diffusion.pipelines.hub_folders import own_classes
from harmony_diffusion.pipelines.saved_folders import parts_of
from harmony_diffusion.pipelines.saving_and_loading import SavedPipeline
from harmony_diffusion.training.model_card import drop_local_paths

_LARGE = ("*.safetensors", "*.onnx", "*.jpg", "*.png", "*.webp")
_EXPORT = "export.json"  # that every folder of `harmony export` holds
_JPEG = b"\xff\xd8\xff"
_ALWAYS = (INDEX, "README.md", "requirements.txt", ".gitattributes")  # files that every such folder holds
_ENTRY = '"""Entry file for diffusers; the code comes with `pip install harmony-diffusion`."""\n\n'


def save_for_hub(
    pipeline_or_model: SavedPipeline | HarmonyModel,
    folder: str | os.PathLike[str],
    *,
    card: Card,
    half: bool = False,
    examples: str | os.PathLike[str] | None = None,
    pictures: Sequence[Path] = (),
    eval_results: str | os.PathLike[str] | None = None,
    onnx: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a folder to publish, completely or not at all.

    It holds the components, an entry file of one import for each class of this library, the requirements and
    the card.

    Args:
        pipeline_or_model: Pipeline of this library, or a model, which is saved as a `HarmonizationPipeline`.
        folder: Folder to make.
        card: Facts for the card.
        half: Store weights as float16.
        examples: JPEG for the card.
        pictures: Other pictures that the card shows.
        eval_results: Folder of YAML files by `reports.hub_results.write_eval_results`.
        onnx: Folder of an exported model, copied as `onnx/`.
        overwrite: Replace a folder that was written before.

    Returns:
        The folder.

    Raises:
        InputError: The card lacks what the Hub requires, or a file must not be published; says which.
        OutputError: The folder cannot be made; or it exists, and `overwrite` is false or it holds something
            else.
    """
    card.check()
    pipe = _as_pipeline(pipeline_or_model)
    target = Path(folder)
    check_replaceable(target, "a folder for the Hub", _is_for_hub, overwrite=overwrite)
    for name, source, is_right in (
        ("examples", examples, os.path.isfile),
        ("eval_results", eval_results, os.path.isdir),
        ("onnx", onnx, os.path.isdir),
    ):
        if source is not None and not is_right(source):
            raise InputError(name, f"names {os.fspath(source)}, which does not exist", "Leave it out.")

    if examples is not None and not Path(examples).read_bytes().startswith(_JPEG):
        raise InputError("examples", f"names {os.fspath(examples)}, which is no JPEG file", "Convert it.")

    def write(staging: Path) -> None:
        pipe.save_pretrained(staging)
        drop_local_paths(staging)
        _write_component_entries(staging)
        if half:
            _store_in_half_precision(staging)
        if examples is not None:
            shutil.copyfile(examples, staging / EXAMPLES)
        for picture in pictures:
            shutil.copyfile(picture, staging / picture.name)
        if eval_results is not None:
            shutil.copytree(eval_results, staging / ".eval_results")
        if onnx is not None:
            shutil.copytree(onnx, staging / "onnx")
        (staging / "requirements.txt").write_text(f"{_requirement()}\n", "utf-8")
        lines = [f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in _LARGE]
        (staging / ".gitattributes").write_text("".join(lines), "utf-8")
        text = card.render(
            type(pipe).__name__,
            _model_name(pipe),
            reads_text="text_encoder" in pipe.components,
            has_examples=examples is not None,
        )
        (staging / "README.md").write_text(text, "utf-8")
        check_for_publication(staging)
        if onnx is not None and not (staging / "onnx" / _EXPORT).is_file():
            reason = f"names {os.fspath(onnx)}, which has no {_EXPORT}"
            raise InputError("onnx", reason, "Give a folder written by `harmony export`.")
        for path in staging.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)  # safetensors denies access to all other users

    write_folder_atomically(target, write, keep_others=True)
    return target


def _is_for_hub(folder: Path) -> bool:
    if not all((folder / name).is_file() for name in _ALWAYS):
        return False
    return holds_only(
        folder, [*_ALWAYS, "pipeline.py", "*.jpg", "*.png", ".eval_results", "onnx", *parts_of(folder)]
    )


def _as_pipeline(given: Any) -> SavedPipeline:
    if isinstance(given, HarmonyModel):
        return HarmonizationPipeline(given)  # type: ignore[arg-type]
    if isinstance(given, SavedPipeline):
        return given
    raise InputTypeError(
        "pipeline_or_model",
        f"is a {type(given).__name__}, expected a pipeline or a model of this library",
        "Give what `load_pipeline` or `load_model` returns.",
    )


def _model_name(pipe: SavedPipeline) -> str:
    """Return the registry name of the model; for other pipelines the name of the class."""
    model = pipe.components.get("model")
    return next((name for name in MODELS if model_class(name) is type(model)), type(pipe).__name__)


def _write_component_entries(folder: Path) -> None:
    """Write `COMPONENT/MODULE.py` for each class of this library; diffusers requires it on the Hub."""
    homes = own_classes()
    index = json.loads((folder / INDEX).read_text("utf-8"))
    for name, entry in index.items():
        if not name.startswith("_") and isinstance(entry, list) and len(entry) == 2 and entry[1] in homes:
            module = homes[entry[1]]
            short = module.rpartition(".")[2]
            text = f"{_ENTRY}from {module} import {entry[1]}  # noqa: F401\n"
            (folder / name / f"{short}.py").write_text(text, "utf-8")
            index[name] = [short, entry[1]]
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", "utf-8")


def _store_in_half_precision(folder: Path) -> None:
    for path in folder.rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        halves = {name: t.half() if t.dtype == torch.float32 else t for name, t in tensors.items()}
        save_file(halves, path, metadata)


def _requirement() -> str:
    major, minor = __version__.split(".")[:2]
    return f"harmony-diffusion~={major}.{minor}"
