import math
from dataclasses import replace

import pytest

from harmony_diffusion.errors import InputError
from harmony_diffusion.metrics.score_rows import Row
from harmony_diffusion.reports.gains import gains, gains_markdown, mean_psnr, untouched_markdown


def row(name, subset, psnr, mse, fmse=None):
    scores = {"psnr": psnr, "mse": mse} | ({} if fmse is None else {"fmse": fmse})
    return Row(name, subset, 0.2, "default", scores)


BEFORE = [
    row("a_1_1", "HLight", 20.0, 100.0, 400.0),
    row("a_1_2", "HLight", 22.0, 60.0, 200.0),
    row("b_1_1", "HTransfer", 30.0, 10.0, 100.0),
    row("c_1_1", "HTransfer", 25.0, 30.0),
]
AFTER = [
    row("a_1_1", "HLight", 23.0, 50.0, 100.0),
    row("a_1_2", "HLight", 21.0, 80.0, 300.0),
    row("b_1_1", "HTransfer", 31.0, 8.0, 50.0),
    row("c_1_1", "HTransfer", 25.0, 30.0),
]


def test_gains_are_those_worked_out_by_hand():
    everything, light, transfer = gains(AFTER, BEFORE[::-1])
    assert [g.subset for g in (everything, light, transfer)] == ["all", "HLight", "HTransfer"]
    assert everything.psnr == pytest.approx((3 - 1 + 1 + 0) / 4)
    assert everything.fmse_ratio == pytest.approx(450 / 700)
    assert everything.ratio_interval.low < everything.fmse_ratio < everything.ratio_interval.high
    # With one photograph, all draws give the same ratio.
    assert light.ratio_interval.low == light.ratio_interval.high == pytest.approx(400 / 600)
    assert everything.worse == 0.25 and light.worse == 0.5 and transfer.worse == 0
    assert light.psnr == pytest.approx(1.0) and light.fmse_ratio == pytest.approx(400 / 600)
    # One photograph alone cannot vary; several do.
    assert light.interval.low == light.interval.high == pytest.approx(1.0)
    assert everything.interval.low < everything.psnr < everything.interval.high


def test_rows_of_other_images_are_refused():
    with pytest.raises(InputError, match="same images"):
        gains(AFTER, BEFORE[1:])
    with pytest.raises(InputError):
        gains([], [])
    with pytest.raises(InputError):
        mean_psnr([])


def test_tables_show_every_set_and_kind():
    text = gains_markdown({"in place": gains(AFTER, BEFORE)})
    lines = text.splitlines()
    assert len(lines) == 2 + 3
    assert lines[2].startswith("| in place | all | 4 | +0.75 | ") and lines[2].endswith("| 64 % | 25 % |")
    table = untouched_markdown({"in place": AFTER})
    assert f"| in place | 4 | {math.fsum(r.scores['psnr'] for r in AFTER) / 4:.1f} |" in table


def test_colour_errors_stand_beside_psnr_if_both_have_them():
    def colored(rows, value):
        return [replace(row, scores={**row.scores, "fab": value}) for row in rows]

    found = gains(colored(AFTER, 3.0), colored(BEFORE, 4.0))
    assert found[0].fab_ratio == pytest.approx(0.75)
    lines = gains_markdown({"in place": found}).splitlines()
    assert "| 95 % interval | fΔab left | fMSE left |" in lines[0] and " | 75 % | 64 % | 25 % |" in lines[2]
    assert math.isnan(gains(colored(AFTER, 3.0), BEFORE)[0].fab_ratio)
