"""Evaluation protocols of published results on iHarmony4, and scoring of one image with them.

The PSNR of the same result differs by more than half a dB between protocols, so every number needs its
protocol. A protocol describes the scoring, not the input of the network. `docs/evaluation.md` lists the
presets.

Each image is scored separately, and means are taken over images. Files are resized as 8-bit images, as in all
official scripts. Two details differ from the official scripts. Some scripts add an epsilon of 1e-6 to a
squared error; here PSNR is capped at 100 dB instead. Some scripts dither masks that are not binary
(`convert("1")` of Pillow); here these masks are thresholded at half.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from PIL import Image

from harmony_diffusion.errors import InputError, SizeMismatchError
from harmony_diffusion.metrics.functional import (
    PSNR_CAP,
    SSIM_WINDOWS,
    foreground_color_error,
    ssim_map,
)

METRICS = ("mse", "psnr", "fmse", "fpsnr", "ssim", "fssim", "bmse")
COLOR_METRICS = ("fab",)  # computed if they are asked for
_PILLOW = {"pil_bilinear": Image.Resampling.BILINEAR, "pil_bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class Protocol:
    """Rules for comparing a harmonized image with the real image.

    Attributes:
        follows: The script or paper that the protocol follows.
        size: Side of the square to which images are resized, in pixels. None keeps their size.
        resize: Library and filter. Pillow's filters antialias when they shrink an image, OpenCV's do not.
        mask: `"hard"` thresholds the mask, then resizes it with nearest neighbours. `"soft"` resizes it like
            an image.
        rounding: Conversion of a float prediction to 8 bits; `"none"` keeps the float values.
        peak: Peak of PSNR: 255; `"range"`, largest minus smallest value of the prediction; or `"real"`, the
            largest value of the ground truth.
        fmse: `"masked"` is `sum(M d^2) / (3 sum(M))`. `"masked_images"` is `sum((M d)^2) / (3 sum(M))`, which
            is equal for a hard mask. `"whole"` is `sum(d^2) / (3 sum(M))` and includes background errors.
        background: Prediction outside the mask. `"kept"` does not change it. `"composite"` and `"real"`
            replace it by that image. `"ignored"` multiplies all errors by the mask.
        ssim: Window of SSIM, see `functional.ssim`.
    """

    follows: str
    size: int | None = 256
    resize: Literal["pil_bilinear", "pil_bicubic", "cv2_bilinear"] = "pil_bilinear"
    mask: Literal["hard", "soft"] = "hard"
    rounding: Literal["none", "truncate", "round"] = "none"
    peak: Literal[255, "range", "real"] = 255
    fmse: Literal["masked", "masked_images", "whole"] = "masked"
    background: Literal["kept", "composite", "real", "ignored"] = "kept"
    ssim: Literal["uniform", "gaussian"] = "uniform"


PROTOCOLS = {
    "default": Protocol("this library", mask="soft", rounding="round", ssim="gaussian"),
    "bcmi": Protocol("evaluation.py of BCMI", resize="pil_bicubic", peak="range", fmse="masked_images"),
    "dovenet": Protocol("test.py of DoveNet", rounding="truncate", peak="range"),
    "rainnet": Protocol("RainNet", rounding="truncate", fmse="whole", background="real"),
    "hdnet": Protocol("HDNet", rounding="truncate", fmse="whole", background="real"),
    "idih": Protocol("iDIH, iS2AM (SAIC)", resize="cv2_bilinear", mask="soft", peak="real"),
    "pct_net": Protocol("PCT-Net, full size", size=None, mask="soft", background="ignored", ssim="gaussian"),
    "pct_net_256": Protocol(
        "PCT-Net, DCCF at 256x256",
        resize="cv2_bilinear",
        mask="soft",
        background="ignored",
        ssim="gaussian",
    ),
    "harmonizer": Protocol("Harmonizer", peak="range", fmse="masked_images", background="composite"),
    "dht": Protocol(
        "ih_evaluation.py of D-HT and IIH",
        resize="pil_bicubic",
        rounding="round",
        fmse="masked_images",
        ssim="gaussian",
    ),
    "diffharmony": Protocol("DiffHarmony", rounding="round", fmse="masked_images", background="real"),
}


def find_protocols(names: str) -> dict[str, Protocol]:
    """Return the protocols named in a list such as `"default,idih"`, or all for `"all"`.

    Raises:
        InputError: A name is unknown or repeated.

    Example:
        >>> find_protocols("idih")["idih"].peak
        'real'
    """
    wanted = list(PROTOCOLS) if names == "all" else [name.strip() for name in names.split(",")]
    if unknown := [name for name in wanted if name not in PROTOCOLS]:
        raise InputError("protocol", f"expected {', '.join(PROTOCOLS)} or all, got {unknown[0]!r}")
    if len(set(wanted)) < len(wanted):
        raise InputError("protocol", f"names a protocol twice, got {names}")
    return {name: PROTOCOLS[name] for name in wanted}


def score(
    protocols: Sequence[Protocol],
    harmonized: np.ndarray,
    real: np.ndarray,
    mask: np.ndarray,
    composite: np.ndarray | None = None,
    metrics: Sequence[str] = METRICS,
) -> list[dict[str, float]]:
    """Score one image with several protocols. Shared steps, such as resizing, are computed once.

    Args:
        protocols: The protocols.
        harmonized: The prediction, `(h, w, 3)` uint8, or float in [0, 255], of any size.
        real: Ground truth, `(H, W, 3)` uint8.
        mask: 255 on the foreground, `(H, W)` uint8.
        composite: `(H, W, 3)` uint8. Required for protocols with `background="composite"`.
        metrics: Metrics to compute, a selection of `METRICS` and `COLOR_METRICS`.

    Returns:
        One dictionary per protocol: `foreground_ratio` in [0, 1], the mean of its mask, and the metrics on
        the scales of `functional`. Foreground metrics of an empty foreground are NaN. `bmse` is NaN if there
        is no background or it is ignored. PSNR is NaN if the peak is 0.

    Raises:
        InputError: Mask and real image differ in size, the prediction has another size and the protocol does
            not resize, an image is too small for SSIM, or the composite is missing.
    """
    if mask.shape != real.shape[:2]:
        raise SizeMismatchError("mask", f"is {_size(mask)}, real is {_size(real)}")
    images = _Images({"harmonized": harmonized, "real": real, "mask": mask, "composite": composite})
    return [_score(protocol, images, metrics) for protocol in protocols]


class _Images:
    """The images of one sample, with a cache of images computed from them."""

    def __init__(self, originals: dict[str, np.ndarray | None]) -> None:
        self.originals = originals
        self.made: dict[tuple[object, ...], np.ndarray] = {}

    def once(self, make: Callable[..., np.ndarray], *arguments: object) -> np.ndarray:
        """Return `make(self, *arguments)` and cache the result."""
        key = (make, *arguments)
        if key not in self.made:
            self.made[key] = make(self, *arguments)
        return self.made[key]

    def original(self, name: str) -> np.ndarray:
        image = self.originals[name]
        if image is None:
            raise InputError(name, "is needed, because a protocol uses its background")
        return image


def _score(protocol: Protocol, images: _Images, metrics: Sequence[str]) -> dict[str, float]:
    mask = images.once(_mask, protocol.size, protocol.resize, protocol.mask)
    real = images.once(_resized, "real", protocol.size, protocol.resize)
    harmonized = images.once(
        _prediction, protocol.size, protocol.resize, protocol.mask, protocol.rounding, protocol.background
    )
    sums = _sums(harmonized, real, mask, squared_mask=protocol.fmse == "masked_images")
    pixels = real.shape[0] * real.shape[1]
    error = sums.inside if protocol.background == "ignored" else sums.whole
    foreground_error = sums.whole if protocol.fmse == "whole" else sums.inside
    peak = _peak(protocol, harmonized, real)
    values = {"foreground_ratio": sums.area / pixels}
    values["mse"] = error / (3 * pixels)
    values["psnr"] = _decibels(values["mse"], peak)
    values["fmse"] = foreground_error / (3 * sums.area) if sums.area > 0 else math.nan
    values["fpsnr"] = _decibels(values["fmse"], peak)
    outside = 0.0 if protocol.background == "ignored" else pixels - sums.area
    values["bmse"] = (sums.whole - sums.weighted) / (3 * outside) if outside > 0 else math.nan
    if {"ssim", "fssim"} & set(metrics):
        values |= _similarity(protocol, harmonized, real, mask)
    if "fab" in metrics:
        values["fab"] = foreground_color_error(harmonized, real, mask)
    return {
        name: values[name]
        for name in ("foreground_ratio", *METRICS, *COLOR_METRICS)
        if name in ("foreground_ratio", *metrics)
    }


@dataclass(frozen=True)
class _Sums:
    """Sums over pixels and channels of d^2, M d^2 and M d^2 or (M d)^2, and the sum over pixels of M."""

    whole: float
    weighted: float
    inside: float
    area: float


def _sums(harmonized: np.ndarray, real: np.ndarray, mask: np.ndarray, *, squared_mask: bool) -> _Sums:
    if harmonized.dtype == np.uint8 and mask.dtype == np.uint8:
        # Several times as fast as float64. The sums are integers; OpenCV returns the root of some of them.
        area, inside = cv2.countNonZero(mask), 0.0
        difference = cv2.absdiff(harmonized, real)  # the masked norm of two images is ten times slower
        whole = float(round(cv2.norm(difference, cv2.NORM_L2SQR)))
        if area:
            inside = float(round(cv2.norm(difference, cv2.NORM_L2SQR, mask)))
        return _Sums(whole, inside, inside, area)
    squares = np.subtract(harmonized, real, dtype=np.float64)
    np.square(squares, out=squares)
    plane = (squares @ np.ones(3)).ravel()
    weights = (mask > 0 if mask.dtype == np.uint8 else mask).astype(np.float64).ravel()
    weighted = inside = float(plane @ weights)
    if squared_mask:
        inside = float(plane @ np.square(weights))
    return _Sums(float(plane.sum()), weighted, inside, float(weights.sum()))


def _peak(protocol: Protocol, harmonized: np.ndarray, real: np.ndarray) -> float:
    if protocol.peak == "range":
        return float(harmonized.max()) - float(harmonized.min())
    return float(real.max()) if protocol.peak == "real" else 255.0


def _decibels(squared_error: float, peak: float) -> float:
    if peak == 0 or math.isnan(squared_error):
        return math.nan
    return min(PSNR_CAP, 10 * math.log10(peak**2 / squared_error)) if squared_error > 0 else PSNR_CAP


def _similarity(
    protocol: Protocol, harmonized: np.ndarray, real: np.ndarray, mask: np.ndarray
) -> dict[str, float]:
    if protocol.background == "ignored":
        harmonized = _pasted(harmonized, real, mask)
    similarity = ssim_map(harmonized, real, protocol.ssim)
    edge = SSIM_WINDOWS[protocol.ssim] // 2
    weights = mask > 0 if mask.dtype == np.uint8 else mask.astype(np.float64)
    area = weights.sum()
    return {
        "ssim": float(similarity[edge:-edge, edge:-edge].mean()),
        "fssim": float((similarity * weights).sum() / area) if area > 0 else math.nan,
    }


def _prediction(
    images: _Images, size: int | None, resize: str, mask_kind: str, rounding: str, background: str
) -> np.ndarray:
    harmonized = images.once(_resized, "harmonized", size, resize)
    if harmonized.dtype != np.uint8 and rounding != "none":
        levels = np.rint(harmonized) if rounding == "round" else np.floor(harmonized)
        harmonized = levels.astype(np.uint8)
    if background in ("composite", "real"):
        mask = images.once(_mask, size, resize, mask_kind)
        harmonized = _pasted(harmonized, images.once(_resized, background, size, resize), mask)
    return harmonized


def _pasted(harmonized: np.ndarray, background: np.ndarray, mask: np.ndarray) -> np.ndarray:
    if mask.dtype == np.uint8:
        return cv2.copyTo(harmonized, mask, background.astype(harmonized.dtype))
    weights = mask[..., None].astype(np.float64)
    return harmonized * weights + background * (1 - weights)


def _resized(images: _Images, name: str, size: int | None, resize: str) -> np.ndarray:
    image, real = images.original(name), images.original("real")
    height, width = (size, size) if size else real.shape[:2]
    if image.shape[:2] == (height, width):
        return image
    if not size:
        raise SizeMismatchError(name, f"is {_size(image)}, real is {_size(real)}, and nothing is resized")
    if image.dtype != np.uint8:
        image = np.rint(image).astype(np.uint8)  # like reading it from an 8-bit file
    return _resize(image, size, resize)


def _mask(images: _Images, size: int | None, resize: str, kind: str) -> np.ndarray:
    """Return a binary mask as uint8 with 0 and 255, any other mask as float32 in [0, 1]."""
    plane = images.original("mask")
    if size == plane.shape[0] == plane.shape[1]:
        size = None
    hard = cv2.threshold(plane, 127, 255, cv2.THRESH_BINARY)[1]
    if kind == "hard" or (size is None and cv2.norm(plane, hard, cv2.NORM_INF) == 0):
        if size is None:
            return hard
        return np.asarray(Image.fromarray(hard).resize((size, size), Image.Resampling.NEAREST))
    soft = plane.astype(np.float32) / 255
    return soft if size is None else _resize(soft, size, resize)


def _resize(image: np.ndarray, size: int, resize: str) -> np.ndarray:
    if resize == "cv2_bilinear":
        return cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
    return np.asarray(Image.fromarray(image).resize((size, size), _PILLOW[resize]))


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"
