"""IIH: intrinsic image harmonization; reflectance and illumination are harmonized separately.

Paper: Guo et al., "Intrinsic Image Harmonization", CVPR 2021,
https://openaccess.thecvf.com/content/CVPR2021/papers/Guo_Intrinsic_Image_Harmonization_CVPR_2021_paper.pdf.
Official code: https://github.com/zhenglab/IntrinsicHarmony (MIT; the paper's tag v1.0 names no licence).
Changed here: pictures of any size are mirrored up to a multiple of 8 and the sizes that the official code
fixes for 256x256 (masks, number of positions) follow the picture; the result is pasted on the untouched
background (`forward`).

The registry's `iih` is v1.0, the IIH of published tables; `iih_lt_gd` (the default of v2.0) has no residual
blocks in the guide; `iih_base` has neither light transfer nor guidance. Where paper and code differ the code
is followed: the guide weighs all positions, those inside the mask too (as vectors of zeros).
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

_STRIDE = 8
_SHARPNESS = 10  # lambda of the guidance: softmax of 10 times the similarity
_EPS = 1e-8


class SampleNorm(nn.Module):
    """Normalize each sample over channels and positions, then scale and shift each channel.

    Unlike `torch.nn.LayerNorm`, the deviation is the unbiased one, and `eps` is added to it, not to the
    variance.

    Args:
        channels: Channels of the features.
        eps: Added to the deviation.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.gamma = nn.Parameter(torch.rand(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize `(B, C, H, W)`; computed in float32."""
        wide = x.float()
        std, mean = torch.std_mean(wide, (1, 2, 3), keepdim=True)
        scale = self.gamma.float()[:, None, None] / (std + self.eps)
        return torch.addcmul(self.beta.float()[:, None, None] - mean * scale, wide, scale).to(x.dtype)


class ConvBlock(nn.Sequential):
    """Reflection padding, convolution, normalization and activation.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        kernel: Side of the kernel.
        stride: Stride.
        norm: Normalization, None for none.
        activation: None for LeakyReLU(0.2).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        norm: nn.Module | None = None,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        padding = (kernel - 1) // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, padding_mode="reflect")
        self.norm = norm or nn.Identity()
        self.activation = activation or nn.LeakyReLU(0.2)


class ResidualBlock(nn.Module):
    """Two convolutions with a residual connection, `(B, channels, H, W)`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = ConvBlock(channels, channels, 3, norm=SampleNorm(channels))
        self.second = ConvBlock(channels, channels, 3, norm=SampleNorm(channels), activation=nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, channels, H, W)` to the same size."""
        return x + self.second(self.first(x))


def encoder(base_channels: int, blocks: int) -> nn.Sequential:
    """Layers from picture and mask, `(B, 4, H, W)`, to `(B, 4 base_channels, H / 4, W / 4)`."""
    widths = [base_channels, 2 * base_channels, 4 * base_channels]
    return nn.Sequential(
        ConvBlock(4, widths[0], 7, norm=nn.InstanceNorm2d(widths[0])),
        ConvBlock(widths[0], widths[1], 4, 2, nn.InstanceNorm2d(widths[1])),
        ConvBlock(widths[1], widths[2], 4, 2, nn.InstanceNorm2d(widths[2])),
        *(ResidualBlock(widths[2]) for _ in range(blocks)),
    )


def decoder(base_channels: int) -> nn.Sequential:
    """Layers from `(B, 4 base_channels, H / 4, W / 4)` to a picture `(B, 3, H, W)` in [-1, 1]."""
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode="nearest"),
        ConvBlock(4 * base_channels, 2 * base_channels, 5, norm=SampleNorm(2 * base_channels)),
        nn.Upsample(scale_factor=2, mode="nearest"),
        ConvBlock(2 * base_channels, base_channels, 5, norm=SampleNorm(base_channels)),
        ConvBlock(base_channels, 3, 7, activation=nn.Tanh()),
    )


