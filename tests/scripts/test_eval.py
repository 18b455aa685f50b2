import csv
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_script import run_script
from tiny_diffusion import make_pipe, trained_like

from harmony_diffusion import HarmonizationPipeline, create_model
from harmony_diffusion.metrics.functional import PSNR_CAP

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "eval" / "eval_dataset.py"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


run = partial(run_script, SCRIPT)


def read(path):
    return list(csv.DictReader(path.open()))


@pytest.fixture
def tiny_iharmony4(tmp_path):
    """Two composites of one ground truth, brighter by 10 and by 20 on a quarter of the frame."""
    folder = tmp_path / "data" / "HCOCO"
    for name in ("composite_images", "masks", "real_images"):
        (folder / name).mkdir(parents=True)
    real = np.full((256, 256, 3), 100, np.uint8)
    mask = np.zeros((256, 256), np.uint8)
    mask[:128, :128] = 255
    Image.fromarray(real).save(folder / "real_images" / "c1.png")
    Image.fromarray(mask).save(folder / "masks" / "c1_1.png")
    for k, shift in ((1, 10), (2, 20)):
        composite = real.copy()
        composite[mask > 0] += np.uint8(shift)
        Image.fromarray(composite).save(folder / "composite_images" / f"c1_1_{k}.png")
    (folder / "HCOCO_test.txt").write_text("c1_1_1.png\nc1_1_2.png\n")
    return tmp_path


@pytest.fixture
def noise_iharmony4(tmp_path):
    """Forty composites of 64x48 noise in two subsets; the first mask is empty."""
    generator = np.random.default_rng(0)
    for subset, letter in (("HCOCO", "c"), ("HFlickr", "f")):
        folder = tmp_path / "data" / subset
        for name in ("composite_images", "masks", "real_images"):
            (folder / name).mkdir(parents=True)
        names = [f"{letter}{i}_1_1" for i in range(20)]
        for name in names:
            composite, real = generator.integers(0, 256, (2, 48, 64, 3), dtype=np.uint8)
            mask = np.zeros((48, 64), np.uint8)
            if name != "c0_1_1":
                mask[10:30, 10:40] = 255
            Image.fromarray(composite).save(folder / "composite_images" / f"{name}.png")
            (tmp_path / "ready" / subset).mkdir(parents=True, exist_ok=True)
            Image.fromarray(composite).save(tmp_path / "ready" / subset / f"{name}.png")
            Image.fromarray(real).save(folder / "real_images" / f"{name[:-4]}.png")
            Image.fromarray(mask).save(folder / "masks" / f"{name[:-2]}.png")
        (folder / f"{subset}_test.txt").write_text("".join(f"{name}.png\n" for name in names))
    return tmp_path / "data"


def test_rows_hold_the_known_errors(tiny_iharmony4):
    out = tiny_iharmony4 / "out"
    done = run("--data", tiny_iharmony4 / "data", "--model", "identity", "--output", out)
    rows = read(out / "rows.csv")
    assert [row["name"] for row in rows] == ["c1_1_1", "c1_1_2"]
    for row, shift in zip(rows, (10, 20), strict=True):
        assert row["protocol"] == "default" and row["ssim"] == row["fssim"] == ""
        assert float(row["fmse"]) == shift**2 and float(row["bmse"]) == 0
        assert float(row["mse"]) == shift**2 / 4
        assert float(row["psnr"]) == pytest.approx(10 * np.log10(255**2 * 4 / shift**2))
        assert float(row["foreground_ratio"]) == 0.25
    assert "| default | all | 2 | 62.50 |" in done.stdout


def test_predictions_are_scored_by_every_protocol(tiny_iharmony4):
    out, data = tiny_iharmony4 / "out", tiny_iharmony4 / "data"
    ready = tiny_iharmony4 / "ready"
    (ready / "HCOCO").mkdir(parents=True)
    real = Image.open(data / "HCOCO" / "real_images" / "c1.png")
    real.save(ready / "HCOCO" / "c1_1_1.png")
    real.point(lambda value: value + 3).save(ready / "c1_1_2.png")
    run(
        "--data",
        data,
        "--predictions",
        ready,
        "--output",
        out,
        "--protocol",
        "idih,hdnet",
        "--metrics",
        "all",
    )
    rows = {(row["name"], row["protocol"]): row for row in read(out / "rows.csv")}
    assert list(rows) == [(name, p) for name in ("c1_1_1", "c1_1_2") for p in ("idih", "hdnet")]
    assert float(rows["c1_1_1", "idih"]["psnr"]) == PSNR_CAP
    assert float(rows["c1_1_1", "idih"]["fssim"]) == 1
    assert float(rows["c1_1_2", "idih"]["psnr"]) == pytest.approx(10 * np.log10(100**2 / 9))
    assert float(rows["c1_1_2", "hdnet"]["psnr"]) == pytest.approx(10 * np.log10(255**2 * 4 / 9))
    (ready / "c1_1_2.png").unlink()
    done = run("--data", data, "--predictions", ready, "--output", tiny_iharmony4 / "new", expect=2)
    assert "c1_1_2: is missing among the predictions" in done.stderr


