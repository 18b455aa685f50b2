"""DoveNet: attention-gated pix2pix U-Net, trained against a domain verification discriminator.

Paper: Cong et al., "DoveNet: Deep Image Harmonization via Domain Verification", CVPR 2020,
https://arxiv.org/abs/1911.13239.  Official code:
https://github.com/bcmi/Image-Harmonization-Dataset-iHarmony4 (MIT), generator `s2ad` with batch norm, as
released.  Changed here: pictures of any size are mirrored up to a multiple of 256, and the result is pasted
on the untouched background (`forward`); the official evaluation scores the whole frame (`predict`).

Only the generator is here. The official test script leaves dropout active and normalizes each picture by its
own statistics unless it is given `--eval`; a model in evaluation mode does neither.
"""

from collections.abc import Iterator

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional as F

from harmony_diffusion.models.contract import HarmonyModel
from harmony_diffusion.models.layers import CheckpointedModule, init_pix2pix_, reflect_to_multiple
from harmony_diffusion.models.official_keys import rename_keys
from harmony_diffusion.models.origin import Origin

_STRIDE = 256


class UpStage(nn.Module):
    """Double the resolution, join the skip, gate and activate the result.

    Args:
        in_channels: Channels from below.
        out_channels: Channels of the skip and of the upsampled features.
        dropout: Probability, 0 for none.
        gate: Weigh the joined features by a sigmoid of a 1x1 convolution of them.
    """

    def __init__(self, in_channels: int, out_channels: int, dropout: float, gate: bool) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(in_channels, out_channels, 4, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.gate = nn.Conv2d(2 * out_channels, 2 * out_channels, 1) if gate else None

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Map `(B, in_channels, h, w)` and a skip `(B, C, 2 h, 2 w)` to `(B, 2 C, 2 h, 2 w)`."""
        x = torch.cat((skip, self.dropout(self.norm(self.conv(x)))), 1)
        return F.relu(x if self.gate is None else torch.sigmoid(self.gate(x)) * x, inplace=True)


class GatedUNet(CheckpointedModule):
    """U-Net of eight levels whose three outer decoder stages are gated: the generator `s2ad`.

    Args:
        in_channels: Channels of the input.
        base_channels: Width of the first level; it doubles three times.
        dropout: After the normalization of the second to fourth decoder stage, in training.
    """

    def __init__(self, in_channels: int, base_channels: int, dropout: float) -> None:
        super().__init__()
        widths = [base_channels * factor for factor in (1, 2, 4, 8, 8, 8, 8, 8)]
        self.down = nn.ModuleList()
        for i, (before, after) in enumerate(zip([in_channels, *widths], widths, strict=False)):
            norm = [nn.BatchNorm2d(after)] if 0 < i < 7 else []
            activation = nn.LeakyReLU(0.2, inplace=True) if i < 7 else nn.ReLU(inplace=True)
            conv = nn.Conv2d(before, after, 4, 2, 1, bias=False)
            self.down.append(nn.Sequential(conv, *norm, activation))
        self.up = nn.ModuleList()
        for i in range(7):
            below, width = widths[7 - i] * (1 if i == 0 else 2), widths[6 - i]
            self.up.append(UpStage(below, width, dropout if 1 <= i <= 3 else 0.0, gate=i >= 4))
        self.to_rgb = nn.ConvTranspose2d(2 * base_channels, 3, 4, 2, 1)
        init_pix2pix_(self)

    def translate(self, x: Tensor) -> Tensor:
        """Map `(B, in_channels, H, W)` to a picture `(B, 3, H, W)` in [-1, 1]; 256 divides H and W."""
        x = x.contiguous(memory_format=torch.channels_last)
        # The skips are activated: the official LeakyReLU works in place.
        skips = []
        for stage in self.down:
            x = self.run(stage, x)
            skips.append(x)
        # The memory format of a 1x1 map is ambiguous; set it for the decoder.
        x = skips.pop().clone(memory_format=torch.channels_last)
        for stage in self.up:
            x = self.run(stage, x, skips.pop())
        return torch.tanh(self.to_rgb(x))


def _official_keys() -> Iterator[tuple[str, str]]:
    yield r"model\.model\.0\.(weight)", r"down.0.0.\1"
    yield r"model\.model\.3\.(weight|bias)", r"to_rgb.\1"
    for level in range(1, 8):
        block, stage = r"model\.model\.1" + r"\.model\.3" * (level - 1), 7 - level
        conv, norm = (3, 4) if level == 7 else (5, 6)
        yield rf"{block}\.model\.1\.(weight)", rf"down.{level}.0.\1"
        yield rf"{block}\.model\.{conv}\.(weight)", rf"up.{stage}.conv.\1"
        yield rf"{block}\.model\.{norm}\.(.+)", rf"up.{stage}.norm.\1"
        if level < 7:
            yield rf"{block}\.model\.2\.(.+)", rf"down.{level}.1.\1"
        if level < 4:
            yield rf"{block}\.attention\.0\.(.+)", rf"up.{stage}.gate.\1"


# Official -> ours; BargainNet has this generator too.
GATED_UNET_KEYS = tuple(_official_keys())


class DoveNet(GatedUNet, HarmonyModel, ModelMixin, ConfigMixin):
    """Generator of DoveNet: a U-Net of eight levels on the composite and its mask.

    Args:
        base_channels: Width of the first level; it doubles three times.
        dropout: After the normalization of the second to fourth decoder stage, in training.

    Example:
        >>> model = DoveNet(base_channels=4).eval()
        >>> model(torch.rand(1, 3, 40, 50), torch.ones(1, 1, 40, 50)).shape
        torch.Size([1, 3, 40, 50])
    """

    origin = Origin(
        title="DoveNet: Deep Image Harmonization via Domain Verification",
        paper="https://arxiv.org/abs/1911.13239",
        code="https://github.com/bcmi/Image-Harmonization-Dataset-iHarmony4",
        code_license="MIT",
        weights_license="MIT",
    )
    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(self, base_channels: int = 64, dropout: float = 0.5) -> None:
        super().__init__(4, base_channels, dropout)

    def predict(self, composite: Tensor, mask: Tensor) -> Tensor:
        """Return the network's frame, in [0, 1]."""
        height, width = composite.shape[-2:]
        x = reflect_to_multiple(torch.cat((2 * composite - 1, mask), 1), _STRIDE)
        x = self.translate(x)
        return ((x + 1) / 2)[..., :height, :width].to(composite.dtype).contiguous()

    @staticmethod
    def convert_official(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename the keys of the official generator, `latest_net_G.pth`."""
        return rename_keys(state_dict, GATED_UNET_KEYS, "DoveNet")
