"""The Grafana pages: what they ask is PromQL that finds what passes store, and the files are what Grafana takes."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlencode

import promql_parser
import pytest

from anomaly_times.conventions import OUR_METRICS, SELF_METRICS
from anomaly_times.demo import STEP, demo_missions, make_demo
from anomaly_times.durations import parse_duration
from anomaly_times.engine import run_pass
from anomaly_times.evidence import REASONS
from anomaly_times.mission import Mission
from anomaly_times.monitoring import About
from anomaly_times.outputs.dashboards import MISSION_UID, OVERVIEW_UID, PLATFORM_UID, render_dashboards
from anomaly_times.outputs.grafana import one_line
from anomaly_times.panel import Forecast, Grid
from anomaly_times.settings import Source
from anomaly_times.stores.parquet import FolderStore
from anomaly_times.stores.prometheus import PrometheusStore
from tests import servers
from tests.servers import fetch

PAGES = ("overview.json", "mission.json", "platform.json")


def pages(*missions: Mission, datasource: str = "") -> dict[str, Any]:
    return {name: json.loads(text) for name, text in render_dashboards(missions, datasource=datasource).items()}


def panels(page: Mapping[str, Any]) -> list[Any]:
    return [panel for panel in page["panels"] if panel["type"] != "row"]


def variables(page: Mapping[str, Any]) -> dict[str, Any]:
    return {variable["name"]: variable for variable in page["templating"]["list"]}


def expressions(page: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Whose it is, and the PromQL, of everything that a page asks."""
    for panel in panels(page):
        for target in panel["targets"]:
            yield f"{panel['title']} {target['refId']}", target["expr"]
    for annotation in page["annotations"].get("list") or []:
        yield annotation["name"], annotation["target"]["expr"]
    for name, variable in variables(page).items():
        if variable["type"] == "query":
            asked = re.fullmatch(r"query_result\((.*)\)|label_values\((.*), (\w+)\)", variable["query"])
            assert asked is not None, variable["query"]
            yield name, asked[1] or asked[2]


def substituted(expr: str, values: Mapping[str, str]) -> str:
    """`expr` as Grafana sends it; fails where it names a variable that is not known."""

    def value(found: re.Match[str]) -> str:
        return values[found[1] or found[2]]

    out = re.sub(r"\$\{(\w+(?::\w+)?)\}|\$(\w+)", value, expr)
    assert "$" not in out.replace("$$", ""), out
    return out


KNOWN = {
    "mission:text": "m",
    "mission:raw": "sum by (job) (rate(http_requests_total[5m]))",
    "query:raw": "up",
    "series:raw": 'job="a",mission="m"',
    "step": "1m",
    "window": "3h",
    "project": "default",
    "__interval": "1m",
    "__range": "86400s",
}


@pytest.mark.parametrize("missions", [(), tuple(demo_missions())], ids=["any", "demo"])
@pytest.mark.parametrize("name", PAGES)
def test_every_expression_is_promql(name: str, missions: tuple[Mission, ...]) -> None:
    asked = dict(expressions(pages(*missions)[name]))
    assert len(asked) > 10
    for expr in asked.values():
        promql_parser.parse(substituted(expr, KNOWN))
        # A mission without scores has no series to choose.
        promql_parser.parse(substituted(expr, {**KNOWN, "series:raw": ""}))


def test_every_metric_of_ours_is_on_a_page() -> None:
    everything = json.dumps(pages())
    shown = {*OUR_METRICS, *SELF_METRICS} - {"anomaly_mission_failed", "anomaly_move"}
    # The first is `at_errors` of a time before that, and the second a unit, of no use by itself.
    assert {metric for metric in shown if not re.search(rf"\b{metric}\b", everything)} == set()


def test_the_same_missions_in_any_order_give_the_same_files() -> None:
    missions = demo_missions()
    assert render_dashboards(missions) == render_dashboards(missions[::-1])


@pytest.mark.parametrize("name", PAGES)
def test_panels_have_numbers_and_places_of_their_own(name: str) -> None:
    page = pages()[name]
    ids = [panel["id"] for panel in page["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in page["panels"]:
        at = panel["gridPos"]
        cells = set(itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])))
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    assert all(panel["title"] and panel["description"] for panel in panels(page))


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_one_for_grafana_11_that_asks_the_chosen_data_source_alone(name: str) -> None:
    page = pages()[name]
    assert page["schemaVersion"] >= 39
    assert "id" not in page
    assert "version" not in page
    chooser = variables(page).pop("datasource")
    assert (chooser["type"], chooser["query"]) == ("datasource", "prometheus")
    others = [variable for variable in page["templating"]["list"] if variable["type"] == "query"]
    asking = [*panels(page), *(target for panel in panels(page) for target in panel["targets"]), *others]
    asking += page["annotations"].get("list") or []
    assert all(part["datasource"] == {"type": "prometheus", "uid": "${datasource}"} for part in asking)


