"""A tiny Paint by Example with random weights, in the folders of its published repository."""

import json

import torch
from diffusers.pipelines.deprecated.paint_by_example.image_encoder import PaintByExampleImageEncoder
from safetensors.torch import load_file
from transformers import CLIPImageProcessor, CLIPVisionConfig

from harmony_diffusion.diffusion.random_weights import random_components


def save_paint_by_example(folder):
    """Write U-Net, autoencoder, scheduler, image encoder and its processor; return the folder."""
    parts = random_components("tiny")
    for name in ("unet", "vae", "scheduler"):
        parts[name].save_pretrained(folder / name)
    config = CLIPVisionConfig(
        hidden_size=32,
        projection_dim=32,
        intermediate_size=37,
        num_hidden_layers=5,
        num_attention_heads=4,
        image_size=32,
        patch_size=4,
    )
    torch.manual_seed(0)
    encoder = PaintByExampleImageEncoder(config)
    for parameter in encoder.parameters():
        parameter.data.mul_(5)  # so that different examples are told apart
    encoder.save_pretrained(folder / "image_encoder")
    CLIPImageProcessor(size=32, crop_size=32).save_pretrained(folder / "feature_extractor")
    index = {
        "_class_name": "PaintByExamplePipeline",
        "image_encoder": ["paint_by_example", "PaintByExampleImageEncoder"],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def with_old_names(folder):
    """Rename the encoder's weights as the published file has them, which older versions wrote."""
    path = folder / "image_encoder" / "model.safetensors"
    weights = load_file(path)
    path.unlink()
    old = {
        f"model.vision_model.{name.removeprefix('model.')}" if name.startswith("model.") else name: value
        for name, value in weights.items()
    }
    torch.save(old, folder / "image_encoder" / "pytorch_model.bin")
    return weights
