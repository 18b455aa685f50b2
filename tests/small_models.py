"""Small models of each kind, and pictures for them."""

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin

from harmony_diffusion.images.picture import Picture
from harmony_diffusion.models.contract import HarmonyModel
from harmony_diffusion.models.origin import Origin


class Gain(HarmonyModel, ModelMixin, ConfigMixin):
    """White-box network: one gain a channel, the ratio of the means of background and foreground."""

    origin = Origin(title="Model of the tests", paper="")
    working_size = 64
    keeps_shape = False
    predicts_filters = True

    @register_to_config
    def __init__(self):
        super().__init__()
        self.amount = torch.nn.Parameter(torch.tensor(0.5))

    def predict_filters(self, composite, mask):
        inside = (composite * mask).sum((2, 3)) / mask.sum((2, 3)).clamp_min(1e-3)
        outside = (composite * (1 - mask)).sum((2, 3)) / (1 - mask).sum((2, 3)).clamp_min(1e-3)
        return 1 + self.amount * (outside / inside.clamp_min(0.05) - 1)

    def transform(self, image, filters, mask):
        return image * filters[:, :, None, None]


class GainMap(Gain, ModelMixin, ConfigMixin):
    """White-box network whose gains differ from place to place."""

    @register_to_config
    def __init__(self, filter_upsampling="bicubic"):
        super().__init__()
        self.filter_upsampling = filter_upsampling

    def predict_filters(self, composite, mask):
        blurred = F.avg_pool2d(composite, 9, 4, 4)
        return 0.5 + self.amount * blurred.flip(1)

    def transform(self, image, filters, mask):
        if filters.shape[-2:] != image.shape[-2:]:
            filters = F.interpolate(filters, image.shape[-2:], mode=self.filter_upsampling)
        return image * filters


class Dense(HarmonyModel, ModelMixin, ConfigMixin):
    """Dense network: pulls the foreground halfway to the mean colour of the background."""

    origin = Origin(title="Model of the tests", paper="")
    working_size = 64

    @register_to_config
    def __init__(self):
        super().__init__()
        self.amount = torch.nn.Parameter(torch.tensor(0.5))

    def predict(self, composite, mask):
        outside = ((composite * (1 - mask)).sum((2, 3)) / (1 - mask).sum((2, 3)))[..., None, None]
        return torch.lerp(composite, outside, self.amount)


def make_picture(dtype=np.uint8, size=(150, 200), **fields):
    generator = torch.Generator().manual_seed(0)
    image = 0.7 * F.interpolate(torch.rand(1, 3, 12, 16, generator=generator), size, mode="bicubic")
    image += 0.2 * torch.rand(1, 3, *size, generator=generator)
    values = image[0].clamp(0, 1).permute(1, 2, 0).numpy()
    if dtype != np.float32:
        values = np.rint(values * np.iinfo(dtype).max).astype(dtype)
    return Picture(np.ascontiguousarray(values), **fields)


def make_mask(size=(150, 200)):
    """A disk with a soft rim and two lone pixels."""
    y, x = np.mgrid[: size[0], : size[1]] / np.array(size).reshape(2, 1, 1) - 0.5
    mask = ((0.3 - np.hypot(y, x)) * 40).clip(0, 1).astype(np.float32)
    mask[0, 0] = mask[-1, 3] = 1
    return mask


def as_tensor(array):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, -1, 0)))[None]
