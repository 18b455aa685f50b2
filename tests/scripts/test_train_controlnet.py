"""`train_inpainting.py` and `train_controlnet.py`: from photographs to a pipeline, killed, and shared out."""

import argparse
import importlib.util
import io
import json
import re
import shutil
import sys

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel
from diffusers.optimization import get_scheduler
from fake_hub import FakeHub
from PIL import Image
from safetensors.torch import load_file
from tiny_diffusion import call
from tiny_training import (
    ROOT,
    finish,
    kill_after_a_checkpoint,
    run,
    save_base,
    save_photographs,
    state_of,
)

from harmony_diffusion.diffusion.random_weights import random_components
from harmony_diffusion.errors import CheckpointError, MissingDependencyError
from harmony_diffusion.models.tiny_autoencoder import TinyAutoencoder
from harmony_diffusion.pipelines.assembly import assemble_pipeline
from harmony_diffusion.pipelines.stable_diffusion import StableDiffusionHarmonizationPipeline
from harmony_diffusion.training.diffusion_run import (
    SCHEDULES,
    add_arguments,
    check_arguments,
    freeze,
    learning_rate,
)
from harmony_diffusion.training.optimizers import build_optimizer
from harmony_diffusion.training.reporter import Reporter

WIDTHS = ["--conditioning_embedding", "8", "8", "16", "16"]
SMALL = ["--resolution", "64", "--train_batch_size", "2", "--lr_warmup_steps", "0"]
VALIDATION = [
    "--validation_split",
    "val",
    "--num_validation_images",
    "2",
    "--validation_inference_steps",
    "2",
]


def common(photographs, base, output):
    return [
        *SMALL,
        *WIDTHS,
        "--data",
        photographs,
        "--pretrained_model_name_or_path",
        base,
        "--output",
        output,
    ]


def changed(folder, original):
    """Names of the tensors in which a saved model differs from another."""
    stored = load_file(folder / "diffusion_pytorch_model.safetensors")
    return {name for name, value in stored.items() if not torch.equal(value, original[name])}


