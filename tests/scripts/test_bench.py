import json
from pathlib import Path

from run_script import run_script

SCRIPT = Path(__file__).resolve().parents[2] / "eval" / "bench_inference.py"


def test_bench_times_every_part_and_writes_json(tmp_path):
    output = tmp_path / "new" / "bench.json"
    options = ["--models", "reinhard", "--sizes", "96", "48", "--repeats", "1", "--threads", "1"]
    run = run_script(SCRIPT, *options, "--skip-rendering", "--output", output)
    report = json.loads(output.read_text())
    assert report["run"]["threads"] == 1 and report["run"]["versions"]["torch"]
    rows = report["models"]
    assert [(row["width"], row["height"]) for row in rows] == [(48, 32), (96, 64)]
    for row in rows:
        assert row["model"] == "reinhard" and row["weights"] == "none"
        for clock in ("_s", "_cpu_s"):
            assert all(row[part + clock] > 0 for part in ("decode", "model", "apply", "encode"))
        assert row["to_decode_and_encode"] > 1
        assert f"| reinhard | none | {row['width']}x{row['height']} |" in run.stdout
    assert 0 <= rows[0]["peak_mib"] <= rows[1]["peak_mib"]
    assert list(tmp_path.rglob("*")) == [output.parent, output]
