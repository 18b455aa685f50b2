"""Load a pipeline by name or folder."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from harmony_diffusion.errors import CheckpointError
from harmony_diffusion.models import MODELS, check_path, load_model
from harmony_diffusion.models.hub_files import INDEX, class_name_of, looks_like_repository
from harmony_diffusion.pipelines.harmonization import HarmonizationPipeline
from harmony_diffusion.pipelines.hub_folders import resolve_repository
from harmony_diffusion.pipelines.saved_folders import read_json

if TYPE_CHECKING:
    # This import takes seconds, and only the diffusion pipeline needs it.
    from harmony_diffusion.pipelines.stable_diffusion import StableDiffusionHarmonizationPipeline

DUAL = "sd2-dual"
ENVIRONMENT_VARIABLE = "HARMONY_SD2_DUAL"


def load_pipeline(
    name_or_path: str | os.PathLike[str] = "default", *, controls: bool = True
) -> "HarmonizationPipeline | StableDiffusionHarmonizationPipeline":
    """Load a pipeline that is ready to harmonize.

    Args:
        name_or_path: What `load_model` takes; "sd2-dual"; or the folder or Hub id of a saved pipeline.
        controls: Load ControlNets. False makes "sd2-dual" plain Stable Diffusion 2 inpainting, see
            `load_base_components`.

    Raises:
        CheckpointError: Unknown name, or weights that cannot be found.

    Example:
        >>> type(load_pipeline("reinhard")).__name__
        'HarmonizationPipeline'
    """
    source = os.fspath(name_or_path)
    check_path(source)
    options: dict[str, str] = {}
    of_diffusers = False
    if source not in MODELS and not os.path.isdir(source) and looks_like_repository(source):
        source = resolve_repository(source, options)
        of_diffusers = not os.path.isdir(source)
    index = Path(source) / INDEX
    saved = index.is_file()
    if saved and class_name_of(read_json(index)) == HarmonizationPipeline.__name__:
        return HarmonizationPipeline.from_pretrained(source)
    if source != DUAL and not saved and not of_diffusers:
        return HarmonizationPipeline(load_model(source))
    from harmony_diffusion.diffusion.base_models import load_base_components
    from harmony_diffusion.pipelines.stable_diffusion import StableDiffusionHarmonizationPipeline

    if saved or of_diffusers:
        return StableDiffusionHarmonizationPipeline.from_pretrained(source, **options)
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    if named:
        try:
            return StableDiffusionHarmonizationPipeline.from_pretrained(named)
        except CheckpointError as error:
            reason = str(error).strip().splitlines()[0]
            raise CheckpointError(
                f"{ENVIRONMENT_VARIABLE}={named} is neither the folder of a saved pipeline nor reachable on "
                f"the Hub: {reason}"
            ) from error
    if controls:
        raise CheckpointError(
            f"{DUAL} needs two trained ControlNets, and none come with this library. Save a pipeline that "
            "has them with `save_pretrained`, and name its folder or its id on the Hub in "
            f"{ENVIRONMENT_VARIABLE} (or give the folder as the model). With both scales 0 it needs Stable "
            "Diffusion 2 inpainting alone."
        )
    return StableDiffusionHarmonizationPipeline(**load_base_components())
