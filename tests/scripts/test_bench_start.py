import json
from pathlib import Path

from run_script import run_script

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "eval" / "bench_start.py"


def test_bench_measures_a_command_beside_a_checkout(tmp_path):
    output = tmp_path / "start.json"
    options = ["--rows", "harmony image", "--model", "reinhard", "--size", "64", "--rounds", "1"]
    done = run_script(SCRIPT, *options, "--before", ROOT, "--output", output)
    (image,) = json.loads(output.read_text())["rows"]
    assert image["cpu_seconds"]["ours"] > 0 and image["wall_seconds"]["ours"] > 0
    assert image["peak_mib"]["ours"] > 100  # PyTorch alone needs more
    assert image["largest_difference_of_255"] == 0 and 0.2 < image["to_before"] < 5
    assert "| harmony image |" in done.stdout and "of before" in done.stdout
