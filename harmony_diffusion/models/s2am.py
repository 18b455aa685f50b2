"""S2AM: U-Net with a decoder that attends to foreground and background separately.

Paper: Cun and Pun, "Improving the Harmony of the Composite Image by Spatial-Separated Attention Module",
IEEE TIP 2020, https://arxiv.org/abs/1907.06406.  Official code: https://github.com/vinthony/s2am (no licence:
all rights reserved; written from facts about it), network `rascv2`, the one compared on iHarmony4.  Changed
here: pictures of any size are mirrored up to a multiple of 256, and the result is pasted on the untouched
background (`forward`); the official evaluation scores the whole frame (`predict`).
"""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional as F

from harmony_diffusion.models.contract import HarmonyModel
from harmony_diffusion.models.layers import (
    CheckpointedModule,
    init_pix2pix_,
    reflect_to_multiple,
)
from harmony_diffusion.models.official_keys import rename_keys
from harmony_diffusion.models.origin import Origin

_STRIDE = 256


class SpatialSeparatedAttention(nn.Module):
    """Gate background and foreground by channel, separately, and relearn the foreground (Sec. III).

    Args:
        channels: Channels of the features.
    """

    blur: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(channels // 16, 1)

        def gate() -> nn.Sequential:
            return nn.Sequential(nn.Linear(2 * channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))

        self.background_gate, self.mixed_gate, self.spliced_gate = gate(), gate(), gate()
        self.learn = nn.Sequential(
            nn.Conv2d(channels, 2 * channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(2 * channels),
            nn.ELU(),
            nn.Conv2d(2 * channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ELU(),
        )
        gaussian = torch.exp(-0.5 * torch.arange(-2.0, 3.0) ** 2)  # 5 taps, sigma 1
        gaussian = gaussian / gaussian.sum()
        self.register_buffer("blur", (gaussian[:, None] * gaussian)[None, None], persistent=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Attend to features `(B, C, h, w)` under the picture's mask `(B, 1, k h, k w)`."""
        # The 2 x 2 corner of each cell decides; a tie counts as background.
        stride = mask.shape[2] // x.shape[2], mask.shape[3] // x.shape[3]
        mask = F.avg_pool2d(mask, 2, stride).round()
        mask = F.conv2d(F.pad(mask, (2, 2, 2, 2), mode="reflect"), self.blur)
        statistics = torch.cat((x.mean((2, 3)), x.amax((2, 3))), 1)
        background, mixed, foreground = (
            x * torch.sigmoid(gate(statistics))[..., None, None]
            for gate in (self.background_gate, self.mixed_gate, self.spliced_gate)
        )
        return torch.lerp(background, self.learn(foreground) + mixed, mask)


class UpStage(nn.Module):
    """Double the resolution, join the skip, attend to the result and activate it.

    Args:
        in_channels: Channels from below.
        out_channels: Channels of the skip and of the upsampled features.
        attention: Whether to attend.
    """

    def __init__(self, in_channels: int, out_channels: int, attention: bool) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(in_channels, out_channels, 4, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.attention = SpatialSeparatedAttention(2 * out_channels) if attention else None

    def forward(self, x: Tensor, skip: Tensor, mask: Tensor) -> Tensor:
        """Map `(B, in_channels, h, w)` and a skip `(B, C, 2 h, 2 w)` to `(B, 2 C, 2 h, 2 w)`."""
        x = torch.cat((skip, self.norm(self.conv(x))), 1)
        return F.relu(x if self.attention is None else self.attention(x, mask), inplace=True)


class S2AM(CheckpointedModule, HarmonyModel, ModelMixin, ConfigMixin):
    """U-Net of eight levels with spatial-separated attention in the three finest decoder stages.

    Args:
        base_channels: Width of the first level; it doubles three times.

    Example:
        >>> model = S2AM(base_channels=4).eval()
        >>> model(torch.rand(1, 3, 40, 50), torch.ones(1, 1, 40, 50)).shape
        torch.Size([1, 3, 40, 50])
    """

    origin = Origin(
        title="Improving the Harmony of the Composite Image by Spatial-Separated Attention Module",
        paper="https://arxiv.org/abs/1907.06406",
        code="https://github.com/vinthony/s2am",
        code_license="none (all rights reserved)",
        weights_license="none (all rights reserved)",
    )
    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(self, base_channels: int = 64) -> None:
        super().__init__()
        widths = [base_channels * factor for factor in (1, 2, 4, 8, 8, 8, 8, 8)]
        self.down = nn.ModuleList()
        for i, (before, after) in enumerate(zip([4, *widths], widths, strict=False)):
            norm = [nn.BatchNorm2d(after)] if 0 < i < 7 else []
            activation = nn.LeakyReLU(0.2, inplace=True) if i < 7 else nn.ReLU(inplace=True)
            conv = nn.Conv2d(before, after, 4, 2, 1, bias=False)
            self.down.append(nn.Sequential(conv, *norm, activation))
        self.up = nn.ModuleList()
        for i in range(7):
            below, width = widths[7 - i] * (1 if i == 0 else 2), widths[6 - i]
            self.up.append(UpStage(below, width, attention=i >= 4))
        self.to_rgb = nn.ConvTranspose2d(2 * base_channels, 3, 4, 2, 1)
        init_pix2pix_(self)  # a choice: the official initialisation is not known

    def predict(self, composite: Tensor, mask: Tensor) -> Tensor:
        """Return the network's frame, about [0, 1]."""
        height, width = composite.shape[-2:]
        composite, mask = reflect_to_multiple(composite, _STRIDE), reflect_to_multiple(mask, _STRIDE)
        x = torch.cat((composite, mask), 1).contiguous(memory_format=torch.channels_last)
        # The skips are activated: the official LeakyReLU works in place.
        skips = []
        for stage in self.down:
            x = self.run(stage, x)
            skips.append(x)
        # The memory format of a 1x1 map is ambiguous; set it for the decoder.
        x = skips.pop().clone(memory_format=torch.channels_last)
        for stage in self.up:
            x = self.run(stage, x, skips.pop(), mask)
        return self.to_rgb(x)[..., :height, :width].to(composite.dtype).contiguous()

    @staticmethod
    def convert_official(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename the keys of the official generator `rascv2`."""
        renames: list[tuple[str, str | None]] = [
            (r"model\.model\.down\.0\.(weight)", r"down.0.0.\1"),
            (r"model\.model\.up\.1\.(weight|bias)", r"to_rgb.\1"),
        ]
        for level in range(1, 8):
            block, stage = r"model\.model" + r"\.sub\.model" * level, 7 - level
            renames += [
                (rf"{block}\.down\.1\.(weight)", rf"down.{level}.0.\1"),
                (rf"{block}\.up\.1\.(weight)", rf"up.{stage}.conv.\1"),
                (rf"{block}\.up\.2\.(.+)", rf"up.{stage}.norm.\1"),
            ]
            if level < 7:
                renames.append((rf"{block}\.down\.2\.(.+)", rf"down.{level}.1.\1"))
            if level < 4:
                ours = f"up.{stage}.attention"
                theirs = rf"{block}\.attention"
                renames.append(
                    (rf"{theirs}\.(background|mixed|spliced)_attention\.fc\.(.+)", rf"{ours}.\1_gate.\2")
                )
                for name, index in (("rconv1", 0), ("rbn1", 1), ("rconv2", 3), ("rbn2", 4)):
                    renames.append((rf"{theirs}\.connection\.{name}\.(.+)", rf"{ours}.learn.{index}.\1"))
                renames.append((rf"{theirs}\.gaussianMask\.weight", None))  # a constant
        return rename_keys(state_dict, renames, "S2AM")
