"""Tables as Markdown, LaTeX, CSV and JSON."""

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from harmony_diffusion.metrics.bootstrap import Interval, PairedTest
from harmony_diffusion.metrics.score_rows import HIGHER_IS_BETTER, METRICS
from harmony_diffusion.reports.tables import RATIO_BINS, Group, Score, Tables

TITLES = {
    "mse": "MSE",
    "psnr": "PSNR",
    "fmse": "fMSE",
    "fpsnr": "fPSNR",
    "ssim": "SSIM",
    "fssim": "fSSIM",
    "bmse": "bMSE",
    "lpips": "LPIPS",
    "fab": "fΔab",
    "edges": "edges",
}
DECIMALS = {
    "mse": 2,
    "psnr": 2,
    "fmse": 2,
    "fpsnr": 2,
    "ssim": 4,
    "fssim": 4,
    "bmse": 3,
    "lpips": 4,
    "fab": 2,
    "edges": 3,
}
HEADLINE = ("psnr", "fab", "mse", "fmse")
_DIGITS = 6  # decimals in CSV and JSON
ARROWS = {True: "↑", False: "↓"}
_LATEX_ARROWS = {True: r"$\uparrow$", False: r"$\downarrow$"}
HEADINGS = {"all": "All images", "subset": "By subset", "ratio": "By foreground ratio"}


def to_json(tables: Tables) -> str:
    """Return the full content of the tables as JSON, numbers with six decimals."""
    groups = [
        {
            "method": group.method,
            "protocol": group.protocol,
            "kind": group.kind,
            "name": group.name,
            "count": group.count,
            "scores": {metric: _score_fields(score) for metric, score in group.scores.items()},
        }
        for group in tables.groups
    ]
    comparisons = [
        {
            "first": comparison.first,
            "second": comparison.second,
            "protocol": comparison.protocol,
            "metric": metric,
            "images": test.images,
            "difference": round(test.difference, _DIGITS),
            "low": round(test.interval.low, _DIGITS),
            "high": round(test.interval.high, _DIGITS),
            "p_value": round(test.p_value, _DIGITS),
            "first_larger": round(test.first_larger, _DIGITS),
        }
        for comparison in tables.comparisons
        for metric, test in comparison.tests.items()
    ]
    content = {"schema": 1, "groups": groups, "comparisons": comparisons, "notes": list(tables.notes)}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _score_fields(score: Score) -> dict[str, Any]:
    fields: dict[str, Any] = {"count": score.count, "mean": round(score.mean, _DIGITS)}
    if score.interval:
        fields |= {"low": round(score.interval.low, _DIGITS), "high": round(score.interval.high, _DIGITS)}
    return fields


