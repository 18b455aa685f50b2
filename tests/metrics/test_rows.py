import math

import pytest

from harmony_diffusion.errors import InputError, OutputError
from harmony_diffusion.metrics.protocols import METRICS
from harmony_diffusion.metrics.rows import COLUMNS, ResumableRows, format_row, mean_rows, read_rows


def rows_of(unit):
    values = dict.fromkeys(METRICS, unit / 3) | {"foreground_ratio": 0.5}
    return [format_row(f"a,{unit}", "HCOCO", "default", values)]


@pytest.fixture
def expected(tmp_path):
    """What four units give without any trouble."""
    rows = ResumableRows(tmp_path / "whole", 4)
    rows.prepare({})
    for unit in rows.pending():
        rows.append(unit, rows_of(unit))
    return rows.finish().read_bytes()


def test_row_has_ten_digits_and_empty_cells():
    row = format_row("n", "s", "idih", {"foreground_ratio": 1 / 3, "mse": 12345.678901234, "fmse": math.nan})
    assert row == ["n", "s", "0.3333333333", "idih", "12345.6789", "", "", "", "", "", ""]
    assert len(row) == len(COLUMNS)


def test_rows_are_in_the_order_of_the_units(tmp_path, expected):
    first, second = ResumableRows(tmp_path / "two", 4), ResumableRows(tmp_path / "two", 4)
    first.prepare({"a": 1})
    assert first.pending() == second.pending() == [0, 1, 2, 3]
    for rows, units in ((first, (2, 0)), (second, (3, 1))):
        for unit in units:
            rows.append(unit, rows_of(unit))
    assert first.finish().read_bytes() == expected
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["rows.csv", "run.json"]
    assert [row["name"] for row in read_rows(first.target)] == ["a,0", "a,1", "a,2", "a,3"]


@pytest.mark.parametrize("cut", [1, 2, 20, 60, 70, 71, 72, 73, 74, 100, 145])
def test_file_cut_off_anywhere_is_completed_to_the_same_bytes(tmp_path, expected, cut):
    rows = ResumableRows(tmp_path / "cut", 4)
    rows.prepare({})
    for unit in (0, 1):
        rows.append(unit, rows_of(unit))
    (partial,) = (tmp_path / "cut").glob("*.partial")
    partial.write_bytes(partial.read_bytes()[:-cut])
    again = ResumableRows(tmp_path / "cut", 4)
    again.prepare({})
    pending = again.pending()
    assert {2, 3} < set(pending)
    for unit in pending:
        again.append(unit, rows_of(unit))
    assert again.finish().read_bytes() == expected
    finished = ResumableRows(tmp_path / "cut", 4)
    finished.prepare({})
    assert finished.pending() == [] and finished.finish().read_bytes() == expected


def test_missing_units_are_no_table(tmp_path):
    rows = ResumableRows(tmp_path, 2)
    rows.prepare({})
    rows.append(1, rows_of(1))
    with pytest.raises(InputError, match="holds 1 of 2 batches"):
        rows.finish()
    assert rows.pending() == [0]


def test_rows_of_other_settings_are_not_continued(tmp_path):
    ResumableRows(tmp_path, 2).prepare({"model": "mkl", "split": "test"})
    other = ResumableRows(tmp_path, 2)
    with pytest.raises(OutputError, match="other settings: model"):
        other.prepare({"model": "idt", "split": "test"})
    other.prepare({"model": "idt", "split": "test"}, restart=True)
    (tmp_path / "run.json").unlink()
    (tmp_path / "rows.csv").touch()
    with pytest.raises(OutputError, match="unknown settings"):
        other.prepare({})


def test_means_leave_out_what_is_not_there(tmp_path):
    rows = ResumableRows(tmp_path, 1)
    rows.prepare({})
    values = [{"foreground_ratio": 0.5, "mse": 4.0, "fmse": 8.0}, {"foreground_ratio": 0, "mse": 2.0}]
    rows.append(0, [format_row("n", f"S{i}", "bcmi", value) for i, value in enumerate(values)])
    means = mean_rows(rows.finish())
    assert means["bcmi", "all"] == {"images": 2, "empty": 1, "mse": 3.0, "fmse": 8.0}
    assert means["bcmi", "S1"] == {"images": 1, "empty": 1, "mse": 2.0}


def test_other_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="missing"):
        list(read_rows(tmp_path / "rows.csv"))
    (tmp_path / "rows.csv").write_text("name,psnr\n")
    with pytest.raises(InputError, match="other columns"):
        list(read_rows(tmp_path / "rows.csv"))
