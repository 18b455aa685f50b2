"""LPIPS (Zhang et al. 2018, https://arxiv.org/abs/1801.03924) with AlexNet. The user provides the weights."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from harmony_diffusion.errors import CheckpointError, InputError

# Input channels, output channels, kernel, stride, padding. Maximum pooling precedes the second and third
# layer.
_LAYERS = (
    (3, 64, 11, 4, 2),
    (64, 192, 5, 1, 2),
    (192, 384, 3, 1, 1),
    (384, 256, 3, 1, 1),
    (256, 256, 3, 1, 1),
)
_NAMES = (0, 3, 6, 8, 10)  # indices of the convolutions in AlexNet's checkpoint


class LPIPS(nn.Module):
    """Perceptual distance of two images, one value per image pair. 0 for identical images.

    Example:
        >>> x = torch.rand(2, 3, 64, 64) * 255
        >>> LPIPS()(x, x).tolist()
        [0.0, 0.0]
    """

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(i, o, k, s, p) for i, o, k, s, p in _LAYERS)
        self.heads = nn.ModuleList(nn.Conv2d(layer[1], 1, 1, bias=False) for layer in _LAYERS)
        # Mean and deviation of ImageNet for values in [-1, 1], rounded as in the published code.
        for name, values in (("shift", (-0.030, -0.088, -0.188)), ("scale", (0.458, 0.448, 0.450))):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def forward(self, harmonized: Tensor, real: Tensor) -> Tensor:
        """Compute the distance.

        Args:
            harmonized: Result in [0, 255], `(B, 3, H, W)`, sides of at least 31 pixels.
            real: Ground truth in [0, 255], `(B, 3, H, W)`.

        Returns:
            Distances `(B,)` in the precision of the weights.

        Raises:
            ValueError: The shapes differ.
        """
        if harmonized.shape != real.shape or harmonized.ndim != 4:
            raise ValueError(
                f"`harmonized` and `real` must both be (B, 3, H, W), got {tuple(harmonized.shape)} and "
                f"{tuple(real.shape)}."
            )
        distance = self.shift.new_zeros(len(harmonized))
        pairs = zip(self._features(harmonized), self._features(real), self.heads, strict=True)
        for first, second, head in pairs:
            distance = distance + head((first - second).square()).mean((1, 2, 3))
        return distance

    def _features(self, images: Tensor) -> Iterator[Tensor]:
        x = ((images.to(self.shift.dtype) / 127.5 - 1) - self.shift) / self.scale
        for index, convolution in enumerate(self.convolutions):
            if index in (1, 2):
                x = functional.max_pool2d(x, 3, 2)
            x = functional.relu(convolution(x))
            yield x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)

    @classmethod
    def from_files(cls, backbone: str | os.PathLike[str], heads: str | os.PathLike[str]) -> "LPIPS":
        """Load AlexNet's ImageNet checkpoint and the heads of LPIPS 0.1, each `.pth` or `.safetensors`.

        Args:
            backbone: File with keys `features.0.weight`, …. Keys of the classifier are ignored.
            heads: File with keys `lin0.model.1.weight`, ….

        Raises:
            InputError: A file does not exist.
            CheckpointError: A file cannot be read, or lacks a key.
        """
        state = {}
        network, linear = _read(backbone), _read(heads)
        for index, name in enumerate(_NAMES):
            state[f"convolutions.{index}.weight"] = _take(network, f"features.{name}.weight", backbone)
            state[f"convolutions.{index}.bias"] = _take(network, f"features.{name}.bias", backbone)
            state[f"heads.{index}.weight"] = _take(linear, f"lin{index}.model.1.weight", heads)
        model = cls()
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise CheckpointError(f"{backbone}, {heads}: do not fit AlexNet: {error}") from None
        return model.eval().requires_grad_(False)


def _read(path: str | os.PathLike[str]) -> Mapping[str, Tensor]:
    path = Path(path)
    if not path.is_file():
        raise InputError(path, "does not exist", "Give the path of the weights.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or malicious file can cause almost any exception
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{path}: cannot be read as weights ({reason})") from None


def _take(state: Mapping[str, Tensor], key: str, path: str | os.PathLike[str]) -> Tensor:
    if key not in state:
        raise CheckpointError(f"{path}: lacks {key}")
    return state[key]
