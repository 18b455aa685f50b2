"""Inception-v3 (Szegedy et al. 2016, https://arxiv.org/abs/1512.00567) as FID uses it.

The network is that of the TensorFlow graph of 2015-12-05: average pooling ignores the padding, and the last
block uses maximum pooling. Parameter names are those of pytorch-fid and torch-fidelity, so that their
checkpoints load after conversion to safetensors. The user provides the weights; nothing is downloaded.
"""

import os
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from harmony_diffusion.errors import CheckpointError

# A path through a block: names of units, or `"avg"` and `"max"` for pooling. A pair of names is a fork.
Route = tuple[str | tuple[str, str], ...]
# A unit of a block: input channels (0 = input channels of the block), output channels, kernel, stride.
Units = dict[str, tuple[int, int, tuple[int, int], int]]

_POINT, _SQUARE, _WIDE, _TALL = (1, 1), (3, 3), (1, 7), (7, 1)


class FIDInception(nn.Module):
    """Image features of Inception-v3: the 2,048 averages before the classifier.

    `forward` takes `(B, 3, H, W)` float32 in [0, 255], usually 299x299, and returns `(B, 2048)`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Unit(3, 32, _SQUARE, stride=2)
        self.Conv2d_2a_3x3 = _Unit(32, 32, _SQUARE)
        self.Conv2d_2b_3x3 = _Unit(32, 64, _SQUARE, padding=1)
        self.Conv2d_3b_1x1 = _Unit(64, 80, _POINT)
        self.Conv2d_4a_3x3 = _Unit(80, 192, _SQUARE)
        self.Mixed_5b = _block_a(192, 32)
        self.Mixed_5c = _block_a(256, 64)
        self.Mixed_5d = _block_a(288, 64)
        self.Mixed_6a = _block_b(288)
        self.Mixed_6b = _block_c(768, 128)
        self.Mixed_6c = _block_c(768, 160)
        self.Mixed_6d = _block_c(768, 160)
        self.Mixed_6e = _block_c(768, 192)
        self.Mixed_7a = _block_d(768)
        self.Mixed_7b = _block_e(1280, "avg")
        self.Mixed_7c = _block_e(2048, "max")

    def forward(self, images: Tensor) -> Tensor:
        """Return features `(B, 2048)` of images `(B, 3, H, W)` in [0, 255]."""
        x = (images - 128) / 128  # as in the graph: 255 maps to slightly less than 1
        x = x.contiguous(memory_format=torch.channels_last)  # a fifth less time on CPUs
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = functional.max_pool2d(x, 3, 2)
        x = functional.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, 2)
        for name, block in self.named_children():
            x = block(x) if name.startswith("Mixed") else x
        return x.mean((2, 3))

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> "FIDInception":
        """Load weights from a safetensors file for evaluation. Weights of the classifier are ignored.

        The normalizations are folded into the convolutions, so the result has other parameters than the file.

        Raises:
            CheckpointError: The file is not safetensors, or its keys or shapes do not fit this network.
        """
        try:
            state = load_file(Path(path))
        except Exception as error:  # safetensors raises its own error type
            raise CheckpointError(f"{path}: is not a safetensors file ({error})") from None
        state = {key: value for key, value in state.items() if not key.startswith(("fc.", "AuxLogits."))}
        with torch.device("meta"):
            network = cls()
        for key in network.state_dict():
            if key.endswith("num_batches_tracked"):  # a training counter that old checkpoints lack
                state.setdefault(key, torch.zeros((), dtype=torch.long))
        try:
            network.load_state_dict(state, assign=True)
        except RuntimeError as error:
            raise CheckpointError(f"{path}: does not fit FIDInception: {error}") from None
        network.eval()
        network.fold_norms()
        return network

    def fold_norms(self) -> None:
        """Move the normalizations into the convolutions, which saves a tenth of the time of evaluation."""
        for module in self.modules():
            if isinstance(module, _Unit):
                module.conv = fuse_conv_bn_eval(module.conv, module.bn)
                module.add_module("bn", nn.Identity())


class _Unit(nn.Module):
    """Convolution, batch normalization, ReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: tuple[int, int],
        *,
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu_(self.bn(self.conv(x)))


