"""`train_discriminative.py`: every recipe runs, and a run that was killed or shared out ends the same."""

import csv
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_training import environment, flatten, read_state, run
from tiny_training import fork as fork_script
from tiny_training import kill_after_a_checkpoint as kill_script_after_a_checkpoint

from harmony_diffusion.models import create_model, load_model
from harmony_diffusion.models.imrsf_dam_gct import IMRSFDAMGCT

ROOT = Path(__file__).resolve().parents[2]
fork = partial(fork_script, "train_discriminative")
kill_after_a_checkpoint = partial(kill_script_after_a_checkpoint, "train_discriminative")
SCRIPT = ROOT / "train" / "train_discriminative.py"
RECIPES = sorted(
    path.stem
    for path in (ROOT / "train" / "recipes").glob("*.sh")
    if "train_discriminative.py" in path.read_text()
)
SMALL_IDIH = ["--model", "idih", "--model_config", '{"depth": 4, "base_channels": 8}']
SMALL_VIT = ["--model", "pct_net_vit", "--model_config", '{"thumbnail_size": 32}', "--smoothness", "0.1"]
MUON = ["--optimizer", "muon", "--muon_layers", "backbone.layers.", "--learning_rate", "1e-4"]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Nine photographs of the split train and three of val, with masks."""
    root = tmp_path_factory.mktemp("photographs")
    (root / "made").mkdir()
    generator = np.random.default_rng(0)
    rows = []
    for number in range(12):
        coarse = Image.fromarray(generator.integers(0, 256, (6, 7, 3), dtype=np.uint8))
        coarse.resize((84, 72), Image.Resampling.BICUBIC).save(root / "made" / f"{number}.jpg")
        mask = np.zeros((72, 84), np.uint8)
        mask[16:56, 14 + number : 60 + number] = 255
        Image.fromarray(mask).save(root / "made" / f"{number}.png")
        rows.append({"source": "made", "id": str(number), "split": "val" if number >= 9 else "train"})
    with (root / "index.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return root


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Six composites in the layout of iHarmony4."""
    root = tmp_path_factory.mktemp("iharmony4")
    generator = np.random.default_rng(1)
    folders = [root / "HMade" / name for name in ("composite_images", "masks", "real_images")]
    for folder in folders:
        folder.mkdir(parents=True)
    names = [f"d{number}_1_1.jpg" for number in range(6)]
    for name in names:
        real = Image.fromarray(generator.integers(0, 256, (6, 7, 3), dtype=np.uint8)).resize((84, 72))
        mask = np.zeros((72, 84), np.uint8)
        mask[20:60, 20:50] = 255
        dark = Image.fromarray((np.asarray(real) * 0.7).astype(np.uint8))
        Image.composite(dark, real, Image.fromarray(mask)).save(folders[0] / name)
        Image.fromarray(mask).save(folders[1] / f"{name[:-6]}.png")
        real.save(folders[2] / f"{name[:-8]}.jpg")
    (root / "HMade" / "HMade_train.txt").write_text("\n".join(names))
    return root


