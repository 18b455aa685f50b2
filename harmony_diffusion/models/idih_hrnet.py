"""iDIH with semantic features of an HRNet.

Paper: Sofiiuk et al., "Foreground-aware Semantic Representations for Image Harmonization", WACV 2021,
https://arxiv.org/abs/2006.00809.  Official code: https://github.com/SamsungLabs/image_harmonization
(MPL-2.0), config `hrnet18s_idih256`.  The features: Wang et al., "Deep High-Resolution Representation
Learning for Visual Recognition", https://arxiv.org/abs/1908.07919 (HRNetV2-W18-Small-v2), and Yuan et al.,
"Object-Contextual Representations for Semantic Segmentation", https://arxiv.org/abs/1909.11065.
Changed here: the result is pasted on the untouched background (`forward`), and the weights of a fresh HRNet
have half the variance of the others.

As in the code, the two object regions are a softmax over all positions of the mask and of its inverse. Both
contexts are therefore close to the mean of the frame.
"""

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from harmony_diffusion.models.contract import HarmonyModel
from harmony_diffusion.models.idih import ENCODER_DECODER_KEYS, HEAD_KEYS, EncoderDecoder
from harmony_diffusion.models.layers import (
    CheckpointedModule,
    ImageNetNormalize,
    crop_padding,
    init_gaussian_xavier_,
    pad_to_multiple,
)
from harmony_diffusion.models.official_keys import rename_keys
from harmony_diffusion.models.origin import Origin

_WIDTHS = (18, 36, 72, 144)  # of the branches, from a quarter of the resolution to a thirty-second
_OCR, _KEY = 128, 64  # channels of the features and of queries, keys and values

_HRNET = r"backbone\.hrnet\."
_OBJECT = _HRNET + r"ocr_distri_head\.object_context_block\."
_STEPS = {"conv": 0, "bn": 1}
_KEYS = (
    *((rf"model\.{theirs}", ours) for theirs, ours in (*ENCODER_DECODER_KEYS, *HEAD_KEYS)),
    *((rf"{_HRNET}{kind}{n}\.(.+)", rf"hrnet.stem{n}.{i}.\1") for kind, i in _STEPS.items() for n in (1, 2)),
    *(
        (rf"{_HRNET}layer1\.(\d)\.{kind}{n + 1}\.(.+)", rf"hrnet.layer1.\1.body.{n}.{i}.\2")
        for kind, i in _STEPS.items()
        for n in range(3)
    ),
    (_HRNET + r"layer1\.0\.downsample\.(.+)", r"hrnet.layer1.0.shortcut.\1"),
    (_HRNET + r"transition1\.0\.([01]\..+)", r"hrnet.transition1.0.\1"),
    (_HRNET + r"transition1\.1\.0\.(.+)", r"hrnet.transition1.1.\1"),
    (_HRNET + r"transition2\.2\.0\.(.+)", r"hrnet.transition2.\1"),
    (_HRNET + r"transition3\.3\.0\.(.+)", r"hrnet.transition3.\1"),
    *(
        (
            rf"{_HRNET}(stage\d\.\d)\.branches\.(\d)\.(\d)\.{kind}{n + 1}\.(.+)",
            rf"hrnet.\1.branches.\2.\3.body.{n}.{i}.\4",
        )
        for kind, i in _STEPS.items()
        for n in range(2)
    ),
    (_HRNET + r"(stage\d\.\d)\.fuse_layers\.(.+)", r"hrnet.\1.fuse.\2"),
    (_HRNET + r"conv3x3_ocr\.(.+)", r"ocr.project.\1"),
    *(
        (rf"{_OBJECT}f_{theirs}\.0\.(.+)", rf"ocr.{ours}.0.0.\1")
        for theirs, ours in (("pixel", "query"), ("object", "key"))
    ),
    *(
        (rf"{_OBJECT}f_{theirs}\.{place}\.(.+)", rf"ocr.{ours}.{i}.\1")
        for theirs, ours in (("pixel", "query"), ("object", "key"))
        for place, i in ((r"1\.0", "0.1"), ("2", "1.0"), (r"3\.0", "1.1"))
    ),
    *(
        (rf"{theirs}\.{place}\.(.+)", rf"ocr.{ours}.{i}.\1")
        for theirs, ours in (
            (_OBJECT + "f_down", "value"),
            (_OBJECT + "f_up", "expand"),
            (_HRNET + r"ocr_distri_head\.conv_bn_dropout", "join"),
        )
        for place, i in (("0", 0), (r"1\.0", 1))
    ),
    (r"mask_conv\.0\.(.+)", r"hrnet.mask_conv.\1"),
    (r"mask_conv\.1\.scale", r"hrnet.mask_scale"),
)


