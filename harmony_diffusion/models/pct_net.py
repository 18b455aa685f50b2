"""PCT-Net: one affine colour transform per pixel, predicted from a thumbnail, applied at any resolution.

Paper: Guerreiro et al., "PCT-Net: Full Resolution Image Harmonization Using Pixel-Wise Color
Transformations", CVPR 2023,
https://openaccess.thecvf.com/content/CVPR2023/papers/Guerreiro_PCT-Net_Full_Resolution_Image_Harmonization_Using_Pixel-Wise_Color_Transformations_CVPR_2023_paper.pdf.
Official code: https://github.com/rakutentech/PCT-Net-Image-Harmonization (MPL-2.0), `CNN_pct` and `ViT_pct`.

Changed here: the foreground is pasted on the untouched background (`forward`), and the normalisation of the
CNN is folded into its maps, so that every map acts on RGB in [0, 1].  Where paper and code differ the code is
followed: the CNN's attention is the share of the *transformed* picture (the opposite of iDIH).
"""

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from harmony_diffusion.color import affine_color
from harmony_diffusion.errors import InputError
from harmony_diffusion.models.contract import HarmonyModel
from harmony_diffusion.models.idih import HEAD_KEYS
from harmony_diffusion.models.is2am import UNET_KEYS, AttentionUNet
from harmony_diffusion.models.layers import (
    CheckpointedModule,
    ImageNetNormalize,
    blend,
    clamp_unit,
    init_gaussian_xavier_,
    thumbnail,
)
from harmony_diffusion.models.official_keys import rename_keys
from harmony_diffusion.models.origin import Origin

_CNN_KEYS = (*UNET_KEYS, *HEAD_KEYS, (r"get_params\.(.+)", r"to_filters.\1"))
_LAYER = r"encoder\.transformer_enc\.layers\.(\d+)\."
_VIT_KEYS = (
    (r"encoder\.patch_to_embedding\.1\.(.+)", r"backbone.embed.\1"),
    (_LAYER + r"self_attn\.in_proj_(weight|bias)", r"backbone.layers.\1.qkv.\2"),
    (_LAYER + r"self_attn\.out_proj\.(.+)", r"backbone.layers.\1.project.\2"),
    (_LAYER + r"(linear1|linear2|norm1|norm2)\.(.+)", r"backbone.layers.\1.\2.\3"),
    (r"encoder\.dec\.0\.(.+)", r"backbone.decode.\1"),
    (r"get_params\.(.+)", r"to_filters.\1"),
)


def resize_maps(filters: Tensor, image: Tensor, mode: str) -> Tensor:
    """Resize maps `(B, F, h, w)` to the size of an image `(B, 3, H, W)`. Equal sizes are not changed."""
    if filters.shape[-2:] == image.shape[-2:]:
        return filters
    return F.interpolate(filters, image.shape[-2:], mode=mode, align_corners=False)


