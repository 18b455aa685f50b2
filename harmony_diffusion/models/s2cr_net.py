"""S2CRNet: colour curves of the foreground, predicted from foreground and background separately.

Paper: Liang et al., "Spatial-Separated Curve Rendering Network for Efficient and High-Resolution Image
Harmonization", ECCV 2022, https://arxiv.org/abs/2109.05750.  Official code:
https://github.com/stefanLeong/S2CRNet (MIT), the cascade of two renderers.

Changed here: a curve whose slopes sum to nearly 0, which is undefined, is the identity; an empty mask returns
the composite; fresh networks start with curves near the identity.  As in the code, slopes may be negative and
images are not normalised.
"""

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from harmony_diffusion.errors import InputError
from harmony_diffusion.models.contract import HarmonyModel
from harmony_diffusion.models.layers import CheckpointedModule, blend, clamp_unit, thumbnail
from harmony_diffusion.models.official_keys import rename_keys
from harmony_diffusion.models.origin import Origin

PIECES = 64
CATEGORIES = 5
_FEATURES = 512

# Widths by stage: of VGG16, and (squeeze, expand) of the fire modules after SqueezeNet 1.1's first conv.
_VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_SQUEEZENET = (((16, 64), (16, 64)), ((32, 128), (32, 128)), ((48, 192), (48, 192), (64, 256)))

# Official position in the backbone -> ours (stage, position).
_VGG16_PLACES = {
    0: "0.0", 2: "0.2", 5: "1.1", 7: "1.3", 10: "2.1", 12: "2.3", 14: "2.5",
    17: "3.1", 19: "3.3", 21: "3.5", 24: "4.1", 26: "4.3", 28: "4.5",
}  # fmt: skip
_SQUEEZENET_PLACES = {0: "0.0", 3: "1.1", 4: "1.2", 6: "2.1", 7: "2.2", 9: "3.1", 10: "3.2", 11: "3.3"}
_RENDERER_NAMES = {
    r"fc_f_1\.fc1": "foreground",
    r"fc_b_1\.fc1": "background",
    r"fc_label_1": "embed.0",
    r"fc_label_2": "embed.2",
    r"fc_f_label": "labelled_foreground",
}
_KEYS = (
    *((rf"model\.{i}\.(.+)", rf"backbone.stages.{place}.\1") for i, place in _VGG16_PLACES.items()),
    *((rf"squeezenet1_1\.{i}\.(.+)", rf"backbone.stages.{p}.\1") for i, p in _SQUEEZENET_PLACES.items()),
    *(
        (rf"fusion\.cr{i + 1}\.{theirs}\.(.+)", rf"renderers.{i}.{ours}.\1")
        for i in range(2)
        for theirs, ours in _RENDERER_NAMES.items()
    ),
)


