"""What a command's result looks like, whatever prints it: rows, a JSON document, a long frame, charts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from anomaly_times.cli.options import Query
from anomaly_times.durations import format_duration, iso_utc
from anomaly_times.errors import AnomalyTimesError
from anomaly_times.mission import Mission
from anomaly_times.models import current_revision
from anomaly_times.outcome import capped_note, counted, distinct_names, grouped_notes, reasons
from anomaly_times.outputs import Chart
from anomaly_times.panel import Choice, Floats, Forecast, Grid, Labels, Panel, Scores
from anomaly_times.passes import DetectResult, ForecastResult
from anomaly_times.scoring import format_score
from anomaly_times.stores import Written

if TYPE_CHECKING:
    import polars as pl

__all__ = [
    "Cell",
    "DetectView",
    "ForecastView",
    "View",
    "beside",
    "budget_in_words",
    "capped_note",
    "counted",
    "distinct_names",
    "first_line",
    "found_at",
    "grouped_notes",
    "number",
    "reasons",
    "sparkline",
    "stamp",
]

Cell: TypeAlias = "str | list[tuple[str, str]]"
"""Text, or pieces of text with a style (`bad`, `good`, `muted` or none) each."""

JSON_SCHEMA = 1
SPARK_WIDTH = 24
_NAMED = 3
_BLOCKS = "▁▂▃▄▅▆▇█"
_CHART_HISTORY = 12
"""Of its history a forecast's chart shows so many times the horizon."""

_GATES = {
    "out_of_range": ("point is outside of the valid range", "points are outside of the valid range"),
    "direction": ("point is on the side that does not count", "points are on the side that does not count"),
    "min_deviation": (
        "point is closer to the forecast than what counts",
        "points are closer to the forecast than what counts",
    ),
    "missing": ("expected point is missing", "expected points are missing"),
}


class View(Protocol):
    """A result, ready to be printed in any form."""

    @property
    def title(self) -> str:
        """What was asked, and for which time."""
        ...

    @property
    def labels(self) -> tuple[Labels, ...]:
        """The series."""
        ...

    @property
    def columns(self) -> tuple[str, ...]:
        """The table's columns: `>` begins figures, which are flush right, `<` names that may be cut, `~` sparklines."""
        ...

    def rows(self, top: int, *, spark: int = SPARK_WIDTH) -> list[tuple[Cell, ...]]:
        """The first `top` rows of the table (0: all), what matters first; sparklines of up to `spark` blocks."""
        ...

    def summary(self) -> list[str]:
        """What belongs to the result and has no place in the table."""
        ...

    def notes(self) -> list[str]:
        """What a reader should know besides."""
        ...

    def document(self) -> dict[str, Any]:
        """The whole result for JSON; its form is described in `docs/cli.md`."""
        ...

    def frame(self) -> pl.DataFrame:
        """The whole result as a long frame."""
        ...

    def charts(self, top: int) -> list[Chart]:
        """The first `top` series as charts (0: all), what matters first."""
        ...


