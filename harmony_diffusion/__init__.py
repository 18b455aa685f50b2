"""Harmony Diffusion: make a pasted foreground look photographed where it stands.

Importing this package imports nothing heavy; each public name loads on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "MODELS": "harmony_diffusion.models",
    "create_model": "harmony_diffusion.models",
    "load_model": "harmony_diffusion.models",
    "Harmonizer": "harmony_diffusion.models.harmonizer",
    "HarmonizationPipeline": "harmony_diffusion.pipelines.harmonization",
    "StableDiffusionHarmonizationPipeline": "harmony_diffusion.pipelines.stable_diffusion",
    "load_pipeline": "harmony_diffusion.pipelines.loading",
    "HarmonizationOutput": "harmony_diffusion.pipelines.output",
    "Picture": "harmony_diffusion.images.picture",
    "HarmonyError": "harmony_diffusion.errors",
    "InputError": "harmony_diffusion.errors",
}

__all__ = [
    "MODELS",
    "HarmonizationOutput",
    "HarmonizationPipeline",
    "Harmonizer",
    "HarmonyError",
    "InputError",
    "Picture",
    "StableDiffusionHarmonizationPipeline",
    "create_model",
    "load_model",
    "load_pipeline",
]

if TYPE_CHECKING:
    from harmony_diffusion.errors import HarmonyError, InputError
    from harmony_diffusion.images.picture import Picture
    from harmony_diffusion.models import MODELS, create_model, load_model
    from harmony_diffusion.models.harmonizer import Harmonizer
    from harmony_diffusion.pipelines.harmonization import HarmonizationPipeline
    from harmony_diffusion.pipelines.loading import load_pipeline
    from harmony_diffusion.pipelines.output import HarmonizationOutput
    from harmony_diffusion.pipelines.stable_diffusion import StableDiffusionHarmonizationPipeline


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
