"""Colour transfer between two sets of colours, batched. iHarmony4 was made with these methods.

Every method fits a colour map to samples of the foreground and of a reference. The map then applies to any
colours. All colours are `(B, 3, N)`, approximately in [0, 1]. Results are not clamped.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from harmony_diffusion.color import lab_to_srgb, srgb_to_lab
from harmony_diffusion.data.keyed_random import KeyedDraws

ColorMap = Callable[[Tensor], Tensor]
KNOTS = 25
IDT_STEPS = 6
# Limits on the gain of a channel. A lower gain flattens an area, a higher one causes banding.
GAIN_LIMITS = (0.35, 2.8)


def reinhard(source: Tensor, reference: Tensor) -> ColorMap:
    """Match mean and standard deviation in CIE L*a*b* (Reinhard et al., IEEE CG&A 2001).

    Args:
        source: Colours of the foreground, `(B, 3, N)`.
        reference: Colours of the reference, `(B, 3, M)`.

    Returns:
        The colour map, from `(B, 3, P)` to the same shape.
    """
    (mean, std), (to_mean, to_std) = (_mean_and_std(_lab(colors)) for colors in (source, reference))
    gain = (to_std / std.clamp_min(0.5)).clamp(*GAIN_LIMITS)
    return lambda colors: _unlab((_lab(colors) - mean) * gain + to_mean)


def monge_kantorovitch(source: Tensor, reference: Tensor) -> ColorMap:
    """Match mean and covariance with the linear map of least displacement (Pitié and Kokaram, CVMP 2007).

    Arguments and result as in `reinhard`.
    """
    (mean, cov), (to_mean, to_cov) = (_mean_and_cov(colors) for colors in (source, reference))
    root = _matrix_power(cov, 0.5)
    inverse = _matrix_power(cov, -0.5)
    matrix = inverse @ _matrix_power(root @ to_cov @ root, 0.5) @ inverse
    values, vectors = torch.linalg.eigh(matrix)
    matrix = (vectors * values.clamp(*GAIN_LIMITS)[:, None]) @ vectors.mT
    offset = to_mean - matrix @ mean
    return lambda colors: mix_channels(colors, matrix.to(colors)) + offset.to(colors)


def match_histograms(source: Tensor, reference: Tensor) -> ColorMap:
    """Match the histogram of each RGB channel to the reference. Arguments and result as in `reinhard`."""
    knots, targets = _quantile_means(source), _quantile_means(reference)
    return lambda colors: interpolate(colors, knots, targets)


def iterative_distribution_transfer(source: Tensor, reference: Tensor, draws: KeyedDraws) -> ColorMap:
    """Match the full distribution by matching it along random rotations (Pitié et al., ICCV 2005).

    Args:
        source: Colours of the foreground, `(B, 3, N)`.
        reference: Colours of the reference, `(B, 3, M)`.
        draws: Source of the rotations. Its size is B, or B / K when each sample has K candidates.

    Returns:
        The colour map, as in `reinhard`.
    """
    steps = []
    for step in range(IDT_STEPS):
        turn = _rotations(draws.normal(f"idt/{step}", 4)).to(source)
        turn = turn.repeat_interleave(len(source) // len(turn), 0)
        turned = mix_channels(source, turn)
        knots, targets = _quantile_means(turned), _quantile_means(mix_channels(reference, turn))
        source = mix_channels(interpolate(turned, knots, targets), turn.mT)
        steps.append((turn, knots, targets))

    def color_map(colors: Tensor) -> Tensor:
        for turn, knots, targets in steps:
            colors = mix_channels(interpolate(mix_channels(colors, turn), knots, targets), turn.mT)
        return colors

    return color_map


def mix_channels(colors: Tensor, matrix: Tensor) -> Tensor:
    """Multiply colours `(B, 3, N)` by matrices `(B, 3, 3)`.

    The product is written out, because the rounding of a batched product depends on the batch size.
    """
    parts = [matrix[:, :, c, None] * colors[:, None, c] for c in range(3)]
    return parts[0] + parts[1] + parts[2]


def interpolate(values: Tensor, knots: Tensor, targets: Tensor) -> Tensor:
    """Interpolate linearly between knots, with slope 1 outside the first and last knot.

    Args:
        values: `(B, C, N)`.
        knots: `(B, C, K)`, increasing.
        targets: `(B, C, K)`.

    Returns:
        `(B, C, N)`.
    """
    inside = torch.minimum(torch.maximum(values, knots[..., :1]), knots[..., -1:])
    right = torch.searchsorted(knots.contiguous(), inside.contiguous()).clamp(1, knots.shape[-1] - 1)
    low, low_target = knots.gather(2, right - 1), targets.gather(2, right - 1)
    span, rise = knots.gather(2, right) - low, targets.gather(2, right) - low_target
    return low_target + (inside - low) / span.clamp_min(1e-6) * rise + (values - inside)


def _quantile_means(values: Tensor) -> Tensor:
    """Return the means of `KNOTS` equal groups of the sorted values `(B, C, N)`, strictly increasing."""
    ordered = values.sort(2).values
    count = ordered.shape[2] // KNOTS * KNOTS
    first = (ordered.shape[2] - count) // 2
    means = ordered[..., first : first + count].unflatten(2, (KNOTS, -1)).mean(3)
    return means + torch.arange(KNOTS, device=values.device) * 1e-4


def _mean_and_std(colors: Tensor) -> tuple[Tensor, Tensor]:
    std, mean = torch.std_mean(colors.double(), 2, keepdim=True)
    return mean.to(colors), std.to(colors)


def _mean_and_cov(colors: Tensor) -> tuple[Tensor, Tensor]:
    """Return means `(B, 3, 1)` and regularized covariances `(B, 3, 3)` in float64 on the CPU."""
    colors = colors.double()
    mean = colors.mean(2, keepdim=True)
    centred = colors - mean
    cov = (centred[:, :, None] * centred[:, None]).mean(3) + 1e-4 * torch.eye(3).to(colors)
    return mean.cpu(), cov.cpu()


def _matrix_power(matrix: Tensor, power: float) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(1e-8)[:, None] ** power) @ vectors.mT


def _rotations(normals: Tensor) -> Tensor:
    """Convert normal draws `(B, 4)` to uniformly distributed rotations `(B, 3, 3)`, using quaternions."""
    w, x, y, z = (normals / normals.norm(dim=1, keepdim=True).clamp_min(1e-9)).unbind(1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, 1) for row in rows], 1)


def _lab(colors: Tensor) -> Tensor:
    return srgb_to_lab(colors.clamp(0, 1)[..., None])[..., 0]


def _unlab(colors: Tensor) -> Tensor:
    return lab_to_srgb(colors[..., None])[..., 0]