@dataclass(frozen=True, eq=False)
class ForecastView:
    """A forecast beside the history that it was made from; the largest change comes first.

    `where` says where it was stored, `failed` why it could not be.
    """

    query: Query
    result: ForecastResult
    forecast: Forecast
    history: Panel
    written: Written | None
    where: str = ""
    failed: AnomalyTimesError | None = None

    @classmethod
    def of(
        cls,
        query: Query,
        result: ForecastResult,
        written: Written | None,
        *,
        where: str = "",
        failed: AnomalyTimesError | None = None,
    ) -> ForecastView:
        """The view of a pass's result, which kept its history.

        Raises:
            AnomalyTimesError: the one that the result carries.
        """
        if result.error is not None:
            raise result.error
        if result.forecast is None or result.history is None:
            raise ValueError("a forecast is shown with its history")
        return cls(query, result, result.forecast, result.history, written, where, failed)

    @property
    def title(self) -> str:
        """The query, and what the forecast covers."""
        grid = self.forecast.grid
        return f"{self.query.mission.promql} · {stamp(grid.start)} to {stamp(grid.end)} UTC"

    @property
    def labels(self) -> tuple[Labels, ...]:
        """The series."""
        return self.forecast.labels

    @property
    def columns(self) -> tuple[str, ...]:
        """The table's columns."""
        grid = self.forecast.grid
        ahead = format_duration(grid.n * grid.step)
        shown = format_duration(self._recent().grid.n * grid.step)
        return ("<series", f"~last {shown}", ">last", ">next", ">bounds", f">in {ahead}", f"~next {ahead}")

    def _recent(self) -> Panel:
        n = max(SPARK_WIDTH, 2 * self.forecast.grid.n)
        return self.history.columns(slice(max(0, self.history.grid.n - n), None))

    def _order(self) -> npt.NDArray[np.intp]:
        last, final = _last(self.history.y), _last(self.forecast.yhat)
        with np.errstate(invalid="ignore"):
            change = np.abs(final - last) / np.maximum(np.maximum(np.abs(final), np.abs(last)), 1e-300)
        return np.argsort(-np.nan_to_num(change, nan=-1.0), kind="stable")

    def rows(self, top: int, *, spark: int = SPARK_WIDTH) -> list[tuple[Cell, ...]]:
        """One row a series."""
        names, recent, f = distinct_names(self.forecast.labels), self._recent(), self.forecast
        return [
            (
                names[i],
                sparkline(recent.y[i], width=spark),
                number(_last(self.history.y[i : i + 1])[0]),
                number(f.yhat[i, 0]),
                f"{number(f.lower[i, 0])} … {number(f.upper[i, 0])}",
                number(f.yhat[i, -1]),
                sparkline(f.yhat[i], width=spark),
            )
            for i in _first(self._order(), top)
        ]

    def summary(self) -> list[str]:
        """Counts, and what was written."""
        mission, f = self.query.mission, self.forecast
        text = f"{counted(len(f.labels), 'series', 'series')}, {f.grid.n} steps of {format_duration(f.grid.step)} each"
        text += f", {budget_in_words(mission)}, model {_model_names(mission.forecast.model.type, f)}"
        again = "had this forecast already (its two bounds count as series)"
        return [text, _stored(self.query, self.written, "forecast", self.where, again, failed=self.failed is not None)]

    def notes(self) -> list[str]:
        """Warnings, series that ended, and what models said about rows."""
        notes = list(self.result.warnings)
        if self.result.ended:
            notes.append(f"{counted(self.result.ended, 'series has', 'series have')} ended: left out")
        if self.result.capped:
            notes.append(capped_note(self.result.capped, len(self.forecast.labels)))
        return notes + _counter_note(self.query, self.history.y) + grouped_notes(self.forecast)

    def document(self) -> dict[str, Any]:
        """The forecast for JSON."""
        f, spec = self.forecast, self.query.mission.forecast.model
        named = Choice(spec.type, "", revision=current_revision(spec) if len(f.models) < len(f.labels) else "")
        series = [
            {
                "labels": dict(labels),
                "yhat": _list(f.yhat[i]),
                "lower": _list(f.lower[i]),
                "upper": _list(f.upper[i]),
                "model": f.models.get(i, named).model,
                "revision": f.models.get(i, named).revision or None,
                "why": f.models.get(i, named).why or None,
                "warming": i in f.warming,
                "note": f.notes.get(i),
            }
            for i, labels in enumerate(f.labels)
        ]
        head = _head("forecast", self.query, f.grid)
        cutoff = iso_utc(f.cutoff) if f.cutoff else None
        return head | {
            "cutoff": cutoff,
            "series": series,
            "warnings": self.notes(),
            "written": _written(self.written, self.failed),
            "error": _error(self.failed),
        }

    def frame(self) -> pl.DataFrame:
        """`unique_id, ds, yhat, yhat_lower, yhat_upper`."""
        return self.forecast.to_frame()

    def charts(self, top: int) -> list[Chart]:
        """History, and the forecast after its cutoff."""
        f = self.forecast
        history = self.history.columns(slice(max(0, self.history.grid.n - _CHART_HISTORY * f.grid.n), None))
        before = history.grid.n
        grid = Grid(history.grid.start, f.grid.step, before + f.grid.n)
        names = distinct_names(f.labels)

        def after(values: Floats) -> Floats:
            return np.concatenate([np.full(before, np.nan), values])

        return [
            Chart(
                names[i],
                grid,
                np.concatenate([history.y[i], np.full(f.grid.n, np.nan)]),
                after(f.yhat[i]),
                after(f.lower[i]),
                after(f.upper[i]),
                subtitle=str(f.labels[i]),
                cutoff=f.cutoff,
            )
            for i in _first(self._order(), top)
        ]


