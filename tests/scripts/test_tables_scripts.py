import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_script import run_script
from tiny_training import save_colors

EVAL = Path(__file__).resolve().parents[2] / "eval"


def run(script, *arguments, check=True):
    return run_script(EVAL / script, *arguments, expect=0 if check else None)


def write_rows(path, gain=0.0, protocols=("",), count=6):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow("name subset foreground_ratio protocol mse psnr fmse fpsnr ssim fssim bmse".split())
        for i in range(count):
            for protocol in protocols:
                scores = (50 - gain, 30 + i + gain, 400 if i else "", 22 if i else "", 0.9, 0.8, 0)
                writer.writerow((f"c{i}_1_1", "HCOCO", 0.04 * (i + 1), protocol, *scores))
    return path


@pytest.fixture
def data(tmp_path):
    """Six composites in iHarmony4's layout, and a folder of results that are the ground truth."""
    root = tmp_path / "data" / "HCOCO"
    results = tmp_path / "results" / "HCOCO"
    for folder in (results, *(root / name for name in ("composite_images", "masks", "real_images"))):
        folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    mask = np.zeros((48, 64), np.uint8)
    mask[10:40, 20:50] = 255
    for i in range(6):
        real = generator.integers(40, 200, (48, 64, 3), np.uint8)
        composite = np.where(mask[..., None] > 0, real + np.uint8(20), real)
        Image.fromarray(composite).save(root / "composite_images" / f"c{i}_1_1.png")
        Image.fromarray(mask).save(root / "masks" / f"c{i}_1.png")
        Image.fromarray(real).save(root / "real_images" / f"c{i}.png")
        Image.fromarray(real).save(results / f"c{i}_1_1.png")
    (root / "HCOCO_test.txt").write_text("".join(f"c{i}_1_1.png\n" for i in range(6)))
    return tmp_path


def test_tables_are_written_in_every_format_and_again_to_the_byte(tmp_path):
    first = write_rows(tmp_path / "identity" / "rows.csv", protocols=("idih", "hdnet"))
    second = write_rows(tmp_path / "run7" / "rows.csv", gain=2, protocols=("idih", "hdnet"))
    arguments = (first, f"hdnet={second}", "--compare", "hdnet,identity", "--output")
    shown = run("make_tables.py", *arguments, tmp_path / "out").stdout
    assert "## Protocols side by side" in shown and "| protocol | identity (6) PSNR ↑ |" in shown
    assert "## Protocol `idih`" in shown and "**48.00** [48.00, 48.00] |" in shown
    assert "1 image without fmse, fpsnr (empty foreground), left out of these means." in shown
    run("make_tables.py", *arguments, tmp_path / "again")
    for suffix in ("md", "tex", "csv", "json"):
        name = f"tables.{suffix}"
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert (tmp_path / "out" / "tables.md").read_text() == shown
    content = json.loads((tmp_path / "out" / "tables.json").read_text())
    assert {group["method"] for group in content["groups"]} == {"identity", "hdnet"}
    assert content["comparisons"][0]["metric"] == "psnr" and content["comparisons"][0]["difference"] == 2


def test_one_protocol_can_be_chosen_and_must_be_there(tmp_path):
    rows = write_rows(tmp_path / "m" / "rows.csv", protocols=("idih", "hdnet"))
    shown = run("make_tables.py", rows, "--protocol", "hdnet", "--output", tmp_path / "out").stdout
    assert "`hdnet`" in shown and "`idih`" not in shown
    failed = run("make_tables.py", rows, "--protocol", "dht", "--output", tmp_path / "no", check=False)
    assert "no row of the protocol dht" in failed.stderr and not (tmp_path / "no").exists()


def test_gains_of_several_sets_stand_in_one_table(tmp_path):
    before = write_rows(tmp_path / "identity" / "rows.csv")
    after = write_rows(tmp_path / "m" / "rows.csv", gain=2)
    sets = ("--set", "in place", after, before, "--untouched", "in place", after)
    shown = run("make_gains.py", *sets, "--output", tmp_path / "out" / "gains.md").stdout
    assert "| in place | all | 6 | +2.00 |" in shown and "| photographs | images |" in shown
    assert (tmp_path / "out" / "gains.md").read_text() == shown
    other = write_rows(tmp_path / "other" / "rows.csv", protocols=("idih", "hdnet"))
    failed = run("make_gains.py", "--set", "x", after, other, "--output", tmp_path / "no.md", check=False)
    assert "must have the same images" in failed.stderr and not (tmp_path / "no.md").exists()


def test_a_failure_is_one_line_and_torch_is_not_needed(tmp_path):
    rows = write_rows(tmp_path / "m" / "rows.csv")
    command = [
        sys.executable,
        "-X",
        "importtime",
        EVAL / "make_tables.py",
        rows,
        rows,
        "--output",
        tmp_path / "o",
    ]
    failed = subprocess.run(command, capture_output=True, text=True)
    lines = failed.stderr.splitlines()
    assert lines[-1].startswith("make_tables: m: is the name of two methods")
    assert not [line for line in lines if line.rsplit("|")[-1].strip() in ("torch", "diffusers")]


def test_variants_and_sweep_are_printed(tmp_path):
    for scale in ("0.5", "1.0"):
        rows = write_rows(tmp_path / scale / "rows.csv", gain=float(scale), protocols=("raw", "pasted"))
        fid = {"fid": 20 - float(scale), "kid": 0.002, "generated": 2000}
        rows.with_name("fid_raw.json").write_text(json.dumps(fid))
    shown = run("make_tables.py", f"sd={rows}", "--output", tmp_path / "out").stdout
    assert "## Variants" in shown and "| sd | raw, whole | 6 | 19.00 | 2.00 | 33.50 | 49.00 |" in shown
    pattern = tmp_path / "{}" / "rows.csv"
    shown = run(
        "make_tables.py", pattern, "--control-scale", "0.5:1:0.5", "--output", tmp_path / "out"
    ).stdout
    assert "| 0.5 | 19.50 | 33.00 | 49.50 | 1.0 | **19.00** | **33.50** | **49.00** |" in shown
    assert (tmp_path / "out" / "sweep.md").read_text() == shown


