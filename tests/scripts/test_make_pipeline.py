"""`make_pipeline.py`: one folder of what was trained in parts."""

import runpy
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_diffusion import call, make_pipe, trained_like
from tiny_training import ROOT

from harmony_diffusion.diffusion.base_models import read_pipeline_config
from harmony_diffusion.diffusion.control_settings import ControlSettings
from harmony_diffusion.pipelines.assembly import assemble_pipeline
from harmony_diffusion.pipelines.stable_diffusion import StableDiffusionHarmonizationPipeline


@pytest.fixture
def parts(tmp_path):
    """A base and two ControlNets with cards, as the training scripts leave them."""
    components = trained_like()
    controls = {role: components.pop(f"controlnet_{role}") for role in ("high", "low")}
    make_pipe(components | {"controlnet_high": None, "controlnet_low": None}).save_pretrained(
        tmp_path / "base"
    )
    for role, controlnet in controls.items():
        controlnet.save_pretrained(tmp_path / role)
        ControlSettings(role, sigma=2.0).save(tmp_path / role)
        (tmp_path / role / "README.md").write_text(f"# Card of {role}\n")
    return tmp_path


@pytest.fixture
def save(monkeypatch, parts):
    def call_script(*arguments):
        names = [part for role in ("base", "high", "low") for part in (f"--{role}", parts / role)]
        given = [*names, "--output", parts / "joined", *arguments]
        monkeypatch.setattr(sys, "argv", ["make_pipeline.py", *map(str, given)])
        runpy.run_path(str(ROOT / "train" / "make_pipeline.py"), run_name="__main__")
        return parts / "joined"

    return call_script


def test_folder_makes_the_same_pictures_as_its_parts(parts, save):
    pipe = StableDiffusionHarmonizationPipeline.from_pretrained(save())
    pipe.set_progress_bar_config(disable=True)
    assert pipe.config["sigma"] == 2 and pipe.config["working_size"] == 64
    joined = assemble_pipeline(parts / "base", high=parts / "high", low=parts / "low")
    joined.set_progress_bar_config(disable=True)
    np.testing.assert_array_equal(call(pipe).images[0], call(joined).images[0])


def test_half_precision_halves_the_files_and_still_runs_on_a_cpu(parts, save):
    folder = save("--half")
    for name in ("unet", "vae", "controlnet_high", "controlnet_low"):
        stored = load_file(folder / name / "diffusion_pytorch_model.safetensors")
        assert {value.dtype for value in stored.values()} == {torch.float16}
    text = load_file(folder / "text_encoder" / "model.safetensors").values()
    assert {value.dtype for value in text if value.is_floating_point()} == {torch.float16}
    pipe = StableDiffusionHarmonizationPipeline.from_pretrained(folder)
    assert pipe.unet.dtype == pipe.text_encoder.dtype == torch.float32
    pipe.set_progress_bar_config(disable=True)
    image = call(pipe).images[0]
    assert np.isfinite(image).all()
    again = assemble_pipeline(folder, high=folder / "controlnet_high", low=folder / "controlnet_low")
    again.set_progress_bar_config(disable=True)
    np.testing.assert_array_equal(image, call(again).images[0])
    assert read_pipeline_config(folder)["working_size"] == 64


def test_arguments_of_calls_are_stored_and_kept(save):
    folder = save("--call", "num_inference_steps=2", "detail=preserve")
    stored = {"num_inference_steps": 2, "detail": "preserve"}
    assert StableDiffusionHarmonizationPipeline.from_pretrained(folder).config["call_defaults"] == stored
    again = assemble_pipeline(folder, high=folder / "controlnet_high", low=folder / "controlnet_low")
    assert again.config["call_defaults"] == stored
    assert assemble_pipeline(folder, call_defaults={}).config["call_defaults"] is None


def test_cards_lie_beside_the_weights(save):
    folder = save()
    assert (folder / "controlnet_low" / "README.md").read_text() == "# Card of low\n"
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: diffusers\n") and "# joined\n" in card
    assert "(controlnet_high/README.md)" in card and "| `controlnet_low` | ControlNetModel |" in card
    assert "_name_or_path" not in (folder / "unet" / "config.json").read_text()


def test_existing_folder_is_replaced_only_if_asked(parts, save):
    (parts / "joined").mkdir()
    (parts / "joined" / "mine.txt").write_text("precious")
    with pytest.raises(SystemExit, match="exists already. Replace it with --overwrite"):
        save()
    with pytest.raises(SystemExit, match="holds something else than a pipeline"):
        save("--overwrite")
    assert (parts / "joined" / "mine.txt").read_text() == "precious"
    (parts / "joined" / "mine.txt").unlink()
    (save("--overwrite") / "README.md").unlink()
    assert (save("--overwrite") / "README.md").is_file()
    (parts / "joined" / "thesis.txt").write_text("precious")
    with pytest.raises(SystemExit, match="holds something else than a pipeline"):
        save("--overwrite")
    assert (parts / "joined" / "thesis.txt").is_file()


def test_parts_that_do_not_belong_together_leave_nothing(parts, save):
    (parts / "high" / "control.json").unlink()
    with pytest.raises(SystemExit, match=r"control\.json cannot be used"):
        save()
    assert sorted(path.name for path in parts.iterdir()) == ["base", "high", "low"]
