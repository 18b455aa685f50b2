"""Settings of the paper: whole frames, Adam, thresholds of edges, captions of foregrounds, captioner."""

import argparse
import json
import runpy
import sys

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_blip import save_tiny_blip
from tiny_diffusion import make_pipe, object_mask, picture, trained_like
from tiny_training import ROOT, finish

from harmony_diffusion.data.captions import prompts_from_captions, read_captions
from harmony_diffusion.data.cut_outs import cut_out
from harmony_diffusion.data.photographs import read_photographs
from harmony_diffusion.data.training_set import KeyedView
from harmony_diffusion.diffusion.control_settings import ControlSettings, load_control_settings
from harmony_diffusion.errors import CheckpointError, InputError
from harmony_diffusion.pipelines.assembly import assemble_pipeline
from harmony_diffusion.pipelines.stable_diffusion import StableDiffusionHarmonizationPipeline
from harmony_diffusion.training.checkpoints import read_training_state
from harmony_diffusion.training.diffusion_data import open_data, precompute
from harmony_diffusion.training.diffusion_run import add_arguments, check_arguments
from harmony_diffusion.training.optimizers import build_optimizer


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    return save_tiny_blip(tmp_path_factory.mktemp("blip") / "tiny")


def parsed(*arguments):
    parser = argparse.ArgumentParser()
    add_arguments(parser, learning_rate=1e-3)
    args = parser.parse_args(["--data", "photographs", "--output", "out", *arguments])
    check_arguments(parser, args)
    return args


def call(monkeypatch, path, *arguments):
    monkeypatch.setattr(sys, "argv", [path, *map(str, arguments)])
    runpy.run_path(str(ROOT / path), run_name="__main__")


