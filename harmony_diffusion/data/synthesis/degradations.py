"""Degradations of pasted foregrounds: JPEG compression, noise, blur and imperfect masks."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from harmony_diffusion.data.keyed_random import KeyedDraws, pixel_noise
from harmony_diffusion.data.synthesis.placement import scaled_pixels
from harmony_diffusion.morphology import dilate, erode

# Quantization tables of ISO/IEC 10918-1, annex K, row by row.
_LUMA_STEPS = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA_STEPS = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)
# RGB to luma, blue difference and red difference (ITU-T T.871), for values in [0, 255].
_TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))

# Shares of the changes from paste opacity to the mask for the model; 40 % are eroded, dilated, shifted or
# blurred.
MASK_KINDS = {
    "exact": 0.55,
    "hardened": 0.05,
    "eroded": 0.11,
    "dilated": 0.14,
    "shifted": 0.08,
    "blurred": 0.07,
}
_REACHES = (0.28, 0.26, 0.18, 0.12, 0.09, 0.07)  # weights of distances from 1 to 6 pixels
SOFT_IN_PLACE, SOFT_APART = 0.25, 0.6  # shares of pasted foregrounds with a soft edge


def degrade_(image: Tensor, draws: KeyedDraws, share: float = 0.1) -> Tensor:
    """Blur, add noise to and JPEG-compress random images of a batch, in place.

    Args:
        image: `(B, 3, H, W)` in [0, 1].
        draws: Random draws for B samples.
        share: Probability of each of the three degradations, drawn independently.

    Returns:
        `image`.
    """
    if len(rows := draws.chance("degrade/soft", share).nonzero()[:, 0]):
        where = rows.to(image.device)
        sigma = draws[rows].uniform("degrade/sigma", low=0.4, high=1.2)
        image[where] = _blur(image[where], sigma)
    if len(rows := draws.chance("degrade/noise", share).nonzero()[:, 0]):
        where = rows.to(image.device)
        std = draws[rows].uniform("degrade/std", low=0.004, high=0.03).float().to(image.device)
        noise = pixel_noise(draws.keys[rows], "degrade/pixels", image.shape[1:], image.device)
        image[where] += std.view(-1, 1, 1, 1) * noise
    if len(rows := draws.chance("degrade/jpeg", share).nonzero()[:, 0]):
        where = rows.to(image.device)
        quality = draws[rows].uniform("degrade/quality", low=30, high=90).to(image.device)
        image[where] = jpeg(image[where], quality)
    return image.clamp_(0, 1)


def jpeg(image: Tensor, quality: Tensor) -> Tensor:
    """Simulate JPEG compression: chroma at half the resolution, quantized DCT of 8x8 blocks.

    Args:
        image: `(B, 3, H, W)` in [0, 1].
        quality: Quality on the scale of libjpeg, `(B,)` in [1, 100].

    Returns:
        `(B, 3, H, W)`, not clamped.
    """
    height, width = image.shape[2:]
    padded = F.pad(image, (0, -width % 16, 0, -height % 16), mode="replicate") * 255
    to_ycc = torch.tensor(_TO_YCC).to(image)
    ycc = torch.einsum("dc,bchw->bdhw", to_ycc, padded)
    scale = torch.where(quality < 50, 50 / quality, 2 - quality / 50).float()[:, None, None]
    luma = _quantize(ycc[:, :1] - 128, torch.tensor(_LUMA_STEPS).to(image) * scale) + 128
    chroma = _quantize(F.avg_pool2d(ycc[:, 1:], 2), torch.tensor(_CHROMA_STEPS).to(image) * scale)
    chroma = F.interpolate(chroma, scale_factor=2.0, mode="bilinear")
    rgb = torch.einsum(
        "dc,bchw->bdhw", torch.linalg.inv(to_ycc.cpu()).to(image), torch.cat((luma, chroma), 1)
    )
    return rgb[:, :, :height, :width] / 255


def imperfect_masks(mask: Tensor, draws: KeyedDraws, apart: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Draw the mask for pasting a foreground, and the mask for the model.

    Args:
        mask: The true mask, `(B, 1, H, W)` in [0, 1].
        draws: Random draws for B samples.
        apart: True where the object is pasted on a background other than its own, `(B,)` bool. None means
            False for all. The mask of such an object is eroded by 0 to 2 pixels and usually softened, so that
            it contains no pixel of the old background.

    Returns:
        Opacity for pasting and mask for the model, both `(B, 1, H, W)`. The mask equals the opacity, or is a
        hard, eroded, dilated, shifted or blurred version of it. Distances are 1 to 6 pixels at an image side
        of 224 and scale with the image.
    """
    if apart is None:
        apart = torch.zeros(len(mask), dtype=torch.bool)
    opacity = _paste_edges(mask, draws, apart)
    given = opacity.clone()
    kinds = draws.choice("mask/kind", tuple(MASK_KINDS.values()))
    drawn = draws.choice("mask/reach", _REACHES) + 1
    reach = [max(1, value) for value in scaled_pixels(drawn.double(), mask)]
    sides = draws.choice("mask/side", (1, 1, 1, 1))
    sigma = draws.uniform("mask/sigma", low=0.5, high=2.0)
    for row, kind in enumerate(tuple(MASK_KINDS)[number] for number in kinds.tolist()):
        one, pixels = slice(row, row + 1), reach[row]
        edge = opacity[one] if apart[row] else mask[one]
        if kind == "hardened":
            given[one] = (opacity[one] >= 0.5).to(mask)
        elif kind == "blurred":
            given[one] = _blur(edge, sigma[one])
        elif kind == "dilated":
            given[one] = dilate(edge, pixels)
        elif kind == "eroded":
            given[one] = erode(edge, pixels)
        elif kind == "shifted":
            padded = F.pad(edge, (pixels,) * 4, mode="replicate")
            x, y = ((0, 1), (2, 1), (1, 0), (1, 2))[int(sides[row])]
            window = padded[:, :, y * pixels :, x * pixels :]
            given[one] = window[:, :, : mask.shape[2], : mask.shape[3]]
    # If less than half of a thin object is left, its mask is not changed.
    return opacity, torch.where(_holds_half_of(given, opacity), given, opacity)