@pytest.mark.parametrize("name", PAGES)
def test_columns_that_a_table_colours_and_sorts_by_are_there(name: str) -> None:
    for panel in panels(pages()[name]):
        if panel["type"] != "table":
            continue
        [renamed] = [each["options"]["renameByName"] for each in panel["transformations"] if each["id"] == "organize"]
        assert sorted(renamed) == [f"Value #{target['refId']}" for target in panel["targets"]]
        named = {override["matcher"]["options"] for override in panel["fieldConfig"]["overrides"]}
        assert named - {"mission"} == set(renamed.values())
        assert {each["displayName"] for each in panel["options"]["sortBy"]} <= named
        assert all(target["format"] == "table" and target["instant"] for target in panel["targets"])


def test_pages_have_fixed_addresses_and_a_mission_is_one_click_away() -> None:
    made = pages(*demo_missions())
    assert [made[name]["uid"] for name in PAGES] == [OVERVIEW_UID, MISSION_UID, PLATFORM_UID]
    assert all(len(page["uid"]) <= 40 for page in made.values())
    for name in ("overview.json", "platform.json"):
        assert f"/d/{MISSION_UID}?var-mission=${{__value.raw}}" in json.dumps(made[name])


def test_a_data_source_is_the_first_choice_where_it_is_named() -> None:
    for page in pages(datasource="vm-1").values():
        assert variables(page)["datasource"]["current"] == {"selected": True, "text": "vm-1", "value": "vm-1"}
    assert all("vm-1" not in text for text in render_dashboards().values())


# How Grafana cuts the choices of a custom variable (CustomVariable of @grafana/scenes).
_CHOICE, _PAIR = re.compile(r"(?:\\,|[^,])+"), re.compile(r"^(.+)\s:\s(.+)$")


@pytest.mark.parametrize(
    ("promql", "asked"),
    [
        ("sum by (a, b) (up)", "sum by (a, b) (up)"),
        ("sum(\n  # a comment, with : and `\n  rate(x[5m])\n)", "sum( rate(x[5m]) )"),
        ('up{a=~"b\\\\,c|d, e"}', 'up{a=~"b\\\\,c|d, e"}'),
        ("max_over_time(up[1h : 5m])", "max_over_time(up[1h:5m])"),
        ('up{a="b : c"}', 'up{a="b \\x3a c"}'),
        ("up{a=`b : \\c`}", 'up{a="b \\x3a \\\\c"}'),
        ("up{a=~`b\\d+`}", "up{a=~`b\\d+`}"),
        ("up{a='# no comment'}", "up{a='# no comment'}"),
        ("job:up:sum", "job:up:sum"),
    ],
)
def test_grafana_finds_the_query_of_a_mission_whatever_it_holds(promql: str, asked: str) -> None:
    one = Mission(name="first", promql=promql)
    page = pages(one, Mission(name="second", promql="up"))["mission.json"]
    variable = variables(page)["mission"]
    choices = []
    for text in _CHOICE.findall(variable["query"]):
        found = _PAIR.fullmatch(text.replace("\\,", ","))
        assert found is not None, text
        choices.append((found[1].strip(), found[2].strip()))
    assert choices == [("first", asked), ("second", "up")]
    assert [(option["text"], option["value"]) for option in variable["options"]] == choices


def test_missions_of_one_query_are_told_apart() -> None:
    page = pages(*(Mission(name=name, promql="up", step=MINUTE) for name in "abc"))["mission.json"]
    options = {option["text"]: option["value"] for option in variables(page)["mission"]["options"]}
    assert options == {"a": "up", "b": "(up)", "c": "((up))"}


def test_a_colon_in_a_string_is_still_that_colon() -> None:
    before, after = (promql_parser.parse(text) for text in ('up{a="b : c"}', one_line('up{a="b : c"}')))
    assert [str(matcher) for matcher in after.matchers.matchers] == [str(each) for each in before.matchers.matchers]


