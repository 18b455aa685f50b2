"""Light that varies over an object: smooth fields of exposure and colour temperature, batched."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from harmony_diffusion.data.keyed_random import KeyedDraws
from harmony_diffusion.data.synthesis.retouching import DISPLAY_GAMMA, Parameters

GRID = 48  # side of the grid on which the smooth light is computed before it is enlarged
NOISE_NODES = 4
# Shares of the four shapes: gradient, soft shadow edge, spot, smooth noise.
SHAPES = (0.45, 0.2, 0.15, 0.2)


def draw_light(draws: KeyedDraws, candidates: int) -> Parameters:
    """Draw parameters of light that varies over an object.

    Args:
        draws: Random draws for B samples.
        candidates: Number of lights per sample, K.

    Returns:
        Parameters with B * K rows, the candidates of one sample in a row.
    """

    def uniform(name: str, low: float, high: float) -> Tensor:
        return draws.uniform(f"light/{name}", candidates, low=low, high=high).flatten()

    def normal(name: str, std: float) -> Tensor:
        return draws.normal(f"light/{name}", candidates, std=std).flatten()

    ev, warmth, tint = uniform("range", 0.35, 1.7), normal("temperature range", 0.22), normal("tint", 0.04)
    shift, warm = normal("exposure", 0.5), normal("temperature", 0.10)
    temperature = torch.tensor((1.0, 0.0, -1.0), dtype=torch.float64)
    green = torch.tensor((1.0, -1.0, 1.0), dtype=torch.float64)
    constant = 0.693 * shift[:, None] + warm[:, None] * temperature + tint[:, None] * green
    slope = 0.693 * ev[:, None] + warmth[:, None] * temperature
    noise = draws.normal("light/noise", candidates, 1, NOISE_NODES, NOISE_NODES).flatten(0, 1)
    return {
        "shape": F.one_hot(draws.choice("light/shape", SHAPES, candidates).flatten(), len(SHAPES)).float(),
        "angle": uniform("angle", 0, 2 * math.pi).float(),
        "offset": normal("offset", 0.5).float(),
        "width": uniform("width", 0.7, 2.0).float(),
        "noise": noise.float(),
        "constant": (constant / DISPLAY_GAMMA).float()[:, :, None, None],
        "slope": (slope / DISPLAY_GAMMA).float()[:, :, None, None],
        "shoulder": uniform("shoulder", 0, 1).float()[:, None, None, None],
    }


def light_gain(mask: Tensor, light: Parameters) -> Tensor:
    """Compute gains of display values, centred on the object and scaled to its size.

    Args:
        mask: Mask of the object, `(B, 1, GRID, GRID)` in [0, 1].
        light: Parameters with B rows, on the device of `mask`.

    Returns:
        Gains `(B, 3, GRID, GRID)` in [0.2, 4].
    """
    axis = torch.linspace(-1, 1, GRID, device=mask.device)
    x, y = axis.view(1, 1, 1, -1), axis.view(1, 1, -1, 1)
    weight = (mask + 1e-4).double()
    weight = weight / weight.sum((2, 3), keepdim=True)
    center_x, center_y = (weight * x).sum((2, 3), keepdim=True), (weight * y).sum((2, 3), keepdim=True)
    std_x = (weight * (x - center_x) ** 2).sum((2, 3), keepdim=True).sqrt().clamp_min(0.03)
    std_y = (weight * (y - center_y) ** 2).sum((2, 3), keepdim=True).sqrt().clamp_min(0.03)
    x, y = ((x - center_x) / std_x).float(), ((y - center_y) / std_y).float()
    angle, offset, width = (light[key].view(-1, 1, 1, 1) for key in ("angle", "offset", "width"))
    along = x * angle.cos() + y * angle.sin() - offset
    across = y * angle.cos() - x * angle.sin()
    gradient = torch.tanh(along / (1.2 * width))
    edge = torch.tanh(3 * along / width)
    spot = 2 * torch.exp(-(along**2 + across**2) / (2 * width**2)) - 1
    noise = F.interpolate(light["noise"], (GRID, GRID), mode="bicubic", align_corners=True).tanh()
    fields = torch.stack((gradient, edge, spot, noise), 1)
    field = (fields * light["shape"][:, :, None, None, None]).sum(1)
    return (light["constant"] + light["slope"] * field).exp().clamp(0.2, 4.0)
