"""iHarmony4 (Cong et al., CVPR 2020, https://arxiv.org/abs/1911.13239) and data sets in its layout.

`ROOT/SUBSET/{composite_images,masks,real_images}` with `ROOT/SUBSET/SUBSET_{train,test}.txt`, one composite a
line. The composite `X_m_k.jpg` has the mask `X_m.png` and the ground truth `X.jpg`. Where a data set has no
lists of subsets, `ROOT/IHD_{train,test}.txt` is read, with lines `SUBSET/composite_images/X_m_k.jpg`.
"""

from collections.abc import Iterator
from pathlib import Path

from harmony_diffusion.data.sample import HarmonySample, Problem, report, report_duplicate
from harmony_diffusion.errors import InputError

# Samples of the published data set, train and test.
PUBLISHED = {
    "HCOCO": {"train": 38545, "test": 4283},
    "HAdobe5k": {"train": 19437, "test": 2160},
    "HFlickr": {"train": 7449, "test": 828},
    "Hday2night": {"train": 311, "test": 133},
}
SUFFIXES = (".jpg", ".png", ".jpeg")


class OtherCount(Problem):
    """A count other than the published one: no fault in a data set of one's own."""


def read_iharmony4(
    root: Path, split: str = "test", problems: list[Problem] | None = None
) -> list[HarmonySample]:
    """List the samples of a split, subset by subset in the order of the subsets' lists.

    Lists may begin with a byte order mark and end their lines in any way; a composite listed twice is taken
    once.

    Args:
        root: Folder that holds the subsets.
        split: `"train"` or `"test"`.
        problems: Where faults are appended, and left out of the result; None to raise at the first one
            (and log lines that are there twice).

    Returns:
        One sample a line of the lists; the files are not opened.

    Raises:
        InputError: No list; or a name that is not of the form `X_m_k.ext`, or a file that is missing, and
            `problems` is None.
    """
    seen: dict[tuple[str, str], str] = {}
    samples: list[HarmonySample] = []
    for place, subset, name in _lines(_lists(root, split), root, split):
        if first := seen.get((subset, name)):
            report_duplicate(place, f"{name} is listed in {first} already", problems)
            continue
        seen[subset, name] = place
        try:
            samples.append(_sample(root / subset, name, place))
        except InputError as error:
            report(error, problems)
    return samples


def count_problems(root: Path, split: str) -> list[Problem]:
    """Compare the lists of a split with the published numbers, and with each other.

    A published subset that is absent is a fault where the merged list says that all of them should be there;
    so is a line of the merged list that no list of a subset has, and the other way round.
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
    """Say whether a folder holds lists of samples in this layout."""
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
    """Return the picture file that has this path but for its suffix.

    Raises:
        InputError: There is none.
    """
    for suffix in SUFFIXES:
        if (found := path.with_name(path.name + suffix)).is_file():
            return found
    raise InputError(path, f"is missing, with {', '.join(SUFFIXES[:-1])} as with {SUFFIXES[-1]}")
