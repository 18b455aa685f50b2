"""Captions of photographs: BLIP writes them, JSON lines store them, training uses them as prompts.

Li et al., "BLIP: Bootstrapping Language-Image Pre-training", ICML 2022. A folder of captions contains
`*.jsonl` files with one object per line:
`{"image": "train/000a1249af2bc5f0.jpg", "caption": "a cat on a sofa"}`.
`image` is the path of the photograph relative to its data set. A caption of one foreground alone also has
`mask`, the path of its mask. `train/prepare_captions.py` writes these folders.
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
        source: Local folder, or id on the Hub.
        dtype: Type of the weights. bfloat16 halves the memory and hardly changes the captions.
        device: Device of the model.

    Returns:
        A `transformers.BlipProcessor` and a `transformers.BlipForConditionalGeneration`.

    Raises:
        CheckpointError: The model cannot be loaded, or is not a BLIP model.
    """
    # transformers is slow to import, and reading captions does not need it.
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
            f"The captioner {source} cannot be loaded: {error}. Give the folder of a BLIP captioner, or a "
            "Hub id if the Hub is reachable."
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
    """Generate one caption per picture.

    Args:
        processor: Processor from `load_captioner`.
        model: Model from `load_captioner`.
        pixel_values: Pictures from `prepare_picture`, `(B, 3, h, w)`.
        beginning: First words of every caption, for example "a photograph of". With an empty string the model
            chooses the first words.
        max_new_tokens: Maximum length of a caption in tokens.
        num_beams: Width of the beam search. 1 is greedy search.

    Returns:
        One line of text per picture.
    """
    inputs = {"pixel_values": pixel_values.to(model.device, model.dtype)}
    if beginning:
        tokens = processor.tokenizer([beginning] * len(pixel_values), return_tensors="pt")
        inputs |= {name: tokens[name].to(model.device) for name in ("input_ids", "attention_mask")}
    tokens = model.generate(**inputs, max_new_tokens=max_new_tokens, num_beams=num_beams, do_sample=False)
    return [" ".join(text.split()) for text in processor.batch_decode(tokens, skip_special_tokens=True)]


def prepare_picture(processor: Any, picture: Image.Image) -> torch.Tensor:
    """Convert an RGB picture to the input of a captioner, `(3, h, w)`."""
    return processor.image_processor(images=picture, return_tensors="pt")["pixel_values"][0]


def picture_key(picture: Source, root: Path) -> str:
    """Return the path of a photograph relative to the data set at `root`.

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
    """Read captions into a dictionary from `picture_key` to caption.

    The key is that of the photograph, or that of the mask if the caption describes one foreground alone.

    Args:
        path: A file of JSON lines, or a folder with `*.jsonl` files.

    Raises:
        InputError: The path has no caption file, or a line is not a caption.
    """
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise InputError(path, "holds no captions (*.jsonl)", "Make them with train/prepare_captions.py")
    captions: dict[str, str] = {}
    for file in files:
        for number, record in enumerate(read_records(file), 1):
            key, caption = record.get("mask", record.get("image")), record.get("caption")
            if not (isinstance(key, str) and isinstance(caption, str)):
                raise InputError(f"{file}:{number}", "lacks the string `image` or the string `caption`")
            captions[key] = caption
    return captions


def prompts_from_captions(
    photographs: Sequence[Photograph], root: Path, captions: Mapping[str, str]
) -> list[str]:
    """Return the caption of each photograph: that of its foreground if there is one, else that of the whole.

    Raises:
        InputError: At least one photograph has no caption.
    """
    masks = [picture_key(photograph.mask, root) for photograph in photographs]
    keys = [picture_key(photograph.picture, root) for photograph in photographs]
    keys = [mask if mask in captions else key for mask, key in zip(masks, keys, strict=True)]
    if missing := [key for key in keys if key not in captions]:
        raise InputError(
            missing[0],
            f"and {len(missing) - 1} more of {len(keys)} photographs have no caption",
            "Run train/prepare_captions.py to the end",
        )
    return [captions[key] for key in keys]


def prompts_from_column(photographs: Sequence[Photograph], column: str) -> list[str]:
    """Return the value of a metadata column for each photograph, for example `Label` of Open Images.

    Raises:
        InputError: The column does not exist.
    """
    for photograph in photographs:
        if column not in photograph.record:
            known = ", ".join(photograph.record) or "none"
            raise InputError(photograph.name, f"has no column {column}; there are {known}")
    return [photograph.record[column] for photograph in photographs]