@dataclass(frozen=True, eq=False)
class DetectView:
    """Scores beside what they compare; the highest score comes first.

    `made` is the forecast that was made for the occasion, `None` where stored ones served; `mixed` if both did.
    `failed` says why the scores could not be stored.
    """

    query: Query
    result: DetectResult
    scores: Scores
    written: Written | None
    made: Forecast | None = None
    mixed: bool = False
    failed: AnomalyTimesError | None = None

    @classmethod
    def of(
        cls,
        query: Query,
        result: DetectResult,
        written: Written | None,
        *,
        made: Forecast | None = None,
        mixed: bool = False,
        failed: AnomalyTimesError | None = None,
    ) -> DetectView:
        """The view of a pass's result.

        Raises:
            AnomalyTimesError: the one that the result carries.
        """
        if result.error is not None:
            raise result.error
        nothing = np.empty((0, 0))
        grid = Grid(query.mission.last_time(query.now), query.mission.step, 0)
        empty = Scores((), grid, nothing, nothing, nothing, nothing, nothing)
        return cls(query, result, result.scores or empty, written, made, mixed, failed)

    @property
    def title(self) -> str:
        """The query, and the time that was scored."""
        grid = self.scores.grid
        if not grid.n:
            return self.query.mission.promql
        return f"{self.query.mission.promql} · {stamp(grid.start)} to {stamp(grid.end)} UTC"

    @property
    def labels(self) -> tuple[Labels, ...]:
        """The series."""
        return self.scores.labels

    @property
    def columns(self) -> tuple[str, ...]:
        """The table's columns."""
        grid = self.scores.grid
        return (
            "<series",
            f"~{format_duration(grid.n * grid.step)}",
            ">score",
            "of",
            ">value",
            ">forecast",
            ">bounds",
            ">over 1",
        )

    def _order(self) -> npt.NDArray[np.intp]:
        return np.argsort(-np.nan_to_num(self._highest(), nan=-1.0), kind="stable")

    def _highest(self) -> Floats:
        highest: Floats = np.fmax.reduce(self.scores.score, axis=1, initial=np.nan)
        return highest

    def rows(self, top: int, *, spark: int = SPARK_WIDTH) -> list[tuple[Cell, ...]]:
        """One row a series, with the point of its highest score."""
        s, names, highest = self.scores, distinct_names(self.scores.labels), self._highest()
        told, long = reasons(s), s.grid.n * s.grid.step_ms > 86_400_000
        rows: list[tuple[Cell, ...]] = []
        for i in _first(self._order(), top):
            flagged = s.score[i] > 1
            line = sparkline(s.y[i], flagged, width=spark)
            if np.isnan(highest[i]):
                rows.append((names[i], line, "–", "", number(_last(s.y[i : i + 1])[0]), "–", "", ""))
                continue
            t = int(np.nanargmax(s.score[i]))
            over = int(flagged.sum())
            rows.append(
                (
                    names[i],
                    line,
                    [(format_score(highest[i]), "bad" if over else "good")],
                    found_at(told[i, t], stamp(s.grid.start + t * s.grid.step, day=long)),
                    number(s.y[i, t]),
                    number(s.yhat[i, t]),
                    f"{number(s.lower[i, t])} … {number(s.upper[i, t])}",
                    str(over) if over else "",
                )
            )
        return rows

    def summary(self) -> list[str]:
        """Counts, what could not be scored before all, and what was written."""
        s, blind = self.scores, self.result.unforecast
        if not s.grid.n:
            newest = stamp(self.query.mission.last_time(self.query.now))
            return [f"nothing is new since {newest} UTC; `--last 1h` scores that time again"]
        scored, over = int(np.isfinite(s.score).sum()), s.score > 1
        text = f"{counted(int(over.sum()), 'point', 'points')} of {scored:,} anomalous (score over 1)"
        text += f", in {int(over.any(axis=1).sum())} of {counted(len(s.labels), 'series', 'series')}"
        lines = [text] if scored or not blind else []
        if blind:
            lines.insert(0, f"{counted(blind, 'point has', 'points have')} no forecast, and so no score")
        again = "had scores at these times already, and keep them"
        return [
            *lines,
            _stored(self.query, self.written, "score", str(self.query.source), again, failed=self.failed is not None),
        ]

    def notes(self) -> list[str]:
        """Where the forecast came from, warnings, gates, and points that could not be scored."""
        notes: list[str] = []
        if not self.scores.grid.n:
            return notes
        if self.made is not None:
            grid = self.made.grid
            cutoff = stamp(grid.start - grid.step)
            lacking = "the stored forecast covers a part of this" if self.mixed else "no forecast is stored"
            notes.append(f"{lacking}: made one for the occasion from what was known at {cutoff} UTC")
        notes += self.result.warnings
        for gate, n in self.result.gates.items():
            one, many = _GATES[gate]
            notes.append(counted(n, one, many))
        notes += _counter_note(self.query, self.scores.y)
        return notes + (grouped_notes(self.made) if self.made is not None else [])

    def document(self) -> dict[str, Any]:
        """The scores for JSON."""
        s, highest, told = self.scores, self._highest(), reasons(self.scores)
        series = [
            {
                "labels": dict(s.labels[i]),
                "max_score": _list(highest[i : i + 1])[0],
                "max_reason": told[i, int(np.nanargmax(s.score[i]))] if np.isfinite(highest[i]) else None,
                "y": _list(s.y[i]),
                "yhat": _list(s.yhat[i]),
                "lower": _list(s.lower[i]),
                "upper": _list(s.upper[i]),
                "score": _list(s.score[i]),
                "reason": told[i].tolist(),
            }
            for i in self._order()
        ]
        return _head("detect", self.query, s.grid) | {
            "forecast": "both" if self.mixed else "made" if self.made is not None else "stored",
            "anomalous": int((s.score > 1).sum()),
            "unforecast": self.result.unforecast,
            "gates": dict(self.result.gates),
            "series": series,
            "warnings": self.notes(),
            "written": _written(self.written, self.failed),
            "error": _error(self.failed),
        }

    def frame(self) -> pl.DataFrame:
        """`unique_id, ds, y, yhat, yhat_lower, yhat_upper, score, reason`."""
        import polars as pl

        told = pl.Series("reason", reasons(self.scores).reshape(-1).tolist(), dtype=pl.String)
        frame = self.scores.to_frame(gaps=True).with_columns(told)
        return frame.filter(pl.col("score").is_not_nan())

    def charts(self, top: int) -> list[Chart]:
        """Values, forecast and scores."""
        s, names = self.scores, distinct_names(self.scores.labels)
        return [
            Chart(
                *(names[i], s.grid, s.y[i], s.yhat[i], s.lower[i], s.upper[i], s.score[i]),
                subtitle=str(s.labels[i]),
                reason=s.reason[i] if s.reason is not None else None,
            )
            for i in _first(self._order(), top)
        ]


