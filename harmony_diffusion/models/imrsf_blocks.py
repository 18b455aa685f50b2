"""The modules of iMRSF-DAM-GCT: resampling, selective fusion, attention, channel gates, and their assembly.

Paper: "基于语义信息引导的图像协调化" (sections 2.1 and 2.2).  Choices of ours are marked ★.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from harmony_diffusion.models.layers import CheckpointedModule


def conv_gelu(in_channels: int, out_channels: int, size: int) -> nn.Sequential:
    """`CG` of eq. 1 and 2: convolution (without bias ★) and GELU."""
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, size, padding=size // 2, bias=False), nn.GELU())


class AntiAliasedDownsampling(nn.Module):
    """`AD` of eq. 2: binomial blur `[1 2 1] x [1 2 1] / 16` ★ of every channel, then every second pixel."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        row = torch.tensor([1.0, 2.0, 1.0])
        self.register_buffer("kernel", (row[:, None] * row / 16)[None, None], persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """Halve `(B, C, H, W)`; odd sizes are rounded up."""
        channels = features.shape[1]
        padded = functional.pad(features, (1, 1, 1, 1), mode="reflect")
        return functional.conv2d(padded, self.kernel.expand(channels, 1, 3, 3), stride=2, groups=channels)


class Upsample(nn.Module):
    """Double the size and halve the channels (eq. 1): a learned path and a bilinear one, added.

    Args:
        channels: Input channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.learned = nn.Sequential(
            conv_gelu(channels, channels, 1),
            conv_gelu(channels, channels, 3),
            nn.ConvTranspose2d(channels, channels, 3, stride=2, padding=1, output_padding=1, bias=False),  # ★
            conv_gelu(channels, channels // 2, 1),
        )
        self.direct = conv_gelu(channels, channels // 2, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return `(B, C / 2, 2H, 2W)`."""
        enlarged = functional.interpolate(features, scale_factor=2, mode="bilinear", align_corners=False)  # ★
        return self.learned(features) + self.direct(enlarged)


class Downsample(nn.Module):
    """Halve the size and double the channels (eq. 2): a learned path and a blurred one, added.

    Args:
        channels: Input channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.learned = nn.Sequential(
            conv_gelu(channels, channels, 1),
            conv_gelu(channels, channels, 3),
            AntiAliasedDownsampling(),
            conv_gelu(channels, 2 * channels, 1),
        )
        self.direct = nn.Sequential(AntiAliasedDownsampling(), conv_gelu(channels, 2 * channels, 1))

    def forward(self, features: Tensor) -> Tensor:
        """Return `(B, 2C, H / 2, W / 2)`."""
        return self.learned(features) + self.direct(features)


class SelectiveFusion(nn.Module):
    """MRSFM: the sum of several feature maps, weighed channel by channel (eq. 3 to 6).

    Args:
        channels: Channels of every input and of the result.
        inputs: How many feature maps are fused.
    """

    def __init__(self, channels: int, inputs: int) -> None:
        super().__init__()
        hidden = max(channels // 8, 4)  # ★
        self.squeeze = nn.Sequential(nn.Conv2d(channels, hidden, 1, bias=False), nn.GELU())
        self.expand = nn.ModuleList(nn.Conv2d(hidden, channels, 1, bias=False) for _ in range(inputs))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Fuse maps of equal shape, `(B, C, H, W)` each."""
        # The mean of a sum is the sum of the means: the sum of eq. 3 need not be formed at full size.
        means = [x.mean((2, 3), keepdim=True) for x in features]
        squeezed = self.squeeze(torch.stack(means).sum(0))  # (B, d, 1, 1)
        weights = torch.stack([expand(squeezed) for expand in self.expand]).softmax(0)  # (inputs, B, C, 1, 1)
        fused = weights[0] * features[0]
        for weight, x in zip(weights[1:], features[1:], strict=True):
            fused = torch.addcmul(fused, weight, x)
        return fused


class DualAttention(nn.Module):
    """CBAM (https://arxiv.org/abs/1807.06521): a gate for every channel, then one for every pixel.

    Args:
        channels: Channels of the features.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(channels // 16, 8)  # ★
        self.channel = nn.Sequential(
            nn.Conv2d(channels, hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden, channels, 1)
        )
        self.spatial = nn.Sequential(nn.Conv2d(2, 1, 7, padding=3, bias=False), nn.BatchNorm2d(1))  # ★

    def forward(self, features: Tensor) -> Tensor:
        """Return the gated features, `(B, C, H, W)`."""
        mean, peak = features.mean((2, 3), keepdim=True), features.amax((2, 3), keepdim=True)
        features = features * (self.channel(mean) + self.channel(peak)).sigmoid()
        summary = torch.cat([features.amax(1, keepdim=True), features.mean(1, keepdim=True)], dim=1)
        return features * self.spatial(summary).sigmoid()


class GatedChannelTransformation(nn.Module):
    """GCT (eq. 7 to 9): scale every channel by how its energy compares with that of the others.

    `gamma > 0` makes channels compete, `gamma < 0` makes them cooperate; a fresh unit is the identity.

    Args:
        channels: Channels of the features.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.epsilon = 1e-5

    def forward(self, features: Tensor) -> Tensor:
        """Return the gated features, `(B, C, H, W)`."""
        energy = features.square().sum((2, 3), keepdim=True)
        embedding = self.alpha * (energy + self.epsilon).sqrt()  # eq. 7, (B, C, 1, 1)
        norm = (embedding.square().sum(1, keepdim=True) + self.epsilon).sqrt()
        embedding = embedding * features.shape[1] ** 0.5 / norm  # eq. 8
        return features * (1 + (self.gamma * embedding + self.beta).tanh())  # eq. 9


class MultiResolutionAttention(CheckpointedModule):
    """MRSF-DAM: parallel streams at 1, 1/2, 1/4, … of the size that exchange, fuse and attend (figure 2).

    For two streams the figure shows three MRSFM, two CBAM, a 1x1 convolution and a sum. ★ The wiring: every
    stream fuses all streams brought to its size, and attends; then all are fused at full size. Each
    resampling has its own weights.

    Args:
        channels: Channels of the full-size stream; each smaller stream has twice as many as the one before.
        streams: K of table 4; with one stream there is nothing to fuse.
    """

    def __init__(self, channels: int, streams: int = 2) -> None:
        super().__init__()
        widths = [channels * 2**k for k in range(streams)]
        self.down = nn.ModuleList(Downsample(width) for width in widths[:-1])
        self.exchange = nn.ModuleList(
            nn.ModuleList(_path(widths, source, target) for source in range(streams))
            for target in range(streams)
        )
        self.fuse = nn.ModuleList(SelectiveFusion(width, streams) for width in widths if streams > 1)
        self.attention = nn.ModuleList(DualAttention(width) for width in widths)
        self.last_up = nn.ModuleList(_path(widths, source, 0) for source in range(streams))
        self.last_fuse = SelectiveFusion(channels, streams) if streams > 1 else None
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return the features enriched, `(B, C, H, W)`; H and W divisible by 2 for each further stream."""
        streams = [features]
        for down in self.down:
            streams.append(self.run(down, streams[-1]))
        attended = []
        for target, attention in enumerate(self.attention):
            aligned = self._align(self.exchange[target], streams)  # type: ignore[arg-type]
            fused = self.fuse[target](aligned) if self.fuse else aligned[0]
            attended.append(self.run(attention, fused))
        aligned = self._align(self.last_up, attended)
        return features + self.out(aligned[0] if self.last_fuse is None else self.last_fuse(aligned))

    def _align(self, paths: nn.ModuleList, streams: list[Tensor]) -> list[Tensor]:
        """Bring all streams to one size; a stream that has it already passes unchanged."""
        return [
            self.run(path, x) if len(path) else x  # type: ignore[arg-type]
            for path, x in zip(paths, streams, strict=True)
        ]


def _path(widths: Sequence[int], source: int, target: int) -> nn.Sequential:
    """The resampling steps from one stream to another; none for a stream to itself."""
    if source < target:
        return nn.Sequential(*(Downsample(widths[k]) for k in range(source, target)))
    return nn.Sequential(*(Upsample(widths[k]) for k in range(source, target, -1)))
