"""Locally affine colour maps: carry a network's change of a small picture over to a large one.

A dense network returns pixels, and enlarged pixels of a small picture are blurred. A colour map holds for
each position the 3x4 matrix that turns the composite's colours into the harmonized ones. It is smooth, so it
can be enlarged. It is applied to the full-size pixels, so their detail stays.

The fit is the local least squares of the guided filter with a colour guide (He et al., "Guided Image
Filtering", PAMI 2013), weighted by the foreground so that no background colour enters. It goes from coarse to
fine: a neighbourhood with too little texture for a matrix keeps that of the larger one around it.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from harmony_diffusion.highres.color_map_arrays import fit_planes
from harmony_diffusion.models.layers import blend

# Variance of colour below which the map of the whole foreground keeps the identity matrix.
_GLOBAL_EPS = 1e-5
# Foreground pixels that a neighbourhood needs before its own fit counts.
_SCARCE = 0.05


def fit_color_map(
    composite: Tensor, harmonized: Tensor, mask: Tensor, radius: int = 4, eps: float = 1e-5
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
    # Blending left `mask` times the network's change. The map must give the change itself, and its squared
    # error is weighted by its visibility.
    target = composite + (harmonized - composite) / mask.clamp_min(1e-6)
    weight = mask.square()
    # Differences of large means lose digits: measure colours from the mean of the foreground.
    centre = (weight * composite).sum((2, 3), True) / weight.sum((2, 3), True).clamp_min(1e-12)
    matrix, offset = _fit_anywhere(composite - centre, target, weight, radius, eps).split((9, 3), 1)
    return torch.cat((matrix, offset - _multiply(matrix, centre)), 1)


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
    mapped = _multiply(color_map[:, :9], image).add_(color_map[:, 9:]).clamp_(0, 1)
    return blend(mapped, image, mask)


def _fit_anywhere(source: Tensor, target: Tensor, weight: Tensor, radius: int, eps: float) -> Tensor:
    """Fit a colour map `(B, 12, h, w)`: by `_fit`, or by its faster twin where no gradient is wanted."""
    needs_gradient = source.requires_grad or target.requires_grad
    if source.device.type != "cpu" or (needs_gradient and torch.is_grad_enabled()):
        return _fit(source, target, weight, radius, eps)
    images = (image.detach().numpy() for image in (source, target, weight[:, 0]))
    maps = [
        fit_planes(own, wanted, share, radius, eps, _GLOBAL_EPS, _SCARCE)
        for own, wanted, share in zip(*images, strict=True)
    ]
    return torch.from_numpy(np.stack(maps))


def _fit(source: Tensor, target: Tensor, weight: Tensor, radius: int, eps: float) -> Tensor:
    """Fit a colour map `(B, 12, h, w)`: that of the picture at half the size, then its residual."""
    size = weight.shape[-2:]
    if max(size) <= 2 * radius + 1:
        whole = _moments(source, target - source, weight).mean((2, 3), keepdim=True)
        identity = torch.cat((torch.eye(3).flatten(), torch.zeros(3))).to(source)
        return identity.view(1, 12, 1, 1) + _regress(whole, _GLOBAL_EPS)
    half = F.avg_pool2d(torch.cat((weight, weight * source, weight * target), 1), 2, ceil_mode=True)
    half_weight, *colors = half.split((1, 3, 3), 1)
    half_source, half_target = (color / half_weight.clamp_min(1e-12) for color in colors)
    coarse = _fit(half_source, half_target, half_weight, radius, eps)
    coarse = F.interpolate(coarse, size, mode="bilinear", align_corners=False)
    rest = target - _multiply(coarse[:, :9], source) - coarse[:, 9:]
    gathered = _box_mean(_moments(source, rest, weight), radius)
    fitted = _regress(gathered, eps)
    # Each position averages the fits of all neighbourhoods it lies in, the fuller ones counting more. Where
    # all of them are nearly empty, the coarser map remains.
    amount, scarce = gathered[:, :1], _SCARCE / (2 * radius + 1) ** 2
    return coarse + _box_mean(amount * fitted, radius) / (_box_mean(amount, radius) + scarce)


def _moments(source: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Weight, and weighted source, target, source source^T and target source^T, `(B, 25, h, w)`."""
    products = _outer(source, source), _outer(target, source)
    return torch.cat((weight, *(weight * t for t in (source, target, *products))), 1)


def _regress(moments: Tensor, eps: float) -> Tensor:
    """Ridge regression of target on source at each position, `(B, 12, h, w)`."""
    weight, *means = moments.split((1, 3, 3, 9, 9), 1)
    source, target, squares, products = (mean / weight.clamp_min(1e-12) for mean in means)
    covariance = (squares - _outer(source, source)).movedim(1, -1).unflatten(-1, (3, 3))
    crossed = (products - _outer(target, source)).movedim(1, -1).unflatten(-1, (3, 3))
    # Both sides transposed: (covariance + ridge) matrix^T = crossed^T.
    ridge = eps * torch.eye(3).to(moments)
    matrix = torch.linalg.solve(covariance + ridge, crossed.transpose(-1, -2))
    matrix = matrix.transpose(-1, -2).flatten(-2).movedim(-1, 1)
    return torch.cat((matrix, target - _multiply(matrix, source)), 1)


def _multiply(matrix: Tensor, color: Tensor) -> Tensor:
    """Multiply 3x3 matrices, `(B, 9, h, w)` row by row, by colours `(B, 3, h, w)`."""
    rows = [(row * color).sum(1, keepdim=True) for row in matrix.split(3, 1)]
    return torch.cat(rows, 1)


def _outer(left: Tensor, right: Tensor) -> Tensor:
    """All products of the channels of two images, `(B, 9, h, w)`, left times right transposed."""
    return (left[:, :, None] * right[:, None]).flatten(1, 2)


def _box_mean(values: Tensor, radius: int) -> Tensor:
    """Mean over the square of side `2 * radius + 1`, zeros beyond the border."""
    side = 2 * radius + 1
    for dim, padding in ((3, (radius, radius)), (2, (0, 0, radius, radius))):
        padded, length = F.pad(values, padding), values.shape[dim]
        values = padded.narrow(dim, 0, length).clone()
        # Adding shifted images takes half the time of `avg_pool2d`.
        for shift in range(1, side):
            values += padded.narrow(dim, shift, length)
    return values / side**2
