"""Blocks used by three or more models."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def blend(harmonized: Tensor, composite: Tensor, mask: Tensor) -> Tensor:
    """Blend the harmonized foreground with the unchanged background: `M * harmonized + (1 - M) * composite`.

    Args:
        harmonized: Network output in [0, 1], `(B, 3, H, W)`.
        composite: Input image in [0, 1], `(B, 3, H, W)`.
        mask: 1 on the foreground, soft values allowed, `(B, 1, H, W)`.

    Returns:
        `(B, 3, H, W)`, equal to `composite` to the bit where the mask is 0 and to `harmonized` where it is 1.
    """
    return torch.where(mask > 0, torch.lerp(composite, harmonized.to(composite.dtype), mask), composite)


class _InwardClamp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(0, 1)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        outward = ((x > 1) & (gradient < 0)) | ((x < 0) & (gradient > 0))
        return gradient.masked_fill(outward, 0.0)


def clamp_unit(x: Tensor) -> Tensor:
    """Clamp to [0, 1], any shape; outside the range, a gradient passes only if its step leads back inside.

    The gradient of a plain clamp is 0 there, so that pixels outside the range would never return to it.
    """
    return _InwardClamp.apply(x) if x.requires_grad else x.clamp(0, 1)


class ImageNetNormalize(nn.Module):
    """Map RGB in [0, 1] to zero mean and unit variance over ImageNet, and back."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Normalise an image in [0, 1], `(B, 3, H, W)`."""
        return (image - self.mean) / self.std

    def inverse(self, image: Tensor) -> Tensor:
        """Undo the normalisation, `(B, 3, H, W)`; the result is not clamped."""
        return image * self.std + self.mean


def pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """Pad height and width with zeros, half on either side, the odd pixel last.

    Args:
        image: `(B, C, H, W)`.
        multiple: Height and width of the result are multiples of it.

    Returns:
        `(B, C, H', W')`; `crop_padding` undoes it.
    """
    height, width = -image.shape[-2] % multiple, -image.shape[-1] % multiple
    return F.pad(image, (width // 2, width - width // 2, height // 2, height - height // 2))


def crop_padding(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut the image of `(height, width)` out of the middle of a padded `(B, C, H', W')`."""
    top, left = (image.shape[-2] - size[0]) // 2, (image.shape[-1] - size[1]) // 2
    return image[..., top : top + size[0], left : left + size[1]]


def thumbnail(composite: Tensor, mask: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Resize both to `size x size` as cv2.resize does: bilinear, half-pixel centres, no antialiasing."""
    if composite.shape[-2:] == (size, size):
        return composite, mask
    return (
        F.interpolate(composite, (size, size), mode="bilinear", align_corners=False),
        F.interpolate(mask, (size, size), mode="bilinear", align_corners=False),
    )


def reflect_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """Mirror an image at its bottom and right edges until height and width are multiples of a stride.

    Unlike `torch.nn.functional.pad(mode="reflect")`, this mirrors as often as needed, which small pictures
    need in networks of a large stride. `[..., :height, :width]` undoes it.

    Args:
        image: `(B, C, H, W)`.
        multiple: Height and width of the result are multiples of it.

    Returns:
        `(B, C, H', W')`; `image` itself when its size fits.
    """
    for axis in (-2, -1):
        size = image.shape[axis]
        if size % multiple:
            period = max(2 * size - 2, 1)
            index = torch.arange(size + -size % multiple, device=image.device) % period
            image = image.index_select(axis, torch.minimum(index, (period - index) % period))
    return image


def init_pix2pix_(module: nn.Module) -> None:
    """Draw convolutions and linear layers from N(0, 0.02); biases are 0, batch norm scales from N(1, 0.02).

    The initialisation of the pix2pix family (RainNet, HDNet, DoveNet).
    """
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.BatchNorm2d)):
            nn.init.normal_(layer.weight, float(isinstance(layer, nn.BatchNorm2d)), 0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class CheckpointedModule(nn.Module):
    """A network that recomputes its blocks in the backward pass after `enable_gradient_checkpointing()`.

    A plain checkpoint would run each batch norm twice in a step and count every batch twice in its running
    statistics. Here the second run does not change them.
    """

    gradient_checkpointing = False  # both attributes are set by `ModelMixin.enable_gradient_checkpointing`
    _gradient_checkpointing_func: Callable[..., Tensor] | None = None

    def run(self, block: nn.Module, *inputs: Tensor) -> Tensor:
        """Apply one block to its inputs."""
        if not (self.gradient_checkpointing and torch.is_grad_enabled()):
            return block(*inputs)
        assert self._gradient_checkpointing_func is not None
        return self._gradient_checkpointing_func(_RunOnceThenFrozen(block), *inputs)


class _RunOnceThenFrozen:
    """Call a block; from the second call on, without changing the running statistics of its batch norms."""

    def __init__(self, block: nn.Module) -> None:
        self.block, self.ran = block, False

    def __call__(self, *inputs: Tensor) -> Tensor:
        norms = [m for m in self.block.modules() if isinstance(m, nn.BatchNorm2d)] if self.ran else []
        self.ran = True
        momenta = [norm.momentum for norm in norms]
        counts = [norm.get_buffer("num_batches_tracked").clone() for norm in norms]
        try:
            for norm in norms:
                norm.momentum = 0.0
            return self.block(*inputs)
        finally:
            for norm, momentum, count in zip(norms, momenta, counts, strict=True):
                norm.momentum = momentum
                norm.get_buffer("num_batches_tracked").copy_(count)


def init_gaussian_xavier_(module: nn.Module, magnitude: float) -> None:
    """Draw convolutions and linear layers from N(0, magnitude / mean(fan_in, fan_out)); their biases are 0.

    The initialisation of the SAIC networks and their descendants (iDIH, iS2AM, DCCF, PCT-Net).
    """
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            # Xavier's variance is gain^2 * 2 / (fan_in + fan_out).
            nn.init.xavier_normal_(layer.weight, gain=magnitude**0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
