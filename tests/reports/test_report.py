import base64
import io
import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from harmony_diffusion.errors import InputError
from harmony_diffusion.metrics.score_rows import Row
from harmony_diffusion.reports.report_cases import (
    ERROR_COLORS,
    ERROR_LEVELS,
    CasePictures,
    choose_cases,
    error_map,
    pair_cases,
    picture_sheet,
)
from harmony_diffusion.reports.report_charts import linear_axis, ratio_axis, scatter_svg
from harmony_diffusion.reports.report_page import report_page
from harmony_diffusion.reports.tables import make_tables

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Nesting(HTMLParser):
    """Fails where a tag is closed that is not the open one."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.sources = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def rows_of(scores, subset="HCOCO", ratio=0.1):
    return [Row(f"c{i}_1_1", subset, ratio, "", {"psnr": s, "mse": 100 - s}) for i, s in enumerate(scores)]


@pytest.fixture
def cases():
    return pair_cases(rows_of([30.0] * 9), rows_of([30.0 + gain for gain in (3, -4, 0, 1, 9, -8, 2, -1, 5)]))


def pictures_of(case, height=40, width=60):
    generator = np.random.default_rng(0)
    return CasePictures(case, *generator.integers(1, 255, (3, height, width, 3), np.uint8))


def test_cases_are_paired_by_image_and_protocol():
    before = [*rows_of([30.0, 31.0]), Row("c0_1_1", "HFlickr", 0.1, "", {"psnr": 10.0})]
    (case,) = pair_cases(
        before, [Row("c1_1_1", "HCOCO", 0.1, "", {"psnr": 33.5}), Row("x", "", 0, "", {"psnr": 1.0})]
    )
    assert case.gain == 2.5
    with pytest.raises(InputError, match="no image and protocol in common"):
        pair_cases(before, [Row("c0_1_1", "HCOCO", 0.1, "idih", {"psnr": 1.0})])


def test_best_median_and_worst_are_chosen_by_gain(cases):
    chosen = choose_cases(cases, 2)
    assert list(chosen) == ["best", "median", "worst"]
    assert [[case.gain for case in group] for group in chosen.values()] == [[9, 5], [1, 0], [-8, -4]]

    with pytest.raises(InputError, match="at least 1 per group, got 0"):
        choose_cases(cases, 0)


def test_no_photograph_is_shown_twice_in_a_group_and_no_case_in_two():
    before = [Row(f"a_1_{k}", "", 0.1, "", {"psnr": 30.0}) for k in range(4)]
    after = [Row(f"a_1_{k}", "", 0.1, "", {"psnr": 30.0 + k}) for k in range(4)]
    chosen = choose_cases(pair_cases(before, after), 3)
    assert [[case.gain for case in group] for group in chosen.values()] == [[3], [1], [0]]


def test_error_map_ends_at_the_stated_level():
    real = np.zeros((1, 3, 3), np.uint8)
    harmonized = real.copy()
    harmonized[0, 1], harmonized[0, 2] = ERROR_LEVELS, 255
    assert error_map(harmonized, real)[0].tolist() == [list(ERROR_COLORS[0]), *[list(ERROR_COLORS[-1])] * 2]
    # The mean over channels counts: a third of the scale.
    harmonized[0, 0, 0] = ERROR_LEVELS
    assert error_map(harmonized, real)[0, 0, 0] == pytest.approx(247 + (221 - 247) / 3, abs=1)


def test_sheet_is_at_most_1600_wide_and_shows_the_pixels(cases):
    best, worst = cases[4], cases[5]
    red, green, blue = (np.full((80, 60, 3), c, np.uint8) for c in ((255, 0, 0), (0, 255, 0), (0, 0, 255)))
    groups = {
        "Best": [CasePictures(best, red, green, blue)] * 4,
        "Worst": [CasePictures(worst, blue, red, green), pictures_of(worst, 30, 200)],
    }
    sheet = picture_sheet(groups, "hdnet")
    assert sheet.width == 1600 and sheet.mode == "RGB"
    pixels = np.asarray(sheet)
    colors = [(pixels == color).all(2) for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    # Four lines of one block and one of the other; each color stands in another column of both.
    assert colors[0].sum() == colors[1].sum() == colors[2].sum() > 5 * 100 * 100
    columns = [np.flatnonzero(c[:, :780].any(0)).min() for c in colors]
    assert columns == sorted(columns) and columns[2] - columns[1] == columns[1] - columns[0]
    assert picture_sheet({"Best": groups["Best"]}, "hdnet").width == 802


def test_axes_hold_all_values_at_round_marks():
    generator = np.random.default_rng(0)
    for _ in range(200):
        values = generator.normal(size=5) * 10.0 ** generator.integers(-3, 4) + generator.normal() * 50
        axis = linear_axis("x", values)
        assert axis.low <= values.min() and values.max() <= axis.high
        assert 3 <= len(axis.ticks) <= 11
    assert linear_axis("x", np.array([7.0])).place(7.0) == pytest.approx(0, abs=1)
    axis = ratio_axis("x", np.array([0.012, 0.4]))
    assert axis.ticks == (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    assert axis.place(0.1) == pytest.approx(0.5)
    assert ratio_axis("x", np.array([1e-7])).place(1e-7) == 0


def test_points_stand_where_their_values_are():
    axis = linear_axis("x", np.array([0.0, 10.0]))
    svg = scatter_svg(
        {"a": (np.array([0.0, 10.0]), np.array([0.0, 10.0])), "b": (np.array([5.0]), np.array([5.0]))},
        axis,
        axis,
        title="a & b <c>",
        reference=[(0, 0), (10, 10)],
        rings=[(5.0, 5.0, 'x "y"')],
    )
    root = ElementTree.fromstring(svg)
    first, second = (e.get("d") for e in root if "points" in e.get("class", ""))
    (x0, y0), (x1, y1) = (map(float, m) for m in re.findall(r"M([\d.]+) ([\d.]+)h0", first))
    assert x0 < x1 and y0 > y1  # up is more
    ((x, y),) = (map(float, m) for m in re.findall(r"M([\d.]+) ([\d.]+)h0", second))
    assert (x, y) == pytest.approx(((x0 + x1) / 2, (y0 + y1) / 2), abs=0.1)
    ring = next(e for e in root if e.tag == "circle")
    assert float(ring.get("cx")) == pytest.approx(x, abs=0.1)
    assert root.get("aria-label") == "a & b <c>"


def test_page_is_whole_and_needs_nothing_else(cases):
    methods = {"composite": rows_of([30.0] * 9), "my <net>": [case.after for case in cases]}
    tables = make_tables(methods, comparisons=[("my <net>", "composite")], resamples=50)
    chosen = choose_cases(cases, 2)
    pictures = {group: [pictures_of(case) for case in members] for group, members in chosen.items()}
    page = report_page("my <net>", "composite", tables, cases, pictures, ["a fact"])
    parsed = Nesting(page)
    assert "script" not in parsed.tags and "link" not in parsed.tags
    assert parsed.tags.count("svg") == 2 + 1 and parsed.tags.count("table") == 4
    assert len(parsed.sources) == 6 * 4 and all(
        s.startswith("data:image/jpeg;base64,") for s in parsed.sources
    )
    assert not re.search(r"https?://|url\(|@import", page)
    assert "my <net>" not in page and "my &lt;net&gt;" in page and "$" not in page
    assert "PSNR rises in 55.6 % of them" in page and "30.00 → 39.00 dB" in page and "<li>a fact</li>" in page
    image = Image.open(io.BytesIO(base64.b64decode(parsed.sources[0].split(",")[1])))
    assert image.size == (60, 40)
    for svg in re.findall(r"<svg.*?</svg>", page, re.S):
        ElementTree.fromstring(svg)


def test_template_is_in_the_wheel():
    root = Path(__file__).resolve().parents[2]
    patterns = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert (root / "harmony_diffusion" / "reports" / "report.html").is_file()
    assert "reports/report.html" in patterns["harmony_diffusion"]


def test_every_color_and_length_of_the_style_sheet_is_defined():
    page = (Path(__file__).resolve().parents[2] / "harmony_diffusion" / "reports" / "report.html").read_text()
    style = page.split("<style>")[1].split("</style>")[0]
    assert style.count("{") == style.count("}") and style.count("(") == style.count(")")
    light, dark = (
        re.findall(r"(--[a-z0-9]+):", block) for block in re.findall(r":root \{(.*?)\}", style, re.S)
    )
    assert set(re.findall(r"var\((--[a-z0-9]+)\)", style)) == set(light)
    assert set(light) - set(dark) == {"--serif", "--sans"} and set(dark) < set(light)


def contrast(first, second):
    """Contrast of two colours #rrggbb as WCAG 2 defines it."""
    levels = [[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in (first, second)]
    linear = [[v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in c] for c in levels]
    a, b = sorted(np.array(linear) @ (0.2126, 0.7152, 0.0722))
    return (b + 0.05) / (a + 0.05)


def test_text_has_enough_contrast_in_both_schemes():
    page = (Path(__file__).resolve().parents[2] / "harmony_diffusion" / "reports" / "report.html").read_text()
    for block in re.findall(r":root \{(.*?)\}", page, re.S):
        colors = dict(re.findall(r"--([a-z0-9]+): (#[0-9a-f]{6})", block))
        for name in ("ink", "soft", "good", "bad"):
            assert contrast(colors[name], colors["paper"]) >= 4.5, name
        for name in ("p0", "p1", "p2", "p3", "p4"):
            assert contrast(colors[name], colors["paper"]) >= 3, name


def test_page_without_ratios_has_one_chart():
    methods = {
        name: [Row(f"{i}", "", float("nan"), "", {"psnr": value + i}) for i in range(3)]
        for name, value in (("composite", 30.0), ("mkl", 31.0))
    }
    cases = pair_cases(*methods.values())
    page = report_page("mkl", "composite", make_tables(methods, resamples=0), cases, {"best": []}, [])
    assert Nesting(page).tags.count("svg") == 1 + 1
    assert "3 of 3 images without a foreground ratio" in page


def test_many_subsets_share_the_last_color():
    before = [Row(f"{i}", f"S{i}", 0.1, "", {"psnr": 30.0}) for i in range(8)]
    cases = pair_cases(before, before)
    page = report_page("m", "m", make_tables({"m": before}, resamples=0), cases, {"best": []}, [])
    assert "others (4)" in page and 'points p4"' in page and 'points p5"' not in page
