"""Forecasts in a folder that all workers share, one Parquet file for each mission and cutoff.

Where a store must not be given the future (`write: at_detection`), a forecast waits here until its time has come; a
folder of metrics keeps its forecasts here for good. Any Parquet reader opens them:

    <root>/<mission>/2025-03-01T120000.000Z.parquet      unique_id, ds, yhat, yhat_lower, yhat_upper, keep_until,
                                                         limit_sustained, …, usual, move

`unique_id` is the label set under which results are written, `ds` is UTC. The limits of evidence over time are the same
at all points of a series, and null where there are none; a file from before there were any lacks their columns. A file
appears complete or not at all, and what a complete file holds never changes.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from anomaly_times.durations import EPOCH, milliseconds
from anomaly_times.errors import StoreDataError, StoreUnavailableError
from anomaly_times.evidence import KEPT
from anomaly_times.mission import Mission
from anomaly_times.panel import Floats, Forecast, Grid, Labels
from anomaly_times.stores import Written, over_time

if TYPE_CHECKING:
    import polars as pl

__all__ = [
    "ForecastFiles",
    "first_line",
    "locked",
    "long_to_matrix",
    "read_results",
    "result_name",
    "result_time",
    "write_parquet",
]

_VALUES = ("yhat", "yhat_lower", "yhat_upper")
_LIMITS = (*(f"limit_{channel}" for channel in KEPT), "usual", "move")
"""The kinds of `over_time.LIMITS` as columns; `usual` is that of `sustained`."""
_FILE = re.compile(r"(\d{4}-\d\d-\d\dT\d{6}\.\d{3}Z)\.parquet")
_HINT = "move the file away; the next forecast writes a new one"


class ForecastFiles:
    """Forecasts under `root`, which several workers may share; the folder is made at the first write.

    Writers of one mission take turns by a lock on `<root>/<mission>/.lock` that ends with its process; readers need
    none. Safe to use from several threads.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        # (last ds, keep_until) in epoch ms, by file and what would change with its content.
        self._reach: dict[tuple[str, int, int], tuple[int, int]] = {}

    def write(self, mission: Mission, forecast: Forecast) -> Written:
        """Store `forecast` under its mission and cutoff; series that are stored for both already are left as they are.

        Raises:
            ValueError: the forecast has no cutoff, that is, was read from a store.
            StoreDataError: the file of this cutoff is there and cannot be read.
            StoreUnavailableError: the folder cannot be written.
        """
        import polars as pl

        if forecast.cutoff is None:
            raise ValueError("a forecast without a cutoff cannot be stored")
        frame = replace(forecast, labels=mission.written_labels(forecast.labels)).to_frame()
        if frame.is_empty():
            return Written()
        until = milliseconds(forecast.grid.end + mission.detect.catch_up - EPOCH)
        # Of each series as many points as it has a forecast for.
        points = (~np.isnan(forecast.yhat)).sum(axis=1)
        limits = [pl.Series(name, [], pl.Float64()).extend_constant(None, len(frame)) for name in _LIMITS]
        if forecast.limits is not None:
            limits = [
                pl.Series(name, np.repeat(row, points), nan_to_null=True)
                for name, row in zip(_LIMITS, over_time.limit_numbers(forecast.limits), strict=True)
            ]
        frame = frame.hstack([pl.Series("keep_until", np.full(len(frame), until)).cast(_time()), *limits])
        folder = self.root / mission.name
        path = folder / result_name(forecast.cutoff)
        with locked(folder):
            new, stored = frame, None
            if path.exists():
                stored = read_results([path], _columns(), lambda rows: rows, lately=_LIMITS)
                new = frame.join(stored, on=("unique_id", "ds"), how="anti")
            if not new.is_empty():
                write_parquet(path, new if stored is None else pl.concat([stored, new]))
        # A horizon that grew adds times to a series that is stored.
        offered, added = frame["unique_id"].n_unique(), new["unique_id"].n_unique()
        of_each = len(_VALUES)
        return Written(samples=of_each * len(new), series=of_each * added, skipped=of_each * (offered - added))

    def read(
        self, missions: Sequence[Mission], grid: Grid, *, since: Mapping[str, datetime] | None = None
    ) -> Mapping[str, Forecast]:
        """For each mission (by name) the newest forecast of each series at each time of `grid`.

        Labels are the written ones, sorted; NaN where no cutoff covers a time; a mission without anything is absent.
        Cutoffs before the mission's `since` do not count.

        Raises:
            StoreDataError: naming a file that is truncated or none of ours.
            StoreUnavailableError: the folder cannot be read.
        """
        import polars as pl

        inside = pl.col("ds").is_between(pl.lit(grid.start, _time()), pl.lit(grid.end, _time()))
        found = {}
        for mission in missions:
            # Oldest first: where two cutoffs cover a time, the later row stays.
            oldest = (since or {}).get(mission.name, EPOCH)
            paths = [path for cutoff, path in self._files(mission.name) if oldest <= cutoff < grid.end]
            rows = self._read_all(paths, inside, start=grid.start_ms)
            if rows is None:
                continue
            watches = mission.watches_over_time
            labels, (yhat, lower, upper, *numbers) = long_to_matrix(rows, grid, _VALUES + _LIMITS * watches)
            if labels:
                limits = over_time.limits_of(np.stack(numbers)) if watches else None
                found[mission.name] = Forecast(labels, grid, None, yhat, lower, upper, limits=limits)
        return found

    def cutoffs(self, mission: Mission, at: datetime) -> dict[Labels, datetime]:
        """By series (written labels), the newest cutoff with a forecast for `at`.

        Raises:
            StoreDataError: naming a file that is truncated or none of ours.
            StoreUnavailableError: the folder cannot be read.
        """
        import polars as pl

        found: dict[Labels, datetime] = {}
        there = (pl.col("ds") == pl.lit(at, _time())) & pl.col("yhat").is_finite()
        # Oldest first, so that the newest stays.
        for cutoff, path in self._files(mission.name):
            if cutoff < at:
                rows = self._read_all([path], there, start=milliseconds(at - EPOCH))
                if rows is not None:
                    found |= dict.fromkeys(map(Labels.parse, rows["unique_id"].unique()), cutoff)
        return found

    def prune(self, now: datetime) -> None:
        """Remove files of all missions whose horizon lies further back than the mission catches up.

        A file that cannot be read stays: the mission that it belongs to fails on reading it, and no other one.
        """
        if not self.root.is_dir():
            return
        limit = milliseconds(now - EPOCH)
        for folder in sorted(path for path in self.root.iterdir() if path.is_dir()):
            for path in folder.glob("*.parquet"):
                try:
                    if result_time(path) < now and self._reach_of(path)[1] < limit:
                        path.unlink(missing_ok=True)
                except (StoreDataError, FileNotFoundError):
                    continue

    def _files(self, mission: str) -> list[tuple[datetime, Path]]:
        """The files of a mission with their cutoffs, oldest first."""
        try:
            paths = sorted((self.root / mission).glob("*.parquet"))
        except OSError as exc:
            raise StoreUnavailableError(f"{self.root / mission} cannot be read: {exc.strerror}") from exc
        return [(result_time(path), path) for path in paths if not path.name.startswith(".")]

    def _read_all(self, paths: Sequence[Path], inside: pl.Expr, *, start: int) -> pl.DataFrame | None:
        """The rows `inside` of those files that reach to `start` (epoch ms)."""
        while paths:
            try:
                paths = [path for path in paths if self._reach_of(path)[0] >= start]
                if not paths:
                    return None
                return read_results(paths, _columns(), lambda rows: rows.filter(inside), lately=_LIMITS)
            except FileNotFoundError:
                # Another worker pruned one after we listed the folder.
                paths = [path for path in paths if path.exists()]
        return None

    def _reach_of(self, path: Path) -> tuple[int, int]:
        """The last time that a file covers and the time until which it is kept, in epoch ms."""
        import polars as pl

        stat = path.stat()
        key = (str(path), stat.st_mtime_ns, stat.st_size)
        if key not in self._reach:
            ends = pl.col("ds").max().dt.epoch("ms"), pl.col("keep_until").max().dt.epoch("ms")
            last, keep = read_results([path], _columns(), lambda rows: rows.select(ends), lately=_LIMITS).row(0)
            if last is None or keep is None:
                raise StoreDataError(f"{path} holds no forecast", hint=_HINT)
            self._reach[key] = (last, keep)
        return self._reach[key]


