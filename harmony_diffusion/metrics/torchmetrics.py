"""The metrics of this library as `torchmetrics.Metric`, for training loops and `MetricCollection`.

All take images in [0, 1], compute on levels of 0 to 255 as the literature does, and average over images: each
image counts alike, however large its foreground. Processes of a distributed run are summed by `compute`.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from harmony_diffusion.errors import InputError, MissingDependencyError
from harmony_diffusion.metrics.functional import fmse, fpsnr
from harmony_diffusion.metrics.protocols import METRICS, find_protocols, score

try:
    from torchmetrics import Metric
except ImportError as error:
    raise MissingDependencyError(
        'These classes need torchmetrics. Run `pip install "harmony-diffusion[eval]"`; '
        "`harmony_diffusion.metrics.functional` has the same metrics without it."
    ) from error


class _MeanOverImages(Metric):
    """Mean of one value an image; images without a foreground have none and do not count."""

    is_differentiable = False
    full_state_update = False
    total: Tensor
    images: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, harmonized: Tensor, real: Tensor, mask: Tensor) -> None:
        """Add a batch.

        Args:
            harmonized: Result in [0, 1], `(B, 3, H, W)`.
            real: Ground truth in [0, 1], `(B, 3, H, W)`.
            mask: 1 on the foreground, soft values weigh, `(B, 1, H, W)`.
        """
        _check_batch(harmonized, real, mask)
        values = self.score(harmonized * 255, real * 255, mask).to(self.total)
        known = ~values.isnan()
        self.total += values[known].sum()
        self.images += known.sum()

    def compute(self) -> Tensor:
        """Return the mean over all images; NaN if none has a foreground."""
        return (self.total / self.images).float()

    def score(self, harmonized: Tensor, real: Tensor, mask: Tensor) -> Tensor:
        """Return the value of each image, `(B,)`, from images in [0, 255]."""
        raise NotImplementedError


class ForegroundMSE(_MeanOverImages):
    """fMSE: mean over images of `functional.fmse`.

    Example:
        >>> metric = ForegroundMSE()
        >>> real, mask = torch.zeros(1, 3, 8, 8), torch.ones(1, 1, 8, 8)
        >>> metric.update(real + 2 / 255, real, mask)
        >>> round(metric.compute().item(), 3)
        4.0
    """

    higher_is_better = False

    def score(self, harmonized: Tensor, real: Tensor, mask: Tensor) -> Tensor:
        """Return fMSE of each image, `(B,)`."""
        return fmse(harmonized, real, mask)


class ForegroundPSNR(_MeanOverImages):
    """fPSNR: mean over images of `functional.fpsnr`, in dB; not the PSNR of the mean error."""

    higher_is_better = True

    def score(self, harmonized: Tensor, real: Tensor, mask: Tensor) -> Tensor:
        """Return fPSNR of each image, `(B,)`."""
        return fpsnr(harmonized, real, mask)


class HarmonyMetrics(Metric):
    """All metrics of one protocol, as `eval/eval_dataset.py` and `evaluate` compute them.

    Args:
        protocol: Name of one protocol of `harmony_diffusion.metrics.protocols`.
        metrics: Which of its metrics; SSIM takes most of the time.
        kwargs: As for every metric of torchmetrics.

    Raises:
        InputError: An unknown protocol or metric.
    """

    is_differentiable = False
    full_state_update = False

    def __init__(self, protocol: str = "default", metrics: Sequence[str] = METRICS, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        found = find_protocols(protocol)
        if len(found) != 1:
            raise InputError("protocol", f"{protocol!r} names several", "Make one metric for each.")
        if unknown := [name for name in metrics if name not in METRICS]:
            raise InputError("metrics", f"{unknown[0]!r} is none of {', '.join(METRICS)}")
        (self.protocol,) = found.values()
        self.metrics = tuple(metrics)
        for name in self.metrics:
            for kind in ("total", "images"):
                zero = torch.zeros((), dtype=torch.float64)
                self.add_state(f"{name}_{kind}", zero, dist_reduce_fx="sum")

    def update(self, harmonized: Tensor, real: Tensor, mask: Tensor, composite: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            harmonized: Result in [0, 1], `(B, 3, H, W)`.
            real: Ground truth in [0, 1], `(B, 3, H, W)`.
            mask: 1 on the foreground, `(B, 1, H, W)`.
            composite: `(B, 3, H, W)`; for protocols that take its background.
        """
        _check_batch(harmonized, real, mask, composite)
        levels = (harmonized.detach().float().clamp(0, 1) * 255).permute(0, 2, 3, 1).cpu().numpy()
        real, mask = _to_uint8(real), _to_uint8(mask)
        others = None if composite is None else _to_uint8(composite)
        for index, image in enumerate(levels):
            other = None if others is None else others[index].numpy()
            (values,) = score(
                [self.protocol], image, real[index].numpy(), mask[index, ..., 0].numpy(), other, self.metrics
            )
            for name in self.metrics:
                if not math.isnan(values[name]):
                    getattr(self, f"{name}_total").add_(values[name])
                    getattr(self, f"{name}_images").add_(1)

    def compute(self) -> dict[str, Tensor]:
        """Return the mean of each metric over the images that have it; NaN if none has."""
        return {
            name: (getattr(self, f"{name}_total") / getattr(self, f"{name}_images")).float()
            for name in self.metrics
        }


def _check_batch(harmonized: Tensor, real: Tensor, mask: Tensor, composite: Tensor | None = None) -> None:
    """Check shapes, and that the given images lie in [0, 1]; a prediction may lie outside.

    Raises:
        InputError: What does not fit.
    """
    if harmonized.ndim != 4 or harmonized.shape[1] != 3:
        raise InputError("harmonized", f"must be (B, 3, H, W), got {tuple(harmonized.shape)}")
    count, _, height, width = harmonized.shape
    given = {"harmonized": (harmonized, 3), "real": (real, 3), "mask": (mask, 1)}
    if composite is not None:
        given["composite"] = (composite, 3)
    for name, (image, channels) in given.items():
        expected = (count, channels, height, width)
        if tuple(image.shape) != expected:
            raise InputError(name, f"must be {expected} like `harmonized`, got {tuple(image.shape)}")
        if not image.is_floating_point() or not image.isfinite().all():
            found = "NaN or infinite ones" if image.is_floating_point() else str(image.dtype)
            raise InputError(name, f"must be finite floating-point values, got {found}")
        if name != "harmonized" and image.numel() and not (image.min() >= 0 and image.max() <= 1):
            found = f"{image.min().item():g} to {image.max().item():g}"
            raise InputError(name, f"must lie in [0, 1], got {found}", "Divide by 255.")


def _to_uint8(image: Tensor) -> Tensor:
    """Return `(B, H, W, C)` uint8 of an image in [0, 1], `(B, C, H, W)`."""
    return (image.detach().float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().contiguous()