@pytest.mark.parametrize(
    ("model", "workers"),
    [([*SMALL_VIT, *MUON], 0), (SMALL_IDIH, 2)],
    ids=["vit-muon-0-workers", "idih-2-workers"],
)
def test_killed_run_ends_with_the_same_bits(model, workers, photographs, tmp_path):
    common = [*model, "--data", photographs, "--resolution", "64", "--train_batch_size", "2"]
    common += ["--max_train_steps", "24", "--checkpointing_steps", "1", "--use_ema"]
    common += ["--gradient_accumulation_steps", "2", "--lr_scheduler", "cosine"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    cut.mkdir()
    child = fork([*common, "--output", whole])
    assert os.waitpid(child, 0)[1] == 0
    arguments = [*common, "--output", cut, "--dataloader_num_workers", workers]
    for pause in (0.0, 0.03, 0.11):
        kill_after_a_checkpoint(arguments, cut, pause)
    assert os.waitpid(fork(arguments), 0)[1] == 0
    expected, found = (dict(flatten(read_state(folder, 24))) for folder in (whole, cut))
    assert expected.keys() == found.keys() and len(expected) > 100
    assert not [key for key in expected if not torch.equal(expected[key], found[key])]
    weights = [
        (folder / "model" / "diffusion_pytorch_model.safetensors").read_bytes() for folder in (whole, cut)
    ]
    assert weights[0] == weights[1]
    assert len(list(cut.glob("checkpoint-*"))) == 3 and not list(cut.glob(".unfinished-*"))


def test_other_seed_gives_other_weights_and_other_settings_are_refused(photographs, tmp_path):
    common = [*SMALL_IDIH, "--data", photographs, "--resolution", "64", "--train_batch_size", "2"]
    for seed in (0, 1):
        arguments = [*common, "--max_train_steps", "1", "--seed", seed, "--output", tmp_path / str(seed)]
        assert os.waitpid(fork(arguments), 0)[1] == 0
    first, second = (read_state(tmp_path / str(seed), 1)["optimizer"] for seed in (0, 1))
    assert not torch.equal(first["state"][0]["exp_avg"], second["state"][0]["exp_avg"])
    arguments = [*common, "--max_train_steps", "2", "--seed", "2", "--output", tmp_path / "0"]
    failed = subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)], env=environment(), capture_output=True, text=True
    )
    assert failed.returncode != 0 and "seed 0 there and 2 here" in failed.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "shared_out"),
    [
        ([*SMALL_IDIH, "--sync_batch_norm"], ["2", "1"]),
        (["--model", "hdnet", "--model_config", '{"base_channels": 4}'], ["1", "2"]),
    ],
    ids=["idih", "hdnet-accumulated"],
)
def test_two_processes_equal_one(model, shared_out, photographs, tmp_path):
    # With the usual epsilon of Adam, gradients that are 0 but for rounding, such as those of biases ahead of
    # a batch norm, become whole steps.
    common = [*model, "--data", photographs, "--resolution", "64", "--max_train_steps", "20", "--use_ema"]
    common += ["--adam_epsilon", "1e-4", "--max_grad_norm", "1"]
    one = [sys.executable, SCRIPT, *common, "--train_batch_size", "4", "--output", tmp_path / "one"]
    run([*map(str, one)])
    batch, accumulation = shared_out
    two = ["torchrun", "--nproc_per_node", "2", SCRIPT, *common, "--output", tmp_path / "two"]
    two += ["--train_batch_size", batch, "--gradient_accumulation_steps", accumulation]
    run([*map(str, two)])
    one, two = (dict(flatten(read_state(tmp_path / name, 20)["weights"])) for name in ("one", "two"))
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(
            value, two[key], rtol=0, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}"
        )


@pytest.mark.slow
def test_two_processes_that_were_cut_off_end_with_the_same_bits(photographs, tmp_path):
    command = ["torchrun", "--nproc_per_node", "2", SCRIPT, *SMALL_IDIH, "--data", photographs, "--use_ema"]
    command += ["--resolution", "64", "--train_batch_size", "2", "--max_train_steps", "4"]
    command += ["--checkpointing_steps", "2", "--gradient_accumulation_steps", "2", "--output", tmp_path]
    run([*map(str, command)])
    expected = dict(flatten(read_state(tmp_path, 4)))
    weights = tmp_path / "model" / "diffusion_pytorch_model.safetensors"
    published = weights.read_bytes()
    for folder in ("model", "checkpoint-4"):
        shutil.rmtree(tmp_path / folder)
    run([*map(str, command)])
    found = dict(flatten(read_state(tmp_path, 4)))
    assert expected.keys() == found.keys() and len(expected) > 50
    assert not [key for key in expected if not torch.equal(expected[key], found[key])]
    assert weights.read_bytes() == published


