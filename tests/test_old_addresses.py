"""Addresses of 0.1.0 that code and saved pipelines may still hold."""

import json
import shutil
from pathlib import Path

import harmony_diffusion
from harmony_diffusion import StableDiffusionHarmonizationPipeline, image_processor
from harmony_diffusion.models.tiny_autoencoder import TinyAutoencoder

MINI = Path(__file__).parents[1] / "checkpoints" / "mini_dual_controlnet"


def test_image_processor_still_gives_the_names_of_pictures_and_masks():
    for name in ("Picture", "load_picture", "load_mask"):
        assert getattr(image_processor, name) is getattr(harmony_diffusion, name)
    assert all(hasattr(image_processor, name) for name in image_processor.__all__)


def test_pipeline_saved_by_0_1_0_loads(tmp_path):
    saved = shutil.copytree(MINI, tmp_path / "saved", ignore=shutil.ignore_patterns("evaluation"))
    index = saved / "model_index.json"
    entries = json.loads(index.read_text())
    assert entries["vae"] == ["harmony_diffusion.models.tiny_autoencoder", "TinyAutoencoder"]
    index.write_text(
        json.dumps({**entries, "vae": ["harmony_diffusion.tiny_autoencoder", "TinyAutoencoder"]})
    )
    pipe = StableDiffusionHarmonizationPipeline.from_pretrained(saved)
    assert type(pipe.vae) is TinyAutoencoder
    pipe.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "model_index.json").read_text())
    assert again["vae"] == ["harmony_diffusion.models.tiny_autoencoder", "TinyAutoencoder"]
