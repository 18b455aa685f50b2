"""Find, load and check Stable Diffusion 2 inpainting."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from transformers import CLIPTextModel, CLIPTokenizer

from harmony_diffusion.diffusion.controlnets import is_inpainting_unet
from harmony_diffusion.errors import CheckpointError
from harmony_diffusion.models.tiny_autoencoder import TinyAutoencoder

ENVIRONMENT_VARIABLE = "HARMONY_SD2_INPAINTING"
PREDICTION_TYPES = ("epsilon", "v_prediction")


@dataclass(frozen=True)
class BaseModel:
    """A repository on the Hub with base weights.

    Attributes:
        repository: Its id.
        license: Licence of the weights, as the repository states it.
        note: Description.
    """

    repository: str
    license: str
    note: str


# Tried in this order. All weights descend from Stability AI's, CreativeML Open RAIL++-M.
BASE_MODELS = (
    BaseModel(
        "sd2-community/stable-diffusion-2-inpainting",
        "CreativeML Open RAIL++-M",
        "mirror kept by the community, not affiliated with Stability AI",
    ),
    BaseModel(
        "yahoo-inc/photo-background-generation",
        "Apache-2.0",
        "Stable Diffusion 2 inpainting beside a 9-channel ControlNet for salient objects",
    ),
)

_RETIRED = {
    f"stabilityai/stable-diffusion-{name}" for name in ("2", "2-base", "2-inpainting", "2-1", "2-1-base")
}
_WHY_RETIRED = (
    "Stability AI took Stable Diffusion 2 off the Hub in November 2025, so its ids under stabilityai/ answer "
    "404 or 401 wherever tutorials and older code still name them."
)


def load_base_components(
    source: str | os.PathLike[str] | None = None, *, dtype: torch.dtype | None = None
) -> dict[str, Any]:
    """Load U-Net, autoencoder, text encoder, tokenizer and scheduler of Stable Diffusion 2 inpainting.

    Args:
        source: Folder in diffusers layout, or id of a repository on the Hub. By default what the environment
            variable HARMONY_SD2_INPAINTING names, else the first reachable one of `BASE_MODELS`.
        dtype: Type of the weights; by default float32, as diffusers opens them.

    Returns:
        Components by name; the scheduler is UniPC, which needs about 20 steps.

    Raises:
        CheckpointError: Nothing could be loaded, or it is another kind of model; lists each attempt and its
            error.
    """
    source = source or os.environ.get(ENVIRONMENT_VARIABLE)
    candidates = [os.fspath(source)] if source else [model.repository for model in BASE_MODELS]
    failures = []
    for candidate in candidates:
        if candidate in _RETIRED:
            raise CheckpointError(
                f"{candidate}: {_WHY_RETIRED} Use {BASE_MODELS[0].repository} ({BASE_MODELS[0].note})."
            )
        try:
            return _load(candidate, dtype)
        except OSError as error:
            failures.append(f"  {candidate}: {_first_line(error)}")
    raise CheckpointError(
        "The weights of Stable Diffusion 2 inpainting are neither here nor reachable. Tried:\n"
        + "\n".join(failures)
        + f"\n{_WHY_RETIRED}\nDownload {BASE_MODELS[0].repository} where there is a network, and set "
        f"{ENVIRONMENT_VARIABLE} to the folder."
    )


def _load(source: str, dtype: torch.dtype | None) -> dict[str, Any]:
    # diffusers would take an absent folder for the id of a repository, with a misleading message.
    if os.path.isabs(source) and not Path(source).is_dir():
        raise FileNotFoundError("there is no such folder")
    unet = UNet2DConditionModel.from_pretrained(source, subfolder="unet", torch_dtype=dtype)
    scheduler = UniPCMultistepScheduler.from_pretrained(source, subfolder="scheduler")
    # By default transformers opens float16 files in float16, and diffusers in float32.
    text_encoder = CLIPTextModel.from_pretrained(source, subfolder="text_encoder", dtype=dtype or unet.dtype)
    check_base(unet, text_encoder, scheduler)
    return {
        "unet": unet,
        "vae": load_autoencoder(source, dtype),
        "text_encoder": text_encoder,
        "tokenizer": CLIPTokenizer.from_pretrained(source, subfolder="tokenizer"),
        "scheduler": scheduler,
    }


def read_pipeline_config(source: str | os.PathLike[str] | None) -> dict[str, Any]:
    """Read the pipeline settings in a local folder of a base model.

    Returns:
        `working_size`, `image_channel`, `average_mirrored`, `opacity` and `call_defaults`, if the folder has
        them.
    """
    path = Path(source or "") / "model_index.json"
    entries = json.loads(path.read_text("utf-8")) if source and path.is_file() else {}
    names = ("working_size", "image_channel", "average_mirrored", "opacity", "call_defaults")
    return {name: entries[name] for name in names if name in entries}


def load_autoencoder(source: str, dtype: torch.dtype | None = None) -> Any:
    """Load the autoencoder of a model in diffusers layout, of either known class."""
    config = AutoencoderKL.load_config(source, subfolder="vae")
    kinds = {kind.__name__: kind for kind in (AutoencoderKL, TinyAutoencoder)}
    kind: Any = kinds.get(config.get("_class_name"), AutoencoderKL)
    return kind.from_pretrained(source, subfolder="vae", torch_dtype=dtype)


def check_base(unet: Any, text_encoder: Any, scheduler: Any) -> None:
    """Check that components form a text-guided inpainting model that predicts noise or velocity.

    Args:
        unet: U-Net, or None.
        text_encoder: Text encoder, or None.
        scheduler: Scheduler.

    Raises:
        CheckpointError: They belong to another kind of model.
    """
    if scheduler is not None:
        predicted = scheduler.config.get("prediction_type", "epsilon")
        if predicted not in PREDICTION_TYPES:
            raise CheckpointError(
                f"The scheduler is set to prediction_type={predicted!r}; an inpainting model predicts noise "
                "('epsilon', as Stable Diffusion 2) or velocity ('v_prediction')."
            )
    if unet is None:
        return
    if not is_inpainting_unet(unet):
        raise CheckpointError(
            f"The U-Net has {unet.config.in_channels} input channels, an inpainting U-Net has "
            f"{2 * unet.config.out_channels + 1}: noisy latents, mask, latents of the background. Load "
            f"{BASE_MODELS[0].repository}."
        )
    width = unet.config.cross_attention_dim
    if text_encoder is not None and text_encoder.config.hidden_size != width:
        raise CheckpointError(
            f"The U-Net attends to text of width {width}, the text encoder gives "
            f"{text_encoder.config.hidden_size} (Stable Diffusion 2: 1024, 1.5: 768): they belong to "
            "different models."
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
