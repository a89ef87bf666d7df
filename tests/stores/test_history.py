"""Histories that are kept: the same panels as without, for fewer points."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from anomaly_times.errors import NoSeriesError, QueryError
from anomaly_times.panel import Grid, Labels, Panel
from anomaly_times.settings import Source
from anomaly_times.stores import remote_write
from anomaly_times.stores.history import Histories, is_pointwise
from anomaly_times.stores.prometheus import PrometheusStore
from anomaly_times.stores.samples import Samples
from anomaly_times.testing import MemoryStore
from tests import servers

STEP = timedelta(minutes=5)
BEGIN = datetime(2026, 3, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
N = 288 * 2


class Counting(MemoryStore):
    """A store in memory that notes how many steps it was asked for."""

    def __init__(self, panel: Panel) -> None:
        super().__init__({"load": panel})
        self.panel = panel
        self.asked: list[int] = []

    def read(self, promql: str, grid: Grid, *, max_series: int = 10_000) -> Panel:
        self.asked.append(grid.n)
        return super().read(promql, grid, max_series=max_series)


def world(series: int = 5, days: int = 8) -> Panel:
    grid = Grid(BEGIN, STEP, days * 288)
    y = np.random.default_rng(5).normal(100, 5, (series, grid.n)).round(3)
    y[0, 300:420] = np.nan
    # One that ends, and one that begins.
    y[1, 700:] = np.nan
    y[2, :620] = np.nan
    return Panel(tuple(Labels.of({"i": str(i)}) for i in range(series)), grid, y)


def at(hours: float) -> Grid:
    return Grid.ending(BEGIN + 2 * timedelta(days=1) + hours * HOUR, STEP, N)


def kept(folder: Path, *, max_bytes: int = 10**9, **source: object) -> Histories:
    fields = {"url": "http://metrics:8428", **source}
    return Histories(folder, {"": Source.model_validate(fields)}, max_bytes=max_bytes)


def same(one: Panel, other: Panel) -> bool:
    return one.labels == other.labels and one.grid == other.grid and one.y.tobytes() == other.y.tobytes()


def alike(one: Panel, other: Panel) -> bool:
    return one.labels == other.labels and np.allclose(one.y, other.y, rtol=1e-12, atol=0, equal_nan=True)


def test_an_hour_later_little_is_read_and_the_panel_is_the_same(tmp_path: Path) -> None:
    store, plain = Counting(world()), Counting(world())
    for hour in range(30):
        found = kept(tmp_path).of("", store).read("load", at(hour))
        assert same(found, plain.read("load", at(hour)))
    # All of it at first, and once more after a day.
    assert store.asked.count(N) == 2
    assert max(n for n in store.asked if n != N) == 24
    assert sum(store.asked) < 0.15 * sum(plain.asked)


def test_late_samples_are_taken_and_changed_ones_make_it_read_all(tmp_path: Path) -> None:
    store = Counting(world())
    reader = kept(tmp_path).of("", store)
    reader.read("load", at(0))
    end = store.panel.grid.index(at(0).end)
    store.panel.y[3, end] = 7.0
    found = reader.read("load", at(1))
    assert found.y[list(found.labels).index(store.panel.labels[3]), -13] == 7.0
    assert store.asked[-1] == 24
    store.panel.y[3, end + 1] = 7.0
    found = reader.read("load", at(2))
    assert store.asked[-1] == N
    assert same(found, Counting(store.panel).read("load", at(2)))


@pytest.mark.parametrize("damage", ["cut", "foreign", "bits"])
def test_a_damaged_file_is_read_anew_and_said_once(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Counting(world())
    kept(tmp_path).of("", store).read("load", at(0))
    [file] = tmp_path.glob("*.parquet")
    body = bytearray(file.read_bytes())
    middle = len(body) // 2
    body[middle] ^= 255
    file.write_bytes({"cut": bytes(body[:middle]), "foreign": b"not ours", "bits": bytes(body)}[damage])
    with caplog.at_level(logging.WARNING):
        found = kept(tmp_path).of("", store).read("load", at(1))
        kept(tmp_path).of("", store).read("load", at(2))
    assert store.asked == [N, N, 24]
    assert same(found, Counting(store.panel).read("load", at(1)))
    assert [record.getMessage().count("is of no use") for record in caplog.records] == [1]


def test_a_folder_that_cannot_be_written_is_said_once_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "history").write_text("a file where the folder should be")
    store = Counting(world())
    histories = kept(tmp_path / "history")
    with caplog.at_level(logging.WARNING):
        for hour in range(3):
            assert same(histories.of("", store).read("load", at(hour)), Counting(store.panel).read("load", at(hour)))
    assert store.asked == [N] * 3
    assert len([record for record in caplog.records if "cannot be kept" in record.getMessage()]) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"url": "http://metrics:8429"},
        {"username": "b", "password": "x"},
        {"headers": {"X-Scope-OrgID": "2"}},
        {"extra_labels": {"tenant": "2"}},
        {"bearer_token": "secret"},
    ],
)
def test_another_asker_never_sees_what_was_kept(other: dict[str, object], tmp_path: Path) -> None:
    store = Counting(world())
    kept(tmp_path).of("", store).read("load", at(0))
    kept(tmp_path, **other).of("", store).read("load", at(1))
    assert store.asked == [N, N]
    assert not [path for path in tmp_path.iterdir() if b"secret" in path.read_bytes()]


def test_other_steps_and_longer_histories_are_read_whole(tmp_path: Path) -> None:
    store = Counting(world())
    reader = kept(tmp_path).of("", store)
    reader.read("load", at(0))
    longer = Grid.ending(at(1).end, STEP, N + 13)
    coarser = Grid.ending(at(1).end, 2 * STEP, 250)
    assert same(reader.read("load", longer), Counting(store.panel).read("load", longer))
    reader.read("load", coarser)
    assert store.asked == [N, N + 13, 250]


def test_too_many_series_are_told_as_the_store_tells_it(tmp_path: Path) -> None:
    store = Counting(world(series=6))
    reader = kept(tmp_path).of("", store)
    reader.read("load", at(0), max_series=6)
    with pytest.raises(QueryError) as plain:
        Counting(store.panel).read("load", at(1), max_series=5)
    with pytest.raises(QueryError) as told:
        reader.read("load", at(1), max_series=5)
    assert str(told.value) == str(plain.value)


def test_a_query_without_series_is_told_as_the_store_tells_it(tmp_path: Path) -> None:
    with pytest.raises(NoSeriesError):
        kept(tmp_path).of("", Counting(world())).read("absent", at(0))


def test_files_are_no_more_than_they_may_be(tmp_path: Path) -> None:
    store = Counting(world())
    kept(tmp_path).of("", store).read("load", at(0))
    [first] = tmp_path.glob("*.parquet")
    size = first.stat().st_size
    os.utime(first, (0, 0))
    kept(tmp_path, max_bytes=int(1.5 * size), username="b", password="x").of("", store).read("load", at(0))
    [left] = tmp_path.glob("*.parquet")
    assert left != first
    kept(tmp_path, max_bytes=size // 2).of("", store).read("load", at(0))
    assert list(tmp_path.glob("*.parquet")) == []
    assert kept(tmp_path, max_bytes=0).of("", store) is store


@pytest.mark.parametrize(
    ("promql", "kept_"),
    [
        ("up", True),
        ("sum by (job) (rate(http_requests_total[5m]))", True),
        ("histogram_quantile(0.99, sum by (le) (rate(b_bucket[5m]))) > 0", True),
        ("1 - a / b offset 1d", True),
        ("topk(3, up)", False),
        ("up @ 1700000000", False),
        ("max_over_time(rate(a[5m])[1h:1m])", False),
        ("range_max(up)", False),
        ("time()", False),
        ("increase(a[5m])", False),
        ("sum(", False),
    ],
)
def test_only_queries_whose_value_depends_on_no_range_are_kept(promql: str, kept_: bool) -> None:
    assert is_pointwise(promql) is kept_


@pytest.mark.servers
@pytest.mark.slow
@pytest.mark.parametrize(
    "query",
    [
        *("raw", "raw offset 3m", "rate(raw[10m])", "deriv(raw[10m])", "resets(raw[10m])"),
        *("sum by (zone) (rate(raw[10m]))", "max_over_time(raw[15m]) - min_over_time(raw[15m])"),
    ],
)
def test_on_victoria_metrics_panels_are_those_of_a_read_without(
    query: str, start: Callable[..., servers.Server], tmp_path: Path
) -> None:
    """Scrapes each half minute, some missed, outages of many minutes, a counter that starts again."""
    server = start(servers.victoria_metrics)
    begin = Grid.ending(datetime.now(UTC) - timedelta(days=4), STEP, 1).start
    scrapes = Grid(begin, timedelta(seconds=30), 3 * 2880)
    rng = np.random.default_rng(2)
    y = rng.poisson(5, (6, scrapes.n)).cumsum(axis=1).astype(np.float64)
    y[rng.random(y.shape) < 0.02] = np.nan
    y[0, 2000:2100] = y[1, 6100:6113] = np.nan
    y[2, 6500:] -= y[2, 6500] - 1
    y[3, 6400:] = np.nan
    y[4, :6200] = np.nan
    rows = [Labels.of({"i": str(i), "zone": str(i % 2)}) for i in range(6)]
    with PrometheusStore(Source(url=server.url), state=tmp_path) as store:
        for body in remote_write.encode([Samples(("raw",), rows, scrapes.epoch_ms(), y[:, None])]):
            store.client.request("POST", server.url + "/api/v1/write", content=body, headers=remote_write.HEADERS)
        server.flush()
        time.sleep(1)
        histories = Histories(tmp_path / "history", {"": Source(url=server.url)}, max_bytes=10**9)
        reads = 0
        original = store.read

        def counted(promql: str, grid: Grid, *, max_series: int = 10_000) -> Panel:
            nonlocal reads
            reads += grid.n
            return original(promql, grid, max_series=max_series)

        for hour in range(12):
            grid = Grid.ending(begin + timedelta(days=2, hours=hour), STEP, 288)
            plain = original(query, grid)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(store, "read", counted)
                found = histories.of("", store).read(query, grid)
            # The order in which the server adds series up changes from answer to answer.
            assert same(found, plain) or ("sum" in query and alike(found, plain)), hour
        assert reads == 288 + 11 * 24
