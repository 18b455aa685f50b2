"""Locally affine colour maps: what a network did to a small picture, in a form that fits a large one.

A dense network gives pixels, and pixels of a small picture make a blurred large one. A colour map gives for
each position the 3x4 matrix that turns the colours of the composite into the harmonized ones there. It is
smooth, so it can be enlarged, and it is applied to the full-size pixels, so their detail stays.

The fit is the local least squares of the guided filter with a colour guide (He et al., "Guided Image
Filtering", PAMI 2013), weighted by the foreground so that no background colour enters. It goes from coarse to
fine: a neighbourhood with too little texture to tell a matrix keeps that of the larger one around it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from harmony_diffusion.models.layers import blend

# Ridge of the affine map of the whole foreground, towards the identity matrix.
_GLOBAL_EPS = 1e-5
# Foreground pixels a neighbourhood must hold before it is believed over the whole foreground.
_SCARCE = 0.05


def fit_color_map(
    composite: Tensor, harmonized: Tensor, mask: Tensor, radius: int = 4, eps: float = 3e-5
) -> Tensor:
    """Fit the map that turns the foreground of `composite` into that of `harmonized`, position by position.

    Args:
        composite: Input image in [0, 1], `(B, 3, h, w)`.
        harmonized: The same image after harmonization, already blended with `mask`, `(B, 3, h, w)`.
        mask: 1 on the foreground, soft values allowed, `(B, 1, h, w)`.
        radius: Half the side of the smallest square neighbourhood that is fitted, in pixels.
        eps: Variance of colour below which a neighbourhood keeps the matrix of the larger one around it and
            only its offset is fitted.

    Returns:
        `(B, 12, h, w)`: channels 0-8 the matrix row by row, 9-11 the offset. Far from the foreground it is
        the affine map of the whole foreground; without any foreground it is the identity.

    Example:
        >>> composite, mask = torch.linspace(0, 1, 3072).view(1, 3, 32, 32), torch.ones(1, 1, 32, 32)
        >>> color_map = fit_color_map(composite, 0.5 * composite, mask)
        >>> round(float(apply_color_map(composite, color_map, mask).max()), 3)
        0.5
    """
    composite, harmonized, mask = composite.float(), harmonized.float(), mask.float()
    # Blending left `mask` times the network's change; the change itself is what the map must give, and its
    # squared error counts as often as it shows.
    target = composite + (harmonized - composite) / mask.clamp_min(1e-6)
    weight = mask.square()
    matrix, offset = (
        t.expand(*t.shape[:-2], *mask.shape[-2:]) for t in _fit_whole(composite, target, weight)
    )
    for wider in reversed(
        [radius * 2**k for k in range(8) if k == 0 or radius * 2**k <= max(mask.shape) / 7]
    ):
        rest = target - _affine(composite, matrix, offset)
        local_matrix, local_offset = _fit_local(composite, rest, weight, wider, eps)
        matrix, offset = matrix + local_matrix, offset + local_offset
    return torch.cat((matrix.flatten(1, 2), offset), 1)


def apply_color_map(image: Tensor, color_map: Tensor, mask: Tensor) -> Tensor:
    """Change the foreground of an image by a colour map.

    Args:
        image: Composite in [0, 1], `(B, 3, H, W)`.
        color_map: As `fit_color_map` returns it, `(B, 12, h, w)`; enlarged bilinearly unless it has the
            size of the image.
        mask: 1 on the foreground, soft values allowed, `(B, 1, H, W)`.

    Returns:
        `(B, 3, H, W)` in [0, 1], equal to `image` to the bit where the mask is 0.
    """
    if color_map.shape[-2:] != image.shape[-2:]:
        color_map = F.interpolate(color_map, image.shape[-2:], mode="bilinear", align_corners=False)
    mapped = _affine(image, color_map[:, :9].unflatten(1, (3, 3)), color_map[:, 9:])
    return blend(mapped.clamp_(0, 1), image, mask)


def _affine(image: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    """Multiply colours `(B, 3, H, W)` by matrices `(B, 3, 3, H, W)` and add offsets `(B, 3, H, W)`."""
    rows = [offset[:, c : c + 1] + (matrix[:, c] * image).sum(1, keepdim=True) for c in range(3)]
    return torch.cat(rows, 1)


def _fit_whole(source: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Fit one affine map to all weighted pixels: `(B, 3, 3, 1, 1)` and `(B, 3, 1, 1)`."""
    share = weight / weight.sum((2, 3), keepdim=True).clamp_min(1e-12)
    mean_source = (share * source).sum((2, 3), keepdim=True)
    mean_target = (share * target).sum((2, 3), keepdim=True)
    centred = (source - mean_source).flatten(2)
    weighted = centred * share.flatten(2)
    covariance = weighted @ centred.transpose(1, 2)
    crossed = weighted @ (target - mean_target).flatten(2).transpose(1, 2)
    ridge = _GLOBAL_EPS * torch.eye(3).to(source)
    # Solved for the transposed matrix: covariance @ matrix^T = source-target covariance.
    matrix = torch.linalg.solve(covariance + ridge, crossed + ridge).transpose(1, 2)
    offset = mean_target.flatten(1) - (matrix @ mean_source.flatten(2)).flatten(1)
    return matrix[..., None, None], offset[..., None, None]


