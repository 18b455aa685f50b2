"""Report of one method as a self-contained HTML page without scripts, fonts or other files."""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template

import numpy as np
from PIL import Image

from harmony_diffusion.metrics.score_rows import HIGHER_IS_BETTER
from harmony_diffusion.reports.report_cases import ERROR_COLORS, ERROR_LEVELS, Case, CasePictures, error_map
from harmony_diffusion.reports.report_charts import linear_axis, ratio_axis, scatter_svg
from harmony_diffusion.reports.table_formats import (
    ARROWS,
    DECIMALS,
    HEADINGS,
    TITLES,
    better_share,
    interval_text,
    layout_table,
    number_text,
    p_text,
    side_by_side,
)
from harmony_diffusion.reports.tables import Tables

_SIDE = 520  # side of a stored picture in pixels, about twice the displayed size
_COLORS = 5  # number of point groups with separate colours; the last group contains all remaining subsets
_TITLES = {"best": "Largest gain", "median": "Median gain", "worst": "Smallest gain or largest loss"}


def report_page(
    method: str,
    baseline: str,
    tables: Tables,
    cases: Sequence[Case],
    pictures: Mapping[str, Sequence[CasePictures]],
    facts: Sequence[str],
    by_protocol: Tables | None = None,
) -> str:
    """Return the report as an HTML page.

    Args:
        method: Name of the method.
        baseline: Name of the method `identity` (the composites) in the tables.
        tables: Tables of one protocol, with `method`, `baseline` and optionally other methods.
        cases: Every image before and after harmonization.
        pictures: The cases to show, by group.
        facts: Lines of the notes as HTML: data, protocol, command.
        by_protocol: Tables of all protocols, to show them side by side.

    Returns:
        HTML.
    """
    template = Template((files("harmony_diffusion") / "reports" / "report.html").read_text("utf-8"))
    points = _points(cases)
    better = 100 * np.mean([case.gain > 0 for case in cases])
    return template.substitute(
        title=escape(f"{method}: harmonization report"),
        method=escape(method),
        lead=f"{len(cases):,} composites, each compared with its ground truth before and after "
        f"harmonization. PSNR rises in {better:.1f} % of them.",
        figures=_figures(method, baseline, tables),
        tables=_tables(tables, by_protocol),
        scatter_text="Each point is one image. In the first chart, points above the dashed line improved and "
        "points below it became worse. The second chart shows the gain against the foreground ratio. Rings "
        "mark the cases shown as pictures.",
        charts=_charts(method, points, pictures),
        key=_key(points),
        cases_text="Composite, result, ground truth, and absolute difference between result and ground "
        "truth, on the same scale for all cases. A photograph occurs at most once in a group.",
        error_levels=ERROR_LEVELS,
        error_colors=", ".join(f"rgb({r} {g} {b})" for r, g, b in ERROR_COLORS),
        cases="\n".join(_group(group, members, method) for group, members in pictures.items()),
        notes="\n".join(f"<li>{fact}</li>" for fact in [*facts, *map(escape, tables.notes)]),
    )


def _figures(method: str, baseline: str, tables: Tables) -> str:
    totals = {group.method: group for group in tables.of(tables.protocols[0], "all")}
    entries = []
    for metric, score in totals[method].scores.items():
        if metric in ("psnr", "fab", "mse", "fmse", "ssim") and metric in totals[baseline].scores:
            before = number_text(totals[baseline].scores[metric].mean, metric)
            entries.append(
                f"<div><dt>{TITLES[metric]} {ARROWS[metric in HIGHER_IS_BETTER]}</dt>"
                f"<dd>{number_text(score.mean, metric)}<small>composite {before}</small></dd></div>"
            )
    return "\n".join(entries)


def _tables(tables: Tables, by_protocol: Tables | None) -> str:
    blocks = []
    for kind, heading in HEADINGS.items():
        if groups := tables.of(tables.protocols[0], kind):
            blocks += [f"<h3>{heading}</h3>", _table(*layout_table(groups, kind, "<b>{}</b>".format, ARROWS))]
    for comparison in tables.comparisons:
        title = escape(f"{comparison.first} against {comparison.second}, image by image")
        heads = ["metric", "mean difference", "p", "better in", "images"]
        body = [
            [
                TITLES[metric],
                f"{test.difference:+.{DECIMALS[metric]}f} {interval_text(test.interval, metric)}",
                escape(p_text(test.p_value)),
                f"{100 * better_share(test, metric):.1f} %",
                f"{test.images:,}",
            ]
            for metric, test in comparison.tests.items()
        ]
        blocks += [f"<h3>{title}</h3>", _table([], heads, body)]
    if by_protocol and len(by_protocol.protocols) > 1:
        blocks += [
            "<h3>The same results under every protocol</h3>",
            _table(*side_by_side(by_protocol, ARROWS)),
        ]
    return "\n".join(blocks)


