import json
from pathlib import Path

from run_script import run_script

SCRIPT = Path(__file__).resolve().parents[2] / "eval" / "bench_models.py"


def test_bench_counts_parameters_and_writes_json(tmp_path):
    output = tmp_path / "bench.json"
    options = [
        "--models",
        "harmonizer_lite",
        "--sizes",
        "64",
        "--modes",
        "eager",
        "bf16",
    ]
    run_script(SCRIPT, *options, "--repeats", "1", "--threads", "1", "--output", output)
    eager, half = json.loads(output.read_text())["rows"]
    assert eager["parameters"] == half["parameters"] == 4_090_342
    assert eager["seconds"] > 0 and eager["cpu_seconds"] > 0 and eager["gmac"] > 0.1
    assert eager["to_eager"] == 1 and half["to_eager"] > 0


def test_bench_counts_the_products_of_attention(tmp_path):
    output = tmp_path / "bench.json"
    options = ["--models", "gknet", "--sizes", "256", "--modes", "eager"]
    run_script(SCRIPT, *options, "--repeats", "1", "--threads", "1", "--output", output)
    (row,) = json.loads(output.read_text())["rows"]
    # Six layers of 1,024 tokens of 256 channels multiply 2 * 1,024^2 * 256 pairs each.
    assert round(row["gmac"], 2) == 34.71 and row["gmac"] > 31.48 + 6 * 2 * 1024**2 * 256 / 1e9
