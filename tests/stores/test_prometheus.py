from __future__ import annotations

import itertools
import json
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import httpx
import numpy as np
import pytest

from anomaly_times.durations import EPOCH
from anomaly_times.errors import QueryError, StoreAuthError, StoreError, StoreUnavailableError
from anomaly_times.mission import Mission
from anomaly_times.panel import Forecast, Grid, Labels
from anomaly_times.settings import Source, WriteMode
from anomaly_times.stores import http, open_store, prometheus, remote_write
from anomaly_times.stores.http import HttpClient, RefusedError
from anomaly_times.stores.prometheus import PrometheusStore
from anomaly_times.stores.promql import TooManySeriesError
from anomaly_times.stores.samples import Samples
from anomaly_times.stores.state import ForecastFiles
from tests import servers
from tests.servers import Server, free_port

MINUTE = timedelta(minutes=1)
MS = timedelta(milliseconds=1)
NOW = Grid.ending(datetime.now(UTC), MINUTE, 1).start
RECENT = Grid.ending(NOW, MINUTE, 20)
serial = itertools.count()
nan = np.nan


@pytest.fixture(params=["vm_server", "prom_server"])
def server(request: pytest.FixtureRequest) -> Server:
    found: Server = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def metric() -> str:
    """A metric that no other test has written."""
    return f"reading_{next(serial)}_{id(object())}"


def store_of(server: Server, state: Path, **settings: Any) -> PrometheusStore:
    store = open_store(Source(url=server.url, **settings), state=state)
    assert isinstance(store, PrometheusStore)
    return store


