"""From a base model and trained ControlNets to a pipeline."""

import os
from pathlib import Path
from typing import Any

import torch
from diffusers.models.controlnets.controlnet import ControlNetModel

from harmony_diffusion.data.captions import load_captioner
from harmony_diffusion.diffusion.base_models import load_base_components, read_pipeline_config
from harmony_diffusion.diffusion.control_settings import load_control_settings
from harmony_diffusion.errors import CheckpointError
from harmony_diffusion.pipelines.stable_diffusion import StableDiffusionHarmonizationPipeline


def assemble_pipeline(
    base: str | os.PathLike[str] | None = None,
    *,
    high: str | os.PathLike[str] | None = None,
    low: str | os.PathLike[str] | None = None,
    dtype: torch.dtype | None = None,
    working_size: int | None = None,
    captioner: str | os.PathLike[str] | None = None,
    call_defaults: dict[str, Any] | None = None,
) -> StableDiffusionHarmonizationPipeline:
    """Build a pipeline that draws the control images its ControlNets were trained with.

    Args:
        base: Inpainting model, see `load_base_components`, or the output of `train/train_inpainting.py`.
        high: Folder of a ControlNet for edges by `train/train_controlnet.py`; None = no such control.
        low: Folder of a ControlNet for colours.
        dtype: Type of all weights; by default as saved.
        working_size: Working size of the pipeline; by default that of the base.
        captioner: Folder or Hub id of a BLIP that writes the prompts that calls leave out, see
            `load_captioner`; None = the pipeline has none.
        call_defaults: Arguments of calls that leave them out, see `StableDiffusionHarmonizationPipeline`; by
            default those of the base.

    Raises:
        CheckpointError: A folder of another kind, or parts that do not fit together.
    """
    components = load_base_components(base, dtype=dtype)
    config = read_pipeline_config(base)
    if working_size is not None:
        config["working_size"] = working_size
    if call_defaults is not None:
        config["call_defaults"] = call_defaults
    for role, source in (("high", high), ("low", low)):
        if source is None:
            continue
        settings = load_control_settings(Path(source))
        if settings.role != role:
            raise CheckpointError(f"{source} is a ControlNet of the kind {settings.role!r}, not {role!r}.")
        own = settings.of_pipeline()
        if config.get("control_input", own["control_input"]) != own["control_input"]:
            raise CheckpointError("The two ControlNets were trained with different values of control_input.")
        config |= own
        components[f"controlnet_{role}"] = ControlNetModel.from_pretrained(source, torch_dtype=dtype)
    if captioner is not None:
        processor, model = load_captioner(os.fspath(captioner), dtype=dtype or torch.float32)
        components |= {"captioner": model, "captioner_processor": processor}
    return StableDiffusionHarmonizationPipeline(**components, **config)
