"""Colour spaces and white-box filters as pure, differentiable functions of `(B, 3, H, W)` tensors."""

import torch
from torch import Tensor

# sRGB primaries and the D65 white point (IEC 61966-2-1).
RGB_TO_XYZ = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
WHITE = (0.95047, 1.0, 1.08883)
LAB_DELTA = 6 / 29


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
    white = image.new_tensor(WHITE).view(1, 3, 1, 1)
    xyz = _mix(srgb_to_linear(image), torch.tensor(RGB_TO_XYZ)) / white
    cubic = xyz.clamp_min(LAB_DELTA**3) ** (1 / 3)
    x, y, z = torch.where(xyz > LAB_DELTA**3, cubic, xyz / (3 * LAB_DELTA**2) + 4 / 29).unbind(1)
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
    xyz = torch.where(bent > LAB_DELTA, bent**3, 3 * LAB_DELTA**2 * (bent - 4 / 29))
    xyz = xyz * image.new_tensor(WHITE).view(1, 3, 1, 1)
    rgb = _mix(xyz, torch.linalg.inv(torch.tensor(RGB_TO_XYZ, dtype=torch.float64)))
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


# The white-box filters of Harmonizer (Ke et al., ECCV 2022, https://arxiv.org/abs/2207.01322). All take a raw
# argument of shape `(B,)`, clamp it to [-1, 1] and return an image clamped to [0, 1]; at 0 they change
# nothing (but for the small constants, which are the official ones).
FILTER_EPS = 1e-6
POWER_EPS = 1e-9


def _per_image(value: Tensor) -> Tensor:
    """Shape `(B,)` as `(B, 1, 1, 1)`, to act on `(B, C, H, W)`."""
    return value.view(-1, 1, 1, 1)


def temperature_gain(argument: Tensor, mean: Tensor) -> Tensor:
    """Return the factor of each channel, `(B, 3)`, by which `temperature` multiplies an image.

    Args:
        argument: `(B,)`, clamped to [-1, 1]; positive is warmer.
        mean: Channel means of the whole frame, `(B, 3)` in [0, 1].
    """
    argument = argument.clamp(-1, 1)
    shift = torch.stack((torch.relu(-argument), argument.abs() / 2, torch.relu(argument)), 1)
    shifted = mean + shift
    grey, shifted_grey = mean.mean(1, keepdim=True), shifted.mean(1, keepdim=True)
    return shifted_grey / (shifted + FILTER_EPS) + 1 - grey / (mean + FILTER_EPS)


def brightness_gain(argument: Tensor) -> Tensor:
    """Return the factor, `(B,)` like `argument`, by which `brightness` multiplies an image."""
    argument = argument.clamp(-1, 1)
    return torch.where(argument >= 0, 1 / (1 - argument + FILTER_EPS), 1 + argument)


def contrast_slope(argument: Tensor, smooth: bool = False) -> Tensor:
    """Return the slope, `(B,)` like `argument`, that `contrast` adds around the mean.

    Args:
        argument: `(B,)`, clamped to [-1, 1].
        smooth: Leave out the floor, which quantises positive arguments to 1/255 and has no gradient.
    """
    argument = argument.clamp(-1, 1)
    levels = 255 * argument if smooth else torch.floor(255 * argument)
    return torch.where(argument > 0, 255 / (256 - levels) - 1, argument)


def temperature(image: Tensor, argument: Tensor, mean: Tensor | None = None) -> Tensor:
    """Make an image warmer (positive argument) or colder (negative).

    Args:
        image: `(B, 3, H, W)` in [0, 1].
        argument: `(B,)`, clamped to [-1, 1].
        mean: Channel means of the whole frame, `(B, 3)`; those of `image` by default.

    Returns:
        `(B, 3, H, W)` in [0, 1].
    """
    mean = image.mean((2, 3)) if mean is None else mean
    return (image * temperature_gain(argument, mean)[:, :, None, None]).clamp(0, 1)


def brightness(image: Tensor, argument: Tensor) -> Tensor:
    """Scale the value (of hue, saturation, value) of an image.

    Args:
        image: `(B, 3, H, W)` in [0, 1].
        argument: `(B,)`, clamped to [-1, 1]: -1 is black, 1 is white.

    Returns:
        `(B, 3, H, W)` in [0, 1].
    """
    return (image * _per_image(brightness_gain(argument))).clamp(0, 1)


def contrast(image: Tensor, argument: Tensor, mean: Tensor | None = None, smooth: bool = False) -> Tensor:
    """Spread an image around its mean, or pull it together.

    Args:
        image: `(B, 3, H, W)` in [0, 1].
        argument: `(B,)`, clamped to [-1, 1]: -1 is flat, 1 is two-level.
        mean: Mean of the whole frame over pixels and channels, `(B,)`; that of `image` by default.
        smooth: Leave out the official floor, so that positive arguments have a gradient too.

    Returns:
        `(B, 3, H, W)` in [0, 1].
    """
    mean = image.mean((1, 2, 3)) if mean is None else mean
    return (image + (image - _per_image(mean)) * _per_image(contrast_slope(argument, smooth))).clamp(0, 1)


def saturation(image: Tensor, argument: Tensor) -> Tensor:
    """Move every pixel away from its grey, or towards it.

    Args:
        image: `(B, 3, H, W)` in [0, 1].
        argument: `(B,)`, clamped to [-1, 1]: -1 is grey.

    Returns:
        `(B, 3, H, W)` in [0, 1].
    """
    argument = _per_image(argument.clamp(-1, 1))
    high, low = image.amax(1, keepdim=True), image.amin(1, keepdim=True)
    total = high + low
    own = (high - low) / (torch.minimum(total, 2 - total) + FILTER_EPS)  # HSL saturation
    # The stronger of the two limits keeps a pixel from being pushed out of the gamut.
    gain = torch.where(argument >= 0, 1 / (torch.maximum(own, 1 - argument) + FILTER_EPS), 1 + argument)
    grey = total / 2
    return (grey + (image - grey) * gain).clamp(0, 1)


def highlight(image: Tensor, argument: Tensor) -> Tensor:
    """Lift (positive argument) or lower the bright tones: a power law on the negative.

    Args:
        image: `(B, 3, H, W)` in [0, 1].
        argument: `(B,)`, clamped to [-1, 1].

    Returns:
        `(B, 3, H, W)` in [0, 1].
    """
    return 1 - ((1 - image + POWER_EPS) ** _per_image(1 + argument.clamp(-1, 1))).clamp(0, 1)


def shadow(image: Tensor, argument: Tensor) -> Tensor:
    """Lift (positive argument) or lower the dark tones: a power law.

    Args:
        image: `(B, 3, H, W)` in [0, 1].
        argument: `(B,)`, clamped to [-1, 1].

    Returns:
        `(B, 3, H, W)` in [0, 1].
    """
    return ((image + POWER_EPS) ** _per_image(1 - argument.clamp(-1, 1))).clamp(0, 1)
