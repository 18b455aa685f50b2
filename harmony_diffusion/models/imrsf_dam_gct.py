"""iMRSF-DAM-GCT: an encoder-decoder led by multi-resolution features, channel gates and a fused decoder.

Paper: Yang, Li, Liu and Gao, "基于语义信息引导的图像协调化" (image harmonization guided by semantic
information), in Chinese, https://doi.org/10.12263/DZXB.20221322.  No official code or weights are public:
choices that the paper leaves open are marked ★.  Its modules are in `imrsf_blocks.py`.
"""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional

from harmony_diffusion.errors import CheckpointError, InputError
from harmony_diffusion.models.contract import HarmonyModel
from harmony_diffusion.models.idih import IDIH, EncoderDecoder
from harmony_diffusion.models.imrsf_blocks import (
    DualAttention,
    GatedChannelTransformation,
    MultiResolutionAttention,
    SelectiveFusion,
)
from harmony_diffusion.models.layers import (
    CheckpointedModule,
    ImageNetNormalize,
    crop_padding,
    init_gaussian_xavier_,
)
from harmony_diffusion.models.official_keys import own_keys
from harmony_diffusion.models.origin import Origin

CHANNELS = 32  # ★ of the full-size stream; the last decoder layer of iDIH has as many
DEPTH = 7


class FusedDecoding(CheckpointedModule):
    """The "i" structure: lift inner decoder layers to full size, fuse them, and attend (section 2.3).

    Args:
        widths: Channels of the decoder layers, from the deepest; the k-th of n is lifted n - k + 1 times.
        extra: How many full-size maps of `CHANNELS` channels are fused with them.
    """

    def __init__(self, widths: list[int], extra: int) -> None:
        super().__init__()
        self.lift = nn.ModuleList()
        for layer, width in enumerate(widths):
            # ★ A 1x1 convolution to the common width, then one doubling after the other.
            steps: list[nn.Module] = [nn.Conv2d(width, CHANNELS, 1)]
            for _ in range(len(widths) - layer):
                steps += [nn.ConvTranspose2d(CHANNELS, CHANNELS, 4, stride=2, padding=1), nn.GELU()]
            self.lift.append(nn.Sequential(*steps))
        self.fuse = SelectiveFusion(CHANNELS, len(widths) + extra)
        self.attention = DualAttention(CHANNELS)

    def forward(self, layers: list[Tensor], extra: list[Tensor]) -> Tensor:
        """Fuse decoder outputs `(B, width, h, w)` and full-size maps into `(B, 32, H, W)`."""
        lifted = [self.run(lift, x) for lift, x in zip(self.lift, layers, strict=True)]
        return self.run(self.attention, self.fuse(extra + lifted))


