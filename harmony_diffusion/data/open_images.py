"""Open Images V7 segmentation (Benenson et al., CVPR 2019, https://arxiv.org/abs/1903.10830) as distributed.

The folder contains files from https://storage.googleapis.com/openimages/web/download_v7.html:

- `SPLIT-annotations-object-segmentation.csv`;
- masks in `SPLIT-masks-S.zip`, one archive for each first hexadecimal digit S of the image name, or unpacked
  in `SPLIT-masks/` or `SPLIT-masks-S/`;
- photographs in `SPLIT/`, or in `SPLIT_S/` as the tar files unpack;
- `SPLIT-images*-with-rotation.csv` for licences and rotations.

The size of a mask differs from the size of its photograph. The mask is scaled when it is read.
`train/prepare_open_images.py` selects masks by the measures in `instances` and writes the table
`manifest-SPLIT.csv` in the same folder. `read_manifest` lists it.
"""

import hashlib
import zipfile
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from harmony_diffusion.data.open_images_tables import (
    MASK_COLUMNS,
    box_of,
    masks_table,
    read_image_records,
    read_table,
)
from harmony_diffusion.data.photographs import Photograph
from harmony_diffusion.data.sample import Problem, report
from harmony_diffusion.errors import DecodeError, InputError
from harmony_diffusion.images.sources import ArchiveMember, Source

MANIFEST_COLUMNS = ("Split", "ImageID", "MaskPath", "LabelName")
# Accepted area of the box of a mask, as a share of the image. Other masks make poor foregrounds.
BOX_AREA = (0.01, 0.9)


def read_open_images(
    root: Path,
    split: str = "train",
    shards: Collection[int] | None = None,
    *,
    least_iou: float = 0.0,
    single: bool = False,
    problems: list[Problem] | None = None,
) -> list[Photograph]:
    """List the photographs of a split, one entry per mask.

    Args:
        root: Folder with the files listed in the module docstring.
        split: `"train"`, `"validation"` or `"test"`.
        shards: First hexadecimal digits of the image names, as numbers from 0 to 15. None selects all. Two of
            the sixteen, for example `[0, 1]`, are the 12.5 % of the data set that papers train on.
        least_iou: Smallest `PredictedIoU`. Masks without this value are kept.
        single: Select only images that have exactly one mask.
        problems: List that collects missing files; their entries are left out. None raises the first fault.

    Returns:
        The photographs, with label and licence in `record`. The files are not opened. Rotated photographs are
        left out, because their masks are not rotated.

    Raises:
        InputError: The annotations or a column are missing, no mask is left, or a file is missing and
            `problems` is None.
    """
    table = masks_table(root, split)
    digits = {f"{shard:x}" for shard in (range(16) if shards is None else shards)}
    # The table is read twice, so that its millions of rows are not kept in memory.
    per_image = Counter(
        row["ImageID"] for row in read_table(table, MASK_COLUMNS) if row["ImageID"][:1] in digits
    )
    licences = read_image_records(root, split, per_image)
    masks = MaskFiles(root, split)
    photographs: list[Photograph] = []
    for row in read_table(table, MASK_COLUMNS):
        licence = licences.get(row["ImageID"], {})
        if row["ImageID"] not in per_image or not _wanted(row, licence, least_iou):
            continue
        if single and per_image[row["ImageID"]] > 1:
            continue
        try:
            picture, mask = find_photograph(root, split, row["ImageID"]), masks.find(row["MaskPath"])
        except InputError as error:
            report(error, problems)
            continue
        name, label = Path(row["MaskPath"]).stem, row["LabelName"]
        photographs.append(Photograph(name, label, picture, mask, {**licence, "LabelName": label}, True))
    if not photographs and not problems:
        raise InputError(table, "has no mask that fits the options")
    return photographs


