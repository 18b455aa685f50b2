"""BargainNet: harmonization as translation to the domain of the background, given as a code.

Paper: Cong et al., "BargainNet: Background-Guided Domain Translation for Image Harmonization", ICME 2021,
https://arxiv.org/abs/2009.09169.  Official code:
https://github.com/bcmi/BargainNet-Image-Harmonization (MIT).
Changed here: pictures of any size are mirrored up to a multiple of 256, the code is taken from the background
of the composite (the official test takes it from the real picture, which has the same background), and the
result is pasted on the untouched background (`forward`); the official evaluation scores the whole frame
(`predict`).

The generator is DoveNet's with 16 more input channels. The official test command leaves dropout active and
normalizes each picture by its own statistics; a model in evaluation mode does neither. The official code does
not divide the pooled code of a region by its area, and neither does this module.
"""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional as F

from harmony_diffusion.models.contract import HarmonyModel
from harmony_diffusion.models.dovenet import GATED_UNET_KEYS, GatedUNet
from harmony_diffusion.models.layers import init_pix2pix_, reflect_to_multiple
from harmony_diffusion.models.official_keys import rename_keys
from harmony_diffusion.models.origin import Origin

_STRIDE = 256
_LEAST_CODE_WEIGHT = 0.001


class PartialConv(nn.Module):
    """3x3 convolution of stride 2, without padding, that reads only the pixels of a region.

    A kernel window partly inside the region is scaled up as if it were completely inside; a window outside
    gives 0.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        bias: Add a bias inside the region.
        tail: Normalization and activation, if any.
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool, *tail: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=2, bias=bias)
        self.tail = nn.Sequential(*tail)

    def forward(self, x: Tensor, region: Tensor) -> tuple[Tensor, Tensor]:
        """Convolve.

        Args:
            x: `(B, in_channels, h, w)`.
            region: 1 on the region, float32, `(B, 1, h, w)`.

        Returns:
            Features `(B, out_channels, (h - 1) // 2, (w - 1) // 2)` and the region at their size.
        """
        covered = F.avg_pool2d(region, 3, 2, divisor_override=1)
        inner = covered.clamp(0, 1)
        x = F.conv2d(x * region.to(x.dtype), self.conv.weight, None, 2)
        x = x * (9 / (covered + 1e-8) * inner).to(x.dtype)
        if self.conv.bias is not None:
            x = (x + self.conv.bias[:, None, None]) * inner.to(x.dtype)
        return self.tail(x), inner


class DomainCodeExtractor(nn.Module):
    """Describe the domain (light, season, colours) of a region by a short code.

    The code of an empty region is the bias of the last layer.

    Args:
        base_channels: Width of the first layer; it doubles three times.
        code_channels: Length of the code.
    """

    def __init__(self, base_channels: int, code_channels: int) -> None:
        super().__init__()
        widths = [base_channels * factor for factor in (1, 2, 4, 8)]
        self.layers = nn.ModuleList([PartialConv(3, base_channels, True, nn.ReLU(inplace=True))])
        for before, after in zip(widths, widths[1:], strict=False):
            tail = nn.BatchNorm2d(after), nn.ReLU(inplace=True)
            self.layers.append(PartialConv(before, after, False, *tail))
        self.layers.append(PartialConv(widths[-1], widths[-1], False))
        self.to_code = nn.Conv2d(widths[-1], code_channels, 1)

    def forward(self, image: Tensor, region: Tensor) -> Tensor:
        """Encode a region.

        Args:
            image: `(B, 3, H, W)` in [-1, 1]; H and W are 63 at least.
            region: 1 on the region, soft values allowed, `(B, 1, H, W)`.

        Returns:
            `(B, code_channels)`.
        """
        x, region = image, region.float()
        for layer in self.layers:
            x, region = layer(x, region)
        return self.to_code(x.mean((2, 3), keepdim=True)).flatten(1)


class BargainNet(GatedUNet, HarmonyModel, ModelMixin, ConfigMixin):
    """U-Net of eight levels on the composite, its mask and the domain code of the background.

    Args:
        base_channels: Width of the first level of both networks; it doubles three times.
        code_channels: Length of the domain code.
        dropout: After the normalization of the second to fourth decoder stage, in training.

    Example:
        >>> model = BargainNet(base_channels=4).eval()
        >>> model(torch.rand(1, 3, 40, 50), torch.ones(1, 1, 40, 50)).shape
        torch.Size([1, 3, 40, 50])
    """

    origin = Origin(
        title="BargainNet: Background-Guided Domain Translation for Image Harmonization",
        paper="https://arxiv.org/abs/2009.09169",
        code="https://github.com/bcmi/BargainNet-Image-Harmonization",
        code_license="MIT",
        weights_license="MIT",
    )
    _supports_gradient_checkpointing = True
    # `PartialConv` reads the weights of its convolution directly, without the hook that casts them.
    _skip_layerwise_casting_patterns = ["extractor.layers"]  # type: ignore[assignment]

    @register_to_config
    def __init__(self, base_channels: int = 64, code_channels: int = 16, dropout: float = 0.5) -> None:
        super().__init__(4 + code_channels, base_channels, dropout)
        self.extractor = DomainCodeExtractor(base_channels, code_channels)
        self.code_weight = nn.Parameter(torch.tensor([0.1]))
        init_pix2pix_(self.extractor)

    def predict(self, composite: Tensor, mask: Tensor) -> Tensor:
        """Return the network's frame, in [0, 1]."""
        height, width = composite.shape[-2:]
        x = reflect_to_multiple(torch.cat((2 * composite - 1, mask), 1), _STRIDE)
        code = self.run(self.extractor, x[:, :3], 1 - x[:, 3:])
        code = self.code_weight.clamp_min(_LEAST_CODE_WEIGHT) * code
        x = self.translate(torch.cat((x, code[..., None, None].expand(-1, -1, *x.shape[-2:])), 1))
        return ((x + 1) / 2)[..., :height, :width].to(composite.dtype).contiguous()

    def region_code(self, image: Tensor, region: Tensor) -> Tensor:
        """Return the domain code of a region.

        The Euclidean distance between the codes of foreground and background measures disharmony.

        Args:
            image: `(B, 3, H, W)` in [0, 1].
            region: 1 on the region, soft values allowed, `(B, 1, H, W)`.

        Returns:
            `(B, code_channels)`.
        """
        x = reflect_to_multiple(torch.cat((2 * image - 1, region), 1), _STRIDE)
        return self.extractor(x[:, :3], x[:, 3:])

    @staticmethod
    def convert_official(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename the keys of `latest_net_G.pth` and `latest_net_E.pth`, joined in one dictionary.

        The names of the two files may begin with `G.` and `E.`.
        """
        renames = [(rf"(?:G\.)?{pattern}", name) for pattern, name in GATED_UNET_KEYS]
        renames += [
            (r"(?:G\.)?weight", "code_weight"),
            (r"(?:E\.)?convs\.(weight|bias)", r"extractor.to_code.\1"),
        ]
        for layer in range(5):
            ours = f"extractor.layers.{layer}"
            renames.append((rf"(?:E\.)?conv{layer + 1}f\.(weight|bias)", rf"{ours}.conv.\1"))
            renames.append((rf"(?:E\.)?norm{layer + 1}f\.(.+)", rf"{ours}.tail.0.\1"))
        return rename_keys(state_dict, renames, "BargainNet")