class TransformerLayer(nn.Module):
    """Post-norm transformer layer with GELU, on tokens `(B, N, channels)`."""

    def __init__(self, channels: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(channels, 3 * channels)
        self.project = nn.Linear(channels, channels)
        self.linear1, self.linear2 = nn.Linear(channels, hidden), nn.Linear(hidden, channels)
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens to tokens, `(B, N, channels)`."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        x = self.norm1(x + self._drop(self.project(attended.transpose(1, 2).flatten(2))))
        return self.norm2(x + self._drop(self.linear2(self._drop(F.gelu(self.linear1(x))))))


class PatchTransformer(CheckpointedModule):
    """Transformer over patches of image and mask, without positional embedding.

    Args:
        out_channels: Channels of the result.
        dropout: In training, on the attention weights and both residual branches.
    """

    def __init__(self, out_channels: int = 12, dropout: float = 0.1) -> None:
        super().__init__()
        channels, patch = 256, 4
        self.embed = nn.Conv2d(4, channels, patch, stride=patch)
        self.layers = nn.ModuleList(
            TransformerLayer(channels, heads=2, hidden=512, dropout=dropout) for _ in range(9)
        )
        self.decode = nn.ConvTranspose2d(channels, out_channels, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        """Map image and mask, `(B, 4, H, W)`, to `(B, out_channels, H, W)` in [-1, 1]; 4 divides H and W."""
        patches = self.embed(x)
        tokens = patches.flatten(2).transpose(1, 2)  # (B, N, 256)
        for layer in self.layers:
            tokens = self.run(layer, tokens)
        return torch.tanh(self.decode(tokens.transpose(1, 2).reshape(patches.shape)))


class PCTNet(HarmonyModel, ModelMixin, ConfigMixin):
    """Pixel-wise colour transform: an affine 3x4 map per pixel, at any resolution.

    Filters are maps `(B, F, thumbnail_size, thumbnail_size)`: a 3x3 matrix row by row and an offset (12),
    which act on RGB in [0, 1] and whose result is clamped.  The CNN adds the attention, the share of the
    transformed picture (F = 13); the ViT uses the mask for it (F = 12).

    Args:
        base: "cnn" (the U-Net of iS2AM on the normalised image) or "vit".
        thumbnail_size: Side of the square, a multiple of 8, that the network reads.
        dropout: Of the ViT, in training.

    Raises:
        InputError: `base` is unknown, or `thumbnail_size` is not a multiple of 8.

    Example:
        >>> model = PCTNet(thumbnail_size=32).eval()
        >>> composite, mask = torch.rand(1, 3, 90, 120), torch.ones(1, 1, 90, 120)
        >>> filters = model.predict_filters(composite, mask)
        >>> filters.shape, model.apply_filters(composite, filters, mask).shape
        (torch.Size([1, 13, 32, 32]), torch.Size([1, 3, 90, 120]))
    """

    origin = Origin(
        title="PCT-Net: Full Resolution Image Harmonization Using Pixel-Wise Color Transformations",
        paper="https://openaccess.thecvf.com/content/CVPR2023/papers/Guerreiro_PCT-Net_Full_Resolution_Image_Harmonization_Using_Pixel-Wise_Color_Transformations_CVPR_2023_paper.pdf",
        code="https://github.com/rakutentech/PCT-Net-Image-Harmonization",
        code_license="MPL-2.0",
        weights_license="MPL-2.0",
    )
    predicts_filters = True
    keeps_shape = False
    filter_upsampling = "bicubic"
    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(self, base: str = "cnn", thumbnail_size: int = 256, dropout: float = 0.1) -> None:
        super().__init__()
        if thumbnail_size % 8:
            raise InputError("thumbnail_size", f"must be a multiple of 8, got {thumbnail_size}")
        self.base, self.thumbnail_size = base, thumbnail_size
        self.normalize = ImageNetNormalize()
        if base == "cnn":
            self.backbone: nn.Module = AttentionUNet()
            self.attention = nn.Conv2d(32, 1, 1)
            # Unused. The official model, its files and its parameter count include it.
            self.to_rgb = nn.Conv2d(32, 3, 1).requires_grad_(False)
            self.to_filters = nn.Conv2d(32, 12, 1)
            init_gaussian_xavier_(self, magnitude=2)
        elif base == "vit":
            self.backbone = PatchTransformer(12, dropout)
            self.to_filters = nn.Conv2d(12, 12, 1)
            for name, parameter in self.named_parameters():
                if name.endswith("weight") and parameter.ndim > 1:
                    nn.init.normal_(parameter, std=0.02)
        else:
            raise InputError("base", f'must be "cnn" or "vit", got {base!r}')

    def predict(self, composite: Tensor, mask: Tensor) -> Tensor:
        """Return the CNN's frame, about [0, 1], or the ViT's frame blended with the mask.

        The learned attention of the CNN may change the background.
        """
        frame = self.predict_frame(composite, mask)
        return blend(frame, composite, mask) if self.base == "vit" else frame

    def predict_filters(self, composite: Tensor, mask: Tensor) -> Tensor:
        """Predict float32 maps `(B, F, thumbnail_size, thumbnail_size)`; see the class."""
        image, small_mask = thumbnail(composite, mask, self.thumbnail_size)
        if self.base == "vit":
            x = torch.cat((image, small_mask), 1).to(self.dtype)
            return self.to_filters(self.backbone(x)).float()
        x = torch.cat((self.normalize(image), small_mask), 1).to(self.dtype)
        features = self.backbone(x)
        attention = torch.sigmoid(3 * self.attention(features)).float()
        return torch.cat((self._fold_normalization(self.to_filters(features).float()), attention), 1)

    def _fold_normalization(self, parameters: Tensor) -> Tensor:
        """Turn `M, b` for normalised RGB into `M / std, b - M mean / std` for RGB in [0, 1]."""
        # Exact before the bicubic resize too: both are linear, and the resize keeps constants.
        mean, std = self.normalize.mean.flatten().float(), self.normalize.std.flatten().float()
        matrix = parameters[:, :9].unflatten(1, (3, 3)) / std[:, None, None]  # (B, 3, 3, h, w)
        offset = parameters[:, 9:] - (matrix * mean[:, None, None]).sum(2)
        return torch.cat((matrix.flatten(1, 2), offset), 1)

    def transform(self, image: Tensor, filters: Tensor, mask: Tensor) -> Tensor:
        """Apply maps `(B, F, h, w)`, resized bicubically."""
        filters = resize_maps(filters, image, self.filter_upsampling)
        transformed = clamp_unit(affine_color(image, filters[:, :12]))
        if filters.shape[1] > 12:
            transformed = torch.lerp(image.to(filters.dtype), transformed, filters[:, 12:])
        return transformed.to(image.dtype)

    @staticmethod
    def convert_official(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename the keys of `PCTNet_CNN.pth` or `PCTNet_ViT.pth`.

        The ViT's embedding of flattened patches (row, column, channel) becomes a convolution.
        """
        if not any(key.startswith("encoder.transformer_enc.") for key in state_dict):
            return rename_keys(state_dict, _CNN_KEYS, "PCT-Net (CNN)")
        converted = rename_keys(state_dict, _VIT_KEYS, "PCT-Net (ViT)")
        if "backbone.embed.weight" in converted:
            patches = converted["backbone.embed.weight"].unflatten(1, (4, 4, 4))
            converted["backbone.embed.weight"] = patches.permute(0, 3, 1, 2).contiguous()
        return converted
