"""Stable Diffusion 2 inpainting with random weights, small or full size, for tests and measurements."""

from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from harmony_diffusion.diffusion.controlnets import ControlInput, make_controlnet
from harmony_diffusion.models.tiny_autoencoder import TinyAutoencoder

# (U-Net, autoencoder, text encoder, channels of the conditioning embedding); "full" is the published model.
_SIZES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], tuple[int, ...]]] = {
    "tiny": (
        {
            "block_out_channels": (32, 64),
            "layers_per_block": 1,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "attention_head_dim": (2, 4),
            "cross_attention_dim": 32,
            "norm_num_groups": 8,
            "sample_size": 8,
        },
        {
            "block_out_channels": (8, 8, 16, 16),
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "sample_size": 64,
        },
        {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 2},
        (8, 8, 16, 16),
    ),
    "small": (
        {
            "block_out_channels": (64, 128, 256, 256),
            "attention_head_dim": (1, 2, 4, 4),
            "cross_attention_dim": 64,
            "sample_size": 32,
        },
        {"block_out_channels": (16, 32, 32, 32), "norm_num_groups": 16, "sample_size": 256},
        {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
        (16, 16, 32, 32),
    ),
    # For the 32 latent channels of TAEF2; with both ControlNets 17 M parameters.
    "mini": (
        {
            "block_out_channels": (64, 128, 160),
            "layers_per_block": 1,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": (2, 4, 5),
            "cross_attention_dim": 64,
            "sample_size": 16,
        },
        {"block_out_channels": (64, 64, 64, 64), "latent_channels": 32},
        {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
        (16, 32, 48, 64),
    ),
    "full": (
        {
            "block_out_channels": (320, 640, 1280, 1280),
            "attention_head_dim": (5, 10, 20, 20),
            "cross_attention_dim": 1024,
            "sample_size": 64,
        },
        {"block_out_channels": (128, 256, 512, 512), "sample_size": 512},
        {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 23,
            "num_attention_heads": 16,
            "hidden_act": "gelu",
        },
        (16, 32, 96, 256),
    ),
}
BASES = tuple(_SIZES)
_TEXT_LENGTH = 77
# Where noise is up to 14 times as strong as the picture, a small error of the noise that a small network
# predicts is a large one of the picture, and the training hardly sees it. Velocity is the picture there.
_PREDICTION_TYPES = {"mini": "v_prediction"}


def random_components(
    size: str = "tiny",
    *,
    control_input: ControlInput = "noisy_latents",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    vae: Any = None,
) -> dict[str, Any]:
    """Build every component that `StableDiffusionHarmonizationPipeline` needs.

    Args:
        size: "tiny" (megabytes, for tests), "small" (tens of megabytes), "mini" (for `TinyAutoencoder`, whose
            latents have 32 channels) or "full" (as published: a U-Net of 866 M parameters and two
            ControlNets of 364 M).
        control_input: What the ControlNets see, see `make_controlnet`.
        dtype: Type of all weights; they are made in it, so that no larger copy exists at any time.
        seed: Seed of the weights.
        vae: Autoencoder to take in place of a random one; the others fit its latent channels.

    Returns:
        Components by name. The ControlNets are zero-initialised, as at the start of training.
    """
    unet_config, vae_config, text_config, embedding = _SIZES[size]
    tokenizer = byte_tokenizer()
    previous = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_default_dtype(dtype)
        try:
            if vae is None:
                vae = _random_autoencoder(vae_config)
            latents = vae.config["latent_channels"]
            unet = UNet2DConditionModel(
                in_channels=2 * latents + 1, out_channels=latents, use_linear_projection=True, **unet_config
            )
            controlnets = {
                name: make_controlnet(
                    unet, control_input=control_input, conditioning_embedding_out_channels=embedding
                )
                for name in ("controlnet_high", "controlnet_low")
            }
        finally:
            torch.set_default_dtype(previous)
        text_encoder: torch.nn.Module = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                max_position_embeddings=_TEXT_LENGTH,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
                dtype=dtype,
                **text_config,
            )
        )
    components = {"vae": vae, "text_encoder": text_encoder.to(dtype), "unet": unet, **controlnets}
    for module in components.values():
        module.eval().requires_grad_(False)
    scheduler = _make_scheduler(_PREDICTION_TYPES.get(size, "epsilon"))
    return {**components, "tokenizer": tokenizer, "scheduler": scheduler}


def _make_scheduler(prediction_type: str) -> UniPCMultistepScheduler:
    """Return the noise schedule of Stable Diffusion."""
    return UniPCMultistepScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        prediction_type=prediction_type,
    )


def _random_autoencoder(config: dict[str, Any]) -> Any:
    if "latent_channels" in config:
        return TinyAutoencoder(**config)
    blocks = len(config["block_out_channels"])
    kinds = {
        "down_block_types": ("DownEncoderBlock2D",) * blocks,
        "up_block_types": ("UpDecoderBlock2D",) * blocks,
    }
    return AutoencoderKL(**{**kinds, "latent_channels": 4, "layers_per_block": 2, **config})


def byte_tokenizer() -> CLIPTokenizer:
    """Make a CLIP tokenizer that knows single bytes and no merges."""
    alphabet = sorted(ByteLevel.alphabet())
    tokens = [*alphabet, *(f"{letter}</w>" for letter in alphabet), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=[],
        model_max_length=_TEXT_LENGTH,
        pad_token="<|endoftext|>",
    )
