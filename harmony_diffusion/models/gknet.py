"""GKNet: a U-Net with a decoder that is filtered, pixel by pixel, with kernels from global features.

Paper: Shen et al., "Learning Global-aware Kernel for Image Harmonization", ICCV 2023,
https://arxiv.org/abs/2305.11676.  No official code or weights are public, and neither is the supplement with
the widths and depths: choices that the paper leaves open are marked ★.  The kernel branch is in
`gknet_kernels.py`.
"""

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from harmony_diffusion.errors import InputError
from harmony_diffusion.models.contract import HarmonyModel
from harmony_diffusion.models.gknet_kernels import KernelPredictionBlock, LongDistanceReference
from harmony_diffusion.models.is2am import AttentionUNet
from harmony_diffusion.models.layers import (
    ImageNetNormalize,
    crop_padding,
    init_gaussian_xavier_,
    pad_to_multiple,
)
from harmony_diffusion.models.official_keys import own_keys
from harmony_diffusion.models.origin import Origin


class GKNet(HarmonyModel, ModelMixin, ConfigMixin):
    """Global-aware kernel network.

    The U-Net is that of iS2AM ★ ("U-Net with attention blocks"), with attention in the two finest decoder
    blocks ★; the kernels modulate its deepest features and the output of every decoder block ★. The three
    switches build the rows of the paper's ablation (table 4).

    Args:
        kpb: Modulate with predicted kernels; without, the plain U-Net (row 1).
        lre: Predict them from long-distance references; without, from the deepest features (row 2).
        scf: Select channels when references and encoder features are fused; without, add them (row 3).
        lre_layers: Transformer layers ★ of the long-distance reference extractor.
        base_channels: Width of the U-Net at full resolution ★; it doubles at each of the 3 halvings.

    Raises:
        InputError: `lre` or `scf` without the `kpb` that uses them.

    Example:
        >>> model = GKNet(lre_layers=1).eval()
        >>> model(torch.rand(1, 3, 40, 50), torch.ones(1, 1, 40, 50)).shape
        torch.Size([1, 3, 40, 50])
    """

    origin = Origin(
        title="Learning Global-aware Kernel for Image Harmonization",
        paper="https://arxiv.org/abs/2305.11676",
    )
    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        kpb: bool = True,
        lre: bool = True,
        scf: bool = True,
        lre_layers: int = 6,
        base_channels: int = 32,
    ) -> None:
        super().__init__()
        if (lre or scf) and not kpb:
            raise InputError(
                "kpb", "is off, but `lre` or `scf` is on and needs it", "Switch them off as well."
            )
        self.normalize = ImageNetNormalize()  # ★ as iS2AM
        self.unet = AttentionUNet(base_channels=base_channels, attend_from=1)
        init_gaussian_xavier_(self.unet, magnitude=1)  # ★ as iS2AM
        widths = [base_channels * 2**i for i in (3, 2, 1, 0)]
        self.extractor = LongDistanceReference(widths[0], lre_layers) if lre else None
        references = [widths[0], *widths] if kpb else []
        self.kpbs = nn.ModuleList(
            KernelPredictionBlock(channels, reference_channels, scf)
            for channels, reference_channels in zip(widths, references, strict=False)
        )
        self.to_rgb = nn.Conv2d(base_channels, 3, 1)

    def predict(self, composite: Tensor, mask: Tensor) -> Tensor:
        """Return the network's frame, about [0, 1].

        Pictures are zero-padded on both sides to multiples of 8.
        """
        image, padded_mask = self.normalize(pad_to_multiple(composite, 8)), pad_to_multiple(mask, 8)
        encoded = self._encode(torch.cat((image, padded_mask), 1))
        run = self.unet.run
        features = reference = encoded[-1]  # F_E^1, F_D^1
        if self.extractor is not None:
            reference = run(self.extractor, features)  # F_LR
        for level, encoder_features in enumerate(reversed(encoded)):
            if level > 0:
                features = run(self.unet.decoder[level - 1], features, encoder_features, padded_mask)
            if self.kpbs:
                reference = self.kpbs[level](encoder_features, reference)
                features = self.kpbs[level].kernel(features, reference)  # type: ignore[operator]
        output = self.normalize.inverse(self.to_rgb(features))
        return crop_padding(output, (composite.shape[-2], composite.shape[-1]))

    def _encode(self, features: Tensor) -> list[Tensor]:
        """Return the features of every encoder scale, from fine to coarse."""
        encoded: list[Tensor] = []
        for block in self.unet.encoder:
            features = self.unet.run(block, F.max_pool2d(features, 2) if encoded else features)
            encoded.append(features)
        return encoded

    @staticmethod
    def convert_official(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take the weights of a checkpoint with this class's own keys; no official one is published."""
        with torch.device("meta"):
            known = GKNet().state_dict()
        return own_keys(state_dict, known, "GKNet")
