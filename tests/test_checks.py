"""Checks: each by what sets it off, then what evidence real servers give."""

from __future__ import annotations

import json
import math
import re
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anomaly_times.checks import CHECKS, LOADING, Report, check_missions
from anomaly_times.checks.changed import changed_files, files_before, only_changed
from anomaly_times.checks.evidence import LOOKS, Dead, Evidence
from anomaly_times.checks.examiner import Examiner
from anomaly_times.checks.live import cost_of
from anomaly_times.checks.registry import Subject
from anomaly_times.errors import NoSeriesError, QueryError, StoreUnavailableError, UsageError
from anomaly_times.loading import LoadedMission, Loading, load_missions
from anomaly_times.mission import Mission
from anomaly_times.panel import Floats, Grid, Labels, Panel
from anomaly_times.settings import Source
from anomaly_times.stores import Store, open_store
from anomaly_times.stores.promql import parse_query
from anomaly_times.testing import MemoryStore
from tests.servers import Server, fetch, free_port, prometheus

ROOT = Path(__file__).parents[1]
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def panel(y: Floats, *, step: timedelta = MINUTE, **labels: str) -> Panel:
    rows = [Labels.of({"__name__": "m", "i": f"{i:03}", **labels}) for i in range(len(y))]
    return Panel.of(rows, Grid.ending(NOW, step, y.shape[1]), y)


def replicated(label: str) -> Panel:
    wave = np.sin(np.arange(60) / 5)
    rows = [Labels.of({"__name__": "m", "job": job, label: one}) for job in "ab" for one in "01"]
    return Panel.of(rows, Grid.ending(NOW, MINUTE, 60), np.array([wave, wave, 2 * wave, 2 * wave]))


def looks(*seen: list[int]) -> Panel:
    """The lookback in `LOOKS` places; each row names those in which a series is there."""
    y = np.full((len(seen), LOOKS), np.nan)
    for i, places in enumerate(seen):
        y[i, places] = 1.0
    return panel(y, step=timedelta(hours=7))


WHOLE = looks(list(range(LOOKS)))
HOLED = np.ones((3, 60))
HOLED[:2, ::3] = np.nan
MANY_LABELS = {f"l{i}": "x" for i in range(30)}

# What sets each check off: fields of a mission (named `m`, promql `m` unless they say otherwise), and evidence.
TRIGGERS: dict[str, tuple[dict[str, Any], Evidence | None]] = {
    "promql/syntax": ({"promql": "sum(rate(m[5m])"}, None),
    "promql/no-vector": ({"promql": "1 + 1"}, None),
    "promql/metricsql": ({"promql": "m default 0"}, None),
    "promql/bare-counter": ({"promql": "sum(http_requests_total)"}, None),
    "forecast/horizon-holes": ({"forecast": {"every": "1h", "horizon": "1h"}}, None),
    "forecast/horizon-long": ({"forecast": {"every": "1h", "horizon": "3h"}}, None),
    "forecast/too-far-ahead": ({"write": "ahead", "forecast": {"every": "1d"}}, None),
    "forecast/season": ({"season": "1w", "forecast": {"lookback": "13d"}}, None),
    "forecast/rebase-ahead": ({"forecast": {"rebase": "2026-03-01T12:02Z"}}, None),
    "forecast/rebase-over": ({"forecast": {"rebase": "2026-02-15T12:00Z"}}, None),
    "detect/cadence": ({"step": "5m"}, None),
    "mission/too-often": ({"detect": {"every": "1ms"}}, None),
    "labels/clash": ({"promql": "sum by (team) (m)", "labels": {"team": "a"}}, None),
    "model/invalid": ({"forecast": {"model": {"type": "profile", "nonsense": 1}}}, None),
    "model/not-installed": ({"forecast": {"model": "ets"}}, None),
    "model/slow": ({"step": "5m", "forecast": {"model": {"type": "arima", "seasonal": "native"}}}, None),
    "mission/source": ({"source": "nowhere"}, None),
    "mission/size": ({"description": "x" * 6000}, None),
    "mission/silence": ({"silence": [{"code": "data/nonsense", "reason": "?"}]}, None),
    "promql/no-series": ({}, Evidence(nothing=NoSeriesError("m matches nothing"))),
    "promql/dead-selector": ({}, Evidence(count=1, dead=(Dead("x", "there is no metric x", ""),))),
    "promql/short-window": (
        {"promql": "rate(m[1m])"},
        Evidence(count=1, intervals={"m": timedelta(seconds=16)}),
    ),
    "step/too-fine": ({}, Evidence(count=1, intervals={"m": timedelta(seconds=61)})),
    "data/too-many-series": ({"max_series": 10}, Evidence(count=11)),
    "data/too-many-labels": ({}, Evidence(count=1, recent=panel(np.ones((1, 12)), **MANY_LABELS))),
    "labels/exported": (
        {},
        Evidence(count=1, recent=panel(np.ones((1, 12)), mission="a", exported_mission="b")),
    ),
    "data/stale": ({}, Evidence(count=0, seen=looks([1, 2, 3]))),
    "data/churn": ({}, Evidence(count=2, seen=looks(*[[i] for i in range(40)]))),
    "data/short-season": ({}, Evidence(count=1, seen=looks([46, 47]))),
    "data/short-history": ({}, Evidence(count=1, seen=looks(list(range(24, 48))))),
    "data/gaps": ({}, Evidence(count=3, seen=WHOLE, recent=panel(HOLED))),
    "data/replicas": ({}, Evidence(count=4, recent=replicated("prometheus_replica"))),
    "cost/estimate": ({}, Evidence(count=1)),
}


