"""A server that speaks Prometheus' query API: VictoriaMetrics (single node, cluster), Prometheus, Mimir, Thanos.

What differs between servers is asked of them (`is_victoria_metrics`), never guessed from a version.
"""

from __future__ import annotations

import itertools
import re
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from anomaly_times.conventions import FORECAST_METRICS, LABEL_MISSION, LIMIT_METRICS, OUR_METRICS, SCORE, SELF_METRICS
from anomaly_times.durations import EPOCH, format_duration, milliseconds
from anomaly_times.errors import NoSeriesError, QueryError, StoreDataError, StoreError, StoreUnavailableError
from anomaly_times.mission import Mission
from anomaly_times.panel import Evidence, Floats, Forecast, Grid, Labels, Panel, Scores
from anomaly_times.profiling import is_listening, stage, staged
from anomaly_times.settings import Source, WriteMode
from anomaly_times.stores import Gauge, Written, over_time, writing
from anomaly_times.stores.http import HttpClient, RefusedError, TooLargeError
from anomaly_times.stores.matrix import parse_matrix, parse_newest, parse_samples, parse_strings, parse_types
from anomaly_times.stores.promql import Query, TooManySeriesError, parse_query, point_at, server_position, server_reason
from anomaly_times.stores.state import ForecastFiles

__all__ = ["PrometheusStore"]

_OURS = frozenset((*OUR_METRICS, *SELF_METRICS))
_NAMES_OURS = re.compile(rf"\b(?:{'|'.join(sorted(_OURS))})\b")
_MOST_STEPS = 11_000
"""Prometheus refuses more points a series in one answer."""
_MOST_POINTS = 3_000_000
"""In one answer: about 70 MB. Larger pieces cost memory, smaller ones time on the server."""
_IN_FLIGHT = 2
_LONGEST_SELECTOR = 16_000
_BYTES_A_SAMPLE, _BYTES_A_SERIES, _BYTES_ANYWAY = 50, 4096, 64 * 1024 * 1024

_REFUSED_QUERY = (400, 422)
_NO_SUCH_PATH = "unsupported path requested"
"""How VictoriaMetrics says 404, with a 400."""
_OUT_OF_TIME = re.compile("timeout exceeded|timed out|deadline exceeded", re.IGNORECASE)
# -search.latencyOffset is 30 s and applies to steps below -search.maxStepForPointsAdjustment, 1 m.
_LATENCY_STEP = timedelta(minutes=1)
_LATENCY_MS = 60_000
_SKEW_MS = 5_000
_CUTOFFS_KEPT = 4
_LOOK_AGAIN = 60.0
"""For so many seconds limits that are not there may still be on their way."""

_Cutoffs = npt.NDArray[np.int64]
_CutoffsOf = tuple[tuple[Labels, ...], _Cutoffs]
"""Label sets, and the cutoff that the forecast of each point stems from (ms since the epoch; −1: none): int64[S, T]."""


