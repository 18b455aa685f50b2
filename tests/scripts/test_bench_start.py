import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "eval" / "bench_start.py"


def test_bench_measures_a_command_beside_a_checkout(tmp_path):
    output = tmp_path / "start.json"
    options = ["--rows", "harmony image", "--model", "reinhard", "--size", "64", "--rounds", "1"]
    command = [sys.executable, "-W", "ignore", SCRIPT, *options, "--before", ROOT, "--output", output]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (image,) = json.loads(output.read_text())["rows"]
    assert image["cpu_seconds"]["ours"] > 0 and image["wall_seconds"]["ours"] > 0
    assert image["peak_mib"]["ours"] > 100  # PyTorch alone needs more
    assert image["largest_difference_of_255"] == 0 and 0.2 < image["to_before"] < 5
    assert "| harmony image |" in done.stdout and "of before" in done.stdout
