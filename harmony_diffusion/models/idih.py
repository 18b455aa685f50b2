"""iDIH: foreground-aware encoder-decoder that predicts for each pixel how much of the input to keep.

Paper: Sofiiuk et al., "Foreground-aware Semantic Representations for Image Harmonization", WACV 2021,
https://arxiv.org/abs/2006.00809.  Official code: https://github.com/SamsungLabs/image_harmonization
(MPL-2.0), config `improved_dih256`.  Changed here: the result is pasted on the untouched background
(`forward`); the official evaluation scores the whole frame (`predict`).

As in the code, `sigmoid(3 a)` is the share of the *input* in the result.  The variant with semantic features
of an HRNet is another network.
"""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from harmony_diffusion.models.contract import HarmonyModel
from harmony_diffusion.models.layers import (
    CheckpointedModule,
    ImageNetNormalize,
    crop_padding,
    init_gaussian_xavier_,
    pad_to_multiple,
)
from harmony_diffusion.models.official_keys import rename_keys
from harmony_diffusion.models.origin import Origin

# Official -> ours: the encoder-decoder (DIH and DCCF have it too) and the heads (iS2AM, DCCF, PCT-Net).
ENCODER_DECODER_KEYS = (
    (r"encoder\.(?:blocks_connected\.)?block(\d+)\.block\.([01]\..+)", r"backbone.encoder.\1.\2"),
    (r"decoder\.deconv_blocks\.(\d+)\.block\.([01]\..+)", r"backbone.decoder.\1.\2"),
)
HEAD_KEYS = ((r"decoder\.conv_attention\.(.+)", r"attention.\1"), (r"decoder\.to_rgb\.(.+)", r"to_rgb.\1"))


class EncoderDecoder(CheckpointedModule):
    """The convolutional encoder-decoder of DIH with additive skips.

    Args:
        depth: Number of halvings; the last one is a valid 4x4 convolution.
        norm_from: First encoder block with a batch norm; every decoder block has one.
        in_channels: Channels of the input.
        base_channels: Width of the first two blocks; it doubles every second block.
        max_channels: Width at which the doubling ends.
        feature_channels: Channels of features that join the input of the third block.
    """

    def __init__(
        self,
        depth: int = 7,
        norm_from: int = 0,
        in_channels: int = 4,
        base_channels: int = 64,
        max_channels: int = 512,
        feature_channels: int = 0,
    ) -> None:
        super().__init__()
        widths = [min(base_channels * 2 ** (i // 2), max_channels) for i in range(depth)]
        self.out_channels = base_channels // 2
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        for i, (before, after) in enumerate(zip([in_channels, *widths], widths, strict=False)):
            joined = feature_channels if i == 2 else 0
            conv = nn.Conv2d(before + joined, after, 4, stride=2, padding=int(i < depth - 1))
            norm = [nn.BatchNorm2d(after)] if i >= norm_from else []
            self.encoder.append(nn.Sequential(conv, *norm, nn.ELU()))
        upward = [*widths[::-1], self.out_channels]
        for i, (before, after) in enumerate(zip(upward, upward[1:], strict=False)):
            up = nn.ConvTranspose2d(before, after, 4, stride=2, padding=int(i > 0))
            self.decoder.append(nn.Sequential(up, nn.BatchNorm2d(after), nn.ELU()))

    def forward(self, x: Tensor, features: Tensor | None = None) -> Tensor:
        """Map `(B, in_channels, H, W)` to `(B, out_channels, H, W)`; `2 ** depth` divides H and W.

        Features are `(B, feature_channels, H / 4, W / 4)`.
        """
        skips = []
        for i, block in enumerate(self.encoder):
            if i == 2 and features is not None:
                x = torch.cat((x, features), 1)
            x = self.run(block, x)
            skips.append(x)
        skips.pop()
        for block in self.decoder:
            x = self.run(block, x)
            if skips:
                x = x + skips.pop()
        return x


class IDIH(HarmonyModel, ModelMixin, ConfigMixin):
    """Improved deep image harmonization: encoder-decoder plus attention fusion with the input.

    Args:
        depth: Number of halvings: 7 for iDIH256, 8 for iDIH512. Pictures are zero-padded on both sides to
            multiples of `2 ** (depth + 1)`, as the official predictor does.
        norm_from: First encoder block with a batch norm.
        base_channels: Width of the first two encoder blocks.

    Example:
        >>> model = IDIH(base_channels=8).eval()
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
    def __init__(self, depth: int = 7, norm_from: int = 2, base_channels: int = 64) -> None:
        super().__init__()
        self.multiple = 2 ** (depth + 1)
        self.normalize = ImageNetNormalize()
        self.backbone = EncoderDecoder(depth, norm_from, base_channels=base_channels)
        self.attention = nn.Conv2d(self.backbone.out_channels, 1, 1)
        self.to_rgb = nn.Conv2d(self.backbone.out_channels, 3, 1)
        init_gaussian_xavier_(self, magnitude=2)

    def predict(self, composite: Tensor, mask: Tensor) -> Tensor:
        """Return the network's frame, about [0, 1]."""
        image = self.normalize(pad_to_multiple(composite, self.multiple))
        features = self.backbone(torch.cat((image, pad_to_multiple(mask, self.multiple)), 1))
        keep = torch.sigmoid(3 * self.attention(features))
        output = keep * image + (1 - keep) * self.to_rgb(features)
        return crop_padding(self.normalize.inverse(output), (composite.shape[-2], composite.shape[-1]))

    @staticmethod
    def convert_official(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename the keys of `idih256.pth` (or an iDIH512 checkpoint)."""
        return rename_keys(state_dict, ENCODER_DECODER_KEYS + HEAD_KEYS, "iDIH")