class Lighting(nn.Module):
    """Describe the light of foreground and background by a code each.

    The code of an empty region is that of zero features.

    Args:
        base_channels: Width of the first layer.
        code_channels: Length of a code.
    """

    def __init__(self, base_channels: int, code_channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            ConvBlock(4, base_channels, 7),
            ConvBlock(base_channels, 2 * base_channels, 4, 2),
            ConvBlock(2 * base_channels, 4 * base_channels, 4, 2),
        )
        self.to_code = nn.Linear(4 * base_channels, code_channels)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode both regions.

        Args:
            x: Picture and mask, `(B, 4, H, W)`.
            mask: `(B, 1, H / 4, W / 4)`.

        Returns:
            Codes of foreground and background, both `(B, code_channels)`.
        """
        features, mask = self.layers(x), mask.float()
        codes = []
        for region in (mask, 1 - mask):
            mean = (features * region).sum((2, 3)) / (region.sum((2, 3)) + _EPS)
            codes.append(self.to_code(mean.to(features.dtype)))
        return codes[0], codes[1]


class LightTransferLayer(nn.Module):
    """Give the foreground's features the light of the background.

    A code gives an intensity and a mixture of three colours for each channel. Three colour features per
    channel are mixed by the ratio of the two mixtures and shifted by the difference of the intensities.

    Args:
        channels: Channels of the features.
        code_channels: Length of a code.
    """

    def __init__(self, channels: int, code_channels: int) -> None:
        super().__init__()
        self.from_code = nn.Linear(code_channels, 4 * channels)
        self.to_colors = ConvBlock(channels, 3 * channels, 3, norm=nn.GroupNorm(3, 3 * channels))

    def _light(self, code: Tensor) -> tuple[Tensor, Tensor]:
        """Intensity `(B, C)` and colours `(B, 3, C)` of a code, in float32."""
        light = F.leaky_relu(self.from_code(code).float(), 0.2).unflatten(1, (4, -1))
        return light[:, 0], light[:, 1:].softmax(1)

    def forward(self, x: Tensor, foreground: Tensor, background: Tensor, mask: Tensor) -> Tensor:
        """Relight the foreground.

        Args:
            x: `(B, C, h, w)`.
            foreground: Code of its light, `(B, code_channels)`.
            background: Code of its light, `(B, code_channels)`.
            mask: `(B, 1, h, w)`.

        Returns:
            `(B, C, h, w)`.
        """
        intensity, colors = self._light(foreground)
        target_intensity, target_colors = self._light(background)
        ratio = (target_colors / (colors + _EPS)).flatten(1)[..., None, None].to(x.dtype)
        relit = (self.to_colors(x) * ratio).unflatten(1, (3, -1)).sum(1)
        relit = relit + (target_intensity - intensity)[..., None, None].to(x.dtype)
        return x * (1 - mask) + relit * mask


class LightTransferBlock(nn.Module):
    """Two convolutions, each followed by a transfer of light, with a residual connection."""

    def __init__(self, channels: int, code_channels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1, padding_mode="reflect") for _ in range(2)
        )
        self.transfers = nn.ModuleList(LightTransferLayer(channels, code_channels) for _ in range(2))
        self.norm = SampleNorm(channels)  # both halves share it

    def forward(self, x: Tensor, foreground: Tensor, background: Tensor, mask: Tensor) -> Tensor:
        """Map `(B, channels, h, w)` to the same size; arguments as for `LightTransferLayer`."""
        hidden = self.transfers[0](self.convs[0](x), foreground, background, mask)
        hidden = F.leaky_relu(self.norm(hidden), 0.2)
        return x + self.norm(self.transfers[1](self.convs[1](hidden), foreground, background, mask))


def guide(base_channels: int, blocks: int) -> nn.Sequential:
    """Layers from picture and mask, `(B, 4, H, W)`, to features `(B, 4 base_channels, H / 8, W / 8)`.

    Their mean over the channels is trained to equal the grey harmonized picture.
    """
    widths = [base_channels // 2, base_channels, 2 * base_channels, 4 * base_channels]
    return nn.Sequential(
        ConvBlock(4, widths[0], 7, norm=SampleNorm(widths[0])),
        *(
            ConvBlock(before, after, 4, 2, SampleNorm(after))
            for before, after in zip(widths, widths[1:], strict=False)
        ),
        *(ResidualBlock(widths[3]) for _ in range(blocks)),
        ConvBlock(widths[3], widths[3], 3, activation=nn.Tanh()),
    )


def guidance_score(features: Tensor, mask: Tensor) -> Tensor:
    """Weigh for each position of the foreground the positions of the background by their similarity.

    Args:
        features: Of the guide, `(B, C, h, w)`.
        mask: `(B, 1, h, w)`.

    Returns:
        `(B, h w, h w)`; column q sums to 1 over the positions p. It is uniform for q outside the foreground.
    """
    regions = [(features * region).flatten(2) for region in (mask, 1 - mask)]
    foreground, background = (x - x.mean(1, keepdim=True) for x in regions)
    similarity = background.mT @ foreground / (features.shape[1] - 1)
    return (_SHARPNESS * similarity).softmax(1)


class PatchBlock(nn.Module):
    """Rebuild each neighbourhood from the 4x4 patches selected by the guidance, and add the result."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2 * channels, channels, 3, padding=1, padding_mode="reflect")

    def forward(self, x: Tensor, score: Tensor) -> Tensor:
        """Complete features.

        Args:
            x: `(B, C, h, w)`.
            score: See `guidance_score`, `(B, h w / 4, h w / 4)`.

        Returns:
            `(B, C, h, w)`.
        """
        patches = F.unfold(x, 4, stride=2, padding=1)  # (B, 16 C, h w / 4), overlapping four times
        pasted = F.fold(patches @ score.to(x.dtype), x.shape[-2:], 4, stride=2, padding=1) / 4
        return x + F.relu(self.conv(torch.cat((x, pasted.to(x.dtype)), 1)))


