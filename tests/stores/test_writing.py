from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
from pydantic import SecretStr

from anomaly_times.durations import EPOCH
from anomaly_times.errors import MissionError, StoreError, StoreUnavailableError, UsageError
from anomaly_times.mission import Mission
from anomaly_times.panel import Forecast, Grid, Labels, Scores, round_significant
from anomaly_times.settings import Source, WriteMode
from anomaly_times.stores import Written, remote_write, samples, writing
from anomaly_times.stores.prometheus import PrometheusStore
from anomaly_times.stores.samples import Samples
from tests import servers
from tests.servers import Server

Start = Callable[..., Server]

ROOT = Path(__file__).parents[2]
STEP = timedelta(minutes=1)
DEDUP = "-dedup.minScrapeInterval=1ms"
NOW = Grid.ending(datetime.now(UTC), STEP, 1).start


def mission(name: str, **fields: Any) -> Mission:
    return Mission(name=name, promql="up", **{"step": "1m", **fields})


def series(n: int, **labels: str) -> tuple[Labels, ...]:
    return tuple(Labels.of({"__name__": "http_requests", "instance": f"host-{i:05}", **labels}) for i in range(n))


def forecast(
    labels: Sequence[Labels], *, h: int = 4, cutoff: datetime = NOW, value: float | None = None, step: timedelta = STEP
) -> Forecast:
    """Values that differ everywhere, the same at every call; or `value` all over."""
    shape = (len(labels), h)
    yhat = round_significant(np.random.default_rng(len(labels)).gamma(2.0, 50.0, shape))
    if value is not None:
        yhat = np.full(shape, value)
    grid = Grid.ending(cutoff, step, 1).following(h)
    return Forecast(tuple(labels), grid, cutoff, yhat, round_significant(yhat - 1.5), round_significant(yhat + 2.5))


def scores(labels: Sequence[Labels], grid: Grid, score: float = 0.25) -> Scores:
    ones = np.ones((len(labels), grid.n))
    return Scores(tuple(labels), grid, y=ones * 11, yhat=ones * 10, lower=ones * 8, upper=ones * 14, score=ones * score)


def store_of(server: Server, state: Path, **fields: Any) -> PrometheusStore:
    return PrometheusStore(Source(url=server.url, **fields), state=state)


def export(server: Server, selector: str) -> list[tuple[dict[str, str], list[int], list[float]]]:
    """All that the server keeps, as it keeps it."""
    server.flush()
    query = urlencode({"match[]": selector, "start": 0, "end": ms(NOW + timedelta(days=3)) / 1000})
    lines = servers.fetch(f"{server.url}/api/v1/export?{query}").splitlines()
    rows = [json.loads(line) for line in lines]
    return sorted(((row["metric"], row["timestamps"], row["values"]) for row in rows), key=lambda row: str(row[0]))


def ms(at: datetime) -> int:
    return (at - EPOCH) // timedelta(milliseconds=1)


@pytest.mark.servers
@pytest.mark.parametrize("protocol", ["remote_write", "vm_import"])
def test_a_forecast_is_written_a_millisecond_earlier_for_each_step_of_lead(
    vm_server: Server, tmp_path: Path, protocol: str
) -> None:
    name = f"lead-{protocol.replace('_', '-')}"
    watched = mission(name, labels={"team": "x"})
    values = forecast(series(3, mission="theirs"))
    with store_of(vm_server, tmp_path, protocol=protocol) as store:
        written = store.write_forecasts([(watched, values)])
    assert written == Written(samples=36, series=9)
    rows = export(vm_server, f'{{mission="{name}"}}')
    assert len(rows) == 9
    by_key = {(row["__name__"], row["instance"]): (row, times, kept) for row, times, kept in rows}
    for i, label in enumerate(values.labels):
        for metric, expected in (("pred", values.yhat), ("lower", values.lower), ("upper", values.upper)):
            row, times, kept = by_key[f"anomaly_{metric}", label.get("instance")]
            assert times == [ms(NOW) + 60_000 * k - k for k in (1, 2, 3, 4)]
            # The nine digits that were written are what comes back.
            assert kept == expected[i].tolist()
            assert row == {
                "__name__": f"anomaly_{metric}",
                "metric": "http_requests",
                "instance": label.get("instance"),
                "mission": name,
                "exported_mission": "theirs",
                "team": "x",
            }


