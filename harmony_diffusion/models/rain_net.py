"""RainNet: harmonization as style transfer from the background to the foreground, inside the network.

Paper: Ling et al., "Region-aware Adaptive Instance Normalization for Image Harmonization", CVPR 2021,
https://arxiv.org/abs/2106.02853.  Official code: https://github.com/junleen/RainNet (MIT).  Changed here:
pictures of any size are mirrored up to a multiple of 256, and a mask that covers the whole picture leaves the
foreground its own statistics (see `RAIN`).

The official training and test code replaces the background of the composite by the one of the real picture
(which removes JPEG noise); here the network reads the composite unchanged. The official network also takes
the mask as a fourth input channel on request; its recipe does not ask for it.
"""

import re

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


def _weighted_sums(weights: Tensor, x: Tensor) -> Tensor:
    """Sum `(B, C, H, W)` over the frame with weights `(B, R, H, W)`: `(B, R, C)`.

    One matrix product per row and a sum over the rows need a single pass over channels-last features, and
    their round-off grows with H and W, not with their product.
    """
    with torch.autocast(x.device.type, enabled=False):
        return (weights.transpose(1, 2) @ x.permute(0, 2, 3, 1)).sum(1)


def _squared_distance(x: Tensor, centre: Tensor) -> Tensor:
    """`(x - centre) ** 2` in one pass; `(B, C, H, W)` and `(B, C, 1, 1)`."""
    return F.mse_loss(x, centre.expand_as(x), reduction="none")


def instance_norm(x: Tensor) -> Tensor:
    """Instance normalization without parameters, eps 1e-5, `(B, C, H, W)`; keeps the memory format.

    On a CPU, `torch.nn.functional.instance_norm` copies channels-last features to the other format.
    """
    wide = x.float()
    mean = wide.mean((2, 3), keepdim=True)
    scale = torch.rsqrt(_squared_distance(wide, mean).mean((2, 3), keepdim=True) + 1e-5)
    return torch.addcmul(-mean * scale, wide, scale).to(x.dtype)


