import json
import re
import subprocess
import sys

import torch
from safetensors.torch import load_file
from tiny_training import ROOT, run, save_photographs

SCRIPT = ROOT / "eval" / "bench_training.py"
WATCHED = """
import sys
sys.path.insert(0, "eval")
from bench_training import train
watch = train("train_inpainting", sys.argv[1:])
print("timed", len(watch.networks), len(watch.updates), len(watch.script), file=sys.stderr)
"""


def test_bench_compares_each_stage_with_its_networks(tmp_path):
    output = tmp_path / "bench.json"
    command = [
        sys.executable,
        SCRIPT,
        "--steps",
        "2",
        "--batch_size",
        "1",
        "--size",
        "64",
        "--output",
        output,
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    rows = re.findall(r"^\| (base|high|low) \| (.*) \|$", done.stdout, re.MULTILINE)
    assert [name for name, _ in rows] == ["base", "high", "low"]
    for _, values in rows:
        networks, loop, script, to_networks, to_both, wall = map(float, values.split(" | "))
        # The loop is the networks and more; the script's time is measured by itself and may be either.
        assert 0 < networks <= loop and script > 0 and 0 < to_both <= to_networks and wall > 0
    base, *_ = json.loads(output.read_text())["rows"]
    assert base["stage"] == "base" and 0 < base["to_loop"] <= base["to_networks"]


def test_watched_training_ends_with_the_same_weights(tmp_path):
    data = save_photographs(tmp_path / "photographs")
    arguments = ["--data", data, "--random_base", "tiny", "--resolution", "64", "--train_batch_size", "2"]
    arguments += ["--max_train_steps", "3", "--learning_rate", "1e-2", "--lr_warmup_steps", "0"]
    told = run([sys.executable, "-c", WATCHED, *arguments, "--output", tmp_path / "watched"])
    assert "timed 3 3 2\n" in told
    run([sys.executable, ROOT / "train" / "train_inpainting.py", *arguments, "--output", tmp_path / "alone"])
    watched, alone = (
        load_file(tmp_path / name / "model" / "unet" / "diffusion_pytorch_model.safetensors")
        for name in ("watched", "alone")
    )
    assert watched.keys() == alone.keys()
    assert all(torch.equal(watched[name], alone[name]) for name in alone)