@pytest.mark.slow
def test_killed_launch_goes_on(photographs, tmp_path):
    command = ["accelerate", "launch", "--cpu", SCRIPT, *SMALL_IDIH, "--data", photographs]
    command += ["--resolution", "64", "--train_batch_size", "2", "--max_train_steps", "2000"]
    command += ["--checkpointing_steps", "5", "--output", tmp_path]
    launched = subprocess.Popen(
        [*map(str, command)], env=environment(), cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True
    )
    while not list(tmp_path.glob("checkpoint-*")):
        assert launched.poll() is None
        time.sleep(0.1)
    os.killpg(launched.pid, signal.SIGKILL)
    launched.wait()
    reached = max(int(path.name.split("-")[1]) for path in tmp_path.glob("checkpoint-*"))
    run([*map(str, command), "--max_train_steps", str(reached + 5)])
    assert (tmp_path / f"checkpoint-{reached + 5}").is_dir() and load_model(tmp_path / "model")


def test_launch_leaves_checkpoint_model_card_and_pictures(pairs, tmp_path):
    command = ["accelerate", "launch", "--cpu", SCRIPT, *SMALL_IDIH, "--data", pairs, "--output", tmp_path]
    command += ["--resolution", "64", "--train_batch_size", "2", "--max_train_steps", "5"]
    command += ["--validation_split", "train", "--num_validation_images", "3", "--validation_steps", "3"]
    command += ["--mixed_precision", "bf16", "--clean_background", "--gradient_checkpointing"]
    log = run([*map(str, command), "--profile_steps", "2", "--optimizer", "adamw"])
    assert re.search(r"profile of 2 steps: data [\d.]+ %, transfer and augmentation [\d.]+ %, model", log)
    assert "images/s" in log
    assert {path.name for path in (tmp_path / "validation").iterdir()} == {"step-3.png", "step-5.png"}
    assert Image.open(tmp_path / "validation" / "step-5.png").size == (4 * 64, 3 * 64)
    composite, mask = torch.rand(1, 3, 64, 64), torch.ones(1, 1, 64, 64)
    for folder in (tmp_path / "checkpoint-5" / "model", tmp_path / "model"):
        with torch.no_grad():
            assert torch.isfinite(load_model(folder)(composite, mask)).all()
    card = (tmp_path / "model" / "README.md").read_text()
    assert "composite_psnr" in card and str(pairs.parent) not in card


def test_bad_samples_are_skipped_or_stop_the_run(photographs, tmp_path):
    copy = tmp_path / "data"
    (copy / "made").mkdir(parents=True)
    for path in [*photographs.glob("made/*"), photographs / "index.csv"]:
        (copy / path.relative_to(photographs)).write_bytes(path.read_bytes())
    broken = copy / "made" / "3.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    common = [*SMALL_IDIH, "--data", copy, "--resolution", "64", "--train_batch_size", "3"]
    common += ["--max_train_steps", "3"]
    command = [sys.executable, SCRIPT, *common, "--output", tmp_path / "stop"]
    stopped = subprocess.run([*map(str, command)], env=environment(), capture_output=True, text=True)
    assert stopped.returncode != 0 and "3.jpg" in stopped.stderr
    arguments = [*common, "--output", tmp_path / "skip", "--bad_samples", "skip"]
    assert os.waitpid(fork(arguments), 0)[1] == 0
    assert load_model(tmp_path / "skip" / "model")


def test_faults_of_lists_and_shared_validation_data_are_told(pairs, tmp_path):
    folder = pairs / "HMade"
    lines = []
    for number in range(4):
        entry = {
            "composite": str(folder / "composite_images" / f"d{number}_1_1.jpg"),
            "mask": str(folder / "masks" / f"d{number}_1.png"),
            "real": str(folder / "real_images" / f"d{number if number else 'none'}.jpg"),
        }
        lines.append(json.dumps(entry))
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    command = [sys.executable, SCRIPT, *SMALL_IDIH, "--data", tmp_path / "pairs.jsonl"]
    command += ["--resolution", "64", "--train_batch_size", "2", "--max_train_steps", "1"]
    command += ["--bad_samples", "skip", "--validation_split", "val", "--output", tmp_path / "out"]
    log = run([*map(str, command)])
    assert "1 faults in the list" in log and "dnone.jpg: is missing" in log
    assert "3 of the 3 pictures to validate on are trained on, too" in log
    assert "- faults in the list, passed over: 1" in (tmp_path / "out" / "model" / "README.md").read_text()


