import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "eval" / "bench_programs.py"


@pytest.mark.slow  # four processes that import PyTorch
def test_bench_compares_a_program_with_that_of_a_checkout(tmp_path):
    output = tmp_path / "programs.json"
    options = ["--rows", "pipeline color_grid", "--calls", "2", "--rounds", "1"]
    command = [sys.executable, "-W", "ignore", SCRIPT, *options, "--before", ROOT, "--output", output]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (row,) = json.loads(output.read_text())["rows"]
    assert set(row["cpu_seconds"]) == set(row["wall_seconds"]) == {"ours", "before"}
    assert row["largest"] == 0  # the same code gives the same picture
    assert "| pipeline color_grid |" in done.stdout
