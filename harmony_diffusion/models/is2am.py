"""iS2AM: U-Net with spatial-separated attention and fusion with the input, SAIC form.

Paper: Sofiiuk et al., "Foreground-aware Semantic Representations for Image Harmonization", WACV 2021,
https://arxiv.org/abs/2006.00809, after S2AM (Cun and Pun, TIP 2020, https://arxiv.org/abs/1907.06406).
Official code: https://github.com/SamsungLabs/image_harmonization (MPL-2.0), config `improved_ssam256`.
Changed here: the result is pasted on the untouched background (`forward`); the official evaluation scores the
whole frame (`predict`).

The 66.70 M parameters that papers print for iS2AM belong to the original S2AM; this network has 2.19 M.
"""

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from harmony_diffusion.models.contract import HarmonyModel
from harmony_diffusion.models.idih import HEAD_KEYS
from harmony_diffusion.models.layers import (
    CheckpointedModule,
    ImageNetNormalize,
    crop_padding,
    init_gaussian_xavier_,
    pad_to_multiple,
)
from harmony_diffusion.models.official_keys import rename_keys
from harmony_diffusion.models.origin import Origin

# Official -> ours for the U-Net; PCT-Net and DCCF use it too. The blur of the mask is a constant of ours.
_BLOCK = r"decoder\.up_blocks\.(\d+)\."
UNET_KEYS: tuple[tuple[str, str | None], ...] = (
    (
        r"encoder\.(?:blocks_connected\.)?block(\d+)\.convs\.block\.([01])\.block\.([01]\..+)",
        r"backbone.encoder.\1.\2.\3",
    ),
    (_BLOCK + r"upconv\.1\.block\.(0\..+)", r"backbone.decoder.\1.up.\2"),
    (_BLOCK + r"convs\.block\.([01])\.block\.([01]\..+)", r"backbone.decoder.\1.convs.\2.\3"),
    (
        _BLOCK + r"attention\.(background|foreground|mix)_gate\.attention_transform\.([02]\..+)",
        r"backbone.decoder.\1.attention.\2_gate.mlp.\3",
    ),
    (
        _BLOCK + r"attention\.learning_block\.([01])\.block\.([01]\..+)",
        r"backbone.decoder.\1.attention.learn.\2.\3",
    ),
    (_BLOCK + r"attention\.mask_blurring\.weight", None),
)


def _conv(in_channels: int, out_channels: int, norm: bool, bias: bool = True) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias)
    return nn.Sequential(conv, *([nn.BatchNorm2d(out_channels)] if norm else []), nn.ReLU())


class ChannelGate(nn.Module):
    """Weigh channels by an MLP of their mean and maximum over the frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(channels // 16, 8)
        self.mlp = nn.Sequential(nn.Linear(2 * channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Gate features, `(B, C, H, W)`."""
        statistics = torch.cat((x.mean((2, 3)), x.amax((2, 3))), 1)
        return x * torch.sigmoid(self.mlp(statistics))[..., None, None]


class SpatialSeparatedAttention(nn.Module):
    """Gate foreground and background separately, and relearn the foreground (S2AM, sec. III-B).

    Args:
        channels: Channels of the features.
        mid_ratio: Width of the learned block relative to `channels`.
    """

    blur: Tensor

    def __init__(self, channels: int, mid_ratio: float = 0.5) -> None:
        super().__init__()
        mid = int(mid_ratio * channels)
        self.background_gate = ChannelGate(channels)
        self.foreground_gate = ChannelGate(channels)
        self.mix_gate = ChannelGate(channels)
        self.learn = nn.Sequential(
            _conv(channels, mid, norm=True, bias=False), _conv(mid, channels, norm=True, bias=False)
        )
        gaussian = torch.exp(-0.5 * torch.arange(-3.0, 4.0) ** 2)  # 7 taps, sigma 1
        gaussian = gaussian / gaussian.sum()
        self.register_buffer("blur", (gaussian[:, None] * gaussian)[None, None], persistent=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Attend to features `(B, C, h, w)` under the picture's mask `(B, 1, H, W)`."""
        if mask.shape[-2:] != x.shape[-2:]:
            mask = F.interpolate(mask, x.shape[-2:], mode="bilinear", align_corners=True)
        mask = F.conv2d(mask, self.blur, padding=3)
        foreground = self.learn(self.foreground_gate(x)) + self.mix_gate(x)
        return mask * foreground + (1 - mask) * self.background_gate(x)


class UpBlock(nn.Module):
    """Double the resolution and join the skip.

    Args:
        in_channels: Channels from below.
        out_channels: Channels of the skip and of the result.
        attention: Attend to the joined features.
        mid_ratio: Of the attention.
    """

    def __init__(self, in_channels: int, out_channels: int, attention: bool, mid_ratio: float) -> None:
        super().__init__()
        self.up = _conv(in_channels, out_channels, norm=False)
        self.attention = SpatialSeparatedAttention(2 * out_channels, mid_ratio) if attention else None
        self.convs = nn.Sequential(
            _conv(2 * out_channels, out_channels, norm=True), _conv(out_channels, out_channels, norm=True)
        )

    def forward(self, x: Tensor, skip: Tensor, mask: Tensor) -> Tensor:
        """Map `(B, in_channels, h, w)` and a skip `(B, out_channels, 2 h, 2 w)` to the size of the skip."""
        x = self.up(F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True))
        x = torch.cat((skip, x), 1)
        if self.attention is not None:
            x = self.attention(x, mask)
        return self.convs(x)


