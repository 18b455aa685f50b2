"""Recolouring with candidates: try several edits on a few pixels and apply the best one to all pixels."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from harmony_diffusion.data.keyed_random import KeyedDraws
from harmony_diffusion.data.synthesis.retouching import Parameters

CANDIDATES = 4
OWN_PIXELS = 256
LATTICE = 17
# Foreground MSE on the scale 0 to 255 of composites that differ visibly and are still plausible.
MSE_RANGE = (60.0, 12000.0)
# Accepted share of colours that the edit clips.
CLIPPED = 0.06
# Accepted ratio of standard deviations. A lower ratio flattens the colours, a higher one causes banding.
SPREAD = (0.4, 2.2)


def foreground_colors(image: Tensor, mask: Tensor, draws: KeyedDraws) -> Tensor:
    """Draw foreground pixels of each image, `(B, 3, OWN_PIXELS)`."""
    count = (mask[:, 0] > 0.5).flatten(1).cumsum(1)  # (B, H * W)
    step = torch.arange(OWN_PIXELS) + draws.uniform("own", OWN_PIXELS)
    wanted = (step / OWN_PIXELS).to(image.device) * count[:, -1:]
    place = torch.searchsorted(count, wanted.long() + 1).clamp_max(count.shape[1] - 1)
    return image.flatten(2).gather(2, place[:, None].expand(-1, 3, -1))


def choose(
    before: Tensor,
    after: Tensor,
    weight: Tensor | None = None,
    mse_range: tuple[float, float] = MSE_RANGE,
    clipped: float = CLIPPED,
) -> Tensor:
    """Select the first of K candidates that satisfies the limits on MSE, clipping and standard deviation.

    If no candidate satisfies them, the one that violates them least is selected.

    Args:
        before: Foreground colours, `(B, 3, N)` in [0, 1].
        after: Recoloured and not clamped, `(B * K, 3, N)`, with the candidates of one sample in a row.
        weight: Weight of each colour, `(B, 1, N)`. None weights all colours equally.
        mse_range: Accepted mean squared error, on the scale 0 to 255.
        clipped: Accepted share of colours that the edit moves out of [0, 1].

    Returns:
        Index of the selected candidate, `(B,)`.
    """
    after = after.unflatten(0, (len(before), -1)).double()  # (B, K, 3, N)
    before = before[:, None].double()
    weight = torch.ones_like(before[:, :, :1]) if weight is None else weight[:, None].double()
    weight = weight / weight.sum(3, keepdim=True).clamp_min(1e-6)

    def mean(values: Tensor) -> Tensor:
        return (values * weight).sum(3).mean(2)

    shown = after.clamp(0, 1)
    mse = 255**2 * mean((shown - before) ** 2).clamp_min(1e-9)
    left = ((after >= 1) & (before < 0.97)) | ((after <= 0) & (before > 0.03))
    share = (left.any(2).double() * weight[:, :, 0]).sum(2)
    variance = [mean((x - (x * weight).sum(3, keepdim=True)) ** 2) for x in (shown, before)]
    spread = ((variance[0] + 1e-5) / (variance[1] + 1e-5)).sqrt()
    fault = (
        (max(mse_range[0], 1e-9) / mse).log().relu()
        + (mse / mse_range[1]).log().relu()
        + 10 * (share - clipped).relu()
        + (SPREAD[0] / spread).log().relu()
        + (spread / SPREAD[1]).log().relu()
    )
    return (fault + 1e-6 * torch.arange(fault.shape[1], device=fault.device)).argmin(1)


def look_up_colors(
    image: Tensor, color_map: Callable[[Tensor], Tensor], opacity: Tensor | None = None
) -> Tensor:
    """Apply a colour map to an image by interpolation in a 3-D lookup table.

    Args:
        image: `(B, 3, H, W)` in [0, 1].
        color_map: Map from `(B, 3, N)` to the same shape. It is evaluated on a lattice of `LATTICE` nodes per
            axis.
        opacity: `(B, 1, H, W)`. Pixels with opacity 0 may stay unchanged. None changes all pixels.

    Returns:
        `(B, 3, H, W)`.
    """
    axis = torch.linspace(0, 1, LATTICE, device=image.device)
    blue, green, red = torch.meshgrid(axis, axis, axis, indexing="ij")
    nodes = torch.stack((red, green, blue)).flatten(1).expand(len(image), 3, -1)
    table = color_map(nodes).unflatten(2, (LATTICE,) * 3).contiguous()
    if opacity is None or image.is_cuda:
        place = (image * 2 - 1).permute(0, 2, 3, 1)[:, None]
        return F.grid_sample(table, place.contiguous(), align_corners=True)[:, :, 0]
    result = image.clone()
    for row, inside in enumerate(opacity[:, 0] > 0):
        place = (image[row, :, inside] * 2 - 1).T.contiguous()[None, None, None]
        result[row, :, inside] = F.grid_sample(table[row : row + 1], place, align_corners=True)[0, :, 0, 0]
    return result


def pick(parameters: Parameters, best: Tensor) -> Parameters:
    """Select the rows of the candidates `best`, `(B,)`, from parameters with B * K rows."""
    count = len(next(iter(parameters.values()))) // len(best)
    rows = torch.arange(len(best), device=best.device) * count + best
    return {name: values[rows] for name, values in parameters.items()}


def to_device(parameters: Parameters, device: torch.device) -> Parameters:
    """Move parameters to a device."""
    return {name: values.to(device) for name, values in parameters.items()}
