"""Training samples by position: `sample_at(seed, epoch, index)` fully determines a sample.

Order, selection, crop and all later random draws depend only on these three numbers. A run that was killed
therefore resumes with the next index.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from harmony_diffusion.data.keyed_random import generator_of, sample_key
from harmony_diffusion.data.photographs import Photograph
from harmony_diffusion.data.sample import HarmonySample
from harmony_diffusion.data.transforms import WHOLE_FRAMES, check_same_size, draw_geometry
from harmony_diffusion.errors import InputError
from harmony_diffusion.images.quick_decoding import read_pair, read_picture

logger = logging.getLogger(__name__)

Item = dict[str, Tensor]
MAX_REDRAWS = 20


class TrainingSet(Protocol):
    """Interface that the training loop uses."""

    def __len__(self) -> int:
        """Return the number of samples in an epoch."""

    def sample_at(self, seed: int, epoch: int, index: int) -> Item:
        """Return one sample; see `PhotographSet` and `PairSet`."""


class KeyedView(Dataset[Item]):
    """Map-style data set over the positions 0, 1, 2, … of all epochs, for one seed.

    With a `range` of positions as sampler, a `DataLoader` can start and stop at any position.
    """

    def __init__(self, training_set: TrainingSet, seed: int) -> None:
        self.training_set, self.seed = training_set, seed

    def __len__(self) -> int:
        """Return the number of samples in an epoch."""
        return len(self.training_set)

    def __getitem__(self, position: int) -> Item:
        """Return the sample `position % len(self)` of the epoch `position // len(self)`."""
        epoch, index = divmod(position, len(self))
        return self.training_set.sample_at(self.seed, epoch, index)


class WeightedOrder:
    """Random order of `count` sources in an epoch, with optional weights.

    Systematic sampling: in an epoch of `count` samples, a source of weight w (weights have mean 1) is drawn
    at least floor(w) and at most ceil(w) times, in random order.

    Args:
        weights: One weight per source. None draws each source once per epoch.
        count: Number of sources.
    """

    def __init__(self, count: int, weights: Sequence[float] | None) -> None:
        self.count = count
        self.edges: np.ndarray | None = None
        if weights is not None:
            shares = np.asarray(weights, np.float64)
            if len(shares) != count or not np.isfinite(shares).all() or shares.min() < 0 or not shares.any():
                raise InputError("weights", f"must be {count} finite numbers of at least 0, one above 0")
            self.edges = np.cumsum(shares / shares.sum())
        self.cached: tuple[tuple[int, int], np.ndarray] | None = None

    def __call__(self, seed: int, epoch: int, index: int) -> int:
        """Return the number of the source at an index of an epoch."""
        if self.cached is None or self.cached[0] != (seed, epoch):
            generator = generator_of(sample_key(seed, epoch, 0), "order")
            count = self.count
            sources = generator.permutation(count)
            if self.edges is not None:
                positions = (sources + generator.random()) / count
                sources = np.searchsorted(self.edges, positions, side="right").clip(max=count - 1)
            self.cached = (seed, epoch), sources
        return int(self.cached[1][index])


class PhotographSet:
    """Crops of photographs with their masks. `SyntheticComposites` makes composites from them.

    Args:
        photographs: Photographs to draw from.
        size: Side of the square crops in pixels, a multiple of 8.
        weights: Sampling weight of each photograph. None draws each once per epoch.
        skip_bad: Replace an unusable photograph by another draw and count it. False raises an error.
        turn: Also rotate half of the crops by 90, 180 or 270 degrees.
        whole: Share of samples that use the whole image instead of a crop, in [0, 1].
        mirror: Mirror half of the samples.
    """

    def __init__(
        self,
        photographs: Sequence[Photograph],
        size: int,
        weights: Sequence[float] | None = None,
        skip_bad: bool = False,
        turn: bool = False,
        whole: float = WHOLE_FRAMES,
        mirror: bool = True,
    ) -> None:
        if not photographs:
            raise InputError("photographs", "is empty")
        self.photographs, self.size, self.skip_bad, self.turn = photographs, size, skip_bad, turn
        self.whole, self.mirror = whole, mirror
        self.order = WeightedOrder(len(photographs), weights)

    def __len__(self) -> int:
        """Return the number of samples in an epoch."""
        return len(self.photographs)

    def sample_at(self, seed: int, epoch: int, index: int) -> Item:
        """Return a crop.

        Returns:
            `real` `(3, size, size)` and `mask` `(1, size, size)`, uint8; `key`, int64, for all later draws;
            `source`, the index of the photograph; `skipped`, the number of unusable photographs skipped.

        Raises:
            InputError: The photograph cannot be used and `skip_bad` is False.
        """
        first, key = self.order(seed, epoch, index), sample_key(seed, epoch, index)

        def load(source: int) -> Item:
            return self.item(source, key)

        return _load_or_redraw(load, first, len(self.photographs), key, self.skip_bad)

    def item(self, source: int, key: int) -> Item:
        """Return the crop of a photograph that a key determines, `real` and `mask`."""
        photograph, options = self.photographs[source], {"turn": self.turn, "mirror": self.mirror}
        return photograph_item(photograph, self.size, key, whole=self.whole, **options)


class PairSet:
    """Crops of composites with their ground truth, for data sets such as iHarmony4.

    Args:
        samples: Samples to draw from.
        size: Side of the square crops in pixels.
        weights: Sampling weight of each sample. None draws each once per epoch.
        skip_bad: Replace an unusable sample by another draw and count it. False raises an error.
        turn: Also rotate half of the crops by 90, 180 or 270 degrees.
        whole: Share of samples that use the whole image instead of a crop, in [0, 1].
        mirror: Mirror half of the samples.
    """

    def __init__(
        self,
        samples: Sequence[HarmonySample],
        size: int,
        weights: Sequence[float] | None = None,
        skip_bad: bool = False,
        turn: bool = False,
        whole: float = WHOLE_FRAMES,
        mirror: bool = True,
    ) -> None:
        if not samples:
            raise InputError("samples", "is empty")
        self.samples, self.size, self.skip_bad, self.turn = samples, size, skip_bad, turn
        self.whole, self.mirror = whole, mirror
        self.order = WeightedOrder(len(samples), weights)

    def __len__(self) -> int:
        """Return the number of samples in an epoch."""
        return len(self.samples)

    def sample_at(self, seed: int, epoch: int, index: int) -> Item:
        """Return a crop with the items of `PhotographSet.sample_at` and `composite`, `(3, size, size)` uint8.

        Raises:
            InputError: The sample cannot be used and `skip_bad` is False.
        """
        first, key = self.order(seed, epoch, index), sample_key(seed, epoch, index)

        def load(source: int) -> Item:
            options = {"turn": self.turn, "mirror": self.mirror}
            return pair_item(self.samples[source], self.size, key, whole=self.whole, **options)

        return _load_or_redraw(load, first, len(self.samples), key, self.skip_bad)


def photograph_item(
    photograph: Photograph,
    size: int,
    key: int,
    *,
    turn: bool = False,
    whole: float = WHOLE_FRAMES,
    mirror: bool = True,
) -> Item:
    """Decode a photograph and crop it as the key determines; see `PhotographSet.sample_at`.

    Raises:
        InputError: The photograph cannot be used.
    """
    picture, mask = read_pair(
        photograph.picture, photograph.mask, shortest=2 * size, resize_mask=photograph.resize_mask
    )
    draws = generator_of(key, "geometry")
    geometry = draw_geometry(mask, size, draws, turn=turn, whole=whole, mirror=mirror)
    return {"real": _planes(geometry.picture(picture)), "mask": _planes(geometry.mask(mask))}


def pair_item(
    sample: HarmonySample,
    size: int,
    key: int,
    *,
    turn: bool = False,
    whole: float = WHOLE_FRAMES,
    mirror: bool = True,
) -> Item:
    """Decode a sample and crop it as the key determines; see `PairSet.sample_at`.

    Raises:
        InputError: The sample cannot be used.
    """
    composite, mask = read_pair(sample.composite, sample.mask)
    real = read_picture(sample.real)
    check_same_size(sample.real, composite, real)
    draws = generator_of(key, "geometry")
    geometry = draw_geometry(mask, size, draws, turn=turn, whole=whole, mirror=mirror)
    return {
        "composite": _planes(geometry.picture(composite)),
        "real": _planes(geometry.picture(real)),
        "mask": _planes(geometry.mask(mask)),
    }


def _load_or_redraw(load: Callable[[int], Item], first: int, count: int, key: int, skip_bad: bool) -> Item:
    """Load a source. If it is unusable and `skip_bad` is True, load others drawn with the key."""
    generator, source = generator_of(key, "redraw"), first
    for skipped in range(MAX_REDRAWS):
        try:
            item = load(source)
        except InputError as error:
            if not skip_bad:
                raise
            logger.warning("skipped: %s", error)
            source = int(generator.integers(count))
        else:
            return item | numbers_item(key=key, source=source, skipped=skipped)
    raise InputError(
        "data", f"{MAX_REDRAWS} samples drawn one after another cannot be used", "Run `harmony data check`"
    )


def numbers_item(**numbers: int) -> Item:
    """Convert numbers to tensors, so that a `DataLoader` collates them."""
    return {name: torch.tensor(value) for name, value in numbers.items()}


def _planes(array: np.ndarray) -> Tensor:
    """Convert `(H, W, 3)` or `(H, W)` to `(C, H, W)`."""
    planes = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(planes))