class PrometheusStore:
    """The `Store` over HTTP; safe to use from several threads, asks nothing of a server until it is used.

    Args:
        source: the server, its credentials and limits.
        state: folder for forecasts that wait for their time (`write: at_detection`).
        client: in place of one made from `source`, for tests.
    """

    def __init__(self, source: Source, *, state: Path, client: HttpClient | None = None) -> None:
        self.source = source
        self.state = state
        self.client = client or HttpClient(source)
        self.kept_since = np.iinfo(np.int64).max
        """The time of the oldest sample that the server is known to have kept, in ms since the epoch."""
        self._lock = threading.Lock()
        self._turns = threading.BoundedSemaphore(source.max_concurrent_queries)
        self._victoria: dict[str, bool] = {}
        self._layouts: dict[tuple[str, ...], _Layout] = {}
        self._limits: dict[str, dict[int, _StoredLimits]] = {}
        self._recalled = over_time.Recalled()

    @property
    def name(self) -> str:
        """The base URL for queries."""
        return self.source.read_url

    @property
    def ignore_labels(self) -> tuple[str, ...]:
        """As the source says."""
        return self.source.ignore_labels

    @property
    def is_victoria_metrics(self) -> bool:
        """Whether results are read back from VictoriaMetrics, which may hold the future; asked once.

        Raises:
            StoreError: the server is away or refuses to answer.
        """
        return self._is_victoria(self.source.readback_url)

    def writes_ahead(self, mission: Mission) -> bool:
        """Whether forecasts of `mission` are written at once, at the times that they are for.

        Raises:
            StoreError: that depends on the server, and it does not answer.
        """
        mode = mission.write if mission.write is not WriteMode.AUTO else self.source.write_mode
        return self.is_victoria_metrics if mode is WriteMode.AUTO else mode is WriteMode.AHEAD

    def read(self, promql: str, grid: Grid, *, max_series: int = 10_000) -> Panel:
        """The series that `promql` answers at the times of `grid`, as `Store.read` says.

        Raises:
            QueryError: as `Store.read` says; a query that the server refuses is shown with its words and a caret.
            StoreError: the server is away, refuses us, or answers what cannot be understood.
        """
        query = parse_query(promql)
        if not grid.n:
            return Panel((), grid, np.empty((0, 0)))
        url = self.source.read_url
        try:
            labels, y = self._range(promql, grid, url, max_series=max_series)
        except RefusedError as exc:
            raise self._refused(query, exc) from exc
        if not _NAMES_OURS.search(promql):
            # A wide selector such as {job="a"} must not forecast forecasts, more of them with every run.
            own = np.array([row.get("__name__") in _OURS for row in labels], dtype=np.bool_)
            if own.any():
                labels, y = [row for row, ours in zip(labels, own, strict=True) if not ours], y[~own]
        if not labels:
            raise self._nothing(query, grid)
        return Panel(tuple(labels), grid, y)

    def query_range(self, promql: str, grid: Grid, *, url: str | None = None) -> tuple[list[Labels], Floats]:
        """The series of a range query, sorted by label set, and float64[S, T]; nothing found is no error.

        Args:
            promql: taken as it is.
            grid: at least one point.
            url: base URL to ask, `source.read_url` by default.

        Raises:
            QueryError: the answer gives two series with equal labels.
            StoreError: the server is away, refuses, or answers what cannot be understood.
        """
        return self._range(promql, grid, url or self.source.read_url)

    def query(
        self, promql: str, at: datetime, *, url: str | None = None
    ) -> list[tuple[Labels, list[tuple[int, float]]]]:
        """The samples that an instant query answers: for each series `(ms since the epoch, value)`.

        One sample a series for a vector; the raw samples of the window for a range selector such as `m[1ms]`.

        Args:
            promql: taken as it is.
            at: time of the evaluation.
            url: base URL to ask, `source.read_url` by default.

        Raises:
            StoreError: the server is away, refuses, or answers what cannot be understood.
        """
        base = url or self.source.read_url
        # Without `nocache` VictoriaMetrics moves a time close to now back by -search.latencyOffset.
        body = self._ask(base, "query", {"query": promql, "time": _seconds(milliseconds(at - EPOCH)), "nocache": "1"})
        return parse_samples(body, where=base)

    def metric_names(self, start: datetime, end: datetime) -> list[str]:
        """The names of all metrics with series between `start` and `end`.

        Raises:
            StoreError: the server is away, refuses, or answers what cannot be understood.
        """
        return self.label_values("__name__", start, end)

    def label_values(self, label: str, start: datetime, end: datetime, *, match: str = "") -> list[str]:
        """The values that `label` has on series between `start` and `end`, those of the selector `match` where given.

        Raises:
            StoreError: the server is away, refuses, or answers what cannot be understood.
        """
        base = self.source.read_url
        params = {"start": _seconds(milliseconds(start - EPOCH)), "end": _seconds(milliseconds(end - EPOCH))}
        if match:
            params["match[]"] = match
        # Prometheus takes no POST here.
        return parse_strings(self._ask(base, f"label/{quote(label)}/values", params, method="GET"), where=base)

    def metric_type(self, metric: str) -> str:
        """What the scraped targets say that `metric` is (`counter`, `gauge`, …); empty where the server knows nothing.

        Raises:
            StoreError: the server is away, refuses us, or answers what cannot be understood.
        """
        base = self.source.read_url
        try:
            body = self._ask(base, "metadata", {"metric": metric}, method="GET")
        except RefusedError:
            return ""  # not every server has this endpoint
        return parse_types(body, where=base).get(metric, "")

    def read_forecasts(
        self, missions: Sequence[Mission], grid: Grid, *, since: Mapping[str, datetime] | None = None
    ) -> Mapping[str, Forecast]:
        """For each mission (by name) the freshest stored forecast at every time of `grid`, as `Store` says.

        One query for any number of missions, at `source.readback_url`. A forecast `k` steps after its cutoff lies `k`
        ms before its time, so the last sample within a step is the newest one that is for this time.

        Raises:
            StoreError: the server is away, refuses, or answers what cannot be understood.
        """
        ahead = [mission for mission in missions if self.writes_ahead(mission)]
        later = [mission for mission in missions if not self.writes_ahead(mission)]
        found = dict(ForecastFiles(self.state).read(later, grid, since=since)) if later else {}
        back = self._read_back(ahead, grid, FORECAST_METRICS, since or {})
        cutoffs: dict[str, _Cutoffs] = {}
        for name, (labels, values, lead) in back.items():
            missing = np.isnan(values).any(axis=0)
            values[:, missing] = np.nan
            if since is None or not missing.all():
                found[name] = Forecast(labels, grid, None, *values)
                steps = np.where(missing, -1, lead[0]).astype(np.int64)
                cutoffs[name] = np.where(missing, -1, grid.epoch_ms() - steps * grid.step_ms)
        watching = {mission.name for mission in ahead if mission.watches_over_time}
        of_points = {name: (found[name].labels, known) for name, known in cutoffs.items() if name in watching}
        for name, numbers in self._limits_in_force(of_points, grid.step_ms).items():
            found[name] = replace(found[name], limits=over_time.limits_of(numbers))
        return found

    def read_scores(self, missions: Sequence[Mission], grid: Grid) -> Mapping[str, Panel]:
        """For each mission (by name) the scores stored at the times of `grid`; none: not in the answer.

        Raises:
            StoreError: the server is away, refuses, or answers what cannot be understood.
        """
        back = self._read_back(missions, grid, (SCORE,), {})
        found = {name: Panel(labels, grid, values[0]) for name, (labels, values, _) in back.items()}
        if grid.n:
            self._recalled.confirm(missions, grid, found)
        return found

    def read_evidence(self, missions: Sequence[Mission], grid: Grid) -> Mapping[str, Evidence]:
        """For each mission (by name) the evidence kept at the times of `grid`, as `Store` says.

        One query, or none where `read_scores` just saw that nobody has written since this store read or wrote.

        Raises:
            StoreError: the server is away, refuses, or answers what cannot be understood.
        """
        if not grid.n:
            return {}
        kept, unsure = {}, []
        for mission in missions:
            known = self._recalled.recall(mission.name, grid)
            if known is not None:
                kept[mission.name] = known
            else:
                unsure.append(mission)
        for name, (labels, numbers) in self._read_beside(unsure, grid).items():
            self._recalled.learn(name, labels, grid, numbers)
            kept[name] = labels, numbers
        found = {name: over_time.evidence_of(labels, grid, numbers) for name, (labels, numbers) in kept.items()}
        return {name: evidence for name, evidence in found.items() if evidence is not None}

    def write_forecasts(self, forecasts: Sequence[tuple[Mission, Forecast]]) -> Written:
        """Store these forecasts, ahead or to wait for their time; see `writing.write_forecasts`."""
        return writing.write_forecasts(self, forecasts)

    def write_scores(self, scores: Sequence[tuple[Mission, Scores]]) -> Written:
        """Store these scores, and remember what is kept beside them; see `writing.write_scores`."""
        try:
            written, sent = writing.write_scores(self, scores)
        except BaseException:
            self._recalled.forget(mission for mission, _ in scores)
            raise
        for mission, labels, grid, numbers in sent:
            self._recalled.extend(mission, labels, grid, numbers)
        return written

    def write_gauges(self, gauges: Sequence[Gauge], *, at: datetime) -> None:
        """Store these gauges at that time; see `writing.write_gauges`."""
        writing.write_gauges(self, gauges, at=at)

    def close(self) -> None:
        """Give connections back."""
        self.client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"PrometheusStore({self.name})"

    def _ask(
        self, base: str, endpoint: str, params: dict[str, str], *, method: str = "POST", max_bytes: int | None = None
    ) -> bytes:
        form: dict[str, str | list[str]] = {
            **params,
            # Better no answer than a part of the data: VictoriaMetrics' cluster and Thanos know these.
            "deny_partial_response": "1",
            "partial_response": "false",
            "timeout": format_duration(self.source.timeout),
            "extra_label": [f"{name}={value}" for name, value in self.source.extra_labels.items()],
            "extra_filters[]": list(self.source.extra_filters),
        }
        with self._turns:
            return self.client.request(method, f"{base}/api/v1/{endpoint}", params=form, max_bytes=max_bytes)

    def _is_victoria(self, base: str) -> bool:
        with self._lock:
            if base not in self._victoria:
                # A function that only MetricsQL has; Debian's VictoriaMetrics tells no version.
                try:
                    body = self._ask(base, "query", {"query": "range_last(vector(1))"})
                    self._victoria[base] = bool(parse_samples(body, where=base))
                except RefusedError as exc:
                    if exc.status not in _REFUSED_QUERY or _NO_SUCH_PATH in exc.text:
                        raise _wrong_url(exc) from exc
                    self._victoria[base] = False
            return self._victoria[base]

    def _range(
        self, promql: str, grid: Grid, base: str, *, max_series: int | None = None
    ) -> tuple[list[Labels], Floats]:
        """Series sorted by label set and their values, read in pieces; series without any value are left out."""
        self._is_victoria(base)
        rows = _Rows(grid, base, max_series)
        size = max(1, min(_MOST_STEPS, _MOST_POINTS // (max_series or 10_000)))
        if grid.n <= size:
            self._piece(promql, slice(0, grid.n), base, rows)
            return rows.finish()
        # How many series there are decides how long a piece may be: the newest steps tell.
        newest = slice(grid.n - max(1, size // 4), grid.n)
        self._piece(promql, newest, base, rows)
        size = max(1, min(_MOST_STEPS, _MOST_POINTS // rows.count if rows.count else size))
        pieces = [slice(max(0, stop - size), stop) for stop in range(newest.start, 0, -size)]
        pool = ThreadPoolExecutor(_IN_FLIGHT, thread_name_prefix="read")
        try:
            for future in [pool.submit(self._piece, promql, piece, base, rows) for piece in pieces]:
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)
        return rows.finish()

    def _piece(self, promql: str, columns: slice, base: str, rows: _Rows) -> None:
        grid = rows.grid[columns]
        asked = self._beyond_now(grid, base)
        params = {
            "query": promql,
            "start": _seconds(asked.start_ms),
            "end": _seconds(milliseconds(asked.end - EPOCH)),
            "step": _seconds(asked.step_ms),
        }
        if self._is_victoria(base):
            # Its cache moves start and end, and answers old values where samples came late.
            params["nocache"] = "1"
        limit = None
        if rows.max_series is not None:
            limit = _BYTES_ANYWAY + rows.max_series * (_BYTES_A_SERIES + _BYTES_A_SAMPLE * asked.n)
        try:
            with stage("read") as work:
                body = self._ask(base, "query_range", params, max_bytes=limit)
                work.bytes = len(body)
        except TooLargeError as exc:
            if limit is None or limit >= self.source.max_response_bytes:
                raise
            raise _too_many(base, f"far more than {rows.max_series:,}", rows.max_series or 0) from exc
        with stage("parse") as work:
            labels, y = parse_matrix(body, asked, where=base)
            work.points = int(y.size - np.count_nonzero(np.isnan(y))) if is_listening() else 0
        rows.put(labels, y[:, : grid.n], columns)

    def _beyond_now(self, grid: Grid, base: str) -> Grid:
        """`grid`, longer where VictoriaMetrics would repeat an old value for the newest times.

        For steps below a minute it overwrites the last 30 s before now with the value before them, unless the range
        reaches further than a step past now (measured).
        """
        if not self._is_victoria(base) or grid.step >= _LATENCY_STEP:
            return grid
        now = time.time_ns() // 1_000_000
        last = milliseconds(grid.end - EPOCH)
        if last < now - _LATENCY_MS:
            return grid
        more = max(0, now + _SKEW_MS - last) // grid.step_ms + 2
        return Grid(grid.start, grid.step, grid.n + more)

    def _read_back(
        self, missions: Sequence[Mission], grid: Grid, metrics: tuple[str, ...], since: Mapping[str, datetime]
    ) -> dict[str, tuple[tuple[Labels, ...], Floats, Floats]]:
        """By mission the label sets, sorted, and what is stored for the times of `grid`.

        That is float64[metric, S, T] of values, and of their leads in ms. Of missions in `since`, what was forecast
        from a cutoff before is NaN.
        """
        if not missions or not grid.n:
            return {}
        labels: list[Labels] = []
        parts: list[Floats] = []
        leads: list[Floats] = []
        for names in _chunks([mission.name for mission in missions]):
            # A selector that matched nothing may match by now, and VictoriaMetrics does not look again for 10 s.
            for regex in ("|".join(metrics), writing.uncached(*metrics)):
                found, y, lead = self._newest(_selector(regex, names), grid, self.source.readback_url)
                labels += found
                parts.append(_from_cutoffs(found, y, lead, grid, since) if since else y)
                leads.append(lead)
                if found or not self._is_victoria(self.source.readback_url):
                    break
        layout = self._layouts.get(metrics)
        rows = layout.rows_of(labels) if layout is not None else None
        if layout is None or rows is None:
            layout = self._layouts[metrics] = _Layout.of(labels, metrics, self.source.ignore_labels)
            rows = layout.rows_of(labels)
        out = np.full((2, layout.size, grid.n), np.nan)
        both = np.concatenate(parts), np.concatenate(leads)
        if layout.unique:
            out[0, rows], out[1, rows] = both
        else:
            # Two relays wrote the same under labels that are ignored.
            for row, *values in zip(rows or (), *both, strict=True):
                out[:, row] = np.where(np.isnan(values[0]), out[:, row], values)
        y, lead = out.reshape(2, len(metrics), -1, grid.n)
        return {mission: (known, y[:, part], lead[:, part]) for mission, (known, part) in layout.missions.items()}

    def _read_beside(self, missions: Sequence[Mission], grid: Grid) -> dict[str, tuple[tuple[Labels, ...], Floats]]:
        """By mission the label sets, sorted, of what has a score, and float64[6, S, T] by kind of `READ_BACK`."""
        base, ignored = self.source.readback_url, self.source.ignore_labels
        kinds = over_time.READ_BACK
        metrics = tuple(dict.fromkeys(metric for metric, _ in kinds))
        nothing: tuple[tuple[Labels, ...], Floats] = (), np.empty((len(kinds), 0, grid.n))
        kept = {mission.name: nothing for mission in missions}
        for names in _chunks([mission.name for mission in missions]):
            # Evidence that appears for the first time must not be missed.
            stored, y, _ = self._newest(_selector(writing.uncached(*metrics), names), grid, base)
            if ignored:
                stored = [row.without(ignored) for row in stored]
            scored: dict[str, set[Labels]] = defaultdict(set)
            for row in stored:
                if ("__name__", SCORE) in row:
                    scored[row.get(LABEL_MISSION)].add(row.without(("__name__",)))
            places: dict[tuple[tuple[str, str], ...], tuple[Floats, tuple[int, int]]] = {}
            for name, rows in scored.items():
                labels = tuple(sorted(rows))
                numbers = np.full((len(kinds), len(labels), grid.n), np.nan)
                kept[name] = labels, numbers
                places |= {key: (numbers, at) for key, at in over_time.places(labels, kinds).items()}
            for row, values in zip(stored, y, strict=True):
                place = places.get(row)
                if place is not None:
                    numbers, at = place
                    # Two relays may have written the same under labels that are ignored.
                    numbers[at] = np.where(np.isnan(values), numbers[at], values) if ignored else values
        for _, numbers in kept.values():
            numbers[:] = over_time.without_score(numbers, numbers[-1])
        return kept

    def _limits_in_force(self, of_points: Mapping[str, _CutoffsOf], step_ms: int) -> dict[str, Floats]:
        """By mission what is stored of the limits at each point, by kind of `LIMITS`: float64[6, S, T].

        Those of a cutoff are read once, and again where a series that has its forecast has none, for a write may have
        been under way; that is over in a minute.
        """
        now = time.monotonic()
        known: dict[str, dict[int, _StoredLimits]] = {}
        wanted: dict[str, tuple[tuple[Labels, ...], list[int]]] = {}
        for name, (labels, cutoffs) in of_points.items():
            before = self._limits.get(name, {})
            used: list[int] = np.unique(cutoffs[cutoffs >= 0]).tolist()
            known[name] = {at: before[at] for at in used if at in before and before[at].labels == labels}
            missing = [
                at
                for at in used
                if at not in known[name]
                or (now < known[name][at].until and known[name][at].lacks((cutoffs == at).any(axis=1)))
            ]
            if missing:
                wanted[name] = labels, missing
        for names in _chunks(list(wanted)):
            for name, read in self._read_limits({name: wanted[name] for name in names}, step_ms).items():
                for at, numbers in read.items():
                    until = known[name][at].until if at in known[name] else now + _LOOK_AGAIN
                    known[name][at] = _StoredLimits(wanted[name][0], numbers, until)
        out = {}
        for name, (_, cutoffs) in of_points.items():
            out[name] = np.full((len(over_time.LIMITS), *cutoffs.shape), np.nan)
            for at, stored in known[name].items():
                out[name] = np.where(cutoffs == at, stored.numbers[:, :, None], out[name])
            recent = sorted((self._limits.get(name, {}) | known[name]).items())
            self._limits[name] = dict(recent[-_CUTOFFS_KEPT:])
        return out

    def _read_limits(
        self, wanted: Mapping[str, tuple[tuple[Labels, ...], list[int]]], step_ms: int
    ) -> dict[str, dict[int, Floats]]:
        """By mission and cutoff (ms since the epoch) what is stored of limits, by kind of `LIMITS`: float64[6, S]."""
        kinds, ignored = over_time.LIMITS, self.source.ignore_labels
        out: dict[str, dict[int, Floats]] = {}
        places: dict[tuple[tuple[str, str], ...], tuple[dict[int, Floats], tuple[int, int]]] = {}
        stamps: set[int] = set()
        for name, (labels, cutoffs) in wanted.items():
            out[name] = {at: np.full((len(kinds), len(labels)), np.nan) for at in cutoffs}
            by_stamp = {writing.limits_at(at, step_ms): numbers for at, numbers in out[name].items()}
            stamps |= set(by_stamp)
            places |= {key: (by_stamp, at) for key, at in over_time.places(labels, kinds).items()}
        selector = _selector(writing.uncached(*LIMIT_METRICS), list(wanted))
        window = f"{selector}[{max(stamps) - min(stamps) + 1}ms]"
        end = EPOCH + timedelta(milliseconds=max(stamps))
        for row, samples in self.query(window, end, url=self.source.readback_url):
            found = places.get(row.without(ignored) if ignored else row)
            if found is not None:
                by_stamp, place = found
                for stamp, value in samples:
                    if stamp in by_stamp:
                        by_stamp[stamp][place] = value
        return out

    def _newest(self, selector: str, grid: Grid, base: str) -> tuple[list[Labels], Floats, Floats]:
        """The newest sample of each step for the series of `selector`, and its lead in ms: float64[S, T] each.

        Raw samples of an instant query are a third cheaper for the server than `last_over_time` on a grid (measured).
        """
        params = {
            "query": f"{selector}[{grid.n * grid.step_ms - 1}ms]",
            "time": _seconds(milliseconds(grid.end - EPOCH)),
            "nocache": "1",
        }
        return parse_newest(self._ask(base, "query", params), grid, where=base)

    def _refused(self, query: Query, exc: RefusedError) -> StoreError | QueryError:
        """What to raise where the server refuses a query."""
        if exc.status not in _REFUSED_QUERY:
            return _wrong_url(exc)
        reason = server_reason(exc.text) or exc.message
        if _OUT_OF_TIME.search(reason):
            # VictoriaMetrics answers 422 for this too.
            return StoreUnavailableError(f"{self.name}: {reason}", hint="ask for less at once, or try again later")
        position = server_position(query.text, exc.text)
        if position is None:
            position = query.position
        shown = "" if position is None else "\n" + point_at(query.text, position)
        return QueryError(
            f"{self.name} refuses the query: {reason}{shown}",
            hint=f"as PromQL: {query.problem}" if query.problem else "",
        )

    def _nothing(self, query: Query, grid: Grid) -> NoSeriesError:
        """Why a query answers nothing: which of its selectors has no series."""
        when = f"between {grid.start:%Y-%m-%d %H:%M} and {grid.end:%Y-%m-%d %H:%M} UTC"
        missing = []
        for selector in query.selectors[:20]:
            # Names only, for the series may be millions.
            try:
                found = self.label_values("__name__", grid.start, grid.end, match=selector)
            except RefusedError:
                return NoSeriesError(f"{self.name}: the query answers no series {when}")
            if not found:
                missing.append(selector)
        if missing:
            return NoSeriesError(
                f"{self.name}: no series matches {' nor '.join(missing)} {when}",
                hint="check the metric's name and the labels, and whether the source holds that time",
            )
        what = "its selectors match series, and yet " if query.selectors else ""
        return NoSeriesError(
            f"{self.name}: {what}the query answers nothing {when}",
            hint="are its series younger than that? is a range like [5m] shorter than two scrapes? do both sides of an "
            "operator have equal labels?",
        )


@dataclass(frozen=True, eq=False)
class _StoredLimits:
    """What is stored of the limits that a mission's series got at one cutoff: float64[6, S] by kind of `LIMITS`.

    Until `until` (monotonic, in seconds) more may come.
    """

    labels: tuple[Labels, ...]
    numbers: Floats
    until: float

    def lacks(self, rows: npt.NDArray[np.bool_]) -> bool:
        """Whether any of `rows` has none."""
        return bool((np.isnan(self.numbers[-1]) & rows).any())


@dataclass(frozen=True, eq=False)
class _Layout:
    """Where the series of an answer go: metric by metric, and in each mission by mission, sorted by label set.

    A detection reads the same series again each minute, in no order, and sorting 30,000 label sets costs more than all
    else that it does with them. So a layout is kept, and a row is found in it by the identity of its label set, which
    parsing keeps.
    """

    missions: Mapping[str, tuple[tuple[Labels, ...], slice]]
    places: Mapping[int, tuple[Labels, int]]
    size: int
    unique: bool
    """Whether no two series of the answer go to one place."""

    @classmethod
    def of(cls, labels: Sequence[Labels], metrics: Sequence[str], ignored: Sequence[str]) -> _Layout:
        ours = ("__name__", *ignored)
        series = sorted({(row.get(LABEL_MISSION), row.without(ours)) for row in labels})
        index = {known: i for i, known in enumerate(series)}
        missions, first = {}, 0
        for mission, group in itertools.groupby(series, key=lambda known: known[0]):
            members = tuple(known for _, known in group)
            missions[mission] = (members, slice(first, first + len(members)))
            first += len(members)
        offset = {metric: i * len(series) for i, metric in enumerate(metrics)}
        for row in labels:
            if row.get("__name__") not in offset:
                raise StoreDataError(f"{row} came where only {', '.join(metrics)} were asked for")
        places = {
            id(row): (row, offset[row.get("__name__")] + index[row.get(LABEL_MISSION), row.without(ours)])
            for row in labels
        }
        unique = len({place for _, place in places.values()}) == len(labels)
        return cls(missions, places, len(metrics) * len(series), unique)

    def rows_of(self, labels: Sequence[Labels]) -> list[int] | None:
        """The place of each series; `None` where these are not the series of this layout."""
        if len(labels) != len(self.places):
            return None
        rows = []
        for row in labels:
            known = self.places.get(id(row))
            if known is None or known[0] is not row:
                return None
            rows.append(known[1])
        return rows


class _Rows:
    """The matrix of one read, filled piece by piece from several threads."""

    def __init__(self, grid: Grid, where: str, max_series: int | None) -> None:
        self.grid = grid
        self.max_series = max_series
        self._where = where
        self._lock = threading.Lock()
        self._index: dict[Labels, int] = {}
        self._y = np.empty((0, grid.n))

    @property
    def count(self) -> int:
        """How many series came up to now."""
        return len(self._index)

    @staged("align")
    def put(self, labels: list[Labels], part: Floats, columns: slice) -> None:
        """Take the values of these series at the times `columns`.

        Raises:
            QueryError: there are too many series, or two with equal labels.
        """
        with self._lock:
            # Servers sort much as we do: in their order this takes no time.
            new = sorted(row for row in dict.fromkeys(labels) if row not in self._index)
            self._index |= {row: i for i, row in enumerate(new, start=len(self._index))}
            if self.max_series is not None and len(self._index) > self.max_series:
                raise _too_many(self._where, f"{len(self._index):,} or more", self.max_series)
            if new:
                rest = np.full((len(new), self.grid.n), np.nan)
                self._y = np.concatenate([self._y, rest]) if len(self._y) else rest
            rows = np.array([self._index[row] for row in labels], dtype=np.int64)
            if len(np.unique(rows)) < len(rows):
                twice = next(row for row, count in Counter(labels).items() if count > 1)
                raise QueryError(
                    f"{self._where} answers two series with equal labels: {twice}",
                    hint="does the query drop a label that tells them apart?",
                )
            self._y[rows, columns] = part

    @staged("align")
    def finish(self) -> tuple[list[Labels], Floats]:
        """All series with at least one value, sorted by label set."""
        labels = list(self._index)
        full = np.count_nonzero(np.isnan(self._y), axis=1) < self.grid.n
        order = sorted(np.flatnonzero(full).tolist(), key=labels.__getitem__)
        if order == list(range(len(labels))):
            return labels, self._y
        return [labels[i] for i in order], self._y[order]


def _from_cutoffs(
    labels: Sequence[Labels], y: Floats, lead: Floats, grid: Grid, since: Mapping[str, datetime]
) -> Floats:
    """`y` less what was forecast from a cutoff before its mission's `since`.

    A forecast `k` steps after its cutoff lies `k` ms before its time; of each time the newest is here, so what is older
    than `since` hides nothing that is not.
    """
    oldest = np.array([milliseconds(since.get(row.get(LABEL_MISSION), EPOCH) - EPOCH) for row in labels])
    cutoff = grid.epoch_ms() - lead * grid.step_ms
    return np.where(cutoff < oldest[:, None], np.nan, y)


def _selector(metrics: str, missions: Sequence[str]) -> str:
    """What selects the series of these metrics (a regular expression) and missions."""
    # Names of metrics and missions hold nothing that a regular expression would take as its own.
    return f'{{__name__=~"{metrics}",{LABEL_MISSION}=~"{"|".join(missions)}"}}'


def _too_many(where: str, count: str, limit: int) -> TooManySeriesError:
    return TooManySeriesError(
        f"{where}: the query answers {count} series, and {limit:,} are allowed",
        hint="narrow its selectors, aggregate (`sum by (…)`), or raise `max_series`",
    )


def _wrong_url(exc: RefusedError) -> StoreError:
    if exc.status != 404 and _NO_SUCH_PATH not in exc.text:
        return exc
    return StoreError(
        exc.message,
        hint="is that the base URL for queries? e.g. http://victoria:8428, http://vmselect:8481/select/0/prometheus, "
        "http://mimir/prometheus",
    )


def _chunks(names: Sequence[str]) -> Iterator[list[str]]:
    """`names` in groups whose selector stays of bearable length."""
    group: list[str] = []
    length = 0
    for name in names:
        if group and length + len(name) + 1 > _LONGEST_SELECTOR:
            yield group
            group, length = [], 0
        group.append(name)
        length += len(name) + 1
    if group:
        yield group


def _seconds(ms: int) -> str:
    """Milliseconds as the API wants its times: in seconds."""
    return f"{ms // 1000}.{ms % 1000:03d}"
