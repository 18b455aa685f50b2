"""Synthetic composites: recolour the foreground of a real photograph, which is then the ground truth.

All functions are batched, run on any device, and depend only on the keys of the samples. Five kinds are
mixed: colour transfer from the foreground of another photograph, as in HCOCO and HFlickr of iHarmony4 (Cong
et al., CVPR 2020); a photographer's edit, as in HAdobe5k; light that varies over the object; Harmonizer's
filters in reverse (Ke et al., ECCV 2022); and unchanged pairs. Most recolourings are colour maps, applied
through a 3-D lookup table. By default, two thirds of the objects are placed in front of another part of their
photograph, see `synthesis.placement`.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from harmony_diffusion import color
from harmony_diffusion.data.keyed_random import KeyedDraws, generator_of, sample_key, weights_of
from harmony_diffusion.data.photographs import Photograph
from harmony_diffusion.data.synthesis import color_transfer as transfer
from harmony_diffusion.data.synthesis.candidates import (
    CANDIDATES,
    choose,
    foreground_colors,
    look_up_colors,
    pick,
    to_device,
)
from harmony_diffusion.data.synthesis.degradations import degrade_, imperfect_masks
from harmony_diffusion.data.synthesis.lighting import GRID, draw_light, light_gain
from harmony_diffusion.data.synthesis.placement import DEFAULT_PLACEMENTS, place, placement_weights
from harmony_diffusion.data.synthesis.retouching import draw_retouch, relight, retouch
from harmony_diffusion.errors import InputError
from harmony_diffusion.images.quick_decoding import read_pair

KINDS = ("transfer", "retouch", "light", "filters", "untouched")
DEFAULT_SHARES = {"transfer": 0.32, "retouch": 0.31, "light": 0.2, "filters": 0.07, "untouched": 0.1}
METHODS = ("reinhard", "monge_kantorovitch", "histograms", "distribution")
REFERENCE_PIXELS = 512
# Filters of Harmonizer in order of application, with the argument ranges of its training.
FILTERS = (
    (color.temperature, 0.3),
    (color.brightness, 0.5),
    (color.contrast, 0.5),
    (color.saturation, 0.6),
    (color.highlight, 0.4),
    (color.shadow, 0.4),
)


class SyntheticBatch(NamedTuple):
    """A batch of composites. All images are multiples of 1/255, like images read from 8-bit files.

    Attributes:
        composite: `(B, 3, H, W)` in [0, 1].
        mask: The mask for the model, `(B, 1, H, W)` in [0, 1]. Its edge may be soft or slightly wrong.
        real: `(B, 3, H, W)` in [0, 1].
        opacity: The mask used to paste the foreground, `(B, 1, H, W)` in [0, 1].
        kind: Index into `KINDS`, `(B,)` int64 on the CPU.
    """

    composite: Tensor
    mask: Tensor
    real: Tensor
    opacity: Tensor
    kind: Tensor


class SyntheticComposites:
    """Make composites from photographs and masks.

    Args:
        references: Foreground colours of photographs from `reference_colors`, `(P, 3, N)` uint8.
        shares: Share of each of `KINDS`. A kind without a share is not used.
        jittered: Share of photographs that are first edited as a whole, as data augmentation.
        imperfect: If True, masks may be soft or wrong and foregrounds may be degraded.
        placements: Share of each of `placement.PLACEMENTS`. A placement without a share is not used.

    Raises:
        InputError: A kind or placement is unknown, a share is below 0, or references for colour transfer are
            missing.
    """

    def __init__(
        self,
        references: Tensor | None,
        shares: Mapping[str, float] = DEFAULT_SHARES,
        jittered: float = 0.4,
        imperfect: bool = True,
        placements: Mapping[str, float] = DEFAULT_PLACEMENTS,
    ) -> None:
        self.shares = weights_of(shares, KINDS, "shares")
        if references is None and self.shares[0] > 0:
            raise InputError("references", "are needed for colour transfer")
        self.references, self.jittered, self.imperfect = references, jittered, imperfect
        self.placements = placement_weights(placements)

    def to(self, device: torch.device | str) -> "SyntheticComposites":
        """Move the references to a device, and return self."""
        self.references = None if self.references is None else self.references.to(device)
        return self

    @torch.no_grad()
    def __call__(self, real: Tensor, mask: Tensor, keys: Tensor) -> SyntheticBatch:
        """Make one composite from each photograph.

        Args:
            real: `(B, 3, H, W)` uint8, on the device of the computation.
            mask: `(B, 1, H, W)` uint8.
            keys: `(B,)` int64. A composite depends only on its key, photograph and mask.

        Returns:
            The batch, on the device of `real`.
        """
        draws = KeyedDraws(keys)
        image, true_mask = real.float().div_(255), mask.float().div_(255)
        rows = draws.chance("jitter", self.jittered).nonzero()[:, 0]
        if len(rows):
            where = rows.to(image.device)
            image[where] = round_to_8_bits_(jitter(image[where], draws[rows]))
        foreground, background, true_mask, apart = place(image, true_mask, draws, self.placements)
        opacity, given = true_mask, true_mask
        if self.imperfect:
            opacity, given = imperfect_masks(true_mask, draws, apart)
        # If both layers are the same image, this does not change it.
        real = round_to_8_bits_(torch.lerp(background, foreground, opacity))
        kinds = draws.choice("kind", self.shares)
        composite = real.clone()
        for number, recolor in enumerate((self._transfer, _retouch, _light, _filters)):
            rows = (kinds == number).nonzero()[:, 0]
            if not len(rows):
                continue
            where = rows.to(image.device)
            pasted = opacity[where]
            edited = recolor(foreground[where], true_mask[where], pasted, draws[rows]).clamp_(0, 1)
            if self.imperfect:
                degrade_(edited, draws[rows])
            composite[where] = round_to_8_bits_(torch.lerp(background[where], edited, pasted, out=edited))
        return SyntheticBatch(composite, round_to_8_bits_(given), real, opacity, kinds)

    def _transfer(self, image: Tensor, mask: Tensor, opacity: Tensor, draws: KeyedDraws) -> Tensor:
        assert self.references is not None
        method = draws.choice("transfer/method", (1.0,) * len(METHODS))
        drawn = draws.uniform("transfer/reference", CANDIDATES) * len(self.references)
        picked = self.references[drawn.long().to(image.device)].float() / 255  # (B, K, 3, N)
        strength = draws.uniform("transfer/strength", low=0.35, high=1.0).float().to(image.device)
        own = foreground_colors(image, mask, draws)
        edited = image.clone()
        for number in range(len(METHODS)):
            rows = (method == number).nonzero()[:, 0]
            if not len(rows):
                continue
            where = rows.to(image.device)
            args = own[where], picked[where], strength[where], draws[rows]
            color_map = _choose_transfer(METHODS[number], *args)
            edited[where] = look_up_colors(image[where], color_map, opacity[where])
        return edited


def reversed_filters(
    image: Tensor, mask: Tensor, keys: Tensor, candidates: int = 1
) -> tuple[Tensor, list[Tensor]]:
    """Apply Harmonizer's filters in reverse order with random arguments: the "fine" stream of its training.

    Args:
        image: The real images, `(B, 3, H, W)` in [0, 1].
        mask: `(B, 1, H, W)` in [0, 1].
        keys: `(B,)` int64.
        candidates: Number of draws per sample; `choose` selects one of them. The paper uses a single draw.

    Returns:
        The composites, and the target after each filter in the order of the model. The last target is
        `image`.
    """
    draws = KeyedDraws(keys)
    arguments = draws.uniform("filters/arguments", candidates, len(FILTERS), low=-1, high=1)
    arguments = (arguments * torch.tensor([limit for _, limit in FILTERS])).float().to(image.device)
    if candidates > 1:
        small, weight = (F.interpolate(x, (GRID, GRID)) for x in (image, mask))
        tried = _run_filters(
            small.repeat_interleave(candidates, 0),
            weight.repeat_interleave(candidates, 0),
            arguments.flatten(0, 1),
        )[0]
        best = choose(small.flatten(2), tried.flatten(2), weight.flatten(2))
        arguments = arguments[torch.arange(len(image), device=image.device), best]
    else:
        arguments = arguments[:, 0]
    composite, *targets = _run_filters(image, mask, arguments)
    return composite, targets


def reference_colors(photographs: Sequence[Photograph], limit: int = 4096, skip_bad: bool = False) -> Tensor:
    """Collect foreground colours of photographs as references for colour transfer.

    Args:
        photographs: All photographs.
        limit: Largest number of photographs to read, spread evenly.
        skip_bad: Leave out unusable photographs. False raises an error.

    Returns:
        Colours `(P, 3, REFERENCE_PIXELS)` uint8.

    Raises:
        InputError: A photograph cannot be used and `skip_bad` is False, or no photograph can be used.
    """
    collected = []
    step = max(1, len(photographs) / limit)
    for number in range(min(len(photographs), limit)):
        photograph = photographs[int(number * step)]
        try:
            picture, mask = read_pair(
                photograph.picture, photograph.mask, shortest=96, resize_mask=photograph.resize_mask
            )
        except InputError:
            if not skip_bad:
                raise
            continue
        pixels = picture[mask > 127]
        generator = generator_of(sample_key(0, 0, number), "reference")
        collected.append(pixels[generator.integers(len(pixels), size=REFERENCE_PIXELS)].T.copy())
    if not collected:
        raise InputError("photographs", "hold no usable foreground")
    return torch.stack([torch.from_numpy(colors) for colors in collected])


def jitter(image: Tensor, draws: KeyedDraws) -> Tensor:
    """Apply mild random edits to whole images, `(B, 3, H, W)` in [0, 1], and return the same shape."""
    everywhere = torch.ones_like(image[:, :1])
    colors = foreground_colors(image, everywhere, draws)
    edit = to_device(draw_retouch(KeyedDraws(draws.keys ^ 1), CANDIDATES, strength=0.5), image.device)
    tried = retouch(colors.repeat_interleave(CANDIDATES, 0), edit)
    best = choose(colors, tried, mse_range=(0.0, 2000.0), clipped=0.02)
    return look_up_colors(image, lambda nodes: retouch(nodes, pick(edit, best))).clamp_(0, 1)


def round_to_8_bits_(image: Tensor) -> Tensor:
    """Round values in [0, 1] to multiples of 1/255, in place."""
    return image.mul_(255).round_().div_(255)


def _choose_transfer(
    name: str, own: Tensor, picked: Tensor, strength: Tensor, draws: KeyedDraws
) -> transfer.ColorMap:
    """Fit a colour transfer to each of K references and return the map for the selected reference."""
    strength = strength[:, None, None]

    def fit(source: Tensor, reference: Tensor) -> transfer.ColorMap:
        if name == "distribution":
            return transfer.iterative_distribution_transfer(source, reference, draws)
        methods = (transfer.reinhard, transfer.monge_kantorovitch, transfer.match_histograms)
        return dict(zip(METHODS, methods, strict=False))[name](source, reference)

    repeated = own.repeat_interleave(CANDIDATES, 0)
    moved = fit(repeated, picked.flatten(0, 1))(repeated)
    tried = torch.lerp(repeated, moved, strength.repeat_interleave(CANDIDATES, 0))
    best = choose(own, tried)
    color_map = fit(own, picked[torch.arange(len(own), device=own.device), best])
    return lambda nodes: torch.lerp(nodes, color_map(nodes), strength)


def _retouch(image: Tensor, mask: Tensor, opacity: Tensor, draws: KeyedDraws) -> Tensor:
    own = foreground_colors(image, mask, draws)
    edit = to_device(draw_retouch(draws, CANDIDATES), image.device)
    best = choose(own, retouch(own.repeat_interleave(CANDIDATES, 0), edit))
    return look_up_colors(image, lambda nodes: retouch(nodes, pick(edit, best)), opacity)


def _light(image: Tensor, mask: Tensor, opacity: Tensor, draws: KeyedDraws) -> Tensor:
    light = to_device(draw_light(draws, CANDIDATES), image.device)
    small, weight = (F.interpolate(x, (GRID, GRID)) for x in (image, mask))
    repeated = small.repeat_interleave(CANDIDATES, 0)
    gain = light_gain(weight.repeat_interleave(CANDIDATES, 0), light)
    tried = relight(repeated, gain, light["shoulder"])
    best = choose(small.flatten(2), tried.flatten(2), weight.flatten(2))
    chosen = pick({"gain": gain, "shoulder": light["shoulder"]}, best)
    gain = F.interpolate(chosen["gain"], image.shape[2:], mode="bilinear", align_corners=True)
    return relight(image, gain, chosen["shoulder"])


def _filters(image: Tensor, mask: Tensor, opacity: Tensor, draws: KeyedDraws) -> Tensor:
    return reversed_filters(image, mask, draws.keys, CANDIDATES)[0]


def _run_filters(image: Tensor, mask: Tensor, arguments: Tensor) -> list[Tensor]:
    """Apply the filters from last to first. Return their results, first to last, then the input."""
    stages = [image]
    for (apply, _), argument in zip(reversed(FILTERS), arguments.flip(1).unbind(1), strict=True):
        stages.insert(0, torch.lerp(image, apply(stages[0], argument), mask))
    return stages
