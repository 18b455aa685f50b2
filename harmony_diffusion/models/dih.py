"""DIH in the SAIC form: the encoder-decoder that iDIH improves on.

Paper: Tsai et al., "Deep Image Harmonization", CVPR 2017, https://arxiv.org/abs/1703.00069.  Official code of
this form: https://github.com/SamsungLabs/image_harmonization (MPL-2.0), config `dih256`.  Changed here: the
result is pasted on the untouched background (`forward`).

Three different networks are called DIH. The paper's own (Caffe) has a scene-parsing branch; the one quoted in
most tables was trained by the authors of DoveNet without it; this is the PyTorch network of SAIC: depth 7,
batch norm everywhere, additive skips, no semantics, no fusion with the input.
"""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from harmony_diffusion.models.contract import HarmonyModel
from harmony_diffusion.models.idih import ENCODER_DECODER_KEYS, EncoderDecoder
from harmony_diffusion.models.layers import (
    ImageNetNormalize,
    crop_padding,
    init_gaussian_xavier_,
    pad_to_multiple,
)
from harmony_diffusion.models.official_keys import rename_keys
from harmony_diffusion.models.origin import Origin


class DIH(HarmonyModel, ModelMixin, ConfigMixin):
    """Deep image harmonization without semantics.

    Args:
        depth: Number of halvings. Pictures are zero-padded on both sides to multiples of `2 ** (depth + 1)`.
        base_channels: Width of the first two encoder blocks.

    Example:
        >>> model = DIH(base_channels=8).eval()
        >>> model(torch.rand(1, 3, 40, 50), torch.ones(1, 1, 40, 50)).shape
        torch.Size([1, 3, 40, 50])
    """

    origin = Origin(
        title="Deep Image Harmonization",
        paper="https://arxiv.org/abs/1703.00069",
        code="https://github.com/SamsungLabs/image_harmonization",
        code_license="MPL-2.0",
    )
    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(self, depth: int = 7, base_channels: int = 64) -> None:
        super().__init__()
        self.multiple = 2 ** (depth + 1)
        self.normalize = ImageNetNormalize()
        self.backbone = EncoderDecoder(depth, norm_from=0, base_channels=base_channels)
        self.to_rgb = nn.Conv2d(self.backbone.out_channels, 3, 1)
        init_gaussian_xavier_(self, magnitude=2)

    def predict(self, composite: Tensor, mask: Tensor) -> Tensor:
        """Return the network's frame, about [0, 1]."""
        image = self.normalize(pad_to_multiple(composite, self.multiple))
        features = self.backbone(torch.cat((image, pad_to_multiple(mask, self.multiple)), 1))
        output = self.normalize.inverse(self.to_rgb(features))
        return crop_padding(output, (composite.shape[-2], composite.shape[-1]))

    @staticmethod
    def convert_official(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename the keys of a checkpoint of SAIC's `dih256`."""
        renames = (*ENCODER_DECODER_KEYS, (r"decoder\.to_rgb\.(.+)", r"to_rgb.\1"))
        return rename_keys(state_dict, renames, "DIH (SAIC)")
