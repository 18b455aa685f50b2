"""Samples as plain folders, and as lines of JSON."""

import json
from pathlib import Path
from typing import Any

from harmony_diffusion.data.iharmony4 import SUFFIXES, with_any_suffix
from harmony_diffusion.data.sample import HarmonySample, Problem, report, report_duplicate
from harmony_diffusion.errors import InputError

FOLDERS = ("composite", "mask", "real")


def read_folders(root: Path, problems: list[Problem] | None = None) -> list[HarmonySample]:
    """List the samples of `ROOT/composite`, `ROOT/mask` and `ROOT/real`, matched by file name.

    Args:
        root: Folder with the three folders. Suffixes of matching files may differ.
        problems: List that collects faults; faulty samples are left out. None raises the first fault.

    Returns:
        The samples in alphabetical order. The files are not opened.

    Raises:
        InputError: A folder is missing or empty, or a file is missing and `problems` is None.
    """
    if missing := [name for name in FOLDERS if not (root / name).is_dir()]:
        raise InputError(root, f"holds no folder {', '.join(missing)}")
    samples: list[HarmonySample] = []
    for path in sorted((root / "composite").iterdir()):
        if path.suffix.lower() not in SUFFIXES:
            continue
        try:
            mask, real = (with_any_suffix(root / name / path.stem) for name in FOLDERS[1:])
            samples.append(HarmonySample(path.stem, root.name, path, mask, real))
        except InputError as error:
            report(error, problems)
    if not samples and not problems:
        raise InputError(root / "composite", f"holds no file {' '.join(SUFFIXES)}")
    return samples


def read_json_lines(path: Path, problems: list[Problem] | None = None) -> list[HarmonySample]:
    """List samples from a file with one JSON object per line.

    Required keys: `composite`, `mask` and `real`, paths relative to the folder of the file. Optional keys:
    `name` (default: the stem of `composite`), `subset` (default: the stem of the file) and `prompt`.

    Args:
        path: The file, in UTF-8.
        problems: List that collects faults; faulty lines are left out. None raises the first fault.

    Returns:
        One sample per line. The files are not opened.

    Raises:
        InputError: The file does not exist; or, when `problems` is None, a line is not such an object or a
            file in it is missing.
    """
    if not path.is_file():
        raise InputError(path, "does not exist or is not a file")
    samples: dict[tuple[Any, ...], HarmonySample] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            sample = _sample_of_line(path, place, line)
        except InputError as error:
            report(error, problems)
            continue
        files = (sample.composite, sample.mask, sample.real)
        if files in samples:
            report_duplicate(place, f"{sample.name} is already listed", problems)
        samples.setdefault(files, sample)
    return list(samples.values())


def _sample_of_line(path: Path, place: str, line: str) -> HarmonySample:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(place, f"is not JSON: {error}") from None
    if not isinstance(entry, dict) or not all(isinstance(entry.get(name), str) for name in FOLDERS):
        raise InputError(place, f"is not a JSON object with the strings {', '.join(FOLDERS)}")
    composite, mask, real = (path.parent / entry[name] for name in FOLDERS)
    for file in (composite, mask, real):
        if not file.is_file():
            raise InputError(file, "is missing")
    texts = {key: str(entry.get(key) or "") for key in ("name", "subset", "prompt")}
    name, subset = texts["name"] or composite.stem, texts["subset"] or path.stem
    return HarmonySample(name, subset, composite, mask, real, texts["prompt"])
