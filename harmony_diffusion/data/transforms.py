"""Paired geometric transforms: the same random geometry applies to composite, mask and real."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from harmony_diffusion.errors import SizeMismatchError

CANDIDATES = 12
COARSE = 96  # approximate long side, in pixels, of the mask on which crops are checked
WHOLE_FRAMES = 0.35  # share of training samples that use the whole image


@dataclass(frozen=True)
class Geometry:
    """A crop that is resized, then mirrored, then rotated.

    Attributes:
        box: Left, top, right and bottom of the crop in source pixels; fractions are allowed.
        size: Height and width of the result, also after an odd number of quarter turns.
        mirror: Swap left and right.
        turns: Number of counter-clockwise quarter turns, applied after mirroring.
    """

    box: tuple[float, float, float, float]
    size: tuple[int, int]
    mirror: bool = False
    turns: int = 0

    def picture(self, picture: np.ndarray) -> np.ndarray:
        """Transform a picture, `(H, W, 3)` uint8, to `(*size, 3)` (bilinear with antialiasing)."""
        return self._apply(picture)

    def mask(self, mask: np.ndarray) -> np.ndarray:
        """Transform a mask, `(H, W)` uint8, to `size`. A mask with only 0 and 255 stays binary."""
        hard = not ((mask > 0) & (mask < 255)).any()
        result = self._apply(mask)
        return np.where(result >= 128, np.uint8(255), np.uint8(0)) if hard else result

    def _apply(self, array: np.ndarray) -> np.ndarray:
        height, width = self.size[::-1] if self.turns % 2 else self.size
        image = Image.fromarray(array)
        if self.box != (0, 0, image.width, image.height) or image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BILINEAR, box=self.box)
        result = np.asarray(image)
        result = result[:, ::-1] if self.mirror else result
        return np.ascontiguousarray(np.rot90(result, self.turns))


def draw_geometry(
    mask: np.ndarray,
    size: int,
    generator: np.random.Generator,
    *,
    whole: float = WHOLE_FRAMES,
    area: tuple[float, float] = (0.25, 1.0),
    ratio: tuple[float, float] = (0.005, 0.85),
    kept: float = 0.5,
    turn: bool = False,
    mirror: bool = True,
) -> Geometry:
    """Draw a random square crop that keeps enough of the foreground.

    The function draws `CANDIDATES` crops and returns the first that satisfies `ratio` and `kept`. If none
    does, it returns the whole image.

    Args:
        mask: Mask of the picture, `(H, W)` uint8, foreground above 127.
        size: Side of the result in pixels.
        generator: Source of random numbers.
        whole: Probability of the whole image, resized to a square without keeping the aspect ratio, as in
            evaluation.
        area: Smallest and largest area of a crop, as a share of the image.
        ratio: Smallest and largest share of foreground in a crop.
        kept: Smallest share of the foreground that a crop must contain.
        turn: Also rotate half of the pictures by 90, 180 or 270 degrees.
        mirror: Mirror half of the pictures.

    Returns:
        The geometry.
    """
    height, width = mask.shape
    mirrored = bool(generator.random() < 0.5) and mirror
    turns = int(generator.integers(1, 4)) if turn and generator.random() < 0.5 else 0
    take_whole = generator.random() < whole
    share = generator.uniform(*area, CANDIDATES)
    aspect = np.exp(generator.uniform(np.log(0.7), np.log(1.4), CANDIDATES))  # width over height
    position = generator.random((2, CANDIDATES))
    box = (0.0, 0.0, float(width), float(height))
    if not take_whole:
        side = np.sqrt(share * height * width)
        widths = np.minimum(side * np.sqrt(aspect), width)
        heights = np.minimum(side / np.sqrt(aspect), height)
        left, top = position[0] * (width - widths), position[1] * (height - heights)
        right, bottom = np.minimum(left + widths, width), np.minimum(top + heights, height)
        boxes = np.stack((left, top, right, bottom), 1)
        inside, total = _foreground_of(mask, boxes)
        ratios = inside / ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
        good = (inside >= kept * total) & (ratios >= ratio[0]) & (ratios <= ratio[1])
        if good.any():
            chosen = [float(edge) for edge in boxes[good.argmax()]]
            box = (chosen[0], chosen[1], chosen[2], chosen[3])
    return Geometry(box, (size, size), mirrored, turns)


def check_same_size(subject: object, first: np.ndarray, second: np.ndarray) -> None:
    """Check that two pictures of a sample, `(H, W, ...)`, have the same height and width.

    Raises:
        SizeMismatchError: The sizes differ.
    """
    if first.shape[:2] != second.shape[:2]:
        sizes = [f"{array.shape[1]}x{array.shape[0]}" for array in (second, first)]
        raise SizeMismatchError(subject, f"is {sizes[0]}, its picture is {sizes[1]}")


def _foreground_of(mask: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, float]:
    """Estimate the foreground pixels in boxes `(K, 4)` and in the whole image, on a coarse grid."""
    step = max(1, max(mask.shape) // COARSE)
    coarse = mask[step // 2 :: step, step // 2 :: step] > 127
    sums = np.zeros((coarse.shape[0] + 1, coarse.shape[1] + 1))
    sums[1:, 1:] = coarse.cumsum(0, dtype=np.float64).cumsum(1)
    edges = np.rint(boxes / step).astype(int)
    x0, x1 = edges[:, 0].clip(0, coarse.shape[1]), edges[:, 2].clip(0, coarse.shape[1])
    y0, y1 = edges[:, 1].clip(0, coarse.shape[0]), edges[:, 3].clip(0, coarse.shape[0])
    inside = sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]
    return inside * step**2, float(sums[-1, -1]) * step**2
