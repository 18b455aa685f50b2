import csv
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_script import run_script
from video_clips import moving_disc

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def run(script, *arguments, expect=0):
    return run_script(ROOT / "eval" / script, *arguments, expect=expect)


@pytest.fixture
def hyoutube(tmp_path):
    root = tmp_path / "HYouTube"
    real, masks = moving_disc(5, tint=(0.5, 0.5, 0.5))
    for clip, shift in (("v1/1", 30), ("v2/1", -20)):
        for part, name in (("Composite", clip), ("Mask", clip), ("Ground-truth", clip.split("/")[0])):
            (root / part / name).mkdir(parents=True)
        for i in range(5):
            composite = np.clip(real[i].astype(int) + shift * (masks[i] > 0)[..., None], 0, 255).astype(
                np.uint8
            )
            Image.fromarray(composite).save(
                root / "Composite" / clip / f"{i:05d}.jpg", quality=100, subsampling=0
            )
            Image.fromarray(masks[i]).save(root / "Mask" / clip / f"{i:05d}.png")
            truth = root / "Ground-truth" / clip.split("/")[0] / f"{i:05d}.jpg"
            Image.fromarray(real[i]).save(truth, quality=100, subsampling=0)
    (root / "test.txt").write_text("Composite/v1/1/00000.jpg\nComposite/v2/1/00000.jpg\n")
    return root


def rows_of(path):
    return list(csv.DictReader(path.open()))


def test_clips_are_scored_and_tabled(hyoutube, tmp_path):
    out = tmp_path / "out"
    run("eval_video.py", "--data", hyoutube, "--model", "reinhard", "--size", 64, "--output", out)
    rows = rows_of(out / "rows.csv")
    assert [(row["name"], row["way"]) for row in rows] == [
        (name, way)
        for name in ("v1/1", "v2/1")
        for way in ("composite", "real", "none", "two-pass", "causal")
    ]
    by_way = {row["way"]: row for row in rows if row["name"] == "v1/1"}
    assert float(by_way["real"]["fmse"]) == 0 and float(by_way["real"]["psnr"]) == 100
    assert float(by_way["composite"]["flicker"]) == 0
    assert float(by_way["composite"]["fmse"]) == pytest.approx(900, rel=0.15)
    assert float(by_way["two-pass"]["flicker"]) < float(by_way["none"]["flicker"])

    table = run("make_tables.py", f"reinhard={out / 'rows.csv'}", "--output", tmp_path / "tables").stdout
    assert "| reinhard | two-pass | 2 |" in table
    means = {row["way"]: row for row in rows_of(tmp_path / "tables" / "tables.csv")}
    expected = np.mean([float(row["fmse"]) for row in rows if row["way"] == "causal"])
    assert float(means["causal"]["fmse"]) == pytest.approx(expected, abs=0.006)


def test_a_stopped_run_goes_on_and_other_settings_are_refused(hyoutube, tmp_path):
    out = tmp_path / "out"
    call = ["--data", hyoutube, "--model", "identity", "--size", 48, "--output", out]
    run("eval_video.py", *call)
    whole = (out / "rows.csv").read_text()
    (out / "rows.csv").write_text("".join(whole.splitlines(True)[:6]))
    assert "1/2" not in run("eval_video.py", *call).stderr
    assert (out / "rows.csv").read_text() == whole
    refused = run("eval_video.py", *call, "--frame-rate", 30, expect=1)
    assert "holds rows of other settings" in refused.stderr


def test_real_clips_are_recoloured(tmp_path):
    real, masks = moving_disc(3)
    (tmp_path / "data" / "disc").mkdir(parents=True)
    for i in range(3):
        Image.fromarray(real[i]).save(tmp_path / "data" / "disc" / f"{i}.jpg", quality=100)
        Image.fromarray(masks[i]).save(tmp_path / "data" / "disc" / f"{i}.png")
    call = ["--data", tmp_path / "data", "--model", "identity", "--size", 0, "--ways", "none"]
    run("eval_video.py", *call, "--output", tmp_path / "out")
    rows = rows_of(tmp_path / "out" / "rows.csv")
    assert {row["name"] for row in rows} == {"disc/gains", "disc/gamma"}
    assert all(float(row["fmse"]) > 50 for row in rows if row["way"] == "none")


def test_a_clip_becomes_an_animation(tmp_path):
    out = tmp_path / "clip.webp"
    run("make_animation.py", ROOT / "examples" / "clip.mp4", "--every", 20, "--width", 80, "--output", out)
    with Image.open(out) as image:
        assert (image.size, image.n_frames) == ((80, 52), 3)
        image.seek(1)
        assert np.asarray(image.convert("RGB")).std() > 20


def test_the_benchmark_runs(tmp_path):
    run("bench_video.py", "--frames", 4, "--size", "96x64", "--model", "reinhard", "--output", tmp_path)
    found = (tmp_path / "bench.json").read_text()
    assert '"cpu_ratio"' in found and '"peak_mb"' in found
