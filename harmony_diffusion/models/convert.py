"""Convert an official checkpoint to a `save_pretrained` folder; pickles are read safely, keys compared."""

import hashlib
import os
import pickle
from pathlib import Path
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from harmony_diffusion.errors import CheckpointError
from harmony_diffusion.images.output_folders import check_replaceable, holds_only, write_folder_atomically
from harmony_diffusion.json_text import parse_json
from harmony_diffusion.models import MODELS, create_model, model_class
from harmony_diffusion.models.weight_files import check_weights_file, first_line, list_some

# Keys under which training scripts of the field store the weights, and prefixes that wrappers add to names.
_NESTS = ("model", "state_dict", "model_state_dict", "params", "net", "network", "generator", "netG", "ema")
_WRAPPER = "module."  # added by torch's DataParallel
_OWNER = "model."  # added by a trainer that holds the network; in some official files part of the names
_LISTED = 12

_CARD = """---
library_name: diffusers
pipeline_tag: image-to-image
tags: [image-harmonization]
---
# {name}: converted weights

`{name}` of Harmony Diffusion with the weights of `{file}`
(SHA-256 `{digest}`), converted by `harmony convert --model {name}`. The conversion trains nothing
and measures no score.

- Paper: {title}, {paper}
- Official code: {code} ({code_license})
- Licence of the official weights: {weights_license}

```python
from harmony_diffusion import HarmonizationPipeline, load_model

image = HarmonizationPipeline(load_model("path/to/this/folder"))("composite.png", "mask.png").images[0]
```
"""


def convert_checkpoint(
    name: str, checkpoint: str | os.PathLike[str], output: str | os.PathLike[str], *, overwrite: bool = False
) -> Path:
    """Convert the official weights of a model and save them where `load_model` reads them.

    Args:
        name: Registry name of the model.
        checkpoint: A `.pth`, `.pt`, `.ckpt` or `.safetensors` file.
        output: Folder to create.
        overwrite: Replace a folder of a saved model that holds no other files.

    Returns:
        The folder, with `config.json`, `diffusion_pytorch_model.safetensors` and a card that names origin,
        licence and checksum.

    Raises:
        CheckpointError: Unknown model, unreadable file, or missing, extra, mis-shaped or non-finite tensors;
            nothing is written.
        OutputError: The folder exists and `overwrite` is false or it holds something else, or it cannot be
            written.
    """
    folder, source = Path(output), Path(checkpoint)
    check_replaceable(folder, "a saved model", _is_saved_model, overwrite=overwrite)
    cls = model_class(name)
    model = create_model(name)
    if not model.num_parameters():
        raise CheckpointError(f"{name} has no official weights: it needs none.")
    load_strictly(model, convert_names(cls, unwrap(read_tensors(source))), source)

    def write(unfinished: Path) -> None:
        model.save_pretrained(unfinished)
        (unfinished / "README.md").write_text(_card(name, model, source), encoding="utf-8")

    write_folder_atomically(folder, write, keep_others=True)
    return folder


def _is_saved_model(folder: Path) -> bool:
    try:
        kind = parse_json((folder / "config.json").read_text("utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    names = ("config.json", "README.md", "diffusion_pytorch_model*.safetensors*")
    return kind in {model_class(name).__name__ for name in MODELS} and holds_only(folder, names)


def read_tensors(path: Path) -> Any:
    """Read a checkpoint without running any code in it.

    Raises:
        CheckpointError: The file is not a checkpoint, is damaged, or holds more than tensors and plain
            containers.
    """
    check_weights_file(path)
    try:
        if _is_safetensors(path):
            from safetensors.torch import load_file

            return load_file(path)
        with path.open("rb") as file:  # of a path, torch trusts the suffix
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds more than tensors and plain containers, and code in it is not run "
            f"({first_line(error)})"
        ) from error
    except Exception as error:  # torch and safetensors raise a dozen types on a damaged file
        raise CheckpointError(
            f"{path}: cannot be read as a PyTorch or safetensors file: {first_line(error)}. "
            "If the download was cut short, download it again."
        ) from error


def unwrap(content: Any) -> dict[str, Tensor]:
    """Find the weights in a checkpoint, under `model`, `state_dict` and the like, and remove `module.`.

    Raises:
        CheckpointError: It holds no dictionary of tensors.
    """
    while isinstance(content, dict) and not all(isinstance(value, Tensor) for value in content.values()):
        nests = [key for key in _NESTS if isinstance(content.get(key), dict)]
        if not nests:
            entries = list_some(map(str, content), _LISTED)
            raise CheckpointError(f"The file holds no dictionary of tensors; its entries are {entries}.")
        content = content[nests[0]]
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"The file holds a {type(content).__name__}, not a dictionary of tensors.")
    while all(key.startswith(_WRAPPER) for key in content):
        content = {key.removeprefix(_WRAPPER): value for key, value in content.items()}
    return content


def convert_names(cls: Any, official: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert official names to those of a model; try them as they are, then without a common `model.`.

    Raises:
        CheckpointError: A name is unknown in both forms.
    """
    try:
        return cls.convert_official(official)
    except CheckpointError:
        if not all(key.startswith(_OWNER) for key in official):
            raise
        try:
            return convert_names(cls, unwrap({k.removeprefix(_OWNER): v for k, v in official.items()}))
        except CheckpointError:
            pass
        raise


def load_strictly(model: ModelMixin, state_dict: dict[str, Tensor], source: object) -> None:
    """Load weights after checking that keys and shapes fit and that all values are finite.

    Raises:
        CheckpointError: The weights do not fit. The message lists the differences.
    """
    own = model.state_dict()
    # Counters of batch normalization carry no weight; older checkpoints do not have them.
    missing = [k for k in own if k not in state_dict and not k.endswith("num_batches_tracked")]
    extra = [k for k in state_dict if k not in own]
    shared = [k for k in own if k in state_dict]
    shapes = [
        f"{k} {tuple(state_dict[k].shape)} instead of {tuple(own[k].shape)}"
        for k in shared
        if state_dict[k].shape != own[k].shape
    ]
    broken = [k for k in shared if not torch.isfinite(state_dict[k]).all()]
    found = {"missing": missing, "extra": extra, "mis-shaped": shapes, "not finite": broken}
    if any(found.values()):
        parts = [f"{len(keys)} {what}: {list_some(keys, _LISTED)}" for what, keys in found.items() if keys]
        raise CheckpointError(f"{source}: does not fit {type(model).__name__}. {'; '.join(parts)}")
    model.load_state_dict({**own, **state_dict})


def _is_safetensors(path: Path) -> bool:
    """Recognise the format by its first bytes, since the suffix may be wrong."""
    with path.open("rb") as file:
        head = file.read(9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size - 8


def _card(name: str, model: Any, source: Path) -> str:
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    origin = model.origin
    return _CARD.format(
        name=name,
        file=source.name,
        digest=digest,
        title=origin.title,
        paper=origin.paper,
        code=origin.code or "none is public",
        code_license=origin.code_license or "no licence stated",
        weights_license=origin.weights_license or "none are published; ask the person who gave them to you",
    )
