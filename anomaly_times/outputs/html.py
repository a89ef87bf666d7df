"""One self-contained HTML page with a chart for each series: values, forecast, bounds, score.

The page opens from disk, offline: uPlot (MIT, vendored with its licence), style and data are inside, and a
Content-Security-Policy lets nothing run or load but these. Everything that comes from outside (titles, labels, queries)
is escaped. All times are UTC.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from importlib import resources
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from anomaly_times.durations import EPOCH
from anomaly_times.evidence import REASONS
from anomaly_times.panel import Floats, Grid, round_significant

__all__ = ["GENERATOR", "MAX_POINTS", "Chart", "Row", "Table", "Window", "render_page"]

GENERATOR = '<meta name="generator" content="anomaly-times">'
"""What every page of ours holds, so that it can be told from others."""

MAX_POINTS = 4000
"""A chart with more points is thinned out unless told otherwise; the extremes of values and scores stay."""

FOLDED_ROWS = 12
"""A table with more rows is folded away, so that the charts are not pushed out of sight."""

Status = Literal["found", "missed", ""]


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of time that is shaded behind a chart, e.g. an incident; both ends inclusive."""

    start: datetime
    end: datetime
    label: str = ""
    status: Status = ""


@dataclass(frozen=True, eq=False)
class Chart:
    """One series over `grid`: float64[n] each, NaN where there is nothing; `None` draws no such line.

    `reason` holds what each score is of, a place in `evidence.REASONS`: told in words where the score is over 1.
    `cutoff` is drawn as a vertical line: what lies after it was not known to the forecast.
    """

    title: str
    grid: Grid
    y: Floats
    yhat: Floats | None = None
    lower: Floats | None = None
    upper: Floats | None = None
    score: Floats | None = None
    subtitle: str = ""
    windows: tuple[Window, ...] = ()
    cutoff: datetime | None = None
    reason: Floats | None = None

    def __post_init__(self) -> None:
        for name in ("y", "yhat", "lower", "upper", "score", "reason"):
            array = getattr(self, name)
            if array is not None and array.shape != (self.grid.n,):
                raise ValueError(f"Chart.{name} is {array.shape}, not {self.grid.n} points")


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table; with `chart` (a position in the page's charts) and `window` it becomes a link that zooms."""

    cells: tuple[str, ...]
    status: Status = ""
    chart: int | None = None
    window: Window | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """A table above the charts; `empty` is said where there are no rows; a long one is folded away."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    empty: str = "None."


def render_page(
    title: str,
    charts: Sequence[Chart],
    *,
    lead: str = "",
    facts: Sequence[tuple[str, str]] = (),
    tables: Sequence[Table] = (),
    made: datetime | None = None,
    max_points: int = MAX_POINTS,
) -> str:
    """The page as HTML.

    Args:
        title: the heading.
        charts: in the order in which they are shown; what matters first.
        lead: one sentence under the heading.
        facts: the summary, as (name, value) pairs.
        tables: shown between summary and charts.
        made: when the page was made, now by default.
        max_points: a chart with more is thinned out.
    """
    script = "\n".join((_asset("uPlot.iife.min.js"), _asset("page.js")))
    style = "\n".join((_asset("uPlot.min.css"), _asset("page.css")))
    policy = f"default-src 'none'; script-src {_digest(script)}; style-src {_digest(style)}; base-uri 'none'"
    when = (made or datetime.now(UTC)).astimezone(UTC)
    data = _embed([_data(chart, max_points) for chart in charts])
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">',
        GENERATOR,
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n<main>",
        f"<header><h1>{escape(title)}</h1>",
        f"<p>{escape(lead)}</p>" if lead else "",
        f'<p class="muted">Made at {when:%Y-%m-%d %H:%M} UTC{_data_end(charts)}. All times are UTC.</p></header>',
        _facts(facts),
        *(_table(table) for table in tables),
        _key(charts) if charts else '<p class="muted">There is nothing to draw.</p>',
        *(_section(i, chart) for i, chart in enumerate(charts)),
        "<noscript><p>The charts need JavaScript, which is inside this file: nothing is loaded.</p></noscript>",
        f'</main>\n<script type="application/json" id="data">{data}</script>',
        f"<script>{script}</script>\n</body>\n</html>\n",
    ]
    return "\n".join(part for part in parts if part)


def _data_end(charts: Sequence[Chart]) -> str:
    """Up to when there are values."""
    ends = [
        c.grid.start + int(np.flatnonzero(known)[-1]) * c.grid.step for c in charts if (known := np.isfinite(c.y)).any()
    ]
    return f" from data up to {max(ends):%Y-%m-%d %H:%M}" if ends else ""


def _key(charts: Sequence[Chart]) -> str:
    """How to read the charts; what none of them shows is left out."""
    entries = (
        (True, "line value", "value"),
        (any(chart.yhat is not None for chart in charts), "line expected", "forecast"),
        (any(chart.lower is not None or chart.upper is not None for chart in charts), "box band", "bounds"),
        (any(chart.score is not None for chart in charts), "dot", "anomalous: score over 1"),
        (any(chart.windows for chart in charts), "box window", "marked time"),
        (any(chart.cutoff is not None for chart in charts), "line cutoff", "the last time that the forecast knew"),
    )
    shown = "\n".join(f'<span><i class="{style}"></i>{text}</span>' for there, style, text in entries if there)
    return f"""<section class="key" aria-label="How to read the charts">
{shown}
<span class="muted">Drag to zoom, all charts follow; double-click to zoom out.</span>
</section>"""


def _asset(name: str) -> str:
    return resources.files("anomaly_times.outputs").joinpath("assets", name).read_text("utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    if not facts:
        return ""
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts)
    return f'<dl class="facts">{items}</dl>'


def _table(table: Table) -> str:
    head = f"<section><h2>{escape(table.title)}</h2>"
    if not table.rows:
        return f'{head}<p class="muted">{escape(table.empty)}</p></section>'
    columns = "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    rows = "".join(_row(row, table.columns) for row in table.rows)
    body = f"<table><thead><tr>{columns}</tr></thead><tbody>{rows}</tbody></table>"
    body = f'<div class="scroll">{body}</div>'
    if len(table.rows) > FOLDED_ROWS:
        body = f"<details><summary>{len(table.rows)} rows</summary>{body}</details>"
    return f"{head}{body}</section>"


def _row(row: Row, columns: Sequence[str]) -> str:
    first, *rest = (escape(cell) for cell in row.cells)
    if row.status:
        first = f'<span class="pill {row.status}">{first}</span>'
    if row.chart is not None and row.window is not None and rest:
        span = f'data-chart="{row.chart}" data-from="{_seconds(row.window.start)}" data-to="{_seconds(row.window.end)}"'
        rest[0] = f'<a href="#chart-{row.chart}" {span}>{rest[0]}</a>'
    # Where there is no room for columns, each cell stands under its name.
    cells = zip(columns, (first, *rest), strict=True)
    return "<tr>" + "".join(f'<td data-column="{escape(name)}">{cell}</td>' for name, cell in cells) + "</tr>"


def _section(i: int, chart: Chart) -> str:
    subtitle = f'<p class="muted"><code>{escape(chart.subtitle)}</code></p>' if chart.subtitle else ""
    return (
        f'<section class="chart" id="chart-{i}"><h2>{escape(chart.title)}</h2>{subtitle}'
        f'<div class="plot"></div><div class="strip"></div></section>'
    )


def _embed(value: object) -> str:
    """JSON that cannot end the script element it stands in, whatever the strings hold."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _data(chart: Chart, max_points: int) -> dict[str, Any]:
    keep = _thin(chart, max_points)
    out: dict[str, Any] = {
        "t0": chart.grid.start_ms / 1000,
        "step": chart.grid.step_ms / 1000,
        "n": chart.grid.n,
        "y": _column(chart.y, keep),
        "windows": [
            {"from": _seconds(w.start), "to": _seconds(w.end), "label": w.label, "status": w.status}
            for w in chart.windows
        ],
    }
    if keep is not None:
        out["i"] = keep.tolist()
    if chart.cutoff is not None:
        out["cutoff"] = _seconds(chart.cutoff)
    for name in ("yhat", "lower", "upper", "score"):
        array = getattr(chart, name)
        if array is not None and np.isfinite(array).any():
            out[name] = _column(array, keep)
    if chart.score is not None and chart.reason is not None:
        out["of"] = _runs(chart.score, chart.reason, keep)
    return out


def _runs(score: Floats, reason: Floats, keep: npt.NDArray[np.int64] | None) -> list[tuple[int, int, str]]:
    """Stretches of anomalous points of one reason: the first and the last of those that are drawn, and its name."""
    drawn = np.arange(len(score)) if keep is None else keep
    told = np.where((score > 1) & np.isfinite(reason), reason, -1.0)[drawn].astype(np.intp)
    edges = [0, *(np.flatnonzero(np.diff(told)) + 1).tolist(), len(told)]
    return [
        (first, after - 1, REASONS[told[first]])
        for first, after in itertools.pairwise(edges)
        if first < after and told[first] >= 0
    ]


def _thin(chart: Chart, max_points: int) -> npt.NDArray[np.int64] | None:
    """Which points are drawn: per bucket the lowest and highest value, the highest score, and a gap; `None`: all."""
    n = chart.grid.n
    if n <= max_points:
        return None
    size = -(-n // (max_points // 4))
    buckets = -(-n // size)

    def cells(array: Floats, fill: float) -> Floats:
        out = np.full(buckets * size, fill)
        out[:n] = np.where(np.isfinite(array), array, fill)
        return out.reshape(buckets, size)

    firsts = np.arange(buckets) * size
    picks = [
        firsts + cells(chart.y, np.inf).argmin(axis=1),
        firsts + cells(chart.y, -np.inf).argmax(axis=1),
        firsts + cells(np.isnan(chart.y).astype(np.float64), 0.0).argmax(axis=1),
    ]
    if chart.score is not None:
        picks.append(firsts + cells(chart.score, -np.inf).argmax(axis=1))
    kept = np.unique(np.concatenate([*picks, [n - 1]]))
    return kept[kept < n]


def _column(array: Floats, keep: npt.NDArray[np.int64] | None) -> list[float | None]:
    shown = round_significant(array if keep is None else array[keep], 6)
    # A whole number prints without its ".0": two bytes of every seven in a page of counts.
    return [None if v - v != 0 else int(v) if abs(v) < 1e15 and v == int(v) else v for v in shown.tolist()]


def _seconds(at: datetime) -> float:
    return (at - EPOCH).total_seconds()
