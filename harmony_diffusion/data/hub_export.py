"""Any data set of this library as parquet files that `datasets.load_dataset` opens, here or on the Hub."""

import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harmony_diffusion.data.hub_datasets import import_datasets
from harmony_diffusion.data.photographs import Photograph
from harmony_diffusion.data.sample import HarmonySample
from harmony_diffusion.errors import HarmonyError, InputError, OutputError
from harmony_diffusion.images.output_files import check_new_folder, output_error, write_atomically
from harmony_diffusion.images.quick_decoding import read_bytes
from harmony_diffusion.paths import exists, is_folder

BYTES_A_FILE = 400_000_000


def write_hub_dataset(
    samples: Sequence[HarmonySample | Photograph],
    folder: str | os.PathLike[str],
    split: str = "train",
    *,
    overwrite: bool = False,
    bytes_a_file: int = BYTES_A_FILE,
) -> list[Path]:
    """Write `FOLDER/data/SPLIT-….parquet`; the files of the pictures are copied as they are, not re-encoded.

    Args:
        samples: Composites, or photographs.
        folder: Folder of the data set. Other splits in it stay.
        split: Name of the part.
        overwrite: Replace files of this split.
        bytes_a_file: Size of a file, about.

    Returns:
        The files.

    Raises:
        InputError: There are no samples, both kinds, or a file is missing.
        OutputError: The split exists, or the folder cannot be written.
    """
    datasets = import_datasets()
    check_new_folder(Path(folder))
    if exists(folder) and not is_folder(folder):
        raise OutputError(folder, "is a file", "Give the name of a folder.")
    if not samples:
        raise InputError("samples", "are none")
    kinds = {type(sample) for sample in samples}
    if len(kinds) > 1:
        raise InputError("samples", "are composites and photographs", "Write them as two data sets.")
    target = Path(folder) / "data"
    old = sorted(target.glob(f"{split}-*.parquet"))
    if old and not overwrite:
        raise OutputError(old[0], "exists already", "Replace it with `overwrite` (`--overwrite`).")
    parts = ("composite", "mask", "real") if kinds == {HarmonySample} else ("mask", "real")
    text, picture = datasets.Value("string"), datasets.Image()
    features = datasets.Features(
        {"name": text, "subset": text, **dict.fromkeys(parts, picture), "prompt": text}
    )
    Path(folder).mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".harmony-", dir=folder))
    try:
        table = datasets.Dataset.from_generator(
            _rows,
            features=features,
            gen_kwargs={"samples": [list(samples)]},
            cache_dir=str(scratch / "cache"),
        )
        count = max(1, math.ceil(table.data.nbytes / bytes_a_file))
        names = [f"{split}-{index:05d}-of-{count:05d}.parquet" for index in range(count)]
        for index, name in enumerate(names):
            table.shard(count, index, contiguous=True).to_parquet(str(scratch / name))
        target.mkdir(exist_ok=True)
        for path in old:
            path.unlink()
        written = [Path(shutil.move(scratch / name, target / name)) for name in names]
        _name_splits(Path(folder))
        return written
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:  # datasets wraps the errors of its generators
            if isinstance(cause, InputError):
                raise cause from None
            cause = cause.__cause__ or cause.__context__
        if isinstance(error, OSError) and not isinstance(error, HarmonyError):
            raise output_error(folder, error) from error
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _rows(samples: list[list[HarmonySample | Photograph]]) -> Iterator[dict[str, Any]]:
    for sample in samples[0]:
        row: dict[str, Any] = {"name": sample.name, "subset": sample.subset}
        if isinstance(sample, HarmonySample):
            row |= {"composite": _cell(sample.composite), "real": _cell(sample.real), "prompt": sample.prompt}
        else:
            row |= {"real": _cell(sample.picture), "prompt": sample.record.get("label", "")}
        yield row | {"mask": _cell(sample.mask)}


def _name_splits(folder: Path) -> None:
    """Write which files belong to which split into a card without text; else `val` becomes `validation`."""
    card = folder / "README.md"
    if card.is_file() and card.read_text("utf-8").rstrip().rpartition("\n")[2] != "---":
        return
    splits = sorted({path.name.rsplit("-", 3)[0] for path in folder.glob("data/*.parquet")})
    lines = ["---", "configs:", "- config_name: default", "  data_files:"]
    for split in splits:
        lines += [f"  - split: {split}", f"    path: data/{split}-*.parquet"]
    write_atomically(card, "\n".join([*lines, "---", ""]).encode(), overwrite=True)


def _cell(source: Any) -> dict[str, Any]:
    return {"bytes": read_bytes(source), "path": Path(str(source)).name}