def subject(fields: Mapping[str, Any], evidence: Evidence | None = None) -> Subject:
    mission = Mission.model_validate({"name": "m", "promql": "m", **fields})
    loaded = LoadedMission(mission, "m.yaml", 1)
    try:
        return Subject(loaded, NOW, parse_query(mission.promql), sources=["main"], evidence=evidence)
    except QueryError as exc:
        return Subject(loaded, NOW, None, exc, sources=["main"], evidence=evidence)


def found(fields: Mapping[str, Any], evidence: Evidence | None = None) -> dict[str, str]:
    """The message of each check that has something to say."""
    examined = subject(fields, evidence)
    return {problem.code: problem.message for each in CHECKS.values() for problem in each.problems(examined)}


@pytest.fixture
def without_nixtla(monkeypatch: pytest.MonkeyPatch) -> None:
    from anomaly_times.checks import offline
    from anomaly_times.errors import MissingExtraError

    def build(spec: Any, **_: object) -> object:
        if spec.type == "ets":
            raise MissingExtraError("model 'ets' needs another package", extra="nixtla")
        return real(spec, **_)

    real = offline.build_model
    offline._build_error.cache_clear()
    monkeypatch.setattr(offline, "build_model", build)


@pytest.mark.usefixtures("without_nixtla")
@pytest.mark.parametrize("code", list(CHECKS))
def test_every_check_is_set_off_and_can_be_silenced_with_a_reason(code: str, tmp_path: Path) -> None:
    fields, evidence = TRIGGERS[code]
    problems = list(CHECKS[code].problems(subject(fields, evidence)))
    assert {p.code for p in problems} == {code}
    assert problems[0].message
    assert problems[0].mission == "m"

    silence = [*fields.get("silence", []), {"code": code, "reason": "known"}]
    file = tmp_path / "m.yaml"
    file.write_text(json.dumps({"name": "m", "promql": "m", **fields, "silence": silence}))
    loading = load_missions([file])
    assert loading.problems == ()
    stores: dict[str, Store] = {"": _Saying(evidence)} if evidence else {}
    report = check_missions(loading, now=NOW, sources=["main"], stores=stores)
    assert code not in {problem.code for problem in report.problems}
    assert {(each.problem.code, each.reason) for each in report.silenced} >= {(code, "known")}


class _Saying(MemoryStore):
    """A store of which an `Examiner` knows the evidence already."""

    def __init__(self, evidence: Evidence) -> None:
        super().__init__()
        self.evidence = evidence


@pytest.fixture(autouse=True)
def _evidence_as_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Examiner.examine

    def examine(self: Examiner, *args: Any) -> Evidence:
        return self._store.evidence if isinstance(self._store, _Saying) else real(self, *args)

    monkeypatch.setattr(Examiner, "examine", examine)


