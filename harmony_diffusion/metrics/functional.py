"""Pixel metrics, one value per image, accumulated in float64.

Images are on the 0-255 scale, as in all published harmonization tables.

| metric | range | identical images | empty foreground |
|---|---|---|---|
| `mse`, `fmse`, `bmse` | 0 to 65,025 | 0 | `fmse` NaN (`bmse` NaN for an empty background) |
| `psnr`, `fpsnr` | up to 100 dB, 0 or more at peak 255 | 100 | `fpsnr` NaN |
| `ssim`, `fssim` | -1 to 1 | 1 | `fssim` NaN |
| `fab` | 0 to about 200 | 0 | NaN |

NaN marks a metric without pixels to average. Means leave these images out and report their number.
"""

import math

import cv2
import numpy as np
import torch
from torch import Tensor

from harmony_diffusion.errors import InputError

PSNR_CAP = 100.0
# Window side in pixels: the Gaussian (deviation 1.5) of Wang et al. (2004), and the default of scikit-image.
SSIM_WINDOWS = {"gaussian": 11, "uniform": 7}
BAND_PIXELS = 256 * 64


def mse(harmonized: Tensor, real: Tensor) -> Tensor:
    """Mean squared error over all pixels and channels.

    Args:
        harmonized: Result in [0, 255], `(B, 3, H, W)`.
        real: Ground truth in [0, 255], `(B, 3, H, W)`.

    Returns:
        `(B,)` float64.

    Example:
        >>> mse(torch.full((1, 3, 2, 2), 5.0), torch.full((1, 3, 2, 2), 3.0))
        tensor([4.], dtype=torch.float64)
    """
    _check(harmonized, real)
    return (harmonized.double() - real.double()).square().mean((1, 2, 3))


def psnr(harmonized: Tensor, real: Tensor, peak: float | Tensor = 255.0) -> Tensor:
    """Peak signal-to-noise ratio in dB over all pixels, capped at 100 dB for identical images.

    Args:
        harmonized: Result in [0, 255], `(B, 3, H, W)`.
        real: Ground truth in [0, 255], `(B, 3, H, W)`.
        peak: Largest possible value, one number or one per image, `(B,)`.

    Returns:
        `(B,)` float64, at most 100.

    Example:
        >>> psnr(torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 25.5))
        tensor([20.], dtype=torch.float64)
    """
    return _decibels(mse(harmonized, real), peak)


def fmse(harmonized: Tensor, real: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over the foreground: `sum(M d^2) / (3 sum(M))` (iDIH, Sofiiuk et al. 2021).

    Args:
        harmonized: Result in [0, 255], `(B, 3, H, W)`.
        real: Ground truth in [0, 255], `(B, 3, H, W)`.
        mask: 1 on the foreground, `(B, 1, H, W)`. Soft values are weights.

    Returns:
        `(B,)` float64. NaN for an empty mask.

    Example:
        >>> mask = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)
        >>> fmse(torch.full((1, 3, 1, 2), 5.0), torch.full((1, 3, 1, 2), 3.0), mask)
        tensor([4.], dtype=torch.float64)
    """
    _check(harmonized, real)
    squared_error = (harmonized.double() - real.double()).square() * mask.double()
    return squared_error.sum((1, 2, 3)) / (3 * mask.double().sum((1, 2, 3)))


def bmse(harmonized: Tensor, real: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over the background: `fmse` with the inverted mask. NaN for an empty background."""
    return fmse(harmonized, real, 1 - mask.double())


def fpsnr(harmonized: Tensor, real: Tensor, mask: Tensor, peak: float | Tensor = 255.0) -> Tensor:
    """Peak signal-to-noise ratio in dB over the foreground, capped at 100 dB. Arguments as in `fmse`."""
    return _decibels(fmse(harmonized, real, mask), peak)


