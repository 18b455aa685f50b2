"""Data sets of the library `datasets`: on the Hub, as parquet files, as `imagefolder`, or in memory.

Columns are found by name: `composite`, `mask`, `real`, and if they exist `name`, `subset` and `prompt`.
Without `composite` the rows are photographs with masks. Pictures are not decoded by `datasets`.
"""

import functools
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harmony_diffusion.data.photographs import Photograph
from harmony_diffusion.data.sample import HarmonySample
from harmony_diffusion.errors import InputError, MissingDependencyError
from harmony_diffusion.images.sources import Content, Lazy

PARTS = ("composite", "mask", "real")
TEXTS = ("name", "subset", "prompt")


def is_hub_dataset(path: Path) -> bool:
    """Return True for a folder that `datasets` reads, and for `owner/name` where there is no such folder."""
    if path.is_dir():
        files = ("dataset_dict.json", "dataset_info.json", "metadata.jsonl", "metadata.csv")
        return any((path / name).is_file() for name in files) or any(
            next(path.glob(pattern), None) for pattern in ("*.parquet", "data/*.parquet", "*/metadata.jsonl")
        )
    return (
        not path.exists()
        and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path.as_posix()) is not None
        and not path.parent.is_dir()
    )


def list_hub_dataset(
    source: Any, split: str = "train", *, columns: Mapping[str, str] | None = None
) -> list[HarmonySample | Photograph]:
    """List a data set by rows; a picture is read when it is used.

    Args:
        source: `datasets.Dataset` or `DatasetDict`, folder, or id on the Hub.
        split: Part of the data set; a `Dataset` has only one, and does not read it.
        columns: Column of each of `PARTS` and `TEXTS` that has another name.

    Raises:
        InputError: It cannot be loaded, or lacks a column.
        MissingDependencyError: `datasets` is not installed.
    """
    table, names = _open(source, split, columns, streaming=False)
    texts = [name for name in TEXTS if name in names]
    rows = zip(*(table[names[name]] for name in texts), strict=True) if texts else [()] * len(table)
    label = _label(source)
    return [
        _sample(
            dict(zip(texts, values, strict=True)),
            {
                part: Lazy(f"{label}[{row}].{names[part]}", functools.partial(_read, table, row, names[part]))
                for part in PARTS
                if part in names
            },
            f"{label}[{row}]",
            split,
        )
        for row, values in enumerate(rows)
    ]


def stream_hub_dataset(
    source: Any, split: str = "train", *, columns: Mapping[str, str] | None = None
) -> Iterator[HarmonySample | Photograph]:
    """Yield the samples one after the other, without downloading the whole data set first.

    Args:
        source: As for `list_hub_dataset`, or a `datasets.IterableDataset`.
        split: See `list_hub_dataset`.
        columns: See `list_hub_dataset`.

    Raises:
        InputError: It cannot be loaded, or lacks a column.
        MissingDependencyError: `datasets` is not installed.
    """
    table, names = _open(source, split, columns, streaming=True)
    label = _label(source)
    for row, values in enumerate(table):
        files = {
            part: Content(
                f"{label}[{row}].{names[part]}", _bytes(values[names[part]], f"{label}[{row}].{part}")
            )
            for part in PARTS
            if part in names
        }
        texts = {name: values[names[name]] for name in TEXTS if name in names}
        yield _sample(texts, files, f"{label}[{row}]", split)


def import_datasets() -> Any:
    """Import `datasets`.

    Raises:
        MissingDependencyError: It is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingDependencyError(
            'This data set needs the package datasets. Run `pip install "harmony-diffusion[train]"`.'
        ) from error
    return datasets


def _open(
    source: Any, split: str, columns: Mapping[str, str] | None, *, streaming: bool
) -> tuple[Any, dict[str, str]]:
    """Return the table with undecoded pictures, and the column of each part that exists."""
    datasets = import_datasets()
    table = source
    if isinstance(source, str | os.PathLike):
        table = _load(datasets, os.fspath(source), split, streaming)
    if isinstance(table, datasets.DatasetDict | datasets.IterableDatasetDict):
        if split not in table:
            raise InputError(_label(source), f"has no split {split!r}", f"It has {', '.join(table)}.")
        table = table[split]
    if not isinstance(table, datasets.Dataset | datasets.IterableDataset):
        raise InputError("source", f"is a {type(table).__name__}", "Give a datasets.Dataset, folder or id.")
    if not streaming and isinstance(table, datasets.IterableDataset):
        raise InputError("source", "is an IterableDataset, which has no rows", "Use `stream_hub_dataset`.")
    columns = dict(columns or {})
    if unknown := set(columns) - {*PARTS, *TEXTS}:
        raise InputError("columns", f"names {unknown.pop()!r}", f"Known: {', '.join((*PARTS, *TEXTS))}.")
    held = list(table.features or table.column_names or next(iter(table), {}))
    wanted = {name: columns.get(name, name) for name in (*PARTS, *TEXTS)}
    names = {name: column for name, column in wanted.items() if column in held}
    required = ["mask", "real", *columns]
    if missing := [wanted[name] for name in required if name not in names]:
        raise InputError(
            _label(source), f"has no column {missing[0]}", f"It has {', '.join(held)}; map them by `columns`."
        )
    for part in PARTS:
        if part in names and (
            table.features is None or isinstance(table.features[names[part]], datasets.Image)
        ):
            table = table.cast_column(names[part], datasets.Image(decode=False))
        elif part in names:
            raise InputError(_label(source), f"has no pictures in column {names[part]}")
    return table, names


def _load(datasets: Any, source: str, split: str, streaming: bool) -> Any:
    try:
        if Path(source, "dataset_dict.json").is_file() or Path(source, "state.json").is_file():
            return datasets.load_from_disk(source)
        return datasets.load_dataset(source, split=split, streaming=streaming)
    except Exception as error:  # datasets, huggingface_hub and pyarrow raise a dozen types
        reason = " ".join(str(error).split())[:300]
        raise InputError(source, f"cannot be loaded by datasets: {reason}") from error


def _sample(
    texts: Mapping[str, Any], files: Mapping[str, Any], name: str, split: str
) -> HarmonySample | Photograph:
    name, subset = str(texts.get("name") or name), str(texts.get("subset") or split)
    if "composite" not in files:
        return Photograph(name, subset, files["real"], files["mask"])
    prompt = str(texts.get("prompt") or "")
    return HarmonySample(name, subset, files["composite"], files["mask"], files["real"], prompt)


def _label(source: Any) -> str:
    return os.fspath(source) if isinstance(source, str | os.PathLike) else "dataset"


def _read(table: Any, row: int, column: str) -> bytes:
    # One column alone, or the other pictures of the row would be read too.
    return _bytes(table.select_columns([column])[row][column], f"row {row}, column {column}")


def _bytes(value: Any, place: str) -> bytes:
    if isinstance(value, dict) and value.get("bytes") is not None:
        return bytes(value["bytes"])
    if isinstance(value, dict) and value.get("path") and os.path.isfile(value["path"]):
        return Path(value["path"]).read_bytes()
    raise InputError(place, "holds no picture")
