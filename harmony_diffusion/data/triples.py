"""Composites with ground truth in whatever folders a data set comes: ccHarmony, RealHM, HVIDIT, one's own.

A file says what it is by a word of `ROLES`: the name of a folder above it (`ROOT/masks/7.png`), its own name
(`ROOT/7/mask.png`), or the end of its name (`ROOT/7_mask.png`). What is left of its path names the sample. A
mask or a real that serves several composites has the name of the composite less its last parts, as in
iHarmony4: `X_m_k` goes with mask `X_m` and real `X`. A list (`ROOT/test.txt`, `ROOT/NAME_test.txt`) or a
folder (`ROOT/test/…`) of the split's name restricts the samples.
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
# Files that are looked at before a folder is said to hold no triples.
_LOOKED_AT = 2000


def has_triples(root: Path) -> bool:
    """Say whether a folder, down to its grandchildren, holds pictures of all three roles."""
    files = chain(root.glob("*"), root.glob("*/*"), root.glob("*/*/*"))
    found = (_role_and_key(root, path) for path in islice(files, _LOOKED_AT))
    roles: set[str] = set()
    for entry in found:
        roles |= {entry[0]} if entry else set()
        if roles == {*ROLES}:
            return True
    # Where thousands of composites come first, the folders speak for the others.
    folders = chain(root.glob("*"), root.glob("*/*"))
    return {_ROLE_OF.get(path.name.lower()) for path in folders if path.is_dir()} >= {*ROLES}


def read_triples(
    root: Path, split: str = "test", problems: list[Problem] | None = None
) -> list[HarmonySample]:
    """List the samples of a split, in alphabetical order.

    Args:
        root: Folder of the data set.
        split: Restricts the samples where there is a list or a folder of this name; `"validation"` is also
            `"val"`.
        problems: Where faults are appended, and left out of the result; None to raise at the first one.

    Returns:
        The samples; subset is the first folder of the path that says neither role nor split, or the name of
        `root`. The files are not opened.

    Raises:
        InputError: No composite; or one without mask or real, two files for one part, or a line of the list
            without a composite, and `problems` is None.
    """
    files: dict[str, dict[str, Path]] = {role: {} for role in ROLES}
    for path in sorted(root.rglob("*")):
        if entry := _role_and_key(root, path):
            role, key = entry
            if key in files[role]:
                report(InputError(path, f"is the {role} that {files[role][key]} is already"), problems)
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
            root, f"holds no composite of the split {split}", f"Known words: {', '.join(_ROLE_OF)}"
        )
    return samples


def _role_and_key(root: Path, path: Path) -> tuple[str, str] | None:
    """Return what a picture is, and its path without suffix and without the word that says so."""
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
    """Return the composites in folders of the split, where there are folders of splits."""
    in_folders = {key for key in composites if {*key.split("/")[:-1]} & {*_SPLITS}}
    if not in_folders:
        return list(composites)
    return [key for key in composites if {*key.split("/")[:-1]} & names]


def _listed(root: Path, names: set[str]) -> list[str] | None:
    """Return the lines of the lists of a split; None without a list."""
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
            report(InputError(root, f"lists {line}, which is no composite"), problems)
        wanted |= {*(found or ())}
    return [key for key in keys if key in wanted]


def _sample(root: Path, key: str, files: dict[str, dict[str, Path]]) -> HarmonySample:
    def find(role: str) -> Path:
        for name in _shorter(key):
            if name in files[role]:
                return files[role][name]
        names = " or ".join(_shorter(key))
        raise InputError(files["composite"][key], f"has no {role}: none is called {names}")

    folders = [name for name in key.split("/")[:-1] if name not in _SPLITS]
    subset = folders[0] if folders else root.name
    name = key.rsplit("/", 1)[-1]
    return HarmonySample(name, subset, files["composite"][key], find("mask"), find("real"))


def _shorter(key: str) -> Iterator[str]:
    """Yield a key, and it without its last one and two parts after underscores."""
    folder, _, name = key.rpartition("/")
    for count in range(3):
        shorter = name.rsplit("_", count)
        if len(shorter) == count + 1:
            yield f"{folder}/{shorter[0]}" if folder else shorter[0]
