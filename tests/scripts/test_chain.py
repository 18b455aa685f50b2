"""From Open Images as it is published to a table of metrics: every script of the diffusion method in turn."""

import csv
import runpy
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_blip import save_tiny_blip
from tiny_open_images import WHOLE, save_open_images
from tiny_training import ROOT, finish

from harmony_diffusion.data.captions import read_captions


class Colors(torch.nn.Module):
    def forward(self, images):
        return torch.cat([images.mean((2, 3)), images.std((2, 3))], 1)


@pytest.fixture
def call(monkeypatch):
    def call_script(path, *arguments):
        monkeypatch.setattr(sys, "argv", [path, *map(str, arguments)])
        runpy.run_path(str(ROOT / path), run_name="__main__")

    return call_script


def save_photographs_of(listing, root):
    """Put the photographs that a list asks for where they are looked for."""
    generator = np.random.default_rng(0)
    for line in listing.read_text().split():
        path = root / f"{line}.jpg"
        path.parent.mkdir(exist_ok=True)
        coarse = Image.fromarray(generator.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        coarse.resize((100, 75), Image.Resampling.BICUBIC).save(path, quality=95)


def test_chain_from_open_images_to_metrics(call, tmp_path, capsys):
    root = tmp_path / "open_images"
    for split, first in (("train", "0"), ("test", "5")):
        names = [f"{first}{number:015x}" for number in range(1, 5)]
        good = [(name, "m01yrx", "1", WHOLE, "0.9", "000", "0.0", "disc") for name in names]
        save_open_images(root, split, [*good, (names[0], "m0dzct", "2", WHOLE, "0.1", "000", "0.0", "disc")])
    call("train/prepare_open_images.py", "--data", root, "--shards", 0, "--workers", 0)
    single = ["--split", "test", "--single", "--count", 3, "--shards", 5, "--workers", 0]
    call("train/prepare_open_images.py", "--data", root, *single)
    captioner = save_tiny_blip(tmp_path / "blip")
    for split in ("train", "test"):
        save_photographs_of(root / f"photographs-{split}.txt", root)
        options = ["--data", root / f"manifest-{split}.csv", "--output", root / f"captions-{split}"]
        options += ["--captioner", captioner, "--max_new_tokens", 6, "--workers", 0, "--device", "cpu"]
        call("train/prepare_captions.py", *options, "--split", split)
    assert (
        len(read_captions(root / "captions-train")) == 4 and len(read_captions(root / "captions-test")) == 3
    )

    data = ["--data", root / "manifest-train.csv", "--captions", root / "captions-train"]
    data += [
        "--resolution",
        "64",
        "--train_batch_size",
        "2",
        "--lr_warmup_steps",
        "0",
        "--max_train_steps",
        "2",
    ]
    assert finish("train_inpainting", [*data, "--random_base", "tiny", "--output", tmp_path / "base"])
    data += ["--pretrained_model_name_or_path", tmp_path / "base" / "model", "--learning_rate", "1e-2"]
    data += ["--conditioning_embedding", "8", "8", "16", "16"]
    for role in ("high", "low"):
        assert finish("train_controlnet", [*data, "--control", role, "--output", tmp_path / role])

    torch.jit.save(torch.jit.script(Colors()), str(tmp_path / "colors.pt"))
    test = [
        "--data",
        root / "manifest-test.csv",
        "--captions",
        root / "captions-test",
        "--size",
        64,
        "--steps",
        2,
    ]
    test += ["--base", tmp_path / "base" / "model", "--extractor", tmp_path / "colors.pt"]
    test += ["--extractor_size", 32, "--force"]
    rows = {}
    for name, roles in (("text", ()), ("both", ("high", "low"))):
        controls = [part for role in roles for part in (f"--{role}", tmp_path / role / "model")]
        capsys.readouterr()
        call("eval/eval_controlnets.py", *test, *controls, "--output", tmp_path / name)
        shown = capsys.readouterr().out.splitlines()
        assert "FID" in shown[0] and "KID" in shown[0]
        (line,) = [line for line in shown if "| pasted, whole | 3 |" in line]
        assert "not run" not in line
        with (tmp_path / name / "rows.csv").open(newline="") as file:
            rows[name] = [row for row in csv.DictReader(file) if row["protocol"] == "pasted"]
        assert len(rows[name]) == 3 and all(float(row["fmse"]) > 0 for row in rows[name])
    assert [row["name"] for row in rows["text"]] == [row["name"] for row in rows["both"]]
    assert [row["fmse"] for row in rows["text"]] != [row["fmse"] for row in rows["both"]]
