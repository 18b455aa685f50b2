"""Captions of photographs: made by BLIP, kept as JSON lines, read as the prompts of training.

Li et al., "BLIP: Bootstrapping Language-Image Pre-training", ICML 2022. A folder of captions holds `*.jsonl`
with one object a line, `{"image": "train/000a1249af2bc5f0.jpg", "caption": "a cat on a sofa"}`, where `image`
is the photograph's path relative to its data set; `train/prepare_captions.py` writes such folders.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from harmony_diffusion.data.photographs import Photograph
from harmony_diffusion.data.record_files import read_records
from harmony_diffusion.errors import CheckpointError, InputError
from harmony_diffusion.images.sources import ArchiveMember, Source

DEFAULT_CAPTIONER = "Salesforce/blip-image-captioning-base"


def load_captioner(
    source: str | Path = DEFAULT_CAPTIONER,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> tuple[Any, Any]:
    """Load a BLIP captioner.

    Args:
        source: Folder or id on the Hub.
        dtype: Of the weights; bfloat16 halves the memory and hardly changes captions.
        device: Where it runs.

    Returns:
        A `transformers.BlipProcessor` and a `transformers.BlipForConditionalGeneration`.

    Raises:
        CheckpointError: It cannot be had, or is a model of another kind.
    """
    # Slow to import, and not needed to read captions.
    from transformers import AutoConfig, BlipForConditionalGeneration, BlipProcessor

    try:
        config = AutoConfig.from_pretrained(source)
        if config.model_type != "blip":
            raise CheckpointError(f"{source} is a model of the kind {config.model_type}, expected blip")
        processor = BlipProcessor.from_pretrained(source)
        model: Any = BlipForConditionalGeneration.from_pretrained(source, dtype=dtype)
    except (OSError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"The captioner {source} cannot be loaded: {error}. Give the folder of a BLIP captioner, or an "
            "id while the Hub can be reached."
        ) from error
    return processor, model.to(device).eval()


@torch.inference_mode()
def generate_captions(
    processor: Any,
    model: Any,
    pixel_values: torch.Tensor,
    *,
    beginning: str = "",
    max_new_tokens: int = 30,
    num_beams: int = 3,
) -> list[str]:
    """Write a caption for each picture.

    Args:
        processor: As `load_captioner` returns it.
        model: As `load_captioner` returns it.
        pixel_values: Pictures as `prepare_picture` makes them, `(B, 3, h, w)`.
        beginning: What every caption begins with, as "a photograph of"; empty = the model begins.
        max_new_tokens: Length of the longest caption.
        num_beams: Width of the beam search; 1 is greedy.

    Returns:
        One line of text a picture.
    """
    inputs = {"pixel_values": pixel_values.to(model.device, model.dtype)}
    if beginning:
        tokens = processor.tokenizer([beginning] * len(pixel_values), return_tensors="pt")
        inputs |= {name: tokens[name].to(model.device) for name in ("input_ids", "attention_mask")}
    tokens = model.generate(**inputs, max_new_tokens=max_new_tokens, num_beams=num_beams, do_sample=False)
    return [" ".join(text.split()) for text in processor.batch_decode(tokens, skip_special_tokens=True)]


def prepare_picture(processor: Any, picture: Image.Image) -> torch.Tensor:
    """Make the input of a captioner from an RGB picture, `(3, h, w)`."""
    return processor.image_processor(images=picture, return_tensors="pt")["pixel_values"][0]


def picture_key(picture: Source, root: Path) -> str:
    """Name a photograph by its path in the data set at `root`.

    Example:
        >>> picture_key(Path("/data/open_images/train/000a.jpg"), Path("/data/open_images"))
        'train/000a.jpg'
    """
    if isinstance(picture, ArchiveMember):
        return f"{picture_key(picture.archive, root)}/{picture.member}"
    if isinstance(picture, Path):
        return (picture.relative_to(root) if picture.is_relative_to(root) else picture).as_posix()
    return picture.name


def read_captions(path: Path) -> dict[str, str]:
    """Read captions by the keys of their photographs.

    Args:
        path: A file of JSON lines, or a folder of such.

    Raises:
        InputError: There are none, or a line is no caption.
    """
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise InputError(path, "holds no captions (*.jsonl)", "Make them with train/prepare_captions.py")
    captions: dict[str, str] = {}
    for file in files:
        for number, record in enumerate(read_records(file), 1):
            key, caption = record.get("image"), record.get("caption")
            if not (isinstance(key, str) and isinstance(caption, str)):
                raise InputError(f"{file}:{number}", "has not the strings `image` and `caption`")
            captions[key] = caption
    return captions


def prompts_from_captions(
    photographs: Sequence[Photograph], root: Path, captions: Mapping[str, str]
) -> list[str]:
    """Return the caption of each photograph.

    Raises:
        InputError: Some have none.
    """
    keys = [picture_key(photograph.picture, root) for photograph in photographs]
    if missing := [key for key in keys if key not in captions]:
        raise InputError(
            missing[0],
            f"and {len(missing) - 1} more of {len(keys)} photographs have no caption",
            "Run train/prepare_captions.py to the end",
        )
    return [captions[key] for key in keys]


def prompts_from_column(photographs: Sequence[Photograph], column: str) -> list[str]:
    """Return what the data set says of each photograph in a column, such as `Label` of Open Images.

    Raises:
        InputError: There is no such column.
    """
    for photograph in photographs:
        if column not in photograph.record:
            known = ", ".join(photograph.record) or "none"
            raise InputError(photograph.name, f"has no column {column}; there are {known}")
    return [photograph.record[column] for photograph in photographs]
