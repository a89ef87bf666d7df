"""What `at doctor` finds out about a source: can it be read, written, read back, and may it hold the future.

On a server it writes a few samples of one metric, `anomaly_probe`, and nothing else:

    anomaly_probe{by="at-doctor",check="write"}    one sample, now
    anomaly_probe{by="at-doctor",check="labels"}   one sample, now, with as many labels as we may ever write
    anomaly_probe{by="at-doctor",check="future"}   one sample, an hour ahead
    anomaly_probe{by="at-doctor",check="dedup"}    one sample a second over the last ten minutes, sent twice

The last three on VictoriaMetrics only: a plain Prometheus that is given the future refuses the present afterwards. The
series are the same at every run, values are random. Nothing of ours reads them; delete them or let them expire.
"""

from __future__ import annotations

import math
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import numpy as np

from anomaly_times.durations import EPOCH, format_duration, milliseconds, parse_duration
from anomaly_times.errors import AnomalyTimesError, NoSeriesError, StoreAuthError, StoreDataError
from anomaly_times.panel import Grid, Labels
from anomaly_times.settings import WriteMode
from anomaly_times.stores import Store
from anomaly_times.stores.matrix import parse_samples
from anomaly_times.stores.parquet import FolderStore
from anomaly_times.stores.prometheus import PrometheusStore
from anomaly_times.stores.samples import Samples
from anomaly_times.stores.writing import MAX_LABELS, send, uncached

__all__ = ["Finding", "Status", "probe"]

Status = Literal["ok", "warn", "fail"]

