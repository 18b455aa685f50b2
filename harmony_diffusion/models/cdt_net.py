"""CDTNet: a low-resolution generator, a colour table and a refinement at full resolution, working together.

Paper: Cong et al., "High-Resolution Image Harmonization via Collaborative Dual Transformations", CVPR 2022,
https://arxiv.org/abs/2109.06671.  Official code:
https://github.com/bcmi/CDTNet-High-Resolution-Image-Harmonization (no licence stated).

Changed here: the full network's result is pasted on the untouched background (`forward`); officially only the
colour table's is.  As in the code, the weights of the tables are free numbers (no softmax), each region is
pooled over the whole frame, and the generator is iS2AM.
"""

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from harmony_diffusion.errors import InputError
from harmony_diffusion.models.contract import HarmonyModel
from harmony_diffusion.models.idih import HEAD_KEYS
from harmony_diffusion.models.is2am import UNET_KEYS, AttentionUNet
from harmony_diffusion.models.layers import (
    CheckpointedModule,
    ImageNetNormalize,
    blend,
    init_gaussian_xavier_,
    thumbnail,
)
from harmony_diffusion.models.official_keys import rename_keys
from harmony_diffusion.models.origin import Origin

_KEYS = (
    *UNET_KEYS,
    *HEAD_KEYS,
    (r"lut\.LUT([0-3])\.LUT", r"color_table.tables.\1"),
    (r"lut\.classifier\.conv\.(.+)", r"color_table.project.\1"),
    (r"lut\.classifier\.fc\.(.+)", r"color_table.to_weights.\1"),
    (r"refine\.block\.([01]\..+)", r"refine.convs.0.\1"),
    (r"refine\.block\.3\.(.+)", r"refine.convs.1.0.\1"),
    (r"refine\.block\.4\.(.+)", r"refine.convs.1.1.\1"),
    (r"refine\.conv_attention\.(.+)", r"refine.attention.\1"),
    (r"refine\.to_rgb\.(.+)", r"refine.to_rgb.\1"),
)


def apply_table(image: Tensor, table: Tensor) -> Tensor:
    """Apply a 3-D colour table to every pixel, with trilinear interpolation.

    Args:
        image: `(B, 3, H, W)` in [0, 1]; values outside count as the nearest end.
        table: Colour at each node, `(B, 3, N, N, N)`, the axes being channel, blue, green, red.

    Returns:
        `(B, 3, H, W)`, not clamped.
    """
    # A step of the official table is 1.000001 / (N - 1) wide, which keeps its index in range at 1.
    position = (image.float() * (2 / 1.000001) - 1).permute(0, 2, 3, 1)[:, None]  # (B, 1, H, W, 3)
    colors = F.grid_sample(table.float(), position, "bilinear", "border", align_corners=True)
    return colors[:, :, 0].to(image.dtype)


class ColorTable(nn.Module):
    """Mix basis tables by weights predicted from features of the picture (sec. 3.2).

    Args:
        channels: Channels of the features.
        count: Number of basis tables; the first one starts as the identity, the others at 0.
        nodes: Nodes on each axis of a table.
    """

    def __init__(self, channels: int, count: int = 4, nodes: int = 33) -> None:
        super().__init__()
        axis = torch.linspace(0, 1, nodes)
        blue, green, red = torch.meshgrid(axis, axis, axis, indexing="ij")
        identity = torch.stack((red, green, blue))
        self.tables = nn.ParameterList(
            identity if i == 0 else torch.zeros_like(identity) for i in range(count)
        )
        self.project = nn.Conv2d(channels, channels, 1)
        self.to_weights = nn.Conv2d(2 * channels, count, 1)
        init_gaussian_xavier_(self, magnitude=1)
        assert self.to_weights.bias is not None
        nn.init.ones_(self.to_weights.bias)

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Return the weight of each table, `(B, count)`.

        Args:
            features: `(B, channels, h, w)`.
            mask: 1 on the foreground, of any size, `(B, 1, H, W)`.
        """
        x = self.project(features)
        small_mask = F.interpolate(mask.to(x.dtype), x.shape[-2:], mode="bilinear", align_corners=False)
        # Means over all positions, as in the official code: the area of a region scales its features.
        pooled = torch.cat([(x * m).mean((2, 3), keepdim=True) for m in (small_mask, 1 - small_mask)], 1)
        return self.to_weights(pooled).flatten(1)

    def render(self, image: Tensor, weights: Tensor) -> Tensor:
        """Apply the mixed table to a picture `(B, 3, H, W)` of any size; `weights` is `(B, count)`."""
        # The look-up is linear in the table, so one look-up in the mixed table is enough.
        tables = torch.stack([table.float() for table in self.tables])
        return apply_table(image, (weights.float()[..., None, None, None, None] * tables).sum(1))


class Refinement(CheckpointedModule):
    """Fuse generator and colour table at the resolution of the picture (sec. 3.3).

    Args:
        channels: Channels of the generator's features.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ELU())
            for before in (3 + 3 + 1 + channels, 64)
        )
        self.attention = nn.Conv2d(64, 1, 1)
        self.to_rgb = nn.Conv2d(64, 3, 1)

    def forward(
        self, image: Tensor, base: Tensor, recolored: Tensor, mask: Tensor, features: Tensor
    ) -> Tensor:
        """Return the normalised result, `(B, 3, H, W)`.

        Args:
            image: Normalised picture, `(B, 3, H, W)`.
            base: The generator's normalised result, of any size, `(B, 3, h, w)`.
            recolored: The colour table's normalised result, `(B, 3, H, W)`.
            mask: 1 on the foreground, `(B, 1, H, W)`.
            features: The generator's last features, `(B, channels, h, w)`.
        """
        base, features = (
            x
            if x.shape[-2:] == image.shape[-2:]
            else F.interpolate(x, image.shape[-2:], mode="bilinear", align_corners=False)
            for x in (base, features)
        )
        x = torch.cat((base, recolored, mask, features), 1)
        for conv in self.convs:
            x = self.run(conv, x)
        keep = torch.sigmoid(3 * self.attention(x))
        return keep * image + (1 - keep) * self.to_rgb(x)


