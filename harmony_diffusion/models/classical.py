"""Methods without trained weights: statistics of the background carried over to the foreground."""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from harmony_diffusion.models.origin import Origin


class Identity(ModelMixin, ConfigMixin):
    """Return the composite as it is: the baseline every table needs."""

    origin = Origin(title="None: the composite itself", paper="")
    working_size = 256

    @register_to_config
    def __init__(self) -> None:
        super().__init__()
        # A saved model needs one tensor, and a model without any has no device.
        self.register_buffer("version", torch.ones(()))

    def forward(self, composite: Tensor, mask: Tensor) -> Tensor:
        """Return `composite`, `(B, 3, H, W)`; `mask` is not read."""
        return composite.clone()

    def predict_filters(self, composite: Tensor, mask: Tensor) -> Tensor:
        """Return no arguments, `(B, 0)`."""
        return composite.new_zeros(len(composite), 0)

    def apply_filters(self, image: Tensor, filters: Tensor, mask: Tensor) -> Tensor:
        """Return `image`, `(B, 3, H, W)`."""
        return image.clone()
