from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from pydantic import SecretStr

from anomaly_times.errors import StoreError
from anomaly_times.panel import Grid
from anomaly_times.settings import Source
from anomaly_times.stores.parquet import FolderStore
from anomaly_times.stores.probe import Finding, probe
from anomaly_times.stores.prometheus import PrometheusStore
from tests import servers
from tests.servers import Server

Start = Callable[..., Server]


def examine(
    tmp_path: Path, *, writing: bool = True, patience: float = 5, step: str = "1m", **source: Any
) -> list[Finding]:
    steps = {"1m": timedelta(minutes=1), "10s": timedelta(seconds=10)}
    with PrometheusStore(Source(**source), state=tmp_path / "state") as store:
        return probe(store, write=writing, step=steps[step], patience=timedelta(seconds=patience))


def by_check(findings: list[Finding]) -> dict[str, Finding]:
    assert len({finding.check for finding in findings}) == len(findings)
    return {finding.check: finding for finding in findings}


def statuses(findings: list[Finding]) -> dict[str, str]:
    return {finding.check: finding.status for finding in findings}


@pytest.mark.servers
@pytest.mark.parametrize("protocol", ["remote_write", "vm_import"])
def test_a_fresh_victoria_metrics_is_well(start: Start, tmp_path: Path, protocol: str) -> None:
    server = start(servers.victoria_metrics)
    # The second run meets what the first one wrote.
    for _ in range(2):
        found = examine(tmp_path, url=server.url, protocol=protocol)
        assert statuses(found) == dict.fromkeys(
            ["read", "clock", "latency", "write", "added labels", "future", "dedup", "label limit"], "ok"
        )
    assert "VictoriaMetrics" in by_check(found)["read"].detail
    assert "30s" in by_check(found)["latency"].detail
    # What it wrote is what its module says: one metric, four series, whatever the number of runs.
    server.flush()
    names = json.loads(servers.fetch(server.url + "/api/v1/label/__name__/values"))["data"]
    assert names == ["anomaly_probe"]
    # What lies ahead may lie in tomorrow, which is asked for by name.
    query = urlencode({"match[]": "anomaly_probe", "start": time.time() - 86_400, "end": time.time() + 86_400})
    series = json.loads(servers.fetch(f"{server.url}/api/v1/series?{query}"))["data"]
    assert sorted(row["check"] for row in series) == ["dedup", "future", "labels", "write"]
    assert {row["by"] for row in series} == {"at-doctor"}


@pytest.mark.servers
def test_what_a_server_eats_or_hides_is_measured(start: Start, tmp_path: Path) -> None:
    flags = ("-dedup.minScrapeInterval=30s", "-maxLabelsPerTimeseries=20", "-search.latencyOffset=2m")
    server = start(servers.victoria_metrics, *flags)
    found = by_check(examine(tmp_path, url=server.url, step="10s", patience=3))
    assert found["dedup"].status == "fail"
    assert "30s" in found["dedup"].detail
    assert found["label limit"].status == "warn"
    assert found["latency"].status == "warn"
    assert "offset: 2m" in found["latency"].hint
    assert found["future"].status == "ok"
    # The same interval is no problem where steps are longer.
    found = by_check(examine(tmp_path, url=server.url, step="1m", patience=3))
    assert found["dedup"].status == "ok"


@pytest.mark.servers
def test_the_dedup_interval_that_suits_reruns_is_recommended_where_it_is_not_set(start: Start, tmp_path: Path) -> None:
    for flags, recommended in (((), True), (("-dedup.minScrapeInterval=1ms",), False)):
        server = start(servers.victoria_metrics, *flags)
        for _ in range(2):
            dedup = by_check(examine(tmp_path, url=server.url))["dedup"]
            assert dedup.status == "ok"
            assert ("-dedup.minScrapeInterval=1ms" in dedup.hint) is recommended


@pytest.mark.servers
def test_a_wrong_path_of_victoria_metrics_is_a_wrong_url(start: Start, tmp_path: Path, vm_server: Server) -> None:
    [found] = examine(tmp_path, url=vm_server.url + "/nowhere")
    assert (found.check, found.status) == ("read", "fail")
    assert "is that the base URL" in found.hint
    with (
        PrometheusStore(Source(url=vm_server.url + "/nowhere"), state=tmp_path) as store,
        pytest.raises(StoreError, match="unsupported path") as caught,
    ):
        store.read("up", Grid.ending(datetime.now(UTC), timedelta(minutes=1), 5))
    assert caught.value.exit_code == 4
    assert "is that the base URL" in caught.value.hint


