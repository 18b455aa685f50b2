"""Methods without trained weights, linear in colour: do nothing, Reinhard, linear Monge-Kantorovitch.

Each takes the colour statistics of the background over to the foreground. Statistics are computed on the CPU
in float64, so that they are the same on every device and in every precision of the image.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from harmony_diffusion.color import lab_to_srgb, srgb_to_lab
from harmony_diffusion.models.layers import blend
from harmony_diffusion.models.origin import Origin

# Rounding to 8 bits alone gives a colour this standard deviation: what varies less does not vary.
ROUNDING_STD = 1 / 255 / 12**0.5
PIXELS_AT_ONCE = 2**18


class Region(NamedTuple):
    """Colours `(N, 3)` of the pixels of a region and their weights `(N,)`, which sum to 1."""

    colors: np.ndarray
    weights: np.ndarray


def collect_region(image: Tensor, weight: Tensor) -> Region | None:
    """Collect the pixels of `image` `(3, H, W)` where `weight` `(H, W)` is above 0; None if it nowhere is."""
    inside = weight > 0
    if not inside.any():
        return None
    weights = weight[inside].numpy()
    return Region(image[:, inside].T.numpy(), weights / weights.sum())


def fit_filters(
    composite: Tensor,
    mask: Tensor,
    reference: Tensor | None,
    fit: Callable[[Region, Region], np.ndarray],
    identity: np.ndarray,
    to_space: Callable[[Tensor], Tensor] = lambda image: image,
) -> Tensor:
    """Compute filters image by image from the colours of the foreground and of the background.

    Args:
        composite: `(B, 3, H, W)` in [0, 1].
        mask: Weight of every pixel in the foreground, `(B, 1, H, W)`; the background has the rest.
        reference: Weight of the background pixels to harmonize to, `(B, 1, H, W)`, or None for all alike.
        fit: Filters `(F,)` from the foreground and the background, both of them not empty.
        identity: Filters `(F,)` that change nothing, for an image without foreground or background.
        to_space: The colour space the statistics are computed in.

    Returns:
        `(B, F)` on the device of `composite`, in float32 at least.
    """
    image, mask = (tensor.detach().cpu().double() for tensor in (composite, mask))
    outside = 1 - mask if reference is None else (1 - mask) * reference.detach().cpu().double()
    rows = []
    for one, weight, outside_weight in zip(to_space(image), mask, outside, strict=True):
        foreground, background = collect_region(one, weight[0]), collect_region(one, outside_weight[0])
        rows.append(identity if foreground is None or background is None else fit(foreground, background))
    precision = torch.promote_types(composite.dtype, torch.float32)
    return torch.from_numpy(np.stack(rows)).to(precision).to(composite.device)


def recolor(
    image: Tensor, filters: Tensor, mask: Tensor, color_map: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Map the colours of the foreground, a bounded number of pixels at a time.

    Args:
        image: `(B, 3, H, W)` in [0, 1].
        filters: `(B, F)`.
        mask: 1 on the foreground, `(B, 1, H, W)`; only pixels above 0 are computed.
        color_map: New colours `(3, N)` from colours `(3, N)` and the filters `(F,)` of their image.

    Returns:
        `(B, 3, H, W)` in [0, 1], blended by the mask.
    """
    harmonized = image.clone()
    for one, out, arguments, inside in zip(image, harmonized, filters, mask[:, 0] > 0, strict=True):
        pieces = one[:, inside].to(filters.dtype).split(PIXELS_AT_ONCE, dim=1)
        mapped = torch.cat([color_map(piece, arguments) for piece in pieces], dim=1)
        out[:, inside] = mapped.clamp(0, 1).to(image.dtype)
    return blend(harmonized, image, mask.to(image.dtype))