def test_chain_from_photographs_to_pipeline(photographs, tmp_path):
    data = ["--data", photographs, "--caption_column", "label", *SMALL, "--max_train_steps", "2"]
    arguments = [*data, "--random_base", "tiny", "--output", tmp_path / "base", *VALIDATION]
    assert finish("train_inpainting", [*arguments, "--pixel_loss", "0.5"])
    arguments = [*data, *WIDTHS, "--pretrained_model_name_or_path", tmp_path / "base" / "model"]
    arguments += ["--learning_rate", "1e-2", "--validation_steps", "1", *VALIDATION]
    beside = ["--beside", tmp_path / "high" / "model", "--pixel_loss", "0.5"]
    for role, others in (("high", []), ("low", beside)):
        assert finish(
            "train_controlnet", [*arguments, *others, "--control", role, "--output", tmp_path / role]
        )
    sheets = {path.name for path in (tmp_path / "low" / "validation").iterdir()}
    assert sheets == {"step-1.png", "step-2.png"}
    assert Image.open(tmp_path / "low" / "validation" / "step-2.png").size == (4 * 64, 2 * 64)
    folders = {role: tmp_path / role / "model" for role in ("high", "low")}
    pipe = assemble_pipeline(tmp_path / "base" / "model", **folders)
    assert pipe.config["working_size"] == 64
    with pytest.raises(CheckpointError, match="kind 'low'"):
        assemble_pipeline(tmp_path / "base" / "model", high=folders["low"])
    pipe.set_progress_bar_config(disable=True)
    images = {
        scales: call(pipe, high_scale=scales[0], low_scale=scales[1]).images[0]
        for scales in ((0, 0), (1, 0), (0, 1), (1, 1))
    }
    assert len({image.tobytes() for image in images.values()}) == 4
    pipe.save_pretrained(tmp_path / "dual")
    loaded = StableDiffusionHarmonizationPipeline.from_pretrained(tmp_path / "dual")
    loaded.set_progress_bar_config(disable=True)
    assert np.array_equal(call(loaded).images[0], images[1, 1])
    card = (folders["low"] / "README.md").read_text()
    assert "foreground perturbed: yes" in card and "psnr" in card and str(tmp_path) not in card
    assert "trained beside: high/model" in card and "base: base/model" in card
    card = (folders["high"] / "README.md").read_text()
    assert "foreground perturbed: no" in card and "trained beside: none" in card
    again = [*arguments, "--beside", folders["low"], "--control", "low", "--output", tmp_path / "again"]
    assert not finish("train_controlnet", again)
    assert not (tmp_path / "again" / "model").exists()


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_run_ends_with_the_same_bits(workers, photographs, base, tmp_path):
    arguments = ["--control", "low", "--max_train_steps", "12", "--checkpointing_steps", "1", "--use_ema"]
    arguments += ["--gradient_accumulation_steps", "2", "--lr_scheduler", "cosine", "--learning_rate", "1e-3"]
    arguments += ["--proportion_empty_prompts", "0.5", "--caption_column", "label"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    cut.mkdir()
    assert finish("train_controlnet", [*common(photographs, base, whole), *arguments])
    arguments = [*common(photographs, base, cut), *arguments, "--dataloader_num_workers", workers]
    for pause in (0.0, 0.05):
        kill_after_a_checkpoint("train_controlnet", arguments, cut, pause)
    assert finish("train_controlnet", arguments)
    expected, found = state_of(whole, 12), state_of(cut, 12)
    assert expected.keys() == found.keys() and len(expected) > 100
    assert not [key for key in expected if not torch.equal(expected[key], found[key])]
    weights = [
        (folder / "model" / "diffusion_pytorch_model.safetensors").read_bytes() for folder in (whole, cut)
    ]
    assert weights[0] == weights[1]
    assert len(list(cut.glob("checkpoint-*"))) == 3 and not list(cut.glob(".unfinished-*"))
    # The name of a checkpoint is enough, and what it leads to is the same again.
    shutil.rmtree(cut / "checkpoint-12")
    assert finish("train_controlnet", [*arguments, "--resume_from_checkpoint", "checkpoint-10"])
    assert (cut / "model" / "diffusion_pytorch_model.safetensors").read_bytes() == weights[0]
    # Another seed is another run.
    assert not finish("train_controlnet", [*arguments, "--seed", "1"])


def test_killed_training_of_the_base_on_precomputed_latents_goes_on(photographs, base, tmp_path):
    arguments = [*SMALL, "--data", photographs, "--pretrained_model_name_or_path", base, "--seed", "3"]
    arguments += ["--max_train_steps", "8", "--checkpointing_steps", "1", "--image_channel", "composite"]
    arguments += ["--precompute", "2", "--proportion_empty_prompts", "0.5", "--caption_column", "label"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    cut.mkdir()
    assert finish("train_inpainting", [*arguments, "--output", whole])
    kill_after_a_checkpoint("train_inpainting", [*arguments, "--output", cut], cut, 0.0)
    assert finish("train_inpainting", [*arguments, "--output", cut])
    expected, found = state_of(whole, 8), state_of(cut, 8)
    assert not [key for key in expected if not torch.equal(expected[key], found[key])]
    pipe = StableDiffusionHarmonizationPipeline.from_pretrained(cut / "model")
    assert pipe.config["image_channel"] == "composite"
    pipe.set_progress_bar_config(disable=True)
    harmonized = call(pipe, init="composite", guidance_scale=1.0).images[0]
    assert np.isfinite(harmonized).all() and not np.array_equal(harmonized, call(pipe).images[0])
    assert changed(cut / "model" / "unet", load_file(base / "unet" / "diffusion_pytorch_model.safetensors"))
    assert not changed(cut / "model" / "vae", load_file(base / "vae" / "diffusion_pytorch_model.safetensors"))
    # Perturbed otherwise, or of another picture, these latents are not taken.
    other = [*arguments, "--output", tmp_path / "other", "--precomputed_dir", cut / "precomputed"]
    assert finish("train_inpainting", other)
    assert not finish("train_inpainting", [*other, "--no_perturb_foreground", "--output", tmp_path / "no"])


@pytest.fixture(scope="module")
def velocity_base(tmp_path_factory):
    """A tiny base of the kind of the mini recipe: a `TinyAutoencoder`, and a U-Net that predicts velocity."""
    folder = tmp_path_factory.mktemp("velocity") / "tiny"
    torch.manual_seed(0)
    save_base(folder, vae=TinyAutoencoder(latent_channels=4, block_out_channels=(8, 8, 8, 8)))
    scheduler = folder / "scheduler" / "scheduler_config.json"
    settings = json.loads(scheduler.read_text()) | {"prediction_type": "v_prediction"}
    scheduler.write_text(json.dumps(settings))
    return folder


def test_harmonizer_recipe_resumes_and_makes_a_pipeline_that_harmonizes(photographs, velocity_base, tmp_path):
    sizes = {"BASE": str(velocity_base), "SIZE": "64", "BATCH": "2", "VARIANTS": "2", "PROCESSES": "1"}
    sizes |= {"PRECISION": "no", "WARMUP": "0"}
    recipe = ["bash", ROOT / "train" / "recipes" / "mini_harmonizer.sh", photographs]
    options = ["--num_validation_images", "2", "--checkpointing_steps", "1"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run([*recipe, whole, *options], STEPS="3", **sizes)
    assert json.loads((whole / "precomputed" / "settings.json").read_text())["perturbed"] == "decoupled"
    shutil.copytree(whole / "checkpoint-2", cut / "checkpoint-2")
    run([*recipe, cut, *options], STEPS="3", **sizes)
    expected, found = state_of(whole, 3), state_of(cut, 3)
    assert not [key for key in expected if not torch.equal(expected[key], found[key])]
    pipe = StableDiffusionHarmonizationPipeline.from_pretrained(cut / "model")
    assert pipe.config["image_channel"] == "composite" and pipe.config["average_mirrored"]
    assert pipe.config["call_defaults"] == {
        "num_inference_steps": 1,
        "guidance_scale": 1,
        "detail": "preserve",
        "context": 0.2,
    }
    # Sampling starts from pure noise at the last timestep, with any number of steps.
    assert pipe.scheduler.alphas_cumprod[-1] == 0
    pipe.scheduler.set_timesteps(1)
    assert pipe.scheduler.timesteps.tolist() == [999]
    pipe.set_progress_bar_config(disable=True)
    harmonized = call(pipe, guidance_scale=1.0, detail="preserve", num_inference_steps=4).images[0]
    assert np.isfinite(harmonized).all()


def test_pure_noise_needs_a_network_that_predicts_velocity(photographs, base, tmp_path, capfd):
    arguments = [*SMALL, "--data", photographs, "--pretrained_model_name_or_path", base]
    arguments += ["--zero_terminal_snr", "--output", tmp_path, "--max_train_steps", "1"]
    assert not finish("train_inpainting", arguments)
    assert "requires a U-Net that predicts velocity" in capfd.readouterr().err


@pytest.mark.parametrize("control_input", ["noisy_latents", "unet_input"])
def test_half_precision_trains_the_controlnet_alone(control_input, photographs, base, tmp_path):
    arguments = ["--control", "high", "--max_train_steps", "2", "--mixed_precision", "bf16", *VALIDATION]
    arguments += ["--gradient_checkpointing", "--control_input", control_input, "--half"]
    assert finish("train_controlnet", [*common(photographs, base, tmp_path), *arguments])
    channels = {"noisy_latents": 4, "unet_input": 9}[control_input]
    published = ControlNetModel.from_pretrained(tmp_path / "model")
    stored = load_file(tmp_path / "model" / "diffusion_pytorch_model.safetensors")
    assert published.config.in_channels == channels
    assert {value.dtype for value in stored.values()} == {torch.float16}
    # Zero convolutions have moved: something was learnt through the frozen decoder.
    assert published.controlnet_mid_block.weight.any()
    trained = load_file(tmp_path / "checkpoint-2" / "model" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in trained.values()} == {torch.float32}


def test_warm_up_counts_steps_of_the_optimizer(photographs, base, tmp_path):
    arguments = ["--control", "high", "--max_train_steps", "1", "--gradient_accumulation_steps", "3"]
    arguments = [*common(photographs, base, tmp_path), *arguments, "--learning_rate", "1e-2"]
    arguments += ["--lr_scheduler", "constant_with_warmup"]
    assert finish("train_controlnet", [*arguments, "--lr_warmup_steps", "4"])
    state = torch.load(tmp_path / "checkpoint-1" / "training_state.pt", weights_only=True)
    (group,) = state["optimizer"]["param_groups"]
    assert group["lr"] == pytest.approx(1e-2 / 4) and group["weight_decay"] == 1e-2


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        (["--resolution", "100"], "multiple of 64"),
        (["--captions", "a", "--caption_column", "b"], "give one"),
        (["--pixel_loss", "1.5"], "must be in [0, 1]"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(extra, told, photographs, base, tmp_path, capfd):
    arguments = [*common(photographs, base, tmp_path), "--control", "low", *extra]
    assert not finish("train_controlnet", arguments)
    assert told in capfd.readouterr().err and not list(tmp_path.glob("checkpoint-*"))


def test_conditioning_embedding_must_fit_the_autoencoder(photographs, base, tmp_path, capfd):
    arguments = [*common(photographs, base, tmp_path), "--control", "low", "--conditioning_embedding", "8"]
    assert not finish("train_controlnet", arguments)
    assert "Give 4" in capfd.readouterr().err


def test_launch_from_inside_the_folder(photographs, base, tmp_path):
    command = ["accelerate", "launch", "--cpu", "train_controlnet.py", "--control", "low"]
    run([*command, *common(photographs, base, tmp_path), "--max_train_steps", "1"], cwd=ROOT / "train")
    assert (tmp_path / "model" / "control.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shared_out", "extra"),
    [(("2", "1"), []), (("1", "2"), ["--precompute", "2"])],
    ids=["two-each", "accumulated-precomputed"],
)
def test_two_processes_equal_one(shared_out, extra, photographs, base, tmp_path):
    # With the usual epsilon of Adam, gradients that are 0 but for rounding become whole steps.
    options = ["--control", "low", "--max_train_steps", "10", "--use_ema", "--adam_epsilon", "1e-4"]
    options += ["--learning_rate", "1e-3", "--caption_column", "label", "--proportion_empty_prompts", "0.5"]
    options += ["--pixel_loss", "0.5"]
    options += extra
    script = ROOT / "train" / "train_controlnet.py"
    one = [*common(photographs, base, tmp_path / "one"), *options, "--train_batch_size", "4"]
    assert finish("train_controlnet", one)
    two = [*common(photographs, base, tmp_path / "two"), *options, "--train_batch_size", shared_out[0]]
    two += ["--gradient_accumulation_steps", shared_out[1]]
    run(["torchrun", "--nproc_per_node", "2", script, *two])
    one, two = state_of(tmp_path / "one", 10), state_of(tmp_path / "two", 10)
    one, two = (
        {key: value for key, value in state.items() if key.startswith("/weights")} for state in (one, two)
    )
    assert one.keys() == two.keys() and len(one) > 50
    for key, value in one.items():
        torch.testing.assert_close(value, two[key], rtol=0, atol=1e-5, msg=lambda text, key=key: key + text)


def share_out(config, processes, script, arguments):
    """Run a script as `accelerate launch` does with one of the files in train/configs."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    command += [ROOT / "train" / "configs" / f"{config}.yaml", "--num_processes", processes]
    # DeepSpeed is not used where accelerate is told to keep to the CPU; it does so without any GPU in sight.
    extra = {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "false"}
    run([*command, ROOT / "train" / f"{script}.py", *arguments], **extra)


@pytest.mark.slow
@pytest.mark.parametrize("config", ["fsdp", "deepspeed_zero2"])
def test_two_processes_with_a_share_of_the_states_each_equal_one(config, photographs, base, tmp_path, capfd):
    if config == "deepspeed_zero2":
        pytest.importorskip("deepspeed")
    options = [
        "--control",
        "low",
        "--max_train_steps",
        "4",
        "--use_ema",
        "--adam_epsilon",
        "1e-4",
        *VALIDATION,
    ]
    options += ["--learning_rate", "1e-3", "--caption_column", "label", "--proportion_empty_prompts", "0.5"]
    # A norm this small is always clipped, and the steps that follow are not those of unclipped gradients.
    options += ["--checkpointing_steps", "2", "--gradient_accumulation_steps", "2", "--max_grad_norm", "1e-3"]
    one = [*common(photographs, base, tmp_path / "one"), *options, "--train_batch_size", "4"]
    assert finish("train_controlnet", one)
    two = [*common(photographs, base, tmp_path / "two"), *options]
    share_out(config, 2, "train_controlnet", two)
    whole = load_file(tmp_path / "one" / "model" / "diffusion_pytorch_model.safetensors")
    before = load_file(tmp_path / "one" / "checkpoint-2" / "model" / "diffusion_pytorch_model.safetensors")
    shared = load_file(tmp_path / "two" / "model" / "diffusion_pytorch_model.safetensors")
    assert max((whole[key] - before[key]).abs().max() for key in whole) > 1e-4
    assert whole.keys() == shared.keys()
    for key, value in whole.items():
        torch.testing.assert_close(value, shared[key], rtol=0, atol=1e-6)
    assert ControlNetModel.from_pretrained(tmp_path / "two" / "model").config.in_channels == 4
    assert (tmp_path / "two" / "validation" / "step-4.png").is_file()
    # Each process has written its share of the optimizer's states, and of about the same size.
    pattern = {"fsdp": "optimizer_0/*.distcp", "deepspeed_zero2": "pytorch_model/*optim_states.pt"}[config]
    shares = [path.stat().st_size for path in (tmp_path / "two" / "checkpoint-4" / "shards").glob(pattern)]
    assert len(shares) == 2 and min(shares) > 0.7 * max(shares)

    # What was cut off after the second step goes on to the same bits; a process that holds all cannot.
    stored = (tmp_path / "two" / "model" / "diffusion_pytorch_model.safetensors").read_bytes()
    for folder in ("model", "checkpoint-4"):
        shutil.rmtree(tmp_path / "two" / folder)
    capfd.readouterr()
    assert not finish("train_controlnet", [*two, "--train_batch_size", "4"])
    assert "comes from another run: sharding" in capfd.readouterr().err
    share_out(config, 2, "train_controlnet", two)
    assert (tmp_path / "two" / "model" / "diffusion_pytorch_model.safetensors").read_bytes() == stored
    assert not list((tmp_path / "two").glob(".unfinished-*"))


@pytest.mark.parametrize("config", ["fsdp", pytest.param("deepspeed_zero2", marks=pytest.mark.slow)])
def test_base_trains_in_shares_at_half_precision(config, photographs, base, tmp_path):
    if config == "deepspeed_zero2":
        pytest.importorskip("deepspeed")
    arguments = [*SMALL, "--data", photographs, "--pretrained_model_name_or_path", base, "--precompute", "1"]
    arguments += ["--max_train_steps", "2", "--mixed_precision", "bf16", "--gradient_checkpointing"]
    share_out(config, 2, "train_inpainting", [*arguments, *VALIDATION, "--output", tmp_path])
    pipe = StableDiffusionHarmonizationPipeline.from_pretrained(tmp_path / "model")
    pipe.set_progress_bar_config(disable=True)
    assert np.isfinite(call(pipe).images[0]).all()
    assert changed(
        tmp_path / "model" / "unet", load_file(base / "unet" / "diffusion_pytorch_model.safetensors")
    )


def test_numbers_of_recipes_are_those_of_the_paper():
    for role, perturbed in (("high", False), ("low", False)):
        text = (ROOT / "train" / "recipes" / f"sd2_dual_{role}.sh").read_text()
        expected = {
            "control": role,
            "learning_rate": "1e-6",
            "adam_weight_decay": "0.01",
            "control_scale": "1",
        }
        expected |= {"lr_warmup_steps": "10000", "resolution": "512", "lr_scheduler": "constant_with_warmup"}
        for flag, value in expected.items():
            assert re.search(rf"--{flag} {re.escape(value)}( \\)?$", text, re.MULTILINE), flag
        numbers = [
            int(re.search(rf"--{flag} (\d+)", text)[1])
            for flag in ("num_processes", "train_batch_size", "gradient_accumulation_steps")
        ]
        assert np.prod(numbers) == 64
        assert ("--no_perturb_foreground" not in text) == perturbed
        assert re.search(r"^# Not run", text, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("role", ["high", "low"])
def test_recipe_runs_two_steps(role, photographs, base, tmp_path):
    extra = [*common(photographs, base, tmp_path), "--max_train_steps", "2", "--mixed_precision", "no"]
    extra += [
        "--gradient_accumulation_steps",
        "1",
        "--dataloader_num_workers",
        "0",
        "--caption_column",
        "label",
    ]
    recipe = ROOT / "train" / "recipes" / f"sd2_dual_{role}.sh"
    run(["bash", recipe, *extra], LAUNCH_FLAGS="--cpu --num_processes 1")
    assert ControlNetModel.from_pretrained(tmp_path / "model").config.in_channels == 4


@pytest.mark.slow
def test_mini_recipe_trains_its_models_and_makes_tables(shared, tmp_path):
    photographs = save_photographs(tmp_path / "photographs", tested=4)
    benchmark = tmp_path / "benchmark" / "HCOCO"
    for folder in ("composite_images", "masks", "real_images"):
        (benchmark / folder).mkdir(parents=True)
    for kind, suffix in (("composite_images", "_1_1"), ("real_images", "")):
        shutil.copy(photographs / "made" / "9.jpg", benchmark / kind / f"a{suffix}.jpg")
    shutil.copy(photographs / "made" / "9.png", benchmark / "masks" / "a_1.png")
    (benchmark / "HCOCO_test.txt").write_text("a_1_1.jpg\n")
    sizes = {
        "BASE_STEPS": "1",
        "CONTROL_STEPS": "1",
        "LOW_STEPS": "1",
        "EDGE_STEPS": "2",
        "BATCH": "2",
        "SIZE": "64",
        "SAMPLING_STEPS": "1",
    }
    sizes |= {"SCALES": "1.0", "PERTURBED_SCALES": "1.0", "VARIANTS": "1", "TRAIN_LIMIT": "2"}
    sizes |= {"BENCHMARK": str(tmp_path / "benchmark"), "DETAILS": "preserve"}
    command = ["bash", ROOT / "train" / "recipes" / "mini_dual_controlnet.sh", photographs]
    command += [shared / "weights" / "taef2" / "taef2.safetensors", tmp_path / "mini"]
    run(command, **sizes)
    made = tmp_path / "mini" / "eval"
    tables = (made / "tables" / "tables.md").read_text()
    assert all(f"| {name} | pasted, whole | 4 |" in tables for name in ("text", "high", "low", "both"))
    assert "KID" in tables and "not run" not in (made / "sweep" / "sweep.md").read_text()
    less = json.loads((made / "tables" / "fid_raw.json").read_text())["less"]
    assert [*less] == ["high/raw", "low/raw", "text/raw"] and less["text/raw"]["images"] == 4
    for table in ("perturbed", "benchmark"):
        text = (made / "tables" / table / "tables.md").read_text()
        assert all(f"{name}-1.0-preserve" in text and "identity" in text for name in ("plain", "perturbed"))
    pipe = StableDiffusionHarmonizationPipeline.from_pretrained(tmp_path / "mini" / "perturbed")
    assert pipe.vae.config.latent_channels == 32 and pipe.config["working_size"] == 64


def parsed(*arguments):
    parser = argparse.ArgumentParser()
    add_arguments(parser, learning_rate=1e-3)
    args = parser.parse_args(["--data", "photographs", *arguments])
    check_arguments(parser, args)
    return args


def test_what_is_not_said_is_what_diffusers_takes(monkeypatch, tmp_path):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    args = parsed("--output", str(tmp_path / "cats"))
    assert args.mixed_precision == "no" and args.hub_model_id == "cats"
    assert parsed("--output", "out", "--hub_model_id", "someone/cats").hub_model_id == "someone/cats"
    # As `accelerate launch --mixed_precision bf16` and its configuration files hand it over.
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert parsed("--output", "out").mixed_precision == "bf16"
    assert parsed("--output", "out", "--mixed_precision", "no").mixed_precision == "no"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    with pytest.raises(SystemExit):
        parsed("--output", "out")


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_learning_rates_are_those_of_diffusers_but_for_the_step_at_zero(schedule):
    args = parsed("--output", "out", "--lr_scheduler", schedule, "--lr_warmup_steps", "4")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    theirs = get_scheduler(schedule, optimizer, num_warmup_steps=4, num_training_steps=12)
    for step in range(12):
        expected = theirs.get_last_lr()[0]
        if schedule != "constant" and step < 4:  # theirs warms up from 0, and takes a first step of none
            expected = 1e-3 * (step + 1) / 4
        assert learning_rate(args, step, 12) == pytest.approx(expected)
        optimizer.step()
        theirs.step()


def test_autoencoder_stays_in_single_precision_beside_float16():
    models = random_components("tiny")
    freeze(models, ("unet", "vae", "text_encoder"), torch.device("cpu"), "fp16")
    assert [models[name].dtype for name in ("unet", "text_encoder")] == [torch.float16] * 2
    assert models["vae"].dtype == torch.float32
    freeze(models, ("vae",), torch.device("cpu"), "bf16")
    assert models["vae"].dtype == torch.bfloat16


def test_validation_pictures_come_from_seeds_that_stay(photographs, base, tmp_path):
    arguments = [*common(photographs, base, tmp_path), "--control", "high", "--max_train_steps", "2"]
    assert finish(
        "train_controlnet", [*arguments, "--learning_rate", "0", "--validation_steps", "1", *VALIDATION]
    )
    first, second = ((tmp_path / "validation" / f"step-{step}.png").read_bytes() for step in (1, 2))
    assert first == second


def test_validation_pictures_reach_tensorboard(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    board = Reporter(tmp_path, "tensorboard")
    sheet = torch.linspace(0, 1, 3 * 8 * 32).reshape(3, 8, 32)
    board.pictures(sheet, 7)
    board.scalars({"validation/psnr": 20.0}, 7)
    board.board.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (picture,) = events.Images("validation")
    (score,) = events.Scalars("validation/psnr")
    pixels = np.asarray(Image.open(io.BytesIO(picture.encoded_image_string)))
    assert picture.step == score.step == 7 and score.value == 20
    assert np.array_equal(pixels, np.asarray(Image.open(tmp_path / "validation" / "step-7.png")))


@pytest.fixture
def hub():
    server = FakeHub()
    yield server
    server.close()


def test_controlnet_is_pushed_with_its_card(hub, photographs, base, tmp_path):
    output = tmp_path / "cats-low"
    arguments = [*common(photographs, base, output), "--control", "low", "--max_train_steps", "1"]
    own = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    own |= {"HF_TOKEN": "hf_test", "HF_HUB_DISABLE_XET": "1"}
    run([sys.executable, ROOT / "train" / "train_controlnet.py", *arguments, "--push_to_hub"], **own)
    ((_, received),) = hub.repositories["someone/cats-low"]
    expected = {path.name: path.read_bytes() for path in (output / "model").iterdir()}
    assert received == expected and len(expected) == 4
    assert any(path.endswith("/info/lfs/objects/batch") for _, path in hub.requests)


def test_8_bit_adam_is_used_or_asked_for():
    args = parsed("--output", "out", "--use_8bit_adam")
    weight = torch.nn.Parameter(torch.zeros(3))
    if importlib.util.find_spec("bitsandbytes") is not None:
        assert type(build_optimizer([weight], args)).__name__ == "AdamW8bit"
        return
    with pytest.raises(MissingDependencyError, match=r"harmony-diffusion\[8bit\]"):
        build_optimizer([weight], args)


def test_settings_that_must_stay_are_flags():
    own, shared = (
        (ROOT / "harmony_diffusion" / "training" / f"{name}.py").read_text()
        for name in ("diffusion_run", "arguments")
    )
    text = own + shared
    flags = re.findall(r'add\(\s*"--(\w+)"', text)
    fixed = re.search(r"^FIXED = \((.*?)^\)", text, re.MULTILINE | re.DOTALL)
    assert len(flags) == len(set(flags)) and set(re.findall(r'"(\w+)"', fixed[1])) <= set(flags)