def test_filters_add_up(photographs, tmp_path):
    arguments = [*SMALL_IDIH, "--data", photographs, "--resolution", "64", "--train_batch_size", "2"]
    arguments += ["--filter", "source=made", "--filter", "id=0,1,2,11", "--max_train_steps", "1"]
    assert os.waitpid(fork([*arguments, "--output", tmp_path]), 0)[1] == 0
    assert "- samples: 3\n" in (tmp_path / "model" / "README.md").read_text()


def test_split_to_train_on_is_chosen(photographs, tmp_path):
    arguments = [*SMALL_IDIH, "--data", photographs, "--resolution", "64", "--train_batch_size", "2"]
    arguments += ["--split", "val", "--max_train_steps", "1", "--output", tmp_path]
    assert os.waitpid(fork(arguments), 0)[1] == 0
    assert "- samples: 3\n" in (tmp_path / "model" / "README.md").read_text()


def test_checkpoint_of_version_0_1_0_goes_on_with_the_same_bits(photographs, tmp_path):
    arguments = [*SMALL_IDIH, "--data", photographs, "--resolution", "64", "--train_batch_size", "2"]
    arguments += ["--max_train_steps", "2", "--checkpointing_steps", "1", "--use_ema", "--output", tmp_path]
    assert os.waitpid(fork(arguments), 0)[1] == 0
    expected = dict(flatten(read_state(tmp_path, 2)))
    shutil.rmtree(tmp_path / "checkpoint-2")
    # Exactly what version 0.1.0 wrote for this command.
    settings = {
        "model": "idih", "model_config": {"depth": 4, "base_channels": 8}, "freeze": [], "loss": "fn_mse",
        "min_area": 100.0, "raw_output": False, "loss_stride": 1, "smoothness": 0.0,
        "clean_background": False, "split": "train", "filter": [], "subset_power": 1.0, "resolution": 64,
        "whole_frames": 0.35, "quarter_turns": False, "seed": 0, "optimizer": "adam", "learning_rate": 0.001,
        "backbone_lr_factor": 1.0, "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_weight_decay": 0.0,
        "adam_epsilon": 1e-08, "max_grad_norm": 0.0, "lr_scheduler": "constant", "lr_warmup_steps": 0,
        "lr_milestones": [], "lr_gamma": 0.1, "lr_constant_epochs": 0, "use_ema": True, "ema_decay": 0.9995,
        "mixed_precision": "no", "samples": 9, "batch": 2,
    }  # fmt: skip
    state = read_state(tmp_path, 1)
    torch.save(state | {"settings": settings}, tmp_path / "checkpoint-1" / "training_state.pt")
    assert os.waitpid(fork(arguments), 0)[1] == 0
    found = dict(flatten(read_state(tmp_path, 2)))
    assert expected.keys() == found.keys()
    assert not [key for key in expected if not torch.equal(expected[key], found[key])]
    # Other betas cannot be continued, since no flag sets them.
    settings["adam_beta1"] = 0.5
    torch.save(state | {"settings": settings}, tmp_path / "checkpoint-1" / "training_state.pt")
    shutil.rmtree(tmp_path / "checkpoint-2")
    assert os.waitpid(fork(arguments), 0)[1] != 0