class Fire(nn.Module):
    """SqueezeNet's block: few channels, then many, half of them by 3x3 convolutions."""

    def __init__(self, in_channels: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(in_channels, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, in_channels, h, w)` to `(B, 2 * expand, h, w)`."""
        x = F.relu(self.squeeze(x))
        return F.relu(torch.cat((self.expand1x1(x), self.expand3x3(x)), 1))


def _squeezenet() -> list[nn.Sequential]:
    stages, channels = [nn.Sequential(nn.Conv2d(3, 64, 3, stride=2), nn.ReLU())], 64
    for widths in _SQUEEZENET:
        layers: list[nn.Module] = [nn.MaxPool2d(3, stride=2, ceil_mode=True)]
        for squeeze, expand in widths:
            layers.append(Fire(channels, squeeze, expand))
            channels = 2 * expand
        stages.append(nn.Sequential(*layers))
    return stages


def _vgg16() -> list[nn.Sequential]:
    stages, channels = [], 3
    for i, widths in enumerate(_VGG16):
        layers: list[nn.Module] = [nn.MaxPool2d(2)] if i else []
        for width in widths:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        stages.append(nn.Sequential(*layers))
    return stages


class Backbone(CheckpointedModule):
    """Convolutional features of an ImageNet classifier, averaged over the frame.

    Args:
        stages: Blocks, run one after the other.
    """

    def __init__(self, stages: list[nn.Sequential]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> Tensor:
        """Map RGB in [0, 1], `(B, 3, H, W)`, to `(B, 512)`."""
        for stage in self.stages:
            x = self.run(stage, x)
        return x.mean((2, 3))


class CurveRenderer(nn.Module):
    """Predict one curve per channel from the features of both regions (sec. 3.3).

    Args:
        with_label: Use the category of the foreground; otherwise the layers for it stay unused.
    """

    def __init__(self, with_label: bool) -> None:
        super().__init__()
        slopes = 3 * PIECES
        self.foreground = nn.Linear(_FEATURES, slopes)
        self.background = nn.Linear(_FEATURES, slopes)
        self.embed = nn.Sequential(nn.Linear(CATEGORIES, 32), nn.ReLU(), nn.Linear(32, 64))
        self.labelled_foreground = nn.Linear(_FEATURES + 64, slopes)
        for head in (self.foreground, self.background, self.labelled_foreground):
            nn.init.normal_(head.weight, std=0.01)
            nn.init.constant_(head.bias, float(head is self.background))  # all slopes 1: the identity
        # Official files and the official parameter count include both paths.
        for idle in [self.foreground] if with_label else [self.embed, self.labelled_foreground]:
            idle.requires_grad_(False)

    def forward(self, foreground: Tensor, background: Tensor, category: Tensor | None) -> Tensor:
        """Return slopes, `(B, 192)`, from features `(B, 512)` and a one-hot category `(1, 5)`."""
        if category is None:
            return self.foreground(foreground) + self.background(background)
        embedded = self.embed(category).expand(len(foreground), -1)
        return self.labelled_foreground(torch.cat((foreground, embedded), 1)) + self.background(background)


def apply_curves(image: Tensor, slopes: Tensor) -> Tensor:
    """Bend each channel by a piecewise linear curve from (0, 0) to (1, 1) (eq. 3).

    Args:
        image: `(B, 3, H, W)`; values outside [0, 1] count as the nearest end.
        slopes: Slopes of the pieces up to a common factor, channel by channel, `(B, 192)`.

    Returns:
        `(B, 3, H, W)`, float32, not clamped.
    """
    slopes = slopes.float().unflatten(1, (3, PIECES))
    undefined = slopes.mean(2, keepdim=True).abs() < 1e-4
    slopes = torch.where(undefined, 1.0, slopes)
    knots = F.pad(slopes.cumsum(2) / slopes.sum(2, keepdim=True), (1, 0))  # (B, 3, 65), from 0 to 1
    position = PIECES * clamp_unit(image.float()).flatten(2)
    piece = position.detach().long().clamp(max=PIECES - 1)
    bent = torch.lerp(knots.gather(2, piece), knots.gather(2, piece + 1), position - piece)
    return bent.view(image.shape)


def crop_foreground(image: Tensor, mask: Tensor, size: int) -> Tensor:
    """Enlarge the bounding box of the mask to a square, bilinearly, with half-pixel centres.

    Args:
        image: `(B, C, H, W)`.
        mask: Greater than 0 on the foreground, `(B, 1, H, W)`; where it is empty the box is the frame.
        size: Side of the result.

    Returns:
        `(B, C, size, size)`; the aspect ratio is not kept.
    """
    inside = mask[:, 0] > 0
    y, x = _box_positions(inside.any(2), size), _box_positions(inside.any(1), size)
    grid = torch.stack(torch.broadcast_tensors(x[:, None], y[:, :, None]), -1)  # (B, size, size, 2)
    return F.grid_sample(image.float(), grid, "bilinear", "border", align_corners=True).to(image.dtype)


def _box_positions(inside: Tensor, size: int) -> Tensor:
    """Return sampling positions on an axis, `(B, size)` in [-1, 1], from the places in the box, `(B, N)`."""
    count = inside.shape[1]
    index = torch.arange(count, device=inside.device)
    inside = inside | ~inside.any(1, keepdim=True)
    first = torch.where(inside, index, count).amin(1, keepdim=True)
    length = torch.where(inside, index, -1).amax(1, keepdim=True) + 1 - first
    place = (torch.arange(size, device=inside.device) + 0.5) * (length / size) - 0.5
    place = torch.minimum(place.clamp_min(0), length - 1) + first
    return 2 * place / (count - 1) - 1


class S2CRNet(HarmonyModel, ModelMixin, ConfigMixin):
    """Spatial-separated curve rendering: two successive curves per channel for the whole foreground.

    Filters are the slopes of both curves, up to a factor, `(B, 384)`: first and second curve, each channel by
    channel; all slopes 1 change nothing.

    Args:
        base: "squeezenet" (S2CRNet-S) or "vgg16" (S2CRNet-V).
        label: Category of the foreground, 0 to 4 in the order of the lists it was trained with; None for the
            path without label. Weights include both: `from_pretrained(folder, label=2)` selects the other.
        thumbnail_size: Side of the squares in which the network reads foreground and background.

    Raises:
        InputError: Unknown `base`, or a `label` out of range.

    Example:
        >>> model = S2CRNet(thumbnail_size=64).eval()
        >>> composite, mask = torch.rand(1, 3, 90, 120), torch.ones(1, 1, 90, 120)
        >>> filters = model.predict_filters(composite, mask)
        >>> filters.shape, model.apply_filters(composite, filters, mask).shape
        (torch.Size([1, 384]), torch.Size([1, 3, 90, 120]))
    """

    origin = Origin(
        title="Spatial-Separated Curve Rendering Network for Efficient and High-Resolution Image "
        "Harmonization",
        paper="https://arxiv.org/abs/2109.05750",
        code="https://github.com/stefanLeong/S2CRNet",
        code_license="MIT",
        weights_license="none stated",
    )
    predicts_filters = True
    keeps_shape = False
    category: Tensor | None
    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(self, base: str = "squeezenet", label: int | None = None, thumbnail_size: int = 256) -> None:
        super().__init__()
        if base not in ("squeezenet", "vgg16"):
            raise InputError("base", f'must be "squeezenet" or "vgg16", got {base!r}')
        if label is not None and label not in range(CATEGORIES):
            raise InputError("label", f"must be None or 0 to {CATEGORIES - 1}, got {label!r}")
        self.thumbnail_size = thumbnail_size
        self.backbone = Backbone(_squeezenet() if base == "squeezenet" else _vgg16())
        for layer in self.backbone.modules():
            if isinstance(layer, nn.Conv2d):
                assert layer.bias is not None
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
        self.renderers = nn.ModuleList(CurveRenderer(label is not None) for _ in range(2))
        category = None if label is None else torch.eye(CATEGORIES)[label : label + 1]
        self.register_buffer("category", category, persistent=False)

    def predict(self, composite: Tensor, mask: Tensor) -> Tensor:
        """Return the official result, about [0, 1] and blended with the mask."""
        return self.apply_stages(composite, self.predict_filters(composite, mask), mask)[1]

    def predict_filters(self, composite: Tensor, mask: Tensor) -> Tensor:
        """Predict float32 slopes `(B, 384)` from the foreground's bounding box and a background thumbnail."""
        box = crop_foreground(torch.cat((composite, mask.to(composite.dtype)), 1), mask, self.thumbnail_size)
        frame, small_mask = thumbnail(composite, mask, self.thumbnail_size)
        regions = torch.cat((box[:, :3] * box[:, 3:], frame * (1 - small_mask)))
        foreground, background = self.backbone(regions).chunk(2)
        slopes = [renderer(foreground, background, self.category) for renderer in self.renderers]
        return torch.cat(slopes, 1).float()

    def transform(self, image: Tensor, filters: Tensor, mask: Tensor) -> Tensor:
        """Apply both curves, `(B, 384)`; values are about [0, 1]."""
        first, second = filters.chunk(2, 1)
        return apply_curves(apply_curves(image, first), second)

    def apply_stages(self, image: Tensor, filters: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the picture after each curve; the official training puts a loss on both.

        Args:
            image: `(B, 3, H, W)` in [0, 1].
            filters: Slopes `(B, 384)`.
            mask: 1 on the foreground, soft values allowed, `(B, 1, H, W)`.

        Returns:
            Two pictures `(B, 3, H, W)`, blended with the mask, about [0, 1] and not clamped.
        """
        first, second = filters.chunk(2, 1)
        once = apply_curves(image, first)
        twice = apply_curves(once, second)
        return blend(once, image, mask), blend(twice, image, mask)

    @staticmethod
    def convert_official(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename the keys of a checkpoint of the two-renderer network on either backbone."""
        return rename_keys(state_dict, _KEYS, "S2CRNet")