@pytest.mark.parametrize(
    ("forecast", "detect", "found"),
    [
        ({"every": "10m", "horizon": "20m"}, "1m", []),
        ({"every": "10m", "horizon": "25m"}, "1m", ["forecast/horizon-long"]),
        ({"every": "1m", "horizon": "2m"}, "1m", ["forecast/horizon-holes"]),
        ({"every": "1m", "horizon": "3m"}, "1m", []),
        ({"every": "1m", "horizon": "4m"}, "1m", ["forecast/horizon-long"]),
    ],
)
def test_there_is_a_horizon_that_is_neither_too_short_nor_too_long(
    forecast: dict[str, str], detect: str, found: list[str]
) -> None:
    mission = Mission.model_validate({"name": "a", "promql": "up", "forecast": forecast, "detect": {"every": detect}})
    report = check_missions(Loading((LoadedMission(mission, "a.yaml", 1),), (), ("a.yaml",)), now=NOW)
    assert [p.code for p in report.problems if p.code.startswith("forecast/horizon")] == found
    # What one of them says to take satisfies the other.
    assert all("take 20m" in p.hint or "3m" in p.hint for p in report.problems if p.code.startswith("forecast/horizon"))


def test_every_code_has_its_section_in_the_docs() -> None:
    text = (ROOT / "docs" / "checks.md").read_text()
    codes = [*CHECKS, *LOADING]
    assert [code for code in codes if f"\n### `{code}`\n" not in text] == []
    assert sorted(re.findall(r"^### `([a-z/-]+)`$", text, re.MULTILINE)) == sorted(codes)


def test_the_docs_say_the_severity_of_every_check() -> None:
    text = (ROOT / "docs" / "checks.md").read_text()
    for code, each in CHECKS.items():
        after = text.partition(f"\n### `{code}`\n")[2].strip()
        assert after.startswith(each.severity.capitalize()), code


def test_a_sound_mission_has_no_problem() -> None:
    wave = np.sin(np.arange(120) / 9)[None]
    sound = Evidence(count=1, seen=WHOLE, recent=panel(wave), intervals={"m": timedelta(seconds=15)}, ahead=True)
    fields = {"promql": "sum by (job) (rate(m[1m]))", "labels": {"team": "a"}}
    assert set(found(fields)) == set()
    assert set(found(fields, sound)) == {"cost/estimate"}


@pytest.mark.parametrize("file", sorted((ROOT / "missions").glob("*.yaml")), ids=lambda path: path.name)
def test_the_examples_pass(file: Path) -> None:
    assert check_missions(load_missions([file]), now=NOW).problems == ()


@pytest.mark.parametrize(
    ("promql", "bare"),
    [
        ("requests_total", True),
        ("sum by (job) (requests_total)", True),
        ("max_over_time(requests_total[5m])", True),
        ("histogram_quantile(0.9, latency_bucket)", True),
        ("rate(requests_total[5m])", False),
        ("sum(increase(requests_total[5m]))", False),
        ("max_over_time(rate(requests_total[5m])[1h:1m])", False),
        ("count(requests_total)", False),
        ("absent(requests_total)", False),
        ("memory_bytes", False),
    ],
)
def test_a_counter_is_told_by_its_name_and_what_is_around_it(promql: str, bare: bool) -> None:
    assert ("promql/bare-counter" in found({"promql": promql})) is bare


def test_what_targets_say_of_a_metric_beats_its_name() -> None:
    gauge = Evidence(count=1, types={"pods_total": "gauge"})
    counter = Evidence(count=1, types={"events": "counter"})
    assert "promql/bare-counter" not in found({"promql": "pods_total"}, gauge)
    assert "promql/bare-counter" in found({"promql": "events"}, counter)


def test_a_server_that_takes_a_query_has_the_last_word() -> None:
    assert "promql/metricsql" not in found({"promql": "m default 0"}, Evidence(count=1))
    refused = Evidence(refused=QueryError("refused: no idea"))
    assert found({"promql": "m default 0"}, refused) == {"promql/syntax": "refused: no idea"}


@pytest.mark.parametrize(("horizon", "holes"), [("1h1m29s", True), ("1h1m30s", False)])
def test_a_forecast_must_last_until_the_next_one_is_seen(horizon: str, holes: bool) -> None:
    fields = {"step": "30s", "forecast": {"every": "1h", "horizon": horizon}}
    assert ("forecast/horizon-holes" in found(fields)) is holes


def test_a_forecast_reaches_as_far_as_its_last_whole_step() -> None:
    fields = {"step": "50m", "forecast": {"every": "1h", "horizon": "95m"}}
    message = found(fields)["forecast/horizon-holes"]
    assert "reaches 50m" in message
    assert "must last 1h1m30s" in message
    assert "forecast/horizon-holes" not in found({"step": "50m", "forecast": {"every": "1h", "horizon": "100m"}})


