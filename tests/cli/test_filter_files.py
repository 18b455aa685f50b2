"""`harmony image --filters FILE.json`: predict and write the arguments, or apply those of the file."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from harmony_diffusion import create_model
from harmony_diffusion.cli import main


@pytest.fixture(autouse=True)
def model(folder):
    torch.manual_seed(0)
    create_model("harmonizer_lite").save_pretrained("model")


def run(*arguments):
    return main(["image", "c.png", "m.png", "--model", "model", *map(str, arguments)])


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


def test_written_arguments_give_the_same_picture_again(folder):
    assert run("-o", "a.png", "--filters", "f.json") == 0
    content = json.loads((folder / "f.json").read_text())
    assert content["model"] == "Harmonizer"
    names = ["temperature", "brightness", "contrast", "saturation", "highlight", "shadow"]
    assert list(content["filters"]) == names
    assert run("-o", "b.png", "--filters", "f.json") == 0
    assert abs(pixels("a.png") - pixels("b.png")).max() <= 1


def test_edited_arguments_are_applied_inside_the_mask_alone(folder):
    filters = dict.fromkeys(["temperature", "contrast", "saturation", "highlight", "shadow"], 0)
    (folder / "f.json").write_text(json.dumps({"filters": {**filters, "brightness": -0.5}}))
    assert run("-o", "a.png", "--filters", "f.json") == 0
    inside = np.asarray(Image.open("m.png")) > 0
    before, after = pixels("c.png"), pixels("a.png")
    assert np.array_equal(before[~inside], after[~inside])
    assert abs(after[inside] - before[inside] / 2).max() <= 2


@pytest.mark.parametrize(
    "content",
    ["no json", "[]", '{"filters": {"brightness": 1}}', '{"filters": {"brightness": "1"}, "model": "HDNet"}'],
)
def test_other_files_are_refused_before_anything_is_written(folder, content, capsys):
    (folder / "f.json").write_text(content)
    assert run("-o", "a.png", "--filters", "f.json") == 2
    assert "f.json" in capsys.readouterr().err
    assert not (folder / "a.png").exists()


def test_values_out_of_range_are_refused_by_name(folder, capsys):
    names = ["temperature", "brightness", "contrast", "saturation", "highlight", "shadow"]
    (folder / "f.json").write_text(json.dumps({"filters": {**dict.fromkeys(names, 0), "contrast": 3}}))
    assert run("-o", "a.png", "--filters", "f.json") == 2
    assert "contrast" in capsys.readouterr().err


def test_models_without_named_filters_are_refused(folder, capsys):
    assert main(["image", "c.png", "m.png", "-o", "a.png", "--filters", "f.json"]) == 2
    assert "harmonizer_lite" in capsys.readouterr().err
    assert not list(folder.glob("[af].*"))
