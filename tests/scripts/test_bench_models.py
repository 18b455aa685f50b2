import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "eval" / "bench_models.py"


def test_bench_counts_parameters_and_writes_json(tmp_path):
    output = tmp_path / "bench.json"
    command = [
        sys.executable,
        SCRIPT,
        "--models",
        "harmonizer_lite",
        "--sizes",
        "64",
        "--modes",
        "eager",
        "bf16",
    ]
    subprocess.run([*command, "--repeats", "1", "--threads", "1", "--output", output], check=True)
    eager, half = json.loads(output.read_text())["rows"]
    assert eager["parameters"] == half["parameters"] == 4_090_342
    assert eager["seconds"] > 0 and eager["gmac"] > 0.1