class _Block(nn.Module):
    """Parallel paths whose results are concatenated along the channels."""

    def __init__(self, in_channels: int, units: Units, paths: tuple[Route, ...]) -> None:
        super().__init__()
        self.paths = paths
        for name, (before, after, kernel, stride) in units.items():
            # Units that halve the size have no padding; all others keep the size.
            padding = (0, 0) if stride == 2 else (kernel[0] // 2, kernel[1] // 2)
            unit = _Unit(before or in_channels, after, kernel, stride=stride, padding=padding)
            self.add_module(name, unit)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self._follow(path, x) for path in self.paths], 1)

    def _follow(self, path: Route, x: Tensor) -> Tensor:
        for step in path:
            if step == "avg":
                x = functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
            elif step == "max":
                x = functional.max_pool2d(x, 3, 1, 1)
            elif step == "halve":
                x = functional.max_pool2d(x, 3, 2)
            elif isinstance(step, tuple):
                x = torch.cat([self.get_submodule(name)(x) for name in step], 1)
            else:
                x = self.get_submodule(step)(x)
        return x


def _block_a(in_channels: int, pooled: int) -> _Block:
    units: Units = {
        "branch1x1": (0, 64, _POINT, 1),
        "branch5x5_1": (0, 48, _POINT, 1),
        "branch5x5_2": (48, 64, (5, 5), 1),
        "branch3x3dbl_1": (0, 64, _POINT, 1),
        "branch3x3dbl_2": (64, 96, _SQUARE, 1),
        "branch3x3dbl_3": (96, 96, _SQUARE, 1),
        "branch_pool": (0, pooled, _POINT, 1),
    }
    triple = ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3")
    paths = (("branch1x1",), ("branch5x5_1", "branch5x5_2"), triple, ("avg", "branch_pool"))
    return _Block(in_channels, units, paths)


def _block_b(in_channels: int) -> _Block:
    units: Units = {
        "branch3x3": (0, 384, _SQUARE, 2),
        "branch3x3dbl_1": (0, 64, _POINT, 1),
        "branch3x3dbl_2": (64, 96, _SQUARE, 1),
        "branch3x3dbl_3": (96, 96, _SQUARE, 2),
    }
    triple = ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3")
    return _Block(in_channels, units, (("branch3x3",), triple, ("halve",)))


def _block_c(in_channels: int, inner: int) -> _Block:
    units: Units = {
        "branch1x1": (0, 192, _POINT, 1),
        "branch7x7_1": (0, inner, _POINT, 1),
        "branch7x7_2": (inner, inner, _WIDE, 1),
        "branch7x7_3": (inner, 192, _TALL, 1),
        "branch7x7dbl_1": (0, inner, _POINT, 1),
        "branch7x7dbl_2": (inner, inner, _TALL, 1),
        "branch7x7dbl_3": (inner, inner, _WIDE, 1),
        "branch7x7dbl_4": (inner, inner, _TALL, 1),
        "branch7x7dbl_5": (inner, 192, _WIDE, 1),
        "branch_pool": (0, 192, _POINT, 1),
    }
    single = tuple(f"branch7x7_{i}" for i in (1, 2, 3))
    double = tuple(f"branch7x7dbl_{i}" for i in (1, 2, 3, 4, 5))
    return _Block(in_channels, units, (("branch1x1",), single, double, ("avg", "branch_pool")))


def _block_d(in_channels: int) -> _Block:
    units: Units = {
        "branch3x3_1": (0, 192, _POINT, 1),
        "branch3x3_2": (192, 320, _SQUARE, 2),
        "branch7x7x3_1": (0, 192, _POINT, 1),
        "branch7x7x3_2": (192, 192, _WIDE, 1),
        "branch7x7x3_3": (192, 192, _TALL, 1),
        "branch7x7x3_4": (192, 192, _SQUARE, 2),
    }
    long = tuple(f"branch7x7x3_{i}" for i in (1, 2, 3, 4))
    return _Block(in_channels, units, (("branch3x3_1", "branch3x3_2"), long, ("halve",)))


def _block_e(in_channels: int, pooling: str) -> _Block:
    units: Units = {
        "branch1x1": (0, 320, _POINT, 1),
        "branch3x3_1": (0, 384, _POINT, 1),
        "branch3x3_2a": (384, 384, (1, 3), 1),
        "branch3x3_2b": (384, 384, (3, 1), 1),
        "branch3x3dbl_1": (0, 448, _POINT, 1),
        "branch3x3dbl_2": (448, 384, _SQUARE, 1),
        "branch3x3dbl_3a": (384, 384, (1, 3), 1),
        "branch3x3dbl_3b": (384, 384, (3, 1), 1),
        "branch_pool": (0, 192, _POINT, 1),
    }
    single: Route = ("branch3x3_1", ("branch3x3_2a", "branch3x3_2b"))
    double: Route = ("branch3x3dbl_1", "branch3x3dbl_2", ("branch3x3dbl_3a", "branch3x3dbl_3b"))
    return _Block(in_channels, units, (("branch1x1",), single, double, (pooling, "branch_pool")))
