"""`eval_controlnets.py` and the baselines in `eval_dataset.py`, on tiny models."""

import csv
import json

import numpy as np
import pytest
from PIL import Image
from run_script import run_script
from tiny_diffusion import trained_like
from tiny_paint_by_example import save_paint_by_example
from tiny_training import ROOT, save_base, save_colors, save_photographs

from harmony_diffusion.diffusion.control_settings import ControlSettings

SMALL = ["--size", "64", "--steps", "2", "--batch_size", "2", "--caption_column", "label"]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Three test photographs, a base, ControlNets, Paint by Example, and a feature network."""
    root = tmp_path_factory.mktemp("controlnets")
    save_photographs(root / "photographs")
    save_base(root / "base")
    save_paint_by_example(root / "pbe")
    components = trained_like()
    for role in ("high", "low"):
        components[f"controlnet_{role}"].save_pretrained(root / role)
        ControlSettings(role).save(root / role)
    save_colors(root / "colors.pt")
    return root


def run(name, *arguments, check=True):
    done = run_script(ROOT / "eval" / name, *arguments, expect=0 if check else None)
    return done.stdout if check else f"{done.returncode}{done.stderr}"


def evaluate(places, output, *arguments, base="base", **options):
    fixed = ["--data", places / "photographs", "--base", places / base, "--output", output, *SMALL]
    return run("eval_controlnets.py", *fixed, *arguments, **options)


def read(path):
    with path.open(newline="") as file:
        return {(row["name"], row["protocol"]): row for row in csv.DictReader(file)}


def pixels(path):
    return np.asarray(Image.open(path)).astype(np.float64)


def fid(places):
    return ["--extractor", places / "colors.pt", "--extractor_size", "32", "--force"]


@pytest.mark.parametrize("model", ["sd-inpainting", "paint-by-example"])
def test_baselines_are_scored_in_every_variant(places, tmp_path, model):
    base = {"sd-inpainting": "base", "paint-by-example": "pbe"}[model]
    out = tmp_path / "out"
    shown = evaluate(places, out, "--model", model, *fid(places), base=base)
    labels = ["raw, whole", "raw, foreground", "pasted, whole", "pasted, foreground"]
    lines = [line for line in shown.splitlines() if any(f"| {label} |" in line for label in labels)]
    assert len(lines) == 4 and "not run" not in "".join(lines)
    rows = read(out / "rows.csv")
    assert len(rows) == 3 * 3
    for name in {name for name, _ in rows}:
        folders = ("raw", "pasted", "real", "masks")
        raw, pasted, real, mask = (pixels(out / folder / f"{name}.png") for folder in folders)
        squared = (pasted - real) ** 2
        assert float(rows[name, "pasted"]["mse"]) == pytest.approx(squared.mean(), rel=1e-6)
        assert squared[mask == 0].max() == 0 < ((raw - real)[mask == 0] ** 2).mean()
        weights = mask[..., None] / 255
        found = (squared * weights).sum() / (3 * weights.sum())
        assert float(rows[name, "pasted"]["fmse"]) == pytest.approx(found, rel=1e-3)
    for variant in ("raw", "pasted", "raw_foreground", "pasted_foreground"):
        distance = json.loads((out / f"fid_{variant}.json").read_text())
        assert distance["foreground_only"] == variant.endswith("foreground") and distance["generated"] == 3
        alone = [out / variant.split("_")[0], out / "real", "--extractor", places / "colors.pt", "--force"]
        masks = ["--masks", out / "masks"] if distance["foreground_only"] else []
        told = run("eval_fid.py", *alone, *masks, "--size", "32", "--output", tmp_path / "alone.json")
        assert "FID" in told and json.loads((tmp_path / "alone.json").read_text()) == distance
    refused = evaluate(
        places, tmp_path / "no", "--model", model, "--high", places / "high", check=False, base=base
    )
    assert refused.startswith("2") and "does not support --high" in refused


def test_sweep_prints_table_2_and_is_that_of_single_runs(places, tmp_path):
    controls = ["--high", places / "high", "--low", places / "low"]
    out = tmp_path / "sweep"
    shown = evaluate(places, out, *controls, *fid(places), "--control-scale", "0.5:1.0:0.5")
    assert shown.startswith("| λc | FID ↓ | PSNR / dB ↑ | MSE ↓ | λc |") and "not run" not in shown
    assert shown == (out / "sweep.md").read_text()
    alone = ["--high_scale", "0.5", "--low_scale", "0.5"]
    evaluate(places, tmp_path / "alone", *controls, *alone)
    assert (tmp_path / "alone" / "rows.csv").read_bytes() == (out / "0.5" / "rows.csv").read_bytes()
    assert (out / "0.5" / "rows.csv").read_bytes() != (out / "1.0" / "rows.csv").read_bytes()
    scales = ["--control-scale", "0.5:1.0:0.5", "--output", tmp_path / "tables"]
    assert run("make_tables.py", out / "{}" / "rows.csv", *scales) == shown
    refused = evaluate(places, tmp_path / "no", "--control-scale", "0.5,1", check=False)
    assert "--control-scale requires --high or --low" in refused


def test_too_few_images_are_refused_and_ids_choose(places, tmp_path):
    (tmp_path / "ids.txt").write_text("made/9\n")
    shown = evaluate(places, tmp_path / "one", "--ids", tmp_path / "ids.txt", "--perturb")
    assert "| one | raw, whole | 1 | not run |" in shown
    assert {name for name, _ in read(tmp_path / "one" / "rows.csv")} == {"made/9"}
    failed = evaluate(places, tmp_path / "out", *fid(places)[:-1], check=False)
    assert "below 2,048" in failed
    (tmp_path / "ids.txt").write_text("made/9\nmade/77\n")
    failed = evaluate(places, tmp_path / "no", "--ids", tmp_path / "ids.txt", check=False)
    assert "names 1 photographs that are not there, as made/77" in failed


def test_perturbed_foregrounds_are_scored_as_they_are_and_by_their_colour_and_light(places, tmp_path):
    low, rows = ["--low", places / "low"], {}
    for name, options in (
        ("untouched", ["--model", "identity"]),
        ("identity", ["--model", "identity", "--perturb"]),
        ("generated", [*low, "--perturb"]),
        ("preserve", [*low, "--perturb", "--detail", "preserve"]),
    ):
        evaluate(places, tmp_path / name, *options)
        rows[name] = read(tmp_path / name / "rows.csv")
    for key, row in rows["identity"].items():
        assert rows["untouched"][key]["fmse"] in ("0", "")  # protocols without it leave it empty
        if key[1] != "legacy_uint8":
            assert float(row["fmse"]) > 1
            same = rows["generated"][key]["fmse"] == rows["preserve"][key]["fmse"]
            assert same == (key[1] == "raw")
    for folder in ("raw", "pasted"):
        kept, found = (tmp_path / name / folder / "made" for name in ("identity", "untouched"))
        assert all((found / path.name).read_bytes() != path.read_bytes() for path in kept.iterdir())
    refused = evaluate(places, tmp_path / "no", "--model", "identity", "--detail", "preserve", check=False)
    assert "does not support --high, --low, --init, --strength and --detail" in refused


@pytest.mark.parametrize("model", ["sd-inpainting", "paint-by-example"])
def test_baselines_are_models_of_eval_dataset(places, tmp_path, model):
    base = places / {"sd-inpainting": "base", "paint-by-example": "pbe"}[model]
    common = ["--data", places / "photographs", "--model", model, "--base", base, "--batch-size", "2"]
    rows = {}
    for name, options in (("pasted", []), ("raw", ["--raw"]), ("seed", ["--seed", "1"])):
        shown = run("eval_dataset.py", *common, *options, "--output", tmp_path / name)
        assert f"| {model} | subset |" in shown
        rows[name] = read(tmp_path / name / "rows.csv")
        assert len(rows[name]) == 3
    for key, row in rows["pasted"].items():
        assert float(row["bmse"]) < float(rows["raw"][key]["bmse"])
        assert row["fmse"] != rows["seed"][key]["fmse"]
    failed = run("eval_dataset.py", *common[:2], "--model", "mkl", *common[4:], "--output", "x", check=False)
    assert "--base requires --model" in failed
