"""WebDataset tar shards, streamed with `datasets`. Nothing is unpacked to disk or kept in memory.

A shard contains the files `NAME.composite.jpg`, `NAME.mask.png` and `NAME.real.jpg` (any picture suffix),
sample after sample. Shards of photographs have no `composite`; synthetic composites are made from them.
"""

import logging
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import IterableDataset

from harmony_diffusion.data.keyed_random import sample_key
from harmony_diffusion.data.photographs import Photograph
from harmony_diffusion.data.sample import HarmonySample, Problem, report
from harmony_diffusion.data.training_set import Item, numbers_item, pair_item, photograph_item
from harmony_diffusion.errors import InputError, MissingDependencyError
from harmony_diffusion.images.sources import Content

logger = logging.getLogger(__name__)

PARTS = ("composite", "mask", "real")


class ShardSet(IterableDataset[Item]):
    """Crops of the samples in shards. Each process and each `DataLoader` worker reads its own shards.

    A crop and all later draws depend on the seed, the epoch and the name of the sample. The order depends on
    the seed, the epoch, and the number of processes and workers. A stream has no index: to resume within an
    epoch, read and discard the samples already used.

    Args:
        shards: The tar files. To keep all workers busy, give at least processes times workers files.
        size: Side of the square crops in pixels.
        seed: Seed of order and crops.
        rank: Number of this process.
        world_size: Number of processes.
        skip_bad: Skip unusable samples and count them in `skipped` of the next item. False raises an error.
        turn: Also rotate half of the crops by 90, 180 or 270 degrees.
        shuffle_buffer: Size of the buffer from which the next sample is drawn; 0 disables shuffling of
            samples and shards.
    """

    def __init__(
        self,
        shards: Sequence[Path],
        size: int,
        seed: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        skip_bad: bool = False,
        turn: bool = False,
        shuffle_buffer: int = 500,
    ) -> None:
        self.size, self.seed, self.skip_bad, self.turn, self.epoch = size, seed, skip_bad, turn, 0
        stream = _stream(shards)
        from datasets.distributed import split_dataset_by_node

        if shuffle_buffer:
            stream = stream.shuffle(seed=seed, buffer_size=shuffle_buffer)
        self.stream = split_dataset_by_node(stream, rank=rank, world_size=world_size)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self.epoch = epoch
        self.stream.set_epoch(epoch)

    def __iter__(self) -> Iterator[Item]:
        """Yield the items of `PairSet` or, for photographs, of `PhotographSet`, without `source`."""
        skipped = 0
        for example in self.stream:
            key = sample_key(self.seed, self.epoch, zlib.crc32(example["__key__"].encode()))
            try:
                sample = _sample_of(example)
                if isinstance(sample, HarmonySample):
                    item = pair_item(sample, self.size, key, turn=self.turn)
                else:
                    item = photograph_item(sample, self.size, key, turn=self.turn)
            except InputError as error:
                if not self.skip_bad:
                    raise
                logger.warning("skipped: %s", error)
                skipped += 1
                continue
            yield item | numbers_item(key=key, skipped=skipped)
            skipped = 0


def read_shards(
    shards: Sequence[Path], problems: list[Problem] | None = None
) -> Iterator[HarmonySample | Photograph]:
    """Stream the samples of shards in order. Their files are `Content` in memory.

    Args:
        shards: The tar files.
        problems: List that collects incomplete samples; they are left out. None raises the first fault.

    Raises:
        InputError: A file is missing; or a sample has no mask or no real image and `problems` is None.
        MissingDependencyError: `datasets` is not installed.
    """
    for example in _stream(shards):
        try:
            yield _sample_of(example)
        except InputError as error:
            report(error, problems)


def list_shards(root: Path) -> list[Path]:
    """Return the tar files of a folder in alphabetical order."""
    return sorted(root.glob("*.tar"))


def _stream(shards: Sequence[Path]) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingDependencyError(
            "Reading shards needs the package `datasets`. Run: pip install 'harmony-diffusion[train]'"
        ) from error
    if not shards:
        raise InputError("shards", "is empty", "Give at least one tar file")
    for shard in shards:
        _check_whole(shard)
    files = {"train": [str(path) for path in shards]}
    try:
        stream = datasets.load_dataset("webdataset", data_files=files, split="train", streaming=True)
    except ValueError as error:
        raise InputError(shards[0], f"has samples with different parts: {error}") from None
    return stream.decode(False)


def _check_whole(shard: Path) -> None:
    """Check for the two empty blocks at the end of a tar file. Readers do not report a truncated file."""
    if not shard.is_file():
        raise InputError(shard, "does not exist or is not a file")
    with shard.open("rb") as file:
        file.seek(max(0, shard.stat().st_size - 1024))
        if file.read() != bytes(1024):
            raise InputError(shard, "is truncated or not a tar file: it does not end with two empty blocks")


def _sample_of(example: Mapping[str, Any]) -> HarmonySample | Photograph:
    url, key = example["__url__"], example["__key__"]
    files: dict[str, Content] = {}
    for field, value in example.items():
        if isinstance(value, dict) and value.get("bytes") is not None:
            files[field.split(".")[0]] = Content(f"{url}/{key}.{field}", value["bytes"])
    if missing := [part for part in PARTS[1:] if part not in files]:
        raise InputError(f"{url}/{key}", f"has no {', '.join(missing)}")
    subset = Path(url).stem
    if "composite" in files:
        return HarmonySample(key, subset, files["composite"], files["mask"], files["real"])
    return Photograph(key, subset, files["real"], files["mask"])