def load(server: Server, metric: str, rows: dict[str, dict[datetime, float]], **labels: str) -> None:
    """Samples by the value of the label `i`, over Remote Write."""
    with HttpClient(Source(url=server.url)) as client:
        for value, samples in rows.items():
            times = np.array([(at - EPOCH) // MS for at in samples], dtype=np.int64)
            block = Samples(
                (metric,), [Labels.of({"i": value, **labels})], times, np.array([[list(samples.values())]], dtype=float)
            )
            for body in remote_write.encode([block]):
                client.request("POST", server.url + "/api/v1/write", content=body, headers=remote_write.HEADERS)
    if server.name == "victoria-metrics":
        server.flush()


def at(i: int) -> datetime:
    return RECENT.start + i * MINUTE


def mission(name: str, **fields: Any) -> Mission:
    return Mission(name=name, promql="up", **fields)


def mock_store(
    answer: Callable[[str, dict[str, list[str]]], httpx.Response | dict[str, Any]], state: Path, **settings: Any
) -> PrometheusStore:
    """A store whose server is `answer(path, form)`: a response, or the `data` of a good one."""

    def respond(request: httpx.Request) -> httpx.Response:
        given = answer(request.url.path, parse_qs(request.content.decode()))
        if isinstance(given, dict):
            given = httpx.Response(200, json={"status": "success", "data": given})
        return httpx.Response(given.status_code, headers=given.headers, stream=httpx.ByteStream(given.content))

    source = Source.model_validate({"url": "http://metrics.example", **settings})
    return PrometheusStore(source, state=state, client=HttpClient(source, transport=httpx.MockTransport(respond)))


def no_victoria(path: str, form: dict[str, list[str]]) -> httpx.Response | None:
    """Prometheus' answer to the question whether it is VictoriaMetrics."""
    if "range_last" in form.get("query", [""])[0]:
        return httpx.Response(400, json={"status": "error", "error": 'unknown function with name "range_last"'})
    return None


@pytest.mark.servers
def test_series_come_sorted_on_the_grid_with_gaps(server: Server, metric: str, tmp_path: Path) -> None:
    load(server, metric, {"b": {at(3): 1.5, at(4): -2.0}, "a": {at(0): 0.001, at(19): 123456789.0}}, job="x")
    with store_of(server, tmp_path) as store:
        panel = store.read(f"last_over_time({metric}[59999ms])", RECENT)
    assert [str(row) for row in panel.labels] == [f'{{__name__="{metric}",i="{i}",job="x"}}' for i in "ab"]
    expected = np.full((2, 20), nan)
    expected[0, [0, 19]] = 0.001, 123456789.0
    expected[1, [3, 4]] = 1.5, -2.0
    np.testing.assert_array_equal(panel.y, expected)
    assert panel.grid == RECENT


@pytest.mark.servers
def test_a_window_one_millisecond_short_of_a_step_belongs_to_its_time_alone(
    server: Server, metric: str, tmp_path: Path
) -> None:
    load(server, metric, {"a": {at(2): 1.0, at(3) - 59_998 * MS: 2.0, at(5) - MS: 3.0}})
    with store_of(server, tmp_path) as store:
        panel = store.read(f"last_over_time({metric}[59999ms])", RECENT[:7])
    np.testing.assert_array_equal(panel.y, [[nan, nan, 1, 2, nan, 3, nan]])


@pytest.mark.servers
def test_infinities_are_gaps(server: Server, metric: str, tmp_path: Path) -> None:
    load(server, metric, {"a": {at(i): float(i % 2) for i in range(20)}})
    with store_of(server, tmp_path) as store:
        panel = store.read(f"1 / {metric}", RECENT)
    np.testing.assert_array_equal(panel.y, [[nan, 1] * 10])


@pytest.mark.servers
def test_a_long_range_read_in_pieces_is_the_same(
    server: Server, metric: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One series ends before the newest piece, which tells how many there are; one is there in the middle only.
    rows = {"new": range(20), "old": range(5), "mid": range(7, 9)}
    load(server, metric, {name: {at(i): float(i) for i in steps} for name, steps in rows.items()})
    query = f"last_over_time({metric}[59999ms])"
    with store_of(server, tmp_path) as store:
        whole = store.read(query, RECENT)
        monkeypatch.setattr(prometheus, "_MOST_POINTS", 6)
        pieces = store.read(query, RECENT, max_series=3)
    assert whole.labels == pieces.labels
    assert len(whole.labels) == 3
    np.testing.assert_array_equal(whole.y, pieces.y)


def test_pieces_cover_every_time_once_and_keep_to_the_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    def answer(path: str, form: dict[str, list[str]]) -> httpx.Response | dict[str, Any]:
        if refusal := no_victoria(path, form):
            return refusal
        start, end = (int(float(form[name][0])) for name in ("start", "end"))
        asked.append((start, end))
        values = [[t, str(t)] for t in range(start, end + 1, 60)]
        return {"resultType": "matrix", "result": [{"metric": {"i": str(i)}, "values": values} for i in range(3)]}

    monkeypatch.setattr(prometheus, "_MOST_POINTS", 60_000)
    grid = Grid(EPOCH + 1_000_000 * MINUTE, MINUTE, 45_000)
    panel = mock_store(answer, tmp_path).read("up", grid, max_series=100)
    assert (panel.y == grid.epoch_ms() / 1000).all()
    sizes = [(end - start) // 60 + 1 for start, end in sorted(asked)]
    assert sum(sizes) == 45_000
    assert max(sizes) <= 11_000
    assert len(sizes) == 6
    asked.clear()
    monkeypatch.setattr(prometheus, "_MOST_POINTS", 30_000)
    mock_store(answer, tmp_path).read("up", grid, max_series=100)
    assert max(end - start for start, end in asked) // 60 + 1 == 10_000


def test_a_piece_that_fails_fails_the_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_FIRST_PAUSE", 0.001)

    def answer(path: str, form: dict[str, list[str]]) -> httpx.Response | dict[str, Any]:
        if refusal := no_victoria(path, form):
            return refusal
        start, end = (int(float(form[name][0])) for name in ("start", "end"))
        if start == 0:
            return httpx.Response(503, text="too busy")
        return {"resultType": "matrix", "result": [{"metric": {}, "values": [[end, "1"]]}]}

    with pytest.raises(StoreUnavailableError, match="too busy"):
        mock_store(answer, tmp_path).read("up", Grid(EPOCH, MINUTE, 30_000))


@pytest.mark.servers
def test_too_many_series_are_counted_and_refused(server: Server, metric: str, tmp_path: Path) -> None:
    load(server, metric, {str(i): {at(19): 1.0} for i in range(12)})
    with store_of(server, tmp_path) as store:
        assert store.read(metric, RECENT, max_series=12).n_series == 12
        with pytest.raises(QueryError, match="answers 12 or more series, and 11 are allowed") as caught:
            store.read(metric, RECENT, max_series=11)
    assert "max_series" in caught.value.hint


def test_an_answer_of_far_too_many_series_is_not_taken_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prometheus, "_BYTES_ANYWAY", 1000)
    rows = [{"metric": {"i": str(i)}, "values": [[0, "1"]]} for i in range(1000)]

    def answer(path: str, form: dict[str, list[str]]) -> httpx.Response | dict[str, Any]:
        return no_victoria(path, form) or {"resultType": "matrix", "result": rows}

    with pytest.raises(QueryError, match="far more than 3 series"):
        mock_store(answer, tmp_path).read("up", Grid(EPOCH, MINUTE, 1), max_series=3)


@pytest.mark.servers
def test_a_query_without_series_names_the_selector_that_matches_nothing(
    server: Server, metric: str, tmp_path: Path
) -> None:
    load(server, metric, {"a": {at(i): 1.0 for i in range(20)}})
    with store_of(server, tmp_path) as store:
        with pytest.raises(QueryError, match="no series matches absent_metric between") as caught:
            store.read(f"rate({metric}[5m]) / absent_metric", RECENT)
        assert metric not in caught.value.message
        with pytest.raises(QueryError, match=f'{metric}{{i="b"}}'):
            store.read(f'{metric}{{i="b"}}', RECENT)
        with pytest.raises(QueryError, match="its selectors match series, and yet the query answers nothing"):
            store.read(f"{metric} > 5", RECENT)


@pytest.mark.servers
@pytest.mark.parametrize(
    ("promql", "marked", "words"),
    [
        ("sum(\n  up +* b)", ("*", "* b)"), "unexpected"),
        ("sum(up))", (")",), "parse"),
        ("unheard_of(up)", ("unheard_of(up)",), "unknown func"),
    ],
)
def test_a_refused_query_shows_the_servers_words_and_the_place(
    server: Server, tmp_path: Path, promql: str, marked: Sequence[str], words: str
) -> None:
    with store_of(server, tmp_path) as store, pytest.raises(QueryError, match="refuses the query") as caught:
        store.read(promql, RECENT)
    first, line, caret = caught.value.message.split("\n")
    assert words in first or "unexpected right parenthesis" in first
    # Prometheus 2.42 sets the position behind a superfluous parenthesis.
    assert line[caret.index("^") :] in (*marked, "")


@pytest.mark.servers
def test_metricsql_works_where_it_is_understood(
    vm_server: Server, prom_server: Server, metric: str, tmp_path: Path
) -> None:
    load(vm_server, metric, {"a": {at(i): float(i) for i in range(20)}})
    with store_of(vm_server, tmp_path) as store:
        assert (store.read(f"range_last({metric})", RECENT).y == 19).all()
    with store_of(prom_server, tmp_path) as store, pytest.raises(QueryError) as caught:
        store.read(f"range_last({metric})", RECENT)
    assert "unknown function" in caught.value.hint


@pytest.mark.parametrize("promql", ["1 + 1", "up[5m]", "'x'"])
def test_what_is_no_vector_is_refused_before_the_server_is_asked(tmp_path: Path, promql: str) -> None:
    with pytest.raises(QueryError):
        mock_store(lambda *_: pytest.fail("asked"), tmp_path).read(promql, RECENT)


def test_a_server_that_is_away_is_no_bad_query(tmp_path: Path) -> None:
    store = PrometheusStore(Source(url=f"http://127.0.0.1:{free_port()}"), state=tmp_path)
    with pytest.raises(StoreUnavailableError, match="cannot be reached"):
        store.read("up", RECENT)


def test_a_wrong_base_url_is_named(tmp_path: Path) -> None:
    store = mock_store(lambda *_: httpx.Response(404, text="404 page not found"), tmp_path)
    with pytest.raises(StoreError, match="404 page not found") as caught:
        store.read("up", RECENT)
    assert "/select/0/prometheus" in caught.value.hint


def test_series_with_equal_labels_are_an_error(tmp_path: Path) -> None:
    twice = [{"metric": {"a": "b"}, "values": [[0, str(i)]]} for i in range(2)]

    def answer(path: str, form: dict[str, list[str]]) -> httpx.Response | dict[str, Any]:
        return no_victoria(path, form) or {"resultType": "matrix", "result": twice}

    with pytest.raises(QueryError, match=r'two series with equal labels: \{a="b"\}'):
        mock_store(answer, tmp_path).read("up", Grid(EPOCH, MINUTE, 1))


def test_nothing_is_asked_for_an_empty_grid(tmp_path: Path) -> None:
    panel = mock_store(lambda *_: pytest.fail("asked"), tmp_path).read("up", Grid(EPOCH, MINUTE, 0))
    assert panel.n_series == 0


def test_a_cluster_url_keeps_its_path_and_settings_go_into_the_query(tmp_path: Path) -> None:
    seen: list[tuple[str, dict[str, list[str]]]] = []

    def answer(path: str, form: dict[str, list[str]]) -> dict[str, Any]:
        seen.append((path, form))
        if path.endswith("/query"):
            return {"resultType": "vector", "result": [{"metric": {}, "value": [0, "1"]}]}
        return {"resultType": "matrix", "result": [{"metric": {}, "values": [[0, "1"]]}]}

    store = mock_store(
        answer,
        tmp_path,
        url="http://vmselect:8481/select/0/prometheus",
        extra_labels={"tenant": "a"},
        extra_filters=('{env="prod"}', '{env="test"}'),
    )
    store.read("up", Grid(EPOCH, timedelta(milliseconds=1500), 1))
    assert [path for path, _ in seen] == [f"/select/0/prometheus/api/v1/{name}" for name in ("query", "query_range")]
    form = seen[1][1]
    assert form["extra_label"] == ["tenant=a"]
    assert form["extra_filters[]"] == ['{env="prod"}', '{env="test"}']
    assert (form["start"], form["end"], form["step"], form["nocache"]) == (["0.000"], ["0.000"], ["1.500"], ["1"])


@pytest.mark.servers
def test_extra_labels_and_filters_narrow_what_is_read(vm_server: Server, metric: str, tmp_path: Path) -> None:
    load(vm_server, metric, {"a": {at(19): 1.0}, "b": {at(19): 2.0}, "c": {at(19): 3.0}})
    for settings, found in (
        ({"extra_labels": {"i": "b"}}, ["b"]),
        ({"extra_filters": ('{i=~"a|c"}',)}, ["a", "c"]),
    ):
        with store_of(vm_server, tmp_path, **settings) as store:
            assert [row.get("i") for row in store.read(metric, RECENT).labels] == found


@pytest.mark.servers
def test_wrong_credentials_are_said_to_be_wrong(start: Callable[..., Server], tmp_path: Path) -> None:
    guarded = start(servers.victoria_metrics, "-httpAuth.username=u", "-httpAuth.password=p")
    with store_of(guarded, tmp_path, username="u", password="wrong") as store, pytest.raises(StoreAuthError):
        store.read("up", RECENT)
    with store_of(guarded, tmp_path, username="u", password="p") as store:
        assert store.is_victoria_metrics


@pytest.mark.servers
def test_the_newest_samples_are_read_as_they_are(server: Server, metric: str, tmp_path: Path) -> None:
    """VictoriaMetrics repeats an old value for the last 30 s of a range that ends about now."""
    step = timedelta(seconds=10)
    grid = Grid.ending(datetime.now(UTC), step, 7)
    load(server, metric, {"a": {at: float(i) for i, at in enumerate(grid.start + k * step for k in range(7))}})
    with store_of(server, tmp_path) as store:
        panel = store.read(metric, grid)
        assert store.query(metric, grid.end)[0][1][0][1] == 6
    assert panel.grid == grid
    np.testing.assert_array_equal(panel.y, [np.arange(7)])


@pytest.mark.servers
def test_an_instant_query_gives_raw_samples(server: Server, metric: str, tmp_path: Path) -> None:
    load(server, metric, {"a": {at(3) - 2 * MS: 1.5, at(3): 2.5}})
    with store_of(server, tmp_path) as store:
        [(labels, samples)] = store.query(f"{metric}[1m]", at(3))
        [(_, newest)] = store.query(metric, at(3))
        assert store.query("absent_metric", at(3)) == []
        assert store.query_range("absent_metric", RECENT)[0] == []
    ms = (at(3) - EPOCH) // MS
    assert (labels.get("__name__"), samples) == (metric, [(ms - 2, 1.5), (ms, 2.5)])
    assert newest == [(ms, 2.5)]


@pytest.mark.servers
def test_victoria_metrics_is_told_from_others(vm_server: Server, prom_server: Server, tmp_path: Path) -> None:
    auto, ahead, later = (mission("m", write=mode) for mode in ("auto", "ahead", "at_detection"))
    for server, is_victoria in ((vm_server, True), (prom_server, False)):
        with store_of(server, tmp_path) as store:
            assert store.is_victoria_metrics is is_victoria
            assert [store.writes_ahead(m) for m in (auto, ahead, later)] == [is_victoria, True, False]
        with store_of(server, tmp_path, write_mode=WriteMode.AT_DETECTION) as store:
            assert [store.writes_ahead(m) for m in (auto, ahead, later)] == [False, True, False]


def test_a_fixed_write_mode_asks_no_server(tmp_path: Path) -> None:
    store = mock_store(lambda *_: pytest.fail("asked"), tmp_path, write_mode="ahead")
    assert store.writes_ahead(mission("m"))


def write_forecast(
    server: Server, name: str, cutoff: datetime, values: dict[str, list[float]], h: int, **labels: str
) -> None:
    """A forecast by the rule of DESIGN: `k` steps after the cutoff, `k` ms early; `nan` is left out."""
    for metric, numbers in values.items():
        samples = {
            cutoff + k * MINUTE - k * MS: value
            for k, value in zip(range(1, h + 1), numbers, strict=True)
            if value == value
        }
        load(server, metric, {"a": samples}, mission=name, **labels)


@pytest.mark.servers
def test_forecasts_from_before_since_do_not_count(vm_server: Server, tmp_path: Path) -> None:
    band = ("anomaly_pred", "anomaly_lower", "anomaly_upper")
    for name in ("changed", "steady", "renewed"):
        write_forecast(vm_server, f"since-{name}", at(0), {key: [6.0, 5.0, 4.0, 3.0, 2.0, 1.0] for key in band}, 6)
    write_forecast(vm_server, "since-renewed", at(2), {key: [40.0, 30.0] for key in band}, 2)
    missions = [mission(f"since-{name}") for name in ("changed", "steady", "renewed")]
    changed, steady, renewed = (each.name for each in missions)
    with store_of(vm_server, tmp_path) as store:
        found = store.read_forecasts(missions, RECENT[1:7], since={changed: at(1), renewed: at(2)})
        assert set(found) == {steady, renewed}
        assert found[steady].yhat.tolist() == [[6, 5, 4, 3, 2, 1]]
        np.testing.assert_array_equal(found[renewed].yhat, [[nan, nan, 40, 30, nan, nan]])
        assert set(store.read_forecasts(missions, RECENT[1:7], since={changed: at(0)})) == {changed, steady, renewed}


@pytest.mark.servers
def test_the_freshest_forecast_wins_and_a_half_one_is_none(start: Callable[..., Server], tmp_path: Path) -> None:
    vm = start(servers.victoria_metrics, "-dedup.minScrapeInterval=1ms")
    old = {name: [9.0, 8.0, 7.0, 6.0, 5.0, 4.0] for name in ("anomaly_pred", "anomaly_lower", "anomaly_upper")}
    new = {"anomaly_pred": [3.0, 2.0, 1.0], "anomaly_lower": [2.0, 1.0, 0.0], "anomaly_upper": [4.0, 3.0, 2.0]}
    write_forecast(vm, "one", at(0), old, 6)
    write_forecast(vm, "one", at(2), new, 3)
    write_forecast(vm, "two", at(0), {**new, "anomaly_upper": [4.0, nan, 2.0]}, 3, cluster="added")
    write_forecast(vm, "half", at(0), {"anomaly_pred": [1.0], "anomaly_lower": [0.0]}, 1)
    missions = [mission(name) for name in ("one", "two", "half", "none")]
    with store_of(vm, tmp_path, ignore_labels=("cluster",)) as store:
        found = store.read_forecasts(missions, RECENT[:8])
        assert set(found) == {"one", "two", "half"}
        assert set(store.read_forecasts([missions[1]], RECENT[:8])) == {"two"}
        assert store.read_forecasts(missions, RECENT[:0]) == {}
    one, two = found["one"], found["two"]
    assert one.labels == (Labels.of({"i": "a", "mission": "one"}),)
    assert one.cutoff is None
    np.testing.assert_array_equal(one.yhat, [[nan, 9, 8, 3, 2, 1, 4, nan]])
    np.testing.assert_array_equal(one.lower, [[nan, 9, 8, 2, 1, 0, 4, nan]])
    np.testing.assert_array_equal(one.upper, [[nan, 9, 8, 4, 3, 2, 4, nan]])
    assert two.labels == (Labels.of({"i": "a", "mission": "two"}),)
    for part in (two.yhat, two.lower, two.upper):
        np.testing.assert_array_equal(np.isfinite(part[0]), [False, True, False, True, False, False, False, False])
    assert np.isnan(found["half"].yhat).all()


@pytest.mark.servers
def test_forecasts_of_the_future_are_read(start: Callable[..., Server], tmp_path: Path) -> None:
    vm = start(servers.victoria_metrics)
    step = timedelta(seconds=10)
    ahead = Grid.ending(datetime.now(UTC), step, 1).following(5)
    for metric in ("anomaly_pred", "anomaly_lower", "anomaly_upper"):
        load(vm, metric, {"a": {ahead.start + k * step - (k + 1) * MS: float(k) for k in range(5)}}, mission="m")
    with store_of(vm, tmp_path) as store:
        found = store.read_forecasts([mission("m", step="10s")], ahead)
    np.testing.assert_array_equal(found["m"].yhat, [np.arange(5)])


@pytest.mark.servers
def test_scores_are_read_back_by_mission(server: Server, tmp_path: Path) -> None:
    names = [f"scored-{server.name}-{i}" for i in range(3)]
    for i, name in enumerate(names[:2]):
        load(server, "anomaly_score", {"a": {at(3): 0.5 + i, at(5): 2.0}, "b": {at(4): 1.0}}, mission=name)
    with store_of(server, tmp_path) as store:
        found = store.read_scores([mission(name) for name in names], RECENT[3:6])
    assert set(found) == set(names[:2])
    for i, name in enumerate(names[:2]):
        assert found[name].labels == tuple(Labels.of({"i": row, "mission": name}) for row in "ab")
        np.testing.assert_array_equal(found[name].y, [[0.5 + i, nan, 2], [nan, 1, nan]])


def test_many_missions_are_asked_for_in_bearable_queries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prometheus, "_LONGEST_SELECTOR", 20)
    asked: list[str] = []

    def answer(path: str, form: dict[str, list[str]]) -> httpx.Response | dict[str, Any]:
        if refusal := no_victoria(path, form):
            return refusal
        asked.append(form["query"][0].partition('mission=~"')[2].partition('"')[0])
        rows = [
            {"metric": {"__name__": "anomaly_score", "mission": name}, "values": [[0, "1"]]}
            for name in asked[-1].split("|")
        ]
        return {"resultType": "matrix", "result": rows}

    missions = [mission(f"m-{i}") for i in range(12)]
    found = mock_store(answer, tmp_path).read_scores(missions, Grid(EPOCH, MINUTE, 1))
    assert sorted(found) == sorted(m.name for m in missions)
    assert all(panel.y == [[1]] for panel in found.values())
    assert "|".join(asked) == "|".join(m.name for m in missions)
    assert len(asked) == 3


def test_results_in_any_order_find_their_series_minute_after_minute(tmp_path: Path) -> None:
    minute = 0

    def answer(path: str, form: dict[str, list[str]]) -> httpx.Response | dict[str, Any]:
        if refusal := no_victoria(path, form):
            return refusal
        hosts = ["a", "b", "c"][: 2 + minute % 2]
        rows = [
            {
                "metric": {"__name__": metric, "mission": name, "host": host},
                "values": [[60 * minute, f"{10 * i + ord(host)}{name[-1]}"]],
            }
            for i, metric in enumerate(("anomaly_pred", "anomaly_lower", "anomaly_upper"))
            for name in ("m-1", "m-2")
            for host in hosts
        ]
        random.Random(minute).shuffle(rows)
        return {"resultType": "matrix", "result": rows}

    missions = [mission("m-1", write="ahead"), mission("m-2", write="ahead")]
    with mock_store(answer, tmp_path) as store:
        for minute in range(6):
            found = store.read_forecasts(missions, Grid(EPOCH + minute * MINUTE, MINUTE, 1))
            hosts = ["a", "b", "c"][: 2 + minute % 2]
            for name in ("m-1", "m-2"):
                assert [row.get("host") for row in found[name].labels] == hosts
                assert found[name].upper[:, 0].tolist() == [float(f"{20 + ord(host)}{name[-1]}") for host in hosts]


def test_two_relays_of_one_result_are_one_series(tmp_path: Path) -> None:
    rows = [
        {"metric": {"__name__": "anomaly_score", "mission": "m", "relay": "1"}, "values": [[0, "1"]]},
        {"metric": {"__name__": "anomaly_score", "mission": "m", "relay": "2"}, "values": [[0, "1"], [60, "2"]]},
    ]

    def answer(path: str, form: dict[str, list[str]]) -> httpx.Response | dict[str, Any]:
        return no_victoria(path, form) or {"resultType": "matrix", "result": rows}

    store = mock_store(answer, tmp_path, ignore_labels=("relay",))
    panel = store.read_scores([mission("m")], Grid(EPOCH, MINUTE, 2))["m"]
    assert panel.labels == (Labels.of({"mission": "m"}),)
    np.testing.assert_array_equal(panel.y, [[1, 2]])


def test_forecasts_that_wait_for_their_time_come_from_the_folder(tmp_path: Path) -> None:
    waiting = mission("m", write="at_detection")
    grid = RECENT.last(2)
    ones = np.ones((1, 2))
    labels = (Labels.of({"__name__": "up", "i": "a"}),)
    forecast = Forecast(labels, grid, grid.start - MINUTE, ones * 2, ones, ones * 3)
    ForecastFiles(tmp_path).write(waiting, forecast)
    found = mock_store(lambda *_: pytest.fail("asked"), tmp_path).read_forecasts([waiting], grid)
    assert found["m"].labels == waiting.written_labels(labels)
    np.testing.assert_array_equal(found["m"].yhat, [[2, 2]])


def test_a_server_that_refuses_otherwise_is_no_bad_query(tmp_path: Path) -> None:
    def answer(path: str, form: dict[str, list[str]]) -> httpx.Response:
        return no_victoria(path, form) or httpx.Response(413, text="too large")

    with pytest.raises(RefusedError, match="413: too large"):
        mock_store(answer, tmp_path).read("up", RECENT)


def test_a_query_that_takes_too_long_is_no_bad_query(tmp_path: Path) -> None:
    words = 'error when executing query="up" on the time range (start=1): timeout exceeded during the query'

    def answer(path: str, form: dict[str, list[str]]) -> httpx.Response:
        return no_victoria(path, form) or httpx.Response(422, json={"status": "error", "error": words})

    with pytest.raises(StoreUnavailableError, match=r"example: timeout exceeded during the query"):
        mock_store(answer, tmp_path).read("up", RECENT)


def test_no_answer_holds_a_secret(tmp_path: Path) -> None:
    secret = "s3cret-token"
    store = mock_store(lambda *_: httpx.Response(500, text="oops"), tmp_path, bearer_token=secret, timeout="50ms")
    with pytest.raises(StoreError) as caught:
        store.read("up", RECENT)
    assert secret not in json.dumps([str(caught.value), repr(store), repr(store.client), caught.value.hint])


@pytest.mark.servers
def test_values_of_a_label_are_those_of_matching_series(server: Server, metric: str, tmp_path: Path) -> None:
    load(server, metric, {"a": {at(3): 1.0}, "b": {at(3): 1.0}}, job="x")
    with store_of(server, tmp_path) as store:
        start, end = RECENT.start, RECENT.end
        assert store.label_values("i", start, end, match=metric) == ["a", "b"]
        assert store.label_values("i", start, end, match=f'{metric}{{i!="a"}}') == ["b"]
        assert store.label_values("__name__", start, end, match=f'{metric}{{i="c"}}') == []
        assert metric in store.metric_names(start, end)
        # Nothing scraped it, so nobody knows.
        assert store.metric_type(metric) == ""


@pytest.mark.servers
def test_too_many_series_is_an_error_of_its_own(server: Server, metric: str, tmp_path: Path) -> None:
    load(server, metric, {"a": {at(3): 1.0}, "b": {at(3): 1.0}})
    with store_of(server, tmp_path) as store, pytest.raises(TooManySeriesError, match="2 or more series"):
        store.read(metric, RECENT, max_series=1)


def test_a_source_is_asked_no_more_at_once_than_it_says(tmp_path: Path) -> None:
    at_work, most, asked = 0, 0, 0
    lock = threading.Lock()

    class Slow(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            nonlocal at_work, most, asked
            self.rfile.read(int(self.headers["Content-Length"]))
            with lock:
                at_work, asked = at_work + 1, asked + 1
                most = max(most, at_work)
            time.sleep(0.05)
            with lock:
                at_work -= 1
            result = [{"metric": {"i": "a"}, "values": [[RECENT.start.timestamp(), "1"]]}]
            kind = "matrix" if "query_range" in self.path else "vector"
            body = json.dumps(
                {"status": "success", "data": {"resultType": kind, "result": result if kind == "matrix" else []}}
            )
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server, ThreadPoolExecutor(12) as pool:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        source = Source(url=f"http://127.0.0.1:{server.server_port}", max_concurrent_queries=3)
        with open_store(source, state=tmp_path) as store:
            panels = list(pool.map(lambda i: store.read(f"m{i}", RECENT), range(24)))
        server.shutdown()
    assert [panel.y[0, 0] for panel in panels] == [1.0] * 24
    assert asked == 25  # and once whether it is VictoriaMetrics
    assert most == 3