def to_csv(tables: Tables) -> str:
    """Return CSV with one line per method, protocol, group and metric, numbers with six decimals."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("method", "protocol", "kind", "name", "metric", "count", "mean", "low", "high"))
    for group in tables.groups:
        for metric, score in group.scores.items():
            bounds = (score.interval.low, score.interval.high) if score.interval else ()
            numbers = [f"{value:.{_DIGITS}f}" for value in (score.mean, *bounds)]
            key = (group.method, group.protocol, group.kind, group.name, metric, score.count)
            writer.writerow([*key, *numbers, *[""] * (3 - len(numbers))])
    return buffer.getvalue()


def to_markdown(tables: Tables) -> str:
    """Return the tables as Markdown: intervals for all images, means for groups, best values in bold."""
    lines = []
    if len(tables.protocols) > 1:
        spans, heads, body = side_by_side(tables, ARROWS)
        lines += ["## Protocols side by side", "", *_markdown_table(spans, heads, body), ""]
    for protocol in tables.protocols:
        lines += [f"## Protocol `{protocol}`", ""] if protocol else []
        for kind, heading in HEADINGS.items():
            if not (groups := tables.of(protocol, kind)):
                continue
            spans, heads, body = layout_table(groups, kind, "**{}**".format, ARROWS)
            lines += [f"### {heading}", "", *_markdown_table(spans, heads, body), ""]
    for comparison in tables.comparisons:
        where = f", protocol `{comparison.protocol}`" if comparison.protocol else ""
        lines += [f"### {comparison.first} against {comparison.second}{where}", ""]
        lines += ["| metric | images | mean difference | interval | p | better in |", "|---|" + "---:|" * 5]
        for metric, test in comparison.tests.items():
            better = better_share(test, metric)
            digits = DECIMALS[metric]
            cells = (
                TITLES[metric],
                f"{test.images:,}",
                f"{test.difference:+.{digits}f}",
                f"{test.interval.low:+.{digits}f} to {test.interval.high:+.{digits}f}",
                p_text(test.p_value),
                f"{100 * better:.1f} %",
            )
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines + [f"- {note}" for note in tables.notes]).rstrip() + "\n"


def to_latex(tables: Tables) -> str:
    """Return one LaTeX `tabular` per table for the package booktabs, with the same cells as the Markdown."""
    lines = []
    if len(tables.protocols) > 1:
        lines += _latex_table("Protocols side by side", *side_by_side(tables, _LATEX_ARROWS))
    for protocol in tables.protocols:
        for kind, heading in HEADINGS.items():
            if not (groups := tables.of(protocol, kind)):
                continue
            spans, heads, body = layout_table(groups, kind, r"\textbf{{{}}}".format, _LATEX_ARROWS)
            title = f"{heading}, protocol {protocol}" if protocol else heading
            lines += _latex_table(title, spans, heads, body)
    return "\n".join([*lines, *(f"% {note}" for note in tables.notes)]).rstrip() + "\n"


def side_by_side(
    tables: Tables, arrows: Mapping[bool, str]
) -> tuple[list[tuple[str, int]], list[str], list[list[str]]]:
    """Lay out the scores over all images under every protocol, as in `layout_table`: protocols are rows."""
    turned = [
        replace(group, method=group.protocol, name=group.method, kind="subset")
        for group in tables.groups
        if group.kind == "all"
    ]
    # Values of different protocols are not comparable, so nothing is bold.
    spans, heads, body = layout_table(turned, "subset", str, arrows)
    return spans, ["protocol", *heads[1:]], body


def p_text(p_value: float) -> str:
    """Format a p-value.

    Example:
        >>> p_text(0.0312), p_text(0.00009999)
        ('0.031', '< 0.001')
    """
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def better_share(test: PairedTest, metric: str) -> float:
    """Return the share of images where the first method is better. Ties count half."""
    return test.first_larger if metric in HIGHER_IS_BETTER else 1 - test.first_larger


def number_text(value: float, metric: str) -> str:
    """Format a mean with the decimals of its metric. NaN gives a dash."""
    return "–" if math.isnan(value) else f"{value:.{DECIMALS[metric]}f}"


def layout_table(
    groups: Sequence[Group], kind: str, bold: Callable[[str], str], arrows: Mapping[bool, str]
) -> tuple[list[tuple[str, int]], list[str], list[list[str]]]:
    """Return labels with their column spans, column heads, and the body with one row per method."""
    methods = list(dict.fromkeys(group.method for group in groups))
    parts = [name for name in RATIO_BINS if kind == "ratio"] or list(dict.fromkeys(g.name for g in groups))
    present = [metric for metric in METRICS if any(metric in group.scores for group in groups)]
    metrics = present if kind == "all" else [metric for metric in HEADLINE if metric in present] or present
    found = {(group.method, group.name): group for group in groups}
    parts = [part for part in parts if any((method, part) in found for method in methods)]

    spans = [("", 1 if kind != "all" else 2)]
    for part in parts:
        size = max(found[method, part].count for method in methods if (method, part) in found)
        label = {"all": "", "subset": f"{part} ({size:,})", "ratio": f"{part} % ({size:,})"}[kind]
        spans.append((label, len(metrics)))
    heads = [f"{TITLES[metric]} {arrows[metric in HIGHER_IS_BETTER]}" for metric in metrics] * len(parts)
    heads = (["method", "images"] if kind == "all" else ["method"]) + heads
    body = []
    for method in methods:
        cells = [method] if kind != "all" else [method, f"{found[method, 'all'].count:,}"]
        for part in parts:
            rivals = [found[m, part] for m in methods if (m, part) in found]
            for metric in metrics:
                score = found[method, part].scores.get(metric) if (method, part) in found else None
                text = number_text(score.mean, metric) if score else "–"
                if score and len(methods) > 1 and _is_best(score, metric, rivals):
                    text = bold(text)
                if score and kind == "all" and score.interval:
                    text += f" {interval_text(score.interval, metric)}"
                cells.append(text)
        body.append(cells)
    return spans, heads, body


def interval_text(interval: Interval, metric: str) -> str:
    """Format an interval with the decimals of its metric, in brackets."""
    return f"[{number_text(interval.low, metric)}, {number_text(interval.high, metric)}]"


def _is_best(score: Score, metric: str, rivals: Sequence[Group]) -> bool:
    values = [rival.scores[metric].mean for rival in rivals if metric in rival.scores]
    return score.mean == (max(values) if metric in HIGHER_IS_BETTER else min(values))


def _markdown_table(
    spans: Sequence[tuple[str, int]], heads: Sequence[str], body: Sequence[Sequence[str]]
) -> list[str]:
    labels = [label for label, width in spans for _ in range(width)]
    headers = [f"{label} {head}".strip() for label, head in zip(labels, heads, strict=True)]
    lines = ["| " + " | ".join(headers) + " |", "|---|" + "---:|" * (len(headers) - 1)]
    return lines + ["| " + " | ".join(cells) + " |" for cells in body]


def _latex_table(
    title: str, spans: Sequence[tuple[str, int]], heads: Sequence[str], body: Sequence[Sequence[str]]
) -> list[str]:
    lines = [f"% {title}", r"\begin{tabular}{l" + "r" * (len(heads) - 1) + "}", r"\toprule"]
    lines += _latex_spans(spans) if any(label for label, _ in spans) else []
    lines += [_latex(heads), r"\midrule", *map(_latex, body)]
    return [*lines, r"\bottomrule", r"\end{tabular}", ""]


def _latex(cells: Sequence[str]) -> str:
    return " & ".join(_latex_text(cell) for cell in cells) + r" \\"


def _latex_text(text: str) -> str:
    for plain, written in {"_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "–": "--"}.items():
        text = text.replace(plain, written)
    return text


def _latex_spans(spans: Sequence[tuple[str, int]]) -> list[str]:
    cells, rules, column = [], [], 1
    for label, width in spans:
        cells.append(rf"\multicolumn{{{width}}}{{c}}{{{_latex_text(label)}}}" if label else "")
        rules.append(rf"\cmidrule(lr){{{column}-{column + width - 1}}}" if label else "")
        column += width
    return [" & ".join(cells) + r" \\", "".join(rules)]