def read_manifest(manifest: Path, problems: list[Problem] | None = None) -> list[Photograph]:
    """List the photographs of a manifest.

    Args:
        manifest: Table with `MANIFEST_COLUMNS`, in the folder of the data set. All columns are kept in
            `record`.
        problems: List that collects missing files; their entries are left out. None raises the first fault.

    Raises:
        InputError: A column is missing, the manifest lists no mask, or a file is missing and `problems` is
            None.
    """
    root = manifest.parent
    masks: dict[str, MaskFiles] = {}
    photographs: list[Photograph] = []
    for row in read_table(manifest, MANIFEST_COLUMNS):
        files = masks.setdefault(row["Split"], MaskFiles(root, row["Split"]))
        try:
            picture = find_photograph(root, row["Split"], row["ImageID"])
            mask = files.find(row["MaskPath"])
        except InputError as error:
            report(error, problems)
            continue
        photographs.append(
            Photograph(Path(row["MaskPath"]).stem, row["LabelName"], picture, mask, row, resize_mask=True)
        )
    if not photographs and not problems:
        raise InputError(manifest, "lists no mask")
    return photographs


def select_open_images(root: Path, count: int = 2000, split: str = "test") -> list[str]:
    """Select photographs with exactly one instance. The selection is the same on every machine.

    Only the tables are read. The photographs can be downloaded afterwards.

    Args:
        root: Folder with `SPLIT-annotations-object-segmentation.csv`. Rotated photographs are left out if the
            table of rotations is in the folder.
        count: Number of photographs. The masks with the smallest SHA-256 of their name are selected, so that
            a smaller selection is a subset of a larger one.
        split: As in `read_open_images`.

    Returns:
        Names as in `read_open_images`, in alphabetical order.

    Raises:
        InputError: The annotations are missing, or fewer than `count` photographs qualify.
    """
    table = masks_table(root, split)
    per_image = Counter(row["ImageID"] for row in read_table(table, MASK_COLUMNS))
    records = read_image_records(root, split, per_image)
    names = [
        Path(row["MaskPath"]).stem
        for row in read_table(table, MASK_COLUMNS)
        if per_image[row["ImageID"]] == 1 and _wanted(row, records.get(row["ImageID"], {}), 0.0)
    ]
    if not 1 <= count <= len(names):
        raise InputError(table, f"has {len(names)} photographs with one instance, got count={count}")
    return sorted(sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())[:count])


class MaskFiles:
    """Mask files of a split, in zip archives as distributed or unpacked.

    Args:
        root: Folder of the data set.
        split: `"train"`, `"validation"` or `"test"`.
    """

    def __init__(self, root: Path, split: str) -> None:
        self.root, self.split = root, split
        self.members: dict[str, set[str]] = {}

    def find(self, name: str) -> Source:
        """Return the file of a mask.

        Raises:
            DecodeError: The archive of the mask is damaged.
            InputError: The mask is neither in a folder nor in an archive.
        """
        shard = name[:1]
        for folder in (f"{self.split}-masks", f"{self.split}-masks-{shard}"):
            if (path := self.root / folder / name).is_file():
                return path
        archive = self.root / f"{self.split}-masks-{shard}.zip"
        if shard not in self.members:
            self.members[shard] = set(_members(archive)) if archive.is_file() else set()
        if name not in self.members[shard]:
            raise InputError(
                self.root / f"{self.split}-masks-{shard}" / name, f"is missing, also from {archive.name}"
            )
        return ArchiveMember(archive, name)


def _members(archive: Path) -> list[str]:
    try:
        with zipfile.ZipFile(archive) as file:
            return file.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise DecodeError(archive, f"cannot be read: {error}") from None


def _wanted(row: dict[str, str], licence: dict[str, str], least_iou: float) -> bool:
    if row.get("PredictedIoU") and float(row["PredictedIoU"]) < least_iou:
        return False
    if float(licence.get("Rotation") or 0) != 0:
        return False
    return BOX_AREA[0] <= box_of(row).area <= BOX_AREA[1]


def find_photograph(root: Path, split: str, image: str) -> Path:
    """Return the file of a photograph.

    Raises:
        InputError: The photograph is neither in `SPLIT/` nor in `SPLIT_S/`.
    """
    for folder in (split, f"{split}_{image[:1]}"):
        if (path := root / folder / f"{image}.jpg").is_file():
            return path
    raise InputError(root / split / f"{image}.jpg", "is missing")