def test_whole_frames_are_neither_cropped_nor_mirrored(photographs):
    paper = open_data(photographs, "train", 64, whole_frames=1.0, mirror=False).samples
    usual = KeyedView(open_data(photographs, "train", 64).samples, 3)
    others = 0
    for position, item in enumerate([KeyedView(paper, 3)[position] for position in range(12)]):
        photograph = paper.photographs[int(item["source"])]
        with Image.open(photograph.picture) as image:
            whole = np.asarray(image.convert("RGB").resize((64, 64), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(item["real"].permute(1, 2, 0).numpy(), whole)
        mask = cv2.imread(str(photograph.mask), cv2.IMREAD_GRAYSCALE)
        assert item["mask"].float().mean().item() / 255 == pytest.approx((mask > 127).mean(), abs=0.02)
        others += not torch.equal(usual[position]["real"], item["real"])
    assert others > 6


def test_latents_of_crops_are_not_taken_for_those_of_whole_frames(photographs, base, tmp_path):
    models = {
        name: part
        for name, part in StableDiffusionHarmonizationPipeline.from_pretrained(base).components.items()
        if name in ("vae", "tokenizer", "text_encoder")
    }
    options = {"variants": 1, "image_channel": "masked", "batch_size": 4}
    crops, whole = (open_data(photographs, "train", 64, whole_frames=share, limit=2) for share in (0.35, 1.0))
    precompute(tmp_path, crops, models, **options)
    settings = json.loads((tmp_path / "settings.json").read_text())
    with pytest.raises(InputError, match="other whole_frames"):
        precompute(tmp_path, whole, models, **options)
    # Folders of before have no such settings, and hold crops.
    old = {name: value for name, value in settings.items() if name not in ("whole_frames", "mirror")}
    (tmp_path / "settings.json").write_text(json.dumps(old))
    assert precompute(tmp_path, crops, models, **options) == 0


def test_adam_is_that_of_the_paper_and_adamw_the_default():
    weight = torch.nn.Parameter(torch.ones(1))
    kinds = [type(build_optimizer([weight], parsed(*flags))) for flags in ([], ["--optimizer", "adam"])]
    assert kinds == [torch.optim.AdamW, torch.optim.Adam]
    with pytest.raises(SystemExit):
        parsed("--optimizer", "adam", "--use_8bit_adam")


@pytest.mark.parametrize("role", ["high", "low"])
def test_recipes_of_the_paper_set_them(role):
    text = (ROOT / "train" / "recipes" / f"sd2_dual_{role}.sh").read_text()
    assert all(f"  --{flag} \\\n" in text for flag in ("whole_frames 1", "no_mirror", "optimizer adam"))
    raw = (ROOT / "train" / "recipes" / "sd2_raw_condition.sh").read_text()
    assert 'sd2_dual_low.sh" --sigma 0 "$@"' in raw


def test_two_steps_as_in_the_paper_leave_their_traces(photographs, base, tmp_path):
    arguments = ["--control", "high", "--data", photographs, "--pretrained_model_name_or_path", base]
    arguments += [
        "--resolution",
        "64",
        "--train_batch_size",
        "2",
        "--conditioning_embedding",
        *"8 8 16 16".split(),
    ]
    arguments += ["--whole_frames", "1", "--no_mirror", "--optimizer", "adam", "--max_train_steps", "2"]
    arguments += ["--canny_thresholds", "200", "400", "--output", tmp_path / "high"]
    assert finish("train_controlnet", arguments)
    assert load_control_settings(tmp_path / "high" / "model").canny_thresholds == (200, 400)
    card = (tmp_path / "high" / "model" / "README.md").read_text()
    assert "whole pictures: 100%, none mirrored" in card and "optimizer: Adam\n" in card
    checkpoint = tmp_path / "high" / "checkpoint-2"
    saved = torch.load(checkpoint / "training_state.pt", weights_only=True)["settings"]
    assert read_training_state(checkpoint, saved)["step"] == 2
    for change in ({"whole_frames": 0.35}, {"optimizer": "adamw_fused"}, {"no_mirror": False}):
        with pytest.raises(CheckpointError, match="comes from another run"):
            read_training_state(checkpoint, saved | change)


def test_captions_of_foregrounds_are_those_of_the_cut_outs(photographs, blip, tmp_path, monkeypatch):
    fixed = [
        "--data",
        photographs,
        "--captioner",
        blip,
        "--max_new_tokens",
        6,
        "--workers",
        0,
        "--dtype",
        "fp32",
    ]
    captions = {}
    for region in ("whole", "foreground"):
        output = tmp_path / region
        call(monkeypatch, "train/prepare_captions.py", *fixed, "--region", region, "--output", output)
        captions[region] = read_captions(output)
    assert set(captions["whole"]) == {f"made/{number}.jpg" for number in range(6)}
    assert set(captions["foreground"]) == {f"made/{number}.png" for number in range(6)}
    listed = read_photographs(photographs)
    prompts = {name: prompts_from_captions(listed, photographs, found) for name, found in captions.items()}
    assert prompts["whole"] != prompts["foreground"]
    # The caption is that of a photograph that shows nothing but the cut-out.
    root = tmp_path / "cut"
    (root / "made").mkdir(parents=True)
    (root / "index.csv").write_text("source,id,split\nmade,3,train\n")
    image, mask = (np.asarray(Image.open(photographs / "made" / f"3.{kind}")) for kind in ("jpg", "png"))
    mean = (0.48145466, 0.4578275, 0.40821073)
    cut_out(image, mask, mean).save(root / "made" / "3.jpg", format="PNG")
    Image.new("L", Image.open(root / "made" / "3.jpg").size, 255).save(root / "made" / "3.png")
    call(monkeypatch, "train/prepare_captions.py", "--data", root, *fixed[2:], "--output", tmp_path / "alone")
    assert read_captions(tmp_path / "alone") == {"made/3.jpg": captions["foreground"]["made/3.png"]}
    with pytest.raises(SystemExit, match="holds captions made otherwise"):
        call(monkeypatch, "train/prepare_captions.py", *fixed, "--output", tmp_path / "foreground")


def test_captioner_is_attached_and_saved(base, blip, tmp_path, monkeypatch):
    pipe = assemble_pipeline(base, captioner=blip)
    assert type(pipe.captioner).__name__ == "BlipForConditionalGeneration" and pipe.captioner_processor
    assert assemble_pipeline(base).captioner is None
    components = trained_like()
    for role in ("high", "low"):
        components[f"controlnet_{role}"].save_pretrained(tmp_path / role)
        ControlSettings(role).save(tmp_path / role)
    controls = ["--high", tmp_path / "high", "--low", tmp_path / "low"]
    arguments = ["--base", base, *controls, "--captioner", blip, "--half", "--output", tmp_path / "joined"]
    call(monkeypatch, "train/make_pipeline.py", *arguments)
    loaded = StableDiffusionHarmonizationPipeline.from_pretrained(tmp_path / "joined")
    loaded.set_progress_bar_config(disable=True)
    assert loaded.captioner.dtype == torch.float32
    runs = []
    loaded.captioner.vision_model.register_forward_hook(lambda *_: runs.append(1))
    images = loaded(picture(), object_mask(), num_inference_steps=1, output_type="array").images
    assert runs and np.isfinite(images[0]).all()
    assert make_pipe(components).captioner is None
