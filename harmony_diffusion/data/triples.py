"""Composites with ground truth in other folder layouts: ccHarmony, RealHM, HVIDIT and private data sets.

A word of `ROLES` identifies the role of a file. The word is the name of a parent folder (`ROOT/masks/7.png`),
the file name (`ROOT/7/mask.png`) or the end of the file name (`ROOT/7_mask.png`). The rest of the path is the
name of the sample. Several composites can share a mask or a real image, as in iHarmony4: the composite
`X_m_k` uses mask `X_m` and real `X`. A list (`ROOT/test.txt`, `ROOT/NAME_test.txt`) or a folder
(`ROOT/test/…`) named after the split selects its samples.
"""

import re
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

from harmony_diffusion.data.iharmony4 import SUFFIXES
from harmony_diffusion.data.sample import HarmonySample, Problem, report
from harmony_diffusion.errors import InputError

ROLES = {
    "composite": ("composite", "composites", "composite_images", "comp", "input", "inputs"),
    "mask": ("mask", "masks", "mask_images"),
    "real": ("real", "reals", "real_images", "gt", "ground_truth", "target", "targets", "harmonized"),
}
_ROLE_OF = {word: role for role, words in ROLES.items() for word in words}
_ENDING = re.compile(rf"(?P<rest>.+)[_-](?P<word>{'|'.join(sorted(_ROLE_OF, key=len, reverse=True))})")
_SPLITS = ("train", "val", "validation", "test")
# Number of files that `has_triples` inspects before it looks only at folder names.
_LOOKED_AT = 2000


def has_triples(root: Path) -> bool:
    """Return True if a folder contains pictures of all three roles, at most two folders deep."""
    files = chain(root.glob("*"), root.glob("*/*"), root.glob("*/*/*"))
    found = (_role_and_key(root, path) for path in islice(files, _LOOKED_AT))
    roles: set[str] = set()
    for entry in found:
        roles |= {entry[0]} if entry else set()
        if roles == {*ROLES}:
            return True
    # Thousands of composites may come first; folder names then identify the other roles.
    folders = chain(root.glob("*"), root.glob("*/*"))
    return {_ROLE_OF.get(path.name.lower()) for path in folders if path.is_dir()} >= {*ROLES}


def read_triples(
    root: Path, split: str = "test", problems: list[Problem] | None = None
) -> list[HarmonySample]:
    """List the samples of a split, in alphabetical order.

    Args:
        root: Folder of the data set.
        split: Name of the split. It selects samples if a list or folder of this name exists. `"validation"`
            also matches `"val"`.
        problems: List that collects faults; faulty samples are left out. None raises the first fault.

    Returns:
        The samples. Their subset is the first folder of the path that is neither a role nor a split, or the
        name of `root`. The files are not opened.

    Raises:
        InputError: There is no composite; or, when `problems` is None, a composite has no mask or no real
            image, two files have the same role and name, or a line of the list names no composite.
    """
    files: dict[str, dict[str, Path]] = {role: {} for role in ROLES}
    for path in sorted(root.rglob("*")):
        if entry := _role_and_key(root, path):
            role, key = entry
            if key in files[role]:
                report(
                    InputError(path, f"has the same role ({role}) and name as {files[role][key]}"), problems
                )
            files[role].setdefault(key, path)
    names = {split, "val"} if split == "validation" else {split}
    keys = _keys_of_split(files["composite"], names)
    if (listed := _listed(root, names)) is not None:
        keys = _listed_keys(root, keys, listed, problems)
    samples = []
    for key in keys:
        try:
            samples.append(_sample(root, key, files))
        except InputError as error:
            report(error, problems)
    if not samples and not problems:
        raise InputError(
            root,
            f"holds no composite of the split {split}",
            f"Name folders or files with these words: {', '.join(_ROLE_OF)}",
        )
    return samples


def _role_and_key(root: Path, path: Path) -> tuple[str, str] | None:
    """Return the role of a picture, and its path without suffix and role word; None if it has no role."""
    if path.suffix.lower() not in SUFFIXES:
        return None
    parts = [*path.relative_to(root).parts[:-1], path.stem]
    for place in range(len(parts) - 1):
        if role := _ROLE_OF.get(parts[place].lower()):
            return role, "/".join(parts[:place] + parts[place + 1 :])
    if (role := _ROLE_OF.get(parts[-1].lower())) and len(parts) > 1:
        return role, "/".join(parts[:-1])
    if match := _ENDING.fullmatch(parts[-1].lower()):
        return _ROLE_OF[match["word"]], "/".join([*parts[:-1], parts[-1][: len(match["rest"])]])
    return None


def _keys_of_split(composites: dict[str, Path], names: set[str]) -> list[str]:
    """Return the composites in the folders of the split, or all composites if no split has a folder."""
    in_folders = {key for key in composites if {*key.split("/")[:-1]} & {*_SPLITS}}
    if not in_folders:
        return list(composites)
    return [key for key in composites if {*key.split("/")[:-1]} & names]


def _listed(root: Path, names: set[str]) -> list[str] | None:
    """Return the lines of the lists of a split, or None if there is no list."""
    lists = [path for name in sorted(names) for path in sorted(root.glob(f"*{name}.txt"))]
    lists = [path for path in lists if re.fullmatch(rf"(.*[_-])?({'|'.join(names)})", path.stem)]
    if not lists:
        return None
    lines = chain.from_iterable(path.read_text(encoding="utf-8-sig").splitlines() for path in lists)
    return [line.strip().replace("\\", "/") for line in lines if line.strip()]


def _listed_keys(root: Path, keys: list[str], lines: list[str], problems: list[Problem] | None) -> list[str]:
    by_name: dict[str, list[str]] = {}
    for key in keys:
        by_name.setdefault(key.rsplit("/", 1)[-1], []).append(key)
    wanted: set[str] = set()
    for line in lines:
        path = Path(line.split()[0])
        stem = path.stem if path.suffix.lower() in SUFFIXES else path.name
        ending = _ENDING.fullmatch(stem.lower())
        found = by_name.get(stem) or (by_name.get(stem[: len(ending["rest"])]) if ending else None)
        if not found:
            report(InputError(root, f"lists {line}, which is not a composite"), problems)
        wanted |= {*(found or ())}
    return [key for key in keys if key in wanted]


def _sample(root: Path, key: str, files: dict[str, dict[str, Path]]) -> HarmonySample:
    def find(role: str) -> Path:
        for name in _shorter(key):
            if name in files[role]:
                return files[role][name]
        names = " or ".join(_shorter(key))
        raise InputError(files["composite"][key], f"has no {role}: expected a file named {names}")

    folders = [name for name in key.split("/")[:-1] if name not in _SPLITS]
    subset = folders[0] if folders else root.name
    name = key.rsplit("/", 1)[-1]
    return HarmonySample(name, subset, files["composite"][key], find("mask"), find("real"))


def _shorter(key: str) -> Iterator[str]:
    """Yield a key, then the key without its last one and last two underscore-separated parts."""
    folder, _, name = key.rpartition("/")
    for count in range(3):
        shorter = name.rsplit("_", count)
        if len(shorter) == count + 1:
            yield f"{folder}/{shorter[0]}" if folder else shorter[0]