@pytest.mark.servers
def test_a_plain_prometheus_is_never_given_the_future(start: Start, tmp_path: Path) -> None:
    server = start(servers.prometheus)
    found = examine(tmp_path, url=server.url)
    assert statuses(found) == dict.fromkeys(["read", "clock", "write", "added labels", "future", "state folder"], "ok")
    assert "at_detection" in by_check(found)["future"].detail
    end = (datetime.now(UTC) + timedelta(days=2)).timestamp()
    query = urlencode({"query": "anomaly_probe[3d]", "time": end})
    [series] = json.loads(servers.fetch(f"{server.url}/api/v1/query?{query}"))["data"]["result"]
    assert [at <= datetime.now(UTC).timestamp() for at, _ in series["values"]] == [True]
    risky = by_check(examine(tmp_path, url=server.url, write_mode="ahead"))
    assert risky["future"].status == "warn"


@pytest.mark.servers
def test_the_folder_of_waiting_forecasts_is_told_with_its_whole_path(
    prom_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with PrometheusStore(Source(url=prom_server.url), state=Path("waiting")) as store:
        found = by_check(probe(store, patience=timedelta(seconds=5)))
    assert found["state folder"].detail == f"{tmp_path / 'waiting'} can be made"


@pytest.mark.servers
def test_a_relay_that_adds_a_label_is_found_with_the_line_to_set(start: Start, tmp_path: Path) -> None:
    server = start(servers.victoria_metrics)
    relay = start(lambda folder: servers.vmagent(folder, f"{server.url}/api/v1/write", "-remoteWrite.label=cluster=x"))
    found = by_check(examine(tmp_path, read=server.url, write=relay.url))
    assert found["added labels"].status == "warn"
    assert "cluster='x'" in found["added labels"].detail
    assert found["added labels"].hint == "set `ignore_labels: [cluster]` of the source"
    found = by_check(examine(tmp_path, read=server.url, write=relay.url, ignore_labels=["cluster"]))
    assert {finding.status for finding in found.values()} == {"ok"}


@pytest.mark.servers
def test_a_relay_that_delivers_elsewhere_is_noticed(start: Start, tmp_path: Path, vm_server: Server) -> None:
    other = start(servers.victoria_metrics)
    found = examine(tmp_path, read=other.url, write=vm_server.url, patience=1)
    assert found[-1].check == "write"
    assert found[-1].status == "fail"
    assert "cannot be read" in found[-1].detail


def test_a_server_that_is_away_is_a_finding(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{servers.free_port()}"
    [found] = examine(tmp_path, url=url, timeout="1s")
    assert found.check == "read"
    assert found.status == "fail"
    assert url in found.detail
    assert found.hint


@pytest.mark.servers
def test_wrong_credentials_are_a_finding_without_the_credentials(start: Start, tmp_path: Path) -> None:
    server = start(servers.victoria_metrics, "-httpAuth.username=me", "-httpAuth.password=right")
    [found] = examine(tmp_path, url=server.url, username="me", password=SecretStr("hunter2"))
    assert (found.check, found.status) == ("credentials", "fail")
    assert "hunter2" not in repr(found)
    ok = examine(tmp_path, url=server.url, username="me", password=SecretStr("right"))
    assert set(statuses(ok).values()) == {"ok"}


@pytest.mark.servers
def test_reading_only_writes_nothing(start: Start, tmp_path: Path) -> None:
    server = start(servers.victoria_metrics)
    assert statuses(examine(tmp_path, url=server.url, writing=False)) == {"read": "ok", "clock": "ok", "latency": "ok"}
    assert statuses(examine(tmp_path, read=server.url)) == {
        "read": "ok",
        "clock": "ok",
        "latency": "ok",
        "write": "warn",
    }
    server.flush()
    assert json.loads(servers.fetch(server.url + "/api/v1/label/__name__/values"))["data"] == []
    assert list(tmp_path.glob("state*")) == []


def test_a_folder_is_read_and_tried_for_writing(tmp_path: Path) -> None:
    folder = tmp_path / "metrics"

    def found(*, write: bool = True) -> list[Finding]:
        return probe(FolderStore(Source(folder=folder)), write=write)

    assert statuses(found()) == {"read": "fail"}
    folder.mkdir()
    assert statuses(found()) == {"read": "fail", "write": "ok"}
    (folder / "cpu.csv").write_text("ds,host,y\n2024-01-01T00:00:00Z,a,1\n2025-01-01T00:00:00Z,b,2\n")
    assert statuses(found()) == {"read": "ok", "write": "ok"}
    assert "2 series" in found()[0].detail
    assert statuses(found(write=False)) == {"read": "ok"}
    (folder / "bad.csv").write_text("ds,host,y\nyesterday,a,1\n")
    assert statuses(found()) == {"read": "fail", "write": "ok"}
    assert "bad.csv" in found()[0].detail
    assert sorted(path.name for path in folder.iterdir()) == ["bad.csv", "cpu.csv"]
