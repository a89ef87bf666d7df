"""Limits and evidence in stores: what is written of them, when, and that it comes back."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomaly_times.conventions import FORECAST_METRICS, OUR_METRICS, SERIES, channel_labels
from anomaly_times.durations import EPOCH
from anomaly_times.errors import MissionError, StoreUnavailableError
from anomaly_times.evidence import CHANNELS, KEPT, remembered
from anomaly_times.limits import fit_limits
from anomaly_times.mission import Mission
from anomaly_times.panel import Evidence, Floats, Forecast, Grid, Labels, Limits, Panel, Scores, round_significant
from anomaly_times.settings import Source
from anomaly_times.stores import Gauge, Store, Written, over_time, prometheus, remote_write, samples
from anomaly_times.stores.parquet import FolderStore
from anomaly_times.stores.prometheus import PrometheusStore
from anomaly_times.stores.purge import purge_results
from anomaly_times.stores.samples import Samples
from tests import servers
from tests.servers import Server

Start = Callable[..., Server]

STEP = timedelta(minutes=1)
NOW = Grid.ending(datetime.now(UTC), STEP, 1).start
DEDUP = "-dedup.minScrapeInterval=1ms"
NAN, INF = float("nan"), float("inf")


def mission(name: str, **fields: Any) -> Mission:
    return Mission(name=name, promql="up", **{"step": "1m", **fields})


def series(n: int, **labels: str) -> tuple[Labels, ...]:
    return tuple(Labels.of({"__name__": "load", "instance": f"host-{i}", **labels}) for i in range(n))


def limits(n: int, value: float = 1.0) -> Limits:
    """Others for each series and channel; the last series' exporter never hangs."""
    rows = np.arange(n) / 8 + value
    limit = np.stack([np.ones(n), *(rows * (1 + channel) for channel in range(4))])[:, :, None]
    limit[4, -1] = INF
    usual = np.stack([np.zeros(n), rows / 4, np.ones(n), np.zeros(n), np.zeros(n)])[:, :, None]
    return Limits(usual, limit, rows[:, None] / 16)


def forecast(labels: Sequence[Labels], *, h: int = 4, cutoff: datetime = NOW, value: float = 1.0) -> Forecast:
    yhat = np.full((len(labels), h), value)
    grid = Grid(cutoff, STEP, 1).following(h)
    return Forecast(tuple(labels), grid, cutoff, yhat, yhat - 1, yhat + 1, limits=limits(len(labels), value))


def scores(labels: Sequence[Labels], grid: Grid, seed: int = 0) -> Scores:
    """A score at every point, with evidence of single precision beside it."""
    random = np.random.default_rng(seed + grid.start_ms)
    shape = (len(labels), grid.n)
    evidence = random.normal(size=(4, *shape)).astype(np.float32).astype(np.float64)
    evidence[3] = random.integers(0, 3, shape)
    ones = np.ones(shape)
    return Scores(
        tuple(labels),
        grid,
        ones * 11,
        ones * 10,
        ones * 8,
        ones * 14,
        round_significant(random.uniform(0, 3, shape)),
        reason=random.integers(0, 8, shape).astype(np.float64),
        evidence=evidence,
        incident=np.where(random.uniform(size=shape) > 0.5, 1.5, 0.0),
    )


def store_of(server: Server, state: Path, **fields: Any) -> PrometheusStore:
    return PrometheusStore(Source(url=server.url, **fields), state=state)


def ms(at: datetime) -> int:
    return (at - EPOCH) // timedelta(milliseconds=1)


def kept(server: Server, selector: str) -> dict[Labels, dict[int, float]]:
    """All samples that the server has."""
    if server.name == "victoria-metrics":
        server.flush()
    query = urlencode({"query": f"{selector}[2d]", "time": f"{ms(NOW + timedelta(days=1)) / 1000:.3f}", "nocache": 1})
    rows = json.loads(servers.fetch(f"{server.url}/api/v1/query?{query}"))["data"]["result"]
    return {
        Labels.of(row["metric"]): {round(float(at) * 1000): float(value) for at, value in row["values"]} for row in rows
    }


def wait_until(holds: Callable[[], bool], seconds: float = 15) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.05)