METRIC = "anomaly_probe"
_AHEAD = timedelta(hours=1)
_DEDUP_SPAN = 600
_PATIENCE = timedelta(seconds=20)
_DEFAULT_OFFSET = parse_duration("30s")
_CLOCK_TOLERANCE = timedelta(seconds=5)


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor: what was checked, how it went, and what to do about it."""

    check: str
    status: Status
    detail: str
    hint: str = ""


def probe(
    store: Store,
    *,
    write: bool = True,
    step: timedelta = timedelta(minutes=1),
    patience: timedelta = _PATIENCE,
) -> list[Finding]:
    """What works and what does not, the basics first; a check that the ones before make pointless is left out.

    Never raises for a store that is away or misbehaves: that is a finding.

    Args:
        store: a server or a folder.
        write: also write samples (the module says which) and read them back; `False` only reads.
        step: the smallest step of the missions here; what the server must keep apart.
        patience: how long a written sample may take until it can be read.
    """
    if isinstance(store, FolderStore):
        return list(_folder(store, write=write))
    if not isinstance(store, PrometheusStore):
        return [Finding("store", "warn", f"{store.name} is of a kind that cannot be examined")]
    return list(_server(_Server(store, patience), write=write, step=step))


def _attempt(check: str, run: Callable[[], Finding]) -> Finding:
    """The finding of `run`, or the error that it ended with."""
    try:
        return run()
    except StoreAuthError as exc:
        return Finding("credentials", "fail", exc.message, exc.hint)
    except AnomalyTimesError as exc:
        return Finding(check, "fail", exc.message, exc.hint)


def _server(server: _Server, *, write: bool, step: timedelta) -> Iterator[Finding]:
    reads = _attempt("read", server.read)
    yield reads
    if reads.status == "fail":
        return
    yield _attempt("clock", server.clock)
    if server.store.is_victoria_metrics:
        yield _attempt("latency", server.latency)
    if not server.store.source.write_url:
        yield Finding("write", "warn", "the source can only be read: results cannot be stored", "set `write` of it")
        return
    if not write:
        return
    writes = _attempt("write", server.write)
    yield writes
    if writes.status == "fail":
        return
    yield _attempt("added labels", server.added_labels)
    if not server.store.is_victoria_metrics:
        yield server.no_future()
        yield _writable("state folder", server.store.state.absolute())
        return
    yield _attempt("future", server.future)
    yield _attempt("dedup", lambda: server.dedup(step))
    yield _attempt("label limit", server.label_limit)


class _Server:
    """The checks of one server, each a finding; those that write build on `write`."""

    def __init__(self, store: PrometheusStore, patience: timedelta) -> None:
        self.store = store
        self.patience = patience.total_seconds()
        self.value = float(random.randrange(10**8, 10**9))
        now = datetime.now(UTC)
        self.now = now.replace(microsecond=now.microsecond // 1000 * 1000)
        self.labels = Labels()
        self._times: dict[str, list[datetime]] = {}

    def read(self) -> Finding:
        # This comes first because it tells a wrong URL from other refusals.
        kind = "VictoriaMetrics" if self.store.is_victoria_metrics else "Prometheus, Mimir, Thanos or alike"
        start = time.monotonic()
        self._ask("vector(1)")
        took = time.monotonic() - start
        return Finding("read", "ok", f"{self.store.name} answers in {1000 * took:.0f} ms; it is {kind}")

    def clock(self) -> Finding:
        start = datetime.now(UTC)
        theirs = EPOCH + timedelta(seconds=self._ask("vector(time())", nocache="1"))
        end = datetime.now(UTC)
        # VictoriaMetrics answers in whole seconds here.
        off = max(start - theirs - timedelta(seconds=1), theirs - end, timedelta(0))
        if off > _CLOCK_TOLERANCE:
            detail = f"the server's clock and ours differ by {format_duration(off)}"
            return Finding("clock", "fail" if off > timedelta(minutes=1) else "warn", detail, "run NTP on both")
        return Finding("clock", "ok", "the server's clock and ours agree")

    def latency(self) -> Finding:
        # Without nocache VictoriaMetrics moves a query back by its -search.latencyOffset; with it, to a whole second.
        offset = timedelta(seconds=self._ask("vector(time())", nocache="1") - self._ask("vector(time())"))
        shown = timedelta(seconds=max(0, math.ceil(offset.total_seconds())))
        if shown > _DEFAULT_OFFSET + timedelta(seconds=1):
            return Finding(
                "latency",
                "warn",
                f"the server hides samples for {format_duration(shown)} (-search.latencyOffset)",
                f"set `offset: {format_duration(shown)}` of missions, or more",
            )
        return Finding("latency", "ok", f"the server hides samples for {format_duration(shown)}; missions wait as long")

    def write(self) -> Finding:
        start = time.monotonic()
        self._times = {"write": [self.now]}
        if self.store.is_victoria_metrics:
            second = self.now.replace(microsecond=0)
            self._times["future"] = [self.now + _AHEAD]
            self._times["labels"] = [self.now]
            self._times["dedup"] = [second - timedelta(seconds=i) for i in range(_DEDUP_SPAN - 1, -1, -1)]
        twice = ["dedup"] if "dedup" in self._times else []
        send(self.store, [self._samples(check) for check in [*self._times, *twice]])
        found = self._read_back("write")
        if not found:
            return Finding(
                "write",
                "fail",
                f"a sample was accepted, and {self.patience:.0f} s later it cannot be read",
                "does `write` lead to the server that `read` (or `readback`) asks, and do `extra_labels` or "
                "`extra_filters` hide it? A relay queues what it cannot deliver: see its log",
            )
        self.labels, samples = found[0]
        if samples[-1][1] != self.value:
            return Finding("write", "fail", f"{self.value:.0f} was written and reads back as {samples[-1][1]!r}")
        took = time.monotonic() - start
        return Finding("write", "ok", f"a sample sent by {self.store.source.protocol} could be read in {took:.1f} s")

    def added_labels(self) -> Finding:
        sent, got = {"by": "at-doctor", "check": "write"}, dict(self.labels.without(("__name__",)))
        lost = sorted(name for name, value in sent.items() if got.get(name) != value)
        if lost:
            return Finding(
                "added labels",
                "fail",
                f"the labels {', '.join(lost)} did not arrive as written",
                "look for relabelling in the relay or the server: forecasts could not be matched with their series",
            )
        added = sorted(set(got) - set(sent))
        ignored = set(self.store.source.ignore_labels)
        if set(added) - ignored:
            return Finding(
                "added labels",
                "warn",
                f"what is written comes back with {', '.join(f'{name}={got[name]!r}' for name in added)} added",
                f"set `ignore_labels: [{', '.join(sorted(ignored | set(added)))}]` of the source",
            )
        if added:
            return Finding("added labels", "ok", f"{', '.join(added)} is added on the way, and ignored")
        return Finding("added labels", "ok", "labels come back as they were written")

    def no_future(self) -> Finding:
        mode = self.store.source.write_mode
        if mode is WriteMode.AHEAD:
            return Finding(
                "future",
                "warn",
                "this is no VictoriaMetrics, and `write_mode: ahead` sends it the future: a Prometheus then refuses "
                "current samples of all metrics",
                "set `write_mode: at_detection`, unless you know that it can hold the future",
            )
        return Finding(
            "future",
            "ok",
            "not tried, for the future harms a plain Prometheus: forecasts wait in files until their time comes "
            "(`at_detection`, which is what `auto` means here, in `write` of missions and `write_mode` of the source)",
        )

    def future(self) -> Finding:
        found = self._read_back("future")
        if not found:
            return Finding(
                "future",
                "fail",
                f"a sample an hour ahead was accepted, and {self.patience:.0f} s later it cannot be read",
                "set `write_mode: at_detection` of the source",
            )
        return Finding("future", "ok", "the server holds the future: forecasts are written ahead")

    def dedup(self, step: timedelta) -> Finding:
        found = self._read_back("dedup")
        if not found:
            return Finding(
                "dedup", "warn", f"samples of the last ten minutes cannot be read {self.patience:.0f} s later"
            )
        kept = np.unique([at for at, _ in found[0][1]])
        if len(kept) >= _DEDUP_SPAN and len(kept) < len(found[0][1]):
            return Finding(
                "dedup",
                "ok",
                "samples a second apart are kept, and so are two of one time",
                "start it with -dedup.minScrapeInterval=1ms, so that a rerun after a crash leaves one of equal samples",
            )
        if len(kept) >= _DEDUP_SPAN:
            return Finding("dedup", "ok", "samples a second apart are kept, and of equal times one")
        apart = timedelta(seconds=_DEDUP_SPAN)
        if len(kept) > 1:
            apart = timedelta(milliseconds=int(np.median(np.diff(kept))))
        detail = f"the server keeps one sample every {format_duration(apart)} or so (-dedup.minScrapeInterval)"
        if apart > step:
            hint = f"steps below {format_duration(apart)} lose points there: use a larger step, or lower that flag"
            return Finding("dedup", "fail", detail, hint)
        return Finding("dedup", "ok", f"{detail}; a step of {format_duration(step)} is longer")

    def label_limit(self) -> Finding:
        found = self._read_back("labels")
        kept = max((len(labels) for labels, _ in found), default=0)
        if kept < MAX_LABELS:
            return Finding(
                "label limit",
                "warn",
                f"of {MAX_LABELS} labels of a series {kept or 'none'} could be read back (-maxLabelsPerTimeseries)",
                "aggregate labels away in queries, or raise that flag",
            )
        return Finding("label limit", "ok", f"series may have {MAX_LABELS} labels")

    def _ask(self, promql: str, **params: str) -> float:
        """The value of a vector of one, as the server sees it now."""
        where = f"{self.store.source.read_url}/api/v1/query"
        body = self.store.client.request("GET", where, params={"query": promql, **params})
        answer = parse_samples(body, where=where)
        if not answer or not answer[0][1]:
            raise StoreDataError(f"{where} answers {promql} with nothing", hint="is it a Prometheus API?")
        return answer[0][1][0][1]

    def _samples(self, check: str) -> Samples:
        labels = {"by": "at-doctor", "check": check}
        if check == "labels":
            # With `__name__` as many as may be.
            labels |= {f"label_{i:02}": "x" for i in range(MAX_LABELS - len(labels) - 1)}
        times = np.array([milliseconds(at - EPOCH) for at in self._times[check]], dtype=np.int64)
        return Samples((METRIC,), [Labels.of(labels)], times, np.full((1, 1, len(times)), self.value))

    def _read_back(self, check: str) -> list[tuple[Labels, list[tuple[int, float]]]]:
        """The series of `check`, once the last sample of it can be read, or what there is when patience ends."""
        first, last = self._times[check][0], self._times[check][-1]
        window = format_duration(last - first + timedelta(milliseconds=1))
        until = time.monotonic() + self.patience
        while True:
            selector = f'{{__name__=~"{uncached(METRIC)}",by="at-doctor",check="{check}"}}'
            found = self.store.query(f"{selector}[{window}]", last, url=self.store.source.readback_url)
            arrived = bool(found) and found[0][1][-1][0] == milliseconds(last - EPOCH)
            if arrived or time.monotonic() > until:
                return found
            time.sleep(0.25)


def _writable(check: str, folder: Path) -> Finding:
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as exc:
        return Finding(check, "fail", f"{there} cannot be written: {exc.strerror}", "check its rights")
    return Finding(check, "ok", f"{folder} can be written" if there == folder else f"{folder} can be made")


def _folder(store: FolderStore, *, write: bool) -> Iterator[Finding]:
    def read() -> Finding:
        # One step of a century, so that every sample since 1970 falls into the one point of the grid.
        century = timedelta(days=36_500)
        try:
            panel = store.read('{__name__=~".+"}', Grid(EPOCH + century, century, 1), max_series=10_000_000)
        except NoSeriesError as exc:
            return Finding("read", "warn", exc.message, exc.hint)
        return Finding("read", "ok", f"{store.name} holds {panel.n_series:,} series with samples")

    reads = _attempt("read", read)
    yield reads
    path = Path(store.name)
    if write and path.exists():
        yield _writable("write", path if path.is_dir() else path.parent)
