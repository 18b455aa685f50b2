"""Figures 6 and 7, agreement of edges, colour errors, and methods that were not run, on tiny models."""

import csv

import numpy as np
import pytest
from PIL import Image
from run_script import run_script
from tiny_diffusion import trained_like
from tiny_training import ROOT, save_base, save_colors, save_photographs

from harmony_diffusion.diffusion.control_settings import ControlSettings
from harmony_diffusion.errors import InputError
from harmony_diffusion.reports.scale_grid import GridCell, draw_grid, grid_csv, grid_markdown, read_grid


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Three test photographs, a base, both ControlNets and one that sees the raw foreground."""
    root = tmp_path_factory.mktemp("figures")
    save_photographs(root / "photographs")
    save_base(root / "base")
    components = trained_like()
    for name, settings in (
        ("high", ControlSettings("high")),
        ("low", ControlSettings("low")),
        ("raw", ControlSettings("low", sigma=0.0)),
    ):
        components[f"controlnet_{settings.role}"].save_pretrained(root / name)
        settings.save(root / name)
    save_colors(root / "colors.pt")
    return root


@pytest.fixture
def evaluate(places):
    def run_evaluation(output, *arguments, **expected):
        fixed = ["--data", places / "photographs", "--base", places / "base", "--output", output]
        fixed += ["--size", "64", "--steps", "2", "--caption_column", "label", "--limit", "2"]
        return run("eval_controlnets.py", *fixed, *arguments, **expected)

    return run_evaluation


def run(name, *arguments, **expected):
    return run_script(ROOT / "eval" / name, *arguments, **expected).stdout


def rows_of(path):
    with path.open(newline="") as file:
        return {(row["name"], row["protocol"]): row for row in csv.DictReader(file)}


def test_grid_has_a_cell_for_each_pair_of_scales(places, evaluate, tmp_path):
    both = ["--high", places / "high", "--low", places / "low"]
    fid = ["--extractor", places / "colors.pt", "--extractor_size", "32", "--force"]
    shown = evaluate(tmp_path / "grid", *both, *fid, "--scale-grid", "0.5,1")
    assert shown == (tmp_path / "grid" / "grid.md").read_text() and "not run" not in shown
    with (tmp_path / "grid" / "grid.csv").open(newline="") as file:
        cells = list(csv.DictReader(file))
    assert [(cell["high_scale"], cell["low_scale"]) for cell in cells] == [
        ("0.5", "0.5"), ("0.5", "1.0"), ("1.0", "0.5"), ("1.0", "1.0"),
    ]  # fmt: skip
    assert len({cell["psnr"] for cell in cells}) == 4
    assert Image.open(tmp_path / "grid" / "grid.png").size == (2 * (2 * 64 + 2 * 56), 2 * 64 + 2 * 56)
    evaluate(tmp_path / "alone", *both, "--high_scale", "0.5", "--low_scale", "1")
    alone = (tmp_path / "alone" / "rows.csv").read_bytes()
    assert alone == (tmp_path / "grid" / "0.5_1.0" / "rows.csv").read_bytes()
    evaluate(tmp_path / "no", "--high", places / "high", "--scale-grid", "0.5,1", expect=2)


def test_shrunk_foregrounds_change_the_condition_and_not_the_truth(places, evaluate, tmp_path):
    raw, found = ["--low", places / "raw"], {}
    for name, options in (
        ("plain", raw),
        ("shrunk", [*raw, "--shrink-foreground", "4"]),
        ("composite", ["--model", "identity", "--shrink-foreground", "4"]),
    ):
        evaluate(tmp_path / name, *options)
        found[name] = rows_of(tmp_path / name / "rows.csv")
    real = [sorted((tmp_path / name / "real" / "made").iterdir()) for name in ("plain", "shrunk")]
    assert [path.read_bytes() for path in real[0]] == [path.read_bytes() for path in real[1]]
    for key, row in found["plain"].items():
        assert row["mse"] != found["shrunk"][key]["mse"]
        if key[1] == "pasted":
            composite = found["composite"][key]
            assert float(composite["fmse"]) > 1 and composite["edges"] == "1"


def test_tables_show_edges_and_colour_errors_and_what_was_not_run(places, evaluate, tmp_path):
    shown = evaluate(tmp_path / "identity", "--model", "identity", "--edges_like", places / "high")
    assert "| PSNR ↑ | MSE ↓ | fΔab ↓ | edges ↑ |" in shown.splitlines()[0]
    lines = shown.splitlines()[2:]
    assert [line.split(" | ")[-2:] for line in lines[:4]] == [["0.00", "1.000 |"]] * 4
    assert lines[4].endswith("| – | – |")
    evaluate(tmp_path / "text")
    rows = [tmp_path / name / "rows.csv" for name in ("identity", "text")]
    command = "python eval/eval_controlnets.py --model paint-by-example"
    told = run(
        "make_tables.py", *rows, "--not-run", f"paint-by-example={command}",
        "--resamples", "0", "--output", tmp_path / "tables",
    )  # fmt: skip
    assert "PSNR ↑ | fΔab ↓ | MSE ↓" in told and f"paint-by-example: not run. `{command}`" in told
    (line,) = [line for line in told.splitlines() if line.startswith("| paint-by-example")]
    assert line.count("not run") == line.count("|") - 3 == 7
    for row in rows_of(rows[1]).values():
        if row["protocol"] == "pasted":
            assert float(row["fab"]) > 1 and 0 <= float(row["edges"]) < 1


def test_rows_with_and_without_the_new_columns_stand_in_one_table(tmp_path):
    for name, extra, value in (("old", "", ""), ("new", ",fab,edges", ",3.25,0.5")):
        head = "name,subset,foreground_ratio,protocol,mse,psnr,fmse,fpsnr,ssim,fssim,bmse"
        (tmp_path / name).mkdir()
        text = f"{head}{extra}\na,s,0.2,raw,10,38,50,31,,,{value}\n"
        (tmp_path / name / "rows.csv").write_text(text)
    paths = [tmp_path / name / "rows.csv" for name in ("old", "new")]
    shown = run("make_tables.py", *paths, "--output", tmp_path / "out")
    assert "| old | raw, whole | 1 | not run | not run | 38.00 | 10.00 | not run | not run |" in shown
    assert "| new | raw, whole | 1 | not run | not run | 38.00 | 10.00 | 3.25 | 0.500 |" in shown


def test_heat_map_is_brightest_at_the_best_cell():
    scales = (0.5, 1.0)
    fids = dict(zip([(h, low) for h in scales for low in scales], (40.0, 30.0, 20.0, 10.0), strict=True))
    cells = [GridCell(h, low, fid, 20 + fid) for (h, low), fid in fids.items()]
    image = np.asarray(draw_grid(cells).convert("L")).astype(int)
    # The upper left corner of each cell, where no number is written: FID falls, PSNR falls with it.
    corners = [[image[58 + 64 * row, left + 58 + 64 * column] for row in (0, 1) for column in (0, 1)]
               for left in (0, 240)]  # fmt: skip
    assert corners[0] == sorted(corners[0]) and corners[1] == sorted(corners[1], reverse=True)
    assert "| 1.0 | 20.00 | **10.00** |" in grid_markdown(cells)
    assert "| 0.5 | **60.00** | 50.00 |" in grid_markdown(cells)
    assert grid_csv(cells).splitlines()[1] == "0.5,0.5,40.000000,60.000000"
    with pytest.raises(InputError, match="one for each pair"):
        grid_markdown(cells[:3])


def test_a_missing_cell_is_named(tmp_path):
    with pytest.raises(InputError, match=r"0\.5_0\.5"):
        read_grid(tmp_path, (0.5, 1.0))
