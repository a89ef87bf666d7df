"""First mission files, fitted to live data: every suggestion with a comment that says why."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from string import Template as Text

import numpy as np

from anomaly_times.checks.examiner import Examiner
from anomaly_times.checks.offline import counts_only
from anomaly_times.conventions import MISSION_NAME
from anomaly_times.durations import format_duration
from anomaly_times.errors import NoSeriesError, UsageError
from anomaly_times.loading import DEFAULTS_FILE
from anomaly_times.models.season import find_seasons
from anomaly_times.panel import Grid, Panel
from anomaly_times.presets import PRESETS, Preset, Template
from anomaly_times.stores import Store
from anomaly_times.stores.prometheus import PrometheusStore
from anomaly_times.stores.promql import Query, parse_query
from anomaly_times.yamlfile import dump_text

__all__ = ["suggest_mission", "suggest_preset", "write_new"]

_MINUTE, _HOUR, _DAY, _WEEK = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1), timedelta(weeks=1)
_STEPS = tuple(n * _MINUTE for n in (1, 2, 5, 10, 15, 30, 60))
_SPAN = 28 * _DAY
_LOOK = 10 * _MINUTE
_MEANS = 30 * _MINUTE
_PERIODS = {_HOUR: "an hour", _DAY: "a day", _WEEK: "a week"}
_MOST_SERIES = 500
_SHARE = 0.3
_SCRAPES = 4
_SHORTEST_WINDOW = 5 * _MINUTE

_BAD_WHEN_HIGH = re.compile(
    "error|fail|latenc|duration|_seconds_bucket|histogram_quantile|wait|queue|lag|retr|drop|reject|timeout|restart|"
    r"pending|unavailable|5\.\.|throttl|saturation|evict|loss",
    re.IGNORECASE,
)
_BAD_WHEN_LOW = re.compile(r"(^|_)(free|avail\w*|up|success\w*|ready|healthy|remaining|idle)(_|$|\b)", re.IGNORECASE)
_NEVER_NEGATIVE = re.compile(r"\b(rate|increase|count|histogram_quantile)\b|_(bytes|seconds|ratio|percent|count|total)")
_RATIO = re.compile(r"ratio|percent|/", re.IGNORECASE)


@dataclass(frozen=True)
class _Line:
    """A field with the comment above it."""

    text: str
    why: str = ""


def suggest_mission(name: str, promql: str, store: Store, *, source: str = "", now: datetime) -> str:
    """The text of a mission file for one query, which passes validation.

    Args:
        name: what the mission is called.
        promql: its query; a counter alone becomes a rate.
        store: where its metrics are.
        source: the source as missions name it; empty for the default one.
        now: what counts as now.

    Raises:
        UsageError: no name for a mission.
        QueryError: the query does not parse, answers no series, or too many.
        StoreError: the source is away or refuses.
    """
    if not MISSION_NAME.fullmatch(name):
        raise UsageError(
            f"{name[:64]!r} is no name for a mission", hint="lower-case letters, digits and hyphens, 63 at most"
        )
    promql = promql.strip()
    query, examiner = parse_query(promql), Examiner(store, now)
    interval = max(examiner.intervals(query).values(), default=None) if not query.problem else None
    about_query = ""
    if _is_bare_counter(query, store):
        window = format_duration(_window(interval))
        promql = f"rate({promql}[{window}])"
        about_query = f"a counter only grows, so its rate is watched; [{window}] holds {_SCRAPES} scrapes or more"
        query = parse_query(promql)
    if interval is None:
        interval = _interval_of(store.read(promql, Grid.ending(now, _MINUTE, 1440)))
    step = _rounded_up(interval)
    history = store.read(promql, Grid.ending(now, max(step, _LOOK), _SPAN // max(step, _LOOK)))
    kept = history.rows(np.unique(np.linspace(0, history.n_series - 1, _MOST_SERIES).astype(int)))
    seasons = _Seasons.of(kept)
    every = _HOUR if step <= 10 * _MINUTE else 6 * _HOUR
    head = [
        f"# Made by `at mission init` from what {store.name} held on {now:%Y-%m-%d}: {history.n_series:,} series, a "
        f"sample every {format_duration(interval)}.",
        "# Docs: what every field means, docs/missions.md; what validation looks at, docs/checks.md.",
    ]
    lines = [
        _Line(f"name: {dump_text(name)}"),
        _Line(f"promql: {dump_text(promql)}", about_query),
        *([_Line(f"source: {dump_text(source)}")] if source else []),
        _Line(f"step: {format_duration(step)}", _why_step(step, interval)),
        *_season(kept, seasons),
    ]
    forecast = [
        _Line(f"every: {format_duration(every)}"),
        _lookback(kept, seasons),
        _Line(
            f"horizon: {format_duration(2 * every)}",
            "twice `every`: forecasts overlap, so one that is late leaves no hole",
        ),
        _Line("model: auto"),
    ]
    detect = [
        _Line(f"every: {format_duration(step)}", "there is a new point every step"),
        _Line("alerts_per_week: 0.5", "so many may normal data raise, each series: one in two weeks"),
        _direction(promql),
        *_gates(kept, promql),
    ]
    parts = [*_rendered(lines), "forecast:", *_rendered(forecast, 2), "detect:", *_rendered(detect, 2)]
    return "\n".join([*head, *parts]) + "\n"


def suggest_preset(preset: str, store: Store, *, source: str = "", now: datetime) -> tuple[str, list[str]]:
    """The text of a file with the missions of a preset for which there are metrics, and why others were left out.

    Raises:
        UsageError: no such preset, or a folder as the source.
        NoSeriesError: nothing of it is there.
        StoreError: the source is away or refuses.
    """
    known = PRESETS.get(preset)
    if known is None:
        raise UsageError(f"there is no preset {preset[:64]!r}", hint=f"known: {', '.join(PRESETS)}")
    if not isinstance(store, PrometheusStore):
        raise UsageError("presets ask for rates and sums, and a folder answers plain selectors only")
    taken: list[tuple[Template, str]] = []
    skipped: list[str] = []
    intervals: list[timedelta] = []
    examiner = Examiner(store, now)
    for template in known.templates:
        filled = _labels_of(template, known, store, now)
        needs = [Text(need).safe_substitute(filled) for need in template.needs]
        missing = [need for need in needs if not _matches(store, need, now)]
        if missing:
            skipped.append(f"{template.name} left out: nothing matches {' or '.join(missing)}")
            continue
        measured = examiner.intervals(parse_query(template.needs[0].partition("{")[0]))
        intervals += measured.values()
        window = format_duration(_window(max(measured.values(), default=None)))
        taken.append((template, Text(template.promql).safe_substitute(filled, window=window)))
    if not taken:
        raise NoSeriesError(
            f"{store.name} has no metric of the preset {preset}", hint="is it scraped, and by this source?"
        )
    interval = max(intervals, default=_MINUTE)
    step = _rounded_up(interval)
    every = _HOUR if step <= 10 * _MINUTE else 6 * _HOUR
    lines = [
        f"# {known.title}. Made by `at mission init --preset {preset}` from what {store.name} held on {now:%Y-%m-%d}.",
        "# Directions and deviations are where to begin: look at a week of scores, then fit them.",
        "defaults:",
        *([f"  source: {dump_text(source)}"] if source else []),
        *_rendered([_Line(f"step: {format_duration(step)}", _why_step(step, interval))], 2),
        f"  forecast: {{every: {format_duration(every)}, lookback: 14d}}",
        f"  detect: {{every: {format_duration(step)}}}",
        "missions:",
    ]
    for template, promql in taken:
        gates = ", ".join(f"{key}: {value}" for key, value in template.detect.items())
        fields = [
            _Line(f"name: {template.name}"),
            _Line(f"description: {dump_text(template.description)}"),
            _Line(f"promql: {dump_text(promql)}"),
            _Line(f"detect: {{{gates}}}", template.why),
        ]
        first, *rest = _rendered(fields, 4)
        lines += [f"  - {first.lstrip()}", *rest]
    return "\n".join(lines) + "\n", skipped


def write_new(file: Path, text: str) -> None:
    """Write a file that was not there before; its folder is made where it is missing.

    Raises:
        UsageError: it is there already, cannot be written, or would count as defaults of its folder.
    """
    if file.name == DEFAULTS_FILE:
        raise UsageError(
            f"{file} would hold defaults for its folder, and no mission", hint="name another one with --out"
        )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("x", encoding="utf-8") as new:
            new.write(text)
    except FileExistsError:
        raise UsageError(f"{file} is there already, and is not touched", hint="name another one with --out") from None
    except OSError as exc:
        raise UsageError(f"{file} cannot be written: {exc.strerror}") from exc


def _is_bare_counter(query: Query, store: Store) -> bool:
    """Whether a query is one counter and nothing else."""
    if len(query.uses) != 1 or query.uses[0].around or not query.uses[0].metric:
        return False
    metric = query.uses[0].metric
    plain = query.text.startswith((metric, "{")) and query.text.endswith(("}", metric))
    kind = store.metric_type(metric) if plain and isinstance(store, PrometheusStore) else ""
    return plain and isinstance(store, PrometheusStore) and counts_only(metric, kind)


def _window(interval: timedelta | None) -> timedelta:
    return max(_SHORTEST_WINDOW, _SCRAPES * (interval or _MINUTE))


def _rounded_up(interval: timedelta) -> timedelta:
    return next((step for step in _STEPS if step >= interval), -(-interval // _HOUR) * _HOUR)


def _why_step(step: timedelta, interval: timedelta) -> str:
    if step > interval:
        return f"samples come every {format_duration(interval)}; a point a minute is enough for a rhythm of hours"
    return f"samples come every {format_duration(interval)}: a finer step would only repeat them"


def _interval_of(panel: Panel) -> timedelta:
    """How far the points of the median series lie apart, on a fine grid."""
    counts = np.isfinite(panel.y).sum(axis=1)
    return max(1, round(panel.grid.n / max(1.0, float(np.median(counts))))) * panel.grid.step


@dataclass(frozen=True)
class _Seasons:
    """In how many of `n` series each rhythm was found: in the points as they are, and in means of half an hour."""

    n: int
    points: Mapping[timedelta, int]
    means: Mapping[timedelta, int]

    @classmethod
    def of(cls, panel: Panel) -> _Seasons:
        def count(found: Panel) -> dict[timedelta, int]:
            rows = find_seasons(found)
            return {period: sum(period // found.grid.step in row for row in rows) for period in _PERIODS}

        return cls(panel.n_series, count(panel), count(_means(panel, _MEANS)) if panel.grid.step < _MEANS else {})

    @property
    def hidden(self) -> list[timedelta]:
        """Rhythms that most series show in means, and hardly any in noisy points: models must be told."""
        return [
            period
            for period, count in self.means.items()
            if count > self.n / 2 and self.points[period] < _SHARE * self.n
        ]

    def follow(self, period: timedelta) -> bool:
        """Whether enough series follow `period` to be fitted to it."""
        return self.points[period] >= _SHARE * self.n or period in self.hidden


def _means(panel: Panel, step: timedelta) -> Panel:
    """The means of blocks of about `step`."""
    size = step // panel.grid.step
    n = panel.grid.n // size
    blocks = panel.y[:, panel.grid.n - n * size :].reshape(panel.n_series, n, size)
    there = np.isfinite(blocks).sum(axis=2)
    means = np.where(there > 0, np.nansum(blocks, axis=2) / np.maximum(1, there), np.nan)
    return Panel(panel.labels, Grid.ending(panel.grid.end, size * panel.grid.step, n), means)


def _season(panel: Panel, seasons: _Seasons) -> list[_Line]:
    told = [
        f"a rhythm of {name} in {seasons.points[period]} of {seasons.n} series"
        for period, name in _PERIODS.items()
        if seasons.points[period]
    ]
    words = ", ".join(told) or "no rhythm of hours, days or weeks was found"
    if _history(panel) < 2 * _WEEK:
        words += f" in {_days(_history(panel))} of history"
    season = "auto"
    if seasons.hidden:
        names = " and ".join(_PERIODS[period] for period in seasons.hidden)
        words = f"points are noisy, but means of half an hour follow a rhythm of {names}: so it is given"
        season = "[" + ", ".join(format_duration(period) for period in seasons.hidden) + "]"
    zone = "days begin by this clock; name your users' zone (Europe/Berlin) where their day makes the rhythm"
    return [_Line(f"season: {season}", words), _Line("timezone: UTC", zone)]


def _lookback(panel: Panel, seasons: _Seasons) -> _Line:
    days, why = 7, "no daily or weekly rhythm was found, so older history says little of tomorrow"
    if seasons.follow(_WEEK):
        days, why = 28, "four weeks: a weekly rhythm takes two, and a holiday or an incident spoils one"
    elif seasons.follow(_DAY) or _history(panel) < 2 * _WEEK:
        days, why = 14, "two weeks: enough for a daily rhythm, and to see whether there is a weekly one"
    if _history(panel) < days * _DAY:
        why += f"; there are {_days(_history(panel))} yet"
    return _Line(f"lookback: {days}d", why)


def _history(panel: Panel) -> timedelta:
    first = int(np.flatnonzero(np.isfinite(panel.y).any(axis=0))[0])
    return (panel.grid.n - first) * panel.grid.step


def _days(value: timedelta) -> str:
    return f"{value / _DAY:.1f} days"


def _direction(promql: str) -> _Line:
    names = " ".join(re.findall(r"[A-Za-z_:][A-Za-z0-9_:.]*", promql))
    if _BAD_WHEN_HIGH.search(promql):
        return _Line("direction: above", "by its name more of it is bad and less is not; `both` watches both sides")
    if any(_BAD_WHEN_LOW.search(word) for word in names.split()) and "1 -" not in promql:
        return _Line("direction: below", "by its name less of it is bad and more is not; `both` watches both sides")
    return _Line("direction: both", "a fall may be as telling as a rise; `above` or `below` watch one side")


def _gates(panel: Panel, promql: str) -> Sequence[_Line]:
    """The smallest deviation that matters, and the values that can be."""
    y = panel.y
    low, high = float(np.nanmin(y)), float(np.nanmax(y))
    lines = []
    level = np.nanmedian(np.abs(y), axis=1)
    steps = np.abs(np.diff(y, axis=1))
    moving = np.isfinite(steps).any(axis=1) & (level > 0)
    if moving.mean() > 1 / 2:
        noise = float(np.median(np.nanmedian(steps[moving], axis=1) / level[moving]))
        share = min(50, max(10, 5 * math.ceil(100 * 3 * noise / 5)))
        lines.append(
            _Line(
                f"min_relative_deviation: {share}%",
                f"neighbours differ by {_percent(noise)} of their level as a rule: what is nearer is no story",
            )
        )
    elif high > low:
        least = float(f"{0.1 * float(np.median(np.abs(y[np.isfinite(y) & (y != 0)]))):.1g}")
        why = "most values are zero, so shares of them say nothing; this is a tenth of what the others are"
        lines.append(_Line(f"min_deviation: {least:g}", why))
    if low >= 0 and _NEVER_NEGATIVE.search(promql):
        ratio = high <= 1 and _RATIO.search(promql) is not None
        what = "a share: other values cannot be" if ratio else "by its nature never below zero: such a value is wrong"
        lines.append(_Line(f"valid_range: [0, {1 if ratio else '.inf'}]", what))
    return lines


def _percent(share: float) -> str:
    return f"{100 * share:.2g}%"


def _labels_of(template: Template, preset: Preset, store: PrometheusStore, now: datetime) -> Mapping[str, str]:
    """What `$by` and `$code` are on the series of a template: the first label of each list that is there."""
    metric = template.needs[0].partition("{")[0]

    def first(labels: Sequence[str]) -> str:
        there = (label for label in labels if store.label_values(label, now - _DAY, now, match=metric))
        return next(there, labels[0])

    return {
        name: first(labels)
        for name, labels in (("by", preset.by), ("code", preset.codes))
        if f"${name}" in template.promql
    }


def _matches(store: PrometheusStore, selector: str, now: datetime) -> bool:
    return bool(store.label_values("__name__", now - _DAY, now, match=selector))


def _rendered(lines: Sequence[_Line], indent: int = 0) -> list[str]:
    pad = " " * indent
    return [f"{pad}{text}" for line in lines for text in (*([f"# {line.why}"] if line.why else []), line.text)]
