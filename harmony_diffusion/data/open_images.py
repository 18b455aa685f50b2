"""Open Images V7 segmentation (Benenson et al., CVPR 2019, https://arxiv.org/abs/1903.10830) as distributed.

A folder holds what https://storage.googleapis.com/openimages/web/download_v7.html offers:
`SPLIT-annotations-object-segmentation.csv`; the masks in `SPLIT-masks-S.zip`, one archive for each first
digit S of the image's name, or unpacked in `SPLIT-masks/` or `SPLIT-masks-S/`; the photographs in `SPLIT/` or
`SPLIT_S/` (as the tar files unpack); and, for licences and rotations, `SPLIT-images*-with-rotation.csv`.
Masks have another size than the photographs and are scaled when they are read.

`train/prepare_open_images.py` chooses masks by what `instances` measures of them and writes a manifest, the
table `manifest-SPLIT.csv` in the same folder, which `read_manifest` lists.
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
# Masks of less or more of the frame than this (by their boxes) make poor foregrounds.
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
    """List the photographs of a split with one mask each, as often as they have masks.

    Args:
        root: Folder laid out as above.
        split: `"train"`, `"validation"` or `"test"`.
        shards: First hexadecimal digits of the images' names, as numbers from 0 to 15; None for all. Two of
            the sixteen, as `[0, 1]`, are the 12.5 % of the dataset that papers train on.
        least_iou: Leave out masks whose `PredictedIoU` is lower; those without one are kept.
        single: Only images that have one mask alone.
        problems: Where missing files are appended, and left out; None to raise at the first one.

    Returns:
        The photographs, with label and licence in `record`; the files are not
        opened. Photographs that are shown rotated are left out: their masks are not.

    Raises:
        InputError: No annotations, a column that is missing, nothing left; or a file that is missing, and
            `problems` is None.
    """
    table = masks_table(root, split)
    digits = {f"{shard:x}" for shard in (range(16) if shards is None else shards)}
    # Read twice, since millions of rows need not be kept.
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
        raise InputError(table, "has no mask that fits")
    return photographs


def read_manifest(manifest: Path, problems: list[Problem] | None = None) -> list[Photograph]:
    """List the photographs of a manifest, which lies in the folder of the dataset.

    Args:
        manifest: Table with `MANIFEST_COLUMNS`; the other columns are kept in `record`.
        problems: Where missing files are appended, and left out; None to raise at the first one.

    Raises:
        InputError: A column that is missing, nothing left; or a file that is missing, and `problems` is None.
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
    """Choose photographs with exactly one instance, the same ones on every machine.

    Only the tables are read, so that the photographs may be downloaded afterwards.

    Args:
        root: Folder with `SPLIT-annotations-object-segmentation.csv`; rotated photographs are left out where
            the table of rotations is there, too.
        count: How many. Those whose mask's name has the smallest SHA-256 are taken, so that fewer are a part
            of more.
        split: As in `read_open_images`.

    Returns:
        Names as `read_open_images` gives them, in alphabetical order.

    Raises:
        InputError: No annotations, or not so many such photographs.
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
        raise InputError(table, f"has {len(names)} photographs of one instance, and {count} are asked for")
    return sorted(sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())[:count])


class MaskFiles:
    """Where the masks of a split are: in archives as distributed, or unpacked.

    Args:
        root: Folder of the dataset.
        split: Part of it.
    """

    def __init__(self, root: Path, split: str) -> None:
        self.root, self.split = root, split
        self.members: dict[str, set[str]] = {}

    def find(self, name: str) -> Source:
        """Return the file of a mask.

        Raises:
            DecodeError: The archive that should hold it is damaged.
            InputError: It is neither in a folder nor in an archive.
        """
        shard = name[:1]
        for folder in (f"{self.split}-masks", f"{self.split}-masks-{shard}"):
            if (path := self.root / folder / name).is_file():
                return path
        archive = self.root / f"{self.split}-masks-{shard}.zip"
        if shard not in self.members:
            self.members[shard] = set(_members(archive)) if archive.is_file() else set()
        if name not in self.members[shard]:
            raise InputError(self.root / f"{self.split}-masks-{shard}" / name, "is missing, in the zip, too")
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
        InputError: It is in none of the folders.
    """
    for folder in (split, f"{split}_{image[:1]}"):
        if (path := root / folder / f"{image}.jpg").is_file():
            return path
    raise InputError(root / split / f"{image}.jpg", "is missing")