class IMRSFDAMGCT(HarmonyModel, ModelMixin, ConfigMixin):
    """Multi-resolution fusion, dual attention and gated channels around the encoder-decoder of iDIH.

    The paper's baseline (row 1 of table 3) has the layers and the scores of iDIH: its widths and additive
    skips are taken from there ★. The switches build the rows of tables 3 and 4.

    Args:
        dam: Enrich the input by parallel streams (MRSF-DAM) before the encoder.
        gct: Gate channels before each encoder and decoder convolution.
        i_structure: Add the fused and attended inner decoder layers to the last one's output.
        streams: Number K of parallel streams, 1 to 3 in table 4.

    Raises:
        InputError: `streams` below 1.

    Example:
        >>> model = IMRSFDAMGCT(streams=1).eval()
        >>> model(torch.rand(1, 3, 40, 50), torch.ones(1, 1, 40, 50)).shape
        torch.Size([1, 3, 40, 50])
    """

    origin = Origin(
        title="基于语义信息引导的图像协调化, Acta Electronica Sinica 2023",
        paper="https://doi.org/10.12263/DZXB.20221322",
    )
    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self, dam: bool = True, gct: bool = True, i_structure: bool = True, streams: int = 2
    ) -> None:
        super().__init__()
        if streams < 1:
            raise InputError("streams", f"is {streams}, but at least one stream is needed")
        self.normalize = ImageNetNormalize()  # ★ as iDIH
        self.stem = nn.Sequential(nn.Conv2d(4, CHANNELS, 3, padding=1), nn.GELU()) if dam else None  # ★
        self.multi_resolution = MultiResolutionAttention(CHANNELS, streams) if dam else None
        self.backbone = EncoderDecoder(DEPTH, norm_from=2, in_channels=CHANNELS if dam else 4)
        for block in self.backbone.decoder:
            block[-1] = nn.GELU()  # type: ignore[operator]
        init_gaussian_xavier_(self.backbone, magnitude=2)  # ★ as iDIH
        gated = [block[0].in_channels for block in (*self.backbone.encoder, *self.backbone.decoder)]  # type: ignore
        self.gates = nn.ModuleList(
            GatedChannelTransformation(channels) if gct else nn.Identity() for channels in gated
        )
        inner = gated[DEPTH + 1 :]
        self.fused_decoding = FusedDecoding(inner, extra=int(dam)) if i_structure else None
        self.to_rgb = nn.Conv2d(CHANNELS, 3, 1)
        self.to_mask = nn.Conv2d(CHANNELS, 1, 1)

    def predict(self, composite: Tensor, mask: Tensor) -> Tensor:
        """Return the network's frame, about [0, 1].

        Pictures are zero-padded on both sides to multiples of 128, and to 256 at least.
        """
        image = self.normalize(_pad(composite))
        features = torch.cat((image, _pad(mask)), 1)
        enriched = []
        if self.stem is not None and self.multi_resolution is not None:
            features = self.multi_resolution(self.stem(features))
            enriched.append(features)
        features, inner = self._encode_and_decode(features)
        if self.fused_decoding is not None:
            features = features + self.fused_decoding(inner, enriched)
        share = self.to_mask(features).sigmoid()  # the predicted foreground mask
        output = share * self.to_rgb(features) + (1 - share) * image
        return crop_padding(self.normalize.inverse(output), (composite.shape[-2], composite.shape[-1]))

    def _encode_and_decode(self, features: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the output of the last decoder layer, and earlier outputs without their skips ★."""
        skips, inner = [], []
        for gate, block in zip(self.gates[:DEPTH], self.backbone.encoder, strict=True):
            features = self.backbone.run(block, gate(features))
            skips.append(features)
        skips.pop()
        for gate, block in zip(self.gates[DEPTH:], self.backbone.decoder, strict=True):
            features = self.backbone.run(block, gate(features))
            if skips:
                inner.append(features)
                features = features + skips.pop()
        return features, inner

    def start_from_idih(self, state_dict: dict[str, Tensor]) -> list[str]:
        """Load the weights of an iDIH, to train from there.

        With every switch off, the result differs from that iDIH only in the decoder's activation (GELU here,
        ELU there). A fresh GCT is the identity; the other modules have to learn.

        Args:
            state_dict: Of `IDIH()`, or of the official `idih256.pth`.

        Returns:
            Names of the parameters and buffers that keep their fresh values: the added modules, and with
            `dam` the first convolution, which reads other features than the picture.

        Raises:
            CheckpointError: The weights do not fit an iDIH of this size.

        Example:
            >>> IMRSFDAMGCT(dam=False, gct=False, i_structure=False).start_from_idih(IDIH().state_dict())
            []
        """
        converted = self.convert_idih(state_dict)
        own = self.state_dict()
        if self.config["dam"]:
            del converted["backbone.encoder.0.0.weight"], converted["backbone.encoder.0.0.bias"]
        misfits = [key for key, x in converted.items() if key not in own or own[key].shape != x.shape]
        if misfits:
            raise CheckpointError(
                f"An iDIH of depth 7 and width 64 is expected; these do not fit: {', '.join(misfits)}."
            )
        self.load_state_dict(converted, strict=False)
        return [key for key in own if key not in converted]

    @staticmethod
    def convert_idih(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Map an iDIH state dict, official or ours, onto this network without its added modules.

        Raises:
            CheckpointError: A key is not one of iDIH, or one is missing.
        """
        with torch.device("meta"):
            idih = IDIH().state_dict()
        official = any(key.startswith(("encoder.", "decoder.")) for key in state_dict)
        ours = IDIH.convert_official(state_dict) if official else own_keys(state_dict, idih, "iDIH")
        missing = [key for key in idih if key not in ours and not key.endswith("num_batches_tracked")]
        if missing:
            raise CheckpointError(f"{len(missing)} keys of iDIH are missing: {', '.join(missing[:5])}.")
        # iDIH keeps the share sigmoid(3 a) of the input; ours is the share of the prediction, sigmoid(-3 a).
        ours["to_mask.weight"] = -3 * ours.pop("attention.weight")
        ours["to_mask.bias"] = -3 * ours.pop("attention.bias")
        return ours

    @staticmethod
    def convert_official(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take the weights of a checkpoint with this class's own keys; no official one is published."""
        with torch.device("meta"):
            known = IMRSFDAMGCT(streams=3).state_dict()
        return own_keys(state_dict, known, "iMRSF-DAM-GCT")


def _pad(image: Tensor) -> Tensor:
    """Zero-pad half on either side; the valid 4x4 bottleneck needs 4 * 64 pixels, then a step of 2 * 64."""
    height, width = (max(256, size + -size % 128) - size for size in image.shape[-2:])
    return functional.pad(image, (width // 2, width - width // 2, height // 2, height - height // 2))