@pytest.mark.servers
@pytest.mark.parametrize("protocol", ["remote_write", "vm_import"])
@pytest.mark.parametrize("flags", [(DEDUP,), ()])
def test_the_newer_of_two_forecasts_is_read_at_every_step(
    start: Start, tmp_path: Path, flags: tuple[str, ...], protocol: str
) -> None:
    server = start(servers.victoria_metrics, *flags)
    watched = mission("newest")
    labels = series(2)
    with store_of(server, tmp_path, protocol=protocol) as store:
        # Falling values, for VictoriaMetrics would show the larger of two at one timestamp.
        for age, value in ((2, 300.0), (1, 200.0), (0, 100.0)):
            store.write_forecasts([(watched, forecast(labels, h=6, cutoff=NOW - age * STEP, value=value))])
        server.flush()
        grid = Grid.covering(NOW - STEP, NOW + 6 * STEP, STEP)
        read = store.read_forecasts([watched], grid)["newest"]
    assert len(read.labels) == 2
    for i in range(2):
        assert read.yhat[i].tolist() == [300.0, 200.0, *[100.0] * 6]
        assert read.upper[i].tolist() == [302.5, 202.5, *[102.5] * 6]


@pytest.mark.servers
@pytest.mark.parametrize("flags", [(DEDUP,), ()])
def test_a_complete_forecast_is_never_written_again(start: Start, tmp_path: Path, flags: tuple[str, ...]) -> None:
    server = start(servers.victoria_metrics, *flags)
    watched = mission("once")
    with store_of(server, tmp_path) as store:
        assert store.write_forecasts([(watched, forecast(series(5)))]).series == 15
        before = export(server, "{mission='once'}")
        again = store.write_forecasts([(watched, forecast(series(5), value=7.0))])
        assert again == Written(skipped=15)
        assert export(server, "{mission='once'}") == before
        # Another cutoff is another forecast.
        later = forecast(series(5), cutoff=NOW + STEP)
        assert store.write_forecasts([(watched, later)]).samples == 60


@pytest.mark.servers
def test_a_forecast_is_known_again_as_soon_as_it_can_be_read(vm_server: Server, tmp_path: Path) -> None:
    watched = mission("soon")
    with store_of(vm_server, tmp_path) as store:
        store.write_forecasts([(watched, forecast(series(2)))])
        # For ten seconds VictoriaMetrics remembers that a selector matched nothing; one that is new sees more.
        tries = (f'anomaly_pred{{mission="soon",try!="{i}"}}[1ms]' for i in itertools.count())
        wait_until(lambda: bool(store.query(next(tries), NOW + STEP - timedelta(milliseconds=1))))
        assert store.write_forecasts([(watched, forecast(series(2)))]) == Written(skipped=6)


@pytest.mark.servers
def test_a_longer_forecast_of_the_same_cutoff_never_gives_a_time_two_values(vm_server: Server, tmp_path: Path) -> None:
    watched, short, long = mission("longer"), forecast(series(2)), forecast(series(2), value=7.0, h=6)
    with store_of(vm_server, tmp_path) as store:
        store.write_forecasts([(watched, short)])
        export(vm_server, "{mission='longer'}")
        assert store.write_forecasts([(watched, long)]).samples == 2 * 2 * 3
    kept = [times for _, times, _ in export(vm_server, "{mission='longer'}")]
    assert [len(times) for times in kept] == [6] * 6
    assert all(len(set(times)) == len(times) for times in kept)