class RAIN(nn.Module):
    """Region-aware adaptive instance normalization: give the foreground the statistics of the background.

    Foreground and background are normalized separately. The foreground is then scaled and shifted to the mean
    and deviation of the background, and each region gets its own affine transform. A picture without any
    background has no statistics to transfer, so its foreground keeps its own (the official code reduces its
    deviation to almost 0). If the coarse mask of a low level loses the foreground or the background, that
    region has mean 0 and deviation `sqrt(eps)`, as in the official code. Soft masks weigh pixels.

    Args:
        channels: Channels of the features.
        eps: Added to the areas and to the variances.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.foreground_gamma = nn.Parameter(torch.zeros(channels))
        self.foreground_beta = nn.Parameter(torch.zeros(channels))
        self.background_gamma = nn.Parameter(torch.zeros(channels))
        self.background_beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Normalize features.

        Args:
            x: `(B, C, h, w)`; computed in float32 and fastest in channels-last format.
            mask: The picture's mask, `(B, 1, H, W)`; resized by nearest neighbour.

        Returns:
            `(B, C, h, w)`.
        """
        wide, mask = x.float(), mask.detach().float()
        whole = mask.amin((1, 2, 3)).ge(1)[:, None]
        mask = F.interpolate(mask, size=x.shape[-2:], mode="nearest")
        mean, std = self._statistics(wide, torch.cat((mask, 1 - mask), 1))
        (foreground_mean, background_mean), (foreground_std, background_std) = mean.unbind(1), std.unbind(1)
        target_mean = torch.where(whole, foreground_mean, background_mean)
        target_std = torch.where(whole, foreground_std, background_std)

        # Both regions are scale * x + shift.
        gain = 1 + self.foreground_gamma.float()
        scale = target_std / foreground_std * gain
        shift = target_mean * gain + self.foreground_beta.float() - scale * foreground_mean
        foreground = torch.addcmul(shift[..., None, None], wide, scale[..., None, None])
        scale = (1 + self.background_gamma.float()) / background_std
        shift = self.background_beta.float() - scale * background_mean
        background = torch.addcmul(shift[..., None, None], wide, scale[..., None, None])
        return torch.lerp(background, foreground, mask).to(x.dtype)

    def _statistics(self, x: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of `(B, C, H, W)` in each of the regions `(B, R, H, W)`, both `(B, R, C)`."""
        area = regions.sum((2, 3))[..., None]
        sums = _weighted_sums(regions, x)
        mean = sums / (area + self.eps)
        # Squares around the mean of the frame; around 0 they would lose digits where the mean is large.
        centre = sums.sum(1, keepdim=True) / area.sum(1, keepdim=True)
        squares = _weighted_sums(regions, _squared_distance(x, centre.mT[..., None]))
        offset = mean - centre
        squares = squares - 2 * offset * (sums - area * centre) + area * offset.square()
        return mean, (squares / (area + self.eps)).clamp_min(0).add(self.eps).sqrt()


class DownStage(nn.Module):
    """Convolution, optional instance normalization, and activation.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        norm: Normalize.
        activation: Applied last.
        stride: 2, with a 4x4 kernel, or 1, with a 3x3 kernel.
    """

    def __init__(
        self, in_channels: int, out_channels: int, norm: bool, activation: nn.Module, stride: int = 2
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, stride + 2, stride, 1, bias=False)
        self.norm, self.activation = norm, activation

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, in_channels, h, w)` to `(B, out_channels, h / stride, w / stride)`."""
        x = self.conv(x)
        return self.activation(instance_norm(x) if self.norm else x)


class UpStage(nn.Module):
    """Double the resolution, normalize by region, join the skip, gate and activate the result.

    Args:
        in_channels: Channels from below.
        out_channels: Channels of the skip and of the upsampled features.
        dropout: Probability, 0 for none.
        gate: Weigh the joined features by a sigmoid of a 1x1 convolution of them.
    """

    def __init__(self, in_channels: int, out_channels: int, dropout: float, gate: bool) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(in_channels, out_channels, 4, 2, 1, bias=False)
        self.norm = RAIN(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.gate = nn.Conv2d(2 * out_channels, 2 * out_channels, 1) if gate else None

    def forward(self, x: Tensor, skip: Tensor, mask: Tensor) -> Tensor:
        """Map `(B, in_channels, h, w)` and a skip `(B, C, 2 h, 2 w)` to `(B, 2 C, 2 h, 2 w)`."""
        x = torch.cat((skip, self.dropout(self.norm(self.conv(x), mask))), 1)
        return F.relu(x if self.gate is None else torch.sigmoid(self.gate(x)) * x, inplace=True)


class RainNet(CheckpointedModule, HarmonyModel, ModelMixin, ConfigMixin):
    """U-Net of eight levels. The decoder normalizes the foreground to the statistics of the background.

    Args:
        base_channels: Width of the first level; it doubles three times.
        dropout: After the normalization of the second to fourth decoder stage, in training.

    Example:
        >>> model = RainNet(base_channels=4).eval()
        >>> model(torch.rand(1, 3, 40, 50), torch.ones(1, 1, 40, 50)).shape
        torch.Size([1, 3, 40, 50])
    """

    origin = Origin(
        title="Region-aware Adaptive Instance Normalization for Image Harmonization",
        paper="https://arxiv.org/abs/2106.02853",
        code="https://github.com/junleen/RainNet",
        code_license="MIT",
        weights_license="MIT",
    )
    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(self, base_channels: int = 64, dropout: float = 0.5) -> None:
        super().__init__()
        widths = [base_channels * factor for factor in (1, 2, 4, 8, 8, 8, 8, 8)]
        self.down = nn.ModuleList(
            DownStage(
                before, after, 0 < i < 7, nn.LeakyReLU(0.2, inplace=True) if i < 7 else nn.ReLU(inplace=True)
            )
            for i, (before, after) in enumerate(zip([3, *widths], widths, strict=False))
        )
        self.up = nn.ModuleList()
        for i in range(7):
            below, width = widths[7 - i] * (1 if i == 0 else 2), widths[6 - i]
            self.up.append(UpStage(below, width, dropout if 1 <= i <= 3 else 0.0, gate=i >= 4))
        self.to_rgb = nn.ConvTranspose2d(2 * base_channels, 3, 4, 2, 1)
        init_pix2pix_(self)

    def predict(self, composite: Tensor, mask: Tensor) -> Tensor:
        """Return the network's frame, in [0, 1]."""
        height, width = composite.shape[-2:]
        mask = reflect_to_multiple(mask, _STRIDE)
        x = 2 * reflect_to_multiple(composite, _STRIDE) - 1
        x = x.contiguous(memory_format=torch.channels_last)
        # The skips are activated: the official LeakyReLU works in place.
        skips = []
        for stage in self.down:
            x = self.run(stage, x)
            skips.append(x)
        # The memory format of a 1x1 map is ambiguous; set it for the decoder.
        x = skips.pop().clone(memory_format=torch.channels_last)
        for stage in self.up:
            x = self.run(stage, x, skips.pop(), mask)
        x = torch.tanh(self.to_rgb(x))
        return ((x + 1) / 2)[..., :height, :width].to(composite.dtype).contiguous()

    @staticmethod
    def convert_official(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename the keys of `net_G_last.pth`."""
        renames: list[tuple[str, str | None]] = [
            (r"model_layer0\.weight", "down.0.conv.weight"),
            (r"model_layer([123])\.1\.weight", r"down.\1.conv.weight"),
            (r"model_out\.1\.(weight|bias)", r"to_rgb.\1"),
        ]
        for depth in range(4):
            block = r"unet_block\." + r"submodule\." * depth
            innermost = depth == 3
            down, up = ("up.1", "up.3") if innermost else ("down.1", "up.1")
            renames.append((rf"{block}{re.escape(down)}\.weight", f"down.{4 + depth}.conv.weight"))
            renames.append((rf"{block}{re.escape(up)}\.weight", f"up.{3 - depth}.conv.weight"))
            renames.append((rf"{block}upnorm\.(.+)", rf"up.{3 - depth}.norm.\1"))
        for layer, stage in ((11, 4), (12, 5), (13, 6)):
            renames.append((rf"model_layer{layer}\.1\.weight", f"up.{stage}.conv.weight"))
            renames.append((rf"model_layer{layer}norm\.(.+)", rf"up.{stage}.norm.\1"))
            renames.append((rf"model_layer{layer}att\.0\.(.+)", rf"up.{stage}.gate.\1"))
        return rename_keys(state_dict, renames, "RainNet")
