"""Histories that were read before, in files: an hourly forecast then asks for the newest hours instead of two weeks.

    <folder>/<query>.parquet        a column `y`, one series after the other; the file's metadata say what it is of

A file is known by source, credentials, query, step and phase, and holds what one pass read. The next reads what came
since then, and some of what came before that once more. The older half of that must be as it was; else something was
changed behind our back, and all is read anew, as it is once a day for what came late by more than that. The other half
is taken as it is now, for samples that are late. A series that is new there had no value before: had it had one, the
pass before would have found it. As it was means to nine digits, which is what forecasts and scores are made of:
VictoriaMetrics adds the series of a `sum` up in any order, so that the last digits of two answers differ.

Only queries are kept whose value at a time does not depend on the range that is asked for (`is_pointwise`). Even so the
server's answer may: VictoriaMetrics carries a metric on across a gap by how far apart the newest samples of the range
lie, so that where a series is scraped at odd times the ends of old gaps may be those of a pass before, for a day.

A file may be deleted at any time. It appears complete or not at all; where two processes write one, the later stands.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from threading import Lock

import numpy as np
import promql_parser
from pydantic import SecretStr

from anomaly_times.durations import EPOCH, milliseconds
from anomaly_times.errors import NoSeriesError
from anomaly_times.panel import Floats, Grid, Labels, Panel
from anomaly_times.settings import Source
from anomaly_times.stores import Store
from anomaly_times.stores.shared import Reader

__all__ = ["Histories", "KeptReads", "is_pointwise"]

logger = logging.getLogger(__name__)

_FORM = "1"
_AGAIN, _FEWEST_AGAIN = timedelta(hours=1), 4
"""So much is read once more, or so many steps where that is longer."""
_FULL_EVERY = timedelta(days=1)
_SAME = 1e-9
_FEWEST_POINTS = 200
"""Shorter histories are read as fast as files."""


class Histories:
    """Files of histories under `folder`, made at the first write; safe to use from several threads and processes.

    Args:
        folder: of the files; anything else in it is left alone.
        sources: by the name that missions know them by; looked at when one is read.
        max_bytes: of all files together; those that were written longest ago go first. 0: nothing is kept.
    """

    def __init__(self, folder: Path, sources: Mapping[str, Source], *, max_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        self._sources = sources
        self._identities: dict[str, str] = {}
        self._lock = Lock()
        self._unwritable = False

    def of(self, source: str, store: Store) -> Reader:
        """What reads histories of this source: the store itself where none are kept."""
        described = self._sources.get(source)
        if not self._max_bytes or described is None or described.folder is not None:
            return store
        with self._lock:
            if source not in self._identities:
                self._identities[source] = _identity(described)
        return KeptReads(self, self._identities[source], store)

    def _path(self, identity: str, promql: str, grid: Grid) -> Path:
        phase = grid.start_ms % grid.step_ms
        told = json.dumps([_FORM, identity, promql, grid.step_ms, phase])
        return self._folder / f"{hashlib.sha256(told.encode()).hexdigest()[:40]}.parquet"

    def load(self, identity: str, promql: str, grid: Grid) -> _Kept | None:
        """What is kept for this query; `None` where there is nothing, or nothing that can be used."""
        path = self._path(identity, promql, grid)
        try:
            return _load(path)
        except FileNotFoundError:
            return None
        except Exception as exc:  # noqa: BLE001 - whatever a damaged or foreign file makes its reader raise
            logger.warning("the kept history %s is of no use (%s): all of it is read again", path, _first_line(exc))
            with suppress(OSError):
                path.unlink()
            return None

    def save(self, identity: str, promql: str, panel: Panel, *, full: datetime) -> None:
        """Keep `panel`, of which all was read last by a pass that ended at `full`."""
        if self._unwritable:
            return
        path = self._path(identity, promql, panel.grid)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            _save(path, _Kept(panel, full))
            self._make_room(path)
        except OSError as exc:
            self._unwritable = True
            logger.warning("histories cannot be kept in %s: %s", self._folder, exc.strerror or exc)

    def _make_room(self, newest: Path) -> None:
        files = []
        for path in self._folder.glob("*.parquet"):
            with suppress(FileNotFoundError):
                told = path.stat()
                files.append((told.st_mtime_ns, told.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self._max_bytes:
                return
            if path != newest or size > self._max_bytes:
                path.unlink(missing_ok=True)
                total -= size


@dataclass(frozen=True)
class KeptReads:
    """Reads of one source's histories, of which most is there from the pass before."""

    histories: Histories
    identity: str
    store: Store

    def read(self, promql: str, grid: Grid, *, max_series: int = 10_000) -> Panel:
        """As `Store.read`."""
        if grid.n < _FEWEST_POINTS or not is_pointwise(promql):
            return self.store.read(promql, grid, max_series=max_series)
        kept = self.histories.load(self.identity, promql, grid)
        panel = self._continued(kept, promql, grid, max_series) if kept is not None else None
        if panel is not None and kept is not None:
            full = kept.full
        else:
            panel, full = self.store.read(promql, grid, max_series=max_series), grid.end
        # One of an earlier time, a backfill's say, is worth less than what is kept.
        if kept is None or grid.end > kept.panel.grid.end or (full > kept.full and grid.end >= kept.panel.grid.end):
            self.histories.save(self.identity, promql, panel, full=full)
        return panel

    def _continued(self, kept: _Kept, promql: str, grid: Grid, max_series: int) -> Panel | None:
        """The history from what is kept and from what is read now; `None` where all must be read."""
        old = kept.panel.grid
        again = max(_FEWEST_AGAIN, -(-_AGAIN // grid.step))
        if old.start > grid.start or grid.end < old.start or not timedelta() <= grid.end - kept.full < _FULL_EVERY:
            return None
        known = grid.index(min(old.end, grid.end)) + 1
        first = known - again
        if first < grid.n // 2:
            return None
        fresh = self._newest(promql, grid[first:], max_series)
        before = kept.panel.columns(slice(old.index(grid.start), old.index(grid.start) + known))
        sure = again // 2
        if not _alike(before.columns(slice(first, first + sure)), fresh.columns(slice(0, sure))):
            return None
        panel = _joined(before, fresh, grid, first)
        # Of too many series, and of none, the store says it in its own words.
        return panel if 0 < panel.n_series <= max_series else None

    def _newest(self, promql: str, grid: Grid, max_series: int) -> Panel:
        try:
            return self.store.read(promql, grid, max_series=max_series)
        except NoSeriesError:
            return Panel((), grid, np.empty((0, grid.n)))


@dataclass(frozen=True, eq=False)
class _Kept:
    """A panel as it was read, and the end of the last pass that read all of it."""

    panel: Panel
    full: datetime


def _alike(one: Panel, other: Panel) -> bool:
    """Whether the series that have values are the same, with the same values but for their last digits."""
    rows, others = (panel.rows(np.isfinite(panel.y).any(axis=1)) for panel in (one, other))
    return rows.labels == others.labels and np.allclose(rows.y, others.y, rtol=_SAME, atol=0, equal_nan=True)


def _joined(before: Panel, fresh: Panel, grid: Grid, first: int) -> Panel:
    """The columns of `before` up to `first`, and those of `fresh` from there; series without any value are left out."""
    if before.labels == fresh.labels:
        labels: Sequence[Labels] = before.labels
        y = np.concatenate([before.y[:, :first], fresh.y], axis=1)
    else:
        labels = sorted({*before.labels, *fresh.labels})
        place = {row: i for i, row in enumerate(labels)}
        y = np.full((len(labels), grid.n), np.nan)
        y[[place[row] for row in before.labels], :first] = before.y[:, :first]
        y[[place[row] for row in fresh.labels], first:] = fresh.y
    there = np.isfinite(y).any(axis=1)
    if not there.all():
        labels, y = [row for row, known in zip(labels, there.tolist(), strict=True) if known], y[there]
    return Panel(tuple(labels), grid, y)


def _load(path: Path) -> _Kept:
    import polars as pl

    told = pl.read_parquet_metadata(path)
    if told.get("form") != _FORM:
        raise ValueError("it is of another version")
    labels = tuple(Labels(map(tuple, row)) for row in json.loads(told["labels"]))
    start, step, n, full = (int(told[name]) for name in ("start", "step", "n", "full"))
    y: Floats = pl.read_parquet(path, columns=["y"]).get_column("y").to_numpy()
    if told.get("digest") != _digest(y):
        raise ValueError("it is damaged")
    grid = Grid(EPOCH + timedelta(milliseconds=start), timedelta(milliseconds=step), n)
    return _Kept(Panel(labels, grid, y.reshape(len(labels), n)), EPOCH + timedelta(milliseconds=full))


def _save(path: Path, kept: _Kept) -> None:
    import polars as pl

    panel = kept.panel
    flat = np.ascontiguousarray(panel.y).reshape(-1)
    told = {
        "form": _FORM,
        "labels": json.dumps(panel.labels),
        "start": str(panel.grid.start_ms),
        "step": str(panel.grid.step_ms),
        "n": str(panel.grid.n),
        "full": str(milliseconds(kept.full - EPOCH)),
        "digest": _digest(flat),
    }
    descriptor, name = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            pl.DataFrame({"y": flat}).write_parquet(file, compression="lz4", statistics=False, metadata=told)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _digest(y: Floats) -> str:
    return hashlib.blake2b(np.ascontiguousarray(y).data, digest_size=16).hexdigest()


def _first_line(exc: BaseException) -> str:
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0][:200]


def _identity(source: Source) -> str:
    """What tells whose answers these are: where they were asked, as whom and for what."""
    told = source.model_dump(
        mode="json", include={"read", "url", "username", "extra_labels", "extra_filters"}, exclude_defaults=True
    )
    secrets = [source.password, source.bearer_token, *source.headers.values()]
    files = [file for file in (source.password_file, source.bearer_token_file) if file is not None]
    words = [secret.get_secret_value() if isinstance(secret, SecretStr) else "" for secret in secrets]
    asker = json.dumps([told, sorted(source.headers), words, [file.read_text() for file in files if file.is_file()]])
    if any(words) or files:
        # Names of files must tell nobody who guesses passwords which guess was right, so each costs them.
        salt = hashlib.sha256(source.read_url.encode()).digest()
        return hashlib.scrypt(asker.encode(), salt=salt, n=2**14, r=8, p=1, dklen=20).hex()
    return asker


# Not `increase` and `delta`: the first window with samples after a gap counts from the sample before the gap, where the
# range reaches back that far (VictoriaMetrics, measured).
_FUNCTIONS = frozenset(
    (
        *("abs", "ceil", "floor", "round", "sgn", "sqrt", "exp", "ln", "log2", "log10"),
        *("clamp", "clamp_min", "clamp_max"),
        *("histogram_quantile", "label_replace", "label_join", "scalar", "vector"),
        *("rate", "irate", "changes", "deriv", "resets"),
        *("avg_over_time", "min_over_time", "max_over_time", "sum_over_time", "count_over_time", "last_over_time"),
        *("stddev_over_time", "stdvar_over_time", "quantile_over_time", "present_over_time"),
    )
)  # fmt: skip
_OPERATORS = frozenset(("sum", "min", "max", "avg", "count", "group", "stddev", "stdvar", "quantile"))


@lru_cache(maxsize=10_000)
def is_pointwise(promql: str) -> bool:
    """Whether the value of this query at a time is the same whichever range is asked for, as far as we know."""
    try:
        tree = promql_parser.parse(promql)
    except ValueError:
        return False
    stack: list[object] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, (promql_parser.NumberLiteral, promql_parser.StringLiteral)):
            continue
        if isinstance(node, promql_parser.VectorSelector):
            if node.at is not None:
                return False
        elif isinstance(node, promql_parser.MatrixSelector):
            stack.append(node.vector_selector)
        elif isinstance(node, promql_parser.BinaryExpr):
            stack += [node.lhs, node.rhs]
        elif isinstance(node, (promql_parser.ParenExpr, promql_parser.UnaryExpr)):
            stack.append(node.expr)
        elif isinstance(node, promql_parser.Call) and node.func.name in _FUNCTIONS:
            stack += node.args
        elif isinstance(node, promql_parser.AggregateExpr) and str(node.op) in _OPERATORS:
            stack += [part for part in (node.param, node.expr) if part is not None]
        else:
            return False
    return True