def found_at(reason: str | None, at: str) -> str:
    """`level shift at 11:40`: what a score is of, and when that was."""
    return f"{reason} at {at}" if reason else f"at {at}"


def budget_in_words(mission: Mission) -> str:
    """How sensitive a mission is: `half an alert a series and week`, `99.9 % bounds`."""
    if mission.forecast.level is not None:
        return f"{mission.forecast.level:g} % bounds"
    budget, mine = mission.detect.alerts_per_week, "series and " if mission.detect.per == "series" else ""
    alerts = "half an alert" if budget == 0.5 else f"{budget:g} " + ("alert" if budget == 1 else "alerts")
    return f"{alerts} a {mine}week"


def shared_labels(labels: Sequence[Labels]) -> str:
    """What `distinct_names` leaves out, as a label set; empty where that is nothing."""
    if len(labels) < 2:
        return ""
    shared = frozenset.intersection(*(frozenset(row) for row in labels))
    return str(Labels(sorted(shared))) if shared else ""


def sparkline(values: Floats, flagged: npt.NDArray[np.bool_] | None = None, *, width: int = SPARK_WIDTH) -> Cell:
    """`values` as a line of blocks, one for each point or, where there are more than `width`, each run of points.

    A run shows the point that is farthest from the series' median, so that a lone spike is seen; a gap is blank.
    Blocks with a point in `flagged` have the style `bad`.
    """
    finite = values[np.isfinite(values)]
    if not finite.size:
        return ""
    low, high, middle = finite.min(), finite.max(), np.median(finite)
    span = high - low
    pieces = []
    for run in np.array_split(np.arange(len(values)), min(width, len(values))):
        known = run[np.isfinite(values[run])]
        if not known.size:
            pieces.append((" ", ""))
            continue
        farthest = values[known[np.argmax(np.abs(values[known] - middle))]]
        block = _BLOCKS[min(7, int((farthest - low) / span * 8))] if span > 0 else _BLOCKS[3]
        pieces.append((block, "bad" if flagged is not None and flagged[run].any() else ""))
    return pieces


