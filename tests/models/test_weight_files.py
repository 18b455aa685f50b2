"""What is given in place of weights is named, and a remedy comes with it."""

import json
import shutil

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from safetensors.torch import load_file, save_file

from harmony_diffusion.cli import main
from harmony_diffusion.errors import CheckpointError, InputTypeError
from harmony_diffusion.models import MODELS, create_model, load_model
from harmony_diffusion.models.convert import convert_checkpoint
from harmony_diffusion.models.weight_files import did_you_mean
from harmony_diffusion.pipelines.harmonization import HarmonizationPipeline

WEIGHTS = "diffusion_pytorch_model.safetensors"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 8283412\n"
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>"
WRONG = {
    "web page": (PAGE, "is a web page"),
    "pointer": (POINTER, "is a Git LFS pointer.*git lfs pull"),
    "json": (b'{"error": "Repository not found"}', "is a JSON text"),
    "empty": (b"", "is empty"),
}
every_wrong_file = pytest.mark.parametrize(("content", "message"), WRONG.values(), ids=WRONG)


@pytest.fixture
def saved(tmp_path):
    create_model("hdnet_lite", base_channels=4).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("HDNet", "hdnet"),
        ("hdnett", "hdnet"),
        ("PCT-Net", "pct_net"),
        ("colorgrid", "color_grid"),
        ("defualt", "default"),
        ("rainhard", "reinhard"),
        ("histogram-matching", "histogram_matching"),
    ],
)
def test_misspelt_names_are_answered_by_close_ones(name, meant):
    with pytest.raises(CheckpointError, match=f"No model is called '{name}'.*Did you mean.*'{meant}'"):
        load_model(name)
    if meant != "default":
        with pytest.raises(CheckpointError, match=f"Did you mean.*'{meant}'"):
            create_model(name)
        with pytest.raises(CheckpointError, match=f"Did you mean.*'{meant}'"):
            convert_checkpoint(name, "weights.pth", "out")


def test_names_like_no_other_are_answered_by_the_list():
    assert did_you_mean("zzz", MODELS) == ""
    with pytest.raises(CheckpointError, match=r"No model is called 'zzz'\. Known: default, identity"):
        load_model("zzz")


@pytest.mark.parametrize("name", [None, 3, b"hdnet", torch.nn.Identity()])
def test_things_that_name_nothing_are_an_error_of_type(name):
    with pytest.raises(InputTypeError, match="name_or_path"):
        load_model(name)


def test_misspelt_folders_are_answered_by_their_neighbours(saved):
    with pytest.raises(CheckpointError, match="no such folder. Did you mean 'saved'"):
        load_model(saved.parent / "savd")
    with pytest.raises(CheckpointError, match="no such folder.*not resolved"):
        load_model("someone/hdnet")


def test_files_are_refused_with_the_folder_to_give(saved):
    with pytest.raises(CheckpointError, match=f"is a file.*Give its folder, {saved}"):
        load_model(saved / WEIGHTS)
    lone = saved.parent / "official.pth"
    lone.write_bytes(b"PK")
    with pytest.raises(CheckpointError, match="is a file.*harmony convert"):
        load_model(lone)


def test_folders_that_hold_no_model_are_described(saved, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="is empty, expected a folder written by `save_pretrained`"):
        load_model(tmp_path / "empty")
    with pytest.raises(CheckpointError, match=r"has no config.json.*Did you mean .*saved\?"):
        load_model(tmp_path)
    (saved / "config.json").unlink()
    with pytest.raises(CheckpointError, match=f"has no config.json.*It holds {WEIGHTS}"):
        load_model(saved)
    (saved / "export.json").write_text("{}")
    with pytest.raises(CheckpointError, match="has no config.json.*It is an exported model.*--runtime onnx"):
        load_model(saved)


def test_folder_with_the_name_of_a_method_does_not_hide_it(tmp_path, monkeypatch):
    (tmp_path / "reinhard").mkdir()
    monkeypatch.chdir(tmp_path)
    assert type(load_model("reinhard")).__name__ == "Reinhard"
    with pytest.raises(CheckpointError, match="is empty"):
        load_model("./reinhard/")