def test_open_images_are_scored_by_a_list(tmp_path):
    root, ready = tmp_path / "open", tmp_path / "ready"
    (root / "test-masks").mkdir(parents=True)
    (root / "test").mkdir()
    ready.mkdir()
    table = ["MaskPath,ImageID,LabelName,BoxID,BoxXMin,BoxXMax,BoxYMin,BoxYMax,PredictedIoU"]
    for i in range(3):
        table.append(f"a{i}_m1_a.png,a{i},/m/1,a,0.1,0.7,0.2,0.8,0.9")
        mask = np.zeros((300, 400), np.uint8)  # larger than the photograph, as they are distributed
        mask[:150, :200] = 255
        Image.fromarray(mask).save(root / "test-masks" / f"a{i}_m1_a.png")
        photograph = np.full((90, 120, 3), 100 + i, np.uint8)
        Image.fromarray(photograph).save(root / "test" / f"a{i}.jpg")
        Image.fromarray(photograph + np.uint8(5)).save(ready / f"a{i}_m1_a.png")
    (root / "test" / "a1.jpg").unlink()  # and is not in the list
    (root / "test-annotations-object-segmentation.csv").write_text("\n".join(table))
    (tmp_path / "ids.txt").write_text("a2_m1_a\na0_m1_a\n")
    out = tmp_path / "out"
    run("--data", root, "--predictions", ready, "--output", out, "--ids", tmp_path / "ids.txt")
    rows = read(out / "rows.csv")
    assert [(row["name"], row["subset"]) for row in rows] == [(f"a{i}_m1_a", "open-images") for i in (0, 2)]
    for row in rows:
        assert float(row["mse"]) == float(row["fmse"]) == pytest.approx(25, abs=11)  # JPEG of the real
        assert float(row["foreground_ratio"]) == pytest.approx(0.25, abs=0.01)


def test_photographs_of_a_split_are_their_own_ground_truth(tmp_path):
    root = tmp_path / "photographs"
    (root / "own").mkdir(parents=True)
    lines = ["source,id,split"]
    for name, split in (("a", "val"), ("b", "test"), ("c", "val")):
        Image.new("RGB", (64, 48), (90, 120, 50)).save(root / "own" / f"{name}.jpg")
        mask = Image.new("L", (64, 48))
        mask.paste(255, (10, 10, 40, 30))
        mask.save(root / "own" / f"{name}.png")
        lines.append(f"own,{name},{split}")
    (root / "index.csv").write_text("\n".join(lines))
    run("--data", root, "--split", "val", "--model", "identity", "--output", tmp_path / "out")
    rows = read(tmp_path / "out" / "rows.csv")
    assert [row["name"] for row in rows] == ["own/a", "own/c"]
    assert all(float(row["mse"]) == 0 and float(row["psnr"]) == PSNR_CAP for row in rows)


def test_saved_model_and_pipeline_and_images(tiny_iharmony4):
    data = tiny_iharmony4 / "data"
    model = create_model("hdnet", base_channels=4)
    model.save_pretrained(tiny_iharmony4 / "model")
    HarmonizationPipeline(model).save_pretrained(tiny_iharmony4 / "pipeline")
    images = tiny_iharmony4 / "images"
    for name in ("model", "pipeline"):
        options = ["--save-images", images] if name == "model" else []
        run(
            "--data",
            data,
            "--model",
            tiny_iharmony4 / name,
            "--output",
            tiny_iharmony4 / f"o_{name}",
            *options,
        )
    first = (tiny_iharmony4 / "o_model" / "rows.csv").read_bytes()
    assert (tiny_iharmony4 / "o_pipeline" / "rows.csv").read_bytes() == first
    assert sorted(path.name for path in images.rglob("*.png")) == ["c1_1_1.png", "c1_1_2.png"]
    run("--data", data, "--predictions", images, "--output", tiny_iharmony4 / "again")
    assert (tiny_iharmony4 / "again" / "rows.csv").read_bytes() == first


