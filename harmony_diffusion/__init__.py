"""Harmony Diffusion: make a pasted foreground look photographed where it stands.

Importing this package imports nothing heavy; each public name loads on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

_HOME = {
    "MODELS": "harmony_diffusion.models",
    "create_model": "harmony_diffusion.models",
    "list_models": "harmony_diffusion.models",
    "load_model": "harmony_diffusion.models",
    "HarmonizationPipeline": "harmony_diffusion.pipelines.harmonization",
    "StableDiffusionHarmonizationPipeline": "harmony_diffusion.pipelines.stable_diffusion",
    "VideoHarmonizationPipeline": "harmony_diffusion.pipelines.video",
    "load_pipeline": "harmony_diffusion.pipelines.loading",
    "HarmonizationOutput": "harmony_diffusion.pipelines.output",
    "Picture": "harmony_diffusion.images.picture",
    "load_picture": "harmony_diffusion.images.picture",
    "load_mask": "harmony_diffusion.images.masks",
    "mse": "harmony_diffusion.metrics.functional",
    "psnr": "harmony_diffusion.metrics.functional",
    "fmse": "harmony_diffusion.metrics.functional",
    "ssim": "harmony_diffusion.metrics.functional",
    "save_for_hub": "harmony_diffusion.hub.saving",
    "push_to_hub": "harmony_diffusion.training.publishing",
    "evaluate": "harmony_diffusion.metrics.evaluate",
    "HarmonyError": "harmony_diffusion.errors",
    "InputError": "harmony_diffusion.errors",
}

__all__ = [
    "MODELS",
    "HarmonizationOutput",
    "HarmonizationPipeline",
    "HarmonyError",
    "InputError",
    "Picture",
    "StableDiffusionHarmonizationPipeline",
    "VideoHarmonizationPipeline",
    "create_model",
    "evaluate",
    "fmse",
    "list_models",
    "load_mask",
    "load_model",
    "load_picture",
    "load_pipeline",
    "mse",
    "psnr",
    "push_to_hub",
    "save_for_hub",
    "ssim",
]

if TYPE_CHECKING:
    from harmony_diffusion.errors import HarmonyError, InputError
    from harmony_diffusion.hub.saving import save_for_hub
    from harmony_diffusion.images.masks import load_mask
    from harmony_diffusion.images.picture import Picture, load_picture
    from harmony_diffusion.metrics.evaluate import evaluate
    from harmony_diffusion.metrics.functional import fmse, mse, psnr, ssim
    from harmony_diffusion.models import MODELS, create_model, list_models, load_model
    from harmony_diffusion.pipelines.harmonization import HarmonizationPipeline
    from harmony_diffusion.pipelines.loading import load_pipeline
    from harmony_diffusion.pipelines.output import HarmonizationOutput
    from harmony_diffusion.pipelines.stable_diffusion import StableDiffusionHarmonizationPipeline
    from harmony_diffusion.pipelines.video import VideoHarmonizationPipeline
    from harmony_diffusion.training.publishing import push_to_hub


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