def test_pipelines_are_told_from_models(tmp_path):
    HarmonizationPipeline(load_model("reinhard")).save_pretrained(tmp_path / "ours")
    with pytest.raises(
        CheckpointError, match="a saved pipeline .*HarmonizationPipeline.*Give the model in it"
    ):
        load_model(tmp_path / "ours")
    assert type(load_model(tmp_path / "ours" / "model")).__name__ == "Reinhard"
    (tmp_path / "other").mkdir()
    index = {"_class_name": "StableDiffusionInpaintPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    (tmp_path / "other" / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="StableDiffusionInpaintPipeline.from_pretrained"):
        load_model(tmp_path / "other")


def test_models_of_others_are_refused_by_name(saved, tmp_path):
    AutoencoderKL(block_out_channels=(32,), layers_per_block=1).save_pretrained(tmp_path / "vae")
    with pytest.raises(CheckpointError, match="holds a 'AutoencoderKL', which is not one of Identity"):
        load_model(tmp_path / "vae")
    config = json.loads((saved / "config.json").read_text())
    for class_name, message in (
        ("HDnet", "Did you mean 'HDNet'"),
        (7, "names no class"),
        (None, "names no class"),
    ):
        (saved / "config.json").write_text(json.dumps({**config, "_class_name": class_name}))
        with pytest.raises(CheckpointError, match=message):
            load_model(saved)
    for content, message in (
        (b"{", "is no JSON"),
        (b"[1]", "holds a list"),
        (PAGE, "web page"),
        (POINTER, "LFS"),
    ):
        (saved / "config.json").write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            load_model(saved)


@every_wrong_file
def test_wrong_files_in_a_folder_are_named(content, message, saved):
    (saved / WEIGHTS).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{WEIGHTS}: {message}"):
        load_model(saved)


@every_wrong_file
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_wrong_files_are_not_converted(content, message, suffix, tmp_path, capsys):
    source = tmp_path / f"official{suffix}"
    source.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"official{suffix}: {message}"):
        convert_checkpoint("hdnet", source, tmp_path / "out")
    assert main(["convert", "--model", "hdnet", str(source), str(tmp_path / "out")]) == 2
    assert f"official{suffix}" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_folders_are_not_converted(saved, tmp_path):
    with pytest.raises(CheckpointError, match="is a folder.*`load_model` opens it as it is"):
        convert_checkpoint("hdnet", saved, tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"no such file. Did you mean 'diffusion_pytorch_model"):
        convert_checkpoint("hdnet", saved / "diffusion_pytorch_model.safetensor", tmp_path / "out")


def test_the_format_of_a_checkpoint_is_seen_from_its_content(tmp_path):
    model = create_model("gknet")
    save_file(model.state_dict(), tmp_path / "weights.pth")
    torch.save(model.state_dict(), tmp_path / "weights.safetensors")
    for name in ("weights.pth", "weights.safetensors"):
        folder = convert_checkpoint("gknet", tmp_path / name, tmp_path / name.replace(".", "_"))
        assert torch.equal(load_model(folder).to_rgb.weight, model.to_rgb.weight)


def test_missing_weights_are_an_error_and_not_random(saved, tmp_path):
    weights = load_file(saved / WEIGHTS)
    fewer = {key: value for key, value in weights.items() if key != "to_rgb.weight"}
    shutil.copytree(saved, tmp_path / "fewer")
    save_file(fewer, tmp_path / "fewer" / WEIGHTS, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"do not fit HDNet\. 1 missing: to_rgb\.weight"):
        load_model(tmp_path / "fewer")
    save_file({**weights, "more": torch.ones(1)}, saved / WEIGHTS, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"do not fit HDNet\. 1 extra: more"):
        load_model(saved)
    save_file({**weights, "to_rgb.weight": torch.ones(1)}, saved / WEIGHTS, {"format": "pt"})
    with pytest.raises(CheckpointError, match="cannot be opened as HDNet"):
        load_model(saved)
    (saved / WEIGHTS).write_bytes((tmp_path / "fewer" / WEIGHTS).read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be opened as HDNet"):
        load_model(saved)
    (saved / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=f"has no {WEIGHTS}"):
        load_model(saved)
