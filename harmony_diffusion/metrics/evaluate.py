"""Score any function that harmonizes, on the samples of a data set."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from harmony_diffusion.errors import InputError, InputTypeError, SizeMismatchError
from harmony_diffusion.images.quick_decoding import read_mask, read_picture
from harmony_diffusion.images.sources import Source
from harmony_diffusion.metrics.protocols import PROTOCOLS, score
from harmony_diffusion.metrics.score_rows import Row

PROTOCOL = "default"
_ROUNDING = 1e-4  # tolerance for outputs outside [0, 1], caused by rounding in the final blend


class Sample(Protocol):
    """The attributes of `harmony_diffusion.data.sample.HarmonySample` that this module uses."""

    @property
    def name(self) -> str:
        """Name of the composite, unique in its subset."""

    @property
    def subset(self) -> str:
        """Part of the data set."""

    @property
    def composite(self) -> Source:
        """File of the composite."""

    @property
    def mask(self) -> Source:
        """File of the mask."""

    @property
    def real(self) -> Source:
        """File of the ground truth."""


@dataclass(frozen=True)
class Evaluation:
    """Scores of one method.

    Attributes:
        rows: One row per sample, in the order of the samples.
        means: Mean of each metric over the samples that have it: a sample with an empty foreground has no
            `fmse`, `fpsnr` and `fssim`. A metric that no sample has is left out.
    """

    rows: list[Row]
    means: dict[str, float]


def evaluate(predict: Callable[[Tensor, Tensor], Tensor], samples: Iterable[Sample]) -> Evaluation:
    """Score a harmonization function with the protocol `default` of this library.

    The protocol compares 8-bit copies of 256x256 pixels; `docs/evaluation.md` describes it. Use
    `eval/eval_dataset.py` for the other protocols, and for large data sets.

    Args:
        predict: Called once per sample as `predict(composite, mask)`, with the composite `(1, 3, H, W)` and
            the mask `(1, 1, H, W)`, both float32 in [0, 1] on the CPU. Returns the harmonized image
            `(1, 3, h, w)` in [0, 1], of any size. Every model of `load_model` is such a function.
        samples: Samples, for example `harmony_diffusion.data.layouts.list_dataset(path).samples`.

    Returns:
        The rows and their means.

    Raises:
        InputError: There are no samples, a file cannot be used, sizes differ, or `predict` did not return an
            image.

    Example:
        >>> from pathlib import Path
        >>> from harmony_diffusion.data.sample import HarmonySample
        >>> picture, mask = Path("examples/composite.jpg"), Path("examples/mask.png")
        >>> sample = HarmonySample("pasted", "examples", picture, mask, picture)
        >>> evaluate(lambda composite, mask: composite, [sample]).means["psnr"]
        100.0
    """
    rows = [_score(predict, sample) for sample in samples]
    if not rows:
        raise InputError("samples", "is empty", "Give at least one sample.")
    names = dict.fromkeys(metric for row in rows for metric in row.scores)
    values = {name: [row.scores[name] for row in rows if name in row.scores] for name in names}
    return Evaluation(rows, {name: math.fsum(found) / len(found) for name, found in values.items()})


def _score(predict: Callable[[Tensor, Tensor], Tensor], sample: Sample) -> Row:
    composite, mask, real = read_picture(sample.composite), read_mask(sample.mask), read_picture(sample.real)
    for name, array in ((sample.mask, mask), (sample.real, real)):
        if array.shape[:2] != composite.shape[:2]:
            size, wanted = (f"{a.shape[1]}x{a.shape[0]}" for a in (array, composite))
            raise SizeMismatchError(name, f"is {size}, its composite is {wanted}")
    with torch.no_grad():
        image = predict(_tensor(composite), _tensor(mask[..., None]))
    harmonized = _levels(image, f"{sample.subset}/{sample.name}")
    (scores,) = score([PROTOCOLS[PROTOCOL]], harmonized, real, mask, composite)
    ratio = scores.pop("foreground_ratio")
    defined = {metric: value for metric, value in scores.items() if not math.isnan(value)}
    return Row(sample.name, sample.subset, ratio, PROTOCOL, defined)


def _tensor(array: np.ndarray) -> Tensor:
    return torch.tensor(array).permute(2, 0, 1)[None].float() / 255


def _levels(image: Tensor, name: str) -> np.ndarray:
    """Convert a prediction to `(h, w, 3)` float in [0, 255]."""
    expected = "`predict` must return a tensor (1, 3, h, w) in [0, 1]"
    if not isinstance(image, Tensor):
        raise InputTypeError(name, f"{expected}, got a {type(image).__name__}")
    if image.ndim != 4 or len(image) != 1 or image.shape[1] != 3 or not image.is_floating_point():
        raise InputError(name, f"{expected}, got {image.dtype} of shape {tuple(image.shape)}")
    if not (image.isfinite().all() and image.min() >= -_ROUNDING and image.max() <= 1 + _ROUNDING):
        raise InputError(name, f"{expected}, got values outside", "Clamp the result to [0, 1].")
    return (image[0].float().clamp(0, 1) * 255).permute(1, 2, 0).cpu().numpy()