def test_values_are_matched_with_results_whatever_labels_missions_add() -> None:
    page = pages(Mission(name="a", promql="up", labels={"team": "x"}), Mission(name="b", promql="up"))["mission.json"]
    [value] = [expr for whose, expr in expressions(page) if whose == "Value, forecast and bounds D"]
    assert value.startswith("(${mission:raw}) and ignoring (metric, mission, team) last_over_time(anomaly_pred{")


def test_without_files_the_query_of_the_values_is_written_by_hand() -> None:
    page = pages()["mission.json"]
    assert variables(page)["query"]["type"] == "textbox"
    assert variables(page)["mission"]["query"] == "label_values(at_mission_info, mission)"
    assert "query" not in variables(pages(*demo_missions())["mission.json"])


def test_reasons_are_told_in_words() -> None:
    for title in ("What the score is of", "Series that had an incident"):
        [panel] = [panel for panel in panels(pages()["mission.json"]) if panel["title"] == title]
        for number, reason in enumerate(REASONS):
            assert re.search(rf'"{number}": {{[^}}]*"text": "{reason}"', json.dumps(panel))


MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
END = datetime(2025, 6, 1, 12, tzinfo=UTC)


@dataclass(frozen=True)
class Watched:
    """A server in which missions were forecast and scored twice, the last time at `at`, amid an incident."""

    server: servers.Server
    at: datetime
    missions: tuple[Mission, ...]
    forecasts: Mapping[str, tuple[Forecast, ...]]

    def ask(self, expr: str, *, span: timedelta | None = None, step: timedelta = MINUTE) -> list[Any]:
        """What the server answers at the end, or over the `span` before it, at whole steps as Grafana does."""
        params = {"query": expr, "nocache": "1"}
        if span is None:
            params["time"] = str(self.at.timestamp())
        else:
            end = Grid.ending(self.at, step, 1).start
            params |= {"start": str((end - span).timestamp()), "end": str(end.timestamp())}
            params["step"] = str(step.total_seconds())
        path = "query" if span is None else "query_range"
        answer = json.loads(fetch(f"{self.server.url}/api/v1/{path}?{urlencode(params)}"))
        return list(answer["data"]["result"])

    def silent(self, page: Mapping[str, Any], known: Mapping[str, str]) -> set[str]:
        """What a page asks, as it asks it, and nobody answers."""
        instant = {
            f"{panel['title']} {target['refId']}"
            for panel in panels(page)
            for target in panel["targets"]
            if target.get("instant")
        }
        step = parse_duration(known["__interval"])
        return {
            whose
            for whose, expr in expressions(page)
            if not self.ask(substituted(expr, known), span=None if whose in instant else 6 * HOUR, step=step)
        }

    def known(self, name: str, page: Mapping[str, Any]) -> dict[str, str]:
        """What the variables of the mission's page are when `name` is chosen, as Grafana finds them."""
        options = {option["text"]: option["value"] for option in variables(page)["mission"]["options"]}
        known = {**KNOWN, "mission:text": name, "mission:raw": options[name], "project": ".*"}
        for variable in ("step", "series"):
            known[variable] = self.choices(variables(page)[variable], known)[0]
        return {**known, "series:raw": known["series"], "__interval": known["step"]}

    def choices(self, variable: Mapping[str, Any], known: Mapping[str, str]) -> list[str]:
        """The choices of a variable made of `query_result(…)`, whose answers Grafana turns into text."""
        asked = re.fullmatch(r"query_result\((.*)\)", variable["query"])
        assert asked is not None
        found = []
        for row in self.ask(substituted(asked[1], known)):
            labels = dict(row["metric"])
            name = labels.pop("__name__", "")
            text = name + "{" + ",".join(f'{key}="{value}"' for key, value in labels.items()) + "}"
            match = re.search(variable["regex"].strip("/"), f"{text} {row['value'][1]} {row['value'][0]}")
            assert match is not None, text
            found.append(match[1])
        return found


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    server = servers.victoria_metrics(folder, "-dedup.minScrapeInterval=1ms")
    try:
        yield _watched(server, folder)
    finally:
        server.stop()