def test_numbers_of_recipes_are_those_of_the_papers():
    expected = {
        "color_grid": ("6e-4", "100", "32", None, None),
        "harmonizer": ("3e-4", "60", "16", "25 50", "0.1"),
        "harmonizer_lite": ("5e-4", "60", "16", None, None),
        "hdnet": ("1e-3", "120", "12", "100 110", "0.1"),
        "gknet": ("1e-4", "120", "16", "105 115", "0.1"),
        "imrsf_dam_gct": ("1e-3", "120", "16", "55 81 105 115", "0.5"),
        "idih": ("1e-3", "120", "16", "105 115", "0.1"),
        "pct_net": ("1e-3", "180", "16", "160 175", "0.1"),
    }
    assert set(RECIPES) == set(expected)
    for name, numbers in expected.items():
        text = (ROOT / "train" / "recipes" / f"{name}.sh").read_text()
        flags = ("learning_rate", "num_train_epochs", "train_batch_size", "lr_milestones", "lr_gamma")
        for flag, value in zip(flags, numbers, strict=True):
            assert value is None or re.search(rf"--{flag} {re.escape(value)}( \\)?$", text, re.MULTILINE), (
                name,
                flag,
            )
        assert re.search(r"^# (Run|Not run)", text, re.MULTILINE | re.IGNORECASE), name


QUICK = ("color_grid", "harmonizer")
SMALL = {
    "color_grid": '{"encoder_size": 64}',
    "gknet": '{"lre_layers": 1, "base_channels": 8}',
    "hdnet": '{"base_channels": 4}',
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in RECIPES]
)
def test_recipe_runs_two_steps(name, photographs, pairs, tmp_path):
    data = photographs if name in ("harmonizer", "harmonizer_lite", "color_grid") else pairs
    # Later flags win over those of the recipe.
    extra = ["--data", data, "--output", tmp_path, "--max_train_steps", "2", "--train_batch_size", "2"]
    extra += ["--resolution", "64", "--dataloader_num_workers", "0", "--mixed_precision", "no"]
    if name in SMALL:
        extra += ["--model_config", SMALL[name]]
    run(["bash", f"train/recipes/{name}.sh", *map(str, extra)], LAUNCH_FLAGS="--cpu")
    composite, mask = torch.rand(1, 3, 64, 64), torch.ones(1, 1, 64, 64)
    with torch.no_grad():
        assert torch.isfinite(load_model(tmp_path / "checkpoint-2" / "model")(composite, mask)).all()
    steps = [state["step"] for state in read_state(tmp_path, 2)["optimizer"]["state"].values()]
    assert steps and set(map(int, steps)) == {2}


def test_frozen_parameters_stay_and_the_encoder_moves_less(photographs, tmp_path):
    arguments = ["--model", "color_grid", "--model_config", '{"encoder_size": 64}', "--data", photographs]
    arguments += ["--resolution", "64", "--train_batch_size", "2", "--channels_last"]
    arguments += [
        "--loss",
        "fn_rmse",
        "--loss_stride",
        "2",
        "--freeze",
        "backbone.stem.",
        "backbone.blocks.0.",
    ]
    arguments += ["--backbone_lr_factor", "0.01", "--learning_rate", "1e-2", "--output", tmp_path]
    # The heads start at zero, so the first step moves them alone, and the second the rest.
    arguments += ["--max_train_steps", "2", "--checkpointing_steps", "1", "--half"]
    assert os.waitpid(fork(arguments), 0)[1] == 0
    first, second = (load_model(tmp_path / f"checkpoint-{step}" / "model").state_dict() for step in (1, 2))
    moved = {name: (second[name] - first[name]).abs().max().item() for name in first}
    frozen = [name for name in moved if name.startswith(("backbone.stem.", "backbone.blocks.0."))]
    assert frozen and not any(moved[name] for name in frozen)
    # A step of Adam is at most about the learning rate.
    assert 0 < moved["backbone.blocks.15.project.conv.weight"] < 2e-4
    assert moved["embed.weight"] > 2e-3
    published = load_file(tmp_path / "model" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in published.values()} == {torch.float16}
    loaded = load_model(tmp_path / "model").state_dict()
    assert all(torch.equal(loaded[name], value.float()) for name, value in published.items())


