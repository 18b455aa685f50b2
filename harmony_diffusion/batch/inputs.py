"""What a batch works on: folders, manifests and tar shards become rows, one a result."""

import csv
import difflib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from harmony_diffusion.errors import InputError
from harmony_diffusion.paths import is_file, is_folder, resolved

PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".avif", ".gif"}
WRITTEN_SUFFIXES = PICTURE_SUFFIXES - {".gif"}
# Folders whose pictures belong together by name, as the readers of data sets know them.
_LAYOUTS = {"composite_images": ("masks", "real_images"), "composite": ("mask", "real")}
_MASK_ENDING = "_mask"
FILE_FIELDS = ("composite", "foreground", "background", "mask", "reference_mask")
_FIELDS = (*FILE_FIELDS, "strength", "scale", "at", "prompt", "output")
_SHOWN_PROBLEMS = 5
_FARTHEST = 10**9  # pixels

Row = dict[str, Any]


@dataclass(frozen=True)
class Inputs:
    """Where the rows of a batch come from.

    Attributes:
        kind: "folder", "csv", "jsonl" or "tar".
        source: The folder or file.
        root: Folder that file names are relative to.
        mask_root: Folder that the names of masks are relative to.
        suffix: Suffix of the results; None keeps that of the input.
        skip: A folder that is not searched, as the results lie there.
    """

    kind: str
    source: Path
    root: Path
    mask_root: Path
    suffix: str | None = None
    skip: Path | None = None

    def rows(self) -> Iterator[Row]:
        """Yield rows in any order: `id`, `output` and the fields of a manifest.

        Raises:
            InputError: A name, a value or a mask that cannot be used, with the number of those like it.
        """
        problems = _Problems(self.source)
        if self.kind == "tar":
            rows = _tar_rows(self)
        elif self.kind == "folder":
            rows = _folder_rows(self, problems)
        else:
            rows = _manifest_rows(self, problems)
        found = False
        try:
            for row in rows:
                found = True
                yield row
        except OSError as error:
            place = error.filename or self.source
            raise InputError(place, f"cannot be read: {error.strerror}", "Check its permissions.") from None
        problems.raise_any()
        if not found:
            raise InputError(self.source, "holds nothing to harmonize", "Give a folder with pictures.")


def find_inputs(
    source: Path,
    *,
    masks: Path | None = None,
    root: Path | None = None,
    suffix: str | None = None,
    out: Path | None = None,
) -> Inputs:
    """Find the kind of `source` and the folders that its names are relative to.

    Args:
        source: A folder of pictures or tar shards; a .csv, .jsonl or .tar file.
        masks: Folder of masks with the names of the pictures, for a folder of pictures.
        root: Folder that the names in a manifest are relative to; None = that of the manifest.
        suffix: Suffix of the results; None keeps that of each input.
        out: Folder of the results, which is not searched for inputs.

    Raises:
        InputError: Nothing of that kind, or an option that does not fit it.
    """
    if suffix is not None and suffix.lower() not in WRITTEN_SUFFIXES:
        raise InputError("suffix", f"is {suffix!r}", f"Give one of {', '.join(sorted(WRITTEN_SUFFIXES))}.")
    kind = _kind_of(source, out)
    if masks is not None:
        if kind != "folder":
            raise InputError("masks", f"is for a folder of pictures, and {source} is none")
        if not is_folder(masks):
            raise InputError(masks, "is no folder")
    if root is not None:
        if kind not in ("csv", "jsonl"):
            raise InputError("root", f"is for manifests, and {source} is none")
        if not is_folder(root):
            raise InputError(root, "is no folder")
    folder = source if is_folder(source) else source.parent
    return Inputs(kind, source, root or folder, masks or root or folder, suffix, out)


def _kind_of(source: Path, out: Path | None) -> str:
    if is_folder(source):
        try:
            return _kind_of_folder(source, out)
        except OSError as error:
            place = error.filename or source
            raise InputError(place, f"cannot be read: {error.strerror}", "Check its permissions.") from None
    if not is_file(source):
        raise InputError(source, "does not exist", "Give a folder, or a .csv, .jsonl or .tar file.")
    kinds = {".csv": "csv", ".jsonl": "jsonl", ".tar": "tar"}
    kind = kinds.get(source.suffix.lower())
    if kind is None:
        raise InputError(source, "is no folder", "Give a folder, or a .csv, .jsonl or .tar file.")
    return kind


