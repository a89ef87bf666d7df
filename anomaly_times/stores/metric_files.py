"""One Parquet or CSV file of metrics, as samples of labelled series.

A file has a time column, called `ds`, `timestamp`, `time`, `datetime` or `date` in any case, and is one of two kinds:

- **long**, if it has a column `y` (or `value`): one sample a row. Every other column is a label: its header is the
  label's name, its text the value, an empty cell means that the series lacks the label. Two are special: `unique_id`
  may hold a whole label set (`cpu{host="a"}` or `{host="a"}`), and `__name__` (or `metric`) holds the metric's name.
- **wide** otherwise: every other column is a series, its header the label set (`cpu{host="a"}`, `{host="a"}`).

Where nothing names the metric, the file does: `http_requests.csv` holds `http_requests`. An id or a header that is no
label set becomes the label `series`: column `eu` of `cpu.csv` is `cpu{series="eu"}`. In names that we derive,
characters that Prometheus does not allow become `_`. A CSV's first line is its header; columns are separated by commas.

Times are ISO 8601 (without a zone: UTC), datetimes, or seconds, milliseconds, microseconds or nanoseconds since the
epoch, told apart by their size; they are kept to the millisecond. Empty cells, `NA`, `null`, NaN and infinities are
gaps. Where one series has two values at one time, the last one counts; that repairs a clock that was set back, so
where it happens more than once in 20 samples the file is refused: two series are mixed then.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import numpy.typing as npt

from anomaly_times.durations import EPOCH
from anomaly_times.errors import StoreDataError, StoreUnavailableError
from anomaly_times.panel import Floats, Labels
from anomaly_times.stores.state import first_line

if TYPE_CHECKING:
    import polars as pl

__all__ = ["SUFFIXES", "MetricFile", "merge_files", "read_metric_file"]

SUFFIXES = (".parquet", ".csv", ".csv.gz")
"""What a file of metrics may end in."""

_TIME_NAMES = ("ds", "timestamp", "time", "datetime", "date")
_VALUE_NAMES = ("y", "value")
_GAPS = ["", "na", "n/a", "nan", "null", "none"]
_LONG_HINT = "a long file needs a column y (or value), a wide one numbers in every column but the time"

Where = Callable[[int], str]
"""The place of a data row (from 0) in its file, for messages."""


@dataclass(frozen=True, eq=False)
class MetricFile:
    """The samples of one or several files: sample `k` is `value[k]` of series `labels[row[k]]` at `time[k]`.

    `labels` are sorted and differ; samples are sorted by series and time, no two at one time; times are milliseconds
    since the epoch (int64), values finite float64. Samples of series `i` stand at `ends[i]` to `ends[i + 1]`.
    """

    labels: tuple[Labels, ...]
    row: npt.NDArray[np.int64]
    time: npt.NDArray[np.int64]
    value: Floats
    ends: npt.NDArray[np.int64]


def read_metric_file(path: Path) -> MetricFile:
    """The series of a Parquet or CSV file; the module says what it may look like.

    Raises:
        StoreDataError: the file cannot be understood; names the line or row where there is one.
        StoreUnavailableError: it cannot be read.
    """
    import polars as pl

    where: Where
    try:
        if path.name.endswith(".parquet"):
            frame = pl.read_parquet(path, glob=False)
            where = lambda row: f"{path}, row {row + 1}"  # noqa: E731
        else:
            frame = _read_csv(path)
            where = lambda row: f"{path}:{row + 2}"  # noqa: E731
        return _understand(frame, path, where)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as exc:
        kind = "Parquet" if path.name.endswith(".parquet") else "CSV"
        raise StoreDataError(
            f"{path} cannot be read as {kind}: {first_line(exc)}", hint="repair the file or move it away"
        ) from exc
    except OSError as exc:
        raise StoreUnavailableError(f"{path} cannot be read: {exc.strerror or exc}") from exc


def merge_files(files: Sequence[tuple[Path, MetricFile]]) -> MetricFile:
    """The series of several files that share some.

    Raises:
        StoreDataError: files that contradict each other about a series.
    """
    labels = tuple(sorted({row for _, file in files for row in file.labels}))
    position = {row: i for i, row in enumerate(labels)}
    rows = [np.array([position[row] for row in file.labels], dtype=np.int64)[file.row] for _, file in files]
    bounds = np.cumsum([len(file.row) for _, file in files])

    def where(sample: int) -> str:
        return str(files[int(np.searchsorted(bounds, sample, side="right"))][0])

    return _ordered(
        labels,
        np.concatenate(rows),
        np.concatenate([file.time for _, file in files]),
        np.concatenate([file.value for _, file in files]),
        where=where,
    )


def _read_csv(path: Path) -> pl.DataFrame:
    """Every cell as text: a label `007` or `1.0` stays as it is, and a bad value can be shown as it is written."""
    import polars as pl

    frame = pl.read_csv(path, has_header=False, infer_schema=False, raise_if_empty=False)
    if frame.is_empty():
        raise StoreDataError(f"{path} is empty", hint="the first line of a CSV names its columns")
    # The header is read as a row: polars would rename a column that is there twice.
    header = [(name or "").strip().removeprefix("\ufeff") for name in frame.row(0)]
    _refuse_twice(header, path)
    return frame.slice(1).rename(dict(zip(frame.columns, header, strict=True)))


def _refuse_twice(names: Sequence[str], path: Path) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise StoreDataError(f"{path}: the column {twice[0]!r} is there twice", hint="columns need names that differ")


def _understand(frame: pl.DataFrame, path: Path, where: Where) -> MetricFile:
    by_name = {name.lower(): name for name in reversed(frame.columns)}
    time_column = next((by_name[name] for name in _TIME_NAMES if name in by_name), None)
    value_column = next((by_name[name] for name in _VALUE_NAMES if name in by_name), None)
    if time_column is None:
        known = ", ".join(map(repr, frame.columns[:8])) + (", …" if frame.width > 8 else "")
        raise StoreDataError(
            f"{path} has no time column (columns: {known})", hint="call it ds, timestamp, time, datetime or date"
        )
    others = [name for name in frame.columns if name not in (time_column, value_column)]
    if value_column is None and not others:
        raise StoreDataError(f"{path} has times but no values", hint=_LONG_HINT)
    time = _times(frame[time_column], where)
    if value_column is None:
        return _wide(frame, others, time, path, where)
    if others:
        labels, row = _long_labels(frame.select(others), path)
    else:
        labels, row = (_identity("", path),), np.zeros(frame.height, dtype=np.int64)
    value = _values(frame[value_column], where)
    there = np.flatnonzero(np.isfinite(value))
    return _ordered(labels, row[there], time[there], value[there], where=lambda k: where(int(there[k])))


def _wide(
    frame: pl.DataFrame, names: Sequence[str], time: npt.NDArray[np.int64], path: Path, where: Where
) -> MetricFile:
    labels: list[Labels] = []
    seen: dict[Labels, str] = {}
    for name in names:
        labels.append(_identity(name, path))
        if (before := seen.setdefault(labels[-1], name)) != name:
            raise StoreDataError(
                f"{path}: the columns {before!r} and {name!r} are the same series",
                hint="remove one, or tell them apart by a label",
            )
    order = sorted(range(len(names)), key=labels.__getitem__)
    values = np.stack([_values(frame[names[i]], where) for i in order])
    row, at = np.nonzero(np.isfinite(values))
    return _ordered(tuple(labels[i] for i in order), row, time[at], values[row, at], where=lambda k: where(int(at[k])))


def _long_labels(columns: pl.DataFrame, path: Path) -> tuple[tuple[Labels, ...], npt.NDArray[np.int64]]:
    """The label sets of a long file, sorted, and which of them each row has."""
    import polars as pl

    _refuse_values(columns, path)
    columns = columns.select(pl.all().cast(pl.String).fill_null(""))
    # A row of `keys` is a series; with a name that no column can have.
    keys = columns.unique(maintain_order=True).with_row_index("\0series")
    series = columns.join(keys, on=columns.columns, how="left", maintain_order="left")["\0series"].to_numpy()

    metric_column = next((name for name in ("__name__", "metric") if name in columns.columns), None)
    names = {name: "__name__" if name == metric_column else _clean(name) for name in columns.columns}
    _refuse_twice(list(names.values()), path)
    labels = []
    for cells in keys.drop("\0series").iter_rows(named=True):
        own = {names[name]: text for name, text in cells.items() if text and name != "unique_id"}
        labels.append(Labels.of({**dict(_identity(cells.get("unique_id", ""), path)), **own}))
    ordered = tuple(sorted(set(labels)))
    position = {row: i for i, row in enumerate(ordered)}
    return ordered, np.array([position[row] for row in labels], dtype=np.int64)[series]


def _refuse_values(columns: pl.DataFrame, path: Path) -> None:
    """A column of measurements in a long file would make nearly every row a series of its own."""
    import polars as pl

    for name in columns.columns:
        cells = columns[name].drop_nulls()
        if len(cells) < 20 or cells.n_unique() <= len(cells) // 2:
            continue
        if cells.cast(pl.String).cast(pl.Float64, strict=False).null_count() == 0:
            raise StoreDataError(
                f"{path}: the column {name!r} holds numbers, where a long file (it has a column y or value) has labels",
                hint="remove it; or, to have one series a column, rename the column y or value",
            )


def _identity(text: str, path: Path) -> Labels:
    """The labels that a `unique_id` or a header stands for, with the file's name for a metric where it has none."""
    if text.endswith("}"):
        try:
            labels = dict(Labels.parse(text))
        except ValueError as exc:
            raise StoreDataError(f"{path}: {exc}", hint='write it like cpu{host="a"} or {host="a"}') from exc
    else:
        labels = {"series": text.strip()}
    stem = re.sub(r"[^a-zA-Z0-9_:]", "_", path.name.removesuffix(".gz").rpartition(".")[0])
    return Labels.of({"__name__": f"_{stem}" if stem[0].isdigit() else stem, **labels})


