"""Find out what a name, file or folder is before it is loaded, so that errors can name it."""

import difflib
import json
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from harmony_diffusion.errors import CheckpointError, InputError, InputTypeError
from harmony_diffusion.json_text import parse_json
from harmony_diffusion.models.hub_files import INDEX, class_name_of

# Keywords of `DiffusionPipeline.from_pretrained` that every pipeline of diffusers takes.
LOADING_OPTIONS = (
    "cache_dir",
    "custom_pipeline",
    "custom_revision",
    "device_map",
    "disable_mmap",
    "dtype",
    "force_download",
    "load_connected_pipeline",
    "local_files_only",
    "low_cpu_mem_usage",
    "max_memory",
    "mirror",
    "offload_folder",
    "offload_state_dict",
    "proxies",
    "quantization_config",
    "revision",
    "token",
    "torch_dtype",
    "trust_remote_code",
    "use_flashpack",
    "use_safetensors",
    "variant",
)
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_SHORT_DTYPES = {
    "fp16": torch.float16,
    "half": torch.float16,
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
    "float": torch.float32,
    "fp64": torch.float64,
    "double": torch.float64,
}
_SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a sentence that names the closest of the known words, or nothing if none is close.

    Example:
        >>> did_you_mean("torch_dtpe", ["dtype", "torch_dtype"])
        "Did you mean 'torch_dtype'?"
    """
    plain = {name.lower().replace("-", "").replace("_", ""): name for name in known}
    close = difflib.get_close_matches(word.lower().replace("-", "").replace("_", ""), plain, 1, 0.7)
    return f"Did you mean {plain[close[0]]!r}?" if close else ""


def check_option_names(
    options: Iterable[str], known: Sequence[str], function: str = "from_pretrained"
) -> None:
    """Check that keywords of a function exist.

    Raises:
        InputTypeError: One does not.
    """
    for name in options:
        if name not in known:
            hint = did_you_mean(name, known) or f"It takes {', '.join(sorted(known))}."
            raise InputTypeError(name, f"is no keyword of {function}", hint)


def take_dtype(options: dict[str, Any]) -> Any:
    """Take `dtype` and its older name `torch_dtype` out of the options.

    Returns:
        A `torch.dtype`, "auto", a dictionary of these by component, or None.

    Raises:
        InputError: Both are given and differ, or one names no floating-point type.
    """
    given = {name: options.pop(name) for name in ("dtype", "torch_dtype") if name in options}
    read = {name: _read_dtype(name, value) for name, value in given.items() if value is not None}
    if len(read) == 2 and read["dtype"] != read["torch_dtype"]:
        raise InputError(
            "dtype", f"is {given['dtype']}, and torch_dtype is {given['torch_dtype']}", "Give one."
        )
    return next(iter(read.values()), None)


def _read_dtype(name: str, value: Any) -> Any:
    if isinstance(value, dict):
        return {component: _read_dtype(name, one) for component, one in value.items()}
    if isinstance(value, str) and value != "auto":
        word = value.removeprefix("torch.")
        value = _SHORT_DTYPES.get(word, getattr(torch, word, value))
    if value == "auto" or (isinstance(value, torch.dtype) and value.is_floating_point):
        return value
    raise InputError(
        name,
        f"must be a floating-point type, got {value!r}",
        "Give torch.float32, torch.float16 or torch.bfloat16, their names, or 'auto' for the type as saved.",
    )


def convert(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Convert the weights of a model in place.

    Not by `ModelMixin.to`, which warns of layers that must stay in float32 even where there are none.
    """
    torch.nn.Module.to(model, dtype)


def read_device(value: Any) -> torch.device:
    """Read `device_map` for a pipeline of one model.

    Raises:
        InputError: It is no device.
    """
    try:
        return torch.device(value)
    except (RuntimeError, TypeError) as error:
        raise InputError(
            "device_map",
            f"is {value!r}, and this pipeline has a single model",
            "Give a device, such as 'cuda' or 'cpu'.",
        ) from error


def refuse_missing(name: str, known: Sequence[str]) -> None:
    """Raise the error for a name that is neither known nor a folder.

    Raises:
        CheckpointError: Always; names the closest known name or folder.
    """
    path = Path(name)
    if path.is_file():
        hint = " `harmony convert` reads weights of other projects." if path.suffix in _WEIGHTS else ""
        raise CheckpointError(
            f"{name}: is a {_kind_of_file(path) or 'file'}; give the folder of a pipeline.{hint}"
        )
    parent = path.parent
    folders = [str(entry) for entry in sorted(parent.iterdir()) if entry.is_dir()] if parent.is_dir() else []
    hint = did_you_mean(name, [*known, *folders])
    choices = f"Known names: {', '.join(known)}." if known else "Give a folder, or owner/name on the Hub."
    raise CheckpointError(f"{name}: there is no folder of this name and no such model. {hint or choices}")