def _kind_of_folder(source: Path, out: Path | None) -> str:
    """Return "tar" for shards, "folder" for pictures.

    Raises:
        InputError: It holds both, so that one kind would be passed over.
    """
    shard = next(_shards(source), None)
    if shard is None:
        return "folder"
    skipped = set() if out is None else {resolved(out)}
    for place, folders, names in _walk(source, skipped):
        del folders
        picture = next(
            (name for name in names if os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES), None
        )
        if picture is not None:
            shown = Path(place, picture).relative_to(source).as_posix()
            raise InputError(
                source,
                f"holds tar shards such as {shard} and pictures such as {shown}",
                "Put them into two folders.",
            )
    return "tar"


def _shards(folder: Path) -> Iterator[str]:
    return (path.name for path in folder.iterdir() if path.suffix.lower() == ".tar" and not path.is_dir())


def _walk(root: Path, skipped: set[Path]) -> Iterator[tuple[str, list[str], list[str]]]:
    """Walk through folders but those of jobs and the skipped ones.

    Raises:
        OSError: One cannot be read: its pictures would be missing.
    """

    def fail(error: OSError) -> None:
        raise error

    for place, folders, names in os.walk(root, onerror=fail):
        folders[:] = [
            name
            for name in folders
            if name != ".harmony" and not (skipped and resolved(Path(place, name)) in skipped)
        ]
        yield place, folders, names


class _Problems:
    """Counts what is wrong, and raises the first with the number of the others."""

    def __init__(self, source: Path) -> None:
        self.source, self.count = source, 0
        self.first: list[str] = []
        self.fix = "Nothing was written."

    def add(self, text: str, fix: str = "") -> None:
        self.count += 1
        if len(self.first) < _SHOWN_PROBLEMS:
            self.first.append(text)
            if fix not in self.fix:
                self.fix += f" {fix}"

    def raise_any(self) -> None:
        if self.count:
            more = f", and {self.count - len(self.first)} more" if self.count > len(self.first) else ""
            raise InputError(self.source, f"{'; '.join(self.first)}{more}", self.fix)


def check_name(name: object, field: str) -> str:
    """Return a relative path with forward slashes that stays inside its folder.

    Raises:
        ValueError: It is something else.
    """
    if not isinstance(name, str) or not name.strip("/ ."):
        raise ValueError(f"{field} is {name!r}, no name of a file")
    if "\0" in name:
        raise ValueError(f"{field} {name!r} holds a NUL character")
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        raise ValueError(f"{field} {name!r} holds characters that no file name has") from None
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:[\\/]", name):
        raise ValueError(f"{field} {name!r} is an absolute path (give names relative to --root)")
    parts = re.split(r"[/\\]", name)
    if ".." in parts:
        raise ValueError(f"{field} {name!r} leaves its folder by '..' (give names relative to --root)")
    if next(part for part in parts if part not in ("", ".")).casefold() == ".harmony":
        raise ValueError(f"{field} {name!r} lies in .harmony, the folder of the job's state")
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def _named(row: Row, name: str, suffix: str | None) -> Row:
    """Return a row with the id and the output that follow from the name of its picture."""
    stem, own = os.path.splitext(name)
    if suffix is None:
        suffix = own if own.lower() in WRITTEN_SUFFIXES else ".png"
    return {"id": stem, "output": f"{stem}{suffix}", **row}


def _tar_rows(inputs: Inputs) -> Iterator[Row]:
    if inputs.source.is_file():
        names: Iterable[str] = [inputs.source.name]
    else:
        names = _shards(inputs.source)
    for name in names:
        yield {"id": name[:-4], "output": name, "composite": name}