class AttentionUNet(CheckpointedModule):
    """The U-Net of iS2AM.

    Args:
        depth: Number of scales.
        base_channels: Width at full resolution; it doubles with every scale.
        norm_from: First encoder scale with batch norms; every decoder block has them.
        attend_from: First decoder block, counted from the lowest resolution, with attention.
        mid_ratio: Width of the learned block in the attention.
    """

    def __init__(
        self,
        depth: int = 4,
        base_channels: int = 32,
        norm_from: int = 2,
        attend_from: int = 2,
        mid_ratio: float = 0.5,
    ) -> None:
        super().__init__()
        self.out_channels = base_channels
        widths = [base_channels * 2**i for i in range(depth)]
        self.encoder = nn.ModuleList(
            nn.Sequential(_conv(before, after, i >= norm_from), _conv(after, after, i >= norm_from))
            for i, (before, after) in enumerate(zip([4, *widths], widths, strict=False))
        )
        upward = widths[::-1]
        self.decoder = nn.ModuleList(
            UpBlock(before, after, i >= attend_from, mid_ratio)
            for i, (before, after) in enumerate(zip(upward, upward[1:], strict=False))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised image and mask, `(B, 4, H, W)`, to `(B, base_channels, H, W)`.

        `2 ** (depth - 1)` divides H and W.
        """
        return self.decode(self.encode(x), x[:, 3:])

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return the features of every scale, from full resolution to the deepest."""
        features: list[Tensor] = []
        for block in self.encoder:
            features.append(self.run(block, F.max_pool2d(features[-1], 2) if features else x))
        return features

    def decode(self, features: list[Tensor], mask: Tensor) -> Tensor:
        """Map the features of every scale and the mask `(B, 1, H, W)` to `(B, base_channels, H, W)`."""
        x = features[-1]
        for block, skip in zip(self.decoder, features[-2::-1], strict=True):
            x = self.run(block, x, skip, mask)
        return x


class IS2AM(HarmonyModel, ModelMixin, ConfigMixin):
    """U-Net with spatial-separated attention and attention fusion with the input.

    Args:
        depth: Number of scales. Pictures are zero-padded on both sides to multiples of `2 ** (depth + 1)`, as
            the official predictor does.
        base_channels: Width at full resolution.
        attend_from: First decoder block with attention: 2 of 3 is the last one, at full resolution.
        mid_ratio: Width of the learned block in the attention.

    Example:
        >>> model = IS2AM(base_channels=8).eval()
        >>> model(torch.rand(1, 3, 40, 50), torch.ones(1, 1, 40, 50)).shape
        torch.Size([1, 3, 40, 50])
    """

    origin = Origin(
        title="Foreground-aware Semantic Representations for Image Harmonization",
        paper="https://arxiv.org/abs/2006.00809",
        code="https://github.com/SamsungLabs/image_harmonization",
        code_license="MPL-2.0",
        weights_license="MPL-2.0",
    )
    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self, depth: int = 4, base_channels: int = 32, attend_from: int = 2, mid_ratio: float = 0.5
    ) -> None:
        super().__init__()
        self.multiple = 2 ** (depth + 1)
        self.normalize = ImageNetNormalize()
        self.backbone = AttentionUNet(depth, base_channels, attend_from=attend_from, mid_ratio=mid_ratio)
        self.attention = nn.Conv2d(base_channels, 1, 1)
        self.to_rgb = nn.Conv2d(base_channels, 3, 1)
        init_gaussian_xavier_(self, magnitude=1)

    def predict(self, composite: Tensor, mask: Tensor) -> Tensor:
        """Return the network's frame, about [0, 1]."""
        image = self.normalize(pad_to_multiple(composite, self.multiple))
        features = self.backbone(torch.cat((image, pad_to_multiple(mask, self.multiple)), 1))
        keep = torch.sigmoid(3 * self.attention(features))
        output = keep * image + (1 - keep) * self.to_rgb(features)
        return crop_padding(self.normalize.inverse(output), (composite.shape[-2], composite.shape[-1]))

    @staticmethod
    def convert_official(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename the keys of `issam256.pth`; the constant blur of the mask is dropped."""
        return rename_keys(state_dict, UNET_KEYS + HEAD_KEYS, "iS2AM")
