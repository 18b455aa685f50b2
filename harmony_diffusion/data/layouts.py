"""Layout and samples of a data set, found from its path."""

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
    """Content of a data set: composites with ground truth, or photographs for synthetic composites.

    Attributes:
        layout: One of `LAYOUTS`.
        samples: Composites; empty for a data set of photographs.
        photographs: Photographs with masks; empty for a data set of composites.
    """

    layout: str
    samples: list[HarmonySample] = field(default_factory=list)
    photographs: list[Photograph] = field(default_factory=list)


def detect_layout(path: Path) -> str:
    """Return the layout of a path, one of `LAYOUTS`.

    Raises:
        InputError: The path does not exist or has no known layout.
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
        # `read_folders` does not enter subfolders of `composite`; `read_triples` does.
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
    """List a data set of any layout except tar shards, which are streamed.

    Args:
        path: Folder or file.
        split: Part of the data set. Layouts without splits ignore it.
        filters: Accepted values by column, for photographs.
        shards: Numbers of the sixteen parts to list, for Open Images.
        problems: List that collects faults; faulty samples are left out. None raises the first fault.

    Raises:
        InputError: The layout is unknown, the layout does not support an option, or there is a fault and
            `problems` is None.
    """
    layout = detect_layout(path)
    if filters and layout not in ("photographs", "open-images", "manifest"):
        raise InputError(
            path, f"has the layout {layout}, which cannot be filtered by column", "Omit the filters"
        )
    if shards is not None and layout != "open-images":
        raise InputError(path, f"has the layout {layout}, which has no numbered shards", "Omit the shards")
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
    raise InputError(
        path, "contains tar shards, which cannot be listed", "Stream them with `web_shards.read_shards`"
    )