def number(value: float) -> str:
    """Four significant digits, with k, M, G or T from ten thousand on; `–` for none."""
    size = abs(value)
    if value != value:
        return "–"
    if size >= 1e15 or 0 < size < 1e-4:
        return f"{value:.2e}"
    for unit, least, scale in (("T", 1e12, 1e12), ("G", 1e9, 1e9), ("M", 1e6, 1e6), ("k", 1e4, 1e3)):
        if size >= least:
            return f"{value / scale:.4g}{unit}"
    return f"{value:.4g}"


def first_line(message: str) -> str:
    """What a message says in brief: further lines show where in a query, and belong into a text of its own."""
    return message.partition("\n")[0]


def stamp(at: datetime, *, day: bool = True) -> str:
    """A UTC time for people."""
    seconds = ":%S" if at.second or at.microsecond else ""
    return at.strftime(("%Y-%m-%d " if day else "") + "%H:%M" + seconds)


def _first(order: npt.NDArray[np.intp], top: int) -> list[int]:
    return [int(i) for i in (order[:top] if top else order)]


def _last(y: Floats) -> Floats:
    """The last value of each row: float64[S], NaN where it has none."""
    known = np.isfinite(y)
    column = y.shape[1] - 1 - np.argmax(known[:, ::-1], axis=1)
    return np.where(known.any(axis=1), y[np.arange(len(y)), column], np.nan)


def _list(values: Floats) -> list[float | None]:
    return [value if value - value == 0 else None for value in values.tolist()]


def _head(kind: str, query: Query, grid: Grid) -> dict[str, Any]:
    return {
        "schema": JSON_SCHEMA,
        "kind": kind,
        "mission": query.mission.name,
        "promql": query.mission.promql,
        "source": str(query.source),
        "step": format_duration(grid.step),
        "times": [iso_utc(grid.start + i * grid.step) for i in range(grid.n)],
    }


def _written(written: Written | None, failed: AnomalyTimesError | None) -> dict[str, int] | None:
    if written is None or failed is not None:
        return None
    return {"samples": written.samples, "series": written.series, "skipped": written.skipped}


def _error(error: AnomalyTimesError | None) -> dict[str, Any] | None:
    if error is None:
        return None
    return {"message": error.message, "hint": error.hint, "exit_code": error.exit_code}


def _stored(query: Query, written: Written | None, what: str, where: str, again: str, *, failed: bool) -> str:
    """What was written where; `again` says what series that were skipped have."""
    if failed:
        return f"no {what} stored: the write failed"
    if written is None:
        return f"dry run: no {what} stored"
    place = f"{where} as mission {query.mission.name}"
    skipped = f"{counted(written.skipped, 'series', 'series')} {again}" if written.skipped else ""
    if skipped and not written.samples:
        return f"nothing new to store in {place}: {skipped}"
    text = f"stored {counted(written.samples, 'sample', 'samples')} in {place}"
    return f"{text}; {skipped}" if skipped else text


_COUNTER = re.compile(r"\s*([a-zA-Z_:][\w:]*_(?:total|count|sum|bucket))\s*(?:\{[^{}]*\})?\s*")


def _counter_note(query: Query, y: Floats) -> list[str]:
    """A word on rates where a metric that is called like a counter hardly ever falls."""
    bare = _COUNTER.fullmatch(query.mission.promql)
    change = np.diff(y, axis=1)
    rises, falls = int((change > 0).sum()), int((change < 0).sum())
    # A restart of what is counted is a fall.
    if bare is None or not rises or 100 * falls > rises:
        return []
    name = bare[1]
    if query.source.folder is not None:
        return [f"{name} looks like a counter: a folder is better given its rate, for it knows no functions"]
    return [f"{name} looks like a counter: rate({name}[5m])?"]


def beside(before: str | None, after: str | None) -> str:
    """`before → after`; what is the same, or alone, once."""
    if before is None or after is None:
        return (after if after is not None else before) or ""
    return before if before == after else f"{before} → {after}"


def _model_names(asked: str, forecast: Forecast) -> str:
    """`auto (seasonmix 12, profile 3)`: what was asked for, and what of it series got."""
    got = Counter(choice.model for choice in forecast.models.values())
    return f"{asked} ({', '.join(f'{name} {n:,}' for name, n in got.most_common())})" if got else asked
