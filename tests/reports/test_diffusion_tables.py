import json

import numpy as np
import pytest
import torch

from harmony_diffusion.errors import InputError
from harmony_diffusion.metrics.score_rows import Row
from harmony_diffusion.reports.diffusion_tables import (
    Distances,
    SweepPoint,
    parse_scales,
    read_distances,
    sweep_markdown,
    variants_markdown,
)
from harmony_diffusion.reports.diffusion_variants import legacy_uint8_mse, variant_scores
from harmony_diffusion.reports.tables import make_tables

# Table 2 of the paper: control scale, FID, PSNR, MSE.
PUBLISHED = """0.1 18.10 30.59 61.01
0.2 17.29 30.28 63.13
0.3 15.55 30.83 59.89
0.4 12.95 30.93 57.47
0.5 12.35 31.19 54.15
0.6 11.31 31.28 54.23
0.7 11.88 31.29 53.07
0.8 11.71 31.23 53.17
0.9 11.80 31.23 53.10
1.0 11.79 31.26 53.08"""


def test_four_variants_by_hand():
    real = torch.zeros(1, 3, 2, 2)
    mask = torch.tensor([[1.0, 0.0], [0.0, 0.0]]).view(1, 1, 2, 2)
    raw = torch.full((1, 3, 2, 2), 4.0)
    raw[..., 0, 0] = 20.0
    scores = variant_scores(raw, raw * mask, real, mask)
    assert scores["raw"]["mse"].item() == (400 + 3 * 16) / 4
    assert scores["pasted"]["mse"].item() == 100
    assert scores["raw"]["fmse"].item() == scores["pasted"]["fmse"].item() == 400
    assert scores["pasted"]["psnr"].item() == pytest.approx(10 * np.log10(255**2 / 100))
    assert scores["raw"]["fpsnr"].item() == pytest.approx(10 * np.log10(255**2 / 400))
    assert scores["legacy_uint8"]["mse"].item() == (400 - 256 + 3 * 16) / 4


def test_legacy_value_is_that_of_numpy_on_bytes():
    generator = np.random.default_rng(0)
    a, b = generator.integers(0, 256, (2, 1, 3, 9, 7), np.uint8)
    expected = np.mean((a - b) ** 2)
    assert legacy_uint8_mse(torch.from_numpy(a).float(), torch.from_numpy(b).float()).item() == expected


def test_equal_images_are_capped_in_every_variant():
    image = torch.full((1, 3, 4, 4), 7.0)
    scores = variant_scores(image, image, image, torch.ones(1, 1, 4, 4))
    assert all(values["psnr"].item() == 100 for values in scores.values())


def rows(raw, pasted):
    return [
        Row("a", "", 0.3, protocol, dict(zip(("mse", "psnr", "fmse", "fpsnr"), values, strict=True)))
        for protocol, values in (("raw", raw), ("pasted", pasted))
    ]


def test_table_of_variants_has_four_lines_a_method():
    methods = {
        "ours": rows((50, 31, 90, 28.5), (20, 35, 80, 29)),
        "sd": rows((60, 30, 95, 28), (1, 1, 1, 1))[:1],
    }
    methods["ours"].append(Row("a", "", 0.3, "legacy_uint8", {"mse": 9.0, "psnr": 38.0}))
    distances = {
        "ours": {"raw": Distances(11.79, 0.00123, 2000), "pasted_foreground": Distances(9, -0.001, 7)}
    }
    lines = variants_markdown(make_tables(methods, resamples=0), distances).splitlines()
    assert lines[2:] == [
        "| ours | raw, whole | 1 | 11.79 | 1.23 | 31.00 | 50.00 |",
        "| ours | raw, foreground | 1 | not run | not run | 28.50 | 90.00 |",
        "| ours | pasted, whole | 1 | not run | not run | 35.00 | 20.00 |",
        "| ours | pasted, foreground | 1 | 9.00 | -1.00 | 29.00 | 80.00 |",
        "| ours | raw, whole, wrapped 8-bit arithmetic | 1 | not run | not run | 38.00 | 9.00 |",
        "| sd | raw, whole | 1 | not run | not run | 30.00 | 60.00 |",
        "| sd | raw, foreground | 1 | not run | not run | 28.00 | 95.00 |",
    ]
    with pytest.raises(InputError, match="no rows of the protocols"):
        variants_markdown(make_tables({"m": [Row("a", "", 0.1, "idih", {"mse": 1.0})]}, resamples=0))


def test_sweep_is_laid_out_as_in_the_paper():
    points = [SweepPoint(*map(float, line.split())) for line in PUBLISHED.splitlines()]
    assert sweep_markdown(points).splitlines() == [
        "| λc | FID ↓ | PSNR / dB ↑ | MSE ↓ | λc | FID ↓ | PSNR / dB ↑ | MSE ↓ |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
        "| 0.1 | 18.10 | 30.59 | 61.01 | 0.6 | **11.31** | 31.28 | 54.23 |",
        "| 0.2 | 17.29 | 30.28 | 63.13 | 0.7 | 11.88 | **31.29** | **53.07** |",
        "| 0.3 | 15.55 | 30.83 | 59.89 | 0.8 | 11.71 | 31.23 | 53.17 |",
        "| 0.4 | 12.95 | 30.93 | 57.47 | 0.9 | 11.80 | 31.23 | 53.10 |",
        "| 0.5 | 12.35 | 31.19 | 54.15 | 1.0 | 11.79 | 31.26 | 53.08 |",
    ]


def test_sweep_of_odd_length_and_without_fid():
    nan = float("nan")
    lines = sweep_markdown([SweepPoint(s, nan, 30.0 + s, 60.0 - s) for s in (0.25, 0.5, 1.0)]).splitlines()
    assert lines[2] == "| 0.25 | not run | 30.25 | 59.75 | 1.0 | not run | **31.00** | **59.00** |"
    assert lines[3] == "| 0.5 | not run | 30.50 | 59.50 |  |  |  |  |"
    assert len({line.count("|") for line in lines}) == 1
    with pytest.raises(InputError, match="no point"):
        sweep_markdown([])


def test_scales_are_the_decimal_ones():
    assert parse_scales("0.1:1.0:0.1") == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    assert parse_scales("0.7") == (0.7,)


@pytest.mark.parametrize(
    "text",
    ["", "a", "0.1:1.0", "0.1:1:0", "1:0:0.1", "0:1:0.3", "-1", "nan", "inf:1:1", "0:1e9:1", "0:1,2:1"],
)
def test_bad_scales_are_refused(text):
    with pytest.raises(InputError, match="control scale"):
        parse_scales(text)


def test_distances_are_read(tmp_path):
    assert read_distances(tmp_path / "rows.csv") == {}
    path = tmp_path / "fid_pasted.json"
    path.write_text(json.dumps({"fid": 12.5, "kid": 0.002, "generated": 2000, "real": 2000}))
    assert read_distances(tmp_path / "rows.csv") == {"pasted": Distances(12.5, 0.002, 2000)}
    path.write_text("{}")
    with pytest.raises(InputError, match="is not a result of eval_fid"):
        read_distances(tmp_path / "rows.csv")
