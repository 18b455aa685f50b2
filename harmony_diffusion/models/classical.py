"""Methods without trained weights that are linear in colour: identity, Reinhard, linear Monge-Kantorovitch.

Each transfers colour statistics from the background to the foreground. Statistics are computed on the CPU and
summed in float64, so that they do not depend on the device.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from harmony_diffusion.color import lab_to_srgb, srgb_to_lab
from harmony_diffusion.models.classical_lab import lab_to_srgb_list, srgb_to_lab_list
from harmony_diffusion.models.contract import HarmonyModel
from harmony_diffusion.models.origin import Origin

# Standard deviation that rounding to 8 bits alone gives a colour. What varies less counts as constant.
ROUNDING_STD = 1 / 255 / 12**0.5
PIXELS_AT_ONCE = 2**16  # their numbers stay in the processor's cache


class Region(NamedTuple):
    """Colours `(N, 3)` of pixels and their weights `(N,)` in a region, which sum to 1 and may be 0."""

    colors: np.ndarray
    weights: np.ndarray


def collect_region(image: Tensor, weight: Tensor) -> Region | None:
    """Collect the pixels of `image` `(3, H, W)` where `weight` `(H, W)` is above 0; None if nowhere.

    If these are most of the pixels, the others stay with a weight of 0, which saves a copy.
    """
    colors, weights = image.flatten(1), weight.flatten().numpy()
    index = np.flatnonzero(weights > 0)  # a list of positions is read in a fifth of the time of a mask
    if not index.size:
        return None
    if 2 * index.size < weights.size:
        colors, weights = colors.index_select(1, torch.from_numpy(index)), weights[index]
    weights = weights.astype(np.float64)
    weights /= weights.sum()
    return Region(colors.numpy().T, weights)


def mean_and_covariance(
    region: Region, to_space: Callable[[np.ndarray], np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the weighted mean `(3,)` and covariance `(3, 3)` of a region.

    Args:
        region: Colours and weights.
        to_space: Converts colours `(3, N)` to the space of the statistics; None for sRGB itself.
    """
    convert = to_space or (lambda colors: colors)
    first, second = np.zeros(3), np.zeros((3, 3))
    # Sums of squares lose no digits of small variances if colours are measured from one of them.
    start = int(np.argmax(region.weights > 0))
    origin = convert(region.colors[start : start + 1].T).astype(np.float64)
    for start in range(0, len(region.weights), PIXELS_AT_ONCE):
        piece = slice(start, start + PIXELS_AT_ONCE)
        colors = convert(region.colors[piece].T) - origin
        weighted = colors * region.weights[piece]
        first += weighted.sum(1)
        second += weighted @ colors.T
    return origin[:, 0] + first, second - np.outer(first, first)


class ClassicalMethod(HarmonyModel):
    """Base of the methods that fit a map of colours to statistics of both regions and then apply it.

    A method states the `identity`, fits the filters of one image in `fit`, and applies them in `map_colors`.
    """

    working_size = 512
    keeps_shape = False
    predicts_filters = True
    takes_reference = True

    def __init__(self) -> None:
        super().__init__()
        # A saved model needs one tensor, and a model without any has no device.
        self.register_buffer("version", torch.ones(()))

    @property
    def identity(self) -> np.ndarray:
        """Filters `(F,)` that change nothing, for an image without foreground or background."""
        raise NotImplementedError

    def fit(self, foreground: Region, background: Region) -> np.ndarray:
        """Compute the filters `(F,)` of one image from its two regions, neither of which is empty."""
        raise NotImplementedError

    def map_colors(self, colors: Tensor, filters: Tensor) -> Tensor:
        """Return the new colours `(3, N)` of colours `(3, N)`, given the filters `(F,)` of their image."""
        raise NotImplementedError

    def predict_filters(self, composite: Tensor, mask: Tensor, reference: Tensor | None = None) -> Tensor:
        """Compute filters image by image from the colours of the foreground and of the background.

        Args:
            composite: `(B, 3, H, W)` in [0, 1].
            mask: Weight of every pixel in the foreground, `(B, 1, H, W)`; the background has the rest.
            reference: Weight of the background pixels to harmonize to, `(B, 1, H, W)`; None to weigh all
                alike.

        Returns:
            `(B, F)` on the device of `composite`, in float32 or float64. The identity for an image without
            foreground or background.
        """
        precision = torch.promote_types(composite.dtype, torch.float32)
        image, mask = (tensor.detach().cpu().to(precision) for tensor in (composite, mask))
        outside = 1 - mask if reference is None else (1 - mask) * reference.detach().cpu()
        rows = []
        for one, weight, outside_weight in zip(image, mask, outside, strict=True):
            foreground, background = collect_region(one, weight[0]), collect_region(one, outside_weight[0])
            if foreground is None or background is None:
                rows.append(self.identity)
            else:
                rows.append(self.fit(foreground, background))
        return torch.from_numpy(np.stack(rows)).to(precision).to(composite.device)

    def predict_frame(self, composite: Tensor, mask: Tensor, reference: Tensor | None = None) -> Tensor:
        """Return the composite with the foreground recoloured, not blended yet."""
        return self.transform(composite, self.predict_filters(composite, mask, reference), mask)

    def transform(self, image: Tensor, filters: Tensor, mask: Tensor) -> Tensor:
        """Map the colours of pixels whose mask is above 0, a bounded number of pixels at a time."""
        harmonized = image.clone(memory_format=torch.contiguous_format)
        for one, out, arguments, weight in zip(image, harmonized, filters, mask[:, 0], strict=True):
            inside = weight.flatten() > 0
            # The full-size path hands over foreground pixels alone, which need no list of positions.
            index = None if inside.all() else inside.nonzero()[:, 0]
            count = inside.numel() if index is None else len(index)
            for start in range(0, count, PIXELS_AT_ONCE):
                piece = slice(start, start + PIXELS_AT_ONCE)
                part = piece if index is None else index[piece]
                colors = self.map_colors(one.flatten(1)[:, part].to(filters.dtype), arguments)
                out.view(3, -1)[:, part] = colors.clamp(0, 1).to(image.dtype)
        return harmonized


