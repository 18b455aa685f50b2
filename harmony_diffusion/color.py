"""Colour spaces and white-box filters as pure, differentiable functions of `(B, 3, H, W)` tensors."""

import torch
from torch import Tensor

# sRGB primaries and the D65 white point (IEC 61966-2-1).
_RGB_TO_XYZ = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
_WHITE = (0.95047, 1.0, 1.08883)
_LAB_DELTA = 6 / 29


def _mix(image: Tensor, matrix: Tensor) -> Tensor:
    """Multiply the channel axis of `(B, C, H, W)` by a `(D, C)` matrix."""
    return torch.einsum("dc,bchw->bdhw", matrix.to(image), image)


def srgb_to_linear(image: Tensor) -> Tensor:
    """Undo the sRGB transfer curve (IEC 61966-2-1); in and out in [0, 1], any shape."""
    return torch.where(image <= 0.04045, image / 12.92, ((image.clamp_min(0.04045) + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(image: Tensor) -> Tensor:
    """Apply the sRGB transfer curve (IEC 61966-2-1); in and out in [0, 1], any shape."""
    bent = 1.055 * image.clamp_min(0.0031308) ** (1 / 2.4) - 0.055
    return torch.where(image <= 0.0031308, image * 12.92, bent)


def srgb_to_lab(image: Tensor) -> Tensor:
    """Convert sRGB to CIE L*a*b* (D65, 2 degrees).

    Args:
        image: `(B, 3, H, W)` in [0, 1].

    Returns:
        `(B, 3, H, W)`: L in [0, 100], a and b about [-110, 110].
    """
    white = image.new_tensor(_WHITE).view(1, 3, 1, 1)
    xyz = _mix(srgb_to_linear(image), torch.tensor(_RGB_TO_XYZ)) / white
    cubic = xyz.clamp_min(_LAB_DELTA**3) ** (1 / 3)
    x, y, z = torch.where(xyz > _LAB_DELTA**3, cubic, xyz / (3 * _LAB_DELTA**2) + 4 / 29).unbind(1)
    return torch.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), 1)


def lab_to_srgb(image: Tensor) -> Tensor:
    """Convert CIE L*a*b* (D65) to sRGB, clamped to [0, 1].

    Args:
        image: `(B, 3, H, W)` as `srgb_to_lab` returns it.

    Returns:
        `(B, 3, H, W)` in [0, 1]; colours outside the gamut are clipped channel by channel.
    """
    y = (image[:, 0] + 16) / 116
    bent = torch.stack((y + image[:, 1] / 500, y, y - image[:, 2] / 200), 1)
    xyz = torch.where(bent > _LAB_DELTA, bent**3, 3 * _LAB_DELTA**2 * (bent - 4 / 29))
    xyz = xyz * image.new_tensor(_WHITE).view(1, 3, 1, 1)
    rgb = _mix(xyz, torch.linalg.inv(torch.tensor(_RGB_TO_XYZ, dtype=torch.float64)))
    return linear_to_srgb(rgb.clamp(0, 1))


def rgb_to_hsv(image: Tensor) -> Tensor:
    """Convert RGB to HSV (the hexagonal model), all in [0, 1]; grey has hue 0, black also saturation 0.

    Args:
        image: `(B, 3, H, W)` in [0, 1].

    Returns:
        Hue in [0, 1), saturation and value in [0, 1], `(B, 3, H, W)`. Finite gradients everywhere.
    """
    eps = 1e-7
    red, green, blue = image.unbind(1)
    value = image.amax(1)
    chroma = value - image.amin(1)
    sector = torch.where(
        red == value,
        (green - blue) / (chroma + eps),
        torch.where(green == value, (blue - red) / (chroma + eps) + 2, (red - green) / (chroma + eps) + 4),
    )
    return torch.stack(((sector / 6) % 1, chroma / (value + eps), value), 1)


def hsv_to_rgb(image: Tensor) -> Tensor:
    """Convert HSV as `rgb_to_hsv` returns it to RGB in [0, 1], `(B, 3, H, W)`."""
    hue, saturation, value = image.unbind(1)
    channels = []
    for offset in (5, 3, 1):  # red, green, blue
        distance = (offset + 6 * hue) % 6
        channels.append(value - value * saturation * torch.minimum(distance, 4 - distance).clamp(0, 1))
    return torch.stack(channels, 1)


def affine_color(image: Tensor, parameters: Tensor) -> Tensor:
    """Apply one affine colour transform a pixel.

    Args:
        image: `(B, 3, H, W)`.
        parameters: `(B, 12, H, W)`: a 3x3 matrix row by row, then the offset.

    Returns:
        `M x + b`, `(B, 3, H, W)`.
    """
    red, green, blue = image.split(1, 1)
    by_red, by_green, by_blue = (parameters[:, column:9:3] for column in range(3))
    return by_red * red + by_green * green + by_blue * blue + parameters[:, 9:]
