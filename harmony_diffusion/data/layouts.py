"""Any data set by its path: which layout it has, and its samples."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harmony_diffusion.data.folders import FOLDERS, read_folders, read_json_lines
from harmony_diffusion.data.hub_datasets import is_hub_dataset, list_hub_dataset
from harmony_diffusion.data.iharmony4 import has_iharmony4_layout, read_iharmony4
from harmony_diffusion.data.open_images import read_manifest, read_open_images
from harmony_diffusion.data.photographs import Photograph, filter_photographs, read_photographs
from harmony_diffusion.data.sample import HarmonySample, Problem
from harmony_diffusion.data.triples import has_triples, read_triples
from harmony_diffusion.data.web_shards import list_shards
from harmony_diffusion.errors import InputError

LAYOUTS = (
    "photographs", "open-images", "manifest", "iharmony4", "json-lines", "shards", "folders", "triples",
    "datasets",
)  # fmt: skip


@dataclass(frozen=True)
class Listing:
    """What a data set holds: composites with ground truth, or photographs to make composites of.

    Attributes:
        layout: One of `LAYOUTS`.
        samples: Composites.
        photographs: Photographs with masks.
    """

    layout: str
    samples: list[HarmonySample] = field(default_factory=list)
    photographs: list[Photograph] = field(default_factory=list)


def detect_layout(path: Path) -> str:
    """Say which of `LAYOUTS` a path has.

    Raises:
        InputError: There is nothing, or nothing that is known.
    """
    if path.suffix == ".jsonl" and path.is_file():
        return "json-lines"
    if path.suffix == ".tar" and path.is_file():
        return "shards"
    if path.suffix == ".csv" and path.is_file():
        return "manifest"
    if is_hub_dataset(path):
        return "datasets"
    if not path.is_dir():
        raise InputError(path, "is neither a folder nor a .jsonl, .csv or .tar file")
    if (path / "index.csv").is_file():
        return "photographs"
    if any(path.glob("*-annotations-object-segmentation.csv")):
        return "open-images"
    if has_iharmony4_layout(path):
        return "iharmony4"
    if list_shards(path):
        return "shards"
    if all((path / name).is_dir() for name in FOLDERS):
        # With folders below `composite`, the generic reader is needed.
        return "triples" if not any((path / FOLDERS[0]).glob("*.*")) and has_triples(path) else "folders"
    if has_triples(path):
        return "triples"
    raise InputError(path, f"has none of the layouts {', '.join(LAYOUTS)}", "See `harmony_diffusion.data`")


def list_dataset(
    path: Path,
    split: str = "train",
    *,
    filters: Mapping[str, Sequence[str]] | None = None,
    shards: Collection[int] | None = None,
    problems: list[Problem] | None = None,
) -> Listing:
    """List a data set of any layout but tar shards, which are streamed.

    Args:
        path: Folder or file.
        split: Part of the data set; layouts without parts do not read it.
        filters: Accepted values by column, for photographs.
        shards: Which of the sixteen parts, for Open Images.
        problems: Where faults are appended, and left out; None to raise at the first one.

    Raises:
        InputError: No known layout, an option that the layout does not have, or a fault.
    """
    layout = detect_layout(path)
    if filters and layout not in ("photographs", "open-images", "manifest"):
        raise InputError(path, f"is of the layout {layout}, which cannot be filtered by columns")
    if shards is not None and layout != "open-images":
        raise InputError(path, f"is of the layout {layout}, which has no numbered shards")
    if layout == "photographs":
        return Listing(layout, photographs=read_photographs(path, split, filters, problems))
    if layout == "open-images":
        masked = read_open_images(path, split, shards, problems=problems)
        return Listing(layout, photographs=filter_photographs(masked, filters or {}, path))
    if layout == "manifest":
        listed = read_manifest(path, problems)
        return Listing(layout, photographs=filter_photographs(listed, filters or {}, path))
    if layout == "iharmony4":
        return Listing(layout, read_iharmony4(path, split, problems))
    if layout == "json-lines":
        return Listing(layout, read_json_lines(path, problems))
    if layout == "folders":
        return Listing(layout, read_folders(path, problems))
    if layout == "triples":
        return Listing(layout, read_triples(path, split, problems))
    if layout == "datasets":
        found = list_hub_dataset(path, split)
        composites = [sample for sample in found if isinstance(sample, HarmonySample)]
        return Listing(layout, composites, [sample for sample in found if isinstance(sample, Photograph)])
    raise InputError(path, "holds tar shards, which are streamed and not listed")