def test_a_weekend_counts_however_many_slots_come_before_it() -> None:
    fields = {"forecast": {"cron": "* 8-20 * * 1-5", "horizon": "1d"}}
    assert "must last 2d11h2m30s" in found(fields)["forecast/horizon-holes"]


@pytest.mark.parametrize(
    ("since", "codes"),
    [
        ("2026-03-01T12:01:01Z", {"forecast/rebase-ahead"}),
        ("2026-03-01T12:01Z", set()),  # clocks differ
        ("2026-03-01T13:00+01:00", set()),
        ("2026-02-15T12:02Z", set()),
        ("2026-02-15T12:01Z", {"forecast/rebase-over"}),
    ],
)
def test_a_rebase_lies_in_the_past_and_in_what_is_read(since: str, codes: set[str]) -> None:
    assert set(found({"offset": "0s", "forecast": {"lookback": "14d", "rebase": since}})) == codes


@pytest.mark.parametrize(("every", "too_often"), [("999ms", True), ("1s", False)])
def test_nothing_is_done_more_than_once_a_second(every: str, too_often: bool) -> None:
    for fields in ({"detect": {"every": every}}, {"forecast": {"every": every, "horizon": "2h"}}):
        assert ("mission/too-often" in found(fields)) is too_often


def test_a_cron_counts_by_its_longest_pause() -> None:
    assert "forecast/horizon-holes" in found({"forecast": {"cron": "0 8-18 * * *", "horizon": "2h"}})
    assert "forecast/horizon-holes" not in found({"forecast": {"cron": "0 */2 * * *", "horizon": "3h"}})
    assert "detect/cadence" not in found({"step": "5m", "detect": {"cron": "*/5 * * * *"}})


def test_where_forecasts_go_is_asked_of_the_server() -> None:
    fields = {"forecast": {"every": "1d"}}
    assert "forecast/too-far-ahead" not in found(fields)
    assert "forecast/too-far-ahead" in found(fields, Evidence(count=1, ahead=True))


def test_pods_that_only_look_alike_are_no_replicas() -> None:
    rng = np.random.default_rng(0)
    alike = replicated("pod")
    different = Panel(alike.labels, alike.grid, alike.y + rng.normal(0, 0.2, alike.y.shape))
    constant = Panel(alike.labels, alike.grid, np.ones_like(alike.y))
    assert "data/replicas" in found({}, Evidence(count=4, recent=alike))
    assert "data/replicas" not in found({}, Evidence(count=4, recent=different))
    assert "data/replicas" not in found({}, Evidence(count=4, recent=constant))


def test_a_deployment_rolled_once_is_no_churn() -> None:
    rolled = looks(list(range(24)), list(range(24, 48)))
    assert "data/churn" not in found({}, Evidence(count=1, seen=rolled))


def test_the_cost_is_what_the_passes_do() -> None:
    mission = subject({"forecast": {"every": "1h", "lookback": "1d"}}).mission
    ahead = cost_of(mission, Evidence(count=10, ahead=True))
    later = cost_of(mission, Evidence(count=10))
    assert ahead is not None
    assert later is not None
    # 24 runs a day write 120 steps of three metrics; a score a minute comes on top.
    assert (ahead.series, ahead.read, ahead.written) == (10, 10 * 1440, 10 * (24 * 120 * 3 + 1440))
    assert later.written == 10 * 4 * 1440


def test_a_problem_of_loading_cannot_be_silenced(tmp_path: Path) -> None:
    file = tmp_path / "m.yaml"
    file.write_text("name: m\npromql: m\nsilence: [{code: file/yaml, reason: no}]\n")
    report = check_missions(load_missions([file]), now=NOW)
    assert [(p.code, p.where.line) for p in report.problems] == [("mission/silence", 3)]


def test_problems_carry_their_line_and_come_in_the_order_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "m.yaml"
    file.write_text(
        "missions:\n- name: b\n  promql: x_total\n- name: a\n  promql: m\n  detect:\n    every: 10s\n- name: a\n"
    )
    report = check_missions(load_missions([file]), now=NOW)
    assert [(p.where.line, p.code, p.mission) for p in report.problems] == [
        (3, "promql/bare-counter", "b"),
        (7, "detect/cadence", "a"),
        (8, "mission/missing-field", "a"),
    ]


