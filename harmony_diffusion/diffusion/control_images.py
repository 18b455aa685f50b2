"""Draw the two control images of the foreground: its edges, and its colours without detail.

Liu et al. 2025, DOI 10.20169/j.issn.2095-2163.24111102, section 2.2: Canny edges keep the structure, a
Gaussian blur keeps the colours. The paper gives neither thresholds nor width. The default thresholds are
those of the usual Canny ControlNets. The default blur removes texture and lettering at 512 pixels, and keeps
the colours of an object's parts apart.
"""

import math

import cv2
import numpy as np
import torch
from torch import Tensor

from harmony_diffusion.errors import InputError, SizeMismatchError
from harmony_diffusion.highres.thumbnail import fill_smoothly
from harmony_diffusion.morphology import erode

SIGMA = 8.0
# A Gaussian is cut off at this many standard deviations; less than 1e-4 of its weight is beyond.
_REACH = 4.0
# The rim of a cut-out still shows its old surroundings.
_RIM = 2


def canny_image(
    foreground: Tensor,
    mask: Tensor,
    *,
    low_threshold: float = 100,
    high_threshold: float = 200,
    silhouette: bool = True,
) -> Tensor:
    """Draw the edges of the foreground (Canny, PAMI 1986, by OpenCV: 3x3 Sobel, L1 norm, strongest channel).

    Pixels outside the mask have no influence.

    Args:
        foreground: Image that holds the foreground, in [0, 1], `(B, 3, H, W)`.
        mask: 1 on the foreground, soft values allowed, `(B, 1, H, W)`.
        low_threshold: Gradient, of 8-bit values, above which an edge is followed.
        high_threshold: Gradient above which an edge begins.
        silhouette: Draw the edges of the foreground on black, as in the paper, which include the outline of
            the mask. Otherwise the foreground is continued smoothly beyond its outline and only the edges
            inside it are drawn.

    Returns:
        `(B, 3, H, W)`, 1 on edges and 0 elsewhere.

    Raises:
        SizeMismatchError: `foreground` and `mask` do not fit together.
        InputError: The thresholds are not `0 <= low_threshold <= high_threshold`.

    Example:
        >>> foreground = torch.ones(1, 3, 32, 32)
        >>> mask = torch.zeros(1, 1, 32, 32)
        >>> mask[..., 8:24, 8:24] = 1
        >>> canny_image(foreground, mask).any(), canny_image(foreground, mask, silhouette=False).any()
        (tensor(True), tensor(False))
    """
    check_foreground(foreground, mask)
    if not 0 <= low_threshold <= high_threshold:
        raise InputError(
            "low_threshold, high_threshold",
            f"are {low_threshold} and {high_threshold}, expected 0 <= low_threshold <= high_threshold",
        )
    pixels = cut_foreground(foreground, mask, silhouette)
    edges = np.stack([cv2.Canny(one, low_threshold, high_threshold) for one in pixels])
    drawn = torch.from_numpy(edges)[:, None].to(foreground.device) > 0
    if not silhouette:
        drawn &= keep_inside(mask)
    return drawn.to(foreground.dtype).expand(-1, 3, -1, -1).contiguous()


def gaussian_image(
    foreground: Tensor, mask: Tensor, *, sigma: float = SIGMA, premultiplied: bool = True
) -> Tensor:
    """Blur the foreground: keep its colours, and remove its detail.

    Pixels outside the mask have no influence; the outermost pixels of the frame are repeated beyond it.

    Args:
        foreground: Image that holds the foreground, in [0, 1], `(B, 3, H, W)`.
        mask: 1 on the foreground, soft values allowed, `(B, 1, H, W)`.
        sigma: Standard deviation in pixels of the resolution that the network works at; 0 = no blur.
        premultiplied: Blur the foreground on black, as in the paper: its rim darkens, and it glows beyond its
            outline. Otherwise average foreground colours alone and cut them out by the mask again.

    Returns:
        `(B, 3, H, W)` in [0, 1].

    Raises:
        SizeMismatchError: `foreground` and `mask` do not fit together.
        InputError: `sigma` is negative or not finite.
    """
    check_foreground(foreground, mask)
    if not (math.isfinite(sigma) and sigma >= 0):
        raise InputError("sigma", f"is {sigma}, expected a number of pixels, 0 or more")
    image, share = foreground.float(), mask.float()
    blurred = _blur(image * share, sigma)
    if not premultiplied:
        blurred = share * blurred / _blur(share, sigma).clamp_min(1e-12)
    return blurred.clamp(0, 1).to(foreground.dtype)


def cut_foreground(foreground: Tensor, mask: Tensor, silhouette: bool) -> list[np.ndarray]:
    """Return the image that edges are looked for in, `(H, W, 3)` uint8 each; see `canny_image`."""
    image, share = foreground.detach().float(), mask.detach().float()
    image = image * share if silhouette else fill_smoothly(image, share)
    pixels = (image * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [np.ascontiguousarray(one) for one in pixels]


def keep_inside(mask: Tensor) -> Tensor:
    """Return where edges without a silhouette are kept, `(B, 1, H, W)`: not at the rim of the mask."""
    return erode(mask.detach().float(), _RIM) >= 0.5


def check_foreground(foreground: Tensor, mask: Tensor) -> None:
    """Check the shapes of an image and its mask.

    Raises:
        SizeMismatchError: They do not fit together.
    """
    batch, _, height, width = foreground.shape if foreground.ndim == 4 else (0, 0, 0, 0)
    if foreground.ndim != 4 or foreground.shape[1] != 3 or mask.shape != (batch, 1, height, width):
        raise SizeMismatchError(
            "foreground, mask",
            f"have shapes {tuple(foreground.shape)} and {tuple(mask.shape)}, "
            "expected (B, 3, H, W) and (B, 1, H, W)",
        )


def _blur(image: Tensor, sigma: float) -> Tensor:
    """Gaussian blur, one dimension after the other."""
    reach = math.ceil(_REACH * sigma)
    if reach == 0:
        return image
    steps = torch.arange(-reach, reach + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (steps / sigma).square())
    weights /= weights.sum()
    down, right = (_blur_matrix(weights, length).to(image) for length in image.shape[-2:])
    # Autocast would change the control image that the network was trained with.
    with torch.autocast(image.device.type, enabled=False):
        return down @ (image @ right.T)


def _blur_matrix(weights: Tensor, length: int) -> Tensor:
    """Return the matrix that blurs a line of pixels, its ends repeated; faster on CPUs than a convolution."""
    reach = len(weights) // 2
    places = torch.arange(length)[:, None] + torch.arange(-reach, reach + 1)
    matrix = weights.new_zeros(length, length)
    return matrix.scatter_add_(1, places.clamp(0, length - 1), weights.expand(length, -1))
