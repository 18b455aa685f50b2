"""Random numbers that depend only on a key (seed, epoch, index), not on earlier draws.

A sample is therefore the same in any batch, process and order, and after any restart. The generator is
counter-based (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011). Its mixing function is
the finalizer of SplitMix64 (Steele et al., OOPSLA 2014).
"""

import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from harmony_diffusion.errors import InputError

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def sample_key(seed: int, epoch: int, index: int) -> int:
    """Return the key of a sample, in [0, 2**63).

    Example:
        >>> sample_key(0, 0, 1) == sample_key(0, 0, 1) != sample_key(0, 1, 0)
        True
    """
    key = 0
    for part in (seed, epoch, index):
        key = _mix_int((key + part * _GOLDEN + _GOLDEN) & _MASK)
    return key >> 1


def generator_of(key: int, name: str) -> np.random.Generator:
    """Return a NumPy generator for a key and the purpose `name`."""
    return np.random.Generator(np.random.Philox(key=_mix_int(key ^ _stream(name))))


class KeyedDraws:
    """Random draws for a batch of keys, on the CPU and in float64.

    Every draw has a name. Draws with different names are independent, and the same name gives the same
    numbers. Vectorized and scalar code may differ in the last bit of a float64. Rounding to float32 removes
    this difference, so that a sample does not depend on its batch size.

    Args:
        keys: Keys from `sample_key`, `(B,)` int64.
    """

    def __init__(self, keys: Tensor) -> None:
        self.keys = keys.detach().cpu()

    def __len__(self) -> int:
        """Return the size of the batch."""
        return len(self.keys)

    def __getitem__(self, rows: Tensor) -> "KeyedDraws":
        """Return the draws for some rows, selected by index or boolean mask."""
        return KeyedDraws(self.keys[rows])

    def uniform(self, name: str, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Draw uniformly from `[low, high)`, `(B, *shape)`."""
        bits = _hash(self.keys, name, math.prod(shape)).view(-1, *shape)
        # The upper 53 bits: a float64 has 53 bits of precision.
        return low + (high - low) * (((bits >> 11) & (2**53 - 1)).double() / 2**53)

    def normal(self, name: str, *shape: int, std: float = 1.0) -> Tensor:
        """Draw from a normal distribution with mean 0, `(B, *shape)` (Box-Muller transform)."""
        first, second = self.uniform(f"{name}/radius", *shape), self.uniform(f"{name}/angle", *shape)
        return std * (-2 * torch.log1p(-first)).sqrt() * torch.cos(2 * math.pi * second)

    def chance(self, name: str, probability: float, *shape: int) -> Tensor:
        """Draw 1.0 with the given probability, else 0.0, `(B, *shape)`."""
        return (self.uniform(name, *shape) < probability).double()

    def choice(self, name: str, weights: Sequence[float], *shape: int) -> Tensor:
        """Draw indices into `weights` with probability proportional to the weights, `(B, *shape)` int64."""
        edges = torch.tensor(weights, dtype=torch.float64).cumsum(0)
        return torch.searchsorted(edges[:-1] / edges[-1], self.uniform(name, *shape), right=True)


def weights_of(shares: Mapping[str, float], names: Sequence[str], argument: str) -> tuple[float, ...]:
    """Convert shares by name to weights for `KeyedDraws.choice`. A name without a share gets weight 0.

    Args:
        shares: Shares of some of `names`, at least 0.
        names: All names, in the order of the weights.
        argument: Name of the argument that contains the shares, for errors.

    Raises:
        InputError: A name is unknown, a share is below 0, or no share is above 0.
    """
    if unknown := set(shares) - set(names):
        raise InputError(
            argument, f"has the unknown name {', '.join(sorted(unknown))}", f"Choose from {', '.join(names)}."
        )
    weights = tuple(float(shares.get(name, 0.0)) for name in names)
    if min(weights) < 0 or sum(weights) <= 0:
        raise InputError(argument, f"must be at least 0 with one above 0, got {weights}")
    return weights


def pixel_noise(keys: Tensor, name: str, shape: Sequence[int], device: torch.device) -> Tensor:
    """Draw noise with mean 0 and standard deviation 1 for every pixel, on a device.

    Args:
        keys: `(B,)` int64.
        name: Name of the draw.
        shape: Shape of the noise of one sample.
        device: Device of the computation. The numbers are the same on all devices.

    Returns:
        Noise `(B, *shape)` float32. Each value is a scaled sum of four uniform bytes: approximately normal,
        absolute value at most 3.46.
    """
    count = math.prod(shape)
    start = torch.from_numpy((_hash(keys.cpu(), name, 1) & 0x7FFFFFFF).numpy().astype(np.int32)).to(device)
    bits = torch.arange(count, dtype=torch.int32, device=device) * -1640531527 + start
    # The finalizer of MurmurHash3 on 32 bits (Appleby, public domain).
    for shift, factor in ((16, -2048144789), (13, -1028477387), (16, 1)):
        bits = (bits ^ ((bits >> shift) & (2 ** (32 - shift) - 1))) * factor
    total = (bits & 255) + ((bits >> 8) & 255) + ((bits >> 16) & 255) + ((bits >> 24) & 255)
    return ((total - 510) / 147.8).view(-1, *shape)


def _hash(keys: Tensor, name: str, count: int) -> Tensor:
    """Return `(B, count)` int64 of random bits."""
    base = _mix(keys ^ _signed(_stream(name)))
    return _mix(base[:, None] + torch.arange(1, count + 1) * _signed(_GOLDEN))


def _stream(name: str) -> int:
    return _mix_int(zlib.crc32(name.encode()))


def _mix(bits: Tensor) -> Tensor:
    for shift, factor in ((30, _FIRST), (27, _SECOND), (31, 1)):
        # PyTorch's right shift copies the sign bit; the mask makes it a logical shift.
        bits = (bits ^ ((bits >> shift) & (2 ** (64 - shift) - 1))) * _signed(factor)
    return bits


def _mix_int(bits: int) -> int:
    for shift, factor in ((30, _FIRST), (27, _SECOND), (31, 1)):
        bits = ((bits ^ (bits >> shift)) * factor) & _MASK
    return bits


def _signed(bits: int) -> int:
    return bits - 2**64 if bits >= 2**63 else bits