def mean_and_covariance(region: Region) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean `(3,)` and covariance `(3, 3)` of a region."""
    mean = region.weights @ region.colors
    centred = region.colors - mean
    return mean, (region.weights[:, None] * centred).T @ centred


class Identity(ModelMixin, ConfigMixin):
    """Return the composite as it is: the baseline every table needs."""

    origin = Origin(title="None: the composite itself", paper="")
    working_size = 256
    takes_reference = True

    @register_to_config
    def __init__(self) -> None:
        super().__init__()
        # A saved model needs one tensor, and a model without any has no device.
        self.register_buffer("version", torch.ones(()))

    def forward(self, composite: Tensor, mask: Tensor, reference: Tensor | None = None) -> Tensor:
        """Return `composite`, `(B, 3, H, W)`; `mask` and `reference` are not read."""
        return composite.clone()

    def predict_filters(self, composite: Tensor, mask: Tensor, reference: Tensor | None = None) -> Tensor:
        """Return no arguments, `(B, 0)`."""
        return composite.new_zeros(len(composite), 0)

    def apply_filters(self, image: Tensor, filters: Tensor, mask: Tensor) -> Tensor:
        """Return `image`, `(B, 3, H, W)`."""
        return image.clone()


class Reinhard(ModelMixin, ConfigMixin):
    """Give each channel of the foreground the mean and standard deviation of the background.

    Reinhard, Ashikhmin, Gooch, Shirley: Color transfer between images, IEEE CG&A 2001, equations 10 and 11.
    Changed here: CIE L*a*b* in place of Ruderman's l-alpha-beta, as is usual today. A channel that does not
    vary in the foreground is shifted and not scaled, where the paper divides by zero.
    """

    origin = Origin(
        title="Color transfer between images, IEEE Computer Graphics and Applications 2001",
        paper="https://doi.org/10.1109/38.946629",
    )
    working_size = 512
    takes_reference = True

    @register_to_config
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("version", torch.ones(()))

    def forward(self, composite: Tensor, mask: Tensor, reference: Tensor | None = None) -> Tensor:
        """Harmonize; arguments as in `predict_filters`, result `(B, 3, H, W)` in [0, 1]."""
        return self.apply_filters(composite, self.predict_filters(composite, mask, reference), mask)

    def predict_filters(self, composite: Tensor, mask: Tensor, reference: Tensor | None = None) -> Tensor:
        """Return gains and offsets of L*, a*, b*.

        Args:
            composite: `(B, 3, H, W)` in [0, 1].
            mask: 1 on the foreground, soft values weigh, `(B, 1, H, W)`.
            reference: Weight of the background pixels to harmonize to, `(B, 1, H, W)`; None: all alike.

        Returns:
            `(B, 6)`: three gains, three offsets. The identity where there is no foreground or no background.
        """
        identity = np.repeat([1.0, 0.0], 3)
        return fit_filters(composite, mask, reference, self._fit, identity, to_space=srgb_to_lab)

    @staticmethod
    def _fit(foreground: Region, background: Region) -> np.ndarray:
        from_mean, from_cov = mean_and_covariance(foreground)
        to_mean, to_cov = mean_and_covariance(background)
        from_std, to_std = np.sqrt(np.diag(from_cov)), np.sqrt(np.diag(to_cov))
        varies = from_std > 100 * ROUNDING_STD  # L* spans 100 where sRGB spans 1
        gain = np.where(varies, to_std / np.where(varies, from_std, 1), 1)
        return np.concatenate((gain, to_mean - gain * from_mean))

    def apply_filters(self, image: Tensor, filters: Tensor, mask: Tensor) -> Tensor:
        """Apply gains and offsets in L*a*b*.

        Args:
            image: `(B, 3, H, W)` in [0, 1], any size.
            filters: `(B, 6)` from `predict_filters`.
            mask: `(B, 1, H, W)`, the size of `image`.

        Returns:
            `(B, 3, H, W)` in [0, 1].
        """
        return recolor(image, filters, mask, self._map)

    @staticmethod
    def _map(colors: Tensor, filters: Tensor) -> Tensor:
        gain, offset = filters.view(2, 1, 3, 1, 1)
        return lab_to_srgb(srgb_to_lab(colors[None, :, None]) * gain + offset)[0, :, 0]


class MKL(ModelMixin, ConfigMixin):
    """Give the foreground the mean and covariance of the background by the linear map that moves it least.

    Monge-Kantorovitch transport between two Gaussians, in RGB: Pitié, Kokaram: The linear Monge-Kantorovitch
    linear colour mapping for example-based colour transfer, CVMP 2007. Changed here: directions in which the
    foreground does not vary are shifted and not scaled, where the paper's inverse does not exist.
    """

    origin = Origin(
        title="The linear Monge-Kantorovitch linear colour mapping for colour transfer, CVMP 2007",
        paper="https://doi.org/10.1049/cp:20070055",
    )
    working_size = 512
    takes_reference = True

    @register_to_config
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("version", torch.ones(()))

    def forward(self, composite: Tensor, mask: Tensor, reference: Tensor | None = None) -> Tensor:
        """Harmonize; arguments as in `predict_filters`, result `(B, 3, H, W)` in [0, 1]."""
        return self.apply_filters(composite, self.predict_filters(composite, mask, reference), mask)

    def predict_filters(self, composite: Tensor, mask: Tensor, reference: Tensor | None = None) -> Tensor:
        """Return the affine map of RGB.

        Args:
            composite: `(B, 3, H, W)` in [0, 1].
            mask: 1 on the foreground, soft values weigh, `(B, 1, H, W)`.
            reference: Weight of the background pixels to harmonize to, `(B, 1, H, W)`; None: all alike.

        Returns:
            `(B, 12)`: the 3x3 matrix row by row, then the offset. The identity where there is no foreground
            or no background.
        """
        identity = np.concatenate((np.eye(3).ravel(), np.zeros(3)))
        return fit_filters(composite, mask, reference, self._fit, identity)

    @staticmethod
    def _fit(foreground: Region, background: Region) -> np.ndarray:
        from_mean, from_cov = mean_and_covariance(foreground)
        to_mean, to_cov = mean_and_covariance(background)
        variances, axes = np.linalg.eigh(from_cov)
        varies = variances > ROUNDING_STD**2
        std = np.sqrt(np.where(varies, variances, 0))
        inverse_std = np.divide(1, std, out=np.zeros(3), where=varies)
        # T = A^(-1/2) (A^(1/2) B A^(1/2))^(1/2) A^(-1/2), in the axes in which A is diagonal.
        middle_variances, middle_axes = np.linalg.eigh(std[:, None] * (axes.T @ to_cov @ axes) * std)
        middle = (middle_axes * np.sqrt(middle_variances.clip(0))) @ middle_axes.T
        matrix = inverse_std[:, None] * middle * inverse_std + np.diag(np.where(varies, 0.0, 1.0))
        matrix = axes @ matrix @ axes.T
        return np.concatenate((matrix.ravel(), to_mean - matrix @ from_mean))

    def apply_filters(self, image: Tensor, filters: Tensor, mask: Tensor) -> Tensor:
        """Apply the affine map of RGB.

        Args:
            image: `(B, 3, H, W)` in [0, 1], any size.
            filters: `(B, 12)` from `predict_filters`.
            mask: `(B, 1, H, W)`, the size of `image`.

        Returns:
            `(B, 3, H, W)` in [0, 1].
        """
        return recolor(image, filters, mask, self._map)

    @staticmethod
    def _map(colors: Tensor, filters: Tensor) -> Tensor:
        return filters[:9].view(3, 3) @ colors + filters[9:, None]