def _clean(name: str) -> str:
    name = re.sub(r"[^a-zA-Z0-9_]", "_", name)
    return f"_{name}" if name[:1].isdigit() else name or "_"


def _values(cells: pl.Series, where: Where) -> Floats:
    """Numbers, NaN for a gap or an infinity."""
    import polars as pl

    numbers = cells.cast(pl.Float64, strict=False) if cells.dtype != pl.String else None
    if numbers is None:
        text = cells.str.strip_chars()
        numbers = text.cast(pl.Float64, strict=False)
        if numbers.null_count() > text.null_count():
            wrong = numbers.is_null() & ~text.str.to_lowercase().is_in(_GAPS).fill_null(value=True)
            if wrong.any():
                _refuse(cells, wrong, where, "is no number", _LONG_HINT)
    elif numbers.null_count() > cells.null_count():
        _refuse(cells, numbers.is_null() & cells.is_not_null(), where, "is no number", _LONG_HINT)
    values = numbers.fill_null(np.nan).to_numpy().copy()
    values[np.isinf(values)] = np.nan
    return values


def _times(cells: pl.Series, where: Where) -> npt.NDArray[np.int64]:
    """Milliseconds since the epoch."""
    import polars as pl

    if isinstance(cells.dtype, pl.Datetime):
        # A naive datetime is UTC; one with a zone is an instant already.
        times = cells.dt.epoch("ms")
    elif cells.dtype == pl.Date:
        times = cells.cast(pl.Datetime("ms")).dt.epoch("ms")
    elif cells.dtype == pl.String:
        text = cells.str.strip_chars()
        numbers = text.cast(pl.Float64, strict=False)
        times = _text_times(text) if numbers.null_count() * 2 > len(cells) else _epoch_times(numbers)
    elif cells.dtype.is_numeric():
        times = _epoch_times(cells.cast(pl.Float64))
    else:
        times = pl.Series([None] * len(cells), dtype=pl.Int64)
    if times.null_count():
        hint = "times are like 2025-03-01T12:00:00Z, or seconds or milliseconds since 1970"
        _refuse(cells, times.is_null(), where, "is no time", hint)
    return times.to_numpy()