class CDTNet(HarmonyModel, ModelMixin, ConfigMixin):
    """Collaborative dual transformations: the network that renders at the resolution of the picture.

    Args:
        base_size: Side of the square, a multiple of 8, of the thumbnail of the generator: 256 for
            CDTNet-256, 512 for CDTNet-512.

    Raises:
        InputError: `base_size` is not a multiple of 8.

    Example:
        >>> model = CDTNet(base_size=32).eval()
        >>> model(torch.rand(1, 3, 40, 50), torch.ones(1, 1, 40, 50)).shape
        torch.Size([1, 3, 40, 50])
    """

    origin = Origin(
        title="High-Resolution Image Harmonization via Collaborative Dual Transformations",
        paper="https://arxiv.org/abs/2109.06671",
        code="https://github.com/bcmi/CDTNet-High-Resolution-Image-Harmonization",
        code_license="none (all rights reserved)",
        weights_license="none (all rights reserved)",
    )
    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(self, base_size: int = 256) -> None:
        super().__init__()
        if base_size % 8:
            raise InputError("base_size", f"must be a multiple of 8, got {base_size}")
        self.base_size = base_size
        self.normalize = ImageNetNormalize()
        self.backbone = AttentionUNet()
        self.attention = nn.Conv2d(32, 1, 1)
        self.to_rgb = nn.Conv2d(32, 3, 1)
        init_gaussian_xavier_(self, magnitude=1)
        self.color_table = ColorTable(256)
        self.refine = Refinement(32)
        init_gaussian_xavier_(self.refine, magnitude=2)

    def predict(self, composite: Tensor, mask: Tensor) -> Tensor:
        """Return the refined frame, about [0, 1]."""
        return self.predict_stages(composite, mask)[0]

    def predict_stages(self, composite: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the result of each part; the official training puts a loss on all three.

        Args:
            composite: `(B, 3, H, W)` in [0, 1].
            mask: 1 on the foreground, soft values allowed, `(B, 1, H, W)`.

        Returns:
            The final result and the colour table's, `(B, 3, H, W)`, and the generator's,
            `(B, 3, base_size, base_size)`; all about [0, 1] and not clamped. Only the second is blended with
            the mask.
        """
        image, small_mask = self._look(composite, mask)
        scales = self.backbone.encode(torch.cat((image, small_mask), 1))
        features = self.backbone.decode(scales, small_mask)
        keep = torch.sigmoid(3 * self.attention(features))
        base = keep * image + (1 - keep) * self.to_rgb(features)
        weights = self.color_table(scales[-1], mask)
        recolored = blend(self.color_table.render(composite, weights), composite, mask)
        output = self.refine(
            self.normalize(composite), base, self.normalize(recolored), mask.to(image.dtype), features
        )
        return self.normalize.inverse(output), recolored, self.normalize.inverse(base)

    def _look(self, composite: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return normalised image and mask at the size of the generator."""
        image, small_mask = thumbnail(composite, mask, self.base_size)
        return self.normalize(image), small_mask

    @staticmethod
    def convert_official(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename the keys of `iHarmony4_256.pth`, `HAdobe5k_2048.pth` or `CDTNet_sim_base256.pth`."""
        return rename_keys(state_dict, _KEYS, "CDTNet")


class CDTNetSim(CDTNet):
    """CDTNet(sim): the encoder and the colour table alone, a global change of colour at any resolution.

    Filters are the weights of the four basis tables, `(B, 4)`.

    Args:
        base_size: Side of the square, a multiple of 8, of the thumbnail of the encoder.

    Raises:
        InputError: `base_size` is not a multiple of 8.

    Example:
        >>> model = CDTNetSim(base_size=32).eval()
        >>> composite, mask = torch.rand(1, 3, 90, 120), torch.ones(1, 1, 90, 120)
        >>> filters = model.predict_filters(composite, mask)
        >>> filters.shape, model.apply_filters(composite, filters, mask).shape
        (torch.Size([1, 4]), torch.Size([1, 3, 90, 120]))
    """

    predicts_filters = True
    keeps_shape = False

    @register_to_config
    def __init__(self, base_size: int = 256) -> None:
        super().__init__(base_size)
        # Unused. The official model, its files and its parameter count include them.
        for part in (self.backbone.decoder, self.attention, self.to_rgb, self.refine):
            part.requires_grad_(False)

    def predict(self, composite: Tensor, mask: Tensor) -> Tensor:
        """Return the official result, about [0, 1] and blended with the mask."""
        return blend(self.predict_frame(composite, mask), composite, mask)

    def predict_frame(self, composite: Tensor, mask: Tensor, reference: Tensor | None = None) -> Tensor:
        """Return the frame before it is blended, about [0, 1]."""
        return self.color_table.render(composite, self.predict_filters(composite, mask))

    def predict_filters(self, composite: Tensor, mask: Tensor) -> Tensor:
        """Predict float32 weights of the tables, `(B, 4)`; about (1, 0, 0, 0) changes nothing."""
        scales = self.backbone.encode(torch.cat(self._look(composite, mask), 1))
        return self.color_table(scales[-1], mask).float()

    def transform(self, image: Tensor, filters: Tensor, mask: Tensor) -> Tensor:
        """Apply the mixed table, given the weights `(B, 4)`; values are about [0, 1]."""
        return self.color_table.render(image, filters)
