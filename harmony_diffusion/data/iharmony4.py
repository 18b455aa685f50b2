"""iHarmony4 (Cong et al., CVPR 2020, https://arxiv.org/abs/1911.13239) and data sets in its layout.

Files are in `ROOT/SUBSET/{composite_images,masks,real_images}`. `ROOT/SUBSET/SUBSET_{train,test}.txt` lists
one composite per line. The composite `X_m_k.jpg` has the mask `X_m.png` and the ground truth `X.jpg`. If the
subsets have no lists, `ROOT/IHD_{train,test}.txt` is read, with lines `SUBSET/composite_images/X_m_k.jpg`.
"""

from collections.abc import Iterator
from pathlib import Path

from harmony_diffusion.data.sample import HarmonySample, Problem, report, report_duplicate
from harmony_diffusion.errors import InputError

# Sample counts of the published data set.
PUBLISHED = {
    "HCOCO": {"train": 38545, "test": 4283},
    "HAdobe5k": {"train": 19437, "test": 2160},
    "HFlickr": {"train": 7449, "test": 828},
    "Hday2night": {"train": 311, "test": 133},
}
SUFFIXES = (".jpg", ".png", ".jpeg")


class OtherCount(Problem):
    """A sample count that differs from the published one. This is not a fault in a private data set."""


def read_iharmony4(
    root: Path, split: str = "test", problems: list[Problem] | None = None
) -> list[HarmonySample]:
    """List the samples of a split, subset by subset, in the order of the lists.

    Lists may begin with a byte order mark and use any line ending. A composite that is listed twice is
    returned once.

    Args:
        root: Folder that contains the subsets.
        split: `"train"` or `"test"`.
        problems: List that collects faults; faulty samples are left out. None raises the first fault and logs
            repeated lines.

    Returns:
        One sample per line of the lists. The files are not opened.

    Raises:
        InputError: There is no list; or, when `problems` is None, a name is not of the form `X_m_k.ext` or a
            file is missing.
    """
    seen: dict[tuple[str, str], str] = {}
    samples: list[HarmonySample] = []
    for place, subset, name in _lines(_lists(root, split), root, split):
        if first := seen.get((subset, name)):
            report_duplicate(place, f"{name} is already listed in {first}", problems)
            continue
        seen[subset, name] = place
        try:
            samples.append(_sample(root / subset, name, place))
        except InputError as error:
            report(error, problems)
    return samples


def count_problems(root: Path, split: str) -> list[Problem]:
    """Compare the lists of a split with the published counts and with each other.

    If the merged list `IHD_SPLIT.txt` exists, a missing published subset is a fault. A composite that is only
    in the merged list, or only in the list of its subset, is a fault too.
    """
    counts: dict[str, set[str]] = {}
    for _, subset, name in _lines(_lists(root, split), root, split):
        counts.setdefault(subset, set()).add(name)
    merged_list = root / f"IHD_{split}.txt"
    if merged_list.is_file() and {*counts} & {*PUBLISHED}:
        counts |= {subset: set() for subset in PUBLISHED if subset not in counts}
    problems: list[Problem] = [
        OtherCount(str(root / subset), f"lists {len(names)} samples for {split}, published are {expected}")
        for subset, names in counts.items()
        if (expected := PUBLISHED.get(subset, {}).get(split, len(names))) != len(names)
    ]
    if not merged_list.is_file():
        return problems
    merged = {(subset, name) for _, subset, name in _lines([merged_list], root, split)}
    own = {(subset, name) for subset, names in counts.items() for name in names}
    for names, place in ((merged - own, "lists of the subsets"), (own - merged, merged_list.name)):
        if names:
            first = "/".join(min(names))
            reason = f"{len(names)} composites are missing in the {place}, as {first}"
            problems.append(Problem(str(merged_list), reason))
    return problems


def has_iharmony4_layout(root: Path) -> bool:
    """Return True if a folder has sample lists in this layout."""
    return any((root / folder).is_dir() for folder in PUBLISHED) or any(_lists(root, "*"))


def _lists(root: Path, split: str) -> list[Path]:
    own = [path for path in sorted(root.glob(f"*/*_{split}.txt")) if path.name.startswith(path.parent.name)]
    return own or sorted(root.glob(f"IHD_{split}.txt"))


def _lines(lists: list[Path], root: Path, split: str) -> Iterator[tuple[str, str, str]]:
    """Yield place, subset and file name of each line."""
    if not lists:
        raise InputError(root, f"holds no SUBSET/SUBSET_{split}.txt and no IHD_{split}.txt")
    for path in lists:
        text = path.read_text(encoding="utf-8-sig").replace("\\", "/")
        for number, line in enumerate(text.splitlines(), 1):
            if line := line.strip():
                subset = path.parent.name if path.parent != root else line.split("/")[0]
                yield f"{path}:{number}", subset, Path(line).name


def _sample(folder: Path, name: str, place: str) -> HarmonySample:
    stem = Path(name).stem
    parts = stem.rsplit("_", 2)
    if len(parts) != 3:
        raise InputError(place, f"the name {name!r} is not of the form X_m_k")
    return HarmonySample(
        stem,
        folder.name,
        with_any_suffix(folder / "composite_images" / stem),
        with_any_suffix(folder / "masks" / f"{parts[0]}_{parts[1]}"),
        with_any_suffix(folder / "real_images" / parts[0]),
    )


def with_any_suffix(path: Path) -> Path:
    """Return the picture file whose path without suffix is `path`.

    Raises:
        InputError: No such file exists.
    """
    for suffix in SUFFIXES:
        if (found := path.with_name(path.name + suffix)).is_file():
            return found
    raise InputError(path, f"is missing, tried the suffixes {', '.join(SUFFIXES)}")
