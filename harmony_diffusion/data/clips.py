"""Find clips with ground truth: the layout of HYouTube, or folders of a real clip and its masks.

HYouTube (Lu et al., IJCAI 2022, https://github.com/bcmi/Video-Harmonization-Dataset-HYouTube) holds
`Composite/VIDEO/OBJECT/FRAME.jpg`, `Mask/VIDEO/OBJECT/FRAME.png` and `Ground-truth/VIDEO/FRAME.jpg`;
`test.txt` and `train.txt` list frames or clips. In a folder of real clips, `CLIP/FRAME.jpg` stands beside
`CLIP/FRAME.png`, its mask; the composite is the clip with the object recoloured by a fixed transform.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harmony_diffusion.errors import InputError

SUFFIXES = (".jpg", ".jpeg", ".png")
# Fixed recolourings of an object: values in [0, 1], `(H, W, 3)`.
TRANSFORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "gains": lambda values: values * np.array([1.25, 1.0, 0.72], np.float32),
    "gamma": lambda values: values**1.4 * np.array([0.85, 0.95, 1.15], np.float32),
}


@dataclass(frozen=True)
class ClipSample:
    """One clip with ground truth.

    Attributes:
        name: Unique in its data set.
        real: Frames of the ground truth.
        masks: Masks, one a frame.
        composites: Frames of the composite; None = `real` recoloured by `transform`.
        transform: A key of `TRANSFORMS`, or empty.
    """

    name: str
    real: tuple[Path, ...]
    masks: tuple[Path, ...]
    composites: tuple[Path, ...] | None
    transform: str = ""


def list_clips(root: Path, split: str = "test") -> list[ClipSample]:
    """List the clips of a folder in order of their names.

    Raises:
        InputError: No clip, or frames without their mask or ground truth.
    """
    clips = _list_hyoutube(root, split) if (root / "Composite").is_dir() else _list_real_clips(root)
    if not clips:
        raise InputError(root, "holds no clips", "See `harmony_diffusion.data.clips` for the two layouts.")
    return clips


def _list_hyoutube(root: Path, split: str) -> list[ClipSample]:
    chosen = _listed(root / f"{split}.txt")
    clips = []
    for folder in sorted(path for path in (root / "Composite").glob("*/*") if path.is_dir()):
        name = folder.relative_to(root / "Composite").as_posix()
        if chosen is not None and name not in chosen:
            continue
        frames = _pictures(folder)
        real = [_sibling(root / "Ground-truth" / folder.parent.name / frame.name) for frame in frames]
        masks = [_sibling(root / "Mask" / name / frame.name) for frame in frames]
        clips.append(ClipSample(name, tuple(real), tuple(masks), tuple(frames)))
    return clips


def _listed(path: Path) -> set[str] | None:
    """Return the clips that a list of frames or clips names, as VIDEO/OBJECT; None without a list."""
    if not path.is_file():
        return None
    names = set()
    for line in path.read_text().split("\n"):
        parts = [part for part in line.strip().split()[0].split("/") if part] if line.strip() else []
        if "Composite" in parts:
            parts = parts[parts.index("Composite") + 1 :]
        if len(parts) >= 2:
            names.add("/".join(parts[:2]))
    return names


def _list_real_clips(root: Path) -> list[ClipSample]:
    clips = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        frames = [path for path in _pictures(folder) if path.suffix.lower() != ".png"]
        if not frames:
            continue
        masks = tuple(_sibling(frame.with_suffix(".png")) for frame in frames)
        clips += [
            ClipSample(f"{folder.name}/{kind}", tuple(frames), masks, None, kind) for kind in TRANSFORMS
        ]
    return clips


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)


def _sibling(path: Path) -> Path:
    """Return a file of this name with any suffix of a picture.

    Raises:
        InputError: There is none.
    """
    for suffix in (path.suffix, *SUFFIXES):
        if path.with_suffix(suffix).is_file():
            return path.with_suffix(suffix)
    raise InputError(path, "is missing")


def recolored(real: np.ndarray, mask: np.ndarray, transform: str) -> np.ndarray:
    """Recolour the object of a real frame.

    Args:
        real: `(H, W, 3)` uint8.
        mask: `(H, W)` float32 in [0, 1].
        transform: A key of `TRANSFORMS`.

    Returns:
        `(H, W, 3)` uint8.
    """
    values = real.astype(np.float32) / 255
    changed = TRANSFORMS[transform](values).clip(0, 1)
    return np.rint(255 * (values + mask[..., None] * (changed - values))).astype(np.uint8)
