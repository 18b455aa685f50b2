"""FID and KID between folders of pictures, and for every variant of a diffusion result."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harmony_diffusion.boxes import bounding_box
from harmony_diffusion.errors import InputError, MaskError
from harmony_diffusion.images.masks import load_mask
from harmony_diffusion.images.output_files import write_atomically
from harmony_diffusion.images.picture import load_picture
from harmony_diffusion.metrics.fid import Extractor, SetDistance, compare_features, extract_features
from harmony_diffusion.reports.diffusion_tables import PASTED, RAW

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}


def list_pictures(folder: Path) -> list[Path]:
    """List the pictures in a folder and its subfolders, sorted.

    Raises:
        InputError: The folder does not exist or has no picture.
    """
    if not folder.is_dir():
        raise InputError(folder, "does not exist or is not a folder")
    if not (paths := sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)):
        raise InputError(folder, "holds no picture")
    return paths


def read_pictures(
    paths: Sequence[Path], folder: Path | None = None, masks: Path | None = None
) -> Iterator[np.ndarray]:
    """Yield pictures, `(H, W, 3)` uint8, one at a time. With masks, crop to the box of the foreground.

    Args:
        paths: Files of the pictures.
        folder: Folder of the pictures. Paths relative to it give the names of the masks.
        masks: Folder of masks with the same names as the pictures.

    Raises:
        InputError: A picture has no mask.
        MaskError: A mask has no foreground.
    """
    of_name = {p.relative_to(masks).with_suffix(""): p for p in list_pictures(masks)} if masks else {}
    for path in paths:
        pixels = np.asarray(load_picture(path).to_pil().convert("RGB"))
        if masks:
            if (name := path.relative_to(folder or masks).with_suffix("")) not in of_name:
                raise InputError(masks, f"has no mask {name}")
            mask = load_mask(of_name[name], size=(pixels.shape[0], pixels.shape[1]))
            box = bounding_box(mask > 0.5)
            if box is None:
                raise MaskError(of_name[name], "has no foreground", "Remove that picture.")
            pixels = pixels[box]
        yield pixels


def variant_distances(
    folder: Path,
    extractor: Extractor,
    name: str,
    *,
    size: int = 299,
    force: bool = False,
    device: torch.device | str = "cpu",
) -> dict[str, SetDistance]:
    """Compute the distances of results of `eval_controlnets.py`: {raw, pasted} x {whole image, foreground}.

    Args:
        folder: Folder with the folders `raw`, `pasted`, `real` and `masks`.
        extractor: Feature network, on `device`.
        name: Name of the feature network, for the record.
        size: Side of the resized images in pixels.
        force: Accept too few images, see `compare_features`.
        device: Device of the feature network.

    Returns:
        Distances by variant: `raw`, `pasted`, `raw_foreground`, `pasted_foreground`.

    Raises:
        InputError: Pictures are missing or too few.
    """
    distances = {}
    for suffix, masks in (("", None), ("_foreground", folder / "masks")):
        features = {}
        for kind in ("real", RAW, PASTED):
            paths = list_pictures(folder / kind)
            images = read_pictures(paths, folder / kind, masks)
            features[kind] = extract_features(images, extractor, size=size, device=device)
        for kind in (RAW, PASTED):
            distances[kind + suffix] = compare_features(
                features[kind], features["real"], extractor=name, resize="clean", size=size, force=force
            )
    return distances


def write_distance(path: Path, distance: SetDistance, *, foreground: bool, **others: Any) -> None:
    """Write a distance as JSON, with all settings of its computation.

    Args:
        path: Output file. An existing file is replaced.
        distance: Distance between two folders.
        foreground: True if only foregrounds were compared.
        others: Further measures to write.

    Raises:
        OutputError: The file cannot be written.
    """
    result = {"schema": 1, "foreground_only": foreground, **asdict(distance), **others}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(result, indent=1) + "\n").encode(), overwrite=True)