def _fit_local(
    source: Tensor, rest: Tensor, weight: Tensor, radius: int, eps: float
) -> tuple[Tensor, Tensor]:
    """Fit what one map leaves over in each neighbourhood: `(B, 3, 3, h, w)` and `(B, 3, h, w)`."""
    # Differences of large means would lose digits: measure colours from the middle of the foreground.
    centre = (weight * source).sum((2, 3), keepdim=True) / weight.sum((2, 3), keepdim=True).clamp_min(1e-12)
    source = source - centre
    amount = _box_mean(weight, radius)
    share = amount.clamp_min(1e-12)
    mean_source = _box_mean(weight * source, radius) / share
    mean_rest = _box_mean(weight * rest, radius) / share
    covariance = _box_mean(weight * _outer(source, source), radius) / share - _outer(mean_source, mean_source)
    crossed = _box_mean(weight * _outer(source, rest), radius) / share - _outer(mean_source, mean_rest)
    matrix = _solve(covariance, crossed, eps)
    offset = mean_rest - _affine(mean_source + centre, matrix, torch.zeros_like(mean_rest))
    # Each position averages the fits of all neighbourhoods it lies in, the fuller ones counting more. Where
    # all of them are nearly empty, the fit fades out and the map of the whole foreground remains.
    coefficients = torch.cat((matrix.flatten(1, 2), offset), 1)
    area = (2 * radius + 1) ** 2
    averaged = _box_mean(amount * coefficients, radius) / (_box_mean(amount, radius) + _SCARCE / area)
    return averaged[:, :9].unflatten(1, (3, 3)), averaged[:, 9:]


def _box_mean(values: Tensor, radius: int) -> Tensor:
    """Mean over the square of side `2 * radius + 1`, zeros beyond the border."""
    side = 2 * radius + 1
    across = F.avg_pool2d(values, (1, side), stride=1, padding=(0, radius))
    return F.avg_pool2d(across, (side, 1), stride=1, padding=(radius, 0))


def _outer(left: Tensor, right: Tensor) -> Tensor:
    """All products of the channels of two images, `(B, 9, h, w)`."""
    return (left[:, :, None] * right[:, None]).flatten(1, 2)


def _solve(covariance: Tensor, crossed: Tensor, eps: float) -> Tensor:
    """Ridge regression at each position: `(B, 3, 3, h, w)` matrices that take source to target."""
    ridge = eps * torch.eye(3).to(covariance)
    left = covariance.movedim(1, -1).unflatten(-1, (3, 3)) + ridge
    right = crossed.movedim(1, -1).unflatten(-1, (3, 3))
    return torch.linalg.solve(left, right).permute(0, 4, 3, 1, 2)
