import json
import subprocess
import sys
from pathlib import Path

from run_script import run_script

SCRIPT = Path(__file__).resolve().parents[2] / "eval" / "bench_diffusion.py"


def test_bench_times_every_row_and_writes_json(tmp_path):
    output = tmp_path / "bench.json"
    options = ["--components", "tiny", "--size", "64", "--steps", "2", "--repeats", "1", "--no-memory"]
    done = run_script(SCRIPT, *options, "--output", output)
    rows = {row["row"]: row for row in json.loads(output.read_text())["rows"]}
    assert list(rows) == ["floor", "floor_cond", "ours", "ours_cond", "diffusers"]
    assert all(row["seconds"] > 0 and row["to_floor"] > 0 for row in rows.values())
    assert "overhead" in done.stdout and "with control_cfg" in done.stdout


def test_bench_measures_the_memory_of_a_row():
    options = ["--components", "tiny", "--size", "64", "--steps", "1", "--peak-of", "ours"]
    command = [sys.executable, "-W", "ignore", SCRIPT, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 0 < float(done.stdout.splitlines()[-1]) < 1000  # MiB