class Identity(ClassicalMethod, ModelMixin, ConfigMixin):
    """Return the composite as it is: the baseline of every table. Filters are empty, `(B, 0)`."""

    origin = Origin(title="None: the composite itself", paper="")
    working_size = 256

    @register_to_config
    def __init__(self) -> None:
        super().__init__()

    def predict_filters(self, composite: Tensor, mask: Tensor, reference: Tensor | None = None) -> Tensor:
        """Return no filters, `(B, 0)`."""
        return composite.new_zeros(len(composite), 0)

    def transform(self, image: Tensor, filters: Tensor, mask: Tensor) -> Tensor:
        """Return `image`."""
        return image.clone()


def _to_lab(colors: np.ndarray) -> np.ndarray:
    """Convert colours `(3, N)` to CIE L*a*b* in their own precision."""
    if colors.dtype == np.float32:
        return srgb_to_lab_list(colors)
    return srgb_to_lab(torch.from_numpy(colors)[None, :, None])[0, :, 0].numpy()


class Reinhard(ClassicalMethod, ModelMixin, ConfigMixin):
    """Give each channel of the foreground the mean and standard deviation of the background.

    Reinhard, Ashikhmin, Gooch, Shirley: Color transfer between images, IEEE CG&A 2001, equations 10 and 11.
    Changed here: CIE L*a*b* replaces Ruderman's l-alpha-beta, as is usual today. A channel that does not vary
    in the foreground is shifted and not scaled, where the paper divides by zero.

    Filters are three gains and three offsets of L*, a* and b*, `(B, 6)`.
    """

    origin = Origin(
        title="Color transfer between images, IEEE Computer Graphics and Applications 2001",
        paper="https://doi.org/10.1109/38.946629",
    )

    @register_to_config
    def __init__(self) -> None:
        super().__init__()

    @property
    def identity(self) -> np.ndarray:
        """Gains of 1 and offsets of 0."""
        return np.repeat([1.0, 0.0], 3)

    def fit(self, foreground: Region, background: Region) -> np.ndarray:
        """Match means and standard deviations."""
        from_mean, from_cov = mean_and_covariance(foreground, _to_lab)
        to_mean, to_cov = mean_and_covariance(background, _to_lab)
        # Rounding can make the variance of a constant negative.
        from_std, to_std = (np.sqrt(np.diag(covariance).clip(0)) for covariance in (from_cov, to_cov))
        varies = from_std > 100 * ROUNDING_STD  # L* spans 100 where sRGB spans 1
        gain = np.where(varies, to_std / np.where(varies, from_std, 1), 1)
        return np.concatenate((gain, to_mean - gain * from_mean))

    def map_colors(self, colors: Tensor, filters: Tensor) -> Tensor:
        """Apply gains and offsets in L*a*b*."""
        gain, offset = filters.view(2, 3, 1)
        if (
            colors.device.type == "cpu"
            and colors.dtype == torch.float32
            and not (colors.requires_grad or filters.requires_grad)
        ):
            lab = srgb_to_lab_list(colors.numpy()) * gain.numpy() + offset.numpy()
            return torch.from_numpy(lab_to_srgb_list(lab))
        lab = srgb_to_lab(colors[None, :, None])[0, :, 0]
        return lab_to_srgb((lab * gain + offset)[None, :, None])[0, :, 0]


class MKL(ClassicalMethod, ModelMixin, ConfigMixin):
    """Give the foreground the mean and covariance of the background by the linear map that moves it least.

    Monge-Kantorovitch transport between two Gaussians, in RGB: Pitié, Kokaram: The linear Monge-Kantorovitch
    linear colour mapping for example-based colour transfer, CVMP 2007. Changed here: directions in which the
    foreground does not vary are shifted and not scaled, where the paper's inverse does not exist.

    Filters are a 3x3 matrix row by row and an offset, `(B, 12)`.
    """

    origin = Origin(
        title="The linear Monge-Kantorovitch linear colour mapping for colour transfer, CVMP 2007",
        paper="https://doi.org/10.1049/cp:20070055",
    )

    @register_to_config
    def __init__(self) -> None:
        super().__init__()

    @property
    def identity(self) -> np.ndarray:
        """The identity matrix and no offset."""
        return np.concatenate((np.eye(3).ravel(), np.zeros(3)))

    def fit(self, foreground: Region, background: Region) -> np.ndarray:
        """Match means and covariances."""
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

    def map_colors(self, colors: Tensor, filters: Tensor) -> Tensor:
        """Apply the affine map of RGB."""
        return filters[:9].view(3, 3) @ colors + filters[9:, None]