def _watched(server: servers.Server, folder: Path) -> Watched:
    incidents = make_demo(folder / "demo", end=END, days=16)
    [incident] = [each for each in incidents if each.name == "search-slow"]
    at = incident.start + timedelta(minutes=35)
    usual = demo_missions()
    missions = (
        *(mission.model_copy(update={"labels": {"team": "shop"}}) for mission in usual),
        _mission("minutely", "max by (service) (last_over_time(http_request_duration_p99_seconds[5m]))", MINUTE),
        _mission("hourly", "max by (instance) (avg_over_time(cpu_usage_ratio[1h]))", HOUR),
        _mission("unforecast", "queue_depth", MINUTE),
        _mission("broken", "no_such_function(up)", MINUTE),
    )
    _load(server, folder / "demo", [mission.promql for mission in usual], Grid.ending(at, STEP, 15 * 288))
    # As a rule engine writes it that sees the incident.
    labels = 'alertname="Anomaly",alertstate="firing",mission="demo-latency"'
    _post(server, [f"ALERTS{{{labels}}} 1 {round(at.timestamp()) * 1000}"])
    forecasts: dict[str, tuple[Forecast, ...]] = {}
    with PrometheusStore(Source(url=server.url), state=folder) as store:

        def run(kind: Literal["forecast", "detect"], names: Sequence[Mission], now: datetime) -> list[Any]:
            about = About("shop", f"at:shop:{kind}:5m:00")
            results, _ = run_pass(kind, names, {"": store}, now=now, window=HOUR, about=about)
            server.flush()
            failed = {result.mission.name for result in results if result.error is not None}
            assert failed == {"broken"}
            return results

        for hours in (2, 1):
            for result in run("forecast", [m for m in missions if m.name != "unforecast"], at - hours * HOUR):
                if result.forecast is not None:
                    forecasts[result.mission.name] = (*forecasts.get(result.mission.name, ()), result.forecast)
        for hours in (1, 0):
            run("detect", missions, at - hours * HOUR)
    return Watched(server, at, missions, forecasts)


def _mission(name: str, promql: str, step: timedelta) -> Mission:
    every = {"every": HOUR, "lookback": "14d", "horizon": "4h", "model": "profile"}
    return Mission(name=name, promql=promql, step=step, forecast=every, detect={"every": step, "catch_up": "3h"})


def _load(server: servers.Server, folder: Path, metrics: Sequence[str], grid: Grid) -> None:
    store = FolderStore(Source(folder=folder))
    for metric in metrics:
        panel = store.read(metric, grid)
        lines = [
            f"{metric}{labels.without(['__name__'])} {y} {ms}"
            for labels, row in zip(panel.labels, panel.y.tolist(), strict=True)
            for y, ms in zip(row, grid.epoch_ms().tolist(), strict=True)
            if not math.isnan(y)
        ]
        _post(server, lines)


def _post(server: servers.Server, lines: Sequence[str]) -> None:
    fetch(f"{server.url}/api/v1/import/prometheus", data="\n".join(lines).encode(), timeout=60)
    server.flush()


@pytest.mark.servers
@pytest.mark.parametrize("name", ["overview.json", "platform.json"])
def test_every_query_of_all_missions_finds_what_passes_store(watched: Watched, name: str) -> None:
    page = pages(*watched.missions)[name]
    assert watched.silent(page, {**KNOWN, "project": "shop"}) == set()


@pytest.mark.servers
def test_every_query_of_a_mission_finds_what_passes_store(watched: Watched) -> None:
    page = pages(*watched.missions)["mission.json"]
    silent = {whose for whose, _ in expressions(page)}
    for name in watched.forecasts:
        none = watched.silent(page, watched.known(name, page))
        silent &= none
        # What every mission has.
        assert not none & ({f"Value, forecast and bounds {ref}" for ref in "ABCD"} | {"Score A"}), name
    assert silent == {"Failed passes A"}
    # Without a choice of series, forecasts of the mission alone are shown.
    asked = dict(expressions(page))
    known = {**watched.known("hourly", page), "series:raw": ""}
    drawn = watched.ask(substituted(asked["Value, forecast and bounds C"], known), span=HOUR, step=HOUR)
    assert {row["metric"]["mission"] for row in drawn} == {"hourly"}
    # A mission that cannot be read has no series, and its page shows that passes fail.
    assert "Failed passes A" not in watched.silent(page, {**KNOWN, "mission:text": "broken"})