def test_arguments_reach_the_pipeline(tiny_iharmony4):
    data = ["--data", tiny_iharmony4 / "data"]
    HarmonizationPipeline(create_model("hdnet", base_channels=4)).save_pretrained(tiny_iharmony4 / "network")
    make_pipe(trained_like()).save_pretrained(tiny_iharmony4 / "diffusion")
    run(*data, "--model", "identity", "--output", tiny_iharmony4 / "identity")
    same = (tiny_iharmony4 / "identity" / "rows.csv").read_bytes()
    few = {"network": [], "diffusion": ["num_inference_steps=1", "guidance_scale=1", "init=composite"]}
    for name, options in few.items():
        out = tiny_iharmony4 / f"o_{name}"
        run(*data, "--model", tiny_iharmony4 / name, "--output", out, "--call", "strength=1", *options)
        assert (out / "rows.csv").read_bytes() != same
        # Another argument is another run, and is not mixed with the first.
        options = ["--call", "strength=0", *options]
        failed = run(*data, "--model", tiny_iharmony4 / name, "--output", out, *options, expect=2)
        assert "call" in failed.stderr
        run(*data, "--model", tiny_iharmony4 / name, "--output", out, "--restart", *options)
        assert (out / "rows.csv").read_bytes() == same
    for text in ("scale=1", "strength", "mask=x"):
        arguments = ["--model", tiny_iharmony4 / "network", "--output", tiny_iharmony4 / text]
        failed = run(*data, *arguments, "--call", text, expect=2)
        assert "expected NAME=VALUE" in failed.stderr and f"got {text!r}" in failed.stderr


def test_copies_of_one_size_and_the_raw_output(tiny_iharmony4):
    data = tiny_iharmony4 / "data"
    create_model("idih", base_channels=4).save_pretrained(tiny_iharmony4 / "model")
    rows = {}
    for name, options in (("pasted", []), ("raw", ["--raw"])):
        out = tiny_iharmony4 / name
        arguments = ["--data", data, "--model", tiny_iharmony4 / "model", "--output", out, "--size", "256"]
        run(*arguments, *options)
        rows[name] = read(out / "rows.csv")
    assert all(float(row["bmse"]) == 0 for row in rows["pasted"])
    assert all(float(row["bmse"]) > 0 for row in rows["raw"])


def test_given_masks_may_be_off_and_composites_untouched(noise_iharmony4, tmp_path):
    data, rows = noise_iharmony4, {}
    for name, options in (
        ("as is", []),
        ("large", ["--mask-offset", "2"]),
        ("small", ["--mask-offset", "-2"]),
        ("untouched", ["--untouched"]),
        ("nothing", ["--untouched"]),
    ):
        method = "identity" if name == "nothing" else "reinhard"
        run("--data", data, "--model", method, "--output", tmp_path / name, *options)
        rows[name] = read(tmp_path / name / "rows.csv")
    for name in ("large", "small"):
        # The method sees another mask; the scores are those of the true one.
        columns = ("foreground_ratio", "fmse")
        ratios, errors = ([[row[c] for row in rows[n]] for n in ("as is", name)] for c in columns)
        assert ratios[0] == ratios[1] and errors[0] != errors[1]
    assert all(float(row["mse"]) == 0 for row in rows["nothing"])
    assert any(float(row["mse"]) > 0 for row in rows["untouched"])
    assert run("--data", data, "--predictions", data, "--output", tmp_path / "x", "--untouched", expect=2)


def test_two_processes_score_each_image_once(noise_iharmony4, tmp_path):
    options = [
        "--data",
        noise_iharmony4,
        "--model",
        "reinhard",
        "--protocol",
        "default,idih",
        "--batch-size",
        "3",
    ]
    done = run(*options, "--output", tmp_path / "one")
    assert "default: 1 images have no foreground and thus no fmse" in done.stdout
    rows = read(tmp_path / "one" / "rows.csv")
    assert len(rows) == 80 and len({(row["name"], row["protocol"]) for row in rows}) == 80
    assert rows[0]["fmse"] == rows[0]["fpsnr"] == "" and rows[0]["mse"]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--master_port",
        "29711",
    ]
    command += [SCRIPT, *options, "--output", tmp_path / "two"]
    subprocess.run([str(part) for part in command], check=True, capture_output=True, env=ENVIRONMENT)
    assert (tmp_path / "two" / "rows.csv").read_bytes() == (tmp_path / "one" / "rows.csv").read_bytes()


def test_killed_run_goes_on_to_the_same_bytes(noise_iharmony4, tmp_path):
    options = ["--data", str(noise_iharmony4), "--predictions", str(tmp_path / "ready"), "--batch-size", "2"]
    options += ["--metrics", "all", "--protocol", "default,bcmi,idih,dht,hdnet"]
    run(*options, "--output", tmp_path / "whole")
    out = tmp_path / "killed"
    killed = subprocess.Popen(
        [sys.executable, str(SCRIPT), *options, "--output", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    while killed.poll() is None and sum(p.read_bytes().count(b"\n") for p in out.glob("rows-*")) < 5:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (out / "rows.csv").exists()
    done = run(*options, "--output", out)
    assert "of 20 batches are already done" in done.stderr
    assert (out / "rows.csv").read_bytes() == (tmp_path / "whole" / "rows.csv").read_bytes()


def test_bench_measures_scoring_beside_decoding(tmp_path):
    report = tmp_path / "bench.json"
    command = [sys.executable, "eval/bench_evaluation.py", "--count", "24", "--repeats", "1"]
    subprocess.run([*command, "--output", report], check=True, cwd=ROOT, env=ENVIRONMENT, capture_output=True)
    assert '"score_cpu_s"' in report.read_text()