def counted(store: PrometheusStore, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The queries that the store asks from now on."""
    asked: list[str] = []
    request = store.client.request

    def count(method: str, url: str, **options: Any) -> bytes:
        if "/query" in url:
            asked.append(options["params"]["query"])
        return request(method, url, **options)

    monkeypatch.setattr(store.client, "request", count)
    return asked


def assert_evidence(found: Evidence, expected: Scores, labels: tuple[Labels, ...]) -> None:
    assert expected.evidence is not None
    assert expected.incident is not None
    assert found.labels == labels
    assert found.grid == expected.grid
    np.testing.assert_array_equal(found.values.astype(np.float32), expected.evidence.astype(np.float32))
    np.testing.assert_array_equal(np.nan_to_num(found.incident), expected.incident)


# What is written


@pytest.mark.servers
@pytest.mark.parametrize("protocol", ["remote_write", "vm_import"])
def test_limits_come_with_the_first_point_of_their_forecast(vm_server: Server, tmp_path: Path, protocol: str) -> None:
    watched = mission(f"limits-{protocol.replace('_', '-')}")
    labels = series(2)
    made = forecast(labels)
    with store_of(vm_server, tmp_path, protocol=protocol) as store:
        written = store.write_forecasts([(watched, made)])
    # Of the second no limit of `flat`, which is infinite.
    assert written == Written(samples=2 * 3 * 4 + 6 + 5, series=2 * 3 + 6 + 5)
    found = kept(vm_server, f'{{mission="{watched.name}",__name__!~"anomaly_(pred|lower|upper)"}}')
    at = ms(NOW + STEP) - 1
    a, b = watched.written_labels(labels)
    assert made.limits is not None
    expected = {}
    for i, row in enumerate((a, b)):
        for channel, name in enumerate(KEPT, start=1):
            if np.isfinite(made.limits.limit[channel, i, 0]):
                own = channel_labels(row, name)
                expected[Labels.of({"__name__": "anomaly_limit", **dict(own)})] = made.limits.limit[channel, i, 0]
        own = channel_labels(row, "sustained")
        expected[Labels.of({"__name__": "anomaly_usual", **dict(own)})] = made.limits.usual[1, i, 0]
        expected[Labels.of({"__name__": "anomaly_move", **dict(row)})] = made.limits.move[i, 0]
    assert found == {row: {at: value} for row, value in expected.items()}


def test_all_that_is_not_stored_of_limits_is_the_same_for_every_series() -> None:
    random = np.random.default_rng(3)
    history = np.cumsum(random.standard_normal((3, 1000)), axis=1)
    fitted = fit_limits(history, random.standard_normal((3, 4, 100)), np.full(3, 50.0), step=timedelta(minutes=5))
    assert np.isfinite(fitted.limit).all()
    back = over_time.limits_of(over_time.limit_numbers(fitted)[:, :, None])
    np.testing.assert_array_equal(back.usual, fitted.usual)
    np.testing.assert_array_equal(back.limit, fitted.limit)
    np.testing.assert_array_equal(back.move, fitted.move)


@pytest.mark.servers
def test_beside_a_score_is_what_it_is_of_and_the_evidence_at_its_time(vm_server: Server, tmp_path: Path) -> None:
    watched = mission("beside-a-score")
    grid = Grid.ending(NOW, STEP, 3)
    found = scores(series(1), grid)
    found.score[0, 1] = NAN
    assert found.evidence is not None
    assert found.incident is not None
    assert found.reason is not None
    found.evidence[:, 0, 0] = [0.5, 1.25, -0.75, 0.0]
    found.evidence[:, 0, 2] = [0.25, NAN, 0.125, 7.0]
    found.incident[0] = [0.0, 2.0, 1.5]
    found.reason[0] = [0.0, 1.0, 4.0]
    with store_of(vm_server, tmp_path) as store:
        assert store.write_scores([(watched, found)]).samples == 2 + 2 + 2 + 1 + 2 + 1 + 1
    first, last = ms(grid.start), ms(grid.end)
    by_name = {
        (row.get("__name__"), row.get("channel")): samples
        for row, samples in kept(vm_server, f'{{mission="{watched.name}"}}').items()
    }
    assert by_name == {
        ("anomaly_score", ""): {first: found.score[0, 0], last: found.score[0, 2]},
        ("anomaly_reason", ""): {first: 0.0, last: 4.0},
        ("anomaly_incident", ""): {last: 1.5},
        ("anomaly_evidence", "sustained"): {first: 0.5, last: 0.25},
        ("anomaly_evidence", "roughness"): {first: 1.25},
        ("anomaly_evidence", "drift"): {first: -0.75, last: 0.125},
        ("anomaly_evidence", "flat"): {last: 7.0},
    }


@pytest.mark.servers
def test_limits_that_are_there_are_never_written_again(start: Start, tmp_path: Path) -> None:
    server = start(servers.victoria_metrics)
    watched = mission("once")
    made, other = forecast(series(3), value=1.0), forecast(series(3), value=2.0)
    with store_of(server, tmp_path) as store:
        store.write_forecasts([(watched, made)])
        before = kept(server, "{mission='once'}")
        # What a second run makes of a history that has changed.
        assert store.write_forecasts([(watched, other)]).samples == 0
        assert kept(server, "{mission='once'}") == before
        # One that reaches further adds points, and no limits.
        longer = forecast(series(3), value=2.0, h=6)
        assert store.write_forecasts([(watched, longer)]) == Written(samples=3 * 3 * 2, series=9)
        assert kept(server, "{mission='once',__name__=~'anomaly_(limit|usual|move)'}") == {
            row: samples for row, samples in before.items() if row.get("__name__") not in FORECAST_METRICS
        }


@pytest.mark.servers
def test_a_forecast_write_that_broke_off_after_the_limits_keeps_them(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start(servers.victoria_metrics)
    watched = mission("half")
    monkeypatch.setattr(samples, "MAX_BYTES", 3000)
    with store_of(server, tmp_path) as store:
        break_off(store, monkeypatch, after=1)
        with pytest.raises(StoreUnavailableError):
            store.write_forecasts([(watched, forecast(series(8), value=1.0))])
        monkeypatch.undo()
        arrived = {row.get("instance") for row in kept(server, "anomaly_move{mission='half'}")}
        assert 0 < len(arrived) < 8
        assert not kept(server, "anomaly_pred{mission='half'}")
        store.write_forecasts([(watched, forecast(series(8), value=2.0))])
    for row, stored in kept(server, "anomaly_move{mission='half'}").items():
        i = int(row.get("instance").removeprefix("host-"))
        assert list(stored.values()) == [(i / 8 + (1.0 if row.get("instance") in arrived else 2.0)) / 16]
    assert len(kept(server, "anomaly_pred{mission='half'}")) == 8


def break_off(store: PrometheusStore, monkeypatch: pytest.MonkeyPatch, *, after: int) -> None:
    """Let so many writes through, and no more."""
    request, sent = store.client.request, 0

    def gone(method: str, url: str, **options: Any) -> bytes:
        nonlocal sent
        sent += "content" in options
        if sent > after:
            raise StoreUnavailableError("gone")
        return request(method, url, **options)

    monkeypatch.setattr(store.client, "request", gone)


@pytest.mark.servers
@pytest.mark.parametrize("after", [1, 2, 3, 5])
def test_a_write_that_breaks_off_leaves_no_score_without_its_evidence(
    vm_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    monkeypatch.setattr(samples, "_SAMPLES", 300)
    monkeypatch.setattr(samples, "MAX_BYTES", 2500)
    watched, grid = mission(f"torn-{after}"), Grid.ending(NOW, STEP, 12)
    made = scores(series(7), grid)
    with store_of(vm_server, tmp_path) as store:
        break_off(store, monkeypatch, after=after)
        with pytest.raises(StoreUnavailableError):
            store.write_scores([(watched, made)])
        monkeypatch.undo()
        vm_server.flush()
        scored = store.read_scores([watched], grid)[watched.name]
        assert np.isfinite(scored.y).any()
        assert not np.isfinite(scored.y).all()
        rows = [watched.written_labels(made.labels).index(row) for row in scored.labels]
        part = Scores(
            *(tuple(made.labels[i] for i in rows), grid, made.y[rows], made.yhat[rows], made.lower[rows]),
            made.upper[rows],
            made.score[rows],
            evidence=made.evidence[:, rows] if made.evidence is not None else None,
            incident=made.incident[rows] if made.incident is not None else None,
        ).only(np.isfinite(scored.y))
        assert part.incident is not None
        part = replace(part, incident=np.nan_to_num(part.incident))
        assert_evidence(store.read_evidence([watched], grid)[watched.name], part, scored.labels)
        # A rerun makes it whole.
        store.write_scores([(watched, made)])
        vm_server.flush()
        whole = store.read_evidence([watched], grid)[watched.name]
        assert_evidence(whole, made, watched.written_labels(made.labels))


@pytest.mark.servers
def test_evidence_whose_score_did_not_arrive_counts_for_nothing(vm_server: Server, tmp_path: Path) -> None:
    watched, grid = mission("orphan"), Grid.ending(NOW, STEP, 2)
    [row] = watched.written_labels(series(1))
    times = grid.epoch_ms()
    with store_of(vm_server, tmp_path) as store:
        store.write_scores([(watched, scores(series(1), grid[:1]))])
        orphan = Samples(("anomaly_evidence",), [row], times[1:], np.ones((1, 1, 1)), ("sustained",))
        body = next(remote_write.encode([orphan]))
        store.client.request("POST", store.source.write_url, content=body, headers=remote_write.HEADERS)
        vm_server.flush()
        found = store.read_evidence([watched], grid)["orphan"]
    assert np.isfinite(found.values[:, 0, 0]).all()
    assert np.isnan(found.values[:, 0, 1]).all()


@pytest.mark.servers
def test_two_series_that_a_channel_would_make_one_stop_everything(vm_server: Server, tmp_path: Path) -> None:
    a, b = Labels.of({"channel": "x"}), Labels.of({"exported_channel": "x"})
    with store_of(vm_server, tmp_path) as store:
        # Points alone need no channel.
        plain = replace(forecast([a, b]), limits=None)
        assert store.write_forecasts([(mission("two-plain"), plain)]).series == 6
        with pytest.raises(MissionError, match="would be one series"):
            store.write_forecasts([(mission("two-channels"), forecast([a, b]))])
        with pytest.raises(MissionError, match="would be one series"):
            store.write_scores([(mission("two-channels"), scores([a, b], Grid(NOW, STEP, 1)))])
    assert kept(vm_server, "{mission='two-channels'}") == {}


@pytest.mark.servers
def test_a_channel_needs_room_among_the_labels(vm_server: Server, tmp_path: Path) -> None:
    full = [Labels.of({f"label_{i:02}": "x" for i in range(28)})]
    with store_of(vm_server, tmp_path) as store:
        assert store.write_forecasts([(mission("full"), replace(forecast(full), limits=None))]).series == 3
        with pytest.raises(MissionError, match="31 labels"):
            store.write_forecasts([(mission("full"), forecast(full, cutoff=NOW - STEP))])


@pytest.mark.servers
def test_purging_a_mission_takes_all_of_it_and_nothing_else(vm_server: Server, tmp_path: Path) -> None:
    gone, stays = mission("purged"), mission("purged-not")
    with store_of(vm_server, tmp_path) as store:
        for each in (gone, stays):
            store.write_forecasts([(each, forecast(series(2)))])
            store.write_scores([(each, scores(series(2), Grid.ending(NOW, STEP, 9)))])
            store.write_gauges([Gauge(SERIES, Labels.of({"mission": each.name}), 2.0)], at=NOW)
    names = {row.get("__name__") for row in kept(vm_server, "{mission='purged'}")}
    assert names == {*OUR_METRICS, SERIES} - {"anomaly_mission_failed"}
    before = kept(vm_server, "{mission='purged-not'}")
    purge_results(Source(url=vm_server.url), "purged")
    wait_until(lambda: not kept(vm_server, "{mission='purged'}"))
    assert kept(vm_server, "{mission='purged-not'}") == before


@pytest.mark.servers
def test_a_wide_selector_reads_nothing_of_it(vm_server: Server, tmp_path: Path) -> None:
    labels = (Labels.of({"__name__": "m", "instance": "a", "job": "over-time"}),)
    grid = Grid.ending(NOW, STEP, 3)
    with store_of(vm_server, tmp_path) as store:
        body = next(
            remote_write.encode(
                [Samples(("m",), [labels[0].without(["__name__"])], grid.epoch_ms(), np.ones((1, 1, 3)))]
            )
        )
        store.client.request("POST", store.source.write_url, content=body, headers=remote_write.HEADERS)
        store.write_forecasts([(mission("wide-over-time"), forecast(labels, cutoff=grid.start))])
        store.write_scores([(mission("wide-over-time"), scores(labels, grid))])
        vm_server.flush()
        assert store.read('{job="over-time"}', grid).labels == labels


# What is read back


STORES = ["ahead", "at_detection", "folder"]


@pytest.fixture(params=STORES)
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Store]]:
    """Opens a store; each time another object for the same place."""
    with ExitStack() as stores:
        if request.param == "folder":
            (tmp_path / "folder").mkdir()
            yield lambda: stores.enter_context(FolderStore(Source(folder=tmp_path / "folder")))
        else:
            kind = servers.victoria_metrics if request.param == "ahead" else servers.prometheus
            server = request.getfixturevalue("start")(kind)
            yield lambda: stores.enter_context(store_of(server, tmp_path))


def flush(store: Store) -> None:
    if isinstance(store, PrometheusStore) and store.is_victoria_metrics:
        servers.fetch(f"{store.source.read_url}/internal/force_flush")


@pytest.mark.servers
def test_every_point_has_the_limits_of_its_own_cutoff(opened: Callable[[], Store]) -> None:
    watched, points = mission("own-cutoff"), mission("points", detect={"evidence": "point"})
    labels = series(2)
    store = opened()
    old, new = forecast(labels, h=5, value=1.0), forecast(labels, h=2, cutoff=NOW + STEP, value=2.0)
    for each in (watched, points):
        store.write_forecasts([(each, old)])
        store.write_forecasts([(each, new)])
    flush(store)
    grid = Grid(NOW, STEP, 7)
    for reader in (store, opened()):
        found = reader.read_forecasts([watched, points], grid)
        assert found["points"].limits is None
        got = found["own-cutoff"]
        assert got.labels == watched.written_labels(labels)
        np.testing.assert_array_equal(got.yhat, [[NAN, 1, 2, 2, 1, 1, NAN]] * 2)
        assert got.limits is not None
        assert old.limits is not None
        assert new.limits is not None
        for t, made in enumerate([None, old.limits, new.limits, new.limits, old.limits, old.limits, None]):
            if made is None:
                assert np.isnan(got.limits.move[:, t]).all()
                assert np.isinf(got.limits.limit[1:, :, t]).all()
                np.testing.assert_array_equal(got.limits.usual[:, :, t], [[0, 0], [0.5, 0.5], [1, 1], [0, 0], [0, 0]])
            else:
                np.testing.assert_array_equal(got.limits.move[:, t], made.move[:, 0])
                np.testing.assert_array_equal(got.limits.limit[:, :, t], made.limit[:, :, 0])
                np.testing.assert_array_equal(got.limits.usual[:, :, t], made.usual[:, :, 0])
            np.testing.assert_array_equal(got.limits.limit[0], np.ones((2, 7)))


@pytest.mark.servers
def test_a_forecast_without_limits_has_a_move_of_nan(opened: Callable[[], Store]) -> None:
    watched = mission("no-limits")
    store = opened()
    store.write_forecasts([(watched, replace(forecast(series(2)), limits=None))])
    flush(store)
    found = store.read_forecasts([watched], Grid(NOW, STEP, 3))["no-limits"]
    assert found.limits is not None
    assert np.isnan(found.limits.move).all()
    assert np.isinf(found.limits.limit[1:]).all()
    assert found.limits.usual.shape == (len(CHANNELS), 2, 3)


@pytest.mark.servers
def test_what_is_kept_beside_scores_comes_back(opened: Callable[[], Store]) -> None:
    one, other, never = mission("kept-one"), mission("kept-other"), mission("kept-never")
    store = opened()
    grid = Grid.ending(NOW, STEP, 4)
    # A label of the series' own by the name of ours, and one by the name that makes room for it.
    labels = (*series(2), *series(1, channel="drift"), *series(1, channel="a", exported_channel="b"))
    labels = tuple(sorted(labels, key=lambda row: one.written_labels([row])))
    made, more = scores(labels, grid), scores(series(1), grid, seed=1)
    assert store.read_evidence([one, never], grid) == {}
    store.write_scores([(one, made), (other, more)])
    flush(store)
    for reader in (store, opened()):
        found = reader.read_evidence([one, other, never], grid)
        assert set(found) == {"kept-one", "kept-other"}
        assert_evidence(found["kept-one"], made, one.written_labels(labels))
        assert_evidence(found["kept-other"], more, other.written_labels(series(1)))
        assert reader.read_evidence([one], grid.following(2)) == {}
        assert reader.read_evidence([one], grid[:0]) == {}


@pytest.mark.servers
def test_scores_of_points_alone_leave_no_evidence(opened: Callable[[], Store]) -> None:
    watched = mission("points-alone", detect={"evidence": "point"})
    store = opened()
    grid = Grid.ending(NOW, STEP, 3)
    made = replace(scores(series(2), grid), evidence=None, incident=np.zeros((2, 3)))
    store.write_scores([(watched, made)])
    flush(store)
    assert store.read_evidence([watched], grid) == {}
    made = replace(made, grid=grid.following(3), incident=np.full((2, 3), 1.25))
    store.write_scores([(watched, made)])
    flush(store)
    found = store.read_evidence([watched], made.grid)["points-alone"]
    assert np.isnan(found.values).all()
    assert found.incident.tolist() == [[1.25] * 3] * 2


@pytest.mark.servers
def test_through_a_relay_that_adds_a_label_all_is_known_again(start: Start, tmp_path: Path) -> None:
    server = start(servers.victoria_metrics, DEDUP)
    relay = start(lambda folder: servers.vmagent(folder, f"{server.url}/api/v1/write", "-remoteWrite.label=cluster=x"))
    source = Source(read=server.url, write=relay.url, ignore_labels=("cluster",))
    watched, labels = mission("relayed"), series(2, channel="own")
    grid = Grid.ending(NOW, STEP, 2)
    made = scores(labels, grid)
    with PrometheusStore(source, state=tmp_path) as store:
        store.write_forecasts([(watched, forecast(labels, cutoff=grid.start))])
        store.write_scores([(watched, made)])
        wait_until(lambda: len(kept(server, "{mission='relayed',__name__=~'anomaly_(score|move)'}")) == 4)
        assert store.write_forecasts([(watched, forecast(labels, cutoff=grid.start))]) == Written(skipped=6)
        found = store.read_forecasts([watched], grid.following(2))["relayed"]
        assert found.limits is not None
        assert np.isfinite(found.limits.move).all()
        assert_evidence(store.read_evidence([watched], grid)["relayed"], made, watched.written_labels(labels))


names = st.sampled_from(["A", "__a", "a", "channel", "channel_x", "exported_channel", "exported_exported_channel", "z"])


@given(st.sets(st.dictionaries(names, st.sampled_from("xy"), max_size=5).map(Labels.of), max_size=4))
@settings(deadline=None, max_examples=200)
def test_where_a_stored_series_belongs_is_the_inverse_of_how_it_is_written(rows: set[Labels]) -> None:
    labels = sorted(rows)
    for kinds in (over_time.LIMITS, over_time.READ_BACK):
        expected = {
            Labels.of({"__name__": metric, **dict(channel_labels(row, channel) if channel else row)}): (kind, i)
            for i, row in enumerate(labels)
            for kind, (metric, channel) in enumerate(kinds)
        }
        assert over_time.places(labels, kinds) == expected


# Reading no more than is needed


@pytest.mark.servers
def test_limits_are_read_once_a_cutoff_and_for_all_missions_at_once(
    vm_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missions = [mission("once-a"), mission("once-b")]
    with store_of(vm_server, tmp_path) as writer:
        for each in missions:
            writer.write_forecasts([(each, forecast(series(2), cutoff=NOW - STEP))])
    vm_server.flush()
    with store_of(vm_server, tmp_path) as store:
        asked = counted(store, monkeypatch)

        def limit_queries() -> int:
            store.read_forecasts(missions, Grid(NOW, STEP, 2))
            return sum("anomaly_move" in query for query in asked)

        assert limit_queries() == 1
        assert limit_queries() == 1
        # A new cutoff of one mission.
        store.write_forecasts([(missions[0], forecast(series(2), h=2, value=3.0))])
        vm_server.flush()
        asked.clear()
        found = store.read_forecasts(missions, Grid(NOW, STEP, 2))
        assert [query for query in asked if "anomaly_move" in query and "once-b" in query] == []
        limits_of = found["once-a"].limits
        assert limits_of is not None
        assert limits_of.move.tolist() == [[1 / 16, 3 / 16], [1.125 / 16, 3.125 / 16]]


@pytest.mark.servers
def test_limits_that_come_late_are_looked_for_again(
    vm_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relay may bring what was sent first last."""
    watched, made = mission("late-limits"), forecast(series(2))
    with store_of(vm_server, tmp_path) as store:
        asked = counted(store, monkeypatch)

        def moves() -> Floats:
            found = store.read_forecasts([watched], Grid(NOW, STEP, 2))["late-limits"]
            assert found.limits is not None
            return found.limits.move[:, 1]

        store.write_forecasts([(watched, replace(made, limits=None))])
        vm_server.flush()
        assert np.isnan(moves()).all()
        rows = watched.written_labels(series(2))
        late = Samples(("anomaly_move",), rows, np.array([ms(NOW + STEP) - 1]), np.array([[[0.5]], [[0.25]]]))
        body = next(remote_write.encode([late]))
        store.client.request("POST", store.source.write_url, content=body, headers=remote_write.HEADERS)
        vm_server.flush()
        assert moves().tolist() == [0.5, 0.25]
        asked.clear()
        moves()
        assert not any("anomaly_move" in query for query in asked)
        # What has not come within a minute does not come.
        store.write_forecasts([(watched, replace(forecast(series(2), cutoff=NOW + STEP, h=1), limits=None))])
        vm_server.flush()
        monkeypatch.setattr(prometheus, "_LOOK_AGAIN", 0.0)
        for _ in range(2):
            store.read_forecasts([watched], Grid(NOW + 2 * STEP, STEP, 1))
        assert sum("anomaly_move" in query for query in asked) == 1


def one_pass(store: PrometheusStore, watched: Mission, labels: Sequence[Labels], at: datetime) -> Evidence | None:
    """What a detection does at one time: read the scores, read the evidence, write both for the newest point."""
    recent = Grid.ending(at, STEP, 3)
    store.read_scores([watched], recent)
    before = remembered(STEP)
    found = store.read_evidence([watched], Grid(at - before * STEP, STEP, before + 1)).get(watched.name)
    store.write_scores([(watched, scores(labels, Grid(at, STEP, 1)))])
    flush(store)
    return found


def assert_same(a: Evidence | None, b: Evidence | None) -> None:
    if a is None or b is None:
        assert a is b
        return
    assert a.labels == b.labels
    assert a.grid == b.grid
    np.testing.assert_array_equal(a.values, b.values)
    np.testing.assert_array_equal(a.incident, b.incident)


def rows_at(k: int) -> tuple[Labels, ...]:
    """Series come and go."""
    return series(5)[: 3 + k % 3] if k < 20 else series(5)[2:]


@pytest.mark.servers
@pytest.mark.parametrize("kind", ["victoria_metrics", "prometheus"])
def test_a_store_that_writes_alone_need_not_read_what_it_wrote(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    server = start(getattr(servers, kind))
    watched = mission("alone")
    with store_of(server, tmp_path) as store:
        asked = counted(store, monkeypatch)
        for k in range(25):
            asked.clear()
            found = one_pass(store, watched, rows_at(k), NOW - (25 - k) * STEP)
            assert sum("anomaly_evidence" in query for query in asked) == (k == 0), k
            with store_of(server, tmp_path) as fresh:
                grid = Grid(NOW - (25 - k + remembered(STEP)) * STEP, STEP, remembered(STEP))
                read = fresh.read_evidence([watched], grid).get("alone")
            if found is not None:
                assert np.isnan(found.values[:, :, -1]).all()
                found = replace(found, grid=grid, values=found.values[:, :, :-1], incident=found.incident[:, :-1])
            assert_same(found, read)


@pytest.mark.servers
def test_stores_that_write_in_turn_read_what_the_other_wrote(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start(servers.victoria_metrics)
    turns = [0, 0, 1, 0, 1, 1, 1, 0, 0, 1, 0, 0, 0, 1]
    alone, shared = mission("by-one"), mission("by-two")
    with store_of(server, tmp_path) as one, store_of(server, tmp_path) as a, store_of(server, tmp_path) as b:
        for k, turn in enumerate(turns):
            at = NOW - (len(turns) - k) * STEP
            by_one = one_pass(one, alone, rows_at(k), at)
            by_two = one_pass((a, b)[turn], shared, rows_at(k), at)
            if by_one is not None and by_two is not None:
                labels = tuple(Labels.of({**dict(row), "mission": "by-one"}) for row in by_two.labels)
                by_two = replace(by_two, labels=labels)
            assert_same(by_one, by_two)


def test_what_is_recalled_is_what_was_learned_and_written_and_only_after_a_proof() -> None:
    watched, grid = mission("recalled"), Grid(NOW - 4 * STEP, STEP, 5)
    labels = watched.written_labels(series(2))
    numbers = np.arange(60.0).reshape(6, 2, 5)
    numbers[:, :, 4] = NAN
    recent = Grid(NOW - 2 * STEP, STEP, 3)

    def learned() -> over_time.Recalled:
        made = over_time.Recalled()
        made.learn("recalled", labels, grid, numbers)
        return made

    def seen(score: Floats, rows: tuple[Labels, ...] = labels) -> dict[str, Panel]:
        return {"recalled": Panel(rows, recent, score)}

    store = learned()
    assert store.recall("recalled", grid) is None
    store.confirm([watched], recent, seen(numbers[5, :, 2:]))
    found = store.recall("recalled", grid)
    assert found is not None
    np.testing.assert_array_equal(found[1], numbers)
    # A proof is good for one use.
    assert store.recall("recalled", grid) is None
    store.confirm([watched], recent, seen(numbers[5, :, 2:]))
    assert store.recall("recalled", Grid(NOW - 5 * STEP, STEP, 5)) is None
    assert store.recall("recalled", grid.following(1)) is None

    # Another value, one more, one less, another series, no series at all, or a time that nobody watched.
    changed, more, less = (numbers[5, :, 2:].copy() for _ in range(3))
    changed[0, 0] += 1e-9
    more[1, 2] = 1.0
    less[0, 1] = NAN
    third = watched.written_labels(series(3))
    for found_scores in (
        seen(changed),
        seen(more),
        seen(less),
        seen(np.concatenate([numbers[5, :, 2:], [[1.0, NAN, NAN]]]), third),
        seen(numbers[5, :1, 2:], labels[:1]),
        {},
    ):
        store = learned()
        store.confirm([watched], recent, found_scores)
        assert store.recall("recalled", grid) is None
    store = learned()
    store.confirm([watched], Grid(NOW + 2 * STEP, STEP, 3), {})
    assert store.recall("recalled", grid) is None

    store = learned()
    written = np.arange(6.0).reshape(6, 1, 1)
    store.extend(watched, third[2:], Grid(NOW, STEP, 1), written)
    now = numbers[5, :, 2:]
    store.confirm([watched], recent, seen(np.concatenate([now, [[NAN, NAN, 5.0]]]), third))
    found = store.recall("recalled", recent)
    assert found is not None
    assert found[0] == third
    np.testing.assert_array_equal(found[1][:, 2, 2], written[:, 0, 0])
    np.testing.assert_array_equal(found[1][:, :2], numbers[:, :, 2:])
    store.forget([watched])
    store.confirm([watched], recent, seen(now))
    assert store.recall("recalled", grid) is None


def test_what_is_recalled_does_not_grow(tmp_path: Path) -> None:
    watched, recalled = mission("bounded"), over_time.Recalled()
    labels = watched.written_labels(series(1))
    start = NOW - timedelta(days=1)
    recalled.learn("bounded", labels, Grid(start, STEP, 1), np.ones((6, 1, 1)))
    for k in range(1, 200):
        recalled.extend(watched, labels, Grid(start + k * STEP, STEP, 1), np.full((6, 1, 1), float(k)))
    recent = Grid(start + 197 * STEP, STEP, 3)
    recalled.confirm([watched], recent, {"bounded": Panel(labels, recent, np.array([[197.0, 198.0, 199.0]]))})
    assert recalled.recall("bounded", Grid(start + 100 * STEP, STEP, 100)) is None
    found = recalled.recall("bounded", Grid(start + (199 - remembered(STEP)) * STEP, STEP, remembered(STEP)))
    assert found is not None
    assert found[1][0, 0].tolist() == [float(k) for k in range(199 - remembered(STEP), 199)]


@pytest.mark.servers
def test_after_a_failed_write_the_store_is_asked(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = start(servers.victoria_metrics)
    watched = mission("failed-write")
    with store_of(server, tmp_path) as store:
        for k in (3, 2):
            one_pass(store, watched, series(2), NOW - k * STEP)
        break_off(store, monkeypatch, after=0)
        with pytest.raises(StoreUnavailableError):
            one_pass(store, watched, series(2), NOW - STEP)
        monkeypatch.undo()
        asked = counted(store, monkeypatch)
        found = one_pass(store, watched, series(2), NOW)
        assert any("anomaly_evidence" in query for query in asked)
        assert found is not None
        assert np.isfinite(found.values[0]).sum(axis=1).tolist() == [2, 2]


# Files


def test_forecasts_of_an_older_version_are_read_and_added_to(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    store, watched = FolderStore(Source(folder=tmp_path / "folder")), mission("older")
    store.write_forecasts([(watched, forecast(series(1), h=3, value=1.0))])
    [path] = (tmp_path / "folder").rglob("*.parquet")
    old = pl.read_parquet(path)
    old.select(old.columns[:6]).write_parquet(path)
    assert pl.read_parquet(path).columns == ["unique_id", "ds", "yhat", "yhat_lower", "yhat_upper", "keep_until"]
    store = FolderStore(Source(folder=tmp_path / "folder"))
    grid = Grid(NOW, STEP, 1).following(3)
    found = store.read_forecasts([watched], grid)["older"]
    assert found.yhat.tolist() == [[1, 1, 1]]
    assert found.limits is not None
    assert np.isnan(found.limits.move).all()
    # Another cutoff, and another series of the same.
    store.write_forecasts([(watched, forecast(series(1), cutoff=NOW + STEP, h=1, value=2.0))])
    store.write_forecasts([(watched, forecast(series(2), h=3, value=3.0))])
    found = store.read_forecasts([watched], grid)["older"]
    assert found.limits is not None
    np.testing.assert_array_equal(found.yhat, [[1, 2, 1], [3, 3, 3]])
    np.testing.assert_array_equal(found.limits.move, [[NAN, 2 / 16, NAN], [3.125 / 16] * 3])


def test_scores_of_an_older_version_are_read_and_added_to(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    store, watched = FolderStore(Source(folder=tmp_path / "folder")), mission("older")
    start = NOW.replace(minute=0)
    grid = Grid(start, STEP, 4)
    made = scores(series(1), grid)
    store.write_scores([(watched, made.columns(slice(2)))])
    [path] = (tmp_path / "folder").rglob("*.parquet")
    old = pl.read_parquet(path)
    old.select(old.columns[:7]).write_parquet(path)
    assert store.read_evidence([watched], grid) == {}
    assert store.write_scores([(watched, made)]).samples == 2
    np.testing.assert_array_equal(store.read_scores([watched], grid)["older"].y, made.score)
    found = store.read_evidence([watched], grid)["older"]
    assert made.evidence is not None
    assert np.isnan(found.values[:, :, :2]).all()
    np.testing.assert_array_equal(found.values[:, :, 2:].astype(np.float32), made.evidence[:, :, 2:].astype(np.float32))
