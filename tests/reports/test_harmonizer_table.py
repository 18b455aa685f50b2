"""`harmonizer_markdown`: one table from the folder of `eval/harmonizer_tables.sh`."""

import json

import pytest

from harmony_diffusion.errors import InputError
from harmony_diffusion.reports.harmonizer_table import harmonizer_markdown

HEADER = "name,subset,foreground_ratio,protocol,mse,psnr,fmse\n"


def write_rows(path, fmse, psnr):
    """Write rows of two photographs, one of each kind."""
    path.parent.mkdir(parents=True)
    lines = [
        f"{name},{subset},0.2,default,{0.2 * error},{psnr},{error}\n"
        for (name, subset), error in zip((("a_1_1", "HLight"), ("b_1_1", "HTransfer")), fmse, strict=True)
    ]
    path.write_text(HEADER + "".join(lines))


@pytest.fixture
def folder(tmp_path):
    write_rows(tmp_path / "in_place" / "identity" / "rows.csv", (400, 600), 24)
    write_rows(tmp_path / "in_place" / "ours" / "rows.csv", (200, 550), 25.5)
    write_rows(tmp_path / "untouched_in_place" / "ours" / "rows.csv", (1, 1), 41.25)
    (tmp_path / "in_place" / "ours" / "fid.json").write_text(json.dumps({"fid": 12.345, "kid": 0.0021}))
    (tmp_path / "seconds").mkdir()
    (tmp_path / "seconds" / "ours.txt").write_text("0.256\n")
    return tmp_path


def test_ratios_are_those_worked_out_by_hand(folder):
    text = harmonizer_markdown(folder, ["in_place"], ["identity", "ours"])
    first, kinds = text.split("\n\n")
    row = first.splitlines()[3]
    # (200 + 550) / (400 + 600); the interval spans from one photograph alone to the other.
    assert row.startswith("| in_place | ours | 2 | 25.50 | 375.0 | 0.750 | 0.500 to 0.917 | 0 % | 12.3")
    assert row.endswith("| 2.10 | 41.2 | 0.26 |")
    assert first.splitlines()[2].startswith("| in_place | identity | 2 | 24.00 | 500.0 | 1.000 | ")
    assert [line.split(" | ")[2:6] for line in kinds.splitlines()[2:]] == [
        ["HLight", "1", "+1.50", "0.500"],
        ["HTransfer", "1", "+1.50", "0.917"],
    ]


def test_missing_measurements_are_not_run(folder):
    text = harmonizer_markdown(folder, ["in_place"], ["identity", "ours", "other"])
    identity, _, other = text.splitlines()[2:5]
    assert identity.endswith("| not run | not run | not run | not run |")
    assert other == "| in_place | other |" + " not run |" * 10


def test_composites_must_have_been_scored(folder):
    with pytest.raises(InputError, match=r"relocated.*rows\.csv"):
        harmonizer_markdown(folder, ["relocated"], ["ours"])