def _folder_rows(inputs: Inputs, problems: _Problems) -> Iterator[Row]:
    skipped = {resolved(path) for path in (inputs.skip, _separate_masks(inputs)) if path is not None}
    for place, _, names in _walk(inputs.root, skipped):
        prefix = Path(place).relative_to(inputs.root).as_posix()
        prefix = "" if prefix == "." else f"{prefix}/"
        pictures = [name for name in names if os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES]
        pairing = _pairing(inputs, Path(place), prefix, pictures)
        if pairing is None:
            continue
        pictures, masks, mask_prefix = pairing
        beside = mask_prefix == prefix and not _separate_masks(inputs)
        where = "NAME_mask.png beside it" if beside else f"{mask_prefix}NAME.png in {inputs.mask_root}"
        for name in pictures:
            mask = next((masks[key] for key in _mask_keys(name, place) if key in masks), None)
            if mask is None:
                problems.add(f"{prefix}{name} has no mask", f"The mask of {prefix}NAME.jpg is {where}.")
            elif len(mask_names := mask.split("\0")) > 1:
                problems.add(f"{prefix}{name} has {len(mask_names)} masks, {' and '.join(mask_names)}")
            else:
                row = {"composite": prefix + name, "mask": mask_prefix + mask}
                yield _named(row, prefix + name, inputs.suffix)


def _separate_masks(inputs: Inputs) -> Path | None:
    return inputs.mask_root if inputs.mask_root != inputs.root else None


def _pairing(
    inputs: Inputs, place: Path, prefix: str, pictures: list[str]
) -> tuple[list[str], dict[str, str], str] | None:
    """Return the pictures of a folder, its masks by stem, and the folder of these; None to pass over it."""
    if _separate_masks(inputs):
        folder = inputs.mask_root / prefix
        return pictures, _by_stem(os.listdir(folder) if is_folder(folder) else ()), prefix
    for composites, (masks, reals) in _LAYOUTS.items():
        if place.name in (masks, reals) and place.with_name(composites).is_dir():
            return None
        if place.name == composites and (folder := place.with_name(masks)).is_dir():
            return pictures, _by_stem(os.listdir(folder)), f"{prefix[: -len(composites) - 1]}{masks}/"
    masks_beside = [name for name in pictures if os.path.splitext(name)[0].endswith(_MASK_ENDING)]
    own = set(masks_beside)
    return [name for name in pictures if name not in own], _by_stem(masks_beside), prefix


def _by_stem(names: Iterable[str]) -> dict[str, str]:
    """Map stems to names; names that share a stem are joined by NUL."""
    found: dict[str, str] = {}
    for name in names:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in PICTURE_SUFFIXES:
            found[stem] = f"{found[stem]}\0{name}" if stem in found else name
    return found


def _mask_keys(name: str, place: str) -> Iterator[str]:
    stem = os.path.splitext(name)[0]
    yield stem
    yield stem + _MASK_ENDING
    if os.path.basename(place) == "composite_images":  # iHarmony4: the composite X_m_k has the mask X_m
        yield stem.rpartition("_")[0]


def _manifest_rows(inputs: Inputs, problems: _Problems) -> Iterator[Row]:
    read = _csv_lines if inputs.kind == "csv" else _json_lines
    for place, values in read(inputs.source, problems):
        try:
            yield _row_of(values, inputs.suffix)
        except ValueError as error:
            problems.add(f"line {place}: {error}")


def _csv_lines(path: Path, problems: _Problems) -> Iterator[tuple[int, Row]]:
    with path.open(encoding="utf-8-sig", newline="", errors="surrogateescape") as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        try:
            named = [name.strip() for name in reader.fieldnames or () if name and name.strip()]
            columns = {*named}
            if len(columns) < len(named):
                twice = sorted(name for name in columns if named.count(name) > 1)
                raise InputError(path, f"has more than one column {', '.join(twice)}", "Rename one of them.")
            if wrong := _misspelled(named):
                raise InputError(path, f"has {wrong}", "Rename the column.")
            if not ({"composite", "mask"} <= columns or {"foreground", "background"} <= columns):
                _refuse_columns(path, columns)
            for values in reader:
                if None in values:  # type: ignore[comparison-overlap]
                    problems.add(f"line {reader.line_num}: has more values than columns (put X,Y in quotes)")
                    continue
                row = {key.strip(): value for key, value in values.items() if key and value}
                yield reader.line_num, row
        except csv.Error as error:
            raise InputError(f"{path}:{reader.line_num}", f"is no CSV: {error}") from None


