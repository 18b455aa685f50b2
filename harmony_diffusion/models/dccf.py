"""DCCF: four understandable colour filters per pixel: luminance, saturation, hue, refinement.

Paper: Xue et al., "DCCF: Deep Comprehensible Color Filter Learning Framework for High-Resolution Image
Harmonization", ECCV 2022, https://arxiv.org/abs/2207.04788.  Official code: https://github.com/rockeyben/DCCF
(MPL-2.0), `dccf_improved_dih256` and `dccf_improved_ssam256`.

Changed here: the foreground is pasted on the untouched background (`forward`); the gradient of the result
reaches all filters unless `detach_refinement` is set.  As in the code, filters are upsampled bicubically, the
refinement is normalised after that, and a learned attention fuses the result with the input.
"""

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from harmony_diffusion.color import affine_color, hsv_to_rgb, rgb_to_hsv
from harmony_diffusion.errors import InputError
from harmony_diffusion.models.contract import HarmonyModel
from harmony_diffusion.models.idih import ENCODER_DECODER_KEYS, HEAD_KEYS, EncoderDecoder
from harmony_diffusion.models.is2am import UNET_KEYS, AttentionUNet
from harmony_diffusion.models.layers import (
    ImageNetNormalize,
    clamp_unit,
    init_gaussian_xavier_,
    thumbnail,
)
from harmony_diffusion.models.official_keys import rename_keys
from harmony_diffusion.models.origin import Origin
from harmony_diffusion.models.pct_net import resize_maps

_FILTER_KEYS = (
    *HEAD_KEYS,
    (r"get_filters\.(.+)", r"to_filters.\1"),
    (r"get_refine\.(.+)", r"to_refinement.\1"),
)
_BY_ROW = [0, 3, 6, 1, 4, 7, 2, 5, 8]
_EPS = 1e-7


def filter_luminance(hsv: Tensor, parameters: Tensor) -> Tensor:
    """Bend the value by a piecewise linear curve: a slope for each eighth of the range, and an offset.

    Args:
        hsv: `(B, 3, H, W)` in [0, 1].
        parameters: `(B, 9, H, W)`: slopes, then the offset, which is kept within 0.2 of zero.

    Returns:
        HSV with the new value, `(B, 3, H, W)`.
    """
    value = hsv[:, 2:]
    curve = parameters[:, 8:].clamp(-0.2, 0.2)
    for i in range(8):
        curve = curve + parameters[:, i : i + 1] * F.relu(value - i / 8)
    return torch.cat((hsv[:, :2], clamp_unit(curve)), 1)


def filter_saturation(hsv: Tensor, parameters: Tensor) -> Tensor:
    """Move colours away from or towards their grey (HSL lightness), keeping hue and value.

    Args:
        hsv: `(B, 3, H, W)` in [0, 1].
        parameters: `(B, 1, H, W)`: -1 removes all colour, +1 saturates up to the limit of the gamut.

    Returns:
        HSV with the new saturation, `(B, 3, H, W)`.
    """
    amount = parameters.clamp(-0.99, 0.99)
    rgb = hsv_to_rgb(hsv)
    high, low = rgb.amax(1, keepdim=True), rgb.amin(1, keepdim=True)
    lightness = (high + low) / 2
    saturation = (high - low) / (torch.where(lightness < 0.5, high + low, 2 - high - low) + _EPS)
    gain = 1 / torch.where(saturation + amount >= 1, saturation, 1 - amount).clamp_min(_EPS) - 1
    more = rgb + (rgb - lightness) * gain
    less = lightness + (rgb - lightness) * (1 + amount)
    changed = rgb_to_hsv(torch.where(amount >= 0, more, less).clamp(0, 1))
    return torch.cat((hsv[:, :1], changed[:, 1:2], hsv[:, 2:]), 1)


def filter_hue(hsv: Tensor, parameters: Tensor) -> Tensor:
    """Take the hue of an affine transform of RGB, keeping saturation and value.

    Args:
        hsv: `(B, 3, H, W)` in [0, 1].
        parameters: `(B, 12, H, W)`: a 3x3 matrix row by row, then the offset.

    Returns:
        HSV with the new hue, `(B, 3, H, W)`.
    """
    turned = rgb_to_hsv(clamp_unit(affine_color(hsv_to_rgb(hsv), parameters)))
    return torch.cat((turned[:, :1], hsv[:, 1:]), 1)