def test_card_gets_the_scores_of_the_last_method(tmp_path):
    card = tmp_path / "model" / "README.md"
    card.parent.mkdir()
    card.write_text("---\nlicense: other\n---\n# Card\n")
    rows = [write_rows(tmp_path / name / "rows.csv", protocols=("idih",)) for name in ("identity", "hdnet")]
    run("make_tables.py", *rows, "--card", card, "--dataset", "owner/bench", "--output", tmp_path / "out")
    text = card.read_text()
    assert "model-index" in text and "name: hdnet" in text and text.endswith("# Card\n")
    assert "idih_psnr" in (card.parent / ".eval_results" / "bench_idih.yaml").read_text()


def test_votes_are_ranked(tmp_path):
    votes = tmp_path / "votes.csv"
    votes.write_text("first,second,winner\n" + "a,b,a\n" * 30 + "b,a,b\n" * 10)
    shown = run("rank_votes.py", votes, "--output", tmp_path / "out").stdout
    assert "| a | 0.549 | [" in shown and "40 votes, voters not named." in shown
    ranks = json.loads((tmp_path / "out" / "votes.json").read_text())["ranks"]
    assert [rank["method"] for rank in ranks] == ["a", "b"] and ranks[0]["wins"] == 30
    votes.write_text("first,second,winner\na,b,a\n")
    failed = run("rank_votes.py", votes, check=False)
    assert "infinitely far apart" in failed.stderr


def test_report_and_picture_are_made_from_a_folder_and_from_a_model(data):
    composite = write_rows(data / "identity" / "rows.csv")
    rows = write_rows(data / "mkl" / "rows.csv", gain=1.5)
    arguments = [rows, "--composite", composite, "--data", data / "data", "--cases", "2"]
    page, picture = data / "report.html", data / "cases.jpg"
    options = ["--output", page, "--picture", picture]
    run("make_report.py", *arguments, "--harmonized", data / "results", *options)
    text = page.read_text()
    assert text.count("<img ") == 3 * 2 * 4 and "<h1>mkl</h1>" in text and "31.50" in text
    assert text.count(', harmonized by mkl"') == text.count(', ground truth"') == 3 * 2
    with Image.open(picture) as image:
        assert image.width == 1600 and image.format == "JPEG"

    refused = run("make_report.py", *arguments, "--model", "mkl", *options, check=False)
    assert "exists already" in refused.stderr
    run("make_report.py", *arguments, "--model", "mkl", *options, "--overwrite")
    assert page.read_text() != text

    missing = run(
        "make_report.py", *arguments, "--harmonized", data / "data", "--output", data / "x.html", check=False
    )
    assert "holds no picture HCOCO/" in missing.stderr
    assert not (data / "x.html").exists()


def test_fid_is_written_with_what_it_depends_on(data):
    extractor = data / "colors.pt"
    save_colors(extractor)
    real = data / "data" / "HCOCO" / "real_images"
    composites = data / "data" / "HCOCO" / "composite_images"
    arguments = [composites, real, "--extractor", extractor, "--output", data / "fid.json"]
    failed = run("eval_fid.py", *arguments, check=False)
    assert "6 generated and 6 real: below 2,048" in failed.stderr
    assert not (data / "fid.json").exists()
    done = run("eval_fid.py", *arguments, "--force", "--resize", "bilinear", "--size", "32")
    assert "FID " in done.stdout and "KID " in done.stdout and "Rely on KID" in done.stderr
    result = json.loads((data / "fid.json").read_text())
    assert (result["resize"], result["size"], result["features"]) == ("bilinear", 32, 6)
    assert result["extractor"].startswith("colors.pt sha256:") and result["fid"] > 1
    masks = data / "picture_masks"
    masks.mkdir()
    for i in range(6):  # named as the pictures are
        mask = Image.open(data / "data" / "HCOCO" / "masks" / f"c{i}_1.png")
        mask.save(masks / f"c{i}.png")
        mask.save(masks / f"c{i}_1_1.png")
    run("eval_fid.py", *arguments, "--force", "--resize", "bilinear", "--size", "32", "--masks", masks)
    foreground = json.loads((data / "fid.json").read_text())
    # The foreground is 20 levels brighter in each channel; the whole picture less.
    assert foreground["foreground_only"] and not result["foreground_only"]
    assert foreground["fid"] == pytest.approx(3 * 20**2, rel=0.1) and result["fid"] < 300
    same = run("eval_fid.py", real, real, "--extractor", extractor, "--force")
    assert "FID 0.000" in same.stdout
    # Composites lie farther from the real images than these do from themselves.
    exact = data / "results" / "HCOCO"
    told = run(
        "eval_fid.py", composites, exact, *arguments[2:], "--force", "--against", exact, composites
    ).stdout
    less = json.loads((data / "fid.json").read_text())["less"]
    nearer, same = less["results/HCOCO"], less["/".join(composites.parts[-2:])]
    assert nearer["images"] == 6 and nearer["fid"]["low"] > 0
    assert same["fid"] == {"mean": 0, "low": 0, "high": 0}
    assert "less results/HCOCO: FID +" in told
    failed = run("eval_fid.py", composites, real, *arguments[2:], "--against", composites, check=False)
    assert "must have the same images as" in failed.stderr