def _refuse_columns(path: Path, columns: set[str]) -> NoReturn:
    raise InputError(
        path,
        f"has the columns {', '.join(sorted(columns)) or '(none)'}",
        "Give a first line with composite,mask or with foreground,background.",
    )


def _json_lines(path: Path, problems: _Problems) -> Iterator[tuple[int, Row]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                values = json.loads(
                    line.decode("utf-8-sig"), parse_constant=_refuse_constant, object_pairs_hook=_single_keys
                )
            except RecursionError:
                problems.add(f"line {number}: is no JSON object, but nested too deeply")
                continue
            except ValueError as error:
                problems.add(f"line {number}: is no JSON: {error}")
                continue
            if isinstance(values, dict):
                if wrong := _misspelled(values):
                    problems.add(f"line {number}: has {wrong}")
                    continue
                yield number, {key: value for key, value in values.items() if value is not None}
            else:
                problems.add(f"line {number}: is no JSON object")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _single_keys(pairs: list[tuple[str, Any]]) -> Row:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [key for key, _ in pairs]
        raise ValueError(
            f"more than one key {', '.join(sorted(key for key in found if names.count(key) > 1))}"
        )
    return found


def _misspelled(names: Iterable[str]) -> str | None:
    """Return what to say of a name that is almost one of the known ones; others may be there."""
    for name in names:
        if name not in _FIELDS:
            meant = difflib.get_close_matches(name.strip().lower(), _FIELDS, 1, 0.82)
            if meant:
                return f"{name[:40]!r}, which is unknown: did you mean {meant[0]!r}?"
    return None


def _row_of(values: Row, suffix: str | None) -> Row:
    """Check a line of a manifest.

    Raises:
        ValueError: Something is missing, or has a value that cannot be used.
    """
    row: Row = {key: check_name(values[key], key) for key in FILE_FIELDS if key in values}
    if "composite" in row and "mask" in row and "foreground" not in row:
        name = row["composite"]
    elif "foreground" in row and "background" in row and "composite" not in row:
        front, back = (os.path.splitext(row[key]) for key in ("foreground", "background"))
        name = f"{front[0]}_on_{os.path.basename(back[0])}{back[1]}"
    else:
        found = ", ".join(row) or "no file"
        raise ValueError(f"has {found}: needs composite and mask, or foreground and background")
    for key, low, high in (("strength", 0.0, 1.0), ("scale", 1e-6, 1e6)):
        if key in values:
            row[key] = _number(values[key], key, low, high)
    if "at" in values:
        row["at"] = _position(values["at"])
    if prompt := values.get("prompt"):
        if not isinstance(prompt, str):
            raise ValueError(f"prompt is {_short(prompt)}, expected text")
        row["prompt"] = prompt
    if "output" in values:
        name = check_name(values["output"], "output")
        own = os.path.splitext(name)[1].lower()
        if own not in WRITTEN_SUFFIXES:
            if suffix is None:
                raise ValueError(f"output {name!r} has no suffix of a picture (or give --suffix)")
            name += suffix
        return _named(row, name, None)
    return _named(row, name, suffix)


def _number(value: object, key: str, low: float, high: float) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not low <= number <= high:
        raise ValueError(f"{key} is {_short(value)}, expected a number from {low:g} to {high:g}")
    return number


def _position(value: object) -> list[int]:
    parts: Any = value.split(",") if isinstance(value, str) else value
    try:
        if not isinstance(parts, list) or any(type(part) not in (int, str) for part in parts):
            raise ValueError
        x, y = (int(part) for part in parts)
        if max(abs(x), abs(y)) > _FARTHEST:
            raise ValueError
    except ValueError:
        raise ValueError(f"at is {_short(value)}, expected X,Y in pixels") from None
    return [x, y]


def _short(value: object) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # Python does not print integers of more than 4300 digits
        return "an enormous value"
    return text if len(text) <= 60 else f"{text[:60]}…"