def _conv(before: int, after: int, kernel: int, stride: int = 1, relu: bool = True) -> nn.Sequential:
    conv = nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(after), *([nn.ReLU()] if relu else []))


def _enlarge(x: Tensor, like: Tensor) -> Tensor:
    """Resize features to the height and width of others."""
    if x.shape[-2:] == like.shape[-2:]:
        return x
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=True)


class Residual(nn.Module):
    """Add the input, or a projection of it, to the result of a chain of convolutions.

    Args:
        channels: Width before, between and after the convolutions.
        kernels: Kernel of each convolution.
    """

    def __init__(self, channels: tuple[int, ...], kernels: tuple[int, ...]) -> None:
        super().__init__()
        last = len(kernels) - 1
        self.body = nn.Sequential(
            *(_conv(channels[i], channels[i + 1], kernel, relu=i < last) for i, kernel in enumerate(kernels))
        )
        same = channels[0] == channels[-1]
        self.shortcut = nn.Identity() if same else _conv(channels[0], channels[-1], 1, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, channels[0], h, w)` to `(B, channels[-1], h, w)`."""
        return F.relu(self.body(x) + self.shortcut(x))


class HighResolutionModule(CheckpointedModule):
    """Branches at falling resolutions that exchange their features.

    Args:
        widths: Channels of each branch; each has half the resolution of the one before.
    """

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*(Residual((width,) * 3, (3, 3)) for _ in range(2))) for width in widths
        )
        self.fuse = nn.ModuleList(
            nn.ModuleList(self._path(widths, source, target) for source in range(len(widths)))
            for target in range(len(widths))
        )

    @staticmethod
    def _path(widths: tuple[int, ...], source: int, target: int) -> nn.Module:
        before, after = widths[source], widths[target]
        if source >= target:
            return nn.Identity() if source == target else _conv(before, after, 1, relu=False)
        halvings = [_conv(before, before, 3, stride=2) for _ in range(target - source - 1)]
        return nn.Sequential(*halvings, _conv(before, after, 3, stride=2, relu=False))

    def forward(self, branches: list[Tensor]) -> list[Tensor]:
        """Map features `(B, widths[i], h / 2 ** i, w / 2 ** i)` to others of the same shapes."""
        branches = [self.run(block, x) for block, x in zip(self.branches, branches, strict=True)]
        fused = []
        for i, paths in enumerate(self.fuse):
            assert isinstance(paths, nn.ModuleList)
            total = torch.zeros_like(branches[i])
            for path, x in zip(paths, branches, strict=True):
                total = total + _enlarge(path(x), branches[i])
            fused.append(F.relu(total))
        return fused


class HRNet(CheckpointedModule):
    """HRNetV2-W18-Small-v2 with the mask added after its first convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem1, self.stem2 = _conv(3, 64, 3, stride=2), _conv(64, 64, 3, stride=2)
        self.mask_conv = nn.Conv2d(1, 64, 3, stride=2, padding=1)
        self.mask_scale = nn.Parameter(torch.full((1,), 0.1))
        self.layer1 = nn.Sequential(*(Residual((before, 64, 64, 256), (1, 3, 1)) for before in (64, 256)))
        self.transition1 = nn.ModuleList((_conv(256, _WIDTHS[0], 3), _conv(256, _WIDTHS[1], 3, stride=2)))
        self.transition2 = _conv(_WIDTHS[1], _WIDTHS[2], 3, stride=2)
        self.transition3 = _conv(_WIDTHS[2], _WIDTHS[3], 3, stride=2)
        self.stage2 = nn.ModuleList(HighResolutionModule(_WIDTHS[:2]) for _ in range(1))
        self.stage3 = nn.ModuleList(HighResolutionModule(_WIDTHS[:3]) for _ in range(3))
        self.stage4 = nn.ModuleList(HighResolutionModule(_WIDTHS) for _ in range(2))

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """Map a normalised picture `(B, 3, H, W)` and its mask to `(B, 270, H / 4, W / 4)`."""
        x = self.run(self.stem1, image) + self.mask_scale.abs() * self.mask_conv(mask)
        x = self.run(self.layer1, self.run(self.stem2, x))
        branches = [conv(x) for conv in self.transition1]
        for module in self.stage2:
            branches = module(branches)
        branches.append(self.transition2(branches[-1]))
        for module in self.stage3:
            branches = module(branches)
        branches.append(self.transition3(branches[-1]))
        for module in self.stage4:
            branches = module(branches)
        return torch.cat([_enlarge(branch, branches[0]) for branch in branches], 1)


class ObjectContext(nn.Module):
    """Object-contextual representations with two objects, foreground and background (OCR).

    Args:
        dropout: Of whole channels of the result, in training.
    """

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.project = nn.Sequential(
            nn.Conv2d(sum(_WIDTHS), _OCR, 3, padding=1), nn.BatchNorm2d(_OCR), nn.ReLU()
        )
        self.query = nn.Sequential(_conv(_OCR, _KEY, 1), _conv(_KEY, _KEY, 1))
        self.key = nn.Sequential(_conv(_OCR, _KEY, 1), _conv(_KEY, _KEY, 1))
        self.value, self.expand = _conv(_OCR, _KEY, 1), _conv(_KEY, _OCR, 1)
        self.join = _conv(2 * _OCR, _OCR, 1)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map features `(B, 270, h, w)` and the picture's mask `(B, 1, H, W)` to `(B, 128, h, w)`."""
        features = self.project(x)
        regions = _enlarge(torch.cat((mask, 1 - mask), 1), features)
        share = torch.softmax(regions.flatten(2).float(), -1).to(features.dtype)  # (B, 2, h w)
        objects = (features.flatten(2) @ share.transpose(1, 2))[..., None]  # (B, 128, 2, 1)
        query, key, value = (
            y.flatten(2).transpose(1, 2)[:, None]  # (B, 1, tokens, 64)
            for y in (self.query(features), self.key(objects), self.value(objects))
        )
        context = F.scaled_dot_product_attention(query, key, value)[:, 0].transpose(1, 2)
        context = self.expand(context.unflatten(2, features.shape[-2:]))
        return self.dropout(self.join(torch.cat((context, features), 1)))


class IDIHHRNet(HarmonyModel, ModelMixin, ConfigMixin):
    """Improved deep image harmonization with semantic features in the third encoder block.

    Args:
        depth: Number of halvings of the encoder-decoder, at least 4. Pictures are zero-padded on both sides
            to multiples of `2 ** (depth + 1)`, as the official predictor does.
        base_channels: Width of the first two encoder blocks.
        dropout: Of the semantic features' channels, in training.

    Example:
        >>> model = IDIHHRNet(depth=4, base_channels=8).eval()
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
    def __init__(self, depth: int = 7, base_channels: int = 64, dropout: float = 0.05) -> None:
        super().__init__()
        self.multiple = 2 ** (depth + 1)
        self.normalize = ImageNetNormalize()
        self.hrnet = HRNet()
        self.ocr = ObjectContext(dropout)
        self.backbone = EncoderDecoder(depth, 2, base_channels=base_channels, feature_channels=_OCR)
        self.attention = nn.Conv2d(self.backbone.out_channels, 1, 1)
        self.to_rgb = nn.Conv2d(self.backbone.out_channels, 3, 1)
        init_gaussian_xavier_(self, magnitude=2)
        # Sums of fresh branches would grow a thousandfold; the official HRNet starts from ImageNet weights.
        init_gaussian_xavier_(self.hrnet, magnitude=1)

    def predict(self, composite: Tensor, mask: Tensor) -> Tensor:
        """Return the network's frame, about [0, 1]."""
        size = (composite.shape[-2], composite.shape[-1])
        image = self.normalize(pad_to_multiple(composite, self.multiple))
        mask = pad_to_multiple(mask, self.multiple)
        x = self.backbone(torch.cat((image, mask), 1), self.semantic_features(image, mask))
        keep = torch.sigmoid(3 * self.attention(x))
        output = torch.lerp(self.to_rgb(x), image.to(x.dtype), keep)
        return crop_padding(self.normalize.inverse(output), size)

    def semantic_features(self, image: Tensor, mask: Tensor) -> Tensor:
        """Return the semantic features for the encoder-decoder, `(B, 128, H / 4, W / 4)`.

        Args:
            image: Picture normalised as for ImageNet, `(B, 3, H, W)`; 4 divides H and W.
            mask: 1 on the foreground, `(B, 1, H, W)`.
        """
        return self.ocr(self.hrnet(image, mask), mask)

    @staticmethod
    def convert_official(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename the keys of `hrnet18s_idih256.pth`."""
        return rename_keys(state_dict, _KEYS, "iDIH-HRNet18s")
