import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "eval" / "bench_training.py"


def test_bench_compares_each_stage_with_its_networks():
    command = [sys.executable, SCRIPT, "--steps", "2", "--batch_size", "1", "--size", "64"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    rows = re.findall(r"^\| (base|high|low) \| (.*) \|$", done.stdout, re.MULTILINE)
    assert [name for name, _ in rows] == ["base", "high", "low"]
    for _, values in rows:
        networks, loop, script, _, _ = map(float, values.split(" | "))
        assert 0 < networks <= loop <= script
