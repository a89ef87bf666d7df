"""The data that flows: many series on one time grid, and what models and scoring make of them.

A PromQL range query answers a dense matrix, so that is the natural form: one row a series, one column a grid point,
NaN for a gap. `to_frame()` gives the long form (`unique_id, ds, y`) for tables, files and other libraries.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from anomaly_times.durations import EPOCH, format_duration, milliseconds
from anomaly_times.errors import UsageError

if TYPE_CHECKING:
    import polars as pl

__all__ = [
    "Evidence",
    "Floats",
    "Forecast",
    "Grid",
    "Labels",
    "Limits",
    "Panel",
    "Quantiles",
    "Scores",
    "round_significant",
]

Floats = npt.NDArray[np.float64]

_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})
_PAIR = re.compile(r'\s*([^\s=,{}"]+)\s*=\s*"((?:\\.|[^"\\])*)"\s*(?:,|$)', re.DOTALL)


class Labels(tuple[tuple[str, str], ...]):
    """One series' label set: `(name, value)` pairs sorted by name; `__name__` is a label like any other.

    Being a tuple it hashes, sorts and pickles; build it with `Labels.of`. `str()` is the canonical PromQL form
    `{instance="a",job="b"}`, which is the `unique_id` of long frames.
    """

    __slots__ = ()

    @classmethod
    def of(cls, labels: Mapping[str, str]) -> Self:
        """From a mapping; empty values are dropped, as Prometheus does."""
        return cls(sorted((name, value) for name, value in labels.items() if value))

    @classmethod
    def parse(cls, text: str) -> Self:
        """The label set that `text` spells, `{instance="a",job="b"}` or `up{job="b"}`; the inverse of `str()`.

        Raises:
            ValueError: for anything else, and for a label that is there twice.
        """
        name, brace, body = text.strip().partition("{")
        if not brace or not body.endswith("}") or set(name) & set(' "=,}'):
            raise ValueError(f"{text[:200]!r} is no label set")
        body, pairs = body[:-1], [("__name__", name)] if name else []
        if "\\" not in body and body.endswith('"'):
            # Without an escape every quote is a delimiter: five times faster than the pattern below.
            plain = [pair.partition('="') for pair in body[:-1].split('",')]
            if all(middle and key.isidentifier() and '"' not in value for key, middle, value in plain):
                return cls.of(_once(pairs + [(key, value) for key, _, value in plain], text))
        at = 0
        while match := _PAIR.match(body, at):
            value = re.sub(r"\\(.)", lambda m: "\n" if m[1] == "n" else m[1], match[2], flags=re.DOTALL)
            pairs.append((match[1], value))
            at = match.end()
        if body[at:].strip():
            raise ValueError(f"{text[:200]!r} is no label set")
        return cls.of(_once(pairs, text))

    def get(self, name: str, default: str = "") -> str:
        """The value of `name`, or `default`."""
        return next((value for key, value in self if key == name), default)

    def without(self, names: Iterable[str]) -> Labels:
        """The same labels less `names`."""
        gone = frozenset(names)
        return Labels(pair for pair in self if pair[0] not in gone)

    def __str__(self) -> str:
        return "{" + ",".join(f'{name}="{value.translate(_ESCAPES)}"' for name, value in self) + "}"

    def __repr__(self) -> str:
        return f"Labels({self})"


def _once(pairs: list[tuple[str, str]], text: str) -> dict[str, str]:
    labels = dict(pairs)
    if len(labels) < len(pairs):
        raise ValueError(f"{text[:200]!r} has a label twice")
    return labels


@dataclass(frozen=True, slots=True)
class Grid:
    """Evenly spaced times: `start`, `start + step`, …, `n` of them; both ends inclusive.

    UTC, aligned to whole steps since the epoch. `n` may be 0 (nothing to do).

    Raises:
        UsageError: for a naive or unaligned start, or a step that is not a positive number of whole milliseconds.
    """

    start: datetime
    step: timedelta
    n: int

    def __post_init__(self) -> None:
        if self.start.tzinfo is None:
            raise UsageError(f"a grid needs a time zone, got {self.start}", hint="use datetime.now(UTC)")
        if self.step <= timedelta(0) or self.step % timedelta(milliseconds=1):
            raise UsageError(f"a step must be a positive number of milliseconds, got {self.step}")
        if self.n < 0:
            raise UsageError(f"a grid cannot have {self.n} points")
        if (self.start - EPOCH) % self.step:
            raise UsageError(f"{self.start} is no multiple of {format_duration(self.step)} since the epoch")
        if self.start.tzinfo is not UTC:
            object.__setattr__(self, "start", self.start.astimezone(UTC))

    @classmethod
    def ending(cls, at: datetime, step: timedelta, n: int) -> Self:
        """The `n` points up to the last grid time that is not after `at`."""
        last = at - (at - EPOCH) % step
        return cls(last - (n - 1) * step, step, n)

    @classmethod
    def covering(cls, start: datetime, end: datetime, step: timedelta) -> Self:
        """All grid times in [`start`, `end`]."""
        first = start + (EPOCH - start) % step
        return cls(first, step, max(0, (end - first) // step + 1))

    @property
    def end(self) -> datetime:
        """The last time of the grid (inclusive); one step before `start` when the grid is empty."""
        return self.start + (self.n - 1) * self.step

    @property
    def step_ms(self) -> int:
        """The step in milliseconds."""
        return milliseconds(self.step)

    @property
    def start_ms(self) -> int:
        """The first time, in milliseconds since the epoch."""
        return milliseconds(self.start - EPOCH)

    def epoch_ms(self) -> npt.NDArray[np.int64]:
        """Every time, in milliseconds since the epoch: int64[n]."""
        return self.start_ms + self.step_ms * np.arange(self.n, dtype=np.int64)

    def times(self) -> npt.NDArray[np.datetime64]:
        """Every time as naive UTC datetime64[ms][n], the form that numpy and polars take."""
        return self.epoch_ms().astype("datetime64[ms]")

    def following(self, n: int) -> Grid:
        """The `n` points right after this grid."""
        return replace(self, start=self.start + self.n * self.step, n=n)

    def last(self, n: int) -> Grid:
        """The last `n` points, or all of them where there are fewer."""
        return self[max(0, self.n - n) :]

    def index(self, at: datetime) -> int:
        """How many steps `at` lies after `start`: the column of a time on the grid, negative before it."""
        return (at - self.start) // self.step

    def __getitem__(self, key: slice) -> Grid:
        first, stop, stride = key.indices(self.n)
        if stride != 1:
            raise UsageError("a grid is cut without a stride")
        return replace(self, start=self.start + first * self.step, n=max(0, stop - first))

    def __len__(self) -> int:
        return self.n

    def __str__(self) -> str:
        return f"{self.start:%Y-%m-%dT%H:%M:%SZ}/{format_duration(self.step)}×{self.n}"


def _check_rows(kind: str, labels: Sequence[Labels], grid: Grid, arrays: Mapping[str, Floats]) -> None:
    for name, array in arrays.items():
        if array.shape[:2] != (len(labels), grid.n):
            raise ValueError(f"{kind}.{name} is {array.shape}, not {len(labels)} series × {grid.n} points")
        if array.dtype != np.float64:
            raise ValueError(f"{kind}.{name} is {array.dtype}, not float64")


def _long(labels: Sequence[Labels], grid: Grid, columns: Mapping[str, Floats]) -> pl.DataFrame:
    import polars as pl

    ids = pl.Series("unique_id", [str(row) for row in labels], dtype=pl.String)
    rows = pl.Series(np.repeat(np.arange(len(labels), dtype=np.uint32), grid.n))
    times = pl.Series("ds", np.tile(grid.times(), len(labels))).dt.replace_time_zone("UTC")
    return pl.DataFrame(
        [ids.gather(rows), times, *(pl.Series(name, array.reshape(-1)) for name, array in columns.items())]
    )


@dataclass(frozen=True, eq=False)
class Panel:
    """Series side by side: `y[i, t]` is the value of series `labels[i]` at the `t`-th time of `grid`.

    Rows are sorted by label set and no two are equal; `y` is float64[S, T], NaN where there is no sample.
    """

    labels: tuple[Labels, ...]
    grid: Grid
    y: Floats

    def __post_init__(self) -> None:
        _check_rows("Panel", self.labels, self.grid, {"y": self.y})
        if any(a >= b for a, b in itertools.pairwise(self.labels)):
            raise ValueError("a panel's rows must be sorted by label set, no two equal")

    @classmethod
    def of(cls, labels: Sequence[Labels], grid: Grid, y: Floats) -> Panel:
        """A panel from rows in any order.

        Raises:
            ValueError: if two rows carry the same label set.
        """
        if all(a < b for a, b in itertools.pairwise(labels)):
            return cls(tuple(labels), grid, y)
        order = sorted(range(len(labels)), key=labels.__getitem__)
        return cls(tuple(labels[i] for i in order), grid, y[order])

    @property
    def n_series(self) -> int:
        """How many rows."""
        return len(self.labels)

    def rows(self, keep: npt.ArrayLike) -> Panel:
        """The rows at these (rising) positions, or where this boolean mask is true."""
        positions = np.arange(self.n_series)[np.asarray(keep)]
        return replace(self, labels=tuple(self.labels[i] for i in positions), y=self.y[positions])

    def columns(self, key: slice) -> Panel:
        """The same series over a part of the time; `y` is a view."""
        return replace(self, grid=self.grid[key], y=self.y[:, key])

    def shards(self, n: int) -> Iterator[Panel]:
        """Up to `n` panels of nearly equal size, cut by rows in order; never an empty one."""
        bounds = np.linspace(0, self.n_series, min(n, self.n_series) + 1).astype(int)
        for first, stop in itertools.pairwise(bounds):
            yield replace(self, labels=self.labels[first:stop], y=self.y[first:stop])

    def to_frame(self, *, gaps: bool = False) -> pl.DataFrame:
        """Long polars frame `unique_id, ds (UTC), y`; gaps are left out unless asked for (as NaN)."""
        import polars as pl

        frame = _long(self.labels, self.grid, {"y": self.y})
        return frame if gaps else frame.filter(pl.col("y").is_not_nan())


@dataclass(frozen=True, slots=True)
class Choice:
    """Which model a series got, and why.

    `revision` names the weights or the version that answered. `losses` says of each candidate by how many per cent its
    past forecasts were worse than the usual one's, `failed` of those that cannot work here why not.
    """

    model: str
    why: str
    losses: Mapping[str, float] = field(default_factory=dict)
    revision: str = ""
    failed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Quantiles:
    """What a model answers: `values[i, k, q]` is quantile `levels[q]` of series `i`, `k` steps after the history.

    `grid` is the `h` points that follow the history; `levels` rise strictly inside (0, 1); values do not fall along
    them; a row is all NaN where the model has nothing to go by. `notes` says, by row, what a reader should know
    (`{3: "shorter than a season: last value"}`); `models` says, by row, which one a model took that chooses.
    """

    labels: tuple[Labels, ...]
    grid: Grid
    levels: tuple[float, ...]
    values: Floats
    notes: Mapping[int, str] = field(default_factory=dict)
    models: Mapping[int, Choice] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_rows("Quantiles", self.labels, self.grid, {"values": self.values})
        if self.values.shape[2:] != (len(self.levels),):
            raise ValueError(f"Quantiles.values is {self.values.shape} for {len(self.levels)} levels")

    def at(self, level: float) -> Floats:
        """The forecast at one of `levels`: float64[S, h].

        Raises:
            KeyError: if the level was not asked for.
        """
        for i, known in enumerate(self.levels):
            if abs(known - level) < 1e-9:
                return self.values[:, :, i]
        raise KeyError(level)


@dataclass(frozen=True, eq=False)
class Limits:
    """What evidence is held against, for S series; made in a forecast pass, see `limits.fit_limits`.

    `usual` and `limit` are float64[5, S, n], by channel (`evidence.CHANNELS`), where n is 1 or the number of points
    that they are used for: evidence at the usual has a ratio of 0, evidence at the limit one of 1; an infinite limit is
    never reached. `move` (float64[S, n]) is the unit of roughness, in the unit of the series; NaN where there are none.
    """

    usual: Floats
    limit: Floats
    move: Floats

    def rows(self, positions: npt.NDArray[np.intp] | npt.NDArray[np.bool_]) -> Limits:
        """The series at these positions, or where this boolean mask is true."""
        return Limits(self.usual[:, positions], self.limit[:, positions], self.move[positions])

    def columns(self, key: slice) -> Limits:
        """The same series at a part of the points; those with n = 1 are for any."""
        if self.move.shape[1] == 1:
            return self
        return Limits(self.usual[:, :, key], self.limit[:, :, key], self.move[:, key])

    def rounded(self) -> Limits:
        """The same with 9 significant digits, as stores keep them."""
        return Limits(round_significant(self.usual), round_significant(self.limit), round_significant(self.move))


@dataclass(frozen=True, eq=False)
class Forecast:
    """What is stored: `yhat` with final bounds, float64[S, h] each, at `grid`, made from history up to `cutoff`.

    `labels` are those of the source series, NaN means no forecast, `notes` and `models` are as in `Quantiles`, and
    `warming` holds the rows that are too young for bounds of their own. A forecast read back from a store carries the
    labels that it was written with, and no cutoff: its points may stem from several. `limits` are those of evidence
    over time, one a series; of a forecast that was read back, one a point. `None` where points alone are judged.
    """

    labels: tuple[Labels, ...]
    grid: Grid
    cutoff: datetime | None
    yhat: Floats
    lower: Floats
    upper: Floats
    notes: Mapping[int, str] = field(default_factory=dict)
    models: Mapping[int, Choice] = field(default_factory=dict)
    warming: frozenset[int] = frozenset()
    limits: Limits | None = None

    def __post_init__(self) -> None:
        _check_rows("Forecast", self.labels, self.grid, {"yhat": self.yhat, "lower": self.lower, "upper": self.upper})

    def rows(self, keep: npt.ArrayLike) -> Forecast:
        """The series at these (rising) positions, or where this boolean mask is true."""
        positions = np.arange(len(self.labels))[np.asarray(keep)]
        return replace(
            self,
            labels=tuple(self.labels[i] for i in positions),
            yhat=self.yhat[positions],
            lower=self.lower[positions],
            upper=self.upper[positions],
            notes={new: self.notes[int(old)] for new, old in enumerate(positions) if int(old) in self.notes},
            models={new: self.models[int(old)] for new, old in enumerate(positions) if int(old) in self.models},
            warming=frozenset(new for new, old in enumerate(positions) if int(old) in self.warming),
            limits=self.limits.rows(positions) if self.limits is not None else None,
        )

    def columns(self, key: slice) -> Forecast:
        """The same series over a part of the time; views."""
        limits = self.limits.columns(key) if self.limits is not None else None
        yhat, lower, upper = (part[:, key] for part in (self.yhat, self.lower, self.upper))
        return replace(self, grid=self.grid[key], yhat=yhat, lower=lower, upper=upper, limits=limits)

    def to_frame(self) -> pl.DataFrame:
        """Long polars frame `unique_id, ds (UTC), yhat, yhat_lower, yhat_upper`; points without a forecast left out."""
        import polars as pl

        columns = {"yhat": self.yhat, "yhat_lower": self.lower, "yhat_upper": self.upper}
        return _long(self.labels, self.grid, columns).filter(pl.col("yhat").is_not_nan())


@dataclass(frozen=True, eq=False)
class Evidence:
    """What detection kept of evidence over time: `values` (float64[4, S, T]) by channel, NaN where a point gave none.

    In the order of `evidence.KEPT`. `incident` (float64[S, T]) is over 1 while an incident lasts, else NaN or 0. Read
    back from a store, numbers have 9 digits, and `labels` are those that they were written with.
    """

    labels: tuple[Labels, ...]
    grid: Grid
    values: Floats
    incident: Floats

    def __post_init__(self) -> None:
        _check_rows("Evidence", self.labels, self.grid, {"values": self.values[0], "incident": self.incident})


@dataclass(frozen=True, eq=False)
class Scores:
    """What detection finds: `score[i, t]` of series `i`, with what it compared; float64[S, T] each.

    0 at the forecast, 1 at the bound, over 1 anomalous. NaN where there is no score: no value, or no forecast.
    `labels` are those of the source series.

    What is kept beside it: `reason` (float64[S, T]) is the place in `evidence.REASONS` of what the score is of;
    `evidence` (float64[4, S, T]) is that of the channels over time, NaN where a point gave none; `incident`
    (float64[S, T]) is over 1 while an incident lasts, else 0. Each is `None` where it was not asked for.
    """

    labels: tuple[Labels, ...]
    grid: Grid
    y: Floats
    yhat: Floats
    lower: Floats
    upper: Floats
    score: Floats
    reason: Floats | None = None
    evidence: Floats | None = None
    incident: Floats | None = None

    def __post_init__(self) -> None:
        _check_rows("Scores", self.labels, self.grid, self._by_point())
        if self.evidence is not None:
            _check_rows("Scores", self.labels, self.grid, {"evidence": self.evidence[0]})

    def _by_point(self) -> dict[str, Floats]:
        """All that is float64[S, T], by field."""
        names = ("y", "yhat", "lower", "upper", "score", "reason", "incident")
        found = {name: getattr(self, name) for name in names}
        return {name: array for name, array in found.items() if array is not None}

    def columns(self, key: slice) -> Scores:
        """The same series over a part of the time; views."""
        parts: dict[str, Any] = {name: array[:, key] for name, array in self._by_point().items()}
        evidence = self.evidence[:, :, key] if self.evidence is not None else None
        return replace(self, grid=self.grid[key], evidence=evidence, **parts)

    def rows(self, key: slice) -> Scores:
        """A part of the series over the same time; views."""
        parts: dict[str, Any] = {name: array[key] for name, array in self._by_point().items()}
        evidence = self.evidence[:, key] if self.evidence is not None else None
        return replace(self, labels=self.labels[key], evidence=evidence, **parts)

    @classmethod
    def joined(cls, parts: Sequence[Scores]) -> Scores:
        """Several as one: all series, sorted, over all times; NaN where no part has a series at a time.

        Args:
            parts: at least one, all of one step; of two that have the same point the later counts. What is kept beside
                scores is so in all of them, or in the answer of none.
        """
        labels = tuple(sorted({row for part in parts for row in part.labels}))
        position = {row: i for i, row in enumerate(labels)}
        step = parts[0].grid.step
        start, end = min(part.grid.start for part in parts), max(part.grid.end for part in parts)
        grid = Grid.covering(start, end, step)
        names = set.intersection(*(set(part._by_point()) for part in parts))
        whole: dict[str, Any] = {name: np.full((len(labels), grid.n), np.nan) for name in names}
        evidence: Floats | None = None
        for part in parts:
            rows = [position[row] for row in part.labels]
            columns = slice(grid.index(part.grid.start), grid.index(part.grid.start) + part.grid.n)
            for name, array in whole.items():
                array[rows, columns] = getattr(part, name)
            if part.evidence is not None:
                if evidence is None:
                    evidence = np.full((len(part.evidence), len(labels), grid.n), np.nan)
                evidence[:, rows, columns] = part.evidence
        return cls(labels, grid, evidence=evidence, **whole)

    def only(self, keep: npt.NDArray[np.bool_]) -> Scores:
        """The points where `keep` (bool[S, T]); the others have no score, and nothing beside it."""
        if keep.all():
            return self
        ours = {name: array for name, array in self._by_point().items() if name in ("score", "reason", "incident")}
        parts: dict[str, Any] = {name: np.where(keep, array, np.nan) for name, array in ours.items()}
        evidence = np.where(keep, self.evidence, np.nan) if self.evidence is not None else None
        return replace(self, evidence=evidence, **parts)

    def to_frame(self, *, gaps: bool = False) -> pl.DataFrame:
        """Long polars frame `unique_id, ds (UTC), y, yhat, yhat_lower, yhat_upper, score`.

        Points without a score are left out unless asked for (as NaN).
        """
        import polars as pl

        frame = _long(
            self.labels,
            self.grid,
            {
                "y": self.y,
                "yhat": self.yhat,
                "yhat_lower": self.lower,
                "yhat_upper": self.upper,
                "score": self.score,
            },
        )
        return frame if gaps else frame.filter(pl.col("score").is_not_nan())


def round_significant(values: Floats, digits: int = 9) -> Floats:
    """`values` rounded to `digits` significant decimal digits; NaN, infinities and zeros stay.

    Applied to all that is scored or written: what a store keeps then explains a score exactly
    (VictoriaMetrics keeps about 12 digits).
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore", under="ignore"):
        magnitude = np.floor(np.log10(np.abs(values)))
        places = np.where(np.isfinite(magnitude), digits - 1 - magnitude, 0.0)
        # A power of ten is exact up to 10^22 only, and a division by one rounds once: the nearest double to the
        # decimal, which is what parsing its printed form gives too.
        scale = 10.0 ** np.minimum(np.abs(places), 300.0)
        rounded = np.where(places >= 0, np.rint(values * scale) / scale, np.rint(values / scale) * scale)
    return np.where(np.isfinite(rounded), rounded, values)
