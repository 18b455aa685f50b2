"""The pipelines in `checkpoints`: they run from the clone, and the documentation says what was measured."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_diffusion import call, object_mask, picture

from harmony_diffusion import StableDiffusionHarmonizationPipeline

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "checkpoints" / "mini_dual_controlnet"
HARMONIZER = ROOT / "checkpoints" / "mini_harmonizer"
DETAILS = ("generated", "preserve")
PARTS = ("unet", "vae", "text_encoder", "controlnet_high", "controlnet_low")


@pytest.fixture(scope="module")
def pipe():
    pipe = StableDiffusionHarmonizationPipeline.from_pretrained(FOLDER)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_weights_are_small_safe_and_documented():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    weights = [path for path in files if path.suffix == ".safetensors"]
    assert sorted(path.parent.name for path in weights) == sorted(PARTS)
    assert sum(path.stat().st_size for path in weights) <= 40e6
    assert not {path.suffix for path in files} & {".bin", ".pt", ".pth", ".ckpt"}
    cards = [FOLDER / "README.md", *(FOLDER / name / "README.md" for name in ("unet", *PARTS[3:]))]
    for card in cards:
        text = card.read_text("utf-8")
        assert text.startswith("---\n") and "/work/" not in text and "/home/" not in text
    assert all(word in cards[0].read_text("utf-8") for word in ("TAEF2", "MIT", "licence", "KID"))


def test_both_controls_change_the_foreground_and_nothing_else(pipe):
    assert pipe.unet.config.out_channels == 32 and pipe.config["working_size"] == 128
    composite, mask = picture((128, 128)), object_mask((128, 128))
    images = {
        scales: call(pipe, composite, mask, guidance_scale=1, high_scale=scales[0], low_scale=scales[1])
        for scales in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0))
    }
    arrays = [image.images[0] for image in images.values()]
    assert len({array.tobytes() for array in arrays}) == 4
    for array in arrays:
        np.testing.assert_array_equal(array[:16, :16], composite[:16, :16])


def test_noise_is_taken_away_better_with_colours(pipe):
    """A foreground of one colour that its surroundings do not have comes out in about that colour."""
    composite, mask = picture((128, 128)), object_mask((128, 128))
    composite[mask > 0] = (200, 60, 40)
    steps = {"num_inference_steps": 10, "guidance_scale": 1, "high_scale": 0.0}
    distances = []
    for scale in (0.0, 1.0):
        results = [
            call(
                pipe, composite, mask, low_scale=scale, generator=torch.Generator().manual_seed(seed), **steps
            )
            for seed in (0, 1)
        ]
        errors = [result.images[0][48:80, 48:80] - np.float32([200, 60, 40]) for result in results]
        distances.append(float(np.square(errors).mean()))
    assert distances[1] < 0.75 * distances[0]


def test_documentation_says_what_the_files_say():
    readme = (ROOT / "docs" / "mini_method.md").read_text("utf-8")
    told = (FOLDER / "evaluation" / "tables" / "tables.md").read_text("utf-8")
    lines = [line for line in told.splitlines() if "pasted, " in line]
    assert len(lines) == 8 and all(line in readme for line in lines)
    sweep = (FOLDER / "evaluation" / "sweep" / "sweep.md").read_text("utf-8")
    assert all(
        line in readme for line in sweep.splitlines() if line.startswith("| 0") or line.startswith("| 1")
    )
    less = json.loads((FOLDER / "evaluation" / "tables" / "fid_pasted.json").read_text())["less"]
    for other in ("high", "low", "text"):
        kid = less[f"{other}/pasted"]["kid"]
        assert f"{1000 * kid['mean']:+.2f} [{1000 * kid['low']:+.2f}, {1000 * kid['high']:+.2f}]" in readme
    for name in (f"plain-{scale}-{detail}" for scale in (0.5, 1.0) for detail in DETAILS):
        cells = [
            against_identity(FOLDER / "evaluation" / "tables" / kind / "tables.md", name, protocol)
            for kind, protocol in (("perturbed", "pasted"), ("benchmark", "default"))
        ]
        assert f"| {name.replace('-', ' | ')} | {' | '.join(cells)} |" in readme


@pytest.fixture(scope="module")
def harmonizer():
    pipe = StableDiffusionHarmonizationPipeline.from_pretrained(HARMONIZER)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("gains", [(0.6, 0.6, 0.6), (1.3, 0.9, 0.7)], ids=["dark", "red"])
def test_harmonizer_brings_a_recoloured_part_of_a_photograph_nearer_to_the_truth(harmonizer, gains):
    real = np.asarray(Image.open(ROOT / "examples" / "background.jpg").convert("RGB"))
    rows, columns = np.mgrid[: real.shape[0], : real.shape[1]]
    inside = (columns - 250) ** 2 + (rows - 120) ** 2 < 60**2
    composite = np.where(inside[..., None], (real * np.array(gains)).clip(0, 255), real).astype(np.uint8)
    assert harmonizer.text_encoder.dtype == harmonizer.unet.dtype == torch.float32
    generator = torch.Generator().manual_seed(0)
    mask = inside.astype(np.uint8) * 255
    (image,) = harmonizer(composite, mask, "", generator=generator, output_type="array").images
    before, after = (np.square(x[inside] - real[inside].astype(float)).mean() for x in (composite, image))
    assert after < 0.75 * before
    np.testing.assert_array_equal(image[~inside], composite[~inside])


def test_harmonizer_is_small_safe_and_documented():
    files = [path for path in HARMONIZER.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".py", ".md", ".csv", ".jpg"}
    assert sum(path.stat().st_size for path in files) <= 40e6
    card = (HARMONIZER / "README.md").read_text("utf-8")
    assert card.startswith("---\n") and all(
        word in card for word in ("TAEF2", "MIT", "licence", "mini_harmonizer.sh")
    )
    table = (HARMONIZER / "evaluation" / "table.md").read_text("utf-8")
    document = (ROOT / "docs" / "mini_method.md").read_text("utf-8")
    rows = [line for line in table.splitlines() if line.startswith(("| in_place", "| relocated"))]
    assert len(rows) > 4 and all(row in card for row in rows)
    assert all(row in document for row in table.partition("\n\n")[0].splitlines())


def against_identity(path, name, protocol):
    """Return the difference of fMSE to that of the composites, with its interval, as it is written."""
    text = path.read_text("utf-8").partition(f"### {name} against identity, protocol `{protocol}`\n")[2]
    row = next(line for line in text.splitlines() if line.startswith("| fMSE |"))
    mean, interval = row.split(" | ")[2:4]
    return f"{mean} [{interval.replace(' to ', ', ')}]"