def parts_of(folder: Path) -> list[str]:
    """Return the names of the folders of a saved pipeline's components; none if it is no such folder."""
    try:
        entries = read_json(folder / "model_index.json")
    except (CheckpointError, OSError):
        return []
    return [name for name, entry in entries.items() if isinstance(entry, list) and not name.startswith("_")]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds one object.

    Raises:
        CheckpointError: It holds something else; the message says what.
    """
    check_file(path)
    try:
        entries = parse_json(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: is no JSON file ({error}). Download it again.") from error
    if not isinstance(entries, dict):
        raise CheckpointError(f"{path}: holds a {type(entries).__name__}, expected an object.")
    return entries


def check_file(path: Path) -> None:
    """Check that a file is what its name says, from its first bytes and its length.

    Raises:
        CheckpointError: It is empty, a web page, a Git LFS pointer, or a part of a safetensors file.
    """
    if kind := _kind_of_file(path):
        fix = "Run `git lfs pull` in its repository." if "LFS" in kind else "Download the file itself."
        raise CheckpointError(f"{path}: is a {kind}, not the file that its name says. {fix}")
    if path.suffix == ".safetensors":
        read_safetensors_header(path)


def _kind_of_file(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        return "file of 0 bytes"
    if head.startswith(b"version https://git-lfs"):
        return "Git LFS pointer"
    if head.lstrip()[:9].lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "web page"
    return ""


def read_safetensors_header(path: Path) -> dict[str, Any]:
    """Read the names, types and offsets of the tensors in a safetensors file.

    Raises:
        CheckpointError: It is no safetensors file, or its end is missing.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = parse_json(file.read(length)) if length < size else None
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}  # type: ignore[union-attr]
        expected = 8 + length + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    except (AttributeError, LookupError, TypeError, ValueError, struct.error) as error:
        raise CheckpointError(f"{path}: is no safetensors file. Download it again.") from error
    if size < expected:
        raise CheckpointError(f"{path}: ends after {size:,} of {expected:,} bytes. Download it again.")
    return tensors


def check_pipeline_folder(
    folder: Path, wanted: str, required: Sequence[str], taken: Sequence[str], passed: Sequence[str]
) -> None:
    """Check that a folder holds a pipeline of the right kind, and all its files.

    Args:
        folder: Existing folder.
        wanted: Name of the class that loads it.
        required: Components that the class cannot do without.
        taken: All components that it takes.
        passed: Components that are given as keywords.

    Raises:
        CheckpointError: It does not; says what it holds.
    """
    if not (folder / INDEX).is_file():
        _refuse_other_folder(folder)
    index = read_json(folder / INDEX)
    components = {
        name: entry
        for name, entry in index.items()
        if isinstance(entry, list)
        and len(entry) == 2
        and entry[0]
        and not name.startswith("_")
        and isinstance(entry[1], str)
    }
    held = class_name_of(index) or "pipeline of no class"
    missing = [name for name in required if name not in {*components, *passed}]
    extra = [name for name in components if name not in taken]
    if missing or extra:
        why = f"lacks {', '.join(missing)}" if missing else f"has {', '.join(extra)}"
        own = {"HarmonizationPipeline", "StableDiffusionHarmonizationPipeline"} - {wanted}
        fix = (
            f"Load it with `{held}.from_pretrained`."
            if held in own
            else f"Give a folder that a {wanted} saved."
        )
        raise CheckpointError(f"{folder}: holds a {held}, which {why}, and not a {wanted}. {fix}")
    for name in components:
        if name not in passed and name in taken:
            check_component_folder(folder / name)


def check_component_folder(folder: Path) -> None:
    """Check the JSON and weight files of one component.

    Raises:
        CheckpointError: The folder is absent or empty, or one of its files is not what its name says.
    """
    files = [path for path in sorted(folder.iterdir()) if path.is_file()] if folder.is_dir() else []
    if not files:
        raise CheckpointError(
            f"{folder}: is {'empty' if folder.is_dir() else 'absent'}. Copy the whole folder."
        )
    for path in files:
        if path.suffix == ".json":
            read_json(path)
        elif path.suffix in _WEIGHTS:
            check_file(path)


def _refuse_other_folder(folder: Path) -> None:
    names = sorted(path.name for path in folder.iterdir())
    if not names:
        raise CheckpointError(f"{folder}: is an empty folder. Give one that `save_pretrained` wrote.")
    if "control.json" in names:
        raise CheckpointError(
            f"{folder}: is a ControlNet, not a pipeline. "
            "`harmony_diffusion.pipelines.assembly.assemble_pipeline` puts it into one."
        )
    if "config.json" in names:
        held = class_name_of(read_json(folder / "config.json")) or "model"
        raise CheckpointError(f"{folder}: holds a single {held}, not a pipeline. Give it to the constructor.")
    inside = next((name for name in names if (folder / name / INDEX).is_file()), None)
    hint = f"Did you mean {str(folder / inside)!r}?" if inside else "Give one that `save_pretrained` wrote."
    shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
    raise CheckpointError(f"{folder}: has no {INDEX}, so it is no saved pipeline; it holds {shown}. {hint}")


def saved_dtypes(folder: Path) -> dict[str, torch.dtype]:
    """Return the type of the weights of each component of a saved pipeline, for `dtype="auto"`."""
    found = {"default": torch.float32}
    for path in sorted(folder.glob("*/*.safetensors")):
        kinds = {entry["dtype"] for entry in read_safetensors_header(path).values()}
        for kind in kinds & set(_SAFETENSORS_DTYPES):
            found.setdefault(path.parent.name, _SAFETENSORS_DTYPES[kind])
    return found


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def open_in_single_precision(folder: Path) -> None:
    """Make transformers open the weights in float32, as diffusers does, whatever the stored format."""
    for part in ("text_encoder", "captioner"):
        if (path := folder / part / "config.json").is_file():
            entries = read_json(path) | {"dtype": "float32"}
            path.write_text(json.dumps(entries, indent=2, sort_keys=True) + "\n", "utf-8")