class DCCF(HarmonyModel, ModelMixin, ConfigMixin):
    """Deep comprehensible colour filters.

    Filters are maps `(B, 35, thumbnail_size, thumbnail_size)`: hue (12), luminance (9), saturation (1),
    refinement (12) and the attention (1), the share of the filtered picture in the result. The refinement has
    unit length at every pixel. All act pixel by pixel on RGB in [0, 1].

    Args:
        base: "idih" (encoder-decoder of iDIH) or "is2am" (U-Net of iS2AM).
        thumbnail_size: Side of the square, a multiple of 256 ("idih") or 8 ("is2am"), that the network
            reads.
        detach_refinement: Stop the gradient between the first three filters and the refinement, as in the
            official training, which puts separate losses on the first three stages of `apply_stages`.

    Raises:
        InputError: Unknown `base`, or a `thumbnail_size` it cannot halve often enough.

    Example:
        >>> model = DCCF("is2am", thumbnail_size=32).eval()
        >>> composite, mask = torch.rand(1, 3, 90, 120), torch.ones(1, 1, 90, 120)
        >>> filters = model.predict_filters(composite, mask)
        >>> filters.shape, model.apply_filters(composite, filters, mask).shape
        (torch.Size([1, 35, 32, 32]), torch.Size([1, 3, 90, 120]))
    """

    origin = Origin(
        title="DCCF: Deep Comprehensible Color Filter Learning Framework for High-Resolution Image "
        "Harmonization",
        paper="https://arxiv.org/abs/2207.04788",
        code="https://github.com/rockeyben/DCCF",
        code_license="MPL-2.0",
        weights_license="MPL-2.0",
    )
    predicts_filters = True
    keeps_shape = False
    filter_upsampling = "bicubic"
    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self, base: str = "idih", thumbnail_size: int = 256, detach_refinement: bool = False
    ) -> None:
        super().__init__()
        self.thumbnail_size, self.detach_refinement = thumbnail_size, detach_refinement
        self.normalize = ImageNetNormalize()
        if base == "idih":
            self.backbone: nn.Module = EncoderDecoder(norm_from=2)
        elif base == "is2am":
            self.backbone = AttentionUNet()
            # Unused. The official model, its files and its parameter count include it.
            self.to_rgb = nn.Conv2d(32, 3, 1).requires_grad_(False)
        else:
            raise InputError("base", f'must be "idih" or "is2am", got {base!r}')
        multiple = {"idih": 256, "is2am": 8}[base]
        if thumbnail_size % multiple:
            raise InputError("thumbnail_size", f"must be a multiple of {multiple}, got {thumbnail_size}")
        self.attention = nn.Conv2d(32, 1, 1)
        self.to_filters = nn.Conv2d(32, 22, 1)
        self.to_refinement = nn.Conv2d(32, 12, 1)
        init_gaussian_xavier_(self, magnitude=2 if base == "idih" else 1)

    def predict_filters(self, composite: Tensor, mask: Tensor) -> Tensor:
        """Predict float32 maps `(B, 35, thumbnail_size, thumbnail_size)`; see the class."""
        image, small_mask = thumbnail(composite, mask, self.thumbnail_size)
        x = torch.cat((self.normalize(image), small_mask), 1).to(self.dtype)
        features = self.backbone(x)
        attention = torch.sigmoid(3 * self.attention(features))
        return torch.cat((self.to_filters(features), self.to_refinement(features), attention), 1).float()

    def apply_stages(self, image: Tensor, filters: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the picture after each filter, for display or for a loss.

        Args:
            image: `(B, 3, H, W)` in [0, 1].
            filters: Maps `(B, 35, h, w)`, see `apply_filters`.

        Returns:
            RGB after luminance, saturation, hue and refinement, each `(B, 3, H, W)` in [0, 1] over the whole
            frame: neither attention nor mask is applied.
        """
        maps = resize_maps(filters, image, self.filter_upsampling)
        hue, luminance, saturation, refinement, _ = maps.split((12, 9, 1, 12, 1), 1)
        lighter = filter_luminance(rgb_to_hsv(image.to(maps.dtype)), luminance)
        richer = filter_saturation(lighter, saturation)
        turned = hsv_to_rgb(filter_hue(richer, hue))
        source = turned.detach() if self.detach_refinement else turned
        # Normalised here and not in `predict_filters`: the official order is resize, then normalise.
        refined = clamp_unit(affine_color(source, F.normalize(refinement, dim=1)))
        return hsv_to_rgb(lighter), hsv_to_rgb(richer), turned, refined

    def transform(self, image: Tensor, filters: Tensor, mask: Tensor) -> Tensor:
        """Apply maps `(B, 35, h, w)`, resized bicubically, and the attention; values are about [0, 1]."""
        filters = resize_maps(filters, image, self.filter_upsampling)
        refined = self.apply_stages(image, filters)[-1]
        return torch.lerp(image.to(refined.dtype), refined, filters[:, -1:]).to(image.dtype)

    @staticmethod
    def convert_official(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename the keys of an official checkpoint on either base.

        The official matrices are stored column by column; the heads' channels are put in the order of rows.
        """
        unet = any(key.startswith("decoder.up_blocks.") for key in state_dict)
        backbone_keys = UNET_KEYS if unet else ENCODER_DECODER_KEYS
        converted = rename_keys(state_dict, (*backbone_keys, *_FILTER_KEYS), "DCCF")
        for key, tensor in converted.items():
            if key.startswith(("to_filters.", "to_refinement.")):
                converted[key] = torch.cat((tensor[_BY_ROW], tensor[9:]))
        return converted