def _table(spans: Sequence[tuple[str, int]], heads: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = ['<div class="scroll"><table>', "<thead>"]
    if any(label for label, _ in spans):
        cells = (
            f'<th class="span" colspan="{width}">{escape(label)}</th>'
            if label
            else f'<th colspan="{width}"></th>'
            for label, width in spans
        )
        lines.append(f"<tr>{''.join(cells)}</tr>")
    lines.append("<tr>" + "".join(f"<th>{escape(head)}</th>" for head in heads) + "</tr></thead><tbody>")
    for first, *scores in body:
        shown = "".join(f"<td>{_score_cell(score)}</td>" for score in scores)
        lines.append(f"<tr><td>{escape(first)}</td>{shown}</tr>")
    return "\n".join([*lines, "</tbody></table></div>"])


def _score_cell(text: str) -> str:
    """Put the interval in small type under its mean, with minus signs as wide as plus signs."""
    text = re.sub(r"(?<![\w.])-(?=[\d.])", "−", text)
    mean, _, interval = text.partition(" [")
    low, _, high = interval.rstrip("]").partition(", ")
    return f"{mean}<small>{low} to {high}</small>" if interval else mean


def _points(cases: Sequence[Case]) -> dict[str, list[Case]]:
    """Group cases by subset. Subsets beyond the number of colours form one group."""
    names = sorted({case.after.subset for case in cases})
    kept = names if len(names) <= _COLORS else names[: _COLORS - 1]
    points: dict[str, list[Case]] = {name: [] for name in kept}
    for case in cases:
        points.setdefault(case.after.subset if case.after.subset in kept else "others", []).append(case)
    return points


def _charts(
    method: str, points: Mapping[str, Sequence[Case]], pictures: Mapping[str, Sequence[CasePictures]]
) -> str:
    shown = [(group, member.case) for group, members in pictures.items() for member in members]
    scores = {
        name: (
            np.array([case.before.scores["psnr"] for case in members]),
            np.array([case.after.scores["psnr"] for case in members]),
        )
        for name, members in points.items()
    }
    everything = np.concatenate([values for pair in scores.values() for values in pair])
    x, y = (
        linear_axis("PSNR of the composite, dB", everything),
        linear_axis(f"PSNR of {method}, dB", everything),
    )
    rings = [
        (case.before.scores["psnr"], case.after.scores["psnr"], f"{group}: {case.after.name}")
        for group, case in shown
    ]
    title = "PSNR of each image before and after harmonization"
    charts = [
        scatter_svg(scores, x, y, title=title, reference=[(x.low, x.low), (x.high, x.high)], rings=rings)
    ]
    sized = {
        name: [case for case in members if case.after.foreground_ratio > 0]
        for name, members in points.items()
    }
    if any(sized.values()):
        gains = {
            name: (
                np.array([case.after.foreground_ratio for case in members]),
                np.array([case.gain for case in members]),
            )
            for name, members in sized.items()
        }
        x = ratio_axis("foreground, share of the picture", np.concatenate([a for a, _ in gains.values()]))
        y = linear_axis("gain in PSNR, dB", np.concatenate([*(b for _, b in gains.values()), [0.0]]))
        rings = [
            (case.after.foreground_ratio, case.gain, f"{group}: {case.after.name}")
            for group, case in shown
            if case.after.foreground_ratio > 0
        ]
        title = "Gain in PSNR against the share of the foreground"
        charts.append(
            scatter_svg(gains, x, y, title=title, reference=[(x.low, 0.0), (x.high, 0.0)], rings=rings)
        )
    return "\n".join(f"<figure>{chart}</figure>" for chart in charts)


def _key(points: Mapping[str, Sequence[Case]]) -> str:
    return "\n".join(
        f'<span><svg viewBox="0 0 12 12" aria-hidden="true"><path class="points p{index}" d="M6 6h0"/></svg>'
        f"{escape(name or 'all images')} ({len(members):,})</span>"
        for index, (name, members) in enumerate(points.items())
    )


def _group(group: str, members: Sequence[CasePictures], method: str) -> str:
    if not members:
        return ""
    heads = "".join(f"<span>{escape(head)}</span>" for head in ("composite", method, "real", "error"))
    cases = "\n".join(_case(member, method) for member in members)
    return (
        f'<h3>{_TITLES[group]}</h3>\n<div class="cases">\n<div class="heads">{heads}</div>\n{cases}\n</div>'
    )


def _case(pictures: CasePictures, method: str) -> str:
    row, gain = pictures.case.after, pictures.case.gain
    before, after = pictures.case.before.scores["psnr"], row.scores["psnr"]
    error = error_map(pictures.harmonized, pictures.real)
    shots = (
        ("composite", "composite", pictures.composite),
        (method, f"harmonized by {method}", pictures.harmonized),
        ("real", "ground truth", pictures.real),
        ("error", f"error of {method}", error),
    )
    tags = "\n".join(
        f'<div data-label="{escape(label)}">'
        f'<img src="{_data_url(pixels)}" alt="{escape(f"{row.name}, {told}")}"></div>'
        for label, told, pixels in shots
    )
    facts = [
        f"<b>{before:.2f} → {after:.2f} dB</b>",
        f'<span class="{"up" if gain >= 0 else "down"}">{gain:+.2f} dB</span>',
    ]
    if "fmse" in row.scores and "fmse" in pictures.case.before.scores:
        facts.append(
            f"<span>fMSE {pictures.case.before.scores['fmse']:,.0f} → {row.scores['fmse']:,.0f}</span>"
        )
    if row.foreground_ratio >= 0:
        facts.append(f"<span>foreground {100 * row.foreground_ratio:.1f} %</span>")
    facts.append(f"<span>{escape(' / '.join(part for part in row.image if part))}</span>")
    return f'<figure class="case">\n{tags}\n<figcaption>{"".join(facts)}</figcaption></figure>'


def _data_url(pixels: np.ndarray) -> str:
    image = Image.fromarray(pixels)
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88, subsampling=0, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