def long_to_matrix(frame: pl.DataFrame, grid: Grid, columns: Sequence[str]) -> tuple[tuple[Labels, ...], list[Floats]]:
    """Label sets, sorted, and one float64[S, T] for each of `columns`, from a long frame `unique_id, ds, …`.

    Rows off the grid are left out; of several rows for one point the last one counts; points without a row are NaN.

    Raises:
        ValueError: a `unique_id` is no label set.
    """
    import polars as pl

    offset = frame["ds"].dt.epoch("ms").to_numpy() - grid.start_ms
    frame = frame.filter((offset % grid.step_ms == 0) & (offset >= 0) & (offset < grid.n * grid.step_ms))
    column = (frame["ds"].dt.epoch("ms").to_numpy() - grid.start_ms) // grid.step_ms
    ids = frame["unique_id"].unique(maintain_order=True)
    labels = [Labels.parse(text) for text in ids]
    order = sorted(range(len(labels)), key=labels.__getitem__)
    row_of = np.empty(len(labels), dtype=np.intp)
    row_of[order] = np.arange(len(labels))
    row = row_of[frame["unique_id"].cast(pl.Enum(ids)).to_physical().to_numpy()]
    matrices = []
    for name in columns:
        matrix = np.full((len(labels), grid.n), np.nan)
        matrix[row, column] = frame[name].to_numpy()
        matrices.append(matrix)
    return tuple(labels[i] for i in order), matrices