def _paste_edges(mask: Tensor, draws: KeyedDraws, apart: Tensor) -> Tensor:
    """Erode the masks where `apart` is True by 0 to 2 pixels, and soften some of all masks."""
    opacity = mask.clone()
    tight = scaled_pixels(draws.choice("paste/erosion", (1, 1, 1)).double(), mask)
    shares = torch.where(apart, SOFT_APART, SOFT_IN_PLACE)
    soft = draws.uniform("paste/soft") < shares
    sigma = draws.uniform("paste/sigma", low=0.5, high=2.0)
    for row in range(len(mask)):
        one, pixels = slice(row, row + 1), tight[row]
        if apart[row] and pixels:
            eroded = erode(mask[one], pixels)
            opacity[one] = torch.where(_holds_half_of(eroded, mask[one]), eroded, mask[one])
        if soft[row]:
            opacity[one] = _blur(opacity[one], sigma[one])
    return opacity


def _holds_half_of(part: Tensor, mask: Tensor) -> Tensor:
    """Return True where `part` has more than half of the area of `mask`, `(B, 1, 1, 1)`."""
    return part.sum((1, 2, 3), keepdim=True) > 0.5 * mask.sum((1, 2, 3), keepdim=True)


def _blur(image: Tensor, sigma: Tensor) -> Tensor:
    """Blur each image with its own 7-tap Gaussian. Edges are replicated."""
    offsets = torch.arange(-3, 4)
    taps = torch.exp(-((offsets / sigma[:, None]) ** 2) / 2)
    taps = (taps / taps.sum(1, keepdim=True)).to(image)
    height, width = image.shape[2:]
    padded = F.pad(image, (3, 3, 3, 3), mode="replicate")
    rows = sum(taps[:, k].view(-1, 1, 1, 1) * padded[..., k : k + width] for k in range(7))
    return sum(taps[:, k].view(-1, 1, 1, 1) * rows[..., k : k + height, :] for k in range(7))  # type: ignore[index,return-value]


def _quantize(plane: Tensor, steps: Tensor) -> Tensor:
    """Round the DCT coefficients of the 8x8 blocks of `(B, C, H, W)` to multiples of `steps`, `(B, 8, 8)`."""
    index = torch.arange(8, device=plane.device)
    basis = torch.cos(math.pi * (2 * index[None] + 1) * index[:, None] / 16) / 2
    basis[0] /= 2**0.5
    blocks = plane.unflatten(3, (-1, 8)).unflatten(2, (-1, 8)).transpose(3, 4)  # (B, C, H/8, W/8, 8, 8)
    steps = steps.round().clamp_min(1)[:, None, None, None]
    blocks = basis.T @ ((basis @ blocks @ basis.T / steps).round() * steps) @ basis
    return blocks.transpose(3, 4).flatten(4).flatten(2, 3)
