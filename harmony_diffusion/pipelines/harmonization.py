"""Harmonize pictures with any model of the registry, at the resolution they come in."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from diffusers.models.modeling_utils import ModelMixin
from tqdm.auto import tqdm

from harmony_diffusion.errors import CheckpointError, InputError, InputTypeError
from harmony_diffusion.highres.harmonize import harmonize_picture
from harmony_diffusion.images.masks import MaskSource, check_background
from harmony_diffusion.images.picture import PictureSource
from harmony_diffusion.models import MODELS, check_path, load_model
from harmony_diffusion.models.contract import HarmonyModel
from harmony_diffusion.models.hub_files import INDEX, looks_like_repository
from harmony_diffusion.numbers import check_integer, check_number
from harmony_diffusion.pipelines.argument_checks import check_generators, check_output_type
from harmony_diffusion.pipelines.hub_folders import resolve_repository
from harmony_diffusion.pipelines.inputs import load_call_pairs, load_references
from harmony_diffusion.pipelines.output import HarmonizationOutput, export_pictures
from harmony_diffusion.pipelines.saved_folders import (
    LOADING_OPTIONS,
    check_component_folder,
    check_option_names,
    convert,
    read_device,
    refuse_missing,
    take_dtype,
)
from harmony_diffusion.pipelines.saving_and_loading import SavedPipeline
from harmony_diffusion.pipelines.separate_calls import in_turn

logger = logging.getLogger(__name__)

NAMES = ("default", *MODELS)
# Options of `from_pretrained` that are fulfilled where nothing is downloaded.
_FULFILLED = {
    "cache_dir",
    "local_files_only",
    "low_cpu_mem_usage",
    "mirror",
    "proxies",
    "token",
    "trust_remote_code",
}


class HarmonizationPipeline(SavedPipeline):
    """Make the foreground of a composite agree with its background.

    Calls from several threads give what single calls give.

    Args:
        model: Any model of `harmony_diffusion.MODELS`.

    Example:
        >>> import numpy as np
        >>> from harmony_diffusion import HarmonizationPipeline, load_model
        >>> pipe = HarmonizationPipeline(load_model("reinhard"))
        >>> composite = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        >>> mask = np.zeros((64, 64), np.uint8)
        >>> mask[20:40, 20:40] = 255
        >>> pipe(composite, mask, output_type="np").images.shape
        (1, 64, 64, 3)
    """

    model_cpu_offload_seq = "model"  # type: ignore[assignment]
    model: HarmonyModel

    def __init__(self, model: ModelMixin) -> None:
        super().__init__()
        if not isinstance(model, torch.nn.Module):
            raise InputTypeError(
                "model",
                f"must be a model, got {model!r}",
                "Give `load_model(name)`, or call `HarmonizationPipeline.from_pretrained(name)`.",
            )
        self.register_modules(model=model)
        self.model.eval()
        if all(parameter.device.type == "cpu" for parameter in model.parameters()):
            # On CPUs most networks take 5 to 50 % less time in this format.
            network: Any = model
            network.to(memory_format=torch.channels_last)
        self._warned_of_prompt = False

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str] = "default", **options: Any
    ) -> Self:
        """Load a pipeline: `"default"` and other models that come with the package work offline.

        Args:
            pretrained_model_name_or_path: `"default"`, a name `load_model` takes, a folder of a model, or, as
                with every pipeline of diffusers, a folder or Hub id of a saved pipeline; also the Hub id of a
                model alone.
            options: As in diffusers; for a model alone `dtype` (or `torch_dtype`) and `device_map`, a device.

        Raises:
            CheckpointError: It is no model and no such pipeline; says what it is.
            InputError: A keyword that does not exist or cannot be used here, or a value that cannot be used.
        """
        name = os.fspath(pretrained_model_name_or_path)
        check_path(name)
        if name not in NAMES and not os.path.isdir(name) and looks_like_repository(name):
            check_option_names(options, [*LOADING_OPTIONS, "model"])
            if "custom_pipeline" not in options:
                name = resolve_repository(name, options, [key for key in ("model",) if key in options])
        folder = Path(name)
        is_model = (folder / "config.json").is_file() and not (folder / INDEX).is_file()
        if name in NAMES or is_model:
            return cls._from_model(name, dict(options))
        if not folder.is_dir() and not looks_like_repository(name):
            check_option_names(options, [*LOADING_OPTIONS, "model"])
            refuse_missing(name, NAMES)
        return super().from_pretrained(name, **options)

    @classmethod
    def _from_model(cls, name: str, options: dict[str, Any]) -> Self:
        """Load a model by name or folder, and heed or refuse each option."""
        check_option_names(options, [*LOADING_OPTIONS, "model"])
        dtype, device_map = take_dtype(options), options.pop("device_map", None)
        if isinstance(dtype, dict):
            dtype = dtype.get("model", dtype.get("default"))
        device = None if device_map is None else read_device(device_map)
        for option, value in options.items():
            safe = option == "use_safetensors" and value is True
            if value is None or value is False or safe or option in _FULFILLED:
                continue
            if option == "model":
                raise InputError("model", f"is given together with {name!r}", f"Call {cls.__name__}(model).")
            raise InputError(
                option,
                f"has no effect on {name!r}, a model {'in a folder' if Path(name).is_dir() else 'by name'}",
                "Leave it out. It is for pipelines that `save_pretrained` wrote.",
            )
        if Path(name).is_dir():
            check_component_folder(Path(name))
        try:
            model = load_model(name)
        except (KeyError, OSError, RuntimeError) as error:
            raise CheckpointError(f"{name}: cannot be loaded: {error}") from error
        if isinstance(dtype, torch.dtype):
            convert(model, dtype)
        return cls(model if device is None else model.to(device))  # type: ignore[arg-type]

    @torch.no_grad()
    def __call__(
        self,
        composite: PictureSource | Sequence[PictureSource],
        mask: MaskSource | Sequence[MaskSource],
        prompt: str | list[str] | None = None,
        *,
        strength: float = 1.0,
        reference_mask: MaskSource | Sequence[MaskSource | None] | None = None,
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> HarmonizationOutput | tuple[Any, Any]:
        """Harmonize one composite or a list of them.

        Where the mask is 0 the result is the input to the bit. Each picture is harmonized by itself, so a
        list gives the same results as a loop over it.

        Args:
            composite: A path, PIL image, `Picture`, array `(H, W, 3)` of uint8, uint16 or float in [0, 1],
                tensor `(3, H, W)` or `(B, 3, H, W)` in [0, 1], or a list of these.
            mask: The foreground of each composite, of the same height and width: 1 (white) is foreground,
                soft values are kept. Same kinds as `composite`, with one channel.
            prompt: No effect: these models read no text. It is taken so that one call fits all pipelines.
            strength: 0 returns the input, 1 the model's result, values between blend the two.
            reference_mask: The part of the background to harmonize to, as `mask`, or a list with None for
                composites whose whole background counts; by default the whole background of each.
            num_inference_steps: No effect: these models take one step.
            generator: No effect: these models draw no random numbers.
            output_type: "pil", "np", "pt", "picture" or "array", see `HarmonizationOutput`.
            return_dict: Return a `HarmonizationOutput`, else the tuple `(images, filters)`.

        Returns:
            The harmonized images, and the filter arguments `(B, F)` of white-box models.

        Raises:
            InputError: A picture, mask or argument that cannot be used; nothing was computed.
        """
        strength = self.check_inputs(prompt, strength, output_type)
        pairs = load_call_pairs(composite, mask)
        references = load_references(reference_mask, [picture for picture, _ in pairs])
        for (_, foreground), reference in zip(pairs, references, strict=True):
            check_background(foreground, reference)
        if num_inference_steps is not None:
            check_integer("num_inference_steps", num_inference_steps, 1)
        check_generators(generator, len(pairs))

        results = []
        several = len(pairs) > 1
        with (
            in_turn(self),
            self.progress_bar(total=len(pairs)) if several else tqdm(disable=True) as progress,
        ):
            for (picture, foreground), reference in zip(pairs, references, strict=True):
                results.append(
                    harmonize_picture(self.model, picture, foreground, reference=reference, strength=strength)
                )
                progress.update()
            self.maybe_free_model_hooks()

        images = export_pictures([picture for picture, _ in results], output_type)
        filters = stack_filters([filters for _, filters in results])
        return HarmonizationOutput(images, filters) if return_dict else (images, filters)

    def check_inputs(self, prompt: str | list[str] | None, strength: float, output_type: str) -> float:
        """Check what can be checked before any picture is read, and return the strength.

        Raises:
            InputError: A value out of its range.
        """
        strength = check_number("strength", strength, 0, 1)
        check_output_type(output_type)
        if prompt is not None and not self._warned_of_prompt:
            logger.warning("`prompt` is ignored: %s reads no text.", type(self.model).__name__)
            self._warned_of_prompt = True
        return strength

    def enable_model_cpu_offload(
        self, gpu_id: int | None = None, device: torch.device | str | None = None
    ) -> None:
        """Keep the model on the CPU between calls; see diffusers.

        Classical methods have no weights to move, and stay on the CPU.
        """
        if self._has_weights:
            super().enable_model_cpu_offload(gpu_id, device)  # type: ignore[arg-type]

    def enable_sequential_cpu_offload(
        self, gpu_id: int | None = None, device: torch.device | str | None = None
    ) -> None:
        """Keep the model on the CPU between calls, as `enable_model_cpu_offload` does.

        It is loaded whole: white-box models use weights outside of their layers, where the hooks of single
        layers do not run.
        """
        self.enable_model_cpu_offload(gpu_id, device)

    @property
    def _has_weights(self) -> bool:
        return next(self.model.parameters(), None) is not None


def stack_filters(filters: list[torch.Tensor | None]) -> torch.Tensor | None:
    """Concatenate the filter arguments of several pictures to `(B, F)`; None for models without."""
    known = [f for f in filters if f is not None]
    return torch.cat(known) if known else None
