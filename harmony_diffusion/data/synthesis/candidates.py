"""Recolouring by candidates: several edits are tried on a few pixels, and a good one is applied to all."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from harmony_diffusion.data.keyed_random import KeyedDraws
from harmony_diffusion.data.synthesis.retouching import Parameters

CANDIDATES = 4
OWN_PIXELS = 256
LATTICE = 17
# Foreground MSE, in units of 1/255, of composites that differ visibly and are still plausible.
MSE_RANGE = (60.0, 12000.0)
# Accepted share of colours that leave the range of values.
CLIPPED = 0.06
# Accepted ratio of standard deviations: below it all is flat, above it there are bands.
SPREAD = (0.4, 2.2)


def foreground_colors(image: Tensor, mask: Tensor, draws: KeyedDraws) -> Tensor:
    """Draw pixels of the foreground of each image, `(B, 3, OWN_PIXELS)`."""
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
    """Choose of K candidates the first that neither hardly differs nor clips, flattens or bands.

    Where none is good the least bad is chosen.

    Args:
        before: Colours of the foreground, `(B, 3, N)`.
        after: Recoloured and not clamped, `(B * K, 3, N)`, the candidates of a sample one after another.
        weight: Weight of each colour, `(B, 1, N)`.
        mse_range: Accepted mean squared error, in units of 1/255.
        clipped: Accepted share of colours that leave the range of values.

    Returns:
        Index of the candidate, `(B,)`.
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
    """Evaluate a map of colours on a lattice, and interpolate in it for every pixel of `(B, 3, H, W)`.

    With an opacity, `(B, 1, H, W)`, pixels where it is 0 may be left as they are.
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
    """Take the rows of the chosen candidates `(B,)` from parameters of B * K rows."""
    count = len(next(iter(parameters.values()))) // len(best)
    rows = torch.arange(len(best), device=best.device) * count + best
    return {name: values[rows] for name, values in parameters.items()}


def to_device(parameters: Parameters, device: torch.device) -> Parameters:
    """Move parameters to a device."""
    return {name: values.to(device) for name, values in parameters.items()}
