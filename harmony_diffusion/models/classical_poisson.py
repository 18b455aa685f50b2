"""Poisson image editing: keep the gradients of the foreground and take its level from the background."""

import cv2
import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from harmony_diffusion.models.contract import HarmonyModel
from harmony_diffusion.models.origin import Origin

# `seamlessClone` shrinks the mask by 3 pixels, drops its outermost row and column, and needs a margin.
SHRINKS_BY = 3
PADDING = SHRINKS_BY + 2


def fill_from_nearest(image: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Give each pixel of `image` `(H, W, 3)` the colour of the nearest where `known` `(H, W)` is True."""
    kind = cv2.DIST_LABEL_PIXEL
    _, labels = cv2.distanceTransformWithLabels((~known).astype(np.uint8), cv2.DIST_L2, 5, labelType=kind)
    pixel_of_label = np.zeros(labels.max() + 1, np.intp)
    pixel_of_label[labels[known]] = np.flatnonzero(known)
    return image.reshape(-1, 3)[pixel_of_label[labels]]


def seamless_clone(image: np.ndarray, mask: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Solve the Poisson equation for the foreground of a composite.

    Args:
        image: `(H, W, 3)` uint8; the channels are independent, so their order does not matter.
        mask: `(H, W)` in [0, 1], above 0 somewhere.
        known: Background pixels to join to, `(H, W)` bool, True somewhere and only where `mask` is 0.

    Returns:
        `(H, W, 3)` float, the new foreground in [0, 256); arbitrary where `mask` is 0.
    """
    image = np.pad(image, ((PADDING, PADDING), (PADDING, PADDING), (0, 0)))
    mask, known = np.pad(mask, PADDING), np.pad(known, PADDING)
    # The gradient across the edge of the foreground belongs to neither photograph. Extending both regions
    # beyond the edge makes it 0. The half-transparent rim has mixed colours and is not extended.
    source = fill_from_nearest(image, mask >= mask.max() / 2)
    destination = fill_from_nearest(image, known)
    region = cv2.dilate((mask > 0).astype(np.uint8) * 255, np.ones((3, 3), np.uint8), iterations=SHRINKS_BY)
    left, top, width, height = cv2.boundingRect(region)
    # OpenCV centres the bounding box of the mask here, with this rounding, and overwrites the mask.
    center = (left + width // 2, top + height // 2)
    cloned = cv2.seamlessClone(source, destination, region, center, cv2.NORMAL_CLONE)
    # OpenCV truncates the solution to whole numbers; it does not round.
    return cloned[PADDING:-PADDING, PADDING:-PADDING] + 0.5


class Poisson(HarmonyModel, ModelMixin, ConfigMixin):
    """Keep the gradients of the foreground and let its edge take the colour of the background.

    Pérez, Gangnet, Blake: Poisson image editing, SIGGRAPH 2003, solved by OpenCV `seamlessClone`. The source
    photograph around the foreground is not known in a composite, so gradients across the edge count as 0.
    OpenCV solves for the bounding box of the foreground; only the foreground is used. It computes in 8 bits;
    the change of colour is added to the composite, which keeps finer steps. The method always shifts the
    colours of the whole foreground towards the colours of the adjacent background.
    """

    origin = Origin(
        title="Poisson image editing, SIGGRAPH 2003",
        paper="https://doi.org/10.1145/882262.882269",
        code="https://github.com/opencv/opencv",
        code_license="Apache-2.0",
    )
    working_size = 512
    takes_reference = True

    @register_to_config
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("version", torch.ones(()))

    def predict(self, composite: Tensor, mask: Tensor) -> Tensor:
        """Return the composite with the solved foreground, about [0, 1]."""
        return self.predict_frame(composite, mask)

    def predict_frame(self, composite: Tensor, mask: Tensor, reference: Tensor | None = None) -> Tensor:
        """Return the composite with the solved foreground, about [0, 1].

        Args:
            composite: `(B, 3, H, W)` in [0, 1].
            mask: 1 on the foreground, `(B, 1, H, W)`; a soft rim is part of the solved region.
            reference: Background pixels to join to where above 0, `(B, 1, H, W)`; the others take the colour
                of the nearest of them. None for all pixels where the mask is 0.

        Returns:
            `(B, 3, H, W)`. An image without foreground or without background is returned unchanged.
        """
        known = mask == 0 if reference is None else (mask == 0) & (reference > 0)
        change = torch.stack(
            [self._change(*one) for one in zip(composite, mask[:, 0], known[:, 0], strict=True)]
        )
        return composite + change

    @staticmethod
    def _change(composite: Tensor, mask: Tensor, known: Tensor) -> Tensor:
        if not known.any() or not (mask > 0).any():
            return torch.zeros_like(composite)
        image = composite.detach().float().mul(255).round().byte().permute(1, 2, 0).cpu().numpy()
        cloned = seamless_clone(image, mask.detach().float().cpu().numpy(), known.cpu().numpy())
        return torch.from_numpy((cloned - image) / 255).permute(2, 0, 1).to(composite)