def test_what_is_wrong_in_defaults_is_told_once_and_there(tmp_path: Path) -> None:
    (tmp_path / "defaults.yaml").write_text("forecast:\n  model: nosuch\n")
    (tmp_path / "m.yaml").write_text(
        "missions:\n- {name: a, promql: m}\n- {name: b, promql: m}\n"
        "- {name: c, promql: m, silence: [{code: model/invalid, reason: a plugin}]}\n"
        "- {name: d, promql: m, forecast: {model: other}}\n"
    )
    report = check_missions(load_missions([tmp_path]), now=NOW)
    assert [(Path(p.where.file).name, p.where.line, p.code, p.mission) for p in report.problems] == [
        ("defaults.yaml", 2, "model/invalid", ""),
        ("m.yaml", 5, "model/invalid", "d"),
    ]
    assert [each.problem.mission for each in report.silenced] == ["c"]


def test_a_thousand_missions_are_validated_offline_in_two_seconds(tmp_path: Path) -> None:
    (tmp_path / "many.yaml").write_text(
        "missions:\n"
        + "".join(
            f"- name: m-{i}\n  promql: 'sum by (service) (rate(http_requests_total{{job=\"j{i}\"}}[5m]))'\n"
            "  forecast: {every: 1h, lookback: 14d}\n  detect: {direction: above}\n"
            for i in range(1000)
        )
    )
    before = time.process_time()
    report = check_missions(load_missions([tmp_path]), now=NOW)
    assert (report.missions, report.problems) == (1000, ())
    assert time.process_time() - before < 2


def test_a_folder_is_asked_too(tmp_path: Path) -> None:
    wave = 50 + np.sin(np.arange(14 * 1440) / 229)
    gone = np.where(np.arange(len(wave)) < 1440, wave, np.nan)
    store = MemoryStore({"m": panel(np.array([wave, wave, gone])), "old": panel(gone[None])})
    assert codes(store, {"promql": "m"}) == {"cost/estimate"}
    assert codes(store, {"promql": "old"}) == {"data/stale"}
    assert codes(store, {"promql": "m", "max_series": 1}) >= {"data/too-many-series"}
    assert codes(store, {"promql": "other"}) == {"promql/no-series"}


def test_a_source_that_is_away_is_told_apart_from_a_bad_query(tmp_path: Path) -> None:
    away = MemoryStore({"m": StoreUnavailableError("nobody there")})
    report = live(away, {"promql": "m"})
    assert (report.problems, str(report.unchecked["m"])) == ((), "nobody there")
    with open_store(Source(url=f"http://127.0.0.1:{free_port()}"), state=tmp_path) as store:
        report = live(store, {"promql": "nonsense("})
    assert [p.code for p in report.problems] == ["promql/syntax"]
    assert "cannot be reached" in str(report.unchecked["m"])


def test_a_few_missions_are_asked_about_at_once() -> None:
    lock, running, most, done = threading.Lock(), [0], [0], [0]

    class Slow(MemoryStore):
        def read(self, *args: Any, **kwargs: Any) -> Panel:
            with lock:
                running[0] += 1
                most[0] = max(most[0], running[0])
            time.sleep(0.02)
            with lock:
                running[0] -= 1
            return super().read(*args, **kwargs)

    def advance() -> None:
        with lock:
            done[0] += 1

    missions = [Mission(name=f"m{i}", promql="m") for i in range(12)]
    loading = Loading(tuple(LoadedMission(each, "m.yaml", 1) for each in missions), (), ("m.yaml",))
    store = Slow({"m": panel(np.ones((1, 14 * 1440)))})
    report = check_missions(loading, now=NOW, stores={"": store}, advance=advance)
    assert (len(report.costs), done[0]) == (12, 12)
    assert 1 < most[0] <= 4


def live(store: Store, fields: Mapping[str, Any], *, now: datetime = NOW) -> Report:
    mission = Mission.model_validate({"name": "m", **fields})
    loading = Loading((LoadedMission(mission, "m.yaml", 1),), (), ("m.yaml",))
    return check_missions(loading, now=now, stores={mission.source: store})


def codes(store: Store, fields: Mapping[str, Any], *, now: datetime = NOW) -> set[str]:
    report = live(store, fields, now=now)
    assert report.unchecked == {}
    return {problem.code for problem in report.problems}


# What real servers say.


def import_rows(server: Server, rows: list[tuple[dict[str, str], Callable[[float], float], int, float]]) -> datetime:
    """Series `(labels, value at a time, seconds between samples, days)` up to now."""
    now = int(time.time())
    lines = []
    for labels, value, every, days in rows:
        times = range(now - int(days * 86400), now, every)
        body = {"metric": labels, "values": [value(t) for t in times], "timestamps": [t * 1000 for t in times]}
        lines.append(json.dumps(body))
    fetch(f"{server.url}/api/v1/import", data="\n".join(lines).encode())
    server.flush()
    return datetime.fromtimestamp(now, UTC)