def test_weights_to_start_from_are_those_of_the_model(photographs, tmp_path):
    config = {"dam": False, "gct": True, "i_structure": False}
    idih = create_model("idih")
    idih.save_pretrained(tmp_path / "idih")
    common = ["--data", photographs, "--resolution", "64", "--train_batch_size", "2", "--learning_rate", "0"]
    common += [
        "--max_train_steps",
        "1",
        "--pretrained_model",
        tmp_path / "idih",
        "--output",
        tmp_path / "out",
    ]
    arguments = [*common, "--model", "imrsf_dam_gct", "--model_config", json.dumps(config)]
    assert os.waitpid(fork(arguments), 0)[1] == 0
    loaded = load_model(tmp_path / "out" / "model")
    assert isinstance(loaded, IMRSFDAMGCT) and loaded.config["gct"]
    torch.testing.assert_close(loaded.to_rgb.weight, idih.to_rgb.weight, rtol=0, atol=0)
    refused = {
        "holds weights of IDIH, --model is hdnet": ["--model", "hdnet"],
        "model_config: is that of the weights": ["--model", "idih", "--model_config", '{"depth": 4}'],
    }
    for message, options in refused.items():
        command = [sys.executable, SCRIPT, *common[:-1], tmp_path / "no", *options]
        failed = subprocess.run([*map(str, command)], env=environment(), capture_output=True, text=True)
        assert failed.returncode != 0 and message in failed.stderr
        assert "Traceback" not in failed.stderr


def test_a_model_that_is_its_own_teacher_has_nothing_to_learn(photographs, tmp_path):
    torch.manual_seed(0)
    model = create_model("color_grid", encoder_size=64, border_dropout=0.0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)  # the heads start at zero
    model.save_pretrained(tmp_path / "given")
    common = ["--model", "color_grid", "--pretrained_model", tmp_path / "given", "--data", photographs]
    common += [
        "--resolution",
        "64",
        "--train_batch_size",
        "2",
        "--max_train_steps",
        "1",
        "--logging_steps",
        "1",
    ]
    errors = {}
    for name, teachers in (("photographs", []), ("taught", ["--teachers", tmp_path / "given"])):
        output = tmp_path / name
        done = subprocess.run(
            [sys.executable, SCRIPT, *map(str, [*common, *teachers, "--output", output])],
            env=environment(),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        errors[name] = float(re.findall(r"fn_mse=([\d.e-]+)", done.stderr)[-1])
    assert errors["taught"] < 1e-6 < 1e-4 < errors["photographs"]
    assert "- teachers: given" in (tmp_path / "taught" / "model" / "README.md").read_text()


def test_settings_that_must_stay_are_flags():
    shared = (ROOT / "harmony_diffusion" / "training" / "arguments.py").read_text()
    flags = re.findall(r'add\(\s*"--(\w+)"', SCRIPT.read_text() + shared)
    fixed = re.search(r"^FIXED = \((.*?)^\)", SCRIPT.read_text(), re.MULTILINE | re.DOTALL)
    assert len(flags) == len(set(flags)) and set(re.findall(r'"(\w+)"', fixed[1])) <= set(flags)


@pytest.mark.parametrize("installed", [True, False])
def test_tensorboard_is_written_or_asked_for(installed, photographs, tmp_path):
    if (importlib.util.find_spec("tensorboard") is not None) != installed:
        pytest.skip("tensorboard is " + ("absent" if installed else "installed"))
    arguments = [*SMALL_IDIH, "--data", photographs, "--resolution", "64", "--train_batch_size", "2"]
    arguments += ["--max_train_steps", "1", "--logging_steps", "1", "--report_to", "tensorboard"]
    arguments += ["--validation_split", "val", "--num_validation_images", "2", "--output", tmp_path]
    status = os.waitpid(fork(arguments), 0)[1]
    assert (status == 0) == installed
    assert len(list(tmp_path.glob("tensorboard/events*"))) == installed


@pytest.mark.slow
def test_compiled_run_takes_a_step(photographs, tmp_path):
    command = [sys.executable, SCRIPT, *SMALL_IDIH, "--data", photographs, "--output", tmp_path]
    command += ["--resolution", "64", "--train_batch_size", "2", "--max_train_steps", "1", "--compile"]
    run([*map(str, command)])
    assert load_model(tmp_path / "model")