def _epoch_times(numbers: pl.Series) -> pl.Series:
    """By size: seconds from 1973 to 5138, then milliseconds, microseconds, nanoseconds; else null."""
    import polars as pl

    number = pl.col(numbers.name)
    scaled = (
        pl.when(number < 1e8)
        .then(None)
        .when(number < 1e11)
        .then(number * 1e3)
        .when(number < 1e14)
        .then(number)
        .when(number < 1e17)
        .then(number / 1e3)
        .when(number < 1e20)
        .then(number / 1e6)
    )
    return numbers.to_frame().select(scaled.floor().cast(pl.Int64)).to_series()


def _text_times(text: pl.Series) -> pl.Series:
    import polars as pl

    parsed = text.str.to_datetime("%Y-%m-%d %H:%M:%S", strict=False, time_unit="ms")
    if parsed.null_count() == 0:
        return parsed.dt.epoch("ms")
    parts = text.str.extract_groups(
        r"^(\d{4}-\d\d-\d\d)(?:[Tt ](\d\d:\d\d)(?::(\d\d(?:\.\d+)?))?)? ?(?:[Zz]|UTC|([+-]\d\d):?(\d\d))?$"
    ).struct.unnest()
    date, clock, seconds, hours, minutes = (pl.col(name) for name in parts.columns)
    sign = pl.when(hours.str.starts_with("-")).then(-1).otherwise(1)
    offset = (hours.cast(pl.Int64) * 60 + sign * minutes.cast(pl.Int64)).fill_null(0) * 60_000
    local = pl.concat_str(date, pl.lit(" "), clock.fill_null("00:00"), pl.lit(":"), seconds.fill_null("00"))
    instant = local.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", strict=False, time_unit="ms")
    return parts.select(instant.dt.epoch("ms") - offset).to_series()


