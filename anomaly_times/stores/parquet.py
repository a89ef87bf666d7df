"""A folder of Parquet and CSV files as a store: no server needed.

All files below the folder count (`stores/metric_files.py` says what they may look like), less hidden ones and what we
write ourselves, which goes beside them:

    <folder>/anomaly-times/forecasts/<mission>/<cutoff>.parquet   as in `stores/state.py`; kept for good
    <folder>/anomaly-times/scores/<mission>/<hour>.parquet        unique_id, ds, y, yhat, yhat_lower, yhat_upper, score,
                                                                  reason, sustained, …, flat, incident

A query is a selector with label matchers, as in Prometheus: `http_requests{job=~"a|b",env!="dev"}`. Its value at grid
time *t* is the last sample in (*t* − step, *t*], so data that was sampled at 12:04, 12:09, … lands on a grid of
12:05, 12:10, ….

What is kept beside a score is null where there is none; a file from before it was kept lacks those columns.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from difflib import get_close_matches
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import promql_parser

from anomaly_times.durations import EPOCH
from anomaly_times.errors import NoSeriesError, QueryError, StoreError, StoreUnavailableError
from anomaly_times.evidence import KEPT
from anomaly_times.mission import Mission
from anomaly_times.panel import Evidence, Floats, Forecast, Grid, Labels, Panel, Scores
from anomaly_times.settings import Source
from anomaly_times.stores import Gauge, Written, over_time
from anomaly_times.stores.metric_files import SUFFIXES, MetricFile, merge_files, read_metric_file
from anomaly_times.stores.promql import parse_query, point_at
from anomaly_times.stores.state import (
    ForecastFiles,
    locked,
    long_to_matrix,
    read_results,
    result_name,
    result_time,
    write_parquet,
)

if TYPE_CHECKING:
    import polars as pl

__all__ = ["RESULTS", "FolderStore", "Selector"]

RESULTS = "anomaly-times"
"""The folder for results, beside the metrics."""

_BUCKET = timedelta(hours=1)
_BESIDE = ("reason", *KEPT, "incident")
"""The kinds of `over_time.SCORED` but the score, as columns."""
_Stamp = tuple[int, int]


class FolderStore:
    """A folder of metrics, or a single file, as a `Store`; files are parsed again only when they change."""

    def __init__(self, source: Source) -> None:
        if source.folder is None:
            raise ValueError("a folder store needs a source with a folder")
        self._path = source.folder
        self._lock = Lock()
        self._parsed: dict[Path, tuple[_Stamp, MetricFile]] = {}
        self._combined: tuple[dict[Path, _Stamp], list[MetricFile]] = ({}, [])
        self._forecasts: ForecastFiles | None = None

    @property
    def name(self) -> str:
        """The path of the folder, or of the file."""
        return str(self._path)

    @property
    def ignore_labels(self) -> tuple[str, ...]:
        """None: nothing comes between us and a folder."""
        return ()

    def read(self, promql: str, grid: Grid, *, max_series: int = 10_000) -> Panel:
        """The series that a selector matches, at the times of `grid`; see `Store.read`, and above for alignment.

        Raises:
            NoSeriesError: nothing matches, or not in this time.
            QueryError: no selector, or more than `max_series`.
            StoreDataError: a file that cannot be understood; names it, and the line where there is one.
            StoreError: there is no such folder, or no file in it.
        """
        wanted = Selector(promql)
        files = self._load()
        # Every label set is in one of them only, so the matching series are as many as these.
        found = [(row, file, i) for file in files for i, row in wanted.matching(file.labels)]
        if not found:
            raise self._nothing(promql, files)
        if len(found) > max_series:
            raise QueryError(
                f"{promql[:200]} matches {len(found):,} series in {self.name}, and {max_series:,} are allowed",
                hint="narrow it by labels, or raise max_series",
            )
        found.sort(key=lambda item: item[0])
        y = np.full((len(found), grid.n), np.nan)
        first, last = grid.start_ms - grid.step_ms, grid.start_ms + (grid.n - 1) * grid.step_ms
        for i, (_, file, series) in enumerate(found):
            start, stop = file.ends[series], file.ends[series + 1]
            low, high = start + np.searchsorted(file.time[start:stop], (first, last), side="right")
            # Samples rise in time, so the last one of those that share a grid time is the one that stays.
            y[i, -((grid.start_ms - file.time[low:high]) // grid.step_ms)] = file.value[low:high]
        alive = np.isfinite(y).any(axis=1)
        if not alive.any():
            raise self._not_then(promql, grid, found)
        return Panel(tuple(row for row, _, _ in found), grid, y).rows(alive)

    def read_forecasts(
        self, missions: Sequence[Mission], grid: Grid, *, since: Mapping[str, datetime] | None = None
    ) -> Mapping[str, Forecast]:
        """See `Store.read_forecasts`."""
        return self._forecast_files().read(missions, grid, since=since)

    def write_forecasts(self, forecasts: Sequence[tuple[Mission, Forecast]]) -> Written:
        """See `Store.write_forecasts`; forecasts are kept after their time, to be looked at."""
        files = self._forecast_files()
        return sum((files.write(mission, forecast) for mission, forecast in forecasts), Written())

    def read_scores(self, missions: Sequence[Mission], grid: Grid) -> Mapping[str, Panel]:
        """See `Store.read_scores`."""
        found = {}
        for mission in missions:
            labels, (score,) = self._read_results(mission, grid, ("score",))
            if labels:
                found[mission.name] = Panel(labels, grid, score)
        return found

    def read_evidence(self, missions: Sequence[Mission], grid: Grid) -> Mapping[str, Evidence]:
        """See `Store.read_evidence`."""
        found = {}
        for mission in missions:
            labels, numbers = self._read_results(mission, grid, (*_BESIDE[1:], "score"))
            evidence = over_time.evidence_of(labels, grid, np.stack(numbers))
            if evidence is not None:
                found[mission.name] = evidence
        return found

    def read_scored(self, mission: Mission, grid: Grid) -> Scores | None:
        """The scores stored at the times of `grid` with all that they were made from; written labels; `None`: none."""
        columns = ("y", "yhat", "yhat_lower", "yhat_upper", "score", "reason")
        labels, numbers = self._read_results(mission, grid, columns)
        return Scores(labels, grid, *numbers) if labels else None

    def cutoffs(self, mission: Mission, at: datetime) -> dict[Labels, datetime]:
        """By series (written labels), the newest cutoff with a forecast for `at`."""
        return self._forecast_files().cutoffs(mission, at)

    def scored_missions(self) -> list[str]:
        """The names of missions with scores, sorted."""
        folder = self._results() / "scores"
        return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []

    def scored_times(self, name: str, at: datetime) -> list[datetime]:
        """The times of the scores of the mission `name` in the newest two files up to `at`, in order."""
        import polars as pl

        paths = sorted((self._results() / "scores" / name).glob("[!.]*.parquet"))
        paths = [path for path in paths if result_time(path) <= at][-2:]
        if not paths:
            return []
        rows = read_results(paths, _score_columns(), lambda rows: rows.select(pl.col("ds").unique()), lately=_BESIDE)
        return sorted(set(rows["ds"]))

    def _read_results(
        self, mission: Mission, grid: Grid, columns: Sequence[str]
    ) -> tuple[tuple[Labels, ...], list[Floats]]:
        """What is stored in these columns at the times of `grid`: label sets, and float64[S, T] each."""
        import polars as pl

        inside = pl.col("ds").is_between(pl.lit(grid.start), pl.lit(grid.end))
        folder = self._results() / "scores" / mission.name
        paths = [
            path
            for path in sorted(folder.glob("[!.]*.parquet"))
            if grid.start - _BUCKET < result_time(path) <= grid.end
        ]
        if not paths:
            return (), [np.empty((0, grid.n)) for _ in columns]
        rows = read_results(
            paths,
            _score_columns(),
            lambda rows: rows.filter(inside).select("unique_id", "ds", *columns),
            lately=_BESIDE,
        )
        return long_to_matrix(rows, grid, columns)

    def write_scores(self, scores: Sequence[tuple[Mission, Scores]]) -> Written:
        """See `Store.write_scores`; a point that has its score keeps it."""
        return sum((self._write_scores(mission, rows) for mission, rows in scores), Written())

    def _write_scores(self, mission: Mission, scores: Scores) -> Written:
        import polars as pl

        labels = mission.written_labels(scores.labels)
        offered: set[str] = set()
        added: set[str] = set()
        samples = 0
        folder = self._results() / "scores" / mission.name
        # A point has one file where it can be, by its hour: so none is there twice, and a file stays small enough to be
        # written anew for every pass (10,000 series at a step of 1m: 600,000 rows).
        for hour, part in _by_hour(scores):
            new = _frame(replace(part, labels=labels))
            if new.is_empty():
                continue
            offered.update(new["unique_id"])
            path = folder / result_name(hour)
            with locked(folder):
                stored = new.clear()
                if path.exists():
                    stored = read_results([path], _score_columns(), lambda rows: rows, lately=_BESIDE)
                    new = new.join(stored, on=["unique_id", "ds"], how="anti")
                if not new.is_empty():
                    write_parquet(path, pl.concat([stored, new]))
            added.update(new["unique_id"])
            samples += len(new)
        return Written(samples, len(added), len(offered - added))

    def write_gauges(self, gauges: Sequence[Gauge], *, at: datetime) -> None:
        """Nothing: a folder has nobody who watches, and how a pass went is on its screen."""

    def close(self) -> None:
        """Forget the parsed files."""
        with self._lock:
            self._parsed.clear()
            self._combined = ({}, [])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _results(self) -> Path:
        if not self._path.exists():
            raise self._missing()
        return (self._path.parent if self._path.is_file() else self._path) / RESULTS

    def _forecast_files(self) -> ForecastFiles:
        # Kept, for it remembers which file reaches how far.
        if self._forecasts is None:
            self._forecasts = ForecastFiles(self._results() / "forecasts")
        return self._forecasts

    def _missing(self) -> StoreError:
        return StoreError(f"there is no folder or file {self.name}", hint="check the path of the source")

    def _load(self) -> list[MetricFile]:
        """Every file, parsed; a label set is in one of them only."""
        with self._lock:
            stamps = dict(self._walk())
            if not stamps:
                kinds = ", ".join(SUFFIXES)
                raise StoreError(
                    f"{self.name} has no metrics: no file ends in {kinds}", hint="put Parquet or CSV there"
                )
            if stamps != self._combined[0]:
                for path, stamp in stamps.items():
                    if path not in self._parsed or self._parsed[path][0] != stamp:
                        self._parsed[path] = stamp, read_metric_file(path)
                self._parsed = {path: self._parsed[path] for path in stamps}
                self._combined = stamps, _combine({path: file for path, (_, file) in self._parsed.items()})
            return self._combined[1]

    def _walk(self) -> Iterator[tuple[Path, _Stamp]]:
        if self._path.is_file():
            if not self._path.name.endswith(SUFFIXES):
                raise StoreError(f"{self.name} is neither Parquet nor CSV", hint=f"it should end in {SUFFIXES}")
            yield self._path, _stamp(self._path)
            return
        if not self._path.is_dir():
            raise self._missing()

        def away(exc: OSError) -> None:
            raise StoreUnavailableError(f"{exc.filename} cannot be read: {exc.strerror}") from exc

        for folder, subfolders, names in os.walk(self._path, onerror=away):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith(".") and name != RESULTS)
            for name in sorted(names):
                if name.endswith(SUFFIXES) and not name.startswith("."):
                    path = Path(folder, name)
                    yield path, _stamp(path)

    def _nothing(self, promql: str, files: Sequence[MetricFile]) -> NoSeriesError:
        metrics = sorted({row.get("__name__") for file in files for row in file.labels})
        name = Selector(promql).name
        if name in metrics:
            some = next(row for file in files for row in file.labels if row.get("__name__") == name)
            return NoSeriesError(
                f"no series of {name} in {self.name} matches {promql[:200]}", hint=f"there is e.g. {some}"
            )
        near = get_close_matches(name, metrics, n=3, cutoff=0.5) if name else []
        shown = ", ".join(metrics[:10]) + (f", … ({len(metrics)} in all)" if len(metrics) > 10 else "")
        return NoSeriesError(
            f"{promql[:200]} matches no series in {self.name}",
            hint=(f"did you mean {' or '.join(near)}? " if near else "") + f"there is: {shown}",
        )

    def _not_then(self, promql: str, grid: Grid, found: Sequence[tuple[Labels, MetricFile, int]]) -> NoSeriesError:
        spans = [file.time[file.ends[i] : file.ends[i + 1]] for _, file, i in found]
        times = [int(span[i]) for span in spans if len(span) for i in (0, -1)]
        hint = "its series hold no number at all"
        if times:
            start, end = (_iso(EPOCH + timedelta(milliseconds=ms)) for ms in (min(times), max(times)))
            hint = f"its samples reach from {start} to {end}: name a time with --at"
        return NoSeriesError(
            f"{promql[:200]} has no sample in {self.name} from {_iso(grid.start)} to {_iso(grid.end)}", hint=hint
        )


class Selector:
    """A PromQL selector: `name` is its metric name, or empty where it does not spell one.

    Raises:
        QueryError: anything else.
    """

    def __init__(self, promql: str) -> None:
        query = parse_query(promql)
        if query.problem:
            place = "" if query.position is None else f"\n{point_at(promql, query.position)}"
            raise QueryError(f"the query is no PromQL: {query.problem}{place}", hint='write it like up{job="api"}')
        # The parser ends the process on a thousand operators; what has one selector in it is safe.
        expression = promql_parser.parse(promql) if len(query.selectors) == 1 else None
        while isinstance(expression, promql_parser.ParenExpr):
            expression = expression.expr
        if not isinstance(expression, promql_parser.VectorSelector):
            raise QueryError(
                f'{promql[:200]} is no selector, and a folder answers label selectors only, like up{{job="api"}}',
                hint="functions, aggregations and operators need a server: load the data into VictoriaMetrics",
            )
        if expression.offset is not None or expression.at is not None:
            raise QueryError(
                f"{promql[:200]} has an offset or @ modifier, and a folder answers plain selectors only",
                hint="leave it out, and name a time with --at",
            )
        matchers = expression.matchers
        # VictoriaMetrics' `{a="x" or b="y"}`: any of the groups.
        self._groups = [[_Matcher(each) for each in group] for group in matchers.or_matchers or [matchers.matchers]]
        if expression.name is not None:
            named = promql_parser.Matcher(promql_parser.MatchOp.Equal, "__name__", expression.name)
            self._groups = [[_Matcher(named), *group] for group in self._groups]
        equal = promql_parser.MatchOp.Equal
        self.name = next(
            (m.value for group in self._groups for m in group if m.label == "__name__" and m.op == equal), ""
        )

    def matching(self, labels: Sequence[Labels]) -> Iterator[tuple[int, Labels]]:
        """The label sets that match, with their positions."""
        keep = np.zeros(len(labels), dtype=bool)
        for group in self._groups:
            keep |= np.logical_and.reduce([matcher.keeps(labels) for matcher in group])
        return ((i, row) for i, (row, kept) in enumerate(zip(labels, keep, strict=True)) if kept)


class _Matcher:
    """One label matcher. A label that a series lacks is empty; a regular expression matches the whole value."""

    def __init__(self, matcher: Any) -> None:
        import polars as pl

        self.label: str = matcher.name
        self.op = matcher.op
        self.value: str = matcher.value
        if self._is_regex:
            try:
                # By itself first: in the anchors below, `a)|(b` would become valid and mean something else.
                pl.Series([""]).str.contains(self.value)
            except pl.exceptions.ComputeError as exc:
                raise QueryError(
                    f"the regular expression {self.value[:200]!r} of label {self.label} cannot be understood",
                    hint="RE2 syntax, without look-around and back-references",
                ) from exc

    @property
    def _is_regex(self) -> bool:
        return self.op in (promql_parser.MatchOp.Re, promql_parser.MatchOp.NotRe)

    def keeps(self, labels: Sequence[Labels]) -> npt.NDArray[np.bool_]:
        """Which of the label sets it lets through."""
        import polars as pl

        values = [row.get(self.label) for row in labels]
        if self._is_regex:
            # Rust's regular expressions are RE2's in all that matters here, linear time included.
            found = pl.Series(values, dtype=pl.String).str.contains(f"^(?s:{self.value})$").to_numpy()
        else:
            found = np.array([value == self.value for value in values], dtype=bool)
        negative = self.op in (promql_parser.MatchOp.NotEqual, promql_parser.MatchOp.NotRe)
        return ~found if negative else found


def _by_hour(scores: Scores) -> Iterator[tuple[datetime, Scores]]:
    """Scores cut at full hours, each with its hour."""
    grid, at = scores.grid, 0
    while at < grid.n:
        time = grid.start + at * grid.step
        hour = time - (time - EPOCH) % _BUCKET
        stop = min(grid.n, -((grid.start - hour - _BUCKET) // grid.step))
        cut = slice(at, stop)
        yield hour, scores.columns(cut)
        at = stop


def _frame(scores: Scores) -> pl.DataFrame:
    """Scores as rows of a file: those that there are."""
    import polars as pl

    numbers = over_time.score_numbers(scores)
    columns = [
        pl.Series(name, rows.reshape(-1), nan_to_null=True) for name, rows in zip(_BESIDE, numbers[:-1], strict=True)
    ]
    return scores.to_frame(gaps=True).hstack(columns).filter(pl.col("score").is_not_nan())


def _combine(files: Mapping[Path, MetricFile]) -> list[MetricFile]:
    holders = Counter(row for file in files.values() for row in file.labels)
    sharing = [(path, file) for path, file in files.items() if any(holders[row] > 1 for row in file.labels)]
    alone = [file for file in files.values() if all(holders[row] == 1 for row in file.labels)]
    return [*alone, merge_files(sharing)] if sharing else alone


def _stamp(path: Path) -> _Stamp:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size


def _iso(at: datetime) -> str:
    return f"{at:%Y-%m-%dT%H:%M:%SZ}"


def _score_columns() -> dict[str, pl.DataType]:
    import polars as pl

    values = ("y", "yhat", "yhat_lower", "yhat_upper", "score", *_BESIDE)
    return {"unique_id": pl.String(), "ds": pl.Datetime("ms", "UTC"), **dict.fromkeys(values, pl.Float64())}