def wave(t: float) -> float:
    return 50 + 20 * math.sin(t / 86400 * 2 * math.pi) + 10 * math.sin(t / 3600)


@pytest.mark.servers
def test_what_victoriametrics_says(vm_server: Server, tmp_path: Path) -> None:
    now = import_rows(
        vm_server,
        [
            ({"__name__": "chk_total", "job": "api", "code": "200"}, lambda t: t, 60, 15),
            ({"__name__": "chk_gauge", "job": "api"}, wave, 60, 15),
            ({"__name__": "chk_slow", "job": "api"}, wave, 300, 4),
            *[({"__name__": "chk_ha", "replica": r}, wave, 60, 1) for r in "01"],
        ],
    )
    with open_store(Source(url=vm_server.url), state=tmp_path) as store:

        def told(promql: str, **fields: Any) -> set[str]:
            return codes(store, {"promql": promql, **fields}, now=now) - {"cost/estimate", "data/short-history"}

        assert told("sum by (job) (rate(chk_total[5m]))") == set()
        assert told("chk_gauge default 0") == set()
        assert told("rate(chk_total[2m])") == {"promql/short-window"}
        assert told("chk_slow") == {"step/too-fine"}
        assert told("chk_slow", step="5m", season="1w") == {"data/short-season", "detect/cadence"}
        assert told("chk_ha", season="none") == {"data/replicas"}
        assert told("chk_gauge or chk_total", max_series=1) >= {"data/too-many-series"}
        assert told("chk_gauge defaul 0") == {"promql/syntax"}
        assert told("chk_gauge", forecast={"every": "1d"}) == {"forecast/too-far-ahead"}
        assert told("chk_gauge or chk_nothing") == {"promql/dead-selector"}

        (misspelt,) = live(store, {"promql": "sum(rate(chk_totl[5m]))"}, now=now).problems
        assert (misspelt.code, misspelt.hint) == ("promql/no-series", "did you mean chk_total?")
        assert "there is no metric chk_totl" in misspelt.message
        (other,) = live(store, {"promql": 'chk_total{job="apy",code="200"}'}, now=now).problems[:1]
        assert 'no series of chk_total matches job="apy"' in other.message
        assert other.hint == "there is api"


@pytest.mark.servers
def test_pods_that_come_and_go_are_churn(vm_server: Server, tmp_path: Path) -> None:
    now = int(time.time()) // 60 * 60
    lines = []
    for pod in range(100):
        # Each lives for ten hours, three and a half after the one before: a look every seven hours sees it.
        first = now - 14 * 86400 + pod * 12_000
        times = [t * 1000 for t in range(first, min(now, first + 36_000), 60)]
        metric = {"__name__": "chk_pods", "pod": f"p{pod}"}
        lines.append(json.dumps({"metric": metric, "values": [1.0] * len(times), "timestamps": times}))
    fetch(f"{vm_server.url}/api/v1/import", data="\n".join(lines).encode())
    vm_server.flush()
    at = datetime.fromtimestamp(now, UTC)
    with open_store(Source(url=vm_server.url), state=tmp_path) as store:
        (churn,) = (p for p in live(store, {"promql": "chk_pods"}, now=at).problems if p.code == "data/churn")
        # The last look may lie hours back, before the youngest began.
        assert re.match(r"(9[6-9]|100) series were seen in the last 14d", churn.message)
        assert "data/churn" not in codes(store, {"promql": "sum(chk_pods)"}, now=at)