class IIH(CheckpointedModule, HarmonyModel, ModelMixin, ConfigMixin):
    """Two encoder-decoders whose pictures, reflectance and illumination, are multiplied.

    Memory and time of the guidance grow with the square of the area: a picture of 256x256 has 1024 * 1024
    weights, one of 512x512 has 4096 * 4096.

    Args:
        light_transfer: Harmonize the illumination by light codes of foreground and background; without it,
            the encoder of the illumination has residual blocks.
        guidance: Complete both features from the background, by similarity.
        guide_blocks: Residual blocks of the guide: 6 in v1.0, none in v2.0.
        base_channels: Width of the first layers, even; it doubles twice.

    Example:
        >>> model = IIH(base_channels=4).eval()
        >>> model(torch.rand(1, 3, 40, 50), torch.ones(1, 1, 40, 50)).shape
        torch.Size([1, 3, 40, 50])
    """

    origin = Origin(
        title="Intrinsic Image Harmonization",
        paper="https://openaccess.thecvf.com/content/CVPR2021/papers/Guo_Intrinsic_Image_Harmonization_CVPR_2021_paper.pdf",
        code="https://github.com/zhenglab/IntrinsicHarmony",
        code_license="MIT",
        weights_license="MIT",
    )
    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        light_transfer: bool = True,
        guidance: bool = True,
        guide_blocks: int = 6,
        base_channels: int = 64,
    ) -> None:
        super().__init__()
        channels, code_channels = 4 * base_channels, 8
        self.reflectance_encoder = encoder(base_channels, 4)
        self.reflectance_decoder = decoder(base_channels)
        self.illumination_encoder = encoder(base_channels, 0 if light_transfer else 4)
        self.illumination_decoder = decoder(base_channels)
        self.lighting = Lighting(base_channels, code_channels) if light_transfer else None
        self.transfers = nn.ModuleList(
            LightTransferBlock(channels, code_channels) for _ in range(4 if light_transfer else 0)
        )
        self.guide = guide(base_channels, guide_blocks) if guidance else None
        blocks = 2 if guidance else 0
        self.reflectance_patches = nn.ModuleList(PatchBlock(channels) for _ in range(blocks))
        self.illumination_patches = nn.ModuleList(PatchBlock(channels) for _ in range(blocks))
        init_pix2pix_(self)

    def predict(self, composite: Tensor, mask: Tensor) -> Tensor:
        """Return the network's frame, in [0, 1]."""
        reflectance, illumination = self.decompose(composite, mask)
        return reflectance * illumination

    def decompose(self, composite: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return harmonized reflectance and illumination, both `(B, 3, H, W)` in [0, 1]."""
        height, width = composite.shape[-2:]
        x = reflect_to_multiple(torch.cat((composite, mask), 1), _STRIDE)
        score = None
        if self.guide is not None:
            score = guidance_score(self._run_all(self.guide, x), F.interpolate(x[:, 3:], scale_factor=1 / 8))
        reflectance = self._complete(
            self.reflectance_patches, self._run_all(self.reflectance_encoder, x), score
        )
        illumination = self._run_all(self.illumination_encoder, x)
        if self.lighting is not None:
            small_mask = F.interpolate(x[:, 3:], scale_factor=1 / 4)
            codes = self.run(self.lighting, x, small_mask)
            for block in self.transfers:
                illumination = self.run(block, illumination, *codes, small_mask.to(illumination.dtype))
        # No gradient flows from the illumination to the guide.
        illumination = self._complete(
            self.illumination_patches, illumination, None if score is None else score.detach()
        )
        pictures = (
            self._run_all(self.reflectance_decoder, reflectance),
            self._run_all(self.illumination_decoder, illumination),
        )
        reflectance, illumination = (
            (picture / 2 + 0.5)[..., :height, :width].to(composite.dtype) for picture in pictures
        )
        return reflectance, illumination

    def _run_all(self, layers: nn.Sequential, x: Tensor) -> Tensor:
        for layer in layers:
            x = self.run(layer, x)
        return x

    def _complete(self, blocks: nn.ModuleList, x: Tensor, score: Tensor | None) -> Tensor:
        for block in blocks:
            assert score is not None
            x = self.run(block, x, score)
        return x

    @staticmethod
    def convert_official(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename the keys of `net_G.pth` (v1.0) or `latest_net_G.pth` (v2.0) of any variant."""
        return rename_keys(state_dict, _official_keys(state_dict), "IIH")


def _official_keys(state_dict: dict[str, Tensor]) -> list[tuple[str, str | None]]:
    blocks = {key.split(".")[4] for key in state_dict if key.startswith("ifm.model.4.model.")}
    keys: list[tuple[str, str | None]] = []
    for part in ("reflectance", "illumination"):
        keys += [
            (rf"{part}_dec\.model\.([134]\.(?:conv|norm)\..+)", rf"{part}_decoder.\1"),
            (rf"{part}_enc\.model\.([012]\.conv\..+)", rf"{part}_encoder.\1"),
            (rf"{part}Rec\.resblocks\.([01])\.harmonyRecConv\.(conv\..+)", rf"{part}_patches.\1.\2"),
        ]
        keys += _residual_keys(rf"{part}_enc\.model\.3", f"{part}_encoder", first=3, count=4)
    keys += _residual_keys(r"ifm\.model\.4", "guide", first=4, count=6)
    keys += [
        (r"ifm\.model\.([0-3]\.(?:conv|norm)\..+)", r"guide.\1"),
        (r"ifm\.model\.5\.(conv\..+)", rf"guide.{4 + len(blocks)}.\1"),
        (r"lighting\.model\.([012]\.conv\..+)", r"lighting.layers.\1"),
        (r"lighting\.light_mlp\.fc\.(.+)", r"lighting.to_code.\1"),
    ]
    transfer = r"lightingRes\.resblocks\.([0-3])\."
    keys.append((transfer + r"norm\.(.+)", r"transfers.\1.norm.\2"))
    for half in range(2):
        ours = rf"transfers.\1.transfers.{half}"
        keys += [
            (transfer + rf"conv_{half + 1}\.(weight|bias)", rf"transfers.\1.convs.{half}.\2"),
            (transfer + rf"lt_{half + 1}\.light_mlp\.fc\.(.+)", rf"{ours}.from_code.\2"),
            (transfer + rf"lt_{half + 1}\.rgb_model\.(.+)", rf"{ours}.to_colors.\2"),
        ]
    return keys


def _residual_keys(official: str, ours: str, first: int, count: int) -> list[tuple[str, str | None]]:
    return [
        (rf"{official}\.model\.{block}\.model\.{i}\.(.+)", rf"{ours}.{first + block}.{name}.\1")
        for block in range(count)
        for i, name in enumerate(("first", "second"))
    ]