def fab(harmonized: Tensor, real: Tensor, mask: Tensor) -> Tensor:
    """Mean colour error over the foreground: the distance in the a*b* plane of CIE L*a*b* (D65).

    Lightness has no influence, so that a wrong hue or saturation shows, which PSNR hardly does. A distance of
    2.3 is just noticeable for colours of equal lightness.

    Args:
        harmonized: Result in [0, 255], `(B, 3, H, W)`.
        real: Ground truth in [0, 255], `(B, 3, H, W)`.
        mask: 1 on the foreground, `(B, 1, H, W)`. Soft values are weights.

    Returns:
        `(B,)` float64. NaN for an empty mask.

    Example:
        >>> red, grey, mask = torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 128.0), torch.ones(1, 1, 2, 2)
        >>> red[:, 0] = 255
        >>> round(fab(red, grey, mask).item()), round(fab(grey / 2, grey, mask).item())
        (105, 0)
    """
    _check(harmonized, real)
    triples = zip(_arrays(harmonized), _arrays(real), mask[:, 0].double().cpu().numpy(), strict=True)
    return torch.tensor([foreground_color_error(*triple) for triple in triples], dtype=torch.float64)


def foreground_color_error(harmonized: np.ndarray, real: np.ndarray, mask: np.ndarray) -> float:
    """Compute `fab` of one image.

    Args:
        harmonized: Result in [0, 255], `(H, W, 3)`.
        real: Ground truth in [0, 255], `(H, W, 3)`.
        mask: Weights, `(H, W)`, 0 outside the foreground.

    Returns:
        Mean distance; NaN for an empty mask.
    """
    inside = mask > 0  # the background is the larger part, and its colours are not needed
    if not inside.any():
        return math.nan
    first, second = (_lab_plane(image[inside]) for image in (harmonized, real))
    distances = np.hypot(*(first - second).T.astype(np.float64))
    weights = mask[inside].astype(np.float64)
    return float(distances @ weights / weights.sum())


def _lab_plane(colors: np.ndarray) -> np.ndarray:
    """Convert sRGB colours in [0, 255], `(N, 3)`, to a* and b*, `(N, 2)`."""
    image = np.ascontiguousarray(colors, np.float32)[None] / np.float32(255)
    return cv2.cvtColor(image, cv2.COLOR_RGB2Lab)[0, :, 1:]


def ssim(harmonized: Tensor, real: Tensor, window: str = "gaussian") -> Tensor:
    """Structural similarity (Wang et al. 2004), averaged over channels and over windows inside the image.

    Args:
        harmonized: Result in [0, 255], `(B, 3, H, W)`, no side shorter than the window.
        real: Ground truth in [0, 255], `(B, 3, H, W)`.
        window: `"gaussian"`, 11x11 with deviation 1.5 and biased variances, as in the paper; or `"uniform"`,
            7x7 with unbiased variances, the default of scikit-image. torchmetrics also averages windows that
            cross the border.

    Returns:
        `(B,)` float64 in [-1, 1].

    Raises:
        InputError: An image is smaller than the window, or the window is unknown.

    Example:
        >>> image = torch.arange(3 * 16 * 16.0).view(1, 3, 16, 16)
        >>> ssim(image, image)
        tensor([1.], dtype=torch.float64)
    """
    _check(harmonized, real)
    edge = SSIM_WINDOWS.get(window, 0) // 2
    pairs = zip(_arrays(harmonized), _arrays(real), strict=True)
    inside = (slice(edge, -edge), slice(edge, -edge))
    return torch.tensor([ssim_map(*pair, window)[inside].mean() for pair in pairs], dtype=torch.float64)