@pytest.mark.servers
def test_gaps_do_not_hide_the_scrape_interval(vm_server: Server, tmp_path: Path) -> None:
    now = int(time.time()) // 60 * 60
    times = [t for t in range(now - 7200, now, 60) if t // 60 % 7 > 2]
    body = {"metric": {"__name__": "chk_gappy"}, "values": [1.0] * len(times), "timestamps": [t * 1000 for t in times]}
    fetch(f"{vm_server.url}/api/v1/import", data=json.dumps(body).encode())
    vm_server.flush()
    with open_store(Source(url=vm_server.url), state=tmp_path) as store:
        examiner = Examiner(store, datetime.fromtimestamp(now, UTC))
        assert examiner.intervals(parse_query("rate(chk_gappy[5m])")) == {"chk_gappy": MINUTE}


@pytest.mark.slow
@pytest.mark.servers
def test_what_prometheus_says_of_what_it_scrapes(
    start: Callable[..., Server], prom_server: Server, tmp_path: Path
) -> None:
    """A Prometheus that scrapes another one knows types, and names MetricsQL."""
    target = prom_server.url.removeprefix("http://")
    config = f"scrape_configs: [{{job_name: p, scrape_interval: 500ms, static_configs: [{{targets: ['{target}']}}]}}]\n"
    server = start(lambda folder: prometheus(folder, config=config))
    with open_store(Source(url=server.url), state=tmp_path) as store:
        deadline = time.monotonic() + 40
        while time.monotonic() < deadline:
            now = datetime.now(UTC)
            said = Examiner(store, now).intervals(parse_query("prometheus_http_requests_total"))
            if said:
                break
            time.sleep(0.2)
        assert said == {"prometheus_http_requests_total": timedelta(milliseconds=500)}
        short = {"every": "5m", "lookback": "10m"}
        fields = {"offset": "1ms", "season": "none", "step": "1s", "forecast": short, "detect": {"every": "10s"}}

        def told(promql: str) -> set[str]:
            return codes(store, {"promql": promql, **fields}, now=now)

        assert "promql/bare-counter" in told("sum(prometheus_http_requests_total)")
        # Its name says counter, its type says gauge.
        assert "promql/bare-counter" not in told("go_goroutines")
        assert "promql/short-window" in told("rate(prometheus_http_requests_total[1500ms])")
        (refused,) = (
            p
            for p in live(store, {"promql": "go_goroutines default 0", **fields}, now=now).problems
            if p.severity == "error"
        )
        assert refused.code == "promql/syntax"
        assert "default" in refused.message
        assert told("nothing_at_all") == {"promql/no-series"}


# What a pull request touched.


def git(folder: Path, *args: str) -> None:
    subprocess.run(
        ["git", "-c", "user.name=t", "-c", "user.email=t@example.com", *args],
        cwd=folder,
        check=True,
        capture_output=True,
    )


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    git(tmp_path, "init", "-q", "-b", "main")
    for name in ("a", "b", "x/c", "x/d"):
        file = tmp_path / f"{name}.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"name: {file.stem}\npromql: m\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "one")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names_changed() -> list[str]:
    loading = only_changed(load_missions(["."]), changed_files("main"))
    return sorted(loaded.mission.name for loaded in loading.missions)


def test_only_what_changed_since_a_revision_is_looked_at(repository: Path) -> None:
    assert names_changed() == []
    (repository / "a.yaml").write_text("name: a\npromql: changed\n")
    (repository / "x/new.yaml").write_text("name: new\npromql: m\n")
    assert names_changed() == ["a", "new"]


def test_a_changed_defaults_file_changes_its_folder(repository: Path) -> None:
    (repository / "x/defaults.yaml").write_text("step: 5m\n")
    assert names_changed() == ["c", "d"]


def test_what_others_did_on_main_meanwhile_is_no_change_of_ours(repository: Path) -> None:
    git(repository, "checkout", "-qb", "mine")
    (repository / "a.yaml").write_text("name: a\npromql: mine\n")
    git(repository, "commit", "-qam", "mine")
    git(repository, "checkout", "-q", "main")
    (repository / "b.yaml").write_text("name: b\npromql: theirs\n")
    git(repository, "commit", "-qam", "theirs")
    git(repository, "checkout", "-q", "mine")
    assert names_changed() == ["a"]


def test_defaults_that_were_moved_change_the_folder_that_they_left(repository: Path) -> None:
    (repository / "x/defaults.yaml").write_text("step: 5m\n")
    git(repository, "add", ".")
    git(repository, "commit", "-qm", "two")
    (repository / "y").mkdir()
    git(repository, "mv", "x/defaults.yaml", "y/defaults.yaml")
    assert names_changed() == ["c", "d"]


def test_a_mistake_in_unchanged_defaults_shows_with_what_changed_beside_them(repository: Path) -> None:
    (repository / "x/defaults.yaml").write_text("step: soon\n")
    git(repository, "add", ".")
    git(repository, "commit", "-qm", "two")
    loading = only_changed(load_missions(["."]), changed_files("main"))
    assert loading.problems == ()
    (repository / "x/c.yaml").write_text("name: c\npromql: changed\n")
    loading = only_changed(load_missions(["."]), changed_files("main"))
    assert [str(problem.where) for problem in loading.problems] == ["x/defaults.yaml:1"]


