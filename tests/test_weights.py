"""The weights that come with the package: what lies there, and that everything uses them offline."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from harmony_diffusion import HarmonizationPipeline, load_model
from harmony_diffusion.cli import main
from harmony_diffusion.models import DEFAULT_MODEL, MODELS, WEIGHTS, create_model, has_weights

FOLDERS = sorted(path for path in WEIGHTS.iterdir() if path.is_dir())
EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def default():
    return load_model("default")


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_folder_is_small_safe_and_documented(folder):
    files = {path.name for path in folder.iterdir()}
    assert {"README.md", "config.json", "diffusion_pytorch_model.safetensors"} <= files
    pictures = files - {"README.md", "config.json", "diffusion_pytorch_model.safetensors"}
    assert pictures <= {"examples.jpg", "failure.jpg"}
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 12e6
    assert "_name_or_path" not in json.loads((folder / "config.json").read_text())
    values = load_file(folder / "diffusion_pytorch_model.safetensors")
    assert all(torch.isfinite(value).all() for value in values.values())
    model = create_model(folder.name, **public_config(folder))
    assert {name: value.shape for name, value in values.items()} == {
        name: value.shape for name, value in model.state_dict().items()
    }
    card = (folder / "README.md").read_text("utf-8")
    assert card.startswith("---\n") and "/home/" not in card and "/work/" not in card
    assert all(word in card for word in ("train_discriminative.py", "licence", "PSNR", *pictures))


def public_config(folder):
    entries = json.loads((folder / "config.json").read_text())
    return {name: value for name, value in entries.items() if not name.startswith("_")}


def test_every_folder_is_of_a_registry_model_and_the_default_is_there():
    assert {folder.name for folder in FOLDERS} <= set(MODELS)
    assert has_weights(DEFAULT_MODEL) and not has_weights("idih")


def test_all_ways_to_the_default_give_the_same_model(default, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    pipe = HarmonizationPipeline.from_pretrained("default")
    assert not pipe.model.training and pipe.model.dtype == torch.float32
    for other in (pipe.model, load_model(), load_model(DEFAULT_MODEL), load_model(WEIGHTS / DEFAULT_MODEL)):
        for name, value in default.state_dict().items():
            assert torch.equal(value, other.state_dict()[name])
    half = HarmonizationPipeline.from_pretrained("default", torch_dtype=torch.float16)
    assert half.model.dtype == torch.float16
    pipe.save_pretrained(tmp_path / "saved")
    again = HarmonizationPipeline.from_pretrained(tmp_path / "saved")
    name = "to_global.weight"
    assert torch.equal(again.model.state_dict()[name], default.state_dict()[name])


def test_command_line_uses_the_default(default, tmp_path):
    composite, mask = EXAMPLES / "composite.jpg", EXAMPLES / "mask.png"
    assert main(["image", str(composite), str(mask), "-o", str(tmp_path / "out.png")]) == 0
    expected = HarmonizationPipeline(default)(composite, mask).images[0]
    result = np.asarray(Image.open(tmp_path / "out.png"))
    assert np.array_equal(result, np.asarray(expected))
    assert not np.array_equal(result, np.asarray(Image.open(composite)))


CASTS = ([1.5, 1.1, 0.7], [0.6, 0.8, 1.2], [0.6, 0.6, 0.6])  # warm and bright, cold, dark


def test_default_takes_casts_back_and_spares_what_is_real(default, shared):
    """On known triples: most of a gross change of the foreground is undone, the real changes much less."""
    folder = shared / "golden" / "images"
    errors = []
    for number in (1, 2, 3):
        real = read(folder / f"rainnet_{number}-gt.png", "RGB")
        mask = (read(folder / f"rainnet_{number}-mask.png", "L") > 0.5).float()
        for gain in CASTS:
            cast = torch.lerp(real, (real * torch.tensor(gain).view(3, 1, 1)).clamp(0, 1), mask)
            with torch.no_grad():
                results = cast, default(cast, mask), default(real, mask)
            errors.append([(result - real).square().mean().item() for result in results])
    before, after, spared = np.array(errors).mean(0)
    assert after < before / 2
    assert spared < before / 2


def read(path, mode):
    array = np.atleast_3d(np.asarray(Image.open(path).convert(mode), np.float32)) / 255
    return torch.from_numpy(array).permute(2, 0, 1)[None]


def test_strongly_coloured_objects_keep_their_colour(default, shared):
    """Untouched photographs of the split `test` whose object has a mean saturation (HSV) above 0.55."""
    folder, pipe = shared / "data" / "photos", HarmonizationPipeline(default)
    pipe.set_progress_bar_config(disable=True)
    with (folder / "index.csv").open(encoding="utf-8") as file:
        files = [folder / row["source"] / row["id"] for row in csv.DictReader(file) if row["split"] == "test"]
    before, after = [], []
    for path in files[::3]:
        picture, mask = Image.open(f"{path}.jpg").convert("RGB"), Image.open(f"{path}.png").convert("L")
        saturation = mean_saturation(picture, mask)
        if saturation > 0.55:
            before.append(saturation)
            after.append(mean_saturation(pipe(picture, mask).images[0], mask))
    assert len(before) > 20
    assert np.mean(after) > 0.95 * np.mean(before)


def mean_saturation(picture, mask):
    return np.asarray(picture.convert("HSV"))[..., 1][np.asarray(mask) > 127].mean() / 255
