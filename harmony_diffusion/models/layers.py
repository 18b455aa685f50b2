"""Blocks used by three or more models."""

import torch
from torch import Tensor, nn


def blend(harmonized: Tensor, composite: Tensor, mask: Tensor) -> Tensor:
    """Put the harmonized foreground on the untouched background: `M * harmonized + (1 - M) * composite`.

    Args:
        harmonized: Network output in [0, 1], `(B, 3, H, W)`.
        composite: Input image in [0, 1], `(B, 3, H, W)`.
        mask: 1 on the foreground, soft values allowed, `(B, 1, H, W)`.

    Returns:
        `(B, 3, H, W)`, equal to `composite` to the bit where the mask is 0 and to `harmonized` where it is 1.
    """
    return torch.where(mask > 0, torch.lerp(composite, harmonized.to(composite.dtype), mask), composite)


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