def _refuse(cells: pl.Series, wrong: pl.Series, where: Where, problem: str, hint: str) -> NoReturn:
    row = wrong.arg_true()[0]
    value = cells[row]
    more = f" ({wrong.sum()} such rows)" if wrong.sum() > 1 else ""
    shown = "an empty cell" if value is None or value == "" else repr(str(value)[:80])
    raise StoreDataError(f"{where(row)}: {shown} in column {cells.name!r} {problem}{more}", hint=hint)


def _ordered(
    labels: tuple[Labels, ...], row: npt.NDArray[np.int64], time: npt.NDArray[np.int64], value: Floats, *, where: Where
) -> MetricFile:
    """Sorted by series and time; of several values at one time the last one."""
    order = np.lexsort((time, row))
    row, time, value = row[order], time[order], value[order]
    again = (row[1:] == row[:-1]) & (time[1:] == time[:-1])
    if again.any():
        differs = again & (value[1:] != value[:-1])
        counts = np.bincount(row[1:][differs], minlength=len(labels))
        mixed = np.flatnonzero(counts * 20 > np.bincount(row, minlength=len(labels)))
        if len(mixed):
            first = int(np.flatnonzero(differs & (row[1:] == mixed[0]))[0])
            at = EPOCH + timedelta(milliseconds=int(time[first]))
            raise StoreDataError(
                f"{where(int(order[first + 1]))}: {labels[mixed[0]]} has the values {value[first]:g} (in "
                f"{where(int(order[first]))}) and {value[first + 1]:g} at {at:%Y-%m-%dT%H:%M:%SZ}",
                hint="are two series mixed? tell them apart by a label column, or by the names of files",
            )
        last = np.append(~again, [True])
        row, time, value = row[last], time[last], value[last]
    return MetricFile(labels, row, time, value, np.searchsorted(row, np.arange(len(labels) + 1)))
