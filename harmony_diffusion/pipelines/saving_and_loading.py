"""Saving and loading that both pipelines share."""

import json
import os
from pathlib import Path
from typing import Any, Self

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from safetensors import SafetensorError

from harmony_diffusion.errors import CheckpointError, HarmonyError, InputError, InputTypeError
from harmony_diffusion.images.output_files import write_atomically
from harmony_diffusion.models import MODELS
from harmony_diffusion.models.hub_files import class_name_of, looks_like_repository
from harmony_diffusion.pipelines.hub_folders import resolve_repository, use_own_classes
from harmony_diffusion.pipelines.saved_folders import (
    LOADING_OPTIONS,
    check_option_names,
    check_pipeline_folder,
    convert,
    first_line,
    refuse_missing,
    saved_dtypes,
    take_dtype,
)

# Name of the entry file in a saved folder, without its suffix.
ENTRY = "pipeline"
# What diffusers and the classes of the components raise on damaged files and settings of other types. The
# names of the options are checked before.
_DAMAGED = (AttributeError, LookupError, OSError, RuntimeError, SafetensorError, TypeError, ValueError)


class SavedPipeline(DiffusionPipeline):
    """A pipeline whose saved folder opens with `DiffusionPipeline.from_pretrained`.

    The folder carries an entry file of one import, and names it in `model_index.json`; diffusers requires
    `trust_remote_code=True` to run it.
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **options: Any) -> Self:
        """Load a saved pipeline from a folder or from the Hub.

        Of a repository that holds a pipeline of this library only settings and safetensors are downloaded;
        no code in it is run.

        Args:
            pretrained_model_name_or_path: Folder that `save_pretrained` wrote, or `owner/name` on the Hub,
                `owner/name@revision` for one revision of it.
            options: As in diffusers, components and configuration values too. `dtype` also takes names such
                as "float16", and "auto" for the type as saved.

        Raises:
            CheckpointError: It is no such pipeline, or cannot be reached; says what it is.
            InputError: An unknown keyword, or a value that cannot be used.
        """
        source, options = os.fspath(pretrained_model_name_or_path), dict(options)
        components, settings = cls._get_signature_keys(cls)
        check_option_names(options, [*LOADING_OPTIONS, *components, *settings])
        passed = [name for name in components if name in options]
        if not os.path.isdir(source) and looks_like_repository(source) and "custom_pipeline" not in options:
            source = resolve_repository(source, options, passed)
        folder = Path(source)
        if folder.is_dir():
            taken = [*components, *settings]
            required = [name for name in components if name not in cls._optional_components]
            check_pipeline_folder(folder, cls.__name__, required, taken, passed)
        elif not looks_like_repository(source):
            if source == "default" or source in MODELS:
                fix = f"Call `HarmonizationPipeline.from_pretrained({source!r})`."
                raise CheckpointError(f"{source}: is a model, not a saved pipeline. {fix}")
            refuse_missing(source, [])
        dtype = take_dtype(options)
        if dtype == "auto":
            if not folder.is_dir():
                raise InputError(
                    "dtype", "is 'auto', and the pipeline is not in a folder", "Give a torch.dtype."
                )
            dtype = saved_dtypes(folder)
        try:
            return super().from_pretrained(source, dtype=dtype, **options)  # type: ignore[return-value]
        except HarmonyError:
            raise
        except _DAMAGED as error:
            where = (
                "cannot be loaded" if folder.is_dir() else "is neither a folder here nor reachable on the Hub"
            )
            raise CheckpointError(f"{source}: {where}: {first_line(error)}") from error

    @classmethod
    def load_config(cls, *arguments: Any, **options: Any) -> Any:
        """Read `model_index.json`, as diffusers does it.

        Entry files of this class, of those it extends, and of models of this library are not run: the classes
        are here.
        """
        config = super().load_config(*arguments, **options)
        own = {kind.__name__ for kind in cls.__mro__}
        if isinstance(config, dict) and class_name_of(config) in own:
            config["_class_name"] = cls.__name__
            use_own_classes(config)
        return config

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **options: Any) -> Self:
        """Make this pipeline from the components and the configuration of another one, which it shares.

        Args:
            pipeline: Pipeline with all components that this class needs.
            options: Components and configuration values to use in place of its own, and `dtype` (or
                `torch_dtype`), to convert all components; by default they keep their types.

        Raises:
            InputTypeError: The other pipeline lacks components, or an unknown keyword.
        """
        components, settings = cls._get_signature_keys(cls)
        check_option_names(options, ["dtype", "torch_dtype", *components, *settings], "from_pipe")
        dtype, held = take_dtype(options), getattr(pipeline, "components", {})
        parts = {name: held[name] for name in components if name in held}
        config = {name: pipeline.config[name] for name in settings if name in getattr(pipeline, "config", {})}
        parts |= config | options
        required = [name for name in components if name not in cls._optional_components]
        if missing := sorted(name for name in required if parts.get(name) is None):
            raise InputTypeError(
                "pipeline",
                f"is a {type(pipeline).__name__}, which has no {', '.join(missing)}",
                f"Give a pipeline with the components of {cls.__name__}, or the missing ones as keywords.",
            )
        for part in parts.values() if isinstance(dtype, torch.dtype) else ():
            if isinstance(part, torch.nn.Module):
                convert(part, dtype)
        return cls(**parts)

    def to_json_file(self, json_file_path: str | os.PathLike[str]) -> None:
        """Write `model_index.json`, and the entry file beside it."""
        path = Path(json_file_path)
        entries = json.loads(self.to_json_string())
        home = next(kind for kind in type(self).__mro__ if kind.__module__.startswith("harmony_diffusion."))
        entries["_class_name"] = [ENTRY, home.__name__]
        entry = (
            '"""Entry file for diffusers; the code comes with `pip install harmony-diffusion`."""\n\n'
            f"from {home.__module__} import {home.__name__}  # noqa: F401\n"
        )
        index = json.dumps(entries, indent=2, sort_keys=True) + "\n"
        for target, text in ((path.with_name(f"{ENTRY}.py"), entry), (path, index)):
            data = text.encode()
            write_atomically(target, lambda file, data=data: file.write(data), overwrite=True)