def read_results(
    paths: Sequence[Path],
    columns: Mapping[str, pl.DataType],
    ask: Callable[[pl.LazyFrame], pl.LazyFrame],
    *,
    lately: Sequence[str] = (),
) -> pl.DataFrame:
    """What `ask` makes of the rows of some of our Parquet files (at least one), one below the other.

    Args:
        paths: the files.
        columns: what they have, exactly.
        ask: makes of the rows of a file what is wanted of them.
        lately: those of `columns` that a file from before there were any lacks, all of them; they are null then.

    Raises:
        StoreDataError: naming a file that is truncated or none of ours.
        StoreUnavailableError: one cannot be read.
        FileNotFoundError: one is gone.
    """
    import polars as pl

    return pl.concat([_read_result(path, columns, ask, lately) for path in paths])


def _read_result(
    path: Path,
    columns: Mapping[str, pl.DataType],
    ask: Callable[[pl.LazyFrame], pl.LazyFrame],
    lately: Sequence[str],
) -> pl.DataFrame:
    import polars as pl

    try:
        rows = pl.scan_parquet(path, glob=False)
        found = dict(rows.collect_schema())
        if found == {name: kind for name, kind in columns.items() if name not in lately}:
            rows = rows.with_columns(pl.lit(None, columns[name]).alias(name) for name in lately).select(*columns)
        elif found != columns:
            raise StoreDataError(f"{path} is none of our files: it has other columns", hint=_HINT)
        return ask(rows).collect()
    except FileNotFoundError:
        raise
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as exc:
        raise StoreDataError(f"{path} cannot be read as Parquet: {first_line(exc)}", hint=_HINT) from exc
    except OSError as exc:
        raise StoreUnavailableError(f"{path} cannot be read: {exc.strerror or exc}") from exc


def write_parquet(path: Path, frame: pl.DataFrame) -> None:
    """Write `frame` so that `path` is there complete or not at all.

    The folder must be `locked`: that is what tells a file in the making from one that a killed run left behind.

    Raises:
        StoreUnavailableError: no space, or no right to write.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            # lz4 and snappy write five times faster than zstd here, and not 10 % larger.
            frame.write_parquet(file, compression="snappy")
            file.flush()
            # Else a power cut could leave the name without the content. One that takes the name back does no harm:
            # a rerun writes the file again.
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as exc:
        raise StoreUnavailableError(f"{path} cannot be written: {exc.strerror or exc}") from exc


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The only writer of `folder`, which is made if need be; what killed writers left half-done is removed.

    Raises:
        StoreUnavailableError: the folder cannot be made or locked.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a")
    except OSError as exc:
        raise StoreUnavailableError(
            f"{folder} cannot be written: {exc.strerror or exc}", hint="check the path and who may write there"
        ) from exc
    with lock:
        # The kernel gives the lock back when its holder dies, however it dies.
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left_over in folder.glob(".*.tmp"):
            left_over.unlink(missing_ok=True)
        yield


def first_line(exc: BaseException) -> str:
    """The first line of an exception's text: polars adds its query plan below."""
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0][:300]


def _columns() -> dict[str, pl.DataType]:
    import polars as pl

    number = pl.Float64()
    values, limits = dict.fromkeys(_VALUES, number), dict.fromkeys(_LIMITS, number)
    return {"unique_id": pl.String(), "ds": _time(), **values, "keep_until": _time(), **limits}


def _time() -> pl.DataType:
    import polars as pl

    return pl.Datetime("ms", "UTC")


def result_name(at: datetime) -> str:
    """The name of the file for this time: `2025-03-01T120000.000Z.parquet`."""
    # Without colons, so that it can be copied anywhere; fixed width, so that names sort by time.
    text = at.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="milliseconds")
    return f"{text.replace(':', '')}Z.parquet"


def result_time(path: Path) -> datetime:
    """The time that `result_name` put into a file's name.

    Raises:
        StoreDataError: the name is none of ours.
    """
    match = _FILE.fullmatch(path.name)
    try:
        if match:
            return datetime.fromisoformat(match[1])
    except ValueError:
        pass
    raise StoreDataError(
        f"{path} is none of our files: they are named like 2025-03-01T120000.000Z.parquet",
        hint="move the file away",
    )