@pytest.mark.servers
def test_a_write_of_scores_that_breaks_off_is_finished_by_the_next_pass(
    vm_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first scores ever, of which a part arrives: no series may look done."""
    monkeypatch.setattr(samples, "_SAMPLES", 30)
    monkeypatch.setattr(samples, "MAX_BYTES", 600)
    watched = mission("torn")
    found = scores(series(5), Grid.ending(NOW, STEP, 12))
    with store_of(vm_server, tmp_path) as store:
        request, sent = store.client.request, 0

        def breaks_off(method: str, url: str, **options: Any) -> bytes:
            nonlocal sent
            sent += url.endswith("/write")
            if sent > 3:
                raise StoreUnavailableError("gone")
            return request(method, url, **options)

        monkeypatch.setattr(store.client, "request", breaks_off)
        with pytest.raises(StoreUnavailableError):
            store.write_scores([(watched, found)])
        monkeypatch.undo()
        export(vm_server, "{mission='torn'}")
        stored = store.read_scores([watched], found.grid)["torn"]
        assert np.isfinite(stored.y).any()
        assert not np.isfinite(stored.y[:, -1]).any()


@pytest.mark.servers
# In the second the name of a metric of ours is a part of a word.
@pytest.mark.parametrize("job", ["own-results", "chat_errors"])
def test_a_wide_selector_does_not_read_our_own_results(vm_server: Server, tmp_path: Path, job: str) -> None:
    labels = (Labels.of({"instance": "wide", "job": job}),)
    watched, found = mission("wide"), forecast(labels)
    with store_of(vm_server, tmp_path) as store:
        writing.send(store, [Samples(("a_metric",), labels, found.grid.epoch_ms(), found.yhat[:, None, :])])
        store.write_forecasts([(watched, found)])
        export(vm_server, "{mission='wide'}")
        panel = store.read(f'{{job="{job}"}}', found.grid)
        assert [row.get("__name__") for row in panel.labels] == ["a_metric"]
        assert store.read(f'anomaly_pred{{job="{job}"}}', found.grid).n_series == 1


@pytest.mark.servers
def test_a_retry_fills_only_what_lacks_the_forecast(vm_server: Server, tmp_path: Path) -> None:
    watched = mission("fill")
    labels = series(4)
    whole = forecast(labels)
    first_two = Forecast(labels[:2], whole.grid, NOW, whole.yhat[:2], whole.lower[:2], whole.upper[:2])
    with store_of(vm_server, tmp_path) as store:
        store.write_forecasts([(watched, first_two)])
        # Of the third only one metric arrived.
        [row] = watched.written_labels(labels[2:3])
        stamps = np.array([ms(NOW) + 60_000 * k - k for k in (1, 2, 3, 4)])
        part = Samples(("anomaly_pred",), [row], stamps, whole.yhat[2].reshape(1, 1, -1))
        body = next(remote_write.encode([part]))
        store.client.request("POST", store.source.write_url, content=body, headers=remote_write.HEADERS)
        vm_server.flush()
        changed = replace(whole, yhat=whole.yhat + 1000, lower=whole.lower + 1000, upper=whole.upper + 1000)
        assert store.write_forecasts([(watched, changed)]) == Written(samples=20, series=5, skipped=7)
    kept = {(row["__name__"], row["instance"]): values for row, _, values in export(vm_server, "{mission='fill'}")}
    assert kept["anomaly_lower", "host-00001"] == whole.lower[1].tolist()
    assert kept["anomaly_pred", "host-00002"] == whole.yhat[2].tolist()
    assert kept["anomaly_lower", "host-00002"] == changed.lower[2].tolist()
    assert kept["anomaly_upper", "host-00003"] == changed.upper[3].tolist()


@pytest.mark.servers
def test_points_without_a_forecast_are_left_out_and_the_rest_counts_as_complete(
    vm_server: Server, tmp_path: Path
) -> None:
    watched = mission("gaps")
    values = forecast(series(4))
    values.yhat[0] = np.nan
    values.yhat[1, 0] = np.nan
    values.lower[2, 3] = -np.inf
    with store_of(vm_server, tmp_path) as store:
        assert store.write_forecasts([(watched, values)]) == Written(samples=3 * (3 + 3 + 4), series=9)
        kept = {(row["__name__"], row["instance"]): times for row, times, _ in export(vm_server, "{mission='gaps'}")}
        assert ("anomaly_upper", "host-00000") not in kept
        assert [(at - ms(NOW)) // 59_999 for at in kept["anomaly_upper", "host-00001"]] == [2, 3, 4]
        assert [(at - ms(NOW)) // 59_999 for at in kept["anomaly_upper", "host-00002"]] == [1, 2, 3]
        assert store.write_forecasts([(watched, values)]) == Written(skipped=9)


@pytest.mark.servers
def test_series_that_would_become_one_stop_everything(vm_server: Server, tmp_path: Path) -> None:
    a = Labels.of({"__name__": "up", "instance": "a"})
    b = Labels.of({"instance": "a", "metric": "up"})
    c = Labels.of({"instance": "a", "exported_metric": "up", "__name__": "up"})
    d = Labels.of({"instance": "a", "metric": "up", "__name__": "up"})
    fine = mission("fine-by-itself")
    with store_of(vm_server, tmp_path) as store:
        assert store.write_forecasts([(mission("distinct"), forecast([a, b]))]).series == 6
        clash = forecast([c, d])
        with pytest.raises(MissionError, match="would be one series") as caught:
            store.write_forecasts([(fine, forecast([a])), (mission("clash"), clash)])
        assert 'exported_metric="up"' in caught.value.message
        with pytest.raises(MissionError, match="would be one series"):
            store.write_scores([(fine, scores([a], clash.grid)), (mission("clash"), scores([c, d], clash.grid))])
    assert export(vm_server, '{mission=~"clash|fine-by-itself"}') == []


@pytest.mark.servers
def test_as_many_labels_as_the_server_keeps_arrive_and_one_more_is_refused(vm_server: Server, tmp_path: Path) -> None:
    # `mission` and `__name__` are ours, and count.
    most = Labels.of({f"label_{i:02}": "x" for i in range(28)})
    watched = mission("labels")
    with store_of(vm_server, tmp_path) as store:
        store.write_forecasts([(watched, forecast([most]))])
        assert {len(row) for row, _, _ in export(vm_server, "{mission='labels'}")} == {30}
        for labels in (
            {**dict(most), "more": "x"},
            {"long": "x" * 5000},
            {"n" * 300: "x"},
        ):
            with pytest.raises(MissionError, match="cuts the rest off silently"):
                store.write_forecasts([(mission("more"), forecast([Labels.of(labels)]))])
    assert export(vm_server, "{mission='more'}") == []


@pytest.mark.servers
def test_a_horizon_that_the_server_would_drop_is_refused_and_one_below_arrives(
    vm_server: Server, tmp_path: Path
) -> None:
    hour = timedelta(hours=1)
    cutoff = Grid.ending(datetime.now(UTC), hour, 1).start
    far = mission("far", step="1h")
    with store_of(vm_server, tmp_path) as store:
        with pytest.raises(MissionError, match="forecasts 2d ahead") as caught:
            store.write_forecasts([(far, forecast(series(1), h=48, cutoff=cutoff, step=hour))])
        assert "1d23h" in caught.value.hint
        assert export(vm_server, "{mission='far'}") == []
        store.write_forecasts([(far, forecast(series(1), h=47, cutoff=cutoff, step=hour))])
    assert [len(times) for _, times, _ in export(vm_server, "{mission='far'}")] == [47, 47, 47]


@pytest.mark.servers
def test_samples_that_the_server_drops_with_a_204_are_an_error(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "_VISIBLE_AFTER", 2.0)
    server = start(servers.victoria_metrics, "-retentionPeriod=7d")
    long_ago = Grid.ending(datetime.now(UTC) - timedelta(days=30), STEP, 3)
    watched = mission("dropped")
    with store_of(server, tmp_path) as store:
        with pytest.raises(StoreError, match="small_timestamp") as caught:
            store.write_scores([(watched, scores(series(2), long_ago))])
        assert "retentionPeriod" in caught.value.hint
        # A rise of the counter that another writer caused is none of our business.
        recent = Grid.ending(datetime.now(UTC) - timedelta(days=3), STEP, 3)
        old = Samples(("other",), [Labels()], long_ago.epoch_ms(), np.ones((1, 1, 3)))
        body = next(remote_write.encode([old]))
        store.client.request("POST", store.source.write_url, content=body, headers=remote_write.HEADERS)
        assert store.write_scores([(watched, scores(series(2), recent))]).samples == 6


@pytest.mark.servers
def test_scores_sit_on_the_grid_and_gaps_are_not_written(vm_server: Server, tmp_path: Path) -> None:
    watched = mission("scored")
    found = scores(series(3), Grid.ending(NOW, STEP, 3), score=1.23456789)
    found.score[0, 1] = np.nan
    found.score[2] = np.nan
    with store_of(vm_server, tmp_path) as store:
        assert store.write_scores([(watched, found)]) == Written(samples=5, series=2)
        # Again is the same again.
        assert store.write_scores([(watched, found)]).samples == 5
    rows = export(vm_server, "{mission='scored'}")
    assert [row["__name__"] for row, _, _ in rows] == ["anomaly_score"] * 2
    first, second = (dict(zip(times, values, strict=True)) for _, times, values in rows)
    assert first == {ms(NOW - 2 * STEP): 1.23456789, ms(NOW): 1.23456789}
    assert list(second) == [ms(NOW - i * STEP) for i in (2, 1, 0)]


@pytest.mark.servers
def test_a_source_that_can_only_be_read_is_said_so(vm_server: Server, tmp_path: Path) -> None:
    store = PrometheusStore(Source(read=vm_server.url), state=tmp_path)
    with store, pytest.raises(UsageError, match="only be read"):
        store.write_forecasts([(mission("readonly"), forecast(series(1)))])


@pytest.mark.servers
def test_ahead_is_refused_for_a_plain_prometheus_unless_the_source_wants_it(
    prom_server: Server, tmp_path: Path
) -> None:
    wants = mission("wants-ahead", write="ahead")
    with store_of(prom_server, tmp_path) as store, pytest.raises(MissionError, match="refuse the present") as caught:
        store.write_forecasts([(wants, forecast(series(1)))])
    assert "at_detection" in caught.value.hint
    assert prom_query(prom_server, 'anomaly_pred{mission="wants-ahead"}[2h]', NOW + 60 * STEP) == []


def prom_query(server: Server, promql: str, at: datetime) -> list[dict[str, Any]]:
    query = urlencode({"query": promql, "time": f"{ms(at) / 1000:.3f}"})
    result: list[dict[str, Any]] = json.loads(servers.fetch(f"{server.url}/api/v1/query?{query}"))["data"]["result"]
    return result


@pytest.mark.servers
def test_a_prometheus_gets_the_forecast_beside_the_score_and_other_metrics_keep_flowing(
    start: Start, tmp_path: Path
) -> None:
    server = start(servers.prometheus)
    watched = mission("beside")
    labels = series(3)
    state = tmp_path / "state"
    with store_of(server, state) as store:

        def others(at: datetime) -> None:
            """What flows into that Prometheus anyhow."""
            block = Samples(("node_load1",), [Labels.of({"instance": "z"})], np.array([ms(at)]), np.ones((1, 1, 1)))
            body = next(remote_write.encode([block]))
            store.client.request("POST", store.source.write_url, content=body, headers=remote_write.HEADERS)

        others(NOW - 5 * STEP)
        kept = store.write_forecasts([(watched, forecast(labels, h=10, cutoff=NOW - 5 * STEP))])
        assert kept.series == 9
        assert prom_query(server, '{mission="beside"}[1d]', NOW + timedelta(hours=1)) == []
        assert list((state / "beside").glob("*.parquet"))
        for age in (4, 3):
            grid = Grid.ending(NOW - age * STEP, STEP, 1)
            written = store.write_scores([(watched, scores(labels, grid))])
            assert written == Written(samples=12, series=12)
            others(NOW - age * STEP)
        # A longer window, of which two points are stored.
        grid = Grid.ending(NOW - STEP, STEP, 4)
        assert store.write_scores([(watched, scores(labels, grid, score=0.5))]).samples == 2 * 12
        assert store.write_scores([(watched, scores(labels, grid, score=0.75))]) == Written(skipped=12)
        # A detection that was late meets what the next one wrote.
        more = series(1, job="late")
        assert store.write_scores([(watched, scores(more, grid[3:]))]).samples == 4
        assert store.write_scores([(watched, scores(more, grid[:2]))]) == Written(skipped=4)
        others(NOW)
    for metric, expected in (("score", [0.25, 0.25, 0.5, 0.5]), ("pred", [10.0] * 4), ("upper", [14.0] * 4)):
        rows = prom_query(server, f'anomaly_{metric}{{mission="beside"}}[1d]', NOW)
        rows = [row for row in rows if "job" not in row["metric"]]
        assert len(rows) == 3
        assert all([float(value) for _, value in row["values"]] == expected for row in rows)
        assert all([at * 1000 for at, _ in row["values"]] == [ms(NOW - i * STEP) for i in (4, 3, 2, 1)] for row in rows)
    assert len(prom_query(server, "node_load1[1d]", NOW)[0]["values"]) == 4


@pytest.mark.servers
def test_a_prometheus_that_takes_late_samples_can_be_written_ahead(start: Start, tmp_path: Path) -> None:
    config = "storage: {tsdb: {out_of_order_time_window: 1d}}\n"
    server = start(lambda folder: servers.prometheus(folder, config=config))
    watched = mission("late")
    with store_of(server, tmp_path, write_mode=WriteMode.AHEAD) as store:
        # A window of a Prometheus 2 holds its start too, and there lies what the cutoff before wrote for the same time.
        for age, h, value in ((2, 8, 300.0), (1, 6, 200.0), (0, 4, 100.0)):
            values = forecast(series(2), h=h, cutoff=NOW - age * STEP, value=value)
            assert store.write_forecasts([(watched, values)]) == Written(samples=6 * h, series=6)
            assert store.write_forecasts([(watched, values)]) == Written(skipped=6)
        read = store.read_forecasts([watched], Grid.covering(NOW - STEP, NOW + 6 * STEP, STEP))["late"]
    assert read.yhat.tolist() == [[300.0, 200.0, *[100.0] * 4, 200.0, 300.0]] * 2


@pytest.mark.servers
def test_what_prometheus_refuses_is_explained(start: Start, tmp_path: Path) -> None:
    server = start(servers.prometheus)
    watched = mission("refused", write="ahead")
    with store_of(server, tmp_path, write_mode=WriteMode.AHEAD) as store:
        store.write_scores([(watched, scores(series(1), Grid.ending(NOW, STEP, 1)))])
        with pytest.raises(StoreError, match="nothing of this request was stored") as caught:
            store.write_scores([(watched, scores(series(1), Grid.ending(NOW - STEP, STEP, 1)))])
        assert "another process" in caught.value.hint
        with pytest.raises(StoreError, match="nothing of this request was stored") as caught:
            store.write_scores([(watched, scores(series(2), Grid.ending(NOW - timedelta(days=2), STEP, 1)))])
        assert "out_of_order_time_window" in caught.value.hint
    wrong = PrometheusStore(Source(url=server.url, write=server.url + "/nowhere/write"), state=tmp_path)
    with wrong, pytest.raises(StoreError, match=r"404|405") as caught:
        wrong.write_scores([(watched, scores(series(1), Grid.ending(NOW + STEP, STEP, 1)))])
    assert "--web.enable-remote-write-receiver" in caught.value.hint


@pytest.mark.servers
def test_through_a_relay_that_adds_a_label_a_forecast_is_still_known(start: Start, tmp_path: Path) -> None:
    server = start(servers.victoria_metrics, DEDUP)
    relay = start(lambda folder: servers.vmagent(folder, f"{server.url}/api/v1/write", "-remoteWrite.label=cluster=x"))
    source = Source(
        read=server.url, write=relay.url, ignore_labels=("cluster",), headers={"X-Scope-OrgID": SecretStr("1")}
    )
    watched = mission("relayed")
    with PrometheusStore(source, state=tmp_path) as store:
        store.write_forecasts([(watched, forecast(series(3)))])
        wait_until(lambda: len(export(server, "{mission='relayed'}")) == 9)
        assert {row["cluster"] for row, _, _ in export(server, "{mission='relayed'}")} == {"x"}
        assert store.write_forecasts([(watched, forecast(series(3)))]) == Written(skipped=9)
        assert store.read_forecasts([watched], Grid(NOW, STEP, 4))["relayed"].labels == watched.written_labels(
            series(3)
        )


def wait_until(holds: Callable[[], bool], seconds: float = 15) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.05)


def write_slowly(url: str, protocol: str, state: str) -> None:
    """What is killed in the middle: many small requests, each announced on stdout once it is done."""
    samples.MAX_BYTES = 6000
    with PrometheusStore(Source(url=url, protocol=protocol), state=Path(state)) as store:  # type: ignore[arg-type]
        send = store.client.request

        def slow(*args: Any, **kwargs: Any) -> bytes:
            answer = send(*args, **kwargs)
            if "content" in kwargs:
                print("sent", flush=True)
            return answer

        store.client.request = slow  # type: ignore[method-assign]
        store.write_forecasts([(mission("killed"), forecast(series(2000)))])


@pytest.mark.servers
@pytest.mark.parametrize("protocol", ["remote_write", "vm_import"])
def test_a_rerun_after_a_kill_in_the_middle_of_a_write_equals_a_clean_run(
    start: Start, tmp_path: Path, protocol: str
) -> None:
    broken, clean = start(servers.victoria_metrics, DEDUP), start(servers.victoria_metrics, DEDUP)
    program = f"""
from datetime import datetime
from tests.stores import test_writing
test_writing.NOW = datetime.fromisoformat({NOW.isoformat()!r})
test_writing.forecast.__kwdefaults__["cutoff"] = test_writing.NOW
test_writing.write_slowly({broken.url!r}, {protocol!r}, {str(tmp_path)!r})
"""
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        for _ in range(5):
            assert child.stdout.readline() == b"sent\n"
        child.kill()
    assert child.returncode == -9
    arrived = len(export(broken, "{mission='killed'}"))
    assert 0 < arrived < 6000
    with store_of(broken, tmp_path, protocol=protocol) as store:
        written = store.write_forecasts([(mission("killed"), forecast(series(2000)))])
    assert written == Written(samples=4 * (6000 - arrived), series=6000 - arrived, skipped=arrived)
    with store_of(clean, tmp_path, protocol=protocol) as store:
        store.write_forecasts([(mission("killed"), forecast(series(2000)))])
    expected = export(clean, "{mission='killed'}")
    assert len(expected) == 6000
    assert export(broken, "{mission='killed'}") == expected