@pytest.mark.servers
@pytest.mark.parametrize(("name", "step"), [("minutely", "1m"), ("demo-latency", "5m"), ("hourly", "1h")])
def test_the_line_of_a_forecast_is_the_freshest_at_any_step(watched: Watched, name: str, step: str) -> None:
    page = pages(*watched.missions)["mission.json"]
    known = watched.known(name, page)
    assert known["step"] == step
    asked = dict(expressions(page))
    drawn = {}
    for ref, field in (("A", "upper"), ("B", "lower"), ("C", "yhat")):
        expr = substituted(asked[f"Value, forecast and bounds {ref}"], known)
        answer = watched.ask(expr, span=3 * HOUR, step=parse_duration(step))
        assert len(answer) == 1
        drawn[field] = {float(at): float(value) for at, value in answer[0]["values"]}
    service = {key: value for key, value in answer[0]["metric"].items() if key in ("service", "instance")}
    old, new = watched.forecasts[name]
    row = [all(labels.get(key) == value for key, value in service.items()) for labels in new.labels].index(True)
    expected: dict[float, tuple[float, ...]] = {}
    for forecast in (old, new):
        for i, ms in enumerate(forecast.grid.epoch_ms()):
            values = (forecast.upper[row, i], forecast.lower[row, i], forecast.yhat[row, i])
            expected[ms / 1000] = tuple(float(value) for value in values)
    times = [at for at in expected if at in drawn["yhat"]]
    assert len(times) >= 2 if step == "1h" else len(times) > 10
    for at in times:
        assert (drawn["upper"][at], drawn["lower"][at], drawn["yhat"][at]) == pytest.approx(expected[at], rel=1e-9)


@pytest.mark.servers
def test_the_page_of_a_mission_opens_with_its_worst_series(watched: Watched) -> None:
    page = pages(*watched.missions)["mission.json"]
    known = watched.known("demo-latency", page)
    assert 'service="search"' in known["series"]
    asked = dict(expressions(page))
    [value] = watched.ask(substituted(asked["Value, forecast and bounds D"], known))
    assert value["metric"]["service"] == "search"
    [score] = watched.ask(substituted(asked["Score A"], known), span=HOUR, step=STEP)
    [reasons] = watched.ask(substituted(asked["What the score is of A"], known), span=HOUR, step=STEP)
    over = {at for at, value in score["values"] if float(value) > 1}
    assert over == {at for at, _ in reasons["values"]}
    assert {REASONS[int(value)] for _, value in reasons["values"]} <= {"point", "sustained", "drift", "level shift"}
    [shaded] = watched.ask(substituted(asked["Incidents"], known), span=HOUR, step=STEP)
    assert shaded["values"][0][0] == min(over)
    rows = watched.ask(substituted(asked["Series that had an incident B"], known))
    first = {row["metric"]["service"]: float(row["value"][1]) / 1000 for row in rows}
    assert first["search"] == min(over)


@pytest.mark.servers
def test_the_worst_mission_is_that_of_the_incident(watched: Watched) -> None:
    asked = dict(expressions(pages()["overview.json"]))
    rows = watched.ask(substituted(asked["Missions by worst score A"], KNOWN | {"project": ".*"}))
    worst = max(rows, key=lambda row: float(row["value"][1]))
    assert worst["metric"] in ({"mission": "demo-latency"}, {"mission": "minutely"})
    ago = watched.ask(substituted(asked["Missions by worst score E"], KNOWN | {"project": ".*"}))
    assert {row["metric"]["mission"]: float(row["value"][1]) for row in ago}["demo-latency"] == 0


@pytest.mark.servers
def test_a_mission_that_is_gone_falls_out_of_the_tables(watched: Watched) -> None:
    asked = dict(expressions(pages()["overview.json"]))
    [info] = watched.ask('last_over_time(at_mission_info{mission="demo-disk"}[3h])')
    later = replace(watched, at=watched.at + MINUTE)
    info["metric"].pop("__name__", None)
    labels = ",".join(f'{key}="{value}"' for key, value in info["metric"].items())
    expr = substituted(asked["Missions by worst score C"], KNOWN | {"project": ".*"})
    assert "demo-disk" in {row["metric"]["mission"] for row in later.ask(expr)}
    _post(watched.server, [f"at_mission_info{{{labels}}} 0 {round(later.at.timestamp()) * 1000}"])
    assert "demo-disk" not in {row["metric"]["mission"] for row in later.ask(expr)}


@pytest.mark.servers
def test_prometheus_understands_every_expression(prom_server: servers.Server) -> None:
    for page in pages(*demo_missions()).values():
        for whose, expr in expressions(page):
            query = urlencode({"query": substituted(expr, KNOWN)})
            assert b"success" in fetch(f"{prom_server.url}/api/v1/query?{query}"), whose
