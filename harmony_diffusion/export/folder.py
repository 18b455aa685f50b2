"""An exported folder: what its `export.json` says, checked before anything in it is run.

A folder may come from anywhere. Its files must have the SHA-256 sums that are noted, and a graph must hold
all of its tensors itself: one that names a file outside could read any file of this machine.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harmony_diffusion.errors import CheckpointError
from harmony_diffusion.json_text import parse_json

SCHEMA = 1
DESCRIPTION, NETWORK, APPLICATION = "export.json", "network.onnx", "apply.onnx"
MAX_BYTES = 1 << 30  # of a graph
MAX_SIDE = 4096  # of a thumbnail
UPSAMPLINGS = ("bilinear", "bicubic")


@dataclass(frozen=True)
class Description:
    """What `export.json` says.

    Attributes:
        model: Registry name or class of the model.
        kind: "filters" for models that predict filters, "dense" for those that return the picture.
        size: Height and width of the thumbnail.
        antialias: Whether the thumbnail is made with antialiasing.
        context: Of `window_around`: what is shown of the frame; None = all of it.
        upsampling: How maps of filters are enlarged; None = there are no maps.
        frame_wide: Whether applying filters measures the picture, so that it must be given whole.
        sums: File name -> SHA-256.
        fields: All that the file holds.
    """

    model: str
    kind: str
    size: tuple[int, int]
    antialias: bool
    context: float | None
    upsampling: str | None
    frame_wide: bool
    sums: dict[str, str]
    fields: dict[str, Any]


def is_exported(folder: Path) -> bool:
    """Return True for a folder that `export_onnx` wrote."""
    return (folder / DESCRIPTION).is_file()


def read_description(folder: Path) -> Description:
    """Read and check `export.json`.

    Raises:
        CheckpointError: It is absent, damaged, of another schema, or holds values that cannot be.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        raise CheckpointError(f"{folder}: has no {DESCRIPTION}. Give a folder written by `harmony export`.")
    try:
        fields = parse_json(path.read_text(encoding="utf-8"))
        if fields["schema"] != SCHEMA:
            raise CheckpointError(
                f"{path}: has schema {fields['schema']!r}, this version reads {SCHEMA}. "
                "Export the model again."
            )
        thumbnail, height_width = fields["thumbnail"], fields["thumbnail"]["size"]
        description = Description(
            model=str(fields["model"]),
            kind=fields["kind"],
            size=(int(height_width[0]), int(height_width[1])),
            antialias=bool(thumbnail["antialias"]),
            context=None if thumbnail["context"] is None else float(thumbnail["context"]),
            upsampling=fields["upsampling"],
            frame_wide=bool(fields["frame_wide"]),
            sums={str(name): str(noted["sha256"]) for name, noted in fields["files"].items()},
            fields=fields,
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: is damaged ({error!r}). Export the model again.") from error
    _check_values(path, description)
    return description


def read_graph(folder: Path, name: str, description: Description) -> bytes:
    """Read a graph whose size, sum and tensors are as they must be.

    Raises:
        CheckpointError: It is absent, not the file that was exported, too large, or not complete in itself.
    """
    path = folder / name
    if name not in description.sums or not path.is_file():
        raise CheckpointError(f"{path}: is missing. Export the model again.")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise CheckpointError(f"{path}: has {size} bytes, at most {MAX_BYTES} are read.")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != description.sums[name]:
        raise CheckpointError(
            f"{path}: its SHA-256 differs from the one in {DESCRIPTION}, so the file was changed or cut "
            "short. Export the model or copy the folder again."
        )
    try:
        outside = _names_other_files(memoryview(data))
    except (IndexError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is no ONNX graph. Export the model again.") from error
    if outside:
        raise CheckpointError(f"{path}: keeps tensors in other files, which are not read. Export it again.")
    return data


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_values(path: Path, description: Description) -> None:
    context = description.context
    wrong = {
        "kind": description.kind not in ("filters", "dense"),
        "thumbnail size": not all(16 <= side <= MAX_SIDE for side in description.size),
        "context": context is not None and not 0 <= context <= 100,
        "upsampling": description.upsampling not in (None, *UPSAMPLINGS),
    }
    for name, is_wrong in wrong.items():
        if is_wrong:
            raise CheckpointError(f"{path}: has a {name} that cannot be. Export the model again.")


# Fields of the messages of onnx.proto that lead to tensors, by number. `_TENSOR` ends the search: a field 13
# (`external_data`), or a 14 (`data_location`) other than 0, means that the values are in another file.
_TENSOR: dict[int, Any] = {}
_SPARSE: dict[int, Any] = {1: _TENSOR, 2: _TENSOR}
_ATTRIBUTE: dict[int, Any] = {5: _TENSOR, 10: _TENSOR, 22: _SPARSE, 23: _SPARSE}
_NODE: dict[int, Any] = {5: _ATTRIBUTE}
_GRAPH: dict[int, Any] = {1: _NODE, 5: _TENSOR, 15: _SPARSE}
_ATTRIBUTE |= {6: _GRAPH, 11: _GRAPH}
_MODEL: dict[int, Any] = {7: _GRAPH, 25: {7: _NODE, 11: _ATTRIBUTE}}


def _names_other_files(message: memoryview, fields: dict[int, Any] = _MODEL) -> bool:
    """Return True if a serialized ONNX model has a tensor whose values are in another file."""
    for number, value in _fields_of(message):
        if fields is _TENSOR:
            if number == 13 or (number == 14 and value != 0):
                return True
        elif number in fields and isinstance(value, memoryview):
            if _names_other_files(value, fields[number]):
                return True
    return False


def _fields_of(message: memoryview) -> Any:
    """Yield number and value of each field of a protobuf message: an int, or the bytes of a longer one."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        wire = key & 7
        if wire == 0:
            value, position = _varint(message, position)
            yield key >> 3, value
            continue
        if wire == 2:
            length, position = _varint(message, position)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if position + length > len(message):
            raise ValueError("a field ends beyond its message")
        if wire == 2:
            yield key >> 3, message[position : position + length]
        position += length


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("a number is too long")
