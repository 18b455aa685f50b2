"""iHarmony4 (Cong et al., CVPR 2020, https://arxiv.org/abs/1911.13239) and data sets in its layout.

`ROOT/SUBSET/{composite_images,masks,real_images}` with `ROOT/SUBSET/SUBSET_{train,test}.txt`, one composite a
line. The composite `X_m_k.jpg` has the mask `X_m.png` and the ground truth `X.jpg`.
"""

from pathlib import Path

from harmony_diffusion.data.sample import HarmonySample
from harmony_diffusion.errors import InputError


def read_iharmony4(root: Path, split: str = "test") -> list[HarmonySample]:
    """List the samples of a split, subset by subset in the order of the subsets' lists.

    Args:
        root: Folder that holds the subsets.
        split: `"train"` or `"test"`.

    Returns:
        One sample a line of the lists; the files are not opened.

    Raises:
        InputError: No subset, a name that is not of the form `X_m_k.ext`, or a file that is missing.
    """
    lists = sorted(root.glob(f"*/*_{split}.txt"))
    if not lists:
        raise InputError(root, f"holds no SUBSET/SUBSET_{split}.txt")
    samples = []
    for path in lists:
        folder = path.parent
        for line in path.read_text(encoding="utf-8-sig").split():
            name = Path(line).name
            parts = Path(name).stem.rsplit("_", 2)
            if len(parts) != 3:
                raise InputError(path, f"the name {name!r} is not of the form X_m_k")
            real = _with_any_suffix(folder / "real_images" / parts[0])
            mask = _with_any_suffix(folder / "masks" / f"{parts[0]}_{parts[1]}")
            composite = _with_any_suffix(folder / "composite_images" / Path(name).stem)
            samples.append(HarmonySample(Path(name).stem, folder.name, composite, mask, real))
    return samples


def _with_any_suffix(path: Path) -> Path:
    for suffix in (".jpg", ".png"):
        if (found := path.with_name(path.name + suffix)).is_file():
            return found
    raise InputError(path, "is missing, with .jpg as with .png")