def test_what_git_does_not_know_is_looked_at(repository: Path) -> None:
    (repository / ".gitignore").write_text("ignored.yaml\n")
    (repository / "ignored.yaml").write_text("name: ignored\npromql: m\n")
    git(repository, "init", "-q", "inner")
    (repository / "inner/i.yaml").write_text("name: inner\npromql: m\n")
    git(repository / "inner", "add", ".")
    git(repository / "inner", "commit", "-qm", "one")
    assert names_changed() == ["ignored", "inner"]


def test_a_link_that_leads_elsewhere_is_a_change(repository: Path) -> None:
    for name in ("one", "two"):
        (repository / f"{name}.txt").write_text(f"name: {name}\npromql: m\n")
    link = repository / "link.yaml"
    link.symlink_to("one.txt")
    git(repository, "add", ".")
    git(repository, "commit", "-qm", "two")
    assert names_changed() == []
    link.unlink()
    link.symlink_to("two.txt")
    assert names_changed() == ["two"]


def test_files_outside_the_repository_are_wrong_usage(
    repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "e.yaml"
    elsewhere.write_text("name: e\npromql: 'sum('\n")
    with pytest.raises(UsageError, match=r"e\.yaml is not in"):
        only_changed(load_missions([".", elsewhere]), changed_files("main"))


def names_before(into: Path, *paths: str) -> list[tuple[str, str]]:
    loading = load_missions(files_before("main", [Path(path) for path in paths], into))
    return [(loaded.mission.name, loaded.mission.promql) for loaded in loading.missions]


@pytest.mark.parametrize("path", [".", "x", "x/*.yaml", "x/c.yaml"])
def test_files_are_as_they_were_with_their_defaults(
    repository: Path, tmp_path_factory: pytest.TempPathFactory, path: str
) -> None:
    (repository / "x/defaults.yaml").write_text("promql: theirs\n")
    (repository / "x/c.yaml").write_text("name: c\n")
    git(repository, "add", ".")
    git(repository, "commit", "-qm", "two")
    git(repository, "checkout", "-qb", "mine")
    (repository / "x/defaults.yaml").unlink()
    (repository / "x/c.yaml").write_text("name: other\npromql: mine\n")
    git(repository, "commit", "-qam", "mine")
    found = names_before(tmp_path_factory.mktemp("old"), path)
    assert ("c", "theirs") in found
    assert len(found) == {".": 4, "x": 2, "x/*.yaml": 2, "x/c.yaml": 1}[path]
    assert (repository / "x/c.yaml").read_text() == "name: other\npromql: mine\n"


def test_a_file_that_was_not_there_is_left_out(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    (repository / "new.yaml").write_text("name: new\npromql: m\n")
    (repository / "link.yaml").symlink_to("a.yaml")
    assert names_before(tmp_path_factory.mktemp("old"), "new.yaml", "b.yaml", "y/*.yaml") == [("b", "m")]
    git(repository, "add", ".")
    git(repository, "commit", "-qm", "two")
    assert names_before(tmp_path_factory.mktemp("links"), "link.yaml") == [("a", "m")]


def test_old_files_outside_the_repository_are_wrong_usage(
    repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    with pytest.raises(UsageError, match=r"elsewhere\d* is not in the Git repository"):
        files_before("main", [elsewhere], tmp_path_factory.mktemp("old"))


@pytest.mark.parametrize("revision", ["nonsense", "--output=x", ""])
def test_an_unknown_revision_is_wrong_usage(repository: Path, revision: str) -> None:
    with pytest.raises(UsageError):
        changed_files(revision)
    with pytest.raises(UsageError):
        files_before(revision, [Path()], repository / "old")
    assert not (repository / "x").is_file()


@pytest.mark.parametrize(
    ("model", "hint"),
    [
        (
            {"type": "auto", "candidates": ["seasonmix", {"type": "arima", "seasonal": "native"}]},
            "fewer slow candidates",
        ),
        ({"type": "arima", "seasonal": "native"}, "`seasonal: profile`"),
        ({"type": "mstl"}, "`auto`"),
    ],
)
def test_a_slow_model_is_told_with_what_would_cost_less(model: dict[str, Any], hint: str) -> None:
    evidence = Evidence(count=200)
    [problem] = CHECKS["model/slow"].problems(subject({"step": "5m", "forecast": {"model": model}}, evidence))
    assert hint in problem.hint
    assert problem.message.startswith(f"{model['type']} takes about ")
