import numpy as np
import pytest
import torch
from PIL import Image
from tiny_diffusion import call, make_pipe

from harmony_diffusion.diffusion.random_weights import random_components
from harmony_diffusion.errors import CheckpointError
from harmony_diffusion.models.tiny_autoencoder import TinyAutoencoder, load_taef2


def test_published_weights_give_the_published_fidelity(shared):
    model = load_taef2(shared / "weights" / "taef2" / "taef2.safetensors")
    path = sorted((shared / "data" / "photos" / "kodak").glob("*.jpg"))[0]
    pixels = torch.from_numpy(np.asarray(Image.open(path).convert("RGB"))[:256, :256].copy())
    image = pixels.permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        latents = model.encode(image).latents
        decoded = model.decode(latents).sample.clamp(-1, 1)
    psnr = -10 * torch.log10(((decoded - image) / 2).square().mean())
    assert latents.shape == (1, 32, 32, 32) and psnr > 27  # 27.5 to 32.4 dB on crops of Kodak
    assert abs(latents.std() * model.config.scaling_factor - 1) < 0.15


def test_saved_model_is_the_same(tmp_path):
    model = TinyAutoencoder(latent_channels=5, block_out_channels=(8, 8, 8))
    model.save_pretrained(tmp_path)
    image = torch.rand(1, 3, 32, 32)
    loaded = TinyAutoencoder.from_pretrained(tmp_path)
    with torch.no_grad():
        assert model.encode(image).latents.shape == (1, 5, 8, 8)
        assert torch.equal(model(image), loaded(image))


def test_other_files_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        load_taef2(tmp_path / "taef2.safetensors")


@pytest.mark.parametrize("init", ["noise", "composite"])
@pytest.mark.parametrize("control_input", ["noisy_latents", "unet_input"])
def test_pipeline_takes_any_number_of_latent_channels(init, control_input):
    vae = TinyAutoencoder(latent_channels=6, block_out_channels=(8, 8, 8, 8))
    components = random_components("tiny", vae=vae, control_input=control_input)
    assert components["unet"].config.in_channels == 13 and components["unet"].config.out_channels == 6
    for name in ("controlnet_high", "controlnet_low"):
        assert components[name].config.in_channels == {"noisy_latents": 6, "unet_input": 13}[control_input]
    pipe = make_pipe(components, control_input=control_input)
    strength = 1.0 if init == "noise" else 0.5
    latents = call(pipe, init=init, strength=strength, output_type="latent").images
    assert latents.shape == (1, 6, 8, 8) and torch.isfinite(latents).all()
    assert call(pipe, init=init, strength=strength).images[0].shape == (64, 64, 3)


def test_a_web_page_or_a_broken_file_is_not_taken_for_weights(tmp_path):
    path = tmp_path / "taef2.safetensors"
    for content, message in ((b"<html></html>", "web page"), (b"\x10\0\0\0\0\0\0\0broken", "is not TAEF2")):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            load_taef2(path)
