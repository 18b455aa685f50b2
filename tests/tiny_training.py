"""Photographs, a base model and processes for the tests of the training scripts."""

import csv
import importlib.util
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from harmony_diffusion.diffusion.random_weights import random_components
from harmony_diffusion.pipelines.stable_diffusion import StableDiffusionHarmonizationPipeline

ROOT = Path(__file__).resolve().parents[1]


class Colors(torch.nn.Module):
    def forward(self, images):
        return torch.cat([images.mean((2, 3)), images.std((2, 3))], 1)


def save_colors(path):
    """Write a feature network: the means and deviations of the colours."""
    torch.jit.save(torch.jit.script(Colors()), str(path))


def save_photographs(root, *, tested=3):
    """Write six photographs of the split train, two of val and some of test, with masks and labels."""
    (root / "made").mkdir(parents=True)
    generator = np.random.default_rng(0)
    rows = []
    for number in range(8 + tested):
        coarse = Image.fromarray(generator.integers(0, 256, (6, 7, 3), dtype=np.uint8))
        coarse.resize((150, 140), Image.Resampling.BICUBIC).save(root / "made" / f"{number}.jpg")
        mask = np.zeros((140, 150), np.uint8)
        mask[30:110, 20 + number : 110 + number] = 255
        Image.fromarray(mask).save(root / "made" / f"{number}.png")
        split = "train" if number < 6 else "val" if number < 8 else "test"
        rows.append({"source": "made", "id": str(number), "split": split, "label": f"thing {number}"})
    with (root / "index.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return root


def save_base(folder, **options):
    """Write a tiny inpainting model; its text encoder is no near-constant, as random ones are."""
    components = random_components("tiny", **options)
    for parameter in components["text_encoder"].parameters():
        parameter.data.mul_(5)
    components |= {"controlnet_high": None, "controlnet_low": None}
    StableDiffusionHarmonizationPipeline(**components, working_size=64).save_pretrained(folder)
    return folder


def environment():
    return os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        "ACCELERATE_USE_CPU": "true",
    }


def run(command, cwd=ROOT, **extra):
    """Run a command, and return what it said."""
    done = subprocess.run(
        [*map(str, command)], env=environment() | extra, cwd=cwd, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def fork(script, arguments):
    """Start a script in a child that need not import torch again; return its process id."""
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.environ["ACCELERATE_USE_CPU"] = "true"
        path = ROOT / "train" / f"{script}.py"
        sys.argv = [str(path), *map(str, arguments)]
        spec = importlib.util.spec_from_file_location(script, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.main()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def finish(script, arguments):
    """Run a script in a child to its end; return whether it succeeded."""
    return os.waitpid(fork(script, arguments), 0)[1] == 0


def kill_after_a_checkpoint(script, arguments, output, pause):
    """Start a run, and kill it a moment after its next checkpoint has come."""
    before = set(output.glob("checkpoint-*"))
    child = fork(script, arguments)
    try:
        while not set(output.glob("checkpoint-*")) - before:
            ended, status = os.waitpid(child, os.WNOHANG)
            assert not ended, f"the run ended by itself with status {status}"
            time.sleep(0.002)
        time.sleep(pause)
    finally:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and not (output / "model").exists()


def state_of(output, step):
    """Return all tensors of a checkpoint by name."""
    return dict(flatten(read_state(output, step)))


def read_state(output, step):
    return torch.load(output / f"checkpoint-{step}" / "training_state.pt", weights_only=True)


def flatten(state, prefix=""):
    if isinstance(state, dict):
        for key, value in state.items():
            yield from flatten(value, f"{prefix}/{key}")
    elif isinstance(state, torch.Tensor):
        yield prefix, state
