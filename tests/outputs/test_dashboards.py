"""The Grafana pages: what they ask is PromQL that finds what passes store, and the files are what Grafana takes."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import promql_parser
import pytest

from anomaly_times.conventions import OUR_METRICS, SELF_METRICS
from anomaly_times.demo import demo_missions
from anomaly_times.evidence import REASONS
from anomaly_times.mission import Mission
from anomaly_times.outputs.dashboards import MISSION_UID, OVERVIEW_UID, PLATFORM_UID, render_dashboards
from anomaly_times.outputs.grafana import one_line

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
