import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_blip import save_tiny_blip

from harmony_diffusion.data.captions import prompts_from_captions, read_captions
from harmony_diffusion.data.photographs import read_photographs

SCRIPT = Path(__file__).resolve().parents[2] / "train" / "prepare_captions.py"


@pytest.fixture(scope="module")
def captioner(tmp_path_factory):
    return save_tiny_blip(tmp_path_factory.mktemp("blip") / "tiny")


@pytest.fixture
def folder(tmp_path):
    """Ten photographs of two sources with masks, and a label for each."""
    root, generator = tmp_path / "photos", np.random.default_rng(0)
    lines = ["source,id,split,label"]
    for number in range(10):
        source = ("street", "food")[number % 2]
        (root / source).mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(generator.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        coarse.resize((60, 44)).save(root / source / f"{number}.jpg", quality=95)
        Image.new("1", (60, 44), 1).save(root / source / f"{number}.png")
        lines.append(f"{source},{number},train,label {number}")
    (root / "index.csv").write_text("\n".join(lines) + "\n")
    return root


def caption(monkeypatch, folder, output, captioner, *options):
    arguments = [SCRIPT, "--data", folder, "--output", output, "--captioner", captioner]
    arguments += [
        "--dtype",
        "fp32",
        "--max_new_tokens",
        6,
        "--batch_size",
        3,
        "--workers",
        0,
        "--device",
        "cpu",
    ]
    monkeypatch.setattr(sys, "argv", [str(argument) for argument in (*arguments, *options)])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def lines_of(output):
    return sorted(line for path in output.glob("*.jsonl") for line in path.read_text().splitlines())


def test_every_photograph_has_a_caption(folder, tmp_path, captioner, monkeypatch):
    output = tmp_path / "captions"
    caption(monkeypatch, folder, output, captioner)
    captions = read_captions(output)
    assert len(captions) == 10 and len(set(captions.values())) > 3
    prompts = prompts_from_captions(read_photographs(folder), folder, captions)
    assert prompts[3] == captions["food/3.jpg"]
    assert json.loads((output / "captions.json").read_text())["num_beams"] == 3


def test_parts_and_decoding_processes_do_not_change_captions(folder, tmp_path, captioner, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    caption(monkeypatch, folder, whole, captioner)
    for part in range(3):
        caption(monkeypatch, folder, parts, captioner, "--part", f"{part}/3", "--workers", 1)
    assert lines_of(parts) == lines_of(whole)
    counts = [len(path.read_text().splitlines()) for path in sorted(parts.glob("*.jsonl"))]
    assert len(counts) > 1 and sum(counts) == 10


def test_the_environment_of_torchrun_says_which_part(folder, tmp_path, captioner, monkeypatch):
    output = tmp_path / "captions"
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        caption(monkeypatch, folder, output, captioner)
    assert {path.name for path in output.glob("*.jsonl")} == {
        "captions-0-of-2.jsonl",
        "captions-1-of-2.jsonl",
    }
    assert len(read_captions(output)) == 10


def test_a_killed_job_goes_on_with_any_number_of_processes(folder, tmp_path, captioner, monkeypatch, capsys):
    whole, output = tmp_path / "whole", tmp_path / "captions"
    caption(monkeypatch, folder, whole, captioner)
    caption(monkeypatch, folder, output, captioner)
    (path,) = output.glob("*.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:4]) + lines[4][:9])
    capsys.readouterr()
    for part in ("0/2", "1/2"):
        caption(monkeypatch, folder, output, captioner, "--part", part)
    assert read_captions(output) == read_captions(whole)
    assert path.read_bytes().splitlines(keepends=True)[:4] == lines[:4]
    done = sum(int(line.split()[0]) for line in capsys.readouterr().out.splitlines() if "to caption" in line)
    assert done == 6
    # Nothing is left: the captioner is not even loaded.
    (captioner / "config.json").rename(captioner / "hidden.json")
    try:
        caption(monkeypatch, folder, output, captioner)
    finally:
        (captioner / "hidden.json").rename(captioner / "config.json")


def test_captions_of_another_kind_are_not_mixed_in(folder, tmp_path, captioner, monkeypatch):
    output = tmp_path / "captions"
    caption(monkeypatch, folder, output, captioner)
    with pytest.raises(SystemExit, match="holds captions made otherwise"):
        caption(monkeypatch, folder, output, captioner, "--num_beams", 1)


def test_captions_can_come_from_a_column(folder, tmp_path, captioner, monkeypatch):
    output = tmp_path / "labels"
    caption(monkeypatch, folder, output, "nobody/no-captioner", "--column", "label")
    assert read_captions(output)["food/3.jpg"] == "label 3" and len(read_captions(output)) == 10
    with pytest.raises(SystemExit, match="has no column colour; there are source, id, split, label"):
        caption(monkeypatch, folder, tmp_path / "other", captioner, "--column", "colour")


def test_a_photograph_of_several_masks_is_captioned_once(folder, tmp_path, captioner, monkeypatch):
    manifest = folder / "manifest-train.csv"
    (folder / "train").mkdir()
    (folder / "train-masks").mkdir()
    (folder / "street" / "0.jpg").rename(folder / "train" / "0a.jpg")
    for box in "12":
        Image.new("1", (60, 44), 1).save(folder / "train-masks" / f"0a_m1_{box}.png")
    rows = [f"train,0a,0a_m1_{box}.png,/m/1,name {box}" for box in "12"]
    manifest.write_text("\n".join(["Split,ImageID,MaskPath,LabelName,Label", *rows]) + "\n")
    caption(monkeypatch, manifest, tmp_path / "captions", captioner)
    assert list(read_captions(tmp_path / "captions")) == ["train/0a.jpg"]
    caption(monkeypatch, manifest, tmp_path / "labels", captioner, "--column", "Label")
    assert read_captions(tmp_path / "labels") == {"train/0a.jpg": "name 1"}


def test_bad_photographs_stop_the_job_or_are_passed_over(folder, tmp_path, captioner, monkeypatch, capsys):
    path = folder / "food" / "5.jpg"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(SystemExit, match=r"food/5\.jpg: cannot be decoded.*--skip_bad"):
        caption(monkeypatch, folder, tmp_path / "captions", captioner)
    caption(monkeypatch, folder, tmp_path / "captions", captioner, "--skip_bad")
    assert "1 photographs cannot be used" in capsys.readouterr().out
    assert len(read_captions(tmp_path / "captions")) == 9


@pytest.mark.parametrize("part", ["2/2", "1", "a/b", "-1/2"])
def test_parts_that_are_none_are_refused(folder, tmp_path, captioner, monkeypatch, part):
    with pytest.raises(SystemExit):
        caption(monkeypatch, folder, tmp_path / "captions", captioner, f"--part={part}")
