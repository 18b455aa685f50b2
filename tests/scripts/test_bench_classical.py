import json
from pathlib import Path

from run_script import run_script

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "eval" / "bench_classical.py"


def test_bench_compares_with_peers_and_with_a_checkout(tmp_path):
    output = tmp_path / "new" / "bench.json"
    options = ["--methods", "histogram_matching", "idt", "poisson", "--size", "96", "64", "--rounds", "2"]
    done = run_script(SCRIPT, *options, "--before", ROOT, "--output", output)
    report = json.loads(output.read_text())
    assert report["run"]["threads"] == 1 and report["run"]["load_before"] >= 0
    matching, transfer, poisson = report["rows"]
    assert (matching["peer"], transfer["peer"], poisson["peer"]) == ("skimage", None, "cv2")
    assert matching["to_peer"] > 0 and poisson["to_peer"] > 0 and transfer["to_peer"] is None
    for row in report["rows"]:
        assert row["to_before"] > 0 and row["cpu_ms"].keys() == row["wall_ms"].keys()
        assert row["difference_to_before_of_255"] == {"mean": 0, "max": 0}  # the checkout is this one
        assert f"| {row['method']} |" in done.stdout
    assert "histogram_matching to_peer" in done.stdout and "idt to_before" in done.stdout
