"""The commands of docs/stable_diffusion.md, on random weights of the published size, for one step each."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_blip import save_tiny_blip
from tiny_open_images import WHOLE, save_open_images
from tiny_training import ROOT, environment

from harmony_diffusion.diffusion.random_weights import random_components
from harmony_diffusion.pipelines.stable_diffusion import StableDiffusionHarmonizationPipeline

PAGE = ROOT / "docs" / "stable_diffusion.md"
# What makes each command short; later flags win.
CAPTIONS = ["--captioner", "blip", "--max_new_tokens", "4", "--workers", "0", "--device", "cpu"]
TRAINING = ["--gradient_accumulation_steps", "1", "--train_batch_size", "1", "--max_train_steps", "1"]
TRAINING += ["--dataloader_num_workers", "0", "--checkpointing_steps", "1000", "--half"]
EVALUATION = ["--device", "cpu", "--steps", "1", "--batch_size", "1", "--extractor_size", "32"]


def commands():
    """Return the commands of the page that are not about downloads, by section, without line breaks."""
    text = PAGE.read_text("utf-8")
    blocks = re.findall(r"^## (\d)\..*?^```bash\n(.*?)^```", text, flags=re.S | re.M)
    return {int(number): block.strip().splitlines() for number, block in blocks}


def shortened(command):
    """Return a command with the flags that limit it to one step on a CPU."""
    if "prepare_captions" in command:
        return " ".join([command, *CAPTIONS])
    if "train/recipes" in command:
        return " ".join([command.replace("--num_processes 1", "--cpu --num_processes 1"), *TRAINING])
    return " ".join([command, *EVALUATION]) if "eval_controlnets" in command else command


def test_page_has_a_command_for_every_stage():
    found = commands()
    assert sorted(found) == [1, 2, 3, 4, 5, 6]
    assert [re.search(r"sd2_dual_(\w+)", command)[1] for command in found[4]] == ["high", "low"]
    outputs = [re.search(r"--output (\S+)", command)[1] for command in found[6]]
    assert outputs == [f"outputs/{name}" for name in ("sd", "pbe", "edges", "both", "tables")]
    for command in sum(found.values(), []):
        for script in re.findall(r"(?:train|eval)/\S+\.(?:py|sh)", command):
            assert (ROOT / script).is_file(), script


@pytest.fixture
def place(tmp_path):
    """A folder with random weights of the published size, tiny Open Images, and the scripts."""
    for name in ("train", "eval"):
        (tmp_path / name).symlink_to(ROOT / name)
    for split, first in (("train", "0"), ("test", "5")):
        names = [f"{first}{number:015x}" for number in (1, 2)]
        objects = [(name, "m01yrx", "1", WHOLE, "0.9", "000", "0.0", "disc") for name in names]
        save_open_images(tmp_path / "OPEN_IMAGES", split, objects)
        folder = tmp_path / "OPEN_IMAGES" / split
        folder.mkdir()
        for seed, name in enumerate(names):
            pixels = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)
            Image.fromarray(pixels).resize((640, 480), Image.Resampling.BICUBIC).save(folder / f"{name}.jpg")
    save_tiny_blip(tmp_path / "blip")
    # In half precision on the disk, as the published weights are offered.
    components = random_components("full", dtype=torch.float16)
    components |= {"controlnet_high": None, "controlnet_low": None}
    StableDiffusionHarmonizationPipeline(**components).save_pretrained(tmp_path / "sd2")
    del components

    class Colors(torch.nn.Module):
        def forward(self, images):
            return torch.cat([images.mean((2, 3)), images.std((2, 3))], 1)

    torch.jit.save(torch.jit.script(Colors()), str(tmp_path / "inception.pt"))
    yield tmp_path
    shutil.rmtree(tmp_path / "sd2")
    shutil.rmtree(tmp_path / "outputs", ignore_errors=True)


@pytest.mark.slow
def test_commands_of_the_page_run_one_step_at_the_published_size(place):
    """`pytest -rP` shows time and memory of each command; the files need 20 GB of disk space."""
    scripts = Path(sys.executable).parent
    variables = environment() | {
        "HARMONY_SD2_INPAINTING": str(place / "sd2"),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"),
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
    }
    steps = commands()
    data = "python train/prepare_open_images.py --data OPEN_IMAGES --workers 0 --split"
    select = [command for command in steps[2] if "data select" in command]
    prepare = [f"{data} train --shards 0", f"{select[0]} --count 2", f"{data} test --shards 5 --ids ids.txt"]
    # Paint by Example needs other weights, which are not made here.
    evaluation = [
        command.replace("outputs/pbe/rows.csv ", "")
        for command in steps[6]
        if "paint-by-example" not in command
    ]
    for command in [*prepare, *steps[3], *steps[4], *steps[5], *evaluation]:
        begin = time.perf_counter()
        program = MEASURE.format(command=shortened(command))
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=place, env=variables, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-1000:]}{done.stderr[-3000:]}"
        gib = float(done.stdout.splitlines()[-1])
        print(f"{time.perf_counter() - begin:.0f} s, {gib:.1f} GiB: {command}", flush=True)
        assert gib < 24
    pipe = StableDiffusionHarmonizationPipeline.load_config(place / "outputs" / "pipeline")
    assert pipe["controlnet_high"][1] == pipe["controlnet_low"][1] == "ControlNetModel"
    table = (place / "outputs" / "tables" / "tables.md").read_text()
    lines = [line for line in table.splitlines() if "| raw, whole | 2 |" in line]
    assert [line.split(" | ")[0] for line in lines] == ["| sd", "| edges", "| both"]
    assert "not run" not in "".join(lines)


# Runs a command, and prints the highest resident memory of its processes in GiB.
MEASURE = """
import resource, subprocess, sys
code = subprocess.run({command!r}, shell=True, executable="/bin/bash").returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20)
sys.exit(code)
"""