def fssim(harmonized: Tensor, real: Tensor, mask: Tensor, window: str = "gaussian") -> Tensor:
    """Structural similarity over the foreground: the mean of `ssim_map`, weighted by the mask.

    Args:
        harmonized: Result in [0, 255], `(B, 3, H, W)`, no side shorter than the window.
        real: Ground truth in [0, 255], `(B, 3, H, W)`.
        mask: 1 on the foreground, `(B, 1, H, W)`. Soft values are weights.
        window: As in `ssim`.

    Returns:
        `(B,)` float64 in [-1, 1]. NaN for an empty mask.

    Raises:
        InputError: An image is smaller than the window, or the window is unknown.
    """
    _check(harmonized, real)
    pairs = zip(_arrays(harmonized), _arrays(real), strict=True)
    maps = torch.stack([torch.from_numpy(ssim_map(*pair, window)) for pair in pairs])
    weights = mask[:, 0].double().cpu()
    return (maps * weights).sum((1, 2)) / weights.sum((1, 2))


def ssim_map(harmonized: np.ndarray, real: np.ndarray, window: str = "gaussian") -> np.ndarray:
    """Structural similarity at each pixel, averaged over the channels. Images are reflected at the borders.

    Args:
        harmonized: Result in [0, 255], `(H, W, 3)`, no side shorter than the window.
        real: Ground truth in [0, 255], `(H, W, 3)`.
        window: As in `ssim`.

    Returns:
        `(H, W)` float64 in [-1, 1].

    Raises:
        InputError: An image is smaller than the window, or the window is unknown.
    """
    if window not in SSIM_WINDOWS:
        raise InputError("window", f"must be one of {', '.join(SSIM_WINDOWS)}, got {window!r}")
    side, (height, width) = SSIM_WINDOWS[window], real.shape[:2]
    if min(height, width) < side:
        raise InputError("real", f"is {width}x{height}, smaller than the window of {side}x{side} pixels")
    edge = side // 2
    # Bands of rows stay in the cache; a whole 24-megapixel picture in float64 would need gigabytes.
    rows = max(side, BAND_PIXELS // width)
    result = np.zeros((height, width))
    for channel in range(3):
        planes = (np.ascontiguousarray(image[..., channel]) for image in (harmonized, real))
        padded = [cv2.copyMakeBorder(plane, edge, edge, edge, edge, cv2.BORDER_REFLECT) for plane in planes]
        for top in range(0, height, rows):
            band = slice(top, min(top + rows, height))
            x, y = (plane[band.start : band.stop + 2 * edge].astype(np.float64) for plane in padded)
            result[band] += _ssim_band(x, y, window)[edge:-edge, edge:-edge] / 3
    return result


def _ssim_band(x: np.ndarray, y: np.ndarray, window: str) -> np.ndarray:
    """Compute equation 13 of Wang et al. (2004) at each value of `(H, W)`; invalid near the borders."""
    side = SSIM_WINDOWS[window]
    if window == "gaussian":
        kernel, unbiased = cv2.getGaussianKernel(side, 1.5, cv2.CV_64F), 1.0
    else:
        kernel, unbiased = np.full(side, 1 / side), side**2 / (side**2 - 1)

    def average(values: np.ndarray) -> np.ndarray:
        return cv2.sepFilter2D(values, -1, kernel, kernel)

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_x, mean_y = average(x), average(y)
    product, squares = mean_x * mean_y, mean_x**2 + mean_y**2
    covariance = unbiased * (average(x * y) - product)
    variances = unbiased * (average(x * x + y * y) - squares)
    return (2 * product + c1) * (2 * covariance + c2) / ((squares + c1) * (variances + c2))


def _arrays(images: Tensor) -> list[np.ndarray]:
    return [np.ascontiguousarray(image.double().permute(1, 2, 0).cpu().numpy()) for image in images]


def _decibels(squared_error: Tensor, peak: float | Tensor) -> Tensor:
    peak = torch.as_tensor(peak, dtype=torch.float64, device=squared_error.device)
    return (10 * torch.log10(peak**2 / squared_error)).clamp_max(PSNR_CAP)


def _check(harmonized: Tensor, real: Tensor) -> None:
    if harmonized.shape != real.shape or harmonized.ndim != 4:
        raise InputError(
            "harmonized",
            f"and `real` must both be (B, 3, H, W), got {tuple(harmonized.shape)} and {tuple(real.shape)}",
        )
